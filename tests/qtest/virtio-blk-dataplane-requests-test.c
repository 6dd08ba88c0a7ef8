/*
 * Requests of every type, as the driver of a virtio-blk disk sees them
 *
 * Each test runs on the data plane, with an IOThread of the user's and with a
 * private one, and on QEMU's own path with and without an IOThread: the device
 * must not differ.  It may know the virtio-blk driver of
 * virtio-blk-dataplane-common.h and no more of the plane than its counters.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qobject/qdict.h"
#include "virtio-blk-dataplane-common.h"

#define MIB (1024 * 1024)

#define OK VIRTIO_BLK_S_OK
#define IOERR VIRTIO_BLK_S_IOERR
#define UNSUPP VIRTIO_BLK_S_UNSUPP

/* A type that is data-less, for a request that is given no data */
static uint8_t run_plain(DpDisk *disk, uint32_t type, uint64_t sector,
                         uint32_t len)
{
    DpReq *req = dp_req(disk, type, sector, len);
    uint8_t status = dp_run(disk, req);

    dp_req_free(disk, req);
    return status;
}

/* --- read and write -------------------------------------------------- */

/* QEMU's own ring knows a table only at the head of a chain. */
static bool can_frame(const DpMode *mode, DpFraming framing)
{
    return mode->plane || framing != DP_HALF_INDIRECT;
}

static void one_framing(DpDisk *disk, DpFraming framing, uint32_t len)
{
    uint32_t seed = framing * 1000 + len;
    uint64_t sector = 64 * (framing + 1);
    DpReq *out = dp_req(disk, VIRTIO_BLK_T_OUT, sector, len);
    DpReq *in = dp_req(disk, VIRTIO_BLK_T_IN, sector, len);

    g_test_message("%s, %u bytes", dp_framing_name[framing], len);
    out->framing = framing;
    in->framing = framing;
    in->reserved = 0xdeadbeef;
    dp_req_fill(disk, out, seed);

    g_assert_cmpint(dp_run(disk, out), ==, OK);
    g_assert_cmpuint(out->used_len, ==, 1);
    g_assert_true(dp_req_matches(disk, out, seed));

    g_assert_cmpint(dp_run(disk, in), ==, OK);
    g_assert_cmpuint(in->used_len, ==, len + 1);
    g_assert_true(dp_req_matches(disk, in, seed));

    dp_req_free(disk, out);
    dp_req_free(disk, in);
}

/*
 * covers: BLKR-1, BLKR-2, BLKR-3, BLKR-4, BLKR-5, BLKR-6, BLKR-7, BLKR-8,
 * BLKR-9, BLKR-20, VQ-1, VQ-3, SPLIT-3, SPLIT-7, SPLIT-9, SPLIT-13, SPLIT-15,
 * SPLIT-20, SPLIT-21, SPLIT-22, SPLIT-23, SPLIT-24, SPLIT-25, ROBS-24, FEAT-9,
 * VQ-5
 */
static void test_read_write(DpDisk *disk)
{
    static const uint32_t sizes[] = { 512, 1024, 4096, 65536 };
    const DpMode *mode = disk->vm->mode;

    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        for (DpFraming f = 0; f < DP_FRAMING__MAX; f++) {
            if (can_frame(mode, f)) {
                one_framing(disk, f, sizes[i]);
            }
        }
    }
}

/* What a request can have besides its layout */
typedef struct Request {
    uint32_t type;
    uint64_t sector;
    uint32_t len;
    bool to_guest;
} Request;

typedef struct Result {
    uint8_t status;
    uint32_t used_len;
    bool matches;               /* the data is that of the request's sector */
} Result;

#define PICK(rand, array) \
    ((array)[g_rand_int_range(rand, 0, ARRAY_SIZE(array))])

static Request random_request(GRand *rand)
{
    static const uint32_t types[] = {
        VIRTIO_BLK_T_IN, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_IN,
        VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_OUT,
        VIRTIO_BLK_T_IN | VIRTIO_BLK_T_BARRIER,
        VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_BARRIER,
        VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, 0x1234,
    };
    static const uint64_t sectors[] = {
        0, 1, 8, 1000, DP_CAPACITY - 8, DP_CAPACITY - 1, DP_CAPACITY,
        1ull << 55, UINT64_MAX,
    };
    static const uint32_t lens[] = {
        0, 1, 511, 512, 512, 513, 1024, 4096, 4096, 65536,
    };
    Request r = {
        .type = PICK(rand, types),
        .sector = PICK(rand, sectors),
        .len = PICK(rand, lens),
    };

    /* Sometimes the data is not for the type's direction. */
    r.to_guest = !(r.type & VIRTIO_BLK_T_OUT) ^
                 (g_rand_int_range(rand, 0, 8) == 0);
    return r;
}

/* A write writes @seed, and a read reads that again */
static Result run_framed(DpDisk *disk, const Request *r, DpFraming framing,
                         uint32_t seed)
{
    DpReq *req = dp_req(disk, r->type, r->sector, r->len);
    Result result;

    req->to_guest = r->to_guest;
    req->framing = framing;
    if (r->to_guest) {
        qtest_memset(disk->vm->qts, req->data, 0x77, r->len);
    } else {
        dp_req_fill(disk, req, seed);
    }
    result.status = dp_run(disk, req);
    result.used_len = req->used_len;
    result.matches = dp_req_matches(disk, req, seed);
    dp_req_free(disk, req);
    return result;
}

static bool is_type(const Request *r, uint32_t type)
{
    return (r->type & ~VIRTIO_BLK_T_BARRIER) == type;
}

static void compare_framings(DpDisk *disk, const Request *r, DpFraming usual,
                             DpFraming other, uint32_t seed)
{
    Request in = *r, out = *r;
    Result a, b;

    in.type = VIRTIO_BLK_T_IN;
    in.to_guest = true;
    out.type = VIRTIO_BLK_T_OUT;
    out.to_guest = false;
    if (is_type(r, VIRTIO_BLK_T_IN)) {
        run_framed(disk, &out, other, seed);
    }
    a = run_framed(disk, r, usual, seed);
    if (is_type(r, VIRTIO_BLK_T_OUT) && a.status == OK && !r->to_guest) {
        g_assert_true(run_framed(disk, &in, other, seed).matches);
        seed++;
    }
    b = run_framed(disk, r, other, seed);
    if (is_type(r, VIRTIO_BLK_T_OUT) && b.status == OK && !r->to_guest) {
        g_assert_true(run_framed(disk, &in, usual, seed).matches);
    }
    g_assert_cmpint(a.status, ==, b.status);
    g_assert_cmpuint(a.used_len, ==, b.used_len);
    if (a.status == OK) {
        g_assert_cmpint(a.matches, ==, b.matches);
    }
}

/*
 * The parser has a short way for reads and writes whose header and status are
 * descriptors of their own, and another for any layout: no difference shows.
 *
 * covers: BLKR-1, BLKR-2, BLKR-5, BLKR-6, ROBB-3, ROBB-4, ROBB-5, ROBB-6,
 * ROBB-7, ROBB-8
 */
static void test_layouts(DpDisk *disk)
{
    GRand *rand = g_rand_new_with_seed(1);

    for (unsigned i = 0; i < 200; i++) {
        Request r = random_request(rand);
        DpFraming usual = i % 2 ? DP_INDIRECT : DP_DIRECT;
        DpFraming other = i / 2 % 2 ? DP_MERGED : DP_BYTES;

        g_test_message("%u: type 0x%x, sector 0x%" PRIx64 ", %u bytes %s, "
                       "%s and %s", i, r.type, r.sector, r.len,
                       r.to_guest ? "in" : "out", dp_framing_name[usual],
                       dp_framing_name[other]);
        compare_framings(disk, &r, usual, other, 2 * i);
    }
    g_rand_free(rand);
}

/* covers: BLKR-5, BLKR-7: a write leaves its neighbours alone */
static void test_neighbours(DpDisk *disk)
{
    for (unsigned i = 0; i < 3; i++) {
        g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, 100 + i, 512, i),
                        ==, OK);
    }
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, 101, 512, 77), ==, OK);
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_IN, 100, 512, 0), ==, OK);
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_IN, 101, 512, 77), ==, OK);
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_IN, 102, 512, 2), ==, OK);
}

typedef struct RangeCase {
    const char *ids;
    uint32_t type;
    uint64_t sector;
    uint32_t len;
    uint8_t status;
} RangeCase;

/* A case is named by what it covers; the store must not change. */
static const RangeCase range_cases[] = {
    { "BLKR-6 last sector", VIRTIO_BLK_T_IN, DP_CAPACITY - 1, 512, OK },
    { "ROBB-3", VIRTIO_BLK_T_IN, 0, 511, IOERR },
    { "ROBB-3", VIRTIO_BLK_T_IN, 0, 513, IOERR },
    { "ROBB-4", VIRTIO_BLK_T_OUT, 0, 511, IOERR },
    { "ROBB-4", VIRTIO_BLK_T_OUT, 0, 513, IOERR },
    { "ROBB-5 from the end", VIRTIO_BLK_T_IN, DP_CAPACITY, 512, IOERR },
    { "ROBB-5 beyond", VIRTIO_BLK_T_IN, DP_CAPACITY + 1, 512, IOERR },
    { "ROBB-5 across", VIRTIO_BLK_T_IN, DP_CAPACITY - 1, 1024, IOERR },
    { "ROBB-6 from the end", VIRTIO_BLK_T_OUT, DP_CAPACITY, 512, IOERR },
    { "ROBB-6 beyond", VIRTIO_BLK_T_OUT, DP_CAPACITY + 1, 512, IOERR },
    { "ROBB-6 across", VIRTIO_BLK_T_OUT, DP_CAPACITY - 1, 1024, IOERR },
    { "ROBB-7", VIRTIO_BLK_T_IN, UINT64_MAX, 512, IOERR },
    { "ROBB-7", VIRTIO_BLK_T_OUT, UINT64_MAX, 512, IOERR },
    { "ROBB-7", VIRTIO_BLK_T_IN, 1ull << 55, 512, IOERR },
    { "ROBB-7", VIRTIO_BLK_T_OUT, 1ull << 55, 512, IOERR },
    { "ROBB-7", VIRTIO_BLK_T_IN, 1ull << 63, 1024, IOERR },
    { "ROBB-7", VIRTIO_BLK_T_OUT, 1ull << 63, 1024, IOERR },
    { "ROBB-8", VIRTIO_BLK_T_IN, 0, 0, OK },
    { "ROBB-8", VIRTIO_BLK_T_OUT, 0, 0, OK },
};

/* covers: BLKR-6, ROBB-3, ROBB-4, ROBB-5, ROBB-6, ROBB-7, ROBB-8 */
static void test_range(DpDisk *disk)
{
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, 0, 1024, 1), ==, OK);
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, DP_CAPACITY - 2, 1024, 2),
                    ==, OK);
    for (unsigned i = 0; i < ARRAY_SIZE(range_cases); i++) {
        const RangeCase *c = &range_cases[i];

        g_test_message("%s, type %u, sector 0x%" PRIx64 ", %u bytes", c->ids,
                       c->type, c->sector, c->len);
        g_assert_cmpint(run_plain(disk, c->type, c->sector, c->len),
                        ==, c->status);
    }
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_IN, 0, 1024, 1), ==, OK);
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_IN, DP_CAPACITY - 2, 1024, 2),
                    ==, OK);
}

/* Run a request whose chain the caller built; returns its status. */
static uint8_t run_chain(DpDisk *disk, DpReq *req, const DpSeg *seg,
                         unsigned n)
{
    dp_submit_chain(disk, req, seg, n);
    dp_kick(disk);
    dp_wait(disk, req);
    return req->status;
}

/* covers: ROBB-10: data of the wrong direction is no data */
static void test_direction(DpDisk *disk)
{
    DpReq *in = dp_req(disk, VIRTIO_BLK_T_IN, 8, 512);
    DpReq *out = dp_req(disk, VIRTIO_BLK_T_OUT, 8, 512);
    DpSeg wrong_in[] = {
        { in->page, 16, 0 },
        { in->data, 512, 0 },
        { in->status_addr, 1, VRING_DESC_F_WRITE },
    };
    DpSeg wrong_out[] = {
        { out->page, 16, 0 },
        { out->data, 512, VRING_DESC_F_WRITE },
        { out->status_addr, 1, VRING_DESC_F_WRITE },
    };

    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, 8, 512, 5), ==, OK);
    dp_req_fill(disk, in, 6);
    g_assert_cmpint(run_chain(disk, in, wrong_in, 3), ==, OK);
    g_assert_true(dp_req_matches(disk, in, 6));
    dp_req_fill(disk, out, 7);
    g_assert_cmpint(run_chain(disk, out, wrong_out, 3), ==, OK);
    g_assert_true(dp_req_matches(disk, out, 7));
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_IN, 8, 512, 5), ==, OK);

    dp_req_free(disk, in);
    dp_req_free(disk, out);
}

/* covers: ROBB-11, BLKR-2: more room than the status byte needs */
static void test_long_status(DpDisk *disk)
{
    static const uint32_t types[] = { VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH };

    for (unsigned i = 0; i < ARRAY_SIZE(types); i++) {
        DpReq *req = dp_req(disk, types[i], 0, 512);
        /* The status byte is the last of four; check_head() sees the others */
        DpSeg seg[] = {
            { req->page, 16, 0 },
            { req->data, 512, 0 },
            { req->status_addr - 3, 4, VRING_DESC_F_WRITE },
        };

        g_assert_cmpint(run_chain(disk, req, seg, 3), ==, OK);
        dp_req_free(disk, req);
    }
}

/* covers: VQ-4, SPLIT-8, SPLIT-26, BLKC-5, ROBB-9: chains of all lengths */
static void test_long_chain(DpDisk *disk)
{
    static const unsigned counts[] = { 1, 2, 15, 16, 17, 126, 254, 510 };
    g_autofree DpSeg *seg = g_new0(DpSeg, 512);

    disk->want_num = 512;
    dp_disk_start(disk, DP_F_ALL);
    g_assert_cmpuint(qvirtio_config_readl(disk->vdev, 12), ==, 510);
    for (unsigned i = 0; i < ARRAY_SIZE(counts); i++) {
        unsigned n = counts[i];
        DpReq *out = dp_req(disk, VIRTIO_BLK_T_OUT, 16, n * 512);

        /* From the last sector's buffer down to the first */
        seg[0] = (DpSeg) { out->page, 16, 0 };
        for (unsigned j = 0; j < n; j++) {
            seg[1 + j] = (DpSeg) { out->data + j * 512, 512, 0 };
        }
        seg[n + 1] = (DpSeg) { out->status_addr, 1, VRING_DESC_F_WRITE };
        dp_req_fill(disk, out, n);
        g_assert_cmpint(run_chain(disk, out, seg, n + 2), ==, OK);
        g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_IN, 16, n * 512, n), ==, OK);
        dp_req_free(disk, out);
    }
}

/*
 * covers: SPLIT-2, PACK-2, PACK-4, PACK-20, PACK-21, PCI-23: small rings,
 * which wrap often; 0 ends those that a split ring can have
 */
static void test_queue_size(DpDisk *disk)
{
    static const unsigned sizes[] = { 2, 4, 8, 128, 0, 1, 3, 5, 7, 100 };

    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        if (!sizes[i]) {
            if (!disk->packed) {
                break;
            }
            continue;
        }
        disk->want_num = sizes[i];
        dp_disk_start(disk, DP_F_ALL);
        for (unsigned j = 0; j < 20; j++) {
            DpReq *req = dp_req(disk, VIRTIO_BLK_T_OUT, j, 512);

            req->framing = sizes[i] > 2 ? DP_DIRECT : DP_INDIRECT;
            dp_req_fill(disk, req, j);
            g_assert_cmpint(dp_run(disk, req), ==, OK);
            req->type = VIRTIO_BLK_T_IN;
            req->to_guest = true;
            qtest_memset(disk->vm->qts, req->data, 0, 512);
            g_assert_cmpint(dp_run(disk, req), ==, OK);
            g_assert_true(dp_req_matches(disk, req, j));
            dp_req_free(disk, req);
        }
        dp_assert_as_asked(disk);
    }
}

/*
 * covers: PACK-7, PACK-14, PACK-16, PACK-17, PACK-25: what the device leaves
 * in the first entry of a list, lap by lap.  QEMU's own path never sets WRITE.
 */
static void check_used_desc(DpDisk *disk, const DpReq *req, uint16_t pos,
                            bool plane)
{
    uint16_t lap = 1 << VRING_PACKED_DESC_F_AVAIL |
                   1 << VRING_PACKED_DESC_F_USED;
    struct vring_packed_desc desc;

    qtest_memread(disk->vm->qts, disk->vq->desc + 16 * (pos % disk->num),
                  &desc, sizeof(desc));
    g_assert_cmpuint(le16_to_cpu(desc.id), ==, req->head);
    g_assert_cmpuint(le32_to_cpu(desc.len), ==, req->used_len);
    if (pos >= disk->num) {
        lap = 0;
    }
    if (plane && req->used_len) {
        lap |= VRING_DESC_F_WRITE;
    }
    g_assert_cmphex(le16_to_cpu(desc.flags), ==, lap);
}

static void test_used_desc(DpDisk *disk)
{
    static const struct {
        uint32_t type;
        uint64_t sector;
        uint32_t len;
        uint8_t status;
    } cases[] = {
        { VIRTIO_BLK_T_IN, 0, 512, OK },
        { VIRTIO_BLK_T_OUT, 0, 512, OK },
        { VIRTIO_BLK_T_FLUSH, 0, 0, OK },
        { VIRTIO_BLK_T_IN, DP_CAPACITY, 512, IOERR },
    };
    const DpMode *mode = disk->vm->mode;

    disk->want_num = 5;
    dp_disk_start(disk, DP_F_ALL);
    for (unsigned i = 0; i < 40; i++) {
        unsigned c = i % ARRAY_SIZE(cases);
        DpReq *req = dp_req(disk, cases[c].type, cases[c].sector,
                            cases[c].len);
        uint16_t pos = disk->used_idx;

        req->framing = i % 3 ? DP_DIRECT : DP_INDIRECT;
        g_assert_cmpint(dp_run(disk, req), ==, cases[c].status);
        check_used_desc(disk, req, pos, mode->plane);
        g_assert_cmpuint(disk->used_idx, ==, disk->avail_idx);
        dp_req_free(disk, req);
    }
}

/* --- flush and the write cache --------------------------------------- */

/* covers: BLKR-9, BLKR-21, ROBB-14, ROBB-15, ROBB-23 (type 5) */
static void test_flush(DpDisk *disk)
{
    static const struct {
        uint32_t type;
        uint64_t sector;
        uint32_t len;
    } cases[] = {
        { VIRTIO_BLK_T_FLUSH, 0, 0 },
        { VIRTIO_BLK_T_FLUSH, 1, 0 },
        { VIRTIO_BLK_T_FLUSH, DP_CAPACITY + 1, 0 },
        { VIRTIO_BLK_T_FLUSH, 0, 512 },
        { VIRTIO_BLK_T_FLUSH | VIRTIO_BLK_T_OUT, 0, 0 },
    };
    const DpMode *mode = disk->vm->mode;
    DpInfo info;

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        DpReq *req = dp_req(disk, cases[i].type, cases[i].sector,
                            cases[i].len);

        g_assert_cmpint(dp_run(disk, req), ==, OK);
        g_assert_cmpuint(req->used_len, ==, 1);
        dp_req_free(disk, req);
    }
    if (mode->plane) {
        dp_info(disk->vm, "d0", &info);
        g_assert_cmpint(info.flushes, ==, ARRAY_SIZE(cases));
        g_assert_cmpint(info.completed, ==, ARRAY_SIZE(cases));
    }
}

static void write_wce(DpDisk *disk, uint8_t value)
{
    qpci_io_writeb(disk->pci->pdev, disk->pci->bar,
                   disk->pci->device_cfg_offset +
                   offsetof(struct virtio_blk_config, wce), value);
}

static uint8_t read_wce(DpDisk *disk)
{
    return qvirtio_config_readb(disk->vdev,
                                offsetof(struct virtio_blk_config, wce));
}

/*
 * A disk that fails each flush after its second write; qcow2, since it knows
 * no FUA and must flush to make a write stable
 */
static DpVm *vm_flush_fails(const DpMode *mode)
{
    g_autofree char *path = dp_tmp("disk.qcow2");

    g_assert_true(mkimg(path, "qcow2", DP_IMAGE_SIZE / MIB));
    return dp_vm_start(
        "-blockdev '{\"driver\": \"qcow2\", \"node-name\": \"n0\","
        " \"file\": {\"driver\": \"blkdebug\", \"image\": {"
        " \"driver\": \"file\", \"filename\": \"%s\"},"
        " \"set-state\": ["
        "  {\"event\": \"write_aio\", \"state\": 1, \"new_state\": 2},"
        "  {\"event\": \"write_aio\", \"state\": 2, \"new_state\": 3}],"
        " \"inject-error\": [{\"event\": \"flush_to_disk\","
        "  \"iotype\": \"flush\", \"errno\": 5, \"state\": 3}]}}' "
        "-device virtio-blk-pci,id=d0,drive=n0,addr=%d,werror=report%s",
        path, DP_SLOT, mode->props);
}

/*
 * covers: BLKC-14, WCE-1, WCE-2, WCE-6, WCE-10, WCE-11, ROBB-29, BLKR-11: a
 * disk whose flush fails shows when a write is made stable
 */
static void test_write_cache(const DpMode *mode)
{
    DpVm *vm;
    DpDisk *disk;

    if (!have_qemu_img()) {
        g_test_skip("needs qemu-img, named by QTEST_QEMU_IMG");
        return;
    }
    vm = vm_flush_fails(mode);
    disk = dp_disk_new(vm, DP_F_ALL);

    g_assert_cmpuint(read_wce(disk), ==, 1);
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, 0, 512, 1), ==, OK);
    g_assert_cmpint(run_plain(disk, VIRTIO_BLK_T_FLUSH, 0, 0), ==, OK);
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, 0, 512, 1), ==, OK);
    g_assert_cmpint(run_plain(disk, VIRTIO_BLK_T_FLUSH, 0, 0), ==, IOERR);

    write_wce(disk, 0);
    g_assert_cmpuint(read_wce(disk), ==, 0);
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, 0, 512, 2), ==, IOERR);
    g_assert_cmpint(run_plain(disk, VIRTIO_BLK_T_IN, 0, 512), ==, OK);

    write_wce(disk, 2);
    g_assert_cmpuint(read_wce(disk), ==, 1);
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, 0, 512, 3), ==, OK);

    /* Neither FLUSH nor CONFIG_WCE accepted: writethrough */
    dp_disk_start(disk, ~((1ull << VIRTIO_BLK_F_FLUSH) |
                          (1ull << VIRTIO_BLK_F_CONFIG_WCE)));
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, 0, 512, 4), ==, IOERR);
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

/* covers: WCE-7: the cache mode changes while writes are in flight */
static void test_write_cache_toggle(DpDisk *disk)
{
    DpLoad *load = dp_load_new(disk, 8, 0);

    for (unsigned i = 0; i < 40; i++) {
        dp_load_send(load);
        write_wce(disk, i & 1);
        dp_load_run(load, 8);
    }
    dp_load_finish(load);
}

/* --- get-id ---------------------------------------------------------- */

/* covers: BLKR-18, BLKR-19, BLKR-21, ROBB-12, ROBB-13 */
static void test_get_id(const DpMode *mode)
{
    static const char *const serials[] = {
        "", "serial", "exactly-20-character", "more-than-20-characters"
    };
    static const uint32_t sizes[] = { 0, 1, 19, 20, 21, 64 };

    for (unsigned i = 0; i < ARRAY_SIZE(serials); i++) {
        g_autofree char *props = g_strdup_printf(",serial=%s", serials[i]);
        DpVm *vm = dp_vm_null(mode, "", props);
        DpDisk *disk = dp_disk_new(vm, DP_F_ALL);

        for (unsigned j = 0; j < ARRAY_SIZE(sizes); j++) {
            DpReq *req = dp_req(disk, VIRTIO_BLK_T_GET_ID, UINT64_MAX,
                                sizes[j]);
            char want[VIRTIO_BLK_ID_BYTES + 1] = "";
            uint8_t got[128];

            strncpy(want, serials[i], VIRTIO_BLK_ID_BYTES);
            qtest_memset(vm->qts, req->data, 0, 128);
            g_assert_cmpint(dp_run(disk, req), ==, OK);
            qtest_memread(vm->qts, req->data, got, sizeof(got));
            g_assert_cmpmem(got, MIN(sizes[j], VIRTIO_BLK_ID_BYTES),
                            want, MIN(sizes[j], VIRTIO_BLK_ID_BYTES));
            for (unsigned k = MIN(sizes[j], VIRTIO_BLK_ID_BYTES);
                 k < sizeof(got); k++) {
                g_assert_cmpint(got[k], ==, 0);
            }
            if (sizes[j] == VIRTIO_BLK_ID_BYTES) {
                g_assert_cmpuint(req->used_len, ==, 21);
            }
            dp_req_free(disk, req);
        }
        dp_disk_free(disk);
        dp_vm_quit(vm);
    }
}

/* --- discard and write zeroes ---------------------------------------- */

typedef struct DwzCase {
    const char *ids;
    uint32_t type;
    uint64_t sector;
    uint32_t num;
    uint32_t flags;
    unsigned segments;
    uint8_t status;
} DwzCase;

#define DISCARD VIRTIO_BLK_T_DISCARD
#define ZEROES VIRTIO_BLK_T_WRITE_ZEROES

static const DwzCase dwz_cases[] = {
    { "DWZ-9", ZEROES, 16, 8, 0, 1, OK },
    { "DWZ-9, DWZ-10", ZEROES, 16, 8, 1, 1, OK },
    { "DWZ-8", DISCARD, 16, 8, 0, 1, OK },
    { "DWZ-13", DISCARD, 17, 3, 0, 1, OK },
    { "DWZ-13", ZEROES, 17, 3, 0, 1, OK },
    { "DWZ-4", ZEROES, 16, 8, 2, 1, UNSUPP },
    { "DWZ-4", ZEROES, 16, 8, 0x80000000, 1, UNSUPP },
    { "DWZ-4", DISCARD, 16, 8, 2, 1, UNSUPP },
    { "DWZ-4", DISCARD, 16, 8, 0x80000000, 1, UNSUPP },
    { "DWZ-5", DISCARD, 16, 8, 1, 1, UNSUPP },
    { "ROBB-17", ZEROES, 16, 8, 0, 2, UNSUPP },
    { "ROBB-17", DISCARD, 16, 8, 0, 2, UNSUPP },
    { "ROBB-18", ZEROES, 0, 4096 + 1, 0, 1, IOERR },
    { "ROBB-18", DISCARD, 0, 4096 + 1, 0, 1, IOERR },
    { "ROBB-19", ZEROES, DP_CAPACITY, 1, 0, 1, IOERR },
    { "ROBB-19", ZEROES, DP_CAPACITY - 1, 2, 0, 1, IOERR },
    { "ROBB-19", ZEROES, UINT64_MAX, 8, 0, 1, IOERR },
    { "ROBB-19", DISCARD, DP_CAPACITY - 1, 2, 0, 1, IOERR },
    { "ROBB-19", DISCARD, UINT64_MAX - 1, 2, 0, 1, IOERR },
    { "ROBB-20", ZEROES, 16, 0, 0, 1, OK },
    { "ROBB-20", DISCARD, 16, 0, 0, 1, OK },
};

static DpReq *dwz_req(DpDisk *disk, const DwzCase *c)
{
    DpReq *req = dp_req(disk, c->type, 0x123456789, 16 * c->segments);

    for (unsigned i = 0; i < c->segments; i++) {
        struct virtio_blk_discard_write_zeroes seg = {
            .sector = cpu_to_le64(c->sector),
            .num_sectors = cpu_to_le32(c->num),
            .flags = cpu_to_le32(c->flags),
        };

        qtest_memwrite(disk->vm->qts, req->data + 16 * i, &seg, sizeof(seg));
    }
    return req;
}

/* Sectors 0 to 63 hold a pattern each; which of them read zero now? */
static void check_zeroes(DpDisk *disk, const DwzCase *c)
{
    bool done = c->status == OK;

    for (uint64_t sector = 12; sector < 28; sector++) {
        DpReq *req = dp_req(disk, VIRTIO_BLK_T_IN, sector, 512);
        bool inside = done && sector >= c->sector &&
                      sector < c->sector + c->num;

        g_assert_cmpint(dp_run(disk, req), ==, OK);
        if (!inside) {
            g_assert_true(dp_req_matches(disk, req, sector));
        } else if (c->type == ZEROES) {
            g_assert_true(dp_req_is_byte(disk, req, 0));
        }
        dp_req_free(disk, req);
    }
}

/*
 * covers: DWZ-1, DWZ-2, DWZ-3, DWZ-4, DWZ-5, DWZ-8, DWZ-9, DWZ-10, DWZ-13,
 * DWZ-15, BLKC-16, BLKC-17, BLKR-21, ROBB-17, ROBB-18, ROBB-19, ROBB-20
 */
static void test_discard_write_zeroes(DpDisk *disk)
{
    g_assert_cmpuint(qvirtio_config_readl(disk->vdev, 36), ==, 4096);
    g_assert_cmpuint(qvirtio_config_readl(disk->vdev, 40), ==, 1);
    g_assert_cmpuint(qvirtio_config_readl(disk->vdev, 48), ==, 4096);
    g_assert_cmpuint(qvirtio_config_readl(disk->vdev, 52), ==, 1);
    for (unsigned i = 0; i < ARRAY_SIZE(dwz_cases); i++) {
        const DwzCase *c = &dwz_cases[i];
        DpReq *req = dwz_req(disk, c);

        g_test_message("%s, type %u, sector 0x%" PRIx64 ", flags 0x%x",
                       c->ids, c->type, c->sector, c->flags);
        for (uint64_t sector = 12; sector < 28; sector++) {
            dp_rw(disk, VIRTIO_BLK_T_OUT, sector, 512, sector);
        }
        req->framing = i % DP_HALF_INDIRECT;
        g_assert_cmpint(dp_run(disk, req), ==, c->status);
        g_assert_cmpuint(req->used_len, ==, 1);
        check_zeroes(disk, c);
        dp_req_free(disk, req);
    }
}

/*
 * covers: ROBB-16: the parser gives up on a segment that is too short; the
 * reaction asked for is IOERR, QEMU's request code marks the device broken.
 */
static void test_short_segment(DpDisk *disk)
{
    static const uint32_t types[] = { DISCARD, ZEROES };
    static const uint32_t sizes[] = { 0, 1, 15 };

    for (unsigned i = 0; i < ARRAY_SIZE(types); i++) {
        for (unsigned j = 0; j < ARRAY_SIZE(sizes); j++) {
            DpReq *req;

            dp_disk_start(disk, DP_F_ALL);
            req = dp_req(disk, types[i], 0, sizes[j]);
            dp_submit(disk, req);
            dp_kick(disk);
            dp_assert_broken(disk);
            dp_disk_reset(disk);
            dp_req_free(disk, req);
        }
    }
    dp_disk_start(disk, DP_F_ALL);
    dp_assert_works(disk);
}

/* covers: BLKR-12, BLKR-13, BLKR-14, BLKC-24: a read-only disk */
static void test_read_only(const DpMode *mode)
{
    g_autofree char *path = dp_image("disk.img", DP_IMAGE_SIZE);
    const DwzCase zeroes = { "", ZEROES, 0, 1, 0, 1, IOERR };
    const DwzCase discard = { "", DISCARD, 0, 1, 0, 1, IOERR };
    DpVm *vm = dp_vm_start(
        "-blockdev file,node-name=f0,filename=%s,read-only=on,discard=unmap "
        "-blockdev raw,node-name=n0,file=f0,read-only=on,discard=unmap "
        "-device virtio-blk-pci,id=d0,drive=n0,addr=%d%s",
        path, DP_SLOT, mode->props);
    DpDisk *disk = dp_disk_probe(vm, "d0", DP_SLOT);

    for (unsigned accepted = 0; accepted < 2; accepted++) {
        DpReq *req;

        dp_disk_start(disk, accepted ? ~0ull : ~(1ull << VIRTIO_BLK_F_RO));
        g_assert_true(qvirtio_get_features(disk->vdev) &
                      (1ull << VIRTIO_BLK_F_RO));
        g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, 0, 512, 1), ==, IOERR);
        req = dwz_req(disk, &zeroes);
        g_assert_cmpint(dp_run(disk, req), ==, IOERR);
        dp_req_free(disk, req);
        req = dwz_req(disk, &discard);
        g_assert_cmpint(dp_run(disk, req), ==, IOERR);
        dp_req_free(disk, req);
        req = dp_req(disk, VIRTIO_BLK_T_IN, 0, 512);
        g_assert_cmpint(dp_run(disk, req), ==, OK);
        g_assert_true(dp_req_is_byte(disk, req, 0));
        dp_req_free(disk, req);
    }
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

/* --- types without a service ----------------------------------------- */

typedef struct TypeCase {
    const char *ids;
    uint32_t type;
    uint32_t len;
    bool to_guest;
} TypeCase;

/* Each ends as UNSUPP, whatever its data. */
static const TypeCase unknown_types[] = {
    { "BLKR-15", 6, 0 },
    { "BLKR-15", 7, 512 },
    { "BLKR-15", 12, 512 },
    { "BLKR-15", 99, 0 },
    { "BLKR-15", 99, 512, true },
    { "BLKR-15", UINT32_MAX, 512 },
    { "BLKR-16", 10, 6, true },
    { "BLKR-16", 14, 16 },
    { "BLKR-16", DISCARD & ~1, 16 },
    { "BLKR-16", ZEROES & ~1, 16 },
    { "ZONE-14", VIRTIO_BLK_T_ZONE_APPEND, 512 },
    { "ZONE-14", VIRTIO_BLK_T_ZONE_REPORT, 128, true },
    { "ZONE-14, G2", VIRTIO_BLK_T_ZONE_REPORT, 4 * MIB, true },
    { "ZONE-14", VIRTIO_BLK_T_ZONE_OPEN, 0 },
    { "ZONE-14", VIRTIO_BLK_T_ZONE_CLOSE, 0 },
    { "ZONE-14", VIRTIO_BLK_T_ZONE_FINISH, 0 },
    { "ZONE-14", VIRTIO_BLK_T_ZONE_RESET, 0 },
    { "ZONE-14", VIRTIO_BLK_T_ZONE_RESET_ALL, 0 },
};

/* covers: BLKR-15, BLKR-16, ZONE-1, ZONE-14, G2 */
static void test_unknown(DpDisk *disk)
{
    const DpMode *mode = disk->vm->mode;
    DpVm *vm = disk->vm;
    DpInfo info;

    g_assert_false(disk->features & (1ull << VIRTIO_BLK_F_ZONED));
    for (unsigned i = 0; i < ARRAY_SIZE(unknown_types); i++) {
        const TypeCase *c = &unknown_types[i];
        DpReq *req = dp_req(disk, c->type, 0, c->len);

        g_test_message("%s, type %u", c->ids, c->type);
        req->to_guest = c->to_guest;
        qtest_memset(vm->qts, req->data, 0x77, c->len);
        g_assert_cmpint(dp_run(disk, req), ==, UNSUPP);
        g_assert_true(dp_req_is_byte(disk, req, 0x77));
        dp_req_free(disk, req);
    }
    if (mode->plane) {
        dp_info(vm, "d0", &info);
        g_assert_cmpint(info.other, ==, ARRAY_SIZE(unknown_types));
        g_assert_cmpint(info.completed, ==, ARRAY_SIZE(unknown_types));
        g_assert_cmpint(info.in_flight, ==, 0);
    }
}

/* --- SCSI, on the legacy interface ----------------------------------- */

typedef struct ScsiCase {
    const char *ids;
    uint32_t cmd;           /* bytes of the command block; 0: none */
    uint32_t sense;         /* bytes of the sense buffer; 0: none */
    uint32_t inhdr;         /* bytes of the SCSI header; 0: none */
    uint8_t status;
} ScsiCase;

static const ScsiCase scsi_cases[] = {
    { "LEG-23, LEG-25", 16, 96, 16, UNSUPP },
    { "G1 header too short", 16, 96, 15, IOERR },
    { "G1 header too long", 16, 96, 17, IOERR },
    { "G1 header of one byte", 16, 96, 1, IOERR },
    { "G1 huge header", 16, 96, 4096, IOERR },
    { "G1 no header", 16, 96, 0, IOERR },
    { "G1 no sense", 16, 0, 16, IOERR },
    { "G1 no command", 0, 96, 16, IOERR },
    { "G1 nothing", 0, 0, 0, IOERR },
};

static void one_scsi(DpDisk *disk, const ScsiCase *c, uint32_t type)
{
    DpReq *req = dp_req(disk, type, 0, 16384);
    DpSeg seg[5] = { { req->page, 16, 0 } };
    unsigned n = 1;
    uint32_t errors;

    g_test_message("%s, type %u", c->ids, type);
    qtest_memset(disk->vm->qts, req->data, 0, 16384);
    if (c->cmd) {
        seg[n++] = (DpSeg) { req->data, c->cmd, 0 };
    }
    if (c->sense) {
        seg[n++] = (DpSeg) { req->data + 4096, c->sense, VRING_DESC_F_WRITE };
    }
    if (c->inhdr) {
        seg[n++] = (DpSeg) { req->data + 8192, c->inhdr, VRING_DESC_F_WRITE };
    }
    seg[n++] = (DpSeg) { req->status_addr, 1, VRING_DESC_F_WRITE };
    g_assert_cmpint(run_chain(disk, req, seg, n), ==, c->status);

    errors = qtest_readl(disk->vm->qts, req->data + 8192);
    g_assert_cmpuint(errors, ==, c->status == UNSUPP ? 255 : 0);
    dp_req_free(disk, req);
}

/* covers: LEG-1, LEG-4, LEG-9, LEG-23, LEG-25, G1 */
static void test_scsi_legacy(DpDisk *disk)
{
    g_assert_true(disk->features & (1ull << VIRTIO_BLK_F_SCSI));
    g_assert_false(disk->features & (1ull << VIRTIO_F_VERSION_1));
    for (unsigned i = 0; i < ARRAY_SIZE(scsi_cases); i++) {
        one_scsi(disk, &scsi_cases[i], VIRTIO_BLK_T_SCSI_CMD);
        one_scsi(disk, &scsi_cases[i], VIRTIO_BLK_T_SCSI_CMD |
                                       VIRTIO_BLK_T_OUT);
    }
    dp_assert_works(disk);
}

/* covers: LEG-25: the same from a modern driver */
static void test_scsi_modern(DpDisk *disk)
{
    g_assert_false(disk->features & (1ull << VIRTIO_BLK_F_SCSI));
    for (unsigned i = 0; i < ARRAY_SIZE(scsi_cases); i++) {
        one_scsi(disk, &scsi_cases[i], VIRTIO_BLK_T_SCSI_CMD);
    }
}

/*
 * covers: LEG-1, LEG-4, LEG-9, LEG-20, LEG-26, LEG-27, LEG-28, IRQ-15, IRQ-17:
 * all framings through the legacy interface, and INTx
 */
static void test_legacy(DpDisk *disk)
{
    const DpMode *mode = disk->vm->mode;

    for (unsigned intx = 0; intx < 2; intx++) {
        disk->no_msix = intx;
        if (intx) {
            qpci_msix_disable(disk->pci->pdev);
        }
        dp_disk_start(disk, DP_F_ALL);
        for (DpFraming f = 0; f < DP_FRAMING__MAX; f++) {
            if (can_frame(mode, f)) {
                one_framing(disk, f, 1024);
            }
        }
        g_assert_cmpint(run_plain(disk, VIRTIO_BLK_T_FLUSH | VIRTIO_BLK_T_OUT,
                                  0, 0), ==, OK);
        dp_assert_as_asked(disk);
    }
}

/* covers: IRQ-15, IRQ-17: modern driver with INTx */
static void test_intx(DpDisk *disk)
{
    disk->no_msix = true;
    dp_disk_start(disk, DP_F_ALL);
    for (unsigned i = 0; i < 20; i++) {
        dp_assert_works(disk);
    }
}

/* --- many at once ---------------------------------------------------- */

/*
 * A batch is counted when no more requests are found in the ring, which may be
 * after the driver has seen the last of them, and two may have become one.
 */
static void wait_batches(DpDisk *disk, int64_t merged, DpInfo *info)
{
    gint64 deadline = dp_deadline();

    do {
        dp_info(disk->vm, "d0", info);
        dp_check_deadline(deadline, "the count of batches");
    } while (!info->batches || info->merged < merged);
}

/*
 * covers: SPLIT-4, NOTIF-8, VQ-2, BLKR-20: as many as fit, with one kick;
 * neighbouring requests are merged, and not so if the user forbids it
 */
static void run_batch(DpDisk *disk, bool merging)
{
    DpReq *req[64];
    int64_t merged = merging ? ARRAY_SIZE(req) : 0;
    DpInfo info;

    for (uint32_t type = VIRTIO_BLK_T_OUT;; type = VIRTIO_BLK_T_IN) {
        for (unsigned i = 0; i < ARRAY_SIZE(req); i++) {
            /* Neighbours in pairs, in an order that needs sorting */
            uint64_t sector = 4 * (i / 2) + (i % 2 ? 0 : 1);

            req[i] = dp_req(disk, type, sector, 512);
            req[i]->framing = i % 2 ? DP_INDIRECT : DP_DIRECT;
            if (type == VIRTIO_BLK_T_OUT) {
                dp_req_fill(disk, req[i], i);
            }
            dp_submit(disk, req[i]);
        }
        dp_kick(disk);
        dp_wait_all(disk);
        for (unsigned i = 0; i < ARRAY_SIZE(req); i++) {
            g_assert_cmpint(req[i]->status, ==, OK);
            g_assert_true(dp_req_matches(disk, req[i], i));
            dp_req_free(disk, req[i]);
        }
        if (type == VIRTIO_BLK_T_IN) {
            break;
        }
    }
    if (disk->vm->mode->plane) {
        wait_batches(disk, merged, &info);
        g_assert_cmpint(info.reads, ==, ARRAY_SIZE(req));
        g_assert_cmpint(info.writes, ==, ARRAY_SIZE(req));
        g_assert_cmpint(info.completed, ==, 2 * ARRAY_SIZE(req));
        g_assert_cmpint(info.in_flight, ==, 0);
        g_assert_cmpint(info.merged, ==, merged);
    }
}

static void test_batch(DpDisk *disk)
{
    run_batch(disk, true);
}

static void test_batch_unmerged(DpDisk *disk)
{
    run_batch(disk, false);
}

#define LAPS_BATCH 256

/* Flush requests that fill the ring, each in a table of its own */
static void fill_ring_with_flushes(DpDisk *disk)
{
    QTestState *qts = disk->vm->qts;
    struct virtio_blk_outhdr hdr = {
        .type = cpu_to_le32(VIRTIO_BLK_T_FLUSH),
    };
    uint64_t head = guest_alloc(&disk->vm->alloc, 4096);
    uint64_t tables = guest_alloc(&disk->vm->alloc, 32 * disk->num);
    uint64_t states = guest_alloc(&disk->vm->alloc, disk->num);

    qtest_memwrite(qts, head, &hdr, sizeof(hdr));
    for (unsigned i = 0; i < disk->num; i++) {
        uint64_t table = tables + 32 * i;

        dp_desc_write(disk, table, 0, head, 16, VRING_DESC_F_NEXT, 1);
        dp_desc_write(disk, table, 1, states + i, 1, VRING_DESC_F_WRITE, 0);
        dp_desc_write(disk, disk->vq->desc, i, table, 32,
                      VRING_DESC_F_INDIRECT, 0);
        qtest_writew(qts, disk->vq->avail + 4 + 2 * i, i);
    }
}

/* Expose a ring full, and wait until all of it was used */
static void run_lap(DpDisk *disk)
{
    QTestState *qts = disk->vm->qts;
    gint64 deadline = dp_deadline();

    disk->avail_idx += disk->num;
    dp_kick(disk);
    while (qtest_readw(qts, disk->vq->used + 2) != disk->avail_idx) {
        dp_check_deadline(deadline, "a lap of the ring");
    }
}

/*
 * covers: SPLIT-4, SPLIT-13, SPLIT-17, SPLIT-35, SPLIT-37: indices run over,
 * and a used_event that stays 0 asks for one interrupt in 65536 buffers
 */
static void test_index_wrap(DpDisk *disk)
{
    const DpMode *mode = disk->vm->mode;
    unsigned laps = 65536 / LAPS_BATCH;
    DpInfo info;

    g_assert_cmpuint(disk->num, ==, LAPS_BATCH);
    fill_ring_with_flushes(disk);
    for (unsigned i = 0; i < laps; i++) {
        run_lap(disk);
    }
    g_assert_cmpuint(disk->avail_idx, ==, 0);
    if (mode->plane) {
        gint64 deadline = dp_deadline();

        do {
            dp_check_deadline(deadline, "all requests to be counted");
            dp_info(disk->vm, "d0", &info);
        } while (info.completed != 65536);
        g_assert_cmpint(info.flushes, ==, 65536);
        g_assert_cmpint(info.sent, ==, 1);
    }
    g_assert_true(dp_irq(disk));
    g_assert_false(dp_irq(disk));

    run_lap(disk);
    while (!dp_irq(disk)) {
        /* the interrupt of buffer 65537 */
    }
}

int main(int argc, char **argv)
{
    static const DpTest tests[] = {
        { "read-write", test_read_write },
        { "layouts", test_layouts },
        { "neighbours", test_neighbours },
        { "range", test_range },
        { "direction", test_direction },
        { "long-status", test_long_status },
        { "long-chain", test_long_chain, .props = ",queue-size=512",
          .idle = true },
        { "queue-size", test_queue_size, .idle = true },
        { "used-desc", test_used_desc, DP_PACKED_RING, .idle = true },
        { "flush", test_flush },
        { "write-cache", .own_vm = test_write_cache },
        { "write-cache-toggle", test_write_cache_toggle },
        { "get-id", .own_vm = test_get_id },
        { "discard-write-zeroes", test_discard_write_zeroes,
          .props = ",max-discard-sectors=4096"
                   ",max-write-zeroes-sectors=4096" },
        { "short-segment", test_short_segment, .idle = true },
        { "read-only", .own_vm = test_read_only },
        { "unknown", test_unknown, .null = "" },
        { "scsi-legacy", test_scsi_legacy, .props = ",disable-modern=on" },
        { "scsi-modern", test_scsi_modern },
        { "legacy", test_legacy, .props = ",disable-modern=on", .idle = true },
        { "intx", test_intx, .idle = true },
        { "batch", test_batch },
        { "batch-unmerged", test_batch_unmerged,
          .props = ",request-merging=off" },
        { "index-wrap", test_index_wrap, DP_SPLIT_RING, .null = "" },
    };

    g_test_init(&argc, &argv, NULL);
    dp_add_table("requests", tests, ARRAY_SIZE(tests), false);
    return g_test_run();
}
