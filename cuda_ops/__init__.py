"""The ops of incremental inference, ``torch.ops.kcompile.*``; importing this package registers them."""

from kcompile.cuda_ops import cpu, cuda, cuda_reads, reads, reference, winograd
from kcompile.cuda_ops.schema import LIBRARY

for _name in ("gather", "superimpose", "gather_superimpose"):
    LIBRARY.impl(_name, getattr(cpu, _name), "CPU")
for _name in ("crop", "resample"):
    LIBRARY.impl(_name, getattr(reference, _name), "CPU")
for _device in ("CPU", "CUDA"):
    LIBRARY.impl("contract", reference.contract, _device)
for _name in ("winograd", "gather_winograd"):
    LIBRARY.impl(_name, getattr(winograd, _name), "CPU")
for _name in ("gather", "superimpose", "gather_superimpose", "crop"):
    LIBRARY.impl(_name, getattr(cuda, _name), "CUDA")
LIBRARY.impl("resample", reference.resample, "CUDA")
for _name, _reference in reads.REFERENCE.items():
    LIBRARY.impl(_name, _reference, "CPU")
    LIBRARY.impl(_name, getattr(cuda_reads, _name), "CUDA")
