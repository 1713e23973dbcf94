# ruff: noqa: T201 -- the figures belong in the log
"""A full-size pair against transformers, Pillow and torch; and faults that must be seen."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from clip_folders import END_ID, PROCESSOR, as_jpeg_444, as_png, photographs
from onnx.utils import Extractor
from PIL import Image

from oml_mlflow.errors import PackageError
from oml_mlflow.graph.runtime import open_session, run
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.pair.reference import ReferenceModel
from oml_mlflow.parity.policy import MUST, ParityPolicy
from oml_mlflow.parity.probes import Probe, by_side, golden_probes

LIMIT = 1e-4
TEXT_LIMIT = 1e-5
PX = 224
MEAN = np.array(PROCESSOR["image_mean"], np.float32)
STD = np.array(PROCESSOR["image_std"], np.float32)

THINGS = [
    *("cat", "dog", "horse", "bicycle", "teapot", "rocket", "lighthouse", "violin", "ladder"),
    *("umbrella", "tractor", "penguin", "canoe", "bookshelf", "sandwich", "telescope"),
    *("waterfall", "scarecrow", "typewriter", "hedgehog", "windmill", "suitcase"),
]
LOOKS = [
    *("red", "small", "wooden", "shiny", "old", "striped", "broken", "round", "tall", "muddy"),
    *("golden", "sleepy", "empty"),
]
DEEDS = [
    *("standing", "lying", "waiting", "glowing", "spinning", "resting", "painted", "hidden"),
    "seen",
]
PLACES = [
    "on the beach",
    "in a quiet street",
    "behind the barn",
    "under a bridge",
    "on a kitchen table",
    "near the harbour at dusk",
    "in fresh snow",
    "between two parked cars",
]
FORMS = [
    "a photo of a {look} {thing}",
    "a {look} {thing} {deed} {place}",
    "two {thing}s and a {look} {thing2}, {place}",
    "close-up of the {thing}'s {look} surface (no. {number})",
    "It isn't a {thing}; it's a {look} {thing2}!",
    "{number} {thing}s, {number2} {thing2}s: {deed} {place}",
    "{thing}",
    "What is the {look} {thing} doing {place}?",
    'a sign that says "{thing} {number}" {place}',
    "A {thing} ({look}, {number2} cm) {deed} {place}, at {number}:30.",
]


def captions(count: int = 500, long: int = 25) -> list[str]:
    """Return plain English captions; the first `long` of them have more than 77 tokens."""
    dice = random.Random(20)  # noqa: S311

    def sentence() -> str:
        return dice.choice(FORMS).format(
            thing=dice.choice(THINGS),
            thing2=dice.choice(THINGS),
            look=dice.choice(LOOKS),
            deed=dice.choice(DEEDS),
            place=dice.choice(PLACES),
            number=dice.randint(0, 23),
            number2=dice.randint(2, 4999),
        )

    texts = [". ".join(sentence() for _ in range(dice.randint(16, 24))) for _ in range(long)]
    short: dict[str, None] = {}
    while len(short) < count - long:
        short[sentence()] = None
    return texts + list(short)


def raw(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


@pytest.fixture(scope="module")
def session(full_pair: PipelinePair) -> Any:
    return open_session(full_pair.img)


@pytest.fixture(scope="module")
def photograph_vectors(full_reference: ReferenceModel) -> np.ndarray:
    return full_reference.embed_image([as_png(picture) for _, picture in photographs()])


@pytest.fixture(scope="module")
def probe_vectors(full_reference: ReferenceModel) -> dict[str, np.ndarray]:
    return {
        probe.id: full_reference.embed_image([bytes_of(probe)])[0]
        for probe in by_side(golden_probes(), "img")
    }


def bytes_of(probe: Probe) -> bytes:
    assert isinstance(probe.value, bytes)
    return probe.value


def decoded(probe: Probe) -> Image.Image:
    return Image.open(io.BytesIO(bytes_of(probe))).convert("RGB")


def test_random_weights_tell_photographs_apart(photograph_vectors: np.ndarray) -> None:
    wholes = photograph_vectors[::3]
    cosines = (wholes @ wholes.T)[np.triu_indices(len(wholes), 1)]
    print(
        f"\ncosines of {len(wholes)} photographs: median {np.median(cosines):.3f}, "
        f"from {cosines.min():.3f} to {cosines.max():.3f}"
    )
    assert np.median(cosines) <= 0.8


def test_bare_graph_reads_png_as_transformers_does(
    session: Any, photograph_vectors: np.ndarray
) -> None:
    ours = np.concatenate([run(session, raw(as_png(picture))) for _, picture in photographs()])
    worst = np.abs(ours - photograph_vectors).max(axis=1)
    print(f"\n{len(worst)} PNG pictures: largest difference {worst.max():.1e}, limit {LIMIT:.0e}")
    assert worst.max() <= LIMIT


def test_bare_graph_reads_jpeg_as_transformers_does(
    session: Any, full_pair: PipelinePair, full_reference: ReferenceModel
) -> None:
    pictures = [as_jpeg_444(picture) for _, picture in photographs()]
    ours = np.concatenate([run(session, raw(data)) for data in pictures])
    theirs = full_reference.embed_image(pictures)
    levels = decoder_levels(full_pair, pictures)
    worst = np.abs(ours - theirs).max(axis=1)
    print(
        f"\n{len(worst)} JPEG 4:4:4 pictures: largest difference {worst.max():.1e}, limit "
        f"{LIMIT:.0e}; decoder against Pillow's: at most {levels} levels"
    )
    assert levels <= 2
    assert worst.max() <= LIMIT


def decoder_levels(pair: PipelinePair, pictures: list[bytes]) -> int:
    """Return by how many levels the graph's decoder differs at most from Pillow's."""
    node = next(n for n in onnx.load(pair.img).graph.node if n.op_type == "DecodeImage")
    graph = onnx.helper.make_graph(
        [node],
        "decoder",
        [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.UINT8, ["n"])],
        [
            onnx.helper.make_tensor_value_info(
                node.output[0], onnx.TensorProto.UINT8, ["h", "w", "c"]
            )
        ],
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid(node.domain, 1)]
    path = pair.img.with_name("decoder.onnx")
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    decoder = open_session(path)
    path.unlink()
    worst = 0
    for data in pictures:
        bgr = decoder.run(None, {"input": raw(data)})[0]
        rgb = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        worst = max(worst, int(np.abs(bgr[..., ::-1].astype(int) - rgb).max()))
    return worst


def test_bare_graph_reads_captions_as_transformers_does(
    full_pair: PipelinePair, full_reference: ReferenceModel
) -> None:
    texts = captions()
    assert len(set(texts)) == 500
    session = open_session(full_pair.txt)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    ours = np.empty((len(texts), full_pair.dims), np.float32)
    for at in range(0, len(texts), 20):
        rows = order[at : at + 20]
        ours[rows] = run(session, np.array([texts[i] for i in rows], dtype=object))
    worst = np.abs(ours - full_reference.embed_text(texts)).max(axis=1)
    print(f"\n{len(texts)} captions: largest difference {worst.max():.1e}, limit {TEXT_LIMIT:.0e}")
    assert worst.max() <= TEXT_LIMIT


def test_long_captions_end_in_eos_inside_the_graph(
    tiny_pair: PipelinePair, tiny_reference: ReferenceModel
) -> None:
    texts = captions()[:25]
    assert all(len(tiny_reference._tokenizer(text)["input_ids"]) > 77 for text in texts)
    ids = text_ids(tiny_pair, texts)
    assert ids.shape == (25, 77)
    assert (ids[:, 76] == END_ID).all()
    assert (ids[:, :76] != END_ID).all()
    assert ids.tolist() == [tiny_reference.token_ids(text) for text in texts]


def text_ids(pair: PipelinePair, texts: list[str]) -> np.ndarray:
    """Return the ids that reach the encoder inside the graph."""
    path = pair.txt.with_name("ids.onnx")
    onnx.save(Extractor(onnx.load(pair.txt)).extract_model(["input"], ["input_ids"]), path)
    session = open_session(path)
    path.unlink()
    ids: np.ndarray = session.run(["input_ids"], {"input": np.array(texts, dtype=object)})[0]
    return ids


def prepare(
    picture: Image.Image,
    *,
    resize: Callable[[Image.Image, int, int], np.ndarray] | None = None,
    rounding: Callable[[float], int] = int,
    shift_px: int = 0,
    bgr: bool = False,
    mean: np.ndarray = MEAN,
    std: np.ndarray = STD,
) -> np.ndarray:
    """Return (1, 3, 224, 224) as the image processor does, or with a fault."""
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    scaled = rounding(PX * long / short)
    width, height = (scaled, PX) if width > height else (PX, scaled)
    if resize:
        pixels = resize(picture, width, height)
    else:
        pixels = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - PX) // 2, (width - PX) // 2
    # on a square picture one row or column has to come from its own edge
    pixels = np.pad(pixels, ((0, shift_px), (0, shift_px), (0, 0)), mode="edge")
    pixels = pixels[top + shift_px :][:PX, left + shift_px :][:, :PX]
    if bgr:
        pixels = pixels[..., ::-1]
    values = (pixels.astype(np.float32) * np.float32(1 / 255) - mean) / std
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


def resampled(filter_: Image.Resampling) -> Callable[[Image.Image, int, int], np.ndarray]:
    return lambda picture, width, height: np.asarray(picture.resize((width, height), filter_))


def bicubic_without_antialias(picture: Image.Image, width: int, height: int) -> np.ndarray:
    values = np.asarray(picture).astype(np.float64)
    for axis, size in ((0, height), (1, width)):
        at = (np.arange(size) + 0.5) * values.shape[axis] / size - 0.5
        first = np.floor(at).astype(int)
        total = 0.0
        for tap in range(-1, 3):
            x = np.abs(at - first - tap)
            near = 1.5 * x**3 - 2.5 * x**2 + 1
            far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
            weight = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
            taken = values.take(np.clip(first + tap, 0, values.shape[axis] - 1), axis)
            total = total + taken * np.expand_dims(weight, tuple({0, 1, 2} - {axis}))
        values = np.asarray(total)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


FAULTS: dict[str, dict[str, Any]] = {
    "bilinear": {"resize": resampled(Image.Resampling.BILINEAR)},
    "Lanczos": {"resize": resampled(Image.Resampling.LANCZOS)},
    "no antialias": {"resize": bicubic_without_antialias},
    "BGR": {"bgr": True},
    "size rounded": {"rounding": round},
    "crop off by one": {"shift_px": 1},
    "mean 0.5": {"mean": np.full(3, 0.5, np.float32)},
    "std 0.5": {"std": np.full(3, 0.5, np.float32)},
}


def broken(
    model: ReferenceModel, pictures: list[Image.Image], right: np.ndarray, fault: dict[str, Any]
) -> np.ndarray:
    """Return each picture's difference from the right vector with a fault in its preparation."""
    values = np.concatenate([prepare(picture, **fault) for picture in pictures])
    rows = [model.embed_pixels(values[at : at + 8]) for at in range(0, len(values), 8)]
    return np.abs(np.concatenate(rows) - right).max(axis=1)


def test_preparation_without_fault_is_right(full_reference: ReferenceModel) -> None:
    for _, picture in photographs():
        wanted = full_reference.prepare(as_png(picture))
        np.testing.assert_allclose(prepare(picture), wanted, atol=1e-6)


def test_every_picture_fault_is_seen(
    full_reference: ReferenceModel,
    photograph_vectors: np.ndarray,
    probe_vectors: dict[str, np.ndarray],
) -> None:
    probes, policy = by_side(golden_probes(), "img"), ParityPolicy()
    demanded = [policy.level(p.category) == MUST and p.category != "png" for p in probes]
    right = np.concatenate([photograph_vectors, [probe_vectors[probe.id] for probe in probes]])
    pictures = [picture for _, picture in photographs()] + [decoded(probe) for probe in probes]
    wholes = len(photograph_vectors)
    print("\nfault            of           over 1e-4   smallest   largest")
    missed = []
    for name, fault in FAULTS.items():
        found = broken(full_reference, pictures, right, fault)
        of_probes = found[wholes:]
        sets = {"photographs": found[:wholes], "golden probes": of_probes}
        for kind, difference in (sets | {"must, no PNG": of_probes[demanded]}).items():
            over = int((difference > LIMIT).sum())
            print(
                f"{name:16} {kind:14} {over:2} of {len(difference):2}   {difference.min():8.1e}   "
                f"{difference.max():8.1e}"
            )
            if not over:
                missed.append((name, kind))
    assert not missed


def test_lost_end_token_is_seen(full_reference: ReferenceModel) -> None:
    torch = full_reference._torch
    probes = [str(p.value) for p in by_side(golden_probes(), "txt") if p.category == "long"]
    print("\nfault            of              over 1e-4   smallest   largest")
    for kind, texts in (("captions", captions()[:20]), ("golden probes", probes)):
        right = full_reference.embed_text(texts)
        ids = [full_reference._tokenizer(text)["input_ids"][:77] for text in texts]
        with torch.inference_mode():
            wrong = full_reference._unit(
                full_reference._model.get_text_features(input_ids=torch.tensor(ids))
            )
        difference = np.abs(wrong - right).max(axis=1)
        over = int((difference > LIMIT).sum())
        print(
            f"{'end token lost':16} {kind:14} {over:2} of {len(texts):2}   "
            f"{difference.min():8.1e}   {difference.max():8.1e}"
        )
        assert over


def test_swapped_towers_are_seen(
    full_reference: ReferenceModel,
    photograph_vectors: np.ndarray,
    probe_vectors: dict[str, np.ndarray],
) -> None:
    texts = [str(probe.value) for probe in by_side(golden_probes(), "txt")]
    text_vectors = full_reference.embed_text(texts)
    for pictures in (photograph_vectors, np.array(list(probe_vectors.values()))):
        difference = np.abs(pictures[:, None] - text_vectors[None]).max(axis=2)
        print(f"\nswapped towers: {difference.min():.1e} to {difference.max():.1e}")
        assert difference.min() > LIMIT


def test_swapped_files_are_refused(full_pair: PipelinePair) -> None:
    with pytest.raises(PackageError, match="may be swapped") as err:
        PipelinePair.from_files(full_pair.txt, full_pair.img)
    assert err.value.code == "package-corrupt"
    assert err.value.hint
