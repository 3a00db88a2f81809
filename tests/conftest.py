"""Shared fixtures: a tiny real language model with a tokenizer, and a recipe that reads it."""

import os
import signal
import socket
import sys

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("DO_NOT_TRACK", "1")

_TEXT = "the a red blue green small large old new house tree river cloud stone bird fish runs sees"
_TEXT += " holds finds and or not under over near with without quickly slowly one two three"
WORDS = _TEXT.split()


def make_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", ".", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Folder of a random Llama with 4 layers of width 16, with safetensors and a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_texts(tmp_path_factory):
    """Folder of 24 documents of about 100 words."""
    import numpy as np

    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    for number in range(24):
        words = rng.choice(WORDS, size=int(rng.integers(60, 140)), p=zipf(len(WORDS)))
        (folder / f"document-{number:02d}.txt").write_text(" ".join(words) + " .")
    return folder


def zipf(n):
    import numpy as np

    weights = 1 / np.arange(1, n + 1)
    return weights / weights.sum()


@pytest.fixture(scope="session")
def tiny_recipe(tiny_model, tiny_texts):
    """Values of a recipe that runs in seconds; `store` is left to the test."""
    return {
        "name": "tiny",
        "title": "A tiny model",
        "model": {"source": str(tiny_model)},
        "inputs": {"text": str(tiny_texts)},
        "levels": [
            {"name": "layer-00", "hookpoint": "layers.0.output"},
            {"name": "layer-02", "hookpoint": "layers.2.output"},
        ],
        "extract": {
            "context_length": 32,
            "block_rows": 256,
            "shard_rows": 512,
            "chunk_rows": 128,
            "dtype": "float32",
        },
        "learn": {"n_concepts": 48, "k": 4, "steps": 60, "batch_size": 256, "checkpoint_steps": 20},
        "encode": {"examples": 3, "window": 4},
        "recover": {"min_token_count": 5},
        # One worker each: most of a tiny run is the start of its workers.
        "resources": {"extract": {"workers": 1}, "encode": {"workers": 1}, "learn": {"cpus": 1}},
    }


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

    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
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
