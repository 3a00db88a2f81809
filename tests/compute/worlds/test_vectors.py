import numpy as np
import pytest

from compute.worlds import GATES, SelectionWorld


@pytest.fixture(scope="module")
def world():
    return SelectionWorld.vectors(sizes=(40, 16, 4), dim=24, seed=3)


def test_rows_are_aligned_and_typed(world):
    rows = world.sample(700)
    assert [x.shape for x in rows.activations] == [(700, 24)] * 3
    assert [c.shape for c in rows.codes] == [(700, 40), (700, 16), (700, 4)]
    assert [e.shape for e in rows.edges] == [(40, 16), (16, 4)]
    assert all(x.dtype == np.float32 for x in rows.activations + rows.codes)
    assert all((c >= 0).all() for c in rows.codes)


def test_a_seed_fixes_world_and_rows_bit_for_bit(world):
    again = SelectionWorld.vectors(sizes=(40, 16, 4), dim=24, seed=3)
    assert all((a == b).all() for a, b in zip(world.edges, again.edges))
    a, b, c = world.sample(300, seed=1), again.sample(300, seed=1), again.sample(300, seed=2)
    assert all((x == y).all() for x, y in zip(a.activations, b.activations))
    assert (a.codes[0] != c.codes[0]).any()


def test_wholes_have_as_many_parts_as_asked(world):
    counts = np.concatenate([e.sum(axis=0) for e in world.edges])
    assert counts.min() >= 2
    assert counts.max() <= 5


@pytest.mark.parametrize("gate", GATES)
def test_a_whole_follows_its_parts_alone(gate):
    world = SelectionWorld.vectors(sizes=(30, 6, 3), seed=1, gates=(gate,), noise=0.0, selection=0)
    codes = world.sample(4000).codes
    for j, whole in enumerate(world.wholes[0]):
        drive = whole.drive(codes[0][:, list(whole.parts)].astype(float))
        np.testing.assert_array_equal(drive > 1e-5, codes[1][:, j] > 1e-5)


def test_selection_keeps_rows_with_a_high_top_level():
    options = {"sizes": (30, 10, 4), "seed": 2, "selected_fraction": 0.2}
    free = SelectionWorld.vectors(**options, selection=0.0).sample(3000).codes[-1].sum(axis=1)
    half = SelectionWorld.vectors(**options, selection=0.5).sample(3000).codes[-1].sum(axis=1)
    full = SelectionWorld.vectors(**options, selection=1.0).sample(3000).codes[-1].sum(axis=1)
    assert free.mean() < half.mean() < full.mean()
    assert full.min() >= np.quantile(free, 0.75)


def test_activations_are_codes_along_unit_directions(world):
    rows = world.sample(500)
    for x, code, directions in zip(rows.activations, rows.codes, world.directions):
        np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1.0, rtol=1e-5)
        assert np.std(x - code @ directions) == pytest.approx(world.activation_noise, rel=0.05)


def test_nonlinear_mixing_is_not_linear_in_the_codes():
    left = {}
    for mixing in ("linear", "nonlinear"):
        rows = SelectionWorld.vectors(sizes=(20, 8, 3), dim=32, mixing=mixing).sample(2000)
        x, code = rows.activations[0], np.hstack([rows.codes[0], np.ones((2000, 1))])
        left[mixing] = (x - code @ np.linalg.lstsq(code, x, rcond=None)[0]).var()
    assert left["nonlinear"] > 5 * left["linear"]


@pytest.mark.parametrize("style", ["binary", "continuous", "zero-inflated"])
def test_code_styles(style):
    codes = SelectionWorld.vectors(sizes=(20, 8, 3), seed=4, code_style=style).sample(1000).codes[0]
    values = np.unique(codes)
    if style == "binary":
        assert values.tolist() == [0.0, 1.0]
    else:
        assert len(values) > 100
        assert ((codes == 0).mean() > 0.5) == (style == "zero-inflated")


def test_common_causes_make_their_parts_dependent():
    world = SelectionWorld.vectors(sizes=(60, 10, 3), seed=5, common_cause=0.5, selection=0.0)
    codes = world.sample(6000).codes
    assert world.kinds[0].count("common_cause") == 5
    assert set(world.kinds[1]) == {"selection"}
    for j, whole in enumerate(world.wholes[0][:5]):
        parts = codes[0][:, list(whole.parts)] > 0
        absent = codes[1][:, j] == 0
        off_diagonal = ~np.eye(parts.shape[1], dtype=bool)
        assert np.corrcoef(parts.T)[off_diagonal].mean() > 0.15
        assert np.corrcoef(parts[absent].T)[off_diagonal].mean() < 0.1


def test_variant_edges_are_severed_in_late_environments():
    world = SelectionWorld.vectors(
        sizes=(30, 8, 3), seed=6, environments=2, variant_edges=0.9, selection=0.0
    )
    rows = world.sample(8000)
    assert 0 < world.variant.sum() <= 8
    assert (world.variant <= world.edges[0]).all()
    assert set(np.unique(rows.environment)) == {0, 1}
    for part, whole in zip(*np.nonzero(world.variant)):
        early, late = (
            abs(np.corrcoef(rows.codes[0][mine, part], rows.codes[1][mine, whole])[0, 1])
            for mine in (rows.environment == 0, rows.environment == 1)
        )
        assert late < early


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sizes": (20,)}, "sizes"),
        ({"parts_per_whole": (1, 3)}, "parts_per_whole"),
        ({"density": 0.9}, "density"),
        ({"correlation": 1.0}, "correlation"),
        ({"selection": 2.0}, "selection"),
        ({"gates": ("xor",)}, "gates"),
        ({"code_style": "ternary"}, "code_style"),
        ({"variant_edges": 0.2}, "environments"),
        ({"common_cause": 1.0, "sizes": (20, 19, 3)}, "common_cause"),
    ],
)
def test_bad_options_are_refused_by_name(options, named):
    with pytest.raises(ValueError, match=named):
        SelectionWorld.vectors(**options)


def test_no_rows_are_refused(world):
    with pytest.raises(ValueError, match="n=0"):
        world.sample(0)
