"""The whole path on a tiny diffusion model that is shown pictures."""

import io

import numpy as np
import pytest
import torch

from flows.build import build
from flows.recipe import Recipe
from storage.artifacts import Registry
from storage.locations import Location
from storage.tables.activations import ActivationSet

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    """Folder of a random `UNet2DModel` for pictures of 8 × 8 pixels in one channel."""
    from diffusers import UNet2DModel

    folder = tmp_path_factory.mktemp("unet")
    torch.manual_seed(0)
    UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Folder of 40 pictures of a bright square, with a caption that says where it is."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("shown")
    rng = np.random.default_rng(0)
    for number in range(40):
        pixels = rng.integers(0, 60, (8, 8), dtype=np.uint8)
        left = number % 2 == 0
        pixels[2:6, slice(0, 4) if left else slice(4, 8)] += 150
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text("square left" if left else "square right")
    return folder


@pytest.fixture(scope="module")
def built(unet, shown, tiny_recipe, tmp_path_factory, prefect_home, local_ray):
    place = "up_blocks.0"
    values = tiny_recipe | {
        "name": "squares",
        "store": str(tmp_path_factory.mktemp("store")),
        "model": {"kind": "diffusion", "source": str(unet), "dtype": "float32"},
        "inputs": {"images": str(shown)},
        "levels": [
            {"name": "t100", "hookpoint": place, "timestep": 100},
            {"name": "t800", "hookpoint": place, "timestep": 800},
        ],
        "extract": {
            "grid": 4,
            "batch_size": 8,
            "block_rows": 128,
            "shard_rows": 256,
            "chunk_rows": 128,
            "dtype": "float32",
        },
    }
    recipe = Recipe.model_validate(values)
    return recipe, build(recipe)


def test_rows_are_what_the_network_says(built, unet):
    """Noise sampled pictures with plain diffusers and read the block's output."""
    from diffusers import DDIMScheduler, UNet2DModel

    from compute.inputs.gallery import Gallery
    from compute.inputs.images import open_pictures

    recipe, references = built
    stored = ActivationSet(references["extract"].location)
    gallery = Gallery.load(references["extract"].location)
    pictures = open_pictures(recipe.inputs)
    network = UNet2DModel.from_pretrained(unet).eval()
    scheduler = DDIMScheduler(num_train_timesteps=1000)
    seen = []
    network.up_blocks[0].register_forward_hook(lambda *a: seen.append(a[2]))
    sample = stored.index("sample", 0, len(stored))
    position = stored.index("position", 0, len(stored))
    for row in np.random.default_rng(0).choice(len(stored), 8, replace=False):
        number = int(sample[row])
        clean = torch.from_numpy(pictures.picture(number).copy())[None, None] / 255 * 2 - 1
        generator = torch.Generator().manual_seed(gallery.noise_seed(number))
        noise = torch.randn((1, 1, 8, 8), generator=generator)
        for level in recipe.levels:
            step = torch.tensor([level.timestep])
            with torch.inference_mode():
                network(scheduler.add_noise(clean, noise, step), level.timestep)
            pooled = torch.nn.functional.adaptive_avg_pool2d(seen.pop(), 4)[0].flatten(1).T
            np.testing.assert_allclose(
                stored.read(level.name, row, row + 1)[0],
                pooled[position[row]],
                rtol=1e-3,
                atol=1e-4,
            )


def test_the_artifact_shows_pictures_and_observed_words(built):
    import pandas as pd

    recipe, _ = built
    artifact = Registry((Location(recipe.store) / "artifacts").url).load("squares")
    assert [level.timestep for level in artifact.manifest.levels] == [100, 800]
    examples = pd.read_parquet(io.BytesIO(artifact.read("examples/t100.parquet")))
    assert {len(values) for values in examples["values"]} == {16}
    assert set(examples["document"]) <= {f"{n:02d}.png" for n in range(40)}
    page = artifact.read("report.html").decode()
    assert "squares" in page
    nodes = pd.read_parquet(io.BytesIO(artifact.read("graph/nodes.parquet")))
    observed = set(nodes.loc[nodes["level"] == 0, "label"])
    assert observed <= {f"row {r}, column {c}" for r in range(1, 5) for c in range(1, 5)} | {
        "left",
        "right",
    }
    # The square's place is the one thing that differs, so it must be among the observed variables.
    assert observed


def test_a_recipe_of_mixed_kinds_is_refused(built):
    recipe, _ = built
    values = recipe.model_dump()
    with pytest.raises(ValueError, match=r"give inputs\.text"):
        Recipe.model_validate(values | {"model": values["model"] | {"kind": "language"}})
    levels = [level | {"timestep": None} for level in values["levels"]]
    with pytest.raises(ValueError, match="give each level one"):
        Recipe.model_validate(values | {"levels": levels})


def test_lost_pictures_are_drawn_again(built):
    """What lies beside the rows is made again alone: the rows are not touched."""
    from prefect import flow

    from flows.build import run_steps
    from storage.care.doctor import examine
    from storage.care.mending import Copies, mend

    recipe, references = built
    location = references["extract"].location
    before = {path: location.get(path) for path in location.walk()}
    location.delete("pictures/1.safetensors")
    location.put("gallery.json", before["gallery.json"][:-1])
    location.put("pictures/0.safetensors", before["pictures/0.safetensors"] + b"x")
    found = examine(location)
    assert {finding.path for finding in found} == {
        "gallery.json",
        "pictures/0.safetensors",
        "pictures/1.safetensors",
    }
    assert mend(location, found, Copies(Location(recipe.store)))

    @flow
    def repairing():
        return run_steps(recipe, until="extract")

    assert repairing()["extract"] == references["extract"]
    assert {path: location.get(path) for path in location.walk()} == before
