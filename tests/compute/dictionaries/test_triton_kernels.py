"""The Triton kernels against the eager path, and built for real devices.

They run on a GPU where there is one, and are interpreted where there is none.
"""

import os
import subprocess
import sys

import pytest
import torch

from compute.dictionaries import DictionarySettings, DictionaryTrainer, kernels
from compute.dictionaries.kernels import (
    decode_entries,
    entries_from_mask,
    entry_products,
    sort_by_concept,
    sum_by_concept,
)

pytest.importorskip("triton", reason="the lock file has Triton for Linux alone")
from compute.dictionaries import triton_kernels

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
B, N = 40, 30


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.fixture
def taken(monkeypatch):
    """The kernels are taken on the device at hand; setting it empty takes the eager path."""
    monkeypatch.setattr(kernels, "_TRITON_DEVICES", {DEVICE.type})
    kernels._triton_on.cache_clear()
    yield
    kernels._triton_on.cache_clear()


def results(d):
    values, table, weight = random(B, N), random(B, d, seed=1), random(N, d, seed=2)
    # A row and two concepts without entries, one of them the last.
    mask = (values > 1) & (torch.arange(B, device=DEVICE)[:, None] != 7)
    mask[:, [4, N - 1]] = False
    entries = entries_from_mask(values, mask)
    by = sort_by_concept(entries.concepts, N)
    return (
        decode_entries(entries, weight),
        entry_products(entries, table, weight),
        sum_by_concept(by, entries.rows, entries.values, table),
    )


@pytest.mark.parametrize("d", [1, 33, 512, 700])
def test_sums_and_products_are_those_of_the_eager_path(taken, monkeypatch, d):
    calls = []
    for name in ("gather_sum", "gather_dot"):
        own = getattr(triton_kernels, name)
        monkeypatch.setattr(
            triton_kernels, name, lambda *a, own=own, name=name: calls.append(name) or own(*a)
        )
    found = results(d)
    assert sorted(calls) == ["gather_dot", "gather_dot", "gather_sum", "gather_sum", "gather_sum"]
    monkeypatch.setattr(kernels, "_TRITON_DEVICES", set())
    for a, b in zip(found, results(d)):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_no_entries_are_no_sums():
    nothing = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    starts = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    table = random(5, 6)
    assert torch.equal(
        triton_kernels.gather_sum(table, nothing, torch.zeros(0, device=DEVICE), starts),
        torch.zeros(3, 6, device=DEVICE),
    )
    assert triton_kernels.gather_dot(table, nothing, table, nothing).shape == (0,)


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka", "jumprelu", "gated"])
def test_training_steps_are_those_of_the_eager_path(taken, monkeypatch, name):
    def trained():
        settings = DictionarySettings(architecture=name, n_concepts=N, k=3, seed=1)
        trainer = DictionaryTrainer(settings, device=DEVICE)
        for seed in range(3):
            trainer.step(random(64, 12, seed=seed))
        return trainer.parameters

    found = trained()
    monkeypatch.setattr(kernels, "_TRITON_DEVICES", set())
    for key, expected in trained().items():
        torch.testing.assert_close(found[key], expected, atol=1e-4, rtol=1e-4, msg=key)


def test_what_needs_a_derivative_takes_the_eager_path(taken, monkeypatch):
    monkeypatch.setattr(triton_kernels, "gather_sum", None)
    entries = entries_from_mask(random(B, N).relu(), random(B, N) > 1)
    decoder = random(N, 8, seed=1).requires_grad_()
    decode_entries(entries, decoder).sum().backward()
    assert decoder.grad.abs().sum() > 0


@pytest.mark.parametrize("fault", ["wrong", "raises"])
def test_kernels_that_do_not_agree_are_left_alone(taken, monkeypatch, fault):
    own = triton_kernels.gather_dot

    def broken(*operands):
        if fault == "raises":
            raise RuntimeError("no such driver")
        return own(*operands) + 1

    monkeypatch.setattr(triton_kernels, "gather_dot", broken)
    with pytest.warns(UserWarning, match="no such driver|not those of the eager path"):
        found = results(9)
    monkeypatch.setattr(kernels, "_TRITON_DEVICES", set())
    assert all(torch.equal(a, b) for a, b in zip(found, results(9)))


BUILD = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from compute.dictionaries import triton_kernels as own

floats, integers = "*fp32", "*i64"
sums = {"out": floats, "table": floats, "index": integers, "weights": floats, "order": integers,
        "starts": integers, "n_groups": "i32", "n_entries": "i32", "d": "i32"}
dots = {"out": floats, "first": floats, "second": floats, "first_index": integers,
        "second_index": integers, "d": "i32"}
cases = [(own._gather_sum, sums, {"ORDERED": ordered, "BLOCK": 512}) for ordered in (True, False)]
cases.append((own._gather_dot, dots, {"BLOCK": 512}))
for kernel, signature, constants in cases:
    signature = signature | dict.fromkeys(constants, "constexpr")
    for capability in (80, 90):
        target = GPUTarget("cuda", capability, 32)
        built = triton.compile(ASTSource(kernel, signature, constexprs=constants), target=target)
        print(len(built.asm["cubin"]))
"""


def test_kernels_are_built_for_devices_of_two_generations(tmp_path):
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", BUILD], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 6
