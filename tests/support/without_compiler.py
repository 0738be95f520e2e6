"""Run by tests/runtime/test_saving.py in a process of its own: files of a folder, without compiler and model code."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any


class Blocker:
    """Lets nobody import the compiler or the tests."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.startswith(("kcompile.passes", "tests")):
            raise ImportError(f"{name} is blocked")


folder = Path(sys.argv[1])
sys.path.insert(0, sys.argv[2])
import torch  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402

import kcompile  # noqa: E402

sys.meta_path.insert(0, Blocker())  # type: ignore[arg-type]


def same(mine: Any, want: list[Any], exactly: bool = True) -> bool:
    found = [leaf for leaf in pytree.tree_leaves(mine) if isinstance(leaf, torch.Tensor)]
    assert len(found) == len(want)
    close = torch.equal if exactly else lambda a, b: torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    return all(close(a, b) and a.dtype == b.dtype for a, b in zip(found, want, strict=True))


for number in range(len(list(folder.glob("*.facts")))):
    facts = torch.load(folder / f"{number}.facts", weights_only=True)
    inc = kcompile.load(folder / f"{number}.kcompile")
    inc.policy = "incremental"
    image, patches, positions = facts["image"], facts["patches"], facts["positions"]
    assert same(inc.materialize(image), facts["before"])
    got = inc.forward_patches(patches, positions)
    assert same(got, facts["got"])
    kinds = str(pytree.tree_map(lambda leaf: None if isinstance(leaf, torch.Tensor) else leaf, got))
    assert kinds == facts["structure"], (kinds, facts["structure"])
    if image.dtype.itemsize >= 4:
        assert same(inc(image), facts["plain"], exactly=False)
    assert str(inc.plan) == facts["plan"]
    assert inc.front.code == facts["front"]
    assert same(pickle.loads(pickle.dumps(got)), facts["got"])
    checked = kcompile.verify(inc, image, 8)
    assert checked.ok or checked.void or image.dtype.itemsize < 4, checked  # halves: tests/runtime/test_kinds.py
    if facts["map"]:
        heat = kcompile.occlusion(inc, image[0], stride=4)
        assert heat.complete
    inc.save(folder / "again.kcompile")
    again = kcompile.load(folder / "again.kcompile")
    again.policy = "incremental"
    assert same(again.materialize(image), facts["before"])
    assert same(again.forward_patches(patches, positions), facts["got"])
    print(f"{facts['name']}: fine")
assert "kcompile.passes" not in sys.modules
