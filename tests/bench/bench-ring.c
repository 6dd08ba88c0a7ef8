/*
 * The driver's side of a virtqueue at native speed
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "bench-ring.h"

#include <unistd.h>

/* Split */
#define AVAIL_NO_INTERRUPT  1
#define USED_NO_NOTIFY      1

/* Packed (2.8.14) */
#define EVENT_ENABLE        0
#define EVENT_DISABLE       1
#define EVENT_DESC          2
#define EVENT_WRAP          0x8000

/*
 * How far ahead used_event is put to be left alone, and how near it may come;
 * both much more than a ring.
 */
#define EVENT_FAR           0x7000
#define EVENT_NEAR          0x2000

G_STATIC_ASSERT(sizeof(BenchDesc) == 16);
G_STATIC_ASSERT(sizeof(BenchEvent) == 4);

void bench_ring_layout(BenchQueue *queue, bool packed, BenchMemory *mem)
{
    unsigned n = queue->size;
    uint64_t avail = packed ? sizeof(BenchEvent) : 2 * (n + 3);
    uint64_t used = packed ? sizeof(BenchEvent) : 6 + n * sizeof(BenchUsed);

    /* Pages of their own, as Linux allocates them */
    queue->desc = bench_memory_alloc(mem, n * sizeof(BenchDesc), 4096);
    queue->avail = bench_memory_alloc(mem, avail, 4096);
    queue->used = bench_memory_alloc(mem, used, 4096);
}

void bench_ring_init(BenchRing *ring, BenchQueue *queue,
                     const BenchDevice *dev, unsigned buffer_descs)
{
    uint8_t *host = dev->mem->host;

    *ring = (BenchRing) {
        .queue = queue,
        .desc = (BenchDesc *)(host + queue->desc),
        .packed = bench_device_has(dev, BENCH_F_RING_PACKED),
        .event_idx = bench_device_has(dev, BENCH_F_EVENT_IDX),
        .in_order = bench_device_has(dev, BENCH_F_IN_ORDER),
        .buffer_descs = buffer_descs,
        .avail = (uint16_t *)(host + queue->avail),
        .used = (uint16_t *)(host + queue->used),
        .mask = queue->size - 1,
        .call_event = (BenchEvent *)(host + queue->avail),
        .kick_event = (BenchEvent *)(host + queue->used),
        .avail_pos.wrap = true,
        .used_pos.wrap = true,
        .exposed_pos.wrap = true,
    };
    if (ring->in_order && !ring->packed) {
        ring->id_of_head = g_new0(uint16_t, queue->size);
    }
}

void bench_ring_cleanup(BenchRing *ring)
{
    g_free(ring->id_of_head);
}

static void kick(BenchRing *ring)
{
    uint64_t one = 1;

    ring->kicks++;
    if (write(ring->queue->kick_fd, &one, sizeof(one)) != sizeof(one)) {
        g_error("cannot write to an eventfd");
    }
}

/* Split */

static uint16_t *used_event(const BenchRing *ring)
{
    return &ring->avail[2 + ring->queue->size];
}

static uint16_t *avail_event(const BenchRing *ring)
{
    return ring->used + 2 + ring->queue->size * sizeof(BenchUsed) / 2;
}

static bool split_wants_kick(const BenchRing *ring, uint16_t old)
{
    uint16_t new = ring->avail_idx;
    uint16_t event;

    if (!ring->event_idx) {
        return !(__atomic_load_n(&ring->used[0], __ATOMIC_RELAXED) &
                 USED_NO_NOTIFY);
    }
    event = __atomic_load_n(avail_event(ring), __ATOMIC_RELAXED);
    return (uint16_t)(event - old) < (uint16_t)(new - old);
}

static void split_expose(BenchRing *ring)
{
    uint16_t old = ring->exposed_idx;

    if (old == ring->avail_idx) {
        return;
    }
    __atomic_store_n(&ring->avail[1], ring->avail_idx, __ATOMIC_RELEASE);
    ring->exposed_idx = ring->avail_idx;
    /* The device must see the index before we look at its wish (2.7.13.4) */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (ring->queue->kick_fd >= 0 && split_wants_kick(ring, old)) {
        kick(ring);
    }
}

static void split_no_calls(BenchRing *ring)
{
    if (!ring->event_idx) {
        ring->avail[0] = AVAIL_NO_INTERRUPT;
    } else if ((uint16_t)(*used_event(ring) - ring->used_idx) < EVENT_NEAR ||
               (uint16_t)(*used_event(ring) - ring->used_idx) > EVENT_FAR) {
        __atomic_store_n(used_event(ring), ring->used_idx + EVENT_FAR,
                         __ATOMIC_RELAXED);
    }
}

static void split_want_call(BenchRing *ring)
{
    if (ring->event_idx) {
        __atomic_store_n(used_event(ring), ring->used_idx, __ATOMIC_RELAXED);
    } else {
        __atomic_store_n(&ring->avail[0], 0, __ATOMIC_RELAXED);
    }
}

static char *split_describe(const BenchRing *ring)
{
    return g_strdup_printf("driver's avail idx %u, avail_event %u, used flags "
                           "%u; device's used idx %u, driver took %u, "
                           "used_event %u",
                           ring->avail_idx, *avail_event(ring), ring->used[0],
                           ring->used[1], ring->used_idx, *used_event(ring));
}

/* Packed */

/* Is the descriptor that the device waits for among the @n from @old on? */
static bool packed_wants_kick(const BenchRing *ring, BenchPosition old,
                              uint16_t n)
{
    uint16_t flags = __atomic_load_n(&ring->kick_event->flags,
                                     __ATOMIC_ACQUIRE);
    uint16_t off_wrap;
    int ahead;

    if (!ring->event_idx || flags != EVENT_DESC) {
        return flags != EVENT_DISABLE;
    }
    off_wrap = __atomic_load_n(&ring->kick_event->off_wrap, __ATOMIC_RELAXED);
    ahead = (off_wrap & ~EVENT_WRAP) - old.slot;
    if (!!(off_wrap & EVENT_WRAP) != old.wrap) {
        ahead += ring->queue->size;
    }
    return ahead >= 0 && ahead < n;
}

static void packed_expose(BenchRing *ring)
{
    BenchPosition old = ring->exposed_pos;
    uint16_t n = ring->hidden;

    if (!n) {
        return;
    }
    __atomic_store_n(&ring->desc[old.slot].packed.flags, ring->hidden_flags,
                     __ATOMIC_RELEASE);
    ring->exposed_pos = ring->avail_pos;
    ring->hidden = 0;
    /* The device must see the flags before we look at its wish (2.8.21.3) */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (ring->queue->kick_fd >= 0 && packed_wants_kick(ring, old, n)) {
        kick(ring);
    }
}

/* The line is the device's to read: it is written only if that changes it. */
static void packed_set_call_flags(BenchRing *ring, uint16_t flags)
{
    if (ring->call_event->flags != flags) {
        __atomic_store_n(&ring->call_event->flags, flags, __ATOMIC_RELEASE);
    }
}

static void packed_want_call(BenchRing *ring)
{
    if (ring->event_idx) {
        __atomic_store_n(&ring->call_event->off_wrap,
                         ring->used_pos.slot |
                         (ring->used_pos.wrap ? EVENT_WRAP : 0),
                         __ATOMIC_RELAXED);
        packed_set_call_flags(ring, EVENT_DESC);
    } else {
        packed_set_call_flags(ring, EVENT_ENABLE);
    }
}

static char *packed_describe(const BenchRing *ring)
{
    return g_strdup_printf("driver's next available descriptor %u (wrap %d), "
                           "next used %u (wrap %d) with flags 0x%x; device's "
                           "event 0x%x, flags %u; driver's event 0x%x, "
                           "flags %u",
                           ring->avail_pos.slot, ring->avail_pos.wrap,
                           ring->used_pos.slot, ring->used_pos.wrap,
                           ring->desc[ring->used_pos.slot].packed.flags,
                           ring->kick_event->off_wrap, ring->kick_event->flags,
                           ring->call_event->off_wrap,
                           ring->call_event->flags);
}

/* Both */

void bench_ring_expose(BenchRing *ring)
{
    if (ring->packed) {
        packed_expose(ring);
    } else {
        split_expose(ring);
    }
}

void bench_ring_no_calls(BenchRing *ring)
{
    if (ring->packed) {
        packed_set_call_flags(ring, EVENT_DISABLE);
    } else {
        split_no_calls(ring);
    }
}

bool bench_ring_want_call(BenchRing *ring)
{
    if (ring->packed) {
        packed_want_call(ring);
    } else {
        split_want_call(ring);
    }
    /* Asked first, then looked (2.7.14.2) */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return !bench_ring_has_used(ring);
}

void bench_ring_take_calls(BenchRing *ring)
{
    uint64_t count;

    if (read(ring->queue->call_fd, &count, sizeof(count)) == sizeof(count)) {
        ring->calls += count;
    }
}

char *bench_ring_describe(const BenchRing *ring)
{
    return ring->packed ? packed_describe(ring) : split_describe(ring);
}
