"""Parameters of several networks of one shape, with their gradients, optimiser and targets."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def shortening(norm: Tensor, max_norm: float) -> Tensor:
    """What to multiply a vector of this norm by so that it is no longer than `max_norm`, as
    `torch.nn.utils.clip_grad_norm_` does.
    """
    return (max_norm / (norm + 1e-6)).clamp_(max=1.0)


class Trained:
    """Parameters of n members, a row each, with their gradients, Adam's moments and step counters
    and, if wanted, targets that follow them.

    A row gets the same bits whatever the others do.

    Args:
        n: members.
        size: numbers in a row.
        rate: Adam's learning rate, of all members.
        max_norm: gradients of a member longer than this are shortened to it; None: never.
        device: where it lies.
        betas, eps, weight_decay: Adam's other settings.

    Attributes:
        values, grads, target: (n, size).
        alike: whether all members have the same rate at all times, which a GPU is told once.
    """

    def __init__(
        self,
        n: int,
        size: int,
        rate: float = 1e-3,
        max_norm: float | None = None,
        device: torch.device | str = "cpu",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self._tensors = [*torch.zeros(5, n, size, device=device), torch.zeros(n, device=device)]
        self._max_norm = max_norm
        self._adam: dict[str, Any] = {
            "beta1": betas[0],
            "beta2": betas[1],
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": False,
            "maximize": False,
        }
        # A GPU reads rates from its own memory, so that a recorded graph follows schedules.
        self._rates = torch.zeros(n, device=device) if torch.device(device).type == "cuda" else None
        self.alike = True
        self._bind()
        self.set_rates([rate] * n)

    def _bind(self) -> None:
        """Name the tensors, and cut them into rows."""
        self.values, self.grads, self.target, self._first, self._second, self._steps = self._tensors
        adams = (self.values, self.grads, self._first, self._second, self._steps)
        self._rows = list(zip(*(tensor.unbind() for tensor in adams)))

    def set_rates(self, rates: Sequence[float]) -> None:
        """Give each member its learning rate."""
        self.rates = list(rates)
        if self._rates is not None:
            self._rates.copy_(torch.tensor(self.rates))

    def step(self, begin: int = 0, end: int | None = None) -> Tensor:
        """Clip the gradients of members `begin` to `end` and take a step of Adam.

        Returns:
            The gradients' norms before clipping (members,); empty where nothing is clipped.
        """
        members = range(begin, len(self.rates) if end is None else end)
        unclipped = self._max_norm is None
        norms = self.grads.new_empty(0) if unclipped else self._clip(members, self._max_norm)
        self._steps[begin : members.stop].add_(1.0)
        for group in self._groups(members):
            values, grads, first, second, steps = map(list, zip(*(self._rows[i] for i in group)))
            lr = self.rates[group[0]] if self._rates is None else self._rates[group[0]]
            torch._fused_adam_(values, grads, first, second, [], steps, lr=lr, **self._adam)
        return norms

    def _groups(self, members: range) -> list[list[int]]:
        """Members that have the same rate, in one call of Adam each."""
        if self.alike:
            return [list(members)]
        if self._rates is not None:
            return [[i] for i in members]
        rates = dict.fromkeys(self.rates[i] for i in members)
        return [[i for i in members if self.rates[i] == rate] for rate in rates]

    def _clip(self, members: range, max_norm: Any) -> Tensor:
        norms = []
        for i in members:
            grad = self.grads[i]
            norm = torch.dot(grad, grad).sqrt_()
            # A GPU is not asked, which would be to wait for it; on a CPU there is seldom anything
            # to do.
            if norm.is_cuda or norm.item() > max_norm:
                grad *= shortening(norm, max_norm)
            norms.append(norm)
        return torch.stack(norms) if len(norms) > 1 else norms[0].unsqueeze(0)

    def start_target(self) -> None:
        """Make the targets equal to the parameters."""
        self.target.copy_(self.values)

    def follow(self, taus: Sequence[float], begin: int = 0) -> None:
        """Move the targets of the members from `begin` on a part tau, each its own, of the way to
        their networks.
        """
        members = slice(begin, begin + len(taus))
        if len({*taus}) == 1:
            self.target[members].lerp_(self.values[members], taus[0])
        else:
            for target, values, tau in zip(self.target[members], self.values[members], taus):
                target.lerp_(values, tau)

    def reset(self, i: int) -> None:
        """Have Adam begin afresh for member i."""
        for tensor in (self._first, self._second, self._steps):
            tensor[i] = 0.0

    def keep(self, members: Sequence[int]) -> None:
        """Go on with these members only, in this order."""
        self._tensors = [tensor[list(members)] for tensor in self._tensors]
        if self._rates is not None:
            self._rates = self._rates[list(members)]
        self._bind()
        self.set_rates([self.rates[i] for i in members])

    def moments(self, i: int) -> dict[str, Tensor]:
        """The state of `torch.optim.Adam` for member i."""
        return {"step": self._steps[i], "exp_avg": self._first[i], "exp_avg_sq": self._second[i]}

    def get_state(self, i: int | None = None) -> list[Tensor]:
        """All that a checkpoint needs, of all members or of member i, as tensors on the CPU."""
        parts = (self.values, self.target, self._first, self._second, self._steps)
        return [(t if i is None else t[i]).detach().cpu().clone() for t in parts]

    def set_state(self, state: Sequence[Tensor], i: int | None = None) -> None:
        """Go on from `get_state`."""
        parts = (self.values, self.target, self._first, self._second, self._steps)
        for mine, theirs in zip(parts, state, strict=True):
            (mine if i is None else mine[i]).copy_(theirs)
