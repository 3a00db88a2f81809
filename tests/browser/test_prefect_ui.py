"""`strata up`: the schedule fires by itself, and a run is submitted by hand in the Prefect UI."""

import os
import time
from pathlib import Path

import httpx
import psutil
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


# What a page that the person opens would do while the worker waits for runs.
ATTACK = """async ({url, script}) => {
    const told = [];
    const post = async (path, body, mode) => {
        const headers = mode === "no-cors" ? {} : {"Content-Type": "application/json"};
        const request = {method: "POST", mode, headers, body: JSON.stringify(body)};
        try {
            const answer = await fetch(url + path, request);
            told.push(answer.status);
            return await answer.json();
        } catch (error) { told.push("refused"); return {id: null}; }
    };
    for (const mode of ["cors", "no-cors"]) {
        const flow = await post("/flows/", {name: "evil"}, mode);
        const step = {"prefect.deployments.steps.run_shell_script": {script}};
        const deployment = await post("/deployments/", {
            name: "evil", flow_id: flow.id, work_pool_name: "strata",
            entrypoint: "x.py:f", pull_steps: [step],
        }, mode);
        await post(`/deployments/${deployment.id}/create_flow_run`, {}, mode);
    }
    for (const path of ["/events/in", "/logs/out"]) {
        told.push(await new Promise(done => {
            const socket = new WebSocket(url.replace("http", "ws") + path, ["prefect"]);
            socket.onopen = () => done("opened");
            socket.onerror = () => done("refused");
        }));
    }
    return told;
}"""


def test_a_page_of_a_stranger_runs_nothing(stack, chromium, tmp_path):
    stack.pause_schedules()
    before = {run["id"] for run in stack.runs()}
    page = chromium.new_page()
    # Any page of another origin: Ray's dashboard is one, being on another port.
    page.goto(next(note["address"] for note in stack.notes() if note["name"] == "ray"))
    api = f"{stack.url}/api"
    told = page.evaluate(ATTACK, {"url": api, "script": f"touch {tmp_path}/pwned"})
    page.close()
    # What is sent without asking the server first is sent, but the page learns nothing of it.
    assert told == ["refused"] * 3 + [0, "refused"] * 3 + ["refused"] * 2
    with httpx.Client(base_url=api, timeout=60) as client:
        for headers in ({}, {"Host": "evil.example"}, {"Origin": "http://evil.example"}):
            assert client.post("/flows/", json={"name": "evil"}, headers=headers).is_error
    time.sleep(20)
    assert not (tmp_path / "pwned").exists()
    assert "evil" not in [flow["name"] for flow in stack.call("POST", "/flows/filter", json={})]
    assert {run["id"] for run in stack.runs()} <= before


def test_nothing_of_the_stack_is_others_to_see_or_to_use(stack):
    """No secret in what others may read, a log or an argument; no socket but on the loopback."""
    home = stack.folder / "home"
    secrets = [stack.login.partition(":")[2], (home / "ray.token").read_text()]
    kept = {"prefect.login", "ray.token"}
    for path in (path for path in stack.folder.rglob("*") if path.is_file()):
        if path.name not in kept:
            assert not any(secret.encode() in path.read_bytes() for secret in secrets), path
    assert home.stat().st_mode & 0o777 == 0o700
    assert all((home / name).stat().st_mode & 0o777 == 0o600 for name in kept)
    for note in stack.notes():
        leader = psutil.Process(note["pid"])
        for process in [leader, *leader.children(recursive=True)]:
            assert not any(s in a for a in process.cmdline() for s in secrets), process
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    assert connection.laddr.ip in ("127.0.0.1", "::ffff:127.0.0.1"), process


def test_a_run_is_submitted_in_the_browser(stack, chromium, screenshots):
    stack.pause_schedules()
    before = {run["id"] for run in stack.runs()}
    page = chromium.new_page(viewport={"width": 1400, "height": 1100})
    page.set_default_timeout(60_000)
    page.goto(f"{stack.url}/deployments")
    # As `strata up` says: the login stands in a file of its home.
    page.locator("input[type=password]").fill(stack.login)
    page.get_by_role("button", name="Login").click()
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
    # Left open, its moving parts take half a core from the tests that follow.
    page.close()
    assert (
        Registry(f"{stack.store}/artifacts").load("tiny").manifest.lineage["settings"]["learn"]["k"]
        == 3
    )
