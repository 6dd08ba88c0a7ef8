/*
 * Guest memory as the qtests of the plane see it
 *
 * The qtest protocol moves bytes as text through a socket and the main loop.
 * A VM that shares its RAM lets the test read and write it where it is, as a
 * vCPU does: at native speed, and while the main loop is busy.  What is written
 * there is not marked dirty, so a VM that migrates must not share its RAM.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_QTEST_VIRTIO_BLK_DATAPLANE_RAM_H
#define TESTS_QTEST_VIRTIO_BLK_DATAPLANE_RAM_H

#include "virtio-blk-dataplane-common.h"

/**
 * dp_ram_fd: a file for the RAM of a VM, which QEMU inherits
 *
 * dp_ram_map: map it; closes @fd.  Its pair is dp_ram_unmap().
 */
int dp_ram_fd(uint64_t size);
void dp_ram_map(DpVm *vm, int fd, uint64_t base, uint64_t size);
void dp_ram_unmap(DpVm *vm);

/**
 * dp_ram_write: write guest memory; dp_ram_read: read it; dp_ram_set: fill it
 *
 * What was written before is visible to the device before, and what is read
 * later is read later, as with a full barrier on both sides.
 */
void dp_ram_write(DpVm *vm, uint64_t addr, const void *buf, size_t size);
void dp_ram_read(DpVm *vm, uint64_t addr, void *buf, size_t size);
void dp_ram_set(DpVm *vm, uint64_t addr, uint8_t byte, size_t size);

/*
 * Little-endian numbers, naturally aligned, each read or written at once
 */
uint8_t dp_ram_readb(DpVm *vm, uint64_t addr);
uint16_t dp_ram_readw(DpVm *vm, uint64_t addr);
uint32_t dp_ram_readl(DpVm *vm, uint64_t addr);
void dp_ram_writeb(DpVm *vm, uint64_t addr, uint8_t value);
void dp_ram_writew(DpVm *vm, uint64_t addr, uint16_t value);

#endif /* TESTS_QTEST_VIRTIO_BLK_DATAPLANE_RAM_H */
