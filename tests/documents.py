"""The documents of the project, and what tests read out of them."""

import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path

from erl import cli

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "parallelization_tutorials/*.md")
    for path in ROOT.glob(pattern)
)


@cache
def text(document):
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document, language="sh"):
    """Contents of the fenced blocks of a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text(document), re.M | re.S)


def prose(document):
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text(document), flags=re.M | re.S)


def section(document, heading):
    """From a heading to the next of the same or a higher level."""
    level = len(heading) - len(heading.lstrip("#"))
    rest = text(document).split(f"\n{heading}\n")[1]
    return re.split(rf"^#{{1,{level}}} ", rest, flags=re.M)[0]


def commands(document):
    """Lines of shell blocks, and inline code that is a command."""
    lines = [
        line
        for block in blocks(document)
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(document))
    return lines + [code for code in inline if re.match(r"(python|erl|make|sbatch) \S", code)]


def anchors(document):
    """What a link may name behind `#`: headings, as GitHub spells them."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.M)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)|`", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def sentences(document):
    """Sentences of paragraphs and list items, without tables, code, links' targets and quotes."""
    body = re.sub(r"^(\||<|!\[|#|\s*@|\s*\}).*$", "", prose(document), flags=re.M)
    body = re.sub(r"\]\([^)]*\)", "]", body)
    for paragraph in re.split(r"\n\s*\n|^ *(?:-|\d+\.) ", body, flags=re.M):
        for sentence in re.split(r"(?<=[.!?:])\s+(?=[A-Z`*\[])", " ".join(paragraph.split())):
            if sentence:
                yield sentence


def generator():
    """The script that writes the page of flags, as a module."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = generator()
CONFIGS = GENERATOR.configs()


def parsed(command):
    """What the flags of a line that runs this project's Python mean; None for other lines."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    if words[:1] == ["erl"]:
        n = 3 if words[1] == "studies" else 2
        return cli.parse(CONFIGS[" ".join(words[:n])], words[n:])
    if words[:1] != ["python"] or words[1] == "-c":
        return None
    name = " ".join(words[1:3]) if words[1] == "-m" else words[1]
    name = {"erl/__main__.py": "-m erl"}.get(name, name)
    rest = words[3:] if words[1] == "-m" else words[2:]
    if name == "-m erl.studies":
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name in CONFIGS:
        return cli.parse(CONFIGS[name], rest)
    script = (ROOT / name).read_text(encoding="utf-8")  # a script with a parser of its own
    for flag in re.findall(r"--([\w-]+)", " ".join(rest)):
        assert flag in own_flags(script), f"{name} has no --{flag}"
    return None


def own_flags(script):
    """Flags of a benchmark: argparse's, a list of switches, or fields of a dataclass."""
    found = re.findall(r'"--([\w-]+)"', script) + re.findall(
        r"^    (\w+): .*option\(", script, re.M
    )
    for names in re.findall(r"for flag in \((.*?)\)", script):
        found += re.findall(r'"(\w+)"', names)
    return set(found)
