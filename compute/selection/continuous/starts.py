"""What a level starts from: directions that come again in sparse dictionaries of several seeds.

A dictionary that is trained by gradients ends in one of many optima, and about a fifth of its
directions are that optimum's own. What most of several independent ones find is the data's:
consensus of repeated factorisations (Kotliar et al. 2019, consensus NMF), here by directions that
are each other's nearest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from compute.dictionaries import DictionaryTrainer
from compute.dictionaries.dictionary_settings import DictionarySettings
from compute.selection.continuous.concepts import Concepts, Statistics, bounded_noise

# Dictionaries, of which more than half are to find a direction.
_DICTIONARIES = 3
# Their steps, their active concepts a row (the fewer, the more alike are those of two seeds), and
# in how many rows of a batch each concept is active.
_STEPS, _ACTIVE, _ROWS_EACH = 1000, 4, 16
_FEWEST_ROWS = 256
# Directions that are nearer to each other than to any at right angles to both.
_ALIKE = 0.7
# Active rows from which the strength of a concept can be told.
_FEWEST_ACTIVE = 2
_NEAREST_BLOCK = 2048
_FAR_SEED = 1_000_003


class Starts:
    """Dictionaries of independent seeds on the same white rows.

    Parameters
    ----------
    n_concepts : concepts of each
    r : white coordinates
    seed : of the first
    device : where to train
    """

    def __init__(self, n_concepts: int, r: int, seed: int, device: torch.device) -> None:
        active = max(1, min(_ACTIVE, n_concepts // 4))
        rows = max(_FEWEST_ROWS, _ROWS_EACH * n_concepts // active)
        self._trainers = [
            DictionaryTrainer(
                DictionarySettings(
                    architecture="batchtopk",
                    n_concepts=n_concepts,
                    k=active,
                    steps=_STEPS,
                    seed=seed + number * _FAR_SEED,
                    batch_size=rows,
                ),
                mean=torch.zeros(r, device=device),
                scale=1.0,
                device=device,
            )
            for number in range(_DICTIONARIES)
        ]

    @property
    def done(self) -> bool:
        """Whether all dictionaries are trained."""
        return self._trainers[-1].steps_done >= _STEPS

    def see(self, x: Tensor) -> None:
        """Train on white rows (b, r) the first dictionary that is not finished: what two have in
        common is then not an accident of the order of rows either."""
        for rows in torch.split(x, self._trainers[0].settings.batch_size):
            unfinished = (one for one in self._trainers if one.steps_done < _STEPS)
            trainer = next(unfinished, None)
            if trainer is not None:
                trainer.step(rows)

    def begin(self, concepts: Concepts, statistics: Statistics, x: Tensor) -> None:
        """Begin concepts at the directions that most dictionaries share, as frequent and as strong
        as they are in white rows (n, r). Those that are never active are left out."""
        found = [trainer.dictionary for trainer in self._trainers]
        codes = [dictionary.encode(x) for dictionary in found]
        left = [x - one.decode(z) for one, z in zip(found, codes, strict=True)]
        concepts.noise = bounded_noise(
            torch.stack([rows.square().mean(0) for rows in left]).mean(0)
        )
        concepts.bias = torch.stack([one.b_dec for one in found]).mean(0)
        directions = torch.cat([one.directions for one in found])
        count = torch.cat([(z > 0).sum(0) for z in codes]).to(x.dtype)
        total = torch.cat([z.sum(0) for z in codes])
        groups = shared_by_most([one.directions for one in found])
        groups = [group for group in groups if float(count[group].sum()) >= _FEWEST_ACTIVE]
        if not groups:
            return
        together = torch.stack([directions[group].sum(0) for group in groups])
        together = together / torch.linalg.vector_norm(together, dim=1, keepdim=True)
        scaled = together * concepts.noise.rsqrt()
        size = torch.linalg.vector_norm(scaled, dim=1)
        active = torch.stack([count[group].mean() for group in groups])
        strength = torch.stack([total[group].sum() / count[group].sum() for group in groups])
        concepts.directions = scaled / size[:, None]
        concepts.log_odds = ((active + 0.5) / (len(x) + 1)).logit()
        concepts.mean = strength * size
        concepts.variance = 0.25 * concepts.mean.square()
        statistics.add(len(groups))

    def state(self) -> dict[str, Tensor]:
        """Tensors that decide how training goes on, by name."""
        return {
            f"{number}.{name}": tensor
            for number, trainer in enumerate(self._trainers)
            if trainer.steps_done
            for name, tensor in trainer.state_dict().items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state` told."""
        for number, trainer in enumerate(self._trainers):
            own = f"{number}."
            begun = {n.removeprefix(own): t for n, t in state.items() if n.startswith(own)}
            if begun:
                trainer.load_state_dict(begun)


def start_together(starts: Sequence[Starts | None], rows: Sequence[Tensor]) -> None:
    """Let the starts of all levels that have one see their white rows (b, r).

    Steps of so small a model leave a CPU's cores idle between them: levels take turns on these.
    """
    pairs = [(start, x) for start, x in zip(starts, rows, strict=True) if start is not None]
    pairs = [(start, x) for start, x in pairs if not start.done]
    threads = torch.get_num_threads()
    if len(pairs) < 2 or threads < 2 or pairs[0][1].device.type != "cpu":
        for start, x in pairs:
            start.see(x)
        return
    each = max(1, threads // len(pairs))

    def see(start: Starts, x: Tensor) -> None:
        torch.set_num_threads(each)
        start.see(x)

    with ThreadPoolExecutor(len(pairs)) as pool:
        list(pool.map(see, *zip(*pairs, strict=True)))
    torch.set_num_threads(threads)


def shared_by_most(directions: list[Tensor]) -> list[Tensor]:
    """Directions (K_i, r) of several dictionaries that more than half of them have, as groups of
    places in all directions, one dictionary after the other.

    Two are of one concept if each is the other's nearest in its dictionary, and they are alike.
    """
    unit = [one / torch.linalg.vector_norm(one, dim=1, keepdim=True) for one in directions]
    firsts = [0]
    for one in unit:
        firsts.append(firsts[-1] + len(one))
    pairs = []
    for a, b in combinations(range(len(unit)), 2):
        there, likeness = _nearest(unit[a], unit[b])
        back, _ = _nearest(unit[b], unit[a])
        own = torch.arange(len(there), device=there.device)
        same = (back[there] == own) & (likeness > _ALIKE)
        pairs.append(torch.stack([own[same] + firsts[a], there[same] + firsts[b]]))
    rows, columns = torch.cat(pairs, 1).cpu().numpy()
    graph = coo_array(([True] * len(rows), (rows, columns)), shape=(firsts[-1], firsts[-1]))
    count, labels = connected_components(graph, directed=False)
    groups: list[list[int]] = [[] for _ in range(count)]
    for place, label in enumerate(labels):
        groups[label].append(place)
    return [
        torch.tensor(group, device=unit[0].device)
        for group in groups
        if 2 * len(group) > len(directions)
    ]


def _nearest(own: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """For each of unit directions (K, r) the place of the nearest other, and its cosine."""
    found = [(block @ others.T).max(1) for block in torch.split(own, _NEAREST_BLOCK)]
    return torch.cat([one.indices for one in found]), torch.cat([one.values for one in found])
