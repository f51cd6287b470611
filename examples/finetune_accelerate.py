"""Fine-tune a checkpoint on one GPU or several with accelerate.

    accelerate launch examples/finetune_accelerate.py my_photos my-model

Needs the extra [train]. my_photos holds a folder of images per class, or is a .csv or .parquet
file of labels.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, TensorDataset

import facezoo
from facezoo.data.crops import cut_faces
from facezoo.data.labeled import read_labeled
from facezoo.preprocess.alignment import normalize
from facezoo.training.optim import layer_groups, set_lr


def main(data: Path, out: Path, name: str = "ipd-fer", epochs: int = 10) -> float:
    accelerator = Accelerator()
    set_seed(0)  # the same new classifier in every process
    labeled = read_labeled(data)
    model = facezoo.load(name, device=accelerator.device)
    model.reset_classifier(labels=labeled.classes)
    model.freeze(*(part for part, _ in model.named_children() if not part.startswith("expression")))
    with accelerator.main_process_first():
        cut = cut_faces(labeled.name, labeled.images, labeled.landmarks, device=model.device)
    train = torch.isin(cut.rows, labeled.rows("train"))
    rows = TensorDataset(cut.images[train], labeled.labels[cut.rows[train]])
    loader = DataLoader(rows, batch_size=32, shuffle=True, drop_last=len(rows) > 32)
    groups = layer_groups(model, decay=0.7)
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.05)
    set_lr([optimizer], 1.0)  # lower at the input
    trained, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for epoch in range(epochs):
        trained.train()
        for crops, labels in loader:
            images = normalize(crops.float(), model.preprocessing)
            loss = F.cross_entropy(trained(images), labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        accelerator.print(f"epoch {epoch + 1}: loss {float(loss.detach()):.3f}")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        accelerator.unwrap_model(trained).eval().save_pretrained(out)
    return float(loss.detach())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
