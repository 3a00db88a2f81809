import json

import numpy as np
import pytest
from scipy import sparse

from compute.selection.assumptions import assumption_report
from compute.worlds import SelectionWorld


@pytest.fixture(scope="module")
def world():
    return SelectionWorld.vectors(sizes=(40, 12), dim=64, seed=0, correlation=0.0, density=0.1)


def report_of(world, edges=None, seed=0):
    codes = [sparse.csr_matrix(c) for c in world.sample(6000).codes]
    return assumption_report(codes, world.directions, edges or world.edges, seed)


def test_true_parts_and_edges_meet_the_assumptions(world):
    report = report_of(world)
    assert all(level.holds for level in report.sparsity)
    assert report.independence[0].holds
    assert report.selection[0].given_whole > report.selection[0].marginal
    assert any("minimal graph" in sentence for sentence in report.guarantees)


def test_missing_edges_are_noticed(world):
    kept = world.edges[0].copy()
    for whole in range(kept.shape[1]):
        kept[np.flatnonzero(kept[:, whole])[1:], whole] = False
    report = report_of(world, [kept])
    assert not report.independence[0].holds
    assert any("edges may be missing" in sentence for sentence in report.warnings)
    assert report.independence[0].leftover > report_of(world).independence[0].leftover


def test_a_common_cause_lacks_the_signature_of_selection():
    world = SelectionWorld.vectors(sizes=(40, 8), dim=64, seed=0, correlation=0.0, common_cause=1.0)
    finding = report_of(world).selection[0]
    assert not finding.holds
    assert finding.given_whole < finding.marginal


def test_anchors_are_dimensions_of_their_own():
    rng = np.random.default_rng(0)
    codes = (rng.random((500, 4)) < 0.2).astype(np.float32)
    own = np.kron(np.eye(4), np.ones(3)).astype(np.float32)
    mixed = rng.normal(size=(4, 12)).astype(np.float32)
    edges = [np.zeros((4, 4), bool)]
    report = assumption_report([codes, codes], [own, mixed], edges)
    assert report.anchors[0].anchored_share == 1.0
    assert report.anchors[1].anchored_share < 1.0


def test_it_is_json(world):
    codes = [np.ones((50, 40), np.float32), np.zeros((50, 12), np.float32)]
    report = assumption_report(codes, world.directions, world.edges)
    text = json.dumps(report.to_json(), allow_nan=False)
    assert json.loads(text)["selection"][0]["marginal"] is None


def test_shapes_must_fit(world):
    codes = [np.ones((5, 40)), np.ones((5, 12))]
    with pytest.raises(ValueError, match="entries"):
        assumption_report(codes, world.directions, [])
    with pytest.raises(ValueError, match="aligned rows"):
        assumption_report([codes[0], codes[1][:3]], world.directions, world.edges)
    with pytest.raises(ValueError, match=r"edges\[0\] have shape"):
        assumption_report(codes, world.directions, [world.edges[0].T])
    with pytest.raises(ValueError, match="decoder of level 2"):
        assumption_report(codes, [world.directions[0], world.directions[0]], world.edges)
