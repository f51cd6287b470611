"""Fine-tune a checkpoint with the Trainer of Transformers.

    pip install "transformers[torch]"
    python examples/finetune_trainer.py my_photos my-model

where my_photos holds a folder of images per class, or is a .csv or .parquet file of labels.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed

import facezoo
from facezoo.data.crops import cut_faces
from facezoo.data.labeled import read_labeled
from facezoo.preprocess.alignment import normalize
from facezoo.training.optim import layer_groups, set_lr


class WithLoss(nn.Module):
    """A model with the inputs and outputs that the Trainer expects."""

    def __init__(self, model: facezoo.FaceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.model(images)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def main(data: Path, out: Path, name: str = "ipd-fer", epochs: int = 10) -> float:
    set_seed(0)  # before the new classifier gets its random weights
    labeled = read_labeled(data)
    model = facezoo.load(name)
    model.reset_classifier(labels=labeled.classes)
    cut = cut_faces(labeled.name, labeled.images, labeled.landmarks, device=model.device)
    images = normalize(cut.images.float(), model.preprocessing)
    labels = labeled.labels[cut.rows]
    rows = [{"images": i, "labels": k} for i, k in zip(images, labels, strict=True)]
    train, val = (
        [rows[i] for i in torch.isin(cut.rows, labeled.rows(split)).nonzero()[:, 0].tolist()]
        for split in ("train", "val")
    )
    groups = layer_groups(model, decay=0.7)
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.05)
    set_lr([optimizer], 1.0)  # lower at the input
    # A batch norm cannot train on a last batch of one image.
    batch_size = next(size for size in range(32, 1, -1) if len(train) % size != 1)
    arguments = TrainingArguments(
        str(out / "trainer"),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        save_strategy="epoch",
        save_total_limit=1,
        report_to=[],
    )
    trainer = Trainer(WithLoss(model), arguments, train_dataset=train, optimizers=(optimizer, None))
    trainer.train()
    right = 0
    if val:
        prediction = trainer.predict(val)
        right = int((prediction.predictions.argmax(1) == prediction.label_ids).sum())
    model.eval().save_pretrained(out)
    print(f"{right} of {len(val)} validation faces are right; facezoo.load({str(out)!r})")
    return right / max(1, len(val))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
