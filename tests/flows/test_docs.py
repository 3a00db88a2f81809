"""What the pages tell people to type is there to be typed, and their examples run."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from flows import settings_page
from flows.cli import app
from flows.recipe import Recipe, load_recipe, recipe_names
from flows.training_recipes import TRAININGS, load_training

ROOT = Path(__file__).parents[2]
# Model cards are pages of their models' folders; what they tell to run takes minutes.
PAGES = sorted(
    path
    for path in subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    if not path.startswith("compute/pretrained/")
)
TEXT = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
_FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^ {4}(?=\w+=|strata |python |make )(.+)$", re.MULTILINE)
_INLINE = re.compile(r"`((?:\w+=\S+ )?(?:strata|python|make) [^`…|]+)`")


def fences(*languages):
    """Page, what follows the language, and text of the fenced blocks in some languages."""
    return [
        (page, found[2].strip(), found[3])
        for page in PAGES
        for found in _FENCE.finditer(TEXT[page])
        if found[1] in languages
    ]


def commands():
    """Page and line of every command that a page gives, environment variables left out."""
    found = {
        (page, line) for page, _, text in fences("console", "bash") for line in text.splitlines()
    }
    for page in PAGES:
        prose = _FENCE.sub("", TEXT[page])
        found |= {(page, " ".join(each.split())) for each in _INLINE.findall(prose)}
        found |= {(page, line) for line in _INDENTED.findall(prose)}
    words = [(page, shlex.split(line, comments=True)) for page, line in sorted(found)]
    return [(page, _without_environment(line)) for page, line in words if line]


def _without_environment(words):
    return words[next(i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)) :]


def told(program):
    """Arguments of a program's commands, with the pages that tell them."""
    return [
        pytest.param(page, words[1:], id=f"{page}: {' '.join(words)}")
        for page, words in commands()
        if words[0] == program and len(words) > 1
    ]


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    """A training looks whether it can write before it is given its settings."""
    monkeypatch.setenv("STRATA_STORE", str(tmp_path))


@pytest.mark.parametrize(("page", "words"), told("strata"))
def test_commands_of_strata_parse(page, words):
    """By the command line itself: names, options, values and how many there are."""
    command, words = get_command(app), list(words)
    while hasattr(command, "commands"):
        if not words:
            return
        name = words.pop(0)
        assert name in command.commands, f"{page}: no command {name!r}"
        command = command.commands[name]
    if not words and any(parameter.required for parameter in command.params):
        # Named in passing, not to be typed.
        return
    if "--help" in words:
        return
    with command.make_context(command.name, words) as context:
        values = context.params
    recipe, settings = values.get("recipe"), values.get("settings") or []
    if recipe in TRAININGS:
        load_training(recipe, settings)
    elif recipe in recipe_names():
        load_recipe(recipe, settings)
    elif recipe and recipe != "RECIPE":
        assert recipe in {"mine.yaml", "pictures.yaml"}, f"{page}: no recipe {recipe!r}"


@pytest.mark.parametrize(("page", "words"), told("python"))
def test_scripts_are_there_with_their_options(page, words):
    named = words[1].replace(".", "/") + ".py" if words[0] == "-m" else words[0]
    script = ROOT / named
    assert script.is_file(), f"{page}: no {named}"
    text = script.read_text(encoding="utf-8")
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        assert f'"{option}"' in text, f"{page}: {named} has no {option}"


@pytest.mark.parametrize(
    "line",
    [
        "run smollm3",
        "run smollm2 --sett x=1",
        "run smollm2 --set learn.q=1",
        "run train-sprites --set denoiser_step=1",
        "artifacts lst",
        "artifacts serve --port x",
        "artifacts show a b c",
        "serve mine.yaml --cron",
    ],
)
def test_commands_that_are_wrong_are_noticed(line):
    # An error of the command line is an exception of click's, whose classes typer may bring along.
    with pytest.raises(Exception) as caught:  # noqa: PT011
        test_commands_of_strata_parse("a page", line.split())
    assert type(caught.value).__name__ in {
        "AssertionError",
        "BadInput",
        "NoSuchOption",
        "BadParameter",
        "UsageError",
        "BadOptionUsage",
    }


@pytest.mark.parametrize(("page", "words"), told("make"))
def test_make_targets_exist(page, words):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(words) <= targets, page


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", TEXT[page]):
        path, _, anchor = target.partition("#")
        place = (ROOT / page).parent / path if path else ROOT / page
        assert place.exists(), f"{page}: {target}"
        if anchor:
            heads = re.findall(r"^#+ (.+)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, f"{page}: {target}"


@pytest.mark.parametrize(
    ("page", "text"), [(page, text) for page, _, text in fences("yaml", "yml")]
)
def test_recipes_on_the_pages_are_valid(page, text):
    values = yaml.safe_load(text)
    # A few settings are an addition to a whole recipe.
    whole = {} if "name" in values else yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    Recipe.model_validate(
        whole | {name: merged(whole.get(name), value) for name, value in values.items()}
    )


RECIPE = ROOT / "flows" / "recipes" / "smollm2.yaml"


def merged(old, new):
    return {**old, **new} if isinstance(old, dict) else new


def test_recipes_are_described():
    for name in recipe_names():
        assert f"`{name}`" in TEXT["flows/README.md"], name


def test_the_page_of_settings_is_what_the_settings_say():
    remedy = "write it anew: python -m flows.settings_page"
    assert settings_page.PAGE.read_text(encoding="utf-8") == settings_page.settings_page(), remedy


def test_the_front_page_is_short_and_has_two_pictures():
    front = TEXT["README.md"]
    assert len(front.splitlines()) <= 150
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+\.png)\)", front)
    assert len(pictures) == 2
    for picture in pictures:
        assert 10_000 < (ROOT / picture).stat().st_size <= 150_000


@pytest.mark.parametrize("page", PAGES)
def test_pages_use_the_words_of_the_glossary(page):
    assert not re.search(r"\bforet(ell|old)|\btabled?\b anew", TEXT[page]), page


def test_every_room_has_a_page_at_its_door():
    rooms = ["flows", "tasks", "compute", "storage", "infra", "tests", "tests/benchmarks"]
    rooms += [
        f"compute/{path.name}"
        for path in (ROOT / "compute").iterdir()
        if (path / "__init__.py").exists() and path.name != "pretrained"
    ]
    for room in rooms:
        assert f"{room}/README.md" in PAGES, room


# ---- examples that run --------------------------------------------------------------------------

# What stands on a page for what the tiny run has.
STAND_INS = {
    '"smollm2"': '"tiny"',
    '"layer-15"': '"layer-02"',
    "2:417": "{concept}",
    "2, 417": "2, {index}",
    "concept=417": "concept={index}",
    "[417]": "[{index}]",
    '".strata/artifacts"': '"store/artifacts"',
    '"list"': '"red"',
}


@pytest.fixture(scope="module")
def home(built, recipe, tmp_path_factory):
    """A folder with a copy of the tiny run's store, in which examples run."""
    place = tmp_path_factory.mktemp("home")
    shutil.copytree(recipe.store, place / "store")
    return place


@pytest.fixture(scope="module")
def supplied(home, built, recipe, tiny_model, artifact):
    """What the pages' examples take for given: arrays, a model, tables of a run."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from compute.worlds import SelectionWorld
    from storage.tables.activations import ActivationSet
    from storage.tables.codes import CodeSet

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    world = SelectionWorld.vectors(sizes=(12, 5, 3), dim=16, seed=0).sample(400)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    states = rng.integers(0, 2, (400, 2))
    flips = rng.random((400, 6)) < 0.1
    return {
        "artifact": artifact,
        "model": AutoModelForCausalLM.from_pretrained(tiny_model),
        "inputs": dict(tokenizer("the red house", return_tensors="pt"), max_new_tokens=2),
        "source": str(tiny_model),
        "tokens": [rng.integers(4, 30, 60) for _ in range(40)],
        "x": rng.normal(size=(200, 16)).astype(np.float32),
        "x_1": world.activations[0],
        "x_2": world.activations[1],
        "x_3": world.activations[2],
        "parts": world.codes[0],
        "wholes": world.codes[1],
        "environment": np.arange(400) % 2,
        "counts": rng.multinomial(5000, np.outer([0.2, 0.3, 0.5], [0.4, 0.6]).ravel()).reshape(
            3, 2
        ),
        "labels": np.repeat(states, 3, axis=1) ^ flips,
        "activations": ActivationSet(built["extract"].location),
        "codes": CodeSet(built["encode"].location),
    }


@pytest.mark.server
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "page", sorted({page for page, how, _ in fences("python") if how != "no-run"})
)
def test_examples_run(page, home, supplied, artifact, monkeypatch):
    """All of a page's Python, one block after the other, on the tiny run."""
    graph = artifact.graph
    # One that has what the pages show: parts, wholes or examples.
    concept = max(
        (node for node in graph.nodes["id"].to_pylist() if node.startswith("2:")),
        key=lambda node: len(graph.parents(node)),
    )
    monkeypatch.chdir(home)
    monkeypatch.setenv("STRATA_STORE", str(home / "store"))
    names = dict(supplied)
    for where, how, text in fences("python"):
        if where != page or how == "no-run":
            continue
        for shown, real in STAND_INS.items():
            text = text.replace(shown, real.format(concept=concept, index=concept[2:]))
        exec(compile(text, page, "exec"), names)
    if page == "README.md":
        assert names["concept"].id == concept
        assert names["codes"].shape == (200, 48)
    shutil.rmtree(home / "smollm2-graph", ignore_errors=True)


@pytest.mark.server
def test_commands_on_artifacts_run(home, monkeypatch):
    """Those of the cookbook, one after the other, as they stand there."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("STRATA_STORE", str(home / "store"))
    lines = [
        line
        for page, _, text in fences("console")
        if page == "flows/README.md"
        for line in text.splitlines()
        if line.startswith(("strata artifacts", "strata recipes")) and "s3:" not in line
    ]
    ran = [line for line in lines if "artifacts serve" not in line]
    assert len(ran) >= 9
    for line in ran:
        words = shlex.split(line.replace("smollm2", "tiny"))[1:]
        done = CliRunner().invoke(app, words, env=dict(os.environ))
        assert done.exit_code == 0, (line, done.output, done.exception)
    assert (home / "tiny-hub" / "README.md").is_file()
