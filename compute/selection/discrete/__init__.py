"""Hierarchies of discrete variables, recovered by compression.

The doors are `compute.selection.DiscreteHierarchy` and `compute.selection.nonnegative_rank`.
"""
