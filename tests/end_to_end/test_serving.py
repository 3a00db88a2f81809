"""A served recipe runs when a real Prefect server is told to, and is scheduled for the night."""

import os
import signal
import subprocess
import sys
import time

import httpx
import pytest
import yaml

from flows.credentials import new_login
from flows.services import listen, start_prefect

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]


def wait_until(condition, seconds, process):
    deadline = time.monotonic() + seconds
    while True:
        assert process.poll() is None
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, "timed out"
        time.sleep(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    listener, login = listen(), new_login()
    environment = os.environ | {
        "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")),
        "PREFECT_API_URL": f"http://127.0.0.1:{listener.getsockname()[1]}/api",
        "PREFECT_API_AUTH_STRING": login,
    }
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = start_prefect(listener, login, environment, **quiet)
    url, auth = environment["PREFECT_API_URL"], tuple(login.split(":"))
    api = httpx.Client(base_url=url, auth=auth, timeout=120)

    def healthy():
        try:
            return api.get("/health").status_code == 200
        except httpx.HTTPError:
            return False

    wait_until(healthy, 240, process)
    yield api, environment
    process.terminate()
    process.wait(timeout=60)


def test_a_run_submitted_through_the_api_completes(server, tiny_recipe, tmp_path):
    api, environment = server
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe | {"store": str(tmp_path / "store")}))
    serving = subprocess.Popen(
        [sys.executable, "-m", "flows", "serve", str(recipe)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def deployment():
        answer = api.get("/deployments/name/build/tiny")
        return answer.json() if answer.status_code == 200 else None

    def states():
        runs = api.post("/flow_runs/filter", json={}).json()
        return {run["id"]: run["state_type"] for run in runs}

    def submitted():
        # SQLite may be locked for a moment while the server schedules runs.
        answer = api.post(f"/deployments/{found['id']}/create_flow_run", json={})
        return answer.json()["id"] if answer.status_code == 201 else None

    def ended():
        state = states().get(run)
        return state if state in ("COMPLETED", "FAILED", "CRASHED") else None

    try:
        found = wait_until(deployment, 240, serving)
        # The form in the UI is the recipe, with its fields and their descriptions.
        schema = found["parameter_openapi_schema"]["definitions"]
        assert "description" in schema["LearnSettings"]["properties"]["k"]
        assert found["schedules"][0]["schedule"]["cron"] == "0 3 * * *"
        run = wait_until(submitted, 120, serving)
        assert wait_until(ended, 300, serving) == "COMPLETED"
        # A schedule that silently creates no run is the known failure of a wrong SQLAlchemy.
        wait_until(lambda: "SCHEDULED" in states().values(), 120, serving)
    finally:
        serving.send_signal(signal.SIGINT)
        serving.wait(timeout=240)
    assert (tmp_path / "store" / "artifacts" / "tiny").is_dir()
