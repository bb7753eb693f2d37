"""Bytes of shared memory of the gradient's kernels, compiled for a GPU that need not be there.

Run as a program, apart from the tests' interpreter; prints a line per kernel.
"""

import itertools
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from asap_exp.ops.kernels.launch import Launch
from asap_exp.ops.kernels.sinkhorn import tiled_gradient
from asap_exp.ops.kernels.tiles import EVERY_LAUNCH, block
from asap_exp.ops.products import IEEE, ONE_PASS, THREE_PASSES

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
INPUTS = ("q", "k", "v", "x", "y", "grad_out", "value_x", "value_y", "grad_x", "grad_v", "grad_k")
ABSENT = ("factors_x", "factors_y", "unit")
COUNTS = ("heads", "n", "m", "num_x", "num_y", "num_iters")
NUMBERS = ("to_log2", "slope", "log2_ratio")


class ManyHeads(Launch):
    """A launch of more blocks than the GPU has multiprocessors."""

    few_blocks = False


def shared_bytes(kernel: Any, dtype: torch.dtype, constants: dict[str, Any], warps: int) -> int:
    """Return what a block takes on a GPU of compute capability 9.0."""
    names = kernel.arg_names
    constants = constants | dict.fromkeys(ABSENT)
    constants = {name: value for name, value in constants.items() if name in names}

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in INPUTS:
            return TYPES[dtype]
        if name == "padding":
            return "*u8"
        if name in NUMBERS:
            return "fp32"
        numbers = name.endswith(("_b", "_h", "_n", "_stride")) or name in COUNTS
        return "i32" if numbers else "*fp32"

    signature = {name: kind(name) for name in names}
    aligned = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): aligned for i, name in enumerate(names) if signature[name] != "constexpr"},
    )
    options = EVERY_LAUNCH | {"num_warps": warps}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).metadata.shared


def main() -> None:
    for (dtype, products), width in itertools.product(
        [
            (torch.float32, THREE_PASSES),
            (torch.float32, ONE_PASS),
            (torch.float32, IEEE),
            (torch.float16, IEEE),
            (torch.bfloat16, IEEE),
        ],
        (64, 128),
    ):
        q = torch.empty(1, 1, 16, width, dtype=dtype)
        p = ManyHeads.of(q, q, q, None, 20, 1.0)._replace(products=products)
        x_block, y_block, warps = p.gradient_tile
        rank, more_rank = tiled_gradient.rank_blocks(40)
        constants = {
            **p.values, "HAS_PADDING": True, "X_IS_QUERY": True, "FEW": 2, "OF_KEYS": False,
            "BLOCK_X": x_block, "BLOCK_Y": y_block, "BLOCK_T": block(20),
            "RANK_PRECISION": tiled_gradient.rank_products(p), "HALVES": False,
            "RANK": rank, "MORE_RANK": more_rank,
        }  # fmt: skip
        for kernel in (
            tiled_gradient.logit_kernel,
            tiled_gradient.value_kernel,
            tiled_gradient.delta_kernel,
        ):
            name = kernel.fn.__name__
            blocks = (x_block, y_block) if name == "delta_kernel" else (y_block, x_block)
            constants |= {"BLOCK_N": blocks[0], "BLOCK_M": blocks[1]}
            found = shared_bytes(kernel, dtype, constants, warps)
            print(name, str(dtype).removeprefix("torch."), products, width, found, flush=True)


if __name__ == "__main__":
    main()
