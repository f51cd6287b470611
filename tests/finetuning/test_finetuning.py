"""Fine-tuning: frozen parts, learning rates per layer, honest scores, a folder that loads."""

import contextlib
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from interrupting import interrupted
from packs import face_at, noise, photo_of, png, use_square_detector, write_csv
from PIL import Image
from two_processes import launch

import facezoo
from facezoo.cli.main import main
from facezoo.errors import ImageError, NoFaceError
from facezoo.evaluate.metrics import accuracy, scores
from facezoo.finetuning import Finetuning, finetune, fit, loop, plan, predict, run
from facezoo.finetuning.loop import Examples
from facezoo.finetuning.run import _sample_confusions
from facezoo.models.ipd_fer import IPDFER
from facezoo.training.optim import layer_groups

PORTRAITS = sorted((Path(__file__).parents[2] / "examples" / "portraits").glob("*.jpg"))
BACKBONE = "test_resnet.r160_in1k"
CLASSES = ("calm", "cross")
QUICK = Finetuning(epochs=3, batch_size=8, rate=0.02)


def paint(side, bright, seed):
    """Return a noisy crop, bright above or below: two classes that are easy to learn."""
    pixels = noise(side, np.random.default_rng(seed)) // 4
    half = slice(0, side // 2) if bright else slice(side // 2, side)
    pixels[half] += 150
    return pixels


def write_tree(root, count):
    """Write crops of each class into a folder per class."""
    for number, word in enumerate(CLASSES):
        (root / word).mkdir(parents=True)
        for index in range(count):
            pixels = paint(112, number, seed=1000 * number + index)
            Image.fromarray(pixels).save(root / word / f"{index:02d}.png")
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("tree"), 16)


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


# --- freezing and learning rates ---------------------------------------------------------------


def test_a_frozen_part_keeps_weights_and_norms_and_the_rest_moves():
    model = small()
    model.freeze("expression_encoder.backbone.layer1", "expression_encoder.backbone.bn1")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fit(model, examples(), None, Finetuning(epochs=2, batch_size=16), progress=False)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert not [k for k in changed if ".layer1." in k or "backbone.bn1." in k]
    assert "expression_encoder.backbone.layer4.0.bn1.running_mean" in changed
    assert "expression_classifier.weight" in changed


@pytest.mark.parametrize("probe", [True, False])
def test_a_loop_of_ones_own_trains_what_the_recipe_names(probe):
    model = small()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    recipe = Finetuning(epochs=1, batch_size=16, probe=probe)
    fit(model, examples(), None, recipe, progress=False)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert "expression_classifier.weight" in changed
    assert any(name.startswith("expression_encoder") for name in changed) != probe


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
        with pytest.raises(ValueError, match=r"no part is named .*; expected identity_encoder"):
            small().freeze(wrong)


def test_the_rate_falls_by_a_factor_per_layer_of_each_backbone():
    model = small()
    names = {id(p): name for name, p in model.named_parameters()}
    scales = {
        names[id(p)]: group["lr_scale"]
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
    with pytest.raises(ValueError, match="above 0"):
        layer_groups(model, 0)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_weight_decay_exempts_norms_biases_and_what_the_backbone_exempts(decay):
    backbone = timm.create_model("test_vit.r160_in1k", num_classes=0)
    model = torch.nn.Sequential(backbone, torch.nn.Linear(64, 2))
    model[0].norm.weight.requires_grad_(False)
    names = {id(p): name for name, p in model.named_parameters()}
    exempt = {
        names[id(p)]
        for group in layer_groups(model, decay)
        for p in group["params"]
        if group.get("weight_decay") == 0
    }
    assert {"0.cls_token", "0.pos_embed", "0.norm.bias", "1.bias"} <= exempt
    matrices = {
        name for name, p in model.named_parameters() if name.endswith("weight") and p.ndim > 1
    }
    assert exempt.isdisjoint({*matrices, "0.norm.weight"})


def test_labels_alone_name_the_classes_of_a_new_classifier():
    model = small()
    model.reset_classifier(labels=["a", "b", "c"])
    assert model.labels == ("a", "b", "c")
    assert model.architecture["num_classes"] == 3
    with pytest.raises(ValueError, match="1 or more"):
        model.reset_classifier()


# --- the loop ----------------------------------------------------------------------------------


def test_training_learns_the_classes_and_keeps_the_best_epoch():
    model, data = small(), examples(90)
    train, val = data[torch.arange(32)], data[torch.arange(32, 90)]
    rows = fit(model, train, val, Finetuning(epochs=6, batch_size=8, rate=0.01), progress=False)
    best = max(row["balanced accuracy"] for row in rows)
    assert best > 0.8
    again = scores(predict(model, val), val.labels)["balanced accuracy"]
    assert again == pytest.approx(best, abs=1e-6)


def test_few_validation_faces_do_not_select_the_epoch(monkeypatch):
    values = iter([0.9, 0.8, 0.7] * 2)
    monkeypatch.setattr(loop, "scores", lambda *_: {"balanced accuracy": next(values)})
    states = {}
    for count in (49, 50):
        model = small()
        fit(model, examples(16), examples(count), QUICK, progress=False)
        states[count] = model.state_dict()
    last = small()
    fit(last, examples(16), None, QUICK, progress=False)
    same = {
        n: all(map(torch.equal, last.state_dict().values(), s.values())) for n, s in states.items()
    }
    assert same == {49: True, 50: False}


def test_training_that_diverges_ends_there_and_keeps_no_broken_state(tmp_path):
    with pytest.raises(ValueError, match=r"loss is nan at step \d+ of 9: .* lower learning rate"):
        fit(small(), examples(16), None, Finetuning(epochs=9, rate=1e30), tmp_path, progress=False)
    assert not (tmp_path / "state.pt").exists()


def test_an_interrupted_run_ends_at_the_same_weights(tmp_path, monkeypatch):
    data = examples(56)
    whole, broken = small(), small()
    recipe = Finetuning(epochs=3, batch_size=28, rate=0.02)
    fit(whole, data, data, recipe, tmp_path / "whole", progress=False)
    fit_part, descend, calls = loop.loop.fit, loop.descend, []
    monkeypatch.setattr(
        loop.loop, "fit", lambda *args, **options: fit_part(*args, **options, save_every=0.0)
    )

    def stops(*arguments):
        calls.append(1)
        if len(calls) in (2, 5):
            raise KeyboardInterrupt
        descend(*arguments)

    monkeypatch.setattr(loop, "descend", stops)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit(broken, data, data, recipe, tmp_path / "broken", progress=False)
        torch.manual_seed(99)
        broken = IPDFER(BACKBONE, 16, num_classes=2, pose_backbone=None, decoder_size=None)
    fit(broken, data, data, recipe, tmp_path / "broken", progress=False)
    assert len(calls) == 6 + 2
    for name, value in whole.state_dict().items():
        assert torch.equal(value, broken.state_dict()[name]), name


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_outer_context_without_gradients_does_not_stop_training(tree, base, tmp_path, mode):
    recipe = Finetuning(epochs=1, batch_size=16)
    with mode():
        finetune(tree, tmp_path / "in", model=base, recipe=recipe, aligned=True, device="cpu")
    finetune(tree, tmp_path / "out", model=base, recipe=recipe, aligned=True, device="cpu")
    first, second = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("in", "out"))
    assert first == second


SHARED = """
import sys, torch
from pathlib import Path
sys.path[:0] = [{tests!r}, {here!r}]
import test_finetuning as t
from facezoo.training.processes import Processes
torch.set_num_threads(1)
model, data = t.small(), t.examples(56)
recipe = t.Finetuning(epochs=6, batch_size=8, rate=0.01)
rows = t.fit(model, data, data, recipe, Path(sys.argv[1]), progress=False)
rank = Processes.present().rank
torch.save([model.state_dict(), rows], f"{{sys.argv[1]}}/rank{{rank}}.pt")
"""


@pytest.mark.slow
def test_two_processes_learn_the_classes_and_end_at_the_same_weights(tmp_path):
    pytest.importorskip("accelerate")
    script = tmp_path / "script.py"
    here = Path(__file__).parent
    script.write_text(SHARED.format(tests=str(here.parent), here=str(here)))
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
    assert facezoo.load(tmp_path / "out", device="cpu").labels == CLASSES


# --- scores ------------------------------------------------------------------------------------


def tune(data, out, base, **recipe):
    recipe = Finetuning(**{"epochs": 1, "batch_size": 16, "probe": True} | recipe)
    return finetune(data, out, model=base, recipe=recipe, aligned=True, device="cpu")


def test_few_images_are_all_trained_on_and_no_score_is_reported(tree, base, tmp_path):
    done = tune(tree, tmp_path / "out", base)
    assert done.metrics == ()
    assert "No validation score: 6 validation faces are too few (50" in str(done)
    card = facezoo.load(tmp_path / "out", device="cpu").card
    assert card.metrics == ()
    assert any("No validation score" in limit for limit in card.limits)
    assert card.training.data[-1] == f"{tree.name}: 32 faces of 2 classes"
    assert "model-index" not in (tmp_path / "out" / "README.md").read_text()


def test_the_random_numbers_of_the_caller_continue(tree, base, tmp_path):
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    tune(tree, tmp_path / "out", base)
    assert torch.rand(1) == wanted


def test_a_search_over_numpy_values_is_recorded_in_plain_numbers(tree, base, tmp_path):
    recipe = Finetuning(epochs=np.int64(1), batch_size=np.int64(16), rate=np.float64(0.02))
    out = tmp_path / "out"
    finetune(tree, out, model=base, recipe=recipe, aligned=True, device="cpu", seed=np.int64(3))
    run = json.loads((out / "training" / "run.json").read_text())
    assert (run["seed"], run["recipe"]["epochs"], run["recipe"]["rate"]) == (3, 1, 0.02)
    command = facezoo.load(out, device="cpu").card.training.command
    assert "--rate 0.02" in command
    assert command.endswith("--seed 3")
    assert Finetuning(freeze="identity_encoder").freeze == ("identity_encoder",)
    for name in ("epochs", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number, got 1.5"):
            Finetuning(**{name: 1.5})


def test_classes_may_be_whole_numbers(tree, base, tmp_path):
    path = write_csv(tree / "numbers.csv", tree, label=lambda row: row // 16)
    recipe = Finetuning(epochs=1, probe=True)
    options = {"model": base, "recipe": recipe, "aligned": True, "device": "cpu"}
    done = finetune(path, tmp_path / "out", classes=[1, 0], **options)
    assert done.classes == ("1", "0")
    command = facezoo.load(tmp_path / "out", device="cpu").card.training.command
    assert "--classes 1,0" in command


def test_few_validation_images_of_the_user_are_neither_trained_on_nor_reported(
    tree, base, tmp_path
):
    path = write_csv(tree / "few.csv", tree, split=lambda row: "train" if row % 4 else "val")
    done = tune(path, tmp_path / "out", base)
    assert "8 validation faces are too few" in done.note
    assert "the last epoch" in done.note
    assert done.metrics == ()
    card = facezoo.load(tmp_path / "out", device="cpu").card
    assert card.training.data[-1] == "few.csv: 24 faces of 2 classes"


def test_test_faces_are_reported_with_their_number_and_an_interval(tree, base, tmp_path):
    path = write_csv(tree / "test.csv", tree, split=lambda row: "train" if row % 4 else "test")
    done = tune(path, tmp_path / "out", base, rate=0.02, epochs=2)
    card = facezoo.load(tmp_path / "out", device="cpu").card
    assert card.metrics == done.metrics
    assert {(m.name, m.split) for m in card.metrics} == {
        (name, "test") for name in ("accuracy", "balanced accuracy", "macro-F1")
    }
    for metric in card.metrics:
        faces, classes, interval = metric.protocol.split(", ")
        assert (faces, classes) == ("8 faces", "2 classes")
        low, high = map(float, interval.removeprefix("95 % interval ").split(" to "))
        assert 0 <= low <= metric.value <= high <= 100
        assert high - low > 20
        assert f"{metric.value:6.2f} % ({metric.protocol})" in str(done)
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "split: test" in readme
    assert "confusion.png" in readme
    with Image.open(tmp_path / "out" / "confusion.png") as picture:
        assert min(picture.size) > 128


def test_scores_name_the_number_of_classes_that_a_split_has(tree, base, tmp_path):
    shutil.copytree(tree, tmp_path / "data" / "train")
    for split in ("val", "test"):
        for part in range(4):
            folder = tmp_path / "data" / split / "calm" / str(part)
            shutil.copytree(tree / "calm", folder)
    with (
        pytest.warns(match="data has no val face of the classes cross; its val scores"),
        pytest.warns(match="data has no test face of the classes cross; its test scores"),
    ):
        done = tune(tmp_path / "data", tmp_path / "out", base)
    assert {m.split for m in done.metrics} == {"val", "test"}
    assert all(m.protocol.startswith("64 faces, 1 of 2 classes, 95 %") for m in done.metrics)
    assert facezoo.load(tmp_path / "out", device="cpu").card.metrics == done.metrics[3:]


def test_the_plan_is_printed_before_the_training(tree, base, tmp_path, monkeypatch, capsys):
    path = write_csv(tree / "plan.csv", tree, split=lambda row: "train" if row % 4 else "test")
    with interrupted(monkeypatch, "fit", run):
        finetune(path, tmp_path / "out", model=base, aligned=True, device="cpu")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:5]] == [
        ["train", "test"],
        ["calm", "12", "4"],
        ["cross", "12", "4"],
        ["all", "24", "8"],
    ]
    assert "32 epochs of 24 faces, 10 per step" in lines[5]
    assert lines[6].startswith("  time for training and scores: about ")
    assert "--probe" in lines[7]


def test_the_estimated_time_includes_the_optimizer_and_the_scores(monkeypatch):
    def slow(seconds, real):
        def call(*arguments, **options):
            time.sleep(seconds)
            return real(*arguments, **options)

        return call

    monkeypatch.setattr(torch.optim.AdamW, "step", slow(0.1, torch.optim.AdamW.step))
    monkeypatch.setattr(plan, "predict", slow(0.16, plan.predict))
    model, recipe = small().eval(), Finetuning(epochs=10, batch_size=16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parts = {"train": examples(32), "val": examples(32), "test": examples(64)}
    # 20 steps of 0.1 s, and 0.01 s for each of 11 x 32 faces of val and 64 of test.
    (line,) = (x for x in plan.plan(model, parts, recipe, "x").splitlines() if "time" in x)
    assert 6 <= int(re.search(r"about (\d+) seconds", line)[1]) <= 20
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("images", "batch", "epochs"), [(5, 10, 64), (20, 10, 32), (200, 25, 10), (9000, 32, 10)]
)
def test_few_images_get_small_batches_and_many_epochs(images, batch, epochs):
    recipe = Finetuning().for_images(images)
    assert (recipe.batch_size, recipe.epochs) == (batch, epochs)
    given = Finetuning(epochs=3, batch_size=4)
    assert given.for_images(images) == given


def test_scores_of_the_model_selection_are_not_metrics_of_the_card(base, tmp_path):
    tree = write_tree(tmp_path / "many", 130)
    done = tune(tree, tmp_path / "out", base)
    assert {m.split for m in done.metrics} == {"val"}
    assert "selected on the 52 validation faces" in done.note
    card = facezoo.load(tmp_path / "out", device="cpu").card
    assert card.metrics == ()
    (limit,) = (text for text in card.limits if "Validation" in text)
    assert f"accuracy {done.metrics[0].value:.2f} % (52 faces, 2 classes, 95 % interval" in limit
    assert "model-index" not in (tmp_path / "out" / "README.md").read_text()


def test_the_interval_of_the_accuracy_covers_the_truth_as_often_as_it_claims():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        right = rng.binomial(30, 0.8, 2)
        counts = torch.tensor([[right[0], 30 - right[0]], [30 - right[1], right[1]]])
        sampled = [accuracy(sample) for sample in _sample_confusions(counts, 400)]
        low, high = np.quantile(sampled, (0.025, 0.975))
        covered += low <= 0.8 <= high
    assert covered / 200 == pytest.approx(0.95, abs=0.04)
    perfect = torch.tensor([[3, 0], [0, 3]])
    assert np.quantile([accuracy(s) for s in _sample_confusions(perfect)], 0.025) < 0.85


# --- the command -------------------------------------------------------------------------------


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("landmarks", [True, False])
def test_a_broken_image_is_left_out_and_named_by_its_row(
    base, tmp_path, monkeypatch, aligned, landmarks
):
    use_square_detector(monkeypatch)
    image = png(photo_of((50, 50, 100)).numpy())
    columns = {"image": [image] * 8, "label": ["x", "y"] * 4, "split": ["train"] * 6 + ["test"] * 2}
    if landmarks:
        columns["landmarks"] = [face_at(50, 50, 100)["landmarks"]] * 8
    options = {"model": base, "recipe": QUICK, "aligned": aligned, "device": "cpu"}

    def go(out, *broken):
        columns["image"] = [b"junk" if row in broken else image for row in range(8)]
        pq.write_table(pa.table(columns), tmp_path / f"{out}.parquet")
        return finetune(tmp_path / f"{out}.parquet", tmp_path / out, **options)

    named = r"row 4: image \(4 bytes\)"
    with pytest.warns(match=rf"2 of 8 images of some\.parquet cannot .* some\.parquet, {named}"):
        done = go("some", 4, 5)
    assert done.metrics[0].protocol.startswith("2 faces")
    card = facezoo.load(tmp_path / "some", device="cpu").card
    assert card.training.data[-1] == "some.parquet: 4 faces of 2 classes"
    with (
        pytest.warns(match="3 of 8 images of lost"),
        pytest.raises(ValueError, match="training image with a face for the class 'x'"),
    ):
        go("lost", 0, 2, 4)
    with pytest.raises(ImageError, match=r"none of 8 images of none\.parquet can be read"):
        go("none", *range(8))


def test_a_link_to_a_file_that_is_gone_is_left_out(tree, base, tmp_path):
    shutil.copytree(tree, tmp_path / "data")
    (tmp_path / "data" / "calm" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.warns(match=r"1 of 33 images of data cannot be read .*gone\.png"):
        tune(tmp_path / "data", tmp_path / "out", base)


def test_the_folder_opens_and_predicts_the_new_classes(tree, base, tmp_path):
    done = finetune(tree, tmp_path / "mood", model=base, recipe=QUICK, aligned=True, device="cpu")
    model = facezoo.load(done.folder, device="cpu")
    assert model.labels == CLASSES
    prediction = model.predict_expression(sorted((tree / "calm").iterdir())[:3], aligned=True)
    assert prediction.probabilities.shape == (3, 2)
    assert type(model).from_pretrained(done.folder).labels == CLASSES
    card = model.card
    assert (card.tag, card.training.base) == ("mood", "ipd-fer.untrained")
    assert str(tmp_path) not in card.to_json()
    assert "facezoo finetune --model" in card.training.command


def test_the_command_line_does_the_same_and_resumes(tree, base, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["finetune", "--model", base, "--data", str(tree), "--out", str(out), "--aligned"]
    words += ["--epochs", "1", "--batch-size", "8", "--device", "cpu"]
    assert main([*words, "--probe"]) == 0
    printed = capsys.readouterr()
    assert "2 classes: calm, cross" in printed.out
    assert not printed.err  # a log file gets no progress bars
    first = (out / "model.safetensors").read_bytes()
    assert main([*words, "--probe"]) == 0
    assert (out / "model.safetensors").read_bytes() == first
    assert main(words) == 1
    assert "another recipe" in capsys.readouterr().err
    assert main([*words, "--probe", "--freeze", "identity_encoder"]) == 1
    assert "nothing else to freeze" in capsys.readouterr().err


@pytest.mark.parametrize("splits", [True, False])
def test_a_run_resumes_if_its_output_is_inside_the_data(tree, base, tmp_path, splits):
    data = tmp_path / "data"
    for folder in (data / "train", data / "test") if splits else (data,):
        shutil.copytree(tree, folder)
    first, second = (tune(data, data / "model", base) for _ in range(2))
    assert first == second
    assert first.classes == CLASSES


def test_ctrl_c_exits_with_130_and_names_the_way_to_resume(
    tree, base, tmp_path, monkeypatch, capsys
):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "descend", interrupt)
    words = ["finetune", "--model", base, "--data", str(tree), "--out", str(tmp_path / "out")]
    assert main([*words, "--aligned", "--device", "cpu", "--probe"]) == 130
    advice = "facezoo: interrupted; run the same command again to continue\n"
    assert capsys.readouterr().err == advice


def test_images_are_aligned_by_the_detector(tmp_path, base):
    for number, portrait in enumerate(PORTRAITS):
        for split in ("train", "test"):
            folder = tmp_path / "data" / split / CLASSES[number]
            folder.mkdir(parents=True)
            shutil.copy(portrait, folder)
    recipe = Finetuning(epochs=1)
    options = {"model": base, "recipe": recipe, "device": "cpu"}
    done = finetune(tmp_path / "data", tmp_path / "out", **options, max_side=400, rotations=(0, 90))
    assert {m.split for m in done.metrics} == {"test"}
    assert all(m.protocol.startswith("2 faces") for m in done.metrics)
    assert "--max-side 400 --rotations 0,90" in done.metrics[0].command
    with pytest.raises(NoFaceError):
        finetune(tmp_path / "data", tmp_path / "none", **options, score_threshold=0.9999)


def test_a_class_without_a_training_image_is_named(tree, base, tmp_path):
    split = {number: "val" if number < 16 else "train" for number in range(32)}
    path = write_csv(tree / "gap.csv", tree, split=split.get)
    with pytest.raises(ValueError, match="'calm'; add some"):
        finetune(path, tmp_path / "out", model=base, recipe=QUICK, aligned=True, device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [("labels", "data.rows"), ("split", "data.rows"), ("image", "data.images")],
)
def test_other_data_of_the_same_name_do_not_resume_a_run(tree, base, tmp_path, change, named):
    shutil.copytree(tree, tmp_path / "tree")
    options = {"label": lambda r: CLASSES[r // 16], "split": lambda r: "val" if r % 4 else "train"}

    def go():
        path = write_csv(tmp_path / "labels.csv", tmp_path / "tree", **options)
        recipe = Finetuning(epochs=1, probe=True)
        finetune(path, tmp_path / "out", model=base, recipe=recipe, aligned=True, device="cpu")

    go()
    for path in (tmp_path / "tree").rglob("*.png"):
        path.touch()  # the same images, copied from another place
    go()
    if change == "labels":
        options["label"] = lambda r: CLASSES[1 - r // 16]
    elif change == "split":
        options["split"] = lambda r: "train" if r % 4 else "val"
    else:
        Image.fromarray(paint(112, 0, seed=7)).save(tmp_path / "tree" / "calm" / "00.png")
    with pytest.raises(ValueError, match=rf"{named} was '\w+' and is now"):
        go()


def test_other_weights_of_the_same_name_do_not_resume_a_run(tree, tmp_path):
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
def test_identity_removal_stays_only_with_the_features_that_it_was_fitted_to(
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


def test_limits_of_the_base_checkpoint_carry_its_name_and_come_last(tree, tmp_path):
    model = IPDFER(BACKBONE, 16, pose_backbone=None, decoder_size=None)
    model.save_pretrained(tmp_path / "first")
    config = json.loads((tmp_path / "first" / "config.json").read_text())
    config["limits"] = ["On FER+ test it is 0.4 points better."]
    (tmp_path / "first" / "config.json").write_text(json.dumps(config))
    options = {"recipe": Finetuning(epochs=1, probe=True), "aligned": True, "device": "cpu"}
    expected = (
        "ipd-fer.untrained, which training started from: On FER+ test it is 0.4 points better."
    )
    for before, out in (("first", "second"), ("second", "third")):
        finetune(tree, tmp_path / out, model=str(tmp_path / before), **options)
        limits = facezoo.load(tmp_path / out).card.limits
        assert limits[0].startswith("No validation score")
        assert expected in limits[1:]


def test_a_model_of_meshes_cannot_be_fine_tuned_on_images(tree, tmp_path, capsys):
    words = ["finetune", "--data", str(tree), "--model", "adv3d", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    assert "adv3d takes meshes, and fine-tuning needs images" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_to_start_from_is_a_name_or_a_folder(tree, base, tmp_path):
    options = {"recipe": Finetuning(epochs=1, probe=True), "aligned": True, "device": "cpu"}
    with pytest.raises(TypeError, match=r"got IPDFER; save yours with save_pretrained\(\)"):
        finetune(tree, tmp_path / "out", model=small(), **options)
    assert not (tmp_path / "out").exists()
    assert finetune(tree, tmp_path / "out", model=Path(base), **options).classes == CLASSES


def test_a_recipe_that_is_rejected_does_not_use_up_the_folder(tree, base, tmp_path):
    options = {"model": base, "aligned": True, "device": "cpu"}
    with pytest.raises(ValueError, match="batch_size must be 2 or more"):
        finetune(tree, tmp_path / "out", recipe=Finetuning(epochs=1, batch_size=1), **options)
    assert not (tmp_path / "out").exists()
    for freeze in ("expression_classifier", ("expression_encoder", "expression_classifier")):
        with pytest.raises(ValueError, match=r"freeze must leave out .* got .*_classifier; to"):
            finetune(tree, tmp_path / "out", recipe=Finetuning(epochs=1, freeze=freeze), **options)
    assert not (tmp_path / "out").exists()
    probe = Finetuning(epochs=1, batch_size=1, probe=True)
    assert finetune(tree, tmp_path / "out", recipe=probe, **options).classes == CLASSES


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
def test_recipes_with_impossible_values_are_rejected(name, value):
    with pytest.raises(ValueError, match=name):
        Finetuning(**{name: value})
