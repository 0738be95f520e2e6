"""Autocast: the graphs compute as the model would under it; a base and its queries must agree on it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kcompile
from tests.support.equivalence import PATCH, SHAPE, check, compiled, incremental, noise, refused
from tests.support.networks import conv, ready
from tests.support.rounding import assert_rounds_like
from tests.support.running import paste
from tests.support.saved_networks import SAVED

bf16 = torch.bfloat16
NETWORKS = [name for name, network in SAVED.items() if network.dtype == torch.float32 and len(network.shape) == 3]


def autocast(dtype: torch.dtype = bf16) -> Any:
    return torch.autocast("cpu", dtype=dtype)


@pytest.mark.parametrize("policy", ["incremental", "full"])
@pytest.mark.parametrize("dtype", [bf16, torch.float16])
@pytest.mark.parametrize("name", NETWORKS)
def test_as_the_model_under_autocast(name: str, dtype: torch.dtype, policy: Any, seed: int) -> None:
    """Types as the model's, errors against float64 at most twice the model's own (DESIGN: exactness)."""
    network = SAVED[name]
    shape, model = network.shape, network.made()
    inc, image = incremental(model, shape, network.patch), noise(shape)
    inc.policy = policy
    inc.materialize(image)
    inc.forward_patches(0.0, [[1, 2]])  # lowered graphs are made
    positions = np.random.default_rng(seed).integers(-2, 14, (40, 2))
    patches = noise((40, shape[0], *network.patch), size=8.0)
    images = paste(image[None].expand(40, *shape), patches, positions)
    with torch.no_grad(), autocast(dtype):
        assert_same(inc(images), model(images))
        base, plain = inc.materialize(image), rows(model(images), 40)
        want_base = rows(model(image[None]), 1)
        got = rows(inc.forward_patches(patches, positions), 40)
    with torch.no_grad():
        exact = rows(deepcopy(model).double()(images.double()), 40)
    for mine, other in zip(rows(base, 1), want_base, strict=True):
        assert mine.dtype == other.dtype
    for mine, theirs, true in zip(got, plain, exact, strict=True):
        assert_rounds_like(mine, theirs, true)


def rows(tree: Any, count: int) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point() and len(leaf) == count]


def assert_same(mine: Any, want: Any) -> None:
    for one, other in zip(*(torch.utils._pytree.tree_leaves(tree) for tree in (mine, want)), strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("dtype", [bf16, torch.float16])
@pytest.mark.parametrize("name", NETWORKS)
def test_rounded_where_the_model_is(name: str, dtype: torch.dtype, tmp_path: Path, seed: int) -> None:
    """Folded norms are taken apart, also after loading: nearly all values are the model's own, some by a bit."""
    network = SAVED[name]
    model, image = network.made(), noise(network.shape)
    inc = incremental(model, network.shape, network.patch)
    inc.save(tmp_path / "a")
    loaded = kcompile.load(tmp_path / "a")
    with torch.no_grad(), autocast(dtype):
        want = rows(model(image[None]), 1)
        for got in (inc.materialize(image), loaded.materialize(image), loaded(image[None])):
            for mine, other in zip(rows(got, 1), want, strict=True):
                size = float(other.abs().max())
                assert mine.dtype == other.dtype
                assert float((mine.double() - other.double()).abs().max()) <= 2 * torch.finfo(dtype).eps * size


def test_base_and_queries_agree(seed: int) -> None:
    inc, image = compiled(), noise(SHAPE)
    plain = inc.materialize(image)
    with (
        autocast(),
        refused(
            kcompile.NotMaterializedError,
            "made without autocast",
            "runs under autocast to torch.bfloat16",
            "materialize",
        ),
    ):
        inc.forward_patches(0.0, [[0, 0]])
    torch.testing.assert_close(inc.forward_patches(image[:, :6, :5], [[0, 0]]), plain)  # the base is still there
    with autocast():
        cast = inc.materialize(image)
        assert cast.dtype == bf16
        inc.forward_patches(0.0, [[0, 0]])
        with torch.autocast("cpu", enabled=False), refused(kcompile.NotMaterializedError, "runs without autocast"):
            inc.forward_patches(0.0, [[0, 0]])
    with autocast(torch.float16), refused(kcompile.NotMaterializedError, "torch.bfloat16", "torch.float16"):
        inc.forward_patches(0.0, [[0, 0]])
    with refused(kcompile.NotMaterializedError, "runs without autocast"):
        inc.forward_patches(0.0, [[0, 0]])
    assert torch.equal(inc(image[None]), inc.model(image[None]))  # not the base's output, which is rounded
    with autocast():
        assert torch.equal(inc(image[None]), inc.model(image[None]))
    check(inc)


def test_maps_and_verification_under_autocast(seed: int) -> None:
    inc, image = compiled(), noise(SHAPE)
    want = kcompile.occlusion(inc, image, stride=7)
    with autocast():
        heat = kcompile.occlusion(inc, image, stride=7)
        assert kcompile.verify(inc, image, seed=seed).ok
    assert 0 < np.abs(heat.all_scores - want.all_scores).max() < 0.05


def test_compiled_under_autocast(seed: int) -> None:
    """Autocast is no part of the model."""
    with autocast():
        inc = compiled()
        kcompile.analyze(inc.model, SHAPE, PATCH)
        inc.refresh()
    assert "bfloat16" not in inc.materializer.code
    check(inc)


class Own(nn.Module):
    """Switches autocast on and off by itself: casts become part of its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU()), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=bf16):
            y = self.body(x)
        with torch.autocast("cpu", enabled=False):
            return self.head(y.float().mean((2, 3)))  # type: ignore[no-any-return]


def test_a_model_with_autocast_of_its_own(tmp_path: Path, seed: int) -> None:
    model = ready(Own(), SHAPE, torch.float32)
    inc, images = incremental(model, SHAPE, PATCH), noise((2, *SHAPE))
    checked = kcompile.verify(inc, images, seed=seed)
    assert checked.ok, checked
    assert inc.forward_patches(0.0, [[1, 2]]).dtype == torch.float32
    inc.save(tmp_path / "a")
    for module in (inc, kcompile.load(tmp_path / "a")):
        with autocast(), refused(kcompile.ModelModeError, "autocast by itself", "outside of torch.autocast"):
            module.materialize(images)
    with autocast():
        assert torch.equal(inc(images), model(images))
