"""Every row of the op table, proven by brute force over all positions of a small map."""

from __future__ import annotations

import pytest

from kcompile.core.plan import Placement
from kcompile.passes.pipeline import Compiled
from tests.support.brute_force import check_end_to_end, check_region, check_window
from tests.support.networks import ready
from tests.support.op_table import OPS, Case
from tests.support.running import compile_incremental

PATCHES = {1: [(1,), (3,), (4,)], 2: [(1, 1), (2, 3), (4, 4)], 3: [(1, 1, 1), (2, 3, 1), (3, 3, 2)]}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's own advice
@pytest.mark.parametrize("case", OPS, ids=lambda case: case.name)
def test_op(case: Case, seed: int) -> None:
    model = ready(case.make(), case.shape)
    sizes = PATCHES[len(case.shape) - 1]
    compiled = compile_incremental(model, case.shape, sizes[-1])
    check_placement(compiled, case)
    for patch in sizes:
        if case.refused is None:
            check_region(model, compiled, case, patch, exact=min(patch) >= case.dilation)
            if reads_the_image_alone(compiled):
                check_window(model, compiled, case, patch)
        check_end_to_end(model, compiled, case, patch)


def check_placement(compiled: Compiled, case: Case) -> None:
    dense = [layer for layer in compiled.plan.layers if layer.placement is Placement.DENSE]
    if case.refused is None:
        assert not dense
    else:
        assert any(case.refused in layer.reason for layer in dense)


def reads_the_image_alone(compiled: Compiled) -> bool:
    """True for what is one op on windows: all of them are cut out of the image or of constants."""
    image = compiled.plan.layers[0].name
    bases = [compiled.plan.base(read.base) for read in compiled.plan.reads if read.target]
    return all(base.source == image or not base.batched for base in bases)
