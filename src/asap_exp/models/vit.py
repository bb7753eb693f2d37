"""timm's VisionTransformer with this project's attention."""

from collections.abc import Mapping
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from asap_exp.attention import MultiHeadAttention, fill_attention
from asap_exp.core.config import ImageTrainConfig, ViTConfig
from asap_exp.core.errors import UserError
from asap_exp.data.describing import described_images


class ViTAttention(MultiHeadAttention):
    """Attention layer with an RMS norm on q and k, whatever norm the blocks have."""

    def __init__(self, *args: Any, norm_layer: Any = None, **options: Any) -> None:
        super().__init__(*args, **options)


def vit_of(config: ImageTrainConfig) -> nn.Module:
    """Build the ViT of a training configuration."""
    dataset = described_images(config.data)
    return build_vit(
        config.model,
        config.attention,
        image_size=config.data.image_size,
        channels=dataset.channels,
        num_classes=dataset.num_classes,
    )


def build_vit(
    model: ViTConfig,
    attention: Mapping[str, Any],
    *,
    image_size: int,
    channels: int,
    num_classes: int,
) -> nn.Module:
    """Build a ViT on square images `[B, channels, image_size, image_size]`, mean-pooled.

    There is no class token. `attention` is `{name, **options}`. Raises UserError if the patch size
    does not divide the image size.
    """
    if image_size % model.patch_size:
        raise UserError(
            f"model.patch_size={model.patch_size} does not divide data.image_size={image_size}; "
            f"choose one of {', '.join(map(str, divisors(image_size)))}"
        )
    vit = VisionTransformer(
        img_size=image_size,
        patch_size=model.patch_size,
        in_chans=channels,
        num_classes=num_classes,
        global_pool="avg",
        class_token=False,
        embed_dim=model.dim,
        depth=model.depth,
        num_heads=model.heads,
        mlp_ratio=model.mlp_ratio,
        qk_norm=model.qk_norm,
        drop_path_rate=model.drop_path,
        proj_drop_rate=model.dropout,
        attn_layer=ViTAttention,
    )
    fill_attention(vit, attention, tokens=tokens_of_images(vit))
    return vit


def tokens_of_images(net: nn.Module) -> int | None:
    """Return the tokens of an image; None for a network on texts, whose inputs are tokens."""
    patches = getattr(net, "patch_embed", None)
    return None if patches is None else int(patches.num_patches)


def divisors(n: int) -> list[int]:
    """Return the divisors of `n` in ascending order."""
    return [d for d in range(1, n + 1) if n % d == 0]
