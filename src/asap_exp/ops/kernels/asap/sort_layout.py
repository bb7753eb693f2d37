"""Layout of the words of a sort: words per thread, slices per program, warps."""

import torch
import triton
from torch import Tensor

from asap_exp.ops.kernels.tiles import block

PROGRAM_BYTES = 4 * 1024
"""Bytes that one program sorts at a time; a single slice may be larger."""

THREAD_BYTES = 64
"""Bytes that one thread sorts; twice as many if a row would not fit in a warp."""


def sort_constants(
    slices_per_program: int, n: int, dtype: torch.dtype, padding: Tensor | None
) -> dict[str, object]:
    """Return the constants of `sort_slices` for this many slices per program, and its warps."""
    size, words_per_thread = block(n), words_in_thread(n, dtype)
    return {
        "PER_PROGRAM": slices_per_program,
        "SIZE": size,
        "PER_THREAD": words_per_thread,
        "NO_TAIL": n == size and padding is None,
        "SORT_64": dtype == torch.float32,
        "num_warps": slices_per_program * size // words_per_thread // 32,
    }


def words_in_thread(n: int, dtype: torch.dtype) -> int:
    """Return the number of words of a row that one thread holds."""
    size, words_per_thread = block(n), THREAD_BYTES // word_bytes(dtype)
    return min(
        words_per_thread if size <= 32 * words_per_thread else 2 * words_per_thread, size // 8
    )


def slices_in_program(slices: int, n: int, dtype: torch.dtype) -> int:
    """Return the number of slices of a head that one program sorts."""
    fit = PROGRAM_BYTES // (word_bytes(dtype) * block(n))
    return slices_that_fill_a_warp(min(slices, max(1, fit)), n, dtype)


def slices_that_fill_a_warp(slices: int, n: int, dtype: torch.dtype) -> int:
    """Return a power of two >= `slices` for which each lane holds the maximum number of words.

    With fewer words per lane, Triton 3.6 sorts some wrongly on a GPU (two rows of 32 words in a
    warp).
    """
    return max(triton.next_power_of_2(slices), 32 * words_in_thread(n, dtype) // block(n))


def word_bytes(dtype: torch.dtype) -> int:
    return 8 if dtype == torch.float32 else 4
