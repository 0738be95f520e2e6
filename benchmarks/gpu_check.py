"""One command for a GPU machine: is incremental inference equal to full inference there, and how fast is it?

Runs from a bare checkout with PyTorch and torchvision alone: python benchmarks/gpu_check.py
Builds the CUDA kernels, runs their tests, compares ops and networks, times gathers and whole maps. Prints progress, and
one table last; writes every number as JSON. Exit code 0: everything equal; 1: not; 2: no such device.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a checkout need not be installed

import torch  # noqa: E402
import torchvision  # noqa: E402

import kcompile  # noqa: E402
from benchmarks.gpu_equivalence import check_network, check_ops  # noqa: E402
from benchmarks.gpu_kernels import bandwidths, build, run_tests  # noqa: E402
from benchmarks.gpu_timing import VARIANTS, Settings, time_network  # noqa: E402
from benchmarks.networks import network  # noqa: E402

NETWORKS = ("vgg16", "resnet18", "inception_v3", "resnet50")
PRECISIONS = ("float32", "tf32", "bfloat16")
QUICK_SIZES = {"inception_v3": 107}  # the least that its pools allow is 75


def main(argv: list[str] | None = None) -> int:
    """Run all checks; returns the exit code."""
    args = _arguments(argv)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; `--device cpu --quick` runs the same code on the CPU", file=sys.stderr)
        return 2
    deadline = time.perf_counter() + args.budget
    set_precision(tf32=False)
    report: dict[str, Any] = {"machine": machine(device), "options": options(args), "networks": [], "timings": []}
    print("\n".join(f"{key}: {value}" for key, value in report["machine"].items()), flush=True)
    report["kernels"] = build(device)
    print(f"kernels: {report['kernels']}", flush=True)
    report["tests"] = run_tests(120) if device.type == "cuda" else {"status": "not run: they need a GPU"}
    print(f"tests: {report['tests']}", flush=True)
    report["ops"] = check_ops(device, rounds=3 if args.quick else 20, seed=0)
    print(f"ops: {_ops(report['ops'])}", flush=True)
    report["bandwidths"] = bandwidths(device, args.quick)
    for left, name in zip(range(len(args.networks), 0, -1), args.networks, strict=True):
        limit = max((deadline - time.perf_counter()) / left, 1.0)
        report["networks"].append(run_network(name, device, args, limit, report["timings"]))
        write(report, args.out)
    write(report, args.out)
    print("\n" + table(report))
    return 0 if passed(report) else 1


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=NETWORKS, help="torchvision classifiers")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--quick", action="store_true", help="small images and few positions: tries the code, not the device"
    )
    parser.add_argument("--patch", type=int, default=16, help="patch size in pixels")
    parser.add_argument("--stride", type=int, default=4, help="distance of positions in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of naive and incremental maps in turn")
    parser.add_argument("--limit", type=float, default=60, help="seconds of one timing; 0: equivalence alone")
    parser.add_argument("--budget", type=float, default=400, help="seconds in all: timings share what is left")
    parser.add_argument(
        "--precisions",
        nargs="*",
        choices=PRECISIONS,
        default=("tf32", "bfloat16"),
        help="of both sides, to be timed (equivalence is checked in float32 without TF32)",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu_check.json")
    return parser.parse_args(argv)


def set_precision(*, tf32: bool) -> None:
    """Let float32 products and convolutions use TF32, or not.

    By the older switches: torch.export (2.15) asks for them, and fails where the newer ones differ by operator.
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def run_network(
    name: str, device: torch.device, args: argparse.Namespace, limit: float, timings: list[dict[str, Any]]
) -> dict[str, Any]:
    """Compile, check and time one network; a crash is a result too, so that the other networks still run.

    Args:
        name: The network.
        device: Where to compute.
        args: The command line.
        limit: Seconds that the network may take.
        timings: Its rows are added here, one for each precision.
    """
    row: dict[str, Any] = {"network": name, "status": "crashed"}
    try:
        _run_network(row, device, args, time.perf_counter() + limit, timings)
    except Exception as error:
        row.update(status="crashed", crash=f"{type(error).__name__}: {error}")
        traceback.print_exc()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    print(f"{name}: {row['status']}", flush=True)
    return row


def _run_network(
    row: dict[str, Any],
    device: torch.device,
    args: argparse.Namespace,
    deadline: float,
    timings: list[dict[str, Any]],
) -> None:
    model, inc = _compiled(row, device, args, torch.float32)
    verdict = check_network(inc, model, device, queries=8 if args.quick else 40, seed=0)
    row.update(status=verdict.status, error=verdict.error, change=verdict.change)
    print(f"{row['network']}: error {verdict.error:.1e}, change {verdict.change:.1e} of scale", flush=True)
    for left, precision in zip(range(len(args.precisions), 0, -1), args.precisions, strict=True):
        limit = min((deadline - time.perf_counter()) / left, args.limit)
        if limit <= 0:
            continue
        if precision == "bfloat16":
            model, inc = _compiled({**row}, device, args, torch.bfloat16)
        try:
            set_precision(tf32=precision == "tf32")
            timings.append({"network": row["network"], "precision": precision})
            timings[-1].update(time_network(inc, model, device, settings(args, limit)))
        finally:
            set_precision(tf32=False)


def _compiled(
    row: dict[str, Any], device: torch.device, args: argparse.Namespace, dtype: torch.dtype
) -> tuple[torch.nn.Module, kcompile.IncrementalModule]:
    size = QUICK_SIZES.get(row["network"], 64) if args.quick else 0
    model, row["size"] = network(row["network"], size)
    start = time.perf_counter()
    inc = kcompile.incrementalize(model.to(dtype), (1, 3, row["size"], row["size"]), args.patch)
    inc.policy = "incremental"  # what is checked and timed here is never full inference
    row["compile"] = time.perf_counter() - start
    return model.to(device), inc.to(device)


def settings(args: argparse.Namespace, limit: float) -> Settings:
    """What to time, in so many seconds."""
    if args.quick:
        return Settings(args.patch, 4 * args.stride, 2, min(limit, 5), (4, 8), VARIANTS[:2])
    return Settings(args.patch, args.stride, args.rounds, limit, (64, 128, 256, 512))


def machine(device: torch.device) -> dict[str, Any]:
    """Device and versions."""
    found: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "kcompile": kcompile.__version__,
    }
    if device.type == "cuda":
        info = torch.cuda.get_device_properties(device)
        found["device"] = (
            f"{info.name}, {info.multi_processor_count} multiprocessors, {info.total_memory / 2**30:.0f} GiB"
        )
        found["capability"] = f"{info.major}.{info.minor}"
        found["cuda"], found["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    return found


def options(args: argparse.Namespace) -> dict[str, Any]:
    """The command line, as data."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}


def passed(report: dict[str, Any]) -> bool:
    """True if the tests pass, every op and every network is equal to its reference, and no check is void."""
    if report["tests"]["status"] == "FAILED":
        return False
    return not any(row["wrong"] for row in report["ops"]) and all(r["status"] == "ok" for r in report["networks"])


def write(report: dict[str, Any], path: Path) -> None:
    """Write the report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


CHECKED = ("network", "equal", "error", "change")
COLUMNS = (
    "network", "precision", "how", "timed", "first s", "map s", "naive s", "ratio (range)", "bound", "batches",
    "peak GiB", "naive GiB", "16 positions",
)  # fmt: skip


def table(report: dict[str, Any]) -> str:
    """The report as markdown: what was checked, gathers against copies, a line per network, precision and setting."""
    given = report["options"]
    lines = [
        f"{report['machine']['device']}; torch {report['machine']['torch']}; "
        f"patch {given['patch']}, stride {given['stride']}{'; QUICK' if given['quick'] else ''}",
        f"kernels: {_kernels(report['kernels'])}",
        f"tests: {report['tests']['status']} {report['tests'].get('summary', '')}".rstrip(),
        f"ops: {_ops(report['ops'])}",
        f"gather as a share of a device copy: {', '.join(_bandwidth(row) for row in report['bandwidths'])}",
        *_rows(CHECKED, [_checked(row) for row in report["networks"]]),
    ]
    cells = [line for row in report["timings"] if row.get("incremental") for line in _cells(row)]
    lines += _rows(COLUMNS, cells) if cells else []
    lines += [_kinds(row) for row in report["timings"] if row.get("kinds")]
    return "\n".join([*lines, "", f"result: {'ok' if passed(report) else 'FAILED'}"])


def _rows(columns: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    cells = ["| " + " | ".join(row) + " |" for row in rows]
    return ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *cells]


def _kernels(found: dict[str, Any]) -> str:
    return found.get("error") or f"compiled for {found['target']} in {found['seconds']:.1f} s"


def _bandwidth(row: dict[str, Any]) -> str:
    window = f"{row['queries']} x {row['extent']}^2 x {row['channels']}"
    return f"{row['ratio']:.0%} ({window}, {row['gather'] / 1e9:.0f} GB/s written)"


def _checked(row: dict[str, Any]) -> list[str]:
    return [row["network"], row["status"], *(f"{row.get(key, float('nan')):.1e}" for key in ("error", "change"))]


def _kinds(row: dict[str, Any]) -> str:
    parts = ", ".join(f"{kind} {1000 * seconds:.1f} ms" for kind, seconds in row["kinds"].items())
    return f"{row['network']}, {row['precision']}, some batches: {parts}"


def _ops(rows: list[dict[str, Any]]) -> str:
    wrong = [f"{row['op']} {row['dtype']} {row['axes']}d" for row in rows if row["wrong"]]
    return f"WRONG: {', '.join(wrong)}" if wrong else f"equal in {sum(row['cases'] for row in rows)} random cases"


def _cells(row: dict[str, Any]) -> list[list[str]]:
    naive, few = row["naive"], row["interactive"]
    speed = f"{_timed(naive, row)}{naive['name']}, batch {naive['batch']}, {naive['tflops']:.2g} TFLOP/s"
    interactive = f"{few['share']:.2f} of naive ({1000 * few['incremental']:.1f} ms)"
    return [
        [
            row["network"],
            row["precision"],
            run["name"],
            (_timed(run, row) or "all").removesuffix(" timed, "),
            f"{run['first']:.2f}",
            f"{run['seconds']:.3f}",
            f"{naive['seconds']:.3f} ({speed})",
            f"**{run['ratio']:.2f}x** ({run['lowest']:.2f}–{run['highest']:.2f})",
            f"{row['bound']:.2f}",
            f"{run['batches']}",
            f"{run['peak'] / 2**30:.1f}",
            f"{naive['peak'] / 2**30:.1f}",
            interactive if run is row["incremental"][0] else "",
        ]
        for run in row["incremental"]
    ]


def _timed(run: dict[str, Any], row: dict[str, Any]) -> str:
    """How many positions were timed, unless all."""
    return "" if run["timed"] == row["positions"] else f"{run['timed']} of {row['positions']} timed, "


if __name__ == "__main__":
    sys.exit(main())
