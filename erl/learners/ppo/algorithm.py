"""Proximal Policy Optimization (Schulman et al., 2017, arXiv 1707.06347) for many agents side by
side.

The algorithm is Stable-Baselines3's, `PPO` with `MlpPolicy` and, where asked for, `VecNormalize`:
from the same weights, rollout and order of minibatches an update gives the same parameters up to
rounding, and agents go back and forth (`exchange`). What differs: random numbers come from one
NumPy generator per agent, and values and log-probabilities of a rollout are computed after it, in
one pass, instead of at every step.

Agents of a cohort agree in `cohort_key`; all other settings are each agent's own. An agent's
results are the same, to the last bit, whatever cohort it is in (for one number of BLAS threads; one
is fastest).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim, get_flattened_obs_dim

from erl.learners.ppo.settings import PPOSettings, cohort_key
from erl.learners.ppo.update import Update, advantages, columns
from erl.networks.cohort_networks import (
    ActorCritic,
    Adam,
    Bernoulli,
    Categorical,
    Distribution,
    Gaussian,
    MultiCategorical,
)

# Bytes of weights, gradients and moments that are worked on at a time. More agents share NumPy's
# overhead, fewer stay in cache.
_CACHE = 8 << 20
# An agent that diverges turns to NaN without a warning, as in PyTorch; `CohortPPO.diverged` tells.
_silent = np.errstate(all="ignore")
_CHUNK = 128  # observations per pass where no gradient is asked for


class RunningMoments:
    """Running means and variances of many streams, as Stable-Baselines3's `RunningMeanStd` keeps
    them of one.

    Attributes:
        mean, var: float64 arrays (n, dim).
        count: float64 array (n, 1).
    """

    def __init__(self, n: int, dim: int) -> None:
        self.mean, self.var, self.count = (
            np.zeros((n, dim)),
            np.ones((n, dim)),
            np.full((n, 1), 1e-4),
        )

    def update(self, batch: np.ndarray) -> None:
        """Take in a batch (n, n_samples, dim)."""
        samples = batch.shape[1]
        mean = batch[:, 0] if samples == 1 else batch.mean(axis=1)
        var = 0.0 if samples == 1 else batch.var(axis=1)
        delta, total = mean - self.mean, self.count + samples
        self.mean += delta * (samples / total)
        self.var = (
            self.var * self.count
            + var * samples
            + np.square(delta) * (self.count * samples / total)
        ) / total
        self.count = total


class CohortPPO:
    """Agents that train side by side: the algorithm, without environments.

        cohort.start(obs)
        for _ in range(n_steps):
            actions = cohort.act()
            ...   # step every environment, and reset those whose episode ended
            cohort.record(obs, rewards, dones, timeouts)
        statistics = cohort.update(progress_remaining)

    Args:
        settings: settings of each agent; they agree in `cohort_key`.
        seeds: a seed for each agent: of its initial weights, which are those of
            `stable_baselines3.PPO(seed=...)`, and of its generator.
        observation_space, action_space: of one environment.

    Attributes:
        settings: settings of the agents that are left.
        n_updates: int array (n,), epochs begun so far, as Stable-Baselines3 counts.
    """

    # Attributes with a row per agent: what `keep` selects from; the first line is what outlives a
    # rollout.
    _LASTING = ("_weights", "_first", "_second", "_steps", "n_updates", "_obs", "_returns")
    _ROLLOUT = ("_rollout", "_rewards", "_dones", "_noise")

    def __init__(
        self,
        settings: Sequence[PPOSettings],
        seeds: Sequence[int],
        observation_space: spaces.Space,
        action_space: spaces.Space,
    ) -> None:
        if len({cohort_key(c, observation_space, action_space) for c in settings}) != 1:
            raise ValueError("the agents of a cohort agree in cohort_key")
        self.settings = list(settings)
        self.observation_space, self.action_space = observation_space, action_space
        c, n = self.settings[0], len(self.settings)
        self._n_inputs, action_dim = (
            get_flattened_obs_dim(observation_space),
            get_action_dim(action_space),
        )
        if isinstance(action_space, spaces.Box):
            # In the space's precision: a bound that is rounded may lie outside of the space.
            self._low, self._high = action_space.low.ravel(), action_space.high.ravel()
        distribution, n_outputs, n_values = _distribution(action_space)
        self._net = ActorCritic(
            self._n_inputs, n_outputs, c.pi, c.vf, c.activation, distribution, n_values
        )
        no_rows = np.zeros((0, self._net.n_params), np.float32)
        self._distribution = self._net.distribution(no_rows, no_rows)  # to draw from, for any agent
        self._rngs = [np.random.default_rng(seed) for seed in seeds]
        self._weights = np.zeros((n, self._net.n_params), np.float32)
        self._first, self._second = np.zeros_like(self._weights), np.zeros_like(self._weights)
        self._steps, self.n_updates = np.zeros(n, np.float32), np.zeros(n, np.int64)
        for config, seed, row in zip(self.settings, seeds, self._weights):
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                policy = ActorCriticPolicy(
                    observation_space, action_space, lambda _: 0.0, **config.policy_kwargs()
                )
            self._net.load(row, dict(policy.named_parameters()))
        # A step's row: the observation, the constant one that the networks take, the action.
        self._rollout = np.zeros(
            (n, c.n_envs, c.n_steps, self._n_inputs + 1 + action_dim), np.float32
        )
        self._rollout[..., self._n_inputs] = 1.0
        self._rewards = np.zeros((n, c.n_envs, c.n_steps), np.float32)
        self._dones = np.zeros((n, c.n_envs, c.n_steps), bool)
        self._noise = np.zeros((n, c.n_steps, c.n_envs, n_outputs), np.float32)
        self._timeouts: list[tuple[int, int, int, np.ndarray]] = []
        self._obs = np.ones((n, c.n_envs, self._n_inputs + 1), np.float32)
        self._returns = np.zeros((n, c.n_envs, 1))
        self._obs_moments, self._return_moments = (
            RunningMoments(n, self._n_inputs),
            RunningMoments(n, 1),
        )
        self._t = 0
        self._bind()

    def __len__(self) -> int:
        return len(self.settings)

    def _bind(self) -> None:
        """Make what looks into the weights; called when their arrays changed."""
        self._policy = self._net.policy(self._weights)
        self._adam = Adam(
            self._weights,
            self._first,
            self._second,
            self._steps,
            [c.adam_eps for c in self.settings],
        )
        self._norm_gamma = np.array(
            [c.gamma if c.norm_gamma is None else c.norm_gamma for c in self.settings]
        )

    # Rollout

    def start(self, obs: np.ndarray) -> None:
        """Give the first observations of fresh environments, array (n, n_envs, n_inputs) in the
        precision of their space.
        """
        self._returns[:] = 0.0
        self._observe(obs)

    def _observe(self, obs: np.ndarray) -> None:
        if self.settings[0].norm_obs:
            self._obs_moments.update(obs)
        self._obs[..., :-1] = self._normalized(obs)

    def _normalized(self, obs: np.ndarray, agents: Any = slice(None)) -> np.ndarray:
        c, moments = self.settings[0], self._obs_moments
        if not c.norm_obs:
            return obs
        scaled = (obs - moments.mean[agents, None]) / np.sqrt(
            moments.var[agents, None] + c.norm_epsilon
        )
        return np.clip(scaled, -c.clip_obs, c.clip_obs)

    @_silent
    def act(self) -> np.ndarray:
        """Draw an action for the observation last given to `start` or `record`.

        Returns:
            Actions as an environment takes them, (n, n_envs, *shape): float32, clipped to the
                space, or whole numbers.
        """
        if self._t == 0:
            self._draw_noise()
        output = self._policy.forward(self._obs).transpose(0, 2, 1)
        noisy = output + self._noise[:, self._t]
        row = self._rollout[:, :, self._t]
        row[..., : self._n_inputs + 1] = self._obs
        actions = self._distribution.choose(noisy)
        row[..., self._n_inputs + 1 :] = actions
        if isinstance(self.action_space, spaces.Box):
            actions = np.minimum(np.maximum(actions, self._low), self._high)
        return actions.reshape(*actions.shape[:2], *self.action_space.shape)  # type: ignore[misc]

    def _draw_noise(self) -> None:
        """Draw a rollout's noise, which is added to the outputs."""
        for noise, rng in zip(self._noise, self._rngs):
            self._distribution.draw_noise(rng, noise)
        if isinstance(self._distribution, Gaussian):
            self._noise *= np.exp(self._net.log_std(self._weights))[:, None, None]

    @_silent
    def record(
        self,
        obs: np.ndarray,
        rewards: np.ndarray,
        dones: np.ndarray,
        timeouts: Sequence[tuple[int, int, np.ndarray]] = (),
    ) -> None:
        """Note what the actions led to.

        Args:
            obs: array (n, n_envs, n_inputs), the next observations; the first of a new episode
                where one ended.
            rewards: array (n, n_envs).
            dones: bool (n, n_envs), whether the episode ended, terminated or truncated.
            timeouts: for each episode that was truncated and not terminated, (agent, environment,
                its last observation).
        """
        c, t = self.settings[0], self._t
        self._observe(obs)
        if c.norm_reward:
            self._returns *= self._norm_gamma[:, None, None]
            self._returns += rewards[..., None]
            self._return_moments.update(self._returns)
            rewards = rewards / np.sqrt(self._return_moments.var + c.norm_epsilon)
            rewards = np.clip(rewards, -c.clip_reward, c.clip_reward)
            self._returns[dones] = 0.0
        self._rewards[..., t], self._dones[..., t] = rewards, dones
        for agent, env, last in timeouts:
            self._timeouts.append(
                (agent, env, t, self._normalized(last.reshape(1, 1, -1), [agent])[0, 0])
            )
        self._t += 1

    # Update

    @_silent
    def update(self, progress_remaining: float | Sequence[float]) -> dict[str, np.ndarray]:
        """Learn from a full rollout.

        Args:
            progress_remaining: share of the training that remains, 1 to 0, for schedules: of all
                agents, or of each.

        Returns:
            Stable-Baselines3's statistics of the update, under its names (`approx_kl`, …): arrays
            (n,).
        """
        if self._t != self.settings[0].n_steps:
            raise ValueError(
                f"an update takes a rollout of {self.settings[0].n_steps} steps, not {self._t}"
            )
        size = max(1, _CACHE // (16 * self._net.n_params))
        blocks = [slice(i, min(i + size, len(self))) for i in range(0, len(self), size)]
        progress = np.broadcast_to(np.asarray(progress_remaining, np.float64), len(self))
        statistics = [self._update_block(block, progress[block].tolist()) for block in blocks]
        self._t = 0
        self._timeouts.clear()
        return {name: np.concatenate([s[name] for s in statistics]) for name in statistics[0]}

    def diverged(self) -> np.ndarray:
        """Whether an agent has parameters that are not finite, bool (n,)."""
        return np.logical_not(np.isfinite(self._weights).all(axis=1))

    def _evaluate(self, block: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values, log-probabilities and advantages of a block's rollout, arrays (n, n_envs *
        n_steps).
        """
        weights, settings = self._weights[block], self.settings[block]
        policy, critic = self._net.policy(weights), self._net.value(weights)
        distribution = self._net.distribution(weights, np.empty_like(weights))
        samples = self._samples(block)
        values, log_prob = np.empty((2, *samples.shape[:2]), np.float32)
        for k in range(0, samples.shape[1], _CHUNK):
            x, actions = columns(samples[:, k : k + _CHUNK], self._n_inputs)
            values[:, k : k + _CHUNK] = critic.forward(x)[:, 0]
            log_prob[:, k : k + _CHUNK] = distribution.log_prob(policy.forward(x), actions)
        rewards = self._rewards[block].copy()
        # Where time ran out an episode would have gone on: its last observation's value stands for
        # what was to come.
        for agent, env, t, last in self._timeouts:
            if block.start <= agent < block.stop:
                critic_of_one = self._net.value(self._weights[agent : agent + 1])
                value = critic_of_one.forward(np.append(last, 1.0).astype(np.float32)[None, None])
                rewards[agent - block.start, env, t] += (
                    np.float32(self.settings[agent].gamma) * value.item()
                )
        flat = (-1, rewards.shape[2])
        estimates = advantages(
            rewards.reshape(flat),
            values.reshape(flat),
            critic.forward(self._obs[block])[:, 0].ravel(),
            self._dones[block].reshape(flat),
            *(
                np.repeat([getattr(c, name) for c in settings], rewards.shape[1])
                for name in ("gamma", "gae_lambda")
            ),
        )
        return values, log_prob, estimates.reshape(values.shape)

    def _samples(self, block: slice) -> np.ndarray:
        """A block's rollout, (n, n_envs * n_steps, n_inputs + 1 + action_dim)."""
        rollout = self._rollout[block]
        return rollout.reshape(len(rollout), -1, rollout.shape[-1])

    def _orders(self, block: slice) -> np.ndarray:
        """The order in which each epoch goes through the rollout, int array (n, n_epochs, n_envs *
        n_steps).
        """
        c = self.settings[0]
        size = c.n_steps * c.n_envs
        return np.array(
            [[rng.permutation(size) for _ in range(c.n_epochs)] for rng in self._rngs[block]]
        )

    def _update_block(self, block: slice, progress: list[float]) -> dict[str, np.ndarray]:
        """Update agents whose parameters fit in cache together."""
        weights = self._weights[block]

        def adam_step(i: int, grad: np.ndarray, learning_rate: float, max_grad_norm: float) -> None:
            self._adam.step(block.start + i, grad, learning_rate, max_grad_norm)

        update = Update(
            self._net,
            weights,
            adam_step,
            self.settings[block],
            progress,
            self._samples(block),
            self._n_inputs,
            *self._evaluate(block),
        )
        statistics = update.run(self._orders(block))
        self.n_updates[block] += statistics["n_updates"]
        statistics["n_updates"] = self.n_updates[block].copy()
        if isinstance(self._distribution, Gaussian):
            statistics["std"] = np.exp(self._net.log_std(weights)).mean(axis=1)
        return statistics

    # Selection and checkpoints

    def keep(self, agents: Sequence[int]) -> None:
        """Go on with the agents at these indices only, in this order; nothing changes for them."""
        where = list(agents)
        for name in (*self._LASTING, *self._ROLLOUT):
            setattr(self, name, getattr(self, name)[where])
        for moments in (self._obs_moments, self._return_moments):
            moments.mean, moments.var, moments.count = (
                moments.mean[where],
                moments.var[where],
                moments.count[where],
            )
        self.settings, self._rngs = (
            [self.settings[i] for i in where],
            [self._rngs[i] for i in where],
        )
        self._timeouts = [
            (where.index(i), env, t, obs) for i, env, t, obs in self._timeouts if i in where
        ]
        self._bind()

    def get_state(self, i: int) -> dict[str, Any]:
        """All of agent i that its training depends on between an update and the next rollout;
        copies.
        """
        if self._t:
            raise ValueError(
                "an agent has a state to save between an update and the next rollout only"
            )
        state: dict[str, Any] = {name: getattr(self, name)[i].copy() for name in self._LASTING}
        for name in ("_obs_moments", "_return_moments"):
            state[name] = {k: v[i].copy() for k, v in vars(getattr(self, name)).items()}
        return state | {"rngs": self._rngs[i].bit_generator.state}

    def set_state(self, i: int, state: Mapping[str, Any]) -> None:
        """Go on from `get_state`."""
        for name in self._LASTING:
            getattr(self, name)[i] = state[name]
        for name in ("_obs_moments", "_return_moments"):
            for key, value in vars(getattr(self, name)).items():
                value[i] = state[name][key]
        self._rngs[i].bit_generator.state = state["rngs"]

    def observe_anew(self, i: int, env: int, obs: np.ndarray) -> None:
        """Replace what agent i sees next in one of its environments, array (n_inputs,): an episode
        began anew.
        """
        self._obs[i, env, :-1] = self._normalized(obs.reshape(1, 1, -1), [i])[0, 0]
        self._returns[i, env] = 0.0


def _distribution(space: spaces.Space) -> tuple[type[Distribution], int, tuple[int, ...]]:
    """Which distribution chooses from a space, the number of its parameters, and for a
    `MultiDiscrete` how many values each of its choices has.
    """
    match space:
        case spaces.Discrete():
            return Categorical, int(space.n), ()
        case spaces.MultiDiscrete():
            n_values = tuple(int(n) for n in space.nvec)
            return MultiCategorical, sum(n_values), n_values
        case spaces.MultiBinary():
            return Bernoulli, get_action_dim(space), ()
    return Gaussian, get_action_dim(space), ()
