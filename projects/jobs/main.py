"""The main job: a CLIP model becomes a pair, a version, and a searchable model in a database."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

import click
import gallery
import mlflow
from export import export_and_log
from grid import result_grid

from oml_mlflow import open_target, promote
from oml_mlflow.cli import console
from oml_mlflow.commands.columns import columns
from oml_mlflow.commands.operate import verify_bytes
from oml_mlflow.names import IMG
from oml_mlflow.registry.answering import answering, started_run

if TYPE_CHECKING:
    from oml_mlflow.promotion.verify import Trace
    from oml_mlflow.targets.embedded.connection import Connection
    from oml_mlflow.targets.embedded.target import EmbeddedTarget

_SHOWN, _COUNT = 4, 5


@click.command()
@click.option("--model", default="demo", help="Hub id, folder, or demo.")
@click.option("--name", default="clip", help="Export name, and name of the registered model.")
@click.option("--alias", default="prod", help="Alias that the promotion follows.")
@click.option("--target", default="embedded:///database", help="Embedded database.")
@click.option("--pictures", default="", help="Folder of pictures; held-out drawings by default.")
def main(model: str, name: str, alias: str, target: str, pictures: str) -> None:
    """Export, log, register, promote, fill a table, search it in SQL, and show the result."""
    database = open_target(target)
    entries = gallery.folder_entries(pictures) if pictures else gallery.held_out_entries()
    if not entries:
        raise click.UsageError(f"{pictures} holds no pictures.")
    with tempfile.TemporaryDirectory() as scratch, started_run() as run:
        with console.progress() as listener:
            version, pair = export_and_log(model, name, alias, scratch, listener)
            done = promote(
                f"models:/{name}@{alias}",
                database,
                accept_new_geometry=_is_only_user(database, name),
                on_event=listener,
            )
        traces = verify_bytes(name, database, [pair.img, pair.txt])
        with database.connect("the search") as connection:
            gallery.fill(connection, name, pair.dims, entries)
            results = _search(connection, name, entries)
            recalls = {} if pictures else _recalls(connection, name)
        columns(name, database, add=gallery.column(name), source="picture", side=IMG, key="id")
        title = f"Found in SQL by {name} version {version.version}"
        with answering("the results were not logged", state="The pair is live."):
            mlflow.log_metrics({f"recall_at_1/{kind}": value for kind, value in recalls.items()})
            mlflow.log_figure(result_grid(title, results), "search.png")
    _show_bytes(version.uri, traces)
    _show_results(results)
    for kind, value in recalls.items():
        console.out.print(
            f"recall@1 {kind.replace('_', ' ')}: {value:.3f} over {len(entries)} held-out pictures"
        )
    entry = done.entry
    console.out.print(
        f"{entry.name}_IMG and {entry.name}_TXT in {database.uri} are {version.uri}, alias "
        f"{alias}, generation {entry.generation}; run {run.info.run_id} holds search.png.",
        markup=False,
    )


def _is_only_user(database: EmbeddedTarget, name: str) -> bool:
    """Return whether nothing but this job's own table, filled anew here, holds its vectors."""
    return all(dependant.name == gallery.column(name) for dependant in columns(name, database))


def _search(
    connection: Connection, name: str, entries: list[gallery.Entry]
) -> list[tuple[str | bytes, list[gallery.Hit]]]:
    step = max(1, len(entries) // _SHOWN)
    numbers = range(0, len(entries), step)[:_SHOWN]
    results: list[tuple[str | bytes, list[gallery.Hit]]] = []
    for number in numbers:
        caption = entries[number].caption
        results.append((caption, gallery.search_text(connection, name, caption, _COUNT)))
    for number in numbers[: _SHOWN // 2]:
        query = entries[number].another or entries[number].picture
        results.append((query, gallery.search_picture(connection, name, query, _COUNT)))
    return results


def _recalls(connection: Connection, name: str) -> dict[str, float]:
    return {
        "text_to_image": gallery.text_recall(connection, name),
        "image_to_image": gallery.picture_recall(connection, name),
    }


def _show_bytes(uri: str, traces: list[Trace]) -> None:
    rows = [(t.side, t.place, t.sha256, "equal" if t.ok else "DIFFERS") for t in traces]
    console.show_table(f"Bytes of {uri}", ("side", "where", "sha256", ""), rows)


def _show_results(results: list[tuple[str | bytes, list[gallery.Hit]]]) -> None:
    rows = []
    for query, hits in results:
        shown = query if isinstance(query, str) else f"a picture ({len(query):,} bytes)"
        best = hits[0]
        rows.append((shown, best.caption, f"{best.distance:.4f}"))
    console.show_table("Searched in SQL", ("query", "nearest picture", "cosine distance"), rows)


if __name__ == "__main__":
    console.run(main)
