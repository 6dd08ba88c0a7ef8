/*
 * Guest memory that the tests of the ring make up
 *
 * Knows regions, tables of them, mappings, and what was marked dirty; it
 * serves the functions of vring-memory.h in place of vring-memory.c.  Does
 * not know rings.
 *
 * Each region is an allocation of its own, freed when the last table and the
 * last mapping that refer to it have gone, so that a sanitizer sees each
 * access outside of it or after its end.  References and mappings are
 * counted: one that leaks, or that is given back twice, fails the test.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_UNIT_VRING_TEST_MEMORY_H
#define TESTS_UNIT_VRING_TEST_MEMORY_H

#include "hw/virtio/dataplane/vring-memory.h"

typedef enum TestRegionKind {
    TEST_RAM,           /* in the table */
    TEST_TRANSLATED,    /* only by the general path, as behind an IOMMU */
    TEST_SCATTERED,     /* likewise, and the device sees its pages elsewhere */
    TEST_ROM,           /* likewise, and only to be read */
    TEST_MMIO,          /* only by test_memory_copy() */
} TestRegionKind;

/**
 * test_memory_new: make an address space with nothing in it
 * Pair: test_memory_free()
 */
VringMemory *test_memory_new(void);

/**
 * test_memory_free: fails the test if a table or a mapping was not given back
 */
void test_memory_free(VringMemory *mem);

/**
 * test_memory_add: plug a region of zeroes in
 * @base: guest address; regions are disjoint
 * @size: bytes; regions above 64 MiB record no dirty bytes
 *
 * Shows in the table after test_memory_commit().
 *
 * Returns: host address
 */
uint8_t *test_memory_add(VringMemory *mem, hwaddr base, uint64_t size,
                         TestRegionKind kind);

/**
 * test_memory_del: unplug the region that starts at @base
 *
 * Goes out of the table by test_memory_commit().
 */
void test_memory_del(VringMemory *mem, hwaddr base);

/**
 * test_memory_commit: publish a table of the regions that are there now
 *
 * Context: any thread
 */
void test_memory_commit(VringMemory *mem);

/**
 * test_memory_host: host address of a guest address, NULL if there is none
 */
uint8_t *test_memory_host(VringMemory *mem, hwaddr addr);

/**
 * test_memory_protect: change the access rights of the region at @base
 * @prot: as for mprotect(); the region's size is a multiple of the page size
 */
void test_memory_protect(VringMemory *mem, hwaddr base, int prot);

/**
 * test_memory_limit_map: let vring_memory_map() serve at most @limit bytes
 */
void test_memory_limit_map(VringMemory *mem, uint64_t limit);

/**
 * test_memory_copy: map a TEST_MMIO region as the owner of a Vring does
 *
 * To be given back with vring_memory_unmap(), as not written.
 *
 * Returns: host address
 */
uint8_t *test_memory_copy(VringMemory *mem, hwaddr addr, hwaddr len);

/* Number of tables, mappings, and regions (in whatever state) that live. */
unsigned test_memory_tables(VringMemory *mem);
unsigned test_memory_mappings(VringMemory *mem);
unsigned test_memory_regions(VringMemory *mem);

/**
 * test_memory_set_logging: begin or end to log writes to the region at @base
 *
 * Regions that record dirty bytes are logged from the start.  What the ring
 * marks in a region that is not logged is recorded all the same: it should have
 * asked vring_ram_region_is_logged() first.
 */
void test_memory_set_logging(VringMemory *mem, hwaddr base, bool logged);

/**
 * test_memory_dirty: number of bytes marked dirty in a range of one region
 */
uint64_t test_memory_dirty(VringMemory *mem, hwaddr addr, uint64_t len);

/**
 * test_memory_all_dirty: number of bytes marked dirty anywhere
 */
uint64_t test_memory_all_dirty(VringMemory *mem);

/**
 * test_memory_clean: forget what was marked dirty
 */
void test_memory_clean(VringMemory *mem);

#endif /* TESTS_UNIT_VRING_TEST_MEMORY_H */
