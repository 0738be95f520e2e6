"""Every op with a rule has a lowering to ONNX and agrees there, and so do dense ops; what has none is named."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import kcompile.passes.propagate
import kcompile.passes.to_onnx.walk  # noqa: F401  (they import the tables' rows)
from kcompile.core.errors import OnnxExportError
from kcompile.passes.rules.registry import RULES
from kcompile.passes.to_onnx.call import LOWERINGS
from tests.support.equivalence import incremental
from tests.support.exported import anywhere, assert_alike, exported
from tests.support.networks import Call, ready
from tests.support.op_table import Case
from tests.support.op_table_case import MAP, call

POINTWISE = sorted(op for op, (rule, _) in RULES.items() if rule == "pointwise")


def check(case: Case, folder: Path, share: float = 1e-5) -> None:
    patch = tuple(min(3, size) for size in case.shape[1:])
    inc = incremental(ready(case.make(), case.shape, torch.float32), case.shape, patch)
    image, positions = torch.rand(case.shape) + case.offset, anywhere(case.shape, patch, 5)
    patches = torch.rand(5, case.shape[0], *patch) + case.offset
    model = exported(inc, folder)
    assert_alike(model.materialize(image), inc.materialize(image), share=share)
    assert_alike(model.forward_patches(patches, positions), inc.forward_patches(patches, positions), share=share)


class One(nn.Module):
    """One op: its tensors are the image, as ``dtype``, and constants; its result as float32."""

    def __init__(self, op: str, offset: float, dtype: torch.dtype) -> None:
        super().__init__()
        _, name, overload = op.split(".")
        self.op, self.dtype = getattr(getattr(torch.ops.aten, name), overload), dtype
        needed = [a for a in self.op._schema.arguments if not a.has_default_value() or a.name in ("min", "max")]
        self.given = {a.name: _argument(a, dtype, offset) for a in needed}
        constants = [value for value in self.given.values() if isinstance(value, Tensor)][1:]
        for index, value in enumerate(constants):
            self.register_buffer(f"constant_{index}", value)

    def forward(self, x: Tensor) -> Tensor:
        scaled = x if self.dtype == torch.float32 else x > 0.5 if self.dtype == torch.bool else self._whole(x)
        tensors = iter((scaled,) * 2 if "grad_output" in self.given else (scaled, *self.buffers()))  # of one shape
        result: Tensor = self.op(
            **{name: next(tensors) if isinstance(v, Tensor) else v for name, v in self.given.items()}
        )
        return result.to(torch.float32) + 0.0

    def _whole(self, x: Tensor) -> Tensor:
        """NaN would become the smallest integer, of which PyTorch's lcm ends the process (an overflow)."""
        return (x.nan_to_num() * 4).to(self.dtype)


def _argument(argument: Any, dtype: torch.dtype, offset: float) -> Any:
    kind = str(argument.type).removeprefix("Optional[").removesuffix("]")
    if argument.name == "max":
        return torch.tensor(0.6) if kind == "Tensor" else 0.6
    if kind == "Tensor" and argument.name in ("mask", "condition"):
        return torch.rand(MAP[1:]) > 0.5
    if kind == "Tensor" and argument.name == "value":
        return torch.tensor(2.0)
    if kind == "Tensor":
        values = torch.rand(MAP[1:]) + offset
        return values if dtype == torch.float32 else values > 0.5 if dtype == torch.bool else (values * 4).to(dtype) + 1
    return {"number": 2, "Scalar": 2, "int": 2, "float": 0.5, "bool": False}.get(kind)


def generated(op: str) -> Case:
    """A row for an op, of numbers for which it is defined."""
    for dtype in (torch.float32, torch.int32, torch.bool):
        for offset in (0.1, 1.1, -0.5, 0.0):
            try:
                found = One(op, offset, dtype)(torch.rand(2, *MAP) + offset)
            except (RuntimeError, NotImplementedError, TypeError):
                continue
            if found.isfinite().all():
                return Case(op, lambda offset=offset, dtype=dtype: One(op, offset, dtype), offset=offset)
    raise AssertionError(f"{op} runs for no kind of numbers")


def test_every_op_with_a_rule_has_a_lowering() -> None:
    """Whether they agree, the tests below and the op table (test_onnx_ops.py) show."""
    assert not RULES.keys() - LOWERINGS.keys()


@pytest.mark.parametrize("op", POINTWISE[::12])
def test_pointwise_op_agrees(op: str, tmp_path: Path, seed: int) -> None:
    check(generated(op), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("op", [op for op in POINTWISE if op not in POINTWISE[::12]])
def test_every_other_pointwise_op_agrees(op: str, tmp_path: Path, seed: int) -> None:
    check(generated(op), tmp_path)


class Heads(nn.Module):
    """Attention by PyTorch's own module."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2)
        return self.layer(y, y, y)[0]


def _warped(x: Tensor) -> Tensor:
    return F.grid_sample(x, torch.tanh(x[:, :2].permute(0, 2, 3, 1)), align_corners=False)


def _filtered(x: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(x) * 2.0, s=(9, 11))


def _unpooled(x: Tensor) -> Tensor:
    return F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2, output_size=(9, 11))


DENSE = [
    call("warp by a field", _warped),
    call("filter of frequencies", _filtered),
    call("spectrum", lambda x: torch.fft.rfft2(x).abs()),
    call("unpooled", _unpooled),
    call("columns of windows", lambda x: F.unfold(x, 3)),
    call("windows laid back", lambda x: F.fold(F.unfold(x, 3), (9, 11), 3)),
    call("windows of a dimension", lambda x: x.unfold(2, 3, 2)),
    call("distances", lambda x: torch.cdist(x, x * x) + torch.cdist(x, 1 - x, p=1.0) + torch.cdist(x, -x, p=3.0)),
    call("largest distances", lambda x: torch.cdist(x, x * x, p=float("inf"))),
    call("medians", lambda x: x.median(2).values + x.kthvalue(2, 2).values),
    call("median of an even number, kept", lambda x: x[:, :, :6].median(2, keepdim=True).values),
    call("diagonal", lambda x: x.diagonal(0, 2, 3)),
    call("triangle", lambda x: x.cumsum(2).tril() + x.triu(1)),
    call("gather", lambda x: x.gather(2, (x[:, :, :3] * 8).long())),
    call("scatter", lambda x: x.scatter(2, (x[:, :, :3] * 8).long(), 1.0)),
    call("sum over pairs", lambda x: torch.einsum("nchw,nchv->nwv", x, x)),
    call("logarithms of sums", lambda x: x.logcumsumexp(2)),
    call("bins", lambda x: torch.bucketize(x, torch.tensor([0.2, 0.5, 0.9])).float()),
    call("classes of cells", lambda x: F.one_hot((x[:, 0] * 3).long(), 4).float()),
    call("quantile", lambda x: x.quantile(0.3, dim=2)),
    call("written over", lambda x: x.index_put((torch.tensor([0]),), torch.ones(1))),
    call("determinant", lambda x: torch.linalg.det(x[:, :, :, :9] + torch.eye(9))),
    call("both extremes", lambda x: torch.aminmax(x, dim=2).max - torch.aminmax(x, dim=2).min),
    call("norms limited", lambda x: x.renorm(2, 1, 1.0)),
    call("inverse", lambda x: torch.linalg.inv(x[:, :, :, :9] + 9 * torch.eye(9))),
    call("inverse, with pivots", lambda x: torch.inverse(x[:, :, :3, :3] + 4 * torch.eye(3).roll(1, 0))),
    call("equations", lambda x: torch.linalg.solve(x[:, :, :, :9] + 9 * torch.eye(9), x)),
    call("equations of vectors", lambda x: torch.linalg.solve(x[:, :, :, :9] + 9 * torch.eye(9), x[..., 0])),
    call("equations from the right", lambda x: torch.linalg.solve(x[..., :9] + 9 * torch.eye(9), x.mT, left=False)),
    call("filled", lambda x: x.cumsum(2) * torch.ones_like(x).fill_(2.0)),
    Case("heads", Heads),
]  # fmt: skip


@pytest.mark.parametrize("case", DENSE[::5], ids=lambda case: case.name)
def test_dense_op_agrees(case: Case, tmp_path: Path, seed: int) -> None:
    check(case, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.searchsorted:UserWarning")  # PyTorch copies windows that aren't contiguous
@pytest.mark.parametrize("case", [case for case in DENSE if case not in DENSE[::5]], ids=lambda case: case.name)
def test_every_other_dense_op_agrees(case: Case, tmp_path: Path, seed: int) -> None:
    check(case, tmp_path)


@pytest.mark.parametrize("op", ["linalg_svd", "linalg_eigh", "linalg_qr"])
def test_decomposition_of_matrices_is_named(op: str, tmp_path: Path) -> None:
    case = call("decomposed", lambda x: getattr(torch.ops.aten, op)(x[:, :, :, :9] + 9 * torch.eye(9))[0])
    with pytest.raises(OnnxExportError, match=rf"(?s)aten\.(_?){op}.*no lowering.*networks\.py.*forward"):
        check(case, tmp_path)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_weights_mixed_by_the_image(groups: int, bias: bool, tmp_path: Path, seed: int) -> None:
    """The batch is folded into the groups of a convolution, as CondConv does it."""
    weights = torch.randn(3, 6 * (4 // groups) * 9 if groups != 4 else 4 * 9)
    filters = 6 if groups != 4 else 4

    def mixed(x: Tensor, kernels: Tensor) -> Tensor:
        n, c, h, w = x.shape
        kernel = (x.mean((2, 3))[:, :3] @ kernels).reshape(n * filters, c // groups, 3, 3)
        shift = x.mean((2, 3)).repeat(1, 2)[:, :filters].reshape(-1) if bias else None
        y = F.conv2d(x.reshape(1, n * c, h, w), kernel, shift, stride=2, padding=1, groups=groups * n)
        return y.reshape(n, filters, y.shape[2], y.shape[3])

    check(Case("mixed", lambda: Call(mixed, kernels=weights)), tmp_path)


def test_bfloat16_is_computed_in_float32(tmp_path: Path, seed: int) -> None:
    """At most as far from the truth as the model's own rounding."""
    network = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.GELU(), nn.MaxPool2d(2), nn.Conv2d(8, 3, 3))
    model = ready(network, MAP, torch.bfloat16)
    inc = incremental(model, MAP, (3, 3))
    found = exported(inc, tmp_path)
    image, patches, positions = torch.randn(MAP), 4 * torch.randn(9, 4, 3, 3), anywhere(MAP, (3, 3), 9)
    image, patches = image.bfloat16().float(), patches.bfloat16().float()
    own, exact = inc.materialize(image.bfloat16()), copy.deepcopy(model).double()(image.double()[None])
    got = found.materialize(image)
    assert got.dtype == np.float32
    assert _off(got, exact) <= _off(own.float().numpy(), exact)
    changed = found.forward_patches(patches, positions)
    rounded = inc.forward_patches(patches.bfloat16(), positions).float().numpy()
    assert np.abs(changed - rounded).max() <= 2e-2 * np.abs(rounded).max()
    assert np.abs(changed - got).max() >= 1e-1 * np.abs(rounded).max(), "void: nothing reacts"


def _off(values: Any, exact: Tensor) -> float:
    return float(np.abs(values - exact.detach().numpy()).max())
