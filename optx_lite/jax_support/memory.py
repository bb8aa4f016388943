"""Whether arrays fit into memory, asked before they are allocated.

An allocation that is too large ends in XLA's RESOURCE_EXHAUSTED, or on a CPU, where memory is
handed out when it is first written, in the end of the process.
"""

from __future__ import annotations

import os

import jax


def check_fits(what: str, size: int, instead: str) -> None:
    """Raise MemoryError, with both sizes, if ``size`` bytes are more than all devices have."""
    limit = _memory()
    if limit is not None and size > limit:
        raise MemoryError(f"{what} {_in_gib(size)}, the memory has {_in_gib(limit)}: {instead}.")


def _memory() -> int | None:
    """Bytes of all devices of the default backend; None where that is unknown."""
    if jax.default_backend() != "cpu":
        limits = [
            (device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()
        ]
        whole = None if None in limits else sum(limit for limit in limits if limit is not None)
    elif {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(getattr(os, "sysconf_names", ())):
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        whole = None
    return None if whole is None else whole * jax.process_count()


def _in_gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
