"""Where a dictionary's files are: a folder or a file here, or a folder of a repository."""

from __future__ import annotations

from pathlib import Path

# Whose presence tells the layout, with the layout's name.
WEIGHT_FILES = {
    "sae_weights.safetensors": "SAELens",
    "sae.safetensors": "sparsify",
    "params.npz": "Gemma Scope",
    "params.safetensors": "Gemma Scope 2",
    "ae.pt": "dictionary_learning",
}
_BESIDE = ("cfg.json", "config.json", "eval_results.json")


def locate(source: str, level: str) -> Path:
    """The file of weights of a level's dictionary.

    Parameters
    ----------
    source : str
        A folder or file on this machine; or ``owner/name`` of a model repository on the Hugging
        Face Hub, with a folder below it. A folder may hold one folder per level, by its name.
    level : str
        Name of the level.

    Raises
    ------
    ValueError
        If there is no such place, or none or more than one dictionary in it.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.name not in WEIGHT_FILES:
            raise ValueError(
                f"{source!r} is no dictionary: its file must be named {' or '.join(WEIGHT_FILES)}"
            )
        return path
    if not path.is_dir():
        path = _fetched(source, level)
    for folder in (path / level, path):
        found = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
        if len(found) > 1:
            names = " and ".join(file.name for file in found)
            raise ValueError(f"{source!r} holds {names}: name the file that is meant")
        if found:
            return found[0]
    raise ValueError(
        f"{source!r} holds no dictionary, neither in it nor in {level!r} below it: one has a file"
        f" {', '.join(WEIGHT_FILES)}"
    )


def _fetched(source: str, level: str) -> Path:
    """The folder that a repository's folder was copied to; one try."""
    parts = source.split("/")
    if source.startswith((".", "/", "~")) or "\\" in source or len(parts) < 2 or not all(parts):
        raise ValueError(
            f"{source!r} is no folder or file at {Path(source).expanduser().absolute()}, nor"
            " owner/name of a repository on the Hugging Face Hub: check the path"
        )
    from huggingface_hub import snapshot_download

    repository, folder = "/".join(parts[:2]), "/".join(parts[2:])
    below = f"{folder}/" if folder else ""
    wanted = [f"{place}{name}" for place in (below, f"{below}{level}/") for name in _ALL]
    if folder:
        # sparsify tells of the model one folder above.
        wanted.append("/".join([*parts[2:-1], "config.json"]))
    try:
        copied = Path(snapshot_download(repository, allow_patterns=wanted))
    except Exception as error:
        raise ValueError(
            f"{source!r} is no folder here ({Path(source).absolute()}) and could not be fetched"
            f" from the Hugging Face Hub ({type(error).__name__}): give a folder, check the name,"
            " or go online"
        ) from None
    return copied / folder


_ALL = (*WEIGHT_FILES, *_BESIDE)
