"""Products of float32 matrices: what PyTorch's settings allow, IEEE on request, and accuracy."""

import subprocess
import sys
from functools import partial

import pytest
import torch

from asap_exp import ops
from asap_exp.ops import backend
from asap_exp.ops.products import AS_ALLOWED, IEEE, ONE_PASS, THREE_PASSES, float32_products
from tests.ops.inputs import relative_rms

if backend.fused is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from asap_exp.ops.kernels.launch import Launch
from asap_exp.ops.kernels.tiles import INTERPRETED
from asap_exp.ops.sliced_map import SlicedMap

SETTINGS = {
    "older": {
        "torch.set_float32_matmul_precision('high')": ONE_PASS,
        "torch.set_float32_matmul_precision('highest')": THREE_PASSES,
        "torch.set_float32_matmul_precision('medium')": ONE_PASS,
        "torch.backends.cuda.matmul.allow_tf32 = False": THREE_PASSES,
        "torch.backends.cuda.matmul.allow_tf32 = True": ONE_PASS,
    },
    "newer": {
        "pass": THREE_PASSES,
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'": ONE_PASS,
        "torch.backends.cuda.matmul.fp32_precision = 'ieee'": THREE_PASSES,
        "torch.backends.cuda.matmul.fp32_precision = 'none'": THREE_PASSES,
        "torch.backends.fp32_precision = 'tf32'": ONE_PASS,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("interface", SETTINGS)
def test_either_interface_of_pytorch_allows_one_pass(interface):
    # A process each: PyTorch refuses to mix its two interfaces.
    code = "import torch\nfrom asap_exp.ops.products import float32_products\n"
    code += "".join(f"{line}\nprint(float32_products())\n" for line in SETTINGS[interface])
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == list(SETTINGS[interface].values())


def test_explanation_says_how_float32_is_multiplied():
    shape = {"n": 200, "capability": (9, 0)}
    as_allowed = ops.explain("sinkhorn_attention", dtype=torch.float32, **shape)
    assert "  float32 products in three TF32 passes\n" in str(as_allowed)
    on_request = ops.explain("sinkhorn_attention", dtype=torch.float32, backend="ieee", **shape)
    assert "  float32 products in IEEE arithmetic\n" in str(on_request)
    assert on_request.taken == as_allowed.taken
    assert "float32" not in str(ops.explain("sinkhorn_attention", **shape))


SHORT, LONG = 20, 70


@pytest.fixture
def launched(monkeypatch) -> list[str]:
    """Return the products of every launch, in order."""
    found: list[str] = []
    of = Launch.of

    def recorded(*args) -> Launch:
        launch = of(*args)
        found.append(launch.products)
        return launch

    monkeypatch.setattr(Launch, "of", recorded)
    return found


def calls(operators, n: int):
    """Yield a name and a call for every operator of the kernels that multiplies tokens."""
    generator = torch.Generator().manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = (torch.randn(1, 2, n, 16, generator=generator).to(device) for _ in "qkv")
    theta = torch.nn.functional.normalize(torch.randn(2, 3, 16, generator=generator), dim=-1)
    theta = theta.to(device)
    map = SlicedMap(theta, theta[..., 0], logit_weight=theta[..., :3].mean(1))
    relaxed = map._replace(relaxation=theta[:, 0, 0])
    options = {"eps": 1.0, "scale": 0.25, "key_padding_mask": None}
    f = q[..., 0]
    yield "teacher", lambda: operators.sinkhorn_attention(q, k, v, num_iters=2, **options)
    yield "duals", lambda: operators.sinkhorn_duals(q, k, num_iters=2, **options)
    yield "closure", lambda: operators.closure_attention(q, k, v, f, **options)
    yield (
        "relaxed",
        lambda: operators.relaxed_sinkhorn_attention(
            q, k, v, num_iters=3, relaxation=1.5, **options
        ),
    )
    yield "map", lambda: operators.map_attention(q, k, v, map, refine=1, **options)
    yield "relaxed map", lambda: operators.map_attention(q, k, v, relaxed, refine=1, **options)
    yield "dual of a map", lambda: operators.map_dual(q, k, map, refine=1, **options)
    yield "attention pass", lambda: operators.attention_pass(q, k, v, f, None, 0.25)
    yield "column pass", lambda: operators.column_pass(q, k, f, 0.25)
    yield "gradient", lambda: gradient(operators, q, k, v, options)


def gradient(operators, q, k, v, options) -> None:
    out = operators.sinkhorn_attention(q.clone().requires_grad_(), k, v, num_iters=2, **options)
    out.sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize("n", [SHORT, LONG])
def test_ieee_reaches_every_launch(launched, n):
    for name, call in calls(backend.fused_ieee, n):
        launched.clear()
        call()
        assert set(launched) == {IEEE}, name


@pytest.mark.slow
@pytest.mark.parametrize("n", [SHORT, LONG])
def test_three_passes_reach_every_launch_that_asks_for_nothing(launched, n):
    for name, call in calls(backend.fused, n):
        launched.clear()
        call()
        assert set(launched) == {THREE_PASSES}, name


def test_backend_ieee_runs_what_auto_runs_and_resolves_to_ieee(monkeypatch):
    q = torch.zeros(1, 1, 4, 8)
    assert backend.resolve("ieee", q) is backend.resolve("auto", q) is ops.reference
    monkeypatch.setattr(backend, "why_not_fused", lambda *args, **options: None)
    assert backend.resolve("ieee", q) is backend.fused_ieee
    assert backend.resolve("auto", q) is backend.fused
    assert float32_products(IEEE) == IEEE != float32_products(AS_ALLOWED)


def exact(q, k, v):
    """Compute the teacher in float64."""
    return ops.sinkhorn_attention(
        *(x.double() for x in (q, k, v)), num_iters=20, backend="reference"
    )


@pytest.mark.parametrize(("queries", "keys", "head_dim"), [(200, 200, 64), (150, 180, 40)])
def test_ieee_products_of_some_channels_at_a_time_are_those_of_all(queries, keys, head_dim):
    generator = torch.Generator().manual_seed(0)
    lengths = (queries, keys, keys)
    device = "cpu" if INTERPRETED else "cuda"
    q, k, v = (torch.randn(1, 2, n, head_dim, generator=generator).to(device) for n in lengths)
    with ops.routes.force("tiled"):
        found = ops.sinkhorn_attention(q, k, v, num_iters=5, backend="ieee")
    truth = ops.sinkhorn_attention(q.double(), k.double(), v.double(), num_iters=5)
    torch.testing.assert_close(found.double(), truth, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("sharpness", [1.0, 6.0])
@pytest.mark.parametrize("n", [64, 128, 200, 1024])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_three_passes_err_at_most_twice_as_much_as_ieee(n, sharpness, head_dim, record_property):
    generator = torch.Generator("cuda").manual_seed(n)
    shape = (2, 3, n, head_dim)
    q, k, v, cotangent = (torch.randn(shape, device="cuda", generator=generator) for _ in range(4))
    q = sharpness * q

    def run(operator, dtype):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in (q, k, v)]
        out = operator(*leaves)
        return out, *torch.autograd.grad((out * cotangent.to(dtype)).sum(), leaves)

    truth = run(exact, torch.float64)
    errors = {}
    for name in ("ieee", "auto"):
        found = run(partial(ops.sinkhorn_attention, num_iters=20, backend=name), torch.float32)
        errors[name] = [relative_rms(a, b) for a, b in zip(found, truth, strict=True)]
    record_property("errors", errors)
    for of_three, of_ieee in zip(errors["auto"], errors["ieee"], strict=True):
        assert of_three <= 2 * of_ieee
