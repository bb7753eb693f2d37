#!/bin/sh
# A row of small logits becomes a row of zeros in a doubly-stochastic matrix.
#
# sinkhorn_knopps of hyper-connections 0.4.11, its default, subtracts the largest logit of each
# column before exp. A row that lies below the others by more than float32 can hold (105) is then
# zero, and stays so: a row of zeros is divided by an epsilon. The matrix is said to be doubly
# stochastic, but a stream has lost its row. Where the row is still there, 100 below, its gradient
# is not a number. Adding a constant to a row of logits should change nothing, and does not with
# log_domain_sinkhorn=True.
#
# Seen with hyper-connections 0.4.11 and torch 2.15.0, row sums, and the gradient of the second row:
#   second row 50 below: 1.00 and 1.00, gradient 0.20 (log domain: 1.00 and 1.00, 0.20)
#   second row 100 below: 1.00 and 1.00, gradient nan (log domain: 1.00 and 1.00, 0.20)
#   second row 110 below: 1.00 and 0.00, gradient nan (log domain: 1.00 and 1.00, 0.20)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet hyper-connections==0.4.11 torch==2.15.0 \
    numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import math
import sys

import torch
from hyper_connections.mHCv2 import log_domain_sinkhorn_knopps, sinkhorn_knopps

up = torch.tensor([[1.0, 2.0], [4.0, 3.0]])
found = {}
for below in (50, 100, 110):
    x = torch.tensor([[0.0, 1.0], [2.0 - below, 1.0 - below]], requires_grad=True)
    words = []
    for name, make in (("plain", sinkhorn_knopps), ("log", log_domain_sinkhorn_knopps)):
        plan = make(x, 20)
        (grad,) = torch.autograd.grad(plan, x, up)
        sums, largest = plan.sum(-1).tolist(), grad[1].abs().max().item()
        found[below, name] = sums[1], largest
        words.append((f"{sums[0]:.2f} and {sums[1]:.2f}", f"{largest:.2f}"))
    (plain, first), (log, second) = words
    print(f"second row {below} below: {plain}, gradient {first} (log domain: {log}, {second})")
plain, log = ({key[0]: x for key, x in found.items() if key[1] == name}
              for name in ("plain", "log"))
sys.exit(not (plain[110][0] == 0 and plain[100][0] > 0.99 and math.isnan(plain[100][1])
              and plain[50][1] > 0.1 and all(x[0] > 0.99 and x[1] > 0.1 for x in log.values())))
PY
"$folder/venv/bin/python" "$folder/trial.py"
