"""Rows held out of a split, stratified by class."""

import math

import numpy as np
from sklearn.model_selection import train_test_split

from asap_exp.core.errors import UserError


def carved(
    labels: np.ndarray,
    fraction: float,
    *,
    seed: int,
    sample_name: str,
    key: str = "data.val_fraction",
    part: str = "validation",
    limit: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return training rows and those held out, stratified; the only row of a class is trained on.

    Raises UserError if a class with several rows would be missing from one of the parts. `key` is
    that of the fraction, `part` the name of the rows held out, and `limit` what `data.limit` has
    left of more rows.
    """
    _, class_of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    shared = np.flatnonzero(sizes[class_of] > 1)
    classes = int((sizes > 1).sum())
    of_rows = (
        f"{len(labels)} rows" if limit is None else f"{len(labels)} rows of data.limit={limit}"
    )
    if not classes:
        more = "Add rows" if limit is None else "Raise data.limit, or leave it out"
        raise UserError(
            f"{key}={fraction} holds back no {sample_name}: none of the {len(sizes)} "
            f"classes has more than one of the {of_rows}. {more}, so that a class has "
            "two or more; no other fraction helps"
        )
    more = " of more than one row" if classes < len(sizes) else ""
    counted = f"{classes} classes{more}"
    for short, rows, change in (
        (part, int(fraction * len(shared)), "larger"),
        ("training", len(shared) - math.ceil(fraction * len(shared)), "smaller"),
    ):
        if rows < classes:
            raise UserError(
                f"{key}={fraction} of {of_rows} leaves fewer {short} {sample_name} than the "
                f"{counted}; choose a {change} fraction{'' if limit is None else ' or limit'}"
            )
    parts = train_test_split(shared, test_size=fraction, stratify=labels[shared], random_state=seed)
    train_rows, held_out = (np.sort(rows) for rows in parts)
    return np.union1d(train_rows, np.flatnonzero(sizes[class_of] == 1)), held_out
