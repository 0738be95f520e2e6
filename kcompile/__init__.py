"""kcompile: fast occlusion explanations of CNNs."""
