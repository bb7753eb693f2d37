"""The tokenizer is lossless, deterministic and cached by its inputs."""

import time

import pytest
from tokenizers import Tokenizer

from asap_exp.core.errors import UserError
from asap_exp.data import tokenizer as module
from asap_exp.data.cache import write_cached
from asap_exp.data.raw_texts import RawTexts
from asap_exp.data.tokenizer import (
    cached_encoding,
    cached_tokenizer,
    encode,
    load_tokenizer,
    tokenizer_hash,
    train_tokenizer,
)
from asap_exp.data.tokens import SPECIAL_TOKENS
from tests.data.sentences import make_texts
from tests.fake_runs import fake_run

TEXTS, LABELS = make_texts(60, 4)
STRANGE = [
    "",
    " ",
    "naïve façade — 東京 🎉",
    "[MASK] [CLS] [PAD] <s>",
    "tab\tand\nline",
    "UPPER Case",
]


def made(vocab_size: int = 400, lowercase: bool = False) -> Tokenizer:
    return train_tokenizer(TEXTS, vocab_size, lowercase=lowercase)


def text_of(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode([i - SPECIAL_TOKENS for i in ids])


@pytest.mark.parametrize("lowercase", [False, True])
def test_every_text_can_be_read_back(lowercase):
    tokenizer = made(lowercase=lowercase)
    texts = [*TEXTS[:5], *STRANGE]
    encoded = encode(tokenizer, texts, [0] * len(texts), "here")
    assert encoded.ids.min() >= SPECIAL_TOKENS, "no special token, whatever the text says"
    ends = encoded.offsets.tolist()
    for row, text in enumerate(texts):
        back = text_of(tokenizer, encoded.ids[ends[row] : ends[row + 1]].tolist())
        # A leading space is added if there is none.
        assert back.removeprefix(" ") == (text.lower() if lowercase else text).removeprefix(" ")
    assert encoded.lengths[len(TEXTS[:5])] == 0, "an empty text has no token"


def test_vocabulary_is_at_most_what_was_asked_for():
    for size in (320, 400):
        tokenizer = made(size)
        assert tokenizer.get_vocab_size() + SPECIAL_TOKENS <= size
        assert encode(tokenizer, TEXTS, LABELS, "x").ids.max() < size
    assert made(320).get_vocab_size() < made(400).get_vocab_size()


def test_training_is_deterministic_and_depends_on_the_texts():
    assert tokenizer_hash(made()) == tokenizer_hash(made())
    other = train_tokenizer(make_texts(60, 4, seed=1)[0], 400, lowercase=False)
    assert len({tokenizer_hash(t) for t in (made(), made(390), made(lowercase=True), other)}) == 4


def counted(monkeypatch, name: str) -> list:
    calls, real = [], getattr(module, name)

    def call(*arguments, **options):
        calls.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, call)
    return calls


def test_cache_is_read_only_for_the_same_content(tmp_path, monkeypatch):
    calls = counted(monkeypatch, "train_tokenizer")
    raw = RawTexts(TEXTS, LABELS, "here")

    def cached(raw: RawTexts, vocab_size: int = 400, lowercase: bool = True) -> str:
        found = cached_tokenizer(raw.texts, raw.sha256, tmp_path, vocab_size, lowercase=lowercase)
        return tokenizer_hash(found)

    first = cached(raw)
    assert cached(RawTexts(TEXTS, LABELS, "there")) == first
    assert len(calls) == 1
    changed = RawTexts([TEXTS[0] + "!", *TEXTS[1:]], LABELS, "here")
    assert len({first, cached(raw, 390), cached(raw, lowercase=False), cached(changed)}) >= 3
    assert len(calls) == 4


def test_tokens_are_cached_too(tmp_path, monkeypatch):
    calls = counted(monkeypatch, "encode")
    tokenizer, raw = made(), RawTexts(TEXTS, LABELS, "here")

    def cached(tokenizer: Tokenizer):
        return cached_encoding(tokenizer, raw.texts, raw.labels, "now", raw.sha256, tmp_path)

    first, again = cached(tokenizer), cached(tokenizer)
    assert len(calls) == 1
    assert first.fingerprint() == again.fingerprint()
    assert again.source == "now"
    cached(made(390))
    assert len(calls) == 2


def test_damaged_tokenizer_is_refused(tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged: it is not a tokenizer"):
        load_tokenizer(file)
    with pytest.raises(
        UserError, match=r"missing\.json, the tokenizer that the run was trained with, is missing"
    ):
        load_tokenizer(tmp_path / "missing.json")


def test_tokenizers_of_a_run_and_of_the_cache_are_told_apart(tmp_path):
    run = fake_run(tmp_path, command="python -m asap_exp.train task=agnews")
    file = run.path / "tokenizer.json"
    for what in ("is missing", "is damaged"):
        with pytest.raises(UserError, match=what) as error:
            load_tokenizer(file)
        assert str(error.value).endswith("again by: python -m asap_exp.train task=agnews")
        file.write_text("{}")
    cached_tokenizer(["a text"], "0" * 64, tmp_path, 300, lowercase=True)
    (copy,) = (tmp_path / "tokenizers").glob("*.json")
    write_cached(copy, b"{}")
    with pytest.raises(UserError, match=r"in the cache is not a tokenizer .*remove it") as error:
        cached_tokenizer(["a text"], "0" * 64, tmp_path, 300, lowercase=True)
    assert str(copy) in str(error.value)


def test_content_hash_depends_on_texts_labels_and_their_order():
    raws = [
        RawTexts(["ab", "c"], [0, 1], ""),
        RawTexts(["a", "bc"], [0, 1], ""),
        RawTexts(["ab", "c"], [1, 0], ""),
        RawTexts(["c", "ab"], [1, 0], ""),
    ]
    assert len({raw.sha256 for raw in raws}) == 4
    assert raws[0].sha256 == RawTexts(["ab", "c"], [0, 1], "elsewhere").sha256


@pytest.mark.slow
@pytest.mark.parametrize("word", ["abcdefghij" * 30_000, " " * 300_000, "漢" * 100_000])
def test_enormous_word_takes_no_longer_than_as_many_short_ones(word):
    # Without the split, the trainer takes about 15 s for one of these.
    started = time.monotonic()
    tokenizer = train_tokenizer([*TEXTS, word, word], 400, lowercase=False)
    encoded = encode(tokenizer, [word], [0], "x")
    assert time.monotonic() - started < 5
    assert text_of(tokenizer, encoded.ids.tolist()).strip() == word.strip()


def test_words_of_ordinary_length_give_the_same_tokens(monkeypatch):
    # A long text without spaces that still consists of short words.
    texts = [*(text.replace(" ", ",") for text in TEXTS), "snow" * 5]
    made = {}
    for longest in (10**4, 21, 8):
        monkeypatch.setattr(module, "LONGEST_WORD", longest)
        made[longest] = tokenizer_hash(train_tokenizer(texts, 500, lowercase=False))
    assert made[21] == made[10**4]
    assert made[8] != made[10**4]
