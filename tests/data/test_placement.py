"""Images that stay in main memory: the same batches as from the device, copied one ahead."""

import threading

import numpy as np
import pytest
import torch

from asap_exp.core.ranks import Ranks
from asap_exp.data import images as images_module
from asap_exp.data.ahead import copied_ahead
from asap_exp.data.images import stays_on_host
from asap_exp.data.loader import DeviceLoader
from asap_exp.data.sources import Images
from tests.stages import run_train
from tests.train.test_stop import assert_same_weights

CPU = torch.device("cpu")


def images(rows: int = 11) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (rows, 1, 3, 3), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(rows), "random")


def loader(given: Images, **options) -> DeviceLoader:
    return DeviceLoader(given, 4, lambda x, y: (x, y), device=CPU, **options)


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("ranks", [Ranks(0, 1), Ranks(1, 2)])
def test_batches_are_those_of_images_on_the_device(seed: int | None, ranks: Ranks) -> None:
    rows = np.array([9, 1, 2, 10, 5, 0, 8])
    of_device, of_host = (
        list(loader(given.take(rows), seed=seed, ranks=ranks))
        for given in (images(), images().uncopied())
    )
    assert len(of_device) == len(of_host) > 0
    for (x, y), (other_x, other_y) in zip(of_device, of_host, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)


def test_taking_copies_no_pixels_and_keeps_the_fingerprint(monkeypatch) -> None:
    monkeypatch.setattr("asap_exp.data.sources.HASHED_AT_ONCE", 4)
    rows = np.array([9, 1, 2, 10, 5])
    whole = images().uncopied()
    part = whole.take(rows).take(np.array([4, 0]))
    assert part.pixels.data_ptr() == whole.pixels.data_ptr()
    assert part.labels.tolist() == [5, 9]
    assert whole.fingerprint() == images().fingerprint()
    assert whole.take(rows).fingerprint() == images().take(rows).fingerprint()


def test_loader_continues_in_the_middle_of_an_epoch() -> None:
    begun = loader(images().uncopied(), seed=0)
    batches = iter(begun)
    next(batches)
    state = begun.state_dict()
    rest = [y.tolist() for _, y in batches]
    again = loader(images().uncopied(), seed=0)
    again.load_state_dict(state)
    assert [y.tolist() for _, y in again] == rest


def test_next_batch_is_gathered_while_one_is_used() -> None:
    begun = [threading.Event() for _ in range(3)]

    def gather(number: int) -> tuple[torch.Tensor]:
        begun[number].set()
        return (torch.tensor(number),)

    batch = copied_ahead(gather, 3, CPU)
    assert batch(0)[0] == 0
    assert begun[1].wait(timeout=10)
    assert not begun[2].is_set()
    assert batch(1)[0] == 1
    assert batch(2)[0] == 2


def test_batches_of_other_ranks_are_not_gathered() -> None:
    begun: list[int] = []

    def gather(number: int) -> tuple[torch.Tensor]:
        begun.append(number)
        return (torch.tensor(number),)

    batch = copied_ahead(gather, 6, CPU, 2)
    assert [int(batch(number)[0]) for number in (1, 3, 5)] == begun == [1, 3, 5]


@pytest.mark.parametrize("on_host", [False, True])
def test_ranks_take_whole_batches_in_turns(on_host: bool) -> None:
    pictures = images() if not on_host else images().uncopied()
    whole = [(number, y.tolist()) for number, (_, y) in enumerate(loader(pictures))]
    found = []
    for rank in range(2):
        mine = loader(pictures).shared(Ranks(rank, 2)).in_turns()
        found += [(number, y.tolist()) for number, (_, y) in mine]
    assert len(whole) % 2
    assert sorted(found) == whole


def test_error_of_a_batch_is_raised_when_it_is_asked_for() -> None:
    def gather(number: int) -> tuple[torch.Tensor]:
        if number == 1:
            raise OSError("the disk is gone")
        return (torch.tensor(number),)

    batch = copied_ahead(gather, 2, CPU)
    batch(0)
    with pytest.raises(OSError, match="the disk is gone"):
        batch(1)


def test_images_stay_in_main_memory_if_they_take_over_half_of_a_gpu(monkeypatch, capsys) -> None:
    pixels, gpu = torch.zeros(100, dtype=torch.uint8), torch.device("cuda")
    for left, stays in ((200, False), (199, True)):
        monkeypatch.setattr(images_module, "memory_left", lambda _, left=left: left)
        assert stays_on_host(pixels, "auto", gpu) == stays
    assert "Images stay in main memory: they take" in capsys.readouterr().out
    assert not stays_on_host(pixels, "auto", CPU)
    assert stays_on_host(pixels, "host", CPU)
    assert not stays_on_host(pixels, "device", gpu)


@pytest.mark.slow
def test_training_is_the_same_wherever_the_images_are(tmp_path) -> None:
    options = ("data.augment.crop_padding=1", "recipe.epochs=2")
    one, other = (
        run_train(tmp_path / place, *options, f"data.placement={place}")
        for place in ("device", "host")
    )
    assert one.path.name == other.path.name, "the place is no part of what is computed"
    assert_same_weights(one, other)
