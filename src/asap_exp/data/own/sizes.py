"""Choice of image and patch size for images of unknown size."""

from collections import Counter
from collections.abc import Iterable

from asap_exp.core.errors import UserError

FEWEST, MOST = 8, 16
"""Patches per side: 64 to 256 tokens."""
SMALLEST = 2
"""Pixels per side of a patch: one pixel alone says little, and such models learn badly."""
LARGEST = 128
"""Pixels per side to which larger images are resized."""


def usual_side(sizes: Iterable[tuple[int, int]]) -> int:
    """Return the shorter side of the most frequent size; the larger one of equally frequent."""
    counts = Counter(sizes)
    usual = max(counts.items(), key=lambda item: (item[1], item[0]))
    return min(usual[0])


def chosen_sizes(side: int, size: int | None, patch: int | None) -> tuple[int, int]:
    """Return image and patch size for images with that shorter side; either may be given.

    The patch divides the size, which is `side` rounded down, at most `LARGEST`. There are 64 to 256
    patches if the images are large enough: the number that cuts off the fewest pixels, then the
    smallest. Smaller images have patches of `SMALLEST` pixels per side.
    """
    if size is not None:
        return size, patch if patch is not None else patch_of(size)
    side = min(side, LARGEST)
    if patch is not None:
        return max(side // patch, 1) * patch, patch
    if side < FEWEST * SMALLEST:
        patch = min(SMALLEST, side)
        return side // patch * patch, patch
    options = [(side - side // p * p, side // p, p) for p in range(SMALLEST, side // FEWEST + 1)]
    _, grid, best = min(option for option in options if option[1] <= MOST)
    return grid * best, best


def patch_of(size: int) -> int:
    """Return the patch size for images of a given size; raise UserError if none fits."""
    if size < FEWEST * SMALLEST:
        return SMALLEST if size % SMALLEST == 0 else 1
    fitting = [size // grid for grid in range(FEWEST, MOST + 1) if size % grid == 0]
    if not fitting:
        near = [n for n in range(size, 0, -1) if any(n % g == 0 for g in range(FEWEST, MOST + 1))]
        raise UserError(
            f"data.image_size={size} cannot be divided into {FEWEST} to {MOST} patches per side; "
            f"set model.patch_size too, or choose a size such as data.image_size={near[0]}",
            key="data.image_size",
            value=size,
        )
    return fitting[0]
