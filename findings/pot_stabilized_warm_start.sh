#!/bin/sh
# A start at the solution of a transport problem ends in an infinite plan.
#
# ot.sinkhorn takes a warm start as "the logarithm of the u, v sinkhorn scaling vectors", whatever
# the method. method="sinkhorn_stabilized" of POT 0.9.7.post1 expects reg times that. Given what is
# documented it starts 1/reg times too far out: for moderate reg it needs more iterations than
# without, for a small one, for which one takes this method, the kernel overflows and it gives up
# at once. The plan it returns is infinite. Its own log["warmstart"] is in the other unit.
#
# Seen with POT 0.9.7.post1, iterations and largest error of the row sums:
#   reg=0.1: sinkhorn_log 20, 0.0; started at its solution 0, 0.0
#   reg=0.1: sinkhorn_stabilized 20, 0.0; started at the same 40, 0.0
#   reg=0.02: sinkhorn_log 120, 0.0; started at its solution 0, 0.0
#   reg=0.02: sinkhorn_stabilized 120, 0.0; started at the same 0, inf
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet POT==0.9.7.post1 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys
import warnings

import numpy as np
import ot

warnings.filterwarnings("ignore")
rng = np.random.RandomState(0)
costs = ot.dist(rng.randn(6, 2), rng.randn(7, 2))
costs /= costs.max()
a, b = np.full(6, 1 / 6), np.full(7, 1 / 7)
found = {}
for reg in (0.1, 0.02):
    log = ot.sinkhorn(a, b, costs, reg, method="sinkhorn_log", log=True)[1]
    for method, words in (("sinkhorn_log", "its solution"), ("sinkhorn_stabilized", "the same")):
        texts = []
        for start in (None, (log["log_u"], log["log_v"])):
            plan, info = ot.sinkhorn(a, b, costs, reg, method=method, warmstart=start, log=True)
            error = round(float(np.abs(plan.sum(1) - a).max()), 9)
            count = info["niter"] if "niter" in info else info["n_iter"]
            found[reg, method, start is not None] = (count, error)
            texts.append(f"{count}, {error}")
        print(f"reg={reg}: {method} {texts[0]}; started at {words} {texts[1]}")
right = all(found[reg, "sinkhorn_log", True][0] == 0 for reg in (0.1, 0.02))
slower = found[0.1, "sinkhorn_stabilized", True][0] > found[0.1, "sinkhorn_stabilized", False][0]
sys.exit(not (right and slower and found[0.02, "sinkhorn_stabilized", True] == (0, np.inf)))
PY
"$folder/venv/bin/python" "$folder/trial.py"
