"""kcompile: a graph compiler that makes occlusion explanations of CNNs fast.

The public names are loaded at first use; importing the package touches no device and compiles nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kcompile.core.version import __version__ as __version__

if TYPE_CHECKING:
    from kcompile.analysis import analyze as analyze
    from kcompile.anytime import occlusion_steps as occlusion_steps
    from kcompile.api import incrementalize as incrementalize
    from kcompile.approximation import Approximation as Approximation
    from kcompile.core.errors import CaptureError as CaptureError
    from kcompile.core.errors import InputError as InputError
    from kcompile.core.errors import KCompileError as KCompileError
    from kcompile.core.errors import MemoryBudgetError as MemoryBudgetError
    from kcompile.core.errors import ModelModeError as ModelModeError
    from kcompile.core.errors import NotMaterializedError as NotMaterializedError
    from kcompile.core.errors import OnnxExportError as OnnxExportError
    from kcompile.core.errors import PositionError as PositionError
    from kcompile.core.errors import SaveError as SaveError
    from kcompile.core.errors import StaleWeightsError as StaleWeightsError
    from kcompile.core.errors import UnsupportedOpError as UnsupportedOpError
    from kcompile.decay import measure_extents as measure_extents
    from kcompile.drawn_fills import Blur as Blur
    from kcompile.drawn_fills import Noise as Noise
    from kcompile.experiment import occlusion as occlusion
    from kcompile.exporting import export_onnx as export_onnx
    from kcompile.heatmap import Heatmap as Heatmap
    from kcompile.onnx_module import OnnxModule as OnnxModule
    from kcompile.onnx_module import load_onnx as load_onnx
    from kcompile.pixels import Pixels as Pixels
    from kcompile.progress import Progress as Progress
    from kcompile.runtime.module import IncrementalModule as IncrementalModule
    from kcompile.runtime.outputs import MapRegion as MapRegion
    from kcompile.runtime.saving import load as load
    from kcompile.search import tune as tune
    from kcompile.tuning import Tuning as Tuning
    from kcompile.verification import verify as verify


_HOMES = {
    "analyze": "kcompile.analysis",
    "export_onnx": "kcompile.exporting",
    "incrementalize": "kcompile.api",
    "load": "kcompile.runtime.saving",
    "load_onnx": "kcompile.onnx_module",
    "measure_extents": "kcompile.decay",
    "occlusion": "kcompile.experiment",
    "occlusion_steps": "kcompile.anytime",
    "tune": "kcompile.search",
    "verify": "kcompile.verification",
    "Approximation": "kcompile.approximation",
    "Blur": "kcompile.drawn_fills",
    "Heatmap": "kcompile.heatmap",
    "IncrementalModule": "kcompile.runtime.module",
    "MapRegion": "kcompile.runtime.outputs",
    "Noise": "kcompile.drawn_fills",
    "OnnxModule": "kcompile.onnx_module",
    "Pixels": "kcompile.pixels",
    "Progress": "kcompile.progress",
    "Tuning": "kcompile.tuning",
    **dict.fromkeys(
        (
            "CaptureError",
            "InputError",
            "KCompileError",
            "MemoryBudgetError",
            "ModelModeError",
            "NotMaterializedError",
            "OnnxExportError",
            "PositionError",
            "SaveError",
            "StaleWeightsError",
            "UnsupportedOpError",
        ),
        "kcompile.core.errors",
    ),
}
_MODULES = ("captum", "metrics", "monai")  # the first and the last have classes with these libraries' signatures
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Load a public name from its module (PEP 562)."""
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'kcompile' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    """The public names."""
    return __all__
