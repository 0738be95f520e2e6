"""Each row of the op table, exported to ONNX and run by ONNX Runtime, against the torch runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kcompile.core.errors import OnnxExportError
from tests.support.equivalence import incremental
from tests.support.exported import anywhere, assert_alike, exported
from tests.support.network_table import NETWORKS
from tests.support.networks import ready
from tests.support.op_table import OPS, Case

WITHOUT = {
    "conv with weights of the image": "as many groups as there are queries",
    "digamma": "aten.digamma.default has no lowering",
}
SOME = OPS[::8]


def check(case: Case, folder: Path) -> None:
    patch = tuple(min(3, size) for size in case.shape[1:])
    inc = incremental(ready(case.make(), case.shape, torch.float32), case.shape, patch)
    if case.name in WITHOUT:
        with pytest.raises(OnnxExportError, match=WITHOUT[case.name]):
            exported(inc, folder)
        return

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


@pytest.mark.parametrize("name", WITHOUT)
def test_op_without_lowering_is_named(name: str, tmp_path: Path) -> None:
    check(next(case for case in OPS if case.name == name), tmp_path)
