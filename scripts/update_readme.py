"""Write the tables of README.md and docs/ from results/records; a test compares them.

Usage: python scripts/update_readme.py

`src/asap_exp/report/documents.py` lists the tables; `make publish` does this too.
"""

import argparse
import os
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"  # set before matplotlib is imported

from asap_exp.core.failures import sentences
from asap_exp.report.documents import published, update

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
DOCS = ROOT / "docs"
DOCUMENTS = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))


def update_documents() -> None:
    """Regenerate every table of the documents."""
    found = published(RESULTS / "records")
    for document in DOCUMENTS:
        update(document, found)


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with sentences():
        update_documents()
