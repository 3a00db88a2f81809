"""The pictures of the pages, taken of the real ones: `infra/pictures/run.png` and `atlas.png`.

    python -m tests.browser.pictures [--folder infra/pictures]

Starts a whole Strata by `strata up` in a temporary folder, submits the recipe `sprites-blocks`,
waits until its version is published, and photographs the run in the Prefect UI and the atlas of the
version in Debian's Chromium. Takes some minutes on two cores.
"""

import argparse
import base64
import io
import json
import tempfile
from collections import Counter
from pathlib import Path

import yaml
from PIL import Image

from storage.artifacts import Registry
from tests.browser.conftest import ARGUMENTS, CHROMIUM
from tests.live import LiveStack

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "flows" / "recipes" / "sprites-blocks.yaml"
MOST_BYTES = 150_000
# Concepts of one level that a picture shows with their labels, clear of the buttons.
MOST = 16


def take(folder: Path) -> None:
    """Run the recipe and take both pictures."""
    from playwright.sync_api import sync_playwright

    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as place:
        stack = LiveStack(Path(place), recipe)
        with stack.running(), sync_playwright() as playwright:
            build = stack.deployment("build/build")["id"]
            run = stack.call("POST", f"/deployments/{build}/create_flow_run", json={})["id"]
            state = stack.wait(run, seconds=3600)
            assert state == "COMPLETED", stack.story(run)
            browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
            photograph_run(browser, stack, run, folder / "run.png")
            artifact = Registry(f"{stack.store}/artifacts").load(recipe["name"])
            photograph_atlas(browser, artifact, folder / "atlas.png")
            browser.close()


def photograph_run(browser, stack, run, path):
    """The page of a run: its steps over time, and what each was made of."""
    page = open_page(browser, height=572)
    # The second, where `strata up` has made a password, is what logging in leaves in the browser.
    kept = {"color-scheme": json.dumps("light")}
    if login := getattr(stack, "login", None):
        kept["prefect-password"] = base64.b64encode(login.encode()).decode()
    for name, value in kept.items():
        page.add_init_script(f"localStorage.setItem({json.dumps(name)}, {json.dumps(value)})")
    page.goto(f"{stack.url}/runs/flow-run/{run}")
    page.get_by_text("Completed").first.wait_for()
    page.get_by_text("Artifacts", exact=True).wait_for()
    # The graph is drawn, and moves into place.
    page.wait_for_timeout(4000)
    save(page.screenshot(), path)


def photograph_atlas(browser, artifact, path):
    """The atlas, open at one concept and its kin."""
    page = open_page(browser, height=806)
    page.goto(f"{artifact.report_path.as_uri()}#concept={telling_concept(artifact)}&focus=1")
    page.wait_for_selector("body[data-ready]")
    page.wait_for_selector("article.concept")
    page.wait_for_timeout(1000)
    save(page.screenshot(), path)


def telling_concept(artifact):
    """A concept that names a thing, between two levels, of whose few kin the most have a name."""
    graph, chosen = artifact.graph, []
    named = {node["id"]: bool(node["label"]) for node in graph.nodes.to_pylist()}
    for node in graph.nodes.to_pylist():
        kin = [*graph.parents(node["id"]), *graph.children(node["id"])]
        shown = Counter(
            each.split(":")[0]
            for each in [*graph.ancestors(node["id"]), *graph.descendants(node["id"])]
        )
        between = shown.keys() >= {str(node["level"] + step) for step in (-2, -1, 1)}
        # A label of two words names a thing and its place.
        if "·" in (node["label"] or "") and between and max(shown.values()) <= MOST:
            chosen.append((sum(named[each] for each in kin) / len(kin), len(kin), node["id"]))
    return max(chosen)[2]


def open_page(browser, height):
    """A page of a laptop's size, in the light scheme."""
    context = browser.new_context(
        viewport={"width": 1280, "height": height}, color_scheme="light", locale="en-GB"
    )
    page = context.new_page()
    page.set_default_timeout(60_000)
    return page


def save(screenshot, path):
    """Save a screenshot with as many colours as fit into `MOST_BYTES`."""
    picture = Image.open(io.BytesIO(screenshot)).convert("RGB")
    for colours in (256, 128, 64, 32):
        data = io.BytesIO()
        reduced = picture.quantize(colours, dither=Image.Dither.NONE)
        reduced.save(data, "PNG", optimize=True)
        if data.tell() <= MOST_BYTES:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.getvalue())
            return
    raise ValueError(f"{path.name} takes {data.tell():,} bytes with {colours} colours: show less.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "infra" / "pictures")
    take(parser.parse_args().folder)
