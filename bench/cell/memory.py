"""Measurement of a method's peak memory."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

import torch


class PeakMemory:
    """The largest peak over several regions, in MiB.

    On a GPU this is allocated memory. On a CPU it is the growth of the resident set (Linux), after the allocator has
    returned the free memory of earlier regions.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.mib: float | None = None
        self._before: int | None = None

    def start(self) -> None:
        """Begin a region."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        with contextlib.suppress(OSError, AttributeError):  # AttributeError: a C library without malloc_trim
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak resident set
        self._before = _status_kib("VmRSS")

    def stop(self) -> None:
        """End the region."""
        if self.cuda:
            peak: float | None = torch.cuda.max_memory_allocated() / 2**20
        else:
            most = _status_kib("VmHWM")
            peak = (most - self._before) / 1024 if most is not None and self._before is not None else None
        if peak is not None:
            self.mib = max(peak, self.mib or 0.0)


def _status_kib(field: str) -> int | None:
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(field))
    except (OSError, StopIteration):
        return None
