"""Classes are kept by name, whatever numbers or words a column holds; others are refused."""

import datasets
import numpy as np
import pyarrow as pa
import pytest

from asap_exp.core.errors import UserError
from asap_exp.data.own.classes import class_order, numbered, words_of
from asap_exp.data.own.columns import chosen_column
from asap_exp.data.parquet import Part


def part(values, kind=None, names=None, rows=None) -> Part:
    table = pa.table({"label": pa.array(values, kind)})
    if names is not None:
        features = datasets.Features({"label": datasets.ClassLabel(names=names)})
        table = datasets.Dataset.from_dict({"label": values}, features=features).data.table
    return Part("/data/a.csv", table, rows)


def order(*parts: Part, wanted=None) -> list[str]:
    return class_order([words_of(each, "label") for each in parts], "label", "/data", wanted)


@pytest.mark.parametrize(
    ("given", "names", "labels"),
    [
        (part(["dog", "cat", "dog"]), ["cat", "dog"], [1, 0, 1]),
        (part([3, 1, 2]), ["1", "2", "3"], [2, 0, 1]),
        (part([10, 9, 100]), ["9", "10", "100"], [1, 0, 2]),
        (part(["10", "9", "100"]), ["10", "100", "9"], [0, 2, 1]),
        (part([0.0, 1.0, 1.0]), ["0", "1"], [0, 1, 1]),
        (part([True, False, True]), ["false", "true"], [1, 0, 1]),
        (part(["b", "a"]).take(np.array([0, 1])), ["a", "b"], [1, 0]),
        (part([1, 0, 1], names=["dog", "cat"]), ["dog", "cat"], [1, 0, 1]),
        (part([0, 1, 0], names=["x", "y", "z"]), ["x", "y", "z"], [0, 1, 0]),
    ],
    ids=str,
)
def test_names_are_sorted_unless_the_file_lists_them(given, names, labels):
    assert order(given) == names
    assert numbered(given, "label", names).tolist() == labels


def test_dictionary_of_words_is_read():
    encoded = Part("a", pa.table({"label": pa.array(["q", "p", "q"]).dictionary_encode()}))
    assert order(encoded) == ["p", "q"]


def test_names_are_those_of_all_parts():
    assert order(part(["c", "a"]), part(["b", "a"])) == ["a", "b", "c"]
    agree = part([1, 0], names=["y", "x"])
    assert order(agree, agree) == ["y", "x"]
    assert order(agree, part([1, 0], names=["x", "y"])) == ["x", "y"], "they disagree: sorted"


def test_other_order_of_the_same_names_gives_the_same_numbers():
    trained = ["ant", "bee"]
    assert numbered(part([0, 1], names=["bee", "ant"]), "label", trained).tolist() == [1, 0]
    assert numbered(part(["bee", "ant"]), "label", trained).tolist() == [1, 0]


def test_number_of_classes_may_exceed_those_that_occur():
    assert order(part([0, 2, 0]), wanted=4) == ["0", "1", "2", "3"]
    with pytest.raises(UserError, match=r"data\.num_classes=4, but .* 2 classes a, b"):
        order(part(["a", "b"]), wanted=4)
    with pytest.raises(UserError, match=r"data\.num_classes=2, but .* 3 classes 0, 1, 5"):
        order(part([0, 1, 5]), wanted=2)


REFUSED = {
    "fraction": (part([1.0, 0.25]), "has 0.25 in row 1 .*quantities are not predicted"),
    "not a number": (part([1.0, float("nan")]), "has nan in row 1"),
    "missing": (part([1, None]), "no label in row 1"),
    "empty": (part(["a", ""]), "no label in row 1"),
    "list": (part([[1], [2]]), "holds list.*no class"),
    "hidden": (part([0, -1], names=["a", "b"]), r"has -1 in row 1 .*hidden label.*from 0 to 1"),
}


@pytest.mark.parametrize(("given", "words"), REFUSED.values(), ids=REFUSED)
def test_label_that_is_no_class_is_refused_with_its_row(given, words):
    with pytest.raises(UserError, match=words) as error:
        words_of(given, "label")
    assert "/data/a.csv" in str(error.value)
    assert "data.label_column=NAME" in str(error.value)


def test_row_is_named_by_its_number_in_the_file():
    some = part([0.5] * 9).take(np.array([4, 7]))
    with pytest.raises(UserError, match="in row 4 "):
        words_of(some, "label")


def test_class_that_training_lacks_is_named_with_its_row():
    with pytest.raises(UserError, match=r"class cow in row 1 .*the 2 classes .*\(ant, bee\)"):
        numbered(part(["ant", "cow"]), "label", ["ant", "bee"])
    with pytest.raises(UserError, match="class 1 in row 0"):
        numbered(part(["1"]), "label", ["ant", "bee"])  # a number is no place in the order


def test_column_that_is_hardly_of_classes_is_refused():
    with pytest.raises(UserError, match="has one class, a, so there is nothing to predict"):
        order(part(["a", "a"]))
    with pytest.raises(UserError, match=r"30 different values in 30 rows \(0, 1, .*20 more"):
        order(part(list(range(30))))
    assert len(order(part(list(range(15))))) == 15, "few rows may have few each"


SCHEMA = pa.schema(
    {"id": pa.int64(), "review": pa.string(), "note": pa.string(), "stars": pa.int8()}
)


def chosen(what, given=None, schema=SCHEMA, taken=()):
    return chosen_column(what, given, schema, "/data", taken)


def test_column_is_given_or_usual_or_the_only_one():
    assert chosen("text") == "review", "a usual name, although note is text too"
    assert chosen("text", "note") == "note"
    picture = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    assert chosen("image", schema=pa.schema({"x": pa.int8(), "scan": picture})) == "scan"
    assert chosen("image", schema=pa.schema({"x": pa.int8(), "scan": pa.binary()})) == "scan"
    two = pa.schema({"remark": pa.string(), "kind": pa.string()})
    assert chosen("label", schema=two, taken=["remark"]) == "kind", "the only one left"


def test_classes_that_the_file_lists_come_before_other_columns():
    features = {"id": datasets.Value("int64"), "kind": datasets.ClassLabel(names=["a", "b"])}
    assert chosen("label", schema=datasets.Features(features).arrow_schema) == "kind"


def test_column_that_cannot_be_told_is_asked_for_with_all_there_are():
    with pytest.raises(UserError, match=r"several may be meant \(id, stars\).*set data\.label_co"):
        chosen("label", schema=pa.schema({"id": pa.int64(), "stars": pa.int8()}))
    with pytest.raises(UserError, match=r"none seems to be it.* id \(int64\), review \(string\)"):
        chosen("image")


def test_column_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(UserError, match=r"data\.text_column=texts is not a column") as error:
        chosen("text", "texts")
    assert error.value.allowed == ("id", "review", "note", "stars")


def test_two_columns_of_one_name_are_refused():
    twice = pa.schema([("text", pa.string()), ("text", pa.string()), ("label", pa.int8())])
    with pytest.raises(UserError, match="/data has two columns text; rename or drop one"):
        chosen("text", schema=twice)
