/*
 * Zoned disks: what the driver sees is what the host's disk is
 *
 * Runs on the zoned block device that DP_ZONED_DISK names, whose data is lost;
 * without it, only what other disks say to zone requests is tested.  The device
 * needs two conventional zones and at least five others.  tests/zoned/run makes
 * such devices in a guest.  After each request the zones as virtio-blk reports
 * them are compared with those that the kernel reports of the device: the
 * driver must have changed what it was told it changed, and nothing else.
 *
 * It may know the virtio-blk driver of virtio-blk-dataplane-common.h, and of
 * the plane only whether it serves.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/ioctl.h>
#include <linux/blkzoned.h>
#include "qemu/bswap.h"
#include "virtio-blk-dataplane-common.h"

#define PAGE 4096
#define APPENDED_OFFSET 1024    /* in a request's page: append_sector */
#define MAX_ZONES 64
#define CONVENTIONAL 2          /* zones */
#define BLOCK (PAGE / DP_SECTOR)
#define NUM_AT_ONCE 16

#define OK VIRTIO_BLK_S_OK
#define IOERR VIRTIO_BLK_S_IOERR
#define UNSUPP VIRTIO_BLK_S_UNSUPP
#define INVALID VIRTIO_BLK_S_ZONE_INVALID_CMD
#define UNALIGNED VIRTIO_BLK_S_ZONE_UNALIGNED_WP

#define OUT VIRTIO_BLK_T_OUT
#define ZEROES VIRTIO_BLK_T_WRITE_ZEROES
#define APPEND VIRTIO_BLK_T_ZONE_APPEND
#define REPORT VIRTIO_BLK_T_ZONE_REPORT
#define OPEN VIRTIO_BLK_T_ZONE_OPEN
#define CLOSE VIRTIO_BLK_T_ZONE_CLOSE
#define FINISH VIRTIO_BLK_T_ZONE_FINISH
#define RESET VIRTIO_BLK_T_ZONE_RESET
#define RESET_ALL VIRTIO_BLK_T_ZONE_RESET_ALL

#define EMPTY VIRTIO_BLK_ZS_EMPTY
#define IOPEN VIRTIO_BLK_ZS_IOPEN
#define EOPEN VIRTIO_BLK_ZS_EOPEN
#define CLOSED VIRTIO_BLK_ZS_CLOSED
#define FULL VIRTIO_BLK_ZS_FULL
#define NOT_WP VIRTIO_BLK_ZS_NOT_WP

typedef struct Zones {
    struct blk_zone_report report;
    struct blk_zone zone[MAX_ZONES];
} Zones;

/* --- the device, as the kernel and as the driver know it ------------- */

static const char *zoned_disk(void)
{
    return getenv("DP_ZONED_DISK");
}

static void host_zones(Zones *zones)
{
    int fd = open(zoned_disk(), O_RDONLY);

    g_assert_cmpint(fd, >=, 0);
    memset(zones, 0, sizeof(*zones));
    zones->report.nr_zones = MAX_ZONES;
    g_assert_cmpint(ioctl(fd, BLKREPORTZONE, &zones->report), ==, 0);
    close(fd);
    g_assert_cmpuint(zones->report.nr_zones, <, MAX_ZONES);
    g_assert_cmpuint(zones->report.nr_zones, >=, CONVENTIONAL + 5);
}

static uint64_t zone_sectors(DpDisk *disk)
{
    return qvirtio_config_readl(disk->vdev,
                                offsetof(struct virtio_blk_config,
                                         zoned.zone_sectors));
}

static uint64_t capacity(DpDisk *disk)
{
    return qvirtio_config_readq(disk->vdev, 0);
}

static uint32_t max_append(DpDisk *disk)
{
    return qvirtio_config_readl(disk->vdev,
                                offsetof(struct virtio_blk_config,
                                         zoned.max_append_sectors)) *
           DP_SECTOR;
}

static unsigned num_zones(DpDisk *disk)
{
    return DIV_ROUND_UP(capacity(disk), zone_sectors(disk));
}

/* Sends a request with a field for the sector of an append */
static DpReq *send_request(DpDisk *disk, uint32_t type, uint64_t sector,
                           uint32_t len, uint32_t seed)
{
    DpReq *req = dp_req(disk, type, sector, len);
    DpSeg seg[4] = { { req->page, sizeof(struct virtio_blk_outhdr), 0 } };
    unsigned n = 1;

    if (len) {
        dp_req_fill(disk, req, seed);
        seg[n++] = (DpSeg) { req->data, len, 0 };
    }
    seg[n++] = (DpSeg) { req->page + APPENDED_OFFSET, 8, VRING_DESC_F_WRITE };
    seg[n++] = (DpSeg) { req->status_addr, 1, VRING_DESC_F_WRITE };
    dp_submit_chain(disk, req, seg, n);
    return req;
}

/* Where an append that succeeded has put its data */
static uint64_t appended(DpDisk *disk, DpReq *req)
{
    uint64_t sector;

    qtest_memread(disk->vm->qts, req->page + APPENDED_OFFSET, &sector,
                  sizeof(sector));
    return le64_to_cpu(sector);
}

static uint8_t run_append(DpDisk *disk, uint64_t sector, uint32_t len,
                          uint32_t seed, uint64_t *where)
{
    DpReq *req = send_request(disk, APPEND, sector, len, seed);
    uint8_t status;

    dp_kick(disk);
    dp_wait(disk, req);
    status = req->status;
    if (where) {
        *where = appended(disk, req);
    }
    dp_req_free(disk, req);
    return status;
}

/* Reads the block at @where, which was appended to the zone at @start */
static void assert_appended(DpDisk *disk, uint64_t where, uint64_t start,
                            uint32_t seed)
{
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_IN, where, PAGE);

    g_assert_cmpint(dp_run(disk, req), ==, OK);
    req->sector = start;        /* what it was filled for */
    g_assert_true(dp_req_matches(disk, req, seed));
    dp_req_free(disk, req);
}

static uint8_t run(DpDisk *disk, uint32_t type, uint64_t sector, uint32_t len)
{
    struct virtio_blk_discard_write_zeroes seg = {
        .sector = cpu_to_le64(sector),
        .num_sectors = cpu_to_le32(len / DP_SECTOR),
    };
    DpReq *req;
    uint8_t status;

    if (type == APPEND) {
        return run_append(disk, sector, len, 0, NULL);
    }
    req = dp_req(disk, type, sector, type == ZEROES ? sizeof(seg) : len);
    if (type == OUT) {
        dp_req_fill(disk, req, 1);
    } else if (type == ZEROES) {
        qtest_memwrite(disk->vm->qts, req->data, &seg, sizeof(seg));
    }
    status = dp_run(disk, req);
    dp_req_free(disk, req);
    return status;
}

/*
 * Asks for the zones from @sector on with @len bytes of room
 *
 * Returns: how many were reported; at most MAX_ZONES of them are in @desc
 */
static uint64_t report(DpDisk *disk, uint64_t sector, uint32_t len,
                       struct virtio_blk_zone_descriptor *desc)
{
    DpReq *req = dp_req(disk, REPORT, sector, len);
    struct virtio_blk_zone_report head;
    size_t bytes = MIN(len - sizeof(head), MAX_ZONES * sizeof(*desc));

    qtest_memset(disk->vm->qts, req->data, 0, len);
    g_assert_cmpint(dp_run(disk, req), ==, OK);
    qtest_memread(disk->vm->qts, req->data, &head, sizeof(head));
    qtest_memread(disk->vm->qts, req->data + sizeof(head), desc, bytes);
    dp_req_free(disk, req);
    return le64_to_cpu(head.nr_zones);
}

static void assert_same_zone(const struct virtio_blk_zone_descriptor *desc,
                             const struct blk_zone *zone)
{
    g_assert_cmpuint(le64_to_cpu(desc->z_start), ==, zone->start);
    g_assert_cmpuint(le64_to_cpu(desc->z_cap), ==, zone->capacity);
    g_assert_cmpuint(le64_to_cpu(desc->z_wp), ==, zone->wp);
    g_assert_cmpuint(desc->z_type, ==, zone->type);
    g_assert_cmpuint(desc->z_state, ==, zone->cond);
}

/* Compares all zones, of which @desc gets the driver's view */
static void assert_as_host(DpDisk *disk,
                           struct virtio_blk_zone_descriptor *desc)
{
    unsigned n = num_zones(disk);
    Zones zones;

    host_zones(&zones);
    g_assert_cmpuint(zones.report.nr_zones, ==, n);
    g_assert_cmpuint(report(disk, 0, 64 + MAX_ZONES * sizeof(*desc), desc),
                     ==, n);
    for (unsigned i = 0; i < n; i++) {
        assert_same_zone(&desc[i], &zones.zone[i]);
    }
}

static void reset_all(DpDisk *disk)
{
    g_assert_true(disk->features & (1ull << VIRTIO_BLK_F_ZONED));
    /* The sector plays no part (ZONE-40). */
    g_assert_cmpint(run(disk, RESET_ALL, 77, 0), ==, OK);
}

/* --- configuration and reports --------------------------------------- */

/* covers: ZONE-5, ZONE-6, ZONE-9, ZONE-11, ROBC-23 */
static void test_config(DpDisk *disk)
{
    const size_t at = offsetof(struct virtio_blk_config, zoned);
    struct virtio_blk_zoned_characteristics zoned;
    Zones zones;

    for (unsigned i = 0; i < sizeof(zoned); i++) {
        ((uint8_t *)&zoned)[i] = qvirtio_config_readb(disk->vdev, at + i);
    }
    host_zones(&zones);
    g_assert_cmpuint(zoned.model, ==, VIRTIO_BLK_Z_HM);
    g_assert_false(disk->features & (1ull << VIRTIO_BLK_F_DISCARD));
    g_assert_cmpuint(le32_to_cpu(zoned.zone_sectors), ==, zones.zone[0].len);
    g_assert_cmpuint(le32_to_cpu(zoned.write_granularity), ==, PAGE);
    g_assert_cmpuint(le32_to_cpu(zoned.max_append_sectors), >, 0);
    g_assert_cmpuint(le32_to_cpu(zoned.max_append_sectors), <=,
                     zones.zone[0].len);
    reset_all(disk);
}

/* A report starts at @zone and @plus sectors, and has room for @tenths. */
typedef struct ReportCase {
    const char *ids;
    unsigned zone;
    uint64_t plus;
    unsigned tenths;        /* of a zone */
    unsigned want;          /* zones */
} ReportCase;

static const ReportCase report_cases[] = {
    { "ZONE-16", 0, 0, 25, 2 },
    { "ZONE-16", 0, 0, 10, 1 },
    { "ZONE-17 in mid-zone", 1, 9, 10, 1 },
    { "ZONE-17 end of a zone", 2, UINT64_MAX, 20, 2 },
};

/* covers: ZONE-6, ZONE-15, ZONE-16, ZONE-17, ZONE-18, ZONE-19 */
static void test_report(DpDisk *disk)
{
    struct virtio_blk_zone_descriptor all[MAX_ZONES], desc[MAX_ZONES];
    uint64_t size = zone_sectors(disk);
    unsigned last = num_zones(disk) - 1;

    reset_all(disk);
    assert_as_host(disk, all);
    for (unsigned i = 0; i < ARRAY_SIZE(report_cases); i++) {
        const ReportCase *c = &report_cases[i];
        uint64_t sector = (c->zone + 1) * size - 1;

        g_test_message("%s", c->ids);
        if (c->plus != UINT64_MAX) {
            sector = c->zone * size + c->plus;
        }
        g_assert_cmpuint(report(disk, sector,
                                64 + c->tenths * sizeof(*desc) / 10, desc),
                         ==, c->want);
        g_assert_cmpmem(desc, c->want * sizeof(*desc), &all[c->zone],
                        c->want * sizeof(*desc));
    }
    g_assert_cmpuint(report(disk, last * size, PAGE, desc), ==, 1);
    g_assert_cmpuint(report(disk, capacity(disk) - 1, PAGE, desc), ==, 1);
    g_assert_cmpmem(desc, sizeof(*desc), &all[last], sizeof(*desc));
}

/* --- states of a zone ------------------------------------------------ */

/* What is asked of the zone @zone, and what it is afterwards */
typedef struct Step {
    const char *ids;
    uint32_t type;
    unsigned zone;
    unsigned blocks;        /* where, from the zone's start */
    uint32_t len;           /* bytes of data */
    uint8_t status;
    uint8_t state;
    unsigned wp;            /* blocks from the zone's start */
} Step;

#define Z0 0                /* conventional */
#define Z2 2                /* the first sequential zones */
#define Z3 3
#define Z4 4
#define Z5 5
#define Z6 6

static const Step steps[] = {
    { "ZONE-42 from EMPTY", OPEN, Z2, 0, 0, OK, EOPEN, 0 },
    { "ZONE-42 from EOPEN", OPEN, Z2, 0, 0, OK, EOPEN, 0 },
    { "ZONE-43 nothing written", CLOSE, Z2, 0, 0, OK, EMPTY, 0 },
    { "ZONE-23 CLOSE of EMPTY", CLOSE, Z2, 0, 0, INVALID, EMPTY, 0 },
    { "ZONE-41 from EMPTY", RESET, Z2, 0, 0, OK, EMPTY, 0 },
    { "ZONE-45 write", OUT, Z2, 0, PAGE, OK, IOPEN, 1 },
    { "ZONE-34 before WP", OUT, Z2, 0, PAGE, IOERR, IOPEN, 1 },
    { "ZONE-34 behind WP", OUT, Z2, 2, PAGE, IOERR, IOPEN, 1 },
    { "ZONE-43 from IOPEN", CLOSE, Z2, 0, 0, OK, CLOSED, 1 },
    { "ZONE-43 from CLOSED", CLOSE, Z2, 0, 0, OK, CLOSED, 1 },
    { "ZONE-45 append", APPEND, Z2, 0, 2 * PAGE, OK, IOPEN, 3 },
    { "ZONE-42 from IOPEN", OPEN, Z2, 0, 0, OK, EOPEN, 3 },
    { "ZONE-20 write", OUT, Z2, 3, PAGE, OK, EOPEN, 4 },
    { "ZONE-20 append after write", APPEND, Z2, 0, PAGE, OK, EOPEN, 5 },
    { "ZONE-20 zeroes", ZEROES, Z2, 5, 2 * PAGE, OK, EOPEN, 7 },
    { "ZONE-20 append after zeroes", APPEND, Z2, 0, PAGE, OK, EOPEN, 8 },
    { "ZONE-44 from EOPEN", FINISH, Z2, 0, 0, OK, FULL },
    { "ZONE-44 from FULL", FINISH, Z2, 0, 0, OK, FULL },
    { "ZONE-23 OPEN of FULL", OPEN, Z2, 0, 0, INVALID, FULL },
    { "ZONE-23 CLOSE of FULL", CLOSE, Z2, 0, 0, INVALID, FULL },
    { "ZONE-32 write to FULL", OUT, Z2, 5, PAGE, IOERR, FULL },
    { "ZONE-32 append to FULL", APPEND, Z2, 0, PAGE, INVALID, FULL },
    { "the next zone is untouched", RESET, Z3, 0, 0, OK, EMPTY, 0 },
    { "ZONE-41 from FULL", RESET, Z2, 0, 0, OK, EMPTY, 0 },
    { "ZONE-30 after RESET", APPEND, Z2, 0, PAGE, OK, IOPEN, 1 },
    { "ZONE-28", APPEND, Z2, 1, PAGE, INVALID, IOPEN, 1 },
    { "ZONE-35", OUT, Z2, 1, PAGE / 2, IOERR, IOPEN, 1 },
    { "ZONE-11 half a block", APPEND, Z2, 0, PAGE / 2, INVALID, IOPEN, 1 },
    { "append of nothing", APPEND, Z2, 0, 0, OK, IOPEN, 1 },
    { "ZONE-21", OPEN, Z0, 0, 0, INVALID, NOT_WP },
    { "ZONE-21", CLOSE, Z0, 0, 0, INVALID, NOT_WP },
    { "ZONE-21", FINISH, Z0, 0, 0, INVALID, NOT_WP },
    { "ZONE-21", RESET, Z0, 0, 0, INVALID, NOT_WP },
    { "ZONE-22", APPEND, Z0, 0, PAGE, INVALID, NOT_WP },
    { "conventional", OUT, Z0, 5, PAGE, OK, NOT_WP },
    { "ZONE-40", RESET_ALL, Z2, 0, 0, OK, EMPTY, 0 },
    { "ZONE-30 after RESET_ALL", APPEND, Z2, 0, PAGE, OK, IOPEN, 1 },
};

/* @desc: gets the zones as they are afterwards */
static void run_step(DpDisk *disk, const Step *step,
                     struct virtio_blk_zone_descriptor *desc)
{
    uint64_t start = step->zone * zone_sectors(disk);

    g_test_message("%s", step->ids);
    g_assert_cmpint(run(disk, step->type, start + step->blocks * BLOCK,
                        step->len), ==, step->status);
    assert_as_host(disk, desc);
    g_assert_cmpint(desc[step->zone].z_state, ==, step->state);
    if (step->state != FULL && step->state != NOT_WP) {
        g_assert_cmpuint(le64_to_cpu(desc[step->zone].z_wp), ==,
                         start + step->wp * BLOCK);
    }
}

/*
 * covers: ZONE-11, ZONE-20, ZONE-21, ZONE-22, ZONE-23, ZONE-28, ZONE-30,
 * ZONE-32, ZONE-34, ZONE-35, ZONE-40, ZONE-41, ZONE-42, ZONE-43, ZONE-44,
 * ZONE-45, ROBB-27
 */
static void test_states(DpDisk *disk)
{
    struct virtio_blk_zone_descriptor desc[MAX_ZONES];

    reset_all(disk);
    for (unsigned i = 0; i < ARRAY_SIZE(steps); i++) {
        run_step(disk, &steps[i], desc);
        g_assert_cmpint(desc[Z3].z_state, ==, EMPTY);
    }
    reset_all(disk);
}

static const Step limit_steps[] = {
    { "ZONE-7 the first", OPEN, Z2, 0, 0, OK, EOPEN, 0 },
    { "ZONE-7 the second", OUT, Z3, 0, PAGE, OK, IOPEN, 1 },
    { "ZONE-27 the third", OPEN, Z4, 0, 0, OK, EOPEN, 0 },
    { "ZONE-27 is closed", CLOSE, Z3, 0, 0, OK, CLOSED, 1 },
    { "ZONE-8 open", OPEN, Z5, 0, 0, INVALID, EMPTY, 0 },
    { "ZONE-8 write", OUT, Z5, 0, PAGE, IOERR, EMPTY, 0 },
    { "ZONE-8 append", APPEND, Z5, 0, PAGE, INVALID, EMPTY, 0 },
    { "ZONE-7 open", OPEN, Z3, 0, 0, INVALID, CLOSED, 1 },
    { "ZONE-7 write", OUT, Z3, 1, PAGE, IOERR, CLOSED, 1 },
    { "ZONE-7 append", APPEND, Z3, 0, PAGE, INVALID, CLOSED, 1 },
    { "ZONE-46 CLOSE gives back", CLOSE, Z2, 0, 0, OK, EMPTY, 0 },
    { "ZONE-7 append after it", APPEND, Z3, 0, PAGE, OK, IOPEN, 2 },
    { "ZONE-8 append after it", APPEND, Z5, 0, PAGE, OK, IOPEN, 1 },
    { "ZONE-27 is closed", CLOSE, Z3, 0, 0, OK, CLOSED, 2 },
    { "ZONE-46 FINISH gives back", FINISH, Z5, 0, 0, OK, FULL },
    { "ZONE-7 open after it", OPEN, Z3, 0, 0, OK, EOPEN, 2 },
    { "ZONE-46 RESET gives back", RESET, Z3, 0, 0, OK, EMPTY, 0 },
    { "ZONE-7 open after it", OPEN, Z6, 0, 0, OK, EOPEN, 0 },
};

/*
 * On a device that keeps two zones open and three active
 *
 * covers: ZONE-7, ZONE-8, ZONE-27, ZONE-46
 */
static void test_limits(DpDisk *disk)
{
    const size_t at = offsetof(struct virtio_blk_config, zoned);
    struct virtio_blk_zone_descriptor desc[MAX_ZONES];

    g_assert_cmpuint(qvirtio_config_readl(disk->vdev, at +
        offsetof(struct virtio_blk_zoned_characteristics, max_open_zones)),
        ==, 2);
    g_assert_cmpuint(qvirtio_config_readl(disk->vdev, at +
        offsetof(struct virtio_blk_zoned_characteristics, max_active_zones)),
        ==, 3);
    reset_all(disk);
    for (unsigned i = 0; i < ARRAY_SIZE(limit_steps); i++) {
        run_step(disk, &limit_steps[i], desc);
    }
    reset_all(disk);
}

/* One zone in each state, with no more than two open and three active */
static const Step leave_steps[] = {
    { "FULL", OUT, Z5, 0, PAGE, OK, IOPEN, 1 },
    { "FULL", FINISH, Z5, 0, 0, OK, FULL },
    { "EMPTY", APPEND, Z6, 0, PAGE, OK, IOPEN, 1 },
    { "EMPTY", RESET, Z6, 0, 0, OK, EMPTY, 0 },
    { "CLOSED", APPEND, Z4, 0, 2 * PAGE, OK, IOPEN, 2 },
    { "CLOSED", CLOSE, Z4, 0, 0, OK, CLOSED, 2 },
    { "EOPEN", OPEN, Z3, 0, 0, OK, EOPEN, 0 },
    { "EOPEN", OUT, Z3, 0, PAGE, OK, EOPEN, 1 },
    { "IOPEN", OUT, Z2, 0, PAGE, OK, IOPEN, 1 },
    { "IOPEN", APPEND, Z2, 0, 2 * PAGE, OK, IOPEN, 3 },
};

/* Leaves the device so: tests/zoned/inside/zones looks at it */
static void test_leave(DpDisk *disk)
{
    struct virtio_blk_zone_descriptor desc[MAX_ZONES];

    reset_all(disk);
    for (unsigned i = 0; i < ARRAY_SIZE(leave_steps); i++) {
        run_step(disk, &leave_steps[i], desc);
    }
}

/* --- bounds ---------------------------------------------------------- */

static void assert_untouched(DpDisk *disk)
{
    struct virtio_blk_zone_descriptor desc[MAX_ZONES];

    assert_as_host(disk, desc);
    for (unsigned i = CONVENTIONAL; i < num_zones(disk); i++) {
        g_assert_cmpint(desc[i].z_state, ==, EMPTY);
    }
}

/* covers: ZONE-29, ZONE-48, ROBB-24, G2: a request acts on its sector */
static void test_bounds(DpDisk *disk)
{
    static const uint32_t types[] = { OPEN, CLOSE, FINISH, RESET, APPEND };
    uint64_t size = zone_sectors(disk), end = capacity(disk);
    const uint64_t sectors[] = {
        0, BLOCK, CONVENTIONAL * size + BLOCK, end - 1, end, end + 1,
        end + size, 1ull << 54, 1ull << 55, (1ull << 55) + CONVENTIONAL * size,
        (1ull << 63) + CONVENTIONAL * size, UINT64_MAX - BLOCK + 1, UINT64_MAX,
    };

    reset_all(disk);
    for (unsigned t = 0; t < ARRAY_SIZE(types); t++) {
        for (unsigned i = 0; i < ARRAY_SIZE(sectors); i++) {
            uint32_t len = types[t] == APPEND ? PAGE : 0;
            uint8_t status = run(disk, types[t], sectors[i], len);

            g_test_message("type %u at %" PRIu64, types[t], sectors[i]);
            if (status != INVALID) {
                /* An append that is not at a block is unaligned, too. */
                g_assert_cmpint(types[t], ==, APPEND);
                g_assert_cmpint(sectors[i] % BLOCK, !=, 0);
                g_assert_cmpint(status, ==, UNALIGNED);
            }
        }
        assert_untouched(disk);
    }
    g_assert_cmpint(run(disk, APPEND, CONVENTIONAL * size,
                        ROUND_DOWN(max_append(disk), PAGE) + PAGE), ==,
                    INVALID);
    for (uint64_t beyond = end; beyond; beyond <<= 1) {
        g_assert_cmpint(run(disk, REPORT, beyond, PAGE), ==, INVALID);
        g_assert_cmpint(run(disk, APPEND, beyond, 0), ==, INVALID);
    }
    assert_untouched(disk);
}

/* Fills a zone by appends of @len bytes up to its last block */
static void fill(DpDisk *disk, unsigned zone, uint64_t cap, uint32_t len)
{
    uint64_t start = zone * zone_sectors(disk), where;
    uint32_t step;

    for (uint64_t done = 0; done < cap - BLOCK; done += step / DP_SECTOR) {
        step = MIN(len, (cap - BLOCK - done) * DP_SECTOR);
        g_assert_cmpint(run_append(disk, start, step, zone, &where), ==, OK);
        g_assert_cmpuint(where, ==, start + done);
    }
}

/*
 * covers: ZONE-32, ZONE-33, ZONE-45: the first, a middle and the last zone are
 * full with their last block and not before; nothing goes to the next zone
 */
static void test_full(DpDisk *disk)
{
    struct virtio_blk_zone_descriptor desc[MAX_ZONES];
    unsigned last = num_zones(disk) - 1;
    const unsigned zones[] = { CONVENTIONAL, last - 1, last };
    uint32_t max = ROUND_DOWN(max_append(disk), PAGE);

    reset_all(disk);
    for (unsigned i = 0; i < ARRAY_SIZE(zones); i++) {
        unsigned z = zones[i];
        uint64_t start = z * zone_sectors(disk), where;

        for (unsigned lap = 0; lap < 2; lap++) {
            assert_as_host(disk, desc);
            fill(disk, z, le64_to_cpu(desc[z].z_cap), max);
            g_assert_cmpint(run(disk, APPEND, start, 2 * PAGE), ==, INVALID);
            assert_as_host(disk, desc);
            g_assert_cmpint(desc[z].z_state, ==, IOPEN);
            g_assert_cmpint(run_append(disk, start, PAGE, 7, &where), ==, OK);
            g_assert_cmpuint(where, ==,
                             start + le64_to_cpu(desc[z].z_cap) - BLOCK);
            assert_appended(disk, where, start, 7);
            assert_as_host(disk, desc);
            g_assert_cmpint(desc[z].z_state, ==, FULL);
            g_assert_cmpint(run(disk, APPEND, start, PAGE), ==, INVALID);
            g_assert_cmpint(run(disk, RESET, start, 0), ==, OK);
        }
        assert_untouched(disk);
    }
}

/*
 * covers: ZONE-6, ZONE-41: the last zone, which may be smaller, begins anew
 * after it was reset, also when it was full
 */
static void test_last(DpDisk *disk)
{
    uint64_t start = (num_zones(disk) - 1) * zone_sectors(disk), where;

    reset_all(disk);
    for (unsigned lap = 0; lap < 3; lap++) {
        g_assert_cmpint(run_append(disk, start, PAGE, lap, &where), ==, OK);
        g_assert_cmpuint(where, ==, start);
        assert_appended(disk, where, start, lap);
        if (lap == 1) {
            g_assert_cmpint(run(disk, FINISH, start, 0), ==, OK);
            g_assert_cmpint(run(disk, APPEND, start, PAGE), ==, INVALID);
        }
        g_assert_cmpint(run(disk, RESET, start, 0), ==, OK);
    }
    assert_untouched(disk);
}

/* Writes the last block of @zone and the first one of the next at once */
static void write_over_border(DpDisk *disk, unsigned zone)
{
    uint64_t sector = (zone + 1) * zone_sectors(disk) - BLOCK;
    DpReq *req[2];

    for (unsigned i = 0; i < ARRAY_SIZE(req); i++, sector += BLOCK) {
        req[i] = dp_req(disk, OUT, sector, PAGE);
        dp_req_fill(disk, req[i], i);
        dp_submit(disk, req[i]);
    }
    dp_kick(disk);
    dp_wait_all(disk);
    for (unsigned i = 0; i < ARRAY_SIZE(req); i++) {
        g_assert_cmpint(req[i]->status, ==, OK);
        dp_req_free(disk, req[i]);
    }
}

/*
 * covers: ZONE-20, ZONE-30, ZONE-45: two writes that meet where a zone ends
 * become one, and both zones have changed: from a conventional one into the
 * next, and between two others
 */
static void test_border(DpDisk *disk)
{
    struct virtio_blk_zone_descriptor desc[MAX_ZONES];
    uint64_t size = zone_sectors(disk), where;
    uint32_t max = ROUND_DOWN(max_append(disk), PAGE);

    for (unsigned z = CONVENTIONAL - 1; z <= CONVENTIONAL; z++) {
        uint64_t border = (z + 1) * size;

        reset_all(disk);
        if (z >= CONVENTIONAL) {
            fill(disk, z, size, max);
        }
        write_over_border(disk, z);
        assert_as_host(disk, desc);
        g_assert_cmpint(desc[z].z_state, ==, z < CONVENTIONAL ? NOT_WP : FULL);
        g_assert_cmpuint(le64_to_cpu(desc[z + 1].z_wp), ==, border + BLOCK);
        g_assert_cmpint(run_append(disk, border, PAGE, 9, &where), ==, OK);
        g_assert_cmpuint(where, ==, border + BLOCK);
        assert_appended(disk, where, border, 9);
    }
    reset_all(disk);
}

/* covers: ROBB-26: there is no room for the sector of an append */
static void test_no_room(DpDisk *disk)
{
    DpReq *req = dp_req(disk, APPEND, CONVENTIONAL * zone_sectors(disk), PAGE);

    reset_all(disk);
    dp_submit(disk, req);
    dp_kick(disk);
    dp_assert_broken(disk);
    dp_req_drop(disk, &req, 1);
}

/* --- types that are none --------------------------------------------- */

/* With a block of data, which a report takes and others bring */
static uint8_t run_type(DpDisk *disk, uint32_t type, uint64_t sector)
{
    DpReq *req;
    uint8_t status;

    if (type == REPORT + 1) {
        req = dp_req(disk, type, sector, PAGE);
        req->to_guest = true;
        dp_submit(disk, req);
    } else {
        req = send_request(disk, type, sector, PAGE, 3);
    }
    dp_kick(disk);
    dp_wait(disk, req);
    status = req->status;
    dp_req_free(disk, req);
    return status;
}

/*
 * covers: BLKR-15, BLKR-16: the number before an append's, and those after the
 * numbers of the other zone requests, are no zone requests
 */
static void test_types(DpDisk *disk)
{
    static const uint32_t types[] = {
        APPEND - 1, REPORT + 1, OPEN + 1, CLOSE + 1, FINISH + 1, RESET + 1,
        RESET_ALL + 1, RESET_ALL + 2,
    };
    uint64_t start = CONVENTIONAL * zone_sectors(disk);
    struct virtio_blk_zone_descriptor desc[MAX_ZONES];

    reset_all(disk);
    g_assert_cmpint(run(disk, APPEND, start, PAGE), ==, OK);
    for (unsigned i = 0; i < ARRAY_SIZE(types); i++) {
        g_test_message("type %u", types[i]);
        g_assert_cmpint(run_type(disk, types[i], start), ==, UNSUPP);
        assert_as_host(disk, desc);
        g_assert_cmpint(desc[CONVENTIONAL].z_state, ==, IOPEN);
        g_assert_cmpuint(le64_to_cpu(desc[CONVENTIONAL].z_wp), ==,
                         start + BLOCK);
    }
    reset_all(disk);
}

/* --- several at once ------------------------------------------------- */

/* covers: ZONE-30: each append has its own place, and its data is there */
static void test_at_once(DpDisk *disk)
{
    struct virtio_blk_zone_descriptor desc[MAX_ZONES];
    uint64_t start = CONVENTIONAL * zone_sectors(disk);
    bool taken[NUM_AT_ONCE] = { false };
    DpReq *req[NUM_AT_ONCE];

    reset_all(disk);
    for (unsigned i = 0; i < NUM_AT_ONCE; i++) {
        req[i] = send_request(disk, APPEND, start, PAGE, i);
    }
    dp_kick(disk);
    dp_wait_all(disk);
    for (unsigned i = 0; i < NUM_AT_ONCE; i++) {
        uint64_t where = appended(disk, req[i]), slot = (where - start) / BLOCK;

        g_assert_cmpint(req[i]->status, ==, OK);
        g_assert_cmpuint(where, >=, start);
        g_assert_cmpuint(slot, <, NUM_AT_ONCE);
        g_assert_false(taken[slot]);
        taken[slot] = true;
        dp_req_free(disk, req[i]);
        assert_appended(disk, where, start, i);
    }
    assert_as_host(disk, desc);
    g_assert_cmpuint(le64_to_cpu(desc[CONVENTIONAL].z_wp), ==,
                     start + NUM_AT_ONCE * BLOCK);
    reset_all(disk);
}

/* covers: ZONE-38, ZONE-39: what was written before a reset is gone */
static void test_unwritten(DpDisk *disk)
{
    uint64_t start = CONVENTIONAL * zone_sectors(disk);
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_IN, start, PAGE);

    reset_all(disk);
    g_assert_cmpint(run_append(disk, start, PAGE, 5, NULL), ==, OK);
    assert_appended(disk, start, start, 5);
    g_assert_cmpint(run(disk, RESET, start, 0), ==, OK);
    g_assert_cmpint(run(disk, FINISH, start, 0), ==, OK);
    qtest_memset(disk->vm->qts, req->data, 0x5a, PAGE);
    g_assert_cmpint(dp_run(disk, req), ==, OK);
    g_assert_true(dp_req_is_byte(disk, req, 0));
    dp_req_free(disk, req);
    reset_all(disk);
}

/* @how: the option that makes a node "n0" of the host's device */
static DpVm *host_device_vm(const DpMode *mode, const char *how)
{
    DpVm *vm = dp_vm_start(
        "%s,filename=%s,cache.direct=on,aio=%s "
        "-device virtio-blk-pci,id=d0,drive=n0,addr=%d,logical_block_size=%d,"
        "physical_block_size=%d%s",
        how, zoned_disk(), dp_can_io_uring() ? "io_uring" : "threads", DP_SLOT,
        PAGE, PAGE, mode->props);

    vm->mode = mode;
    return vm;
}

static DpVm *zoned_vm(const DpMode *mode)
{
    return host_device_vm(mode, "-blockdev host_device,node-name=n0");
}

static DpVm *zoned_drive_vm(const DpMode *mode)
{
    return host_device_vm(mode, "-drive if=none,id=n0,driver=host_device");
}

/* --- disks without zones, or without a medium ------------------------ */

static const uint32_t zone_types[] = {
    REPORT, OPEN, CLOSE, FINISH, RESET, RESET_ALL, APPEND,
};

static void assert_all_types(DpDisk *disk, uint64_t sector, uint8_t status)
{
    for (unsigned i = 0; i < ARRAY_SIZE(zone_types); i++) {
        g_test_message("type %u", zone_types[i]);
        g_assert_cmpint(run(disk, zone_types[i], sector, PAGE), ==, status);
    }
}

static void drive_del(DpDisk *disk, const char *drive)
{
    g_autofree char *said = qtest_hmp(disk->vm->qts, "drive_del %s", drive);

    g_assert_cmpstr(said, ==, "");
}

/* What the driver asks for after its disk has gone does not reach the host's */
static void test_drive_del(DpDisk *disk)
{
    uint64_t start = CONVENTIONAL * zone_sectors(disk);
    Zones zones;

    reset_all(disk);
    g_assert_cmpint(run(disk, OUT, start, PAGE), ==, OK);
    drive_del(disk, "n0");
    assert_all_types(disk, start, INVALID);
    g_assert_cmpint(run(disk, OUT, start + BLOCK, PAGE), ==, IOERR);
    host_zones(&zones);
    g_assert_cmpint(zones.zone[CONVENTIONAL].cond, ==, BLK_ZONE_COND_IMP_OPEN);
    g_assert_cmpuint(zones.zone[CONVENTIONAL].wp, ==, start + BLOCK);
}

static DpVm *drive_vm(const DpMode *mode)
{
    DpVm *vm = dp_vm_start(
        "-drive if=none,id=drive0,driver=null-co,size=1M "
        "-device virtio-blk-pci,id=d0,drive=drive0,addr=%d%s",
        DP_SLOT, mode->props);

    vm->mode = mode;
    return vm;
}

/* covers: ZONE-14: also when the disk has lost its medium */
static void test_no_medium(DpDisk *disk)
{
    assert_all_types(disk, 0, UNSUPP);
    drive_del(disk, "drive0");
    assert_all_types(disk, 0, UNSUPP);
}

int main(int argc, char **argv)
{
    static const DpTest plain[] = {
        { "no-medium", test_no_medium, .vm = drive_vm, .ends_unserved = true },
    };
    static const DpTest tests[] = {
        { "config", test_config, .vm = zoned_vm },
        { "report", test_report, .vm = zoned_vm },
        { "states", test_states, .vm = zoned_vm },
        { "limits", test_limits, .vm = zoned_vm },
        { "bounds", test_bounds, .vm = zoned_vm },
        { "full", test_full, .vm = zoned_vm },
        { "last", test_last, .vm = zoned_vm },
        { "border", test_border, .vm = zoned_vm },
        { "types", test_types, .vm = zoned_vm },
        { "at-once", test_at_once, .vm = zoned_vm },
        { "unwritten", test_unwritten, .vm = zoned_vm },
        { "no-room", test_no_room, .vm = zoned_vm, .ends_unserved = true },
        { "drive-del", test_drive_del, .vm = zoned_drive_vm,
          .ends_unserved = true },
        { "leave", test_leave, .vm = zoned_vm },
    };

    /* Each kind of ring, and QEMU's own path: it is a slow machine. */
    static const DpMode *const modes[] = {
        &dp_mode_iothread, &dp_mode_packed, &dp_mode_off,
    };

    g_test_init(&argc, &argv, NULL);
    dp_add_table("zoned", plain, ARRAY_SIZE(plain), false);
    for (unsigned i = 0; zoned_disk() && i < ARRAY_SIZE(tests); i++) {
        for (unsigned j = 0; j < ARRAY_SIZE(modes); j++) {
            dp_add_row("zoned", &tests[i], modes[j]);
        }
    }
    return g_test_run();
}
