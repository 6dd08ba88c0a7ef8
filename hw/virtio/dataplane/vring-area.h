/*
 * The memory of the ring itself
 *
 * Shared by the files of the ring; not for devices.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_DATAPLANE_VRING_AREA_H
#define HW_VIRTIO_DATAPLANE_VRING_AREA_H

#include "hw/virtio/dataplane/vring.h"

/**
 * vring_area_map: find an area in guest memory
 * @area: size is set, the rest is zero
 * @addr: guest address
 * @table: the current table of @mem; outlives the mapping
 * @hint: see vring_ram_table_find()
 * @is_write: true if the device is going to write there
 *
 * Returns: false if it is not in RAM; the caller must unmap it nevertheless
 *
 * Pair: vring_area_unmap()
 */
bool vring_area_map(VringArea *area, hwaddr addr, VringMemory *mem,
                    const VringRamTable *table, unsigned *hint, bool is_write);

/**
 * vring_area_unmap: the pair of vring_area_map()
 */
void vring_area_unmap(VringArea *area, VringMemory *mem);

/**
 * vring_area_at_slow: vring_area_at() for an area that lies in pages
 * @region: set to that of the page, unless NULL
 */
void *vring_area_at_slow(const VringArea *area, uint32_t offset,
                         const VringRamRegion **region);

/**
 * vring_area_at: host address of a field
 * @area: mapped
 * @offset: bytes from the start of the area; the field does not cross a page
 */
static inline void *vring_area_at(const VringArea *area, uint32_t offset)
{
    if (likely(area->host)) {
        return area->host + offset;
    }
    return vring_area_at_slow(area, offset, NULL);
}

/**
 * vring_area_is_logged: may any client log writes to an area?
 */
static inline bool vring_area_is_logged(const VringArea *area)
{
    return unlikely(!area->host) || vring_ram_region_is_logged(area->region);
}

/**
 * vring_area_set_dirty_slow: vring_area_set_dirty() where writes may be logged
 */
void vring_area_set_dirty_slow(const VringArea *area, uint32_t offset,
                               uint32_t len);

/**
 * vring_area_set_slots_dirty: the same for slots of a circular array
 * @base: offset of slot 0 from the start of the area
 * @size: size of a slot in bytes
 * @num: number of slots in the array
 * @from: first slot to mark, below @num
 * @count: number of slots to mark, up to @num
 */
void vring_area_set_slots_dirty(const VringArea *area, uint32_t base,
                                uint32_t size, unsigned num, unsigned from,
                                unsigned count);

/**
 * vring_area_set_dirty: note that the device wrote to an area
 * @offset: bytes from the start of the area
 * @len: bytes
 */
static inline void vring_area_set_dirty(const VringArea *area, uint32_t offset,
                                        uint32_t len)
{
    if (unlikely(vring_area_is_logged(area))) {
        vring_area_set_dirty_slow(area, offset, len);
    }
}

#endif /* HW_VIRTIO_DATAPLANE_VRING_AREA_H */
