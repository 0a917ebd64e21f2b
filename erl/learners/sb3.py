"""Any algorithm of Stable-Baselines3 and sb3-contrib, one lifetime at a time."""

import copy
import inspect
import math
from collections.abc import Hashable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import sb3_contrib
import stable_baselines3
import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from erl.errors import Stopped, UserError, nearest
from erl.files import write_whole
from erl.learners import Agent, Outputs, one_by_one
from erl.learners.core.settings import OURS, activation, parse_value, schedule
from erl.learners.core.telemetry import Logs, Scores, note
from erl.worlds.specification import LifetimeSpec
from erl.worlds.tasks import Ledger, check_task

# Settings beside the algorithm's own arguments: as the SB3 Zoo spells them, and those of
# evaluations on the way.
_BESIDE = frozenset({"n_envs", "normalize", "noise_type", "noise_std", *Scores.SETTINGS})
_SCHEDULED = ("learning_rate", "clip_range", "clip_range_vf")


@cache
def algorithms() -> dict[str, type[BaseAlgorithm]]:
    """Algorithms by name.

    MaskablePPO is left out: it needs environments that name their valid actions.
    """
    found = {}
    for package in (stable_baselines3, sb3_contrib):
        for name in package.__all__:
            kind = getattr(package, name)
            if inspect.isclass(kind) and issubclass(kind, BaseAlgorithm) and name != "MaskablePPO":
                found[name] = kind
    return found


def _takes(algorithm: type[BaseAlgorithm], action_space: spaces.Space) -> bool:
    """Whether the algorithm accepts this action space: asked of the algorithm itself."""
    if algorithm is sb3_contrib.RecurrentPPO and isinstance(action_space, spaces.MultiBinary):
        return False  # its buffer keeps bits as integers, and its training fails over them
    env = _Spaces(spaces.Box(-1, 1, (3,), dtype=np.float32), action_space)
    try:
        algorithm(_default_policy(algorithm), env, device="cpu")  # type: ignore[call-arg]
    except (AssertionError, ValueError, NotImplementedError):
        return False
    return True


class _Spaces(gym.Env):
    """An environment that has spaces and never moves."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return np.zeros(self.observation_space.shape or (), self.observation_space.dtype), {}

    def step(self, action: Any) -> Any:
        return self.reset()[0], 0.0, False, False, {}


def _default_policy(algorithm: type[BaseAlgorithm]) -> str:
    return (
        "MlpPolicy"
        if "MlpPolicy" in algorithm.policy_aliases
        else next(iter(algorithm.policy_aliases))
    )


def _arguments(algorithm: type[BaseAlgorithm]) -> set[str]:
    return set(inspect.signature(algorithm.__init__).parameters) - {"self"} - OURS


def whole_sequences(
    features: torch.Tensor,
    states: tuple[torch.Tensor, torch.Tensor],
    episode_starts: torch.Tensor,
    lstm: torch.nn.LSTM,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """sb3-contrib's `_process_sequence`, with one pass of the LSTM where episodes begin at no step
    but a sequence's first.

    In training they never do, for there sequences are cut at episodes' starts; sb3-contrib goes
    step by step as soon as there is a start at all. The same figures but for rounding, three times
    as fast.

    Args:
        features: (n_seq * length, n_features), sequence after sequence.
        states: hidden and cell states before the first step, each (n_layers, n_seq, n_units).
        episode_starts: (n_seq * length,), one where an episode begins, which sets the states to
            zero.
        lstm: the network.

    Returns:
        Outputs (n_seq * length, n_units), and the states after the last step.
    """
    n_seq = states[0].shape[1]
    starts = episode_starts.reshape(n_seq, -1)
    if starts.shape[1] == 1 or starts[:, 1:].any():
        return RecurrentActorCriticPolicy._process_sequence(features, states, episode_starts, lstm)  # type: ignore[return-value]
    keep = (1.0 - starts[:, 0]).view(1, n_seq, 1)
    sequences = features.reshape(n_seq, -1, lstm.input_size).swapaxes(0, 1)
    outputs, states = lstm(sequences, (keep * states[0], keep * states[1]))
    return outputs.swapaxes(0, 1).flatten(0, 1), states


class SB3Agent:
    """A trained model, together with the statistics that normalise its observations.

    Attributes:
        companions: agents that it is to be told apart from, by name; evaluated and saved beside it,
            as `{name}.{companion}.zip`.
    """

    def __init__(
        self,
        model: BaseAlgorithm,
        normalize: VecNormalize | None = None,
        companions: Mapping[str, "SB3Agent"] | None = None,
    ) -> None:
        self.model, self.normalize, self.companions = model, normalize, companions or {}

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Stable-Baselines3's `predict`, on raw observations."""
        if self.normalize is not None:
            observation = self.normalize.normalize_obs(observation)
        return self.model.predict(observation, state, episode_start, deterministic)

    def diverged(self) -> bool:
        """Whether a weight of the model is not finite."""
        return not all(bool(w.isfinite().all()) for w in self.model.policy.state_dict().values())

    def save(self, folder: Path, name: str) -> None:
        """Write `name.zip`, `name.vecnormalize.pkl` where observations or rewards were normalised,
        and each companion.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / f"{name}.zip", self.model.save)
        if self.normalize is not None:
            write_whole(folder / f"{name}.vecnormalize.pkl", self.normalize.save)
        for which, agent in self.companions.items():
            agent.save(folder, f"{name}.{which}")


def load(name: str, path: Path, spec: LifetimeSpec) -> SB3Agent:
    """The agent that `SB3Agent.save` wrote to `{path}.zip`, a model of the named algorithm, after a
    lifetime.
    """
    statistics = Path(f"{path}.vecnormalize.pkl")
    normalize = None
    if parse_value(spec.learner.config.get("normalize", False)):
        if not statistics.exists():
            raise UserError(f"{statistics} is missing: the model saw normalised observations")
        normalize = VecNormalize.load(str(statistics), DummyVecEnv([spec.make_env]))
    return SB3Agent(algorithms()[name].load(f"{path}.zip", device="cpu"), normalize)


class _OnTheWay(BaseCallback):
    """Evaluates when it is time, and ends `learn` when the lifetime is told to stop; by raising,
    since not every algorithm heeds a callback's False.
    """

    def __init__(self, ledger: Ledger, steps: int, scores: Scores) -> None:
        super().__init__()
        self._ledger, self._steps, self._scores = ledger, steps, scores

    def _on_step(self) -> bool:
        if self._ledger.steps < self._steps and self._ledger.stopped:
            raise Stopped
        if not self._scores.due:
            return True
        scores = self._scores.add(
            {"agent": SB3Agent(self.model, self.model.get_vec_normalize_env())}
        )
        if scores:
            self.logger.record("eval/mean_reward", scores["agent"])
        return True


class SB3Learner:
    """One of Stable-Baselines3's or sb3-contrib's algorithms.

    Settings are its keyword arguments, spelled as in Python or as in the SB3 Zoo's files, and
    `n_envs`, `normalize` (VecNormalize), `noise_type` and `noise_std` as there.
    """

    def __init__(self, name: str) -> None:
        self.name, self.algorithm = name, algorithms()[name]

    def check(self, spec: LifetimeSpec) -> None:
        """Raise a UserError for an action space that does not fit, for settings that cannot be, and
        for a budget within which nothing is learned.
        """
        _, action_space = check_task(spec.task)
        if not _takes(self.algorithm, action_space):
            kind = type(action_space).__name__
            fits = [n for n, a in algorithms().items() if _takes(a, action_space)]
            raise UserError(
                f"{self.name} does not take the {kind} actions of {spec.task.env_id}; these do: "
                f"{', '.join(fits)}"
            )
        known = _arguments(self.algorithm) | _BESIDE
        for key in spec.learner.config:
            if key in OURS:
                raise UserError(f"{key} is not {self.name}'s to set here: this project does")
            if key not in known:
                raise UserError(f"{self.name} has no setting {key!r}{nearest(key, known)}")
        for key, value in spec.learner.config.items():
            self._check_kind(key, value)
        Scores.of(spec, Ledger())
        env = self._make_vec_env(spec, Ledger())
        try:
            first = getattr(self._make_model(spec, env), "learning_starts", 0)
        except UserError:
            raise
        except (
            Exception
        ) as e:  # whatever the algorithm's constructor objects to is the settings' fault
            raise UserError(f"{self.name} refuses its settings: {' '.join(str(e).split())}") from e
        finally:
            env.close()
        if first >= spec.steps:
            raise UserError(
                f"{self.name} begins to learn after learning_starts, {first:,} steps, and a "
                f"lifetime has {spec.steps:,}"
            )

    def _check_kind(self, key: str, value: Any) -> None:
        """Refuse what an algorithm would take at first and fail over in the middle of training."""
        parameter = inspect.signature(self.algorithm.__init__).parameters.get(key)
        usual = parameter.default if parameter is not None else None
        number = (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
        if isinstance(usual, bool):
            fits, kind = isinstance(value, bool), "true or false"
        elif isinstance(usual, int) and key != "train_freq":  # which may be a pair
            fits, kind = number and isinstance(value, int), "a whole number"
        elif (isinstance(usual, float) and key not in _SCHEDULED) or key == "noise_std":
            fits, kind = (
                number and (key != "noise_std" or value >= 0),
                "a number" + " from 0" * (key == "noise_std"),
            )
        else:
            return
        if not fits:
            raise UserError(f"{self.name}'s {key} is {kind}, not {value!r}")

    def cohort_key(self, spec: LifetimeSpec) -> Hashable | None:
        """Each on its own."""
        return None

    def train(
        self, cohort: Sequence[LifetimeSpec], ledgers: Sequence[Ledger], outputs: Sequence[Outputs]
    ) -> list[Agent | Exception]:
        """Train one after the other."""
        return one_by_one(self._train_one, cohort, ledgers, outputs)

    def _train_one(self, spec: LifetimeSpec, ledger: Ledger, output: Outputs) -> SB3Agent:
        env = self._make_vec_env(spec, ledger)
        try:
            model = self._make_model(spec, env)
            # The algorithm seeds its environments with its own seed; theirs is a role of its own.
            env.seed(spec.seeds.environment)
            model.set_logger(Logs(output.tensorboard))
            scores = Scores.of(spec, ledger)
            note(ledger, scores)
            model.learn(spec.steps, callback=_OnTheWay(ledger, spec.steps, scores))
            model.logger.close()
        finally:
            env.close()
        return SB3Agent(model, env if isinstance(env, VecNormalize) else None)

    def _make_vec_env(self, spec: LifetimeSpec, ledger: Ledger) -> VecEnv:
        n_envs = spec.learner.config.get("n_envs", 1)
        if not isinstance(n_envs, int) or isinstance(n_envs, bool) or n_envs < 1:
            raise UserError(f"n_envs is a whole number from 1, not {n_envs!r}")
        env: VecEnv = DummyVecEnv([partial(spec.make_env, ledger)] * n_envs)
        normalize = parse_value(spec.learner.config.get("normalize", False))
        if not isinstance(normalize, bool | dict):
            raise UserError(f"normalize is true, false or dict(…), not {normalize!r}")
        if normalize:
            arguments = dict(normalize) if isinstance(normalize, dict) else {}
            arguments.setdefault("gamma", spec.learner.config.get("gamma", 0.99))
            unknown = arguments.keys() - set(inspect.signature(VecNormalize).parameters)
            if unknown:
                raise UserError(f"normalize has no setting {sorted(unknown)[0]!r}")
            env = VecNormalize(env, **arguments)
        return env

    def _make_model(self, spec: LifetimeSpec, env: VecEnv) -> BaseAlgorithm:
        # A copy: some algorithms add to the policy_kwargs that they are given.
        given = copy.deepcopy(dict(spec.learner.config))
        settings = {k: parse_value(v) for k, v in given.items() if k not in _BESIDE}
        for key in _SCHEDULED:
            if key in settings:
                settings[key] = schedule(settings[key])
        if isinstance(settings.get("train_freq"), list):
            settings["train_freq"] = tuple(settings["train_freq"])
        if "activation_fn" in settings.get("policy_kwargs", {}):
            policy_kwargs = settings["policy_kwargs"]
            settings["policy_kwargs"] = {
                **policy_kwargs,
                "activation_fn": activation(policy_kwargs["activation_fn"]),
            }
        noise = self._action_noise(spec, env.action_space)
        if noise is not None:
            settings["action_noise"] = noise
        policy = settings.pop("policy", _default_policy(self.algorithm))
        if policy not in self.algorithm.policy_aliases:
            raise UserError(
                f"{self.name} has no policy "
                f"{policy!r}{nearest(str(policy), self.algorithm.policy_aliases)}"
            )
        model = self.algorithm(policy, env, seed=spec.seeds.learner, device="cpu", **settings)
        if isinstance(model.policy, RecurrentActorCriticPolicy):
            # On the object, so that saved models name sb3-contrib's class and load without this
            # project.
            model.policy._process_sequence = whole_sequences  # type: ignore[method-assign, assignment]
        return model

    def _action_noise(self, spec: LifetimeSpec, action_space: spaces.Space) -> Any:
        kind, std = spec.learner.config.get("noise_type"), spec.learner.config.get("noise_std", 0.0)
        if kind is None:
            return None
        if "action_noise" not in inspect.signature(self.algorithm.__init__).parameters:
            raise UserError(f"{self.name} takes no action noise (noise_type)")
        assert action_space.shape is not None
        mean, sigma = np.zeros(action_space.shape), np.full(action_space.shape, float(std))
        if kind == "normal":
            return NormalActionNoise(mean, sigma)
        if kind == "ornstein-uhlenbeck":
            return OrnsteinUhlenbeckActionNoise(mean, sigma)
        raise UserError(
            f"unknown noise_type {kind!r}{nearest(str(kind), ['normal', 'ornstein-uhlenbeck'])}"
        )
