"""Make the golden probes in oml_mlflow/golden from scikit-image's and scikit-learn's photographs.

Run once; the result is committed, because a probe that changes is no probe. Photographs: astronaut
(NASA, public domain), chelsea, coffee, rocket (CC0), hubble_deep_field (NASA/ESA, public domain)
from scikit-image; china, flower (CC BY 2.0, Flickr: danielbuechele, clouserw) from scikit-learn.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import skimage.data
import sklearn.datasets
from PIL import Image

from oml_mlflow.parity.probes import Probe, save_probes

GOLDEN = Path(__file__).resolve().parents[2] / "oml_mlflow" / "golden"

# id, category, photograph, (left, upper, width, height); where a database is to decode it, resized
# to 224 the long edge is cut to another size than it would be rounded to
PICTURES = [
    ("png-landscape", "png", "chelsea", (60, 40, 331, 227)),
    ("png-portrait", "png", "coffee", (190, 20, 227, 341)),
    ("png-small", "png", "hubble_deep_field", (400, 300, 131, 97)),
    ("jpeg-444-landscape", "jpeg-444", "astronaut", (40, 0, 451, 337)),
    ("jpeg-444-portrait", "jpeg-444", "rocket", (180, 9, 301, 415)),
    ("jpeg-420-landscape", "jpeg-420", "china", (100, 60, 427, 311)),
    ("jpeg-420-portrait", "jpeg-420", "flower", (220, 10, 263, 401)),
    ("jpeg-grey", "grey", "astronaut", (100, 20, 335, 257)),
]
TEXTS = [
    ("ascii-cat", "ascii", "a photo of a cat"),
    ("ascii-dog", "ascii", "Two dogs play with a red ball on the beach."),
    ("ascii-rocket", "ascii", "a rocket on its launch pad at dusk"),
    ("ascii-quote", "ascii", "it's the cook's favourite: pasta, isn't it?"),
    ("ascii-shapes", "ascii", "three small red triangles on a white background"),
    ("ascii-word", "ascii", "coffee"),
    ("digits-year", "digits", "the eclipse of 2019, seen at 17:38"),
    ("digits-part", "digits", "part no. 4711-08 rev 15"),
    ("accents-cafe", "accents", "un café crème près de la forêt"),
    ("accents-street", "accents", "Grüße aus der Königstraße"),
    ("accents-cyrillic", "accents", "кошка на окне"),
    ("cjk-cat", "cjk", "一只猫坐在窗台上"),
    ("cjk-mountain", "cjk", "富士山の写真"),
    ("emoji-cat", "emoji", "my cat 🐈 loves pizza 🍕"),
    (
        "long-story",
        "long",
        " ".join(["a long story about a quiet village between the hills and the sea"] * 9),
    ),
    ("long-list", "long", "red, green, blue, " * 40 + "and white"),
]


def photograph(name: str) -> Image.Image:
    """Return one of the photographs as RGB."""
    if name in ("china", "flower"):
        return Image.fromarray(sklearn.datasets.load_sample_image(f"{name}.jpg"))
    return Image.fromarray(np.asarray(getattr(skimage.data, name)())).convert("RGB")


def encode(picture: Image.Image, category: str) -> bytes:
    """Return a crop in the encoding that its category stands for."""
    out = io.BytesIO()
    if category == "png":
        picture.save(out, "PNG", optimize=True)
    elif category == "grey":
        # three equal components: a JPEG of one makes extensions 0.14 to 0.15.2 write past a buffer
        picture.convert("L").convert("RGB").save(out, "JPEG", quality=95, subsampling=0)
    else:
        subsampling = {"jpeg-444": 0, "jpeg-420": 2}[category]
        picture.save(out, "JPEG", quality=90, subsampling=subsampling)
    return out.getvalue()


def main() -> None:
    """Write the probes."""
    probes = []
    for name, category, source, (left, upper, width, height) in PICTURES:
        crop = photograph(source).crop((left, upper, left + width, upper + height))
        probes.append(Probe(name, "img", category, encode(crop, category)))
    probes += [Probe(name, "txt", category, text) for name, category, text in TEXTS]
    GOLDEN.mkdir(exist_ok=True)
    save_probes(GOLDEN, probes)


if __name__ == "__main__":
    main()
