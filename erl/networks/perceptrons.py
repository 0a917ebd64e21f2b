"""Networks of off-policy learners, in PyTorch, with gradients written by hand.

All parameters of a network, or of several of one shape (twin critics, a population of actors), lie
in one flat vector, and so do their gradients: an optimiser, a soft update or a gradient norm is one
pass. Members of a cohort have a row each. Gradients are written where they belong, without a graph,
without zeroing and without accumulation; a plain autograd implementation in the tests holds them to
the equations. Everything runs on any device, and can be captured in a CUDA graph.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from erl.networks import products

# From so many parameters of a perceptron on, it is faster on a CPU to compute fewer rows in more
# calls.
_LARGE = 1 << 15
# Floats in 64 bytes, at whose multiples the blocks of aligned rows begin.
_LINE = 16
_SLOPE = 0.01  # of leaky ReLU, PyTorch's default
STD_EPS = 1e-12
_norm = torch.native_layer_norm
_norm_backward = torch.ops.aten.native_layer_norm_backward
_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_relu_backward = torch.ops.aten.threshold_backward.grad_input
_leaky_backward = torch.ops.aten.leaky_relu_backward.grad_input


def tanh_(h: Tensor) -> Tensor:
    """Hyperbolic tangent in place. On a CPU by NumPy, which takes a fifth of PyTorch's time and is
    exact to 1e-7 too.
    """
    if h.device.type != "cpu":
        return h.tanh_()
    values = h.numpy()
    np.tanh(values, out=values)
    return h


# In place: an activation, and its chain rule from the derivative by the output h.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "ReLU": (torch.relu_, lambda d, h: _relu_backward(d, h, 0.0, grad_input=d)),
    "Tanh": (tanh_, lambda d, h: _tanh_backward(d, h, grad_input=d)),
    "LeakyReLU": (
        lambda h: torch.nn.functional.leaky_relu_(h, _SLOPE),
        lambda d, h: _leaky_backward(d, h, _SLOPE, True, grad_input=d),
    ),
}  # named as in torch.nn, at its default settings


@dataclass(frozen=True)
class Shape:
    """Of each of n perceptrons that stand side by side.

    Attributes:
        inputs: length of the input; 0 for none but the code.
        hidden: widths of the hidden layers.
        outputs: length of the output; 0 if the last hidden layer is the output.
        activation: of the hidden layers, a key of `ACTIVATIONS`.
        norm: whether hidden layers are normalised before their activation (learned gain and shift).
        code: length of a vector that joins the first layer's input and is the same for the whole
            batch: it enters as a part of the bias, so that its product is computed once, not once
                for each row.
        output_scale: factor on the output layer's initial weights.
        aligned: whether each block begins at a multiple of 64 bytes, and narrow output matrices
            lie transposed: for members of a cohort, which get the same bits in whatever place where
            the widths of hidden layers and the batch are multiples of 16.
    """

    inputs: int
    hidden: tuple[int, ...] = (400, 300)
    outputs: int = 1
    activation: str = "LeakyReLU"
    norm: bool = True
    code: int = 0
    output_scale: float = 1.0
    aligned: bool = False

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

    def lengths(self) -> list[int]:
        """Numbers that each block takes."""
        line = _LINE if self.aligned else 1
        return [-(-math.prod(block) // line) * line for block in self.blocks()]

    def size(self, n: int = 1) -> int:
        """Numbers that the parameters of n perceptrons take."""
        return n * sum(self.lengths())


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

    def head(self, rows: int) -> "Trace":
        """Of the first so many rows of the batch, for stacked perceptrons; nothing is copied."""
        inputs = [[h[:, :rows] for h in layers] for layers in self.inputs]
        return Trace(self.output[:, :rows], inputs, self.norms, self.codes)


# A perceptron's layers and the code's matrix (code, width), if it has one.
_Member = tuple[list[Layer], Tensor | None]


class Perceptrons:
    """n perceptrons of one shape on a flat vector of parameters, one after the other, or on n
    rows.

    Layers are those of `torch.nn.Linear`, initialised alike. The normalisation divides by the
    standard deviation with n - 1, so the learned gain is multiplied by sqrt((n-1)/n) and PyTorch's
    kernel does the rest. The published code adds 1e-6 to the deviation; here 1e-12 is added to the
    variance, which differs by one part in a million at a deviation of one.

    Plain perceptrons are stacked: all take a step in one call. Those that normalise, or have codes,
    take it one after the other, since PyTorch's normalisation knows one gain and shift, and large
    products are no faster in a batch. So does a single one on a flat vector.

    Args:
        shape: of each.
        n: how many.
        values: their parameters, flat (shape.size(n),), or rows (n, shape.size()).
        grads: where `backward` writes; None for a network that is never trained (a target).
        low: factors of wide matrix products rounded to bfloat16.
    """

    def __init__(
        self, shape: Shape, n: int, values: Tensor, grads: Tensor | None = None, low: bool = False
    ) -> None:
        self.shape, self.n, self.low, self.device = shape, n, low, values.device
        self._large = shape.size() >= _LARGE and self.device.type == "cpu"
        self.members = self.cut(values)
        self._grads = [] if grads is None else self.cut(grads)
        # As tensors: numbers would be made into tensors at every use.
        self._unbias = [values.new_tensor(unbias(width)) for width in shape.hidden]
        self._activate, self._chain = ACTIVATIONS[shape.activation]
        stacked = (n > 1 or values.dim() == 2) and not shape.norm and not shape.code
        self._stack = self._layers(self._rows(values)) if stacked else None
        self._stack_grads = (
            self._layers(self._rows(grads)) if stacked and grads is not None else None
        )

    def _rows(self, values: Tensor) -> Tensor:
        return values if values.dim() == 2 else values.view(self.n, -1)

    def cut(self, values: Tensor) -> list[_Member]:
        """Views of parameters like this one's: for each perceptron its layers, and the code's
        matrix (code, width).
        """
        return [self._layers(row) for row in self._rows(values)]

    def _layers(self, rows: Tensor) -> _Member:
        """Views of a row, or of n rows: blocks (n, inputs, outputs) and (n, 1, outputs) then."""
        shape = self.shape
        shapes, lengths = shape.blocks(), shape.lengths()
        per_layer = [2 + 2 * shape.norm] * len(shape.hidden) + [2] * bool(shape.outputs)
        # Of the output layer, if it is narrow.
        turned = (
            sum(per_layer[:-1]) if shape.aligned and 0 < shape.outputs < products.NARROW else None
        )
        views = []
        for k, (part, block) in enumerate(zip(rows.split(lengths, -1), shapes)):
            block = block[::-1] if k == turned else block
            whole = block if rows.dim() == 1 else (len(rows), *(1,) * (2 - len(block)), *block)
            view = part[..., : math.prod(block)].view(whole)
            views.append(view.mT if k == turned else view)
        blocks = iter(views)
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
            x: (batch, inputs), which all perceptrons see, or (n, batch, inputs).
            codes: (n, code), of each its own.
            first: only the first so many perceptrons.
            keep: whether a backward pass follows. Without, memory is used again while it is in the
                cache.
        """
        n = self.n if first is None else first
        stack = self._stack if n == self.n else None
        multiply = products.narrow_product if self.shape.aligned else products.product
        inputs, norms, outputs = [], [], []
        for k, (layers, code) in enumerate([stack] if stack else self.members[:n]):
            if stack:
                h = x if x.dim() == 3 else x.expand(n, -1, -1)
            else:
                h = x[k] if x.dim() == 3 else x
            seen, normalised = [], []
            for i, layer in enumerate(layers):
                if keep:
                    seen.append(h)
                bias = layer.bias
                if i == 0 and code is not None and codes is not None:
                    bias = torch.addmv(bias, code.t(), codes[k])
                h = multiply(h, layer.weight, self.low, bias)
                if i == len(self.shape.hidden):
                    break
                if layer.gain is not None and layer.shift is not None:
                    gain = layer.gain * self._unbias[i]
                    y, mean, rstd = _norm(h, (h.shape[-1],), gain, layer.shift, STD_EPS)
                    if keep:
                        normalised.append((h, mean, rstd, gain))
                    h = y
                h = self._activate(h)
            inputs.append([*seen, h])
            norms.append(normalised)
            outputs.append(h)
        if len(outputs) > 1:
            output = torch.stack(outputs)
        else:
            output = outputs[0] if stack else outputs[0].unsqueeze(0)
        return Trace(output, inputs, norms, codes)

    def backward(
        self, trace: Trace, d: Tensor, weights: bool = True, inputs: slice | None = None
    ) -> Tensor:
        """The chain rule through a forward pass.

        Args:
            trace: of the forward pass; the parameters have not changed since.
            d: derivative of a loss by its outputs, (n, batch, outputs); may be overwritten.
            weights: whether to write the gradient of the parameters (over what was there). All
                perceptrons took part then.
            inputs: which columns of the inputs to give the derivatives by; None for none.

        Returns:
            Derivatives by those inputs (n, batch, columns); if there are none, by the codes
            (n, code); without codes, none of use.
        """
        if weights and len(d) != self.n:
            raise ValueError("gradients of parameters are those of all perceptrons")
        if self._stack and len(d) == self.n:
            gradients = self._stack_grads if weights else None
            return self._backward(self._stack, gradients, trace, 0, d, inputs)
        results = [
            self._backward(member, self._grads[k] if weights else None, trace, k, dk, inputs)
            for k, (member, dk) in enumerate(zip(self.members, d))
        ]
        return torch.stack(results) if self.shape.code or inputs is not None else results[0]

    def backward_through(self, trace: Trace, which: Tensor, d: float, inputs: slice) -> Tensor:
        """The chain rule for a loss that depends, in each row of the batch, on the output of one of
        several stacked perceptrons of a single output.

        Args:
            trace: of the forward pass of all.
            which: int64 (groups, batch, 1), whose output it is: that of the group's first
                perceptron, of its second, ….
            d: derivative of the loss by that output.
            inputs: which columns of the inputs to give the derivatives by.

        Returns:
            Derivatives by those inputs (groups, batch, columns).
        """
        assert self._stack is not None
        groups, batch, _ = which.shape
        each = self.n // groups
        if not self._large:
            by_output = trace.output.new_zeros(groups, each, batch, 1)
            by_output.scatter_(1, which.unsqueeze(1), d)
            by_input = self.backward(trace, by_output.view_as(trace.output), False, inputs)
            return by_input.reshape(groups, each, batch, -1).sum(1)
        # Rows are put in the order of their perceptrons, and each of these multiplies its own.
        # NumPy is quicker than PyTorch at finding that order.
        members = (which.numpy() + np.arange(0, self.n, each).reshape(-1, 1, 1)).ravel()
        order = members.argsort(kind="stable")
        members = members[order]
        ends = members.searchsorted(np.arange(self.n), "right").tolist()
        places = torch.from_numpy(members * batch + order % batch)
        multiply = products.narrow_product if self.shape.aligned else products.product
        layers, seen = self._stack[0], trace.inputs[0]
        by_output = layers[-1].transposed.squeeze(1) * d
        back = by_output.index_select(0, torch.from_numpy(members))
        for i in reversed(range(len(self.shape.hidden))):
            back = self._chain(back, seen[i + 1].flatten(0, 1).index_select(0, places))
            first_weights = layers[i].transposed[..., inputs] if i == 0 else layers[i].transposed
            given, back = back, back.new_empty(groups * batch, first_weights.shape[-1])
            for (own, _), begin, end in zip(self.members, [0, *ends], ends):
                weight = own[i].transposed if i > 0 else own[0].transposed[:, inputs]
                multiply(given[begin:end], weight, self.low, out=back[begin:end])
        by_input = torch.empty_like(back).index_copy_(0, torch.from_numpy(order), back)
        return by_input.view(groups, batch, -1)

    def _backward(
        self,
        member: _Member,
        gradients: _Member | None,
        trace: Trace,
        k: int,
        d: Tensor,
        inputs: slice | None,
    ) -> Tensor:
        """`backward` through entry k of a trace; `gradients` to write to, if wanted."""
        (layers, code), seen = member, trace.inputs[k]
        grads, code_grad = gradients or ([], None)
        weights = gradients is not None
        multiply = products.narrow_product if self.shape.aligned else products.product
        for i in reversed(range(len(layers))):
            layer = layers[i]
            if i < len(self.shape.hidden):
                d = self._chain(d, seen[i + 1])
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
                multiply(seen[i].mT, d, self.low, out=grads[i].weight)
                torch.sum(d, -2, keepdim=d.dim() == 3, out=grads[i].bias)
            if i > 0:
                d = multiply(d, layer.transposed, self.low)
            elif inputs is not None:
                d = multiply(d, layer.transposed[..., inputs], self.low)
        if code is not None and code_grad is not None and trace.codes is not None:
            torch.outer(trace.codes[k], grads[0].bias, out=code_grad)
            return d if inputs is not None else code @ grads[0].bias
        return d


def unbias(n: int) -> float:
    """From a standard deviation with n to one with n - 1, in the denominator."""
    return math.sqrt((n - 1) / n)
