"""What is measured: cases, and the suites that list them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

MAIN = ("vgg16", "resnet18", "inception_v3", "resnet50")
OTHERS = ("googlenet", "mobilenet_v2", "densenet121", "efficientnet_b0", "convnext_tiny")
SAMPLE = 64
QUERIES = (1, 16, 64, 256)


@dataclass(frozen=True)
class Case:
    """One row of the results.

    Attributes:
        network: Its name in `benchmarks.networks`.
        threads: Of both sides.
        patch: Size in pixels.
        stride: Distance of the map's positions in pixels.
        sample: Time only about so many positions of the map, in whole batches (0: all); without meaning for a call.
        queries: So many positions in one call, on a base that is set already (0: a map, with materialisation).
        size: Of the image in pixels (0: the network's usual one).
    """

    network: str
    threads: int
    patch: int = 16
    stride: int = 4
    sample: int = 0
    queries: int = 0
    size: int = 0

    def batch(self, most: int) -> int:
        """Images per call of the naive sides."""
        return min(self.queries, most) if self.queries else most

    def __str__(self) -> str:
        threads = f"{self.threads} thread" + "s" * (self.threads > 1)
        what = f", {self.queries} queries" if self.queries else ""
        return f"{self.network}, patch {self.patch}, stride {self.stride}, {threads}{what}"


def maps(networks: Sequence[str], threads: int) -> list[Case]:
    """Whole maps."""
    return [Case(network, threads) for network in networks or MAIN]


def samples(networks: Sequence[str], threads: int) -> list[Case]:
    """Samples of maps: other networks, patches, strides, and one thread."""
    cases = []
    for network in networks or (*OTHERS, *MAIN):
        base = Case(network, threads, sample=SAMPLE)
        varied = [replace(base, patch=8), replace(base, patch=32), replace(base, stride=8), replace(base, threads=1)]
        if networks:
            cases += [base, *varied]
        else:
            cases += [base] if network in OTHERS else varied
    return cases


def interactive(networks: Sequence[str], threads: int) -> list[Case]:
    """Few positions per call, the base already set; beside a sample of the map, whose ratio is the measure."""
    counts = (0, *QUERIES)
    return [Case(network, threads, queries=count, sample=SAMPLE) for network in networks or MAIN for count in counts]


SUITES: dict[str, Callable[[Sequence[str], int], list[Case]]] = {
    "maps": maps, "samples": samples, "interactive": interactive,
}  # fmt: skip
