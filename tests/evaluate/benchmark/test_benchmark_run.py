"""The benchmark on packs in which red says who it is and green what is expressed."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from colours import ColourModel, write_colour_packs
from packs import write_lfw

import facezoo
from facezoo.cli.main import main
from facezoo.evaluate.benchmark import Own, entrants, run
from facezoo.evaluate.benchmark.contamination import contamination
from facezoo.evaluate.benchmark.entrants import Entrant, learnt_from, own, reference
from facezoo.evaluate.benchmark.measure import PROTOCOLS
from facezoo.evaluate.benchmark.report import TABLES, table_text
from facezoo.evaluate.benchmark.splits import LONDON, Packs, features_of
from facezoo.evaluate.benchmark.swap import judged, partners, swaps
from facezoo.hub.card import Preprocessing, Training, bundled_cards

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


class Painter(ColourModel):
    """Swaps by channels: red and blue of the one, green of the other."""

    def embed_expression(self, images):
        return super().embed_expression(images)

    def transfer_expression(self, source, target, *, aligned):
        assert aligned
        made = torch.stack(target).float() / 255
        made[:, 1] = torch.stack(source).float()[:, 1] / 255
        return made


def test_pixels_are_fitted_anew_to_other_photographs(tmp_path, monkeypatch):
    monkeypatch.setattr(entrants, "COMPONENTS", 3)
    crops = torch.rand(4, 3, 32, 32)
    found = []
    for name in ("some", "others", "some"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        write_lfw(folder, train=8 if name == "some" else 12)
        made = reference("pixels", folder, tmp_path / "cache", CPU)
        found.append(made.run(crops, ["features"])["features"])
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_a_file_that_is_no_file_of_results_is_named(packs, tmp_path, capsys):
    (tmp_path / "results.json").write_text("model,accuracy")
    words = ["benchmark", "ipd-fer", "--data", str(packs), "--out", str(tmp_path / "out")]
    assert main([*words, "--json", str(tmp_path / "results.json"), "--device", "cpu"]) == 1
    assert "results.json is no file of results" in capsys.readouterr().err


@pytest.fixture
def packs(tmp_path):
    return write_colour_packs(tmp_path)


@pytest.fixture
def quick(monkeypatch):
    """References that need neither principal components nor a deep network."""

    def small(name, data, cache, device):
        made = own(name, Own(lambda crops: crops.mean((2, 3)), trained_on=()), device)
        return replace(made, key=entrants.REFERENCES[name])

    monkeypatch.setattr(entrants, "reference", small)


@pytest.fixture
def painter(monkeypatch):
    """``load("ipd-fer")`` and its card stand for a model of colours, the only one there is."""
    model = Painter()
    model.absent = {}
    card = next(card for card in bundled_cards().values() if card.model == "ipd-fer")
    model.card = replace(card, model="ipd-fer", default=True)
    monkeypatch.setattr(run, "load", lambda name, device: model)
    monkeypatch.setattr(entrants, "photograph_checkpoints", lambda: [card.name])
    return model


def two(crops):
    """Features of the crops in the two colours, as a model of one's own might give them."""
    model = ColourModel()
    return {"expression": model.embed_expression(crops), "identity": model.embed_identity(crops)}


@pytest.fixture
def brief(quick, monkeypatch):
    """Every reading is 50, so that nothing is fitted; the list tells how often was read."""
    reading = {"accuracy": 50.0, "spread": 1.0, "chance": 25.0, "control": 26.0}
    scores = {"accuracy": 50.0, "balanced accuracy": 50.0, "macro-F1": 50.0}
    expression = {
        "fitted": 8,
        "told": 8,
        "linear": scores,
        "neighbours": scores,
        "reading": reading,
        "yaw": [{"beyond_deg": None, "images": 8, "accuracy": 50.0}],
    }
    identity = dict.fromkeys(("verification", "identification", "same person"), reading)
    calls = []

    def read_out(features, packs):
        calls.append(1)
        width = next(iter(features.values())).shape[1]
        return {
            "dim": width,
            "expression": dict.fromkeys(PROTOCOLS, expression),
            "identity": identity,
        }

    monkeypatch.setattr(run, "read_out", read_out)
    return calls


# --- the whole ------------------------------------------------------------------------------------


def test_what_a_model_holds_and_does_not_hold_is_measured(
    packs, tmp_path, quick, painter, monkeypatch
):
    monkeypatch.setattr(run._Course, "holds", lambda self, name: True)
    found = facezoo.benchmark(["ipd-fer"], data=packs, out=tmp_path / "out", device="cpu")
    (entry,) = found.content["models"].values()
    expression, identity = (entry["read"][space] for space in ("expression", "identity"))
    assert expression["expression"]["LFW val"]["linear"]["accuracy"] == 100
    assert expression["expression"]["London"]["neighbours"]["accuracy"] == 100
    assert identity["expression"]["LFW val"]["linear"]["accuracy"] < 85
    assert identity["identity"]["identification"]["accuracy"] == 100
    assert expression["identity"]["identification"]["chance"] == 25
    assert identity["identity"]["verification"]["accuracy"] == 100
    assert expression["expression"]["FER+ test"]["yaw"][0]["images"] == 16
    assert expression["expression"]["LFW val"]["yaw"][0]["beyond_deg"] is None
    removed = entry["removal"]["expressions kept"]
    assert removed["expression"]["LFW val"]["linear"]["accuracy"] == 100
    swap = entry["swap"]["pixels"]  # no other family is there to judge
    assert swap["expression taken"] == swap["expression, photographs"] == 100
    assert swap["identity kept"] >= 80
    text = str(found)
    assert f"`{painter.card.name}`" in text
    assert (tmp_path / "out" / "benchmark.md").read_text(encoding="utf-8") == text


def test_the_references_stand_beside_a_checkpoint(packs, tmp_path, brief, painter):
    found = facezoo.benchmark("ipd-fer", data=packs, out=tmp_path / "out", device="cpu")
    models = found.content["models"]
    assert set(models) == {painter.card.name, "pixels", "random-network"}
    assert set(models["pixels"]["read"]) == {"features"}
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
    assert len(brief) == 4  # as it is, and three times for the removal
    assert set(found.content["models"]) == {"first", "second", "pixels", "random-network"}
    for name, entry in before["models"].items():
        assert found.content["models"][name] == entry
    assert found.content["models"]["second"]["contamination"]["FER+ test"] == "train split"
    assert found.content["models"]["first"]["contamination"]["FER+ test"] == "not stated"


def test_other_features_under_the_same_name_are_measured_anew(packs, tmp_path, brief):
    out = tmp_path / "out"
    facezoo.benchmark(own={"mine": two}, data=packs, out=out, device="cpu")
    other = lambda crops: crops.flatten(2).std(2)  # noqa: E731
    found = facezoo.benchmark(own={"mine": other}, data=packs, out=out, device="cpu")
    assert set(found.content["models"]["mine"]["read"]) == {"features"}


def test_the_same_network_on_other_crops_is_measured_anew(packs, tmp_path, brief):
    out = tmp_path / "out"
    tight, loose = (Own(two, Preprocessing(template=t)) for t in ("arcface112", "facenet-loose"))
    first = facezoo.benchmark(own={"mine": tight}, data=packs, out=out, device="cpu")
    before = first.content["models"]["mine"]
    brief.clear()
    found = facezoo.benchmark(own={"mine": loose}, data=packs, out=out, device="cpu")
    assert found.content["models"]["mine"]["input"].startswith("facenet-loose")
    assert found.content["models"]["mine"]["key"] != before["key"]
    assert brief


def test_what_is_said_of_the_training_data_is_that_of_the_last_call(packs, tmp_path, brief):
    out = tmp_path / "out"
    facezoo.benchmark(own={"mine": two}, data=packs, out=out, device="cpu")
    brief.clear()
    told = Own(two, trained_on=("LFW val",))
    found = facezoo.benchmark(own={"mine": told}, data=packs, out=out, device="cpu")
    assert found.content["models"]["mine"]["contamination"]["LFW val"] == "yes"
    assert found.content["models"]["mine"]["trained on"] == ["LFW val"]
    assert brief == []
    stored = json.loads((out / "benchmark.json").read_text(encoding="utf-8"))
    assert stored["models"]["mine"] == found.content["models"]["mine"]


@pytest.mark.parametrize(
    "name", ["pixels", "random-network", "ipd-fer.ferplus-lfw", "latentface.lfw"]
)
def test_two_lines_of_one_name_are_refused(packs, tmp_path, brief, painter, name):
    with pytest.raises(ValueError, match=f"{name} is the name of another line"):
        facezoo.benchmark(
            "ipd-fer", own={name: two}, data=packs, out=tmp_path / "out", device="cpu"
        )
    assert not (tmp_path / "out").exists()


def test_features_of_other_photographs_under_the_same_names_are_not_taken(packs, tmp_path):
    entrant = own("mine", lambda crops: crops.mean((2, 3)), CPU)
    found = {}
    for kind in ("as they are", "others", "other landmarks"):
        read = Packs.read(packs)
        view = read.views[LONDON]
        table = view.table
        if kind == "others":
            images = table["image"].combine_chunks()
            order = [*range(1, len(table)), 0]
            table = table.set_column(table.column_names.index("image"), "image", images.take(order))
        if kind == "other landmarks":
            points = [[1.5 * p for p in row] for row in table["landmarks"].to_pylist()]
            place = table.column_names.index("landmarks")
            table = table.set_column(place, "landmarks", [points])
        changed = replace(read, views={**read.views, LONDON: replace(view, table=table)})
        assert changed.digests() == read.digests()
        kept = features_of(entrant, changed, tmp_path / "cache", [LONDON])
        fresh = features_of(entrant, changed, tmp_path / kind, [LONDON])
        assert torch.equal(kept["features"][LONDON], fresh["features"][LONDON]), kind
        found[kind] = kept["features"][LONDON]
    assert not torch.equal(found["as they are"], found["others"])


def test_it_goes_on_after_an_interruption(packs, tmp_path, brief, monkeypatch):
    out, read_out = tmp_path / "out", run.read_out
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return read_out(*arguments)

    monkeypatch.setattr(run, "read_out", interrupted)
    with pytest.raises(KeyboardInterrupt):
        facezoo.benchmark(own={"mine": two}, data=packs, out=out, device="cpu")
    entry = json.loads((out / "benchmark.json").read_text(encoding="utf-8"))["models"]["mine"]
    assert set(entry["read"]) == {"expression"}
    found = facezoo.benchmark(own={"mine": two}, data=packs, out=out, device="cpu")
    assert found.content["models"]["mine"]["read"]["expression"] == entry["read"]["expression"]
    assert {"read", "removal", "speed"} <= found.content["models"]["mine"].keys()
    monkeypatch.setattr("facezoo.evaluate.benchmark.splits.embed_given", None)  # features are there
    facezoo.benchmark(own={"mine": two}, data=packs, out=out, device="cpu")


def test_numbers_of_other_data_are_not_mixed(packs, tmp_path, brief):
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"data": {"FER+ test": "3 images, 0"}, "models": {}, "meshes": {}}))
    with pytest.raises(ValueError, match="cannot stand in one table"):
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


def test_missing_data_and_unknown_models_are_told_before_anything_is_done(tmp_path, capsys):
    words = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["benchmark", "ipd-ferr", *words]) == 1
    assert "did you mean" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=r"has no ferplus\.parquet"):
        facezoo.benchmark(own={"mine": two}, data=tmp_path, out=tmp_path / "o", device="cpu")
    assert not any(tmp_path.iterdir())


def test_results_that_their_own_tables_would_replace_are_refused(tmp_path):
    where = {"data": tmp_path, "out": tmp_path / "out", "results": tmp_path / "results.md"}
    with pytest.raises(ValueError, match=r"results\.md is where the tables go"):
        facezoo.benchmark(own={"mine": two}, device="cpu", **where)


def test_a_model_of_meshes_stands_in_a_table_of_its_own(tmp_path, monkeypatch):
    from facezoo.hub.card import Metric

    metric = Metric("rank-1", 91.23456, "%", "ICT-3D standard", "test", "unseen persons", "c")
    monkeypatch.setattr(run, "load", lambda name, device: None)
    monkeypatch.setattr(run, "measure_meshes", lambda model, data: None)
    monkeypatch.setattr(run, "as_metrics", lambda found, command: [metric])
    monkeypatch.setattr(run._Course, "holds", lambda self, name: True)
    found = facezoo.benchmark(["adv3d"], data=tmp_path, out=tmp_path, device="cpu")
    assert "| `adv3d.ict` | 91.23 |" in table_text(found.content, "meshes")
    assert table_text(found.content, "overview") == "Not measured."


def test_three_lines_in_the_documentation_add_a_model_of_ones_own(
    packs, tmp_path, brief, monkeypatch
):
    page = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"<!-- no-run: .+? -->\n```python\n(.+?)```", page, re.DOTALL)
    assert len([line for line in lines.splitlines() if line]) == 3
    (tmp_path / "DATA").symlink_to(packs)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(lines, "docs/benchmark.md", "exec"), names)
    assert "| `mine` |" in str(names["found"])


# --- who takes part -------------------------------------------------------------------------------


def test_a_callable_that_gives_no_features_is_refused():
    for wrong in (lambda crops: crops, lambda crops: {"expression": crops.mean((2, 3))}):
        with pytest.raises(ValueError, match="mine must give features"):
            own("mine", wrong, CPU)


def test_a_network_of_ones_own_is_put_in_eval_mode_and_counted():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(48, 2))
    made = own("mine", Own(network, Preprocessing(size=4)), CPU)
    assert not network.training
    assert (made.parameters, made.spaces) == (98, ("features",))


@pytest.fixture
def few_pixels(monkeypatch):
    """Few enough for their principal components to be found at once."""
    monkeypatch.setattr(entrants, "PIXEL_SIDE", 8)
    monkeypatch.setattr(entrants, "COMPONENTS", 12)


def test_the_references_are_the_same_every_time(packs, tmp_path, few_pixels):
    crops = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    rows = []
    for _ in range(2):
        made = reference("pixels", packs, tmp_path / "cache", CPU)
        rows.append(made.run(crops, ["features"])["features"])
    torch.testing.assert_close(rows[0], rows[1])
    assert rows[0].shape == (2, 12)
    assert len([*(tmp_path / "cache").glob(f"{made.key}-*.safetensors")]) == 1
    state = torch.get_rng_state()
    networks = [reference("random-network", packs, tmp_path, CPU).encode for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    for first, second in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(first, second)


def test_the_pixels_reference_keeps_what_varies_most(packs, tmp_path, few_pixels):
    pack = Packs.read(packs)
    made = reference("pixels", packs, tmp_path, CPU)
    spread = features_of(made, pack, tmp_path)["features"]["LFW train"].std(0)
    assert bool((spread.diff() < 1e-2).all())  # of falling variance
    assert spread[0] > 1


# --- contamination --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "wanted"),
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
    ],
)
def test_contamination_is_read_from_what_is_said_of_the_training_data(texts, wanted):
    assert tuple(contamination(texts).values()) == wanted


def test_what_a_teacher_learnt_from_counts_too():
    cards = bundled_cards()
    teacher = next(card for card in cards.values() if card.model == "ipd-fer")
    pupil = next(card for card in cards.values() if card.model == "latentface")
    texts = learnt_from(pupil)
    assert set(pupil.training.data) < set(texts)
    assert f"{teacher.training.data[0]}, by way of ipd-fer" in texts
    nothing = Training((), "", "", {}, None, "", base=teacher.name)
    assert len(learnt_from(replace(pupil, training=nothing))) > len(teacher.training.data)


# --- the swap test --------------------------------------------------------------------------------


def entrant_of(model, packs):
    model.absent = {}
    return entrants.checkpoint("colours", model)


def test_partners_are_the_other_photograph_and_the_next_persons(packs):
    view = Packs.read(packs).views[LONDON]
    twins, sources, shown = partners(view, seed=0)
    rows = torch.arange(len(twins))
    assert torch.equal(view.people[twins], view.people)
    assert bool((view.people[sources] != view.people).all())
    assert torch.equal(shown[twins], 1 - shown)
    assert torch.equal(shown[sources], 1 - shown)
    assert torch.equal(twins[twins], rows)
    assert len(sources.unique()) == len(rows)


def test_a_model_that_swaps_is_told_from_one_that_does_not(packs, tmp_path):
    read, painter = Packs.read(packs), entrant_of(Painter(), packs)
    judge = own("judge", two, CPU)
    features = features_of(judge, read, tmp_path / "cache")
    swap = swaps(painter, read)
    good = judged(swap, painter.preprocessing, judge, features, read)
    assert good["identity kept"] == good["identity, photographs"] == 100
    assert good["expression taken"] == good["expression, decoded"] == 100
    assert good["swaps"] == 10
    unmoved = judged(
        replace(swap, swapped=swap.photographs), painter.preprocessing, judge, features, read
    )
    assert (unmoved["identity kept"], unmoved["expression taken"]) == (100, 0)
    copied = judged(
        replace(swap, swapped=swap.photographs[swap.sources]),
        painter.preprocessing,
        judge,
        features,
        read,
    )
    assert (copied["identity kept"], copied["expression taken"]) == (0, 100)


def test_people_without_both_expressions_are_refused(packs):
    view = Packs.read(packs).views[LONDON]
    with pytest.raises(ValueError, match="each once neutral and once smiling"):
        partners(replace(view, labels=torch.zeros_like(view.labels)), seed=0)


# --- the tables -----------------------------------------------------------------------------------


def test_a_teacher_is_known_as_judge_though_the_file_has_no_line_of_it():
    found = dict.fromkeys(("identity kept", "expression taken"), 50.0)
    found |= {
        f"{a}, {b}": 50.0 for a in ("identity", "expression") for b in ("decoded", "photographs")
    }
    entry = {
        "spaces": [],
        "read": {},
        "trained on": ["LFW train", "feature loss by ipd-fer"],
        "swap": {"ipd-fer.ferplus-lfw": found, "latent-simclr.lfw-preview": found},
    }
    content = {"models": {"latentface.lfw": entry}, "meshes": {}}
    learnt = [row["the model learnt from the judge"] for row in TABLES["swap"](content)]
    assert learnt == ["yes", "no"]


def test_faces_turned_aside_keep_their_columns_where_a_pack_has_none():
    bins = [{"beyond_deg": d, "images": 8, "accuracy": a} for d, a in ((None, 90.0), (10, 70.0))]
    told = {"FER+ test": {"yaw": bins[:1]}, "LFW val": {"yaw": bins}}
    entry = {"spaces": ["features"], "read": {"features": {"expression": told}}}
    lines = table_text({"models": {"mine": entry}, "meshes": {}}, "yaw").splitlines()
    assert lines[0] == "| told | model | any yaw | over 10° |"
    assert lines[2] == "| FER+ test | `mine` | 90.00 (8) | – |"
    assert lines[3] == "| LFW val | `mine` | 90.00 (8) | 70.00 (8) |"


def test_an_unknown_table_is_refused():
    with pytest.raises(ValueError, match="no table is named 'xyz'"):
        table_text({"models": {}, "meshes": {}}, "xyz")


def test_every_table_has_lines_of_one_length(packs, tmp_path, brief):
    found = facezoo.benchmark(own={"mine": two}, data=packs, out=tmp_path / "out", device="cpu")
    for name in TABLES:
        lines = table_text(found.content, name).splitlines()
        assert len({line.count("|") for line in lines}) == 1, name


def test_an_entrant_runs_in_batches_and_in_inference_mode():
    def encode(crops):
        assert torch.is_inference_mode_enabled()
        assert len(crops) <= 2
        return crops.mean((2, 3))

    made = Entrant("x", "0", ("features",), Preprocessing(), CPU, encode, None)
    crops = torch.rand(5, 3, 4, 4)
    torch.testing.assert_close(made.run(crops, ["features"], 2)["features"], crops.mean((2, 3)))
