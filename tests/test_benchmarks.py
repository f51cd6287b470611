"""The measuring scripts run on tiny packs."""

import itertools
import json
import re
import shlex
import shutil
from argparse import Namespace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from packs import (
    face_at,
    write_ferplus,
    write_groups,
    write_lfw,
    write_london,
    write_packs,
    write_pairs,
)
from PIL import Image
from scipy.stats import beta

import facezoo
from facezoo.models.ipd_fer import IPDFER, losses
from facezoo.preprocess import pipeline

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PORTRAIT = BENCHMARKS.parent / "examples" / "portraits" / "grace_hopper.jpg"


@pytest.fixture(autouse=True)
def _among_the_benchmarks(monkeypatch):
    """Scripts find what they share beside them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def benchmark(name):
    spec = spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_fine_tuning_experiment_measures_every_arm(tmp_path, monkeypatch):
    write_lfw(tmp_path, train=60, val=12)
    small = IPDFER("test_resnet.r160_in1k", 8, pose_backbone=None, decoder_size=None)
    small.save_pretrained(tmp_path / "base")
    script = benchmark("finetune")
    monkeypatch.setattr(script, "MODEL", str(tmp_path / "base"))
    out = tmp_path / "f.json"
    script.measure(tmp_path, out, tmp_path / "cache", smoke=True)
    runs = json.loads(out.read_text())["runs"]
    assert len({run["arm"] for run in runs}) == 4
    assert all(run["images"] == 20 for run in runs)
    monkeypatch.setattr(script, "fit", None)  # nothing is trained again
    script.measure(tmp_path, out, tmp_path / "cache", smoke=True)
    assert json.loads(out.read_text())["runs"] == runs


def test_the_extraction_benchmark_measures_memory_and_stages(tmp_path):
    small = IPDFER("test_resnet.r160_in1k", 8, pose_backbone=None, decoder_size=None)
    small.save_pretrained(tmp_path / "base")
    script = benchmark("extraction")
    files = script.unpack(script.PORTRAITS, tmp_path / "stored")
    script.replicate(files, tmp_path / "photos", 3)
    run = script.measure(tmp_path / "photos", tmp_path / "f.npz", str(tmp_path / "base"), "cpu")
    assert (run["images"], run["rows"]) == (3, 3)
    assert run["peak_mb"] > 0
    assert {"decode", "detect", "encode"} <= run["images_per_second_by_stage"].keys()


STAMPED = {"command", "date", "commit", "hardware", "cores", "threads", "load", "versions"}


def test_commands_of_results_have_no_path_of_the_machine():
    stamp = benchmark("measuring").stamp(
        "python x.py '/my data/LFW' --json=/tmp/x.json docs/x.json"
    )
    assert stamp["command"] == "python x.py LFW --json=x.json docs/x.json"
    results = Path(__file__).parents[1] / "docs" / "results"
    commands = [json.loads(file.read_text()).get("command", "") for file in results.glob("*.json")]
    words = [word for command in commands for word in shlex.split(command)]
    assert words
    assert not [word for word in words if Path(word.rpartition("=")[2]).is_absolute()]


def test_results_record_the_hardware():
    stamp = benchmark("measuring").stamp("python x.py")
    assert stamp.keys() == STAMPED
    assert stamp["versions"]["torch"]
    assert stamp["threads"] == torch.get_num_threads()


def test_ways_are_timed_in_turn_and_the_warm_up_is_left_out():
    called = []
    ways = {name: lambda n=name: called.append(n) for name in "ab"}
    timed = benchmark("measuring").in_turn(ways, repeats=3, warm_up=2)
    assert called == ["a", "b"] * 5
    assert all(len(one.seconds) == 3 for one in timed.values())
    timed["a"].seconds, timed["b"].seconds = [2.0, 4.0, 3.0], [1.0, 9.0, 1.0]
    assert timed["a"].over(timed["b"]) == 2
    assert timed["a"].per_second(6) == 2
    assert timed["a"].spread(6) == "1.5 to 3.0"


def test_the_operations_of_a_resnet18_are_counted():
    need = benchmark("encode").needs("resnet18", size=224)
    assert need["operations"] == pytest.approx(2 * 1.814e9, rel=0.01)  # 1.8 GMAC, as timm says
    assert need["weight_bytes"] == 4 * 11_176_512


def test_encoding_is_measured_in_every_precision_with_a_roofline():
    script = benchmark("encode")
    result = script.main([2], ["float32", "bfloat16"], repeats=1, side=64)
    assert result.keys() == STAMPED | {"tables"}
    rows = result["tables"]["encode"]
    assert [(row["dtype"], row["batch"]) for row in rows] == [("float32", 2), ("bfloat16", 2)]
    assert all(row["share"] > 0 for row in result["tables"]["roofline"])


def test_images_are_timed_against_a_manual_pipeline(tmp_path):
    pytest.importorskip("cv2")
    small = IPDFER("test_resnet.r160_in1k", 8, pose_backbone=None, decoder_size=None)
    small.save_pretrained(tmp_path / "base")
    script = benchmark("pipeline")
    portraits = tmp_path / "portraits"
    shutil.copytree(Path(__file__).parent.parent / "examples" / "portraits", portraits)
    Image.new("RGB", (250, 250), (127, 127, 127)).save(portraits / "nobody.jpg")
    words = [str(portraits), "--model", str(tmp_path / "base"), "--repeats", "1"]
    result = script.main(script.parse(words))
    assert result["photographs"] == 3
    found = {row["way"]: row["faces found"] for row in result["tables"]["pipeline"]}
    ways = ["facezoo", "facezoo, bfloat16", "by hand, landmarks given"]
    assert [found[way] for way in ways] == [2, 2, 2]
    installed = {"by hand, libfacedetection", "by hand, MTCNN"}
    assert found.keys() - {*ways} <= installed
    assert {row["stage"] for row in result["tables"]["stages"]} >= {"decode", "detect", "encode"}


def test_reduced_precision_is_compared_for_features_and_codes(tmp_path, monkeypatch):
    shutil.copy(PORTRAIT, tmp_path)
    monkeypatch.setattr(facezoo, "list_models", lambda **_: ["latent-simclr"])
    rows = benchmark("precision").main(tmp_path, 1)["tables"]["precision"]
    names = ["expression", "identity", "factors"]
    assert [row["feature"] for row in rows] == names * 2  # bfloat16 and float16
    assert all(float(row["least cosine"]) > 0.999 and row["faces"] == 1 for row in rows)


class Tinting:
    """A model whose expression is the mean color; it transfers four fifths of it."""

    def encode_expression(self, images, aligned):
        return torch.stack([torch.as_tensor(image).float().mean((-2, -1)) for image in images])

    def transfer_expression(self, source, target, aligned, strength):
        own, wanted = (self.encode_expression(images, aligned) for images in (target, source))
        moved = torch.stack(target) + (0.8 * strength * (wanted - own))[..., None, None]
        return moved.clamp(0, 255) / 255


@pytest.mark.parametrize(("strength", "share"), [(1.0, 0.8), (1.25, 1.0)])
def test_the_strength_of_a_transfer_is_found_in_the_result(strength, share):
    crops = torch.full((4, 3, 8, 8), 100, dtype=torch.uint8)
    crops[2:] = 150
    found, _ = benchmark("transfer").change_found(Tinting(), crops, strength, {})
    assert found == pytest.approx(share, abs=1e-3)


def test_transfers_are_measured_by_strength(tmp_path):
    write_lfw(tmp_path)
    rows = benchmark("transfer").main(tmp_path, ["ipd-fer.ferplus-lfw"], [0.0], 1, 0)
    rows = rows["tables"]["transfer"]
    assert [row["image"] for row in rows] == ["decoded face", "edited crop"]
    assert rows[1]["change found, %"] == pytest.approx(0, abs=1), "nothing was asked for"


def test_loading_and_parts_report_the_spread_of_repeats(monkeypatch):
    loading, parts = benchmark("loading"), benchmark("parts")
    monkeypatch.setattr(loading, "names", lambda: [])
    (row,) = loading.main(1)["tables"]["loading"]
    assert " to " in row["loads/s, slowest to fastest"]
    rows = parts.main([1], 1)["tables"]["parts"]
    assert all(row["slowest to fastest"].count(" to ") == 2 for row in rows)


def test_generators_are_compared_with_a_plain_one():
    options = Namespace(
        device="cpu",
        sizes=[32],
        batches=[2],
        max_channels=16,
        repeats=1,
        checkpoint="latent-simclr",
    )
    rows = benchmark("synthesis").main(options)["tables"]["synthesis"]
    assert len(rows) == 3
    assert all(float(row["relative difference"]) < 1e-4 for row in rows)


@pytest.mark.slow
def test_parts_of_the_objective_are_left_out_one_by_one(tmp_path, monkeypatch):
    write_packs(tmp_path)
    write_ferplus(tmp_path, train=32)
    write_lfw(tmp_path, val=8)
    write_pairs(tmp_path, val=8)
    script = benchmark("ablation")
    monkeypatch.setattr(script, "persons_of", lambda rows: torch.arange(len(rows.files)) % 2)
    words = [str(tmp_path), "--start", str(tmp_path / "start"), "--cache", str(tmp_path / "runs")]
    words += ["--rows", "baseline", "pose", "--share", "2", "--smoke"]
    found = script.main(script.parse(words))
    assert found["photographs"] == 19
    rows = found["tables"]["ablation"]
    assert [row["objective"] for row in rows] == [
        script.WORDS[part] for part in ("baseline", "pose")
    ]
    assert all(0 <= row["person from f_exp"] <= 100 for row in rows)
    assert script.main(script.parse(words))["tables"] == found["tables"]  # nothing trained again
    assert script.WORDS.keys() == {"baseline", "whole", *script.ABLATIONS}


def test_predictions_are_measured_in_groups_of_faces(tmp_path, monkeypatch):
    write_packs(tmp_path)
    write_london(tmp_path, people=4, val=3)
    script = benchmark("groups")
    monkeypatch.setattr(script, "MIN_IMAGES", 1)
    small = IPDFER("test_resnet.r160_in1k", 8, pose_backbone=None, decoder_size=None)
    small.save_pretrained(tmp_path / "base")
    tables = script.main(tmp_path, str(tmp_path / "base"))["tables"]
    wholes = [row for row in tables["groups"] if row["group"] == "all faces"]
    assert [row["data"] for row in wholes] == ["FER+ test", "LFW val", "London val"]
    for whole in wholes:
        of_data = [row for row in tables["groups"] if row["data"] == whole["data"]]
        for kind in ("sharpness", "luminance of the cheeks"):
            parts = [int(row["images"]) for row in of_data if row["group"].startswith(kind)]
            assert (len(parts), sum(parts)) == (3, int(whole["images"]))
    assert all(" % (" in row["predicted happiness"] for row in tables["ages"])


def test_faces_without_landmarks_are_a_group(monkeypatch):
    script = benchmark("groups")
    monkeypatch.setattr(script, "MIN_IMAGES", 1)
    crops = torch.randint(0, 256, (4, 3, 112, 112), generator=torch.Generator().manual_seed(0))
    groups = script.groups_of(pa.table({"yaw": [5.0, None, -50.0, -10.0]}), crops.byte())
    yaws = {name: rows.tolist() for kind, name, rows in groups if kind in ("yaw", "faces")}
    assert yaws == {
        "0 to 10 degrees": [0],
        "10 to 20 degrees": [3],
        "30 to 90 degrees": [2],
        "beyond 10 degrees (also in other rows)": [2],
        "beyond 40 degrees (also in other rows)": [2],
        "without landmarks": [1],
    }


def test_the_scores_of_a_group_are_those_of_its_confusion_matrix():
    script = benchmark("groups")
    happy = script.HAPPY
    scores = script.scored(torch.tensor([0, happy, happy, 0]), torch.tensor([0, happy, 0, 0]), 8)
    assert (scores["images"], scores["accuracy"]) == ("4", "75.0 % (30.1 to 95.4)")
    assert scores["balanced accuracy"].startswith("83.3 % (")
    assert (scores["images not happy"], scores["false happiness"][:6]) == ("3", "33.3 %")
    only_happy = script.scored(torch.tensor([happy]), torch.tensor([happy]), 8)
    assert (only_happy["images not happy"], only_happy["false happiness"]) == ("0", "–")


def test_the_expected_accuracy_of_a_group_depends_on_its_classes_only():
    script = benchmark("groups")
    truth, predicted = torch.tensor([0, 0, 1, 1, 1, 1]), torch.tensor([0, 0, 1, 0, 0, 0])
    found = script.mixed(predicted, truth, torch.tensor([0, 3]))
    assert (found["neutral, %"], found["happiness, %"], found["fear, %"]) == ("50.0", "50.0", "0.0")
    assert (found["expected accuracy, %"], found["accuracy, %"]) == ("62.5", "50.0")


def test_the_interval_of_the_balanced_accuracy_is_that_of_the_mean_recall():
    script = benchmark("groups")
    one_class = torch.tensor([[30, 10, 0], [0, 0, 0]])
    known = beta(30.5, 10.5).ppf([0.025, 0.975])
    assert script.balanced_interval(one_class) == pytest.approx(known, abs=0.005)
    low, high = script.balanced_interval(torch.tensor([[900, 100, 0], [250, 750, 0]]))
    error = 1.96 * (0.9 * 0.1 / 1000 + 0.75 * 0.25 / 1000) ** 0.5 / 2
    assert (low, high) == pytest.approx((0.825 - error, 0.825 + error), abs=0.002)
    assert script.balanced_interval(one_class) == script.balanced_interval(one_class)


def test_a_class_with_one_image_makes_the_balanced_accuracy_uncertain():
    low, high = benchmark("groups").balanced_interval(torch.tensor([[1000, 0, 0], [0, 1, 0]]))
    assert (low < 0.7, high) == (True, pytest.approx(1, abs=0.01))


def test_the_interval_includes_a_balanced_accuracy_of_one():
    low, high = benchmark("groups").balanced_interval(torch.tensor([[3, 0], [0, 3]]))
    assert (low < 0.7, high) == (True, 1.0)


def test_the_luminance_of_cheeks_is_read_from_the_cheeks():
    script = benchmark("groups")
    crops = torch.zeros(2, 3, 112, 112, dtype=torch.uint8)
    for rows, columns in script.CHEEKS:
        crops[1, :, rows, columns] = 90
    assert script.cheek_luminance(crops).tolist() == pytest.approx([0, 90], abs=1e-3)
    groups = list(script.thirds(torch.tensor([3.0, 1, 2])))
    assert [rows.tolist() for _, rows in groups] == [[1], [2], [0]]
    assert groups[0][0] == "lowest third (1 to 1)"


def test_pairs_of_faces_score_a_clustering():
    script = benchmark("clusters")
    identities = torch.tensor([0, 0, 0, 1, 1, 2])
    # One pair of the four is right, and one of two pairs in a group. The last face is left out.
    assert script.pair_scores(torch.tensor([0, 0, 1, 1, 2, -1]), identities) == (0.5, 0.25)
    assert script.pair_scores(identities, identities) == (1, 1)
    assert script.pair_scores(torch.full((6,), -1), identities) == (0, 0)


def test_clusters_are_measured_on_the_validation_split(tmp_path):
    write_lfw(tmp_path)
    tables = benchmark("clusters").main(tmp_path)["tables"]
    assert tables["data"] == [{"faces": 4, "identities": 2, "identities with one image": 0}]
    assert [row["method"] for row in tables["clusters"]] == ["average"] * 4 + ["hdbscan"]
    assert all(row["groups"] <= 4 for row in tables["clusters"])


def test_parts_of_the_objective_are_named_by_their_equations():
    words = benchmark("ablation").WORDS
    functions = {
        "confusion": losses.confusion_loss,
        "cos": losses.orthogonality_loss,
        "id": losses.identity_consistency_loss,
        "recon": losses.reconstruction_loss,
    }
    for part, function in functions.items():
        (equation,) = re.findall(r"eq\. \(\d+\)", function.__doc__)
        assert words[part].endswith(equation)
    of_judge = (losses.discriminator_loss, losses.fake_neutral_loss, losses.fake_expression_loss)
    numbers = [re.findall(r"eq\. \((\d+)\)", function.__doc__)[0] for function in of_judge]
    assert words["discriminator"].endswith(f"eqs. ({numbers[0]}) to ({numbers[-1]})")
    results = BENCHMARKS.parent / "docs" / "results" / "ipd-fer.ablation.json"
    rows = json.loads(results.read_text())["tables"]["ablation"]
    assert [row["objective"] for row in rows] == list(words.values())


def test_other_detectors_are_measured_by_the_same_protocol(tmp_path, monkeypatch):
    write_lfw(tmp_path)
    write_groups(tmp_path)
    script = benchmark("detectors")
    side = 64  # of the images; write_lfw puts every face there
    corners = [side // 4, side // 4, side // 4 + side // 2, side // 4 + side // 2]
    marks = np.array(face_at(side // 4, side // 4, side // 2)["landmarks"]).reshape(1, 5, 2)
    oracle = np.array([corners], float), marks, np.ones(1)
    nothing = np.zeros((0, 4)), np.zeros((0, 5, 2)), np.zeros(0)
    pairs = itertools.cycle([oracle, nothing])
    finders = {
        "all": lambda images: script.faces_of([oracle for _ in images]),
        "half": lambda images: script.faces_of([next(pairs) for _ in images]),
    }
    monkeypatch.setattr(script, "finders", lambda: finders)
    result = script.main(tmp_path, repeats=1)
    rows = result["tables"]["detectors"]
    assert result["images"]["LFW"] == 4
    assert [row["central face: recall, %"] for row in rows] == [100, 50]
    assert rows[0]["LFW: landmarks, %"] == pytest.approx(0, abs=1e-3)
    assert all(row["ms at 640 px"] > 0 for row in rows)
    assert len(result["tables"]["curves"]) == 4


def test_the_own_detector_is_among_those_at_hand():
    photos = [torch.zeros(64, 64, 3, dtype=torch.uint8)]
    assert len(benchmark("detectors").finders()["facezoo"](photos)) == 0


@pytest.mark.parametrize(
    ("journey", "most_calls", "most_files"),
    [("first", 570, 21), ("encode", 150, 16), ("extract", 350, 27)],
)
def test_one_image_makes_few_calls_in_few_files(journey, most_calls, most_files):
    script = benchmark("calls")
    pipeline.load_detector.cache_clear()
    calls = script.calls_of(journey, str(PORTRAIT))
    assert calls.total() <= most_calls, calls.most_common(12)
    assert len(script.by_file(calls)) <= most_files, script.by_file(calls)


def test_edits_count_faces_that_change_as_wanted(monkeypatch):
    """A model whose edits are known: brightness by the strength, and nothing else."""
    script = benchmark("latent_simclr")

    class Brighter:
        architecture = {"directions": ["skin_tone", "smile"]}  # noqa: RUF012

        def edit(self, crops, name, strength, **_):
            change = -0.05 * strength if name == "skin_tone" else 0.0
            return (torch.stack(crops) + change).clamp(0, 1)

    generator = torch.Generator().manual_seed(0)
    crops = torch.rand(8, 3, 64, 64, generator=generator) * 0.8 - 0.4
    pack = script.Pack(crops, torch.zeros(8, 1, 1), torch.tensor([0, 1] * 4), [], torch.arange(8))
    rows = script.edits_table(Brighter(), pack, pack, lambda images: images.flatten(1))
    assert [row["strength"] for row in rows] == [*script.STRENGTHS] * 4
    steps = len(script.STRENGTHS)
    assert [row["image"] for row in rows] == (["edited crop"] * steps + ["generated"] * steps) * 2
    dark, smile = rows[: 2 * steps], rows[2 * steps :]
    # A change of 0.05 a strength is 12.75 of 255 gray values.
    assert all(row["changed as wanted, %"] == 100 for row in dark)
    assert all(row["faces"] == 8 and row["identity cosine"] < 1 for row in dark)
    # The judge, fitted to these faces, knows their classes, and the edit changes none.
    assert all(row["changed as wanted, %"] == 0 and row["faces"] == 4 for row in smile)
    assert all(row["identity cosine"] == pytest.approx(1) for row in smile)


def test_transfers_count_the_expressions_that_the_results_show(monkeypatch):
    """A model that returns the source, and one that returns the target."""
    script = benchmark("latent_simclr")

    class Copies:
        def transfer_expression(self, sources, targets, *, detail, **_):
            return torch.stack(sources if detail else targets)

    generator = torch.Generator().manual_seed(0)
    crops = torch.rand(8, 3, 64, 64, generator=generator) * 0.8 - 0.4
    pack = script.Pack(crops, torch.zeros(8, 1, 1), torch.tensor([0, 1] * 4), [], torch.arange(8))
    rows = script.transfers_table(Copies(), pack, pack, lambda images: images.flatten(1))
    steps = len(script.TRANSFERS)
    real, edited, generated = rows[0], rows[1 : 1 + steps], rows[1 + steps :]
    # The judge is fitted to these faces, so it knows the class of each.
    for row in (real, *edited):
        assert (row["smile taken, %"], row["neutral taken, %"]) == (100, 100)
        assert row["faces"] == 8
    for row in generated:
        assert (row["smile taken, %"], row["neutral taken, %"]) == (0, 0)
        assert row["identity cosine"] == pytest.approx(1)
