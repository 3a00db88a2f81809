"""What cannot work is refused before a model is loaded."""

import shutil
import subprocess
import sys

import pytest
from tokenizers.processors import TemplateProcessing

from compute.steps import plan
from flows.recipe import Recipe


def check(values, store, **changes):
    recipe = Recipe.model_validate(values | {"store": str(store)} | changes)
    plan.check(recipe)
    return recipe


def test_a_good_recipe_passes(tiny_recipe, tmp_path):
    check(tiny_recipe, tmp_path / "store")


def test_no_weights_are_read(tiny_recipe, tiny_model, tmp_path, monkeypatch):
    from transformers import PreTrainedModel

    def refuse(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    check(tiny_recipe, tmp_path / "store")


def test_a_layer_that_the_model_lacks(tiny_recipe, tmp_path):
    levels = [{"name": "a", "hookpoint": "layers.9.output"}]
    with pytest.raises(ValueError, match=r"layers\.9\.output.*layers\.[0-3]"):
        check(tiny_recipe, tmp_path, levels=levels)


def test_levels_that_are_not_given_lowest_first(tiny_recipe, tmp_path):
    levels = tiny_recipe["levels"]
    with pytest.raises(ValueError, match=r"not in the order .*lowest first, layer-00, layer-02"):
        check(tiny_recipe, tmp_path, levels=levels[::-1])


def test_a_model_folder_that_does_not_exist(tiny_recipe, tmp_path):
    with pytest.raises(ValueError, match=r"/no/such/model.*not a folder"):
        check(tiny_recipe, tmp_path, model={"source": "/no/such/model"})


def test_an_empty_text_source(tiny_recipe, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "blank.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"holds no text"):
        check(tiny_recipe, tmp_path / "s", inputs={"text": str(empty)})
    with pytest.raises(ValueError, match=r"does not exist"):
        check(tiny_recipe, tmp_path / "s", inputs={"text": str(tmp_path / "nowhere")})


def test_an_unwritable_store(tiny_recipe, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PermissionError, match=r"is not writable .*choose another"):
        check(tiny_recipe, tmp_path / "file" / "store")


def test_a_disk_that_is_too_small(tiny_recipe, tmp_path, monkeypatch):
    from storage.locations import Location

    monkeypatch.setattr(Location, "free_bytes", lambda self: 100_000)
    with pytest.raises(ValueError, match=r"0 MB free and the run needs about \d+ MB: free some"):
        check(tiny_recipe, tmp_path)


def test_a_context_longer_than_the_model_takes(tiny_recipe, tmp_path):
    extract = tiny_recipe["extract"] | {"context_length": 65}
    with pytest.raises(ValueError, match=r"extract.context_length is 65; .* holds 1 to 64 tokens"):
        check(tiny_recipe, tmp_path, extract=extract)


def test_a_context_that_leaves_no_room_for_its_beginning(tiny_recipe, tiny_model, tmp_path):
    """A tokenizer that begins every text with a token takes one of the model's places."""
    from transformers import AutoTokenizer

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.add_bos_token = True
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(folder)
    extract = tiny_recipe["extract"] | {"context_length": 64}
    changes = {"model": tiny_recipe["model"] | {"source": str(folder)}, "extract": extract}
    with pytest.raises(ValueError, match=r"extract.context_length is 64, .* choose one less"):
        check(tiny_recipe, tmp_path / "s", **changes)


def test_a_token_that_the_model_does_not_know(tiny_recipe, tiny_model, tiny_texts, tmp_path):
    from transformers import AutoTokenizer

    folder, texts = tmp_path / "model", tmp_path / "texts"
    shutil.copytree(tiny_model, folder)
    shutil.copytree(tiny_texts, texts)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"new{i}" for i in range(64)])
    tokenizer.save_pretrained(folder)
    (texts / "document-00.txt").write_text("the new63 house .")
    changes = {
        "model": tiny_recipe["model"] | {"source": str(folder)},
        "inputs": {"text": str(texts)},
    }
    with pytest.raises(ValueError, match=r"\('new63'\) .* lies beyond the 64 that its model knows"):
        check(tiny_recipe, tmp_path / "s", **changes)


def test_fingerprints_follow_content_not_place(tiny_recipe, tiny_model, tiny_texts, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(tiny_model, moved / "model")
    shutil.copytree(tiny_texts, moved / "texts")

    def name(**changes):
        recipe = Recipe.model_validate(tiny_recipe | changes)
        return plan.prepare(recipe)[1].fingerprint

    here = name()
    there = (
        tiny_recipe["model"] | {"source": str(moved / "model")},
        {"text": str(moved / "texts")},
    )
    assert name(model=there[0], inputs=there[1]) == here
    (moved / "texts" / "document-00.txt").write_text("the house .")
    assert name(model=there[0], inputs=there[1]) != here
    assert name(extract=tiny_recipe["extract"] | {"seed": 1}) != here
    assert name(model=tiny_recipe["model"] | {"dtype": "bfloat16"}) != here


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nope"], "recipe 'nope' is unknown"),
        (["run", "smollm2", "--set", "learn.kk=1"], "did you mean 'learn.k'?"),
        (["run", "smollm2", "--set", "learn.k=100000"], "exceeds n_concepts"),
        (["run", "smollm2", "--set", "inputs.text=/no/where"], "does not exist"),
        (["run", "smollm2", "--set", "model.source=/no/model"], "is not a folder"),
        (["run", "smollm2", "--store", "/proc/x"], "is not writable"),
    ],
)
def test_the_command_line_ends_with_one_sentence_and_code_2(strata, arguments, message):
    done = strata(*arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_a_real_small_disk_is_refused(strata, tmp_path, tiny_recipe):
    """Where a tmpfs can be mounted, the refusal is tried on a really small disk."""
    import yaml

    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if (
        not sys.platform.startswith("linux")
        or subprocess.run(mount, capture_output=True).returncode
    ):
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        recipe = tmp_path / "tiny.yaml"
        recipe.write_text(yaml.safe_dump(tiny_recipe))
        done = strata("run", str(recipe), "--store", str(disk / "store"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert done.returncode == 2, done.stderr
    assert "MB free and the run needs about" in done.stderr
