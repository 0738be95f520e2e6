"""The table of ops with example parameters; it drives the brute-force proofs. One file per kind of op."""

from tests.support.op_table_borders import BORDERS
from tests.support.op_table_case import Case
from tests.support.op_table_channels import CHANNELS
from tests.support.op_table_conv import CONVOLUTIONS, TRANSPOSED
from tests.support.op_table_dense import DENSE
from tests.support.op_table_layout import LAYOUTS
from tests.support.op_table_pointwise import POINTWISE
from tests.support.op_table_pool import POOLS
from tests.support.op_table_resize import DEFAULT_OVERLOADS, MOVES, RESIZES, SHUFFLES

__all__ = ["OPS", "Case"]

OPS = [
    *CONVOLUTIONS, *TRANSPOSED, *POOLS, *POINTWISE, *CHANNELS, *LAYOUTS, *BORDERS, *RESIZES, *DEFAULT_OVERLOADS,
    *SHUFFLES, *MOVES, *DENSE,
]  # fmt: skip
