"""Identities over versions of real dictionaries, and their histories."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from storage.artifacts import LevelEntry, Registry
from storage.exports.saelens import from_saelens, to_saelens
from storage.graph.concept_graph import ConceptGraph
from storage.graph.identity import FreshLevel, carry_identities, concept_histories

DIM, CONCEPTS = 32, 24


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def dictionary_files(directions, frequency):
    n = len(directions)
    weights = {"W_enc": directions.T.copy(), "W_dec": directions}
    weights |= {"b_enc": np.full(n, -0.3, np.float32), "b_dec": np.zeros(DIM, np.float32)}
    return to_saelens(weights, architecture="standard", frequency=frequency)


def entry(n, **changes):
    described = {"level": 1, "name": "low", "hookpoint": "layers.0.output", "n_concepts": n}
    return LevelEntry.model_validate(described | {"d": DIM, "metrics": {}} | changes)


class Nights:
    """Publishes versions whose concepts are rows of a table of true directions."""

    def __init__(self, registry):
        self.registry = registry
        self.rng = np.random.default_rng(0)
        self.truth = np.linalg.qr(self.rng.normal(size=(DIM, DIM)))[0].astype(np.float32)

    def publish(self, who, *, origin, dead=(), **changes):
        """Learn the concepts `who` anew, with an error; return version and identities by truth."""
        directions = unit(self.truth[who] + 0.02 * self.rng.normal(size=(len(who), DIM)))
        frequency = np.where(np.isin(who, dead), 0.0, 0.1)
        files = dictionary_files(directions, frequency)
        active = self.rng.random((500, len(who))) < 0.15
        rows = (active * self.rng.uniform(1, 2, active.shape)) @ self.truth[who]
        known = self.registry.names()
        ancestors = self.registry.ancestors("toy") if known else []
        fresh = FreshLevel(entry(len(who), **changes), from_saelens(files), rows)
        ids = carry_identities(ancestors[-1] if ancestors else None, [fresh], origin=origin)
        graph = ConceptGraph.from_columns(
            {
                "level": [1] * len(who),
                "index": range(len(who)),
                "label": [f"truth {t}" for t in who],
                "concept": [ids[f"1:{i}"] for i in range(len(who))],
            },
            {"source": [], "target": [], "strength": [], "confidence": []},
        )
        histories = concept_histories(ancestors, graph)
        self.registry.publish(
            "toy",
            {f"dictionaries/low/{p}": d for p, d in files.items()}
            | {f"graph/{p}": d for p, d in graph.files().items()},
            fingerprint=origin,
            levels=[fresh.entry],
        )
        return (
            {int(t): ids[f"1:{i}"] for i, t in enumerate(who)},
            {int(t): histories[f"1:{i}"] for i, t in enumerate(who)},
        )


@pytest.fixture
def nights(tmp_path):
    return Nights(Registry(tmp_path))


def test_a_concept_keeps_its_identity_while_others_come_and_go(nights):
    first, _ = nights.publish(np.arange(20), origin="aaaa")
    assert first[3] == "1:3@aaaa"
    order = np.random.default_rng(1).permutation(np.r_[np.arange(2, 20), 30, 31])
    second, histories = nights.publish(order, origin="bbbb")
    assert all(second[t] == first[t] for t in range(2, 20))
    assert {second[30].split("@")[1], second[31].split("@")[1]} == {"bbbb"}
    assert histories[5] == [(1, "born"), (None, "kept")]
    assert histories[30] == [(None, "born")]
    third, histories = nights.publish(order[::-1].copy(), origin="cccc")
    assert third == second
    assert histories[5] == [(1, "born"), (2, "kept"), (None, "kept")]
    told = nights.registry.compare("toy", 1, 3).counts()["concepts"]
    assert told == {"kept": 18, "changed": 0, "born": 2, "gone": 2}


def test_content_that_returns_makes_no_identity_twice(nights):
    """The same origin again, when the concepts of that origin have wandered to other indices."""
    nights.publish(np.arange(20), origin="aaaa")
    nights.publish(np.arange(20)[::-1].copy(), origin="bbbb")
    ids, _ = nights.publish(np.arange(5, 25), origin="aaaa")
    assert len(set(ids.values())) == 20
    assert ids[22] == "1:17@aaaa-2"
    assert ids[7] == "1:7@aaaa"


def test_another_place_in_the_model_begins_anew(nights):
    first, _ = nights.publish(np.arange(20), origin="aaaa")
    second, _ = nights.publish(np.arange(20), origin="bbbb", hookpoint="layers.1.output")
    assert not set(first.values()) & set(second.values())


def test_dead_concepts_take_over_nothing(nights):
    first, _ = nights.publish(np.arange(20), origin="aaaa", dead=[4])
    second, _ = nights.publish(np.arange(20), origin="bbbb")
    assert second[4] == "1:4@bbbb"
    assert second[5] == first[5]


@pytest.mark.parametrize("level", [0, 1])
def test_worlds_learnt_anew_keep_their_identities(level):
    """Two seeds learn a world of which, in between, a tenth of the concepts is replaced."""
    import torch

    from compute.dictionaries import fit_dictionary
    from compute.worlds import SelectionWorld
    from storage.graph.alignment import align

    torch.set_num_threads(1)
    world = SelectionWorld.vectors(sizes=(64, 24, 6), seed=level)
    n, rng = world.sizes[level], np.random.default_rng(level)
    replaced = rng.choice(n, max(1, n // 10), replace=False)
    directions = [world.directions[level], world.directions[level].copy()]
    directions[1][replaced] = unit(rng.normal(size=(len(replaced), world.dim)))

    def rows(count, seed, night):
        codes = world.sample(count, seed=seed).codes[level].copy()
        for concept in replaced if night else ():
            codes[:, concept] = codes[rng.permutation(count), concept]
        noise = 0.02 * rng.normal(size=(count, world.dim))
        return codes, (codes @ directions[night] + noise).astype(np.float32)

    learnt, match = [], []
    for night in (0, 1):
        codes, x = rows(6000, 1 + night, night)
        k = max(2, round(1.1 * (codes > 0).sum(axis=1).mean()))
        found = fit_dictionary(x, 2 * n, k, steps=300, seed=night, batch_size=512)
        codes, x = rows(2000, 9, night)
        own = found.encode(torch.as_tensor(x)).numpy()
        with np.errstate(invalid="ignore"):
            correlation = np.nan_to_num(np.corrcoef(codes.T, own.T)[:n, n:])
        pairs = linear_sum_assignment(-correlation)
        match.append((pairs[1], correlation[pairs]))
        learnt.append((found, (own > 0).any(axis=0)))
    tonight = torch.as_tensor(rows(2000, 10, 1)[1])
    (a, alive_a), (b, alive_b) = learnt
    alignment = align(
        a.directions.numpy(),
        b.directions.numpy(),
        old_codes=a.encode(tonight).numpy(),
        new_codes=b.encode(tonight).numpy(),
        old_alive=alive_a,
        new_alive=alive_b,
    )
    partner = dict(zip(alignment.old.tolist(), alignment.new.tolist()))
    # What a dictionary has not found cannot keep an identity: judged are the concepts found twice.
    found_twice = np.minimum(match[0][1], match[1][1]) > 0.8
    lasting = [t for t in np.flatnonzero(found_twice) if t not in replaced]
    kept = [partner.get(match[0][0][t]) == match[1][0][t] for t in lasting]
    truth_of = {int(latent): t for t, latent in enumerate(match[1][0])}
    wrong = [t for t in lasting if truth_of.get(partner.get(match[0][0][t], -1), t) != t]
    assert len(lasting) >= 0.6 * n
    assert np.mean(kept) >= 0.95
    assert len(wrong) <= 0.02 * n
    judged = np.flatnonzero(found_twice)
    for side, fate in ((0, alignment.gone), (1, alignment.born)):
        said = {int(t) for t in judged if match[side][0][t] in fate}
        true = set(judged.tolist()) & set(replaced.tolist())
        assert 2 * len(said & true) >= 0.9 * (len(said) + len(true))
