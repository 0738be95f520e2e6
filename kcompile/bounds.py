"""Statements about many things from a few of them, with a stated confidence: binomial and order-statistic bounds.

All are distribution-free and hold for finite samples; none fits a curve or assumes a normal error.
"""

from __future__ import annotations

import math
from functools import lru_cache

from kcompile.core.errors import InputError


def share_bound(met: int, images: int, confidence: float) -> float:
    """Lower bound of a probability from ``met`` successes of ``images``: Clopper and Pearson (1934), one-sided.

    The largest p that a test of level ``1 - confidence`` rejects: P(X >= met) = 1 - confidence for X ~ B(images, p).
    The probability is above it with at least the confidence.
    """
    from scipy.stats import beta

    _check_counts(met, images)
    return float(beta.ppf(1 - confidence, met, images - met + 1)) if met else 0.0


def certified(met: int, images: int, coverage: float, confidence: float) -> bool:
    """Whether ``met`` successes of ``images`` show a probability of at least ``coverage``, with the confidence.

    The exact binomial test: P(X >= met) <= 1 - confidence for X ~ B(images, coverage). If the true probability is
    below ``coverage``, it says yes with a probability of at most ``1 - confidence``.
    """
    from scipy.stats import binom

    _check_counts(met, images)
    tail = float(binom.sf(met - 1, images, coverage))  # P(X > met - 1)
    return tail <= 1 - confidence + 1e-12  # a confidence of 0.9 is 0.1 + 2e-17 as a float


def images_needed(coverage: float, confidence: float) -> int:
    """The fewest images that can certify a coverage, all of them meeting the target: coverage**n <= 1 - confidence."""
    count = max(1, math.ceil(math.log(1 - confidence) / math.log(coverage) - 1e-9))
    while not certified(count, count, coverage, confidence):
        count += 1
    return count


@lru_cache(maxsize=256)
def order_interval(sampled: int, population: int, share: float, confidence: float) -> tuple[int, int] | None:
    """Which order statistics of a sample enclose a quantile of its population.

    The quantile is the value of rank ``ceil(share * population)``. Of a sample without replacement, the number of
    values up to that rank is hypergeometric, so the interval from the ``low``-th to the ``high``-th smallest value of
    the sample (counted from 1; ``low`` 0 is minus infinity) encloses the quantile with at least the confidence,
    whatever the values are, also with ties. (David and Nagaraja, Order Statistics, section 7.1.)

    Returns:
        (low, high), at most half of ``1 - confidence`` beyond each end; None if the sample is too small for ``high``.
    """
    import numpy as np
    from scipy.stats import hypergeom

    rank = min(population, max(1, math.ceil(share * population - 1e-9)))
    tail = (1 - confidence) / 2 + 1e-12
    counts = np.arange(1, sampled + 1)
    # The quantile is above the j-th smallest of the sample only if at least j of it have a rank below the quantile's.
    above = counts[hypergeom.sf(counts - 1, population, rank - 1, sampled) <= tail]
    # It is below the j-th smallest only if fewer than j of the sample have a rank up to the quantile's.
    below = counts[hypergeom.cdf(counts - 1, population, rank, sampled) <= tail]
    return (int(below.max(initial=0)), int(above.min())) if above.size else None


def check_share(name: str, value: float) -> float:
    """A probability strictly between 0 and 1; InputError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise InputError(f"{name} is {value!r}; allowed is 0 < {name} < 1")
    return float(value)


def _check_counts(met: int, images: int) -> None:
    if not 0 <= met <= images or images < 1:
        raise InputError(f"{met} of {images} images: allowed are at least one image, and no more met than there are")
