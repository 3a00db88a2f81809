"""What every model adapter must hold to; the tests of each adapter call `check_adapter`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

from compute.models.adapter import ActivationRows, ModelAdapter

Item = TypeVar("Item")


def check_adapter(
    adapter: ModelAdapter[Item],
    items: Sequence[Item],
    *,
    tolerance: float = 1e-4,
) -> None:
    """Assert that ``adapter`` keeps the contract of `ModelAdapter` on ``items`` (two or more).

    Parameters
    ----------
    tolerance : largest difference, relative to a level's largest activation, that a change of
        batch composition may make.

    Raises
    ------
    AssertionError : a clause of the contract does not hold.
    """
    assert len(items) >= 2, "the conformance suite needs two items or more"
    rows = adapter.extract(items)
    _check_shapes(adapter, items, rows)
    _check_names(adapter)

    again = adapter.extract(items)
    for level in adapter.levels:
        first, second = rows.activations[level.name], again.activations[level.name]
        assert torch.equal(first, second), f"{level.name}: two runs of the same items differ"

    _check_composition(adapter, items, rows, tolerance)
    nothing = adapter.extract(items[:0])
    assert len(nothing) == 0, "no items must yield no rows"
    assert all(len(tensor) == 0 for tensor in nothing.activations.values())
    described = adapter.describe()
    assert json.loads(json.dumps(described)) == described, "describe() is not JSON-ready"
    for key in ("class", "parameters", "weights_sha256", "dtype", "device"):
        assert key in described, f"describe() lacks {key!r}"


def _check_shapes(adapter: ModelAdapter[Item], items: Sequence[Item], rows: ActivationRows) -> None:
    n = sum(adapter.rows_of(item) for item in items)
    assert list(rows.activations) == [level.name for level in adapter.levels]
    assert adapter.widths.keys() == rows.activations.keys()
    for level in adapter.levels:
        tensor = rows.activations[level.name]
        assert tensor.shape == (n, adapter.widths[level.name]), level.name
        assert tensor.device.type == "cpu", level.name
        assert not tensor.requires_grad, level.name
        assert bool(torch.isfinite(tensor).all()), f"{level.name} holds inf or nan"
        assert float(tensor.float().std()) > 0, f"{level.name} is constant"
    for array, kind in (
        (rows.sample, np.int64),
        (rows.position, np.int32),
        (rows.observed, np.int64),
    ):
        assert array.shape == (n,)
        assert array.dtype == kind
    assert (rows.position >= 0).all()
    assert (rows.observed >= -1).all()


def _check_names(adapter: ModelAdapter[Item]) -> None:
    names = adapter.hookpoints()
    assert len(names) == len(set(names)), "a hookpoint is listed twice"
    for level in adapter.levels:
        stem = level.hookpoint.rpartition(".")[0]
        assert level.hookpoint in names or stem in names, f"{level.hookpoint} is not listed"


def _check_composition(
    adapter: ModelAdapter[Item], items: Sequence[Item], rows: ActivationRows, tolerance: float
) -> None:
    """Each item alone gives its own slice of the whole, in order."""
    begin = 0
    for item in items:
        alone = adapter.extract([item])
        end = begin + adapter.rows_of(item)
        assert np.array_equal(alone.sample, rows.sample[begin:end])
        assert np.array_equal(alone.position, rows.position[begin:end])
        assert np.array_equal(alone.observed, rows.observed[begin:end])
        for level in adapter.levels:
            whole = rows.activations[level.name].float()
            difference = (alone.activations[level.name].float() - whole[begin:end]).abs()
            worst = float(difference.max()) if len(difference) else 0.0
            assert worst <= tolerance * float(whole.abs().max()), (
                f"{level.name}: an item's rows depend on its batch ({worst:.2e})"
            )
        begin = end
