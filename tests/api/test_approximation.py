"""Approximation: what is allowed, what selects the exact path, and what a map tells of it."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import kcompile
from kcompile import Approximation, InputError
from tests.support.networks import conv_bn_relu


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("tau", 0, "0 < tau <= 1"),
        ("tau", 1.01, "0 < tau <= 1"),
        ("tau", True, "0 < tau <= 1"),
        ("tau", "0.5", "0 < tau <= 1"),
        ("tau", float("nan"), "0 < tau <= 1"),
        ("share", 0, "0 < share <= 1"),
        ("share", 2, "0 < share <= 1"),
        ("extents", {"conv": (0, 3)}, "integers of at least 1"),
        ("extents", {"conv": ()}, "integers of at least 1"),
        ("extents", "conv", "names of layers"),
        ("cut", "", "the name of a layer"),
        ("cut", -0.1, "a share 0 … 1"),
        ("cut", 1.5, "a share 0 … 1"),
        ("rest", "kept", "'dropped', 'linear'"),
        ("rest", "linear", "with a cut, and with tau or extents"),
        ("reference", "mean", "'base', 'secant', 'mean-gradient'"),
        ("gates", "open", "'exact', 'held', 'linear'"),
        ("dtype", "float32", "None, 'bfloat16', 'float16'"),
        ("coarse", 0, "at least 1"),
        ("coarse", 2.5, "at least 1"),
        ("levels", 1, "at least 2"),
        ("samples", -1, "0 (no estimate) and integers of at least 5"),
        ("samples", 4, "0 (no estimate) and integers of at least 5"),
        ("seed", -1, "at least 0"),
        ("correct", -1, "at least 0"),
        ("correct", 64, "with tau, extents, cut, gates or dtype"),  # which there are none of
    ],
)
def test_what_is_not_allowed(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(InputError, match=field) as error:
        Approximation(**{field: value})
    assert repr(value) in str(error.value) or field == "extents"
    assert allowed in str(error.value)


@pytest.mark.parametrize(
    ("given", "exact"),
    [
        ({}, True),
        ({"tau": 1, "share": 1, "cut": 1.0}, True),
        ({"coarse": 16, "levels": 3, "samples": 0, "reference": "secant"}, True),  # nothing for them to apply to
        ({"tau": 0.99}, False),
        ({"extents": {"conv2d": (3, 4)}}, False),
        ({"cut": 0.0}, False),
        ({"cut": "layer2"}, False),
        ({"gates": "held"}, False),
        ({"dtype": "bfloat16"}, False),
        ({"share": 0.5}, False),
    ],
)
def test_what_is_exact(given: dict[str, Any], exact: bool) -> None:
    settings = Approximation(**given)
    assert settings.exact == exact
    assert (str(settings) == "exact") == exact
    assert Approximation.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


def test_frozen_and_without_unknown_names() -> None:
    with pytest.raises(FrozenInstanceError):
        Approximation().tau = 0.5  # type: ignore[misc]
    with pytest.raises(InputError, match="has no 'tua'; allowed are tau, extents"):
        Approximation.from_dict({"tua": 0.5})


def test_a_map_tells_what_was_approximated(tmp_path: Path, seed: int) -> None:
    settings = Approximation(tau=0.5, cut="layer2", dtype="bfloat16", gates="linear", share=0.25)
    scores = np.random.default_rng(seed).random((3, 4, 2)).astype(np.float32)
    scores[..., 1] = np.nan  # a class that was not explained
    positions = np.stack(np.meshgrid(np.arange(3) * 4, np.arange(4) * 4, indexing="ij"), -1)
    heat = kcompile.Heatmap(scores, np.array([0.5, 0.5]), 0, positions, (4, 4), (12, 16), "logit", 0.0, settings)
    for part in ("tau 0.5", "linear behind layer2", "bfloat16", "gates linear", "25% of the positions"):
        assert part in str(settings)
    assert f"approximate: {settings}" in repr(heat)
    assert heat.complete
    for title in (None, "mine"):
        figure = heat.plot(title=title)
        assert f"approximate: {settings}" in " ".join(figure.get_suptitle().split())  # wrapped
    heat.save(tmp_path / "heat.npz")
    assert kcompile.Heatmap.load(tmp_path / "heat.npz").approximation == settings
    with pytest.raises(InputError, match=r"scores of the classes \[0\]"):
        heat.retarget(1)


def test_settings_that_approximate_nothing_run_the_exact_path(seed: int) -> None:
    model = nn.Sequential(conv_bn_relu(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    inc, image = kcompile.incrementalize(model, (3, 12, 14), 4), torch.randn(3, 12, 14)
    plain = kcompile.occlusion(inc, image)
    same = kcompile.occlusion(inc, image, approximation=Approximation(tau=1.0, cut=1.0, share=1.0, samples=5))
    np.testing.assert_array_equal(same.all_scores, plain.all_scores)
    assert same.approximation is None
    assert "approximate" not in repr(same)
    with pytest.raises(InputError, match="allowed are None and a kcompile"):
        kcompile.occlusion(inc, image, approximation=0.5)  # type: ignore[arg-type]
