"""The plan on chip: its kernel on an emulated GPU, and all around it that needs no GPU."""

import dataclasses
import re
import subprocess
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import pytest
import torch

from asap_exp.ops import backend, reference

if backend.fused is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from asap_exp import ops
from asap_exp.ops import routes
from asap_exp.ops.call import Call
from asap_exp.ops.kernels.sinkhorn.on_chip import code, nvrtc
from asap_exp.ops.kernels.sinkhorn.on_chip import launch as on_chip
from asap_exp.ops.kernels.tiles import LOG2_E
from asap_exp.ops.routing import first
from tests.documents import ROOT
from tests.ops.emulator import COMPILER, EmulationError, Emulator
from tests.ops.inputs import Inputs, make_inputs, relative_rms

BRAIN, HALF, SINGLE = torch.bfloat16, torch.float16, torch.float32
ROUTE = "plan on chip"
CALL = Call(256, 256, 64, 64, BRAIN, BRAIN, num_iters=20, capability=(9, 0))

needs_compiler = pytest.mark.skipif(
    COMPILER is None or torch.cuda.is_available(),
    reason="needs a C++ compiler, and no GPU, which runs the kernel itself",
)


def inputs_for(size: float = 1.0, dtype: torch.dtype = BRAIN, **shape) -> Inputs:
    """Make inputs with logits of order `size`^2."""
    shape = {"batch": 1, "heads": 1, "queries": 200, "head_dim": 64, **shape}
    inputs = make_inputs(value_dim=shape["head_dim"], **shape)
    inputs = dataclasses.replace(inputs, q=size * inputs.q, k=size * inputs.k)
    return inputs.map_tokens(lambda x: x.to(dtype))


def exact(inputs: Inputs, num_iters: int, **options) -> torch.Tensor:
    q, k, v = (x.double() for x in (inputs.q, inputs.k, inputs.v))
    return ops.sinkhorn_attention(q, k, v, num_iters=num_iters, backend="reference", **options)


def assert_exact_but_for_rounding(out, expected, dtype) -> None:
    """Allow the error that rounding the exact result makes, and 4e-4 of float16 within."""
    rounding = relative_rms(expected.to(dtype), expected)
    assert relative_rms(out, expected) <= rounding + 4e-4


def check(emulator: Emulator, inputs: Inputs, num_iters: int, padding=None, **options) -> None:
    expected = exact(inputs, num_iters, key_padding_mask=padding, scale=options.get("scale"))
    q, k, v = inputs.q, inputs.k, inputs.v
    out, _ = emulator.run(q, k, v, num_iters=num_iters, padding=padding, **options)
    assert_exact_but_for_rounding(out, expected, inputs.v.dtype)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("num_iters", [1, 2, 3, 20])
def test_every_number_of_updates(emulator, num_iters):
    check(emulator, inputs_for(queries=256), num_iters)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("queries", [1, 8, 129, 255, 300, 512, 700])
def test_every_length(emulator, queries):
    check(emulator, inputs_for(queries=queries), 4)


@needs_compiler
@pytest.mark.slow
def test_longest(emulator):
    check(emulator, inputs_for(queries=1024, head_dim=32), 2)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("queries", "keys"), [(256, 40), (100, 300), (600, 20)])
def test_other_lengths_of_keys(emulator, queries, keys):
    check(emulator, inputs_for(queries=queries, keys=keys), 4)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("width", on_chip.WIDTHS)
@pytest.mark.parametrize("dtype", [BRAIN, HALF])
def test_every_width_and_dtype(emulator, width, dtype):
    check(emulator, inputs_for(head_dim=width, dtype=dtype), 4)


@needs_compiler
@pytest.mark.slow
def test_wide_heads_in_a_cluster(emulator):
    check(emulator, inputs_for(head_dim=128, queries=300, dtype=HALF), 3)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("scale", [-0.3, 0.0, 2.0])
def test_any_scale(emulator, scale):
    check(emulator, inputs_for(), 4, scale=scale)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("size", [1.5, 2.0, 4.0, 11.0, 30.0])
def test_hard_logits(emulator, size):
    """Logits of up to thousands, for which the plan is made again."""
    check(emulator, inputs_for(size, heads=2, head_dim=32), 20)
    check(emulator, inputs_for(size, HALF, head_dim=32), 7)


def emulator_that_counts(folder: Path, most: int) -> Emulator:
    """Return an emulator that fails if a head makes more plans than `most`."""
    counted = (
        f'if (plans++ == {most}) hopper::fail("makes too many plans");\n      if (x.wide) make_plan'
    )
    for name in on_chip.FILES[1:]:
        source = (on_chip.FOLDER / name).read_text()
        source = source.replace("      if (x.wide) make_plan", f"      {counted}")
        source = source.replace("    Head x;\n", "    Head x;\n    int plans = 0;\n")
        (folder / name).write_text(source)
    assert "plans++" in (folder / "plan.cu").read_text()
    return Emulator(folder, folder)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("size", "most"), [(1.0, 1), (2.0, 1), (2.5, 2), (4.0, 3), (11.0, 4)])
def test_few_plans_are_made(tmp_path, size, most):
    """Of 256 tokens, in 20 updates; without looking ahead there is one more from 2.0 on."""
    check(emulator_that_counts(tmp_path, most), inputs_for(size, queries=256), 20)


def uneven_groups(dtype: torch.dtype, queries: int = 256, **shape) -> Inputs:
    """Make tokens of which few keys face many queries, a multiple of 16 of them.

    An update moves their duals by about as much as the one before. So do trained models without a
    norm on q and k.
    """
    inputs = inputs_for(4.0, dtype, queries=queries, **shape)
    q, k = inputs.q.clone(), inputs.k.clone()
    for x, parts in ((q, (8, 4, 2, 2)), (k, (1, 2, 5, 8))):
        sizes = [queries // 16 * part for part in parts]
        for group, tokens in enumerate(torch.arange(queries).split(sizes)):
            x[:, :, tokens, group] += 40.0
    return dataclasses.replace(inputs, q=q, k=k)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "width", "num_iters", "most"),
    [
        (HALF, 64, 20, 7),
        (BRAIN, 64, 20, 4),
        (BRAIN, 64, 16, 4),
        (BRAIN, 32, 20, 4),
        (BRAIN, 128, 20, 4),
        (BRAIN, 64, 60, 6),
    ],
)
def test_few_plans_are_made_of_uneven_groups(tmp_path, dtype, width, num_iters, most):
    """Of bfloat16 inputs, one of them is wide, or three of sixty updates.

    There were 12 as long as a plan had to serve whichever way the scalings went.
    """
    check(emulator_that_counts(tmp_path, most), uneven_groups(dtype, head_dim=width), num_iters)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("size", [4.0, 11.0])
def test_hard_logits_in_a_cluster(emulator, size):
    check(emulator, inputs_for(size, queries=300), 6)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("queries", [64, 300])
def test_scalings_that_go_on_moving(emulator, queries):
    """All queries but one attend to one key, so every update moves the duals by log(n - 1)."""
    inputs = inputs_for(queries=queries)
    q, k = torch.zeros_like(inputs.q), torch.zeros_like(inputs.k)
    q[..., 0], k[..., 0] = 80.0, -50.0  # with the scale 1 / 8
    q[:, :, -1], k[:, :, 0] = -q[:, :, -1], -k[:, :, 0]
    check(emulator, dataclasses.replace(inputs, q=q, k=k), 12)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("key_size", [0.2, 3.0])
def test_keys_of_very_different_size(emulator, key_size):
    """Column sums too small for float16: the keys' largest logits are needed first."""
    inputs = inputs_for()
    k = inputs.k * torch.linspace(key_size, 12.0, 200)[:, None]
    check(emulator, dataclasses.replace(inputs, k=k.to(BRAIN)), 5)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("factor", [1e-30, 1e-3, 1e5, 1e30])
def test_values_beyond_float16(emulator, factor):
    inputs = inputs_for()
    check(emulator, dataclasses.replace(inputs, v=(inputs.v.float() * factor).to(BRAIN)), 3)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("queries", [200, 300])
def test_heads_in_turn_whatever_the_order_of_threads(emulator, seed, queries):
    batch = 2 if queries <= on_chip.SIDE else 1
    inputs = inputs_for(batch=batch, heads=3, queries=queries, head_dim=32)
    check(emulator, inputs, 3, seed=seed, clusters=2)


@needs_compiler
@pytest.mark.slow
def test_same_result_in_every_order_of_threads(emulator):
    inputs = inputs_for(queries=300, head_dim=32)
    q, k, v = inputs.q, inputs.k, inputs.v
    results = [emulator.run(q, k, v, num_iters=3, seed=seed)[0] for seed in range(3)]
    assert all(torch.equal(result, results[0]) for result in results)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("queries", [200, 270])
def test_padding(emulator, queries):
    """Padded inputs are NaN and infinite; one sample has a single valid token, one has none."""
    inputs = inputs_for(batch=4, queries=queries, head_dim=32)
    padding = torch.zeros(4, queries, dtype=torch.bool)
    padding[1, 1:] = padding[2] = padding[3, :77] = True
    clean = inputs.map_tokens(lambda x: x.clone())
    for x, bad in ((inputs.q, torch.nan), (inputs.k, torch.inf), (inputs.v, torch.nan)):
        x.masked_fill_(padding[:, None, :, None], bad)
    q, k, v = inputs.q, inputs.k, inputs.v
    out, _ = emulator.run(q, k, v, num_iters=4, padding=padding)
    expected = exact(clean, 4, key_padding_mask=padding)
    assert_exact_but_for_rounding(out, expected, BRAIN)
    assert (out.masked_select(padding[:, None, :, None]) == 0).all()


@needs_compiler
@pytest.mark.slow
def test_tokens_that_are_not_aligned_and_strided(emulator):
    inputs = inputs_for(queries=140, head_dim=32)
    strided = inputs.map_tokens(
        lambda x: torch.cat((x, x), dim=-1)[..., 1:][..., : x.shape[-1]] if x.dim() == 4 else x
    )
    assert strided.q.stride(2) == 63 or strided.q.stride(2) == 64
    check(emulator, strided, 2)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "queries", "start", "num_iters"),
    [
        (1, 200, False, 5),
        (4, 300, False, 5),
        (1, 200, True, 5),
        (6, 140, True, 5),
        (2, 140, False, 20),
        (11, 140, False, 20),
    ],
)
def test_duals_of_all_updates(emulator, size, queries, start, num_iters):
    """They are those of the reference to 1e-3, however often the plan is made."""
    inputs = inputs_for(float(size), queries=queries, head_dim=32)
    q, k, v = (x.double() for x in (inputs.q, inputs.k, inputs.v))
    f = 3 * inputs.row_dual.float() if start else torch.zeros_like(inputs.row_dual).float()
    out, duals = emulator.run(
        inputs.q,
        inputs.k,
        inputs.v,
        num_iters=num_iters,
        keep_duals=True,
        start=f if start else None,
    )
    S = reference.sinkhorn.logits(q, k, eps=1.0, scale=32**-0.5, mask=None)
    row = f.double()
    torch.testing.assert_close(duals.rows[:, :, 0] / LOG2_E, f)
    for t in range(num_iters):
        col = reference.sinkhorn.column_step(S, row, None)
        row = reference.sinkhorn.row_step(S, col, None)
        for found, expected in ((duals.cols[:, :, t], col), (duals.rows[:, :, t + 1], row)):
            torch.testing.assert_close(found.double() / LOG2_E, expected, atol=1e-3, rtol=0)
    expected = reference.sinkhorn.average_values(torch.softmax(S + col[..., None, :], -1), v, None)
    assert_exact_but_for_rounding(out, expected, BRAIN)


FAULTS = {
    "a barrier left out": (
        "block_barrier();\n    col_sums",
        "col_sums",
        "uses without a barrier in between",
    ),
    "a barrier that one warp does not pass": (
        "block_barrier();\n    col_sums",
        "if (l.warp != 3) block_barrier();\n    col_sums",
        "waits for ever: bar.block|without a barrier",
    ),
    "lanes of a warp at different instructions": (
        "warp_barrier();",
        "if (l.lane < 16) warp_barrier();",
        "waits for ever: bar.warp|at bar.warp, other lanes of the warp at",
    ),
    "a message that is not sent": (
        "if (l.pair < COUNT) {",
        "if (l.pair < COUNT && l.warp != 5) {",
        "waits for ever",
    ),
    "mailboxes that others may use too early": (
        "mailboxes_open();\n  cluster_barrier();",
        "mailboxes_open();",
        "there is no mailbox",
    ),
    "a place beside the matrix": (
        "plan + g * 32 * PLAN",
        "plan + 8 + g * 32 * PLAN",
        "no 16 bytes",
    ),
}


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("before", "after", "found"), FAULTS.values(), ids=FAULTS)
def test_emulator_notices(tmp_path, before, after, found):
    faults = 0
    for name in on_chip.FILES[1:]:
        source = (on_chip.FOLDER / name).read_text()
        (tmp_path / name).write_text(source.replace(before, after))
        faults += before in source
    assert faults == 1
    inputs = inputs_for(
        queries=300 if "COUNT" in before or "cluster" in before else 100, head_dim=32
    )
    with pytest.raises(EmulationError, match=found):
        check(Emulator(tmp_path, tmp_path), inputs, 3, seed=1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"num_iters": 14}, None),
        ({"num_iters": 13}, "fewer than 14 updates, got 13"),
        ({"num_iters": 10, "gradient": True, "keeps_duals": True}, None),
        ({"num_iters": 9, "gradient": True, "keeps_duals": True}, "fewer than 10 updates, got 9"),
        ({"n": 700, "m": 700}, "fewer than 40 updates, got 20"),
        ({"n": 1000, "m": 1000, "num_iters": 16}, None),
        ({"n": 129, "m": 20}, None),
        ({"n": 128, "m": 128}, "up to 128 tokens, got 128"),
        ({"n": 450, "m": 450}, None),
        ({"n": 440, "m": 440}, "less than 75% of its 2 x 2 blocks .* in use, got 74%"),
        ({"n": 1024, "m": 600}, None),
        ({"n": 1024, "m": 80}, "4 x 1 blocks .* got 31%"),
    ],
    ids=str,
)
def test_route_is_taken_where_it_is_the_fastest(change, reason):
    call = CALL._replace(**change)
    assert on_chip.refusal(call) is None
    answer = on_chip.slower(call)
    assert answer is None if reason is None else re.search(reason, answer)
    found = ops.explain(
        "sinkhorn_attention",
        n=call.n,
        m=call.m,
        num_iters=call.num_iters,
        gradient=call.gradient,
        capability=(9, 0),
    )
    assert (found.taken[0].route == ROUTE) == (reason is None)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (nvrtc.CompilationError("NVRTC was not found"), "NVRTC was not found"),
        (RuntimeError("this GPU runs no clusters of 16 blocks"), "no clusters of 16"),
        (OSError("libcuda.so.1: cannot open shared object file"), "libcuda"),
    ],
    ids=str,
)
def test_machine_that_cannot_run_it_takes_another_route(monkeypatch, found, words):
    def fails(*arguments):
        raise found

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(on_chip, "lacking", on_chip.lacking.__wrapped__)
    monkeypatch.setattr(nvrtc, "compiled", lambda source: b"")
    monkeypatch.setattr(on_chip.driver, "load", fails)
    warned = "not kept on chip on GPU 0, other kernels run"
    with pytest.warns(UserWarning, match=warned):
        assert words in on_chip.refusal(CALL)
    with pytest.warns(UserWarning, match=warned):
        assert first(routes.ROUTES["sinkhorn"], CALL).name == "plan in shared memory"


@pytest.mark.parametrize("has_context", [True, False])
def test_thread_without_a_context_gets_that_of_pytorchs_gpu(monkeypatch, has_context):
    calls = []

    class Driver:
        def cuCtxGetCurrent(self, context):
            context._obj.value = 7 if has_context else None
            return 0

        def cuDeviceGet(self, device, index):
            device._obj.value = 10 + index
            return 0

        def cuDevicePrimaryCtxRetain(self, context, device):
            context._obj.value = 100 + device.value
            return 0

        def cuCtxSetCurrent(self, context):
            calls.append(context.value)
            return 0

    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(on_chip.driver, "driver", Driver)
    on_chip.driver.need_context()
    assert calls == ([] if has_context else [113])


FIRST_USE = """
import threading
import torch
from asap_exp import ops
from asap_exp.ops import routes

explained = ops.explain("sinkhorn_attention", n=200)
assert "plan on chip" in [choice.route for choice in explained.taken], explained
x = torch.randn(1, 1, 200, 64, device="cuda", dtype=torch.bfloat16)
results = []

def compute():
    with routes.force("plan on chip"):
        results.append(ops.sinkhorn_attention(x, x, x, num_iters=20))

thread = threading.Thread(target=compute)
thread.start()
thread.join()
assert results[0].isfinite().all()
"""


@pytest.mark.gpu
def test_explanation_before_any_other_use_of_the_gpu_and_call_in_a_thread():
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a Hopper GPU")
    subprocess.run([sys.executable, "-c", FIRST_USE], check=True)


def test_program_has_no_lambda():
    """NVRTC 13.0 takes a generic one for a function of the host."""
    files = {*on_chip.FILES, *on_chip.GRADIENT_FILES}
    assert not any(re.search(r"\[[&=]\]", (on_chip.FOLDER / name).read_text()) for name in files)


def test_another_gpu_than_the_one_that_is_there_is_not_asked_for_it(monkeypatch):
    """Explanations of a Hopper GPU on a machine that has an A100."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr(on_chip, "lacking", None)
    assert on_chip.refusal(CALL) is None


@pytest.mark.parametrize(("clusters", "idle"), [(8, False), (4, True)])
def test_gpu_whose_clusters_leave_much_idle_takes_another_route(monkeypatch, clusters, idle):
    kernel = on_chip.driver.Kernel(None, 16, clusters, 512, 0)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(nvrtc, "compiled", lambda source: b"")
    monkeypatch.setattr(on_chip.driver, "load", lambda *arguments: kernel)
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    answer = on_chip.lacking.__wrapped__(16, 0)
    assert (answer is not None) == idle
    assert answer is None or "on 64 of this GPU's 132 multiprocessors" in answer


def test_program_of_the_check_compiles(compiler):
    machine_code = nvrtc.compile_program(compiler, on_chip.EMPTY_PROGRAM)
    assert b"empty" in machine_code
    assert on_chip.NEEDED_SHARED_BYTES.encode() in machine_code


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"capability": (8, 0)}, "for Hopper .* got 8.0"),
        ({"capability": None}, "interpreter"),
        ({"dtype": SINGLE}, "16-bit inputs of one dtype, got bfloat16 and float32"),
        ({"value_dtype": HALF}, "got bfloat16 and float16"),
        ({"head_dim": 48}, "32, 64, 128 channels, got 48 and 64"),
        ({"value_dim": 32}, "got 64 and 32"),
        ({"m": 1025}, "up to 1024 tokens, got 1025"),
    ],
    ids=str,
)
def test_refusals(change, reason):
    assert re.search(reason, on_chip.refusal(CALL._replace(**change)))


@pytest.mark.parametrize(
    ("tokens", "blocks"), [(1, 1), (256, 1), (257, 2), (512, 2), (513, 3), (1024, 4)]
)
def test_blocks_of_a_side(tokens, blocks):
    assert on_chip.blocks(tokens) == blocks


VARIANTS = [
    on_chip.Variant(1, 1, 64, True, False),
    on_chip.Variant(4, 4, 64, True, False),
    on_chip.Variant(2, 2, 128, False, True),
    on_chip.Variant(1, 2, 32, False, True),
]


@pytest.fixture
def compiler():
    try:
        return nvrtc.library()
    except nvrtc.CompilationError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_updates_spill_no_register(variant, compiler):
    _, words = code.disassembled(nvrtc.compile_program(compiler, variant.source()))
    update = code.updates(words)
    assert update["LDSM"] == 16
    assert update["LDL"] == update["STL"] == 0


@pytest.mark.slow
def test_machine_code_is_kept_on_disk(compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    first = nvrtc.compiled(VARIANTS[0].source())
    assert first.startswith(b"\x7fELF")
    assert b"sinkhorn_on_chip" in first
    assert on_chip.NEEDED_SHARED_BYTES.encode() in first
    monkeypatch.setattr(nvrtc, "compile_program", None)
    assert nvrtc.compiled(VARIANTS[0].source()) == first


def test_program_that_does_not_compile_is_shown_with_the_reason(compiler):
    with pytest.raises(nvrtc.CompilationError, match='"wrong" is undefined'):
        nvrtc.compile_program(compiler, "__global__ void f() { wrong = 1; }")


def test_missing_compiler_says_what_to_install(monkeypatch):
    monkeypatch.setattr(nvrtc, "candidates", lambda major: iter(["no/such/libnvrtc.so"]))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(nvrtc.CompilationError, match="pip install nvidia-cuda-nvrtc"):
        nvrtc.library.__wrapped__()


def fields(variant: on_chip.Variant, structure: str) -> list[str]:
    """Return the names of the fields of a structure of the program."""
    body = re.search(rf"struct {structure} \{{(.*?)\}};", variant.source(), re.DOTALL)[1]
    return re.findall(r"\*?(\w+)(?=[,;])", body)


def test_fields_of_a_problem_are_those_of_the_kernel():
    for name, structure in (("Inputs", on_chip.Inputs), ("Problem : Inputs", on_chip.Problem)):
        assert fields(VARIANTS[0], name) == [field[0] for field in structure._fields_]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("hatchling") is None, reason="needs hatchling to build wheels")
def test_wheel_holds_the_kernel(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    folder = "asap_exp/ops/kernels/sinkhorn/on_chip/"
    assert {folder + name for name in on_chip.FILES + on_chip.GRADIENT_FILES} <= set(
        ZipFile(wheel).namelist()
    )


@pytest.mark.gpu
@pytest.mark.parametrize("queries", [1, 129, 256, 300, 512, 700, 1024])
@pytest.mark.parametrize("size", [1.0, 4.0, 11.0])
@pytest.mark.parametrize("dtype", [BRAIN, HALF])
@pytest.mark.parametrize("width", on_chip.WIDTHS)
def test_on_a_gpu(queries, size, dtype, width, unwritten_is_nan):
    check_on_a_gpu(inputs_for(size, dtype, batch=2, heads=70, queries=queries, head_dim=width))


@pytest.mark.gpu
@pytest.mark.parametrize("queries", [256, 512, 768, 1024])
@pytest.mark.parametrize("dtype", [BRAIN, HALF])
@pytest.mark.parametrize("width", on_chip.WIDTHS)
def test_wide_plans_on_a_gpu(queries, dtype, width, unwritten_is_nan):
    check_on_a_gpu(uneven_groups(dtype, queries, batch=2, heads=70, head_dim=width))


def check_on_a_gpu(inputs: Inputs) -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a Hopper GPU")
    q, k, v = (x.cuda() for x in (inputs.q, inputs.k, inputs.v))
    with routes.force(ROUTE), routes.recorded() as taken:
        out = ops.sinkhorn_attention(q, k, v, num_iters=20, backend="triton")
    assert [route for _, route in taken] == [ROUTE]
    one_head = [
        ops.sinkhorn_attention(*(x.double() for x in head), num_iters=20, backend="reference")
        for head in zip(*(x.split(1, dim=1) for x in (q, k, v)), strict=True)
    ]  # all at once would not leave enough memory to the tests beside this one
    assert_exact_but_for_rounding(out, torch.cat(one_head, dim=1), q.dtype)
