"""Bytes of shared memory of passes over tiles, compiled for GPUs that need not be there.

Run as a program, apart from the tests' interpreter; prints a line per kernel.
"""

import itertools
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from asap_exp.ops.call import Device, as_if
from asap_exp.ops.kernels.coarse import query_gradient
from asap_exp.ops.kernels.espformer import plan_in_registers
from asap_exp.ops.kernels.espformer import tiled as espformer_tiled
from asap_exp.ops.kernels.espformer.sorts import Sorts
from asap_exp.ops.kernels.launch import Launch
from asap_exp.ops.kernels.sinkhorn import tiled, tiled_gradient
from asap_exp.ops.kernels.tiles import EVERY_LAUNCH, block
from asap_exp.ops.products import IEEE, THREE_PASSES

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
INPUTS = (
    "q",
    "k",
    "v",
    "x",
    "y",
    "grad_out",
    "value_x",
    "value_y",
    "grad_x",
    "grad_v",
    "grad_k",
    "out",
    "matrix",
    "other",
)
ABSENT = ("factors_x", "factors_y", "unit", "begin", "anchor")
IN_FLOAT32 = ("x", "y", "plan", "grad")
"""Inputs of ESPFormer's kernels in registers, in float32 whatever a call's are."""
COUNTS = ("heads", "n", "m", "num_x", "num_y", "num_iters", "slices", "all_slices")
NUMBERS = ("to_log2", "slope", "log2_ratio", "decay", "temperature", "sharpness")


def shared_bytes(
    kernel: Any, dtype: torch.dtype, constants: dict[str, Any], warps: int, capability: int
) -> int:
    """Return what a block takes on a GPU of compute capability 8.0 (80) or 9.0 (90)."""
    names = kernel.arg_names
    constants = constants | dict.fromkeys(ABSENT)
    constants = {name: value for name, value in constants.items() if name in names}

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in IN_FLOAT32 and "x_order" in names:
            return "*fp32"
        if name in INPUTS:
            return TYPES[dtype]
        if name.endswith("_order"):
            return "*i64"
        if name == "padding":
            return "*u8"
        if name in NUMBERS:
            return "fp32"
        numbers = name.endswith(("_b", "_h", "_n", "_i", "_j", "_stride")) or name in COUNTS
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
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options=options).metadata.shared


PRODUCTS = [(torch.float32, THREE_PASSES), (torch.float16, IEEE)]
"""Those that hold most: two parts of every tile, or of the factors of updates."""

HEADS = (1, 10_000)
"""So few that blocks are made smaller, and more than a GPU has multiprocessors."""


def espformer() -> None:
    """Print what ESPFormer's kernels take: for the longest plan in registers, and for tiles."""
    for capability, dtype, hard in itertools.product(
        (80, 90), (torch.float32, torch.float16), (False, True)
    ):
        operand = tl.float32 if dtype == torch.float32 else tl.float16
        sorts = Sorts(hard, 1e3, None, operand, THREE_PASSES if dtype == torch.float32 else IEEE)
        side, step, warps = espformer_tiled.rank_tile(512, sorts)
        flags = {"HAS_PADDING": True, "HARD": hard, "SKIPS": True, "COMBINES": True}
        flags |= {"GRADIENT": True}
        constants = {**sorts.constants, **flags, "BLOCK_J": side}
        kernels = [
            (espformer_tiled.rank_kernel, {"BLOCK_R": side, "BLOCK_I": step}, warps),
            (espformer_tiled.mixture_kernel, {"BLOCK_R": step, "BLOCK_I": side}, warps),
        ]
        if dtype == torch.float16:
            both = plan_in_registers.plan_kernel, plan_in_registers.plan_gradient_kernel
            constants |= plan_in_registers.constants(plan_in_registers.TOKENS, sorts)
            kernels += [(kernel, {}, plan_in_registers.WARPS) for kernel in both]
        for kernel, blocks, kernel_warps in kernels:
            given = constants | blocks | {"HAS_PADDING": True}
            found = shared_bytes(kernel, dtype, given, kernel_warps, capability)
            name = str(dtype).removeprefix("torch.")
            print(kernel.fn.__name__, name, hard, capability, found, flush=True)


def main() -> None:
    espformer()
    for capability, (dtype, products), width, heads in itertools.product(
        (80, 90), PRODUCTS, (64, 128), HEADS
    ):
        q = torch.empty(1, 1, 16, width, dtype=dtype).expand(1, heads, 16, width)
        p = Launch.of(q, q, q, None, 20, 1.0)._replace(products=products)
        with as_if(Device(divmod(capability, 10), 100)):
            x_block, y_block, warps = p.gradient_tile
            n_block, m_block, attention_warps = p.attention_tile
            adjoint_tile = p.tile
        rank, more_rank = tiled_gradient.rank_blocks(40)
        constants = {
            **p.values, "HAS_PADDING": True, "X_IS_QUERY": True, "FEW": 2, "OF_KEYS": False,
            "BLOCK_X": x_block, "BLOCK_Y": y_block, "BLOCK_T": block(20),
            "RANK_PRECISION": tiled_gradient.rank_products(p), "HALVES": False,
            "RANK": rank, "MORE_RANK": more_rank, "HAS_PREVIOUS": True, "SAVE": True,
        }  # fmt: skip
        for kernel, query_block, key_block, kernel_warps in (
            (tiled_gradient.logit_kernel, x_block, y_block, warps),
            (tiled_gradient.value_kernel, y_block, x_block, warps),
            (tiled_gradient.delta_kernel, x_block, y_block, warps),
            (query_gradient.query_gradient_kernel, x_block, y_block, warps),
            (tiled.attention_kernel, n_block, m_block, attention_warps),
            (tiled_gradient.adjoint_kernel, *adjoint_tile),
        ):
            constants |= {"BLOCK_N": query_block, "BLOCK_M": key_block, "RESCALE": True}
            if kernel is tiled_gradient.adjoint_kernel:
                constants |= {"BLOCK_X": query_block, "BLOCK_Y": key_block}
            found = shared_bytes(kernel, dtype, constants, kernel_warps, capability)
            name = str(dtype).removeprefix("torch.")
            print(kernel.fn.__name__, name, width, heads, capability, found, flush=True)


if __name__ == "__main__":
    main()
