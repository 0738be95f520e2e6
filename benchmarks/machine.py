"""What a result was measured on: processor, vector units, versions, other load; never the machine's name."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "neon", "asimd", "sve", "bf16")
PACKAGES = ("torch", "torchvision", "numpy", "onnxruntime-gpu", "onnxruntime", "openvino", "captum")


def describe() -> dict[str, Any]:
    """The machine and the versions of what runs on it."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "flags": _flags(),
        "memory_gib": _memory(),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def summary(threads: int) -> str:
    """The processor, threads and versions, in one line."""
    return f"{_processor()}, {threads} threads, torch {torch.__version__}, Python {platform.python_version()}"


def as_text(machine: dict[str, Any]) -> str:
    """What `describe` returned, in two lines."""
    memory = "" if machine["memory_gib"] is None else f", {machine['memory_gib']:.0f} GiB"
    versions = [f"Python {machine['python']}", *(f"{name} {text}" for name, text in machine["packages"].items())]
    flags = " ".join(machine["flags"]) or "unknown"
    return (
        f"{machine['processor']}, {machine['cores']} cores{memory}, {machine['system']}; vector units: {flags}.\n"
        + (", ".join(versions) + ".")
    )


@dataclass
class Busy:
    """How much of the processors' time others took, while one measured; None where the system doesn't tell."""

    share: float | None = None


@contextmanager
def others() -> Iterator[Busy]:
    """Note what other processes take of the processors while the block runs; known on Linux."""
    busy = Busy()
    before = _ticks()
    yield busy
    if before is not None and (after := _ticks()) is not None:
        total, taken, mine = (end - start for start, end in zip(before, after, strict=True))
        busy.share = min(max(taken - mine, 0.0) / max(total, 1e-9), 1.0)  # not above by rounding


def _ticks() -> tuple[float, float, float] | None:
    """Seconds of all processors since the start: in all, not idle, and of this process."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    second = os.sysconf("SC_CLK_TCK")
    ticks = [int(word) / second for word in stat.read_text().splitlines()[0].split()[1:9]]
    idle, own = ticks[3] + ticks[4], os.times()
    return sum(ticks), sum(ticks) - idle, own.user + own.system


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _flags() -> list[str]:
    present = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return [flag for flag in FLAGS if flag in present]


def _cpuinfo(key: str) -> str:
    """The first value under a key of Linux's description of its processors; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((text.split(":", 1)[1].strip() for text in lines if text.split(":")[0].strip() == key), "")


def _memory() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):  # not on every system
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
