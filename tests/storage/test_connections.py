"""What a client can take of the service: a real server, real sockets, and little patience."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import psutil
import pytest

from storage.artifacts import Registry
from tests.conftest import free_ports

CLIENTS = 40
BIG = 100 * 2**20
START = """
import storage.connections as c
c.CLIENTS, c.REQUEST_SECONDS, c.STALL_SECONDS = {clients}, 1.0, {stall}
from storage.service import serve
serve({url!r}, port={port})
"""


class WatchedServer:
    def __init__(self, url, *, stall):
        [self.port] = free_ports(1)
        code = START.format(clients=CLIENTS, stall=stall, url=url, port=self.port)
        self.process = subprocess.Popen([sys.executable, "-c", code])
        deadline = time.monotonic() + 120
        while True:
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            try:
                with self.ask("/artifacts") as answering:
                    if answering.recv(1000).startswith(b"HTTP/1.1 200"):
                        return
            except OSError:
                time.sleep(0.1)

    def connect(self, receive_buffer=None):
        client = socket.socket()
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(60)
        client.connect(("127.0.0.1", self.port))
        return client

    def ask(self, path, *headers, receive_buffer=None):
        client = self.connect(receive_buffer)
        lines = [f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]
        client.sendall("\r\n".join(lines).encode())
        return client

    @property
    def memory(self):
        return psutil.Process(self.process.pid).memory_info().rss

    def stop(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry")
    big = folder / "big.bin"
    with big.open("wb") as stream:
        stream.truncate(BIG)
    Registry(folder / "registry").publish("toy", {"big.bin": big}, fingerprint="1")
    return str(folder / "registry")


@pytest.fixture(scope="module")
def server(url):
    server = WatchedServer(url, stall=2.0)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def patient_server(url):
    server = WatchedServer(url, stall=600.0)
    yield server
    server.stop()


FILE = "/artifacts/toy/versions/1/files/big.bin"


def read_all(client):
    """Everything up to the end of the connection; None where it was broken."""
    got = bytearray()
    try:
        while piece := client.recv(2**20):
            got += piece
    except ConnectionResetError:
        return None
    return bytes(got)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /artifacts HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /artifacts HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx",
        b"GET /artifacts HTTP/1.1\r\nHost: localhost\r\n\r\nGET /art",
    ],
)
def test_half_a_request_is_not_waited_for(server, sent):
    clients = [server.connect() for _ in range(20)]
    for client in clients:
        client.sendall(sent)
    for client in clients:
        # It ends, or the socket's own timeout fails the test.
        read_all(client)
        client.close()


def test_a_drop_at_a_time_keeps_no_connection_open(server):
    def drip(client):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            client.sendall(b"G")
            time.sleep(0.2)

    with server.connect() as client, pytest.raises(OSError, match=r"reset|pipe"):
        drip(client)


def test_a_client_that_reads_nothing_is_let_go(server):
    with server.ask(FILE, receive_buffer=4096) as client:
        assert client.recv(12) == b"HTTP/1.1 200"
        time.sleep(6)
        got = read_all(client)
        assert got is None or len(got) < BIG


def test_one_client_too_many_is_told_to_come_again(server):
    clients = [server.connect() for _ in range(CLIENTS + 5)]
    answers = [client.recv(100) for client in clients[CLIENTS:]]
    assert all(answer.startswith(b"HTTP/1.1 503") for answer in answers)
    for client in clients:
        client.close()
    deadline = time.monotonic() + 60
    while True:
        with server.ask("/artifacts") as client:
            if client.recv(12) == b"HTTP/1.1 200":
                break
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize("length", [10_000, 1_000_000])
def test_endless_headers_are_refused(server, length):
    with server.connect() as client:
        try:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * length * 2)
            answer = read_all(client)
        except OSError:
            answer = None
        assert not answer or answer.startswith(b"HTTP/1.1 400")


def test_slow_readers_of_large_files_cost_little(patient_server):
    server = patient_server
    with server.ask(FILE, "Connection: close") as client:
        whole = read_all(client)
    assert whole.endswith(bytes(BIG))
    before = server.memory
    clients = [server.ask(FILE, receive_buffer=4096) for _ in range(20)]
    try:
        for client in clients:
            assert client.recv(12) == b"HTTP/1.1 200"
        peak = 0
        for _ in range(10):
            for client in clients:
                client.recv(1000)
            peak = max(peak, server.memory)
            time.sleep(0.1)
        assert peak - before < 100e6
    finally:
        for client in clients:
            client.close()


def test_a_part_comes_without_the_rest(patient_server):
    asked = ("Range: bytes=104857590-", "Connection: close")
    with patient_server.ask(FILE, *asked) as client:
        head, _, body = read_all(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 206")
    assert b"content-range: bytes 104857590-104857599/104857600" in head.lower()
    assert body == bytes(10)
