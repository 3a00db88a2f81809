"""Hierarchical selection models of continuous levels: codes by inference, concepts by selection.

The doors are `compute.selection.HierarchicalSelectionModel` (in `hierarchical.py`), which fits some
thousand rows in memory, and `compute.selection.StreamedSelectionModel` (in `streamed.py`), which
reads batches from a store and is reached by no flow yet.
"""
