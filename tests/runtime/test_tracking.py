"""The drop-in: inc(images) is model(images), whichever way its rows are inferred."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import kcompile
from tests.support.equivalence import PATCH, SHAPE, compiled, incremental, noise
from tests.support.networks import Residual, conv, conv_bn_relu, ready
from tests.support.spying import Rows, counted_rows


@pytest.fixture(scope="module")
def module() -> kcompile.IncrementalModule:
    torch.manual_seed(3)
    return compiled()


@pytest.fixture
def inc(module: kcompile.IncrementalModule) -> kcompile.IncrementalModule:
    """The small network, tracking, without a base."""
    module.drop_base()
    return module.track_base()


def occluded(images: Tensor, positions: list[tuple[int, int]], value: float = 4.0) -> Tensor:
    """Row k * N + n is image n with a patch at position k, as Captum makes them."""
    rows = images.repeat(len(positions), 1, 1, 1)
    for k, (top, left) in enumerate(positions):
        rows[k * len(images) : (k + 1) * len(images), :, top : top + PATCH[0], left : left + PATCH[1]] = value
    return rows


def same_as_model(inc: kcompile.IncrementalModule, images: Tensor) -> Rows:
    """Call both, compare, and tell how the rows were inferred."""
    with torch.no_grad():
        want = inc.model(images)
        with counted_rows(inc.model) as rows:
            got = inc(images)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    return rows


GRID = [(top, left) for top in range(0, SHAPE[1], 4) for left in range(0, SHAPE[2], 4)]


@pytest.mark.parametrize("per_call", [1, 7, 64])
@pytest.mark.parametrize("count", [1, 3])
def test_a_loop_as_captums(inc: kcompile.IncrementalModule, count: int, per_call: int) -> None:
    """First the images themselves, then all windows (the last ones cropped), the last call with fewer of them."""
    images = noise((count, *SHAPE))
    assert same_as_model(inc, images) == Rows()
    for first in range(0, len(GRID), per_call):
        rows = occluded(images, GRID[first : first + per_call])
        assert same_as_model(inc, rows) == Rows(incremental=len(rows))


def test_a_second_image_becomes_the_base(inc: kcompile.IncrementalModule) -> None:
    for _ in range(2):
        image = noise((1, *SHAPE))
        same_as_model(inc, image)
        assert same_as_model(inc, occluded(image, GRID[:3])).incremental == 3


def test_rows_are_told_apart_and_put_back_in_order(inc: kcompile.IncrementalModule) -> None:
    """Equal to the base, patched, and neither, mixed; the last run in full in one batch and don't replace the base."""
    images = noise((2, *SHAPE))
    inc(images)
    rows = torch.cat([noise((1, *SHAPE)), images[1:], occluded(images, GRID[10:12]), images[:1], noise((1, *SHAPE))])
    # rows 0 … 7 against bases 0, 1, 0, 1, …: row 6 is compared with base 0
    assert same_as_model(inc, rows) == Rows(incremental=4, full=2)
    assert same_as_model(inc, images) == Rows()
    inc(images.flip(0))  # no row is recognised: the new bases
    assert same_as_model(inc, torch.cat([images.flip(0), occluded(images.flip(0), GRID[:1])])).incremental == 2


def test_a_larger_change_in_between(inc: kcompile.IncrementalModule) -> None:
    """It becomes the base; small changes of the image before return to that one."""
    image = noise((1, *SHAPE))
    inc(image)
    for _ in range(2):
        assert same_as_model(inc, image * 1.5) == Rows()
        assert same_as_model(inc, occluded(image, GRID[:3])) == Rows(incremental=3)
    assert same_as_model(inc, occluded(image * 1.5, GRID[:3])) == Rows(incremental=3)
    assert same_as_model(inc, occluded(image, GRID[:3])) == Rows(incremental=3)


def test_materialize_alone_recognises_and_keeps_its_base(inc: kcompile.IncrementalModule) -> None:
    """As for MONAI, which never calls the model with the base image; ragged batches."""
    inc.track_base(False)
    image = noise(SHAPE)
    rows = occluded(image[None], GRID[:7])
    assert same_as_model(inc, rows) == Rows(full=7)
    inc.materialize(image)
    for batch in rows.split(3):
        assert same_as_model(inc, batch) == Rows(incremental=len(batch))
    assert same_as_model(inc, noise((5, *SHAPE))) == Rows(full=5)
    assert same_as_model(inc, image.repeat(4, 1, 1, 1)) == Rows()
    assert same_as_model(inc, rows) == Rows(incremental=7)


def test_patches_larger_than_compiled_run_in_full(inc: kcompile.IncrementalModule) -> None:
    image = noise((1, *SHAPE))
    inc(image)
    rows = occluded(image, GRID[20:22])
    rows[1, 0, 0, 0] += 1
    assert same_as_model(inc, rows) == Rows(incremental=1, full=1)


def test_policy_auto_leaves_a_call_of_few_rows_to_full_inference(inc: kcompile.IncrementalModule) -> None:
    """Recognised rows run as the executor chooses; forced to full, none is incremental, and results agree."""
    image = noise((1, *SHAPE))
    inc(image)
    inc.policy = "full"
    try:
        assert same_as_model(inc, occluded(image, GRID[:4])) == Rows()
    finally:
        del inc.policy


def test_outputs_are_the_callers_own(inc: kcompile.IncrementalModule) -> None:
    """Writing into what a call returned, or into the images, changes no later call."""
    image = noise((1, *SHAPE))
    with torch.no_grad():
        want = inc.model(image)
    given = image.clone()
    inc(given).zero_()
    given.zero_()
    assert same_as_model(inc, image) == Rows()
    inc(image).zero_()
    torch.testing.assert_close(inc(image), want, rtol=1e-4, atol=1e-4)
    inc.materialize(image).zero_()
    torch.testing.assert_close(inc(image), want, rtol=1e-4, atol=1e-4)


def test_values_that_are_not_numbers(inc: kcompile.IncrementalModule) -> None:
    image = noise((1, *SHAPE))
    inc(image)
    rows = occluded(image, GRID[20:23], float("nan"))
    rows[1, :, 5, 5] = float("inf")
    for batch in (rows, rows[1:2]):
        got, want = inc(batch), inc.model(batch).detach()
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4, equal_nan=True)
        assert want.isnan().any()
    assert same_as_model(inc, image) == Rows()
    inc.drop_base()
    inc(rows[:1])
    assert inc.base_output is None  # never a base


class TestTheModelItself:
    """What isn't plain inference, or not of the compiled model, is left to the original module."""

    @pytest.fixture
    def rows(self, inc: kcompile.IncrementalModule) -> Tensor:
        """Rows that would be recognised."""
        image = noise((1, *SHAPE))
        inc(image)
        rows = occluded(image, GRID[:3])
        assert same_as_model(inc, rows).incremental == 3
        return rows

    def test_gradients_of_the_images(self, inc: kcompile.IncrementalModule, rows: Tensor) -> None:
        for leaf in (a := rows.clone(), b := rows.clone()):
            leaf.requires_grad_()
        with counted_rows(inc.model) as counted:
            inc(a).square().sum().backward()
        assert counted == Rows(full=3)
        inc.model(b).square().sum().backward()
        torch.testing.assert_close(a.grad, b.grad)
        with torch.no_grad(), counted_rows(inc.model) as counted:
            inc(a)
        assert counted == Rows(incremental=3)

    def test_training_mode(self, inc: kcompile.IncrementalModule, rows: Tensor) -> None:
        norm = next(part for part in inc.model.modules() if isinstance(part, nn.BatchNorm2d))
        for switch in (inc, inc.model, norm):
            copied = copy.deepcopy(inc.model).state_dict()
            with torch.no_grad():
                switch.train()
                want, state = inc.model(rows), copy.deepcopy(inc.model.state_dict())
                inc.model.load_state_dict(copied)
                got = inc(rows)
                switch.eval()
            torch.testing.assert_close(got, want)
            torch.testing.assert_close(dict(inc.model.state_dict()), dict(state))
            inc.model.load_state_dict(copied)

    def test_other_shapes_and_types(self, inc: kcompile.IncrementalModule, rows: Tensor) -> None:
        assert same_as_model(inc, noise((2, 3, 20, 20))) == Rows(full=2)
        with pytest.raises(RuntimeError):
            inc(rows.double())
        with pytest.raises(RuntimeError):
            inc(rows[:, :1])
        assert inc(rows[:0]).shape == (0, 5)

    def test_autocast(self, inc: kcompile.IncrementalModule, rows: Tensor) -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), counted_rows(inc.model) as counted:
            got = inc(rows)
            assert got.dtype == torch.bfloat16
        assert counted == Rows(full=3)

    def test_other_arguments(self, inc: kcompile.IncrementalModule, rows: Tensor) -> None:
        with pytest.raises(TypeError):
            inc(rows, rows)
        with pytest.raises(TypeError):
            inc(rows, flag=True)

    def test_forward_hooks_see_all_rows(self, inc: kcompile.IncrementalModule, rows: Tensor) -> None:
        """Layer attributions hook into the model's parts."""
        seen: list[int] = []
        part = next(part for part in inc.model.modules() if isinstance(part, nn.Conv2d))
        handle = part.register_forward_hook(lambda _module, _args, output: seen.append(len(output)))
        inc(rows)
        handle.remove()
        assert seen == [3]
        assert same_as_model(inc, rows).incremental == 3

    def test_under_transforms(self, inc: kcompile.IncrementalModule, rows: Tensor) -> None:
        with torch.no_grad():
            torch.testing.assert_close(torch.func.vmap(lambda row: inc(row[None])[0])(rows), inc.model(rows))
            with warnings.catch_warnings(action="ignore"):
                traced = torch.jit.trace(inc, rows, check_trace=False)
            other = noise((3, *SHAPE))
            torch.testing.assert_close(traced(other), inc.model(other))


@pytest.mark.parametrize("through_data", [False, True], ids=["in place", "through .data"])
def test_changed_weights_drop_the_base(through_data: bool) -> None:
    inc = compiled().track_base()
    image = noise((1, *SHAPE))
    inc(image)
    weight = next(inc.model.parameters())
    with torch.no_grad():
        (weight.data if through_data else weight).mul_(1.5)
    assert same_as_model(inc, noise((1, *SHAPE))) == Rows(full=1)
    assert inc.base_output is None
    assert same_as_model(inc, occluded(image, GRID[:2])) == Rows(full=2)
    inc.refresh()
    same_as_model(inc, image)
    assert same_as_model(inc, occluded(image, GRID[:2])) == Rows(incremental=2)  # refresh keeps tracking


def test_copies_and_moves_start_without_a_base() -> None:
    inc = compiled().track_base()
    image = noise((1, *SHAPE))
    inc(image)
    for twin in (copy.deepcopy(inc), pickle.loads(pickle.dumps(inc)), inc.to("cpu")):
        assert twin.base_output is None
        same_as_model(twin, image)
        assert same_as_model(twin, occluded(image, GRID[:2])) == Rows(incremental=2)


def test_float64() -> None:
    inc = compiled(torch.float64).track_base()
    image = noise((2, *SHAPE), torch.float64)
    inc(image)
    assert same_as_model(inc, occluded(image, GRID[3:7])) == Rows(incremental=8)


class Structured(nn.Module):
    def __init__(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.head, self.make = nn.Sequential(conv_bn_relu(3, 6), Residual(6, 8)), nn.Linear(8, 5), make

    def forward(self, x: Tensor) -> Any:
        y = self.body(x)
        return self.make(y, self.head(y.mean((2, 3))))


STRUCTURES: dict[str, tuple[bool, Callable[[Tensor, Tensor], Any]]] = {
    "dict": (True, lambda y, s: {"out": s, "map": y}),
    "nested": (True, lambda y, s: {"a": (s, [y, {"b": s.argmax(1)}])}),
    "None and a name": (True, lambda y, s: (s, None, "name")),
    "the same twice": (True, lambda y, s: (s, s)),
    "a number": (False, lambda y, s: (s, 3)),
    "a constant tensor": (False, lambda y, s: (s, torch.arange(4.0))),
}


@pytest.mark.parametrize(("merged", "make"), STRUCTURES.values(), ids=STRUCTURES)
def test_structures(merged: bool, make: Callable[[Tensor, Tensor], Any]) -> None:
    """Leaves with a row per image are put together; with any other leaf the original module runs."""
    inc = incremental(ready(Structured(make), SHAPE, torch.float32), SHAPE, PATCH).track_base()
    image = noise((1, *SHAPE))
    rows = torch.cat([occluded(image, GRID[:2]), noise((1, *SHAPE)), image])
    inc(image)
    with torch.no_grad():
        want = inc.model(rows)
        with counted_rows(inc.model) as counted:
            got = inc(rows)
    assert pytree.tree_structure(got) == pytree.tree_structure(want)
    for mine, leaf in zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True):
        if isinstance(leaf, Tensor):
            torch.testing.assert_close(mine, leaf, rtol=1e-4, atol=1e-4)
        else:
            assert mine == leaf
    assert counted == (Rows(incremental=2, full=1) if merged else Rows(full=4))


def test_images_of_one_and_three_axes() -> None:
    deep = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 3, padding=1))
    line = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 2, 3, padding=1))
    for model, shape, patch in ((deep, (1, 7, 8, 9), (3, 2, 2)), (line, (2, 30), (4,))):
        inc = incremental(model, shape, patch).track_base()
        image = noise((2, *shape))
        inc(image)
        rows = image.repeat(2, *[1] * len(shape))
        for row in range(4):
            rows[(row, slice(None), *[slice(row, row + p) for p in patch])] = 5.0
        assert same_as_model(inc, rows) == Rows(incremental=4)


def test_a_convolution_alone() -> None:
    """Dense outputs: a map per row."""
    inc = incremental(conv(3, 4), SHAPE, PATCH).track_base()
    image = noise((1, *SHAPE))
    inc(image)
    assert same_as_model(inc, occluded(image, GRID[:5])) == Rows(incremental=5)
