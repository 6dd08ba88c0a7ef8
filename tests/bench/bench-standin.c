/*
 * The benchmark's device: a stand-in that only works on memory
 *
 * Serves requests within the driver's thread, whenever the driver would wait:
 * reads each header, writes each status, and moves no data.  So it shows what
 * the driver itself takes, and whether it makes and counts requests rightly.
 * Knows both formats of rings from the device's side; believes the driver, with
 * which it shares a process.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "bench-ring.h"

#include <linux/virtio_blk.h>
#include <sys/eventfd.h>

#define CAPACITY        (1ull << 21)    /* sectors: 1 GiB */
#define QUEUES          1024
#define QUEUE_SIZE      1024
#define SECTOR          512

#define DESCS           3               /* of a request */

/* No notifications, please: split (2.7.10) and packed (2.8.14) */
#define USED_NO_NOTIFY  1
#define EVENT_DISABLE   1

typedef struct StandInQueue {
    uint16_t mask;
    uint16_t next_avail;        /* split */
    uint16_t next_used;
    BenchPosition pos;          /* packed: both, as it serves in order */
    BenchDesc *desc;
    uint16_t *avail;
    uint16_t *used;
} StandInQueue;

typedef struct StandIn {
    BenchDevice dev;            /* first */
    StandInQueue *queues;
    bool packed;
    bool indirect;
    uint64_t served;
} StandIn;

/*
 * A request's three descriptors: header, data, status.  Returns how many bytes
 * of the buffer were written.  What a device would refuse gets an error, which
 * ends the run.
 */
static uint32_t serve_request(StandIn *s, const BenchDesc *chain)
{
    uint8_t *host = s->dev.mem->host;
    const struct virtio_blk_outhdr *header =
        (const struct virtio_blk_outhdr *)(host + chain[0].addr);
    uint16_t flags = s->packed ? chain[1].packed.flags : chain[1].split.flags;
    bool writable = flags & BENCH_DESC_WRITE;
    bool wanted = header->type == VIRTIO_BLK_T_IN;
    bool valid = (wanted || header->type == VIRTIO_BLK_T_OUT) &&
                 wanted == writable && chain[2].len == 1 &&
                 header->sector < CAPACITY &&
                 chain[1].len / SECTOR <= CAPACITY - header->sector;

    host[chain[2].addr] = valid ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR;
    s->served++;
    return valid && writable ? chain[1].len + 1 : 1;
}

static const BenchDesc *table_of(const StandIn *s, const BenchDesc *desc)
{
    return (const BenchDesc *)(s->dev.mem->host + desc->addr);
}

static void serve_split(StandIn *s, StandInQueue *q)
{
    BenchUsed *elems = (BenchUsed *)(q->used + 2);
    uint16_t end = __atomic_load_n(&q->avail[1], __ATOMIC_ACQUIRE);

    while (q->next_avail != end) {
        uint16_t head = q->avail[2 + (q->next_avail++ & q->mask)], next = head;
        const BenchDesc *chain;
        BenchDesc copy[DESCS];

        if (s->indirect) {
            chain = table_of(s, &q->desc[head]);
        } else {
            for (unsigned i = 0; i < DESCS; i++) {
                copy[i] = q->desc[next & q->mask];
                next = copy[i].split.next;
            }
            chain = copy;
        }
        elems[q->next_used++ & q->mask] = (BenchUsed) {
            .id = head, .len = serve_request(s, chain),
        };
    }
    /* With EVENT_IDX: the entry to notify of is before the driver's next. */
    q->used[2 + (q->mask + 1) * sizeof(BenchUsed) / 2] = end - 1;
    __atomic_store_n(&q->used[1], q->next_used, __ATOMIC_RELEASE);
}

static bool is_available(const StandInQueue *q)
{
    uint16_t flags = __atomic_load_n(&q->desc[q->pos.slot].packed.flags,
                                     __ATOMIC_ACQUIRE);

    return !!(flags & BENCH_DESC_AVAIL) == q->pos.wrap &&
           !!(flags & BENCH_DESC_USED) != q->pos.wrap;
}

static void advance(StandInQueue *q)
{
    q->pos.slot = (q->pos.slot + 1) & q->mask;
    q->pos.wrap ^= !q->pos.slot;
}

static void serve_packed(StandIn *s, StandInQueue *q)
{
    while (is_available(q)) {
        BenchDesc copy[DESCS], *first = &q->desc[q->pos.slot];
        uint16_t flags = q->pos.wrap ? BENCH_DESC_AVAIL | BENCH_DESC_USED : 0;
        const BenchDesc *chain;

        if (s->indirect) {
            chain = table_of(s, first);
            advance(q);
        } else {
            for (unsigned i = 0; i < DESCS; i++) {
                copy[i] = q->desc[q->pos.slot];
                advance(q);
            }
            chain = copy;
        }
        first->len = serve_request(s, chain);
        __atomic_store_n(&first->packed.flags, flags | BENCH_DESC_WRITE,
                         __ATOMIC_RELEASE);
    }
}

static void standin_serve(BenchDevice *dev)
{
    StandIn *s = (StandIn *)dev;

    for (unsigned i = 0; i < dev->num_queues; i++) {
        if (s->packed) {
            serve_packed(s, &s->queues[i]);
        } else {
            serve_split(s, &s->queues[i]);
        }
    }
}

static uint64_t standin_served(const BenchDevice *dev)
{
    return ((const StandIn *)dev)->served;
}

static bool standin_start(BenchDevice *dev, GError **errp)
{
    StandIn *s = (StandIn *)dev;
    uint8_t *host = dev->mem->host;

    s->packed = bench_device_has(dev, BENCH_F_RING_PACKED);
    s->indirect = bench_device_has(dev, BENCH_F_INDIRECT_DESC);
    s->queues = g_new0(StandInQueue, dev->num_queues);
    for (unsigned i = 0; i < dev->num_queues; i++) {
        BenchQueue *queue = &dev->queues[i];

        s->queues[i] = (StandInQueue) {
            .mask = queue->size - 1,
            .pos.wrap = true,
            .desc = (BenchDesc *)(host + queue->desc),
            .avail = (uint16_t *)(host + queue->avail),
            .used = (uint16_t *)(host + queue->used),
        };
        if (s->packed) {
            ((BenchEvent *)s->queues[i].used)->flags = EVENT_DISABLE;
        } else {
            s->queues[i].used[0] = USED_NO_NOTIFY;
        }
        /* Nobody reads it: the driver is to look whether it has to write. */
        queue->kick_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        if (queue->kick_fd < 0) {
            g_set_error(errp, BENCH_ERROR, 0, "cannot make an eventfd");
            return false;
        }
    }
    return true;
}

static bool standin_alive(BenchDevice *dev, GError **errp)
{
    return true;
}

static void standin_free(BenchDevice *dev)
{
    StandIn *s = (StandIn *)dev;

    bench_device_cleanup(dev);
    g_free(s->queues);
    g_free(s);
}

BenchDevice *bench_standin_new(const BenchWish *wish, BenchMemory *mem,
                               GError **errp)
{
    static const BenchDeviceOps ops = {
        .start = standin_start,
        .serve = standin_serve,
        .served = standin_served,
        .alive = standin_alive,
        .free = standin_free,
    };
    StandIn *s = g_new0(StandIn, 1);

    bench_device_init(&s->dev, &ops, mem);
    s->dev.capacity = CAPACITY;
    if (!bench_device_negotiate(&s->dev, ~(1ull << BENCH_F_RO), wish, errp) ||
        !bench_device_set_queues(&s->dev, wish, QUEUES, QUEUE_SIZE, errp)) {
        standin_free(&s->dev);
        return NULL;
    }
    return &s->dev;
}
