"""Packs whose red is the identity and whose green is the expression, and a model for them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from packs import face_at, png, write_ferplus

from facezoo.models.base import FaceModel


class ColorModel(FaceModel):
    """A model that reads the identity from red and the expression from green."""

    model_name = "color"
    provides = ("encode_expression", "encode_identity")

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def embed_expression(self, images):
        return _bins(images[:, 1]) + self.unused

    def embed_identity(self, images):
        return _bins(images[:, 0]) + self.unused


def _bins(channel):
    """Assign the mean of a channel (B, H, W) in [-1, 1] softly to one of eight ranges, (B, 8)."""
    centers = torch.linspace(-1, 1, 8)
    return (-40 * (channel.mean((1, 2))[:, None] - centers).square()).exp()


WORDS = ("neutral", "happiness")


def painted(person, word, generator):
    """Make an image whose red is the identity and whose green is the expression."""
    pixels = np.empty((64, 64, 3), np.uint8)
    pixels[..., 0] = 36 * person
    pixels[..., 1] = 250 * WORDS.index(word)
    pixels[..., 2] = generator.integers(0, 256)
    pixels[..., :2] += generator.integers(0, 5, (64, 64, 2)).astype(np.uint8)
    return png(pixels)


def paint(path, rows):
    """Write a pack from rows (file, identity, number, word, split)."""
    generator = np.random.default_rng(0)
    table = [
        {
            "image": painted(number, word, generator),
            "file": file,
            "identity": identity,
            "split": split,
            "expression": word,
            "landmarks": face_at(16, 16, 32)["landmarks"],
        }
        for file, identity, number, word, split in rows
    ]
    pq.write_table(pa.Table.from_pylist(table), path)


def write_color_packs(folder):
    """Write LFW with four identities per split, four images each; London with five; FER+."""
    lfw = [
        (f"{person}_{i}.jpg", f"person{person}", person % 4, WORDS[i % 2], split)
        for person, split in [(p, "train" if p < 4 else "val") for p in range(8)]
        for i in range(4)
    ]
    paint(folder / "lfw.parquet", lfw)
    # Not in the order of the identities.
    london = [
        (f"{p}_{w}.jpg", f"london_{p:03}", p, w, "train") for w in WORDS for p in (3, 0, 6, 1, 5)
    ]
    paint(folder / "london_expr.parquet", london[:5] + london[:4:-1])
    write_ferplus(folder, train=48, test=16)
    val = [row[0] for row in lfw if row[4] == "val"]
    pairs = [(a, b) for i, a in enumerate(val) for b in val[i + 1 :]]
    lines = [f"{a},{b},{int(a[0] == b[0])},{i % 2}" for i, (a, b) in enumerate(pairs)]
    text = "\n".join(["file_a,file_b,same,fold", *lines, ""])
    (folder / "lfw_pairs_val.csv").write_text(text, encoding="utf-8")
    return folder
