# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Two hosts with a cable between them, for tests that need another host.

They are network namespaces of this machine, in which programs are run. They
have no names: each lives as long as a process that holds it, and that process
ends with the test, however the test ends; with the namespaces the cable goes.
The machine's own network is neither used nor changed. Without root they stand
in a user namespace, whose root the user is.

Knows nothing of QEMU.
"""

import os
import subprocess
import time
from typing import List, Sequence

#: hang guard
GUARD = 60

#: for documentation (RFC 5737), so it is nobody's
ADDRESSES = ('192.0.2.1', '192.0.2.2')
PREFIX_LENGTH = 30

#: How often Linux sends again what was not acknowledged before a connection
#: counts as lost: a quarter of an hour by default, else a few seconds.
RETRIES = 'tcp_retries2'
PATIENT = 15
IMPATIENT = 3

#: Whoever waits for an answer has sent nothing that could go unacknowledged:
#: a connection with keep-alive asks after so many seconds, and so often.
KEEP_ALIVE = {'tcp_keepalive_time': 1, 'tcp_keepalive_intvl': 1,
              'tcp_keepalive_probes': 5}

#: prints a line once the namespaces are there, then waits for its end
HOLD = ('sh', '-c', 'echo; exec cat')


class HostError(Exception):
    """Something that was to be done on a host failed; the text says what."""


class NoHosts(HostError):
    """This machine does not let us make them."""


def run(command: Sequence[str]) -> str:
    """
    Runs a program to its end; returns what it prints.

    :raise HostError: when it fails, or is not there.
    """
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, check=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, timeout=GUARD).stdout
    except OSError as error:
        raise HostError(f'{command[0]}: {error.strerror}') from error
    except subprocess.CalledProcessError as error:
        raise HostError(f'{" ".join(command)}: {error.stderr.strip()}'
                        ) from error


class Host:
    """
    One of them.

    prefix: in front of a command, lets it run there, as the same process
    address: its own
    """

    def __init__(self, unshare: Sequence[str], prefix: Sequence[str],
                 address: str):
        self.address = address
        try:
            # In a session of its own, as a terminal's ^C is not for it.
            self._holder = subprocess.Popen(
                [*unshare, '--net', *HOLD], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                start_new_session=True)
        except OSError as error:
            raise HostError(f'{unshare[0]}: {error.strerror}') from error
        self.pid = self._holder.pid
        self.prefix = ['nsenter', '--target', str(self.pid), *prefix, '--net']
        assert self._holder.stdout is not None
        if not self._holder.stdout.readline():
            assert self._holder.stderr is not None
            reason = self._holder.stderr.read().strip()
            self.close()
            raise HostError(f'network namespaces cannot be made: {reason}')

    def close(self) -> None:
        """It goes, as soon as the last program that runs there ends."""
        self._holder.communicate()

    def run(self, *command: str) -> str:
        """Runs a program there; returns what it prints."""
        return run([*self.prefix, *command])

    def set_up(self) -> None:
        """Once the cable is there."""
        self.run('ip', 'address', 'add', f'{self.address}/{PREFIX_LENGTH}',
                 'dev', 'eth0')
        for device in ('lo', 'eth0'):
            self.run('ip', 'link', 'set', device, 'up')
        for name, number in KEEP_ALIVE.items():
            self.setting(name, number)
        self.retries(PATIENT)

    def setting(self, name: str, number: int) -> None:
        """One of the kernel's, for TCP."""
        self.run('sh', '-c', f'echo {number} > /proc/sys/net/ipv4/{name}')

    def retries(self, number: int) -> None:
        """How patient its connections are."""
        self.setting(RETRIES, number)

    def wait_cable(self) -> None:
        """The kernel takes up to a second to see that it is in."""
        end = time.monotonic() + GUARD
        while 'state UP' not in self.run('ip', '-o', 'link', 'show', 'eth0'):
            if time.monotonic() > end:
                raise HostError('the cable is in, and the kernel ignores it')
            time.sleep(0.05)
        # Nor shall it remember that nobody was there.
        self.run('ip', 'neighbour', 'flush', 'dev', 'eth0')

    def connections(self, port: int) -> int:
        """How many there are from here to a port."""
        return len(self.run('ss', '-Htn', 'state', 'established',
                            f'( dport = :{port} )').splitlines())


class Network:
    """
    Both hosts, with the cable in. Use as 'with Network() as network', or close.

    here: where the program that is tested runs
    there: the other
    """

    def __init__(self) -> None:
        self._hosts: List[Host] = []
        try:
            self._make()
        except HostError as error:
            self.close()
            raise NoHosts(str(error)) from error
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        unshare: List[str] = ['unshare']
        prefix: List[str] = []
        if os.geteuid() != 0:
            unshare += ['--user', '--map-root-user']
            prefix = ['--user', '--preserve-credentials']
        self.here = Host(unshare, prefix, ADDRESSES[0])
        self._hosts.append(self.here)
        if prefix:
            # In the same user namespace, as the cable joins the two.
            unshare = ['nsenter', '--target', str(self.here.pid), *prefix,
                       'unshare']
        self.there = Host(unshare, prefix, ADDRESSES[1])
        self._hosts.append(self.there)
        self.here.run('ip', 'link', 'add', 'eth0', 'type', 'veth', 'peer',
                      'name', 'eth0', 'netns', str(self.there.pid))
        for host in self._hosts:
            host.set_up()
        for host in self._hosts:
            host.wait_cable()

    def __enter__(self) -> 'Network':
        return self

    def __exit__(self, *_exc) -> None:
        self.close()

    def close(self) -> None:
        """What still runs there is the caller's."""
        for host in reversed(self._hosts):
            host.close()
        self._hosts.clear()

    def cut(self) -> None:
        """The cable is out: connections fail soon, if they are used."""
        for host in self._hosts:
            host.retries(IMPATIENT)
        self.there.run('ip', 'link', 'set', 'eth0', 'down')

    def mend(self) -> None:
        """The cable is in again."""
        self.there.run('ip', 'link', 'set', 'eth0', 'up')
        for host in self._hosts:
            host.wait_cable()
            host.retries(PATIENT)
