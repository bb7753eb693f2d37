"""How many heads the on-chip kernels make their plan anew for, replayed from the same inputs.

`ops.triton.short` makes E = exp(S + f + g) once, after the first update, and lets the others work
on the scalings exp(f^t - f) and exp(g^t - g). Before each fourth update it looks at them: once one
is beyond 2^24 or below 2^-24, that head takes f^t and g^t for f and g and makes E anew.
`ops.triton.whole_head` looks after four updates: if no scaling of a key can leave that range in all
that are left, going on as in the last one, E stays; else it is made anew, for four more. The passes
for longer sequences work in the log domain throughout.
"""

import math

import torch
from torch import Tensor

from asap_exp.core.records.benchmark import ABSORBED_BEYOND
from asap_exp.ops.reference.sinkhorn import column_step, logits, row_step, starting_dual

CHECKED_EVERY = 4
"""Updates, as in `ops.triton.short` and `ops.triton.whole_head`."""


def absorbed_by_short(q: Tensor, k: Tensor, num_iters: int) -> Tensor:
    """`[B, H]`: whether a head of `num_iters` updates from f = 0 absorbs its scalings."""
    beyond = ABSORBED_BEYOND * math.log(2)
    S = logits(q, k, eps=1.0, scale=q.shape[3] ** -0.5, mask=None)
    g = column_step(S, starting_dual(S), None)
    f = row_step(S, g, None)
    # The kernel's first E has 1 for the largest entry of a row.
    kept_f, kept_g = -(S + g[..., None, :]).amax(dim=-1), g
    absorbed = torch.zeros(q.shape[:2], dtype=torch.bool, device=q.device)
    for t in range(1, num_iters):
        if t % CHECKED_EVERY == 1:
            far = (farthest(f - kept_f, g - kept_g) > beyond)[..., None]
            absorbed |= far[..., 0]
            kept_f, kept_g = torch.where(far, f, kept_f), torch.where(far, g, kept_g)
        g = column_step(S, f, None)
        f = row_step(S, g, None)
    return absorbed


def absorbed_by_whole_head(q: Tensor, k: Tensor, num_iters: int) -> Tensor:
    """The same of the other kernel."""
    beyond = ABSORBED_BEYOND * math.log(2)
    S = logits(q, k, eps=1.0, scale=q.shape[3] ** -0.5, mask=None)
    g = kept = before = column_step(S, starting_dual(S), None)
    absorbed = torch.zeros(q.shape[:2], dtype=torch.bool, device=q.device)
    undecided = torch.ones_like(absorbed)
    for t in range(1, num_iters):
        if t > 1 and t % CHECKED_EVERY == 1:
            safe = farthest(g - kept) + (num_iters - t) * farthest(g - before) <= beyond
            undecided &= ~safe
            absorbed |= undecided
            kept = torch.where(undecided[..., None], g, kept)
        before, g = g, column_step(S, row_step(S, g, None), None)
    return absorbed


def farthest(*moved: Tensor) -> Tensor:
    """`[B, H]`, the largest |log| of a head's scalings."""
    return torch.stack([x.abs().amax(dim=-1) for x in moved]).amax(dim=0)
