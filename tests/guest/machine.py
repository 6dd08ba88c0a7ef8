# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
One QEMU process with the test guest in it: start, talk, end.

Talks over inherited socket pairs, so that no name in the file system can
clash with another run's. QEMU is ended by its process id, whatever happens.
"""

import asyncio
import os
import signal
import socket
import sys
from typing import List, Optional

#: how long QEMU may take for a QMP command or for its end; a hang guard
COMMAND_TIMEOUT = 60


class MachineError(Exception):
    """QEMU ended or did not answer, in words for the user."""


def import_qmp(qemu_tree: str):
    """QEMU's own QMP library, from the tree that was built."""
    sys.path.insert(0, os.path.join(qemu_tree, 'python'))
    # pylint: disable=import-error,import-outside-toplevel
    from qemu import qmp
    return qmp


class Machine:
    """
    Use as 'async with Machine(...) as machine'.

    :param qmp: what import_qmp() returned
    :param command: QEMU's program and arguments, without ports and monitors
    :param log_dir: directory for what QEMU and the guest's console print
    :param interactive: the first serial port is this terminal
    """

    def __init__(self, qmp, command: List[str], log_dir: str,
                 interactive: bool = False):
        self._qmp_module = qmp
        self._command = command
        self._interactive = interactive
        self._errors_path = os.path.join(log_dir, 'qemu.log')
        self.console_path = os.path.join(log_dir, 'console.log')
        self._process: Optional[asyncio.subprocess.Process] = None
        self._qmp = qmp.QMPClient('guest')
        self._records_reader: Optional[asyncio.StreamReader] = None
        self._records_writer: Optional[asyncio.StreamWriter] = None

    async def __aenter__(self) -> 'Machine':
        try:
            await self._start()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_exc) -> None:
        await self._end()

    def _console_arguments(self) -> List[str]:
        if self._interactive:
            return ['-chardev', 'stdio,id=console,mux=on,signal=off',
                    '-mon', 'chardev=console,mode=readline',
                    '-serial', 'chardev:console']
        return ['-chardev', f'file,id=console,path={self.console_path}',
                '-serial', 'chardev:console']

    async def _start(self) -> None:
        monitor, qemu_monitor = socket.socketpair()
        records, qemu_records = socket.socketpair()
        ends = (qemu_monitor.fileno(), qemu_records.fileno())
        # setpriv: no QEMU stays behind when this process is killed outright.
        command = ['setpriv', '--pdeathsig', 'TERM', *self._command,
                   *self._console_arguments(),
                   '-chardev', f'socket,id=records,fd={ends[1]}',
                   '-serial', 'chardev:records',
                   '-chardev', f'socket,id=qmp,fd={ends[0]}',
                   '-mon', 'chardev=qmp,mode=control']
        with qemu_monitor, qemu_records, \
                open(self._errors_path, 'wb') as errors:
            self._process = await asyncio.create_subprocess_exec(
                *command, pass_fds=ends,
                stdin=None if self._interactive else asyncio.subprocess.DEVNULL,
                stdout=None if self._interactive else errors,
                stderr=None if self._interactive else errors,
                # ctrl-C is this program's; in the shell it is the guest's.
                start_new_session=not self._interactive)
        # A record may be long: fio's results are one line.
        self._records_reader, self._records_writer = \
            await asyncio.open_connection(sock=records, limit=1 << 22)
        try:
            await asyncio.wait_for(self._qmp.connect(monitor),
                                   COMMAND_TIMEOUT)
        except (self._qmp_module.ConnectError, asyncio.TimeoutError) as error:
            raise MachineError(await self._why_it_ended()) from error

    async def _why_it_ended(self) -> str:
        """What QEMU said last, for a message."""
        try:
            code = await asyncio.wait_for(self._process.wait(), 5)
        except asyncio.TimeoutError:
            return 'QEMU runs but does not answer'
        with open(self._errors_path, encoding='utf-8',
                  errors='replace') as log:
            lines = [line.strip() for line in log if line.strip()]
        said = lines[-1] if lines else 'it said nothing'
        if code < 0:
            return f'QEMU was ended by {signal.Signals(-code).name}: {said}'
        return f'QEMU ended with status {code}: {said}'

    def cpu_seconds(self) -> float:
        """CPU time that QEMU has taken so far; 0 after its end."""
        try:
            with open(f'/proc/{self._process.pid}/stat',
                      encoding='ascii', errors='replace') as stat:
                fields = stat.read().rpartition(')')[2].split()
        except (OSError, AttributeError):
            return 0
        return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')

    async def record_line(self, timeout: Optional[float]) -> str:
        """
        The guest's next record.

        :raise MachineError: when QEMU ended or the time ran out.
        """
        try:
            line = await asyncio.wait_for(
                self._records_reader.readline(), timeout)
        except asyncio.TimeoutError as error:
            raise MachineError(
                f'the guest gave no sign of life for {timeout:.0f} s'
            ) from error
        except ConnectionError:
            line = b''
        if not line:
            raise MachineError(await self._why_it_ended())
        return line.decode('utf-8', errors='replace').rstrip('\r\n')

    async def command(self, name: str, **arguments) -> object:
        """
        Executes a QMP command; QEMU's own error replies pass through.

        :raise MachineError: when QEMU ended or does not answer.
        """
        try:
            return await asyncio.wait_for(
                self._qmp.execute(name, arguments or None), COMMAND_TIMEOUT)
        except self._qmp_module.ExecuteError:
            raise
        except (self._qmp_module.QMPError, asyncio.TimeoutError) as error:
            raise MachineError(await self._why_it_ended()) from error

    async def plane_info(self, device: str) -> Optional[dict]:
        """
        What the data plane says about this device; None if this QEMU has no
        data plane.
        """
        try:
            return await self.command(
                'qom-get', path=f'/machine/peripheral/{device}/virtio-backend',
                property='x-data-plane-info')
        except self._qmp_module.ExecuteError:
            return None

    async def tell(self, line: str) -> None:
        """Sends the guest a line, through the port that brings the records."""
        self._records_writer.write(line.encode() + b'\n')
        await self._records_writer.drain()

    async def let_go(self) -> None:
        """Tells the guest, which waits after 'done', to power off."""
        await self.tell('off')

    async def wait_shutdown(self, timeout: Optional[float]) -> dict:
        """
        Waits for the guest's end. QEMU stays, so that it can be asked.

        :return: the data of QEMU's SHUTDOWN event.
        :raise MachineError: when QEMU ended or the time ran out.
        """
        async def next_shutdown() -> dict:
            async for event in self._qmp.events:
                if event['event'] == 'SHUTDOWN':
                    return event['data']
            raise MachineError('QEMU ended')

        waiting = asyncio.create_task(next_shutdown())
        ended = asyncio.create_task(self._process.wait())
        try:
            done, _ = await asyncio.wait(
                {waiting, ended}, timeout=timeout,
                return_when=asyncio.FIRST_COMPLETED)
            if waiting in done:
                return waiting.result()
            if ended in done:
                raise MachineError(await self._why_it_ended())
            raise MachineError('the guest did not power off')
        finally:
            waiting.cancel()
            ended.cancel()

    async def quit(self) -> int:
        """Ends QEMU in good order; returns its exit status."""
        try:
            await self.command('quit')
        except MachineError:
            # It may be gone before its answer; the status tells.
            pass
        return await asyncio.wait_for(self._process.wait(), COMMAND_TIMEOUT)

    async def _end(self) -> None:
        """Ends QEMU if it still runs, and closes everything."""
        process = self._process
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 10)
            except asyncio.TimeoutError:
                process.kill()
                await process.wait()
        try:
            await asyncio.wait_for(self._qmp.disconnect(), COMMAND_TIMEOUT)
        except (self._qmp_module.QMPError, EOFError, OSError,
                asyncio.TimeoutError):
            pass
        if self._records_writer is not None:
            self._records_writer.close()
