"""Quantising in C: the same codes and scales as the reference, bit for bit."""

import torch
from torch import Tensor

from ling.ops import packed
from ling.ops.cpu import library as lib


def why_not(w: Tensor, format: "packed.PackedFormat") -> str | None:
    return lib.missing() if w.is_cpu else f"the weight is on {w.device}"


def forward(w: Tensor, format: "packed.PackedFormat") -> tuple[Tensor, Tensor]:
    *leading, M, K = w.shape
    matrices = w.float().contiguous().view(-1, M, K)
    shape = (tuple(leading), (M,), K)
    codes = torch.empty(packed.codes_shape(format, *shape), dtype=torch.uint8)
    scales = torch.empty(packed.scales_shape(*shape), dtype=torch.float16)
    own_codes, own_scales = codes.view(len(matrices), -1), scales.view(len(matrices), -1)
    for one, c, s in zip(matrices, own_codes, own_scales):
        pointers = (c.data_ptr(), s.data_ptr())
        lib.check(lib.opened().pack(one.data_ptr(), M, K, torch.get_num_threads(), lib.FORMATS[format], *pointers))
    return codes, scales
