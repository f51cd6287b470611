"""The networks of IPD-FER (Sec. 3, Fig. 2; sizes in Sec. 4.2): encoders, decoder, discriminator."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facezoo.models.resnet import DEPTHS, ResNet

SEED_SIDE = 7
"""Side of the decoder's first map, pixels; every later stage doubles it."""


class Encoder(nn.Module):
    """Encoder of an aligned face crop: E_id, E_pose and E_exp of Fig. 2.

    The paper's encoders are ResNet-18s with 512-d outputs; any timm backbone serves. The batch
    norm behind the pooled feature, as in ArcFace, centers it, so that cosines use their full range.

    Args:
        backbone: name of a timm model.
        feature_dim: D; a linear map is added where the backbone's own width differs.
        size: side of the crops, pixels, for backbones that are built for one size.
        rank: dimensions of the subspace that the features keep to (ours, not the paper's): what
            does not pass through so few numbers cannot be read from them; None for all D.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        feature_dim: int = 512,
        size: int = 112,
        rank: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = _backbone(backbone, size)
        # What comes out without a classifier; wider than num_features where a head has a layer.
        width: int = self.backbone.head_hidden_size  # type: ignore[assignment]
        self.projection: nn.Module = nn.Identity()
        if rank is not None:
            self.projection = nn.Sequential(
                nn.Linear(width, rank, bias=False), nn.Linear(rank, feature_dim, bias=False)
            )
        elif width != feature_dim:
            self.projection = nn.Linear(width, feature_dim)
        self.norm = nn.BatchNorm1d(feature_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Compute features (B, D) of normalized crops (B, 3, H, W)."""
        projected = self.projection(self.backbone(images))
        return self.norm(projected.to(self.norm.weight.dtype))

    @torch.no_grad()
    def as_timm(self, name: str, last: nn.Module | None = None) -> nn.Module:
        """Return this encoder as a timm model; its classifier is everything after the backbone.

        Args:
            name: of the backbone.
            last: a further affine map behind the features.

        Returns:
            A model that gives the features in eval mode, or what ``last`` makes of them.
        """
        self.eval()
        width: int = self.backbone.head_hidden_size  # type: ignore[assignment]
        weight = next(self.norm.parameters())
        # Rows of an affine map show its offset at zero and its columns at the unit vectors.
        points = F.pad(torch.eye(width, dtype=weight.dtype, device=weight.device), (0, 0, 1, 0))
        outward = self.norm(self.projection(points))
        outward = outward if last is None else last(outward)
        network = _copied(self.backbone, name, outward.shape[1])
        head = network.get_classifier()  # type: ignore[operator]
        head.weight.copy_((outward[1:] - outward[0]).T)
        head.bias.copy_(outward[0])
        return network.eval()

    @torch.no_grad()
    def start_from(self, whole: Encoder, pooled: Tensor) -> None:
        """Take the weights of an encoder of full rank, and its principal axes for the projection.

        Args:
            whole: of the same backbone.
            pooled: what its backbone makes of some training crops, (N, C), N at least the rank.

        Raises:
            ValueError: if there are fewer crops than the projection has dimensions.
        """
        self.backbone.load_state_dict(whole.backbone.state_dict())
        whole.eval()
        features = whole.norm(whole.projection(pooled))
        centered = features - features.mean(0)
        assert isinstance(self.projection, nn.Sequential)
        inward, outward = self.projection.parameters()
        if len(pooled) < len(inward):
            raise ValueError(
                f"principal axes of {len(pooled)} crops cannot fill {len(inward)} dimensions; "
                "give more training crops or a lower expression_rank"
            )
        axes = torch.linalg.svd(centered, full_matrices=False)[2][: len(inward)]
        variance = whole.norm.running_var
        assert variance is not None
        scaled = axes * whole.norm.weight / (variance + whole.norm.eps).sqrt()
        full = whole.projection
        inward.copy_(scaled @ full.weight if isinstance(full, nn.Linear) else scaled)
        outward.copy_(axes.T)
        projected = self.projection(pooled)
        # The norm has to give back what the axes keep of the features, with their mean.
        mean, variance = projected.mean(0), projected.var(0, unbiased=False)
        for tensor, value in (
            (self.norm.running_mean, mean),
            (self.norm.running_var, variance),
            (self.norm.weight, (variance + self.norm.eps).sqrt()),
            (self.norm.bias, features.mean(0)),
        ):
            assert tensor is not None
            tensor.copy_(value)


class PoseEncoder(nn.Module):
    """E_pose that can hold a pose and nothing else (ours): four numbers, expanded linearly to D.

    The numbers are yaw, pitch and roll in radians and the logarithm of the head's size, see
    ``facezoo.landmarks.crop_pose``. A frontal face of average pitch and size gives a
    feature of zeros.

    Args:
        backbone: name of a timm model.
        feature_dim: D.
        size: side of the crops, pixels, for backbones that are built for one size.
    """

    def __init__(
        self, backbone: str = "resnet10t", feature_dim: int = 512, size: int = 112
    ) -> None:
        super().__init__()
        self.backbone = _backbone(backbone, size)
        width: int = self.backbone.head_hidden_size  # type: ignore[assignment]
        self.angles = nn.Linear(width, 4)
        self.expansion = nn.Linear(4, feature_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Compute f_pose (B, D) of normalized crops (B, 3, H, W)."""
        return self.expansion(self.pose(images))

    def pose(self, images: Tensor) -> Tensor:
        """Estimate yaw, pitch, roll and log size of normalized crops, (B, 4)."""
        return self.angles(self.backbone(images))

    @torch.no_grad()
    def as_timm(self, name: str) -> nn.Module:
        """Return this encoder as a timm model whose classifier gives the features."""
        network = _copied(self.backbone, name, self.expansion.out_features)
        head = network.get_classifier()  # type: ignore[operator]
        head.weight.copy_(self.expansion.weight @ self.angles.weight)
        head.bias.copy_(self.expansion(self.angles.bias))
        return network.eval()


class Discriminator(nn.Module):
    """D of Sec. 3.3: a classifier of the K expressions on real and on generated crops.

    Args:
        backbone: name of a timm model.
        feature_dim: D of the feature before the classifier.
        num_classes: K.
    """

    def __init__(self, backbone: str, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = Encoder(backbone, feature_dim)
        self.classifier = nn.Linear(feature_dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (B, K) of normalized crops (B, 3, H, W)."""
        return self.classifier(self.encoder(images))


class Decoder(nn.Module):
    """G_dec of Sec. 4.2: a decoder from a feature vector to a face crop.

    Five stages of transposed convolution, instance norm, ReLU and residual block, through maps of
    7, 14, 28, 56 and 112 pixels. The paper gives neither widths nor the step from the last map to
    colors; here a stage has half the width of the one before, and a 3x3 convolution and a tanh
    follow.

    Args:
        feature_dim: D.
        size: side of what the stages make, 14 x 2^n pixels; a smaller side has fewer stages, and
            ``forward`` enlarges what they make to ``full_size``.
        width: channels of the first map.
        full_size: side of the result, pixels.
    """

    def __init__(
        self, feature_dim: int = 512, size: int = 112, width: int = 256, full_size: int = 112
    ) -> None:
        super().__init__()
        doublings = (size // SEED_SIDE).bit_length() - 1
        if size < 2 * SEED_SIDE or SEED_SIDE << doublings != size:
            raise ValueError(f"decoder size must be 14, 28, 56, 112, ... pixels, got {size}")
        if width >> doublings < 1:
            raise ValueError(f"decoder width {width} cannot be halved {doublings} times")
        widths = [feature_dim, *(width >> stage for stage in range(doublings + 1))]
        self.full_size = full_size
        self.stages = nn.Sequential(
            *(_stage(*widths[i : i + 2], first=i == 0) for i in range(len(widths) - 1))
        )
        self.to_rgb = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def generate(self, features: Tensor) -> Tensor:
        """Crops in [-1, 1] at the size of the last stage, (B, 3, size, size), of (B, D)."""
        return self.to_rgb(self.stages(features[:, :, None, None])).tanh()

    def forward(self, features: Tensor) -> Tensor:
        """Crops in [-1, 1], (B, 3, full_size, full_size), of features (B, D)."""
        images = self.generate(features)
        if images.shape[-1] == self.full_size:
            return images
        side = [self.full_size, self.full_size]
        return F.interpolate(images, side, mode="bilinear")


class RefinedDecoder(nn.Module):
    """G_dec of ours: a linear map to a crop of half the side, and convolutions that refine it.

    ``fit`` finds the linear map in closed form. The convolutions run on maps of a sixteenth, an
    eighth, a quarter and half of the side, each scaled and shifted by the features (FiLM, Perez et
    al., AAAI 2018). They start with no effect.

    Args:
        feature_dim: D.
        size: side of the crops, a multiple of 16 pixels.
        width: channels of the first two maps; the later ones have 3/4 and 1/4 as many.
        rank: dimensions of the linear map.

    Raises:
        ValueError: if ``size`` is not a multiple of 16.
    """

    def __init__(
        self, feature_dim: int = 512, size: int = 112, width: int = 96, rank: int = 192
    ) -> None:
        super().__init__()
        if size < 16 or size % 16:
            raise ValueError(f"size must be a multiple of 16 pixels, got {size}")
        rank = min(rank, feature_dim)
        self.side, self.base_side = size // 16, size // 2
        widths = [width, width, 3 * width // 4, width // 4]
        self.inward = nn.Linear(feature_dim, rank)
        self.outward = nn.Linear(rank, 3 * self.base_side**2)
        self.seed = nn.Linear(feature_dim, width * self.side**2)
        steps = list(pairwise(widths))
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in steps)
        self.modulate = nn.ModuleList(nn.Linear(feature_dim, 2 * b) for _, b in steps)
        self.refine = nn.ModuleList(nn.Conv2d(b, b, 3, padding=1) for _, b in steps)
        self.see = nn.Conv2d(12, widths[2], 3, padding=1)
        self.to_rgb = nn.Conv2d(widths[3], 12, 3, padding=1)
        for layer in (*self.modulate, self.to_rgb):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def fit(self, features: Tensor, images: Tensor, ridge: float = 1e-3) -> None:
        """Fit the linear map: reduced-rank ridge regression of images on features.

        A regression makes images with too little variation. So each of its dimensions is scaled by
        the fourth root of the ratio of the images' standard deviation to its own, at most 1.4.

        Args:
            features: sums of features, (N, D).
            images: crops of half the side that they must give, (N, 3, H/2, H/2).
            ridge: penalty as a share of the mean variance of the features.
        """
        x, center = features.double() - features.double().mean(0), images.mean(0).flatten()
        gram = x.T @ x
        gram += (
            ridge
            * gram.diagonal().mean()
            * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        )
        cross = x.float().T @ (images.flatten(1) - center)
        lower = torch.linalg.cholesky(gram)
        whitened = torch.linalg.solve_triangular(lower, cross.double(), upper=False)
        u, sizes, v = torch.linalg.svd(whitened, full_matrices=False)
        rank, scale = self.inward.out_features, len(x) ** 0.5
        into = torch.linalg.solve_triangular(lower.T, u[:, :rank] * scale, upper=True)
        self.inward.weight.copy_(into.T)
        self.inward.bias.copy_(-features.double().mean(0) @ into)
        axes = v[:rank].float()
        own = (sizes[:rank] / scale).float()
        spread = ((images.flatten(1) - center) @ axes.T).std(0, correction=0)
        self.outward.weight.copy_(axes.T * own * (spread / own).clamp(1, 4).pow(0.25))
        self.outward.bias.copy_(center)

    def generate(self, features: Tensor) -> Tensor:
        """Crops, about -1 to 1 but not clipped, (B, 3, size, size), of features (B, D)."""
        # unflatten, since len() fixes the batch size of an exported graph
        base = self.outward(self.inward(features)).unflatten(1, (3, self.base_side, self.base_side))
        maps = F.leaky_relu(self.seed(features), 0.2).unflatten(1, (-1, self.side, self.side))
        maps = maps.contiguous(memory_format=torch.channels_last)
        layers = zip(self.enlarge, self.modulate, self.refine, strict=True)
        for number, (enlarge, modulate, refine) in enumerate(layers):
            maps = enlarge(maps)
            if number == 1:
                maps = maps + self.see(_quarters(base))
            scale, shift = modulate(features)[:, :, None, None].chunk(2, 1)
            maps = F.leaky_relu(maps * (1 + scale) + shift, 0.2)
            maps = maps + F.leaky_relu(refine(maps), 0.2)
        enlarged = F.interpolate(base, scale_factor=2.0, mode="bilinear")
        details = F.pad(F.pixel_shuffle(self.to_rgb(maps), 2), (1, 0, 1, 0), mode="replicate")
        details = F.avg_pool2d(details, 2, 1)
        for _ in range(2):  # removes the patterns that transposed convolutions leave
            details = F.avg_pool2d(details, 3, 1, 1, count_include_pad=False)
        return enlarged + details

    def forward(self, features: Tensor) -> Tensor:
        """Crops in [-1, 1], (B, 3, size, size), of features (B, D)."""
        return self.generate(features).clamp(-1, 1)


def _quarters(images: Tensor) -> Tensor:
    """Move the pixels of each 2 x 2 block into channels, (B, C, H, W) to (B, 4 C, H/2, W/2).

    ``F.pixel_unshuffle`` does the same, but for B = 0 it returns its input.
    """
    corners = [images[..., row::2, column::2] for row in (0, 1) for column in (0, 1)]
    return torch.stack(corners, 2).flatten(1, 2)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.InstanceNorm2d(width, affine=True),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.InstanceNorm2d(width, affine=True),
        )

    def forward(self, maps: Tensor) -> Tensor:
        change: Tensor = self.body(maps)
        return maps + change


def _stage(inward: int, outward: int, *, first: bool) -> nn.Sequential:
    """One stage of the decoder: from one pixel to the first map, or twice the side."""
    enlarge = (
        nn.ConvTranspose2d(inward, outward, SEED_SIDE, bias=False)
        if first
        else nn.ConvTranspose2d(inward, outward, 4, stride=2, padding=1, bias=False)
    )
    return nn.Sequential(
        enlarge, nn.InstanceNorm2d(outward, affine=True), nn.ReLU(inplace=True), _Residual(outward)
    )


def _copied(backbone: nn.Module, name: str, classes: int) -> nn.Module:
    """Create a float32 timm model with a classifier, and the weights of a backbone."""
    with torch.device("cpu"):
        network = _backbone(name, 112, classes).float()
    network.load_state_dict(backbone.state_dict(), strict=False)
    return network


def _backbone(name: str, size: int, classes: int = 0) -> nn.Module:
    """Create a timm model; transformers need the size of their input."""
    if name in DEPTHS and not classes:
        return ResNet(name)
    import timm

    try:
        return timm.create_model(name, pretrained=False, num_classes=classes, img_size=size)
    except TypeError:  # convolutional networks take any size and no such argument
        return timm.create_model(name, pretrained=False, num_classes=classes)
