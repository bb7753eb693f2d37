"""What ranks agree on: one word for numbers and for tensors."""

import os

import pytest
import torch

from asap_exp.core.agreement import largest, total
from tests.several import agreed


def test_a_single_process_agrees_with_itself() -> None:
    values = torch.tensor([3.0, -1.0])
    for function in (largest, total):
        assert function(values) is values
        assert function(7) == 7


@pytest.mark.slow
def test_largest_and_total_of_numbers_and_of_tensors() -> None:
    def found() -> dict[str, object]:
        rank = int(os.environ["LOCAL_RANK"])
        torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
        values = torch.tensor([[1.0, -5.0], [10.0, 2.0]])[rank].requires_grad_()
        parts = torch.tensor([[0, 1], [2, 3]])[:, rank]  # not contiguous
        result = {
            "largest": largest(values).tolist(),
            "total": total(values).tolist(),
            "total of integers": total(parts).tolist(),
            "numbers": (largest(4 - rank), total(4 - rank)),
            "kinds": (type(largest(rank)).__name__, str(total(parts).dtype)),
            "gradient": largest(values).requires_grad or total(values).requires_grad,
        }
        own = [[1.0, -5.0], [10.0, 2.0]][rank]
        result["untouched"] = values.tolist() == own
        return result

    assert agreed(found) == {
        "largest": [10.0, 2.0],
        "total": [11.0, -3.0],
        "total of integers": [1, 5],
        "numbers": (4, 7),
        "kinds": ("int", "torch.int64"),
        "gradient": False,
        "untouched": True,
    }
