"""Learning curves: ERL-Re², its two halves alone, and Stable-Baselines3's TD3, with the same sizes,
rates, minibatches and random first steps.

    python benchmarks/learning_curves.py run --storage sqlite:///curves.db [--envs
    HalfCheetah-v4,Hopper-v4,Swimmer-v4] [--arms …] [--seeds 0,1,2] [--steps 300000] python
    benchmarks/learning_curves.py collect sqlite:///curves.db --out
    benchmarks/results/learning_curves.jsonl python benchmarks/learning_curves.py show
    benchmarks/results/learning_curves.jsonl

`run` prints each `python -m erl` command and executes it; interrupted, it goes on from its
checkpoints (those of TD3 begin anew). Every 25,000 steps 5 fresh episodes without exploration are
played, apart from the budget; in the end 10 others. `show` prints the latter and draws the former.
The champion of ERL-Re² is chosen by training fitness; nothing is the best of several evaluations.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from erl.studies.storage import open_storage, study_names
from erl.studies.study import Study

EVALUATIONS = "eval_freq=25000"
TD3 = (
    "batch_size=128,learning_starts=10000,noise_type=normal,noise_std=0.1,"
    "policy_kwargs={net_arch: [400, 300], optimizer_kwargs: {fused: true}}"
)
# Name: learner, name of the experiment, settings.
ARMS = {
    "ERL-Re2": ("ERL-Re2", "curves", ""),
    "EA only": ("ERL-Re2", "EA_only", "RL=false"),
    "RL only": ("ERL-Re2", "RL_only", "EA=false"),
    "TD3 (SB3)": ("TD3", "curves", TD3),
    "bf16": ("ERL-Re2", "bf16", "precision=bf16"),
    "RL only without norm": ("ERL-Re2", "plain_RL", "EA=false,use_ln=false"),
    "ERL-Re2 without norm": ("ERL-Re2", "no_ln", "use_ln=false"),
    "TD3 by episode": ("TD3", "by_episode", f"{TD3},train_freq=[1,episode],gradient_steps=-1"),
    "AES-RL": ("AES-RL", "curves", ""),
    "AES-RL one episode": ("AES-RL", "once", "mean_evaluations=1"),
    "(1+1)-ES": ("(1+1)-ES", "curves", ""),
    "ACEM-RL": ("ACEM-RL", "curves", ""),
    "CEM-RL": ("CEM-RL", "curves", ""),
    "CEM-RL batched": ("CEM-RL", "batched", "batched=true"),
    "P-CEM-RL": ("P-CEM-RL", "curves", ""),
    "TD3 (aes_td3)": ("TD3", "aes_td3", "preset=aes_td3"),
}
# Those whose individuals are evolved actors of TD3.
FAMILY = ("AES-RL", "(1+1)-ES", "ACEM-RL", "CEM-RL", "P-CEM-RL")
# What else TD3 takes for an environment, as the other learners do by themselves.
TD3_OF = {"Swimmer-v4": "gamma=0.9999"}
# The policies of each that are evaluated, the one handed over first.
POLICIES = {
    "ERL-Re2": ("champion", "rl"),
    "EA only": ("champion",),
    "RL only": ("rl",),
    "TD3 (SB3)": ("agent",),
    "bf16": ("champion", "rl"),
    "RL only without norm": ("rl",),
    "ERL-Re2 without norm": ("champion", "rl"),
    "TD3 by episode": ("agent",),
    "TD3 (aes_td3)": ("agent",),
    **{arm: ("mean",) for arm, (learner, _, _) in ARMS.items() if learner in FAMILY},
}
# Those that are run if nothing else is asked for, and drawn.
COLOURS = {"ERL-Re2": "C0", "EA only": "C2", "RL only": "C1", "TD3 (SB3)": "0.4"}
# Those of the second figure.
FAMILY_COLOURS = {
    "AES-RL": "C0",
    "(1+1)-ES": "C1",
    "ACEM-RL": "C2",
    "CEM-RL": "C3",
    "P-CEM-RL": "C4",
    "TD3 (aes_td3)": "0.4",
}


def commands(args: argparse.Namespace) -> list[list[str]]:
    """One for each environment and arm."""
    rest = ["--seeds", args.seeds, "--storage", args.storage] + (
        ["--workers", args.workers] if args.workers else []
    )
    result = []
    for env_id in args.envs.split(","):
        for arm in args.arms.split(","):
            learner, name, settings = ARMS[arm]
            own = TD3_OF.get(env_id, "") if learner == "TD3" else ""
            settings = ",".join(s for s in (EVALUATIONS, settings, own) if s)
            task = ["--learner", learner, "--env_id", env_id, "--steps", str(args.steps)]
            result.append(
                [sys.executable, "-m", "erl", *task, "--set", settings, "--h_test", name, *rest]
            )
    return result


def run(args: argparse.Namespace) -> None:
    for command in commands(args):
        print(shlex.join(["python", *command[1:]]), flush=True)
        if subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode:
            raise SystemExit(1)


def collect(args: argparse.Namespace) -> None:
    rows = []
    for storage in args.storages:
        for name in sorted(study_names(open_storage(storage))):
            study = Study(storage, name)
            for trial in study.trials("COMPLETE"):
                record = study.lifetimes(trial)[0]
                (arm,) = (
                    a
                    for a, (learner, h, _) in ARMS.items()
                    if record.spec.learner.name == learner and f"_{h}_" in name
                )
                inner = record.inner or {}
                final = {POLICIES[arm][0]: record.final_returns, **inner.get("final_returns", {})}
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
    kept = {(r["env_id"], r["arm"], r["budget"], r["seed"]): r for r in read(args.out)}
    kept |= {(r["env_id"], r["arm"], r["budget"], r["seed"]): r for r in rows}
    Path(args.out).write_text(
        "".join(json.dumps(kept[key]) + "\n" for key in sorted(kept)), encoding="utf-8"
    )
    print(f"{len(rows)} lifetimes read, {len(kept)} in {args.out}")


def axes(inner: dict[str, Any]) -> dict[str, Any] | None:
    """Counted steps, steps without those of the mean, and individuals, of a learner that tells
    them apart.
    """
    kept, names = inner.get("kept", {}), ("steps", "uncounted_steps", "individuals")
    return {name: kept[name] for name in names} if "uncounted_steps" in kept else None


def read(path: str) -> list[dict[str, Any]]:
    file = Path(path)
    return (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if file.exists()
        else []
    )


def show(args: argparse.Namespace) -> None:
    groups: dict[tuple[str, int], dict[str, list[dict[str, Any]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in read(args.file):
        groups[row["env_id"], row["budget"]][row["arm"]].append(row)
    print("mean over seeds [least, greatest] of the mean of 10 fresh episodes after training")
    print(
        "\n| environment | steps | arm | seeds | policy handed over | RL agent beside it | "
        "steps/s |"
    )
    print("|---|---|---|---|---|---|---|")
    for (env_id, budget), arms in sorted(groups.items()):
        for arm in ARMS:
            rows = arms.get(arm, [])
            if rows:
                cells = [
                    spread([float(np.mean(r["final"][p])) for r in rows if p in r["final"]])
                    for p in POLICIES[arm]
                ]
                rate = sum(r["steps"] for r in rows) / sum(r["seconds"] for r in rows)
                print(
                    f"| {env_id} | {budget:,} | {arm} | {len(rows)} | {cells[0]} | "
                    f"{cells[1] if cells[1:] else ''} | {rate:,.0f} |"
                )
    show_axes(groups)
    print("\nshare of the RL head's copies among elites, selected and discarded")
    for (env_id, budget), arms in sorted(groups.items()):
        totals = [r["totals"] for r in arms.get("ERL-Re2", [])]
        if totals:
            fates = np.array(
                [
                    [t.get(f"rl_{fate}", 0) for fate in ("elites", "selected", "discarded")]
                    for t in totals
                ]
            )
            share = fates.sum(0) / fates.sum()
            print(f"{env_id} {budget:,}: {share[0]:.2f} {share[1]:.2f} {share[2]:.2f}")
    colours = FAMILY_COLOURS if args.family else COLOURS
    figure(groups, colours, Path(args.file).with_suffix(".svg"))


def show_axes(groups: dict[tuple[str, int], dict[str, list[dict[str, Any]]]]) -> None:
    """What the budgets were of the learners that tell counted steps and others apart: published
    curves are compared at equal uncounted steps.
    """
    print("\n| environment | steps | arm | uncounted steps | individuals | minutes |")
    print("|---|---|---|---|---|---|")
    for (env_id, budget), arms in sorted(groups.items()):
        for arm, rows in arms.items():
            ends = [r["axes"] for r in rows if r.get("axes")]
            if ends:
                last = [spread([e[name][-1] for e in ends]) for name in list(ends[0])[1:]]
                minutes = spread([r["seconds"] / 60 for r in rows])
                print(f"| {env_id} | {budget:,} | {arm} | {last[0]} | {last[1]} | {minutes} |")


def spread(values: list[float]) -> str:
    return "" if not values else f"{np.mean(values):,.0f} [{min(values):,.0f}, {max(values):,.0f}]"


def figure(
    groups: dict[tuple[str, int], dict[str, list[dict[str, Any]]]],
    colours: dict[str, str],
    path: Path,
) -> None:
    """Mean and range over seeds, one panel for each environment and budget."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "learning_curves"
    import matplotlib.pyplot as plt

    groups = {key: {a: r for a, r in arms.items() if a in colours} for key, arms in groups.items()}
    groups = {key: arms for key, arms in groups.items() if len(arms) > 1}
    fig, axes = plt.subplots(
        1, len(groups), figsize=(4.2 * len(groups), 3.6), layout="constrained", squeeze=False
    )
    for ax, ((env_id, budget), arms) in zip(axes[0], sorted(groups.items())):
        for arm, rows in ((a, arms[a]) for a in ARMS if a in arms):
            for policy in POLICIES[arm]:
                style = "--" if policy == "rl" and arm == "ERL-Re2" else "-"
                label = (
                    f"{arm}, {'RL agent' if policy == 'rl' else 'champion'}"
                    if arm == "ERL-Re2"
                    else arm
                )
                grid = np.arange(25_000, budget + 1, 25_000)
                # Before a policy exists (nothing evolves in the first random steps) there is
                # nothing to draw.
                curves = [
                    np.array([(e["steps"], e[policy]) for e in r["evaluations"] if policy in e])
                    for r in rows
                ]
                values = np.array(
                    [np.interp(grid, c[:, 0], c[:, 1], left=np.nan) for c in curves if len(c)]
                )
                ax.plot(
                    grid / 1000,
                    values.mean(0),
                    style,
                    color=colours[arm],
                    label=f"{label} ({len(values)})",
                )
                if style == "-":
                    ax.fill_between(
                        grid / 1000,
                        values.min(0),
                        values.max(0),
                        color=colours[arm],
                        alpha=0.15,
                        lw=0,
                    )
        ax.set(
            title=env_id, xlabel="environment steps, thousands", ylabel="return, 5 fresh episodes"
        )
        ax.legend(fontsize="x-small")
    fig.savefig(path, metadata={"Date": None})
    print(f"\n{path}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("run")
    part.add_argument("--storage", default="sqlite:///curves.db")
    part.add_argument("--envs", default="HalfCheetah-v4,Hopper-v4,Swimmer-v4")
    part.add_argument("--arms", default=",".join(COLOURS))
    part.add_argument("--seeds", default="0,1,2")
    part.add_argument("--steps", type=int, default=300_000)
    part.add_argument("--workers")
    part.set_defaults(do=run)
    part = parts.add_parser("collect")
    part.add_argument("storages", nargs="+")
    part.add_argument("--out", default="benchmarks/results/learning_curves.jsonl")
    part.set_defaults(do=collect)
    part = parts.add_parser("show")
    part.add_argument("file")
    part.add_argument("--family", action="store_true", help="draw AES-RL and its kin")
    part.set_defaults(do=show)
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
