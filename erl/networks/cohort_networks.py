"""Networks of many agents side by side, with hand-written gradients and an Adam that takes its step
in one pass.

All parameters of an agent lie in one row of one float32 array (n_agents, n_params). A layer is a
matrix (n_in + 1, n_out) whose last row is the bias; its input ends in a constant one, so that the
matrix products do the bias and its gradient as well. Activations are (n_agents, batch, n_units +
1), outputs unit-major, (n_agents, n_units, batch): then every sum over an output's few units runs
along the long axis. Nothing here mixes agents: each gets the same bits in whatever company.

Networks this small are bound by overhead, not by arithmetic. NumPy starts an operation in less time
than PyTorch and writes matrix products straight into slices of a row; PyTorch's fused Adam is the
one piece it cannot match.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch

# floats in 64 bytes: blocks of parameters start at multiples, so that all agents' are aligned alike
_LINE = 16
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


class Activation(NamedTuple):
    """An activation, in place, and its chain rule: `chain(h, d, scratch)` multiplies d by the slope
    where the output is h.
    """

    apply: Callable[[np.ndarray], object]
    chain: Callable[[np.ndarray, np.ndarray, np.ndarray], object]


def _chain_tanh(h: np.ndarray, d: np.ndarray, scratch: np.ndarray) -> None:
    np.multiply(h, h, out=scratch)
    np.subtract(1.0, scratch, out=scratch)
    np.multiply(d, scratch, out=d)


def _chain_sigmoid(h: np.ndarray, d: np.ndarray, scratch: np.ndarray) -> None:
    np.subtract(1.0, h, out=scratch)
    np.multiply(scratch, h, out=scratch)
    np.multiply(d, scratch, out=d)


def _sigmoid(h: np.ndarray) -> None:
    # By tanh, which cannot overflow.
    np.multiply(h, 0.5, out=h)
    np.tanh(h, out=h)
    np.add(h, 1.0, out=h)
    np.multiply(h, 0.5, out=h)


ACTIVATIONS: dict[str, Activation] = {
    "Tanh": Activation(lambda h: np.tanh(h, out=h), _chain_tanh),
    "ReLU": Activation(
        lambda h: np.maximum(h, 0.0, out=h), lambda h, d, _: np.multiply(d, h > 0, out=d)
    ),
    "LeakyReLU": Activation(
        lambda h: np.maximum(h, 0.01 * h, out=h),
        lambda h, d, _: np.multiply(d, 0.01, out=d, where=h <= 0),
    ),
    "ELU": Activation(
        lambda h: np.expm1(h, out=h, where=h < 0),
        lambda h, d, _: np.multiply(d, h + 1, out=d, where=h < 0),
    ),
    "Sigmoid": Activation(_sigmoid, _chain_sigmoid),
}  # named and shaped as in torch.nn, at its default settings


class Block(NamedTuple):
    """A place in every agent's row."""

    offset: int
    shape: tuple[int, ...]

    def view(self, rows: np.ndarray) -> np.ndarray:
        """The blocks of all rows: rows (n, n_params) -> (n, *shape), a view."""
        return rows[:, self.offset : self.offset + math.prod(self.shape)].reshape(
            len(rows), *self.shape
        )


class MLP:
    """The perceptrons of some agents: activated hidden layers, a linear output.

    Args:
        blocks: where the layers lie, each of shape (n_in + 1, n_out).
        activation: a key of `ACTIVATIONS`.
        weights: rows (n, n_params).
        grads: rows like `weights`, into which `backward` writes; none where only `forward` is asked
            for.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        activation: str,
        weights: np.ndarray,
        grads: np.ndarray | None = None,
    ) -> None:
        self._sizes = [block.shape[1] for block in blocks]
        self._weights = [block.view(weights) for block in blocks]
        self._grads = [] if grads is None else [block.view(grads) for block in blocks]
        self._activation = ACTIVATIONS[activation]
        self._buffers: dict[int, tuple[list, list, list, np.ndarray]] = {}

    def _buffer(self, batch: int) -> tuple[list, list, list, np.ndarray]:
        if batch not in self._buffers:
            n, dtype = len(self._weights[0]), self._weights[0].dtype
            wide = [(n, batch, size + 1) for size in self._sizes[:-1]]
            ones, zeros, scratch = (
                [make(shape, dtype) for shape in wide] for make in (np.ones, np.zeros, np.empty)
            )
            self._buffers[batch] = (
                ones,
                zeros,
                scratch,
                np.empty((n, self._sizes[-1], batch), dtype),
            )
        return self._buffers[batch]

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Outputs (n, n_out, batch) for inputs x (n, batch, n_in + 1) whose last column is one; the
        next call overwrites them.
        """
        hidden, _, _, output = self._buffer(x.shape[1])
        self._inputs = [x, *hidden]
        for weights, h in zip(self._weights, hidden):
            np.matmul(x, weights, out=h[..., :-1])
            # The constant goes through the activation as well: one contiguous pass is faster, and
            # the constant is put back.
            self._activation.apply(h)
            h[..., -1] = 1.0
            x = h
        np.matmul(x, self._weights[-1], out=output.transpose(0, 2, 1))
        return output

    def backward(self, d_output: np.ndarray) -> None:
        """Write the gradient of a loss, given its derivative (n, n_out, batch) by the outputs of
        the last `forward`.
        """
        _, deltas, scratches, _ = self._buffer(d_output.shape[2])
        d = d_output.transpose(0, 2, 1)
        for i in reversed(range(len(self._weights))):
            np.matmul(self._inputs[i].transpose(0, 2, 1), d, out=self._grads[i])
            if i:
                delta = deltas[i - 1]
                back = self._weights[i][:, :-1].transpose(0, 2, 1)
                if d.shape[2] == 1:
                    np.multiply(
                        d, back, out=delta[..., :-1]
                    )  # an outer product, which BLAS is slow at
                else:
                    np.matmul(
                        d, back.copy(), out=delta[..., :-1]
                    )  # BLAS is slow at a transposed second factor, too
                self._activation.chain(self._inputs[i], delta, scratches[i - 1])
                d = delta[..., :-1]


class Gaussian:
    """Diagonal normal distributions with one standard deviation per agent and dimension.

    Args:
        log_std: array (n, dim), logarithms of the standard deviations.
        grad: array like `log_std`, into which `backward` writes.
    """

    def __init__(self, log_std: np.ndarray, grad: np.ndarray) -> None:
        self._log_std, self._grad = log_std, grad

    @staticmethod
    def draw_noise(rng: np.random.Generator, out: np.ndarray) -> None:
        """Fill `out` with what, times the standard deviation and added to a mean, is a sample."""
        rng.standard_normal(dtype=np.float32, out=out)

    @staticmethod
    def choose(noisy: np.ndarray) -> np.ndarray:
        """Actions (…, dim) from means with noise, (…, dim)."""
        return noisy

    def log_prob(self, mean: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Log densities (n, batch) of `actions` under `mean`, both (n, dim, batch)."""
        self._inverse = np.exp(-self._log_std)[:, :, None]
        self._z = np.subtract(actions, mean)
        self._z *= self._inverse
        self._squares = self._z * self._z
        log_prob = np.add.reduce(self._squares, axis=1)
        log_prob *= -0.5
        self._log_norm = np.add.reduce(self._log_std, axis=1, keepdims=True)
        self._log_norm += self._log_std.shape[1] * _LOG_SQRT_2PI
        log_prob -= self._log_norm
        return log_prob

    def entropy(self) -> np.ndarray:
        """Entropies (n, 1), the same for all actions."""
        return self._log_norm + 0.5 * self._log_std.shape[1]

    def backward(self, d_log_prob: np.ndarray, d_entropy: np.ndarray) -> np.ndarray:
        """Derivative (n, dim, batch) of a loss by the mean, given those by each log density (n,
        batch) and by each entropy (n, 1).
        """
        d = d_log_prob
        grad = np.matmul(self._squares, d[:, :, None])[:, :, 0]
        grad -= np.add.reduce(d, axis=1, keepdims=True)
        np.add(grad, d_entropy * d.shape[1], out=self._grad)
        self._z *= self._inverse
        self._z *= d[:, None]
        return self._z


class Categorical:
    """Distributions over n_actions actions, from unnormalised log-probabilities (logits)."""

    @staticmethod
    def draw_noise(rng: np.random.Generator, out: np.ndarray) -> None:
        """Fill `out` with what, added to the logits, makes a sample's the largest (Gumbel's
        trick).
        """
        out[:] = -np.log(rng.standard_exponential(out.shape, dtype=np.float32))

    @staticmethod
    def choose(noisy: np.ndarray) -> np.ndarray:
        """Actions (…, 1) from logits with noise, (…, n_actions)."""
        return noisy.argmax(axis=-1)[..., None]

    def log_prob(self, logits: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Log-probabilities (n, batch) of `actions` (n, 1, batch), which count from 0, under
        `logits` (n, n_actions, batch).
        """
        self._log = logits - np.maximum.reduce(logits, axis=1, keepdims=True)
        self._log -= np.log(np.add.reduce(np.exp(self._log), axis=1, keepdims=True))
        self._p = np.exp(self._log)
        self._taken = (actions == np.arange(logits.shape[1], dtype=np.float32)[:, None]).astype(
            logits.dtype
        )
        return np.add.reduce(self._taken * self._log, axis=1)

    def entropy(self) -> np.ndarray:
        """Entropies (n, batch)."""
        return -np.add.reduce(self._p * self._log, axis=1)

    def backward(self, d_log_prob: np.ndarray, d_entropy: np.ndarray) -> np.ndarray:
        """Derivative (n, n_actions, batch) of a loss by the logits; arguments as
        `Gaussian.backward`'s.
        """
        d = (self._taken - self._p) * d_log_prob[:, None]
        if d_entropy.any():
            d -= self._p * (self._log + self.entropy()[:, None]) * d_entropy[:, :, None]
        return d


class MultiCategorical:
    """Several independent choices, each a `Categorical` on its part of the outputs; an action
    counts as one, whose log-probability and entropy are sums over its choices.

    Args:
        n_values: numbers of values of the choices.
    """

    def __init__(self, n_values: Sequence[int]) -> None:
        ends = [0, *accumulate(n_values)]
        self._parts = [slice(begin, end) for begin, end in pairwise(ends)]
        self._choices = [Categorical() for _ in n_values]

    draw_noise = staticmethod(Categorical.draw_noise)

    def choose(self, noisy: np.ndarray) -> np.ndarray:
        """Actions (…, n_choices) from logits with noise, (…, all values)."""
        return np.concatenate([Categorical.choose(noisy[..., p]) for p in self._parts], axis=-1)

    def log_prob(self, logits: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Log-probabilities (n, batch) of `actions` (n, n_choices, batch), which count from 0,
        under `logits` (n, all values, batch).
        """
        log_prob = np.zeros((len(logits), logits.shape[2]), logits.dtype)
        for k, (part, choice) in enumerate(zip(self._parts, self._choices)):
            log_prob += choice.log_prob(logits[:, part], actions[:, k : k + 1])
        return log_prob

    def entropy(self) -> np.ndarray:
        """Entropies (n, batch)."""
        return np.add.reduce([choice.entropy() for choice in self._choices], axis=0)

    def backward(self, d_log_prob: np.ndarray, d_entropy: np.ndarray) -> np.ndarray:
        """Derivative (n, all values, batch) of a loss by the logits; arguments as
        `Gaussian.backward`'s.
        """
        parts = [choice.backward(d_log_prob, d_entropy) for choice in self._choices]
        return np.concatenate(parts, axis=1)


class Bernoulli:
    """Independent bits, each 1 with the probability sigmoid(logit); an action is all of them, whose
    log-probability and entropy are sums.
    """

    @staticmethod
    def draw_noise(rng: np.random.Generator, out: np.ndarray) -> None:
        """Fill `out` with logistic noise, which added to a logit is above 0 where a sample is 1."""
        out[:] = rng.logistic(size=out.shape)

    @staticmethod
    def choose(noisy: np.ndarray) -> np.ndarray:
        """Actions (…, n_bits), 0 or 1, from logits with noise, (…, n_bits)."""
        return (noisy > 0).astype(np.int8)

    def log_prob(self, logits: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Log-probabilities (n, batch) of `actions` under `logits`, both (n, n_bits, batch)."""
        self._logits, self._actions = logits.copy(), actions
        self._p = logits.copy()
        _sigmoid(self._p)
        # log(1 + exp(logit)), which does not overflow so.
        self._softplus = np.log1p(np.exp(-np.abs(logits)))
        self._softplus += np.maximum(logits, 0.0)
        return np.add.reduce(actions * logits - self._softplus, axis=1)

    def entropy(self) -> np.ndarray:
        """Entropies (n, batch)."""
        return np.add.reduce(self._softplus - self._p * self._logits, axis=1)

    def backward(self, d_log_prob: np.ndarray, d_entropy: np.ndarray) -> np.ndarray:
        """Derivative (n, n_bits, batch) of a loss by the logits; arguments as
        `Gaussian.backward`'s.
        """
        d = (self._actions - self._p) * d_log_prob[:, None]
        d -= self._logits * self._p * (1.0 - self._p) * d_entropy[:, :, None]
        return d


Distribution = Gaussian | Categorical | MultiCategorical | Bernoulli


class ActorCritic:
    """Where the parameters of Stable-Baselines3's `MlpPolicy` lie in a row: policy, value network,
    log standard deviation.

    Args:
        n_inputs: length of an observation.
        n_outputs: dimensions of an action, number of discrete actions, of the values of all
            choices, or of bits.
        pi, vf: widths of the hidden layers of policy and value network.
        activation: a key of `ACTIVATIONS`.
        distribution: of actions.
        n_values: of each choice, where the distribution is `MultiCategorical`.
    """

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        pi: Sequence[int],
        vf: Sequence[int],
        activation: str,
        distribution: type[Distribution],
        n_values: Sequence[int] = (),
    ) -> None:
        self.n_params = 0
        self._distribution, self._n_values = distribution, tuple(n_values)
        self.activation = activation
        self._policy = self._layers([n_inputs, *pi, n_outputs])
        self._value = self._layers([n_inputs, *vf, 1])
        self._log_std = self._block(n_outputs) if distribution is Gaussian else None

    def _block(self, *shape: int) -> Block:
        block = Block(self.n_params, shape)
        self.n_params += -(-math.prod(shape) // _LINE) * _LINE
        return block

    def _layers(self, sizes: Sequence[int]) -> list[Block]:
        return [self._block(n_in + 1, n_out) for n_in, n_out in pairwise(sizes)]

    def policy(self, weights: np.ndarray, grads: np.ndarray | None = None) -> MLP:
        """The policies on rows of weights."""
        return MLP(self._policy, self.activation, weights, grads)

    def value(self, weights: np.ndarray, grads: np.ndarray | None = None) -> MLP:
        """The value networks on rows of weights."""
        return MLP(self._value, self.activation, weights, grads)

    def log_std(self, rows: np.ndarray) -> np.ndarray:
        """Log standard deviations (n, dim) in rows, a view; only for continuous actions."""
        assert self._log_std is not None
        return self._log_std.view(rows)

    def distribution(self, weights: np.ndarray, grads: np.ndarray) -> Distribution:
        """The distributions whose parameters the policies put out."""
        if self._log_std:
            return Gaussian(self.log_std(weights), self.log_std(grads))
        if self._distribution is MultiCategorical:
            return MultiCategorical(self._n_values)
        return Bernoulli() if self._distribution is Bernoulli else Categorical()

    def named(self, row: np.ndarray) -> dict[str, np.ndarray]:
        """The parts of one row (n_params,), views under the names and in the shapes of the policy's
        own `state_dict`.
        """
        views = {"log_std": self.log_std(row[None])[0]} if self._log_std else {}
        for net, head, layers in (
            ("policy", "action", self._policy),
            ("value", "value", self._value),
        ):
            for i, block in enumerate(layers):
                name = f"{head}_net" if block is layers[-1] else f"mlp_extractor.{net}_net.{2 * i}"
                layer = block.view(row[None])[0]
                views[f"{name}.weight"], views[f"{name}.bias"] = layer[:-1].T, layer[-1]
        return views

    def load(self, row: np.ndarray, parameters: Mapping[str, torch.Tensor]) -> None:
        """Fill one row from tensors under those names; zeros where a name is missing."""
        row[:] = 0.0
        for name, view in self.named(row).items():
            if name in parameters:
                view[...] = parameters[name].detach().numpy()


class Adam:
    """Adam (Kingma and Ba, 2015) on rows, with gradients clipped by each row's norm; the numbers
    are `torch.optim.Adam`'s.

    Attributes:
        first, second: running means of gradients and of their squares, like `weights`, changed in
            place.
        steps: steps taken so far, float32 (n,).
    """

    def __init__(
        self,
        weights: np.ndarray,
        first: np.ndarray,
        second: np.ndarray,
        steps: np.ndarray,
        eps: Sequence[float],
    ):
        self._rows = [
            ([w], [m], [v], [s])
            for w, m, v, s in zip(*map(torch.from_numpy, (weights, first, second, steps)))
        ]
        self._steps, self._eps = steps, eps

    def step(self, i: int, grad: np.ndarray, learning_rate: float, max_norm: float) -> None:
        """Move row i against `grad` (n_params,), which is scaled in place where its Euclidean norm
        exceeds `max_norm`.
        """
        scale = max_norm / (math.sqrt(grad @ grad) + 1e-6)
        if not scale >= 1.0:
            grad *= np.float32(scale)
        weights, first, second, steps = self._rows[i]
        self._steps[i] += 1
        # What torch.optim.Adam(fused=True) calls, without the 20 µs that it takes to get there.
        torch._fused_adam_(
            weights,
            [torch.from_numpy(grad)],
            first,
            second,
            [],
            steps,
            lr=learning_rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=self._eps[i],
            amsgrad=False,
            maximize=False,
        )
