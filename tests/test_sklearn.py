"""FaceFeatures as a scikit-learn transformer: checks, pipelines, grids, memory."""

import pickle
import shutil
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import check_estimator

import facezoo
from facezoo import sklearn as ours
from facezoo.errors import NoFaceError, UnsupportedError
from facezoo.models.ipd_fer import IPDFER
from facezoo.sklearn import FaceFeatures

PORTRAITS = sorted((Path(__file__).parent.parent / "examples" / "portraits").glob("*.jpg"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(0)
    model = IPDFER("test_resnet.r160_in1k", 8, pose_backbone=None, decoder_size=None)
    return str(model.save_pretrained(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Twelve aligned crops of noise, dark ones and bright ones."""
    folder = tmp_path_factory.mktemp("crops")
    rng = np.random.default_rng(0)
    for index in range(12):
        pixels = rng.integers(0, 100, (112, 112, 3), np.uint8) + (index % 2) * 150
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:02d}.png")
    return sorted(map(str, folder.iterdir()))


def test_a_model_of_meshes_raises_an_error(monkeypatch):
    with pytest.raises(UnsupportedError, match="takes meshes, not images"):
        FaceFeatures("adv3d", device="cpu").fit(PORTRAITS)


def test_a_batch_of_nothing_raises_an_error_before_transform(base):
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        features(base, batch_size=0).fit(PORTRAITS)


def features(base, **options):
    return FaceFeatures(model=base, aligned=True, device="cpu", **options)


def encoded(monkeypatch):
    """How many images each call of the model gets."""
    counts, encode = [], FaceFeatures._encode

    def counted(self, images, *options):
        counts.append(len(images))
        return encode(self, images, *options)

    monkeypatch.setattr(FaceFeatures, "_encode", counted)
    return counts


@pytest.mark.filterwarnings("ignore:Can't test estimator")
def test_check_estimator_finds_no_fault():
    # For input that is no table of numbers it checks cloning alone; the rest that applies is below.
    results = check_estimator(FaceFeatures(), on_skip=None)
    assert {result["status"] for result in results} == {"passed"}


WITHOUT_TABLES = [
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_valid_tag_types",
]


@pytest.mark.parametrize("check", WITHOUT_TABLES)
def test_the_checks_of_scikit_learn_that_pass_no_table_of_numbers_hold(check):
    getattr(estimator_checks, check)("FaceFeatures", FaceFeatures())


@pytest.mark.parametrize("what", ["expression", "identity", "probabilities"])
def test_rows_are_those_of_the_model(base, crops, what):
    rows = features(base, what=what).fit_transform(crops)
    model = facezoo.load(base, device="cpu")
    if what == "probabilities":
        wanted = model.predict_expression(crops, aligned=True).probabilities
    else:
        wanted = getattr(model, f"encode_{what}")(crops, aligned=True)
    np.testing.assert_array_equal(rows, wanted.numpy())
    assert rows.dtype == np.float32


def test_images_are_aligned(base):
    rows = FaceFeatures(model=base, device="cpu").transform(PORTRAITS)
    assert rows.shape == (2, 8)
    blank = np.zeros((80, 80, 3), np.uint8)
    with pytest.raises(NoFaceError, match='pass on_missing="nan" to keep their place') as caught:
        FaceFeatures(model=base, device="cpu").transform([blank])
    with pytest.raises(NoFaceError):
        FaceFeatures(model=base, device="cpu", score_threshold=0.9999).transform(PORTRAITS)
    assert "skip" not in str(caught.value)  # this transformer does not accept it
    gap = FaceFeatures(model=base, device="cpu", on_missing="nan").transform([PORTRAITS[0], blank])
    assert np.isfinite(gap[0]).all()
    assert np.isnan(gap[1]).all()


def test_a_grid_search_over_a_pipeline_finds_the_better_features(base, crops):
    pipeline = make_pipeline(features(base), LogisticRegression())
    grid = {"facefeatures__what": ["expression", "identity"], "logisticregression__C": [0.1, 10.0]}
    search = GridSearchCV(pipeline, grid, cv=3, error_score="raise")
    search.fit(crops, [index % 2 for index in range(12)])
    assert search.best_score_ == 1.0
    assert len(search.cv_results_["params"]) == 4


def test_copies_and_pickles_give_the_same_rows(base, crops):
    first = features(base, what="identity")
    rows = first.transform(crops)
    for other in (clone(first), pickle.loads(pickle.dumps(first))):
        np.testing.assert_array_equal(other.transform(crops), rows)
        assert other.get_params() == first.get_params()


def test_the_memory_encodes_an_image_once_whatever_list_it_is_in(
    base, crops, tmp_path, monkeypatch
):
    counts = encoded(monkeypatch)
    kept = features(base, memory=str(tmp_path))
    plain = features(base).transform(crops)
    np.testing.assert_array_equal(kept.transform(crops[:8]), plain[:8])
    np.testing.assert_allclose(kept.transform(crops[::-1]), plain[::-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(kept.transform(crops[4:8]), plain[4:8])
    assert counts == [12, 8, 4]
    features(base, memory=joblib.Memory(str(tmp_path), verbose=0)).transform(crops)
    assert counts == [12, 8, 4]
    features(base, what="identity", memory=str(tmp_path)).transform(crops[:2])
    assert counts == [12, 8, 4, 2]


@pytest.mark.parametrize("damage", ["cut", "empty", "none", "code"])
def test_damaged_rows_of_the_memory_are_encoded_again(base, crops, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(joblib.memory, "_FUNCTION_HASHES", {})
    kept, plain = features(base, memory=str(tmp_path)), features(base).transform(crops[:3])
    kept.transform(crops[:3])
    stored = sorted(tmp_path.rglob("output.pkl"))[0]
    if damage == "code":  # of another version of facezoo
        (source,) = tmp_path.rglob("func_code.py")
        source.write_text(source.read_text() + "# changed\n")
        monkeypatch.setattr(joblib.memory, "_FUNCTION_HASHES", {})  # as in another process
    elif damage == "none":
        joblib.dump(None, stored)
    else:
        stored.write_bytes(stored.read_bytes()[:100] if damage == "cut" else b"")
    counts = encoded(monkeypatch)
    for _ in range(2):
        np.testing.assert_allclose(kept.transform(crops[:3]), plain, rtol=1e-4, atol=1e-5)
    assert counts == [3 if damage == "code" else 1]


def test_the_memory_sees_that_a_file_has_changed(base, crops, tmp_path, monkeypatch):
    counts = encoded(monkeypatch)
    kept = features(base, memory=str(tmp_path / "memory"))
    photo = tmp_path / "photo.png"
    rows = []
    for source in crops[:2]:
        photo.write_bytes(Path(source).read_bytes())
        rows.append(kept.transform([str(photo)]))
    assert counts == [1, 1]
    assert not np.allclose(*rows)


def test_the_memory_raises_where_no_face_was_kept(base, tmp_path):
    blank = tmp_path / "blank.png"
    Image.new("RGB", (64, 64)).save(blank)
    options = {"model": base, "device": "cpu", "memory": str(tmp_path / "memory")}
    given = [PORTRAITS[0], blank]
    for _ in range(2):
        with pytest.raises(NoFaceError, match=r"in .*blank\.png") as caught:
            FaceFeatures(**options).transform(given)
        assert caught.value.missing == [1]
        assert np.isnan(FaceFeatures(**options, on_missing="nan").transform(given)[1]).all()


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_model_that_was_rewritten_gives_the_new_rows(crops, tmp_path, what):
    rows = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = IPDFER("test_resnet.r160_in1k", 8, pose_backbone=None, decoder_size=None)
        folder = str(model.save_pretrained(tmp_path / "model"))
        if what == "file":
            shutil.copy(f"{folder}/config.json", tmp_path / "m.json")
            shutil.copy(f"{folder}/model.safetensors", tmp_path / "m.safetensors")
            folder = str(tmp_path / "m.safetensors")
        kept = features(folder, memory=str(tmp_path / "memory")).transform(crops[:2])
        np.testing.assert_array_equal(features(folder).transform(crops[:2]), kept)
        rows.append(kept)
    assert not np.allclose(*rows)


def test_columns_batches_and_lists_are_taken(base, crops):
    rows = features(base).transform(crops[:3])
    batch = np.stack([np.array(Image.open(crop)) for crop in crops[:3]])
    for given in (
        np.array(crops[:3]),
        np.array(crops[:3], object)[:, None],
        batch,
        tuple(crops[:3]),
    ):
        np.testing.assert_array_equal(features(base).transform(given), rows)


def test_numpys_own_strings_are_taken_as_paths(base, crops):
    pytest.importorskip("numpy", minversion="2.0")
    strings = np.array(crops, np.dtypes.StringDType())
    np.testing.assert_array_equal(
        features(base).transform(strings), features(base).transform(crops)
    )


def test_names_of_the_columns(base):
    names = features(base).get_feature_names_out()
    assert names.tolist() == [f"expression_{d}" for d in range(8)]
    assert features(base, what="probabilities").get_feature_names_out()[0] == "p_neutral"


def test_columns_that_there_are_not_have_no_names(base):
    with pytest.raises(ValueError, match="what must be one of"):
        features(base, what="feelings").get_feature_names_out()
    with pytest.raises(UnsupportedError, match="does not support predict_expression"):
        FaceFeatures("latent-simclr", "probabilities", device="cpu").get_feature_names_out()


def test_a_model_that_is_loaded_already_raises_an_error_with_what_to_do(base, crops):
    with pytest.raises(ValueError, match=r"model must be a name or a folder.*got IPDFER; write"):
        features(facezoo.load(base, device="cpu")).transform(crops)


def test_unknown_parameters_raise_an_error_in_fit(base, crops):
    with pytest.raises(ValueError, match="what must be one of"):
        features(base, what="mood").fit(crops)
    with pytest.raises(ValueError, match="every image has a row"):
        features(base, on_missing="skip").fit(crops)
    with pytest.raises(UnsupportedError, match="pose"):
        features(base, what="pose").fit(crops)
    with pytest.raises(ValueError, match="min_face must be at least 1 pixel"):
        features(base, min_face=-1).fit(crops)
    with pytest.raises(ValueError, match="multiples of 90"):
        features(base, rotations=(45,)).fit(crops)


def test_a_generator_raises_an_error_before_it_is_used_up(base, crops):
    with pytest.raises(ValueError, match=r"got a generator; pass list\(X\)"):
        features(base).fit_transform(crop for crop in crops)


def test_settings_of_a_numpy_grid_share_the_cache(base, tmp_path):
    image = str(PORTRAITS[0])
    rows = [
        FaceFeatures(base, device="cpu", min_face=side, memory=tmp_path).fit_transform([image])
        for side in (20, *np.array([20]), 20.0)
    ]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert len(list(tmp_path.rglob("output.pkl"))) == 1


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ([], "X has no image"),
        ("photo.jpg", "pass a list"),
        (Path("photo.jpg"), "pass a list"),
        (np.zeros((4, 5)), "numbers of shape"),
        (np.array([["a", "b"]]), "one column"),
    ],
)
def test_other_objects_than_image_sequences_raise_an_error(base, given, match):
    with pytest.raises(ValueError, match=match):
        features(base).transform(given)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    import importlib
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(ImportError, match=r"facezoo\[sklearn\]"):
        importlib.reload(ours)
    monkeypatch.undo()
    importlib.reload(ours)
