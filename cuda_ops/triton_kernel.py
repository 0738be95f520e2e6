"""The implicit-GEMM convolution in Triton; imported where it is used alone, as Triton is optional.

Rows of the product are cells of the results, columns are filters; the summands are (tap, channel). A row's value at a
tap lies in the patch where that covers the cell, else in the base: the load takes its address from either, so that no
window is ever written. See `triton_conv` for the arguments.
"""

import triton
import triton.language as tl

_NUMBERS = [
    "base_row", "base_h", "base_w", "patch_row", "patch_h", "patch_w", "patch_height", "patch_width", "height", "width",
    "out_height", "out_width", "rows", "stride_h", "stride_w", "pad_h", "pad_w", "step_h", "step_w", "taps_w", "taps",
    "units", "lanes", "under_row", "under_h", "under_w", "upper_row", "upper_h", "upper_w", "upper_height",
    "upper_width",
]  # fmt: skip

_PLACES = ["origins", "offsets", "under_origins", "upper_offsets"]  # parts of tables: aligned or not, it's one kernel


@triton.jit
def _tf32(value):
    """To the nearest number of tensor cores' TF32, away from zero where two are: the hardware cuts digits off."""
    bits = value.to(tl.int32, bitcast=True)
    finite = (bits & 0x7F800000) != 0x7F800000
    return tl.where(finite, (bits + 0x1000) & -0x2000, bits).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_PLACES)
def convolved(
    base, patch, weight, bias, own, out, origins, offsets, under, upper, under_origins, upper_offsets,
    low, high, least, most,
    base_row, base_h, base_w, patch_row, patch_h, patch_w, patch_height, patch_width, height, width,
    out_height, out_width, rows, stride_h, stride_w, pad_h, pad_w, step_h, step_w, taps_w, taps, units, lanes,
    under_row, under_h, under_w, upper_row, upper_h, upper_w, upper_height, upper_width,
    UNIT: tl.constexpr, LANE: tl.constexpr, ENDED: tl.constexpr, BIAS: tl.constexpr, OWN: tl.constexpr,
    UNDER: tl.constexpr, UPPER: tl.constexpr, FLAT: tl.constexpr, TF32: tl.constexpr, WIDE: tl.constexpr,
    CELLS: tl.constexpr, FILTERS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One tile of results.

    Strides of base and patch, and the channels, are counted in units of UNIT values; those of what is added (a window
    of ``under`` with ``upper`` laid over it), and the filters, in units of LANE.
    """
    filters = lanes * LANE
    columns = tl.cdiv(filters, FILTERS)
    tile = tl.program_id(0)
    row = (tile // columns) * CELLS + tl.arange(0, CELLS)
    column = (tile % columns) * FILTERS + tl.arange(0, FILTERS)
    valid = row < rows
    query = row // (out_height * out_width)
    cell = row % (out_height * out_width)
    first_h = (cell // out_width) * stride_h - pad_h
    first_w = (cell % out_width) * stride_w - pad_w

    which = query.to(tl.int64)
    index = tl.load(origins + 3 * which, mask=valid, other=0)
    at_h = tl.load(origins + 3 * which + 1, mask=valid, other=0)
    at_w = tl.load(origins + 3 * which + 2, mask=valid, other=0)
    laid_h = tl.load(offsets + 2 * which, mask=valid, other=0).to(tl.int32)
    laid_w = tl.load(offsets + 2 * which + 1, mask=valid, other=0).to(tl.int32)
    in_base = index * base_row + at_h * base_h + at_w * base_w
    in_patch = which * patch_row - laid_h.to(tl.int64) * patch_h - laid_w.to(tl.int64) * patch_w

    channels = units * UNIT
    blocks = tl.cdiv(channels, DEPTH)
    lines = weight + column.to(tl.int64)[None, :] * (taps * channels)
    wanted = column < filters
    total = tl.zeros((CELLS, FILTERS), dtype=tl.float32)
    steps = tl.cdiv(taps * channels, DEPTH) if FLAT else taps * blocks
    for step in range(steps):
        if FLAT:  # few channels: summands of several taps at a time
            summand = step * DEPTH + tl.arange(0, DEPTH)
            known = summand < taps * channels
            channel = summand % channels
            tap = summand // channels
            h = first_h[:, None] + ((tap // taps_w) * step_h)[None, :]
            w = first_w[:, None] + ((tap % taps_w) * step_w)[None, :]
            inside = valid[:, None] & (h >= 0) & (h < height) & (w >= 0) & (w < width)
            over_h, over_w = h - laid_h[:, None], w - laid_w[:, None]
            over = (over_h >= 0) & (over_h < patch_height) & (over_w >= 0) & (over_w < patch_width)
            wide_h, wide_w = h.to(tl.int64), w.to(tl.int64)
            below = base + (in_base[:, None] + wide_h * base_h + wide_w * base_w) * UNIT
            above = patch + (in_patch[:, None] + wide_h * patch_h + wide_w * patch_w) * UNIT
            places = tl.where(over, above, below) + channel[None, :]
            there = inside & known[None, :]
        else:
            tap = step // blocks
            channel = (step % blocks) * DEPTH + tl.arange(0, DEPTH)
            known = channel < channels
            summand = tap * channels + channel
            h = first_h + (tap // taps_w) * step_h
            w = first_w + (tap % taps_w) * step_w
            inside = valid & (h >= 0) & (h < height) & (w >= 0) & (w < width)
            over_h, over_w = h - laid_h, w - laid_w
            over = (over_h >= 0) & (over_h < patch_height) & (over_w >= 0) & (over_w < patch_width)
            wide_h, wide_w = h.to(tl.int64), w.to(tl.int64)
            below = base + (in_base + wide_h * base_h + wide_w * base_w) * UNIT
            above = patch + (in_patch + wide_h * patch_h + wide_w * patch_w) * UNIT
            places = tl.where(over, above, below)[:, None] + channel[None, :]
            there = inside[:, None] & known[None, :]
            over = over[:, None]
        value = tl.load(places, mask=there, other=0.0)
        if ENDED:
            done = value.to(tl.float32)
            if BIAS:
                done += tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)[None, :]
                done = done.to(value.dtype).to(tl.float32)
            done = tl.where(done < low, low, tl.where(done > high, high, done)).to(value.dtype)
            value = tl.where(over & there, done, value)
        factor = tl.load(lines + summand[:, None], mask=known[:, None] & wanted[None, :], other=0.0)
        if WIDE:  # Triton's interpreter would multiply the bits of bfloat16
            value, factor = value.to(tl.float32), factor.to(tl.float32)
        if TF32:
            total = tl.dot(_tf32(value), factor, total, input_precision="tf32")  # weights come rounded
        else:
            total = tl.dot(value, factor, total, input_precision="ieee")

    if OWN:
        total += tl.load(own + column, mask=wanted, other=0.0).to(tl.float32)[None, :]
    if UNDER or UPPER:
        at_h, at_w = cell // out_width, cell % out_width
        into_h, into_w = at_h, at_w
        covered = valid
        if UNDER and UPPER:
            into_h = at_h - tl.load(upper_offsets + 2 * which, mask=valid, other=0).to(tl.int32)
            into_w = at_w - tl.load(upper_offsets + 2 * which + 1, mask=valid, other=0).to(tl.int32)
            covered = (into_h >= 0) & (into_h < upper_height) & (into_w >= 0) & (into_w < upper_width)
        sources = upper + (which * upper_row + into_h.to(tl.int64) * upper_h + into_w.to(tl.int64) * upper_w) * LANE
        if UNDER:
            first = tl.load(under_origins + 3 * which, mask=valid, other=0)
            from_h = tl.load(under_origins + 3 * which + 1, mask=valid, other=0) + at_h
            from_w = tl.load(under_origins + 3 * which + 2, mask=valid, other=0) + at_w
            below = under + (first * under_row + from_h * under_h + from_w * under_w) * LANE
            sources = tl.where(covered, sources, below) if UPPER else below
        more = tl.load(sources[:, None] + column[None, :], mask=valid[:, None] & wanted[None, :], other=0.0)
        total += more.to(tl.float32)
    total = tl.where(total < least, least, tl.where(total > most, most, total))
    into = out + (row.to(tl.int64) * lanes * LANE)[:, None] + column[None, :]
    tl.store(into, total.to(out.dtype.element_ty), mask=valid[:, None] & wanted[None, :])
