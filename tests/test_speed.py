"""A guard against becoming slow: ratios within one run, never times.

Two ways of doing the same work are timed in turn by the processor's own clock, and the best of each
counts, so that other work on the machine changes little. The floors leave room for the rest.
"""

import time

import pytest
import timm
import torch
import torch.nn.functional as F

import facezoo
from facezoo.models.adv3d import Adv3D
from facezoo.models.ipd_fer import IPDFER
from facezoo.preprocess.alignment import align


def ratio(ours, rival, repeats=5):
    """How many times as long as the rival ours takes, the best of each."""
    best = [float("inf"), float("inf")]
    for _ in range(repeats + 1):
        for index, way in enumerate((ours, rival)):
            begin = time.process_time()
            way()
            best[index] = min(best[index], time.process_time() - begin)
    return best[0] / best[1]


@pytest.fixture(scope="module")
def model():
    return IPDFER("resnet18", pose_backbone="resnet10t", decoder_size=None).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_encoding_a_prepared_batch_costs_little_more_than_the_bare_backbone(model, dtype):
    network = model.to(dtype, memory_format=torch.channels_last)
    crops = torch.randn(8, *model.input_shape, dtype=dtype)
    crops = crops.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        over = ratio(
            lambda: network.run(crops, ["encode_expression"]),
            lambda: network.expression_encoder.backbone(crops),
        )
    assert over < 1.2


def test_only_the_encoder_that_is_needed_runs(model):
    ran = []
    hooks = [
        getattr(model, f"{name}_encoder").register_forward_hook(
            lambda *_, name=name: ran.append(name)
        )
        for name in ("expression", "identity", "pose")
    ]
    crops = torch.randn(3, *model.input_shape).to(model.dtype)
    for wanted in ("expression", "identity", "pose"):
        ran.clear()
        model.run(crops, [f"encode_{wanted}"])
        assert ran == [wanted]
    ran.clear()
    model.run(crops, ["encode_expression", "predict_expression"])
    assert ran == ["expression"]
    for hook in hooks:
        hook.remove()


def test_loading_costs_at_most_one_and_a_half_times_building_the_same_networks():
    model = facezoo.load("ipd-fer", device="cpu")
    names = [model.architecture[key] for key in ("backbone", "backbone", "pose_backbone")]
    encoders = (model.identity_encoder, model.expression_encoder, model.pose_encoder)
    states = [encoder.backbone.state_dict() for encoder in encoders]

    def bare():
        for name, state in zip(names, states, strict=True):
            timm.create_model(name, num_classes=0).load_state_dict(state)

    assert ratio(lambda: facezoo.load("ipd-fer", device="cpu"), bare, repeats=2) < 1.5


def test_aligning_faces_costs_a_few_plain_bilinear_samplings_of_as_many_pixels():
    photo = torch.randint(0, 256, (400, 400, 3), dtype=torch.uint8)
    matrices = torch.tensor([[[0.6, 0.1, -20.0], [-0.1, 0.6, 10.0]]]).expand(8, -1, -1)
    planes = photo.permute(2, 0, 1)[None].float().expand(8, -1, -1, -1)
    grid = F.affine_grid(matrices, [8, 3, 224, 224], align_corners=False)  # two samples a pixel

    def rival():
        F.avg_pool2d(F.grid_sample(planes, grid, align_corners=False), 2)

    index = torch.zeros(8, dtype=torch.int64)
    assert ratio(lambda: align([photo], index, matrices, 112), rival) < 6


def layers_one_by_one(vae, points):
    hidden = points.transpose(1, 2)
    for number in range(1, 6):
        layer, norm = getattr(vae, f"conv{number}"), getattr(vae, f"bn{number}")
        hidden = F.relu(norm(layer(hidden)))
    return hidden.amax(2)


def test_the_encoder_of_meshes_costs_no_more_than_its_layers_one_after_the_other():
    vae = Adv3D(500, 996).eval().vae
    points = torch.randn(8, 500, 3)
    with torch.inference_mode():
        expected = layers_one_by_one(vae, points)
        torch.testing.assert_close(vae.features(points), expected, rtol=1e-3, atol=1e-4)
        assert ratio(lambda: vae.features(points), lambda: layers_one_by_one(vae, points)) < 1.1


@pytest.mark.slow  # the margin is narrow, so other work on the machine must not disturb it
def test_encoding_a_mesh_with_its_checks_costs_no_more_than_the_plain_layers_of_the_encoder():
    model = facezoo.load("adv3d", device="cpu")
    mesh = model.template_mm
    points = mesh[None] / model.scale
    with torch.inference_mode():
        over = ratio(
            lambda: model.encode(mesh, units="mm"), lambda: layers_one_by_one(model.vae, points), 20
        )
    assert over < 1.1
