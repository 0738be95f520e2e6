"""One process per model: crashes, timeouts and memory become rows, and never stop the others."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

Row = dict[str, Any]
GOOD = "exact"
_ROOT = Path(__file__).parents[2]


class Runs:
    """Runs workers, and keeps one JSON file per model.

    Args:
        results: The folder of the rows.
        timeout: Seconds that one model may take.
        jobs: Models at a time.
        seed: For all models; None draws one for each.
        seconds: Of full inference that each round of timing may take.
        worker: The module that measures one model.
    """

    def __init__(
        self,
        results: Path,
        timeout: float,
        jobs: int,
        seed: int | None = None,
        seconds: float = 4.0,
        worker: str = "benchmarks.zoo.worker",
    ) -> None:
        self.results, self.timeout, self.jobs, self.seed, self.seconds = results, timeout, jobs, seed, seconds
        self.worker = worker
        self._running: set[subprocess.Popen[str]] = set()
        results.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Where a model's row is kept."""
        return self.results / f"{name}.json"

    def row(self, name: str) -> Row | None:
        """A model's row, if there is one."""
        path = self.path(name)
        return json.loads(path.read_text()) if path.exists() else None

    def run(self, names: Sequence[str], tell: Callable[[Row], None]) -> None:
        """Run models and tell of each as it ends. An interrupt ends the workers; what is done stays."""
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(self._one, name) for name in names]
            try:
                for future in as_completed(futures):
                    tell(future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(self._running):
                    process.kill()
                raise

    def _one(self, name: str) -> Row:
        seed = secrets.randbelow(2**32) if self.seed is None else self.seed
        part = self.path(name).with_suffix(".part")  # so that an interrupted worker leaves no row
        part.unlink(missing_ok=True)
        command = [sys.executable, "-m", self.worker, name, "--seed", str(seed), "--out", str(part)]
        command += ["--seconds", str(self.seconds)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, cwd=_ROOT, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self._running.add(process)
        try:
            errors = process.communicate(timeout=self.timeout)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            row = {"name": name, "seed": seed, "status": "timeout", "why": f"not done after {self.timeout:g} s"}
        else:
            row = _finished(name, seed, process.returncode, errors, part)
        finally:
            self._running.discard(process)
        part.write_text(json.dumps(row, indent=1) + "\n")
        part.replace(self.path(name))
        return row


def _finished(name: str, seed: int, code: int, errors: str, part: Path) -> Row:
    if code == 0 and part.exists():
        row: Row = json.loads(part.read_text())
        return row
    last = (errors.strip().splitlines() or ["it said nothing"])[-1]
    return {"name": name, "seed": seed, "status": "crashed", "why": f"exit code {code}: {last[:300]}"}
