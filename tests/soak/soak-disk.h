/*
 * What is on the disk, as far as its driver can know
 *
 * Knows blocks by number, and of each the generations of data that it may
 * hold.  That is one generation, unless a request's end was never seen, as a
 * reset came first: then the block holds what it held before, or what the
 * request was to write, each sector by itself.  Does not know requests.
 *
 * A disk starts out as zeroes, which are a generation like others.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_SOAK_SOAK_DISK_H
#define TESTS_SOAK_SOAK_DISK_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define SOAK_SECTOR     512
#define SOAK_BLOCK      4096

typedef struct SoakDisk {
    uint64_t blocks;
    uint32_t *low;              /* per block: the oldest it may hold */
    uint32_t *high;             /* and the youngest */
    uint32_t *last;             /* the last one that a request was made for */
    uint8_t *busy;              /* a request for it is in flight */
} SoakDisk;

/**
 * soak_disk_new: all blocks are zero
 */
SoakDisk *soak_disk_new(uint64_t blocks);

/**
 * soak_disk_free: the pair
 * @disk: may be NULL
 */
void soak_disk_free(SoakDisk *disk);

/**
 * soak_disk_clear: all blocks are zero again; no request is in flight
 */
void soak_disk_clear(SoakDisk *disk);

/**
 * soak_disk_lock: try to keep blocks for one request
 *
 * Two requests for a block at a time, one of which writes, have no order.
 *
 * Returns: false, with nothing kept, if another request has one of them
 */
bool soak_disk_lock(SoakDisk *disk, uint64_t first, unsigned n);
void soak_disk_unlock(SoakDisk *disk, uint64_t first, unsigned n);

/**
 * soak_disk_write: the blocks may from now on hold their next generation
 * @data: gets what is to be written
 */
void soak_disk_write(SoakDisk *disk, uint64_t first, unsigned n, void *data);

/**
 * soak_disk_zero: the same, and the next generation is zeroes
 */
void soak_disk_zero(SoakDisk *disk, uint64_t first, unsigned n);

/**
 * soak_disk_written: the blocks hold the generation that was begun last
 */
void soak_disk_written(SoakDisk *disk, uint64_t first, unsigned n);

/**
 * soak_disk_check: is this what the blocks may hold?
 *
 * What was uncertain and shows is certain from now on: nothing writes it
 * behind the driver's back.
 *
 * Returns: false with @errp set if not; says what was found instead
 */
bool soak_disk_check(SoakDisk *disk, uint64_t first, unsigned n,
                     const void *data, GError **errp);

#endif /* TESTS_SOAK_SOAK_DISK_H */
