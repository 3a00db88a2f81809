import itertools

import numpy as np

from compute.selection.discrete.latent_class import (
    choose_latent_class,
    distinct_rows,
    fit_latent_class,
)
from compute.selection.discrete.latent_tree import (
    LatentTree,
    TreeRows,
    fit_tree,
    infer,
    spanning_forest,
)


def small_tree(rng):
    draw = lambda rows, columns: rng.dirichlet(np.ones(columns), size=rows)  # noqa: E731
    return LatentTree(
        parent=np.array([2, 2, -1]),
        tables=[draw(2, 3), draw(2, 2), draw(1, 2)],
        owner=np.array([0, 0, 1, 1]),
        emissions=[draw(3, 2), draw(3, 3), draw(2, 2), draw(2, 2)],
    )


def by_enumeration(tree, row):
    joint = np.zeros((3, 2, 2))
    for a, b, u in itertools.product(range(3), range(2), range(2)):
        parts = zip((a, a, b, b), tree.emissions, row)
        p = np.prod([table[state, x] for state, table, x in parts])
        joint[a, b, u] = p * tree.tables[2][0, u] * tree.tables[0][u, a] * tree.tables[1][u, b]
    return joint


def test_inference_equals_enumeration():
    rng = np.random.default_rng(0)
    tree = small_tree(rng)
    codes = np.array(list(itertools.product(range(2), range(3), range(2), range(2))))
    rows = TreeRows(codes, tree.owner, 3)
    beliefs = infer(tree, [rows.likelihood(tree, k) for k in range(3)])
    for i, row in enumerate(codes):
        joint = by_enumeration(tree, row)
        np.testing.assert_allclose(np.exp(beliefs.row_log_likelihood[i]), joint.sum())
        for k in range(3):
            other = tuple(axis for axis in range(3) if axis != k)
            np.testing.assert_allclose(beliefs.posteriors[k][i], joint.sum(other) / joint.sum())


def test_em_never_falls():
    rng = np.random.default_rng(1)
    codes = rng.integers(0, (2, 3, 2, 2), size=(300, 4))
    tree = small_tree(rng)
    rows = TreeRows(codes, tree.owner, 3)
    scores = []
    for _ in range(6):
        likelihoods = [rows.likelihood(tree, k) for k in range(3)]
        scores.append(infer(tree, likelihoods).row_log_likelihood.sum())
        tree = fit_tree(tree, rows, 1, 0.0)
    assert np.diff(scores).min() > -1e-2  # the pseudo-counts may cost a hair
    assert scores[-1] > scores[0] + 1


def test_spanning_forest_of_a_chain():
    rng = np.random.default_rng(2)
    columns = [rng.integers(0, 2, 4_000)]
    for _ in range(3):
        columns.append(np.where(rng.random(4_000) < 0.1, 1 - columns[-1], columns[-1]))
    lone = rng.integers(0, 2, 4_000)
    parent = spanning_forest(np.stack([*columns, lone], axis=1), [2] * 5, least=15.0)
    assert parent.tolist() == [-1, 0, 1, 2, -1]


def test_distinct_rows_restore_the_table():
    table = np.random.default_rng(3).integers(0, 4, size=(200, 3))
    rows, weights, inverse = distinct_rows(table)
    np.testing.assert_array_equal(rows[inverse], table)
    assert weights.sum() == 200
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_latent_class_recovers_its_tables():
    rng = np.random.default_rng(4)
    prior, tables = np.array([0.7, 0.3]), [np.array([[0.9, 0.1], [0.2, 0.8]])] * 4
    states = rng.choice(2, 20_000, p=prior)
    codes = np.stack([(rng.random(20_000) < t[states, 1]).astype(int) for t in tables], axis=1)
    rows, weights, _ = distinct_rows(codes)
    model = choose_latent_class(rows, weights, [2] * 4, rng, max_states=5)
    assert model.n_states == 2
    order = np.argsort(-model.prior)
    np.testing.assert_allclose(model.prior[order], prior, atol=0.03)
    for table in model.tables:
        np.testing.assert_allclose(table[order], tables[0], atol=0.04)
    single = fit_latent_class(rows, weights, [2] * 4, 1, rng)
    assert single.log_likelihood < model.log_likelihood - 100
