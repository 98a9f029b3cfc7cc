"""What emkit's command lines share, by click: errors of one line, commands listed in groups, options of several."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from emkit import words
from emkit.alignment.options import EngineOptions, parse_bytes
from emkit.disk import user_cache
from emkit.errors import UserError, not_installed, panicked, reason

PATH = click.Path(path_type=Path)


class Groups(click.Group):
    """A group that lists its commands in the order of their definition, each under the title that it was given."""

    def __init__(self, *args: Any, **more: Any):
        super().__init__(*args, **{"no_args_is_help": True, **more})
        self.titles: dict[str, str] = {}

    def under(self, title: str, command: click.Command) -> click.Command:
        """Add a command under a title."""
        self.add_command(command)
        self.titles[str(command.name)] = title
        return command

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title in dict.fromkeys(self.titles.get(name, "Commands") for name in self.commands):
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (name, command.get_short_help_str(90))
                        for name, command in self.commands.items()
                        if self.titles.get(name, "Commands") == title
                    ]
                )


def run(command: click.Command, arguments: Sequence[str] | None, name: str) -> int:
    """Run a command line and return its exit status; whatever a person did wrong is one line on stderr and status 2.

    Commands find the arguments as they were given in ``ctx.obj``.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    words.any_encoding()
    settings: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
    try:
        with _ended_by_term():
            status = command.main(given, prog_name=name, standalone_mode=False, obj=given, **settings)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return 0
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else name
        said = " ".join(error.format_message().split()).rstrip(".")
        return _wrong(f"{said[:1].lower()}{said[1:]} (`{where} --help` says more)")
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the interpreter's last flush
        return 1
    except UserError as error:
        return _wrong(str(error))
    except ModuleNotFoundError as error:
        return not_installed(error)
    except (KeyboardInterrupt, click.Abort) as error:
        _wrong("interrupted; the same command goes on from here")
        return 128 + (signal.SIGTERM if _Ended in (type(error), type(error.__cause__)) else signal.SIGINT)
    except MemoryError:
        return _wrong("out of memory: close other programs, or use a larger machine, and run the same command again")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _wrong(f"{where}{error.strerror or error}; the same command goes on from here")
    except Exception as error:  # a fault of ours: what was done is kept, and what is known of it too
        return _unexpected(error, name)
    except BaseException as error:
        if not panicked(error):
            raise
        return _wrong(f"a library gave up over a file ({reason(error)}): is a tokenizer's damaged? Download it again")


class _Ended(KeyboardInterrupt):
    """SIGTERM came."""


@contextlib.contextmanager
def _ended_by_term() -> Iterator[None]:
    """In the block SIGTERM, of `kill` and batch systems, ends the command as Ctrl-C does: with what it started."""
    if threading.current_thread() is not threading.main_thread():  # which alone may say so
        yield
        return

    def end(number: int, frame: object) -> None:
        raise _Ended

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _wrong(line: str) -> int:
    words.say(f"error: {line}")
    return 2


def _unexpected(error: Exception, name: str) -> int:
    """Keep what is known of a fault of ours in a file, and say where, in one line; returns the exit status."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    known = "".join(traceback.format_exception(error))
    try:
        folder = user_cache() / "faults"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = folder / f"{name.split()[-1]}-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.log"
        file.write_text(known, encoding="utf-8", errors="backslashreplace")
    except OSError:
        where = known  # rather than nothing
    else:
        where = str(file)
    words.say(f"error: this is a fault of emkit's, not yours ({said[:300]}); please report it with {where}")
    return 1


def together(*options: Callable) -> Callable:
    """Several options as one decorator, in this order."""

    def decorate(function: Callable) -> Callable:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


models = together(
    click.option("--base", metavar="MODEL", help="Folder or hub id of the model that the experts were made from."),
    click.option(
        "--expert",
        multiple=True,
        metavar="[NAME=]MODEL",
        help="An expert, once for each; its name is that of its folder unless one is given.",
    ),
)
_LIKE = (
    "Expert Merging(++) as the authors' code runs it by default: its loss, optimiser and order, one epoch, no hidden "
    "term unless hidden_weight is given, and its rounding where no coefficient has moved yet; γ, β and where the fit "
    "starts stay."
)
writing = together(
    click.option("--cache", type=PATH, help="Where calibration sets and fits are kept (default: beside --out)."),
    click.option("--shard-size", default="5GB", show_default=True, help="Largest file of weights."),
)
fits = together(
    click.option("--memory", help="What a fit may take on its device, such as 24GiB (default: all that a GPU has)."),
    click.option(
        "--place",
        type=click.Choice(["device", "host", "files"]),
        help="Where task vectors live during a fit (default: by --memory).",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16"]),
        default="float32",
        show_default=True,
        help="Of the merged weights during a fit.",
    ),
    click.option(
        "--micro-tokens",
        type=int,
        default=EngineOptions.micro_tokens,
        show_default=True,
        help="Padded tokens in one forward and backward; streamed task vectors are read once for each.",
    ),
    click.option("--checkpointing", is_flag=True, help="Recompute activations instead of keeping them."),
    click.option("--like", type=click.Choice(["authors"]), help=_LIKE),
)


def engine(flags: Mapping[str, Any], usual: EngineOptions | None = None) -> EngineOptions:
    """What the options of :data:`fits` say, or where one was not typed ``usual`` does; ``UserError`` for an amount of
    memory that is none."""
    known = {key: flags[key] for key in ("place", "dtype", "micro_tokens", "checkpointing", "like")}
    asked = EngineOptions(memory=None if flags["memory"] is None else parse_bytes(flags["memory"]), **known)
    if usual is None:
        return asked
    context = click.get_current_context()
    typed = {key for key in vars(asked) if context.get_parameter_source(key) is ParameterSource.COMMANDLINE}
    return replace(usual, **{key: getattr(asked, key) for key in typed})
