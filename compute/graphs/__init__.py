"""Recovery of the causal graph between levels of concepts.

The order of the levels is known, so every edge runs from a part to a whole and none has to be
directed by search. What has to be right is the *decision*. Four things make it so:

1. Minimality, not significance. An edge is what the smallest parent set that keeps the fit cannot
   do without. Significance alone calls more and more false edges as rows grow, since any regression
   that is not the true gate leaks a little of each parent into its neighbours
   (:mod:`compute.graphs.decision`).
2. A quadratic regression. Gates bend: with squares and products the leaks shrink from one part in
   thirty to one in a thousand of a whole's explained variance (:mod:`compute.graphs.elimination`).
3. Siblings. Selection at the top makes wholes depend on one another and hence on each other's
   parts; every regression holds the sibling wholes (:mod:`compute.graphs.screening`).
4. The direction check: parts of a selection whole become dependent given the whole, effects of a
   common cause become independent (:mod:`compute.graphs.direction`).

What was tried besides, and what does not hold yet, stands in ``compute/graphs/README.md``.
"""

from compute.graphs.recovery import recover_edges
from compute.graphs.result import EdgeRecovery, RecoveredEdge
from compute.graphs.stream import recover_edges_stream

__all__ = ["EdgeRecovery", "RecoveredEdge", "recover_edges", "recover_edges_stream"]
