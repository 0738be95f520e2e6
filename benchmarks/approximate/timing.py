"""Times of whole maps, in pairs: approximate, exact and by eager full inference, in turn and in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import kcompile
from benchmarks.maps import occluded, positions_of

EAGER_BATCH = 16
EAGER_SHARE = 64  # positions that are inferred in full per round; their time is scaled up to the map's


def compare(
    model: nn.Module,
    inc: kcompile.IncrementalModule,
    image: Tensor,
    stride: int,
    settings: dict[str, kcompile.Approximation],
    rounds: int,
) -> dict[str, Any]:
    """Seconds of a map by each way, round by round, by the clock and of processor time.

    The base image's materialisation and gradients count, as do the exactly computed samples of an approximate map's
    error estimate (its default number); compilation and packing don't, so each way runs once before.

    Returns:
        By way ("eager", "exact", and the settings' names): "seconds" and "cpu", one of each per round.
    """
    patch = inc.plan.patch_shape[0]
    positions = positions_of(image.shape[-1], patch, stride)
    chosen = positions[:: max(1, len(positions) // EAGER_SHARE)][:EAGER_SHARE]
    plain = model.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def eager() -> None:
        for first in range(0, len(chosen), EAGER_BATCH):
            plain(occluded(image, chosen[first : first + EAGER_BATCH], patch))

    def mapped(approximation: kcompile.Approximation | None) -> Callable[[], None]:
        return lambda: kcompile.occlusion(inc, image, stride=stride, score="logit", approximation=approximation)

    ways: dict[str, Callable[[], None]] = {"eager": eager, "exact": mapped(None)}
    ways.update({name: mapped(setting) for name, setting in settings.items()})
    for run in ways.values():
        run()
    found: dict[str, Any] = {name: {"seconds": [], "cpu": []} for name in ways}
    for turn in range(rounds):
        names = list(ways)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds, cpu = _timed(ways[name])
            factor = len(positions) / len(chosen) if name == "eager" else 1.0
            found[name]["seconds"].append(seconds * factor)
            found[name]["cpu"].append(cpu * factor)
    found["positions"] = len(positions)
    found["threads"] = torch.get_num_threads()
    return found


def ratios(found: dict[str, Any], name: str, against: str, clock: str = "seconds") -> tuple[float, float, float]:
    """Median, least and largest ratio of the rounds: ``against`` over ``name``."""
    pairs = [a / b for a, b in zip(found[against][clock], found[name][clock], strict=True)]
    return median(pairs), min(pairs), max(pairs)


def like(setting: kcompile.Approximation) -> kcompile.Approximation:
    """The same setting for another network: cuts by share carry over, those by a layer's name and extents don't.

    Raises:
        kcompile.InputError: A cut by name, or extents.
    """
    if setting.extents:
        raise kcompile.InputError("extents are of the layers of one network; allowed here are thresholds (tau)")
    if isinstance(setting.cut, str):
        raise kcompile.InputError(f"cut is {setting.cut!r}, a layer of one network; allowed here are shares")
    return replace(setting)


def _timed(run: Callable[[], None]) -> tuple[float, float]:
    clock, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - clock, time.process_time() - cpu
