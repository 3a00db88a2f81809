"""Faults in a nightly run, really caused: the same artifact in the end, or a clear failure first.

One stack serves all tests: the server keeps its records in PostgreSQL where Debian's package is
installed, and results lie in an S3 endpoint behind a proxy that can be told to fail.
"""

import contextlib
import shutil
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from storage.artifacts import Registry
from storage.locations import Location
from tests.backends import S3_ENVIRONMENT, Postgres, postgres_programs, s3_server
from tests.conftest import kill_tree
from tests.faults.flaky import FlakyProxy
from tests.live import ENDED, LiveStack, wait_until

# Ray's own variable; without it the stack's Ray takes no other node.
SEVERAL_NODES = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def proxy():
    """The way to the S3 endpoint, for the services and for the tests."""
    with s3_server() as port, pytest.MonkeyPatch.context() as patch:
        proxy = FlakyProxy(port, share=0.0)
        for name, value in (S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": proxy.url}).items():
            patch.setenv(name, value)
        yield proxy
        proxy.close()


@pytest.fixture(scope="module")
def postgres():
    """The server's database; None where PostgreSQL is not installed."""
    database = Postgres() if postgres_programs() else None
    yield database
    if database:
        database.close()


@pytest.fixture(scope="module")
def recipe_in_blocks(tiny_recipe):
    """The tiny recipe with small blocks, so that there is a middle of the extraction."""
    return tiny_recipe | {"extract": tiny_recipe["extract"] | {"block_rows": 64}}


@pytest.fixture(scope="module")
def stack(recipe_in_blocks, tmp_path_factory, proxy, postgres):
    """The stack that most tests share."""
    live = LiveStack(
        tmp_path_factory.mktemp("stack"),
        recipe_in_blocks,
        store="s3://bucket/undisturbed",
        environment={"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"} | SEVERAL_NODES,
        options=["--postgres", postgres.url] if postgres else (),
    )
    with live.running():
        yield live


@pytest.fixture(scope="module")
def undisturbed(stack):
    """The id of a run that nobody disturbed."""
    run = stack.submit()
    assert stack.wait(run) == "COMPLETED", stack.story(run)
    return run


@pytest.fixture(scope="module")
def whole(undisturbed):
    """The content of its artifact."""
    return content("s3://bucket/undisturbed")


@pytest.fixture
def slow_writes(proxy):
    """Writes take a while, so that there is time for a fault."""
    proxy.delay = 0.2
    yield
    proxy.delay = 0.0


@pytest.fixture
def store(request):
    """A place for the results of one test."""
    return f"s3://bucket/{request.node.name.replace('[', '-').strip(']')}"


def content(store):
    """The content hash of the one version that was published."""
    registry = Registry(f"{store}/artifacts")
    (version,) = registry.versions("tiny")
    return registry.load("tiny", version.version, verify=True).manifest.content_hash


def staged(store):
    """Blocks of the extraction that are there already."""
    return sum("/staging/" in f"/{path}" for path in Location(store).walk("extract"))


def in_the_middle(stack, store, *settings):
    """Start a run into a store, and return its id when its extraction is under way."""
    run = stack.submit(*settings, store=store)
    wait_until(lambda: staged(store) >= 3, 300, lambda: stack.story(run))
    return run


def completed(stack, run):
    """Wait for a run, trying it again as a person would where it has clearly failed."""
    state = stack.wait(run, *ENDED)
    if state in ("CRASHED", "FAILED"):
        assert stack.run(run)["state"]["message"]
        # A worker says twice that a process has ended, a second apart; the latter undoes a retry.
        time.sleep(5)
        stack.retry(run)
        state = stack.wait(run, "COMPLETED")
    return state == "COMPLETED"


def test_on_postgresql_and_s3(stack, undisturbed, postgres):
    run = undisturbed
    kinds = {artifact["key"]: artifact["type"] for artifact in stack.artifacts(run)}
    assert kinds["results"] == "table"
    assert "report" in kinds
    assert content("s3://bucket/undisturbed")
    if postgres is None:
        pytest.skip("PostgreSQL's programs are not installed; apt-get install postgresql")
    assert postgres.ask(f"select state_type from flow_run where id = '{run}'") == "COMPLETED"


def kill_flow(stack, run, **_):
    kill_tree(stack.process_of(run))


def kill_worker(stack, **_):
    kill_tree(stack.service("worker"))
    stack.up()


def kill_server(stack, **_):
    kill_tree(stack.service("server"))
    stack.up()


def kill_ray(stack, **_):
    kill_tree(stack.service("ray"))
    stack.up()


def restart_database(postgres, **_):
    if postgres is None:
        pytest.skip("PostgreSQL's programs are not installed; apt-get install postgresql")
    postgres.stop()
    time.sleep(5)
    postgres.start()


def refuse_writes(proxy, **_):
    proxy.refusing = True
    time.sleep(30)
    proxy.refusing = False
    assert proxy.refused


@pytest.mark.parametrize(
    "fault", [kill_flow, kill_worker, kill_server, kill_ray, restart_database, refuse_writes]
)
def test_the_same_artifact_after(fault, stack, whole, store, slow_writes, proxy, postgres):
    run = in_the_middle(stack, store)
    assert not Location(store).exists("artifacts/tiny")
    fault(stack=stack, run=run, proxy=proxy, postgres=postgres)
    proxy.delay = 0.0
    assert completed(stack, run), stack.story(run)
    assert content(store) == whole


def test_a_node_is_killed(stack, whole, store, slow_writes, proxy, tmp_path):
    """A third of the workers is on a node that goes away in the middle, and does not come back."""
    with second_node(stack, tmp_path) as node:
        run = in_the_middle(stack, store, "resources.extract.workers=3")
        wait_until(lambda: at_work(node, "ray::_Extractor"), 120, lambda: stack.story(run))
        kill_tree(node)
        proxy.delay = 0.0
        assert stack.wait(run, "COMPLETED"), stack.story(run)
    assert content(store) == whole


def test_the_clock_jumps(recipe_in_blocks, whole, store, slow_writes, proxy, tmp_path):
    """An hour forward, for all services: the run seems lost, and is retried beside its process."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler for the clock; apt-get install gcc libc6-dev")
    jumped, clock = tmp_path / "jumped", tmp_path / "clock.so"
    source = Path(__file__).with_name("clock.c")
    options = ["-shared", "-fPIC", f'-DJUMPED="{jumped}"', "-o", str(clock)]
    subprocess.run(["cc", *options, str(source)], check=True)
    environment = {"LD_PRELOAD": str(clock), "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    stack = LiveStack(tmp_path, recipe_in_blocks, store=store, environment=environment)
    with stack.running():
        run = in_the_middle(stack, store)
        jumped.touch()
        proxy.delay = 0.0
        assert completed(stack, run), stack.story(run)
        ended = stack.run(run)
    begun, end = (datetime.fromisoformat(ended[key]) for key in ("start_time", "end_time"))
    assert end - begun > timedelta(hours=1)
    assert content(store) == whole


@contextlib.contextmanager
def second_node(stack, folder):
    """A second Ray node of the stack's cluster, with one CPU and a folder of its own."""
    ray = Path(sys.executable).with_name("ray")
    home = stack.folder / "home"
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(home / "ray.token")}
    command = [ray, "start", f"--address=127.0.0.1:{stack.ray_port}", "--num-cpus=1", "--block"]
    with (folder / "node.log").open("w") as log:
        node = subprocess.Popen(
            [*command, "--object-store-memory=100000000"],
            env=stack.environment | token,
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: "raylet" in names_below(node), 120)
        yield node
    finally:
        if node.poll() is None:
            kill_tree(node)


def names_below(process):
    """Names of a process' descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child.name() for child in psutil.Process(process.pid).children(recursive=True)]
    return []


def work_below(process):
    """Ray workers below a process that have work of a run, by the names that Ray gives them."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                title = " ".join(child.cmdline())
                if title.startswith(("ray::_", "ray::IDLE")):
                    found.append((title, child.pid))
    return found


def at_work(process, worker):
    """Whether a Ray worker of this name is below a process."""
    return any(title.startswith(worker) for title, _ in work_below(process))


@pytest.mark.parametrize(
    ("step", "settings"),
    [("extract", []), ("learn", ["learn.steps=10000000", "learn.checkpoint_steps=1000"])],
)
def test_a_cancelled_run_ends_its_work(step, settings, stack, whole, store, proxy, record_property):
    """From the button to the last process of Ray's, in seconds on the clock."""
    proxy.delay = 2.0 if step == "extract" else 0.0
    try:
        run = stack.submit(*settings, store=store)
        worker = {"extract": "ray::_Extractor", "learn": "ray::_train"}[step]
        ray = stack.service("ray")
        wait_until(lambda: at_work(ray, worker), 300, lambda: stack.story(run))
        time.sleep(3)
        process = stack.process_of(run)
        begun = time.monotonic()
        stack.cancel(run)
        wait_until(lambda: not work_below(ray), 120, lambda: stack.story(run))
        seconds = time.monotonic() - begun
        assert stack.wait(run, "CANCELLED", seconds=120)
        psutil.wait_procs([process], timeout=60)
        assert not process.is_running()
    finally:
        proxy.delay = 0.0
    record_property("seconds", seconds)
    assert seconds < 15
    # Nothing is lost: the next run goes on, and what it publishes is the same.
    if step == "extract":
        again = stack.submit(store=store)
        assert stack.wait(again, "COMPLETED")
        assert content(store) == whole


def test_two_runs_at_once(stack, whole, store):
    """The second waits for the first, finds everything done, and publishes nothing twice."""
    runs = [stack.submit(store=store) for _ in range(2)]
    seen = set()

    def both():
        states = [stack.run(run)["state"] for run in runs]
        seen.update(state["name"] for state in states)
        running = sum(state["type"] == "RUNNING" for state in states)
        assert running < 2
        return all(state["type"] == "COMPLETED" for state in states)

    wait_until(both, 600, lambda: "\n".join(map(stack.story, runs)))
    assert "AwaitingConcurrencySlot" in seen
    assert content(store) == whole


def test_a_failed_night_is_told(stack, undisturbed):
    """To a webhook, by a notification block that `strata deploy` was given."""
    told = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            told.append(self.rfile.read(int(self.headers["content-length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = stack.environment | {
            "PREFECT_API_URL": f"{stack.url}/api",
            "PREFECT_API_AUTH_STRING": stack.login,
        }
        block = (
            "from prefect.blocks.notifications import CustomWebhookNotificationBlock as Block\n"
            f"Block(name='hook', url='http://127.0.0.1:{server.server_port}', method='POST',"
            " json_data={'subject': '{{subject}}', 'body': '{{body}}'}).save('operators')"
        )
        subprocess.run([sys.executable, "-c", block], env=environment, check=True)
        deploy = ["deploy", str(stack.recipe), "--store", stack.store]
        done = subprocess.run(
            [sys.executable, "-m", "flows", *deploy, "--notify", "custom-webhook/operators"],
            env=environment,
        )
        assert done.returncode == 0
        run = stack.submit("learn.k=0")
        assert stack.wait(run, "FAILED")
        wait_until(lambda: told, 120)
        server.shutdown()
    assert "nightly recipe: Failed" in told[0]
    assert "learn.k" in told[0]
