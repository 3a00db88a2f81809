"""What `strata estimate` says of a recipe against what the run then takes.

    python tests/benchmarks/estimate_error.py [RECIPE] [--set NAME=VALUE …]

Writes ``results/estimate_error.csv``: per step the estimated and the real seconds and their ratio,
and the same for bytes.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "estimate_error.csv"
FIELDS = ("recipe", "what", "estimated", "real", "ratio", "machine", "command")


def main(arguments: list[str] | None = None) -> list[dict[str, object]]:
    """Estimate, run, compare; return the rows that were written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="smollm2")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    settings = [f"--set={setting}" for setting in given.settings]
    with tempfile.TemporaryDirectory() as store:
        common = [given.recipe, *settings, "--store", store]
        said = json.loads(strata("estimate", *common, "--json"))
        strata("run", *common)
        rows = compare(said, Path(store))
    machine = f"{platform.processor() or platform.machine()}, {platform.node()}"
    command = " ".join(["python", "tests/benchmarks/estimate_error.py", given.recipe, *settings])
    written = [
        {"recipe": given.recipe, "what": what, "estimated": round(a, 1), "real": round(b, 1)}
        | {"ratio": round(a / b, 3), "machine": machine, "command": command}
        for what, a, b in rows
    ]
    others: list[dict[str, object]] = []
    if given.results.is_file():
        with given.results.open(newline="") as stream:
            others = [row for row in csv.DictReader(stream) if row["recipe"] != given.recipe]
    given.results.parent.mkdir(exist_ok=True)
    with given.results.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, FIELDS)
        writer.writeheader()
        writer.writerows([*others, *written])
    return written


def compare(said: dict[str, dict[str, float]], store: Path) -> list[tuple[str, float, float]]:
    """Pair what was said with what lies in the store and what its references tell."""

    def size(pattern: str) -> int:
        return sum(path.stat().st_size for path in store.glob(pattern) if path.is_file())

    real = {
        "activations": size("extract/*/rows/**/*"),
        "codes": size("encode/*/rows/**/*"),
        "dictionaries": size("learn/*/dictionaries/**/*") + size("artifacts/*/**/sae_weights*"),
    }
    rows = [(f"{name} bytes", said["bytes"][name], float(real[name])) for name in real]
    rows.append(("all bytes", sum(said["bytes"].values()), float(sum(real.values()))))
    seconds = {
        step: json.loads(next(store.glob(f"{step}/*/reference.json")).read_text())["seconds"]
        for step in said["seconds"]
    }
    rows += [(f"{step} seconds", said["seconds"][step], seconds[step]) for step in seconds]
    rows.append(("all seconds", sum(said["seconds"].values()), sum(seconds.values())))
    return rows


def strata(*arguments: str) -> str:
    """Run the command line and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "flows", *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


if __name__ == "__main__":
    for row in main():
        sys.stdout.write(f"{row['what']}: {row['estimated']} said, {row['real']} real\n")
