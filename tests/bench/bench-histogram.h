/*
 * A histogram of latencies
 *
 * Knows numbers.  Buckets are 1/64 of a power of two wide, so that a value is
 * known to 1.6 %; values below 64 are exact.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_BENCH_BENCH_HISTOGRAM_H
#define TESTS_BENCH_BENCH_HISTOGRAM_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define BENCH_HIST_BITS     6
#define BENCH_HIST_SUB      (1 << BENCH_HIST_BITS)
#define BENCH_HIST_BUCKETS  ((64 - BENCH_HIST_BITS + 1) * BENCH_HIST_SUB)

typedef struct BenchHistogram {
    uint64_t total;
    uint64_t sum;
    uint64_t max;
    uint64_t count[BENCH_HIST_BUCKETS];
} BenchHistogram;

static inline unsigned bench_histogram_bucket(uint64_t value)
{
    unsigned shift;

    if (value < BENCH_HIST_SUB) {
        return value;
    }
    shift = 63 - BENCH_HIST_BITS - __builtin_clzll(value);
    return (shift + 1) * BENCH_HIST_SUB + (value >> shift) - BENCH_HIST_SUB;
}

/**
 * bench_histogram_add: @n times the same value
 */
static inline void bench_histogram_add(BenchHistogram *h, uint64_t value,
                                       unsigned n)
{
    h->count[bench_histogram_bucket(value)] += n;
    h->total += n;
    h->sum += value * n;
    h->max = MAX(h->max, value);
}

/**
 * bench_histogram_merge: add all values of another one
 */
static inline void bench_histogram_merge(BenchHistogram *h,
                                         const BenchHistogram *other)
{
    for (unsigned i = 0; i < BENCH_HIST_BUCKETS; i++) {
        h->count[i] += other->count[i];
    }
    h->total += other->total;
    h->sum += other->sum;
    h->max = MAX(h->max, other->max);
}

/**
 * bench_histogram_upper: largest value that a bucket stands for
 */
static inline uint64_t bench_histogram_upper(unsigned bucket)
{
    unsigned shift;

    if (bucket < BENCH_HIST_SUB) {
        return bucket;
    }
    shift = bucket / BENCH_HIST_SUB - 1;
    return ((uint64_t)(bucket % BENCH_HIST_SUB + BENCH_HIST_SUB + 1) << shift)
           - 1;
}

/**
 * bench_histogram_percentile: upper bound of the smallest values that make up
 *                             @part (0..1) of all
 */
static inline uint64_t bench_histogram_percentile(const BenchHistogram *h,
                                                  double part)
{
    uint64_t want = part * h->total + 0.5, seen = 0;

    for (unsigned i = 0; i < BENCH_HIST_BUCKETS; i++) {
        seen += h->count[i];
        if (seen >= MAX(want, 1)) {
            return MIN(bench_histogram_upper(i), h->max);
        }
    }
    return h->max;
}

#endif /* TESTS_BENCH_BENCH_HISTOGRAM_H */
