"""Draw the space of expression features twice: colored by expression and by identity.

    python examples/plot_expression_space.py photos space.png

where photos has one folder of images per identity, or is a parquet file with the columns image,
expression and identity. If features hold no identity, the colors on the right are mixed.
"""

import argparse
from pathlib import Path

import torch

import facezoo
from facezoo import plot

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def read(source: Path) -> tuple[list, list[str] | None, list[str]]:
    """Read images, their expressions where these are known, and their identities."""
    if source.is_dir():
        images = [p for p in sorted(source.glob("*/*")) if p.suffix.lower() in SUFFIXES]
        return images, None, [image.parent.name for image in images]
    import pyarrow.parquet as pq

    columns = pq.read_table(source, columns=["image", "expression", "identity"]).to_pydict()
    known = [word or "unknown" for word in columns["expression"]]
    return columns["image"], known, columns["identity"]


def main(source: Path, target: Path, method: str = "pca", model: str = "ipd-fer") -> None:
    """Draw the features of the images of ``source``, by expression and by identity."""
    images, expressions, identities = read(source)
    network = facezoo.load(model)
    features = network.encode_expression(images, on_missing="nan").cpu()
    labels = expressions or network.predict_expression(images, on_missing="nan").labels
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
    main(**vars(parser.parse_args()))
