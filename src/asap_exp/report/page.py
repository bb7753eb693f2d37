"""HTML page with every table and figure embedded; it needs no other file and no network."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jinja2
from PIL import Image

from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.report import behaviour, layer_columns
from asap_exp.report.captions import caption, commits, group_title, origins
from asap_exp.report.drawing import image
from asap_exp.report.groups import Group
from asap_exp.report.markdown import EXPLANATION, MEANINGS
from asap_exp.report.notes import remarks
from asap_exp.report.page_tables import (
    all_columns_table,
    in_words,
    map_note,
    methods_table,
    result_table,
    text_table,
)
from asap_exp.report.summary_figure import summary
from asap_exp.report.trainings import Comparison
from asap_exp.report.trainings_table import NOTE, TITLE, page_table

CAPTIONS = {
    "accuracy_latency": "Quality on the test split against the time of the whole model. A curve of "
    "maps joins those that no faster map is better than.",
    "training": "Training, epoch by epoch.",
    "plans": "One plan of the teacher, of the compiled layer and of row softmax. The column sums "
    "of the first two are near 1, as far as the teacher's updates reach{error}; those of row "
    "softmax need not.",
    "fidelity": "Fidelity of the compiled layers on held-out samples.",
    "behaviour": "What the plans do in each model as it runs: the largest column sum of its plans "
    "and the entropy of their rows by layer, the effective rank of its tokens by depth and, of "
    "images, the accuracy that corruptions cost. Hollow markers are of models "
    "compiled from the teacher, nothing retrained; bars are deviations over seeds.",
}
SUMMARY = (
    "One data set at several lengths: quality on the test split against time relative to the "
    "teacher. Numbers at the squares are T', the updates that are left."
)
CURVES = "Learning curves, epoch by epoch; of several seeds their mean, and each of them thin."
CPU = "CPU"
"""Device of a record whose models ran on the processor."""
COLOURS = 64
"""Colours of embedded figures, which makes them a fifth of a plain PNG."""


@dataclass(frozen=True)
class Picture:
    """Figure as the page embeds it."""

    name: str
    alt: str
    width: int
    height: int
    data: str


def html_page(
    groups: Sequence[Group],
    figures: Mapping[str, Mapping[str, bytes]],
    trainings: Sequence[Comparison] = (),
    curves: Mapping[str, bytes] = MappingProxyType({}),
) -> str:
    """Return the page.

    `figures` holds PNGs of each group by its slug and the figures' names, `curves` those of
    `trainings` by their slugs.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("asap_exp.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    first, titles = summary(groups), [group_title(group) for group in groups]
    return environment.get_template("page.html.j2").render(
        explanation=EXPLANATION,
        meanings=MEANINGS,
        verdict=in_words(groups) if groups else "",
        result=result_table(groups),
        trainings=[training_section(each, curves.get(each.slug)) for each in trainings],
        trainings_note=NOTE,
        summary=None if first is None else picture("summary", SUMMARY, image(first)),
        measured=measured(groups) if groups else {},
        repeated={title for title in titles if titles.count(title) > 1},
        groups=[section(group, figures[group.slug]) for group in groups],
    )


def training_section(found: Comparison, curves: bytes | None) -> dict[str, Any]:
    """Return what the template shows of trainings on one data set."""
    return {
        "slug": found.slug,
        "title": f"{TITLE}: {found.title}",
        "table": page_table(found),
        "picture": None if curves is None else picture("curves", CURVES, curves),
    }


def section(group: Group, figures: Mapping[str, bytes]) -> dict[str, Any]:
    """Return what the template shows of a group."""
    return {
        "slug": group.slug,
        "title": group_title(group),
        "map": map_note(group),
        "published": group.published,
        "caption": caption(group.first),
        "remarks": remarks(group),
        "measured": measured([group]),
        "origins": origins(group),
        "methods": methods_table(group),
        "all_columns": all_columns_table(group),
        "more": more_tables(group),
        "pictures": [
            picture(name, figure_caption(group, name), png) for name, png in figures.items()
        ],
    }


def more_tables(group: Group) -> list[dict[str, Any]]:
    """Return the tables that a group has only if an evaluation measured them."""
    return [
        {"title": of.TITLE, "meaning": of.MEANING, "table": text_table(*of.table(group))}
        for of in (layer_columns, behaviour)
        if of.is_measured(group)
    ]


def figure_caption(group: Group, name: str) -> str:
    """Describe a figure; that of the plans with the teacher's column error, if it was measured."""
    drawn = group.first.plans
    errors = [
        row.teacher_column_error
        for row in group.first.fidelity
        if (row.layer, row.head) == (drawn.layer, drawn.head)
    ]
    known = [f" (column error {error:.2g} in this head)" for error in errors if error is not None]
    return CAPTIONS[name].format(error="".join(known))


def machine(record: EvaluationRecord) -> str:
    """Return the name of the GPU, or that of the processor if the models ran on it."""
    return record.manifests.evaluate.hardware.cpu if record.device == CPU else record.device


def measured(groups: Sequence[Group]) -> dict[str, str]:
    """Return machine, code and time of the measurements, each as words."""
    records = [record for group in groups for record in group.records]
    days = sorted(str(record.manifests.evaluate.ended)[:10] for record in records)
    code = {commit for group in groups for commit in commits(group, "evaluate").split(", ")}
    hours = sum(record.train_seconds for record in records) / 3600
    return {
        "machine": ", ".join(sorted({machine(record) for record in records})),
        "commit": ", ".join(sorted(code)),
        "measured": days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}",
        "training time": f"{hours:.1f} h" if hours >= 0.1 else f"{60 * hours:.1f} min",
    }


def picture(name: str, alt: str, png: bytes) -> Picture:
    """Return a figure as WebP without loss but in few colours."""
    drawn = Image.open(io.BytesIO(png)).convert("RGB")
    buffer = io.BytesIO()
    drawn.quantize(COLOURS).convert("RGB").save(buffer, "webp", lossless=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Picture(name, alt, drawn.width, drawn.height, data)
