"""Download data sets from the Hugging Face hub into the local layout that `data.root` reads.

Usage: python scripts/download_data.py FOLDER [NAME ...]        (no NAME: every data set)

Writes FOLDER/NAME/train-00000-of-0000K.parquet and FOLDER/NAME/test.parquet with the columns of
the hub; the folders of text data sets have the hub's names, such as ag_news. Data sets that are
already there are left alone. Afterwards: export ASAP_EXP_DATA=FOLDER
"""

import argparse
import os
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"  # set before matplotlib is imported

from asap_exp.core.errors import UserError
from asap_exp.core.failures import sentences
from asap_exp.core.files import write_atomically
from asap_exp.core.locations import expanded
from asap_exp.data.catalog import DATASETS, Dataset, known
from asap_exp.data.sources import Unavailable, on_hub, parquet_files, require_reachable

ROWS_PER_FILE = 20_000
HUB = "https://huggingface.co"


def main() -> None:
    """Download the data sets named on the command line."""
    available = [dataset.name for dataset in DATASETS.values() if dataset.hub]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="folder for the data sets")
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(available)} (default: all)")
    arguments = parser.parse_args()
    with sentences("splits that are complete are kept"):
        folder = Path(expanded("FOLDER", arguments.folder))
        for name in arguments.names or available:
            download(known(name, DATASETS), folder)


def download(dataset: Dataset, root: Path) -> None:
    """Download the splits of a data set that are not yet below `root`."""
    if dataset.hub is None:
        raise UserError(f"{dataset.name} is embedded and needs no download")
    for split in dict.fromkeys(on_hub(dataset, split) for split in dataset.rows):
        folder = root / dataset.folders[0]
        if parquet_files(folder, split):
            print(f"{dataset.name} {split}: already in {folder}")
            continue
        try:
            require_reachable(HUB)
        except Unavailable as reason:
            raise UserError(f"{dataset.name} could not be fetched: {reason}") from reason
        fetch(dataset.hub, split, folder)


def fetch(hub: tuple[str, ...], split: str, folder: Path) -> None:
    """Write one split as Parquet shards."""
    import datasets

    rows = datasets.load_dataset(*hub, split=split)
    shards = -(-len(rows) // ROWS_PER_FILE)
    for number in range(shards):
        name = f"{split}-{number:05d}-of-{shards:05d}" if shards > 1 else split
        part = rows.shard(shards, number, contiguous=True)
        write_atomically(folder / f"{name}.parquet", part.to_parquet)
    print(f"{hub[0]} {split}: {len(rows)} rows in {folder}")


if __name__ == "__main__":
    main()
