#!/bin/sh
# A formula of several lines becomes one line that is no XML, without a word.
#
# latex2mathml 3.81.1 lays out align, align* and split as tables. aligned, gathered and alignedat,
# the forms that stand within a formula, and so the ones that Markdown's $$ ... $$ and notebooks
# need, are read as if their names were not there: lines run on, and each & stands in the output as
# it is, which no XML parser takes. Other names that it does not know become visible in the output;
# these leave nothing to look for but the &.
#
# Seen with latex2mathml 3.81.1: environment, whether the MathML is XML, rows of a table in it:
#   align*: True, 2
#   split: True, 2
#   aligned: False, 0
#   alignedat: False, 0
#   gathered: True, 0
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet latex2mathml==3.81.1
cat > "$folder/trial.py" <<'PY'
import sys
from xml.etree import ElementTree

from latex2mathml.converter import convert

found = {}
for name, options, mark in (("align*", "", "&"), ("split", "", "&"), ("aligned", "", "&"),
                            ("alignedat", "{1}", "&"), ("gathered", "", "")):
    lines = rf"\begin{{{name}}}{options} x {mark}= 1 \\ y {mark}= 2 \end{{{name}}}"
    output = convert(lines, display="block")
    try:
        ElementTree.fromstring(output)
        is_xml = True
    except ElementTree.ParseError:
        is_xml = False
    found[name] = is_xml, output.count("<mtr>")
    print(f"{name}: {is_xml}, {found[name][1]}")
sys.exit(list(found.values()) != [(True, 2), (True, 2), (False, 0), (False, 0), (True, 0)])
PY
"$folder/venv/bin/python" "$folder/trial.py"
