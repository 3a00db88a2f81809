"""A whole Strata of a test's own, begun by `strata up`, and what a person would do with it."""

import contextlib
import json
import os
import subprocess
import sys
import time

import httpx
import psutil
import yaml

from tests.conftest import free_ports

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class LiveStack:
    """A stack below a folder; its store is there too, unless another is given.

    Parameters
    ----------
    folder : Path
    recipe : dict
        What the nightly flow runs.
    environment : dict, optional
        Of the services, beside that of the tests.
    options : sequence of str
        More arguments of `strata up`.
    """

    def __init__(self, folder, recipe, *, store=None, environment=None, options=()):
        self.folder = folder
        self.store = store or str(folder / "store")
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(yaml.safe_dump(recipe))
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "RAY_"))}
        own = {"PREFECT_HOME": str(folder / "prefect"), "STRATA_HOME": str(folder / "home")}
        own["RAY_worker_niceness"] = "0"
        self.environment = kept | own | (environment or {})
        self.port, self.ray_port, dashboard_port = free_ports(3)
        self.url = f"http://127.0.0.1:{self.port}"
        self.options = ["--store", self.store, "--port", str(self.port), *options]
        self.options += ["--ray-port", str(self.ray_port), "--dashboard-port", str(dashboard_port)]
        self._client = httpx.Client(base_url=f"{self.url}/api", timeout=60)

    @property
    def login(self):
        """User and password of the Prefect server, which `strata up` has made."""
        return (self.folder / "home" / "prefect.login").read_text()

    def strata(self, *arguments):
        """Run the command line in the stack's environment."""
        return subprocess.run(
            [sys.executable, "-m", "flows", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
        )

    def up(self):
        """Start what does not run."""
        started = self.strata("up", str(self.recipe), *self.options)
        assert started.returncode == 0, started.stderr
        self._client.auth = tuple(self.login.split(":", 1))

    def down(self):
        """End everything; returns what the command said."""
        return self.strata("down").stdout

    @contextlib.contextmanager
    def running(self):
        """The stack for the duration of a block."""
        self.up()
        try:
            yield self
        finally:
            self.down()

    def service(self, name):
        """The process of a service, by its name in `strata status`."""
        return psutil.Process(next(note["pid"] for note in self.notes() if note["name"] == name))

    def notes(self):
        """What `strata up` has noted of each service."""
        return json.loads((self.folder / "home" / "stack.json").read_text())

    def log(self, name):
        """The log of a service."""
        return (self.folder / "home" / f"{name}.log").read_text()

    def call(self, method, path, seconds=120, **options):
        """Ask the API; a server that is away, or that SQLite keeps waiting, is asked again."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = self._client.request(method, path, **options)
                if answer.status_code < 500:
                    assert answer.is_success, answer.text
                    return answer.json() if answer.content else None
            assert time.monotonic() < deadline, f"{method} {path} had no answer"
            time.sleep(0.5)

    def deployment(self, name="nightly/nightly"):
        """A deployment by its full name."""
        return self.call("GET", f"/deployments/name/{name}")

    def pause_schedules(self):
        """Let no more run be scheduled, and take back what waits."""
        path = f"/deployments/{self.deployment()['id']}"
        self.call("POST", f"{path}/pause_deployment")
        for run in self.runs():
            if run["auto_scheduled"] and run["state_type"] == "SCHEDULED":
                self.set_state(run["id"], "CANCELLED", force=True)

    def submit(self, *settings, store=None):
        """Start a nightly run with settings of its own, as the form does; returns its id."""
        found = self.deployment()
        parameters = found["parameters"]
        parameters["night"] |= {"settings": settings, "store": store or self.store}
        path = f"/deployments/{found['id']}/create_flow_run"
        return self.call("POST", path, json={"parameters": parameters})["id"]

    def run(self, run):
        """What the API says of a run."""
        return self.call("GET", f"/flow_runs/{run}")

    def runs(self):
        """All runs."""
        return self.call("POST", "/flow_runs/filter", json={"limit": 200})

    def artifacts(self, run):
        """What the UI shows of a run."""
        body = {"artifacts": {"flow_run_id": {"any_": [run]}}}
        return self.call("POST", "/artifacts/filter", json=body)

    def set_state(self, run, state, *, force=False, **details):
        """Set a run's state, as the buttons of the UI do."""
        body = {"state": {"type": state, **details}, "force": force}
        return self.call("POST", f"/flow_runs/{run}/set_state", json=body)

    def cancel(self, run):
        """What the button *Cancel* does."""
        return self.set_state(run, "CANCELLING", name="Cancelling")

    def retry(self, run):
        """What the button *Retry* does."""
        return self.set_state(run, "SCHEDULED", name="AwaitingRetry")

    def wait(self, run, *states, seconds=1200):
        """Wait until a run is in one of the states, or has ended; returns the state."""
        wanted = states or ENDED

        def reached():
            state = self.run(run)["state_type"]
            assert state in wanted or state not in ENDED, (state, self.story(run))
            return state if state in wanted else None

        return wait_until(reached, seconds, lambda: self.story(run))

    def story(self, run):
        """The log of a run, for people and for failed tests."""
        body = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        lines = [line["message"] for line in self.call("POST", "/logs/filter", json=body)]
        state = self.run(run)["state"]
        return "\n".join([*lines, f"{state['name']}: {state.get('message')}"])

    def process_of(self, run):
        """The process of a run, found by the id in its environment."""

        def find():
            for process in self.service("worker").children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if run == process.environ().get("PREFECT__FLOW_RUN_ID"):
                        return process
            return None

        return wait_until(find, 120, lambda: self.story(run))


def wait_until(condition, seconds=600, told=lambda: ""):
    """Wait for a condition, and return what it found."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"timed out\n{told()}"
        time.sleep(0.3)
    return found
