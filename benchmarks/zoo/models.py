"""The zoo's models: their names, how they are made, and their image sizes. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

TIMM = Path(__file__).with_name("timm_models.txt")

SIZES = {"inception_v3": 299}  # torchvision's; the others take 224 pixels, the segmentation models too
_SLOW_TO_INITIALISE = ("googlenet", "inception_v3")
_NO_AUX = {"aux_logits": False}  # auxiliary heads are used in training alone


def names() -> list[str]:
    """All models, as "torchvision.NAME" and "timm.NAME"; families stay together."""
    import torchvision

    found = torchvision.models.list_models(module=torchvision.models)
    found += torchvision.models.list_models(module=torchvision.models.segmentation)
    return [f"torchvision.{name}" for name in found] + [f"timm.{name}" for name in timm_names()]


def timm_names() -> list[str]:
    """The chosen models of timm; lines that begin with # say what they are."""
    lines = TIMM.read_text().splitlines()
    return [name for line in lines if not line.startswith("#") for name in line.split()]


def build(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A model with random weights, in eval mode, and the (C, H, W) of its images.

    Raises:
        ValueError: Neither library has such a model.
    """
    library, _, model = name.partition(".")
    if library == "timm":
        return _timm(model)
    if library == "torchvision":
        return _torchvision(model)
    raise ValueError(f"{name!r} is no model; names begin with timm. or torchvision.")


def _timm(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    import timm

    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}")
    model: Any = timm.create_model(name, pretrained=False).eval()
    return model, tuple(model.default_cfg["input_size"])


def _torchvision(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    import torchvision

    if name not in torchvision.models.list_models():
        raise ValueError(f"torchvision has no model {name!r}")
    extra: dict[str, Any] = {}
    if name in _SLOW_TO_INITIALISE:
        extra = {"init_weights": False, **_NO_AUX}
    elif name in torchvision.models.list_models(module=torchvision.models.segmentation):
        extra = {"weights_backbone": None}
    size = SIZES.get(name, 224)
    return torchvision.models.get_model(name, weights=None, **extra).eval(), (3, size, size)
