"""Readers of official layouts, on tiny trees of drawn images, and crops of what they read."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from packs import FACE, photo_of, use_square_detector
from PIL import Image

from facezoo.data.affectnet import COLUMNS, read_affectnet
from facezoo.data.crops import load_crops
from facezoo.data.expressions import BASIC, in_landmark_order
from facezoo.data.ferplus import majority_of_votes, read_ferplus
from facezoo.data.official import (
    SFEW_LABELS,
    read_ck_plus,
    read_official,
    read_raf_db,
    read_sfew,
)
from facezoo.errors import ImageError, NoFaceError, UnknownNameError
from facezoo.preprocess import pipeline
from facezoo.preprocess.templates import template_points
from facezoo.results import EXPRESSIONS

CLOSE = template_points("arcface112", 60).float() + torch.tensor([30.0, 50.0])
"""Where the stand-in for the detector sees the landmarks of the square of ``draw``."""


def draw(path, *squares, side=120):
    """A black picture with white squares (x0, y0, side)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo_of(*squares, height=side, width=side).numpy()).save(path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def words(data):
    return [EXPRESSIONS[label] if label >= 0 else None for label in data.labels.tolist()]


def certain(data):
    """Whether every distribution is all on the label."""
    hot = torch.eye(8)[data.labels.clamp(min=0)] * (data.labels >= 0)[:, None]
    return torch.equal(data.distributions, hot)


# --- RAF-DB ------------------------------------------------------------------------------------


def raf_db(root, *, landmarks=True, labels="1234567"):
    listed = []
    for number, label in enumerate(labels, 1):
        stem = f"test_{number:04}" if number > 5 else f"train_{number:05}"
        listed.append(f"{stem}.jpg {label}")
        draw(root / "Image" / "original" / f"{stem}.jpg", (30, 50, 60))
        draw(root / "Image" / "aligned" / f"{stem}_aligned.jpg", side=100)
        # The left eye first, as a set may have it.
        points = CLOSE[[1, 0, 2, 4, 3]] + number
        lines = [f"{x:.3f}\t{y:.3f}" for x, y in points.tolist()]
        if landmarks:
            write(
                root / "Annotation" / "manual" / f"{stem}_manu_attri.txt",
                "\n".join([*lines, "1", "0", "2", ""]),
            )
    write(root / "EmoLabel" / "list_patition_label.txt", "\n".join([*listed, ""]))
    return root


def test_raf_db_gives_files_labels_splits_and_landmarks_in_the_projects_order(tmp_path):
    data = read_official("raf-db", raf_db(tmp_path))
    assert words(data) == [
        "surprise",
        "fear",
        "disgust",
        "happiness",
        "sadness",
        "anger",
        "neutral",
    ]
    assert data.splits == ["train"] * 5 + ["test"] * 2
    assert [file.name for file in data.files][:1] == ["train_00001.jpg"]
    assert all(file.is_file() for file in data.files)
    assert data.labels.dtype == torch.int64
    assert certain(data)
    assert not data.cropped
    assert data.identities == [""] * 7
    torch.testing.assert_close(data.landmarks[1], CLOSE + 2, atol=1e-3, rtol=0)


def test_raf_db_is_read_from_the_folder_above_basic_and_without_annotations(tmp_path):
    raf_db(tmp_path / "basic", landmarks=False)
    data = read_raf_db(tmp_path)
    assert len(data) == 7
    assert data.landmarks is None


def test_aligned_images_of_raf_db_have_no_landmarks_but_are_crops(tmp_path):
    data = read_official("raf-db-aligned", raf_db(tmp_path))
    assert data.files[0].name == "train_00001_aligned.jpg"
    assert data.landmarks is None
    assert data.cropped


def test_a_label_of_the_compound_subset_raises_an_error_with_its_line(tmp_path):
    with pytest.raises(ValueError, match=r"line 2 of .*label.txt has the label '11'; expected 1,"):
        read_raf_db(raf_db(tmp_path, labels=["1", "11"]))


def test_a_line_that_names_no_split_raises_an_error(tmp_path):
    raf_db(tmp_path)
    write(tmp_path / "EmoLabel" / "list_patition_label.txt", "img_1.jpg 3\n")
    with pytest.raises(ValueError, match=r"line 1 of .* must be like 'train_00001.jpg 5', got"):
        read_raf_db(tmp_path)


def test_images_that_are_listed_but_not_there_are_counted_and_the_first_is_named(tmp_path):
    raf_db(tmp_path)
    for name in ("train_00002.jpg", "test_0006.jpg"):
        (tmp_path / "Image" / "original" / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"7 files, and 2 do not exist.*train_00002.jpg;"):
        read_raf_db(tmp_path)


def test_the_error_for_a_set_of_crops_suggests_the_aligned_set(tmp_path):
    raf_db(tmp_path)
    (tmp_path / "Image" / "original").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"no Image/original, .* or raf-db-aligned"):
        read_raf_db(tmp_path)


def test_broken_landmarks_are_named(tmp_path):
    raf_db(tmp_path)
    write(tmp_path / "Annotation" / "manual" / "train_00003_manu_attri.txt", "1 2\n3 4\n")
    with pytest.raises(ValueError, match=r"train_00003_manu_attri.txt must begin with five lines"):
        read_raf_db(tmp_path)


# --- FER+ --------------------------------------------------------------------------------------

VOTES = {
    "FER2013Train": [
        ("fer0000000.png", [0, 9, 1, 0, 0, 0, 0, 0, 0, 0]),
        ("fer0000001.png", [3, 0, 0, 3, 3, 0, 0, 0, 1, 0]),
        ("fer0000002.png", [1, 0, 0, 0, 0, 0, 0, 0, 9, 0]),
    ],
    "FER2013Valid": [("fer0028638.png", [4, 0, 0, 0, 0, 0, 0, 6, 0, 0])],
    "FER2013Test": [("fer0032220.png", [0, 0, 0, 0, 0, 0, 10, 0, 0, 0])],
}
USAGES = {"FER2013Train": "Training", "FER2013Valid": "PublicTest", "FER2013Test": "PrivateTest"}


def ferplus(root, *, whole=True, parts=False, box=False):
    for folder, rows in VOTES.items():
        for name, _ in rows:
            draw(root / folder / name, side=48)
        if parts:
            between = ["(0, 0, 48, 48)"] if box else []
            write_rows(root / folder / "label.csv", [[n, *between, *v] for n, v in rows])
    if whole:
        head = ["Usage", "Image name", *EXPRESSIONS, "unknown", "NF"]
        rows = [[USAGES[f], n, *v] for f, rows in VOTES.items() for n, v in rows]
        # A row without an image, and an earlier row for an image that comes again.
        extra = [["Training", "", *[0] * 9, 10], ["Training", "fer0000000.png", 10, *[0] * 9]]
        write_rows(root / "fer2013new.csv", [head, *extra, *rows])
    return root


@pytest.mark.parametrize(
    "files",
    [
        {"whole": True},
        {"whole": False, "parts": True},
        {"whole": False, "parts": True, "box": True},
        {"whole": True, "parts": True},
    ],
)
def test_ferplus_gives_majority_labels_and_vote_shares_from_either_file(tmp_path, files):
    data = read_official("ferplus", ferplus(tmp_path, **files))
    assert words(data) == ["happiness", None, None, "contempt", "fear"]
    assert data.splits == ["train"] * 3 + ["val", "test"]
    # A single vote is an outlier; unknown does not count.
    torch.testing.assert_close(data.distributions[0], torch.eye(8)[1])
    torch.testing.assert_close(data.distributions[1, [0, 3, 4]], torch.full((3,), 1 / 3))
    assert not data.distributions[2].any()
    torch.testing.assert_close(data.distributions[3, [0, 7]], torch.tensor([0.4, 0.6]))
    assert data.cropped
    assert data.files[3] == tmp_path / "FER2013Valid" / "fer0028638.png"


def test_the_folder_data_of_the_ferplus_repository_is_found(tmp_path):
    ferplus(tmp_path / "data", whole=False, parts=True)
    assert len(read_ferplus(tmp_path)) == 5


def test_differing_label_files_raise_an_error_with_the_number(tmp_path):
    ferplus(tmp_path, parts=True)
    write_rows(
        tmp_path / "FER2013Test" / "label.csv", [["fer0032220.png", 10, 0, 0, 0, 0, 0, 0, 0, 0, 0]]
    )
    with pytest.raises(ValueError, match=r"the votes of 1 of 5 images, the first fer0032220.png"):
        read_ferplus(tmp_path)


def test_ferplus_without_votes_raises_an_error_with_their_source(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither fer2013new.csv nor .*microsoft/FERPlus"):
        read_ferplus(ferplus(tmp_path, whole=False))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["Training", "a.png", 1, 2], "must be a usage, an image name and ten votes"),
        (["Trained", "a.png", *[1] * 10], "must be a usage, an image name and ten votes"),
        (["Training", "a.png", "many", *[1] * 9], "must have whole numbers of votes"),
    ],
)
def test_malformed_votes_raise_an_error_with_their_line(tmp_path, row, message):
    ferplus(tmp_path)
    write_rows(tmp_path / "fer2013new.csv", [row])
    with pytest.raises(ValueError, match=rf"line 1 of .*fer2013new.csv {message}"):
        read_ferplus(tmp_path)


def test_the_majority_needs_more_than_half_of_the_votes_that_are_left():
    votes = torch.tensor(
        [
            [5, 4, 0, 0, 0, 0, 0, 0, 1, 0],  # 5 of 9
            [5, 5, 0, 0, 0, 0, 0, 0, 0, 0],
            [4, 1, 1, 1, 1, 0, 0, 0, 2, 0],  # 4 of 6
            [0, 0, 0, 0, 0, 0, 0, 3, 7, 0],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 10],
            [1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        ]
    )
    assert majority_of_votes(votes).tolist() == [0, -1, 0, -1, -1, -1]


# --- AffectNet ---------------------------------------------------------------------------------


def points_68():
    """68 points of which the needed ones stand where ``CLOSE`` has them."""
    points = np.zeros((68, 2))
    points[36:42], points[42:48] = CLOSE[0], CLOSE[1]
    points[36] += 2
    points[39] -= 2
    points[30], points[48], points[54] = CLOSE[2], CLOSE[3], CLOSE[4]
    return ";".join(f"{value:.4f}" for value in points.flatten())


def affectnet(root, labels=range(11), *, lists="", images="Manually_Annotated_Images", header=True):
    rows = {"training.csv": [], "validation.csv": []}
    for number, label in enumerate(labels):
        name = f"{number % 3}/{number:03}.jpg"
        draw(root / images / name, (30, 50, 60))
        known = label != 10
        where = [30, 50, 60, 60, points_68()] if known else [-1, -1, -1, -1, "null"]
        file = "validation.csv" if number % 4 == 3 else "training.csv"
        rows[file].append([name, *where, label, -2, -2])
    for file, mine in rows.items():
        write_rows(root / lists / file, [COLUMNS, *mine] if header else mine)
    return root


@pytest.mark.parametrize(
    "places",
    [
        {},
        {"header": False},
        {
            "lists": "Manually_Annotated_file_lists",
            "images": "Manually_Annotated/Manually_Annotated_Images",
        },
    ],
)
def test_the_lists_of_affectnet_give_labels_boxes_and_five_landmarks(tmp_path, places):
    data = read_official("affectnet", affectnet(tmp_path, **places))
    assert data.splits == ["train"] * 9 + ["val"] * 2
    order = [0, 1, 2, 4, 5, 6, 8, 9, 10, 3, 7]
    expected = ["neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger"]
    expected += ["contempt", None, None, None]
    assert words(data) == [expected[label] for label in order]
    assert certain(data)
    torch.testing.assert_close(data.landmarks[4], CLOSE, atol=1e-3, rtol=0)
    assert data.boxes[0].tolist() == [30, 50, 90, 110]
    unknown = order.index(10)
    assert data.boxes[unknown].isnan().all()
    assert data.landmarks[unknown].isnan().all()
    assert not data.landmarks[:unknown].isnan().any()


def test_the_papers_seven_classes_of_affectnet_leave_contempt_out(tmp_path):
    data = read_affectnet(affectnet(tmp_path))
    assert len(data.rows()) == 8
    assert [words(data)[row] for row in data.rows(classes=BASIC)].count("contempt") == 0
    assert data.rows("val").tolist() == [9, 10]
    assert data.rows("val", BASIC).tolist() == [9]


def folders(root, labels, split="train_set", dtype="<U2"):
    for number, label in enumerate(labels):
        draw(root / split / "images" / f"{number}.jpg")
        annotations = root / split / "annotations"
        annotations.mkdir(parents=True, exist_ok=True)
        np.save(annotations / f"{number}_exp.npy", np.array(label).astype(dtype))
        np.save(annotations / f"{number}_val.npy", np.array(0.5))


def test_the_folders_of_affectnet_give_labels_whether_they_are_words_or_numbers(tmp_path):
    folders(tmp_path, [0, 3, 7])
    folders(tmp_path, [6], "val_set", dtype=np.int64)
    data = read_official("affectnet", tmp_path)
    assert words(data) == ["neutral", "surprise", "contempt", "anger"]
    assert data.splits == ["train"] * 3 + ["val"]
    assert data.files[1] == tmp_path / "train_set" / "images" / "1.jpg"
    assert data.landmarks is None


def test_images_of_affectnet_without_a_label_file_raise_an_error(tmp_path):
    folders(tmp_path, [0, 3])
    folders(tmp_path, [6], "val_set")
    (tmp_path / "train_set" / "annotations" / "1_exp.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 images of .* have no label .*the first 1.jpg"):
        read_affectnet(tmp_path)


def test_both_releases_of_affectnet_in_one_folder_raise_an_error(tmp_path):
    affectnet(tmp_path)
    folders(tmp_path, [0])
    with pytest.raises(ValueError, match=r"training.csv and .*annotations exist, and only one"):
        read_affectnet(tmp_path)


@pytest.mark.parametrize("label", [11, "happy", 1.5])
def test_an_unknown_label_of_affectnet_raises_an_error(tmp_path, label):
    with pytest.raises(ValueError, match=r"line 2 of .*training.csv has the label '.*'; expected"):
        read_affectnet(affectnet(tmp_path, [label]))


def test_a_list_of_affectnet_with_other_columns_raises_an_error(tmp_path):
    affectnet(tmp_path)
    write_rows(tmp_path / "validation.csv", [["image", "label"]])
    with pytest.raises(
        ValueError, match=r"line 1 of .*validation.csv must have the columns subDir"
    ):
        read_affectnet(tmp_path)


# --- SFEW --------------------------------------------------------------------------------------


def sfew(root, train="Train", val="Val"):
    for folder, count in ((train, 2), (val, 1)):
        for label in SFEW_LABELS:
            for number in range(count):
                draw(root / folder / label / f"Film_{number:04}.png", side=40)
    return root


@pytest.mark.parametrize(
    ("name", "train", "val"),
    [
        ("sfew", "Train", "Val"),
        ("sfew-aligned", "Train_Aligned_Faces", "Val_Aligned_Faces_new"),
        ("sfew-aligned", "Train/Train_Aligned_Faces", "Val/Val_Aligned_Faces"),
    ],
)
def test_sfew_takes_labels_from_folders(tmp_path, name, train, val):
    data = read_official(name, sfew(tmp_path, train, val))
    assert data.splits == ["train"] * 14 + ["val"] * 7
    assert words(data)[::2][:7] == [SFEW_LABELS[label] for label in SFEW_LABELS]
    assert certain(data)
    assert data.cropped == (name == "sfew-aligned")


def test_stills_and_aligned_faces_of_sfew_may_be_in_one_folder(tmp_path):
    sfew(tmp_path)
    sfew(tmp_path, "Train/Train_Aligned_Faces", "Val/Val_Aligned_Faces")
    assert read_sfew(tmp_path).files[0].parent == tmp_path / "Train" / "Angry"
    assert "Aligned" in str(read_sfew(tmp_path, aligned=True).files[0])


def test_two_folders_of_aligned_faces_raise_an_error(tmp_path):
    sfew(tmp_path, "Train_Aligned_Faces", "Val_Aligned_Faces")
    sfew(tmp_path, "Train/Train_Aligned_Faces", "Val_Aligned_Faces_new")
    with pytest.raises(ValueError, match="exist, and only one is expected"):
        read_sfew(tmp_path, aligned=True)


def test_folders_of_another_expression_or_none_raise_an_error(tmp_path):
    sfew(tmp_path)
    (tmp_path / "Val" / "Bored").mkdir()
    with pytest.raises(ValueError, match=r"Val has folders that are not expressions: Bored"):
        read_sfew(tmp_path)
    (tmp_path / "Val" / "Fear").rename(tmp_path / "Val" / "Bored" / "Fear")
    with pytest.raises(FileNotFoundError, match="Val has no folder Fear"):
        read_sfew(tmp_path)


# --- CK+ ---------------------------------------------------------------------------------------


def ck_plus(root, people=23, frames=6):
    """Two sequences of each person, of which one has a label: 1 to 7 in turn."""
    for number in range(people):
        person = f"S{number + 5:03}"
        for sequence in ("001", "002"):
            folder = Path(person) / sequence
            stems = [f"{person}_{sequence}_{frame:08}" for frame in range(1, frames + 1)]
            for stem in stems:
                draw(root / "cohn-kanade-images" / folder / f"{stem}.png", side=8)
            (root / "Emotion" / folder).mkdir(parents=True)
            if sequence == "002":
                label = root / "Emotion" / folder / f"{stems[-1]}_emotion.txt"
                write(label, f"   {number % 7 + 1:.7e}\n")
    return root


def test_ck_plus_gives_three_peak_frames_and_a_neutral_one_of_each_labelled_sequence(tmp_path):
    data = read_official("ck+", ck_plus(tmp_path))
    assert len(data) == 4 * 23
    assert words(data)[:8] == ["neutral", *["anger"] * 3, "neutral", *["contempt"] * 3]
    numbers = [int(file.stem[-8:]) for file in data.files]
    assert numbers == [1, 4, 5, 6] * 23
    assert {file.parent.name for file in data.files} == {"002"}
    assert len(data.rows(classes=EXPRESSIONS[1:])) == 3 * 23
    assert data.splits == [""] * len(data)
    assert certain(data)


def affectnet_folders(root):
    folders(root, [0, 1, 2])
    folders(root, [3, 4], "val_set")


def hide_beside(root):
    """What some systems leave in a folder and beside every file."""
    for path in [path for path in root.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07\xff")
        (path.parent / ".DS_Store").write_bytes(b"\x00")


@pytest.mark.parametrize("name", ["ck+", "sfew", "affectnet"])
def test_hidden_files_are_not_part_of_a_data_set(name, tmp_path):
    writers = {"ck+": ck_plus, "sfew": sfew, "affectnet": affectnet_folders}
    writers[name](tmp_path)
    files = read_official(name, tmp_path).files
    hide_beside(tmp_path)
    assert read_official(name, tmp_path).files == files


def test_no_identity_of_ck_plus_is_in_two_folds_and_the_folds_are_even(tmp_path):
    data = read_ck_plus(ck_plus(tmp_path))
    folds = {}
    for person, fold in zip(data.identities, data.fold.tolist(), strict=True):
        folds.setdefault(person, set()).add(fold)
    assert len(folds) == 23
    assert all(len(where) == 1 for where in folds.values())
    assert folds["S005"] == folds["S015"] == folds["S025"] == {0}
    sizes = torch.bincount(data.fold, minlength=10)
    assert sizes.tolist() == [12, 12, 12, *[8] * 7]


def test_a_label_about_a_frame_that_is_not_there_is_named(tmp_path):
    ck_plus(tmp_path, 1)
    (tmp_path / "cohn-kanade-images" / "S005" / "002" / "S005_002_00000006.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"names .*S005_002_00000006.png, which does not"):
        read_ck_plus(tmp_path)


def test_a_sequence_too_short_for_neutral_and_peak_raises_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"has 3 frames, too few"):
        read_ck_plus(ck_plus(tmp_path, 1, frames=3))


def test_ck_plus_without_any_label_raises_an_error(tmp_path):
    ck_plus(tmp_path, 1)
    next((tmp_path / "Emotion").glob("*/*/*.txt")).unlink()
    with pytest.raises(FileNotFoundError, match="has no file like S005/001/"):
        read_ck_plus(tmp_path)


# --- all of them -------------------------------------------------------------------------------


def test_an_unknown_data_set_raises_an_error_with_near_matches(tmp_path):
    with pytest.raises(UnknownNameError, match=r"no data set named 'RAFDB'; did you mean raf-db"):
        read_official("RAFDB", tmp_path)


def test_the_error_for_a_missing_root_states_that_nothing_is_downloaded(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone; facezoo does not download ck\+"):
        read_official("ck+", tmp_path / "gone")


@pytest.mark.parametrize(
    ("plant", "name", "looks"),
    [
        (ck_plus, "raf-db", r"ck\+"),
        (raf_db, "ferplus", "raf-db"),
        (ferplus, "affectnet", "ferplus"),
        (affectnet, "sfew", "affectnet"),
        (sfew, "ck+", "sfew"),
    ],
)
def test_the_folder_of_another_set_is_recognised(tmp_path, plant, name, looks):
    with pytest.raises(FileNotFoundError, match=f"needs; the folder looks like {looks}"):
        read_official(name, plant(tmp_path))


def test_splits_and_classes_that_do_not_exist_raise_an_error(tmp_path):
    data = read_sfew(sfew(tmp_path))
    with pytest.raises(ValueError, match="sfew has no split 'test'; it has train, val"):
        data.rows("test")
    with pytest.raises(ValueError, match="'joy' is not among neutral"):
        data.rows(classes=["joy"])


def test_swapped_eyes_or_mouth_corners_are_put_in_order_even_in_a_rolled_face():
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    face = FACE @ turn.T
    swapped = torch.stack([face, face[[1, 0, 2, 3, 4]], face[[1, 0, 2, 4, 3]]])
    assert torch.equal(in_landmark_order(swapped), face.expand(3, 5, 2))


# --- crops -------------------------------------------------------------------------------------


@pytest.fixture
def squares(monkeypatch):
    """White squares are faces."""
    use_square_detector(monkeypatch)


def stills(root, *pictures):
    """SFEW whose stills of anger in Train are these pictures; the others are black."""
    sfew(root)
    for number, picture in enumerate(pictures):
        draw(root / "Train" / "Angry" / f"Film_{number:04}.png", *picture)
    return read_sfew(root)


def test_faces_are_found_and_aligned_to_the_template_with_a_margin(tmp_path, squares):
    data = stills(tmp_path, [(30, 50, 60)], [(10, 10, 40)])
    crops = load_crops(data, torch.tensor([1, 0]), size=56, margin=4, batch_size=1)
    assert crops.images.shape == (2, 3, 64, 64)
    assert crops.images.dtype == torch.uint8
    assert crops.rows.tolist() == [1, 0]
    wanted = (template_points("arcface112", 56) + 4).float().expand(2, 5, 2)
    torch.testing.assert_close(crops.landmarks, wanted, atol=0.05, rtol=0)
    # The square fills the template, and around it the picture is black.
    assert crops.images[:, :, 8:56, 8:56].float().mean() > 250
    assert crops.images[:, :, :2].float().mean() < 5
    assert crops.yaw_deg.abs().max() < 3


def test_images_without_a_face_are_left_out_with_a_warning(tmp_path, squares):
    data = stills(tmp_path, [(30, 50, 60)])
    with pytest.warns(UserWarning, match=r"no face was found in 2 images of sfew, .*Film_0001.png"):
        crops = load_crops(data, torch.tensor([0, 1, 2]), size=32)
    assert crops.rows.tolist() == [0]
    assert len(crops.images) == len(crops.yaw_deg) == 1


def test_landmarks_of_the_data_set_are_used_and_nothing_is_detected(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "load_detector", lambda device: pytest.fail("detected"))
    data = read_raf_db(raf_db(tmp_path))
    crops = load_crops(data, data.rows("test"), size=112)
    assert crops.rows.tolist() == [5, 6]
    # The hand-set points of image n stand n pixels off the square's.
    corner = crops.images[:, 0, :8, :8].float().mean((1, 2))
    assert corner.tolist() == pytest.approx([255, 255], abs=12)
    wanted = template_points("arcface112", 112).float().expand(2, 5, 2)
    torch.testing.assert_close(crops.landmarks, wanted, atol=0.05, rtol=0)


def test_a_crop_without_a_face_is_aligned_as_the_others_of_its_set(tmp_path, squares):
    ferplus(tmp_path)
    for number in range(2):
        draw(tmp_path / "FER2013Train" / f"fer000000{number}.png", (6, 8, 30), side=48)
    # Not a face, but a picture of the same frame.
    pixels = np.zeros((48, 48, 3), np.uint8)
    pixels[8:38, 6:36] = 100
    Image.fromarray(pixels).save(tmp_path / "FER2013Train" / "fer0000002.png")
    data = read_ferplus(tmp_path)
    crops = load_crops(data, torch.tensor([0, 1, 2]), size=30)
    assert crops.rows.tolist() == [0, 1, 2]
    assert crops.landmarks.isnan().flatten(1).any(1).tolist() == [False, False, True]
    assert crops.yaw_deg.isnan().tolist() == [False, False, True]
    assert crops.images[2].float().mean() == pytest.approx(100, abs=5)


def test_crops_without_any_face_are_taken_whole_by_the_real_detector(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (100, 100, 3), np.uint8)
    raf_db(tmp_path, labels="4")
    Image.fromarray(pixels).save(tmp_path / "Image" / "aligned" / "train_00001_aligned.jpg")
    data = read_official("raf-db-aligned", tmp_path)
    crops = load_crops(data, size=100)
    assert crops.landmarks.isnan().all()
    with Image.open(data.files[0]) as picture:
        whole = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert (crops.images[0].int() - whole.int()).abs().max() <= 1


def test_no_face_at_all_is_an_error(tmp_path, squares):
    data = stills(tmp_path)
    with pytest.raises(NoFaceError, match="no face was found in any of 2 images of sfew"):
        load_crops(data, torch.tensor([0, 1]))


def test_the_error_names_a_file_that_is_not_an_image(tmp_path, squares):
    data = stills(tmp_path, [(30, 50, 60)])
    data.files[1].write_text("not a picture")
    with pytest.raises(ImageError, match=r"Film_0001.png.* is empty, or not an image"):
        load_crops(data, torch.tensor([0, 1]))
