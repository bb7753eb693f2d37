#!/bin/sh
# After a resume every epoch begins in the middle of the data.
#
# load_state_dict of an IterableDataset continues at the example after the saved one. datasets 5.2.0
# keeps that place for good: the epochs after the resumed one begin there, too, so that the part
# before it is never seen again. A DataLoader over it does the same. Only set_epoch with another
# number ends it, and that a run which does not shuffle has no need to call.
#
# Seen with datasets 5.2.0, three epochs of 12 examples, resumed after 5:
#   plain: 5-11, 5-11, 5-11
#   with set_epoch(1) before the second: 5-11, 0-11, 0-11
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet datasets==5.2.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

from datasets import Dataset


def stream():
    """Return a stream of 12 numbers in 3 shards."""
    return Dataset.from_dict({"x": list(range(12))}).to_iterable_dataset(num_shards=3)


first = stream()
examples = iter(first)
for _ in range(5):
    next(examples)
state = first.state_dict()
found = {}
for name in ("plain", "with set_epoch(1) before the second"):
    resumed = stream()
    resumed.load_state_dict(state)
    epochs = []
    for epoch in range(3):
        if name != "plain" and epoch == 1:
            resumed.set_epoch(1)
        epochs.append([example["x"] for example in resumed])
    found[name] = [f"{each[0]}-{each[-1]}" for each in epochs]
    print(f"{name}: {', '.join(found[name])}")
sys.exit(list(found.values()) != [["5-11"] * 3, ["5-11", "0-11", "0-11"]])
PY
"$folder/venv/bin/python" "$folder/trial.py"
