"""Verify a compiled module: incremental against full inference on one image (docs/design.md, section 6)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from kcompile.core.errors import InputError
from kcompile.core.interval import IntArray
from kcompile.runtime.inputs import Given
from kcompile.runtime.module import IncrementalModule
from kcompile.trials import own_pixels, paste, random_patches, random_positions

VOID = 1e-3  # a change below this share of the scale proves nothing
OF_SCALE = 1e-4  # float32
OF_CHANGE = 1e-6  # float64
OF_ROUNDING = 2.0  # times the plain model's own rounding: bfloat16, float16, and float32 where that is more
HALVES = (torch.bfloat16, torch.float16)
BATCH = 7  # images of one full inference; rarely a divisor, so that the last batch tells constants by their rows


@dataclass(frozen=True)
class OutputCheck:
    """One output of the model, over all positions. All figures are in the output's own units.

    Attributes:
        name: Path in the output's structure, "output" for a single tensor.
        shape: Without the batch.
        dtype: As "float32".
        error: Largest absolute difference of incremental and full inference; for bfloat16 and float16, and full
            inference in float64.
        worst: Index of the position where it lies.
        scale: Largest absolute value of full inference.
        change: Largest absolute difference that the patches make.
        noise: The error with the base's own pixels as patches: rounding alone, nothing changes.
        tolerance: Largest error allowed.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    error: float
    worst: int
    scale: float
    change: float
    noise: float
    tolerance: float

    @property
    def void(self) -> bool:
        """True if the patches change the output by less than 1e-3 of its scale: nothing is proven."""
        return not self.change >= VOID * self.scale or self.scale == 0

    @property
    def verdict(self) -> str:
        """Either "failed" (error beyond the tolerance), "void" or "ok"."""
        if not max(self.error, self.noise) <= self.tolerance:  # also where they are NaN
            return "failed"
        return "void" if self.void else "ok"

    def __str__(self) -> str:
        """One line."""
        shares = f"{_ratio(self.error, self.scale):.1e} of scale, {_ratio(self.error, self.change):.1e} of change"
        return (
            f"{self.verdict}: {self.name} {list(self.shape)} {self.dtype}: error {self.error:.2e} = {shares} "
            f"(allowed {self.tolerance:.2e}); scale {self.scale:.2e}, change {self.change:.2e}, noise {self.noise:.2e}"
        )


@dataclass(frozen=True)
class Verification:
    """The result of `verify`.

    Attributes:
        outputs: One entry per tensor that the model returns.
        positions: The positions tried, (row, col).
        seed: Repeats positions and patches.
    """

    outputs: tuple[OutputCheck, ...]
    positions: tuple[tuple[int, ...], ...]
    seed: int

    @property
    def ok(self) -> bool:
        """True if every output reacts to the patches and is within its tolerance."""
        return bool(self.outputs) and all(check.verdict == "ok" for check in self.outputs)

    @property
    def void(self) -> bool:
        """True if no output fails but some hardly react to the patches: nothing is proven for those."""
        return not self.ok and all(check.verdict != "failed" for check in self.outputs)

    def __str__(self) -> str:
        """A line per output below the overall verdict."""
        verdict = "ok" if self.ok else "void" if self.void else "failed"
        lines = [f"{verdict}: {len(self.positions)} positions, seed {self.seed}"]
        for check in self.outputs:
            where = f", worst at {self.positions[check.worst]}" if check.verdict == "failed" else ""
            lines.append(f"  {check}{where}")
        if self.void:
            lines.append("  void: the patches change the output by less than 1e-3 of its scale, so that even a module "
                         "that ignores them would pass; try trained weights or another image")  # fmt: skip
        return "\n".join(lines)


def verify(inc: IncrementalModule, image: Any, positions: int = 32, *, seed: int | None = None) -> Verification:
    """Compare incremental with full inference on really patched images, at random positions with random patches.

    Corners, edges and patches that stick out of the image are among the positions. The tolerances are those of
    docs/design.md, section 6: float32 1e-4 of the output's scale; float64 1e-6 of the change that the patches make;
    bfloat16 and float16 twice the plain model's own rounding against float64 (at least that of the output itself).

    Args:
        inc: What `incrementalize` returned; afterwards it holds ``image`` as its base.
        image: [C, *S], or [B, C, *S] (queries then go round all B bases); a tuple or dict of all inputs for a model
            with several.
        positions: How many positions.
        seed: Repeats an earlier run; default: a fresh one, which the result names.

    Raises:
        InputError: No compiled module, a bad image, or fewer than one position.
        StaleWeightsError: The model's weights changed after compilation.
    """
    if not isinstance(inc, IncrementalModule):
        raise InputError(f"verify needs what kcompile.incrementalize returns, got {type(inc).__name__}")
    if positions < 1:
        raise InputError(f"positions is {positions}; allowed are integers of at least 1")
    seed = secrets.randbits(32) if seed is None else seed
    rng = np.random.default_rng(seed)
    args, kwargs = ((), image) if isinstance(image, dict) else (image if isinstance(image, tuple) else (image,), {})
    given = inc.read(*args, **kwargs)
    inc.materialize_given(given)
    batch = given.rows[0]
    where = random_positions(inc.plan.input_shape[1:], inc.plan.patch_shape, positions, rng)
    patches = random_patches(batch, inc.plan.patch_shape, positions, rng)
    return Verification(_checks(inc, given, patches, where), tuple(map(tuple, where.tolist())), seed)


def _checks(inc: IncrementalModule, given: Given, patches: Tensor, where: IntArray) -> tuple[OutputCheck, ...]:
    index = np.arange(len(where)) % len(given.rows[0])
    bases, *others = (rows[torch.from_numpy(index)] for rows in given.rows)
    patched = replace(given, rows=(paste(bases, patches, where), *others))
    model = partial(inc.inputs.call, inc.model)
    full, plain = _full(model, patched), _full(model, replace(given, rows=(bases, *others)))
    with _incrementally(inc):
        quick = _leaves(inc.forward_patches(patches, where, base_index=index))
        still = _leaves(inc.forward_patches(own_pixels(bases, where, patches.shape[2:]), where, base_index=index))
    close = bases.dtype not in HALVES and all(
        float(_difference(quick[name], full[name]).max()) <= OF_SCALE * float(full[name].double().abs().max())
        for name in full
    )
    exact = full if close else _exact(inc, patched)  # else the model's own rounding is asked for
    return tuple(_check(name, full[name], plain[name], exact[name], quick[name], still[name]) for name in full)


@contextmanager
def _incrementally(inc: IncrementalModule) -> Iterator[None]:
    """Inside, no call is run in full: that would verify nothing."""
    policy, inc.policy = inc.policy, "incremental"
    try:
        yield
    finally:
        inc.policy = policy


def _check(name: str, full: Tensor, plain: Tensor, exact: Tensor, quick: Tensor, still: Tensor) -> OutputCheck:
    wanted = exact if full.dtype in HALVES else full  # else two roundings would be held against one
    errors = _difference(quick, wanted).reshape(len(full), -1).amax(dim=1)
    scale, change = float(full.double().abs().max()), float(_difference(full, plain).max())
    if full.dtype in HALVES:
        unit = scale * torch.finfo(full.dtype).eps / 2
        tolerance = OF_ROUNDING * max(float(_difference(full, exact).max()), unit)
    elif full.dtype == torch.float64:
        tolerance = OF_CHANGE * max(change, VOID * scale)
    else:
        tolerance = max(OF_SCALE * scale, OF_ROUNDING * float(_difference(full, exact).max()))
    kind = str(full.dtype).removeprefix("torch.")
    noise = float(_difference(still, plain).max())
    worst = int(errors.argmax())
    return OutputCheck(name, tuple(full.shape[1:]), kind, float(errors[worst]), worst, scale, change, noise, tolerance)


def _difference(one: Tensor, other: Tensor) -> Tensor:
    """Absolute difference in float64; equal infinities differ by 0, NaN stays NaN."""
    a, b = one.double(), other.double()
    return torch.where(a == b, 0.0, (a - b).abs())


@torch.inference_mode()
def _full(model: Callable[[Given], Any], given: Given) -> dict[str, Tensor]:
    """The model's outputs for images, a few at a time, by name; tensors without a row per image are left out."""
    batches = list(zip(*(part.split(BATCH) for part in given.rows), strict=True))
    parts = [_leaves(model(replace(given, rows=batch))) for batch in batches]
    rows = [len(batch[0]) for batch in batches]
    named = {name: [part[name] for part in parts] for name in parts[0]}
    return {name: torch.cat(found) for name, found in named.items() if list(map(len, found)) == rows}


def _exact(inc: IncrementalModule, given: Given) -> dict[str, Tensor]:
    """The same computed in float64."""
    wide = Given(tuple(map(_wide, given.rows)), {index: _wide(value) for index, value in given.whole.items()})
    return _full(partial(inc.inputs.call, deepcopy(inc.model).double()), wide)


def _wide(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def _leaves(output: Any) -> dict[str, Tensor]:
    """The tensors of an output structure, by their path in it."""
    return {
        pytree.keystr(path) or "output": leaf
        for path, leaf in pytree.tree_leaves_with_path(output)
        if isinstance(leaf, Tensor) and leaf.dim()
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0 if part == 0 else float("inf")
