"""Hierarchies of discrete variables, recovered by compression."""
