"""Failures of the machine become sentences; bugs in the code stay tracebacks."""

import errno
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from asap_exp.core.command_line import start_again, typed
from asap_exp.core.errors import UserError
from asap_exp.core.failures import explained, sentences
from asap_exp.core.launch import sentence
from asap_exp.ops import sinkhorn_attention


def failure(call) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    return caught.value


HUGE = 10**15
TOO_MUCH = {
    "torch": lambda: torch.empty(HUGE),
    "torch, bytes beyond 64 bits": lambda: torch.empty(2**62, dtype=torch.float64),
    "torch, count beyond 64 bits": lambda: torch.empty(2**40, 2**40),
    "torch, size beyond 64 bits": lambda: torch.empty(2**70),
    "torch, view": lambda: torch.zeros(1).expand(2**40).clone(),
    "numpy": lambda: np.zeros(HUGE),
    "numpy, dimensions": lambda: np.zeros((2**40, 2**40)),
    "python": lambda: bytearray(HUGE),
    "python, index": lambda: [0] * 2**70,
    "linear": lambda: torch.nn.Linear(10**9, 10**9),
    "number": lambda: torch.zeros(1).fill_(2**70),
    "scalar": lambda: torch.zeros(1).add_(torch.zeros(1), alpha=1e300),
}


@pytest.mark.parametrize("call", TOO_MUCH.values(), ids=TOO_MUCH)
def test_too_large_is_a_sentence_with_what_to_make_smaller(call):
    error = failure(call)
    sentence = explained(error, "train")
    assert isinstance(sentence, UserError), repr(error)
    assert "Reduce recipe.batch_size" in str(sentence)
    if call is TOO_MUCH["torch"]:
        assert "4,000,000.0 GB were requested at once" in str(sentence)
    assert "calibration.batch_size" in str(explained(error, "distill"))


def test_gpu_without_memory_is_a_sentence():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 ...")
    assert "(CUDA out of memory. Tried to allocate 20.00 GiB.)" in str(explained(error))


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOENT, "deleted or moved"),
        (errno.EIO, "disk"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EROFS, "writable"),
        (errno.ENOSPC, "space"),
        (errno.EDQUOT, "quota"),
        (errno.ENOTCONN, "check the disk or the network"),
    ],
)
def test_error_of_the_system_names_the_path(code, advice):
    sentence = str(explained(OSError(code, os.strerror(code), "results/runs/x")))
    assert sentence.startswith(f"results/runs/x: {os.strerror(code)}; ")
    assert advice in sentence


def test_deleted_folder_is_a_sentence(tmp_path: Path):
    error = failure(lambda: (tmp_path / "gone" / "x").write_text(""))
    assert f"{tmp_path}/gone/x: No such file or directory" in str(explained(error))


def test_sentence_stays_one_though_something_else_was_raised_from_it():
    def call():
        try:
            raise UserError("data.root=x is wrong")
        except UserError as error:
            raise RuntimeError("worker failed") from error

    assert str(explained(failure(call))) == "data.root=x is wrong"


@pytest.mark.parametrize(
    "mistake",
    [
        TypeError("unsupported operand"),
        KeyError("x"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("not enough values to unpack (expected 2, got 1)"),
    ],
)
def test_mistake_in_the_code_is_not_explained_away(mistake):
    assert explained(mistake) is None


def test_signal_ends_a_script_as_it_ends_a_stage(capsys):
    with pytest.raises(SystemExit) as end, sentences():
        os.kill(os.getpid(), signal.SIGTERM)
    assert end.value.code == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "words", "kept"),
    [
        ("train", (), "again: it continues from its last checkpoint, if it has one"),
        ("train", ("resume=never",), "start it again without resume=never: it continues"),
        ("distill", (), "finished maps are kept, and this one is fitted from the start"),
        ("evaluate", (), "parts that are measured are kept, and the others are measured"),
        ("benchmark", (), "rows that are measured are kept, and the others are measured"),
        ("report", (), "start the same command again"),
    ],
)
def test_what_a_stopped_stage_keeps_is_said_by_stage(stage, words, kept):
    assert kept in start_again(stage, words)
    with typed(stage, words):
        assert sentence(1, SimpleNamespace(returncode=-9, pid=7)) == (
            "rank 1 (process 7) was killed by SIGKILL, perhaps for lack of memory; "
            + start_again(stage, words)
        )


def test_checkpoint_of_a_stopped_training_is_named():
    there = "a checkpoint is saved (runs/last.ckpt): start"
    assert start_again("train", (), "runs/last.ckpt").startswith(f"{there} the same command again")
    kept = start_again("train", ("resume=never",), "runs/last.ckpt")
    assert kept == f"{there} it again without resume=never, and it continues from there"


def test_what_a_stopped_script_keeps_is_said(capsys):
    with pytest.raises(SystemExit), sentences("all splits are kept"):
        os.kill(os.getpid(), signal.SIGINT)
    err = capsys.readouterr().err
    assert err == "error: stopped by SIGINT; start the same command again: all splits are kept\n"


def test_mistake_ends_a_script_with_the_status_of_a_stage(capsys):
    with pytest.raises(SystemExit) as end, sentences():
        raise UserError("a mistake")
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: a mistake\n"


def test_a_forced_kernel_that_cannot_run_is_a_sentence_with_what_to_set():
    q = torch.zeros(1, 1, 2, 4, dtype=torch.float64)
    error = failure(lambda: sinkhorn_attention(q, q, q, backend="triton"))
    sentence = explained(error)
    assert isinstance(sentence, UserError)
    assert re.match(r"attention\.backend='triton' cannot run: .*Use backend='auto'", str(sentence))
