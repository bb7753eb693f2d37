"""The shape of one row of a benchmark."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Shape `[batch, heads, n, head_dim]` of q, k and v: self-attention without padding."""

    batch: int
    heads: int
    n: int
    head_dim: int

    @property
    def size(self) -> tuple[int, int, int, int]:
        return self.batch, self.heads, self.n, self.head_dim

    @property
    def tokens(self) -> int:
        """Number of tokens over all samples and heads."""
        return self.batch * self.heads * self.n

    @property
    def pairs(self) -> int:
        """Number of entries of all plans."""
        return self.tokens * self.n
