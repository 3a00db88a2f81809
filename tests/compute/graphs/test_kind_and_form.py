import numpy as np
import pytest

from compute.graphs import recover_edges
from compute.worlds import SelectionWorld


@pytest.mark.parametrize("style", ["zero-inflated", "binary", "continuous"])
def test_kinds_of_mixed_worlds(style):
    world = SelectionWorld.vectors(
        sizes=(120, 30, 5), seed=5, common_cause=0.4, code_style=style, correlation=0.4
    )
    codes = world.sample(20_000).codes
    found = recover_edges(codes[0], codes[1])
    decided = found.kind != "undecided"
    assert decided.mean() >= 0.8
    assert (found.kind == np.asarray(world.kinds[0]))[decided].mean() >= 0.95


def test_graded_cause_of_continuous_parts():
    rng = np.random.default_rng(0)
    cause = rng.standard_normal((4000, 1))
    parts = np.hstack([0.8 * cause + 0.6 * rng.standard_normal((4000, 3)), rng.random((4000, 4))])
    found = recover_edges(parts, cause)
    assert found.kind.tolist() == ["common_cause"]


@pytest.mark.parametrize(
    ("form", "gate"),
    [
        ("and", lambda x: x[:, :3].all(axis=1)),
        ("or", lambda x: x[:, :3].any(axis=1)),
        ("sum-threshold", lambda x: x[:, :4].sum(axis=1) >= 2),
        ("and-of-ors", lambda x: x[:, :2].any(axis=1) & x[:, 2:4].any(axis=1)),
        ("mixed", lambda x: (x[:, :3].sum(axis=1) >= 2) & x[:, 3:5].any(axis=1)),
        ("single", lambda x: x[:, 0]),
        ("none", lambda x: np.random.default_rng(9).random(len(x)) < 0.3),
    ],
)
def test_forms(form, gate):
    rng = np.random.default_rng(1)
    x = rng.random((8000, 10)) < 0.4
    whole = gate(x) ^ (rng.random(len(x)) < 0.01)
    found = recover_edges(x, whole[:, None])
    assert found.form.tolist() == [form]


def test_form_of_a_gate_with_an_inhibitor():
    x = np.random.default_rng(2).random((5000, 8)) < 0.4
    found = recover_edges(x, (x[:, 0] & x[:, 1] & ~x[:, 2])[:, None])
    assert found.form.tolist() == ["and"]


def test_environments_mark_severed_edges():
    hits = tested = kept = invariant = 0
    for seed in range(3):
        world = SelectionWorld.vectors(
            sizes=(80, 20, 5), seed=seed, environments=3, variant_edges=0.5
        )
        rows = world.sample(15_000)
        found = recover_edges(rows.codes[0], rows.codes[1], environment=rows.environment)
        true = world.edges[0] & found.adjacency
        hits += (~found.invariant & true & world.variant).sum()
        tested += (true & world.variant).sum()
        kept += (found.invariant & true & ~world.variant).sum()
        invariant += (true & ~world.variant).sum()
    assert tested >= 10
    assert hits / tested >= 0.8
    assert kept / invariant >= 0.9


def test_environment_labels_are_checked():
    x = np.random.default_rng(3).standard_normal((300, 4))
    with pytest.raises(ValueError, match="environment has shape"):
        recover_edges(x, x[:, :1], environment=np.zeros(299))
    with pytest.raises(ValueError, match="has 1 rows"):
        recover_edges(x, x[:, :1], environment=np.arange(300) == 0)
