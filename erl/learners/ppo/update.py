"""PPO's update from one rollout, for many agents side by side.

Schulman et al. (2017, arXiv 1707.06347). Arrays have a row for each agent; a rollout's samples lie
one after the other, so that `size` is steps times environments.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from stable_baselines3.common.utils import FloatSchedule

from erl.learners.core.settings import Schedule
from erl.learners.ppo.settings import PPOSettings
from erl.networks.cohort_networks import ActorCritic

# (index of the agent, its gradient, learning rate, largest norm of the gradient): one step of Adam.
AdamStep = Callable[[int, np.ndarray, float, float], None]


@dataclass(frozen=True)
class Coefficients:
    """Settings of the agents as they are in this update.

    Attributes:
        learning_rate: of each agent.
        clip_range, lowest_ratio, highest_ratio: (n, 1), of the ratio of probabilities.
        clip_range_vf: (n, 1), infinite where values are not clipped.
        ent_coef, vf_coef: (n, 1).
        max_kl: (n,), the divergence at which an agent stops, infinite for never.
    """

    learning_rate: list[float]
    clip_range: np.ndarray
    lowest_ratio: np.ndarray
    highest_ratio: np.ndarray
    clip_range_vf: np.ndarray
    ent_coef: np.ndarray
    vf_coef: np.ndarray
    max_kl: np.ndarray

    @classmethod
    def at(cls, settings: Sequence[PPOSettings], progress: Sequence[float]) -> "Coefficients":
        """Where so much of each agent's training remains, 1 to 0."""

        def scheduled(values: Sequence[float | Schedule | None]) -> list[float]:
            return [np.inf if s is None else FloatSchedule(s)(p) for s, p in zip(values, progress)]

        def column(values: Sequence[float]) -> np.ndarray:
            return np.array(values, np.float32)[:, None]

        clip_range = np.array(scheduled([c.clip_range for c in settings]))[:, None]
        kl = [np.inf if c.target_kl is None else 1.5 * c.target_kl for c in settings]
        return cls(
            scheduled([c.learning_rate for c in settings]),
            clip_range.astype(np.float32),
            (1 - clip_range).astype(np.float32),
            (1 + clip_range).astype(np.float32),
            column(scheduled([c.clip_range_vf for c in settings])),
            column([c.ent_coef for c in settings]),
            column([c.vf_coef for c in settings]),
            np.array(kl, np.float32),
        )


class Update:
    """Epochs of minibatches on one rollout.

    Args:
        net: shapes of the networks.
        weights: of each agent, (n, n_params); changed in place.
        adam_step: changes them.
        settings: of each agent.
        progress: share of each one's training that remains.
        rollout: (n, size, n_inputs + 1 + action_dim), observations, the constant one, and actions.
        n_inputs: length of an observation.
        values, log_probs, advantages: before the update, (n, size).
    """

    def __init__(
        self,
        net: ActorCritic,
        weights: np.ndarray,
        adam_step: AdamStep,
        settings: Sequence[PPOSettings],
        progress: Sequence[float],
        rollout: np.ndarray,
        n_inputs: int,
        values: np.ndarray,
        log_probs: np.ndarray,
        advantages: np.ndarray,
    ) -> None:
        self._adam_step, self._n_inputs = adam_step, n_inputs
        self._settings, self._coefficients = settings, Coefficients.at(settings, progress)
        self._clips_values = self._coefficients.clip_range_vf.min() < np.inf
        self._stops_early = self._coefficients.max_kl.min() < np.inf
        self._grads = np.zeros_like(weights)
        self._policy, self._critic = (
            net.policy(weights, self._grads),
            net.value(weights, self._grads),
        )
        self._distribution = net.distribution(weights, self._grads)

        self._values, self._log_probs, self._advantages = values, log_probs, advantages
        self._returns = advantages + values
        n, size, width = rollout.shape
        self._samples = rollout.reshape(n * size, width)
        self._first_samples = np.arange(n)[:, None] * size
        batch_size, n_epochs = settings[0].batch_size, settings[0].n_epochs
        self._starts = np.arange(0, size, batch_size)
        self._sizes = np.minimum(size - self._starts, batch_size)
        self._batches = {int(m): np.empty((n, m, width), np.float32) for m in {*self._sizes}}

        # For each sample of an epoch.
        self._log_ratio, self._objective, self._value_error, self._entropy = np.zeros(
            (4, n, size), np.float32
        )
        # For each epoch and minibatch.
        self.policy_loss, self.value_loss, self.entropy_loss, self.approx_kl, self.clip_fraction = (
            np.zeros((5, n, n_epochs, len(self._starts)), np.float32)
        )
        # Agents that still learn, and how many minibatches of an epoch each has gone through.
        self._learning = list(range(n))
        self._n_minibatches = np.zeros((n, n_epochs, 1), np.int64)

    def run(self, orders: np.ndarray) -> dict[str, np.ndarray]:
        """Go through all epochs, or until every agent has diverged too far from its old policy.

        Args:
            orders: of the samples in each epoch, int array (n, n_epochs, size).

        Returns:
            Stable-Baselines3's statistics, under its names; arrays (n,). `n_updates` counts the
            epochs that were begun in this update.
        """
        for epoch in range(orders.shape[1]):
            self._shuffle(orders[:, epoch])
            self._n_minibatches[self._learning, epoch] = len(self._starts)
            for minibatch, (start, m) in enumerate(zip(self._starts, self._sizes)):
                self._step(slice(start, start + m), epoch, minibatch)
                if not self._learning:
                    break
            self._add_up_losses(epoch)
            if not self._learning:
                break
        return self._statistics()

    def _shuffle(self, order: np.ndarray) -> None:
        """Bring what is known of the samples into an epoch's order."""
        self._indices = order + self._first_samples
        self._old_value, self._old_log_prob, self._return, self._advantage = (
            np.take_along_axis(a, order, axis=1)
            for a in (self._values, self._log_probs, self._returns, self._advantages)
        )
        if self._settings[0].normalize_advantage:
            _standardize(self._advantage, self._settings[0].batch_size)

    def _step(self, part: slice, epoch: int, minibatch: int) -> None:
        """A gradient step of every agent that still learns, on a part of the epoch's samples."""
        c, m = self._coefficients, part.stop - part.start
        indices, batch = self._indices[:, part], self._batches[m]
        samples = np.take(self._samples, indices, axis=0, out=batch, mode="clip")
        observations, actions = columns(samples, self._n_inputs)
        advantage = self._advantage[:, part]

        # The clipped surrogate objective (eq. 7).
        log_prob = self._distribution.log_prob(self._policy.forward(observations), actions)
        log_ratio = np.subtract(log_prob, self._old_log_prob[:, part], out=self._log_ratio[:, part])
        ratio = np.exp(log_ratio)
        surrogate = ratio * advantage
        clipped = np.minimum(np.maximum(ratio, c.lowest_ratio), c.highest_ratio)
        clipped *= advantage
        np.minimum(surrogate, clipped, out=self._objective[:, part])
        self._entropy[:, part] = self._distribution.entropy()
        d_value = self._value_gradient(observations, part)
        if self._stops_early:
            approx_kl = np.add.reduce(ratio - 1.0 - log_ratio, axis=1) / np.float32(m)
            self._stop_early(approx_kl, epoch, minibatch)
            if not self._learning:
                return

        # Where the clipped objective is the smaller one, it does not depend on the policy.
        d_log_prob = surrogate
        d_log_prob *= surrogate <= clipped
        d_log_prob *= np.float32(-1.0 / m)
        d_entropy = c.ent_coef * np.float32(-1.0 / m)
        self._policy.backward(self._distribution.backward(d_log_prob, d_entropy))
        self._critic.backward(d_value[:, None])
        for i in self._learning:
            max_grad_norm = self._settings[i].max_grad_norm
            self._adam_step(i, self._grads[i], c.learning_rate[i], max_grad_norm)

    def _value_gradient(self, observations: np.ndarray, part: slice) -> np.ndarray:
        """The derivatives of the value loss by the values, (n, batch); and its errors, noted."""
        c, m = self._coefficients, part.stop - part.start
        value = self._critic.forward(observations)[:, 0]
        if self._clips_values:
            old = self._old_value[:, part]
            change = value - old
            unclipped = np.abs(change) <= c.clip_range_vf
            value = np.where(
                unclipped, value, old + np.clip(change, -c.clip_range_vf, c.clip_range_vf)
            )
        error = np.subtract(value, self._return[:, part], out=self._value_error[:, part])
        d_value = error * (c.vf_coef * np.float32(2.0 / m))
        if self._clips_values:
            d_value *= unclipped
        return d_value

    def _stop_early(self, approx_kl: np.ndarray, epoch: int, minibatch: int) -> None:
        """Agents whose policy has moved too far learn no more in this update."""
        for i in [i for i in self._learning if approx_kl[i] > self._coefficients.max_kl[i]]:
            self._n_minibatches[i, epoch] = minibatch + 1
            self._learning.remove(i)

    def _add_up_losses(self, epoch: int) -> None:
        """Means over each minibatch of an epoch."""
        clipped = np.abs(np.exp(self._log_ratio) - 1.0) > self._coefficients.clip_range
        for losses, samples in (
            (self.policy_loss, -self._objective),
            (self.value_loss, self._value_error * self._value_error),
            (self.entropy_loss, -self._entropy),
            (self.approx_kl, np.expm1(self._log_ratio) - self._log_ratio),
            (self.clip_fraction, clipped),
        ):
            sums = np.add.reduceat(samples, self._starts, axis=1, dtype=np.float32)
            losses[:, epoch] = sums / self._sizes

    def _statistics(self) -> dict[str, np.ndarray]:
        c, agents = self._coefficients, np.arange(len(self._settings))
        counted = np.arange(len(self._starts)) < self._n_minibatches
        epochs = np.count_nonzero(self._n_minibatches[..., 0], axis=1)
        last_epoch = (agents, epochs - 1)
        last = (*last_epoch, self._n_minibatches[*last_epoch, 0] - 1)

        def mean(losses: np.ndarray) -> np.ndarray:
            return losses.mean(axis=(1, 2), where=counted)

        var = self._returns.var(axis=1)
        residual = (self._returns - self._values).var(axis=1)
        return {
            "policy_gradient_loss": mean(self.policy_loss),
            "value_loss": mean(self.value_loss),
            "entropy_loss": mean(self.entropy_loss),
            "approx_kl": self.approx_kl[last_epoch].mean(axis=1, where=counted[last_epoch]),
            "clip_fraction": mean(self.clip_fraction),
            "loss": self.policy_loss[last]
            + c.ent_coef[:, 0] * self.entropy_loss[last]
            + c.vf_coef[:, 0] * self.value_loss[last],
            "explained_variance": 1.0 - residual / np.where(var == 0.0, np.nan, var),
            "learning_rate": np.array(c.learning_rate),
            "clip_range": c.clip_range[:, 0],
            "n_updates": epochs,
        }


def columns(samples: np.ndarray, n_inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """The networks' inputs (n, batch, n_inputs + 1) and the actions (n, dim, batch) in samples of a
    rollout, views.
    """
    return samples[..., : n_inputs + 1], samples[..., n_inputs + 1 :].transpose(0, 2, 1)


def _standardize(samples: np.ndarray, batch_size: int) -> None:
    """Shift and scale each minibatch of samples (n, size) to mean 0 and variance 1, in place; one
    sample alone stays as it is.
    """
    whole = samples.shape[1] - samples.shape[1] % batch_size
    for part in (
        samples[:, :whole].reshape(len(samples), -1, batch_size),
        samples[:, None, whole:],
    ):
        if part.shape[2] > 1:
            part -= part.mean(axis=2, keepdims=True)
            part /= part.std(axis=2, ddof=1, keepdims=True) + 1e-8


def advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    last_values: np.ndarray,
    ends: np.ndarray,
    gamma: np.ndarray,
    gae_lambda: np.ndarray,
) -> np.ndarray:
    """Generalised advantage estimates (Schulman et al., 2016, arXiv 1506.02438).

    Args:
        rewards, values: arrays (n, n_steps), of each step and of the observation before it.
        last_values: array (n,), values of the observation after the last step.
        ends: bool (n, n_steps), whether an episode ended with the step.
        gamma, gae_lambda: arrays (n,).

    Returns:
        float32 array (n, n_steps).
    """
    not_done = 1.0 - ends.astype(np.float32)
    deltas = np.concatenate([values[:, 1:], last_values[:, None]], axis=1)
    deltas *= not_done
    deltas *= gamma[:, None].astype(np.float32)
    deltas += rewards
    deltas -= values
    decays = not_done * (gamma * gae_lambda)[:, None].astype(np.float32)
    estimates = np.empty_like(deltas)
    # Steps cannot be vectorised; for a handful of agents plain numbers are faster than short
    # arrays.
    for estimate, delta, decay in zip(estimates, deltas[:, ::-1], decays[:, ::-1]):
        backwards = accumulate(
            zip(delta.tolist(), decay.tolist()),
            lambda later, now: now[0] + now[1] * later,
            initial=0.0,
        )
        next(backwards)
        estimate[::-1] = list(backwards)
    return estimates
