"""Recipes and data small enough to train in a test."""

from dataclasses import replace

import torch

from facezoo.models.ipd_fer.train.recipes import (
    DecoderConfig,
    IdentityConfig,
    Objective,
    Recipe,
    SelfTraining,
    Stage,
    Start,
)

CPU = torch.device("cpu")
BACKBONE = "test_resnet.r160_in1k"
# Batches: 2 per epoch for identity, 2 of 6 + 4 labeled rows for each expression stage and the last.
STAGE = Stage(epochs=2, batch_size=4, sizes=((0, 32),))
IDENTITY = IdentityConfig(
    stage=STAGE,
    batches=2,
    singles=(("faces_wild", 2), ("ferplus", 2)),
    pairs=2,
    queue=8,
    teacher_directions=1,
    removed_directions=2,
)
START = Start(identity=IDENTITY, expression=STAGE, settle=STAGE, self_training=None)
# With crops of 14 pixels the backbone's last stage strides over a map of one pixel, where
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
OURS = replace(
    OBJECTIVE,
    betas=(0.5, 0.0),
    joint=True,
    expression_rank=4,
    decoded_share=0.5,
    pose_bottleneck=True,
)
COMPACT = replace(
    PAPER,
    objective=OURS,
    start=replace(START, self_training=SelfTraining()),
    decoder=DecoderConfig(replace(STAGE, sizes=()), width=8),
    logit_adjustment=0.5,
    calibrated=True,
)
BASELINE = replace(PAPER, objective=None)
REDECODE = replace(BASELINE, decoder=COMPACT.decoder, redecode=True)
REFINE = replace(
    COMPACT, objective=None, main=replace(STAGE, sizes=((0, 112),)), redecode=True, further=True
)

RECLASSIFY = replace(
    COMPACT,
    main=Stage(steps=20, weight_decay=1e-4),
    objective=None,
    decoder=None,
    reclassify=True,
    lfw_trust=0.3,
)


def differing(first, second):
    assert first.keys() == second.keys()
    return [key for key in first if not torch.equal(first[key], second[key])]


def shaken(parts):
    """Every parameter away from zero, where timm starts the residual branches."""
    for parameter in parts.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return parts
