"""Off-policy learning for many members side by side: what TD3 and SAC share.

Each member has an actor, critics, targets, Adam, a replay buffer and random streams of its own. In
one update all members that are due take a gradient step, in blocks that share every matrix product:
`Block`. A member's results are the same in whatever company it is, on one machine and for one
number of threads: to the last bit where the widths of hidden layers and the minibatch are multiples
of 16, else to rounding, since kernels treat the end of a row in ways that depend on its place.

Semantics are Stable-Baselines3's. What differs: random numbers come from NumPy generators of each
member, one for actions, one for minibatches and one for noise in updates.
"""

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from erl.learners.core.off_policy_settings import OffPolicySettings
from erl.learners.core.replay import Batch, ReplayBuffer, check_memory, too_large
from erl.networks.captured import Captured
from erl.networks.perceptrons import Layer, Perceptrons, Shape
from erl.networks.trained import Trained

S = TypeVar("S", bound=OffPolicySettings)
# Bytes of parameters, moments and activations that are worked on at a time. More members share the
# overhead of an operation, fewer stay in the cache.
_CACHE = 4 << 20
# Of Ornstein-Uhlenbeck noise, as in Stable-Baselines3.
_THETA, _DT = 0.15, 1e-2


@dataclass
class Block(Generic[S]):
    """The networks of members `begin` to `end`, as one update sees them.

    Critics of a member stand one after the other, so that all critics of a block are one stack.

    Attributes:
        settings: of each member.
        actor, critic, first_critic: perceptrons; `first_critic` has each member's first one.
        actor_target, critic_target: those that follow them.
    """

    begin: int
    end: int
    settings: Sequence[S]
    actor: Perceptrons
    actor_target: Perceptrons
    critic: Perceptrons
    critic_target: Perceptrons
    first_critic: Perceptrons

    def __post_init__(self) -> None:
        self.n, self.n_critics = self.end - self.begin, self.settings[0].n_critics
        self._columns: dict[str, Tensor] = {}

    def column(self, name: str, of: Callable[[S], float] | None = None) -> Tensor:
        """A setting of each member, as it stands or made into a number, (n, 1, 1)."""
        if name not in self._columns:
            values = [of(s) if of is not None else getattr(s, name) for s in self.settings]
            device = self.actor.device
            column = torch.tensor(values, dtype=torch.float32, device=device)
            self._columns[name] = column.view(-1, 1, 1)
        return self._columns[name]

    def for_critics(self, x: Tensor) -> Tensor:
        """Inputs (n, batch, width) for all critics, (n * n_critics, batch, width)."""
        n, batch, width = x.shape
        return x.unsqueeze(1).expand(n, self.n_critics, batch, width).reshape(-1, batch, width)

    def by_member(self, q_values: Tensor) -> Tensor:
        """Values of all critics (n * n_critics, batch, 1), as (n, n_critics, batch, 1)."""
        return q_values.view(self.n, self.n_critics, -1, 1)


class OffPolicy(Generic[S]):
    """Members that learn side by side: the algorithm, without environments.

        actions = cohort.act(observations)
        ...                                  # step every environment
        cohort.record(observations, actions, next_observations, rewards, ended, cut)
        cohort.learn(due, progress_remaining)

    Args:
        settings: of each member; they agree in `cohort_key`.
        seeds: a seed for each member: of its initial weights, which are those of
            Stable-Baselines3's algorithm with this seed, and of its random streams.
        observation_space, action_space: of one environment.
        steps: budget of each member, which bounds its replay buffer.

    Attributes:
        settings: of the members that are left.
        steps: environment steps of each member, int64 (n,).
        updates: gradient steps of each member, int64 (n,).
    """

    noises_per_update: ClassVar[int]  # of a minibatch's size, standard normal

    def __init__(
        self,
        settings: Sequence[S],
        seeds: Sequence[int],
        observation_space: spaces.Space,
        action_space: spaces.Space,
        steps: Sequence[int],
    ) -> None:
        self.settings = list(settings)
        s, n = self.settings[0], len(self.settings)
        self.observation_space, self.action_space = observation_space, action_space
        assert isinstance(action_space, spaces.Box)
        self._low, self._high = action_space.low, action_space.high
        self._span = self._high - self._low
        self.obs_dim, self.action_dim = s.lengths(observation_space, action_space)
        self.device = s.resolved_device()
        capacities = [each.capacity(budget) for each, budget in zip(settings, steps)]
        sizes = (self.obs_dim, self.action_dim)
        cohort = [(capacity, *sizes) for capacity in capacities]
        check_memory(s.learner, self.device, cohort, n_envs=s.n_envs)
        try:
            self.buffer = ReplayBuffer(capacities, *sizes, self.device, n, s.n_envs)
        # NumPy's error, and PyTorch's.
        except (MemoryError, RuntimeError) as e:
            asked = ReplayBuffer.bytes_asked(capacities, *sizes, s.n_envs)
            advice = "set a smaller buffer_size"
            raise too_large(s.learner, n, asked, "this machine does not give them", advice) from e
        self.actor_shape, self.critic_shape = self.shapes()
        self.actor = self._trained(self.actor_shape.size())
        self.critic = self._trained(s.n_critics * self.critic_shape.size())
        self.networks = {"actor": self.actor, "critic": self.critic}
        self._bind()
        for i, seed in enumerate(seeds):
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                policy = s.policy_class()(
                    observation_space,
                    action_space,
                    lambda _: 0.0,
                    **s.policy_kwargs(),
                )
            self.load_policy(i, policy)
        for trained in self.networks.values():
            trained.start_target()
        spawned = [np.random.SeedSequence(seed).spawn(3) for seed in seeds]
        self._rngs = [[np.random.default_rng(child) for child in each] for each in spawned]
        self.steps, self.updates = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self._exploration = np.zeros((n, s.n_envs, self.action_dim))

    # -- what an algorithm gives --

    def shapes(self) -> tuple[Shape, Shape]:
        """Of an actor and of a critic."""
        raise NotImplementedError

    def policy_actions(self, outputs: Tensor, draw: Callable[[], np.ndarray]) -> np.ndarray:
        """Actions in [-1, 1], a new array, of actors that put these outputs out (n, n_envs, …);
        `draw` gives standard normal numbers like the actions.
        """
        raise NotImplementedError

    def course(self, updates: int, gradient_step: int) -> Hashable:
        """Which course an update takes, the `gradient_step`-th (from 0) since the last step of the
        environments.
        """
        raise NotImplementedError

    def update(
        self, block: Block[S], batch: Batch, noise: Tensor, course: Any
    ) -> dict[str, Tensor]:
        """One gradient step of a block; statistics (n,)."""
        raise NotImplementedError

    # -- members --

    def __len__(self) -> int:
        return len(self.settings)

    def _trained(self, size: int) -> Trained:
        s = self.settings[0]
        return Trained(
            len(self.settings),
            size,
            device=self.device,
            betas=s.adam_betas,
            eps=s.adam_eps,
            weight_decay=s.weight_decay,
        )

    def _bind(self) -> None:
        """Make what looks into the members' rows; called when they changed."""
        self._blocks: dict[tuple[int, int], Block[S]] = {}
        self._alike = True
        self._said: dict[tuple[int, int, Hashable], dict[str, Tensor]] = {}
        self._captured = Captured(self._update_block, str(self.device))
        widths = sum(self.actor_shape.hidden) + 2 * len(self.settings[0].qf) * sum(
            self.critic_shape.hidden
        )
        numbers = 5 * (self.actor.values.shape[1] + self.critic.values.shape[1])
        numbers += self.settings[0].batch_size * widths
        on_gpu = self.device.type == "cuda"
        self._per_block = len(self) if on_gpu else max(1, _CACHE // (4 * numbers))
        self._noise = np.zeros(
            (len(self), self.noises_per_update, self.settings[0].batch_size, self.action_dim),
            np.float32,
        )
        self._sampled = np.zeros((len(self), self.settings[0].batch_size), np.int64)

    def block(self, begin: int, end: int) -> Block[S]:
        """Members `begin` to `end`."""
        if (begin, end) not in self._blocks:
            n, m = end - begin, self.settings[0].n_critics
            low = self.settings[0].precision == "bf16"

            def made(shape: Shape, values: Tensor, grads: Tensor | None = None) -> Perceptrons:
                return Perceptrons(shape, len(values), values, grads, low)

            actor, critic, size = self.actor, self.critic, self.critic_shape.size()
            rows = slice(begin, end)
            critics, grads, targets = (
                t[rows].view(n * m, size) for t in (critic.values, critic.grads, critic.target)
            )
            self._blocks[begin, end] = Block(
                begin,
                end,
                self.settings[begin:end],
                made(self.actor_shape, actor.values[rows], actor.grads[rows]),
                made(self.actor_shape, actor.target[rows]),
                made(self.critic_shape, critics, grads),
                made(self.critic_shape, targets),
                made(self.critic_shape, critics[::m]),
            )
        return self._blocks[begin, end]

    # -- acting --

    @torch.inference_mode()
    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions for what every environment shows, in [-1, 1], float32 (n, n_envs, actions): at
        random before `learning_starts`, with noise where there is any. Those of a member whose
        weights are not finite are not finite either.
        """
        n, n_envs = len(self), self.settings[0].n_envs
        at_random = [int(t) < s.learning_starts for t, s in zip(self.steps, self.settings)]
        actions = np.zeros((n, n_envs, self.action_dim), np.float32)
        if not all(at_random):
            x = torch.from_numpy(np.asarray(observations, np.float32)).to(self.device)
            # A single row would be multiplied in another way than several.
            x = x.expand(-1, max(2, n_envs), -1) if n_envs == 1 else x
            outputs = self.block(0, n).actor.forward(x, keep=False).output[:, :n_envs]

            def draw() -> np.ndarray:
                drawn = np.zeros((n, n_envs, self.action_dim), np.float32)
                for i, (rngs, random) in enumerate(zip(self._rngs, at_random)):
                    if not random:
                        rngs[0].standard_normal(dtype=np.float32, out=drawn[i])
                return drawn

            actions = self.policy_actions(outputs, draw)
        for i, (s, rngs, random) in enumerate(zip(self.settings, self._rngs, at_random)):
            if random:
                actions[i] = rngs[0].uniform(-1.0, 1.0, actions[i].shape)
            if s.noise_type is not None:
                actions[i] = np.clip(actions[i] + self._explored(i, s, rngs[0]), -1.0, 1.0)
        return actions

    def _explored(self, i: int, s: S, rng: np.random.Generator) -> np.ndarray:
        """Noise of a member's actions, (n_envs, actions)."""
        normal = rng.standard_normal(self._exploration[i].shape)
        if s.noise_type == "normal":
            return s.noise_std * normal
        noise = self._exploration[i]
        noise += -_THETA * _DT * noise + s.noise_std * np.sqrt(_DT) * normal
        return noise

    def executed(self, actions: np.ndarray) -> np.ndarray:
        """Actions in [-1, 1] as an environment takes them."""
        scaled = actions.reshape(*actions.shape[:2], *self._low.shape)
        executed = self._low + (0.5 * (scaled + 1.0)) * self._span
        return np.clip(executed, self._low, self._high)  # the sum is rounded

    def record(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        next_observations: np.ndarray,
        rewards: np.ndarray,
        ended: np.ndarray,
        cut: Sequence[tuple[int, int, np.ndarray]],
    ) -> None:
        """Note what the actions led to.

        Args:
            observations, actions: (n, n_envs, …), before the step, and actions in [-1, 1].
            next_observations: after it; the first of a new episode where one ended.
            rewards, ended: (n, n_envs).
            cut: for each episode that a time limit ended, (member, environment, its last
                observation).
        """
        terminated = ended.copy()
        for member, env, _ in cut:
            terminated[member, env] = False
        self.buffer.add_step(observations, actions, next_observations, rewards, terminated, cut)
        self.steps += self.settings[0].n_envs
        if ended.any():
            self._exploration[ended] = 0.0

    def begin_anew(self, member: int, env: int) -> None:
        """An episode of a member was left, and a new one begins."""
        self.buffer.leave(member, env)
        self._exploration[member, env] = 0.0

    # -- learning --

    def learn(self, due: Sequence[int], progress_remaining: Sequence[float]) -> None:
        """Take `due` gradient steps, each member its own number of them, at the learning rates of
        what remains of each one's training (1 to 0).
        """
        self.set_rates(progress_remaining)
        for k in range(max(due, default=0)):
            courses = [
                self.course(int(updates), k) if n > k else None
                for updates, n in zip(self.updates, due)
            ]
            for begin, end in runs(courses, self._per_block):
                self._sample(begin, end)
                key = begin, end, courses[begin]
                places, noise = self._sampled[begin:end], self._noise[begin:end]
                # Behind what was said before, so that the latest of a name is the last one.
                self._said.pop(key, None)
                self._said[key] = self._captured(
                    key,
                    torch.from_numpy(places).to(self.device),
                    torch.from_numpy(noise).to(self.device),
                )
                self.updates[begin:end] += 1

    def statistics(self, i: int) -> dict[str, float]:
        """What member i's latest updates, of each course, say of themselves."""
        return {
            name: float(values[i - begin])
            for (begin, end, _), said in self._said.items()
            if begin <= i < end
            for name, values in said.items()
        }

    def set_rates(self, progress_remaining: Sequence[float]) -> None:
        """Follow schedules of learning rates."""
        rates = [s.rate(p) for s, p in zip(self.settings, progress_remaining)]
        if self._alike and len({*rates}) > 1:
            # What a GPU recorded has one rate for all. Members whose rates met would part again.
            self._alike = False
            self._captured = Captured(self._update_block, str(self.device))
        for trained in self.networks.values():
            trained.alike = self._alike
            if rates != trained.rates:
                trained.set_rates(rates)

    def _sample(self, begin: int, end: int) -> None:
        """Draw members' minibatches, and the noise of an update."""
        for i in range(begin, end):
            _, places, noise = self._rngs[i]
            self._sampled[i] = places.integers(self.buffer.held(i), size=self._sampled.shape[1])
            noise.standard_normal(dtype=np.float32, out=self._noise[i])

    @torch.inference_mode()
    def _update_block(
        self, key: tuple[int, int, Hashable], places: Tensor | None, noise: Tensor | None
    ) -> dict[str, Tensor]:
        assert places is not None and noise is not None  # noqa: PT018
        begin, end, course = key
        batch = self.buffer.batches(places, begin)
        return self.update(self.block(begin, end), batch, noise, course)

    def finite(self, i: int) -> bool:
        """Whether all weights of a member are finite."""
        networks = self.networks.values()
        return all(bool(trained.values[i].isfinite().all()) for trained in networks)

    # -- exchange with Stable-Baselines3 --

    def load_policy(self, i: int, policy: Any) -> None:
        """Take the weights of a policy of Stable-Baselines3 into member i."""
        for layers, modules in zip(
            self.layers(i, self.actor.values, self.critic.values), self.modules(policy, False)
        ):
            for layer, heads in zip(layers, modules, strict=True):
                layer.weight.copy_(torch.cat([head.weight.detach().t() for head in heads], 1))
                layer.bias.copy_(torch.cat([head.bias.detach() for head in heads]))

    def store_policy(self, i: int, policy: Any) -> None:
        """Write member i's weights, targets and state of Adam into a policy."""
        for target, tensors in ((False, "values"), (True, "target")):
            rows = [getattr(trained, tensors) for trained in (self.actor, self.critic)]
            for layers, modules in zip(self.layers(i, *rows), self.modules(policy, target)):
                for layer, heads in zip(layers, modules):
                    _copy_out(layer, heads, lambda parameter, value: parameter.data.copy_(value))
        actor, critic = self.actor.moments(i), self.critic.moments(i)
        n_critics = self.settings[0].n_critics
        owners = [(actor, policy.actor), *[(critic, policy.critic)] * n_critics]
        networks = self.modules(policy, False)
        for name in ("exp_avg", "exp_avg_sq"):
            cut = self.layers(0, actor[name].unsqueeze(0), critic[name].unsqueeze(0))
            for (moments, owner), layers, parts in zip(owners, cut, networks, strict=True):
                if moments["step"] > 0:
                    put = partial(_set_moment, owner.optimizer.state, moments["step"], name)
                    for layer, linear in zip(layers, parts, strict=True):
                        _copy_out(layer, linear, put)

    def layers(self, row: int, actor: Tensor, critic: Tensor) -> list[list[Layer]]:
        """Layers of an actor and of each of its critics, on a row of what is like
        `Trained.values`.
        """
        cuts = (
            (self.block(0, 1).actor, actor[row : row + 1]),
            (self.block(0, 1).critic, critic[row].view(-1, self.critic_shape.size())),
        )
        return [layers for network, rows in cuts for layers, _ in network.cut(rows)]

    def modules(self, policy: Any, target: bool) -> list[list[tuple[nn.Linear, ...]]]:
        """Of a policy of Stable-Baselines3, what `layers` lists: for each layer its linear modules
        side by side.
        """
        raise NotImplementedError

    def store_rest(self, i: int, model: Any) -> None:
        """Write what else member i has into a model."""

    # -- selection and checkpoints --

    def keep(self, members: Sequence[int]) -> None:
        """Go on with these members only, in this order; nothing changes for them."""
        kept = list(members)
        for trained in self.networks.values():
            trained.keep(kept)
        self.buffer.keep(kept)
        self.settings = [self.settings[i] for i in kept]
        self._rngs = [self._rngs[i] for i in kept]
        self.steps, self.updates = self.steps[kept], self.updates[kept]
        self._exploration = self._exploration[kept]
        self._bind()

    def get_state(self, i: int) -> dict[str, Any]:
        """All of a member that its training depends on, but for the replay buffer; copies."""
        return {
            "networks": {name: trained.get_state(i) for name, trained in self.networks.items()},
            "rngs": [rng.bit_generator.state for rng in self._rngs[i]],
            "exploration": self._exploration[i].copy(),
            "steps": int(self.steps[i]),
            "updates": int(self.updates[i]),
        }

    def set_state(self, i: int, state: dict[str, Any]) -> None:
        """Go on from `get_state`."""
        state = copy.deepcopy(state)
        for name, trained in self.networks.items():
            trained.set_state(state["networks"][name], i)
        for rng, saved in zip(self._rngs[i], state["rngs"], strict=True):
            rng.bit_generator.state = saved
        self._exploration[i] = state["exploration"]
        self.steps[i], self.updates[i] = state["steps"], state["updates"]


def runs(courses: Sequence[Hashable], most: int) -> list[tuple[int, int]]:
    """Begin and end of the runs of equal entries that are not None, none longer than `most`."""
    found: list[tuple[int, int]] = []
    for i, course in enumerate(courses):
        if course is None:
            continue
        begin, end = found[-1] if found else (0, 0)
        if found and end == i and courses[begin] == course and end - begin < most:
            found[-1] = (begin, i + 1)
        else:
            found.append((i, i + 1))
    return found


def _copy_out(
    layer: Layer,
    heads: tuple[nn.Linear, ...],
    put: Callable[[Tensor, Tensor], object],
) -> None:
    """Give each linear module that shares a layer its part."""
    widths = [head.out_features for head in heads]
    for head, weight, bias in zip(heads, layer.weight.split(widths, 1), layer.bias.split(widths)):
        put(head.weight, weight.t())
        put(head.bias, bias)


def _set_moment(
    states: dict[Tensor, Any], step: Tensor, name: str, parameter: Tensor, value: Tensor
) -> None:
    state = states.setdefault(parameter, {"step": step.cpu().clone()})
    state[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
