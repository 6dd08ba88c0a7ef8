/*
 * The memory of the ring itself
 *
 * Knows how an area is mapped, as a whole or page by page, and how the device's
 * writes are marked dirty.  Does not know what is in it.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "vring-area.h"

/* An IOMMU translates at least this much at once. */
#define VRING_PAGE_SIZE 4096

void *vring_area_at_slow(const VringArea *area, uint32_t offset,
                         const VringRamRegion **region)
{
    hwaddr start = area->pages[0].base;
    hwaddr addr = start + offset;
    const VringRamRegion *page = &area->pages[addr / VRING_PAGE_SIZE -
                                              start / VRING_PAGE_SIZE];

    if (region) {
        *region = page;
    }
    return page->host + (addr - page->base);
}

void vring_area_set_dirty_slow(const VringArea *area, uint32_t offset,
                               uint32_t len)
{
    while (len) {
        const VringRamRegion *region;
        uint32_t part = len;
        uint8_t *host;

        if (likely(area->host)) {
            region = area->region;
            host = area->host + offset;
        } else {
            host = vring_area_at_slow(area, offset, &region);
            part = MIN(len, region->size - (host - region->host));
        }
        if (unlikely(vring_ram_region_is_logged(region))) {
            vring_ram_region_set_dirty(region, host - region->host, part);
        }
        offset += part;
        len -= part;
    }
}

void vring_area_set_slots_dirty(const VringArea *area, uint32_t base,
                                uint32_t size, unsigned num, unsigned from,
                                unsigned count)
{
    unsigned first = MIN(count, num - from);

    vring_area_set_dirty_slow(area, base + from * size, first * size);
    vring_area_set_dirty_slow(area, base, (count - first) * size);
}

void vring_area_unmap(VringArea *area, VringMemory *mem)
{
    if (!area->host) {
        for (unsigned i = 0; i < area->npages; i++) {
            vring_memory_unmap_region(mem, &area->pages[i]);
        }
        g_free(area->pages);
    }
    area->host = NULL;
    area->pages = NULL;
    area->npages = 0;
}

/* On failure some pages stay mapped: vring_area_unmap() unmaps them. */
static bool area_map_pages(VringArea *area, hwaddr addr, VringMemory *mem,
                           bool is_write)
{
    hwaddr end = addr + area->size;

    area->pages = g_new(VringRamRegion, area->size / VRING_PAGE_SIZE + 2);
    while (addr < end) {
        hwaddr len = MIN(end - addr,
                         VRING_PAGE_SIZE - addr % VRING_PAGE_SIZE);

        if (!vring_memory_map_region(mem, addr, len, is_write,
                                     &area->pages[area->npages])) {
            return false;
        }
        area->npages++;
        addr += len;
    }
    return true;
}

bool vring_area_map(VringArea *area, hwaddr addr, VringMemory *mem,
                    const VringRamTable *table, unsigned *hint, bool is_write)
{
    if (area->size - 1 > UINT64_MAX - addr) {
        return false;
    }
    area->host = vring_ram_table_translate(table, addr, area->size, hint);
    if (area->host) {
        area->region = vring_ram_table_find(table, addr, hint);
        return true;
    }
    return area_map_pages(area, addr, mem, is_write);
}
