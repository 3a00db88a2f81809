"""Which device and number format a model runs in, and how large a batch fits."""

from __future__ import annotations

from collections.abc import Callable

import torch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device: ``auto`` is the first accelerator, else the CPU.

    Raises
    ------
    ValueError : the device is unknown or not present.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is unknown; use 'auto', 'cpu' or 'cuda'") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r} is not present here; use 'auto' or 'cpu'")
    return chosen


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Return the number format: ``auto`` is bfloat16 where the device computes in it natively.

    A CPU without bfloat16 instructions emulates them several times slower than float32.

    Raises
    ------
    ValueError : the name is none of auto, float32, float16, bfloat16.
    """
    if dtype == "auto":
        return torch.bfloat16 if _native_bfloat16(device) else torch.float32
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    raise ValueError(f"dtype {str(dtype)!r} is unknown; use 'auto', {', '.join(DTYPES)}")


def largest_batch(fits: Callable[[int], None], *, start: int = 1, limit: int = 1024) -> int:
    """Return the largest power-of-two multiple of ``start`` for which ``fits`` does not run out.

    Parameters
    ----------
    fits : runs one batch of the given size, raising `torch.OutOfMemoryError` if it is too large.
    start, limit : first and largest size tried.

    Raises
    ------
    torch.OutOfMemoryError : not even ``start`` fits.
    """
    fits(start)
    size = start
    while size * 2 <= limit:
        try:
            fits(size * 2)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        size *= 2
    return size


def _native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
