"""The example of docs/own_data.md: its data set is made, found and described as the page says."""

import re

import pytest

from asap_exp.core.composing import compose
from asap_exp.core.config import TrainConfig
from asap_exp.data.own.find import found
from tests.documents import ROOT, blocks, commands

PAGE = ROOT / "docs" / "own_data.md"


@pytest.mark.slow
def test_example_prints_what_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (snippet,) = blocks(PAGE, "python")
    exec(snippet, {})
    (command,) = [command for command in commands(PAGE) if "my_digits" in command]
    found(compose("train", command.split()[3:], TrainConfig))
    (printed,) = blocks(PAGE, "text")
    assert capsys.readouterr().out == printed


def test_page_names_every_key_that_is_found():
    text = PAGE.read_text()
    for name in ("own_images", "own_texts"):
        yaml = (ROOT / "conf" / "train" / "data" / f"{name}.yaml").read_text()
        for key in re.findall(r"^ *(\w+): (?:null|auto)$", yaml, flags=re.MULTILINE):
            assert re.search(rf"`data\.(augment\.)?{key}\b", text), key
