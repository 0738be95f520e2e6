"""One command for a GPU machine: is incremental inference equal to full inference there, and how fast is it?

Runs from a bare checkout with PyTorch and torchvision alone: python benchmarks/gpu_check.py
Builds the CUDA kernels, runs their tests, compares ops and networks, times gathers and whole maps. Each part runs in a
process of its own, so that one that crashes or hangs loses nothing else. Prints progress, and one table last; writes
every number as JSON, also while it runs. Exit code 0: everything equal; 1: not; 2: no such device.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a checkout need not be installed

import torch  # noqa: E402
import torchvision  # noqa: E402

import kcompile  # noqa: E402
from benchmarks.gpu_parts import Report, parts, run_part  # noqa: E402
from benchmarks.gpu_table import passed, table  # noqa: E402

NETWORKS = ("vgg16", "resnet18", "inception_v3", "resnet50")
PRECISIONS = ("float32", "tf32", "bfloat16")
SHARES = {"kernels": 0.2, "tests": 0.3, "ops": 0.15, "bandwidths": 0.1}  # of the seconds in all, at most
GRACE = 25.0  # seconds beyond its share after which a part is stopped


def main(argv: list[str] | None = None) -> int:
    """Run all checks; returns the exit code."""
    args = _arguments(argv)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; `--device cpu --quick` runs the same code on the CPU", file=sys.stderr)
        return 2
    if args.part:
        run_part(args.part, args, args.budget, lambda found: write(found, args.out))
        return 0
    start = time.perf_counter()
    report: Report = {"machine": machine(device), "options": options(args)}
    report.update(failures={}, networks=[], timings=[])
    print("\n".join(f"{key}: {value}" for key, value in report["machine"].items()), flush=True)
    apart = device.type == "cuda" if args.processes is None else args.processes
    for name in parts(list(args.networks)):
        left = args.budget - (time.perf_counter() - start)
        limit = SHARES[name] * args.budget if name in SHARES else left / (len(args.networks) - len(report["networks"]))
        merge(report, name, *(in_a_process if apart else in_place)(name, args, max(min(limit, left), 1.0)))
        report["seconds"] = time.perf_counter() - start
        write(report, args.out)
    print("\n" + table(report))
    return 0 if passed(report) else 1


def merge(report: Report, name: str, found: Report, failure: str) -> None:
    """Take what a part found, and why it failed, if it did."""
    for key, value in found.items():
        report[key] = [*report[key], *value] if key in ("networks", "timings") else value
    if name not in SHARES and not found.get("networks"):
        report["networks"].append({"network": name, "status": "crashed"})
    if failure:
        report["failures"][name] = failure
    said = {key: value for key, value in found.items() if key in ("kernels", "tests")}
    print(f"{name}: {failure or said or 'done'}", flush=True)


def in_place(name: str, args: argparse.Namespace, limit: float) -> tuple[Report, str]:
    """Run a part here; what it found, and why it failed."""
    found: Report = {}
    try:
        run_part(name, args, limit, found.update)
    except Exception as error:
        traceback.print_exc()
        return found, f"{type(error).__name__}: {error}"
    return found, ""


def in_a_process(name: str, args: argparse.Namespace, limit: float) -> tuple[Report, str]:
    """Run a part in a process of its own: an error on the device spoils all that follows in its process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        own = {**vars(args), "part": name, "out": out, "budget": limit}
        failure = ""
        try:
            done = subprocess.run(_command(own), timeout=limit + GRACE, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                print(done.stderr[-6000:], file=sys.stderr)
                said = [line for line in done.stderr.strip().splitlines() if line.strip()]
                failure = f"exit code {done.returncode}: {said[-1] if said else 'it said nothing'}"
        except subprocess.TimeoutExpired:
            failure = f"stopped after {limit + GRACE:.0f} s"
        try:
            return json.loads(out.read_text()), failure
        except (OSError, ValueError):
            return {}, failure or "it wrote nothing"


def _command(options: dict[str, Any]) -> list[str]:
    """The command line of a part."""
    command = [sys.executable, str(Path(__file__).resolve())]
    for name, value in options.items():
        if name == "processes" or value is None or value is False:
            continue
        flag = f"--{name}"
        command += [flag] if value is True else [flag, *map(str, value if isinstance(value, list | tuple) else [value])]
    return command


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
    parser.add_argument("--limit", type=float, default=45, help="seconds of one timing; 0: equivalence alone")
    parser.add_argument("--budget", type=float, default=440, help="seconds in all: networks share what is left")
    parser.add_argument(
        "--precisions",
        nargs="*",
        choices=PRECISIONS,
        default=("tf32", "bfloat16"),
        help="of both sides, to be timed (equivalence is checked in float32 without TF32)",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu_check.json")
    parser.add_argument(
        "--processes", action=argparse.BooleanOptionalAction, help="each part in its own (default: on a GPU)"
    )
    parser.add_argument("--part", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def machine(device: torch.device) -> Report:
    """Device and versions."""
    found: Report = {
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


def options(args: argparse.Namespace) -> Report:
    """The command line, as data."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}


def write(report: Report, path: Path) -> None:
    """Write the report as JSON; a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(report, indent=1) + "\n")
    new.replace(path)


if __name__ == "__main__":
    sys.exit(main())
