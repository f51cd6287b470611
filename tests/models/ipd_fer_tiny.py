"""Recipes and data small enough to train in a test."""

from dataclasses import replace

import torch

from facezoo.models.ipd_fer.train.recipes import Objective, Recipe, StageConfig, Start

CPU = torch.device("cpu")
BACKBONE = "test_resnet.r160_in1k"
# Batches: 2 x 4 of 5 + 2 x 6 examples for identity, 2 x 1 of 6 for its second round, 2 x 2 of 10
# for each round of expression, and as many for the last.
STAGE = StageConfig(epochs=2, sizes=((0, 32),), batch_size=4)
START = Start(identity=STAGE, polish=STAGE, expression=STAGE, settle=STAGE)
# With pictures of 14 pixels the backbone's last stage strides over a map of one pixel, where
# gradients in bfloat16 on the CPU came out as NaN.
OBJECTIVE = Objective(pose_backbone=BACKBONE, decoder_size=28, decoder_width=8)
PAPER = Recipe(
    STAGE,
    OBJECTIVE,
    START,
    backbone=BACKBONE,
    feature_dim=16,
    soft_labels=True,
    lfw_trust=0.3,
    precision="float32",
)
COMPACT = replace(PAPER, objective=replace(OBJECTIVE, joint=True, expression_rank=4, pictured=0.5))
BASELINE = replace(PAPER, objective=None)


def differing(first, second):
    assert first.keys() == second.keys()
    return [key for key in first if not torch.equal(first[key], second[key])]


def shaken(parts):
    """Every parameter away from zero, where timm starts the residual branches."""
    for parameter in parts.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return parts
