"""Facts that a compiled map and the teacher it is put into must agree on."""

from typing import Any

from torch import nn

from asap_exp.attention import (
    Attention,
    SinkhornAttention,
    SoftmaxAttention,
    attention_layers,
)
from asap_exp.calibration.artifact import teacher_layers
from asap_exp.core.runs import Run


def teacher_identity(run: Run, net: nn.Module) -> dict[str, Any]:
    """Return what an artifact and the model it is put into must agree in."""
    layer = next(iter(attention_layers(net).values()))
    updates: dict[str, Any] = {}
    if isinstance(layer.attend, SinkhornAttention):
        kind: type[Attention] = SinkhornAttention
        updates = {"num_iters": layer.attend.num_iters, "eps": layer.attend.eps}
    else:
        kind = SoftmaxAttention
    return {
        "teacher_run": run.name,
        "teacher_sha256": run.manifest.teacher_sha256,
        "task": run.config.task.name,
        **updates,
        "heads": layer.num_heads,
        "head_dim": layer.head_dim,
        "teacher_layers": teacher_layers(net, kind),
    }
