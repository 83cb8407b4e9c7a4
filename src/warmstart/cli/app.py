"""The commands put together, and how each of them ends: one line for an expected error, quietly when interrupted."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from warmstart.cli.create import create
from warmstart.cli.demo import demo
from warmstart.cli.evaluate import evaluate
from warmstart.cli.families import families
from warmstart.cli.generate import generate
from warmstart.cli.inspect import inspect
from warmstart.cli.rendering import say
from warmstart.cli.train import train

# As a shell reports a process that ended by SIGINT, by SIGPIPE.
INTERRUPTED, BROKEN_PIPE, BAD_USE = 130, 141, 2


class Commands(TyperGroup):
    """The group of all commands; typer calls `main` around everything, and `invoke` around the command itself."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command line and end the process; a mistake in it is one line and the exit code 2."""
        with _warnings_as_lines():
            try:
                code = super().main(*args, **{**options, "prog_name": "warmstart", "standalone_mode": False})
            except typer.Abort:
                code = INTERRUPTED
            except Exception as error:
                if not hasattr(error, "format_message"):  # of typer or click, whichever this typer is made on
                    raise
                code = _refuse(error)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error of bad input becomes one line, any other keeps its traceback."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except KeyboardInterrupt as error:
            say(str(error) or "interrupted")
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            # Nobody reads on, and Python is not to try again while it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(BROKEN_PIPE)
        except (ValueError, OSError, ImportError) as error:
            if ctx.params.get("traceback"):
                raise
            say(f"error: {_text_of(error)}")
            sys.exit(BAD_USE)


app = typer.Typer(
    cls=Commands,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="[dim]To see it work:[/] warmstart demo\n\n[dim]More on a command:[/] warmstart COMMAND --help",
)
app.command(
    epilog="[dim]Examples[/]"
    "\n\n  warmstart create --encoder bert-base-uncased --decoder gpt2 -o bert2gpt"
    "\n\n  warmstart create --encoder ./my-bert --tie all -o shared"
)(create)
app.command(
    epilog="[dim]Examples[/]"
    "\n\n  warmstart train bert2gpt pairs.jsonl -o summariser"
    "\n\n  warmstart train bert2gpt articles.txt --targets summaries.txt -o summariser --check"
    "\n\n  warmstart train bert2gpt pairs.jsonl -o summariser --resume"
)(train)
app.command(
    epilog="[dim]Examples[/]"
    "\n\n  warmstart evaluate summariser --data test.jsonl -o written.jsonl"
    "\n\n  warmstart evaluate baseline summariser --data test.jsonl --set num_beams=4"
)(evaluate)
app.command(
    epilog="[dim]Examples[/]"
    "\n\n  warmstart generate my-model articles.txt -o summaries.txt"
    "\n\n  warmstart generate my-model pairs.jsonl --input-field article --num-beams 4"
    "\n\n  echo 'One text to a line.' | warmstart generate my-model"
)(generate)
app.command(epilog="[dim]Examples[/]\n\n  warmstart inspect bert2gpt\n\n  warmstart inspect bert-base-uncased --json")(
    inspect
)
app.command(epilog="[dim]Examples[/]\n\n  warmstart families\n\n  warmstart families --json")(families)
app.command()(demo)


@app.callback(invoke_without_command=True)
def warmstart(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="With an error, show where it was raised.")] = False,
) -> None:
    """Any pretrained encoder and any pretrained decoder made one sequence-to-sequence model."""
    if version:
        from warmstart import __version__

        typer.echo(f"warmstart {__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def _refuse(error: Any) -> int:
    """Say what is wrong with a command line."""
    ctx = getattr(error, "ctx", None)
    help_at = f" (see {ctx.command_path} --help)" if ctx is not None else ""
    say(f"error: {' '.join(error.format_message().replace('Value error, ', '').split())}{help_at}")
    return int(error.exit_code)


def _text_of(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Say each warning for users once, as a line."""
    said: set[str] = set()

    def show(message: Any, *place: Any, **options: Any) -> None:
        if (text := str(message)) not in said:
            said.add(text)
            say(f"warning: {text}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield
