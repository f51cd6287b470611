#!/usr/bin/env bash
# Believed: safetensors.torch.load_file returns tensors of its own, which no later write to the file can change.
# So it is: on the CPU the tensors are views of the mapped file. If another process saves new weights of the
# same size into the same file in place, the weights that are loaded already change with it.
# Version and date: safetensors 0.8.0, torch 2.13.0, Linux, 2026-11-29.
# What follows: copy the tensors after loading, and replace weight files instead of rewriting them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" "safetensors==0.8.0" "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import safetensors.torch
import torch

safetensors.torch.save_file({"weight": torch.zeros(4)}, "model.safetensors")
weight = safetensors.torch.load_file("model.safetensors")["weight"]
before = weight.clone()
safetensors.torch.save_file({"weight": torch.ones(4)}, "other.safetensors")
with open("other.safetensors", "rb") as source, open("model.safetensors", "r+b") as target:
    target.write(source.read())  # the same bytes in the same place: both files are valid all the time
print("loaded:", before.tolist(), "after the file was saved again:", weight.tolist())
assert before.tolist() == [0, 0, 0, 0]
assert weight.tolist() == [1, 1, 1, 1], "load_file copies the tensors now"
PYTHON
