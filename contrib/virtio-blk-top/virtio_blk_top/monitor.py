# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
QMP monitors, behind a socket or behind libvirt.

Both kinds have open(), execute() and close(), and fail with the exceptions of
errors.py alone. Knows no command of QEMU.
"""

import asyncio
import importlib
import json
import logging
import sys
from pathlib import Path
from typing import Any, Awaitable, Dict, Optional, TypeVar

from .errors import Ended, NotOffered, Refused, Trouble

T = TypeVar('T')

#: where QEMU's Python packages are: in a package's folder, in QEMU's tree, and
#: in the trees of the series' repository
HERE = Path(__file__).resolve().parent
QEMU_PYTHON = (HERE.parent, HERE.parent.parent.parent / 'python',
               HERE.parent.parent.parent / 'build' / 'tree' / 'python',
               HERE.parent.parent.parent / 'build' / 'pristine' / 'python')


def import_qmp() -> Any:
    """
    The module qemu.qmp, the installed one if there is one.

    :raise Trouble: if there is none.
    """
    try:
        module = importlib.import_module('qemu.qmp')
    except ImportError:
        for folder in QEMU_PYTHON:
            if (folder / 'qemu' / 'qmp').is_dir():
                sys.path.append(str(folder))
                sys.modules.pop('qemu', None)
                module = importlib.import_module('qemu.qmp')
                break
        else:
            raise Trouble("the Python module qemu.qmp is missing: run this "
                          "from QEMU's source tree, or install qemu.qmp"
                          ) from None
    # It tells by exceptions, too, what it logs.
    logger = logging.getLogger('qemu.qmp')
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return module


def error_of(kind: str, text: str) -> Refused:
    """QEMU's error as an exception."""
    if kind == 'CommandNotFound':
        return NotOffered(text)
    return Refused(text)


class SocketMonitor:
    """
    A QMP monitor on a UNIX socket.

    patience: seconds in which it answers unless something is wrong
    """

    def __init__(self, path: str, patience: float):
        self.name = path
        self._patience = patience
        self._qmp = import_qmp()
        self._client: Any = None

    async def open(self) -> None:
        """
        Connects. To be closed, also after a failure of execute().

        :raise Trouble: if that is not possible.
        """
        client = self._qmp.QMPClient(self.name)
        try:
            await asyncio.wait_for(client.connect(self.name), self._patience)
        except asyncio.TimeoutError:
            raise Trouble(
                f'{self.name}: no greeting in {self._patience:g} s: it is no '
                'QMP monitor, or another program is connected to it; give '
                'QEMU one more -qmp') from None
        except self._qmp.QMPError as error:
            raise Trouble(f'{self.name}: {self._why_not(error)}') from None
        self._client = client

    def _why_not(self, error: Any) -> str:
        """In words, why a connection failed."""
        cause = getattr(error, 'exc', None)
        if isinstance(cause, FileNotFoundError):
            return 'there is no such socket'
        if isinstance(cause, ConnectionRefusedError):
            if Path(self.name).is_socket():
                return 'nobody listens there: the VM has ended'
            return 'this is not a socket'
        if isinstance(cause, PermissionError):
            return 'permission denied: run this as the user of QEMU'
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        return 'this is not a QMP monitor'

    async def execute(self, command: str,
                      arguments: Optional[Dict[str, object]] = None) -> Any:
        """
        Runs a command, and returns what it returns.

        :raise Refused: if QEMU does.
        :raise Ended: when QEMU has.
        :raise Trouble: if it does not answer.
        """
        try:
            answer = await asyncio.wait_for(
                self._client.execute(command, arguments), self._patience)
            # They would be kept for ever.
            self._client.events.clear()
            return answer
        except asyncio.TimeoutError:
            raise Trouble(f'no answer in {self._patience:g} s: the main loop '
                          'of QEMU hangs') from None
        except self._qmp.ExecuteError as error:
            raise error_of(error.error.error.class_,
                           error.error.error.desc) from None
        except (self._qmp.QMPError, OSError, EOFError):
            raise Ended('QEMU has ended') from None

    async def close(self) -> None:
        """Disconnects. Is never an error."""
        client, self._client = self._client, None
        if client is None:
            return
        try:
            await asyncio.wait_for(client.disconnect(), self._patience)
        except (asyncio.TimeoutError, self._qmp.QMPError, OSError, EOFError):
            pass


class LibvirtMonitor:
    """The monitor of a domain of libvirt, which has it to itself."""

    def __init__(self, uri: str, domain: str, patience: float):
        self.name = domain
        self._patience = patience
        self._uri = uri
        try:
            self._libvirt: Any = importlib.import_module('libvirt')
            self._qemu: Any = importlib.import_module('libvirt_qemu')
        except ImportError:
            raise Trouble(
                f'{domain}: the Python module libvirt is missing: install '
                'python3-libvirt, or give the path of a QMP socket') from None
        # What it prints by itself, it raises as well.
        self._libvirt.registerErrorHandler(lambda _context, _error: None, None)
        self._connection: Any = None
        self._domain: Any = None

    async def _wait(self, call: Awaitable[T]) -> T:
        """:raise Trouble: when it takes too long."""
        try:
            return await asyncio.wait_for(call, self._patience)
        except asyncio.TimeoutError:
            raise Trouble('no answer from libvirt in '
                          f'{self._patience:g} s') from None

    def _open(self) -> None:
        self._connection = self._libvirt.open(self._uri)
        self._domain = self._connection.lookupByName(self.name)
        if not self._domain.isActive():
            raise Trouble(f'{self.name}: the domain does not run')

    async def open(self) -> None:
        """See SocketMonitor."""
        try:
            await self._wait(asyncio.to_thread(self._open))
        except self._libvirt.libvirtError as error:
            await self.close()
            code = error.get_error_code()
            if code == self._libvirt.VIR_ERR_NO_DOMAIN:
                raise Trouble(f'{self.name}: neither a socket nor a domain of '
                              f'libvirt ({self._uri})') from None
            raise Trouble(f'{self.name}: libvirt says: {one_line(error)}'
                          ) from None
        except Trouble:
            await self.close()
            raise

    def _execute(self, message: str) -> str:
        return self._qemu.qemuMonitorCommand(self._domain, message, 0)

    async def execute(self, command: str,
                      arguments: Optional[Dict[str, object]] = None) -> Any:
        """See SocketMonitor."""
        message = json.dumps({'execute': command,
                              'arguments': arguments or {}})
        try:
            answer = json.loads(await self._wait(
                asyncio.to_thread(self._execute, message)))
        except self._libvirt.libvirtError as error:
            code = error.get_error_code()
            if code in (self._libvirt.VIR_ERR_OPERATION_INVALID,
                        self._libvirt.VIR_ERR_NO_DOMAIN):
                raise Ended('the domain has ended') from None
            raise Trouble(f'libvirt says: {one_line(error)}') from None
        if 'error' in answer:
            raise error_of(answer['error']['class'], answer['error']['desc'])
        return answer['return']

    async def close(self) -> None:
        """See SocketMonitor."""
        connection, self._connection = self._connection, None
        self._domain = None
        if connection is not None:
            try:
                await asyncio.to_thread(connection.close)
            except self._libvirt.libvirtError:
                pass


def one_line(error: Exception) -> str:
    """The text of an error in one line."""
    return ' '.join(str(error).split())
