"""Layers of a loaded model can be watched, wrapped and replaced, in every precision."""

import pytest
import torch
from torch import nn

from facezoo.models.ipd_fer import IPDFER

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


@pytest.fixture
def model():
    return IPDFER("test_resnet.r160_in1k", 8, 3, None, None, expression_rank=4).eval()


def crops(model):
    return torch.randn(2, *model.input_shape, dtype=model.dtype)


@DTYPES
def test_a_hook_on_the_projection_sees_and_replaces_its_output(model, dtype):
    model.to(dtype)
    images, shapes = crops(model), []
    before = model.run(images, "encode_expression")
    layer = model.expression_encoder.projection[0]
    layer.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    assert torch.equal(model.run(images, "encode_expression"), before)
    assert shapes == [(2, 4)]
    layer.register_forward_hook(lambda module, inputs, output: output * 0)
    after = model.run(images, "encode_expression")
    assert not torch.allclose(after, before)
    assert torch.equal(after[0], after[1]), "nothing of the image is left"


@DTYPES
def test_layers_can_be_wrapped_and_appended(model, dtype):
    model.to(dtype)
    images = crops(model)
    before = model.run(images, "encode_expression")
    projection = model.expression_encoder.projection
    projection[0] = nn.Sequential(projection[0])
    projection.append(nn.Dropout(0.5))
    model.eval()
    assert torch.equal(model.run(images, "encode_expression"), before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch.ao
def test_dynamic_quantization_keeps_features_near(model):
    images = crops(model)
    before = model.run(images, "encode_expression")
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    after = quantized.run(images, "encode_expression")
    assert torch.cosine_similarity(after, before).min() > 0.99
    assert not torch.equal(after, before)


@DTYPES
@pytest.mark.filterwarnings("default")  # of peft
def test_an_adapter_of_peft_reaches_features_and_gradients(model, dtype):
    peft = pytest.importorskip("peft")
    model.to(dtype)
    images = crops(model)
    before = model.run(images, "encode_expression")
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    assert not torch.allclose(model.run(images, "encode_expression"), before)
    adapted(images).float().square().mean().backward()
    adapter = model.expression_encoder.projection[0].lora_A["default"].weight
    assert adapter.grad.abs().max() > 0
