"""The same scans from another scanner: what a certificate for the usual pictures says nothing about."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from examples.lesions.anatomy import SIDE, smooth_noise
from examples.lesions.generator import Sample


def retextured(sample: Sample, seed: int) -> Sample:
    """A sample with coarser grain, bright stripes along the rows and less contrast, its lesion where it was.

    Args:
        sample: Of `generator.generate`.
        seed: Of the texture; any integer >= 0.
    """
    rng = np.random.default_rng([seed, 1])
    grain = np.exp(0.22 * smooth_noise(rng, (SIDE, SIDE), (2.2, 2.2)))
    stripes = 0.05 * smooth_noise(rng, (SIDE,), (1.2,))[:, None]
    grey = 0.08 + 0.8 * sample.image[0] * grain + stripes
    return replace(sample, image=np.repeat(np.clip(grey, 0, 1).astype(np.float32)[None], 3, axis=0))
