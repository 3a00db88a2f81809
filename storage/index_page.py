"""The page on which the HTTP service lists what there is: plain HTML without a script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from storage.registry.manifests import ArtifactReference

__all__ = ["index_page"]

_STYLE = """
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
body { max-width: 46rem; margin: 0 auto; padding: 1.5rem 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .25rem; overflow-wrap: anywhere; }
ul { list-style: none; padding: 0; margin: 0; }
li { display: flex; flex-wrap: wrap; gap: .25rem .75rem; padding: .35rem 0;
     border-top: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
code { opacity: .8; } a { min-width: 3.5rem; }
.tag { border: 1px solid; border-radius: 1rem; padding: 0 .6rem; font-size: .85rem; }
"""


def index_page(
    artifacts: Mapping[str, tuple[Sequence[ArtifactReference], Mapping[str, int]] | str],
) -> bytes:
    """The page as HTML.

    Parameters
    ----------
    artifacts : mapping
        By name: the references of its versions, oldest first, and where its aliases point; or, for
        one that cannot be read, what is wrong with it.
    """
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Strata artifacts</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><main><h1>Concept hierarchies</h1>"
    ]
    if not artifacts:
        parts.append("<p>Nothing has been published here yet.</p>")
    for name, found in artifacts.items():
        if isinstance(found, str):
            parts.append(
                f"<section><h2>{escape(name)}</h2><p>Cannot be read: {escape(found)}</p></section>"
            )
            continue
        versions, aliases = found
        parts.append(f"<section><h2>{escape(name)}</h2><ul>")
        for version in reversed(versions):
            marks = sorted(alias for alias, at in aliases.items() if at == version.version)
            if version.status != "published":
                marks.append(version.status)
            tags = "".join(f'<span class="tag">{escape(mark)}</span>' for mark in marks)
            link = f"artifacts/{escape(name)}/{version.version}/"
            parts.append(
                f'<li><a href="{link}" aria-label="{escape(name)} version {version.version}">'
                f"v{version.version}</a><code>{version.content_hash[:12]}</code>{tags}</li>"
            )
        parts.append("</ul></section>")
    parts.append("</main></body></html>")
    return "".join(parts).encode()
