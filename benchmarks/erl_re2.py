"""Updates per second of ERL-Re², beside the plain implementation and what the core's matrix
products allow, in one run.

    python benchmarks/erl_re2.py [--env_id HalfCheetah-v4] [--rounds 15] [--threads 1] [--device
    cpu]

One update is the whole of it at the published sizes and batch 128: the policies' value function,
the critics, every second time the RL head, the representation and the targets. `plain` is the
reference of the tests: separate networks, autograd, a policy encoded anew for every row. `limit` is
the rate at which the matrix products of 400 by 300 alone could be done. The contenders take turns,
so that the machine's load meets all of them; the figure of each is the median over the rounds of
its best stretch.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from erl.cli import exit_after

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy starts its threads
sys.path.append(str(Path(__file__).parent.parent / "tests"))

import numpy as np
import torch
from plain_erl_re2 import Plain
from rows import environment, make_parser
from stable_baselines3.common.preprocessing import get_action_dim
from torch import Tensor

from erl.learners.core.replay import ReplayBuffer
from erl.learners.erl_re2.settings import Re2Settings
from erl.learners.erl_re2.update import Draws, TwoScale, new_heads
from erl.networks.captured import Captured
from erl.worlds.tasks import Task, check_task

TRANSITIONS = 100_000
# Of 128 rows through 400 by 300, an update does this many: forward through the representation and
# its target, the twins of critic and policy value and their targets; backward by weights and by
# inputs through both twins; every second time forward through three networks and back.
PRODUCTS = 21.5


class Contender:
    """Something that makes updates, with its own minibatches; on a GPU as the learner makes them,
    from recorded graphs.
    """

    def __init__(
        self, update: Callable, buffer: ReplayBuffer, heads: torch.Tensor, actions: int, batch: int
    ) -> None:
        self.heads, self.k = heads, 0
        device = heads.device

        def captured(
            improve: bool, places: Tensor, noise: Tensor, evaluated: Tensor, ascending: Tensor
        ) -> dict[str, Tensor]:
            update(buffer.batch(places), Draws(noise, evaluated, ascending), improve)
            return {}

        self.update = Captured(captured, str(device))
        self.places = torch.randint(len(buffer), (1000, batch)).to(device)
        self.noise = torch.randn(1000, batch, actions).to(device)

    def __call__(self) -> None:
        """Two updates, one of them with the delayed part."""
        for _ in range(2):
            k = self.k
            head = self.heads[k % len(self.heads)]
            ascending = self.heads[k // 2 % len(self.heads)].unsqueeze(0)
            self.update(k % 2 == 0, self.places[k], self.noise[k], head, ascending)
            self.k = (k + 1) % len(self.places)


def best(run: Callable[[], None], times: int, device: str) -> float:
    """Seconds of the fastest of some runs; on one core its own time, which other processes do not
    lengthen.
    """
    clock = (
        time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    )
    seconds = []
    for _ in range(times):
        start = clock()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    return min(seconds)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--env_id", type=environment, default="HalfCheetah-v4")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    observation_space, action_space = check_task(Task(args.env_id))
    sizes = int(observation_space.shape[0]), get_action_dim(action_space)
    rng = np.random.default_rng(0)
    contenders: dict[str, Callable[[], None]] = {}
    # The plain one is on the CPU.
    for precision in ("fp32", "bf16", "plain") if args.device == "cpu" else ("fp32", "bf16"):
        config = {"device": args.device, "precision": "bf16" if precision == "bf16" else "fp32"}
        settings = Re2Settings.from_learner_config(config, args.env_id)
        buffer = ReplayBuffer(TRANSITIONS, *sizes, args.device)
        n, (s, a) = TRANSITIONS, sizes
        buffer.add(
            rng.normal(size=(n, s)),
            rng.uniform(-1, 1, (n, a)),
            rng.normal(size=(n, s)),
            rng.normal(size=n),
            rng.random(n) < 0.001,
        )
        networks = TwoScale(settings, *sizes, torch.Generator().manual_seed(0))
        heads = new_heads(
            settings.pop_size, a, networks.features, torch.Generator().manual_seed(1)
        ).to(args.device)
        update: Callable = networks.update
        if precision == "plain":
            plain = Plain(settings, *sizes)
            plain.load(networks)
            update = plain.update
        contenders[precision] = Contender(update, buffer, heads, a, settings.batch_size)
    x, w, out = (
        torch.randn(*shape, device=args.device) for shape in ((128, 400), (400, 300), (128, 300))
    )

    def products() -> None:
        for _ in range(int(2 * PRODUCTS)):
            torch.mm(x, w, out=out)

    contenders["limit"] = products
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for k in range(args.rounds + 1):
        for name, run in contenders.items():
            rate = 2 / best(run, 10, args.device)
            if k:
                rates[name].append(rate)
    middle = {name: median(values) for name, values in rates.items()}
    for name, rate in middle.items():
        spread = f"{min(rates[name]):.0f} to {max(rates[name]):.0f}"
        print(
            f"{name:6} {rate:8.1f} updates/s ({spread})  {rate / middle.get('plain', rate):5.1f} "
            f"x plain  {rate / middle['limit']:5.2f} of the limit"
        )


if __name__ == "__main__":
    exit_after(main)
