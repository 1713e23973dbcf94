"""One side of a pair, loaded: its graph whole, or cut into preparation and encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from oml_mlflow.documents import read_json
from oml_mlflow.errors import GraphError, PackageError
from oml_mlflow.graph.cut import INPUT_IDS, PIXEL_VALUES, PLANES
from oml_mlflow.graph.precision import INT8_DYNAMIC, read_precisions
from oml_mlflow.graph.runtime import Ends, open_session
from oml_mlflow.names import IMG, PROPERTY, TXT
from oml_mlflow.pair.pictures import give_back

# undecoded pixels: (height, width, 3)
RAW_RANK = 3


@dataclass(frozen=True)
class Side:
    """What runs one side of a pair.

    Attributes:
        session: The graph whole, or its encoder.
        ends: Its input and output.
        front: What prepares the encoder's input, if the graph is cut.
        front_ends: Its input and output.
    """

    session: Any
    ends: Ends
    front: Any = None
    front_ends: Ends | None = None

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """What the file says of itself, if it is one of ours."""
        properties = self.session.get_modelmeta().custom_metadata_map
        try:
            found = read_json(properties.get(PROPERTY, "{}"))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def input(self) -> Any:
        """The input's name, type and shape."""
        inputs = self.session.get_inputs()
        return next((given for given in inputs if given.name == self.ends.input), inputs[0])

    def at_once(self, side: str, most: int) -> int:
        """Return how many inputs may run together, of `most`.

        The scale of dynamic int8 is that of a whole run: there a vector would depend on others.
        """
        alone = read_precisions(self.metadata)[side] == INT8_DYNAMIC
        return 1 if alone or self.input.shape[:1] in ([], [1]) else most


def load_side(
    path: Path,
    side: str,
    ends: Ends,
    is_cut: bool,
    threads: int | None,
    providers: Sequence[str],
) -> Side:
    """Load one side.

    Args:
        path: Its file.
        side: ``img`` or ``txt``.
        ends: Its input and output; with ``pixel_values`` or ``input_ids`` for an output, only what
            comes before is loaded.
        is_cut: Whether to cut it, if this package wrote it.
        threads: Threads of the encoder; see `open_session`.
        providers: Providers of a cut graph's encoder.

    Raises:
        PackageError: See `open_session`.
    """
    if ends.output in (PIXEL_VALUES, INPUT_IDS):
        return Side(open_session(path, part=(ends.input, ends.output)), ends)
    if is_cut:
        cut = PIXEL_VALUES if side == IMG else INPUT_IDS
        for first in (PLANES, ends.input) if side == IMG else (ends.input,):
            try:
                # as many of them run at once as there are threads that decode
                front = open_session(path, part=(first, cut), threads=1)
                is_ours = first == PLANES or side == TXT or _is_raw(front)
                if is_ours and PROPERTY in front.get_modelmeta().custom_metadata_map:
                    encoder = open_session(
                        path, part=(cut, ends.output), threads=threads, providers=providers
                    )
                    give_back()
                    return Side(encoder, Ends(cut, ends.output), front, Ends(first, cut))
            except GraphError:
                continue
    return Side(open_session(path, threads=threads), ends)


def open_tokenizer(path: Path, longest: int) -> Any:
    """Return the tokenizer of a tokenizer.json, which cuts texts to so many tokens.

    Raises:
        PackageError: If it can't be read.
    """
    from tokenizers import Tokenizer

    try:
        made = Tokenizer.from_file(str(path))
        made.enable_truncation(longest)
        made.no_padding()
        return made
    except BaseException as error:
        # a panic in its Rust code is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise PackageError(
            f"{path.name} can't be read by tokenizers {version('tokenizers')} "
            f"({str(error)[:200]}). Nothing was embedded.",
            hint="log the pair again.",
        ) from error


def _is_raw(front: Any) -> bool:
    return len(front.get_inputs()[0].shape) == RAW_RANK
