/*
 * Guest memory as the qtests of the plane see it
 *
 * Knows libqtest and the VM's mapping, and nothing of rings or requests.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/mman.h>
#include "qemu/atomic.h"
#include "qemu/bswap.h"
#include "qemu/units.h"
#include "libqtest.h"
#include "virtio-blk-dataplane-ram.h"

int dp_ram_fd(uint64_t size)
{
    int fd = memfd_create("ram", 0);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, size), ==, 0);
    return fd;
}

void dp_ram_map(DpVm *vm, int fd, uint64_t base, uint64_t size)
{
    vm->ram = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    g_assert_true(vm->ram != MAP_FAILED);
    vm->ram_base = base;
    vm->ram_size = size;
    close(fd);
}

void dp_ram_unmap(DpVm *vm)
{
    if (vm->ram) {
        munmap(vm->ram, vm->ram_size);
        vm->ram = NULL;
    }
}

/* The PC's first MiB has windows in it, which are not RAM. */
static void *shared(DpVm *vm, uint64_t addr, size_t size)
{
    if (!vm->ram || addr < MAX(vm->ram_base, 1 * MiB) ||
        addr + size > vm->ram_base + vm->ram_size) {
        return NULL;
    }
    return vm->ram + (addr - vm->ram_base);
}

static void order(void)
{
    /* Stands for each barrier that a driver needs; pairs with the device's. */
    smp_mb();
}

void dp_ram_write(DpVm *vm, uint64_t addr, const void *buf, size_t size)
{
    void *to = shared(vm, addr, size);

    if (!to) {
        qtest_bufwrite(vm->qts, addr, buf, size);
        return;
    }
    order();
    memcpy(to, buf, size);
    order();
}

void dp_ram_read(DpVm *vm, uint64_t addr, void *buf, size_t size)
{
    const void *from = shared(vm, addr, size);

    if (!from) {
        qtest_bufread(vm->qts, addr, buf, size);
        return;
    }
    order();
    memcpy(buf, from, size);
    order();
}

void dp_ram_set(DpVm *vm, uint64_t addr, uint8_t byte, size_t size)
{
    void *to = shared(vm, addr, size);

    if (!to) {
        qtest_memset(vm->qts, addr, byte, size);
        return;
    }
    order();
    memset(to, byte, size);
    order();
}

uint8_t dp_ram_readb(DpVm *vm, uint64_t addr)
{
    uint8_t value;

    dp_ram_read(vm, addr, &value, 1);
    return value;
}

void dp_ram_writeb(DpVm *vm, uint64_t addr, uint8_t value)
{
    dp_ram_write(vm, addr, &value, 1);
}

uint16_t dp_ram_readw(DpVm *vm, uint64_t addr)
{
    const uint16_t *from = shared(vm, addr, 2);
    uint16_t value;

    if (!from) {
        return qtest_readw(vm->qts, addr);
    }
    order();
    value = le16_to_cpu(qatomic_read(from));
    order();
    return value;
}

uint32_t dp_ram_readl(DpVm *vm, uint64_t addr)
{
    const uint32_t *from = shared(vm, addr, 4);
    uint32_t value;

    if (!from) {
        return qtest_readl(vm->qts, addr);
    }
    order();
    value = le32_to_cpu(qatomic_read(from));
    order();
    return value;
}

void dp_ram_writew(DpVm *vm, uint64_t addr, uint16_t value)
{
    uint16_t *to = shared(vm, addr, 2);

    if (!to) {
        qtest_writew(vm->qts, addr, value);
        return;
    }
    order();
    qatomic_set(to, cpu_to_le16(value));
    order();
}
