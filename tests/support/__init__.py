"""What the tests share: compiling small networks in full, patched images, brute-force checks."""
