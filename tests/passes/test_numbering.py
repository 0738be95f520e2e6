"""Value numbering: equal for all patches means one number, different for one patch means two."""

from __future__ import annotations

from functools import reduce
from itertools import combinations, product

import numpy as np
import pytest
import torch

from kcompile.core.axis_map import AxisMap, Everything, Identity, Sliding
from kcompile.core.interval import Interval
from kcompile.core.region import Region, evaluate
from kcompile.passes.numbering import RegionTable

IMAGE, PATCH = (9, 11), (3, 2)
Maps = tuple[AxisMap, ...]
SAME: Maps = (Identity(9), Identity(11))


def slide(kernel: tuple[int, int], stride: int = 1, image: tuple[int, int] = IMAGE) -> Maps:
    """A convolution's maps, padded by half its kernel."""
    return tuple(Sliding(k, stride, k // 2, 1, n, (n - 1) // stride + 1) for k, n in zip(kernel, image, strict=True))


def out_shape(maps: Maps) -> tuple[int, ...]:
    return tuple(m.out_size for m in maps)


def add(table: RegionTable, *sources: tuple[int, Maps]) -> int:
    return table.number(list(sources), out_shape(sources[0][1]))


def universe() -> Region:
    """Every patch of up to the patch shape inside the image."""
    axes = [
        [(lo, lo + n) for n in range(1, patch + 1) for lo in range(size - n + 1)]
        for size, patch in zip(IMAGE, PATCH, strict=True)
    ]
    boxes = np.array(list(product(*axes)))
    return Region.of(*(Interval.of(boxes[:, axis, 0], boxes[:, axis, 1]) for axis in range(2)))


def test_equal_regions_have_one_number() -> None:
    table = RegionTable(IMAGE, PATCH)
    three = add(table, (0, slide((3, 3))))
    assert add(table, (0, SAME)) == 0
    assert add(table, (0, slide((3, 3)))) == three != 0
    assert add(table, (three, SAME), (0, SAME)) == three, "the hull with something inside it"
    assert add(table, (three, slide((3, 3)))) == add(table, (0, slide((5, 5)))), "two 3x3 reach as far as one 5x5"
    assert add(table, (three, SAME), (three, SAME)) == three


def test_different_regions_have_different_numbers() -> None:
    table = RegionTable(IMAGE, PATCH)
    several = [slide((3, 3)), slide((3, 1)), slide((1, 3)), slide((5, 3)), slide((3, 3), 2), slide((1, 1), 2)]
    numbers = [add(table, (0, maps)) for maps in several]
    assert numbers == [1, 2, 3, 4, 5, 6]


def test_regions_of_tensors_of_different_sizes_are_different() -> None:
    """Even if no patch tells them apart: their boxes must lie inside different tensors."""
    table = RegionTable((8, 8), (1, 1))
    valid, longer = ((Sliding(8, 1, 0, 1, 8, 1),) * 2), ((Everything(8, 1),) * 2)
    assert add(table, (0, valid)) == add(table, (0, longer))
    assert add(table, (0, (Everything(8, 2),) * 2)) != add(table, (0, longer))
    padded = (Sliding(1, 1, 0, 1, 8, 9),) * 2  # a last cell that reads padding alone
    assert add(table, (0, padded)) != add(table, (0, (Sliding(1, 1, 0, 1, 8, 8),) * 2)) == 0


def test_different_for_a_single_patch_is_different() -> None:
    """Alike at each position but the last."""
    table = RegionTable(IMAGE, PATCH)
    whole, cut = Sliding(1, 1, 0, 1, 9, 9), Sliding(1, 1, 0, 1, 9, 8)
    assert add(table, (0, (cut, Identity(11)))) != add(table, (0, (whole, Identity(11))))


def test_a_hull_whose_parts_can_be_empty_on_one_axis_is_no_product() -> None:
    """Where the 7x1 part is empty on one axis it adds nothing on the other; a 7x3 layer does. They were one once."""
    table = RegionTable(IMAGE, (4, 4))
    tall, square, large = (add(table, (0, slide(kernel, 2))) for kernel in ((7, 1), (3, 3), (7, 3)))
    out = (Identity(5), Identity(6))
    hull = add(table, (tall, out), (square, out))
    assert hull != large
    assert add(table, (hull, out)) == hull
    after = add(table, (hull, slide((3, 3), 1, (5, 6))))
    assert after != add(table, (large, slide((3, 3), 1, (5, 6))))
    assert add(table, (hull, slide((3, 3), 1, (5, 6)))) == after


def test_a_strided_shortcut_is_inside_the_body() -> None:
    """In a residual block with stride, the sum has the body's region: nothing is to be gathered after it."""
    table = RegionTable(IMAGE, PATCH)
    body, shortcut = add(table, (0, slide((3, 3), 2))), add(table, (0, slide((1, 1), 2)))
    out = (Identity(5), Identity(6))
    assert add(table, (body, out), (shortcut, out)) == body != shortcut


@pytest.mark.parametrize("stride", [1, 2])
def test_one_number_means_equal_for_every_patch(stride: int, seed: int) -> None:
    """Whatever is asked for, the number that comes back stands for exactly this region; stride 2 makes joint hulls."""
    for _ in range(10):
        table = RegionTable(IMAGE, PATCH)
        asked: list[tuple[int, tuple[tuple[int, Maps], ...]]] = []
        first = [add(table, (0, random_maps(stride))) for _ in range(4)]
        size = table.defs[first[0]].shape
        for _ in range(12):
            sources = tuple((choice(first), random_maps(1, size)) for _ in range(ints(1, 2)))
            asked.append((add(table, *sources), sources))
            first.append(asked[-1][0])
        values = evaluate(table.defs, universe())
        for number, sources in asked:
            assert values[number] == reduce(Region.__or__, [values[i].through(maps) for i, maps in sources])


def test_two_numbers_mean_different_for_some_patch(seed: int) -> None:
    """Without strides no region is joint."""
    for _ in range(10):
        table, numbers = RegionTable(IMAGE, PATCH), [0]
        for _ in range(12):
            numbers.append(add(table, *((choice(numbers), random_maps(1)) for _ in range(ints(1, 2)))))
        values = evaluate(table.defs, universe())
        assert all(values[a] != values[b] for a, b in combinations(set(numbers), 2))


def ints(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))


def choice(numbers: list[int]) -> int:
    return numbers[ints(0, len(numbers) - 1)]


def random_maps(stride: int, image: tuple[int, ...] = IMAGE) -> Maps:
    return slide((2 * ints(0, 3) + 1, 2 * ints(0, 3) + 1), stride, (image[0], image[1]))


def test_definitions_are_in_topological_order() -> None:
    table = RegionTable(IMAGE, PATCH)
    first = add(table, (0, slide((3, 3))))
    add(table, (first, slide((3, 3))), (0, SAME))
    assert all(max(entry.sources) < i for i, entry in enumerate(table.defs) if i)  # type: ignore[union-attr]


def test_share_is_the_mean_over_full_patches_inside() -> None:
    table = RegionTable(IMAGE, PATCH)
    three = add(table, (0, slide((3, 3))))
    assert table.share(0) == 3 * 2 / (9 * 11)
    rows = np.mean([min(lo + 4, 9) - max(lo - 1, 0) for lo in range(7)])
    columns = np.mean([min(lo + 3, 11) - max(lo - 1, 0) for lo in range(10)])
    assert np.isclose(table.share(three), rows * columns / 99)
