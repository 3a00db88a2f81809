"""The preflight of a run: its model is tried on a few of its samples, where it will run.

What was proved, and the type in which activations will be stored, travel in the :class:`RunPlan`;
a run that goes on later finds them beside its samples.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from compute.cluster import actor_options, connect, next_ready
from compute.inputs.corpus import Corpus
from compute.inputs.sources import Samples, checked_samples, model_loader
from compute.models.proofs import Preflight
from compute.settings import Recipe
from compute.steps.importing import sized
from compute.steps.plan import RunPlan, activation_plan, check_disk
from storage.locations import Location, NotFound
from storage.sealing.damage import CorruptFile
from storage.sealing.seals import read_record, sealed_record
from storage.tables.activations import Dtype

__all__ = ["prove", "stored_dtype", "try_model"]

_log = logging.getLogger(__name__)

PREFLIGHT_FILE = "preflight.json"
# Samples that are tried, and tokens of each.
_SAMPLES, _TOKENS = 4, 128
# Real models have gone beyond twice what a few of their texts showed (Gemma 3 270M).
_MARGIN = 4
_MOST_FLOAT16 = 65_504.0


def prove(recipe: Recipe, plan: RunPlan, *, anew: bool = False) -> RunPlan:
    """Try the model on a few samples, and return the plan with what was proved.

    Nothing is done for a run whose activations are there, nor for a kind of model that has no
    preflight yet.

    Parameters
    ----------
    plan : RunPlan
        What :func:`compute.steps.plan.check` found; the samples wait where it left them.
    anew : bool
        Try the model in any case.

    Raises
    ------
    ValueError
        In one sentence, if something that the run needs does not hold, if activations do not fit
        into the type in which they are to be stored, or if they do not fit on the disk.
    """
    folder = plan.folder(recipe.store)
    done = plan.extracted(recipe.store)
    if done and not anew:
        return plan
    samples = checked_samples(folder)
    found = None if anew else _read(folder)
    if found is None:
        found = try_model(recipe, plan, samples)
        if found is not None and not done:
            folder.put(PREFLIGHT_FILE, sealed_record(found.model_dump(mode="json")))
    dtype = stored_dtype(recipe, found)
    if dtype != plan.stored_dtype and not done:
        learn = sized(recipe, plan.widths)
        check_disk(recipe, activation_plan(recipe, plan, samples, dtype), learn)
    return plan.model_copy(update={"preflight": found, "stored_dtype": dtype})


def try_model(recipe: Recipe, plan: RunPlan, samples: Samples) -> Preflight | None:
    """Load the model as extraction will and prove its capture; None if its kind has no preflight.

    Without an accelerator or a cluster elsewhere, this process is as good as any worker.

    Raises
    ------
    ValueError
        In one sentence, if something that the run needs does not hold.
    """
    import torch

    if not isinstance(samples, Corpus):
        return None
    items = samples.probe(_SAMPLES, _TOKENS)
    load = model_loader(recipe.model, recipe.levels, recipe.extract, plan.dtype)
    resources = recipe.resources.extract
    threads = max(1, int(resources.cpus))
    if not os.environ.get("RAY_ADDRESS") and not torch.cuda.is_available():
        found = _try(recipe.model.kind, load, items, threads)
    else:
        import ray

        connect()
        task = ray.remote(max_retries=1, **actor_options(resources))(_try)
        found = ray.get(next_ready([task.remote(recipe.model.kind, load, items, threads)]))
    if isinstance(found, str):
        raise ValueError(
            f"model {recipe.model.source!r} ({plan.architecture}) cannot be read as the recipe "
            f"asks: {found}"
        )
    return found


def stored_dtype(recipe: Recipe, found: Preflight | None) -> Dtype:
    """The type in which activations are stored, by what the preflight saw of their range.

    Raises
    ------
    ValueError
        If they would go beyond what the recipe asks for.
    """
    asked = recipe.extract.dtype
    if found is None:
        return "float16" if asked == "auto" else asked
    level = max(found.largest, key=lambda name: found.largest[name])
    largest = found.largest[level]
    # What a model computes in float16 cannot go beyond it.
    fits = found.dtype == "float16" or _MARGIN * largest <= _MOST_FLOAT16
    if asked == "float16" and not fits:
        raise ValueError(
            f"extract.dtype float16 holds values up to {_MOST_FLOAT16:,.0f}, and on a few samples "
            f"level {level!r} comes to {largest:,.0f}, which other samples may exceed {_MARGIN} "
            "times: choose auto, bfloat16 or float32."
        )
    if asked != "auto":
        return asked
    return "float16" if fits else _DTYPES[found.dtype]


_DTYPES: dict[str, Dtype] = {"float32": "float32", "bfloat16": "bfloat16"}


def _read(folder: Location) -> Preflight | None:
    """What an earlier run has proved here, with the same libraries."""
    from compute.models.preflight import check_versions

    try:
        record = read_record(folder, PREFLIGHT_FILE)
        found = Preflight.model_validate({k: v for k, v in record.items() if k != "sha256"})
    except (NotFound, CorruptFile, ValidationError):
        return None
    return found if found.packages == check_versions() else None


def _try(kind: str, load: Callable[[], Any], items: Sequence[Any], threads: int) -> Preflight | str:
    """What was proved, or the sentence that refuses: as a value, it comes whole from a worker."""
    import torch

    from compute.models.preflight import check_versions, preflight, sentence

    with _as_worker(threads):
        try:
            check_versions()
            return preflight(kind, load(), items)
        except (OSError, MemoryError, torch.OutOfMemoryError):
            raise  # of the machine, not of the model
        except Exception as error:
            _log.info("the model was refused", exc_info=True)
            return sentence(error)


@contextlib.contextmanager
def _as_worker(threads: int) -> Iterator[None]:
    """So many threads, and no progress bars of weights, for the time of the block."""
    import torch
    from transformers.utils import logging as transformers_logging

    shown: Any = transformers_logging
    before, bars = torch.get_num_threads(), shown.is_progress_bar_enabled()
    torch.set_num_threads(threads)
    shown.disable_progress_bar()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if bars:
            shown.enable_progress_bar()
