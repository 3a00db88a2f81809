"""Seals: files and folders that are checked whenever they are read.

`SealedFolder` is the door to a finished folder; what does not match its seal raises `CorruptFile`.
"""
