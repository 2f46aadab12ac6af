"""Starting the processes that judge and learn, by whoever looks after them."""

import json
import os
import subprocess
import sys
from pathlib import Path

from offnominal.station.settings import Settings

__all__ = ["LEARNER", "judges", "start_worker"]

LEARNER = "learner"
"""Name of the process that learns."""


def judges(settings: Settings) -> list[str]:
    """Names of the processes that judge."""
    return [f"worker-{number}" for number in range(1, settings.workers + 1)]


def start_worker(name: str, settings: Settings, folder: Path) -> "subprocess.Popen[bytes]":
    """Start one; it ends when the pipe to its standard input does, so with who started it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = settings.threads or max(1, (cores or 1) // settings.workers)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    told = {"name": name, "folder": str(folder), "models": settings.models}
    told |= {"log": settings.log}
    process = subprocess.Popen(
        [sys.executable, "-m", "offnominal.station.inspection.worker"],
        stdin=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C is for who started it, which then says so
    )
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(told).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it ended at once, which is seen by who waits for it
    return process
