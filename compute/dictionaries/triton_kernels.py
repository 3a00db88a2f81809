"""The sparse arithmetic of :mod:`compute.dictionaries.kernels` in Triton, for CUDA devices.

Both kernels read every operand where it lies: neither the (m, d) rows that entries point to nor a
reordered copy of the entries is ever written. Everything is summed in float32, in the order of the
entries, so a result is the same from run to run.

Importing this module needs ``triton``, which torch brings along where it is built for CUDA. With
``TRITON_INTERPRET=1`` in the environment, the kernels run on a CPU, which is how they are tested.
"""

# Triton reads annotations of kernels as its own; the operands are its pointers and numbers.
# ruff: noqa: ANN001, ANN202
import torch
import triton
import triton.language as tl
from torch import Tensor

# Coordinates per program, at most.
_BLOCK = 512


@triton.jit  # type: ignore[untyped-decorator]
def _gather_sum(  # type: ignore[no-untyped-def]
    out,
    table,
    index,
    weights,
    order,
    starts,
    n_groups,
    n_entries,
    d,
    ORDERED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One group and one block of coordinates per program."""
    group = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < d
    begin = tl.load(starts + group)
    end = tl.load(starts + group + 1, mask=group + 1 < n_groups, other=n_entries)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for place in range(begin, end):
        entry = place
        if ORDERED:
            entry = tl.load(order + place)
        row = tl.load(index + entry)
        weight = tl.load(weights + entry).to(tl.float32)
        total += weight * tl.load(table + row * d + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + group * d + columns, total, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _gather_dot(  # type: ignore[no-untyped-def]
    out,
    first,
    second,
    first_index,
    second_index,
    d,
    BLOCK: tl.constexpr,
):
    """One entry per program."""
    entry = tl.program_id(0).to(tl.int64)
    a = first + tl.load(first_index + entry) * d
    b = second + tl.load(second_index + entry) * d
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, d, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < d
        x = tl.load(a + columns, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(b + columns, mask=inside, other=0.0).to(tl.float32)
        total += x * y
    tl.store(out + entry, tl.sum(total, axis=0))


def gather_sum(
    table: Tensor, index: Tensor, weights: Tensor, starts: Tensor, order: Tensor | None = None
) -> Tensor:
    """Sum ``weights[e] · table[index[e]]`` over the entries ``e`` of each group.

    Parameters
    ----------
    table : (n, d)
    index, weights : (m,) int64 and float, by entry
    starts : (g,) int64, where each group begins; it ends where the next begins
    order : (m,) int64, the entries in the order of their groups; as they are, if left out

    Returns
    -------
    (g, d), of the dtype of ``table``.
    """
    table = table.contiguous()
    d = table.shape[1]
    out = table.new_empty((len(starts), d))
    block = _block(d)
    if out.numel():
        _gather_sum[(len(starts), triton.cdiv(d, block))](
            out,
            table,
            index.contiguous(),
            weights.contiguous(),
            index if order is None else order,
            starts,
            len(starts),
            len(index),
            d,
            ORDERED=order is not None,
            BLOCK=block,
        )
    return out


def gather_dot(first: Tensor, first_index: Tensor, second: Tensor, second_index: Tensor) -> Tensor:
    """Inner product ``first[first_index[e]] · second[second_index[e]]`` of every entry.

    Parameters
    ----------
    first, second : (n, d) and (c, d)
    first_index, second_index : (m,) int64

    Returns
    -------
    (m,), of the dtype of ``first``.
    """
    out = first.new_empty(len(first_index))
    d = first.shape[1]
    if len(out):
        _gather_dot[(len(out),)](
            out,
            first.contiguous(),
            second.contiguous(),
            first_index.contiguous(),
            second_index.contiguous(),
            d,
            BLOCK=_block(d),
        )
    return out


def agrees(device: torch.device) -> bool:
    """Whether the kernels compute, on this device, what the eager path does on a small case."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(7, 33, generator=generator)
    index = torch.tensor([3, 0, 6, 6, 2])
    weights = torch.randn(5, generator=generator)
    order, starts = torch.tensor([4, 2, 0, 1, 3]), torch.tensor([0, 2, 2])
    taken = weights[order, None] * table[index[order]]
    sums = torch.stack([taken[:2].sum(0), torch.zeros(33), taken[2:].sum(0)])
    dots = (table[index] * table[order]).sum(1)
    on = [tensor.to(device) for tensor in (table, index, weights, starts, order)]
    found = gather_sum(*on).cpu(), gather_dot(on[0], on[1], on[0], on[4]).cpu()
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, (sums, dots)))


def _block(d: int) -> int:
    """Coordinates per program: a power of two."""
    return min(_BLOCK, int(triton.next_power_of_2(d)))
