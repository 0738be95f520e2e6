"""Images of one axis and of three, through the front door."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kcompile
from kcompile.core.errors import InputError
from kcompile.core.plan import Placement


def _paste(images: Tensor, patches: Tensor, positions: np.ndarray) -> Tensor:
    """Patched copies, cell by cell."""
    copies = images.clone()
    for row, position in enumerate(positions):
        for cell in np.ndindex(*patches.shape[2:]):
            at = tuple(position + cell)
            if all(0 <= a < size for a, size in zip(at, images.shape[2:], strict=True)):
                copies[(row, slice(None), *at)] = patches[(row, slice(None), *cell)]
    return copies


def _signal() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 8, 5, stride=2, padding=2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(3, 2, 1),
        nn.ConvTranspose1d(8, 6, 4, 2, 1), nn.Upsample(scale_factor=2, mode="linear"), nn.AdaptiveAvgPool1d(7),
        nn.Flatten(), nn.Linear(42, 3),
    )  # fmt: skip


def _volume() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(4, 6, (1, 3, 3)),
        nn.Upsample(scale_factor=2, mode="trilinear"), nn.AvgPool3d(2, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
        nn.Linear(6, 3),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "shape", "patch"), [(_signal, (2, 61), (7,)), (_volume, (1, 12, 14, 13), (3, 4, 2))], ids=["1d", "3d"]
)
@pytest.mark.parametrize("batched", [False, True])
def test_equals_full_inference(
    seed: int, make: type[nn.Module], shape: tuple[int, ...], patch: tuple[int, ...], batched: bool
) -> None:
    model = make().eval().double()
    inc = kcompile.incrementalize(model, (5, *shape) if batched else shape, patch)
    assert any(layer.macs and layer.placement is Placement.INCREMENTAL for layer in inc.plan.layers)
    images = torch.randn(2, *shape).double()
    bases = inc.materialize(images)
    count, rng = 25, np.random.default_rng(seed)
    positions = np.stack([rng.integers(-p + 1, size, count) for p, size in zip(patch, shape[1:], strict=True)], 1)
    patches, index = torch.randn(count, shape[0], *patch).double() * 3, np.arange(count) % 2
    full = model(_paste(images[torch.from_numpy(index)], patches, positions)).detach()
    out = inc.forward_patches(patches, positions, base_index=index)
    change = (full - bases[torch.from_numpy(index)]).abs().max()
    assert change > 1e-3 * full.abs().max()
    torch.testing.assert_close(out, full, rtol=0, atol=float(1e-9 * change))


def test_five_sizes_are_a_volume() -> None:
    inc = kcompile.incrementalize(_volume().eval(), (1, 1, 12, 14, 13), 4)
    assert inc.plan.patch_shape == (4, 4, 4)


@pytest.mark.parametrize(("shape", "patch"), [((61,), (7,)), ((1, 1, 2, 61), (7,)), ((2, 9, 9), (1, 1, 1))])
def test_shapes_that_do_not_fit_the_patch(shape: tuple[int, ...], patch: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="allowed are"):
        kcompile.incrementalize(_signal().eval(), shape, patch)
