"""Accuracy of Sinkhorn cut to T' over-relaxed updates in a trained model: a baseline not built in.

Usage: python scripts/over_relaxation.py results/runs/cifar/vit-sinkhorn/HASH-s0 \\
           --truncations 3 5 7 --relaxations 1.0 1.6 --rows 1000

An update is f + w (F(f) - f) with F the plain one; w = 1 is plain (Thibault, Chizat, Dossal and
Papadakis, "Overrelaxed Sinkhorn-Knopp algorithm for regularized optimal transport", 2017). By the
reference, so it is slow and not timed: fused, it would take about as long as a plain update.
Prints accuracy, agreement with the teacher and KL of the predictions on the first --rows of the
test split.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import Tensor

from asap_exp.attention import Attention, attention_layers
from asap_exp.devices import choose_device
from asap_exp.distillation.calibrate import sinkhorn
from asap_exp.distillation.compile import run_data
from asap_exp.errors import UserError, check_range
from asap_exp.evaluation.accuracy import compare_predictions
from asap_exp.evaluation.variants import Variant
from asap_exp.models import load_net
from asap_exp.ops import attention_plan, closure_attention
from asap_exp.ops.reference._masking import effective_padding
from asap_exp.ops.reference.sinkhorn import logits, starting_dual, update
from asap_exp.runs import Run, check_teacher


class OverRelaxedSinkhorn(Attention):
    """The closure after `num_iters` - 1 updates from f = 0, each over-relaxed by `relaxation`."""

    def __init__(self, num_iters: int, relaxation: float, eps: float) -> None:
        super().__init__()
        self.num_iters, self.relaxation, self.eps = num_iters, relaxation, eps

    def dual(self, q: Tensor, k: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        padding = effective_padding(key_padding_mask)
        S = logits(q, k, eps=self.eps, scale=q.shape[-1] ** -0.5, mask=key_padding_mask)
        f = starting_dual(S)
        for _ in range(self.num_iters - 1):
            f = f + self.relaxation * (update(S, f, 1, padding) - f)
        return f

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        f = self.dual(q, k, key_padding_mask)
        return closure_attention(q, k, v, f, eps=self.eps, key_padding_mask=key_padding_mask)

    def plan(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        f = self.dual(q, k, key_padding_mask)
        return attention_plan(q, k, f, eps=self.eps, key_padding_mask=key_padding_mask)


def main() -> None:
    arguments = parsed()
    try:
        for num_iters in arguments.truncations:
            check_range("--truncations", num_iters, minimum=1)
        for relaxation in arguments.relaxations:
            check_range("--relaxations", relaxation, above=0, below=2)
        run = Run(arguments.teacher)
        check_teacher(run, None)
        device = choose_device("auto")
        net = load_net(run, device)
        layers = attention_layers(net)
        teacher = sinkhorn(next(iter(layers.values())))
        rows = [Variant("teacher", f"Sinkhorn teacher, {teacher.updates}", "teacher", net, [])]
        for num_iters in arguments.truncations:
            for relaxation in arguments.relaxations:
                attend = OverRelaxedSinkhorn(num_iters, relaxation, teacher.eps)
                label = f"Sinkhorn, T' = {num_iters}, w = {relaxation:g}"
                rows.append(
                    Variant(label, label, "truncated", net, [], dict.fromkeys(layers, attend))
                )
        data = run_data(run, None, None, arguments.batch_size, device)
        test = data.test_dataloader(max_rows=arguments.rows)
        measured = compare_predictions(rows, test, run.config.trainer.precision)
    except UserError as error:
        sys.exit(f"error: {error}")
    tested = f"{data.identity['test_rows']} of {data.identity['test_rows_in_all']}"
    table = Table(title=f"{run.name}, {tested} test {data.noun}")
    for column in ("method", "accuracy %", "agreement %", "KL"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        means = measured[row.key]
        shares = (f"{100 * means[name]:.2f}" for name in ("accuracy", "agreement"))
        table.add_row(row.label, *shares, f"{means['kl']:.4f}")
    Console().print(table)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "teacher", type=Path, help="run directory of a finished Sinkhorn classifier"
    )
    parser.add_argument("--truncations", type=int, nargs="+", default=[3, 5, 7])
    parser.add_argument("--relaxations", type=float, nargs="+", default=[1.0, 1.6])
    parser.add_argument("--rows", type=int, help="test samples; default: all")
    parser.add_argument("--batch-size", type=int, default=256)
    return parser.parse_args()


if __name__ == "__main__":
    main()
