"""Logs of workers that have ended go, but the last ones; all else stays."""

import os
import subprocess
import sys

from flows.ray_head import clear_logs

FAMILY = (
    "worker-{0:056x}-ffffffff-{0}.out",
    "worker-{0:056x}-01000000-{0}.err",
    "python-core-worker-{0:056x}_{0}.log",
    "python-core-driver-01{0:054x}_{0}.log",
    "events/event_CORE_WORKER_{0}.log",
    "export_events/event_EXPORT_TASK_{0}.log",
)
OTHERS = ("raylet.out", "gcs_server.err", "events/event_GCS.log", "dashboard_agent.log")


def ended_processes(count):
    numbers = []
    for _ in range(count):
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        numbers.append(process.pid)
    return numbers


def test_the_last_to_end_and_the_living_keep_their_logs(tmp_path):
    ended = ended_processes(5)
    for folder in ("events", "export_events"):
        (tmp_path / folder).mkdir()
    for age, number in enumerate([*ended, os.getpid()]):
        for name in FAMILY:
            path = tmp_path / name.format(number)
            path.touch()
            os.utime(path, (1000 + age, 1000 + age))
    for name in OTHERS:
        (tmp_path / name).touch()
    clear_logs(tmp_path, kept=2)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    kept = [*ended[-2:], os.getpid()]
    assert left == {name.format(number) for number in kept for name in FAMILY} | set(OTHERS)


def test_no_folder_is_no_error(tmp_path):
    clear_logs(tmp_path / "missing")
