"""One training step of ERL-Re²: the shared representation, the RL head, the twin critics and the
value function of policies.

Li et al. (ICLR 2023, arXiv 2210.17375). A policy is a linear head on the shared representation Z:
action = tanh(W_i z + b_i). In arrays a head is (actions, features + 1), a row for each action, its
bias in the last column.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from erl.learners.core.replay import Batch, smoothed
from erl.learners.erl_re2.settings import Re2Settings
from erl.networks.perceptrons import Layer, Perceptrons, Shape, Trace
from erl.networks.products import product
from erl.networks.trained import Trained

_MAX_NORM = 10.0  # of a gradient


def _flat(trained: Trained) -> tuple[Tensor, Tensor]:
    """Parameters and gradients of a single member."""
    return trained.values[0], trained.grads[0]


def act(head: Tensor, z: Tensor) -> Tensor:
    """Actions (batch, actions) in [-1, 1] of a head (actions, features + 1) on representations
    (batch, features); or of n heads on n batches.
    """
    return product(z, head[..., :-1].mT, bias=head[..., -1].unsqueeze(-2)).tanh_()


class PolicyValue:
    """Q(s, a, W): the value of following the policy with head W (PeVFA), for n twins.

    The rows of a head go through a perceptron each; their mean is the policy's code, which joins
    the input of a critic. One policy at a time is evaluated on a whole batch, so that it is encoded
    once.

    Args:
        settings: of the learner.
        inputs: length of the critic's input.
        features: length of the representation.
        values: all parameters, flat.
        grads: where `backward` writes; None for a target.
    """

    def __init__(
        self,
        settings: Re2Settings,
        inputs: int,
        features: int,
        values: Tensor,
        grads: Tensor | None = None,
    ) -> None:
        n, low = settings.n_critics, settings.precision == "bf16"
        encoder, value = self._shapes(settings, inputs, features)
        cut = encoder.size(n)
        parts = (None, None) if grads is None else (grads[:cut], grads[cut:])
        self.encoder = Perceptrons(encoder, n, values[:cut], parts[0])
        self.value = Perceptrons(value, n, values[cut:], parts[1], low)

    @staticmethod
    def _shapes(settings: Re2Settings, inputs: int, features: int) -> tuple[Shape, Shape]:
        pr = settings.pr
        value = Shape(inputs, code=pr, norm=settings.use_ln, output_scale=0.1)
        return Shape(features + 1, (pr, pr), pr, norm=False), value

    @classmethod
    def size(cls, settings: Re2Settings, inputs: int, features: int) -> int:
        """Number of parameters."""
        return sum(
            shape.size(settings.n_critics) for shape in cls._shapes(settings, inputs, features)
        )

    def forward(
        self, x: Tensor, head: Tensor, first: int | None = None, keep: bool = True
    ) -> tuple[Trace, Trace]:
        """Values (n, batch, 1) of one policy, as the output of the second trace.

        Args:
            x: the critic's inputs (batch, inputs).
            head: (actions, features + 1).
            first: only the first so many twins.
            keep: whether a backward pass follows.
        """
        encoded = self.encoder.forward(head, first=first, keep=keep)
        return encoded, self.value.forward(x, encoded.output.mean(1), first, keep)

    def backward(self, traces: tuple[Trace, Trace], d: Tensor) -> None:
        """Write the gradient of a loss whose derivatives by the values are d (n, batch, 1)."""
        encoded, value = traces
        d_codes = self.value.backward(value, d)
        rows = encoded.output.shape[1]
        self.encoder.backward(encoded, (d_codes / rows).unsqueeze(1).expand(-1, rows, -1))


@dataclass(frozen=True)
class Draws:
    """What is random in an update beside its minibatch: the same for both devices and all
    implementations.

    Attributes:
        noise: standard normal (batch, actions), for the smoothing of the target policy.
        value_head: the head whose values are learned, (actions, features + 1).
        representation_heads: the heads for which the representation is improved, (K, actions,
            features + 1); none before evolution has begun.
    """

    noise: Tensor
    value_head: Tensor | None
    representation_heads: Tensor | None


class TwoScale:
    """All networks of ERL-Re², and their update.

    Args:
        settings: of the learner.
        obs_dim: length of what a policy sees.
        action_dim: length of an action.
        generator: draws the initial parameters.

    Attributes:
        representation, head, critic, policy_value: parameters, gradients and targets of each.
        features: length of the representation.
    """

    hidden = (400, 300)

    def __init__(
        self, settings: Re2Settings, obs_dim: int, action_dim: int, generator: torch.Generator
    ) -> None:
        self.settings, self.features = settings, self.hidden[-1]
        n, low, device = settings.n_critics, settings.precision == "bf16", settings.device

        def trained(size: int) -> Trained:
            return Trained(1, size, settings.learning_rate, _MAX_NORM, device)

        self._of_actions = settings.OFF_TYPE == 1
        value_inputs = obs_dim + action_dim if self._of_actions else self.features

        shape = Shape(obs_dim, self.hidden, 0, activation="Tanh", norm=settings.use_ln)
        self.representation = trained(shape.size(1))
        self._z = Perceptrons(shape, 1, *_flat(self.representation), low)
        self._z_target = Perceptrons(shape, 1, self.representation.target[0], low=low)

        self.head = trained(action_dim * (self.features + 1))
        self._head, self._head_grad, self._head_target = (
            flat.view(action_dim, self.features + 1)
            for flat in (self.head.values, self.head.grads, self.head.target)
        )

        shape = Shape(obs_dim + action_dim, self.hidden, norm=settings.use_ln, output_scale=0.1)
        self.critic = trained(shape.size(n))
        self._q = Perceptrons(shape, n, *_flat(self.critic), low)
        self._q_target = Perceptrons(shape, n, self.critic.target[0], low=low)

        sizes = settings, value_inputs, self.features
        self.policy_value = trained(PolicyValue.size(*sizes))
        self._v = PolicyValue(*sizes, *_flat(self.policy_value))
        self._v_target = PolicyValue(*sizes, self.policy_value.target[0])

        for network in (self._z, self._q, self._v.encoder, self._v.value):
            network.initialise(generator)
        self._head.copy_(0.1 * new_heads(1, action_dim, self.features, generator)[0])
        for each in self.networks:
            each.start_target()

    @property
    def networks(self) -> list[Trained]:
        """All of them, in a fixed order."""
        return [self.representation, self.head, self.critic, self.policy_value]

    @property
    def rl_head(self) -> Tensor:
        """The RL agent's head (actions, features + 1): the parameters themselves, no copy."""
        return self._head

    def layers(
        self, head: Tensor | None = None
    ) -> tuple[list[list[Layer]], list[list[list[Layer]]]]:
        """Layers of a policy and of its target, and of each critic and of each one's target.

        Args:
            head: of the policy, which has no target of its own; None for the RL agent's.
        """
        policies, critics = [], []
        online, target = (self._head, self._head_target) if head is None else (head, head)
        for z, q, w in (
            (self.representation.values, self.critic.values, online),
            (self.representation.target, self.critic.target, target),
        ):
            ((body, _),) = self._z.cut(z[0])
            policies.append([*body, Layer(w[:, :-1].t(), w[:, -1])])
            critics.append([layers for layers, _ in self._q.cut(q[0])])
        return policies, critics

    def represent(self, observations: Tensor) -> Tensor:
        """Z(s): (batch, features)."""
        return self._z.forward(observations, keep=False).output[0]

    def value_of(self, observations: Tensor, heads: Tensor) -> Tensor:
        """min over the twins of Q(s_i, π_i(s_i), W_i), a head for each observation: (n,)."""
        z = self.represent(observations)
        values = []
        for k, head in enumerate(heads):
            x = self._value_inputs(observations[k : k + 1], act(head, z[k : k + 1]), z[k : k + 1])
            values.append(self._v.forward(x, head)[1].output.min())
        return torch.stack(values)

    def _value_inputs(self, observations: Tensor, actions: Tensor, z: Tensor) -> Tensor:
        return torch.cat([observations, actions], 1) if self._of_actions else z

    @torch.inference_mode()
    def update(self, batch: Batch, draws: Draws, improve: bool) -> dict[str, Tensor]:
        """One update of the value functions and, if `improve`, of the policies' shared half, the RL
        head and the targets.

        Returns:
            Losses and norms of gradients before they were clipped, as tensors that are not waited
            for.
        """
        statistics: dict[str, Tensor] = {}
        if draws.value_head is not None:
            statistics |= self._learn_policy_value(batch, draws.value_head)
        statistics |= self._learn_critic(batch, draws.noise)
        if improve:
            statistics |= self._improve(batch, draws.representation_heads)
            for network in self.networks if self.settings.EA else self.networks[:-1]:
                network.follow([self.settings.tau])
        return statistics

    def _learn_policy_value(self, batch: Batch, head: Tensor) -> dict[str, Tensor]:
        """PeVFA's temporal difference (eq. 5): the policy acts on the representation as it is, its
        target network values it.
        """
        z = self.represent(batch.next_observations)
        x = self._value_inputs(batch.next_observations, act(head, z), z)
        next_values = self._v_target.forward(x, head, keep=False)[1].output.amin(0)
        target = batch.targets(next_values, self.settings.gamma)
        x = batch.pairs if self._of_actions else self.represent(batch.observations)
        traces = self._v.forward(x, head)
        error = traces[1].output - target
        self._v.backward(traces, error * (2.0 / len(x)))
        norm = self.policy_value.step()
        return {
            "policy_value_loss": torch.vdot(error.view(-1), error.view(-1)) / len(x),
            "policy_value_grad_norm": norm,
        }

    def _learn_critic(self, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        """TD3's critics (eq. 6)."""
        z = self._z_target.forward(batch.next_observations, keep=False).output[0]
        actions = smoothed(act(self._head_target, z), noise, self.settings.smoothing)
        x = torch.cat([batch.next_observations, actions], 1)
        next_values = self._q_target.forward(x, keep=False).output.amin(0)
        target = batch.targets(next_values, self.settings.gamma)
        trace = self._q.forward(batch.pairs)
        error = trace.output - target
        self._q.backward(trace, error * (2.0 / len(x)))
        norm = self.critic.step()
        return {
            "critic_loss": torch.vdot(error.view(-1), error.view(-1)) / len(x),
            "critic_grad_norm": norm,
        }

    def _improve(self, batch: Batch, heads: Tensor | None) -> dict[str, Tensor]:
        """The RL head ascends its critic; the representation ascends the critics of the RL head and
        of sampled heads (eq. 7).

        Both gradients are taken at the same weights, and only then do the head and the
        representation move.
        """
        settings, s = self.settings, batch.observations
        traced = self._z.forward(s)
        z = traced.output[0]

        actions = act(self._head, z)
        q = self._q.forward(torch.cat([s, actions], 1), first=1)
        d = self._of_action(self._q, q, s.shape[1]) * (1.0 - actions.square())
        self._head_grad[:, :-1] = d.t() @ z
        self._head_grad[:, -1] = d.sum(0)
        dz = (d @ self._head[:, :-1]).mul_(settings.actor_alpha)

        for head in heads if heads is not None else ():
            actions = act(head, z)
            v = self._v.forward(self._value_inputs(s, actions, z), head, first=1)[1]
            if self._of_actions:
                d = self._of_action(self._v.value, v, s.shape[1]) * (1.0 - actions.square())
                dz.addmm_(d, head[:, :-1], alpha=settings.EA_actor_alpha)
            else:
                dz.add_(self._of_action(self._v.value, v, 0), alpha=settings.EA_actor_alpha)

        self._z.backward(traced, dz.unsqueeze(0))
        head_norm, norm = self.head.step(), self.representation.step()
        return {
            "actor_loss": -q.output.mean(),
            "head_grad_norm": head_norm,
            "representation_grad_norm": norm,
        }

    @staticmethod
    def _of_action(network: Perceptrons, trace: Trace, start: int) -> Tensor:
        """Derivatives of the negative mean value by the input from column `start` on, (batch,
        …).
        """
        batch = trace.output.shape[1]
        d = torch.full_like(trace.output, -1.0 / batch)
        return network.backward(trace, d, weights=False, inputs=slice(None))[0, :, start:]

    def get_state(self) -> list[list[Tensor]]:
        """All that a checkpoint needs."""
        return [network.get_state() for network in self.networks]

    def set_state(self, state: list[list[Tensor]]) -> None:
        """Go on from `get_state`."""
        for network, saved in zip(self.networks, state, strict=True):
            network.set_state(saved)


def new_heads(n: int, action_dim: int, features: int, generator: torch.Generator) -> Tensor:
    """Heads as `torch.nn.Linear` draws them, (n, actions, features + 1)."""
    bound = features**-0.5
    return torch.empty(n, action_dim, features + 1).uniform_(-bound, bound, generator=generator)
