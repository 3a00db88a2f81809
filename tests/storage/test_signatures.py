"""Signed registries: what an unknown hand has written is refused."""

from __future__ import annotations

import pytest

from storage.artifacts import BadSignature, CorruptArtifact, Registry
from storage.signatures import Keyring, SigningKey

SECRET, OTHER = "hmac-sha256:" + "ab" * 16, "hmac-sha256:" + "cd" * 16


def ed25519_pair():
    keys = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    private = keys.Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw().hex()
    return f"ed25519:{private.private_bytes_raw().hex()}", f"ed25519:{public}"


def open_registry(url, signing=None, trusted=()):
    parse = SigningKey.parse
    return Registry(
        url,
        keyring=Keyring(
            parse(signing, variable="x") if signing else None,
            tuple(parse(key, variable="x") for key in trusted),
        ),
    )


def publish(registry):
    registry.publish("toy", {"a.txt": b"1"}, fingerprint="f")
    registry.promote("toy", 1)


@pytest.mark.parametrize("scheme", ["hmac-sha256", "ed25519"])
def test_only_trusted_signatures_are_accepted(tmp_path, scheme):
    private, public = (SECRET, SECRET) if scheme == "hmac-sha256" else ed25519_pair()
    publish(open_registry(tmp_path, private))
    assert open_registry(tmp_path, trusted=[OTHER, public]).load("toy", "production").version == 1
    assert open_registry(tmp_path).load("toy").version == 1
    with pytest.raises(BadSignature, match="no trusted key"):
        open_registry(tmp_path, trusted=[OTHER]).load("toy")


def test_unsigned_versions_and_moves_are_refused_where_trust_is_asked_for(tmp_path):
    publish(open_registry(tmp_path / "a"))
    with pytest.raises(BadSignature, match="not signed"):
        open_registry(tmp_path / "a", trusted=[SECRET]).load("toy")
    open_registry(tmp_path / "b", SECRET).publish("toy", {"a.txt": b"1"}, fingerprint="f")
    open_registry(tmp_path / "b").promote("toy", 1)
    trusting = open_registry(tmp_path / "b", trusted=[SECRET])
    assert trusting.load("toy").version == 1
    with pytest.raises(BadSignature, match="aliases/production"):
        trusting.load("toy", "production")


def test_a_changed_signature_is_damage_even_without_trusted_keys(tmp_path):
    publish(open_registry(tmp_path, SECRET))
    record = tmp_path / "toy/records/00000001.json"
    record.write_bytes(record.read_bytes().replace(b'"value":"', b'"value":"0'))
    with pytest.raises(CorruptArtifact, match=r"00000001\.json"):
        open_registry(tmp_path).load("toy")


def test_keys_come_from_the_environment_and_are_never_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("STRATA_SIGNING_KEY", SECRET)
    monkeypatch.setenv("STRATA_TRUSTED_KEYS", f"{OTHER},{SECRET}")
    registry = Registry(tmp_path)
    publish(registry)
    assert registry.load("toy").version == 1
    assert "ab" * 16 not in repr(registry._keyring)
    monkeypatch.setenv("STRATA_SIGNING_KEY", "hmac-sha256:beef")
    with pytest.raises(ValueError, match="STRATA_SIGNING_KEY") as caught:
        Registry(tmp_path)
    assert "beef" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "md5:00", "ed25519:00", "hmac-sha256:zz", "ab" * 32])
def test_malformed_keys_are_refused(text):
    with pytest.raises(ValueError, match="KEY"):
        SigningKey.parse(text, variable="KEY")
