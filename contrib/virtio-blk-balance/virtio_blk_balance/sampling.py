# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
What the policy needs, from the readings of virtio-blk-top.

Knows what the work of a queue is, and which queues and IOThreads take part.
"""

from typing import Collection, Dict, Optional, Tuple

from virtio_blk_top.errors import Trouble
from virtio_blk_top.reader import Disk, Sample

from .policy import Observation, Queue, Thread

#: What a queue costs its IOThread, one unit each: a request, and what is done
#: once for several of them: look for them and submit them, take a notification,
#: send one. How much a unit costs is found out for each disk.
WORK = ('completed', 'batches', 'kicks', 'notifications-sent')


def threads_of(sample: Sample,
               names: Optional[Collection[str]]) -> Dict[str, Thread]:
    """
    The IOThreads that take part, of those that are there.

    :raise Trouble: if QEMU does not tell how busy they are.
    """
    found = {}
    for thread in sample.iothreads:
        if names is not None and thread.name not in names:
            continue
        if (thread.busy_ns is None or thread.poll_ns is None
                or thread.idle_ns is None):
            raise Trouble('this QEMU does not tell how busy its IOThreads '
                          'are: use one with the virtio-blk data plane')
        found[thread.name] = Thread(
            thread.busy_ns,
            thread.busy_ns + thread.poll_ns + thread.idle_ns)
    return found


def queues_of(disk: Disk) -> Dict[Tuple[str, int], Queue]:
    """Those of a disk, if a plane serves it: others cannot move."""
    if not disk.serving:
        return {}
    return {(disk.path, queue.index):
            Queue(sum(queue.counters.get(name, 0) for name in WORK),
                  queue.iothread or '', queue.bound or '')
            for queue in disk.queues}


def observation_of(sample: Sample,
                   names: Optional[Collection[str]]) -> Observation:
    """names: of IOThreads; None: all."""
    queues: Dict[Tuple[str, int], Queue] = {}
    for disk in sample.disks:
        queues.update(queues_of(disk))
    return Observation(sample.time, sample.status == 'running',
                       threads_of(sample, names), queues)
