"""Settings of compiled maps, for the columns of tables and the labels of rows."""

import re
from dataclasses import dataclass

from asap_exp.core.records.identity import CalibrationRecipe, CoarseRecipe, Identity

COARSE = "coarse"
ONE_PASS = "one pass"
PARTS = re.compile(
    r"(?:ASAP, (?P<slices>\d+(?: of \d+)?) slices(?: \+ (?P<features>.+?) features)?"
    r"|control: query features), "
    r"(?:refine (?P<refine>\d+(?: relaxed)?)|(?P<form>one pass)), "
    r"(?P<calibration>.+), (?P<samples>\d+) samples"
)


@dataclass(frozen=True)
class MapSettings:
    """Settings of a map, worded to fit into columns.

    If the slices were chosen among candidates, `slices` says among how many: "8 of 128". It is
    empty for the control, which has query features alone. `refine` is "one pass" for a map of that
    form, which has no updates.
    """

    slices: str
    features: str
    refine: str
    calibration: str
    samples: str

    @property
    def label(self) -> str:
        """Label of the map's row in a record."""
        features = f" + {self.features} features" if self.features else ""
        what = f"ASAP, {self.slices} slices{features}" if self.slices else "control: query features"
        return f"{what}, {self.updates}, {self.calibration}, {self.samples} samples"

    @property
    def updates(self) -> str:
        """The number of updates in words, as `update_words` writes it."""
        return self.refine if self.refine == ONE_PASS else f"refine {self.refine}"


def map_settings(about: Identity, *, control: bool = False) -> MapSettings:
    """Return the settings of a map, or of its control without slices."""
    made, on = about.calibration, about.calibration_set
    assert on is not None, "of a map that was fitted"
    chosen = f" of {made.candidates}" if (made.candidates or 0) > made.slices else ""
    return MapSettings(
        slices="" if control else f"{made.slices}{chosen}",
        features="query" if control else feature_words(made),
        refine=update_words(made).removeprefix("refine "),
        calibration=calibration_words(made),
        samples=str(on.rows),
    )


def settings_of_label(label: str) -> MapSettings | None:
    """Return the settings in the label of a map's row; None for the row of another method.

    Records hold the settings of their own map as numbers, but those of the teacher's other maps
    only in these labels.
    """
    found = PARTS.fullmatch(label)
    if found is None:
        return None
    control = found["slices"] is None
    return MapSettings(
        slices=found["slices"] or "",
        features="query" if control else found["features"] or "",
        refine=found["refine"] or found["form"],
        calibration=found["calibration"],
        samples=found["samples"],
    )


def map_label(about: Identity, *, control: bool) -> str:
    """Return the label of the row of a map or its control; with a budget it lists the layers."""
    if (other := other_label(about)) is not None:
        return other
    if about.budget is None:
        return map_settings(about, control=control).label
    layers = layer_words(about)
    return f"control: {layers}, without their slices" if control else f"ASAP, {layers}"


def other_label(about: Identity) -> str | None:
    """Describe what layers became that is not ASAP: coarse duals, an imitation of softmax, or what
    a budget chose.
    """
    if about.without_asap:
        return budget_label(about)
    if not about.calibration.fitted:
        return coarse_label(about.calibration)
    if about.imitates:
        return imitation_label(about)
    return None


def imitation_label(about: Identity) -> str:
    """Describe an imitation by its attention and the samples that it was fitted on."""
    assert about.calibration_set is not None, "of a fit"
    return f"{imitation_word(about)}, {about.calibration_set.rows} samples"


def imitation_word(about: Identity) -> str:
    """Name the attention of an imitation, as at the start of a sentence."""
    assert about.attentions is not None
    names = dict.fromkeys(str(options["name"]) for options in about.attentions.values())
    return ", ".join(names).title()


def teacher_word(about: Identity) -> str:
    """Name the teacher of a map by its attention."""
    return "softmax teacher" if about.imitates else "Sinkhorn teacher"


def layer_words(about: Identity) -> str:
    """Describe the attention that a budget chose for each layer."""
    assert about.budget is not None
    return "by layer " + "; ".join(layer.became for layer in about.budget.layers.values())


def budget_label(about: Identity) -> str:
    """Describe the attention that a budget chose for every layer: "softmax by budget"."""
    assert about.budget is not None
    kinds = {layer.became for layer in about.budget.layers.values()}
    return layer_words(about) if len(kinds) > 1 else f"{kinds.pop()} by budget"


def calibration_words(made: CalibrationRecipe) -> str:
    steps = " + ".join(step.replace("_", " ") for step in made.steps or ["ridge"])
    return f"{steps}, sequential" if made.sequential else steps


def feature_words(made: CalibrationRecipe) -> str:
    """Describe the features that a map uses besides its slices: "query, adaptive and logit"."""
    used = [key.removesuffix("_features").removesuffix("s") for key in made.features]
    words = [coarse_words(made) if key == COARSE else key.replace("_", " ") for key in used]
    *first, last = words or [""]
    return f"{', '.join(first)} and {last}" if first else last


def coarse_words(made: CalibrationRecipe) -> str:
    """Describe the feature: "coarse (16 tokens)"; usual settings are left out."""
    assert made.coarse is not None
    return f"coarse ({'; '.join(subset_words(made.coarse))})"


def coarse_label(made: CalibrationRecipe) -> str:
    """Describe coarse duals without a fit: "coarse duals, 16 tokens, two-sided"."""
    assert made.coarse is not None
    assert made.form is not None
    return coarse_duals_label(made.coarse, made.form)


def coarse_duals_label(coarse: CoarseRecipe, form: str) -> str:
    """Return the label of coarse duals of these tokens; usual settings are left out."""
    size, *others = subset_words(coarse)
    return ", ".join(["coarse duals", size, form_words(form), *others])


COARSE_PARTS = re.compile(r"coarse duals, (?P<tokens>\d+) tokens, (?P<form>two-sided|one pass)")


def size_and_form(label: str) -> tuple[int, str] | None:
    """Return the size of the subset and the form in a row's label; None for another method."""
    found = COARSE_PARTS.match(label)
    return None if found is None else (int(found["tokens"]), found["form"])


def subset_words(coarse: CoarseRecipe) -> list[str]:
    """Return the size of a subset and, where they are not the usual ones, its other settings."""
    words = [f"{coarse.tokens} tokens"]
    words += [] if coarse.choice == "sequence" else [coarse.choice]
    words += [] if coarse.weights == "equal" else [f"{coarse.weights} weights"]
    words += [] if coarse.num_iters is None else [f"T = {coarse.num_iters}"]
    return words + ([f"rows of {coarse.grid_width}"] if coarse.grid_width else [])


def form_words(form: str) -> str:
    """Return "two-sided" or "one pass"."""
    return {"two_sided": "two-sided", "one_pass": ONE_PASS}.get(form, form)


def update_words(made: CalibrationRecipe) -> str:
    """Describe the updates of a map, as `refine_words` does, or say that it is of one pass."""
    if made.form is not None and form_words(made.form) == ONE_PASS:
        return ONE_PASS
    return refine_words(made.refine, made.relaxed)


def refine_words(refine: int, relaxed: bool | None) -> str:
    """Describe how many updates refine the dual, and whether they are over-relaxed."""
    return f"refine {refine}{' relaxed' if relaxed else ''}"
