/*
 * Disks with a driver that never makes a request
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "bench-idle.h"
#include "bench-ring.h"

#define QUEUE_SIZE  256u

static bool start_disk(const BenchPciKind *kind, BenchQtest *qt,
                       uint64_t features, BenchMemory *mem, GError **errp)
{
    bool packed = features >> BENCH_F_RING_PACKED & 1;
    uint64_t offered;
    BenchPci pci;
    unsigned n;

    if (!bench_pci_init(&pci, kind, qt, errp)) {
        return false;
    }
    offered = bench_pci_reset(&pci);
    features |= offered & 1ull << BENCH_F_MQ;
    if (!bench_pci_set_features(&pci, features, errp)) {
        return false;
    }
    n = bench_pci_num_queues(&pci);
    bench_pci_enable_msix(&pci, n, bench_memory_alloc(mem, 64, 64), 0);
    for (unsigned i = 0; i < n && !bench_qtest_failed(qt, NULL); i++) {
        BenchQueue queue = {
            .size = MIN(bench_pci_queue_size(&pci, i), QUEUE_SIZE),
        };

        bench_ring_layout(&queue, packed, mem);
        bench_pci_enable_queue(&pci, i, &queue);
    }
    bench_pci_driver_ok(&pci);
    return !bench_qtest_failed(qt, errp);
}

bool bench_idle_start(BenchQtest *qt, unsigned place, unsigned disks,
                      uint64_t features, BenchMemory *mem, GError **errp)
{
    for (unsigned i = 0; i < disks; i++) {
        BenchPciKind kind = bench_pci_blk_at(place + i);

        if (!start_disk(&kind, qt, features, mem, errp)) {
            g_prefix_error(errp, "idle disk %u: ", i);
            return false;
        }
    }
    return true;
}
