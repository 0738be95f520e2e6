"""Krypton's way to choose the threshold, for comparison: a curve through mean similarities (section 4.3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """SSIM as a polynomial of degree two in the threshold, by least squares over all images of a sample.

    Attributes:
        coefficients: Of the polynomial, highest power first.
    """

    coefficients: tuple[float, ...]

    @staticmethod
    def fit(taus: FloatArray, similarities: FloatArray) -> Curve:
        """Fit to similarities [images, taus] of some images' maps at each threshold."""
        at = np.broadcast_to(taus, similarities.shape)
        return Curve(tuple(np.polyfit(at.ravel(), similarities.ravel(), 2)))

    def at(self, taus: FloatArray) -> FloatArray:
        """The curve's similarities."""
        return np.polyval(self.coefficients, taus)

    def pick(self, target: float, taus: FloatArray) -> float:
        """The smallest of some thresholds for which the curve reaches the target; 1 if none does.

        Nothing is said about how many images reach it: the curve follows the mean.
        """
        return min((float(tau) for tau in taus if self.at(np.asarray(tau)) >= target), default=1.0)
