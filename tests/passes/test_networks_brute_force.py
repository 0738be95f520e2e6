"""Networks of several layers, proven by brute force over all positions of a small map."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from kcompile.passes.rules.registry import RULES
from tests.support.brute_force import check_end_to_end, check_region
from tests.support.network_table import EXACT, NETWORKS
from tests.support.networks import ready
from tests.support.op_table import OPS, Case
from tests.support.running import compile_incremental

SIZES = [(1, 1), (2, 3), (4, 4)]


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_region(case: Case, seed: int) -> None:
    model = ready(case.make(), case.shape)
    compiled = compile_incremental(model, case.shape, SIZES[-1])
    for patch in SIZES:
        check_region(model, compiled, case, patch, exact=True)


@pytest.mark.parametrize("largest", [(1, 1), (9, 4)], ids=str)
@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_end_to_end(case: Case, largest: Sequence[int], seed: int) -> None:
    model = ready(case.make(), case.shape)
    compiled = compile_incremental(model, case.shape, largest)
    for patch in {(1, 1), tuple((size + 1) // 2 for size in largest), tuple(largest)}:
        check_end_to_end(model, compiled, case, patch)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's own advice
def test_every_rule_is_in_the_tables() -> None:
    """Each op with a rule of its own, and each rule; of the pointwise ops, those that stand for all of their kind."""
    covered = {op for case in [*OPS, *NETWORKS] for op in _ops(ready(case.make(), case.shape), case.shape)}
    renamed = {"aten.reshape.default", "aten.view.default", "aten._unsafe_view.default", "aten.flatten.using_ints"}
    inside = {
        "aten.addmm.default",
        "aten.mm.default",
        "aten.native_group_norm.default",
        "aten.native_channel_shuffle.default",
    }  # what some decompositions make
    own = {op for op, (name, _) in RULES.items() if name != "pointwise"}
    assert own - covered - renamed - inside == set()
    rules = {name for name, _ in RULES.values()}
    assert rules - {RULES[op][0] for op in covered if op in RULES} == set()
    pointwise = {_kind(op) for op, (name, _) in RULES.items() if name == "pointwise"}
    assert pointwise - {_kind(op) for op in covered if op in RULES} == set()


def test_every_pointwise_op_is_of_a_kind_that_the_rule_handles() -> None:
    """It has tensors that broadcast and plain numbers; it returns one tensor and writes to none."""
    plain = {"Tensor", "number", "float", "int", "bool", "str", "Device", "Generator"}
    for op, (name, _) in RULES.items():
        if name == "pointwise":
            schema = _schema(op)
            assert [str(value.type) for value in schema.returns] == ["Tensor"], op
            assert not schema.is_mutable, op
            assert {str(a.type).removeprefix("Optional[").rstrip("]") for a in schema.arguments} <= plain, op
            assert not {a.name for a in schema.arguments} & {"dim", "dims", "axis", "size"}, op


def _schema(op: str) -> torch._C.FunctionSchema:
    namespace, packet, overload = op.split(".")
    found: torch._C.FunctionSchema = getattr(getattr(getattr(torch.ops, namespace), packet), overload)._schema
    return found


def _kind(op: str) -> tuple[str, ...]:
    """The tensors among an op's arguments: how they broadcast is all that the rule sees of it."""
    return tuple(str(a.type) for a in _schema(op).arguments if "Tensor" in str(a.type))


def _ops(model: nn.Module, shape: tuple[int, ...]) -> set[str]:
    with torch.no_grad():
        graph = make_fx(model, pre_dispatch=True)(torch.rand(2, *shape).double()).graph
    return {str(node.target) for node in graph.nodes if node.op == "call_function"}
