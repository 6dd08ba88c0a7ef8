/*
 * What is in the blocks of a disk, so that reading can be verified
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "bench-device.h"
#include "bench-pattern.h"

BenchPattern *bench_pattern_new(uint64_t blocks, unsigned block_size)
{
    BenchPattern *pattern = g_new0(BenchPattern, 1);

    pattern->blocks = blocks;
    pattern->block_size = block_size;
    pattern->generation = g_new0(uint32_t, blocks);
    pattern->busy = g_new0(uint8_t, blocks);
    return pattern;
}

void bench_pattern_free(BenchPattern *pattern)
{
    if (pattern) {
        g_free(pattern->generation);
        g_free(pattern->busy);
        g_free(pattern);
    }
}

void bench_pattern_fill(BenchPattern *pattern, uint64_t block, void *data)
{
    uint32_t generation = ++pattern->generation[block];
    uint64_t *words = data;

    for (unsigned i = 0; i < pattern->block_size / 8; i++) {
        words[i] = bench_pattern_word(block, generation, i);
    }
}

bool bench_pattern_check(const BenchPattern *pattern, uint64_t block,
                         const void *data, GError **errp)
{
    uint32_t generation = pattern->generation[block];
    const uint64_t *words = data;

    for (unsigned i = 0; i < pattern->block_size / 8; i++) {
        uint64_t want = bench_pattern_word(block, generation, i);

        if (words[i] != want) {
            g_set_error(errp, BENCH_ERROR, 0, "wrong data: block %"
                        G_GUINT64_FORMAT " of %u bytes, byte %u, generation %u:"
                        " read 0x%016" G_GINT64_MODIFIER "x, written 0x%016"
                        G_GINT64_MODIFIER "x", block, pattern->block_size,
                        i * 8, generation, words[i], want);
            return false;
        }
    }
    return true;
}
