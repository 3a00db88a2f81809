"""Cycles of references do not wait for Python's own full collection."""

import gc
import time
import weakref

from flows.long_worker import collect_every


class Node:
    """One of a cycle."""


def test_a_cycle_is_freed_in_time():
    gc.disable()
    ended = None
    try:
        first, second = Node(), Node()
        first.other, second.other = second, first
        gone = weakref.ref(first)
        del first, second
        assert gone() is not None
        ended = collect_every(0.05)
        deadline = time.monotonic() + 10
        while gone() is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert gone() is None
    finally:
        gc.enable()
        if ended:
            ended.set()
