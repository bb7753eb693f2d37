"""Counts of arithmetic against hand-computed cases."""

import pytest
import torch

from asap_exp.benchmark import operators  # noqa: F401  (it registers its methods)
from asap_exp.benchmark.flops import Recipe, Work, count, floors
from asap_exp.benchmark.registry import Setting, build
from asap_exp.benchmark.shape import Shape
from asap_exp.timing.roofline import ceilings

SHAPE = Shape(batch=2, heads=3, n=10, head_dim=4)  # 60 tokens, 600 pairs
FLASH = Recipe(passes=1)
CEILINGS = {
    "product_tflops": 1e-6,  # a million per second
    "copy_gb_per_second": 1e-3,
    "exponentials_per_second": None,
}


def test_flash_is_two_products_forward_and_seven_with_backward() -> None:
    forward = count(FLASH, SHAPE, train=False, itemsize=2)
    assert forward == Work(flops=2 * 2 * 600 * 4, exponentials=600, bytes=4 * 240 * 2)
    train = count(FLASH, SHAPE, train=True, itemsize=2)
    assert train == Work(flops=7 * 2 * 600 * 4, exponentials=2 * 600, bytes=12 * 240 * 2)


def test_closure_is_three_products_and_two_exponentials() -> None:
    work = count(Recipe(passes=2, row_dual=True), SHAPE, train=False, itemsize=2)
    assert work.flops == 3 * 2 * 600 * 4
    assert work.exponentials == 2 * 600
    assert work.bytes == 4 * 240 * 2 + 60 * 4


def test_one_update_is_the_closure() -> None:
    setting = Setting(SHAPE, torch.device("cpu"), "reference", seed=0)
    teacher, closure = (build(name, setting).recipe for name in ("sinkhorn_1", "closure"))
    assert teacher is not None
    assert closure is not None
    assert teacher.passes == closure.passes == 2


def test_slices_add_their_projections_of_both_sides() -> None:
    plain, sliced = (
        count(Recipe(2, slices=slices), SHAPE, train=False, itemsize=2) for slices in (0, 8)
    )
    assert sliced.flops - plain.flops == 2 * (2 * 60 * 4 * 8)
    assert (sliced.exponentials, sliced.bytes) == (plain.exponentials, plain.bytes)


def test_coarse_duals_add_half_steps_on_the_subset_and_one_to_all_tokens() -> None:
    plain, coarse = (
        count(Recipe(1, subset=c, subset_passes=6), SHAPE, train=False, itemsize=2) for c in (0, 5)
    )
    entries = 2 * 3 * (6 * 5 * 5 + 10 * 5)
    assert coarse.exponentials - plain.exponentials == entries
    assert coarse.flops - plain.flops == 2 * 4 * entries


def test_floor_is_the_larger_of_products_and_bytes() -> None:
    assert floors(Work(500.0, 0.0, 200.0), CEILINGS)["floor_ms"] == pytest.approx(0.5)
    assert floors(Work(100.0, 0.0, 200.0), CEILINGS)["floor_ms"] == pytest.approx(0.2)


def test_exponentials_stand_beside_the_floor() -> None:
    work = Work(500.0, 1e6, 200.0)
    known = floors(work, {**CEILINGS, "exponentials_per_second": 1e9})
    assert known["exponentials_ms"] == pytest.approx(1.0)
    assert known["floor_ms"] == pytest.approx(0.5)
    assert floors(work, CEILINGS)["exponentials_ms"] is None


def test_nothing_is_counted_without_a_recipe() -> None:
    assert set(floors(None, CEILINGS).values()) == {None}


@pytest.mark.slow
def test_ceilings_are_measured() -> None:
    reached = ceilings(torch.device("cpu"), torch.float32)
    assert 0 < reached["product_tflops"] < 1000
    assert 0 < reached["copy_gb_per_second"] < 1e5


def test_exponentials_are_taken_one_after_the_other() -> None:
    exponentials = pytest.importorskip("asap_exp.timing.exponentials")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x = torch.arange(exponentials.BLOCK, device=device) / exponentials.BLOCK
    for _ in range(exponentials.ROUNDS):
        x = torch.exp2(-x)
    found = exponentials.take_exponentials(device)
    torch.testing.assert_close(found, x.repeat(exponentials.PROGRAMS), rtol=1e-5, atol=0)
    assert exponentials.count() == len(found) * exponentials.ROUNDS
