from __future__ import annotations

import numpy as np
import pytest
import torch

from examples.digits.data import CLASSES, PARTS, digits, preprocess
from examples.digits.network import CHECKPOINT, accuracy, fit, hide, load_pretrained


def test_the_parts_share_no_digit_and_make_up_all() -> None:
    pictures = torch.cat([digits(part)[0] for part in PARTS])
    assert pictures.shape == (1797, 1, 32, 32)
    rows = sorted(row for first, last in PARTS.values() for row in range(first, last))
    assert rows == list(range(1797))
    assert 0 <= pictures.min() < pictures.max() <= 1
    assert abs(float(preprocess(pictures).mean())) < 0.05
    assert abs(float(preprocess(pictures).std()) - 1) < 0.05
    for part in PARTS:
        assert set(digits(part)[1].tolist()) == set(range(len(CLASSES)))


def test_the_committed_network_reads_digits_that_it_has_never_seen() -> None:
    assert CHECKPOINT.stat().st_size <= 4_000_000
    assert accuracy(load_pretrained()) >= 0.97


def test_the_target_tells_how_much_of_the_ink_is_left() -> None:
    picture = torch.full((1, 1, 32, 32), -1.0)
    picture[..., 10:14, 10:14] = 2.0
    pictures, targets = hide(picture.expand(60, -1, -1, -1), torch.full((60,), 3), torch.Generator().manual_seed(0))
    assert torch.allclose(targets.sum(dim=1), torch.ones(60))
    left = (pictures == 2).sum(dim=(1, 2, 3)) / 16
    assert len(left.unique()) > 3
    assert torch.allclose(targets[:, 3], 0.96 * (left + (1 - left) / 10) + 0.004)


def test_training_fits_a_few_digits() -> None:
    pictures, labels = digits("train")
    model = fit(preprocess(pictures[:100]), labels[:100], epochs=12)
    with torch.inference_mode():
        assert float((model(preprocess(pictures[:100])).argmax(1) == labels[:100]).float().mean()) > 0.5


def test_an_unknown_part_is_an_error() -> None:
    with pytest.raises(KeyError):
        digits("validation")


def test_hiding_the_ink_matters() -> None:
    pictures, labels = digits("test")
    images = preprocess(pictures[:50])
    with torch.inference_mode():
        model = load_pretrained()
        before = model(images).softmax(1)[np.arange(50), labels[:50]]
        after = model(images.masked_fill(images > 0, 0.0)).softmax(1)[np.arange(50), labels[:50]]
    assert float((before - after).median()) > 0.4
