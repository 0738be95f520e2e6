"""Options of the command line for approximate maps: `Approximation`'s fields, by their names."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import nn

    from kcompile.approximation import Approximation

_NOTHING = "nothing is approximated by this; give --share, --tau, --cut, --gates or --dtype"
_PANEL = "Approximation (none by default: maps are exact)"


def _option(name: str, text: str) -> Any:
    return typer.Option(f"--{name}", help=text, rich_help_panel=_PANEL, show_default=False)


Share = Annotated[
    float | None, _option("share", "Drill-down: share of the positions at full quality, the rest is interpolated.")
]
Coarse = Annotated[int | None, _option("coarse", "Drill-down: stride of its first stage, pixels.")]
Levels = Annotated[int | None, _option("levels", "Drill-down: number of its stages. By default 2.")]
Tau = Annotated[float | None, _option("tau", "Most of a map's width and height that a patch's change may take.")]
Cut = Annotated[
    str | None,
    _option("cut", "Behind this layer (or so far back: a share of the work, 0 to 1) the gradient replaces the model."),
]
Rest = Annotated[str | None, _option("rest", "What tau leaves out: dropped, or linear (needs --cut).")]
Reference = Annotated[str | None, _option("reference", "Of the gradient: base, secant or mean-gradient.")]
Correct = Annotated[int | None, _option("correct", "About so many exact positions correct the approximate ones.")]
Gates = Annotated[str | None, _option("gates", "Squeeze-and-excite and the like: exact, held, linear (with --cut).")]
Dtype = Annotated[str | None, _option("dtype", "bfloat16 or float16.")]
Samples = Annotated[
    int | None, _option("samples", "Positions computed exactly as well, for the error estimate. By default 32.")
]
Seed = Annotated[int | None, _option("seed", "Of the draw of these. By default another draw each time.")]


def approximation_of(given: dict[str, Any]) -> Approximation | None:
    """The settings, of the options that were given; None if none was.

    Args:
        given: By name of the field; None for what was not given. A cut is text, see `with_cut`.

    Raises:
        InputError: A value that is not allowed, or samples alone.
    """
    from kcompile.approximation import Approximation
    from kcompile.core.errors import InputError

    told = {name: value for name, value in given.items() if value is not None}
    if not told:
        return None
    settings = Approximation(**told)
    if settings.exact:
        names = ", ".join(f"--{name}" for name in told)
        raise InputError(f"{names}: {_NOTHING}")
    return settings


def with_cut(settings: Approximation, model: nn.Module) -> Approximation:
    """The settings with the cut as a number, unless the model has a layer of that name.

    Raises:
        InputError: Neither a layer nor a share; or 1, which is the end, where nothing else is approximated.
    """
    from kcompile.core.errors import InputError

    text = settings.cut
    if not isinstance(text, str) or text in dict(model.named_modules()):
        return settings
    try:
        share = float(text)
    except ValueError:
        raise InputError(f"--cut is {text!r}; allowed are a layer of this model and a share 0 to 1") from None
    settings = replace(settings, cut=share)
    if settings.exact:
        raise InputError(f"--cut {text}: {_NOTHING}")
    return settings
