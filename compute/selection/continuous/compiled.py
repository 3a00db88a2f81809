"""Compiling for the CPU, kept on disk where some folder can be written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Numba's ``njit``, cached beside the file or where ``NUMBA_CACHE_DIR`` says, if it can be."""

    def compile_it(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return njit(cache=True, error_model="numpy", **options)(function)  # type: ignore[no-any-return]
        # Numba finds no folder that it may write to: every process compiles anew.
        except RuntimeError:
            return njit(error_model="numpy", **options)(function)  # type: ignore[no-any-return]

    return compile_it
