"""What a run was made on."""

import platform
from functools import lru_cache
from pathlib import Path

__all__ = ["cpu_name"]


@lru_cache(maxsize=1)
def cpu_name() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
