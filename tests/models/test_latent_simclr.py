"""latent-simclr as a model: photographs or codes in, features, edits and faces out."""

import math

import numpy as np
import pytest
import torch
from packs import photo_of, use_square_detector

import facezoo
from facezoo.errors import UnknownNameError, UnsupportedError, WeightsMismatchError
from facezoo.models.detail import keep_detail
from facezoo.models.latent_simclr import Inversion, LatentSimCLR, StyleGANInverter
from facezoo.models.latent_simclr.convert import convert_generator, load_generator
from facezoo.models.latent_simclr.directions import load_directions

TINY = {
    "style_dim": 16,
    "mapping_layers": 1,
    "max_channels": 8,
    "depths": (1, 1, 1, 1),
    "width": 4,
    "trunk_size": 32,
    "code_width": 8,
    "num_features": 12,
    "directions": ("blur", "smile"),
    "feature_directions": True,
    "expression_axes": 3,
}


@pytest.fixture(autouse=True)
def _squares_are_faces(monkeypatch):
    use_square_detector(monkeypatch)


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = LatentSimCLR(**TINY).eval()
    made.directions.normal_()
    made.feature_directions.normal_()
    for buffer in made.expression_axes.buffers():
        buffer.normal_()
    return made


PHOTOS = [photo_of((40, 50, 80)).numpy(), photo_of((60, 40, 90, 200)).numpy()]
EMPTY = photo_of().numpy()


def test_features_of_codes_are_those_of_the_images_that_gave_them(model):
    codes = model.encode_factors(PHOTOS).w_plus
    assert codes.shape == (2, 10, 16)
    for name in ("encode_expression", "encode_identity"):
        encode = getattr(model, name)
        torch.testing.assert_close(encode(w_plus=codes), encode(PHOTOS), atol=1e-5, rtol=1e-4)


def test_codes_and_directions_may_be_arrays(model):
    codes, direction = model.encode_factors(PHOTOS).w_plus, torch.randn(10, 16)
    torch.testing.assert_close(
        model.encode_expression(w_plus=codes.numpy()), model.encode_expression(w_plus=codes)
    )
    torch.testing.assert_close(
        model.edit(PHOTOS, direction.double().numpy(), 1.0), model.edit(PHOTOS, direction, 1.0)
    )
    with pytest.raises(ValueError, match=r"a direction must be \(1, 16\) or \(10, 16\), got"):
        model.edit(PHOTOS, np.zeros(3), 1.0)


def test_codes_are_worked_on_one_at_a_time_or_more(model):
    inversion = model.encode_factors(PHOTOS)
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        model.encode_identity(w_plus=inversion.w_plus, batch_size=0)
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        model.synthesize(inversion, batch_size=0)


def test_an_inversion_is_one_line(model):
    said = repr(model.encode_factors(PHOTOS))
    assert said == "Inversion(w_plus (2, 10, 16), feature (2, 8, 16, 16))"


def test_the_two_encoders_differ(model):
    assert not torch.allclose(model.encode_expression(PHOTOS), model.encode_identity(PHOTOS))


@pytest.mark.parametrize("given", [{}, {"images": PHOTOS, "w_plus": torch.zeros(2, 10, 16)}])
def test_images_and_codes_exclude_each_other(model, given):
    with pytest.raises(ValueError, match="expects images or w_plus"):
        model.encode_expression(**given)


def test_a_image_without_a_face_keeps_its_row(model):
    inversion = model.invert([PHOTOS[0], EMPTY], on_missing="nan")
    assert torch.isfinite(inversion.w_plus).all((1, 2)).tolist() == [True, False]
    pictures = model.edit([PHOTOS[0], EMPTY], "smile", 1.0, on_missing="nan")
    assert pictures.shape == (2, 3, 64, 64)
    assert torch.isnan(pictures[1]).all()


def test_refinement_brings_images_closer(model):
    crops = torch.rand(2, 3, 64, 64)
    far, near = (
        (model.synthesize(model.invert(crops, steps, aligned=True)) - crops).square().mean()
        for steps in (0, 5)
    )
    assert near < far


def test_no_edit_is_the_reconstruction_and_an_edit_is_not(model):
    plain = model.reconstruct(PHOTOS)
    torch.testing.assert_close(model.edit(PHOTOS, "blur", 0.0), plain, atol=1e-5, rtol=1e-4)
    assert (model.edit(PHOTOS, "blur", 3.0) - plain).abs().max() > 1e-4
    own = model.directions[0].clone()
    model.feature_directions = None  # as in a checkpoint without them
    moved = [model.edit(PHOTOS, which, 2.0) for which in ("blur", own)]
    torch.testing.assert_close(*moved)


def test_edits_of_smiles_and_colors_keep_the_detail_of_the_crop_and_others_are_generated():
    model = facezoo.load("latent-simclr", device="cpu")
    generator = torch.Generator().manual_seed(0)
    crops = torch.randint(256, (2, 3, 64, 64), generator=generator) / 255
    images, plain = list(crops), model.reconstruct(list(crops), aligned=True)
    for name, expected in {
        "smile": lambda after: keep_detail(crops, plain, after),
        "skin_tone": lambda after: (crops + after - plain).clamp(0, 1),
        "blur": lambda after: after,
    }.items():
        after = model.edit(images, name, 2.0, detail=False, aligned=True)
        made = model.edit(images, name, 2.0, aligned=True)
        torch.testing.assert_close(made, expected(after), atol=1e-4, rtol=0)
    same = model.edit(images, "smile", 0.0, aligned=True)
    torch.testing.assert_close(same, crops, atol=1e-4, rtol=0)
    # a direction of your own keeps the detail on request
    after = model.edit(images, model.directions[0], 2.0, aligned=True)
    made = model.edit(images, model.directions[0], 2.0, detail=True, aligned=True)
    torch.testing.assert_close(made, keep_detail(crops, plain, after), atol=1e-4, rtol=0)


def test_codes_are_edited_as_the_images_that_gave_them(model):
    codes = model.encode_factors(PHOTOS)
    edited = model.edit(PHOTOS, "smile", 2.0, detail=False)
    torch.testing.assert_close(model.edit(codes, "smile", 2.0), edited, atol=1e-5, rtol=1e-4)
    moved = model.transfer_expression(PHOTOS[0], PHOTOS, detail=False)
    of_codes = model.transfer_expression(PHOTOS[0], codes)
    torch.testing.assert_close(of_codes, moved, atol=1e-4, rtol=1e-4)
    for edit in (
        lambda: model.edit(codes, "smile", 2.0, detail=True),
        lambda: model.transfer_expression(PHOTOS[0], codes, detail=True),
    ):
        with pytest.raises(ValueError, match="detail=True needs the images, got codes"):
            edit()
    with pytest.raises(ValueError, match="3 source faces and 2 target"):
        model.transfer_expression([*PHOTOS, PHOTOS[0]], codes)


def test_codes_are_not_paired_with_the_rest_of_skipped_sources(model):
    codes = model.encode_factors(PHOTOS)
    for sources in ([EMPTY, PHOTOS[1]], [PHOTOS[0], EMPTY, PHOTOS[1]]):
        with pytest.raises(ValueError, match=r'1 of . images .* on_missing="nan"'):
            model.transfer_expression(sources, codes, on_missing="skip")
    moved = model.transfer_expression([EMPTY, PHOTOS[1]], codes, on_missing="nan")
    assert moved.isnan().flatten(1).all(1).tolist() == [True, False]


@pytest.mark.parametrize("strength", [torch.tensor([1.0, 2.0]), [1.0], None, "much", math.nan])
def test_the_strength_of_an_edit_is_one_number(model, strength):
    with pytest.raises(ValueError, match="strength must be one finite number for all faces"):
        model.edit(PHOTOS, "smile", strength)
    expected = model.edit(PHOTOS, "smile", 2.0)
    torch.testing.assert_close(model.edit(PHOTOS, "smile", torch.tensor(2)), expected)


def test_an_unknown_direction_is_named_with_those_that_there_are(model):
    with pytest.raises(UnknownNameError, match="blur, smile"):
        model.edit(PHOTOS, "age", 1.0)
    with pytest.raises(ValueError, match="direction must be"):
        model.edit(PHOTOS, torch.zeros(3), 1.0)


def test_mixing_a_face_with_itself_changes_nothing(model):
    plain = model.reconstruct(PHOTOS)
    itself = model.mix_styles(PHOTOS, PHOTOS)
    torch.testing.assert_close(itself, plain, atol=1e-5, rtol=1e-4)
    assert (model.mix_styles(PHOTOS, PHOTOS[::-1]) - plain).abs().max() > 1e-5
    with pytest.raises(ValueError, match="as many faces"):
        model.mix_styles(PHOTOS, PHOTOS[:1])


def test_images_and_features_can_be_learned_from(model):
    inversion = model.encode_factors(PHOTOS)
    codes = inversion.w_plus
    made = [model.synthesize(inversion), model.sample(1), model.edit(PHOTOS, "smile", 1.0)]
    made += [model.encode_expression(w_plus=codes), model.encode_identity(w_plus=codes)]
    assert not any(tensor.is_inference() for tensor in made)


def test_one_expression_goes_to_several_faces(model):
    crops = list(torch.rand(3, 3, 64, 64))
    both = model.transfer_expression(crops[0], crops[1:], aligned=True)
    alone = [model.transfer_expression(crops[0], crop, aligned=True) for crop in crops[1:]]
    torch.testing.assert_close(both, torch.cat(alone))
    with pytest.raises(ValueError, match="2 source faces and 1 target"):
        model.transfer_expression(crops[:2], crops[2], aligned=True)


def test_a_transfer_moves_codes_and_feature_by_the_difference_of_the_coordinates(model):
    crops = list(torch.rand(2, 3, 64, 64))
    factors, axes = model.encode_factors(crops, aligned=True), model.expression_axes
    coordinates = torch.einsum("bld,kld->bk", factors.w_plus, axes.read)
    amounts = 0.1 * (coordinates[0] - coordinates[1])
    codes = factors.w_plus[1] + torch.einsum("k,kld->ld", amounts, axes.codes)
    feature = factors.feature[1] + torch.einsum("k,kchw->chw", amounts, axes.feature)
    expected = model.synthesize(Inversion(codes[None], feature[None]))
    made = model.transfer_expression(*crops, strength=0.1, aligned=True, detail=False)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)
    same = model.transfer_expression(*crops, strength=0, aligned=True, detail=False)
    torch.testing.assert_close(same, model.reconstruct(crops[1], aligned=True))
    with pytest.raises(ValueError, match="strength must be one finite number"):
        model.transfer_expression(*crops, strength=[1, 2], aligned=True)


def test_exchanged_codes_have_the_coordinates_of_the_others(model):
    codes, others = torch.randn(2, 4, *model.directions.shape[1:]).unbind()
    axes = model.expression_axes
    exchanged = axes.exchange(codes, others)
    wanted = axes.coordinates(others)
    torch.testing.assert_close(axes.coordinates(exchanged), wanted, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(axes.exchange(codes, codes), codes)
    with pytest.raises(RuntimeError, match="singular"):
        LatentSimCLR(**TINY).expression_axes.exchange(codes, others)


def test_a_model_without_axes_says_what_it_cannot_do():
    model = LatentSimCLR(**{**TINY, "expression_axes": 0})
    assert "transfer_expression" not in model.capabilities()
    with pytest.raises(UnsupportedError, match=r"no expression axes .*mix_styles works"):
        model.transfer_expression(*PHOTOS)


def test_an_edit_moves_the_feature_by_its_own_direction(model):
    crops = list(torch.rand(2, 3, 64, 64))
    factors = model.encode_factors(crops, aligned=True)
    moved = Inversion(
        factors.w_plus + 0.5 * model.directions[1],
        factors.feature + 0.5 * model.feature_directions[1],
    )
    expected = model.synthesize(moved)
    torch.testing.assert_close(
        model.edit(crops, "smile", 0.5, aligned=True, detail=False), expected
    )
    # A direction of one's own has no part of the feature: the generator's own change is used.
    own = model.edit(crops, model.directions[1], 0.5, aligned=True)
    assert not torch.allclose(own, expected, atol=1e-3)


def test_samples_repeat_with_their_generator(model):
    first, again, other = (
        model.sample(3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first.shape == (3, 3, 64, 64)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_expression_needs_no_feature_head(model):
    model.inverter.encoder.head = None
    assert model.encode_expression(PHOTOS).shape == (2, 12)


def test_the_inverter_comes_alone(model, tmp_path):
    model.save_pretrained(tmp_path / "checkpoint")
    inverter = facezoo.StyleGANInverter.from_pretrained(tmp_path / "checkpoint")
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(inverter.invert(images).w_plus, model.embed_codes(images))
    with pytest.raises(TypeError, match="no StyleGAN"):
        StyleGANInverter.from_pretrained("ipd-fer")


def test_a_published_generator_is_converted_with_its_mean_code(model, tmp_path):
    generator = model.inverter.generator
    centre = torch.randn(1, 16)
    torch.save({"g_ema": generator.state_dict(), "latent_avg": centre}, tmp_path / "g.pt")
    path = convert_generator(tmp_path / "g.pt")
    again, mean = load_generator(path)
    codes = torch.randn(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(again(codes), generator(codes))
    torch.testing.assert_close(mean, centre[0])
    with pytest.raises(FileExistsError):
        convert_generator(tmp_path / "g.pt")
    assert convert_generator(tmp_path / "g.pt", tmp_path / "new" / "g.safetensors").is_file()


def test_a_generator_is_converted_whole_and_to_safetensors_alone(model, tmp_path):
    tensors = model.inverter.generator.state_dict()
    source = tmp_path / "g.pt"
    torch.save({"g_ema": tensors}, source)
    before = source.read_bytes()
    with pytest.raises(ValueError, match=r"must end in \.safetensors, got .*g\.pt"):
        convert_generator(source, source, overwrite=True)
    assert source.read_bytes() == before
    del tensors["convs.0.conv.weight"], tensors["convs.1.conv.weight"]
    tensors["convs.0.conv.weight"] = torch.zeros(3)
    torch.save({"g_ema": tensors}, source)
    with pytest.raises(WeightsMismatchError, match=r"missing: convs\.1.*mis-shaped: convs\.0"):
        convert_generator(source)
    assert not source.with_suffix(".safetensors").exists()


def test_directions_are_fitted_from_the_command_line(tmp_path, capsys):
    from facezoo.cli.main import main

    draw = torch.Generator().manual_seed(0)
    codes = torch.randn(60, 4, 3, generator=draw)
    np.save(tmp_path / "codes.npy", codes.numpy())
    values = ["" if row == 0 else str(int(code[1, 2] > 0)) for row, code in enumerate(codes)]
    text = "smile\n" + "\n".join(f'"{v}"' for v in values) + "\n"
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8-sig")  # as spreadsheets do
    target = tmp_path / "new" / "directions.safetensors"
    files = ["--codes", str(tmp_path / "codes.npy"), "--labels", str(tmp_path / "labels.csv")]
    assert main(["fit-directions", str(target), *files]) == 0
    assert "smile" in capsys.readouterr().out
    direction = load_directions(target)["smile"]
    assert direction.abs().argmax() == 1 * 3 + 2
    spread = torch.einsum("nld,ld->n", codes, direction / direction.norm()).std()
    torch.testing.assert_close(direction.norm(), spread, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--model", "ipd-fer"], "no StyleGAN to invert"), (["--count", "0"], "count must be 1")],
)
def test_directions_without_labels_want_a_generator_and_a_count(tmp_path, capsys, words, said):
    from facezoo.cli.main import main

    assert main(["fit-directions", str(tmp_path / "d.safetensors"), *words]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("smile\n1\n", "1 rows"),
        ("smile\n1\n2\n", "expected 1, 0 or an empty value"),
        ("smile\n1\n1,0\n", "more values than the header has names"),
    ],
)
def test_labels_that_do_not_fit_raise_an_error(tmp_path, capsys, text, said):
    from facezoo.cli.main import main

    np.save(tmp_path / "codes.npy", np.zeros((2, 4, 3), np.float32))
    (tmp_path / "labels.csv").write_text(text)
    files = ["--codes", str(tmp_path / "codes.npy"), "--labels", str(tmp_path / "labels.csv")]
    assert main(["fit-directions", str(tmp_path / "d.safetensors"), *files]) == 1
    assert said in capsys.readouterr().err


def test_codes_without_an_array_and_missing_directions_raise_an_error(tmp_path, capsys):
    from facezoo.cli.main import main

    np.savez(tmp_path / "codes.npz", codes=np.zeros((2, 4, 3), np.float32))
    (tmp_path / "labels.csv").write_text("smile\n1\n0\n")
    target = str(tmp_path / "d.safetensors")
    files = ["--codes", str(tmp_path / "codes.npz"), "--labels", str(tmp_path / "labels.csv")]
    assert main(["fit-directions", target, *files]) == 1
    assert "must be a .npy file" in capsys.readouterr().err
    assert main(["fit-directions", target, "--count", "0"]) == 1
    assert "count must be 1 to" in capsys.readouterr().err
