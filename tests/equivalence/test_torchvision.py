"""Seven torchvision networks: incremental against full inference of really patched images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kcompile
from kcompile.core.plan import Placement
from tests.support.equivalence import (
    NETWORKS,
    assert_equivalent,
    captured_once,
    full_inference,
    noise,
    reacting,
    some_positions,
)  # fmt: skip

Size = tuple[int, int]

# Compiled for the first size; the others run on the same module. In float64 one of these, by chance.
SINGLE: list[list[Size]] = [[(64, 64), (31, 17)], [(16, 16), (3, 5)], [(1, 1)]]
DOUBLE: list[list[Size]] = [[(31, 17), (1, 1)], [(16, 16), (3, 5)], [(64, 64), (5, 33)]]
LONG = ("VGG16", "Inception3", "DenseNet121")  # in float64
CASES = [
    pytest.param(
        name, dtype, marks=[pytest.mark.slow] * (name in LONG and dtype is torch.float64), id=f"{name}-{dtype}"
    )
    for name in NETWORKS
    for dtype in (torch.float32, torch.float64)
]


@pytest.mark.filterwarnings("ignore:The default weight initialization of (GoogleNet|inception_v3):FutureWarning")
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_patched_copies(name: str, dtype: torch.dtype, seed: int) -> None:
    size, make = NETWORKS[name]
    shape = (3, size, size)
    model = reacting(make(), noise((2, *shape))).to(dtype)
    image = noise(shape, dtype)
    rng = np.random.default_rng(seed)
    with captured_once():
        for sizes in SINGLE if dtype == torch.float32 else [DOUBLE[rng.integers(len(DOUBLE))]]:
            inc = kcompile.incrementalize(model, shape, sizes[0])
            _check(inc, model, image, sizes, rng)


def _check(
    inc: kcompile.IncrementalModule, model: nn.Module, image: Tensor, sizes: list[Size], rng: np.random.Generator
) -> None:
    placements = [layer.placement for layer in inc.plan.layers]
    assert placements.count(Placement.INCREMENTAL) > 3, "void: hardly any layer is incremental"
    before = inc.materialize(image)
    with torch.no_grad():
        torch.testing.assert_close(before, model(image[None]), rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    for patch in sizes:
        positions = some_positions(image.shape[1:], patch, rng)
        patches = noise((len(positions), 3, *patch), image.dtype, 60.0 if patch == (1, 1) else 3.0)
        full = full_inference(model, image[None], patches, positions)
        got = inc.forward_patches(patches, positions)
        assert_equivalent(got, full, before, f"compiled for {sizes[0]}, patch {patch}, positions {positions.tolist()}")
