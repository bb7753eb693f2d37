"""HTML page with every table and figure embedded; it needs no other file and no network."""

import base64
from collections.abc import Mapping

import jinja2

from asap_exp.report.averages import main_rows
from asap_exp.report.captions import caption, group_title
from asap_exp.report.groups import Group
from asap_exp.report.markdown import EXPLANATION, MEANINGS, columns, method
from asap_exp.report.notes import remarks

CAPTIONS = {
    "accuracy_latency": "Test accuracy (or perplexity) against the latency of the whole model. Of "
    "maps, the curve joins those that no faster one is better than.",
    "training": "Training loss and validation accuracy (or perplexity) by epoch.",
    "plans": "A plan of the teacher, of ASAP and of row softmax, with row and column sums.",
    "fidelity": "Fidelity of the compiled layers on held-out samples.",
}


def html_page(groups: list[Group], figures: Mapping[str, Mapping[str, bytes]]) -> str:
    """Return the page; `figures` holds PNG bytes by group slug and figure name."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("asap_exp.report", "."), autoescape=True
    )
    return environment.get_template("page.html.j2").render(
        explanation=f"{EXPLANATION} {MEANINGS}",
        groups=[
            {
                "slug": group.slug,
                "title": group_title(group),
                "caption": caption(group.first),
                "remarks": " ".join(remarks(group)),
                "titles": ["method", *(c.title for c in columns(group, all_columns=True))],
                "rows": [
                    {
                        "kind": row.group,
                        "cells": [
                            method(row, group),
                            *(c.write(row[c.key]) for c in columns(group, all_columns=True)),
                        ],
                    }
                    for row in main_rows(group)
                ],
                "figures": [
                    {"alt": CAPTIONS[name], "png": base64.b64encode(png).decode()}
                    for name, png in figures[group.slug].items()
                ],
            }
            for group in groups
        ],
    )
