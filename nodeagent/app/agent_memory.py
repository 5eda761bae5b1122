"""Keeps the process small and its pauses short: what the C library and the garbage collector do by default
suits neither a process with many short-lived threads nor one with a million objects that stay.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final

_M_ARENA_MAX: Final = -8  # malloc.h
_ARENAS: Final = 2
_NEW_OBJECTS: Final = 10_000

_libc = ctypes.CDLL(None)


def limit_arenas() -> None:
    """Let threads share malloc's arenas; by default each of the many that enter namespaces gets its own. To
    be called before threads are started. Without effect where the C library is not glibc."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, _ARENAS)


def collect_seldom() -> None:
    """Let the garbage collector look after ten thousand new objects, not 700: taking in a resource makes some twenty
    that stay. (A large mesh: 0.2 s of 2.)"""
    gc.set_threshold(_NEW_OBJECTS, 10, 10)


def keep_what_is_there() -> None:
    """Spare the collector what has been taken in so far, while more comes; it would walk all of it several times."""
    gc.freeze()


def settle_memory() -> None:
    """After much has been taken in that will stay: the collector need not look at it again and again, and
    what decoding has used goes back to the kernel."""
    gc.freeze()
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
