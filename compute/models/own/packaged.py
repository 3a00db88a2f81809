"""Small pipelines as standard diffusers folders: saved, and read with diffusers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch


def save_pipeline(pipeline: Any, folder: Path) -> None:
    """Save a pipeline as a standard diffusers folder, weights in float16 safetensors."""
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder)
    # Told no dtype, diffusers reads its models as float32, but transformers as this file says: a
    # pipeline of both kinds would not run.
    text_encoder = folder / "text_encoder" / "config.json"
    if text_encoder.is_file():
        config = json.loads(text_encoder.read_text(encoding="utf-8")) | {"dtype": "float32"}
        text_encoder.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def load_text_to_image(folder: Path) -> Any:
    """Return the `StableDiffusionPipeline` of a folder, in float32."""
    return _load("StableDiffusionPipeline", folder)


def load_unconditional(folder: Path) -> Any:
    """Return the `DDIMPipeline` of a folder, in float32."""
    return _load("DDIMPipeline", folder)


def _load(name: str, folder: Path) -> Any:
    import diffusers

    loader: Any = getattr(diffusers, name)
    pipeline = loader.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
