"""Models in wrappers, whose layers have other paths than the model's."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn
from torch.optim.swa_utils import AveragedModel

import asap_exp
from asap_exp.core.errors import UserError
from tests.small_model import Classifier, loader, tokens


def optimised(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


def of_fabric(model: nn.Module) -> Any:
    return Fabric(accelerator="cpu", devices=1).setup(model)


WRAPPERS = {
    "_orig_mod": optimised,
    "module": AveragedModel,
    "module._orig_mod": lambda model: nn.DataParallel(optimised(model)),
}
wrappers = pytest.mark.parametrize(("inner", "wrap"), WRAPPERS.items(), ids=list(WRAPPERS))


@pytest.mark.parametrize(
    ("inner", "wrap"), [*WRAPPERS.items(), ("module", of_fabric)], ids=[*WRAPPERS, "fabric"]
)
def test_the_model_itself_is_asked_for(
    teacher: Classifier, compiled: nn.Module, inner: str, wrap: Callable, tmp_path: Path
) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "compile": lambda: asap_exp.compile(wrap(teacher), loader()),
        "compile ": lambda: asap_exp.compile(wrap(teacher), method="coarse", tokens=4),
        "load_compiled": lambda: asap_exp.load_compiled(wrap(teacher), tmp_path),
        "load_compiled ": lambda: asap_exp.load_compiled(wrap(teacher), compiled.state_dict()),
        "drift": lambda: asap_exp.drift(wrap(compiled), tokens(9)),
    }
    for name, call in calls.items():
        with pytest.raises(UserError, match=re.escape(f"{name.strip()}(model.{inner}, ...)")):
            call()


@wrappers
def test_a_wrapped_model_is_saved_as_the_model(
    teacher: Classifier, compiled: nn.Module, inner: str, wrap: Callable, tmp_path: Path
) -> None:
    asap_exp.save_compiled(wrap(compiled), tmp_path)
    loaded = asap_exp.load_compiled(teacher, tmp_path)
    torch.testing.assert_close(loaded(tokens(9)), compiled(tokens(9)), rtol=0, atol=0)


@wrappers
def test_names_of_a_wrappers_weights_are_refused_by_what_is_in_front(
    teacher: Classifier, compiled: nn.Module, inner: str, wrap: Callable
) -> None:
    state = wrap(compiled).state_dict()
    with pytest.raises(UserError, match=re.escape(f"begin with {inner}., as those of")) as refused:
        asap_exp.load_compiled(teacher, state)
    advice = str(refused.value).partition("or ")[2]
    assert f"name.removeprefix('{inner}.')" in advice
    state.pop("n_averaged", None)
    state = {name.removeprefix(f"{inner}."): x for name, x in state.items()}
    loaded = asap_exp.load_compiled(teacher, state)
    torch.testing.assert_close(loaded(tokens(9)), compiled(tokens(9)), rtol=0, atol=0)


def test_a_module_of_ones_own_is_no_wrapper(tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = Classifier().eval()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.module(x)

    own = Own()
    compiled = asap_exp.compile(own, method="coarse", tokens=4, progress=False)
    asap_exp.save_compiled(compiled, tmp_path)
    assert asap_exp.load_compiled(own, tmp_path)(tokens(9)).shape == (48, 5)
    compiled = asap_exp.compile(own, loader(), progress=False)
    asap_exp.load_compiled(own, compiled.state_dict())
    with pytest.raises(UserError, match=r"begin with module\., as those of"):
        asap_exp.load_compiled(own, AveragedModel(compiled).state_dict())


@pytest.mark.parametrize("model", [3, Classifier])
def test_what_is_no_module_is_refused(model: Any) -> None:
    for call in (
        lambda: asap_exp.compile(model, loader()),
        lambda: asap_exp.load_compiled(model, {}),
        lambda: asap_exp.drift(model, tokens(9)),
    ):
        with pytest.raises(UserError, match=r"model must be an nn\.Module, got "):
            call()


def test_a_scripted_model_is_refused(teacher: Classifier) -> None:
    scripted = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(UserError, match=r"TorchScript.* give compile the module it is made of"):
        asap_exp.compile(scripted, loader())
