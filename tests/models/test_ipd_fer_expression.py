"""The expression stages: rows, targets, soft labels and calibration."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from ipd_fer_tiny import BACKBONE, BASELINE, COMPACT, CPU, RECLASSIFY, differing, shaken
from packs import write_packs
from torch import nn

from facezoo.landmarks import crop_pose
from facezoo.models.ipd_fer import IPDFER
from facezoo.models.ipd_fer.networks import Encoder
from facezoo.models.ipd_fer.train import data as training_data
from facezoo.models.ipd_fer.train import expression
from facezoo.models.ipd_fer.train.data import (
    MARGIN,
    embed,
    read_rows,
    sample_images_and_poses,
    targets,
)
from facezoo.models.ipd_fer.train.expression import (
    ExpressionTargets,
    ExpressionTraining,
    calibrate,
    fit_temperature,
    narrow,
    reclassify,
    score_expression,
    soft_labels,
)
from facezoo.preprocess.templates import template_points


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_packs(tmp_path_factory.mktemp("packs"))


@pytest.fixture(scope="module")
def rows(data):
    return {pack: read_rows(data, pack, "train") for pack in ("ferplus", "lfw")}


@pytest.fixture(scope="module")
def wild(data):
    return read_rows(data, "faces_wild", "train")


def test_rows_hold_crops_embeddings_labels_poses_and_names(rows, wild):
    ferplus, lfw = rows.values()
    assert ferplus.crops.shape == (6, 1, 128, 128)
    assert lfw.crops.shape == (6, 3, 128, 128)
    assert torch.isfinite(ferplus.teacher).all(1).tolist() == [True, False] + [True] * 4
    assert ferplus.identities == [""] * 6
    assert lfw.identities == ["person0", "person0", "person1", "person1", "person2", "person2"]
    assert lfw.expression.sum(1).tolist() == [1, 1, 0, 1, 1, 0]
    assert wild.labels.tolist() == [-1] * 5
    assert [len(part.poses) for part in (ferplus, lfw, wild)] == [6, 6, 5]


def test_rows_that_are_cached_are_read_again_without_the_pack(data, tmp_path):
    first = read_rows(data, "lfw", "train", tmp_path)
    again = read_rows(tmp_path / "nowhere", "lfw", "train", tmp_path)
    assert torch.equal(first.crops, again.crops)
    assert again.identities == first.identities


def test_landmarks_of_aligned_crops_lie_on_the_template(rows):
    expected = template_points("arcface112", 112).float() + MARGIN
    known = rows["lfw"].landmarks
    torch.testing.assert_close(known, expected.expand_as(known), atol=0.05, rtol=0)
    assert rows["ferplus"].landmarks[1].isnan().all()


def test_poses_follow_the_augmentation(rows):
    index = torch.tensor([[1] * 6, [0] * 6])
    parts = list(rows.values())
    images, poses = sample_images_and_poses(parts, index, 32, torch.Generator().manual_seed(0))
    assert images.shape == (6, 3, 32, 32)
    straight = crop_pose(template_points("arcface112", 112).float()[None])[0]
    assert poses[:, 2].abs().max() > 0.02  # rotations by up to ten degrees
    assert (poses[:, 2] - straight[2]).abs().max() < 0.25
    assert (poses[:, :2] - straight[:2]).abs().max() < 0.3


def test_hard_targets_are_the_majority_and_soft_ones_the_votes(rows):
    ferplus = rows["ferplus"]
    assert targets(ferplus, soft=True) is ferplus.expression
    hard = targets(ferplus, soft=False)
    assert (hard.sum(1) == 1).tolist() == (ferplus.labels >= 0).tolist()
    known = ferplus.labels >= 0
    assert hard[known].argmax(1).tolist() == ferplus.labels[known].tolist()


def training_of(rows, **changes):
    encoder = Encoder(BACKBONE, 16).state_dict()
    return encoder, ExpressionTraining(replace(BASELINE, **changes), rows, rows, encoder, CPU)


def test_an_expression_stage_starts_from_an_encoder_and_leaves_it_unchanged(rows):
    encoder, training = training_of(rows)
    before = {k: v.clone() for k, v in encoder.items()}
    assert differing(training.parts["expression_encoder"].state_dict(), before) == []
    shaken(training.parts).train()
    training.loss(training.labels.index, 32, torch.Generator().manual_seed(0)).backward()
    felt = {n for n, p in training.parts.named_parameters() if p.grad is not None}
    assert felt == {n for n, _ in training.parts.named_parameters()}
    assert differing(encoder, before) == []


def test_an_expression_stage_uses_only_labeled_faces(rows):
    _, training = training_of(rows)
    expected = [(0, i) for i in range(6)] + [(1, i) for i in (0, 1, 3, 4)]
    assert sorted(map(tuple, training.labels.index.T.tolist())) == expected


def test_without_trust_in_its_labels_lfw_is_not_used(rows):
    _, training = training_of(rows, lfw_trust=0.0)
    assert set(training.labels.index[0].tolist()) == {0}


def test_soft_labels_are_trusted_by_their_confidence(rows, wild):
    sure = replace(wild, expression=F.one_hot(torch.arange(5), 8).float() * 0.8 + 0.025)
    labels = ExpressionTargets(COMPACT, {**rows, "faces_wild": sure})
    torch.testing.assert_close(labels.trust[2], torch.full((5,), 0.5 * 0.825))
    assert torch.equal(labels.targets[2], sure.expression)
    assert len(labels.index[0]) == 15


def test_the_logit_adjustment_is_the_weighted_frequency_of_the_classes(rows):
    labels = ExpressionTargets(COMPACT, rows)
    weight = [1.0] * 6 + [0.3] * 4
    shares = torch.cat([rows["ferplus"].expression, rows["lfw"].expression[[0, 1, 3, 4]]])
    frequency = sum(w * share for w, share in zip(weight, shares, strict=True)) / sum(weight)
    torch.testing.assert_close(labels.prior, 0.5 * frequency.clamp(min=1e-6).log())
    assert ExpressionTargets(BASELINE, rows).prior is None


class Brightness(nn.Module):
    """Return the mean brightness of the left and right half of an image as two features."""

    def forward(self, images):
        left, right = images.chunk(2, -1)
        return torch.stack([left.mean((1, 2, 3)), right.mean((1, 2, 3))], 1)


def looking(scale=1.0):
    classifier = nn.Linear(2, 8)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    with torch.no_grad():
        classifier.weight[0, 0] = classifier.weight[1, 1] = scale
    return nn.ModuleDict({"expression_encoder": Brightness(), "expression_classifier": classifier})


def test_soft_labels_average_models_and_mirror_images(wild):
    networks = [looking(2.0), looking(-1.0)]
    labels = soft_labels(networks, wild, CPU).expression
    features = embed(Brightness(), wild.crops, CPU)
    expected = torch.zeros(5, 8)
    for network in networks:
        for columns in ([0, 1], [1, 0]):
            logits = network["expression_classifier"](features[:, columns])
            expected += logits.softmax(1).detach() / 4
    torch.testing.assert_close(labels, expected, atol=1e-3, rtol=0)


def test_the_temperature_undoes_a_scaling_of_calibrated_logits():
    logits = torch.randn(4000, 8) * 2
    labels = torch.multinomial(logits.softmax(1), 1)[:, 0]
    assert fit_temperature(logits, labels) == pytest.approx(1, abs=0.08)
    assert fit_temperature(logits * 3, labels) == pytest.approx(3, abs=0.25)


def test_calibration_changes_the_probabilities_and_not_the_classes(rows, monkeypatch):
    network = looking(50.0)
    part = rows["ferplus"]
    before = expression.expression_logits(network, part.crops, CPU)
    temperature = calibrate(network, part, CPU)
    after = expression.expression_logits(network, part.crops, CPU)
    torch.testing.assert_close(after * temperature, before, atol=1e-4, rtol=1e-4)
    assert temperature != pytest.approx(1, abs=0.01)


def test_the_score_is_the_mean_of_accuracy_and_balanced_accuracy(rows, monkeypatch):
    part = rows["ferplus"]
    guesses = part.labels.clone()
    guesses[0] = 1 - guesses[0].clamp(max=1)
    known = part.labels >= 0
    hot = F.one_hot(guesses[known], 8).float()
    monkeypatch.setattr(expression, "expression_logits", lambda *_: hot)
    result = score_expression(nn.Module(), {"ferplus": part}, CPU)
    right = (guesses[known] == part.labels[known]).double()
    assert result["ferplus_accuracy"] == pytest.approx(float(right.mean()))
    mean = (result["ferplus_accuracy"] + result["ferplus_balanced"]) / 2
    assert result["ferplus_score"] == pytest.approx(mean)


def test_features_do_not_depend_on_the_batch_they_are_computed_in():
    crops = torch.randint(0, 256, (5, 3, 128, 128), dtype=torch.uint8)
    encoder = Encoder(BACKBONE, 16).eval()
    together = embed(encoder, crops, CPU)
    assert together.shape == (5, 16)
    assert together.dtype == torch.float32
    torch.testing.assert_close(embed(encoder, crops, CPU, batch=2), together, atol=2e-2, rtol=2e-2)


def test_reclassify_lowers_the_loss_and_changes_nothing_but_the_classifier(rows):
    torch.manual_seed(0)
    model = IPDFER(BACKBONE, 16, 8, None, None, expression_rank=4).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    labels = ExpressionTargets(RECLASSIFY, rows)
    parts = [embed(model.embed_expression, part.crops, CPU) for part in rows.values()]
    features = torch.stack([parts[pack][row] for pack, row in labels.index.T.tolist()])

    def loss():
        with torch.no_grad():
            return float(labels.loss(model.expression_classifier(features), labels.index))

    first = loss()
    uncalibrated = replace(RECLASSIFY, calibrated=False)
    reclassify(model, uncalibrated, rows, rows, CPU)
    assert loss() < first - 0.1
    assert set(differing(before, model.state_dict())) == {
        "expression_classifier.weight",
        "expression_classifier.bias",
    }


def test_narrow_keeps_the_predictions_and_what_the_classifier_reads_of_the_features(
    rows, monkeypatch
):
    monkeypatch.setattr(training_data, "autocast", lambda _: nullcontext())
    torch.manual_seed(0)
    model = IPDFER(BACKBONE, 24, 4, None, None, expression_rank=6).eval()
    norm = model.expression_encoder.norm
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.01, 0.05)
    norm.bias.data.uniform_(-1, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    part = rows["ferplus"]

    def encode(network):
        return embed(network.embed_expression, part.crops, CPU)

    features = encode(model)
    result = narrow(model, part, CPU)
    changed = encode(result)
    with torch.no_grad():
        expected = model.expression_classifier(features).softmax(1)
        torch.testing.assert_close(result.expression_classifier(changed).softmax(1), expected)
    assert result.architecture["expression_rank"] == 3
    assert result.expression_basis()[1].shape == (24, 3)
    # What is removed is uncorrelated with what is left, so no linear map can predict it.
    left, removed = changed - changed.mean(0), features - changed
    assert removed.norm() > 0.1 * left.norm()
    assert (left.T @ removed).norm() < 1e-4 * left.norm() * removed.norm()
    after = result.state_dict()
    same = [
        k
        for k in before
        if not k.startswith(("expression_encoder.projection", "expression_encoder.norm.bias"))
    ]
    assert all(torch.equal(after[k], before[k]) for k in same)
    assert narrow(result, part, CPU) is result
    with pytest.raises(ValueError, match=r"needs features of 3 dimensions or more, .* of None"):
        narrow(IPDFER(BACKBONE, 24, 4, None, None), part, CPU)
