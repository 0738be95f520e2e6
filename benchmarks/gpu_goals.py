"""What the GPU check's times are held against; they don't decide whether it passes."""

from __future__ import annotations

from typing import Any

RATIOS = {"vgg16": 6.0, "resnet18": 2.0, "inception_v3": 1.5, "resnet50": 2.0}
"""Over the fastest full inference, in TF32 or float32, as a user gets it: whole maps, patch 16, stride 4."""
GATHER, INTERACTIVE, MEMORY = 0.7, 0.4, 0.6
"""Of a device copy's bandwidth at least; of a naive batch of 16, and of its memory at our batch, at most."""


def goals_text(report: dict[str, Any]) -> list[str]:
    """A line for each network, and one for the gathers: what was reached, what was wanted; nothing for a quick run."""
    given = report["options"]
    if given["quick"] or str(given["device"]).startswith("cpu") or (given["patch"], given["stride"]) != (16, 4):
        return []
    shares = [row["ratio"] for row in report.get("bandwidths", [])]
    lines = [f"goal, gathers: {_least('of a copy, at worst', min(shares), GATHER)}"] if shares else []
    rows = [row for row in report.get("timings", []) if row.get("incremental") and row["precision"] != "bfloat16"]
    return lines + [f"goals, {row['network']} in {row['precision']}: {', '.join(_network(row))}" for row in rows]


def _network(row: dict[str, Any]) -> list[str]:
    run, few = row["incremental"][0], row.get("interactive")
    found = []
    if row["network"] in RATIOS:
        found.append(_least("times naive", run["ratio"], RATIOS[row["network"]]))
    if few is not None:
        found.append(_most("of naive for 16 positions", few["share"], INTERACTIVE))
    if run.get("memory") is not None:
        found.append(_most("of naive's memory", run["memory"], MEMORY))
    return found


def _least(what: str, value: float, goal: float) -> str:
    return f"{value:.2f} {what} (≥ {goal:g}: {'met' if value >= goal else 'MISSED'})"


def _most(what: str, value: float, goal: float) -> str:
    return f"{value:.2f} {what} (≤ {goal:g}: {'met' if value <= goal else 'MISSED'})"
