"""Draw the space of expression features twice: coloured by expression, and by person.

    python examples/plot_expression_space.py photos space.png

where photos/anna/*.jpg, photos/ben/*.jpg and so on have a folder per person; or a parquet file with
the columns image, expression and identity. Where features hold no person, colours mix on the right.
"""

import argparse
from pathlib import Path

import torch

import facezoo
from facezoo import plot

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def read(source: Path) -> tuple[list, list[str] | None, list[str]]:
    """Photographs, their expressions where these are known, and who is on them."""
    if source.is_dir():
        photos = [p for p in sorted(source.glob("*/*")) if p.suffix.lower() in SUFFIXES]
        return photos, None, [photo.parent.name for photo in photos]
    import pyarrow.parquet as pq

    columns = pq.read_table(source, columns=["image", "expression", "identity"]).to_pydict()
    known = [word or "unknown" for word in columns["expression"]]
    return columns["image"], known, columns["identity"]


def main(source: Path, target: Path, method: str = "pca", model: str = "ipd-fer") -> None:
    photos, expressions, people = read(source)
    network = facezoo.load(model)
    features = network.encode_expression(photos, on_missing="nan").cpu()
    told = expressions or network.predict_expression(photos, on_missing="nan").labels
    found = torch.isfinite(features).all(1).tolist()
    if sum(found) < 3:
        raise ValueError(f"{sum(found)} faces are found in {source}; give 3 or more")
    points = plot.plane(features[found], method)
    figure = plot.Picture((12, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, names, title in ((left, told, "by expression"), (right, people, "by identity")):
        shown = [name for name, known in zip(names, found, strict=True) if known]
        plot.scatter(axes, points, shown, f"{title} ({len(set(shown))})")
    figure.savefig(target)
    print(f"{sum(found)} faces of {len(photos)} photographs: {target}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the space of expression features.")
    parser.add_argument("source", type=Path, help="a folder per person, or a parquet file")
    parser.add_argument("target", type=Path, help="the picture to write")
    parser.add_argument("--method", choices=["pca", "tsne"], default="pca")
    parser.add_argument("--model", default="ipd-fer", help="default: %(default)s")
    main(**vars(parser.parse_args()))
