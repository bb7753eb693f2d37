"""Cached content is used only if it is unchanged."""

import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from asap_exp.core.errors import UserError
from asap_exp.data import pixels as kept
from asap_exp.data import tokenizer as tokenizers
from asap_exp.data.cache import cached_array, read_cached, write_cached
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
    files = (file for file in folder.rglob("*") if file.is_file())
    (file,) = (file for file in files if file.suffix not in (".sha256", ".lock"))
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


def test_cache_that_cannot_be_written_is_named_and_not_the_data(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data\.cache=FOLDER") as error:
        write_cached(tmp_path / "file" / "kept", b"")
    assert str(tmp_path / "file" / "kept") in str(error.value)
    write_parquet(tmp_path / "cifar10" / "train.parquet", CIFAR10, make_pixels(2), [0, 1])
    with pytest.raises(UserError, match=r"data\.cache=FOLDER") as error:
        load_images(CIFAR10, "train", str(tmp_path), str(tmp_path / "file"))
    assert "download_data" not in str(error.value)


def test_flipped_bit_in_decoded_images_is_not_trained_on(tmp_path, monkeypatch):
    decoded = counted(monkeypatch, kept, "decoded_pixels")
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


def test_flipped_bit_in_token_ids_is_not_trained_on(tmp_path, monkeypatch):
    calls = counted(monkeypatch, tokenizers, "encode")
    made = tokenizers.train_tokenizer(RAW.texts, 400, lowercase=True)

    def load() -> str:
        texts = cached_encoding(made, RAW.texts, RAW.labels, "now", RAW.sha256, tmp_path)
        return texts.fingerprint()

    first = load()
    flip_a_bit(the_file(tmp_path))
    assert load() == load() == first
    assert len(calls) == 2


def test_changed_tokenizer_in_the_cache_is_made_again(tmp_path, monkeypatch):
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
    decoded = counted(monkeypatch, kept, "decoded_pixels")
    for version in ("1.0", "2.0", "2.0"):
        monkeypatch.setattr(kept.PIL, "__version__", version)
        load_images(CIFAR10, "train", str(tmp_path), str(tmp_path / "cache"))
    assert len(decoded) == 2


def test_one_of_several_processes_makes_a_file_and_the_others_wait(tmp_path, capsys):
    made, begun = [], threading.Event()

    def make() -> np.ndarray:
        begun.set()
        time.sleep(0.5)
        made.append(1)
        return np.arange(6)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(cached_array, tmp_path / "a.npy", make)
        begun.wait()
        others = [pool.submit(cached_array, tmp_path / "a.npy", make) for _ in range(3)]
        arrays = [each.result() for each in (first, *others)]
    assert len(made) == 1
    assert all((array == np.arange(6)).all() for array in arrays)
    assert "waiting for it" in capsys.readouterr().out


def test_lock_of_a_process_that_was_killed_is_free(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from asap_exp.data.cache import alone\n"
        "with alone(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.npy")], check=False)
    assert (tmp_path / ".a.npy.lock").is_file()
    assert cached_array(tmp_path / "a.npy", lambda: np.ones(2)).tolist() == [1, 1]


@pytest.mark.parametrize("harm", ["cut", "no hash", "empty", "other"])
def test_half_written_array_is_made_again(tmp_path, harm):
    file = tmp_path / "a.npy"
    cached_array(file, lambda: np.arange(1000))
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:900])
    elif harm == "no hash":  # a process died between the two files
        file.with_name("a.npy.sha256").unlink()
    elif harm == "empty":
        file.write_bytes(b"")
    else:
        file.write_bytes(b"no array at all")
    assert (cached_array(file, lambda: np.arange(7)) == np.arange(7)).all()
    assert (cached_array(file, lambda: np.arange(9)) == np.arange(7)).all(), "kept again"


def test_cache_may_be_deleted_while_its_content_is_in_use(tmp_path):
    cached_array(tmp_path / "cache" / "a.npy", lambda: np.arange(100_000))
    mapped = cached_array(tmp_path / "cache" / "a.npy", lambda: np.zeros(1))
    shutil.rmtree(tmp_path / "cache")
    assert (mapped == np.arange(100_000)).all()
    assert cached_array(tmp_path / "cache" / "a.npy", lambda: np.ones(1)).tolist() == [1]


def test_change_of_a_mapped_array_stays_in_memory(tmp_path):
    cached_array(tmp_path / "a.npy", lambda: np.arange(5))
    cached_array(tmp_path / "a.npy", lambda: np.arange(5))[:] = 9
    assert cached_array(tmp_path / "a.npy", lambda: np.zeros(5)).tolist() == [0, 1, 2, 3, 4]
