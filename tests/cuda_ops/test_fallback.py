"""Each op by kernels, where these can't be built: its own reference runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kcompile.cuda_ops import cuda, cuda_linear, cuda_reads, linear, reads, reference
from kcompile.cuda_ops.nvrtc import Defines, NvrtcError
from tests.cuda_ops import test_linear, test_reads
from tests.cuda_ops.test_cuda import random_case, same_bits

OPS = [
    *((cuda, reference, name) for name in ("gather", "superimpose", "gather_superimpose", "crop")),
    *((cuda_reads, reads, name) for name in test_reads.OPS),
    (cuda_linear, linear, "read_linear"),
]


class Refusing:
    """A launcher that can't build any kernel."""

    asked = 0

    def launch(self, name: str, defines: Defines, grid: tuple[int, int], argument: bytes) -> None:
        self.asked += 1
        raise NvrtcError(f"{name} can't be built")


def case(module: Any, name: str) -> tuple[Any, ...]:
    if module is cuda:
        return random_case(name, 2, torch.float32)
    return test_linear.case() if module is cuda_linear else test_reads.case(name, 2)


@pytest.mark.parametrize(("module", "plain", "name"), OPS, ids=[name for *_, name in OPS])
def test_the_reference_runs(module: Any, plain: Any, name: str, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    run = Refusing()
    monkeypatch.setattr(cuda, "launcher", lambda _: run)  # the other modules go through it
    for _ in range(10):
        given = case(module, name)
        assert same_bits(getattr(module, name)(*given), getattr(plain, name)(*given))
    assert run.asked, "void: no kernel was wanted"
