"""What all commands share: start and end, live progress, clear errors, and the words that start the
next command.
"""

import io
import math
import os
import re
import shlex
import shutil
import signal
import sys
import time
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from erl.errors import UserError, describe, one_line
from erl.parsing import option, parse

__all__ = [
    "Display",
    "Interruptible",
    "Sink",
    "command",
    "duration",
    "exit_after",
    "fail",
    "main",
    "option",
    "parse",
    "plural",
    "score_text",
    "this_command",
    "without_passwords",
]

# SIGTERMs that follow one another within this time are one.
TOGETHER_SECONDS = 2.0


def main(
    run: Callable[..., int | None] | str,
    kind: type,
    description: str,
    argv: Sequence[str] | None = None,
    program: str | None = None,
    example: str | None = None,
) -> typing.NoReturn:
    """A script: read flags into `kind`, call `run` with it and a progress display, exit.

    `run` may be given as `module:function`. It is imported when the flags have been read, so that
    `--help` and flags that are refused do not wait for libraries.

    Exit codes: 0 done, 1 something failed for good, also the output, 2 bad input (one line on
    stderr), 130 Ctrl-C.
    """
    program = program or os.path.basename(sys.argv[0])

    def work() -> int | None:
        configuration = parse(kind, argv, program, description, example)
        function = _imported(run) if isinstance(run, str) else run
        with Interruptible() as interruptible, warnings.catch_warnings():
            display = Display()
            warnings.showwarning = _shown_once(display)
            try:
                code = function(configuration, display)
            finally:
                display.close()  # the terminal's cursor is hidden while a line is live
        if interruptible.interrupted:  # another Ctrl-C ends what is left without a word
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        return code

    exit_after(work, program)


def exit_after(work: Callable[[], int | None], program: str | None = None) -> typing.NoReturn:
    """Do a script's work, and exit with what it returns, or with the code that `main` names. If
    whoever reads the output, such as `head`, has seen enough, it ends without a word.
    """
    program = program or os.path.basename(sys.argv[0])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a letter shows something for it.
            stream.reconfigure(errors="replace")
    try:
        code = work()
    except UserError as e:
        fail(program, str(e))
    except KeyboardInterrupt as e:
        if e.args:  # of a signal
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        _complain(f"{program}: interrupted")
        leave(130)
    except BrokenPipeError:
        os._exit(1)
    except SystemExit as e:  # help was asked for
        leave(e.code)
    leave(code or 0)


def show(text: str) -> typing.NoReturn:
    """Print what was asked for, and exit."""
    leave(0, f"{text}\n")


def leave(code: Any, last: str = "") -> typing.NoReturn:
    """Print the last words and exit, also if whoever reads the output, such as `head`, has seen
    enough. If there is no place for the output, 0 becomes 1.
    """
    try:
        sys.stdout.write(last)
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(1)
    except OSError as e:
        _complain(f"the output is incomplete: {describe(e)}")
        _to_nowhere(sys.stdout)
        code = code or 1
    sys.exit(code)


def _complain(text: str) -> None:
    """Print a line on stderr, if there is place."""
    try:
        print(text, file=sys.stderr)
    except OSError:
        _to_nowhere(sys.stderr)


def _to_nowhere(stream: typing.TextIO) -> None:
    """What a stream could not write would be tried again at the end, and change the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _shown_once(display: "Display") -> Callable[..., None]:
    """Shows each warning of a library as one line, once, in place of `warnings.showwarning`."""
    seen = set()

    def show(message: Any, *_: Any, **__: Any) -> None:
        line = one_line(message)
        if line not in seen:
            seen.add(line)
            display.line(f"warning: {line}")

    return show


def fail(program: str, message: str) -> typing.NoReturn:
    """Say in one line what is wrong with the input, and exit with code 2."""
    _complain(f"{program}: error: {without_passwords(one_line(message))}")
    leave(2)


def _imported(name: str) -> Callable[..., int | None]:
    """The function that `module:function` names."""
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


# Commands that have a script of their own in the project's folder.
SCRIPTS = {
    "evolve": "evolve_res.py",
    "evolve-multi": "evolve_multi_res.py",
    "evolve-generalization": "evolve_generalization.py",
    "test": "test.py",
    "test-multi": "test_multi_res.py",
    "test-generalization": "test_generalization.py",
}


def command(*words: str) -> str:
    """A command of this project as it can be typed in the shell that started this one, quoted.

    A script of the project's folder names scripts, `erl` names `erl`, and Python is named by its
    path unless `python` is the interpreter that runs here.

    Args:
        words: the command as `erl` takes it, and its flags: "test", "--study", "x".
    """
    program = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path("-")
    if program.stem == "erl" and program.suffix != ".py":
        return shlex.join([_program("erl", program), *words])
    python = _program("python", Path(sys.executable))
    if program.name in SCRIPTS.values() and words[0] in SCRIPTS:
        return shlex.join([python, str(program.with_name(SCRIPTS[words[0]])), *words[1:]])
    return shlex.join([python, "-m", "erl", *words])


def this_command() -> str | None:
    """The command that started this process, as others can type it; None where it is none of this
    project's, as in a notebook.
    """
    program, words = Path(sys.argv[0] if sys.argv else ""), sys.argv[1:]
    if program.name in SCRIPTS.values():
        start = ["python", program.name]
    elif program.stem == "erl" and program.suffix != ".py":
        start = ["erl"]
    elif program.parts[-2:] == ("erl", "__main__.py"):
        start = ["python", "-m", "erl"]
    else:
        return None
    for i, word in enumerate(words[:-1]):
        if word.endswith("password"):  # of a flag
            words[i + 1] = "***"
    words = [re.sub(r"^(--[\w-]*password=).*", r"\1***", word, flags=re.S) for word in words]
    return shlex.join([*start, *map(without_passwords, words)])


def installed(name: str) -> str:
    """A program of the environment in which this one runs, as it can be typed in the shell."""
    path = Path(sys.executable).with_name(name)
    return _program(name, path) if path.exists() else name


def _program(name: str, path: Path) -> str:
    """A program by its name if the shell finds this one, else by its path."""
    for known in dict.fromkeys((name, path.name)):
        found = shutil.which(known)
        # Not the file that a link leads to: environments link to one interpreter.
        if found is not None and Path(found).parent.absolute() == path.parent.absolute():
            return known
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def without_passwords(text: str) -> str:
    """Text in which no address shows its password: the last guard, for what the user typed comes
    back in messages.
    """
    # A user may hold an @, as those of Azure do: admin@server.
    text = re.sub(r"(://[^\s:/]*):[^\s]*@", r"\1:***@", text)
    return re.sub(r"([?&][^\s=&]*pass[^\s=&]*=)[^\s&#]*", r"\1***", text, flags=re.I)


class Interruptible:
    """First Ctrl-C (or SIGTERM, as SLURM sends it): KeyboardInterrupt once, for a clean end.
    Second: the end at once.

    A SIGTERM that follows at once is no second one: SLURM sends it to a script, which passes it on,
    and to its children.
    """

    def __enter__(self) -> "Interruptible":
        self._count, self._last = 0, -math.inf
        self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def interrupted(self) -> bool:
        """Whether there was a signal."""
        return self._count > 0

    def _handle(self, number: int, frame: Any) -> None:
        before, self._last = self._last, time.monotonic()
        if number == signal.SIGTERM and self._last - before < TOGETHER_SECONDS:
            return
        self._count += 1
        if self._count > 1:
            # Workers notice that their parent is gone; nothing is left to tidy that a next start
            # would not.
            if sys.stdout.isatty():
                # The cursor, which the status line hides.
                os.write(sys.stdout.fileno(), b"\x1b[?25h\n")
            os._exit(128 + number)
        raise KeyboardInterrupt(signal.Signals(number).name)


class Sink(Protocol):
    """Where lines and the status go: `Display` is one."""

    def line(self, text: str) -> None:
        """Print a line that stays."""

    def status(self, text: str) -> None:
        """Show how far things are."""

    def close(self) -> None:
        """Take the status away."""


class Display:
    """Lines that stay, and one line at the bottom that shows how far things are.

    On a terminal the bottom line moves; elsewhere it is printed once a minute. What finds no place,
    as on a full disk, is lost, and a run goes on.
    """

    def __init__(self, every: float = 60.0) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._every, self._printed = every, time.monotonic()

    def line(self, text: str) -> None:
        """Print a line that stays."""
        with self._or_lost():
            self.console.print(Text(text))

    def status(self, text: str) -> None:
        """Show the bottom line."""
        if self.console.is_terminal:
            with self._or_lost():
                if self._live is None:
                    self._live = Live(console=self.console, refresh_per_second=4, transient=True)
                    self._live.start()
                self._live.update(Text(text, no_wrap=False, overflow="fold"))
        elif time.monotonic() - self._printed >= self._every:
            self._printed = time.monotonic()
            self.line(text)

    def close(self) -> None:
        """Take the bottom line away."""
        live, self._live = self._live, None
        if live is not None:
            with self._or_lost():
                live.stop()

    @contextmanager
    def _or_lost(self) -> Iterator[None]:
        """What cannot be printed meanwhile is lost. A reader that is gone is another matter."""
        try:
            yield
        except OSError:
            # Else the console prints it again before each later line.
            self.console.quiet = True
            self.console.print()
            self.console.quiet = False


def score_text(value: float | None) -> str:
    """Two decimals, or four significant digits below 10: returns run to thousands, normalised
    scores lie around 1.
    """
    if value is None:
        return "-"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4g}"


def value_text(value: Any, digits: int = 6) -> str:
    """A hyperparameter; of other programs' studies they need not be numbers."""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def params_text(params: Mapping[str, Any], digits: int = 6, between: str = ", ") -> str:
    """Hyperparameters in a line: `sr 0.9, lr 0.25`."""
    return between.join(f"{name} {value_text(v, digits)}" for name, v in params.items())


def plural(n: int, word: str, many: str | None = None) -> str:
    """`1 seed`, `3 seeds`; `many` where the plural is another word."""
    return f"{n:,} {word if n == 1 else many or word + 's'}"


def duration(seconds: float) -> str:
    """`2 d 3 h`, `3 h 20 min`, `4 min 10 s`, `12 s`."""
    seconds = round(max(0.0, seconds))
    days, rest = divmod(seconds, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, seconds = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    if minutes:
        return f"{minutes} min {seconds:02d} s"
    return f"{seconds} s"
