"""The registry of spatial rules, read by the walker in `passes.propagate`; rules register beside the op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from kcompile.core.axis_map import AxisMap
from kcompile.core.interval import IntArray
from kcompile.passes.record import OpRecord

FloatArray: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Weights:
    """One axis of a resampling: output i is the sum of ``factor[i, t]`` times input ``index[i, t]``.

    ``index`` is [out, taps], -1 where an output has fewer taps than others; ``factor`` likewise, or None where each
    output is a copy of one input cell.
    """

    index: IntArray
    factor: FloatArray | None


@dataclass(frozen=True)
class Spatial:
    """What a rule says of one call: how regions move through it and how it runs on windows.

    Attributes:
        maps: Per tensor input its axis maps, in the order of the image's axes; None for an input that has no spatial
            axes (weights, scalars).
        fill: Value of the cells that a window reads outside its tensor.
        op: Op that runs on the windows, if another one than the call's own.
        overrides: Arguments that differ on windows, by name (padding is in the window already).
        axes: Dimensions of the result that are the image's spatial axes (None: those of the input).
        weights: For `torch.ops.kcompile.resample`, which then runs in place of the op: one per axis, None for an axis
            that it leaves alone.
        crop: The result on a window is larger than the box, which is cut out of it: (stride, shift) per axis, the
            result's first cell standing at ``start * stride - shift``.
        native: Padding per axis that the op adds itself where a box spans the whole axis: the window then leaves it
            out. Its ``padding`` argument is known only at run time.
        summed: The windows are added up in place of the op: each input's is 0 wherever another input lies.
    """

    maps: tuple[tuple[AxisMap, ...] | None, ...]
    fill: float = 0.0
    op: str | None = None
    overrides: tuple[tuple[str, Any], ...] = ()
    axes: tuple[int, ...] | None = None
    weights: tuple[Weights | None, ...] | None = None
    crop: tuple[tuple[int, int], ...] | None = None
    native: tuple[int, ...] = ()
    summed: bool = False

    @property
    def placed(self) -> bool:
        """True if the op must be told where its window and its box begin."""
        return self.crop is not None or any(w is not None for w in self.weights or ())


@dataclass(frozen=True)
class Refusal:
    """Why an op's region is everything, in plain words."""

    reason: str


Rule: TypeAlias = Callable[[OpRecord], Spatial | Refusal]

RULES: dict[str, tuple[str, Rule]] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register a rule for ops, named with their overload."""

    def register(function: Rule) -> Rule:
        for op in ops:
            assert op not in RULES, f"two rules for {op}"
            RULES[op] = (function.__name__, function)
        return function

    return register


def rule_name(op: str) -> str:
    """Name of the rule of an op, "dense" for none."""
    return RULES.get(op, ("dense", None))[0]


def spatial(record: OpRecord) -> tuple[str, Spatial | Refusal]:
    """Apply the rule of an op.

    Returns:
        The rule's name and its answer; ops without a rule are refused.
    """
    name, function = RULES.get(record.op, ("dense", None))
    if function is None:
        return name, Refusal(f"no spatial rule for {record.op}")
    if record.out is None:
        return name, Refusal("its result is not one tensor")
    if not record.out.batched:
        return name, Refusal("its result has no rows for the images, or they are folded into other dimensions")
    if not any(spec.reached for spec in record.inputs):
        return name, Refusal("it computes with the batch's size")
    if not record.image.axes:
        return name, Refusal("what it reads has no spatial axes")
    return name, function(record)
