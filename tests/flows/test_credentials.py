"""Secrets are made once, for their owner alone, and one that others could read is not used."""

import os
import stat

import pytest

from flows.credentials import kept_secret, new_login, new_token, private_folder


def test_it_is_made_once_and_for_its_owner(tmp_path):
    old = os.umask(0)
    try:
        folder = private_folder(tmp_path / "a" / "home")
        first = kept_secret(folder / "secret", new_login)
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "secret").stat().st_mode) == 0o600
    assert kept_secret(folder / "secret", new_login) == first
    assert new_login() != new_login()
    assert new_token() != new_token()
    user, _, password = first.partition(":")
    assert user == "strata"
    assert len(password) >= 40


def test_an_open_folder_is_closed(tmp_path):
    tmp_path.chmod(0o777)
    private_folder(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder away")
def test_anothers_folder_is_refused(tmp_path):
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(ValueError, match="belongs to another user: give a folder"):
        private_folder(tmp_path)


@pytest.mark.parametrize("kind", ["readable", "link", "empty", "folder"])
def test_a_secret_that_is_none_is_refused(kind, tmp_path):
    path, target = tmp_path / "secret", tmp_path / "target"
    target.write_text("planted")
    target.chmod(0o600)
    if kind == "link":
        path.symlink_to(target)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_text("" if kind == "empty" else "seen")
        path.chmod(0o600 if kind == "empty" else 0o644)
    with pytest.raises(ValueError, match=r"remove the file, and start again"):
        kept_secret(path, new_token)
    assert target.read_text() == "planted"
