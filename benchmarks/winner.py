"""Do agents that finals choose reproduce? Simulated searches, and evolutions with tests.

    python benchmarks/winner.py simulate --out winner_simulation.jsonl
    python benchmarks/winner.py run --folder winner --out winner.jsonl
    python benchmarks/winner.py table winner.jsonl

`simulate` searches the noisy functions of `sampler.py` with CMA-ES, three noisy values a trial, as
three seeds give them. A seed moves the values of all points, and there is noise beside it, of the
same size. Rules of choice are compared at an equal total number of values: what finals
take, rules without finals have as further trials. What counts is the noise-free value of what is
chosen, which no rule sees.

`run` evolves reservoirs for CartPole-v1 and Pendulum-v1 without velocities, each from several root
seeds, with finals. ER-MRL's choice, the trial with the highest fitness, and the winner of the
finals are then tested on the same seeds, which neither evolution nor finals saw. Interrupted, the
same command goes on: evolutions in their databases, finished ones are kept in the file.
"""

import argparse
import math
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rows import add_row, check_settings, make_parser, names, read_rows, rows_so_far
from sampler import FUNCTIONS, Function, interval

from erl.cli import Display, exit_after
from erl.errors import UserError
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.experiments.evolution_progress import Luck
from erl.experiments.evolution_study import lifetimes
from erl.experiments.flags import study_name
from erl.lifetimes.living import Cohort, live
from erl.search.asynchronous_cma import AsynchronousCMA, Result
from erl.search.noise import Expected, expect
from erl.studies.configuration import EvolutionStudy
from erl.studies.study import Study
from erl.studies.trials import lifetime_records
from erl.studies.winner import chosen, finals_name, proposed_by
from erl.worlds.specification import to_json

# -- simulation --

# Standard deviation of one value, where a random point has the median 1 and the optimum 0.
NOISES = (0.05, 0.2, 0.6)
SEEDS_OF_A_TRIAL = 3
RULES = {
    "best": "highest fitness",
    "mean": "mean of the search",
    "finals": "finals of 5 trials and the mean, 5 values each",
    "finals without mean": "finals of 5 trials, 6 values each",
    "race": "race of the same 6: 2 values each, 3 more for the best 3, 4 more for the best 2",
}
FINAL_VALUES = 30


class Search:
    """A search of a noisy function; values are to be high, as returns are.

    Args:
        function: its noise-free value is a cost.
        seed: of noise and search.
        noise: standard deviation of one value, and of the effects of seeds.
    """

    def __init__(self, function: Function, seed: int, noise: float) -> None:
        self._function, self._seed, self._noise = function, seed, noise
        self._effects = noise * np.random.default_rng([seed, 0, 0]).standard_normal(100)
        self.points: list[np.ndarray] = []
        self.values: list[np.ndarray] = []  # (SEEDS_OF_A_TRIAL,) of each trial
        self.runs: list[int] = []
        self.means: dict[int, np.ndarray] = {}  # the last mean of each run

    def go(self, trials: int) -> None:
        """So many trials, in generations."""
        popsize = 4 + math.floor(3 * math.log(self._function.dim))
        cma = AsynchronousCMA(self._function.dim, popsize, self._seed)
        for number in range(0, trials, popsize):
            n, run = min(popsize, trials - number), cma.run
            points = [cma.ask(number + i) for i in range(n)]
            for i, x in enumerate(points):
                values = self.live(x, range(SEEDS_OF_A_TRIAL), number + i)
                cma.tell(Result(number + i, run, x, -float(values.mean())), n)
                self.means[cma.run] = cma.distribution()[0]
                self.points.append(x)
                self.values.append(values)
                self.runs.append(run)

    def live(self, x: np.ndarray, seeds: range, *which: int) -> np.ndarray:
        """Noisy values of a point, one for each seed; `which` tells draws apart."""
        rng = np.random.default_rng([self._seed, 1, *which])
        noise = self._noise * rng.standard_normal(len(seeds))
        return self._effects[list(seeds)] + noise - self._function(x)

    def order(self) -> np.ndarray:
        """Trials, the highest fitness first."""
        return np.argsort([-v.mean() for v in self.values], kind="stable")

    def mean(self) -> np.ndarray:
        """The mean of the run that holds the best trial."""
        return np.clip(self.means[self.runs[self.order()[0]]], 0.0, 1.0)

    def finalists(self, with_mean: bool) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Points of the finalists, and the values with which they were proposed."""
        best = self.order()[:5]
        points, proposed = [self.points[i] for i in best], [self.values[i] for i in best]
        if with_mean:
            return [*points, self.mean()], [*proposed, np.zeros(0)]
        return points, proposed


def finals(search: Search, with_mean: bool, seeds: int) -> tuple[np.ndarray, dict[str, float]]:
    """The finals' choice, and what is claimed for it."""
    points, proposed = search.finalists(with_mean)
    fresh = range(SEEDS_OF_A_TRIAL, SEEDS_OF_A_TRIAL + seeds)
    again = [search.live(x, fresh, 10**6 + i) for i, x in enumerate(points)]
    found = _expected(proposed, again)
    k = int(np.argmax(found.values))
    said = {"trained again": float(again[k].mean()), "expected": float(found.values[k])}
    said |= {"low": float(found.low[k]), "high": float(found.high[k])}
    return points[k], said


def race(search: Search) -> np.ndarray:
    """Successive halving over the finalists."""
    points, proposed = search.finalists(True)
    again = [np.zeros(0) for _ in points]
    alive, first = list(range(len(points))), SEEDS_OF_A_TRIAL
    for stay, seeds in ((6, 2), (3, 3), (2, 4)):
        if stay < len(alive):
            alive = sorted(_best(alive, proposed, again)[:stay])
        for i in alive:
            more = search.live(points[i], range(first, first + seeds), 10**6 + i, stay)
            again[i] = np.concatenate([again[i], more])
        first += seeds
    return points[_best(alive, proposed, again)[0]]


def _expected(proposed: list[np.ndarray], again: list[np.ndarray]) -> Expected:
    return expect([p.tolist() for p in proposed], [a.tolist() for a in again])


def _best(alive: list[int], proposed: list[np.ndarray], again: list[np.ndarray]) -> list[int]:
    values = _expected([proposed[i] for i in alive], [again[i] for i in alive]).values
    return [alive[k] for k in np.argsort(-values, kind="stable")]


def simulated(name: str, seed: int, noise: float, trials: int) -> dict[str, Any]:
    """One search with finals, and one that has their values as further trials."""
    function = Function(name, seed)
    short, long = Search(function, seed, noise), Search(function, seed, noise)
    short.go(trials)
    long.go(trials + FINAL_VALUES // SEEDS_OF_A_TRIAL)
    best = int(long.order()[0])
    winner, said = finals(short, True, 5)
    points = {
        "best": long.points[best],
        "mean": long.mean(),
        "finals": winner,
        "finals without mean": finals(short, False, 6)[0],
        "race": race(short),
    }
    return {
        "function": name,
        "seed": seed,
        "noise": noise,
        "trials": trials,
        "values": {rule: function(x) for rule, x in points.items()},
        # How far a claim lies above the truth.
        "best claimed": float(long.values[best].mean()) + function(points["best"]),
        "again claimed": said["trained again"] + function(winner),
        "expected claimed": said["expected"] + function(winner),
        "covered": said["low"] <= -function(winner) <= said["high"],
    }


def simulate(arguments: argparse.Namespace) -> None:
    path = Path(arguments.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {(r["function"], r["seed"], r["noise"], r["trials"]) for r in rows_so_far(path)}
    for trials in map(int, arguments.trials.split(",")):
        for noise, name in product(NOISES, FUNCTIONS):
            for seed in range(arguments.seeds):
                if (name, seed, noise, trials) not in done:
                    add_row(path, simulated(name, seed, noise, trials))
    show_simulation(read_rows(path))


def show_simulation(rows: list[dict[str, Any]]) -> None:
    for trials in sorted({r["trials"] for r in rows}):
        print(f"\n{trials} trials of {SEEDS_OF_A_TRIAL} values and finals of {FINAL_VALUES} values")
        print("| noise | " + " | ".join(RULES) + " |\n|---|" + "---|" * len(RULES))
        for noise in NOISES:
            part = [r for r in rows if (r["trials"], r["noise"]) == (trials, noise)]
            cells = [f"{np.mean([r['values'][rule] for r in part]):.4f}" for rule in RULES]
            print(f"| {noise} | " + " | ".join(cells) + " |")
        print("\ndifference to the highest fitness, paired by function and seed")
        print("| noise | " + " | ".join(list(RULES)[1:]) + " |\n|---|" + "---|" * (len(RULES) - 1))
        for noise in NOISES:
            cells = []
            for rule in list(RULES)[1:]:
                by = _by_function(rows, trials, noise, rule, "best")
                cells.append("{:+.4f} [{:+.4f}, {:+.4f}]".format(*interval(by, draws=5000)))
            print(f"| {noise} | " + " | ".join(cells) + " |")
        print("\nrace - finals, paired by function and seed")
        for noise in NOISES:
            by = _by_function(rows, trials, noise, "race", "finals")
            print("  noise {}: {:+.4f} [{:+.4f}, {:+.4f}]".format(noise, *interval(by, draws=5000)))
        print("\nclaim above the truth: fitness of the best, winner trained again, winner expected")
        for noise in NOISES:
            part = [r for r in rows if (r["trials"], r["noise"]) == (trials, noise)]
            claims = [
                np.mean([r[f"{what} claimed"] for r in part])
                for what in ("best", "again", "expected")
            ]
            covered = np.mean([r["covered"] for r in part])
            print(
                f"  noise {noise}: "
                + ", ".join(f"{c:+.3f}" for c in claims)
                + f"; the 95 % interval covers the truth in {covered:.0%}"
            )

    # The same function and seed are in each of these tables: of these pairs, the mean over them.
    pairs: dict[str, dict[int, list[float]]] = {}
    for r in rows:
        of_seed = pairs.setdefault(r["function"], {}).setdefault(r["seed"], [])
        of_seed.append(r["values"]["race"] - r["values"]["finals"])
    by = [np.array([np.mean(d) for d in of.values()]) for of in pairs.values()]
    ends = interval(by, draws=5000)
    print("\nrace - finals over all rows: {:+.4f} [{:+.4f}, {:+.4f}]".format(*ends))


def _by_function(
    rows: list[dict[str, Any]], trials: int, noise: float, rule: str, other: str
) -> list[np.ndarray]:
    """Differences of a rule to another one, an array for each function."""
    part = [r for r in rows if (r["trials"], r["noise"]) == (trials, noise)]
    return [
        np.array([r["values"][rule] - r["values"][other] for r in part if r["function"] == name])
        for name in FUNCTIONS
        if any(r["function"] == name for r in part)
    ]


# -- for real --

# The SB3 Zoo's settings of PPO for Pendulum-v1, without state-dependent exploration.
PENDULUM = """\
n_envs: 4
n_steps: 1024
gae_lambda: 0.95
gamma: 0.9
n_epochs: 10
ent_coef: 0.0
learning_rate: 0.001
clip_range: 0.2
"""
TASKS: dict[str, tuple[int, str]] = {
    "CartPole-v1": (50_000, ""),
    "Pendulum-v1": (100_000, PENDULUM),
}


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    tasks = names(arguments.tasks, TASKS, "task")
    out, folder = Path(arguments.out), Path(arguments.folder).resolve()
    there = rows_so_far(out)
    for env_id in tasks:
        asked = {"steps": arguments.steps or TASKS[env_id][0]}
        asked |= {"trials": arguments.trials, "tests": arguments.tests}
        of_task = [r for r in there if r["env_id"] == env_id]
        check_settings(out, of_task, asked, {"tests": 20})
    folder.mkdir(parents=True, exist_ok=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        for env_id in tasks:
            if any((r["env_id"], r["seed"]) == (env_id, seed) for r in rows_so_far(out)):
                continue
            steps, settings = TASKS[env_id]
            file = folder / f"{env_id}.yml"
            if settings:
                file.write_text(settings, encoding="utf-8")
            config = EvolutionConfig(
                env_id=env_id,
                del_obs=True,
                training_steps=arguments.steps or steps,
                nb_trials=arguments.trials,
                learner_config=str(file) if settings else None,
                seed=seed,
                finalists=5,
                finalist_seeds=5,
                h_test="winner",
                workers=arguments.workers,
                runs=str(folder / "runs"),
                storage=f"sqlite:///{folder}/{env_id}_{seed}.db",
            )
            begun = time.monotonic()
            code = evolve(config, Display())
            if code:
                raise SystemExit(code)
            row = outcome(config, arguments.tests)
            add_row(out, row)
            tests = {who: round(float(np.mean(t)), 1) for who, t in row["test"].items()}
            minutes = (time.monotonic() - begun) / 60
            print(f"{env_id} root seed {seed}: {tests}, {minutes:.1f} minutes", flush=True)


def outcome(config: EvolutionConfig, tests: int) -> dict[str, Any]:
    """What an evolution found, and what its two choices reach on unseen seeds."""
    name = study_name(config.subject(), config.h_test, config.training_steps)
    study = Study(config.storage, name)
    evolution, best, choice = study.config, study.best(), chosen(study)
    if best is None or choice is None or not isinstance(evolution, EvolutionStudy):
        raise UserError(f"{name} is no evolution with a finished trial")
    candidates = {"best": proposed_by(best, evolution.score), "winner": choice.winner}
    test: dict[str, Any] = {}
    for who, candidate in candidates.items():
        same = who == "winner" and candidate.trial == best.number
        if not same:
            specs = lifetimes(evolution, candidate.params, "test", range(tests))
            test[who] = [r.fitness for r in live(Cohort(tuple(specs)))]
        else:
            test[who] = test["best"]
    finals = Study(config.storage, finals_name(study.storage, name))
    cost = {"evolution": _cost(study), "finals": _cost(finals)}
    return {
        "env_id": config.env_id,
        "seed": config.seed,
        "steps": config.training_steps,
        "trials": config.nb_trials,
        "tests": tests,
        "best": to_json(candidates["best"]),
        "winner": to_json(choice.winner),
        "finalists": to_json(choice.finalists),
        "test": test,
        "luck": Luck(study, evolution).share,
        "cost": cost,
        "commit": study.optuna.user_attrs.get("commit"),
    }


def _cost(study: Study) -> dict[str, float]:
    """Lifetimes of a study, their steps, and their seconds on one core."""
    records = [r for t in study.trials() for r in lifetime_records(t).values()]
    return {
        "lifetimes": len(records),
        "steps": sum(r.steps for r in records),
        "seconds": sum(r.seconds for r in records),
    }


def table(arguments: argparse.Namespace) -> None:
    rows = read_rows(arguments.file)
    print("mean over root seeds [95 % bootstrap interval over them]\n")
    for env_id in dict.fromkeys(r["env_id"] for r in rows):
        part = [r for r in rows if r["env_id"] == env_id]
        tests = len(part[0]["test"]["best"])
        best = np.array([np.mean(r["test"]["best"]) for r in part])
        winner = np.array([np.mean(r["test"]["winner"]) for r in part])
        other = np.array([r["winner"]["trial"] != r["best"]["trial"] for r in part])
        means = sum(r["winner"]["trial"] is None for r in part)
        fitness = np.array([r["best"]["fitness"] for r in part])
        expected = np.array([r["winner"]["expected"] for r in part])
        wrong = abs(fitness - best), abs(expected - winner)
        covered = sum(
            low <= x <= high
            for x, (low, high) in zip(winner, (r["winner"]["interval"] for r in part))
        )
        print(
            f"{env_id}, {len(part)} evolutions of {part[0]['trials']} trials x "
            f"{part[0]['steps']:,} steps, {tests} unseen seeds each"
        )
        lines = {
            "test return of the highest fitness": best,
            "test return of the winner": winner,
            "winner - highest fitness, paired": winner - best,
            "the same, where they differ": (winner - best)[other],
            "fitness of the highest - its test": fitness - best,
            # The mean has no fitness.
            "fitness of the winner - its test": np.array(
                [r["winner"]["fitness"] for r in part], float
            )
            - winner,
            "winner trained again - its test": np.array(
                [np.mean(r["winner"]["again"]) for r in part]
            )
            - winner,
            "winner expected - its test": expected - winner,
            "size of the highest's error": wrong[0],
            "size of the expected one's error": wrong[1],
            "the two sizes, paired": wrong[1] - wrong[0],
            "luck in the latest fitnesses": np.array([r["luck"] for r in part], float),
            "steps of finals / evolution": np.array(
                [r["cost"]["finals"]["steps"] / r["cost"]["evolution"]["steps"] for r in part]
            ),
            "minutes of finals on a core": np.array(
                [r["cost"]["finals"]["seconds"] / 60 for r in part]
            ),
            "minutes of the evolution": np.array(
                [r["cost"]["evolution"]["seconds"] / 60 for r in part]
            ),
        }
        for title, values in lines.items():
            known = values[~np.isnan(values)]
            text = (
                "-"
                if not len(known)
                else "{:10.3f} [{:.3f}, {:.3f}]".format(*interval([known], draws=5000))
            )
            print(f"  {title:36s} {text}")
        better, worse = int(np.sum(winner > best)), int(np.sum(winner < best))
        print(
            f"  the winner is another one in {int(other.sum())} of {len(part)} (the mean in "
            f"{means}): better in {better}, worse in {worse}\n"
            f"  the interval of what is expected covers the test in {covered} of {len(part)}\n"
        )


def main() -> None:
    parser = make_parser(__doc__)
    commands = parser.add_subparsers(required=True)
    part = commands.add_parser("simulate")
    part.add_argument("--seeds", type=int, default=20)
    part.add_argument("--trials", default="30,100")
    part.add_argument("--out", required=True)
    part.set_defaults(call=simulate)
    part = commands.add_parser("run")
    part.add_argument("--tasks", default=",".join(TASKS))
    part.add_argument("--first", type=int, default=0)
    part.add_argument("--seeds", type=int, default=12)
    part.add_argument("--trials", type=int, default=30)
    part.add_argument("--steps", type=int, default=0, help="by default each task's")
    part.add_argument("--tests", type=int, default=20)
    part.add_argument("--workers", type=int, default=1)
    part.add_argument("--folder", default="winner")
    part.add_argument("--out", required=True)
    part.set_defaults(call=run)
    part = commands.add_parser("table")
    part.add_argument("file")
    part.set_defaults(call=table)
    arguments = parser.parse_args()
    arguments.call(arguments)


if __name__ == "__main__":
    exit_after(main)
