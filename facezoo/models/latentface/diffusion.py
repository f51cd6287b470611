"""Representation diffusion model (RDM): from the code of a face to the code of its identity.

Source: LatentFace, Sec. 2.4 and 5.2. The network predicts the clean code (x0), not the noise. The
paper pads codes to a 3 x 3 map with zeros; the published weights use 1 x 1 maps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from facezoo.models.latentface.unet import UNet

TRAIN_STEPS = 1000
"""T, Sec. 2.4."""
SAMPLE_STEPS = 5
"""S of the DDIM sampler, Sec. 2.4."""

# Computed once as numbers, since ONNX has no cumulative product.
_BETAS = torch.linspace(1e-4, 0.02, TRAIN_STEPS, dtype=torch.float32, device="cpu")
_ALPHAS: list[float] = (1 - _BETAS).cumprod(0).tolist()

Denoiser = Callable[[Tensor, Tensor], Tensor]
StepRule = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def alphas_cumprod() -> Tensor:
    """Return ᾱ of every step for betas linear from 1e-4 to 0.02 (Ho et al. 2020), float32, (T,)."""
    return torch.tensor(_ALPHAS, dtype=torch.float32, device="cpu")


def add_noise(clean: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
    """Compute noisy codes Z_τ = √ᾱ_τ Z_0 + √(1 - ᾱ_τ) ε, eq. (3).

    Args:
        clean: Z_0, (B, D).
        noise: ε from a normal distribution, (B, D).
        steps: τ from 0 to T - 1, int64, (B,).

    Returns:
        (B, D).
    """
    # In half precision 1 - ᾱ rounds to 0 for the first steps, so take the roots in float32.
    precise = torch.promote_types(clean.dtype, torch.float32)
    alphas = alphas_cumprod().to(clean.device, precise)[steps][:, None]
    signal, spread = alphas.sqrt().to(clean.dtype), (1 - alphas).sqrt().to(clean.dtype)
    return signal * clean + spread * noise


def ddim_step(noisy: Tensor, predicted: Tensor, now: Tensor, after: Tensor, limit: float) -> Tensor:
    """Take one deterministic DDIM step (Song et al. 2021, eq. 12, η = 0).

    Args:
        noisy: x at this step.
        predicted: clean x as the network predicts it, of the same shape.
        now: ᾱ at this step.
        after: ᾱ at the next.
        limit: bound of the clean x; the noise is computed from the unclipped prediction, as in
            diffusers.

    Returns:
        x at the next step.
    """
    noise = (noisy - now.sqrt() * predicted) / (1 - now).sqrt()
    return after.sqrt() * predicted.clamp(-limit, limit) + (1 - after).sqrt() * noise


def published_step(
    noisy: Tensor, predicted: Tensor, now: Tensor, after: Tensor, limit: float
) -> Tensor:
    """Take the step of diffusers 0.14, which the published results were made with.

    It uses the network's prediction in place of the noise. The rule is wrong, but the numbers of
    the published weights depend on it. The arguments are those of ``ddim_step``.
    """
    del noisy, now  # only the correct rule needs them
    return after.sqrt() * predicted.clamp(-limit, limit) + (1 - after).sqrt() * predicted


SAMPLERS: dict[str, StepRule] = {"ddim": ddim_step, "diffusers-0.14": published_step}
"""Sampling rules by their name in cards."""


def sample(
    denoise: Denoiser,
    noise: Tensor,
    rule: StepRule = ddim_step,
    limit: float = 1.0,
    count: int = SAMPLE_STEPS,
) -> Tensor:
    """Denoise in a few deterministic steps.

    Args:
        denoise: function of noisy x and steps (B,) that predicts the clean x.
        noise: initial x, (B, ...).
        rule: one of ``SAMPLERS``.
        limit: see ``ddim_step``.
        count: number of steps S; it must divide T.

    Returns:
        The last clipped prediction, of the shape of ``noise``.

    Raises:
        ValueError: if ``count`` does not divide T.
    """
    if count < 1 or TRAIN_STEPS % count:
        raise ValueError(f"count must divide {TRAIN_STEPS}, got {count}")
    stride = TRAIN_STEPS // count
    # In half precision 1 - ᾱ rounds to 0 at the last step, so ᾱ stays in float32.
    alphas = alphas_cumprod().to(noise.device, torch.promote_types(noise.dtype, torch.float32))
    x = noise
    for step in range(TRAIN_STEPS - stride, -1, -stride):
        predicted = denoise(x, torch.full((x.shape[0],), step, device=x.device))
        after = alphas[step - stride] if step else alphas.new_ones(())
        x = rule(x, predicted, alphas[step], after, limit)
    return x


class RepresentationDiffusion(nn.Module):
    """Diffusion model that samples an identity code given the code of a face.

    Args:
        code_dim: D.
        width: channels of the U-Net; 128 in the published weights.
        map_size: 1 as published, or 3 as in the paper, which pads codes with zeros. The prediction
            is the middle of the U-Net's output; the paper leaves this open.
        sampler: a key of ``SAMPLERS``.
        limit: largest absolute entry of a sampled code; 1 as published. Codes of the autoencoders
            may be larger.
        seed: seed of the initial noise that ``forward`` uses by default.
    """

    noise: Tensor

    def __init__(
        self,
        code_dim: int = 256,
        width: int = 128,
        map_size: int = 1,
        sampler: str = "ddim",
        limit: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if map_size not in (1, 3):
            raise ValueError(
                f"map_size must be 1 as published or 3 as in the paper, got {map_size}"
            )
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
        if limit <= 0:
            raise ValueError(f"limit must be above 0, got {limit}")
        self.map_size, self.rule, self.limit = map_size, SAMPLERS[sampler], limit
        self.unet = UNet(2 * code_dim, code_dim, width)
        # Sampled on the CPU in float32, since random numbers differ between devices and dtypes.
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(code_dim, generator=generator, dtype=torch.float32, device="cpu")
        self.register_buffer("noise", noise, persistent=False)

    def denoise(self, noisy: Tensor, steps: Tensor, condition: Tensor) -> Tensor:
        """Predict the identity code Ẑ_0 = E_r(Z_τ, τ, Z_exp), eq. (4).

        Args:
            noisy: Z_τ, (B, D).
            steps: τ, (B,).
            condition: Z_exp, (B, D).

        Returns:
            (B, D), not clipped.
        """
        codes = rearrange(torch.cat([noisy, condition], 1), "b d -> b d 1 1")
        border = self.map_size // 2
        predicted = self.unet(F.pad(codes, [border] * 4), steps)
        return predicted[:, :, border, border]

    def forward(self, condition: Tensor, noise: Tensor | None = None) -> Tensor:
        """Sample the identity codes Z_id of faces; gradients are kept.

        Args:
            condition: Z_exp, (B, D).
            noise: initial noise, (B, D). None uses the model's own, the same for every face, so
                that a face always gets the same code.

        Returns:
            In [-limit, limit], (B, D).
        """
        if noise is None:
            noise = self.noise.to(condition).expand_as(condition)

        def denoise(noisy: Tensor, steps: Tensor) -> Tensor:
            return self.denoise(noisy.to(condition.dtype), steps, condition).to(noisy.dtype)

        # In half precision the noise of the last steps would round to zero.
        exact = noise.to(condition.device, torch.promote_types(noise.dtype, torch.float32))
        return sample(denoise, exact, self.rule, self.limit).to(condition.dtype)
