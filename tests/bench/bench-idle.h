/*
 * Disks with a driver that never makes a request
 *
 * Knows how to start them.  Nobody looks at them afterwards: QEMU has their
 * queues to watch beside those of the disks that are measured.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_BENCH_BENCH_IDLE_H
#define TESTS_BENCH_BENCH_IDLE_H

#include "bench-pci.h"

/**
 * bench_idle_start: start disks with all queues that they have
 * @place: of the first of them, see bench_pci_blk_at()
 * @features: what is negotiated beside several queues; they must offer it
 * @mem: for the rings
 *
 * Returns: false with @errp set if one is not there or does not come up
 */
bool bench_idle_start(BenchQtest *qt, unsigned place, unsigned disks,
                      uint64_t features, BenchMemory *mem, GError **errp);

#endif /* TESTS_BENCH_BENCH_IDLE_H */
