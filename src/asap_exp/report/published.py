"""Folders of published results: read by anybody, written by `scripts/publish.py` alone."""

from pathlib import Path

from asap_exp.core.errors import UserError

MARK = "PUBLISHED.md"
"""File that makes its folder one of published results."""
PUBLISHED = ("records", "figures")
"""Its published subfolders; others, such as runs/ and report/, are one's own."""


def own_folder(out: Path) -> Path:
    """Return `out`; UserError if published results are there, which no stage may change."""
    place = out.absolute()
    for folder in (place, *place.parents):
        below = place.relative_to(folder).parts[:1]
        if (folder / MARK).is_file() and (not below or below[0] in PUBLISHED):
            raise UserError(
                f"{out} holds published results (see {folder / MARK}), which no stage changes; "
                f"write to another folder, such as {folder / 'report'}"
            )
    return out
