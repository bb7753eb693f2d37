"""What a linear model on word counts reaches: a text model below it is not worth its cost."""

from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from asap_exp.data.texts import RawTexts

UNMEASURED = (
    "agreement",
    "kl",
    "loss",
    "l1_row_distance",
    "row_error",
    "column_error",
    "largest_column_error",
    "entropy",
    "gate_error",
    "layer_ms",
    "model_ms",
    "layer_speedup",
    "model_speedup",
    "peak_memory_mib",
)


def baseline_row(train: RawTexts, test: RawTexts, test_rows: int) -> dict[str, Any]:
    """Tf-idf of words and pairs of words, and a linear SVM, fitted on the whole training split.

    Nothing is chosen, so that no validation rows are held back; accuracy on the first `test_rows`.
    """
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        LinearSVC(random_state=0),
    )
    model.fit(train.texts, train.labels)
    return {
        "key": "baseline_svm",
        "label": "tf-idf bigrams + linear SVM",
        "group": "baseline",
        "layers": [],
        "accuracy": float(model.score(test.texts[:test_rows], test.labels[:test_rows])),
        **dict.fromkeys(UNMEASURED),
    }
