"""The table of routes in README.md: `python -m asap_exp.ops.readme --write` updates it."""

import sys
from pathlib import Path
from typing import Any

import torch

from asap_exp.ops.explanation import Choice, Explanation, explain
from asap_exp.ops.routing import ROUTES

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- routes -->\n", "<!-- end of routes -->\n"
CAPABILITY, MULTIPROCESSORS = (9, 0), 132

EXAMPLES: dict[str, dict[str, tuple[str, dict]]] = {
    "sinkhorn": {
        "n = 64, T = 20": ("sinkhorn_attention", {"n": 64}),
        "n = 128, T = 20": ("sinkhorn_attention", {"n": 128}),
        "n = 200, T = 20": ("sinkhorn_attention", {"n": 200}),
        "n = 200, T = 1": ("closure_attention", {"n": 200}),
        "n = 300, T = 20": ("sinkhorn_attention", {"n": 300}),
        "n = 1024, T = 20": ("sinkhorn_attention", {"n": 1024}),
        "n = 1024, float32": ("sinkhorn_attention", {"n": 1024, "dtype": torch.float32}),
    },
    "sinkhorn_backward": {
        "n = 128": ("sinkhorn_attention", {"n": 128, "gradient": True}),
        "n = 200": ("sinkhorn_attention", {"n": 200, "gradient": True}),
    },
    "implicit_backward": {
        "any n": ("sinkhorn_attention", {"n": 200, "gradient": True, "implicit_steps": 3}),
    },
    "relaxed_sinkhorn": {
        "n = 128": ("relaxed_sinkhorn_attention", {"n": 128}),
        "n = 200": ("relaxed_sinkhorn_attention", {"n": 200}),
    },
    "relaxed_updates": {
        "no gradient": ("relaxed_sinkhorn_attention", {"n": 200}),
        "gradient": ("relaxed_sinkhorn_attention", {"n": 200, "gradient": True}),
    },
    "softmax": {
        "no mask": ("softmax_attention", {"n": 200}),
        "mask": ("softmax_attention", {"n": 200, "padded": True}),
    },
    "attention_pass": {
        "n = 128": ("softmax_attention", {"n": 128, "padded": True}),
        "n = 200": ("softmax_attention", {"n": 200, "padded": True}),
    },
    "espformer": {
        "n = m": ("espformer_attention", {"n": 200}),
        "n = 200, m = 100": ("espformer_attention", {"n": 200, "m": 100}),
    },
    "espformer_plan": {
        "n = 64": ("espformer_attention", {"n": 64}),
        "n = 200": ("espformer_attention", {"n": 200}),
    },
    "coarse_attention": {
        "no gradient": ("coarse_attention", {"n": 300}),
        "gradient": ("coarse_attention", {"n": 300, "gradient": True}),
        "subset of 200": ("coarse_attention", {"n": 300, "subset": 200}),
    },
    "coarse_dual": {
        "subset of 64": ("coarse_duals", {"n": 300}),
        "subset of 200": ("coarse_duals", {"n": 300, "subset": 200}),
    },
    "biased_pass": {
        "n = 128": ("coarse_attention", {"n": 128, "one_pass": True}),
        "n = 200": ("coarse_attention", {"n": 200, "one_pass": True}),
    },
    "predicted_closure": {
        "n = 128": ("coarse_attention", {"n": 128}),
        "n = 200": ("coarse_attention", {"n": 200}),
        "n = 300": ("coarse_attention", {"n": 300}),
    },
    "asap": {
        "n = 64": ("asap_attention", {"n": 64}),
        "n = 64, 17 slices": ("asap_attention", {"n": 64, "slices": 17}),
        "n = 64, one pass": ("asap_attention", {"n": 64, "one_pass": True}),
        "n = 200": ("asap_attention", {"n": 200}),
    },
    "short_asap": {
        "1 refining update, 100 heads": ("asap_attention", {"n": 64, "refine": 1, "heads": 100}),
        "1,000 heads": ("asap_attention", {"n": 64, "heads": 1000}),
        "1 refining update, 1,000 heads": ("asap_attention", {"n": 64, "refine": 1, "heads": 1000}),
    },
    "sliced_dual": {
        "no gradient": ("asap_attention", {"n": 200}),
        "gradient": ("asap_attention", {"n": 200, "gradient": True}),
    },
    "dual_sort": {
        "n = 200, 8 slices": ("asap_attention", {"n": 200}),
        "n = 200, 16 slices": ("asap_attention", {"n": 200, "slices": 16}),
        "n = 5000": ("asap_attention", {"n": 5000}),
    },
    "sliced_potentials": {
        "n = m": ("sliced_potentials", {"n": 200}),
        "n = 200, m = 100": ("sliced_potentials", {"n": 200, "m": 100}),
    },
    "potential_sort": {
        "n = 200": ("sliced_potentials", {"n": 200}),
        "n = 5000": ("sliced_potentials", {"n": 5000}),
    },
}
"""Example calls of public operators for each operator of `ROUTES`, by column title.

Unless stated otherwise, calls are in bfloat16 with 64 channels and T = 20. `column_pass` is left
out: it has the routes of `attention_pass`.
"""


def answered(operator: str, found: Explanation) -> Choice:
    """Return the last choice of this operator; for relaxed updates, this is the closure's."""
    return next(choice for choice in reversed(found.choices) if choice.operator == operator)


def table(operator: str) -> str:
    """Return a table with a row per route and a column per example."""
    device: dict[str, Any] = {"capability": CAPABILITY, "multiprocessors": MULTIPROCESSORS}
    choices = [
        answered(operator, explain(name, **options, **device))
        for name, options in EXAMPLES[operator].values()
    ]
    rows = [[f"`{operator}`", *EXAMPLES[operator]], ["---"] * (len(choices) + 1)]
    for number, route in enumerate(ROUTES[operator]):
        answers = [choice.answers[number] for choice in choices]
        rows.append([route.name, *(words(x.verdict, x.reason) for x in answers)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def words(verdict: str, reason: str | None) -> str:
    """Return the text of a cell of the table."""
    if verdict == "taken":
        return "**taken**"
    return "" if verdict == "later" or reason is None else reason


def with_tables(text: str) -> str:
    """Return the README with up-to-date tables."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    tables = "\n\n".join(table(operator) for operator in EXAMPLES)
    return f"{before}{BEGIN}\n{tables}\n\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Write the README with `--write`; without it, return 1 if the README is out of date."""
    current = README.read_text(encoding="utf-8")
    made = with_tables(current)
    if arguments == ["--write"]:
        README.write_text(made, encoding="utf-8")
        return 0
    if made != current:
        print(f"{README} is out of date; run: python -m asap_exp.ops.readme --write")
    return int(made != current)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
