"""Worlds that differ in kind from ``compute.worlds``, and how methods fare on them for their time.

    python tests/benchmarks/hidden_worlds.py [--worlds …] [--methods …] [--seeds 0 2] [--rows 4000]

A second generator: strengths have heavy tails, rates follow Zipf's law, parts are correlated in a
tree, noise is anisotropic, a direction is always on, activations pass a GELU layer. Wholes have two
to seven parents, and are ANDs, k-of-n gates, sums over a threshold, or held back by one parent.
Each world is the plain one with one of these made strong; ``everything`` has all but the layer.

**Odd seeds are held back**: no constant of any method was chosen by looking at them. Even seeds may
be used for tuning. Tables in pages are of odd seeds.

Scores are those of ``identifiability.py``: MCC of parts and of wholes (mean |cosine| with the true
directions under the best matching; what was not found counts 0), F1 of the edges, the error in the
number of concepts, and processor time. Every method gets the true numbers of concepts, as the most
there may be; the dictionaries and the present fit also get the true mean number of active ones.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import identifiability
import numpy as np
import torch
from identifiability import Answer, Problem, Scale, completed, mean_active, score
from scipy.special import ndtri

_PILOT_ROWS = 20_000
_DRAWS = 400


class Kind(NamedTuple):
    """What a world is like; the defaults are the plain one."""

    tails: float = 0.4
    zipf: float = 0.4
    correlation: float = 0.1
    anisotropy: float = 0.0
    always_on: float = 0.0
    gelu: float = 0.0
    noise: float = 0.05


WORLDS: dict[str, Kind] = {
    "plain": Kind(),
    "heavy tails": Kind(tails=0.9),
    "zipf": Kind(zipf=1.0),
    "correlated": Kind(correlation=0.45),
    "anisotropic noise": Kind(anisotropy=1.0, noise=0.08),
    "always on": Kind(always_on=2.0),
    "gelu mixing": Kind(gelu=0.6),
    "everything": Kind(0.8, 0.8, 0.35, 1.0, 1.5, 0.0, 0.06),
}
SIZES: dict[str, tuple[tuple[int, ...], int, float]] = {
    # Concepts of each level, dimension, mean number of active parts.
    "24": ((24, 12, 5), 32, 3.5),
    "96": ((96, 40, 12), 128, 5.0),
    "192": ((192, 80, 24), 256, 6.0),
    "384": ((384, 160, 48), 512, 8.0),
}


class Gate(NamedTuple):
    """A whole is on where the weighted sum of ``parents`` passes ``bar`` and ``veto`` is off.

    Sums are of strengths, or only of which parents are on.
    """

    parents: tuple[int, ...]
    weights: tuple[float, ...]
    bar: float
    by_strength: bool
    veto: int | None = None

    def on(self, below: np.ndarray) -> np.ndarray:
        own = below[:, self.parents]
        drive = (own if self.by_strength else own > 0) @ np.asarray(self.weights)
        on = drive > self.bar
        return on if self.veto is None else on & (below[:, self.veto] == 0)

    @property
    def all_parents(self) -> tuple[int, ...]:
        return self.parents if self.veto is None else (*self.parents, self.veto)


class Sample(NamedTuple):
    activations: list[np.ndarray]
    codes: list[np.ndarray]


@dataclass(frozen=True)
class HiddenWorld:
    """A world of one kind; the same seed is the same world."""

    kind: Kind
    sizes: tuple[int, ...]
    dim: int
    active: float
    seed: int
    gates: list[list[Gate]] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng([self.seed, 10])
        below = self._parts(np.random.default_rng([self.seed, 11]), _PILOT_ROWS)
        gates: list[list[Gate]] = []
        for size in self.sizes[1:]:
            own: list[Gate] = []
            taken = np.zeros((len(below), 0), bool)
            for number in range(size):
                own.append(_draw_gate(rng, below, number, taken))
                taken = np.column_stack([taken, own[-1].on(below)])
            gates.append(own)
            below = _wholes(rng, own, below)
        object.__setattr__(self, "gates", gates)

    @cached_property
    def directions(self) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed, 12])
        raw = [rng.standard_normal((size, self.dim)) for size in self.sizes]
        return [(r / np.linalg.norm(r, axis=1, keepdims=True)).astype(np.float32) for r in raw]

    @cached_property
    def edges(self) -> list[np.ndarray]:
        out = []
        for size, gates in zip(self.sizes, self.gates):
            edges = np.zeros((size, len(gates)), bool)
            for j, gate in enumerate(gates):
                edges[list(gate.all_parents), j] = True
            out.append(edges)
        return out

    def sample(self, n: int, seed: int = 0) -> Sample:
        rng = np.random.default_rng([self.seed, 13, seed])
        codes = [self._parts(rng, n)]
        for gates in self.gates:
            codes.append(_wholes(rng, gates, codes[-1]))
        codes = [z.astype(np.float32) for z in codes]
        return Sample([self._mix(rng, level, z) for level, z in enumerate(codes)], codes)

    def _parts(self, rng: np.random.Generator, n: int) -> np.ndarray:
        size = self.sizes[0]
        own = np.random.default_rng([self.seed, 14])
        rates = (np.arange(size) + 3.0) ** -self.kind.zipf
        rates = np.clip(rates * self.active / rates.sum(), 0.01, 0.5)[own.permutation(size)]
        # A tree: concepts share a factor with five neighbours, and these one with their like.
        groups = [np.arange(size) // width for width in (6, 24)]
        shared = sum(rng.standard_normal((n, g.max() + 1))[:, g] for g in groups)
        c = self.kind.correlation
        latent = np.sqrt(c / 2) * shared + np.sqrt(1 - c) * rng.standard_normal((n, size))
        strength = rng.lognormal(0.0, self.kind.tails, latent.shape)
        typical = np.exp(-(self.kind.tails**2) / 2)
        return np.where(latent > ndtri(1 - rates), strength * typical, 0.0)

    def _mix(self, rng: np.random.Generator, level: int, codes: np.ndarray) -> np.ndarray:
        own = np.random.default_rng([self.seed, 15, level])
        x = codes @ self.directions[level]
        d = self.dim
        if self.kind.gelu:
            into, back = own.standard_normal((2, d, d)) / np.sqrt(d)
            hidden = 2.0 * x @ into
            gelu = 0.5 * hidden * (1 + np.tanh(0.79788 * (hidden + 0.044715 * hidden**3)))
            x = x + self.kind.gelu * gelu @ back.T
        if self.kind.always_on:
            constant = own.standard_normal(d)
            constant /= np.linalg.norm(constant)
            x = x + self.kind.always_on * rng.lognormal(0, 0.3, (len(x), 1)) * constant
        axes = np.linalg.qr(own.standard_normal((d, d)))[0]
        spread = (np.arange(d) + 1.0) ** (-0.5 * self.kind.anisotropy)
        spread *= self.kind.noise * np.sqrt(d / np.square(spread).sum())
        noise = (rng.standard_normal(x.shape) * spread) @ axes
        return (x + noise).astype(np.float32)


def _draw_gate(rng: np.random.Generator, below: np.ndarray, number: int, taken: np.ndarray) -> Gate:
    """A gate that is neither idle nor constant nor another's double, and whose parents matter.

    ``taken`` (n, m) is when the gates before it are on.
    """
    best: tuple[float, Gate] | None = None
    rates = (below > 0).mean(0)
    for _ in range(_DRAWS):
        gate = _propose(rng, below, ("and", "k-of-n", "threshold", "inhibited")[number % 4])
        on = gate.on(below)
        rate = on.mean()
        if not 0 < rate < 1 or (best is not None and rate / 0.02 < min(best[0], 1.0)):
            continue
        matters = []
        for parent in gate.all_parents:
            kept = below[:, parent].copy()
            below[:, parent] = np.where(kept > 0, 0.0, 1.0)
            changed = (gate.on(below) != on).mean()
            below[:, parent] = kept
            matters.append(changed / max(rate, rates[parent]))
        shared = on.astype(np.float32) @ taken
        likeness = (shared / (on.sum() + taken.sum(0) - shared)).max(initial=0.0)
        quality = min(rate / 0.02, (1 - rate) / 0.65, min(matters) / 0.08)
        quality = min(quality, (1 - likeness) / 0.4)
        if best is None or quality > best[0]:
            best = quality, gate
        if quality >= 1:
            break
    assert best is not None
    return best[1]


def _propose(rng: np.random.Generator, below: np.ndarray, kind: str) -> Gate:
    size = below.shape[1]

    def choose(count: int) -> tuple[int, ...]:
        count = min(count, size)
        if rng.random() < 0.5:
            first = rng.integers(size)
            return tuple(int(i) for i in (first + rng.permutation(min(size, 12))[:count]) % size)
        return tuple(int(i) for i in rng.choice(size, count, replace=False))

    if kind == "and":
        count = int(rng.integers(2, 4))
        return Gate(choose(count), (1.0,) * count, count - 0.5, False)
    if kind == "k-of-n":
        own = choose(int(rng.integers(4, 8)))
        return Gate(own, (1.0,) * len(own), 1.5 if rng.random() < 0.7 else 2.5, False)
    if kind == "threshold":
        own = choose(int(rng.integers(2, 8)))
        weights = rng.uniform(0.6, 1.4, len(own))
        return Gate(own, tuple(weights.tolist()), float(rng.uniform(1.2, 2.2)), True)
    *own, veto = choose(int(rng.integers(3, 6)))
    return Gate(tuple(own), (1.0,) * len(own), rng.choice([0.5, 1.5]), False, veto)


def _wholes(rng: np.random.Generator, gates: Sequence[Gate], below: np.ndarray) -> np.ndarray:
    out = np.zeros((len(below), len(gates)))
    for j, gate in enumerate(gates):
        own = below[:, gate.parents]
        mean = own.sum(1) / np.maximum((own > 0).sum(1), 1)
        strength = mean**0.5 * rng.lognormal(0.0, 0.25, len(below))
        out[:, j] = np.where(gate.on(below), strength, 0.0)
    return out


def make(world: str, size: str, seed: int) -> HiddenWorld:
    sizes, dim, active = SIZES[size]
    return HiddenWorld(WORLDS[world], sizes, dim, active, seed)


METHODS: dict[str, Callable[[Problem], Answer]] = {
    "streamed": identifiability.streamed,
    "streamed, offered twice": partial(identifiability.streamed, offered=2),
    "streamed, uncoupled": partial(identifiability.streamed, coupled=False),
    "present fit": identifiability.hierarchical,
    "present fit, uncoupled": partial(identifiability.hierarchical, coupled=False),
    "batchtopk, whitened, 200": partial(identifiability.whitened, steps=200),
    "batchtopk, whitened, 2000": partial(identifiability.whitened, steps=2000),
    "topk, 2000": partial(identifiability.whitened, steps=2000, architecture="topk"),
    "saelens topk, 2000": identifiability.METHODS["saelens topk, 2000"],
    "true codes": identifiability.true_codes,
}


def run(world_name: str, method: str, seed: int, size: str, n_rows: int) -> dict:
    world = make(world_name, size, seed)
    rows = world.sample(n_rows)
    k = [mean_active(z) for z in rows.codes]
    scale = Scale(world.sizes, world.dim, n_rows)
    problem = Problem(rows.activations, world.sizes, k, seed, scale, codes=rows.codes)
    started = time.process_time()
    found = METHODS[method](problem)
    seconds = time.process_time() - started
    scores = score(found, world.directions, world.edges)
    return {"world": world_name, "method": method, "seed": seed, **scores, "cpu_seconds": seconds}


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 3])
    parser.add_argument("--size", choices=SIZES, default="24")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=identifiability.RESULTS)
    options = parser.parse_args(arguments)
    places = [(w, m, s) for s in options.seeds for w in options.worlds for m in options.methods]
    rows = completed(
        options.out / f"hidden_worlds_{options.size}_{options.rows}.csv",
        places,
        lambda *place: [run(*place, options.size, options.rows)],
    )
    for method in options.methods:
        own = [row for row in rows if (row["world"], method, row["seed"]) in set(places)]
        own = [row for row in own if row["method"] == method]
        means = {name: np.mean([row[name] for row in own]) for name in identifiability.FIELDS[3:]}
        sys.stdout.write(
            "{:28} {:3}  parts {mcc_parts:.3f}  wholes {mcc_wholes:.3f}  edges {edge_f1:.3f}  "
            "count off by {count_error:.3f}  {cpu_seconds:.1f} s\n".format(
                method, len(own), **means
            )
        )
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
