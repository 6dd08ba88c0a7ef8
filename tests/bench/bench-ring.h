/*
 * The driver's side of a virtqueue at native speed
 *
 * Knows VIRTIO 1.3, 2.7 and 2.8: how buffers are made available and found used,
 * and when to notify, in either format.  Does not know what the buffers are
 * for, but that all of them have the same number of descriptors.
 * Little-endian, like the hosts that it runs on.
 *
 * With IN_ORDER the driver puts descriptors where the order asks for, and takes
 * each buffer by itself: a device that returned several with one used element,
 * as it may, would seem to lose requests.
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
#define BENCH_DESC_AVAIL    0x80        /* these two in packed rings alone */
#define BENCH_DESC_USED     0x8000

/* In the ring or in an indirect table */
typedef struct BenchDesc {
    uint64_t addr;
    uint32_t len;
    union {
        struct {
            uint16_t flags;
            uint16_t next;
        } split;
        struct {
            uint16_t id;
            uint16_t flags;
        } packed;
    };
} BenchDesc;

typedef struct BenchUsed {
    uint32_t id;
    uint32_t len;
} BenchUsed;

/* A packed ring's event suppression structure */
typedef struct BenchEvent {
    uint16_t off_wrap;
    uint16_t flags;
} BenchEvent;

/* A position in a packed ring, and the wrap counter there */
typedef struct BenchPosition {
    uint16_t slot;
    bool wrap;
} BenchPosition;

typedef struct BenchRing {
    BenchQueue *queue;
    BenchDesc *desc;            /* host address */
    bool packed;
    bool event_idx;
    bool in_order;
    uint16_t buffer_descs;      /* descriptors in the ring of each buffer */
    uint64_t kicks;             /* notifications sent */
    uint64_t calls;             /* notifications received */

    /* Split */
    uint16_t *avail;            /* flags, idx, ring[size], used_event */
    uint16_t *used;             /* flags, idx, BenchUsed[size], avail_event */
    uint16_t mask;
    uint16_t avail_idx;         /* next entry to fill */
    uint16_t exposed_idx;       /* what the device sees */
    uint16_t used_idx;          /* next entry to look at */
    uint16_t next_desc;         /* IN_ORDER: where the next chain begins */
    uint16_t *id_of_head;       /* IN_ORDER: what bench_ring_add() was given */

    /* Packed */
    BenchEvent *call_event;     /* the driver's: when it wants to be notified */
    BenchEvent *kick_event;     /* the device's */
    BenchPosition avail_pos;    /* next descriptor to fill */
    BenchPosition used_pos;     /* next descriptor to look at */
    BenchPosition exposed_pos;  /* first one that the device does not see */
    uint16_t hidden;            /* descriptors from there on that are filled */
    uint16_t hidden_flags;      /* that will show the first of them */
} BenchRing;

/**
 * bench_ring_layout: allocate the three areas of a queue
 * @queue: size is set; the addresses get set
 */
void bench_ring_layout(BenchQueue *queue, bool packed, BenchMemory *mem);

/**
 * bench_ring_init: start with an empty ring
 * @dev: what has been negotiated
 * @buffer_descs: descriptors in the ring that each buffer takes
 *
 * Pair: bench_ring_cleanup()
 */
void bench_ring_init(BenchRing *ring, BenchQueue *queue,
                     const BenchDevice *dev, unsigned buffer_descs);

/**
 * bench_ring_cleanup: the pair of bench_ring_init()
 */
void bench_ring_cleanup(BenchRing *ring);

/**
 * bench_ring_has_places: does a chain stay where it is in the ring?
 *
 * Then its head is its id, and it is written but once.
 */
static inline bool bench_ring_has_places(const BenchRing *ring)
{
    return !ring->packed && !ring->in_order;
}

/**
 * bench_ring_desc: a descriptor of a chain or table
 * @next: split: index of the one behind it
 */
static inline BenchDesc bench_ring_desc(const BenchRing *ring, uint64_t addr,
                                        uint32_t len, uint16_t flags,
                                        uint16_t next)
{
    BenchDesc desc = { .addr = addr, .len = len };

    if (ring->packed) {
        desc.packed.flags = flags;
    } else {
        desc.split.flags = flags;
        desc.split.next = next;
    }
    return desc;
}

/**
 * bench_ring_set_flags: change the flags of what bench_ring_desc() made
 */
static inline void bench_ring_set_flags(const BenchRing *ring, BenchDesc *desc,
                                        uint16_t flags)
{
    if (ring->packed) {
        desc->packed.flags = flags;
    } else {
        desc->split.flags = flags;
    }
}

static inline void bench_position_advance(const BenchRing *ring,
                                          BenchPosition *pos, uint16_t n)
{
    pos->slot += n;
    if (pos->slot >= ring->queue->size) {
        pos->slot -= ring->queue->size;
        pos->wrap = !pos->wrap;
    }
}

/* Of a packed ring: writes a buffer where it is its turn */
static inline void bench_packed_add(BenchRing *ring, uint16_t id,
                                    const BenchDesc *desc)
{
    for (unsigned i = 0; i < ring->buffer_descs; i++) {
        BenchDesc *to = &ring->desc[ring->avail_pos.slot];
        uint16_t flags = desc[i].packed.flags |
                         (ring->avail_pos.wrap ? BENCH_DESC_AVAIL
                                               : BENCH_DESC_USED);

        to->addr = desc[i].addr;
        to->len = desc[i].len;
        to->packed.id = id;
        if (ring->hidden++) {
            to->packed.flags = flags;
        } else {
            ring->hidden_flags = flags;
        }
        bench_position_advance(ring, &ring->avail_pos, 1);
    }
}

/* Of a split ring with IN_ORDER: likewise; returns the head (2.7.5.2) */
static inline uint16_t bench_split_place(BenchRing *ring, uint16_t id,
                                         const BenchDesc *desc)
{
    uint16_t head = ring->next_desc;

    for (unsigned i = 0; i < ring->buffer_descs; i++) {
        BenchDesc *to = &ring->desc[ring->next_desc];

        *to = desc[i];
        ring->next_desc = (ring->next_desc + 1) & ring->mask;
        to->split.next = ring->next_desc;
    }
    ring->id_of_head[head] = id;
    return head;
}

/* Of a split ring whose chains stay in their places */
static inline void bench_split_add(BenchRing *ring, uint16_t head)
{
    ring->avail[2 + (ring->avail_idx++ & ring->mask)] = head;
}

/**
 * bench_ring_add: make a buffer available, not yet visible
 * @id: given back with the used buffer; bench_ring_has_places(): the head of
 *      its chain, which stands in the ring already
 * @desc: else what is to stand in the ring, the same number each time
 */
static inline void bench_ring_add(BenchRing *ring, uint16_t id,
                                  const BenchDesc *desc)
{
    if (ring->packed) {
        bench_packed_add(ring, id, desc);
        return;
    }
    if (ring->in_order) {
        id = bench_split_place(ring, id, desc);
    }
    bench_split_add(ring, id);
}

/**
 * bench_ring_expose: show the device what was added, and notify it if it
 *                    asked for that
 *
 * Before kick_fd is open nobody is notified.
 */
void bench_ring_expose(BenchRing *ring);

/* Of a packed ring: is the descriptor at @pos used? */
static inline bool bench_packed_is_used(const BenchRing *ring,
                                        BenchPosition pos)
{
    uint16_t flags = __atomic_load_n(&ring->desc[pos.slot].packed.flags,
                                     __ATOMIC_ACQUIRE);

    return !!(flags & BENCH_DESC_AVAIL) == pos.wrap &&
           !!(flags & BENCH_DESC_USED) == pos.wrap;
}

static inline uint16_t bench_packed_has_used(const BenchRing *ring)
{
    BenchPosition pos = ring->used_pos;
    uint16_t n = 0;

    while (n < ring->queue->size && bench_packed_is_used(ring, pos)) {
        n++;
        bench_position_advance(ring, &pos, ring->buffer_descs);
    }
    return n;
}

/**
 * bench_ring_has_used: number of used buffers that can be taken
 */
static inline uint16_t bench_ring_has_used(const BenchRing *ring)
{
    if (ring->packed) {
        return bench_packed_has_used(ring);
    }
    return __atomic_load_n(&ring->used[1], __ATOMIC_ACQUIRE) - ring->used_idx;
}

static inline BenchUsed bench_packed_take(BenchRing *ring)
{
    const BenchDesc *desc = &ring->desc[ring->used_pos.slot];
    BenchUsed used = {
        .id = desc->packed.id,
        /* It means nothing without WRITE (2.8.4) */
        .len = desc->packed.flags & BENCH_DESC_WRITE ? desc->len : 0,
    };

    bench_position_advance(ring, &ring->used_pos, ring->buffer_descs);
    return used;
}

/* Of a split ring whose chains stay in their places */
static inline BenchUsed bench_split_take(BenchRing *ring)
{
    const BenchUsed *elems = (const BenchUsed *)(ring->used + 2);
    const BenchUsed *elem = &elems[ring->used_idx++ & ring->mask];

    return (BenchUsed) { .id = elem->id, .len = elem->len };
}

/**
 * bench_ring_take: the next used buffer; there is one
 */
static inline BenchUsed bench_ring_take(BenchRing *ring)
{
    BenchUsed used;

    if (ring->packed) {
        return bench_packed_take(ring);
    }
    used = bench_split_take(ring);
    if (ring->in_order) {
        used.id = ring->id_of_head[used.id & ring->mask];
    }
    return used;
}

/**
 * bench_ring_peek: the id of the used buffer that is @k behind the next one
 *
 * Unchecked, and 0 where it cannot be told: for a hint.
 */
static inline uint32_t bench_ring_peek(const BenchRing *ring, unsigned k)
{
    const BenchUsed *elems = (const BenchUsed *)(ring->used + 2);

    if (ring->packed) {
        unsigned slot = ring->used_pos.slot + k * ring->buffer_descs;

        return ring->desc[slot & ring->mask].packed.id;
    }
    return ring->in_order ? 0 : elems[(ring->used_idx + k) & ring->mask].id;
}

/**
 * bench_ring_no_calls: used buffer notifications are not wanted
 *
 * In a split ring with EVENT_IDX that is a wish which has to be renewed every
 * some thousand elements: call this once per sweep.
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
