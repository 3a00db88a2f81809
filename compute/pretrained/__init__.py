"""Weights of the project's own models, as standard folders of diffusers and transformers.

`package:compute.pretrained.sprites`, `….digits` and `….grammar` name them wherever a model's source
is asked for. Each folder's README.md says how its weights were made.
"""
