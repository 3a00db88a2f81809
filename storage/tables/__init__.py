"""Sealed, checksummed tables: activation sets and code sets."""
