"""The command `erl`: its subcommands, each the same code as a script or a module of this project.

Modules are named here and imported when a subcommand asks for them, so that help is quick.
"""

import argparse
import sys
import textwrap
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from erl import __version__, cli
from erl.errors import nearest
from erl.parsing import WIDTH, make_parser


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        run: the function that does it, as `module:function`.
        config: the dataclass of its flags, as `module:class`.
        text: what it does, in one line.
        example: flags of an example.
    """

    run: str
    config: str
    text: str
    example: str

    def kind(self) -> type:
        """The dataclass of its flags."""
        module, _, name = self.config.partition(":")
        return getattr(import_module(module), name)


_EVOLVE = "erl.experiments.evolution:evolve"
_COMPARE = "erl.experiments.comparison:compare"
_MEMORY = "--env_id CartPole-v1 --del_obs --training_steps 50000"
COMMANDS = {
    "evolve": Command(
        _EVOLVE,
        "erl.experiments.evolution_flags:EvolutionConfig",
        "Evolve a reservoir for one environment.",
        f"{_MEMORY} --nb_trials 30",
    ),
    "evolve-multi": Command(
        _EVOLVE,
        "erl.experiments.evolution_flags:MultiEvolutionConfig",
        "Evolve several reservoirs for one environment.",
        "--env_id Ant-v4 --nb_res 3",
    ),
    "evolve-generalization": Command(
        _EVOLVE,
        "erl.experiments.evolution_flags:GeneralizationConfig",
        "Evolve reservoirs for a set of environments.",
        "--env_type Ant_Swimmer --nb_res 2",
    ),
    "test": Command(
        _COMPARE,
        "erl.experiments.comparison_flags:ComparisonConfig",
        "Test the best evolved reservoir on seeds that the evolution never used.",
        "--env_id CartPole-v1 --HP_training_steps 50000 --training_steps 50000",
    ),
    "test-multi": Command(
        _COMPARE,
        "erl.experiments.comparison_flags:MultiComparisonConfig",
        "Test the best evolved reservoirs of evolve-multi.",
        "--env_id Ant-v4 --nb_res 3 --training_steps 1000000",
    ),
    "test-generalization": Command(
        _COMPARE,
        "erl.experiments.comparison_flags:GeneralizationComparisonConfig",
        "Test evolved reservoirs in an environment that the evolution did not see.",
        "--HP_env_type Ant_Swimmer --env_id HalfCheetah-v4 --training_steps 1000000",
    ),
    "train": Command(
        "erl.experiments.single:run",
        "erl.experiments.single_flags:SingleConfig",
        "Train one learner on one task, without evolving anything around it.",
        "--learner PPO --env_id CartPole-v1 --steps 50000",
    ),
    "eval": Command(
        "erl.lifetimes.evaluating:evaluate_model",
        "erl.lifetimes.evaluating_flags:EvaluationConfig",
        "Evaluate a trained agent over whole episodes.",
        "--model models/CartPole-v1_PPO_single_50k_steps/seed_0 --episodes 100",
    ),
    "film": Command(
        "erl.lifetimes.film:film",
        "erl.lifetimes.film_flags:FilmConfig",
        "Film a trained agent.",
        "--model models/CartPole-v1_PPO_single_50k_steps/seed_0 --file agent.gif",
    ),
    "plot": Command(
        "erl.figures.report:report",
        "erl.figures.flags:FigureConfig",
        "Draw figures, tables and a report of studies.",
        "--study CartPole-v1_main_50k_steps --folder report",
    ),
    "dashboard": Command(
        "erl.studies.dashboard:dashboard",
        "erl.studies.flags:DashboardConfig",
        "Show the study database in a browser, with optuna-dashboard.",
        "--storage sqlite:///studies.db --port 8080",
    ),
}
STUDIES = {
    "list": Command(
        "erl.studies.commands:list_studies",
        "erl.studies.flags:ListConfig",
        "List the studies of a storage.",
        "--storage sqlite:///studies.db",
    ),
    "show": Command(
        "erl.studies.commands:show_study",
        "erl.studies.flags:ShowConfig",
        "Show a study: its configuration, what it reached, and why trials failed.",
        "--study CartPole-v1_main_50k_steps",
    ),
    "export": Command(
        "erl.studies.commands:export_study",
        "erl.studies.flags:ExportConfig",
        "Write a study as a table, whole or not at all.",
        "--study CartPole-v1_main_50k_steps --rows trials --file trials.csv",
    ),
    "copy": Command(
        "erl.studies.copying:copy_study",
        "erl.studies.flags:CopyConfig",
        "Copy a study to another storage, with everything that it holds.",
        "--study CartPole-v1_main_50k_steps --to sqlite:///copy.db",
    ),
    "delete": Command(
        "erl.studies.deletion:delete_study",
        "erl.studies.flags:DeleteConfig",
        "Delete a study; without --yes, say what that would delete.",
        "--study CartPole-v1_main_50k_steps",
    ),
    "push": Command(
        "erl.studies.push:push_study",
        "erl.studies.flags:PushConfig",
        "Upload a study and its agents to the Hugging Face Hub, with a model card.",
        "--study CartPole-v1_PPO_single_50k_steps --repo USER/NAME",
    ),
}
SECTIONS = {
    "evolve reservoirs, and test them": (
        *("evolve", "test", "evolve-multi", "test-multi"),
        *("evolve-generalization", "test-generalization"),
    ),
    "train one learner": ("train",),
    "look at results": ("eval", "film", "plot", "dashboard"),
}
SHELLS = ("bash", "zsh", "tcsh")
STUDIES_TEXT = f"Manage stored studies: {', '.join(STUDIES)}."
COMPLETION_TEXT = f"Print completion for a shell: {', '.join(SHELLS)}."


def main(argv: Sequence[str] | None = None, program: str = "erl") -> typing.NoReturn:
    """The command line: a subcommand, then its flags. Flags alone are those of `train`; no words
    show what there is.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in ([], ["-h"], ["--help"], ["help"]):
        cli.show(_overview(program))
    if words[:1] == ["--version"]:
        cli.show(f"erl {__version__}")
    if words[0].startswith("-"):
        words = ["train", *words]
    name, *rest = words
    if name == "studies":
        studies(rest, f"{program} studies")
    if name == "completion":
        _completion(rest, program)
    if name not in COMMANDS:
        known = [*COMMANDS, "studies", "completion"]
        cli.fail(
            program,
            f"unknown command {name!r}{nearest(name, known, 1)}; {program} --help lists them",
        )
    start(COMMANDS[name], f"{program} {name}", rest)


def start(command: Command, program: str, argv: Sequence[str] | None = None) -> typing.NoReturn:
    """Run a subcommand with the words that follow it, and exit.

    Args:
        command: of `COMMANDS` or `STUDIES`.
        program: how it was called, for help and errors.
        argv: its flags; by default those of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    example = f"{program} {command.example}"
    cli.main(command.run, command.kind(), command.text, words, program, example)


def studies(
    argv: Sequence[str] | None = None, program: str = "python -m erl.studies"
) -> typing.NoReturn:
    """`erl studies`: a command on studies, then its flags."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        cli.fail(program, f"a command is missing (known: {', '.join(STUDIES)})")
    if words[0] in ("-h", "--help"):
        lines = [f"usage: {program} COMMAND [flags]", "", STUDIES_TEXT, ""]
        lines += _table({name: command.text for name, command in STUDIES.items()})
        lines += ["", f"{program} COMMAND --help lists the flags of a command."]
        cli.show("\n".join(lines))
    if words[0] not in STUDIES:
        said = f"unknown command {words[0]!r}{nearest(words[0], STUDIES, 1)}"
        cli.fail(program, f"{said} (known: {', '.join(STUDIES)})")
    start(STUDIES[words[0]], f"{program} {words[0]}", words[1:])


def _overview(program: str) -> str:
    """The help of `erl` itself."""
    lines = [f"usage: {program} COMMAND [flags]", ""]
    lines += ["Evolve reservoirs around reinforcement-learning agents, and train learners.", ""]
    for title, names in SECTIONS.items():
        lines += [f"{title}:", *_table({name: COMMANDS[name].text for name in names}), ""]
    rest = {"studies": STUDIES_TEXT, "completion": COMPLETION_TEXT}
    lines += ["manage:", *_table(rest), ""]
    lines += [f"{program} COMMAND --help lists the flags of a command."]
    if program != "erl":
        lines += [f"{program} with flags and no command means train."]
    return "\n".join(lines)


def _table(rows: dict[str, str]) -> list[str]:
    """Names and what they mean, in 80 columns."""
    return [
        textwrap.fill(
            text,
            WIDTH,
            initial_indent=f"  {name:24s}",
            subsequent_indent=" " * 26,
            break_on_hyphens=False,
        )
        for name, text in rows.items()
    ]


# -- completion --


def _completion(words: Sequence[str], program: str) -> typing.NoReturn:
    """Print the completion script of a shell."""
    import shtab

    if len(words) != 1 or words[0] not in (*SHELLS, "-h", "--help"):
        cli.fail(f"{program} completion", f"name one shell: {', '.join(SHELLS)}")
    if words[0] in ("-h", "--help"):
        usage = f"usage: {program} completion SHELL\n\n{COMPLETION_TEXT}\n\n"
        cli.show(f'{usage}example:\n  eval "$({program} completion bash)"')
    cli.show(shtab.complete(whole_parser(), words[0]))


def whole_parser() -> argparse.ArgumentParser:
    """All commands and flags in one parser: what a shell completes."""
    whole = argparse.ArgumentParser(prog="erl", description="erl")
    parts = whole.add_subparsers()
    for name, command in COMMANDS.items():
        _add(parts, name, command)
    inner = parts.add_parser("studies", help=STUDIES_TEXT).add_subparsers()
    for name, command in STUDIES.items():
        _add(inner, name, command)
    parts.add_parser("completion", help=COMPLETION_TEXT).add_argument("shell", choices=SHELLS)
    return whole


def _add(
    parts: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, c: Command
) -> None:
    made = make_parser(c.kind(), f"erl {name}")
    parser = parts.add_parser(name, help=c.text, parents=[made], add_help=False)
    for action in parser._actions:  # files and folders are completed as such
        if action.dest in _PATHS:
            action.complete = _PATHS[action.dest]  # type: ignore[attr-defined]


# What shtab completes with files and folders.
_FILE = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
_FOLDER = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/", "tcsh": "d"}
_PATHS = dict.fromkeys(("config", "learner_config", "sets", "file", "out", "model"), _FILE)
_PATHS |= dict.fromkeys(("runs", "logs", "models", "folder"), _FOLDER)
