/*
 * Guest memory as a virtqueue's device side sees it
 *
 * Knows RAM regions, host pointers, references and dirty tracking.  Does not
 * know rings or requests.
 *
 * A VringRamTable is an immutable, sorted list of the RAM regions of an
 * address space, and keeps each of them alive.  A VringMemory publishes the
 * current table and replaces it whenever RAM comes or goes.  To look up an
 * address, take a reference to the table: host pointers stay valid as long as
 * the reference, even if the region is unplugged meanwhile.
 *
 * What a table cannot serve (IOMMU translations, buffers that cross regions)
 * goes through vring_memory_map(), which takes a reference per mapping as the
 * rest of QEMU does.  Neither serves MMIO, which needs the BQL: an IOThread
 * that waits for the BQL while the main loop waits for the IOThread is a
 * deadlock.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_DATAPLANE_VRING_MEMORY_H
#define HW_VIRTIO_DATAPLANE_VRING_MEMORY_H

#include "qemu/atomic.h"
#include "qemu/rcu.h"
#include "exec/hwaddr.h"

/* A piece of guest RAM that is contiguous in the guest and in the host */
typedef struct VringRamRegion {
    hwaddr base;                /* guest address of the first byte */
    uint64_t size;              /* bytes, not 0 */
    uint8_t *host;              /* host address of the first byte */
    MemoryRegion *mr;           /* referenced; writes are recorded there */
    uint64_t mr_offset;         /* of the first byte in @mr */
    /*
     * False only while certainly no client logs writes; atomic.  Writer: BQL
     * held, before the start of a log returns to the client.
     */
    bool may_log;
} VringRamRegion;

/*
 * The RAM of an address space, at one time.  Once published nothing in it
 * changes but VringRamRegion.may_log, which is true in all regions when the
 * table is no longer the current one.
 */
typedef struct VringRamTable {
    struct rcu_head rcu;
    int refcount;               /* atomic */
    unsigned nregions;
    VringRamRegion regions[];   /* sorted by base, disjoint, and an empty one */
} VringRamTable;

typedef struct VringMemory VringMemory;

/**
 * VringMemoryChangeFunc: a new table has been published
 * @opaque: what vring_memory_new() was given
 *
 * The callee must make all users of the old table drop their references soon:
 * until then unplugged memory is not freed.
 *
 * Context: BQL held
 */
typedef void VringMemoryChangeFunc(void *opaque);

/**
 * vring_memory_new: follow the RAM of an address space
 * @as: the device's DMA address space
 * @changed: called after each change, but not for the first table
 * @opaque: passed to @changed
 *
 * Pair: vring_memory_free()
 *
 * Context: BQL held
 */
VringMemory *vring_memory_new(AddressSpace *as, VringMemoryChangeFunc *changed,
                              void *opaque);

/**
 * vring_memory_free: the pair of vring_memory_new()
 * @mem: may be NULL
 *
 * A table lives until its last reference is dropped.
 *
 * Context: BQL held
 */
void vring_memory_free(VringMemory *mem);

/**
 * vring_memory_get_table: get a reference to the current table
 *
 * Pair: vring_ram_table_unref()
 *
 * Context: any thread
 */
VringRamTable *vring_memory_get_table(VringMemory *mem);

/**
 * vring_memory_is_current: is @table still the current one?
 *
 * Context: any thread
 */
bool vring_memory_is_current(VringMemory *mem, const VringRamTable *table);

/**
 * vring_ram_table_unref: the pair of vring_memory_get_table()
 * @table: may be NULL
 *
 * Context: any thread
 */
void vring_ram_table_unref(VringRamTable *table);

/* vring_ram_region_is_logged() where @may_log is set */
bool vring_ram_region_ask_logged(const VringRamRegion *region);

/**
 * vring_ram_region_is_logged: does any client log writes to a region?
 *
 * Call this after the write: a client that starts to log later reads what was
 * written.  If it returns false vring_ram_region_set_dirty() has no effect.
 *
 * Context: any thread
 */
static inline bool vring_ram_region_is_logged(const VringRamRegion *region)
{
    return unlikely(qatomic_read(&region->may_log)) &&
           vring_ram_region_ask_logged(region);
}

/**
 * vring_ram_region_set_dirty: note that the device wrote to guest RAM
 * @region: part of a table that the caller has a reference to
 * @offset: of the first byte written, from the start of the region
 * @len: number of bytes; @offset + @len is within the region
 *
 * Context: any thread
 */
void vring_ram_region_set_dirty(const VringRamRegion *region, uint64_t offset,
                                uint64_t len);

/**
 * vring_memory_read: copy from guest RAM by the general path
 *
 * Returns: false unless all bytes are in RAM that the device may read
 *
 * Context: any thread
 */
bool vring_memory_read(VringMemory *mem, hwaddr addr, void *buf, size_t len);

/**
 * vring_memory_map: map guest RAM by the general path
 * @addr: guest address
 * @len: bytes wanted on entry, bytes mapped on return (at least 1)
 * @is_write: true if the device is going to write there
 *
 * Returns: host address, or NULL if there is no RAM that the device may access
 *          in this way
 *
 * Pair: vring_memory_unmap()
 *
 * Context: any thread
 */
void *vring_memory_map(VringMemory *mem, hwaddr addr, hwaddr *len,
                       bool is_write);

/**
 * vring_memory_unmap: the pair of vring_memory_map() and vring_memory_pin()
 * @host: what vring_memory_map() returned or vring_memory_pin() was given
 * @len: bytes that were mapped
 * @is_write: true if the device may have written there: marks all @len bytes
 *            dirty
 *
 * Context: any thread
 */
void vring_memory_unmap(VringMemory *mem, void *host, hwaddr len,
                        bool is_write);

/**
 * vring_memory_is_ram: does a host pointer lie in guest RAM?
 *
 * Otherwise it points to a copy that dma_memory_map() has made.
 *
 * Context: any thread
 */
bool vring_memory_is_ram(VringMemory *mem, void *host);

/**
 * vring_memory_map_region: vring_memory_map() for memory that stays mapped
 * @len: bytes, all of which must be contiguous in the host
 * @region: set to what was mapped, with a reference
 *
 * Returns: false if there is no such RAM
 *
 * Pair: vring_memory_unmap_region()
 *
 * Context: any thread
 */
bool vring_memory_map_region(VringMemory *mem, hwaddr addr, hwaddr len,
                             bool is_write, VringRamRegion *region);

/**
 * vring_memory_unmap_region: the pair of vring_memory_map_region()
 *
 * Marks nothing dirty: see vring_ram_region_set_dirty().
 *
 * Context: any thread
 */
void vring_memory_unmap_region(VringMemory *mem, VringRamRegion *region);

/**
 * vring_memory_watch: follow the IOMMU's translations of a range, too
 * @addr: guest address of the first byte
 * @len: bytes, not 0
 *
 * When an IOMMU drops translations in the range, VringMemory publishes a new
 * table, as if RAM had come or gone.
 *
 * Pair: vring_memory_unwatch()
 *
 * Context: BQL held
 */
void vring_memory_watch(VringMemory *mem, hwaddr addr, hwaddr len);

/**
 * vring_memory_unwatch: the pair of vring_memory_watch(), with the same range
 *
 * Context: BQL held
 */
void vring_memory_unwatch(VringMemory *mem, hwaddr addr, hwaddr len);

/**
 * vring_memory_pin: take the reference that vring_memory_map() would take
 * @host: a pointer into a region of a table that the caller references
 *
 * Afterwards the pointer stays valid without the table.
 *
 * Pair: vring_memory_unmap() or dma_memory_unmap()
 *
 * Context: any thread
 */
void vring_memory_pin(VringMemory *mem, void *host);

/* vring_ram_table_find() where the hint is wrong; not inlined by callers */
const VringRamRegion *vring_ram_table_search(const VringRamTable *table,
                                             hwaddr addr, unsigned *hint);

/**
 * vring_ram_table_find: the region that contains a guest address
 * @table: where to look
 * @addr: guest address
 * @hint: index of the region that was found last, or 0; updated when one is
 *        found
 *
 * Most devices use one or two regions, so the hint usually saves the search.
 *
 * Returns: NULL if @addr is not in RAM
 *
 * Context: any thread
 */
static inline const VringRamRegion *
vring_ram_table_find(const VringRamTable *table, hwaddr addr, unsigned *hint)
{
    const VringRamRegion *region = &table->regions[*hint];

    if (likely(addr - region->base < region->size)) {
        return region;
    }
    return vring_ram_table_search(table, addr, hint);
}

/**
 * vring_ram_table_translate: host address of a guest buffer within one region
 * @table: where to look
 * @addr: guest address
 * @len: bytes, not 0
 * @hint: see vring_ram_table_find()
 *
 * Returns: NULL if the buffer is not wholly within one region
 *
 * Context: any thread
 */
static inline void *vring_ram_table_translate(const VringRamTable *table,
                                              hwaddr addr, uint64_t len,
                                              unsigned *hint)
{
    const VringRamRegion *region = vring_ram_table_find(table, addr, hint);

    /* The subtraction cannot wrap: addr is within the region. */
    if (!region || len > region->size - (addr - region->base)) {
        return NULL;
    }
    return region->host + (addr - region->base);
}

#endif /* HW_VIRTIO_DATAPLANE_VRING_MEMORY_H */
