"""The report of the GPU check as a table, and its verdict."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.gpu_goals import goals_text

Report = dict[str, Any]

CHECKED = ("network", "equal", "error", "change", "error without windows")
WRONG = "wrong results"  # as Triton's kernels are said to give, where they do
TIMED_ERROR = {"float32": 1e-3, "tf32": 1e-2, "bfloat16": 5e-2}  # of what is timed, at most, as a share of the results
COLUMNS = (
    "network", "precision", "how", "timed", "first s", "capture s", "graphs", "map s", "naive s", "ratio (range)",
    "bound", "batches", "peak GiB", "naive GiB", "same batch", "16 positions", "error (change)",
)  # fmt: skip


def passed(report: Report) -> bool:
    """True if no part failed, the tests pass, every op and every network is equal to its reference, no check void.

    On a GPU kernels must build, and Triton's give right results; tests may only be left out where pytest is absent.
    """
    kernels, networks = report.get("kernels", {}), report.get("networks", [])
    on_gpu = not str(report.get("options", {}).get("device", "")).startswith("cpu")
    tests = report.get("tests", {}).get("status", "not run")
    wrong = [
        bool(report["failures"]),
        tests != "ok" and not tests.startswith("not run"),
        on_gpu and "error" in kernels,
        WRONG in kernels.get("triton", ""),
        any(row["wrong"] for row in report.get("ops", [])),
        any(row["status"] != "ok" for row in networks),
        not all(_equal(row, run) for row in report.get("timings", []) for run in row.get("incremental", [])),
    ]
    return not any(wrong)


def _equal(row: Report, run: Report) -> bool:
    """True if what was timed was compared with full inference, and is equal up to the precision's rounding."""
    return bool(run.get("error", math.nan) <= TIMED_ERROR[row["precision"]])


def table(report: Report) -> str:
    """As markdown: what was checked, gathers against copies, a line per network, precision and setting; what failed."""
    given = report["options"]
    tests = report.get("tests", {"status": "not run"})
    shares = ", ".join(_bandwidth(row) for row in report.get("bandwidths", []))
    lines = [
        f"{report['machine']['device']}; torch {report['machine']['torch']}; "
        f"patch {given['patch']}, stride {given['stride']}{'; QUICK' if given['quick'] else ''}",
        f"kernels: {kernels_text(report.get('kernels', {'error': 'not built'}))}",
        f"tests: {tests['status']} {tests.get('summary', '')}".rstrip(),
        f"ops: {ops_text(report['ops']) if 'ops' in report else 'not checked'}",
        f"gather as a share of a device copy: {shares or 'not measured'}",
        *_rows(CHECKED, [_checked(row) for row in report.get("networks", [])]),
    ]
    timings = [row for row in report.get("timings", []) if row.get("incremental")]
    cells = [line for row in timings for line in _cells(row)]
    lines += _rows(COLUMNS, cells) if cells else []
    lines += goals_text(report)
    lines += [_kinds(row) for row in timings if row.get("kinds")]
    lines += [f"FAILED: {name}: {reason}" for name, reason in report["failures"].items()]
    seconds = f" ({report['seconds']:.0f} s)" if "seconds" in report else ""
    return "\n".join([*lines, "", f"result: {'ok' if passed(report) else 'FAILED'}{seconds}"])


def kernels_text(found: Report) -> str:
    """What was built, in a line."""
    triton = f"; convolutions: {found['triton']}" if "triton" in found else ""
    return (found.get("error") or f"compiled for {found['target']} in {found['seconds']:.1f} s") + triton


def ops_text(rows: list[Report]) -> str:
    """What the comparison of the ops found, in a line."""
    wrong = [f"{row['op']} {row['dtype']} {row['axes']}d" for row in rows if row["wrong"]]
    return f"WRONG: {', '.join(wrong)}" if wrong else f"equal in {sum(row['cases'] for row in rows)} random cases"


def _rows(columns: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    cells = ["| " + " | ".join(row) + " |" for row in rows]
    return ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *cells]


def _bandwidth(row: Report) -> str:
    window = f"{row['queries']} x {row['extent']}^2 x {row['channels']}"
    return f"{row['ratio']:.0%} ({window}, {row['gather'] / 1e9:.0f} GB/s written)"


def _checked(row: Report) -> list[str]:
    return [
        row["network"],
        row["status"],
        *(f"{row.get(key, float('nan')):.1e}" for key in ("error", "change", "direct")),
    ]


def _kinds(row: Report) -> str:
    parts = ", ".join(f"{kind} {1000 * seconds:.1f} ms" for kind, seconds in row["kinds"].items())
    return f"{row['network']}, {row['precision']}, some batches: {parts}"


def _cells(row: Report) -> list[list[str]]:
    naive, few = row["naive"], row.get("interactive")
    speed = f"{_timed(naive, row)}{naive['name']}, batch {naive['batch']}, {naive['tflops']:.2g} TFLOP/s"
    if naive.get("untried"):
        speed += f"; not tried: {', '.join(naive['untried'])}"
    interactive = (
        "" if few is None else f"{few['share']:.2f} of naive, {few['way']} ({1000 * few['incremental']:.1f} ms)"
    )
    return [
        [
            row["network"],
            row["precision"],
            run["name"],
            (_timed(run, row) or "all").removesuffix(" timed, "),
            f"{run['first']:.2f}",
            *_graphs(run.get("graphs")),
            f"{run['seconds']:.3f}",
            f"{naive['seconds']:.3f} ({speed})",
            f"**{run['ratio']:.2f}x** ({run['lowest']:.2f}–{run['highest']:.2f})",
            f"{row['bound']:.2f}",
            f"{run['batches']}",
            f"{run['peak'] / 2**30:.1f}",
            f"{naive['peak'] / 2**30:.1f}",
            "" if run.get("memory") is None else f"{run['memory']:.2f}",
            interactive if run is row["incremental"][0] else "",
            _compared(row, run),
        ]
        for run in row["incremental"]
    ]


def _compared(row: Report, run: Report) -> str:
    if "error" not in run:
        return "not compared"
    return f"{'' if _equal(row, run) else 'WRONG: '}{run['error']:.1e} ({run['change']:.1e})"


def _graphs(found: Report | None) -> list[str]:
    """Seconds of capturing; how many CUDA graphs were kept and how large, or by what measurement there are none."""
    if found is None:
        return ["", ""]
    if found["kept"]:
        return [f"{found['capture']:.2f}", f"{found['kept']} ({found['bytes'] / 2**20:.0f} MiB)"]
    times = [dict(map(tuple, times)) for times in found["measured"]]
    took = [f"{_milliseconds(t.get(1))} against {1000 * t[0]:.2f} ms" for t in times if t.get(0) is not None]
    return [f"{found['capture']:.2f}", f"none ({'; '.join(took)})" if took else "none"]


def _milliseconds(seconds: float | None) -> str:
    return "they fail" if seconds is None else f"{1000 * seconds:.2f} ms"


def _timed(run: Report, row: Report) -> str:
    """How many positions were timed, unless all."""
    return "" if run["timed"] == row["positions"] else f"{run['timed']} of {row['positions']} timed, "
