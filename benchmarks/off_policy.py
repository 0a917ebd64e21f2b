"""Agent-steps per second of cohorts of TD3 and SAC agents, beside Stable-Baselines3's engine and
the limit that matrix products set.

    python benchmarks/off_policy.py                       # everything, one core
    python benchmarks/off_policy.py --algorithms TD3 --nets 256x256x256 --sizes 1,12 --rounds 5
    python benchmarks/off_policy.py --device cuda --nets 256x256x256

A net is WIDTHxWIDTHxBATCH. One process for each measurement, pinned to one core, in turns (machines
drift: only ratios within a round are compared; the table shows medians over the rounds and their
spread). Every agent learns at every step; measured is what comes after the random steps. On a CPU
the seconds are those of the process, which has one thread: other processes lengthen them little.

The limit is the time of the matrix products that an update requires, each at its shape and as fast
as PyTorch multiplies it in single precision on that core in that round. Stepping environments,
acting and everything else count against the share.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

from rows import environment, make_parser

from erl.cli import exit_after
from erl.executors.jobs import ONE_THREAD

STARTS = 300  # random steps
clock = time.process_time


def spec(arguments: argparse.Namespace, index: int, engine: str):
    from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
    from erl.worlds.tasks import Task

    *widths, batch = map(int, arguments.net.split("x"))
    config = {
        "batch_size": batch,
        "learning_starts": STARTS,
        "policy_kwargs": {"net_arch": list(widths)},
        "buffer_size": 100_000,
    }
    if engine == "cohort":
        config |= {"device": arguments.device, "precision": arguments.precision}
    seeds = Seeds.derive(0, "single", index)
    learner = LearnerSpec(arguments.algorithm, config, engine)
    return LifetimeSpec(Task(arguments.env_id), learner, 10**6, seeds)


class Enough(Exception):
    """The measurement is complete."""


def measure_sb3(arguments: argparse.Namespace) -> float:
    """Steps per second of Stable-Baselines3's engine."""
    from erl.learners import Outputs
    from erl.learners.sb3 import SB3Learner
    from erl.worlds.ledger import Ledger

    begun: list[tuple[int, float]] = []

    class Watched(Ledger):
        def step(self, n: int = 1) -> None:
            super().step(n)
            if self.steps >= STARTS + 30:
                begun.append((self.steps, clock()))
                if begun[-1][1] - begun[0][1] > arguments.seconds:
                    raise Enough

    lifetime = spec(arguments, 0, "sb3")
    # It gives back what stopped it.
    SB3Learner(arguments.algorithm).train([lifetime], [Watched()], [Outputs()])
    (first, start), (last, end) = begun[0], begun[-1]
    return (last - first) / (end - start)


def measure_cohort(arguments: argparse.Namespace, n: int) -> float:
    """Steps per second of all agents of a cohort together."""
    from erl.learners import Outputs, get_learner
    from erl.learners.core.off_policy_training import OffPolicyLearner, OffPolicyTraining
    from erl.learners.core.run import Run
    from erl.worlds.ledger import Ledger

    cohort = [spec(arguments, i, "cohort") for i in range(n)]
    learner = get_learner(arguments.algorithm, "cohort")
    assert isinstance(learner, OffPolicyLearner)
    settings = [learner.settings.from_learner_config(each.learner.config) for each in cohort]
    run = Run(cohort, [Ledger() for _ in cohort], [Outputs()] * n, settings)
    training = OffPolicyTraining(run, learner.cohort)
    training.start()
    for _ in range(STARTS + 30):
        training.iterate()
    start, ticks = clock(), 0
    while (seconds := clock() - start) < arguments.seconds or ticks % 2:
        training.iterate()
        ticks += 1
    return n * ticks / seconds


def products(algorithm: str, net: str, o: int, a: int) -> list[tuple[float, int, int, int]]:
    """Matrix products of one update: how often on average, and rows, inner dimension, columns."""
    *hidden, batch = map(int, net.split("x"))

    def layers(inputs: int, outputs: int) -> list[tuple[int, int]]:
        return list(zip([inputs, *hidden], [*hidden, outputs]))

    def forward(times: float, net: list[tuple[int, int]]) -> list:
        return [(times, batch, i, j) for i, j in net]

    def by_weights(times: float, net: list[tuple[int, int]]) -> list:
        return [(times, i, batch, j) for i, j in net]

    def by_inputs(times: float, net: list[tuple[int, int]], first: int = 0) -> list:
        """Of all layers but the first, and of some of the first one's inputs."""
        rest = [(times, batch, j, i) for i, j in net[1:]]
        return rest + ([(times, batch, net[0][1], first)] if first else [])

    critic = layers(o + a, 1)
    critics = forward(4, critic) + by_weights(2, critic) + by_inputs(2, critic)
    if algorithm == "SAC":
        actor = layers(o, 2 * a)
        # Each row of a minibatch goes back through the smaller one of its critics alone.
        return (
            critics
            + forward(2, actor)
            + forward(2, critic)
            + by_inputs(1, critic, a)
            + by_weights(1, actor)
            + by_inputs(1, actor)
        )
    actor = layers(o, a)
    return (
        critics
        + forward(1.5, actor)
        + forward(0.5, critic)
        + by_inputs(0.5, critic, a)
        + by_weights(0.5, actor)
        + by_inputs(0.5, actor)
    )


def measure_limit(arguments: argparse.Namespace) -> float:
    """Updates per second if there were nothing but the required products."""
    import torch

    def ways(m: int, k: int, n: int) -> list[Callable[[], object]]:
        a, b, c, d = (torch.randn(*s) for s in ((m, k), (k, n), (k, m), (n, k)))
        out, turned = torch.empty(m, n), torch.empty(n, m)
        return [
            lambda: torch.mm(a, b, out=out),
            lambda: torch.mm(a, d.t(), out=out),
            lambda: torch.mm(c.t(), b, out=out),
            lambda: torch.mm(d, a.t(), out=turned),
            lambda: torch.mm(d, c, out=turned),
            lambda: torch.mm(b.t(), a.t(), out=turned),
        ]

    def best(run: Callable[[], object], flops: float) -> float:
        repeats = max(3, int(2e8 / flops))
        times = []
        for _ in range(5):
            start = clock()
            for _ in range(repeats):
                run()
            times.append((clock() - start) / repeats)
        return min(times)

    seconds = 0.0
    known: dict[tuple[int, int, int], float] = {}
    for times, m, k, n in products(arguments.algorithm, arguments.net, 17, 6):
        if (m, k, n) not in known:
            with torch.inference_mode():
                known[m, k, n] = min(best(way, 2.0 * m * k * n) for way in ways(m, k, n))
        seconds += times * known[m, k, n]
    return 1.0 / seconds


def child(arguments: argparse.Namespace) -> None:
    import torch

    global clock
    if arguments.device != "cpu":
        clock = time.perf_counter
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if arguments.child == "sb3":
        rate = measure_sb3(arguments)
    elif arguments.child == "limit":
        rate = measure_limit(arguments)
    else:
        rate = measure_cohort(arguments, int(arguments.child))
    print(json.dumps(rate))


def measure(arguments: argparse.Namespace, what: str, algorithm: str, net: str) -> float:
    command = [sys.executable, __file__, "--child", what, "--algorithm", algorithm, "--net", net]
    for name in ("env_id", "seconds", "device", "precision"):
        command += [f"--{name}", str(getattr(arguments, name))]
    core = sorted(os.sched_getaffinity(0))[0] if hasattr(os, "sched_getaffinity") else 0
    pin = (lambda: os.sched_setaffinity(0, {core})) if hasattr(os, "sched_setaffinity") else None
    process = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, **ONE_THREAD},
        preexec_fn=pin,
    )
    return json.loads(process.stdout.splitlines()[-1])


def table(arguments: argparse.Namespace, algorithm: str, net: str, sizes: Sequence[str]) -> None:
    kinds = ["limit", "sb3", *sizes]
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(arguments.rounds):
        for kind in kinds:
            found[kind].append(measure(arguments, kind, algorithm, net))
    print(f"\n{algorithm}, {net}, {arguments.env_id}, {arguments.device}, {arguments.precision}")
    print(f"{'':10s} {'steps/s':>9s} {'spread':>15s} {'x sb3':>6s} {'of limit':>8s}")
    for kind in kinds:
        rates = found[kind]
        by_sb3 = median(a / b for a, b in zip(rates, found["sb3"]))
        share = median(a / b for a, b in zip(rates, found["limit"]))
        spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
        name = f"cohort {kind}" if kind.isdigit() else kind
        print(f"{name:10s} {median(rates):9,.0f} {spread:>15s} {by_sb3:6.2f} {share:8.2f}")
    sys.stdout.flush()


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--env_id", type=environment, default="HalfCheetah-v4")
    parser.add_argument("--algorithms", default="TD3,SAC")
    parser.add_argument("--nets", default="256x256x256,400x300x100,64x64x64")
    parser.add_argument("--sizes", default="1,3,6,12,21")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", help="of the cohorts: fp32 or bf16")
    for hidden in ("--child", "--algorithm", "--net"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    for algorithm in arguments.algorithms.split(","):
        for net in arguments.nets.split(","):
            table(arguments, algorithm, net, arguments.sizes.split(","))


if __name__ == "__main__":
    exit_after(main)
