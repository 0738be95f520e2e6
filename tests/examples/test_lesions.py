from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from examples.lesions.augment import draw_boxes, soft_targets
from examples.lesions.evaluate import evaluate, lesioned, occlusion_map
from examples.lesions.generator import CLASSES, SHIPPED_SEED, Sample, dataset, generate, save_picture
from examples.lesions.metrics import dilate, localisation
from examples.lesions.network import CHECKPOINT, MEAN, STD, load_pretrained, preprocess
from examples.lesions.networks import NETWORKS, load_network
from examples.lesions.textures import retextured
from examples.lesions.train import HELD_OUT_SEED, TRAIN_SEED, Eyes, accuracy, draw_batch, draw_eyes, fit

FOLDER = CHECKPOINT.parent
FRESH_SEED = 2  # neither trained on nor looked at when the training was tuned


@pytest.fixture(scope="module", params=NETWORKS)
def pretrained(request: pytest.FixtureRequest) -> torch.nn.Sequential:
    return load_network(request.param)


# ---------------------------------------------------------------- generator


@pytest.mark.parametrize("label", CLASSES)
def test_a_picture_is_three_equal_channels_of_grey(label: str) -> None:
    sample = generate(label, 3)
    assert sample.image.dtype == np.float32
    assert sample.image.shape == (3, 224, 224)
    assert sample.image.min() >= 0.0
    assert sample.image.max() <= 1.0
    assert sample.image.std() > 0.1
    assert np.array_equal(sample.image[0], sample.image[2])
    assert sample.mask.dtype == np.bool_
    assert sample.mask.shape == (224, 224)


@pytest.mark.parametrize("label", CLASSES)
def test_a_picture_depends_on_label_and_seed_alone(label: str) -> None:
    first, again, other = generate(label, 5), generate(CLASSES.index(label), 5), generate(label, 6)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)
    assert first.label == again.label == CLASSES.index(label)
    assert not np.allclose(first.image, other.image, atol=0.05)


def test_only_lesions_have_a_mask_and_it_is_small() -> None:
    for sample in dataset(80, FRESH_SEED):
        share = sample.mask.mean()
        if CLASSES[sample.label] == "normal":
            assert share == 0
        else:
            assert 0.003 <= share <= 0.06


def test_lesions_lie_all_over_the_width() -> None:
    columns = [np.nonzero(s.mask)[1].mean() for s in lesioned(60, FRESH_SEED)]
    assert np.histogram(columns, bins=4, range=(0, 224))[0].min() >= 5


@pytest.mark.parametrize("label", CLASSES[1:])
def test_pictures_of_one_seed_differ_at_the_lesion(label: str) -> None:
    healthy, ill = generate("normal", 11), generate(label, 11)
    change = np.abs(healthy.image[0] - ill.image[0])
    near = dilate(ill.mask, 16)
    assert change[ill.mask].mean() > 0.1
    assert change[ill.mask].mean() > 5 * change[~near].mean()


def test_fluid_is_dark_and_a_membrane_bright() -> None:
    dark, bright = generate("fluid", 21), generate("membrane", 21)
    assert dark.image[0][dark.mask].mean() < 0.2
    assert bright.image[0][bright.mask].mean() > 0.5


def test_a_dataset_goes_through_the_classes_and_shares_no_eye_with_another() -> None:
    ours, theirs = list(dataset(4, TRAIN_SEED)), list(dataset(4, HELD_OUT_SEED))
    assert [s.label for s in ours] == [0, 1, 2, 3]
    assert not any(np.allclose(a.image, b.image, atol=0.05) for a in ours for b in theirs)
    assert np.array_equal(list(dataset(3, 5))[2].image, generate(2, 5_000_002).image)
    assert list(dataset(0, 0)) == []


@pytest.mark.parametrize("label", ["edema", -1, 4])
def test_an_unknown_class_is_named_with_the_allowed_ones(label: int | str) -> None:
    with pytest.raises(ValueError, match=f"{label!r}.*normal, drusen, fluid, membrane"):
        generate(label, 0)


@pytest.mark.parametrize("n", [-1, 1_000_001])
def test_a_dataset_that_would_run_into_the_next_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=str(n)):
        dataset(n, 0)


def test_saved_pictures_come_back(tmp_path: Path) -> None:
    sample = generate("drusen", 1)
    save_picture(sample.image, tmp_path / "picture.png")
    save_picture(sample.mask, tmp_path / "mask.png")
    assert np.abs(read(tmp_path / "picture.png") / 255 - sample.image[0]).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(read(tmp_path / "mask.png") == 255, sample.mask)


def read(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_the_shipped_picture_is_the_generators(tmp_path: Path) -> None:
    sample = generate("fluid", SHIPPED_SEED)
    save_picture(sample.image, tmp_path / "fluid.png")
    assert np.array_equal(read(FOLDER / "fluid_mask.png") == 255, sample.mask)
    # Another numpy may round the noise otherwise, by a grey level at most.
    assert np.abs(read(FOLDER / "fluid.png").astype(int) - read(tmp_path / "fluid.png")).max() <= 1


def test_another_texture_changes_the_picture_and_keeps_the_lesion() -> None:
    sample = generate("fluid", 21)
    first, again, other = retextured(sample, 3), retextured(sample, 3), retextured(sample, 4)
    assert np.array_equal(first.image, again.image)
    assert np.abs(first.image - other.image).mean() > 0.02
    assert np.abs(first.image - sample.image).mean() > 0.05
    assert np.array_equal(first.mask, sample.mask)
    assert first.image.shape == (3, 224, 224)
    assert 0 <= first.image.min() < first.image.max() <= 1


# ---------------------------------------------------------------- network


@pytest.mark.parametrize("name", NETWORKS)
def test_the_checkpoint_is_small_and_holds_tensors_alone(name: str) -> None:
    make, path = NETWORKS[name]
    state = torch.load(path, weights_only=True)
    assert path.stat().st_size <= 4_000_000
    assert sum(v.numel() for v in state.values()) < 1_000_000
    assert state.keys() == make().state_dict().keys()


def test_the_first_network_is_that_of_the_demo() -> None:
    ours, demos = load_network("vgg").state_dict(), load_pretrained().state_dict()
    assert all(torch.equal(ours[name], demos[name]) for name in demos)


def test_the_pretrained_network_classifies_fresh_pictures(pretrained: torch.nn.Sequential) -> None:
    assert not pretrained.training
    assert accuracy(pretrained, 80, FRESH_SEED) >= 0.95


def test_preprocessing_puts_the_average_grey_at_zero() -> None:
    grey = np.broadcast_to(np.array(MEAN, dtype=np.float32)[:, None, None], (3, 2, 2))
    assert preprocess(grey.copy()).abs().max() < 1e-6
    assert torch.allclose(preprocess(torch.ones(5, 3, 1, 1))[4, :, 0, 0], (1 - torch.tensor(MEAN)) / torch.tensor(STD))
    pictures = np.stack([s.image for s in dataset(16, FRESH_SEED)])
    assert abs(float(preprocess(pictures).mean())) < 0.15
    assert abs(float(preprocess(pictures).std()) - 1) < 0.15


# ---------------------------------------------------------------- training


def test_hidden_lesions_are_taught_to_be_normal() -> None:
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[1, :2] = True
    masks[2, :, :2] = True
    hidden = torch.zeros(4, 4, dtype=torch.bool)
    hidden[:2] = True
    targets = soft_targets(torch.tensor([0, 1, 2]), masks, hidden, smoothing=0.0)
    assert targets.tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0.5, 0, 0.5, 0]]
    assert soft_targets(torch.tensor([3]), masks[:1], hidden, smoothing=0.4).tolist()[0] == pytest.approx(
        [0.1, 0.1, 0.1, 0.7]
    )


def test_boxes_often_hide_part_of_a_lesion_and_sometimes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(2, 224, 224, dtype=torch.bool)
    masks[1, 3:9, 210:216] = True  # in a corner, which boxes anywhere would hardly ever touch
    drawn = [draw_boxes(masks, generator) for _ in range(100)]
    assert 15 <= sum(not d.any() for d in drawn) <= 35
    assert sum(bool((d & masks[1]).any()) for d in drawn) >= 30
    assert sum(bool(d[112:].any()) for d in drawn) >= 30
    assert draw_boxes(masks[:1], generator).shape == (224, 224)


def test_a_batch_holds_every_eye_once_per_class() -> None:
    pictures, targets = draw_batch(draw_eyes(2), torch.tensor([1, 0]), torch.Generator().manual_seed(0))
    assert pictures.shape == (8, 3, 224, 224)
    assert torch.allclose(targets.sum(dim=1), torch.ones(8))
    assert targets[0].argmax() == targets[4].argmax() == 0


def test_targets_tell_how_much_of_the_lesion_is_left_in_the_picture() -> None:
    masks = torch.zeros(1, 4, 224, 224, dtype=torch.bool)
    masks[0, 1:, 100:120, 20:50] = True
    eyes = Eyes(masks.byte() * 255, masks)
    generator, white = torch.Generator().manual_seed(0), preprocess(torch.ones(3, 1, 1)).max()
    for _ in range(30):
        pictures, targets = draw_batch(eyes, torch.tensor([0]), generator)
        left = (pictures[1, 0] == white).sum() / masks[0, 1].sum()
        assert float(targets[1, 1]) == pytest.approx(0.96 * float(left) + 0.01, abs=1e-5)


def test_training_lowers_the_loss(capsys: pytest.CaptureFixture[str]) -> None:
    model = fit(draw_eyes(8), epochs=4)
    losses = [float(line.rsplit(maxsplit=1)[1]) for line in capsys.readouterr().out.splitlines()]
    assert not model.training
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_training_is_the_same_for_every_network(name: str) -> None:
    make = NETWORKS[name][0]
    torch.manual_seed(0)
    fresh, trained = make(), fit(draw_eyes(8), epochs=1, make=make)
    assert not trained.training
    assert trained(torch.zeros(2, 3, 224, 224)).shape == (2, len(CLASSES))
    pairs = zip(fresh.parameters(), trained.parameters(), strict=True)  # of the same seed, so they differ by training
    changes = [(a.dim() > 1, float((a - b).detach().abs().max())) for a, b in pairs]
    assert all(change < 0.1 for _, change in changes)
    assert all(change > 0 for filters, change in changes if filters)  # norms' ones are too large for so small a step


# ---------------------------------------------------------------- metrics


def square(size: int, top: int, left: int, side: int) -> NDArray[np.bool_]:
    mask = np.zeros((size, size), dtype=np.bool_)
    mask[top : top + side, left : left + side] = True
    return mask


def test_dilation_reaches_what_a_touching_patch_covers() -> None:
    assert np.array_equal(dilate(square(9, 4, 4, 1), 3), square(9, 2, 2, 5))
    assert np.array_equal(dilate(square(9, 0, 0, 2), (1, 2)), np.pad(np.ones((2, 3), bool), ((0, 7), (0, 6))))
    assert np.array_equal(dilate(square(5, 1, 1, 2), 1), square(5, 1, 1, 2))


def test_all_heat_on_the_lesion_gives_the_inverse_of_its_area() -> None:
    mask = square(10, 0, 0, 2)
    assert localisation(mask.astype(float), mask, 1) == pytest.approx((1.0, 0.04, 25.0))


def test_even_heat_gives_ratio_one() -> None:
    assert localisation(np.full((10, 10), 0.3), square(10, 4, 4, 2), 3).ratio == pytest.approx(1.0)


def test_heat_elsewhere_gives_zero() -> None:
    assert localisation(square(10, 7, 7, 3).astype(float), square(10, 0, 0, 2), 3).share == 0
    assert localisation(np.zeros((10, 10)), square(10, 0, 0, 2), 3).ratio == 0


def test_negative_and_unknown_pixels_are_no_heat() -> None:
    attribution = np.full((4, 4), -1.0)
    attribution[0, 0], attribution[3] = 2.0, np.nan
    assert localisation(attribution, square(4, 0, 0, 1), 1) == pytest.approx((1.0, 1 / 12, 12.0))


@pytest.mark.parametrize(
    ("attribution", "mask", "message"),
    [
        (np.ones((4, 4)), square(5, 0, 0, 1), "same"),
        (np.ones((4, 4)), square(4, 0, 0, 0), "empty"),
        (np.full((4, 4), np.nan), square(4, 0, 0, 1), "no pixel"),
    ],
)
def test_maps_that_cannot_be_judged_are_refused(
    attribution: NDArray[np.float64], mask: NDArray[np.bool_], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        localisation(attribution, mask, 3)


# ---------------------------------------------------------------- evaluation


class Corner(torch.nn.Module):
    """Answers class 1 by the mean of a picture's top left 4x4 pixels."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        score = pictures[:, :, :4, :4].mean(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(score), score], dim=1)


def test_an_occlusion_map_is_the_fall_averaged_over_windows() -> None:
    heat = occlusion_map(Corner(), torch.ones(3, 10, 10), patch=4, stride=2)
    sigmoid = torch.sigmoid(torch.tensor([1.0, 0.5, 0.75]))
    whole, half, quarter = (float(sigmoid[0] - s) for s in (torch.tensor(0.5), sigmoid[1], sigmoid[2]))
    assert heat[0, 0] == pytest.approx(whole, abs=1e-6)
    assert heat[0, 2] == pytest.approx((whole + half) / 2, abs=1e-6)
    assert heat[3, 3] == pytest.approx((whole + 2 * half + quarter) / 4, abs=1e-6)
    assert heat[9, 9] == 0


def test_pixels_that_no_window_covers_are_nan() -> None:
    heat = occlusion_map(Corner(), torch.ones(3, 11, 10), patch=4, stride=2)
    assert np.isnan(heat[10]).all()
    assert not np.isnan(heat[:10]).any()


def test_any_explainer_can_be_evaluated(pretrained: torch.nn.Sequential) -> None:
    samples = lesioned(3, FRESH_SEED)
    blind = evaluate(pretrained, samples, lambda model, picture: np.ones((224, 224), np.float32))
    assert [f.label for f in blind] == [1, 2, 3]
    assert [f.localisation.ratio for f in blind] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("label", CLASSES[1:])
def test_hiding_the_lesion_makes_the_picture_normal(label: str, pretrained: torch.nn.Sequential) -> None:
    drops = [fall(pretrained, generate(label, seed), lambda s: dilate(s.mask, 5)) for seed in range(50, 54)]
    elsewhere = [fall(pretrained, generate(label, seed), beside) for seed in range(50, 54)]
    assert np.median(drops) > 0.5
    assert np.median(elsewhere) < 0.1


def beside(sample: Sample) -> NDArray[np.bool_]:
    """A 16x16 square in the retina's row of the lesion, half a picture aside."""
    row, column = (int(axis.mean()) for axis in np.nonzero(sample.mask))
    return square(224, row - 8, min((column + 112) % 224, 208), 16)


def fall(model: torch.nn.Module, sample: Sample, hide: Callable[[Sample], NDArray[np.bool_]]) -> float:
    picture = preprocess(sample.image)
    hidden = picture.masked_fill(torch.from_numpy(hide(sample)), 0.0)
    with torch.inference_mode():
        before, after = model(torch.stack([picture, hidden])).softmax(-1)[:, sample.label].tolist()
    return float(before - after)
