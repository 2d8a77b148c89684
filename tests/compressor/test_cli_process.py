"""The command line as a process of its own: pipes, signals and size."""

import os
import signal
import subprocess
import sys
import time

import pytest

BASE = ["compress", "--compressor", "lexical"]


def start(*arguments, unbuffered=""):
    command = [sys.executable, "-m", "kompakt", *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, env={**os.environ, "PYTHONUNBUFFERED": unbuffered})


@pytest.fixture
def long(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("The quick dog jumped. " * 40_000, encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["--quiet", "--json", "--explain"])
def test_a_slow_reader_gets_all(long, form):
    with start(*BASE, long, "--max-tokens", 10_000_000, form, unbuffered="1") as process:
        process.stdin.close()
        time.sleep(0.5)
        assert process.stdout.read().count(b"jumped") >= 40_000


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_closed_pipe_is_quiet(long, unbuffered):
    with start(*BASE, long, "--max-tokens", 10_000_000, "--quiet", unbuffered=unbuffered) as process:
        assert process.stdout.read(3) == b"The"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_interrupt_is_one_line():
    with start(*BASE, "--max-tokens", 9, "--jsonl") as process:
        process.stdin.write(b'{"text": "ready"}\n' * 16)
        process.stdin.flush()
        for _ in range(16):
            assert process.stdout.readline()
        time.sleep(0.5)  # it now waits for more input, and only the interrupt can end it
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        err = process.stderr.read()
    assert (process.returncode, err) == (130, b"error: interrupted\n")


@pytest.mark.slow
def test_a_large_file_takes_linear_time(tmp_path):
    path = tmp_path / "large.txt"
    path.write_text(
        "Rome is old. A cat sat on the mat. The dog ran away. Nobody saw where it went.\n" * 25_000, encoding="utf-8"
    )  # 2 MB
    began = time.monotonic()
    with start(*BASE, path, "--max-tokens", 100) as process:
        process.communicate()
    assert process.returncode == 0
    assert time.monotonic() - began < 120
