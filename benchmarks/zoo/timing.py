"""Times of a call against eager full inference, side by side."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

import kcompile
from benchmarks.maps import occluded
from kcompile.core.interval import IntArray

BATCH = 16
POSITIONS = 64
ROUNDS = 3


def time_over_full(
    inc: kcompile.IncrementalModule, model: nn.Module, image: Tensor, rng: np.random.Generator, seconds: float
) -> tuple[float, int]:
    """Time of a call over that of eager full inference (channels_last), and the number of positions of the call.

    The two sides run in turn, on one thread; CPU seconds count, as another process may hold the core, and the median of
    the rounds' ratios. Heavy models get fewer positions, so that full inference of all takes ``seconds``.
    """
    eager = copy.deepcopy(model)
    for weight in eager.parameters():
        if weight.dim() == 4:  # Module.to would stop at those of five
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    patch = inc.plan.patch_shape
    one = np.zeros((1, 2), np.int64)
    _seconds(lambda: _full(eager, image, one, patch[0]))
    each = _seconds(lambda: _full(eager, image, one, patch[0]))
    count = int(np.clip(seconds / each, 4, POSITIONS))
    positions = rng.integers(0, np.subtract(image.shape[1:], patch) + 1, (count, 2)).astype(np.int64)
    inc.materialize(image)
    ratios = []
    for round_ in range(ROUNDS + 1):
        mine = _seconds(lambda: inc.forward_patches(0.0, positions))
        if round_:  # the first call prepares the weights
            ratios.append(mine / _seconds(lambda: _full(eager, image, positions, patch[0])))
    return statistics.median(ratios), count


@torch.inference_mode()
def _full(eager: nn.Module, image: Tensor, positions: IntArray, patch: int) -> None:
    for first in range(0, len(positions), BATCH):
        eager(occluded(image, positions[first : first + BATCH], patch))


def _seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start
