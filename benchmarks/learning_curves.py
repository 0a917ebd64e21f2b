"""Learning curves of a learner, of its halves alone and of others.

    python benchmarks/learning_curves.py run [--of ERL-Re2] [--storage sqlite:///curves.db]
        [--envs …] [--arms …] [--seeds …] [--steps …]
    python benchmarks/learning_curves.py collect sqlite:///curves.db [--of ERL-Re2] [--out …]
    python benchmarks/learning_curves.py show learning_curves.jsonl [--of …]

ERL-Re² is compared with its two halves and with Stable-Baselines3's TD3, with the same sizes,
rates, minibatches and random first steps; DERL is compared with its two halves.

`run` prints each `python -m erl` command and executes it; interrupted, it goes on from its
checkpoints (those of Stable-Baselines3's TD3 begin anew). Every 25,000 steps 5 fresh episodes
without exploration are played, apart from the budget; in the end others. `show` prints the latter
and draws the former. The champion of ERL-Re² is chosen by training fitness; nothing is the best of
several evaluations.

Of the inner learners, some have curves on pages of their own, with other budgets. `run` leaves
these out, and `show` reads their rows too. It then prints all at equal steps: the evaluations on
the way, interpolated linearly.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rows import make_parser, read_rows, rows_so_far, write_rows
from scipy import stats

from erl.cli import exit_after
from erl.errors import UserError
from erl.figures.style import Look, looks
from erl.studies.storage import open_storage, study_names
from erl.studies.study import Study
from erl.studies.trials import lifetime_records

EVALUATIONS = "eval_freq=25000"
TD3 = (
    "batch_size=128,learning_starts=10000,noise_type=normal,noise_std=0.1,"
    "policy_kwargs={net_arch: [400, 300], optimizer_kwargs: {fused: true}}"
)


@dataclass(frozen=True)
class ComparedArm:
    """What is trained.

    Attributes:
        learner: its name.
        h_test: name of the experiment.
        settings: as `--set` takes them.
        policies: that are evaluated, the one handed over first.
        drawn: in the figure; otherwise it is run only where it is asked for.
        engine: that trains it.
        own: settings for single environments.
        rows: stored ones of another comparison, whose curves are taken.
        uncounted: whether its budget leaves out the steps of the mean. It is run only where it is
            asked for, and drawn over uncounted steps alone.
    """

    learner: str
    h_test: str
    settings: str
    policies: tuple[str, ...]
    drawn: bool = False
    engine: str = "auto"
    own: Mapping[str, str] = field(default_factory=dict)
    rows: str = ""
    uncounted: bool = False


@dataclass(frozen=True)
class Comparison:
    """Arms that are compared, and the defaults of `run`.

    Attributes:
        learner_configs: files of settings of all arms, by environment.
        blend: an arm whose differences from each other one are shown.
        equal_steps: all are shown after `steps` steps, whatever their budgets were.
    """

    arms: Mapping[str, ComparedArm]
    envs: str
    seeds: str
    steps: int
    ep_eval: int
    out: str
    learner_configs: Mapping[str, str] = field(default_factory=dict)
    blend: str | None = None
    equal_steps: bool = False


BOTH, MEAN = ("champion", "rl"), ("mean",)
STORED = Path(__file__).parent / "results"
ERL_RE2_ROWS, AES_RL_ROWS = "learning_curves.jsonl", "aes_rl.jsonl"
# Of learners whose actors make tens of thousands of updates. Where a processor multiplies it no
# faster than single precision, it is single precision.
BF16 = "precision=bf16"
# AES-RL's budget without the steps of its mean, and updates as fast as steps of a worker. So the
# critics keep up, as on the GPU of the published code.
AS_PUBLISHED = f"charge_mean=false,actor_update_cost=1,critic_update_cost=1,{BF16}"
# What the axes of figures are called.
AXES = {
    "steps": "counted environment steps, thousands",
    "uncounted_steps": "without the steps of the mean, thousands",
}
# What the other learners take for an environment by themselves, TD3 is told.
SWIMMER = {"Swimmer-v4": "gamma=0.9999"}
COMPARISONS = {
    "ERL-Re2": Comparison(
        {
            "ERL-Re2": ComparedArm("ERL-Re2", "curves", "", BOTH, True),
            "EA only": ComparedArm("ERL-Re2", "EA_only", "RL=false", ("champion",), True),
            "RL only": ComparedArm("ERL-Re2", "RL_only", "EA=false", ("rl",), True),
            "TD3 (SB3)": ComparedArm("TD3", "sb3", TD3, ("agent",), True, "sb3", SWIMMER),
            "TD3 (cohort)": ComparedArm(
                "TD3", "curves", TD3, ("agent",), engine="cohort", own=SWIMMER
            ),
            "bf16": ComparedArm("ERL-Re2", "bf16", "precision=bf16", BOTH),
            "RL only without norm": ComparedArm(
                "ERL-Re2", "plain_RL", "EA=false,use_ln=false", ("rl",)
            ),
            "ERL-Re2 without norm": ComparedArm("ERL-Re2", "no_ln", "use_ln=false", BOTH),
            "TD3 by episode": ComparedArm(
                "TD3",
                "by_episode",
                f"{TD3},train_freq=[1,episode],gradient_steps=-1",
                ("agent",),
                own=SWIMMER,
            ),
        },
        envs="HalfCheetah-v4,Hopper-v4,Swimmer-v4",
        seeds="0,1,2",
        steps=300_000,
        ep_eval=10,
        out=ERL_RE2_ROWS,
    ),
    "DERL": Comparison(
        {
            "ES only": ComparedArm("DERL", "ES_only", "es_weight=1,rl_weight=0", ("policy",), True),
            "DERL": ComparedArm("DERL", "blend", "", ("policy",), True),
            "gradient only": ComparedArm(
                "DERL", "gradient_only", "es_weight=0,rl_weight=1", ("policy",), True
            ),
        },
        envs="CartPole-v1,Pendulum-v1",
        seeds="0,1,2,3,4",
        steps=500_000,
        ep_eval=100,
        out="derl.jsonl",
        learner_configs={
            "CartPole-v1": "examples/derl_cartpole.yaml",
            "Pendulum-v1": "examples/derl_pendulum.yaml",
        },
        blend="DERL",
    ),
    "AES-RL": Comparison(
        {
            "AES-RL": ComparedArm("AES-RL", "curves", "", MEAN, True),
            "AES-RL one episode": ComparedArm("AES-RL", "once", "mean_evaluations=1", MEAN),
            "AES-RL as published": ComparedArm(
                "AES-RL", "published", AS_PUBLISHED, MEAN, True, uncounted=True
            ),
            "(1+1)-ES": ComparedArm("(1+1)-ES", "curves", "", MEAN, True),
            "ACEM-RL": ComparedArm("ACEM-RL", "curves", BF16, MEAN, True),
            "CEM-RL": ComparedArm("CEM-RL", "curves", BF16, MEAN, True),
            "CEM-RL fp32": ComparedArm("CEM-RL", "fp32", "", MEAN),
            "CEM-RL batched": ComparedArm("CEM-RL", "batched", f"order=batched,{BF16}", MEAN),
            "P-CEM-RL": ComparedArm("P-CEM-RL", "curves", BF16, MEAN, True),
            "TD3": ComparedArm("TD3", "aes_td3", "preset=aes_td3", ("agent",), True, own=SWIMMER),
            "TD3 bf16": ComparedArm(
                "TD3", "bf16", f"preset=aes_td3,{BF16}", ("agent",), own=SWIMMER
            ),
        },
        envs="HalfCheetah-v4,Swimmer-v4",
        seeds="0,1,2",
        steps=200_000,
        ep_eval=10,
        out=AES_RL_ROWS,
    ),
    "inner learners": Comparison(
        {
            "ERL-Re2": ComparedArm("ERL-Re2", "curves", "", BOTH, True, rows=ERL_RE2_ROWS),
            "TD3 (SB3)": ComparedArm(
                "TD3", "sb3", TD3, ("agent",), True, "sb3", SWIMMER, rows=ERL_RE2_ROWS
            ),
            "CEM-RL": ComparedArm("CEM-RL", "curves", BF16, MEAN, True, rows=AES_RL_ROWS),
            "AES-RL": ComparedArm("AES-RL", "curves", "", MEAN, True, rows=AES_RL_ROWS),
            "DERL": ComparedArm("DERL", "curves", "", ("policy",), True, own=SWIMMER),
            "SAC": ComparedArm("SAC", "curves", "", ("agent",), True, own=SWIMMER),
            "PPO": ComparedArm("PPO", "curves", "", ("agent",), True, "sb3", SWIMMER),
        },
        envs="HalfCheetah-v4,Swimmer-v4",
        seeds="0,1,2",
        steps=200_000,
        ep_eval=10,
        out="inner_learners.jsonl",
        equal_steps=True,
    ),
}
# By environment and budget, then by arm: rows; and final means, by policy and seed.
Groups = dict[tuple[str, int], dict[str, list[dict[str, Any]]]]
Means = dict[tuple[str, int], dict[str, dict[str, dict[int, float]]]]


def commands(args: argparse.Namespace) -> list[list[str]]:
    """One for each environment and arm."""
    compared = COMPARISONS[args.of]
    usual = {n: a for n, a in compared.arms.items() if a.drawn and not (a.rows or a.uncounted)}
    names = list(usual)
    if args.arms:
        names = args.arms.split(",")
        for name in names:
            if name not in compared.arms:
                known = ", ".join(compared.arms)
                raise UserError(f"--arms: {args.of} has no arm {name!r}; its arms are {known}")
    rest = ["--seeds", args.seeds or compared.seeds, "--storage", args.storage]
    # Studies of one name in several databases have agents of their own.
    rest += ["--models", f"models/{Path(args.storage.rpartition('/')[2]).stem}"]
    rest += ["--ep_eval", str(compared.ep_eval)]
    if args.workers:
        rest += ["--workers", args.workers]
    result = []
    for arm in map(compared.arms.__getitem__, names):
        for env_id in (args.envs or compared.envs).split(","):
            settings = ",".join(
                s for s in (EVALUATIONS, arm.settings, arm.own.get(env_id, "")) if s
            )
            task = ["--learner", arm.learner, "--env_id", env_id]
            task += ["--steps", str(args.steps or compared.steps), "--h_test", arm.h_test]
            if config := compared.learner_configs.get(env_id):
                task += ["--learner_config", config]
            task += ["--engine", arm.engine]
            result.append([sys.executable, "-m", "erl", *task, "--set", settings, *rest])
    return result


def run(args: argparse.Namespace) -> None:
    for command in commands(args):
        print(shlex.join(["python", *command[1:]]), flush=True)
        if code := subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode:
            raise SystemExit(code)


def collect(args: argparse.Namespace) -> None:
    compared = COMPARISONS[args.of]
    out, rows, others = args.out or compared.out, [], 0
    for storage in args.storages:
        for name in sorted(study_names(open_storage(storage))):
            study = Study(storage, name)
            for trial in study.trials("COMPLETE"):
                record = lifetime_records(trial)[0]
                arms = [
                    a
                    for a, each in compared.arms.items()
                    if record.spec.learner.name == each.learner and f"_{each.h_test}_" in name
                ]
                if not arms:
                    others += 1
                    continue
                (arm,) = arms
                inner = record.inner or {}
                final = {
                    compared.arms[arm].policies[0]: record.final_returns,
                    **inner.get("final_returns", {}),
                }
                rows.append(
                    {
                        "env_id": record.spec.task.env_id,
                        "arm": arm,
                        "seed": trial.params["seed"],
                        "budget": record.spec.steps,
                        "steps": record.steps,
                        "seconds": record.seconds,
                        "settings": record.spec.learner.config,
                        "evaluations": inner.get("evaluations", []),
                        "final": {
                            n: [round(x, 2) for x in returns] for n, returns in final.items()
                        },
                        "generations": inner.get("generations"),
                        "totals": inner.get("totals"),
                        "axes": axes(inner),
                        "commit": record.commit,
                    }
                )
    kept = {(r["env_id"], r["arm"], r["budget"], r["seed"]): r for r in rows_so_far(out)}
    kept |= {(r["env_id"], r["arm"], r["budget"], r["seed"]): r for r in rows}
    write_rows(out, (kept[key] for key in sorted(kept)))
    left_out = f", {others} of no arm of {args.of} left out" * (others > 0)
    print(f"{len(rows)} lifetimes read{left_out}, {len(kept)} in {out}")


def axes(inner: dict[str, Any]) -> dict[str, Any] | None:
    """Counted steps, steps without those of the mean, and individuals, of a learner that tells
    them apart.
    """
    kept, names = inner.get("kept", {}), ("steps", "uncounted_steps", "individuals")
    return {name: kept[name] for name in names} if "uncounted_steps" in kept else None


def show(args: argparse.Namespace) -> None:
    named = [of for of, c in COMPARISONS.items() if c.out == Path(args.file).name]
    if not (args.of or named):
        raise UserError(
            f"{args.file}: --of says which comparison it is, of {', '.join(COMPARISONS)}"
        )
    compared = COMPARISONS[args.of or named[0]]
    groups: Groups = defaultdict(lambda: defaultdict(list))
    for row in rows_of(compared, args.file):
        groups[row["env_id"], row["budget"]][row["arm"]].append(row)
    means = {
        key: {
            arm: {
                policy: {r["seed"]: reached(compared, r, policy) for r in arms[arm]}
                for policy in compared.arms[arm].policies
            }
            for arm in compared.arms
            if arm in arms
        }
        for key, arms in sorted(groups.items())
    }
    print_table(compared, groups, means)
    if not compared.equal_steps:
        print_axes(groups)
        print_fates(groups)
    print_differences(compared, means)
    figure(compared, groups, Path(args.file).with_suffix(".svg"))


def rows_of(compared: Comparison, file: str) -> list[dict[str, Any]]:
    """Of a comparison at equal steps: the rows of all its arms, with these steps as their budget.
    Of another one: those of the file.
    """
    if not compared.equal_steps:
        return read_rows(file)
    sources = {name: STORED / arm.rows if arm.rows else file for name, arm in compared.arms.items()}
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for source in dict.fromkeys(sources.values()):
        for row in sorted(read_rows(source), key=lambda r: -r["budget"]):
            asked = row["env_id"] in compared.envs.split(",")
            asked &= str(row["seed"]) in compared.seeds.split(",")
            if asked and sources.get(row["arm"]) == source and row["budget"] >= compared.steps:
                seconds = row["seconds"] * compared.steps / row["steps"]
                key = row["env_id"], row["arm"], row["seed"]
                # The run with the smallest budget comes last.
                found[key] = {**row, "budget": compared.steps, "seconds": seconds}
    return [*found.values()]


def reached(compared: Comparison, row: dict[str, Any], policy: str) -> float:
    """A policy's mean return at the end, or after equal steps."""
    if not compared.equal_steps:
        return float(np.mean(row["final"][policy]))
    curve = [(e["steps"], e[policy]) for e in row["evaluations"] if policy in e]
    steps, returns = np.array(curve, dtype=float).T
    return float(np.interp(compared.steps, steps, returns))


def print_table(compared: Comparison, groups: Groups, means: Means) -> None:
    judged = (
        "5 fresh episodes at these steps, interpolated linearly"
        if compared.equal_steps
        else f"{compared.ep_eval} fresh episodes after training"
    )
    print(f"mean over seeds [least, greatest] of the mean of {judged}")
    beside = any("rl" in a.policies[1:] for a in compared.arms.values())
    print(
        "\n| environment | steps | arm | seeds | policy handed over |"
        f"{' RL agent beside it |' * beside} steps/s | minutes a seed |"
    )
    print("|---|---|---|---|---|---|---|" + "---|" * beside)
    for (env_id, budget), arms in means.items():
        for arm, policies in arms.items():
            cells = [spread([*by_seed.values()]) for by_seed in policies.values()]
            if beside:
                cells = [*cells, ""][:2]
            rows = groups[env_id, budget][arm]
            minutes = sum(r["seconds"] for r in rows) / len(rows) / 60
            steps = budget if compared.equal_steps else sum(r["steps"] for r in rows) / len(rows)
            cells += [f"{steps / minutes / 60:,.0f}", f"{minutes:.1f}"]
            print(f"| {env_id} | {budget:,} | {arm} | {len(rows)} | {' | '.join(cells)} |")


def print_axes(groups: Groups) -> None:
    """What the budgets were of the learners that tell counted steps and others apart: published
    curves are compared at equal uncounted steps.
    """
    lines = []
    for (env_id, budget), arms in sorted(groups.items()):
        for arm, rows in arms.items():
            ends = [r["axes"] for r in rows if r.get("axes")]
            if ends:
                last = [spread([e[name][-1] for e in ends]) for name in list(ends[0])[1:]]
                lines.append(f"| {env_id} | {budget:,} | {arm} | {' | '.join(last)} |")
    if lines:
        print("\n| environment | steps | arm | uncounted steps | individuals |")
        print("\n".join(["|---|---|---|---|---|", *lines]))


def print_fates(groups: Groups) -> None:
    """What became of the RL head's copies in the populations of ERL-Re²."""
    for (env_id, budget), arms in sorted(groups.items()):
        totals = [r["totals"] for r in arms.get("ERL-Re2", [])]
        if totals:
            fates = np.array(
                [
                    [t.get(f"rl_{fate}", 0) for fate in ("elites", "selected", "discarded")]
                    for t in totals
                ]
            )
            share = " ".join(f"{x:.2f}" for x in fates.sum(0) / fates.sum())
            print(
                "share of the RL head's copies among elites, selected and discarded, "
                f"{env_id} {budget:,}: {share}"
            )


def print_differences(compared: Comparison, means: Means) -> None:
    """The blend minus each other arm: the mean of the differences of equal seeds, with the 95 %
    interval of Student's t.
    """
    if compared.blend is None:
        return
    print("\n| environment | difference of means | mean [95 % interval] |\n|---|---|---|")
    for (env_id, _), arms in means.items():
        blend = next(iter(arms.get(compared.blend, {}).values()), {})
        for arm, policies in arms.items():
            other = next(iter(policies.values()))
            both = sorted(blend.keys() & other.keys())
            if arm == compared.blend or len(both) < 2:
                continue
            test = stats.ttest_rel([blend[k] for k in both], [other[k] for k in both])
            low, high = test.confidence_interval()
            mean = np.mean([blend[k] - other[k] for k in both])
            print(
                f"| {env_id} | {compared.blend} - {arm} | {mean:,.1f} [{low:,.1f}, {high:,.1f}] |"
            )


def spread(values: list[float]) -> str:
    return "" if not values else f"{np.mean(values):,.0f} [{min(values):,.0f}, {max(values):,.0f}]"


def figure(compared: Comparison, groups: Groups, path: Path) -> None:
    """Mean and range over seeds, one panel for each environment and budget; where there are steps
    that others do not count, a second row of panels over the steps without them.
    """
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "learning_curves"
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    drawn = {name: arm for name, arm in compared.arms.items() if arm.drawn}
    styles = looks(titled(name, arm, p) for name, arm in drawn.items() for p in arm.policies)
    seeds: dict[str, set[int]] = {}
    panels = {key: {a: r for a, r in arms.items() if a in drawn} for key, arms in groups.items()}
    panels = {key: arms for key, arms in panels.items() if len(arms) > 1}
    if not panels:
        print("\nno figure: it compares two arms at least")
        return
    axes_of = ["steps"]
    rows = [row for arms in panels.values() for rows in arms.values() for row in rows]
    if any(row.get("axes") for row in rows) and not compared.equal_steps:
        axes_of.append("uncounted_steps")
    size = (4.2 * len(panels), 3.6 * len(axes_of))
    fig, axes = plt.subplots(
        len(axes_of), len(panels), figsize=size, layout="constrained", squeeze=False
    )
    for axis, row in zip(axes_of, axes):
        for ax, ((env_id, budget), arms) in zip(row, sorted(panels.items())):
            for arm in (a for a in drawn if a in arms):
                if drawn[arm].uncounted and axis == "steps":
                    continue
                counted = draw(ax, arm, drawn[arm], arms[arm], budget, axis, styles)
                for title, n in counted.items():
                    seeds.setdefault(title, set()).add(n)
            ax.set(title=env_id, xlabel=AXES[axis], ylabel="return, 5 fresh episodes")
    names = [title for title in styles if title in seeds]
    fig.legend(
        [Line2D([], [], color=styles[n].colour, linestyle=styles[n].line) for n in names],
        [f"{n} ({' or '.join(map(str, sorted(seeds[n])))})" for n in names],
        title="in brackets: number of seeds",
        loc="outside upper center",
        ncols=4,
        fontsize="small",
        title_fontsize="small",
    )
    fig.savefig(path, metadata={"Date": None})
    print(f"\n{path}")


def on_axis(row: dict[str, Any], steps: Any, axis: str) -> Any:
    """Counted steps of a row on another axis; without such an axis all are on both."""
    axes = row.get("axes")
    return steps if not axes else np.interp(steps, axes["steps"], axes[axis])


def titled(name: str, arm: ComparedArm, policy: str) -> str:
    """What a policy of an arm is called."""
    if len(arm.policies) == 1:
        return name
    return f"{name}, {'RL agent' if policy == 'rl' else policy}"


def draw(
    ax: Any,
    name: str,
    arm: ComparedArm,
    rows: list[dict[str, Any]],
    budget: int,
    axis: str,
    styles: Mapping[str, Look],
) -> dict[str, int]:
    """The curves of one arm's policies.

    Returns:
        Of how many seeds each is, by what it is called.
    """
    counted = {}
    points = budget // 25_000
    end = budget if axis == "steps" else min(on_axis(row, row["steps"], axis) for row in rows)
    grid = np.arange(1, points + 1) * end / points
    for policy in arm.policies:
        beside = len(arm.policies) > 1 and policy == "rl"
        title = titled(name, arm, policy)
        # Before a policy exists (nothing evolves in the first random steps) there is nothing to
        # draw.
        curves = [
            np.array(
                [(on_axis(r, e["steps"], axis), e[policy]) for e in r["evaluations"] if policy in e]
            )
            for r in rows
        ]
        values = np.array(
            [np.interp(grid, c[:, 0], c[:, 1], left=np.nan) for c in curves if len(c)]
        )
        if not len(values):
            continue
        counted[title] = len(values)
        look = styles[title]
        ax.plot(grid / 1000, values.mean(0), linestyle=look.line, color=look.colour)
        if not beside:
            low, high = values.min(0), values.max(0)
            ax.fill_between(grid / 1000, low, high, color=look.colour, alpha=0.15, lw=0)
    return counted


def main() -> None:
    parser = make_parser(__doc__)
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("run")
    part.add_argument("--of", default="ERL-Re2", choices=COMPARISONS)
    part.add_argument("--storage", default="sqlite:///curves.db")
    part.add_argument("--envs")
    part.add_argument("--arms")
    part.add_argument("--seeds")
    part.add_argument("--steps", type=int)
    part.add_argument("--workers")
    part.set_defaults(do=run)
    part = parts.add_parser("collect")
    part.add_argument("storages", nargs="+")
    part.add_argument("--of", default="ERL-Re2", choices=COMPARISONS)
    part.add_argument("--out", help="file of rows; by default in the current folder")
    part.set_defaults(do=collect)
    part = parts.add_parser("show")
    part.add_argument("file")
    part.add_argument("--of", choices=COMPARISONS)
    part.set_defaults(do=show)
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    exit_after(main)
