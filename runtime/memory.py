"""Memory of a module under a budget: does a call fit, and how many images are materialised at a time."""

from __future__ import annotations

from dataclasses import dataclass

from kcompile.runtime.budget import Budget, Needs, largest, too_small, usable
from kcompile.runtime.materializing import MaterializeNeeds


@dataclass(frozen=True)
class Memory:
    """What the runs of a module take, and its budget.

    Attributes:
        budget: The budget.
        images: What materialising takes.
        query: What queries with patches of the compiled size take.
        policy: As `IncrementalModule.policy`.
        surplus: Bytes by which packed weights are larger than the weights themselves, and those of CUDA graphs.
    """

    budget: Budget
    images: MaterializeNeeds
    query: Needs
    policy: str
    surplus: int = 0

    def needed(self, images: int, held: int = 0) -> int:
        """The least that so many base images and a query of them take, beside what is held, in bytes."""
        kept = self.images.constants + images * self.images.row
        return held + self.surplus + max(self.images.peak(images, 1), kept + self.query.least(self.policy))

    def fits(self, images: int) -> bool:
        """True if so many base images and a query of them fit."""
        return self.needed(images) <= usable(self.budget.nbytes)

    def check(self, images: int) -> None:
        """MemoryBudgetError if so many base images and a query of them don't fit."""
        needed = self.needed(images)
        if not self.fits(images):
            what = "one base image and a query of it" if images == 1 else f"{images} base images and a query of them"
            raise too_small(self.budget.nbytes, needed, what)

    def at_once(self, images: int, held: int = 0) -> int:
        """How many of so many base images are run at a time."""
        room = usable(self.budget.nbytes) - held - self.surplus
        return max(largest(images, lambda n: self.images.peak(images, n) <= room), 1)

    def bases(self, most: int, held: int = 0) -> int:
        """How many further base images fit beside what is held, up to ``most``; 0 if not one."""
        return largest(most, lambda n: self.needed(n, held) <= usable(self.budget.nbytes))

    def rows(self) -> list[bool]:
        """For each flat output of the model, whether it has a row for each image."""
        return [leaf is not None and leaf[0] != leaf[1] for leaf in self.images.run.leaves]
