"""Matrix products whose factors may be rounded to bfloat16, and how a processor does that."""

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Matrices narrower than this are multiplied in single precision even where the precision is
# bfloat16: they cost nothing, and observations keep their digits.
WIDE = 128
# The same for those whose factors are converted beforehand.
_WIDE_TENSORS = 96
# Batched products with fewer columns than this are faster the other way round.
NARROW = 32
# PyTorch's setting of how factors are rounded, the one that it follows, and what is wanted.
_onednn: Any = torch.backends.mkldnn
_CPU: tuple[Any, Any, str] = (_onednn.matmul, _onednn, "bf16")
_GPU: tuple[Any, Any, str] = (torch.backends.cuda.matmul, torch.backends.cudnn, "tf32")


def product(
    a: Tensor, b: Tensor, low: bool = False, bias: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """Matrix product, or one for each entry of three-dimensional factors, plus a bias if given.

    Where `low`, the factors of wide ones are rounded to bfloat16 (on a GPU to TF32, which has more
    digits). Where PyTorch does it inside the kernel, neither sums nor result are rounded. Where it
    does not, but multiplies bfloat16 tensors fast, factors are converted before, and the result,
    whose sums are in single precision, is a rounded one too. `bfloat16_way` tells which.
    """
    narrowest = min(*a.shape[-2:], b.shape[-1])
    if low and narrowest >= _WIDE_TENSORS and bfloat16_way(a.device.type) == "tensors":
        rounded = torch.matmul(a.bfloat16(), b.bfloat16())
        if out is not None:
            return out.copy_(rounded)
        return rounded.float() if bias is None else torch.add(rounded, bias)
    if not low or narrowest < WIDE:
        multiply, multiply_and_add = (
            (torch.mm, torch.addmm) if a.dim() == 2 else (torch.bmm, torch.baddbmm)
        )
        return multiply(a, b, out=out) if bias is None else multiply_and_add(bias, a, b, out=out)
    result = _rounding_product(a, b, out)
    return result if bias is None else result.add_(bias)


def _rounding_product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """A product for which PyTorch has leave to round factors inside the kernel."""
    # The setting is the process's: others in it find it as it was. "none" follows the more general
    # one; PyTorch does not tell that from the same value.
    matmul, general, precision = _GPU if a.is_cuda else _CPU
    before = matmul.fp32_precision
    restored = "none" if before == general.fp32_precision else before
    matmul.fp32_precision = precision
    try:
        return (torch.mm if a.dim() == 2 else torch.bmm)(a, b, out=out)
    finally:
        matmul.fp32_precision = restored


def narrow_product(
    a: Tensor, b: Tensor, low: bool = False, bias: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """`product`, several times as fast where it has few columns: it is computed transposed then.

    An outer product is computed by multiplication.
    """
    if a.shape[-1] == 1 and bias is None and out is None:
        return a * b
    if b.shape[-1] < min(NARROW, a.shape[-2]):
        turned = None if bias is None else bias.mT if bias.dim() == 3 else bias.unsqueeze(1)
        return product(b.mT, a.mT, low, turned, None if out is None else out.mT).mT
    return product(a, b, low, bias, out)


@cache
def rounds_to_bfloat16() -> bool:
    """Whether PyTorch rounds inside the kernel on this processor, found by a product and not by
    what the processor says of itself.

    PyTorch's setting is a permission. Processors with AMX use it; others with bfloat16 instructions
    do not, and compute in single precision.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2 * WIDE, 2 * WIDE, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    rounded = a.bfloat16().double() @ b.bfloat16().double()
    result = _rounding_product(a, b).double()
    return bool((result - rounded).abs().max() < (result - exact).abs().max())


@cache
def bfloat16_way(device: str = "cpu") -> str:
    """How `product(..., low=True)` multiplies on a device: `kernel` where PyTorch rounds inside the
    kernel, `tensors` where converted tensors multiply at least a third faster, else `fp32`: there
    is nothing to gain. Found by a short measurement.
    """
    if device != "cpu" or rounds_to_bfloat16():
        return "kernel"
    a = torch.randn(2 * WIDE, 2 * WIDE, generator=torch.Generator().manual_seed(0))
    b = a.bfloat16()

    def seconds(run: Callable[[], Tensor]) -> float:
        times = []
        for _ in range(20):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return min(times)

    faster = seconds(lambda: a @ a) > 1.33 * seconds(lambda: (a.bfloat16() @ b).float())
    return "tensors" if faster else "fp32"


def bfloat16_width(device: str = "cpu") -> int | None:
    """From which width on `product(..., low=True)` has lower precision on a device; None: never."""
    return {"kernel": WIDE, "tensors": _WIDE_TENSORS, "fp32": None}[bfloat16_way(device)]
