"""`strata up`: the schedule fires by itself, and a run is submitted by hand in the Prefect UI."""

import os
import subprocess
import sys
import time

import httpx
import pytest
import yaml

from tests.conftest import free_ports

pytestmark = [
    pytest.mark.browser,
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def stack(tiny_recipe, tmp_path_factory):
    """A running stack whose nightly flow is due every minute; yields its API and its store."""
    folder = tmp_path_factory.mktemp("stack")
    recipe = folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "RAY_"))}
    environment |= {"PREFECT_HOME": str(folder / "prefect"), "STRATA_HOME": str(folder / "home")}

    def strata(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "flows", *arguments],
            env=environment,
            capture_output=True,
            text=True,
        )

    port, ray_port, dashboard_port = free_ports(3)
    ports = ["--port", str(port), "--ray-port", str(ray_port)]
    ports += ["--dashboard-port", str(dashboard_port)]
    store = ["--store", str(folder / "store")]
    started = strata("up", str(recipe), "--cron", "* * * * *", *store, *ports)
    try:
        assert started.returncode == 0, started.stderr
        assert strata("status").returncode == 0
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api", timeout=60) as api:
            yield api, f"http://127.0.0.1:{port}", folder / "store"
    finally:
        ended = strata("down")
    assert "worker" in ended.stdout
    assert "Nothing runs" in strata("status").stdout


def wait_until(condition, seconds=400):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "timed out"
        time.sleep(1)
    return found


def runs(api, scheduled):
    found = api.post("/flow_runs/filter", json={}).json()
    return [run for run in found if run["auto_scheduled"] == scheduled]


def test_the_schedule_fires_by_itself(stack):
    api, _, store = stack
    deployment = api.get("/deployments/name/nightly/nightly").json()
    done = wait_until(
        lambda: [r for r in runs(api, True) if r["state_type"] in ("COMPLETED", "FAILED")]
    )
    assert done[0]["state_type"] == "COMPLETED"
    schedule = deployment["schedules"][0]["id"]
    api.patch(f"/deployments/{deployment['id']}/schedules/{schedule}", json={"active": False})
    assert (store / "artifacts" / "tiny").is_dir()


def test_a_run_is_submitted_in_the_browser(stack, chromium, tmp_path):
    api, url, _ = stack
    page = chromium.new_page(viewport={"width": 1400, "height": 1100})
    page.set_default_timeout(60_000)
    page.goto(f"{url}/deployments")
    page.get_by_role("link", name="nightly").first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    page.get_by_text("What to run tonight.").wait_for()
    assert page.get_by_text("One of the recipes that come with Strata.").is_visible()
    page.get_by_role("button", name="Add item").click()
    page.get_by_role("textbox").nth(2).fill("learn.k=3")
    page.screenshot(path=tmp_path / "form.png", full_page=True)
    page.get_by_role("button", name="Submit").click()
    (run,) = wait_until(lambda: runs(api, False))

    def state():
        found = api.get(f"/flow_runs/{run['id']}").json()
        return found["state_type"] if found["state_type"] in ("COMPLETED", "FAILED") else None

    assert wait_until(state) == "COMPLETED"
    assert api.get(f"/flow_runs/{run['id']}").json()["parameters"]["night"]["settings"]
    page.goto(f"{url}/runs/flow-run/{run['id']}")
    page.get_by_text("Completed").first.wait_for()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("results").first.wait_for()
    page.screenshot(path=tmp_path / "run.png", full_page=True)
