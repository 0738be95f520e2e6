"""What the GPU check's times are held against; they don't decide whether it passes."""

from __future__ import annotations

from typing import Any

RATIOS = {"vgg16": 6.0, "resnet18": 2.0, "inception_v3": 1.5, "resnet50": 2.0}
"""Over the fastest full inference, in TF32 or float32, as a user gets it: whole maps, patch 16, stride 4."""
GATHER, INTERACTIVE, MEMORY = 0.7, 0.4, 0.6
"""Of a device copy's bandwidth at least; of a naive batch of 16, and of its memory at our batch, at most."""
AS_IS = "as is"  # what a user gets

Facts = dict[str, Any]


def goals_text(report: Facts) -> list[str]:
    """A line for the gathers, and one for each network with a goal; nothing for a quick run or another kind of map."""
    given = report["options"]
    if given["quick"] or str(given["device"]).startswith("cpu") or (given["patch"], given["stride"]) != (16, 4):
        return []
    shares = [row["ratio"] for row in report.get("bandwidths", [])]
    lines = [f"goal, gathers: {_least('of a copy, at worst', min(shares, default=None), GATHER)}"]
    rows = [row for row in report.get("timings", []) if row["precision"] != "bfloat16"]
    for network in (name for name in RATIOS if name in given["networks"]):
        found = [row for row in rows if row["network"] == network and row.get("incremental")]
        lines += [f"goals, {network} in {row['precision']}: {', '.join(_network(row))}" for row in found]
        lines += [] if found else [f"goals, {network}: not measured"]
    return lines


def _network(row: Facts) -> list[str]:
    run: Facts = next((run for run in row["incremental"] if run["name"] == AS_IS), {})
    few: Facts = row.get("interactive", {})
    untried = row.get("naive", {}).get("untried", [])
    ratio = _least("times naive", run.get("ratio"), RATIOS[row["network"]])
    return [
        ratio + (f" where naive was not tried as {', '.join(untried)}" if untried else ""),
        _most("of naive for 16 positions", few.get("share") if few.get("name") == AS_IS else None, INTERACTIVE),
        _most("of naive's memory", run.get("memory"), MEMORY),
    ]


def _least(what: str, value: float | None, goal: float) -> str:
    return _told(what, value, f"≥ {goal:g}", value is not None and value >= goal)


def _most(what: str, value: float | None, goal: float) -> str:
    return _told(what, value, f"≤ {goal:g}", value is not None and value <= goal)


def _told(what: str, value: float | None, goal: str, met: bool) -> str:
    if value is None:
        return f"{what} not measured ({goal})"
    return f"{value:.2f} {what} ({goal}: {'met' if met else 'MISSED'})"
