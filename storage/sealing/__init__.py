"""Seals: files and folders that are checked whenever they are read."""
