"""Which functions of a model's outputs are linearised, and how scores come of their values.

A probability is close to 0 or 1 almost everywhere, and its gradient there close to 0: so it is never linearised itself.
Of few classes all logits are, and the softmax of their approximations is taken; of many the log-odds of the explained
ones, whose sigmoid is the probability. Both hold for a model's own final activation, too, which is undone first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kcompile.core.errors import InputError
from kcompile.heatmap import FloatArray

FEW = 8  # classes, up to which all are linearised: one backward pass each


@dataclass(frozen=True)
class Functions:
    """The functions that are linearised for one image.

    Attributes:
        kind: "plain": the scores themselves; "sigmoid": one logit per class; "softmax": all logits; "odds": log-odds.
        targets: The explained classes.
        classes: Number of all classes.
    """

    kind: str
    targets: tuple[int, ...]
    classes: int

    @staticmethod
    def of(score: object, activation: str | None, targets: Sequence[int], classes: int, few: int = FEW) -> Functions:
        """What to linearise for a score; of up to ``few`` classes all logits, where one hangs on all."""
        chosen = tuple(dict.fromkeys(targets))
        if score != "probability":
            return Functions("plain", chosen, classes)
        if activation == "sigmoid" or (classes == 1 and activation != "softmax"):
            return Functions("sigmoid", chosen, classes)
        return Functions("softmax" if classes <= few else "odds", chosen, classes)

    @property
    def known(self) -> tuple[int, ...]:
        """The classes whose scores come out."""
        return tuple(range(self.classes)) if self.kind == "softmax" else self.targets

    def values(self, found: Tensor) -> Tensor:
        """The functions' values [N, K'] from logits (or a user's scores) [N, K]; differentiable."""
        if self.kind != "odds":
            return found if self.known == tuple(range(self.classes)) else found[:, list(self.known)]
        others = [torch.cat([found[:, :k], found[:, k + 1 :]], dim=1).logsumexp(dim=1) for k in self.targets]
        return found[:, list(self.targets)] - torch.stack(others, dim=1)

    def chosen(self, scores: FloatArray) -> FloatArray:
        """Scores [N, K], NaN for classes that were not explained."""
        unknown = [k for k in range(self.classes) if k not in set(self.known)]
        scores[:, unknown] = np.nan
        return scores

    def scores(self, values: Tensor) -> FloatArray:
        """Scores [N, K] from the functions' values [N, K']; NaN for classes that were not explained."""
        if self.kind == "softmax":
            values = values.softmax(dim=1)
        elif self.kind != "plain":
            values = values.sigmoid()
        result: FloatArray = np.full((len(values), self.classes), np.nan, dtype=np.float32)
        result[:, list(self.known)] = values.detach().float().cpu().numpy()
        return result


def slopes(values: Tensor, points: Sequence[Tensor]) -> list[list[Tensor]]:
    """For each value [1, K'] its gradients at the points, one backward pass each; the last frees the graph.

    Raises:
        InputError: The score is no differentiable function of the model's output.
    """
    if not values.requires_grad:
        raise InputError("the score is no differentiable function of the model's output: it can't be linearised")
    count = values.shape[1]
    found = []
    for k in range(count):
        try:
            grads = torch.autograd.grad(values[0, k], points, retain_graph=k + 1 < count, allow_unused=True)
        except RuntimeError as error:
            if "inplace operation" not in str(error):
                raise
            raise InputError("the score writes into what its own gradient needs: it can't be linearised") from error
        found.append([wide(torch.zeros_like(x) if g is None else g) for g, x in zip(grads, points, strict=True)])
    return found


def wide(values: Tensor) -> Tensor:
    """In a type whose sums of many small changes are not lost."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
