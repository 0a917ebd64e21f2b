"""Samplers with asynchronous workers: this project's CMA-ES beside Optuna's CMA-ES, TPE and random
search.

    python benchmarks/sampler.py            # what is missing in the results; tables and figure
    python benchmarks/sampler.py --report   # tables and figure of what is there
    python benchmarks/sampler.py --share    # shares of trials that CMA-ES uses
    python benchmarks/sampler.py --asks     # what one ask costs among 10,000 finished trials

A run is 900 trials of noisy test functions in 3 to 12 dimensions, on 1, 7, 20 or 90 workers.
Nothing sleeps: a queue of events simulates the workers. Trials last a log-normal time of mean 1;
durations and noise of a trial follow from seed and number, so that samplers are compared in pairs.
Functions are scaled so that a random point has a median of 1; the optimum, 0, lies elsewhere for
each seed.

Of a run is kept, as one line of `sampler.jsonl`, or of the file that `--results` names:
    value: noise-free value of the trial with the best *noisy* value, which is what a user would
        take; never the best noise-free value, which nobody knows, nor the best noisy one, which is
        luck.
    late: median noise-free value of the last 100 trials to end: where the sampler searches in the
        end.
    time: simulated time until the first trial with a noise-free value of at most 0.05 ended; that
        of the whole run if none did.
    ranked: share of trials that took part in the ranking of a population (CMA-ES).
    told: share of trials that the distribution was told: the best of those ranked.
An interrupted run goes on where it stood.
"""

import argparse
import heapq
import json
import math
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from rows import add_row, names, rows_so_far

from erl.cli import exit_after
from erl.errors import UserError
from erl.figures.style import looks
from erl.search.samplers import CmaesSampler, make_sampler

FUNCTIONS = ("sphere-3", "plateau-3", "rastrigin-4", "rosenbrock-5", "ellipsoid-6", "sphere-12")
SAMPLERS = ("ours", "optuna", "random", "tpe")
WORKERS = (90, 20, 1, 7)  # the order in which they are run
TRIALS, SEEDS = 900, 20
TARGET = 0.05


class Function:
    """A noisy function on the unit cube, to be minimised; called, it gives the noise-free value."""

    def __init__(self, name: str, seed: int) -> None:
        self.kind, _, dim = name.partition("-")
        self.dim = int(dim)
        rng = np.random.default_rng([seed, *name.encode()])
        self.optimum = rng.uniform(0.2, 0.8, self.dim)
        self.rotation = np.linalg.qr(rng.standard_normal((self.dim, self.dim)))[0]
        self.scale = 1.0
        if self.kind != "plateau":
            self.scale = float(np.median([self(u) for u in rng.random((1000, self.dim))]))
        self.noise = 0.1 if self.kind == "plateau" else 0.02

    def __call__(self, u: np.ndarray) -> float:
        x, d = u - self.optimum, self.dim
        match self.kind:
            case "sphere":
                y = float(np.sum(x**2))
            case "ellipsoid":  # rotated, condition number 1000
                y = np.sum(1000 ** (np.arange(d) / (d - 1)) * (self.rotation @ x) ** 2)
            case "rastrigin":  # four waves along each side of the cube
                y = np.sum(x**2 + 0.05 * (1 - np.cos(8 * np.pi * x)))
            case "rosenbrock":
                z = 1 + 4 * x
                y = np.sum(100 * (z[1:] - z[:-1] ** 2) ** 2 + (1 - z[:-1]) ** 2)
            # sr, lr and iss on their logarithmic scales: agents learn near an oblique optimum, or
            # nothing
            case "plateau":
                c, s = math.cos(0.5), math.sin(0.5)
                oblique = np.array([c * x[0] - s * x[1], s * x[0] + c * x[1], x[2]]) / [
                    0.12,
                    0.2,
                    0.3,
                ]
                y = 1 - math.exp(-0.5 * np.sum(oblique**2))
            case _:
                raise ValueError(self.kind)
        return float(y / self.scale)

    def ranges(self) -> dict[str, FloatDistribution]:
        if self.kind == "plateau":
            return {
                "sr": FloatDistribution(1e-4, 1e2, log=True),
                "lr": FloatDistribution(1e-2, 1.0, log=True),
                "iss": FloatDistribution(1e-1, 10.0, log=True),
            }
        return {f"x{i}": FloatDistribution(0.0, 1.0) for i in range(self.dim)}

    def space(self) -> dict[str, BaseDistribution]:
        return dict(self.ranges())

    def unit(self, params: dict[str, float]) -> np.ndarray:
        return np.array(
            [
                math.log(params[n] / d.low) / math.log(d.high / d.low) if d.log else params[n]
                for n, d in self.ranges().items()
            ]
        )


def sampler_of(name: str, function: Function, seed: int) -> BaseSampler:
    match name:
        case "ours":
            return make_sampler("Cmaes", function.space(), seed)
        case "optuna":
            return CmaEsSampler(seed=seed)
        case "tpe":
            return TPESampler(seed=seed)
        case _:
            return RandomSampler(seed=seed)


def shares(study: optuna.Study) -> tuple[float | None, float | None]:
    """Shares of a study's trials that were ranked for a population, and that the distribution was
    told: of Optuna's, all that are ranked.
    """
    n, sampler = len(study.trials), study.sampler
    if isinstance(sampler, CmaesSampler):
        ranked, told = sampler.used(study)
        return ranked / n, told / n
    if isinstance(sampler, CmaEsSampler):
        optimizer = sampler._restore_optimizer(study.get_trials(deepcopy=False))
        told = 0 if optimizer is None else optimizer.generation * optimizer.population_size
        return told / n, told / n
    return None, None


def simulate(name: str, function_name: str, seed: int, workers: int) -> dict:
    function = Function(function_name, seed)
    rng = np.random.default_rng([seed, 1])
    noise = function.noise * rng.standard_normal(TRIALS)
    durations = rng.lognormal(-(0.5**2) / 2, 0.5, TRIALS)
    space = function.space()
    study = optuna.create_study(sampler=sampler_of(name, function, seed))
    running: list[tuple[float, int, optuna.Trial]] = []
    ended: list[tuple[float, float, float]] = []
    begun, now, start = 0, 0.0, time.process_time()
    while len(ended) < TRIALS:
        while len(running) < workers and begun < TRIALS:
            heapq.heappush(running, (now + durations[begun], begun, study.ask(space)))
            begun += 1
        now, number, trial = heapq.heappop(running)
        value = function(function.unit(trial.params))
        ended.append((now, value, value + noise[number]))
        study.tell(trial, value + noise[number])
    times, true, noisy = np.array(ended).T
    ranked, told = shares(study)
    reached = np.flatnonzero(true <= TARGET)
    return {
        "sampler": name,
        "function": function_name,
        "workers": workers,
        "seed": seed,
        "value": float(true[noisy.argmin()]),
        "late": float(np.median(true[-100:])),
        "time": float(times[reached[0]] if len(reached) else times[-1]),
        "reached": bool(len(reached)),
        "ranked": ranked,
        "told": told,
        "seconds": time.process_time() - start,
    }


def run(path: Path, names: list[str], seeds: range, tpe_seeds: int, minutes: float) -> None:
    """All runs of these samplers that `path` lacks, TPE last."""
    done = {(r["sampler"], r["function"], r["workers"], r["seed"]) for r in rows_so_far(path)}
    plan = [
        (name, function, seed, workers)
        for group in ([n for n in names if n != "tpe"], [n for n in names if n == "tpe"])
        for seed in (range(seeds.start, tpe_seeds) if group == ["tpe"] else seeds)
        for workers in WORKERS
        for function in FUNCTIONS
        for name in group
    ]
    begun = time.process_time()
    path.parent.mkdir(exist_ok=True)
    for name, function, seed, workers in plan:
        if (name, function, workers, seed) in done:
            continue
        if time.process_time() - begun > 60 * minutes:
            print(f"stopped after {minutes:g} minutes; the same command goes on")
            return
        record = simulate(name, function, seed, workers)
        add_row(path, record)


def interval(
    differences: list[np.ndarray], statistic: Callable = np.mean, draws: int = 2000
) -> tuple[float, float, float]:
    """Mean over functions of a statistic over seeds, and its 95 % bootstrap interval, seeds drawn
    within functions.
    """
    rng = np.random.default_rng(0)

    def drawn() -> float:
        return float(
            np.mean([statistic(d[rng.integers(len(d), size=len(d))]) for d in differences])
        )

    low, high = np.quantile([drawn() for _ in range(draws)], [0.025, 0.975])
    return float(np.mean([statistic(d) for d in differences])), low, high


def report(path: Path) -> None:
    records = {(r["sampler"], r["function"], r["workers"], r["seed"]): r for r in rows_so_far(path)}

    def column(name: str, function: str, workers: int, key: str, seeds: list[int]) -> np.ndarray:
        return np.array([records[name, function, workers, s][key] for s in seeds], dtype=float)

    def seeds_of(function: str, workers: int, *names: str) -> list[int]:
        return [s for s in range(1000) if all((n, function, workers, s) in records for n in names)]

    print(
        "Shares of trials ranked and told, simulated time to the target (mean over functions of "
        "the median over seeds), value of the trial taken (geometric mean over seeds)\n"
    )
    print("| workers | sampler | seeds | ranked | told | time | " + " | ".join(FUNCTIONS) + " |")
    print("|---|---|---|---|---|---|" + "---|" * len(FUNCTIONS))
    for workers in sorted(WORKERS):
        for name in SAMPLERS:
            seeds = {f: seeds_of(f, workers, name) for f in FUNCTIONS}
            if not all(seeds.values()):
                continue
            every = [(f, s) for f in FUNCTIONS for s in seeds[f]]
            used = [
                _percent([records[name, f, workers, s][key] for f, s in every])
                for key in ("ranked", "told")
            ]
            times = np.mean(
                [np.median(column(name, f, workers, "time", seeds[f])) for f in FUNCTIONS]
            )
            values = [
                np.exp(np.mean(np.log(column(name, f, workers, "value", seeds[f]))))
                for f in FUNCTIONS
            ]
            count = min(len(s) for s in seeds.values())
            print(
                f"| {workers} | {name} | {count} | {' | '.join(used)} | {times:.1f} | "
                + " | ".join(f"{v:.4f}" for v in values)
                + " |"
            )
    print(
        "\nOurs against the others, paired by function and seed; log10 of a ratio, negative "
        "where ours is better\n"
    )
    print(
        "| workers | against | pairs | value | ours is better | late | time "
        "|\n|---|---|---|---|---|---|---|"
    )
    for workers in sorted(WORKERS):
        for other in SAMPLERS[1:]:
            seeds = {f: seeds_of(f, workers, "ours", other) for f in FUNCTIONS}
            if not all(seeds.values()):
                continue
            cells = []
            for key in ("value", "late", "time"):
                ratios = [
                    np.log10(
                        column("ours", f, workers, key, seeds[f])
                        / column(other, f, workers, key, seeds[f])
                    )
                    for f in FUNCTIONS
                ]
                few = (
                    min(len(s) for s in seeds.values()) < 3
                )  # an interval over two seeds says nothing
                cells.append(
                    ("{:+.2f}" if few else "{:+.2f} [{:+.2f}, {:+.2f}]").format(*interval(ratios))
                )
                if key == "value":
                    wins = interval(ratios, lambda r: np.mean((r < 0) + 0.5 * (r == 0)))
                    cells.append(("{:.0%}" if few else "{:.0%} [{:.0%}, {:.0%}]").format(*wins))
            pairs = sum(len(s) for s in seeds.values())
            print(f"| {workers} | {other} | {pairs} | " + " | ".join(cells) + " |")
    figure(records, column, seeds_of, path.with_suffix(".svg"))


def _percent(shares: list[float | None]) -> str:
    """Their mean and the least; `-` where there are none."""
    known = [s for s in shares if s is not None]
    return f"{np.mean(known):.1%} (least {min(known):.1%})" if known else "-"


def figure(records: dict, column: Callable, seeds_of: Callable, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "sampler"
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(2, 3, figsize=(11, 6), sharex=True, layout="constrained")
    labels = {
        "ours": "CMA-ES of this project",
        "optuna": "Optuna's CMA-ES",
        "random": "random search",
        "tpe": "TPE",
    }
    styles = looks(SAMPLERS)
    at = np.arange(len(WORKERS))
    for axis, function in zip(axes.flat, FUNCTIONS):
        for k, name in enumerate(SAMPLERS):
            seeds = [seeds_of(function, w, name) for w in sorted(WORKERS)]
            if min(map(len, seeds)) < 3:
                continue
            logs = [
                np.log10(column(name, function, w, "value", s))
                for w, s in zip(sorted(WORKERS), seeds)
            ]
            middle = np.array([interval([values]) for values in logs])
            error = [middle[:, 0] - middle[:, 1], middle[:, 2] - middle[:, 0]]
            x = at + 0.08 * (k - 1.5)
            axis.errorbar(
                x,
                middle[:, 0],
                yerr=np.array(error),
                marker=styles[name].marker,
                linestyle=styles[name].line,
                color=styles[name].colour,
                markersize=4,
                capsize=2,
                label=labels[name],
            )
        axis.set_title(function.replace("-", ", ") + " dimensions", fontsize=10)
        axis.set_xticks(at, [str(w) for w in sorted(WORKERS)])
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("asynchronous workers")
    for axis in axes[:, 0]:
        axis.set_ylabel("log10 of the noise-free value")
    handles, names = axes.flat[0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside upper center", ncols=4, frameon=False)
    fig.supxlabel("bars: 95 % bootstrap interval over seeds", fontsize=9, color="0.3")
    fig.savefig(path, metadata={"Date": None})


def print_shares() -> None:
    """The toy of three dimensions, 900 trials, generations of 7."""
    print(
        "| workers | "
        + " | ".join(str(w) for w in sorted(WORKERS))
        + " |\n|---|"
        + "---|" * len(WORKERS)
    )
    for name in ("optuna", "ours"):
        rows = [simulate(name, "sphere-3", 0, w) for w in sorted(WORKERS)]
        for key in ("ranked", "told"):
            cells = [f"{row[key]:.0%}" for row in rows]
            print(f"| {name}, {key} | " + " | ".join(cells) + " |", flush=True)


def opened(storage: str) -> optuna.storages.BaseStorage:
    if storage.startswith("journal:"):
        backend = JournalFileBackend(storage.removeprefix("journal:"))
        return optuna.storages.JournalStorage(backend)
    return optuna.storages.RDBStorage(storage) if storage else optuna.storages.InMemoryStorage()


class Logs(BaseJournalBackend):
    """A journal in memory: written into a file at once, it saves 10,000 locks."""

    def __init__(self) -> None:
        self.logs: list[dict] = []

    def append_logs(self, logs: list[dict]) -> None:
        self.logs += json.loads(json.dumps(logs))

    def read_logs(self, log_number_from: int) -> list[dict]:
        return self.logs[log_number_from:]


def fill(storage: str, n: int) -> optuna.Study:
    """A study with `n` finished trials, written in bulk: Optuna's own way takes minutes."""
    function, rng = Function("plateau-3", 0), np.random.default_rng(0)
    space = function.space()
    points = [
        {k: float(d.low * (d.high / d.low) ** rng.random()) for k, d in function.ranges().items()}
        for _ in range(n)
    ]
    trials = [
        optuna.trial.create_trial(params=p, distributions=space, value=function(function.unit(p)))
        for p in points
    ]
    if storage.startswith("journal:"):
        logs = Logs()
        optuna.create_study(
            storage=optuna.storages.JournalStorage(logs), study_name="s"
        ).add_trials(trials)
        JournalFileBackend(storage.removeprefix("journal:")).append_logs(logs.logs)
        return optuna.load_study(study_name="s", storage=opened(storage))
    study = optuna.create_study(storage=opened(storage), study_name="s")
    if not storage:
        study.add_trials(trials)
        return study
    from optuna.storages._rdb import models
    from sqlalchemy import insert

    json_of = {k: optuna.distributions.distribution_to_json(d) for k, d in space.items()}
    rows: dict = {models.TrialModel: [], models.TrialParamModel: [], models.TrialValueModel: []}
    for i, t in enumerate(trials):
        row = {"trial_id": i + 1, "number": i, "study_id": study._study_id, "state": t.state}
        rows[models.TrialModel].append(
            row | {"datetime_start": t.datetime_start, "datetime_complete": t.datetime_complete}
        )
        rows[models.TrialParamModel] += [
            {"trial_id": i + 1, "param_name": k, "param_value": v, "distribution_json": json_of[k]}
            for k, v in t.params.items()
        ]
        finite = models.TrialValueModel.TrialValueType.FINITE
        value = {"trial_id": i + 1, "objective": 0, "value": t.value, "value_type": finite}
        rows[models.TrialValueModel].append(value)
    cached: Any = study._storage
    with cached._backend.engine.begin() as connection:
        for model, lines in rows.items():
            connection.execute(insert(model), lines)
    return study


def ask_once(storage: str, n: int) -> dict:
    """Processor time in milliseconds of asks in this process: the first replays all trials, the
    others go on from it.
    """
    study = (
        optuna.load_study(study_name="s", storage=opened(storage)) if storage else fill(storage, n)
    )
    space = Function("plateau-3", 0).space()

    def timed(call: Callable) -> float:
        started = time.process_time()
        call()
        return 1e3 * (time.process_time() - started)

    reading = timed(lambda: study.get_trials(deepcopy=False))
    assert len(study.get_trials(deepcopy=False)) == n
    study.sampler = make_sampler("Cmaes", space, 0)
    times = []
    for _ in range(30):
        times.append(timed(lambda: study.ask(space)))
        study.tell(len(study.get_trials(deepcopy=False)) - 1, 0.5)
    return {
        "read": reading,
        "first": times[0],
        "next": float(np.median(times[1:])),
        "most": max(times[1:]),
    }


def asks(n: int = 10_000) -> None:
    """What one ask costs among 10,000 finished trials, in a fresh process for each storage."""
    columns = ("reading the trials", "first ask", "asks after it, median", "and slowest")
    print(f"| storage | {' | '.join(columns)} |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, storage in (
            ("memory", ""),
            ("SQLite", f"sqlite:///{folder}/s.db"),
            ("journal", f"journal:{folder}/s.log"),
        ):
            if storage:
                fill(storage, n)
            code = (
                f"import json, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import "
                f"sampler\n"
                f"print(json.dumps(sampler.ask_once({storage!r}, {n})))"
            )
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
            )
            if done.returncode:
                sys.exit(done.stderr)
            row = json.loads(done.stdout)
            cells = " | ".join(f"{row[key]:.1f}" for key in ("read", "first", "next", "most"))
            print(f"| {name} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of each sampler but TPE")
    parser.add_argument(
        "--first-seed", type=int, default=0, help="several processes may share the seeds"
    )
    parser.add_argument(
        "--samplers", default=",".join(SAMPLERS), help="which ones, comma-separated"
    )
    parser.add_argument("--tpe-seeds", type=int, default=3, help="of TPE, which is slow")
    parser.add_argument(
        "--minutes", type=float, default=40.0, help="of processor time, then it stops"
    )
    parser.add_argument("--results", type=Path, default=Path("sampler.jsonl"))
    for flag in ("report", "share", "asks"):
        parser.add_argument(f"--{flag}", action="store_true")
    flags = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    if flags.share:
        print_shares()
    elif flags.asks:
        asks()
    else:
        if not flags.report:
            seeds = range(flags.first_seed, flags.seeds)
            samplers = names(flags.samplers, SAMPLERS, "sampler")
            run(flags.results, samplers, seeds, flags.tpe_seeds, flags.minutes)
        elif not flags.results.exists():
            raise UserError(f"there are no rows in {flags.results}")
        report(flags.results)


if __name__ == "__main__":
    exit_after(main)
