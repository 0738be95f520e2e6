"""Tuning: an approximation with the guarantee that it was certified for, frozen and savable."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kcompile.approximation import Approximation
from kcompile.core.errors import InputError

FORMAT = 3  # before 2 corrections were others, before 3 models, values and scores were told apart less well


@dataclass(frozen=True)
class Kind:
    """What kind of maps a certificate is for.

    Attributes:
        score: Of the maps.
        patch_shape: In pixels.
        stride: In pixels.
        region: The first and the last position, in pixels.
        value: What the patch shows, as text.
        target: The class that is explained, as text; "predicted" for each image's most probable one.
        output: Which part of a structured output is scored, as text.
        model: What tells the model: a digest of its plan and its parameters.
        shown: The value in a few words, for messages; maps aren't told apart by it.
    """

    score: str
    patch_shape: tuple[int, ...]
    stride: tuple[int, ...]
    region: tuple[int, ...]
    value: str
    target: str
    output: str
    model: str
    shown: str = ""


@dataclass(frozen=True)
class Tuning:
    """An approximation for one model and one kind of map, and what is certified of it; made by `kcompile.tune`.

    With at least the ``confidence`` (over the draw of the images that it was tuned on), at least a share ``coverage``
    of all images of the same distribution get a map whose similarity to the exact one is at least ``target_ssim``. Of
    images of another kind it says nothing.

    Attributes:
        approximation: The setting; one that is ``exact`` where no other could be certified.
        target_ssim: Similarity (`kcompile.metrics.similarity` of raw scores) that maps reach.
        coverage: Share of the images whose maps do.
        confidence: That this holds.
        met: Images of the certification half whose maps reached it.
        images: Images of the certification half.
        bound: Lower bound of the share of all images, from those (Clopper and Pearson).
        worst: Least similarity on that half.
        speedup: Time of the exact map over that of the approximate one with its error estimate, when it was tuned.
        kind: Of the maps that it holds for.
        trials: What was tried: per candidate its text, share of met images and cost on the selection half, and whether
            it was certified (null where it wasn't tested).
    """

    approximation: Approximation
    target_ssim: float
    coverage: float
    confidence: float
    met: int
    images: int
    bound: float
    worst: float
    speedup: float
    kind: Kind
    trials: tuple[dict[str, Any], ...] = ()

    def __str__(self) -> str:
        """The certificate, in two lines; where there is none, how near the candidates came."""
        if self.approximation.exact:
            best = max((told["met"] for told in self.trials), default=0.0)
            return (
                f"exact: none of {len(self.trials)} approximations is certified to reach SSIM ≥ {self.target_ssim:g} "
                f"for ≥ {self.coverage:.0%} of the images with {self.confidence:.0%} confidence and to be faster\n(on "
                f"the half that they were chosen on, the best reached it on {best:.0%} of the images; `trials` has all)"
            )
        return (
            f"{self.approximation}: {self.promise}\n({self.met} of {self.images} met it, at least {self.bound:.1%} of "
            f"all; worst {self.worst:.3f}; {self.speedup:.1f} times as fast as the exact map)"
        )

    @property
    def promise(self) -> str:
        """What is certified of the maps."""
        return (
            f"SSIM ≥ {self.target_ssim:g} for ≥ {self.coverage:.0%} of the images with {self.confidence:.0%} confidence"
        )

    def check(self, kind: Kind) -> None:
        """Refuse maps of another kind than it was certified for.

        Raises:
            InputError: Another model, score, patch, stride, region, value, target or output.
        """
        for name, given in asdict(kind).items():
            own = getattr(self.kind, name)
            if given != own:
                if name == "shown":
                    continue
                if name == "model":
                    told = "the model, its weights or the patch that it is compiled for are others than this tuning's"
                elif name == "value":
                    alike = " of other numbers" if kind.shown == self.kind.shown else ""
                    told = f"value is {kind.shown}; this tuning is for {self.kind.shown or own}{alike}"
                else:
                    told = f"{name} is {given!r}; this tuning is for {own!r}"
                raise InputError(
                    f"{told}: ask for that, tune again, or pass approximation=tuning.approximation, without a promise"
                )

    def save(self, path: str | Path) -> None:
        """Write it as JSON; folders that lack are made.

        Raises:
            InputError: The file can't be written.
        """
        facts = {**asdict(self), "approximation": self.approximation.to_dict(), "format": FORMAT}
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"can't write {path}: {error.strerror}") from error

    @staticmethod
    def load(path: str | Path) -> Tuning:
        """Read what `save` wrote.

        Raises:
            InputError: Not such a file.
        """
        try:
            facts = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path} can't be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} holds no tuning: it isn't JSON, which `kcompile tune` writes") from error
        try:
            version = facts.pop("format")
            if version != FORMAT:
                raise InputError("this is of another version of kcompile, whose promise was another one: tune again")
            facts["approximation"] = Approximation.from_dict(facts["approximation"])
            facts["trials"] = tuple(facts["trials"])
            kind = facts.pop("kind")
            kind.update({name: tuple(kind[name]) for name in ("patch_shape", "stride", "region")})
            return Tuning(**facts, kind=Kind(**kind))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise InputError(f"{path}: {error}") from error
            said = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{path} holds no tuning: {said}") from error
