"""The whole path on a tiny real model: every step, every file, every promise of the store."""

import json

import numpy as np
import pytest
import torch

from compute.settings import LearnSettings, ResourceSettings
from flows.build import build
from storage.artifacts import Registry
from storage.locations import Location
from storage.tables.activations import ActivationSet
from storage.tables.codes import CodeSet

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]


def test_rows_are_what_the_model_says(built, recipe, tiny_model):
    """Re-run the model with plain transformers on sampled rows of the store."""
    from transformers import AutoModelForCausalLM

    from compute.inputs.corpus import Corpus

    stored = ActivationSet(built["extract"].location)
    corpus = Corpus.load(built["extract"].location)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    sample = stored.index("sample", 0, len(stored))
    position = stored.index("position", 0, len(stored))
    observed = stored.index("observed", 0, len(stored))
    for row in np.random.default_rng(0).choice(len(stored), 12, replace=False):
        window = next(
            w
            for w in corpus.windows
            if w.document == sample[row] and w.start <= position[row] < w.start + w.length
        )
        tokens = corpus.window_tokens(window)
        offset = position[row] - window.start
        assert observed[row] == tokens[offset]
        with torch.inference_mode():
            hidden = model(
                torch.tensor(tokens[None].astype(np.int64)), output_hidden_states=True
            ).hidden_states
        for level, state in (("layer-00", hidden[1]), ("layer-02", hidden[3])):
            np.testing.assert_allclose(
                stored.read(level, row, row + 1)[0], state[0, offset], rtol=1e-4, atol=1e-5
            )


def test_codes_decode_to_the_activations_within_the_reported_error(built):
    from compute.steps.learn import load_dictionaries

    stored, codes = ActivationSet(built["extract"].location), CodeSet(built["encode"].location)
    dictionaries = load_dictionaries(built["learn"].open())
    rows = stored.plan.split("held_out")
    kept = codes.kept(rows.start, rows.stop)
    for level, scores in built["learn"].summary["levels"].items():
        x = stored.read(level, rows.start, rows.stop)[kept].astype(np.float64)
        indices, values = codes.read(level, rows.start, rows.stop)
        decoded = (
            dictionaries[level].decode_sparse(indices[kept].astype(np.int64), values[kept]).numpy()
        )
        explained = 1 - ((x - decoded) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum()
        assert explained == pytest.approx(scores["explained_variance"], abs=1e-4)


def test_sae_lens_loads_every_dictionary(built, artifact, tmp_path):
    from sae_lens import SAE

    from compute.steps.learn import load_dictionaries

    ours = load_dictionaries(built["learn"].open())
    for level in artifact.manifest.levels:
        folder = tmp_path / level.name
        folder.mkdir()
        for name in ("cfg.json", "sae_weights.safetensors", "sparsity.safetensors"):
            (folder / name).write_bytes(artifact.read(f"dictionaries/{level.name}/{name}"))
        theirs = SAE.load_from_disk(str(folder))
        x = torch.randn(64, level.d)
        np.testing.assert_allclose(theirs.encode(x).detach(), ours[level.name].encode(x), atol=1e-5)
        np.testing.assert_allclose(theirs(x).detach(), ours[level.name](x), atol=1e-5)
        metadata = theirs.cfg.metadata
        assert metadata.level == level.level
        assert metadata.layer == {"layer-00": 0, "layer-02": 2}[level.name]


def test_the_artifact_says_where_it_comes_from(artifact, recipe):
    manifest = artifact.manifest
    assert manifest.version == 1
    lineage = manifest.lineage
    for key in ("model", "weights_hash", "data_hash", "settings", "packages", "upstream"):
        assert lineage[key], key
    assert lineage["model_dtype"] == "float32"
    for step in lineage["upstream"].values():
        assert step["made_on"]["threads"] >= 1
        assert step["made_on"]["workers"] >= 1
    assert "made_on" not in manifest.metrics["graph"]
    assert lineage["settings"]["learn"]["k"] == 4
    assert (lineage["model_dtype"], lineage["stored_dtype"]) == ("float32", "float32")
    preflight = lineage["preflight"]
    assert {"batch = single", "padded = unpadded", "hooked = unhooked"} <= set(preflight["proved"])
    assert not preflight["not_proved"]
    assert set(preflight["largest"]) == {"layer-00", "layer-02"}
    assert b"preflight.proved.batch = single" in artifact.read("README.md")
    assert {"torch", "zarr", "ray"} <= set(lineage["packages"])
    files = set(manifest.files)
    assert {
        "graph/graph.json",
        "graph/graph.graphml",
        "graph/nodes.parquet",
        "graph/edges.parquet",
        "assumptions.json",
        "report.html",
        "examples/layer-00.parquet",
        "README.md",
    } <= files
    artifact.verify()


def test_the_graph_is_readable_by_others(artifact):
    import io

    import networkx as nx
    import pandas as pd

    data = json.loads(artifact.read("graph/graph.json"))
    graph = nx.node_link_graph(data, edges="edges")
    again = nx.read_graphml(io.BytesIO(artifact.read("graph/graph.graphml")))
    nodes = pd.read_parquet(io.BytesIO(artifact.read("graph/nodes.parquet")))
    edges = pd.read_parquet(io.BytesIO(artifact.read("graph/edges.parquet")))
    assert len(graph) == len(again) == len(nodes)
    assert graph.number_of_edges() == again.number_of_edges() == len(edges)
    assert set(nodes["level"]) <= {0, 1, 2}
    for source, target in graph.edges:
        assert int(source.split(":")[0]) + 1 == int(target.split(":")[0])


def test_a_second_run_computes_nothing(built, recipe):
    again = build(recipe)
    assert again == built


def test_a_changed_setting_recomputes_only_what_follows(built, recipe, artifact):
    changed = recipe.model_copy(update={"learn": recipe.learn.model_copy(update={"k": 3})})
    again = build(changed)
    assert again["extract"] == built["extract"]
    for step in ("learn", "encode", "recover", "publish"):
        assert again[step].fingerprint != built[step].fingerprint
    registry = Registry((Location(recipe.store) / "artifacts").url)
    assert [v.version for v in registry.versions("tiny")] == [1, 2]
    assert registry.load("tiny").manifest.parent == 1
    assert registry.load("tiny").manifest.content_hash != artifact.manifest.content_hash
    registry = Registry((Location(recipe.store) / "artifacts").url)
    second = registry.load("tiny", again["publish"].summary["version"])
    assert second.manifest.parent == artifact.version
    before = set(artifact.graph.nodes["concept"].drop_null().to_pylist())
    after = set(second.graph.nodes["concept"].drop_null().to_pylist())
    told = second.manifest.metrics["continuity"]
    assert 0 < len(before & after) == told["concepts"]["kept"] + told["concepts"]["changed"]
    assert told["kept_share"] == pytest.approx(len(before & after) / len(before))


def test_a_hierarchical_selection_model_is_fitted_and_published(built, recipe):
    from compute.selection import StreamedSelectionModel
    from compute.steps.learn import load_dictionaries, load_model, read_recurrence
    from compute.steps.learn import read_norm_bounds as bounds_of

    learn = LearnSettings.model_validate({"n_concepts": 10, "seeds": 2})
    again = build(recipe.model_copy(update={"name": "together", "learn": learn}))
    assert again["extract"] == built["extract"]
    learned = again["learn"].open()
    found, fitted = load_dictionaries(learned), load_model(learned)
    stored = ActivationSet(again["extract"].location)
    n = len(stored.levels)
    model = StreamedSelectionModel([10] * n, [None] * n).fit_stored(stored, bounds_of(learned))
    assert fitted.checkpoint() == model.checkpoint()

    # Codes are the model's own, whatever the linear reading would say.
    codes = CodeSet(again["encode"].location)
    rows = [stored.read(level, 0, 64).astype(np.float32) for level in stored.levels]
    recurrence = read_recurrence(learned)
    for level, dictionary, own in zip(
        stored.levels, model.dictionaries_, model.transform(rows), strict=True
    ):
        assert found[level].architecture == "jumprelu"
        torch.testing.assert_close(found[level].directions, dictionary.directions)
        matrix = codes.matrix(level, 0, 64).toarray()
        strongest = np.sort(own, axis=1)[:, ::-1][:, : codes.plan.levels[0].k]
        np.testing.assert_allclose(matrix.max(1), strongest[:, 0], rtol=1e-4, atol=1e-5)
        scores = again["learn"].summary["levels"][level]
        assert scores["explained_variance"] > 0
        assert scores["reading_explained_variance"] <= scores["explained_variance"] + 0.02
        assert scores["agreement"] == pytest.approx(np.mean(recurrence[level]))
    registry = Registry((Location(recipe.store) / "artifacts").url)
    published = registry.load("together")
    assert [level.n_concepts for level in published.manifest.levels] == list(model.n_concepts_)
    nodes = published.graph.nodes
    shown = dict(zip(nodes["id"].to_pylist(), nodes["recurrence"].to_pylist(), strict=True))
    alive = [place for place in shown if place.startswith("1:")]
    assert alive
    for place in alive:
        assert shown[place] == recurrence[stored.levels[0]][int(place[2:])]


def test_an_equal_run_elsewhere_with_two_workers_has_the_same_content(built, recipe, tmp_path):
    two = ResourceSettings(workers=2)
    resources = recipe.resources.model_copy(update={"extract": two, "encode": two})
    elsewhere = {"store": str(tmp_path / "elsewhere"), "resources": resources}
    again = build(recipe.model_copy(update=elsewhere))
    for step in ("extract", "learn", "encode", "recover", "publish"):
        assert again[step].content_hash == built[step].content_hash, step


def test_prefect_shows_progress_results_and_report(built):
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = client.read_artifacts(limit=200)
    kinds = {artifact.key: artifact.type for artifact in found}
    assert kinds["results"] == "table"
    assert "report" in kinds
    for step in ("extract", "learn", "encode", "recover", "publish"):
        assert kinds[f"{step}-progress"] == "progress"
    progress = [a.data for a in found if a.key == "extract-progress"]
    assert 100 in [float(value) for value in progress]
