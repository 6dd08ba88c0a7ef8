/*
 * qtests of virtio-blk's data plane: behind an Intel IOMMU
 *
 * Plays the driver of the IOMMU, too: writes its tables by hand, and gives the
 * disk no address that is one of the guest's memory.  What the disk may reach
 * is a window of pages.  They follow each other there and run backwards in
 * memory, each beside a spare page that holds a pattern.  Code that takes
 * neighbours in the window for neighbours in memory, or that writes to a page
 * which the window has no more, spoils a spare page.  All that is longer than a
 * word lies across the end of a page.
 *
 * The ring has one request in flight at a time, and is polled.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qobject/qdict.h"
#include "standard-headers/linux/pci_regs.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "virtio-blk-dataplane-common.h"

#define PAGE 4096ull
#define IMAGE_SIZE (1024 * 1024)
#define CANARY 0xa5
#define NUM 16                  /* queue size */

/* The window, in pages */
#define PAGES 16
#define PAGE_UNMAPPED 12
#define PAGE_OTHER 13
#define FIRST_BUFFER_PAGE 4
#define LAST_BUFFER_PAGE 11
#define IOVA 0x1000000000ull

/* What lies where in the window */
#define DESC 0xf80
#define AVAIL (PAGE + 0xff0)
#define USED (2 * PAGE + 0xfb8)
#define HEADER (4 * PAGE + 0xff8)
#define STATUS (5 * PAGE + 0x800)
#define TABLE (6 * PAGE + 0xfe0)
#define DATA (8 * PAGE + 0x200)
#define DATA_BYTES 12288

/* Registers of the IOMMU, and what is in them */
#define REGS 0xfed90000ull
#define REG_GCMD 0x18
#define REG_GSTS 0x1c
#define REG_RTADDR 0x20
#define REG_CCMD 0x28
#define REG_FSTS 0x34
#define REG_IQH 0x80
#define REG_IQT 0x88
#define REG_IQA 0x90
#define REG_IVA 0xf0
#define REG_IOTLB 0xf8
#define REG_FRCD 0x220

#define GCMD_TE (1u << 31)
#define GCMD_SRTP (1u << 30)
#define GCMD_QIE (1u << 26)
#define FSTS_IQE (1u << 4)
#define FAULT_WRITE 5
#define FAULT_READ 6
#define ANY_REASON 0

#define PTE_R 1
#define PTE_W 2
#define PTE_RW 3
#define DOMAIN 7

/* The disk is function 0 below a root port */
#define PORT_DEVFN (3 << 3)
#define DISK_BUS 1
#define DISK_SID (DISK_BUS << 8)

/* ACPI's hot plug registers of the Q35 machine */
#define HP_EJECT 0xcc8
#define HP_BUS 0xcd0

typedef struct Variant {
    const char *name;
    const char *iommu;          /* properties, starting with a comma */
    const char *disk;
    unsigned levels;            /* of page tables */
    bool plane;
    bool packed;
    bool queued;                /* invalidation queue; else registers */
    bool device_iotlb;
} Variant;

static const Variant variants[] = {
    {
        .name = "split", .levels = 3, .plane = true,
        .iommu = ",aw-bits=39", .disk = "",
    },
    {
        .name = "caching-mode", .levels = 4, .plane = true, .queued = true,
        .iommu = ",caching-mode=on", .disk = ",in_order=on",
    },
    {
        .name = "packed", .levels = 4, .plane = true, .queued = true,
        .packed = true, .iommu = "", .disk = ",packed=on",
    },
    {
        .name = "ats", .levels = 3, .plane = true, .queued = true,
        .device_iotlb = true, .iommu = ",device-iotlb=on", .disk = ",ats=on",
    },
    {
        .name = "off", .levels = 4, .queued = true,
        .iommu = "", .disk = ",x-data-plane=off",
    },
};

typedef enum Granularity { GLOBAL = 1, BY_DOMAIN, BY_PAGE } Granularity;

typedef struct Guest {
    const Variant *variant;
    DpVm *vm;
    QTestState *qts;
    QVirtioPCIDevice *pci;
    QVirtioDevice *vdev;
    QVirtQueuePCI vqpci;
    uint64_t features;

    uint64_t root;
    uint64_t context;
    uint64_t tables[4];         /* one of each level, the last for pages */
    uint64_t inv_queue;
    unsigned inv_tail;
    uint32_t gcmd;

    uint64_t frames;            /* two for each page of the window */
    uint64_t base;              /* where the disk sees the window */
    uint64_t page[PAGES];       /* and where it is */

    unsigned next;              /* descriptor */
    bool wrap;
    uint16_t avail_idx;
    unsigned used_slot;         /* packed: where the used one will stand */
    bool used_wrap;
} Guest;

/* A request, by offsets in the window */
typedef struct Req {
    uint32_t type;
    uint64_t header;
    uint64_t data;
    uint32_t len;
    uint64_t status;
    uint64_t table;             /* 0: direct */
} Req;

/* The window */

/*
 * An element of the used ring lies across the end of the page, too.  QEMU's
 * own path spoils the next page in memory then.
 */
static uint64_t used_area(Guest *g)
{
    return g->variant->plane ? USED : USED + 4;
}

static uint64_t spare(Guest *g, unsigned i)
{
    return g->page[i] ^ PAGE;
}

static uint64_t at(Guest *g, uint64_t offset)
{
    return g->page[offset / PAGE] + offset % PAGE;
}

static void put(Guest *g, uint64_t offset, const void *buf, size_t len)
{
    const uint8_t *bytes = buf;

    while (len) {
        size_t part = MIN(len, PAGE - offset % PAGE);

        qtest_memwrite(g->qts, at(g, offset), bytes, part);
        offset += part;
        bytes += part;
        len -= part;
    }
}

static void get(Guest *g, uint64_t offset, void *buf, size_t len)
{
    uint8_t *bytes = buf;

    while (len) {
        size_t part = MIN(len, PAGE - offset % PAGE);

        qtest_memread(g->qts, at(g, offset), bytes, part);
        offset += part;
        bytes += part;
        len -= part;
    }
}

static void put16(Guest *g, uint64_t offset, uint16_t value)
{
    uint16_t le = cpu_to_le16(value);

    put(g, offset, &le, sizeof(le));
}

static uint16_t get16(Guest *g, uint64_t offset)
{
    uint16_t le;

    get(g, offset, &le, sizeof(le));
    return le16_to_cpu(le);
}

static uint8_t pattern(uint32_t seed, unsigned i)
{
    return (seed * 31 + i * 7 + i / 251) ^ (i >> 8);
}

static void fill(Guest *g, uint64_t offset, uint32_t len, uint32_t seed)
{
    g_autofree uint8_t *buf = g_malloc(len);

    for (unsigned i = 0; i < len; i++) {
        buf[i] = pattern(seed, i);
    }
    put(g, offset, buf, len);
}

static void assert_filled(Guest *g, uint64_t offset, uint32_t len,
                          uint32_t seed)
{
    g_autofree uint8_t *buf = g_malloc(len);

    get(g, offset, buf, len);
    for (unsigned i = 0; i < len; i++) {
        if (buf[i] != pattern(seed, i)) {
            g_error("byte %u at 0x%" PRIx64 " is wrong", i, offset);
        }
    }
}

static void assert_canary(Guest *g, uint64_t addr)
{
    uint8_t buf[PAGE];

    qtest_memread(g->qts, addr, buf, PAGE);
    for (unsigned i = 0; i < PAGE; i++) {
        if (buf[i] != CANARY) {
            g_error("a page was written to that the disk has not, at 0x%"
                    PRIx64, addr + i);
        }
    }
}

static void assert_spares(Guest *g)
{
    for (unsigned i = 0; i < PAGES; i++) {
        assert_canary(g, spare(g, i));
    }
}

/* The IOMMU */

static uint64_t zero_page(Guest *g)
{
    uint64_t addr = guest_alloc(&g->vm->alloc, PAGE);

    g_assert_cmpuint(addr % PAGE, ==, 0);
    qtest_memset(g->qts, addr, 0, PAGE);
    return addr;
}

static void gcmd(Guest *g, uint32_t once)
{
    uint32_t status;

    qtest_writel(g->qts, REGS + REG_GCMD, g->gcmd | once);
    status = qtest_readl(g->qts, REGS + REG_GSTS);
    g_assert_cmphex(status & (g->gcmd | once), ==, g->gcmd | once);
    g_assert_cmphex(status & GCMD_TE, ==, g->gcmd & GCMD_TE);
}

static void inv_descriptor(Guest *g, uint64_t lo, uint64_t hi)
{
    uint64_t desc = g->inv_queue + g->inv_tail * 16;

    qtest_writeq(g->qts, desc, lo);
    qtest_writeq(g->qts, desc + 8, hi);
    g->inv_tail = (g->inv_tail + 1) % (PAGE / 16);
    qtest_writeq(g->qts, REGS + REG_IQT, g->inv_tail << 4);
    g_assert_cmphex(qtest_readq(g->qts, REGS + REG_IQH), ==,
                    g->inv_tail << 4);
    g_assert_cmphex(qtest_readl(g->qts, REGS + REG_FSTS) & FSTS_IQE, ==, 0);
}

static void invalidate_context(Guest *g)
{
    if (g->variant->queued) {
        inv_descriptor(g, 1 | GLOBAL << 4, 0);
    } else {
        qtest_writeq(g->qts, REGS + REG_CCMD,
                     1ull << 63 | (uint64_t)GLOBAL << 61);
    }
}

/* @order: log2 of the number of pages; counts for BY_PAGE only */
static void invalidate(Guest *g, Granularity granularity, uint64_t addr,
                       unsigned order)
{
    if (!g->variant->queued) {
        qtest_writeq(g->qts, REGS + REG_IVA, addr | order);
        qtest_writeq(g->qts, REGS + REG_IOTLB, 1ull << 63 |
                     (uint64_t)granularity << 60 | (uint64_t)DOMAIN << 32);
        g_assert_cmphex(qtest_readq(g->qts, REGS + REG_IOTLB) >> 63, ==, 0);
        return;
    }
    inv_descriptor(g, 2 | granularity << 4 | DOMAIN << 16, addr | order);
    if (g->variant->device_iotlb) {
        /* A page, or all there is */
        inv_descriptor(g, 3 | (uint64_t)DISK_SID << 32,
                       granularity == BY_PAGE && !order
                       ? addr : 0x7ffffffffffff001ull);
    }
}

static void set_pte(Guest *g, unsigned i, uint64_t pte)
{
    qtest_writeq(g->qts, g->tables[g->variant->levels - 1] + i * 8, pte);
}

/* @perm: 0: not mapped */
static void map_page(Guest *g, unsigned i, unsigned perm)
{
    set_pte(g, i, perm ? g->page[i] | perm : 0);
    invalidate(g, BY_PAGE, IOVA + i * PAGE, 0);
}

static void write_tables(Guest *g)
{
    unsigned levels = g->variant->levels;

    qtest_memset(g->qts, g->root, 0, PAGE);
    qtest_memset(g->qts, g->context, 0, PAGE);
    qtest_writeq(g->qts, g->root + DISK_BUS * 16, g->context | 1);
    qtest_writeq(g->qts, g->context, g->tables[0] | 1);
    qtest_writeq(g->qts, g->context + 8, DOMAIN << 8 | (levels - 2));
    for (unsigned i = 0; i + 1 < levels; i++) {
        unsigned shift = 12 + 9 * (levels - 1 - i);

        qtest_writeq(g->qts, g->tables[i] + 8 * ((IOVA >> shift) & 0x1ff),
                     g->tables[i + 1] | PTE_RW);
    }
    for (unsigned i = 0; i < PAGES; i++) {
        set_pte(g, i, i == PAGE_UNMAPPED ? 0 : g->page[i] | PTE_RW);
    }
}

/* Translates from here on, and the window is where the disk has not looked */
static void iommu_on(Guest *g)
{
    g->base = IOVA;
    for (unsigned i = 0; i < PAGES; i++) {
        g->page[i] = g->frames + (PAGES - 1 - i) * 2 * PAGE;
        qtest_memset(g->qts, g->page[i], 0, PAGE);
        qtest_memset(g->qts, spare(g, i), CANARY, PAGE);
    }
    write_tables(g);
    qtest_writeq(g->qts, REGS + REG_RTADDR, g->root);
    gcmd(g, GCMD_SRTP);
    if (g->variant->queued && !(g->gcmd & GCMD_QIE)) {
        qtest_writeq(g->qts, REGS + REG_IQA, g->inv_queue);
        g->inv_tail = 0;
        g->gcmd |= GCMD_QIE;
        gcmd(g, 0);
    }
    invalidate_context(g);
    invalidate(g, GLOBAL, 0, 0);
    g->gcmd |= GCMD_TE;
    gcmd(g, 0);
}

/* The disk is given physical addresses */
static void use_physical(Guest *g)
{
    g->base = g->frames;
    for (unsigned i = 0; i < PAGES; i++) {
        g->page[i] = g->frames + i * PAGE;
        qtest_memset(g->qts, g->page[i], 0, PAGE);
    }
}

static void iommu_off(Guest *g)
{
    g->gcmd &= ~GCMD_TE;
    gcmd(g, 0);
    use_physical(g);
}

/* The last fault was the disk's, at this page of the window */
static void assert_fault(Guest *g, unsigned page, unsigned reason)
{
    uint64_t lo = qtest_readq(g->qts, REGS + REG_FRCD);
    uint64_t hi = qtest_readq(g->qts, REGS + REG_FRCD + 8);

    g_assert_cmphex(hi >> 63, ==, 1);
    g_assert_cmphex(lo, ==, g->base + page * PAGE);
    g_assert_cmphex(hi & 0xffff, ==, DISK_SID);
    if (reason != ANY_REASON) {
        g_assert_cmpuint((hi >> 32) & 0xff, ==, reason);
    }
    qtest_writel(g->qts, REGS + REG_FRCD + 12, 1u << 31);
    g_assert_cmphex(qtest_readq(g->qts, REGS + REG_FRCD + 8) >> 63, ==, 0);
}

/* The disk */

static void common_writew(Guest *g, size_t offset, uint16_t value)
{
    qpci_io_writew(g->pci->pdev, g->pci->bar,
                   g->pci->common_cfg_offset + offset, value);
}

static uint16_t common_readw(Guest *g, size_t offset)
{
    return qpci_io_readw(g->pci->pdev, g->pci->bar,
                         g->pci->common_cfg_offset + offset);
}

static void disk_probe(Guest *g)
{
    QPCIAddress addr = { .devfn = DISK_BUS << 8 };

    dp_open_port(g->vm, PORT_DEVFN, DISK_BUS);
    g->pci = virtio_pci_new(g->vm->bus, &addr);
    g_assert_nonnull(g->pci);
    g->vdev = &g->pci->vdev;
    g_assert_cmpint(g->vdev->device_type, ==, VIRTIO_ID_BLOCK);
    qvirtio_pci_device_enable(g->pci);
}

static void disk_free(Guest *g)
{
    g_free(g->pci->pdev);
    g_free(g->pci);
    g->pci = NULL;
}

static void set_up_queue(Guest *g)
{
    QVirtQueue *vq = &g->vqpci.vq;

    g->vdev->bus->queue_select(g->vdev, 0);
    common_writew(g, offsetof(struct virtio_pci_common_cfg, queue_size), NUM);
    vq->vdev = g->vdev;
    vq->size = NUM;
    vq->desc = g->base + DESC;
    vq->avail = g->base + AVAIL;
    vq->used = g->base + used_area(g);
    g->vdev->bus->set_queue_address(g->vdev, vq);
    g->vqpci.notify_offset = g->pci->notify_cfg_offset +
        g->pci->notify_off_multiplier *
        common_readw(g, offsetof(struct virtio_pci_common_cfg,
                                 queue_notify_off));
    common_writew(g, offsetof(struct virtio_pci_common_cfg, queue_enable), 1);
}

static void clear_ring(Guest *g)
{
    static const uint8_t zero[NUM * 16];

    put(g, DESC, zero, NUM * 16);
    put(g, AVAIL, zero, 6 + NUM * 2);
    put(g, used_area(g), zero, 6 + NUM * 8);
    g->next = 0;
    g->wrap = true;
    g->avail_idx = 0;
}

/* Up to, but without, DRIVER_OK */
static void disk_init(Guest *g)
{
    qvirtio_start_device(g->vdev);
    g->features = qvirtio_get_features(g->vdev) & ~QVIRTIO_F_BAD_FEATURE &
                  ~(1ull << VIRTIO_F_NOTIFY_ON_EMPTY);
    g_assert_cmphex(!(g->features & (1ull << VIRTIO_F_RING_PACKED)), ==,
                    !g->variant->packed);
    qvirtio_set_features(g->vdev, g->features);
    clear_ring(g);
    set_up_queue(g);
}

static void disk_start(Guest *g)
{
    disk_init(g);
    qvirtio_set_driver_ok(g->vdev);
}

static bool needs_reset(Guest *g)
{
    return g->vdev->bus->get_status(g->vdev) & VIRTIO_CONFIG_S_NEEDS_RESET;
}

/* DRIVER_OK, and what follows is that the device needs a reset */
static void start_in_vain(Guest *g)
{
    gint64 deadline = dp_deadline();

    g->vdev->bus->set_status(g->vdev, g->vdev->bus->get_status(g->vdev) |
                             VIRTIO_CONFIG_S_DRIVER_OK);
    while (!needs_reset(g)) {
        dp_check_deadline(deadline, "DEVICE_NEEDS_RESET");
    }
}

/* The ring */

static void put_desc(Guest *g, uint64_t offset, const DpSeg *seg,
                     uint16_t flags, uint16_t next)
{
    struct vring_desc desc = {
        .addr = cpu_to_le64(g->base + seg->addr),
        .len = cpu_to_le32(seg->len),
        .flags = cpu_to_le16(flags),
        .next = cpu_to_le16(next),
    };

    put(g, offset, &desc, sizeof(desc));
}

static void put_packed_desc(Guest *g, unsigned slot, const DpSeg *seg,
                            uint16_t flags)
{
    struct vring_packed_desc desc = {
        .addr = cpu_to_le64(g->base + seg->addr),
        .len = cpu_to_le32(seg->len),
        .id = 0,
    };

    put(g, DESC + slot * 16, &desc, offsetof(struct vring_packed_desc, flags));
    put16(g, DESC + slot * 16 + offsetof(struct vring_packed_desc, flags),
          flags);
}

static void add_packed(Guest *g, const DpSeg *seg, unsigned n)
{
    g->used_slot = g->next;
    g->used_wrap = g->wrap;
    /* The first one's flags last */
    for (int i = n - 1; i >= 0; i--) {
        unsigned slot = (g->next + i) % NUM;
        bool wrap = g->wrap ^ (g->next + i >= NUM);

        put_packed_desc(g, slot, &seg[i], seg[i].flags |
                        (i + 1 < n ? VRING_DESC_F_NEXT : 0) |
                        wrap << VRING_PACKED_DESC_F_AVAIL |
                        !wrap << VRING_PACKED_DESC_F_USED);
    }
    g->wrap ^= g->next + n >= NUM;
    g->next = (g->next + n) % NUM;
}

static void add_split(Guest *g, const DpSeg *seg, unsigned n)
{
    unsigned head = g->next;

    for (unsigned i = 0; i < n; i++) {
        unsigned slot = g->next;

        g->next = (slot + 1) % NUM;
        put_desc(g, DESC + slot * 16, &seg[i], seg[i].flags |
                 (i + 1 < n ? VRING_DESC_F_NEXT : 0), g->next);
    }
    put16(g, AVAIL + 4 + 2 * (g->avail_idx % NUM), head);
    put16(g, AVAIL + 2, ++g->avail_idx);
}

static void add(Guest *g, const DpSeg *seg, unsigned n)
{
    if (g->variant->packed) {
        add_packed(g, seg, n);
    } else {
        add_split(g, seg, n);
    }
}

static void add_indirect(Guest *g, uint64_t table, const DpSeg *seg,
                         unsigned n)
{
    DpSeg whole = { table, n * 16, VRING_DESC_F_INDIRECT };

    for (unsigned i = 0; i < n; i++) {
        if (g->variant->packed) {
            put_desc(g, table + i * 16, &seg[i], 0, seg[i].flags);
        } else {
            put_desc(g, table + i * 16, &seg[i], seg[i].flags |
                     (i + 1 < n ? VRING_DESC_F_NEXT : 0), i + 1);
        }
    }
    add(g, &whole, 1);
}

static bool is_used(Guest *g)
{
    uint16_t flags;

    if (!g->variant->packed) {
        return get16(g, used_area(g) + 2) == g->avail_idx;
    }
    flags = get16(g, DESC + g->used_slot * 16 +
                  offsetof(struct vring_packed_desc, flags));
    return !!(flags & 1 << VRING_PACKED_DESC_F_AVAIL) == g->used_wrap &&
           !!(flags & 1 << VRING_PACKED_DESC_F_USED) == g->used_wrap;
}

static void kick(Guest *g)
{
    g->vdev->bus->virtqueue_kick(g->vdev, &g->vqpci.vq);
}

/* False if the device needs a reset */
static bool wait_used(Guest *g)
{
    gint64 deadline = dp_deadline();

    while (!is_used(g)) {
        if (needs_reset(g)) {
            return false;
        }
        dp_check_deadline(deadline, "a request");
    }
    return true;
}

static void put_req(Guest *g, const Req *req)
{
    struct virtio_blk_outhdr header = { .type = cpu_to_le32(req->type) };
    uint16_t in = req->type == VIRTIO_BLK_T_IN ? VRING_DESC_F_WRITE : 0;
    DpSeg seg[] = {
        { req->header, sizeof(header), 0 },
        { req->data, req->len, in },
        { req->status, 1, VRING_DESC_F_WRITE },
    };

    put(g, req->header, &header, sizeof(header));
    qtest_writeb(g->qts, at(g, req->status), DP_NO_STATUS);
    if (req->table) {
        add_indirect(g, req->table, seg, ARRAY_SIZE(seg));
    } else {
        add(g, seg, ARRAY_SIZE(seg));
    }
}

/* The status, or -1 if the device needs a reset */
static int run(Guest *g, const Req *req)
{
    put_req(g, req);
    kick(g);
    return wait_used(g) ? qtest_readb(g->qts, at(g, req->status)) : -1;
}

static Req request(uint32_t type, bool indirect)
{
    return (Req) {
        .type = type,
        .header = HEADER,
        .data = DATA,
        .len = DATA_BYTES,
        .status = STATUS,
        .table = indirect ? TABLE : 0,
    };
}

static int run_one(Guest *g, uint32_t type, bool indirect)
{
    Req req = request(type, indirect);

    return run(g, &req);
}

/* More than two laps of the ring, with all kinds of access */
static void assert_works(Guest *g)
{
    for (unsigned i = 0; i < 12; i++) {
        uint32_t seed = g_test_rand_int();
        bool indirect = i % 2;

        fill(g, DATA, DATA_BYTES, seed);
        g_assert_cmpint(run_one(g, VIRTIO_BLK_T_OUT, indirect), ==, 0);
        fill(g, DATA, DATA_BYTES, ~seed);
        g_assert_cmpint(run_one(g, VIRTIO_BLK_T_IN, indirect), ==, 0);
        assert_filled(g, DATA, DATA_BYTES, seed);
    }
    if (g->base == IOVA) {
        assert_spares(g);
    }
}

static void assert_serving(Guest *g)
{
    DpInfo info;

    dp_info(g->vm, "d0", &info);
    g_assert_cmpint(info.serving, ==, g->variant->plane);
}

/* The machine */

static Guest *guest_start(const Variant *variant, const char *disk)
{
    g_autofree char *path = dp_image("disk.img", IMAGE_SIZE);
    Guest *g = g_new0(Guest, 1);
    DpVm *vm = g_new0(DpVm, 1);

    g->variant = variant;
    g->vm = vm;
    g->qts = vm->qts = qtest_initf(
        "-M q35 -m 64 -nodefaults -object iothread,id=io0 "
        "-device intel-iommu,intremap=off%s "
        "-blockdev file,node-name=n0,filename=%s "
        "-device pcie-root-port,id=rp0,bus=pcie.0,addr=3.0,chassis=1 "
        "-device virtio-blk-pci,id=d0,bus=rp0,drive=n0,iothread=io0,"
        "disable-legacy=on%s%s", variant->iommu, path, variant->disk, disk);
    pc_alloc_init(&vm->alloc, vm->qts, ALLOC_NO_FLAGS);
    vm->bus = qpci_new_pc(vm->qts, &vm->alloc);
    g->root = zero_page(g);
    g->context = zero_page(g);
    g->inv_queue = zero_page(g);
    for (unsigned i = 0; i < variant->levels; i++) {
        g->tables[i] = zero_page(g);
    }
    g->frames = QEMU_ALIGN_UP(guest_alloc(&vm->alloc,
                                          (2 * PAGES + 1) * PAGE), 2 * PAGE);
    disk_probe(g);
    return g;
}

/* With a disk that works behind the IOMMU */
static Guest *guest_new(const void *opaque)
{
    Guest *g = guest_start(opaque, ",iommu_platform=on");

    iommu_on(g);
    disk_start(g);
    return g;
}

static void guest_quit(Guest *g)
{
    disk_free(g);
    dp_vm_quit(g->vm);
    g_free(g);
}

/* It is the guest's turn to put right what it did, and start the disk anew */
static void recover(Guest *g)
{
    disk_start(g);
    assert_works(g);
    assert_serving(g);
}

/* Tests */

/*
 * covers: PLAT-1, PLAT-3: the three areas of the ring, buffers, indirect
 * tables and the buffers in them
 */
static void test_io(const void *opaque)
{
    Guest *g = guest_new(opaque);
    DpInfo info;

    g_assert_true(g->features & (1ull << VIRTIO_F_IOMMU_PLATFORM));
    assert_works(g);
    assert_serving(g);
    dp_info(g->vm, "d0", &info);
    if (g->variant->plane) {
        g_assert_cmpint(info.reads, ==, 12);
        g_assert_cmpint(info.writes, ==, 12);
    }
    guest_quit(g);
}

/*
 * The page is at another place now.  The request is there for the device to
 * have done with the old one, as it looks at a ring's new place only then.
 */
static void move_page(Guest *g, unsigned i, Granularity granularity)
{
    g_autofree uint8_t *buf = g_malloc(PAGE);
    uint64_t old = g->page[i];

    qtest_memread(g->qts, old, buf, PAGE);
    g->page[i] = spare(g, i);
    qtest_memwrite(g->qts, g->page[i], buf, PAGE);
    set_pte(g, i, g->page[i] | PTE_RW);
    invalidate(g, granularity, IOVA + i * PAGE, 0);
    g_assert_cmpint(run_one(g, VIRTIO_BLK_T_IN, false), ==, 0);
    qtest_memset(g->qts, old, CANARY, PAGE);
}

static void move_pages(const void *opaque, unsigned first, unsigned last)
{
    Guest *g = guest_new(opaque);

    assert_works(g);
    for (Granularity by = GLOBAL; by <= BY_PAGE; by++) {
        for (unsigned i = first; i <= last; i++) {
            move_page(g, i, by);
        }
        assert_works(g);
    }
    assert_serving(g);
    guest_quit(g);
}

/* covers: PLAT-3: an invalidation is followed: buffers */
static void test_buffers_moved(const void *opaque)
{
    move_pages(opaque, FIRST_BUFFER_PAGE, LAST_BUFFER_PAGE);
}

/* covers: PLAT-3: an invalidation is followed: the ring */
static void test_ring_moved(const void *opaque)
{
    move_pages(opaque, 0, FIRST_BUFFER_PAGE - 1);
}

/* covers: PLAT-3, PLAT-5, ROBS-22: what is not mapped is not there */
static void test_unmapped_buffer(const void *opaque)
{
    static const struct {
        uint32_t type;
        unsigned page;
        bool indirect;
        unsigned reason;
    } rows[] = {
        { VIRTIO_BLK_T_OUT, 8, false, FAULT_READ },
        { VIRTIO_BLK_T_OUT, 10, true, FAULT_READ },
        { VIRTIO_BLK_T_IN, 8, false, FAULT_WRITE },
        { VIRTIO_BLK_T_IN, 11, true, FAULT_WRITE },
        { VIRTIO_BLK_T_IN, 4, false, FAULT_READ },
        { VIRTIO_BLK_T_IN, 7, true, FAULT_READ },
    };
    Guest *g = guest_new(opaque);

    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        map_page(g, rows[i].page, 0);
        g_assert_cmpint(run_one(g, rows[i].type, rows[i].indirect), ==, -1);
        assert_fault(g, rows[i].page, rows[i].reason);
        map_page(g, rows[i].page, PTE_RW);
        recover(g);
    }
    guest_quit(g);
}

static Req one_page(uint32_t type)
{
    Req req = request(type, false);

    req.data = PAGE_OTHER * PAGE;
    req.len = PAGE;
    return req;
}

/*
 * covers: PLAT-5: read access is not write access, nor the other way round
 *
 * The forbidden one comes first, as QEMU's IOMMU notes no fault where its
 * cache knows better.
 */
static void test_permissions(const void *opaque)
{
    Req in = one_page(VIRTIO_BLK_T_IN), out = one_page(VIRTIO_BLK_T_OUT);
    Guest *g = guest_new(opaque);

    fill(g, PAGE_OTHER * PAGE, PAGE, 1);
    map_page(g, PAGE_OTHER, PTE_R);
    g_assert_cmpint(run(g, &in), ==, -1);
    assert_fault(g, PAGE_OTHER, FAULT_WRITE);
    assert_filled(g, PAGE_OTHER * PAGE, PAGE, 1);
    disk_start(g);
    g_assert_cmpint(run(g, &out), ==, 0);

    fill(g, PAGE_OTHER * PAGE, PAGE, 2);
    map_page(g, PAGE_OTHER, PTE_W);
    g_assert_cmpint(run(g, &out), ==, -1);
    assert_fault(g, PAGE_OTHER, FAULT_READ);
    disk_start(g);
    g_assert_cmpint(run(g, &in), ==, 0);
    assert_filled(g, PAGE_OTHER * PAGE, PAGE, 1);
    recover(g);
    guest_quit(g);
}

static unsigned ring_pages(Guest *g)
{
    return g->variant->packed ? 3 : 4;
}

/* covers: PLAT-3, ROBS-22: a page of the ring is missing at DRIVER_OK */
static void test_ring_unmapped(const void *opaque)
{
    Guest *g = guest_new(opaque);

    for (unsigned i = 0; i < ring_pages(g); i++) {
        disk_init(g);
        map_page(g, i, 0);
        start_in_vain(g);
        assert_fault(g, i, ANY_REASON);
        map_page(g, i, PTE_RW);
        recover(g);
    }
    guest_quit(g);
}

/* covers: PLAT-5, ROBS-22: what the device writes of a ring is read-only */
static void test_ring_read_only(const void *opaque)
{
    Guest *g = guest_new(opaque);
    unsigned page = ring_pages(g) - 1;  /* nothing else lies there */

    disk_init(g);
    map_page(g, page, PTE_R);
    start_in_vain(g);
    assert_fault(g, page, FAULT_WRITE);
    map_page(g, page, PTE_RW);
    recover(g);
    guest_quit(g);
}

/* covers: PLAT-3, ROBS-22: a page of the ring goes away while it is used */
static void test_ring_lost(const void *opaque)
{
    Guest *g = guest_new(opaque);

    for (Granularity by = GLOBAL; by <= BY_PAGE; by++) {
        for (unsigned i = 0; i < ring_pages(g); i++) {
            set_pte(g, i, 0);
            invalidate(g, by, IOVA + i * PAGE, 0);
            g_assert_cmpint(run_one(g, VIRTIO_BLK_T_IN, false), ==, -1);
            assert_fault(g, i, ANY_REASON);
            map_page(g, i, PTE_RW);
            disk_start(g);
            g_assert_cmpint(run_one(g, VIRTIO_BLK_T_IN, false), ==, 0);
        }
    }
    recover(g);
    guest_quit(g);
}

/* covers: PLAT-3: a page of the ring goes away and comes back, unused */
static void test_ring_returns(const void *opaque)
{
    Guest *g = guest_new(opaque);

    assert_works(g);
    for (unsigned i = 0; i < ring_pages(g); i++) {
        map_page(g, i, 0);
        map_page(g, i, PTE_RW);
    }
    assert_works(g);
    assert_serving(g);
    guest_quit(g);
}

/*
 * covers: PLAT-3: more is invalidated than there are translated addresses.
 * Those of interrupts lie in the midst of them.
 */
static void test_wide_invalidation(const void *opaque)
{
    Guest *g = guest_new(opaque);

    for (unsigned order = 0; order <= 18; order++) {
        invalidate(g, BY_PAGE, 0xfee00000 & ~((PAGE << order) - 1), order);
        invalidate(g, BY_PAGE, IOVA & ~((PAGE << order) - 1), order);
        invalidate(g, BY_PAGE, ~(PAGE - 1), order);
    }
    assert_works(g);
    assert_serving(g);
    guest_quit(g);
}

/* covers: PLAT-3, PLAT-4: the guest changes its mind */
static void test_translation_off_on(const void *opaque)
{
    Guest *g = guest_new(opaque);

    for (unsigned i = 0; i < 3; i++) {
        assert_works(g);
        qvirtio_reset(g->vdev);
        iommu_off(g);
        disk_start(g);
        assert_works(g);
        assert_serving(g);
        qvirtio_reset(g->vdev);
        iommu_on(g);
        disk_start(g);
        assert_works(g);
        assert_serving(g);
    }
    guest_quit(g);
}

/* covers: ROBS-22: translation ends under a disk that works */
static void test_translation_ends(const void *opaque)
{
    Guest *g = guest_new(opaque);

    assert_works(g);
    g->gcmd &= ~GCMD_TE;
    gcmd(g, 0);
    g_assert_cmpint(run_one(g, VIRTIO_BLK_T_IN, false), ==, -1);
    use_physical(g);
    disk_start(g);
    assert_works(g);
    guest_quit(g);
}

/* covers: PLAT-3: pages are moved while the machine stands still */
static void test_stop_cont(const void *opaque)
{
    Guest *g = guest_new(opaque);

    for (unsigned i = 0; i < LAST_BUFFER_PAGE; i++) {
        uint64_t old = g->page[i];
        g_autofree uint8_t *buf = g_malloc(PAGE);

        g_assert_cmpint(run_one(g, VIRTIO_BLK_T_IN, i % 2), ==, 0);
        qtest_qmp_assert_success(g->qts, "{'execute': 'stop'}");
        qtest_memread(g->qts, old, buf, PAGE);
        g->page[i] = spare(g, i);
        qtest_memwrite(g->qts, g->page[i], buf, PAGE);
        qtest_memset(g->qts, old, CANARY, PAGE);
        map_page(g, i, PTE_RW);
        qtest_qmp_assert_success(g->qts, "{'execute': 'cont'}");
        g_assert_cmpint(run_one(g, VIRTIO_BLK_T_IN, i % 2), ==, 0);
    }
    assert_works(g);
    assert_serving(g);
    guest_quit(g);
}

/* covers: PLAT-3: the whole machine is reset, the IOMMU with it */
static void test_system_reset(const void *opaque)
{
    Guest *g = guest_new(opaque);

    for (unsigned i = 0; i < 3; i++) {
        assert_works(g);
        put_req(g, &(Req) {
            .type = VIRTIO_BLK_T_IN, .header = HEADER, .data = DATA,
            .len = DATA_BYTES, .status = STATUS,
        });
        kick(g);
        qtest_system_reset(g->qts);
        disk_free(g);
        g->gcmd = 0;
        disk_probe(g);
        iommu_on(g);
        disk_start(g);
    }
    assert_works(g);
    assert_serving(g);
    guest_quit(g);
}

static void unplug(Guest *g)
{
    disk_free(g);
    qtest_qmp_device_del_send(g->qts, "d0");
    qtest_outl(g->qts, HP_BUS, 0);
    qtest_outl(g->qts, HP_EJECT, 1);
    qtest_qmp_eventwait(g->qts, "DEVICE_DELETED");
}

static void plug(Guest *g)
{
    gint64 deadline = dp_deadline();
    QDict *rsp = NULL;

    /* DEVICE_DELETED comes before RCU lets the last device's backend go */
    do {
        qobject_unref(rsp);
        dp_check_deadline(deadline, "the node to be free again");
        rsp = qtest_qmp(g->qts, "{'execute': 'device_add', 'arguments': {"
            " 'driver': 'virtio-blk-pci', 'id': 'd0', 'bus': 'rp0',"
            " 'drive': 'n0', 'iothread': 'io0', 'disable-legacy': 'on',"
            " 'iommu_platform': true, 'x-data-plane': %s, 'packed': %i,"
            " 'ats': %i }}", g->variant->plane ? "auto" : "off",
            g->variant->packed, g->variant->device_iotlb);
    } while (!qdict_haskey(rsp, "return"));
    qobject_unref(rsp);
    disk_probe(g);
}

/* covers: PLAT-3, M6: the disk is unplugged and plugged */
static void test_plug(const void *opaque)
{
    Guest *g = guest_new(opaque);

    for (unsigned i = 0; i < 3; i++) {
        assert_works(g);
        unplug(g);
        /* The disk has gone */
        invalidate(g, GLOBAL, 0, 0);
        invalidate(g, BY_PAGE, IOVA, 0);
        plug(g);
        disk_start(g);
    }
    assert_works(g);
    assert_serving(g);
    guest_quit(g);
}

/* covers: PLAT-4: a disk that is not behind the IOMMU takes no part in it */
static void test_not_behind(const void *opaque)
{
    Guest *g = guest_start(opaque, ",iommu_platform=off");

    iommu_on(g);
    use_physical(g);
    disk_start(g);
    g_assert_false(g->features & (1ull << VIRTIO_F_IOMMU_PLATFORM));
    assert_works(g);
    assert_serving(g);
    for (Granularity by = GLOBAL; by <= BY_PAGE; by++) {
        invalidate(g, by, g->frames, 0);
        assert_works(g);
    }
    guest_quit(g);
}

/* covers: PLAT-2: a driver that leaves the bit out is refused, and may retry */
static void test_not_accepted(const void *opaque)
{
    Guest *g = guest_new(opaque);
    uint64_t features = g->features & ~(1ull << VIRTIO_F_IOMMU_PLATFORM);
    uint8_t status;

    qvirtio_start_device(g->vdev);
    g->vdev->bus->set_features(g->vdev, features);
    status = g->vdev->bus->get_status(g->vdev) | VIRTIO_CONFIG_S_FEATURES_OK;
    g->vdev->bus->set_status(g->vdev, status);
    g_assert_cmphex(g->vdev->bus->get_status(g->vdev) &
                    VIRTIO_CONFIG_S_FEATURES_OK, ==, 0);
    recover(g);
    guest_quit(g);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*fn)(const void *variant);
        bool plane_only;        /* QEMU's own path does something else */
    } tests[] = {
        { "io", test_io },
        { "buffers-moved", test_buffers_moved },
        { "ring-moved", test_ring_moved },
        { "unmapped-buffer", test_unmapped_buffer, true },
        { "permissions", test_permissions, true },
        { "ring-unmapped", test_ring_unmapped, true },
        { "ring-read-only", test_ring_read_only, true },
        { "ring-lost", test_ring_lost, true },
        { "ring-returns", test_ring_returns },
        { "wide-invalidation", test_wide_invalidation },
        { "translation-off-on", test_translation_off_on },
        { "translation-ends", test_translation_ends, true },
        { "stop-cont", test_stop_cont },
        { "system-reset", test_system_reset },
        { "plug", test_plug },
        { "not-behind", test_not_behind },
        { "not-accepted", test_not_accepted },
    };

    g_test_init(&argc, &argv, NULL);
    if (!qtest_has_machine("q35") || !qtest_has_device("intel-iommu")) {
        g_test_message("this QEMU has no Intel IOMMU");
        return 0;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(tests); i++) {
        for (unsigned j = 0; j < ARRAY_SIZE(variants); j++) {
            g_autofree char *path =
                g_strdup_printf("virtio-blk-dataplane/iommu/%s/%s",
                                tests[i].name, variants[j].name);

            if (variants[j].plane || !tests[i].plane_only) {
                qtest_add_data_func(path, &variants[j], tests[i].fn);
            }
        }
    }
    return g_test_run();
}
