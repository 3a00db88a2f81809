"""The sparse arithmetic against autograd through dense arithmetic."""

import pytest
import torch

from compute.dictionaries import DictionarySettings
from compute.dictionaries.architectures import architecture_named
from compute.dictionaries.kernels import (
    affine,
    decode_entries,
    entries_from_mask,
    entry_products,
    largest,
    sort_by_concept,
    sum_by_concept,
    sum_values,
)

B, D, N, K = 40, 10, 30, 4


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def entries():
    values = random(B, N)
    return entries_from_mask(values, (values > 1) & (torch.arange(B)[:, None] != 7))


def dense(entries) -> torch.Tensor:
    return torch.zeros(B, N).index_put((entries.rows, entries.concepts), entries.values)


def test_decoding_is_the_dense_product_even_for_empty_rows(entries):
    decoder = random(N, D, seed=1)
    torch.testing.assert_close(decode_entries(entries, decoder), dense(entries) @ decoder)


def test_products_are_those_of_the_gathered_rows(entries):
    table, weight = random(B, D, seed=1), random(N, D, seed=2)
    expected = (table[entries.rows] * weight[entries.concepts]).sum(1)
    torch.testing.assert_close(entry_products(entries, table, weight), expected)


def test_sums_by_concept_are_transposed_products(entries):
    table = random(B, D, seed=1)
    by = sort_by_concept(entries.concepts, N)
    found = sum_by_concept(by, entries.rows, entries.values, table)
    torch.testing.assert_close(found, dense(entries).T @ table)
    torch.testing.assert_close(
        sum_values(entries.concepts, entries.values, N), dense(entries).sum(0)
    )


@pytest.mark.parametrize("case", ["spread", "one group", "ties", "constant", "narrow"])
def test_the_largest_are_exact(case):
    x = random(50, 4096 if case != "narrow" else 60)
    if case == "one group":
        x[:, 64:96] += 10
    elif case == "ties":
        x = x.round()
    elif case == "constant":
        x = torch.zeros(50, 4096)
    top = largest(x, 8)
    expected = x.topk(8, dim=1).values
    assert torch.equal(top.values.sort(1, descending=True).values, expected)
    assert torch.equal(x.gather(1, top.indices), top.values)
    assert all(len(set(row.tolist())) == 8 for row in top.indices)


def reference_loss(name, parameters, buffers, batch, dead, settings):
    """The losses as their papers write them, dense and differentiable."""
    p = parameters
    decoder_of_gates = p["decoder"].detach()
    raw = (batch - p["decoder_bias"]) @ p["encoder"].T
    extra = 0.0
    if name == "gated":
        pre = raw + p["gate_bias"]
        codes = (raw * p["gain"].exp() + p["magnitude_bias"]).relu() * (pre > 0)
        gates = pre.relu()
        # Frozen: neither the decoder nor its bias learns from the gates' reconstruction.
        target = (batch - p["decoder_bias"]).detach()
        extra = (target - gates @ decoder_of_gates).square().mean()
        extra = extra + buffers["penalty"] * gates.sum() / len(batch)
    else:
        pre = raw + p["encoder_bias"]
        if name == "topk":
            bound = pre.topk(settings.k, dim=1).values[:, -1:]
        elif name == "jumprelu":
            bound = p["threshold"].detach()
        else:
            bound = pre.flatten().topk(settings.k * len(batch)).values[-1]
        codes = pre.relu() * ((pre > bound) if name == "jumprelu" else (pre >= bound))
    shares = settings.nested if name == "matryoshka" else (1.0,)
    losses = []
    for share in shares:
        m = round(share * len(p["decoder"]))
        out = codes[:, :m] @ p["decoder"][:m] + p["decoder_bias"]
        losses.append((batch - out).square().mean())
    residual, pre = (batch - out).detach()[::4], pre[::4]
    helped = torch.where(dead, pre, -torch.inf).topk(settings.aux_k, dim=1)
    aux = torch.zeros_like(pre).scatter(1, helped.indices, helped.values)
    aux_loss = (residual - aux @ p["decoder"]).square().mean()
    return sum(losses) / len(losses) + extra + settings.aux_weight * aux_loss


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka", "jumprelu", "gated"])
def test_gradients_are_those_of_autograd(name):
    settings = DictionarySettings(architecture=name, n_concepts=N, k=K, aux_k=3)
    batch = random(B, D)
    architecture = architecture_named(name)
    parameters = architecture.parameters(N, batch, settings, torch.Generator().manual_seed(1))
    buffers = architecture.buffers(parameters, batch, settings)
    for seed, (key, tensor) in enumerate(parameters.items(), start=5):
        if key not in ("decoder", "threshold", "gate_bias"):
            tensor += 0.1 * random(*tensor.shape, seed=seed)
    dead = torch.arange(N) < 9
    leaves = {key: tensor.clone().requires_grad_() for key, tensor in parameters.items()}
    saved = {key: tensor.clone() for key, tensor in buffers.items()}
    reference_loss(name, leaves, saved, batch, dead, settings).backward()

    found = architecture.gradients(parameters, buffers, batch, dead, settings).by_parameter

    assert found.keys() == parameters.keys()
    for key, leaf in leaves.items():
        if key == "threshold":
            continue  # a straight-through estimate is not the derivative of any loss
        expected = leaf.grad
        if key == "decoder":
            outward = (expected * leaf.detach()).sum(1, keepdim=True)
            expected = expected - outward * leaf.detach()
        torch.testing.assert_close(found[key], expected, atol=1e-6, rtol=1e-4, msg=key)


def test_usefulness_is_the_rise_of_the_error():
    settings = DictionarySettings(n_concepts=N, k=K)
    batch = random(B, D)
    topk = architecture_named("topk")
    p = topk.parameters(N, batch, settings, torch.Generator().manual_seed(1))
    dead = torch.zeros(N, dtype=torch.bool)
    found = topk.gradients(p, {}, batch, dead, settings).usefulness
    top = (batch @ p["encoder"].T).topk(K, dim=1)
    codes = torch.zeros(B, N).scatter(1, top.indices, top.values.relu())
    error = (batch - codes @ p["decoder"]).square().sum()
    for concept in range(N):
        without = codes.clone()
        without[:, concept] = 0
        rise = (batch - without @ p["decoder"]).square().sum() - error
        torch.testing.assert_close(found[concept], rise, atol=1e-3, rtol=1e-3)


def test_thresholds_fall_where_more_activity_would_help_and_rise_where_there_is_too_much():
    settings = DictionarySettings(architecture="jumprelu", n_concepts=N, k=K)
    jumprelu = architecture_named("jumprelu")
    batch = random(B, D)
    for shift, sign in ((0.3, 1), (-3.0, -1)):
        p = jumprelu.parameters(N, batch, settings, torch.Generator().manual_seed(1))
        buffers = jumprelu.buffers(p, batch, settings)
        p["threshold"] += shift
        p["decoder"] *= 0  # nothing is rebuilt, so only the sparsity term speaks
        dead = torch.zeros(N, dtype=torch.bool)
        slope = jumprelu.gradients(p, buffers, batch, dead, settings).by_parameter["threshold"]
        assert slope.sum() * sign > 0


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("by_column", [True, False])
def test_affine_maps_are_the_dense_product(biased, dtype, by_column):
    x, weight, bias = random(B, D).to(dtype), random(N, D, seed=1).to(dtype), random(N).to(dtype)
    expected = x.double() @ weight.double().T + (bias.double() if biased else 0)
    stored = weight.T.contiguous().T if by_column else weight
    found = affine(x, stored, bias if biased else None)
    assert found.dtype == dtype
    error = (found.double() - expected).abs().max()
    assert error < 20 * torch.finfo(dtype).eps
