"""Train the pose encoder and the decoder of a finished checkpoint again; ours, not in the paper.

E_id stays as it is; E_exp and C_exp do too, or are trained further first. E_pose learns four
numbers from landmarks. Expression is removed from f_id in closed form, and the three features move
into subspaces that are orthogonal to each other, so that no feature can carry a part of another.
G_dec is then trained on pairs (``decoder.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from facezoo.models.identity_removal import IdentityRemoval
from facezoo.models.ipd_fer import losses
from facezoo.models.ipd_fer.model import IPDFER
from facezoo.models.ipd_fer.networks import PoseEncoder
from facezoo.models.ipd_fer.train.data import Rows, Sources, as_index, sample_images_and_poses
from facezoo.models.ipd_fer.train.decoder import (
    DecoderRows,
    cached_features,
    decoder_rows,
    train_decoder,
)
from facezoo.models.ipd_fer.train.expression import (
    STRONG,
    ExpressionTraining,
    calibrate,
    soft_labels,
)
from facezoo.models.ipd_fer.train.identity import expression_removal, known_expressions
from facezoo.models.ipd_fer.train.recipes import Recipe, Stage
from facezoo.training.loop import Position, fit
from facezoo.training.optim import autocast, descend, layer_groups
from facezoo.training.state import load_state, save_state

SPREAD = 4.0
"""Standard deviation of f_pose along each of its four directions; that of f_exp is about 6."""


def train_pose(
    start: IPDFER,
    packs: Mapping[str, Rows],
    val: Rows,
    stage: Stage,
    out: Path,
    seed: int,
    device: torch.device,
) -> PoseEncoder:
    """Train an E_pose of four numbers on landmarks, from the backbone of that of ``start``."""
    torch.manual_seed(seed)
    assert start.pose_encoder is not None
    encoder = PoseEncoder(start.architecture["pose_backbone"], start.num_features)
    encoder.backbone.load_state_dict(start.pose_encoder.backbone.state_dict())
    encoder = encoder.to(device).to(memory_format=torch.channels_last)
    encoder.expansion.requires_grad_(False)
    rows = list(packs.values())
    optimizer = torch.optim.AdamW(
        layer_groups(encoder), stage.lr, weight_decay=stage.weight_decay, fused=True
    )

    def step(index: Tensor, at: Position) -> dict[str, Tensor]:
        images, poses = sample_images_and_poses(rows, index, at.size, at.generator)
        with autocast(device):
            predicted = encoder.pose(images.to(device)).float()
        loss = losses.pose_regression_loss(predicted, poses.to(device))
        descend(optimizer, loss)
        return {"loss": loss}

    def validate(network: nn.Module, at: Position) -> dict[str, float]:
        assert isinstance(network, PoseEncoder)
        index = as_index([torch.arange(len(val.crops))])
        errors = []
        for part in index.split(128, dim=1):
            images, poses = sample_images_and_poses([val], part, at.size, at.generator)
            errors.append((network.pose(images.to(device)).cpu() - poses).abs())
        mean = torch.rad2deg(torch.cat(errors).nanmean(0))
        return dict(zip(("yaw_deg", "pitch_deg", "roll_deg"), mean.tolist(), strict=False))

    known = [torch.isfinite(part.landmarks).flatten(1).all(1).nonzero()[:, 0] for part in rows]
    result = fit(encoder, [optimizer], step, stage, as_index(known), out, seed, validate=validate)
    encoder.load_state_dict(result.state)
    return encoder.cpu()


def redecode(
    chosen: Recipe, sources: Sources, start: IPDFER, out: Path, seed: int, device: torch.device
) -> IPDFER:
    """Train E_pose and G_dec of ``start`` again, in place, after its other parts if ``further``."""
    if chosen.further:
        train_further(chosen, sources, start, out, seed, device)
    val = sources.val["lfw"]
    packs = {"lfw": sources.train["lfw"], **sources.faces}
    pose = train_pose(start, packs, val, chosen.main, out / "pose", seed, device)
    shape = {
        "decoder_size": None,
        "pose_bottleneck": True,
        "removed_directions": 0,
        "refined_decoder": False,
    }
    model = IPDFER(**{**start.architecture, **shape})
    start.pose_encoder = pose
    left_out = ("decoder.", "pose_classifier.", "expression_removal.")
    model.load_state_dict(
        {k: v for k, v in start.state_dict().items() if not k.startswith(left_out)}
    )
    return with_decoder(model, chosen, sources, out, seed, device).cpu()


def train_further(
    chosen: Recipe, sources: Sources, start: IPDFER, out: Path, seed: int, device: torch.device
) -> None:
    """Train E_exp and C_exp of a checkpoint further, in place.

    The checkpoint itself gives the soft labels of the web faces, which E_exp then learns from
    strongly augmented crops.
    """
    rows, faces = dict(sources.train), sources.faces["faces_wild"]
    file = out / "soft-labels.pt"
    saved = load_state(file)
    if saved is None:
        labels = soft_labels([start.to(device)], faces, device).expression
        saved = {"expression": labels}
        save_state(file, **saved)
    rows["faces_wild"] = replace(faces, expression=saved["expression"])
    assert chosen.start.expression is not None
    torch.manual_seed(seed)
    encoder, rank = start.cpu().expression_encoder, start.architecture["expression_rank"]
    training = ExpressionTraining(
        chosen, rows, sources.val, encoder.state_dict(), device, rank, change=STRONG
    )
    training.parts["expression_classifier"].load_state_dict(
        start.expression_classifier.state_dict()
    )
    state = training.run(chosen.start.expression, out / "expression", seed)
    start.load_state_dict(state, strict=False)
    if chosen.calibrated:
        calibrate(start.to(device), next(iter(sources.val.values())), device)


def with_decoder(
    model: IPDFER, chosen: Recipe, sources: Sources, out: Path, seed: int, device: torch.device
) -> IPDFER:
    """Separate the features of a model, if they can be, and train its decoder on pairs."""
    assert chosen.decoder is not None
    train = decoder_rows(model, sources.heads, out / "features" / "train", device)
    val = decoder_rows(model, {"lfw": sources.val["lfw"]}, out / "features" / "val", device)
    if isinstance(model.pose_encoder, PoseEncoder) and model.architecture["expression_rank"]:
        if model.expression_removal is None:
            directions = chosen.start.identity.removed_directions
            model.expression_removal = fit_removal(
                model, train, sources, directions, out / "features", device
            )
        removal = model.expression_removal
        separate(model.cpu(), removal(train.identity), train.pose)
        removal = model.expression_removal
        train, val = (replace(x, identity=removal(x.identity)) for x in (train, val))
    return train_decoder(model, chosen.decoder, train, val, out / "decoder", seed, device)


def fit_removal(
    model: IPDFER,
    data: DecoderRows,
    sources: Sources,
    directions: int,
    cache: Path,
    device: torch.device,
) -> IdentityRemoval:
    """Fit the removal of expression from f_id on color images and on FER+."""
    gray = known_expressions(sources.train["ferplus"])
    features = cached_features(model.embed_identity, gray.crops, cache / "ferplus.pt", device)
    return expression_removal(
        [data.identity, features], [data.rows.labels, gray.labels], directions
    )


@torch.no_grad()
def separate(model: IPDFER, identity: Tensor, pose: Tensor) -> None:
    """Move f_id and f_pose into subspaces that are orthogonal to that of f_exp and to each other.

    f_pose expands along the four directions outside of f_exp's in which f_id varies least, each
    with the spread ``SPREAD``; a frontal face of average pitch and size gives zeros. The removal of
    the model takes these and the directions of f_exp out of f_id, after the expression that it
    removes already.

    Args:
        model: with an ``expression_rank``, a pose bottleneck and a removal of expression; changed
            in place.
        identity: features of E_id of training images after the present removal, (N, D).
        pose: yaw, pitch, roll and log size of training images, (N, 4).
    """
    encoder, removal = model.expression_encoder, model.expression_removal
    assert isinstance(model.pose_encoder, PoseEncoder)
    assert isinstance(encoder.projection, nn.Sequential)
    assert encoder.norm.running_var is not None
    assert removal is not None
    scale = encoder.norm.weight / (encoder.norm.running_var + encoder.norm.eps).sqrt()
    outward = list(encoder.projection.parameters())[1]  # (D, rank)
    expression = torch.linalg.qr((scale[:, None] * outward).double()).Q
    rest = identity.double() - identity.double().mean(0)
    rest = rest - rest @ expression @ expression.T
    # Its eigenvalues rise; the first ones, zero, are those of the directions of f_exp.
    covariance = rest.T @ rest / len(rest) + expression @ expression.T * 1e6
    turns = torch.linalg.eigh(covariance).eigenvectors[:, :4]
    model.pose_encoder.expansion.weight.copy_(turns * (SPREAD / pose.double().std(0)))
    frontal = pose.mean(0) * torch.tensor([0, 1, 0, 1])
    model.pose_encoder.expansion.bias.copy_(-model.pose_encoder.expansion.weight @ frontal)
    taken = torch.cat([expression, turns], 1)
    read, write = removal.read.double(), removal.write.double()
    both = IdentityRemoval(len(taken), read.shape[1] + taken.shape[1])
    both.mean.copy_(removal.mean)
    both.read.copy_(torch.cat([read, taken - read @ (write @ taken)], 1))
    both.write.copy_(torch.cat([write, taken.T]))
    model.expression_removal = both
    model.architecture = {**model.architecture, "removed_directions": both.directions}
