"""The emitted graphs: explicit ops at every boundary, the rule on every node; pairs are cancelled and fused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import fx, nn

from kcompile.core.axis_map import Everything, Identity, Sliding
from kcompile.core.errors import VerificationError
from kcompile.core.plan import RAW_PATCH, Read
from kcompile.passes import pipeline
from kcompile.passes.cancel import CancelPairs, DropUnusedInputs, FusePairs, cancels, used_reads
from kcompile.passes.infra import PassResult, calls, inconsistency, run_passes
from kcompile.passes.pipeline import Compiled
from tests.support.brute_force import check_end_to_end
from tests.support.network_table import NETWORKS
from tests.support.networks import Branches, Call, Residual, add, conv, inception, ready, vgg
from tests.support.op_table import Case
from tests.support.running import compile_incremental

SHAPE = (4, 9, 11)
ops = torch.ops.kcompile
aten = torch.ops.aten
OURS = (ops.gather.default, ops.superimpose.default, ops.gather_superimpose.default)
ARRANGEMENTS = (
    aten.permute.default, aten.flatten.using_ints, aten.unflatten.int, aten.squeeze.dim, aten.unsqueeze.default,
)  # fmt: skip


def compiled(model: nn.Module) -> Compiled:
    return compile_incremental(ready(model, SHAPE), SHAPE, (4, 4))


@contextmanager
def naive() -> Iterator[None]:
    """Skip the passes that cancel and fuse pairs."""
    with (
        mock.patch.object(pipeline, "CancelPairs", DropUnusedInputs),
        mock.patch.object(pipeline, "FusePairs", DropUnusedInputs),
    ):
        yield


def targets(module: fx.GraphModule) -> list[object]:
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_every_node_carries_its_rule(case: Case, seed: int) -> None:
    done = compile_incremental(ready(case.make(), case.shape), case.shape, (4, 4))
    rules = {layer.name: layer.rule for layer in done.plan.layers}
    for node in calls(done.front, *targets(done.front)):
        assert node.meta["rule"]
        laid_out = node.meta["rule"] == "arrange" and node.target in ARRANGEMENTS
        assert node.target in OURS or laid_out or node.meta["rule"] == rules[node.name]
    for node in calls(done.tail, *targets(done.tail)):
        assert node.meta.get("rule") or node.target is torch.ops.aten.sym_size.int
    assert inconsistency(done.front) is inconsistency(done.tail) is inconsistency(done.materialize) is None


def test_a_naive_front_has_a_pair_at_every_boundary(seed: int) -> None:
    with naive():
        front = compiled(nn.Sequential(conv(4, 3), nn.ReLU(), nn.Tanh())).front
    names = [node.name for node in front.graph.nodes if node.target in OURS]
    reads = ("patch", "conv2d", "relu", "tanh", "tanh_whole")
    assert names == [f"{op}_{read}" for read in reads for op in ("gather", "superimpose")]


@pytest.mark.parametrize("model", [Residual(4, 3), inception(4), vgg(4, (9, 11))])
def test_cancelling_and_fusing_change_no_number(model: nn.Module, seed: int) -> None:
    case = Case("", lambda: model)
    model = ready(model, SHAPE)
    with naive():
        slow = compile_incremental(model, SHAPE, (4, 4))
    assert ops.gather_superimpose.default not in targets(slow.front)
    assert len(targets(slow.front)) > len(targets(compile_incremental(model, SHAPE, (4, 4)).front))
    check_end_to_end(model, slow, case, (3, 4))


def test_pairs_between_layers_of_one_region_are_cancelled(seed: int) -> None:
    front = compiled(nn.Sequential(conv(4, 3), nn.ReLU(), nn.Tanh(), conv(3, 3, 1))).front
    assert used_reads(front) == ["patch", "conv2d", "conv2d_1_whole"]


def test_branches_of_different_regions_keep_their_pairs(seed: int) -> None:
    reads = used_reads(compiled(Branches(add, conv(4, 3), conv(4, 3, 5))).front)
    assert "add" in reads, "the 3x3 branch is smaller than the sum"
    assert "add__1" not in reads, "the 5x5 branch is the sum's region"


IDENTITIES = (Identity(9), Identity(11))


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (Read("r", "b", 3, 3, IDENTITIES), True),
        (Read("r", "b", 2, 3, IDENTITIES), False),
        (Read("r", "b", None, 3, IDENTITIES), False),
        (Read("r", "b", 3, None, IDENTITIES), False),
        (Read("r", "b", RAW_PATCH, 0, IDENTITIES), False),
        (Read("r", "b", RAW_PATCH, RAW_PATCH, IDENTITIES), False),
        (Read("r", "b", 3, 3, (Identity(9), Sliding(3, 1, 1, 1, 11, 11))), False),
        (Read("r", "b", 3, 3, (Everything(9, 9), Identity(11))), False),
        (Read("r", "b", 3, 3, (Sliding(1, 1, 0, 1, 9, 9), Identity(11))), True),
        (Read("r", "b", 3, 3, (Sliding(1, 2, 0, 1, 1, 1), Identity(11))), False),
        (Read("r", "b", 3, 3, (Sliding(1, 1, 1, 1, 9, 9), Identity(11))), False),
    ],
)
def test_what_cancels(read: Read, expected: bool) -> None:
    assert cancels(read) is expected


def test_pairs_are_fused_unless_the_window_is_used_elsewhere(seed: int) -> None:
    with naive():
        front = compiled(nn.Sequential(conv(4, 3), conv(3, 2))).front
    shared = next(calls(front, ops.gather.default))
    output = next(node for node in front.graph.nodes if node.op == "output")
    output.args = ((*output.args[0], shared),)
    result = run_passes(front, [FusePairs()])
    assert result.modified
    assert targets(result.module).count(ops.gather.default) == 1
    assert targets(result.module).count(ops.superimpose.default) == 1


def test_reads_without_patch_stay_gathers(seed: int) -> None:
    front = compiled(Call(lambda x, c: x + c, c=torch.randn(9, 11))).front
    assert [str(node.target) for node in front.graph.nodes if node.name == "gather_add__1"] == [
        "kcompile.gather.default"
    ]


def test_unused_inputs_are_dropped_but_never_the_patches(seed: int) -> None:
    front = compiled(conv(4, 3)).front
    placeholders = list(front.graph.find_nodes(op="placeholder"))
    assert placeholders[0].target == "patches"
    assert all(node.users for node in placeholders)
    with front.graph.inserting_after(placeholders[-1]):
        front.graph.placeholder("nobody")
    assert "nobody" in str(DropUnusedInputs().postcondition(front))
    result = DropUnusedInputs().apply(front)
    assert result.modified
    assert not DropUnusedInputs().apply(result.module).modified


def test_a_pair_left_over_is_found(seed: int) -> None:
    with naive():
        front = compiled(nn.Sequential(conv(4, 3), nn.ReLU())).front
    with (
        mock.patch.object(CancelPairs, "apply", lambda self, module: PassResult(module, False)),
        pytest.raises(VerificationError, match="pass cancel-pairs: superimpose_relu shows nothing of the base"),
    ):
        run_passes(front, [CancelPairs()])
    result = run_passes(front, [CancelPairs()])
    assert result.modified
    assert not run_passes(result.module, [CancelPairs()]).modified


def test_padding_is_in_the_window(seed: int) -> None:
    """On windows, ops run without padding and ceil mode; adaptive pools become plain ones."""
    pools = [nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(2, 1, 1, ceil_mode=True, divisor_override=3)]
    front = compiled(nn.Sequential(*pools, conv(4, 4, padding="same"), nn.AdaptiveAvgPool2d(1))).front
    calls_of = [(str(node.target), node.args) for node in front.graph.nodes if node.op == "call_function"]
    given = [(op, args) for op, args in calls_of if op.startswith("aten")]
    assert [op for op, _ in given] == [
        f"aten.{op}.default" for op in ("max_pool2d", "avg_pool2d", "conv2d", "avg_pool2d")
    ]
    assert named(given[0]) >= {("padding", "[0, 0]"), ("ceil_mode", "False"), ("stride", "[2, 2]")}
    assert named(given[1]) >= {("padding", "[0, 0]"), ("ceil_mode", "False"), ("divisor_override", "3")}
    assert named(given[2]) >= {("padding", "[0, 0]")}
    assert named(given[3]) >= {("padding", "[0, 0]"), ("kernel_size", "[6, 7]"), ("stride", "[6, 7]")}


def named(call: tuple[str, tuple[object, ...]]) -> set[tuple[str, str]]:
    """Arguments of a call by the schema's names, as text."""
    namespace, op, overload = call[0].split(".")
    schema = getattr(getattr(getattr(torch.ops, namespace), op), overload)._schema
    return {(argument.name, str(value)) for argument, value in zip(schema.arguments, call[1], strict=False)}


def test_materialize_returns_outputs_then_base_tensors(seed: int) -> None:
    model = ready(nn.Sequential(conv(4, 3), nn.ReLU(), conv(3, 2)), SHAPE)
    done = compile_incremental(model, SHAPE, (4, 4))
    images = torch.randn(3, *SHAPE).double()
    with torch.no_grad():
        outputs, sources = done.materialize(images)
        assert torch.allclose(outputs[0], model(images))
    assert [tuple(source.shape[1:]) for source in sources] == [base.shape for base in done.plan.bases]


def test_outputs_that_are_constants(seed: int) -> None:
    done = compiled(Call(lambda x: (x * 2, 7, None)))
    assert done.outputs == (0, (7,), (None,))


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (nn.Softmax(1), "softmax"),
        (nn.LogSoftmax(1), "log_softmax"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.Sequential(nn.Softmax(1), nn.Flatten()), "softmax"),
        (nn.ReLU(), None),
        (nn.Sequential(nn.Sigmoid(), nn.ReLU()), None),
    ],
)
def test_final_activations_are_named(last: nn.Module, expected: str | None, seed: int) -> None:
    assert compiled(nn.Sequential(conv(4, 3), last)).activations == (expected,)
