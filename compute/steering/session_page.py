"""The page of a steering session: every variant side by side, self-contained."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from compute.steering.finding import Found
from compute.steering.session import Outcome

__all__ = ["render_page"]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 82rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; min-width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .5rem .75rem; text-align: left;
  vertical-align: top; min-width: 9rem; max-width: 26rem; }
thead th { background: var(--soft); } td.text { white-space: pre-wrap; overflow-wrap: anywhere; }
td.number { font-variant-numeric: tabular-nums; } mark { background: #fd04; color: inherit; }
img { width: 144px; height: auto; image-rendering: pixelated; display: block; }
"""


def render_page(
    title: str,
    lead: str,
    prompts: Sequence[str],
    outcomes: Sequence[Outcome],
    found: Sequence[Found] = (),
) -> str:
    """Return the page as HTML; the first outcome is what the others are compared with."""
    names = [escape(outcome.variant.name) for outcome in outcomes]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{escape(title)}</h1><p>{escape(lead)}</p>",
        "<h2>Side by side</h2><div class=wide>",
        _table(["prompt", *names], [_row(prompts, outcomes, i) for i in range(len(prompts))]),
        "</div><h2>Scores</h2><div class=wide>",
        _table(["", *names], _scores(outcomes)),
        "</div><h2>Edits</h2><div class=wide>",
        _table(["variant", "edits"], [_edits(outcome) for outcome in outcomes]),
        "</div>",
    ]
    if found:
        rows = [
            f"<td>{escape(f.id)}<td>{escape(f.label)}<td class=number>{f.score:.3f}" for f in found
        ]
        parts += ["<h2>Concepts that were found</h2><div class=wide>"]
        parts += [_table(["concept", "label", "score"], rows), "</div>"]
    return "".join(parts)


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(f"<th scope=col>{name}" for name in head)
    body = "".join(f"<tr>{row}" for row in rows)
    return f"<table><thead><tr>{cells}</thead><tbody>{body}</tbody></table>"


def _row(prompts: Sequence[str], outcomes: Sequence[Outcome], i: int) -> str:
    plain = outcomes[0].outputs[i]
    cells = [f"<td class=text>{escape(prompts[i]) or '(no prompt)'}"]
    for outcome in outcomes:
        output = outcome.outputs[i]
        if output.startswith("data:image/"):
            about = escape(f"{outcome.variant.name}: {prompts[i]}", quote=True)
            cells.append(f'<td><img src="{output}" alt="{about}">')
        else:
            cells.append(f"<td class=text>{_marked(plain, output)}")
    return "".join(cells)


def _marked(plain: str, output: str) -> str:
    """The output, marked from where it leaves the unchanged one."""
    same = next(
        (i for i, (a, b) in enumerate(zip(plain, output, strict=False)) if a != b),
        min(len(plain), len(output)),
    )
    rest = f"<mark>{escape(output[same:])}</mark>" if output[same:] else ""
    return escape(output[:same]) + rest


def _scores(outcomes: Sequence[Outcome]) -> list[str]:
    rows = []
    for name in dict.fromkeys(n for outcome in outcomes for n in outcome.scores):
        values = [outcome.scores.get(name) for outcome in outcomes]
        rows.append(_numbers(name, values))
    for level in dict.fromkeys(n for outcome in outcomes for n in outcome.distance):
        known = [outcome.distance.get(level) for outcome in outcomes]
        for name, field in (
            ("rows changed", "touched"),
            ("size of the change", "shift"),
            ("norm against unchanged", "norm_ratio"),
            ("codes beyond the observed", "beyond"),
        ):
            values = [None if d is None else float(getattr(d, field)) for d in known]
            rows.append(_numbers(f"{level}: {name}", values))
    return rows


def _numbers(name: str, values: Sequence[float | None]) -> str:
    cells = "".join(
        f"<td class=number>{'–' if v is None or v != v else f'{v:.4g}'}" for v in values
    )
    return f"<th scope=row>{escape(name)}{cells}"


def _edits(outcome: Outcome) -> str:
    lines = []
    for edit in outcome.variant.edits:
        what = f"scale {edit.scale:g}"
        if edit.value is not None:
            what = f"set to {float(edit.value):.4g}" if isinstance(edit.value, float) else "set"
        elif edit.add:
            what = f"add {edit.add:.4g}"
        lines.append(escape(f"{edit.id}: {what}"))
    return f"<th scope=row>{escape(outcome.variant.name)}<td>{'<br>'.join(lines) or 'none'}"
