"""The command line, `oml-mlflow`: thin verbs over the Python interface.

Exit codes: 0 ok, 1 handled error, 2 changes pending (only `plan --detailed-exitcode`), 3 vectors or
models differ, 64 usage, 75 try again, 130 interrupted.

Verbs import what they need when they run: MLflow alone would delay `--help` by seconds.
"""

from __future__ import annotations

import click

from oml_mlflow._version import __version__
from oml_mlflow.cli import config, console, inspect, model, promotion, reconcile, webhook


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Turn CLIP models into pipeline pairs, version them, and promote them into databases.

    The registry is MLflow's: set MLFLOW_TRACKING_URI as for every MLflow command.
    """


for _verb in (
    model.export,
    model.log,
    model.relog,
    model.check,
    inspect.preflight,
    promotion.plan,
    promotion.apply,
    reconcile.reconcile,
    reconcile.drift,
    reconcile.pin,
    reconcile.unpin,
    promotion.promote,
    promotion.rollback,
    promotion.drop,
    inspect.columns,
    inspect.verify,
    inspect.status,
    inspect.history,
    inspect.fingerprints,
    inspect.sql,
    config.config,
    webhook.serve_webhook,
    webhook.webhook,
):
    cli.add_command(_verb)


def main() -> None:
    """Run the command line."""
    console.run(cli)


if __name__ == "__main__":
    main()
