# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
The virtio-blk disks of VMs, seen from outside of QEMU.

Each module uses only those before it:

- errors: what goes wrong, in words for the user
- monitor: a QMP monitor, behind a socket or behind libvirt
- histogram: differences and quantiles of histograms
- reader: one reading of a VM's counters, from whatever its QEMU offers
- vm: a VM that is read again and again, and may end meanwhile
- rates: what two readings make up, as rows
- text: numbers for people
- screen: the live view, as a drawing and in a terminal
- metrics: the counters for Prometheus
- program: how a program begins, ends, and tells of trouble
- cli: the command line

virtio-blk-balance uses errors, monitor, reader, vm, text and program, too.
"""
