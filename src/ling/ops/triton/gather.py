"""Gradients into moments, whatever these are kept in, without a copy of anything in float32."""

from torch import Tensor

from ling.ops.adamw import Moment
from ling.ops.noise import signed_int
from ling.ops.triton.adamw import FP8, MOMENTS, ROWS
from ling.ops.triton.available import refuse, refuse_fp8


def why_not(
    gradient: Tensor, mean: Moment, square: Moment | None, key: int, mean_share: float, square_share: float,
    offset: int = 0,
) -> str | None:  # fmt: skip
    codes = [moment.codes for moment in (mean, square) if moment is not None]
    for held in codes:
        if held.dtype not in MOMENTS:
            return f"it does not know moments in {held.dtype}"
        if not held.is_contiguous():
            return "moments are not contiguous"
    check = refuse_fp8 if any(held.dtype == FP8 for held in codes) else refuse
    return check(gradient, *codes)


def forward(
    gradient: Tensor, mean: Moment, square: Moment | None, key: int, mean_share: float, square_share: float,
    offset: int = 0,
) -> None:  # fmt: skip
    from ling.ops.triton.kernels import gather as kernels

    n = gradient.numel()
    assert n == mean.codes.numel(), (n, mean.codes.shape)
    kernels.gather[(-(-n // (256 * ROWS)),)](
        gradient.contiguous(), *mean, *(square or (None, None)), n, signed_int(key), offset,
        MEAN_SHARE=mean_share, SQUARE_SHARE=square_share, ROWS=ROWS,
    )  # fmt: skip
