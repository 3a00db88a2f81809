import numpy as np
import pytest
from scipy import sparse

from compute.graphs import recover_edges, recover_edges_stream
from compute.worlds import SelectionWorld


@pytest.fixture(scope="module")
def codes():
    return SelectionWorld.vectors(sizes=(60, 20, 5), seed=7).sample(6000).codes


def blocks_of(parts, wholes, size):
    for a in range(0, len(parts), size):
        yield sparse.csr_array(parts[a : a + size]), sparse.csr_array(wholes[a : a + size])


def test_blocks_give_the_edges_of_the_whole(codes):
    at_once = recover_edges(codes[0], codes[1])
    streamed = recover_edges_stream(blocks_of(codes[0], codes[1], 700))
    assert (streamed.adjacency == at_once.adjacency).all()
    np.testing.assert_allclose(streamed.strength, at_once.strength, atol=5e-3)


def test_a_sample_of_rows_is_kept(codes):
    streamed = recover_edges_stream(blocks_of(codes[0], codes[1], 500), rows_kept=3000)
    assert streamed.n_rows == 3000
    at_once = recover_edges(codes[0], codes[1])
    assert (streamed.adjacency & at_once.adjacency).sum() >= 0.95 * at_once.n_edges


def test_environments_travel_with_their_blocks(codes):
    labels = np.arange(6000) % 2
    triples = (
        (codes[0][a : a + 2000], codes[1][a : a + 2000], labels[a : a + 2000])
        for a in range(0, 6000, 2000)
    )
    streamed = recover_edges_stream(triples)
    assert streamed.edge_invariant.mean() > 0.95


def test_bad_blocks_are_refused():
    with pytest.raises(ValueError, match="0 rows in all"):
        recover_edges_stream([])
    with pytest.raises(ValueError, match="same sample"):
        recover_edges_stream([(np.ones((200, 2)), np.ones((201, 2)))])
    with pytest.raises(ValueError, match="block 1 has 3 columns"):
        recover_edges_stream([(np.eye(200), np.eye(200)), (np.ones((9, 3)), np.ones((9, 200)))])
    with pytest.raises(ValueError, match="rows_kept=5"):
        recover_edges_stream([], rows_kept=5)
