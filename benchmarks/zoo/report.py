"""The zoo's table, docs/zoo.md, from the rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

NO_LOSS = 1.05  # time / full: above, a call took longer than full inference would have
NEAR = 0.9  # share of what own boxes can save
LAST_STAGE = 0.8  # share of multiply-adds before the first global layer: above, only the head is behind it
SLOW = 30.0  # seconds of compilation

COLUMNS = (
    "model", "result", "compile s", "GMACs", "incremental", "bound", "of it", "error", "change", "time/full",
    "dense because",
)  # fmt: skip

_SHORT = {
    "its region covers most of the map": "region ≈ map",
    "flattening makes positions into features: what follows reads the whole map": "flattening",
    "attention reads the whole map": "attention",
    "it normalises over the whole map": "global norm",
    "it reduces over the whole map": "global reduction",
    "it is made of the whole map, as a gate or a head is: every patch changes it": "gate or head",
    "a fully connected layer reads the whole map": "global linear",
    "it works along an axis of the map": "works along the map",
    "what it reads has no spatial axes": "no spatial axes",
}

_TEXT = """\
# The zoo

Written by `make zoo`: every classifier and segmentation model of torchvision, and the smallest networks of each
convolutional family of timm, with some transformers and hybrids that can't be incremental but must be right. Weights are
random, calibrated so that each network reacts to a patch; patches have 16×16 pixels.

| Column | Meaning |
|---|---|
| result | exact; wrong; void (the network did not react to the patch, so nothing was shown); failed, crashed, timeout |
| compile s | seconds of `incrementalize`, capture and all |
| GMACs | 10⁹ multiply-adds of one full inference |
| incremental | share of these multiply-adds in layers that are incremental |
| bound | multiply-adds of full inference over those of the plan: each position's own boxes, and the dense layers |
| of it | share of the multiply-adds that own boxes could save if no layer were dense for its cost, that the plan saves |
| error, change | largest difference from full inference of really patched images, and what the patches change, as shares of max\\|full output\\|. Exact: error ≤ 1e-4 in float32; where that fails (marked 64), ≤ 1e-6 of the change in float64, or, where random weights amplify rounding more than that (marked ~), ≤ 30 times what one rounding of the pixels changes in the plain model |
| time/full | one call with up to 64 positions over eager full inference (channels_last, batches of 16, one thread), median of 3; above {no_loss} in bold |
| dense because | reasons of the first dense layers, with the number of layers; "gate after": what was pooled to one cell is laid over a map (squeeze-and-excitation, image-level pooling) after this share of the multiply-adds |
"""  # noqa: E501


def table(rows: Sequence[Row], total: int) -> str:
    """The whole page, for rows of the ``total`` models that there are."""
    head = _TEXT.format(no_loss=NO_LOSS)
    rule = "|---" * len(COLUMNS) + "|"
    lines = [head, *totals(rows, total), "", f"| {' | '.join(COLUMNS)} |", rule, *map(_line, rows)]
    return "\n".join([*lines, *_failures(rows)]) + "\n"


def totals(rows: Sequence[Row], total: int) -> list[str]:
    """What holds of all models, as a list."""
    compiled = [row for row in rows if "compile" in row]
    timed = [row for row in rows if "ratio" in row]
    free = [row for row in compiled if row.get("before", 0.0) >= LAST_STAGE]
    mostly = sum(row["share"] >= 0.5 for row in free)
    known = [row for row in free if "saved" in row]
    near = sum(row["saved"] >= NEAR for row in known)
    return [
        f"PyTorch, torchvision, timm: {_versions()}.",
        "",
        f"* run: {len(rows)} of {total}; compiled: {len(compiled)} of {len(rows)}, "
        f"{sum(row['compile'] > SLOW for row in compiled)} of them in more than {SLOW:g} s",
        f"* exact: {sum(row['status'] == 'exact' for row in rows)} of {len(rows)}",
        f"* without attention, gate or norm over the map before the last {1 - LAST_STAGE:.0%} of the multiply-adds: "
        f"{len(free)}; at least half incremental: {mostly} of them, {_mean(free)} on average; saving at least "
        f"{NEAR:.0%} of what own boxes can save: {near} of {len(known)}",
        f"* longer than full inference (time/full > {NO_LOSS}): "
        f"{sum(row['ratio'] > NO_LOSS for row in timed)} of {len(timed)}",
    ]


def _mean(rows: Sequence[Row]) -> str:
    return f"{sum(row['share'] for row in rows) / len(rows):.0%}" if rows else "–"


def _versions() -> str:
    from importlib.metadata import version

    return ", ".join(version(name).split("+")[0] for name in ("torch", "torchvision", "timm"))


def _line(row: Row) -> str:
    cells = [row["name"], row["status"] if row["status"] == "exact" else f"**{row['status']}**"]
    cells += [_number(row, "compile", ".1f")]
    cells += [f"{row['macs'] / 1e9:.2f}" if "macs" in row else "–", _number(row, "share", ".0%")]
    cells += [
        _number(row, "bound", ".2f"),
        _number(row, "saved", ".0%"),
        _number(row, "error", ".0e") + _precision(row),
        _number(row, "change", ".0e"),
    ]
    ratio = _number(row, "ratio", ".2f")
    cells += [f"**{ratio}**" if row.get("ratio", 0.0) > NO_LOSS else ratio, _reasons(row)]
    return f"| {' | '.join(cells)} |"


def _number(row: Row, key: str, form: str) -> str:
    return format(row[key], form) if key in row else "–"


def _precision(row: Row) -> str:
    amplified = row.get("dtype") == "float64" and row.get("rounding", 0.0) > 0.0
    return " (~)" if amplified else " (64)" if row.get("dtype") == "float64" else ""


def _reasons(row: Row) -> str:
    found = row.get("reasons", [])
    said = [f"{_SHORT.get(reason, reason)}{f' ×{count}' if count > 1 else ''}" for reason, count in found[:3]]
    if row.get("gated"):
        said.insert(0, f"gate after {row['before']:.0%}")
    return "; ".join(said + ["…"] * (len(found) > 3)).replace("|", "\\|")


def _failures(rows: Sequence[Row]) -> list[str]:
    bad = [row for row in rows if row["status"] != "exact"]
    if not bad:
        return []
    return ["", "## Not exact", "", *(f"* {row['name']} (seed {row['seed']}): {row.get('why', '')}" for row in bad)]
