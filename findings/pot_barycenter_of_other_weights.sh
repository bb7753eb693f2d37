#!/bin/sh
# A weighted barycenter is that of other weights.
#
# The mean of a Wasserstein barycenter with weights w is the mean of the measures' means by w. POT
# 0.9.7.post1 takes w in all its solvers. ot.lp.generalized_free_support_barycenter, for measures
# that are seen through projections, does not hand them on to the solver: where the projections
# change nothing, any w gives the same points. ot.bregman.barycenter starts its default method with
# equal weights, of which its steps keep a part (PythonOT/POT#870): it converges to another measure.
# Neither warns. For equal weights, the ones tests are made with, both are right.
#
# Seen with POT 0.9.7.post1, mean of the barycenter (and what it should be) for a second weight of
# 0.5, 0.2 and 0.05:
#   free_support_barycenter: 2.602 (2.602), 1.357 (1.357), 0.734 (0.734)
#   generalized_free_support_barycenter: 2.602 (2.602), 2.602 (1.357), 2.602 (0.734)
#   bregman.barycenter, sinkhorn_log: 0.500 (0.500), 0.350 (0.350), 0.275 (0.275)
#   bregman.barycenter, sinkhorn: 0.500 (0.500), 0.425 (0.350), 0.388 (0.275)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet POT==0.9.7.post1 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys, warnings

import numpy as np
import ot

warnings.simplefilter("error")
rng = np.random.RandomState(0)
points = [rng.randn(20, 2), rng.randn(30, 2) + 5]
masses = [np.full(20, 1 / 20), np.full(30, 1 / 30)]
start, same = rng.randn(10, 2), [np.eye(2), np.eye(2)]
place = np.linspace(0, 1, 41)
bumps = np.exp(-((place[:, None] - [0.25, 0.75]) ** 2) / 2 / 0.05**2)
bumps /= bumps.sum(0)
costs = (place[:, None] - place) ** 2


def means(second):
    """Return the mean of each solver's barycenter and the weighted mean of the measures."""
    w = np.array([1 - second, second])
    goal = w[0] * points[0][:, 0].mean() + w[1] * points[1][:, 0].mean()
    yield "free_support_barycenter", goal, ot.lp.free_support_barycenter(
        points, masses, start, weights=w)[:, 0].mean()
    yield "generalized_free_support_barycenter", goal, ot.lp.generalized_free_support_barycenter(
        points, masses, same, 10, Y_init=start, weights=w)[:, 0].mean()
    for method in ("sinkhorn_log", "sinkhorn"):
        found = ot.bregman.barycenter(bumps, costs, 5e-3, w, method=method, numItermax=10_000)
        yield f"bregman.barycenter, {method}", w @ (place @ bumps), place @ found


found = {}
for second in (0.5, 0.2, 0.05):
    for name, goal, mean in means(second):
        found.setdefault(name, []).append((mean, goal))
for name, pairs in found.items():
    print(f"{name}:", ", ".join(f"{mean:.3f} ({goal:.3f})" for mean, goal in pairs))
off = {name: [abs(mean - goal) > 0.02 for mean, goal in pairs] for name, pairs in found.items()}
sys.exit(list(off.values()) != [[False] * 3, [False, True, True]] * 2)
PY
"$folder/venv/bin/python" "$folder/trial.py"
