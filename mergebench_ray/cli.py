"""The command line: each command is one public function of `mergebench_ray.commands`."""

from __future__ import annotations

import io
import os
import sys
import traceback
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from mergebench_ray import interrupts
from mergebench_ray.commands.terminal import lists, machine, models, publishing, search
from mergebench_ray.errors import InputError, StoppedError
from mergebench_ray.markup import terminal_text

app = typer.Typer(
    help="Merge domain-specialised language models and search for the best merge, in parallel on Ray.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"mergebench-ray {version('mergebench_ray')}")
        raise typer.Exit


@app.callback()
def _before_any_command(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


data_app = typer.Typer(help="The data that tasks are made of.", no_args_is_help=True)

app.command()(search.tune)
app.command()(models.merge)
app.command()(models.advise)
app.command()(models.evaluate)
app.command()(publishing.push)
app.command()(models.adapter)
app.command()(models.gguf)
app.command()(publishing.verify)
app.command()(search.plan)
app.command()(search.status)
app.command()(search.replay)
app.command()(search.report)
app.command()(lists.methods)
app.command()(lists.suites)
app.command()(lists.sweeps)
app.command()(lists.families)
app.add_typer(data_app, name="data")
data_app.command("check")(lists.data_check)
app.command()(machine.doctor)
app.command()(machine.bench)
app.command("train-specialists")(machine.train_specialists)

_INTERRUPTED = 130  # what typer makes of Ctrl-C


def main() -> NoReturn:
    """Run a command.

    Exit status 0 if done, 2 if the input was wrong (one line says how), 128 and the signal's number if one ended it, 1
    for anything else.
    """
    interrupts.install()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be any bytes
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        status = app(standalone_mode=False)
    except InputError as error:
        _stop(f"error: {error}", 2)
    except StoppedError as error:
        _stop(f"error: {error}", 1)
    except typer.TyperException as error:
        text = error.format_message() if hasattr(error, "format_message") else str(error)
        _stop(" ".join(f"error: {text} (see --help)".split()), 2)
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has seen enough; the interpreter would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _stop(None, 1)
    except Exception:
        # An interrupt inside foreign code may come out as any other error.
        if not interrupts.received():
            traceback.print_exc()
            _stop(None, 1)
        status = _INTERRUPTED
    if status == _INTERRUPTED:
        _stop("stopped", interrupts.status())
    _stop(None, status if isinstance(status, int) else 0)


def _stop(message: str | None, status: int) -> NoReturn:
    interrupts.leave()
    with suppress(OSError):
        if message is not None:
            typer.echo(terminal_text(message), err=True)
    sys.exit(status)
