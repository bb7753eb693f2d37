#!/bin/sh
# One of two solvers of the same one-dimensional problem returns the plan of sorted points.
#
# univariate.quantile_solver and univariate.north_west_solver of ott-jax 0.6.0 give the same costs
# and a transport_matrices each. The one of north_west_solver numbers the points by their order on
# the line instead of the order in which they came (the dual variables beside it are put back). Its
# rows do not sum to the weights and it costs several times as much as the solver says. The same
# plans come out of sliced_wasserstein(return_dual_variables=True).
#
# Seen with ott-jax 0.6.0 and jax 0.10.2:
#   weights: 0.1 0.2 0.3 0.4
#   quantile: cost 0.867, cost of its plan 0.867, row sums 0.1 0.2 0.3 0.4
#   north_west: cost 0.867, cost of its plan 3.511, row sums 0.2 0.3 0.1 0.4
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet ott-jax==0.6.0 jax==0.10.2 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import jax
import jax.numpy as jnp
import numpy as np
from ott.geometry import pointcloud
from ott.problems.linear import linear_problem
from ott.solvers.linear import univariate

jax.config.update("jax_enable_x64", True)
rng = np.random.RandomState(0)
x, y = jnp.array(rng.randn(4, 1)), jnp.array(rng.randn(5, 1))
a, b = jnp.array([0.1, 0.2, 0.3, 0.4]), jnp.array([0.3, 0.1, 0.2, 0.3, 0.1])
problem = linear_problem.LinearProblem(pointcloud.PointCloud(x, y), a=a, b=b)
results = {
    "quantile": univariate.quantile_solver(problem, return_transport=True),
    "north_west": univariate.north_west_solver(problem),
}
found = []
print("weights:", *(f"{each:.1f}" for each in a))
for name, result in results.items():
    plan = np.asarray(result.transport_matrices.todense())[0]
    found.append([float(result.ot_costs[0]), float((plan * (x - y.T) ** 2).sum())])
    print(f"{name}: cost {found[-1][0]:.3f}, cost of its plan {found[-1][1]:.3f}, row sums",
          *(f"{each:.1f}" for each in plan.sum(1)))
same = np.allclose(found[0], found[1][0])
sys.exit(not (same and found[1][1] > 1.5 * found[1][0]))
PY
"$folder/venv/bin/python" "$folder/trial.py"
