"""Another attention that learns a teacher's plans, layer by layer, on the teacher's own inputs.

The loss of a layer is the cross-entropy of its rows with the teacher's as soft labels,

    -sum_j A_ij log A^_ij,   averaged over valid rows,

which differs from KL(A_i || A^_i) by the entropy of the teacher's row, a constant. Its gradient is
that of the KL, which is 0 where the plans agree, so the KL is what is computed and reported.
(Source: attention weight distillation of Hedgehog, arXiv 2402.04347.)
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asap_exp.attention import Attention, AttentionLayer
from asap_exp.attention.learned import LearnedAttention
from asap_exp.attention.swapping import named
from asap_exp.calibration.capture import checked_inputs
from asap_exp.calibration.data import Batches, CalibrationData, is_stand_in
from asap_exp.calibration.gradient import Found, best_of_each_head, reshuffled
from asap_exp.calibration.kept import Kept
from asap_exp.calibration.kl import mean_over_rows, rows_of_all
from asap_exp.calibration.steps import AdamFit, ImitationData, ImitationStep
from asap_exp.calibration.updates import CosineAdam
from asap_exp.core.errors import UserError


class Imitated(NamedTuple):
    """A recorded batch of one layer: q and k `[B, H, N, D]`, and the mask `[B, N]` or None.

    The teacher's plans are made again whenever they are needed: kept, a few batches of long
    sequences would fill the memory.
    """

    q: Tensor
    k: Tensor
    key_padding_mask: Tensor | None

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self if tensor is not None)


def imitated_layers(
    data: CalibrationData, batches: Batches, paths: Sequence[str]
) -> dict[str, list[Imitated]]:
    """Record the layers at `paths` on as many of the batches as `memory_mib` holds, at least one.

    Where not all fit, every second, fourth, ... of them; with several ranks each has its part.
    """
    name = partial(data.batch_name, batches)
    inputs = checked_inputs(data.net, batches, paths, data.precision, data.forward, name)
    what = "Batches to fit on" if batches is data.fit else "Batches to check on"
    kept: Kept[Imitated] = Kept(data.config.room)
    for number, recorded in enumerate(data.progress.track(inputs, what, len(batches))):
        if kept.wants(number):
            own = slice(0) if is_stand_in(batches, number) else slice(None)
            kept.add(
                {
                    path: [Imitated(*call.of_samples(own).copied()) for call in recorded[path]]
                    for path in paths
                }
            )
    return kept.by_path(paths)


def check_taught(step: ImitationStep, layers: Mapping[str, AttentionLayer]) -> None:
    """Raise UserError for a layer whose attention is not the one that `step` imitates."""
    for path, layer in layers.items():
        if layer.attend.name != step.teacher:
            raise UserError(
                f"the layer at {named(path)} has {layer.attend.name} attention, and the "
                f"calibration step {step.name} imitates {step.teacher} attention; choose layers "
                "that have it, or other steps"
            )


def total_kl(attend: Attention, teacher: Attention, batch: Imitated) -> Tensor:
    """Return KL(teacher's row || row of `attend`), summed over valid rows and samples: `[H]`.

    An entry that underflows counts as the smallest normal number. At padded places the teacher's
    are 0, and so is every term.
    """
    q, k, mask = batch
    with torch.no_grad():
        plan = teacher.plan(q, k, key_padding_mask=mask)
    found = attend.plan(q, k, key_padding_mask=mask)
    log = found.clamp(min=torch.finfo(found.dtype).tiny).log()
    return F.kl_div(log, plan, reduction="none").sum(dim=(0, 2, 3))


def mean_kl(attend: Attention, teacher: Attention, batches: Iterable[Imitated]) -> Tensor:
    """Return the mean over the valid rows of all `batches` and ranks: `[H]`, float64, in nats."""
    return mean_over_rows(lambda batch: total_kl(attend, teacher, batch), batches)


def fit_imitation(attend: LearnedAttention, data: ImitationData, settings: AdamFit) -> None:
    """Lower the KL from the teacher's plans over `data.fit`, in place, by its own parameters.

    Several ranks share each batch. Each head keeps its best values on `data.held_out`, the start
    included; that needs parameters whose first dimension are the heads.
    """

    def now() -> Found:
        return mean_kl(attend, data.teacher, data.held_out), values(attend)

    start = now()
    attend.requires_grad_(True)
    # Heads share no parameter: the sum of their means gives each its own gradient.
    adam = CosineAdam(
        lambda item: total_kl(attend, data.teacher, item[0]).sum() / item[1],
        attend.parameters(),
        settings.lr,
        settings.updates,
    )
    items = list(zip(data.fit, rows_of_all(data.fit), strict=True))
    batches = data.shown(reshuffled(items, settings.updates, data.seed), settings.updates)
    best = best_of_each_head(adam.update, batches, settings.updates, start, now)
    attend.requires_grad_(False)
    attend.take(best)


def values(attend: nn.Module) -> dict[str, Tensor]:
    """Copy the parameters by name."""
    return {name: x.detach().clone() for name, x in attend.named_parameters()}
