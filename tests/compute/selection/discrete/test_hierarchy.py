import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from compute.selection import DiscreteHierarchy
from compute.worlds.table_world import TableWorld


@pytest.fixture(scope="module")
def fitted():
    world = TableWorld.hierarchy(3, n_loners=2, whole_states=(2, 3), seed=11)
    parts = world.sample(20_000, seed=1).parts
    return world, parts, DiscreteHierarchy().fit(parts)


def partition(parents):
    groups = {tuple(np.flatnonzero(parents == k)) for k in np.unique(parents[parents >= 0])}
    return groups, set(np.flatnonzero(parents < 0).tolist())


def test_structure_and_cardinalities(fitted):
    world, _, model = fitted
    assert partition(model.parents_[0]) == partition(world.parents[0])
    for part, whole in enumerate(world.parents[0]):
        if whole >= 0:
            found = model.cardinalities_[0][model.parents_[0][part]]
            assert found == world.cardinalities[0][whole]


def test_tables_up_to_the_order_of_states(fitted):
    world, _, model = fitted
    for whole in range(3):
        members = np.flatnonzero(world.parents[0] == whole)
        pairs = [(world.conditionals[0][i], model.conditionals_[0][i]) for i in members]
        distance = sum(0.5 * np.abs(t[:, None] - f[None]).sum(axis=2) for t, f in pairs)
        rows, columns = linear_sum_assignment(distance)
        assert distance[rows, columns].mean() / len(members) < 0.05


def test_shapes_and_sums(fitted):
    _, parts, model = fitted
    assert model.n_features_in_ == parts.shape[1] == len(model.conditionals_[0])
    for whole, table in zip(model.parents_[0], model.conditionals_[0]):
        assert len(table) == (1 if whole < 0 else model.cardinalities_[0][whole])
        np.testing.assert_allclose(table.sum(axis=1), 1.0)
    for prior in model.priors_[0]:
        assert prior.sum() == pytest.approx(1.0)


def test_posterior_is_calibrated_and_predicts_the_wholes(fitted):
    world, parts, model = fitted
    drawn = world.sample(4_000, seed=9)
    states, posterior = model.predict(drawn.parts), model.posterior(drawn.parts)
    assert states[0].shape == (4_000, 3)
    for k in range(3):
        np.testing.assert_array_equal(posterior[0][k].argmax(axis=1), states[0][:, k])
        truth = drawn.wholes[0][:, world.parents[0][np.flatnonzero(model.parents_[0] == k)[0]]]
        table = np.zeros((posterior[0][k].shape[1], truth.max() + 1))
        np.add.at(table, (states[0][:, k], truth), 1)
        rows, columns = linear_sum_assignment(-table)
        accuracy = table[rows, columns].sum() / 4_000
        assert accuracy == pytest.approx(posterior[0][k].max(axis=1).mean(), abs=0.05)
    assert model.score(drawn.parts) == pytest.approx(model.score(parts), abs=0.3)


def test_same_seed_same_model_and_labels_may_be_any_integers(fitted):
    _, parts, model = fitted
    again = DiscreteHierarchy().fit(parts * 7 - 3)
    np.testing.assert_array_equal(again.parents_[0], model.parents_[0])
    for one, other in zip(again.conditionals_[0], model.conditionals_[0]):
        np.testing.assert_array_equal(one, other)
    assert again.categories_[0][0] == -3
    with pytest.raises(ValueError, match="not seen"):
        again.predict(parts)


def test_two_levels_of_wholes():
    world = TableWorld.hierarchy((6, 2), whole_states=(2, 3), separation=0.5, seed=1)
    model = DiscreteHierarchy().fit(world.sample(20_000).parts)
    assert partition(model.parents_[0]) == partition(world.parents[0])
    assert len(model.parents_) == 2
    assert len(model.conditionals_[1]) == 6
    assert len(model.predict(world.sample(5).parts)) == 2


def test_independent_parts_have_no_wholes():
    parts = np.random.default_rng(0).integers(0, 3, size=(2_000, 6))
    parts[:, 5] = 4
    model = DiscreteHierarchy().fit(parts)
    assert (model.parents_[0] == -1).all()
    assert model.cardinalities_[0].size == 0
    assert model.predict(parts) == ()
    assert model.score(parts) == pytest.approx(-5 * np.log(3), abs=0.02)


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ([1, 2, 3], "shape"),
        ([[1, 2]], "at least 2 rows"),
        ([[0.5, 1], [1, 2]], "0.5"),
        ([[np.nan, 1], [1, 2]], "nan"),
        ([["a"], ["b"]], "type"),
    ],
)
def test_bad_tables_are_refused(table, word):
    with pytest.raises(ValueError, match=word):
        DiscreteHierarchy().fit(table)


def test_estimator_contract():
    from sklearn.base import clone

    model = DiscreteHierarchy(max_states=5, seed=2)
    assert clone(model).get_params() == model.get_params()
    assert model.set_params(seed=3).seed == 3
    assert "max_states=5" in repr(model)
    with pytest.raises(ValueError, match="depth"):
        model.set_params(depth=3)
    with pytest.raises(ValueError, match="max_states is 1"):
        DiscreteHierarchy(max_states=1).fit([[0, 1], [1, 0]])
    with pytest.raises(ValueError, match="not fitted"):
        DiscreteHierarchy().predict([[0, 1], [1, 0]])
