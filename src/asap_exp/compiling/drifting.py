"""Drift of a compiled model's activations since its calibration."""

from typing import Any

from torch import nn

from asap_exp.attention import AsapAttention, attention_layers
from asap_exp.calibration.artifact import Artifact
from asap_exp.calibration.batches import call, check_not_empty, on_device
from asap_exp.calibration.capture import Forward
from asap_exp.calibration.drift import column_errors, drift_ratios
from asap_exp.compiling.arguments import check_forward
from asap_exp.compiling.saving import artifact_of, in_words_of_the_library
from asap_exp.compiling.wrappers import check_model
from asap_exp.core.agreement import apart
from asap_exp.core.devices import AUTOCAST_DTYPES, device_of
from asap_exp.core.errors import UserError, check_choice

PRECISIONS = ("32-true", *AUTOCAST_DTYPES)


@apart()
def drift(
    model: nn.Module, batch: Any, *, precision: str = "32-true", forward: Forward = call
) -> dict[str, float]:
    """Return the column error of each compiled layer on `batch` over that at calibration, by layer.

    It is about 1 on data like that of the calibration (0.8 to 1.2 for 16 samples) and grows as the
    activations drift. Above 1.2 look at the data; above 1.5 compile again, on such data: there the
    compiled model has been several times as far from its teacher (docs/own_model.md). It builds the
    plans `[B, H, N, N]`, so it costs more than a forward pass: call it occasionally.

    Coarse layers (`method="coarse"`), which were not calibrated, are left out.

    Raises UserError if there are no others, nothing is known of the calibration of a map, or the
    batch has no samples.
    """
    check_model(model, "drift")
    check_forward(forward)
    check_choice("precision", precision, PRECISIONS)
    artifact_of(model)
    at_calibration = errors_at_calibration(model)
    if not at_calibration:
        raise UserError(
            "nothing was fitted to the layers of this model, which are coarse: there are no column "
            "errors at a calibration to compare with. Coarse duals follow the activations, so that "
            "a drift asks for no new calibration"
        )
    check_not_empty(batch)
    batches = [on_device(batch, device_of(model))]
    with in_words_of_the_library():
        now = column_errors(model, batches, at_calibration, precision, forward)
    return drift_ratios(now, at_calibration)


def errors_at_calibration(model: nn.Module) -> dict[str, float]:
    """Return the column error that each map of `model` had, by layer, whichever call made it.

    UserError if that of a map is not known.
    """
    known: dict[str, float] = {}
    for place, module in model.named_modules():
        artifact = module.__dict__.get("asap_artifact")
        while isinstance(artifact, Artifact):  # the newest first
            for path, error in (artifact.about.column_error or {}).items():
                known.setdefault(".".join(filter(None, (place, path))), error)
            artifact = artifact.before
    layers = attention_layers(model)
    maps = [path for path, layer in layers.items() if isinstance(layer.attend, AsapAttention)]
    if unknown := [path for path in maps if path not in known]:
        raise UserError(
            f"there is no calibration to compare with of the maps at {', '.join(unknown)}, which "
            "are from a state_dict; load them from a folder, or compile them again"
        )
    return {path: known[path] for path in layers if path in known}
