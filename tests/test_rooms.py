"""The rooms depend on one another in one direction, and light rooms stay light."""

import ast
import io
import subprocess
import sys
import tokenize
from collections import defaultdict
from functools import cache
from importlib import import_module
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("flows", "tasks", "compute", "storage")
MAY_IMPORT = {
    "flows": {"flows", "tasks", "compute", "storage"},
    "tasks": {"tasks", "compute", "storage"},
    "compute": {"compute", "storage"},
    "storage": {"storage"},
}
# Within compute and storage: whom a room may import besides itself. A room is a folder or a loose
# file; a name stands for the rooms below it, too. A room stands below those that import it.
GROUND = {"storage.locations", "storage.records", "storage.sealing"}
ROOM_MAY_IMPORT = {
    "compute": set(),
    "compute.pretrained": set(),
    "compute.worlds": set(),
    "compute.dictionaries": set(),
    "compute.graphs": set(),
    "compute.selection": {
        "compute.dictionaries",
        "compute.graphs",
        "storage.sealing",
        "storage.tables",
        "storage.locations",
    },
    "compute.settings": {"compute.dictionaries", "storage"},
    "compute.machine": set(),
    "compute.cluster": {"compute.settings", "compute.machine"},
    "compute.models": {"compute.machine"},
    "compute.models.own": {"compute.worlds", "storage"},
    "compute.inputs": {"compute.settings", "compute.models", "compute.worlds", "storage"},
    "compute.steering": {
        "compute.dictionaries",
        "compute.models",
        "compute.inputs",
        "storage.graph",
    },
    "compute.verification": {
        "compute.dictionaries",
        "compute.models",
        "compute.inputs",
        "compute.steering",
        "storage.graph",
    },
    "compute.steps": {
        "compute.settings",
        "compute.cluster",
        "compute.steering",
        "compute.verification",
        "compute.dictionaries",
        "compute.graphs",
        "compute.selection",
        "compute.models",
        "compute.inputs",
        "storage",
    },
    "compute.report": {
        "compute.settings",
        "compute.selection",
        "compute.inputs",
        "compute.steps",
        "storage",
    },
    "storage": GROUND,
    "storage.locations": set(),
    "storage.records": set(),
    "storage.sealing": {"storage.locations", "storage.records"},
    "storage.references": GROUND | {"storage.tables"},
    "storage.tables": GROUND,
    "storage.care": GROUND
    | {"storage.references", "storage.tables", "storage.registry", "storage.artifacts"},
    "storage.graph": GROUND | {"storage.registry", "storage.exports"},
    "storage.registry": GROUND | {"storage.graph", "storage.exports"},
    "storage.exports": GROUND | {"storage.graph", "storage.registry"},
    "storage.atlas": GROUND | {"storage.graph", "storage.registry"},
    "storage.index_page": GROUND | {"storage.registry"},
    "storage.artifacts": GROUND | {"storage.graph", "storage.registry"},
    "storage.connections": set(),
    "storage.service": GROUND
    | {
        "storage.connections",
        "storage.registry",
        "storage.atlas",
        "storage.artifacts",
        "storage.index_page",
    },
}
# Rooms whose doors are files: each step is one, and so is each folder of weights.
NO_NAMES = {"compute.steps", "compute.pretrained"}
FORBIDDEN = {
    "compute": {"prefect"},
    "storage": {"prefect", "torch", "ray", "transformers", "diffusers"},
}


def imported(path):
    """Top-level packages a file imports, at its head or inside its functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room):
    for path in (ROOT / room).rglob("*.py"):
        found = set(imported(path))
        assert found & set(ROOMS) <= MAY_IMPORT[room], path
        assert not found & FORBIDDEN.get(room, set()), path


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("storage.artifacts", ("torch", "ray", "prefect", "pandas", "scipy", "networkx")),
        ("flows.recipe", ("torch", "ray", "transformers")),
        ("flows.cli", ("torch", "ray", "transformers", "prefect")),
    ],
)
def test_light_modules_import_nothing_heavy(module, heavy):
    code = f"import {module}, sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@cache
def modules():
    """Name → file of every module; a package goes by its own name."""
    found = {}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def named(node, inside):
    """Full names that an import may mean, or the text of a string."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = inside.split(".")[: len(inside.split(".")) - node.level + 1] if node.level else []
        start = ".".join([*above, *([node.module] if node.module else [])])
        yield from (f"{start}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def imports_of(name, path, known):
    """Modules of ``known`` that a file imports: at its head, in functions, for type checks.

    A string that is the name of a file counts, as lazy imports name their modules so; that of a
    package is where resources are looked for.
    """
    inside = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for wanted in named(node, inside):
            own = wanted if wanted in known else wanted.rpartition(".")[0]
            if isinstance(node, ast.Constant):
                own = wanted if known.get(wanted, path).name != "__init__.py" else ""
            if own in known and own != name:
                yield own


@cache
def import_graph():
    known = modules()
    graph = networkx.DiGraph()
    graph.add_nodes_from(known)
    for name, path in known.items():
        graph.add_edges_from((name, other) for other in imports_of(name, path, known))
    return graph


def circles(graph):
    found = networkx.strongly_connected_components(graph)
    return sorted(sorted(names) for names in found if len(names) > 1)


def test_the_import_graph_sees_imports_wherever_they_stand(tmp_path):
    file = tmp_path / "file.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from room import part\n"
        "if TYPE_CHECKING:\n    from room.typed import Name\n"
        "def f():\n    import room.late\n    from . import near\n    from ..above import x\n"
        "HOMES = {'Name': 'room.lazy'}\n"
        "FOLDER, TEXT = 'room', 'room.lazy.not_a_module'\n"
    )
    names = {"room.part", "room.typed", "room.late", "room.lazy", "a.b.near", "a.above"}
    known = {name: Path("file.py") for name in names} | {"room": Path("room", "__init__.py")}
    assert set(imports_of("a.b.file", file, known)) == names


def test_no_two_files_import_each_other():
    found = [" ↔ ".join(names) for names in circles(import_graph())]
    assert not found, f"files import each other, straight or by a detour: {found}"


def test_a_circle_is_found_by_its_names():
    graph = networkx.DiGraph([("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")])
    assert circles(graph) == [["a", "b", "c"]]


def room_of(module):
    """The innermost room that a module of compute or storage lies in."""
    while module not in ROOM_MAY_IMPORT:
        module = module.rpartition(".")[0]
    return module


def below(room, names):
    """Whether a room is one of ``names``, or lies in one."""
    return any(room == name or room.startswith(f"{name}.") for name in names)


def test_no_room_imports_from_a_floor_above():
    wrong = [
        f"{one} imports {other}"
        for one, other in import_graph().edges
        if one.startswith(("compute.", "storage."))
        and room_of(one) != room_of(other)
        and not below(room_of(other), ROOM_MAY_IMPORT[room_of(one)])
    ]
    assert not wrong, wrong
    floors = networkx.DiGraph(
        (room, other)
        for room, others in ROOM_MAY_IMPORT.items()
        for other in ROOM_MAY_IMPORT
        if room.startswith("compute.") and room != other and below(other, others)
    )
    assert not circles(floors)


def test_every_folder_of_compute_and_storage_has_its_floor():
    for top in ("compute", "storage"):
        for folder in (ROOT / top).iterdir():
            if (folder / "__init__.py").exists():
                assert f"{top}.{folder.name}" in ROOM_MAY_IMPORT, folder


def test_a_file_name_occurs_once():
    places = defaultdict(list)
    for path in [*modules().values(), *(ROOT / "tests").rglob("*.py")]:
        if path.name not in ("__init__.py", "__main__.py", "conftest.py"):
            places[path.name].append(str(path.relative_to(ROOT)))
    assert not {name: where for name, where in places.items() if len(where) > 1}


ROOMS_OF_COMPUTE = sorted(
    name for name, path in modules().items() if name.count(".") == 1 and path.name == "__init__.py"
)


@pytest.mark.parametrize("room", [name for name in ROOMS_OF_COMPUTE if "compute." in name])
def test_every_room_has_a_front_door(room):
    door = import_module(room)
    assert len(door.__doc__.splitlines()) > 2, "say what the room is for"
    if room not in NO_NAMES:
        assert door.__all__ == sorted(door.__all__)
    assert all(getattr(door, name, None) is not None for name in getattr(door, "__all__", ()))


def test_no_file_hides_a_name_of_its_front_door():
    """A package's attribute becomes the file as soon as that is imported."""
    hidden = []
    for name, path in modules().items():
        if path.name == "__init__.py":
            doors = [
                ast.literal_eval(node.value)
                for node in ast.parse(path.read_text(encoding="utf-8")).body
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            ]
            shown = [f"{name}.{own}" for door in doors for own in door]
            hidden += [one for one in shown if one in modules()]
    assert not hidden


def test_a_class_name_occurs_once():
    """Private ones, too: who reads the name alone knows the room."""
    places = defaultdict(list)
    for path in [*modules().values(), *(ROOT / "tests").rglob("*.py")]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


LONGEST_FUNCTION = 60
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def lengths_of_functions(text):
    """Function → its lines of code: without docstring, blank lines and comments."""
    coded = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            coded.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = coded & {*range(node.lineno, node.end_lineno + 1)}
            if ast.get_docstring(node) is not None:
                lines -= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
            yield node.name, len(lines)


def test_lines_of_code_are_counted():
    text = (
        'def f(\n    x,\n):\n    """One.\n\n    Two.\n    """\n\n    # why\n    return (\n'
        '        x\n    )\n\nasync def g():\n    a = """1\n\n3"""\n'
    )
    assert dict(lengths_of_functions(text)) == {"f": 6, "g": 4}


def test_no_function_is_long():
    """Who needs more lines does more than one thing."""
    folders = (*ROOMS, "infra", "tests")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    long = {
        f"{path.relative_to(ROOT)}:{name}": lines
        for path in [*found, ROOT / "strata.py"]
        for name, lines in lengths_of_functions(path.read_text(encoding="utf-8"))
        if lines > LONGEST_FUNCTION
    }
    assert not long


def test_top_level_holds_only_the_rooms():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    folders = {path.split("/")[0] for path in tracked if "/" in path and path[0] != "."}
    assert folders <= {*ROOMS, "tests", "infra"}


def test_no_pickle_is_read():
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            assert not set(imported(path)) & {"pickle", "dill", "joblib", "cloudpickle"}, path
            text = path.read_text(encoding="utf-8")
            if path == ROOT / "compute/dictionaries/imports/layouts.py":
                # Of a dictionary that others have trained, tensors are read and nothing else.
                text = text.replace('torch.load(file, map_location="cpu", weights_only=True)', "")
            assert "torch.load(" not in text, path
            assert "allow_pickle=True" not in text, path
            assert "trust_remote_code=True" not in text, path


@pytest.mark.parametrize("package", ROOMS)
def test_no_name_of_a_package_is_given_twice(package):
    """A name that a package looks up late is hidden by a file of that name, once imported."""
    for front in (ROOT / package).rglob("__init__.py"):
        nodes = list(ast.walk(ast.parse(front.read_text(encoding="utf-8"))))
        if any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in nodes):
            names = {node.value for node in nodes if isinstance(node, ast.Constant)}
            assert not names & {path.stem for path in front.parent.iterdir()}, front
