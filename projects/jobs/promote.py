"""Point an alias to a version, and have every database that follows it take that version."""

from __future__ import annotations

import sys

import click
import mlflow
from record import configured, recorded_apply

from oml_mlflow.cli import console
from oml_mlflow.registry.answering import answering, started_run
from oml_mlflow.registry.versions import get_version, register_alias


@click.command()
@click.option("--model-uri", required=True, help="Version, such as models:/clip/3.")
@click.option("--alias", default="prod", help="Alias to point to it.")
@click.option("--config", required=True, help="oml_mlflow.toml with targets and bindings.")
def main(model_uri: str, alias: str, config: str) -> None:
    """Point an alias to a version, and have every database that follows it take that version."""
    found = configured(config)
    with started_run():
        version = get_version(model_uri)
        register_alias(version, alias)
        with answering("the run was not tagged", state=f"Alias {alias} is {version.uri}."):
            mlflow.set_tags({"oml.version": version.uri, "oml.alias": alias})
        code = recorded_apply(found, [version.name])
        if code:
            sys.exit(code)


if __name__ == "__main__":
    console.run(main)
