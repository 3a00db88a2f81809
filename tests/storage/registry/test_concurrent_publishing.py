"""Many publishers at once, and publishers that are killed: real processes, on a disk and on S3."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta

import pytest

from storage.artifacts import Registry, UnknownArtifact

PUBLISHERS = 50

# Forks only after the imports: fifty interpreters would spend the time on starting.
PUBLISH_MANY = """
import os, sys
from storage.artifacts import Registry
url, n = sys.argv[1], int(sys.argv[2])
children = []
for i in range(n):
    child = os.fork()
    if not child:
        try:
            files = {f"part-{j}.bin": bytes([i]) * 5000 for j in range(4)}
            Registry(url).publish("toy", files, fingerprint=f"f{i}", metrics={"who": i})
        except BaseException as error:
            sys.stderr.write(f"{i}: {error!r}\\n")
            os._exit(1)
        os._exit(0)
    children.append(child)
sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""

PUBLISH_ONE = """
import sys
from storage.artifacts import Registry
url, i = sys.argv[1], int(sys.argv[2])
registry = Registry(url)
sys.stdout.write("ready\\n")
sys.stdout.flush()
files = {f"part-{j}.bin": bytes([i]) * 200_000 for j in range(12)}
registry.publish("toy", files, fingerprint=f"f{i}")
sys.stdout.write("done\\n")
"""


def check_consecutive(registry, n):
    versions = registry.versions("toy")
    assert [v.version for v in versions] == list(range(1, n + 1))
    assert {v.fingerprint for v in versions} == {f"f{i}" for i in range(n)}
    for reference in versions:
        artifact = registry.load("toy", reference.version, verify=True)
        who = artifact.manifest.metrics["who"]
        assert reference.fingerprint == f"f{who}"
        assert artifact.read("part-3.bin") == bytes([who]) * 5000
        assert reference.parent == (reference.version - 1 or None)
    assert len(registry.location.children("toy/versions")) == n


def publish_many(url, n, **environment):
    done = subprocess.run(
        [sys.executable, "-c", PUBLISH_MANY, url, str(n)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def s3():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    patch = pytest.MonkeyPatch()
    for key, value in environment.items():
        patch.setenv(key, value)
    try:
        import urllib.request

        for _ in range(200):
            try:
                request = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
                urllib.request.urlopen(request, timeout=5)
                break
            except OSError:
                time.sleep(0.1)
        yield environment
    finally:
        patch.undo()
        server.kill()
        server.wait()


def test_fifty_publishers_at_once_on_a_disk(tmp_path):
    publish_many(str(tmp_path), PUBLISHERS)
    check_consecutive(Registry(tmp_path), PUBLISHERS)


@pytest.mark.parametrize("n", [12, pytest.param(PUBLISHERS, marks=pytest.mark.slow)])
def test_publishers_at_once_on_s3(s3, n):
    publish_many(f"s3://bucket/registry-{n}", n, **s3)
    check_consecutive(Registry(f"s3://bucket/registry-{n}"), n)


def test_one_fingerprint_from_many_publishers_is_one_version(tmp_path):
    script = PUBLISH_MANY.replace('fingerprint=f"f{i}"', 'fingerprint="same"')
    subprocess.run([sys.executable, "-c", script, str(tmp_path), "12"], check=True, timeout=100)
    registry = Registry(tmp_path)
    assert [v.version for v in registry.versions("toy")] == [1]
    assert len(registry.location.children("toy/versions")) == 1


def test_aliases_and_garbage_on_s3(s3):
    registry = Registry("s3://bucket/other")
    for i in range(4):
        registry.publish("toy", {"a.txt": b"%d" % i}, fingerprint=str(i))
    registry.promote("toy", 2)
    from storage.artifacts import Retention

    assert registry.collect_garbage(retention=Retention(keep_last=1)).versions == {"toy": (1, 3)}
    assert registry.aliases("toy") == {"latest": 4, "production": 2}
    assert registry.names() == ["toy"]
    assert Registry("s3://bucket/other").load("toy", "production").read("a.txt") == b"1"


def test_publishers_killed_at_random_moments(tmp_path):
    """Twenty SIGKILLs: whatever is visible is whole, and the next publisher is not disturbed."""
    rng = random.Random(0)
    registry = Registry(tmp_path)
    for attempt in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", PUBLISH_ONE, str(tmp_path), str(attempt)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.08))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        try:
            versions = registry.versions("toy")
        except UnknownArtifact:
            versions = []
        assert [v.version for v in versions] == list(range(1, len(versions) + 1))
        for reference in versions:
            registry.load("toy", reference.version, verify=True)
    before = len(versions)
    last = registry.publish("toy", {"a.txt": b"1"}, fingerprint="after")
    assert last.version == before + 1
    registry.collect_garbage(grace=timedelta(seconds=-5))
    assert len(registry.location.children("toy/versions")) == before + 1
    assert not list(tmp_path.rglob("*#*"))
    for reference in registry.versions("toy"):
        registry.load("toy", reference.version, verify=True)
    # A run in which no publisher was hit in the middle would have shown nothing.
    assert before < 20


# Everyone at once: each process does one thing again and again until its time is up, and says on
# its last line what it has seen. Collectors often wait for nobody, which no sane one does.
EVERYONE = """
import json, os, random, sys, time
from datetime import timedelta
from storage.artifacts import (
    CollectedMeanwhile, CorruptArtifact, Registry, Retention, UnknownArtifact
)
url, what, seed, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
rng, said, i, end = random.Random(seed), [], 0, time.monotonic() + seconds
while time.monotonic() < end:
    i += 1
    registry = Registry(url)
    try:
        if what == "publish":
            fingerprint = f"{seed}-{i}" if rng.random() < 0.8 else f"shared-{i % 3}"
            files = {f"part-{j}.bin": fingerprint.encode() * 50 for j in range(3)}
            status = "published" if rng.random() < 0.8 else "rejected"
            done = registry.publish("toy", files, fingerprint=fingerprint, status=status)
            said.append([done.version, fingerprint])
        elif what == "collect":
            time.sleep(rng.uniform(0, 0.5))
            grace = timedelta(seconds=rng.choice([-5, 0.5, 60, 60]))
            registry.collect_garbage(retention=Retention(keep_last=8), grace=grace)
        elif what == "move":
            version = rng.choice(registry.versions("toy", status="published")).version
            registry.promote("toy", version, rng.choice(["production", "staging", "latest"]))
        else:
            version = rng.choice(["latest", "production", "staging"])
            artifact = registry.load("toy", version, verify=True)
            content = artifact.read("part-0.bin")
            assert content == artifact.manifest.fingerprint.encode() * 50
    except (UnknownArtifact, IndexError):
        continue
    except CollectedMeanwhile:
        continue
    except CorruptArtifact as error:
        if what != "read":
            raise
        said.append(str(error))
    except ValueError as error:
        if "was rejected" not in str(error):
            raise
print(json.dumps(said))
"""


@pytest.mark.parametrize(
    ("store", "seconds"),
    [
        ("disk", 5),
        pytest.param("disk", 60, marks=pytest.mark.slow),
        pytest.param("s3", 60, marks=pytest.mark.slow),
    ],
)
def test_publishers_collectors_movers_and_readers_at_once(request, tmp_path, store, seconds):
    """Whatever the order: what publishers return is whole, and no number, alias or file is lost."""
    url, environment = str(tmp_path), {}
    if store == "s3":
        url, environment = "s3://bucket/everyone", request.getfixturevalue("s3")
    roles = ["publish"] * 4 + ["collect"] * 3 + ["move"] * 2 + ["read"] * 2
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", EVERYONE, url, role, str(seed), str(seconds)],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed, role in enumerate(roles)
    ]
    answers = [process.communicate(timeout=seconds + 200) for process in processes]
    for role, process, (_, said) in zip(roles, processes, answers):
        assert process.returncode == 0, (role, said)
    reports = [json.loads(out.splitlines()[-1]) for out, _ in answers]
    registry = Registry(url)
    contents = registry._shelf("toy").contents()
    assert list(contents.records) == list(range(1, len(contents.records) + 1))
    published = [item for role, said in zip(roles, reports) if role == "publish" for item in said]
    assert len(published) > 5
    for version, fingerprint in published:
        assert contents.records[version].fingerprint == fingerprint
    alive = registry.versions("toy")
    for reference in alive:
        registry.load("toy", reference.version, verify=True)
    # A reader may meet a version whose folder was collected while it was published; it is taken
    # back at once.
    for role, said in zip(roles, reports):
        for message in said if role == "read" else ():
            number = int(message.split(" version ")[1].split()[0])
            assert number in contents.state.removed, message
    numbers = {reference.version for reference in alive}
    assert set(registry.aliases("toy").values()) <= numbers
    registry.history("toy", "latest")
    registry.collect_garbage(grace=timedelta(seconds=-5))
    folders = {contents.records[number].folder for number in numbers}
    assert set(registry.location.children("toy/versions")) == folders
