#!/bin/sh
# The same range has one more value in a search with optuna than in a sweep.
#
# In Hydra's sweeps range(2, 4) is 2 and 3, as in Python. hydra-optuna-sweeper hands the two numbers
# to optuna as the limits of a distribution, which include the upper one. So a search trains models
# that the range leaves out, say deeper ones than the table compares or the memory holds.
#
# Seen with hydra-core 1.3.8, hydra-optuna-sweeper 1.3.0 and optuna 2.10.1:
#   depth=range(2,4) in a sweep: 2 3
#   depth=range(2,4) in a search: 2 3 4
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet hydra-core==1.3.8 hydra-optuna-sweeper==1.3.0 \
    optuna==2.10.1 'sqlalchemy<2' 'alembic<1.13' numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import hydra


@hydra.main(version_base="1.3", config_path=None)
def main(config):
    with open("../../depths", "a") as file:
        print(config.depth, file=file)
    return float(config.depth)


main()
PY
cd "$folder"
depths() {
    rm -f depths
    venv/bin/python -W ignore trial.py -m "$@" hydra.job.chdir=true \
        hydra.sweep.dir="$folder/runs" >out 2>&1 || { cat out >&2; exit 1; }
    sort -u depths | xargs
}
sweep=$(depths '+depth=range(2,4)')
search=$(depths '+depth=range(2,4)' hydra/sweeper=optuna hydra.sweeper.n_trials=20 \
    hydra.sweeper.sampler.seed=0)
echo "depth=range(2,4) in a sweep: $sweep"
echo "depth=range(2,4) in a search: $search"
[ "$sweep" = "2 3" ] && [ "$search" = "2 3 4" ]
