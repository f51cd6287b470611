#!/usr/bin/env bash
# Believed: dataloader_drop_last of Transformers' TrainingArguments concerns the training batches, and
# Trainer.predict returns one row per example of its dataset.
# So it is: the last, incomplete batch of predict is dropped too, without a warning. With fewer examples
# than one batch, predictions are None.
# Version and date: transformers 5.24.0, accelerate as resolved by it, torch 2.13.0, 2026-11-29.
# What follows: choose a batch size without a last batch of one instead of dataloader_drop_last.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" "transformers[torch]==5.24.0" "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers import Trainer, TrainingArguments


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 3)

    def forward(self, inputs, labels=None):
        logits = self.layer(inputs)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def examples(count):
    return [{"inputs": torch.zeros(2), "labels": torch.tensor(0)} for _ in range(count)]


arguments = TrainingArguments(
    "out", dataloader_drop_last=True, per_device_eval_batch_size=8, report_to=[], use_cpu=True
)
trainer = Trainer(Linear(), arguments)
rows = {}
for count in (20, 4):
    predictions = trainer.predict(examples(count)).predictions
    rows[count] = None if predictions is None else len(predictions)
    print(f"predictions for {count} examples in batches of 8: {rows[count]}")
assert rows == {20: 16, 4: None}, "predict returns every row now"
PYTHON
