"""Draw the space of expression features twice: coloured by expression, and by person.

    python examples/plot_expression_space.py photos space.png

where photos/anna/*.jpg, photos/ben/*.jpg and so on have a folder per person; or a parquet file with
the columns image, expression and identity. Where features hold no person, colours mix on the right.
"""

import argparse
from pathlib import Path

import torch

import facezoo

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


def to_plane(features: torch.Tensor, method: str) -> torch.Tensor:
    """Two coordinates per face, (F, 2): principal components, or t-SNE from a fixed start."""
    if method == "tsne":
        from sklearn.manifold import TSNE

        plane = TSNE(perplexity=min(30.0, (len(features) - 1) / 3), random_state=0)
        return torch.from_numpy(plane.fit_transform(features.numpy()))
    centred = features - features.mean(0)
    return centred @ torch.linalg.svd(centred, full_matrices=False)[2][:2].T


def draw(axes, points: torch.Tensor, names: list[str], title: str) -> None:
    """One panel, a colour per name; more than ten names get no legend."""
    from matplotlib import colormaps

    kinds = sorted(set(names))
    for number, kind in enumerate(kinds):
        x, y = points[[name == kind for name in names]].numpy().T
        axes.scatter(x, y, s=12, color=colormaps["turbo"]((number + 0.5) / len(kinds)), label=kind)
    axes.set(title=f"{title} ({len(kinds)})", xticks=[], yticks=[])
    if len(kinds) <= 10:
        axes.legend()


def main(source: Path, target: Path, method: str = "pca", model: str = "ipd-fer") -> None:
    from matplotlib.figure import Figure

    photos, expressions, people = read(source)
    network = facezoo.load(model)
    features = network.encode_expression(photos, on_missing="nan").cpu()
    told = expressions or network.predict_expression(photos, on_missing="nan").labels
    found = torch.isfinite(features).all(1).tolist()
    if sum(found) < 3:
        raise ValueError(f"{sum(found)} faces are found in {source}; give 3 or more")
    points, figure = to_plane(features[found], method), Figure((12, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, names, title in ((left, told, "by expression"), (right, people, "by person")):
        draw(axes, points, [n for n, f in zip(names, found, strict=True) if f], title)
    figure.savefig(target)
    print(f"{sum(found)} faces of {len(photos)} photographs: {target}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the space of expression features.")
    parser.add_argument("source", type=Path, help="a folder per person, or a parquet file")
    parser.add_argument("target", type=Path, help="the picture to write")
    parser.add_argument("--method", choices=["pca", "tsne"], default="pca")
    parser.add_argument("--model", default="ipd-fer", help="default: %(default)s")
    main(**vars(parser.parse_args()))
