"""Every example runs on the portraits."""

import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from runpy import run_path

import pytest
import torch
from ict_pack import write_full_ict
from PIL import Image

import facezoo
from facezoo.models.ipd_fer import IPDFER

EXAMPLES = Path(__file__).parent.parent / "examples"
PORTRAITS = sorted((EXAMPLES / "portraits").glob("*.jpg"))


def example(name):
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_help_of_an_example_shows_its_usage(script, tmp_path, monkeypatch, capsys):
    if script.stem == "finetune_trainer":
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [script.name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        run_path(str(script), run_name="__main__")
    assert script.name in f"{stopped.value.code} {capsys.readouterr().out}"
    assert not any(tmp_path.iterdir())


def test_encode_portraits_predicts_an_expression_per_portrait(capsys):
    example("encode_portraits").main(PORTRAITS)
    told = capsys.readouterr().out
    assert all(f"{portrait.name}: " in told for portrait in PORTRAITS)
    assert "cosines of identity features" in told


def test_annotate_portraits_writes_one_image_of_all(tmp_path, capsys):
    example("annotate_portraits").main(tmp_path / "row.jpg", PORTRAITS)
    with Image.open(tmp_path / "row.jpg") as picture:
        assert picture.width > picture.height
    assert "faces in 2 photographs" in capsys.readouterr().out


def test_annotate_video_writes_a_video_a_frame_and_a_timeline(tmp_path, capsys):
    model = IPDFER("test_resnet.r160_in1k", 8).eval()
    example("annotate_video").main(tmp_path / "out", model=model)
    assert {path.name for path in tmp_path.iterdir()} == {"out.mp4", "out.jpg", "out.png"}
    assert "30 frames" in capsys.readouterr().out


def test_make_gallery_draws_the_chosen_pictures(tmp_path):
    example("make_gallery").main(tmp_path, "probabilities")
    assert [path.name for path in tmp_path.iterdir()] == ["gallery_probabilities.png"]


def test_take_apart_portraits_draws_five_columns_of_every_face(tmp_path, capsys):
    small = "test_resnet.r160_in1k"
    model = IPDFER(small, 8, 8, small, decoder_size=14, decoder_width=4).eval()
    example("take_apart_portraits").main(tmp_path / "parts.png", PORTRAITS, model)
    with Image.open(tmp_path / "parts.png") as picture:
        assert picture.width == 5 * 180
    assert "2 faces, 5 columns" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "columns"), [("ipd-fer", 3), ("latentface", 5)])
def test_show_disentanglement_draws_a_column_per_method(name, columns, tmp_path):
    small = "test_resnet.r160_in1k"
    sizes = {
        "ipd-fer": {
            "backbone": small,
            "feature_dim": 8,
            "pose_backbone": small,
            "decoder_size": 14,
            "decoder_width": 4,
            "refined_decoder": False,
        },
        "latentface": {"width": 4, "number_width": 4, "code_dim": 8, "unet_width": 8},
    }
    model = facezoo.load(name, pretrained=False, **sizes[name])
    example("show_disentanglement").main(tmp_path / "a.png", model)
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == columns * 180


def test_turn_portraits_draws_a_grid_a_turntable_and_meshes(tmp_path, capsys):
    from facezoo.models.latentface import LatentFace

    model = LatentFace(width=4, number_width=4, code_dim=8, unet_width=8).eval()
    example("turn_portraits").main(tmp_path / "parts.png", PORTRAITS, model)
    with Image.open(tmp_path / "parts.png") as picture:
        assert picture.width == 5 * 180
    with Image.open(tmp_path / "parts-views.png") as picture:
        assert picture.width == 4 * 180
    with Image.open(tmp_path / "parts.gif") as turntable:
        assert turntable.n_frames == 24
    assert (tmp_path / "parts-1.obj").is_file()
    assert "2 faces; " in capsys.readouterr().out


def test_edit_portraits_draws_samples_mixtures_and_edits(tmp_path, capsys):
    from facezoo.models.latent_simclr import LatentSimCLR

    trunk = {"depths": (1, 1, 1, 1), "width": 4, "trunk_size": 32}
    names = ("blur", "smile")
    model = LatentSimCLR(style_dim=8, max_channels=8, directions=names, **trunk).eval()
    example("edit_portraits").main(tmp_path / "edits.png", PORTRAITS, model)
    columns = {"": 4, "-directions": len(names), "-samples": 5, "-mixing": 8}
    for what, count in columns.items():
        with Image.open(tmp_path / f"edits{what}.png") as picture:
            assert picture.width == count * 126
    assert "2 faces, 2 directions" in capsys.readouterr().out


def test_take_meshes_apart_draws_two_identities_and_their_interpolation(tmp_path, capsys):
    with pytest.warns(UserWarning, match="lack a part of the face"):  # small meshes, not of a face
        example("take_meshes_apart").main(write_full_ict(tmp_path), tmp_path / "meshes.png")
    with Image.open(tmp_path / "meshes.png") as picture:
        assert picture.size == (1200, 744)
    assert "meshes.png" in capsys.readouterr().out


def test_features_to_classifier_fits_the_classes_of_a_tree(tmp_path, capsys):
    for portrait, name in zip(PORTRAITS, ("first", "second"), strict=True):
        (tmp_path / name).mkdir()
        for copy in range(4):
            shutil.copy(portrait, tmp_path / name / f"{copy}.jpg")
    # The held-out faces are copies of those that it was fitted on.
    assert example("features_to_classifier").main(tmp_path) == 1.0
    assert "first, second" in capsys.readouterr().out


def test_features_to_classifier_wants_two_classes(tmp_path):
    (tmp_path / "only").mkdir()
    with pytest.raises(ValueError, match="two folders or more"):
        example("features_to_classifier").main(tmp_path)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_has_a_main_and_is_listed(path):
    assert len(path.read_text().splitlines()) < 80
    assert path.name in (EXAMPLES / "README.md").read_text()
    if path.stem == "finetune_trainer":
        pytest.importorskip("transformers")
    assert callable(example(path.stem).main)


@pytest.mark.parametrize("name", ["finetune_pytorch", "finetune_accelerate", "finetune_trainer"])
@pytest.mark.filterwarnings("default")  # of accelerate and Transformers, which are not ours
def test_a_fine_tuning_example_leaves_a_folder_that_loads(name, tmp_path, monkeypatch):
    if name == "finetune_trainer":
        pytest.importorskip("transformers")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    photos = photos_of_two_classes(tmp_path / "photos")
    torch.manual_seed(0)
    model = IPDFER("test_resnet.r160_in1k", 8, pose_backbone=None, decoder_size=None)
    base = str(model.save_pretrained(tmp_path / "base"))
    example(name).main(photos, tmp_path / "mine", base, epochs=1)
    tuned = facezoo.load(tmp_path / "mine", device="cpu")
    assert tuned.labels == ("first", "second")
    assert not torch.equal(
        tuned.expression_encoder.norm.running_mean, model.expression_encoder.norm.running_mean
    )
    assert tuned.predict_expression(PORTRAITS).probabilities.shape == (2, 2)
    if name == "finetune_trainer":
        (checkpoint,) = (tmp_path / "mine" / "trainer").glob("checkpoint-*")
        assert (checkpoint / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["finetune_pytorch", "finetune_accelerate", "finetune_trainer"])
@pytest.mark.filterwarnings("default")  # of accelerate and Transformers, which are not ours
def test_a_fine_tuning_example_does_not_train_on_test_images(name, tmp_path, monkeypatch):
    if name == "finetune_trainer":
        pytest.importorskip("transformers")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    base = tmp_path / "base"
    IPDFER("test_resnet.r160_in1k", 8, pose_backbone=None, decoder_size=None).save_pretrained(base)
    tuned = []
    for splits in (["train", "val"], ["train", "val", "test"]):
        for split in splits:
            photos_of_two_classes(tmp_path / "photos" / split, copies=2)
        torch.manual_seed(0)
        example(name).main(tmp_path / "photos", tmp_path / "mine", str(base), epochs=1)
        tuned.append(facezoo.load(tmp_path / "mine", device="cpu").state_dict())
        shutil.rmtree(tmp_path / "photos")
    for key, value in tuned[0].items():
        assert torch.equal(value, tuned[1][key]), key


def photos_of_two_classes(folder, copies=12):
    """Twelve copies of each portrait in a folder of its own."""
    for portrait, name in zip(PORTRAITS, ("first", "second"), strict=True):
        (folder / name).mkdir(parents=True)
        for copy in range(copies):
            shutil.copy(portrait, folder / name / f"{copy}.jpg")
    return folder


@pytest.mark.filterwarnings("default")  # warnings of Transformers
def test_the_trainer_saves_checkpoints_and_has_no_last_batch_of_one(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    photos_of_two_classes(tmp_path / "photos" / "val", copies=1)
    train = photos_of_two_classes(tmp_path / "photos" / "train", copies=17)
    (train / "first" / "0.jpg").unlink()  # 33 images are a batch of 32 and one
    base, out = tmp_path / "base", tmp_path / "mine"
    torch.manual_seed(0)
    IPDFER("test_resnet.r160_in1k", 8, pose_backbone=None, decoder_size=None).save_pretrained(base)
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)  # the example sets its own
        example("finetune_trainer").main(tmp_path / "photos", out, str(base), epochs=1)
        weights.append((out / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    (checkpoint,) = (out / "trainer").glob("checkpoint-*")
    assert (checkpoint / "model.safetensors").is_file()
