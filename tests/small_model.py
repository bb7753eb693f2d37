"""A model that is no ViT, written by hand around two attention layers, and batches for it."""

from typing import Any

import torch
from torch import Tensor, nn

import asap_exp
from asap_exp.attention import MultiHeadAttention, SinkhornAttention
from asap_exp.calibration.steps import AdamFit, with_settings

DIM, HEADS, TOKENS, CLASSES = 16, 2, 8, 5


class Classifier(nn.Module):
    """Two Sinkhorn layers with residuals, then a mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            MultiHeadAttention(DIM, HEADS, attend=SinkhornAttention(num_iters=8)) for _ in range(2)
        )
        self.head = nn.Linear(DIM, CLASSES)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.35, generator=generator)

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        x = x + self.first(x, key_padding_mask=key_padding_mask)
        x = x + self.second(x, key_padding_mask=key_padding_mask)
        return self.head(x.mean(dim=1))


def batches(*seeds: int, rows: int = 48) -> list[tuple[Tensor, None]]:
    """One batch of tokens a seed, without labels."""
    return [(tokens(seed, rows), None) for seed in seeds]


def tokens(seed: int, rows: int = 48) -> Tensor:
    return torch.randn(rows, TOKENS, DIM, generator=torch.Generator().manual_seed(seed))


FEW = AdamFit(updates=20, lr=0.02)


def compile_small(model: nn.Module, loader: Any, **options: Any) -> nn.Module:
    """Compile with few slices and, in every step that has any, few updates."""
    steps = options.get("steps", ("ridge", "learned_slices"))
    few = {step: FEW for step in steps if step in with_settings()}
    small = {"slices": 3, "candidates": 8, "steps": steps, "progress": False}
    return asap_exp.compile(model, loader, **{**small, **few, **options})


def loader() -> list[tuple[Tensor, None]]:
    return batches(1, 2, 3, 4, 5)


def kl(teacher: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        p, q = (model(x).log_softmax(dim=-1) for model in (teacher, other))
    return nn.functional.kl_div(q, p, log_target=True, reduction="batchmean").item()
