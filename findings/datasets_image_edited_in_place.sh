#!/usr/bin/env bash
# Believed: a dataset of Hugging Face's datasets stores the pixels of the PIL image that it receives. A face that is
# blackened with ImageDraw, paste or putpixel before that is black in the dataset.
# So it is: if Pillow opened the image from a file, only the path is stored, and later reads, to_parquet too, return
# the original face: the edit is lost without a word. This holds for from_dict and for map. A copy of the image keeps
# the edit. If a JPEG was opened from bytes, as from a Parquet file, the edit is kept, but every map that returns the
# image compresses it again with quality 75, even if nothing was edited.
# Version and date: datasets 5.2.0, pillow 13.0.0, 2026-11-30.
# What follows: hand over image.copy() after an edit in place; it is stored as PNG.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "datasets==5.2.0" "pillow==13.0.0" "numpy==2.4.6"
cd "$folder"
export HF_HOME="$folder/cache" HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - <<'PYTHON'
import datasets
import numpy as np
from PIL import Image, ImageDraw

datasets.disable_progress_bars()
FEATURES = datasets.Features({"image": datasets.Image()})
BOX = slice(40, 88)  # inside of the blackened rectangle, away from its border
rows, columns = np.mgrid[:128, :128]
FACE = np.stack([columns + 64, rows + 64, (columns + rows) // 2 + 64], -1).astype(np.uint8)
Image.fromarray(FACE).save("face.png")
Image.fromarray(FACE).save("face.jpg", quality=95)


def blacken(image):
    ImageDraw.Draw(image).rectangle((32, 32, 95, 95), fill=(0, 0, 0))
    return image


def brightest(dataset):
    """Return the largest value inside of the rectangle: 0 if it is black."""
    return int(np.asarray(dataset[0]["image"])[BOX, BOX].max())


def of(image):
    return datasets.Dataset.from_dict({"image": [image]}, features=FEATURES)


def same(row):
    return {"image": row["image"]}


for name in ("face.png", "face.jpg"):
    edited = blacken(Image.open(name))
    assert np.asarray(edited)[BOX, BOX].max() == 0
    values = {
        "from_dict": brightest(of(edited)),
        "map": brightest(of(name).map(lambda row: {"image": blacken(row["image"])})),
        "from_dict of a copy": brightest(of(edited.copy())),
    }
    of(edited).to_parquet("faces.parquet")
    parquet = datasets.Dataset.from_parquet("faces.parquet", features=FEATURES)
    values["from_dict and to_parquet"] = brightest(parquet)
    print(f"{name}: brightest value of the blackened face", values)
    assert values.pop("from_dict of a copy") == 0
    assert min(values.values()) > 100, "the edit is kept now"

content = open("face.jpg", "rb").read()
parquet = of({"bytes": content, "path": None})
before = np.asarray(parquet[0]["image"]).astype(int)
after = np.asarray(parquet.map(same)[0]["image"]).astype(int)
stored = parquet.map(same).cast_column("image", datasets.Image(decode=False))[0]["image"]
print(
    f"JPEG from bytes, image returned as it is: {len(content)} bytes become {len(stored['bytes'])}, "
    f"pixels change by up to {abs(after - before).max()} levels"
)
assert abs(after - before).max() > 1, "JPEG files are stored as they are now"
PYTHON
