"""What is proved of a language model before it is read: padding, packing, hooks and parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from compute.models.adapter import ActivationRows
from compute.models.hooks import Recorder, token_rows
from compute.models.language import Context, LanguageModel
from compute.models.proofs import Seen
from compute.models.readings import alike, refuse_apart, tolerance

__all__ = ["PROOFS"]

# Tokens of the short window beside a long one, and of each of two packed documents.
_SHORT = 8


def _padded(adapter: LanguageModel, items: Sequence[Context], rows: ActivationRows) -> Seen:
    """A window that is filled up beside a longer one gives the rows that it gives alone."""
    long, short = max(items, key=lambda item: len(item.tokens)), _short(adapter, items)
    padding = len(long.tokens) - len(short.tokens)
    if padding < 1:
        return Seen("all windows are of one length")
    together, alone = adapter.extract([long, short]), adapter.extract([short])
    tail = {name: values[-len(alone) :] for name, values in together.activations.items()}
    try:
        worst = refuse_apart(tail, alone.activations)
    except ValueError as error:
        raise ValueError(
            f"{adapter.facts.architecture} models see what stands behind a token, padding too "
            f"({error}): its rows would depend on their batch; read another model"
        ) from None
    return Seen(f"{padding} tokens of padding are not seen, {alike(worst)}")


def _packed(adapter: LanguageModel, items: Sequence[Context], rows: ActivationRows) -> Seen:
    """Two documents in one window give the rows that each gives alone, if the family can."""
    first, second = (_cut(item, min(_SHORT, adapter.context_length // 2)) for item in items[:2])
    if len(first.tokens) + len(second.tokens) > adapter.context_length:
        return Seen("a context has no room for two documents", holds=False)
    joined = Context(
        first.document,
        first.start,
        np.concatenate([first.tokens, second.tokens]),
        cuts=(len(first.tokens),),
        documents=(second.document,),
    )
    apart = adapter.extract([first, replace(second, start=0)]).activations
    try:
        worst = refuse_apart(adapter.extract([joined]).activations, apart)
    except ValueError as error:
        # No run of a recipe packs, and who packs by himself is refused there.
        return Seen(f"not possible, and not used: {error}", holds=False)
    return Seen(f"documents do not see one another, {alike(worst)}")


@torch.inference_mode()
def _hooked(adapter: LanguageModel, items: Sequence[Context], rows: ActivationRows) -> Seen:
    """The whole model says the same with and without hooks, and passes the rows that are kept."""
    ids, inside = adapter.window_ids(items[0])
    tokens = torch.from_numpy(ids[None]).to(adapter.device)
    plain = adapter.model(input_ids=tokens, use_cache=False).logits.float()
    places = adapter.places()
    with Recorder(adapter.model, set(places.values()), stop=False) as recorder:
        hooked = adapter.model(input_ids=tokens, use_cache=False).logits.float()
        seen = recorder.take()
    missed = float((hooked - plain).norm() / plain.norm())
    if not missed <= tolerance(adapter.dtype):
        raise ValueError(f"the model says something else where it is read (logits, {missed:.1%})")
    passed = {
        name: token_rows(seen[place.name], (1, len(ids)), place.name)[0, inside].cpu()
        for name, place in places.items()
    }
    try:
        worst = refuse_apart(adapter.extract(items[:1]).activations, passed)
    except ValueError as error:
        raise ValueError(f"a pass that ends at the last level reads others: {error}") from None
    return Seen(f"logits {alike(missed, 'their')}, rows of a whole pass {alike(worst)}")


def _parts(adapter: LanguageModel, items: Sequence[Context], rows: ActivationRows) -> Seen:
    """Input, attention and feed-forward part of a layer are its output, where a part is read."""
    ids, _ = adapter.window_ids(items[0])
    layers = adapter.prove_parts(ids[None])
    return Seen(f"in {', '.join(layers)}" if layers else "no part of a layer is read")


def _cut(item: Context, length: int) -> Context:
    """The beginning of a window of one document."""
    return replace(item, tokens=item.tokens[:length], cuts=(), documents=())


def _short(adapter: LanguageModel, items: Sequence[Context]) -> Context:
    """The beginning of the last window, with a row in it."""
    last = items[-1]
    lengths = (n for n in range(_SHORT, len(last.tokens)) if adapter.rows_of(_cut(last, n)))
    return _cut(last, next(lengths, len(last.tokens)))


PROOFS: dict[str, Callable[[LanguageModel, Sequence[Context], ActivationRows], Seen]] = {
    "padded = unpadded": _padded,
    "packed = unpacked": _packed,
    "hooked = unhooked": _hooked,
    "input + attn + mlp = output": _parts,
}
"""Name → what proves it, given the model, the samples and the rows of all of them."""
