/*
 * The registers of a virtio-blk disk on PCI, and its interrupts
 *
 * Capabilities, the common configuration structure, vectors, the ISR, the
 * window in PCI configuration space, and the legacy interface: what a driver
 * reads there, and what it may write there without harm.  QEMU's transport
 * decides most of it; the data plane runs below and must not change it.  May
 * know registers by their offsets, and the plane only by its modes.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/host-utils.h"
#include "hw/pci/pci_regs.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "virtio-blk-dataplane-regs.h"

#define OK VIRTIO_BLK_S_OK
#define NO_VECTOR VIRTIO_MSI_NO_VECTOR
#define ISR_QUEUE 1
#define ISR_CONFIG 2
#define F_CONFIG_WCE DP_BIT(VIRTIO_BLK_F_CONFIG_WCE)
#define F_FLUSH DP_BIT(VIRTIO_BLK_F_FLUSH)

static uint8_t read_isr(DpDisk *disk)
{
    return qpci_io_readb(disk->pci->pdev, disk->pci->bar,
                         disk->pci->isr_cfg_offset);
}

/* Run a write and wait for it without interrupts */
static void run_polled(DpDisk *disk)
{
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_OUT, 8, 512);

    dp_submit(disk, req);
    dp_kick(disk);
    dp_poll(disk, req);
    g_assert_cmpint(req->status, ==, OK);
    dp_req_free(disk, req);
}

/* --- what it is ------------------------------------------------------ */

typedef struct IdCase {
    const char *props;
    uint16_t device;
    uint8_t revision;
    uint16_t subsystem;
    bool has_io;                /* BAR0 is in I/O space */
} IdCase;

static const IdCase id_cases[] = {
    { "", 0x1001, 0, 2, true },
    { ",disable-modern=on", 0x1001, 0, 2, true },
    { ",disable-legacy=on", 0x1042, 1, 0x1100, false },
};

/* covers: PCI-1, PCI-2, BLKC-1, LEG-13, LEG-14 */
static void test_ids(const DpMode *mode)
{
    for (unsigned i = 0; i < ARRAY_SIZE(id_cases); i++) {
        const IdCase *c = &id_cases[i];
        DpVm *vm = dp_vm_null(mode, "", c->props);
        DpDisk *disk = dp_disk_probe(vm, "d0", DP_SLOT);
        QPCIDevice *pdev = disk->pci->pdev;
        uint32_t bar = qpci_config_readl(pdev, PCI_BASE_ADDRESS_0);

        g_assert_cmphex(qpci_config_readw(pdev, PCI_VENDOR_ID), ==, 0x1af4);
        g_assert_cmphex(qpci_config_readw(pdev, PCI_DEVICE_ID), ==, c->device);
        g_assert_cmphex(qpci_config_readb(pdev, PCI_REVISION_ID), ==,
                        c->revision);
        g_assert_cmphex(qpci_config_readw(pdev, PCI_SUBSYSTEM_ID), ==,
                        c->subsystem);
        g_assert_cmpint(bar & PCI_BASE_ADDRESS_SPACE_IO, ==, c->has_io);
        dp_disk_free(disk);
        dp_vm_quit(vm);
    }
}

/* --- capabilities ---------------------------------------------------- */

typedef struct Cap {
    uint8_t at;
    uint8_t len;
    uint8_t bar;
    uint32_t offset;
    uint32_t length;
} Cap;

static Cap read_cap(QPCIDevice *pdev, uint8_t at)
{
    return (Cap) {
        .at = at,
        .len = qpci_config_readb(pdev, at +
                                 offsetof(struct virtio_pci_cap, cap_len)),
        .bar = qpci_config_readb(pdev, at +
                                 offsetof(struct virtio_pci_cap, bar)),
        .offset = qpci_config_readl(pdev, at +
                                    offsetof(struct virtio_pci_cap, offset)),
        .length = qpci_config_readl(pdev, at +
                                    offsetof(struct virtio_pci_cap, length)),
    };
}

/* The next capability of @type behind the one at @at; false if there is none */
static bool find_cap(QPCIDevice *pdev, uint8_t type, uint8_t at, Cap *cap)
{
    while ((at = qpci_find_capability(pdev, PCI_CAP_ID_VNDR, at))) {
        if (qpci_config_readb(pdev, at + offsetof(struct virtio_pci_cap,
                                                  cfg_type)) == type) {
            *cap = read_cap(pdev, at);
            return true;
        }
    }
    return false;
}

static void check_cap(QPCIDevice *pdev, uint8_t type, uint8_t len,
                      uint32_t align, uint32_t length)
{
    Cap cap;

    g_assert_true(find_cap(pdev, type, 0, &cap));
    g_assert_cmpuint(cap.len, ==, len);
    g_assert_cmpuint(cap.bar, <, 6);
    g_assert_cmpuint(cap.offset % align, ==, 0);
    g_assert_cmpuint(cap.length, >=, length);
}

/* A structure for kicks holds the addresses of all queues */
static void check_notify_cap(DpDisk *disk, const Cap *cap, unsigned queues)
{
    uint32_t mult = qpci_config_readl(disk->pci->pdev, cap->at +
                                      offsetof(struct virtio_pci_notify_cap,
                                               notify_off_multiplier));

    g_assert_cmpuint(cap->len, ==, sizeof(struct virtio_pci_notify_cap));
    g_assert_cmpuint(cap->offset % 2, ==, 0);
    g_assert_cmpuint(cap->length, >=, 2);
    if (mult) {
        g_assert_cmpuint(mult, >=, 2);
        g_assert_true(is_power_of_2(mult));
    }
    for (unsigned i = 0; i < queues; i++) {
        uint32_t off;

        dp_reg_writew(disk, DP_CFG(queue_select), i);
        off = dp_reg_readw(disk, DP_CFG(queue_notify_off));
        g_assert_cmpuint(cap->length, >=, off * mult + 2);
    }
}

/*
 * covers: PCI-5, PCI-7, PCI-8, PCI-9, PCI-11, PCI-12, PCI-13, PCI-15, PCI-24:
 * there is no vendor's data
 */
static void test_capabilities(const DpMode *mode)
{
    static const struct {
        const char *props;
        unsigned queues;
    } cases[] = {
        { "", 1 },
        { ",num-queues=64", 64 },
        { ",num-queues=4,page-per-vq=on", 4 },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        DpVm *vm = dp_vm_null(mode, "", cases[i].props);
        DpDisk *disk = dp_disk_probe(vm, "d0", DP_SLOT);
        QPCIDevice *pdev = disk->pci->pdev;
        unsigned found = 0;
        Cap cap = { 0 };

        check_cap(pdev, VIRTIO_PCI_CAP_COMMON_CFG, 16, 4, 60);
        check_cap(pdev, VIRTIO_PCI_CAP_ISR_CFG, 16, 1, 1);
        check_cap(pdev, VIRTIO_PCI_CAP_DEVICE_CFG, 16, 4, 36);
        check_cap(pdev, VIRTIO_PCI_CAP_PCI_CFG, 20, 1, 0);
        g_assert_false(find_cap(pdev, 9, 0, &cap));
        g_assert_cmpuint(dp_reg_readw(disk, DP_CFG(num_queues)), ==,
                         cases[i].queues);
        for (cap.at = 0; find_cap(pdev, VIRTIO_PCI_CAP_NOTIFY_CFG, cap.at,
                                  &cap); found++) {
            check_notify_cap(disk, &cap, cases[i].queues);
        }
        g_assert_cmpuint(found, >=, 1);
        dp_disk_free(disk);
        dp_vm_quit(vm);
    }
}

/* covers: NOTIF-1, NOTIF-9: addresses that are near, and a page apart */
static void test_notify_address(const DpMode *mode)
{
    static const struct {
        const char *props;
        uint32_t multiplier;
    } cases[] = {
        { "", 4 },
        { ",page-per-vq=on", 4096 },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        DpVm *vm = dp_vm_file(mode, DP_IMAGE_SIZE, cases[i].props);
        DpDisk *disk = dp_disk_new(vm, DP_F_ALL);

        g_assert_cmpuint(disk->pci->notify_off_multiplier, ==,
                         cases[i].multiplier);
        dp_assert_works(disk);
        dp_assert_mode(vm, mode);
        dp_disk_free(disk);
        dp_vm_quit(vm);
    }
}

/* --- the window in PCI configuration space --------------------------- */

static void window_point(DpDisk *disk, const Cap *cap, uint8_t bar,
                         uint32_t offset, uint32_t length)
{
    QPCIDevice *pdev = disk->pci->pdev;

    qpci_config_writeb(pdev, cap->at + offsetof(struct virtio_pci_cap, bar),
                       bar);
    qpci_config_writel(pdev, cap->at + offsetof(struct virtio_pci_cap, offset),
                       offset);
    qpci_config_writel(pdev, cap->at + offsetof(struct virtio_pci_cap, length),
                       length);
}

static uint32_t window_read(DpDisk *disk, const Cap *cap, uint32_t offset,
                            uint32_t length)
{
    uint8_t data = cap->at + sizeof(struct virtio_pci_cap);

    window_point(disk, cap, disk->pci->bar_idx, offset, length);
    switch (length) {
    case 1:
        return qpci_config_readb(disk->pci->pdev, data);
    case 2:
        return qpci_config_readw(disk->pci->pdev, data);
    default:
        return qpci_config_readl(disk->pci->pdev, data);
    }
}

static void window_write(DpDisk *disk, const Cap *cap, uint32_t offset,
                         uint32_t length, uint32_t value)
{
    uint8_t data = cap->at + sizeof(struct virtio_pci_cap);

    window_point(disk, cap, disk->pci->bar_idx, offset, length);
    switch (length) {
    case 1:
        qpci_config_writeb(disk->pci->pdev, data, value);
        break;
    case 2:
        qpci_config_writew(disk->pci->pdev, data, value);
        break;
    default:
        qpci_config_writel(disk->pci->pdev, data, value);
    }
}

/* Reset and negotiate through the window alone */
static void window_init(DpDisk *disk, const Cap *cap, uint64_t features)
{
    uint32_t common = disk->pci->common_cfg_offset;
    uint32_t status = common + DP_CFG(device_status);

    window_write(disk, cap, status, 1, 0);
    g_assert_cmphex(window_read(disk, cap, status, 1), ==, 0);
    window_write(disk, cap, status, 1, DP_S_DRIVER);
    for (unsigned i = 0; i < 2; i++) {
        window_write(disk, cap, common + DP_CFG(guest_feature_select), 4, i);
        window_write(disk, cap, common + DP_CFG(guest_feature), 4,
                     features >> (32 * i));
    }
    window_write(disk, cap, status, 1, DP_S_FEATURES);
    g_assert_cmphex(window_read(disk, cap, status, 1), ==, DP_S_FEATURES);
    g_assert_cmphex(dp_accepted(disk), ==, features);
}

/* covers: PCI-14, PCI-19: a device that is driven through the window */
static void test_window(DpDisk *disk)
{
    uint32_t common = disk->pci->common_cfg_offset;
    Cap cap;

    g_assert_true(find_cap(disk->pci->pdev, VIRTIO_PCI_CAP_PCI_CFG, 0, &cap));
    for (unsigned i = 0; i < 3; i++) {
        DpReq *req;

        window_init(disk, &cap, disk->features);
        g_assert_cmpuint(window_read(disk, &cap, disk->pci->device_cfg_offset,
                                     4), ==, DP_CAPACITY);
        dp_queue_restart(disk);
        window_write(disk, &cap, common + DP_CFG(device_status), 1, DP_S_LIVE);
        req = dp_req(disk, VIRTIO_BLK_T_OUT, i, 512);
        dp_submit(disk, req);
        dp_expose(disk);
        disk->exposed_idx = disk->avail_idx;
        window_write(disk, &cap, disk->pci->notify_cfg_offset, 2, 0);
        dp_wait(disk, req);
        g_assert_cmpint(req->status, ==, OK);
        dp_req_free(disk, req);
    }
}

/* covers: ROBC-18: the window points at nothing, or with a wrong length */
static void test_window_elsewhere(DpDisk *disk)
{
    static const uint32_t offsets[] = {
        0x100, 0xfff, 0x1fff, 0x4000000, 0x7fffffff, 0xfffffffd, 0xffffffff
    };
    static const uint32_t lengths[] = { 0, 3, 5, 8, 256, 0xffffffff, 4, 2, 1 };
    static const uint8_t bars[] = { 4, 0, 1, 2, 5, 6, 255 };
    QPCIDevice *pdev = disk->pci->pdev;
    uint8_t data;
    Cap cap;

    g_assert_true(find_cap(pdev, VIRTIO_PCI_CAP_PCI_CFG, 0, &cap));
    data = cap.at + sizeof(struct virtio_pci_cap);
    for (unsigned i = 0; i < ARRAY_SIZE(bars); i++) {
        for (unsigned j = 0; j < ARRAY_SIZE(lengths); j++) {
            for (unsigned k = 0; k < ARRAY_SIZE(offsets); k++) {
                window_point(disk, &cap, bars[i], offsets[k], lengths[j]);
                qpci_config_readl(pdev, data);
                qpci_config_writel(pdev, data, 0);
                qpci_config_writeb(pdev, data + 1, 0xff);
            }
        }
        g_assert_cmphex(dp_status(disk), ==, DP_S_LIVE);
        dp_assert_works(disk);
    }
}

/* --- registers of queues --------------------------------------------- */

static void select_queue(DpDisk *disk, uint16_t index)
{
    dp_reg_writew(disk, DP_CFG(queue_select), index);
    g_assert_cmpuint(dp_reg_readw(disk, DP_CFG(queue_select)), ==, index);
}

static void check_no_queue(DpDisk *disk, uint16_t index)
{
    select_queue(disk, index);
    g_assert_cmpuint(dp_reg_readw(disk, DP_CFG(queue_size)), ==, 0);
    dp_reg_writew(disk, DP_CFG(queue_size), 16);
    dp_reg_writel(disk, DP_CFG(queue_desc_lo), 0x1000);
    dp_reg_writew(disk, DP_CFG(queue_msix_vector), 0);
    dp_reg_writew(disk, DP_CFG(queue_enable), 1);
    dp_reg_writew(disk, DP_REG(queue_reset), 1);
    g_assert_cmpuint(dp_reg_readw(disk, DP_CFG(queue_size)), ==, 0);
}

static void check_reset_queue(DpDisk *disk, uint16_t index)
{
    uint16_t size;

    select_queue(disk, index);
    size = dp_reg_readw(disk, DP_CFG(queue_size));
    g_assert_cmpuint(size, !=, 0);
    g_assert_true(is_power_of_2(size));
    g_assert_cmpuint(dp_reg_readw(disk, DP_CFG(queue_enable)), ==, 0);
    g_assert_cmpuint(dp_reg_readw(disk, DP_REG(queue_reset)), ==, 0);
    g_assert_cmphex(dp_reg_readw(disk, DP_CFG(queue_msix_vector)), ==,
                    NO_VECTOR);
}

#define QUEUES 4

/* Each queue has values of its own; the addresses' high halves come first. */
static void write_queues(DpDisk *disk)
{
    for (unsigned i = 0; i < QUEUES; i++) {
        select_queue(disk, i);
        dp_reg_writew(disk, DP_CFG(queue_size), 8 << i);
        dp_reg_writew(disk, DP_CFG(queue_msix_vector), i);
        for (unsigned j = 0; j < 3; j++) {
            size_t reg = DP_CFG(queue_desc_lo) + 8 * j;

            dp_reg_writel(disk, reg + 4, 0x10 * i + j);
            dp_reg_writel(disk, reg, 0x100000 * (i + 1) + 0x1000 * j);
        }
    }
}

static void check_queues(DpDisk *disk)
{
    for (unsigned i = 0; i < QUEUES; i++) {
        select_queue(disk, i);
        g_assert_cmpuint(dp_reg_readw(disk, DP_CFG(queue_size)), ==, 8 << i);
        g_assert_cmpuint(dp_reg_readw(disk, DP_CFG(queue_msix_vector)), ==, i);
        g_assert_cmpuint(dp_reg_readw(disk, DP_CFG(queue_enable)), ==, 0);
        for (unsigned j = 0; j < 3; j++) {
            size_t reg = DP_CFG(queue_desc_lo) + 8 * j;

            g_assert_cmphex(dp_reg_readl(disk, reg), ==,
                            0x100000 * (i + 1) + 0x1000 * j);
            g_assert_cmphex(dp_reg_readl(disk, reg + 4), ==, 0x10 * i + j);
        }
    }
}

/*
 * covers: PCI-3, PCI-4, PCI-20, PCI-21, PCI-22, PCI-24, PCI-25, BLKC-9, RST-9,
 * IRQ-11, ROBC-11: registers of four queues, and of some that are not there
 */
static void test_queue_registers(DpDisk *disk)
{
    static const uint16_t nowhere[] = { QUEUES, QUEUES + 1, 64, 1023 };

    g_assert_cmpuint(dp_reg_readw(disk, DP_CFG(num_queues)), ==, QUEUES);
    for (unsigned round = 0; round < 3; round++) {
        dp_reg_writew(disk, DP_REG(queue_reset), round == 1);
        dp_disk_reset(disk);
        for (unsigned i = 0; i < QUEUES; i++) {
            check_reset_queue(disk, i);
        }
        write_queues(disk);
        check_queues(disk);
        for (unsigned i = 0; i < ARRAY_SIZE(nowhere); i++) {
            check_no_queue(disk, nowhere[i]);
        }
        check_queues(disk);
        dp_disk_start(disk, DP_F_ALL);
        dp_assert_works(disk);
    }
}

/* covers: PCI-26, ROBC-8: queue_enable of a queue that runs */
static void test_queue_enable(DpDisk *disk)
{
    static const uint16_t bad[] = { 0, 2, 0xffff };

    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        g_assert_cmpuint(dp_reg_readw(disk, DP_CFG(queue_enable)), ==, 1);
        dp_assert_works(disk);
        dp_reg_writew(disk, DP_CFG(queue_enable), bad[i]);
        g_assert_cmpuint(dp_reg_readw(disk, DP_CFG(queue_enable)), ==, 1);
        dp_assert_broken(disk);
        dp_disk_start(disk, DP_F_ALL);
        dp_assert_works(disk);
    }
}

/*
 * covers: ROBC-10: other addresses for a queue that runs; it goes on where it
 * is.  Enabling it once more may break it, but nothing beyond a reset.
 */
static void test_queue_moved(DpDisk *disk)
{
    static const uint32_t places[] = { 0, 0x1000, 0x3000000, 0xfffff000 };
    DpVm *vm = disk->vm;

    for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
        for (unsigned j = 0; j < 3; j++) {
            dp_reg_writel(disk, DP_CFG(queue_desc_lo) + 8 * j, places[i]);
            dp_assert_works(disk);
        }
        dp_assert_as_asked(disk);
        dp_reg_writew(disk, DP_CFG(queue_enable), 1);
        dp_kick_always(disk);
        dp_stop(vm);
        dp_cont(vm);
        dp_disk_start(disk, DP_F_ALL);
        dp_assert_works(disk);
    }
}

/* A queue that was reset is kicked; nothing comes of it, ever. */
static void check_stays_reset(DpDisk *disk, bool pause)
{
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_OUT, 200, 512);
    DpVm *vm = disk->vm;

    g_assert_cmpuint(dp_reg_readw(disk, DP_CFG(queue_enable)), ==, 0);
    dp_irq(disk);
    dp_req_fill(disk, req, 99);
    dp_submit(disk, req);
    dp_expose(disk);
    dp_kick_always(disk);
    dp_resize(disk->vm, NULL, 2 * DP_IMAGE_SIZE);
    dp_wait_config_irq(disk);
    if (pause) {
        dp_stop(vm);
        dp_cont(vm);
    }
    g_assert_cmphex(dp_status(disk), ==, DP_S_LIVE);
    g_assert_false(dp_irq(disk));
    g_assert_cmpuint(dp_reap(disk), ==, 0);
    dp_disk_reset(disk);
    g_assert_cmpuint(dp_reg_readw(disk, DP_REG(queue_reset)), ==, 0);
    dp_req_free(disk, req);
}

/* covers: RST-4, RST-5, RST-9, RST-12: a queue that never comes back */
static void test_queue_stays_reset(DpDisk *disk)
{
    for (unsigned i = 0; i < 4; i++) {
        g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, 200, 512, i), ==, OK);
        dp_reg_writew(disk, DP_REG(queue_reset), 1);
        check_stays_reset(disk, i % 2);
        dp_disk_start(disk, DP_F_ALL);
        g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_IN, 200, 512, i), ==, OK);
        dp_resize(disk->vm, NULL, DP_IMAGE_SIZE);
    }
    dp_assert_works(disk);
}

/* --- writes that must not count -------------------------------------- */

static void dump_common(DpDisk *disk, uint16_t *buf)
{
    for (unsigned i = 0; i < 32; i++) {
        buf[i] = dp_reg_readw(disk, 2 * i);
    }
}

static void check_common(DpDisk *disk, const uint16_t *want)
{
    uint16_t got[32];

    dump_common(disk, got);
    for (unsigned i = 0; i < 32; i++) {
        if (got[i] != want[i]) {
            g_error("register %u reads 0x%x, not 0x%x", 2 * i, got[i],
                    want[i]);
        }
    }
}

/*
 * covers: ROBC-14, ROBC-19: read-only registers are written, and others in the
 * midst; each is read in each width
 */
static void test_bad_writes(DpDisk *disk)
{
    static const size_t read_only[] = {
        DP_CFG(device_feature), DP_CFG(num_queues), DP_CFG(queue_notify_off),
    };
    uint16_t before[32];

    dump_common(disk, before);
    for (unsigned i = 0; i < ARRAY_SIZE(read_only); i++) {
        dp_reg_writew(disk, read_only[i], 0x5555);
        check_common(disk, before);
    }
    dp_reg_writel(disk, DP_CFG(device_feature), 0xffffffff);
    dp_reg_writeb(disk, DP_CFG(config_generation), 77);
    check_common(disk, before);
    for (unsigned i = 1; i < 64; i += 2) {
        dp_reg_writeb(disk, i, 0xff);
        check_common(disk, before);
        dp_reg_readb(disk, i);
        dp_reg_readw(disk, i);
        dp_reg_readl(disk, i);
    }
    for (unsigned i = 64; i < 256; i += 3) {
        dp_reg_writel(disk, i, 0xffffffff);
    }
    check_common(disk, before);
    dp_assert_works(disk);
}

/* --- vectors --------------------------------------------------------- */

#define VECTORS 8

static void check_vector(DpDisk *disk, size_t reg, uint16_t vector,
                         uint16_t want)
{
    dp_reg_writew(disk, reg, vector);
    g_assert_cmphex(dp_reg_readw(disk, reg), ==, want);
}

static void check_vectors(DpDisk *disk, size_t reg)
{
    static const uint16_t bad[] = { VECTORS, VECTORS + 1, 2048, 0xfffe };

    for (unsigned i = 0; i < VECTORS; i++) {
        check_vector(disk, reg, i, i);
        check_vector(disk, reg, NO_VECTOR, NO_VECTOR);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        check_vector(disk, reg, 1, 1);
        check_vector(disk, reg, bad[i], NO_VECTOR);
    }
    check_vector(disk, reg, VECTORS - 1, VECTORS - 1);
}

/*
 * covers: IRQ-6, IRQ-7, IRQ-8, IRQ-9, IRQ-10, IRQ-11, IRQ-12, IRQ-13, ROBC-13:
 * everything mapped to every vector and to none, before and while it runs
 */
static void test_vectors(DpDisk *disk)
{
    g_assert_cmpuint(qpci_msix_table_size(disk->pci->pdev), ==, VECTORS);
    for (unsigned live = 0; live < 2; live++) {
        if (!live) {
            dp_disk_reset(disk);
        }
        check_vectors(disk, DP_CFG(msix_config));
        for (unsigned i = 0; i < QUEUES; i++) {
            select_queue(disk, i);
            check_vectors(disk, DP_CFG(queue_msix_vector));
        }
        dp_disk_reset(disk);
        g_assert_cmphex(dp_reg_readw(disk, DP_CFG(msix_config)), ==, NO_VECTOR);
        for (unsigned i = 0; i < QUEUES; i++) {
            check_reset_queue(disk, i);
        }
        dp_disk_start(disk, DP_F_ALL);
        dp_assert_works(disk);
    }
}

/*
 * covers: IRQ-1, IRQ-2, IRQ-3, IRQ-4, IRQ-5, IRQ-14, IRQ-19: vectors change
 * while requests run; without one nothing is sent, with another it is sent
 * there
 */
static void test_remap(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    size_t reg = DP_CFG(queue_msix_vector);
    uint16_t queue = dp_reg_readw(disk, reg);
    uint16_t config = dp_reg_readw(disk, DP_CFG(msix_config));

    g_assert_cmpuint(queue, !=, config);
    for (unsigned i = 0; i < 4; i++) {
        dp_assert_works(disk);
        check_vector(disk, reg, NO_VECTOR, NO_VECTOR);
        run_polled(disk);
        dp_stop(vm);
        dp_cont(vm);
        g_assert_false(dp_irq(disk));

        /* The queue's interrupt comes by the vector of the configuration */
        dp_config_irq(disk);
        check_vector(disk, reg, config, config);
        run_polled(disk);
        dp_wait_config_irq(disk);
        g_assert_false(dp_irq(disk));

        check_vector(disk, reg, queue, queue);
        dp_config_irq(disk);
        dp_resize(disk->vm, NULL, DP_IMAGE_SIZE + DP_SECTOR * (i + 1));
        dp_wait_config_irq(disk);
        g_assert_cmphex(read_isr(disk) & ISR_CONFIG, ==, ISR_CONFIG);
        check_vector(disk, DP_CFG(msix_config), NO_VECTOR, NO_VECTOR);
        dp_resize(disk->vm, NULL, DP_IMAGE_SIZE);
        while (qvirtio_config_readq(disk->vdev, 0) != DP_CAPACITY) {
            /* the device has not noticed yet */
        }
        dp_assert_works(disk);
        g_assert_false(dp_config_irq(disk));
        check_vector(disk, DP_CFG(msix_config), config, config);
    }
}

/* --- the ISR and INTx ------------------------------------------------ */

static bool intx_status(DpDisk *disk)
{
    return qpci_config_readw(disk->pci->pdev, PCI_STATUS) &
           PCI_STATUS_INTERRUPT;
}

static void wait_intx(DpDisk *disk)
{
    gint64 deadline = dp_deadline();

    while (!intx_status(disk)) {
        dp_check_deadline(deadline, "INTx");
    }
}

/*
 * covers: IRQ-14, IRQ-15, IRQ-16, IRQ-17, CFG-3: what the ISR and the PCI
 * status say of a request and of a resize, and that a read clears both
 */
static void test_isr(DpDisk *disk)
{
    disk->no_msix = true;
    dp_disk_start(disk, DP_F_ALL);
    for (unsigned i = 0; i < 5; i++) {
        uint8_t generation = dp_reg_readb(disk, DP_CFG(config_generation));

        g_assert_false(intx_status(disk));
        g_assert_cmphex(read_isr(disk), ==, 0);
        run_polled(disk);
        wait_intx(disk);
        g_assert_cmphex(read_isr(disk), ==, ISR_QUEUE);
        g_assert_false(intx_status(disk));
        g_assert_cmphex(read_isr(disk), ==, 0);

        dp_resize(disk->vm, NULL, DP_IMAGE_SIZE + DP_SECTOR * (i + 1));
        wait_intx(disk);
        g_assert_cmphex(read_isr(disk) & ISR_CONFIG, ==, ISR_CONFIG);
        g_assert_false(intx_status(disk));
        g_assert_cmpuint(dp_reg_readb(disk, DP_CFG(config_generation)), !=,
                         generation);
    }
}

/* covers: IRQ-18: no event is lost to a driver that reads the ISR under load */
static void test_isr_load(DpDisk *disk)
{
    DpLoad *load;

    disk->no_msix = true;
    dp_disk_start(disk, DP_F_ALL);
    load = dp_load_new(disk, 8, 64);
    dp_load_run(load, 2000);
    dp_load_finish(load);
}

/* --- the legacy interface -------------------------------------------- */

#define LEG_BASE 20             /* of the configuration, without MSI-X */
#define LEG_BASE_MSIX 24
#define LEG_WCE 32

static DpDisk *legacy_disk(const DpMode *mode)
{
    DpVm *vm = dp_vm_file(mode, DP_IMAGE_SIZE, ",disable-modern=on");

    return dp_disk_probe(vm, "d0", DP_SLOT);
}

static uint32_t leg_readl(DpDisk *disk, unsigned offset)
{
    return qpci_io_readl(disk->pci->pdev, disk->pci->bar, offset);
}

static uint16_t leg_readw(DpDisk *disk, unsigned offset)
{
    return qpci_io_readw(disk->pci->pdev, disk->pci->bar, offset);
}

static uint8_t leg_readb(DpDisk *disk, unsigned offset)
{
    return qpci_io_readb(disk->pci->pdev, disk->pci->bar, offset);
}

/* The capacity at @base, read in each width */
static void check_leg_capacity(DpDisk *disk, unsigned base)
{
    for (unsigned i = 0; i < 8; i++) {
        g_assert_cmphex(leg_readb(disk, base + i), ==,
                        (uint8_t)((uint64_t)DP_CAPACITY >> (8 * i)));
    }
    for (unsigned i = 0; i < 8; i += 2) {
        g_assert_cmphex(leg_readw(disk, base + i), ==,
                        (uint16_t)((uint64_t)DP_CAPACITY >> (8 * i)));
    }
    g_assert_cmphex(leg_readl(disk, base), ==, DP_CAPACITY);
    g_assert_cmphex(leg_readl(disk, base + 4), ==, 0);
}

/*
 * covers: LEG-5, LEG-9, LEG-10, LEG-11, ZONE-2: registers of BAR0
 */
static void test_legacy_registers(const DpMode *mode)
{
    DpDisk *disk = legacy_disk(mode);
    QPCIDevice *pdev = disk->pci->pdev;
    uint32_t features = leg_readl(disk, VIRTIO_PCI_HOST_FEATURES);
    uint16_t size;

    g_assert_cmphex(features & DP_BIT(VIRTIO_BLK_F_ZONED), ==, 0);
    for (unsigned round = 0; round < 2; round++) {
        dp_disk_start(disk, DP_F_ALL);
        g_assert_cmphex(leg_readl(disk, VIRTIO_PCI_GUEST_FEATURES), ==,
                        (uint32_t)disk->features);
        g_assert_cmphex(leg_readb(disk, VIRTIO_PCI_STATUS), ==,
                        DP_S_DRIVER | VIRTIO_CONFIG_S_DRIVER_OK);
        g_assert_cmphex(leg_readl(disk, VIRTIO_PCI_QUEUE_PFN), ==,
                        disk->vq->desc >> 12);
        size = leg_readw(disk, VIRTIO_PCI_QUEUE_NUM);
        g_assert_cmpuint(size, ==, disk->num);
        qpci_io_writew(pdev, disk->pci->bar, VIRTIO_PCI_QUEUE_NUM, size / 2);
        g_assert_cmpuint(leg_readw(disk, VIRTIO_PCI_QUEUE_NUM), ==, size);
        qpci_io_writew(pdev, disk->pci->bar, VIRTIO_PCI_QUEUE_SEL, 5);
        g_assert_cmpuint(leg_readw(disk, VIRTIO_PCI_QUEUE_NUM), ==, 0);
        qpci_io_writew(pdev, disk->pci->bar, VIRTIO_PCI_QUEUE_SEL, 0);
        g_assert_cmpuint(leg_readw(disk, VIRTIO_PCI_QUEUE_NUM), ==, size);
        check_leg_capacity(disk, LEG_BASE_MSIX);
        dp_assert_works(disk);
        qpci_msix_disable(pdev);
        check_leg_capacity(disk, LEG_BASE);
        qpci_msix_enable(pdev);
        check_leg_capacity(disk, LEG_BASE_MSIX);
    }
    dp_vm_quit(disk->vm);
    dp_disk_free(disk);
}

static uint8_t leg_wce(DpDisk *disk)
{
    return leg_readb(disk, LEG_BASE_MSIX + LEG_WCE);
}

static void set_leg_wce(DpDisk *disk, uint8_t value)
{
    qpci_io_writeb(disk->pci->pdev, disk->pci->bar, LEG_BASE_MSIX + LEG_WCE,
                   value);
}

/* Write features and status as a driver does; the mode must stay @wce. */
static void check_leg_wce(DpDisk *disk, uint64_t features, uint8_t wce)
{
    static const uint8_t status[] = { 1, DP_S_DRIVER };

    dp_disk_reset(disk);
    set_leg_wce(disk, wce);
    g_assert_cmpuint(leg_wce(disk), ==, wce);
    for (unsigned i = 0; i < ARRAY_SIZE(status); i++) {
        disk->vdev->bus->set_status(disk->vdev, status[i]);
        g_assert_cmpuint(leg_wce(disk), ==, wce);
    }
    disk->vdev->bus->set_features(disk->vdev, features & ~F_FLUSH);
    g_assert_cmpuint(leg_wce(disk), ==, wce);
    disk->vdev->bus->set_features(disk->vdev, features);
    g_assert_cmpuint(leg_wce(disk), ==, wce);
    qvirtio_set_driver_ok(disk->vdev);
    if (!(features & F_CONFIG_WCE)) {
        wce = !!(features & F_FLUSH);
    }
    g_assert_cmpuint(leg_wce(disk), ==, wce);
}

/* covers: LEG-2, LEG-18, LEG-19: who alters the cache mode, and who does not */
static void test_legacy_cache(const DpMode *mode)
{
    DpDisk *disk = legacy_disk(mode);
    uint64_t offer = qvirtio_get_features(disk->vdev) & ~QVIRTIO_F_BAD_FEATURE;

    qpci_msix_enable(disk->pci->pdev);
    for (unsigned wce = 0; wce < 2; wce++) {
        check_leg_wce(disk, offer, wce);
        check_leg_wce(disk, offer & ~F_FLUSH, wce);
        check_leg_wce(disk, offer & ~F_CONFIG_WCE, wce);
        check_leg_wce(disk, offer & ~(F_CONFIG_WCE | F_FLUSH), wce);
    }
    dp_vm_quit(disk->vm);
    dp_disk_free(disk);
}

/* covers: LEG-3: requests before DRIVER_OK, and DRIVER_OK in their midst */
static void test_legacy_early(const DpMode *mode)
{
    DpDisk *disk = legacy_disk(mode);

    for (unsigned i = 0; i < 3; i++) {
        dp_disk_init(disk, DP_F_ALL);
        for (unsigned j = 0; j < 5; j++) {
            dp_assert_works(disk);
        }
        g_assert_cmphex(dp_status(disk), ==, DP_S_DRIVER);
        qvirtio_set_driver_ok(disk->vdev);
        for (unsigned j = 0; j < 5; j++) {
            dp_assert_works(disk);
        }
        dp_assert_mode(disk->vm, mode);
    }
    dp_vm_quit(disk->vm);
    dp_disk_free(disk);
}

/* covers: LEG-17: who accepts all that is offered gets no feature at all */
static void test_legacy_bit_30(const DpMode *mode)
{
    DpDisk *disk = legacy_disk(mode);
    uint32_t offer = leg_readl(disk, VIRTIO_PCI_HOST_FEATURES);

    dp_disk_reset(disk);
    disk->vdev->bus->set_status(disk->vdev, DP_S_DRIVER);
    qpci_io_writel(disk->pci->pdev, disk->pci->bar, VIRTIO_PCI_GUEST_FEATURES,
                   offer | QVIRTIO_F_BAD_FEATURE);
    g_assert_cmphex(leg_readl(disk, VIRTIO_PCI_GUEST_FEATURES), ==, 0);
    dp_disk_start(disk, DP_F_ALL);
    dp_assert_works(disk);
    dp_vm_quit(disk->vm);
    dp_disk_free(disk);
}

/* What QEMU says that the driver has accepted */
static char *features_by_qmp(DpVm *vm)
{
    QDict *rsp = dp_qmp(vm, NULL, "{'execute': 'x-query-virtio-status',"
                        " 'arguments': { 'path':"
                        " '/machine/peripheral/d0/virtio-backend' }}");
    QDict *status = qdict_get_qdict(rsp, "return");
    GString *text;
    char *copy;

    g_assert_nonnull(status);
    text = qobject_to_json(qdict_get(status, "guest-features"));
    copy = g_strdup(text->str);
    g_string_free(text, true);
    qobject_unref(rsp);
    return copy;
}

/*
 * covers: LEG-1, LEG-12, LEG-15: a legacy driver after a modern one; nothing of
 * what only that one can accept is left
 */
static void test_legacy_after_modern(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    QPCIDevice *pdev = disk->pci->pdev;
    QPCIBar bar0 = qpci_iomap(pdev, 0, NULL);
    g_autofree char *modern = features_by_qmp(vm);
    g_autofree char *legacy = NULL;
    uint32_t offer;

    g_assert_nonnull(strstr(modern, "VIRTIO_F_VERSION_1"));
    g_assert_nonnull(strstr(modern, "VIRTIO_F_RING_RESET"));
    qpci_io_writeb(pdev, bar0, VIRTIO_PCI_STATUS, 0);
    qpci_io_writeb(pdev, bar0, VIRTIO_PCI_STATUS, DP_S_DRIVER);
    offer = qpci_io_readl(pdev, bar0, VIRTIO_PCI_HOST_FEATURES);
    g_assert_cmphex(offer & DP_BIT(VIRTIO_F_ANY_LAYOUT), !=, 0);
    qpci_io_writel(pdev, bar0, VIRTIO_PCI_GUEST_FEATURES,
                   offer & ~QVIRTIO_F_BAD_FEATURE);
    legacy = features_by_qmp(vm);
    g_assert_nonnull(strstr(legacy, "VIRTIO_RING_F_EVENT_IDX"));
    g_assert_null(strstr(legacy, "VIRTIO_F_VERSION_1"));
    g_assert_null(strstr(legacy, "VIRTIO_F_RING_RESET"));
    dp_disk_start(disk, DP_F_ALL);
    dp_assert_works(disk);
}

int main(int argc, char **argv)
{
    static const DpTest tests[] = {
        { "ids", .own_vm = test_ids },
        { "capabilities", .own_vm = test_capabilities },
        { "notify-address", .own_vm = test_notify_address },
        { "window", test_window },
        { "window-elsewhere", test_window_elsewhere },
        { "queue-registers", test_queue_registers,
          .props = ",num-queues=4,vectors=8" },
        { "queue-enable", test_queue_enable },
        { "queue-moved", test_queue_moved },
        { "queue-stays-reset", test_queue_stays_reset },
        { "bad-writes", test_bad_writes },
        { "vectors", test_vectors, .props = ",num-queues=4,vectors=8" },
        { "remap", test_remap },
        { "isr", test_isr, .idle = true },
        { "isr-load", test_isr_load, .idle = true },
        { "legacy-registers", .own_vm = test_legacy_registers },
        { "legacy-cache", .own_vm = test_legacy_cache },
        { "legacy-early", .own_vm = test_legacy_early },
        { "legacy-bit-30", .own_vm = test_legacy_bit_30 },
        { "legacy-after-modern", test_legacy_after_modern },
    };

    g_test_init(&argc, &argv, NULL);
    dp_add_table("pci", tests, ARRAY_SIZE(tests), true);
    return g_test_run();
}
