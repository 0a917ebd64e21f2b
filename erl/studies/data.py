"""A study as plain data: what figures, reports and notebooks read, without a database behind it.

`read_study` opens a study of this project, a journal of ER-MRL's or a folder of TensorBoard logs.
What needs Optuna's own code, the importance of parameters and the path of a sampler's distribution,
is computed here and handed out as data frames.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, create_trial
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from erl.cli import plural
from erl.errors import UserError
from erl.files import files_below, is_folder
from erl.lifetimes.record import CURVE_POINTS, learning_curve
from erl.search.space import (
    LEARNER,
    Range,
    SearchConfig,
    draw_from,
    make_context,
    search_space,
)
from erl.studies.configuration import (
    EvolutionStudy,
    FinalsStudy,
    SingleStudy,
    StudyConfig,
    TestStudy,
)
from erl.studies.distributions import sampler_of
from erl.studies.records import as_columns, decoded, generation_rows, lifetime_rows, trial_rows
from erl.studies.storage import (
    DEFAULT_STORAGE,
    has_study,
    journal_file,
    open_storage,
    place_of,
    shown,
)
from erl.studies.study import Study
from erl.studies.tables import untuned
from erl.studies.winner import (
    Choice,
    Finalist,
    Reached,
    chosen,
    reached_in_tests,
    without_finals,
)
from erl.worlds.reservoirs import ReservoirParams

# Scalars in which a TensorBoard log may tell the return: Stable-Baselines3's and this project's, a
# mean over the last episodes, then CleanRL's, which has a point for each episode.
OF_EPISODES = "charts/episodic_return"
RETURN_TAGS = ("rollout/ep_rew_mean", OF_EPISODES)
# Episodes whose mean the first one is, if nobody set Stable-Baselines3's `stats_window_size`.
LOGGED_EPISODES = 100
# Episodes whose mean is a training return, as `--ep_eval` has it by default.
LAST_EPISODES = 10
Point = tuple[int, float]
_EVENTS = "events.out.tfevents.*"
# An importance needs some trials on either side of "good".
MIN_IMPORTANCE = 4
# The fitness of an evolution over several environments.
NORMALISED = "mean normalised score"


@dataclass(frozen=True)
class Axis:
    """A searched parameter.

    Attributes:
        low, high: bounds, both included.
        log: whether it is searched on a logarithmic scale.
        choices: its values, where it is one of several; `low` and `high` are then their first and
            last index.
    """

    low: float
    high: float
    log: bool = False
    choices: tuple[Any, ...] | None = None

    def unit(self, values: Any) -> np.ndarray:
        """Values on the scale of the search, 0 at the lower bound and 1 at the upper one; NaN
        where a trial has none.
        """
        if self.choices:
            values = [self.choices.index(v) if v in self.choices else math.nan for v in values]
        x = np.asarray(values, dtype=float)
        low, high = self.low, self.high
        if self.log:
            x, low, high = np.log(x), math.log(low), math.log(high)
        return (x - low) / (high - low) if high > low else 0.5 + 0.0 * x

    def value(self, unit: Any) -> np.ndarray:
        """The inverse of `unit`, for numbers."""
        u = np.asarray(unit, dtype=float)
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return np.exp(low + u * (high - low))
        return self.low + u * (self.high - self.low)


@dataclass(frozen=True)
class StudyData:
    """A study, read.

    Attributes:
        name: of the study, or of the folder of logs.
        address: of its storage, without a password.
        kind: `evolution`, `finals`, `test`, `single` (`python -m erl`), `journal` (another
            program's study) or `tensorboard`.
        config: what the study is; None where nothing is stored.
        versions, commit: of its creation, where they are stored.
        space: the searched parameters, by name.
        trials: a row each: `trial`, `state`, the parameters, `fitness` (the value that a pruned one
            had reached), `generation`, `begun`, `ended`, `pruned_at` (tenth of its life), `error`.
            `attrs["fitness"]` says what the fitness is, where it is no mean return.
        lifetimes: `erl.study.records`, with `arm` and `seed` in tests, single runs and logs. There,
            a trial that failed before its lifetime was stored has a row too. Of logs `curve_over`
            is the number of episodes whose mean each point of a curve is already.
        generations: `erl.study.generations`: evolution within learning.
        stored: the configuration as it is stored; empty where nothing is.
        choice: what an evolution hands over: the winner of its finals, or the best trial. None
            without a finished trial, and for other studies.
        tested: what tests found of it, by their names.
        untuned: agents of a test that lack evolved settings of the learner, which others have.
    """

    name: str
    address: str
    kind: str
    config: StudyConfig | None
    versions: dict[str, str]
    commit: str | None
    space: dict[str, Axis]
    trials: pd.DataFrame
    lifetimes: pd.DataFrame
    generations: pd.DataFrame
    stored: dict[str, Any] = field(default_factory=dict)
    choice: Choice | None = None
    tested: dict[str, Reached] = field(default_factory=dict)
    untuned: tuple[str, ...] = ()
    _frozen: tuple[FrozenTrial, ...] = field(default=(), repr=False)
    _storage: str | None = field(default=None, repr=False)  # its address, as it was given

    @property
    def evolution(self) -> EvolutionStudy | None:
        """The configuration of the evolution: of this study, or of the one that it belongs to."""
        config = self.config
        if isinstance(config, FinalsStudy | TestStudy):
            return config.evolution
        return config if isinstance(config, EvolutionStudy) else None

    @property
    def setting(self) -> EvolutionStudy | SingleStudy | None:
        """The configuration that names learner, environments and root seed."""
        return self.config if isinstance(self.config, SingleStudy) else self.evolution

    @property
    def winner(self) -> Finalist | None:
        """The winner of an evolution's finals; None where there were none."""
        return self.choice.winner if self.choice is not None and self.choice.finalists else None


def read_study(address: str, storage: str = DEFAULT_STORAGE) -> StudyData:
    """Read a study.

    Args:
        address: `STUDY`, in `storage`; `STORAGE#STUDY`; a storage with one study only, such as a
            journal of ER-MRL's; or a folder of TensorBoard logs, one folder for each run. What is a
            study of `storage` as a whole is that one: `./NAME` is a folder or journal of its name.
        storage: where a study lies that is only named.

    Raises:
        UserError: there is no such study, or it is minimised.
    """
    is_file = "://" in address or journal_file(address) is not None
    is_logs = is_folder(address)
    if (is_file or is_logs) and has_study(storage, address):
        name = address
    elif is_logs:
        return read_tensorboard(address)
    elif is_file and "#" not in address:
        storage, name = address, ""
    else:
        storage, name = place_of(address, storage)
    if not name:
        names = without_finals(open_storage(storage))
        if len(names) != 1:
            has = f"it has {', '.join(sorted(names)[:12])}" if names else "it has no study yet"
            raise UserError(f"which study of {shown(storage)}? STORAGE#STUDY names one; {has}")
        name = names[0]
    data = read_trials(Study(storage, name))
    lived = decoded(data._frozen)
    lifetimes = lifetime_rows(lived)
    if isinstance(data.config, SingleStudy | TestStudy):
        lifetimes = _with_failed(data.trials, lifetimes)
    if isinstance(data.config, SingleStudy) and len(lifetimes):
        lifetimes = lifetimes.assign(arm=data.config.arm)
    records = {str(t.params.get("arm")): [*found.values()] for t, found in lived if found}
    without = untuned(data.config, records)
    return replace(data, lifetimes=lifetimes, generations=generation_rows(lived), untuned=without)


def _with_failed(trials: pd.DataFrame, lifetimes: pd.DataFrame) -> pd.DataFrame:
    """Lifetimes of agents, with a row for each failed trial that stored none: figures say how many
    seeds failed.
    """
    stored = lifetimes.trial if len(lifetimes) else []
    gone = trials[(trials.state == "FAIL") & ~trials.trial.isin(stored)]
    if not len(gone):
        return lifetimes
    known = [c for c in ("trial", "state", "arm", "seed", "error") if c in gone]
    rows = gone[known].assign(lifetime=0, curve=[()] * len(gone))
    # Beside a missing value a column of numbers would lose the last digits of large seeds.
    roles = {c: "Int64" for c in lifetimes if c.startswith("seed_")}
    return pd.concat([lifetimes.astype(roles), rows], ignore_index=True)


def read_trials(study: Study) -> StudyData:
    """A study with its trials, and without what their lifetimes recorded.

    Raises:
        UserError: it is minimised.
    """
    study.check_maximised()
    trials, config, attrs = study.trials(), study.config, study.optuna.user_attrs
    choice = chosen(study) if config is None or isinstance(config, EvolutionStudy) else None
    rows = trial_rows(trials)
    evolution = config.evolution if isinstance(config, FinalsStudy) else config
    if isinstance(evolution, EvolutionStudy) and evolution.references is not None:
        rows.attrs["fitness"] = NORMALISED
    return StudyData(
        name=study.name,
        address=shown(study.address),
        kind="journal" if config is None else config.kind,
        config=config,
        versions=attrs.get("versions") or {},
        commit=attrs.get("commit"),
        space=_space(trials),
        trials=rows,
        lifetimes=pd.DataFrame(),
        generations=pd.DataFrame(),
        stored=study.stored or {},
        choice=choice,
        tested={} if choice is None else reached_in_tests(attrs, choice.winner),
        _frozen=tuple(trials),
        _storage=study.address,
    )


def attach(data: StudyData, path: Path, trial: int | None = None) -> None:
    """Add a file to a study, or to a trial of it, for the dashboard. One of its name is replaced.

    Args:
        data: of the study.
        path: of the file.
        trial: number of the trial; None for the study itself.

    Raises:
        UserError: the study is no study of a storage, or the file cannot be stored.
    """
    if data._storage is None:
        raise UserError(f"{data.name} is no study of a storage: nothing can be attached to it")
    ids = {t.number: t._trial_id for t in data._frozen}
    try:
        Study(data._storage, data.name).attach(path, trial_id=None if trial is None else ids[trial])
    except OSError as e:
        raise UserError(f"{path} cannot be stored: {e.strerror or e}") from e


def _space(trials: Sequence[FrozenTrial]) -> dict[str, Axis]:
    """The parameters of all trials; those that are one of several values last."""
    distributions: dict[str, BaseDistribution] = {}
    for trial in trials:
        distributions |= as_columns(trial.distributions)
    return {name: _axis(d) for name, d in distributions.items()}


def _axis(d: BaseDistribution) -> Axis:
    if isinstance(d, CategoricalDistribution):
        return Axis(0, len(d.choices) - 1, choices=tuple(d.choices))
    return Axis(float(d.low), float(d.high), bool(d.log))  # type: ignore[attr-defined]


# -- TensorBoard --


def read_tensorboard(folder: str | Path) -> StudyData:
    """A folder of TensorBoard logs as a study of lifetimes with learning curves.

    Every folder with an event file is a run. Its path below `folder` names it: `ARM/seed_3` or
    `ARM/3` is the arm `ARM`'s seed 3 (this project's layout and ER-MRL's); anything else is an arm
    of its own, with the seeds counted.

    Raises:
        UserError: no event file, none that tells a return, two runs of one arm and seed, or a
            folder that cannot be read.
    """
    root = Path(folder)
    files = [path for path in files_below(root) if path.match(_EVENTS)]
    if not files:
        raise UserError(f"no TensorBoard log below {root}")
    found: list[tuple[str, int | None, _Log]] = []
    places: dict[tuple[str, int], Path] = {}
    # A run that was interrupted has several event files in its folder, which belong together.
    for run in sorted({file.parent for file in files}):
        log = _scalars(run)
        if not log.curve:
            continue
        arm, seed = _run_name(run.relative_to(root), root.name)
        if seed is not None and places.setdefault((arm, seed), run) != run:
            raise UserError(
                f"{places[arm, seed]} and {run} are both seed {seed} of {arm}: "
                f"move one of them out of {root}"
            )
        found.append((arm, seed, log))
    if not found:
        raise UserError(f"no log below {root} has one of the scalars {', '.join(RETURN_TAGS)}")
    rows: list[dict[str, Any]] = []
    for arm, seed, log in found:
        if seed is None:
            seed = next(k for k in itertools.count() if (arm, k) not in places)
            places[arm, seed] = root
        rows.append(
            {
                "trial": len(rows),
                "state": "COMPLETE",
                "lifetime": 0,
                "arm": arm,
                "seed": seed,
                "fitness": log.reached,
                "training_return": log.reached,
                "final_return": None,
                "steps": log.curve[-1][0],
                "curve": log.curve,
                "ep_eval": log.episodes,
                "curve_over": log.curve_over,
            }
        )
    frame = pd.DataFrame(rows)
    empty = pd.DataFrame()
    trials = frame[["trial", "state", "arm", "seed", "fitness"]]
    return StudyData(
        root.resolve().name, str(folder), "tensorboard", None, {}, None, {}, trials, frame, empty
    )


class _Log(NamedTuple):
    """What a run's log tells of returns.

    Attributes:
        curve: at most 200 points (steps, mean return), as lifetimes have; none where it tells none.
        reached: mean return of the last episodes.
        episodes: how many these are.
        curve_over: episodes whose mean each point of the log is.
    """

    curve: tuple[Point, ...] = ()
    reached: float = math.nan
    episodes: int = LAST_EPISODES
    curve_over: int = 1


def _scalars(run: Path) -> _Log:
    """What a run's log tells of returns, without values that are not finite."""
    log = EventAccumulator(str(run), size_guidance={"scalars": 0})
    log.Reload()
    tag = next((t for t in RETURN_TAGS if t in log.Tags()["scalars"]), None)
    events = [] if tag is None else log.Scalars(tag)
    points = [(e.step, float(e.value)) for e in events if math.isfinite(e.value)]
    if tag != OF_EPISODES:
        points = [*dict(points).items()]  # what was logged again replaces what was there
    points.sort(key=lambda point: point[0])
    if not points:
        return _Log()
    single, steps = tag == OF_EPISODES, points[-1][0]
    last = points[-LAST_EPISODES:] if single else points[-1:]
    curve = tuple(points)
    if steps > 0 and (single or len(points) > CURVE_POINTS):
        curve = learning_curve([(step, value, 0) for step, value in points], steps)
    reached = float(np.mean([value for _, value in last]))
    return _Log(curve, reached) if single else _Log(curve, reached, *[LOGGED_EPISODES] * 2)


def _run_name(path: Path, root: str) -> tuple[str, int | None]:
    """Arm and seed that a run's path tells."""
    parts = [p for p in path.parts if p != "."]
    for i in range(len(parts) - 1, -1, -1):
        digits = parts[i].removeprefix("seed_")
        if digits.isdigit():
            return "/".join(parts[:i]) or root, int(digits)
    return "/".join(parts) or root, None


# -- what Optuna computes --


def importances(data: StudyData, repeats: int = 5) -> pd.DataFrame:
    """How much each searched parameter matters for the fitness, by two of Optuna's evaluators.

    `fANOVA` (Hutter et al., 2014) is the share of a random forest's variance that the parameter
    explains alone, here over the scale of the search (logarithms where it is one), which Optuna
    itself does not take. What parameters do together is in no share, so the shares of a forest sum
    to less than 1 where there are interactions. Forests with other seeds differ, so there are
    several. `PED-ANOVA` (Watanabe et al., 2023) says which parameters tell the best tenth from all
    trials: values without a unit, each divided by their sum. It draws no random number.

    Returns:
        Columns `parameter`, `method`, `repeat`, `importance` (in [0, 1]). `attrs["trials"]` is how
        many completed trials there are, and `attrs["best"]` how many of them count as the best
        tenth: those as good as the last one of it do too.

    Raises:
        UserError: too few trials with a fitness, fewer than two parameters that all of them have,
            or all trials equally good.
    """
    # scikit-learn comes with it and takes seconds.
    from optuna.importance import (
        FanovaImportanceEvaluator,
        PedAnovaImportanceEvaluator,
        get_param_importances,
    )

    done = data.trials[(data.trials.state == "COMPLETE") & data.trials.fitness.notna()]
    names = _in_all(data, done)
    if len(names) < 2:
        raise UserError(
            f"study {data.name!r} searches {plural(len(names), 'parameter')} in all "
            f"of its trials: none to compare"
        )
    if len(done) < MIN_IMPORTANCE:
        raise UserError(
            f"study {data.name!r} has {plural(len(done), 'trial')} with a fitness; "
            f"importances need at least {MIN_IMPORTANCE}"
        )
    if done.fitness.nunique() < 2:
        raise UserError(f"all trials of study {data.name!r} are equally good: nothing matters")
    units = {name: data.space[name].unit(done[name]) for name in names}
    unit: dict[str, BaseDistribution] = {name: FloatDistribution(0.0, 1.0) for name in names}
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        # Optuna's PED-ANOVA takes the direction from the study.
        study = optuna.create_study(direction="maximize")
        for i, fitness in enumerate(done.fitness):
            params = {name: float(np.clip(u[i], 0.0, 1.0)) for name, u in units.items()}
            study.add_trial(create_trial(params=params, distributions=unit, value=float(fitness)))
        rows = []
        for repeat in range(repeats):
            forest = FanovaImportanceEvaluator(seed=repeat)
            with warnings.catch_warnings():
                # Optuna calls `normalize` experimental since its version 3.
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                shares = get_param_importances(study, evaluator=forest, normalize=False)
            for name, value in shares.items():
                rows.append((name, "fANOVA", repeat, value))
        ped = PedAnovaImportanceEvaluator()
        for name, value in get_param_importances(study, evaluator=ped).items():
            rows.append((name, "PED-ANOVA", 0, value))
    finally:
        optuna.logging.set_verbosity(before)
    frame = pd.DataFrame(rows, columns=["parameter", "method", "repeat", "importance"])
    last = np.sort(done.fitness)[-math.ceil(len(done) / 10)]
    frame.attrs |= {"trials": len(done), "best": int((done.fitness >= last).sum())}
    return frame


def sampler_path(data: StudyData) -> pd.DataFrame:
    """Where the sampler's distribution was, generation by generation.

    For CMA-ES it is the distribution from which the next trial would have been drawn once the
    generation's trials had ended: the study is replayed, as the sampler itself does. Other samplers
    have no such distribution; mean and covariance of a generation's trials stand in for it. Studies
    of other programs say nothing of generations or of their sampler: there it is each ten trials.

    Returns:
        A row for each generation, or ten: `generation`, `source` (`CMA-ES`, `trials` or `tens`),
        `restart`, `mean` (array (dim,), on the unit scale of each axis, see `Axis.unit`), `cov`
        (dim, dim) and `parameters` (their names). Of less than two trials there is no row.

    Raises:
        UserError: no parameter was searched in all completed trials, or no trial has ended.
    """
    ended = [t for t in data._frozen if t.state.name in ("COMPLETE", "PRUNED")]
    frame = data.trials[data.trials.state.isin(("COMPLETE", "PRUNED"))]
    names = _in_all(data, frame[frame.state == "COMPLETE"])
    if not names or not ended:
        raise UserError(f"study {data.name!r} has no trials from which a sampler could have learnt")
    evolution = data.config if isinstance(data.config, EvolutionStudy) else None
    if evolution is not None and evolution.sampler == "Cmaes":
        return _replayed(data, evolution)
    rows = []
    known = frame.generation.notna().any()
    source, by = ("trials", frame.generation) if known else ("tens", frame.trial // 10)
    for generation, part in frame.dropna(subset=names).groupby(by):
        if len(part) > 1:
            units = np.stack([data.space[n].unit(part[n]) for n in names])
            rows.append(
                (int(generation), source, 0, units.mean(1), np.atleast_2d(np.cov(units)), names)
            )
    return pd.DataFrame(rows, columns=_PATH)


def _in_all(data: StudyData, trials: pd.DataFrame) -> list[str]:
    """Searched numbers that all of these trials have."""
    return [
        name
        for name, axis in data.space.items()
        if axis.choices is None and axis.high > axis.low and trials[name].notna().all()
    ]


_PATH = ["generation", "source", "restart", "mean", "cov", "parameters"]


def _replayed(data: StudyData, config: EvolutionStudy) -> pd.DataFrame:
    found: dict[str, BaseDistribution] = {}
    for trial in data._frozen:
        found |= trial.distributions
    # Not the order of the trials' parameters, which some storages mix up.
    space = {name: found[name] for name in search_space(config) if name in found}
    sampler = sampler_of(config, space)
    generation = {t.number: t.user_attrs.get("generation", 0) for t in data._frozen}
    rows: dict[int, tuple[Any, ...]] = {}
    scales = [_from_cube(space[name]) for name in sampler.parameters]
    slope, offset = (np.array(column) for column in zip(*scales)) if scales else ((), ())
    for number, run, mean, cov in sampler.path(data._frozen):
        # The last result of a generation says where the distribution was after it.
        g = generation[number]
        cov = np.outer(slope, slope) * cov
        rows[g] = (g, "CMA-ES", run, slope * mean + offset, cov, sampler.parameters)
    return pd.DataFrame([rows[g] for g in sorted(rows)], columns=_PATH)


def _from_cube(distribution: BaseDistribution) -> tuple[float, float]:
    """Slope and offset from a sampler's unit cube to the unit scale of an axis. The cube has half a
    step of margin around whole numbers.
    """
    if not isinstance(distribution, IntDistribution) or distribution.single():
        return 1.0, 0.0
    scale: Callable[[float], float] = math.log if distribution.log else float
    half = distribution.step / 2
    low, high = scale(distribution.low), scale(distribution.high)
    lower, upper = scale(distribution.low - half), scale(distribution.high + half)
    return (upper - lower) / (high - low), (lower - low) / (high - low)


# -- reservoirs --


def evolved_reservoirs(data: StudyData) -> tuple[ReservoirParams, ...]:
    """The reservoirs that an evolution hands over, or that a test or a training has.

    Raises:
        UserError: no trial has a fitness, or no reservoir was evolved.
    """
    if isinstance(data.config, TestStudy):
        return _reservoirs(data, data.config.params)
    if isinstance(data.config, SingleStudy) and data.config.context is not None:
        if data.config.context.reservoirs:
            return data.config.context.reservoirs
        raise UserError(f"study {data.name!r} has no reservoir")
    if data.choice is None:
        raise UserError(f"study {data.name!r} has no successful trial yet")
    return _reservoirs(data, data.choice.winner.params)


def drawn_reservoirs(data: StudyData, n: int) -> list[ReservoirParams]:
    """`n` reservoirs drawn from the search space, uniformly on each parameter's scale. Where a
    trial has several reservoirs, the first of each draw. None where nothing of a reservoir was
    searched: all would be the evolved one.

    Raises:
        UserError: the study does not say what was searched.
    """
    if isinstance(data.config, TestStudy):
        ranges = search_space(data.config.evolution)
    else:
        ranges = {
            name: Range(kind(axis.low), kind(axis.high), axis.log)
            for name, axis in data.space.items()
            for kind in [int if name.startswith("units") else float]
            if axis.choices is None
        }
    if all(name.startswith(LEARNER) or r.low == r.high for name, r in ranges.items()):
        return []
    rng = np.random.default_rng(0)
    return [_reservoirs(data, draw_from(ranges, rng))[0] for _ in range(n)]


def _reservoirs(data: StudyData, params: Mapping[str, Any]) -> tuple[ReservoirParams, ...]:
    # What ER-MRL's journals do not say are its defaults.
    numbered = sum(name.startswith("sr_") for name in params)
    config = data.evolution or SearchConfig(nb_res=numbered or None)
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in params.items()}
    try:
        context = make_context(config, plain)
    except KeyError:
        context = None
    if context is None or context.own is not None:
        raise UserError(f"study {data.name!r} did not evolve a reservoir")
    return context.reservoirs
