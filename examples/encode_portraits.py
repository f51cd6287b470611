"""Encode photographs: what do two faces share in expression, and what in identity?

python examples/encode_portraits.py examples/portraits/*.jpg
"""

import sys
from pathlib import Path

import torch.nn.functional as F

import facezoo

PORTRAITS = sorted((Path(__file__).parent / "portraits").glob("*.jpg"))


def main(photos: list[Path], pretrained: bool = True) -> None:
    model = facezoo.load("ipd-fer", pretrained=pretrained)
    encoding = model.encode(photos, on_missing="skip")
    prediction = model.predict_expression(photos, on_missing="skip")
    for row, (index, label) in enumerate(
        zip(encoding.faces.image_index.tolist(), prediction.labels, strict=True)
    ):
        probability = prediction.probabilities[row].max()
        print(f"{photos[index].name}: {label} ({probability:.0%})")
    for name in ("expression", "identity"):
        features = F.normalize(getattr(encoding, name), dim=-1)
        print(f"cosines of {name} features:")
        for line in (features @ features.T).tolist():
            print("  " + " ".join(f"{value:6.3f}" for value in line))


if __name__ == "__main__":
    if {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main([Path(p) for p in sys.argv[1:]] or PORTRAITS)
