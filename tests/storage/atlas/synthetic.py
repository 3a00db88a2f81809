"""Invented atlases of any size, for tests and for looking at the page.

python -m tests.storage.atlas.synthetic /tmp/atlas.html --per-level 1300 --edges 20000
"""

from __future__ import annotations

import argparse
import base64
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from storage.atlas import (
    AtlasData,
    Changes,
    Concept,
    Edge,
    Example,
    Histogram,
    HistoryEntry,
    ImageExample,
    Level,
    Neighbour,
    SteeringStrip,
    TokenExample,
    render,
)

WORDS = re.findall(
    r"\w+",
    """
    the of and to in is that for with as on are by this be or from at which an not it can if when
    function class object module value string method returns argument sequence default error raise
    import yield lambda integer float complex operator expression statement assignment iterable
    Monday river garden winter because although castle music sugar letter green seven copper
    """,
)


def png(pixels: np.ndarray) -> str:
    """A small RGB PNG as a data URI; ``pixels (h, w, 3)`` bytes."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(np.uint8))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _text(
    rng: np.random.Generator, topic: str, peak_value: float, length: int = 26
) -> TokenExample:
    tokens = [f" {WORDS[i]}" for i in rng.integers(0, len(WORDS), length)]
    for place, token in ((5, ",\n"), (11, "\n"), (17, "\t"), (21, "  ")):
        if rng.random() < 0.35:
            tokens[place] = token
    peak = int(rng.integers(4, length - 2))
    tokens[peak] = f" {topic}"
    values = np.where(rng.random(length) < 0.18, rng.gamma(1.0, peak_value / 5, length), 0.0)
    values = np.minimum(values, 0.9 * peak_value)
    values[peak] = peak_value
    return TokenExample(
        tokens=tuple(tokens),
        values=tuple(float(v) for v in values),
        peak=peak,
        activation=peak_value,
        source=f"topics · document {rng.integers(90)}, token {rng.integers(4000)}",
    )


def _image(rng: np.random.Generator, peak_value: float) -> ImageExample:
    y, x = np.mgrid[0:48, 0:48] / 48
    wave = np.sin(6 * x * rng.random() + 5 * y * rng.random() + 6 * rng.random())
    pixels = 128 + 100 * np.stack([wave, np.roll(wave, 9, 0), np.roll(wave, 17, 1)], axis=-1)
    grid = rng.gamma(0.4, 1.0, (8, 8))
    grid = grid / grid.max() * peak_value
    return ImageExample(
        image=png(pixels),
        patches=tuple(tuple(float(v) for v in row) for row in grid),
        activation=peak_value,
        source=f"world seed {rng.integers(1000)}",
    )


def synthetic_atlas(
    sizes: tuple[int, ...] = (40, 60, 24, 8),
    n_edges: int = 300,
    *,
    examples: int = 6,
    images: bool = False,
    judged: bool = True,
    seed: int = 0,
) -> AtlasData:
    """An atlas with ``sizes[l]`` concepts at level ``l`` (0 = observed), in communities."""
    rng = np.random.default_rng(seed)
    concepts: list[Concept] = []
    where = [rng.random(size) for size in sizes]
    for level, size in enumerate(sizes):
        for index in range(size):
            topic = WORDS[int(where[level][index] * len(WORDS)) % len(WORDS)]
            other = WORDS[int(rng.integers(len(WORDS)))]
            concepts.append(_concept(rng, level, index, size, topic, other, examples, images))
    edges = _edges(rng, sizes, where, n_edges, judged)
    return AtlasData(
        name="smollm2",
        version=3,
        created_at="2026-03-01T02:14:09+00:00",
        title="SmolLM2-135M-Instruct reads the Python manual",
        description="Concepts at three depths of a small language model, and how the deeper ones "
        "are composed of the shallower ones. Invented numbers, for looking at the page.",
        facts=(
            ("Model", "SmolLM2-135M-Instruct (GGUF, sha256 1f2e…)"),
            ("Data", "pydoc_data.topics, 76,412 tokens in 80 documents"),
            ("Rows", "76,201; 211 attention-sink rows left out"),
            ("Dictionary", "TopK, k = 32, 1,200 steps"),
        ),
        steps=(
            ("extract", 74.2),
            ("learn", 143.0),
            ("encode", 12.5),
            ("recover", 41.7),
            ("publish", 3.1),
        ),
        levels=_levels(sizes),
        concepts=tuple(concepts),
        edges=edges,
        changes=Changes(
            since=2,
            concepts={"kept": 90, "changed": 7, "born": 3, "gone": 2},
            edges={"kept": 200, "changed": 30, "born": 20, "gone": 10},
            gone=("<b>frost</b>", "tide"),
        ),
    )


def _edges(
    rng: np.random.Generator,
    sizes: tuple[int, ...],
    where: list[np.ndarray],
    n_edges: int,
    judged: bool,
) -> tuple[Edge, ...]:
    edges: dict[tuple[str, str], Edge] = {}
    pairs = [(level, level + 1) for level in range(len(sizes) - 1)]
    for number in range(8 * n_edges):
        if len(edges) == n_edges or not pairs:
            break
        low, high = pairs[number % len(pairs)]
        whole = int(rng.integers(sizes[high]))
        near = np.argsort(np.abs(where[low] - where[high][whole]))[: max(3, sizes[low] // 25)]
        part = int(rng.choice(near)) if rng.random() < 0.92 else int(rng.integers(sizes[low]))
        verdict = ("untested", "confirmed", "refuted")[int(rng.choice(3, p=[0.6, 0.32, 0.08]))]
        edge = Edge(
            source=f"{low}:{part}",
            target=f"{high}:{whole}",
            strength=float(rng.gamma(1.2, 0.2)),
            confidence=float(rng.beta(6, 1.4)),
            sign=1 if rng.random() < 0.85 else -1,
            stability=float(rng.beta(8, 1.2)),
            verdict=verdict if judged else None,
            effect=float(rng.normal(0.2, 0.1)) if judged and verdict != "untested" else None,
        )
        edges.setdefault((edge.source, edge.target), edge)
    return tuple(edges.values())


def _levels(sizes: tuple[int, ...]) -> tuple[Level, ...]:
    return tuple(
        Level(
            level=level,
            name="tokens" if level == 0 else f"layer-{7 + 8 * (level - 1):02d}",
            hookpoint="" if level == 0 else f"model.layers.{7 + 8 * (level - 1)}.output",
            n_concepts=size if level == 0 else int(size * 1.1),
            metrics={}
            if level == 0
            else {
                "explained_variance": 0.97 - 0.05 * level,
                "l0": 32.0,
                "dead_share": 0.013 * level,
            },
        )
        for level, size in enumerate(sizes)
    )


def _concept(
    rng: np.random.Generator,
    level: int,
    index: int,
    size: int,
    topic: str,
    other: str,
    examples: int,
    images: bool,
) -> Concept:
    if level == 0:
        return Concept(
            id=f"0:{index}",
            level=0,
            index=index,
            label=f" {topic}" if index % 7 else "\n",
            frequency=float(min(1.0, 10 ** rng.uniform(-4.5, -1))),
        )
    peak = float(rng.gamma(4.0, 2.0))
    counts = (1000 * np.exp(-np.arange(24) / rng.uniform(2, 8))).astype(int)
    shown: list[Example] = [
        _image(rng, peak * 0.97**i) if images else _text(rng, topic, peak * 0.97**i)
        for i in range(examples)
    ]
    others = {int(i) for i in rng.integers(0, size, 5)} - {index}
    return Concept(
        id=f"{level}:{index}",
        level=level,
        index=index,
        label=f"{topic} · near {other}" if rng.random() < 0.6 else topic,
        frequency=float(10 ** rng.uniform(-4.5, -1)),
        mean_activation=peak / 3,
        max_activation=peak,
        histogram=Histogram(
            edges=tuple(float(v) for v in np.linspace(0, peak, 25)),
            counts=tuple(int(v) for v in counts),
        ),
        examples=tuple(shown),
        neighbours=tuple(
            Neighbour(id=f"{level}:{i}", cosine=float(rng.uniform(0.2, 0.9)))
            for i in sorted(others)
        ),
        kind=("selection", "common cause", "undecided")[int(rng.integers(3))],
        form=("and", "or", "threshold")[int(rng.integers(3))],
        unexplained=float(rng.beta(2, 5)),
        history=(
            HistoryEntry(version=1, status="born"),
            HistoryEntry(version=2, status="kept"),
            HistoryEntry(version=3, status="changed" if index % 5 == 0 else "kept"),
        ),
        steering=SteeringStrip(
            before="The river ran past the garden and into the sea.",
            after=f"The {topic} ran past the {other} and into the {topic}.",
            scale=4.0,
            prompt="Tell me about the river.",
        )
        if index % 3 == 0
        else None,
    )


def main() -> None:
    """Write a synthetic atlas to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[400, 1600, 1400, 600])
    parser.add_argument("--edges", type=int, default=20_000)
    parser.add_argument("--images", action="store_true")
    arguments = parser.parse_args()
    data = synthetic_atlas(tuple(arguments.sizes), arguments.edges, images=arguments.images)
    arguments.path.write_text(render(data), encoding="utf-8")


if __name__ == "__main__":
    main()
