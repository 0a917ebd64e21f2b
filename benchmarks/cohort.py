"""Agent-steps per second of cohorts of PPO agents with reservoirs, beside Stable-Baselines3's
engine and raw physics.

    python benchmarks/cohort.py                      # everything, one core, then two
    python benchmarks/cohort.py --sizes 21 --rounds 5

One process for each measurement, all in one run and in turns (machines drift: only ratios within a
round are compared; the table shows medians over the rounds). A measurement covers whole rollouts
with their updates, after a first one.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from statistics import median

from rows import environment, make_parser

from erl.cli import exit_after
from erl.executors.jobs import ONE_THREAD

PARTS = ("physics", "reservoir", "policy", "update", "rest")


def specs(n: int, env_id: str, units: int, engine: str) -> list:
    from erl.worlds.reservoirs import Context, ReservoirParams
    from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
    from erl.worlds.tasks import Task

    context = Context((ReservoirParams(units=units, sr=0.9, lr=0.3),)) if units else None
    return [
        LifetimeSpec(
            Task(env_id),
            LearnerSpec("PPO", {}, engine),
            10**9,
            Seeds.derive(0, "single", i),
            context,
        )
        for i in range(n)
    ]


class Enough(Exception):
    """The measurement is complete."""


def measure_sb3(env_id: str, units: int, rollouts: int) -> dict:
    """One agent, the `sb3` engine."""
    from erl.learners import Outputs
    from erl.learners.sb3 import SB3Learner
    from erl.worlds.ledger import Ledger

    times: dict[int, float] = {}

    def on_step(steps: int) -> None:
        times[steps] = time.perf_counter()
        # From the same point of two rollouts: as many updates as rollouts lie between.
        if steps == 2048 * (rollouts + 1) + 256:
            raise Enough

    SB3Learner("PPO").train(specs(1, env_id, units, "sb3"), [Ledger(on_step=on_step)], [Outputs()])
    seconds = times[2048 * (rollouts + 1) + 256] - times[2048 + 256]
    return {"rate": rollouts * 2048 / seconds}


def measure_cohort(n: int, env_id: str, units: int, rollouts: int) -> dict:
    """`n` agents in lockstep, and where the time goes, in microseconds per agent-step."""
    import resource

    from erl.learners import Outputs
    from erl.learners.core.run import Run
    from erl.learners.ppo.learner import PPOTraining
    from erl.learners.ppo.settings import PPOSettings
    from erl.worlds.ledger import Ledger

    cohort = specs(n, env_id, units, "cohort")
    ledgers = [Ledger() for _ in cohort]
    training = PPOTraining(Run(cohort, ledgers, [Outputs()] * n, [PPOSettings()] * n))
    spent = dict.fromkeys(PARTS, 0.0)

    def timed(part: str, owner: object, name: str) -> None:
        function = getattr(owner, name)

        def wrapper(*arguments: object) -> object:
            start = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                spent[part] += time.perf_counter() - start

        setattr(owner, name, wrapper)

    timed("physics", training.world._lockstep, "step")
    if training.world._encoder is not None:
        timed("reservoir", training.world._encoder, "step")
    timed("policy", training.ppo, "act")
    timed("policy", training.ppo, "record")
    timed("update", training.ppo, "update")
    training.start()

    def round_trip() -> None:
        training.roll_out()
        training.update()

    round_trip()
    for part in PARTS:
        spent[part] = 0.0
    start = time.perf_counter()
    for _ in range(rollouts):
        round_trip()
    seconds = time.perf_counter() - start
    spent["rest"] = seconds - sum(spent.values())
    total = n * rollouts * training.n_steps
    return {
        "rate": total / seconds,
        "parts": {k: v / total * 1e6 for k, v in spent.items()},
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure_physics(env_id: str, rollouts: int) -> dict:
    """`mj_step` alone, random controls, 21 environments in turn."""
    import mujoco
    import numpy as np

    from erl.worlds.tasks import Task, make_env

    envs: list = [make_env(Task(env_id)).unwrapped for _ in range(21)]
    for i, env in enumerate(envs):
        env.reset(seed=i)
    controls = np.random.default_rng(0).uniform(-1, 1, (2048, len(envs), envs[0].model.nu))
    start = time.perf_counter()
    for _ in range(max(1, rollouts // 2)):
        for row in controls:
            for control, env in zip(row, envs):
                env.data.ctrl[:] = control
                mujoco.mj_step(env.model, env.data, env.frame_skip)
    return {
        "rate": max(1, rollouts // 2)
        * controls.shape[0]
        * len(envs)
        / (time.perf_counter() - start)
    }


def child(arguments: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(1)
    what = arguments.child
    if what == "sb3":
        result = measure_sb3(arguments.env_id, arguments.units, arguments.rollouts)
    elif what == "physics":
        result = measure_physics(arguments.env_id, arguments.rollouts)
    else:
        result = measure_cohort(int(what), arguments.env_id, arguments.units, arguments.rollouts)
    print(json.dumps(result))


def start(what: str, arguments: argparse.Namespace, core: int) -> subprocess.Popen:
    command = [sys.executable, __file__, "--child", what, "--env_id", arguments.env_id]
    command += ["--units", str(arguments.units), "--rollouts", str(arguments.rollouts)]
    pin = (lambda: os.sched_setaffinity(0, {core})) if hasattr(os, "sched_setaffinity") else None
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **ONE_THREAD},
        preexec_fn=pin,
    )


def finish(process: subprocess.Popen) -> dict:
    out, error = process.communicate()
    if process.returncode:
        sys.exit(error)
    return json.loads(out.splitlines()[-1])


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--env_id", type=environment, default="HalfCheetah-v4")
    parser.add_argument(
        "--units", type=int, default=100, help="neurons of the reservoir; 0 for none"
    )
    parser.add_argument("--sizes", default="1,3,6,12,21,42")
    parser.add_argument("--rollouts", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    sizes = [int(s) for s in arguments.sizes.split(",")]
    kinds = ["physics", "sb3", *map(str, sizes)]
    pair = "21" if 21 in sizes else str(sizes[-1])
    found: dict[str, list[dict]] = {k: [] for k in kinds}
    pairs: list[tuple[float, float]] = []
    for _ in range(arguments.rounds):
        for kind in kinds:
            found[kind].append(finish(start(kind, arguments, cores[0])))
        if len(cores) > 1:
            two = [start(pair, arguments, core) for core in cores[:2]]
            pairs.append((sum(finish(p)["rate"] for p in two), found[pair][-1]["rate"]))

    def ratio(kind: str, base: str) -> float:
        return median(a["rate"] / b["rate"] for a, b in zip(found[kind], found[base]))

    print(
        f"{arguments.env_id}, {arguments.units} units, one core, median of {arguments.rounds} "
        f"rounds"
    )
    print(
        f"{'':10s} {'steps/s':>9s} {'x sb3':>6s} {'/physics':>8s}   "
        + " ".join(f"{p:>9s}" for p in PARTS)
        + "   us per agent-step"
    )
    for kind in kinds:
        rate = median(f["rate"] for f in found[kind])
        parts = ""
        if "parts" in found[kind][0]:
            parts = " ".join(f"{median(f['parts'][p] for f in found[kind]):9.1f}" for p in PARTS)
        name = f"cohort {kind}" if kind.isdigit() else kind
        print(
            f"{name:10s} {rate:9,.0f} {ratio(kind, 'sb3'):6.2f} {ratio(kind, 'physics'):8.2f}   "
            f"{parts}"
        )
    if len(sizes) > 1:
        grown = found[str(sizes[-1])][0]["megabytes"] - found[str(sizes[0])][0]["megabytes"]
        print(f"memory per added agent: {grown / (sizes[-1] - sizes[0]):.1f} MB")
    if pairs:
        print(
            f"two processes on two cores, {pair} agents each: "
            f"{median(a / b for a, b in pairs):.2f} x one core"
        )


if __name__ == "__main__":
    exit_after(main)
