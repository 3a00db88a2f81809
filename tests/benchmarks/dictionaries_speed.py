"""Training speed of dictionaries against SAELens and an eager sparse step, in one run.

    python tests/benchmarks/dictionaries_speed.py [--quick]

Every contender takes full optimiser steps in float32 on the same batches: forward, auxiliary loss
where concepts are dead, backward, Adam, and firing statistics. Contenders alternate step by step,
so that a busy machine slows all of them alike; the ratio of median times is what counts.

- ``saelens``: its own trainer's step on its TopK training SAE, dense activations or sparse ones,
  whichever is faster (``use_sparse_activations`` is its best setting on most CPUs).
- ``eager``: the step of EleutherAI's sparsify, rewritten here because the package is not installed:
  its fused encoder with sparse backward, ``embedding_bag`` decode under autograd, Adam, unit-norm
  decoder.
- ``strata``: ``DictionaryTrainer.step``.
"""

import argparse
import csv
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from compute.dictionaries import DictionarySettings, DictionaryTrainer

RESULTS = Path(__file__).parent / "results" / "dictionaries_speed.csv"
SIZES = ((256, 4096, 2048), (768, 16384, 1024))
K = 32
Step = Callable[[Tensor], object]


def strata(d: int, n: int, half_dead: bool, aux_k: int | None = None) -> Step:
    settings = DictionarySettings(n_concepts=n, k=K, steps=10_000, aux_k=aux_k)
    trainer = DictionaryTrainer(settings)

    def step(batch: Tensor) -> object:
        if trainer.steps_done and half_dead:
            trainer.rows_since_fired[: n // 2] = settings.rows_until_dead() + 1
        return trainer.step(batch)

    return step


def saelens(d: int, n: int, half_dead: bool, *, sparse: bool, batch_size: int) -> Step:
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=d,
            d_sae=n,
            k=K,
            use_sparse_activations=sparse,
            # Sparse codes cannot be rescaled on a CPU: torch has no such kernel.
            rescale_acts_by_decoder_norm=not sparse,
        )
    )
    config = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=10_000 * batch_size,
        device="cpu",
        autocast=False,
        lr=3e-4,
        lr_end=3e-5,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=batch_size,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=iter(()))

    def step(batch: Tensor) -> object:
        if half_dead:
            trainer.n_forward_passes_since_fired[: n // 2] = config.dead_feature_window + 1
        out = trainer.step(batch)
        trainer.n_training_steps += 1
        return out

    return step


class FusedEncoder(torch.autograd.Function):
    """Linear, ReLU and top-k whose backward visits the kept entries only, as sparsify has it."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        pre = torch.nn.functional.linear(x, weight, bias).relu()
        values, indices = pre.topk(K, dim=-1, sorted=False)
        ctx.save_for_backward(x, weight, bias, indices)
        ctx.mark_non_differentiable(indices, pre)
        return values, indices, pre

    @staticmethod
    def backward(ctx, grad_values, *_):
        x, weight, bias, indices = ctx.saved_tensors
        grad_x = torch.nn.functional.embedding_bag(
            indices, weight, mode="sum", per_sample_weights=grad_values
        )
        contributions = grad_values.unsqueeze(2) * x.unsqueeze(1)
        grad_weight = torch.zeros_like(weight)
        grad_weight.index_add_(0, indices.flatten(), contributions.reshape(-1, x.shape[1]))
        grad_bias = torch.zeros_like(bias)
        grad_bias.index_add_(0, indices.flatten(), grad_values.flatten())
        return grad_x, grad_weight, grad_bias


def eager(d: int, n: int, half_dead: bool) -> Step:
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=1)
    encoder, decoder = (torch.nn.Parameter(directions.clone()) for _ in range(2))
    encoder_bias, decoder_bias = (torch.nn.Parameter(torch.zeros(size)) for size in (n, d))
    parameters = [encoder, decoder, encoder_bias, decoder_bias]
    optimizer = torch.optim.Adam(parameters, lr=2e-4, foreach=True)
    since_fired = torch.zeros(n, dtype=torch.int64)

    def decode(indices: Tensor, values: Tensor) -> Tensor:
        return torch.nn.functional.embedding_bag(
            indices, decoder, per_sample_weights=values, mode="sum"
        )

    def step(batch: Tensor) -> object:
        if half_dead:
            since_fired[: n // 2] = 10_000_001
        dead = since_fired > 10_000_000
        total = (batch - batch.mean(0)).square().sum()
        values, indices, pre = FusedEncoder.apply(batch - decoder_bias, encoder, encoder_bias)
        out = decode(indices, values) + decoder_bias
        error = batch - out
        loss = error.square().sum() / total
        if n_dead := int(dead.sum()):
            width = min(d // 2, n_dead)
            aux = torch.where(dead[None], pre, -torch.inf).topk(width, sorted=False)
            missed = decode(aux.indices, aux.values) - error.detach()
            loss = loss + min(n_dead / (d // 2), 1.0) / 32 * missed.square().sum() / total
        loss.backward()
        radial = (decoder.grad * decoder).sum(1, keepdim=True)
        decoder.grad -= radial * decoder.data
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            decoder.div_(decoder.norm(dim=1, keepdim=True) + torch.finfo(torch.float32).eps)
            fired = torch.zeros(n, dtype=torch.bool)
            fired[indices.flatten()] = True
            since_fired.add_(len(batch))
            since_fired[fired] = 0
        return loss

    return step


def contenders(d: int, n: int, batch_size: int, half_dead: bool) -> dict[str, Step]:
    return {
        "saelens (dense codes)": saelens(d, n, half_dead, sparse=False, batch_size=batch_size),
        "saelens (sparse codes)": saelens(d, n, half_dead, sparse=True, batch_size=batch_size),
        "eager, sparsify's step": eager(d, n, half_dead),
        # The width of the auxiliary loss of the others; by default ours is narrower.
        "strata, aux_k = d/2": strata(d, n, half_dead, aux_k=d // 2),
        "strata": strata(d, n, half_dead),
    }


def measure(steps: dict[str, Step], batches: list[Tensor], repeats: int) -> dict[str, float]:
    """Median seconds per step of each contender, after one step to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        batch = batches[repeat % len(batches)]
        for name, step in steps.items():
            start = time.perf_counter()
            step(batch)
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main(
    sizes: tuple[tuple[int, int, int], ...] = SIZES, repeats: int = 7, results: Path = RESULTS
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for d, n, batch_size in sizes:
        batches = [
            torch.randn(batch_size, d, generator=torch.Generator().manual_seed(seed))
            for seed in range(3)
        ]
        for half_dead in (False, True):
            times = measure(contenders(d, n, batch_size, half_dead), batches, repeats)
            rival = min(t for name, t in times.items() if name.startswith("saelens"))
            for name, t in times.items():
                rows.append(
                    {
                        "size": f"{d}->{n}",
                        "batch": batch_size,
                        "half_dead": half_dead,
                        "contender": name,
                        "ms_per_step": round(1000 * t, 1),
                        "samples_per_s": round(batch_size / t),
                        "times_saelens": round(rival / t, 2),
                        "times_eager": round(times["eager, sparsify's step"] / t, 2),
                    }
                )
                sys.stdout.write(f"{rows[-1]}\n")
                sys.stdout.flush()
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("w", newline="") as file:
        file.write(f"# {' '.join(['python', *sys.argv])}\n")
        file.write(
            f"# {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads,"
            f" torch {torch.__version__}, MALLOC_MMAP_MAX_="
            f"{os.environ.get('MALLOC_MMAP_MAX_', 'unset')}\n"
        )
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three repeats of each step")
    main(repeats=3 if parser.parse_args().quick else 7)
