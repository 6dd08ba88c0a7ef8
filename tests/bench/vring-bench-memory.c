/*
 * Guest memory for the benchmark of the ring: implementation
 *
 * Knows and serves what vring-bench-memory.h says, for one thread, with one
 * table that never changes.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "vring-bench-memory.h"

#define RING_REGIONS 3

/* What a region's MemoryRegion is here */
typedef struct RingRegion {
    bool logging;               /* never, but the compiler cannot know */
} RingRegion;

struct VringMemory {
    VringRamTable *table;
    RingRegion regions[RING_REGIONS];
};

static const struct {
    hwaddr base;
    uint64_t size;
} layout[RING_REGIONS] = {
    { RING_LOW, RING_LOW_SIZE },
    { RING_MAIN, RING_REGION_SIZE },
    { RING_HIGH, RING_REGION_SIZE },
};

static uint8_t *ring_region_alloc(uint64_t size)
{
    void *host = mmap(NULL, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (host == MAP_FAILED) {
        fprintf(stderr, "vring-bench: no memory (%s): raise the limit on "
                "address space\n", strerror(errno));
        exit(EXIT_FAILURE);
    }
    return host;
}

VringMemory *ring_memory_new(void)
{
    VringMemory *mem = g_new0(VringMemory, 1);
    VringRamTable *table = g_malloc0(sizeof(*table) +
                                     (RING_REGIONS + 1) *
                                     sizeof(VringRamRegion));

    table->refcount = 1;
    table->nregions = RING_REGIONS;
    for (unsigned i = 0; i < RING_REGIONS; i++) {
        table->regions[i] = (VringRamRegion) {
            .base = layout[i].base,
            .size = layout[i].size,
            .host = ring_region_alloc(layout[i].size),
            .mr = (MemoryRegion *)&mem->regions[i],
        };
    }
    mem->table = table;
    return mem;
}

void ring_memory_free(VringMemory *mem)
{
    VringRamTable *table = mem->table;

    assert(table->refcount == 1);
    for (unsigned i = 0; i < table->nregions; i++) {
        munmap(table->regions[i].host, table->regions[i].size);
    }
    g_free(table);
    g_free(mem);
}

void *ring_memory_host(VringMemory *mem, hwaddr addr)
{
    unsigned hint = 0;
    void *host = vring_ram_table_translate(mem->table, addr, 1, &hint);

    assert(host);
    return host;
}

/* What the ring calls */

VringRamTable *vring_memory_get_table(VringMemory *mem)
{
    qatomic_inc(&mem->table->refcount);
    return mem->table;
}

bool vring_memory_is_current(VringMemory *mem, const VringRamTable *table)
{
    return qatomic_read(&mem->table) == table;
}

void vring_ram_table_unref(VringRamTable *table)
{
    int old = qatomic_fetch_dec(&table->refcount);

    /* The memory has a reference of its own. */
    assert(old > 1);
}

bool vring_ram_region_ask_logged(const VringRamRegion *region)
{
    const RingRegion *mark = (const RingRegion *)region->mr;

    return qatomic_read(&mark->logging);
}

/* What it must not call here */

static void G_GNUC_NORETURN ring_general_path(const char *name)
{
    fprintf(stderr, "vring-bench: %s() was called: a buffer of the benchmark "
            "was not found in the table\n", name);
    abort();
}

bool vring_memory_read(VringMemory *mem, hwaddr addr, void *buf, size_t len)
{
    ring_general_path(__func__);
}

void *vring_memory_map(VringMemory *mem, hwaddr addr, hwaddr *len,
                       bool is_write)
{
    ring_general_path(__func__);
}

void vring_memory_unmap(VringMemory *mem, void *host, hwaddr len,
                        bool is_write)
{
    ring_general_path(__func__);
}

bool vring_memory_is_ram(VringMemory *mem, void *host)
{
    ring_general_path(__func__);
}

bool vring_memory_map_region(VringMemory *mem, hwaddr addr, hwaddr len,
                             bool is_write, VringRamRegion *region)
{
    ring_general_path(__func__);
}

void vring_memory_unmap_region(VringMemory *mem, VringRamRegion *region)
{
    ring_general_path(__func__);
}

void vring_memory_pin(VringMemory *mem, void *host)
{
    ring_general_path(__func__);
}

void vring_ram_region_set_dirty(const VringRamRegion *region, uint64_t offset,
                                uint64_t len)
{
    ring_general_path(__func__);
}
