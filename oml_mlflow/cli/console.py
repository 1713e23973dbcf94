"""Shared by all verbs: options, configuration, progress, output, errors."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from oml_mlflow.cli.streams import guarded
from oml_mlflow.documents import as_json, damaged
from oml_mlflow.errors import OmlMlflowError, OutputError
from oml_mlflow.events import Event, Listener
from oml_mlflow.planning.records import now

if TYPE_CHECKING:
    from oml_mlflow.commands.chosen import Chosen
    from oml_mlflow.config.file import Config
    from oml_mlflow.parity.report import ParityReport

_USAGE, _INTERRUPTED = 64, 130
_CONFIG = "oml_mlflow.config"
_F = TypeVar("_F", bound=Callable[..., Any])


def _complete_target(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[str]:
    """Return the declared targets for the shell; model names would take seconds a key."""
    from oml_mlflow.config.file import load_config

    with suppress(OmlMlflowError):
        return [name for name in load_config().targets if name.startswith(incomplete)]
    return []


json_option = click.option("--json", "as_json", is_flag=True, help="Write one JSON document.")
name_option = click.option(
    "--name", help="Export name in the database; the registered model's name by default."
)

html_option = click.option(
    "--html",
    type=click.Path(dir_okay=False),
    help="Write the comparison to this file too, as a page for a browser.",
)


config_option = click.option(
    "--config",
    type=click.Path(dir_okay=False),
    expose_value=False,
    callback=lambda context, option, value: context.meta.update({_CONFIG: value}),
    help="Configuration; by default $OML_MLFLOW_CONFIG, else oml_mlflow.toml.",
)
CHANGES_PENDING = 2
model_option = click.option(
    "--model", "models", multiple=True, help="Only bindings of this registered model; repeatable."
)
declared_option = click.option(
    "--target", shell_complete=_complete_target, help="Only this declared target."
)
_SWITCHES = {
    "retry": "Try again what failed before.",
    "heal": "Load again what was changed outside this package, whatever the policy is.",
    "adopt": "Take over foreign models under the live names; they are kept, and never dropped.",
    "take_over": "Let names change hands, from another model or registry; implies --adopt.",
    "accept_new_geometry": "Go on where stored vectors can't be compared with new ones.",
    "reembed": "Take stored vectors along: registered columns are made anew, and change with it.",
    "unverified": "Also what nothing here can run or compare with references.",
}


def allowing(*names: str) -> Callable[[_F], _F]:
    """Give a verb switches of `Options`; the same words mean the same in every verb."""

    def add(function: _F) -> _F:
        for name in reversed(names):
            flag = f"--{name.replace('_', '-')}"
            function = click.option(flag, is_flag=True, help=_SWITCHES[name])(function)
        return function

    return add


def target_options(function: _F) -> _F:
    """Give a verb the options --target, --timeout and --config."""
    timeout = click.option(
        "--timeout",
        type=click.FloatRange(min=0),
        help="Seconds to wait for another process to let go of the database; 30 by default.",
    )
    target = click.option(
        "--target",
        shell_complete=_complete_target,
        help="Name of a declared target, or embedded:///folder, or oracle://user@host/service; "
        "by default $OML_MLFLOW_TARGET, else the configuration's, else embedded:///database.",
    )
    return target(timeout(config_option(function)))


def target_option(function: _F) -> Callable[..., Any]:
    """Give a verb the options of `target_options`, as the one argument `chosen`."""

    @wraps(function)
    def run(*, target: str | None, timeout: float | None, **given: Any) -> Any:
        return function(chosen=choose(target, timeout), **given)

    return target_options(run)


def configuration(timeout: float | None = None, **flags: Any) -> Config:
    """Return the configuration, of the file that --config names, if it was given."""
    from oml_mlflow.config.file import load_config

    config = load_config(click.get_current_context().meta.get(_CONFIG), flags=flags)
    return config if timeout is None else config.waiting(timeout)


def choose(target: str | None, timeout: float | None) -> Chosen:
    """Return the target that --target names, or else the configuration. Nothing is opened yet."""
    from oml_mlflow.commands.chosen import choose as run

    return run(target, configuration(timeout))


# wide enough for a fingerprint and its place on one line of a log
_PIPE_WIDTH = 160
_SECONDS_BETWEEN_LINES = 30.0

_is_terminal = sys.stdout is not None and sys.stdout.isatty()
out = Console(highlight=False, soft_wrap=True, width=None if _is_terminal else _PIPE_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class _DoneColumn(ProgressColumn):
    """Bytes as MB, others as a count; of rows the rate, and the time left, too."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes, self._count = DownloadColumn(), MofNCompleteColumn()
        self._left = TimeRemainingColumn()

    def render(self, task: Task) -> Text:
        """Return what is done of a task."""
        done = (self._bytes if task.fields["unit"] == "bytes" else self._count).render(task)
        if task.fields["unit"] != "rows":
            return done
        rate = f" {task.speed:,.1f}/s" if task.speed else ""
        return Text.assemble(done, rate, ", left ", self._left.render(task))


@contextmanager
def progress(quiet: bool = False) -> Iterator[Listener]:
    """Show events as bars on a terminal; elsewhere as a line each once done."""
    if quiet:
        yield lambda event: None
        return
    if not err.is_terminal:
        yield _Plain()
        return
    columns = [TextColumn("{task.description}"), BarColumn(), _DoneColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=err, transient=True) as bars:
        tasks: dict[tuple[str, str], TaskID] = {}

        def listen(event: Event) -> None:
            key = (event.stage, event.item)
            if key not in tasks:
                label = escape(f"{event.stage} {event.item}")
                tasks[key] = bars.add_task(label, total=event.total, unit=event.unit)
            bars.update(tasks[key], completed=event.done, total=event.total)

        yield listen


class _Plain:
    """A line for what is done; of rows, which may take hours, one every half minute, too."""

    def __init__(self) -> None:
        self._first: Event | None = None
        self._began = self._told = 0.0

    def __call__(self, event: Event) -> None:
        at = time.monotonic()
        if self._first is None:
            self._first, self._began, self._told = event, at, at
        if event.done >= event.total:
            err.print(f"{event.stage} {event.item}: {event.total:,} {event.unit}", markup=False)
        elif event.unit == "rows" and at - self._told > _SECONDS_BETWEEN_LINES:
            rate = (event.done - self._first.done) / (at - self._began)
            left = (event.total - event.done) / rate / 60
            said = f"{event.done:,} of {event.total:,} rows, {rate:,.1f} a second"
            err.print(f"{event.stage} {event.item}: {said}, {left:,.0f} min left", markup=False)
            self._told = at


def say(text: str) -> None:
    """Write text to stdout as it is."""
    out.print(text, markup=False)


def show_json(document: dict[str, Any]) -> None:
    """Write one JSON document to stdout; see `as_json` for what JSON has no values for."""
    written = json.dumps(as_json({"format_version": 1, **document}), indent=1, allow_nan=False)
    sys.stdout.write(f"{written}\n")


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table to stdout; cells are text, never markup."""
    table = Table(title=escape(title), title_justify="left")
    for column in columns:
        table.add_column(escape(column), overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    out.print(table)


def show_report(report: ParityReport) -> None:
    """Write a comparison to stdout: classes, probes, summary."""
    from oml_mlflow.parity.report import COLUMNS

    show_table(
        report.title,
        ("class", "demanded", "probes", "max abs", "cosine", "state"),
        [
            (
                c.category,
                c.level,
                f"{c.compared} of {c.count}",
                f"{c.max_abs:.1e}" if c.compared else "-",
                f"{c.min_cosine:.7f}" if c.compared else "-",
                c.state,
            )
            for c in report.by_class()
        ],
    )
    show_table("Probes", COLUMNS, report.to_table())
    out.print(f"{'right' if report.ok else 'WRONG'}: {report.summary}.", markup=False)


def write_page(report: ParityReport, path: str, version: str, target: str) -> None:
    """Write a comparison into an HTML file."""
    from oml_mlflow.parity.page import to_html

    facts = {"version": version, "target": target, "when": f"{now():%Y-%m-%d %H:%M} UTC"}
    what, hint = f"{path} can't be written", "`oml-mlflow verify --html FILE` writes it too."
    with damaged(what, OutputError, hint=hint, state="The rest was done."):
        Path(path).write_text(to_html(report, facts), "utf-8", "backslashreplace")


def show_error(error: OmlMlflowError) -> None:
    """Write an error with its code and its next step to stderr."""
    err.print(f"[bold red]error\\[{error.code}][/]: {escape(error.message)}")
    if error.hint:
        err.print(f"  Next: {escape(error.hint)}")


class _Warnings(logging.Handler):
    """Warnings as one line each, without tracebacks: those are for a log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a warning to stderr."""
        err.print(f"warning: {record.getMessage()}", markup=False)


def run(command: click.Command) -> None:
    """Run a command as a program: errors on stderr, the documented exit codes."""
    # importing MLflow or torch makes most of a verb's objects; looking through them again and again
    # for garbage, and once more at the end, takes half of a short verb's time (measured)
    gc.set_threshold(20_000, 50, 1_000)
    # like Ctrl-C, so that what was begun is undone
    signal.signal(signal.SIGTERM, _interrupt)
    if not err.is_terminal:
        # MLflow's bars would fill a log
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logger, warnings = logging.getLogger("oml_mlflow"), _Warnings(logging.WARNING)
    logger.addHandler(warnings)
    with guarded() as stdout:
        code = _run(command)
        logger.removeHandler(warnings)
        stdout.flush()
        if stdout.failure and not code:
            said = f"what was asked for was done, but stdout can't be written ({stdout.failure})."
            show_error(OutputError(said, hint="write it elsewhere, or make room there."))
            code = OutputError.exit_code
    gc.freeze()
    sys.exit(code)


def _run(command: click.Command) -> int:
    try:
        return int(command.main(standalone_mode=False) or 0)
    except SystemExit as done:
        return int(done.code or 0)
    except (click.Abort, KeyboardInterrupt):
        err.print("interrupted; nothing was left half done.")
        return _INTERRUPTED
    except click.ClickException as error:
        error.show()
        return _USAGE
    except OmlMlflowError as error:
        show_error(error)
        return error.exit_code


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
