"""Tiny packs of noise in the layout of the real ones, and a detector that sees white squares."""

import csv
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from skimage.measure import label
from torch import nn

from facezoo.preprocess import detection, pipeline
from facezoo.preprocess.detector import Candidates
from facezoo.preprocess.templates import template_points
from facezoo.results import EXPRESSIONS

FACE = template_points("arcface112", 112).float()
"""Landmarks of a face of 112 pixels."""


def png(pixels):
    """A uint8 array (H, W, 3) or (H, W) as the bytes of a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def noise(side, rng, channels=3):
    return rng.integers(0, 256, (side, side, channels)[: 2 if channels == 1 else 3], np.uint8)


def face_at(x0, y0, side):
    """A row's ``faces`` entry: a square box and landmarks where the template has them."""
    points = (FACE + 0.5) * side / 112 - 0.5 + torch.tensor([x0, y0])
    box = [float(x0), float(y0), float(x0 + side), float(y0 + side)]
    return {"box": box, "landmarks": points.flatten().tolist()}


def embedding(rng):
    return rng.standard_normal(128).astype(np.float16)


def write_ferplus(folder, train=6, val=4, test=4, side=48, classes=8):
    """Grey faces that fill the picture, ten votes each; the second row has no landmarks."""
    rng = np.random.default_rng(1)
    splits = ["train"] * train + ["val"] * val + ["test"] * test
    rows = []
    for index, split in enumerate(splits):
        votes = [0] * 10
        first = index % classes
        votes[first], votes[(first + 1) % 8] = 7, 3
        points = face_at(0, 0, side)["landmarks"]
        rows.append(
            {
                "image": png(noise(side, rng, channels=1)),
                "file": f"fer{index}.png",
                "split": split,
                "votes": votes,
                "expression": EXPRESSIONS[first],
                "landmarks": None if index == 1 else points,
                "teacher_identity": None if index == 1 else embedding(rng).tolist(),
                "yaw": None if index == 2 else 9.0 * index - 20,
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), folder / "ferplus.parquet")


def write_lfw(folder, train=6, val=4, side=64):
    """Two photographs each of several people, with the faces that a detector should find."""
    rng = np.random.default_rng(2)
    splits = ["train"] * train + ["val"] * val
    rows = []
    for index, split in enumerate(splits):
        face = face_at(side // 4, side // 4, side // 2)
        rows.append(
            {
                "image": png(noise(side, rng)),
                "file": f"person{index // 2}_{index % 2}.png",
                "identity": f"person{index // 2}",
                "split": split,
                "expression": ("neutral", "happiness", None)[index % 3],
                "box": face["box"],
                "landmarks": face["landmarks"],
                "landmark_spread": 0.01 * side,
                "faces": [{**face, "score": 0.9}],
                "unsure": [[0.0, 0.0, 5.0, 5.0]] if index % 2 else [],
                "teacher_identity": embedding(rng).tolist(),
                "yaw": 9.0 * index - 20,
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), folder / "lfw.parquet")


def write_pairs(folder, train=6, val=4):
    """Every pair of the validation photographs of ``write_lfw``, in two folds."""
    files = [f"person{i // 2}_{i % 2}.png" for i in range(train, train + val)]
    pairs = [(a, b) for i, a in enumerate(files) for b in files[i + 1 :]]
    lines = [
        f"{a},{b},{int(a.split('_')[0] == b.split('_')[0])},{fold % 2}"
        for fold, (a, b) in enumerate(pairs)
    ]
    text = "\n".join(["file_a,file_b,same,fold", *lines, ""])
    (folder / "lfw_pairs_val.csv").write_text(text, encoding="utf-8")


def write_groups(folder, train=4, val=3, side=96):
    """Images of two faces, of which webfaces have marks, and one face without landmarks."""
    rng = np.random.default_rng(4)
    sources = ["webfaces", "groups", "crowds"]
    rows = []
    for index, split in enumerate(["train"] * train + ["val"] * val):
        source = sources[index % 3]
        faces = [face_at(8, 10, 32) | {"score": 0.9}, face_at(52, 40, 36) | {"score": 0.0}]
        points = np.array(faces[0]["landmarks"]).reshape(5, 2)
        marks = [*points[:3], points[3:].mean(0)]
        faces[0]["marks"] = np.concatenate(marks).tolist() if source == "webfaces" else None
        faces[1] |= {"marks": None, "landmarks": None}
        image = png(noise(side, rng))
        unsure = [[60.0, 0.0, 90.0, 30.0]]
        rows.append(
            {"image": image, "source": source, "split": split, "faces": faces, "unsure": unsure}
        )
    pq.write_table(pa.Table.from_pylist(rows), folder / "groups.parquet")


def write_faces_wild(folder, train=5, val=2):
    """Write color crops of 144 pixels around one face each, with a teacher's embeddings."""
    rng = np.random.default_rng(5)
    face = face_at(24, 24, 96)
    rows = [
        {
            "image": png(noise(144, rng)),
            "file": f"wild{index}.png",
            "split": split,
            "landmarks": face["landmarks"],
            "teacher_identity": embedding(rng).tolist(),
            "yaw": 3.0 * index,
            "age": 5 * index or None,
            "inside": 0.5 if index == 1 else 1.0,
        }
        for index, split in enumerate(["train"] * train + ["val"] * val)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "faces_wild.parquet")


def write_negatives(folder, count=3, side=80):
    """Images without a face."""
    rng = np.random.default_rng(6)
    rows = [{"image": png(noise(side, rng)), "file": f"object{i}.png"} for i in range(count)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "negatives.parquet")


def write_london(folder, people=2, side=48, val=0):
    """Write a neutral and a smiling image of several people, the last ``val`` for validation."""
    rng = np.random.default_rng(5)
    rows = [
        {
            "image": png(noise(side, rng)),
            "file": f"{index:03}_{word}.png",
            "identity": f"london_{index:03}",
            "expression": word,
            "split": "train" if index < people - val else "val",
            "landmarks": face_at(6, 6, 36)["landmarks"],
            "yaw": 0.0,
        }
        for index in range(people)
        for word in ("neutral", "happiness")
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "london_expr.parquet")


def write_packs(folder):
    """Everything that training reads."""
    write_ferplus(folder, classes=3)
    write_lfw(folder)
    write_london(folder)
    write_pairs(folder)
    write_groups(folder)
    write_faces_wild(folder)
    write_negatives(folder)
    return folder


def write_csv(path, tree, **columns):
    """Write a table of the images in class folders; columns are functions of the row number."""
    rows = [
        {"file": str(file.relative_to(path.parent)), "label": file.parent.name}
        for file in sorted(tree.rglob("*.png"))
    ]
    for name, value in columns.items():
        for number, row in enumerate(rows):
            row[name] = value(number)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def photo_of(*squares, height=200, width=200):
    """A black photograph with squares (x0, y0, side[, brightness]), uint8 (H, W, 3)."""
    photo = torch.zeros(height, width, 3, dtype=torch.uint8)
    for x0, y0, side, *brightness in squares:
        photo[y0 : y0 + side, x0 : x0 + side] = brightness[0] if brightness else 255
    return photo


def edges_of(x0, y0, side):
    """The box of a square: its edges lie half a pixel off the centres of its pixels."""
    return [x0 - 0.5, y0 - 0.5, x0 + side - 0.5, y0 + side - 0.5]


class SquareDetector(nn.Module):
    """Says that every bright patch is a face; the brighter, the surer. In place of a network."""

    multiple = 64
    smallest_face = 20.0

    def __init__(self):
        super().__init__()
        self.anywhere = nn.Parameter(torch.zeros(1))
        self.shown = []

    def forward(self, images):
        self.shown.append(tuple(images.shape))
        found = [list(self.patches(image)) for image in images]
        count = max(1, *(len(patches) for patches in found))
        logits = torch.full((len(images), count), -20.0)
        boxes = torch.zeros(len(images), count, 4)
        points = torch.zeros(len(images), count, 5, 2)
        for row, patches in enumerate(found):
            for slot, (x0, y0, x1, y1, brightness) in enumerate(patches):
                logits[row, slot] = 16 * brightness - 5.6
                boxes[row, slot] = torch.tensor([x0, y0, x1, y1])
                extent = torch.tensor([x1 - x0, y1 - y0])
                points[row, slot] = torch.tensor([x0, y0]) + (FACE + 0.5) / 112 * extent
        return Candidates(logits, boxes, points)

    def patches(self, image):
        """Edges and greatest brightness of each patch that is brighter than the grey of padding."""
        grey = ((image.mean(0) + 1) / 2).numpy()
        numbered = label(grey > 0.52, connectivity=1)
        for number in range(1, numbered.max() + 1):
            rows, columns = np.nonzero(numbered == number)
            low = float(columns.min()) - 0.5, float(rows.min()) - 0.5
            high = float(columns.max()) + 0.5, float(rows.max()) + 0.5
            yield *low, *high, float(grey[rows, columns].max())


def use_square_detector(monkeypatch):
    """Find white squares in place of faces, in one pass: in crops they are cut off."""
    monkeypatch.setattr(pipeline, "load_detector", lambda device: SquareDetector())
    monkeypatch.setattr(
        detection,
        "_improved",
        lambda detector, images, faces, config: faces[faces.scores > config.score_threshold],
    )
