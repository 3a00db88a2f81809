"""What codes keep of a model's loss: all, nothing, and what is worked out by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from compute.dictionaries import fit_dictionary
from compute.models import load_adapter
from compute.models.denoisers import Unconditional
from compute.models.diffusion import DiffusionModel, Image, noise_of
from compute.models.language import Context
from compute.models.patches import Grid
from compute.steering import ConceptLevel
from compute.steering.places import Target
from compute.verification import open_bench, recovered_loss
from compute.verification.language_bench import LanguageBench
from compute.worlds import GrammarWorld
from tests.compute.steering.conftest import quiet, random_dictionary
from tests.tiny_models import tiny_language_model

ANY_NORM = {1: np.inf, 2: np.inf}


@pytest.fixture(scope="module")
def model():
    return tiny_language_model("llama")


@pytest.fixture(scope="module")
def bench(model):
    """Windows that the model itself has written, so that it knows how they go on."""
    dictionary = random_dictionary(32)
    levels = (
        ConceptLevel(1, "lower", "layers.0.output", dictionary),
        ConceptLevel(2, "upper", "layers.1.output", dictionary),
    )
    torch.manual_seed(0)
    ids = torch.randint(4, 32, (12, 1))
    with torch.inference_mode():
        for _ in range(13):
            likely = model(input_ids=ids).logits[:, -1, 4:].softmax(-1)
            ids = torch.cat([ids, 4 + torch.multinomial(likely, 1)], dim=1)
    # Windows of different lengths, one with a special token inside.
    ids = ids.clone()
    ids[3, 5] = 2
    items = [Context(i, 0, row[: 14 - i % 3].numpy()) for i, row in enumerate(ids)]
    facts = SimpleNamespace(pad_token=3, special_tokens=(1, 2, 3), n_layers=3)
    adapter = SimpleNamespace(model=model, facts=facts, bos=None)
    return LanguageBench(adapter, Target.of(model), levels, items, 5)


@pytest.fixture(scope="module")
def means(bench):
    seen = bench.read(np.arange(bench.n_items))
    real = torch.from_numpy(bench.data_rows(np.arange(bench.n_items)))
    return {number: x[real].mean(0).numpy() for number, x in seen.items()}


def as_they_are(rows):
    return rows


def halfway(means):
    return lambda rows: {n: (x + torch.from_numpy(means[n])) / 2 for n, x in rows.items()}


def test_all_is_recovered_by_the_rows_themselves_and_nothing_by_their_mean(bench, means):
    mean = lambda rows: {n: torch.from_numpy(means[n]).expand_as(x) for n, x in rows.items()}  # noqa: E731
    rebuilds = {"": as_they_are, "mean": mean, "half": halfway(means)}
    found = recovered_loss(bench, rebuilds, means=means, bounds=ANY_NORM)
    for number in (1, 2):
        assert found[""][number] == pytest.approx(1, abs=1e-4)
        assert found["mean"][number] == pytest.approx(0, abs=1e-6)
        assert found["mean"][number] < found["half"][number] < found[""][number]


def test_only_rows_of_data_are_replaced(model, bench, means):
    """By hand, with a hook of torch: special tokens, padding and outliers stay as they are."""
    everything = np.arange(bench.n_items)
    seen = bench.read(everything)
    norms = {n: torch.linalg.vector_norm(x, dim=-1) for n, x in seen.items()}
    bounds = {1: float(norms[1].median()), 2: np.inf}
    kept = torch.from_numpy(bench.data_rows(everything)) & (norms[1] <= bounds[1])
    assert 20 < kept.sum() < 100

    def loss(number, new):
        def put(module, args, output):
            rows = output[0] if isinstance(output, tuple) else output
            changed = torch.where(kept[..., None], new(rows), rows)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        handle = model.model.layers[number - 1].register_forward_hook(put)
        ids = torch.from_numpy(bench._ids)
        with torch.inference_mode():
            likely = model(input_ids=ids).logits.log_softmax(-1)
        handle.remove()
        told = likely[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        return -told[torch.from_numpy(bench._real[:, 1:])].sum().item()

    found = recovered_loss(bench, {"half": halfway(means)}, means=means, bounds=bounds)["half"]
    for number in (1, 2):
        mean = torch.from_numpy(means[number])
        plain, ablated, half = (
            loss(number, new)
            for new in (lambda x: x, lambda x, m=mean: m, lambda x, m=mean: (x + m) / 2)
        )
        assert found[number] == pytest.approx((ablated - half) / (ablated - plain), rel=1e-3)


def test_more_active_concepts_keep_more_of_a_trained_model():
    """The project's own model of a grammar, on texts that neither it nor a dictionary has seen."""
    place = "layers.0.output"
    source = "package:compute.pretrained.grammar"
    adapter = load_adapter("language", source, levels=[place], context_length=32, dtype="float32")
    texts = list(GrammarWorld().texts(160, seed=1))
    windows = adapter.contexts(adapter.tokenize(texts))
    x = adapter.extract(windows[:120]).activations[adapter.levels[0].name].float()
    shares = []
    for k in (1, 4):
        dictionary = fit_dictionary(x, n_concepts=64, k=k, steps=80, seed=0)
        level = ConceptLevel(1, "low", place, dictionary)
        by_codes = {"codes": lambda rows, own=dictionary: {1: own(rows[1])}}
        means = {1: x.mean(0).numpy()}
        bench = open_bench(adapter, [level], windows[120:])
        found = recovered_loss(bench, by_codes, means=means, bounds={1: np.inf})
        shares.append(found["codes"][1])
    assert 0.9 < shares[0] < shares[1] < 1.01


def test_a_model_that_is_no_worse_off_with_the_mean_has_no_share(bench, means):
    class Deaf(LanguageBench):
        def loss(self, items, number, added=None):
            return 1.0

    deaf = object.__new__(Deaf)
    deaf.__dict__.update(bench.__dict__)
    found = recovered_loss(deaf, {"same": as_they_are}, means=means, bounds=ANY_NORM)
    assert np.isnan([found["same"][number] for number in (1, 2)]).all()


def test_the_loss_of_a_pipeline_is_that_of_its_noise():
    pipeline = quiet("ddim")
    adapter = DiffusionModel.__new__(DiffusionModel)
    adapter.__dict__.update(
        pipeline=pipeline,
        denoiser=Unconditional(pipeline.unet, 8),
        grid=Grid(4, 4),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    levels = (ConceptLevel(1, "middle", "mid_block", random_dictionary(32), timestep=300),)
    rng = np.random.default_rng(0)
    images = [Image(i, rng.random((8, 8)), seed=i) for i in range(6)]
    bench = open_bench(adapter, levels, images, batch_size=4)
    items = np.array([1, 4])
    clean = adapter.clean_latents([images[i] for i in items])
    noise = torch.cat([noise_of(images[i].seed + 1, clean.shape[1:]) for i in items])
    noisy = pipeline.scheduler.add_noise(clean, noise, torch.tensor([300, 300]))
    with torch.inference_mode():
        told = pipeline.unet(noisy, 300).sample
    plain = bench.loss(items, 1)
    assert plain == pytest.approx(float((told - noise).square().sum()), rel=1e-5)
    x = bench.read(items)[1]
    assert bench.loss(items, 1, torch.zeros_like(x)) == plain
    assert bench.loss(items, 1, 3 * torch.randn(x.shape)) != plain
