"""The four top-level folders are one package, however it is installed, and each module has one name."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE_OF_FOLDER = {
    "kcompile": "kcompile",
    "passes": "kcompile/passes",
    "runtime": "kcompile/runtime",
    "cuda_ops": "kcompile/cuda_ops",
}
LINKS = {"passes", "runtime", "cuda_ops"}
NOT_PACKAGED = {".md", ".pyc"}

# Imports every module of kcompile, allowing for extras that are not installed; argv[1]: where kcompile must come from.
IMPORT_EVERYTHING = """
import importlib, os, pkgutil, sys
import kcompile

def modules(package):
    for found in pkgutil.iter_modules(importlib.import_module(package).__path__, package + "."):
        yield from modules(found.name) if found.ispkg else [found.name]

where = os.path.realpath(sys.argv[1]) + os.sep
for package in ("kcompile", "kcompile.core", "kcompile.passes", "kcompile.runtime", "kcompile.cuda_ops"):
    for name in modules(package):
        try:
            if not name.endswith("__main__"):
                importlib.import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "kcompile").split(".")[0] == "kcompile":
                raise
ours = {name: os.path.realpath(m.__file__) for name, m in sys.modules.items() if name.split(".")[0] == "kcompile"}
assert {"kcompile.core", "kcompile.passes.rules", "kcompile.runtime", "kcompile.cuda_ops"} <= set(ours), sorted(ours)
assert len(set(ours.values())) == len(ours), f"a file has two names: {sorted(ours.values())}"
strangers = [file for file in ours.values() if not file.startswith(where)]
assert not strangers, f"not below {where}: {strangers}"
bare = {"passes", "runtime", "cuda_ops"} & set(sys.modules)
assert not bare, f"imported by their bare names: {bare}"
"""


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command and show its output if it fails."""
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"exit {result.returncode}\n{result.stdout}\n{result.stderr}"


def copy_checkout(destination: Path) -> Path:
    """Copy what a build reads (symlinks as symlinks), so that building leaves nothing behind in the checkout."""
    destination.mkdir()
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, destination)
    for folder in PACKAGE_OF_FOLDER:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, destination / folder, symlinks=True, ignore=ignore)
    return destination


def files_to_package(folder: str) -> set[str]:
    """Name, as in the wheel, every file of a top-level folder but bytecode and notes."""
    names = set()
    for path in (ROOT / folder).rglob("*"):
        inner = path.relative_to(ROOT / folder)
        behind_link = folder == "kcompile" and inner.parts[0] in LINKS
        if path.is_file() and not behind_link and path.suffix not in NOT_PACKAGED:
            names.add(f"{PACKAGE_OF_FOLDER[folder]}/{inner.as_posix()}")
    return names


@pytest.fixture(scope="module", params=["from the checkout", "from the sdist"])
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel as `pip install .` does, or as an sdist's user does."""
    folder = tmp_path_factory.mktemp("wheel")
    only = ["--wheel"] if request.param == "from the checkout" else []
    source = copy_checkout(folder / "source")
    run(sys.executable, "-m", "build", *only, "--no-isolation", "--outdir", folder, source, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_every_file_of_the_folders_once(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packaged = [name for name in archive.namelist() if ".dist-info/" not in name]
    wanted = set().union(*map(files_to_package, PACKAGE_OF_FOLDER))
    assert not wanted - set(packaged), "missing: list the folder or the kind of data file in pyproject.toml"
    assert sorted(packaged) == sorted(wanted)


def test_wheel_imports_completely(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "import sys; sys.path.insert(0, sys.argv[1])\n" + IMPORT_EVERYTHING
    run(sys.executable, "-c", code, tmp_path / "site", cwd=tmp_path)


@pytest.mark.parametrize("symlinks", [True, False])
def test_editable_install_imports_from_elsewhere(symlinks: bool, tmp_path: Path) -> None:
    """It does so beside a user's own folders of the same names, and from a checkout on a system without symlinks."""
    source = copy_checkout(tmp_path / "source")
    for link in LINKS if not symlinks else ():
        (source / "kcompile" / link).unlink()
        (source / "kcompile" / link).write_text(f"../{link}")  # as git does there
    build = "import sys; from setuptools.build_meta import build_editable as build; build(sys.argv[1])"
    run(sys.executable, "-c", build, tmp_path, cwd=source)
    (editable,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(editable) as archive:
        archive.extractall(tmp_path / "site")
    for link in LINKS:
        (tmp_path / "user" / link).mkdir(parents=True)
        (tmp_path / "user" / link / "__init__.py").write_text("raise RuntimeError('not kcompile')")

    # -S leaves out the environment's own .pth files, and with them its install of kcompile.
    code = "import site, sys; site.addsitedir(sys.argv[2]); sys.path.append(sys.argv[3])\n" + IMPORT_EVERYTHING
    site_packages = Path(pytest.__file__).parents[1]
    run(sys.executable, "-S", "-c", code, source, tmp_path / "site", site_packages, cwd=tmp_path / "user")


def torch_free_modules() -> list[str]:
    """Name what must import without torch: the lazy root, all of core, the position scheduler, what runs exports."""
    core = [f"kcompile.core.{p.stem}" for p in sorted((ROOT / "kcompile/core").glob("*.py")) if p.stem != "__init__"]
    scheduler = ["kcompile.runtime.scheduler"] if (ROOT / "runtime/scheduler.py").exists() else []
    exports = ["kcompile.onnx_module", "kcompile.runtime.onnx_module"]
    return ["kcompile", "kcompile.core", *core, *scheduler, *exports]


@pytest.mark.parametrize("module", torch_free_modules())
def test_module_imports_without_torch(module: str, tmp_path: Path) -> None:
    code = f"import sys, {module}; assert 'torch' not in sys.modules, 'torch was imported'"
    run(sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}", cwd=tmp_path)
