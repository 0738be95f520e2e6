"""The 1,797 handwritten digits that come with scikit-learn, enlarged, in parts that share no picture.

They are 8x8 pixels of 0 to 16 (E. Alpaydin and C. Kaynak, 1998; the test part of UCI's "Optical Recognition of
Handwritten Digits"). Each is enlarged to 32x32, bilinearly, so that a patch of 8x8 pixels covers two by two of them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SIDE = 32
CLASSES = tuple(str(digit) for digit in range(10))
MEAN, STD = 0.305, 0.323  # of the enlarged pictures, in 0 to 1
PARTS = {"train": (0, 1000), "tune": (1000, 1400), "test": (1400, 1797)}
"""Rows of each part, in the order that `SHUFFLE_SEED` gives: training, calibration with certification, and tests."""
SHUFFLE_SEED = 0


def digits(part: str) -> tuple[Tensor, Tensor]:
    """The digits of one of `PARTS` in a random order that is always the same: [N, 1, 32, 32] in 0 to 1, labels [N].

    Needs scikit-learn.

    Raises:
        KeyError: No such part.
    """
    from sklearn.datasets import load_digits

    first, last = PARTS[part]
    data = load_digits()
    rows = np.random.default_rng(SHUFFLE_SEED).permutation(len(data.images))[first:last]
    small = torch.from_numpy(data.images[rows] / 16).float()[:, None]
    large = functional.interpolate(small, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return large, torch.from_numpy(data.target[rows]).long()


def preprocess(pictures: Tensor) -> Tensor:
    """Map pictures in [0, 1] to the model's units, in which 0 is the mean grey."""
    return (pictures - MEAN) / STD
