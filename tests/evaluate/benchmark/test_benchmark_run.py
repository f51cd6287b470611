"""The benchmark on packs whose red is the identity and whose green is the expression."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from colors import ColorModel, write_color_packs
from interrupting import interrupted
from packs import write_lfw

import facezoo
from facezoo.cli.main import main
from facezoo.evaluate.benchmark import Own, encoders, run
from facezoo.evaluate.benchmark.encoders import (
    Entry,
    baseline,
    features_of,
    own,
    training_data,
)
from facezoo.evaluate.benchmark.report import TABLES, contamination_of, table_text
from facezoo.evaluate.benchmark.swap import judge_swaps, partners, swaps
from facezoo.evaluate.packs import LONDON, PROTOCOLS, Packs
from facezoo.hub.card import Preprocessing, Training, bundled_cards

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]


class Painter(ColorModel):
    """A model that swaps by channels: red and blue of the target, green of the source."""

    provides = (*ColorModel.provides, "transfer_expression")

    def transfer_expression(self, source, target, *, aligned):
        assert aligned
        made = torch.stack(target).float() / 255
        made[:, 1] = torch.stack(source).float()[:, 1] / 255
        return made


class Editor(Painter):
    """The same model, which returns gray images unless it keeps the detail."""

    keeps_detail = True

    def transfer_expression(self, source, target, *, aligned, detail):
        made = super().transfer_expression(source, target, aligned=aligned)
        return made if detail else made.mean(1, keepdim=True).expand_as(made)


def test_pixels_are_fitted_again_to_other_images(tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "COMPONENTS", 3)
    crops = torch.rand(4, 3, 32, 32)
    found = []
    for name in ("some", "others", "some"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        write_lfw(folder, train=8 if name == "some" else 12)
        made = baseline("pixels", folder, tmp_path / "cache", CPU)
        found.append(made.run(crops, ["features"])["features"])
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_a_file_that_is_not_a_results_file_raises_an_error_with_its_name(packs, tmp_path, capsys):
    (tmp_path / "results.json").write_text("model,accuracy")
    words = ["benchmark", "ipd-fer", "--data", str(packs), "--out", str(tmp_path / "out")]
    assert main([*words, "--json", str(tmp_path / "results.json"), "--device", "cpu"]) == 1
    assert "results.json is not a results file of this version" in capsys.readouterr().err


@pytest.fixture
def packs(tmp_path):
    return write_color_packs(tmp_path)


@pytest.fixture
def quick(monkeypatch):
    """Use baselines without principal components and without a deep network."""

    def small(name, data, cache, device):
        made = own(name, Own(lambda crops: crops.mean((2, 3)), trained_on=()), device)
        return replace(made, key=encoders.BASELINES[name])

    monkeypatch.setattr(encoders, "baseline", small)


@pytest.fixture
def painter(monkeypatch):
    """Make ``load("ipd-fer")`` a model of colors, and the only bundled checkpoint."""
    model = Painter()
    model.absent = {}
    card = next(card for card in bundled_cards().values() if card.model == "ipd-fer")
    model.card = replace(card, model="ipd-fer", default=True)
    monkeypatch.setattr(run, "load", lambda name, device: model)
    monkeypatch.setattr(
        encoders, "bundled_checkpoints", lambda meshes: [] if meshes else [card.name]
    )
    return model


def two(crops):
    """Return expression and identity features, as an encoder of a user might."""
    model = ColorModel()
    return {"expression": model.embed_expression(crops), "identity": model.embed_identity(crops)}


@pytest.fixture
def brief(quick, monkeypatch):
    """Make every score 50 without fitting anything; return the list of calls."""
    probe = {"accuracy": 50.0, "spread": 1.0, "chance": 25.0, "control": 26.0}
    scores = {"accuracy": 50.0, "balanced accuracy": 50.0, "macro-F1": 50.0}
    expression = {
        "train_images": 8,
        "images": 8,
        "linear": scores,
        "neighbors": scores,
        "probe": probe,
        "yaw": [{"beyond_deg": None, "images": 8, "accuracy": 50.0}],
    }
    identity = dict.fromkeys(("verification", "identification", "same identity"), probe)
    calls = []

    def score_features(features, packs):
        calls.append(1)
        width = next(iter(features.values())).shape[1]
        return {
            "dim": width,
            "expression": dict.fromkeys(PROTOCOLS, expression),
            "identity": identity,
        }

    monkeypatch.setattr(run, "score_features", score_features)
    return calls


# --- the whole ------------------------------------------------------------------------------------


def test_the_scores_follow_what_the_features_hold(packs, tmp_path, quick, painter, monkeypatch):
    monkeypatch.setattr(run._Run, "is_complete", lambda self, name: True)
    found = facezoo.benchmark(["ipd-fer"], data=packs, out=tmp_path / "out", device="cpu")
    (entry,) = found.content["models"].values()
    expression, identity = (entry["scores"][space] for space in ("expression", "identity"))
    assert expression["expression"]["LFW val"]["linear"]["accuracy"] == 100
    assert expression["expression"]["London"]["neighbors"]["accuracy"] == 100
    assert identity["expression"]["LFW val"]["linear"]["accuracy"] < 85
    assert identity["identity"]["identification"]["accuracy"] == 100
    assert expression["identity"]["identification"]["chance"] == 25
    assert identity["identity"]["verification"]["accuracy"] == 100
    assert expression["expression"]["FER+ test"]["yaw"][0]["images"] == 16
    assert expression["expression"]["LFW val"]["yaw"][0]["beyond_deg"] is None
    removed = entry["removal"]["expressions kept"]
    assert removed["expression"]["LFW val"]["linear"]["accuracy"] == 100
    swap = entry["swap"]["pixels"]  # there is no other family
    assert swap["expression taken"] == swap["expression, photographs"] == 100
    assert swap["identity kept"] >= 80
    text = str(found)
    assert f"`{painter.card.name}`" in text
    assert (tmp_path / "out" / "benchmark.md").read_text(encoding="utf-8") == text


def test_the_baselines_are_in_the_tables_with_a_checkpoint(packs, tmp_path, brief, painter):
    found = facezoo.benchmark("ipd-fer", data=packs, out=tmp_path / "out", device="cpu")
    models = found.content["models"]
    assert set(models) == {painter.card.name, "pixels", "random-network"}
    assert set(models["pixels"]["scores"]) == {"features"}
    assert models["pixels"]["swap"] == {}


def test_nothing_is_measured_twice_and_a_new_model_is_added(packs, tmp_path, brief):
    out = tmp_path / "out"
    facezoo.benchmark(own={"first": two}, data=packs, out=out, device="cpu")
    before = json.loads((out / "benchmark.json").read_text(encoding="utf-8"))
    brief.clear()
    facezoo.benchmark(own={"first": two}, data=packs, out=out, device="cpu")
    assert brief == []
    second = Own(lambda crops: crops.mean((2, 3)), Preprocessing(size=32), ("FER+ train",))
    found = facezoo.benchmark(own={"second": second}, data=packs, out=out, device="cpu")
    assert len(brief) == 4  # unchanged, and three times for the removal
    assert set(found.content["models"]) == {"first", "second", "pixels", "random-network"}
    for name, entry in before["models"].items():
        assert found.content["models"][name] == entry
    assert found.content["models"]["second"]["contamination"]["FER+ test"] == "train split"
    assert found.content["models"]["first"]["contamination"]["FER+ test"] == "not stated"


def test_other_features_under_the_same_name_are_measured_again(packs, tmp_path, brief):
    out = tmp_path / "out"
    facezoo.benchmark(own={"mine": two}, data=packs, out=out, device="cpu")
    other = lambda crops: crops.flatten(2).std(2)  # noqa: E731
    found = facezoo.benchmark(own={"mine": other}, data=packs, out=out, device="cpu")
    assert set(found.content["models"]["mine"]["scores"]) == {"features"}


def test_the_same_network_on_other_crops_is_measured_again(packs, tmp_path, brief):
    out = tmp_path / "out"
    tight, loose = (Own(two, Preprocessing(template=t)) for t in ("arcface112", "facenet-loose"))
    first = facezoo.benchmark(own={"mine": tight}, data=packs, out=out, device="cpu")
    before = first.content["models"]["mine"]
    brief.clear()
    found = facezoo.benchmark(own={"mine": loose}, data=packs, out=out, device="cpu")
    assert found.content["models"]["mine"]["input"].startswith("facenet-loose")
    assert found.content["models"]["mine"]["key"] != before["key"]
    assert brief


def test_the_training_data_are_those_of_the_last_call(packs, tmp_path, brief):
    out = tmp_path / "out"
    facezoo.benchmark(own={"mine": two}, data=packs, out=out, device="cpu")
    brief.clear()
    known = Own(two, trained_on=("LFW val",))
    found = facezoo.benchmark(own={"mine": known}, data=packs, out=out, device="cpu")
    assert found.content["models"]["mine"]["contamination"]["LFW val"] == "yes"
    assert found.content["models"]["mine"]["trained on"] == ["LFW val"]
    assert brief == []
    stored = json.loads((out / "benchmark.json").read_text(encoding="utf-8"))
    assert stored["models"]["mine"] == found.content["models"]["mine"]


@pytest.mark.parametrize(
    "name", ["pixels", "random-network", "ipd-fer.ferplus-lfw", "latentface.lfw"]
)
def test_two_lines_of_one_name_raise_an_error(packs, tmp_path, brief, painter, name):
    with pytest.raises(ValueError, match=f"{name} is the name of another line"):
        facezoo.benchmark(
            "ipd-fer", own={name: two}, data=packs, out=tmp_path / "out", device="cpu"
        )
    assert not (tmp_path / "out").exists()


def test_cached_features_of_other_images_are_not_used(packs, tmp_path):
    encoder = own("mine", lambda crops: crops.mean((2, 3)), CPU)
    found = {}
    for kind in ("as they are", "others", "other landmarks"):
        read = Packs.read(packs)
        split = read.splits[LONDON]
        table = split.table
        if kind == "others":
            images = table["image"].combine_chunks()
            order = [*range(1, len(table)), 0]
            table = table.set_column(table.column_names.index("image"), "image", images.take(order))
        if kind == "other landmarks":
            points = [[1.5 * p for p in row] for row in table["landmarks"].to_pylist()]
            place = table.column_names.index("landmarks")
            table = table.set_column(place, "landmarks", [points])
        changed = replace(read, splits={**read.splits, LONDON: replace(split, table=table)})
        assert changed.description() == read.description()
        kept = features_of(encoder, changed, tmp_path / "cache", [LONDON])
        fresh = features_of(encoder, changed, tmp_path / kind, [LONDON])
        assert torch.equal(kept["features"][LONDON], fresh["features"][LONDON]), kind
        found[kind] = kept["features"][LONDON]
    assert not torch.equal(found["as they are"], found["others"])


def test_it_resumes_after_an_interruption(packs, tmp_path, brief, monkeypatch):
    out = tmp_path / "out"
    with interrupted(monkeypatch, "score_features", run, after=1):
        facezoo.benchmark(own={"mine": two}, data=packs, out=out, device="cpu")
    entry = json.loads((out / "benchmark.json").read_text(encoding="utf-8"))["models"]["mine"]
    assert set(entry["scores"]) == {"expression"}
    found = facezoo.benchmark(own={"mine": two}, data=packs, out=out, device="cpu")
    assert found.content["models"]["mine"]["scores"]["expression"] == entry["scores"]["expression"]
    assert {"scores", "removal", "speed"} <= found.content["models"]["mine"].keys()
    monkeypatch.setattr(
        "facezoo.evaluate.benchmark.encoders.embed_aligned", None
    )  # features are there
    facezoo.benchmark(own={"mine": two}, data=packs, out=out, device="cpu")


def test_numbers_of_other_data_are_not_mixed(packs, tmp_path, brief):
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"data": {"FER+ test": "3 images, 0"}, "models": {}, "meshes": {}}))
    with pytest.raises(ValueError, match="name another file"):
        facezoo.benchmark(
            own={"mine": two}, data=packs, out=tmp_path / "out", results=path, device="cpu"
        )
    assert json.loads(path.read_text())["models"] == {}


def test_the_command_measures_and_prints(packs, tmp_path, brief, painter, capsys):
    file = tmp_path / "b.json"
    words = ["benchmark", "ipd-fer", "--data", str(packs), "--out", str(tmp_path / "out")]
    assert main([*words, "--json", str(file), "--device", "cpu"]) == 0
    assert "## Swap test" in capsys.readouterr().out
    entry = json.loads(file.read_text(encoding="utf-8"))["models"][painter.card.name]
    assert entry["command"] == f"facezoo benchmark {painter.card.name} --data DATA --out OUT"


def test_missing_data_and_unknown_models_raise_an_error_before_anything_is_written(
    tmp_path, capsys
):
    words = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["benchmark", "ipd-ferr", *words]) == 1
    assert "did you mean" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=r"has no ferplus\.parquet"):
        facezoo.benchmark(own={"mine": two}, data=tmp_path, out=tmp_path / "o", device="cpu")
    assert not any(tmp_path.iterdir())


def test_results_that_their_own_tables_would_replace_raise_an_error(tmp_path):
    where = {"data": tmp_path, "out": tmp_path / "out", "results": tmp_path / "results.md"}
    with pytest.raises(ValueError, match=r"name a \.json file"):
        facezoo.benchmark(own={"mine": two}, device="cpu", **where)


def test_a_model_of_meshes_has_its_own_table(tmp_path, monkeypatch):
    from facezoo.hub.card import Metric

    metric = Metric("rank-1", 91.23456, "%", "ICT-3D standard", "test", "unseen persons", "c")
    monkeypatch.setattr(run, "load", lambda name, device: None)
    monkeypatch.setattr(run, "measure_meshes", lambda model, data: None)
    monkeypatch.setattr(run, "as_metrics", lambda found, command: [metric])
    monkeypatch.setattr(run._Run, "is_complete", lambda self, name: True)
    found = facezoo.benchmark(["adv3d"], data=tmp_path, out=tmp_path, device="cpu")
    assert "| `adv3d.ict-neutral` | 91.2 |" in table_text(found.content, "meshes")
    assert table_text(found.content, "overview") == "Not measured."


def test_three_lines_of_the_documentation_add_an_encoder(packs, tmp_path, brief, monkeypatch):
    page = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"<!-- no-run: .+? -->\n```python\n(.+?)```", page, re.DOTALL)
    code = [line for line in lines.splitlines() if line and not line.startswith("#")]
    assert len(code) == 3
    (tmp_path / "DATA").symlink_to(packs)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(lines, "docs/benchmark.md", "exec"), names)
    assert "| `mine` |" in str(names["report"])


# --- entries --------------------------------------------------------------------------------------


def test_a_callable_without_features_raises_an_error():
    for wrong in (lambda crops: crops, lambda crops: {"expression": crops.mean((2, 3))}):
        with pytest.raises(ValueError, match="mine must return features"):
            own("mine", wrong, CPU)


def test_a_network_is_put_in_eval_mode_and_its_parameters_are_counted():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(48, 2))
    made = own("mine", Own(network, Preprocessing(size=4)), CPU)
    assert not network.training
    assert (made.parameters, made.spaces) == (98, ("features",))


@pytest.fixture
def few_pixels(monkeypatch):
    """Use so few pixels that principal components are fast."""
    monkeypatch.setattr(encoders, "PIXEL_SIDE", 8)
    monkeypatch.setattr(encoders, "COMPONENTS", 12)


def test_the_baselines_are_repeatable(packs, tmp_path, few_pixels):
    crops = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    rows = []
    for _ in range(2):
        made = baseline("pixels", packs, tmp_path / "cache", CPU)
        rows.append(made.run(crops, ["features"])["features"])
    torch.testing.assert_close(rows[0], rows[1])
    assert rows[0].shape == (2, 12)
    assert len([*(tmp_path / "cache").glob(f"{made.key}-*.safetensors")]) == 1
    state = torch.get_rng_state()
    networks = [baseline("random-network", packs, tmp_path, CPU).encode for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    for first, second in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(first, second)


def test_the_pixels_baseline_has_the_directions_of_largest_variance(packs, tmp_path, few_pixels):
    pack = Packs.read(packs)
    made = baseline("pixels", packs, tmp_path, CPU)
    spread = features_of(made, pack, tmp_path)["features"]["LFW train"].std(0)
    assert bool((spread.diff() < 1e-2).all())  # falling variance
    assert spread[0] > 1


# --- contamination --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (None, ("not stated",) * 3),
        ((), ("no", "no", "no")),
        (("FER+ train: 26,804 images of FER2013",), ("train split", "no", "no")),
        (("FER2013, all of it",), ("yes", "no", "no")),
        (("LFW train: 8,408 photographs", "LFW val"), ("no", "yes", "no")),
        (("Labeled Faces in the Wild, train",), ("no", "train split", "no")),
        (("Face Research Lab London Set, train",), ("no", "no", "yes")),
        (("london_expr.parquet: 204 faces of 2 classes",), ("no", "no", "yes")),
        (("lfw_train: 8,408 faces of 2 classes",), ("no", "yes", "no")),
        (("FER-2013 and FER plus", "fer_2013.csv"), ("yes", "no", "no")),
        (("Londoners, halfway", "offer 2013"), ("no", "no", "no")),
        (("London set, by way of ipd-fer", "LFW train"), ("no", "train split", "indirectly")),
        (("London set, by way of ipd-fer", "London"), ("no", "no", "yes")),
    ],
)
def test_contamination_follows_the_training_data(texts, expected):
    assert tuple(contamination_of(texts).values()) == expected


def test_the_training_data_of_a_teacher_count_too():
    cards = bundled_cards()
    teacher = next(card for card in cards.values() if card.model == "ipd-fer")
    pupil = next(card for card in cards.values() if card.model == "latentface")
    texts = training_data(pupil)
    assert set(pupil.training.data) < set(texts)
    assert f"{teacher.training.data[0]}, by way of ipd-fer" in texts
    nothing = Training((), "", "", {}, None, "", base=teacher.name)
    by_way = {f"{text}, by way of ipd-fer" for text in teacher.training.data}
    assert set(training_data(replace(pupil, training=nothing))) == by_way


def test_the_name_of_a_base_checkpoint_is_not_training_data():
    card = bundled_cards()["latentface.wild"]
    assert card.training.base == "latentface.wild"
    assert "latentface.wild" not in training_data(card)
    assert contamination_of(training_data(card))["LFW val"] == "train split"
    left_out = replace(card.training, base=f"{card.model}.lfw-of-an-earlier-version")
    card = replace(card, training=left_out)
    assert contamination_of(training_data(card))["LFW val"] == "train split"


# --- the swap test --------------------------------------------------------------------------------


def entry_of(model, packs):
    model.absent = {}
    return encoders.checkpoint("colors", model)


def test_partners_are_the_other_image_and_that_of_the_next_identity(packs):
    split = Packs.read(packs).splits[LONDON]
    twins, sources, shown = partners(split, seed=0)
    rows = torch.arange(len(twins))
    assert torch.equal(split.identities[twins], split.identities)
    assert bool((split.identities[sources] != split.identities).all())
    assert torch.equal(shown[twins], 1 - shown)
    assert torch.equal(shown[sources], 1 - shown)
    assert torch.equal(twins[twins], rows)
    assert len(sources.unique()) == len(rows)


def test_the_judge_separates_models_that_swap_from_models_that_do_not(packs, tmp_path):
    read, painter = Packs.read(packs), entry_of(Painter(), packs)
    judge = own("judge", two, CPU)
    features = features_of(judge, read, tmp_path / "cache")
    swap = swaps(painter, read)
    good = judge_swaps(swap, painter.preprocessing, judge, features, read)
    assert good["identity kept"] == good["identity, photographs"] == 100
    assert good["expression taken"] == good["expression, decoded"] == 100
    assert good["swaps"] == 10
    unmoved = judge_swaps(
        replace(swap, swapped=swap.real), painter.preprocessing, judge, features, read
    )
    assert (unmoved["identity kept"], unmoved["expression taken"]) == (100, 0)
    copied = judge_swaps(
        replace(swap, swapped=swap.real[swap.sources]),
        painter.preprocessing,
        judge,
        features,
        read,
    )
    assert (copied["identity kept"], copied["expression taken"]) == (0, 100)


def test_identities_without_both_expressions_raise_an_error(packs):
    split = Packs.read(packs).splits[LONDON]
    with pytest.raises(ValueError, match="each with one neutral and one smiling"):
        partners(replace(split, labels=torch.zeros_like(split.labels)), seed=0)


# --- the tables -----------------------------------------------------------------------------------


def test_a_teacher_is_recognized_as_judge_without_a_line_of_its_own():
    found = dict.fromkeys(("identity kept", "expression taken"), 50.0)
    found |= {
        f"{a}, {b}": 50.0 for a in ("identity", "expression") for b in ("decoded", "photographs")
    }
    entry = {
        "spaces": [],
        "scores": {},
        "trained on": ["LFW train", "feature loss by ipd-fer"],
        "swap": {"ipd-fer.ferplus-lfw": found, "latent-simclr.wild-preview": found},
    }
    content = {"models": {"latentface.lfw": entry}, "meshes": {}}
    trained = [row["the model was trained with the judge"] for row in TABLES["swap"](content)]
    assert trained == ["yes", "no"]


def test_edited_crops_have_a_row_of_their_own():
    scores = dict.fromkeys(("identity kept", "expression taken", "identity, decoded"), 50.0)
    edited = {"identity kept": 90.0, "expression taken": 80.0, "neutral": 70.0}
    entry = {"trained on": [], "swap": {"pixels": {**scores, "edited": edited}}}
    rows = list(TABLES["swap"]({"models": {"mine": entry}, "meshes": {}}))
    assert [row["image"] for row in rows] == ["decoded face", "edited crop"]
    assert [row["identity kept"] for row in rows] == ["50.0", "90.0"]
    assert rows[1]["neutralized: neutral"] == "70.0"
    assert rows[1]["identity kept, unswapped"] == "–"


def test_the_lowest_score_among_the_judges_summarizes_the_swaps():
    judges = {
        "pixels": {"identity kept": 50.0, "expression taken": 9.876, "edited": {}},
        "latentface.lfw": {"identity kept": 60.0, "expression taken": 5.0},
    }
    judges["pixels"] |= {"identity, photographs": 99.0, "expression, photographs": 75.0}
    judges["pixels"]["edited"] = {"identity kept": 90.0, "expression taken": 80.0}
    content = {"models": {"mine": {"swap": judges}}, "meshes": {}}
    rows = [list(row.values()) for row in TABLES["worst"](content)]
    assert rows[0] == ["`mine`", "edited crop", "90.0", "99.0", "80.0", "75.0"]
    assert rows[1] == ["`mine`", "decoded face", "50.0", "99.0", "5.00", "–"]


def test_a_model_that_keeps_detail_is_judged_with_and_without_it(packs):
    read, model = Packs.read(packs), Editor()
    images = {
        detail: swaps(entry_of(model, packs), read, detail=detail) for detail in (False, True)
    }
    assert torch.equal(images[True].decoded, images[True].real)
    assert not torch.equal(images[False].decoded, images[False].real)


def test_yaw_columns_stay_if_a_pack_has_no_such_faces():
    bins = [{"beyond_deg": d, "images": 8, "accuracy": a} for d, a in ((None, 90.0), (10, 70.0))]
    expression = {"FER+ test": {"yaw": bins[:1]}, "LFW val": {"yaw": bins}}
    entry = {"spaces": ["features"], "scores": {"features": {"expression": expression}}}
    lines = table_text({"models": {"mine": entry}, "meshes": {}}, "yaw").splitlines()
    assert lines[0] == "| measured on | model | any yaw | over 10° |"
    assert lines[2] == "| FER+ test | `mine` | 90.0 (8) | – |"
    assert lines[3] == "| LFW val | `mine` | 90.0 (8) | 70.0 (8) |"


def test_training_data_are_listed_by_name_and_by_the_model_that_saw_them():
    texts = ["LFW (deep-funneled) train: 8 images", "LFW train: 8; FER+ train: 9"]
    texts += ["London: 73 identities, by way of ipd-fer", "teacher, by way of ipd-fer"]
    models = {"mine": {"trained on": texts}, "theirs": {"trained on": None}}
    mine, theirs = TABLES["contamination"]({"models": models})
    assert mine["trained on"] == "LFW train, FER+ train; by way of `ipd-fer`: London, teacher"
    assert (mine["London"], theirs["London"]) == ("indirectly", "not stated")
    assert theirs["trained on"] == "–"


def test_leakage_is_between_its_control_and_the_intended_features():
    def scores(accuracy):
        part = {"accuracy": accuracy, "chance": 5.0, "control": 6.0, "spread": None}
        return {
            "identity": dict.fromkeys(("verification", "identification", "same identity"), part)
        }

    entry = {"scores": {"expression": scores(30.0), "identity": scores(90.0)}}
    rows = list(TABLES["leakage"]({"models": {"mine": entry, "one": {"scores": {"x": {}}}}}))
    assert [row["identification, LFW val"] for row in rows] == ["5.00", "30.0", "6.00", "90.0"]


def test_an_unknown_table_raises_an_error():
    with pytest.raises(ValueError, match="unknown table 'xyz'"):
        table_text({"models": {}, "meshes": {}}, "xyz")


def test_every_table_has_lines_of_one_length(packs, tmp_path, brief):
    found = facezoo.benchmark(own={"mine": two}, data=packs, out=tmp_path / "out", device="cpu")
    for name in TABLES:
        lines = table_text(found.content, name).splitlines()
        assert len({line.count("|") for line in lines}) == 1, name


def test_an_entry_runs_in_batches_and_in_inference_mode():
    def encode(crops):
        assert torch.is_inference_mode_enabled()
        assert len(crops) <= 2
        return crops.mean((2, 3))

    made = Entry("x", "0", ("features",), Preprocessing(), CPU, encode, None)
    crops = torch.rand(5, 3, 4, 4)
    torch.testing.assert_close(made.run(crops, ["features"], 2)["features"], crops.mean((2, 3)))
