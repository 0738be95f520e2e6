"""How far an approximate map is off, from some positions that are also computed exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kcompile.bounds import order_interval
from kcompile.core.errors import InputError

CONFIDENCE = 0.9
SHARES = (0.9, 0.75, 0.5)  # the first for which the sample is large enough
FEWEST = 5  # below, no interval has the confidence, not even that of the median


@dataclass(frozen=True)
class ErrorEstimate:
    """An interval for the error that all but a few of a map's approximated positions stay within.

    The exact scores of ``samples`` positions, drawn at random without replacement from the ``positions`` approximated
    ones, give their absolute errors. The interval is between two of these, counted so that it encloses the error's
    quantile over all approximated positions with at least the confidence, whatever the errors' distribution: a sample's
    number of positions below a quantile is hypergeometric (`kcompile.bounds.order_interval`).

    Attributes:
        share: Of the approximated positions that are off by no more than ``error``.
        error: The sample's quantile for that share, in units of the score.
        low: Lower end of its interval.
        high: Upper end.
        confidence: With which the interval holds.
        samples: Positions that were also computed exactly.
        positions: Positions that are approximated.
        largest: Largest error in the sample.
    """

    share: float
    error: float
    low: float
    high: float
    confidence: float
    samples: int
    positions: int
    largest: float

    def __str__(self) -> str:
        """In one line, for captions."""
        return (
            f"{self.share:.0%} of the approximated positions are off by ≤ {self.error:.2g} ({self.low:.2g} … "
            f"{self.high:.2g} with {self.confidence:.0%} confidence, {self.samples} sampled)"
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Checked:
    """The positions of an approximate map that were also computed exactly.

    Attributes:
        rows: [k], indices into the flattened grid.
        scores: [k, K], exact scores of every class.
        positions: Number of approximated positions, of which these are a random sample.
    """

    rows: npt.NDArray[np.int64]
    scores: npt.NDArray[np.floating[Any]]
    positions: int

    def against(self, scores: npt.NDArray[np.floating[Any]], target: int) -> ErrorEstimate | None:
        """The error of a map's scores [*grid, K] for one class; None if scores are not finite."""
        errors = scores.reshape(-1, scores.shape[-1])[self.rows, target] - self.scores[:, target]
        return estimate(errors, self.positions) if np.isfinite(errors).all() else None


def estimate(
    errors: Sequence[float] | np.ndarray[Any, Any], positions: int, confidence: float = CONFIDENCE
) -> ErrorEstimate:
    """An interval for a map's error.

    Args:
        errors: Of the sample, score by score; the signs don't matter.
        positions: Number of positions that the sample was drawn from.
        confidence: Of the interval.

    Raises:
        InputError: Too few errors, more than positions, or some that are not finite.
    """
    found = np.sort(np.abs(np.asarray(errors, dtype=np.float64)))
    if not np.isfinite(found).all():
        raise InputError("the errors of the sample are not all finite: the model returns NaN or infinite scores")
    if len(found) > positions:
        raise InputError(f"{len(found)} errors of {positions} positions; allowed are at most as many")
    for share in SHARES:
        ends = order_interval(len(found), positions, share, confidence) if len(found) else None
        if ends is not None:
            low, high = ends
            at = min(len(found), max(1, math.ceil(share * len(found) - 1e-9)))
            value, lowest = float(found[at - 1]), float(found[low - 1]) if low else 0.0
            ends_at = float(found[high - 1])
            return ErrorEstimate(share, value, lowest, ends_at, confidence, len(found), positions, float(found[-1]))
    raise InputError(
        f"{len(found)} positions are sampled; allowed are 0 (no estimate) and at least {FEWEST}: fewer give no "
        f"interval of {confidence:.0%} confidence"
    )


def draw(candidates: np.ndarray[Any, Any], count: int, seed: int | None = None) -> np.ndarray[Any, Any]:
    """Up to ``count`` of the candidates, at random, without replacement, in ascending order.

    Args:
        candidates: Indices.
        count: How many; all of them if there are fewer.
        seed: Default: another draw each time. The map doesn't depend on it, its estimate does.
    """
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(candidates, size=min(count, len(candidates)), replace=False))
