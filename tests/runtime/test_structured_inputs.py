"""Models with structured inputs, tables that serve all images, pairs of images; their copies and casts."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kcompile
from kcompile.runtime.inputs import TensorInput
from tests.support.equivalence import assert_equivalent, noise, refused
from tests.support.running import incremental_wherever_possible, paste

SHAPE, PATCH = (3, 20, 23), (5, 4)
POSITIONS = np.array([[0, 0], [15, 19], [-2, 7], [8, 20], [9, 9]])


class Facts(NamedTuple):
    """A structured argument."""

    known: Tensor
    table: Tensor


class Structured(nn.Module):
    """An image, what is known of it, and a table that serves all images; the table alone is an output, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.film = nn.Conv2d(3, 4, 3), nn.Linear(5, 4)

    def forward(self, x: Tensor, facts: Facts) -> dict[str, Tensor]:
        y = (self.stem(x) * self.film(facts.known)[:, :, None, None]).relu().mean((2, 3))
        return {"logits": y @ facts.table.t(), "table": facts.table * 2}


def structured(rows: int, table: int = 2) -> tuple[Tensor, Facts]:
    """Arguments; the table has as many rows as there are images in the examples, by chance."""
    return noise((rows, *SHAPE)), Facts(noise((rows, 5)), noise((table, 4)))


def check_structured(inc: kcompile.IncrementalModule, model: nn.Module) -> None:
    """Three queries of two bases against the plain model; another table each time."""
    for _ in range(2):
        image, facts = structured(2)
        before = inc.materialize(image, facts)
        index, patches = np.array([1, 0, 1]), noise((3, 3, *PATCH), size=3.0)
        got = inc.forward_patches(patches, POSITIONS[:3], base_index=index)
        with torch.no_grad():
            full = model(paste(image[index], patches, POSITIONS[:3]), Facts(facts.known[index], facts.table))
        torch.testing.assert_close(got.pop("table"), full.pop("table"))
        assert_equivalent(got, full, {"logits": before["logits"][index]}, f"seed {torch.initial_seed()}")


@pytest.mark.parametrize("rows", [1, 2])
def test_as_many_rows_by_chance(rows: int) -> None:
    """What is in one row of a table reaches all images' outputs: it belongs to none of them."""
    model = Structured().eval()
    table = rows  # as many as images
    with incremental_wherever_possible():
        inc = kcompile.incrementalize(model, patch_shape=PATCH, example_inputs=structured(rows, table))
    assert [leaf.rows for leaf in inc.inputs.leaves if isinstance(leaf, TensorInput)] == [True, True, False]
    if rows == 2:
        check_structured(inc, model)


@pytest.mark.parametrize("again", ["pickle", "deepcopy", "save"])
def test_copies_take_other_tables(again: str, tmp_path: Path) -> None:
    """What is computed from tensors without rows isn't frozen; a class of the model's own may have a stand-in."""
    model = Structured().eval()
    with incremental_wherever_possible():
        inc = kcompile.incrementalize(model, patch_shape=PATCH, example_inputs=structured(2))
    check_structured(inc, model)
    if again == "save":
        inc.save(tmp_path / "module")
        copied = kcompile.load(tmp_path / "module")
    else:
        copied = pickle.loads(pickle.dumps(inc)) if again == "pickle" else copy.deepcopy(inc)
    check_structured(copied, model)


def test_casts() -> None:
    """The example follows the model."""
    model = Structured().eval()
    inc = kcompile.incrementalize(model, patch_shape=PATCH, example_inputs=structured(2)).double()
    image, facts = structured(1)
    before = inc.materialize(image.double(), Facts(facts.known.double(), facts.table.double()))
    assert before["logits"].dtype == torch.float64


class Sum(nn.Module):
    """Two images, joined along the batch and taken apart again."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        one, two = self.body(torch.cat([x, y], 0)).relu().chunk(2)
        return (one * 2 + two).mean((2, 3))


@pytest.mark.parametrize("patched", [0, 1])
def test_siamese(patched: int) -> None:
    """One tensor twice in the example; the batch is folded."""
    model, image = Sum().eval(), noise((2, *SHAPE))
    inc = kcompile.incrementalize(model, patch_shape=PATCH, example_inputs=(image, image), patched_input=patched)
    assert inc.inputs.image == patched
    pair = [noise((2, *SHAPE)), noise((2, *SHAPE))]
    before, index = inc.materialize(*pair), np.array([0, 1, 1, 0, 1])
    patches = noise((5, 3, *PATCH), size=3.0)
    got = inc.forward_patches(patches, POSITIONS, base_index=index)
    full = [images[index] for images in pair]
    full[patched] = paste(full[patched], patches, POSITIONS)
    with torch.no_grad():
        assert_equivalent(got, model(*full), before[index], f"seed {torch.initial_seed()}")


def test_keys_in_any_order() -> None:
    """A dict is a dict."""
    model = nn.Module()
    model.forward = lambda call: (call["b"] * call["a"]).mean((2, 3))  # type: ignore[method-assign]
    example = {"b": noise((1, *SHAPE)), "a": noise((1, 3, 1, 1))}
    inc = kcompile.incrementalize(model, patch_shape=PATCH, example_inputs=(example,), patched_input=(0, "b"))
    again = {"a": example["a"], "b": example["b"]}
    torch.testing.assert_close(inc.materialize(again), inc.materialize(example))


class Mixing(nn.Module):
    """What is given beside the images is mixed over its rows."""

    def __init__(self, mix: Any) -> None:
        super().__init__()
        self.body, self.mix = nn.Conv2d(3, 5, 3), mix

    def forward(self, x: Tensor, facts: Tensor) -> Tensor:
        return self.body(x).mean((2, 3)) + self.mix(facts)


@pytest.mark.parametrize("mix", [lambda f: f.mean(0, keepdim=True), lambda f: f[:1], lambda f: f[1]])
def test_a_table_that_is_mixed(mix: Any) -> None:
    """It belongs to no image."""
    model = Mixing(mix).eval()
    inc = kcompile.incrementalize(model, patch_shape=PATCH, example_inputs=(noise((2, *SHAPE)), noise((2, 5))))
    image, facts = noise((1, *SHAPE)), noise((2, 5))
    before = inc.materialize(image, facts)
    got = inc.forward_patches(3.0, POSITIONS)
    full = model(paste(image.expand(5, -1, -1, -1), torch.full((5, 3, *PATCH), 3.0), POSITIONS), facts)
    assert_equivalent(got, full.detach(), before)


def test_rows_that_are_exchanged() -> None:
    """No image's result may depend on another's facts."""
    model = Mixing(lambda f: f.flip(0)).eval()
    with refused(kcompile.CaptureError, "could not trace"):
        kcompile.incrementalize(model, patch_shape=PATCH, example_inputs=(noise((2, *SHAPE)), noise((2, 5))))


class Ordered(nn.Module):
    """Two images whose names are not in the order of the alphabet."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor, f: Tensor) -> Tensor:
        return self.one(x).mean((2, 3)) * 2 + self.two(f).relu().mean((2, 3))


@pytest.mark.parametrize("kind", ["module", "exported", "symbolic trace"])
def test_names_in_another_order(kind: str) -> None:
    """Programs take their inputs in the signature's order."""
    plain = Ordered().eval()
    pair = {"f": noise((2, *SHAPE)), "x": noise((2, *SHAPE))}
    given: Any = plain
    if kind == "exported":
        rows = {name: {0: torch.export.Dim.DYNAMIC} for name in ("x", "f")}
        given = torch.export.export(plain, (), {"x": pair["x"], "f": pair["f"]}, dynamic_shapes=rows, strict=False)
    elif kind == "symbolic trace":
        given = torch.fx.symbolic_trace(plain)
    inc = kcompile.incrementalize(given, patch_shape=PATCH, example_inputs=pair, patched_input="x")
    before = inc.materialize(**pair)
    torch.testing.assert_close(before, plain(**pair).detach())
    got = inc.forward_patches(3.0, POSITIONS)
    full = paste(pair["x"][:1].expand(5, -1, -1, -1), torch.full((5, 3, *PATCH), 3.0), POSITIONS)
    with torch.no_grad():
        assert_equivalent(got, plain(full, pair["f"][:1].expand(5, -1, -1, -1)), before[:1])


def test_a_base_that_failed_is_none() -> None:
    """The graphs hold the new table already: the old base is dropped."""
    inc = kcompile.incrementalize(Structured().eval(), patch_shape=PATCH, example_inputs=structured(2))
    inc.materialize(*structured(1))
    with mock.patch.object(inc, "_materialized", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        inc.materialize(*structured(1))
    with refused(kcompile.NotMaterializedError, "materialize"):
        inc.forward_patches(0.0, POSITIONS)


@dataclass
class Call:
    """A model's own class as its input."""

    image: Tensor
    facts: Tensor


def test_a_dataclass_as_input() -> None:
    """PyTorch must know it; the path may name a field."""
    torch.export.register_dataclass(Call)
    model = nn.Module()
    model.forward = lambda call: call.image.mean((2, 3)) * call.facts  # type: ignore[method-assign]
    call = Call(noise((2, *SHAPE)), noise((2, 3)))
    inc = kcompile.incrementalize(model, patch_shape=PATCH, example_inputs=(call,), patched_input=(0, "image"))
    torch.testing.assert_close(inc.materialize(call), call.image.mean((2, 3)) * call.facts)


class Averaged(nn.Module):
    """Test-time augmentation: the image and its mirror image in one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.body(torch.cat([x, x.flip(3)], 0))
        one, two = maps.chunk(2)
        return self.head(maps.amax((2, 3))).view(2, -1, 5).mean(0) + (one * two).mean((1, 2, 3))[:, None]


def test_a_batch_that_is_doubled(tmp_path: Path) -> None:
    """Folded and unfolded, with the batch not in front; such a module can be saved."""
    model = Averaged().eval()
    inc = kcompile.incrementalize(model, SHAPE, PATCH)
    inc.save(tmp_path / "module")
    for module in (inc, kcompile.load(tmp_path / "module")):
        image, patches = noise((1, *SHAPE)), noise((5, 3, *PATCH), size=3.0)
        before = module.materialize(image)
        got = module.forward_patches(patches, POSITIONS)
        with torch.no_grad():
            full = model(paste(image.expand(5, -1, -1, -1), patches, POSITIONS))
        assert_equivalent(got, full, before)
