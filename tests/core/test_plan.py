"""Plans are data: they print, and JSON gives an equal plan back."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from kcompile.core.axis_map import AxisMap, Blocks, Everything, Identity, Sliding, Table, Transposed
from kcompile.core.plan import RAW_PATCH, BaseTensor, Layer, OutputMap, Placement, Plan, Read
from kcompile.core.region import InputRegion, MappedRegion

INF = float("inf")
THREE = (Sliding(3, 1, 1, 1, 8, 8), Sliding(3, 2, 1, 1, 6, 3))
SAME = (Identity(8), Identity(6))
ALL: tuple[AxisMap, ...] = (Everything(8, 1), Everything(6, 1))


def layer(name: str, placement: Placement, region: int | None, macs: int, *inputs: str, reason: str = "") -> Layer:
    return Layer(name, "aten.conv2d.default", f"net.{name}", (4, 8, 3), macs, placement, "conv", reason, region, inputs)


def plan() -> Plan:
    return Plan(
        input_shape=(3, 8, 6),
        patch_shape=(2, 2),
        regions=(InputRegion((8, 6)), MappedRegion((0,), (THREE,), (8, 3)), MappedRegion((0, 0), (ALL, ALL), (1, 1))),
        bases=(
            BaseTensor("x", "x", (3, 8, 6), ((1, 1), (1, 0)), 0.0, True, (2, 3)),
            BaseTensor("c", "c", (8, 6, 1), ((0, 0), (0, 0)), -INF, False, (1, 2)),
        ),
        reads=(
            Read("patch", "x", RAW_PATCH, 0, SAME),
            Read("first", "x", 0, 1, THREE, native=(1, 1)),
            Read("bias", "c", None, 0, SAME, placed=True),
            Read("first_whole", "x", 0, None, SAME),
        ),
        layers=(
            layer("x", Placement.INCREMENTAL, 0, 0),
            layer("first", Placement.INCREMENTAL, 1, 480, "x"),
            layer("constant", Placement.REUSE, None, 7, reason="the patch cannot reach it"),
            layer("head", Placement.DENSE, None, 100, "first", reason="it is small"),
        ),
        outputs=(OutputMap(1, (2, 3)), None),
    )


def test_json_gives_an_equal_plan_back() -> None:
    text = plan().to_json()
    again = Plan.from_json(text)
    assert again == plan()
    assert hash(again) == hash(plan())
    assert again.to_json() == text


def test_json_keeps_types() -> None:
    again = Plan.from_json(plan().to_json())
    assert isinstance(again.bases[0].fill, float)
    assert again.bases[1].fill == -INF
    assert isinstance(again.layers[0].placement, Placement)
    assert isinstance(again.layers[0].inputs, tuple)
    assert isinstance(again.regions[1], MappedRegion)


def test_json_is_standard() -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    json.loads(plan().to_json(), parse_constant=refuse)


@pytest.mark.parametrize("given", [0, 99, None, "1"])
def test_another_format_is_refused(given: object) -> None:
    data = json.loads(plan().to_json())
    data["format"] = given
    with pytest.raises(ValueError, match=f"format {given!r}.*reads"):
        Plan.from_json(json.dumps(data))


@pytest.mark.parametrize("field", [field.name for field in fields(Plan)])
def test_every_field_counts(field: str) -> None:
    """A plan that differs in one field is not equal, and its JSON differs."""
    other = replace(plan(), **{field: ()})
    assert other != plan()
    assert other.to_json() != plan().to_json()


def test_printing() -> None:
    head, *lines = str(plan()).splitlines()
    assert head == "plan: input (3, 8, 6), patch (2, 2), 3 regions"
    assert "  incremental first: aten.conv2d.default [4, 8, 3] r1 [conv]" in lines
    assert "  dense       head: aten.conv2d.default [4, 8, 3] [conv]  # it is small" in lines
    assert "  read patch: gather x for r0, superimpose patches" in lines
    assert "  read first: gather x for r1, superimpose r0" in lines
    assert "  read bias: gather c for r0" in lines
    assert "  read first_whole: gather x whole, superimpose r0" in lines


def test_work() -> None:
    assert plan().cell_macs() == [0.0, 480 / 24, 0.0]
    assert plan().dense_macs() == 100
    assert plan().full_macs() == 587


def test_base_by_name() -> None:
    assert plan().base("c").fill == -INF


def test_sizes_of_a_base_are_those_of_its_axes() -> None:
    assert plan().base("x").sizes == plan().base("c").sizes == (8, 6)


@pytest.mark.parametrize(
    "m", [Blocks(2, 4), Transposed(3, 2, 1, 1, 4, 8), Table((3, 0, 1), (4, 2, 3), 4)], ids=lambda m: type(m).__name__
)
def test_json_keeps_every_kind_of_map(m: AxisMap) -> None:
    wanted = replace(plan(), reads=(Read("r", "x", 0, 1, (m, m), True, (2, 0)),))
    again = Plan.from_json(wanted.to_json())
    assert again == wanted
    assert hash(again) == hash(wanted)
    assert type(again.reads[0].maps[0]) is type(m)
