"""What the patch shows: every fill against brute force, its memory, its errors."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

import kcompile
from kcompile import fills
from tests.api.test_occlusion import PATCH, SHAPE, assert_map, network, softmax
from tests.support.equivalence import incremental, noise, refused


def expected(value: Any, image: Tensor, row: int, col: int, size: tuple[int, int]) -> Tensor:
    """The patch [C, h, w] of one position, the slow way."""
    own = (slice(None), slice(row, row + size[0]), slice(col, col + size[1]))
    if value == "mean":
        return image.mean((1, 2))[:, None, None].expand(3, *size)
    if value == "patch-mean":
        return image[own].mean((1, 2))[:, None, None].expand(3, *size)
    if value == "noise" or isinstance(value, kcompile.Noise):
        seed = 0 if value == "noise" else value.seed
        drawn = torch.from_numpy(np.random.default_rng(seed).standard_normal(tuple(image.shape)))
        return (drawn * image.std((1, 2), correction=0)[:, None, None] + image.mean((1, 2))[:, None, None])[own].float()
    sigma = [s / 2 for s in size] if value == "blur" else np.broadcast_to(value.sigma, 2)
    blurred = [gaussian_filter(channel.double().numpy(), sigma, mode="reflect") for channel in image]
    return torch.from_numpy(np.stack(blurred))[own].float()


def brute_force(model: Any, image: Tensor, heat: kcompile.Heatmap, patch: Any) -> np.ndarray[Any, Any]:
    """Scores [rows, cols, K] from one full inference per position; ``patch`` gives the patch at (row, col)."""
    flat = heat.positions.reshape(-1, 2).tolist()
    images, (height, width) = image.repeat(len(flat), 1, 1, 1), heat.patch_shape
    for one, (row, col) in zip(images, flat, strict=True):
        one[:, row : row + height, col : col + width] = patch(row, col)
    with torch.no_grad():
        return softmax(model(images)).reshape(*heat.scores.shape, -1).numpy()


FILLS = ["mean", "patch-mean", "blur", kcompile.Blur(1.5), kcompile.Blur((0.7, 3)), "noise", kcompile.Noise(7)]


def tinted() -> Tensor:
    """An image of a colour of its own."""
    return noise(SHAPE, size=2.0) + torch.tensor([1.0, -1.0, 3.0])[:, None, None]


@pytest.mark.parametrize("size", [PATCH, (3, 5)])
@pytest.mark.parametrize("value", FILLS, ids=str)
def test_every_fill(value: Any, size: tuple[int, int], seed: int) -> None:
    model, image = network(), tinted()
    heat = kcompile.occlusion(incremental(model, SHAPE, PATCH), image, size, stride=3, value=value)
    want = brute_force(model, image, heat, lambda row, col: expected(value, image, row, col, size))
    assert_map(heat, want)


def test_another_image(seed: int) -> None:
    """The patch shows its pixels at the place."""
    model, image, other = network(), noise(SHAPE), tinted()
    heat = kcompile.occlusion(incremental(model, SHAPE, PATCH), image, stride=3, value=other)
    assert_map(heat, brute_force(model, image, heat, lambda row, col: other[:, row : row + 6, col : col + 5]))
    again = kcompile.occlusion(incremental(model, SHAPE, PATCH), image, stride=3, value=other.numpy())
    np.testing.assert_array_equal(heat.all_scores, again.all_scores)


@pytest.mark.parametrize(
    "value", ["patch-mean", "blur", "noise", tinted()], ids=["patch-mean", "blur", "noise", "image"]
)
def test_patches_are_made_a_part_at_a_time(value: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their memory is bounded; the map does not depend on the parts."""
    model, image = network(), tinted()
    inc = incremental(model, SHAPE, PATCH)
    whole = kcompile.occlusion(inc, image, stride=2, value=value)
    stream, held, alive = inc.stream_patches, [], []
    windows = fills.windows

    def watched(patches: Tensor, positions: Any, **rest: Any) -> Any:
        held.append((len(positions), patches.numel() * 4))
        alive.append(weakref.ref(patches))
        yield from stream(patches, positions, **rest)

    def made(*args: Any) -> Tensor:
        assert all(ref() is None for ref in alive), "the patches of the part before are still held"
        return windows(*args)

    monkeypatch.setattr(inc, "stream_patches", watched)
    monkeypatch.setattr(fills, "windows", made)
    assert whole.scores.size == 90
    for limit, sizes in ((7 * 3 * 6 * 5 * 4, [7] * 12 + [6]), (1, [1] * 90), (1 << 30, [90])):
        held.clear()
        monkeypatch.setattr("kcompile.runtime.runners.CHUNK_BYTES", limit)
        heat = kcompile.occlusion(inc, image, stride=2, value=value)
        assert [count for count, _ in held] == sizes
        assert max(size for _, size in held) <= max(limit, 3 * 6 * 5 * 4)
        np.testing.assert_allclose(heat.all_scores, whole.all_scores, atol=1e-6)


def test_noise_is_reproducible_and_belongs_to_the_place(seed: int) -> None:
    """Neither stride nor roi nor the order matter; another seed is other noise."""
    inc, image = incremental(network(), SHAPE, PATCH), tinted()
    one, again = (kcompile.occlusion(inc, image, stride=1, value="noise") for _ in range(2))
    np.testing.assert_array_equal(one.all_scores, again.all_scores)
    part = kcompile.occlusion(inc, image, stride=2, value=kcompile.Noise(0), roi=(3, 4, 20, 21))
    np.testing.assert_allclose(part.scores, one.scores[3:15:2, 4:17:2], atol=1e-5)
    other = kcompile.occlusion(inc, image, stride=1, value=kcompile.Noise(1))
    assert np.abs(other.scores - one.scores).max() > 1e-4
    drawn = fills.Picture(kcompile.Noise(3)).source(
        torch.cat([tinted()] * 20, 2), (25, 440)
    )  # a patch as large as the image
    assert isinstance(drawn, Tensor)
    torch.testing.assert_close(drawn.mean((1, 2)), torch.tensor([1.0, -1.0, 3.0]), atol=0.4, rtol=0)
    torch.testing.assert_close(drawn.std((1, 2)), torch.full((3,), 2.0), atol=0.4, rtol=0)


def test_a_wide_blur_is_nearly_the_mean_and_a_narrow_one_the_image(seed: int) -> None:
    image, at = tinted(), np.array([[0, 0], [7, 9], [19, 17]])
    wide, narrow = (fills.Picture(kcompile.Blur(sigma)).source(image, PATCH) for sigma in (200, 1e-3))
    assert callable(wide)
    assert callable(narrow)
    mean = image.mean((1, 2))[None, :, None, None].expand(3, 3, *PATCH)
    torch.testing.assert_close(wide(at), mean, rtol=0, atol=1e-2)
    torch.testing.assert_close(narrow(at), fills.windows(image, at, PATCH))
    assert float((narrow(at) - mean).abs().max()) > 1


@pytest.mark.parametrize("value", [2.0, "mean", "patch-mean", "blur", "noise", torch.full(SHAPE, 2.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_model_s_type(value: Any, dtype: torch.dtype, seed: int) -> None:
    """Whatever the fill is made of, it has the image's type."""
    model, image = network(), tinted()
    want = kcompile.occlusion(incremental(model, SHAPE, PATCH), image, value=value)
    heat = kcompile.occlusion(incremental(model.to(dtype), SHAPE, PATCH), image.to(dtype), value=value)
    np.testing.assert_allclose(heat.scores, want.scores, atol=1e-5 if dtype is torch.float64 else 0.1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "patchmean",
            "value is 'patchmean'; allowed are a number, one per channel, a tensor (3, 6, 5) for the patch or",
        ),
        ("", '"mean", "patch-mean", "blur", "noise", kcompile.Blur, kcompile.Noise and kcompile.Pixels'),
        (None, "value is of type NoneType; allowed are a number"),
        (object(), "value is of type object"),
        ([[1.0], [2.0, 3.0]], "value is of type list"),
        (1j, "value is of type complex"),
        (torch.zeros(3, dtype=torch.complex64), "value has type torch.complex64; allowed are real numbers"),
        ([1.0, 2.0], "value has 2 numbers; the image has 3 channels"),
        (torch.zeros(3, 7, 5), "value has shape (3, 7, 5)"),
        (
            torch.zeros(1, 3, 6, 5),
            "allowed are a number, [3], (3, 6, 5) for the patch and (3, 25, 22) for another image",
        ),
        (kcompile.Blur(0), "sigma is 0; allowed are 0 … 10000 pixels, one number or one per axis"),
        (kcompile.Blur(-1.0), "sigma is -1.0"),
        (kcompile.Blur(float("nan")), "sigma is nan"),
        (kcompile.Blur((1, 2, 3)), "sigma is (1, 2, 3)"),
        (kcompile.Blur("wide"), "sigma is 'wide'"),  # type: ignore[arg-type]
        (kcompile.Noise(1.5), "seed is 1.5; allowed are integers from 0 to 2**63 - 1"),  # type: ignore[arg-type]
    ],
)
def test_errors_say_what_was_given_and_what_is_allowed(value: Any, message: str) -> None:
    inc = incremental(network(), SHAPE, PATCH)
    with refused(kcompile.InputError, message):
        kcompile.occlusion(inc, noise(SHAPE), value=value)
