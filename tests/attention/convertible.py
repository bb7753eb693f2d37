"""Small models of other libraries, with random weights, and how they are called."""

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

ROWS, TOKENS, DIM, HEADS, CLASSES = 6, 7, 16, 4, 3
PADDING = torch.arange(TOKENS) >= torch.tensor([7, 2, 4, 7, 1, 5])[:, None]
VALID = ~PADDING


@dataclass
class Case:
    """A model in evaluation mode, batches for it and its output on one of them."""

    model: nn.Module
    batches: list[Any]
    forward: Callable[[nn.Module, Any], Tensor] = field(default=lambda model, batch: model(batch))


def randomised(model: nn.Module) -> nn.Module:
    """Give every parameter its own random values, biases and norms too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.empty_like(parameter).normal_(std=0.3, generator=generator)
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    return model.eval()


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(size: int = 16, count: int = 3) -> list[Tensor]:
    return [normal(ROWS, 3, size, size, seed=seed) for seed in range(count)]


def of_timm(name: str, **options: Any) -> Case:
    timm = importlib.import_module("timm")
    small = {"img_size": 16, "patch_size": 4, "embed_dim": DIM, "num_heads": HEADS, "depth": 2}
    model = timm.create_model(name, num_classes=CLASSES, **{**small, **options})
    return Case(randomised(model), images())


def swin(**options: Any) -> Case:
    """Windows of 4 x 4, shifted ones with a mask among them."""
    timm = importlib.import_module("timm")
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        patch_size=4,
        window_size=4,
        embed_dim=8,
        depths=(2, 1),
        num_heads=(2, 4),
        num_classes=CLASSES,
        **options,
    )
    return Case(randomised(model), images(32))


def encoder(*, padded: bool = True, layers: int = 2, **options: Any) -> Case:
    options = {"dropout": 0.0, "batch_first": True, **options}
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 32, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about cases in which torch makes no nested tensors
        model = randomised(nn.TransformerEncoder(layer, layers))
    batches = []
    for seed in range(3):
        x = normal(ROWS, TOKENS, DIM, seed=seed)
        x = x if options["batch_first"] else x.transpose(0, 1)
        batches.append({"src": x} | ({"src_key_padding_mask": PADDING} if padded else {}))

    def forward(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        out = model(**batch)
        out = out if options["batch_first"] else out.transpose(0, 1)
        return out[VALID] if padded else out

    return Case(model, batches, forward)


def transformers(part: str) -> Any:
    reason = "transformers is not installed (the extra `hf`)"
    return pytest.importorskip(f"transformers.{part}", reason=reason)


HF = {
    "hidden_size": DIM,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": 32,
}


def bert(implementation: str = "sdpa", **options: Any) -> Case:
    hf = transformers("models.bert")
    drop = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
    config = hf.BertConfig(vocab_size=30, **HF, **{**drop, **options})
    model = hf.BertModel._from_config(config, attn_implementation=implementation)
    batches = [
        {
            "input_ids": torch.randint(
                30, (ROWS, TOKENS), generator=torch.Generator().manual_seed(s)
            ),
            "attention_mask": VALID.long(),
        }
        for s in range(3)
    ]
    return Case(
        randomised(model),
        batches,
        lambda model, batch: model(**batch).last_hidden_state[VALID],
    )


def hf_vit(implementation: str = "sdpa") -> Case:
    hf = transformers("models.vit")
    config = hf.ViTConfig(**HF, image_size=16, patch_size=4)
    model = hf.ViTModel._from_config(config, attn_implementation=implementation)
    return Case(randomised(model), images(), lambda model, batch: model(batch).last_hidden_state)


WITHOUT_BIAS: dict[str, Callable[[], Case]] = {
    "vit": lambda: of_timm("vit_tiny_patch16_224"),
    "vit with every norm": lambda: of_timm(
        "vit_tiny_patch16_224", qk_norm=True, scale_attn_norm=True
    ),
    "vit with registers": lambda: of_timm("vit_small_patch14_reg4_dinov2"),
    "deit": lambda: of_timm("deit_tiny_distilled_patch16_224"),
    "eva02": lambda: of_timm("eva02_tiny_patch14_224"),
    "eva02 with parts apart": lambda: of_timm(
        "eva02_tiny_patch14_224", qkv_fused=False, scale_attn_inner=True
    ),
    "rope vit": lambda: of_timm("vit_base_patch16_rope_224"),
    "mixed rope vit": lambda: of_timm("vit_base_patch16_rope_mixed_224"),
    "beit without a bias": lambda: of_timm(
        "beit_base_patch16_224", use_rel_pos_bias=False, use_abs_pos_emb=True
    ),
    "encoder": lambda: encoder(padded=False),
    "padded encoder": encoder,
    "padded encoder, norm first": lambda: encoder(norm_first=True),
    "padded encoder, gelu, tokens first": lambda: encoder(batch_first=False, activation="gelu"),
    "bert": bert,
    "bert, eager": lambda: bert("eager"),
    "hf vit": hf_vit,
    "hf vit, eager": lambda: hf_vit("eager"),
}
WITH_BIAS: dict[str, Callable[[], Case]] = {
    "beit": lambda: of_timm("beit_base_patch16_224"),
    "beit with a shared bias": lambda: of_timm(
        "beit_base_patch16_224", use_rel_pos_bias=False, use_shared_rel_pos_bias=True
    ),
    "swin": swin,
}
CASES = WITHOUT_BIAS | WITH_BIAS
