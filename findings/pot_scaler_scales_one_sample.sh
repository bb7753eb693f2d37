#!/bin/sh
# A scaler given to ot.solve_sample scales one of the two samples.
#
# "scaler: function to scale the input data." POT 0.9.7.post1 stores the scaled second sample in a
# variable that nobody reads, and compares the scaled first sample with the raw second one. The
# distance of a sample to itself is then anything but zero. ot.sliced_wasserstein_distance, which
# has the same argument, scales both.
#
# Seen with POT 0.9.7.post1 and scikit-learn 1.9.1, cost of transport:
#   a sample to itself, scaler given: 21352.2 (scaled beforehand: 0.0)
#   to another sample, scaler given: 19615.5 (both scaled beforehand: 1.2, only the first: 19615.5)
#   sliced, scaler given: 0.7 (both scaled beforehand: 0.7)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet POT==0.9.7.post1 scikit-learn==1.9.1 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import numpy as np
import ot
from sklearn.preprocessing import StandardScaler

rng = np.random.RandomState(0)
x, y = 100 + 10 * rng.randn(20, 2), 100 + 10 * rng.randn(30, 2)
scaler = StandardScaler().fit(np.concatenate([x, y]))
u, v = scaler.transform(x), scaler.transform(y)


def cost(first, second, **settings):
    """Return the cost of the best plan between two samples."""
    return float(ot.solve_sample(first, second, **settings).value)


same, other = cost(x, x, scaler=scaler), cost(x, y, scaler=scaler)
print(f"a sample to itself, scaler given: {same:.1f} (scaled beforehand: {abs(cost(u, u)):.1f})")
print(f"to another sample, scaler given: {other:.1f} (both scaled beforehand: {cost(u, v):.1f}, "
      f"only the first: {cost(u, y):.1f})")
sliced = float(ot.sliced_wasserstein_distance(x, y, scaler=scaler, seed=0))
wanted = float(ot.sliced_wasserstein_distance(u, v, seed=0))
print(f"sliced, scaler given: {sliced:.1f} (both scaled beforehand: {wanted:.1f})")
sys.exit(not (other == cost(u, y) != cost(u, v) and same > 1 and np.isclose(sliced, wanted)))
PY
"$folder/venv/bin/python" "$folder/trial.py"
