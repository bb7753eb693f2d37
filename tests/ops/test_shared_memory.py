"""Tiles fit into the shared memory of a block, which Triton's interpreter would not notice."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.documents import ROOT

MOST = {"80": 166_912, "90": 232_448}
"""Bytes that a block may have, by compute capability."""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_tiles_fit():
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.ops.shared_memory"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 96 + 24
    assert [line for line in lines if int(line[-1]) > MOST[line[-2]]] == []
