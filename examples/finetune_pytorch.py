"""Fine-tune a checkpoint on your own images, in plain PyTorch.

    python examples/finetune_pytorch.py my_photos my-model

where my_photos holds a folder of images per class, or is a .csv or .parquet file of labels.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import facezoo
from facezoo.data.crops import cut_faces
from facezoo.data.labeled import read_labeled
from facezoo.preprocess.alignment import normalize
from facezoo.training.optim import layer_groups, set_lr


def main(data: Path, out: Path, name: str = "ipd-fer", epochs: int = 10) -> float:
    torch.manual_seed(0)
    labeled = read_labeled(data)
    model = facezoo.load(name)
    model.reset_classifier(labels=labeled.classes)
    cut = cut_faces(labeled.name, labeled.images, labeled.landmarks, device=model.device)
    crops, labels = cut.images, labeled.labels[cut.rows]
    val = torch.isin(cut.rows, labeled.rows("val"))
    train = torch.isin(cut.rows, labeled.rows("train")).nonzero()[:, 0]
    groups = layer_groups(model, decay=0.7)
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.05)
    set_lr([optimizer], 1.0)  # lower at the input
    for _ in range(epochs):
        model.train()
        for rows in train[torch.randperm(len(train))].split(32):
            if len(rows) < 2:  # a norm needs two rows
                continue
            images = normalize(crops[rows].float(), model.preprocessing).to(model.device)
            if torch.rand(()) < 0.5:
                images = images.flip(-1)
            loss = F.cross_entropy(model(images), labels[rows].to(model.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    images = normalize(crops[val].float(), model.preprocessing).to(model.device)
    logits = model.run(images, "predict_expression").cpu()
    right = int((logits.argmax(1) == labels[val]).sum())
    model.save_pretrained(out)
    print(f"{right} of {len(images)} validation faces are right; facezoo.load({str(out)!r})")
    return right / max(1, len(images))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
