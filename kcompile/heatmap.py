"""Heatmap: the result of an occlusion experiment."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from numbers import Integral
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from kcompile.approximation import Approximation
from kcompile.core.errors import InputError
from kcompile.estimate import Checked, ErrorEstimate
from kcompile.grid import strides_of

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False, repr=False)
class Heatmap:
    """Scores of all patch positions of one image.

    Images may have another number of axes than two; the map then has as many, and so has all that is per axis below.

    Attributes:
        all_scores: [rows, cols, K], the scores of every class with the patch at that position; NaN where not computed
            (an approximate map may have some classes only).
        base_scores: [K], the scores of the unpatched image.
        target: The explained class.
        positions: [rows, cols, 2], (row, col) of the patch's top-left corner, in pixels.
        patch_shape: (height, width) of the patch, in pixels.
        image_shape: (height, width) of the image, in pixels.
        score: What the scores are: "probability", "logit" or the name of the user's function.
        seconds: Wall time of the whole map, materialisation included.
        approximation: What was approximated; None for an exact map.
        checked: Exact scores of some random positions of an approximate map.
        stopped: The experiment was ended before all positions had scores: those that lack are NaN.
        shown: What the patch showed, in a few words; empty where that isn't known.
    """

    all_scores: FloatArray
    base_scores: FloatArray
    target: int
    positions: npt.NDArray[np.int64]
    patch_shape: tuple[int, ...]
    image_shape: tuple[int, ...]
    score: str
    seconds: float = 0.0
    approximation: Approximation | None = None
    checked: Checked | None = None
    stopped: bool = False
    shown: str = ""

    @property
    def scores(self) -> FloatArray:
        """[rows, cols], the target's scores."""
        return np.asarray(self.all_scores[..., self.target])

    @property
    def base_score(self) -> float:
        """The target's score of the unpatched image."""
        return float(self.base_scores[self.target])

    @property
    def complete(self) -> bool:
        """False if the experiment was stopped before all positions had scores; a model's own NaN is a score."""
        return not self.stopped

    def __repr__(self) -> str:
        """One line: the arrays are long."""
        known = self.scores[~np.isnan(self.scores)]
        span = f"{known.min():.4g} … {known.max():.4g}" if known.size else "none yet"
        told = "" if self.approximation is None else f", approximate: {self.approximation}"
        parts = "" if self.complete else f", {known.size} of {self.scores.size} positions"
        return (
            f"Heatmap({_sizes(self.scores.shape)}{parts}, target {self.target}, {self.score} {span}, "
            f"base {self.base_score:.4g}, patch {_sizes(self.patch_shape)}, image {_sizes(self.image_shape)}, "
            f"{self.seconds:.1f} s{told})"
        )

    @property
    def notes(self) -> str:
        """What a picture's title says beside class and score: how it was made, what is missing, what is not exact."""
        known = self.scores.size - int(np.isnan(self.scores).sum())
        partial = f" (interrupted: {known} of {self.scores.size} positions)" if self.stopped else ""
        error = "" if self.error is None else f"\n{self.error}"
        value = f", value {self.shown}" if self.shown else ""
        stride = f", stride {_sizes(self.stride)}" if min(self.scores.shape) > 1 else ""  # one position has none
        made = f"\npatch {_sizes(self.patch_shape)}{value}{stride}"
        return partial + made + ("" if self.approximation is None else f"\napproximate: {self.approximation}{error}")

    @property
    def stride(self) -> tuple[int, ...]:
        """Distance of neighbouring positions per axis, in pixels; 1 along an axis that has one alone."""
        return strides_of(self.positions)

    @property
    def error(self) -> ErrorEstimate | None:
        """How far an approximate map of this target is off, estimated from `checked`; None for an exact map."""
        return None if self.checked is None else self.checked.against(self.all_scores, self.target)

    @property
    def caption(self) -> str:
        """A picture's title."""
        return f"class {self.target}: {self.score} {self.base_score:.3g}{self.notes}"

    def retarget(self, target: int) -> Heatmap:
        """The map of another class, without a rerun.

        Raises:
            InputError: No such class, or one that this approximate map has no scores of.
        """
        if not isinstance(target, Integral) or not 0 <= int(target) < self.all_scores.shape[-1]:
            raise InputError(f"target is {target}; allowed are 0 … {self.all_scores.shape[-1] - 1}")
        if self.approximation is not None and np.isnan(self.all_scores[..., int(target)]).all():
            known = [k for k in range(self.all_scores.shape[-1]) if not np.isnan(self.all_scores[..., k]).all()]
            raise InputError(f"target is {target}; this approximate map has scores of the classes {known}")
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Heatmap(**{**fields, "target": int(target)})

    def attribution(self) -> FloatArray:
        """[H, W]: base minus occluded score, averaged over the windows that cover a pixel; NaN where none does."""
        drop = self.base_score - self.scores.astype(np.float64).reshape(-1)
        known = ~np.isnan(drop)
        corners = self.positions.reshape(-1, self.positions.shape[-1])[known]
        total, count = self._spread(corners, drop[known]), self._spread(corners, np.ones(int(known.sum())))
        covered = np.rint(count) > 0
        return np.where(covered, total / np.where(covered, count, 1), np.nan)

    def _spread(self, corners: npt.NDArray[np.int64], values: FloatArray) -> FloatArray:
        """Sum of values over the windows that cover each pixel, by a difference array over all axes."""
        edges = np.zeros([size + 1 for size in self.image_shape])
        bounds = [np.clip(at, 0, self.image_shape) for at in (corners, corners + self.patch_shape)]
        for ends in product((0, 1), repeat=len(self.image_shape)):  # 0: where a window begins, 1: where it ends
            at = tuple(bounds[end][:, axis] for axis, end in enumerate(ends))
            np.add.at(edges, at, (-1) ** sum(ends) * values)
        for axis in range(edges.ndim):
            edges = edges.cumsum(axis=axis)
        return edges[(slice(-1),) * edges.ndim]

    def plot(self, image: Any = None, *, path: str | Path | None = None, title: str | None = None) -> Any:
        """Draw the attribution, over the image if one is given.

        Args:
            image: [H, W], [H, W, 3] or [3, H, W], values in 0 … 1 or 0 … 255.
            path: Where to write a PNG; None returns the figure alone.
            title: Above the picture; a default names target and score.

        Returns:
            The matplotlib figure.

        Raises:
            InputError: A map of one axis or of three, or a picture of a wrong shape.
        """
        from kcompile.drawing import draw

        figure = draw(self, image, title)
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure

    def save(self, path: str | Path, image: Any = None) -> None:
        """Write the overlay (.png) or all data (.npz; `Heatmap.load` reads it back)."""
        target = Path(path)
        if target.suffix.lower() == ".png":
            self.plot(image, path=target)
        elif target.suffix.lower() == ".npz":
            named = ("target", "patch_shape", "image_shape", "score", "seconds", "stopped", "shown")
            facts = {name: getattr(self, name) for name in named}
            facts["approximation"] = None if self.approximation is None else self.approximation.to_dict()
            checked = {} if self.checked is None else {f"checked_{k}": v for k, v in vars(self.checked).items()}
            with target.open("wb") as file:
                np.savez_compressed(
                    file,
                    all_scores=self.all_scores,
                    base_scores=self.base_scores,
                    positions=self.positions,
                    scores=self.scores,
                    attribution=self.attribution(),
                    facts=np.array(json.dumps(facts)),
                    **checked,
                )
        else:
            raise InputError(
                f"cannot save a heat map as {target.suffix or 'a file without suffix'}; allowed are .png and .npz"
            )

    @staticmethod
    def load(path: str | Path) -> Heatmap:
        """Read what `save` wrote as .npz.

        Raises:
            InputError: Not such a file.
        """
        try:
            return Heatmap._load(path)
        except OSError as error:
            raise InputError(f"{path} can't be read: {error.strerror or error}") from error
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, BadZipFile) as error:
            raise InputError(f"{path} holds no heat map, which `Heatmap.save` writes as .npz") from error

    @staticmethod
    def _load(path: str | Path) -> Heatmap:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as data:
            facts = json.loads(str(data["facts"]))
            facts.update(patch_shape=tuple(facts["patch_shape"]), image_shape=tuple(facts["image_shape"]))
            facts.setdefault("stopped", bool(np.isnan(data["scores"]).any()))  # files of before
            told = facts.pop("approximation", None)
            facts["approximation"] = None if told is None else Approximation.from_dict(told)
            if "checked_rows" in data:
                rows, scores, count = (data[f"checked_{name}"] for name in ("rows", "scores", "positions"))
                facts["checked"] = Checked(rows, scores, int(count))
            return Heatmap(data["all_scores"], data["base_scores"], positions=data["positions"], **facts)


def _sizes(numbers: tuple[int, ...]) -> str:
    return "x".join(map(str, numbers))
