"""Figures of a group of records, as matplotlib figures; the report saves them as files."""

from matplotlib.figure import Figure

from asap_exp.report.accuracy_figure import accuracy_latency
from asap_exp.report.behaviour import is_measured
from asap_exp.report.behaviour_figure import behaviour
from asap_exp.report.fidelity_figure import fidelity
from asap_exp.report.groups import Group
from asap_exp.report.plan_figure import plans
from asap_exp.report.training_figure import training


def group_figures(group: Group) -> dict[str, Figure]:
    """Return figures by name: quality and latency, training curves, example plans, fidelity,
    and what the plans do.

    There are no training curves if no record has any, no fidelity where nothing was fitted, and no
    behaviour where none was measured.
    """
    curves = any(record.curves for record in group.records)
    return {
        "accuracy_latency": accuracy_latency(group),
        **({"training": training(group)} if curves else {}),
        "plans": plans(group),
        **({"fidelity": fidelity(group)} if group.first.fidelity else {}),
        **({"behaviour": behaviour(group)} if is_measured(group) else {}),
    }
