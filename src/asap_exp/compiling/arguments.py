"""Checks of what users pass to `asap_exp.compile`, in the words of its arguments."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from numbers import Real
from typing import Any, get_args

from torch import Tensor, nn

from asap_exp.attention import CoarseAttention, attention_layers, attention_options
from asap_exp.attention.conversion.families import WRITTEN_OUT
from asap_exp.attention.swapping import layers_at, named
from asap_exp.calibration.artifact import teacher_layers
from asap_exp.calibration.config import COARSE, FURTHER_FEATURES, CoarseKeys
from asap_exp.calibration.steps import STEPS, StartStep, Step, names_of, with_settings
from asap_exp.core.errors import UserError, check_choice, check_range
from asap_exp.core.schema import closest, field_of, type_name

PREFIX = "calibration."
PLAIN = {int, float, bool, str, type(None)}
"""Types of settings that are checked here."""
IN_PYTHON = {
    "=true": "=True",
    "=false": "=False",
    "got false": "got False",
    "form=one_pass": "one_pass=True",
    "form=two_sided": "one_pass=False",
    "; without any, coarse.tokens must be given": "",
}
OF_THE_TEACHER = ("num_iters", "eps")
"""Options of coarse attention that a compiled layer takes from the model's."""

OF_COMPILE = ("seed", "backend")
OF_TRAINING = ("refine", "implicit_steps")

SINKHORN = (
    'Put it in with asap_exp.convert(model, attention="sinkhorn", num_iters=20), then train on: a '
    "map is fitted to the plans of a trained model"
)

GIVE_MEMORY = 'give it memory with model.to_empty(device="cpu"), and load its weights'


@contextmanager
def in_words_of_arguments() -> Iterator[None]:
    """Name keys of the configuration, which has the same checks, as the arguments they are."""
    try:
        yield
    except UserError as error:
        words = str(error).replace(PREFIX, "")
        for yaml, python in IN_PYTHON.items():
            words = words.replace(yaml, python)
        key = None if error.key is None else error.key.removeprefix(PREFIX)
        raise UserError(
            words, key=key, value=error.value, allowed=error.allowed, hint=error.hint
        ) from None


def check_loader(loader: Any) -> None:
    """Raise UserError unless `loader` gives batches."""
    if loader is None:
        raise UserError(
            "loader must be given: batches to fit maps to, for example loader=x.split(64). Only "
            "method='coarse' needs none"
        )
    if isinstance(loader, Tensor):
        raise UserError(
            f"loader is one tensor of shape {tuple(loader.shape)}; it must give batches, for "
            "example loader=x.split(64)"
        )
    if isinstance(loader, str | bytes | Mapping) or not isinstance(loader, Iterable):
        raise UserError(
            f"loader is a {type(loader).__name__}; it must give batches: a DataLoader, or a list "
            "of tensors, tuples, mappings or dataclasses"
        )


def check_forward(forward: Any) -> None:
    """Raise UserError unless `forward` can be called."""
    if not callable(forward):
        raise UserError(
            f"forward={forward!r} must be a function of the model and a batch, for example "
            "forward=lambda model, batch: model(batch['x']); leave it out for model(batch)"
        )


def check_whole_numbers(**given: Any) -> None:
    for name, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"{name}={value!r} has the wrong type; it must be a whole number")


def check_switches(**given: Any) -> None:
    for name, value in given.items():
        if not isinstance(value, bool):
            raise UserError(f"{name}={value!r} has the wrong type; it must be True or False")


def check_shares(**given: Any) -> None:
    """Raise UserError unless each is a number, and `holdout` a share."""
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise UserError(f"{name}={value!r} has the wrong type; it must be a number")
    check_range("holdout", given["holdout"], above=0, below=1)


def check_relaxed(relaxed: bool, refine: int, steps: Sequence[str]) -> None:
    """Raise UserError for a relaxation that no update has, or that no step learns."""
    if relaxed and refine == 0:
        raise UserError(
            "relaxed=True has no effect with refine=0: it says how far these updates go; set "
            "relaxed=False, or refine"
        )
    if relaxed and len(steps) < 2:
        raise UserError(
            f"relaxed=True has no effect with steps={list(steps)}: a step by gradient learns it; "
            'set relaxed=False, or steps=("ridge", "learned_slices")'
        )


def check_steps(steps: Any) -> list[str]:
    """Return `steps` as a list; UserError unless they are names of steps, and one at least."""
    names = not isinstance(steps, str) and isinstance(steps, Iterable)
    chosen = list(steps) if names else []
    if not names or not all(isinstance(step, str) for step in chosen):
        example = [steps] if isinstance(steps, str) else ["ridge", "learned_slices"]
        raise UserError(f"steps={steps!r} must be a list of names, for example {example}")
    if not chosen:
        raise UserError(
            f"steps={chosen} must begin with {' or '.join(names_of(StartStep))}; without any fit "
            "there are coarse duals: method='coarse', tokens=..."
        )
    of_sinkhorn = tuple(name for name, step in STEPS.items() if step.teacher == Step.teacher)
    for step in chosen:
        if step in STEPS and step not in of_sinkhorn:
            raise UserError(
                f"steps={chosen!r} cannot have {step}, which is fitted to a "
                f"{STEPS[step].teacher} teacher, and compile replaces Sinkhorn attention; take "
                f"{', '.join(of_sinkhorn)}"
            )
        check_choice("steps", step, of_sinkhorn)
    return chosen


def check_more(given: Mapping[str, Any], steps: Sequence[str], own: Collection[str]) -> None:
    """Refuse a keyword that is no setting of a step taken and no feature, or has another type.

    `own` are the keywords that `compile` names itself.
    """
    settings = {
        name: step for name, step in with_settings().items() if step.teacher == Step.teacher
    }
    for name, value in given.items():
        if name in FURTHER_FEATURES:
            check_switches(**{name: value})
            continue
        if name == COARSE:
            check_coarse(value)
            continue
        if name not in settings:
            known = of_coarse(name)
            raise TypeError(
                f"compile() takes no keyword {name!r}{'' if known else meant(name, own)}; the "
                f"steps with settings are {', '.join(settings)}, and {COARSE} is the feature that "
                f"has some{known}"
            )
        wanted = type(settings[name].settings)
        if not isinstance(value, wanted):
            keys = ", ".join(f"{field.name}=..." for field in fields(wanted))
            raise UserError(
                f"{name}={value!r} has the wrong type; it must be {wanted.__name__}({keys})"
            )
        check_types(name, value)
        if name not in steps:
            raise UserError(
                f"{name}={value!r} has no effect: {name} is not among steps={list(steps)}"
            )


def of_coarse(name: str) -> str:
    """Return a sentence on a keyword that is an option of coarse attention, or nothing."""
    if name in coarse_options():
        return f". {name} is of method='coarse', which takes no loader"
    if name in OF_THE_TEACHER:
        return f". {name} is that of the model's own Sinkhorn layers, with which it was trained"
    return ""


def of_asap(name: str) -> str:
    """Return a sentence on a keyword that a fit alone has, or nothing."""
    if name in {*with_settings(), *FURTHER_FEATURES, COARSE}:
        return f". {name} is of method='asap', which fits maps to the batches of a loader"
    return ""


def coarse_options() -> list[str]:
    """Return the options of coarse attention that `method="coarse"` takes."""
    others = OF_THE_TEACHER + OF_COMPILE + OF_TRAINING
    return [name for name in attention_options(CoarseAttention.name) if name not in others]


def meant(name: str, known: Collection[str]) -> str:
    """Return a question for the keyword that `name` is probably a misspelling of, or nothing."""
    close = closest(name, known)
    return f" (did you mean {close[0]}?)" if close else ""


def check_coarse(value: Any) -> None:
    """Raise UserError unless `value` says which tokens a coarse dual is made of."""
    if not isinstance(value, CoarseKeys) or value.tokens is None:
        raise UserError(
            f"coarse={value!r} must be CoarseKeys(tokens=...) of asap_exp.calibration.config"
        )
    check_types(COARSE, value)


def check_types(name: str, settings: Any) -> None:
    """Raise UserError for a field of a settings object whose value is of another type."""
    schema = type(settings)
    for field in fields(schema):
        value, found = getattr(settings, field.name), field_of(schema, field.name)
        kinds = set() if found is None else {*(get_args(found[0]) or (found[0],))}
        if not kinds or not kinds <= PLAIN:
            continue  # of a step of another package, which knows its own types
        others = {int} if float in kinds else set()
        right = bool in kinds if isinstance(value, bool) else isinstance(value, (*kinds, *others))
        if not right:
            raise UserError(
                f"{name}.{field.name}={value!r} has the wrong type; it must be "
                f"{type_name(schema, field.name)}"
            )


def check_has_weights(model: nn.Module, advice: str = GIVE_MEMORY) -> None:
    """Raise UserError, which ends with `advice`, if a weight has a shape but no values."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise UserError(
                f"the weights of this {type(model).__name__} are not there: {name} is on the meta "
                f"device; {advice}"
            )


def sinkhorn_paths(model: nn.Module, layers: Sequence[str] | None) -> list[str]:
    """Return the paths of the layers to compile; UserError if one is not a Sinkhorn layer."""
    found = teacher_layers(model)
    if not found:
        kinds = {layer.attend.name for layer in attention_layers(model).values()}
        holds = f"only {', '.join(sorted(kinds))} attention" if kinds else "no MultiHeadAttention"
        raise UserError(
            f"this {type(model).__name__} holds {holds}, and compile replaces Sinkhorn attention. "
            f"{SINKHORN}" + ("" if kinds else f". {WRITTEN_OUT}")
        )
    if layers is None:
        return list(found)
    names = not isinstance(layers, str) and isinstance(layers, Iterable)
    if not names or not all(isinstance(path, str) for path in layers) or not list(layers):
        raise UserError(f"layers={layers!r} must be a list of paths; the model has {named(*found)}")
    for path, layer in layers_at(model, layers).items():
        if path not in found:
            raise UserError(
                f"the layer at {named(path)} has {layer.attend.name} attention; only Sinkhorn "
                f"layers can be compiled: {named(*found)}. {SINKHORN}"
            )
    return [path for path in found if path in layers]
