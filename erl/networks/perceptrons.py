"""Networks of off-policy learners, in PyTorch, with gradients written by hand.

All parameters of a network, or of several of one shape (twin critics, a population of actors), lie
in one flat vector, and so do their gradients: an optimiser, a soft update or a gradient norm is one
pass. Gradients are written where they belong, without a graph, without zeroing and without
accumulation; a plain autograd implementation in the tests holds them to the equations. Everything
runs on any device, and can be captured in a CUDA graph.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor

# Matrices narrower than this are multiplied in single precision even where the precision is
# bfloat16: they cost nothing, and observations keep their digits.
WIDE = 128
_SLOPE = 0.01  # of leaky ReLU, PyTorch's default
STD_EPS = 1e-12
_norm = torch.native_layer_norm
_norm_backward = torch.ops.aten.native_layer_norm_backward
_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_leaky_backward = torch.ops.aten.leaky_relu_backward.grad_input
# PyTorch's setting of how factors are rounded, the one that it follows, and what is wanted.
_CPU: tuple[Any, Any, str] = (torch.backends.mkldnn.matmul, torch.backends.mkldnn, "bf16")  # type: ignore[attr-defined]
_GPU: tuple[Any, Any, str] = (torch.backends.cuda.matmul, torch.backends.cudnn, "tf32")


def product(
    a: Tensor, b: Tensor, low: bool = False, bias: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """Matrix product, or one for each entry of three-dimensional factors, plus a bias if given.

    Where `low`, the factors of wide ones are rounded to bfloat16 (on a GPU to TF32, which has more
    digits), but neither sums nor result. The rounding is PyTorch's, inside the kernel: to convert
    factors beforehand takes as long as the faster product saves. On many processors PyTorch does
    not round at all: `rounds_to_bfloat16` tells.
    """
    multiply, multiply_and_add = (
        (torch.mm, torch.addmm) if a.dim() == 2 else (torch.bmm, torch.baddbmm)
    )
    if not low or min(*a.shape[-2:], b.shape[-1]) < WIDE:
        return multiply(a, b, out=out) if bias is None else multiply_and_add(bias, a, b, out=out)
    # The setting is the process's: others in it find it as it was. "none" follows the more general
    # one; PyTorch does not tell that from the same value.
    matmul, general, precision = _GPU if a.is_cuda else _CPU
    before = matmul.fp32_precision
    restored = "none" if before == general.fp32_precision else before
    matmul.fp32_precision = precision
    try:
        result = multiply(a, b, out=out)
    finally:
        matmul.fp32_precision = restored
    return result if bias is None else result.add_(bias)


@cache
def rounds_to_bfloat16() -> bool:
    """Whether `product(..., low=True)` rounds on this processor, found by a product and not by what
    the processor says of itself.

    PyTorch's setting is a permission. Processors with AMX use it; others with bfloat16 instructions
    do not, and compute in single precision.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2 * WIDE, 2 * WIDE, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    rounded = a.bfloat16().double() @ b.bfloat16().double()
    result = product(a, b, low=True).double()
    return bool((result - rounded).abs().max() < (result - exact).abs().max())


@dataclass(frozen=True)
class Shape:
    """Of each of n perceptrons that stand side by side.

    Attributes:
        inputs: length of the input; 0 for none but the code.
        hidden: widths of the hidden layers.
        outputs: length of the output; 0 if the last hidden layer is the output.
        tanh: activation tanh, instead of leaky ReLU.
        norm: whether hidden layers are normalised before their activation (learned gain and shift).
        code: length of a vector that joins the first layer's input and is the same for the whole
            batch: it enters as a part of the bias, so that its product is computed once, not once
                for each row.
        output_scale: factor on the output layer's initial weights.
    """

    inputs: int
    hidden: tuple[int, ...] = (400, 300)
    outputs: int = 1
    tanh: bool = False
    norm: bool = True
    code: int = 0
    output_scale: float = 1.0

    def blocks(self) -> list[tuple[int, ...]]:
        """Shapes of one's parameters in their order: for each layer the matrix, the bias, gain and
        shift; last the code's matrix.
        """
        blocks: list[tuple[int, ...]] = []
        width = self.inputs
        for size in self.hidden:
            blocks += [(width, size), (size,)] + [(size,)] * (2 * self.norm)
            width = size
        if self.outputs:
            blocks += [(width, self.outputs), (self.outputs,)]
        if self.code:
            blocks.append((self.code, self.hidden[0]))
        return blocks

    def size(self, n: int) -> int:
        """Number of parameters of n perceptrons."""
        return n * sum(map(math.prod, self.blocks()))


@dataclass
class Layer:
    """One layer's parameters, or their gradients: matrix (inputs, outputs), and vectors
    (outputs,).
    """

    weight: Tensor
    bias: Tensor
    gain: Tensor | None = None
    shift: Tensor | None = None

    def __post_init__(self) -> None:
        self.transposed = self.weight.mT


@dataclass
class Trace:
    """What a forward pass leaves for its backward pass; lists have an entry for each perceptron, or
    a single one for all that are stacked.

    Attributes:
        output: (n, batch, outputs).
        inputs: of each layer, (batch, width), and the last hidden layer's output.
        norms: of each hidden layer: input of the normalisation, mean, 1/std, effective gain.
        codes: (code,) of each, if there are codes.
    """

    output: Tensor
    inputs: list[list[Tensor]]
    norms: list[list[tuple[Tensor, Tensor, Tensor, Tensor]]]
    codes: Tensor | None


# A perceptron's layers and the code's matrix (code, width), if it has one.
_Member = tuple[list[Layer], Tensor | None]


class Perceptrons:
    """n perceptrons of one shape on a flat vector of parameters, one after the other:
    `values.view(n, -1)` has a row for each.

    Layers are those of `torch.nn.Linear`, initialised alike. The normalisation divides by the
    standard deviation with n - 1, so the learned gain is multiplied by sqrt((n-1)/n) and PyTorch's
    kernel does the rest. The published code adds 1e-6 to the deviation; here 1e-12 is added to the
    variance, which differs by one part in a million at a deviation of one.

    Plain perceptrons are stacked: all take a step in one call. Those that normalise, or have codes,
    take it one after the other, since PyTorch's normalisation knows one gain and shift, and large
    products are no faster in a batch.

    Args:
        shape: of each.
        n: how many.
        values: their parameters, flat (shape.size(n),).
        grads: where `backward` writes; None for a network that is never trained (a target).
        low: factors of wide matrix products rounded to bfloat16.
    """

    def __init__(
        self, shape: Shape, n: int, values: Tensor, grads: Tensor | None = None, low: bool = False
    ) -> None:
        self.shape, self.n, self.low = shape, n, low
        self.members = self.cut(values)
        self._grads = [] if grads is None else self.cut(grads)
        # As tensors: numbers would be made into tensors at every use.
        self._unbias = [values.new_tensor(unbias(width)) for width in shape.hidden]
        stacked = n > 1 and not shape.norm and not shape.code
        self._stack = self._layers(values.view(n, -1)) if stacked else None
        self._stack_grads = (
            self._layers(grads.view(n, -1)) if stacked and grads is not None else None
        )

    def cut(self, flat: Tensor) -> list[_Member]:
        """Views of a flat vector of this one's size: for each perceptron its layers, and the code's
        matrix (code, width).
        """
        return [self._layers(row) for row in flat.view(self.n, -1)]

    def _layers(self, rows: Tensor) -> _Member:
        """Views of a row, or of n rows: blocks (n, inputs, outputs) and (n, 1, outputs) then."""
        shapes = self.shape.blocks()
        if rows.dim() == 2:
            shapes = [(len(rows), *(1,) * (2 - len(block)), *block) for block in shapes]
        parts = rows.split([math.prod(block) for block in self.shape.blocks()], -1)
        blocks = (part.view(block) for part, block in zip(parts, shapes))
        per_layer = [2 + 2 * self.shape.norm] * len(self.shape.hidden) + [2] * bool(
            self.shape.outputs
        )
        layers = [Layer(*islice(blocks, k)) for k in per_layer]
        return layers, next(blocks, None)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw parameters as `torch.nn.Linear` does: uniform within 1/sqrt(inputs)."""
        for layers, code in self.members:
            for i, layer in enumerate(layers):
                bound = 1.0 / math.sqrt(layer.weight.shape[0] + (self.shape.code if i == 0 else 0))
                for block in (layer.weight, layer.bias) + (
                    (code,) if i == 0 and code is not None else ()
                ):
                    block.copy_(
                        torch.empty(block.shape).uniform_(-bound, bound, generator=generator)
                    )
                if layer.gain is not None and layer.shift is not None:
                    layer.gain.fill_(1.0)
                    layer.shift.zero_()
            if self.shape.outputs:
                layers[-1].weight.mul_(self.shape.output_scale)
                layers[-1].bias.mul_(self.shape.output_scale)

    def forward(
        self, x: Tensor, codes: Tensor | None = None, first: int | None = None, keep: bool = True
    ) -> Trace:
        """Outputs for a batch.

        Args:
            x: (batch, inputs), which all perceptrons see.
            codes: (n, code), of each its own.
            first: only the first so many perceptrons.
            keep: whether a backward pass follows. Without, memory is used again while it is in the
                cache.
        """
        n = self.n if first is None else first
        stack = self._stack if n == self.n else None
        inputs, norms, outputs = [], [], []
        for k, (layers, code) in enumerate([stack] if stack else self.members[:n]):
            h, seen, normalised = x.expand(n, -1, -1) if stack else x, [], []
            for i, layer in enumerate(layers):
                if keep:
                    seen.append(h)
                bias = layer.bias
                if i == 0 and code is not None and codes is not None:
                    bias = torch.addmv(bias, code.t(), codes[k])
                h = product(h, layer.weight, self.low, bias)
                if i == len(self.shape.hidden):
                    break
                if layer.gain is not None and layer.shift is not None:
                    gain = layer.gain * self._unbias[i]
                    y, mean, rstd = _norm(h, (h.shape[-1],), gain, layer.shift, STD_EPS)
                    if keep:
                        normalised.append((h, mean, rstd, gain))
                    h = y
                h = h.tanh_() if self.shape.tanh else torch.nn.functional.leaky_relu_(h, _SLOPE)
            inputs.append([*seen, h])
            norms.append(normalised)
            outputs.append(h)
        if len(outputs) > 1:
            output = torch.stack(outputs)
        else:
            output = outputs[0] if stack else outputs[0].unsqueeze(0)
        return Trace(output, inputs, norms, codes)

    def backward(
        self, trace: Trace, d: Tensor, weights: bool = True, inputs: bool = False
    ) -> list[Tensor]:
        """The chain rule through a forward pass.

        Args:
            trace: of the forward pass; the parameters have not changed since.
            d: derivative of a loss by its outputs, (n, batch, outputs); may be overwritten.
            weights: whether to write the gradient of the parameters (over what was there). All
                perceptrons took part then.
            inputs: whether to give the derivatives by the inputs, (batch, inputs) for each
                perceptron; by the codes (code,) otherwise.
        """
        assert not weights or len(d) == self.n
        if self._stack and len(d) == self.n:
            return list(
                self._backward(
                    self._stack, self._stack_grads if weights else None, trace, 0, d, inputs
                )
            )
        return [
            self._backward(member, self._grads[k] if weights else None, trace, k, dk, inputs)
            for k, (member, dk) in enumerate(zip(self.members, d))
        ]

    def _backward(
        self,
        member: _Member,
        gradients: _Member | None,
        trace: Trace,
        k: int,
        d: Tensor,
        inputs: bool,
    ) -> Tensor:
        """`backward` through entry k of a trace; `gradients` to write to, if wanted."""
        (layers, code), seen = member, trace.inputs[k]
        grads, code_grad = gradients or ([], None)
        weights = gradients is not None
        for i in reversed(range(len(layers))):
            layer = layers[i]
            if i < len(self.shape.hidden):
                if self.shape.tanh:
                    d = _tanh_backward(d, seen[i + 1], grad_input=d)
                else:
                    d = _leaky_backward(d, seen[i + 1], _SLOPE, True, grad_input=d)
                if layer.gain is not None and layer.shift is not None:
                    x, mean, rstd, gain = trace.norms[k][i]
                    wanted = [True, weights, weights]
                    d, d_gain, d_shift = _norm_backward(
                        d, x, [d.shape[-1]], mean, rstd, gain, layer.shift, wanted
                    )
                    if weights:
                        grad = grads[i]
                        assert grad.gain is not None and grad.shift is not None  # noqa: PT018
                        torch.mul(d_gain, self._unbias[i], out=grad.gain)
                        grad.shift.copy_(d_shift)
            if weights:
                product(seen[i].mT, d, self.low, out=grads[i].weight)
                torch.sum(d, -2, keepdim=d.dim() == 3, out=grads[i].bias)
            if i > 0 or inputs:
                d = product(d, layer.transposed, self.low)
        if code is not None and code_grad is not None and trace.codes is not None:
            torch.outer(trace.codes[k], grads[0].bias, out=code_grad)
            return d if inputs else code @ grads[0].bias
        return d


def unbias(n: int) -> float:
    """From a standard deviation with n to one with n - 1, in the denominator."""
    return math.sqrt((n - 1) / n)


def shortening(norm: Tensor, max_norm: float) -> Tensor:
    """What to multiply a vector of this norm by so that it is no longer than `max_norm`, as
    `torch.nn.utils.clip_grad_norm_` does.
    """
    return (max_norm / (norm + 1e-6)).clamp_(max=1.0)


class Trained:
    """A flat vector of parameters with its gradient, Adam's moments and, if wanted, a target that
    follows it.

    Args:
        size: number of parameters.
        rate: Adam's learning rate; its other settings are PyTorch's defaults.
        max_norm: gradients longer than this are shortened to it.
        device: where it lies.
    """

    def __init__(
        self,
        size: int,
        rate: float = 1e-3,
        max_norm: float = 10.0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.values, self.grads, self.target, self._first, self._second = torch.zeros(
            5, size, device=device
        )
        self._steps = torch.zeros((), device=device, dtype=torch.float32)
        self._rate, self._max_norm = rate, max_norm

    def step(self) -> Tensor:
        """Clip the gradient, take one step of Adam, and give the gradient's norm before
        clipping.
        """
        norm = torch.dot(self.grads, self.grads).sqrt_()
        # A GPU is not asked, which would be to wait for it; on a CPU there is seldom anything to
        # do.
        if norm.is_cuda or norm.item() > self._max_norm:
            self.grads *= shortening(norm, self._max_norm)
        self._steps += 1
        torch._fused_adam_(
            [self.values],
            [self.grads],
            [self._first],
            [self._second],
            [],
            [self._steps],
            lr=self._rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )
        return norm

    def start_target(self) -> None:
        """Make the target equal to the parameters."""
        self.target.copy_(self.values)

    def get_state(self) -> list[Tensor]:
        """All that a checkpoint needs, as tensors on the CPU."""
        return [
            t.detach().cpu().clone()
            for t in (self.values, self.target, self._first, self._second, self._steps)
        ]

    def set_state(self, state: Sequence[Tensor]) -> None:
        """Go on from `get_state`."""
        for mine, theirs in zip(
            (self.values, self.target, self._first, self._second, self._steps), state, strict=True
        ):
            mine.copy_(theirs)


def soft_update(networks: Sequence[Trained], tau: float) -> None:
    """Move every target a part `tau` of the way to its network."""
    torch._foreach_lerp_([n.target for n in networks], [n.values for n in networks], tau)
