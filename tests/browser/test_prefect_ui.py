"""`strata up`: the schedule fires by itself, and a run is submitted by hand in the Prefect UI."""

import os
from pathlib import Path

import pytest

from storage.artifacts import Registry
from tests.live import LiveStack, wait_until

pytestmark = [
    pytest.mark.browser,
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]


@pytest.fixture(scope="module")
def stack(tiny_recipe, tmp_path_factory):
    """A running stack whose nightly flow is due every minute."""
    live = LiveStack(tmp_path_factory.mktemp("stack"), tiny_recipe, options=["--cron", "* * * * *"])
    with live.running():
        assert live.strata("status").returncode == 0
        yield live
        assert "worker" in live.down()
        assert "Nothing runs" in live.strata("status").stdout


@pytest.fixture
def screenshots(tmp_path):
    """Folder of the pictures; `STRATA_SCREENSHOTS` keeps them."""
    folder = Path(os.environ.get("STRATA_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_the_schedule_fires_by_itself(stack):
    def ended():
        runs = [run for run in stack.runs() if run["auto_scheduled"]]
        return [run for run in runs if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED")]

    first = wait_until(ended, 600)[0]
    assert first["state_type"] == "COMPLETED", stack.story(first["id"])
    assert first["name"] == "nightly recipe"
    stack.pause_schedules()
    registry = Registry(f"{stack.store}/artifacts")
    # Later minutes find everything done, and publish nothing.
    assert [version.version for version in registry.versions("tiny")] == [1]


def test_a_run_is_submitted_in_the_browser(stack, chromium, screenshots):
    stack.pause_schedules()
    before = {run["id"] for run in stack.runs()}
    page = chromium.new_page(viewport={"width": 1400, "height": 1100})
    page.set_default_timeout(60_000)
    page.goto(f"{stack.url}/deployments")
    page.get_by_role("link", name="nightly").first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    page.get_by_text("What to run tonight.").wait_for()
    assert page.get_by_text("One of the recipes that come with Strata.").is_visible()
    page.get_by_role("button", name="Add item").click()
    # The run's name, the recipe's file, the new item, the store.
    page.get_by_role("textbox").nth(3).wait_for()
    page.get_by_role("textbox").nth(2).fill("learn.k=3")
    page.screenshot(path=screenshots / "form.png", full_page=True)
    page.get_by_role("button", name="Submit").click()

    def submitted():
        # Besides, the version of the scheduled run may just have started its consumer.
        new = [run for run in stack.runs() if run["id"] not in before]
        return [run for run in new if "night" in run["parameters"]]

    (run,) = wait_until(submitted, 60)
    assert stack.wait(run["id"]) == "COMPLETED", stack.story(run["id"])
    assert run["parameters"]["night"]["settings"] == ["learn.k=3"]
    page.goto(f"{stack.url}/runs/flow-run/{run['id']}")
    page.get_by_text("Completed").first.wait_for()
    page.get_by_text("training on cpu from step 0 of 60").wait_for()
    page.screenshot(path=screenshots / "run.png", full_page=True)
    page.get_by_text("Artifacts", exact=True).click()
    page.get_by_text("results").first.wait_for()
    page.screenshot(path=screenshots / "artifacts.png", full_page=True)
    assert (
        Registry(f"{stack.store}/artifacts").load("tiny").manifest.lineage["settings"]["learn"]["k"]
        == 3
    )
