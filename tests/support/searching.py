"""A process that searches a gallery of pictures by text, turn by turn, until it is told to stop.

python searching.py FOLDER_OF_DATABASE QUERIES.json STOP_FILE RESULTS.json
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from oml_mlflow.planning.records import LOADING
from oml_mlflow.targets.embedded.target import EmbeddedTarget

PER_TURN = 50
SEARCH = (
    "SELECT caption FROM pictures WHERE embedding IS NOT NULL "
    "ORDER BY array_cosine_distance(embedding, CLIP_TXT(?)), id LIMIT 1"
)


def main(folder: str, queries: str, stop: str, results: str) -> None:
    """Write of each query what was found, and while what; and how long turns were waited for."""
    target = EmbeddedTarget(folder, timeout_s=120)
    texts, at = json.loads(Path(queries).read_text(encoding="utf-8")), 0
    found, waits = [], []
    while not Path(stop).exists():
        begun = time.monotonic()
        with target.connect("a search", create=False) as connection:
            waits.append(time.monotonic() - begun)
            [(phase,)] = connection.execute(
                "SELECT phase FROM oml.live WHERE name = 'CLIP'"
            ).fetchall()
            for _ in range(PER_TURN):
                text = texts[at % len(texts)]
                [(caption,)] = connection.execute(SEARCH, [text]).fetchall()
                found.append((text, caption, phase == LOADING))
                at += 1
    Path(results).write_text(json.dumps({"found": found, "waits": waits}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
