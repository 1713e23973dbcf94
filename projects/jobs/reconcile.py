"""Make every bound name what its alias says, once, or again and again."""

from __future__ import annotations

import signal
import sys
import threading
from typing import TYPE_CHECKING

import click
from record import configured, log_pass, recorded_apply

from oml_mlflow.cli import console
from oml_mlflow.commands import operate
from oml_mlflow.commands.operate import Options
from oml_mlflow.config.file import Config
from oml_mlflow.errors import OmlMlflowError
from oml_mlflow.registry.answering import started_run

if TYPE_CHECKING:
    from oml_mlflow.reconciler.loop import Pass


@click.command()
@click.option("--once", type=bool, default=True, help="One pass, or pass after pass.")
@click.option("--retry", type=bool, default=False, help="Try again what failed before.")
@click.option("--model", default="", help="Only bindings of this registered model.")
@click.option("--config", required=True, help="oml_mlflow.toml with targets and bindings.")
def main(once: bool, retry: bool, model: str, config: str) -> None:
    """Make every bound name what its alias says, once, or again and again."""
    if model and not once:
        raise click.UsageError("without once=true it is about all bindings: leave out model.")
    found, options = configured(config), Options(retry=retry)
    with started_run():
        if not once:
            _watch(found, options)
        elif code := recorded_apply(found, [model] if model else [], options):
            sys.exit(code)


def _watch(config: Config, options: Options) -> None:
    """Log every pass that changed anything, until SIGTERM or Ctrl-C."""
    stop, steps = threading.Event(), iter(range(sys.maxsize))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: stop.set())

    def record(found: Pass | OmlMlflowError) -> None:
        try:
            if isinstance(found, OmlMlflowError):
                raise found
            if found.outcomes:
                log_pass(found, next(steps))
        except OmlMlflowError as error:
            console.show_error(error)

    operate.watch(stop, on_pass=record, options=options, config=config)


if __name__ == "__main__":
    console.run(main)
