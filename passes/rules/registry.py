"""The registry of spatial rules, read by the walker in `passes.propagate`; rules register beside the op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from kcompile.core.axis_map import AxisMap
from kcompile.passes.record import OpRecord


@dataclass(frozen=True)
class Spatial:
    """What a rule says of one call: how regions move through it and how it runs on windows.

    Attributes:
        maps: Per tensor input its axis maps; None for an input that has no spatial axes (weights, scalars).
        fill: Value of the cells that a window reads outside its tensor.
        op: Op that runs on the windows, if another one than the call's own.
        overrides: Arguments that differ on windows, by name (padding is in the window already).
    """

    maps: tuple[tuple[AxisMap, ...] | None, ...]
    fill: float = 0.0
    op: str | None = None
    overrides: tuple[tuple[str, Any], ...] = ()


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


def spatial(record: OpRecord) -> tuple[str, Spatial | Refusal]:
    """Apply the rule of an op.

    Returns:
        The rule's name and its answer; ops without a rule are refused.
    """
    name, function = RULES.get(record.op, ("dense", None))
    if function is None:
        return name, Refusal(f"no spatial rule for {record.op}")
    if record.out is None or not record.out.batched:
        return name, Refusal("its result is not one tensor with the batch first")
    return name, function(record)
