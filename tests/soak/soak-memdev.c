/*
 * The devices that give and take guest memory: virtio-mem and virtio-balloon
 *
 * Used rings are polled and kicks go over the qtest socket: these devices are
 * QEMU's main loop's.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "soak-memdev.h"

#include <string.h>

#define IRQ_STEP            64
#define MAX_DESCS           2           /* of a request */

/* Of virtio-mem (5.15.3): memory that is not plugged is left alone */
#define F_INACCESSIBLE      1
/* Of virtio-balloon (5.5.3) */
#define F_REPORTING         5
/* In struct virtio_balloon_config (5.5.4) */
#define CONFIG_ACTUAL       4

/* struct virtio_mem_req and virtio_mem_resp (5.15.6) */
typedef struct MemRequest {
    uint16_t type;
    uint16_t padding[3];
    uint64_t addr;
    uint16_t blocks;
    uint16_t more_padding[3];
} MemRequest;

typedef struct MemAnswer {
    uint16_t type;
    uint16_t padding[3];
    uint16_t state;
} MemAnswer;

G_STATIC_ASSERT(sizeof(MemRequest) == 24);

const SoakMemdevKind soak_memdev_mem = {
    .pci = {
        .name = "virtio-mem-pci",
        .type = 24,
        .window = 0xec000000u,
        .bar_step = BENCH_PCI_BAR_STEP,
    },
    .features = 1ull << F_INACCESSIBLE,
    .min_queues = 1,
};

const SoakMemdevKind soak_memdev_balloon = {
    .pci = {
        .name = "virtio-balloon-pci",
        .type = 5,
        .transitional_id = 0x1002,
        .window = 0xf2000000u,
        .bar_step = BENCH_PCI_BAR_STEP,
    },
    .features = 1ull << F_REPORTING,
    .min_queues = SOAK_BALLOON_DEFLATE + 1,
};

/* Making and freeing */

SoakMemdev *soak_memdev_new(const SoakMemdevKind *kind, BenchQtest *qt,
                            BenchMemory *mem)
{
    static const BenchDeviceOps ops = {};
    SoakMemdev *dev = g_new0(SoakMemdev, 1);

    dev->kind = kind;
    dev->qt = qt;
    dev->mem = bench_memory_part(mem, SOAK_MEMDEV_BYTES);
    dev->buffer = bench_memory_alloc(&dev->mem, SOAK_MAX_PAGES * 4, 4096);
    dev->answer = bench_memory_alloc(&dev->mem, 4096, 4096);
    dev->rings_addr = dev->mem.next;
    bench_device_init(&dev->parent, &ops, &dev->mem);
    return dev;
}

static void forget_rings(SoakMemdev *dev)
{
    for (unsigned i = 0; i < dev->parent.num_queues; i++) {
        bench_ring_cleanup(&dev->rings[i]);
    }
    g_clear_pointer(&dev->rings, g_free);
    g_clear_pointer(&dev->parent.queues, g_free);
    dev->parent.num_queues = 0;
    dev->asked = NULL;
}

void soak_memdev_free(SoakMemdev *dev)
{
    if (dev) {
        forget_rings(dev);
        bench_device_cleanup(&dev->parent);
        g_free(dev);
    }
}

/* Starting */

static bool negotiate(SoakMemdev *dev, BenchWish *wish, GError **errp)
{
    uint64_t offered = bench_pci_reset(&dev->pci);

    wish->queues = bench_pci_num_queues(&dev->pci);
    if (bench_qtest_failed(dev->qt, errp)) {
        return false;
    }
    if (wish->queues < dev->kind->min_queues) {
        g_set_error(errp, BENCH_ERROR, 0, "the %s has %u queues",
                    dev->kind->pci.name, wish->queues);
        return false;
    }
    dev->parent.features = offered & (dev->kind->features |
                                      1ull << BENCH_F_VERSION_1);
    return bench_pci_set_features(&dev->pci, dev->parent.features, errp);
}

static void enable_queues(SoakMemdev *dev)
{
    BenchDevice *parent = &dev->parent;

    dev->mem.next = dev->rings_addr;
    memset(dev->mem.host + dev->mem.next, 0, dev->mem.size - dev->mem.next);
    dev->rings = g_new0(BenchRing, parent->num_queues);
    bench_pci_enable_msix(&dev->pci, parent->num_queues,
                          bench_memory_alloc(&dev->mem, parent->num_queues *
                                             IRQ_STEP, IRQ_STEP), IRQ_STEP);
    for (unsigned i = 0; i < parent->num_queues; i++) {
        BenchQueue *queue = &parent->queues[i];

        queue->size = bench_pci_queue_size(&dev->pci, i);
        bench_ring_layout(queue, false, &dev->mem);
        bench_ring_init(&dev->rings[i], queue, parent, MAX_DESCS);
        bench_ring_no_calls(&dev->rings[i]);
        bench_pci_enable_queue(&dev->pci, i, queue);
    }
}

bool soak_memdev_start(SoakMemdev *dev, GError **errp)
{
    BenchWish wish = {};

    forget_rings(dev);
    if (!bench_pci_init(&dev->pci, &dev->kind->pci, dev->qt, errp) ||
        !negotiate(dev, &wish, errp) ||
        !bench_device_set_queues(&dev->parent, &wish, wish.queues, 0, errp)) {
        return false;
    }
    enable_queues(dev);
    bench_pci_driver_ok(&dev->pci);
    return !bench_qtest_failed(dev->qt, errp);
}

/* Asking */

bool soak_memdev_ended(SoakMemdev *dev)
{
    if (dev->asked && bench_ring_has_used(dev->asked)) {
        bench_ring_take(dev->asked);
        dev->asked = NULL;
    }
    return !dev->asked;
}

/* Makes a request of the chain that begins at descriptor 0 */
static void ask(SoakMemdev *dev, unsigned queue)
{
    BenchRing *ring = &dev->rings[queue];

    g_assert(!dev->asked);
    dev->asked = ring;
    bench_ring_add(ring, 0, NULL);
    bench_ring_expose(ring);
    bench_pci_notify(&dev->pci, queue);
}

uint64_t soak_memdev_config(SoakMemdev *dev, unsigned offset)
{
    return bench_pci_config64(&dev->pci, offset);
}

/* virtio-mem */

void soak_mem_ask(SoakMemdev *dev, SoakMemRequest request, uint64_t addr,
                  unsigned blocks)
{
    BenchRing *ring = &dev->rings[0];

    *(MemRequest *)(dev->mem.host + dev->buffer) = (MemRequest) {
        .type = request,
        .addr = addr,
        .blocks = blocks,
    };
    ring->desc[0] = bench_ring_desc(ring, dev->buffer, sizeof(MemRequest),
                                    BENCH_DESC_NEXT, 1);
    ring->desc[1] = bench_ring_desc(ring, dev->answer, sizeof(MemAnswer),
                                    BENCH_DESC_WRITE, 0);
    ask(dev, 0);
}

const char *soak_mem_answer(const SoakMemdev *dev)
{
    static const char *const types[] = { "ack", "nack", "busy", "error" };
    static const char *const states[] = { "plugged", "unplugged", "mixed" };
    const MemRequest *request = (MemRequest *)(dev->mem.host + dev->buffer);
    const MemAnswer *answer = (MemAnswer *)(dev->mem.host + dev->answer);

    if (answer->type || request->type != SOAK_MEM_STATE) {
        return answer->type < G_N_ELEMENTS(types) ? types[answer->type]
                                                  : "nonsense";
    }
    return answer->state < G_N_ELEMENTS(states) ? states[answer->state]
                                                : "nonsense";
}

/* virtio-balloon */

/* Free pages are reported by themselves, others by their numbers. */
void soak_balloon_move(SoakMemdev *dev, SoakBalloonQueue queue, uint64_t addr,
                       unsigned n)
{
    BenchRing *ring = &dev->rings[queue];
    uint32_t *numbers = (uint32_t *)(dev->mem.host + dev->buffer);

    if (queue == SOAK_BALLOON_REPORT) {
        ring->desc[0] = bench_ring_desc(ring, addr, n * SOAK_PAGE,
                                        BENCH_DESC_WRITE, 0);
    } else {
        for (unsigned i = 0; i < n; i++) {
            numbers[i] = addr / SOAK_PAGE + i;
        }
        ring->desc[0] = bench_ring_desc(ring, dev->buffer, n * 4, 0, 0);
    }
    ask(dev, queue);
}

void soak_balloon_set_actual(SoakMemdev *dev, uint32_t pages)
{
    bench_pci_set_config32(&dev->pci, CONFIG_ACTUAL, pages);
}
