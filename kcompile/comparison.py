"""Full inference of patched copies, timed: what an incremental map is held against."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from kcompile.fills import Source
from kcompile.heatmap import FloatArray, Heatmap
from kcompile.runtime.module import IncrementalModule
from kcompile.scoring import Score, scores, select
from kcompile.verification import OF_SCALE, VOID

BATCH = 16


class FullInference(NamedTuple):
    """Scores [N, K] of patched copies, and the seconds that they took (a warm-up batch before them not counted)."""

    scores: FloatArray
    seconds: float


@torch.inference_mode()
def infer_in_full(
    inc: IncrementalModule,
    image: Tensor,
    fill: Source,
    positions: npt.NDArray[np.int64],
    patch_shape: Sequence[int],
    *,
    score: Score = "probability",
    batch: int = BATCH,
    progress: bool = False,
) -> FullInference:
    """Score patched copies as one does without kcompile: build each copy, run the plain model, channels-last.

    Args:
        inc: What `incrementalize` returned; a copy of its plain model runs.
        image: [C, H, W] in the model's units.
        fill: What the patch shows: [C], [C, h, w], or a function from positions [n, 2] to [n, C, h, w].
        positions: [N, 2], (row, col) of the patch's top-left corner, inside the image.
        patch_shape: (height, width) in pixels.
        score: As for `kcompile.occlusion`.
        batch: Copies per call.
        progress: Show a progress bar.
    """
    plain: nn.Module = copy.deepcopy(inc.model).to(memory_format=torch.channels_last)
    results = []
    plain(_copies(image, fill, np.resize(positions, (min(batch, len(positions)), 2)), patch_shape))
    start = time.perf_counter()
    with tqdm(total=len(positions), disable=not progress, unit="position", desc="full inference", leave=False) as bar:
        for first in range(0, len(positions), batch):
            rows = positions[first : first + batch]
            outputs = select(plain(_copies(image, fill, rows, patch_shape)), None)
            results.append(scores(outputs, score, inc.activation_of(None)).float().cpu().numpy())
            bar.update(len(rows))
    return FullInference(np.concatenate(results), time.perf_counter() - start)


class Verdict(NamedTuple):
    """How some scores of a map agree with full inference, in the score's own units.

    Attributes:
        word: "equal", "DIFFERENT", or "void" where the patches change so little that nothing is proven.
        error: Largest absolute difference.
        change: Largest absolute difference that the patches make.
        tolerance: Largest error allowed: 1e-4 of the largest score, as for float32 in docs/design.md, section 6.
    """

    word: str
    error: float
    change: float
    tolerance: float


def judge(quick: FloatArray, full: FloatArray, base: FloatArray) -> Verdict:
    """Hold scores [N, K] against those of full inference; ``base`` [K] are the unpatched image's. NaN equals NaN."""
    quick, full = np.where(np.isnan(quick) & np.isnan(full), 0, (quick, full))
    known = np.where(np.isfinite(full), full, 0)
    changed = np.where(np.isfinite(full) & np.isfinite(base), full - base, 0)
    error, change, scale = (float(np.abs(values).max()) for values in (quick - full, changed, known))
    if not error <= OF_SCALE * scale:  # also where it is NaN
        return Verdict("DIFFERENT", error, change, OF_SCALE * scale)
    return Verdict("equal" if change > VOID * scale else "void", error, change, OF_SCALE * scale)


def spread(heat: Heatmap, count: int) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Pick computed positions of a map: half of them where the score changes most, the others evenly spread.

    What a patch changes most is what a map is read for, and where an error would show.

    Returns:
        Positions [n, 2] and scores [n, K], with n at most ``count``, in the map's order.
    """
    positions, values = heat.positions.reshape(-1, 2), heat.all_scores.reshape(-1, heat.all_scores.shape[-1])
    done = np.flatnonzero(~np.isnan(values).all(axis=1) | (not heat.stopped))  # NaN is what a stopped map lacks
    change = np.nan_to_num(np.abs(values[done, heat.target] - heat.base_score))
    strongest = done[np.argsort(-change, kind="stable")[: count // 2]]
    others = np.setdiff1d(done, strongest)
    at = np.linspace(0, len(others) - 1, min(count - len(strongest), len(others))).round().astype(int)
    chosen = np.union1d(strongest, others[at])
    return positions[chosen], values[chosen]


def _copies(image: Tensor, fill: Source, positions: npt.NDArray[np.int64], patch_shape: Sequence[int]) -> Tensor:
    copies = image.expand(len(positions), *image.shape).contiguous(memory_format=torch.channels_last)
    patches = fill if isinstance(fill, Tensor) else fill(positions)
    shown = (patches[:, None, None] if patches.dim() == 1 else patches).expand(len(copies), len(image), *patch_shape)
    for patched, patch, (row, col) in zip(copies, shown, positions.tolist(), strict=True):
        patched[:, row : row + patch_shape[0], col : col + patch_shape[1]] = patch
    return copies
