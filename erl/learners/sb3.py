"""Any algorithm of Stable-Baselines3 and sb3-contrib, one lifetime at a time."""

import copy
import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import sb3_contrib
import stable_baselines3
import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from erl.errors import Interrupted, Stopped, UserError, one_line
from erl.files import write_whole
from erl.learners import SB3_ALGORITHMS, Agent, Outputs, cohort_settings, one_by_one
from erl.learners.core import sb3_settings
from erl.learners.core.settings import EvaluationSettings, check_budget, check_learned
from erl.learners.core.settings_file import activation, parse_value
from erl.learners.core.telemetry import Telemetry
from erl.worlds.ledger import Ledger
from erl.worlds.specification import LifetimeSpec
from erl.worlds.tasks import check_task
from erl.worlds.wrappers import closing_on_error


@cache
def algorithms() -> dict[str, type[BaseAlgorithm]]:
    """Algorithms by name.

    MaskablePPO is left out: it needs environments that name their valid actions.
    """
    packages = (stable_baselines3, sb3_contrib)
    return {
        name: next(getattr(package, name) for package in packages if hasattr(package, name))
        for name in SB3_ALGORITHMS
    }


# The action spaces that each algorithm takes. Its constructor asserts them, and `python -O` leaves
# assertions out.
_ACTIONS: dict[str, tuple[type[spaces.Space], ...]] = {
    **dict.fromkeys(
        ("A2C", "PPO", "TRPO"),
        (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
    ),
    # It takes MultiBinary, but its buffer keeps bits as integers, and its training fails over them.
    "RecurrentPPO": (spaces.Box, spaces.Discrete, spaces.MultiDiscrete),
    **dict.fromkeys(("DQN", "QRDQN"), (spaces.Discrete,)),
    **dict.fromkeys(("CrossQ", "DDPG", "SAC", "TD3", "TQC"), (spaces.Box,)),
    "ARS": (spaces.Box, spaces.Discrete),
}


def whole_sequences(
    features: torch.Tensor,
    states: tuple[torch.Tensor, torch.Tensor],
    episode_starts: torch.Tensor,
    lstm: torch.nn.LSTM,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """sb3-contrib's `_process_sequence`, with one pass of the LSTM where episodes begin at no step
    but a sequence's first.

    In training they never do, for there sequences are cut at episodes' starts; sb3-contrib goes
    step by step as soon as there is a start at all. The same numbers but for rounding, three times
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
        one_by_one: Callable[..., Any] = RecurrentActorCriticPolicy._process_sequence
        return one_by_one(features, states, episode_starts, lstm)
    keep = (1.0 - starts[:, 0]).view(1, n_seq, 1)
    sequences = features.reshape(n_seq, -1, lstm.input_size).swapaxes(0, 1)
    outputs, states = lstm(sequences, (keep * states[0], keep * states[1]))
    return outputs.swapaxes(0, 1).flatten(0, 1), states


class SB3Agent:
    """A trained model, together with the statistics that normalise its observations.

    Attributes:
        companions: other agents of the same training, by name; evaluated and saved beside it,
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
    normalize, wanted = None, parse_value(spec.learner.config.get("normalize", False))
    if isinstance(wanted, dict):
        wanted = wanted.get("norm_obs", True) or wanted.get("norm_reward", True)
    if statistics.exists():
        normalize = VecNormalize.load(str(statistics), DummyVecEnv([spec.make_env]))
    elif wanted:
        raise UserError(f"{statistics} is missing: the model saw normalised observations")
    algorithm = algorithms()[name]
    # The file keeps the size of the replay buffer for who trains on. To play, it needs no memory.
    small: dict[str, Any] = {"buffer_size": 1} if issubclass(algorithm, OffPolicyAlgorithm) else {}
    return SB3Agent(algorithm.load(f"{path}.zip", device="cpu", **small), normalize)


class _Callback(BaseCallback):
    """Evaluates when it is time, and ends `learn` when the lifetime was told to stop; by raising,
    since not every algorithm obeys a callback that returns False.
    """

    def __init__(self, spec: LifetimeSpec, ledger: Ledger, telemetry: Telemetry) -> None:
        super().__init__()
        self._steps, self._ledger, self._telemetry = spec.steps, ledger, telemetry

    def _on_step(self) -> bool:
        if self._ledger.steps < self._steps and self._ledger.stopped:
            raise Stopped
        if self._ledger.interrupted:  # these algorithms have no checkpoints
            raise Interrupted
        if self._telemetry.evaluation_due:
            agent = SB3Agent(self.model, self.model.get_vec_normalize_env())
            for score in self._telemetry.evaluate({"agent": agent}).values():
                self.logger.record("eval/mean_reward", score)
        return True


def _most_steps(budget: int, model: OffPolicyAlgorithm, env: VecEnv) -> int | None:
    """Steps that a lifetime of this budget takes at most; None where episodes have no time limit
    and learning waits for their ends.
    """
    every = model.train_freq
    assert isinstance(every, TrainFreq)  # as its constructor leaves it
    if every.unit == TrainFrequencyUnit.STEP:
        each = model.n_envs * every.frequency
        return -(-budget // each) * each
    (made,) = env.get_attr("spec", 0)
    limit: int | None = made.max_episode_steps
    # The last of them begin before the budget is spent, and are played to their ends.
    return None if limit is None else budget - 1 + every.frequency * limit


class SB3Learner:
    """One of Stable-Baselines3's or sb3-contrib's algorithms.

    Settings are its keyword arguments, spelled as in Python or as in the SB3 Zoo's files, and
    `n_envs`, `normalize` (VecNormalize), `noise_type` and `noise_std` as there.
    """

    def __init__(self, name: str) -> None:
        self.name, self.algorithm = name, algorithms()[name]

    def check_settings(self, config: Mapping[str, Any]) -> None:
        """Raise a UserError for settings that cannot be."""
        if only := sorted(set(config) & cohort_settings(self.name)):
            raise UserError(
                f"{self.name}'s {' and '.join(only)} needs the cohort engine: use --engine cohort, "
                f"or leave it out"
            )
        sb3_settings.read(self.name, self.algorithm, config)

    def check(self, spec: LifetimeSpec) -> None:
        """Raise a UserError for an action space that does not fit, for settings that cannot be, and
        for a budget within which nothing is learned.
        """
        _, action_space = check_task(spec.task)
        if not isinstance(action_space, _ACTIONS[self.name]):
            kind = type(action_space).__name__
            fits = [name for name, kinds in _ACTIONS.items() if isinstance(action_space, kinds)]
            raise UserError(
                f"{self.name} does not take the {kind} actions of {spec.task.env_id}; these do: "
                f"{', '.join(sorted(fits))}"
            )
        self.check_settings(spec.learner.config)
        settings = self._settings(spec)
        env = self._make_vec_env(spec, settings, Ledger())
        try:
            model = self._make_model(spec, settings, env)
        except UserError:
            raise
        # whatever the algorithm's constructor objects to is the settings' fault
        except Exception as e:
            raise UserError(f"{self.name} refuses its settings: {one_line(e)}") from e
        finally:
            env.close()
        if isinstance(model, OffPolicyAlgorithm):
            most = _most_steps(spec.steps, model, env)
            if most is not None:
                check_budget(self.name, spec, {"learning_starts": model.learning_starts}, most=most)

    def _settings(self, spec: LifetimeSpec) -> dict[str, Any]:
        return sb3_settings.read(self.name, self.algorithm, spec.learner.config)

    def cohort_key(self, spec: LifetimeSpec) -> Hashable | None:
        """Each on its own."""
        return None

    def train(
        self, cohort: Sequence[LifetimeSpec], ledgers: Sequence[Ledger], outputs: Sequence[Outputs]
    ) -> list[Agent | Exception]:
        """Train one after the other."""
        return one_by_one(self._train_one, cohort, ledgers, outputs)

    def _train_one(self, spec: LifetimeSpec, ledger: Ledger, output: Outputs) -> SB3Agent:
        settings = self._settings(spec)
        with ExitStack() as opened:
            telemetry = Telemetry(spec, ledger, output, self._evaluation(settings))
            opened.callback(telemetry.close)
            env = self._make_vec_env(spec, settings, ledger)
            opened.callback(env.close)
            model = self._make_model(spec, settings, env)
            # The algorithm seeds its environments with its own seed; theirs is a role of its own.
            env.seed(spec.seeds.environment)
            model.set_logger(telemetry.logger)
            model.learn(spec.steps, callback=_Callback(spec, ledger, telemetry))
            check_learned(model._n_updates > 0, ledger.steps)
        return SB3Agent(model, env if isinstance(env, VecNormalize) else None)

    def _evaluation(self, settings: dict[str, Any]) -> EvaluationSettings:
        names = ("eval_freq", "eval_episodes")
        return EvaluationSettings(**{name: settings[name] for name in names if name in settings})

    @staticmethod
    def _make_vec_env(spec: LifetimeSpec, settings: dict[str, Any], ledger: Ledger) -> VecEnv:
        with closing_on_error() as opened:
            envs = []
            for _ in range(settings.get("n_envs", 1)):
                envs.append(spec.make_env(ledger))
                opened.callback(envs[-1].close)
            env: VecEnv = DummyVecEnv([iter(envs).__next__] * len(envs))
            if normalize := settings.get("normalize", False):
                arguments = normalize if isinstance(normalize, dict) else {}
                gamma = settings.get("gamma", 0.99)
                env = VecNormalize(env, **{"gamma": gamma, **arguments})
            return env

    def _make_model(
        self, spec: LifetimeSpec, settings: dict[str, Any], env: VecEnv
    ) -> BaseAlgorithm:
        taken = inspect.signature(self.algorithm.__init__).parameters
        # A copy: some algorithms add to the policy_kwargs that they are given.
        arguments = {k: copy.deepcopy(v) for k, v in settings.items() if k in taken}
        policy_kwargs = arguments.get("policy_kwargs") or {}
        if "activation_fn" in policy_kwargs:
            policy_kwargs["activation_fn"] = activation(policy_kwargs["activation_fn"])
        kind, std = settings.get("noise_type"), settings.get("noise_std", 0.0)
        noise = sb3_settings.action_noise(kind, std, env.action_space)
        if noise is not None:
            arguments["action_noise"] = noise
        policy = arguments.pop("policy", sb3_settings.policies(self.algorithm)[0])
        model = self.algorithm(policy, env, seed=spec.seeds.learner, device="cpu", **arguments)
        if isinstance(model.policy, RecurrentActorCriticPolicy):
            # On the object, so that saved models name sb3-contrib's class and load without this
            # project.
            vars(model.policy)["_process_sequence"] = whole_sequences
        return model
