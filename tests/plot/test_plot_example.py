"""The example that draws the space of expression features, on random weights."""

import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import facezoo
from facezoo.models.ipd_fer import IPDFER

matplotlib = pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).parents[2] / "examples"
PORTRAITS = sorted((EXAMPLES / "portraits").glob("*.jpg"))


@pytest.fixture
def example(monkeypatch):
    spec = spec_from_file_location("plot", EXAMPLES / "plot_expression_space.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    model = IPDFER("test_resnet.r160_in1k", 8).eval()
    monkeypatch.setattr(facezoo, "load", lambda *_, **__: model)
    return module


@pytest.fixture
def people(tmp_path):
    """Two people with two images each."""
    for portrait in PORTRAITS:
        (tmp_path / portrait.stem).mkdir()
        for copy in range(2):
            shutil.copy(portrait, tmp_path / portrait.stem / f"{copy}.jpg")
    return tmp_path


def test_a_folder_per_identity_is_drawn_in_two_panels(example, people, capsys):
    example.main(people, people / "space.png")
    with Image.open(people / "space.png") as picture:
        assert picture.width == 2 * picture.height
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 3
    assert "4 faces of 4 images" in capsys.readouterr().out


def test_a_pack_is_drawn_with_the_expressions_that_it_knows(example, people, monkeypatch):
    rows = [
        {"image": path.read_bytes(), "expression": word, "identity": path.stem}
        for path in PORTRAITS
        for word in ("happiness", None)
    ]
    pq.write_table(pa.Table.from_pylist(rows), people / "pack.parquet")
    panels = []
    monkeypatch.setattr(
        example.plot, "scatter", lambda axes, points, names, _: panels.append(names)
    )
    example.main(people / "pack.parquet", people / "space.png")
    assert panels[0] == ["happiness", "unknown"] * 2
    assert panels[1] == [PORTRAITS[0].stem] * 2 + [PORTRAITS[1].stem] * 2


def test_a_part_of_a_pack_is_drawn(example, people, capsys):
    first, second = PORTRAITS[:2]
    rows = [
        {"image": path.read_bytes(), "expression": word, "identity": path.stem, "split": split}
        for path, word, split in (
            *[(first, "happiness", "val")] * 3,
            (first, "anger", "val"),
            (first, "happiness", "train"),
            (second, "happiness", "val"),
        )
    ]
    pq.write_table(pa.Table.from_pylist(rows), people / "pack.parquet")
    example.main(
        people / "pack.parquet",
        people / "space.png",
        split="val",
        expressions=["happiness"],
        min_images=3,
    )
    assert "3 faces of 3 images" in capsys.readouterr().out


def test_too_few_faces_raise_an_error(example, tmp_path):
    (tmp_path / "one").mkdir()
    shutil.copy(PORTRAITS[0], tmp_path / "one")
    with pytest.raises(ValueError, match="1 faces are found in"):
        example.main(tmp_path, tmp_path / "space.png")
