"""NVIDIA's run-time compiler, which PyTorch's CUDA builds bring along, and its results on disk."""

import ctypes
import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import torch
from triton.runtime.cache import get_cache_manager

OPTIONS = ("--gpu-architecture=sm_90a", "--std=c++17")


class CompilationError(RuntimeError):
    """NVRTC is missing or refused a program."""


def compiled(source: str) -> bytes:
    """Return the machine code of a program for Hopper, from Triton's cache if it is there.

    Raises `CompilationError` if it does not compile or the compiler cannot be found.
    """
    compiler = library()
    key = hashlib.sha256(repr((version(compiler), OPTIONS, source)).encode()).hexdigest()
    cache = get_cache_manager(key)
    known = cache.get_file("plan.cubin")
    if known is not None:
        return Path(known).read_bytes()
    machine_code = compile_program(compiler, source)
    cache.put(machine_code, "plan.cubin", binary=True)
    return machine_code


def compile_program(compiler: ctypes.CDLL, source: str) -> bytes:
    """Return the machine code of a program, always compiling it; raises `CompilationError`."""
    program = ctypes.c_void_p()
    created = compiler.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"plan.cu", 0, None, None
    )
    check(compiler, created)
    try:
        options = (ctypes.c_char_p * len(OPTIONS))(*(option.encode() for option in OPTIONS))
        if compiler.nvrtcCompileProgram(program, len(OPTIONS), options):
            log = read(compiler, program, "ProgramLog").rstrip(b"\0").decode()
            raise CompilationError(f"NVRTC does not compile the kernel:\n{log}")
        return read(compiler, program, "CUBIN")
    finally:
        compiler.nvrtcDestroyProgram(ctypes.byref(program))


def read(compiler: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    """Return the log or the machine code of a program."""
    size = ctypes.c_size_t()
    check(compiler, getattr(compiler, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    check(compiler, getattr(compiler, f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


def check(compiler: ctypes.CDLL, result: int) -> None:
    if result:
        compiler.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise CompilationError(f"NVRTC failed: {compiler.nvrtcGetErrorString(result).decode()}")


def version(compiler: ctypes.CDLL) -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    check(compiler, compiler.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return major.value, minor.value


@functools.cache
def library() -> ctypes.CDLL:
    """Return NVRTC of the CUDA version that PyTorch was built for."""
    if torch.version.cuda is None:
        raise CompilationError(
            f"PyTorch {torch.__version__} was built without CUDA; install a CUDA build"
        )
    places = list(candidates(torch.version.cuda.split(".")[0]))
    for place in places:
        try:
            if Path(place).is_absolute():  # NVRTC opens its second library by its name alone
                for builtins in Path(place).parent.glob("libnvrtc-builtins.so.*"):
                    ctypes.CDLL(str(builtins))
            return ctypes.CDLL(place)
        except OSError:
            continue
    raise CompilationError(
        f"NVRTC was not found as {', '.join(places)}; install it with pip install nvidia-cuda-nvrtc"
    )


def candidates(major: str) -> Iterator[str]:
    """Yield where NVRTC may be: known to the loader, or in a package that PyTorch depends on."""
    yield f"libnvrtc.so.{major}"
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec and spec.submodule_search_locations) or ():
        yield from sorted(map(str, Path(folder).glob(f"*/lib/libnvrtc.so.{major}")))
