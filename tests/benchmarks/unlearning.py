"""Unlearning on sprites: one object or colour is removed while the rest stays as the caption says.

    python tests/benchmarks/unlearning.py [--captions 20] [--targets house red] [--seeds 0 1 2 3 4]

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
  with the others is spared. It is scaled only where its code is above what `QUIET` of the others'
  patches reach: a pull that is strong enough to matter must not act on faint codes elsewhere.
- ``whole and parts``: the same for the highest level alone. A part's excess is that of its wholes
  in the recovered graph, weighted by the strengths of the edges: labels are used at one level, and
  a part is spared as far as it makes up other wholes.
- ``single, SAeUron``: one dictionary of all moments; the highest scores of SAeUron. A code above
  its mean is scaled by −strength / 3 on average, in proportion to the concept's mean on the target.
- ``difference of means``: the direction from the others to the target, times 1 − 0.6 · strength.
- ``negative prompt``: the target's name, with the strength as guidance scale.
- ``random``: as many concepts as ``levels`` edits, with its scales, drawn at random.

The dictionaries of the moments are trained in whitened coordinates for objects and in plain ones
for colours, that of all moments in plain ones: what was better on training captions of seed 0.

All read and edit one place, the last where the text enters (`HOOKPOINT`): there alone a slot's
object and colour can be read off linearly at every step, and codes of very few concepts keep
objects and colours apart. Edits act at every step and in both halves of the guidance. Every
dictionary has been trained for the same number of steps with the same settings. Per target, the
strength of every method is the best of `STRENGTHS` by the harmonic mean on training captions, the
smallest of those as good.
"""

import argparse
import csv
import os
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise, repeat
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from compute.dictionaries import Dictionary, fit_dictionary
from compute.graphs import recover_edges
from compute.models.own.diffusion_training import draw
from compute.steering import ConceptLevel, Edit, saeuron_scores, steer
from compute.steering.places import Target
from compute.steering.running import Interventions
from compute.worlds.sprite_reader import read_sprites
from compute.worlds.sprites import COLOURS, OBJECTS, SpriteWorld

RESULTS = Path(__file__).parent / "results" / "unlearning.csv"
HOOKPOINT = "up_blocks.0.attentions.1"
TIMESTEPS = (99, 499, 899)
STEPS, GUIDANCE = 10, 2.0
STRENGTHS = (1.5, 2.0, 3.0, 4.0, 5.5)
N_CONCEPTS, ACTIVE = 1024, 2
SAEURON_CONCEPTS = 32
LEAST_EXCESS = 0.15
QUIET = 0.98
METHODS = ("levels", "whole and parts", "single, SAeUron", "difference of means")
METHODS += ("negative prompt", "random")
FIELDS = ("kind", "target", "method", "seed", "strength", "captions", "edits")
FIELDS += ("ua", "ira", "cra", "harmonic", "cross", "machine", "command")


class RecordedSlots(NamedTuple):
    """Slots' activations ``(n, 4, p, d)`` by timestep, and what the captions put there."""

    activations: dict[int, torch.Tensor]
    objects: np.ndarray
    colours: np.ndarray

    def of(self, kind):
        return self.objects if kind == "object" else self.colours


def load():
    """The project's own sprite model."""
    import compute.pretrained.sprites as sprites
    from compute.models.own.packaged import load_text_to_image

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
    return RecordedSlots(activations, factors.objects, factors.colours)


def in_slots(values):
    """``(n, patches, d)``, row-major patches of a picture, as ``(n, 4, patches / 4, d)``."""
    n, patches, d = values.shape
    side = round(patches**0.5) // 2
    by_slot = values.reshape(n, 2, side, 2, side, d).permute(0, 1, 3, 2, 4, 5)
    return by_slot.reshape(n, 4, side * side, d)


def steps_of(recorded):
    """Level's timestep → the steps of a drawing that are nearest to it."""
    nearest = {step: min(TIMESTEPS, key=lambda t: abs(t - step)) for step in recorded.activations}
    return {t: [step for step, own in nearest.items() if own == t] for t in TIMESTEPS}


def learn(recorded, moments, seed, steps, *, whiten=False):
    """A dictionary per moment, each of the rows of its own steps of a drawing."""
    options = {"n_concepts": N_CONCEPTS, "k": ACTIVE, "steps": steps, "batch_size": 1024}
    options["seed"] = seed
    if whiten:
        options |= {"architecture": "batchtopk", "whiten": True}
    return {
        moment: fit_dictionary(rows_of(recorded, own), **options) for moment, own in moments.items()
    }


def rows_of(recorded, steps):
    """Patches ``(rows, d)`` of some steps."""
    return torch.cat([recorded.activations[step].flatten(0, 2) for step in steps])


def recover(dictionaries, recorded):
    """Strengths ``(parts, wholes)`` of the edges from every moment to the next higher one."""
    codes = [
        sum(patch_codes(dictionaries[t], recorded, steps)).flatten(0, 2)
        for t, steps in steps_of(recorded).items()
    ]
    found = [recover_edges(low.numpy(), high.numpy()) for low, high in pairwise(codes)]
    return [edges.strength * edges.adjacency for edges in found]


def patch_codes(dictionary, recorded, steps):
    """Codes of some steps, ``(n, 4, p, m)`` each."""
    return [dictionary.encode(recorded.activations[step]) for step in steps]


def mean_slot_codes(dictionary, recorded, steps):
    """Mean code of every concept in every slot, ``(n, 4, m)``."""
    codes = patch_codes(dictionary, recorded, steps)
    return (sum(z.mean(dim=2) for z in codes) / len(steps)).numpy()


def excesses(codes, labels, target):
    """Share ``(m,)`` of each concept's mean code on the target that no other value reaches."""
    means = np.stack([codes[labels == value].mean(axis=0) for value in range(5)])
    most = np.delete(means, target, axis=0).max(axis=0)
    excess = 1 - most / np.maximum(means[target], 1e-9)
    return np.where(means[target] > 1e-3, np.maximum(excess, 0), 0)


def scaled(number, excess, strength, bars=None):
    """Edits of the concepts of a level whose excess is large enough, where codes are above bars."""
    return [
        Edit(
            number,
            int(concept),
            1 - strength * float(excess[concept]),
            above=None if bars is None else float(bars[concept]),
            half="both",
        )
        for concept in np.flatnonzero(excess > LEAST_EXCESS)
    ]


def standing_out(dictionary, steps, recorded, kind, target):
    """Excess ``(m,)`` of every concept of a level, and the bar ``(m,)`` that `QUIET` is below."""
    labels = recorded.of(kind)
    codes = torch.stack(patch_codes(dictionary, recorded, steps), dim=2).numpy()
    excess = excesses(codes.mean(axis=(2, 3)), labels, target)
    others = codes[labels != target].reshape(-1, codes.shape[-1])
    used = excess > LEAST_EXCESS
    bars = np.zeros(len(excess))
    bars[used] = np.quantile(others[:, used], QUIET, axis=0)
    return excess, bars


def level_edits(dictionaries, recorded, kind, target, strength):
    """Edits of ``levels``: less of what the target has more of than every other."""
    edits = []
    for number, (t, steps) in enumerate(steps_of(recorded).items(), 1):
        excess, bars = standing_out(dictionaries[t], steps, recorded, kind, target)
        edits += scaled(number, excess, strength, bars)
    return edits


def graph_edits(dictionaries, edges, recorded, kind, target, strength):
    """Edits of ``whole and parts``: wholes by their labels, parts by their wholes."""
    top, steps = list(steps_of(recorded).items())[-1]
    excess, bars = standing_out(dictionaries[top], steps, recorded, kind, target)
    edits = scaled(len(edges) + 1, excess, strength, bars)
    for number, weight in reversed(list(enumerate(edges, 1))):
        weight = np.abs(weight)
        excess = weight @ excess / np.maximum(weight.sum(axis=1), 1e-9)
        edits += scaled(number, excess, strength)
    return edits


def saeuron_edits(dictionary, recorded, kind, target, strength):
    """Edits of the concepts of the highest scores in a dictionary of all moments."""
    labels = recorded.of(kind)
    codes = mean_slot_codes(dictionary, recorded, list(recorded.activations))
    on_target, bar = codes[labels == target].mean(axis=0), codes.mean(axis=(0, 1))
    scores = saeuron_scores(codes[labels == target], codes[(labels >= 0) & (labels != target)])
    best = np.argsort(-scores)[:SAEURON_CONCEPTS]
    factors = -strength / 3 * on_target[best] / on_target[best].mean()
    return [
        Edit(1, int(concept), float(factor), above=float(bar[concept]), half="both")
        for concept, factor in zip(best, factors, strict=True)
    ]


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


class Plan(NamedTuple):
    """What a method does: levels and edits, and the pipeline's own levers."""

    levels: list
    edits: list
    negative: str | None = None
    guidance: float = GUIDANCE


def plan(method, known, recorded, kind, target, strength, seed):
    """The plan of a method, from the dictionaries and edges that are known."""
    dictionaries, edges = known
    levels = [
        ConceptLevel(number, f"t{t}", HOOKPOINT, dictionaries[t], timestep=t)
        for number, t in enumerate(TIMESTEPS, 1)
    ]
    given = (recorded, kind, target, strength)
    if method == "whole and parts":
        return Plan(levels, graph_edits(dictionaries, edges, *given))
    if method == "single, SAeUron":
        single = ConceptLevel(1, "all", HOOKPOINT, dictionaries["all"])
        return Plan([single], saeuron_edits(dictionaries["all"], *given))
    if method == "difference of means":
        levels = difference_levels(recorded, kind, target)
        scale = 1 - 0.6 * strength
        return Plan(levels, [Edit(level.level, 0, scale, half="both") for level in levels])
    if method == "negative prompt":
        return Plan(levels, [], (OBJECTS if kind == "object" else COLOURS)[target], strength)
    edits = level_edits(dictionaries, *given)
    if method == "random":
        edits = random_edits(edits, seed, dictionaries[TIMESTEPS[0]].n_concepts)
    return Plan(levels, edits)


def drawn(pipeline, captions, seeds, negative=None, guidance=GUIDANCE):
    """Pictures of captions; with a negative prompt in place of the empty one if there is one."""
    if negative is None:
        return draw(pipeline, captions, seeds, steps=STEPS, guidance=guidance)
    result = pipeline(
        captions,
        negative_prompt=[negative] * len(captions),
        num_inference_steps=STEPS,
        guidance_scale=guidance,
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
    captions, wanted, seeds = chosen(kind, target, n, seed, held_out)
    with torch.no_grad(), steer(pipeline, planned.levels, planned.edits):
        pictures = drawn(pipeline, captions, seeds, planned.negative, planned.guidance)
    return judge(wanted, read_sprites(pictures).factors, kind, target)


def rows_of_target(pipeline, recorded, known, kind, name, seed, options):
    """Rows of the table, one per method."""
    target = (OBJECTS if kind == "object" else COLOURS).index(name)
    for method in options.methods:
        best, tuned = -1.0, STRENGTHS[0]
        for strength in STRENGTHS:
            planned = plan(method, known, recorded, kind, target, strength, seed)
            place = (kind, target, options.tuning, seed)
            harmonic = try_out(pipeline, planned, *place, held_out=False)["harmonic"]
            if harmonic > best:
                best, tuned = harmonic, strength
        planned = plan(method, known, recorded, kind, target, tuned, seed)
        place = (kind, target, options.captions, seed)
        scores = try_out(pipeline, planned, *place, held_out=True)
        yield {
            "kind": kind,
            "target": name,
            "method": method,
            "seed": seed,
            "strength": tuned,
            "captions": options.captions,
            "edits": len(planned.edits),
        } | {key: round(score, 4) for key, score in scores.items()}


def rows_of_seed(seed, options):
    """Rows of the table of one seed: its own captions, drawings, dictionaries and graph."""
    torch.set_num_threads(options.threads)
    pipeline = load()
    recorded = record(pipeline, options.recorded, seed)
    moments, settings = steps_of(recorded), (seed, options.learn_steps)
    plain = learn(recorded, moments | {"all": list(recorded.activations)}, *settings)
    whitened = plain | learn(recorded, moments, *settings, whiten=True)
    known = {
        kind: (dictionaries, recover(dictionaries, recorded))
        for kind, dictionaries in (("object", whitened), ("colour", plain))
    }
    rows = []
    for name in options.targets:
        kind = "object" if name in OBJECTS else "colour"
        rows += rows_of_target(pipeline, recorded, known[kind], kind, name, seed, options)
    return rows


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, default=20, help="held-out captions per target")
    parser.add_argument("--tuning", type=int, default=24, help="captions to choose a strength on")
    parser.add_argument("--recorded", type=int, default=500, help="captions to find concepts on")
    parser.add_argument("--learn-steps", type=int, default=800)
    parser.add_argument("--targets", nargs="+", default=[*OBJECTS, *COLOURS])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="seeds at a time")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}"
    command = " ".join(["python tests/benchmarks/unlearning.py", *sys.argv[1:]])
    with (
        ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool,
        options.results.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for rows in pool.map(rows_of_seed, options.seeds, repeat(options)):
            writer.writerows(row | {"machine": machine, "command": command} for row in rows)
            file.flush()


if __name__ == "__main__":
    main()
