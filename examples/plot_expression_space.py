"""Draw the space of expression features twice: colored by expression and by identity.

    python examples/plot_expression_space.py photos space.png

where photos has one folder of images per identity, or is a parquet file with the columns image,
expression and identity. If features hold no identity, the colors on the right are mixed. Only the
largest face of each image is used. Draw a part of a parquet file, such as the validation images
with two expressions of identities with ten images or more:

    python examples/plot_expression_space.py DATA/lfw.parquet space.png --method tsne \\
        --split val --expressions neutral happiness --min-images 10
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

import facezoo
from facezoo import plot

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def read(
    source: Path, split: str | None = None, expressions: Sequence[str] | None = None
) -> tuple[list, list[str] | None, list[str]]:
    """Read images, their expressions where these are known, and their identities.

    Args:
        source: a folder per identity, or a parquet file.
        split: value of the column ``split``; None for all rows.
        expressions: labels of the rows to read; None for all rows.
    """
    if source.is_dir():
        images = [p for p in sorted(source.glob("*/*")) if p.suffix.lower() in SUFFIXES]
        return images, None, [image.parent.name for image in images]
    import pyarrow.parquet as pq

    filters = [("split", "==", split)] if split else []
    filters += [("expression", "in", list(expressions))] if expressions else []
    names = ["image", "expression", "identity"]
    columns = pq.read_table(source, columns=names, filters=filters or None).to_pydict()
    known = [word or "unknown" for word in columns["expression"]]
    return columns["image"], known, columns["identity"]


def frequent(identities: Sequence[str], min_images: int) -> list[int]:
    """Return the indices of the images of identities with ``min_images`` images or more."""
    counts = Counter(identities)
    return [i for i, name in enumerate(identities) if counts[name] >= min_images]


def main(
    source: Path,
    target: Path,
    method: str = "pca",
    model: str = "ipd-fer",
    split: str | None = None,
    expressions: Sequence[str] | None = None,
    min_images: int = 1,
) -> None:
    """Draw the features of the images of ``source``, by expression and by identity."""
    images, words, identities = read(source, split, expressions)
    rows = frequent(identities, min_images)
    images, identities = [images[i] for i in rows], [identities[i] for i in rows]
    network = facezoo.load(model)
    options = {"faces": "largest", "on_missing": "nan"}
    features = network.encode_expression(images, **options).cpu()
    if words is None:
        labels = network.predict_expression(images, **options).labels
    else:
        labels = [words[i] for i in rows]
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
