"""Compile a frozen teacher to coarse duals: nothing is fitted, so no data is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from asap_exp.attention import Attention, attention_layers
from asap_exp.calibration.artifact import (
    check_belongs,
    layers_fingerprint,
    load_artifact,
    load_fidelity,
    make_artifact,
    save_artifact,
)
from asap_exp.calibration.coarse import check_tokens, coarse_layers, identity_without_fit
from asap_exp.calibration.config import ONE_PASS
from asap_exp.calibration.teacher import teacher_identity
from asap_exp.core.console import say, shown, warn
from asap_exp.core.errors import UserError
from asap_exp.core.lineage import reads, teacher_product
from asap_exp.core.locks import part_held
from asap_exp.core.manifest import manifest
from asap_exp.core.run_log import run_log
from asap_exp.core.runs import Run, public_config, short_hash, stage_finished
from asap_exp.distill.config import DistillConfig
from asap_exp.distill.distill import artifact_key, chosen_layers, log_map, tokens_of
from asap_exp.distill.tracking import map_run
from asap_exp.models import load_net
from asap_exp.models.teachers import find_teacher


@dataclass(frozen=True)
class Coarse:
    """What coarse attention takes the place of, and the folder and identity of the artifact."""

    run: Run
    net: nn.Module
    attends: dict[str, Attention]
    folder: Path
    identity: dict[str, Any]

    def is_made(self) -> bool:
        """Return True, and print it, if this teacher has such an artifact; redo a damaged one."""
        try:
            if not stage_finished(self.folder):
                return False
            artifact = load_artifact(self.folder)
            check_belongs(artifact, self.identity, self.folder)
            load_fidelity(self.folder, artifact)
        except UserError as error:
            warn(f"{error}\nIt is compiled again")
            return False
        say(f"Already compiled: {shown(self.folder)} (remove it to compile again)")
        return True


def coarse_asked(config: DistillConfig) -> Coarse:
    """Find and load the teacher, print which, and build the attention; UserError if neither can."""
    run = find_teacher(config.paths, config.task.name, config.teacher, exact=True)
    keys, form = config.calibration.coarse, config.calibration.form
    check_tokens(keys, tokens_of(run))
    net = load_net(run, "cpu")
    paths = chosen_layers(config.layer, list(attention_layers(net)))
    attends = coarse_layers(net, paths, keys, one_pass=form == ONE_PASS)
    folder = run.path / "distill" / short_hash(artifact_key(config, paths))
    identity = {
        **teacher_identity(run, net),
        "layers_sha256": layers_fingerprint(net, paths),
        **identity_without_fit(keys, form),
    }
    return Coarse(run, net, attends, folder, identity)


@run_log("distill")
def distill_without_fit(config: DistillConfig) -> Path:
    """Put coarse attention in the place of a teacher's layers; return the artifact's folder."""
    wanted = coarse_asked(config)
    run, folder, attends = wanted.run, wanted.folder, wanted.attends
    public = public_config(config) | {"layers": list(attends)}
    with part_held(run.path, folder):
        if wanted.is_made():
            return folder
        facts = {
            "stage": "distill",
            "seed": config.calibration.seed,
            "teacher": run.name,
            "config": public,
        }
        with (
            map_run(config, run, public, folder) as tracker,
            manifest(folder / "manifest.json", **facts),
        ):
            reads(tracker, teacher_product(run))
            save_artifact(folder, make_artifact(attends, {}, wanted.identity), [])
            log_map(tracker, config.logger, run, folder)
    for path, attend in attends.items():
        say(f"{path}: {attend.extra_repr()}")
    say(
        f"Compiled {len(attends)} of {len(attention_layers(wanted.net))} layers, without a fit and "
        f"without data: {shown(folder)}"
    )
    return folder
