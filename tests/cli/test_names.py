"""The public functions stay reachable whatever modules are imported."""

import importlib.util

import pytest

import kcompile


@pytest.mark.parametrize("name", kcompile.__all__)
def test_no_module_hides_a_public_name(name: str) -> None:
    """Importing `kcompile.<name>` would put the module in the name's place."""
    assert importlib.util.find_spec(f"kcompile.{name}") is None
