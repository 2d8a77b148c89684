"""The command line, run in this process."""

import io
import sys

import pytest

from kompakt.compressor import cli


class Ran:
    """A run of the command line.

    Args:
        arguments: What follows the program's name.
        stdin: What the standard input holds.
        width: Columns of the terminal that the outputs pretend to be; None if they are no terminal.
    """

    def __init__(self, arguments, stdin=b"", width=None):
        stream = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch:
            out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
            for name, value in (("stdin", stream), ("stdout", out), ("stderr", err)):
                patch.setattr(sys, name, value)
            if width is not None:
                patch.setenv("FORCE_COLOR", "1")
                patch.setenv("COLUMNS", str(width))
                patch.setenv("TERM", "xterm-256color")
            self.status = cli.run([str(argument) for argument in arguments])
        self.out, self.err = out.buffer.getvalue().decode(), err.buffer.getvalue().decode()

    def __repr__(self):
        return f"status {self.status}\n{self.out}\n{self.err}"


def assert_one_error(ran, status, *words):
    """Check that a run wrote one line, an error, and nothing else."""
    assert ran.status == status, ran
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert all(word in ran.err for word in words), ran.err
