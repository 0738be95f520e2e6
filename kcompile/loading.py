"""Models by name for the command line and the demo, each with the way it wants its pictures."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms import functional

from kcompile.core.errors import InputError
from kcompile.pictures import Picture
from kcompile.weights import load_weights, named_weights

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
USUAL_SIZE = 224

Transform = Callable[[Picture], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode and what belongs to it.

    Attributes:
        model: The model.
        input_shape: (C, H, W) of its images.
        categories: Names of its classes; empty if unknown.
        prepare: From a picture (`pictures.read_picture`) to the part of it that the model sees, [C, H, W] in 0 … 1, and
            the same in the model's units.
        preprocessing: What `prepare` does, in words.
        weights: Where the weights come from, in words.
    """

    model: nn.Module
    input_shape: tuple[int, int, int]
    categories: tuple[str, ...]
    prepare: Transform
    preprocessing: str
    weights: str

    @property
    def channels(self) -> int:
        """Channels of its images."""
        return self.input_shape[0]

    def name(self, target: int) -> str:
        """A class's name, if it has one, and its number."""
        return f"{self.categories[target]} ({target})" if target < len(self.categories) else f"class {target}"


def load_model(
    name: str, weights: str = "DEFAULT", *, size: int | None = None, num_classes: int | None = None
) -> LoadedModel:
    """Load a classification model.

    Args:
        name: One of torchvision's classification models, or ``package.module:function`` for a function that returns a
            model. Beside that function, in its module, there may be ``preprocess`` ([C, H, W] in 0 … 1 to model units)
            and ``CLASSES`` (names).
        weights: A name that torchvision knows ("DEFAULT" is its best; downloaded at first use), "none", or a file with
            a state_dict. For an own function "DEFAULT" and "none" leave the weights as it made them.
        size: Side of the square images; default: what the weights were made for, else the model's usual size.
        num_classes: Of a file's model; default: from the size of the file's last layer.

    Raises:
        InputError: Unknown model or weights, no download, or a file that doesn't fit.
    """
    if size is not None and size < 1:
        raise InputError(f"size is {size}; allowed are integers of at least 1")
    return _own(name, weights, size) if ":" in name else _torchvision(name, weights, size, num_classes)


def _torchvision(name: str, weights: str, size: int | None, num_classes: int | None) -> LoadedModel:
    known = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "examples are resnet18, vgg16 and inception_v3"
        raise InputError(f"torchvision has no classification model {name!r}: {hint}")
    default = models.get_model_weights(name).DEFAULT
    usual = default.transforms()
    entry = named_weights(name, weights)
    model = load_weights(name, weights, entry, num_classes)
    categories = tuple(entry.meta["categories"]) if entry else ()
    source = f"weights {entry.name}" if entry else _source(weights)
    if entry is None:
        side = size or usual.crop_size[0]
        return LoadedModel(model, (3, side, side), categories, *_standard(side, 3, None), source)
    transform = entry.transforms()
    side = size or transform.crop_size[0]
    if side != transform.crop_size[0]:
        resized = round(transform.resize_size[0] * side / transform.crop_size[0])
        transform = entry.transforms(crop_size=side, resize_size=resized)
    how = f"preprocessed as for {entry.name}"
    return LoadedModel(model, (3, side, side), categories, _of_weights(transform), how, source)


def _own(name: str, weights: str, size: int | None) -> LoadedModel:
    """The model of a user's function, found as Python would from the working directory."""
    place, _, attribute = name.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(place)
        model = getattr(module, attribute)()
    except ModuleNotFoundError as error:
        raise InputError(f"can't import {place!r}: {error}") from error
    except Exception as error:  # the user's own code: whatever it raises is told, not traced back
        raise InputError(f"can't make a model with {name}, called without arguments: {error}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} returned a {type(model).__name__}, not a torch.nn.Module")
    own_weights = weights.lower() in ("default", "none")
    if not own_weights:
        load_weights(model, weights)
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    side = size or USUAL_SIZE
    own = getattr(module, "preprocess", None)
    categories = tuple(map(str, getattr(module, "CLASSES", ())))
    source = "its own weights" if own_weights else _source(weights)
    return LoadedModel(model.eval(), (channels, side, side), categories, *_standard(side, channels, own), source)


def _source(weights: str) -> str:
    return "random weights" if weights.lower() == "none" else f"weights from {weights}"


def _of_weights(transform: Any) -> Transform:
    """The weights' own transform; the picture is got back by undoing its normalisation."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (transform.mean, transform.std))

    def prepare(picture: Picture) -> tuple[Tensor, Tensor]:
        image = transform(picture)
        return (image * std + mean).clamp(0, 1), image

    return prepare


def _standard(side: int, channels: int, own: Callable[[Tensor], Tensor] | None) -> tuple[Transform, str]:
    """Shorter side to ``side``, centre crop, then the user's function or ImageNet's mean and standard deviation."""
    mean, std = (
        torch.tensor(v)[:, None, None] if channels == 3 else torch.tensor(v).mean()
        for v in (IMAGENET_MEAN, IMAGENET_STD)
    )

    def prepare(picture: Picture) -> tuple[Tensor, Tensor]:
        tensor = picture if isinstance(picture, Tensor) else functional.to_tensor(picture)
        tensor = functional.center_crop(functional.resize(tensor, [side], antialias=True), [side, side]).clamp(0, 1)
        return tensor, own(tensor) if own else (tensor - mean) / std

    how = "the model's own preprocess function" if own else "ImageNet's mean and standard deviation"
    return prepare, f"shorter side to {side} pixels, centre crop, {how}"
