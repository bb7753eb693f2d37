"""Linear baseline on word counts: a text model that does not beat it is not worth its cost."""

from typing import Any

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from asap_exp.core.records.row import COLUMNS
from asap_exp.data.raw_texts import RawTexts


def baseline(
    train: RawTexts, test: RawTexts, test_rows: int
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Fit a linear SVM on tf-idf of words and pairs of words, on the whole training split.

    Nothing is tuned, so no validation rows are held back. Returns the row of the record, which of
    the first `test_rows` texts it has right, and their labels. If no word occurs in two texts, or
    there is a single class, the model is constant.
    """
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    learns = len(set(train.labels)) > 1 and repeats_a_word(train.texts, words)
    model = make_pipeline(words, LinearSVC(random_state=0)) if learns else DummyClassifier()
    model.fit(train.texts, train.labels)
    labels = np.array(test.labels[:test_rows], dtype=np.int64)
    right = model.predict(test.texts[:test_rows]) == labels
    row: dict[str, Any] = {
        "key": "baseline_svm",
        "label": "tf-idf bigrams + linear SVM",
        "group": "baseline",
        "layers": [],
        **dict.fromkeys(column.key for column in COLUMNS),
        "accuracy": float(right.mean()),
    }
    return row, right, labels


def repeats_a_word(texts: list[str], vectorizer: TfidfVectorizer) -> bool:
    """Return True if `vectorizer` finds a word that occurs in two of the texts."""
    words, seen = vectorizer.build_analyzer(), set[str]()
    for text in texts:
        here = set(words(text))
        if not seen.isdisjoint(here):
            return True
        seen |= here
    return False
