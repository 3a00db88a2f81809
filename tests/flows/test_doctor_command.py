"""`strata doctor` of whatever a person may type: one sentence, exit code 2 and no traceback."""

import os

import pytest

from storage.locations import Location
from storage.references import Reference
from tests.storage.tables.test_activations import make_plan, write


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("https://bucket.s3.amazonaws.com/run?X-Amz-Signature=abcd", "scheme"),
        ("s3://bucket/run?X-Amz-Signature=abcd", "query"),
        ("s3://key:secret@bucket/run", "credentials"),
        ("ftp://host/run", "scheme"),
        ("s3://", "bucket"),
        ("file://elsewhere/run", "names a host"),
        ("FILE", "is a file"),
        ("FILE/below", "holds no finished"),
        ("EMPTY", "holds no finished step"),
        ("EMPTY/none", "holds no finished step"),
        ("", "empty"),
        ("no-recipe.yaml", "no-recipe"),
        ("s3://bucket/run", "cannot be read"),
        ("gs://bucket/run", "cannot be read"),
    ],
)
def test_odd_targets_get_one_sentence(url, sentence, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from flows.cli import app
    from flows.recipe import BadInput

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    # Nobody listens there.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_PATH", str(tmp_path / "none"))
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    target = url.replace("FILE", str(tmp_path / "file")).replace("EMPTY", str(tmp_path / "empty"))
    done = CliRunner().invoke(app, ["doctor", target])
    assert isinstance(done.exception, BadInput), done.exception
    told = str(done.exception)
    assert sentence in told
    assert "\n" not in told


def test_a_refusal_has_exit_code_2_and_no_traceback(strata, tmp_path):
    done = strata("doctor", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error:")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_store_without_rights_is_said(strata, tmp_path):
    step = Location(str(tmp_path / "store")) / "recover" / "0123456789abcdef"
    step.put("nodes", b"n")
    Reference.seal(step, content_hash="c", seconds=0.0, summary={})
    step.local_path.chmod(0)
    done = strata("doctor", str(tmp_path / "store"))
    step.local_path.chmod(0o700)
    assert done.returncode == 2
    assert "cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_table_by_itself_is_looked_at(tmp_path):
    from typer.testing import CliRunner

    from flows.cli import app

    stored = write(Location(str(tmp_path / "set")), make_plan())
    assert CliRunner().invoke(app, ["doctor", str(tmp_path / "set")]).exit_code == 0
    stored.location.put("rows/norms/low/c/1", b"")
    done = CliRunner().invoke(app, ["doctor", str(tmp_path / "set")])
    assert done.exit_code == 1
    assert "'norms/low' of shard 1" in done.stderr


def test_a_step_that_did_not_end_is_no_damage(tmp_path):
    from typer.testing import CliRunner

    from flows.cli import app

    step = Location(str(tmp_path)) / "recover" / "0123456789abcdef"
    step.put("nodes", b"n")
    done = CliRunner().invoke(app, ["doctor", str(tmp_path)])
    assert done.exit_code == 0
    assert "unfinished" in done.stderr
