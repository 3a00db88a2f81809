"""Publishing as a step: what counts as published already."""

from storage.artifacts import Registry
from tasks.publishing import _published


def test_a_damaged_version_is_published_again_and_not_taken_for_granted(tmp_path):
    registry = Registry(tmp_path)
    assert not _published(registry, "toy", 1)
    registry.publish("toy", {"a.txt": b"1"}, fingerprint="f")
    assert _published(registry, "toy", 1)
    (registry.load("toy").path / "a.txt").unlink()
    assert not _published(Registry(tmp_path), "toy", 1)
    assert registry.publish("toy", {"a.txt": b"1"}, fingerprint="f").version == 1
    assert _published(registry, "toy", 1)
