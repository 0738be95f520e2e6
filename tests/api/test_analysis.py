"""`kcompile.analyze`: Krypton's figures, own boxes against brute force, the table, bad input."""

from dataclasses import FrozenInstanceError
from functools import cache

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import kcompile
from kcompile.analysis import Analysis, measure, trace
from kcompile.core.axis_map import Everything, Identity, Sliding
from kcompile.core.interval import Interval
from kcompile.core.plan import Placement
from kcompile.extents import krypton_extents, output_box, own_boxes
from kcompile.grid import grid
from kcompile.passes.propagate import propagate

# Krypton's figure 3: convolutions and fully connected layers, patches of 4, 8, 16 and 32 pixels at 224x224.
FIGURE_3 = {
    "vgg16": (8.59, 7.85, 6.52, 5.05),
    "resnet18": (2.38, 2.33, 2.19, 1.99),
    "resnet50": (2.26, 2.11, 2.07, 1.91),
    "densenet121": (2.07, 2.06, 1.99, 1.86),
    "alexnet": (2.86, 2.81, 2.38, 1.99),
}
# Convolutions alone, computed by a separate program: (network, patch): (Krypton's worst case, own boxes at stride 4).
CONVOLUTIONS = {
    ("vgg16", 8): (8.31, 11.74),
    ("vgg16", 16): (6.82, 9.78),
    ("vgg16", 32): (5.21, 6.96),
    ("resnet18", 8): (2.33, 3.02),
    ("resnet18", 16): (2.19, 2.84),
    ("resnet18", 32): (1.99, 2.49),
    ("inception_v3", 8): (1.82, 1.97),
    ("inception_v3", 16): (1.80, 1.94),
    ("inception_v3", 32): (1.74, 1.86),
    ("googlenet", 8): (2.81, 4.41),
    ("googlenet", 16): (2.75, 4.01),
    ("googlenet", 32): (2.47, 3.36),
    ("resnet50", 16): (2.07, 2.69),
    ("densenet121", 16): (1.99, 2.32),
    ("mobilenet_v2", 16): (1.82, 2.22),
    ("alexnet", 16): (2.71, 4.62),
}
NETS = sorted({*FIGURE_3, *(net for net, _ in CONVOLUTIONS)})


def size(net: str) -> int:
    return 299 if net == "inception_v3" else 224


@cache
def graph(net: str) -> torch.fx.GraphModule:
    options = {"init_weights": False} if net in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        model = torchvision.models.get_model(net, **options).eval()
    return trace(model, (3, size(net), size(net)))


@cache
def analysis(net: str, patch: int) -> Analysis:
    return measure(graph(net), (3, size(net), size(net)), (patch, patch))


class Residual(nn.Module):
    """A convolution with a strided shortcut, a pool, another convolution and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Conv2d(1, 2, 3, stride=2, padding=1)
        self.short = nn.Conv2d(1, 2, 1, stride=2)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.wide = nn.Conv2d(2, 3, 3, padding=1)
        self.head = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.wide(self.pool(torch.relu(self.main(x) + self.short(x))))
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize(
    ("net", "patch", "published"),
    [(net, patch, value) for net, row in FIGURE_3.items() for patch, value in zip((4, 8, 16, 32), row, strict=True)],
)
def test_the_worst_case_gives_the_published_speedup(net: str, patch: int, published: float) -> None:
    assert analysis(net, patch).total.krypton_speedup == pytest.approx(published, abs=0.0055)


@pytest.mark.parametrize(("net", "patch"), CONVOLUTIONS)
def test_convolutions_alone(net: str, patch: int) -> None:
    work = analysis(net, patch).convolutions
    assert (work.krypton_speedup, work.own_speedup) == pytest.approx(CONVOLUTIONS[net, patch], abs=0.0055)


@pytest.mark.parametrize("net", NETS)
def test_full_inference_agrees_with_the_counts_of_torchvision(net: str) -> None:
    published = torchvision.models.get_model_weights(net).DEFAULT.meta["_ops"]  # in units of 1e9
    assert analysis(net, 16).total.full / 1e9 == pytest.approx(published, abs=0.0006)


@pytest.mark.parametrize("net", ["resnet18", "googlenet", "mobilenet_v2", "alexnet"])
def test_no_position_exceeds_the_worst_case(net: str) -> None:
    shape, patch = (3, 224, 224), (16, 16)
    found = propagate(graph(net), shape, patch)
    worst = krypton_extents(found, patch)
    own = own_boxes(found, patch, grid(shape[1:], patch, 3).reshape(-1, 2))
    with_region = [info for info in found.nodes.values() if info.region is not None]
    assert len(with_region) > 10
    for info in with_region:
        largest = [int(axis.size.max()) for axis in own[info.region].axes]
        assert all(a <= b for a, b in zip(largest, worst[info.node], strict=True)), info.node.name


def changed_share(layer: nn.Module, inside: nn.Module, image: int, patch: int, stride: int) -> float:
    """Mean share of a layer's outputs that a patch changes, by running the module on patched images."""
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, out: seen.append(out))
    base = torch.zeros(1, 1, image, image, dtype=torch.float64)
    spots = [(r, c) for r in range(0, image - patch + 1, stride) for c in range(0, image - patch + 1, stride)]
    patched = base.repeat(len(spots), 1, 1, 1)
    for row, (r, c) in enumerate(spots):
        patched[row, :, r : r + patch, c : c + patch] = 1.0
    with torch.no_grad():
        inside(base), inside(patched)
    handle.remove()
    change = (seen[1] - seen[0]).abs()
    return float((change > 1e-9 * change.max()).any(dim=1).double().mean())  # rounding depends on the batch


@pytest.mark.parametrize(("patch", "stride"), [(3, 1), (5, 2), (19, 1)])
def test_own_boxes_are_what_really_changes(patch: int, stride: int) -> None:
    model = Residual().double().eval()
    for parameter in model.parameters():
        parameter.data.abs_()  # nothing cancels out
    found = measure(trace(model, (1, 19, 19)), (1, 19, 19), (patch, patch), stride)
    for name in ("main", "short", "wide"):
        layer = next(layer for layer in found.layers if layer.module == name)
        expected = changed_share(model.get_submodule(name), model, 19, patch, stride)
        assert 0 < expected <= 1
        assert layer.work.own / layer.work.full == pytest.approx(expected)
        assert layer.work.own_redundancy == pytest.approx(1 - expected)


@pytest.mark.parametrize(
    ("axis_map", "box", "expected"),
    [
        (Sliding(3, 1, 1, 1, 20, 20), (8, 12), (7, 13)),  # grows by K - 1
        (Sliding(3, 2, 1, 1, 20, 10), (8, 12), (4, 7)),  # ceil((4 + 2) / 2)
        (Sliding(2, 2, 0, 1, 20, 10), (8, 12), (4, 7)),  # ceil((4 + 1) / 2) = 3, although 2 change
        (Sliding(3, 1, 2, 2, 20, 20), (8, 12), (6, 14)),  # dilation 2: a span of 5
        (Sliding(3, 1, 1, 1, 20, 20), (2, 20), (0, 20)),  # at most the output's width, moved inside (eq. 33)
        (Sliding(2, 2, 0, 1, 20, 10), (17, 20), (8, 10)),
        (Identity(20), (8, 12), (8, 12)),
        (Everything(20, 5), (8, 12), (0, 5)),
    ],
)
def test_one_axis_of_the_worst_case(axis_map: Sliding, box: tuple[int, int], expected: tuple[int, int]) -> None:
    moved = output_box(axis_map, Interval.of(*box))
    assert (int(moved.lo), int(moved.hi)) == expected


def test_layers_count_by_their_regions_also_where_they_run_dense() -> None:
    found = analysis("vgg16", 16)
    pool = next(layer for layer in found.layers if layer.module == "features.30")
    assert pool.placement is Placement.DENSE
    assert "of the map" in pool.reason
    assert pool.krypton_extent == (7, 7)
    assert max(pool.own_extent) < 6


def test_fully_connected_layers_count_in_full() -> None:
    found = analysis("vgg16", 16)
    heads = [layer for layer in found.layers if layer.op == "aten.linear.default"]
    assert len(heads) == 3
    assert all(layer.work.full == layer.work.krypton == layer.work.own == layer.work.placed for layer in heads)
    assert found.total.full - found.convolutions.full == sum(layer.work.full for layer in heads)


def test_what_follows_a_refusal_counts_in_full() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softmax(dim=2), nn.Conv2d(4, 4, 3)).eval()
    first, _, last = (layer for layer in kcompile.analyze(model, (3, 32, 32), 4).layers if layer.op != "input")
    assert first.work.own < first.work.full / 10
    assert last.work.own == last.work.krypton == last.work.full == last.work.placed
    assert last.own_extent == last.krypton_extent == (28, 28)
    assert "softmax" in last.reason


def test_placed_work_lies_between_own_boxes_and_full_inference() -> None:
    for net in ("resnet18", "alexnet"):
        work = analysis(net, 32).total
        assert work.own <= work.placed < work.full
        assert work.own < work.krypton


def test_the_map_has_the_positions_of_an_occlusion_map() -> None:
    assert analysis("resnet18", 16).positions == 53 * 53
    assert analysis("resnet18", 16).stride == 4


def test_a_compiled_module_brings_its_own_shapes() -> None:
    model = Residual().eval()
    inc = kcompile.incrementalize(model, (1, 1, 24, 20), (3, 5))
    found = kcompile.analyze(inc)
    assert found == kcompile.analyze(model, (1, 1, 24, 20), (3, 5))
    assert (found.input_shape, found.patch_shape) == ((1, 24, 20), (3, 5))
    assert [layer.placement for layer in found.layers] == [layer.placement for layer in inc.plan.layers]
    assert kcompile.analyze(inc, patch_shape=2) == kcompile.analyze(model, (1, 24, 20), 2)
    assert kcompile.analyze(inc, (1, 30, 20)) == kcompile.analyze(model, (1, 30, 20), (3, 5))


def test_the_axes_are_not_swapped() -> None:
    model = nn.Conv2d(1, 1, (3, 1), padding=(1, 0)).eval()
    layer = kcompile.analyze(model, (1, 24, 20), (3, 5), stride=24).layers[-1]  # one position, in the corner
    assert layer.krypton_extent == (5, 5)
    assert layer.own_extent == (4.0, 5.0)
    assert layer.work.own == 4 * 5 * 3


def test_the_table_names_layers_and_totals() -> None:
    text = str(analysis("resnet18", 16))
    line = next(line for line in text.splitlines() if line.startswith("layer2.0.conv1 "))
    assert line.split() == [
        "layer2.0.conv1", "conv2d", "128x28x28", "57.80", "incremental", "9x9", "8.0x8.0", "9.68", "12.14",
    ]  # fmt: skip
    assert "relu" not in text
    assert "speedup 2.19 (Krypton's worst case)" in text


def test_results_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        analysis("resnet18", 16).stride = 2  # type: ignore[misc]


def test_a_model_without_weights_has_nothing_to_save() -> None:
    work = kcompile.analyze(nn.MaxPool2d(2).eval(), (3, 16, 16), 4).total
    assert (work.full, work.krypton_speedup, work.own_speedup, work.own_redundancy) == (0, 1.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "input_shape is missing"),
        ({"input_shape": (3, 32)}, "input_shape is"),
        ({"input_shape": (3, 32, 32), "patch_shape": 33}, "patch_shape is"),
        ({"input_shape": (3, 32, 32), "patch_shape": 0}, "patch_shape is"),
        ({"input_shape": (3, 32, 32), "stride": 0}, "stride is 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(kcompile.InputError, match=message):
        kcompile.analyze(nn.Conv2d(3, 3, 3).eval(), **arguments)


def test_training_mode_is_refused() -> None:
    with pytest.raises(kcompile.ModelModeError, match="training mode"):
        kcompile.analyze(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)), (3, 32, 32))


def test_weights_do_not_matter(seed: int) -> None:
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 5, stride=2)).eval()
    before = kcompile.analyze(small, (3, 32, 32), 8)
    for parameter in small.parameters():
        parameter.data.zero_()
    assert kcompile.analyze(small, (3, 32, 32), 8) == before
    assert np.isclose(before.total.own, sum(layer.work.own for layer in before.layers))
