"""What a run was made on."""

import os
import platform
from functools import lru_cache
from pathlib import Path

__all__ = ["cpu_name", "is_busy"]


def is_busy() -> bool:
    """Whether more was to be done over the last minute than there are processors.

    False where the system does not tell it. A run alone, with a thread for each processor and some
    that read ahead, stays below the mark.
    """
    if not hasattr(os, "getloadavg"):
        return False
    return os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1)


@lru_cache(maxsize=1)
def cpu_name() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
