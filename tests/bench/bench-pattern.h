/*
 * What is in the blocks of a disk, so that reading can be verified
 *
 * Knows blocks by number and the generation of data that each holds.  The data
 * of a block follows from both, so that a lost, misplaced or torn write shows.
 * Does not know requests.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_BENCH_BENCH_PATTERN_H
#define TESTS_BENCH_BENCH_PATTERN_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct BenchPattern {
    uint64_t blocks;
    unsigned block_size;        /* bytes, a multiple of 512 */
    uint32_t *generation;       /* per block; 0: what it holds is not known */
    uint8_t *busy;              /* per block: a request for it is in flight */
} BenchPattern;

/**
 * bench_pattern_word: word @i of a block's data, different for each block,
 *                     generation and place
 */
static inline uint64_t bench_pattern_word(uint64_t block, uint32_t generation,
                                          unsigned i)
{
    uint64_t x = (block << 32 ^ generation) + i * 0x9e3779b97f4a7c15ull;

    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93ull;
    return x ^ x >> 32;
}

/**
 * bench_pattern_new: nothing is known of any block
 */
BenchPattern *bench_pattern_new(uint64_t blocks, unsigned block_size);

/**
 * bench_pattern_free: the pair
 * @pattern: may be NULL
 */
void bench_pattern_free(BenchPattern *pattern);

/**
 * bench_pattern_lock: try to keep a block for one request
 *
 * Two requests for a block at a time, one of which writes, have no order: no
 * data could be expected.
 */
static inline bool bench_pattern_lock(BenchPattern *pattern, uint64_t block)
{
    if (pattern->busy[block]) {
        return false;
    }
    pattern->busy[block] = 1;
    return true;
}

static inline void bench_pattern_unlock(BenchPattern *pattern, uint64_t block)
{
    pattern->busy[block] = 0;
}

/**
 * bench_pattern_fill: the data of the block's next generation, which it is
 *                     going to hold
 */
void bench_pattern_fill(BenchPattern *pattern, uint64_t block, void *data);

/**
 * bench_pattern_check: is this what the block must hold?
 *
 * Returns: false with @errp set if not
 */
bool bench_pattern_check(const BenchPattern *pattern, uint64_t block,
                         const void *data, GError **errp);

#endif /* TESTS_BENCH_BENCH_PATTERN_H */
