"""Labels become class numbers, whatever a file holds; classes are identified by name."""

from decimal import Decimal

import datasets
import numpy as np
import pyarrow as pa
import pytest

from asap_exp.core.errors import UserError
from asap_exp.data.catalog import TEXT_DATASETS
from asap_exp.data.labels import labels_of, training_order
from asap_exp.data.parquet import Part

AGNEWS, IMDB, YELP = (TEXT_DATASETS[name] for name in ("agnews", "imdb", "yelp"))
NAMES = ("World", "Sports", "Business", "Sci/Tech")
OTHER = ("Sci/Tech", "World", "Business", "Sports")


def part(values, kind: pa.DataType | None = None, names: tuple[str, ...] | None = None) -> Part:
    table = pa.table({"label": pa.array(values, kind)})
    if names is not None:
        features = datasets.Features({"label": datasets.ClassLabel(names=list(names))})
        table = table.replace_schema_metadata(features.arrow_schema.metadata)
    return Part("/data/file.parquet", table)


def labels(*parts: Part, dataset=AGNEWS, training=None) -> list[int]:
    found = labels_of(parts, dataset, training).numbers
    assert found.dtype == np.int64
    return found.tolist()


def refused(*parts: Part, dataset=AGNEWS, training=None) -> str:
    with pytest.raises(UserError) as error:
        labels_of(parts, dataset, training)
    message = str(error.value)
    assert "column label" in message
    assert "/data/file.parquet" in message
    assert f"whole numbers from 0 to {dataset.num_classes - 1}" in message
    return message


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.uint8(), pa.int32(), pa.uint64(), pa.float16(), pa.float64()], ids=str
)
def test_every_type_of_whole_number_is_read(kind):
    assert labels(part([0, 3, 1, 2], kind)) == [0, 3, 1, 2]


def test_decimals_and_dictionaries_of_whole_numbers_are_read():
    assert labels(part([0, 3, 1], pa.decimal128(5, 2))) == [0, 3, 1]
    assert labels(part(pa.array([2, 0, 2]).dictionary_encode())) == [2, 0, 2]


def test_true_and_false_are_two_classes_and_no_more():
    assert labels(part([True, False]), dataset=IMDB) == [1, 0]
    assert "has True in row 0" in refused(part([True, False]))


@pytest.mark.parametrize(
    ("values", "row", "shown", "advice"),
    [
        ([1, 2, 3, 4], 3, "4", "subtract 1"),
        ([-1, -1], 0, "-1", "hidden label"),
        ([0, 1, 4, 0], 2, "4", "correct the column"),
        ([0, -7], 1, "-7", "correct the column"),
        ([0, None, 1], 1, "no label", "take it out"),
        ([0.0, 1.7], 1, "1.7", "correct the column"),
        ([0.0, float("nan")], 1, "nan", "correct the column"),
        ([0.0, float("inf")], 1, "inf", "correct the column"),
        ([2.0**80], 0, "1.2089258196146292e+24", "correct the column"),
        ([0, 2**63 + 5], 1, "9223372036854775813", "correct the column"),
        (["sport"], 0, "'sport'", "correct the name"),
        ([None, None], 0, "no label", "take it out"),
        ([[0], [1]], 0, "[0]", "its type is list"),
        ([b"World"], 0, "b'World'", "its type is binary"),
    ],
    ids=repr,
)
def test_first_label_that_is_no_class_is_named(values, row, shown, advice):
    kind = pa.uint64() if 2**63 + 5 in values else None
    message = refused(part(values, kind))
    assert f"has {shown} in row {row} (counted from 0) of" in message
    assert advice in message


def test_row_is_that_of_its_own_file():
    first = Part("/data/first.parquet", part([0, 1, 2]).table)
    assert "row 1 (counted from 0) of /data/file.parquet" in refused(first, part([0, 9]))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_words_that_are_class_names_are_their_numbers(kind):
    assert labels(part(["Sports", "World", "Sci/Tech"], kind)) == [1, 0, 3]
    assert labels(part(["pos", "neg"], kind), dataset=IMDB) == [1, 0]
    assert labels(part(["3", "0"], kind)) == [3, 0]
    categories = pa.array(["Sports", "World", "Sports"]).dictionary_encode()
    assert labels(part(categories)) == [1, 0, 1]


def test_unknown_word_is_refused_with_the_names_there_are():
    message = refused(part(["World", "Weather"]))
    assert "has 'Weather' in row 1" in message
    assert "or the names of the classes (World, Sports, Business, Sci/Tech)" in message
    assert "(b, a)" in refused(part(["World"]), dataset=IMDB, training=("b", "a"))


def test_file_in_another_order_of_classes_is_brought_into_that_of_training():
    assert labels(part([0, 1, 2, 3], names=OTHER), training=NAMES) == [3, 0, 2, 1]
    assert labels(part([0, 1, 2, 3], names=NAMES), training=OTHER) == [1, 3, 2, 0]
    assert labels(part([0, 1], names=NAMES), training=NAMES) == [0, 1]
    assert labels(part(["Sports"]), training=OTHER) == [3]


def test_every_shard_has_an_order_of_its_own():
    shards = part([0, 1], names=OTHER), part([0, 1], names=NAMES)
    assert labels(*shards, training=OTHER) == [0, 1, 1, 3]


def test_without_names_in_training_those_of_the_catalogue_count():
    assert labels(part([0, 1, 2, 3], names=OTHER)) == [3, 0, 2, 1]
    unknown = ("a", "b", "c", "d")
    assert labels(part([0, 1, 2, 3], names=unknown)) == [0, 1, 2, 3]


def test_part_of_the_classes_is_known_by_name():
    assert labels(part([0, 1], names=("Business", "Sports")), training=NAMES) == [2, 1]


def test_class_that_training_does_not_know_is_refused():
    known_others = part([0, 1], names=("World", "Weather", "Business", "Sci/Tech"))
    message = refused(known_others, training=NAMES)
    assert "has 'Weather' in row 1" in message
    # No row has that label, so nothing is wrong.
    unused = part([0, 2], names=("World", "Weather", "Business", "Sci/Tech"))
    assert labels(unused, training=NAMES) == [0, 2]


def test_numbers_are_names_among_one_another_alone():
    plain = tuple("0123")
    assert labels(part([0, 3], names=plain), training=NAMES) == [0, 3]
    assert labels(part([0, 3], names=NAMES), training=plain) == [0, 3]
    assert labels(part([0, 1], names=("3", "1", "0", "2"))) == [3, 1]
    assert labels(part([0, 1], names=plain), training=("3", "1", "0", "2")) == [2, 1]


def test_hidden_labels_of_a_file_with_names_stay_hidden():
    assert "has -1 in row 1" in refused(part([0, -1], names=OTHER), training=NAMES)
    assert "has 4 in row 0" in refused(part([4, 0], names=OTHER), training=NAMES)


@pytest.mark.parametrize(
    "metadata", [b"{", b"[]", b'{"info": null}', b'{"info": {"features": []}}']
)
def test_metadata_of_another_shape_is_no_metadata(metadata):
    table = part([0, 1]).table.replace_schema_metadata({b"huggingface": metadata})
    assert labels(Part("file", table)) == [0, 1]


ABCD, DCBA = tuple("abcd"), tuple("dcba")


@pytest.mark.parametrize(
    ("own", "dataset"),
    [
        (OTHER, AGNEWS),
        (NAMES, AGNEWS),
        (("Business", "Sports"), AGNEWS),
        (ABCD, AGNEWS),
        (tuple("3102"), AGNEWS),
        (tuple("1234"), AGNEWS),
        (("pos", "neg"), IMDB),
    ],
    ids=str,
)
def test_names_that_are_kept_give_the_same_labels_again(own, dataset):
    file = part(list(range(len(own))), names=own)
    first = labels_of([file], dataset, None)
    assert labels(file, dataset=dataset, training=first.names) == first.numbers.tolist()
    assert [first.names[number] for number in first.numbers][: len(own)] == list(own)


def test_order_of_the_catalogue_is_the_one_that_is_kept():
    assert labels_of([part([0, 1], names=OTHER)], AGNEWS, None).names == NAMES
    assert labels_of([part([0, 1]), part([0, 1], names=OTHER)], AGNEWS, None).names == NAMES
    assert labels_of([part([0, 1])], AGNEWS, None).names is None


def test_names_of_training_are_those_of_the_first_file_that_has_any():
    assert training_order([None, ABCD, DCBA], AGNEWS) == ABCD
    assert training_order([OTHER, NAMES], AGNEWS) == OTHER
    assert training_order([tuple("0123"), DCBA], AGNEWS) == DCBA
    assert training_order([None, tuple("0123")], AGNEWS) == tuple("0123")
    # If the first file has no names, the catalogue takes precedence.
    assert training_order([None, OTHER], AGNEWS) == NAMES
    assert training_order([None, None], AGNEWS) is training_order([], AGNEWS) is None


@pytest.mark.parametrize("training", [None, tuple("0123")])
def test_orders_that_nothing_brings_together_are_refused(training):
    first = Part("/data/first.parquet", part([0, 1], names=ABCD).table)
    with pytest.raises(
        UserError, match=r"first\.parquet and .*file\.parquet list .* different"
    ) as e:
        labels_of([first, part([0, 1], names=DCBA)], AGNEWS, training)
    assert "(a, b, c, d; d, c, b, a)" in str(e.value)
    assert labels(first, part([0, 1], names=DCBA), training=ABCD) == [0, 1, 3, 2]
    assert labels(part([0], names=OTHER), part([0], names=NAMES), training=training) == [3, 0]
    assert labels(part([0, 1], names=("a", "b")), first, training=training) == [0, 1, 0, 1]


def test_numbers_that_do_not_count_from_0_are_names():
    file = part([0, 1, 2, 3], names=tuple("1234"))
    assert labels(file) == labels(file, training=tuple("1234")) == [0, 1, 2, 3]
    assert labels(part(["1", "4"]), training=tuple("1234")) == [0, 3]
    assert labels(part([0, 3], names=tuple("4321")), training=tuple("1234")) == [3, 0]
    assert "has '1' in row 0" in refused(file, training=NAMES)
    assert labels(part([0, 1, 2, 3, 4], names=tuple("12345")), dataset=YELP) == [0, 1, 2, 3, 4]
    # Fewer names than classes: they are class numbers.
    assert labels(part([0, 1, 2], names=tuple("123"))) == [1, 2, 3]


def test_bound_is_that_of_the_file():
    with pytest.raises(UserError) as error:
        labels_of([part([0, 3], names=tuple("abc"))], AGNEWS, ABCD)
    message = str(error.value)
    assert "has 3 in row 1" in message
    assert "whole numbers from 0 to 2" in message
    assert "this file names only 3 classes (a, b, c)" in message


@pytest.mark.parametrize(
    ("value", "kind", "shown"),
    [
        (2**64 - 1, pa.uint64(), "18446744073709551615"),
        (1e300, pa.float64(), "1e+300"),
        (-1e300, pa.float64(), "-1e+300"),
        (Decimal(10**20), pa.decimal128(30, 0), "100000000000000000000"),
    ],
)
def test_value_is_shown_as_the_file_has_it(value, kind, shown):
    assert f"has {shown} in row 0 " in refused(part([value], kind))
