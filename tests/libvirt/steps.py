# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
What is done to the domain, step by step, by virsh as a user does it.

All steps work on one guest, whose disk vda is under verified load from step
load to step verdict. Before and after each step the plane must serve it; that
is looked at in run.
"""

import json
import shlex
import sys
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple
from contextlib import contextmanager

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "docs"))

# pylint: disable=wrong-import-position
from blocks import literal_blocks  # noqa: E402
from daemon import Daemon, TestFailed, wait_until  # noqa: E402
from domain import Disk, Domain  # noqa: E402

MIB = 1 << 20
TOP = ROOT / "contrib" / "virtio-blk-top" / "virtio-blk-top"

PAGE = ROOT / "docs" / "devel" / "virtio-blk-dataplane-libvirt.rst"
# How the page names them
PAGE_DOMAIN = "dataplane"
PAGE_DISK = "virtio-disk0"

BACKUP = """
<domainbackup mode='{mode}'>
  {server}
  <disks>
    <disk name='vda' backup='no'/>
    <disk name='vdb' backup='yes' type='file'>
      <{element} file='/work/backup.qcow2'/>
      <driver type='qcow2'/>
    </disk>
  </disks>
</domainbackup>
"""
NBD_SOCKET = "/local/nbd.sock"


class Session:
    """
    What the steps share.

    daemons: two hosts
    domain:  the one that is tested, on one of them
    loaded:  whether its disk is under load
    """

    def __init__(self, daemons: List[Daemon], domain: Domain):
        self.daemons = daemons
        self.domain = domain
        self.loaded = False

    def check(self) -> None:
        """The plane serves the disk that no step takes away."""
        if self.loaded:
            self.domain.check_load()
        else:
            self.domain.check_serving()

    @contextmanager
    def second_disk(self, disk: Disk) -> Iterator[str]:
        """It is plugged, used, and unplugged; gives its name."""
        domain = self.domain
        domain.attach(disk)
        domain.verify(disk.target)
        domain.check_serving(disk.target)
        yield disk.target
        domain.verify(disk.target)
        domain.check_serving(disk.target)
        domain.detach(disk)


def expect(what: str, condition: bool) -> None:
    """Fails with what should be."""
    if not condition:
        raise TestFailed(f"should be: {what}")


def expect_error(domain: Domain, words: str, *command: str) -> None:
    """virsh refuses the command, with a message that has these words."""
    try:
        domain.virsh(*command)
    except TestFailed as error:
        expect(f"an error with '{words}', not '{error}'", words in str(error))
    else:
        raise TestFailed(f"virsh does not refuse {' '.join(command)}")


#
# Life of a domain
#

def start(session: Session) -> None:
    """it is defined and started"""
    session.domain.define()
    session.domain.start()


def reset(session: Session) -> None:
    """it is reset, and boots again"""
    session.domain.virsh("reset")
    session.domain.guest.boot()


def load(session: Session) -> None:
    """its disk gets a file system, and load that verifies all that it reads"""
    session.domain.guest.run("start_load vda")
    session.loaded = True


def suspend(session: Session) -> None:
    """it is suspended, when no request is completed, and resumed"""
    domain = session.domain
    domain.virsh("suspend")
    expect("paused", domain.state() == "paused")
    before = domain.completed("vda")
    domain.virsh("dominfo")
    expect("no request while it is paused", domain.completed("vda") == before)
    domain.virsh("resume")


def save(session: Session) -> None:
    """it is saved to a file and restored from there"""
    domain = session.domain
    domain.virsh("save", "/work/main.save")
    expect("shut off", domain.state() == "shut off")
    domain.daemon.virsh("restore", "/work/main.save")
    domain.connect()


def managed_save(session: Session) -> None:
    """libvirt saves it, and its next start goes on there"""
    domain = session.domain
    domain.virsh("managedsave")
    expect("a saved state", "Managed save:   yes" in domain.virsh("dominfo"))
    domain.virsh("start")
    domain.connect()


#
# IOThreads
#

def iothreads(session: Session) -> None:
    """IOThreads are listed, added, set, pinned, deleted"""
    domain = session.domain

    def cpus() -> Dict[str, str]:
        lines = domain.virsh("iothreadinfo").splitlines()
        words = [line.split() for line in lines]
        return {row[0]: row[1] for row in words if row and row[0].isdigit()}

    expect(f"IOThreads 1 and 2: {cpus()}", sorted(cpus()) == ["1", "2"])
    domain.virsh("iothreadadd", "3", "--live")
    expect(f"IOThread 3, too: {cpus()}", sorted(cpus()) == ["1", "2", "3"])
    for thread in ("1", "3"):
        domain.virsh("iothreadset", thread, "--live", "--poll-max-ns", "20000")
        domain.virsh("iothreadpin", thread, "0", "--live")
        session.check()
    expect(f"IOThreads 1 and 3 on CPU 0: {cpus()}",
           cpus()["1"] == cpus()["3"] == "0")
    domain.virsh("iothreaddel", "3", "--live")
    expect_error(domain, "used by disk", "iothreaddel", "1", "--live")
    expect(f"IOThread 3 gone: {cpus()}", sorted(cpus()) == ["1", "2"])


def mapping(session: Session) -> None:
    """a disk's queues go to an old IOThread and one added a moment ago"""
    domain = session.domain
    for explicit in (False, True):
        domain.virsh("iothreadadd", "4", "--live")
        disk = Disk("vdb", queues=4, threads=("2", "4"), explicit=explicit)
        with session.second_disk(disk):
            domain.check_threads(disk)
            served = domain.completed("vdb")
            expect(f"requests in both queues that the guest uses: {served}",
                   min(served[:2]) > 0)
        domain.virsh("iothreaddel", "4", "--live")


def plug(session: Session) -> None:
    """a disk is attached and detached, as raw and as qcow2 file"""
    for kind in ("raw", "qcow2"):
        with session.second_disk(Disk("vdb", format=kind, iothread="2")):
            session.check()


#
# Size, limits, threshold, statistics
#

def resize(session: Session) -> None:
    """a disk grows, and the guest sees its new size"""
    domain = session.domain
    with session.second_disk(Disk("vdb")) as target:
        domain.virsh("blockresize", target, "96M")
        device = domain.device(target)
        wait_until("the guest to see the new size", lambda: int(
            domain.guest.run(f"blockdev --getsize64 {device}")) == 96 * MIB)


def limit(domain: Domain, target: str) -> int:
    """Of all requests in a second, as QEMU has it."""
    for device in domain.qmp("query-block"):
        if f"/ua-{target}/" in device["qdev"]:
            return int(device["inserted"]["iops"])
    raise TestFailed(f"QEMU does not know {target}")


def tune(session: Session) -> None:
    """requests are limited: of a disk, of a group of disks"""
    domain = session.domain
    with session.second_disk(Disk("vdb")):
        for extra in ((), ("--group-name", "both")):
            for target in ("vda", "vdb"):
                domain.virsh("blkdeviotune", target, "--live",
                             "--total-iops-sec", "1000", *extra)
            for target in ("vda", "vdb"):
                expect("1000 requests", limit(domain, target) == 1000)
            session.check()
            domain.verify("vdb")
            domain.check_serving("vdb")
            for target in ("vda", "vdb"):
                domain.virsh("blkdeviotune", target, "--live",
                             "--total-iops-sec", "0")
                expect("no limit", limit(domain, target) == 0)


def filters(session: Session) -> None:
    """a disk has throttle filters, whose groups change meanwhile"""
    domain = session.domain
    domain.virsh("domthrottlegroupset", "late", "--live",
                 "--total-iops-sec", "900000")
    with session.second_disk(Disk("vdb", filters=("filter", "late"))):
        domain.virsh("domthrottlegroupset", "late", "--live",
                     "--total-iops-sec", "2000")
        expect("the new limit",
               "2000" in domain.virsh("domthrottlegroupinfo", "late"))
    domain.virsh("domthrottlegroupdel", "late", "--live")


def threshold(session: Session) -> None:
    """libvirt hears of a write beyond a threshold"""
    domain = session.domain
    with session.second_disk(Disk("vdb")) as target:
        device = domain.device(target)
        event = domain.daemon.background(
            "event", "--domain", domain.name, "--event", "block-threshold",
            "--timeout", "60")
        # Once more until it listens: nothing tells when it begins.
        while event.poll() is None:
            domain.virsh("domblkthreshold", target, "16M")
            domain.guest.run(f"dd if=/dev/zero of={device} bs=1M count=1 "
                             "seek=20 oflag=direct 2>/dev/null")
        said = event.communicate()[0]
        expect(f"an event of vdb, not '{said.strip()}'",
               "block-threshold" in said and target in said)


def statistics(session: Session) -> None:
    """domstats counts the requests of the plane"""
    domain = session.domain

    def written() -> int:
        for line in domain.virsh("domstats", "--block").splitlines():
            name, _, value = line.strip().partition("=")
            if name == "block.0.wr.reqs":
                return int(value)
        raise TestFailed("domstats does not know block.0.wr.reqs")

    def on_plane() -> int:
        return sum(queue["writes"] for queue in domain.info("vda")["queues"])

    domain.virsh("suspend")
    before = written(), on_plane()
    domain.virsh("resume")
    session.check()
    domain.virsh("suspend")
    after = written(), on_plane()
    domain.virsh("resume")
    expect(f"as many writes in domstats as on the plane: {before}, {after}",
           after[0] - before[0] == after[1] - before[1] > 0)
    expect("IOThread 1 in domstats",
           "iothread.1." in domain.virsh("domstats", "--iothread"))


#
# Jobs
#

def file_of(domain: Domain, target: str = "vda") -> str:
    """The image of a disk, as libvirt has it."""
    for line in domain.virsh("domblklist").splitlines():
        words = line.split()
        if words and words[0] == target:
            return words[1]
    raise TestFailed(f"domblklist does not know {target}")


def take(domain: Domain, name: str, *options: str) -> None:
    """An external snapshot of vda, which goes on in /work/NAME."""
    domain.virsh("snapshot-create-as", name, "--disk-only", *options,
                 "--diskspec", f"vda,snapshot=external,file=/work/{name}")
    expect(f"vda on {name}", file_of(domain) == f"/work/{name}")


def snapshots(session: Session) -> None:
    """external snapshots are made, one on the other, and deleted"""
    domain = session.domain
    first = file_of(domain)
    for name in ("one", "two"):
        take(domain, name)
        session.check()
    domain.virsh("snapshot-delete", "one")
    session.check()
    domain.virsh("snapshot-delete", "two")
    expect(f"vda on {first} again", file_of(domain) == first)


def commit(session: Session) -> None:
    """the active image is committed to the one below"""
    domain = session.domain
    first = file_of(domain)
    take(domain, "active", "--no-metadata")
    session.check()
    domain.virsh("blockcommit", "vda", "--active", "--wait", "--pivot")
    expect(f"vda on {first} again", file_of(domain) == first)


def copy(session: Session) -> None:
    """the disk is copied to another file, where the guest goes on"""
    session.domain.virsh("blockcopy", "vda", "/work/copy", "--format", "qcow2",
                         "--wait", "--pivot", "--transient-job")
    expect("vda on the copy", file_of(session.domain) == "/work/copy")


def pull(session: Session) -> None:
    """what lies below the active image is pulled into it"""
    domain = session.domain
    take(domain, "pulled", "--no-metadata")
    session.check()
    domain.virsh("blockpull", "vda", "--wait")
    images = domain.daemon.run("/qemu/qemu-img", "info", "-U",
                               "--backing-chain", "/work/pulled")
    expect("no image below", "backing file" not in images)


def backup(session: Session) -> None:
    """another disk is backed up: pushed to a file, pulled through NBD"""
    domain = session.domain
    run = domain.daemon.run
    with session.second_disk(Disk("vdb")):
        begin_backup(domain, "push")
        wait_until("the end of the backup", lambda: has_backup(domain))
        run("/qemu/qemu-img", "compare", "-U", "/work/vdb.img",
            "/work/backup.qcow2")
        run("rm", "/work/backup.qcow2")
        begin_backup(domain, "pull")
        # What comes later does not belong to it.
        run("cp", "/work/vdb.img", "/work/then.img")
        domain.verify("vdb")
        session.check()
        run("/qemu/qemu-img", "compare", "/work/then.img",
            f"nbd+unix:///vdb?socket={NBD_SOCKET}")
        domain.virsh("domjobabort")
        run("rm", "-f", "/work/backup.qcow2", "/work/then.img")


def has_backup(domain: Domain) -> bool:
    """Its last job was one, and has ended well."""
    info = domain.virsh("domjobinfo", "--completed").split()
    return "Completed" in info and "Backup" in info


def begin_backup(domain: Domain, mode: str) -> None:
    """Of vdb; what is asked for is in BACKUP."""
    server = f"<server transport='unix' socket='{NBD_SOCKET}'/>"
    text = BACKUP.format(mode=mode, server=server if mode == "pull" else "",
                         element="scratch" if mode == "pull" else "target")
    domain.virsh("backup-begin", "/dev/stdin", text=text)


#
# Migration
#

def migrate(session: Session, *options: str) -> None:
    """Sends the domain to the other host."""
    domain = session.domain
    here, there = session.daemons
    domain.virsh("migrate", f"qemu+tcp://{there.host.address}/system",
                 f"tcp://{there.host.address}", "--live", "--p2p",
                 "--persistent", "--undefinesource", "--unsafe", *options)
    session.daemons.reverse()
    domain.daemon = there
    expect(f"running on {there.name}", domain.state() == "running")
    expect(f"nothing left on {here.name}",
           domain.name not in here.virsh("list", "--all"))
    domain.connect()


def migration(session: Session) -> None:
    """it moves to another host that has its disk, too"""
    migrate(session)


def migration_copy(session: Session) -> None:
    """it moves back, and one of its disks is copied"""
    domain = session.domain
    disk = Disk("vdb", folder="/local")
    domain.attach(disk)
    domain.verify("vdb")
    device = domain.device("vdb")
    before = domain.guest.run(f"sha256sum {device}")
    # libvirt expects the file, as there are no storage pools.
    session.daemons[1].run("/qemu/qemu-img", "create", "-q", "-f", "raw",
                           disk.path, "64M")
    migrate(session, "--copy-storage-all", "--migrate-disks", "vdb")
    domain.check_serving("vdb")
    domain.guest.run("echo 3 > /proc/sys/vm/drop_caches")
    expect("the same data", domain.guest.run(f"sha256sum {device}") == before)
    domain.verify("vdb")
    domain.detach(disk)


#
# Beside libvirt
#

def documented(session: Session) -> None:
    """what the page on libvirt says to ask answers that the disk is served"""
    domain = session.domain
    asked = 0
    for block in literal_blocks(PAGE):
        # One command, with its line continued by a backslash.
        words = shlex.split(" ".join(block).replace("\\ ", ""))
        if words[:1] != ["virsh"]:
            continue
        names = {PAGE_DOMAIN: domain.name}
        said = domain.daemon.virsh(*(
            names.get(word, word).replace(PAGE_DISK, "ua-vda")
            for word in words[1:]))
        expect(f"serving, not {said}", '"serving": true' in said)
        asked += 1
    expect("a command of virsh in the page", asked > 0)


def top(session: Session) -> None:
    """virtio-blk-top finds it by its name, and sees its load"""
    host, name = session.domain.daemon.host, session.domain.name

    def loaded() -> bool:
        said, = json.loads(host.run(
            str(TOP), name, "--json", "--timeout", "60", "--connect",
            f"qemu+tcp://{host.address}/system"))
        expect(f"no problem, not {said}", said.get("status") == "running")
        return any(row["iops"] for row in said["queues"])

    wait_until("virtio-blk-top to see a request", loaded)


#
# The end
#

def verdict(session: Session) -> None:
    """the load ends, has found no fault, and the file system is clean"""
    session.loaded = False
    said = session.domain.guest.run("end_load")
    expect(f"some rounds: {said}", "rounds 0" not in said)


def destroy(session: Session) -> None:
    """it is destroyed, and its image is whole"""
    domain = session.domain
    image = file_of(domain)
    domain.virsh("destroy")
    expect("shut off", domain.state() == "shut off")
    domain.daemon.run("/qemu/qemu-img", "check", "-q", image)
    domain.virsh("undefine")


class Step(NamedTuple):
    """
    One of them.

    before, after: whether there is a domain that can be looked at
    """
    act: Callable[[Session], None]
    before: bool = True
    after: bool = True

    @property
    def name(self) -> str:
        """For the result's line."""
        return self.act.__name__.replace("_", " ")


STEPS = (
    Step(start, before=False), Step(reset), Step(load), Step(suspend),
    Step(save), Step(managed_save),
    Step(iothreads), Step(mapping), Step(plug),
    Step(resize), Step(tune), Step(filters), Step(threshold),
    Step(statistics), Step(documented), Step(top),
    Step(snapshots), Step(commit), Step(copy), Step(pull), Step(backup),
    Step(migration), Step(migration_copy),
    Step(verdict), Step(destroy, after=False),
)
