"""Draw the space of expression features twice: colored by expression and by identity.

    python examples/plot_expression_space.py photos space.png

where photos has one folder of images per identity, or is a parquet file with the columns image,
expression and identity. If features hold no identity, the colors on the right are mixed. Options
draw a part of a parquet file, such as ``--split val --expressions neutral happiness``.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch

import facezoo
from facezoo import plot

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def read(source: Path, split: str | None, expressions: list[str] | None) -> list[tuple]:
    """Read image, expression (None where it is unknown) and identity of every row."""
    if source.is_dir():
        images = [p for p in sorted(source.glob("*/*")) if p.suffix.lower() in SUFFIXES]
        return [(image, None, image.parent.name) for image in images]
    import pyarrow.parquet as pq

    filters = [("split", "==", split)] if split else []
    filters += [("expression", "in", expressions)] if expressions else []
    names = ["image", "expression", "identity"]
    columns = pq.read_table(source, columns=names, filters=filters or None).to_pydict()
    words = [word or "unknown" for word in columns["expression"]]
    return list(zip(columns["image"], words, columns["identity"], strict=True))


def main(
    source: Path,
    target: Path,
    method: str = "pca",
    model: str = "ipd-fer",
    split: str | None = None,
    expressions: list[str] | None = None,
    min_images: int = 1,
) -> None:
    """Draw the features of the largest face of each image, by expression and by identity."""
    rows = read(source, split, expressions)
    counts = Counter(identity for *_, identity in rows)
    rows = [row for row in rows if counts[row[2]] >= min_images]
    images, labels, identities = ([row[column] for row in rows] for column in range(3))
    network = facezoo.load(model)
    options = {"faces": "largest", "on_missing": "nan"}
    features = network.encode_expression(images, **options).cpu()
    if source.is_dir():
        labels = network.predict_expression(images, **options).labels
    found = torch.isfinite(features).all(1).tolist()
    if sum(found) < 3:
        raise ValueError(f"{sum(found)} faces are found in {source}; give 3 or more")
    points = plot.plane(features[found], method)
    figure = plot.Picture((12, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, names, title in ((left, labels, "by expression"), (right, identities, "by identity")):
        shown = [name for name, known in zip(names, found, strict=True) if known]
        plot.scatter(axes, points, shown, f"{title} ({len(set(shown))})")
    figure.savefig(target)
    print(f"{sum(found)} faces of {len(images)} images: {target}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the space of expression features.")
    parser.add_argument("source", type=Path, help="a folder per identity, or a parquet file")
    parser.add_argument("target", type=Path, help="the figure to write")
    parser.add_argument("--method", choices=["pca", "tsne"], default="pca")
    parser.add_argument("--model", default="ipd-fer", help="default: %(default)s")
    parser.add_argument("--split", help="split of a parquet file, such as val")
    parser.add_argument("--expressions", nargs="+", help="expressions of a parquet file to draw")
    parser.add_argument("--min-images", type=int, default=1, help="least images of an identity")
    main(**vars(parser.parse_args()))
