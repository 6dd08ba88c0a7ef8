# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
A real terminal, which is tmux's: a program runs in it, keys are sent, and what
it shows is read. The server is this test's own, and ends with it.
"""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Callable, List

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / 'hosts'))

# pylint: disable=wrong-import-position
from load import GUARD, Wrong  # noqa: E402
from waiting import wait_until  # noqa: E402


class Terminal:
    """
    Use as 'with Terminal(...)'.

    errors, status: files with what the program said there, and its exit status
    when it has ended
    """

    def __init__(self, work: Path, command: List[str], width: int = 80,
                 height: int = 24):
        self._socket = work / 'tmux'
        self.errors, self._status = work / 'tmux.errors', work / 'tmux.status'
        for file in (self.errors, self._status):
            file.unlink(missing_ok=True)
        # After the end of the program the screen stays as it left it.
        self._command = (
            f'trap : INT; {shlex.join(command)} 2>{shlex.quote(str(self.errors))}; '
            f'echo $? >{shlex.quote(str(self._status))}; exec cat')
        self._size = ['-x', str(width), '-y', str(height)]

    def _tmux(self, *words: str) -> str:
        result = subprocess.run(
            ['tmux', '-S', str(self._socket), '-f', '/dev/null', *words],
            capture_output=True, text=True, check=False, timeout=GUARD)
        if result.returncode:
            raise Wrong(f'tmux {words[0]}: {result.stderr.strip()}')
        return result.stdout

    def __enter__(self) -> 'Terminal':
        self._tmux('new-session', '-d', *self._size, self._command)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._tmux('kill-server')
        self._socket.unlink(missing_ok=True)

    def lines(self) -> List[str]:
        """What is on the screen."""
        return self._tmux('capture-pane', '-p').rstrip('\n').split('\n')

    def keys(self, *keys: str) -> None:
        """As tmux names them."""
        self._tmux('send-keys', *keys)

    def resize(self, width: int, height: int) -> None:
        """As the user pulls at the corner of the window."""
        self._tmux('resize-window', '-x', str(width), '-y', str(height))

    def wait(self, what: str,
             condition: Callable[[List[str]], bool]) -> List[str]:
        """
        The screen, as soon as it is as it should be.

        :raise Wrong: with what it shows instead.
        """
        seen: List[str] = []

        def look() -> bool:
            seen[:] = self.lines()
            return condition(seen)

        try:
            wait_until(what, look, GUARD, Wrong)
        except Wrong as error:
            said = (self.errors.read_text().strip() if self.errors.exists()
                    else '')
            raise Wrong(f'{error}; the screen: ' + ' / '.join(seen)
                        + (f'; it said: {said}' if said else '')) from None
        return list(seen)

    def shows(self, text: str) -> List[str]:
        """Waits for a text."""
        return self.wait(f'"{text}" on the screen', lambda lines:
                         any(text in line for line in lines))

    def hides(self, text: str) -> List[str]:
        """Waits until it has gone."""
        return self.wait(f'"{text}" to leave the screen', lambda lines:
                         not any(text in line for line in lines))

    def status(self) -> int:
        """Of the program, when it has ended."""
        wait_until('the end of the program', lambda:
                   self._status.exists() and self._status.read_text().strip(),
                   GUARD, Wrong)
        return int(self._status.read_text())
