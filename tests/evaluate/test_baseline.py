"""The linear baseline, where there is nothing to learn from too."""

import pytest

from asap_exp.data.raw_texts import RawTexts
from asap_exp.evaluate.baseline import baseline
from tests.data.sentences import make_texts


def accuracy(train: RawTexts, test: RawTexts) -> float:
    row, right, labels = baseline(train, test, len(test.texts))
    assert labels.tolist() == test.labels
    assert row["accuracy"] == right.mean()
    return row["accuracy"]


def test_it_learns_words_that_tell_the_class():
    train, test = (RawTexts(*make_texts(80, 4, seed=seed), "here") for seed in (0, 1))
    assert accuracy(train, test) == 1.0


@pytest.mark.parametrize(
    "texts",
    [[""] * 5, ["a", "b", "c", "d", "e"], ["one", "two", "three", "four", "five"], ["?"] * 5],
)
def test_without_a_word_that_repeats_it_says_the_most_frequent_class(texts):
    train, test = RawTexts(texts, [0, 2, 2, 1, 2], ""), RawTexts(texts, [2, 2, 0, 1, 1], "")
    assert accuracy(train, test) == 0.4


def test_one_class_is_all_it_can_say():
    train = RawTexts(["the same", "the same"], [3, 3], "")
    assert accuracy(train, RawTexts(["the same", "other"], [3, 1], "")) == 0.5
