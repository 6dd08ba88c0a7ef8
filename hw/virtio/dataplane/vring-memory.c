/*
 * Guest memory as a virtqueue's device side sees it: the QEMU side
 *
 * Knows QEMU's memory API: makes tables of RAM regions from what a
 * MemoryListener reports, and provides the general mapping path.  Does not
 * know rings or requests.
 *
 * A table is replaced only when RAM comes or goes, or when an IOMMU drops
 * translations of a watched range, but not when a BAR moves.  It references
 * memory regions, not FlatViews: a FlatView would keep alive every other device
 * that was plugged at that time.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "exec/memory.h"
#include "system/dma.h"
#include "hw/virtio/dataplane/vring-memory.h"

/* A range of addresses whose translations by an IOMMU are watched */
typedef struct VringWatch {
    hwaddr addr;
    hwaddr len;
} VringWatch;

/* An IOMMU in the address space, which reports what it drops */
typedef struct VringIOMMU {
    IOMMUNotifier notifier;
    VringMemory *mem;
    MemoryRegion *mr;           /* referenced */
    hwaddr base;                /* guest address of its first IOVA */
    hwaddr first;               /* the IOVAs of the section */
    hwaddr last;
} VringIOMMU;

struct VringMemory {
    AddressSpace *as;
    MemoryListener listener;
    VringMemoryChangeFunc *changed;
    void *opaque;

    /* Writer: BQL held.  Readers: any thread, under RCU. */
    VringRamTable *table;

    /* The contents of the next table; BQL held */
    GArray *regions;
    bool dirty;

    GPtrArray *iommus;          /* of VringIOMMU; BQL held */
    GArray *watches;            /* of VringWatch; BQL held */
};

/* Tables */

static void ram_table_free(VringRamTable *table)
{
    for (unsigned i = 0; i < table->nregions; i++) {
        memory_region_unref(table->regions[i].mr);
    }
    g_free(table);
}

void vring_ram_table_unref(VringRamTable *table)
{
    if (table && qatomic_fetch_dec(&table->refcount) == 1) {
        /*
         * A reader may still try to get a reference.  Besides, the last
         * reference to a memory region must be dropped with the BQL held, as
         * in an RCU callback.
         */
        call_rcu(table, ram_table_free, rcu);
    }
}

/* Returns false if the last reference has already been dropped */
static bool ram_table_try_ref(VringRamTable *table)
{
    int old = qatomic_read(&table->refcount);

    while (old > 0) {
        int seen = qatomic_cmpxchg(&table->refcount, old, old + 1);

        if (seen == old) {
            return true;
        }
        old = seen;
    }
    return false;
}

VringRamTable *vring_memory_get_table(VringMemory *mem)
{
    RCU_READ_LOCK_GUARD();

    for (;;) {
        VringRamTable *table = qatomic_rcu_read(&mem->table);

        /* Fails only if a newer table was published meanwhile */
        if (ram_table_try_ref(table)) {
            return table;
        }
    }
}

bool vring_memory_is_current(VringMemory *mem, const VringRamTable *table)
{
    return qatomic_read(&mem->table) == table;
}

bool vring_ram_region_ask_logged(const VringRamRegion *region)
{
    return memory_region_get_dirty_log_mask(region->mr);
}

/* Whether a region is logged may change while @global_dirty_tracking is set. */
static bool ram_region_may_log(const VringRamRegion *region)
{
    return global_dirty_tracking || vring_ram_region_ask_logged(region);
}

/*
 * A client that starts to log commits a memory transaction, and looks at memory
 * after that: so all writes that it has not seen are marked.
 */
static void ram_table_update_may_log(VringRamTable *table)
{
    for (unsigned i = 0; i < table->nregions; i++) {
        VringRamRegion *region = &table->regions[i];

        qatomic_set(&region->may_log, ram_region_may_log(region));
    }
}

/* Elements in flight may still use the table, which is not updated any more. */
static void ram_table_retire(VringRamTable *table)
{
    for (unsigned i = 0; i < table->nregions; i++) {
        qatomic_set(&table->regions[i].may_log, true);
    }
}

void vring_ram_region_set_dirty(const VringRamRegion *region, uint64_t offset,
                                uint64_t len)
{
    memory_region_invalidate_and_set_dirty(region->mr,
                                           region->mr_offset + offset, len);
}

static gint ram_region_compare(gconstpointer a, gconstpointer b)
{
    const VringRamRegion *ra = a, *rb = b;

    return ra->base < rb->base ? -1 : ra->base > rb->base;
}

static void mem_publish_table(VringMemory *mem)
{
    unsigned n = mem->regions->len;
    VringRamTable *old = mem->table;
    VringRamTable *table = g_malloc0(sizeof(*table) +
                                     (n + 1) * sizeof(table->regions[0]));

    g_array_sort(mem->regions, ram_region_compare);
    table->refcount = 1;
    table->nregions = n;
    for (unsigned i = 0; i < n; i++) {
        table->regions[i] = g_array_index(mem->regions, VringRamRegion, i);
        memory_region_ref(table->regions[i].mr);
    }
    ram_table_update_may_log(table);
    if (old) {
        ram_table_retire(old);
    }
    /* Pairs with qatomic_rcu_read() in vring_memory_get_table() */
    qatomic_rcu_set(&mem->table, table);
    vring_ram_table_unref(old);
    mem->dirty = false;
}

/* IOMMUs */

static bool mem_is_watched(VringMemory *mem, hwaddr first, hwaddr last)
{
    for (unsigned i = 0; i < mem->watches->len; i++) {
        VringWatch *watch = &g_array_index(mem->watches, VringWatch, i);

        if (watch->addr <= last && first <= watch->addr + (watch->len - 1)) {
            return true;
        }
    }
    return false;
}

/* IOMMUNotify.  Context: BQL held; the IOMMU is being changed */
static void iommu_notify_unmap(IOMMUNotifier *notifier, IOMMUTLBEntry *entry)
{
    VringIOMMU *iommu = container_of(notifier, VringIOMMU, notifier);
    VringMemory *mem = iommu->mem;
    hwaddr first = MAX(entry->iova, iommu->first);
    hwaddr last = entry->iova + entry->addr_mask;

    /* A guest may invalidate a range that extends beyond 2^64. */
    if (last < entry->iova) {
        last = HWADDR_MAX;
    }
    last = MIN(last, iommu->last);
    if (first <= last &&
        mem_is_watched(mem, iommu->base + first, iommu->base + last)) {
        mem_publish_table(mem);
        mem->changed(mem->opaque);
    }
}

/*
 * The notifier is for the whole region, not only for the section: QEMU asserts
 * that a dropped range lies either inside a notifier's range or outside of it,
 * and a guest may drop more than one section.  Intel's IOMMU has two.
 *
 * A device IOTLB needs no other kind of notifier: a guest invalidates the
 * IOMMU's own cache first, which is reported.
 */
static void iommu_add(VringMemory *mem, MemoryRegionSection *section)
{
    IOMMUMemoryRegion *iommu_mr = IOMMU_MEMORY_REGION(section->mr);
    VringIOMMU *iommu = g_new0(VringIOMMU, 1);
    Error *err = NULL;

    iommu->mem = mem;
    iommu->mr = section->mr;
    iommu->base = section->offset_within_address_space -
                  section->offset_within_region;
    iommu->first = section->offset_within_region;
    iommu->last = iommu->first +
                  int128_get64(int128_sub(section->size, int128_one()));
    memory_region_ref(iommu->mr);
    iommu_notifier_init(&iommu->notifier, iommu_notify_unmap,
                        IOMMU_NOTIFIER_UNMAP, 0, HWADDR_MAX,
                        memory_region_iommu_attrs_to_index(iommu_mr,
                            MEMTXATTRS_UNSPECIFIED));
    if (memory_region_register_iommu_notifier(iommu->mr, &iommu->notifier,
                                              &err) < 0) {
        warn_reportf_err(err, "virtio-blk data plane: the IOMMU cannot report "
                         "unmapped translations; the guest must not move its "
                         "virtqueues: ");
        memory_region_unref(iommu->mr);
        g_free(iommu);
        return;
    }
    g_ptr_array_add(mem->iommus, iommu);
}

static void iommu_free(void *opaque)
{
    VringIOMMU *iommu = opaque;

    memory_region_unregister_iommu_notifier(iommu->mr, &iommu->notifier);
    memory_region_unref(iommu->mr);
    g_free(iommu);
}

static void iommu_del(VringMemory *mem, MemoryRegionSection *section)
{
    for (unsigned i = 0; i < mem->iommus->len; i++) {
        VringIOMMU *iommu = g_ptr_array_index(mem->iommus, i);

        if (iommu->mr == section->mr &&
            iommu->first == section->offset_within_region) {
            g_ptr_array_remove_index_fast(mem->iommus, i);
            return;
        }
    }
}

void vring_memory_watch(VringMemory *mem, hwaddr addr, hwaddr len)
{
    VringWatch watch = { .addr = addr, .len = len };

    g_array_append_val(mem->watches, watch);
}

void vring_memory_unwatch(VringMemory *mem, hwaddr addr, hwaddr len)
{
    for (unsigned i = 0; i < mem->watches->len; i++) {
        VringWatch *watch = &g_array_index(mem->watches, VringWatch, i);

        if (watch->addr == addr && watch->len == len) {
            g_array_remove_index_fast(mem->watches, i);
            return;
        }
    }
    g_assert_not_reached();
}

/* The listener */

/* RAM that the device can read and write through a host pointer at any time */
static bool mem_serves_section(const MemoryRegionSection *section)
{
    return !section->readonly &&
           memory_access_is_direct(section->mr, true, MEMTXATTRS_UNSPECIFIED);
}

static void listener_region_add(MemoryListener *listener,
                                MemoryRegionSection *section)
{
    VringMemory *mem = container_of(listener, VringMemory, listener);
    VringRamRegion region;

    if (memory_region_is_iommu(section->mr)) {
        iommu_add(mem, section);
        mem->dirty = true;
        return;
    }
    if (!mem_serves_section(section)) {
        return;
    }
    region = (VringRamRegion) {
        .base = section->offset_within_address_space,
        .size = int128_get64(section->size),
        .host = (uint8_t *)memory_region_get_ram_ptr(section->mr) +
                section->offset_within_region,
        .mr = section->mr,
        .mr_offset = section->offset_within_region,
    };
    g_array_append_val(mem->regions, region);
    mem->dirty = true;
}

static void listener_region_del(MemoryListener *listener,
                                MemoryRegionSection *section)
{
    VringMemory *mem = container_of(listener, VringMemory, listener);

    if (memory_region_is_iommu(section->mr)) {
        iommu_del(mem, section);
        mem->dirty = true;
        return;
    }
    if (!mem_serves_section(section)) {
        return;
    }
    for (unsigned i = 0; i < mem->regions->len; i++) {
        VringRamRegion *region = &g_array_index(mem->regions, VringRamRegion,
                                                i);

        if (region->base == section->offset_within_address_space &&
            region->mr == section->mr) {
            g_array_remove_index_fast(mem->regions, i);
            mem->dirty = true;
            return;
        }
    }
}

static void listener_commit(MemoryListener *listener)
{
    VringMemory *mem = container_of(listener, VringMemory, listener);

    if (!mem->table) {
        return; /* vring_memory_new() publishes the first table. */
    }
    if (mem->dirty) {
        mem_publish_table(mem);
        mem->changed(mem->opaque);
    } else {
        ram_table_update_may_log(mem->table);
    }
}

VringMemory *vring_memory_new(AddressSpace *as, VringMemoryChangeFunc *changed,
                              void *opaque)
{
    VringMemory *mem = g_new0(VringMemory, 1);

    assert(bql_locked());
    mem->as = as;
    mem->changed = changed;
    mem->opaque = opaque;
    mem->regions = g_array_new(FALSE, FALSE, sizeof(VringRamRegion));
    mem->iommus = g_ptr_array_new_with_free_func(iommu_free);
    mem->watches = g_array_new(FALSE, FALSE, sizeof(VringWatch));
    mem->listener = (MemoryListener) {
        .name = "vring",
        .region_add = listener_region_add,
        .region_del = listener_region_del,
        .commit = listener_commit,
    };
    memory_listener_register(&mem->listener, as);
    mem_publish_table(mem);
    return mem;
}

void vring_memory_free(VringMemory *mem)
{
    assert(bql_locked());

    if (!mem) {
        return;
    }
    /* Unregistering reports that all regions go: ignore that. */
    mem->listener.region_del = NULL;
    mem->listener.commit = NULL;
    memory_listener_unregister(&mem->listener);
    vring_ram_table_unref(mem->table);
    g_ptr_array_free(mem->iommus, TRUE);
    assert(!mem->watches->len);
    g_array_free(mem->watches, TRUE);
    g_array_free(mem->regions, TRUE);
    g_free(mem);
}

/* The general path */

/*
 * Returns a host pointer that is valid until the RCU read lock is released,
 * with @len reduced to what is contiguous, or NULL if the address is not in
 * RAM.
 */
static void *mem_find_ram(VringMemory *mem, hwaddr addr, hwaddr *len,
                          bool is_write, MemoryRegion **mr)
{
    hwaddr offset;

    *mr = address_space_translate(mem->as, addr, &offset, len, is_write,
                                  MEMTXATTRS_UNSPECIFIED);
    if (!memory_access_is_direct(*mr, is_write, MEMTXATTRS_UNSPECIFIED)) {
        return NULL;
    }
    return (char *)memory_region_get_ram_ptr(*mr) + offset;
}

bool vring_memory_read(VringMemory *mem, hwaddr addr, void *buf, size_t len)
{
    RCU_READ_LOCK_GUARD();

    while (len) {
        hwaddr part = len;
        MemoryRegion *mr;
        void *host = mem_find_ram(mem, addr, &part, false, &mr);

        if (!host) {
            return false;
        }
        memcpy(buf, host, part);
        buf = (char *)buf + part;
        addr += part;
        len -= part;
    }
    return true;
}

void *vring_memory_map(VringMemory *mem, hwaddr addr, hwaddr *len,
                       bool is_write)
{
    RCU_READ_LOCK_GUARD();
    MemoryRegion *mr;
    void *host = mem_find_ram(mem, addr, len, is_write, &mr);

    if (host) {
        memory_region_ref(mr);
    }
    return host;
}

void vring_memory_unmap(VringMemory *mem, void *host, hwaddr len,
                        bool is_write)
{
    /* Finds the region of the RAM, marks it dirty, and drops the reference */
    dma_memory_unmap(mem->as, host, len,
                     is_write ? DMA_DIRECTION_FROM_DEVICE
                              : DMA_DIRECTION_TO_DEVICE, len);
}

bool vring_memory_is_ram(VringMemory *mem, void *host)
{
    RCU_READ_LOCK_GUARD();
    ram_addr_t offset;

    return memory_region_from_host(host, &offset);
}

bool vring_memory_map_region(VringMemory *mem, hwaddr addr, hwaddr len,
                             bool is_write, VringRamRegion *region)
{
    hwaddr mapped = len;
    uint8_t *host = vring_memory_map(mem, addr, &mapped, is_write);
    ram_addr_t offset;

    if (!host) {
        return false;
    }
    if (mapped < len) {
        vring_memory_unmap(mem, host, mapped, false);
        return false;
    }
    RCU_READ_LOCK_GUARD();
    *region = (VringRamRegion) {
        .base = addr,
        .size = len,
        .host = host,
        .mr = memory_region_from_host(host, &offset),
        .may_log = true,
    };
    region->mr_offset = offset;
    return true;
}

void vring_memory_unmap_region(VringMemory *mem, VringRamRegion *region)
{
    vring_memory_unmap(mem, region->host, region->size, false);
}

void vring_memory_pin(VringMemory *mem, void *host)
{
    ram_addr_t offset;
    MemoryRegion *mr;

    RCU_READ_LOCK_GUARD();
    mr = memory_region_from_host(host, &offset);
    assert(mr);
    memory_region_ref(mr);
}
