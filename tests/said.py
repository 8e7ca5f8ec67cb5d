"""Commands carried out in this process, and what they say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mpsnap.cli.main import main


class Said:
    """Hold how a command ended in this process and what it said."""

    def __init__(self, status: object, stdout: str, stderr: str) -> None:
        self.status = status
        self.stdout = stdout
        self.stderr = stderr

    @property
    def document(self) -> Any:
        return json.loads(self.stdout)

    @property
    def error(self) -> str:
        """The one line on stderr."""
        assert self.stderr.endswith("\n")
        line = self.stderr[:-1]
        assert line.isprintable(), "one line, and nothing in it that steers a terminal"
        assert len(line) < 700
        assert line.startswith("mpsnap: error: ")
        return line.removeprefix("mpsnap: error: ")


def carried_out(capsys: pytest.CaptureFixture[str], *arguments: str) -> Said:
    """Carry out one command."""
    capsys.readouterr()
    status: object
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    return Said(status, *capsys.readouterr())
