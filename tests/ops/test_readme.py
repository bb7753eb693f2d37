"""The table of routes in the README of ops is up to date."""

import pytest

from asap_exp.ops import backend

if backend.fused is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from asap_exp.ops import readme
from asap_exp.ops.routing import ROUTES


def test_table_of_routes_is_current(capsys):
    assert readme.main([]) == 0, capsys.readouterr().out


def test_table_has_every_operator_but_one():
    """The table omits column passes, which have the routes of attention passes."""
    assert ROUTES.keys() - readme.EXAMPLES.keys() == {"column_pass"}
    names = [[route.name for route in ROUTES[x]] for x in ("column_pass", "attention_pass")]
    assert names[0] == names[1]


def test_stale_table_is_noticed_and_written_again(tmp_path, monkeypatch, capsys):
    stale = tmp_path / "README.md"
    stale.write_text(readme.README.read_text().replace("**taken**", "taken"))
    monkeypatch.setattr(readme, "README", stale)
    assert readme.main([]) == 1
    assert "python -m asap_exp.ops.readme --write" in capsys.readouterr().out
    assert readme.main(["--write"]) == 0
    assert readme.main([]) == 0
