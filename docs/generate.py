"""Write docs/flags.md from the configuration dataclasses of the commands.

    python docs/generate.py

A test holds the page equal to what this prints, so run it after a change of a flag.
"""

import dataclasses
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "flags.md"
# Scripts whose flags are shown in full, and those that are shown by their differences from them.
FULL = {
    "evolve_res.py": "[evolving reservoirs](evolution.md)",
    "test.py": "[reading results](reading_results.md)",
}
VARIANTS = {
    "evolve_multi_res.py": "evolve_res.py",
    "evolve_generalization.py": "evolve_res.py",
    "test_multi_res.py": "test.py",
    "test_generalization.py": "test.py",
}
INTRODUCTION = """# Flags

`python docs/generate.py` writes this page from the code. Do not edit it by hand.

- Names may be written with `-` instead of `_`: `--env-id` is `--env_id`.
- A switch has the default `True` or `False`. Its name alone sets it (`--del_obs`), and so does a
  word (`--del_obs True`). `--no-del_obs` unsets it.
- *none* means that there is no default value.
- `--help` prints the same texts, in groups.
- `--config FILE` reads flags from a YAML, TOML or JSON file, for example `nb_trials: 30`. Flags
  of the command line override it. A name that YAML takes for something else, such as `on` or
  `1.10`, stands in quotes.
- A flag may be repeated. Values with commas between them and settings (`NAME=VALUE,…`) then join.
  Of a flag that takes one value, the last one counts. `--config` and `--env_kwargs` are given once.
- `erl evolve`, `erl test`, `erl train` and so on have the flags of the scripts below;
  `erl --help` lists them all.
"""


def script_config(script: str) -> type:
    """The configuration dataclass of a script in the project's folder."""
    spec = importlib.util.spec_from_file_location(f"_flags_{Path(script).stem}", ROOT / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Config


def configs() -> dict[str, type]:
    """Command -> configuration dataclass, of every command with flags."""
    from erl.commands import COMMANDS, STUDIES

    known = {script: script_config(script) for script in [*FULL, *VARIANTS]}
    modules = {"-m erl": "train", "-m erl.film": "film", "-m erl.figures": "plot"}
    known |= {module: COMMANDS[name].kind() for module, name in modules.items()}
    known |= {f"erl {name}": command.kind() for name, command in COMMANDS.items()}
    for name, command in STUDIES.items():
        known |= {f"{start} {name}": command.kind() for start in ("-m erl.studies", "erl studies")}
    return known


def meaning(field: dataclasses.Field[Any]) -> str:
    """The help of a flag, with its choices and further spellings."""
    text = field.metadata.get("help", "")
    if field.metadata.get("choices"):
        text += ": " + ", ".join(f"`{choice}`" for choice in field.metadata["choices"])
    spellings = [a for a in field.metadata.get("aliases", ()) if "-" not in a[2:]]
    if spellings:
        text += f" (also {', '.join(f'`{spelling}`' for spelling in spellings)})"
    return re.sub(r"(?<![\w`])(--\w+)", r"`\1`", text).replace("|", "\\|")


def row(field: dataclasses.Field[Any]) -> str:
    """A line of a table."""
    default = "none" if field.default is None else f"`{field.default}`"
    return f"| `--{field.name}` | {default} | {meaning(field)} |"


def flags(kind: type) -> list[dataclasses.Field[Any]]:
    """The flags of a command, its own before those that it shares with others."""
    shared = {
        name: depth
        for depth, base in enumerate(kind.__mro__)
        if dataclasses.is_dataclass(base)
        for name in vars(base).get("__annotations__", {})
    }
    return sorted(dataclasses.fields(kind), key=lambda field: shared[field.name])


def table(fields: list[dataclasses.Field[Any]]) -> list[str]:
    """Flags, one a row."""
    return ["| flag | default | meaning |", "|---|---|---|", *map(row, fields)]


def differences(kind: type, base: type) -> tuple[list[dataclasses.Field[Any]], list[str]]:
    """Flags that are new or that differ from the base's, and names of the base's that are gone."""
    theirs = {f.name: row(f) for f in flags(base)}
    ours = {f.name: f for f in flags(kind)}
    new = [field for name, field in ours.items() if theirs.get(name) != row(field)]
    return new, [name for name in theirs if name not in ours]


def render() -> str:
    """The whole page."""
    return INTRODUCTION + "".join(f"\n{line}".rstrip(" ") for line in _lines()).rstrip() + "\n"


def _lines() -> Iterator[str]:
    known = configs()
    for script, page in FULL.items():
        yield from [f"## {script}", "", f"See {page}.", ""]
        yield from [*table(flags(known[script])), ""]
    for script, base in VARIANTS.items():
        new, gone = differences(known[script], known[base])
        yield from [
            f"## {script}",
            "",
            f"It has the flags of `{base}`, with these differences:",
            "",
        ]
        if gone:
            yield from [f"- without {', '.join(f'`--{name}`' for name in gone)}", ""]
        yield from [*table(new), ""]
    yield from ["## python -m erl", "", "See [learners](learners/README.md).", ""]
    yield from [*table(flags(known["-m erl"])), ""]
    yield from [
        "## python -m erl.film",
        "",
        "See [a film](reading_results.md#a-film-of-an-agent).",
        "",
    ]
    yield from [*table(flags(known["-m erl.film"])), ""]
    yield from ["## erl eval", "", "See [an evaluation](reading_results.md#an-evaluation).", ""]
    yield from [*table(flags(known["erl eval"])), ""]
    yield from ["## python -m erl.figures", "", "See [figures](figures.md).", ""]
    yield from [*table(flags(known["-m erl.figures"])), ""]
    yield from ["## python -m erl.studies", "", "See [storages](storages.md).", ""]
    for command, kind in known.items():
        if command.startswith("-m erl.studies "):
            yield from [f"### {command.split()[-1]}", "", *table(flags(kind)), ""]
    yield from ["## erl dashboard", "", "See [a study in the browser](dashboard.md).", ""]
    yield from [*table(flags(known["erl dashboard"])), ""]


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
