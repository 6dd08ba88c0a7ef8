/*
 * What is on the disk, as far as its driver can know
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "bench-device.h"
#include "bench-pattern.h"
#include "soak-disk.h"

#include <string.h>

#define WORDS_OF_SECTOR (SOAK_SECTOR / 8)
#define SECTORS         (SOAK_BLOCK / SOAK_SECTOR)

/* Every eighth generation is zeroes, the first one among them. */
#define ZERO_STEP       8u

static bool is_zero(uint32_t generation)
{
    return generation % ZERO_STEP == 0;
}

static uint64_t word(uint64_t block, uint32_t generation, unsigned i)
{
    return is_zero(generation) ? 0 : bench_pattern_word(block, generation, i);
}

SoakDisk *soak_disk_new(uint64_t blocks)
{
    SoakDisk *disk = g_new0(SoakDisk, 1);

    disk->blocks = blocks;
    disk->low = g_new0(uint32_t, blocks);
    disk->high = g_new0(uint32_t, blocks);
    disk->last = g_new0(uint32_t, blocks);
    disk->busy = g_new0(uint8_t, blocks);
    return disk;
}

void soak_disk_free(SoakDisk *disk)
{
    if (disk) {
        g_free(disk->low);
        g_free(disk->high);
        g_free(disk->last);
        g_free(disk->busy);
        g_free(disk);
    }
}

void soak_disk_clear(SoakDisk *disk)
{
    memset(disk->low, 0, disk->blocks * sizeof(disk->low[0]));
    memset(disk->high, 0, disk->blocks * sizeof(disk->high[0]));
    memset(disk->last, 0, disk->blocks * sizeof(disk->last[0]));
}

bool soak_disk_lock(SoakDisk *disk, uint64_t first, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        if (disk->busy[first + i]) {
            return false;
        }
    }
    memset(&disk->busy[first], 1, n);
    return true;
}

void soak_disk_unlock(SoakDisk *disk, uint64_t first, unsigned n)
{
    memset(&disk->busy[first], 0, n);
}

void soak_disk_write(SoakDisk *disk, uint64_t first, unsigned n, void *data)
{
    uint64_t *words = data;

    for (uint64_t block = first; block < first + n; block++) {
        uint32_t generation = disk->last[block] + 1;

        generation += is_zero(generation);
        disk->high[block] = disk->last[block] = generation;
        for (unsigned i = 0; i < SOAK_BLOCK / 8; i++) {
            *words++ = bench_pattern_word(block, generation, i);
        }
    }
}

void soak_disk_zero(SoakDisk *disk, uint64_t first, unsigned n)
{
    for (uint64_t block = first; block < first + n; block++) {
        disk->last[block] += ZERO_STEP - disk->last[block] % ZERO_STEP;
        disk->high[block] = disk->last[block];
    }
}

void soak_disk_written(SoakDisk *disk, uint64_t first, unsigned n)
{
    memcpy(&disk->low[first], &disk->high[first], n * sizeof(disk->low[0]));
}

/* Is @words sector @sector of @block in @generation? */
static bool sector_is(uint64_t block, uint32_t generation, unsigned sector,
                      const uint64_t *words)
{
    for (unsigned i = 0; i < WORDS_OF_SECTOR; i++) {
        if (words[i] != word(block, generation, sector * WORDS_OF_SECTOR + i)) {
            return false;
        }
    }
    return true;
}

/* The youngest generation from @low to @high that this is; false if none */
static bool find_generation(uint64_t block, uint32_t low, uint32_t high,
                            unsigned sector, const uint64_t *words,
                            uint32_t *generation)
{
    for (uint64_t g = (uint64_t)high + 1; g-- > low;) {
        if (sector_is(block, g, sector, words)) {
            *generation = g;
            return true;
        }
    }
    return false;
}

/* What the sector is instead, in words; to be freed by the caller */
static char *identify(const SoakDisk *disk, uint64_t block, unsigned sector,
                      const uint64_t *words)
{
    uint32_t g;

    if (find_generation(block, 0, disk->high[block], sector, words, &g)) {
        return g_strdup_printf("its own old generation %u%s", g,
                               is_zero(g) ? " (zeroes)" : "");
    }
    for (uint64_t b = 0; b < disk->blocks; b++) {
        for (unsigned s = 0; s < SECTORS; s++) {
            if (find_generation(b, disk->low[b], disk->high[b], s, words,
                                &g)) {
                return g_strdup_printf("generation %u of sector %u of block %"
                                       G_GUINT64_FORMAT, g, s, b);
            }
        }
    }
    return g_strdup_printf("unknown data: 0x%016" G_GINT64_MODIFIER "x 0x%016"
                           G_GINT64_MODIFIER "x ...", words[0], words[1]);
}

static bool check_block(SoakDisk *disk, uint64_t block, const uint64_t *words,
                        GError **errp)
{
    uint32_t low = disk->low[block], high = disk->high[block];
    uint32_t generation, oldest = UINT32_MAX, youngest = 0;

    for (unsigned s = 0; s < SECTORS; s++, words += WORDS_OF_SECTOR) {
        if (!find_generation(block, low, high, s, words, &generation)) {
            g_autofree char *found = identify(disk, block, s, words);

            g_set_error(errp, BENCH_ERROR, 0, "wrong data: sector %u of block %"
                        G_GUINT64_FORMAT " must be of generation %u to %u and "
                        "is %s", s, block, low, high, found);
            return false;
        }
        oldest = MIN(oldest, generation);
        youngest = MAX(youngest, generation);
    }
    if (oldest == youngest) {
        disk->low[block] = disk->high[block] = oldest;
    }
    return true;
}

bool soak_disk_check(SoakDisk *disk, uint64_t first, unsigned n,
                     const void *data, GError **errp)
{
    const uint64_t *words = data;

    for (unsigned i = 0; i < n; i++) {
        if (!check_block(disk, first + i, words, errp)) {
            return false;
        }
        words += SOAK_BLOCK / 8;
    }
    return true;
}
