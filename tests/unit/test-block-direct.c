/*
 * Direct requests of the block layer
 *
 * A lane in an IOThread above two nodes: "pass", which passes requests on, and
 * "leaf", whose driver ends them when the test says so.  The main thread acts
 * as the monitor does; what happens while it polls is done by an "interlude".
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block.h"
#include "block/block_int.h"
#include "block/block-global-state.h"
#include "block/dirty-bitmap.h"
#include "block/throttle-groups.h"
#include "block/write-threshold.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "system/block-backend.h"
#include "system/block-backend-direct.h"
#include "iothread.h"

#define DISK_SIZE (1024 * 1024)
#define MAX_TRANSFER (64 * 1024)
#define MAX_IOV 4
#define SECTOR BDRV_SECTOR_SIZE

/* What bdrv_direct_rw() of the leaf answers */
enum { LEAF_DONE = 1, LEAF_PENDING = 0, LEAF_REFUSES = -EAGAIN };

typedef struct {
    QSIMPLEQ_HEAD(, BdrvDirectReq) pending;
    int answer;
    bool cannot, cannot_write;
    unsigned asked;             /* whether it can */
    bool park;                  /* the next ordinary write waits */
    Coroutine *parked;
    unsigned reads, writes, flushes;    /* on the ordinary path */
} Leaf;

typedef struct Fixture Fixture;

typedef struct {
    BdrvDirectReq direct;
    QEMUIOVector qiov;
    struct iovec iov[MAX_IOV + 1];
    Fixture *f;
    unsigned done;              /* times that it has ended */
    bool resubmitted;
} Request;

struct Fixture {
    IOThread *iothread;
    AioContext *ctx;
    BlockBackend *blk;
    BlockDriverState *pass, *leaf;
    BlkDirect lane;
    uint8_t *buf;
    Request req;
    Request refused;            /* not to be taken: @req may be in flight */
    Request aio;                /* on the ordinary path */
    void (*interlude)(Fixture *f);
    bool interluded;
};

/* The drivers */

static Leaf *leaf_of(Fixture *f)
{
    return f->leaf->opaque;
}

static int leaf_open(BlockDriverState *bs, QDict *options, int flags,
                     Error **errp)
{
    Leaf *leaf = bs->opaque;

    QSIMPLEQ_INIT(&leaf->pending);
    return 0;
}

static void leaf_refresh_limits(BlockDriverState *bs, Error **errp)
{
    bs->bl.request_alignment = SECTOR;
    bs->bl.max_transfer = MAX_TRANSFER;
    bs->bl.max_iov = MAX_IOV;
}

static int coroutine_fn leaf_co_preadv(BlockDriverState *bs, int64_t offset,
                                       int64_t bytes, QEMUIOVector *qiov,
                                       BdrvRequestFlags flags)
{
    Leaf *leaf = bs->opaque;

    qatomic_inc(&leaf->reads);
    return 0;
}

static int coroutine_fn leaf_co_pwritev(BlockDriverState *bs, int64_t offset,
                                        int64_t bytes, QEMUIOVector *qiov,
                                        BdrvRequestFlags flags)
{
    Leaf *leaf = bs->opaque;

    if (leaf->park) {
        leaf->park = false;
        qatomic_set(&leaf->parked, qemu_coroutine_self());
        qemu_coroutine_yield();
    }
    qatomic_inc(&leaf->writes);
    return 0;
}

static int coroutine_fn leaf_co_flush(BlockDriverState *bs)
{
    Leaf *leaf = bs->opaque;

    qatomic_inc(&leaf->flushes);
    return 0;
}

static bool leaf_direct_ready(BlockDriverState *bs, bool is_write)
{
    Leaf *leaf = bs->opaque;

    leaf->asked++;
    return !(leaf->cannot || (leaf->cannot_write && is_write));
}

static int leaf_direct_rw(BlockDriverState *bs, BdrvDirectReq *req)
{
    Leaf *leaf = bs->opaque;

    if (leaf->answer == LEAF_PENDING) {
        QSIMPLEQ_INSERT_TAIL(&leaf->pending, req, next);
    }
    return leaf->answer;
}

static BlockDriver bdrv_leaf = {
    .format_name            = "leaf",
    .instance_size          = sizeof(Leaf),
    .bdrv_open              = leaf_open,
    .bdrv_refresh_limits    = leaf_refresh_limits,
    .bdrv_co_preadv         = leaf_co_preadv,
    .bdrv_co_pwritev        = leaf_co_pwritev,
    .bdrv_co_flush_to_disk  = leaf_co_flush,
    .bdrv_direct_ready      = leaf_direct_ready,
    .bdrv_direct_rw         = leaf_direct_rw,
};

static int coroutine_fn GRAPH_RDLOCK
pass_co_preadv(BlockDriverState *bs, int64_t offset, int64_t bytes,
               QEMUIOVector *qiov, BdrvRequestFlags flags)
{
    return bdrv_co_preadv(bs->file, offset, bytes, qiov, flags);
}

static int coroutine_fn GRAPH_RDLOCK
pass_co_pwritev(BlockDriverState *bs, int64_t offset, int64_t bytes,
                QEMUIOVector *qiov, BdrvRequestFlags flags)
{
    return bdrv_co_pwritev(bs->file, offset, bytes, qiov, flags);
}

static bool pass_direct_passes(BlockDriverState *bs, bool is_write)
{
    return true;
}

static BlockDriver bdrv_pass = {
    .format_name            = "pass",
    .is_filter              = true,
    .bdrv_child_perm        = bdrv_default_perms,
    .bdrv_co_preadv         = pass_co_preadv,
    .bdrv_co_pwritev        = pass_co_pwritev,
    .bdrv_direct_passes     = pass_direct_passes,
};

/* The fixture */

static BlockDriverState *new_node(BlockDriver *drv, const char *name)
{
    BlockDriverState *bs = bdrv_new_open_driver(drv, name, BDRV_O_RDWR,
                                                &error_abort);

    bs->total_sectors = DISK_SIZE / SECTOR;
    return bs;
}

static BlockDriverState *new_pass(BlockDriverState *child, const char *name)
{
    BlockDriverState *bs = new_node(&bdrv_pass, name);

    bdrv_ref(child);
    bdrv_graph_wrlock();
    bdrv_attach_child(bs, child, "file", &child_of_bds,
                      BDRV_CHILD_FILTERED | BDRV_CHILD_PRIMARY, &error_abort);
    bdrv_graph_wrunlock();
    return bs;
}

static void direct_complete(BdrvDirectReq *direct, bool again);

static void setup(Fixture *f, gconstpointer data)
{
    f->iothread = iothread_new();
    f->ctx = iothread_get_aio_context(f->iothread);
    f->leaf = new_node(&bdrv_leaf, "leaf");
    f->pass = new_pass(f->leaf, "pass");
    f->blk = blk_new(qemu_get_aio_context(), BLK_PERM_ALL, BLK_PERM_ALL);
    blk_set_enable_write_cache(f->blk, true);
    blk_insert_bs(f->blk, f->pass, &error_abort);
    blk_set_allow_aio_context_change(f->blk, true);
    blk_set_aio_context(f->blk, f->ctx, &error_abort);
    blk_direct_init(&f->lane, f->blk, direct_complete);
    f->buf = g_malloc(MAX_TRANSFER + SECTOR);
    f->req.f = f->refused.f = f->aio.f = f;
}

static void teardown(Fixture *f, gconstpointer data)
{
    g_assert_cmpuint(f->lane.held, ==, 0);
    g_assert_cmpuint(f->leaf->direct_in_flight, ==, 0);
    g_assert_cmpuint(f->pass->direct_in_flight, ==, 0);
    blk_set_aio_context(f->blk, qemu_get_aio_context(), &error_abort);
    blk_unref(f->blk);
    bdrv_unref(f->pass);
    bdrv_unref(f->leaf);
    iothread_join(f->iothread);
    g_free(f->buf);
}

/* Something that the main thread does in the middle of the next poll */

static void interlude_bh(void *opaque)
{
    Fixture *f = opaque;

    f->interluded = true;
    f->interlude(f);
}

static void expect_interlude(Fixture *f, void (*interlude)(Fixture *f))
{
    f->interlude = interlude;
    f->interluded = false;
    aio_bh_schedule_oneshot(qemu_get_aio_context(), interlude_bh, f);
}

/* In the IOThread */

static void resubmit_done(void *opaque, int ret)
{
    Request *req = opaque;

    g_assert_cmpint(ret, ==, 0);
    qatomic_inc(&req->done);
}

static void direct_complete(BdrvDirectReq *direct, bool again)
{
    Request *req = container_of(direct, Request, direct);

    if (!again) {
        qatomic_inc(&req->done);
        return;
    }
    req->resubmitted = true;
    if (direct->is_write) {
        blk_aio_pwritev(req->f->blk, direct->offset, direct->qiov, 0,
                        resubmit_done, req);
    } else {
        blk_aio_preadv(req->f->blk, direct->offset, direct->qiov, 0,
                       resubmit_done, req);
    }
}

typedef struct {
    Fixture *f;
    Request *req;
    unsigned unused;            /* shares that the batch has besides */
    int64_t offset;
    size_t bytes;
    int niov;
    bool is_write;
    bool taken;
    bool ok;
} Step;

static void prepare(Request *req, size_t bytes, int niov)
{
    req->done = 0;
    req->resubmitted = false;
    for (int i = 0; i < niov; i++) {
        req->iov[i].iov_base = req->f->buf;
        req->iov[i].iov_len = bytes / niov;
    }
    qemu_iovec_init_external(&req->qiov, req->iov, niov);
}

static void submit_bh(void *opaque)
{
    Step *step = opaque;
    Fixture *f = step->f;
    Request *req = step->req ?: &f->req;

    prepare(req, step->bytes, step->niov);
    if (!blk_direct_begin(&f->lane, 1 + step->unused, step->is_write)) {
        return;
    }
    step->taken = blk_direct_rw(&f->lane, &req->direct, step->offset,
                                &req->qiov);
    g_assert_cmpuint(req->done, ==, 0);
    blk_direct_end(&f->lane, step->unused + !step->taken);
}

static bool submit_at(Fixture *f, bool is_write, int64_t offset, size_t bytes,
                      int niov)
{
    Step step = {
        .f = f, .offset = offset, .bytes = bytes, .niov = niov,
        .is_write = is_write,
    };

    aio_wait_bh_oneshot(f->ctx, submit_bh, &step);
    return step.taken;
}

static bool submit(Fixture *f, bool is_write)
{
    return submit_at(f, is_write, 0, SECTOR, 1);
}

static void finish_bh(void *opaque)
{
    Step *step = opaque;
    Leaf *leaf = leaf_of(step->f);
    BdrvDirectReq *req;

    while ((req = QSIMPLEQ_FIRST(&leaf->pending))) {
        QSIMPLEQ_REMOVE_HEAD(&leaf->pending, next);
        bdrv_direct_done(req, step->ok);
    }
    blk_direct_flush(&step->f->lane);
    g_free(step);
}

/* Ends all that is pending, soon */
static void finish(Fixture *f, bool ok)
{
    Step *step = g_new0(Step, 1);

    step->f = f;
    step->ok = ok;
    aio_bh_schedule_oneshot(f->ctx, finish_bh, step);
}

static void finish_ok(Fixture *f)
{
    g_assert_cmpuint(f->req.done, ==, 0);
    finish(f, true);
}

static void submit_pending(Fixture *f, bool is_write)
{
    leaf_of(f)->answer = LEAF_PENDING;
    g_assert_true(submit(f, is_write));
    g_assert_cmpuint(f->req.done, ==, 0);
}

static void submit_refused(Fixture *f, bool is_write, const char *refusal)
{
    Step step = {
        .f = f, .req = &f->refused, .bytes = SECTOR, .niov = 1,
        .is_write = is_write,
    };

    f->lane.refusal = NULL;
    aio_wait_bh_oneshot(f->ctx, submit_bh, &step);
    g_assert_false(step.taken);
    g_assert_cmpstr(f->lane.refusal, ==, refusal);
}

/* What a request may be */

static void test_bounds(Fixture *f, gconstpointer data)
{
    static const struct {
        int64_t offset;
        size_t bytes;
        int niov;
        bool taken;
    } cases[] = {
        { 0, 0, 1, false },
        { 0, SECTOR, 1, true },
        { 0, SECTOR - 1, 1, false },
        { 1, SECTOR, 1, false },
        { -SECTOR, SECTOR, 1, false },
        { DISK_SIZE - SECTOR, SECTOR, 1, true },
        { DISK_SIZE, SECTOR, 1, false },
        { DISK_SIZE - SECTOR, 2 * SECTOR, 1, false },
        { INT64_MAX - SECTOR + 1, SECTOR, 1, false },
        { 0, MAX_TRANSFER, 1, true },
        { 0, MAX_TRANSFER + SECTOR, 1, false },
        { 0, MAX_IOV * SECTOR, MAX_IOV, true },
        { 0, (MAX_IOV + 1) * SECTOR, MAX_IOV + 1, false },
    };

    leaf_of(f)->answer = LEAF_DONE;
    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        for (int is_write = 0; is_write <= 1; is_write++) {
            g_assert_cmpint(submit_at(f, is_write, cases[i].offset,
                                      cases[i].bytes, cases[i].niov),
                            ==, cases[i].taken);
            g_assert_cmpuint(f->req.done, ==, cases[i].taken);
        }
    }
    submit_at(f, false, 1, SECTOR, 1);
    g_assert_cmpstr(f->lane.refusal, ==, "a request exceeds a limit of a node");
    leaf_of(f)->answer = LEAF_REFUSES;
    submit_refused(f, false, "the driver cannot with this request");
}

/* What the nodes and the BlockBackend may be */

static void set_drained(Fixture *f, bool on)
{
    if (on) {
        bdrv_drained_begin(f->leaf);
    } else {
        bdrv_drained_end(f->leaf);
    }
}

static void set_throttled(Fixture *f, bool on)
{
    if (on) {
        blk_io_limits_enable(f->blk, "group");
    } else {
        blk_io_limits_disable(f->blk);
    }
}

static bool tray_is_open(void *opaque)
{
    return false;
}

static void set_tray(Fixture *f, bool on)
{
    static const BlockDevOps tray = { .is_tray_open = tray_is_open };
    static const BlockDevOps none = {};

    blk_set_dev_ops(f->blk, on ? &tray : &none, NULL);
}

static void set_no_medium(Fixture *f, bool on)
{
    if (on) {
        blk_remove_bs(f->blk);
    } else {
        blk_insert_bs(f->blk, f->pass, &error_abort);
    }
}

static void set_copy_on_read(Fixture *f, bool on)
{
    if (on) {
        bdrv_enable_copy_on_read(f->leaf);
    } else {
        bdrv_disable_copy_on_read(f->leaf);
    }
}

static void set_flag(BlockDriverState *bs, int flag, bool on)
{
    bs->open_flags = on ? bs->open_flags | flag : bs->open_flags & ~flag;
}

static void set_inactive(Fixture *f, bool on)
{
    set_flag(f->leaf, BDRV_O_INACTIVE, on);
}

static void set_no_io(Fixture *f, bool on)
{
    set_flag(f->pass, BDRV_O_NO_IO, on);
}

static bool coroutine_fn leaf_co_is_inserted(BlockDriverState *bs)
{
    return true;
}

static void set_removable(Fixture *f, bool on)
{
    bdrv_leaf.bdrv_co_is_inserted = on ? leaf_co_is_inserted : NULL;
}

static void set_variable_length(Fixture *f, bool on)
{
    f->leaf->bl.has_variable_length = on;
}

static void set_cannot(Fixture *f, bool on)
{
    leaf_of(f)->cannot = on;
}

static void set_no_path(Fixture *f, bool on)
{
    bdrv_pass.bdrv_direct_passes = on ? NULL : pass_direct_passes;
}

static void set_read_only(Fixture *f, bool on)
{
    set_flag(f->leaf, BDRV_O_RDWR, !on);
}

static void set_no_permission(Fixture *f, bool on)
{
    BdrvChild *file = f->pass->file;

    file->perm = on ? file->perm & ~BLK_PERM_WRITE
                    : file->perm | BLK_PERM_WRITE;
}

static void set_pass_threshold(Fixture *f, bool on)
{
    bdrv_write_threshold_set(f->pass, on ? DISK_SIZE : 0);
}

static void set_detect_zeroes(Fixture *f, bool on)
{
    f->leaf->detect_zeroes = on ? BLOCKDEV_DETECT_ZEROES_OPTIONS_ON
                                : BLOCKDEV_DETECT_ZEROES_OPTIONS_OFF;
}

static void set_threshold(Fixture *f, bool on)
{
    bdrv_write_threshold_set(f->leaf, on ? DISK_SIZE : 0);
}

static void set_zoned(Fixture *f, bool on)
{
    f->leaf->bl.zoned = on ? BLK_Z_HM : BLK_Z_NONE;
}

static void set_bitmap(Fixture *f, bool on)
{
    if (on) {
        bdrv_create_dirty_bitmap(f->leaf, 65536, "bitmap", &error_abort);
    } else {
        bdrv_release_dirty_bitmap(bdrv_find_dirty_bitmap(f->leaf, "bitmap"));
    }
}

static void set_write_through(Fixture *f, bool on)
{
    blk_set_enable_write_cache(f->blk, !on);
}

static void test_eligible(Fixture *f, gconstpointer data)
{
    static const struct {
        void (*set)(Fixture *f, bool on);
        bool reads_too;
        const char *refusal;
        bool pauses;            /* the next batch is refused, too */
    } cases[] = {
        { set_drained, true, "the disk is drained" },
        { set_throttled, true, "the disk is throttled" },
        { set_tray, true, "the device has a tray" },
        { set_no_medium, true, "there is no medium" },
        { set_copy_on_read, true, "a node copies on read" },
        { set_inactive, true, "a node is inactive" },
        { set_no_io, true, "a node is inactive" },
        { set_variable_length, true, "a node has no fixed length" },
        { set_removable, true, "a node may lose its medium" },
        { set_cannot, true, "the driver cannot with the node's options",
          .pauses = true },
        { set_no_path, true, "a node's driver has no direct path",
          .pauses = true },
        { set_read_only, false, "a node is read-only" },
        { set_no_permission, false, "there is no permission to write" },
        { set_detect_zeroes, false, "a node detects zeroes" },
        { set_threshold, false, "a node has a write threshold" },
        { set_pass_threshold, false, "a node has a write threshold" },
        { set_zoned, false, "a node is zoned" },
        { set_bitmap, false, "a node has dirty bitmaps" },
        { set_write_through, false, "the write cache is off" },
    };

    leaf_of(f)->answer = LEAF_DONE;
    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        cases[i].set(f, true);
        submit_refused(f, true, cases[i].refusal);
        if (cases[i].reads_too) {
            submit_refused(f, false, cases[i].refusal);
        } else {
            g_assert_true(submit(f, false));
        }
        cases[i].set(f, false);
        if (cases[i].pauses) {
            g_assert_false(submit(f, false));
            g_assert_false(submit(f, true));
        }
        g_assert_true(submit(f, false));
        g_assert_true(submit(f, true));
    }
}

/* Batches that are not submitted directly after the driver was asked */
static unsigned count_pause(Fixture *f, bool is_write)
{
    unsigned asked = leaf_of(f)->asked;
    unsigned n;

    for (n = 0; !submit(f, is_write) && leaf_of(f)->asked == asked; n++) {
        g_assert_cmpuint(n, <, 1000);
    }
    g_assert_cmpuint(leaf_of(f)->asked, ==, asked + 1);
    return n;
}

/* A driver that cannot is asked less and less often, but again and again. */
static void test_pauses(Fixture *f, gconstpointer data)
{
    static const unsigned pauses[] = { 0, 1, 3, 7, 15, 31, 63, 63, 63 };

    leaf_of(f)->answer = LEAF_DONE;
    for (int again = 0; again < 2; again++) {
        leaf_of(f)->cannot_write = true;
        for (int i = 0; i < ARRAY_SIZE(pauses); i++) {
            g_assert_cmpuint(count_pause(f, true), ==, pauses[i]);
            g_assert_cmpuint(count_pause(f, false), ==, 0);
        }
        leaf_of(f)->cannot_write = false;
        g_assert_cmpuint(count_pause(f, true), ==, 63);
        g_assert_true(submit(f, true));
    }
}

/* Without a write cache the drivers have to do what a flush would. */
static void test_fua(Fixture *f, gconstpointer data)
{
    leaf_of(f)->answer = LEAF_DONE;
    g_assert_true(submit(f, true));
    g_assert_false(f->req.direct.fua);
    set_write_through(f, true);
    f->leaf->supported_write_flags = BDRV_REQ_FUA;
    submit_refused(f, true, "the write cache is off");
    f->pass->supported_write_flags = BDRV_REQ_FUA;
    g_assert_true(submit(f, true));
    g_assert_true(f->req.direct.fua);
    g_assert_true(submit(f, false));
    g_assert_false(f->req.direct.fua);

    /* cache.no-flush=on: FUA is dropped, supported or not */
    f->pass->supported_write_flags = 0;
    set_flag(f->pass, BDRV_O_NO_FLUSH, true);
    g_assert_true(submit(f, true));
    g_assert_false(f->req.direct.fua);
}

static void test_long_chain(Fixture *f, gconstpointer data)
{
    BlockDriverState *top[BLK_DIRECT_NODES - 1];

    leaf_of(f)->answer = LEAF_DONE;
    blk_remove_bs(f->blk);
    for (int i = 0; i < ARRAY_SIZE(top); i++) {
        g_autofree char *name = g_strdup_printf("pass%d", i);

        top[i] = new_pass(i ? top[i - 1] : f->pass, name);
        blk_insert_bs(f->blk, top[i], &error_abort);
        if (i < ARRAY_SIZE(top) - 1) {
            g_assert_true(submit(f, false));
        } else {
            submit_refused(f, false, "there are too many nodes");
        }
        blk_remove_bs(f->blk);
    }
    for (int i = ARRAY_SIZE(top) - 1; i >= 0; i--) {
        bdrv_unref(top[i]);
    }
    blk_insert_bs(f->blk, f->pass, &error_abort);
}

/* A batch begins while requests of an earlier one are in flight. */
static void test_batches(Fixture *f, gconstpointer data)
{
    Step step = {
        .f = f, .req = &f->refused, .unused = 2, .bytes = SECTOR, .niov = 1,
        .is_write = true,
    };

    submit_pending(f, false);
    aio_wait_bh_oneshot(f->ctx, submit_bh, &step);
    g_assert_true(step.taken);
    g_assert_cmpuint(f->lane.held, ==, 2);
    g_assert_cmpuint(f->leaf->direct_in_flight, ==, 2);
    finish(f, true);
    blk_drain(f->blk);
    g_assert_cmpuint(f->req.done, ==, 1);
    g_assert_cmpuint(step.req->done, ==, 1);
}

/* Who waits for direct requests */

static void test_drain(Fixture *f, gconstpointer data)
{
    submit_pending(f, false);
    expect_interlude(f, finish_ok);
    blk_drain(f->blk);
    g_assert_true(f->interluded);
    g_assert_cmpuint(f->req.done, ==, 1);
}

static void test_drain_leaf(Fixture *f, gconstpointer data)
{
    submit_pending(f, false);
    expect_interlude(f, finish_ok);
    bdrv_drained_begin(f->leaf);
    g_assert_true(f->interluded);
    g_assert_cmpuint(f->req.done, ==, 1);
    bdrv_drained_end(f->leaf);
}

static void test_graph_writer(Fixture *f, gconstpointer data)
{
    submit_pending(f, false);
    expect_interlude(f, finish_ok);
    bdrv_graph_wrlock();
    g_assert_true(f->interluded);
    g_assert_cmpuint(f->req.done, ==, 1);
    bdrv_graph_wrunlock();
}

static QemuEvent submitted;

static void submit_event_bh(void *opaque)
{
    submit_bh(opaque);
    qemu_event_set(&submitted);
}

/* Nobody polls while the graph is locked for writing. */
static void test_graph_locked(Fixture *f, gconstpointer data)
{
    Step step = { .f = f, .bytes = SECTOR, .niov = 1 };

    leaf_of(f)->answer = LEAF_DONE;
    qemu_event_init(&submitted, false);
    bdrv_graph_wrlock();
    aio_bh_schedule_oneshot(f->ctx, submit_event_bh, &step);
    qemu_event_wait(&submitted);
    bdrv_graph_wrunlock();
    g_assert_false(step.taken);
    g_assert_cmpstr(f->lane.refusal, ==, "the graph changes");
    g_assert_true(submit(f, false));
    qemu_event_destroy(&submitted);
}

static void serialised_too_early(Fixture *f)
{
    g_assert_cmpuint(qatomic_read(&leaf_of(f)->writes), ==, 0);
    submit_refused(f, false, "a serialising request is in flight");
    finish(f, true);
}

/* A serialising request waits, and no direct one begins meanwhile. */
static void test_serialising_waits(Fixture *f, gconstpointer data)
{
    submit_pending(f, false);
    expect_interlude(f, serialised_too_early);
    blk_pwrite(f->blk, 0, SECTOR, f->buf, BDRV_REQ_SERIALISING);
    g_assert_true(f->interluded);
    g_assert_cmpuint(leaf_of(f)->writes, ==, 1);
    blk_drain(f->blk);
}

static void serialising_in_driver(Fixture *f)
{
    while (!qatomic_read(&leaf_of(f)->parked)) {
        aio_poll(qemu_get_aio_context(), false);
    }
    submit_refused(f, false, "a serialising request is in flight");
    submit_refused(f, true, "a serialising request is in flight");
    aio_co_wake(leaf_of(f)->parked);
}

static void test_serialising_in_flight(Fixture *f, gconstpointer data)
{
    leaf_of(f)->park = true;
    leaf_of(f)->answer = LEAF_DONE;
    expect_interlude(f, serialising_in_driver);
    blk_pwrite(f->blk, 0, SECTOR, f->buf, BDRV_REQ_SERIALISING);
    g_assert_true(f->interluded);
    g_assert_true(submit(f, true));
}

static void serialising_aio_bh(void *opaque)
{
    Fixture *f = opaque;

    prepare(&f->aio, SECTOR, 1);
    blk_aio_pwritev(f->blk, 0, &f->aio.qiov, BDRV_REQ_SERIALISING,
                    resubmit_done, &f->aio);
}

/* The one that waits runs in the lane's thread, where the count is lowered. */
static void test_serialising_same_thread(Fixture *f, gconstpointer data)
{
    for (int ok = 0; ok <= 1; ok++) {
        submit_pending(f, true);
        aio_wait_bh_oneshot(f->ctx, serialising_aio_bh, f);
        g_assert_cmpuint(f->aio.done, ==, 0);
        submit_refused(f, true, "a serialising request is in flight");
        finish(f, ok);
        blk_drain(f->blk);
        g_assert_cmpuint(f->aio.done, ==, 1);
        g_assert_cmpuint(f->req.done, ==, 1);
    }
    g_assert_cmpuint(leaf_of(f)->writes, ==, 3);
}

/* BDRV_REQ_NO_WAIT is for those who would rather not wait. */
static void test_serialising_no_wait(Fixture *f, gconstpointer data)
{
    BdrvRequestFlags flags = BDRV_REQ_SERIALISING | BDRV_REQ_NO_WAIT;

    submit_pending(f, false);
    g_assert_cmpint(blk_pwrite(f->blk, 0, SECTOR, f->buf, flags), ==, -EBUSY);
    expect_interlude(f, finish_ok);
    blk_drain(f->blk);
    g_assert_cmpint(blk_pwrite(f->blk, 0, SECTOR, f->buf, flags), ==, 0);
}

/* What is due after a write */

static unsigned flush(Fixture *f)
{
    g_assert_cmpint(blk_flush(f->blk), ==, 0);
    return leaf_of(f)->flushes;
}

/* A flush before a write is done says nothing of it. */
static void test_flush(Fixture *f, gconstpointer data)
{
    unsigned flushes;

    leaf_of(f)->answer = LEAF_DONE;
    g_assert_true(submit(f, true));
    g_assert_cmpuint(flush(f), ==, 1);
    g_assert_true(submit(f, false));
    g_assert_cmpuint(flush(f), ==, 1);
    submit_pending(f, true);
    flushes = flush(f);
    expect_interlude(f, finish_ok);
    blk_drain(f->blk);
    g_assert_cmpuint(flush(f), ==, flushes + 1);
}

static void test_highest_offset(Fixture *f, gconstpointer data)
{
    leaf_of(f)->answer = LEAF_DONE;
    g_assert_true(submit_at(f, false, 8 * SECTOR, SECTOR, 1));
    g_assert_cmpuint(stat64_get(&f->leaf->wr_highest_offset), ==, 0);
    g_assert_true(submit_at(f, true, 4 * SECTOR, SECTOR, 1));
    g_assert_true(submit_at(f, true, 2 * SECTOR, SECTOR, 1));
    g_assert_cmpuint(stat64_get(&f->leaf->wr_highest_offset), ==, 5 * SECTOR);
    g_assert_cmpuint(stat64_get(&f->pass->wr_highest_offset), ==, 5 * SECTOR);
}

/* One that is added while the write is in flight must not miss it. */
static void test_bitmap(Fixture *f, gconstpointer data)
{
    submit_pending(f, true);
    set_bitmap(f, true);
    expect_interlude(f, finish_ok);
    blk_drain(f->blk);
    g_assert_cmpint(bdrv_get_dirty_count(
                        bdrv_find_dirty_bitmap(f->leaf, "bitmap")), ==, 65536);
    set_bitmap(f, false);
}

/* What has not succeeded goes again */

static void finish_failed(Fixture *f)
{
    finish(f, false);
}

static void test_again(Fixture *f, gconstpointer data)
{
    submit_pending(f, false);
    finish(f, false);
    while (!qatomic_read(&f->req.done)) {
        aio_poll(qemu_get_aio_context(), false);
    }
    blk_drain(f->blk);
    g_assert_true(f->req.resubmitted);
    g_assert_cmpuint(leaf_of(f)->reads, ==, 1);
}

/* ...also if a drain waits: it must not be kept for after the section. */
static void test_again_in_drain(Fixture *f, gconstpointer data)
{
    for (int is_write = 0; is_write <= 1; is_write++) {
        submit_pending(f, is_write);
        expect_interlude(f, finish_failed);
        bdrv_drained_begin(f->pass);
        g_assert_true(f->interluded);
        g_assert_true(f->req.resubmitted);
        g_assert_cmpuint(f->req.done, ==, 1);
        g_assert_cmpuint(leaf_of(f)->reads, ==, 1);
        g_assert_cmpuint(leaf_of(f)->writes, ==, is_write);
        bdrv_drained_end(f->pass);
    }
}

static void serialising_waits_for_both(Fixture *f)
{
    g_assert_cmpuint(qatomic_read(&leaf_of(f)->writes), ==, 0);
    finish(f, false);
}

/* A serialising request waits for a request that is then submitted again. */
static void test_again_serialising(Fixture *f, gconstpointer data)
{
    submit_pending(f, false);
    expect_interlude(f, serialising_waits_for_both);
    blk_pwrite(f->blk, 0, SECTOR, f->buf, BDRV_REQ_SERIALISING);
    g_assert_true(f->interluded);
    blk_drain(f->blk);
    g_assert_cmpuint(leaf_of(f)->writes, ==, 1);
    g_assert_cmpuint(leaf_of(f)->reads, ==, 1);
    g_assert_cmpuint(f->req.done, ==, 1);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*func)(Fixture *f, gconstpointer data);
    } tests[] = {
        { "bounds", test_bounds },
        { "pauses", test_pauses },
        { "eligible", test_eligible },
        { "fua", test_fua },
        { "long-chain", test_long_chain },
        { "batches", test_batches },
        { "drain/backend", test_drain },
        { "drain/leaf", test_drain_leaf },
        { "graph/writer", test_graph_writer },
        { "graph/locked", test_graph_locked },
        { "serialising/waits", test_serialising_waits },
        { "serialising/in-flight", test_serialising_in_flight },
        { "serialising/same-thread", test_serialising_same_thread },
        { "serialising/no-wait", test_serialising_no_wait },
        { "written/flush", test_flush },
        { "written/highest-offset", test_highest_offset },
        { "written/bitmap", test_bitmap },
        { "again/idle", test_again },
        { "again/drain", test_again_in_drain },
        { "again/serialising", test_again_serialising },
    };

    module_call_init(MODULE_INIT_QOM);
    bdrv_init();
    qemu_init_main_loop(&error_abort);
    g_test_init(&argc, &argv, NULL);
    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        g_autofree char *path = g_strdup_printf("/block-direct/%s",
                                                tests[i].name);

        g_test_add(path, Fixture, NULL, setup, tests[i].func, teardown);
    }
    return g_test_run();
}
