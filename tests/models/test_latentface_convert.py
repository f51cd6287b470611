"""Published checkpoints under our names, without a published checkpoint."""

import re

import pytest
import torch
from golden_vectors import arrays, inputs, relative_error, variants, weights

import facezoo
from facezoo.cli.main import main
from facezoo.errors import WeightsError
from facezoo.evaluate.benchmark.encoders import checkpoint
from facezoo.models.latentface import LatentFace
from facezoo.models.latentface.convert import architecture_of, convert_checkpoint, convert_file

SMALL = {"width": 8, "number_width": 4, "code_dim": 12, "unet_width": 16}
OLD = {"query": "query", "key": "key", "value": "value", "out": "proj_attn"}
NEW = {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}


def published(model, attention=OLD, split=True):
    """The checkpoint that the authors' code would have saved of this model's weights."""
    theirs = {}
    ours = {
        "shape_autoencoder": "netD",
        "texture_autoencoder": "netA",
        "light_encoder": "netL",
        "view_encoder": "netV",
        "confidence_network": "netC",
        "texture_diffusion": "netEA",
        "shape_diffusion": "netED",
    }
    for name, tensor in model.state_dict().items():
        network, rest = name.split(".", 1)
        theirs.setdefault(ours[network], {})[_their_name(rest, attention, split)] = tensor
    return {**theirs, "optimizerD": {"state": {}}, "epoch": 7}


def _their_name(name, attention, split):
    if name.startswith("unet."):
        name = name.removeprefix("unet.")
        name = re.sub(r"^(down|up)\.", r"\1_blocks.0.resnets.", name)
        name = re.sub(r"^middle\.", "mid_block.resnets.", name)
        name = re.sub(r"^attention\.norm", "mid_block.attentions.0.group_norm", name)
        for own, other in attention.items():
            name = re.sub(rf"^attention\.{own}\.", f"mid_block.attentions.0.{other}.", name)
        name = name.replace(".time.", ".time_emb_proj.").replace(".shortcut.", ".conv_shortcut.")
        name = name.replace("norm_out.", "conv_norm_out.")
        return re.sub(r"^time_embedding\.([02])", _linear, name)
    name = name.replace("pixel_head.", "out_net1.").replace("feature_head.", "out_net2.")
    if split:
        return name.replace("encoder.", "network1.").replace("decoder.", "network2.")
    name = name.replace("encoder.", "network.")
    return re.sub(r"decoder\.(\d+)", lambda m: f"network.{int(m[1]) + 13}", name)


def _linear(match):
    return f"time_embedding.linear_{1 if match[1] == '0' else 2}"


@pytest.mark.parametrize("attention", [OLD, NEW], ids=["diffusers 0.14", "later"])
def test_a_latentface_checkpoint_loads_whole(attention):
    model = LatentFace(**SMALL)
    checkpoint = published(model, attention)
    assert "netEA" in checkpoint
    tensors = convert_checkpoint(checkpoint)
    architecture = architecture_of(tensors)
    assert architecture["sampler"] == "diffusers-0.14"
    assert architecture["map_size"] == 1
    again = LatentFace(**architecture)
    again.load_state_dict(tensors)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_an_unsup3d_checkpoint_loads_as_a_model_without_diffusion():
    model = LatentFace(**SMALL, diffusion=False)
    tensors = convert_checkpoint(published(model, split=False))
    again = LatentFace(**architecture_of(tensors))
    again.load_state_dict(tensors)
    assert again.texture_diffusion is None
    images = torch.rand(1, 3, 64, 64)
    depth, expected = (net.decode_depth(net.embed_latents(images)) for net in (again, model))
    torch.testing.assert_close(depth, expected)


def test_a_checkpoint_without_the_confidence_network_loads():
    tensors = convert_checkpoint(published(LatentFace(**SMALL, confidence=False)))
    assert architecture_of(tensors)["confidence"] is False
    LatentFace(**architecture_of(tensors)).load_state_dict(tensors)


def test_names_of_parallel_training_are_cleaned():
    plain = published(LatentFace(**SMALL))
    parallel = {
        name: {f"module.{key}": value for key, value in part.items()}
        if name.startswith("net")
        else part
        for name, part in plain.items()
    }
    assert convert_checkpoint(parallel).keys() == convert_checkpoint(plain).keys()


@pytest.mark.parametrize("checkpoint", [{}, {"netD": {}, "epoch": 3}])
def test_another_kind_of_checkpoint_raises_an_error(checkpoint):
    with pytest.raises(WeightsError, match=r"not a checkpoint of Unsup3D .* netV missing, got"):
        convert_checkpoint(checkpoint)


def test_a_layout_for_larger_images_raises_an_error():
    tensors = convert_checkpoint(published(LatentFace(size=128, **SMALL)))
    with pytest.raises(WeightsError, match="expected a checkpoint for 64 x 64"):
        architecture_of(tensors)


@pytest.mark.parametrize("family", ["unsup3d", "latentface"])
def test_checkpoints_of_the_published_layout_load(family):
    checkpoint = {name: weights(entry) for name, entry in variants(family).items()}
    tensors = convert_checkpoint(checkpoint)
    assert sum(len(part) for part in checkpoint.values()) == len(tensors)
    model = LatentFace(**architecture_of(tensors))
    model.load_state_dict(tensors)
    assert model.architecture["width"] == 64
    assert model.architecture["diffusion"] is (family == "latentface")


def test_the_embeddings_equal_the_reference_vectors():
    wanted, given = arrays("latentface"), inputs("latentface")
    checkpoint = {name: weights(entry) for name, entry in variants("latentface").items()}
    tensors = convert_checkpoint(checkpoint)
    for suffix, sampler, bound in (("", "ddim", 1e-4), ("014", "diffusers-0.14", 1e-3)):
        model = LatentFace(**{**architecture_of(tensors), "sampler": sampler}).eval()
        model.load_state_dict(tensors)
        with torch.inference_mode():
            latents = model.embed_latents(given["image"])
            noises = (given["noise_a"][..., 0, 0], given["noise_d"][..., 0, 0])
            identity = model.identity_latents(latents, *noises)
            embedding = torch.cat(
                [
                    latents.texture - identity.texture,
                    latents.texture,
                    latents.shape - identity.shape,
                    latents.shape,
                ],
                -1,
            )
        assert relative_error(embedding, wanted[f"embedding{suffix}"]) < bound


def test_a_published_file_becomes_a_folder_that_loads(tmp_path, capsys):
    model = LatentFace(**SMALL, sampler="diffusers-0.14").eval()
    torch.save(published(model), tmp_path / "checkpoint.pth")
    command = ["convert", "--model", "latentface", str(tmp_path / "checkpoint.pth")]
    assert main(command) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "checkpoint")
    again = facezoo.load(tmp_path / "checkpoint", device="cpu")
    assert again.architecture == model.architecture
    assert again.card.tag == "published"
    assert again.card.limits == (
        "Converted from checkpoint.pth; data and training are not on record here.",
    )
    assert checkpoint("theirs", again).trained_on is None  # not known, which is not: on nothing
    crops = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(again.embed_identity(crops), model.embed_identity(crops))
    assert main(command) == 1
    assert "has a checkpoint already" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--key", "netD"]) == 1
    assert "leave out --key" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(3),
        7,
        None,
        dict.fromkeys(("netD", "netA", "netL", "netV"), 1),
        {
            **{name: {"other.weight": torch.zeros(2, 2)} for name in ("netD", "netA", "netV")},
            "netL": {f"network.{n}.weight": torch.zeros(4, 4) for n in range(0, 12, 2)},
        },
    ],
    ids=["a tensor", "a number", "nothing", "numbers", "other layers"],
)
def test_another_file_is_not_a_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="not a checkpoint of Unsup3D or LatentFace"):
        convert_file(tmp_path / "other.pth")
