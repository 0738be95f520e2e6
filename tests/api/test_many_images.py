"""Several images and several targets: lists of maps, interrupts, the callback, what images may be."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kcompile
from tests.support.equivalence import PATCH, SHAPE, compiled, noise, refused

COUNT = 63  # positions of one map of stride 4


@pytest.fixture(scope="module")
def inc() -> kcompile.IncrementalModule:
    return compiled()


@pytest.fixture
def groups(inc: kcompile.IncrementalModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small groups of positions instead of a single one."""
    monkeypatch.setattr(inc.executor(), "tail_bytes", 1)
    monkeypatch.setattr(inc.executor(), "batch", 20)


def same(heat: kcompile.Heatmap, want: kcompile.Heatmap) -> None:
    known = ~np.isnan(heat.all_scores)
    np.testing.assert_allclose(heat.all_scores[known], want.all_scores[known], atol=1e-6)
    np.testing.assert_allclose(heat.base_scores, want.base_scores, atol=1e-6)
    np.testing.assert_array_equal(heat.positions, want.positions)
    assert heat.target == want.target


# ------------------------------------------------------------------ several images


@pytest.mark.parametrize("value", [2.0, "mean", "blur"])
def test_a_list_and_a_batch_give_a_list(inc: kcompile.IncrementalModule, value: Any, seed: int) -> None:
    images = noise((3, *SHAPE))
    single = [kcompile.occlusion(inc, image, value=value) for image in images]
    assert np.abs(single[0].scores - single[1].scores).max() > 1e-4
    for given in (images, list(images), tuple(images), [image[None] for image in images]):
        heats = kcompile.occlusion(inc, given, value=value)
        assert isinstance(heats, list)
        assert len(heats) == 3
        for heat, want in zip(heats, single, strict=True):
            same(heat, want)
            assert heat.complete
            assert heat.seconds > 0
    (alone,) = kcompile.occlusion(inc, [images[0]], value=value)
    same(alone, single[0])
    same(kcompile.occlusion(inc, images[:1], value=value), single[0])
    same(kcompile.occlusion(inc.model, list(images), PATCH, value=value)[2], single[2])


def test_a_bar_for_all_images(inc: kcompile.IncrementalModule, capsys: pytest.CaptureFixture[str]) -> None:
    kcompile.occlusion(inc, noise((3, *SHAPE)), progress=True)
    shown = capsys.readouterr().err
    assert f"{3 * COUNT}/{3 * COUNT}" in shown
    assert "estimate" in shown


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "the image is an empty list"),
        ([noise(SHAPE), None], "image 1 of the list: the image must be a torch.Tensor, got NoneType"),
        ([noise(SHAPE), noise(SHAPE).numpy()], "image 1 of the list: the image must be a torch.Tensor, got ndarray"),
        ([noise(SHAPE), noise((2, *SHAPE))], "image 1 of the list is a batch of 2; allowed is one image each"),
        (
            [noise(SHAPE), noise(SHAPE), noise((3, 30, 36))],
            "image 2 of the list: the image has shape (3, 30, 36); this module was compiled for (3, 30, 37)",
        ),
        ([noise(SHAPE), noise(SHAPE).double()], "image 1 of the list: the image has type torch.float64"),
        ([noise((3, 30, 36))] * 2, "the image has shape (3, 30, 36); this module was compiled for (3, 30, 37)"),
        (noise((0, *SHAPE)), "the image has shape (0, 3, 30, 37); this module was compiled for"),
        (noise((2, 4, 30, 37)), "the image has shape (2, 4, 30, 37)"),
    ],
)
def test_bad_lists_are_told_before_any_work(inc: kcompile.IncrementalModule, images: Any, message: str) -> None:
    seen: list[Any] = []
    with refused(kcompile.InputError, message):
        kcompile.occlusion(inc, images, callback=seen.append)
    assert not seen


# ------------------------------------------------------------------ several targets


def test_several_targets_of_one_run(inc: kcompile.IncrementalModule, seed: int) -> None:
    image = noise(SHAPE)
    for targets in ([3, 0], (3, 0), np.array([3, 0]), torch.tensor([3, 0])):
        three, zero = kcompile.occlusion(inc, image, target=targets)
        assert (three.target, zero.target) == (3, 0)
        assert three.all_scores is zero.all_scores, "not computed twice"
        same(zero, kcompile.occlusion(inc, image, target=0))
    (only,) = kcompile.occlusion(inc, image, target=[2])
    assert only.target == 2
    assert kcompile.occlusion(inc, image, target=torch.tensor(2)).target == 2
    nested = kcompile.occlusion(inc, [image, noise(SHAPE)], target=[1, 4])
    assert [[heat.target for heat in heats] for heats in nested] == [[1, 4], [1, 4]]
    assert np.abs(nested[0][0].scores - nested[1][0].scores).max() > 1e-4


@pytest.mark.parametrize("target", [[0, 5], [], [-1], [1.5], "dog", torch.tensor([0.5])], ids=str)
def test_targets_that_the_model_has_not(inc: kcompile.IncrementalModule, target: Any) -> None:
    with refused(kcompile.InputError, "; the model has classes 0 … 4"):
        kcompile.occlusion(inc, noise(SHAPE), target=target)


# ------------------------------------------------------------------ the end before the end


def interrupting(inc: kcompile.IncrementalModule, monkeypatch: pytest.MonkeyPatch, image: int, group: int) -> None:
    """Ctrl-C at a group of positions of one image; group -1 is while the image is materialised."""
    stream, materialize, now = inc.stream_patches, inc.materialize_given, [-1]

    def base(*args: Any) -> Any:
        now[0] += 1
        if (now[0], -1) == (image, group):
            raise KeyboardInterrupt
        return materialize(*args)

    def interrupted(*args: Any, **rest: Any) -> Iterator[Any]:
        for number, found in enumerate(stream(*args, **rest)):
            if (now[0], number) == (image, group):
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(inc, "materialize_given", base)
    monkeypatch.setattr(inc, "stream_patches", interrupted)


@pytest.mark.parametrize(
    ("image", "group", "maps"), [(0, 0, 1), (0, 1, 1), (1, -1, 1), (1, 0, 2), (1, 1, 2), (2, -1, 2), (2, 1, 3)]
)
@pytest.mark.usefixtures("groups")
def test_ctrl_c_returns_what_is_done(
    inc: kcompile.IncrementalModule, image: int, group: int, maps: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole maps, then the partial one; those of images not begun are not there."""
    images = noise((3, *SHAPE))
    want = kcompile.occlusion(inc, images)
    interrupting(inc, monkeypatch, image, group)
    heats = kcompile.occlusion(inc, images)
    assert len(heats) == maps
    for heat, whole in zip(heats, want, strict=False):
        same(heat, whole)
    assert [heat.complete for heat in heats] == [index < image for index in range(maps)]
    if group >= 0:
        assert np.isfinite(heats[-1].scores).any() == (group > 0)


def test_ctrl_c_before_anything_is_done_is_ctrl_c(
    inc: kcompile.IncrementalModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupting(inc, monkeypatch, 0, -1)
    with pytest.raises(KeyboardInterrupt):
        kcompile.occlusion(inc, noise((3, *SHAPE)))


@pytest.mark.usefixtures("groups")
def test_the_callback_sees_every_position(inc: kcompile.IncrementalModule, seed: int) -> None:
    seen: list[kcompile.Progress] = []
    kcompile.occlusion(inc, noise((2, *SHAPE)), callback=seen.append)
    assert len(seen) > 4
    done = [progress.done for progress in seen]
    assert done == sorted(set(done))
    assert done[-1] == seen[0].total == 2 * COUNT
    assert [progress.image for progress in seen] == [int(count > COUNT) for count in done]
    seconds = [progress.seconds for progress in seen]
    assert seconds[0] > 0
    assert seconds == sorted(seconds)
    assert seen[-1].remaining == 0 < seen[0].remaining
    with pytest.raises(dataclasses.FrozenInstanceError):
        seen[0].done = 3  # type: ignore[misc]


@pytest.mark.parametrize("how", ["False", "StopIteration"])
@pytest.mark.usefixtures("groups")
def test_the_callback_can_stop(
    inc: kcompile.IncrementalModule, how: str, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    images = noise((3, *SHAPE))
    want, calls = kcompile.occlusion(inc, images), []

    def stop(progress: kcompile.Progress) -> bool | None:
        calls.append(progress)
        if progress.image == 1 and how == "StopIteration":
            raise StopIteration
        return progress.image != 1

    heats = kcompile.occlusion(inc, images, callback=stop, progress=True)
    assert "stopped by the callback" in capsys.readouterr().err
    assert len(heats) == 2
    assert heats[0].complete
    assert not heats[1].complete
    assert np.isfinite(heats[1].scores).sum() == calls[-1].done - COUNT > 0
    for heat, whole in zip(heats, want, strict=False):
        same(heat, whole)


def test_errors_of_the_callback_are_the_user_s(inc: kcompile.IncrementalModule) -> None:
    def broken(progress: kcompile.Progress) -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        kcompile.occlusion(inc, noise(SHAPE), callback=broken)


# ------------------------------------------------------------------ what an image may be


def views(image: Tensor) -> dict[str, Tensor]:
    """The same pixels, kept in other ways."""
    return {
        "with gradients": image.clone().requires_grad_(),
        "a result": (image.clone().requires_grad_() * 1.0),
        "channels last": image[None].contiguous(memory_format=torch.channels_last),
        "a view": torch.cat([image, image], 2)[:, :, : image.shape[2]],
        "transposed": image.transpose(1, 2).contiguous().transpose(1, 2),
        "a parameter": torch.nn.Parameter(image.clone()),
    }


@pytest.mark.parametrize("value", [2.0, "mean", "patch-mean", "blur", "noise"])
@pytest.mark.parametrize("kind", list(views(noise(SHAPE))))
def test_images_of_any_kind(inc: kcompile.IncrementalModule, kind: str, value: Any, seed: int) -> None:
    image = noise(SHAPE)
    want, given = kcompile.occlusion(inc, image, value=value), views(image)[kind]
    same(kcompile.occlusion(inc, given, value=value), want)
    other = noise(SHAPE)
    for one in (given, views(other)[kind]):  # as the fill, too
        heat = kcompile.occlusion(inc, other, value=one.reshape(SHAPE))
        same(heat, kcompile.occlusion(inc, other, value=one.detach().reshape(SHAPE).clone()))


@pytest.mark.parametrize("value", [2.0, "mean", "patch-mean", "blur", "noise"])
def test_nan_in_the_image_warns(inc: kcompile.IncrementalModule, value: Any) -> None:
    image = noise(SHAPE)
    image[0, 3, 4] = float("nan")
    with pytest.warns(UserWarning, match="the image holds NaN or infinite values"):
        heat = kcompile.occlusion(inc, image, value=value)
    assert np.isnan(heat.base_score)
    if value == 2.0:  # under the patch it is gone
        assert np.isfinite(heat.scores[0, 0])
        assert np.isnan(heat.scores[5, 5])


def test_other_types_of_images(seed: int) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        heat = kcompile.occlusion(compiled(dtype), noise(SHAPE, dtype))
        assert heat.complete
        assert heat.all_scores.dtype == np.float32
    with refused(kcompile.InputError, "the image has type torch.float64; the model computes in torch.float32"):
        kcompile.occlusion(compiled(), noise(SHAPE).double())
