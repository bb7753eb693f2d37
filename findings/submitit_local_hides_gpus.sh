#!/bin/sh
# A sweep that is tried out with submitit_local sees no GPU, or always the first.
#
# The launcher's local executor sets CUDA_VISIBLE_DEVICES for every job by itself: to nothing where
# hydra.launcher.gpus_per_node is not given, so that a training with accelerator=auto goes on slowly
# on the CPU, and to 0 where it is 1. All jobs of the sweep start at once and share that GPU, and
# what the caller had set, his own share of a machine, is replaced without a word.
#
# Seen with hydra-core 1.3.8, hydra-submitit-launcher 1.2.0 and submitit 1.5.4:
#   the caller has CUDA_VISIBLE_DEVICES=3; the jobs have: '' ''
#   with hydra.launcher.gpus_per_node=1: '0' '0'
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet hydra-core==1.3.8 hydra-submitit-launcher==1.2.0 \
    submitit==1.5.4
cat > "$folder/trial.py" <<'PY'
import os

import hydra


@hydra.main(version_base="1.3", config_path=None)
def main(config):
    with open("seen", "w") as file:
        print(repr(os.environ.get("CUDA_VISIBLE_DEVICES")), file=file)


main()
PY
cd "$folder"
seen() {
    rm -rf runs
    CUDA_VISIBLE_DEVICES=3 venv/bin/python trial.py -m +seed=0,1 hydra/launcher=submitit_local \
        hydra.job.chdir=true hydra.sweep.dir="$folder/runs" "$@" >out 2>&1 ||
        { cat out >&2; exit 1; }
    cat runs/0/seen runs/1/seen | paste -s -d ' ' -
}
without=$(seen)
with=$(seen hydra.launcher.gpus_per_node=1)
echo "the caller has CUDA_VISIBLE_DEVICES=3; the jobs have: $without"
echo "with hydra.launcher.gpus_per_node=1: $with"
[ "$without" = "'' ''" ] && [ "$with" = "'0' '0'" ]
