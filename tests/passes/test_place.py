"""Placement: what is dense, why, and what the cost model cuts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kcompile.core.errors import UnsupportedOpError
from kcompile.core.plan import Layer, Placement, Plan
from kcompile.passes.pipeline import compile_model
from tests.support.networks import Call, conv, pooled_head, ready, vgg
from tests.support.running import compile_incremental

DENSE, INCREMENTAL, REUSE = Placement.DENSE, Placement.INCREMENTAL, Placement.REUSE


def layers(plan: Plan) -> dict[str, Layer]:
    return {layer.name: layer for layer in plan.layers}


def plan_of(model: nn.Module, patch: tuple[int, int] = (4, 4), size: tuple[int, int] = (9, 11)) -> dict[str, Layer]:
    shape = (4, *size)
    return layers(compile_incremental(ready(model, shape), shape, patch).plan)


class Scan(nn.Module):
    """A logarithm of cumulative sums: no rule knows it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.logcumsumexp(2)  # the user's own line


def test_an_op_without_rule_is_dense_with_a_reason(seed: int) -> None:
    layer = plan_of(nn.Sequential(conv(4, 3), Scan()))["logcumsumexp"]
    assert (layer.placement, layer.rule) == (DENSE, "dense")
    assert layer.reason == "no spatial rule for aten.logcumsumexp.default"


def test_a_refusal_gives_the_rules_reason(seed: int) -> None:
    layer = plan_of(nn.Sequential(conv(4, 3), nn.Flatten(), nn.Linear(297, 2)))["flatten_using_ints"]
    assert (layer.placement, layer.rule) == (DENSE, "flatten")
    assert "flattening makes positions into features" in layer.reason


def test_dense_is_sticky_and_names_where_it_began(seed: int) -> None:
    plan = plan_of(nn.Sequential(Scan(), conv(4, 3), nn.ReLU(), nn.MaxPool2d(2)))
    for name in ("conv2d", "relu", "max_pool2d"):
        assert plan[name].placement is DENSE
        assert plan[name].reason == "it follows logcumsumexp, which is dense"
        assert plan[name].region is None


def test_one_dense_input_makes_a_join_dense(seed: int) -> None:
    plan = plan_of(Call(lambda x: torch.relu(x) + x.logcumsumexp(2)))
    assert plan["relu"].placement is INCREMENTAL
    assert plan["add"].placement is DENSE
    assert plan["add"].reason == "it follows logcumsumexp, which is dense"


def test_what_the_patch_cannot_reach_is_reused(seed: int) -> None:
    plan = plan_of(Call(lambda x, c: torch.cat([x, c.expand(x.shape[0], -1, -1, -1)], 1), c=torch.ones(1, 2, 9, 11)))
    assert plan["expand"].placement is REUSE
    assert plan["expand"].reason == "the patch cannot reach it"
    assert plan["cat"].placement is INCREMENTAL


def test_numbers_made_of_the_batchs_size_are_dense(seed: int) -> None:
    layer = plan_of(Call(lambda x: torch.relu(x) * x.shape[0]))["mul"]
    assert (layer.placement, layer.reason) == (DENSE, "it computes with the batch's size")


def test_layers_name_the_users_module_and_the_rule(seed: int) -> None:
    plan = plan_of(vgg(4, (9, 11)))
    assert plan["conv2d_1"].module == "0.2"
    assert (plan["conv2d_1"].rule, plan["relu"].rule, plan["max_pool2d"].rule) == ("conv", "pointwise", "max_pool")
    assert plan["conv2d_1"].macs == 6 * 6 * 9 * 99
    assert plan["linear_1"].macs == 16 * 5


@pytest.mark.parametrize("model", [nn.Sequential(conv(4, 3), nn.Sequential(Scan()))])
def test_unsupported_ops_can_be_refused(model: nn.Module, seed: int) -> None:
    """The error names the op, the user's module and line, and what to do."""
    shape = (4, 9, 11)
    with pytest.raises(UnsupportedOpError) as caught:
        compile_model(ready(model, shape), torch.rand(2, *shape).double(), (4, 4), on_unsupported="error")
    message = str(caught.value)
    for part in (
        "aten.logcumsumexp.default",
        "module 1.0:",
        "no spatial rule",
        "test_place.py",
        "on_unsupported='dense'",
    ):
        assert part in message
    assert "return x.logcumsumexp(2)  # the user's own line" in message


@pytest.mark.parametrize("model", [vgg(4, (9, 11)), pooled_head(conv(4, 3), 3), nn.Softmax(1)])
def test_refused_rules_are_no_unsupported_ops(model: nn.Module, seed: int) -> None:
    """A head that reads the whole map is known to be dense."""
    shape = (4, 9, 11)
    compile_model(ready(model, shape), torch.rand(2, *shape).double(), (4, 4), on_unsupported="error")


def by_cost(model: nn.Module, patch: tuple[int, int], size: tuple[int, int]) -> dict[str, Layer]:
    shape = (4, *size)
    return layers(compile_model(ready(model, shape), torch.rand(2, *shape).double(), patch).plan)


def test_a_patch_of_the_images_size_makes_everything_dense(seed: int) -> None:
    plan = by_cost(vgg(4, (9, 11)), (9, 11), (9, 11))
    assert {layer.placement for layer in plan.values() if layer.rule != "input"} == {DENSE}
    assert plan["conv2d"].reason == "its region covers 100% of the map on average"


def test_a_small_patch_keeps_the_convolutions_incremental(seed: int) -> None:
    plan = by_cost(vgg(4, (64, 64)), (4, 4), (64, 64))
    assert {plan[name].placement for name in ("conv2d", "conv2d_1", "conv2d_2", "max_pool2d_1")} == {INCREMENTAL}
    assert plan["linear"].placement is DENSE


def test_the_cut_comes_where_regions_have_grown_over_the_map(seed: int) -> None:
    """Behind the cut all is dense, before it nothing; the reason says how large the region is."""
    model = nn.Sequential(*(conv(4, 4, 5) for _ in range(12)))
    plan = list(by_cost(model, (4, 4), (24, 24)).values())
    placements = [layer.placement for layer in plan]
    cut = placements.index(DENSE)
    assert 2 <= cut < len(plan) - 1
    assert set(placements[cut:]) == {DENSE}
    assert set(placements[:cut]) == {INCREMENTAL}
    assert plan[cut].reason.startswith("its region covers ")
