"""What the documents tell people to type is there to be typed."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from flows.cli import app
from flows.recipe import recipe_names

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "infra/README.md", "infra/SECURITY.md")
_COMMAND = re.compile(r"(?:^ {4}|`)(?:\w+=\S+ )?(strata [^`\n#…]+)", re.MULTILINE)
_TARGET = re.compile(r"(?:^ {4}|`)(make [a-z -]+)", re.MULTILINE)


def commands():
    return [
        (document, " ".join(found.split()))
        for document in DOCUMENTS
        for found in _COMMAND.findall((ROOT / document).read_text())
    ]


@pytest.mark.parametrize(("document", "line"), commands())
def test_commands_and_their_options_exist(document, line):
    words = [word for word in shlex.split(line)[1:] if word != "|"]
    command = get_command(app)
    while words and hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, line
        command = command.commands[name]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    known |= {o for parameter in command.params for o in parameter.secondary_opts}
    for word in words:
        if word.startswith("-"):
            assert word.split("=")[0] in known, line


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for document in DOCUMENTS:
        for line in _TARGET.findall((ROOT / document).read_text()):
            assert set(line.split()[1:]) <= targets, line


def test_recipes_are_described():
    readme = (ROOT / "README.md").read_text()
    for name in recipe_names():
        assert f"`{name}`" in readme, name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    folder = (ROOT / document).parent
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / document).read_text()):
        assert (folder / target).exists(), target
