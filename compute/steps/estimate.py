"""What a run will take, before it runs: rows, bytes, seconds and memory.

Rows and bytes follow from the plan. Seconds follow from a rehearsal: a few small blocks go through
the real extraction on the real workers, and a few training steps, encodings and products of random
rows of the right shape through the real kernels; each rate is then multiplied out.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compute.cluster import actor_options, connect, next_ready, worker_count
from compute.dictionaries.dictionary_settings import DictionarySettings, codes_per_row
from compute.settings import (
    ExtractSettings,
    InputSettings,
    LearnSettings,
    Recipe,
    ResourceSettings,
)
from compute.steps.fidelity import passed_rows
from storage.locations import Location
from storage.tables.activations import ActivationPlan, Dtype, LevelPlan

if TYPE_CHECKING:
    from compute.inputs.sources import Sources

__all__ = [
    "StepEstimate",
    "Storage",
    "fidelity_seconds",
    "rehearse_extraction",
    "rehearse_learning",
    "rehearse_recovery",
    "storage_of",
]

# Each worker rehearses so many blocks of so many forward passes; the first bears its start.
_BLOCKS, _PASSES = 3, 2
_STEPS, _WARM_UP = 20, 3
# Recovery of a pair of levels takes so many products of their codes, seconds for each whole (which
# is decided on a number of rows that does not grow), and seconds in all; fitted to runs of smollm2,
# sprites and digits on two cores (tests/benchmarks/estimate_error.py).
_RECOVERY_PRODUCTS, _RECOVERY_WHOLE, _RECOVERY_SECONDS = 5.0, 0.0038, 9.0
# So much longer a pair takes since its selection is repeated on halves (compute/graphs/README.md).
_REPEATED = 2.4
_PRODUCT_ROWS = 4096
# Bytes of Zarr metadata per array, with its share of the groups'.
_METADATA = 1150


@dataclass(frozen=True)
class Storage:
    """Bytes on disk.

    Attributes
    ----------
    activations, codes, dictionaries : int
        What the finished sets take. Codes are compressed; random ones of the same shape tell by
        how much.
    """

    activations: int
    codes: int
    dictionaries: int


@dataclass(frozen=True)
class StepEstimate:
    """Seconds of one step, and the memory of one of its workers.

    Attributes
    ----------
    seconds : float
    memory : int
        Most bytes of memory: of the accelerator where the step uses one, else of the process.
    """

    seconds: float
    memory: int


def storage_of(plan: ActivationPlan, learn: LearnSettings) -> Storage:
    """Bytes that a run takes on disk, from its plan."""
    codes = dictionaries = 0
    for level in plan.levels:
        own = learn.of_level(level.name)
        n, width = own.n_concepts, level.width
        places = codes_per_row(own.published_architecture, own.active, n)
        codes += int(plan.n_rows * _code_bytes(n, own.active, places))
        # W_enc, W_dec, b_enc, b_dec and the log frequency, in float32.
        dictionaries += 4 * (2 * n * width + 2 * n + width)
    return Storage(plan.disk_bytes + _METADATA * len(plan.columns), codes, dictionaries)


def _code_bytes(n_concepts: int, k: int, width: int) -> float:
    """Bytes per row of one level's codes, as compressed in the store."""
    from numcodecs import Zstd  # type: ignore[import-untyped]

    rng = np.random.default_rng(0)
    rows = 1024
    indices = rng.integers(n_concepts, size=(rows, width))
    values = np.sort(rng.gamma(2.0, size=(rows, width)).astype(np.float32))[:, ::-1].copy()
    indices[:, k:], values[:, k:] = 0, 0
    dtype = np.uint16 if n_concepts <= 1 << 16 else np.uint32
    codec = Zstd(level=1)
    stored = [codec.encode(indices.astype(dtype).tobytes()), codec.encode(values.tobytes())]
    return sum(map(len, stored)) / rows


def rehearse_extraction(
    sources: Sources,
    inputs: InputSettings,
    settings: ExtractSettings,
    n_rows: int,
    *,
    dtype: Dtype,
    resources: ResourceSettings,
) -> StepEstimate:
    """Extract a few small blocks into a temporary store and multiply out to `n_rows`.

    The blocks are written as any others are, so the start of the workers, the loading of the model
    and the writing of shards are all in the figure.
    """
    import ray

    from compute.inputs.sources import block_reader, model_loader
    from compute.steps.extract import write_activations

    joining = _timed(connect)
    load = model_loader(sources.model, sources.levels, settings, sources.dtype)
    task = ray.remote(max_retries=1, **actor_options(resources))(_memory_of)
    passes = settings.batch_size * _PASSES
    samples = sources.arrange(settings.model_copy(update={"block_rows": 1}))
    one_item = samples.n_rows / (len(samples.blocks) - 1)
    samples = sources.arrange(settings.model_copy(update={"block_rows": int(passes * one_item)}))
    read = block_reader(samples, inputs, seed=settings.seed)
    memory = ray.get(next_ready([task.remote(load, read(0), resources)]))
    n_blocks = len(samples.block_rows) - 1
    workers = worker_count(resources, -(-n_rows // settings.block_rows))
    blocks = samples.block_rows[: min(n_blocks, _BLOCKS * workers) + 1]
    plan = ActivationPlan(
        fingerprint="rehearsal",
        levels=tuple(
            LevelPlan(name=level.name, width=width)
            for level, width in zip(sources.levels, sources.widths, strict=True)
        ),
        dtype=dtype,
        n_train=min(samples.n_train, blocks[-1]),
        n_rows=blocks[-1],
        blocks=blocks,
        shard_rows=settings.shard_rows,
        chunk_rows=settings.chunk_rows,
        seed=settings.seed,
    )
    marks: list[tuple[float, int]] = []
    begun = time.monotonic()

    def note(done: int, _: int, /) -> None:
        marks.append((time.monotonic() - begun, done))

    # A worker that is still closing its files must not fail an estimate that is done.
    with tempfile.TemporaryDirectory(
        prefix="strata-estimate-", ignore_cleanup_errors=True
    ) as folder:
        write_activations(Location(folder), plan, read, load, resources=resources, progress=note)
    ended = time.monotonic() - begun
    staged, rows = marks[-1]
    first, first_rows = marks[min(workers, len(marks) - 1)]
    rate = (staged - first) / (rows - first_rows) if rows > first_rows else staged / rows
    seconds = joining + first + rate * (n_rows - first_rows) + (ended - staged)
    return StepEstimate(seconds, memory)


def rehearse_learning(
    plan: ActivationPlan,
    learn: LearnSettings,
    *,
    learning: ResourceSettings,
    encoding: ResourceSettings,
) -> tuple[StepEstimate, StepEstimate]:
    """Take a few training steps and encode a few rows of every level's shape; multiply out.

    Returns
    -------
    tuple of StepEstimate
        Of learning, with its scores on all rows, and of encoding.
    """
    import ray

    connect()
    task = ray.remote(max_retries=1, **actor_options(learning))(_rehearse)
    shapes = [
        (level.width, learn.of_level(level.name).dictionary_settings()) for level in plan.levels
    ]
    step, row, memory = ray.get(next_ready([task.remote(shapes, learning)]))
    workers = worker_count(encoding, len(plan.shards))
    # The scores read every row with the trainer's threads; so does encoding, with its workers'.
    per_row = row * learning.cpus / (encoding.cpus * workers)
    return (
        StepEstimate(_start_seconds() + step * learn.steps + row * plan.n_rows, memory),
        StepEstimate(_start_seconds() + per_row * plan.n_rows, memory),
    )


def fidelity_seconds(recipe: Recipe, extraction: StepEstimate, n_rows: int) -> float:
    """Seconds of what `learn` asks the model, from those that its rows took: one worker asks it."""
    workers = worker_count(recipe.resources.extract, -(-n_rows // recipe.extract.block_rows))
    patches = recipe.extract.grid**2 if recipe.extract.grid else 1
    return extraction.seconds * workers * passed_rows(recipe, patches) / n_rows


def rehearse_recovery(
    n_rows: int, n_levels: int, learn: LearnSettings, *, resources: ResourceSettings
) -> StepEstimate:
    """Multiply sparse codes of two levels, and add what recovery took elsewhere for each whole.

    How many edges there will be to decide cannot be known before the codes are.
    """
    import ray

    connect()
    task = ray.remote(max_retries=1, **actor_options(resources))(_product_seconds)
    seconds = ray.get(task.remote(learn.n_concepts, learn.active))
    workers = worker_count(resources, n_levels)
    pairs = -(-n_levels // workers)
    whole = seconds * n_rows / _PRODUCT_ROWS
    codes = int(2 * n_rows * learn.active * 8)
    dense = 8 * 4 * learn.n_concepts**2
    per_pair = _RECOVERY_PRODUCTS * whole + _RECOVERY_WHOLE * learn.n_concepts
    return StepEstimate(
        _start_seconds() + _RECOVERY_SECONDS + _REPEATED * per_pair * pairs, codes + dense
    )


@functools.cache
def _start_seconds() -> float:
    """Seconds until Ray has a process that has imported what a step needs."""
    command = [sys.executable, "-c", "import ray, torch, scipy.sparse, zarr"]
    return _timed(lambda: subprocess.run(command, check=True))  # noqa: S603 - our own words


def _product_seconds(n_concepts: int, k: int) -> float:
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(0)
    starts = np.arange(0, _PRODUCT_ROWS * k + 1, k)

    def codes() -> Any:
        values, indices = rng.random(starts[-1]), rng.integers(n_concepts, size=starts[-1])
        return csr_matrix((values, indices, starts), shape=(_PRODUCT_ROWS, n_concepts))

    parts, wholes = codes(), codes()
    return min(_timed(lambda: parts.T @ wholes) for _ in range(3))


def _memory_of(load: Callable[[], Any], items: Sequence[Any], resources: ResourceSettings) -> int:
    """Most memory that a worker holds: of the accelerator where there is one, else its own."""
    import resource

    import torch

    torch.set_num_threads(max(1, int(resources.cpus)))
    load().extract(items)
    if torch.cuda.is_available() and resources.gpus:
        return int(torch.cuda.max_memory_reserved())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _rehearse(
    shapes: Sequence[tuple[int, DictionarySettings]], resources: ResourceSettings
) -> tuple[float, float, int]:
    import torch

    from compute.dictionaries import DictionaryTrainer
    from compute.models.devices import choose_device

    torch.set_num_threads(max(1, int(resources.cpus)))
    device = choose_device("auto" if resources.gpus else "cpu")
    rng = np.random.default_rng(0)
    step = row = 0.0
    memory = 0
    for width, settings in shapes:
        rows = torch.from_numpy(rng.standard_normal((settings.batch_size, width), np.float32))
        trainer = DictionaryTrainer(settings, device=device)
        times = [_timed(functools.partial(trainer.step, rows)) for _ in range(_WARM_UP + _STEPS)]
        step += float(np.mean(times[_WARM_UP:]))
        encode = functools.partial(trainer.dictionary.encode_sparse, rows)
        row += min(_timed(encode) for _ in range(3)) / len(rows)
        # Weights, gradients and two moments, and what a batch gives.
        values = 4 * (2 * settings.n_concepts * width) + 2 * settings.batch_size * (
            settings.n_concepts + width
        )
        memory = max(memory, 4 * values)
    if device.type == "cuda":
        memory = int(torch.cuda.max_memory_allocated(device))
    return step, row, memory


def _timed(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
