#!/bin/sh
# A stream that nobody shuffled comes in another order in every epoch.
#
# set_epoch of an IterableDataset tells a shuffled stream which epoch's order to take. datasets
# 5.2.0 draws an order of the shards from the number of every epoch but 0, whether or not the stream
# was shuffled. Loops that call set_epoch on any data, as they cannot know, then read a stream out
# of order: predictions written row by row no longer match the file that the rows came from.
#
# Seen with datasets 5.2.0, 12 examples in 3 shards:
#   epoch 0: 0 1 2 3 4 5 6 7 8 9 10 11
#   epoch 1: 0 1 2 3 4 5 6 7 8 9 10 11
#   epoch 2: 8 9 10 11 0 1 2 3 4 5 6 7
#   epoch 3: 8 9 10 11 4 5 6 7 0 1 2 3
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


def order(data, epoch):
    """Return the numbers of a stream in the order of an epoch."""
    data.set_epoch(epoch)
    return [example["x"] for example in data]


plain = stream()
orders = [order(plain, epoch) for epoch in range(4)]
for epoch, each in enumerate(orders):
    print(f"epoch {epoch}:", *each)
sys.exit(not (orders[0] == list(range(12)) and orders[2] != orders[0] != orders[3]))
PY
"$folder/venv/bin/python" "$folder/trial.py"
