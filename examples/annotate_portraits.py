"""Draw faces, landmarks and expressions on photographs and put them side by side.

python examples/annotate_portraits.py portraits.jpg examples/portraits/*.jpg
"""

import sys
from pathlib import Path

from PIL import Image

import facezoo
from facezoo.plot import annotate

PORTRAITS = sorted((Path(__file__).parent / "portraits").glob("*.jpg"))
HEIGHT = 480


def main(output: Path, photos: list[Path], pretrained: bool = True) -> None:
    model = facezoo.load("ipd-fer", pretrained=pretrained)
    prediction = model.predict_expression(photos, faces="all", on_missing="skip")
    pictures = [
        annotate(photo, prediction, image_index=i, landmarks=True) for i, photo in enumerate(photos)
    ]
    shown = [p.resize((round(p.width * HEIGHT / p.height), HEIGHT)) for p in pictures]
    row = Image.new("RGB", (sum(p.width for p in shown), HEIGHT))
    left = 0
    for picture in shown:
        row.paste(picture, (left, 0))
        left += picture.width
    row.save(output, quality=90)
    print(f"{output}: {len(prediction)} faces in {len(photos)} photographs")


if __name__ == "__main__":
    if {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    target, *files = sys.argv[1:] or ["portraits.jpg"]
    main(Path(target), [Path(file) for file in files] or PORTRAITS)
