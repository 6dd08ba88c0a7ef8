/*
 * Direct requests of the block layer, from several threads at once
 *
 * Lanes in several IOThreads, on two BlockBackends, keep a node busy with
 * reads, writes, misaligned writes and flushes.  A "kernel", threads that the
 * block layer does not know, transfers the data.  The main thread meanwhile
 * does what the monitor does.  Each block is written by one slot, with numbers
 * that increase, except for its first sector, which anybody may write:
 *
 *   blk[0] - pass - leaf       blk[1] - leaf
 *
 * Shown: nothing is in flight in a drained section or while the graph is
 * locked for writing; no node is closed with a request; each request ends
 * once; a serialising request overlaps with no direct one, and no data is
 * lost; a flush covers each write that ended before it; a bitmap misses none.
 *
 * A hang is a failure, too, which whoever runs the test has to notice.
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
#include "qobject/qdict.h"
#include "qemu/main-loop.h"
#include "system/block-backend.h"
#include "system/block-backend-direct.h"
#include "iothread.h"

#define BLOCK 4096              /* the leaf's alignment */
#define SECTOR BDRV_SECTOR_SIZE
#define THREADS 3
#define BACKENDS 2
#define DEPTH 4
#define LANES (THREADS * BACKENDS)
#define BLOCKS (LANES * DEPTH)
#define KERNEL_THREADS 2

/* What both drivers keep of each of their nodes */
typedef struct {
    unsigned active;            /* requests of all kinds */
    unsigned direct;
    unsigned serialising;
} Node;

typedef enum { OP_READ, OP_WRITE, OP_POKE, OP_FLUSH } Op;

typedef struct Stress Stress;
typedef struct Lane Lane;

/* A test: what the main thread does, again and again, under which load */
typedef struct {
    const char *name;
    void (*act)(void);
    unsigned rounds;            /* 0: 40 */
    unsigned progress;          /* requests that end in between, 0: 40 */
    unsigned misaligned;        /* one write in so many is, 0: 100 */
    unsigned lanes;             /* that are used, 0: all */
    unsigned depth;             /* of each lane, 0: the most */
    bool hurry;                 /* nothing waits for the kernel */
} Action;

/* What is given to the kernel; either direct or of a coroutine */
typedef struct Task {
    QSIMPLEQ_ENTRY(Task) next;
    BdrvDirectReq *direct;
    Coroutine *co;
    Op op;
    int64_t offset;
    QEMUIOVector *qiov;
    bool fails;                 /* after a part of it */
} Task;

/* A request, again and again; its block is its index. */
typedef struct {
    BdrvDirectReq direct;
    QEMUIOVector qiov;
    struct iovec iov;
    Lane *lane;
    unsigned block;
    Op op;
    bool busy;
    bool is_direct;
    uint64_t gen;               /* last written */
    uint64_t before[BLOCKS];    /* what had been written when a flush began */
    uint8_t buf[BLOCK];
} Slot;

struct Lane {
    BlkDirect direct;
    unsigned backend;
    AioContext *ctx;
    QEMUBH *pump;
    QEMUBH *reap;
    QSIMPLEQ_HEAD(, Task) ended; /* under the kernel's lock */
    Slot slots[DEPTH];
};

struct Stress {
    IOThread *iothread[THREADS];
    BlockBackend *blk[BACKENDS];
    BlockBackend *main_blk[BACKENDS];   /* for the main thread's requests */
    BlockDriverState *pass, *leaf;
    Lane *lanes;

    QemuThread kernel[KERNEL_THREADS];
    QemuMutex lock;
    QemuCond cond;
    QSIMPLEQ_HEAD(, Task) tasks;
    bool power_off;

    uint8_t disk[BLOCKS * BLOCK];
    uint64_t written[BLOCKS];   /* numbers: on the disk... */
    uint64_t stable[BLOCKS];    /* ...flushed... */
    uint64_t ended[BLOCKS];     /* ...and of writes that have ended */

    bool stop;
    unsigned progress;          /* see Action */
    unsigned misaligned;
    unsigned depth;
    bool hurry;
    unsigned busy;              /* slots */
    unsigned unended[BACKENDS]; /* direct requests, from submission to end */
    unsigned completed;
    unsigned taken, refused, again, flushed, serialised;
};

static Stress *stress;

/* Chance */

static unsigned chance(unsigned n)
{
    static __thread uint32_t state;

    if (!state) {
        state = qemu_get_thread_id();
    }
    state = state * 1664525 + 1013904223;
    return (state >> 8) % n;
}

/* Widens the gap between two steps of whoever calls back */
static void dawdle(void)
{
    if (stress->hurry) {
        return;
    }
    switch (chance(16)) {
    case 0:
        g_usleep(chance(40));
        break;
    case 1:
        sched_yield();
        break;
    }
}

/* The kernel */

static void kernel_write(Task *task)
{
    uint8_t *to = stress->disk + task->offset;
    unsigned block = task->offset / BLOCK;
    uint64_t gen;

    qemu_iovec_to_buf(task->qiov, 0, to, task->fails ? BLOCK / 2 : BLOCK);
    memcpy(&gen, to + SECTOR, sizeof(gen));
    g_assert_cmpuint(gen, >=, qatomic_read(&stress->written[block]));
    qatomic_set(&stress->written[block], gen);
}

static void kernel_do(Task *task)
{
    switch (task->op) {
    case OP_READ:
        qemu_iovec_from_buf(task->qiov, 0, stress->disk + task->offset, BLOCK);
        break;
    case OP_WRITE:
        kernel_write(task);
        break;
    case OP_FLUSH:
        for (unsigned i = 0; i < BLOCKS; i++) {
            qatomic_set(&stress->stable[i], qatomic_read(&stress->written[i]));
        }
        break;
    default:
        g_assert_not_reached();
    }
}

static void kernel_end(Task *task)
{
    Lane *lane;

    if (task->co) {
        aio_co_wake(task->co);
        return;
    }
    lane = container_of(task->direct->lane, Lane, direct);
    WITH_QEMU_LOCK_GUARD(&stress->lock) {
        QSIMPLEQ_INSERT_TAIL(&lane->ended, task, next);
    }
    qemu_bh_schedule(lane->reap);
}

/* In no particular order */
static Task *kernel_next(void)
{
    Task *task;

    QEMU_LOCK_GUARD(&stress->lock);
    while (!(task = QSIMPLEQ_FIRST(&stress->tasks)) && !stress->power_off) {
        qemu_cond_wait(&stress->cond, &stress->lock);
    }
    if (!task) {
        return NULL;
    }
    QSIMPLEQ_REMOVE_HEAD(&stress->tasks, next);
    if (!chance(3) && !QSIMPLEQ_EMPTY(&stress->tasks)) {
        Task *second = QSIMPLEQ_FIRST(&stress->tasks);

        QSIMPLEQ_REMOVE_HEAD(&stress->tasks, next);
        QSIMPLEQ_INSERT_TAIL(&stress->tasks, task, next);
        task = second;
    }
    return task;
}

static void *kernel_thread(void *opaque)
{
    Task *task;

    while ((task = kernel_next())) {
        dawdle();
        kernel_do(task);
        dawdle();
        kernel_end(task);
    }
    return NULL;
}

static void kernel_submit(Task *task)
{
    QEMU_LOCK_GUARD(&stress->lock);
    QSIMPLEQ_INSERT_TAIL(&stress->tasks, task, next);
    qemu_cond_signal(&stress->cond);
}

/* Nodes: each side counts, then looks at the other's count. */

static void direct_enter(Node *node)
{
    qatomic_inc(&node->active);
    qatomic_inc(&node->direct);
    g_assert_cmpuint(qatomic_read(&node->serialising), ==, 0);
}

static void direct_leave(Node *node)
{
    g_assert_cmpuint(qatomic_read(&node->serialising), ==, 0);
    qatomic_dec(&node->direct);
    qatomic_dec(&node->active);
}

static void direct_for_nodes(BdrvDirectReq *req, void (*func)(Node *node))
{
    for (unsigned i = 0; i < req->lane->num_nodes; i++) {
        func(req->lane->nodes[i]->opaque);
    }
}

static bool coroutine_fn ordinary_enter(BlockDriverState *bs)
{
    BdrvTrackedRequest *req = bdrv_co_get_self_request(bs);
    Node *node = bs->opaque;
    bool serialising = req && req->serialising;

    qatomic_inc(&node->active);
    if (serialising) {
        qatomic_inc(&node->serialising);
        qatomic_inc(&stress->serialised);
        g_assert_cmpuint(qatomic_read(&node->direct), ==, 0);
    }
    return serialising;
}

static void coroutine_fn ordinary_leave(BlockDriverState *bs, bool serialising)
{
    Node *node = bs->opaque;

    if (serialising) {
        g_assert_cmpuint(qatomic_read(&node->direct), ==, 0);
        qatomic_dec(&node->serialising);
    }
    qatomic_dec(&node->active);
}

static void node_close(BlockDriverState *bs)
{
    Node *node = bs->opaque;

    g_assert_cmpuint(qatomic_read(&node->active), ==, 0);
}

static int node_reopen_prepare(BDRVReopenState *state,
                               BlockReopenQueue *queue, Error **errp)
{
    return 0;
}

static void node_reopen_commit(BDRVReopenState *state)
{
    node_close(state->bs);
}

/* The driver of the leaf */

static void leaf_refresh_limits(BlockDriverState *bs, Error **errp)
{
    bs->bl.request_alignment = BLOCK;
    bs->bl.max_transfer = BLOCK;
}

static int coroutine_fn leaf_co_task(BlockDriverState *bs, Op op,
                                    int64_t offset, QEMUIOVector *qiov)
{
    bool serialising = ordinary_enter(bs);
    Task task = {
        .co = qemu_coroutine_self(), .op = op, .offset = offset, .qiov = qiov,
    };

    if (stress->hurry) {
        kernel_do(&task);
    } else {
        kernel_submit(&task);
        qemu_coroutine_yield();
    }
    ordinary_leave(bs, serialising);
    return 0;
}

static int coroutine_fn leaf_co_preadv(BlockDriverState *bs, int64_t offset,
                                       int64_t bytes, QEMUIOVector *qiov,
                                       BdrvRequestFlags flags)
{
    g_assert_cmpint(bytes, ==, BLOCK);
    return leaf_co_task(bs, OP_READ, offset, qiov);
}

static int coroutine_fn leaf_co_pwritev(BlockDriverState *bs, int64_t offset,
                                        int64_t bytes, QEMUIOVector *qiov,
                                        BdrvRequestFlags flags)
{
    g_assert_cmpint(bytes, ==, BLOCK);
    return leaf_co_task(bs, OP_WRITE, offset, qiov);
}

/* Flushes are not among those requests that a serialising one waits for. */
static int coroutine_fn leaf_co_flush(BlockDriverState *bs)
{
    Node *node = bs->opaque;
    Task task = { .co = qemu_coroutine_self(), .op = OP_FLUSH };

    qatomic_inc(&node->active);
    kernel_submit(&task);
    qemu_coroutine_yield();
    qatomic_dec(&node->active);
    return 0;
}

static bool leaf_direct_ready(BlockDriverState *bs, bool is_write)
{
    dawdle();
    return true;
}

static int leaf_direct_rw(BlockDriverState *bs, BdrvDirectReq *req)
{
    Task task = {
        .direct = req, .op = req->is_write ? OP_WRITE : OP_READ,
        .offset = req->offset, .qiov = req->qiov,
    };

    if (!chance(16)) {
        return -EAGAIN;
    }
    direct_for_nodes(req, direct_enter);
    if (stress->hurry || !chance(4)) {
        dawdle();
        kernel_do(&task);
        direct_for_nodes(req, direct_leave);
        return 1;
    }
    task.fails = !chance(16);
    kernel_submit(g_memdup2(&task, sizeof(task)));
    return 0;
}

static BlockDriver bdrv_leaf = {
    .format_name            = "leaf",
    .instance_size          = sizeof(Node),
    .bdrv_close             = node_close,
    .bdrv_reopen_prepare    = node_reopen_prepare,
    .bdrv_reopen_commit     = node_reopen_commit,
    .bdrv_refresh_limits    = leaf_refresh_limits,
    .bdrv_co_preadv         = leaf_co_preadv,
    .bdrv_co_pwritev        = leaf_co_pwritev,
    .bdrv_co_flush_to_disk  = leaf_co_flush,
    .bdrv_direct_ready      = leaf_direct_ready,
    .bdrv_direct_rw         = leaf_direct_rw,
};

/* Filters, one that passes direct requests and one that does not */

static int coroutine_fn GRAPH_RDLOCK
pass_co_preadv(BlockDriverState *bs, int64_t offset, int64_t bytes,
               QEMUIOVector *qiov, BdrvRequestFlags flags)
{
    bool serialising = ordinary_enter(bs);
    int ret = bdrv_co_preadv(bs->file, offset, bytes, qiov, flags);

    ordinary_leave(bs, serialising);
    return ret;
}

static int coroutine_fn GRAPH_RDLOCK
pass_co_pwritev(BlockDriverState *bs, int64_t offset, int64_t bytes,
                QEMUIOVector *qiov, BdrvRequestFlags flags)
{
    bool serialising = ordinary_enter(bs);
    int ret = bdrv_co_pwritev(bs->file, offset, bytes, qiov, flags);

    ordinary_leave(bs, serialising);
    return ret;
}

static bool pass_direct_passes(BlockDriverState *bs, bool is_write)
{
    dawdle();
    return true;
}

static BlockDriver bdrv_pass = {
    .format_name            = "pass",
    .instance_size          = sizeof(Node),
    .is_filter              = true,
    .bdrv_close             = node_close,
    .bdrv_reopen_prepare    = node_reopen_prepare,
    .bdrv_reopen_commit     = node_reopen_commit,
    .bdrv_child_perm        = bdrv_default_perms,
    .bdrv_co_preadv         = pass_co_preadv,
    .bdrv_co_pwritev        = pass_co_pwritev,
    .bdrv_direct_passes     = pass_direct_passes,
};

static BlockDriver bdrv_stop = {
    .format_name            = "stop",
    .instance_size          = sizeof(Node),
    .is_filter              = true,
    .bdrv_close             = node_close,
    .bdrv_child_perm        = bdrv_default_perms,
    .bdrv_co_preadv         = pass_co_preadv,
    .bdrv_co_pwritev        = pass_co_pwritev,
};

/* Slots, in the IOThreads */

static bool holds(const Slot *slot, uint64_t gen)
{
    for (size_t i = SECTOR; i < BLOCK; i += sizeof(gen)) {
        if (memcmp(slot->buf + i, &gen, sizeof(gen))) {
            return false;
        }
    }
    return true;
}

static void fill(Slot *slot, uint64_t gen)
{
    for (size_t i = 0; i < BLOCK; i += sizeof(gen)) {
        memcpy(slot->buf + i, &gen, sizeof(gen));
    }
}

static void slot_check(Slot *slot)
{
    switch (slot->op) {
    case OP_READ:
        g_assert_true(holds(slot, slot->gen));
        break;
    case OP_WRITE:
        qatomic_store_release(&stress->ended[slot->block], slot->gen);
        break;
    case OP_FLUSH:
        for (unsigned i = 0; i < BLOCKS; i++) {
            g_assert_cmpuint(qatomic_read(&stress->stable[i]),
                             >=, slot->before[i]);
        }
        qatomic_inc(&stress->flushed);
        break;
    case OP_POKE:
        break;
    }
}

static void slot_end(Slot *slot)
{
    g_assert_true(slot->busy);
    slot_check(slot);
    dawdle();
    if (slot->is_direct) {
        qatomic_dec(&stress->unended[slot->lane->backend]);
    }
    slot->busy = false;
    qatomic_inc(&stress->completed);
    qatomic_dec(&stress->busy);
    qemu_bh_schedule(slot->lane->pump);
}

static void slot_aio_end(void *opaque, int ret)
{
    g_assert_cmpint(ret, ==, 0);
    slot_end(opaque);
}

static void slot_aio(Slot *slot, int64_t offset)
{
    BlockBackend *blk = stress->blk[slot->lane->backend];

    if (slot->op == OP_READ) {
        blk_aio_preadv(blk, offset, &slot->qiov, 0, slot_aio_end, slot);
    } else {
        blk_aio_pwritev(blk, offset, &slot->qiov, 0, slot_aio_end, slot);
    }
}

static void slot_direct_end(BdrvDirectReq *direct, bool again)
{
    Slot *slot = container_of(direct, Slot, direct);

    if (!again) {
        slot_end(slot);
        return;
    }
    qatomic_inc(&stress->again);
    g_assert_true(slot->busy);
    slot_aio(slot, direct->offset);
}

static void slot_prepare(Slot *slot, bool is_write)
{
    slot->busy = true;
    slot->is_direct = false;
    slot->op = OP_READ;
    if (is_write) {
        slot->op = chance(stress->misaligned) ? OP_WRITE : OP_POKE;
        slot->gen += slot->op == OP_WRITE;
        fill(slot, slot->gen);
    }
    slot->iov = (struct iovec) {
        .iov_base = slot->buf,
        .iov_len = slot->op == OP_POKE ? SECTOR : BLOCK,
    };
    qemu_iovec_init_external(&slot->qiov, &slot->iov, 1);
    qatomic_inc(&stress->busy);
}

static int64_t slot_offset(const Slot *slot)
{
    return (slot->op == OP_POKE ? chance(BLOCKS) : slot->block) * BLOCK;
}

static bool slot_direct(Slot *slot)
{
    int64_t offset = slot_offset(slot);
    unsigned *unended = &stress->unended[slot->lane->backend];

    slot->is_direct = true;
    qatomic_inc(unended);
    if (blk_direct_rw(&slot->lane->direct, &slot->direct, offset,
                      &slot->qiov)) {
        qatomic_inc(&stress->taken);
        return true;
    }
    slot->is_direct = false;
    qatomic_dec(unended);
    slot_aio(slot, offset);
    return false;
}

static void slot_flush(Slot *slot)
{
    slot->busy = true;
    slot->is_direct = false;
    slot->op = OP_FLUSH;
    qatomic_inc(&stress->busy);
    for (unsigned i = 0; i < BLOCKS; i++) {
        slot->before[i] = qatomic_load_acquire(&stress->ended[i]);
    }
    blk_aio_flush(stress->blk[slot->lane->backend], slot_aio_end, slot);
}

/* Lanes, in the IOThreads */

static void lane_submit(Lane *lane, Slot **batch, unsigned n, bool is_write)
{
    unsigned taken = 0;

    if (blk_direct_begin(&lane->direct, n, is_write)) {
        for (unsigned i = 0; i < n; i++) {
            taken += slot_direct(batch[i]);
        }
        blk_direct_end(&lane->direct, n - taken);
        return;
    }
    qatomic_inc(&stress->refused);
    for (unsigned i = 0; i < n; i++) {
        slot_aio(batch[i], slot_offset(batch[i]));
    }
}

static void lane_pump_bh(void *opaque)
{
    Lane *lane = opaque;
    bool is_write = chance(2);
    Slot *batch[DEPTH];
    unsigned n = 0;

    if (qatomic_read(&stress->stop)) {
        return;
    }
    for (unsigned i = 0; i < stress->depth; i++) {
        Slot *slot = &lane->slots[i];

        if (slot->busy) {
            continue;
        }
        if (!chance(16)) {
            slot_flush(slot);
        } else {
            slot_prepare(slot, is_write);
            batch[n++] = slot;
        }
    }
    if (n) {
        lane_submit(lane, batch, n, is_write);
    }
}

static void lane_reap_bh(void *opaque)
{
    Lane *lane = opaque;
    QSIMPLEQ_HEAD(, Task) ended = QSIMPLEQ_HEAD_INITIALIZER(ended);
    Task *task;

    WITH_QEMU_LOCK_GUARD(&stress->lock) {
        QSIMPLEQ_CONCAT(&ended, &lane->ended);
    }
    while ((task = QSIMPLEQ_FIRST(&ended))) {
        QSIMPLEQ_REMOVE_HEAD(&ended, next);
        dawdle();
        direct_for_nodes(task->direct, direct_leave);
        bdrv_direct_done(task->direct, !task->fails);
        g_free(task);
    }
    dawdle();
    blk_direct_flush(&lane->direct);
}

static void lane_init(Lane *lane, unsigned i)
{
    lane->backend = i % BACKENDS;
    lane->ctx = iothread_get_aio_context(stress->iothread[i / BACKENDS]);
    lane->pump = aio_bh_new(lane->ctx, lane_pump_bh, lane);
    lane->reap = aio_bh_new(lane->ctx, lane_reap_bh, lane);
    QSIMPLEQ_INIT(&lane->ended);
    blk_direct_init(&lane->direct, stress->blk[lane->backend],
                    slot_direct_end);
    for (unsigned j = 0; j < DEPTH; j++) {
        lane->slots[j].lane = lane;
        lane->slots[j].block = i * DEPTH + j;
    }
}

/* The main thread */

static void progress(void)
{
    unsigned end = qatomic_read(&stress->completed) + stress->progress;

    while ((int)(qatomic_read(&stress->completed) - end) < 0) {
        aio_poll(qemu_get_aio_context(), false);
        g_usleep(20);
    }
}

/* No request is in a node, nor one that began as a direct one not ended. */
static void assert_stays_idle(BlockDriverState *bs, unsigned backends)
{
    Node *node = bs->opaque;

    for (int i = 0; i < 20; i++) {
        g_assert_cmpuint(qatomic_read(&node->active), ==, 0);
        for (unsigned j = 0; j < backends; j++) {
            g_assert_cmpuint(qatomic_read(&stress->unended[j]), ==, 0);
        }
        g_usleep(1);
    }
}

static void act_drain_pass(void)
{
    bdrv_drained_begin(stress->pass);
    assert_stays_idle(stress->pass, 1);
    bdrv_drained_end(stress->pass);
}

static void act_drain_leaf(void)
{
    bdrv_drained_begin(stress->leaf);
    assert_stays_idle(stress->leaf, BACKENDS);
    bdrv_drained_end(stress->leaf);
}

static void act_drain_all(void)
{
    bdrv_drain_all_begin();
    assert_stays_idle(stress->leaf, BACKENDS);
    bdrv_drain_all_end();
}

static void act_graph_lock(void)
{
    bdrv_graph_wrlock();
    /* A request that goes again waits, for the lock. */
    assert_stays_idle(stress->leaf, 0);
    bdrv_graph_wrunlock();
}

static BlockDriverState *new_node(BlockDriver *drv, const char *name)
{
    BlockDriverState *bs = bdrv_new_open_driver(drv, name, BDRV_O_RDWR,
                                                &error_abort);

    bs->total_sectors = BLOCKS * BLOCK / SECTOR;
    return bs;
}

static BlockDriverState *new_filter(BlockDriver *drv, const char *name)
{
    BlockDriverState *bs = new_node(drv, name);

    bdrv_ref(stress->leaf);
    bdrv_graph_wrlock();
    bdrv_attach_child(bs, stress->leaf, "file", &child_of_bds,
                      BDRV_CHILD_FILTERED | BDRV_CHILD_PRIMARY, &error_abort);
    bdrv_graph_wrunlock();
    return bs;
}

static void insert_and_remove(BlockDriver *drv)
{
    BlockDriverState *filter = new_filter(drv, "filter");

    bdrv_drained_begin(stress->leaf);
    bdrv_graph_wrlock();
    bdrv_replace_node(stress->leaf, filter, &error_abort);
    bdrv_graph_wrunlock();
    bdrv_drained_end(stress->leaf);
    progress();
    bdrv_drop_filter(filter, &error_abort);
    bdrv_unref(filter);
}

static void act_filter_passes(void)
{
    insert_and_remove(&bdrv_pass);
}

static void act_filter_stops(void)
{
    insert_and_remove(&bdrv_stop);
}

static void act_serialising(void)
{
    BlockBackend *blk = stress->main_blk[chance(BACKENDS)];
    uint8_t buf[SECTOR] = {};

    blk_pwrite(blk, chance(BLOCKS) * BLOCK, SECTOR, buf,
               chance(2) ? BDRV_REQ_SERIALISING : 0);
}

/* The disk is looked at first: no later write may be missing in the bitmap. */
static void act_bitmap(void)
{
    BlockDriverState *bs = chance(2) ? stress->leaf : stress->pass;
    BdrvDirtyBitmap *bitmap = bdrv_create_dirty_bitmap(bs, BLOCK, "bitmap",
                                                       &error_abort);
    uint64_t before[BLOCKS];

    for (unsigned i = 0; i < BLOCKS; i++) {
        before[i] = qatomic_read(&stress->written[i]);
    }
    progress();
    bdrv_drained_begin(stress->leaf);
    for (unsigned i = 0; i < BLOCKS; i++) {
        unsigned backend = i / DEPTH % BACKENDS;

        if (qatomic_read(&stress->written[i]) != before[i] &&
            (bs == stress->leaf || backend == 0)) {
            g_assert_true(bdrv_dirty_bitmap_get(bitmap, i * BLOCK));
        }
    }
    bdrv_drained_end(stress->leaf);
    bdrv_release_dirty_bitmap(bitmap);
}

static void act_throttle(void)
{
    BlockBackend *blk = stress->blk[chance(BACKENDS)];

    blk_io_limits_enable(blk, "group");
    progress();
    blk_io_limits_disable(blk);
}

static void act_copy_on_read(void)
{
    bdrv_enable_copy_on_read(stress->leaf);
    progress();
    bdrv_disable_copy_on_read(stress->leaf);
}

static void act_threshold(void)
{
    bdrv_write_threshold_set(stress->leaf, BLOCKS * BLOCK);
    progress();
    bdrv_write_threshold_set(stress->leaf, 0);
}

static void reopen(BlockDriverState *bs, const char *detect)
{
    QDict *options = qdict_new();

    qdict_put_str(options, "detect-zeroes", detect);
    bdrv_reopen(bs, options, true, &error_abort);
}

static void act_reopen(void)
{
    BlockDriverState *bs = chance(2) ? stress->leaf : stress->pass;

    reopen(bs, "on");
    progress();
    reopen(bs, "off");
}

static void act_flush(void)
{
    uint64_t before[BLOCKS];

    for (unsigned i = 0; i < BLOCKS; i++) {
        before[i] = qatomic_load_acquire(&stress->ended[i]);
    }
    blk_flush(stress->main_blk[1]);
    for (unsigned i = 0; i < BLOCKS; i++) {
        g_assert_cmpuint(qatomic_read(&stress->stable[i]), >=, before[i]);
    }
}

/* The fixture */

static BlockBackend *new_backend(BlockDriverState *bs)
{
    BlockBackend *blk = blk_new(qemu_get_aio_context(), BLK_PERM_ALL,
                                BLK_PERM_ALL);

    blk_set_enable_write_cache(blk, true);
    blk_insert_bs(blk, bs, &error_abort);
    blk_set_allow_aio_context_change(blk, true);
    return blk;
}

static void kernel_start(void)
{
    qemu_mutex_init(&stress->lock);
    qemu_cond_init(&stress->cond);
    QSIMPLEQ_INIT(&stress->tasks);
    for (unsigned i = 0; i < KERNEL_THREADS; i++) {
        qemu_thread_create(&stress->kernel[i], "kernel", kernel_thread, NULL,
                           QEMU_THREAD_JOINABLE);
    }
}

static void kernel_stop(void)
{
    WITH_QEMU_LOCK_GUARD(&stress->lock) {
        stress->power_off = true;
        qemu_cond_broadcast(&stress->cond);
    }
    for (unsigned i = 0; i < KERNEL_THREADS; i++) {
        qemu_thread_join(&stress->kernel[i]);
    }
    qemu_cond_destroy(&stress->cond);
    qemu_mutex_destroy(&stress->lock);
}

static void setup(const Action *action)
{
    stress = g_new0(Stress, 1);
    stress->progress = action->progress ?: 40;
    stress->misaligned = action->misaligned ?: 100;
    stress->depth = action->depth ?: DEPTH;
    stress->hurry = action->hurry;
    kernel_start();
    for (unsigned i = 0; i < THREADS; i++) {
        stress->iothread[i] = iothread_new();
    }
    stress->leaf = new_node(&bdrv_leaf, "leaf");
    stress->pass = new_filter(&bdrv_pass, "pass");
    for (unsigned i = 0; i < BACKENDS; i++) {
        BlockDriverState *bs = i ? stress->leaf : stress->pass;

        stress->blk[i] = new_backend(bs);
        stress->main_blk[i] = new_backend(bs);
    }
    blk_set_aio_context(stress->blk[0],
                        iothread_get_aio_context(stress->iothread[0]),
                        &error_abort);
    for (unsigned i = 0; i < BACKENDS; i++) {
        /* Else nodes that come would take them all to the main loop. */
        blk_set_allow_aio_context_change(stress->blk[i], false);
        blk_set_allow_aio_context_change(stress->main_blk[i], false);
    }
    stress->lanes = g_new0(Lane, LANES);
    for (unsigned i = 0; i < LANES; i++) {
        lane_init(&stress->lanes[i], i);
    }
    for (unsigned i = 0; i < (action->lanes ?: LANES); i++) {
        qemu_bh_schedule(stress->lanes[i].pump);
    }
}

static void delete_lane_bh(void *opaque)
{
    Lane *lane = opaque;

    g_assert_cmpuint(lane->direct.held, ==, 0);
    qemu_bh_delete(lane->pump);
    qemu_bh_delete(lane->reap);
}

/* All slots have ended: what has been written is there. */
static void finish(void)
{
    qatomic_set(&stress->stop, true);
    while (qatomic_load_acquire(&stress->busy)) {
        aio_poll(qemu_get_aio_context(), false);
        g_usleep(20);
    }
    bdrv_drain_all();
    g_assert_cmpuint(qatomic_read(&stress->leaf->direct_in_flight), ==, 0);
    g_assert_cmpuint(qatomic_read(&stress->pass->direct_in_flight), ==, 0);
    for (unsigned i = 0; i < BLOCKS; i++) {
        g_assert_cmpuint(qatomic_read(&stress->written[i]), ==,
                         stress->lanes[i / DEPTH].slots[i % DEPTH].gen);
    }
    act_flush();
}

static void teardown(void)
{
    for (unsigned i = 0; i < LANES; i++) {
        aio_wait_bh_oneshot(stress->lanes[i].ctx, delete_lane_bh,
                            &stress->lanes[i]);
    }
    for (unsigned i = 0; i < BACKENDS; i++) {
        blk_set_allow_aio_context_change(stress->blk[i], true);
        blk_set_allow_aio_context_change(stress->main_blk[i], true);
    }
    blk_set_aio_context(stress->blk[0], qemu_get_aio_context(), &error_abort);
    for (unsigned i = 0; i < BACKENDS; i++) {
        blk_unref(stress->blk[i]);
        blk_unref(stress->main_blk[i]);
    }
    bdrv_unref(stress->pass);
    bdrv_unref(stress->leaf);
    kernel_stop();
    for (unsigned i = 0; i < THREADS; i++) {
        iothread_join(stress->iothread[i]);
    }
    g_free(stress->lanes);
    g_free(stress);
}

/* What the load is for; if it is none the test shows nothing. */
static void assert_loaded(void)
{
    unsigned taken = qatomic_read(&stress->taken);
    unsigned again = qatomic_read(&stress->again);
    unsigned flushed = qatomic_read(&stress->flushed);
    unsigned serialised = qatomic_read(&stress->serialised);

    g_test_message("%u requests, %u direct, %u of them again, %u batches "
                   "refused, %u flushes, %u serialising",
                   qatomic_read(&stress->completed), taken, again,
                   qatomic_read(&stress->refused), flushed, serialised);
    g_assert_cmpuint(taken, >, 0);
    g_assert_cmpuint(again + stress->hurry, >, 0);
    g_assert_cmpuint(flushed, >, 0);
    g_assert_cmpuint(serialised, >, 0);
}

static void act_nothing(void)
{
}

static void act_any(void);

static const Action actions[] = {
    { "drain/pass", act_drain_pass },
    { "drain/leaf", act_drain_leaf },
    { "drain/all", act_drain_all },
    { "drain/light", act_drain_leaf, .rounds = 1000, .progress = 2,
      .lanes = 1, .depth = 1 },
    { "graph/lock", act_graph_lock },
    { "graph/filter-passes", act_filter_passes },
    { "graph/filter-stops", act_filter_stops },
    { "serialising", act_serialising },
    { "bitmap", act_bitmap },
    { "throttle", act_throttle },
    { "copy-on-read", act_copy_on_read },
    { "threshold", act_threshold },
    { "reopen", act_reopen },
    { "flush", act_flush },
    { "misaligned", act_nothing, .rounds = 1000, .misaligned = 8 },
    { "hurry", act_nothing, .rounds = 3000, .misaligned = 8, .hurry = true },
    { "any", act_any },
};

static void act_any(void)
{
    for (int i = 0; i < 5; i++) {
        actions[chance(ARRAY_SIZE(actions) - 1)].act();
    }
}

static void test_action(gconstpointer data)
{
    const Action *action = data;
    unsigned rounds = action->rounds ?: 40;

    setup(action);
    for (unsigned i = 0; i < rounds; i++) {
        progress();
        action->act();
    }
    finish();
    assert_loaded();
    teardown();
}

int main(int argc, char **argv)
{
    module_call_init(MODULE_INIT_QOM);
    bdrv_init();
    qemu_init_main_loop(&error_abort);
    g_test_init(&argc, &argv, NULL);
    for (int i = 0; i < ARRAY_SIZE(actions); i++) {
        g_autofree char *path = g_strdup_printf("/block-direct-stress/%s",
                                                actions[i].name);

        g_test_add_data_func(path, &actions[i], test_action);
    }
    return g_test_run();
}
