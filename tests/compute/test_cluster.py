"""A pool of actors finishes its tasks with whatever actors there are."""

import os
import signal
import subprocess
import sys
import time
import uuid

import pytest

from compute.cluster import actor_pool, ended, watch


class Worker:
    def __init__(self, folder, *, ends_at_start=False):
        self.folder = folder
        if ends_at_start:
            os.kill(os.getpid(), signal.SIGKILL)

    def work(self, task):
        (self.folder / f"{task}-{uuid.uuid4().hex}").touch()
        if task == "fatal" or (task == "once" and len(list(self.folder.glob("once-*"))) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "wrong":
            raise ValueError("a wrong task")
        return f"{task} is done"


def pool(folder, n_actors, **options):
    import ray

    worker = ray.remote(num_cpus=1)(Worker)
    return actor_pool(lambda: worker.remote(folder, **options), n_actors)


def test_actors_that_find_no_place_are_not_waited_for(local_ray, tmp_path):
    """The third of three actors on two processors, as after the loss of a node."""
    tasks = [f"task{number}" for number in range(9)]
    with pool(tmp_path, 3) as actors:
        done = dict(actors.run("work", tasks))
        assert done == {task: f"{task} is done" for task in tasks}
        assert list(actors.run("work", [])) == []


def test_a_lost_actor_is_replaced_and_its_task_done_again(local_ray, tmp_path):
    with pool(tmp_path, 1) as actors:
        done = dict(actors.run("work", ["a", "once", "b", "c"]))
    assert sorted(done) == ["a", "b", "c", "once"]
    assert len(list(tmp_path.glob("once-*"))) == 2


def test_what_always_fails_is_given_up(local_ray, tmp_path):
    from ray.exceptions import RayActorError

    with pool(tmp_path, 1) as actors, pytest.raises(RayActorError):
        list(actors.run("work", ["fatal"]))
    assert len(list(tmp_path.glob("fatal-*"))) == 4
    with pool(tmp_path, 1) as actors, pytest.raises(ValueError, match="a wrong task"):
        list(actors.run("work", ["wrong"]))
    with pool(tmp_path, 1, ends_at_start=True) as actors, pytest.raises(RayActorError):
        list(actors.run("work", ["a"]))


def test_connecting_leaves_the_signal_of_cancellation_alone(tmp_path):
    """Prefect cancels a run by SIGTERM and tells it by a handler, which Ray would replace."""
    program = (
        "import os, signal, sys\n"
        "from compute.cluster import connect, disconnect\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "connect()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    environment = dict(os.environ)
    environment.pop("RAY_ADDRESS", None)
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == 7


_WAITING = """
import os, signal, threading, time
import compute.cluster as cluster
import ray

class Ended(BaseException): ...

def end(number, frame):
    raise Ended

cluster.connect()
signal.signal(signal.SIGTERM, end)
task = ray.remote(lambda: time.sleep(600)).remote()
threading.Timer(2.5, os.kill, [os.getpid(), signal.SIGTERM]).start()
begun = time.monotonic()
try:
    {wait}
except Ended:
    print("ended after", time.monotonic() - begun)
cluster.disconnect()
"""


@pytest.mark.parametrize(
    "wait", ["cluster.next_ready([task])", "cluster.watch(lambda report: task, print)"]
)
def test_what_a_signal_raises_ends_the_waiting(wait):
    """In the main thread Ray would lose it."""
    environment = dict(os.environ)
    environment.pop("RAY_ADDRESS", None)
    program = [sys.executable, "-c", _WAITING.format(wait=wait)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60)
    assert "ended after" in done.stdout, done.stderr
    assert float(done.stdout.split()[-1]) < 5


def test_what_is_watched_ends_where_the_watching_is_interrupted(local_ray, tmp_path):
    import psutil
    import ray

    @ray.remote
    def endless(report, note):
        note.write_text(str(os.getpid()))
        report.remote(1, 2)
        while True:
            pass

    def interrupt(_done, _total):
        raise KeyboardInterrupt

    note = tmp_path / "pid"
    with pytest.raises(KeyboardInterrupt):
        watch(lambda report: endless.remote(report, note), interrupt)
    psutil.wait_procs([process := psutil.Process(int(note.read_text()))], timeout=10)
    assert not process.is_running()


def test_only_what_has_not_ended_is_cancelled(local_ray, monkeypatch):
    """Ray aborts the process, now and then, where a task is cancelled that has just ended."""
    import ray

    @ray.remote(num_cpus=0)
    def wait(seconds):
        time.sleep(seconds)

    tasks = [wait.remote(0), wait.remote(600)]
    cancelled, cancel = [], ray.cancel

    def noted(task, **how):
        cancelled.append(task)
        cancel(task, **how)

    monkeypatch.setattr(ray, "cancel", noted)
    with ended(tasks):
        ray.get(tasks[0])
    assert cancelled == tasks[1:]


_ORPHAN = """
import sys, time
import compute.cluster as cluster
import ray

cluster._CHECK_SECONDS = 2.0
cluster.connect()

@ray.remote
class Sleeper:
    def work(self, seconds):
        print("at work", file=sys.stderr, flush=True)
        time.sleep(seconds)

print("connected", flush=True)
try:
    with cluster.actor_pool(Sleeper.remote, 1) as pool:
        list(pool.run("work", [600.0]))
except ConnectionError as error:
    print(error, flush=True)
cluster.connect()
with cluster.actor_pool(Sleeper.remote, 1) as pool:
    print(list(pool.run("work", [0.0])), flush=True)
cluster.disconnect()
"""


@pytest.mark.slow
def test_a_run_whose_cluster_was_replaced_fails_and_can_go_on():
    """As after the head was killed and started again; without a look it would wait for ever."""
    from tests.conftest import free_ports, kill_tree

    (port,) = free_ports(1)
    environment = os.environ | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
    command = [sys.executable, "-m", "flows.ray_head", "start", "--head", "--block"]
    command += ["--disable-usage-stats", "--node-ip-address", "127.0.0.1", "--port", str(port)]
    command += ["--num-cpus", "1", "--include-dashboard", "false"]

    def head():
        return subprocess.Popen(command, env=environment | {"RAY_ADDRESS": ""})

    first = head()
    orphan = None
    second = None
    try:
        time.sleep(15)
        orphan = subprocess.Popen(
            [sys.executable, "-c", _ORPHAN], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert orphan.stdout.readline() == "connected\n"
        time.sleep(10)
        kill_tree(first)
        second = head()
        assert "another is in its place" in orphan.stdout.readline()
        assert orphan.stdout.readline() == "[(0.0, None)]\n"
        assert orphan.wait(timeout=60) == 0
    finally:
        for process in (first, second, orphan):
            if process is not None and process.poll() is None:
                kill_tree(process)
