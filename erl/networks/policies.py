"""Many small policies side by side, in NumPy: forward passes alone, for populations that play."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

# In place, named as in torch.nn.
ACTIVATIONS: dict[str, Callable[[np.ndarray], object]] = {
    "ReLU": lambda h: np.maximum(h, 0.0, out=h),
    "Tanh": lambda h: np.tanh(h, out=h),
}


class Policies:
    """Perceptrons of one shape, a flat vector of parameters each, laid out as in `Perceptrons`
    without normalisation: layer after layer the matrix (inputs, outputs) and the bias (outputs,).

    Outputs are linear. One policy's outputs do not depend on the others, to the last bit.

    Args:
        sizes: of the input, of the hidden layers and of the output.
        rows: parameters (n, dim), of any type; they are not copied where they are contiguous
            float32.
        activation: of the hidden layers, a key of `ACTIVATIONS`.
    """

    def __init__(self, sizes: Sequence[int], rows: np.ndarray, activation: str = "ReLU") -> None:
        self._activate = ACTIVATIONS[activation]
        self._sizes, self._rows = tuple(sizes), np.ascontiguousarray(rows, dtype=np.float32)
        if self._rows.ndim != 2 or self._rows.shape[1] != n_parameters(sizes):
            raise ValueError(
                f"perceptrons of {tuple(sizes)} have {n_parameters(sizes)} parameters each, and "
                f"the rows are {self._rows.shape}"
            )
        self._everyone = list(range(len(self._rows)))
        self._who: list[int] | None = None
        self.layers = self._cut(self._rows)

    def _cut(self, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        layers, begin = [], 0
        for inputs, outputs in pairwise(self._sizes):
            end = begin + inputs * outputs
            weight = rows[:, begin:end].reshape(len(rows), inputs, outputs)
            begin = end + outputs
            layers.append((weight, rows[:, None, end:begin]))
        return layers

    def __call__(self, x: np.ndarray, who: np.ndarray | None = None) -> np.ndarray:
        """Outputs (k, batch, outputs).

        Args:
            x: (k, batch, inputs), of each policy its own.
            who: int array (k,), which policies; None for all. Those of the latest call are kept at
                hand, since episodes last.
        """
        wanted = None if who is None else who.tolist()
        if wanted == self._everyone:
            wanted = None
        if wanted != self._who:
            self._who = wanted
            self.layers = self._cut(self._rows if wanted is None else self._rows[wanted])
        h = np.asarray(x, dtype=np.float32)
        for weight, bias in self.layers[:-1]:
            h = np.matmul(h, weight)
            h += bias
            self._activate(h)
        weight, bias = self.layers[-1]
        return np.matmul(h, weight) + bias


def n_parameters(sizes: Sequence[int]) -> int:
    """Parameters of a perceptron of these sizes."""
    return sum((inputs + 1) * outputs for inputs, outputs in pairwise(sizes))
