"""`python -m benchmarks.zoo [NAME...]`: run the zoo, or some of it, and write its table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.zoo import models, report
from benchmarks.zoo.runs import GOOD, Row, Runs

_HERE = Path(__file__).parent
RESULTS = _HERE.parent / "results" / "zoo"
TABLE = _HERE.parents[1] / "docs" / "zoo.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Run models that have no result yet; 1 if any of those asked for is wrong or failed."""
    args = parse(argv)
    names = args.names or models.names()
    runs = Runs(args.results, args.timeout, args.jobs, args.seed, args.seconds)
    if not args.report:
        todo = [name for name in names if args.again or runs.row(name) is None]
        if len(todo) < len(names):
            print(f"{len(names) - len(todo)} models have results already (--again repeats them)")
        try:
            runs.run(todo, lambda row: print(line(row), flush=True))
        except KeyboardInterrupt:
            print("interrupted; what is done is kept, the same command goes on", file=sys.stderr)
            return 130
    rows = [row for row in map(runs.row, names) if row is not None]
    if args.report or not args.names:
        args.table.write_text(report.table(rows, len(names)))
    bad = [row for row in rows if row["status"] != GOOD]
    wrong = sum(row["status"] == "wrong" for row in bad)
    print(f"{len(rows)} of {len(names)} models have results: {wrong} wrong, {len(bad) - wrong} failed or void")
    return 1 if bad else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="torchvision.resnet18, timm.dla34, …; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="models at a time, one thread each (default 2)")
    parser.add_argument("--timeout", type=float, default=900, help="seconds per model (default 900)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with one JSON file per model")
    parser.add_argument("--table", type=Path, default=TABLE, help="where the table goes (default docs/zoo.md)")
    parser.add_argument("--again", action="store_true", help="run models that have a result, too")
    parser.add_argument("--report", action="store_true", help="only write the table, from the results that there are")
    parser.add_argument("--seed", type=int, help="of weights, images and positions (default: a fresh one per model)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of full inference per round of timing (default 4)")
    return parser.parse_args(argv)


def line(row: Row) -> str:
    """What is said of a model when it ends."""
    if "error" not in row:
        return f"{row['status']:8} {row['name']} (seed {row['seed']}): {row.get('why', '')}"
    return (
        f"{row['status']:8} {row['name']} (seed {row['seed']}): compiled in {row['compile']:.1f} s, "
        f"{row['share']:.0%} incremental, error {row['error']:.1e}, change {row['change']:.1e}, "
        f"time/full {row['ratio']:.2f}"
    )


if __name__ == "__main__":
    sys.exit(main())
