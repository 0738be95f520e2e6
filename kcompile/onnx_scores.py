"""Scores of an exported model's outputs, as `kcompile.scoring` makes them of tensors. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from kcompile.core.errors import InputError
from kcompile.heatmap import FloatArray
from kcompile.runtime.onnx_structure import restore

Score: TypeAlias = str | Callable[[Any], Any]


def scores(outputs: Any, score: Score, key: Any, written: Mapping[str, Any], rows: int) -> FloatArray:
    """Scores [rows, K].

    Args:
        outputs: The model's, in its own structure.
        score: "probability", "logit", or a function from the part that ``key`` names to [rows] or [rows, K].
        key: A key, index or attribute of a structured output; None for the only one.
        written: What the manifest says of the outputs.
        rows: Number of images.

    Raises:
        InputError: No such part or score, or something that has no classes.
    """
    part = _select(outputs, key)
    if callable(score):
        result = np.asarray(score(part))
        if result.ndim not in (1, 2) or len(result) != rows:
            raise InputError(
                f"the score function returned shape {result.shape} for {rows} images: [N] or [N, K] is allowed"
            )
        return result[:, None] if result.ndim == 1 else result
    if score not in ("probability", "logit"):
        raise InputError(f'score is {score!r}; allowed are "probability", "logit" or a function')
    if not isinstance(part, np.ndarray) or part.ndim not in (1, 2):
        raise InputError(f"the output has shape {np.shape(part)}, not [N, classes]: pass a function as score=")
    values = part[:, None] if part.ndim == 1 else part
    activation = _activation(key, written)
    return _probability(values, activation) if score == "probability" else _logit(values, activation)


def _activation(key: Any, written: Mapping[str, Any]) -> str | None:
    """The model's own last op, of the part that is scored."""
    if key is None:
        pairs = zip(written["activations"], written["entries"], strict=True)
        return next((activation for activation, entry in pairs if isinstance(entry, int)), None)
    index = _part(restore(written["structure"], list(range(len(written["entries"])))), key)
    return written["activations"][index] if isinstance(index, int) else None


def _part(outputs: Any, key: Any) -> Any:
    return getattr(outputs, key) if isinstance(key, str) and not isinstance(outputs, dict) else outputs[key]


def _select(outputs: Any, key: Any) -> Any:
    if key is not None:
        try:
            return _part(outputs, key)
        except (KeyError, IndexError, AttributeError, TypeError) as error:
            raise InputError(f"output={key!r} is not in the model's output") from error
    if isinstance(outputs, np.ndarray):
        return outputs
    parts = list(outputs.values()) if isinstance(outputs, dict) else list(outputs)
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) != 1:
        raise InputError(f"the model returns {len(parts)} outputs: choose one with output=")
    return arrays[0]


def _probability(values: Any, activation: str | None) -> FloatArray:
    if activation in ("softmax", "sigmoid"):
        return np.asarray(values)
    if activation == "log_softmax":
        return np.asarray(np.exp(values))
    if values.shape[1] == 1:
        return np.asarray(1 / (1 + np.exp(-values)))
    raised = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def _logit(values: Any, activation: str | None) -> FloatArray:
    info = np.finfo(values.dtype)
    if activation == "softmax":
        return np.asarray(np.log(np.maximum(values, info.tiny)))
    if activation == "sigmoid":
        inside = np.clip(values, info.eps, 1 - info.eps)
        return np.asarray(np.log(inside / (1 - inside)))
    return np.asarray(values)
