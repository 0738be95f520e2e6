"""The plan and the emitted graphs as text (tests/golden); `pytest --update-golden` rewrites the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.networks import DenseBlock, Residual, conv_bn_relu, inception, pooled_head, ready, vgg
from tests.support.running import compile_incremental

GOLDEN = Path(__file__).parent.parent / "golden"
SHAPE = (3, 16, 20)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vgg": lambda: vgg(3, (16, 20)),
    "residual": lambda: pooled_head(nn.Sequential(conv_bn_relu(3, 4), Residual(4, 6)), 6),
    "inception": lambda: nn.Sequential(inception(3), nn.MaxPool2d(3, 2, 1)),
    "dense_block": lambda: DenseBlock(3),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_text(name: str, update_golden: bool, seed: int) -> None:
    done = compile_incremental(ready(NETWORKS[name](), SHAPE, torch.float32), SHAPE, (4, 4))
    text = f"{done.plan}\n\n# front{tidy(done.front.code)}\n# tail{tidy(done.tail.code)}"
    path = GOLDEN / f"{name}.txt"
    if update_golden:
        path.write_text(text)
    assert text == path.read_text(), f"the graph of {name} changed: look at it, then run pytest --update-golden"


def tidy(code: str) -> str:
    """One line per op, without what fx adds to free memory, arguments one per line."""
    lines = [line.split(";  ")[0].rstrip() for line in code.splitlines()]
    lines = [line.replace(", ", ",\n            ") if line.startswith("def ") else line for line in lines]
    return "\n" + "\n".join(line for line in lines if line) + "\n"
