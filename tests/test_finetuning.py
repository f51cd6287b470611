"""Fine-tuning: labels from anywhere, frozen parts, layer-wise rates, a folder that loads."""

import contextlib
import csv
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from packs import noise, png
from PIL import Image
from two_processes import launch

import facezoo
from facezoo.cli.main import main
from facezoo.data.labelled import read_labelled
from facezoo.errors import ImageError
from facezoo.finetuning import Finetuning, finetune, fit, loop
from facezoo.finetuning.loop import Examples
from facezoo.models.ipd_fer import IPDFER
from facezoo.training.optim import layer_groups

PORTRAITS = sorted((Path(__file__).parent.parent / "examples" / "portraits").glob("*.jpg"))
BACKBONE = "test_resnet.r160_in1k"
WORDS = ("calm", "cross")
QUICK = Finetuning(epochs=3, batch_size=8, rate=0.02)


def paint(side, bright, seed):
    """A noisy crop, bright above or below: two classes that a network can tell."""
    import numpy as np

    pixels = noise(side, np.random.default_rng(seed)) // 4
    half = slice(0, side // 2) if bright else slice(side // 2, side)
    pixels[half] += 150
    return pixels


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Sixteen crops of each class in a folder per class."""
    root = tmp_path_factory.mktemp("tree")
    for number, word in enumerate(WORDS):
        (root / word).mkdir()
        for index in range(16):
            pixels = paint(112, number, seed=100 * number + index)
            Image.fromarray(pixels).save(root / word / f"{index:02d}.png")
    return root


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small checkpoint in a folder."""
    torch.manual_seed(0)
    model = IPDFER(BACKBONE, 16, pose_backbone=None, decoder_size=None)
    return str(model.save_pretrained(tmp_path_factory.mktemp("base")))


def small():
    torch.manual_seed(0)
    return IPDFER(BACKBONE, 16, num_classes=2, pose_backbone=None, decoder_size=None)


def examples(count=32):
    crops = [torch.from_numpy(paint(112, i % 2, i)).permute(2, 0, 1) for i in range(count)]
    return Examples(torch.stack(crops), torch.arange(count) % 2, margin=0)


# --- labels ------------------------------------------------------------------------------------


def test_a_folder_per_class_gives_classes_in_the_order_of_their_names(tree):
    data = read_labelled(tree)
    assert data.classes == WORDS
    assert len(data) == 32
    assert data.files[0] == "calm/00.png"
    assert data.labels.tolist() == [0] * 16 + [1] * 16


def test_a_column_of_labels_is_refused_for_folders_whose_names_are_the_labels(tree):
    with pytest.raises(ValueError, match="a folder has no columns"):
        read_labelled(tree, label_column="mood")


def test_without_splits_some_photographs_validate_and_none_is_on_both_sides(tree):
    data = read_labelled(tree)
    train, val = data.rows("train").tolist(), data.rows("val").tolist()
    assert sorted(train + val) == list(range(32))
    assert 0 < len(val) < 16
    assert data.rows("test").tolist() == []


def test_folders_of_splits_are_splits(tree, tmp_path):
    for split in ("train", "validation", "test"):
        shutil.copytree(tree, tmp_path / split)
    data = read_labelled(tmp_path)
    assert sorted(set(data.splits)) == ["test", "train", "val"]
    assert len(data.rows("val")) == 32
    (tmp_path / "stray").mkdir()
    with pytest.raises(ValueError, match="'stray' beside"):
        read_labelled(tmp_path)


def write_csv(path, tree, **columns):
    rows = [
        {"file": str(file.relative_to(path.parent)), "label": file.parent.name}
        for file in sorted(tree.rglob("*.png"))
    ]
    for name, value in columns.items():
        for number, row in enumerate(rows):
            row[name] = value(number)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_csv_of_files_gives_the_same_as_the_folder(tree):
    data = read_labelled(write_csv(tree / "labels.csv", tree))
    folder = read_labelled(tree)
    assert data.images == folder.images
    assert torch.equal(data.labels, folder.labels)


def test_a_csv_of_a_spreadsheet_may_have_empty_rows_and_spaces(tree):
    rows = ["file,label", "calm/00.png,calm ", "cross/00.png,cross", "calm/01.png,calm", ",", ""]
    path = tree / "sheet.csv"
    path.write_bytes("\r\n".join(rows).encode("utf-8-sig"))
    data = read_labelled(path)
    assert (data.classes, data.labels.tolist()) == (WORDS, [0, 1, 0])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("file,label\nä.png,calm\n".encode("cp1252"), "not a CSV file in UTF-8"),
        ("file,label\nä.png,calm\n".encode("utf-16"), "not a CSV file in UTF-8"),
        (b"", "has no column of labels"),
    ],
)
def test_a_csv_that_cannot_be_read_is_named(tmp_path, content, said):
    (tmp_path / "odd.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"odd.csv.*{said}"):
        read_labelled(tmp_path / "odd.csv")


def test_persons_are_on_one_side_each(tree):
    path = write_csv(tree / "persons.csv", tree, person=lambda row: f"p{row % 8}")
    data = read_labelled(path)
    sides = {split: {data.persons[r] for r in data.rows(split)} for split in ("train", "val")}
    assert not sides["train"] & sides["val"]
    assert len(data.rows("train")) + len(data.rows("val")) == 32


def test_numbers_of_persons_are_persons_and_those_that_are_none_are_not(tmp_path):
    count = 40
    table = {"image": [b"x"] * count, "label": [*WORDS] * (count // 2)}
    persons = [number // 4 for number in range(count)]
    pq.write_table(pa.table({**table, "identity": persons}), tmp_path / "whole.parquet")
    data = read_labelled(tmp_path / "whole.parquet")
    assert data.persons[:5] == ["0", "0", "0", "0", "1"]
    missing = [float("nan")] * count
    pq.write_table(
        pa.table({**table, "identity": missing, "split": missing}), tmp_path / "none.parquet"
    )
    data = read_labelled(tmp_path / "none.parquet")
    assert set(data.persons) == {""}
    assert 0 < len(data.rows("val")) < count / 2


def test_a_parquet_of_bytes_keeps_landmarks_and_drops_rows_without_a_label(tmp_path):
    import numpy as np

    rng = np.random.default_rng(0)
    rows = [
        {
            "image": png(noise(40, rng)),
            "expression": ("happy", "sad", None)[i % 3],
            "split": ("train", "val")[i % 2],
            "landmarks": [1.0] * 10 if i else None,
        }
        for i in range(9)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pack.parquet")
    data = read_labelled(tmp_path / "pack.parquet")
    assert data.classes == ("happy", "sad")
    assert len(data) == 6
    assert data.landmarks.shape == (6, 5, 2)
    assert torch.isnan(data.landmarks[0]).all()
    only = read_labelled(tmp_path / "pack.parquet", classes=["sad", "happy"])
    assert only.labels.tolist() == [1 - label for label in data.labels.tolist()]


def test_rows_without_a_split_beside_validation_rows_are_trained_on(tree):
    words = {0: "val", 1: "test", 2: "train"}
    data = read_labelled(write_csv(tree / "half.csv", tree, split=lambda r: words.get(r % 4, "")))
    assert [len(data.rows(split)) for split in ("train", "val", "test")] == [16, 8, 8]


def test_hidden_folders_and_files_are_passed_over(tree, tmp_path):
    root = tmp_path / ".mine"
    shutil.copytree(tree, root)
    for name in (".thumbnails/x.png", "calm/.cache/x.png", "calm/.x.png"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(tree / "calm" / "00.png", root / name)
    data = read_labelled(root)
    assert (data.classes, len(data)) == (WORDS, 32)
    assert not [name for name in data.files if "x.png" in name]


@pytest.mark.parametrize("place", ["", "train/"])
def test_photographs_in_no_folder_of_a_class_are_left_out_with_a_warning(tree, tmp_path, place):
    root = tmp_path / "mine"
    shutil.copytree(tree, root / place)
    shutil.copy(tree / "calm" / "00.png", root / place / "loose.png")
    with pytest.warns(UserWarning, match=rf"1 photographs are in no .*{place}loose\.png"):
        assert len(read_labelled(root)) == 32


def test_a_label_that_is_not_a_number_is_none(tmp_path):
    content = PORTRAITS[0].read_bytes()
    table = pa.table({"image": [content] * 3, "label": [0.0, 1.0, float("nan")]})
    pq.write_table(table, tmp_path / "p.parquet")
    data = read_labelled(tmp_path / "p.parquet")
    assert (data.classes, len(data)) == (("0.0", "1.0"), 2)


def test_photographs_in_linked_folders_belong_to_their_class(tree, tmp_path):
    for word in WORDS:
        (tmp_path / "linked" / word).mkdir(parents=True)
        (tmp_path / "linked" / word / "day-1").symlink_to(tree / word)
    data = read_labelled(tmp_path / "linked")
    assert len(data) == 32
    assert data.files[0] == "calm/day-1/00.png"


def test_whole_numbers_are_classes_in_their_order(tmp_path):
    content = (PORTRAITS[0]).read_bytes()
    rows = [{"image": content, "label": label} for label in (10, 2, 1, None)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    assert read_labelled(tmp_path / "p.parquet").classes == ("1", "2", "10")
    for word in ("1", "2", "10"):
        (tmp_path / "tree" / word).mkdir(parents=True)
        shutil.copy(PORTRAITS[0], tmp_path / "tree" / word)
    assert read_labelled(tmp_path / "tree").classes == ("1", "2", "10")


def test_structs_of_the_datasets_library_are_images(tree, tmp_path):
    shutil.copytree(tree, tmp_path / "tree")
    rows = [
        {"image": {"bytes": (tree / "calm" / "00.png").read_bytes(), "path": None}, "label": 0},
        {"image": {"bytes": None, "path": "tree/cross/00.png"}, "label": 1},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    data = read_labelled(tmp_path / "p.parquet")
    assert data.images == [rows[0]["image"]["bytes"], tmp_path / "tree/cross/00.png"]


def test_a_row_without_an_image_or_with_a_broken_one_is_named(tree, base, tmp_path):
    pq.write_table(pa.table({"file": ["a.png", None], "label": ["x", "y"]}), tmp_path / "p.parquet")
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"p\.parquet, row 1 \(from 0\), has no image: got None"):
        read_labelled(tmp_path / "p.parquet")
    images = [(tree / "calm" / f"{n:02d}.png").read_bytes() for n in range(6)]
    images[4] = b"junk"
    columns = {"image": images, "label": ["x", "y"] * 3, "split": ["train"] * 4 + ["val"] * 2}
    pq.write_table(pa.table(columns), tmp_path / "q.parquet")
    for aligned in (True, False):
        options = {"model": base, "recipe": QUICK, "aligned": aligned, "device": "cpu"}
        with pytest.raises(ImageError, match=r"q\.parquet, row 4: image \(4 bytes\)"):
            finetune(tmp_path / "q.parquet", tmp_path / f"out{aligned}", **options)


def test_what_cannot_be_labels_is_refused(tree, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_labelled(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no column of labels"):
        read_labelled(write_csv(tree / "none.csv", tree), label_column="mood")
    with pytest.raises(ValueError, match="no class 'glad'"):
        read_labelled(tree, classes=["glad", "calm"])
    (tmp_path / "one").mkdir()
    with pytest.raises(ValueError, match="two classes or more"):
        read_labelled(tmp_path)
    (tmp_path / "lost.csv").write_text("file,label\na.png,x\nb.png,y\n")
    with pytest.raises(FileNotFoundError, match="2 files that are not there"):
        read_labelled(tmp_path / "lost.csv")
    (tmp_path / "labels.txt").touch()
    with pytest.raises(ValueError, match=r"folder, \.csv or \.parquet"):
        read_labelled(tmp_path / "labels.txt")


# --- freezing and rates ------------------------------------------------------------------------


def test_a_frozen_part_keeps_weights_and_norms_and_the_rest_moves():
    model = small()
    model.freeze("expression_encoder.backbone.layer1", "expression_encoder.backbone.bn1")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fit(model, examples(), None, Finetuning(epochs=2, batch_size=16), progress=False)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert not [k for k in changed if ".layer1." in k or "backbone.bn1." in k]
    assert "expression_encoder.backbone.layer4.0.bn1.running_mean" in changed
    assert "expression_classifier.weight" in changed


def test_freezing_everything_but_the_classifier_is_the_default():
    model = small()
    model.freeze()
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learned == {"expression_classifier.weight", "expression_classifier.bias"}
    model.train()
    assert [m for m in model.modules() if m.training] == [model, model.expression_classifier]
    model.unfreeze()
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())


def test_a_part_that_does_not_exist_cannot_be_frozen():
    with pytest.raises(ValueError, match=r"no part is named 'encoder'.*expression_encoder"):
        small().freeze("encoder")
    for wrong in (["identity_encoder"], None, ""):  # a list instead of names one by one
        with pytest.raises(ValueError, match=r"no part is named .*; there are identity_encoder"):
            small().freeze(wrong)


def test_the_rate_falls_by_a_factor_per_layer_of_each_backbone():
    model = small()
    names = {id(p): name for name, p in model.named_parameters()}
    scales = {
        names[id(p)]: group["rate_scale"]
        for group in layer_groups(model, 0.5)
        for p in group["params"]
    }
    assert scales.keys() == dict(model.named_parameters()).keys()
    backbone = "expression_encoder.backbone."
    assert scales["expression_classifier.weight"] == scales["expression_encoder.norm.bias"] == 1
    assert scales[f"{backbone}layer4.0.conv1.weight"] == 0.5
    assert scales[f"{backbone}layer3.0.conv1.weight"] == 0.25
    stem = [value for name, value in scales.items() if name.startswith(f"{backbone}conv1")]
    assert set(stem) == {0.5**5}
    decayed = {g["params"][0].ndim > 1: "weight_decay" not in g for g in layer_groups(model, 1)}
    assert decayed == {True: True, False: False}
    with pytest.raises(ValueError, match="above 0"):
        layer_groups(model, 0)


def test_labels_alone_name_the_classes_of_a_new_classifier():
    model = small()
    model.reset_classifier(labels=["a", "b", "c"])
    assert model.labels == ("a", "b", "c")
    assert model.architecture["num_classes"] == 3
    with pytest.raises(ValueError, match="1 or more"):
        model.reset_classifier()


# --- the loop ----------------------------------------------------------------------------------


def test_training_tells_the_classes_apart_and_keeps_the_best_epoch():
    model, data = small(), examples(48)
    train, val = data[torch.arange(32)], data[torch.arange(32, 48)]
    rows = fit(model, train, val, Finetuning(epochs=6, batch_size=8, rate=0.01), progress=False)
    best = max(row["balanced accuracy"] for row in rows)
    assert best > 0.8
    again = loop.scores(loop.predict(model, val), val.labels)["balanced accuracy"]
    assert again == pytest.approx(best, abs=0.07)


def test_training_that_diverges_ends_there_and_keeps_no_state(tmp_path):
    data = examples(16)
    with pytest.raises(ValueError, match=r"the loss is nan after epoch \d of 9: .* below 1e\+30"):
        fit(small(), data, None, Finetuning(epochs=9, rate=1e30), tmp_path, progress=False)
    saved = loop.load_state(tmp_path / "state.pt")
    assert saved is None or all(torch.isfinite(t).all() for t in saved["kept"].values())


def test_an_interrupted_run_ends_at_the_same_weights(tmp_path, monkeypatch):
    data = examples(16)
    whole, broken = small(), small()
    fit(whole, data, data, QUICK, tmp_path / "whole", progress=False)
    epoch = loop._epoch

    def stops(*arguments):
        if arguments[-1] == 1:
            raise KeyboardInterrupt
        return epoch(*arguments)

    monkeypatch.setattr(loop, "_epoch", stops)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, data, data, QUICK, tmp_path / "broken", progress=False)
    monkeypatch.setattr(loop, "_epoch", epoch)
    torch.manual_seed(99)
    again = IPDFER(BACKBONE, 16, num_classes=2, pose_backbone=None, decoder_size=None)
    fit(again, data, data, QUICK, tmp_path / "broken", progress=False)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


SHARED = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_finetuning as t
from facezoo.training.processes import Processes
torch.set_num_threads(1)
model, data = t.small(), t.examples(32)
recipe = t.Finetuning(epochs=6, batch_size=8, rate=0.01)
rows = t.fit(model, data, data, recipe, Path(sys.argv[1]), progress=False)
rank = Processes.present().rank
torch.save([model.state_dict(), rows], f"{{sys.argv[1]}}/rank{{rank}}.pt")
"""


def test_two_processes_learn_the_classes_and_end_at_the_same_weights(tmp_path):
    pytest.importorskip("accelerate")
    script = tmp_path / "script.py"
    script.write_text(SHARED.format(tests=str(Path(__file__).parent)))
    done = launch(script, tmp_path)
    assert done.returncode == 0, done.stderr
    (first, rows), (second, others) = (
        torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    assert rows == others
    assert max(row["balanced accuracy"] for row in rows) > 0.8
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_two_processes_of_the_command_write_one_folder(tree, base, tmp_path):
    pytest.importorskip("accelerate")
    words = ["finetune", "--model", base, "--data", str(tree), "--out", str(tmp_path / "out")]
    words += ["--epochs", "1", "--batch-size", "8", "--aligned", "--device", "cpu"]
    done = launch("-m", "facezoo", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 classes: calm, cross") == 1
    assert facezoo.load(tmp_path / "out", device="cpu").labels == WORDS


# --- the command -------------------------------------------------------------------------------


def test_the_folder_opens_and_predicts_the_new_classes(tree, base, tmp_path):
    done = finetune(tree, tmp_path / "mood", model=base, recipe=QUICK, aligned=True, device="cpu")
    model = facezoo.load(done.folder, device="cpu")
    assert model.labels == WORDS
    prediction = model.predict_expression(sorted((tree / "calm").iterdir())[:3], aligned=True)
    assert prediction.probabilities.shape == (3, 2)
    assert type(model).from_pretrained(done.folder).labels == WORDS
    card = model.card
    assert (card.tag, card.training.base) == ("mood", "ipd-fer.untrained")
    assert {m.split for m in card.metrics} == {"val"}
    assert all("the epoch was chosen on these" in m.protocol for m in card.metrics)
    assert str(tmp_path) not in card.to_json()
    assert "facezoo finetune --model" in card.training.command
    assert f"{card.metrics[0].value:6.2f}" in str(done)


def test_the_command_line_does_the_same_and_resumes(tree, base, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["finetune", "--model", base, "--data", str(tree), "--out", str(out), "--aligned"]
    words += ["--epochs", "1", "--batch-size", "8", "--device", "cpu"]
    assert main([*words, "--probe"]) == 0
    assert "2 classes: calm, cross" in capsys.readouterr().out
    first = (out / "model.safetensors").read_bytes()
    assert main([*words, "--probe"]) == 0
    assert (out / "model.safetensors").read_bytes() == first
    assert main(words) == 1
    assert "another recipe" in capsys.readouterr().err
    assert main([*words, "--probe", "--freeze", "identity_encoder"]) == 1
    assert "nothing else to freeze" in capsys.readouterr().err


def test_photographs_are_aligned_by_the_detector(tmp_path, base):
    for number, portrait in enumerate(PORTRAITS):
        for split in ("train", "val"):
            folder = tmp_path / "data" / split / WORDS[number]
            folder.mkdir(parents=True)
            shutil.copy(portrait, folder)
    recipe = Finetuning(epochs=1)
    done = finetune(tmp_path / "data", tmp_path / "out", model=base, recipe=recipe, device="cpu")
    assert all(m.protocol.startswith("2 faces") for m in done.metrics)


def test_a_class_without_a_training_photograph_is_named(tree, base, tmp_path):
    split = {number: "val" if number < 16 else "train" for number in range(32)}
    path = write_csv(tree / "gap.csv", tree, split=split.get)
    with pytest.raises(ValueError, match="'calm'; add some"):
        finetune(path, tmp_path / "out", model=base, recipe=QUICK, aligned=True, device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [("labels", "data.rows"), ("split", "data.rows"), ("photograph", "data.photographs")],
)
def test_other_data_of_the_same_name_does_not_continue_a_run(tree, base, tmp_path, change, named):
    shutil.copytree(tree, tmp_path / "tree")
    options = {"label": lambda r: WORDS[r // 16], "split": lambda r: "val" if r % 4 else "train"}

    def go():
        path = write_csv(tmp_path / "labels.csv", tmp_path / "tree", **options)
        recipe = Finetuning(epochs=1, probe=True)
        finetune(path, tmp_path / "out", model=base, recipe=recipe, aligned=True, device="cpu")

    go()
    for path in (tmp_path / "tree").rglob("*.png"):
        path.touch()  # the same photographs, copied from elsewhere
    go()
    if change == "labels":
        options["label"] = lambda r: WORDS[1 - r // 16]
    elif change == "split":
        options["split"] = lambda r: "train" if r % 4 else "val"
    else:
        Image.fromarray(paint(112, 0, seed=7)).save(tmp_path / "tree" / "calm" / "00.png")
    with pytest.raises(ValueError, match=rf"{named} was '\w+' and is now"):
        go()


def test_other_weights_of_the_same_name_do_not_continue_a_run(tree, tmp_path):
    recipe, out = Finetuning(epochs=1, probe=True), tmp_path / "out"
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        IPDFER(BACKBONE, 16, pose_backbone=None, decoder_size=None).save_pretrained(tmp_path / "b")
        options = {"model": str(tmp_path / "b"), "recipe": recipe, "aligned": True, "device": "cpu"}
        if seed:
            with pytest.raises(ValueError, match=r"weights was '\w{12}' and is now"):
                finetune(tree, out, **options)
        else:
            finetune(tree, out, **options)


@pytest.mark.parametrize(
    ("recipe", "kept"),
    [
        (Finetuning(epochs=1, probe=True), True),
        (Finetuning(epochs=1, freeze=("expression_encoder",)), True),
        (Finetuning(epochs=1), False),
    ],
)
def test_identity_is_not_removed_from_features_that_it_was_not_sought_in(
    tree, base, tmp_path, recipe, kept
):
    before = facezoo.load(base, device="cpu")
    features = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    people = torch.arange(40) // 4
    before.identity_removal = facezoo.remove_identity(features, people, directions=2)
    before.save_pretrained(tmp_path / "b")
    options = {"recipe": recipe, "aligned": True, "device": "cpu"}
    with contextlib.nullcontext() if kept else pytest.warns(match="identity_removal"):
        finetune(tree, tmp_path / "out", model=str(tmp_path / "b"), **options)
    after = facezoo.load(tmp_path / "out", device="cpu")
    assert hasattr(after, "identity_removal") is kept
    if kept:
        crops = torch.rand(3, *after.input_shape, generator=torch.Generator().manual_seed(1))
        was, now = (m.run(crops, ["encode_expression"]) for m in (before, after))
        torch.testing.assert_close(was, now)


def test_limits_of_the_beginning_are_not_said_of_what_was_trained_from_it(tree, tmp_path):
    model = IPDFER(BACKBONE, 16, pose_backbone=None, decoder_size=None)
    model.save_pretrained(tmp_path / "first")
    config = json.loads((tmp_path / "first" / "config.json").read_text())
    config["limits"] = ["On FER+ test it is 0.4 points better."]
    (tmp_path / "first" / "config.json").write_text(json.dumps(config))
    options = {"recipe": Finetuning(epochs=1, probe=True), "aligned": True, "device": "cpu"}
    wanted = "ipd-fer.untrained, which training started from: On FER+ test it is 0.4 points better."
    for before, out in (("first", "second"), ("second", "third")):
        finetune(tree, tmp_path / out, model=str(tmp_path / before), **options)
        assert facezoo.load(tmp_path / out).card.limits == (wanted,)


def test_a_model_of_meshes_cannot_be_fine_tuned_on_photographs(tree, tmp_path, capsys):
    words = ["finetune", "--data", str(tree), "--model", "adv3d", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    assert "adv3d takes meshes, and fine-tuning is on photographs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_is_rejected_does_not_use_up_the_folder(tree, base, tmp_path):
    options = {"model": base, "aligned": True, "device": "cpu"}
    with pytest.raises(ValueError, match="batch_size must be 2 or more"):
        finetune(tree, tmp_path / "out", recipe=Finetuning(epochs=1, batch_size=1), **options)
    assert not (tmp_path / "out").exists()
    probe = Finetuning(epochs=1, batch_size=1, probe=True)
    assert finetune(tree, tmp_path / "out", recipe=probe, **options).classes == WORDS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("rate", -1.0),
        ("rate", float("nan")),
        ("layer_decay", 2.0),
        ("layer_decay", 0.0),
        ("weight_decay", -0.1),
        ("warmup", 1.5),
        ("smoothing", 2.0),
    ],
)
def test_recipes_that_train_nothing_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        Finetuning(**{name: value})


def test_of_equally_good_epochs_the_last_is_kept(monkeypatch):
    even = {"accuracy": 1.0, "balanced accuracy": 1.0, "macro-F1": 1.0}
    monkeypatch.setattr(loop, "scores", lambda *_: even)
    train = examples()
    model = small()
    fit(model, train, train, QUICK, progress=False)
    last = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    again = small()
    fit(again, train, None, QUICK, progress=False)  # keeps the last
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, last[name])
