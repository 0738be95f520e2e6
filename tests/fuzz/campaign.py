"""Many graphs from one seed, with the smallest failing one as a program."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass

import hypothesis
from hypothesis import strategies as st

from tests.fuzz.check import check
from tests.fuzz.description import Graph, program
from tests.fuzz.strategy import graphs

_SETTINGS = hypothesis.settings(
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(hypothesis.HealthCheck),
)


@dataclass
class Tally:
    """What was checked: graphs, those through `torch.export`, those that react, layers that ran on regions."""

    graphs: int = 0
    exported: int = 0
    reacting: int = 0
    incremental: int = 0

    def add(self, other: Tally) -> None:
        """Count another tally in."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)

    def __str__(self) -> str:
        """One line."""
        count = max(self.graphs, 1)
        return (
            f"{self.graphs} graphs ({self.exported} through torch.export), {self.reacting / count:.0%} react, "
            f"{self.incremental / count:.1f} incremental layers each"
        )


class WrongGraphError(AssertionError):
    """A graph that is inferred wrongly; the message is a program that shows it."""


def search(seed: int, examples: int, shrink: bool = True) -> Tally:
    """Check random graphs, a tenth of them captured by `torch.export`.

    Args:
        seed: For hypothesis.
        examples: How many graphs.
        shrink: Look for a smaller graph that fails (minutes).

    Raises:
        WrongGraphError: With the smallest failing graph that hypothesis finds.
    """
    phases = [hypothesis.Phase.generate, *([hypothesis.Phase.shrink] if shrink else [])]
    tally, failing = Tally(), list[tuple[Graph, bool]]()

    @hypothesis.seed(seed)
    @hypothesis.settings(_SETTINGS, max_examples=examples, phases=phases)
    @hypothesis.given(graphs(), st.integers(0, 9))
    def every(graph: Graph, tenth: int) -> None:
        exported = tenth in (4, 8)  # hypothesis draws what is simple more often: in effect a tenth
        try:
            result = check(graph, exported)
        except Exception:
            failing.append((graph, exported))
            raise
        tally.add(Tally(1, exported, result.reacts, result.incremental))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using padding='same' with even kernel")
        try:
            every()
        except BaseException as error:
            if not failing or isinstance(error, KeyboardInterrupt):
                raise
            # hypothesis runs the smallest failing example last
            raise WrongGraphError(f"{error}\nfuzz seed {seed}; run this:\n\n{program(*failing[-1])}") from error
    return tally
