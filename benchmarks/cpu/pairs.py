"""Paired timing: each round runs the incremental side and then every naive side on a share, so that drift hits all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

import kcompile
from benchmarks.cpu.cases import Case
from benchmarks.maps import IntArray, Sample, own_box_macs

WHOLE_SHARE = 256  # so many positions or fewer are all inferred in full, in every round
REPEATS = 32  # queries of an interactive measurement, at least


class NaiveSide(Protocol):
    """What a baseline must do."""

    @property
    def name(self) -> str:
        """Of the baseline."""

    def time(self, image: Tensor, positions: IntArray, patch: int) -> tuple[float, Tensor | None]:
        """Seconds to infer patched copies of an image in full, and the outputs, if it has them."""


@dataclass
class Rounds:
    """What the rounds gave.

    Attributes:
        incremental: Seconds of the map or the call, per round.
        naive: Seconds per image, per baseline and round.
        errors: Largest difference from eager PyTorch's outputs, per baseline; "incremental" too. In shares of
            max|full output|, as ``change``.
        change: Largest difference between outputs of patched images and of the base.
    """

    incremental: list[float] = field(default_factory=list)
    naive: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    change: float = 0.0

    def ratios(self, name: str, images: int) -> list[float]:
        """Per round, the naive seconds of so many images over the incremental ones."""
        return [images * each / ours for each, ours in zip(self.naive[name], self.incremental, strict=True)]


@dataclass(frozen=True)
class Incremental:
    """The incremental side of one case: a map (perhaps a sample of it) or a call with few queries.

    Attributes:
        inc: The compiled module.
        image: [C, H, W].
        case: What is measured.
        positions: [N, 2] that are run.
        sample: The map's sample; None for a call.
    """

    inc: kcompile.IncrementalModule
    image: Tensor
    case: Case
    positions: IntArray
    sample: Sample | None

    def run(self) -> tuple[float, Tensor, Tensor]:
        """Seconds, the outputs of the positions, and the base's output."""
        return self._call() if self.sample is None else incremental_map(self.inc, self.image, self.sample)

    @property
    def images(self) -> int:
        """How many images full inference needs for the same result."""
        return len(self.positions if self.sample is None else self.sample.everything)

    @torch.inference_mode()
    def _call(self) -> tuple[float, Tensor, Tensor]:
        base = self.inc.materialize(self.image)
        repeats = -(-REPEATS // len(self.positions))
        start = time.perf_counter()
        for _ in range(repeats):
            out = self.inc.forward_patches(0.0, self.positions)
        return (time.perf_counter() - start) / repeats, out, base


@torch.inference_mode()
def incremental_map(inc: kcompile.IncrementalModule, image: Tensor, sample: Sample) -> tuple[float, Tensor, Tensor]:
    """Seconds of a whole map, the outputs at the sample's positions, and the base's output.

    Materialisation and scheduling count as they are; the time of a sample's batches is scaled up to the whole map.
    """
    start = time.perf_counter()
    base = inc.materialize(image)
    ready = time.perf_counter()
    with sample.scheduled():
        out = inc.forward_patches(0.0, sample.positions)
    queries = time.perf_counter() - ready - sample.scheduling
    return ready - start + sample.scheduling + queries * sample.scale, out, base


def stratified(inc: kcompile.IncrementalModule, positions: IntArray, count: int) -> IntArray:
    """``count`` of a map's positions, at even distances when ordered by arithmetic (repeated where there are fewer)."""
    order = np.argsort(own_box_macs(inc, positions), kind="stable")
    return positions[order[((np.arange(count) + 0.5) / count * len(positions)).astype(np.int64)]]


def paired(ours: Incremental, naives: Sequence[NaiveSide], rounds: int, share: int) -> Rounds:
    """Run the rounds.

    Args:
        ours: The incremental side.
        naives: The others; the first gives the outputs that all are compared with.
        rounds: A/B rounds.
        share: Positions per round of every baseline but the first, at most. The first goes over all positions, in
            equal shares per round.
    """
    made = Rounds(naive={naive.name: [] for naive in naives}, errors=dict.fromkeys(["incremental"], 0.0))
    scale = 0.0
    for number, rows in enumerate(_shares(len(ours.positions), rounds)):
        seconds, out, base = ours.run()
        made.incremental.append(seconds)
        outputs: dict[str, Tensor] = {"incremental": out[torch.from_numpy(rows)]}
        for naive in _turned(naives, number):
            some = rows if naive is naives[0] else rows[:share]
            seconds, result = naive.time(ours.image, ours.positions[some], ours.case.patch)
            made.naive[naive.name].append(seconds / len(some))
            if result is not None:
                outputs[naive.name] = result
        reference = outputs.pop(naives[0].name)
        scale = max(scale, float(reference.abs().max()))
        made.change = max(made.change, float((reference - base).abs().max()))
        for name, result in outputs.items():
            error = float((result - reference[: len(result)]).abs().max())
            made.errors[name] = max(made.errors.get(name, 0.0), error)
    made.change /= scale
    made.errors = {name: error / scale for name, error in made.errors.items()}
    return made


def _shares(count: int, rounds: int) -> list[IntArray]:
    rows = np.random.default_rng(0).permutation(count)
    return [rows] * rounds if count <= WHOLE_SHARE else np.array_split(rows, rounds)


def _turned(naives: Sequence[NaiveSide], by: int) -> Iterator[NaiveSide]:
    """All of them, beginning with another one each time: none is always the first after the incremental side."""
    first = by % len(naives)
    yield from (*naives[first:], *naives[:first])


def summary(rounds: Rounds, name: str, images: int) -> dict[str, Any]:
    """One baseline's numbers: milliseconds per image, and the ratio with its range."""
    ratios = rounds.ratios(name, images)
    return {
        "ms": 1e3 * statistics.median(rounds.naive[name]), "ratio": statistics.median(ratios),
        "lowest": min(ratios), "highest": max(ratios), "error": rounds.errors.get(name),
        "seconds": rounds.naive[name],
    }  # fmt: skip
