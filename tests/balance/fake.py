# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
A QMP monitor of a simulated VM, for virtio-blk-balance to talk to.

Each time that the tool asks how busy IOThreads are, an interval of the
simulated VM passes; so the time between two readings does not matter.
"""

import json
import socket
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from simulator import World

COMMAND = 'x-virtio-blk-set-queue-iothread'
COMMANDS = ('query-version', 'query-commands', 'query-name', 'query-status',
            'query-blockstats', 'query-iothreads', 'qom-get', COMMAND)
GREETING = {'QMP': {'version': {}, 'capabilities': []}}


class QmpError(Exception):
    """What QEMU refuses: the class of the error, and the text."""


def path_of(disk: str) -> str:
    """As QEMU names the device."""
    return f'/machine/peripheral/{disk}/virtio-backend'


class Fake:
    """
    Use as 'with Fake(...)'.

    world: what the VM does; its policy is not used
    moves: what it was told, each with the number of readings before it
    readings: how often it was asked how busy IOThreads are
    refuse: returns why QEMU refuses a move, or None
    hidden: commands that this QEMU does not have
    times: whether it tells the times of IOThreads
    stays: queues that never arrive
    """

    def __init__(self, path: Path, world: World):
        self.path, self.world = path, world
        self.moves: List[Tuple[int, str, int, str]] = []
        self.readings = 0
        self.refuse: Callable[[dict], Optional[str]] = lambda _move: None
        self.hidden: Tuple[str, ...] = ()
        self.times = True
        self.serving = True
        self.stays: List[Tuple[str, int]] = []
        self.lock = threading.Lock()
        self._server = socket.socket(socket.AF_UNIX)
        self._client: Optional[socket.socket] = None
        self._ended = False

    def __enter__(self) -> 'Fake':
        self._server.bind(str(self.path))
        self._server.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.end()
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def end(self) -> None:
        """As QEMU does."""
        self._ended = True
        for one in (self._server, self._client):
            try:
                if one is not None:
                    one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass            # it was not connected
            if one is self._server:
                one.close()

    def _serve(self) -> None:
        while not self._ended:
            try:
                self._client, _ = self._server.accept()
            except OSError:
                return
            try:
                with self._client:
                    self._talk()
            except (OSError, ValueError):
                pass            # the tool has gone

    def _say(self, message: dict) -> None:
        assert self._client is not None
        self._client.sendall(json.dumps(message).encode() + b'\n')

    def _requests(self) -> Iterator[dict]:
        """What comes; nothing need be between two of them."""
        assert self._client is not None
        text, decoder = '', json.JSONDecoder()
        while True:
            more = self._client.recv(65536).decode()
            if not more:
                return
            text += more
            while text.strip():
                try:
                    request, end = decoder.raw_decode(text.lstrip())
                except ValueError:
                    break       # only a part of it has come
                text = text.lstrip()[end:]
                yield request

    def _talk(self) -> None:
        self._say(GREETING)
        for request in self._requests():
            with self.lock:
                try:
                    answer = {'return': self._answer(
                        request['execute'], request.get('arguments', {}))}
                except QmpError as error:
                    answer = {'error': {'class': error.args[0],
                                        'desc': error.args[1]}}
            self._say({**answer, **{key: request[key] for key in ('id',)
                                    if key in request}})

    def _answer(self, command: str, words: dict) -> Any:
        if command == 'qmp_capabilities':
            return {}
        if command not in COMMANDS or command in self.hidden:
            raise QmpError('CommandNotFound', f'no command {command}')
        name = command.replace('x-virtio-blk-', '').replace('-', '_')
        return getattr(self, f'_{name}')(words)

    # ---- commands

    def _query_version(self, _words: dict) -> dict:
        return {'qemu': {'major': 10, 'minor': 0, 'micro': 13}}

    def _query_commands(self, _words: dict) -> List[dict]:
        return [{'name': name} for name in COMMANDS if name not in self.hidden]

    def _query_name(self, _words: dict) -> dict:
        return {'name': 'fake'}

    def _query_status(self, _words: dict) -> dict:
        return {'status': 'running' if self.world.running else 'paused'}

    def _query_blockstats(self, _words: dict) -> List[dict]:
        stats = {f'{kind}_{what}': 0 for kind in ('rd', 'wr')
                 for what in ('operations', 'bytes', 'total_time_ns')}
        return [{'qdev': path_of(disk), 'stats': stats}
                for disk in sorted({disk for disk, _ in self.world.queues})]

    def _query_iothreads(self, _words: dict) -> List[dict]:
        self.readings += 1
        self.world.elapse(self.stays)
        threads = self.world.observation().threads
        if not self.times:
            return [{'id': name} for name in threads]
        return [{'id': name, 'busy-ns': thread.busy, 'poll-ns': 0,
                 'idle-ns': thread.whole - thread.busy, 'wakeups': 0}
                for name, thread in threads.items()]

    def _qom_get(self, words: dict) -> Any:
        queues = {index: queue for (disk, index), queue
                  in self.world.queues.items()
                  if path_of(disk) == words['path']}
        if not queues:
            raise QmpError('DeviceNotFound', 'no such device')
        if words['property'] == 'type':
            return 'virtio-blk-device'
        if not self.serving:
            return {'serving': False, 'queues': []}
        return {'serving': True, 'queues': [
            {'queue': index, 'iothread': queue.home, 'in-flight': 0,
             'completed': int(queue.done), 'batches': 0, 'kicks': 0,
             'notifications-sent': 0,
             **({'moving-to': queue.bound} if queue.bound else {})}
            for index, queue in sorted(queues.items())]}

    def _set_queue_iothread(self, words: dict) -> dict:
        disk = words['path'].split('/')[3]
        self.moves.append((self.readings, disk, words['queue'],
                           words['iothread']))
        why = self.refuse(words)
        if why:
            raise QmpError('GenericError', why)
        self.world.queues[disk, words['queue']].bound = words['iothread']
        return {}

    def homes(self) -> Dict[Tuple[str, int], str]:
        """Where queues are."""
        with self.lock:
            return {key: queue.home
                    for key, queue in self.world.queues.items()}
