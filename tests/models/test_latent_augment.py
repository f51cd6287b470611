"""Random views of codes, and the directions that sliders move along."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from facezoo.models.latent_simclr.augment import (
    appearance_layers,
    augment_codes,
    mix_with_bank,
    slide,
    structure_layers,
)
from facezoo.models.latent_simclr.directions import (
    check_direction,
    fit_direction,
    load_directions,
    principal_directions,
    save_directions,
)
from facezoo.models.latent_simclr.stylegan2 import StyleGANGenerator


def draw_from(seed=0):
    return torch.Generator().manual_seed(seed)


# --- style mixing ------------------------------------------------------------------------------


def test_the_last_ten_of_eighteen_styles_are_appearance():
    assert list(appearance_layers(18)) == list(range(8, 18))
    assert list(structure_layers(18)) == list(range(8))


@pytest.mark.parametrize(("count", "first"), [(14, 6), (10, 4), (8, 4), (6, 3)])
def test_fewer_styles_are_shared_in_the_same_proportion(count, first):
    assert appearance_layers(count) == range(first, count)
    assert [*structure_layers(count), *appearance_layers(count)] == list(range(count))


def test_mixing_replaces_the_chosen_styles_by_those_of_one_code_of_the_bank():
    codes, bank = torch.randn(50, 10, 3), torch.randn(4, 10, 3)
    before = codes.clone()
    mixed = mix_with_bank(codes, bank, range(4, 10), draw_from())
    assert torch.equal(codes, before)
    assert torch.equal(mixed[:, :4], codes[:, :4])
    sources = [[torch.equal(row[4:], other[4:]) for other in bank].index(True) for row in mixed]
    assert set(sources) == {0, 1, 2, 3}


def test_mixing_can_replace_the_structure_instead():
    codes, bank = torch.zeros(3, 10, 2), torch.ones(1, 10, 2)
    mixed = mix_with_bank(codes, bank, structure_layers(10), draw_from())
    assert mixed[:, :4].min() == 1
    assert mixed[:, 4:].max() == 0


@pytest.mark.parametrize("bank", [torch.zeros(0, 10, 3), torch.zeros(2, 18, 3)])
def test_a_bank_that_does_not_fit_raises_an_error(bank):
    with pytest.raises(ValueError, match=r"bank must be \(M, 10, 3\) with M of 1 or more, got"):
        mix_with_bank(torch.zeros(2, 10, 3), bank, range(4, 10), draw_from())


# --- sliders -----------------------------------------------------------------------------------


def test_sliders_move_codes_along_their_directions_within_the_strength():
    codes = torch.randn(200, 4, 3)
    every, one = torch.zeros(1, 3), torch.zeros(4, 3)
    every[0, 0], one[2, 1] = 2.0, 1.0
    moved = slide(codes, [every, one], 3.0, draw_from()) - codes
    assert moved[..., 2].abs().max() == 0
    assert moved[:, [0, 1, 3], 1].abs().max() == 0
    torch.testing.assert_close(moved[:, 0, 0], moved[:, 3, 0])
    assert 5.5 < moved[:, 0, 0].abs().max() <= 6
    assert 2.7 < moved[:, 2, 1].abs().max() <= 3
    assert abs(moved[:, 0, 0].mean()) < 1
    assert torch.corrcoef(torch.stack([moved[:, 0, 0], moved[:, 2, 1]]))[0, 1].abs() < 0.3


def test_a_direction_of_another_generator_raises_an_error():
    with pytest.raises(ValueError, match=r"must be \(1, 3\) or \(4, 3\), got \(5, 3\)"):
        slide(torch.zeros(2, 4, 3), [torch.zeros(5, 3)], 1.0, draw_from())
    assert check_direction(torch.zeros(3), 4, 3).shape == (1, 3)


def test_the_generator_alone_decides_a_view():
    codes, bank, directions = torch.randn(6, 10, 3), torch.randn(9, 10, 3), [torch.ones(1, 3)]
    first = augment_codes(codes, bank, directions, draw_from(5))
    torch.manual_seed(99)
    assert torch.equal(first, augment_codes(codes, bank, directions, draw_from(5)))
    assert not torch.equal(first, augment_codes(codes, bank, directions, draw_from(6)))


def test_a_view_is_mixed_and_then_moved():
    codes, bank = torch.zeros(5, 10, 2), torch.ones(1, 10, 2)
    still = augment_codes(codes, bank, [], draw_from())
    assert torch.equal(still[:, :4], codes[:, :4])
    assert torch.equal(still[:, 4:], torch.ones(5, 6, 2))
    moved = augment_codes(codes, bank, [torch.ones(1, 2)], draw_from(), strength=0.5) - still
    assert 0 < moved.abs().max() <= 0.5
    mirror = augment_codes(codes, bank, [], draw_from(), layers=structure_layers(10))
    assert torch.equal(mirror[:, :4], torch.ones(5, 4, 2))


# --- directions from files ---------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8,), (1, 8), (10, 8)])
def test_a_direction_is_read_from_npy_and_named_after_the_file(tmp_path, shape):
    stored = np.random.default_rng(0).standard_normal(shape)
    np.save(tmp_path / "smile.npy", stored)
    directions = load_directions(tmp_path / "smile.npy")
    assert directions["smile"].dtype == torch.float32
    np.testing.assert_allclose(directions["smile"], np.atleast_2d(stored), rtol=1e-6)


def test_any_number_of_directions_is_read_from_safetensors(tmp_path):
    stored = {"age": torch.randn(1, 8), "pose": torch.randn(10, 8)}
    path = save_directions(stored, tmp_path / "sliders.safetensors")
    again = load_directions(path)
    assert again.keys() == stored.keys()
    for name, direction in stored.items():
        assert torch.equal(again[name], direction)


def test_files_without_directions_raise_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        load_directions(tmp_path / "none.npy")
    (tmp_path / "a.txt").write_text("1 2 3")
    with pytest.raises(ValueError, match=r"a \.npy or \.safetensors file"):
        load_directions(tmp_path / "a.txt")
    save_file({"deep": torch.zeros(2, 3, 4)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"'deep' .*\(1, D\) or \(L, D\), got \(2, 3, 4\)"):
        load_directions(tmp_path / "a.safetensors")


def test_a_pickled_array_is_not_opened(tmp_path):
    np.save(tmp_path / "bad.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        load_directions(tmp_path / "bad.npy")


# --- directions from labels --------------------------------------------------------------------


def labelled(count, seed=0, codes=4, dim=5, gap=2.0):
    draw = draw_from(seed)
    truth = torch.randn(codes, dim, generator=draw)
    truth = truth / truth.norm()
    labels = torch.rand(count, generator=draw) < 0.4
    rows = torch.randn(count, codes, dim, generator=draw)
    signs = labels.float() * 2 - 1
    return rows + gap * signs[:, None, None] * truth + 1.5, labels, truth


def test_a_fitted_direction_points_to_where_the_property_is():
    codes, labels, truth = labelled(2000)
    plane = fit_direction(codes, labels)
    assert plane.direction.norm().item() == pytest.approx(1, abs=1e-5)
    assert (plane.direction * truth).sum() > 0.97
    right = (plane.distance(codes) > 0) == labels
    assert right.float().mean() > 0.95


@pytest.mark.parametrize("count", [12, 60])  # fewer and more codes than unknowns
def test_a_fitted_plane_is_the_minimum_of_the_svms_objective(count):
    codes, labels, _ = labelled(count, gap=0.7)
    plane = fit_direction(codes, labels, penalty=0.5)
    rows, signs = codes.flatten(1).double(), labels.double() * 2 - 1

    def objective(normal, offset):
        slack = (1 - signs * (rows @ normal + offset)).clamp(min=0)
        return normal.square().sum() / 2 + 0.5 * slack.square().sum()

    # The plane is known up to its length; the best one has a gradient of nothing.
    unit = plane.direction.flatten().double()
    lengths = torch.linspace(0.01, 5, 20000, dtype=torch.float64)
    scale = lengths[torch.stack([objective(s * unit, -s * plane.offset) for s in lengths]).argmin()]
    normal, offset = scale * unit, -scale * plane.offset
    best = objective(normal, offset)
    for _ in range(50):
        step = 0.02 * torch.randn(21, dtype=torch.float64)
        assert objective(normal + step[:20], offset + step[20]) > best


def test_a_fit_is_the_same_every_time_and_opposite_for_opposite_labels():
    codes, labels, _ = labelled(80)
    plane, again = fit_direction(codes, labels), fit_direction(codes, labels)
    assert torch.equal(plane.direction, again.direction)
    turned = fit_direction(codes, ~labels)
    torch.testing.assert_close(turned.direction, -plane.direction, atol=1e-4, rtol=1e-3)


def test_ambiguous_labels_raise_an_error():
    codes = torch.randn(5, 4, 3)
    with pytest.raises(ValueError, match="all 5 labels are equal"):
        fit_direction(codes, torch.ones(5))
    with pytest.raises(ValueError, match=r"labels must be \(5,\), one per code, got \(4,\)"):
        fit_direction(codes, torch.ones(4))


# --- directions without labels -----------------------------------------------------------------


def generator_of(dim=6):
    return StyleGANGenerator(16, dim, 1, max_channels=5)


def test_principal_directions_are_the_eigenvectors_of_the_style_weights():
    generator = generator_of()
    directions, values = principal_directions(generator, 3)
    readers = [generator.conv1, *generator.convs, generator.to_rgb1, *generator.to_rgbs]
    a = torch.cat([reader.conv.modulation.weight for reader in readers]).detach()
    assert directions.shape == (3, 6, 6)
    for direction, value in zip(directions, values, strict=True):
        assert torch.equal(direction[0], direction[5])
        torch.testing.assert_close(a.T @ (a @ direction[0]), value * direction[0])
    assert values[0] > values[1] > values[2]
    products = torch.einsum("ild,jld->ij", directions, directions)
    torch.testing.assert_close(products, torch.eye(3), atol=1e-5, rtol=0)


def test_principal_directions_of_some_layers_leave_the_others_alone():
    generator = generator_of()
    directions, _ = principal_directions(generator, 2, range(2, 4))
    assert directions[:, [0, 1, 4, 5]].abs().max() == 0
    assert directions[:, 2:4].abs().max() > 0
    # Codes 2 and 3 are read by the layers 3 and 4, and code 3 by the colours after layer 3.
    readers = [generator.convs[1], generator.convs[2], generator.to_rgbs[0]]
    a = torch.cat([reader.conv.modulation.weight for reader in readers]).detach()
    wanted = torch.linalg.svd(a).Vh[0]
    found = directions[0, 2] * 2**0.5
    assert (found @ wanted).abs().item() == pytest.approx(1, abs=1e-4)


def test_signs_of_principal_directions_are_fixed():
    directions, _ = principal_directions(generator_of(), 6)
    for direction in directions[:, 0]:
        assert direction[direction.abs().argmax()] > 0


def test_layers_and_counts_that_do_not_exist_raise_an_error():
    for layers in (range(4, 7), range(-1, 2), range(3, 3)):
        with pytest.raises(ValueError, match="indices of W\\+, 0 to 5"):
            principal_directions(generator_of(), 1, layers)
    with pytest.raises(ValueError, match="count must be 1 to 6, got 7"):
        principal_directions(generator_of(), 7)
