# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
A domain of libvirt with the test guest in it: its definition, what virsh says
of it, what the data plane of a disk says, and the guest's own word.
"""

import json
import os
import socket
import time
from typing import Any, Dict, List, NamedTuple, Optional
from xml.sax.saxutils import quoteattr

from daemon import Daemon, TestFailed, wait_until
from machine import Channel

EMULATOR = "/qemu/qemu-system-x86_64"
NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"

DOMAIN = """
<domain type='qemu' xmlns:qemu='{namespace}'>
  <name>{name}</name>
  <memory unit='MiB'>448</memory>
  <vcpu>2</vcpu>
  <iothreads>2</iothreads>
  <os>
    <type arch='x86_64' machine='pc-q35-10.0'>hvm</type>
    <kernel>/work/vmlinuz</kernel>
    <initrd>/work/initrd.img</initrd>
    <cmdline>console=ttyS1 quiet panic=-1 rdinit=/migration/init</cmdline>
  </os>
  <features>
    <acpi/>
  </features>
  <throttlegroups>
    <throttlegroup>
      <group_name>filter</group_name>
      <total_iops_sec>900000</total_iops_sec>
    </throttlegroup>
  </throttlegroups>
  <devices>
    <emulator>{emulator}</emulator>
    <controller type='usb' model='none'/>
    <controller type='pci' index='0' model='pcie-root'/>
    {ports}
    {disks}
    <serial type='unix'>
      <source mode='bind' path='/local/{name}.sock'/>
    </serial>
    <serial type='file'>
      <source path='/local/{name}.console'/>
    </serial>
    <memballoon model='none'/>
  </devices>
  {overrides}
</domain>
"""

#: for disks that are attached later
PORTS = 8

DISK = """
<disk type='file' device='disk'>
  <driver name='qemu' type='{format}' cache='none' io='native'
          queues='{queues}'{iothread}>{mapping}</driver>
  {filters}
  <source file='{path}'/>
  <target dev='{target}' bus='virtio'/>
  <serial>{target}</serial>
  <alias name='ua-{target}'/>
</disk>
"""

OVERRIDE = """
<qemu:device alias='ua-{target}'>
  <qemu:frontend>
    <qemu:property name='x-data-plane' type='string' value='off'/>
  </qemu:frontend>
</qemu:device>
"""


class Disk(NamedTuple):
    """
    A disk as libvirt is told of it.

    target:   names disk, alias and serial number
    iothread: serves all queues, unless there are threads
    threads:  the queues are spread over these IOThreads, in turn
    explicit: each is named with its queues, in the opposite order
    filters:  groups of throttle filters
    """
    target: str
    format: str = "raw"
    folder: str = "/work"
    iothread: str = "1"
    queues: int = 1
    threads: "tuple[str, ...]" = ()
    explicit: bool = False
    filters: "tuple[str, ...]" = ()

    @property
    def path(self) -> str:
        """Its image, as the daemon sees it."""
        return f"{self.folder}/{self.target}.img"

    def _mapping(self) -> str:
        if not self.threads:
            return ""
        text = ""
        served = self.served_by()
        for thread in self.threads:
            queues = "".join(
                f"<queue id='{queue}'/>" for queue in range(self.queues)
                if self.explicit and served[queue] == thread)
            text += f"<iothread id='{thread}'>{queues}</iothread>"
        return f"<iothreads>{text}</iothreads>"

    def served_by(self) -> List[str]:
        """The IOThread of each queue."""
        threads = self.threads or (self.iothread,)
        if self.explicit:
            threads = threads[::-1]
        return [threads[queue % len(threads)] for queue in range(self.queues)]

    def _filters(self) -> str:
        text = "".join(f"<throttlefilter group={quoteattr(group)}/>"
                       for group in self.filters)
        return f"<throttlefilters>{text}</throttlefilters>" if text else ""

    def xml(self) -> str:
        """Its element."""
        iothread = "" if self.threads else f" iothread='{self.iothread}'"
        return DISK.format(format=self.format, queues=self.queues,
                           iothread=iothread, mapping=self._mapping(),
                           filters=self._filters(), path=self.path,
                           target=self.target)


class Domain:
    """
    One domain, on one daemon or, after a migration, on another.

    :param plane: whether its disks are to be served by the plane; if not, the
                  definition switches it off
    """

    def __init__(self, daemon: Daemon, name: str, disks: List[Disk],
                 plane: bool = True):
        self.daemon = daemon
        self.name = name
        self.disks = disks
        self.plane = plane
        self._guest: Optional[Channel] = None

    # ---- life

    def xml(self) -> str:
        """The whole definition."""
        overrides = ""
        if not self.plane:
            overrides = "<qemu:override>" + "".join(
                OVERRIDE.format(target=disk.target)
                for disk in self.disks) + "</qemu:override>"
        return DOMAIN.format(
            namespace=NAMESPACE, name=self.name, emulator=EMULATOR,
            ports="<controller type='pci' model='pcie-root-port'/>" * PORTS,
            disks="".join(disk.xml() for disk in self.disks),
            overrides=overrides)

    def virsh(self, command: str, *arguments: str,
              text: Optional[str] = None) -> str:
        """A command of virsh for this domain."""
        return self.daemon.virsh(command, self.name, *arguments, text=text)

    def define(self) -> None:
        """Makes the images and tells libvirt."""
        for disk in self.disks:
            self.make_image(disk)
        self.daemon.virsh("define", "/dev/stdin", "--validate",
                          text=self.xml())

    def make_image(self, disk: Disk, size: str = "64M") -> None:
        """An empty one."""
        self.daemon.run("/qemu/qemu-img", "create", "-q", "-f", disk.format,
                        disk.path, size)

    def state(self) -> str:
        """In libvirt's word."""
        return self.virsh("domstate").strip()

    def connect(self) -> Channel:
        """To the guest's serial port, which another QEMU may have opened."""
        if self._guest is not None:
            self._guest.sock.close()
        sock = socket.socket(socket.AF_UNIX)
        # Relative: a socket's path may not be long, the project's may.
        sock.connect(os.path.relpath(self.daemon.local / f"{self.name}.sock"))
        self._guest = Channel(sock)
        return self._guest

    def start(self) -> None:
        """Starts it; the guest is ready on return."""
        self.virsh("start")
        self.connect().boot()

    @property
    def guest(self) -> Channel:
        """The guest's ear and mouth."""
        assert self._guest is not None
        return self._guest

    def attach(self, disk: Disk) -> None:
        """Plugs a disk with a new image, which the guest finds."""
        self.make_image(disk)
        self.virsh("attach-device", "/dev/stdin", "--live", text=disk.xml())
        self.device(disk.target)
        self.check_threads(disk)

    def detach(self, disk: Disk) -> None:
        """Unplugs it, which the guest has to consent to."""
        self.virsh("detach-device", "/dev/stdin", "--live", text=disk.xml())
        wait_until(f"{disk.target} to be gone",
                   lambda: f" {disk.target} " not in self.virsh("domblklist"))

    # ---- the data plane

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Past libvirt."""
        reply = json.loads(self.virsh(
            "qemu-monitor-command",
            json.dumps({"execute": command, "arguments": arguments})))
        if "error" in reply:
            raise TestFailed(f"{command}: {reply['error']['desc']}")
        return reply["return"]

    def info(self, target: str) -> Dict[str, Any]:
        """What the plane of a disk says of itself."""
        info = self.qmp("qom-get", property="x-data-plane-info",
                        path=f"/machine/peripheral/ua-{target}/virtio-backend")
        assert isinstance(info, dict)
        return info

    def completed(self, target: str) -> List[int]:
        """Requests that this QEMU's plane has completed, by queue."""
        return [int(queue["completed"])
                for queue in self.info(target)["queues"]]

    def check_serving(self, target: str = "vda") -> None:
        """The plane serves the disk."""
        info = self.info(target)
        if not info["serving"]:
            raise TestFailed(f"the plane does not serve {target}: {info}")

    def check_threads(self, disk: Disk) -> None:
        """Each queue is served by the IOThread that its disk names."""
        found = [queue["iothread"]
                 for queue in self.info(disk.target)["queues"]]
        wanted = [f"iothread{thread}" for thread in disk.served_by()]
        if found != wanted:
            raise TestFailed(f"the queues of {disk.target} should be served "
                             f"by {wanted}, not by {found}")

    def check_load(self, target: str = "vda", requests: int = 50) -> None:
        """The disk's load goes on, and it is the plane that serves it."""
        before = sum(self.completed(target))
        wait_until(f"{requests} more requests of {target} on the plane",
                   lambda: sum(self.completed(target)) >= before + requests)
        self.check_serving(target)

    # ---- the guest

    def device(self, target: str) -> str:
        """The guest's name for a disk, once it has found it."""
        end = time.monotonic() + 60
        while True:
            found = self.guest.run(f"device_of {target} || true").strip()
            if found.startswith("/dev/"):
                return found
            if time.monotonic() > end:
                raise TestFailed(f"the guest does not find {target}")

    def verify(self, target: str) -> None:
        """Writes to a disk from both CPUs and reads back, in the guest."""
        device = self.device(target)
        self.guest.run(
            f"fio --name=v --filename={device} --size=512k --bs=4k "
            "--rw=randwrite --ioengine=libaio --iodepth=8 --direct=1 "
            "--numjobs=2 --offset_increment=1m --cpus_allowed=0-1 "
            "--cpus_allowed_policy=split --verify=crc32c --verify_fatal=1 "
            ">/tmp/verify.log 2>&1 || { cat /tmp/verify.log; false; }")
