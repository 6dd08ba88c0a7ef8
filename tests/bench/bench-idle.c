/*
 * Disks with a driver that never makes a request
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "bench-idle.h"
#include "bench-ring.h"

/* Behind the windows of the other devices; a BAR has 16 KiB at most */
#define WINDOW      0xf8000000u
#define BAR_STEP    0x4000u
#define NUM_BARS    6
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

bool bench_idle_start(BenchQtest *qt, unsigned disks, uint64_t features,
                      BenchMemory *mem, GError **errp)
{
    BenchPciKind kind = bench_pci_blk;

    kind.bar_step = BAR_STEP;
    for (unsigned i = 0; i < disks; i++) {
        kind.slot = BENCH_PCI_IDLE_SLOT + i / 8;
        kind.function = i % 8;
        kind.window = WINDOW + i * NUM_BARS * BAR_STEP;
        if (!start_disk(&kind, qt, features, mem, errp)) {
            g_prefix_error(errp, "idle disk %u: ", i);
            return false;
        }
    }
    return true;
}
