"""The command line, `oml-mlflow`: thin verbs over the Python interface.

Exit codes: 0 ok, 1 handled error, 2 changes pending (only `plan --detailed-exitcode`), 3 vectors or
models differ, 64 usage, 75 try again, 130 interrupted.
"""

from __future__ import annotations

import click

from oml_mlflow import (
    cli_config,
    cli_database,
    cli_fleet,
    cli_model,
    cli_promotion,
    cli_standing,
    cli_webhook,
    console,
)
from oml_mlflow._version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Turn CLIP models into pipeline pairs, version them, and promote them into databases.

    The registry is MLflow's: set MLFLOW_TRACKING_URI as for every MLflow command.
    """


for _verb in (
    cli_model.export,
    cli_model.log,
    cli_model.relog,
    cli_model.check,
    cli_database.preflight,
    cli_promotion.plan,
    cli_fleet.apply,
    cli_fleet.reconcile,
    cli_standing.drift,
    cli_fleet.pin,
    cli_fleet.unpin,
    cli_promotion.promote,
    cli_promotion.rollback,
    cli_promotion.drop,
    cli_promotion.columns,
    cli_database.verify,
    cli_database.status,
    cli_database.history,
    cli_database.fingerprints,
    cli_database.sql,
    cli_config.config,
    cli_webhook.serve_webhook,
    cli_webhook.webhook,
):
    cli.add_command(_verb)


def main() -> None:
    """Run the command line."""
    console.run(cli)


if __name__ == "__main__":
    main()
