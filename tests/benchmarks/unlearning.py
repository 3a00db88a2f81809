"""Unlearning on sprites: one object or colour is removed while the rest stays as the caption says.

    python tests/benchmarks/unlearning.py [--captions 60] [--targets house red] [--seed 0]

Concepts are found on training captions and removed while held-out captions are drawn; the factor
reader of the world says what came of it. Per target:

- UA: share of the slots that were to show the target and do not;
- IRA: share of the other slots that show the right factor of the target's own kind (other objects
  for an object, other colours for a colour), on captions with and without the target;
- CRA: the same for the other kind of factor;
- cross: CRA in the target's own slots, which a colour that is unlearnt by erasing its objects
  loses. It is no part of the harmonic mean.

The methods:

- ``levels``: a dictionary per moment of the drawing. A concept whose mean code is m in slots of the
  target and at most o in slots of any other is scaled by 1 − strength · (1 − o / m): what is shared
  with the others is spared.
- ``single, SAeUron``: one dictionary of all moments; the highest scores of SAeUron, scaled by
  −strength / 2.
- ``difference of means``: the direction from the others to the target, taken away in proportion.
- ``negative prompt``: the target's name.
- ``random``: as many concepts as ``levels`` edits, with its scales, drawn at random.

Where concepts are edited it is at every step and in both halves of the guidance. Every dictionary
has been trained for the same number of steps with the same settings. Per target, the strength of
every method that has one is the best of `STRENGTHS` by the harmonic mean on training captions, the
smaller of two as good; ``random`` takes that of ``levels``.
"""

import argparse
import csv
import os
import platform
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from compute.dictionaries import Dictionary, fit_dictionary
from compute.models.training import draw
from compute.steering import ConceptLevel, Edit, saeuron_scores, steer
from compute.steering.places import Target
from compute.steering.running import Interventions
from compute.worlds.sprite_reader import read_sprites
from compute.worlds.sprites import COLOURS, OBJECTS, SpriteWorld

RESULTS = Path(__file__).parent / "results" / "unlearning.csv"
HOOKPOINT = "up_blocks.0"
TIMESTEPS = (99, 499, 899)
STEPS, GUIDANCE = 10, 2.0
STRENGTHS = (5.0, 10.0)
SAEURON_CONCEPTS = 32
TUNED = ("levels", "single, SAeUron", "difference of means")
METHODS = ("levels", "single, SAeUron", "difference of means", "negative prompt", "random")
FIELDS = ("kind", "target", "method", "seed", "strength", "captions", "edits")
FIELDS += ("ua", "ira", "cra", "harmonic", "cross", "machine", "command")


class Recorded(NamedTuple):
    """Slots' activations ``(n, 4, 16, d)`` by timestep, and what the captions put there."""

    activations: dict[int, torch.Tensor]
    objects: np.ndarray
    colours: np.ndarray

    def of(self, kind):
        return self.objects if kind == "object" else self.colours


def load():
    """The project's own sprite model."""
    import compute.pretrained.sprites as sprites
    from compute.models.packaged import load_text_to_image

    return load_text_to_image(Path(sprites.__path__[0]))


def record(pipeline, n, seed):
    """Activations of drawings of training captions, in the conditional half."""
    captions, factors = SpriteWorld(seed + 5).sample(n, held_out=False)[1:]
    seen = {}

    def probe(rows, moment):
        values = rows.values[len(rows.values) // 2 :].float().clone()
        seen.setdefault(round(moment.timestep), []).append(values)

    with Interventions(Target.of(pipeline), (), [(HOOKPOINT, probe)]), torch.no_grad():
        draw(pipeline, captions, range(n), steps=STEPS, guidance=GUIDANCE)
    activations = {step: in_slots(torch.cat(values)) for step, values in seen.items()}
    return Recorded(activations, factors.objects, factors.colours)


def in_slots(values):
    """``(n, 64, d)``, row-major patches of a picture, as ``(n, 4, 16, d)``."""
    n, _, d = values.shape
    return values.reshape(n, 2, 4, 2, 4, d).permute(0, 1, 3, 2, 4, 5).reshape(n, 4, 16, d)


def steps_of(recorded):
    """Level's timestep → the steps of a drawing that are nearest to it."""
    nearest = {step: min(TIMESTEPS, key=lambda t: abs(t - step)) for step in recorded.activations}
    return {t: [step for step, own in nearest.items() if own == t] for t in TIMESTEPS}


def learn(recorded, seed, steps):
    """A dictionary per moment, and one of all of them."""
    options = {"n_concepts": 512, "k": 12, "steps": steps, "batch_size": 1024, "seed": seed}
    found = {}
    for t in TIMESTEPS:
        rows = recorded.activations[t]
        found[t] = fit_dictionary(rows.reshape(-1, rows.shape[-1]), **options)
    every = torch.cat([x.reshape(-1, x.shape[-1]) for x in recorded.activations.values()])
    found["all"] = fit_dictionary(every, **options)
    return found


def mean_slot_codes(dictionary, recorded, steps):
    """Mean code of every concept in every slot, ``(n, 4, m)``."""
    total = 0
    for step in steps:
        total = total + dictionary.encode(recorded.activations[step]).mean(dim=2)
    return (total / len(steps)).numpy()


def level_edits(dictionaries, recorded, kind, target, strength):
    """Edits of ``levels``: less of what the target has more of than every other."""
    edits = []
    labels = recorded.of(kind)
    for number, (t, steps) in enumerate(steps_of(recorded).items(), 1):
        codes = mean_slot_codes(dictionaries[t], recorded, steps)
        means = np.stack([codes[labels == value].mean(axis=0) for value in range(5)])
        most = np.delete(means, target, axis=0).max(axis=0)
        excess = 1 - most / np.maximum(means[target], 1e-9)
        for concept in np.flatnonzero((excess > 0.1) & (means[target] > 1e-3)):
            scale = 1 - strength * float(excess[concept])
            edits.append(Edit(number, int(concept), scale, half="both"))
    return edits


def saeuron_edits(dictionary, recorded, kind, target, strength):
    """Edits of the concepts of the highest scores in a dictionary of all moments."""
    labels = recorded.of(kind)
    codes = mean_slot_codes(dictionary, recorded, list(recorded.activations))
    scores = saeuron_scores(codes[labels == target], codes[(labels >= 0) & (labels != target)])
    best = np.argsort(-scores)[:SAEURON_CONCEPTS]
    return [Edit(1, int(concept), -strength / 2, half="both") for concept in best]


def difference_levels(recorded, kind, target):
    """Levels whose one concept is the direction from the others to the target."""
    labels, levels = recorded.of(kind), []
    for number, (t, steps) in enumerate(steps_of(recorded).items(), 1):
        values = torch.cat([recorded.activations[step].mean(dim=2) for step in steps]).numpy()
        again = np.concatenate([labels] * len(steps))
        other = values[(again >= 0) & (again != target)].mean(axis=0)
        direction = values[again == target].mean(axis=0) - other
        direction = (direction / np.linalg.norm(direction)).astype(np.float32)[None]
        weights = {
            "W_enc": direction.T.copy(),
            "b_enc": np.zeros(1, np.float32),
            "W_dec": direction,
            "b_dec": other.astype(np.float32),
            "threshold": np.zeros(1, np.float32),
        }
        dictionary = Dictionary.from_weights("jumprelu", weights, k=1)
        levels.append(ConceptLevel(number, f"t{t}", HOOKPOINT, dictionary, timestep=t))
    return levels


def random_edits(edits, seed, n_concepts):
    """As many concepts per level with the same scales."""
    rng = np.random.default_rng(seed)
    swapped = []
    for level in sorted({edit.level for edit in edits}):
        own = [edit for edit in edits if edit.level == level]
        for edit, concept in zip(own, rng.permutation(n_concepts)[: len(own)], strict=True):
            swapped.append(Edit(level, int(concept), edit.scale, half="both"))
    return swapped


def plan(method, dictionaries, recorded, kind, target, strength, seed):
    """Levels, edits and negative prompt of a method."""
    levels = [
        ConceptLevel(number, f"t{t}", HOOKPOINT, dictionaries[t], timestep=t)
        for number, t in enumerate(TIMESTEPS, 1)
    ]
    if method == "single, SAeUron":
        single = ConceptLevel(1, "all", HOOKPOINT, dictionaries["all"])
        return [single], saeuron_edits(dictionaries["all"], recorded, kind, target, strength), None
    if method == "difference of means":
        levels = difference_levels(recorded, kind, target)
        scale = 1 - strength / 2
        return levels, [Edit(level.level, 0, scale, half="both") for level in levels], None
    if method == "negative prompt":
        return levels, [], (OBJECTS if kind == "object" else COLOURS)[target]
    edits = level_edits(dictionaries, recorded, kind, target, strength)
    if method == "random":
        edits = random_edits(edits, seed, dictionaries[TIMESTEPS[0]].n_concepts)
    return levels, edits, None


def drawn(pipeline, captions, seeds, negative):
    """Pictures of captions; with a negative prompt in place of the empty one if there is one."""
    if negative is None:
        return draw(pipeline, captions, seeds, steps=STEPS, guidance=GUIDANCE)
    result = pipeline(
        captions,
        negative_prompt=[negative] * len(captions),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        output_type="np",
    )
    return np.asarray(result.images, dtype=np.float32)


def judge(wanted, seen, kind, target):
    """Scores of drawings; see the head of this file."""
    pairs = [(wanted.objects, seen.objects), (wanted.colours, seen.colours)]
    (own, own_seen), (cross, cross_seen) = pairs if kind == "object" else pairs[::-1]
    aimed = own == target
    kept = (own >= 0) & ~aimed
    ua = float((own_seen[aimed] != target).mean())
    ira = float((own_seen[kept] == own[kept]).mean())
    cra = float((cross_seen[kept] == cross[kept]).mean())
    least = min(ua, ira, cra)
    return {
        "ua": ua,
        "ira": ira,
        "cra": cra,
        "harmonic": 3 / (1 / ua + 1 / ira + 1 / cra) if least > 0 else 0.0,
        "cross": float((cross_seen[aimed] == cross[aimed]).mean()),
    }


def chosen(kind, target, n, seed, held_out):
    """Captions, three in four with the target, the rest without."""
    _, captions, factors = SpriteWorld(seed + 77).sample(600, held_out=held_out)
    has = ((factors.objects if kind == "object" else factors.colours) == target).any(axis=1)
    with_it = 3 * n // 4
    rows = np.concatenate([np.flatnonzero(has)[:with_it], np.flatnonzero(~has)[: n - with_it]])
    wanted = type(factors)(
        *(getattr(factors, name)[rows] for name in ("parts", "colours", "objects", "scenes"))
    )
    return [captions[row] for row in rows], wanted, [int(row) for row in rows]


def try_out(pipeline, planned, kind, target, n, seed, *, held_out):
    """Scores of a plan on captions that the model was or was not trained on."""
    levels, edits, negative = planned
    captions, wanted, seeds = chosen(kind, target, n, seed, held_out)
    with torch.no_grad(), steer(pipeline, levels, edits):
        pictures = drawn(pipeline, captions, seeds, negative)
    return judge(wanted, read_sprites(pictures).factors, kind, target)


def rows_of_target(pipeline, recorded, dictionaries, name, options):
    """Rows of the table, one per method."""
    kind = "object" if name in OBJECTS else "colour"
    target = (OBJECTS if kind == "object" else COLOURS).index(name)
    strengths = {}
    for method in options.methods:

        def planned(strength, method=method):
            given = (method, dictionaries, recorded, kind, target, strength, options.seed)
            return plan(*given)

        if method in TUNED:
            best = -1.0
            for strength in STRENGTHS:
                place = (kind, target, options.tuning, options.seed)
                scores = try_out(pipeline, planned(strength), *place, held_out=False)
                if scores["harmonic"] > best:
                    best, strengths[method] = scores["harmonic"], strength
        elif method == "random":
            strengths[method] = strengths.get("levels", STRENGTHS[0])
        ready = planned(strengths.get(method))
        place = (kind, target, options.captions, options.seed)
        scores = try_out(pipeline, ready, *place, held_out=True)
        yield {
            "kind": kind,
            "target": name,
            "method": method,
            "seed": options.seed,
            "strength": strengths.get(method, ""),
            "captions": options.captions,
            "edits": len(ready[1]),
        } | {key: round(score, 4) for key, score in scores.items()}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, default=60, help="held-out captions per target")
    parser.add_argument("--tuning", type=int, default=24, help="captions to choose a strength on")
    parser.add_argument("--recorded", type=int, default=300, help="captions to find concepts on")
    parser.add_argument("--learn-steps", type=int, default=350)
    parser.add_argument("--targets", nargs="+", default=[*OBJECTS, *COLOURS])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    pipeline = load()
    recorded = record(pipeline, options.recorded, options.seed)
    dictionaries = learn(recorded, options.seed, options.learn_steps)
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}"
    command = " ".join(["python tests/benchmarks/unlearning.py", *sys.argv[1:]])
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for name in options.targets:
            for row in rows_of_target(pipeline, recorded, dictionaries, name, options):
                writer.writerow(row | {"machine": machine, "command": command})
                file.flush()


if __name__ == "__main__":
    main()
