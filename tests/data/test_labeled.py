"""Labels from folders and tables, and the split into training and validation images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from packs import noise, png, write_csv
from PIL import Image

from facezoo.data.labeled import read_labeled

CLASSES = ("calm", "cross")


def test_the_former_names_still_work():
    from facezoo.data import labeled, labelled

    assert labelled.read_labelled is labeled.read_labeled
    assert labelled.LabelledImages is labeled.LabeledImages


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Sixteen small images of each class in a folder per class."""
    root = tmp_path_factory.mktemp("tree")
    rng = np.random.default_rng(0)
    for word in CLASSES:
        (root / word).mkdir()
        for index in range(16):
            Image.fromarray(noise(16, rng)).save(root / word / f"{index:02d}.png")
    return root


def write_parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def place(root, tree, *folders):
    """Copy the image folders of the classes to several places below ``root``."""
    for folder in folders:
        shutil.copytree(tree, root / folder)
    return root


# --- folders -----------------------------------------------------------------------------------


def test_a_folder_per_class_gives_classes_sorted_by_name(tree):
    data = read_labeled(tree)
    assert data.classes == CLASSES
    assert len(data) == 32
    assert data.files[0] == "calm/00.png"
    assert data.labels.tolist() == [0] * 16 + [1] * 16


@pytest.mark.parametrize(
    "folders",
    [
        ("train", "validation", "test"),
        ("Training", "Valid", "Testing"),
        ("training_set", "val-set", "test_set"),
        ("train", "dev", "eval"),
        ("dataset/train", "dataset/val", "dataset/test"),
    ],
)
def test_folders_of_splits_are_splits(tree, tmp_path, folders):
    data = read_labeled(place(tmp_path, tree, *folders))
    assert data.classes == CLASSES
    assert [len(data.rows(split)) for split in ("train", "val", "test")] == [32, 32, 32]
    assert {data.files[row].split("/")[-3] for row in data.rows("val")} == {
        folders[1].split("/")[-1]
    }


def test_a_folder_next_to_the_splits_is_an_error(tree, tmp_path):
    place(tmp_path, tree, "train", "test", "stray")
    with pytest.raises(ValueError, match="splits next to the folder 'stray'"):
        read_labeled(tmp_path)


def test_classes_that_differ_only_in_case_are_an_error(tree, tmp_path):
    for split, word in (("train", "calm"), ("train", "cross"), ("val", "Calm")):
        shutil.copytree(tree / word.lower(), tmp_path / split / word)
    with pytest.raises(ValueError, match=r"only in upper and lower case .Calm, calm"):
        read_labeled(tmp_path)
    assert read_labeled(tmp_path, classes=["calm", "cross"]).classes == CLASSES
    with pytest.raises(ValueError, match="classes must be a list of names, got the text"):
        read_labeled(tmp_path, classes="calm,cross")


@pytest.mark.parametrize("split", ["", "train/"])
def test_a_class_folder_for_training_without_an_image_is_an_error(tree, tmp_path, split):
    root = place(tmp_path, tree, f"mine/{split}") / "mine"
    for word in ("sad", "glad"):
        (root / split / word).mkdir()
    (root / split / "sad" / "notes.txt").touch()
    with pytest.raises(ValueError, match=f"without an image: {split}glad, {split}sad; add images"):
        read_labeled(root)
    assert len(read_labeled(root, classes=CLASSES)) == 32


def test_other_folders_without_an_image_are_named_in_a_warning(tree, tmp_path):
    place(tmp_path, tree, "data/train", "data/test")
    for folder in ("data/val", "data/test/sad"):
        (tmp_path / folder).mkdir()
    with pytest.warns(match=r"folders without an image: test/sad, val$"):
        assert read_labeled(tmp_path / "data").classes == CLASSES


def test_hidden_folders_and_files_are_ignored(tree, tmp_path):
    root = place(tmp_path, tree, ".mine") / ".mine"
    for name in (".thumbnails/x.png", "calm/.cache/x.png", "calm/.x.png", "__MACOSX/x.png"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(tree / "calm" / "00.png", root / name)
    data = read_labeled(root)
    assert (data.classes, len(data)) == (CLASSES, 32)


@pytest.mark.parametrize("folder", ["", "train/"])
def test_images_in_no_class_folder_are_left_out_with_a_warning(tree, tmp_path, folder):
    root = place(tmp_path, tree, f"mine/{folder}") / "mine"
    shutil.copy(tree / "calm" / "00.png", root / folder / "loose.png")
    with pytest.warns(UserWarning, match=rf"1 images are in no class folder .*{folder}loose\.png"):
        assert len(read_labeled(root)) == 32


def test_images_in_linked_folders_belong_to_their_class(tree, tmp_path):
    for word in CLASSES:
        (tmp_path / "linked" / word).mkdir(parents=True)
        (tmp_path / "linked" / word / "day-1").symlink_to(tree / word)
    data = read_labeled(tmp_path / "linked")
    assert len(data) == 32
    assert data.files[0] == "calm/day-1/00.png"


# --- tables ------------------------------------------------------------------------------------


def test_a_csv_of_files_gives_the_same_as_the_folder(tree):
    data = read_labeled(write_csv(tree / "labels.csv", tree))
    folder = read_labeled(tree)
    assert data.images == folder.images
    assert torch.equal(data.labels, folder.labels)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("file,label\r\ncalm/00.png,calm \r\ncross/00.png,cross\r\n,\r\n\r\n", [0, 1]),
        ("File; Label\ncalm/00.png; calm\ncross/00.png; cross\n", [0, 1]),
        ("image\temotion\ncross/00.png\tcross\ncalm/00.png\tcalm\n", [1, 0]),
    ],
)
def test_a_csv_of_a_spreadsheet_may_have_other_separators_spaces_and_capitals(tree, text, labels):
    path = tree / "sheet.csv"
    path.write_bytes(text.encode("utf-8-sig"))
    data = read_labeled(path)
    assert (data.classes, data.labels.tolist()) == (CLASSES, labels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,label\nä.png,calm\n".encode("cp1252"), "not a CSV file in UTF-8"),
        ("file,label\nä.png,calm\n".encode("utf-16"), "not a CSV file in UTF-8"),
        (b"", "has no column of labels"),
        (b"label\ncalm\n", "has no column of files"),
        (b"file,label\na.png,x\nb.png,y\n", "2 files that do not exist"),
    ],
)
def test_a_csv_that_cannot_be_read_is_named(tmp_path, content, message):
    (tmp_path / "odd.csv").write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"odd.csv.*{message}"):
        read_labeled(tmp_path / "odd.csv")


def test_the_usage_column_of_fer2013_names_the_splits(tree):
    names = ("Training", "PublicTest", "PrivateTest", "Training")
    data = read_labeled(write_csv(tree / "fer.csv", tree, Usage=lambda row: names[row % 4]))
    assert [len(data.rows(split)) for split in ("train", "val", "test")] == [16, 8, 8]


def test_rows_without_a_split_are_for_training_if_the_table_has_validation_rows(tree):
    names = {0: "val", 1: "TEST", 2: "train"}
    data = read_labeled(write_csv(tree / "half.csv", tree, split=lambda r: names.get(r % 4, "")))
    assert [len(data.rows(split)) for split in ("train", "val", "test")] == [16, 8, 8]
    with pytest.raises(ValueError, match="the split 'sometimes'"):
        read_labeled(write_csv(tree / "odd.csv", tree, split=lambda r: "sometimes"))
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        data.rows("dev")


def test_a_parquet_file_keeps_landmarks_and_drops_rows_without_a_label(tmp_path):
    content = png(noise(16, np.random.default_rng(0)))
    path = write_parquet(
        tmp_path / "pack.parquet",
        image=[content] * 9,
        expression=["happy", "sad", None] * 3,
        landmarks=[None, *[[1.0] * 10] * 8],
    )
    data = read_labeled(path)
    assert (data.classes, len(data)) == (("happy", "sad"), 6)
    assert data.landmarks.shape == (6, 5, 2)
    assert torch.isnan(data.landmarks[0]).all()
    only = read_labeled(path, classes=["sad", "happy"])
    assert only.labels.tolist() == [1 - label for label in data.labels.tolist()]


def test_whole_numbers_are_classes_sorted_by_value(tmp_path):
    image = [b"x"] * 4
    path = write_parquet(tmp_path / "p.parquet", image=image, label=[10, 2, 1, None])
    assert read_labeled(path).classes == ("1", "2", "10")
    floats = [10.0, 2.0, 1.0, float("nan")]  # as pandas writes a column with an empty cell
    path = write_parquet(tmp_path / "q.parquet", image=image, label=floats)
    assert read_labeled(path).classes == ("1", "2", "10")
    for classes in ([10, 1], np.array([10, 1]), [10.0, 1.0], ["10", "1"]):
        data = read_labeled(path, classes=classes)
        assert (data.classes, data.labels.tolist()) == (("10", "1"), [0, 1])
    with pytest.raises(ValueError, match=r"has no class '3'; it has 1, 2, 10"):
        read_labeled(path, classes=[1, 3])


def test_the_label_minus_one_means_no_label(tmp_path):
    path = write_parquet(tmp_path / "p.parquet", image=[b"x"] * 3, label=[0, -1, 1])
    with pytest.warns(UserWarning, match="1 rows have the label -1"):
        data = read_labeled(path)
    assert (data.classes, data.labels.tolist()) == (("0", "1"), [0, 1])


def as_dataset(table, **names):
    """Add the metadata that the datasets library writes for ClassLabel columns."""
    features = {name: {"names": list(n), "_type": "ClassLabel"} for name, n in names.items()}
    features["image"] = {"_type": "Image"}
    text = json.dumps({"info": {"features": features}})
    return table.replace_schema_metadata({"huggingface": text})


@pytest.mark.parametrize("column", ["label", "mood"])
def test_class_names_of_the_datasets_library_are_used(tmp_path, column):
    table = pa.table({"image": [b"x"] * 4, column: [2, 0, 1, -1]})
    table = as_dataset(table, **{column: ("neutral", "happy", "angry")})
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.warns(UserWarning, match="label -1"):
        data = read_labeled(tmp_path / "p.parquet", label_column=column)
    assert (data.classes, data.labels.tolist()) == (("neutral", "happy", "angry"), [2, 0, 1])


def test_images_of_the_datasets_library_are_bytes_or_paths(tree, tmp_path):
    place(tmp_path, tree, "tree")
    content = (tree / "calm" / "00.png").read_bytes()
    absolute = str(tmp_path / "tree" / "cross" / "01.png")
    structs = [
        {"bytes": content, "path": "anything.png"},
        {"bytes": None, "path": "tree/cross/00.png"},
        {"bytes": None, "path": absolute},
    ]
    path = write_parquet(tmp_path / "p.parquet", image=structs, label=[0, 1, 1])
    expected = [content, tmp_path / "tree/cross/00.png", Path(absolute)]
    assert read_labeled(path).images == expected


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.binary(), pa.binary_view(), pa.large_binary(), pa.string(), pa.string_view()),
        pa.dictionary(pa.int32(), pa.string()),
    ],
)
def test_an_image_column_may_hold_bytes_or_paths_of_any_arrow_type(tree, tmp_path, kind):
    place(tmp_path, tree, "tree")
    values = [f"tree/{word}/00.png" for word in CLASSES]
    if "binary" in str(kind):
        values = [(tmp_path / name).read_bytes() for name in values]
    path = write_parquet(tmp_path / "p.parquet", image=pa.array(values, kind), label=[0, 1])
    expected = values if "binary" in str(kind) else [tmp_path / name for name in values]
    assert read_labeled(path).images == expected


def test_a_row_without_an_image_is_named(tmp_path):
    (tmp_path / "a.png").touch()
    path = write_parquet(tmp_path / "p.parquet", file=["a.png", None], label=["x", "y"])
    with pytest.raises(ValueError, match=r"p\.parquet, row 1 \(from 0\), has no image: got None"):
        read_labeled(path)


def test_sources_without_labels_are_errors(tree, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_labeled(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="leave out the column 'mood'"):
        read_labeled(tree, label_column="mood")
    with pytest.raises(ValueError, match=r"no column of labels \(mood\)"):
        read_labeled(write_csv(tree / "none.csv", tree), label_column="mood")
    with pytest.raises(ValueError, match="no class 'glad'"):
        read_labeled(tree, classes=["glad", "calm"])
    shutil.copytree(tree / "calm", tmp_path / "one")
    with pytest.raises(ValueError, match="two classes or more"):
        read_labeled(tmp_path)
    (tmp_path / "labels.txt").touch()
    with pytest.raises(ValueError, match=r"folder, \.csv or \.parquet"):
        read_labeled(tmp_path / "labels.txt")


# --- the automatic split -----------------------------------------------------------------------


def many(tmp_path, counts, identities=None, **columns):
    """Read a table with a number of images of each class."""
    labels = [word for word, count in counts.items() for _ in range(count)]
    files = {"filename": [f"{index}.png" for index in range(len(labels))]}
    columns |= {} if identities is None else {"identity": identities}
    path = tmp_path / "many.parquet"
    return read_labeled(
        write_parquet(path, image=[b"x"] * len(labels), label=labels, **files, **columns)
    )


def test_a_fifth_of_every_class_validates(tmp_path):
    data = many(tmp_path, {"rare": 10, "common": 200, "single": 1})
    train, val = data.rows("train"), data.rows("val")
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(211))
    counts = torch.bincount(data.labels[val], minlength=3).tolist()
    assert dict(zip(data.classes, counts, strict=True)) == {"rare": 2, "common": 40, "single": 0}
    assert torch.equal(data.rows("train", "val"), torch.arange(211))
    assert data.rows("test").tolist() == []


def test_most_images_keep_their_split_when_others_are_added(tmp_path):
    few, more = (many(tmp_path, {"a": 200, "b": count}) for count in (200, 220))
    before, after = ({d.files[r] for r in d.rows("val")} for d in (few, more))
    assert len(before & after) > 0.9 * len(before)


def test_an_identity_is_in_one_split_and_the_classes_keep_their_shares(tmp_path):
    rng = np.random.default_rng(0)
    identities = [f"p{index}" for index in rng.integers(0, 40, 400)]
    data = many(tmp_path, {"a": 100, "b": 300}, identities)
    train, val = ({data.identities[r] for r in data.rows(s)} for s in ("train", "val"))
    assert train.isdisjoint(val)
    counts = torch.bincount(data.labels[data.rows("val")]).tolist()
    assert counts == pytest.approx([20, 60], abs=6)


def test_numbers_are_identities_and_nan_is_not_one(tmp_path):
    data = many(tmp_path, {"a": 20, "b": 20}, [number // 4 for number in range(40)])
    assert data.identities[:5] == ["0", "0", "0", "0", "1"]
    missing = [float("nan")] * 40
    data = many(tmp_path, {"a": 20, "b": 20}, missing, split=missing)
    assert set(data.identities) == {""}
    assert len(data.rows("val")) == 8
