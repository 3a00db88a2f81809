"""Weights of the project's own two diffusion models, as standard diffusers folders.

`package:compute.pretrained.sprites` and `package:compute.pretrained.digits` name them wherever a
model's source is asked for. Each folder's README.md says how its weights were made.
"""
