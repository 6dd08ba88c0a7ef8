/*
 * Writes that have to be padded, and serialising ones among them
 *
 * A BlockBackend in the main loop above a node whose clusters are larger than
 * its alignment.  Its driver keeps the data, holds requests for as long as the
 * test wants, and fails reads.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block.h"
#include "block/block_int.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "system/block-backend.h"

#define SECTOR BDRV_SECTOR_SIZE
#define CLUSTER (8 * SECTOR)
#define DISK_SIZE (8 * CLUSTER)

/* A request at @offset waits in the driver. */
typedef struct {
    int64_t offset;             /* or -1 */
    Coroutine *co;              /* the request that waits, or NULL */
} Hold;

typedef struct {
    uint8_t data[DISK_SIZE];
    Hold read, write;
    int64_t bad;                /* an unreadable sector, or -1 */
    unsigned writes;
} Disk;

typedef struct {
    int64_t offset;
    int64_t bytes;
    BdrvRequestFlags flags;
    uint8_t byte;               /* 0 for BDRV_REQ_ZERO_WRITE */
} Write;

typedef struct {
    Write w;
    uint8_t buf[DISK_SIZE];
    QEMUIOVector qiov;
    bool done;
} Request;

static BlockBackend *blk;
static Disk *disk;

/* The driver */

static void coroutine_fn hold_if_wanted(Hold *hold, int64_t offset)
{
    if (hold->offset == offset) {
        hold->co = qemu_coroutine_self();
        qemu_coroutine_yield();
    }
}

static int coroutine_fn disk_co_preadv(BlockDriverState *bs, int64_t offset,
                                       int64_t bytes, QEMUIOVector *qiov,
                                       BdrvRequestFlags flags)
{
    if (disk->bad >= offset && disk->bad < offset + bytes) {
        return -EIO;
    }
    qemu_iovec_from_buf(qiov, 0, disk->data + offset, bytes);
    hold_if_wanted(&disk->read, offset);
    return 0;
}

static int coroutine_fn disk_co_pwritev(BlockDriverState *bs, int64_t offset,
                                        int64_t bytes, QEMUIOVector *qiov,
                                        BdrvRequestFlags flags)
{
    hold_if_wanted(&disk->write, offset);
    qemu_iovec_to_buf(qiov, 0, disk->data + offset, bytes);
    disk->writes++;
    return 0;
}

static void disk_refresh_limits(BlockDriverState *bs, Error **errp)
{
    bs->bl.request_alignment = SECTOR;
}

static int coroutine_fn disk_co_get_info(BlockDriverState *bs,
                                         BlockDriverInfo *bdi)
{
    bdi->cluster_size = CLUSTER;
    return 0;
}

static BlockDriver bdrv_disk = {
    .format_name            = "disk",
    .instance_size          = sizeof(Disk),
    .bdrv_refresh_limits    = disk_refresh_limits,
    .bdrv_co_get_info       = disk_co_get_info,
    .bdrv_co_preadv         = disk_co_preadv,
    .bdrv_co_pwritev        = disk_co_pwritev,
};

static void setup(void)
{
    BlockDriverState *bs = bdrv_new_open_driver(&bdrv_disk, "disk",
                                                BDRV_O_RDWR, &error_abort);

    bs->total_sectors = DISK_SIZE / SECTOR;
    disk = bs->opaque;
    disk->read.offset = disk->write.offset = disk->bad = -1;
    blk = blk_new(qemu_get_aio_context(), BLK_PERM_ALL, BLK_PERM_ALL);
    blk_insert_bs(blk, bs, &error_abort);
    bdrv_unref(bs);
}

static void teardown(void)
{
    blk_unref(blk);
}

/* Requests */

static void write_done(void *opaque, int ret)
{
    Request *req = opaque;

    g_assert_cmpint(ret, ==, 0);
    req->done = true;
}

static void submit(Request *req)
{
    Write *w = &req->w;

    if (w->flags & BDRV_REQ_ZERO_WRITE) {
        blk_aio_pwrite_zeroes(blk, w->offset, w->bytes, w->flags, write_done,
                              req);
        return;
    }
    memset(req->buf, w->byte, w->bytes);
    qemu_iovec_init_buf(&req->qiov, req->buf, w->bytes);
    blk_aio_pwritev(blk, w->offset, &req->qiov, w->flags, write_done, req);
}

static int write_now(const Write *w)
{
    g_autofree uint8_t *buf = g_malloc(w->bytes);

    if (w->flags & BDRV_REQ_ZERO_WRITE) {
        return blk_pwrite_zeroes(blk, w->offset, w->bytes, w->flags);
    }
    memset(buf, w->byte, w->bytes);
    return blk_pwrite(blk, w->offset, w->bytes, buf, w->flags);
}

static void release(Hold *hold)
{
    Coroutine *co = hold->co;

    hold->offset = -1;
    hold->co = NULL;
    if (co) {
        aio_co_wake(co);
    }
}

static void expect_bytes(int64_t offset, int64_t bytes, uint8_t byte)
{
    for (int64_t i = offset; i < offset + bytes; i++) {
        g_assert_cmphex(disk->data[i], ==, byte);
    }
}

/*
 * A serialising write of half a sector has read the sector.  Another write is
 * in its cluster but not in the sector: if it had to wait for that one now, a
 * write of the sector would not wait for it, and would be lost.
 */
static void test_once(gconstpointer data)
{
    const Write *padded = data;
    g_autofree Request *first = g_new0(Request, 1);
    g_autofree Request *neighbor = g_new0(Request, 1);
    g_autofree Request *later = g_new0(Request, 1);

    setup();
    memset(disk->data, 0xff, DISK_SIZE);
    first->w = *padded;
    neighbor->w = (Write) { .offset = 3 * SECTOR, .bytes = SECTOR, .byte = 2 };
    later->w = (Write) { .offset = 0, .bytes = SECTOR, .byte = 3 };
    disk->read.offset = 0;
    submit(first);
    g_assert_nonnull(disk->read.co);

    disk->write.offset = neighbor->w.offset;
    submit(neighbor);
    release(&disk->read);
    submit(later);
    release(&disk->write);
    while (!(first->done && neighbor->done && later->done)) {
        aio_poll(qemu_get_aio_context(), true);
    }
    expect_bytes(0, SECTOR, 3);
    expect_bytes(SECTOR, 2 * SECTOR, 0xff);
    expect_bytes(3 * SECTOR, SECTOR, 2);
    teardown();
}

/* What lies around a padded write is read, and written, where it is. */
static void test_around(gconstpointer data)
{
    static const int64_t sizes[] = {
        1, SECTOR - 1, SECTOR, SECTOR + 1, 2 * SECTOR, 3 * SECTOR + 1, CLUSTER,
        CLUSTER + SECTOR + 1,
    };
    static const int64_t offsets[] = {
        0, 1, SECTOR - 1, SECTOR, 2 * SECTOR + 7, CLUSTER - 1, CLUSTER,
        2 * CLUSTER + 3 * SECTOR + 1,
    };
    g_autofree uint8_t *expected = g_malloc(DISK_SIZE);
    Write w = *(const Write *)data;

    setup();
    for (int i = 0; i < DISK_SIZE; i++) {
        disk->data[i] = i % 251;
    }
    memcpy(expected, disk->data, DISK_SIZE);
    for (int i = 0; i < ARRAY_SIZE(offsets); i++) {
        for (int j = 0; j < ARRAY_SIZE(sizes); j++) {
            w.offset = offsets[i];
            w.bytes = sizes[j];
            memset(expected + w.offset, w.byte, w.bytes);
            g_assert_cmpint(write_now(&w), ==, 0);
            g_assert_cmpmem(disk->data, DISK_SIZE, expected, DISK_SIZE);
        }
    }
    teardown();
}

/* What cannot be read must not be written over. */
static void test_unreadable(gconstpointer data)
{
    static const struct {
        int64_t offset, bytes, bad;
    } cases[] = {
        { 1, 1, 0 },
        { SECTOR + 1, 2 * SECTOR, SECTOR },
        { SECTOR + 1, 2 * SECTOR, 3 * SECTOR },
        { SECTOR + 1, 5 * SECTOR, SECTOR },
        { SECTOR + 1, 5 * SECTOR, 6 * SECTOR },
        { SECTOR, 3 * SECTOR + 1, 4 * SECTOR },
    };
    Write w = *(const Write *)data;

    setup();
    memset(disk->data, 0xff, DISK_SIZE);
    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        w.offset = cases[i].offset;
        w.bytes = cases[i].bytes;
        disk->bad = cases[i].bad;
        g_assert_cmpint(write_now(&w), ==, -EIO);
        g_assert_cmpuint(disk->writes, ==, 0);
        expect_bytes(0, DISK_SIZE, 0xff);
    }
    disk->bad = 0;
    g_assert_cmpint(write_now(&w), ==, 0);
    teardown();
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*func)(gconstpointer data);
        Write w;
    } tests[] = {
        { "once/write", test_once,
          { SECTOR / 2, SECTOR / 2, BDRV_REQ_SERIALISING, 1 } },
        { "once/zeroes", test_once,
          { SECTOR / 2, SECTOR / 2,
            BDRV_REQ_SERIALISING | BDRV_REQ_ZERO_WRITE } },
        { "around/write", test_around, { .byte = 0xff } },
        { "around/zeroes", test_around, { .flags = BDRV_REQ_ZERO_WRITE } },
        { "around/serialising-write", test_around,
          { .flags = BDRV_REQ_SERIALISING, .byte = 0xff } },
        { "around/serialising-zeroes", test_around,
          { .flags = BDRV_REQ_SERIALISING | BDRV_REQ_ZERO_WRITE } },
        { "unreadable/write", test_unreadable, { .byte = 1 } },
        { "unreadable/zeroes", test_unreadable,
          { .flags = BDRV_REQ_ZERO_WRITE } },
    };

    module_call_init(MODULE_INIT_QOM);
    bdrv_init();
    qemu_init_main_loop(&error_abort);
    g_test_init(&argc, &argv, NULL);
    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        g_autofree char *path = g_strdup_printf("/block-serialising/%s",
                                                tests[i].name);

        g_test_add_data_func(path, &tests[i].w, tests[i].func);
    }
    return g_test_run();
}
