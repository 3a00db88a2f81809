"""Hierarchical selection models of continuous levels."""
