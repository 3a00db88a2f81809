"""Hierarchical selection models of continuous levels: codes by inference, concepts by selection.

The door is `compute.selection.HierarchicalSelectionModel` (in `hierarchical.py`).
"""
