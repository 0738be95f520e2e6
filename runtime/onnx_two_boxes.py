"""Queries of two boxes of an exported model. Imports no torch (`runtime.two_boxes` does)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kcompile.core.interval import IntArray
from kcompile.runtime.onnx_bases import Base
from kcompile.runtime.onnx_queries import ArrayBox, paste, pixels
from kcompile.runtime.onnx_runs import Policy, Results, Runs, under_box
from kcompile.runtime.onnx_session import Array


def run_two(
    runs: Runs, bases: Sequence[Base], boxes: Sequence[ArrayBox], which: IntArray, images: Array, policy: Policy
) -> Results:
    """Two boxes, the second over the first: as one where a patch holds both, else on a base that shows the first."""
    under, over = boxes
    plan = runs.plan
    patch, image = np.array(plan.patch_shape), np.array(plan.input_shape[1:])
    low = np.minimum(under.positions, over.positions).clip(0)
    high = np.minimum(np.maximum(under.positions + under.sizes, over.positions + over.sizes), image)
    fits = (high - low <= patch).all(axis=1)
    whole, apart = np.flatnonzero(fits), np.flatnonzero(~fits)
    if len(whole):
        merged = ArrayBox(low[whole], _merged(under, over, whole, low, images, which, plan.patch_shape), None, None)
        for number in np.unique(which[whole]):
            mine = np.flatnonzero(which[whole] == number)
            for rows, outputs in runs.run(bases[number], merged, mine, images, which[whole], policy):
                yield whole[rows], outputs
    for members in _alike(under, apart, which, images):
        shown = under_box(under, int(members[0]), images, which)
        base = runs.materializer.base({**bases[which[members[0]]].inputs, "image": shown})
        yield from runs.run(base, over, members, shown, np.zeros(len(which), np.int64), policy)


def _merged(
    under: ArrayBox,
    over: ArrayBox,
    rows: IntArray,
    low: IntArray,
    images: Array,
    which: IntArray,
    sizes: Sequence[int],
) -> Array:
    """Patches [n, C, *sizes] at ``low`` that show both boxes, and the image between them."""
    both = pixels(images, which[rows], low[rows], sizes)
    for number, row in enumerate(rows):
        one, beneath = np.array([row]), under_box(under, int(row), images, which)
        layers = ((under, under.laid(one, images, which[one])), (over, over.laid(one, beneath, np.zeros(1, np.int64))))
        for box, laid in layers:
            both[number] = paste(both[number], laid[0], box.positions[row] - low[row])
    return both


def _alike(under: ArrayBox, rows: IntArray, which: IntArray, images: Array) -> list[IntArray]:
    """The rows whose first box makes the same image of the same base, together."""
    shown: dict[bytes, list[int]] = {}
    for row in rows:
        one = np.array([row])
        laid = under.laid(one, images, which[one])[0]
        key = which[one].tobytes() + under.positions[row].tobytes() + laid.tobytes()
        shown.setdefault(key, []).append(int(row))
    return [np.array(members) for members in shown.values()]
