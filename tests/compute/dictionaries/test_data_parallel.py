"""Two workers compute what one does; Ray Train itself is exercised by one slow test."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from compute.dictionaries import DictionarySettings, DictionaryTrainer
from compute.dictionaries.data_parallel import train_parallel
from compute.dictionaries.workers import ProcessGroup

STEPS, D = 40, 12
SETTINGS = DictionarySettings(n_concepts=20, k=3, steps=STEPS, dead_after=200)


def shares(rank: int, size: int):
    for step in range(STEPS):
        rows = torch.randn(64, D, generator=torch.Generator().manual_seed(step)) + 3
        yield rows.chunk(size)[rank]


def alone() -> DictionaryTrainer:
    trainer = DictionaryTrainer(SETTINGS)
    for batch in shares(0, 1):
        trainer.step(batch)
    return trainer


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    trainer = DictionaryTrainer(SETTINGS, workers=ProcessGroup())
    for batch in shares(rank, 2):
        trainer.step(batch)
    Path(folder, str(rank)).write_bytes(trainer.checkpoint())
    # Neither may take the connection down under the other.
    dist.barrier()
    dist.destroy_process_group()


def assert_same(one: DictionaryTrainer, other: DictionaryTrainer, atol: float) -> None:
    expected, found = one.dictionary.weights(), other.dictionary.weights()
    for name, array in expected.items():
        torch.testing.assert_close(
            torch.from_numpy(found[name]), torch.from_numpy(array), atol=atol, rtol=0, msg=name
        )


def test_two_workers_match_one(tmp_path):
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    first, second = (
        DictionaryTrainer.from_checkpoint((tmp_path / str(rank)).read_bytes()) for rank in (0, 1)
    )
    assert_same(first, second, atol=0)
    assert_same(alone(), first, atol=1e-5)


def test_no_worker_is_refused(tmp_path):
    with pytest.raises(ValueError, match="n_workers = 0"):
        train_parallel(shares, SETTINGS, n_workers=0, folder=str(tmp_path))


@pytest.mark.slow
def test_ray_train_workers_match_one(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    root = str(Path(__file__).resolve().parents[3])
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    started = not ray.is_initialized()
    if started:
        ray.init(
            address="local",
            num_cpus=3,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            runtime_env={"env_vars": {"PYTHONPATH": root}},
        )
    try:
        # By value: a worker cannot import this test module.
        import cloudpickle

        cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["x"]))
        trained = train_parallel(shares, SETTINGS, n_workers=2, folder=str(tmp_path))
    finally:
        if started:
            ray.shutdown()
    assert trained.steps_done == STEPS
    assert_same(alone(), trained, atol=1e-5)
