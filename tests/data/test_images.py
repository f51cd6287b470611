"""Packs: reading, labels from votes, and aligned crops."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from packs import FACE, face_at, photo_of, png, write_ferplus, write_lfw

from facezoo.data.packs import (
    aligned_crops,
    as_points,
    decode,
    label_distributions,
    landmarks,
    majority_labels,
    read_pack,
    teacher_embeddings,
)
from facezoo.results import EXPRESSIONS


def votes_of(*rows):
    return label_distributions(pa.table({"votes": list(rows)}))


def crop_table(*rows):
    """Rows of (pixels, landmarks or None)."""
    return pa.table(
        {"image": [png(p) for p, _ in rows], "landmarks": pa.array([points for _, points in rows])}
    )


def noise(side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def test_a_split_holds_its_rows_and_no_split_holds_all(tmp_path):
    write_lfw(tmp_path, train=6, val=4)
    path = tmp_path / "lfw.parquet"
    assert len(read_pack(path)) == 10
    assert len(read_pack(path, "val")) == 4
    assert set(read_pack(path, "train")["split"].to_pylist()) == {"train"}


def test_a_missing_pack_is_named_with_what_to_pass(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no pack at .*gone.parquet; --data must name"):
        read_pack(tmp_path / "gone.parquet", "train")


def test_a_split_without_rows_is_named(tmp_path):
    write_lfw(tmp_path)
    with pytest.raises(ValueError, match=r"lfw.parquet has no rows with split 'test'"):
        read_pack(tmp_path / "lfw.parquet", "test")


def test_an_image_decodes_to_rgb_whatever_its_colours():
    pixels = noise(8)
    assert torch.equal(decode(png(pixels)), torch.from_numpy(pixels))
    grey = decode(png(pixels[..., 0]))
    assert grey.shape == (8, 8, 3)
    assert torch.equal(grey[..., 2], torch.from_numpy(pixels[..., 0]))


def test_landmarks_and_embeddings_are_nan_where_unknown(tmp_path):
    write_ferplus(tmp_path)
    table = read_pack(tmp_path / "ferplus.parquet", "train")
    points, embeddings = landmarks(table), teacher_embeddings(table)
    assert points.shape == (6, 5, 2)
    assert embeddings.shape == (6, 128)
    assert points.dtype == embeddings.dtype == torch.float32
    missing = [False, True, False, False, False, False]
    assert torch.isnan(points).all(2).all(1).tolist() == missing
    assert torch.isnan(embeddings).all(1).tolist() == missing
    wanted = torch.tensor(face_at(0, 0, 48)["landmarks"]).view(5, 2)
    torch.testing.assert_close(points[0], wanted)


def test_points_have_their_shape_even_if_there_are_none():
    assert as_points([], 2).shape == (0, 2, 2)
    assert as_points([[1, 2, 3, 4]], 2).tolist() == [[[1, 2], [3, 4]]]


def test_majority_labels_are_places_in_the_list_of_expressions():
    table = pa.table({"expression": ["contempt", None, "neutral", "bored"]})
    assert majority_labels(table).tolist() == [7, -1, 0, -1]


def test_votes_become_shares_in_the_order_of_the_expressions():
    shares = votes_of([6, 0, 0, 2, 2, 0, 0, 0, 0, 0])
    torch.testing.assert_close(shares, torch.tensor([[0.6, 0, 0, 0.2, 0.2, 0, 0, 0]]))


def test_the_vote_of_a_single_annotator_is_dropped():
    shares = votes_of([6, 1, 0, 2, 1, 0, 0, 0, 0, 0])
    torch.testing.assert_close(shares, torch.tensor([[0.75, 0, 0, 0.25, 0, 0, 0, 0]]))


def test_votes_for_unknown_and_for_no_face_do_not_count():
    shares = votes_of([0, 3, 0, 0, 0, 0, 0, 0, 4, 3], [0, 2, 2, 0, 0, 0, 0, 0, 6, 0])
    assert shares.tolist() == [[0, 1, 0, 0, 0, 0, 0, 0], [0, 0.5, 0.5, 0, 0, 0, 0, 0]]


def test_rows_without_a_vote_left_are_zero():
    shares = votes_of([1] * 8 + [0, 2], [0] * 8 + [5, 5])
    assert shares.shape == (2, 8)
    assert not shares.any()


def test_labels_without_votes_are_certain_and_no_label_is_zero():
    shares = label_distributions(pa.table({"expression": ["happiness", None, "contempt"]}))
    assert shares.argmax(1)[[0, 2]].tolist() == [1, 7]
    assert shares.sum(1).tolist() == [1, 0, 1]
    assert len(EXPRESSIONS) == shares.shape[1]


def test_a_face_in_the_template_is_cropped_unchanged():
    pixels = noise(160)
    table = crop_table((pixels, (FACE + 24).flatten().tolist()))
    crops = aligned_crops(table, "arcface112", 112)
    assert crops.dtype == torch.uint8
    wanted = torch.from_numpy(pixels[24:136, 24:136]).permute(2, 0, 1)
    assert (crops[0].int() - wanted.int()).abs().max() <= 1


def test_a_margin_shows_what_lies_around_the_template():
    pixels = noise(160)
    table = crop_table((pixels, (FACE + 24).flatten().tolist()))
    crops = aligned_crops(table, "arcface112", 112, margin=8)
    assert crops.shape == (1, 3, 128, 128)
    wanted = torch.from_numpy(pixels[16:144, 16:144]).permute(2, 0, 1)
    assert (crops[0].int() - wanted.int()).abs().max() <= 1


def test_grey_crops_have_one_channel():
    grey = np.repeat(noise(160)[..., :1], 3, axis=2)
    table = crop_table((grey, (FACE + 24).flatten().tolist()))
    three, one = (aligned_crops(table, "arcface112", 64, gray=g) for g in (False, True))
    assert one.shape == (1, 1, 64, 64)
    assert torch.equal(one[:, 0], three[:, 0])


def test_a_row_without_landmarks_is_aligned_by_the_mean_of_the_others():
    pixels = [noise(128, seed) for seed in range(3)]
    known = [(FACE + shift).flatten().tolist() for shift in (6, 10)]
    given = crop_table((pixels[0], known[0]), (pixels[1], known[1]), (pixels[2], None))
    mean = (FACE + 8).flatten().tolist()
    crops = aligned_crops(given, "arcface112", 112)
    wanted = aligned_crops(crop_table((pixels[2], mean)), "arcface112", 112)
    assert (crops[2].int() - wanted[0].int()).abs().max() <= 1


def test_many_rows_of_different_sizes_keep_their_order():
    # More rows than are cut at once; each photograph is of one colour.
    rows = []
    for index in range(260):
        side = 20 + index % 7
        pixels = np.full((side, side, 3), index % 256, np.uint8)
        rows.append((pixels, face_at(2, 2, 16)["landmarks"]))
    crops = aligned_crops(crop_table(*rows), "arcface112", 8)
    assert crops[:, :, 4, 4].tolist() == [[index % 256] * 3 for index in range(260)]


def test_a_pack_survives_being_written_and_read(tmp_path):
    pixels = photo_of((2, 2, 4), height=10, width=12).numpy()
    pq.write_table(crop_table((pixels, None)), tmp_path / "a.parquet")
    table = read_pack(tmp_path / "a.parquet")
    assert torch.equal(decode(table["image"][0].as_py()), torch.from_numpy(pixels))
