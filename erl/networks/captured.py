"""Functions on tensors whose kernels a GPU records once and replays."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor


class Captured:
    """A function that is called over and over on tensors of the same shapes; on a GPU its kernels
    are recorded once and replayed as one CUDA graph.

    Args:
        function: called as `function(key, *tensors)`; a key stands for one course of its work.
            Returns tensors by name. Must read nothing back from the device, and keep its state in
            place.
        device: anything but a GPU: the function is called as it is.
    """

    _WARM = 3  # calls before a course is recorded, in which libraries choose their kernels

    def __init__(self, function: Callable[..., dict[str, Tensor]], device: str) -> None:
        self._function, self._graphed = function, torch.device(device).type == "cuda"
        self._calls: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, tuple[Any, tuple[Tensor | None, ...], dict[str, Tensor]]] = {}

    def __call__(self, key: Hashable, *tensors: Tensor | None) -> dict[str, Tensor]:
        """The function's result; on a GPU valid until the next call."""
        self._calls[key] = self._calls.get(key, 0) + 1
        if not self._graphed or self._calls[key] <= self._WARM:
            return self._function(key, *tensors)
        if key not in self._graphs:
            fixed = tuple(None if t is None else t.clone() for t in tensors)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = self._function(key, *fixed)
            self._graphs[key] = graph, fixed, result
        graph, fixed, result = self._graphs[key]
        for mine, given in zip(fixed, tensors):
            if mine is not None and given is not None:
                mine.copy_(given)
        graph.replay()
        return result
