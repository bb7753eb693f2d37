"""The kernel of `ops.kernels.sinkhorn.on_chip` on the CPU, its instructions emulated in C++."""

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from asap_exp.ops.kernels.launch import Duals, Launch, unwritten_output
from asap_exp.ops.kernels.sinkhorn.on_chip import adjoint
from asap_exp.ops.kernels.sinkhorn.on_chip import launch as on_chip

COMPILER = shutil.which("g++") or shutil.which("clang++")


class EmulationError(AssertionError):
    """What the kernel did that a GPU would not allow, or would answer at random."""


@dataclass(frozen=True)
class Emulator:
    """Emulation of the kernel, compiled into `folder` for every variant when it is asked for."""

    folder: Path
    program: Path = on_chip.FOLDER

    def run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        num_iters: int,
        scale: float | None = None,
        padding: Tensor | None = None,
        start: Tensor | None = None,
        keep_duals: bool = False,
        clusters: int = 1,
        seed: int = 0,
    ) -> tuple[Tensor, Duals | None]:
        """Return the output, and all duals in units of log 2 if they are kept; NaN where unwritten.

        `clusters` clusters take the heads in turn; `seed` decides in which order threads run.
        Raises `EmulationError`.
        """
        slope = q.shape[3] ** -0.5 if scale is None else scale
        p = on_chip.aligned(Launch.of(q, k, v, padding, num_iters, slope))
        out = unwritten_output(q, v).fill_(torch.nan)
        duals = kept(p) if keep_duals else None
        problem = on_chip.problem(p, start, out, duals)
        self.launch(on_chip.Variant.of(p, duals), problem, clusters, seed)
        return out, duals

    def through_updates(
        self,
        p: Launch,
        rows: Tensor,
        cols: Tensor,
        grad_col: Tensor,
        grad_start: Tensor,
        *,
        clusters: int = 1,
        seed: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Do what `on_chip.adjoint.through_updates` does; NaN where unwritten."""
        p = on_chip.aligned(p)
        grad_start.fill_(torch.nan)
        problem, row_weights, col_weights, _ = adjoint.problem(p, rows, cols, grad_col, grad_start)
        row_weights.fill_(torch.nan)
        self.launch(on_chip.Variant.of(p, None, gradient=True), problem, clusters, seed)
        return row_weights, col_weights

    def launch(
        self, variant: on_chip.Variant, problem: ctypes.Structure, clusters: int, seed: int
    ) -> None:
        error = ctypes.create_string_buffer(1000)
        run = self.library(variant).run
        if run(ctypes.byref(problem), clusters, seed, error, len(error)):
            raise EmulationError(error.value.decode())

    def library(self, variant: on_chip.Variant) -> ctypes.CDLL:
        """Return the emulation of a variant, compiled if it is asked for the first time."""
        name = "_".join(str(value) for value in variant.definitions.values())
        file = self.folder / f"{name}.so"
        with FileLock(file.with_suffix(".lock")):
            if not file.exists():
                self.compile(variant, file)
        return ctypes.CDLL(str(file))

    def compile(self, variant: on_chip.Variant, file: Path) -> None:
        assert COMPILER is not None
        command = [
            COMPILER, "-std=c++17", "-O2", "-shared", "-fPIC", "-Wall", "-Wno-unknown-pragmas",
            "-Wno-unused-function", "-Werror",
            "-U_FORTIFY_SOURCE",  # its longjmp refuses to leave a stack for another
            *(f"-D{macro}={value}" for macro, value in variant.definitions.items()),
            "-I", str(self.program), str(Path(__file__).with_name("run.cpp")), "-o", str(file),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def kept(p: Launch) -> Duals:
    """Return room for the duals of all updates, NaN."""
    batch, heads = p.q.shape[:2]
    rows = torch.full((batch, heads, p.num_iters + 1, p.n), torch.nan)
    return Duals(rows, torch.full((batch, heads, p.num_iters, p.m), torch.nan))
