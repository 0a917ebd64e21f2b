"""AES-RL, and its baselines ACEM-RL and (1+1)-ES: an asynchronous evolution of TD3 actors.

Lee, Lee, Shin and Kweon, "An Efficient Asynchronous Method for Integrating Evolutionary and
Gradient-based Policy Search", NeurIPS 2020, arXiv 2012.05417.

Each actor worker asks one individual, improves it by the policy gradient if it is an RL individual,
and plays its episode; then the mean of the distribution, as it is at that moment, plays some; then
the distribution is told both. Nobody waits for anybody: meanwhile others move the mean. One critic
worker trains the critics without pause, as long as they had fewer updates than individuals steps.

Differences from the published code:

- The episodes of the mean drive the update, and are charged to the budget (`charge_mean`).
- ACEM-RL does not look at the score of the mean: by default the mean plays no episode there.
- The success history of (1+1)-ES has the last ten results; there it ends with the first ten.
- `rl_ratio` 0 and 1 are what they say; there the control of the share begins at a half.
- Settings of the distributions: see `populations.aes`, `populations.cem` and
  `populations.one_plus_one_es`.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from erl.errors import UserError
from erl.executors.virtual_clock import WorkerJob
from erl.learners.core.bench import Play, TrainActor
from erl.learners.core.evolved_settings import OF_GRADIENT, EvolvedSettings
from erl.learners.core.evolved_td3 import EvolvedLearner, EvolvedTD3, Individual
from erl.learners.core.run import Run
from erl.learners.core.settings import Count, NotNegative, Range, Share
from erl.populations import Distribution
from erl.populations.aes import AES
from erl.populations.cem import ACEM
from erl.populations.one_plus_one_es import OnePlusOneES

# An RL individual is updated as often as the latest so many episodes had steps.
_EPISODES = 10


@dataclass(frozen=True, kw_only=True)
class AsynchronousSettings(EvolvedSettings):
    """Settings that ACEM-RL, (1+1)-ES and AES-RL share; see `EvolvedSettings` for the others.

    Attributes:
        rl_ratio: share of individuals that learn; 0 for none, 1 for all.
        rl_k: how strictly the share is held: individuals learn with the probability 0.5 - rl_k
            (share so far - rl_ratio), within 0 and 1.
        mean_evaluations: episodes of the mean for each individual, whose average is its score.
        charge_mean: whether their steps are counted in the budget.
        reuse_mean: whether episodes that the mean has played since it moved last serve for the next
            individual too.
        critic_workers: 1; several critics would have to be made one.
        critic_job: updates after which the critic worker hands the critics in.
    """

    published: ClassVar[dict[str, Any]] = {"gamma": 0.99, "charge_mean": False}

    rl_ratio: Share = 0.5
    rl_k: NotNegative = 50.0
    mean_evaluations: Count = 5
    charge_mean: bool = True
    reuse_mean: bool = False
    critic_workers: Literal[1] = 1
    critic_job: Count = 1000

    def idle(self) -> dict[str, str]:
        """See `EvolvedSettings`."""
        found = super().idle()
        if not self.mean_evaluations:
            found |= dict.fromkeys(("charge_mean", "reuse_mean"), "the mean plays no episodes")
        if self.rl_ratio in (0.0, 1.0):
            found["rl_k"] = f"rl_ratio is {self.rl_ratio:g}"
        if not self.rl_ratio:
            found |= dict.fromkeys(OF_GRADIENT, "rl_ratio is 0, and nothing learns by gradient")
        return found

    @property
    def counted_per_step(self) -> int:
        """See `EvolvedSettings`: with the mean's episodes, taken to be as long as individuals'.
        Those that serve again may cost nothing.
        """
        return 1 + self.mean_evaluations * (self.charge_mean and not self.reuse_mean)


@dataclass(frozen=True, kw_only=True)
class AESRLSettings(AsynchronousSettings):
    """Settings of one lifetime of AES-RL; see `AsynchronousSettings` for the others.

    Attributes:
        mean_update: one of `populations.aes.MEAN_UPDATES`.
        mean_update_param: its parameter r, in units of the return; by default the environment's.
        var_update: `fixed` or `adaptive`.
        fixed_var_n, negative_ratio: see `populations.aes.AES`.
        var_floor: no variance falls below.
    """

    learner: ClassVar[str] = "AES-RL"

    mean_update: Literal[
        "fixed-linear", "fixed-sigmoid", "baseline-absolute", "baseline-relative"
    ] = "baseline-relative"
    mean_update_param: float | None = None
    var_update: Literal["fixed", "adaptive"] = "adaptive"
    fixed_var_n: Annotated[float, Range(1)] = 10.0
    negative_ratio: Share = 0.0
    var_floor: NotNegative = 1e-5

    def _check(self) -> None:
        super()._check()
        r = self.mean_update_param
        if r is not None and r <= 0 and self.mean_update != "baseline-absolute":
            raise self._wrong("mean_update_param", f"above 0 for {self.mean_update}")

    def idle(self) -> dict[str, str]:
        """See `EvolvedSettings`."""
        found = super().idle()
        if self.mean_update != "fixed-linear":
            found["negative_ratio"] = f"mean_update is {self.mean_update}"
        if self.var_update == "adaptive":
            found["fixed_var_n"] = "var_update is adaptive"
        return found

    def check_complete(self, env_id: str) -> None:
        """See `EvolvedSettings`."""
        if self.mean_update_param is None:
            meaning = (
                "a return below those of the first policies"
                if self.mean_update == "baseline-absolute"
                else "a difference of returns that counts, about a fifth of that between a random "
                "and a good policy"
            )
            raise UserError(
                f"AES-RL has no mean_update_param for {env_id}: give it, as {meaning}, with "
                f"--mean_update_param NUMBER in erl train, or with --learner_config FILE and the "
                f"line mean_update_param: NUMBER in this file"
            )

    @classmethod
    def from_learner_config(cls, config: Mapping[str, Any], env_id: str = "") -> "AESRLSettings":
        """See `Settings`. The environment's `mean_update_param` has the other sign for
        `baseline-absolute`.
        """
        settings = super().from_learner_config(config, env_id)
        r = settings.mean_update_param
        absolute = settings.mean_update == "baseline-absolute"
        if r is not None and absolute and "mean_update_param" not in config:
            return super().from_learner_config({**config, "mean_update_param": -r}, env_id)
        return settings


@dataclass(frozen=True, kw_only=True)
class ACEMRLSettings(AsynchronousSettings):
    """Settings of one lifetime of ACEM-RL; see `AsynchronousSettings` for the others.

    Attributes:
        population_size: results that an update looks at.
        damp, damp_limit, damp_tau: of the variance, see `populations.cem.ACEM`.
        mean_evaluations: the distribution is not told their score. But they take time, in which the
            critics go on.
    """

    learner: ClassVar[str] = "ACEM-RL"
    published: ClassVar[dict[str, Any]] = {
        **AsynchronousSettings.published,
        "mean_evaluations": 5,
    }

    population_size: Annotated[int, Range(2)] = 10
    damp: NotNegative = 1e-3
    damp_limit: NotNegative = 1e-5
    damp_tau: Share = 0.9
    mean_evaluations: Annotated[int, Range(0)] = 0


@dataclass(frozen=True, kw_only=True)
class OnePlusOneESSettings(AsynchronousSettings):
    """Settings of one lifetime of (1+1)-ES; see `AsynchronousSettings` for the others.

    Attributes:
        success_rate: share of successes above which the variance grows, else it shrinks.
        success_decay: by which factor.
        var_floor: no variance falls below.
    """

    learner: ClassVar[str] = "(1+1)-ES"

    success_rate: Share = 0.2
    success_decay: Annotated[float, Range(above=0, high=1)] = 0.99
    var_floor: NotNegative = 1e-5


@dataclass
class Verdict:
    """An individual that has played, on its way to be told.

    Attributes:
        individual: which.
        mean: the mean (dim,) as it was when the individual's episode ended.
        scores: returns of the mean's episodes, to which its further ones are added.
    """

    individual: Individual
    mean: np.ndarray
    scores: list[float] = field(default_factory=list)


class Asynchronous(EvolvedTD3[AsynchronousSettings]):
    """An asynchronous evolution at work on the one lifetime of a run.

    Attributes:
        rl, es: RL and ES individuals that were asked since learning began, and one of each to begin
            with: what the control of their share goes by.
        latest: steps of the latest episodes.
        scores: returns of the episodes that the mean has played since it moved last.
    """

    counters = ("rl", "es", "latest", "scores")

    def __init__(self, run: Run[AsynchronousSettings]) -> None:
        self.rl = self.es = 1
        self.latest: deque[int] = deque(maxlen=_EPISODES)
        self.scores: list[float] = []
        super().__init__(run)

    def next_actor_job(self, worker: int, ended: WorkerJob | None) -> WorkerJob | None:
        """See `EvolvedTD3`."""
        if ended is None:
            return self.begin(worker)
        data = ended.data
        if isinstance(data, TrainActor):
            data.about.genes = data.genes
            return self.play(worker, data.about)
        if isinstance(data.about, Individual):
            return self.individual_played(worker, data.about, data)
        return self.mean_played(worker, data.about, data)

    def begin(self, worker: int) -> WorkerJob:
        """Ask an individual, and choose whether it learns."""
        (individual,) = self.ask(1)
        updates = sum(self.latest)
        if self.learns and updates:
            individual.learns = bool(self.rng.random() < self.rl_probability())
            self.rl += individual.learns
            self.es += not individual.learns
        if individual.learns:
            return self.train(worker, individual, updates)
        return self.play(worker, individual)

    def rl_probability(self) -> float:
        """Of the next individual to learn: it holds the share of those that do (section 4.1)."""
        s = self.settings
        if s.rl_ratio in (0.0, 1.0):
            return s.rl_ratio
        share = self.rl / (self.rl + self.es)
        return float(np.clip(0.5 - s.rl_k * (share - s.rl_ratio), 0.0, 1.0))

    def individual_played(
        self, worker: int, individual: Individual, play: Play
    ) -> WorkerJob | None:
        """Have the mean play against which it is judged."""
        if not self.played(individual, play):
            return None
        assert play.episode is not None
        steps = len(play.episode.rewards)
        self.latest.append(steps)
        if not self.settings.mean_evaluations:
            self.ledger.episode(individual.fitness, steps)
        scores = self.scores if self.settings.reuse_mean else []
        return self.judge(worker, Verdict(individual, self.distribution.mean, scores))

    def mean_played(self, worker: int, verdict: Verdict, play: Play) -> WorkerJob | None:
        """Note an episode of the mean."""
        assert play.episode is not None
        if play.episode.cut:
            return None
        verdict.scores.append(play.episode.total)
        self.ledger.episode(play.episode.total, len(play.episode.rewards))
        return self.judge(worker, verdict)

    def judge(self, worker: int, verdict: Verdict) -> WorkerJob | None:
        """Have the mean play once more, or tell the result and go on with another individual."""
        if len(verdict.scores) < self.settings.mean_evaluations:
            return self.play_mean(worker, verdict.mean, self.settings.charge_mean, verdict)
        self.tell(verdict)
        return self.begin(worker)

    def tell(self, verdict: Verdict) -> None:
        """Move the distribution, and report."""
        individual, before = verdict.individual, self.distribution.mean
        score = float(np.mean(verdict.scores)) if verdict.scores else None
        fitness = np.array([individual.fitness])
        self.distribution.tell(individual.genes[None], fitness, score)
        moved = not np.array_equal(before, self.distribution.mean)
        if moved:
            self.scores = []
        age = self.told - individual.asked
        self.count_told([individual])
        row: dict[str, Any] = {
            "individual": individual.number,
            "kind": "RL" if individual.learns else "ES",
            "fitness": [individual.fitness],
            "age": age,
            "var": float(self.distribution.var.mean()),
        }
        if score is not None:
            row["mean_return"] = score
        if (p := self.step_of(moved)) is not None:
            row["p"] = p
        self.record(row, {"rl": int(individual.learns), "es": int(not individual.learns)})

    def step_of(self, moved: bool) -> float | None:
        """How far the mean has gone to the latest individual, where it goes to one alone."""
        raise NotImplementedError

    def next_critic_job(self, worker: int) -> WorkerJob | None:
        """Without pause, but for no more updates than individuals have played steps."""
        s = self.settings
        if not self.learns or not s.rl_ratio or self.critic_updates >= self.stored_steps:
            return None
        return self.train_critics(worker, self.distribution.mean, s.critic_job)


class AESRL(Asynchronous):
    """AES-RL: the better an individual than the mean, the further the mean goes to it."""

    settings: AESRLSettings

    def make_distribution(self, mean: np.ndarray, rng: np.random.Generator) -> Distribution:
        """See `EvolvedTD3`."""
        s = self.settings
        assert s.mean_update_param is not None
        return AES(
            mean,
            rng,
            s.mean_update,
            s.mean_update_param,
            s.var_update,
            s.fixed_var_n,
            s.negative_ratio,
            s.var,
            s.var_floor,
        )

    def step_of(self, moved: bool) -> float | None:
        """See `Asynchronous`."""
        return self.distribution.p  # type: ignore[attr-defined]


class ACEMRL(Asynchronous):
    """ACEM-RL: CEM over the latest results, at every result."""

    settings: ACEMRLSettings

    def make_distribution(self, mean: np.ndarray, rng: np.random.Generator) -> Distribution:
        """See `EvolvedTD3`."""
        s = self.settings
        return ACEM(
            mean,
            rng,
            s.population_size,
            var=s.var,
            damp=s.damp,
            damp_limit=s.damp_limit,
            damp_tau=s.damp_tau,
        )

    def step_of(self, moved: bool) -> float | None:
        """The mean goes to several at a time."""
        return None

    def learned(self, row: int = 0) -> bool:
        """See `EvolvedTD3`. Nothing moves before there are `population_size` results."""
        return super().learned(row) and self.told >= self.settings.population_size


class OnePlusOne(Asynchronous):
    """(1+1)-ES: an individual that is better than the mean becomes the mean."""

    settings: OnePlusOneESSettings

    def make_distribution(self, mean: np.ndarray, rng: np.random.Generator) -> Distribution:
        """See `EvolvedTD3`."""
        s = self.settings
        return OnePlusOneES(
            mean,
            rng,
            s.var,
            success_rate=s.success_rate,
            decay=s.success_decay,
            var_floor=s.var_floor,
        )

    def step_of(self, moved: bool) -> float | None:
        """See `Asynchronous`."""
        return float(moved)


class AESRLLearner(EvolvedLearner):
    """AES-RL. Its settings are `AESRLSettings`."""

    settings, algorithm = AESRLSettings, AESRL


class ACEMRLLearner(EvolvedLearner):
    """ACEM-RL. Its settings are `ACEMRLSettings`."""

    settings, algorithm = ACEMRLSettings, ACEMRL


class OnePlusOneESLearner(EvolvedLearner):
    """(1+1)-ES. Its settings are `OnePlusOneESSettings`."""

    settings, algorithm = OnePlusOneESSettings, OnePlusOne
