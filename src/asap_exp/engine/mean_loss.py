"""Mean loss of a validation."""

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanLoss(Metric):
    """Mean over the targets of all batches, and of all ranks.

    Lightning's own mean of a logged number divides the count of each rank's targets as a whole
    number, and torchmetrics' weighted mean makes the host wait for a look at NaN.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, count: int) -> None:
        """Add the mean loss of `count` targets."""
        self.total += loss * count
        self.count += count

    def compute(self) -> Tensor:
        return self.total / self.count
