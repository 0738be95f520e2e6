"""Weights by name, from torchvision, or from a file with a state_dict."""

from __future__ import annotations

import pickle
import socket
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from kcompile.core.errors import InputError

PATIENCE = 20.0  # seconds without an answer before a download is given up
WRAPPERS = ("state_dict", "model_state_dict", "model")  # where training scripts put the state_dict in their checkpoints
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")  # heads for training alone; many files leave them out


def named_weights(name: str, weights: str) -> Any:
    """What torchvision has under that name; None for "none" and for a file.

    Raises:
        InputError: Neither a name that torchvision knows for this model nor a file.
    """
    if weights.lower() == "none":
        return None
    known = models.get_model_weights(name)
    if weights.upper() == "DEFAULT":
        return known.DEFAULT
    if weights in known.__members__:
        return known[weights]
    if not Path(weights).is_file():
        names = ", ".join(["DEFAULT", *(entry.name for entry in known), "none"])
        raise InputError(f"weights are {weights!r}; for {name} allowed are {names} or an existing file")
    return None


def load_weights(model: str | nn.Module, weights: str, entry: Any = None, num_classes: int | None = None) -> nn.Module:
    """A model in eval mode with its weights.

    Args:
        model: A torchvision model's name, or the model into which the file is loaded.
        weights: "none" or a file, where there is no ``entry``.
        entry: torchvision's weights, from `named_weights`.
        num_classes: Default: from the file's last layer.

    Raises:
        InputError: No download, or a file that is no state_dict or doesn't fit.
    """
    if entry is not None:
        if num_classes not in (None, len(entry.meta["categories"])):
            raise InputError(f"num_classes is {num_classes}; {entry.name} has {len(entry.meta['categories'])} classes")
        return _download(str(model), entry)
    if weights.lower() == "none":
        return (_build(model, num_classes or 1000, init=True) if isinstance(model, str) else model).eval()
    state = _read(weights)
    if isinstance(model, str):
        with torch.device("meta"):
            last = next(reversed(_build(model, 1000).state_dict()))
        found = state[last].shape[0] if last in state and state[last].dim() else 1000
        model = _build(model, num_classes or found)
    _fit(model, state, weights)
    return model.eval()


def _build(name: str, num_classes: int, init: bool = False) -> nn.Module:
    """A torchvision model without weights."""
    options = {"init_weights": init} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **options)
    return model


def _download(name: str, entry: Any) -> nn.Module:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        model: nn.Module = models.get_model(name, weights=entry)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"can't download the weights {entry.name} of {name} ({error}). Fetch {entry.url} elsewhere and give the "
            f"file with --weights FILE, or use random weights with --weights none"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return model.eval()


def _read(path: str) -> dict[str, Tensor]:
    """A file's state_dict, taken out of a training script's checkpoint if need be."""
    if not Path(path).is_file():
        raise InputError(f"there is no file of weights {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about deprecated storage in old files
            data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with Path(path).open("rb") as file:
            begins = file.read(2)
        if begins != b"PK" and begins[:1] != b"\x80":  # neither a ZIP file nor a pickle
            raise InputError(f"{path} is no file of weights: save model.state_dict() with torch.save") from error
        raise InputError(
            f"{path} holds Python objects beside tensors, which are not loaded: save model.state_dict() alone"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not a file that torch can read: {str(error).splitlines()[0]}") from error
    data = next((data[key] for key in WRAPPERS if isinstance(data, dict) and isinstance(data.get(key), dict)), data)
    if not isinstance(data, dict) or not data or not all(isinstance(value, Tensor) for value in data.values()):
        raise InputError(f"{path} has no state_dict: save model.state_dict()")
    return {key.removeprefix("module."): value for key, value in data.items()}


def _fit(model: nn.Module, state: dict[str, Tensor], path: str) -> None:
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state and not key.startswith(AUXILIARY)]
    surplus = [key for key in state if key not in wanted]
    wrong = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    for keys, what in ((missing, "lacks"), (surplus, "has no place for")):
        if keys:
            subject = path if what == "lacks" else "the model"
            raise InputError(f"{path} doesn't fit the model: {subject} {what} {len(keys)} tensors, first {keys[0]!r}")
    if wrong:
        shapes = f"{tuple(state[wrong[0]].shape)}, the model's {tuple(wanted[wrong[0]].shape)}"
        raise InputError(f"{path} doesn't fit the model: {wrong[0]!r} has shape {shapes}")
    model.load_state_dict(state, strict=False)
