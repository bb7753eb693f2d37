"""Planted faults: each is put into a copy of the code, and some test must fail.

`python -m tests.planted` plants all of them, `python -m tests.planted NAME ...` those named; run
it by hand after a change of the tests. A fault is a text of the code and what replaces it, found
wherever below `src/asap_exp` the text stands, so that a file may be moved.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

OPS = "tests/ops"
FUSED, INFERENCE = f"{OPS}/test_fused.py", f"{OPS}/test_fused_inference.py"
CLOSURE, ONE_LAUNCH = f"{OPS}/test_fused_closure.py", f"{OPS}/test_fused_asap.py"
RELAXED = f"{OPS}/test_relaxed_sinkhorn.py {ONE_LAUNCH}"
COARSE = f"{OPS}/test_fused_coarse.py"
ONE_PASS = f"{OPS}/test_fused_one_pass.py {OPS}/test_one_pass_map.py"
ESPFORMER = f"{OPS}/test_fused_espformer.py"
POTENTIALS, LOGITS = f"{OPS}/test_fused_potentials.py", f"{OPS}/test_fused_logits.py"


@dataclass(frozen=True)
class Fault:
    """`text` of the code, which stands there once, replaced by `fault`; `tests` must notice."""

    text: str
    fault: str
    tests: str


FAULTS = {
    # The teacher and the closure.
    "logits in registers: sign of the row dual": Fault(
        "    E = fma_bias(S, to_log2, f[:, None])\n",
        "    E = fma_bias(S, to_log2, -f[:, None])\n",
        FUSED,
    ),
    "logits in registers: sign of a relaxed update": Fault(
        "f + relaxation * (updated - f), float",
        "f - relaxation * (updated - f), float",
        RELAXED,
    ),
    "logits in registers: swapped marginal": Fault(
        "tl.where(valid_j, log2_ratio - highest - tl.log2(",
        "tl.where(valid_j, -log2_ratio - highest - tl.log2(",
        FUSED,
    ),
    "logits in registers: sign of what is absorbed": Fault(
        "f += log2_scaling(a, valid_i)", "f -= log2_scaling(a, valid_i)", FUSED
    ),
    "logits in registers, gradient: sign of df": Fault(
        "df = -tl.sum(A * w[None, :], axis=1)", "df = tl.sum(A * w[None, :], axis=1)", FUSED
    ),
    "logits in registers, gradient: swapped marginal": Fault(
        "dg * tl.exp2(g_next - g - log2_ratio)", "dg * tl.exp2(g_next - g + log2_ratio)", FUSED
    ),
    "tiled: sign of the log-sum-exp": Fault(
        "dual = tl.where(valid_i, shift - tl.log2(total) + log2_ratio, 0.0)\n"
        "    tl.store(result + head * result_stride + i, dual, mask=i < num_x)\n\n\n# fmt: off\n"
        "@triton.jit\ndef attention_kernel",
        "dual = tl.where(valid_i, shift + tl.log2(total) + log2_ratio, 0.0)\n"
        "    tl.store(result + head * result_stride + i, dual, mask=i < num_x)\n\n\n# fmt: off\n"
        "@triton.jit\ndef attention_kernel",
        FUSED,
    ),
    "tiled: swapped marginal": Fault(
        "_half_step(p, *sides, p.log2_ratio, x_is_query=False)",
        "_half_step(p, *sides, -p.log2_ratio, x_is_query=False)",
        FUSED,
    ),
    "keys in registers: sign of the column sum": Fault(
        "g - tl.log2(column_sum) + log2_ratio", "g + tl.log2(column_sum) + log2_ratio", FUSED
    ),
    "tiled, gradient: sign of an adjoint": Fault(
        "result_stride + i, -total, mask=i < num_x",
        "result_stride + i, total, mask=i < num_x",
        FUSED,
    ),
    "tiled, gradient: sign of delta": Fault("dA -= tl.load(delta", "dA += tl.load(delta", FUSED),
    # ESPFormer's plan.
    "sorts: tokens one rank off": Fault(
        "side = Side(s, ranked, order, ", "side = Side(s, ranked, order.roll(1, -1), ", ESPFORMER
    ),
    "plan in registers: sign of the gradient of a slice's weight": Fault(
        "kappa = -temperature * of_grad * (inner",
        "kappa = temperature * of_grad * (inner",
        ESPFORMER,
    ),
    "plan by tiles: sign of the gradient of a slice's weight": Fault(
        "kappa = -temperature * (grad_weight", "kappa = temperature * (grad_weight", ESPFORMER
    ),
    "plan in registers: a sum over a sort's row left out": Fault(
        "dX = P * (dP - mean_r[:, None])", "dX = P * dP", ESPFORMER
    ),
    "plan by tiles: a sum over a sort's row left out": Fault(
        "R = R * (Q * size - inner[:, None])", "R = R * (Q * size)", ESPFORMER
    ),
    "plan by tiles: gradient of the distances left out": Fault(
        "Gradients(sides[0], sides[1], grad_distances)",
        "Gradients(sides[0], sides[1], 0 * grad_distances)",
        ESPFORMER,
    ),
    "plan by tiles: costs of hard sorts in float16": Fault(
        "costs = tiled.picked_by_rank(left, right, distances)",
        "costs = tiled.picked_by_rank(left, right, distances.half().float())",
        ESPFORMER,
    ),
    "ESPFormer's plan in 16 bits": Fault(
        "blank(plan @ values, key", "blank(plan.to(dtype) @ values.to(dtype), key", ESPFORMER
    ),
    "ESPFormer's coordinates in other units": Fault(
        "sides = (reference.projected(t, theta).contiguous()",
        "sides = (reference.projected(t, theta).div(0.03).mul(0.03).contiguous()",
        ESPFORMER,
    ),
    # bfloat16 without a gradient.
    "tiled, bfloat16: sign of the log-sum-exp": Fault(
        "dual = tl.where(valid_i, shift - tl.log2(total) + log2_ratio, 0.0)\n"
        "    tl.store(result + head * result_stride + i, dual, mask=i < num_x)\n    store_parts",
        "dual = tl.where(valid_i, shift + tl.log2(total) + log2_ratio, 0.0)\n"
        "    tl.store(result + head * result_stride + i, dual, mask=i < num_x)\n    store_parts",
        INFERENCE,
    ),
    "plan in shared memory: sign of the scalings": Fault(
        "\n        g += log2_scaling(b, valid_j)",
        "\n        g -= log2_scaling(b, valid_j)",
        INFERENCE,
    ),
    "plan in shared memory: updates that are forgotten": Fault(
        "            t += steps\n", "            t += steps + 1\n", INFERENCE
    ),
    "keys and values in registers: sign of the log of the sums": Fault(
        "g = log2_ratio - maxima[t] - tl.log2(sums[t])",
        "g = log2_ratio - maxima[t] + tl.log2(sums[t])",
        CLOSURE,
    ),
    "keys and values in registers: last block of queries left out": Fault(
        "for first in range(begin, n, BLOCK_N):",
        "for first in range(begin, n - 1, BLOCK_N):",
        CLOSURE,
    ),
    "keys and values in registers: sums that were lost are not made again": Fault(
        "worst |= lost(sums[t], valid)", "worst |= 0 * lost(sums[t], valid)", CLOSURE
    ),
    # The sliced map.
    "potentials: sign of a step": Fault(
        "(y_before + y) * (x_before - x) * 0.5", "(y_before + y) * (x - x_before) * 0.5", POTENTIALS
    ),
    "potentials: a step too few": Fault(
        "(place > 0) & (place < count)", "(place > 1) & (place < count)", POTENTIALS
    ),
    "sort: a step too few": Fault(
        "if stage > outer - 1 - step:", "if stage > outer - step:", POTENTIALS
    ),
    "sort: a stage too few": Fault(
        "for stage in tl.static_range(1, inner):",
        "for stage in tl.static_range(2, inner):",
        POTENTIALS,
    ),
    "sort: the last stage left out": Fault(
        "for stage in tl.range(0, outer + 1):", "for stage in tl.range(0, outer):", POTENTIALS
    ),
    "sums before: one bit off": Fault(
        "tl.where((run >> bit) & 1 == 1, other, 0.0)",
        "tl.where((run >> bit) & 1 == 0, other, 0.0)",
        POTENTIALS,
    ),
    "one launch: sign of the query features": Fault(
        "SLICES, BLOCK_N, SORT_64, WARPS) + linear",
        "SLICES, BLOCK_N, SORT_64, WARPS) - linear",
        ONE_LAUNCH,
    ),
    "one launch: potentials left at the sorted places": Fault(
        "bits = sort_again(words, ROWS, SIZE, WARPS) << TAKEN",
        "bits = words << TAKEN",
        ONE_LAUNCH,
    ),
    "one launch: sign of the adaptive weights": Fault(
        "w += more * UNIT", "w -= more * UNIT", ONE_LAUNCH
    ),
    "logit features in tiles: sign of a mean": Fault(
        "average += apart * (more / both)", "average -= apart * (more / both)", LOGITS
    ),
    "logit features on chip: sign of a mean": Fault(
        "    Z -= mean[:, None]\n", "    Z += mean[:, None]\n", ONE_LAUNCH
    ),
    # Maps of one pass.
    "one pass: features of the queries in the kernels": Fault(
        "side, other = (k, q) if of_keys else (q, k)",
        "side, other = (q, k)",
        ONE_PASS,
    ),
    "one pass: the coarse dual of the queries in the kernels": Fault(
        "of_queries=not of_keys",
        "of_queries=True",
        ONE_PASS,
    ),
    "one pass: regression on the dual of the queries": Fault(
        "_, _, dual = plan_of(",
        "_, dual, _ = plan_of(",
        "tests/calibration/test_one_pass.py",
    ),
    "one pass: divergence from the closure": Fault(
        "column = dual if one_pass else column_step(S, dual, padding)",
        "column = column_step(S, dual, padding)",
        "tests/calibration/test_one_pass.py",
    ),
    # Coarse attention.
    "coarse: a weight left out of an update": Fault(
        "a_i = tl.where(valid_i, w / tl.sum(E * b_j[None, :], axis=1), 0.0)\n        for t in",
        "a_i = tl.where(valid_i, 1 / tl.sum(E * b_j[None, :], axis=1), 0.0)\n        for t in",
        COARSE,
    ),
    "coarse: a padded token has mass": Fault(
        "w = tl.where(tl.load(padding + index, mask=inside, other=1) == 0, w, 0.0)",
        "w = tl.where(tl.load(padding + index, mask=inside, other=1) == 2, 0.0, w)",
        COARSE,
    ),
    "coarse, gradient: sign of a column step": Fault(
        "        dS -= C\n", "        dS += C\n", COARSE
    ),
    "coarse, gradient: swapped marginal of the extension": Fault(
        "P = plan_tile(S, to_log2, fx - log2_ratio, fy, X_IS_QUERY)",
        "P = plan_tile(S, to_log2, fx + log2_ratio, fy, X_IS_QUERY)",
        COARSE,
    ),
    "coarse: a scaling left out of the transposed plan": Fault(
        "return tl.sum(E_t * a[None, :], axis=1)", "return tl.sum(E_t, axis=1)", COARSE
    ),
    "one pass, gradient: sign of the keys' part": Fault(
        "dk += product(dS, q_tile, OPERAND, PRECISION)",
        "dk -= product(dS, q_tile, OPERAND, PRECISION)",
        COARSE,
    ),
    "gradient of one update: sign of a part": Fault(
        "wy[None, :] + wx[:, None] * py[None, :]",
        "wy[None, :] - wx[:, None] * py[None, :]",
        f"{COARSE} {CLOSURE}",
    ),
    "farthest points: cells of the next token": Fault(
        "cell = tl.where(nearer, c, cell)",
        "cell = tl.where(nearer, c + 1, cell)",
        f"{OPS}/test_fused_choice.py",
    ),
    # The reference.
    "reference: swapped marginal": Fault(
        "g + math.log(n / m) if n != m", "g + math.log(m / n) if n != m", f"{OPS}/test_sinkhorn.py"
    ),
    "reference: sign of the potentials": Fault(
        "pad(-steps.cumsum(dim=-1), (1, 0))",
        "pad(steps.cumsum(dim=-1), (1, 0))",
        f"{OPS}/test_potentials.py",
    ),
    "reference: quantiles one place off": Fault(
        "left = (i * m + n - 1) // n - 1",
        "left = (i * m + n - 1) // n - 2",
        f"{OPS}/test_potentials.py",
    ),
    "reference: padded tokens have mass": Fault(
        'vector.masked_fill(padding[:, None, :], float("-inf"))',
        "vector.masked_fill(padding[:, None, :], 0.0)",
        f"{OPS}/test_padding.py",
    ),
    "implicit gradient: sign of the rows' part": Fault(
        "over_keys(A, b)[..., :, None])\n",
        "-over_keys(A, b)[..., :, None])\n",
        f"{OPS}/test_implicit.py",
    ),
    "implicit gradient: no direction is kept": Fault(
        "p = z + size * inverse(before.where(goes_on, 0.0)) * p",
        "p = z",
        f"{OPS}/test_implicit.py",
    ),
    "implicit gradient: rounding along constants stays": Fault(
        "return r - share * total(r)", "return r", f"{OPS}/test_implicit.py"
    ),
    "implicit gradient: padded queries have mass": Fault(
        "implicit_gradient(blank(A, ctx.padding, 2), gradient",
        "implicit_gradient(A, gradient",
        f"{OPS}/test_implicit.py",
    ),
    "implicit gradient, tiled: no rows' part": Fault(
        "twice(f), minus_over_keys(b)[:, :, None])",
        "twice(f), torch.zeros_like(f)[:, :, None])",
        f"{OPS}/test_fused_implicit.py",
    ),
    "coarse: one update fewer after the prediction": Fault(
        "plan_from(S, ready, refine + 1, padding",
        "plan_from(S, ready, refine, padding",
        f"{OPS}/test_coarse.py",
    ),
    # Other packages.
    "calibration: sign of the moment": Fault(
        '_sum("moment", torch.einsum',
        '_sum("moment", -torch.einsum',
        "tests/calibration/test_ridge.py",
    ),
    "calibration: samples fitted twice": Fault(
        "inputs.of_samples(slice(first, first + samples))",
        "inputs.of_samples(slice(first, first + samples + 1))",
        "tests/calibration/test_ridge.py",
    ),
    "calibration: sign of the divergence of the rows": Fault(
        "rows = blank(row - row_hat, mask, 2)",
        "rows = blank(row_hat - row, mask, 2)",
        "tests/calibration/test_plan_fit.py",
    ),
    "budget: a plan over the budget": Fault(
        "number == 0 or level.ms <= ms)",
        "number <= 1 or level.ms <= ms)",
        "tests/distill/test_search.py",
    ),
    "budget: the first cut that holds is not the cheapest": Fault(
        "return min(found, key=lambda plan: total_ms(ladders, plan))",
        "return max(found, key=lambda plan: total_ms(ladders, plan))",
        "tests/distill/test_search.py",
    ),
    "diagnostics: swapped marginal of the columns": Fault(
        "(plan.sum(dim=-2) * (m / n) - 1).abs()",
        "(plan.sum(dim=-2) * (n / m) - 1).abs()",
        "tests/attention/test_diagnostics.py",
    ),
    "evaluation: divergence the wrong way round": Fault(
        "divergence(log_q, log_p)",
        "divergence(log_p, log_q)",
        "tests/timing/test_measures.py",
    ),
    "report: a deviation of one value": Fault(
        "Average(mean, std if count > 1 else None)",
        "Average(mean, std if count > 0 else None)",
        "tests/report",
    ),
    "data: a crop one pixel short": Fault(
        "torch.randint(0, 2 * self.padding + 1, (2, batch)",
        "torch.randint(0, 2 * self.padding, (2, batch)",
        "tests/data/test_augment.py",
    ),
}


@contextmanager
def copy_of_the_tree() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        unread = shutil.ignore_patterns("__pycache__", ".*", "results", "wandb", "outputs")
        shutil.copytree(ROOT, copy, ignore=unread)
        yield copy


def plant(copy: Path, fault: Fault) -> Path:
    """Returns the file that was changed."""
    holders = [
        path
        for path in sorted((copy / "src" / "asap_exp").rglob("*.py"))
        if fault.text in path.read_text()
    ]
    if len(holders) != 1 or holders[0].read_text().count(fault.text) != 1:
        names = [str(path.relative_to(copy)) for path in holders]
        raise SystemExit(f"error: must stand in one place, and stands in {names}: {fault.text!r}")
    holders[0].write_text(holders[0].read_text().replace(fault.text, fault.fault))
    return holders[0]


def failures(copy: Path, tests: str) -> tuple[int, str]:
    """pytest's exit status and the first test that failed, or its last line."""
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1"}
    command = ["-m", "pytest", *tests.split(), "-n", "0", "-x", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, *command, "--tb=no", "-rf"],
        cwd=copy, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    lines = done.stdout.splitlines() or done.stderr.splitlines()
    failed = [line.split(" - ")[0].split("::")[-1] for line in lines if line.startswith("FAILED")]
    return done.returncode, (failed or lines[-1:] or [""])[0]


def main(names: list[str]) -> int:
    """Return the number of faults that no test noticed."""
    if unknown := [name for name in names if name not in FAULTS]:
        sys.exit(f"no fault is called {', '.join(unknown)}; there are:\n" + "\n".join(FAULTS))
    chosen = {name: FAULTS[name] for name in names} if names else FAULTS
    missed = []
    for name, fault in chosen.items():
        begin = time.monotonic()
        with copy_of_the_tree() as copy:
            file = plant(copy, fault).relative_to(copy / "src" / "asap_exp")
            status, what = failures(copy, fault.tests)
        caught = status == 1
        if not caught:
            missed.append(name)
        seconds = f"{time.monotonic() - begin:.0f} s"
        print(f"{'caught' if caught else 'MISSED'}  {name} ({file}, {seconds}): {what}", flush=True)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} planted faults caught")
    return len(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
