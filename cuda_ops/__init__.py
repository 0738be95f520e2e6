"""The ops of incremental inference, ``torch.ops.kcompile.*``; importing this package registers them."""

from kcompile.cuda_ops import cpu, reference, winograd
from kcompile.cuda_ops.schema import LIBRARY

for _name in ("gather", "superimpose", "gather_superimpose"):
    LIBRARY.impl(_name, getattr(cpu, _name), "CPU")
    LIBRARY.impl(_name, getattr(reference, _name), "CUDA")
for _name in ("crop", "resample"):
    LIBRARY.impl(_name, getattr(reference, _name), "CPU")
    LIBRARY.impl(_name, getattr(reference, _name), "CUDA")
for _name in ("winograd", "gather_winograd"):
    LIBRARY.impl(_name, getattr(winograd, _name), "CPU")
