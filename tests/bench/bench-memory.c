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

#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB    (21 << 26)
#endif

#define HUGE_PAGE       ((uint64_t)2 << 20)

/* Always false, so that callers can return it. */
static bool fail(BenchMemory *mem, uint64_t size, bool huge, GError **errp)
{
    g_set_error(errp, BENCH_ERROR, 0,
                "cannot make %" G_GUINT64_FORMAT " bytes of guest memory: %s",
                size, g_strerror(errno));
    if (huge && errp) {
        g_prefix_error(errp, "%u huge pages of 2 MiB have to be free (sysctl "
                       "vm.nr_hugepages): ", (unsigned)(size / HUGE_PAGE));
    }
    bench_memory_cleanup(mem);
    return false;
}

bool bench_memory_init(BenchMemory *mem, uint64_t size, bool huge,
                       GError **errp)
{
    void *host;

    *mem = (BenchMemory) { .fd = -1, .next = BENCH_MEMORY_START };
    if (huge) {
        size = (size + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
    }

    /* Without MFD_CLOEXEC: QEMU opens it as /proc/self/fd/N. */
    mem->fd = memfd_create("guest-ram",
                           huge ? MFD_HUGETLB | MFD_HUGE_2MB : 0);
    if (mem->fd < 0 || ftruncate(mem->fd, size) < 0) {
        return fail(mem, size, huge, errp);
    }
    host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                mem->fd, 0);
    if (host == MAP_FAILED) {
        return fail(mem, size, huge, errp);
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
