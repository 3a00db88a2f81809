from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import sparse
from threadpoolctl import threadpool_info, threadpool_limits

from compute.graphs import recover_edges
from compute.graphs.decision import fit_threshold
from compute.graphs.evidence import weigh
from compute.worlds import SelectionWorld


def f1(found, true):
    found = found.toarray() if sparse.issparse(found) else found
    return 2 * (found & true).sum() / (found.sum() + true.sum())


@pytest.fixture(scope="module")
def rows():
    return SelectionWorld.vectors(sizes=(100, 30, 6), seed=11).sample(5000)


@pytest.fixture(scope="module")
def recovery(rows):
    return recover_edges(rows.codes[0], rows.codes[1])


@pytest.mark.parametrize("style", ["zero-inflated", "binary", "continuous"])
@pytest.mark.parametrize("n", [5_000, 20_000])
def test_edges_of_selection_worlds(style, n):
    world = SelectionWorld.vectors(sizes=(80, 24, 6), seed=21, code_style=style)
    codes = world.sample(n).codes
    assert f1(recover_edges(codes[0], codes[1]).adjacency, world.edges[0]) >= 0.97
    assert f1(recover_edges(codes[1], codes[2]).adjacency, world.edges[1]) >= 0.9


def test_matrices_agree_with_lists(recovery):
    e = recovery
    assert e.adjacency.sum() == e.n_edges
    assert ((e.strength > 0) == e.adjacency).all()
    assert (e.strength[e.part, e.whole] == e.edge_strength).all()
    assert ((e.sign != 0) == e.adjacency).all()
    assert [(x.part, x.whole) for x in e.edges()] == list(zip(e.part, e.whole))
    assert all((e.parents(j) == np.flatnonzero(e.adjacency[:, j])).all() for j in range(30))
    assert e.invariant is None


def test_evidence_is_in_range(recovery):
    e = recovery
    assert ((e.edge_strength > 0) & (e.edge_strength <= 1)).all()
    assert ((e.edge_confidence >= 0.4) & (e.edge_confidence <= 1)).all()
    assert ((e.edge_stability >= 0) & (e.edge_stability <= 1)).all()
    assert np.mean(e.edge_stability) > 0.9
    assert ((e.unexplained >= 0) & (e.unexplained <= 1)).all()


@pytest.mark.parametrize("seed", [1, 2])
def test_stability_repeats_the_whole_selection(seed):
    """It foretells how many edges an independent repetition on halves finds again, which is far
    fewer than pass where the parents are given and only weighed again."""
    n = 1000
    world = SelectionWorld.vectors(sizes=(80, 24, 6), seed=seed, noise=1.0, correlation=0.8)
    parts, wholes = world.sample(n).codes[:2]
    found = recover_edges(parts, wholes)
    rng = np.random.default_rng(seed)
    halves = [half for _ in range(3) for half in np.split(rng.permutation(n), 2)]
    again = [recover_edges(parts[half], wholes[half]).adjacency for half in halves]
    repeated = np.mean([edges[found.part, found.whole] for edges in again])
    fixed = np.mean([kept_with_its_parents(found, parts[h], wholes[h]) for h in halves])
    assert found.edge_stability.mean() == pytest.approx(repeated, abs=0.08)
    assert found.edge_stability.mean() < fixed - 0.2


def kept_with_its_parents(found, parts, wholes):
    """The share of edges as strong as the weakest that was found, by their wholes' own parents."""
    bar, kept = found.edge_strength.min(), []
    for j in np.unique(found.whole):
        values = parts[:, found.parents(j)].astype(np.float32)
        controls = np.delete(wholes, j, axis=1).sum(axis=1, keepdims=True).astype(np.float32)
        evidence, _ = weigh(values, controls, wholes[:, j].astype(np.float32), len(parts), True)
        kept += (evidence.strength >= bar).tolist()
    return np.mean(kept)


def test_same_data_same_result(rows, recovery):
    again = recover_edges(rows.codes[0], rows.codes[1])
    assert (again.strength == recovery.strength).all()
    assert (again.confidence == recovery.confidence).all()


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_array, sparse.coo_array])
def test_sparse_input_gives_the_same_edges(rows, recovery, make):
    found = recover_edges(make(rows.codes[0]), make(rows.codes[1]))
    assert (found.adjacency == recovery.adjacency).all()


@pytest.mark.parametrize("kind", [bool, np.int8, np.uint16, np.float16, np.float64])
def test_number_types(kind):
    world = SelectionWorld.vectors(sizes=(40, 12, 4), seed=9, code_style="binary")
    codes = world.sample(3000).codes
    found = recover_edges(codes[0].astype(kind), codes[1].astype(kind))
    assert f1(found.adjacency, world.edges[0]) >= 0.95


def test_scale_and_offset_do_not_matter(rows, recovery):
    large, small = rows.codes[1] * np.float64(1e30), rows.codes[0] * np.float64(1e-30)
    assert (recover_edges(small, large).adjacency == recovery.adjacency).all()
    normal = np.random.default_rng(0).standard_normal((3000, 10))
    whole = (normal[:, :2].sum(axis=1) + 0.1 * normal[:, 9])[:, None]
    found = recover_edges(normal[:, :9] + 1e4, whole - 1e4)
    assert np.flatnonzero(found.adjacency[:, 0]).tolist() == [0, 1]


def test_blas_threads_are_as_before(rows):
    def threads():
        return [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]

    with threadpool_limits(2, user_api="blas"):
        before = threads()
        with ThreadPoolExecutor(2) as pool:
            runs = [pool.submit(recover_edges, *rows.codes[:2]) for _ in range(2)]
            assert runs[0].result().n_edges == runs[1].result().n_edges
        assert threads() == before


def test_inhibition_has_a_negative_sign():
    x = (np.random.default_rng(1).random((5000, 12)) < 0.4).astype(float)
    whole = (x[:, 0] > 0) & (x[:, 5] == 0)
    found = recover_edges(x, whole[:, None])
    assert np.flatnonzero(found.adjacency[:, 0]).tolist() == [0, 5]
    assert found.sign[[0, 5], 0].tolist() == [1, -1]


@pytest.mark.parametrize("n", [5_000, 40_000])
def test_wholes_coupled_by_selection_do_not_inherit_parts(n):
    rng = np.random.default_rng(2)
    parts = rng.random((12 * n, 9)) < 0.3
    wholes = np.stack([parts[:, 3 * j : 3 * j + 2].all(axis=1) for j in range(3)], axis=1)
    wholes ^= rng.random(wholes.shape) < 0.03
    # Rows are kept where some whole is there, so each whole tells about the parts of the others.
    kept = np.flatnonzero(wholes.any(axis=1))[:n]
    parts, wholes = parts[kept], wholes[kept]
    assert abs(np.corrcoef(parts[:, 0], wholes[:, 1])[0, 1]) > 0.15
    true = np.zeros((9, 3), dtype=bool)
    for j in range(3):
        true[3 * j : 3 * j + 2, j] = True
    assert (recover_edges(parts, wholes).adjacency == true).all()


@pytest.mark.parametrize("n", [200, 1000, 5000])
@pytest.mark.parametrize("style", ["normal", "rare", "heavy", "one-hot"])
def test_independent_levels_have_no_edges(n, style):
    rng = np.random.default_rng([n, len(style)])

    def draw(q):
        if style == "normal":
            return rng.standard_normal((n, q))
        if style == "rare":
            return rng.random((n, q)) < 0.01
        if style == "heavy":
            return (rng.random((n, q)) < 0.1) * rng.lognormal(0, 2, (n, q))
        return np.eye(q)[rng.integers(0, q, n)]

    assert recover_edges(draw(120), draw(40)).n_edges == 0


def test_shuffled_rows_have_no_edges(rows):
    order = np.random.default_rng(3).permutation(len(rows.codes[0]))
    assert recover_edges(rows.codes[0][order], rows.codes[1]).n_edges == 0


def test_more_rows_do_not_make_the_graph_worse():
    world = SelectionWorld.vectors(sizes=(60, 20, 5), seed=13, correlation=0.6)
    codes = world.sample(40_000).codes
    few, many = (recover_edges(codes[0][:n], codes[1][:n]) for n in (5_000, 40_000))
    assert f1(many.adjacency, world.edges[0]) >= f1(few.adjacency, world.edges[0]) - 1e-9


def test_confidence_is_calibrated():
    right, sure = [], []
    for seed in range(3):
        world = SelectionWorld.vectors(sizes=(80, 24, 6), seed=seed, noise=0.5, correlation=0.7)
        codes = world.sample(2_000).codes
        found = recover_edges(codes[0], codes[1])
        right.append(world.edges[0][found.part, found.whole])
        sure.append(found.edge_confidence >= 0.9)
    right, sure = np.concatenate(right), np.concatenate(sure)
    assert right[sure].mean() >= 0.9


def test_what_is_missing_among_the_parts_costs_confidence(rows, recovery):
    """With every second part unseen, those that go along with it stand in for it."""
    found = recover_edges(rows.codes[0][:, ::2], rows.codes[1])
    assert np.median(found.unexplained) > np.median(recovery.unexplained)
    assert (found.edge_confidence >= 0.9).mean() < (recovery.edge_confidence >= 0.9).mean()
    shares = np.geomspace(1e-4, 1, 40)
    threshold = fit_threshold(found.edge_strength)
    sure, less, least = (threshold.confidence(shares, u) for u in (0.0, 0.3, 0.9))
    assert ((sure >= less) & (less >= least)).all()
    assert (np.diff(least) >= 0).all()


def test_dead_and_constant_columns_take_part_in_no_edge(rows):
    parts, wholes = rows.codes[0].copy(), rows.codes[1].copy()
    parts[:, 3], parts[:, 4], wholes[:, 0], wholes[:, 1] = 0.0, 7.5, 0.0, -2.0
    found = recover_edges(parts, wholes)
    assert not found.adjacency[3:5].any()
    assert not found.adjacency[:, :2].any()
    assert found.form[0] == "none"
    assert found.unexplained[0] == 1.0
    assert np.isfinite(found.edge_strength).all()


def test_all_zero_codes_have_no_edges():
    assert recover_edges(np.zeros((500, 5)), np.zeros((500, 3))).n_edges == 0
    assert recover_edges(sparse.csr_array((500, 5)), sparse.csr_array((500, 3))).n_edges == 0


def test_a_copy_is_a_single_strong_parent(rows):
    wholes = rows.codes[0][:, [7, 2]]
    found = recover_edges(rows.codes[0], wholes)
    assert found.part.tolist() == [7, 2]
    assert found.form.tolist() == ["single", "single"]
    assert found.edge_strength.min() > 0.95


def test_one_part_and_one_whole():
    x = np.random.default_rng(4).standard_normal((400, 1))
    assert recover_edges(x, x + 0.1).n_edges == 1


def test_sparse_path_agrees_with_dense_path(monkeypatch, rows, recovery):
    monkeypatch.setattr("compute.graphs.recovery._DENSE_CELLS", 0)
    monkeypatch.setattr("compute.graphs.recovery._SPARSE_SHARE", 1.0)
    monkeypatch.setattr("compute.graphs.result.DENSE_CELLS", 0)
    found = recover_edges(sparse.csr_array(rows.codes[0]), sparse.csr_array(rows.codes[1]))
    assert found.is_sparse
    both = found.adjacency.toarray() & recovery.adjacency
    assert both.sum() >= 0.97 * max(found.n_edges, recovery.n_edges)


@pytest.mark.parametrize(
    ("parts", "wholes", "message"),
    [
        (np.ones((200, 3)), np.ones((199, 2)), "200 rows and wholes has 199"),
        (np.ones((99, 3)), np.ones((99, 2)), "99 rows"),
        (np.full((200, 3), np.nan), np.ones((200, 2)), "parts holds NaN"),
        (np.ones((200, 3)), np.full((200, 2), np.inf), "wholes holds NaN or inf"),
        (np.ones(200), np.ones((200, 2)), "parts has shape"),
        (np.ones((200, 3)), np.ones((200, 0)), "wholes has shape"),
        (np.full((200, 3), "a"), np.ones((200, 2)), "parts holds <U1"),
        (np.ones((200, 3), dtype=complex), np.ones((200, 2)), "complex128"),
    ],
)
def test_bad_input_is_refused_by_name(parts, wholes, message):
    with pytest.raises(ValueError, match=message):
        recover_edges(parts, wholes)


def test_nan_in_sparse_codes_is_refused():
    parts = sparse.random_array((200, 5), density=0.2, rng=0).tocsr()
    parts.data[3] = np.nan
    with pytest.raises(ValueError, match="parts holds NaN"):
        recover_edges(parts, np.ones((200, 2)))
