/*
 * Guest memory that the tests of the ring make up: implementation
 *
 * Knows and serves what vring-test-memory.h says.  One lock guards all of an
 * address space's lists; no lock is about the bytes of a region.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <pthread.h>
#include <sys/mman.h>
#include "qemu/atomic.h"
#include "vring-test-memory.h"

#define TEST_PAGE_SIZE 4096
#define TEST_DIRTY_LIMIT (64 * 1024 * 1024)

typedef struct TestRegion {
    VringMemory *mem;
    hwaddr base;
    uint64_t size;
    TestRegionKind kind;
    uint8_t *host;
    uint8_t *scattered;     /* the same pages, last one first, or NULL */
    uint8_t *dirty;         /* a byte per byte; NULL for a large region */
    bool logged;            /* atomic; writes are to be marked */
    bool plugged;
    unsigned refcount;      /* plugged, tables, mappings */
} TestRegion;

typedef struct TestMapping {
    TestRegion *region;
    uint8_t *host;
    hwaddr len;             /* 0: pinned, the length is not known */
    bool is_write;
} TestMapping;

struct VringMemory {
    pthread_mutex_t lock;
    GPtrArray *regions;     /* of TestRegion, in no order */
    GArray *mappings;       /* of TestMapping */
    VringRamTable *table;   /* atomic */
    unsigned tables;
    uint64_t map_limit;
};

/* Regions; all under the lock */

static bool test_region_is_large(const TestRegion *region)
{
    return region->size > TEST_DIRTY_LIMIT;
}

/*
 * The driver works in contiguous memory.  The device finds the same pages in
 * another order, so that it sees when it goes on beyond a page as if the next
 * one were behind it.
 */
static void test_region_scatter(TestRegion *region)
{
    int fd = memfd_create("vring-test", 0);
    int prot = PROT_READ | PROT_WRITE;

    g_assert(fd >= 0 && region->size % TEST_PAGE_SIZE == 0);
    g_assert(!ftruncate(fd, region->size));
    region->host = mmap(NULL, region->size, prot, MAP_SHARED, fd, 0);
    region->scattered = mmap(NULL, region->size, prot, MAP_SHARED, fd, 0);
    g_assert(region->host != MAP_FAILED && region->scattered != MAP_FAILED);
    for (uint64_t at = 0; at < region->size; at += TEST_PAGE_SIZE) {
        g_assert(mmap(region->scattered + at, TEST_PAGE_SIZE, prot,
                      MAP_SHARED | MAP_FIXED, fd,
                      region->size - TEST_PAGE_SIZE - at) != MAP_FAILED);
    }
    close(fd);
    region->dirty = g_malloc0(region->size);
}

/* Where the device finds a byte, and how far it may go on from there */
static uint8_t *test_region_map(const TestRegion *region, uint64_t offset,
                                hwaddr *len)
{
    uint64_t in_page = offset % TEST_PAGE_SIZE;

    if (!region->scattered) {
        *len = MIN(*len, region->size - offset);
        return region->host + offset;
    }
    *len = MIN(*len, TEST_PAGE_SIZE - in_page);
    return region->scattered + (region->size - TEST_PAGE_SIZE -
                                (offset - in_page)) + in_page;
}

/* Its pair: the byte that the device found at @host */
static uint64_t test_region_offset(const TestRegion *region,
                                   const uint8_t *host)
{
    uint64_t at = host - region->scattered;

    if (!region->scattered || at >= region->size) {
        return host - region->host;
    }
    return region->size - TEST_PAGE_SIZE - (at - at % TEST_PAGE_SIZE) +
           at % TEST_PAGE_SIZE;
}

static void test_region_alloc(TestRegion *region)
{
    if (region->kind == TEST_SCATTERED) {
        test_region_scatter(region);
        return;
    }
    if (test_region_is_large(region)) {
        region->host = mmap(NULL, region->size, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                            -1, 0);
        g_assert(region->host != MAP_FAILED);
        return;
    }
    g_assert(!posix_memalign((void **)&region->host, TEST_PAGE_SIZE,
                             region->size));
    memset(region->host, 0, region->size);
    region->dirty = g_malloc0(region->size);
}

static void test_region_unref(TestRegion *region)
{
    g_assert_cmpuint(region->refcount, >, 0);
    if (--region->refcount) {
        return;
    }
    g_ptr_array_remove_fast(region->mem->regions, region);
    if (region->scattered) {
        munmap(region->scattered, region->size);
        munmap(region->host, region->size);
    } else if (test_region_is_large(region)) {
        munmap(region->host, region->size);
    } else {
        free(region->host);
    }
    g_free(region->dirty);
    g_free(region);
}

static TestRegion *test_region_find(VringMemory *mem, hwaddr addr)
{
    for (unsigned i = 0; i < mem->regions->len; i++) {
        TestRegion *region = g_ptr_array_index(mem->regions, i);

        if (region->plugged && addr - region->base < region->size) {
            return region;
        }
    }
    return NULL;
}

/* An unplugged region's memory may still be in use by its old address. */
static TestRegion *test_region_of_host(VringMemory *mem, const uint8_t *host)
{
    for (unsigned i = 0; i < mem->regions->len; i++) {
        TestRegion *region = g_ptr_array_index(mem->regions, i);

        if (test_region_offset(region, host) < region->size) {
            return region;
        }
    }
    return NULL;
}

static void test_region_check(const TestRegion *region, uint64_t offset,
                              uint64_t len)
{
    g_assert_cmpuint(len, >, 0);
    g_assert_cmpuint(offset, <, region->size);
    g_assert_cmpuint(len, <=, region->size - offset);
}

/* Threads race here only over bytes that they race over in the region, too */
static void test_region_set_dirty(TestRegion *region, uint64_t offset,
                                  uint64_t len)
{
    test_region_check(region, offset, len);
    if (region->dirty) {
        memset(region->dirty + offset, 1, len);
    }
}

static TestRegion *test_region_of(const VringRamRegion *region)
{
    return (TestRegion *)region->mr;
}

/* Tables */

static int test_region_compare(const void *a, const void *b)
{
    const VringRamRegion *ra = a, *rb = b;

    return ra->base < rb->base ? -1 : ra->base > rb->base;
}

static VringRamTable *test_table_new(VringMemory *mem)
{
    VringRamTable *table = g_malloc0(sizeof(*table) + (mem->regions->len + 1) *
                                     sizeof(VringRamRegion));

    table->refcount = 1;
    for (unsigned i = 0; i < mem->regions->len; i++) {
        TestRegion *region = g_ptr_array_index(mem->regions, i);

        if (!region->plugged || region->kind != TEST_RAM) {
            continue;
        }
        region->refcount++;
        table->regions[table->nregions++] = (VringRamRegion) {
            .base = region->base,
            .size = region->size,
            .host = region->host,
            .mr = (MemoryRegion *)region,
            .may_log = qatomic_read(&region->logged),
        };
    }
    qsort(table->regions, table->nregions, sizeof(VringRamRegion),
          test_region_compare);
    mem->tables++;
    return table;
}

static void test_table_unref_locked(VringMemory *mem, VringRamTable *table)
{
    g_assert_cmpint(table->refcount, >, 0);
    if (--table->refcount) {
        return;
    }
    for (unsigned i = 0; i < table->nregions; i++) {
        test_region_unref(test_region_of(&table->regions[i]));
    }
    g_assert_cmpuint(mem->tables, >, 0);
    mem->tables--;
    g_free(table);
}

/*
 * A table does not know its memory.  There is at least one region in each
 * table that a Vring uses, but an empty table must be given back as well.
 */
static VringMemory *test_memory_of_table;

VringRamTable *vring_memory_get_table(VringMemory *mem)
{
    VringRamTable *table;

    pthread_mutex_lock(&mem->lock);
    table = mem->table;
    table->refcount++;
    pthread_mutex_unlock(&mem->lock);
    return table;
}

bool vring_memory_is_current(VringMemory *mem, const VringRamTable *table)
{
    return qatomic_read(&mem->table) == table;
}

void vring_ram_table_unref(VringRamTable *table)
{
    VringMemory *mem = test_memory_of_table;

    if (table) {
        pthread_mutex_lock(&mem->lock);
        test_table_unref_locked(mem, table);
        pthread_mutex_unlock(&mem->lock);
    }
}

void test_memory_commit(VringMemory *mem)
{
    VringRamTable *old, *table;

    pthread_mutex_lock(&mem->lock);
    table = test_table_new(mem);
    old = mem->table;
    qatomic_set(&mem->table, table);
    if (old) {
        for (unsigned i = 0; i < old->nregions; i++) {
            qatomic_set(&old->regions[i].may_log, true);
        }
        test_table_unref_locked(mem, old);
    }
    pthread_mutex_unlock(&mem->lock);
}

/* The address space */

VringMemory *test_memory_new(void)
{
    VringMemory *mem = g_new0(VringMemory, 1);

    g_assert(!test_memory_of_table);
    test_memory_of_table = mem;
    pthread_mutex_init(&mem->lock, NULL);
    mem->regions = g_ptr_array_new();
    mem->mappings = g_array_new(false, false, sizeof(TestMapping));
    mem->map_limit = UINT64_MAX;
    test_memory_commit(mem);
    return mem;
}

void test_memory_free(VringMemory *mem)
{
    g_assert_cmpuint(mem->mappings->len, ==, 0);
    g_assert_cmpuint(mem->tables, ==, 1);
    g_assert_cmpint(mem->table->refcount, ==, 1);
    test_table_unref_locked(mem, mem->table);
    for (unsigned i = mem->regions->len; i-- > 0;) {
        TestRegion *region = g_ptr_array_index(mem->regions, i);

        g_assert_true(region->plugged);
        g_assert_cmpuint(region->refcount, ==, 1);
        test_region_unref(region);
    }
    g_ptr_array_free(mem->regions, true);
    g_array_free(mem->mappings, true);
    pthread_mutex_destroy(&mem->lock);
    g_free(mem);
    test_memory_of_table = NULL;
}

uint8_t *test_memory_add(VringMemory *mem, hwaddr base, uint64_t size,
                         TestRegionKind kind)
{
    TestRegion *region = g_new(TestRegion, 1);

    *region = (TestRegion) {
        .mem = mem,
        .base = base,
        .size = size,
        .kind = kind,
        .logged = size <= TEST_DIRTY_LIMIT,
        .plugged = true,
        .refcount = 1,
    };
    test_region_alloc(region);
    pthread_mutex_lock(&mem->lock);
    g_ptr_array_add(mem->regions, region);
    pthread_mutex_unlock(&mem->lock);
    return region->host;
}

void test_memory_del(VringMemory *mem, hwaddr base)
{
    TestRegion *region;

    pthread_mutex_lock(&mem->lock);
    region = test_region_find(mem, base);
    g_assert(region && region->base == base);
    region->plugged = false;
    test_region_unref(region);
    pthread_mutex_unlock(&mem->lock);
}

uint8_t *test_memory_host(VringMemory *mem, hwaddr addr)
{
    TestRegion *region = test_region_find(mem, addr);

    return region ? region->host + (addr - region->base) : NULL;
}

void test_memory_protect(VringMemory *mem, hwaddr base, int prot)
{
    TestRegion *region = test_region_find(mem, base);

    g_assert(region && region->size % TEST_PAGE_SIZE == 0);
    g_assert(!mprotect(region->host, region->size, prot));
}

void test_memory_limit_map(VringMemory *mem, uint64_t limit)
{
    mem->map_limit = limit;
}

unsigned test_memory_tables(VringMemory *mem)
{
    return mem->tables;
}

unsigned test_memory_mappings(VringMemory *mem)
{
    return mem->mappings->len;
}

unsigned test_memory_regions(VringMemory *mem)
{
    return mem->regions->len;
}

/* What was written */

bool vring_ram_region_ask_logged(const VringRamRegion *region)
{
    return qatomic_read(&test_region_of(region)->logged);
}

void test_memory_set_logging(VringMemory *mem, hwaddr base, bool logged)
{
    TestRegion *region = test_region_find(mem, base);

    g_assert(region && region->base == base && region->dirty);
    qatomic_set(&region->logged, logged);

    pthread_mutex_lock(&mem->lock);
    for (unsigned i = 0; i < mem->table->nregions; i++) {
        if (test_region_of(&mem->table->regions[i]) == region) {
            qatomic_set(&mem->table->regions[i].may_log, logged);
        }
    }
    pthread_mutex_unlock(&mem->lock);
}

/* Recorded in any case, so that a test sees that the ring did not ask first */
void vring_ram_region_set_dirty(const VringRamRegion *region, uint64_t offset,
                                uint64_t len)
{
    g_assert(region);
    g_assert_cmpuint(offset, <, region->size);
    g_assert_cmpuint(len, <=, region->size - offset);
    test_region_set_dirty(test_region_of(region), region->mr_offset + offset,
                          len);
}

static uint64_t test_region_dirty(const TestRegion *region, uint64_t offset,
                                  uint64_t len)
{
    uint64_t n = 0;

    for (uint64_t i = offset; region->dirty && i < offset + len; i++) {
        n += region->dirty[i];
    }
    return n;
}

uint64_t test_memory_dirty(VringMemory *mem, hwaddr addr, uint64_t len)
{
    TestRegion *region = test_region_find(mem, addr);

    g_assert(region && len <= region->size - (addr - region->base));
    return test_region_dirty(region, addr - region->base, len);
}

uint64_t test_memory_all_dirty(VringMemory *mem)
{
    uint64_t n = 0;

    for (unsigned i = 0; i < mem->regions->len; i++) {
        TestRegion *region = g_ptr_array_index(mem->regions, i);

        n += test_region_dirty(region, 0, region->size);
    }
    return n;
}

void test_memory_clean(VringMemory *mem)
{
    for (unsigned i = 0; i < mem->regions->len; i++) {
        TestRegion *region = g_ptr_array_index(mem->regions, i);

        if (region->dirty) {
            memset(region->dirty, 0, region->size);
        }
    }
}

/* The general path */

static void test_mapping_add(VringMemory *mem, TestRegion *region,
                             uint8_t *host, hwaddr len, bool is_write)
{
    TestMapping mapping = {
        .region = region,
        .host = host,
        .len = len,
        .is_write = is_write,
    };

    region->refcount++;
    g_array_append_val(mem->mappings, mapping);
}

#define TEST_PERFECT_FIT 3

/*
 * How well a mapping fits what is given back; 0: not at all.  A pinned one,
 * whose length is not known, fits all, and so is kept for what else would find
 * none.
 */
static unsigned test_mapping_fit(const TestMapping *mapping,
                                 const uint8_t *host, hwaddr len,
                                 bool is_write)
{
    if (mapping->host != host) {
        return 0;
    }
    if (!mapping->len) {
        return 1;
    }
    if (mapping->len != len) {
        return 0;
    }
    if (mapping->is_write == is_write) {
        return TEST_PERFECT_FIT;
    }
    /* What was not written to after all may be given back as unwritten. */
    return mapping->is_write ? 2 : 0;
}

/* The same memory may be mapped more than once: the best fit is it. */
static unsigned test_mapping_find(VringMemory *mem, const uint8_t *host,
                                  hwaddr len, bool is_write)
{
    unsigned found = 0, best = 0;

    for (unsigned i = 0; i < mem->mappings->len && best < TEST_PERFECT_FIT;
         i++) {
        unsigned fit = test_mapping_fit(&g_array_index(mem->mappings,
                                                       TestMapping, i),
                                        host, len, is_write);

        if (fit > best) {
            best = fit;
            found = i;
        }
    }
    /* Given back twice, with another length, or as written when read-only? */
    g_assert_cmpuint(best, >, 0);
    return found;
}

bool vring_memory_read(VringMemory *mem, hwaddr addr, void *buf, size_t len)
{
    bool ok = true;

    pthread_mutex_lock(&mem->lock);
    for (size_t i = 0; ok && i < len; i++) {
        TestRegion *region = test_region_find(mem, addr + i);

        ok = region && addr + i >= addr;
        if (ok) {
            ((uint8_t *)buf)[i] = region->host[addr + i - region->base];
        }
    }
    pthread_mutex_unlock(&mem->lock);
    return ok;
}

void *vring_memory_map(VringMemory *mem, hwaddr addr, hwaddr *len,
                       bool is_write)
{
    TestRegion *region;
    uint8_t *host = NULL;

    g_assert_cmpuint(*len, >, 0);
    pthread_mutex_lock(&mem->lock);
    region = test_region_find(mem, addr);
    if (region && region->kind != TEST_MMIO &&
        !(is_write && region->kind == TEST_ROM)) {
        *len = MIN(*len, mem->map_limit);
        host = test_region_map(region, addr - region->base, len);
        test_mapping_add(mem, region, host, *len, is_write);
    }
    pthread_mutex_unlock(&mem->lock);
    return host;
}

void vring_memory_unmap(VringMemory *mem, void *host, hwaddr len,
                        bool is_write)
{
    TestRegion *region;
    uint64_t offset;
    unsigned i;

    pthread_mutex_lock(&mem->lock);
    i = test_mapping_find(mem, host, len, is_write);
    region = g_array_index(mem->mappings, TestMapping, i).region;
    offset = test_region_offset(region, host);
    test_region_check(region, offset, len);
    /* As QEMU's function does, this one asks by itself. */
    if (is_write && qatomic_read(&region->logged)) {
        test_region_set_dirty(region, offset, len);
    }
    g_array_remove_index_fast(mem->mappings, i);
    test_region_unref(region);
    pthread_mutex_unlock(&mem->lock);
}

uint8_t *test_memory_copy(VringMemory *mem, hwaddr addr, hwaddr len)
{
    TestRegion *region;
    uint8_t *host;

    pthread_mutex_lock(&mem->lock);
    region = test_region_find(mem, addr);
    g_assert(region->kind == TEST_MMIO);
    host = test_region_map(region, addr - region->base, &len);
    test_mapping_add(mem, region, host, len, false);
    pthread_mutex_unlock(&mem->lock);
    return host;
}

bool vring_memory_is_ram(VringMemory *mem, void *host)
{
    bool is_ram;

    pthread_mutex_lock(&mem->lock);
    is_ram = test_region_of_host(mem, host)->kind != TEST_MMIO;
    pthread_mutex_unlock(&mem->lock);
    return is_ram;
}

bool vring_memory_map_region(VringMemory *mem, hwaddr addr, hwaddr len,
                             bool is_write, VringRamRegion *region)
{
    hwaddr mapped = len;
    uint8_t *host = vring_memory_map(mem, addr, &mapped, is_write);

    if (!host) {
        return false;
    }
    if (mapped < len) {
        vring_memory_unmap(mem, host, mapped, false);
        return false;
    }
    pthread_mutex_lock(&mem->lock);
    *region = (VringRamRegion) {
        .base = addr,
        .size = len,
        .host = host,
        .mr = (MemoryRegion *)test_region_of_host(mem, host),
        .may_log = true,
    };
    region->mr_offset = test_region_offset(test_region_of_host(mem, host),
                                           host);
    pthread_mutex_unlock(&mem->lock);
    return true;
}

void vring_memory_unmap_region(VringMemory *mem, VringRamRegion *region)
{
    vring_memory_unmap(mem, region->host, region->size, false);
}

void vring_memory_pin(VringMemory *mem, void *host)
{
    TestRegion *region;

    pthread_mutex_lock(&mem->lock);
    region = test_region_of_host(mem, host);
    g_assert(region);
    test_mapping_add(mem, region, host, 0, false);
    pthread_mutex_unlock(&mem->lock);
}
