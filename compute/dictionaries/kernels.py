"""The sparse arithmetic of a training step.

A batch of codes has ``k`` or so active concepts per row out of thousands, so everything after
the encoder's dense product works on the active entries alone: about ``10 k d`` multiplications a
row instead of ``10 n d``. Entries are kept in coordinate form, sorted by row.

On CUDA devices sums and products over entries are taken by Triton where it is installed and agrees
with the eager path, which is also the one that is differentiable.
"""

import warnings
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, linear

_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")
# Types of devices on which Triton is tried.
_TRITON_DEVICES = {"cuda"}


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` for ``x`` (b, d), ``weight`` (n, d) and ``bias`` (n,); (b, n).

    On a CPU torch leaves float32 products to MKL, which reaches a third of what an AMD processor
    can do; oneDNN, which torch brings along for its compiled models, reaches nine tenths.
    Not differentiable.
    """
    if _ONEDNN and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return linear(x, weight, bias)


class Entries(NamedTuple):
    """The active entries of a batch of codes, in ascending order of row.

    ``rows`` and ``concepts`` are (m,) int64, ``values`` is (m,) float, ``starts`` (n_rows,)
    int64 gives the position at which each row begins.
    """

    rows: Tensor
    concepts: Tensor
    values: Tensor
    starts: Tensor


def entries_from_top(values: Tensor, concepts: Tensor) -> Entries:
    """Take codes of a fixed width, (b, k) each, as entries."""
    b, k = concepts.shape
    starts = torch.arange(0, b * k, k, device=concepts.device)
    rows = torch.arange(b, device=concepts.device).repeat_interleave(k)
    return Entries(rows, concepts.reshape(-1), values.reshape(-1), starts)


def entries_from_mask(values: Tensor, mask: Tensor) -> Entries:
    """Take the entries of ``values`` (b, n) at which ``mask`` (b, n) holds."""
    rows, concepts = mask.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=mask.shape[0])
    return Entries(rows, concepts, values[rows, concepts], counts.cumsum(0) - counts)


def decode_entries(entries: Entries, decoder: Tensor) -> Tensor:
    """Sum ``values · decoder[concepts]`` over the entries of each row; returns (n_rows, d)."""
    if fast := _triton(entries.values, decoder):
        sums: Tensor = fast.gather_sum(decoder, entries.concepts, entries.values, entries.starts)
        return sums
    return embedding_bag(
        entries.concepts,
        decoder,
        entries.starts,
        mode="sum",
        per_sample_weights=entries.values,
    )


def entry_products(entries: Entries, table: Tensor, weight: Tensor) -> Tensor:
    """Inner product ``table[rows] · weight[concepts]`` of every entry; returns (m,).

    This is the derivative of :func:`decode_entries` by the values, which torch computes without
    gathering the (m, d) operands.
    """
    if fast := _triton(table, weight):
        products: Tensor = fast.gather_dot(table, entries.rows, weight, entries.concepts)
        return products
    with torch.enable_grad():
        values = torch.zeros_like(entries.values).requires_grad_()
        out = decode_entries(entries._replace(values=values), weight.detach())
    return torch.autograd.grad(out, values, table)[0]


class ByConcept(NamedTuple):
    """The order that sorts entries by concept, and where each concept begins in it."""

    order: Tensor
    starts: Tensor


def sort_by_concept(concepts: Tensor, n_concepts: int) -> ByConcept:
    """Sort entries by concept, keeping the order of rows within one."""
    # Sorting time is proportional to the width of the key.
    key = concepts.short() if n_concepts <= 32767 else concepts.int()
    order = key.sort(stable=True).indices
    counts = torch.bincount(concepts, minlength=n_concepts)
    return ByConcept(order, counts.cumsum(0) - counts)


def sum_by_concept(by: ByConcept, rows: Tensor, weights: Tensor, table: Tensor) -> Tensor:
    """Sum ``weights · table[rows]`` over the entries of each concept; returns (n_concepts, d)."""
    if fast := _triton(weights, table):
        sums: Tensor = fast.gather_sum(table, rows, weights, by.starts, by.order)
        return sums
    return embedding_bag(
        rows[by.order], table, by.starts, mode="sum", per_sample_weights=weights[by.order]
    )


def sum_values(concepts: Tensor, weights: Tensor, n_concepts: int) -> Tensor:
    """Sum ``weights`` over the entries of each concept; returns (n_concepts,)."""
    return torch.zeros(n_concepts, device=weights.device).index_add_(0, concepts, weights)


def _triton(*operands: Tensor) -> ModuleType | None:
    """The Triton kernels, if these operands lie where they run and need no derivative."""
    device = operands[0].device
    if device.type not in _TRITON_DEVICES:
        return None
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in operands):
        return None
    return _triton_on(device)


@cache
def _triton_on(device: torch.device) -> ModuleType | None:
    """The Triton kernels, if they are installed and agree with the eager path on this device."""
    try:
        from compute.dictionaries import triton_kernels
    except ImportError:
        return None
    try:
        if triton_kernels.agrees(device):
            return triton_kernels
        reason = "their results are not those of the eager path"
    # Whatever a compiler or a driver may raise, the eager path does the same work.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    warnings.warn(f"Triton kernels are left alone on {device}: {reason}.", stacklevel=3)
    return None


class Top(NamedTuple):
    """The k largest entries of each row, in no order: values and columns, (b, k) both."""

    values: Tensor
    indices: Tensor


# Columns per group in :func:`largest`: two cache lines of float32.
_GROUP = 32


def largest(x: Tensor, k: int) -> Top:
    """The k largest entries of each row of ``x`` (b, n), exactly, as ``torch.topk`` finds them.

    Torch's selection visits all n entries of a row one by one. On a CPU a vectorised pass first
    takes the maxima of groups of columns: the k groups with the largest maxima contain the k
    largest entries, so only theirs are selected from. Below 8 such selections a row it does not
    pay.
    """
    b, n = x.shape
    if x.device.type != "cpu" or n % _GROUP or n < 8 * k * _GROUP or not x.is_contiguous():
        return Top(*x.topk(k, dim=1, sorted=False))
    per_row = n // _GROUP
    groups = x.view(b, per_row, _GROUP).amax(2).topk(k, dim=1, sorted=False).indices
    first = torch.arange(0, b * per_row, per_row)[:, None]
    candidates = x.view(-1, _GROUP).index_select(0, (groups + first).view(-1))
    top = candidates.view(b, k * _GROUP).topk(k, dim=1, sorted=False)
    chosen = groups.gather(1, top.indices // _GROUP)
    return Top(top.values, chosen * _GROUP + top.indices % _GROUP)
