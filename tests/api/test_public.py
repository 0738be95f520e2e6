"""The public surface: names, signatures, and what importing the package does."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import kcompile

NAMES = [
    "Approximation",
    "Blur",
    "CaptureError",
    "Heatmap",
    "IncrementalModule",
    "InputError",
    "KCompileError",
    "MapRegion",
    "MemoryBudgetError",
    "ModelModeError",
    "Noise",
    "NotMaterializedError",
    "OnnxExportError",
    "OnnxModule",
    "Pixels",
    "PositionError",
    "Progress",
    "SaveError",
    "StaleWeightsError",
    "Tuning",
    "UnsupportedOpError",
    "analyze",
    "export_onnx",
    "incrementalize",
    "load",
    "load_onnx",
    "measure_extents",
    "occlusion",
    "occlusion_steps",
    "tune",
    "verify",
]


def test_names() -> None:
    assert kcompile.__all__ == NAMES
    assert dir(kcompile) == NAMES
    for name in NAMES:
        assert getattr(kcompile, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kcompile.nothing  # noqa: B018


def parameters(function: object) -> list[str]:
    """Names; keyword-only ones after a star; defaults as written."""
    found = []
    for parameter in inspect.signature(function).parameters.values():  # type: ignore[arg-type]
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in found:
            found.append("*")
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        found.append(parameter.name + default)
    return found


@pytest.mark.parametrize(
    ("name", "signature"),
    [
        (
            "incrementalize",
            "model, input_shape=None, patch_shape=(16, 16), *, example_inputs=None, patched_input=0, "
            "on_unsupported='dense', memory_budget=None",
        ),
        (
            "occlusion",
            "model, image, patch_shape=None, *, stride=None, overlap=None, value=0.0, target=None, roi=None, "
            "score='probability', output=None, progress=False, callback=None, memory_budget=None, "
            "approximation=None, tuning=None",
        ),
        ("measure_extents", "inc, images, keep=0.99, *, value=0.0, positions=16, held=False, seed=0"),
        (
            "occlusion_steps",
            "model, image, patch_shape=None, *, stride=None, overlap=None, value=0.0, target=None, roi=None, "
            "score='probability', output=None, coarse=None, parts=4, memory_budget=None",
        ),
        (
            "tune",
            "model, images, *, target_ssim=0.9, coverage=0.9, confidence=0.9, candidates=None, patch_shape=None, "
            "stride=None, overlap=None, value=0.0, target=None, roi=None, score='logit', output=None, seed=0, "
            "progress=False",
        ),
        ("Tuning.save", "self, path"),
        ("Tuning.load", "path"),
        ("verify", "inc, image, positions=32, *, seed=None"),
        ("IncrementalModule.materialize", "self, args, kwargs"),
        (
            "IncrementalModule.forward_patches",
            "self, patches, positions, *, base_index=None, mask=None, channels=None, output='full'",
        ),
        ("IncrementalModule.forward", "self, args, kwargs"),
        ("IncrementalModule.refresh", "self"),
        ("IncrementalModule.save", "self, path"),
        ("load", "path, device=None"),
        ("Heatmap.attribution", "self"),
        ("Heatmap.retarget", "self, target"),
        ("Heatmap.plot", "self, image=None, *, path=None, title=None"),
        ("Heatmap.save", "self, path, image=None"),
        ("Heatmap.load", "path"),
    ],
)
def test_signatures(name: str, signature: str) -> None:
    """docs/design.md, section 2; a change here is a change for every user."""
    holder, *rest = name.split(".")
    function = getattr(kcompile, holder)
    for part in rest:
        function = getattr(function, part)
    assert ", ".join(parameters(function)) == signature


def test_fields_of_a_heatmap() -> None:
    for name in ("scores", "all_scores", "base_score", "target", "positions", "patch_shape", "image_shape", "complete"):
        assert name in {*kcompile.Heatmap.__dataclass_fields__, *dir(kcompile.Heatmap)}


def test_errors_have_one_base() -> None:
    errors = [getattr(kcompile, name) for name in NAMES if name.endswith("Error")]
    assert all(issubclass(error, kcompile.KCompileError) for error in errors)
    assert issubclass(kcompile.PositionError, kcompile.InputError)
    assert issubclass(kcompile.InputError, ValueError)


def test_importing_is_lazy() -> None:
    """No torch, no numpy, no file, no thread; the first use of a name loads what it needs."""
    code = (
        "import sys, threading, kcompile\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'torchvision', 'skimage'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert threading.active_count() == 1\n"
        "kcompile.KCompileError\n"
        "assert 'torch' not in sys.modules, 'an error needs torch'\n"
        "kcompile.Heatmap\n"
        "assert 'torch' not in sys.modules, 'a heat map needs torch'\n"
        "kcompile.incrementalize\n"
        "import torch\n"
        "assert not torch.cuda.is_initialized()\n"
        "print('fine')\n"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=300)
    assert result.stdout == "fine\n", result.stderr


def test_importing_writes_nothing(tmp_path: object) -> None:
    code = "import kcompile, os; print(os.listdir('.'))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=str(tmp_path), timeout=300
    )
    assert result.stdout == "[]\n", result.stderr
