"""Measure how well ``facezoo.cluster`` groups faces by identity.

    python benchmarks/clusters.py DATA [--model ipd-fer] [--json clusters.json]

DATA holds ``lfw.parquet``. All faces of its validation split are grouped, also those of identities
with a single image. Precision and recall count pairs of faces: pairs in one group, and pairs of one
identity.
"""

from pathlib import Path

import torch
from measuring import run_on_packs, stamp
from torch import Tensor

import facezoo
from facezoo.data.packs import read_pack
from facezoo.evaluate.embedding import embed_aligned

HIGHER = (0.5, 0.55, 0.6)
"""Thresholds above the one in the card."""


def pair_scores(groups: Tensor, identities: Tensor) -> tuple[float, float]:
    """Return pairwise precision and recall; faces with the group -1 are in no pair.

    Args:
        groups: number of the group of each face, or -1, (N,).
        identities: number of the identity of each face, (N,).
    """
    above = torch.ones(len(groups), len(groups), dtype=torch.bool).triu(1)
    together = (groups[:, None] == groups) & (groups >= 0) & above
    same = (identities[:, None] == identities) & above
    right = float((together & same).sum())
    return right / max(int(together.sum()), 1), right / max(int(same.sum()), 1)


def row(method: str, threshold: float | None, groups: Tensor, identities: Tensor) -> dict:
    """Format the scores of one clustering."""
    precision, recall = pair_scores(groups, identities)
    return {
        "method": method,
        "threshold": "–" if threshold is None else f"{threshold:.2f}",
        "groups": len(groups[groups >= 0].unique()),
        "pairwise precision": f"{100 * precision:.1f} %",
        "pairwise recall": f"{100 * recall:.1f} %",
        "faces left out": int((groups < 0).sum()),
    }


def main(data: Path, model: str = "ipd-fer") -> dict:
    """Measure all methods and thresholds on the validation split of LFW."""
    network = facezoo.load(model, device="cpu")
    table = read_pack(data / "lfw.parquet", "val")
    features = embed_aligned(network, table, ["encode_identity"])["encode_identity"]
    names = table["identity"].to_pylist()
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    identities = torch.tensor([numbers[name] for name in names])
    default = network.card.verification.threshold
    rows = [
        row("average", value, facezoo.cluster(features, threshold=value), identities)
        for value in (default, *HIGHER)
    ]
    rows.append(row("hdbscan", None, facezoo.cluster(features, method="hdbscan"), identities))
    images = identities.bincount()
    data_set = {
        "faces": len(identities),
        "identities": len(images),
        "identities with one image": int((images == 1).sum()),
    }
    command = f"python benchmarks/clusters.py DATA --model {model} --json OUT"
    tables = {"data": [data_set], "clusters": rows}
    return {**stamp(command), "checkpoint": network.card.name, "tables": tables}


if __name__ == "__main__":
    run_on_packs(main, __doc__)
