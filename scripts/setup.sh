#!/bin/sh
# Create the virtual environment $VENV with the pinned versions. Called by `make setup`.
# VERSIONS=oldest installs the oldest allowed versions of its direct dependencies (needs uv).
set -eu
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
VERSIONS=${VERSIONS:-pinned}

"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || {
    echo "error: $PYTHON is $("$PYTHON" --version 2>&1); Python 3.11, 3.12 or 3.13 is needed." \
        "Choose one with: make PYTHON=/path/to/python3.13 setup" >&2
    exit 2
}

echo "Installing into $VENV, once: 6 to 7 GB, mostly PyTorch with CUDA; minutes on a fast network"
if command -v uv >/dev/null 2>&1; then
    uv venv --quiet --allow-existing --python "$PYTHON" "$VENV"
    constraints=constraints.txt
    if [ "$VERSIONS" = oldest ]; then
        oldest=$VENV/oldest.txt constraints=$VENV/constraints.txt
        uv pip compile --quiet pyproject.toml --resolution lowest-direct \
            --python "$VENV/bin/python" --no-header --no-annotate --output-file "$oldest" >/dev/null
        # The tools that check and run the tests keep their pinned versions.
        grep -E '^(codespell|mypy|pytest|ruff)==' constraints.txt | cat "$oldest" - >"$constraints"
    fi
    uv pip install --python "$VENV/bin/python" -c "$constraints" -e '.[dev,docs,hf,sweep]'
else
    "$PYTHON" -m venv "$VENV"
    "$VENV/bin/python" -m pip install --disable-pip-version-check \
        -c constraints.txt -e '.[dev,docs,hf,sweep]'
fi
