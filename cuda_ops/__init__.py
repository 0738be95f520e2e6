"""The ops of incremental inference, ``torch.ops.kcompile.*``; importing this package registers them."""

from kcompile.cuda_ops import (
    convolved,
    cpu,
    cuda,
    cuda_linear,
    cuda_reads,
    linear,
    reads,
    reference,
    triton_conv,
    winograd,
)
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
LIBRARY.impl("read_convolved", convolved.read_convolved, "CPU")
LIBRARY.impl("read_convolved", triton_conv.read_convolved, "CUDA")
LIBRARY.impl("read_linear", linear.read_linear, "CPU")
LIBRARY.impl("read_linear", cuda_linear.read_linear, "CUDA")
