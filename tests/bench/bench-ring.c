/*
 * The driver's side of a split virtqueue at native speed
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "bench-ring.h"

#include <unistd.h>

#define AVAIL_NO_INTERRUPT  1
#define USED_NO_NOTIFY      1

/*
 * How far ahead used_event is put to be left alone, and how near it may come;
 * both much more than a ring.
 */
#define EVENT_FAR           0x7000
#define EVENT_NEAR          0x2000

void bench_ring_layout(BenchQueue *queue, BenchMemory *mem)
{
    unsigned n = queue->size;

    /* Pages of their own, as Linux allocates them */
    queue->desc = bench_memory_alloc(mem, n * sizeof(BenchDesc), 4096);
    queue->avail = bench_memory_alloc(mem, 2 * (n + 3), 4096);
    queue->used = bench_memory_alloc(mem, 6 + n * sizeof(BenchUsed), 4096);
}

void bench_ring_init(BenchRing *ring, BenchQueue *queue, BenchMemory *mem,
                     bool event_idx)
{
    *ring = (BenchRing) {
        .queue = queue,
        .desc = (BenchDesc *)(mem->host + queue->desc),
        .avail = (uint16_t *)(mem->host + queue->avail),
        .used = (uint16_t *)(mem->host + queue->used),
        .event_idx = event_idx,
        .mask = queue->size - 1,
    };
}

static uint16_t *used_event(const BenchRing *ring)
{
    return &ring->avail[2 + ring->queue->size];
}

static uint16_t *avail_event(const BenchRing *ring)
{
    return ring->used + 2 + ring->queue->size * sizeof(BenchUsed) / 2;
}

static bool wants_kick(const BenchRing *ring, uint16_t old)
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

void bench_ring_expose(BenchRing *ring)
{
    uint16_t old = ring->exposed_idx;
    uint64_t one = 1;

    if (old == ring->avail_idx) {
        return;
    }
    __atomic_store_n(&ring->avail[1], ring->avail_idx, __ATOMIC_RELEASE);
    ring->exposed_idx = ring->avail_idx;
    /* The device must see the index before we look at its wish (2.7.13.4) */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (ring->queue->kick_fd >= 0 && wants_kick(ring, old)) {
        ring->kicks++;
        if (write(ring->queue->kick_fd, &one, sizeof(one)) != sizeof(one)) {
            g_error("cannot write to an eventfd");
        }
    }
}

void bench_ring_no_calls(BenchRing *ring)
{
    if (!ring->event_idx) {
        ring->avail[0] = AVAIL_NO_INTERRUPT;
    } else if ((uint16_t)(*used_event(ring) - ring->used_idx) < EVENT_NEAR ||
               (uint16_t)(*used_event(ring) - ring->used_idx) > EVENT_FAR) {
        __atomic_store_n(used_event(ring), ring->used_idx + EVENT_FAR,
                         __ATOMIC_RELAXED);
    }
}

bool bench_ring_want_call(BenchRing *ring)
{
    if (ring->event_idx) {
        __atomic_store_n(used_event(ring), ring->used_idx, __ATOMIC_RELAXED);
    } else {
        __atomic_store_n(&ring->avail[0], 0, __ATOMIC_RELAXED);
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
    return g_strdup_printf("driver's avail idx %u, avail_event %u, used flags "
                           "%u; device's used idx %u, driver took %u, "
                           "used_event %u",
                           ring->avail_idx, *avail_event(ring), ring->used[0],
                           ring->used[1], ring->used_idx, *used_event(ring));
}
