"""Typed JSON: refused values and their error messages."""

from pathlib import Path
from typing import Any

import pytest
from pydantic.dataclasses import dataclass

from asap_exp.core.errors import UserError
from asap_exp.core.sealed import sealed
from asap_exp.core.typed import (
    STRICT,
    Count,
    Divergence,
    Measure,
    Name,
    Positive,
    RunName,
    Share,
    from_json,
    to_json,
)


@dataclass(config=STRICT, kw_only=True)
class Thing:
    share: Share = 0.5
    kl: Divergence = 0.0
    distance: Measure = 0.0
    ms: Positive = 1.0
    seed: Count = 0
    name: Name = "digits"
    run: RunName = "digits/vit-sinkhorn/0-s0"
    parts: "list[Thing] | None" = None
    sha256: str | None = None


FILE = Path("folder/thing.json")


@pytest.mark.parametrize("key", ["share", "kl", "distance", "ms"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -5, True, "0.5", [0.5], None, 1e308])
def test_what_is_no_such_number_is_refused(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^folder/thing\.json is damaged.*: {key}: "):
        from_json(Thing, {key: value}, FILE)


@pytest.mark.parametrize(
    ("key", "value"), [("share", 1.01), ("ms", 0), ("seed", -1), ("seed", 1.0), ("seed", True)]
)
def test_what_is_out_of_its_range_is_refused(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f": {key}: "):
        from_json(Thing, {key: value}, FILE)


@pytest.mark.parametrize("value", [[], None, "x", 3, {"other": 1}, {"parts": {}}])
def test_json_of_another_shape_is_a_sentence(value: Any) -> None:
    with pytest.raises(UserError, match=r"^folder/thing\.json is damaged") as refused:
        from_json(Thing, value, FILE)
    assert "\n" not in str(refused.value)


def test_a_message_names_the_key_and_stays_one_line() -> None:
    with pytest.raises(UserError, match=r"parts\.1\.share: ") as refused:
        from_json(Thing, {"parts": [{}, {"share": "a\n\x1b[31m" + "b" * 500}]}, FILE)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", "a\nb", "a\0b", " a", "a\n", "x" * 129, "/a"]
)
def test_no_name_of_a_path(name: str) -> None:
    for key in ("name", "run"):
        if key == "run" and name == "a/b":
            continue
        with pytest.raises(UserError, match=f": {key}: .*must be a plain name"):
            from_json(Thing, {key: name}, FILE)


def test_a_seal_is_checked_and_the_message_says_how_to_make_it_again() -> None:
    value = sealed({"share": 0.5, "parts": [{"seed": 1}]})
    assert from_json(Thing, value, FILE).share == 0.5
    value["parts"][0]["seed"] = 2
    with pytest.raises(UserError, match=r"changed after it was written.* with: make things"):
        from_json(Thing, value, FILE, "make things")


def test_typed_objects_are_written_as_they_were_read() -> None:
    value = {"share": 0.25, "parts": [{"seed": 3}]}
    written = to_json({"thing": from_json(Thing, value, FILE)}, exclude_none=True)["thing"]
    assert from_json(Thing, written, FILE) == from_json(Thing, value, FILE)
