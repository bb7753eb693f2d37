#!/bin/sh
# A generic lambda in a kernel compiles with one NVRTC and is a function of the host to another.
#
# A lambda inside a __global__ or __device__ function runs on the GPU without being marked. NVRTC
# 13.2.78 compiles one with an `auto` parameter too. NVRTC 13.0.88, which PyTorch's builds for CUDA
# 13.0 bring along, takes its call operator for an unannotated function of the host and refuses the
# program; a lambda with typed parameters is fine in both. Nothing is run, so no GPU is needed: a
# program that is only compiled with the newer one still fails on the user's machine.
#
# Seen with nvidia-cuda-nvrtc 13.0.88 and 13.2.78:
#   13.0: typed yes, generic error: A function without execution space annotations
#   13.2: typed yes, generic yes
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
install() {
    "$folder/venv/bin/python" -m pip install --quiet --no-deps --target "$folder/$1" "$2"
}
install 13.0.88 nvidia-cuda-nvrtc==13.0.88
install 13.2.78 nvidia-cuda-nvrtc==13.2.78
cat > "$folder/compile.py" <<'PY'
import ctypes
import sys
from pathlib import Path

PROGRAM = """
extern "C" __global__ void kernel(int* x) {
  const auto write = [&](TYPE y) { x[y] = y; };
  write(1);
}
"""


def library(folder):
    """Load NVRTC and, first, its second library, which it opens by its name alone."""
    (path,) = Path(folder).glob("nvidia/*/lib/libnvrtc.so.*")
    for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(builtins))
    return ctypes.CDLL(str(path))


def outcome(nvrtc, source):
    """Return "yes" if the program compiles, else the compiler's first words."""
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"a.cu", 0, None, None)
    options = (ctypes.c_char_p * 2)(b"--gpu-architecture=sm_90a", b"--std=c++17")
    if not nvrtc.nvrtcCompileProgram(program, 2, options):
        return "yes"
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    return log.value.decode().split(": ", 1)[1].split(" (")[0]


nvrtc = library(sys.argv[1])
major, minor = ctypes.c_int(), ctypes.c_int()
nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
found = {name: outcome(nvrtc, PROGRAM.replace("TYPE", type_))
         for name, type_ in (("typed", "int"), ("generic", "auto"))}
print(f"{major.value}.{minor.value}: typed {found['typed']}, generic {found['generic']}")
assert found["typed"] == "yes"
refused = "error: A function without execution space annotations"
assert found["generic"] == {0: refused, 2: "yes"}[minor.value], found
PY
for version in 13.0.88 13.2.78; do
    "$folder/venv/bin/python" "$folder/compile.py" "$folder/$version"
done
