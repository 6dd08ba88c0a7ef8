/*
 * What a virtio-blk disk says of itself, and what it lets a driver say
 *
 * The offered features and their negotiation, the status, the configuration
 * space and the write cache, on devices that are configured in many ways.  What
 * is looked at is decided by QEMU's device model more than by the data plane,
 * which must not change it.  May know registers and configuration space by
 * their offsets, and the plane only by its modes.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "virtio-blk-dataplane-regs.h"

#define MIB (1024 * 1024)
#define NULL_SIZE (64 * MIB)
#define OK VIRTIO_BLK_S_OK
#define IOERR VIRTIO_BLK_S_IOERR

#define F_FLUSH DP_BIT(VIRTIO_BLK_F_FLUSH)
#define F_CONFIG_WCE DP_BIT(VIRTIO_BLK_F_CONFIG_WCE)
#define F_DISCARD DP_BIT(VIRTIO_BLK_F_DISCARD)
#define F_WRITE_ZEROES DP_BIT(VIRTIO_BLK_F_WRITE_ZEROES)
#define F_MQ DP_BIT(VIRTIO_BLK_F_MQ)
#define F_VERSION_1 DP_BIT(VIRTIO_F_VERSION_1)
#define F_PLATFORM DP_BIT(VIRTIO_F_ACCESS_PLATFORM)
#define F_EVENT_IDX DP_BIT(VIRTIO_RING_F_EVENT_IDX)
#define F_INDIRECT DP_BIT(VIRTIO_RING_F_INDIRECT_DESC)
#define F_RING_RESET DP_BIT(VIRTIO_F_RING_RESET)
#define F_ALWAYS (DP_BIT(VIRTIO_BLK_F_SEG_MAX) | \
                  DP_BIT(VIRTIO_BLK_F_GEOMETRY) | \
                  DP_BIT(VIRTIO_BLK_F_BLK_SIZE) | \
                  DP_BIT(VIRTIO_BLK_F_TOPOLOGY) | F_VERSION_1)

#define CFG_WCE 32              /* offset of writeback */
#define CFG_BYTES 96
#define CFG_NOWHERE 0xff        /* what lies behind the configuration reads */

static uint8_t cfg_readb(DpDisk *disk, unsigned offset)
{
    return disk->vdev->bus->config_readb(disk->vdev, offset);
}

static void cfg_writeb(DpDisk *disk, unsigned offset, uint8_t value)
{
    qpci_io_writeb(disk->pci->pdev, disk->pci->bar,
                   disk->pci->device_cfg_offset + offset, value);
}

static void cfg_dump(DpDisk *disk, uint8_t *buf)
{
    for (unsigned i = 0; i < CFG_BYTES; i++) {
        buf[i] = cfg_readb(disk, i);
    }
}

static uint8_t run_plain(DpDisk *disk, uint32_t type)
{
    DpReq *req = dp_req(disk, type, 0, 0);
    uint8_t status = dp_run(disk, req);

    dp_req_free(disk, req);
    return status;
}

/* Go live with what dp_negotiate() or the like has negotiated */
static void go_live(DpDisk *disk)
{
    dp_queue_restart(disk);
    dp_set_status(disk, DP_S_LIVE);
}

static void assert_works_often(DpDisk *disk)
{
    for (unsigned i = 0; i < 5; i++) {
        dp_assert_works(disk);
    }
}

/* --- what is offered ------------------------------------------------- */

typedef struct OfferCase {
    const char *props;
    uint64_t has;
    uint64_t lacks;
} OfferCase;

static const OfferCase offers[] = {
    { "", F_FLUSH | F_CONFIG_WCE | F_DISCARD | F_WRITE_ZEROES | F_EVENT_IDX |
          F_INDIRECT | F_RING_RESET, F_MQ | F_PLATFORM },
    { ",config-wce=off", F_FLUSH, F_CONFIG_WCE },
    { ",write-cache=off", F_FLUSH | F_CONFIG_WCE },
    { ",write-cache=off,config-wce=off", 0, F_FLUSH | F_CONFIG_WCE },
    { ",discard=off,write-zeroes=off", 0, F_DISCARD | F_WRITE_ZEROES },
    { ",num-queues=4", F_MQ },
    { ",disable-legacy=on,iommu_platform=on", F_PLATFORM },
    { ",event_idx=off,indirect_desc=off,queue_reset=off", 0,
      F_EVENT_IDX | F_INDIRECT | F_RING_RESET },
};

/*
 * Never offered by QEMU: BARRIER and SCSI (legacy), SIZE_MAX, LIFETIME,
 * SECURE_ERASE, ZONED (no such store here), ORDER_PLATFORM, SR_IOV,
 * NOTIFICATION_DATA, NOTIF_CONFIG_DATA, ADMIN_VQ, SUSPEND, and bit 30
 */
static const uint8_t not_here[] = {
    0, 1, 7, 15, 16, 17, 30, 36, 37, 38, 39, 41, 43
};

/* Of other devices, of other transports, or of nothing at all */
static const uint8_t not_block[] = {
    3, 8, 18, 19, 20, 21, 22, 23, 25, 26, 31, 42
};

static uint64_t never_offered(void)
{
    uint64_t bits = ~0ull << 44;

    for (unsigned i = 0; i < ARRAY_SIZE(not_here); i++) {
        bits |= DP_BIT(not_here[i]);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(not_block); i++) {
        bits |= DP_BIT(not_block[i]);
    }
    return bits;
}

static void check_offer(DpDisk *disk, const OfferCase *c)
{
    static const uint32_t beyond[] = { 2, 3, 4, 31, 0x80000000, 0xffffffff };
    uint64_t offer = dp_offer(disk);

    g_test_message("%s: 0x%" PRIx64, c->props, offer);
    g_assert_cmphex(offer & (F_ALWAYS | c->has), ==, F_ALWAYS | c->has);
    g_assert_cmphex(offer & c->lacks, ==, 0);
    g_assert_cmphex(offer & never_offered(), ==, 0);
    if (offer & F_CONFIG_WCE) {
        g_assert_cmphex(offer & F_FLUSH, !=, 0);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(beyond); i++) {
        g_assert_cmphex(dp_offer_word(disk, beyond[i]), ==, 0);
    }
}

/*
 * covers: FEAT-1, FEAT-3, FEAT-6, FEAT-11, FEAT-12, FEAT-13, PLAT-1, BLKC-11,
 * BLKC-12, LIFE-2, ZONE-1, PCI-16
 */
static void test_offer(const DpMode *mode)
{
    for (unsigned i = 0; i < ARRAY_SIZE(offers); i++) {
        DpVm *vm = dp_vm_null(mode, "", offers[i].props);
        DpDisk *disk = dp_disk_probe(vm, "d0", DP_SLOT);

        check_offer(disk, &offers[i]);
        dp_disk_free(disk);
        dp_vm_quit(vm);
    }
}

/* --- what is accepted ------------------------------------------------ */

/* Does the device take @features, and say so when asked? */
static void check_taken(DpDisk *disk, uint64_t features)
{
    g_test_message("features 0x%" PRIx64, features);
    g_assert_true(dp_negotiate(disk, features));
    g_assert_cmphex(dp_accepted(disk), ==, features);
}

/*
 * covers: FEAT-4, FEAT-7, PCI-17: the offer without one of its bits, one bit
 * alone, and the same again after a reset of either kind
 */
static void test_subsets(DpDisk *disk)
{
    uint64_t offer = dp_offer(disk) & ~QVIRTIO_F_BAD_FEATURE;

    for (unsigned bit = 0; bit < 64; bit++) {
        if (offer & DP_BIT(bit) & ~F_VERSION_1) {
            check_taken(disk, offer & ~DP_BIT(bit));
            check_taken(disk, F_VERSION_1 | DP_BIT(bit));
        }
    }
    for (unsigned i = 0; i < 3; i++) {
        check_taken(disk, offer);
        check_taken(disk, F_VERSION_1);
        qtest_system_reset(disk->vm->qts);
        qvirtio_pci_device_enable(disk->pci);
    }
}

/* covers: FEAT-5, PLAT-2: a set that the device cannot work with */
static void test_refused(DpDisk *disk)
{
    for (unsigned i = 0; i < 3; i++) {
        g_assert_false(dp_negotiate(disk, F_VERSION_1));
        g_assert_cmphex(dp_status(disk) & VIRTIO_CONFIG_S_FEATURES_OK, ==, 0);
        g_assert_true(dp_negotiate(disk, F_VERSION_1 | F_PLATFORM));
    }
}

/*
 * covers: FEAT-10, PCI-18, PLAT-4, ROBC-1: bits that were not offered have no
 * meaning, even if the driver accepts them.  If EVENT_IDX had, most of the
 * interrupts would not come.
 */
static void test_not_offered(DpDisk *disk)
{
    uint64_t offer = dp_offer(disk);
    uint64_t bad[] = { F_EVENT_IDX, F_PLATFORM, never_offered() & ~0x40000000 };

    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        g_assert_cmphex(offer & bad[i], ==, 0);
        dp_negotiate(disk, (disk->features & offer) | bad[i]);
        go_live(disk);
        assert_works_often(disk);
        dp_assert_as_asked(disk);
    }
}

/* covers: FEAT-10: what was offered and not accepted has no meaning either */
static void test_not_accepted(DpDisk *disk)
{
    g_assert_cmphex(dp_offer(disk) & F_EVENT_IDX, !=, 0);
    g_assert_cmphex(disk->features & F_EVENT_IDX, ==, 0);
    assert_works_often(disk);
}

/* covers: FEAT-8, ROBC-3: features written after FEATURES_OK */
static void test_frozen(DpDisk *disk)
{
    for (unsigned live = 0; live < 2; live++) {
        dp_disk_init(disk, DP_F_PLAIN);
        if (live) {
            qvirtio_set_driver_ok(disk->vdev);
        }
        dp_accept(disk, dp_offer(disk));
        dp_accept(disk, 0);
        dp_accept(disk, disk->features | F_EVENT_IDX);
        qvirtio_set_driver_ok(disk->vdev);
        assert_works_often(disk);
        dp_assert_as_asked(disk);
    }
}

/*
 * covers: FEAT-2: a modern device serves a driver without VERSION_1, as far as
 * a little-endian one can tell
 */
static void test_no_version_1(DpDisk *disk)
{
    g_assert_true(dp_negotiate(disk, disk->features & ~F_VERSION_1));
    go_live(disk);
    assert_works_often(disk);
    dp_disk_start(disk, DP_F_ALL);
    dp_assert_works(disk);
}

/* --- the status ------------------------------------------------------ */

typedef struct StatusCase {
    const char *name;
    uint8_t writes[4];          /* to a live device; ended by 0 */
    bool live;                  /* it is live afterwards, and works */
} StatusCase;

#define S_SUSPEND 16

static const StatusCase status_cases[] = {
    { "STAT-14", { DP_S_LIVE | VIRTIO_CONFIG_S_FAILED }, true },
    { "STAT-14", { VIRTIO_CONFIG_S_FAILED } },
    { "ROBC-4", { DP_S_FEATURES } },
    { "ROBC-4", { DP_S_FEATURES, DP_S_LIVE }, true },
    { "ROBC-4", { VIRTIO_CONFIG_S_ACKNOWLEDGE } },
    { "ROBC-4", { VIRTIO_CONFIG_S_DRIVER_OK }, true },
    { "ROBC-4", { DP_S_DRIVER, DP_S_FEATURES, DP_S_LIVE }, true },
    { "ROBC-4", { DP_S_LIVE, DP_S_LIVE, DP_S_LIVE }, true },
    { "ROBC-21", { DP_S_LIVE | S_SUSPEND }, true },
    { "ROBC-21", { DP_S_FEATURES | S_SUSPEND, DP_S_LIVE }, true },
};

static void check_status(DpDisk *disk, const StatusCase *c)
{
    dp_disk_start(disk, DP_F_ALL);
    dp_assert_works(disk);
    for (unsigned i = 0; i < ARRAY_SIZE(c->writes) && c->writes[i]; i++) {
        g_test_message("%s: status 0x%x", c->name, c->writes[i]);
        dp_set_status(disk, c->writes[i]);
    }
    if (c->live) {
        assert_works_often(disk);
    }
}

/* covers: STAT-14, ROBC-4, ROBC-21: and each time a reset makes it good */
static void test_status(DpDisk *disk)
{
    for (unsigned i = 0; i < ARRAY_SIZE(status_cases); i++) {
        check_status(disk, &status_cases[i]);
        dp_disk_start(disk, DP_F_ALL);
        assert_works_often(disk);
        dp_assert_as_asked(disk);
    }
}

/* --- the configuration space ----------------------------------------- */

/* What a field reads; unlisted bytes read 0. */
typedef struct Field {
    uint8_t offset;
    uint8_t size;
    uint64_t value;
} Field;

typedef struct LayoutCase {
    const char *node;           /* options of the null-co node */
    const char *props;
    unsigned length;
    Field field[20];
} LayoutCase;

static const LayoutCase layouts[] = {
    {
        "", ",cyls=300,heads=5,secs=17", 57, {
            { 0, 8, NULL_SIZE / 512 }, { 12, 4, 254 }, { 16, 2, 300 },
            { 18, 1, 5 }, { 19, 1, 17 }, { 20, 4, 512 }, { 32, 1, 1 },
            { 34, 2, 1 }, { 36, 4, 0x3fffff }, { 40, 4, 1 }, { 44, 4, 1 },
            { 48, 4, 0x3fffff }, { 52, 4, 1 }, { 56, 1, 1 },
        }
    }, {
        ",read-zeroes=on", ",logical_block_size=4096,physical_block_size=16384"
        ",min_io_size=8192,opt_io_size=65536,num-queues=3,queue-size=64"
        ",cyls=16383,heads=16,secs=63,max-discard-sectors=8000"
        ",max-write-zeroes-sectors=800,discard_granularity=32768"
        ",write-cache=off", 57, {
            { 0, 8, NULL_SIZE / 512 }, { 12, 4, 62 }, { 16, 2, 16383 },
            { 18, 1, 16 }, { 19, 1, 56 }, { 20, 4, 4096 }, { 24, 1, 2 },
            { 26, 2, 2 }, { 28, 4, 16 }, { 34, 2, 3 }, { 36, 4, 8000 },
            { 40, 4, 1 }, { 44, 4, 64 }, { 48, 4, 800 }, { 52, 4, 1 },
            { 56, 1, 1 },
        }
    }, {
        "", ",cyls=1,heads=1,secs=1,discard=off,seg-max-adjust=off", 57, {
            { 0, 8, NULL_SIZE / 512 }, { 12, 4, 126 }, { 16, 2, 1 },
            { 18, 1, 1 }, { 19, 1, 1 }, { 20, 4, 512 }, { 32, 1, 1 },
            { 34, 2, 1 }, { 48, 4, 0x3fffff }, { 52, 4, 1 }, { 56, 1, 1 },
        }
    }, {
        "", ",cyls=1,heads=1,secs=1,discard=off,write-zeroes=off", 36, {
            { 0, 8, NULL_SIZE / 512 }, { 12, 4, 254 }, { 16, 2, 1 },
            { 18, 1, 1 }, { 19, 1, 1 }, { 20, 4, 512 }, { 32, 1, 1 },
            { 34, 2, 1 },
        }
    },
};

static void layout_bytes(const LayoutCase *c, uint8_t *buf)
{
    memset(buf, 0, c->length);
    memset(buf + c->length, CFG_NOWHERE, CFG_BYTES - c->length);
    for (unsigned i = 0; i < ARRAY_SIZE(c->field); i++) {
        const Field *f = &c->field[i];

        for (unsigned j = 0; j < f->size; j++) {
            buf[f->offset + j] = f->value >> (8 * j);
        }
    }
}

static void check_dump(DpDisk *disk, const uint8_t *want)
{
    uint8_t got[CFG_BYTES];

    cfg_dump(disk, got);
    for (unsigned i = 0; i < CFG_BYTES; i++) {
        if (got[i] != want[i]) {
            g_error("offset %u reads 0x%x, not 0x%x", i, got[i], want[i]);
        }
    }
}

/* Read by words, the capacity's high half first */
static void check_words(DpDisk *disk, const uint8_t *want)
{
    const QVirtioBus *bus = disk->vdev->bus;

    g_assert_cmphex(bus->config_readl(disk->vdev, 4), ==, ldl_le_p(want + 4));
    g_assert_cmphex(bus->config_readl(disk->vdev, 0), ==, ldl_le_p(want));
    for (unsigned i = 0; i < CFG_WCE; i += 4) {
        g_assert_cmphex(bus->config_readl(disk->vdev, i), ==,
                        ldl_le_p(want + i));
        g_assert_cmphex(bus->config_readw(disk->vdev, i), ==,
                        lduw_le_p(want + i));
    }
}

/*
 * covers: CFG-1, CFG-2, CFG-6, BLKC-2, BLKC-3, BLKC-5, BLKC-6, BLKC-7, BLKC-8,
 * BLKC-14, BLKC-15, BLKC-16, BLKC-17, PCI-3, PCI-4, ZONE-5, ZONE-12: each byte,
 * before FEATURES_OK and behind DRIVER_OK, of devices of several kinds
 */
static void test_layout(const DpMode *mode)
{
    for (unsigned i = 0; i < ARRAY_SIZE(layouts); i++) {
        DpVm *vm = dp_vm_null(mode, layouts[i].node, layouts[i].props);
        DpDisk *disk = dp_disk_probe(vm, "d0", DP_SLOT);
        uint8_t want[CFG_BYTES];

        layout_bytes(&layouts[i], want);
        dp_disk_reset(disk);
        dp_set_status(disk, DP_S_DRIVER);
        check_dump(disk, want);
        check_words(disk, want);
        disk->want_num = 64;
        dp_disk_start(disk, DP_F_ALL);
        check_dump(disk, want);
        dp_disk_free(disk);
        dp_vm_quit(vm);
    }
}

/* covers: ROBB-31: writes to all that cannot be written, in any width */
static void test_read_only_fields(DpDisk *disk)
{
    uint64_t base = disk->pci->device_cfg_offset;
    uint8_t before[CFG_BYTES];

    cfg_dump(disk, before);
    for (unsigned i = 0; i < 2 * CFG_BYTES; i++) {
        if (i != CFG_WCE) {
            cfg_writeb(disk, i, 0xff);
            check_dump(disk, before);
        }
        if (i % 2 == 0 && i != CFG_WCE) {
            qpci_io_writew(disk->pci->pdev, disk->pci->bar, base + i, 0x0101);
            check_dump(disk, before);
        }
        if (i % 4 == 0 && i != CFG_WCE) {
            qpci_io_writel(disk->pci->pdev, disk->pci->bar, base + i, 0);
            check_dump(disk, before);
        }
    }
    dp_assert_works(disk);
}

/* --- block size ------------------------------------------------------ */

/*
 * covers: BLKC-7, BLKC-8, BLKR-22: sectors stay 512 bytes; what is less than a
 * block fails and stores nothing
 */
static void test_block_size(DpDisk *disk)
{
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, 8, 8192, 1), ==, OK);
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, 9, 512, 2), ==, IOERR);
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, 9, 4096, 3), ==, IOERR);
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, 8, 512, 4), ==, IOERR);
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_IN, 9, 512, 5), ==, IOERR);
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_IN, 8, 8192, 1), ==, OK);
}

/* --- the write cache ------------------------------------------------- */

/*
 * A disk whose store logs what reaches it, in the format of the Linux target
 * dm-log-writes: a sector for the superblock, then for each entry a sector
 * that describes it, and its data.  Above it stands a raw node, which makes a
 * flush of what asks for FUA: the log would not show that.
 */
#define LOG_FLUSH 1
#define LOG_FUA 2
#define LOG_DISCARD 4

typedef struct LogEntry {
    uint64_t sector;
    uint64_t sectors;
    uint64_t flags;
} LogEntry;

static DpVm *vm_logged(const DpMode *mode)
{
    g_autofree char *disk = dp_image("disk.img", DP_IMAGE_SIZE);
    g_autofree char *log = dp_image("log.img", 0);

    return dp_vm_start(
        "-blockdev file,node-name=f0,filename=%s,discard=unmap "
        "-blockdev file,node-name=l0,filename=%s "
        "-blockdev blklogwrites,node-name=b0,file=f0,log=l0,discard=unmap "
        "-blockdev raw,node-name=n0,file=b0,discard=unmap "
        "-device virtio-blk-pci,id=d0,drive=n0,addr=%d%s",
        disk, log, DP_SLOT, mode->props);
}

static LogEntry *read_log(unsigned *n)
{
    g_autofree char *path = dp_tmp("log.img");
    g_autofree char *text = NULL;
    GArray *entries = g_array_new(false, false, sizeof(LogEntry));
    gsize at, size;

    g_assert_true(g_file_get_contents(path, &text, &size, NULL));
    for (at = 512; at + sizeof(LogEntry) <= size;) {
        const char *p = text + at;
        LogEntry entry = { ldq_le_p(p), ldq_le_p(p + 8), ldq_le_p(p + 16) };

        g_array_append_val(entries, entry);
        at += 512 + (entry.flags & LOG_DISCARD ? 0 : 512 * entry.sectors);
    }
    *n = entries->len;
    return (LogEntry *)g_array_free(entries, false);
}

/* Is all that reached the store before now on stable storage? */
static bool is_stable(void)
{
    unsigned n;
    g_autofree LogEntry *log = read_log(&n);
    bool stable = true;

    g_assert_cmpuint(n, >, 0);
    for (unsigned i = 0; i < n; i++) {
        if (log[i].flags & LOG_FLUSH) {
            stable = true;
        } else if (!(log[i].flags & LOG_FUA)) {
            stable = false;
        }
    }
    return stable;
}

static DpReq *change_req(DpDisk *disk, uint32_t type)
{
    bool out = type == VIRTIO_BLK_T_OUT;
    DpReq *req = dp_req(disk, type, out ? 8 : 0, out ? 4096 : 16);
    struct virtio_blk_discard_write_zeroes seg = {
        .sector = cpu_to_le64(8),
        .num_sectors = cpu_to_le32(8),
    };

    if (out) {
        dp_req_fill(disk, req, g_test_rand_int());
    } else {
        qtest_memwrite(disk->vm->qts, req->data, &seg, sizeof(seg));
    }
    return req;
}

static void run_change(DpDisk *disk, uint32_t type)
{
    DpReq *req = change_req(disk, type);

    g_assert_cmpint(dp_run(disk, req), ==, OK);
    dp_req_free(disk, req);
}

typedef struct CacheCase {
    const char *ids;
    uint64_t without;           /* features not to accept */
    int writeback;              /* to write; -1: leave it alone */
    uint32_t type;
    bool stable;                /* when it is done */
} CacheCase;

#define NO_CACHE (F_FLUSH | F_CONFIG_WCE)

static const CacheCase cache_cases[] = {
    { "WCE-6", 0, -1, VIRTIO_BLK_T_OUT, false },
    { "WCE-6", F_CONFIG_WCE, -1, VIRTIO_BLK_T_OUT, false },
    { "WCE-1", NO_CACHE, -1, VIRTIO_BLK_T_OUT, true },
    { "WCE-2", 0, 0, VIRTIO_BLK_T_OUT, true },
    { "WCE-2", F_FLUSH, 0, VIRTIO_BLK_T_OUT, true },
    { "WCE-6", 0, 1, VIRTIO_BLK_T_OUT, false },
    { "WCE-12", 0, 0, VIRTIO_BLK_T_WRITE_ZEROES, true },
    { "WCE-12", NO_CACHE, -1, VIRTIO_BLK_T_WRITE_ZEROES, true },
    { "WCE-12", 0, 1, VIRTIO_BLK_T_WRITE_ZEROES, false },
};

/*
 * covers: WCE-1, WCE-2, WCE-3, WCE-6, WCE-11, WCE-12, BLKC-14, BLKR-17: what
 * the store was told to make stable by the time that a request is done
 */
static void test_stable(DpDisk *disk)
{
    for (unsigned i = 0; i < ARRAY_SIZE(cache_cases); i++) {
        const CacheCase *c = &cache_cases[i];

        g_test_message("%s: without 0x%" PRIx64 ", writeback %d, type %u",
                       c->ids, c->without, c->writeback, c->type);
        dp_disk_start(disk, ~c->without);
        if (c->writeback >= 0) {
            cfg_writeb(disk, CFG_WCE, c->writeback);
        }
        if (!(c->without & F_CONFIG_WCE)) {
            g_assert_cmpuint(cfg_readb(disk, CFG_WCE), ==, !c->stable);
        }
        run_change(disk, c->type);
        g_assert_cmpint(is_stable(), ==, c->stable);
        g_assert_cmpint(run_plain(disk, VIRTIO_BLK_T_FLUSH), ==, OK);
        g_assert_true(is_stable());
    }
}

/* covers: WCE-3, WCE-8: a flush is for all that was done before, in any mode */
static void test_flush_after(DpDisk *disk)
{
    for (unsigned i = 0; i < 4; i++) {
        bool writethrough = i % 2;

        cfg_writeb(disk, CFG_WCE, 1);
        for (unsigned j = 0; j < 8; j++) {
            run_change(disk, j % 4 == 3 ? VIRTIO_BLK_T_WRITE_ZEROES
                                        : VIRTIO_BLK_T_OUT);
        }
        g_assert_false(is_stable());
        if (writethrough) {
            cfg_writeb(disk, CFG_WCE, 0);
        }
        g_assert_cmpint(run_plain(disk, VIRTIO_BLK_T_FLUSH), ==, OK);
        g_assert_true(is_stable());
    }
}

/* covers: WCE-5: a flush is done, although writes never end */
static void test_flush_under_load(DpDisk *disk)
{
    DpLoad *load = dp_load_new(disk, 8, 64);

    for (unsigned i = 0; i < 10; i++) {
        DpReq *req = dp_req(disk, VIRTIO_BLK_T_FLUSH, 0, 0);
        gint64 deadline = dp_deadline();

        dp_load_send(load);
        dp_submit(disk, req);
        while (!req->done) {
            dp_load_run(load, 8);
            dp_check_deadline(deadline, "a flush under load");
        }
        g_assert_cmpint(req->status, ==, OK);
        dp_req_free(disk, req);
    }
    dp_load_finish(load);
}

/* --- deallocation ---------------------------------------------------- */

static int64_t allocated(void)
{
    g_autofree char *path = dp_tmp("disk.img");
    struct stat st;

    g_assert_cmpint(stat(path, &st), ==, 0);
    return st.st_blocks;
}

/*
 * covers: DWZ-11: zeroes are written where the driver does not allow
 * to deallocate
 */
static void test_zeroes_allocated(DpDisk *disk)
{
    struct virtio_blk_discard_write_zeroes seg = {
        .num_sectors = cpu_to_le32(MIB / DP_SECTOR),
    };
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_WRITE_ZEROES, 0, sizeof(seg));
    int64_t before;

    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, 0, MIB, 1), ==, OK);
    g_assert_cmpint(run_plain(disk, VIRTIO_BLK_T_FLUSH), ==, OK);
    before = allocated();
    g_assert_cmpint(before, >=, MIB / 512);
    qtest_memwrite(disk->vm->qts, req->data, &seg, sizeof(seg));
    g_assert_cmpint(dp_run(disk, req), ==, OK);
    g_assert_cmpint(allocated(), >=, MIB / 512);
    dp_req_free(disk, req);
}

int main(int argc, char **argv)
{
    static const DpTest tests[] = {
        { "offer", .own_vm = test_offer },
        { "subsets", test_subsets, .null = "", .idle = true,
          .ends_unserved = true },
        { "refused", test_refused, .null = "",
          .props = ",disable-legacy=on,iommu_platform=on", .idle = true,
          .ends_unserved = true },
        { "not-offered", test_not_offered,
          .props = ",event_idx=off,indirect_desc=off,queue_reset=off" },
        { "not-accepted", test_not_accepted, .features = DP_F_PLAIN },
        { "frozen", test_frozen, .idle = true },
        { "no-version-1", test_no_version_1, .features = DP_F_PLAIN },
        { "status", test_status, .idle = true },
        { "layout", .own_vm = test_layout },
        { "read-only-fields", test_read_only_fields },
        { "block-size", test_block_size,
          .props = ",logical_block_size=4096,physical_block_size=16384"
                   ",min_io_size=16384" },
        { "stable", test_stable, .vm = vm_logged, .idle = true },
        { "flush-after", test_flush_after, .vm = vm_logged },
        { "flush-under-load", test_flush_under_load },
        { "zeroes-allocated", test_zeroes_allocated },
    };

    g_test_init(&argc, &argv, NULL);
    dp_add_table("device", tests, ARRAY_SIZE(tests), true);
    return g_test_run();
}
