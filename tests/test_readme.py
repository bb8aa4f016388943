"""The README's examples run, in order and in one namespace, and print what they say they print."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


def run(capsys):
    namespace = {}
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), namespace)
        said = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
        assert capsys.readouterr().out.splitlines() == said, block


def test_there_are_examples():
    assert len(BLOCKS) >= 5


def test_examples_print_what_they_say(capsys):
    run(capsys)


@pytest.mark.usefixtures("x64_off")
def test_examples_print_the_same_in_float32(capsys):
    run(capsys)


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?://)([^)#]+)\)", README.read_text())
    assert targets
    for target in targets:
        assert (README.parent / target).exists(), target
