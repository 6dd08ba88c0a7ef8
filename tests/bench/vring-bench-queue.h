/*
 * The cases of the ring's benchmark
 *
 * Knows the queue that is measured: its driver, and what the device does with
 * it.  Does not know how a case is measured.
 *
 * A case repeats batches.  In each the driver offers some chains, and the
 * device pops and returns them; one part of the device's work is measured.
 * All of it is done by one thread with warm caches, so that what is measured
 * is the work, and not how cache lines travel between CPUs.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_BENCH_VRING_BENCH_QUEUE_H
#define TESTS_BENCH_VRING_BENCH_QUEUE_H

#define RING_QUEUE_SIZE 256

typedef struct RingQueue RingQueue;
typedef void RingFunc(RingQueue *q);

typedef struct RingCase {
    const char *name;
    const char *unit;           /* what a figure is the cost of */
    unsigned units;             /* of them in a batch */

    /* What the driver offers in a batch */
    unsigned batch;             /* chains, may be 0 */
    unsigned buffers;           /* in each chain: header, data..., status */
    bool indirect;
    bool two_regions;           /* data is in another region than the rest */
    bool packed;                /* format of the ring */
    bool in_order;

    /* What the device does with it; all but @measured may be NULL */
    RingFunc *before;
    RingFunc *measured;
    RingFunc *after;
} RingCase;

/* Sorted by what they show; the end has a NULL name. */
extern const RingCase ring_cases[];

/* The case that the target of the ring is about */
#define RING_HEADLINE "indirect-3-batch-32"
#define RING_TARGET_NS 60.0

/* Measures nothing: what is found is the measurement's own cost. */
extern const RingCase ring_nothing;

/**
 * ring_queue_new: make memory, driver and device, with all chains written
 * Pair: ring_queue_free()
 */
RingQueue *ring_queue_new(const RingCase *c);

/**
 * ring_queue_free: the pair of ring_queue_new()
 */
void ring_queue_free(RingQueue *q);

/**
 * ring_queue_begin: a batch, up to the part that is to be measured
 */
void ring_queue_begin(RingQueue *q);

/**
 * ring_queue_end: the rest of the batch
 *
 * Ends the program with a message unless the driver got back what it offered.
 */
void ring_queue_end(RingQueue *q);

#endif /* TESTS_BENCH_VRING_BENCH_QUEUE_H */
