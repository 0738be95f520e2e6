"""Occlusion on the CPU: incremental against naive inference, in one process, on the same threads.

Each round runs the incremental side and then every baseline on a share of the positions (naive time per image does not
depend on the position). Incremental time includes materialisation and scheduling, except with --suite interactive,
where the base is set already; compilation is shown beside. benchmarks/README.md explains the columns.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.cpu.cases import SUITES, Case
from benchmarks.cpu.measure import BASELINES, Bench, Options
from benchmarks.cpu.report import line, page
from benchmarks.machine import describe

RESULTS = Path(__file__).parent / "results"


def main(argv: list[str] | None = None) -> None:
    """Run what the command line asks for; print a table, and write it with ``--write``."""
    args = _arguments(argv)
    names = list(dict.fromkeys(["eager", *args.baselines]))
    options = Options(names, args.batch, args.rounds, args.share, not args.no_steps, not args.no_memory)
    command = shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if argv is None else argv)])
    report: dict[str, Any] = {"command": command, "machine": describe(), "batch": args.batch, "rounds": args.rounds}
    report |= {"baselines": names, "rows": []}
    bench = Bench(options, lambda text: print(text, flush=True))
    try:
        for case in cases(args):
            report["rows"].append(bench.measure(case))
            print(line(report["rows"][-1]), flush=True)
            if args.write:  # after each, so that an interrupted run keeps what it has
                _write(args.write, report)
    finally:
        bench.close()
    print("\n" + page(report))


def cases(args: argparse.Namespace) -> list[Case]:
    """The suite's cases, or the same ones with what the command line says instead."""
    listed = SUITES[args.suite](args.networks, args.threads)
    given = {name: getattr(args, name) for name in ("patch", "stride", "queries", "sample", "size")}
    varied = {name: values for name, values in given.items() if values is not None}
    changes = [dict(zip(varied, values, strict=True)) for values in product(*varied.values())]
    varied_cases = (replace(case, **change) for case in listed for change in changes)
    changed = dict.fromkeys(replace(case, sample=0) if case.queries else case for case in varied_cases)
    networks = [case.network for case in changed]  # cases that share baselines go together
    return sorted(changed, key=lambda case: (networks.index(case.network), -case.threads, case.batch(args.batch)))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="torchvision's names (default: the suite's)")
    parser.add_argument("--suite", choices=list(SUITES), default="maps", help="what is measured (default: maps)")
    parser.add_argument("--patch", type=int, nargs="+", help="patch sizes in pixels, instead of the suite's")
    parser.add_argument("--stride", type=int, nargs="+", help="distances of positions in pixels")
    parser.add_argument("--queries", type=int, nargs="+", help="positions per call, the base already set (0: the map)")
    parser.add_argument("--sample", type=int, nargs=1, help="time only about N positions of each map (0: all)")
    parser.add_argument("--size", type=int, nargs=1, help="image size in pixels (0: the network's usual one)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=16, help="images per call of the baselines, at most")
    parser.add_argument("--rounds", type=int, default=4, help="A/B rounds")
    parser.add_argument("--share", type=int, default=128, help="positions per round of each baseline but eager")
    parser.add_argument("--baselines", nargs="+", choices=BASELINES, default=list(BASELINES), metavar="NAME",
                        help=f"out of {', '.join(BASELINES)}; eager always runs")  # fmt: skip
    parser.add_argument("--no-steps", action="store_true", help="leave out the time by kind of step")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--write", default="", help="name of the files under benchmarks/results/")
    return parser.parse_args(argv)


def _write(name: str, report: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(page(report))


if __name__ == "__main__":
    main()
