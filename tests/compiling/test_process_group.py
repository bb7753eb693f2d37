"""The library within a program whose processes train together: each call works by itself."""

import os

import pytest
import torch
import torch.distributed as dist

import asap_exp
from asap_exp.core.agreement import alone, apart, total
from tests.several import in_ranks
from tests.small_model import Classifier, compile_small, loader, tokens

pytestmark = pytest.mark.slow


def in_group() -> int:
    """Join a group of two, and return this process's rank in it."""
    torch.set_num_threads(1)
    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("gloo", rank=rank, world_size=2)
    return rank


def compiled_outputs() -> list[float]:
    compiled = compile_small(Classifier().eval(), loader(), steps=("ridge", "kl", "end_to_end"))
    ratios = asap_exp.drift(compiled, (tokens(9), None))
    with torch.no_grad():
        return [*compiled(tokens(9)).flatten().tolist(), *ratios.values()]


def test_compiling_on_one_rank_alone_gives_what_one_process_finds() -> None:
    """The other rank does something else meanwhile, and answers no exchange."""

    def work() -> list[float]:
        found = compiled_outputs() if in_group() == 0 else []
        assert not alone(), "the group is as it was"
        dist.barrier()
        dist.destroy_process_group()
        return found

    first, second = in_ranks(work)
    assert first is not None
    assert second is not None
    assert (first.error, second.error) == ("", "")
    assert first.result == pytest.approx(compiled_outputs(), rel=1e-5, abs=1e-6)


def test_work_apart_exchanges_nothing() -> None:
    def work() -> list[int]:
        rank = in_group()
        with apart():
            found = [total(rank + 1)]
        found.append(total(rank + 1))
        dist.destroy_process_group()
        return found

    first, second = in_ranks(work)
    assert first is not None
    assert second is not None
    assert (first.result, second.result) == ([1, 3], [2, 3])
