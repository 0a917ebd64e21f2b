"""DERL as a class of its own, outside the harness: made, trained, saved and loaded in a script."""

import io
import json
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from erl.errors import UserError, one_line
from erl.files import check_writable, is_folder, read_mapping, write_whole, writing
from erl.learners import Outputs
from erl.learners.core.run import Run, torch_threads
from erl.learners.derl.learner import BlendedPolicy, DERLLearner, n_outputs
from erl.learners.derl.settings import DERLSettings
from erl.networks.policies import Policies
from erl.worlds.actions import Actions
from erl.worlds.ledger import Ledger
from erl.worlds.observations import Observations
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds, versions
from erl.worlds.tasks import Task
from erl.worlds.wrappers import closing_on_error

_FORMAT = 1
# Until it is told to stop.
_FOREVER = sys.maxsize


class DERL:
    """A policy that an evolution strategy and a policy gradient improve: see `derl.learner`.

    Args:
        env_name: Gymnasium's name of the environment; actions are Box or Discrete.
        state_dim: length of its observation; None to take it from the environment.
        action_dim: length of its action, or number of actions; None likewise.
        population_size: perturbed policies in an iteration, at least 2.
        sigma: standard deviation of the perturbations.
        lr_es: learning rate of the evolution strategy.
        lr_policy: learning rate of the policy's gradient; `lin_0.001` falls from 0.001 to 0 in each
            call of `train`.
        lr_value: learning rate of the critics, likewise.
        gamma: discount.
        rl_weight: weight of the gradient half; with `es_weight` it sums to 1.
        es_weight: weight of the evolution's half.
        seed: of everything.
        tensorboard: folder of TensorBoard logs; None for none.
        settings: further ones of `DERLSettings`, such as `device`, `mirrored`, `rank_shaping`.

    Raises:
        UserError: an environment or a setting that cannot be, or sizes that are not the
            environment's.

    Example:
        >>> agent = DERL("Pendulum-v1", state_dim=3, action_dim=1)
        >>> rows = agent.train(num_iterations=20, num_episodes_per_iter=10, batch_size=256)
        >>> agent.save("pendulum.derl")
        >>> action, _ = agent.predict(observation, deterministic=True)
    """

    def __init__(
        self,
        env_name: str,
        state_dim: int | None = None,
        action_dim: int | None = None,
        population_size: int = 50,
        sigma: float = 0.1,
        lr_es: float = 0.01,
        lr_policy: float | str = 3e-4,
        lr_value: float | str = 3e-4,
        gamma: float = 0.99,
        rl_weight: float = 0.5,
        es_weight: float = 0.5,
        seed: int = 0,
        tensorboard: str | None = None,
        **settings: Any,
    ) -> None:
        config = {
            "population_size": population_size,
            "sigma": sigma,
            "lr_es": lr_es,
            "lr_policy": lr_policy,
            "lr_value": lr_value,
            "gamma": gamma,
            "rl_weight": rl_weight,
            "es_weight": es_weight,
            **settings,
        }
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise UserError(f"DERL's seed must be a whole number from 0, not {seed!r}")
        seeds = Seeds.derive(seed, "single", 0)
        spec = LifetimeSpec(Task(env_name), LearnerSpec("DERL", config), _FOREVER, seeds)
        DERLLearner().check(spec)
        observation_space, action_space = spec.spaces()
        for name, given, actual in (
            ("state_dim", state_dim, int(observation_space.shape[0])),
            ("action_dim", action_dim, n_outputs(action_space)),
        ):
            if given is not None and given != actual:
                raise UserError(f"{env_name} has {name}={actual}, not {given!r}")
        made = DERLSettings.from_learner_config(config, env_name)
        with closing_on_error() as opened:
            self._run = Run([spec], [Ledger()], [Outputs(tensorboard=tensorboard)], [made])
            opened.callback(self._run.close)
            self._policy = BlendedPolicy(self._run)
            opened.callback(self._policy.close)
            # A look at the agent must not change what it learns.
            self._exploration = np.random.default_rng(seed)
            env = self._policy.stage.world.envs[0]
            self._observations = Observations(env.observation_space, env_name)
            self._actions = Actions(env.action_space, env_name)
            self._shape = env.observation_space.shape  # None where it is no array

    @classmethod
    def from_config(cls, path: str | Path, **arguments: Any) -> Self:
        """An agent from a file (see `read_mapping`) with the constructor's arguments, `env_name`
        among them.

        Args:
            path: of the file.
            arguments: take the place of those in the file.

        Raises:
            UserError: the file cannot be read, or does not hold names and values.
        """
        config = read_mapping(path, "the settings of DERL")
        if "env_name" not in {*config, *arguments}:
            raise UserError(f"{path} holds no settings of DERL: names and values, env_name first")
        return cls(**{**{str(k): v for k, v in config.items()}, **arguments})

    @property
    def steps(self) -> int:
        """Environment steps so far, of both halves."""
        return self._policy.ledger.steps

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What iterations noted, thinned evenly: steps, fitness of every perturbed policy, return
        of the policy, lengths of both halves' steps and the cosine between them.
        """
        return self._policy.telemetry.generations.rows

    def train(
        self,
        num_iterations: int,
        num_episodes_per_iter: int | None = None,
        batch_size: int | None = None,
        log_interval: int = 10,
    ) -> list[dict[str, Any]]:
        """Train on.

        Args:
            num_iterations: both halves and their average, so often. Schedules of learning rates
                run from the first of them to the last.
            num_episodes_per_iter: episodes that the policy itself plays in an iteration, from now
                on; None for as many as before, at first those of the settings.
            batch_size: transitions in a minibatch, likewise.
            log_interval: iterations from one printed line to the next; 0 for none.

        Returns:
            What each iteration noted: see `rows`.

        Raises:
            UserError: fewer than one iteration, or no whole number of them.
        """
        if not isinstance(num_iterations, Integral) or num_iterations < 1:
            raise UserError(f"num_iterations must be a whole number from 1, not {num_iterations!r}")
        policy, noted = self._policy, []
        given = {"num_episodes_per_iter": num_episodes_per_iter, "batch_size": batch_size}
        policy.change(**{name: value for name, value in given.items() if value is not None})
        with torch_threads(policy.settings.threads):
            for k in range(num_iterations):
                policy.iterate(1.0 - k / num_iterations)
                noted.append(policy.latest)
                if log_interval and policy.iterations % log_interval == 0:
                    print(_line(policy.iterations, noted[-1]), flush=True)
        return noted

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Actions as Stable-Baselines3's `predict` gives them, for one observation or several.

        Args:
            observation: what the environment returned; several along a further first axis, except
                of Tuple and Dict observations, of which it takes one.
            state: passed through.
            episode_start: not needed.
            deterministic: whether it acts without exploration. Exploration draws from a stream of
                its own: it changes no training.

        Returns:
            What the environment's `step` takes, or an array of several; and `state`.

        Raises:
            EnvironmentFault: an observation that is none of the environment's.
        """
        t = self._policy
        one = self._shape is None or np.shape(observation) == self._shape
        each = [observation] if one else observation
        seen = np.stack([self._observations.encode(row) for row in each]).astype(np.float32)
        outputs = Policies(t.sizes, t.theta[None])(seen[None])[0]
        chosen = t.stage.executed(
            t.greedy(outputs) if deterministic else t.exploring(outputs, self._exploration)
        )
        actions = np.asarray(self._actions.decode(self._actions.batch(chosen)))
        return actions[0] if one else actions, state

    # -- files --

    @staticmethod
    def check_save(path: str | Path) -> None:
        """Ask before a training whether `save` can write this file. Leaves nothing behind.

        Raises:
            UserError: it cannot.
        """
        if is_folder(path):
            raise UserError(f"{path} is a folder: name a file for the agent")
        with writing(path):
            check_writable(str(Path(path).parent))

    def save(self, path: str | Path) -> None:
        """Write networks, optimisers, counters, random streams and settings to one file: a zip of
        arrays (`.npy`) and JSON. The replay buffer stays behind. `load` compares the settings, and
        does not take them.

        Raises:
            UserError: the file cannot be written; `check_save` says so before a training.
        """
        t = self._policy
        about = {
            "format": _FORMAT,
            "env_name": t.spec.task.env_id,
            "settings": asdict(t.settings),
            "sizes": t.sizes,
            "discrete": t.discrete,
            "iterations": t.iterations,
            "updates": t.updates,
            "updates_due": t.updates_due,
            "steps": t.ledger.steps,
            "evolution": t.es.get_state()["rng"],
            "exploration": t.rng.bit_generator.state,
            "episodes": t.stage.get_state()["rng"],
            "versions": versions(),
        }
        arrays = {"minibatches": t.torch_rng.get_state().numpy()}
        for name, tensors in t.gradient.get_state().items():
            arrays |= {f"{name}_{k}": tensor.numpy() for k, tensor in enumerate(tensors)}

        def write(part: str) -> None:
            with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as file:
                file.writestr("derl.json", json.dumps(about, indent=1, default=str))
                for name, array in arrays.items():
                    buffer = io.BytesIO()
                    np.save(buffer, array, allow_pickle=False)
                    file.writestr(f"{name}.npy", buffer.getvalue())

        path = Path(path)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, write)

    def load(self, path: str | Path) -> Self:
        """Take what `save` wrote, with an agent made for the same environment and networks. Its own
        settings hold from now on; one printed line names those that the file has otherwise.
        Nothing in the file is executed.

        Returns:
            The agent itself.

        Raises:
            UserError: the file cannot be read, or is of another environment or other networks.
        """
        t = self._policy
        about, arrays = _read(path)
        saved = about.get("settings")
        saved = saved if isinstance(saved, dict) else {}
        here = {"format": _FORMAT, "env_name": t.spec.task.env_id, "sizes": list(t.sizes)}
        for name, mine in here.items():
            if about.get(name) != mine:
                raise UserError(f"{path} has {name} {about.get(name)!r}, and this agent {mine!r}")
        # Files of version 0.2.0 have neither.
        about = {"updates_due": 0.0, "episodes": t.stage.get_state()["rng"], **about}
        # All of it is tried before any of it is taken.
        try:
            state = {
                name: [_fitting(arrays[f"{name}_{k}"], mine) for k, mine in enumerate(tensors)]
                for name, tensors in t.gradient.get_state().items()
            }
            minibatches = torch.from_numpy(arrays["minibatches"])
            torch.Generator().set_state(minibatches)
            for name in ("evolution", "exploration", "episodes"):
                np.random.default_rng().bit_generator.state = about[name]
            iterations, updates, steps = (
                int(about[name]) for name in ("iterations", "updates", "steps")
            )
            updates_due = float(about["updates_due"])
        except (KeyError, TypeError, ValueError, RuntimeError) as e:
            raise UserError(f"{path} is damaged: {one_line(e)}") from e
        t.gradient.set_state(state)
        t.torch_rng.set_state(minibatches)
        t.es.set_state({**t.es.get_state(), "mean": t.theta, "rng": about["evolution"]})
        t.rng.bit_generator.state = about["exploration"]
        t.stage.set_state({**t.stage.get_state(), "rng": about["episodes"]})
        t.iterations, t.updates, t.ledger.steps = iterations, updates, steps
        t.updates_due = updates_due
        mine = json.loads(json.dumps(asdict(t.settings), default=str))
        others = [
            f"{name} {mine[name]!r} (saved: {saved[name]!r})"
            for name in mine
            if name in saved and saved[name] != mine[name]
        ]
        if others:
            print(f"settings that go on otherwise than in {path}: {', '.join(others)}", flush=True)
        return self

    def close(self) -> None:
        """Close environments and logs."""
        self._policy.close()
        self._run.close()


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The settings and the arrays of a file."""
    try:
        with zipfile.ZipFile(path) as file:
            about = json.loads(file.read("derl.json"))
            arrays = {
                name.removesuffix(".npy"): np.load(io.BytesIO(file.read(name)), allow_pickle=False)
                for name in file.namelist()
                if name.endswith(".npy")
            }
        if not isinstance(about, dict):
            raise ValueError("derl.json holds no names and values")
    except Exception as e:  # whatever zipfile, JSON and NumPy make of a damaged file
        text = one_line(e)
        raise UserError(f"{path} cannot be read as an agent of DERL: {text}") from e
    return about, arrays


def _fitting(array: np.ndarray, mine: torch.Tensor) -> torch.Tensor:
    """An array as a tensor like one of this agent's."""
    theirs = torch.from_numpy(array)
    if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        raise ValueError(f"an array of {array.dtype} {array.shape} does not fit")
    if not torch.isfinite(theirs).all():
        raise ValueError("it holds numbers that are not finite")
    return theirs


def _line(iteration: int, row: Mapping[str, Any]) -> str:
    said = [f"iteration {iteration}", f"{row['steps']:,} steps"]
    if "policy_return" in row:
        said.append(f"policy {row['policy_return']:.1f}")
    if "fitness" in row:
        said.append(f"population {np.mean(row['fitness']):.1f}")
    return "  ".join(said)
