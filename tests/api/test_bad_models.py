"""Models, shapes and options that `kcompile.incrementalize` refuses (docs/design.md, section 8)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kcompile
from tests.support.equivalence import (
    PATCH,
    SHAPE,
    assert_equivalent,
    full_inference,
    incremental,
    network,
    noise,
    refused,
)
from tests.support.networks import Call, conv, ready


@pytest.mark.parametrize(
    ("shape", "patch", "message"),
    [
        ((3, 30), 4, "input_shape is (3, 30); allowed are (B, C, H, W) and (C, H, W)"),
        ((1, 1, 1, 3, 30, 37), 4, "input_shape is (1, 1, 1, 3, 30, 37)"),
        ((1, 1, 3, 30, 37), (4, 4), "input_shape is (1, 1, 3, 30, 37)"),
        ((3, 0, 37), 4, "input_shape is (3, 0, 37)"),
        ((3, 30.5, 37), 4, "input_shape is (3, 30.5, 37)"),
        (30, 4, "input_shape is (30,)"),
        (SHAPE, 0, "patch_shape is 0; allowed are integers of at least 1"),
        (SHAPE, (4, -1), "patch_shape is (4, -1)"),
        (SHAPE, 2.5, "patch_shape is 2.5"),
        (SHAPE, (4, 4, 4), "allowed are (B, C, D, H, W) and (C, D, H, W)"),
        (SHAPE, (31, 4), "patch_shape is (31, 4); allowed are 1 … (30, 37) pixels"),
        (
            (4, 30, 37),
            4,
            "the model does not run on images of shape (4, 30, 37): its layer '0.0.0' takes 3 channels, and got 4; "
            "allowed are images of shape (3, 30, 37)",
        ),
        ((1, 30, 37), 4, "takes 3 channels, and got 1; allowed are images of shape (3, 30, 37)"),
    ],
)
def test_shapes(shape: Any, patch: Any, message: str) -> None:
    with refused(kcompile.InputError, message):
        kcompile.incrementalize(network().eval(), shape, patch)


def test_options_and_models() -> None:
    with refused(kcompile.InputError, 'on_unsupported is \'maybe\'; allowed are "dense" and "error"'):
        kcompile.incrementalize(network().eval(), SHAPE, PATCH, on_unsupported="maybe")  # type: ignore[arg-type]
    with refused(kcompile.InputError, "must be a torch.nn.Module", "got function"):
        kcompile.incrementalize(lambda x: x, SHAPE, PATCH)  # type: ignore[arg-type]


def test_training_mode() -> None:
    with refused(kcompile.ModelModeError, "training mode", "0.0.1", "call model.eval() first"):
        kcompile.incrementalize(network().train(), SHAPE, PATCH)
    with refused(kcompile.ModelModeError, "training mode"):
        kcompile.incrementalize(nn.Sequential(conv(3, 2), nn.Dropout()), SHAPE, PATCH)


class Normalises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (1 + x.std(0))


@pytest.mark.parametrize(
    "model",
    [
        Normalises(),
        nn.BatchNorm2d(3, track_running_stats=False),
        Call(lambda x: x + x.flip(0)),
        nn.Softmax(0),
        nn.Sequential(conv(3, 4), Call(lambda x: x - x.mean())),
    ],
    ids=["batch statistics", "batch norm without statistics", "flip", "softmax over the batch", "mean of all"],
)
def test_rows_that_mix(model: nn.Module) -> None:
    with refused(kcompile.ModelModeError, "one row of a batch changes another"):
        kcompile.incrementalize(model.eval(), SHAPE, PATCH)


def windows(x: Tensor, size: int = 5) -> Tensor:
    """Attention within windows: the batch is folded with them, and unfolded again."""
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, channels, height // size, size, width // size, size).permute(0, 2, 4, 3, 5, 1)
    tokens = parts.reshape(-1, size * size, channels)
    mixed = torch.softmax(tokens @ tokens.transpose(1, 2), -1) @ tokens
    parts = mixed.reshape(batch, height // size, width // size, size, size, channels)
    return parts.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)


def test_rows_folded_into_windows_do_not_mix(seed: int) -> None:
    shape = (3, 30, 35)
    inc = incremental(ready(nn.Sequential(conv(3, 4), Call(windows), conv(4, 2)), shape, torch.float32), shape, PATCH)
    image, patches = noise(shape), noise((4, 3, *PATCH), size=3.0)
    positions = np.random.default_rng(seed).integers(0, 20, (4, 2))
    before = inc.materialize(image)
    full = full_inference(inc.model, image[None], patches, positions)
    assert_equivalent(inc.forward_patches(patches, positions), full, before)


USER_CODE = """
import torch
from torch import nn
from torch.nn import functional as F


def decide(x):
    if x.mean() > 0:  # the user's line
        return x
    return -x


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return decide(F.relu(self.conv(x)))


class Loops(nn.Module):
    def forward(self, x):
        for _ in range(int(x.abs().sum())):  # the user's line
            x = x * 0.5
        return x


class Prints(nn.Module):
    def forward(self, x):
        return x * x.max().item()  # the user's line


class Numpy(nn.Module):
    def forward(self, x):
        return x + torch.from_numpy(x.detach().numpy().copy())  # the user's line
"""


@pytest.mark.parametrize("model", ["nn.Sequential(nn.ReLU(), user_code.Inner())", "user_code.Loops()"])
def test_control_flow_on_data_names_the_users_file_and_line(model: str, tmp_path: Path) -> None:
    """Compiled by another process, as a user would."""
    (tmp_path / "user_code.py").write_text(USER_CODE)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import kcompile, user_code\nfrom torch import nn\n"
        f"try:\n    kcompile.incrementalize({model}.eval(), (3, 16, 16), 4)\n"
        "except kcompile.CaptureError as error:\n    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    found = re.search(r"user_code\.py:(\d+): (.*)", result.stdout)
    assert found, result.stdout + result.stderr
    number, line = int(found[1]), found[2]
    assert "# the user's line" in line
    assert USER_CODE.splitlines()[number - 1].strip() == line.strip()
    assert "could not trace" in result.stdout


class Sorts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sort(x, dim=-1).values


def test_an_op_without_a_rule() -> None:
    model = nn.Sequential(conv(3, 4), Sorts(), conv(4, 2)).eval()
    with refused(kcompile.UnsupportedOpError, "aten.sort", "module 1", "no spatial rule"):
        kcompile.incrementalize(model, SHAPE, PATCH, on_unsupported="error")
    with refused(kcompile.UnsupportedOpError, "torch.sort(x, dim=-1).values", "on_unsupported='dense'"):
        kcompile.incrementalize(model, SHAPE, PATCH, on_unsupported="error")
    kcompile.incrementalize(ready(network(), SHAPE), SHAPE, PATCH, on_unsupported="error")
    dense = kcompile.incrementalize(model, SHAPE, PATCH)
    assert "it follows sort, which is dense" in str(dense.plan)
