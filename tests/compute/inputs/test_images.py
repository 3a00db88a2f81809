"""Pictures are read from folders one at a time, fitted to the model, and hashed by content."""

import os
import zlib

import numpy as np
import pytest
from PIL import Image

from compute.inputs.documents import read_prompts
from compute.inputs.images import fit, open_pictures, png
from compute.settings import InputSettings


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for number, shape in enumerate([(6, 8, 3), (8, 6, 3), (5, 5)]):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "1.txt").write_text("a caption\n")
    return tmp_path


def test_a_folder_of_files(folder):
    pictures = open_pictures(InputSettings(images=str(folder)))
    assert list(pictures.names) == ["0.png", "1.png", "2.png"]
    assert list(pictures.texts) == ["", "a caption", ""]
    assert [pictures.picture(i).shape for i in range(3)] == [(6, 8, 3), (8, 6, 3), (5, 5)]
    before = pictures.sha256()
    Image.new("RGB", (6, 8)).save(folder / "0.png")
    assert open_pictures(InputSettings(images=str(folder))).sha256() != before
    assert len(open_pictures(InputSettings(images=str(folder), count=2))) == 2


def test_what_cannot_be_read_is_named(folder):
    (folder / "0.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"'0\.png'.*no readable picture"):
        open_pictures(InputSettings(images=str(folder))).picture(0)
    with pytest.raises(ValueError, match="is no folder"):
        open_pictures(InputSettings(images="/no/where"))
    with pytest.raises(ValueError, match="use 'builtin:digits'"):
        open_pictures(InputSettings(images="builtin:cats"))


@pytest.mark.timeout(60)
def test_a_file_that_only_seems_to_be_a_picture_holds_nobody_up(folder):
    os.mkfifo(folder / "3.png")
    # A few hundred bytes that say they are 40,000 pixels wide and high.
    head = bytearray((folder / "0.png").read_bytes())
    head[16:24] = (40_000).to_bytes(4, "big") * 2
    head[29:33] = zlib.crc32(head[12:29]).to_bytes(4, "big")
    (folder / "0.png").write_bytes(head)
    pictures = open_pictures(InputSettings(images=str(folder)))
    assert list(pictures.names) == ["0.png", "1.png", "2.png"]
    with pytest.raises(ValueError, match=r"'0\.png'.*no readable picture"):
        pictures.picture(0)


@pytest.mark.parametrize(
    "spoil", [lambda p: p.write_bytes(b"\xff"), lambda p: os.truncate(p, 2**40)]
)
def test_a_caption_that_is_none_is_named(folder, spoil):
    spoil(folder / "1.txt")
    with pytest.raises(ValueError, match=r"1\.txt is no"):
        open_pictures(InputSettings(images=str(folder)))


def test_fit_cuts_the_middle_and_keeps_what_fits():
    exact = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert (fit(exact, 8, 3) == exact).all()
    wide = np.zeros((4, 12), dtype=np.uint8)
    wide[:, 4:8] = 200
    assert (fit(wide, 8, 1) == 200).all()
    assert fit(wide, 8, 3).shape == (8, 8, 3)


def test_thumbnails_are_no_larger_than_asked():
    from io import BytesIO

    data = png(np.zeros((300, 200, 3), dtype=np.uint8), most=96)
    assert max(Image.open(BytesIO(data)).size) == 96


def test_prompts_are_lines_and_are_drawn_again(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a red car\n\n  a blue tree \n")
    prompts = read_prompts(InputSettings(prompts=str(path)))
    assert [prompt.text for prompt in prompts] == ["a red car", "a blue tree"]
    again = read_prompts(InputSettings(prompts=str(path), count=5))
    assert [prompt.text for prompt in again][2:] == ["a red car", "a blue tree", "a red car"]
    assert len({prompt.name for prompt in again}) == 5


def test_built_in_prompts_are_seeded():
    settings = InputSettings(prompts="builtin:sprites", count=5)
    first = [prompt.text for prompt in read_prompts(settings, seed=1)]
    assert first == [prompt.text for prompt in read_prompts(settings, seed=1)]
    assert first != [prompt.text for prompt in read_prompts(settings, seed=2)]
    with pytest.raises(ValueError, match="builtin:sprites"):
        read_prompts(InputSettings(prompts="builtin:cats"))


def test_one_source_and_only_one():
    with pytest.raises(ValueError, match="give one of text, prompts, images"):
        InputSettings()
    with pytest.raises(ValueError, match="text and images"):
        InputSettings(text="a", images="b")
