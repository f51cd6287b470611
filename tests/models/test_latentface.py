"""The model of LatentFace: stages, pictures, gradients, and what a configuration cannot do."""

from dataclasses import replace

import pytest
import torch

import facezoo
from facezoo.errors import UnsupportedError
from facezoo.geometry.shading import Light
from facezoo.hub.card import Card
from facezoo.models.latentface import LatentFace
from facezoo.models.latentface.losses import confidence_loss, denoising_loss

SMALL = {"width": 8, "number_width": 4, "code_dim": 12, "unet_width": 16, "code_limit": 50.0}
PICTURES = ["reconstruct_crops", "frontalize_crops", "neutralize_crops"]


@pytest.fixture
def model():
    return LatentFace(**SMALL).eval()


@pytest.fixture
def batch():
    return torch.rand(2, 3, 64, 64) * 2 - 1


def learned(model):
    return {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}


def test_stages_give_features_of_both_codes(model, batch):
    latents = model.embed_latents(batch)
    assert latents.texture.shape == latents.shape.shape == (2, 12)
    assert latents.light.shape == (2, 4)
    assert latents.view.shape == (2, 6)
    identity, expression = model.embed_identity(batch), model.embed_expression(batch)
    assert identity.shape == expression.shape == (2, 24)
    assert model.num_features == 24
    together = torch.cat([latents.texture, latents.shape], -1)
    torch.testing.assert_close(identity + expression, together)
    torch.testing.assert_close(model.embed_pose(batch), latents.view)
    torch.testing.assert_close(model.forward_features(batch), expression)


def test_texture_and_shape_are_denoised_by_networks_of_their_own(model, batch):
    identity = model.identity_latents(model.embed_latents(batch))
    identity.texture.sum().backward()
    assert "texture_diffusion" in learned(model)
    assert "shape_diffusion" not in learned(model)


def test_the_same_crop_gives_the_same_identity_in_any_batch(model, batch):
    with torch.inference_mode():
        torch.testing.assert_close(
            model.embed_identity(batch[1:]), model.embed_identity(batch)[1:], atol=1e-4, rtol=1e-4
        )


def test_other_noise_gives_another_identity_and_the_generator_decides_it(model, batch):
    latents = model.embed_latents(batch)

    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        noises = torch.randn(2, 2, 12, generator=generator)
        return model.identity_latents(latents, *noises).texture

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.allclose(drawn(3), drawn(4))


@pytest.mark.parametrize("name", PICTURES)
def test_images_have_the_size_of_the_crops_and_keep_gradients(model, batch, name):
    batch.requires_grad_()
    image = getattr(model, name)(batch)
    assert image.shape == (2, 3, 64, 64)
    image.square().sum().backward()
    assert torch.isfinite(batch.grad).all()
    assert batch.grad.abs().sum() > 0


def test_a_neutral_face_is_decoded_from_the_identity(model, batch):
    latents = model.embed_latents(batch)
    wanted = model.draw(model.identity_latents(latents)).image
    torch.testing.assert_close(model.neutralize_crops(batch), wanted)
    assert not torch.allclose(wanted, model.draw(latents).image)


def test_both_reconstructions_are_equations_1_and_2(model, batch):
    straight, mirrored = model.reconstruct_both(batch)
    torch.testing.assert_close(straight.image, model(batch))
    assert not torch.allclose(straight.image, mirrored.image)
    latents = model.embed_latents(batch)
    depth, albedo = model.decode_depth(latents).flip(-1), model.decode_albedo(latents).flip(-1)
    light = Light.from_parameters(latents.light)
    wanted = model.renderer.render(depth, albedo, light, latents.view)
    torch.testing.assert_close(mirrored.image, wanted.image)


def test_the_first_stage_teaches_every_network_but_the_diffusion(batch):
    model = LatentFace(**SMALL)
    pixels, _ = model.confidence(batch)
    straight, mirrored = model.reconstruct_both(batch)
    loss = confidence_loss(straight.image, batch, pixels[:, :1], straight.mask)
    loss = loss + 0.5 * confidence_loss(mirrored.image, batch, pixels[:, 1:], mirrored.mask)
    loss.backward()
    networks = {name for name, _ in model.named_children()}
    assert learned(model) == networks - {"texture_diffusion", "shape_diffusion"}


def test_the_second_stage_learns_to_denoise_a_code():
    model = LatentFace(**SMALL).texture_diffusion
    clean, condition, noise = torch.rand(16, 12), torch.rand(16, 12), torch.randn(16, 12)
    steps = torch.randint(0, 1000, (16,))
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(30):
        loss = denoising_loss(model.denoise(noise, steps, condition), clean)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_without_diffusion_there_is_no_identity_and_the_rest_works(batch):
    model = LatentFace(**SMALL, diffusion=False, confidence=False).eval()
    able = model.capabilities()
    assert {"reconstruct", "frontalize", "encode_pose"} <= set(able)
    assert not {"encode_identity", "encode_expression", "neutralize"} & set(able)
    assert model.reconstruct_crops(batch).shape == (2, 3, 64, 64)
    for stage in ("embed_identity", "embed_expression", "neutralize_crops"):
        with pytest.raises(UnsupportedError, match="without the second stage"):
            getattr(model, stage)(batch)
    with pytest.raises(UnsupportedError, match="without the confidence network"):
        model.confidence(batch)


def test_crops_of_128_pixels_work(batch):
    model = LatentFace(size=128, **SMALL).eval()
    assert model.input_shape == (3, 128, 128)
    crops = torch.rand(1, 3, 128, 128)
    assert model(crops).shape == (1, 3, 128, 128)
    assert model.embed_identity(crops).shape == (1, 24)
    with pytest.raises(ValueError, match=r"\(B, 3, 128, 128\), got \(2, 3, 64, 64\)"):
        model.embed_identity(batch)


@pytest.mark.parametrize("stage", ["embed_identity", "embed_pose", "confidence", "forward"])
def test_other_shapes_raise_an_error_with_the_expected_shape(model, stage):
    with pytest.raises(ValueError, match=r"must be \(B, 3, 64, 64\), got \(3, 64, 64\)"):
        getattr(model, stage)(torch.zeros(3, 64, 64))


def test_the_architecture_rebuilds_the_model(model):
    again = LatentFace(**model.architecture)
    again.load_state_dict(model.state_dict())
    assert again.architecture == model.architecture


def test_half_precision_draws_in_full_precision(model, batch):
    drawn = model.to(torch.bfloat16).reconstruct_crops(batch.bfloat16())
    assert drawn.dtype == torch.float32
    assert torch.isfinite(drawn).all()


def test_images_go_through_every_public_method(model):
    crops = [torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8) for _ in range(3)]
    encoding = model.encode([crop.numpy() for crop in crops], aligned=True)
    assert encoding.expression.shape == encoding.identity.shape == (3, 24)
    picture = model.frontalize(crops[0].numpy(), aligned=True)
    assert picture.shape == (1, 3, 64, 64)
    assert 0 <= picture.min() <= picture.max() <= 1


def test_expression_features_along_directions_have_a_compact_form():
    model = facezoo.load("latentface", device="cpu")
    generator = torch.Generator().manual_seed(0)
    crops = list(torch.randint(0, 256, (4, 3, 64, 64), generator=generator, dtype=torch.uint8))
    features = model.encode_expression(crops, aligned=True)
    compact = model.encode_expression(crops, aligned=True, compact=True)
    assert compact.shape == (4, model.architecture["expression_directions"])
    distances = torch.cdist(features, features)
    torch.testing.assert_close(torch.cdist(compact, compact), distances, rtol=1e-3, atol=1e-3)
    assert torch.equal(model.encode(crops, aligned=True, compact=True).expression, compact)
    assert LatentFace(**SMALL).expression_basis() is None


@pytest.mark.parametrize(("directions", "strength"), [(0, 1.0), (2, 1.4)])
def test_the_default_strength_is_that_of_the_source(directions, strength):
    torch.manual_seed(0)
    model = LatentFace(**SMALL, expression_directions=directions).eval()
    if directions:
        model.expression_removal.load_state_dict(
            {k: torch.randn_like(v) for k, v in model.expression_removal.state_dict().items()}
        )
    crops = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    pair = crops[0], crops[1]
    made = model.transfer_expression(*pair, aligned=True)
    wanted = model.transfer_expression(*pair, strength=strength, aligned=True)
    torch.testing.assert_close(made, wanted, rtol=0, atol=0)
    other = model.transfer_expression(*pair, strength=2.4 - strength, aligned=True)
    assert not torch.equal(made, other)


def test_an_expression_is_transferred_to_another_face_and_its_own_is_its_reconstruction(model):
    draw = torch.Generator().manual_seed(0)
    first, second = torch.randint(0, 256, (2, 3, 64, 64), generator=draw, dtype=torch.uint8)
    own = model.transfer_expression(first, first, aligned=True, detail=False)
    torch.testing.assert_close(own, model.reconstruct(first, aligned=True), atol=1e-4, rtol=1e-4)
    both = model.transfer_expression(first, [first, second], strength=1, aligned=True, detail=False)
    torch.testing.assert_close(both[:1], own, atol=1e-4, rtol=1e-4)
    given, kept = (model.encode_factors(image, aligned=True) for image in (first, second))
    with torch.no_grad():
        whose = [model.identity_latents(latents) for latents in (given, kept)]
        moved = {
            part: getattr(whose[1], part) + getattr(given, part) - getattr(whose[0], part)
            for part in ("texture", "shape")
        }
        wanted = model.to_unit(model.draw(replace(kept, **moved)).image)
    torch.testing.assert_close(both[1:], wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="got 2 source faces and 1 target faces"):
        model.transfer_expression([first, second], first, aligned=True)


def test_a_model_without_diffusion_transfers_nothing():
    plain = LatentFace(**SMALL, diffusion=False)
    photo = torch.zeros(3, 64, 64, dtype=torch.uint8)
    with pytest.raises(UnsupportedError, match="without the second stage"):
        plain.transfer_expression(photo, photo, aligned=True)


def test_random_weights_of_another_size_take_crops_of_that_size():
    large = facezoo.load("latentface", pretrained=False, size=128, device="cpu")
    assert large.preprocessing == replace(facezoo.info("latentface").preprocessing, size=128)
    crop = torch.zeros(3, 128, 128, dtype=torch.uint8)
    assert large.depth(crop, aligned=True).shape == (1, 128, 128)


def test_a_saved_model_drops_metrics_of_another_sampler(tmp_path):
    other = facezoo.load("latentface", sampler="diffusers-0.14", device="cpu")
    card = Card.load(other.save_pretrained(tmp_path) / "config.json")
    assert card.architecture["sampler"] == "diffusers-0.14"
    assert (card.name, card.metrics) == ("latentface.custom", ())


def test_zero_faces_give_zero_images(model, batch):
    assert model(batch[:0]).shape == (0, 3, 64, 64)
    none = model.embed_latents(batch)[torch.zeros(2, dtype=torch.bool)]
    drawn = model.draw(none)
    assert drawn.image.shape == (0, 3, 64, 64)
    assert drawn.mask.shape == (0, 1, 64, 64)
    assert drawn.depth.shape == (0, 64, 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_factors_of_images_are_drawn_again_in_any_precision(model, dtype):
    model.to(dtype)
    crop = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    factors = model.encode_factors(crop, aligned=True)
    with torch.no_grad():
        drawn = model.to_unit(model.draw(factors).image)
        identity = model.to_unit(model.draw(model.identity_latents(factors)).image)
    torch.testing.assert_close(drawn, model.reconstruct(crop, aligned=True))
    torch.testing.assert_close(
        identity, model.neutralize(crop, aligned=True, detail=False), atol=0.02, rtol=0
    )


def test_one_of_the_faces_is_chosen_by_its_number_and_drawn(model, batch):
    latents = model.embed_latents(batch)
    for number in (1, -len(latents) + 1, torch.tensor(1)):
        alone = model.draw(latents[number]).image
        torch.testing.assert_close(alone, model.draw(latents[1:2]).image)
    assert [len(one) for one in latents] == [1] * len(batch)
    with pytest.raises(IndexError, match=f"face 9 does not exist; there are {len(batch)} faces"):
        latents[9]


def test_noise_goes_to_where_the_faces_are(model, batch):
    latents = model.to("meta").embed_latents(batch.to("meta"))  # stands in for a GPU
    identity = model.identity_latents(latents, torch.randn(2, 12), torch.randn(2, 12))
    assert identity.texture.shape == identity.shape.shape == (2, 12)
    assert identity.texture.is_meta
