#!/bin/sh
# The envelope gradient of a transport cost by its weights is that of another cost.
#
# ot.solve with its default reg_type="KL" measures the plan against the product of both weights.
# With grad="envelope" POT 0.9.7.post1 gives the weights reg * log u, the gradient of the cost
# without that product; reg * log(weight) is missing in it. The error vanishes for equal weights,
# the ones tests are made with, and grows as they part. The gradient by the costs is right, and so
# is grad="autodiff". ot.solve_sample passes the wrong one on.
#
# Seen with POT 0.9.7.post1 and torch 2.15.0, gradient by weights 0.5, 0.3, 0.2, less its mean:
#   KL, envelope: [0.356, 0.067, -0.423]
#   KL, autodiff: [0.119, 0.084, -0.203]
#   KL, differences: [0.119, 0.084, -0.203]
#   entropy, envelope: [0.356, 0.067, -0.423]
#   entropy, autodiff: [0.356, 0.067, -0.423]
#   entropy, differences: [0.356, 0.067, -0.423]
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet POT==0.9.7.post1 torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import ot
import torch

costs = torch.tensor([[0.0, 1, 2], [1, 0, 3], [2, 2, 1]], dtype=torch.float64)
weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
uniform = torch.full((3,), 1 / 3, dtype=torch.float64)
# Directions that leave the sum of the weights 1: only these are seen of a gradient.
directions = torch.eye(3, dtype=torch.float64) - 1 / 3


def cost(weights, kind, grad="autodiff"):
    return ot.solve(
        costs, weights, uniform, reg=0.5, reg_type=kind, grad=grad, tol=1e-12, max_iter=10000
    ).value


def rounded(gradient):
    return [round(float(each), 3) for each in gradient]


found = {}
for kind in ("KL", "entropy"):
    found[kind] = {}
    for grad in ("envelope", "autodiff"):
        at = weights.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cost(at, kind, grad), at)
        found[kind][grad] = rounded(directions @ gradient)
    step = 1e-5
    found[kind]["differences"] = rounded(
        (cost(weights + step * d, kind) - cost(weights - step * d, kind)) / (2 * step)
        for d in directions
    )
    for name, value in found[kind].items():
        print(f"{kind}, {name}: {value}")
kl, entropy = found["KL"], found["entropy"]
wrong = kl["envelope"] != kl["differences"]
right = kl["autodiff"] == kl["differences"] and entropy["envelope"] == entropy["differences"]
sys.exit(not (wrong and right))
PY
"$folder/venv/bin/python" "$folder/trial.py"
