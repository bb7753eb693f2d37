"""Pictures of the plans of one validation sample as a training goes on, for trackers."""

from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, pad

from asap_exp.attention import attention_layers, record_inputs
from asap_exp.engine.continued import Continued
from asap_exp.engine.module import net_of

NAME = "plan/example"
MOST_HEADS = 4
MOST_TOKENS = 64
"""Rows of a plan in the picture; those of a larger plan are means over blocks."""

GAP = -1.0
"""What stands between the plans."""
LEAST_PIXELS = 256
"""A smaller picture is enlarged to about this size."""


class PlanImages(L.Callback):
    """Callback that logs, after at most `count` validations, the plans of the first sample.

    A row of the picture is a layer, and a column a head. Brightness is the root of the mass, on one
    scale in all of them.
    """

    def __init__(self, count: int, epochs: int, every: int) -> None:
        """Choose `count` of the validations, which there are after `every` so many epochs."""
        validated = list(range(every - 1, epochs, every))
        chosen = np.linspace(0, len(validated) - 1, min(count, len(validated)))
        self.epochs = {validated[round(number)] for number in chosen}

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.current_epoch not in self.epochs:
            return
        assert trainer.val_dataloaders is not None
        inputs = next(iter(trainer.val_dataloaders.first(1)))[0]
        with trainer.precision_plugin.forward_context():
            plans = tiles(net_of(pl_module), inputs)  # on every rank: each may hold but a part
        for logger in trainer.loggers:
            if isinstance(logger, Continued):
                # The step at which Lightning logs this validation.
                step, epoch = trainer.global_step - 1, trainer.current_epoch
                logger.log_picture(NAME, coloured(plans), step, epoch)


def tiles(net: nn.Module, inputs: Any) -> Tensor:
    """Return the plans of the first sample side by side `[layers * tokens, heads * tokens]`."""
    with record_inputs(net) as recorded:
        net(inputs)
    rows = []
    for path, layer in attention_layers(net).items():
        q, k, _, mask = recorded[path][-1]
        plan = layer.attend.plan(q, k, key_padding_mask=mask)[0, :MOST_HEADS].float()
        if mask is not None:
            valid = ~mask[0]
            plan = plan[:, valid][:, :, valid]
        drawn = adaptive_avg_pool2d(plan, min(plan.shape[-1], MOST_TOKENS))
        rows.append(torch.cat([*pad(drawn, (0, 1, 0, 1), value=GAP)], dim=1))
    width = max(row.shape[1] for row in rows)
    return torch.cat([pad(row, (0, width - row.shape[1]), value=GAP) for row in rows])


def coloured(plan: Tensor) -> np.ndarray:
    """Return masses as a picture `[height, width, 3]` of bytes, and gaps as white."""
    from matplotlib import colormaps

    root = plan.clamp(min=0).sqrt()
    top = float(torch.quantile(root.flatten()[:: max(1, root.numel() // 10**6)], 0.995))
    shares = (root / max(top, 1e-12)).clamp(max=1).cpu().numpy()
    colours = (colormaps["magma"](shares)[..., :3] * 255).round().astype(np.uint8)
    colours[(plan < 0).cpu().numpy()] = 255
    scale = max(1, LEAST_PIXELS // max(plan.shape))
    return colours.repeat(scale, axis=0).repeat(scale, axis=1)
