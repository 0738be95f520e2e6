"""`python -m benchmarks.zoo.onnx [NAME...]`: every third model of the zoo, exported and run in ONNX Runtime."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.zoo import models
from benchmarks.zoo.runs import GOOD, Row, Runs

_HERE = Path(__file__).parent
RESULTS = _HERE.parent / "results" / "zoo_onnx"
TABLE = _HERE.parents[1] / "docs" / "zoo_onnx.md"
EVERY = 3

_TEXT = """\
# The zoo in ONNX Runtime

Written by `make zoo`: every third model of [the zoo](zoo.md), exported by `kcompile.export_onnx` and run by
`kcompile.load_onnx` on the CPU, on six positions, two of them corners and one that sticks out.

| Column | Meaning |
|---|---|
| result | exact: error ≤ 1e-4; no lowering: an op has no counterpart in ONNX; wrong; void (the network did not react); failed, crashed, timeout |
| error, change | largest difference from full inference of really patched images in PyTorch, and what the patches change, as shares of max\\|full output\\| |
| torch | the same error of the torch runtime |
| export s, load s | seconds of `export_onnx` and `load_onnx` |
| MB | of `weights.bin`, and of the model's own parameters and buffers |
"""  # noqa: E501
_COLUMNS = ("model", "result", "error", "change", "torch", "export s", "load s", "MB")


def main(argv: Sequence[str] | None = None) -> int:
    """Run models that have no result yet; 1 if any of those asked for is wrong or failed."""
    args = _parse(argv)
    names = args.names or models.names()[::EVERY]
    runs = Runs(args.results, args.timeout, args.jobs, args.seed, worker="benchmarks.zoo.onnx_worker")
    todo = [] if args.report else [name for name in names if args.again or runs.row(name) is None]
    try:
        runs.run(todo, lambda row: print(_line(row), flush=True))
    except KeyboardInterrupt:
        print("interrupted; what is done is kept, the same command goes on", file=sys.stderr)
        return 130
    rows = [row for row in map(runs.row, names) if row is not None]
    if args.report or not args.names:
        args.table.write_text(table(rows, len(names)))
    bad = [row for row in rows if row["status"] not in (GOOD, "no lowering")]
    print(f"{len(rows)} of {len(names)} models have results, {len(bad)} of them bad")
    return 1 if bad else 0


def table(rows: Sequence[Row], total: int) -> str:
    """The whole page."""
    counts = {kind: sum(row["status"] == kind for row in rows) for kind in dict.fromkeys(r["status"] for r in rows)}
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    lines = [_TEXT, f"* run: {len(rows)} of {total}; {said}", "", f"| {' | '.join(_COLUMNS)} |"]
    lines += ["|---" * len(_COLUMNS) + "|", *map(_line, rows)]
    bad = [f"* {row['name']} (seed {row['seed']}): {row.get('why', '')}" for row in rows if row["status"] != GOOD]
    return "\n".join([*lines, *(["", "## Not exact", "", *bad] if bad else [])]) + "\n"


def _line(row: Row) -> str:
    numbers = [("error", ".0e"), ("change", ".0e"), ("torch", ".0e"), ("export", ".1f"), ("load", ".1f")]
    cells = [format(row[key], form) if key in row else "–" for key, form in numbers]
    size = f"{row['weights_mb']:.1f} of {row['own_mb']:.1f}" if "weights_mb" in row else "–"
    status = row["status"] if row["status"] == GOOD else f"**{row['status']}**"
    return f"| {' | '.join([row['name'], status, *cells, size])} |"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo.onnx", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: every third model of the zoo")
    parser.add_argument("--jobs", type=int, default=2, help="models at a time, one thread each (default 2)")
    parser.add_argument("--timeout", type=float, default=900, help="seconds per model (default 900)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with one JSON file per model")
    parser.add_argument("--table", type=Path, default=TABLE, help="where the table goes (default docs/zoo_onnx.md)")
    parser.add_argument("--again", action="store_true", help="run models that have a result, too")
    parser.add_argument("--report", action="store_true", help="only write the table, from the results that there are")
    parser.add_argument("--seed", type=int, help="of weights, images and positions (default: a fresh one per model)")
    parser.add_argument("--seconds", help=argparse.SUPPRESS)  # `make zoo` gives both commands the same arguments
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
