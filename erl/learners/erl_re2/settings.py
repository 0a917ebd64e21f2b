"""Settings of ERL-Re²: the published names, defaults by environment from `environments.toml`,
everything checked.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any

import torch

from erl.errors import UserError, nearest
from erl.networks.perceptrons import WIDE

ALGORITHMS = ("TD3", "DDPG")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Re2Settings:
    """Settings of one agent.

    Attributes:
        EA: whether heads evolve. Without, it is TD3 (or DDPG) on the representation.
        RL: whether networks learn. Without, it is a genetic algorithm on heads over a random
            representation.
        algorithm: of the RL agent. `DDPG` has no twin critics, no smoothing of target actions and
            no delay.
        pop_size: heads in the population.
        theta: probability that a generation is judged by whole episodes; else by the surrogate.
        time_steps: steps H of the surrogate's partial episodes.
        num_evals: whole episodes of a head, where whole episodes judge.
        elite_fraction: share of the population that is kept (at least one, and not all).
        mutation_prob: probability that a head that is no new elite is considered for mutation.
        frac: share of an action's weights that a mutation changes.
        prob_reset_and_sup: probability of a super-mutation, and of a reset, of an action's weights.
        sync_period: generations between two copies of the RL head into the population.
        use_ln: whether hidden layers are normalised.
        pr: length of a policy's code.
        OFF_TYPE: 1: the policies' value function sees (s, a); 0: the representation.
        K: heads for which the representation is improved in one update.
        actor_alpha, EA_actor_alpha: weights of the RL agent's and of the population's value in the
            representation's objective.
        TD3_noise: standard deviation of the target policy's smoothing noise (clipped at 0.5).
        exploration_noise: standard deviation of the noise on the RL agent's actions.
        gamma, tau: discount, and speed of the targets.
        learning_rate: of every Adam.
        batch_size, buffer_size: transitions in a minibatch, and in the replay buffer.
        init_steps: steps that the RL agent acts at random before anything learns or evolves.
        learning_starts: transitions in the buffer before anything learns or evolves, beside
            `init_steps`.
        frac_frames_train: updates for each step taken, from the generation on in which learning
            begins.
        eval_freq: steps between two evaluations that are only reported and not counted, each at the
            end of a generation; 0: none.
        eval_episodes: episodes of the champion and of the RL agent in such an evaluation.
        device: PyTorch's name of where the networks learn.
        threads: cores for the networks' mathematics; another number, other roundings.
        precision: `fp32`, or `bf16` for the factors of wide matrix products, those of minibatches
            from 128 on; for processors that have it.

    Without `EA`, what speaks of heads, generations or `K` has no meaning (but `pop_size` and `pr`
    shift the random numbers of everything else); without `RL`, what speaks of learning, `theta`,
    `time_steps` and `sync_period`; with `DDPG`, `TD3_noise`.
    """

    theta: float
    time_steps: int
    frac: float
    sync_period: int
    EA: bool = True
    RL: bool = True
    algorithm: str = "TD3"
    pop_size: int = 5
    num_evals: int = 1
    elite_fraction: float = 0.2
    mutation_prob: float = 0.9
    prob_reset_and_sup: float = 0.05
    use_ln: bool = True
    pr: int = 64
    OFF_TYPE: int = 1
    K: int = 1
    actor_alpha: float = 1.0
    EA_actor_alpha: float = 1.0
    TD3_noise: float = 0.2
    exploration_noise: float = 0.1
    gamma: float = 0.99
    tau: float = 0.005
    learning_rate: float = 1e-3
    batch_size: int = 128
    buffer_size: int = 1_000_000
    init_steps: int = 10_000
    learning_starts: int = 5_000
    frac_frames_train: float = 1.0
    eval_freq: int = 50_000
    eval_episodes: int = 5
    device: str = "cpu"
    threads: int = 1
    precision: str = "fp32"

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name in _FROM_ZERO else 1
            if field.type is bool and not isinstance(value, bool):
                raise _wrong(field.name, "true or false", value)
            if field.type is int and (
                not isinstance(value, int) or isinstance(value, bool) or value < least
            ):
                raise _wrong(field.name, f"a whole number from {least}", value)
            if field.type is float:
                if (
                    not isinstance(value, int | float)
                    or isinstance(value, bool)
                    or not math.isfinite(value)
                    or value < 0
                ):
                    raise _wrong(field.name, "a number from 0", value)
                if field.name in _SHARES and value > 1:
                    raise _wrong(field.name, "between 0 and 1", value)
        if not (self.EA or self.RL):
            raise UserError("ERL-Re2 with neither EA nor RL learns nothing: leave one of them on")
        for name, known in (
            ("algorithm", ALGORITHMS),
            ("precision", PRECISIONS),
            ("OFF_TYPE", (0, 1)),
        ):
            if getattr(self, name) not in known:
                raise UserError(
                    f"ERL-Re2's {name} is {' or '.join(map(str, known))}, not "
                    f"{getattr(self, name)!r}"
                )
        for name in ("learning_rate", "frac_frames_train"):
            if getattr(self, name) == 0:
                raise _wrong(name, "above 0", 0)
        if self.precision == "bf16" and self.batch_size < WIDE:
            raise _wrong("batch_size", f"at least {WIDE} where precision is bf16", self.batch_size)
        if self.EA and self.n_elites >= self.pop_size:
            raise _wrong("elite_fraction", "less than the whole population", self.elite_fraction)
        if self.EA and self.pop_size < 3:
            raise _wrong(
                "pop_size", "at least 3: an elite, an offspring and one to replace", self.pop_size
            )
        if self.EA and self.pop_size + 1 < self.K:
            raise _wrong("K", f"at most the number of policies, {self.pop_size + 1}", self.K)
        if self.learning_starts > self.buffer_size:
            raise _wrong(
                "learning_starts", f"at most buffer_size, {self.buffer_size}", self.learning_starts
            )
        if 2 * self.prob_reset_and_sup > 1:
            raise _wrong(
                "prob_reset_and_sup", "at most 0.5: it counts twice", self.prob_reset_and_sup
            )
        try:
            kind = torch.device(self.device).type
        except (RuntimeError, TypeError) as e:
            raise UserError(f"ERL-Re2 knows no device {self.device!r}") from e
        if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
            raise UserError(
                f"this machine has no device {self.device!r} for ERL-Re2; device cpu works "
                f"everywhere"
            )

    @classmethod
    def from_learner_config(cls, config: Mapping[str, Any], env_id: str) -> "Re2Settings":
        """Settings from a learner's configuration; what it does not name is the environment's
        default.

        Raises:
            UserError: an unknown setting, or a value that cannot be.
        """
        names = [f.name for f in fields(cls)]
        for key in config:
            if key not in names:
                raise UserError(f"ERL-Re2 has no setting {key!r}{nearest(key, names)}")
        return cls(**{**environment_defaults(env_id), **config})

    @property
    def n_elites(self) -> int:
        """Heads that are kept from one generation to the next."""
        return max(1, int(self.elite_fraction * self.pop_size))

    @property
    def n_critics(self) -> int:
        """Twins of each value function."""
        return 2 if self.algorithm == "TD3" else 1

    @property
    def smoothing(self) -> float:
        """Standard deviation of the noise on target actions."""
        return self.TD3_noise if self.algorithm == "TD3" else 0.0

    @property
    def delay(self) -> int:
        """Updates of the value functions for each update of the policies."""
        return 2 if self.algorithm == "TD3" else 1


_FROM_ZERO = frozenset({"init_steps", "learning_starts", "eval_freq", "OFF_TYPE"})
_SHARES = frozenset({"theta", "frac", "elite_fraction", "mutation_prob", "gamma", "tau"})


def _wrong(name: str, what: str, value: Any) -> UserError:
    return UserError(f"ERL-Re2's {name} is {what}, not {value!r}")


@cache
def _table() -> dict[str, dict[str, Any]]:
    return tomllib.loads(
        (resources.files("erl.learners.erl_re2") / "environments.toml").read_text(encoding="utf-8")
    )


def environment_defaults(env_id: str) -> dict[str, Any]:
    """Settings that depend on the environment, whatever its version and module."""
    name = env_id.rpartition(":")[2].rpartition("-v")[0]
    section = _table().get(name, _table()["default"])
    return {key: value for key, value in section.items() if key != "source"}
