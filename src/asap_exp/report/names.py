"""Names of methods in tables and figures, one per method; records keep the label they were given.

Records of different versions may word a label differently.
"""

from asap_exp.core.records.words import settings_of_label

CONTROL = "control: "
NO_SLICES = f"{CONTROL}no slices"
UNIFORM = f"{CONTROL}uniform attention"
SOFTMAX = "softmax, same recipe"
ESPFORMER = "ESPFormer, same recipe"
COARSE = "coarse duals, same recipe"
COARSE_ALONE = "coarse duals, no fit"
RELAXED = "relaxed Sinkhorn, same recipe"
LINEAR = "tf-idf + linear SVM"

NAMES = {
    "control_query": NO_SLICES,
    "control_uniform": UNIFORM,
    "control_zero": f"{CONTROL}all weights zero",
    "softmax_trained": SOFTMAX,
    "espformer_trained": ESPFORMER,
    "coarse_trained": COARSE,
    "relaxed_sinkhorn_trained": RELAXED,
    "baseline_svm": LINEAR,
}
"""Names by the key of the row; a method without an entry is called by its label."""


ONE_LAYER = "asap_layer"
"""Prefix of the keys of rows with one compiled layer."""


def method_name(key: str, label: str) -> str:
    """Return the name of a method, given the key and the label of its row."""
    if key in NAMES:
        return NAMES[key]
    if key.endswith("_trained"):
        return label.replace("trained alike", "same recipe")
    settings = settings_of_label(label.partition(", seed ")[0])
    if settings is not None and not settings.slices:
        return label.replace(f"{CONTROL}query features", NO_SLICES)
    layers = label.removesuffix(", without their slices")
    if layers != label:
        return layers.replace(CONTROL, f"{NO_SLICES}, ")
    return label
