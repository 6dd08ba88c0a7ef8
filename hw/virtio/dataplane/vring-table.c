/*
 * Looking up guest addresses in a table of RAM regions
 *
 * Does not know how tables are made (vring-memory.c does), so that tests can
 * make their own.
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
