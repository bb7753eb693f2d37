#!/bin/sh
# Create the virtual environment $VENV with the pinned versions. Called by `make setup`.
# VERSIONS=oldest installs the oldest allowed versions of its direct dependencies (needs uv).
# TORCH_INDEX=URL takes PyTorch from that index, such as https://download.pytorch.org/whl/cpu. A build
# of PyTorch that the environment already has from there (its version ends in +cpu, say) is kept.
set -eu
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
VERSIONS=${VERSIONS:-pinned}
TORCH_INDEX=${TORCH_INDEX:-}

"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || {
    echo "error: $PYTHON is $("$PYTHON" --version 2>&1); Python 3.11, 3.12 or 3.13 is needed." \
        "Choose one with: make PYTHON=/path/to/python3.13 setup" >&2
    exit 2
}

uv=$(command -v uv || true)
if [ -n "$uv" ]; then
    # With pip, so that `pip install "asap_exp[tensorboard]"` finds the activated environment's.
    uv venv --quiet --allow-existing --seed --python "$PYTHON" "$VENV"
else
    "$PYTHON" -m venv "$VENV"
fi
install() {
    if [ -n "$uv" ]; then
        uv pip install --python "$VENV/bin/python" "$@"
    else
        "$VENV/bin/python" -m pip install --disable-pip-version-check "$@"
    fi
}

constraints=constraints.txt
if [ "$VERSIONS" = oldest ] && [ -n "$uv" ]; then
    oldest=$VENV/oldest.txt constraints=$VENV/constraints.txt
    uv pip compile --quiet pyproject.toml --resolution lowest-direct \
        --python "$VENV/bin/python" --no-header --no-annotate --output-file "$oldest" >/dev/null
    # The tools that check and run the tests keep their pinned versions.
    grep -E '^(codespell|mypy|pytest|ruff)==' constraints.txt | cat "$oldest" - >"$constraints"
fi

if [ -n "$TORCH_INDEX" ]; then
    echo "Installing PyTorch from $TORCH_INDEX into $VENV"
    # Its dependencies come from PyPI with the others, in their pinned versions.
    install --no-deps --index-url "$TORCH_INDEX" -c "$constraints" torch torchvision
fi
torch=$("$VENV/bin/python" -c 'from importlib.metadata import version; print(version("torch"))' \
    2>/dev/null || true)
case $torch in
    *+*)
        echo "Installing into $VENV beside PyTorch $torch, which is kept"
        grep -vE '^(torch|torchvision)==' "$constraints" >"$VENV/kept.txt"
        constraints=$VENV/kept.txt
        ;;
    *) echo "Installing into $VENV, once: 6 to 7 GB, mostly PyTorch with CUDA; minutes on a fast network" ;;
esac
install -c "$constraints" -e '.[dev,docs,hf,sweep]'
