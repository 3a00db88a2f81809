"""Edges tested by intervention: effects are those of steering, and planted edges are told apart."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from compute.models.language import Context, LanguageModel
from compute.steering import ConceptLevel, Edit, steer, trace
from compute.verification import (
    correlation_edges,
    faithfulness,
    open_bench,
    shuffled_edges,
    verify_edges,
)
from compute.verification.language_bench import LanguageBench
from storage.graph.concept_graph import ConceptGraph
from tests.compute.steering.conftest import quiet, random_dictionary
from tests.tiny_models import tiny_language_model

N = 48


@pytest.fixture(scope="module")
def bench():
    """Two levels that read one residual stream by one dictionary: concept i is made of part i."""
    torch.set_num_threads(1)
    model = tiny_language_model("llama")
    dictionary = random_dictionary(32)
    levels = (
        ConceptLevel(1, "lower", "layers.0.output", dictionary),
        ConceptLevel(2, "upper", "layers.1.output", dictionary),
    )
    rng = np.random.default_rng(0)
    items = [Context(i, 0, rng.integers(4, 32, size=12)) for i in range(60)]
    facts = SimpleNamespace(pad_token=3, special_tokens=(1, 2, 3), n_layers=3)
    adapter = SimpleNamespace(model=model, facts=facts, bos=None)
    assert hasattr(LanguageModel, "extract")
    from compute.steering.places import Target

    return LanguageBench(adapter, Target.of(model), levels, items, 16)


def planted():
    """For every whole its own part, and one that is not its part."""
    pairs = [(i, i) for i in range(N)] + [(i, (i + 7) % N) for i in range(N)]
    return ConceptGraph.from_columns(
        {"level": [0] + [1] * N + [2] * N, "index": [0, *range(N), *range(N)]},
        {
            "source": ["0:0"] + [f"1:{i}" for i, _ in pairs],
            "target": ["1:0"] + [f"2:{j}" for _, j in pairs],
            "strength": [1.0] * (2 * N + 1),
            "confidence": [1.0] * (2 * N) + [0.5],
        },
    )


def test_planted_edges_are_confirmed_and_others_are_not(bench):
    result = verify_edges(bench, planted(), samples=10)
    edges = result.graph.edges.to_pylist()
    tested = [e for e in edges if e["effect"] is not None]
    share = {
        kind: np.mean([e["verdict"] == "confirmed" for e in tested if same(e) == kind])
        for kind in (True, False)
    }
    assert len(tested) > N
    assert share[True] >= 0.8
    assert share[False] <= 0.1
    assert result.random.confirmed <= 0.1
    assert all(e["effect_low"] <= e["effect"] <= e["effect_high"] for e in tested)
    assert result.edges.n == len(tested)
    observed = [e for e in edges if e["source"] == "0:0"]
    assert [e["verdict"] for e in observed] == ["untested"]


def same(edge):
    return edge["source"][2:] == edge["target"][2:]


def test_an_effect_is_what_steering_does(bench):
    """do(part = high) − do(part = 0), by hand with `steer`, in one sample."""
    pool = bench.pool
    part = int(np.diff(pool.columns(1).indptr).argmax())
    item = int(pool.active_items(1, part)[0])
    code = pool.code(1, part, np.array([item]))[0]
    where = (code > 0) & pool.kept.reshape(pool.n_items, -1)[item]
    ids = torch.from_numpy(bench._ids[item])[None]
    places = np.flatnonzero(where).tolist()
    read = {}
    for name, value in (("high", 9.0), ("low", 0.0)):
        edit = Edit.set(1, part, value, positions=places)
        chosen = {2: list(range(N))}
        with (
            steer(bench._model, bench.levels, [edit]),
            trace(bench._model, bench.levels, chosen) as t,
            torch.no_grad(),
        ):
            bench._model(ids)
        read[name] = torch.stack([t.codes(2, c)[0] for c in range(N)], dim=-1)
    up = np.where(where, 9.0 - code, 0).astype(np.float32)
    down = np.where(where, -code, 0).astype(np.float32)
    x = bench.intervene(np.array([item, item]), 1, np.array([part, part]), np.stack([up, down]), 2)
    codes = bench.levels[1].dictionary.encode(x)
    torch.testing.assert_close(codes[0], read["high"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(codes[1], read["low"], rtol=1e-3, atol=1e-3)


def test_a_whole_graph_is_faithful_and_an_empty_one_is_not(bench):
    whole = csr_matrix(np.ones((N, N), dtype=bool))
    graphs = {
        "whole": {1: whole},
        "identity": {1: csr_matrix(np.eye(N, dtype=bool))},
        "empty": {1: csr_matrix((N, N), dtype=bool)},
    }
    found = faithfulness(bench, graphs)
    assert found["whole"].faithfulness.value == pytest.approx(1, abs=1e-3)
    assert found["whole"].completeness.value == pytest.approx(0, abs=0.3)
    assert found["empty"].faithfulness.value == pytest.approx(0, abs=1e-6)
    assert found["empty"].completeness.value == pytest.approx(1, abs=1e-6)
    assert found["empty"].kept == 0 < found["identity"].kept < found["whole"].kept == 1
    interval = found["identity"].faithfulness
    assert interval.low <= interval.value <= interval.high


def test_compared_graphs_have_the_same_size():
    rng = np.random.default_rng(0)
    edges = csr_matrix(rng.random((30, 20)) < 0.2)
    shuffled = shuffled_edges(edges, rng)
    assert (shuffled.sum(0) == edges.sum(0)).all()
    assert (shuffled != edges).nnz
    parts, noise = rng.random((500, 30)), rng.random((500, 20))
    wholes = parts @ edges.toarray() + 0.1 * noise
    found = correlation_edges(edges, csr_matrix(parts), csr_matrix(wholes))
    assert (found.sum(0) == edges.sum(0)).all()
    assert (found != edges).nnz == 0


def test_a_pipeline_on_the_bench():
    from compute.models.denoisers import Unconditional
    from compute.models.diffusion import DiffusionModel, Image
    from compute.models.patches import Grid

    pipeline = quiet("ddim")
    adapter = DiffusionModel.__new__(DiffusionModel)
    adapter.__dict__.update(
        pipeline=pipeline,
        denoiser=Unconditional(pipeline.unet, 8),
        grid=Grid(4, 4),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    levels = (
        ConceptLevel(1, "late", "up_blocks.0", random_dictionary(32), timestep=100),
        ConceptLevel(2, "early", "mid_block", random_dictionary(32, seed=1), timestep=700),
    )
    rng = np.random.default_rng(0)
    images = [Image(i, rng.random((8, 8)), seed=i) for i in range(12)]
    bench = open_bench(adapter, levels, images, batch_size=8)
    pool = bench.pool
    assert pool.codes[1].shape == pool.codes[2].shape == (12 * 16, N)
    items, zero = np.array([3, 3]), np.zeros((2, 16), np.float32)
    plain = bench.intervene(items, 1, np.array([5, 5]), zero, 2)
    assert torch.equal(plain[0], plain[1])
    one = zero.copy()
    one[1, 0] = 20.0
    changed = bench.intervene(items, 1, np.array([5, 5]), one, 2)
    assert torch.equal(changed[0], plain[0])
    assert not torch.equal(changed[1], plain[1])
    options = {"samples": 3, "controls": 10, "max_parts": 5}
    result = verify_edges(bench, planted(), **options)
    assert result.edges.n > 0
    assert result.graph.equals(verify_edges(bench, planted(), **options).graph)
    full = {1: csr_matrix(np.ones((N, N), dtype=bool))}
    assert faithfulness(bench, {"whole": full})["whole"].faithfulness.value == pytest.approx(
        1, abs=0.1
    )

    beside = replace(levels[1], timestep=100, hookpoint="mid_block")
    bench = open_bench(adapter, (levels[0], beside), images, batch_size=8)
    assert bench.direction(1) == "up"
    # The middle block comes before the upward one: what is set there cannot reach it.
    assert not torch.equal(*bench.intervene(items, 2, np.array([5, 5]), one, 1))
    assert torch.equal(*bench.intervene(items, 1, np.array([5, 5]), one, 2))


def test_too_few_samples_are_refused(bench):
    with pytest.raises(ValueError, match="min_samples"):
        verify_edges(bench, planted(), samples=1)
    with pytest.raises(ValueError, match="two levels"):
        faithfulness(replace_levels(bench), {})


def replace_levels(bench):
    other = object.__new__(type(bench))
    other.__dict__.update(bench.__dict__ | {"levels": (replace(bench.levels[0]),)})
    return other
