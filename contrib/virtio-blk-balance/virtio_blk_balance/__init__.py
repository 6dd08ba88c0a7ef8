# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Even busy time of the IOThreads of a VM, by moving virtio-blk queues.

Each module uses only those before it; the first three do no I/O and look at no
clock, so that a simulator can run them:

- costs: what a queue takes of its IOThread's time, and what nothing can move
- decision: which queues to move, or why none
- policy: decisions over time: what to wait for, and how much is too much
- sampling: what the policy needs, from the readings of virtio-blk-top
- balancer: a VM that is read, and whose queues are moved
- cli: the command line

How a VM is found, read and spoken to is shared with virtio-blk-top.
"""
