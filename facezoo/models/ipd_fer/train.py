"""Training of IPD-FER's encoders: first identity, then expression starting from it.

Source: Jiang & Deng, Sec. 3 and 4.2, as far as the encoders go: E_exp starts from E_id, and C_exp
is trained with eq. (5). The identity encoder, which the paper takes ready-made, learns here from
the embeddings of a teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from facezoo.card import Licenses, Preprocessing
from facezoo.data.images import (
    aligned_crops,
    check_packs,
    label_distributions,
    majority_labels,
    read_pack,
    teacher_embeddings,
)
from facezoo.evaluate.verification import Pairs, read_pairs, verification_accuracy
from facezoo.models.ipd_fer.augment import augment, centre_crop
from facezoo.models.ipd_fer.losses import (
    expression_loss,
    margin_loss,
    similarity_matching_loss,
    teacher_loss,
)
from facezoo.models.ipd_fer.model import IPDFER
from facezoo.models.ipd_fer.networks import Encoder
from facezoo.results import EXPRESSIONS
from facezoo.training import (
    WeightAverage,
    autocast,
    batches,
    begin_run,
    decayed_and_not,
    generator,
    load_state,
    log_row,
    save_state,
    set_cosine_rate,
    write_checkpoint,
)

SIZE, MARGIN = 112, 8
TEMPLATE = "arcface112"
CITATION = """@article{jiang2022disentangling,
  title = {Disentangling Identity and Pose for Facial Expression Recognition},
  author = {Jiang, Jing and Deng, Weihong},
  journal = {IEEE Transactions on Affective Computing},
  year = {2022}
}"""


@dataclass(frozen=True)
class StageConfig:
    """How one encoder is trained."""

    epochs: int
    sizes: tuple[tuple[int, int], ...]
    """Crop side from an epoch on: ((0, 64), (4, 112)) is four epochs at 64 px, then 112 px."""
    batch_size: int = 64
    rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.05
    average: float = 0.998
    """Decay of the moving average of the weights, which is what is kept."""


@dataclass(frozen=True)
class TrainConfig:
    """The recipe of a checkpoint."""

    backbone: str = "resnet18"
    feature_dim: int = 512
    identity: StageConfig = field(
        default_factory=lambda: StageConfig(9, ((0, 64), (4, 80), (7, 112)))
    )
    polish: StageConfig = field(
        default_factory=lambda: StageConfig(8, ((0, 112),), rate=4e-4, warmup=0.1, average=0.995)
    )
    """A second round for the identity encoder, on LFW alone: real photographs in colour."""
    expression: StageConfig = field(
        default_factory=lambda: StageConfig(10, ((0, 64), (5, 80), (8, 112)), rate=7e-4)
    )
    settle: StageConfig = field(
        default_factory=lambda: StageConfig(3, ((0, 112),), rate=3e-4, warmup=0.1, average=0.995)
    )
    """A second round for the expression encoder, which two epochs at full size leave unsettled."""
    matching: float = 5.0
    """Weight of the similarity-matching loss."""
    margin: float = 0.02
    """Weight of the margin loss over named persons."""
    lfw_repeats: int = 2
    """How often an epoch of identity training shows each LFW photograph."""
    lfw_trust: float = 0.3
    """Weight of LFW's machine-made expression labels beside FER+ votes."""
    precision: str = "int8"
    """On disk."""


def run(data: Path, out: Path, *, seed: int, device: torch.device) -> Path:
    """Train by the default recipe and write weights and card; returns the card's path."""
    config = TrainConfig()
    check_packs(data, "ferplus.parquet", "lfw.parquet", "lfw_pairs_val.csv")
    record = begin_run(out, seed=seed, recipe=asdict(config))
    tensors = train(config, data, out, seed=seed, device=device)
    model = IPDFER(config.backbone, config.feature_dim, len(EXPRESSIONS))
    model.load_state_dict(tensors)
    return write_checkpoint(
        model,
        out,
        record,
        model="ipd-fer",
        tag="ferplus-lfw",
        architecture=model.architecture,
        preprocessing=Preprocessing(TEMPLATE, SIZE),
        labels=EXPRESSIONS,
        precision=config.precision,
        licenses=Licenses(
            code="Apache-2.0",
            weights="research-only",
            data="research-only",
        ),
        data=(
            "FER+ train: 26,804 images of FER2013 with the annotators' votes",
            "LFW (deep-funneled) train: 8,408 photographs, expression labels made by machine",
            "teacher for identity: dlib_face_recognition_resnet_model_v1 on both",
        ),
        intended_use=(
            "Features for research on facial expression: describing what a face shows, not what a "
            "person feels. Not for identifying people, nor for decisions about them."
        ),
        citation=CITATION,
    )


@dataclass(frozen=True)
class Rows:
    """Everything a training step can need of one pack, in memory."""

    crops: Tensor
    """Crops with a margin, uint8, (N, 1 or 3, H, H)."""
    teacher: Tensor
    """Teacher embeddings, NaN where unknown, (N, 128)."""
    expression: Tensor
    """Label distributions, zero where unknown, (N, 8)."""
    labels: Tensor
    """Majority label or -1, (N,)."""
    persons: list[str]
    """Names, empty where unknown, N."""
    files: list[str]
    """File names, N."""


def read_rows(data: Path, pack: str, split: str) -> Rows:
    """Align and load one split of a pack of the folder ``data``."""
    table = read_pack(data / f"{pack}.parquet", split)
    persons = table["identity"].to_pylist() if "identity" in table.column_names else []
    return Rows(
        crops=aligned_crops(table, TEMPLATE, SIZE, MARGIN, grey=pack == "ferplus"),
        teacher=teacher_embeddings(table),
        expression=label_distributions(table),
        labels=majority_labels(table),
        persons=persons or [""] * len(table),
        files=table["file"].to_pylist(),
    )


def train(
    config: TrainConfig, data: Path, out: Path, *, seed: int, device: torch.device
) -> dict[str, Tensor]:
    """Train both encoders and the classifier.

    Interrupted, the same call goes on where the last saved state stands and ends at the same
    weights.

    Args:
        config: the recipe.
        data: folder with ``lfw.parquet``, ``ferplus.parquet`` and ``lfw_pairs_val.csv``.
        out: folder for the run's state, log and result.
        seed: of initial weights, order and augmentation.
        device: where to train.

    Returns:
        Tensors of the trained model by name, float32.
    """
    train_rows = [read_rows(data, pack, "train") for pack in ("ferplus", "lfw")]
    val_rows = [read_rows(data, pack, "val") for pack in ("ferplus", "lfw")]
    pairs = read_pairs(data / "lfw_pairs_val.csv")
    torch.manual_seed(seed)
    identity = train_identity(config, train_rows, val_rows[1], pairs, out, seed, device)
    expression = train_expression(config, identity, train_rows, val_rows, out, seed + 1, device)
    named = {f"identity_encoder.{k}": v for k, v in identity.items()}
    return named | expression


def train_identity(
    config: TrainConfig,
    rows: Sequence[Rows],
    val: Rows,
    pairs: Pairs,
    out: Path,
    seed: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Train E_id on the teacher's embeddings and on names; tensors of the encoder by name."""
    persons, centre = _number_persons(rows), _teacher_centre(rows)
    encoder = Encoder(config.backbone, config.feature_dim)
    head = nn.Linear(config.feature_dim, centre.shape[-1])
    centres = nn.Linear(config.feature_dim, int(max(p.max() for p in persons)) + 1, bias=False)
    parts = nn.ModuleDict({"encoder": encoder, "head": head, "centres": centres}).to(device)
    # An epoch shows every row with an embedding once, and the better photographs more often.
    usable = [torch.isfinite(r.teacher).all(1).nonzero()[:, 0] for r in rows]
    order = [(0, usable[0])] + [(1, usable[1])] * config.lfw_repeats
    index = torch.cat([torch.stack([torch.full_like(i, pack), i]) for pack, i in order], 1)

    def step(chosen: Tensor, size: int, draw: torch.Generator) -> Tensor:
        picked = _pick(rows, chosen, size, draw)
        pack, row = chosen
        teacher = torch.stack([rows[p].teacher[r] for p, r in zip(pack, row, strict=True)])
        person = torch.stack([persons[p][r] for p, r in zip(pack, row, strict=True)])
        teacher = (teacher - centre).to(device)
        with autocast(device):
            features = encoder(picked.to(device))
        return (
            teacher_loss(head(features), teacher)
            + config.matching * similarity_matching_loss(features, teacher)
            + config.margin * margin_loss(features, centres.weight, person.to(device))
        )

    def validate(network: nn.Module, size: int) -> dict[str, float]:
        features = embed(network.get_submodule("encoder"), val.crops, device, size)
        mean, spread = verification_accuracy(features, val.files, pairs)
        return {"verification": mean, "verification_std": spread}

    parts.load_state_dict(
        fit(parts, config.identity, index, step, validate, None, out / "identity", seed)
    )
    photographs = torch.stack([torch.ones_like(usable[1]), usable[1]])
    state = fit(parts, config.polish, photographs, step, validate, None, out / "polish", seed)
    return {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}


def train_expression(
    config: TrainConfig,
    identity: dict[str, Tensor],
    rows: Sequence[Rows],
    val: Sequence[Rows],
    out: Path,
    seed: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Train E_exp, started from E_id, and C_exp by eq. (5); their tensors by name.

    The kept epoch is the one of highest accuracy on the FER+ validation split.
    """
    encoder = Encoder(config.backbone, config.feature_dim)
    encoder.load_state_dict(identity)
    parts = nn.ModuleDict(
        {
            "expression_encoder": encoder,
            "expression_classifier": nn.Linear(config.feature_dim, len(EXPRESSIONS)),
        }
    ).to(device)
    usable = [(r.expression.sum(1) > 0).nonzero()[:, 0] for r in rows]
    index = torch.cat([torch.stack([torch.full_like(i, p), i]) for p, i in enumerate(usable)], 1)
    trust = torch.tensor([1.0, config.lfw_trust])

    def step(chosen: Tensor, size: int, draw: torch.Generator) -> Tensor:
        picked = _pick(rows, chosen, size, draw)
        pack, row = chosen
        targets = torch.stack([rows[p].expression[r] for p, r in zip(pack, row, strict=True)])
        with autocast(device):
            features = encoder(picked.to(device))
        logits = parts["expression_classifier"](features)
        return expression_loss(logits, targets.to(device), trust[pack].to(device))

    def validate(network: nn.Module, size: int) -> dict[str, float]:
        result = {}
        for name, part in zip(("ferplus", "lfw"), val, strict=True):
            encoder = network.get_submodule("expression_encoder")
            features = embed(encoder, part.crops, device, size)
            with torch.no_grad():
                logits = network.get_submodule("expression_classifier")(features.to(device)).cpu()
            known = part.labels >= 0
            right = logits.argmax(1)[known] == part.labels[known]
            result[f"{name}_accuracy"] = float(right.double().mean())
        return result

    select = "ferplus_accuracy"
    parts.load_state_dict(
        fit(parts, config.expression, index, step, validate, select, out / "expression", seed)
    )
    return fit(parts, config.settle, index, step, validate, select, out / "settle", seed)


def fit(
    parts: nn.Module,
    config: StageConfig,
    index: Tensor,
    step: Callable[[Tensor, int, torch.Generator], Tensor],
    validate: Callable[[nn.Module, int], dict[str, float]],
    select: str | None,
    out: Path,
    seed: int,
    save_every: int = 200,
) -> dict[str, Tensor]:
    """Run a stage to its end, from its saved state if there is one.

    Args:
        parts: what is trained.
        config: the stage's recipe.
        index: pack and row of each training example, (2, N).
        step: loss of a batch, given (pack, row) (2, B), crop side and generator.
        validate: metrics of the averaged weights after an epoch, at that epoch's crop side.
        select: the metric whose highest value picks one of the epochs at the last crop side; None
            keeps the last epoch.
        out: folder for ``state.pt`` and ``log.csv``.
        seed: of order and augmentation.
        save_every: steps between saved states.

    Returns:
        The kept averaged state of ``parts`` on the CPU.
    """
    if config.sizes[-1][0] >= config.epochs:
        raise ValueError(
            f"the last crop side of {config.sizes} never comes in {config.epochs} epochs"
        )
    parts.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        list(decayed_and_not(parts)), lr=config.rate, weight_decay=config.weight_decay
    )
    average = WeightAverage(parts, config.average)
    position, best_score, kept = [0, 0], float("-inf"), dict[str, Tensor]()
    if saved := load_state(out / "state.pt"):
        parts.load_state_dict(saved["parts"])
        optimizer.load_state_dict(saved["optimizer"])
        average.load_state_dict(saved["average"])
        position = saved["position"]
        best_score, kept = saved["best"]["score"], saved["best"]["state"]

    def save(epoch: int, batch: int) -> None:
        save_state(
            out / "state.pt",
            parts=parts.state_dict(),
            optimizer=optimizer.state_dict(),
            average=average.state_dict(),
            position=[epoch, batch],
            best={"score": best_score, "state": kept},
        )

    steps = index.shape[1] // config.batch_size
    averaged = deepcopy(parts)
    for epoch in range(position[0], config.epochs):
        size = max((start, side) for start, side in config.sizes if start <= epoch)[1]
        order = batches(index.shape[1], config.batch_size, seed, epoch)
        begin = position[1] if epoch == position[0] else 0
        parts.train()
        bar = tqdm(range(begin, steps), initial=begin, total=steps, mininterval=10)
        bar.set_description(f"{out.name} epoch {epoch + 1}/{config.epochs} at {size} px")
        total = 0.0
        for number in bar:
            progress = (epoch * steps + number) / (config.epochs * steps)
            set_cosine_rate(optimizer, config.rate, progress, config.warmup)
            loss = step(index[:, order[number]], size, generator(seed, epoch, number))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update(parts)
            total += loss.item()
            if (number + 1) % save_every == 0:
                save(epoch, number + 1)
                bar.set_postfix(loss=f"{total / (number + 1 - begin):.3f}")
        averaged.load_state_dict(average.state)
        metrics = validate(averaged.eval(), size)
        loss_mean = total / max(1, steps - begin)
        log_row(out / "log.csv", {"epoch": epoch + 1, "size": size, "loss": loss_mean, **metrics})
        tqdm.write(f"{out.name} epoch {epoch + 1}: loss {loss_mean:.4f}, {metrics}")
        score = metrics[select] if select else float(epoch)
        if score > best_score and size == config.sizes[-1][1]:
            best_score, kept = score, {k: v.clone() for k, v in average.state.items()}
        save(epoch + 1, 0)
    return {key: value.cpu() for key, value in kept.items()}


@torch.no_grad()
def embed(
    encoder: nn.Module, crops: Tensor, device: torch.device, size: int = SIZE, batch: int = 128
) -> Tensor:
    """Features of crops with a margin, nothing random, float32 on the CPU, (N, D)."""
    features = []
    for part in crops.split(batch):
        images = centre_crop(part, size, MARGIN).to(device)
        with autocast(device):
            features.append(encoder(images.contiguous(memory_format=torch.channels_last)))
    return torch.cat(features).float().cpu()


def _pick(rows: Sequence[Rows], chosen: Tensor, size: int, draw: torch.Generator) -> Tensor:
    """Augmented images of a batch of (pack, row), in the batch's order."""
    pack, row = chosen
    images = torch.empty(len(pack), 3, size, size)
    for number, source in enumerate(rows):
        members = (pack == number).nonzero()[:, 0]
        if len(members):
            zoom = SIZE / (SIZE + 2 * MARGIN)
            images[members] = augment(source.crops[row[members]], size, draw, zoom=zoom)
    return images.contiguous(memory_format=torch.channels_last)


def _number_persons(rows: Sequence[Rows]) -> list[Tensor]:
    """A number for every named person with two photographs or more, -1 for the rest."""
    counts: dict[str, int] = {}
    for name in (name for part in rows for name in part.persons if name):
        counts[name] = counts.get(name, 0) + 1
    numbers = {n: i for i, n in enumerate(sorted(n for n, c in counts.items() if c > 1))}
    return [torch.tensor([numbers.get(name, -1) for name in part.persons]) for part in rows]


def _teacher_centre(rows: Sequence[Rows]) -> Tensor:
    """Mean teacher embedding; without it every cosine is close to one."""
    embeddings = torch.cat([part.teacher for part in rows])
    return embeddings[torch.isfinite(embeddings).all(1)].mean(0)
