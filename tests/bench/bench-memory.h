/*
 * Guest memory of the benchmark's driver
 *
 * Knows a shared memory file and hands out pieces of it.  Does not know who
 * shares it, nor what the pieces are for.
 *
 * Guest address and offset in the file are the same.  What lies below
 * BENCH_MEMORY_START is left alone, since PCs have more there than RAM.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_BENCH_BENCH_MEMORY_H
#define TESTS_BENCH_BENCH_MEMORY_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define BENCH_MEMORY_START  (16 * 1024 * 1024ull)

typedef struct BenchMemory {
    int fd;                     /* of the file; inherited by children */
    uint8_t *host;              /* where guest address 0 is mapped */
    uint64_t size;              /* bytes */
    uint64_t next;              /* first byte not yet handed out */
} BenchMemory;

/**
 * bench_memory_init: make the file and map it
 * @size: bytes, a multiple of 1 MiB above BENCH_MEMORY_START
 * @huge: of huge pages of 2 MiB, to a multiple of which the size is rounded up
 *
 * Returns: false with @errp set if there is not as much memory
 *
 * Pair: bench_memory_cleanup()
 */
bool bench_memory_init(BenchMemory *mem, uint64_t size, bool huge,
                       GError **errp);

/**
 * bench_memory_cleanup: unmap and close
 *
 * Also after bench_memory_init() has failed, and more than once.
 */
void bench_memory_cleanup(BenchMemory *mem);

/**
 * bench_memory_alloc: hand out zeroed memory
 * @size: bytes
 * @align: a power of two
 *
 * Returns: guest address; never fails for sizes within bench_memory_left()
 */
uint64_t bench_memory_alloc(BenchMemory *mem, uint64_t size, uint64_t align);

/**
 * bench_memory_part: hand out memory that is handed out in pieces by itself
 * @size: bytes, a multiple of 4096
 *
 * Returns: what bench_memory_alloc() takes, too; needs no clean-up
 */
BenchMemory bench_memory_part(BenchMemory *mem, uint64_t size);

/**
 * bench_memory_left: bytes that can still be handed out
 */
uint64_t bench_memory_left(const BenchMemory *mem);

#endif /* TESTS_BENCH_BENCH_MEMORY_H */
