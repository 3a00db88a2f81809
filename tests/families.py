"""The preflight over every family of causal language models that a tiny configuration can build.

    python -m tests.families

writes the table of `compute/models/README.md` anew; it takes some minutes.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from compute.models.language import Context, LanguageModel
from compute.models.language_facts import LanguageFacts
from compute.models.preflight import proofs_of, prove_all, sentence
from tests.tiny_models import FAMILIES as CONFIGS
from tests.tiny_models import TOKENS, word_tokenizer

PAGE = Path(__file__).parents[1] / "compute" / "models" / "README.md"
MARK = "<!-- written by python -m tests.families -->"
FAMILIES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
MOST_PARAMETERS = 6_000_000
# A family of which not even the shapes are right is refused.
PROVED = tuple(name for name in proofs_of("language") if name != "shapes")
# What makes a family small, by whatever name its configuration has for it.
SMALL = {
    "vocab_size": 32,
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "word_embed_proj_dim"), 32
    ),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim"),
        48,
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 3
    ),
    "encoder_layers": 1,
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "decoder_attention_heads",
            "encoder_attention_heads",
            "num_experts",
            "num_local_experts",
            "n_routed_experts",
        ),
        4,
    ),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size_per_layer_input": 32,
    "hidden_size_per_layer_input": 8,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    # Of attention whose keys and values are compressed.
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 64),
    **TOKENS,
}
# Left at None by some families, which then take them from others.
OPEN = ("head_dim", "num_key_value_heads")
# What the configuration of a family needs besides.
BESIDES: dict[str, dict[str, Any]] = {
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
    "bamba": {"mamba_n_heads": 8},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "falcon_h1": {
        "mamba_d_ssm": 64,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 16,
        "mamba_chunk_size": 16,
    },
    "granitemoehybrid": {"mamba_n_heads": 8},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 8},
    "zaya": {"num_experts_per_tok": 1},
}


@dataclass(frozen=True)
class Trial:
    """What the preflight said of a family.

    Attributes
    ----------
    proved : names of the proofs that hold.
    refused : the sentence that refuses it, or "".
    """

    proved: frozenset[str]
    refused: str


def tiny_config(family: str) -> Any:
    """A configuration of the family with three layers of width 32, as far as it has such words.

    Raises
    ------
    Exception : whatever the family says to it.
    """
    if family in CONFIGS:
        return AutoConfig.for_model(family, **CONFIGS[family], **TOKENS)
    text = AutoConfig.for_model(family).get_text_config()
    known = {name: value for name, value in SMALL.items() if _has(text, name)}
    if "kv_lora_rank" in known:  # compressed keys are shared out to all heads
        known["num_key_value_heads"] = known["num_attention_heads"]
    return type(text)(**known | BESIDES.get(family, {}))


def _has(config: Any, name: str) -> bool:
    """Whether a configuration has a setting of this name that is in use and can be set."""
    if isinstance(getattr(type(config), name, None), property):
        return False
    try:
        return hasattr(config, name) and (getattr(config, name) is not None or name in OPEN)
    except Exception:  # it differs from layer to layer, which transformers says in its own way
        return True


def buildable(family: str) -> Any:
    """A tiny configuration of the family, or None where none is small and of this machine."""
    try:
        config = tiny_config(family)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception:
        return None
    small = sum(parameter.numel() for parameter in model.parameters()) <= MOST_PARAMETERS
    return config if small else None


def tried(family: str, config: Any) -> Trial:
    """Read a random model of a family as a run does, and try every proof on it."""
    with tempfile.TemporaryDirectory() as folder:
        config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]]
        config.save_pretrained(folder)
        word_tokenizer().save_pretrained(folder)
        try:
            facts = LanguageFacts.read(folder)
            points = facts.points()
            # Where a family has no layers by their usual name, the list that holds its blocks.
            middle = "layers.1.output" if "layers.1.output" in points else _block(points)
            facts.widths([middle])
        except Exception as error:
            return Trial(frozenset(), sentence(error))
        return _on_weights(facts, _random_model(config), middle)


def _block(points: Iterable[str]) -> str:
    """The path of the second block in the outermost list of blocks."""
    lists = [path for path in points if re.search(r"\.1$", path)]
    return min(lists, key=lambda path: path.count("."), default="layers.1.output")


def _random_model(config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float()
    # The usual initialisation is so small that attention hardly acts.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return model.eval()


def _on_weights(facts: LanguageFacts, model: Any, middle: str) -> Trial:
    refused = ""
    for levels in (["layers.0.attn", "layers.1.mlp", middle], [middle]):
        try:
            proved = _proved(_adapter(facts, model, levels))
        except Exception as error:
            refused = sentence(error)
            continue
        if len(levels) == 1:
            proved -= {"input + attn + mlp = output"}
        return Trial(proved, "")
    return Trial(frozenset(), refused)


def _adapter(facts: LanguageFacts, model: Any, levels: list[str]) -> LanguageModel:
    return LanguageModel(
        model=model,
        facts=facts,
        levels=facts.check(levels),
        dtype=torch.float32,
        device=torch.device("cpu"),
        context_length=24,
        batch_size=4,
    )


def _proved(adapter: LanguageModel) -> frozenset[str]:
    draw = torch.Generator().manual_seed(0)
    lengths = (24, 19, 24)
    items = [
        Context(number, 0, torch.randint(4, 22, (n,), generator=draw).numpy())
        for number, n in enumerate(lengths)
    ]
    rows = adapter.extract(items)
    proofs = prove_all("language", adapter, items, rows)
    return frozenset(proof.name for proof in proofs if proof.holds)


def row(family: str, trial: Trial) -> str:
    """A family's line of the table."""
    if trial.refused:
        # Shares of a norm differ from machine to machine.
        reason = re.split(r"; |: its ", re.sub(r" \(rows of level .*?\)", "", trial.refused))[0]
        return f"| {family} | refused: {reason.replace('|', '/')} |" + " |" * (len(PROVED) - 1)
    cells = ("yes" if name in trial.proved else "no" for name in PROVED)
    return f"| {family} | {' | '.join(cells)} |"


def table(families: Iterable[str]) -> tuple[str, str]:
    """The table of these families, and what is said below it of those that are not in it."""
    lines, absent = [], []
    for family in families:
        config = buildable(family)
        if config is None:
            absent.append(family)
        else:
            lines.append(row(family, tried(family, config)))
    head = f"| family | {' | '.join(PROVED)} |\n|---|{'---|' * len(PROVED)}\n"
    return head + "\n".join(lines), ", ".join(absent)


def write() -> None:
    """Write the table, and the count of its lines, into the page."""
    page = PAGE.read_text(encoding="utf-8")
    before = page.partition(MARK)[0]
    lines, absent = table(FAMILIES)
    counted = lines.splitlines()[2:]
    refused = sum("refused:" in line for line in counted)
    version = metadata.version("transformers")
    PAGE.write_text(
        f"{before}{MARK}\n{len(counted) - refused} of {len(counted)} families of transformers "
        f"{version} are read; {refused} are refused.\n\n{lines}\n\nNot tried, since no tiny "
        f"configuration is known: {absent}.\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    write()
