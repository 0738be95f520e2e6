"""What is measured: trained networks with their images, and the methods.

Images of a *set* have seeds of their own: no picture that was trained on (set 0) or that training was judged by (1) is
used, and no two sets share one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import torch
import torchvision
from torch import Tensor, nn

import kcompile
from examples.digits import data as digit_data
from examples.digits import network as digit_network
from examples.lesions.generator import SEEDS_PER_SET, generate
from examples.lesions.network import preprocess
from examples.lesions.networks import load_network
from examples.lesions.textures import retextured
from kcompile import Approximation
from kcompile.approximation import Extents
from kcompile.variants import has_gates

TUNE, TEST, OTHER = 2, 4, 5
"""Sets of lesion images: for tuning (both halves), for tests, and for tests with another texture."""


@dataclass(frozen=True)
class Case:
    """A trained network.

    Attributes:
        name: Of the network.
        load: Makes it, in eval mode.
        image: The i-th image of a set, in the model's units.
        patch: Side, in pixels.
        stride: In pixels.
        tuning: Images that it is tuned on, both halves together. More let through settings that miss the target on some
            images, but on fewer than allowed: of 22 none may miss it, of 66 three.
    """

    name: str
    load: Callable[[], nn.Module]
    image: Callable[[int, int], Tensor]
    patch: int
    stride: int
    tuning: int = 44


def lesion(which: int, index: int) -> Tensor:
    """An image of the lesion data, the classes in turn; of `OTHER` with another texture."""
    sample = generate(index % 4, which * SEEDS_PER_SET + index)
    return preprocess((retextured(sample, index) if which == OTHER else sample).image)


def digit(which: int, index: int) -> Tensor:
    """A digit; those of `OTHER` are test digits in negative."""
    part = {TUNE: "tune", TEST: "test", OTHER: "test"}[which]
    picture = digit_data.digits(part)[0][index + (200 if which == OTHER else 0)]
    return digit_data.preprocess(1 - picture if which == OTHER else picture)


CASES = {
    **{
        name: Case(name, lambda name=name: load_network(name), lesion, 16, 4, images)  # type: ignore[misc]
        for name, images in (("vgg", 132), ("residual", 132), ("inception", 44))
    },
    "digits": Case("digits", digit_network.load_pretrained, digit, 8, 2),
    "gated": Case("gated", lambda: load_network("gated"), lesion, 16, 8),
}

TAUS = (0.8, 0.6, 0.5, 0.4, 0.3, 0.2)
CUTS = (0.0, 0.12, 0.25, 0.5)
CURVE = {f"threshold {tau:g}": tau for tau in TAUS}
"""The methods that Krypton's curve is fitted to, and their thresholds."""
MEASURED = 4  # images of `TUNE` that extents are measured on


@dataclass(frozen=True)
class Compiled:
    """A case's network, compiled for its images and patch."""

    case: Case
    inc: kcompile.IncrementalModule

    @staticmethod
    def of(case: Case) -> Compiled:
        """Compile it."""
        return Compiled(case, kcompile.incrementalize(case.load(), tuple(case.image(TEST, 0).shape), case.patch))

    @property
    def stride(self) -> int:
        """Of the case's maps."""
        return self.case.stride

    @cached_property
    def gated(self) -> bool:
        """True if there are gates to be held."""
        return has_gates(self.inc)

    def extents(self, keep: float) -> Extents:
        """Extents that hold a share of the change; measured at first use."""
        return _extents(self.case.name, self.inc, keep, self.gated)

    def methods(self) -> dict[str, Approximation]:
        """What is compared on this network, by name."""
        return {name: make(self) for name, make in (GATED if self.gated else METHODS).items()}


@cache
def _extents(name: str, inc: kcompile.IncrementalModule, keep: float, held: bool) -> Extents:
    return kcompile.measure_extents(inc, [CASES[name].image(TUNE, index) for index in range(MEASURED)], keep, held=held)


METHODS: dict[str, Callable[[Compiled], Approximation]] = {
    "drill-down, r 0.1, stride x4": lambda net: Approximation(share=0.1, coarse=4 * net.stride),
    "drill-down, r 0.25, stride x4": lambda net: Approximation(share=0.25, coarse=4 * net.stride),
    "hierarchical, r 0.1, x4 x2": lambda net: Approximation(share=0.1, coarse=4 * net.stride, levels=3),
    "drill-down, r 0.1, stride x2": lambda net: Approximation(share=0.1, coarse=2 * net.stride),
    **{f"linear tail, {cut:g} of the work": lambda _, cut=cut: Approximation(cut=cut) for cut in CUTS},
    **{method: lambda _, tau=tau: Approximation(tau=tau) for method, tau in CURVE.items()},
    "linear tail, 0.25, 144 exact": lambda _: Approximation(cut=0.25, correct=144),
    **{
        f"threshold {tau:g}, 64 exact": lambda _, tau=tau: Approximation(tau=tau, correct=64) for tau in (0.4, 0.3, 0.2)
    },
    "threshold 0.4, 64 exact, r 0.1, x4 x2": lambda net: Approximation(
        tau=0.4, correct=64, share=0.1, coarse=4 * net.stride, levels=3
    ),
    "threshold 0.6, r 0.1, stride x4 (Krypton)": lambda net: Approximation(tau=0.6, share=0.1, coarse=4 * net.stride),
    "extents that hold 0.98": lambda net: Approximation(extents=net.extents(0.98)),
    "extents 0.98, r 0.1, stride x2": lambda net: Approximation(
        extents=net.extents(0.98), share=0.1, coarse=2 * net.stride
    ),
    "bfloat16": lambda _: Approximation(dtype="bfloat16"),
    "float16": lambda _: Approximation(dtype="float16"),
}
"""What is compared, by name."""

GATED: dict[str, Callable[[Compiled], Approximation]] = {
    "held gates": lambda _: Approximation(gates="held"),
    "held gates, r 0.1, stride x2": lambda net: Approximation(gates="held", share=0.1, coarse=2 * net.stride),
    "held gates, threshold 0.5": lambda _: Approximation(gates="held", tau=0.5),
    "held gates, extents 0.98": lambda net: Approximation(gates="held", extents=net.extents(0.98)),
    "held gates, 25 exact": lambda _: Approximation(gates="held", correct=25),
    "held gates, bfloat16": lambda _: Approximation(gates="held", dtype="bfloat16"),
    "held gates, linear tail, 0.5 of the work": lambda _: Approximation(gates="held", cut=0.5),
    "linear gates, linear tail, 0.5 of the work": lambda _: Approximation(gates="linear", cut=0.5),
    "linear gates, linear tail, 0.99 of the work": lambda _: Approximation(gates="linear", cut=0.99),
    "drill-down, r 0.1, stride x2": lambda net: Approximation(share=0.1, coarse=2 * net.stride),
}
"""The same for networks with gates, whose exact maps are dense behind the first of them."""


def full_size(name: str) -> nn.Module:
    """VGG16 or ResNet18 of torchvision, with random weights and calibrated norms, in eval mode."""
    torch.manual_seed(0)
    model = {"vgg16": torchvision.models.vgg16, "resnet18": torchvision.models.resnet18}[name](weights=None)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    model.train(bool(norms))
    with torch.no_grad():
        if norms:
            model(torch.randn(4, 3, 224, 224))
    return model.eval()
