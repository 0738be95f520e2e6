"""Each row of the op table, exported to ONNX and run by ONNX Runtime, against the torch runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.equivalence import incremental
from tests.support.exported import anywhere, assert_alike, exported
from tests.support.network_table import NETWORKS
from tests.support.networks import ready
from tests.support.op_table import OPS, Case
from tests.support.op_table_case import call

SOME = OPS[::8]


def check(case: Case, folder: Path) -> None:
    patch = tuple(min(3, size) for size in case.shape[1:])
    inc = incremental(ready(case.make(), case.shape, torch.float32), case.shape, patch)

    def numbers(*shape: int) -> torch.Tensor:
        values = torch.randn(*shape) * case.scale
        return (values.abs() + 0.01 if case.positive else values) + case.offset

    image, positions = numbers(*case.shape), anywhere(case.shape, patch, 5)
    patches = numbers(5, case.shape[0], *patch)
    model = exported(inc, folder)
    assert_alike(model.materialize(image), inc.materialize(image))
    assert_alike(model.forward_patches(patches, positions), inc.forward_patches(patches, positions))


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
def test_exported_op_agrees(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in OPS if case not in SOME], ids=lambda case: case.name)
def test_every_other_exported_op_agrees(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_exported_network_agrees(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


MORE = [
    call("degrees", lambda x: torch.deg2rad(x) + torch.rad2deg(x) * 0.01),
    call("angle", torch.angle),
    call("entropy", torch.special.entr, positive=True),
    call("rounded", lambda x: torch.round(x, decimals=2)),
    call("infinite", lambda x: torch.isposinf(x / (x > 0)) | torch.isneginf(x / (x < -1))),
    call("sign bit", lambda x: torch.signbit(x * (x > 0)) ^ torch.signbit(x)),
    call("log of sums", lambda x: torch.logaddexp2(x, -x) + torch.special.xlog1py(x.abs(), x.abs())),
    call("ldexp", lambda x: torch.ldexp(x, torch.tensor([1, -2, 0, 3, 1, 1, 0, 2, 1, 1, 0]))),
    call("gradients", lambda x: torch.ops.aten.sigmoid_backward(x, x) + torch.ops.aten.tanh_backward(x, x)),
    call("gradient of a threshold", lambda x: torch.ops.aten.threshold_backward(x, x, 0.3)),
]


@pytest.mark.parametrize("case", MORE, ids=lambda case: case.name)
def test_lowerings_beside_the_table(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)
