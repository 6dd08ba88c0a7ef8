/*
 * Guest memory for the benchmark of the ring
 *
 * Knows three regions of RAM, as a PC has them; serves the functions of
 * vring-memory.h in place of vring-memory.c.  Does not know rings.
 *
 * The unit tests' memory counts every byte that is marked dirty, which would
 * be most of what is measured.  Here a mark costs the least that it can cost
 * in QEMU while nobody logs: a call and a look at a flag.  The general path,
 * which no buffer of the benchmark takes, ends the program.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_BENCH_VRING_BENCH_MEMORY_H
#define TESTS_BENCH_VRING_BENCH_MEMORY_H

#include "hw/virtio/dataplane/vring-memory.h"

/* Guest addresses of the regions: below 1 MiB, below 4 GiB, and above */
#define RING_LOW            0x0ull
#define RING_MAIN           0x100000ull
#define RING_HIGH           0x100000000ull

#define RING_LOW_SIZE       0xa0000ull
#define RING_REGION_SIZE    0x2000000ull    /* of the other two */

/**
 * ring_memory_new: make an address space of zeroes
 * Pair: ring_memory_free()
 */
VringMemory *ring_memory_new(void);

/**
 * ring_memory_free: the pair of ring_memory_new()
 * @mem: no Vring uses it any more
 */
void ring_memory_free(VringMemory *mem);

/**
 * ring_memory_host: host address of a guest address in RAM
 */
void *ring_memory_host(VringMemory *mem, hwaddr addr);

#endif /* TESTS_BENCH_VRING_BENCH_MEMORY_H */
