/*
 * Looking guest addresses up
 *
 * Knows tables of RAM regions.  Does not know how they are made, so that tests
 * can make their own (vring-memory.c).
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/virtio/dataplane/vring-memory.h"

const VringRamRegion *vring_ram_table_search(const VringRamTable *table,
                                             hwaddr addr, unsigned *hint)
{
    unsigned lo = 0, hi = table->nregions;

    while (lo < hi) {
        unsigned mid = lo + (hi - lo) / 2;
        const VringRamRegion *region = &table->regions[mid];

        if (addr < region->base) {
            hi = mid;
        } else if (addr - region->base >= region->size) {
            lo = mid + 1;
        } else {
            *hint = mid;
            return region;
        }
    }
    return NULL;
}
