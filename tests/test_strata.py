"""`import strata`: the front door for people."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import strata
from storage.artifacts import Registry, UnknownArtifact, UnknownVersion
from tests.storage.registry.test_artifacts import publish

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "ray", "prefect", "pandas", "numpy", "scipy", "pydantic")
# As where only the base is installed: what the extra `pipeline` brings cannot be imported.
BASE_ONLY = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "ray", "prefect", "transformers", "diffusers", "numba"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


def python(code, *arguments):
    """What code prints in a fresh interpreter that finds this checkout."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def store(tmp_path):
    """A store with two versions of `toy`."""
    registry = Registry(tmp_path / "store" / "artifacts")
    publish(registry)
    publish(registry, seed=1)
    return tmp_path / "store"


def test_its_import_is_quick_and_imports_nothing_heavy():
    code = "import sys; old = set(sys.modules); import time; start = time.perf_counter();"
    code += "import strata; took = time.perf_counter() - start;"
    code += f"print(took); print([m for m in {HEAVY!r} if m in set(sys.modules) - old])"
    runs = [python(code).splitlines() for _ in range(3)]
    assert all(heavy == "[]" for _, heavy in runs)
    assert min(float(took) for took, _ in runs) < 0.3


def test_all_of_its_names_are_there():
    assert set(dir(strata)) > {"load", "steer", "recover_edges", "HierarchicalSelectionModel"}
    for name in dir(strata):
        assert callable(getattr(strata, name))
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        strata.lode  # noqa: B018


def test_a_store_is_named_found_beside_or_set(store, tmp_path, monkeypatch):
    assert strata.load("toy", store=str(store)).version == 2
    assert strata.load("toy", 1, store=store.as_uri()).version == 1
    monkeypatch.setenv("STRATA_STORE", str(store))
    assert strata.load("toy").version == 2
    monkeypatch.delenv("STRATA_STORE")
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".strata").symlink_to(store)
    assert strata.load("toy", version=1).version == 1


def test_what_is_not_there_is_said_in_one_sentence(store, tmp_path):
    with pytest.raises(UnknownArtifact, match=r"no artifact 'toi'; in file:.*store: toy\.$"):
        strata.load("toi", store=str(store))
    with pytest.raises(UnknownVersion, match=r"version 9 does not exist; in .*: toy\.$"):
        strata.load("toy", 9, store=str(store))
    with pytest.raises(UnknownArtifact, match="nothing yet, `strata run RECIPE` fills it"):
        strata.load("toy", store=str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_base_install_loads_artifacts_and_says_what_more_needs(store):
    code = BASE_ONLY + "import json, strata; a = strata.load('toy', store=sys.argv[1]);"
    code += "c = a.concept('2:0'); print(json.dumps([c.level, len(c.parents), len(c.direction)]))"
    assert json.loads(python(code, str(store))) == [2, 2, 5]
    code = BASE_ONLY + "import strata, numpy as np; x = np.random.default_rng(0).random((500, 4));"
    code += "print(strata.recover_edges(x, x[:, :2] * x[:, 1:3]).adjacency.shape)"
    assert python(code) == "(4, 2)"
    code = BASE_ONLY + "import strata\ntry: strata.steer\nexcept ImportError as e: print(e)"
    assert python(code) == "strata.steer needs the package 'torch': pip install 'strata[pipeline]'."


@pytest.mark.slow
def test_the_wheel_holds_all_that_a_base_install_needs(store, tmp_path):
    """Builds the wheel and reads an artifact with nothing but it on the path."""
    import zipfile

    build = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--quiet", "-w", str(tmp_path)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("strata-*.whl")
    with zipfile.ZipFile(wheel) as files:
        names = set(files.namelist())
        files.extractall(tmp_path / "site")
    assert {"strata.py", "flows/recipes/smollm2.yaml", "storage/atlas/assets/page.html"} <= names
    assert "compute/pretrained/sprites/model_index.json" in names
    assert not [name for name in names if name.startswith(("tests/", "infra/"))]
    code = (
        BASE_ONLY
        + "sys.path[:] = [sys.argv[2], *(p for p in sys.path if p not in ('', sys.argv[3]))];"
    )
    code += "import strata; print(strata.__file__, strata.load('toy', store=sys.argv[1]).version)"
    told = subprocess.run(
        [sys.executable, "-c", code, str(store), str(tmp_path / "site"), str(ROOT)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert told.stdout.split() == [str(tmp_path / "site" / "strata.py"), "2"], told.stderr


def test_a_start_from_nothing_takes_no_time(store):
    """From the import to a concept, in one fresh interpreter."""
    code = "import time; start = time.perf_counter(); import sys, strata;"
    code += (
        "strata.load('toy', store=sys.argv[1]).concept('2:0'); print(time.perf_counter() - start)"
    )
    assert min(float(python(code, str(store))) for _ in range(2)) < 3
