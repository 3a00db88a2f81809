"""Shared fixtures: a tiny real language model with a tokenizer, and a recipe that reads it."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has a core to itself. Read when numpy and torch are first imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import secrets
import signal
import socket
import sys

import pytest
import torch

from compute.machine.leftovers import owned_folder
from tests.tiny import make_model, make_texts, tiny_values

# Notes and logs of commands are none of this user's own.
os.environ.setdefault("STRATA_HOME", str(owned_folder() / "home"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("DO_NOT_TRACK", "1")
# Whoever else may reach this machine is to run nothing here while it tests.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
# Ray's workers would give way to whatever else this machine computes.
os.environ.setdefault("RAY_worker_niceness", "0")
if not torch.cuda.is_available():
    # Read when Triton is first imported, by whatever library that may be.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items):
    """Where tests are shared out, keep those together that need the same costly things.

    A file's tests share what its fixtures make; a Prefect server, a Ray cluster and the run of the
    tiny recipe are started by one worker alone.
    """
    for item in items:
        shared = {"prefect_home", "local_ray"} & set(item.fixturenames)
        group = "pipeline" if shared else item.nodeid.split("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Folder of a random Llama with 4 layers of width 16, with safetensors and a tokenizer."""
    return make_model(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def tiny_texts(tmp_path_factory):
    """Folder of 24 documents of about 100 words."""
    return make_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="session")
def tiny_recipe(tiny_model, tiny_texts):
    """Values of a recipe that runs in seconds; `store` is left to the test."""
    return tiny_values(tiny_model, tiny_texts)


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory):
    """A Prefect home of its own and an API of its own, for the whole session."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def local_ray():
    """One Ray cluster with two CPUs for all tests that need one."""
    import ray

    from compute.machine.local_ray import loopback_only

    with loopback_only():
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _node_ip_address="127.0.0.1",
            # Its session goes with this process.
            _temp_dir=str(owned_folder() / "ray"),
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def recipe(tiny_recipe, tmp_path_factory):
    """The tiny recipe with a store of its own."""
    from flows.recipe import Recipe

    store = tmp_path_factory.mktemp("store")
    return Recipe.model_validate(tiny_recipe | {"store": str(store)})


@pytest.fixture(scope="session")
def built(recipe, prefect_home, local_ray):
    """References of a whole run of the tiny recipe."""
    from flows.build import build

    return build(recipe)


@pytest.fixture(scope="session")
def artifact(built, recipe):
    """The first version that the run published."""
    from storage.artifacts import Registry
    from storage.locations import Location

    return Registry((Location(recipe.store) / "artifacts").url).load("tiny", version=1)


def free_ports(n):
    """Ports of the loopback address that nobody listens on."""
    probes = [socket.socket() for _ in range(n)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def kill_tree(process):
    """SIGKILL a process and all of its descendants, and wait for it."""
    import psutil

    family = [*psutil.Process(process.pid).children(recursive=True), process]
    for member in family:
        try:
            os.kill(member.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


@pytest.fixture
def strata():
    """Run the command line in a process of its own; returns the finished process."""
    import subprocess

    def run(*arguments, **options):
        return subprocess.run(
            [sys.executable, "-m", "flows", *arguments],
            capture_output=True,
            text=True,
            **options,
        )

    return run
