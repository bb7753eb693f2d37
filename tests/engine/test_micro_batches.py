"""Parts of a batch: their losses and gradients add up to those of the whole batch."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from asap_exp.core.config import TrainConfig
from asap_exp.core.runs import run_name
from asap_exp.core.tensors import load_tensors
from asap_exp.core.training_log import training_curves
from asap_exp.data.loader import Batch
from asap_exp.data.tokens import TokenBatch
from asap_exp.engine.micro_batches import MicroBatch
from asap_exp.engine.module import Classifier
from asap_exp.models import build_net
from asap_exp.train.trainer import train
from tests.stages import TINY_TEXT, train_config

CLASSES = 10


def images(generator: torch.Generator) -> Batch:
    labels = torch.rand(13, CLASSES, generator=generator, dtype=torch.float64)
    return torch.randn(13, 1, 8, 8, generator=generator).double(), labels.softmax(-1)


def texts(generator: torch.Generator, *, masked: bool) -> Batch:
    """Return 7 texts of 48 tokens; if `masked`, with predicted tokens in all but the last two."""
    ids = torch.randint(4, 400, (7, 48), generator=generator)
    padding = torch.arange(48) >= torch.randint(20, 49, (7, 1), generator=generator)
    if not masked:
        return TokenBatch(ids, padding), torch.randint(4, (7,), generator=generator)
    positions = torch.randperm(5 * 48, generator=generator)[:31]
    return TokenBatch(ids, padding, positions), torch.randint(400, (31,), generator=generator)


def module_of(config: TrainConfig) -> Classifier:
    torch.manual_seed(0)
    net = build_net(config).double()
    return Classifier(net, config.recipe, num_classes=CLASSES, seed=0)


def gradient(module: Classifier, batch: Batch, size: MicroBatch) -> tuple[Tensor, list[Tensor]]:
    module.zero_grad()
    loss = torch.zeros((), dtype=torch.float64)
    for inputs, targets, share in size.split(batch):
        part = share * module.loss_of(inputs, targets)
        part.backward()
        loss += part.detach()
    return loss, [weight.grad.clone() for weight in module.net.parameters()]


TASKS = {
    "images": ((), None),
    "texts": (("task=agnews",), False),
    "masked": (("task=agnews_mlm", "data.layout=texts"), True),
}


@pytest.mark.parametrize("size", [MicroBatch(1), MicroBatch(3), MicroBatch(5), MicroBatch(2, 150)])
@pytest.mark.parametrize("task", TASKS)
def test_parts_add_up_to_the_batch(task: str, size: MicroBatch) -> None:
    overrides, masked = TASKS[task]
    generator = torch.Generator().manual_seed(0)
    plain = ("model.dropout=0", "model.drop_path=0", "recipe.label_smoothing=0.1")
    if masked is None:
        module = module_of(train_config(Path("unused"), *plain))
        batch = images(generator)
    else:
        module = module_of(train_config(Path("unused"), *overrides, *plain, tiny=TINY_TEXT))
        batch = texts(generator, masked=masked)
    loss, expected = gradient(module, batch, MicroBatch(1000, 10**6))
    assert len(size.split(batch)) > 1
    found_loss, found = gradient(module, batch, size)
    torch.testing.assert_close(found_loss, loss)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_parts_are_of_nearly_equal_size_and_of_as_many_tokens_as_allowed() -> None:
    batch = torch.zeros(100, 2), torch.arange(100)
    parts = MicroBatch(30).split(batch)
    assert [len(part.targets) for part in parts] == [25] * 4
    assert torch.cat([part.targets for part in parts]).equal(batch[1])
    short, long = (TokenBatch(torch.zeros(8, length, dtype=torch.long)) for length in (10, 40))
    sizes = [[len(p.inputs) for p in MicroBatch(2, 80).split((b, torch.arange(8)))]
             for b in (short, long)]  # fmt: skip
    assert sizes == [[8], [2, 2, 2, 2]]
    (whole,) = MicroBatch(100).split(batch)
    assert whole.inputs is batch[0]
    assert whole.share == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("data.augment.mixup=0.8", "data.augment.cutmix=1.0"),
        ("recipe.ema_decay=0.9", "trainer.accumulate_grad_batches=2"),
        ("trainer.precision=bf16-mixed",),
    ],
    ids=["mixed", "averaged", "bf16"],
)
def test_run_in_parts_is_the_run_of_whole_batches(tmp_path: Path, options: tuple[str, ...]) -> None:
    configs = [
        train_config(tmp_path / name, *options, *size)
        for name, size in {"whole": (), "parts": ("trainer.micro_batch=7",)}.items()
    ]
    assert run_name(configs[0]) == run_name(configs[1])
    whole, parts = map(train, configs)
    tolerance = 2e-2 if "bf16" in "".join(options) else 2e-5
    expected = load_tensors(whole.weights)
    for name, tensor in load_tensors(parts.weights).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=tolerance)
    for one, other in zip(training_curves(parts.path), training_curves(whole.path), strict=True):
        for name in ("train/loss_epoch", "val/loss", "plan/0/entropy", "plan/1/column_error"):
            assert one[name] == pytest.approx(other[name], abs=tolerance), name
        assert one["val/accuracy"] == pytest.approx(other["val/accuracy"], abs=0.02)


class Diverging(nn.Module):
    """Network whose output is NaN for samples above 1."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.where(x < 1, float("nan"))


def test_part_whose_loss_is_not_finite_is_found() -> None:
    config = train_config(Path("unused"))
    module = Classifier(Diverging(), config.recipe, num_classes=2, seed=0)
    module.micro_batch = MicroBatch(1)
    parts = module.micro_batch.split((torch.tensor([[0.0, 0.5], [2.0, 0.0]]), torch.tensor([0, 1])))
    for part in parts:
        module._part_loss(part)
    assert [bool(check.finite) for check in module._checks] == [True, False]
