"""Types, memory layouts, channels and sizes of images, and what copies and new weights make of each."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kcompile
from tests.support.equivalence import incremental, noise
from tests.support.networks import Residual, conv, conv_bn_relu, pooled_head, ready
from tests.support.rounding import assert_rounds_like
from tests.support.running import paste

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _network(channels: int) -> nn.Module:
    body = nn.Sequential(conv_bn_relu(channels, 6), Residual(6, 8), nn.AvgPool2d(3, 2, 1, ceil_mode=True), conv(8, 8))
    return pooled_head(body, 8)


def _compiled(channels: int, sizes: tuple[int, int], dtype: torch.dtype) -> kcompile.IncrementalModule:
    shape = (channels, *sizes)
    model = ready(_network(channels), shape).to(dtype)
    return incremental(model, shape, (min(6, sizes[0]), min(5, sizes[1])))


def _check(inc: kcompile.IncrementalModule, images: Tensor) -> None:
    if images.dtype.itemsize >= 4:
        checked = kcompile.verify(inc, images, 24)
        assert checked.ok, checked
        return
    channels, *sizes = inc.plan.input_shape
    positions = np.random.default_rng().integers(0, sizes, (60, 2))
    index = np.arange(60) % len(images)
    patches = noise((60, channels, *inc.plan.patch_shape), images.dtype, 3.0)
    patched = paste(images[index], patches, positions)
    with torch.no_grad():
        plain, exact = inc.model(patched), deepcopy(inc.model).double()(patched.double())
    inc.materialize(images)
    assert_rounds_like(inc.forward_patches(patches, positions, base_index=index), plain, exact)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "sizes"), [(3, (37, 53)), (1, (16, 16)), (13, (21, 18)), (3, (1, 40)), (2, (40, 1)), (3, (7, 64))]
)
def test_images_of_all_kinds(
    channels: int, sizes: tuple[int, int], dtype: torch.dtype, layout: torch.memory_format, seed: int
) -> None:
    inc = _compiled(channels, sizes, dtype)
    if layout is torch.channels_last:
        inc.to(memory_format=torch.channels_last)
    images = noise((2, channels, *sizes), dtype).to(memory_format=layout)
    _check(inc, images)
    inc.drop_base()
    assert torch.equal(inc(images), inc.model(images))


def _pickled(inc: kcompile.IncrementalModule) -> kcompile.IncrementalModule:
    again: kcompile.IncrementalModule = pickle.loads(pickle.dumps(inc))
    return again


def _torch_saved(inc: kcompile.IncrementalModule) -> kcompile.IncrementalModule:
    file = io.BytesIO()
    torch.save(inc, file)
    again: kcompile.IncrementalModule = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    return again


def _saved(inc: kcompile.IncrementalModule, folder: Path) -> kcompile.IncrementalModule:
    inc.save(folder / "inc.kcompile")
    return kcompile.load(folder / "inc.kcompile")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("copy", [deepcopy, _pickled, _torch_saved, _saved])
def test_copies_of_all_kinds(
    copy: Callable[..., kcompile.IncrementalModule], dtype: torch.dtype, tmp_path: Path, seed: int
) -> None:
    """The same bits; and after new weights, where there is a model, those of the new weights."""
    inc = _compiled(3, (21, 18), dtype)
    image, positions = noise((3, 21, 18), dtype), np.random.default_rng(seed).integers(-3, 17, (9, 2))
    inc.materialize(image)
    again = partial(copy, folder=tmp_path)(inc) if copy is _saved else copy(inc)
    assert torch.equal(again.materialize(image), inc.materialize(image))
    assert torch.equal(again.forward_patches(2.0, positions), inc.forward_patches(2.0, positions))
    if copy is _saved:
        return
    with torch.no_grad():
        for parameter in again.model.parameters():
            parameter.mul_(1.25)
    again.refresh()
    _check(again, image[None])
    inc.forward_patches(2.0, positions)  # knows nothing of it
