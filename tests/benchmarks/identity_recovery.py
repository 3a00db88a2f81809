"""Identity of concepts that are learnt again: two nights on worlds with known concepts, aligned.

    python tests/benchmarks/identity_recovery.py [--seeds 3] [--learners …] [--worlds …]

A world of vectors is sampled and learnt twice, with other rows and another seed of learning. Each
night's concepts are matched with the true directions, so that it is known which true concept every
one of them is; then ``storage.graph.alignment.align`` says which of the second night is which of
the first, by directions and by the codes of the second night's rows, as a run does. With
``replaced`` a tenth of the true concepts of each level are absent from the first night's
activations, and another tenth from the second's. A row of the CSV is one level:

- ``found``: share of a night's true concepts that learning found at all (|cosine| of .7 or more
  under the best matching), mean of the nights;
- ``kept``: of the true concepts of both nights, the share whose partner is right;
- ``kept_of_found``: the same, of those found in both nights;
- ``wrong``: pairs of two different true concepts, as a share of the true concepts;
- ``fates_right``, ``fates_named``: of the concepts said to be born or gone, how many are, and how
  many there are of either (said, and true); F1 is twice the first by the second, over all rows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from identifiability import mean_active, write

from compute.dictionaries import fit_dictionary
from compute.dictionaries.evaluation import match_directions
from compute.selection import HierarchicalSelectionModel
from compute.worlds import SelectionWorld
from storage.graph.alignment import Alignment, align

RESULTS = Path(__file__).parent / "results"
FIELDS = ("learner", "world", "replaced", "seed", "level")
SHARES = ("found", "kept", "kept_of_found", "wrong")
COUNTS = ("fates_right", "fates_named")
WORLDS: dict[str, dict] = {
    "mixed gates": {},
    "noisy activations": {"activation_noise": 0.1},
    "correlated": {"correlation": 0.6},
}
# A direction is taken for the true one that it is matched with from this cosine on.
_SAME = 0.7
_SHARE_REPLACED = 0.1


class NightScale(NamedTuple):
    """How large the worlds are, and how long learning takes."""

    sizes: tuple[int, ...] = (60, 30)
    dim: int = 64
    rows: int = 8_000
    steps: int = 400
    rounds: int = 5


class Night(NamedTuple):
    """What was learnt of one level: directions (m, d), an encoder, and whose they are truly."""

    directions: np.ndarray
    encode: Callable[[np.ndarray], np.ndarray]
    truth: np.ndarray
    present: np.ndarray


def hierarchical(
    x: list[np.ndarray], widths: list[int], k: list[int], seed: int, scale: NightScale
):
    """Directions and encoder per level of a ``HierarchicalSelectionModel``."""
    model = HierarchicalSelectionModel(widths, k, seed, steps=scale.steps, rounds=scale.rounds)
    return [(d.directions.numpy(), encoder(d)) for d in model.fit(x).dictionaries_]


def independent(x: list[np.ndarray], widths: list[int], k: list[int], seed: int, scale: NightScale):
    """The same of a dictionary per level, in whitened coordinates."""
    fitted = [
        fit_dictionary(rows, width, own, 5 * scale.steps, seed, "batchtopk", whiten=True)
        for rows, width, own in zip(x, widths, k, strict=True)
    ]
    return [(d.directions.numpy(), encoder(d)) for d in fitted]


LEARNERS = {"hierarchical": hierarchical, "independent": independent}


def encoder(dictionary):
    return lambda rows: dictionary.encode(rows).numpy()


def night(world, absent: list[np.ndarray], rows: int, seed: int, learner, scale: NightScale):
    """One night's activations without some concepts, and what was learnt of them."""
    sample = world.sample(rows, seed=seed)
    x, present = [], []
    for own, codes, true, gone in zip(
        sample.activations, sample.codes, world.directions, absent, strict=True
    ):
        x.append(own - codes[:, gone] @ true[gone])
        present.append(np.setdiff1d(np.arange(len(true)), gone))
    widths = [len(there) for there in present]
    k = [mean_active(codes[:, there]) for codes, there in zip(sample.codes, present, strict=True)]
    found = []
    learnt = learner(x, widths, k, seed, scale)
    for (directions, encode), true, there in zip(learnt, world.directions, present, strict=True):
        matching = match_directions(directions, true[there])
        truth = np.full(len(directions), -1)
        same = matching.cosines >= _SAME
        truth[matching.first[same]] = there[matching.second[same]]
        found.append(Night(directions, encode, truth, there))
    return x, found


def scores(first: Night, second: Night, aligned: Alignment) -> dict[str, float]:
    """The columns of one level; see the head of this file."""
    both = np.intersect1d(first.present, second.present)
    old, new = first.truth[aligned.old], second.truth[aligned.new]
    right = (old == new) & (old >= 0)
    wrong = (old != new) & (old >= 0) & (new >= 0)
    found = np.intersect1d(first.truth, second.truth)
    found = found[found >= 0]
    share = [(night.truth >= 0).sum() / len(night.present) for night in (first, second)]
    fates = [
        (first.truth[aligned.gone], np.setdiff1d(first.present, second.present)),
        (second.truth[aligned.born], np.setdiff1d(second.present, first.present)),
    ]
    return {
        "found": float(np.mean(share)),
        "kept": right.sum() / len(both),
        "kept_of_found": right.sum() / max(1, len(found)),
        "wrong": wrong.sum() / len(both),
        "fates_right": sum(len(np.intersect1d(said, true)) for said, true in fates),
        "fates_named": sum(len(said) + len(true) for said, true in fates),
    }


def run(learner: str, world_name: str, replaced: bool, seed: int, scale: NightScale) -> list[dict]:
    """Two nights of one world; a row per level."""
    # Worlds are larger by what is absent, so that every night has about the sizes asked for.
    extra = [round(_SHARE_REPLACED * size) if replaced else 0 for size in scale.sizes]
    sizes = tuple(size + more for size, more in zip(scale.sizes, extra, strict=True))
    options = {"sizes": sizes, "dim": scale.dim} | WORLDS[world_name]
    world = SelectionWorld.vectors(seed=500 + seed, **options)
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(size) for size in sizes]
    nights = []
    for number in range(2):
        absent = [
            order[number * more : (number + 1) * more]
            for order, more in zip(drawn, extra, strict=True)
        ]
        nights.append(
            night(world, absent, scale.rows, 1000 * number + seed, LEARNERS[learner], scale)
        )
    (_, olds), (x, news) = nights
    out = []
    for level, (old, new) in enumerate(zip(olds, news, strict=True)):
        codes = old.encode(x[level]), new.encode(x[level])
        aligned = align(
            old.directions,
            new.directions,
            old_codes=codes[0],
            new_codes=codes[1],
        )
        named = dict(zip(FIELDS, (learner, world_name, replaced, seed, level + 1), strict=True))
        out.append(named | scores(old, new, aligned))
    return out


def summary(rows: list[dict]) -> list[str]:
    """A line per learner, kind of night and level."""
    lines = []
    for key in dict.fromkeys((r["learner"], r["replaced"], r["level"]) for r in rows):
        own = [r for r in rows if (r["learner"], r["replaced"], r["level"]) == key]
        told = "  ".join(f"{name} {np.mean([r[name] for r in own]):.3f}" for name in SHARES)
        right, named = (sum(r[name] for r in own) for name in COUNTS)
        if key[1]:
            told += f"  born and gone F1 {2 * right / max(1, named):.3f}"
        lines.append(f"{key[0]:13} {'replaced' if key[1] else 'same':9} level {key[2]}  {told}")
    return lines


SMALL = NightScale()


def main(arguments: list[str] | None = None, scale: NightScale = SMALL) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--learners", nargs="+", choices=LEARNERS, default=list(LEARNERS))
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    rows: list[dict] = []
    places = product(range(options.seeds), options.learners, options.worlds, (False, True))
    for seed, learner, world, replaced in places:
        rows += run(learner, world, replaced, seed, scale)
        write(options.out / "identity_recovery.csv", rows, FIELDS + SHARES + COUNTS)
    sys.stdout.write("\n".join(summary(rows)) + "\n")
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
