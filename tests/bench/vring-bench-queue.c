/*
 * The cases of the ring's benchmark: implementation
 *
 * Knows the layouts of VIRTIO 1.3, 2.7 and 2.8 on its own account, what a
 * driver writes per batch, and the interface of the ring.  All of the ring's
 * functions that are measured are called here, under "The device".
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qapi/error.h"
#include "hw/virtio/dataplane/vring.h"
#include "vring-bench-memory.h"
#include "vring-bench-queue.h"

/* Descriptor flags (2.7.5, 2.8.13), the last two in packed rings alone */
#define NEXT        1
#define WRITE       2
#define INDIRECT    4
#define AVAIL       0x80
#define USED        0x8000

/* Of a packed ring's driver area: notify of one descriptor (2.8.14) */
#define EVENT_DESC  2
#define EVENT_WRAP  0x8000

/* Where things are in RING_MAIN */
#define DESC_BASE       RING_MAIN
#define AVAIL_BASE      (RING_MAIN + 0x2000)
#define USED_BASE       (RING_MAIN + 0x3000)
#define REQUEST_BASE    (RING_MAIN + 0x10000)   /* headers, status bytes */
#define TABLE_BASE      (RING_MAIN + 0x100000)  /* indirect tables */
#define DATA_OFFSET     0x200000                /* there or in RING_HIGH */

/* A driver keeps header and status of a request in a structure of its own. */
#define REQUEST_SIZE    256
#define HEADER_SIZE     16
#define STATUS_OFFSET   128

/* The data of a request is pages. */
#define DATA_SIZE       4096
#define MAX_BUFFERS     18
#define MAX_BATCH       128

typedef struct RingDesc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
} RingDesc;

typedef struct PackedDesc {
    uint64_t addr;
    uint32_t len;
    uint16_t id;
    uint16_t flags;
} PackedDesc;

typedef struct PackedEvent {
    uint16_t off_wrap;
    uint16_t flags;
} PackedEvent;

typedef struct RingAvail {
    uint16_t flags;
    uint16_t idx;
    uint16_t ring[RING_QUEUE_SIZE];
    uint16_t used_event;
} RingAvail;

typedef struct RingUsed {
    uint16_t flags;
    uint16_t idx;
    struct {
        uint32_t id;
        uint32_t len;
    } ring[RING_QUEUE_SIZE];
    uint16_t avail_event;
} RingUsed;

/* What a device has per request */
typedef struct RingSlot {
    VirtQueueElement elem;
    VringVectors buf;
} RingSlot;

struct RingQueue {
    const RingCase *c;
    VringMemory *mem;

    /* The driver of a split ring */
    RingDesc *desc;
    RingAvail *avail;
    RingUsed *used;
    uint16_t avail_idx;
    uint16_t heads[MAX_BATCH];

    /* That of a packed one; a position counts through two laps */
    PackedDesc *packed;
    PackedEvent *event;
    unsigned avail_pos;
    unsigned used_pos;

    /* The device */
    Vring vring;
    RingSlot slots[MAX_BATCH];
    bool notify;                /* the last answer of vring_should_notify() */
    bool found;                 /* likewise of what looks for buffers */
};

static void G_GNUC_NORETURN ring_wrong(const RingQueue *q, const char *what)
{
    fprintf(stderr, "vring-bench: %s: %s: the ring does not work, run its "
            "unit tests\n", q->c->name, what);
    exit(EXIT_FAILURE);
}

/* The driver */

/* Guest address of a request's data buffer */
static hwaddr ring_data(const RingCase *c, unsigned request, unsigned i)
{
    hwaddr base = c->two_regions ? RING_HIGH : RING_MAIN;
    unsigned page = request * MAX_BUFFERS + i;

    QEMU_BUILD_BUG_ON(DATA_OFFSET + 2 * DATA_SIZE * MAX_BATCH * MAX_BUFFERS >
                      RING_REGION_SIZE);
    /* Every other page: what drivers get is seldom contiguous. */
    return base + DATA_OFFSET + 2 * DATA_SIZE * (hwaddr)page;
}

/* Buffer @i of a request: header, data..., status */
static RingDesc ring_buffer(const RingCase *c, unsigned request, unsigned i)
{
    hwaddr own = REQUEST_BASE + REQUEST_SIZE * (hwaddr)request;

    if (i == 0) {
        return (RingDesc) { own, HEADER_SIZE, 0 };
    }
    if (i == c->buffers - 1) {
        return (RingDesc) { own + STATUS_OFFSET, 1, WRITE };
    }
    return (RingDesc) { ring_data(c, request, i), DATA_SIZE, WRITE };
}

static void ring_write_desc(RingDesc *to, const RingDesc *desc)
{
    *to = (RingDesc) {
        .addr = GUINT64_TO_LE(desc->addr),
        .len = GUINT32_TO_LE(desc->len),
        .flags = GUINT16_TO_LE(desc->flags),
        .next = GUINT16_TO_LE(desc->next),
    };
}

/* The chain in @table from @first on; next counts from the table's start. */
static void ring_write_chain(const RingCase *c, RingDesc *table,
                             unsigned first, unsigned request)
{
    for (unsigned i = 0; i < c->buffers; i++) {
        RingDesc desc = ring_buffer(c, request, i);

        if (i < c->buffers - 1) {
            desc.flags |= NEXT;
            desc.next = first + i + 1;
        }
        ring_write_desc(&table[first + i], &desc);
    }
}

/* As allocators do: tables of a size lie side by side, at powers of two. */
static hwaddr ring_table(const RingCase *c, unsigned request)
{
    unsigned size = sizeof(RingDesc);

    while (size < c->buffers * sizeof(RingDesc)) {
        size *= 2;
    }
    return TABLE_BASE + size * (hwaddr)request;
}

/* The one in the ring by which an indirect request is found */
static RingDesc ring_table_desc(const RingCase *c, unsigned request)
{
    return (RingDesc) {
        .addr = ring_table(c, request),
        .len = c->buffers * sizeof(RingDesc),
        .flags = INDIRECT,
    };
}

/* Descriptors in the ring that each request takes */
static unsigned ring_descs(const RingCase *c)
{
    return c->indirect ? 1 : c->buffers;
}

static void ring_write_requests(RingQueue *q)
{
    const RingCase *c = q->c;

    assert(c->batch <= MAX_BATCH && c->buffers <= MAX_BUFFERS);
    assert(c->batch * ring_descs(c) <= RING_QUEUE_SIZE);
    for (unsigned i = 0; i < c->batch; i++) {
        if (c->indirect) {
            RingDesc desc = ring_table_desc(c, i);

            q->heads[i] = i;
            ring_write_desc(&q->desc[i], &desc);
            ring_write_chain(c, ring_memory_host(q->mem, desc.addr), 0, i);
        } else {
            q->heads[i] = i * c->buffers;
            ring_write_chain(c, q->desc, q->heads[i], i);
        }
    }
}

/*
 * A packed ring's tables; flags but WRITE mean nothing there, so that those of
 * a split ring would do, if id and flags stood in the same order.
 */
static void packed_write_tables(RingQueue *q)
{
    const RingCase *c = q->c;

    assert(c->batch <= MAX_BATCH && c->buffers <= MAX_BUFFERS);
    assert(c->batch * ring_descs(c) <= RING_QUEUE_SIZE);
    for (unsigned i = 0; c->indirect && i < c->batch; i++) {
        PackedDesc *table = ring_memory_host(q->mem, ring_table(c, i));

        for (unsigned j = 0; j < c->buffers; j++) {
            RingDesc desc = ring_buffer(c, i, j);

            table[j] = (PackedDesc) {
                .addr = GUINT64_TO_LE(desc.addr),
                .len = GUINT32_TO_LE(desc.len),
                .flags = GUINT16_TO_LE(desc.flags),
            };
        }
    }
}

static bool packed_wrap(unsigned pos)
{
    return pos < RING_QUEUE_SIZE;
}

static unsigned packed_advance(unsigned pos, unsigned n)
{
    return (pos + n) % (2 * RING_QUEUE_SIZE);
}

/* Writes descriptor @i of a request, but for the flags, which are returned */
static uint16_t packed_write_desc(RingQueue *q, unsigned request, unsigned i)
{
    const RingCase *c = q->c;
    PackedDesc *to = &q->packed[q->avail_pos % RING_QUEUE_SIZE];
    RingDesc desc = c->indirect ? ring_table_desc(c, request)
                                : ring_buffer(c, request, i);

    to->addr = GUINT64_TO_LE(desc.addr);
    to->len = GUINT32_TO_LE(desc.len);
    to->id = GUINT16_TO_LE(request);
    return desc.flags | (i < ring_descs(c) - 1 ? NEXT : 0) |
           (packed_wrap(q->avail_pos) ? AVAIL : USED);
}

/* All of a batch, the flags of its first descriptor last */
static void packed_offer(RingQueue *q)
{
    PackedDesc *first = &q->packed[q->avail_pos % RING_QUEUE_SIZE];
    unsigned n = ring_descs(q->c);
    uint16_t first_flags = 0;

    /* It wants to hear of the first that is used (2.8.10) */
    q->used_pos = q->avail_pos;
    qatomic_set(&q->event->off_wrap,
                GUINT16_TO_LE(q->used_pos % RING_QUEUE_SIZE |
                              (packed_wrap(q->used_pos) ? EVENT_WRAP : 0)));
    qatomic_set(&q->event->flags, GUINT16_TO_LE(EVENT_DESC));
    for (unsigned i = 0; i < q->c->batch * n; i++) {
        uint16_t flags = packed_write_desc(q, i / n, i % n);

        if (i) {
            q->packed[q->avail_pos % RING_QUEUE_SIZE].flags =
                GUINT16_TO_LE(flags);
        } else {
            first_flags = flags;
        }
        q->avail_pos = packed_advance(q->avail_pos, 1);
    }
    /* Pairs with the smp_rmb() in the device's pop */
    smp_wmb();
    qatomic_set(&first->flags, GUINT16_TO_LE(first_flags));
}

/* All that a driver does per batch: the chains are there already. */
static void split_offer(RingQueue *q)
{
    /* It wants to hear of the first that is used (2.7.7.2) */
    qatomic_set(&q->avail->used_event, GUINT16_TO_LE(q->avail_idx));
    for (unsigned i = 0; i < q->c->batch; i++) {
        q->avail->ring[q->avail_idx++ % RING_QUEUE_SIZE] =
            GUINT16_TO_LE(q->heads[i]);
    }
    /* Pairs with the smp_rmb() in the device's pop */
    smp_wmb();
    qatomic_set(&q->avail->idx, GUINT16_TO_LE(q->avail_idx));
}

static uint32_t ring_written(const RingCase *c)
{
    return c->buffers > 1 ? (c->buffers - 2) * DATA_SIZE + 1 : 0;
}

static void split_check_used(RingQueue *q)
{
    unsigned batch = q->c->batch;
    uint16_t first = q->avail_idx - batch;

    if (qatomic_read(&q->used->idx) != GUINT16_TO_LE(q->avail_idx)) {
        ring_wrong(q, "not every buffer was used");
    }
    /* Pairs with the smp_wmb() in the device's publish */
    smp_rmb();
    for (unsigned i = 0; i < batch; i++) {
        unsigned slot = (uint16_t)(first + i) % RING_QUEUE_SIZE;

        if (q->used->ring[slot].id != GUINT32_TO_LE(q->heads[i]) ||
            q->used->ring[slot].len != GUINT32_TO_LE(ring_written(q->c))) {
            ring_wrong(q, "a used element is wrong");
        }
    }
}

static void packed_check_used(RingQueue *q)
{
    uint16_t write = ring_written(q->c) ? WRITE : 0;

    for (unsigned i = 0; i < q->c->batch; i++) {
        const PackedDesc *desc = &q->packed[q->used_pos % RING_QUEUE_SIZE];
        uint16_t lap = packed_wrap(q->used_pos) ? AVAIL | USED : 0;

        if (qatomic_read(&desc->flags) != GUINT16_TO_LE(lap | write)) {
            ring_wrong(q, "not every buffer was used");
        }
        /* Pairs with the smp_wmb() in the device's publish */
        smp_rmb();
        if (desc->id != GUINT16_TO_LE(i) ||
            (write && desc->len != GUINT32_TO_LE(ring_written(q->c)))) {
            ring_wrong(q, "a used descriptor is wrong");
        }
        q->used_pos = packed_advance(q->used_pos, ring_descs(q->c));
    }
}

/* Were all that the driver offered used, in order? */
static void ring_check_used(RingQueue *q)
{
    if (q->c->packed) {
        packed_check_used(q);
    } else {
        split_check_used(q);
    }
    if (q->c->batch && !q->notify) {
        ring_wrong(q, "the driver is not notified");
    }
    if (q->found) {
        ring_wrong(q, "the device found a buffer in an empty ring");
    }
}

/* The device */

/* How often a call is repeated that is too short to be measured alone */
#define CALLS 32

static void device_nothing(RingQueue *q)
{
}

static void device_pop(RingQueue *q)
{
    for (unsigned i = 0; i < q->c->batch; i++) {
        if (vring_pop(&q->vring, &q->slots[i].elem, &q->slots[i].buf) != 1) {
            ring_wrong(q, "a buffer was not found");
        }
    }
}

static void device_push(RingQueue *q)
{
    uint32_t len = ring_written(q->c);

    for (unsigned i = 0; i < q->c->batch; i++) {
        vring_push(&q->vring, &q->slots[i].elem, &q->slots[i].buf, len);
        vring_vectors_release(&q->slots[i].buf);
    }
}

static void device_publish(RingQueue *q)
{
    if (vring_publish(&q->vring) != q->c->batch) {
        ring_wrong(q, "not every used buffer was published");
    }
    q->notify = vring_should_notify(&q->vring);
}

static void device_pop_push(RingQueue *q)
{
    device_pop(q);
    device_push(q);
}

static void device_push_publish(RingQueue *q)
{
    device_push(q);
    device_publish(q);
}

static void device_all(RingQueue *q)
{
    device_pop(q);
    device_push(q);
    device_publish(q);
}

static void device_pop_empty(RingQueue *q)
{
    for (unsigned i = 0; i < CALLS; i++) {
        q->found |= vring_pop(&q->vring, &q->slots[0].elem, &q->slots[0].buf);
    }
}

static void device_more_avail(RingQueue *q)
{
    for (unsigned i = 0; i < CALLS; i++) {
        q->found |= vring_more_avail(&q->vring);
    }
}

static void device_enable_notification(RingQueue *q)
{
    for (unsigned i = 0; i < CALLS; i++) {
        vring_disable_notification(&q->vring);
        q->found |= vring_enable_notification(&q->vring);
    }
}

static void device_refresh_memory(RingQueue *q)
{
    for (unsigned i = 0; i < CALLS; i++) {
        vring_refresh_memory(&q->vring);
    }
}

/* A batch */

RingQueue *ring_queue_new(const RingCase *c)
{
    RingQueue *q = g_new0(RingQueue, 1);
    VringConfig config = {
        .num = RING_QUEUE_SIZE,
        .desc = DESC_BASE,
        .avail = AVAIL_BASE,
        .used = USED_BASE,
        .packed = c->packed,
        .in_order = c->in_order,
        .event_idx = true,
        .indirect = true,
    };

    q->c = c;
    q->mem = ring_memory_new();
    q->desc = ring_memory_host(q->mem, DESC_BASE);
    q->avail = ring_memory_host(q->mem, AVAIL_BASE);
    q->used = ring_memory_host(q->mem, USED_BASE);
    q->packed = ring_memory_host(q->mem, DESC_BASE);
    q->event = ring_memory_host(q->mem, AVAIL_BASE);
    if (c->packed) {
        packed_write_tables(q);
    } else {
        ring_write_requests(q);
    }
    vring_open(&q->vring, &config, q->mem, &error_abort);
    for (unsigned i = 0; i < MAX_BATCH; i++) {
        vring_vectors_init(&q->slots[i].buf);
    }
    return q;
}

void ring_queue_free(RingQueue *q)
{
    vring_close(&q->vring);
    ring_memory_free(q->mem);
    g_free(q);
}

void ring_queue_begin(RingQueue *q)
{
    q->notify = false;
    if (q->c->batch && q->c->packed) {
        packed_offer(q);
    } else if (q->c->batch) {
        split_offer(q);
    }
    if (q->c->before) {
        q->c->before(q);
    }
}

void ring_queue_end(RingQueue *q)
{
    if (q->c->after) {
        q->c->after(q);
    }
    ring_check_used(q);
}

/* The cases */

#define WHOLE(n) \
    .unit = "request", .units = (n), .batch = (n), .measured = device_all
#define POP(n) \
    .unit = "request", .units = (n), .batch = (n), \
    .measured = device_pop, .after = device_push_publish
#define PUSH(n) \
    .unit = "request", .units = (n), .batch = (n), \
    .before = device_pop, .measured = device_push, .after = device_publish
#define PUBLISH(n) \
    .unit = "batch", .units = 1, .batch = (n), \
    .before = device_pop_push, .measured = device_publish
#define CALL(func) \
    .unit = "call", .units = CALLS, .measured = (func)
#define PACKED \
    .packed = true

const RingCase ring_nothing = {
    "nothing", .unit = "batch", .units = 1, .measured = device_nothing,
};

/* Longer chains of descriptors do not fit into the queue 32 or 128 times. */
const RingCase ring_cases[] = {
    /* Pop, push, publish once, ask once whether to notify */
    { "direct-1-batch-1", WHOLE(1), .buffers = 1 },
    { "direct-1-batch-32", WHOLE(32), .buffers = 1 },
    { "direct-1-batch-128", WHOLE(128), .buffers = 1 },
    { "direct-3-batch-1", WHOLE(1), .buffers = 3 },
    { "direct-3-batch-32", WHOLE(32), .buffers = 3 },
    { "direct-18-batch-1", WHOLE(1), .buffers = 18 },
    { "indirect-1-batch-1", WHOLE(1), .buffers = 1, .indirect = true },
    { "indirect-1-batch-32", WHOLE(32), .buffers = 1, .indirect = true },
    { "indirect-1-batch-128", WHOLE(128), .buffers = 1, .indirect = true },
    { "indirect-3-batch-1", WHOLE(1), .buffers = 3, .indirect = true },
    { RING_HEADLINE, WHOLE(32), .buffers = 3, .indirect = true },
    { "indirect-3-batch-128", WHOLE(128), .buffers = 3, .indirect = true },
    { "indirect-18-batch-1", WHOLE(1), .buffers = 18, .indirect = true },
    { "indirect-18-batch-32", WHOLE(32), .buffers = 18, .indirect = true },
    { "indirect-18-batch-128", WHOLE(128), .buffers = 18, .indirect = true },
    { "two-regions-batch-32", WHOLE(32), .buffers = 3, .indirect = true,
      .two_regions = true },

    /* The parts */
    { "pop-direct-3", POP(32), .buffers = 3 },
    { "pop-indirect-3", POP(32), .buffers = 3, .indirect = true },
    { "push-direct-3", PUSH(32), .buffers = 3 },
    { "push-indirect-3", PUSH(32), .buffers = 3, .indirect = true },
    { "publish-and-ask", PUBLISH(32), .buffers = 3, .indirect = true },

    /* What is done per batch or while polling, on an empty ring */
    { "pop-empty", CALL(device_pop_empty) },
    { "more-avail-empty", CALL(device_more_avail) },
    { "enable-notification", CALL(device_enable_notification) },
    { "refresh-memory", CALL(device_refresh_memory) },

    /* The same of a packed ring */
    { "packed-direct-1-batch-32", WHOLE(32), PACKED, .buffers = 1 },
    { "packed-direct-3-batch-1", WHOLE(1), PACKED, .buffers = 3 },
    { "packed-direct-3-batch-32", WHOLE(32), PACKED, .buffers = 3 },
    { "packed-indirect-3-batch-1", WHOLE(1), PACKED, .buffers = 3,
      .indirect = true },
    { "packed-indirect-3-batch-32", WHOLE(32), PACKED, .buffers = 3,
      .indirect = true },
    { "packed-indirect-3-batch-128", WHOLE(128), PACKED, .buffers = 3,
      .indirect = true },
    { "packed-indirect-18-batch-32", WHOLE(32), PACKED, .buffers = 18,
      .indirect = true },
    { "packed-pop-direct-3", POP(32), PACKED, .buffers = 3 },
    { "packed-pop-indirect-3", POP(32), PACKED, .buffers = 3,
      .indirect = true },
    { "packed-push-indirect-3", PUSH(32), PACKED, .buffers = 3,
      .indirect = true },
    { "packed-publish-and-ask", PUBLISH(32), PACKED, .buffers = 3,
      .indirect = true },
    { "packed-pop-empty", CALL(device_pop_empty), PACKED },
    { "packed-more-avail-empty", CALL(device_more_avail), PACKED },
    { "packed-enable-notification", CALL(device_enable_notification), PACKED },

    /* Of both with IN_ORDER, which changes nothing for the driver here */
    { "in-order-batch-32", WHOLE(32), .in_order = true, .buffers = 3,
      .indirect = true },
    { "packed-in-order-batch-32", WHOLE(32), PACKED, .in_order = true,
      .buffers = 3, .indirect = true },
    { }
};
