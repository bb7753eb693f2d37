"""How kernels multiply float32 matrices: in three TF32 passes, in one, or in IEEE arithmetic."""

import torch

from asap_exp.ops.call import Call

THREE_PASSES, ONE_PASS, IEEE = "tf32x3", "tf32", "ieee"
"""Names of the products, as Triton calls them. Three passes are as accurate as IEEE arithmetic."""

AS_ALLOWED = "as allowed"
"""One pass where PyTorch allows TF32 in its own products, else three."""


def float32_products(requested: str = AS_ALLOWED) -> str:
    """Return the products of float32 matrices for a call that requested these.

    PyTorch allows TF32 by `torch.backends.cuda.matmul.fp32_precision = "tf32"` or, in its older
    interface, by `torch.set_float32_matmul_precision("high")` or "medium". The setting is read
    through the newer one: reading the older one is an error once the newer one was used.
    """
    if requested != AS_ALLOWED:
        return requested
    return ONE_PASS if torch.backends.cuda.matmul.fp32_precision == "tf32" else THREE_PASSES


WORDS = {
    THREE_PASSES: "in three TF32 passes",
    ONE_PASS: "in TF32, as PyTorch is allowed to",
    IEEE: "in IEEE arithmetic",
}


def product_words(call: Call, requested: str) -> str | None:
    """Describe the float32 products of a call, or return None if it has none."""
    return f"float32 products {WORDS[float32_products(requested)]}" if call.has_float32 else None
