"""Progress of an experiment: a bar, a callback, and the wish to stop."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tqdm import tqdm


@dataclass(frozen=True)
class Progress:
    """How far an experiment is; `kcompile.occlusion` gives it to its callback after every batch of positions.

    Attributes:
        done: Positions done, of all images together.
        total: Positions of all images together.
        image: Index of the current image.
        seconds: Since the first image was begun.
        remaining: Seconds left, at the pace so far.
    """

    done: int
    total: int
    image: int
    seconds: float
    remaining: float


Callback = Callable[[Progress], Any]


class Meter:
    """Counts positions, for a progress bar on stderr and for a callback."""

    def __init__(self, total: int, callback: Callback | None, shown: bool) -> None:
        """Start the clock; ``shown`` is whether there is a bar."""
        self.callback, self.done, self.total = callback, 0, total
        self.start = time.perf_counter()
        self.bar = tqdm(total=total, disable=not shown, unit="position")

    def describe(self, text: str) -> None:
        """Put a text before the bar."""
        self.bar.set_description(text)

    def advance(self, count: int, image: int) -> bool:
        """Note that ``count`` more positions are done; False if the callback wants to stop."""
        self.done += count
        self.bar.update(count)
        if self.callback is None:
            return True
        seconds = time.perf_counter() - self.start
        left = seconds * (self.total - self.done) / max(self.done, 1)
        try:
            return self.callback(Progress(self.done, self.total, image, seconds, left)) is not False
        except StopIteration:
            return False

    def say(self, text: str) -> None:
        """Write a line above the bar, if there is one."""
        if not self.bar.disable:
            self.bar.write(text, file=sys.stderr)

    def __enter__(self) -> Meter:
        """For ``with``: the bar is closed at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See `__enter__`."""
        self.bar.close()
