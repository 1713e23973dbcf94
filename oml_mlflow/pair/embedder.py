"""Run a pipeline pair in this process: pictures or strings in, unit vectors out."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from oml_mlflow.deadline import within
from oml_mlflow.errors import InputError
from oml_mlflow.graph.cut import PLANES
from oml_mlflow.graph.reach import reach_bytes, read_merges
from oml_mlflow.graph.runtime import (
    CPU,
    Ends,
    can_cut,
    choose_providers,
    cores,
    run,
    thread_limit,
)
from oml_mlflow.names import IMG, TXT
from oml_mlflow.pair.limits import MAX_PIXELS
from oml_mlflow.pair.pictures import Picture, as_pixels, as_planes, as_png, blocks, in_work
from oml_mlflow.pair.sides import RAW_RANK, Side, load_side, open_tokenizer
from oml_mlflow.pair.texts import check_text, prepare_text

_log = logging.getLogger(__name__)
HOST, GRAPH = "host", "graph"
RAISE, NULL = "raise", "null"
_PICTURES_PER_RUN, _TEXTS_PER_RUN = 16, 32
# among how many texts those of like length are found
_TEXTS_SORTED = 1_024
# how much of a text counts takes 0.3 s to find out, more than whatever such a text costs
_SHORT_CHARACTERS = 2_000
# byte-pair operators take time with the square of a word's length: 0.4 s for one of this length
_UNBOUNDED_CHARACTERS = 20_000
_T = TypeVar("_T")
_R = TypeVar("_R")


class PairEmbedder:
    """Embed pictures and texts with a pair's two ONNX files.

    A side is loaded when it is first used, and kept. Safe to share between threads.

    Args:
        img: File of the image pipeline.
        txt: File of the text pipeline.
        dims: Length of the embeddings.
        ends: Names of inputs and outputs by side; ``input`` and ``embedding`` by default. With
            ``pixel_values`` or ``input_ids`` for an output, only what comes before is loaded.
        front_end: ``host``: Pillow decodes in threads, beside the graph's own preparation, and the
            encoder runs in batches; or ``graph``: each input goes through the whole graph alone, as
            a database does it. Pairs that another maker wrote are run whole in any case, and all
            pairs where onnxruntime is 1.22 or older.
        tokenizer: A tokenizer.json that makes the token ids of a cut text side, as transformers
            does; the graph's own tokenizer by default.
        providers: What runs the encoder; see `choose_providers`. All else runs on the CPU.
        threads: How many prepare inputs, and how many run the encoder; by default what
            ``OMP_NUM_THREADS`` says, else all cores.

    Attributes:
        providers: What runs the encoder, the first that can.
        timeout_s: How long loading a graph may take, and one run of it, for a picture or a few
            texts, before TimeoutError is raised; None, as at first, for no limit.

    Raises:
        ConfigError: See `limits.MAX_PIXELS` and `choose_providers`.
    """

    def __init__(
        self,
        img: Path,
        txt: Path,
        dims: int,
        ends: Mapping[str, Ends] | None = None,
        *,
        front_end: str = HOST,
        tokenizer: Path | None = None,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> None:
        MAX_PIXELS.read()  # a wrong setting is reported before the first picture
        if front_end not in (HOST, GRAPH):
            raise ValueError(front_end)
        self.dims, self.front_end = dims, front_end
        self._is_cut = front_end == HOST and can_cut()
        self.providers = choose_providers(providers) if self._is_cut else (CPU,)
        # ONNX Runtime's own choice is a thread for each core that is one
        self._encoder_threads = threads or thread_limit()
        self._threads = self._encoder_threads or cores()
        self.timeout_s: float | None = None
        self._ends, self._tokenizer_file = dict(ends or {}), tokenizer
        self._paths = {IMG: Path(img), TXT: Path(txt)}
        self._graphs: dict[str, Side] = {}
        self._lock, self._encoding = threading.Lock(), threading.Lock()

    def __repr__(self) -> str:
        names = " and ".join(path.name[-50:] for path in self._paths.values())
        return f"<PairEmbedder: {names}, {self.dims} dims, {self.front_end}, {self.providers[0]}>"

    def embed_image(
        self,
        pictures: Picture | Iterable[Picture],
        *,
        batch_size: int = _PICTURES_PER_RUN,
        on_error: str = RAISE,
        show_progress: bool = False,
    ) -> np.ndarray:
        """Return ``(n, dims)`` float32, L2-normalised, in the pictures' order.

        A few pictures are decoded at a time; each waits while this process has all pixels that may
        be in memory at once.

        Args:
            pictures: One picture or many: encoded, in one of `pictures.FORMATS`, as bytes or the
                path of a file; pictures of Pillow; uint8 arrays, ``(height, width)`` or
                ``(height, width, 3 or 4)``.
            batch_size: How many the encoder takes at once. A vector does not depend on it.
            on_error: ``raise``, or ``null`` for a row of NaN and a warning that says why.
            show_progress: Draw a bar on a terminal or in a notebook.

        Raises:
            InputError: If a picture can't be decoded or is too large; its number is named, and no
                vector is returned.
        """
        rows = self.embed_rows(IMG, _many(pictures), batch_size)
        return self._gather(rows, pictures, on_error, show_progress)

    def embed_text(
        self,
        texts: str | Iterable[str],
        *,
        batch_size: int = _TEXTS_PER_RUN,
        on_error: str = RAISE,
        show_progress: bool = False,
    ) -> np.ndarray:
        """Return ``(n, dims)`` float32, L2-normalised, in the texts' order.

        Args:
            texts: One text or many; those longer than the model's maximum length are cut. A pair by
                another maker does not say that length, and gets them whole.
            batch_size: See `embed_image`.
            on_error: See `embed_image`.
            show_progress: See `embed_image`.

        Raises:
            InputError: If one is no text, or has more than 20,000 characters for a byte-pair
                tokenizer of unknown length; its number is named, and no vector is returned.
        """
        rows = self.embed_rows(TXT, [texts] if isinstance(texts, str) else texts, batch_size)
        return self._gather(rows, texts, on_error, show_progress)

    def embed_rows(
        self, side: str, values: Iterable[Picture] | Iterable[str], batch_size: int | None = None
    ) -> Iterator[np.ndarray | InputError]:
        """Yield the vector of each input, ``(dims,)`` float32, or why it has none, in their order.

        Inputs are taken as they are needed, a few ahead: there may be more than fit into memory.

        Args:
            side: ``img`` or ``txt``.
            values: As `embed_image` and `embed_text` take them, several.
            batch_size: How many the encoder takes at once; 16 pictures or 32 texts by default.
        """
        if batch_size is not None and batch_size < 1:
            raise InputError("batch_size must be 1 or more; nothing was embedded.")
        if side == IMG:
            return self._picture_rows(values, batch_size or _PICTURES_PER_RUN)
        return self._text_rows(values, batch_size or _TEXTS_PER_RUN)

    def _gather(
        self, rows: Iterable[np.ndarray | InputError], given: Any, on_error: str, show: bool
    ) -> np.ndarray:
        if on_error not in (RAISE, NULL):
            raise InputError(f"on_error is {on_error!r}; wanted {RAISE!r} or {NULL!r}.")
        if show:
            from rich.progress import track

            total = len(given) if hasattr(given, "__len__") else None
            rows = track(rows, "embed", total)
        vectors = []
        for row in rows:
            if isinstance(row, InputError):
                if on_error == RAISE:
                    raise row
                _log.warning("%s", row)
                row = np.full(self.dims, np.nan, np.float32)
            vectors.append(row)
        return np.stack(vectors) if vectors else np.empty((0, self.dims), np.float32)

    def _picture_rows(self, pictures: Any, most: int) -> Iterator[np.ndarray | InputError]:
        labelled = ((f"picture {i}", picture) for i, picture in enumerate(pictures))
        graph = self._graph(IMG)
        if not graph.front:
            for given in labelled:
                yield _tried(self._embed_picture, graph, *given)
            return
        most = graph.at_once(IMG, most)
        if most == 1:
            # beside each other: with one row in it the encoder leaves cores idle
            def alone(label: str, picture: Picture) -> np.ndarray:
                vectors = self._run(graph, self._pixel_values(graph, label, picture))
                vector: np.ndarray = vectors[0]
                return vector

            yield from self._ahead(lambda given: _tried(alone, *given), labelled, most)
            return
        prepared = self._ahead(
            lambda given: _tried(self._pixel_values, graph, *given), labelled, most
        )
        for some in _chunks(prepared, most):
            values = [value for value in some if not isinstance(value, InputError)]
            vectors = iter(self._run_encoder(graph, np.concatenate(values)) if values else ())
            for value in some:
                yield value if isinstance(value, InputError) else next(vectors)

    def _text_rows(self, texts: Any, most: int) -> Iterator[np.ndarray | InputError]:
        graph = self._graph(TXT)
        most = graph.at_once(TXT, most)
        for first, some in enumerate(_chunks(texts, _TEXTS_SORTED)):
            prepared = [
                _tried(self._prepared, graph, f"text {i}", text)
                for i, text in enumerate(some, first * _TEXTS_SORTED)
            ]
            right = [text for text in prepared if not isinstance(text, InputError)]
            vectors = iter(self._encode(graph, right, most) if right else ())
            for text in prepared:
                yield text if isinstance(text, InputError) else next(vectors)

    def _prepared(self, graph: Side, label: str, text: str) -> str:
        reach: int | None = None
        if isinstance(text, str) and len(text) > _SHORT_CHARACTERS:
            reach, is_bounded = self._reading
            if not is_bounded and len(text) > _UNBOUNDED_CHARACTERS:
                raise InputError(
                    f"{label}: has {len(text):,} characters, more than the "
                    f"{_UNBOUNDED_CHARACTERS:,} that are allowed where a pair doesn't say how "
                    "much its model reads; nothing was embedded.",
                    hint="shorten it, or export the pair from its model.",
                )
        if graph.front and self._tokenizer and reach is None:
            # it needs nothing of what is done for an operator
            check_text(text, label)
            return text
        return prepare_text(text, label, reach, graph.metadata.get("any_case_tokens", ()))

    def _encode(self, graph: Side, texts: Sequence[str], most: int) -> np.ndarray:
        """Return the vectors of prepared texts; those of like length run together."""
        if not graph.front:
            shape, rows = graph.input.shape, []
            for some in _chunks(texts, most):
                values = np.array(some, dtype=object)
                # some take a column of texts, or one text without an axis
                rows.append(self._run(graph, values.reshape([-1, *shape[1:]] if shape else [])))
            return np.concatenate(rows)
        ids = self._token_ids(graph, texts)
        order = sorted(range(len(ids)), key=lambda i: ids[i].size)
        vectors = np.empty((len(ids), self.dims), np.float32)
        for places in _chunks(order, most):
            longest = ids[places[-1]].size
            rows = [np.pad(ids[i], (0, longest - ids[i].size), "edge") for i in places]
            vectors[places] = self._run_encoder(graph, np.stack(rows))
        return vectors

    def _token_ids(self, graph: Side, texts: Sequence[str]) -> list[np.ndarray]:
        """Return each text's ids, from the start token to the end token or one behind it."""
        if self._tokenizer:
            return [np.array(found.ids) for found in self._tokenizer.encode_batch(texts)]
        ids: list[np.ndarray] = []
        for some in _chunks(texts, _TEXTS_PER_RUN):
            padded = self._run_front(graph, np.array(some, dtype=object))
            # behind each text's end token there are more of them, which change nothing
            last = padded.shape[1] - np.argmax(padded[:, ::-1] != padded[0, -1], axis=1)
            ids += [row[: length + 1] for row, length in zip(padded, last, strict=True)]
        return ids

    @cached_property
    def _tokenizer(self) -> Any:
        """The tokenizers library's, cutting texts as the graph does; None without its file."""
        longest = self._graph(TXT).metadata.get("max_seq_length")
        if self._tokenizer_file is None or not isinstance(longest, int):
            return None
        return open_tokenizer(self._tokenizer_file, longest)

    @cached_property
    def _reading(self) -> tuple[int | None, bool]:
        """Bytes of a text that the model can read, if known, and whether long words are no risk."""
        try:
            merges = read_merges(self._paths[TXT])
            known = self._graph(TXT).metadata.get("max_seq_length")
            reach = reach_bytes(merges, int(known)) if merges and known else None
        except (ValueError, TypeError, AttributeError, LookupError):
            return None, False
        return reach, reach is not None or not merges

    def _embed_picture(self, graph: Side, label: str, picture: Picture) -> np.ndarray:
        rank = len(graph.input.shape)
        with in_work(picture, label, as_pixels if rank == RAW_RANK else as_png) as values:
            # some take the bytes of one picture as a row
            vector: np.ndarray = self._run(graph, values[None] if rank == 2 else values)[0]
            del values  # so that the context frees it, too
        return vector

    def _pixel_values(self, graph: Side, label: str, picture: Picture) -> np.ndarray:
        takes_planes = graph.front_ends is not None and graph.front_ends.input == PLANES
        with in_work(picture, label, as_planes if takes_planes else as_pixels) as pixels:
            values = self._run_front(graph, pixels)
            del pixels
        return values

    def embed_bare(self, side: str, value: bytes | str) -> np.ndarray:
        """Return ``(1, dims)`` float32 of an input that nobody prepared, as a database embeds it.

        For inputs that are known to be safe, others may end the process; front end ``graph`` only.
        """
        is_picture = isinstance(value, bytes)
        given = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else np.array([value])
        return self._run(self._graph(side), given if is_picture else given.astype(object))

    def path(self, side: str) -> Path:
        """Return the file of one side."""
        return self._paths[side]

    def open(self, side: str) -> None:
        """Load a side's graph now instead of at its first use."""
        self._graph(side)

    def _graph(self, side: str) -> Side:
        with self._lock:
            if side not in self._graphs:
                # ONNX Runtime already computes here what depends on no input
                path, ends = self._paths[side], self._ends.get(side, Ends())
                threads, providers = self._encoder_threads, self.providers
                self._graphs[side] = within(
                    self.timeout_s,
                    lambda: load_side(path, side, ends, self._is_cut, threads, providers),
                )
            return self._graphs[side]

    def _run(self, graph: Side, values: np.ndarray) -> np.ndarray:
        return run(graph.session, values, graph.ends, self.timeout_s)

    def _run_encoder(self, graph: Side, values: np.ndarray) -> np.ndarray:
        # one batch at a time: it has all cores, and those of many callers would fill the memory
        with self._encoding:
            return self._run(graph, values)

    def _run_front(self, graph: Side, values: np.ndarray) -> np.ndarray:
        return run(graph.front, values, graph.front_ends or graph.ends, self.timeout_s)

    def _ahead(self, call: Callable[[_T], _R], items: Iterable[_T], most: int) -> Iterator[_R]:
        """Yield what a call returns for each item, in order; threads do some of them ahead."""
        waiting: deque[Future[_R]] = deque()
        with ThreadPoolExecutor(self._threads) as pool, blocks.kept(self._threads):
            try:
                for item in items:
                    waiting.append(pool.submit(call, item))
                    if len(waiting) > max(most, self._threads):
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


def _many(pictures: Picture | Iterable[Picture]) -> Iterable[Picture]:
    if isinstance(pictures, bytes | bytearray | memoryview | str | Path | Image.Image):
        return [pictures]
    if isinstance(pictures, np.ndarray) and pictures.ndim <= RAW_RANK:
        return [pictures]
    return pictures


def _chunks(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    some: list[_T] = []
    for item in items:
        some.append(item)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some


def _tried(call: Callable[..., _R], *given: Any) -> _R | InputError:
    try:
        return call(*given)
    except InputError as error:
        return error
