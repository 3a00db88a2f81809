"""The terminal of who began a run: one console, so that lines go above the bars."""

from rich.console import Console

__all__ = ["terminal"]

terminal = Console(stderr=True, highlight=False, markup=False)
