"""The science and the numerics: torch, Ray, diffusers, transformers, Dask. Knows no Prefect."""
