/*
 * A virtio-pci device behind the qtest socket
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "bench-pci.h"

/* A PC's access to configuration space */
#define CONFIG_ADDRESS      0xcf8
#define CONFIG_DATA         0xcfc

#define NUM_BARS            6

/* Behind the windows of the other devices; a BAR has 16 KiB at most */
#define PLACES_WINDOW       0xf8000000u
#define PLACES_BAR_STEP     0x4000u

/* PCI configuration space */
#define PCI_ID              0x00
#define PCI_COMMAND         0x04
#define PCI_COMMAND_MEMORY  0x2
#define PCI_COMMAND_MASTER  0x4
#define PCI_BAR0            0x10
#define PCI_BAR_IO          0x1
#define PCI_BAR_64BIT       0x4
#define PCI_CAPABILITIES    0x34
#define PCI_CAP_VENDOR      0x09
#define PCI_CAP_MSIX        0x11
#define MSIX_ENABLE         0x8000

#define VIRTIO_VENDOR       0x1af4
#define MODERN              0x1040  /* plus the type of device */

/* Types of virtio structures (4.1.4) */
#define CAP_COMMON          1
#define CAP_NOTIFY          2
#define CAP_DEVICE          4

/* The common configuration (4.1.4.3) */
#define DEVICE_FEATURE_SELECT   0x00
#define DEVICE_FEATURE          0x04
#define DRIVER_FEATURE_SELECT   0x08
#define DRIVER_FEATURE          0x0c
#define NUM_QUEUES              0x12
#define DEVICE_STATUS           0x14
#define QUEUE_SELECT            0x16
#define QUEUE_SIZE              0x18
#define QUEUE_MSIX_VECTOR       0x1a
#define QUEUE_ENABLE            0x1c
#define QUEUE_NOTIFY_OFF        0x1e
#define QUEUE_DESC              0x20
#define QUEUE_DRIVER            0x28
#define QUEUE_DEVICE            0x30
#define QUEUE_RESET             0x3a

/* Device status (2.1) */
#define STATUS_ACKNOWLEDGE  1
#define STATUS_DRIVER       2
#define STATUS_DRIVER_OK    4
#define STATUS_FEATURES_OK  8

/* Configuration space */

static void select_config(BenchPci *pci, unsigned offset)
{
    bench_qtest_write(pci->qt, "outl", CONFIG_ADDRESS,
                      0x80000000u | pci->devfn << 8 | (offset & ~3u));
}

static uint32_t config_read(BenchPci *pci, unsigned offset)
{
    select_config(pci, offset);
    return bench_qtest_read(pci->qt, "inl", CONFIG_DATA);
}

static void config_write(BenchPci *pci, unsigned offset, uint32_t value)
{
    select_config(pci, offset);
    bench_qtest_write(pci->qt, "outl", CONFIG_DATA, value);
}

static uint8_t config_read8(BenchPci *pci, unsigned offset)
{
    return config_read(pci, offset) >> offset % 4 * 8;
}

/* Finding and opening the device */

/* PCI IDs of virtio devices (4.1.2): those of old devices have no rule */
static bool is_wanted(const BenchPci *pci, uint32_t id)
{
    return (id & 0xffff) == VIRTIO_VENDOR &&
           (id >> 16 == MODERN + pci->kind->type ||
            id >> 16 == pci->kind->transitional_id);
}

static bool find_device(BenchPci *pci, GError **errp)
{
    unsigned found = 0;
    unsigned devfn = 0;
    unsigned slot = pci->kind->slot;
    unsigned end = slot ? slot + 1 : BENCH_PCI_PLACES_SLOT;

    for (; slot < end; slot++) {
        pci->devfn = slot << 3 | pci->kind->function;
        if (is_wanted(pci, config_read(pci, PCI_ID))) {
            devfn = pci->devfn;
            found++;
        }
    }
    pci->devfn = devfn;
    if (bench_qtest_failed(pci->qt, errp)) {
        return false;
    }
    if (found != 1) {
        g_set_error(errp, BENCH_ERROR, 0, "QEMU has %u %s devices %s: give it "
                    "one", found, pci->kind->name,
                    pci->kind->slot ? "in the slot" : "on its bus");
        return false;
    }
    return true;
}

static uint64_t bar_address(const BenchPci *pci, unsigned bar)
{
    return pci->kind->window + bar * pci->kind->bar_step;
}

static void map_bars(BenchPci *pci)
{
    for (unsigned bar = 0; bar < NUM_BARS; bar++) {
        unsigned offset = PCI_BAR0 + bar * 4;
        uint32_t kind = config_read(pci, offset);

        if (kind & PCI_BAR_IO) {
            continue;
        }
        config_write(pci, offset, bar_address(pci, bar));
        if (kind & PCI_BAR_64BIT) {
            bar++;
            config_write(pci, offset + 4, 0);
        }
    }
    config_write(pci, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
}

static void take_vendor_cap(BenchPci *pci, unsigned cap)
{
    uint64_t addr = bar_address(pci, config_read8(pci, cap + 4)) +
                    config_read(pci, cap + 8);

    switch (config_read8(pci, cap + 3)) {
    case CAP_COMMON:
        pci->common = addr;
        break;
    case CAP_NOTIFY:
        pci->notify = addr;
        pci->notify_multiplier = config_read(pci, cap + 16);
        break;
    case CAP_DEVICE:
        pci->config = addr;
        break;
    }
}

static void take_msix_cap(BenchPci *pci, unsigned cap)
{
    uint32_t table = config_read(pci, cap + 4);

    pci->msix_cap = cap;
    pci->msix_table = bar_address(pci, table & 7) + (table & ~7u);
}

static void walk_capabilities(BenchPci *pci)
{
    uint8_t cap = config_read8(pci, PCI_CAPABILITIES);

    /* A list in 256 bytes has no more elements than this. */
    for (unsigned i = 0; cap && i < 64; i++) {
        uint8_t id = config_read8(pci, cap);

        if (id == PCI_CAP_VENDOR) {
            take_vendor_cap(pci, cap);
        } else if (id == PCI_CAP_MSIX) {
            take_msix_cap(pci, cap);
        }
        cap = config_read8(pci, cap + 1);
    }
}

const BenchPciKind bench_pci_blk = {
    .name = "virtio-blk-pci",
    .type = 2,
    .transitional_id = 0x1001,
    .window = 0xe0000000u,
    .bar_step = BENCH_PCI_BAR_STEP,
};

BenchPciKind bench_pci_blk_at(unsigned place)
{
    BenchPciKind kind = bench_pci_blk;

    kind.slot = BENCH_PCI_PLACES_SLOT + place / 8;
    kind.function = place % 8;
    kind.window = PLACES_WINDOW + place * NUM_BARS * PLACES_BAR_STEP;
    kind.bar_step = PLACES_BAR_STEP;
    return kind;
}

bool bench_pci_init(BenchPci *pci, const BenchPciKind *kind, BenchQtest *qt,
                    GError **errp)
{
    *pci = (BenchPci) { .qt = qt, .kind = kind };

    if (!find_device(pci, errp)) {
        return false;
    }
    map_bars(pci);
    walk_capabilities(pci);
    if (bench_qtest_failed(qt, errp)) {
        return false;
    }
    if (!pci->common || !pci->notify || !pci->config || !pci->msix_cap) {
        g_set_error(errp, BENCH_ERROR, 0, "the device is not a modern "
                    "%s with MSI-X: leave its properties disable-modern and "
                    "vectors alone", kind->name);
        return false;
    }
    return true;
}

/* The device */

uint64_t bench_pci_reset(BenchPci *pci)
{
    uint64_t features;

    bench_qtest_write(pci->qt, "writeb", pci->common + DEVICE_STATUS, 0);
    bench_qtest_write(pci->qt, "writeb", pci->common + DEVICE_STATUS,
                      STATUS_ACKNOWLEDGE | STATUS_DRIVER);
    bench_qtest_write(pci->qt, "writel", pci->common + DEVICE_FEATURE_SELECT,
                      1);
    features = bench_qtest_read(pci->qt, "readl",
                                pci->common + DEVICE_FEATURE) << 32;
    bench_qtest_write(pci->qt, "writel", pci->common + DEVICE_FEATURE_SELECT,
                      0);
    return features | (uint32_t)bench_qtest_read(pci->qt, "readl",
                                                 pci->common + DEVICE_FEATURE);
}

bool bench_pci_set_features(BenchPci *pci, uint64_t features, GError **errp)
{
    BenchQtest *qt = pci->qt;
    uint8_t status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;

    for (unsigned i = 0; i < 2; i++) {
        bench_qtest_write(qt, "writel", pci->common + DRIVER_FEATURE_SELECT,
                          i);
        bench_qtest_write(qt, "writel", pci->common + DRIVER_FEATURE,
                          features >> 32 * i & UINT32_MAX);
    }
    bench_qtest_write(qt, "writeb", pci->common + DEVICE_STATUS, status);
    status = bench_qtest_read(qt, "readb", pci->common + DEVICE_STATUS);
    if (bench_qtest_failed(qt, errp)) {
        return false;
    }
    if (!(status & STATUS_FEATURES_OK)) {
        g_set_error(errp, BENCH_ERROR, 0, "the device refuses the features "
                    "0x%" G_GINT64_MODIFIER "x that it offered", features);
        return false;
    }
    return true;
}

unsigned bench_pci_num_queues(BenchPci *pci)
{
    return bench_qtest_read(pci->qt, "readw", pci->common + NUM_QUEUES);
}

static void select_queue(BenchPci *pci, unsigned queue)
{
    bench_qtest_write(pci->qt, "writew", pci->common + QUEUE_SELECT, queue);
}

unsigned bench_pci_queue_size(BenchPci *pci, unsigned queue)
{
    select_queue(pci, queue);
    return bench_qtest_read(pci->qt, "readw", pci->common + QUEUE_SIZE);
}

uint64_t bench_pci_config64(BenchPci *pci, unsigned offset)
{
    return bench_qtest_read(pci->qt, "readl", pci->config + offset + 4) << 32 |
           (uint32_t)bench_qtest_read(pci->qt, "readl", pci->config + offset);
}

void bench_pci_set_config32(BenchPci *pci, unsigned offset, uint32_t value)
{
    bench_qtest_write(pci->qt, "writel", pci->config + offset, value);
}

void bench_pci_enable_msix(BenchPci *pci, unsigned n, uint64_t addr,
                           unsigned step)
{
    for (unsigned i = 0; i < n; i++, addr += step) {
        uint64_t entry = pci->msix_table + i * 16;

        bench_qtest_write(pci->qt, "writel", entry, addr & UINT32_MAX);
        bench_qtest_write(pci->qt, "writel", entry + 4, addr >> 32);
        bench_qtest_write(pci->qt, "writel", entry + 8, i + 1);
        bench_qtest_write(pci->qt, "writel", entry + 12, 0);
    }
    config_write(pci, pci->msix_cap, config_read(pci, pci->msix_cap) |
                                     (uint32_t)MSIX_ENABLE << 16);
}

static void write64(BenchPci *pci, unsigned field, uint64_t value)
{
    bench_qtest_write(pci->qt, "writel", pci->common + field,
                      value & UINT32_MAX);
    bench_qtest_write(pci->qt, "writel", pci->common + field + 4, value >> 32);
}

void bench_pci_enable_queue(BenchPci *pci, unsigned queue,
                            const BenchQueue *ring)
{
    select_queue(pci, queue);
    bench_qtest_write(pci->qt, "writew", pci->common + QUEUE_SIZE, ring->size);
    bench_qtest_write(pci->qt, "writew", pci->common + QUEUE_MSIX_VECTOR,
                      queue);
    write64(pci, QUEUE_DESC, ring->desc);
    write64(pci, QUEUE_DRIVER, ring->avail);
    write64(pci, QUEUE_DEVICE, ring->used);
    bench_qtest_write(pci->qt, "writew", pci->common + QUEUE_ENABLE, 1);
}

bool bench_pci_reset_queue(BenchPci *pci, unsigned queue)
{
    select_queue(pci, queue);
    bench_qtest_write(pci->qt, "writew", pci->common + QUEUE_RESET, 1);
    return !bench_qtest_read(pci->qt, "readw", pci->common + QUEUE_RESET) &&
           !bench_qtest_read(pci->qt, "readw", pci->common + QUEUE_ENABLE);
}

void bench_pci_driver_ok(BenchPci *pci)
{
    bench_qtest_write(pci->qt, "writeb", pci->common + DEVICE_STATUS,
                      STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK |
                      STATUS_DRIVER_OK);
}

uint8_t bench_pci_status(BenchPci *pci)
{
    return bench_qtest_read(pci->qt, "readb", pci->common + DEVICE_STATUS);
}

uint64_t bench_pci_notify_address(BenchPci *pci, unsigned queue)
{
    uint64_t off;

    select_queue(pci, queue);
    off = bench_qtest_read(pci->qt, "readw", pci->common + QUEUE_NOTIFY_OFF);
    return pci->notify + off * pci->notify_multiplier;
}

void bench_pci_notify(BenchPci *pci, unsigned queue)
{
    bench_qtest_write(pci->qt, "writew", bench_pci_notify_address(pci, queue),
                      queue);
}
