"""Which of several ways is fastest for a shape: measured on the device, and kept in the user's cache directory."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kcompile.cuda_ops import kept

FORMAT = 1
GAIN = 0.97  # of the first way's time: another one must take less
WARM, TIMED = 2, 5
Way = Callable[[], Tensor]
Times: TypeAlias = list[tuple[int, float | None]]  # seconds of each way


@dataclass(frozen=True)
class Tuner:
    """Measures ways on one device, and remembers.

    Attributes:
        device: The device; its name and the versions of what runs there are part of what is kept.
        clock: Seconds that a call takes.
        known: Answers by key.
    """

    device: Any
    clock: Callable[[Way], float]
    known: dict[Hashable, int]

    def choose(self, key: tuple[Hashable, ...], ways: Callable[[], Mapping[int, Way]], error: float) -> int:
        """The fastest way.

        Args:
            key: The shape, and all else that the times depend on beside the device.
            ways: Makes them with what they run on; asked for only where the answer isn't known. The first is the
                reference.
            error: As a share of the reference's largest value: ways that err by more are left out.
        """
        if key not in self.known:
            self.known[key] = fastest(self.times(key, ways, error))
        return self.known[key]

    def times(self, key: tuple[Hashable, ...], ways: Callable[[], Mapping[int, Way]], error: float) -> Times:
        """Seconds of each way, None for those that fail or are wrong; the first comes first; see `choose`."""
        times = self.recall(key)
        if times is None:
            times = self._times(ways(), error)
            if (file := self._file(key)) is not None:
                kept.write(file, json.dumps({"key": repr(key), "times": times}).encode())
        return times

    def recall(self, key: tuple[Hashable, ...]) -> Times | None:
        """What was measured for a key, by whatever process; None if nothing was."""
        file = self._file(key)
        return None if file is None else _read(file, key)

    def _file(self, key: tuple[Hashable, ...]) -> Any:
        folder = kept.folder()
        whole = repr((FORMAT, self.device, key))
        return None if folder is None else folder / "tuning" / f"{hashlib.sha256(whole.encode()).hexdigest()[:24]}.bin"

    def _times(self, ways: Mapping[int, Way], error: float) -> Times:
        (first, reference), *others = ways.items()
        want = reference().float()
        times: Times = [(first, self.clock(reference))]
        for way, call in others:
            times.append((way, self._time(call, want, error)))
        return times

    def _time(self, call: Way, want: Tensor, error: float) -> float | None:
        try:
            off = (call().float() - want).abs().max() / want.abs().max().clamp(min=1e-30)
            return self.clock(call) if float(off) <= error else None
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a kernel that needs more of the device than it has
            return None


def fastest(times: Times) -> int:
    """The way that took least time; the first, unless another one gains."""
    (first, bound), *others = times
    assert bound is not None
    best, least = first, GAIN * bound
    for way, seconds in others:
        if seconds is not None and seconds < least:
            best, least = way, seconds
    return best


def _read(file: Any, key: tuple[Hashable, ...]) -> Times | None:
    """What was measured before; None if that isn't whole."""
    content = kept.read(file)
    try:
        found = json.loads(content) if content is not None else {}
        times = [(int(way), None if seconds is None else float(seconds)) for way, seconds in found["times"]]
        whole = found["key"] == repr(key) and times[0][1] is not None
        return times if whole and all(s is None or math.isfinite(s) for _, s in times) else None
    except (KeyError, TypeError, ValueError, IndexError):
        return None


def tuner(device: torch.device) -> Tuner:
    """The tuner of a CUDA device."""
    return _tuner(torch.cuda.current_device() if device.index is None else device.index)


_tuners: dict[int, Tuner] = {}


def _tuner(index: int) -> Tuner:
    if index not in _tuners:
        found = torch.cuda.get_device_properties(index)
        versions = (torch.__version__, torch.backends.cudnn.version(), _triton())
        name = (found.name, found.major, found.minor, found.multi_processor_count, *versions)
        _tuners[index] = Tuner(name, lambda call: seconds_on(index, call), {})
    return _tuners[index]


def _triton() -> str | None:
    """Its version; None without it: other things are measured, too."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


def seconds_on(index: int, call: Way) -> float:
    """Seconds of one call on a GPU, of several that are queued."""
    with torch.cuda.device(index):
        for _ in range(WARM):
            call()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(TIMED):
            call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000 / TIMED
