/*
 * Transports of virtio-blk for the qtests of the data plane
 *
 * Reaches a disk's registers on transports that libqos does not have, or has
 * only in part: virtio-mmio in both versions, and the legacy I/O registers of
 * a PCI device that offers the modern ones as well.  Knows registers and
 * interrupts; rings and requests are those of virtio-blk-dataplane-common.h.
 *
 * An interrupt counts only if the line is up (virtio-mmio) or the Interrupt
 * Status bit is set (PCI) and the device's interrupt status tells it, too.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_QTEST_VIRTIO_BLK_DATAPLANE_TRANSPORT_H
#define TESTS_QTEST_VIRTIO_BLK_DATAPLANE_TRANSPORT_H

#include "virtio-blk-dataplane-common.h"

/* A disk, and how its transport is driven; one of these per disk. */
typedef struct DpTransport DpTransport;

/**
 * dp_mmio_bus: the bus of virtio-mmio that a disk must be given
 * dp_mmio_machine: the machine that has it, for the architecture under test
 */
const char *dp_mmio_bus(void);
const char *dp_mmio_machine(void);

/**
 * dp_mmio_vm: run dp_mmio_machine() with these arguments
 *
 * Pair: dp_vm_quit()
 */
DpVm *dp_mmio_vm(const char *fmt, ...) G_GNUC_PRINTF(1, 2);

/**
 * dp_mmio_probe: find the disk on dp_mmio_bus(); its interrupt line is taken
 *                from the interrupt controller
 */
DpTransport *dp_mmio_probe(DpVm *vm, const char *id);

/**
 * dp_legacy_probe: find the disk in PCI slot @slot, for its I/O registers
 */
DpTransport *dp_legacy_probe(DpVm *vm, const char *id, int slot);

/**
 * dp_modern_probe: dp_disk_probe(), without MSI-X if @no_msix
 */
DpTransport *dp_modern_probe(DpVm *vm, const char *id, int slot, bool no_msix);

void dp_transport_free(DpTransport *t);

DpDisk *dp_transport_disk(DpTransport *t);

/**
 * dp_transport_max_num: the largest size of queue 0 that the device offers
 *
 * The queue must not be set up.
 */
unsigned dp_transport_max_num(DpTransport *t);

/**
 * dp_transport_set_num: the size that the driver chooses at its next start
 *
 * Not on legacy PCI, where there is no choice.
 */
void dp_transport_set_num(DpTransport *t, unsigned num);

/**
 * dp_transport_legacy_reset: reset as drivers did before VIRTIO 1.0, by taking
 *                            the queue's address away
 */
void dp_transport_legacy_reset(DpTransport *t);

/**
 * dp_transport_capacity: what the configuration space says, in sectors
 */
uint64_t dp_transport_capacity(DpTransport *t);

#endif /* TESTS_QTEST_VIRTIO_BLK_DATAPLANE_TRANSPORT_H */
