"""Plans of long sequences are stored by blocks of tokens."""

import torch

from asap_exp.evaluate.example_plan import by_blocks


def test_blocks_keep_the_means_of_row_and_column_sums() -> None:
    plan = torch.rand(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = by_blocks(plan, 2)
    torch.testing.assert_close(found[1, 2], plan[2:4, 4:6].sum() / 2)
    torch.testing.assert_close(found.sum(1), plan.sum(1).reshape(4, 2).mean(1))
    torch.testing.assert_close(found.sum(0), plan.sum(0).reshape(4, 2).mean(1))


def test_rows_of_a_last_block_that_is_not_whole_sum_to_one() -> None:
    plan = torch.softmax(torch.randn(7, 7, generator=torch.Generator().manual_seed(0)), dim=1)
    found = by_blocks(plan, 3)
    assert found.shape == (3, 3)
    torch.testing.assert_close(found.sum(1), torch.ones(3))


def test_blocks_of_one_token_are_the_plan() -> None:
    plan = torch.rand(5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(by_blocks(plan, 1), plan)
