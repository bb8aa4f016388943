"""The README's examples run, in order and in one namespace, and print what they say they print."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+\.?\d*")


@pytest.mark.usefixtures("x64_off")  # as a reader has it who sets no flag
def test_examples_print_what_they_say(capsys):
    assert len(BLOCKS) >= 5
    namespace = {}
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), namespace)
        printed = capsys.readouterr().out.splitlines()
        said = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
        assert [skeleton(line) for line in printed] == [skeleton(line) for line in said], block
        assert numbers(printed) == pytest.approx(numbers(said), rel=1e-5), block


def skeleton(line):
    """The line without its numbers, and without the blanks that align them."""
    return re.sub(r"\s+", "", NUMBER.sub("#", line))


def numbers(lines):
    return [float(number) for line in lines for number in NUMBER.findall(line)]


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?://)([^)#]+)\)", README.read_text())
    assert targets
    for target in targets:
        assert (README.parent / target).exists(), target
