"""Extraction under faults that are really caused: the bytes are always the same.

Together these tests take about a minute on two busy cores, and half of that on idle ones.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import psutil
import pytest

from storage.locations import Location
from tests.faults import cheap
from tests.faults.conftest import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def sealed_shards(folder):
    """Files of the shards that have a receipt, and when they were written."""
    numbers = {path.stem for path in folder.glob("receipts/*.json")}
    return {
        path: path.stat().st_mtime_ns
        for path in folder.glob("rows/**/c/**/*")
        if path.is_file()
        and path.relative_to(folder).as_posix().split("/c/")[1].split("/")[0] in numbers
    }


def test_workers_killed_at_work(whole, local_ray, tmp_path, notes):
    """SIGKILL in the middle of a block, and of a shard of which two arrays are written."""
    (notes / "kill-in-extract").touch()
    (notes / "kill-in-shard").touch()
    cheap.write(str(tmp_path / "set"), notes, workers=2)
    assert cheap.everything(str(tmp_path / "set")) == whole
    assert not list(notes.glob("kill-*"))
    ran = cheap.happened(notes, "ran")
    assert sorted(ran) == list(range(0, 10 * cheap.N_BLOCKS, 10))
    # Only the block that the worker had in hand is computed twice, and no shard that it finished.
    assert sum(ran.values()) == cheap.N_BLOCKS + 1
    assert max(cheap.happened(notes, "wrote").values()) <= 2


def kill_drivers(folder, notes, start_driver, address, moments, seed):
    """Start drivers one after the other and kill each at a moment of its own; then let one end."""
    chance = random.Random(seed)
    n_shards = len(cheap.cheap_plan().shards)
    # Not the last steps, which end before a kill arrives.
    for goal in sorted(chance.sample(range(1, cheap.N_BLOCKS + n_shards - 4), moments)):
        before = sealed_shards(folder)
        driver = start_driver(folder, RAY_ADDRESS=address)

        def steps():
            staged = len(list(folder.glob("staging/*.bin")))
            sealed = len(list(folder.glob("receipts/*.json")))
            return staged + sealed

        wait_until(lambda goal=goal: steps() >= goal, driver)
        time.sleep(chance.random() * 0.05)
        driver.kill()
        driver.wait()
        assert not (folder / "sealed.json").exists()
        after = sealed_shards(folder)
        assert {path: after[path] for path in before} == before
    before = sealed_shards(folder)
    driver = start_driver(folder, RAY_ADDRESS=address)
    assert driver.wait(120) == 0, driver.stderr.read()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def cluster_address():
    import ray

    return ray.get_runtime_context().gcs_address


def test_drivers_killed_at_random_moments(whole, local_ray, tmp_path, notes, start_driver):
    folder = tmp_path / "set"
    kill_drivers(folder, notes, start_driver, cluster_address(), moments=10, seed=0)
    assert cheap.everything(str(folder)) == whole
    # A killed driver's worker may end the block in hand while its successor begins it.
    assert sum(cheap.happened(notes, "ran").values()) <= cheap.N_BLOCKS + 2 * 10


@pytest.fixture
def small_disk(tmp_path):
    """A disk with room for the staged blocks and a few shards; refill by remounting it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=96k"]
    made = subprocess.run(["mount", *options, "none", str(folder)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"mounting a tmpfs was refused: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(whole, local_ray, small_disk, notes):
    url = str(small_disk / "set")
    with pytest.raises(Exception, match=r"No space left|os error 28"):
        cheap.write(url, notes)
    before = sealed_shards(small_disk / "set")
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    cheap.write(url, notes)
    assert cheap.everything(url) == whole
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.fixture
def flaky_s3(monkeypatch):
    """An S3 endpoint that fails one request in five, and an empty bucket in it."""
    from moto.server import ThreadedMotoServer

    from tests.faults.flaky import FlakyProxy

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    make_bucket(port)
    proxy = FlakyProxy(port)
    yield proxy
    proxy.close()
    server.stop()


def make_bucket(port):
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("PUT", "/bucket")
    assert connection.getresponse().status == 200


def test_a_killed_head_and_an_object_store_that_fails(flaky_s3, tmp_path, notes, start_driver):
    """Ray's head is killed half-way, and all the while one request in five fails."""
    url = "s3://bucket/some/set"
    whole = cheap.undisturbed(str(tmp_path / "set"), n_blocks=4)
    driver = start_driver(url, "4", AWS_ENDPOINT_URL=flaky_s3.url)
    wait_until(lambda: len(cheap.happened(notes, "ran")) >= 2, driver)
    head = [
        child
        for child in psutil.Process(driver.pid).children(recursive=True)
        if child.name() in ("gcs_server", "raylet")
    ]
    assert {child.name() for child in head} == {"gcs_server", "raylet"}
    for child in head:
        os.kill(child.pid, signal.SIGKILL)
    assert driver.wait(120) != 0
    location = Location(url)
    assert not location.exists("sealed.json")
    driver = start_driver(url, "4", AWS_ENDPOINT_URL=flaky_s3.url)
    assert driver.wait(120) == 0, driver.stderr.read()
    assert cheap.everything(url) == whole
    assert flaky_s3.failed > 0.1 * flaky_s3.served


def test_two_nodes_write_the_same_bytes(whole, tmp_path, notes):
    folder = tmp_path / "set"
    # A cluster announces itself to the machine in Ray's folder; and paths of sockets must be short.
    ray_folder = tempfile.mkdtemp(prefix="ray-")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.cheap", folder, notes, str(cheap.N_BLOCKS), "2"],
        env=os.environ | {"RAY_TMPDIR": ray_folder},
        capture_output=True,
        text=True,
    )
    shutil.rmtree(ray_folder)
    assert done.returncode == 0, done.stderr
    assert cheap.everything(str(folder)) == whole
    nodes = {path.read_text() for path in notes.glob("worker-*")}
    assert len(nodes) == 2
