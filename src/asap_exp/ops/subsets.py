"""Subsets of tokens that stand for all tokens of a sample, and how many each of them stands for.

A choice depends on a sample's valid tokens and a seed alone, so a padded sample and the same sample
without its padding get the same tokens. A sample with no more valid tokens than asked for gets all
of them, with weight 1. No choice waits for the device, and none carries a gradient.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from asap_exp.ops.call import SUPPORTED_CAPABILITIES, capability
from asap_exp.ops.masking import blank, compute_dtype, effective_padding
from asap_exp.ops.transforms import transformed

WEIGHTS = ("equal", "voronoi")
ROUNDS = 5
"""Rounds of k-means."""


class Subset(NamedTuple):
    """Indices `tokens` `[B, H, C]` and `weight` `[B, H, C]`; B and H may be 1, for all alike.

    Token c stands for a share of the mass in proportion to its weight; 0 leaves it out, so that
    samples may have fewer than C tokens. No two tokens with a weight may be the same: nothing
    checks it, and the fused gradient would count one of them alone.
    """

    tokens: Tensor
    weight: Tensor


class Picked(NamedTuple):
    """Indices of the tokens that a choice took, and False where there is none."""

    tokens: Tensor
    present: Tensor


class Points(NamedTuple):
    """Tokens to choose from: vectors `x` `[B, H, N, D]`, 0 at padded tokens.

    `padding` is `[B or 1, N]`; `order` `[B or 1, 1, N]` lists the valid tokens first, and
    `num_valid` `[B or 1, 1, 1]` counts them.
    """

    x: Tensor
    padding: Tensor
    order: Tensor
    num_valid: Tensor


@torch.no_grad()
def choose_subset(
    x: Tensor,
    count: int,
    *,
    choice: str,
    weights: str,
    seed: int,
    grid_width: int,
    key_padding_mask: Tensor | None,
) -> Subset:
    if key_padding_mask is not None and (kernel := fused_by_padding(choice, weights, x)):
        return Subset(*kernel(key_padding_mask, min(count, x.shape[2])))
    x = x.detach()  # no_grad stops no derivative that goes forward
    fused = fused_choice(choice, x)
    points = points_of(x if fused is None else x[..., :1], key_padding_mask)
    few = everything(points, count)
    if x.shape[2] <= count:
        return Subset(few.tokens, few.present.to(points.x.dtype))
    if fused is None:
        picked = CHOICES[choice](points, count, seed, grid_width)
        cells = cell_sizes(points, picked) if weights == "voronoi" else None
    else:
        tokens, cells = fused(x, key_padding_mask, count)
        picked = Picked(tokens, torch.ones_like(tokens, dtype=torch.bool))
    if weights == "voronoi" and cells is not None:
        weight = cells
    else:
        present = picked.present.to(points.x.dtype)
        weight = present * (points.num_valid / present.sum(dim=-1, keepdim=True))
    if key_padding_mask is None:
        return Subset(picked.tokens, weight)
    all_of_them = points.num_valid <= count
    tokens = torch.where(all_of_them, few.tokens, picked.tokens)
    return Subset(tokens, torch.where(all_of_them, few.present.to(weight.dtype), weight))


FusedChoice = Callable[[Tensor, Tensor | None, int], tuple[Tensor, Tensor]]
FUSED: dict[str, tuple[FusedChoice, Callable[[Tensor], bool]]] = {}
"""Choices by a kernel for a GPU, from vectors, padding and count: the tokens `[B, H, C]` and the
sizes of their cells. The second function says whether it takes the vectors.
"""


ByPadding = Callable[[Tensor, int], tuple[Tensor, Tensor]]
FUSED_BY_PADDING: dict[str, ByPadding] = {}
"""Choices by a kernel for a GPU that read the padding `[B, N]` alone: their tokens `[B, H, C]`, of
equal weights, and the weights in float32.
"""


def fused_choice(choice: str, x: Tensor) -> FusedChoice | None:
    """Return the kernel that makes a choice among these vectors; None for plain PyTorch."""
    if choice not in FUSED or transformed() or not on_supported_gpu(x):
        return None
    kernel, takes = FUSED[choice]
    return kernel if takes(x) else None


def fused_by_padding(choice: str, weights: str, x: Tensor) -> ByPadding | None:
    """Return the kernel that makes a choice by padding alone, if there is one."""
    if weights != "equal" or x.dtype == torch.float64 or transformed():
        return None
    return FUSED_BY_PADDING.get(choice) if on_supported_gpu(x) else None


def on_supported_gpu(x: Tensor) -> bool:
    """Return whether `x` is where the operators' kernels run too."""
    return capability(x) in SUPPORTED_CAPABILITIES


def points_of(x: Tensor, key_padding_mask: Tensor | None) -> Points:
    x = blank(x, key_padding_mask, 2).to(compute_dtype(x))
    padding = effective_padding(key_padding_mask)
    if padding is None:
        n, device = x.shape[2], x.device
        nothing = torch.zeros(1, n, dtype=torch.bool, device=device)
        in_order = torch.arange(n, device=device)[None, None]
        return Points(x, nothing, in_order, torch.full((1, 1, 1), n, device=device))
    order = padding.to(torch.uint8).argsort(dim=-1, stable=True)[:, None]
    return Points(x, padding, order, (~padding).sum(dim=-1)[:, None, None])


def everything(points: Points, count: int) -> Picked:
    """Take the first valid tokens: all of them where there are no more than `count`."""
    tokens = points.order[..., :count]
    return Picked(tokens, torch.arange(tokens.shape[-1], device=tokens.device) < points.num_valid)


def by_rank(points: Points, ranks: Tensor) -> Picked:
    """Take valid tokens by their numbers among the valid ones, `[B or 1, 1, C]`."""
    order = points.order.expand(*ranks.shape[:-1], -1)
    return Picked(order.gather(-1, ranks), torch.ones_like(ranks, dtype=torch.bool))


def along_the_sequence(points: Points, count: int, seed: int, grid_width: int) -> Picked:
    c = torch.arange(count, device=points.x.device)
    return by_rank(points, (2 * c + 1) * points.num_valid // (2 * count))


def root(n: int) -> int:
    """Return the whole part of the square root; torch.compile cannot trace math.isqrt."""
    side = 0
    while (side + 1) ** 2 <= n:
        side += 1
    return side


def check_grid_width(choice: str, grid_width: int, names: tuple[str, str]) -> None:
    """Raise ValueError for a width of rows that the choice does not read.

    `names` are those that a caller gave to choice and width.
    """
    if grid_width and choice not in GRIDS:
        of, width = names
        raise ValueError(
            f"{width}={grid_width} is read with {of}='grid' or 'staggered' alone, got "
            f"{of}={choice!r}; take one of these, or leave {width} out"
        )


def check_grid(
    choice: str,
    n: int,
    grid_width: int,
    key_padding_mask: Tensor | None,
    names: tuple[str, str],
) -> None:
    """Raise ValueError unless `n` tokens without a mask fill the grid that a choice takes.

    `names` are those that a caller gave to choice and width.
    """
    of, name = names
    if key_padding_mask is not None:
        raise ValueError(
            f"{of}={choice!r} takes no key_padding_mask, since an image has no padded tokens; "
            "take 'sequence'"
        )
    width = grid_width or root(n)
    if n % width or (not grid_width and width * width != n):
        shape = f"rows of {name}={grid_width}" if grid_width else f"a square ({name}=0)"
        another = f", or give another {name}" if has_divisor(n) else ""  # else a row or a column
        raise ValueError(
            f"{of}={choice!r} cannot lay out {n} tokens in {shape}; take 'sequence'{another}"
        )


def has_divisor(n: int) -> bool:
    """Return True if another number than 1 and `n` divides it."""
    return any(n % width == 0 for width in range(2, root(n) + 1))


def on_a_grid(points: Points, count: int, seed: int, grid_width: int) -> Picked:
    n = points.x.shape[2]
    width = grid_width or root(n)
    height = n // width
    rows = min(max(root(count * height // width), 1), height, count)
    columns = min(count // rows, width)
    rows = min(count // columns, height)
    y, x = (
        (2 * torch.arange(some, device=points.x.device) + 1) * side // (2 * some)
        for some, side in ((rows, height), (columns, width))
    )
    return by_rank(points, (y[:, None] * width + x).flatten()[None, None])


GOLDEN = 40503
"""The golden ratio's part of `TURN`: multiples of it fall far apart."""

TURN = 2**16


def in_staggered_rows(points: Points, count: int, seed: int, grid_width: int) -> Picked:
    """Spread `count` tokens evenly over rows, those of a row at equal steps.

    A row is shifted, by the golden ratio of its step, against the one before it with as many: so
    the tokens of rows are spread over the columns.
    """
    n, device = points.x.shape[2], points.x.device
    width = grid_width or root(n)
    height = n // width
    edges = (2 * count * torch.arange(height + 1, device=device) + height - 1) // (2 * height)
    number = edges.diff()
    alike = (number[:, None] == number).tril(diagonal=-1).sum(dim=1)
    c = torch.arange(count, device=device)
    y = (2 * c + 1) * height // (2 * count)
    shift = alike[y] * GOLDEN % TURN
    x = ((c - edges[y]) * TURN + shift) * width // (number[y] * TURN)
    return by_rank(points, (y * width + x)[None, None])


def at_random(points: Points, count: int, seed: int, grid_width: int) -> Picked:
    n = points.x.shape[2]
    scores = mixed(torch.arange(n, device=points.x.device), seed)
    beyond = torch.arange(n, device=points.x.device) >= points.num_valid
    scores = scores.expand(beyond.shape).masked_fill(beyond, 2**32)
    return by_rank(points, scores.argsort(dim=-1)[..., :count])


def mixed(numbers: Tensor, seed: int) -> Tensor:
    """Return 32-bit hashes of whole numbers: a permutation, equal on every device.

    A random generator would give other numbers on a GPU, and to sequences of another length.
    """
    x = (numbers + ((seed + 1) * 0x9E3779B9 & 0xFFFFFFFF)) & 0xFFFFFFFF
    for factor in (0x7FEB352D, 0x21F0AAAD, 0x31848BAB):  # below 2^31, so that products fit 63 bits
        x = ((x ^ (x >> 16)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)


def farthest(points: Points, count: int, seed: int, grid_width: int) -> Picked:
    x = points.x
    absent = points.padding[:, None]
    index = x.square().sum(dim=-1).masked_fill(absent, -1.0).argmax(dim=-1, keepdim=True)
    distance = torch.full_like(x[..., 0], torch.inf).masked_fill(absent, -torch.inf)
    taken = []
    for _ in range(count):
        taken.append(index)
        distance = torch.minimum(distance, (x - at(x, index)).square().sum(dim=-1))
        distance = distance.scatter(-1, index, -torch.inf)
        index = distance.argmax(dim=-1, keepdim=True)
    tokens = torch.cat(taken, dim=-1)
    return Picked(tokens, torch.ones_like(tokens, dtype=torch.bool))


def near_centres(points: Points, count: int, seed: int, grid_width: int) -> Picked:
    x, valid = points.x, ~points.padding[:, None, :, None]
    centres = at(x, along_the_sequence(points, count, seed, grid_width).tokens)
    for _ in range(ROUNDS):
        cells = one_hot(distances(x, centres).argmin(dim=-1), count) & valid
        number = cells.sum(dim=-2)[..., None]
        mean = cells.to(x.dtype).transpose(-1, -2) @ x / number.clamp(min=1)
        centres = torch.where(number > 0, mean, centres)
    tokens = distances(x, centres).masked_fill(~valid, torch.inf).argmin(dim=-2)
    again = (tokens[..., :, None] == tokens[..., None, :]).tril(diagonal=-1).any(dim=-1)
    return Picked(tokens, ~again)


Choice = Callable[[Points, int, int, int], Picked]
CHOICES: dict[str, Choice] = {
    "sequence": along_the_sequence,
    "grid": on_a_grid,
    "random": at_random,
    "farthest": farthest,
    "kmeans": near_centres,
    "staggered": in_staggered_rows,
}
"""Choices of `count` among more tokens, from points, `count`, `seed` and `grid_width`.

New ones come last: the state_dict of a compiled model holds a choice by its place.
"""

GRIDS = ("grid", "staggered")
"""Choices of an image's tokens by rows and columns."""

BY_PLACE = ("sequence", *GRIDS, "random")
"""Choices that read no vectors: without padding they are the same for all samples and heads."""


def cell_sizes(points: Points, picked: Picked) -> Tensor:
    """Count the valid tokens nearest to each that was taken, `[B, H, C]`; the first wins a tie."""
    apart = distances(points.x, at(points.x, picked.tokens))
    apart = apart.masked_fill(~picked.present[..., None, :], torch.inf)
    nearest = one_hot(apart.argmin(dim=-1), apart.shape[-1])
    return (nearest & ~points.padding[:, None, :, None]).sum(dim=-2).to(points.x.dtype)


def at(x: Tensor, tokens: Tensor) -> Tensor:
    """Return the vectors `[B, H, C, D]` of `x` `[B, H, N, D]` at `tokens` `[B or 1, H or 1, C]`."""
    tokens = tokens.expand(*x.shape[:2], -1)
    return x.gather(2, tokens[..., None].expand(-1, -1, -1, x.shape[3]))


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Return Euclidean distances `[B, H, N, C]`, exactly 0 between equal vectors."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def one_hot(index: Tensor, count: int) -> Tensor:
    return index[..., None] == torch.arange(count, device=index.device)
