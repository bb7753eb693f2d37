"""A model that is no ViT, written by hand around two attention layers, and batches for it."""

import torch
from torch import Tensor, nn

from asap_exp.attention import MultiHeadAttention, SinkhornAttention

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
