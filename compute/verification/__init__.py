"""Verification: edges of the graph tested by intervention in the running model.

``verify_edges`` measures what setting a part does to its wholes; ``faithfulness`` asks how much of
the model's own output the graph's circuits carry; ``recovered_loss`` how much of its loss the codes
of a level keep. `open_bench` puts a model on the bench.
"""

from compute.verification.bench import Bench, Pool
from compute.verification.benches import open_bench
from compute.verification.circuit_faithfulness import Faithfulness, faithfulness
from compute.verification.effects import Verification, verify_edges
from compute.verification.items import held_out_items
from compute.verification.loss_by_codes import recovered_loss
from compute.verification.nulls import correlation_edges, shuffled_edges

__all__ = [
    "Bench",
    "Faithfulness",
    "Pool",
    "Verification",
    "correlation_edges",
    "faithfulness",
    "held_out_items",
    "open_bench",
    "recovered_loss",
    "shuffled_edges",
    "verify_edges",
]
