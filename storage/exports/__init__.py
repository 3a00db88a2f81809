"""Formats that other tools load: SAELens dictionaries, Neuronpedia graphs, Hub-ready folders."""
