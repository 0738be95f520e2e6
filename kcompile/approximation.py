"""Approximation: the settings under which a map is no longer exact, as one frozen, savable value."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias, get_args

from kcompile.core.errors import InputError
from kcompile.estimate import FEWEST

Reference: TypeAlias = Literal["base", "secant", "mean-gradient"]
Gates: TypeAlias = Literal["exact", "held", "linear"]
Dtype: TypeAlias = Literal["bfloat16", "float16"]
Rest: TypeAlias = Literal["dropped", "linear"]
Extents: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Approximation:
    """How a map is approximated; the defaults select the exact path (docs/design.md, section 10).

    Attributes:
        tau: Projective field threshold, 0 < tau <= 1: no region is wider than this share of its map, per axis.
        extents: Per layer of the compiled graph the most cells per axis of its regions, as `kcompile.measure_extents`
            gives them: pairs of name and numbers, or a dict.
        cut: Where the tail of the model is replaced by its gradient: behind the layer of this name (as
            ``named_modules`` has it); or as far back as a share of the exact work per position allows, 0 (at the input:
            the gradient times the change of the pixels) … 1 (at the end: exact). None is the end.
        rest: What becomes of the change that ``tau`` and ``extents`` leave out: it is "dropped"; or "linear", added to
            first order. The cut then says where, and the tail behind it stays as it is.
        reference: Where the tail is linearised: at the "base"; by its mean slope between the base and the image that is
            patched everywhere ("secant"); or by the mean of the gradients at the base and at some patched copies
            ("mean-gradient").
        correct: About how many positions, on a coarse lattice, are computed exactly to correct the others: by a factor,
            and by their errors, interpolated. Only where something else than drill-down is approximated, and not with
            ``rest="linear"``.
        gates: Global gates (squeeze-and-excite and the like) are "exact", "held" at the base's value, or "linear":
            updated to first order.
        dtype: Type of the incremental computation; None is the model's own.
        share: Of the positions that drill-down computes at full quality, 0 < share <= 1; 1 computes all of them.
        coarse: Stride of drill-down's first stage, in pixels; None derives it. One that leaves no position out, or a
            map of a few positions, gives a map that is computed wholly, and says so.
        levels: Number of drill-down's stages, at most: each has half the stride of the one before.
        samples: Positions that are also computed exactly, for the error estimate; 0 for none.
        seed: Of the draw of these; None draws others each time. The map doesn't depend on it.

    Raises:
        InputError: A value that is not allowed.
    """

    tau: float = 1.0
    extents: Extents = ()
    cut: str | float | None = None
    rest: Rest = "dropped"
    reference: Reference = "base"
    correct: int = 0
    gates: Gates = "exact"
    dtype: Dtype | None = None
    share: float = 1.0
    coarse: int | None = None
    levels: int = 2
    samples: int = 32
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        object.__setattr__(self, "extents", _as_extents(self.extents))
        _check_share("tau", self.tau)
        _check_share("share", self.share)
        if self.cut is not None and not (isinstance(self.cut, str) and self.cut) and not _is_number(self.cut, 0, 1):
            raise InputError(f"cut is {self.cut!r}; allowed are the name of a layer, a share 0 … 1, and None")
        _check_name("rest", self.rest, get_args(Rest))
        if self.rest == "linear" and not (self.linear and self.crops):
            raise InputError("rest is 'linear'; allowed with a cut, and with tau or extents, which leave something out")
        _check_name("reference", self.reference, get_args(Reference))
        _check_name("gates", self.gates, get_args(Gates))
        _check_name("dtype", self.dtype, (None, *get_args(Dtype)))
        if self.coarse is not None:
            _check_count("coarse", self.coarse, 1)
        _check_count("levels", self.levels, 2)
        _check_count("correct", self.correct, 0)
        if self.seed is not None:
            _check_count("seed", self.seed, 0)
        if self.correct and self.rest == "linear":
            raise InputError(f"correct is {self.correct}; allowed with rest='linear' is 0")
        if self.correct and self.plain:
            raise InputError(
                f"correct is {self.correct}, and no score needs it; allowed with tau, extents, cut, gates or dtype"
            )
        _check_samples(self.samples)
        for name in ("tau", "share", "cut", "coarse", "levels", "samples", "correct", "seed"):  # NumPy's numbers, too
            value = getattr(self, name)
            if isinstance(value, Integral):
                object.__setattr__(self, name, int(value))
            elif isinstance(value, Real):
                object.__setattr__(self, name, float(value))

    @property
    def drills(self) -> bool:
        """True if some positions are interpolated."""
        return self.share < 1

    @property
    def crops(self) -> bool:
        """True if regions are cropped."""
        return self.tau < 1 or bool(self.extents)

    @property
    def linear(self) -> bool:
        """True if gradients are taken at a cut."""
        return self.cut is not None and self.cut != 1

    @property
    def plain(self) -> bool:
        """True if each computed position is exact: drill-down only leaves some out."""
        return not self.crops and not self.linear and self.gates == "exact" and self.dtype is None

    @property
    def exact(self) -> bool:
        """True if nothing is approximated: such settings run the exact path itself."""
        return self.plain and not self.drills

    def __str__(self) -> str:
        """What is approximated, in a few words: for captions."""
        told = {
            "tau": f"tau {self.tau:g}" if self.tau < 1 else "",
            "extents": f"cropped in {len(self.extents)} layers" if self.extents else "",
            "cut": self._cut_text() if self.linear else "",
            "correct": f"corrected by about {self.correct} exact ones" if self.correct else "",
            "gates": f"gates {self.gates}" if self.gates != "exact" else "",
            "dtype": self.dtype or "",
            "share": self._share_text() if self.drills else "",
        }
        return ", ".join(text for text in told.values() if text) or "exact"

    def _share_text(self) -> str:
        first = "" if self.coarse is None else f" after every {self.coarse} px"
        stages = f" in {self.levels} stages" if self.levels > 2 else ""
        return f"{100 * self.share:.3g}% of the positions{first}{stages}"

    def _cut_text(self) -> str:
        where = f"behind {self.cut}" if isinstance(self.cut, str) else f"at {self.cut:.3g} of the work"
        what = "the rest linear" if self.rest == "linear" else "linear"
        return f"{what} {where}" + (f" ({self.reference})" if self.reference != "base" else "")

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON; `from_dict` reads them back."""
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Approximation:
        """Read what `to_dict` wrote.

        Raises:
            InputError: An unknown name, or a value that is not allowed.
        """
        known = [field.name for field in fields(Approximation)]
        if unknown := sorted(set(data) - set(known)):
            raise InputError(f"an approximation has no {unknown[0]!r}; allowed are {', '.join(known)}")
        if data.get("correct") and Approximation(**{**data, "correct": 0}).plain:
            return Approximation(**{**data, "correct": 0})  # files of before: it was left out without a word
        return Approximation(**data)


def _as_extents(given: Any) -> Extents:
    """Pairs of a layer's name and its cells per axis, from a dict or from pairs."""
    try:
        pairs = tuple((name, tuple(cells)) for name, cells in dict(given).items())
    except (TypeError, ValueError):
        pairs = ((given, (0,)),)
    for name, cells in pairs:
        if not isinstance(name, str) or not cells or not all(isinstance(n, Integral) and int(n) >= 1 for n in cells):
            raise InputError(
                f"extents has {name!r}: {cells}; allowed are names of layers with integers of at least 1, one per axis"
            )
    return tuple((name, tuple(int(n) for n in cells)) for name, cells in pairs)


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and low <= float(value) <= high


def _check_share(name: str, value: Any) -> None:
    if not _is_number(value, 0, 1) or value == 0:
        raise InputError(f"{name} is {value!r}; allowed is 0 < {name} <= 1")


def _check_name(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name} is {value!r}; allowed are {', '.join(map(repr, allowed))}")


def _check_samples(value: Any) -> None:
    counts = isinstance(value, Integral) and not isinstance(value, bool)
    if not counts or (value != 0 and value < FEWEST):
        raise InputError(f"samples is {value!r}; allowed are 0 (no estimate) and integers of at least {FEWEST}")


def _check_count(name: str, value: Any, least: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} is {value!r}; allowed are integers of at least {least}")
