"""Promises of the performance guide for reduced precision, on the portraits of the examples."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import facezoo
from facezoo.errors import UnsupportedError
from facezoo.faces import unit_crops
from facezoo.geometry.meshes import Mesh
from facezoo.landmarks import pose_labels
from facezoo.models.latentface.diffusion import RepresentationDiffusion
from facezoo.preprocess.alignment import prepare
from facezoo.preprocess.bundled import load_detector
from facezoo.preprocess.images import read_image
from facezoo.preprocess.pipeline import ImageOptions, to_device
from facezoo.results import flatten_rows, tensors_in

PORTRAITS = sorted((Path(__file__).parents[1] / "examples" / "portraits").glob("*.jpg"))
LEAST_COSINE = 0.999
NAMES = ["ipd-fer", "latent-simclr", "latentface"]


def turned(name, dtype, device="cpu"):
    """The least cosine of each feature with the one in float32 on the CPU."""
    exact, reduced = (
        facezoo.load(name, device=place, dtype=precision)
        for place, precision in (("cpu", None), (device, dtype))
    )
    photos = to_device([read_image(path) for path in PORTRAITS], exact.device)
    crops = prepare(photos, facezoo.detect(PORTRAITS, exact.device), exact.preprocessing)
    wanted = [feature for feature in exact.capabilities() if feature.startswith("encode_")]
    here, there = exact.run(crops, wanted), reduced.run(crops, wanted)
    rows = [
        {k: v if isinstance(v, torch.Tensor) else flatten_rows(v) for k, v in side.items()}
        for side in (here, there)
    ]
    return {
        feature: float(F.cosine_similarity(rows[0][feature], rows[1][feature].cpu(), dim=1).min())
        for feature in wanted
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_in_reduced_precision_stay_close_to_those_in_float32(name, dtype):
    assert min(turned(name, dtype).values()) > LEAST_COSINE


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_features_on_a_gpu_stay_close_to_those_of_the_processor(name, dtype):
    assert min(turned(name, dtype, "cuda").values()) > LEAST_COSINE


def test_every_checkpoint_is_compared_or_rejects_half_precision():
    for name in facezoo.list_models(pretrained=True):
        if name.split(".")[0] not in NAMES:
            with pytest.raises(UnsupportedError, match="works in float32 only: its codes"):
                facezoo.load(name, device="cpu", dtype=torch.bfloat16)


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SURROUNDINGS = {
    "bfloat16 autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float16 autocast": lambda: torch.autocast("cpu", torch.float16),
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
}


@pytest.fixture(scope="module", params=NAMES)
def plain(request):
    model = facezoo.load(request.param, device="cpu")
    return model, model.encode(PORTRAITS)


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
def test_faces_do_not_depend_on_the_state_of_torch_and_features_hardly(plain, surrounding):
    model, expected = plain
    load_detector.cache_clear()  # it may be loaded in any state
    with SURROUNDINGS[surrounding]():
        encoding = model.encode(PORTRAITS)
    for name in ("boxes", "landmarks", "scores"):
        assert torch.equal(getattr(encoding.faces, name), getattr(expected.faces, name))
    for name in ("expression", "identity"):
        rows = getattr(encoding, name)
        assert rows.dtype == torch.float32
        assert float(F.cosine_similarity(rows, getattr(expected, name)).min()) > LEAST_COSINE
    again = model.encode(PORTRAITS)
    assert torch.equal(again.faces.boxes, expected.faces.boxes)
    torch.testing.assert_close(again.expression, expected.expression)


def test_a_model_is_loaded_in_float32_whatever_the_default_dtype_is(plain):
    model, expected = plain
    with default_dtype(torch.float64):
        encoding = facezoo.load(model.model_name, device="cpu").encode(PORTRAITS)
    torch.testing.assert_close(encoding.expression, expected.expression, atol=1e-4, rtol=1e-4)


def test_weights_on_the_meta_device_or_offloaded_are_an_error_with_the_remedy():
    accelerate = pytest.importorskip("accelerate")
    for change in (
        lambda model: model.to("meta"),
        lambda model: accelerate.cpu_offload(model, torch.device("cpu")),
    ):
        model = facezoo.load("ipd-fer", device="cpu")
        change(model)
        with pytest.raises(ValueError, match=r"on the meta device; load them .*remove_hook"):
            model.encode_expression(PORTRAITS)
        with pytest.raises(ValueError, match="on the meta device"):
            model.run(torch.zeros(1, 3, 112, 112), "encode_expression")


@pytest.mark.parametrize("name", NAMES)
def test_the_default_device_of_torch_changes_nothing(name):
    model = facezoo.load(name, device="cpu")
    wanted, rows = model.encode(PORTRAITS), torch.randn(12, 4)
    removal = facezoo.remove_identity(rows, [0, 1, 2] * 4)
    with torch.device("meta"):  # what is made there holds no numbers
        found = model.encode(PORTRAITS)
        again = facezoo.remove_identity(rows, [0, 1, 2] * 4)
        if name == "latentface":
            assert model.to_mesh(PORTRAITS)[0].colors.isfinite().all()
    torch.testing.assert_close(found.expression, wanted.expression)
    torch.testing.assert_close(found.identity, wanted.identity)
    torch.testing.assert_close(again(rows), removal(rows))


def test_the_package_is_imported_with_any_default_device():
    code = "import torch; torch.set_default_device('meta'); import facezoo.models.latentface"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_noise_is_drawn_on_the_processor_whatever_the_default_device_of_torch():
    with torch.device("meta"):
        assert RepresentationDiffusion(4, 8).noise.device.type == "cpu"
    model = facezoo.load("adv3d", device="cpu")
    with torch.device("meta"):
        codes = model.encode_identity(model.template_mm, units="mm", sample=True)
    assert codes.isfinite().all()


def tensors(value):
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in tensors(part)]
    return tensors_in(value)


def calls():
    """Calls of every family besides encoding."""
    ipd, face, gan, adv3d = (
        facezoo.load(n, device="cpu") for n in ("ipd-fer", "latentface", "latent-simclr", "adv3d")
    )
    template, rng = adv3d.template, torch.Generator()
    extra = torch.cat([template.vertices, torch.tensor([[0, 0, 200.0]])])
    scan, mesh = (Mesh(v, "mm", template.triangles) for v in (extra, template.vertices))
    landmarks, image = template.landmark_points(5).tolist(), PORTRAITS[0]
    table, codes = ipd.encode(PORTRAITS), gan.invert(image)
    rows, number = table.identity.numpy(), codes.w_plus.numpy()
    yield lambda: adv3d.neutralize(scan, topology="input")
    yield lambda: adv3d.encode(scan, landmarks=landmarks)
    yield lambda: adv3d.interpolate(mesh, mesh, 3)
    yield lambda: adv3d.encode_identity(mesh, sample=True, generator=rng.manual_seed(0))
    yield lambda: [torch.from_numpy(table.to_frame()["face"].to_numpy().copy())]
    yield lambda: facezoo.cluster(table.identity)
    yield lambda: facezoo.cluster(rows)
    yield lambda: pose_labels(table.faces.pose_deg[:, 0])
    yield lambda: unit_crops(image, ipd.preprocessing, ipd.device, ImageOptions())
    yield lambda: face.relight(image, [1, 1, 0, 0.5])
    yield lambda: face.to_mesh(image)
    yield lambda: gan.sample(2, generator=rng.manual_seed(0))
    yield lambda: gan.edit(codes, number[0], 1.0)
    yield lambda: gan.encode_identity(w_plus=number)


def test_the_default_dtype_and_device_of_torch_do_not_change_other_calls():
    for call in calls():
        expected = tensors(call())
        for state in (default_dtype(torch.float64), torch.device("meta")):
            with state:
                result = call()
            torch.testing.assert_close(tensors(result), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_as_the_default_device_changes_nothing(name):
    wanted = facezoo.load(name, device="cuda").encode_expression(PORTRAITS)
    with torch.device("cuda"):
        found = facezoo.load(name).encode_expression(PORTRAITS)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
def test_images_give_the_same_features_on_a_gpu():
    here, there = (facezoo.load("ipd-fer", device=place) for place in ("cpu", "cuda"))
    paths = PORTRAITS * 3
    close = F.cosine_similarity(
        here.encode_expression(paths), there.encode_expression(paths).cpu(), dim=1
    )
    assert float(close.min()) > LEAST_COSINE


@pytest.mark.slow
def test_compiled_networks_give_the_same_features():
    plain, compiled = (
        facezoo.load("ipd-fer", device="cpu", compile=whether) for whether in (False, True)
    )
    crops = torch.rand(3, *plain.input_shape) * 2 - 1
    for batch in (1, 3):  # another size is compiled anew
        torch.testing.assert_close(
            compiled.run(crops, "encode_expression", batch),
            plain.run(crops, "encode_expression", batch),
            rtol=1e-3,
            atol=1e-3,
        )
    assert compiled.state_dict().keys() == plain.state_dict().keys()
