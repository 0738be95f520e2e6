"""The plan's verifier finds every kind of corruption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from kcompile.core.axis_map import Sliding
from kcompile.core.errors import VerificationError
from kcompile.core.plan import Placement, Plan
from kcompile.core.region import InputRegion, MappedRegion
from kcompile.passes.verify import verify_plan
from tests.support.networks import Residual, conv, ready
from tests.support.running import compile_incremental


@cache
def plan() -> Plan:
    torch.manual_seed(0)
    model = nn.Sequential(conv(4, 3, (3, 5)), nn.MaxPool2d(3, 2, 1), Residual(3, 4), nn.Flatten(), nn.Linear(36, 2))
    return compile_incremental(ready(model, (4, 9, 11)), (4, 9, 11), (4, 4)).plan


def change(field: str, index: int | str, **values: Any) -> Plan:
    """The plan with one entry changed, found by index or name."""
    entries = list(getattr(plan(), field))
    i = index if isinstance(index, int) else next(i for i, entry in enumerate(entries) if entry.name == index)
    entries[i] = replace(entries[i], **values)
    return replace(plan(), **{field: tuple(entries)})


def region(index: int) -> MappedRegion:
    entry = plan().regions[index]
    assert isinstance(entry, MappedRegion)
    return entry


def resized(index: int, field: str) -> tuple[tuple[Any, ...], ...]:
    """The maps of a region with another size of the first axis."""
    first, *rest = region(index).maps[0]
    return ((replace(first, **{field: getattr(first, field) + 1}), *rest), *region(index).maps[1:])


def without_padding() -> Plan:
    base = next(base for base in plan().bases if base.padding != ((0, 0), (0, 0)))
    return change("bases", base.name, padding=((0, 0), (0, 0)))


def short_on_one_side(axis: int, side: int) -> Plan:
    base = plan().base("input_1")
    padding = [list(sides) for sides in base.padding]
    padding[axis][side] -= 1
    return change("bases", "input_1", padding=tuple(map(tuple, padding)))


CORRUPTIONS: dict[str, tuple[Callable[[], Plan], str]] = {
    "two inputs": (lambda: replace(plan(), regions=(*plan().regions, InputRegion((9, 11)))), "only region 0 may be"),
    "region made of itself": (lambda: change("regions", 2, sources=(2,)), "r2 is made of r2"),
    "region made of a later one": (lambda: change("regions", 1, sources=(2,)), "r1 is made of r2"),
    "negative source": (lambda: change("regions", 1, sources=(-1,)), "r1 is made of r-1"),
    "maps of a wrong input size": (lambda: change("regions", 1, maps=resized(1, "in_size")), "r1: its maps read size"),
    "maps of a wrong output size": (lambda: change("regions", 1, maps=resized(1, "out_size")), "r1: its maps give"),
    "region of a wrong shape": (lambda: change("regions", 1, shape=(3, 3)), "r1: its maps give size"),
    "no such base": (lambda: change("reads", "conv2d", base="nowhere"), "read conv2d: no base tensor nowhere"),
    "base of another size": (lambda: change("bases", "input_1", shape=(4, 10, 11)), "its maps read size"),
    "read for a region of another size": (lambda: change("reads", "conv2d", target=2), "do not give the size of r2"),
    "patch of another size": (lambda: change("reads", "conv2d", patch=2), "the patch tensor r2 is not of the size"),
    "no padding": (without_padding, "can stick out of"),
    "short above": (lambda: short_on_one_side(0, 0), "can stick out of input_1's padding"),
    "short below": (lambda: short_on_one_side(0, 1), "can stick out of input_1's padding"),
    "short on the left": (lambda: short_on_one_side(1, 0), "can stick out of input_1's padding"),
    "short on the right": (lambda: short_on_one_side(1, 1), "can stick out of input_1's padding"),
    "incremental after dense": (
        lambda: change("layers", "linear", placement=Placement.INCREMENTAL, region=1),
        "linear is incremental but follows a dense node",
    ),
    "incremental without region": (
        lambda: change("layers", "conv2d", region=None),
        "conv2d is incremental without a region",
    ),
    "dense without reason": (lambda: change("layers", "linear", reason=""), "linear is dense without a reason"),
}


def test_a_good_plan_passes() -> None:
    verify_plan(plan())
    assert any(isinstance(m, Sliding) for read in plan().reads for m in read.maps)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption(name: str) -> None:
    corrupt, message = CORRUPTIONS[name]
    with pytest.raises(VerificationError, match=r"^plan: ") as caught:
        verify_plan(corrupt())
    assert message in str(caught.value)
