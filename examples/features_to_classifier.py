"""Train a classifier of your own on expression features, from a folder of photographs per class.

    python examples/features_to_classifier.py my_photos

where my_photos/smiling/*.jpg, my_photos/frowning/*.jpg and so on are yours to sort. Every fourth
face is held out to test on.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import facezoo

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def read_tree(folder: Path) -> tuple[list[Path], torch.Tensor, list[str]]:
    """Photographs, the class of each, and the names of the classes."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    photos, labels = [], []
    for number, name in enumerate(classes):
        inside = [p for p in sorted((folder / name).iterdir()) if p.suffix.lower() in SUFFIXES]
        photos += inside
        labels += [number] * len(inside)
    if len(set(labels)) < 2:
        raise ValueError(f"{folder} must hold photographs in two folders or more, one per class")
    return photos, torch.tensor(labels), classes


def logistic_regression(features: torch.Tensor, labels: torch.Tensor, classes: int):
    """A linear layer fitted by L-BFGS, with a little weight decay."""
    layer = torch.nn.Linear(features.shape[1], classes)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(layer(features), labels) + 1e-3 * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return layer


def main(folder: Path, pretrained: bool = True) -> float:
    photos, labels, classes = read_tree(folder)
    model = facezoo.load("ipd-fer", pretrained=pretrained)
    # Photographs without a face keep their row, as NaN, so that rows and labels stay in step.
    features = model.encode_expression(photos, on_missing="nan").cpu()
    known = torch.isfinite(features).all(1)
    features, labels = F.normalize(features[known], dim=1), labels[known]
    held_out = torch.arange(len(labels)) % 4 == 3
    if held_out.all() or not held_out.any():
        raise ValueError(f"{len(labels)} faces are too few; four or more are needed")
    layer = logistic_regression(features[~held_out], labels[~held_out], len(classes))
    right = layer(features[held_out]).argmax(1) == labels[held_out]
    accuracy = float(right.float().mean())
    print(f"{', '.join(classes)}: {accuracy:.0%} of {len(right)} held-out faces are right")
    return accuracy


if __name__ == "__main__":
    if len(sys.argv) != 2 or "--help" in sys.argv:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
