"""Scores: from a model's output to one number per class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kcompile.core.errors import InputError

Score: TypeAlias = str | Callable[[Any], Tensor]


def select(output: Any, key: Any) -> Any:
    """The part of a structured output that ``key`` names (a dict's key, an index or an attribute); None is all of it.

    Raises:
        InputError: No such part, or a structure of several parts without a key.
    """
    if key is None:
        if isinstance(output, Tensor):
            return output
        parts = (
            list(output.values())
            if isinstance(output, dict)
            else list(output)
            if isinstance(output, (list, tuple))
            else []
        )
        tensors = [part for part in parts if isinstance(part, Tensor)]
        if len(tensors) == 1:
            return tensors[0]
        raise InputError(f"the model returns {_names(output)}: choose one with output=")
    try:
        return getattr(output, key) if isinstance(key, str) and not isinstance(output, dict) else output[key]
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise InputError(f"output={key!r} is not in the model's output: {_names(output)}") from error


def _names(output: Any) -> str:
    if isinstance(output, dict):
        return f"a dict with keys {list(output)}"
    return f"{len(output)} outputs" if isinstance(output, (list, tuple)) else type(output).__name__


def scores(output: Any, score: Score, activation: str | None, rows: int | None = None) -> Tensor:
    """Scores [N, K] of N model outputs.

    Args:
        output: [N, K] (or [N]) of the model; anything that the user's function takes.
        score: "probability": softmax over K, or a sigmoid for a single logit, unless the model ends with one already;
            "logit": the output itself (the log of a final softmax's result); or a function from the output to [N] or
            [N, K].
        activation: The model's own last op: "softmax", "log_softmax", "sigmoid" or None.
        rows: N, if known: a user's function that returns another number of rows is then an error.

    Raises:
        InputError: An unknown score, an output that has no classes, or a function that returns something else.
    """
    if callable(score):
        result = score(output)
        if not isinstance(result, Tensor) or result.dim() not in (1, 2):
            raise InputError("the score function must return a tensor [N] or [N, K]")
        if rows is not None and len(result) != rows:
            raise InputError(f"the score function returned {len(result)} rows for the outputs of {rows} images")
        return result.unsqueeze(1) if result.dim() == 1 else result
    if score not in ("probability", "logit"):
        raise InputError(f'score is {score!r}; allowed are "probability", "logit" or a function')
    if not isinstance(output, Tensor) or output.dim() not in (1, 2):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"the output has shape {shape}, not [N, classes]: pass a function as score=")
    values = output.unsqueeze(1) if output.dim() == 1 else output
    return _probability(values, activation) if score == "probability" else _logit(values, activation)


def _probability(values: Tensor, activation: str | None) -> Tensor:
    if activation in ("softmax", "sigmoid"):
        return values
    if activation == "log_softmax":
        return values.exp()
    return values.sigmoid() if values.shape[1] == 1 else values.softmax(dim=1)


def _logit(values: Tensor, activation: str | None) -> Tensor:
    if activation == "softmax":
        return values.clamp_min(torch.finfo(values.dtype).tiny).log()
    return values.logit(eps=torch.finfo(values.dtype).eps) if activation == "sigmoid" else values
