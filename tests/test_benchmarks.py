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
