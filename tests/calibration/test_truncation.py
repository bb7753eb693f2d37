"""Truncations: those that would change nothing are left out aloud."""

import pytest

from asap_exp.calibration.truncation import Truncation, shorter

CUTS = [Truncation(1), Truncation(20), Truncation(30), Truncation(5, 1.5), Truncation(40, 1.5)]


def test_truncations_that_are_none_are_left_out_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert shorter(CUTS, 20) == [CUTS[0], CUTS[3]]
    assert capsys.readouterr().out == (
        "Left out, since the teacher itself has T = 20: Sinkhorn, T' = 20; Sinkhorn, T' = 30; "
        "Sinkhorn, T' = 40, relaxed by 1.5\n"
    )


def test_nothing_is_said_where_all_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert shorter(CUTS, 41) == CUTS
    assert capsys.readouterr().out == ""
