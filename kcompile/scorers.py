"""Scorers: the scores of patched copies of one image, exact or approximate, behind one interface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from kcompile.core.errors import InputError
from kcompile.core.interval import IntArray
from kcompile.fills import Fill, parts
from kcompile.heatmap import FloatArray
from kcompile.runtime.inputs import Given
from kcompile.runtime.module import IncrementalModule
from kcompile.runtime.runners import Runners
from kcompile.runtime.transfers import Arriving
from kcompile.scoring import Score, scores, select


@dataclass(frozen=True)
class Question:
    """What is asked of every position.

    Attributes:
        inc: The compiled module.
        patch: Size per axis, in pixels.
        fill: What the patch shows.
        score: As for `occlusion`.
        output: As for `occlusion`.
    """

    inc: IncrementalModule
    patch: tuple[int, ...]
    fill: Fill
    score: Score
    output: Any

    def scores(self, outputs: Any, rows: int) -> FloatArray:
        """Scores [rows, K] of the model's outputs."""
        return self.arriving(outputs, rows).numpy()

    def base_row(self, outputs: Any) -> FloatArray:
        """Scores [K] of the base's outputs, which are kept: a user's score may write into what it is given."""
        row: FloatArray = self.scores(self._own(tree_map_only(Tensor, Tensor.detach, outputs)), 1)[0]
        return row

    def _own(self, outputs: Any) -> Any:
        return tree_map_only(Tensor, Tensor.clone, outputs) if callable(self.score) else outputs

    def arriving(self, outputs: Any, rows: int) -> Arriving:
        """As `scores`, on their way from the model's device."""
        return Arriving(scores(select(outputs, self.output), self.score, self.inc.activation_of(self.output), rows))

    def linearised(self, outputs: Any, rows: int) -> Tensor:
        """What a linear tail approximates of the outputs: logits [rows, K], or scores of a user's, of a copy."""
        score = "logit" if self.score == "probability" else self.score
        try:
            return scores(select(self._own(outputs), self.output), score, self.inc.activation_of(self.output), rows)
        except RuntimeError as error:  # of a user's score, which may be right without gradients
            if callable(score) and torch.is_grad_enabled():
                raise InputError(f"the score can't be linearised, gradients can't pass through it: {error}") from error
            raise

    def told(self, outputs: Any, rows: int) -> Tensor:
        """As `linearised`, but numbers without gradients, also of a user's score that counts or tells classes."""
        found = self.linearised(outputs, rows).detach()
        return found if found.is_floating_point() else found.float()

    def given(self, given: Given) -> Given:
        """An image's tensors in the type of the module, which may be another one than that of `occlusion`'s."""
        like = self.inc._like
        if given.rows[0].dtype == like.dtype:
            return given
        rows = tuple(row.to(like.dtype) if row.is_floating_point() else row for row in given.rows)
        whole = {
            key: value.to(like.dtype) if value.is_floating_point() else value for key, value in given.whole.items()
        }
        return Given(rows, whole)

    def patches(self, image: Tensor, positions: IntArray) -> Iterator[tuple[slice, Tensor]]:
        """The patches [C, *patch] of all positions or [n, C, *patch] of each, part by part as memory allows."""
        source = self.fill.source(image, self.patch)
        for part in parts(source, len(positions), image, self.patch, self.inc.chunk_bytes()):
            yield part, source if isinstance(source, Tensor) else source(positions[part])


def give_back(inc: IncrementalModule) -> None:
    """Under a memory budget: drop the bases, and what runners hold (weights packed into more bytes, CUDA graphs)."""
    if inc.memory_budget is not None:
        inc.drop_base()
        if any(executor.held for executor in inc.runners.executors.values()):
            inc.runners = Runners(inc)


class Scorer(Protocol):
    """Gives the scores of patched copies of an image: first `base`, `aim`, `begin`, then `at` as often as wanted."""

    def base(self, given: Given) -> FloatArray:
        """Make an image the base; its scores [K]."""

    def aim(self, targets: Sequence[int], positions: IntArray) -> None:
        """Name the classes that are explained; the scores of others may be left out (NaN).

        Args:
            targets: The classes.
            positions: [P, axes], all positions of the map.
        """

    def begin(self, positions: IntArray) -> Iterator[tuple[IntArray, FloatArray]]:
        """Exact scores that an approximate scorer needs before it gives others, as `at` does; to be taken to the end.

        Args:
            positions: [P, axes], all positions of the map.
        """

    def at(self, positions: IntArray) -> Iterator[tuple[IntArray, FloatArray]]:
        """Scores [n, K] at positions [N, axes], group by group, each with the indices of its positions."""

    def work_share(self) -> float:
        """Estimated work of one position, as a share of a full inference's."""

    @property
    def module(self) -> IncrementalModule | None:
        """The module that makes bases, if it is one that may make them in turn with another."""

    def take_turns(self, other: IncrementalModule) -> None:
        """Where memory is short, another module's bases are dropped before this one's are made."""


class Exact:
    """Incremental inference.

    Attributes:
        question: What is asked.
        other: Another module of the same model that makes bases in turn with this one, if there is one.
    """

    def __init__(self, question: Question) -> None:
        """Take what is asked."""
        self.question = question
        self.other: IncrementalModule | None = None
        self.image: Tensor | None = None

    def base(self, given: Given) -> FloatArray:
        """Make an image the base; its scores [K]."""
        if self.other is not None:
            give_back(self.other)
        given = self.question.given(given)
        self.image = given.rows[0][0]
        return self.question.base_row(self.question.inc.materialize_given(given))

    def aim(self, targets: Sequence[int], positions: IntArray) -> None:
        """All classes come at once."""

    def begin(self, positions: IntArray) -> Iterator[tuple[IntArray, FloatArray]]:
        """Nothing is needed."""
        yield from ()

    def at(self, positions: IntArray) -> Iterator[tuple[IntArray, FloatArray]]:
        """Scores [n, K] at positions [N, axes], group by group, each with the indices of its positions."""
        assert self.image is not None, "base comes first"
        waiting: list[tuple[IntArray, Arriving]] = []  # on a GPU the next group is queued before one is waited for
        for rows, outputs in self.outputs(positions):
            waiting.append((rows, self.question.arriving(outputs, len(rows))))
            del outputs  # before the next group runs
            if len(waiting) > self.image.is_cuda:
                done, found = waiting.pop(0)
                yield done, found.numpy()
        for done, found in waiting:
            yield done, found.numpy()

    def outputs(self, positions: IntArray) -> Iterator[tuple[IntArray, Any]]:
        """As `at`, the model's outputs."""
        assert self.image is not None, "base comes first"
        inc = self.question.inc
        for part, patches in self.question.patches(self.image, positions):
            for rows, outputs, _ in inc.stream_patches(patches, positions[part]):
                yield part.start + rows, inc.restore(outputs)
            del patches  # before the next part's are made

    def work_share(self) -> float:
        """Estimated work of one position, as a share of a full inference's."""
        return self.question.inc.work_share()

    @property
    def module(self) -> IncrementalModule | None:
        """See `Scorer.module`."""
        return self.question.inc

    def take_turns(self, other: IncrementalModule) -> None:
        """See `Scorer.take_turns`."""
        self.other = other
