"""The names that tools give to places in a model, and which of them mean one place."""

from __future__ import annotations

import re
from typing import NamedTuple


class Place(NamedTuple):
    """A place in a stack of blocks.

    ``kind`` is ``output`` (of the block), ``mlp``, ``attn`` (what each adds to the residual
    stream), ``heads`` (what attention heads hand to their output projection), ``middle`` (between
    attention and MLP), ``mlp input``, or None where it is not known. Layer −1 is the embedding.
    """

    layer: int
    kind: str | None


_KINDS = {
    "hook_resid_post": "output",
    "resid_post": "output",
    "output": "output",
    "": "output",
    "hook_mlp_out": "mlp",
    "mlp_out": "mlp",
    "mlp": "mlp",
    "mlp.output": "mlp",
    "post_feedforward_layernorm.output": "mlp",
    "hook_attn_out": "attn",
    "attn_out": "attn",
    "attn": "attn",
    "self_attn": "attn",
    "attention": "attn",
    "attn.hook_z": "heads",
    "self_attn.o_proj.input": "heads",
    "hook_resid_mid": "middle",
    "hook_mlp_in": "mlp input",
}
_BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers|h)[._](\d+)(?:\.(.*))?$")
_NAMED = re.compile(r"^(resid_post|resid_pre|mlp_out|attn_out|layer)(?:_layer)?_(\d+)$")


def read_place(name: str) -> Place | None:
    """The place that a name means, or None where no block is named."""
    block = _BLOCK.search(name)
    if block is not None:
        layer, kind = int(block[1]), block[2] or ""
    elif (named := _NAMED.search(name)) is not None:
        layer, kind = int(named[2]), named[1]
    else:
        return None
    if kind in ("hook_resid_pre", "resid_pre"):
        return Place(layer - 1, "output")
    return Place(layer, _KINDS.get(kind))


def may_be_one_place(first: str, second: str) -> bool:
    """Whether two names may mean one place; what is not known may be any."""
    if first == second:
        return True
    one, other = read_place(first), read_place(second)
    if one is None or other is None:
        return True
    return one.layer == other.layer and (None in (one.kind, other.kind) or one.kind == other.kind)


# What tools call models that the Hub has under other names.
_ALIASES = {"gpt2-small": "gpt2", "openai-community/gpt2": "gpt2"}


def may_be_one_model(first: str, second: str) -> bool:
    """Whether two names may mean one model, or one that was trained on from the other."""
    one, other = (_plain(name) for name in (first, second))
    return one in other or other in one


def _plain(name: str) -> str:
    last = name.rstrip("/").rsplit("/", 1)[-1].lower()
    return re.sub(r"[^a-z0-9]", "", _ALIASES.get(last, last).removeprefix("meta-"))
