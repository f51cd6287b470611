"""Identity removal: what it takes, what it leaves, and that it stays with a model."""

import numpy as np
import pandas
import pytest
import torch

import facezoo
from facezoo.evaluate.probes import linear_probe
from facezoo.export import Stage
from facezoo.models.identity_removal import IdentityRemoval, remove_identity
from facezoo.models.ipd_fer import IPDFER
from facezoo.models.latentface import LatentFace

BACKBONE = "test_resnet.r160_in1k"
PEOPLE = torch.arange(24).repeat_interleave(8)
LABELS = torch.arange(8).repeat(24) % 2


def made(seed=0, correlated=False):
    """192 features of 16: person in 3 directions, expression in one, noise, all turned."""
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(len(PEOPLE), 16, generator=draw)
    features[:, :3] += 8 * torch.randn(24, 3, generator=draw)[PEOPLE]
    features[:, 3] += 6 * LABELS
    if correlated:
        features[:, 3] += 4 * torch.randn(24, generator=draw)[PEOPLE]
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(9)))[0]
    return features @ turn * torch.linspace(0.2, 3, 16) + 5


def told(features, labels):
    """Share that a linear probe tells right, from every other photograph of everyone."""
    places = torch.arange(len(labels))
    train, test = (places[places // 2 % 2 == side] for side in (0, 1))
    probe = linear_probe(features, labels, train, test, penalties=(0.01,))
    return float((probe.predicted == labels[test]).float().mean())


def named(features):
    return told(features, PEOPLE)


def expressed(features):
    return told(features, LABELS)


def test_identities_are_removed_and_expressions_remain():
    features = made()
    removal = remove_identity(features, PEOPLE)
    left = removal(features)
    assert removal.directions == 3
    assert named(features) > 0.6
    assert named(left) < 0.1
    assert expressed(features) > 0.9
    assert expressed(left) > 0.9


def test_images_of_other_identities_lose_their_identity_too():
    removal, others = remove_identity(made(), PEOPLE), made(seed=1)
    assert named(others) > 0.6
    assert named(removal(others)) < 0.15


def test_features_of_another_precision_are_taken():
    features = made()
    removal = remove_identity(features, PEOPLE)
    torch.testing.assert_close(removal(features.double()).float(), removal(features))
    assert removal.to(torch.bfloat16)(features).dtype == torch.float32


def test_a_removal_follows_the_model_to_its_device():
    model = IPDFER(BACKBONE, 16, pose_backbone=None, decoder_size=None)
    model.identity_removal = remove_identity(made(), PEOPLE)
    elsewhere = torch.zeros(2, 16, device="meta")
    assert model.without_identity(elsewhere).device.type == "meta"


def test_unknown_classes_alone_keep_nothing():
    features, nothing = made(), torch.full((len(PEOPLE),), -1)
    removal = remove_identity(features, PEOPLE, keep=nothing)
    torch.testing.assert_close(removal.read, remove_identity(features, PEOPLE).read)


def test_a_number_of_directions_below_none_raises_an_error():
    with pytest.raises(ValueError, match="directions must be 0 or more, or None"):
        remove_identity(made(), PEOPLE, directions=-1)


def test_permuted_identities_have_no_direction():
    draw = torch.Generator().manual_seed(3)
    shuffled = PEOPLE[torch.randperm(len(PEOPLE), generator=draw)]
    features = made()
    removal = remove_identity(features, shuffled)
    assert removal.directions == 0
    torch.testing.assert_close(removal(features), features)


def test_what_the_directions_do_not_correlate_with_is_left_as_it_was():
    features = made().double()
    removal = remove_identity(features, PEOPLE)
    places = (features - features.mean(0)) @ removal.read.double()
    moved = removal(features.float()).double() - features
    # Features less what the directions explain of them by least squares.
    explained = places @ torch.linalg.lstsq(places, features - features.mean(0)).solution
    torch.testing.assert_close(moved, -explained, atol=1e-3, rtol=1e-3)
    left = removal(features.float()).double()
    cross = places.T @ (left - left.mean(0)) / len(left)
    assert cross.abs().max() < 1e-3


def test_classes_that_are_kept_stay_readable_where_they_share_a_direction_with_identities():
    features = made(correlated=True)
    without = remove_identity(features, PEOPLE)(features)
    kept = remove_identity(features, PEOPLE, keep=LABELS)(features)
    assert expressed(without) < 0.7
    assert expressed(kept) >= expressed(features) - 0.05
    assert named(kept) < named(features)


def test_labels_that_are_not_known_are_left_out_of_what_is_kept():
    features, some = made(correlated=True), LABELS.clone()
    some[::3] = -1
    removal = remove_identity(features, PEOPLE, keep=some)
    assert expressed(removal(features)) >= expressed(features) - 0.05


def test_names_of_classes_are_kept_as_their_numbers_are():
    features, some = made(correlated=True), LABELS.clone()
    some[::3] = -1
    expected = remove_identity(features, PEOPLE, keep=some)
    names = [{-1: None, 0: "neutral", 1: "happiness"}[number] for number in some.tolist()]
    for keep in (names, np.array(names, object)):
        removal = remove_identity(features, PEOPLE, keep=keep)
        torch.testing.assert_close(removal(features), expected(features))


def test_directions_that_do_not_vary_and_identities_of_one_image_do_no_harm():
    features = torch.cat([made(), torch.ones(192, 2), made()[:, :1]], 1)
    people = [f"person {p}" for p in PEOPLE.tolist()]
    people[::8] = [f"stranger {i}" for i in range(24)]
    removal = remove_identity(features, people)
    assert removal.directions == 3
    assert named(removal(features)) < 0.15


def test_as_many_directions_as_asked_for_and_rows_of_nan_stay():
    features = made()
    removal = remove_identity(features, PEOPLE, directions=2)
    assert removal.directions == 2
    assert "16, directions=2" in repr(removal)
    rows = torch.cat([features[:1], torch.full((1, 16), float("nan"))])
    assert torch.isfinite(removal(rows)).all(1).tolist() == [True, False]


@pytest.mark.parametrize(
    ("features", "identities", "message"),
    [
        (torch.zeros(4, 2, 2), [0, 0, 1, 1], "expects features"),
        (torch.zeros(4, 2), [0, 0, 1], "expects features"),
        (torch.full((4, 2), float("nan")), [0, 0, 1, 1], "NaN or infinity"),
        (torch.zeros(4, 2), [0, 0, 1, 2], "1 identities have two images"),
    ],
)
def test_unsuitable_input_raises_an_error(features, identities, message):
    with pytest.raises(ValueError, match=message):
        remove_identity(features, identities)


def test_lists_and_arrays_are_taken_as_tensors_are():
    features = made()
    wanted = remove_identity(features, PEOPLE, keep=LABELS)
    for people, keep in (
        (PEOPLE.tolist(), LABELS.tolist()),
        (PEOPLE.numpy(), LABELS.numpy()),
        (list(PEOPLE), LABELS),
    ):
        again = remove_identity(features.numpy(), people, keep=keep)
        torch.testing.assert_close(again(features), wanted(features))


@pytest.mark.parametrize("unknown", [None, float("nan"), pandas.NA])
def test_unknown_identities_are_not_one_identity(unknown):
    features = torch.cat([made(), made() + 5])  # the second half has another mean
    names = [f"identity {number}" for number in PEOPLE.tolist()]
    singles = [*names, *(f"unknown {row}" for row in range(len(PEOPLE)))]
    wanted = remove_identity(features, singles)
    removal = remove_identity(features, [*names, *[unknown] * len(PEOPLE)])
    torch.testing.assert_close(removal(features), wanted(features))


def test_frames_and_none_among_numbers_are_taken():
    frame = pandas.DataFrame(made().numpy())
    keep = LABELS.tolist()
    wanted = remove_identity(made(), PEOPLE, keep=[-1, *keep[1:]])
    removal = remove_identity(frame, pandas.Series(PEOPLE.numpy()), keep=[None, *keep[1:]])
    torch.testing.assert_close(removal(made()), wanted(made()))


def test_features_that_are_all_the_same_raise_an_error():
    with pytest.raises(ValueError, match="features are the same in every row"):
        remove_identity(torch.ones(4, 3), [0, 0, 1, 1])


# --- with a model ---------------------------------------------------------------------------------


@pytest.fixture
def model():
    return IPDFER(BACKBONE, 16, pose_backbone=None, decoder_size=None).eval()


@pytest.fixture
def crops():
    return torch.rand(5, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_model_gives_expression_without_identity_and_classes_as_before(model, crops):
    wanted = ["encode_expression", "encode_identity", "predict_expression"]
    before = model.run(crops, wanted)
    model.identity_removal = facezoo.remove_identity(made(), PEOPLE)
    after = model.run(crops, wanted)
    removed = model.identity_removal(before["encode_expression"])
    torch.testing.assert_close(after["encode_expression"], removed)
    assert not torch.allclose(after["encode_expression"], before["encode_expression"])
    for name in wanted[1:]:
        torch.testing.assert_close(after[name], before[name])
    torch.testing.assert_close(Stage(model, "encode_expression")(crops), removed)


def test_the_removal_is_saved_and_loaded_with_the_model(model, crops, tmp_path):
    model.identity_removal = remove_identity(made(), PEOPLE)
    model.save_pretrained(tmp_path)
    again = facezoo.load(tmp_path, device="cpu")
    assert isinstance(again.identity_removal, IdentityRemoval)
    wanted = model.run(crops, "encode_expression")
    torch.testing.assert_close(again.run(crops, "encode_expression"), wanted)


@pytest.mark.parametrize("dtype", [None, "int8"])
def test_a_removal_of_no_direction_is_saved_in_any_precision(model, crops, tmp_path, dtype):
    model.identity_removal = remove_identity(made(), PEOPLE, directions=0)
    again = facezoo.load(model.save_pretrained(tmp_path, dtype=dtype), device="cpu")
    assert again.identity_removal.directions == 0


def test_a_removal_for_another_model_raises_an_error(model, crops):
    model.identity_removal = remove_identity(made()[:, :7], PEOPLE)
    with pytest.raises(ValueError, match="expects 7 features, got 16"):
        model.run(crops, ["encode_expression"])
    assert model.run(crops, "encode_identity").shape == (5, 16)


def test_a_checkpoint_that_gets_a_removal_loses_the_metrics_of_its_card(model, tmp_path):
    model.save_pretrained(tmp_path / "plain")
    changed = facezoo.load(tmp_path / "plain", device="cpu")
    changed.identity_removal = remove_identity(made(), PEOPLE)
    changed.save_pretrained(tmp_path / "changed")
    card = facezoo.load(tmp_path / "changed", device="cpu").card
    assert card.metrics == ()
    assert card.weights.sha256 != changed.card.weights.sha256


def test_images_are_made_of_the_whole_expression():
    model = IPDFER(BACKBONE, 16, pose_backbone=None, decoder_size=28, decoder_width=8).eval()
    photo = torch.randint(0, 256, (3, 112, 112), dtype=torch.uint8)
    before = model.transfer_expression(photo, photo, aligned=True, detail=False)
    model.identity_removal = remove_identity(made(), PEOPLE)
    after = model.transfer_expression(photo, photo, aligned=True, detail=False)
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(after, model.reconstruct(photo, aligned=True))


def test_latentface_leaves_identity_out_of_its_whole_encoding_too():
    small = {"width": 8, "number_width": 4, "code_dim": 8, "unet_width": 16}
    model = LatentFace(**small).eval()
    photo = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    before = model.encode(photo, aligned=True)
    model.identity_removal = remove_identity(made(), PEOPLE)
    after = model.encode(photo, aligned=True)
    torch.testing.assert_close(after.identity, before.identity)
    torch.testing.assert_close(after.expression, model.identity_removal(before.expression))
    alone = model.encode_expression(photo, aligned=True)
    torch.testing.assert_close(after.expression, alone, atol=1e-4, rtol=1e-4)
