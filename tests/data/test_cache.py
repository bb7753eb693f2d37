"""Cached content is used only if it is unchanged."""

from pathlib import Path

import pytest
import torch

from asap_exp.core.errors import UserError
from asap_exp.data import sources
from asap_exp.data import tokenizer as tokenizers
from asap_exp.data.cache import read_cached, write_cached
from asap_exp.data.catalog import IMAGE_DATASETS
from asap_exp.data.raw_texts import RawTexts
from asap_exp.data.sources import load_images
from asap_exp.data.tokenizer import cached_encoding, cached_tokenizer, tokenizer_hash
from tests.data.parquet import make_pixels, write_parquet
from tests.data.sentences import make_texts

CIFAR10 = IMAGE_DATASETS["cifar10"]
RAW = RawTexts(*make_texts(60, 4), "here")


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-len(content) // 3] ^= 1
    file.write_bytes(content)


def the_file(folder: Path) -> Path:
    (file,) = (file for file in folder.rglob("*") if file.is_file() and file.suffix != ".sha256")
    return file


def counted(monkeypatch, module, name: str) -> list:
    calls, real = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a, **o: (calls.append(a), real(*a, **o))[1])
    return calls


def test_file_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "a" / "b"
    assert read_cached(file) is None
    write_cached(file, b"content")
    assert read_cached(file) == b"content"
    file.write_bytes(b"contents")
    assert read_cached(file) is None
    write_cached(file, b"contents")
    assert read_cached(file) == b"contents"
    file.with_name("b.sha256").unlink()
    assert read_cached(file) is None, "as of a file from before there were hashes"
    file.with_name("b.sha256").write_bytes(b"\xff\xfe")
    assert read_cached(file) is None


def test_bugs_f19_cache_that_cannot_be_written_is_named_and_not_the_data(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data\.cache=FOLDER") as error:
        write_cached(tmp_path / "file" / "kept", b"")
    assert str(tmp_path / "file" / "kept") in str(error.value)
    write_parquet(tmp_path / "cifar10" / "train.parquet", CIFAR10, make_pixels(2), [0, 1])
    with pytest.raises(UserError, match=r"data\.cache=FOLDER") as error:
        load_images(CIFAR10, "train", str(tmp_path), str(tmp_path / "file"))
    assert "download_data" not in str(error.value)


def test_reliability_f13_flipped_bit_in_decoded_images_is_not_trained_on(tmp_path, monkeypatch):
    decoded = counted(monkeypatch, sources, "decoded_pixels")
    pixels = make_pixels(4)
    write_parquet(tmp_path / "cifar10" / "train.parquet", CIFAR10, pixels, [0, 1, 2, 3])

    def load() -> torch.Tensor:
        return load_images(CIFAR10, "train", str(tmp_path), str(tmp_path / "cache")).pixels

    first = load()
    assert torch.equal(load(), first)
    assert len(decoded) == 1
    flip_a_bit(the_file(tmp_path / "cache"))
    assert torch.equal(load(), first)
    assert torch.equal(load(), first)
    assert len(decoded) == 2, "made again, once"


def test_reliability_f13_flipped_bit_in_token_ids_is_not_trained_on(tmp_path, monkeypatch):
    calls = counted(monkeypatch, tokenizers, "encode")
    made = tokenizers.train_tokenizer(RAW.texts, 400, lowercase=True)

    def load() -> str:
        texts = cached_encoding(made, RAW.texts, RAW.labels, "now", RAW.sha256, tmp_path)
        return texts.fingerprint()

    first = load()
    flip_a_bit(the_file(tmp_path))
    assert load() == load() == first
    assert len(calls) == 2


def test_reliability_f13_changed_tokenizer_in_the_cache_is_made_again(tmp_path, monkeypatch):
    calls = counted(monkeypatch, tokenizers, "train_tokenizer")

    def load() -> str:
        return tokenizer_hash(
            cached_tokenizer(RAW.texts, RAW.sha256, tmp_path, 400, lowercase=True)
        )

    first = load()
    file = the_file(tmp_path)
    file.write_text(file.read_text().replace('"a"', '"\u00e4"', 1))
    assert load() == load() == first
    assert len(calls) == 2


def test_other_version_of_the_decoder_does_not_share_its_pixels(tmp_path, monkeypatch):
    write_parquet(tmp_path / "cifar10" / "train.parquet", CIFAR10, make_pixels(2), [0, 1])
    decoded = counted(monkeypatch, sources, "decoded_pixels")
    for version in ("1.0", "2.0", "2.0"):
        monkeypatch.setattr(sources.PIL, "__version__", version)
        load_images(CIFAR10, "train", str(tmp_path), str(tmp_path / "cache"))
    assert len(decoded) == 2
