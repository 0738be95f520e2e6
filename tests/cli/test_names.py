"""The public functions stay reachable whatever modules are imported."""

import subprocess
import sys


def test_the_module_of_occlusion_does_not_hide_the_function() -> None:
    code = (
        "import kcompile, kcompile.occlusion; from kcompile.occlusion import grid; kcompile.analyze; "
        "assert callable(kcompile.occlusion); from kcompile import occlusion; assert occlusion is kcompile.occlusion"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
