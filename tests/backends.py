"""A real PostgreSQL and a real S3 endpoint of a test's own."""

import contextlib
import http.client
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.conftest import free_ports

S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
}


def postgres_programs():
    """Folder of PostgreSQL's programs, as Debian puts them; None without the package."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    return found[-1].parent if found else None


class Postgres:
    """A cluster in a temporary folder, on a port of the loopback address."""

    def __init__(self):
        self._programs = postgres_programs()
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        # PostgreSQL refuses to run as root; Debian's package brings a user for it.
        self._user = {"user": "postgres"} if os.geteuid() == 0 else {}
        if self._user:
            shutil.chown(self._folder, "postgres")
        (self.port,) = free_ports(1)
        secret = self._folder / "password"
        secret.write_text("a-password")
        secret.chmod(0o644)
        options = ["--username=strata", "--auth=scram-sha-256", f"--pwfile={secret}"]
        self._do("initdb", *options)
        self.start()
        self.url = f"postgresql://strata:a-password@127.0.0.1:{self.port}/postgres"

    def start(self):
        """Start the server and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self._folder}"
        self._do("pg_ctl", "--wait", f"--log={self._folder}/log", f"--options={options}", "start")

    def stop(self):
        """Stop the server at once; whoever is connected is cut off."""
        self._do("pg_ctl", "--wait", "--mode=immediate", "stop")

    def ask(self, query):
        """The one value that a query finds."""
        command = [self._programs / "psql", self.url, "--no-align", "--tuples-only", "-c", query]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def close(self):
        """Stop, and forget everything."""
        with contextlib.suppress(AssertionError):
            self.stop()
        shutil.rmtree(self._folder)

    def _do(self, program, *arguments):
        done = subprocess.run(
            [self._programs / program, f"--pgdata={self._folder / 'data'}", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self._folder,
            **self._user,
        )
        assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def s3_server():
    """moto's server with an empty bucket named ``bucket``; yields its port."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("PUT", "/bucket")
    assert connection.getresponse().status == 200
    try:
        yield port
    finally:
        server.stop()
