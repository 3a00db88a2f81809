"""Assemble the atlas page: markup, style, script and data in one HTML string."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from functools import cache
from importlib.resources import files

from storage.atlas.data import AtlasData
from storage.atlas.packing import pack

__all__ = ["render"]

_SCRIPTS = (
    "dom.js",
    "decode.js",
    "model.js",
    "layout.js",
    "palette.js",
    "painter.js",
    "map.js",
    "controls.js",
    "examples.js",
    "charts.js",
    "concept.js",
    "overview.js",
    "table.js",
    "search.js",
    "main.js",
)
"""In the order in which they are joined into the page's one module."""


def render(data: AtlasData) -> str:
    """Return the atlas of ``data`` as one HTML page that needs nothing else.

    The page works from ``file://`` and offline: its content security policy forbids every outside
    request and every script but its own. All strings of ``data`` are treated as hostile text.

    Parameters
    ----------
    data
        The hierarchy to show. Some thousand concepts are comfortable in one page.

    Returns
    -------
    str
        UTF-8 text without lone surrogates; write it with ``encoding="utf-8"``.
    """
    style, body = _asset("style.css"), _asset("page.html")
    early, script = _asset("script/theme.js"), _script()
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"script-src 'sha256-{_digest(early)}' 'sha256-{_digest(script)}'; "
        f"style-src 'sha256-{_digest(style)}'"
    )
    blocks = "\n".join(
        f'<script type="text/plain" data-block="{name}">{block}</script>'
        for name, block in pack(data).items()
    )
    filling = {
        "title": html.escape(data.title),
        "name": html.escape(data.name),
        "version": str(data.version),
        "counts": f"{len(data.concepts):,} concepts, {len(data.edges):,} edges",
    }
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1, viewport-fit=cover">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{filling['title']} · v{data.version}</title>\n"
        f'<link rel="icon" href="data:image/svg+xml;base64,{_icon()}">\n'
        f"<style>{style}</style>\n<script>{early}</script>\n</head>\n"
    )
    # One pass, so that a title that looks like a placeholder stays a title.
    filled = re.sub(r"\{\{(\w+)\}\}", lambda slot: filling[slot[1]], body)
    # The data stand before the script, so that the module finds them when it runs.
    return f'{head}{filled}\n{blocks}\n<script type="module">{script}</script>\n</body>\n</html>\n'


@cache
def _asset(name: str) -> str:
    return files("storage.atlas").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def _script() -> str:
    return "\n".join(_asset(f"script/{name}") for name in _SCRIPTS)


@cache
def _icon() -> str:
    return base64.b64encode(_asset("icon.svg").encode()).decode("ascii")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
