"""Every kind of bad input that docs/design.md (section 8) lists has tests of its message; this says where."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What can be wrong, and the tests that hold its message.
TESTS: dict[str, tuple[str, ...]] = {
    "rank, channels or size of an image": ("api/test_bad_input.py::test_images",),
    "rank, channels or size of a patch": ("api/test_bad_input.py::test_patches",),
    "a patch larger than patch_shape": ("api/test_bad_input.py::test_patches",),
    "a patch larger than the image": ("api/test_bad_models.py::test_shapes",),
    "channels that the model does not take": ("api/test_bad_models.py::test_shapes",),
    "positions of a wrong type or shape, or wholly outside": ("api/test_bad_input.py::test_positions",),
    "no base materialised": ("api/test_bad_input.py::test_no_base",),
    "stride < 1": ("api/test_bad_input.py::test_occlusion",),
    "training mode": (
        "api/test_bad_models.py::test_training_mode",
        "runtime/test_weights.py::test_training_mode_is_refused",
    ),
    "control flow that depends on data": (
        "api/test_bad_models.py::test_control_flow_on_data_names_the_users_file_and_line",
    ),
    "an op without a rule": ("api/test_bad_models.py::test_an_op_without_a_rule",),
    "NaN or Inf in the image": ("api/test_bad_input.py::test_nan_and_infinity_in_the_image_warn",),
    "input that is not float": ("api/test_bad_input.py::test_images",),
    "another device": ("api/test_bad_input.py::test_images", "api/test_bad_input.py::test_patches"),
    "no positions": ("api/test_bad_input.py::test_no_positions",),
    "rows that mix": ("api/test_bad_models.py::test_rows_that_mix",),
    "a batch folded into windows, which is allowed": (
        "api/test_bad_models.py::test_rows_folded_into_windows_do_not_mix",
    ),
    "weights changed": (
        "runtime/test_weights.py::test_changed_weights_are_noticed",
        "api/test_bad_input.py::test_weights_that_change_while_a_map_is_made",
    ),
    "out of memory": ("runtime/test_out_of_memory.py::test_halves",),
    "a memory budget that is too small": ("runtime/test_memory_budget.py::test_where_a_budget_is_given",),
    "a memory budget that is none": ("runtime/test_memory_budget.py::test_bad_values",),
}


@pytest.mark.parametrize("what", TESTS)
def test_it_has_a_test(what: str) -> None:
    for test in TESTS[what]:
        file, name = test.split("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"there is no {test}"
