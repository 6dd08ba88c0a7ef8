/*
 * The driver's side of a split virtqueue at native speed
 *
 * Knows VIRTIO 1.3, 2.7: how buffers are made available and found used, and
 * when to notify.  Does not know what the buffers are for.  Little-endian,
 * like the hosts that it runs on.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_BENCH_BENCH_RING_H
#define TESTS_BENCH_BENCH_RING_H

#include "bench-device.h"

#define BENCH_DESC_NEXT     1
#define BENCH_DESC_WRITE    2
#define BENCH_DESC_INDIRECT 4

typedef struct BenchDesc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
} BenchDesc;

typedef struct BenchUsed {
    uint32_t id;
    uint32_t len;
} BenchUsed;

typedef struct BenchRing {
    BenchQueue *queue;
    BenchDesc *desc;            /* host addresses */
    uint16_t *avail;            /* flags, idx, ring[size], used_event */
    uint16_t *used;             /* flags, idx, BenchUsed[size], avail_event */
    bool event_idx;
    uint16_t mask;
    uint16_t avail_idx;         /* next entry to fill */
    uint16_t exposed_idx;       /* what the device sees */
    uint16_t used_idx;          /* next entry to look at */
    uint64_t kicks;             /* notifications sent */
    uint64_t calls;             /* notifications received */
} BenchRing;

/**
 * bench_ring_layout: allocate the three areas of a queue
 * @queue: size is set; the addresses get set
 */
void bench_ring_layout(BenchQueue *queue, BenchMemory *mem);

/**
 * bench_ring_init: start with an empty ring
 * @event_idx: has been negotiated
 */
void bench_ring_init(BenchRing *ring, BenchQueue *queue, BenchMemory *mem,
                     bool event_idx);

/**
 * bench_ring_add: make the chain at @head available, not yet visible
 */
static inline void bench_ring_add(BenchRing *ring, uint16_t head)
{
    ring->avail[2 + (ring->avail_idx++ & ring->mask)] = head;
}

/**
 * bench_ring_expose: show the device what was added, and notify it if it
 *                    asked for that
 *
 * Before kick_fd is open nobody is notified.
 */
void bench_ring_expose(BenchRing *ring);

/**
 * bench_ring_has_used: number of used elements that can be taken
 */
static inline uint16_t bench_ring_has_used(const BenchRing *ring)
{
    uint16_t idx = __atomic_load_n(&ring->used[1], __ATOMIC_ACQUIRE);

    return idx - ring->used_idx;
}

/**
 * bench_ring_take: the next used element; there is one
 */
static inline BenchUsed bench_ring_take(BenchRing *ring)
{
    const BenchUsed *elems = (const BenchUsed *)(ring->used + 2);

    return elems[ring->used_idx++ & ring->mask];
}

/**
 * bench_ring_no_calls: used buffer notifications are not wanted
 *
 * With EVENT_IDX that is a wish which has to be renewed every some thousand
 * elements: call this once per sweep.
 */
void bench_ring_no_calls(BenchRing *ring);

/**
 * bench_ring_want_call: the next used buffer shall be notified
 *
 * Returns: false if one came in meanwhile: look again
 */
bool bench_ring_want_call(BenchRing *ring);

/**
 * bench_ring_take_calls: count and clear what call_fd has got
 */
void bench_ring_take_calls(BenchRing *ring);

/**
 * bench_ring_describe: where the ring stands, for a report
 *
 * Returns: to be freed by the caller
 */
char *bench_ring_describe(const BenchRing *ring);

#endif /* TESTS_BENCH_BENCH_RING_H */
