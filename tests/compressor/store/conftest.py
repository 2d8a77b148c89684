"""Stores of every kind, and a Redis server of their own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kompakt.compressor.store.memory import MemoryStore
from kompakt.compressor.store.redis import RedisStore
from kompakt.compressor.store.sqlite import SQLiteStore
from kompakt.compressor.store.tiered import TieredStore

SOURCE = Path(__file__).parents[3] / "src"


class RedisServer:
    """A server on a socket in a folder, whose content ends with it."""

    def __init__(self, folder):
        self._folder = folder
        self._process = None
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"

    def start(self):
        arguments = ["--port", "0", "--unixsocket", str(self.socket), "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(
            [shutil.which("redis-server"), *arguments, "--dir", str(self._folder), "--logfile", "redis.log"],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 30
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "redis.log").read_text()
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        return self

    def _answers(self):
        import redis

        try:
            with redis.Redis.from_url(self.url) as client:
                return client.ping()
        except redis.RedisError:
            return False

    def kill(self):
        self._end(signal.SIGKILL)

    def stop(self):
        self._end(signal.SIGTERM)

    def _end(self, how):
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def client(self):
        import redis

        return redis.Redis.from_url(self.url)


def _new_server(folder):
    pytest.importorskip("redis")
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    return RedisServer(folder).start()


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory):
    server = _new_server(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def redis_server(shared_redis):
    """A server without content."""
    with shared_redis.client() as client:
        client.flushall()
    return shared_redis


@pytest.fixture
def mortal_redis(tmp_path):
    """A server that the test may kill and start again."""
    folder = tmp_path / "mortal"
    folder.mkdir()
    server = _new_server(folder)
    yield server
    server.stop()


@pytest.fixture(params=["memory", "sqlite", "redis", "tiered-sqlite", "tiered-redis"])
def kind(request):
    return request.param


@pytest.fixture
def store(kind, tmp_path, request):
    """An empty store of each kind."""
    if kind == "memory":
        opened = MemoryStore()
    elif kind.endswith("sqlite"):
        opened = SQLiteStore(tmp_path / "folder" / "store.sqlite")
    else:
        opened = RedisStore(request.getfixturevalue("redis_server").url)
    if kind.startswith("tiered"):
        opened = TieredStore(opened)
    with opened:
        yield opened


@pytest.fixture
def run_python(tmp_path):
    """Runs a program in a process of its own; it must end well, and what it wrote is returned."""

    def run(program, *arguments, before=(), timeout=280):
        path = tmp_path / "program.py"
        path.write_text(program, encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": str(SOURCE)}
        ran = subprocess.run(
            [*before, sys.executable, str(path), *map(str, arguments)],
            capture_output=True, text=True, timeout=timeout, env=environment, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran

    return run


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.sqlite"


@pytest.fixture
def open_at(path):
    """Opens stores on one file, and closes them at the end."""
    opened = []

    def make(**options):
        opened.append(SQLiteStore(path, **options))
        return opened[-1]

    yield make
    for store in opened:
        store.close()
