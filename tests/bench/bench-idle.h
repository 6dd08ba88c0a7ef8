/*
 * Disks with a driver that never makes a request
 *
 * Knows where scripts/bench puts them on the PCI bus, and how to start them.
 * Nobody looks at them afterwards: QEMU has their queues to watch beside those
 * of the disk that is measured.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_BENCH_BENCH_IDLE_H
#define TESTS_BENCH_BENCH_IDLE_H

#include "bench-pci.h"

/* Eight functions of each slot behind BENCH_PCI_IDLE_SLOT, the last is 31 */
#define BENCH_IDLE_MAX      ((32 - BENCH_PCI_IDLE_SLOT) * 8)

/**
 * bench_idle_start: start disks with all queues that they have
 * @features: what is negotiated beside several queues; they must offer it
 * @mem: for the rings
 *
 * Returns: false with @errp set if one is not there or does not come up
 */
bool bench_idle_start(BenchQtest *qt, unsigned disks, uint64_t features,
                      BenchMemory *mem, GError **errp);

#endif /* TESTS_BENCH_BENCH_IDLE_H */
