"""Every op of ``torch.ops.kcompile``, whichever there are: schema, shapes, torch.compile and torch.export."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import kcompile.cuda_ops  # noqa: F401  (registers torch.ops.kcompile)
from kcompile.cuda_ops import reads, winograd
from tests.cuda_ops import test_convolved, test_linear, test_ops, test_reads
from tests.cuda_ops.test_ops import DEVICES, channels_last, moved

ops = torch.ops.kcompile
NAMES = sorted(
    name.removeprefix("kcompile::").split(".")[0]
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("kcompile::")
)
CPU_ALONE = {"winograd", "gather_winograd"}  # minimal filtering is for processors


def of_windows(name: str) -> tuple[Any, ...]:
    return test_ops.arguments(test_ops.random_geometry(2))[name]


def of_filtering(*before: Any) -> tuple[Any, ...]:
    packed = winograd.pack(torch.randn(16, 16, 3, 3), 0)
    return (*before, packed, torch.randn(16), None, [0, 0], 16, 0, -inf, inf)


def gathered() -> tuple[Any, ...]:
    origins, offsets = torch.tensor([[0, 1, 2], [1, 0, 0]]), torch.tensor([[1, 1], [-2, 3]])
    return of_filtering(torch.randn(2, 12, 12, 16), channels_last(torch.randn(2, 16, 3, 3)), origins, offsets, [9, 9])


CASES: dict[str, Callable[[], tuple[Any, ...]]] = {
    **{name: lambda name=name: of_windows(name) for name in ("gather", "superimpose", "gather_superimpose")},
    **{name: lambda name=name: test_reads.case(name, 2) for name in reads.REFERENCE},
    "crop": lambda: test_ops.crop_arguments(2),
    "resample": lambda: test_ops.resample_arguments(2),
    "contract": lambda: (torch.randn(3, 2, 4, 5), torch.randn(3, 2, 4, 5), torch.randn(3, 6, 4, 5)),
    "read_linear": lambda: test_linear.case(queries=3),
    "read_convolved": test_convolved.case,
    "winograd": lambda: of_filtering(channels_last(torch.randn(2, 16, 9, 9))),
    "gather_winograd": gathered,
}


def test_every_op_is_tested() -> None:
    assert sorted(CASES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_kernels_and_schema(name: str) -> None:
    """Kernels for both devices, a shape function, no gradients; nothing is written to, nothing aliased."""

    def has(key: str) -> bool:
        return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"kcompile::{name}", key))

    assert has("CPU")
    assert has("CUDA") == (name not in CPU_ALONE)
    assert has("Meta")
    assert not has("Autograd")
    schema = getattr(ops, name).default._schema
    assert not schema.is_mutable
    assert all(part.alias_info is None for part in (*schema.arguments, *schema.returns))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str, device: str, seed: int) -> None:
    if device == "cuda" and name in CPU_ALONE:
        pytest.skip("an op of the CPU")
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(getattr(ops, name).default, moved(CASES[name](), device), test_utils=tests)


class Call(nn.Module):
    """An op with something around it; its first tensor of numbers comes from outside."""

    def __init__(self, name: str, given: tuple[Any, ...]) -> None:
        super().__init__()
        self.op = getattr(ops, name)
        self.leaves, self.spec = pytree.tree_flatten(given)
        self.place = next(
            i for i, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()
        )

    def forward(self, value: Tensor) -> Tensor:
        leaves = [*self.leaves[: self.place], value + 1, *self.leaves[self.place + 1 :]]
        return 2 * self.op(*pytree.tree_unflatten(leaves, self.spec))  # type: ignore[no-any-return]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_under_torch_compile_and_in_an_exported_program(name: str, device: str, seed: int) -> None:
    if device == "cuda" and name in CPU_ALONE:
        pytest.skip("an op of the CPU")
    call = Call(name, moved(CASES[name](), device))
    value = call.leaves[call.place]
    want = call(value)
    torch.compiler.reset()
    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(value), want)
    program = torch.export.export(call, (value,), strict=False).run_decompositions({})
    own = [str(node.target) for node in program.graph.nodes if "kcompile" in str(node.target)]
    assert own == [f"kcompile.{name}.default"]
    assert torch.equal(program.module()(value), want)
