"""``facezoo register``."""

import json

import torch

from facezoo.cli.main import main
from facezoo.geometry.mesh_files import read_mesh
from facezoo.geometry.meshes import Mesh
from facezoo.geometry.registration import Similarity
from facezoo.models.mesh_registration import Registration


def test_register_writes_the_mesh_and_reports_every_step(tmp_path, capsys, monkeypatch):
    calls = []

    def register(mesh, **options):
        calls.append((mesh, options))
        vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
        triangles = torch.tensor([[0, 1, 2]])
        pose = Similarity(0.001, torch.eye(3).numpy(), torch.zeros(3).numpy())
        steps = {"landmarks": 3.0, "rigid": 2.0, "shape": 1.0, "surface": 0.5}
        source = Mesh(vertices, "m", triangles)
        return Registration(vertices, triangles, "taken as m", pose, steps, 0.9, source)

    monkeypatch.setattr("facezoo.registration.register", register)
    out = tmp_path / "registered.obj"
    assert main(["register", "scan.ply", "-o", str(out)]) == 0
    assert "units taken as m, coverage 90 %" in (text := capsys.readouterr().out)
    assert "landmarks 3.0, rigid 2.0, shape 1.0, surface 0.5" in text
    assert len(read_mesh(out, "mm").vertices) == 3
    assert main(["register", "scan.ply", "-o", str(out), "--units", "cm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["residuals_mm"]["surface"] == 0.5
    assert calls[1][1] == {"units": "cm", "model": "adv3d", "device": None}


def test_register_does_not_overwrite_its_input(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scan.ply").write_text("a scan")
    assert main(["register", "scan.ply", "-o", str(tmp_path / "scan.ply")]) == 2
    assert "is MESH itself; name another file" in capsys.readouterr().err
    assert (tmp_path / "scan.ply").read_text() == "a scan"
