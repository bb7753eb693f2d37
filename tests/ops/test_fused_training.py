"""The fused gradient in a training step: activation checkpointing, autocast, or both."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from asap_exp import ops
from asap_exp.ops import backend

if backend.fused is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from asap_exp.ops import routes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOKENS, HEADS, WIDTH = 18, 1, 8
MASK = torch.arange(TOKENS, device=DEVICE) >= torch.tensor([[TOKENS], [11]], device=DEVICE)

on_each_route = pytest.mark.parametrize(
    "names",
    [["logits in registers"], ["keys in registers", "tiled"]],
    ids=["in registers", "in passes"],
)


class Layer(nn.Module):
    """A residual attention layer with projections, which autocast runs in bfloat16."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        dim = HEADS * WIDTH
        self.backend = backend
        self.x = nn.Parameter(torch.randn(2, TOKENS, dim))
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.to(DEVICE)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4)
        out = ops.sinkhorn_attention(
            q, k, v, num_iters=3, key_padding_mask=mask, backend=self.backend
        )
        return x + self.proj(out.transpose(1, 2).flatten(2))

    def gradients(
        self, mask: Tensor | None, *, checkpointed: bool, autocast: bool = False
    ) -> list[Tensor]:
        """Return the gradients of a loss for the weights and for the input x."""
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            out = self.run(mask, checkpointed=checkpointed)
        return list(torch.autograd.grad(out.float().square().mean(), list(self.parameters())))

    def run(self, mask: Tensor | None, *, checkpointed: bool) -> Tensor:
        if checkpointed:
            return checkpoint(self, self.x, mask, use_reentrant=False)
        return self(self.x, mask)


@pytest.mark.slow
@on_each_route
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_gradient_of_the_last_updates_alone(mask: Tensor | None, names: list[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, HEADS, TOKENS, WIDTH, generator=generator).to(DEVICE).requires_grad_()
        for _ in range(3)
    )

    def run(backend: str) -> list[Tensor]:
        out = ops.sinkhorn_attention(
            q, k, v, num_iters=5, gradient_updates=2, key_padding_mask=mask, backend=backend
        )
        return [out, *torch.autograd.grad(out.square().sum(), (q, k, v))]

    with routes.force(*names):
        for found, expected in zip(run("triton"), run("reference"), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@on_each_route
@pytest.mark.parametrize(
    ("autocast", "mask"), [(False, None), (True, MASK)], ids=["float32", "autocast, padded"]
)
def test_checkpointed_gradients_are_those_without_to_the_bit(autocast, mask, names):
    """Checkpointing runs the updates twice, and both runs give the same bits."""
    with routes.force(*names):
        found, expected = (
            Layer("triton").gradients(mask, checkpointed=checkpointed, autocast=autocast)
            for checkpointed in (True, False)
        )
    assert all(gradient.any() for gradient in expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_checkpointing_keeps_no_duals():
    kept: dict[bool, list[tuple[int, ...]]] = {}
    for checkpointed in (False, True):
        shapes = kept.setdefault(checkpointed, [])

        def keep(x: Tensor, shapes: list[tuple[int, ...]] = shapes) -> Tensor:
            shapes.append(tuple(x.shape))
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            Layer("triton").run(None, checkpointed=checkpointed)
    duals = (2, HEADS, 4, TOKENS)  # f^0 .. f^3
    assert duals in kept[False]
    assert duals not in kept[True]


@pytest.mark.slow
@on_each_route
def test_gradients_under_autocast_are_the_references(names):
    """Both see the same bfloat16 q, k, v, but round gradients to bfloat16 at different points."""
    with routes.force(*names):
        fused, reference = (
            Layer(backend).gradients(MASK, checkpointed=True, autocast=True)
            for backend in ("triton", "reference")
        )
    for found, expected in zip(fused, reference, strict=True):
        assert (found - expected).norm() <= 1e-2 * expected.norm()
