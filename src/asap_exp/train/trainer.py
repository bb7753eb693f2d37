"""One training run, from a configuration to the teacher's weights in its run directory."""

from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from warnings import catch_warnings

import lightning as L

from asap_exp.attention import (
    CoarseAttention,
    attention_class,
    attention_layers,
    build_attention,
    canonical_options,
    warn_if_all,
)
from asap_exp.core.config import TrainConfig
from asap_exp.core.console import say, shown
from asap_exp.core.devices import choose_device, choose_precision, use_cpu_threads
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json
from asap_exp.core.interruption import postponed
from asap_exp.core.lineage import data_product, makes, reads, teacher_product, uploads
from asap_exp.core.locks import emptied_unless_begun, held
from asap_exp.core.manifest import TrainManifest, attempts_at, manifest
from asap_exp.core.memory import bounded
from asap_exp.core.objectives import Objective
from asap_exp.core.renamed import FITTED
from asap_exp.core.run_log import run_log
from asap_exp.core.runs import (
    Run,
    check_same_tokenizer,
    claim,
    identity,
    public_config,
    recipe_hash,
    refuse_other,
    run_directory,
    write_config,
)
from asap_exp.core.team import Team, alone
from asap_exp.core.tracking import require_tensorboard, wandb_run
from asap_exp.data import TaskDataModule, build_data
from asap_exp.engine.building import (
    build_callbacks,
    build_trainer,
    leaves_some_unused,
    quiet_lightning,
    refusals_in_words,
    require_weighted,
    set_micro_batch,
)
from asap_exp.engine.checkpoints import check_identity
from asap_exp.engine.diagnostics import PLAN_NUMBERS
from asap_exp.engine.module import net_of
from asap_exp.engine.recording_choice import set_recording
from asap_exp.models import build_net, compile_as_configured, tokens_of_images
from asap_exp.models.init_from import initial_facts, initial_run, initialise, with_initial
from asap_exp.train.export import export, summary
from asap_exp.train.finished import is_finished
from asap_exp.train.own_classes import build_module, origins, own_callbacks
from asap_exp.train.restart import fresh_run


@dataclass(frozen=True)
class Training:
    """Parts that a run is trained with: its resolved configuration and what was built from it."""

    config: TrainConfig
    module: L.LightningModule
    data: TaskDataModule
    team: Team
    callbacks: list[L.Callback]
    """The user's own callbacks."""
    initial: Run | None
    """Run whose weights the network starts from."""


@run_log("train")
def train(config: TrainConfig) -> Run:
    """Train or continue the run of `config`; a finished run is left as it is.

    On several devices each process calls this, and rank 0 alone writes.
    """
    callbacks = first_parts(config)
    team = Team(config.trainer.together, stops_together=True)
    check_strategy(config, team)
    with team.working():
        config, initial = settled(config)
        if team.leads:
            return lead(config, team, initial, callbacks)
        return follow(config, team, initial, callbacks)


def first_parts(config: TrainConfig) -> list[L.Callback]:
    """Return the user's own callbacks, before anything is loaded or written.

    Raises UserError if the attention, a callback or a logger cannot be made.
    """
    name = config.attention["name"]
    if attention_class(name).needs_calibration:
        raise UserError(FITTED.format(name=name))
    build_attention(config.attention)
    if config.logger.tensorboard:
        require_tensorboard()
    return own_callbacks(config)


def prepared(config: TrainConfig) -> Training:
    """Resolve `config` and build what it names, for one device; nothing is loaded or written."""
    callbacks = first_parts(config)
    team = alone(config.trainer.together)
    check_strategy(config, team)
    config, initial = settled(config)
    return built(config, team, initial, callbacks)


def check_strategy(config: TrainConfig, team: Team) -> None:
    """Raise UserError if a strategy needs GPUs and there are none."""
    if config.trainer.strategy == "fsdp" and team.device.type != "cuda":
        raise UserError(
            "trainer.strategy=fsdp needs GPUs, and there are none; set trainer.strategy=ddp"
        )


def built(
    config: TrainConfig, team: Team, initial: Run | None, callbacks: list[L.Callback]
) -> Training:
    """Return what `config` is trained with; the data are not loaded yet."""
    data = build_data(
        config.data,
        batch_size=config.recipe.batch_size,
        seed=config.seed,
        device=team.device,
        ranks=team.ranks,
    )
    use_cpu_threads(team.threads(config.trainer.cpu_threads))
    L.seed_everything(config.seed, workers=True, verbose=False)
    with bounded():
        net = build_net(config)
    if initial is not None:
        initialise(net, initial)
    module = build_module(config, net, data.num_classes)
    return Training(config, module, data, team, callbacks, initial)


def load(training: Training) -> bool:
    """Load the data, and see that the memory suffices.

    Returns True if the loss does not depend on some weights, or may not.
    """
    config, data, initial = training.config, training.data, training.initial
    data.setup()
    data.warn_of_few_samples()
    net = net_of(training.module)
    for layer in [*attention_layers(net).values()][:1]:  # all layers have the same options
        if isinstance(layer.attend, CoarseAttention):
            warn_if_all(tokens_of_images(net), layer.attend.tokens, "attention.tokens")
    if initial is not None:
        check_same_tokenizer(data.identity, initial)
    require_weighted(config, training.module)
    device = training.team.device
    with bounded() if device.type == "cpu" else nullcontext():  # CUDA reserves more than it uses
        unused = set_micro_batch(config, training.module, data, device)
    return leaves_some_unused(config, training.module, unused)


def lead(config: TrainConfig, team: Team, initial: Run | None, callbacks: list[L.Callback]) -> Run:
    """Train as rank 0, which prepares the run and writes its results."""
    training = built(config, team, initial, callbacks)
    data, module, device = training.data, training.module, team.device
    place = run_directory(config)
    with held(place), emptied_unless_begun(place):
        if config.resume != "never":
            refuse_other(config)
        if config.resume == "auto" and is_finished(Run(place), data):
            return Run(place)
        some_unused = load(training)
        run = claim(config)
        stamp = content_stamp(config, data, initial)
        tell_of_kill(run)
        checkpoint = checkpoint_to_resume(config, run, stamp)
        if checkpoint is not None:
            say(f"Continuing from {shown(checkpoint)}")
        compile_as_configured(net_of(module), config, device)
        set_recording(config, module, device, callbacks)
        facts = {
            "config": public_config(config),
            "recipe_hash": recipe_hash(config, initial),
            "data": data.identity,
            "initial": None if initial is None else initial_facts(initial),
            "parameters": num_parameters(module),
            **attempt(run, checkpoint),
            **origins(config.attention["name"], module, callbacks),
        }
        with ExitStack() as stack:
            if config.resume == "never":
                run = stack.enter_context(fresh_run(config, run, lambda: module.global_step > 0))
            say(f"Run directory: {shown(run.path)}")
            data.save(run.path)
            team.begin((None if checkpoint is None else str(checkpoint), some_unused))
            fit(training, run, stamp, checkpoint, facts, some_unused=some_unused)
    return run


def follow(
    config: TrainConfig, team: Team, initial: Run | None, callbacks: list[L.Callback]
) -> Run:
    """Train as another rank than 0, which writes nothing, once rank 0 has prepared the run."""
    run = Run(run_directory(config))
    orders = team.orders()
    if not team.works:
        return run
    checkpoint, some_unused = orders
    training = built(config, team, initial, callbacks)
    training.data.setup()
    compile_as_configured(net_of(training.module), config, team.device)
    with (
        quiet_lightning(),
        refusals_in_words(config),
        catch_warnings(action="ignore"),
        postponed(quiet=True) as stop,
    ):
        callbacks = build_callbacks(config, run, team.device, stop, {}, callbacks)
        trainer = build_trainer(
            *(config, run, team.device, None, callbacks, team.environment), some_unused=some_unused
        )
        trainer.fit(
            training.module, datamodule=training.data, ckpt_path=checkpoint, weights_only=True
        )
    return run


def fit(
    training: Training,
    run: Run,
    stamp: dict[str, Any],
    checkpoint: Path | None,
    facts: dict[str, Any],
    *,
    some_unused: bool,
) -> None:
    """Run the training with its tracker and manifest, and write its results."""
    config, module, team = training.config, training.module, training.team
    with (
        wandb_run(
            config.logger,
            public_config(config),
            folder=run.path,
            label=run.label,
            group=run.group,
            job_type="train",
            tags=[str(config.task.name), config.attention["name"]],
            run_id=run.tracking_id,
        ) as tracker,
        manifest(run.path / "manifest.json", stage="train", seed=config.seed, **facts) as record,
        quiet_lightning(),
        refusals_in_words(config),
    ):
        if tracker is not None:
            set_axes(tracker, config.objective, layers=config.model.depth)
        reads(tracker, data_product(config.data.name, "train", training.data.identity))
        if training.initial is not None:
            reads(tracker, teacher_product(training.initial))
        with team.unbroken(), postponed() as stop:
            callbacks = build_callbacks(config, run, team.device, stop, stamp, training.callbacks)
            trainer = build_trainer(
                *(config, run, team.device, tracker, callbacks, team.environment),
                some_unused=some_unused,
            )
            trainer.fit(module, datamodule=training.data, ckpt_path=checkpoint, weights_only=True)
            stop.obey()
        record |= export(config, run, module, trainer)
        if not (run.path / "config.yaml").is_file():  # deleted during training
            write_config(config, run.path)
        if tracker is not None:
            tracker.summary.update({name: record[name] for name in SUMMARY if name in record})
            tracker.log({"curves": curves_table(run)})
        makes(tracker, teacher_product(run, record), *uploads(config.logger, run.weights))
    if record["epochs"] < config.recipe.epochs:
        say(f"Stopped after epoch {record['epochs']} of {config.recipe.epochs}")
    if config.trainer.profiler:
        say(f"Profile: {shown(run.path / 'profile')}")
    say(f"Finished: {shown(run.path)}  {summary(record)}")


SUMMARY = (
    "parameters",
    "kept_epoch",
    "epochs",
    "train_seconds",
    "validate_seconds",
    "compile_seconds",
    "best_val_accuracy",
    "best_val_perplexity",
)
"""Facts of a manifest that a run's summary on wandb holds, beside the last metrics."""


def curves_table(run: Run) -> Any:
    """Return the curves of a run as a table of wandb: a row per epoch, over all attempts."""
    import wandb

    rows = read_json(run.curves)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return wandb.Table(names, [[row.get(name) for name in names] for row in rows])


def set_axes(tracker: Any, objective: Objective, layers: int) -> None:
    """Choose the x axes on wandb, and what the summary keeps of each number.

    What is logged once an epoch is drawn over the epoch, so that runs of other batch sizes compare;
    all else over the step. The summary has the best and the last validation.
    """
    tracker.define_metric("epoch", hidden=True)
    tracker.define_metric("trainer/global_step", hidden=True)
    tracker.define_metric("*", step_metric="trainer/global_step")
    # By name: which of two patterns wandb takes for a number that both match is left to chance.
    plans = [f"plan/{layer}/{what}" for layer in range(layers) for what in PLAN_NUMBERS]
    for name in ("train/loss_epoch", "wait/data", *plans):
        tracker.define_metric(name, step_metric="epoch")
    best = "min" if objective.lower_is_better else "max"
    kept = {"val/loss": "min", f"val/{objective.metric}": best, objective.validation: best}
    for name, which in kept.items():
        tracker.define_metric(name, step_metric="epoch", summary=f"{which},last")


def settled(config: TrainConfig) -> tuple[TrainConfig, Run | None]:
    """Return `config` as its run will have it, and the run that its weights start from."""
    initial = initial_run(config)
    return with_initial(resolved(config), initial), initial


def resolved(config: TrainConfig) -> TrainConfig:
    """Return `config` with `auto` resolved on this machine and every option of its attention.

    Both are part of the run's identity.
    """
    device = choose_device(config.trainer.accelerator, "trainer.accelerator")
    precision = choose_precision(config.trainer.precision, device)
    return replace(
        config,
        attention=canonical_options(config.attention),
        trainer=replace(config.trainer, precision=precision),
    )


def num_parameters(module: L.LightningModule) -> int:
    return sum(p.numel() for p in net_of(module).parameters())


def content_stamp(config: TrainConfig, data: TaskDataModule, initial: Run | None) -> dict[str, Any]:
    """Return what a checkpoint must match to be continued: configuration, data, initial weights."""
    stamp = {**identity(config), "seed": config.seed, "data_content": data.content_hashes()}
    if initial is not None:
        stamp["initial_sha256"] = initial.manifest.teacher_sha256
    return stamp


def tell_of_kill(run: Run) -> None:
    """Say so if the last attempt at `run`, whose directory this process holds, was killed."""
    attempts = attempts_at(run.path / "manifest.json", TrainManifest)
    if attempts and attempts[-1]["status"] == "running":
        say(
            f"The last attempt at {shown(run.path)} was killed, perhaps for lack of memory: it did "
            "not write how it ended"
        )


def attempt(run: Run, checkpoint: Path | None) -> dict[str, Any]:
    """Return what the manifest records about the attempts that this one continues."""
    if checkpoint is None:
        return {"resumed_from": None, "earlier_attempts": []}
    # A damaged manifest has been reported when it was read.
    attempts = attempts_at(run.path / "manifest.json", TrainManifest)
    return {"resumed_from": checkpoint.name, "earlier_attempts": attempts}


def checkpoint_to_resume(config: TrainConfig, run: Run, stamp: dict[str, Any]) -> Path | None:
    """Return the checkpoint to continue from, or None.

    Raises UserError if it belongs to another configuration.
    """
    if config.resume == "never":
        return None
    path = run.checkpoint if config.resume == "auto" else Path(config.resume)
    if config.resume == "auto" and not path.is_file():
        return None
    check_identity(path, stamp)
    return path
