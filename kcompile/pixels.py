"""Fills in the picture's own units, put through the preprocessing of the model's images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kcompile.core.errors import InputError
from kcompile.drawn_fills import Drawn
from kcompile.fills import Constant, Fill, Source, as_numbers, check_value

# Relative to the values' size: what resizing a picture of one colour may round. A step that mixes pixels is far beyond.
TOLERANCE = 1e-3
FROM_PIL = ("ToTensor", "PILToTensor")  # torchvision's steps that a picture which is a tensor already has behind it
INSTEAD = "give the transform's pixel-by-pixel part alone, or value in the model's units"


@dataclass(frozen=True)
class Pixels(Fill):
    """A fill in the units that pictures have before preprocessing: ``Pixels(0.5, weights.transforms())`` is grey.

    The transform must do the same to a pixel whatever its place and its neighbours: normalisation, gamma, a change of
    type. Resizing and cropping, as in the presets of torchvision's weights, are no matter for one colour; a patch or an
    image of several colours must then be normalised by a factor and an offset per channel, which are read off. What
    looks at the whole picture (standardisation by its own mean, equalisation, chance) is refused.

    Attributes:
        value: A number, one per channel, a tensor [C, h, w] for the patch or [C, H, W] for another image, in the units
            that the transform takes: 0 … 1 for torchvision's (0 … 255 if it is a uint8 tensor).
        transform: torchvision's (v1, v2, ``weights.transforms()``) or any function from a tensor [C, H, W] to one.
    """

    value: Any
    transform: Callable[[Any], Any]

    def source(self, image: Tensor, sizes: Sequence[int]) -> Source:
        """The same fill in the model's units; InputError as of `constant`."""
        return self.constant(image, sizes).source(image, sizes)

    def key(self, image: Tensor, sizes: Sequence[int]) -> str:
        """That of the same fill in the model's units: all that a transform does to it counts, and nothing else."""
        return self.constant(image, sizes).key(image, sizes)

    def constant(self, image: Tensor, sizes: Sequence[int]) -> Constant:
        """The same fill in the model's units.

        Raises:
            InputError: A value of a wrong shape, or a transform that fails or does more than map pixel by pixel.
        """
        if not callable(self.transform):
            raise InputError(f"the transform is a {type(self.transform).__name__}; allowed are functions of a tensor")
        if isinstance(self.value, (str, Fill, Drawn)):
            raise InputError(
                f"Pixels has the value {self.value!r}; allowed are numbers and tensors (named fills are made from the "
                "image, in the model's units, and need no transform)"
            )
        given = check_value(as_numbers(self.value, image.shape, sizes), image.shape, sizes).cpu()
        pixels = given if given.dtype == torch.uint8 else given.to(torch.promote_types(image.dtype, torch.float32))
        preprocessing = _Preprocessing(self.transform, tuple(image.shape))
        if given.dim() < image.dim():
            mapped = preprocessing.of_colour(pixels.reshape(-1).expand(len(image)))
        else:
            mapped = preprocessing.of_colours(pixels)
        return Constant(mapped)


@dataclass(frozen=True)
class _Preprocessing:
    """A user's transform of pictures of ``shape`` [C, *S], tried on pictures made for the purpose."""

    transform: Callable[[Any], Any]
    shape: tuple[int, ...]

    def of_colour(self, colour: Tensor) -> Tensor:
        """One colour [C] in the model's units [C], off a picture of this colour alone."""
        flat = self._apply(self._filled(colour)).flatten(1)
        if not _close(flat, flat[:, :1].expand_as(flat)):
            raise InputError(
                f"the transform makes several colours of a picture of one (padding, erasing, chance, …): {INSTEAD}"
            )
        result = flat[:, flat.shape[1] // 2]
        if self.shape[-1] > 1:
            self._check_halves(colour, result)
        return result

    def _check_halves(self, colour: Tensor, result: Tensor) -> None:
        """In a picture of two colours, left and right, each must become what it becomes alone."""
        brightest = next((white for white in (1.0, 255.0) if bool((colour < white).all())), 0.0)
        dark = torch.where(colour == 0, torch.ones_like(colour), torch.zeros_like(colour))
        for other in (dark, torch.full_like(colour, brightest)):  # a picture's maximum may be what counts
            self._check_half(colour, result, other)

    def _check_half(self, colour: Tensor, result: Tensor, other: Tensor) -> None:
        halves = self._filled(colour)
        halves[..., self.shape[-1] // 2 :] = _upright(other, len(self.shape))
        both, alone = self._apply(halves), self._apply(self._filled(other))[..., -1]
        if not (_close(both[..., 0], _upright(result, alone.dim()).expand_as(alone)) and _close(both[..., -1], alone)):
            raise InputError(
                f"the transform looks at more than each pixel (the whole picture's statistics, flips, chance, …): "
                f"{INSTEAD}"
            )

    def of_colours(self, pixels: Tensor) -> Tensor:
        """A patch or an image [C, *sizes] in the model's units."""
        flat = pixels.flatten(1)
        if bool((flat == flat[:, :1]).all()):
            return _upright(self.of_colour(flat[:, 0]), pixels.dim()).expand(pixels.shape)
        made = self._apply(pixels)
        if made.shape == pixels.shape:  # pointwise if pixels of a mixed picture become what they become unmixed
            first = torch.rand(pixels.shape[1:], generator=torch.Generator().manual_seed(0)) < 0.5
            plain = pixels.amin().expand(pixels.shape)
            mixed, of_plain = self._apply(torch.where(first, pixels, plain)), self._apply(plain)
            if mixed.shape == of_plain.shape == made.shape and _close(mixed, torch.where(first, made, of_plain)):
                return made
        return self._scaled(pixels)

    def _scaled(self, pixels: Tensor) -> Tensor:
        """The same where the picture's size changes: by a factor and an offset per channel, read off two colours."""
        low, span = float(pixels.amin()), float(pixels.amax()) - float(pixels.amin())
        channels, rank = self.shape[0], pixels.dim()
        shares = torch.stack([torch.zeros(channels), torch.ones(channels), torch.linspace(0.2, 0.7, channels)]).double()
        colours = (low + shares * span).to(pixels.dtype)
        zero, one, third = (self.of_colour(colour).double() for colour in colours)
        slope = (one - zero) / span
        if not _close(third, zero + (colours[2].double() - low) * slope):  # on a third colour it would be another one
            raise InputError(
                "the transform changes a picture's size, and is no factor and offset per channel: a patch of several "
                f"colours can't be put through it; {INSTEAD}"
            )
        return _upright(zero, rank) + (pixels.double() - low) * _upright(slope, rank)

    def _filled(self, colour: Tensor) -> Tensor:
        return _upright(colour, len(self.shape)).expand(self.shape).clone()

    @torch.no_grad()
    def _apply(self, pixels: Tensor) -> Tensor:
        """What the transform makes of a picture; InputError if that fails or is no picture of the model's."""
        steps = getattr(self.transform, "transforms", None)
        listed = steps if isinstance(steps, (list, tuple)) else [self.transform]
        made: Any = pixels.clone()
        try:
            for step in listed:
                made = made if type(step).__name__ in FROM_PIL else step(made)
        except Exception as error:  # the user's own code
            kind = f"{pixels.dtype} tensor of shape {tuple(pixels.shape)}"
            raise InputError(f"the transform fails on a {kind}: {error}") from error
        rank, channels = len(self.shape), self.shape[0]
        if isinstance(made, Tensor) and made.dim() == rank + 1 and len(made) == 1:
            made = made[0]  # with a batch
        if isinstance(made, Tensor) and made.dim() == rank and len(made) == channels and made.is_floating_point():
            return made.as_subclass(Tensor).cpu()
        got = f"{made.dtype} {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise InputError(f"the transform returns {got}; the model takes float images of {channels} channels")


def _upright(values: Tensor, rank: int) -> Tensor:
    """Values [C] as [C, 1, …] of so many dimensions."""
    return values.reshape(-1, *[1] * (rank - 1))


def _close(one: Tensor, other: Tensor) -> bool:
    return bool(((one - other).abs() <= TOLERANCE * (1 + other.abs().max())).all())
