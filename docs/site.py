"""Hooks of mkdocs: the website has the layout of the project, and a page for each module.

So a link between two documents is the same on the website as in the project's folder.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent


def on_config(config: Any) -> Any:
    """Add the modules to the navigation, a group for each room."""
    rooms: dict[str, list[str]] = {}
    for module in modules():
        rooms.setdefault(".".join(module.split(".")[:2]), []).append(page(module))
    reference = [{room: pages} if len(pages) > 1 else pages[0] for room, pages in rooms.items()]
    for group in config.nav:
        if isinstance(group, dict) and "Reference" in group:
            group["Reference"] = reference
    return config


def on_files(files: Files, config: Any) -> Files:
    """The documents, figures and linked files of the project under their own paths."""
    kept = [file for file in files if file.generated_by is not None]
    documents = [name for name in known_to_git() if name.endswith(".md")]
    for name in documents + sorted(linked(documents)):
        kept.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    for module in modules():
        text = f"# {module}\n\n::: {module}\n"
        kept.append(File.generated(config, page(module), content=text))
    return Files(kept)


def known_to_git() -> list[str]:
    """Files of the project, new ones too, without what git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def linked(documents: list[str]) -> set[str]:
    """Files that documents show or link to, beside documents."""
    found = set()
    for name in documents:
        for target in re.findall(r"\]\(([^)\s#]+)", (ROOT / name).read_text(encoding="utf-8")):
            path = (ROOT / name).parent.joinpath(target).resolve()
            if path.is_file() and path.is_relative_to(ROOT) and path.suffix != ".md":
                found.add(str(path.relative_to(ROOT)))
    return found


def modules() -> list[str]:
    """Names of the modules that have something to show."""
    names = []
    for path in sorted((ROOT / "erl").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__main__":
            continue
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return sorted(names)


def page(module: str) -> str:
    """The page of a module."""
    return f"reference/{module}.md"
