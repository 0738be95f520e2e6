"""The results as markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.cpu.steps import KINDS
from benchmarks.machine import as_text

BOUNDED = ("openvino-f32", "eager")  # baselines against which the share of the bound is told


def page(report: dict[str, Any]) -> str:
    """The whole report: machine, times, baselines, kinds of step, memory."""
    rows = report["rows"]
    parts = [as_text(report["machine"]), _asked(report), times(rows), against(rows, report["baselines"])]
    parts += [table(rows) for table in (interactive, by_kind, memory)]
    parts += [_notes(rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def times(rows: list[dict[str, Any]]) -> str:
    """Incremental times, the bound and exactness."""
    head = ("case", "positions", "compile s", "incremental", "own-box bound",
            *(f"share of it, {name}" for name in BOUNDED), "error", "change", "others")  # fmt: skip
    return _table(head, [_times_of(row) for row in rows])


def against(rows: list[dict[str, Any]], names: list[str]) -> str:
    """The ratio to each baseline, and its milliseconds per image."""
    lines = []
    for row in rows:
        ours = 1e3 * row["incremental"] / row["positions"]
        lines.append([_name(row), f"{ours:.2f}", *(_ratio(row["baselines"].get(name), row) for name in names)])
    return "Ratio (range), and the baseline's ms per image:\n\n" + _table(("case", "ours, ms", *names), lines)


def interactive(rows: list[dict[str, Any]]) -> str:
    """Ratios of calls as shares of their map's ratio, where both were measured."""
    names = [name for name in BOUNDED if all(name in row["baselines"] for row in rows)]
    maps = {_kind(row): row["baselines"] for row in rows if not row["queries"]}
    lines = []
    for row in rows:
        if row["queries"] and (of_map := maps.get(_kind(row))):
            shares = [row["baselines"][name]["ratio"] / of_map[name]["ratio"] for name in names]
            lines.append([_name(row), *(f"{share:.0%}" for share in shares)])
    return "Ratio of a call, as a share of the map's:\n\n" + _table(("case", *names), lines) if lines else ""


def _kind(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("network", "size", "patch", "stride", "threads"))


def by_kind(rows: list[dict[str, Any]]) -> str:
    """Shares of the incremental time by kind of step."""
    lines = [[_name(row), *(f"{row['steps'][kind]:.1%}" for kind in KINDS)] for row in rows if row["steps"]]
    return "Incremental time by kind of step:\n\n" + _table(("case", *KINDS), lines) if lines else ""


_MEMORY = (
    "case", "batch", "incremental", "eager, in full", "ratio", "memory_budget", "incremental under it", "batch",
    "ratio", "CPU time of that to that without",
)  # fmt: skip


def memory(rows: list[dict[str, Any]]) -> str:
    """Peak memory above the parameters."""
    lines = []
    for row in rows:
        if (found := row["memory"]) is not None:
            sizes = [f"{found[side] / 2**20:.0f}" for side in ("incremental", "full")]
            cells = [_name(row), str(found["batch"]), *sizes, f"**{found['ratio']:.2f}**"]
            if "bounded" in found:  # earlier results have none
                cells += [f"{found[side] / 2**20:.0f}" for side in ("budget", "bounded")]
                cells += [str(found["bounded_batch"]), f"**{found['bounded_ratio']:.2f}**", f"{found['slower']:.2f}"]
            lines.append(cells + [""] * (len(_MEMORY) - len(cells)))
    return "Peak memory above parameters, MiB:\n\n" + _table(_MEMORY, lines) if lines else ""


def line(row: dict[str, Any]) -> str:
    """A row in one line, for the terminal."""
    ratios = ", ".join(f"{found['ratio']:.2f}x {name}" for name, found in row["baselines"].items())
    valid = "" if row["counts"] else " NOT EXACT OR VOID"
    return f"{_name(row)}: {_clock(row)}; {ratios}; bound {row['bound']:.2f}; error {row['error']:.1e}{valid}"


def _times_of(row: dict[str, Any]) -> list[str]:
    count = row["positions"] if row["timed"] == row["positions"] else f"{row['timed']} of {row['positions']}"
    shares = [_share(row["baselines"].get(name)) for name in BOUNDED]
    exact = [f"{row['error']:.1e}" + ("" if row["counts"] else " (**does not count**)"), f"{row['change']:.1e}"]
    busy = "–" if row["others"] is None else f"{row['others']:.0%}"
    return [_name(row), str(count), f"{row['compile']:.1f}", _clock(row), f"{row['bound']:.2f}", *shares, *exact, busy]


def _clock(row: dict[str, Any]) -> str:
    return f"{1e3 * row['incremental']:.1f} ms" if row["queries"] else f"{row['incremental']:.2f} s"


def _share(found: dict[str, Any] | None) -> str:
    return "–" if found is None else f"{found['share_of_bound']:.0%}"


def _ratio(found: dict[str, Any] | None, row: dict[str, Any]) -> str:
    if found is None:
        return "–"
    ratio = f"{found['ratio']:.2f}x" if not row["counts"] else f"**{found['ratio']:.2f}x**"
    return f"{ratio} ({found['lowest']:.2f}–{found['highest']:.2f}), {found['ms']:.1f}"


def _name(row: dict[str, Any]) -> str:
    what = f", {row['queries']} queries" if row["queries"] else ""
    threads = f", {row['threads']} thread" + "s" * (row["threads"] > 1)
    return f"{row['network']} {row['size']}², patch {row['patch']}, stride {row['stride']}{threads}{what}"


def _asked(report: dict[str, Any]) -> str:
    return f"Baselines in batches of {report['batch']} at most, {report['rounds']} rounds; `{report['command']}`"


def _notes(rows: list[dict[str, Any]]) -> str:
    skipped = {name: why for row in rows for name, why in row["skipped"].items()}
    lines = [f"* {name} was skipped: {why}" for name, why in skipped.items()]
    inexact = {
        name: max(row["baselines"][name]["error"] or 0.0 for row in rows if name in row["baselines"])
        for name in dict.fromkeys(name for row in rows for name in row["baselines"])
    }
    lines += [f"* {name}: error up to {error:.0e} of scale" for name, error in inexact.items() if error > 1e-4]
    return "\n".join(lines)


def _table(head: tuple[str, ...], lines: list[list[str]]) -> str:
    rows = [f"| {' | '.join(cells)} |" for cells in (list(head), *lines)]
    return "\n".join([rows[0], "|" + "---|" * len(head), *rows[1:]])
