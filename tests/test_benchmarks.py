"""The measuring scripts run on tiny packs."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from packs import write_lfw

from facezoo.models.ipd_fer import IPDFER

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


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
    files = script.unpacked(script.PORTRAITS, tmp_path / "stored")
    script.replicate(files, tmp_path / "photos", 3)
    run = script.measure(tmp_path / "photos", tmp_path / "f.npz", str(tmp_path / "base"), "cpu")
    assert (run["images"], run["rows"]) == (3, 3)
    assert run["peak_mb"] > 0
    assert {"decode", "detect", "encode"} <= run["images_per_second_by_stage"].keys()
