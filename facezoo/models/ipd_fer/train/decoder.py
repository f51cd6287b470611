"""Train G_dec on pairs of images, so that it needs f_exp; ours, not in the paper.

Every encoder is fixed. A is an image, B another image of the same identity with another expression
where there is one, N a neutral image of the identity, and C an image of someone else:

- G_dec(f_id(A) + f_pose(B) + f_exp(B)) must be B;
- G_dec(f_id(A) + f_pose(N)) must be N, or neutral to C_exp where there is no N;
- G_dec(f_id(A) + f_pose(A) + f_exp(C)) must have f_id of A and f_exp of C.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facezoo.data.augment import center_crop
from facezoo.models.ipd_fer import losses
from facezoo.models.ipd_fer.model import IPDFER
from facezoo.models.ipd_fer.networks import Decoder
from facezoo.models.ipd_fer.train.algorithm import NEUTRAL
from facezoo.models.ipd_fer.train.data import Rows, embed
from facezoo.models.ipd_fer.train.identity import rows_by_identity
from facezoo.models.ipd_fer.train.recipes import MARGIN, DecoderConfig, Stage
from facezoo.training.loop import Position, fit
from facezoo.training.optim import descend
from facezoo.training.state import load_state, save_state


@dataclass(frozen=True)
class DecoderRows:
    """Color crops with the features of each crop and of its mirror image."""

    crops: Tensor
    """uint8, (N, 3, H, H)."""
    rows: Rows
    """Labels and identities of the same N images."""
    identity: Tensor
    """f_id, (N, 2, D)."""
    pose: Tensor
    """f_pose, (N, 2, D)."""
    expression: Tensor
    """f_exp, (N, 2, D)."""


@dataclass(frozen=True)
class Pairs:
    """Row and mirroring of each image of a batch, (2, B) each; see the module's docstring."""

    a: Tensor
    b: Tensor
    c: Tensor
    n: Tensor
    has_neutral: Tensor
    """True where ``n`` is a neutral image, (B,)."""


class PairLosses:
    """The losses of G_dec on a batch of pairs.

    Args:
        model: with trained encoders, which stay as they are.
        config: weights.
        data: images and features.
        device: where to train.
    """

    def __init__(
        self, model: IPDFER, config: DecoderConfig, data: DecoderRows, device: torch.device
    ) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.config, self.data, self.device = config, data, device

    def features(self, column: Tensor, index: Tensor) -> Tensor:
        """Return features (B, D) at (row, mirroring) (2, B)."""
        return column[index[0], index[1]].float().to(self.device)

    def images(self, index: Tensor, size: int) -> Tensor:
        """Return real crops at (row, mirroring) (2, B), normalized, (B, 3, size, size)."""
        crops = center_crop(self.data.crops[index[0]], size, MARGIN)
        mirrored = (index[1] == 1)[:, None, None, None]
        return torch.where(mirrored, crops.flip(-1), crops).to(self.device)

    def __call__(self, decoder: Decoder, pairs: Pairs, size: int) -> dict[str, Tensor]:
        """Compute every loss, and their weighted sum as ``loss``."""
        identity = self.features(self.data.identity, pairs.a)
        pose = [self.features(self.data.pose, index) for index in (pairs.b, pairs.n, pairs.a)]
        expression = [self.features(self.data.expression, i) for i in (pairs.b, pairs.c)]
        sums = [identity + pose[0] + expression[0], identity + pose[1]]
        sums.append(identity + pose[2] + expression[1])
        pair, neutral, swap = decoder.generate(torch.cat(sums)).chunk(3)
        real_a, real_b, real_c, real_n = (
            self.images(index, size) for index in (pairs.a, pairs.b, pairs.c, pairs.n)
        )
        known = pairs.has_neutral.to(self.device)
        terms = {
            "pixels": self.distance(pair, real_b),
            "neutral_pixels": self.distance(neutral[known], real_n[known]),
            "neutral": self.not_neutral(neutral[~known]),
            "swap": self.swap(swap, real_a, real_c),
        }
        config = self.config
        weights = (config.pixels, config.pixels, config.neutral, config.swap)
        total = torch.stack([w * t for w, t in zip(weights, terms.values(), strict=True)]).sum()
        return {"loss": total, **terms}

    def distance(self, images: Tensor, targets: Tensor) -> Tensor:
        """Compute ``pair_loss`` with the feature maps of E_exp's backbone; 0 for no images."""
        if not len(images):
            return images.sum()
        with torch.no_grad():
            wanted = self.feature_maps(targets)
        return losses.pair_loss(images, targets, (self.feature_maps(images), wanted))

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Return the maps of the backbone's first stages, (B, C, h, w)."""
        backbone = self.model.expression_encoder.backbone
        maps: list[Tensor] = backbone.forward_intermediates(  # type: ignore[operator]
            images, indices=[1, 2, 3], intermediates_only=True
        )
        return maps

    def not_neutral(self, images: Tensor) -> Tensor:
        """Compute eq. (9) with C_exp in place of D; 0 for no images."""
        if not len(images):
            return images.sum()
        return losses.fake_neutral_loss(self.logits(images)[1], NEUTRAL)

    def swap(self, images: Tensor, faces: Tensor, sources: Tensor) -> Tensor:
        """Compute ``swap_loss`` of crops: f_id of ``faces`` and f_exp of ``sources``."""
        with torch.no_grad():
            identity = self.identity(faces)
            expression, logits = self.logits(sources)
        ours = self.logits(images)
        return losses.swap_loss(
            (self.identity(images), ours[0]), (identity, expression), (ours[1], logits)
        )

    def identity(self, images: Tensor) -> Tensor:
        """Compute f_id of crops of any size, (B, D)."""
        features: Tensor = self.model.identity_encoder(images)
        removal = self.model.expression_removal
        return features if removal is None else removal(features)

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute f_exp (B, D) and the logits of C_exp (B, K) of crops of any size."""
        features: Tensor = self.model.expression_encoder(images)
        return features, self.model.classify_features(features)


def train_decoder(
    model: IPDFER,
    config: DecoderConfig,
    rows: Mapping[str, Rows],
    val: Rows,
    out: Path,
    seed: int,
    device: torch.device,
) -> IPDFER:
    """Train a decoder for a model whose encoders are trained.

    Args:
        model: its own decoder is replaced.
        config: sides, stages and weights.
        rows: training splits in color by name; those with identities give the pairs.
        val: validation split with identities, such as LFW's.
        out: folder for features, states and logs.
        seed: seed of initial weights, order and pairs.
        device: where to train.

    Returns:
        The model with the decoder of the last stage.
    """
    data = decoder_rows(model, rows, out / "features.pt", device)
    val_data = decoder_rows(model, {"val": val}, out / "val-features.pt", device)
    pairs = PairLosses(model, config, data, device)
    val_pairs = PairLosses(model, config, val_data, device)
    decoder: Decoder | None = None
    for size, stage in config.stages:
        torch.manual_seed(seed)
        larger = Decoder(model.num_features, size, config.width)
        if decoder is not None:
            larger.start_from(decoder)
        decoder = larger.to(device)
        _train_stage(decoder, size, stage, pairs, val_pairs, out / f"{size}px", seed)
    assert decoder is not None
    shape = {"decoder_size": config.stages[-1][0], "decoder_width": config.width}
    trained = IPDFER(**{**model.architecture, **shape})
    tensors = {k: v for k, v in model.state_dict().items() if not k.startswith("decoder.")}
    generator = {f"decoder.{k}": v for k, v in decoder.cpu().state_dict().items()}
    trained.load_state_dict({**tensors, **generator})
    return trained


def _train_stage(
    decoder: Decoder,
    size: int,
    stage: Stage,
    pairs: PairLosses,
    val_pairs: PairLosses,
    out: Path,
    seed: int,
) -> None:
    """Train the decoder at one size, and load its best epoch."""
    optimizer = torch.optim.AdamW(decoder.parameters(), stage.lr, weight_decay=stage.weight_decay)

    def step(index: Tensor, at: Position) -> dict[str, Tensor]:
        terms = pairs(decoder, sample_pairs(pairs.data.rows, index, at.generator), size)
        descend(optimizer, terms["loss"], max_norm=1.0)
        return terms

    result = fit(
        decoder,
        [optimizer],
        step,
        stage,
        torch.arange(len(pairs.data.crops)),
        out,
        seed,
        validate=lambda network, _: score_decoder(network, val_pairs, size, seed),
        select="score",
    )
    decoder.load_state_dict(result.state)


def decoder_rows(
    model: IPDFER, rows: Mapping[str, Rows], cache: Path, device: torch.device
) -> DecoderRows:
    """Compute the features of color images and of their mirror images, or read them.

    Args:
        model: whose encoders compute them.
        rows: splits in color by name.
        cache: file for the features.
        device: where to compute.
    """
    parts = list(rows.values())
    crops = torch.cat([part.crops for part in parts])
    saved = load_state(cache)
    if saved is None:
        model = model.to(device).eval()
        encoders = {
            "identity": model.embed_identity,
            "pose": model.embed_pose,
            "expression": model.embed_expression,
        }
        if model.pose_encoder is None:
            encoders["pose"] = lambda images: torch.zeros(len(images), model.num_features)
        saved = {
            name: torch.stack(
                [embed(encode, crops, device, mirrored=m).half() for m in (False, True)], 1
            )
            for name, encode in encoders.items()
        }
        save_state(cache, **saved)
    joined = Rows(
        crops=crops,
        landmarks=torch.cat([part.landmarks for part in parts]),
        teacher=torch.cat([part.teacher for part in parts]),
        expression=torch.cat([part.expression for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        poses=torch.cat([part.poses for part in parts]),
        identities=[name for part in parts for name in part.identities],
        files=[file for part in parts for file in part.files],
    )
    return DecoderRows(crops, joined, **saved)


def sample_pairs(rows: Rows, index: Tensor, generator: torch.Generator) -> Pairs:
    """Choose B, C and N for the images of a batch, and which of them are mirrored.

    Args:
        rows: all images.
        index: rows of A, (B,).
        generator: source of every random number.
    """
    members = rows_by_identity(rows)  # once per batch: a few milliseconds
    neutral, partner = index.clone(), index.clone()
    for place, row in enumerate(index.tolist()):
        others = [m for m in members.get(rows.identities[row], ()) if m != row]
        calm = [m for m in others if rows.labels[m] == NEUTRAL]
        different = [m for m in others if rows.labels[m] != rows.labels[row]]
        neutral[place] = _choose(calm or [row], generator)
        partner[place] = _choose(different or others or [row], generator)
    has_neutral = rows.labels[neutral] == NEUTRAL

    def mirrored(chosen: Tensor) -> Tensor:
        return torch.stack([chosen, torch.randint(2, (len(chosen),), generator=generator)])

    return Pairs(
        a=mirrored(index),
        b=mirrored(partner),
        c=mirrored(index.roll(1)),
        n=mirrored(neutral),
        has_neutral=has_neutral,
    )


def _choose(rows: list[int], generator: torch.Generator) -> int:
    return rows[int(torch.randint(len(rows), (), generator=generator))]


def score_decoder(
    network: nn.Module, pair_losses: PairLosses, size: int, seed: int, count: int = 256
) -> dict[str, float]:
    """Measure swaps and neutralized faces of validation images by the model's own encoders.

    Returns:
        Shares of swaps that keep the identity and that take the expression, of neutralized faces
        that C_exp calls neutral, and their mean, ``score``; other networks have to confirm them.
    """
    generator = torch.Generator().manual_seed(seed)
    data = pair_losses.data
    index = torch.randperm(len(data.crops), generator=generator)[:count]
    correct = {"identity": 0.0, "expression": 0.0, "neutral": 0.0}
    for part in index.split(32):
        pairs = sample_pairs(data.rows, part, generator)
        identity = pair_losses.features(data.identity, pairs.a)
        posed = identity + pair_losses.features(data.pose, pairs.a)
        swaps = network.generate(posed + pair_losses.features(data.expression, pairs.c))  # type: ignore[operator]
        images = [pair_losses.images(index, size) for index in (pairs.a, pairs.c)]
        ours, face, source = (pair_losses.identity(x) for x in (swaps, *images))
        kept = F.cosine_similarity(ours, face) > F.cosine_similarity(ours, source)
        labels = [pair_losses.logits(x)[1].argmax(1) for x in (swaps, images[1])]
        neutralized = pair_losses.logits(network.generate(posed))[1].argmax(1)  # type: ignore[operator]
        correct["identity"] += float(kept.sum())
        correct["expression"] += float((labels[0] == labels[1]).sum())
        correct["neutral"] += float((neutralized == NEUTRAL).sum())
    result = {f"{name}_share": value / len(index) for name, value in correct.items()}
    return {**result, "score": sum(result.values()) / 3}
