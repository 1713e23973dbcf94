"""The command line, `oml-mlflow`: thin verbs over `oml_mlflow.commands`.

Exit codes: 0 ok, 1 handled error, 2 changes pending (only `plan --detailed-exitcode`), 3 vectors or
models differ, 64 usage, 74 done, but its output could not be written, 75 try again, 130
interrupted.

Verbs import what they need when they run: MLflow alone would delay `--help` by seconds.
"""

from __future__ import annotations

import click

from oml_mlflow._version import __version__
from oml_mlflow.cli import config, console, data, inspect, model, promotion, webhook

_GROUPS = {
    "Build": (model.export, model.log, model.check, model.relog, model.embed),
    "Promote": (
        promotion.plan,
        promotion.apply,
        promotion.promote,
        promotion.rollback,
        promotion.pin,
        promotion.unpin,
        promotion.drop,
        inspect.preflight,
    ),
    "Data": (data.columns, data.fill, data.sql),
    "Look": (inspect.status, inspect.models, inspect.history, inspect.verify, config.config),
    "Serve": (webhook.serve_webhook, webhook.webhook),
}


class _Grouped(click.Group):
    """Verbs under the headings of `_GROUPS`, their first lines whole."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each group of verbs as a section of its own."""
        for title, verbs in _GROUPS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(verb.name or "", verb.get_short_help_str(limit=1000)) for verb in verbs]
                )


@click.group(cls=_Grouped, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Turn CLIP models into pipeline pairs, version them, and promote them into databases.

    The registry is MLflow's: set MLFLOW_TRACKING_URI as for every MLflow command. The shell
    completes verbs, options and targets once it has run
    eval "$(_OML_MLFLOW_COMPLETE=bash_source oml-mlflow)", or zsh_source.
    """


for _verbs in _GROUPS.values():
    for _verb in _verbs:
        cli.add_command(_verb)


def main() -> None:
    """Run the command line."""
    console.run(cli)


if __name__ == "__main__":
    main()
