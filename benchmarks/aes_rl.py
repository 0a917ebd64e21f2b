"""AES-RL and the four learners beside it: what updates cost, actors in one batch, batched CEM-RL,
workers that are busy, and two cores.

    python benchmarks/aes_rl.py costs
    python benchmarks/aes_rl.py actors [--batches 256,100] [--precisions fp32,bf16] [--rounds 5]
    python benchmarks/aes_rl.py batched [--steps 20000] [--rounds 3]
    python benchmarks/aes_rl.py utilisation [--workers 1,2,5,10,20,50] [--individuals 1000]
    python benchmarks/aes_rl.py ages [--individuals 150] [--runs 8]
    python benchmarks/aes_rl.py clock [--learners AES-RL,ACEM-RL] [--env_ids Swimmer-v4] [--seeds 3]
    python benchmarks/aes_rl.py cores [--steps 30000] [--rounds 3]

`costs`, `actors` and `batched` measure one process on one core, in turns; only ratios within a
round are compared. `utilisation` plays environments that do nothing but sleep, in worker processes:
two cores suffice. So does `ages`: it asks whether the order of events on the virtual clock is that
of worker processes, if updates cost there what they were measured to cost. `clock` replays the
virtual clock with updates that are counted and not computed: how many updates had the critics
against which each individual learned? `cores` compares one actor and one critic worker in processes
of their own with the same on the virtual clock. Learning is compared by
`benchmarks/learning_curves.py`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from rows import environment, make_parser
from scipy import stats

from erl.cli import exit_after
from erl.executors.jobs import ONE_THREAD

ENV_ID, HIDDEN, WORKERS = "HalfCheetah-v4", (400, 300), 5


class Sleeping(gym.Env):
    """An episode of a few steps that takes `unit` to 10 `unit` seconds, drawn from its seed."""

    observation_space = spaces.Box(-1.0, 1.0, (2,))
    action_space = spaces.Box(-1.0, 1.0, (1,))
    unit, steps = 0.2 / 5.5, 4

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self._step_seconds = self.unit * self.np_random.uniform(1.0, 10.0) / self.steps
        self._t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        time.sleep(self._step_seconds)
        self._t += 1
        return np.zeros(2, np.float32), float(action[0]), self._t == self.steps, False, {}


class Pausing(Sleeping):
    """An episode of 10 to 50 steps, drawn from its seed, each of which takes `pause` seconds."""

    def __init__(self, pause: float) -> None:
        self.pause = pause

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        observation, info = super().reset(seed=seed)
        self.steps, self._step_seconds = int(self.np_random.integers(10, 51)), self.pause
        return observation, info


gym.register("Sleeping-v0", lambda **_: Sleeping())
gym.register("Pausing-v0", lambda **_: Pausing(0.01))
gym.register("Pausing-virtual-v0", lambda **_: Pausing(0.0))


def at_work(learner: str, env_id: str, steps: int, seed: int = 0, **settings: Any) -> Any:
    """An algorithm at work on a lifetime."""
    from erl.learners import Outputs, get_learner
    from erl.learners.core.run import Run
    from erl.worlds.ledger import Ledger
    from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
    from erl.worlds.tasks import Task

    seeds = Seeds.derive(0, "single", seed)
    spec = LifetimeSpec(Task(env_id), LearnerSpec(learner, settings), steps, seeds)
    implementation = get_learner(learner)
    implementation.check(spec)
    read = implementation.settings.from_learner_config(settings, env_id)  # type: ignore[attr-defined]
    return implementation.algorithm(Run([spec], [Ledger()], [Outputs()], [read]))  # type: ignore[attr-defined]


def seconds_of(run: Callable[[], object], times: int) -> float:
    """Of one call, in processor time: others may use the machine too."""
    run()
    start = time.process_time()
    for _ in range(times):
        run()
    return (time.process_time() - start) / times


# -- costs, and actors in one batch --


def filled_bench(batch: int, precision: str) -> tuple[Any, Any, Any]:
    """A bench whose buffer holds two episodes, the genes and the critics."""
    from erl.executors.virtual_clock import WorkerJob
    from erl.learners.core.bench import Play

    work = at_work(
        "AES-RL", ENV_ID, 10**6, batch_size=batch, precision=precision, actor_workers=WORKERS
    )
    genes = work.distribution.mean
    for seed in range(2):
        play = Play(0, genes, seed, random=seed)
        work.bench.play([WorkerJob("play", play)], None)
        work.bench.receive(play.episode)
    return work.bench, genes, work.critics


def measure_play() -> float:
    """Seconds of a step of one worker."""
    from erl.executors.virtual_clock import WorkerJob
    from erl.learners.core.bench import Play

    bench, genes, _ = filled_bench(256, "fp32")
    numbers = iter(range(100))

    def run() -> None:
        bench.play([WorkerJob("play", Play(0, genes, next(numbers)))], None)

    return seconds_of(run, 3) / 1000


def measure_actors(batch: int, precision: str, n: int) -> float:
    """Seconds of an update of one of n actors that learn at the same time."""
    from erl.executors.virtual_clock import WorkerJob
    from erl.learners.core.bench import TrainActor

    bench, genes, critics = filled_bench(batch, precision)
    first = critics[0].view(2, -1)[0].numpy()
    jobs = [WorkerJob("train_actor", TrainActor(k, genes, first, k), 10**6) for k in range(n)]
    return seconds_of(lambda: bench.train_actors(jobs, [20] * n), 5) / (20 * n)


def measure_critics(batch: int, precision: str) -> float:
    """Seconds of an update of the critics."""
    from erl.executors.virtual_clock import WorkerJob
    from erl.learners.core.bench import TrainCritics

    bench, genes, critics = filled_bench(batch, precision)
    job = WorkerJob("train_critics", TrainCritics(WORKERS, critics, genes, 0), 10**6)
    return seconds_of(lambda: bench.train_critics([job], [20]), 5) / 20


def measure_sb3(batch: int, of_critic: bool) -> float:
    """Seconds of an actor's update with Stable-Baselines3's networks and autograd, in which the
    minibatch is given.

    Args:
        batch: its size.
        of_critic: whether gradients of the critic's weights are computed too. Stable-Baselines3
            does so, and does not use them.
    """
    import torch

    from erl.learners.core.export import PlainPolicy

    bench, _, _ = filled_bench(batch, "fp32")
    o, *_, a = bench.sizes
    boxes = spaces.Box(-np.inf, np.inf, (o,)), spaces.Box(-1.0, 1.0, (a,))
    policy: Any = PlainPolicy(*boxes, lambda _: 1e-3, net_arch=list(HIDDEN))
    adam = torch.optim.Adam(policy.actor.parameters(), 1e-3)
    policy.critic.requires_grad_(of_critic)
    seen = torch.randn(batch, o)

    def run() -> None:
        loss = -policy.critic.q1_forward(seen, policy.actor(seen)).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()

    return seconds_of(run, 60)


def measure_limit(batch: int) -> float:
    """Seconds of the matrix products that an actor's update requires, in single precision, each as
    fast as PyTorch multiplies its shape.
    """
    import torch

    o, a = 17, 6

    def best(m: int, k: int, n: int) -> float:
        x, y, xt, yt = (torch.randn(*s) for s in ((m, k), (k, n), (k, m), (n, k)))
        ways = [
            lambda: x @ y,
            lambda: x @ yt.t(),
            lambda: xt.t() @ y,
            lambda: yt @ x.t(),
            lambda: yt @ xt,
            lambda: y.t() @ x.t(),
        ]
        times = max(3, int(1e8 / (2 * m * k * n)))
        return min(seconds_of(way, times) for way in ways for _ in range(2))

    actor = list(zip((o, *HIDDEN), (*HIDDEN, a)))
    critic = list(zip((o + a, *HIDDEN), (*HIDDEN, 1)))
    forward = [(batch, i, j) for net in (actor, critic) for i, j in net]
    by_inputs = [(batch, j, i) for net in (actor, critic) for i, j in net[1:]]
    by_inputs.append((batch, HIDDEN[0], a))
    by_weights = [(i, batch, j) for i, j in actor]
    with torch.inference_mode():
        return sum(best(*shape) for shape in forward + by_inputs + by_weights)


def measure_batched(env_id: str, steps: int, hidden: tuple[int, ...], batched: bool) -> float:
    """Seconds of a step of CEM-RL, in whole generations that learn."""
    order = "batched" if batched else "in-turn"
    settings: dict[str, Any] = {"hidden": hidden, "learning_starts": 1, "order": order}
    work = at_work("CEM-RL", env_id, 10**8, **settings)
    try:
        while work.generations < 2:  # one at random, and one that learns: all is imported
            work.iterate()
        first, start = work.ledger.steps, time.process_time()
        while work.ledger.steps < first + steps:
            begun = work.generations
            while work.generations == begun:
                work.iterate()
        return (time.process_time() - start) / (work.ledger.steps - first)
    finally:
        work.close()


def child(what: str, *arguments: str, cores: int | None = 1) -> Any:
    """A measurement in a process of its own.

    Args:
        what: one of `CHILDREN`.
        arguments: of it.
        cores: on so many; None for all.
    """
    usable = sorted(os.sched_getaffinity(0))[:cores]
    done = subprocess.run(
        [sys.executable, __file__, "--child", what, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, **ONE_THREAD},
        preexec_fn=lambda: os.sched_setaffinity(0, usable),
    )
    return json.loads(done.stdout.splitlines()[-1])


CHILDREN: dict[str, Callable[..., Any]] = {
    "play": measure_play,
    "actors": lambda batch, precision, n: measure_actors(int(batch), precision, int(n)),
    "critics": lambda batch, precision: measure_critics(int(batch), precision),
    "sb3": lambda batch, of: measure_sb3(int(batch), of == "of critic too"),
    "limit": lambda batch: measure_limit(int(batch)),
    "batched": lambda env_id, steps, hidden, batched: measure_batched(
        env_id, int(steps), tuple(map(int, hidden.split(","))), batched == "batched"
    ),
    "ages": lambda executor, workers, individuals, run, *costs: ages_of(
        executor, int(workers), int(individuals), int(run), *map(float, costs)
    ),
    "cores": lambda executor, steps: aes_rl_seconds(executor, int(steps)),
}


def costs(arguments: argparse.Namespace) -> None:
    """What an update costs in steps: the defaults of `actor_update_cost`, `critic_update_cost`."""
    kinds = {
        "step": ("play",),
        "actor update": ("actors", "256", "fp32", "1"),
        "critic update": ("critics", "256", "fp32"),
    }
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(arguments.rounds):
        for kind, words in kinds.items():
            found[kind].append(child(*words))
    print(f"{ENV_ID}, {HIDDEN}, minibatches of 256, one core; median of {arguments.rounds}")
    for kind, seconds in found.items():
        steps = [s / step for s, step in zip(seconds, found["step"])]
        spread = f"[{min(steps):.1f}, {max(steps):.1f}]"
        print(f"{kind:14s} {1e6 * median(seconds):8.0f} us  {median(steps):6.1f} steps {spread}")


def actors(arguments: argparse.Namespace) -> None:
    """Updates of actors a second, in one batch and one after the other."""
    for batch in arguments.batches.split(","):
        kinds: dict[str, tuple[str, ...]] = {
            "limit, fp32": ("limit", batch),
            "Stable-Baselines3": ("sb3", batch, "of critic too"),
            "without its idle gradients": ("sb3", batch, "of actor"),
        }
        for precision in arguments.precisions.split(","):
            for n in (1, WORKERS):
                kinds[f"{n} at a time, {precision}"] = ("actors", batch, precision, str(n))
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(arguments.rounds):
            for kind, words in kinds.items():
                found[kind].append(child(*words))
        print(f"\n{HIDDEN}, minibatches of {batch}, one core, {arguments.rounds} rounds")
        print("| | updates/s | x Stable-Baselines3 | of the limit |\n|---|---|---|---|")
        for kind, seconds in found.items():
            by_sb3 = sorted(b / a for a, b in zip(seconds, found["Stable-Baselines3"]))
            share = median(b / a for a, b in zip(seconds, found["limit, fp32"]))
            print(
                f"| {kind} | {1 / median(seconds):,.0f} | {median(by_sb3):.2f} "
                f"[{by_sb3[0]:.2f}, {by_sb3[-1]:.2f}] | {share:.2f} |"
            )


def batched(arguments: argparse.Namespace) -> None:
    """Steps a second of CEM-RL, and of CEM-RL whose individuals learn side by side."""
    found: dict[str, list[float]] = {"in turn": [], "batched": []}
    for _ in range(arguments.rounds):
        for kind, seconds in found.items():
            words = (arguments.env_id, str(arguments.steps), arguments.hidden, kind)
            seconds.append(child("batched", *words))
    print(f"CEM-RL, {arguments.env_id}, [{arguments.hidden}], one core, {arguments.rounds} rounds")
    print("| | steps/s | x in turn |\n|---|---|---|")
    for kind, seconds in found.items():
        ratios = sorted(b / a for a, b in zip(seconds, found["in turn"]))
        print(
            f"| {kind} | {1 / median(seconds):,.1f} | {median(ratios):.2f} "
            f"[{ratios[0]:.2f}, {ratios[-1]:.2f}] |"
        )


# -- workers --


def sleeping(learner: str, workers: int, individuals: int) -> tuple[float, float, int]:
    """Share of time in which workers sleep in episodes, seconds until so many individuals are told,
    and all episodes that were played meanwhile, the mean's among them.
    """
    settings: dict[str, Any] = {
        "hidden": [8],
        "learning_starts": 0,
        "actor_executor": "processes",
        "actor_workers": workers,
    }
    if learner == "P-CEM-RL":
        settings |= {"rl_population": 0, "population_size": max(10, workers)}
    else:
        settings |= {"rl_ratio": 0.0, "mean_evaluations": 1, "mean_update_param": 1.0}
    work = at_work(learner, "aes_rl:Sleeping-v0", Sleeping.steps * 10**6, **settings)
    slept, seconds = 0.0, 0.0
    try:
        played = 0
        started = set[int]()
        given = work.workers._next_job

        def note(worker: int, ended: Any) -> Any:
            nonlocal played, slept
            if ended is not None and hasattr(ended.data, "episode"):
                started.add(worker)
                played += 1
                rng = gym.utils.seeding.np_random(ended.data.seed)[0]
                slept += Sleeping.unit * rng.uniform(1.0, 10.0)
            return given(worker, ended)

        work.workers._next_job = note
        while len(started) < workers:  # all have imported what they need
            work.iterate()
        played, slept = 0, 0.0
        start, first = time.perf_counter(), work.told
        while work.told < first + individuals:
            work.iterate()
        seconds = time.perf_counter() - start
    finally:
        work.close()
    return slept / (seconds * workers), seconds, played


def utilisation(arguments: argparse.Namespace) -> None:
    """How busy actor workers are."""
    n, mean = arguments.individuals, 5.5 * Sleeping.unit
    print(f"episodes of {Sleeping.unit:.3f} to {10 * Sleeping.unit:.3f} s, {mean:g} s on average")
    print(
        f"| workers | learner | busy | seconds for {n:,} individuals | episodes | ideal seconds |"
    )
    print("|---|---|---|---|---|---|")
    for workers in map(int, arguments.workers.split(",")):
        for learner in ("AES-RL", "P-CEM-RL"):
            busy, seconds, episodes = sleeping(learner, workers, n)
            print(
                f"| {workers} | {learner} | {100 * busy:.1f} % | {seconds:,.1f} | {episodes:,} | "
                f"{episodes * mean / workers:,.1f} |",
                flush=True,
            )


# Of AES-RL in `ages`: updates that are cheap beside the pauses, so that workers do not wait for
# cores.
AGES = {
    "hidden": [16],
    "batch_size": 16,
    "learning_starts": 200,
    "mean_evaluations": 1,
    "mean_update_param": 1.0,
    "critic_job": 20,
}
MEASURES = {
    "age_rl": "mean age of RL individuals",
    "age_es": "mean age of ES individuals",
    "rl": "share of RL individuals",
    "critic": "updates of the critics for each step of individuals",
}


def ages_of(executor: str, workers: int, individuals: int, run: int, *costs: float) -> Any:
    """The order of events in one run, once learning has begun; and seconds of a step, an actor's
    update and a critic's update.
    """
    names = ("actor_update_cost", "critic_update_cost")
    settings = AGES | {"actor_executor": executor, "actor_workers": workers}
    env_id = f"aes_rl:Pausing{'-virtual' * (executor == 'lockstep')}-v0"
    work = at_work("AES-RL", env_id, 10**7, run, **settings, **dict(zip(names, costs)))
    given, since = work.workers._next_job, dict[int, float]()
    spent = {kind: [0.0, 0] for kind in ("play", "train_actor", "train_critics")}

    def note(worker: int, ended: Any) -> Any:
        now = time.perf_counter()
        if ended is not None:
            units = ended.units or len(ended.data.episode.rewards)
            spent[ended.kind][0] += now - since[worker]
            spent[ended.kind][1] += units
        job = given(worker, ended)
        since[worker] = time.perf_counter()
        return job

    try:
        work.workers._next_job = note
        while not work.learns:
            work.iterate()
        # Those that began at random, and workers that had to start, are over.
        first = work.told + 3 * workers
        while work.told < first:
            work.iterate()
        updates, steps = work.critic_updates, work.stored_steps
        for total in spent.values():
            total[:] = 0.0, 0
        while work.told < first + individuals:
            work.iterate()
        rows = work.ledger.notes()["kept"]
        kinds, ages = np.array(rows["kind"][first:]), np.array(rows["age"][first:])
        return {
            "age_rl": float(ages[kinds == "RL"].mean()),
            "age_es": float(ages[kinds == "ES"].mean()),
            "rl": float((kinds == "RL").mean()),
            "critic": (work.critic_updates - updates) / (work.stored_steps - steps),
            "seconds": {kind: seconds / units for kind, (seconds, units) in spent.items()},
        }
    finally:
        work.close()


def ages(arguments: argparse.Namespace) -> None:
    """Do worker processes overtake each other as on the virtual clock?"""
    n, words = arguments.runs, (str(arguments.workers), str(arguments.individuals))
    real = [child("ages", "processes", *words, str(k), cores=None) for k in range(n)]
    seconds = {kind: median(r["seconds"][kind] for r in real) for kind in real[0]["seconds"]}
    costs = [seconds[kind] / seconds["play"] for kind in ("train_actor", "train_critics")]
    words_of_costs = [f"{cost:.4f}" for cost in costs]
    virtual = [child("ages", "lockstep", *words, str(n + k), *words_of_costs) for k in range(n)]
    print(
        f"{arguments.workers} actor workers, {n} runs of {arguments.individuals} individuals; "
        f"measured: a step {1000 * seconds['play']:.1f} ms, an actor's update {costs[0]:.3f} steps "
        f"and a critics' update {costs[1]:.3f} steps\n"
    )
    print("| | processes | virtual clock | difference [95 % interval] |\n|---|---|---|---|")
    for name, title in MEASURES.items():
        there, here = ([row[name] for row in rows] for rows in (real, virtual))
        low, high = stats.ttest_ind(there, here, equal_var=False).confidence_interval()
        means = [float(np.mean(values)) for values in (there, here)]
        print(
            f"| {title} | {means[0]:.3f} | {means[1]:.3f} | "
            f"{means[0] - means[1]:.3f} [{low:.3f}, {high:.3f}] |"
        )


# -- the virtual clock --


def replay(learner: str, env_id: str, steps: int, seed: int, **settings: Any) -> dict[str, Any]:
    """A run whose updates change nothing: what it counts, where all episodes are equally long and
    no update depends on what was learned.
    """
    from erl.learners.core.bench import Bench

    def counted(_: Bench, jobs: Any, counts: Any) -> None:
        for job, count in zip(jobs, counts):
            job.data.done += count

    updates = dict[int, int]()
    with (
        mock.patch.object(Bench, "train_actors", counted),
        mock.patch.object(Bench, "train_critics", counted),
    ):
        work = at_work(learner, env_id, steps, seed, **settings)
        train = work.train

        def note(worker: int, individual: Any, *words: Any) -> Any:
            updates[individual.number] = work.critic_updates
            return train(worker, individual, *words)

        work.train = note
        try:
            while not work.run.spent():
                work.iterate()
            rows = work.ledger.notes()["kept"]
            of_rl = [n for n, k in zip(rows["individual"], rows["kind"]) if k == "RL"]
            return {
                "told": work.told,
                "begun": len(updates),
                "learned": [updates[n] for n in of_rl if n in updates],
                "critics": work.critic_updates,
                "stored": work.stored_steps,
                "clock": work.workers.clock,
            }
        finally:
            work.close()


def clock(arguments: argparse.Namespace) -> None:
    """How far the critics are when individuals learn, on the virtual clock."""
    print(f"{arguments.steps:,} counted steps, {arguments.seeds} seeds: [least, greatest]\n")
    print(
        "| environment | learner | individuals | began to learn | ended, and were told | critics' "
        "updates when these began, median | critics' updates in the end | stored steps | million "
        "ticks |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for env_id in [environment(name) for name in arguments.env_ids.split(",")]:
        for learner in arguments.learners.split(","):
            runs = [replay(learner, env_id, arguments.steps, k) for k in range(arguments.seeds)]
            cells = [f"{spread([r[name] for r in runs])}" for name in ("told", "begun")]
            cells += [spread([len(r["learned"]) for r in runs])]
            behind = [updates for r in runs for updates in r["learned"]]
            cells += [f"{spread(behind)}, {median(behind):,.0f}" if behind else "-"]
            cells += [spread([r[name] for r in runs]) for name in ("critics", "stored")]
            cells += [spread([r["clock"] / 1e6 for r in runs], ".2f")]
            print(f"| {env_id} | {learner} | {' | '.join(cells)} |", flush=True)


def spread(values: list[Any], how: str = ",.0f") -> str:
    """Least and greatest."""
    low, high = format(min(values), how), format(max(values), how)
    return low if low == high else f"[{low}, {high}]"


def aes_rl_seconds(executor: str, steps: int) -> dict[str, float]:
    """Seconds of a training, after the random steps, and of its workers."""
    work = at_work(
        "AES-RL",
        ENV_ID,
        10**7,
        actor_executor=executor,
        actor_workers=1,
        learning_starts=2000,
        mean_evaluations=1,
    )
    try:
        while work.stored_steps < 3000:
            work.iterate()
        first, updates = work.ledger.steps, work.critic_updates
        busy, start = list(work.workers.busy), time.perf_counter()
        while work.ledger.steps < first + steps:
            work.iterate()
        seconds = time.perf_counter() - start
        actor, critic = (b - a for a, b in zip(busy, work.workers.busy))
        return {
            "steps_per_second": (work.ledger.steps - first) / seconds,
            "critic_updates": work.critic_updates - updates,
            "actor": actor,
            "critic": critic,
            "seconds": seconds,
        }
    finally:
        work.close()


def cores(arguments: argparse.Namespace) -> None:
    """One actor and one critic worker, on two cores and on one."""
    print("| round | executor | counted steps/s | critic updates | actor s | critic s |")
    print("|---|---|---|---|---|---|")
    ratios = []
    for k in range(arguments.rounds):
        rates = []
        for executor, n in (("lockstep", 1), ("processes", 2)):
            row = child("cores", executor, str(arguments.steps), cores=n)
            rates.append(row["steps_per_second"])
            times = [f"{row[name]:.1f}" if n == 2 else "" for name in ("actor", "critic")]
            print(
                f"| {k} | {executor} | {rates[-1]:,.1f} | {row['critic_updates']:,} | "
                f"{times[0]} | {times[1]} |",
                flush=True,
            )
        if not min(row["actor"], row["critic"]):
            raise SystemExit("no job of both workers ended within these steps: more are needed")
        bound = (row["actor"] + row["critic"]) / max(row["actor"], row["critic"])
        ratios.append((rates[1] / rates[0], bound))
    print(f"\nratio {median(r for r, _ in ratios):.2f}, bound {median(b for _, b in ratios):.2f}")


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        import torch

        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        what, *words = sys.argv[2:]
        print(json.dumps(CHILDREN[what](*words)))
        return
    parser = make_parser(__doc__)
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("costs")
    part.add_argument("--rounds", type=int, default=5)
    part.set_defaults(do=costs)
    part = parts.add_parser("actors")
    part.add_argument("--batches", default="256,100")
    part.add_argument("--precisions", default="fp32,bf16")
    part.add_argument("--rounds", type=int, default=5)
    part.set_defaults(do=actors)
    part = parts.add_parser("batched")
    part.add_argument("--env_id", type=environment, default=ENV_ID)
    part.add_argument("--hidden", default=",".join(map(str, HIDDEN)))
    part.add_argument("--steps", type=int, default=20_000)
    part.add_argument("--rounds", type=int, default=3)
    part.set_defaults(do=batched)
    part = parts.add_parser("utilisation")
    part.add_argument("--workers", default="1,2,5,10,20,50")
    part.add_argument("--individuals", type=int, default=1000)
    part.set_defaults(do=utilisation)
    part = parts.add_parser("ages")
    part.add_argument("--workers", type=int, default=3)
    part.add_argument("--individuals", type=int, default=150)
    part.add_argument("--runs", type=int, default=8)
    part.set_defaults(do=ages)
    part = parts.add_parser("clock")
    part.add_argument("--learners", default="AES-RL,ACEM-RL,(1+1)-ES")
    part.add_argument("--env_ids", default="HalfCheetah-v4,Swimmer-v4")
    part.add_argument("--steps", type=int, default=200_000)
    part.add_argument("--seeds", type=int, default=3)
    part.set_defaults(do=clock)
    part = parts.add_parser("cores")
    part.add_argument("--steps", type=int, default=30_000)
    part.add_argument("--rounds", type=int, default=3)
    part.set_defaults(do=cores)
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    exit_after(main)
