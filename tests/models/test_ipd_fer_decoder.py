"""Training of the decoder on pairs: pairs, losses, sizes and what stays as it is."""

import pytest
import torch
from ipd_fer_tiny import BACKBONE, COMPACT, CPU, STAGE, differing
from packs import write_packs

from facezoo.models.ipd_fer import IPDFER
from facezoo.models.ipd_fer.networks import Decoder
from facezoo.models.ipd_fer.train.algorithm import NEUTRAL
from facezoo.models.ipd_fer.train.decoder import (
    PairLosses,
    decoder_rows,
    sample_pairs,
    score_decoder,
    train_decoder,
)
from facezoo.models.ipd_fer.train.sources import from_packs


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return from_packs(write_packs(tmp_path_factory.mktemp("packs")))


@pytest.fixture(scope="module")
def color(sources):
    return {"lfw": sources.train["lfw"], **sources.faces}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return IPDFER(
        BACKBONE, 16, 8, BACKBONE, 14, 8, 4, pose_bottleneck=True, removed_directions=2
    ).eval()


def seeded():
    return torch.Generator().manual_seed(0)


def test_partners_are_of_the_same_identity_and_sources_are_the_next_face(model, color, tmp_path):
    data = decoder_rows(model, color, tmp_path / "features.pt", CPU)
    index = torch.tensor([0, 2, 7, 13])  # person0, person1, a stranger, london_000
    pairs = sample_pairs(data.rows, index, seeded())
    names = [data.rows.identities[row] for row in index.tolist()]
    assert [data.rows.identities[row] for row in pairs.b[0].tolist()] == names
    assert pairs.b[0, 0] == 1
    assert pairs.b[0, 2] == 7  # a stranger has one image
    assert pairs.c[0].tolist() == [13, 0, 2, 7]
    assert set(pairs.a[1].tolist()) <= {0, 1}
    labels = data.rows.labels[pairs.n[0]]
    assert (labels == NEUTRAL).tolist() == pairs.has_neutral.tolist()
    assert pairs.has_neutral[3]
    assert not pairs.has_neutral[2]


def test_features_are_those_of_the_crops_and_of_their_mirror_images(model, color, tmp_path):
    data = decoder_rows(model, color, tmp_path / "features.pt", CPU)
    losses = PairLosses(model, COMPACT.decoder, data, CPU)
    index = torch.tensor([[0, 0, 5], [0, 1, 1]])
    images = losses.images(index, 112)
    torch.testing.assert_close(images[1], images[0].flip(-1))
    for name, encode in (("identity", model.embed_identity), ("pose", model.embed_pose)):
        found = losses.features(getattr(data, name), index)
        torch.testing.assert_close(found, encode(images), atol=2e-2, rtol=2e-2)
    again = decoder_rows(None, color, tmp_path / "features.pt", CPU)
    assert torch.equal(again.identity, data.identity)


def test_losses_reach_the_decoder_and_no_encoder(model, color, tmp_path):
    data = decoder_rows(model, color, tmp_path / "features.pt", CPU)
    losses = PairLosses(model, COMPACT.decoder, data, CPU)
    decoder = Decoder(16, 28, 16)
    terms = losses(decoder, sample_pairs(data.rows, torch.arange(8), seeded()), 28)
    assert all(torch.isfinite(term) for term in terms.values())
    parts = (1.0, 1.0, 0.1, 0.5)
    names = ("pixels", "neutral_pixels", "neutral", "swap")
    total = sum(w * terms[name] for w, name in zip(parts, names, strict=True))
    torch.testing.assert_close(terms["loss"], total)
    terms["loss"].backward()
    assert all(p.grad is not None for p in decoder.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_a_batch_without_neutral_images_has_no_loss_for_them(model, color, tmp_path):
    data = decoder_rows(model, color, tmp_path / "features.pt", CPU)
    losses = PairLosses(model, COMPACT.decoder, data, CPU)
    pairs = sample_pairs(data.rows, torch.tensor([6, 7, 8]), seeded())
    assert not pairs.has_neutral.any()
    terms = losses(Decoder(16, 14, 16), pairs, 14)
    assert terms["neutral_pixels"] == 0
    assert terms["neutral"] > 0


def test_a_larger_decoder_starts_from_the_stages_of_the_smaller_one():
    smaller, larger = Decoder(16, 14, 16), Decoder(16, 28, 16)
    fresh = larger.stages[-1].state_dict()["0.weight"].clone()
    larger.start_from(smaller)
    for old, new in zip(smaller.stages, larger.stages, strict=False):
        assert differing(old.state_dict(), new.state_dict()) == []
    assert torch.equal(larger.stages[-1].state_dict()["0.weight"], fresh)


def test_training_replaces_the_decoder_and_keeps_the_encoders(model, color, sources, tmp_path):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    val = sources.val["lfw"]
    trained = train_decoder(model, COMPACT.decoder, color, val, tmp_path, 0, CPU)
    assert trained.architecture["decoder_size"] == 28
    assert trained.architecture["decoder_width"] == 16
    encoders = {k: v for k, v in before.items() if not k.startswith("decoder.")}
    assert differing(encoders, {k: trained.state_dict()[k] for k in encoders}) == []
    for size in (14, 28):
        log = (tmp_path / f"{size}px" / "log.csv").read_text().splitlines()
        assert len(log) == 1 + STAGE.epochs
        assert log[0].endswith("score")
    crops = torch.rand(2, 3, 112, 112) * 2 - 1
    assert trained.eval().reconstruct_crops(crops).shape == (2, 3, 112, 112)
    again = train_decoder(model, COMPACT.decoder, color, val, tmp_path, 0, CPU)
    assert differing(trained.state_dict(), again.state_dict()) == []


def test_scores_are_shares(model, color, tmp_path):
    data = decoder_rows(model, color, tmp_path / "features.pt", CPU)
    losses = PairLosses(model, COMPACT.decoder, data, CPU)
    with torch.no_grad():
        result = score_decoder(Decoder(16, 28, 16), losses, 28, seed=0)
    assert set(result) == {"identity_share", "expression_share", "neutral_share", "score"}
    assert all(0 <= value <= 1 for value in result.values())
