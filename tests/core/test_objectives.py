"""Objectives: what each says of a model, and that every one has targets."""

import math

import pytest

from asap_exp.core.objectives import OBJECTIVES
from asap_exp.core.records.row import COLUMNS
from asap_exp.data.targets import TARGETS


def test_every_objective_has_targets_and_a_column() -> None:
    assert OBJECTIVES.keys() == TARGETS.keys()
    columns = {column.key: column for column in COLUMNS}
    for name, objective in OBJECTIVES.items():
        column = columns[objective.metric]
        assert column.of == name == objective.name
        assert column.lower_is_better == objective.lower_is_better


def test_best_epoch_is_written_in_the_unit_of_the_metric() -> None:
    classes, tokens = OBJECTIVES["classification"], OBJECTIVES["mlm"]
    assert classes.best(0.5) == {"best_val_accuracy": 0.5}
    assert tokens.best(2.0) == {"best_val_perplexity": math.exp(2.0)}
    assert classes.summary(classes.best(0.8125)) == "best validation accuracy 81.25 %"
    assert tokens.summary(tokens.best(2.0)) == "best validation perplexity 7.39"
    assert classes.summary(tokens.best(2.0)) is None


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_perplexity_is_chosen_by_the_loss(objective) -> None:
    assert (objective.validation == "val/loss") is objective.is_perplexity
