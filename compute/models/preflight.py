"""The preflight: a few samples prove, on the very model, that what is captured is what is meant."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeVar

import torch

from compute.models.adapter import ActivationRows, ModelAdapter
from compute.models.proofs import Preflight, Proof, Seen
from compute.models.readings import alike, refuse_apart

__all__ = ["OWN_PROOFS", "check_versions", "preflight", "proofs_of", "prove_all", "sentence"]

Item = TypeVar("Item")

OWN_PROOFS = {"language": "compute.models.language_proofs"}
"""Kind of model → module whose ``PROOFS`` are its own; a kind that is not here has no preflight."""

_PACKAGES = ("torch", "transformers", "diffusers")


def preflight(kind: str, adapter: ModelAdapter[Item], items: Sequence[Item]) -> Preflight:
    """Prove the capture of a loaded model on ``items`` (two or more), in seconds.

    Parameters
    ----------
    kind : one of ``OWN_PROOFS``.

    Raises
    ------
    ValueError : something that a run needs does not hold, or a library is of a version that is
        known to be bad; one sentence says what.
    """
    packages = check_versions()
    rows = adapter.extract(items)
    return Preflight(
        rows=len(rows),
        largest={name: float(values.abs().max()) for name, values in rows.activations.items()},
        dtype=str(next(iter(rows.activations.values())).dtype).removeprefix("torch."),
        device=str(adapter.describe()["device"]),
        packages=packages,
        proofs=prove_all(kind, adapter, items, rows),
    )


def prove_all(
    kind: str, adapter: ModelAdapter[Item], items: Sequence[Item], rows: ActivationRows
) -> tuple[Proof, ...]:
    """Try everything of :func:`proofs_of` on samples whose ``rows`` were read in one batch."""
    seen = {name: prove(adapter, items, rows) for name, prove in proofs_of(kind).items()}
    return tuple(Proof(name=name, holds=one.holds, told=one.told) for name, one in seen.items())


def proofs_of(kind: str) -> dict[str, Callable[..., Seen]]:
    """Return name → what proves it, in their order: a cause comes before what follows from it.

    Each is given the adapter, the samples and their rows, and raises ValueError where that does not
    hold which a run needs.
    """
    own: dict[str, Callable[..., Seen]] = import_module(OWN_PROOFS[kind]).PROOFS
    return {"shapes": _shapes, "finite": _finite, **own, "batch = single": _batch_is_single}


def sentence(error: Exception) -> str:
    """Return why a model is refused, from what it raised; its own errors say where it fails."""
    if type(error) is ValueError:
        return str(error)
    told = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
    return f"it does not run on tokens alone ({told})"


def check_versions() -> dict[str, str]:
    """Return the versions of the libraries that run models.

    Raises
    ------
    ValueError : one is outside of what Strata requires, where versions known to be bad are left
        out; pip heeds that, but can be overruled.
    """
    from packaging.requirements import Requirement

    required = [Requirement(line) for line in importlib.metadata.requires("strata") or ()]
    found: dict[str, str] = {}
    for name in _PACKAGES:
        found[name] = importlib.metadata.version(name)
        for one in required:
            if one.name == name and not one.specifier.contains(found[name], prereleases=True):
                raise ValueError(
                    f"{name} {found[name]} is installed, and Strata's capture holds with "
                    f"{one.specifier} only: install such a version (pip install '{name}"
                    f"{one.specifier}')"
                )
    return found


def _shapes(adapter: ModelAdapter[Any], items: Sequence[Any], rows: ActivationRows) -> Seen:
    """As many rows as are due, of the width that is due, at every level."""
    n = sum(adapter.rows_of(item) for item in items)
    for level in adapter.levels:
        shape, told = tuple(rows.activations[level.name].shape), (n, adapter.widths[level.name])
        if shape != told:
            raise ValueError(f"level {level.name!r} gives rows of shape {shape} and not {told}")
    widths = ", ".join(str(width) for width in adapter.widths.values())
    return Seen(f"{n:,} rows of width {widths}")


def _finite(_: ModelAdapter[Any], __: Sequence[Any], rows: ActivationRows) -> Seen:
    """No value is infinite or none, at any level, and no level is constant."""
    for name, values in rows.activations.items():
        if not bool(torch.isfinite(values).all()):
            raise ValueError(
                f"level {name!r} has values that are not finite: check the model's weights, or run "
                "it with model.dtype=bfloat16 or float32"
            )
        if float(values.float().std()) == 0:
            raise ValueError(f"level {name!r} is constant: choose another hookpoint")
    return Seen("every value at every level")


def _batch_is_single(
    adapter: ModelAdapter[Any], items: Sequence[Any], rows: ActivationRows
) -> Seen:
    """Every sample alone gives the rows that it gives in the batch."""
    alone = [adapter.extract([item]).activations for item in items]
    joined = {name: torch.cat([one[name] for one in alone]) for name in rows.activations}
    try:
        worst = refuse_apart(rows.activations, joined)
    except ValueError as error:
        raise ValueError(f"samples read in one batch are not what each is alone: {error}") from None
    return Seen(f"{len(items)} samples, {alike(worst)}")
