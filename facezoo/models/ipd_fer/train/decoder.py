"""Train G_dec on pairs of images, so that it needs f_exp; ours, not in the paper.

Every encoder is fixed. A is an image, B another image of the same identity with another expression
where there is one, N a neutral image of the identity, and C an image of someone else:

- G_dec(f_id(A) + f_pose(B) + f_exp(B)) must be B;
- G_dec(f_id(A) + f_pose(N)) must be N, or neutral to C_exp where there is no N;
- G_dec(f_id(A) + f_pose(A) + f_exp(C)) must have f_id of A and f_exp of C.

The features are those of the images as they are. A mirrored image has the same f_id and f_exp, and
the opposite yaw and roll.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facezoo.data.augment import center_crop
from facezoo.models.ipd_fer import losses
from facezoo.models.ipd_fer.model import IPDFER
from facezoo.models.ipd_fer.networks import PoseEncoder, RefinedDecoder
from facezoo.models.ipd_fer.train.data import Rows, embed, rows_by_identity
from facezoo.models.ipd_fer.train.recipes import MARGIN, SIZE, TEMPLATE, DecoderConfig
from facezoo.preprocess.templates import template_points
from facezoo.results import EXPRESSIONS
from facezoo.training.loop import Position, fit
from facezoo.training.optim import autocast, descend
from facezoo.training.state import load_state, save_state

NEUTRAL = EXPRESSIONS.index("neutral")
CALM = 0.6
"""Probability of neutral above which an image that is labeled neutral, or not at all, counts."""
FIT_BATCH = 512


@dataclass(frozen=True)
class DecoderRows:
    """Color crops with their features."""

    rows: Rows
    """Crops, labels and identities of N images."""
    identity: Tensor
    """f_id, (N, D)."""
    pose: Tensor
    """Yaw, pitch, roll and log size, (N, 4)."""
    expression: Tensor
    """f_exp, (N, D)."""
    calm: Tensor
    """True for neutral images, (N,)."""
    members: dict[str, list[int]]
    """Rows of each identity."""


@dataclass(frozen=True)
class Pairs:
    """Row and mirroring of each image of a batch, (2, B) each; see the module's docstring."""

    a: Tensor
    b: Tensor
    c: Tensor
    n: Tensor
    has_neutral: Tensor
    """True where ``n`` is a neutral image, (B,)."""

    def part(self, count: int) -> Pairs:
        """Return the first ``count`` of the batch."""
        return Pairs(*(getattr(self, entry.name)[..., :count] for entry in fields(self)))


class PairLosses:
    """The losses of G_dec on a batch of pairs; the encoders of ``model`` stay as they are."""

    def __init__(
        self, model: IPDFER, config: DecoderConfig, data: DecoderRows, device: torch.device
    ) -> None:
        self.model = model.to(device).to(memory_format=torch.channels_last)
        self.model.eval().requires_grad_(False)
        self.config, self.data, self.device = config, data, device
        self.focus = face_weights(SIZE).to(device)

    def identity_of(self, index: Tensor) -> Tensor:
        """Return f_id at (row, mirroring) (2, B), (B, D)."""
        return self.data.identity[index[0]].float().to(self.device)

    def pose_of(self, index: Tensor) -> Tensor:
        """Return f_pose at (row, mirroring) (2, B), (B, D)."""
        encoder = self.model.pose_encoder
        if not isinstance(encoder, PoseEncoder):
            return torch.zeros(1, self.model.num_features, device=self.device)
        pose = self.data.pose[index[0]] * (1 - 2 * index[1][:, None] * torch.tensor([1, 0, 1, 0]))
        return encoder.expansion(pose.to(self.device))

    def expression_of(self, index: Tensor) -> Tensor:
        """Return f_exp at (row, mirroring) (2, B), (B, D)."""
        return self.data.expression[index[0]].float().to(self.device)

    def images(self, index: Tensor, size: int = SIZE) -> Tensor:
        """Return real crops at (row, mirroring) (2, B), normalized, (B, 3, size, size)."""
        crops = center_crop(self.data.rows.crops[index[0]], size, MARGIN)
        mirrored = (index[1] == 1)[:, None, None, None]
        return torch.where(mirrored, crops.flip(-1), crops).to(self.device)

    def pair_sums(self, pairs: Pairs) -> Tensor:
        """Return the features that must give B, (B, D)."""
        return self.identity_of(pairs.a) + self.pose_of(pairs.b) + self.expression_of(pairs.b)

    def neutral_sums(self, pairs: Pairs) -> Tensor:
        """Return the features that must give N, (B, D)."""
        return self.identity_of(pairs.a) + self.pose_of(pairs.n)

    def swap_sums(self, pairs: Pairs) -> Tensor:
        """Return the features of A with the expression of C, (B, D)."""
        return self.identity_of(pairs.a) + self.pose_of(pairs.a) + self.expression_of(pairs.c)

    def __call__(self, decoder: RefinedDecoder, pairs: Pairs) -> dict[str, Tensor]:
        """Compute every loss, and their weighted sum as ``loss``."""
        config, count = self.config, len(pairs.has_neutral)
        half, few = pairs.part(-(-count // 2)), pairs.part(-(-count // 4))
        sums = [self.pair_sums(pairs), self.neutral_sums(half), self.swap_sums(few)]
        with autocast(self.device):
            made = decoder.generate(torch.cat(sums)).float().split([len(x) for x in sums])
        known = half.has_neutral.to(self.device)
        terms = {
            "pixels": self.distance(made[0], self.images(pairs.b)),
            "neutral_pixels": self.distance(made[1][known], self.images(half.n)[known]),
            "neutral": self.not_neutral(made[1][~known]),
            "swap": self.swap(made[2], few),
        }
        weights = (config.pixels, config.pixels, config.neutral, config.swap)
        total = torch.stack([w * t for w, t in zip(weights, terms.values(), strict=True)]).sum()
        return {"loss": total, **terms}

    def distance(self, images: Tensor, targets: Tensor) -> Tensor:
        """Compute ``pair_loss``, with feature maps for every second image; 0 for no images."""
        if not len(images):
            return images.sum()
        with torch.no_grad():
            wanted = self.feature_maps(targets[::2])
        maps = (self.feature_maps(images[::2]), wanted)
        return losses.pair_loss(images, targets, maps, self.focus)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Return the maps of the first stages of E_exp's backbone, (B, C, h, w)."""
        backbone = self.model.expression_encoder.backbone
        with autocast(self.device):
            maps: list[Tensor] = backbone.forward_intermediates(  # type: ignore[operator]
                images, indices=[0, 1, 2], stop_early=True, intermediates_only=True
            )
        return maps

    def not_neutral(self, images: Tensor) -> Tensor:
        """Compute eq. (9) with C_exp in place of D; 0 for no images."""
        if not len(images):
            return images.sum()
        return losses.fake_neutral_loss(self.logits(_disturbed(images))[1], NEUTRAL)

    def swap(self, images: Tensor, pairs: Pairs) -> Tensor:
        """Compute ``swap_loss``: f_id of A and f_exp of C."""
        expression, disturbed = self.expression_of(pairs.c), _disturbed(images)
        ours = self.logits(disturbed)
        return losses.swap_loss(
            (self.identity(disturbed), ours[0]),
            (self.identity_of(pairs.a), expression),
            (ours[1], self.model.classify_features(expression)),
        )

    def identity(self, images: Tensor) -> Tensor:
        """Compute f_id of crops, (B, D)."""
        with autocast(self.device):
            features: Tensor = self.model.identity_encoder(images).float()
        removal = self.model.expression_removal
        return features if removal is None else removal(features)

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute f_exp (B, D) and the logits of C_exp (B, K) of crops."""
        with autocast(self.device):
            features = self.model.expression_encoder(images).float()
        return features, self.model.classify_features(features)


def face_weights(size: int) -> Tensor:
    """Return the weights of pixels, higher at eyes, nose and mouth; their mean is 1, (S, S)."""
    points = template_points(TEMPLATE, size).float()
    mouth = points[3:].mean(0, keepdim=True)
    at = torch.stack(torch.meshgrid(*[torch.arange(size)] * 2, indexing="xy"), -1).float()
    distance = (at[:, :, None] - torch.cat([points, mouth])).square().sum(-1) / (size / 9) ** 2
    weights = 1 + 3 * torch.exp(-distance / 2).amax(-1)
    return weights / weights.mean()


def _disturbed(images: Tensor) -> Tensor:
    """Shift crops by up to four pixels and blur half of them: no noise can fool an encoder then."""
    across, down = torch.randint(-4, 5, (2,)).tolist()
    images = images.roll((down, across), (2, 3))
    return torch.cat([images[::2], F.avg_pool2d(images[1::2], 3, 1, 1)])[_interleaved(len(images))]


def _interleaved(count: int) -> Tensor:
    """Return the order that undoes a sorting into even and odd places, (count,)."""
    return torch.cat([torch.arange(0, count, 2), torch.arange(1, count, 2)]).argsort()


def train_decoder(
    model: IPDFER,
    config: DecoderConfig,
    data: DecoderRows,
    val: DecoderRows,
    out: Path,
    seed: int,
    device: torch.device,
) -> IPDFER:
    """Train a decoder for a model whose encoders are trained.

    Args:
        model: its own decoder is replaced.
        data: training images in color; identities with several images give the pairs.
        val: validation images with identities, such as LFW's.

    Returns:
        The model with the trained decoder.
    """
    pairs, val_pairs = (PairLosses(model, config, rows, device) for rows in (data, val))
    torch.manual_seed(seed)
    shape = {"decoder_size": SIZE, "decoder_width": config.width, "refined_decoder": True}
    trained = IPDFER(**{**model.architecture, **shape})
    decoder = trained.decoder
    assert isinstance(decoder, RefinedDecoder)
    order = training_order(data)
    fitted = load_state(out / "linear.pt")
    if fitted is None:
        decoder.fit(*linear_examples(pairs, order, seed, SIZE // 2))
        save_state(out / "linear.pt", **decoder.state_dict())
    else:
        decoder.load_state_dict(fitted)
    decoder.to(device).to(memory_format=torch.channels_last)
    for layer in (decoder.inward, decoder.outward):
        layer.requires_grad_(False)
    weights = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, config.stage.lr, weight_decay=0.0, fused=True)

    def step(index: Tensor, at: Position) -> dict[str, Tensor]:
        terms = pairs(decoder, sample_pairs(data, index, at.generator))
        descend(optimizer, terms["loss"], max_norm=1.0)
        return terms

    result = fit(
        decoder,
        [optimizer],
        step,
        config.stage,
        order,
        out,
        seed,
        validate=lambda network, _: score_decoder(network, val_pairs, seed),
    )
    tensors = {k: v for k, v in model.state_dict().items() if not k.startswith("decoder.")}
    generator = {f"decoder.{k}": v for k, v in result.state.items()}
    trained.load_state_dict({**tensors, **generator})
    return trained


@torch.no_grad()
def linear_examples(
    pairs: PairLosses, order: Tensor, seed: int, size: int
) -> tuple[Tensor, Tensor]:
    """Return sums (M, D) and the crops (M, 3, H, W) that they must give: pairs, neutral images."""
    generator = torch.Generator().manual_seed(seed)
    features, images = [], []
    for index in order[torch.randperm(len(order), generator=generator)].split(FIT_BATCH):
        chosen = sample_pairs(pairs.data, index, generator)
        known = chosen.has_neutral
        features += [pairs.pair_sums(chosen), pairs.neutral_sums(chosen)[known]]
        images += [pairs.images(chosen.b, size), pairs.images(chosen.n, size)[known]]
    return torch.cat(features).cpu(), torch.cat(images).cpu()


def training_order(data: DecoderRows) -> Tensor:
    """Return the rows of an epoch: those of identities with several images come twice."""
    several = [row for rows in data.members.values() if len(rows) > 1 for row in rows]
    return torch.cat([torch.arange(len(data.calm)), torch.tensor(several, dtype=torch.long)])


def decoder_rows(
    model: IPDFER, rows: Mapping[str, Rows], cache: Path, device: torch.device
) -> DecoderRows:
    """Compute the features of color images by the encoders of ``model``, or read them."""
    parts = list(rows.values())
    columns: dict[str, Any] = {
        name: torch.cat([getattr(part, name) for part in parts])
        if isinstance(column, Tensor)
        else [entry for part in parts for entry in getattr(part, name)]
        for name, column in vars(parts[0]).items()
    }
    joined = Rows(**columns)
    model = model.to(device).to(memory_format=torch.channels_last).eval()
    encoders = {"identity": model.embed_identity, "expression": model.embed_expression}
    if isinstance(model.pose_encoder, PoseEncoder):
        encoders["pose"] = model.estimate_pose
    features = {"pose": torch.zeros(len(joined.crops), 4)}
    for name, encode in encoders.items():
        features[name] = cached_features(encode, joined.crops, cache / f"{name}.pt", device)
    with torch.no_grad():
        logits = model.cpu().classify_features(features["expression"])
    calm = ((joined.labels == NEUTRAL) | (joined.labels < 0)) & (
        logits.softmax(1)[:, NEUTRAL] > CALM
    )
    return DecoderRows(joined, calm=calm, members=rows_by_identity(joined), **features)


def cached_features(
    encode: Callable[[Tensor], Tensor], crops: Tensor, file: Path, device: torch.device
) -> Tensor:
    """Compute the features of crops with a margin, or read them from a file, (N, D)."""
    saved = load_state(file)
    if saved is None:
        saved = {"features": embed(encode, crops, device)}
        save_state(file, **saved)
    return saved["features"]


def sample_pairs(data: DecoderRows, index: Tensor, generator: torch.Generator) -> Pairs:
    """Choose B, C and N for the images A of a batch, (B,), and which of them are mirrored."""
    labels = data.rows.labels
    neutral, partner = index.clone(), index.clone()

    def choose(rows: list[int]) -> int:
        return rows[int(torch.randint(len(rows), (), generator=generator))]

    for place, row in enumerate(index.tolist()):
        others = [m for m in data.members.get(data.rows.identities[row], ()) if m != row]
        calm = [m for m in others if data.calm[m]]
        different = [m for m in others if labels[m] != labels[row]]
        neutral[place] = choose(calm or [row])
        partner[place] = choose(different or others or [row])

    def mirrored(chosen: Tensor) -> Tensor:
        return torch.stack([chosen, torch.randint(2, (len(chosen),), generator=generator)])

    return Pairs(
        a=mirrored(index),
        b=mirrored(partner),
        c=mirrored(index.roll(1)),
        n=mirrored(neutral),
        has_neutral=data.calm[neutral],
    )


@torch.no_grad()
def score_decoder(
    network: nn.Module, pair_losses: PairLosses, seed: int, count: int = 96
) -> dict[str, float]:
    """Measure swaps and neutralized faces of validation images by the model's own encoders.

    Returns:
        Shares of swaps that keep the identity and that take the expression, of neutralized faces
        that C_exp calls neutral, and their mean, ``score``; other networks have to confirm them.
    """
    assert isinstance(network, RefinedDecoder)
    generator = torch.Generator().manual_seed(seed)
    data = pair_losses.data
    index = torch.randperm(len(data.calm), generator=generator)[:count]
    correct = {"identity": 0.0, "expression": 0.0, "neutral": 0.0}
    for part in index.split(32):
        pairs = sample_pairs(data, part, generator)
        swaps = network(pair_losses.swap_sums(pairs))
        ours, face, source = (
            pair_losses.identity(swaps),
            pair_losses.identity_of(pairs.a),
            pair_losses.identity_of(pairs.c),
        )
        kept = F.cosine_similarity(ours, face) > F.cosine_similarity(ours, source)
        wanted = pair_losses.model.classify_features(pair_losses.expression_of(pairs.c)).argmax(1)
        posed = pair_losses.identity_of(pairs.a) + pair_losses.pose_of(pairs.a)
        neutralized = pair_losses.logits(network(posed))[1].argmax(1)
        correct["identity"] += float(kept.sum())
        correct["expression"] += float((pair_losses.logits(swaps)[1].argmax(1) == wanted).sum())
        correct["neutral"] += float((neutralized == NEUTRAL).sum())
    result = {f"{name}_share": value / len(index) for name, value in correct.items()}
    return {**result, "score": sum(result.values()) / 3}
