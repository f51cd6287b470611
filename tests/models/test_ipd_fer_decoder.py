"""Training of the decoder on pairs: pairs, losses, separate features and what stays as it is."""

from dataclasses import replace

import pytest
import torch
from ipd_fer_tiny import BACKBONE, COMPACT, CPU, REDECODE, REFINE, STAGE, differing
from packs import write_packs

from facezoo.models.ipd_fer import IPDFER
from facezoo.models.ipd_fer.networks import RefinedDecoder
from facezoo.models.ipd_fer.train.decoder import (
    PairLosses,
    decoder_rows,
    sample_pairs,
    train_decoder,
)
from facezoo.models.ipd_fer.train.redecode import redecode, separate
from facezoo.models.ipd_fer.train.sources import from_packs


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return from_packs(write_packs(tmp_path_factory.mktemp("packs")))


def tiny(**options):
    torch.manual_seed(0)
    defaults = {"pose_bottleneck": True, "removed_directions": 2}
    return IPDFER(BACKBONE, 16, 8, BACKBONE, 14, 8, 4, **{**defaults, **options}).eval()


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture
def data(model, sources, tmp_path):
    return decoder_rows(model, sources.heads, tmp_path, CPU)


def seeded():
    return torch.Generator().manual_seed(0)


def test_partners_are_of_the_same_identity_and_sources_are_the_next_face(data):
    index = torch.tensor([0, 2, 7, 13])
    pairs = sample_pairs(data, index, seeded())
    names = [data.rows.identities[row] for row in index.tolist()]
    assert [data.rows.identities[row] for row in pairs.b[0].tolist()] == names
    assert pairs.b[0, 0] == 1
    assert pairs.b[0, 2] == 7  # a stranger has one image
    assert pairs.c[0].tolist() == [13, 0, 2, 7]
    assert data.calm[pairs.n[0]].tolist() == pairs.has_neutral.tolist()


def test_crops_of_the_web_without_a_whole_head_are_left_out(sources):
    assert len(sources.heads["faces_wild"].files) == len(sources.faces["faces_wild"].files) - 1


def test_a_mirrored_image_has_the_opposite_yaw_and_roll(model, data):
    losses = PairLosses(model, COMPACT.decoder, data, CPU)
    index = torch.tensor([[0, 0], [0, 1]])
    images = losses.images(index)
    torch.testing.assert_close(images[1], images[0].flip(-1))
    turned = data.pose[0] * torch.tensor([-1, 1, -1, 1])
    expected = model.pose_encoder.expansion(torch.stack([data.pose[0], turned]))
    torch.testing.assert_close(losses.pose_of(index), expected)


def test_losses_reach_the_decoder_and_no_encoder(model, data):
    losses = PairLosses(model, COMPACT.decoder, data, CPU)
    decoder = RefinedDecoder(16, width=8, rank=4)
    torch.nn.init.normal_(decoder.to_rgb.weight, std=0.1)
    terms = losses(decoder, sample_pairs(data, torch.arange(8), seeded()))
    assert all(torch.isfinite(term) for term in terms.values())
    parts = (1.0, 1.0, 0.1, 0.3)
    names = ("pixels", "neutral_pixels", "neutral", "swap")
    total = sum(w * terms[name] for w, name in zip(parts, names, strict=True))
    torch.testing.assert_close(terms["loss"], total)
    terms["loss"].backward()
    assert all(p.grad is not None for p in decoder.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_the_linear_map_restores_images_that_are_linear_in_the_features():
    torch.manual_seed(0)
    features = torch.randn(60, 16)
    images = (features[:, :3] @ torch.randn(3, 3 * 56 * 56) * 0.1).view(60, 3, 56, 56)
    decoder = RefinedDecoder(16, width=8, rank=3)
    decoder.fit(features, images, ridge=1e-6)
    enlarged = torch.nn.functional.interpolate(images, scale_factor=2.0, mode="bilinear")
    torch.testing.assert_close(decoder.generate(features), enlarged, atol=1e-3, rtol=1e-3)


def test_separate_features_share_no_direction():
    model = tiny(removed_directions=2)
    crops = torch.rand(12, 3, 112, 112, generator=seeded()) * 2 - 1
    with torch.no_grad():
        identity, pose = model.embed_identity(crops), model.estimate_pose(crops)
        expression = model.embed_expression(crops)
        separate(model, identity, pose)
        parts = [model.embed_identity(crops), model.embed_pose(crops), expression]
    ranks = zip(parts, (5, 4, 4), strict=True)
    bases = [torch.linalg.svd(part - part.mean(0))[2][:rank] for part, rank in ranks]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (bases[first] @ bases[second].T).abs().max() < 1e-3
    assert model.architecture["removed_directions"] == 2 + 4 + 4
    torch.testing.assert_close(parts[1].std(0).norm(), torch.tensor(8.0), rtol=1e-3, atol=0)


def test_training_replaces_the_decoder_and_keeps_the_encoders(model, data, tmp_path):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trained = train_decoder(model, COMPACT.decoder, data, data, tmp_path, 0, CPU)
    assert trained.architecture["refined_decoder"]
    encoders = {k: v for k, v in before.items() if not k.startswith("decoder.")}
    assert differing(encoders, {k: trained.state_dict()[k] for k in encoders}) == []
    log = (tmp_path / "log.csv").read_text().splitlines()
    assert len(log) == 1 + STAGE.epochs
    assert log[0].endswith("score")
    crops = torch.rand(2, 3, 112, 112) * 2 - 1
    assert trained.eval().reconstruct_crops(crops).shape == (2, 3, 112, 112)
    again = train_decoder(model, COMPACT.decoder, data, data, tmp_path, 0, CPU)
    assert differing(trained.state_dict(), again.state_dict()) == []


def test_redecode_keeps_what_tells_expressions(sources, tmp_path):
    start = tiny(pose_bottleneck=False, removed_directions=0)
    before = {k: v.clone() for k, v in start.state_dict().items()}
    main = replace(STAGE, sizes=((0, 112),))
    chosen = replace(REDECODE, main=main)
    result = redecode(chosen, sources, start, tmp_path, 0, CPU).eval()
    kept = ("identity_encoder.", "expression_")
    after = {k: v for k, v in result.state_dict().items() if k.startswith(kept)}
    after = {k: v for k, v in after.items() if not k.startswith("expression_removal")}
    assert differing(after, {k: before[k] for k in after}) == []
    assert {"predict_pose", "neutralize"} <= set(result.capabilities())


def test_refine_trains_expression_further_and_resumes_to_the_same_weights(sources, tmp_path):
    before = tiny().state_dict()
    result = redecode(REFINE, sources, tiny(), tmp_path, 0, CPU).eval()
    after = result.state_dict()
    identity = [k for k in before if k.startswith("identity_encoder.")]
    assert identity
    assert all(torch.equal(after[k], before[k]) for k in identity)
    for part in ("expression_encoder", "expression_classifier"):
        weights = [k for k in before if k.startswith(part) and before[k].is_floating_point()]
        assert weights
        moved = torch.cat([(after[k] - before[k]).flatten() for k in weights])
        start = torch.cat([before[k].flatten() for k in weights])
        assert 0 < moved.norm() < start.norm(), part  # trained further, not from random weights
    labels = torch.load(tmp_path / "soft-labels.pt", weights_only=True)["expression"]
    assert len(labels) == len(sources.faces["faces_wild"].crops)
    torch.testing.assert_close(labels.sum(1), torch.ones(len(labels)))
    again = redecode(REFINE, sources, tiny(), tmp_path, 0, CPU)
    assert differing(after, again.state_dict()) == []


def test_a_side_that_the_decoder_cannot_halve_is_an_error():
    with pytest.raises(ValueError, match="size must be a multiple of 16 pixels, got 56"):
        RefinedDecoder(8, 56)
