"""Flags of tests. Nothing here needs a library that takes long to load."""

from dataclasses import dataclass

from erl.cli import option
from erl.errors import UserError
from erl.experiments.flags import (
    AgentFlags,
    check_count,
    check_name,
    check_number,
    check_seeds,
    env_kwargs_option,
    study_name,
)
from erl.learners import ENGINES

# ER-MRL's.
DEFAULT_STEPS, EVOLUTION_STEPS = 10_000_000, 300_000
ENV_ID, UNITS = "HalfCheetah-v4", 100


@dataclass(frozen=True)
class ComparisonFlags(AgentFlags):
    """Flags that every test takes."""

    evolved: bool = option(
        False,
        "test what the catalogue has for this environment or set, or under the name --study, "
        "without an evolution of your own",
    )
    h_test: str = option("main", "name of the experiment that was evolved")
    study: str | None = option(
        None, "whole name of the study, instead of the flags from which its name is made"
    )
    HP_training_steps: int | None = option(
        None, f"environment steps of one lifetime in the evolution: {EVOLUTION_STEPS} by default"
    )
    training_steps: int = option(
        DEFAULT_STEPS,
        "environment steps of one test lifetime",
        "--training_timesteps",
        "--training-timesteps",
    )
    nb_seeds: int = option(
        5,
        "test lifetimes of each agent, each with its own seeds; in a SLURM array the index is the "
        "seed",
    )
    controls: bool = option(
        False,
        "also test an LSTM, the last four observations, the last four inputs of a reservoir, "
        "reservoirs that were not evolved, and reservoirs without recurrence",
    )
    arms: str | None = option(
        None,
        "agents to compare, by their names in the tables, comma-separated; by default the "
        "learner alone and with the reservoir",
        holds="list",
    )
    learner: str | None = option(
        None,
        "train agents of this learner, at its own settings, with reservoirs that were evolved for "
        "another; by default the evolution's",
    )
    learner_config: str | None = option(
        None,
        "YAML, TOML or JSON file with settings of that --learner; the evolution's learner keeps "
        "those of the evolution",
    )
    engine: str | None = option(
        None,
        "code that trains; by default as in the evolution",
        choices=ENGINES,
    )
    results_storage: str | None = option(
        None, "study database of the test; by default that of the evolution, --storage"
    )
    units: int | None = option(
        None, f"neurons, if the study does not store it (journals of ER-MRL): {UNITS} by default"
    )
    del_obs: bool | None = option(None, "velocities deleted, if the study does not store it")
    skip_c: bool | None = option(None, "skip connection, if the study does not store it")
    fixed_iss: bool | None = option(
        None,
        "of ER-MRL's commands: whether the evolution left the input scaling at 1; refused if the "
        "study says otherwise",
    )
    env_kwargs: str | None = env_kwargs_option(", where the study does not say")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.h_test)
        for name in ("HP_training_steps", "training_steps", "nb_seeds", "units"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_seeds(None, self.nb_seeds)
        if self.learner_config is not None and self.learner is None:
            raise UserError(
                "--learner_config needs --learner: without it a test has the settings of the "
                "evolution"
            )

    @property
    def evolution_name(self) -> str:
        """The name of the evolution's study."""
        steps = EVOLUTION_STEPS if self.HP_training_steps is None else self.HP_training_steps
        return self.study or study_name(self.subject(), self.h_test, steps)

    @property
    def results(self) -> str:
        """The study database of the test."""
        return self.storage if self.results_storage is None else self.results_storage

    @property
    def reservoirs(self) -> int | None:
        """The number of reservoirs that the command names; None for a script of a single one."""
        return None

    @property
    def evolved_in(self) -> str:
        """The environment, or the set of environments, of the evolution."""
        raise NotImplementedError


@dataclass(frozen=True)
class ComparisonConfig(ComparisonFlags):
    """A test in the environment of the evolution, with one reservoir."""

    env_id: str | None = option(
        None, f"environment of the study, unless --study names it: {ENV_ID} by default"
    )

    @property
    def evolved_in(self) -> str:
        """See `ComparisonFlags`."""
        return self.env_id or ENV_ID

    def subject(self) -> str:
        """The environment."""
        return self.evolved_in


@dataclass(frozen=True)
class MultiComparisonConfig(ComparisonConfig):
    """A test in the environment of the evolution, with several reservoirs."""

    nb_res: int = option(3, "reservoirs of the study, unless --study names it")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("nb_res", self.nb_res)

    def subject(self) -> str:
        """Environment and number of reservoirs."""
        return f"{self.evolved_in}_{self.nb_res}"

    @property
    def reservoirs(self) -> int:
        """See `ComparisonFlags`."""
        return self.nb_res


@dataclass(frozen=True)
class GeneralizationComparisonConfig(ComparisonFlags):
    """A test in an environment that the evolution did not see."""

    HP_env_type: str = option(
        "Ant_Swimmer", "set of environments of the study, unless --study names it"
    )
    nb_res: int = option(2, "reservoirs of the study, unless --study names it")
    env_id: str = option(ENV_ID, "environment of the test")
    del_obs: bool | None = option(
        None, "velocities deleted in this environment; by default as in the evolution"
    )
    allow_seen: bool = option(False, "allow an environment that the evolution saw")
    env_kwargs: str | None = env_kwargs_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("nb_res", self.nb_res)

    @property
    def evolved_in(self) -> str:
        """See `ComparisonFlags`."""
        return self.HP_env_type

    def subject(self) -> str:
        """Set and number of reservoirs."""
        return f"{self.HP_env_type}_{self.nb_res}"

    @property
    def reservoirs(self) -> int:
        """See `ComparisonFlags`."""
        return self.nb_res
