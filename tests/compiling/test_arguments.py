"""What asap_exp.compile refuses, in the words of its arguments."""

import pytest
from torch import nn

import asap_exp
from asap_exp.attention import MultiHeadAttention
from asap_exp.calibration.config import CoarseKeys
from asap_exp.calibration.steps import AdamFit
from asap_exp.core.errors import UserError
from tests.small_model import Classifier, batches, loader, tokens


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Linear(16, 5), "this Linear holds no MultiHeadAttention"),
        (MultiHeadAttention(16, 2), "holds only softmax attention"),
    ],
)
def test_model_without_sinkhorn_layers_is_refused(model: nn.Module, words: str) -> None:
    with pytest.raises(UserError, match=words):
        asap_exp.compile(model, loader())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loader": []}, "gave no batches"),
        ({"loader": batches(1)}, "gave 1 batch, and at least two"),
        ({"loader": ["text", "text"]}, "type str without any tensor"),
        ({"loader": tokens(1)}, r"one tensor of shape \(48, 8, 16\).* loader=x\.split\(64\)"),
        ({"loader": {"x": tokens(1)}}, "loader is a dict; it must give batches"),
        ({"loader": "data"}, "loader is a str; it must give batches"),
        ({"loader": 3}, "loader is a int; it must give batches"),
        ({"layers": []}, r"layers=\[\] must be a list of paths; the model has first, second"),
        ({"layers": [-1]}, r"layers=\[-1\] must be a list of paths; the model has first, second"),
        ({"layers": ["third"]}, "no attention layer at third; the model has first, second"),
        ({"layers": "first"}, "layers='first' must be a list of paths; the model has first, sec"),
        ({"steps": "ridge"}, r"steps='ridge' must be a list .*\['ridge'\]"),
        ({"slices": -1}, r"^slices=-1 is not allowed; it must be at least 0$"),
        ({"candidates": 7}, "^slices=8 needs candidates at least 8, got 7; give candidates=8$"),
        ({"slices": 40, "candidates": 32}, "^slices=40 needs candidates at least 40, got 32"),
        ({"candidates": 8.0}, r"candidates=8.0 has the wrong type; it must be a whole number"),
        ({"candidates": 10**7}, r"^candidates=10000000 is not allowed; it must be at most"),
        ({"refine": -1}, r"^refine=-1 is not allowed"),
        ({"seed": -1}, r"^seed=-1 is not allowed"),
        ({"steps": ("rigde",)}, r"^steps=rigde is not allowed\. Did you mean ridge\?"),
        (
            {"logits": True, "query_features": False},
            r"=True needs query_features=True, got False; set that, or \w+=False$",
        ),
        ({"progress": 1}, r"progress=1 has the wrong type; it must be True or False"),
        ({"kl": AdamFit(5, 0.1)}, r"kl=AdamFit\(.*\) has no effect: kl is not among steps=\['ri"),
        ({"steps": ("ridge", "kl"), "kl": AdamFit(0, 0.1)}, r"^kl\.updates=0 is not allowed"),
        ({"query_features": 1}, r"query_features=1 has the wrong type; it must be True or False"),
        ({"adaptive": None}, r"adaptive=None has the wrong type; it must be True or False"),
        ({"logits": "no"}, r"logits='no' has the wrong type; it must be True or False"),
        ({"relaxed": 0}, r"relaxed=0 has the wrong type; it must be True or False"),
        ({"relaxed": True}, r"^relaxed=True has no effect with refine=0"),
        (
            {"relaxed": True, "steps": ("ridge", "kl")},
            r"^relaxed=True has no effect with refine=0.* set relaxed=False, or refine$",
        ),
        ({"relaxed": True, "refine": 1}, r"^relaxed=True has no effect with steps=\['ridge'\]"),
        ({"sequential": "false"}, r"sequential='false' has the wrong type; it must be True or"),
        ({"holdout": "0.2"}, r"holdout='0.2' has the wrong type; it must be a number"),
        ({"ridge": True}, r"ridge=True has the wrong type; it must be a number"),
        ({"steps": None}, r"steps=None must be a list of names"),
        ({"slices": 2.0}, r"slices=2.0 has the wrong type; it must be a whole number"),
        ({"seed": True}, r"seed=True has the wrong type; it must be a whole number"),
        (
            {"kl": {"lr": 1}},
            r"kl=\{'lr': 1\} has the wrong type; .* AdamFit\(updates",
        ),
        (
            {"kl": AdamFit(updates="3", lr=0.1), "steps": ("ridge", "kl")},
            r"^kl.updates='3' has the wrong type; it must be a whole number",
        ),
        (
            {"coarse": CoarseKeys(tokens="4")},
            r"^coarse.tokens='4' has the wrong type; it must be a whole number \(or null\)",
        ),
        (
            {"coarse": CoarseKeys(tokens=4, choice=3)},
            r"^coarse.choice=3 has the wrong type; it must be text",
        ),
        (
            {"coarse": CoarseKeys(tokens=4, grid_width=2)},
            r"^coarse.grid_width=2 is read only with coarse.choice=grid or staggered, not",
        ),
        ({"precision": "bf16"}, "precision=bf16 .* 32-true, bf16-mixed, 16-mixed"),
        ({"backend": "cuda"}, "backend=cuda .* auto, reference, triton"),
        ({"steps": ("kl",)}, r"^steps=\['kl'\] must begin with ridge"),
        (
            {"steps": ("hedgehog",)},
            r"hedgehog, which is fitted to a softmax teacher.*; take ridge, ",
        ),
        ({"steps": ()}, r"^steps=\[\] must begin with ridge; .* method='coarse', tokens="),
        (
            {
                "steps": [],
                "coarse": CoarseKeys(tokens=4),
                "slices": 0,
                "adaptive": False,
                "query_features": False,
            },
            r"^steps=\[\] must begin with ridge; .* method='coarse', tokens=",
        ),
        ({"steps": ("kl",)}, r"and name no step twice$"),
        ({"steps": ("hedgehg",)}, r"^steps=hedgehg is not allowed; .*learned_slices, end_to_end$"),
        ({"holdout": 1.0}, "holdout=1.0 is not allowed"),
        ({"forward": lambda model, batch: model.first(batch[0])}, "did not run .* at second"),
    ],
)
def test_what_cannot_be_compiled_is_refused(teacher: Classifier, options: dict, words: str) -> None:
    options = {"loader": loader(), **options}
    with pytest.raises(UserError, match=words) as refused:
        asap_exp.compile(teacher, **options)
    assert "calibration." not in str(refused.value)


def test_unknown_keyword_is_refused(teacher: Classifier) -> None:
    with pytest.raises(TypeError, match=r"no keyword 'slice' \(did you mean slices\?\)"):
        asap_exp.compile(teacher, loader(), slice=3)
    with pytest.raises(
        TypeError, match=r"'tokens'; .*learned_slices, .* is of method='coarse'"
    ) as e:
        asap_exp.compile(teacher, loader(), tokens=3)
    assert "hedgehog" not in str(e.value)
    with pytest.raises(TypeError, match=r"'eps';.* is that of the model's own Sinkhorn layers"):
        asap_exp.compile(teacher, loader(), eps=0.5)
    with pytest.raises(TypeError, match=r"'num_iters';.* is that of the model's own Sinkhorn lay"):
        asap_exp.compile(teacher, loader(), num_iters=3)
    with pytest.raises(TypeError, match=r"'implicit_steps';.* feature that has some$"):
        asap_exp.compile(teacher, loader(), implicit_steps=3)


def test_steps_are_read_once(teacher: Classifier) -> None:
    steps = (name for name in ["ridge"])
    compiled = asap_exp.compile(teacher, loader(), slices=2, steps=steps, progress=False)
    assert compiled.asap_artifact.identity["calibration"]["steps"] == ["ridge"]


def test_candidates_are_32_or_as_many_as_slices(teacher: Classifier) -> None:
    few = {"steps": ("ridge",), "progress": False}
    for slices, candidates in ((2, 32), (40, 40)):
        compiled = asap_exp.compile(teacher, loader(), slices=slices, **few)
        assert compiled.asap_artifact.identity["calibration"]["candidates"] == candidates
