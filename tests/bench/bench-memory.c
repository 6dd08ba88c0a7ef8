/*
 * Guest memory of the benchmark's driver
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "bench-device.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

bool bench_memory_init(BenchMemory *mem, uint64_t size, GError **errp)
{
    void *host;

    *mem = (BenchMemory) { .fd = -1, .next = BENCH_MEMORY_START };

    /* Without MFD_CLOEXEC: QEMU opens it as /proc/self/fd/N. */
    mem->fd = memfd_create("guest-ram", 0);
    if (mem->fd < 0 || ftruncate(mem->fd, size) < 0) {
        g_set_error(errp, BENCH_ERROR, 0,
                    "cannot make %" G_GUINT64_FORMAT " bytes of guest memory: "
                    "%s", size, g_strerror(errno));
        bench_memory_cleanup(mem);
        return false;
    }
    host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                mem->fd, 0);
    if (host == MAP_FAILED) {
        g_set_error(errp, BENCH_ERROR, 0, "cannot map the guest memory: %s",
                    g_strerror(errno));
        bench_memory_cleanup(mem);
        return false;
    }
    mem->host = host;
    mem->size = size;
    return true;
}

void bench_memory_cleanup(BenchMemory *mem)
{
    if (mem->host) {
        munmap(mem->host, mem->size);
    }
    if (mem->fd >= 0) {
        close(mem->fd);
    }
    *mem = (BenchMemory) { .fd = -1 };
}

uint64_t bench_memory_alloc(BenchMemory *mem, uint64_t size, uint64_t align)
{
    uint64_t addr = (mem->next + align - 1) & ~(align - 1);

    g_assert(size <= mem->size && addr <= mem->size - size);
    mem->next = addr + size;
    return addr;
}

BenchMemory bench_memory_part(BenchMemory *mem, uint64_t size)
{
    BenchMemory part = *mem;

    part.next = bench_memory_alloc(mem, size, 4096);
    part.size = part.next + size;
    return part;
}

uint64_t bench_memory_left(const BenchMemory *mem)
{
    return mem->size - mem->next;
}
