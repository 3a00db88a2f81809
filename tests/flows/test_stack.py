import os

import psutil

from flows.services import Running, _since_boot


def test_a_service_is_known_again_after_the_clock_was_set(monkeypatch):
    """The system counts a process' age from its start, which it moves with the clock."""
    service = Running("server", os.getpid(), _since_boot(psutil.Process()), "")
    boot = psutil._psplatform.boot_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot + 3600)
    assert psutil.boot_time() == boot + 3600
    assert service.alive


def test_another_process_of_the_same_number_is_another():
    service = Running("server", os.getpid(), _since_boot(psutil.Process()) - 60, "")
    assert not service.alive
