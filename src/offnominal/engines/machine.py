"""What this machine has: engines, a processor and its instructions, a graphics card."""

import ctypes
import os
import platform
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from offnominal.engines.base import EXTRAS, threads
from offnominal.errors import OptionError
from offnominal.extras import is_there

__all__ = [
    "check_installed",
    "cpu_name",
    "described",
    "has_bf16",
    "has_cuda",
    "installed",
    "instructions",
    "this_machine",
]

# What engines use where it is there, as Linux names it, in plain words.
_INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "bf16",
    "amx_bf16": "AMX bf16",
    "amx_int8": "AMX int8",
    "asimd": "NEON",
    "bf16": "bf16",
    "sve": "SVE",
}


def installed() -> dict[str, str]:
    """The engines' versions, none of them imported; empty for one that is not installed."""
    return {name: _version(name) for name in EXTRAS}


@lru_cache
def _version(name: str) -> str:
    if not is_there(name):
        return ""
    for package in (name, f"{name}-gpu", f"{name}-directml"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "unknown"


def described() -> dict[str, str]:
    """The engines, for people: which are installed, and where the rest comes from."""
    absent = "not installed, and not needed: pip install 'offnominal[{}]'"
    return {
        name: told or absent.format(EXTRAS[name] or "all") for name, told in installed().items()
    }


def check_installed(name: str) -> None:
    """Raise an :class:`OptionError` that names the extra, unless an engine is installed."""
    if _version(name):
        return
    extra = f"offnominal[{EXTRAS[name]}]" if EXTRAS[name] else name
    raise OptionError(f"--engine {name}: {name} is not installed: pip install '{extra}'")


@lru_cache
def _cpuinfo() -> dict[str, str]:
    """The first processor, as Linux tells of it; empty elsewhere."""
    try:
        first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def cpu_name() -> str:
    """The processor's name where the system tells it."""
    return _cpuinfo().get("model name", "") or platform.processor() or platform.machine()


def instructions() -> list[str]:
    """Instructions that make networks fast and that this processor has, in words."""
    told = _cpuinfo()
    flags = (told.get("flags") or told.get("Features") or "").split()
    return list(dict.fromkeys(words for flag, words in _INSTRUCTIONS.items() if flag in flags))


def has_bf16() -> bool:
    """Whether this processor has instructions for sums in bf16."""
    return bool({"bf16", "AMX bf16"} & {*instructions()})


@lru_cache
def has_cuda() -> bool:
    """Whether torch would find a card; it is not imported for it, and no card is touched.

    To start CUDA here would take it from processes that are forked later.
    """
    if (cuda := getattr(sys.modules.get("torch"), "cuda", None)) is not None:
        return bool(cuda.is_available())
    if not (told := _version("torch")) or "+cpu" in told or sys.platform == "darwin":
        return False
    if "+rocm" in told:
        return Path("/dev/kfd").exists()
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    win = sys.platform == "win32"
    if (library := _library("nvml.dll" if win else "libnvidia-ml.so.1")) is None:
        # Small boards of NVIDIA's have a driver without it; that it is there has to do.
        return _library("nvcuda.dll" if win else "libcuda.so.1") is not None
    count = ctypes.c_uint(0)
    if library.nvmlInit_v2() != 0:
        return False
    fine = library.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
    library.nvmlShutdown()
    return fine and count.value > 0


def _library(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def this_machine() -> dict[str, str]:
    """What the speed of engines depends on: by it a choice is found again."""
    return {"cpu": cpu_name(), "threads": str(threads()), **installed()}
