"""The files of an export to ONNX: their names and how the manifest is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kcompile.core.errors import SaveError
from kcompile.core.plan import Plan
from kcompile.core.version import __version__

FORMAT = 1
MANIFEST, WEIGHTS = "kcompile.json", "weights.bin"
MATERIALIZE, INCREMENTAL, HEATMAP = "materialize.onnx", "incremental.onnx", "heatmap.onnx"


@dataclass(frozen=True)
class Manifest:
    """What ``kcompile.json`` says.

    Attributes:
        directory: Where it lies.
        plan: The plan.
        data: All of it.
    """

    directory: Path
    plan: Plan
    data: Mapping[str, Any]

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the models."""
        return tuple(name for name in self.data["files"] if name.endswith(".onnx"))


def read_manifest(directory: Path) -> Manifest:
    """Read and check a folder that `kcompile.export_onnx` wrote.

    Raises:
        SaveError: It is no such folder, files are missing or cut off, or it needs a newer kcompile.
    """
    path = directory / MANIFEST
    if not path.is_file():
        what = "no folder" if not directory.is_dir() else f"no complete export: it has no {MANIFEST}"
        raise SaveError(f"{directory} is {what}. Write it with kcompile.export_onnx(inc, directory)")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version, files = data["kcompile"], data["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SaveError(f"{path} is damaged: {error!r}") from error
    if not isinstance(version, int) or version > FORMAT:
        raise SaveError(f"{path} has format {version!r}, this kcompile ({__version__}) reads up to {FORMAT}: install a "
                        "newer one")  # fmt: skip
    for name, size in files.items():
        found = (directory / name).stat().st_size if (directory / name).is_file() else None
        if found != size:
            state = "missing" if found is None else f"{found} bytes long, not {size}"
            raise SaveError(f"{directory / name} is {state}: copy all files of one export, {', '.join(files)}")
    try:
        return Manifest(directory, Plan.from_json(json.dumps(data["plan"])), data)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise SaveError(f"{path} is damaged, or not for this version ({data.get('made_by')}): {error!r}") from error
