"""Data on which edges were once lost: copies, many parents, offsets."""

import numpy as np
import pytest
from scipy import sparse

from compute.graphs import recover_edges, recover_edges_stream
from compute.graphs.composition import form_of
from compute.graphs.likeness import echoes, partners, twins
from compute.worlds import SelectionWorld


@pytest.fixture(scope="module")
def world():
    made = SelectionWorld.vectors(sizes=(80, 24, 6), seed=21)
    return *made.sample(5000).codes[:2], made.edges[0]


@pytest.fixture(params=["dense", "sparse"])
def path(request, monkeypatch):
    if request.param == "sparse":
        monkeypatch.setattr("compute.graphs.recovery._DENSE_CELLS", 0)
        monkeypatch.setattr("compute.graphs.recovery._SPARSE_SHARE", 2.0)
    return sparse.csr_array if request.param == "sparse" else np.asarray


def dense(matrix):
    return matrix.toarray() if sparse.issparse(matrix) else matrix


@pytest.mark.parametrize(("scale", "noise"), [(1, 0), (3, 0), (-2, 0), (1, 0.12), (1, 0.25)])
def test_twin_wholes_keep_their_edges_and_are_named(path, world, scale, noise):
    parts, wholes, true = world
    copied = [0, 3]
    copies = scale * wholes[:, copied]
    copies = copies + np.random.default_rng(0).normal(0, noise * copies.std(axis=0), copies.shape)
    found = recover_edges(path(parts), path(np.hstack([wholes, copies])))
    edges = dense(found.adjacency)
    assert found.twins.tolist() == [[0, 24], [3, 25]]
    assert (edges[:, :24] == true).all()
    assert (edges[:, 24:] == true[:, copied]).all()


def test_other_wholes_are_no_twins(world):
    assert recover_edges(*world[:2]).twins.shape == (0, 2)


def test_twins_are_paired_and_not_chained():
    corr = np.asarray([[1, 0.95, 0.8], [0.95, 1, -0.93], [0.8, -0.93, 1]])
    pairs = twins(corr)
    assert pairs.tolist() == [[0, 1], [1, 2]]
    assert {k: v.tolist() for k, v in partners(pairs).items()} == {0: [1], 1: [2, 0], 2: [1]}


def test_identical_parts_are_said(path, world):
    parts, wholes, true = world
    used = np.flatnonzero(true.any(axis=1))[:2]
    found = recover_edges(path(np.hstack([parts, 2 * parts[:, used]])), path(wholes))
    assert found.identical_parts.tolist() == [[used[0], 80], [used[1], 81]]
    assert (dense(found.adjacency)[:80] == true).mean() > 0.998
    assert not dense(found.adjacency)[80:].any()
    # The same one is chosen in every half.
    assert found.edge_stability[np.isin(found.part, used)].mean() > 0.9


def test_the_first_of_identical_parts_stands_for_all():
    corr = np.eye(4)
    corr[1:, 1:] = 1.0
    found = echoes(corr)
    assert found.pairs.tolist() == [[1, 2], [1, 3]]
    assert found.barred.tolist() == [False, False, True, True]


@pytest.mark.parametrize("n_parents", [15, 25])
@pytest.mark.parametrize("gate", ["sum", "rectified", "rare"])
def test_wholes_of_many_parents(path, n_parents, gate):
    rng = np.random.default_rng(n_parents)
    n, p, w = 5000, 80, 3
    parts = rng.standard_normal((n, p))
    if gate == "rare" or path is sparse.csr_array:
        parts = (rng.random((n, p)) < 0.1) * rng.lognormal(0, 0.5, (n, p))
    true = rng.permuted(np.tile(np.arange(p)[:, None] < n_parents, (1, w)), axis=0)
    wholes = parts @ (true * rng.uniform(0.5, 1.5, (p, w)))
    wholes += 0.3 * wholes.std(axis=0) * rng.standard_normal((n, w))
    if gate == "rectified":
        wholes = np.maximum(wholes - wholes.mean(axis=0), 0)
    found = recover_edges(path(parts), path(wholes))
    edges = dense(found.adjacency)
    assert (edges & true).sum() >= 0.95 * true.sum()
    assert (edges & ~true).sum() <= 2
    assert not found.limited.any()


def test_what_rows_are_too_few_for_is_said():
    rng = np.random.default_rng(0)
    parts = np.linalg.qr(rng.standard_normal((104, 40)))[0]
    whole = parts[:, :20] @ 0.85 ** np.arange(20)[:, None]
    found = recover_edges(parts, np.hstack([whole, parts[:, 30:31]]))
    assert found.limited.tolist() == [True, False]
    assert 8 < len(found.parents(0)) < 20


def test_parts_under_the_threshold_are_counted():
    rng = np.random.default_rng(1)
    parts = rng.standard_normal((20_000, 20))
    whole = parts[:, :3].sum(axis=1) + 0.06 * parts[:, 4] + 0.1 * rng.standard_normal(20_000)
    found = recover_edges(parts, whole[:, None])
    assert found.parents(0).tolist() == [0, 1, 2]
    assert found.left_out.tolist() == [1]


@pytest.mark.parametrize(("n_parts", "form"), [(11, "and"), (13, "and"), (70, "or"), (40, "or")])
def test_forms_of_many_parts(n_parts, form):
    rng = np.random.default_rng(n_parts)
    parts = rng.random((3000, n_parts)) < (0.9 if form == "and" else 0.02)
    whole = parts.all(axis=1) if form == "and" else parts.any(axis=1)
    present = parts.any(axis=1)
    sign = np.ones(n_parts, dtype=np.int64)
    assert form_of(parts[present], whole[present], sign, len(parts)) == form


def test_form_of_many_uneven_parts():
    rng = np.random.default_rng(4)
    parts = rng.random((4000, 20)) < 0.3
    whole = parts @ rng.uniform(0.5, 1.5, 20) > 7
    assert form_of(parts, whole, np.ones(20, dtype=np.int64), 4000) == "sum-threshold"


@pytest.mark.parametrize("offset", [3, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("way", ["at once", "sparse", "blocks"])
def test_an_offset_costs_nothing(monkeypatch, offset, way):
    rng = np.random.default_rng(2)
    parts = rng.standard_normal((3000, 30))
    true = rng.permuted(np.tile(np.arange(30)[:, None] < 4, (1, 6)), axis=0)
    wholes = parts @ true + 0.3 * rng.standard_normal((3000, 6))
    parts, wholes = parts + offset, wholes - offset
    if offset == 3:
        parts[:20] = 0.0
    if way == "blocks":
        found = recover_edges_stream(
            (parts[a : a + 500], wholes[a : a + 500]) for a in range(0, 3000, 500)
        )
    else:
        if way == "sparse":
            monkeypatch.setattr("compute.graphs.recovery._DENSE_CELLS", 0)
            monkeypatch.setattr("compute.graphs.recovery._SPARSE_SHARE", 2.0)
            parts, wholes = sparse.csr_array(parts), sparse.csr_array(wholes)
        found = recover_edges(parts, wholes)
    assert (dense(found.adjacency) == true).all()
