"""Fine-tune a checkpoint with the Trainer of Transformers.

    pip install "transformers[torch]"
    python examples/finetune_trainer.py my_photos my-model

where my_photos holds a folder of photographs per class, or is a .csv or .parquet file of labels.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Trainer, TrainingArguments

import facezoo
from facezoo.data.crops import cut_faces
from facezoo.data.labelled import read_labelled
from facezoo.preprocess.alignment import normalize
from facezoo.training.optim import layer_groups


class WithLoss(nn.Module):
    """A model as the Trainer wants it: named inputs, loss and logits out."""

    def __init__(self, model: facezoo.FaceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.model(images)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def main(data: Path, out: Path, name: str = "ipd-fer", epochs: int = 10) -> float:
    labelled = read_labelled(data)
    model = facezoo.load(name)
    model.reset_classifier(labels=labelled.classes)
    cut = cut_faces(labelled.name, labelled.images, labelled.landmarks, device=model.device)
    images = normalize(cut.images.float(), model.preprocessing)
    labels = labelled.labels[cut.rows]
    rows = [{"images": i, "labels": k} for i, k in zip(images, labels, strict=True)]
    train, val = (torch.isin(cut.rows, labelled.rows(split)) for split in ("train", "val"))
    rate = 1e-3
    groups = [g | {"lr": rate * g["rate_scale"]} for g in layer_groups(model, decay=0.7)]
    trainer = Trainer(
        WithLoss(model),
        TrainingArguments(
            str(out / "trainer"),
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=[row for row, taken in zip(rows, train, strict=True) if taken],
        optimizers=(torch.optim.AdamW(groups, lr=rate, weight_decay=0.05), None),
    )
    trainer.train()
    told = trainer.predict([row for row, held in zip(rows, val, strict=True) if held])
    accuracy = float((told.predictions.argmax(1) == told.label_ids).mean())
    model.eval().save_pretrained(out)
    print(
        f"{accuracy:.0%} of {int(val.sum())} held-out faces are right; facezoo.load({str(out)!r})"
    )
    return accuracy


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
