import numpy as np
import pytest
import torch

from facezoo.evaluate.meshes import (
    expression_accuracy,
    identity_recognition,
    mesh_verification,
    rank_one,
    score_meshes,
    summary,
)

NARROW = torch.tensor([True, True, False, False, False])


def naive(meshes, identity, reconstruction, neutral):
    """Equations (9) and (10) as loops."""
    rec, neu, dis, spread = [], [], [], []
    for person in range(len(meshes)):
        middle = np.mean(list(identity[person]), 0)
        distances = []
        for expression in range(len(meshes[person])):
            gap = meshes[person][expression] - reconstruction[person][expression]
            rec.append(np.mean([np.sqrt(v @ v) for v in gap]))
            gap = neutral[person] - identity[person][expression]
            neu.append(np.mean([np.sqrt(v @ v) for v in gap]))
            distances += [np.sqrt(v @ v) for v in identity[person][expression] - middle]
        dis.append(np.std(distances))
        spread.append(np.sqrt(np.mean(np.square(distances))))
    return rec, neu, dis, spread


def test_scores_match_equations_9_and_10():
    meshes, identity, rebuilt = (torch.randn(3, 4, 5, 3, dtype=torch.float64) for _ in range(3))
    neutral = torch.randn(3, 5, 3, dtype=torch.float64)
    scores = score_meshes(meshes, identity, rebuilt, neutral, NARROW)
    rec, neu, dis, spread = naive(*(t.numpy() for t in (meshes, identity, rebuilt, neutral)))
    for ours, theirs in ((scores.e_rec, rec), (scores.avd_neu, neu), (scores.e_dis, dis)):
        assert ours.mean == pytest.approx(np.mean(theirs))
        assert ours.std == pytest.approx(np.std(theirs))
        assert ours.median == pytest.approx(np.median(theirs))
    assert scores.spread == pytest.approx(np.mean(spread))


def test_the_face_columns_look_at_the_narrow_area_only():
    meshes = torch.zeros(2, 3, 5, 3)
    wrong = meshes.clone()
    wrong[:, :, 2:, 0] = 7
    scores = score_meshes(meshes, wrong, wrong, meshes[:, 0], NARROW)
    assert scores.e_rec_face == scores.avd_neu_face == 0
    assert scores.e_rec.mean == pytest.approx(7 * 3 / 5)


def test_a_constant_method_has_no_disentanglement_error():
    meshes = torch.randn(2, 3, 5, 3)
    constant = torch.zeros(2, 3, 5, 3)
    scores = score_meshes(meshes, constant, meshes, meshes[:, 0], NARROW)
    assert scores.e_dis.mean == scores.spread == scores.e_rec.mean == 0
    assert scores.avd_neu.mean > 0


def test_scores_become_one_flat_row():
    meshes = torch.randn(2, 3, 5, 3)
    row = score_meshes(meshes, meshes, meshes, meshes[:, 0], NARROW).to_dict()
    assert {"e_rec_mean", "e_rec_face", "avd_neu_std", "e_dis_median", "spread"} <= set(row)


def test_other_shapes_raise_an_error():
    meshes = torch.randn(2, 3, 5, 3)
    with pytest.raises(ValueError, match=r"\(P, E, N, 3\)"):
        score_meshes(meshes, meshes[:1], meshes, meshes[:, 0], NARROW)


def test_an_even_count_has_the_median_of_its_middle_two():
    assert summary(torch.tensor([1.0, 2.0, 4.0, 9.0])).median == 3


def test_rank_one_compares_directions():
    gallery = torch.eye(3)
    probes = torch.tensor([[5.0, 1, 0], [0, 0.1, 0], [0, 3, 1]])
    assert rank_one(gallery, probes, torch.tensor([0, 1, 2])) == pytest.approx(2 / 3)


def codes_of(persons=40, expressions=5, dim=16, noise=0.1):
    """Codes that tell the person and nothing else."""
    draw = torch.Generator().manual_seed(1)
    identity = torch.randn(persons, 1, dim, generator=draw)
    return identity + noise * torch.randn(persons, expressions, dim, generator=draw)


def test_verification_finds_identities_in_codes_that_contain_them():
    assert mesh_verification(codes_of())[0] == 1
    assert mesh_verification(torch.randn(40, 5, 16))[0] == pytest.approx(0.5, abs=0.1)


def test_verification_rejects_fewer_identities_than_folds_need():
    with pytest.raises(ValueError, match="20 or more identities, got 19"):
        mesh_verification(codes_of(19))


def test_recognition_takes_neutral_codes_as_gallery():
    assert identity_recognition(codes_of()) == 1
    swapped = codes_of()
    swapped[:, 0] = swapped[:, 0].roll(1, 0)
    assert identity_recognition(swapped) == 0


def test_expressions_are_read_from_codes_that_hold_them_and_not_from_others():
    codes = codes_of(noise=0.3)
    told = codes.clone()
    told[:, torch.arange(5), torch.arange(5)] += 20
    assert expression_accuracy(told[:25], told[25:]) == 1
    assert expression_accuracy(codes[:25], codes[25:]) < 0.5
