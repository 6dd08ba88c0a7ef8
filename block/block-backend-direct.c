/*
 * Reads and writes past the block layer's coroutines
 *
 * Knows what the ordinary path does for a plain read or write, and under which
 * conditions none of that is needed; blk_direct_root(), lane_open(),
 * lane_find_nodes() and node_refusal() are the list.  Does not know how data is
 * transferred: block drivers do.
 *
 * Rules; breaking any of them loses data or hangs:
 *
 * - Count first, judge afterwards.  A drain does the opposite, so that one of
 *   the two sees the other.
 * - The count of the BlockBackend makes every drain wait, as a drain of any
 *   node polls the node's parents.
 * - The graph is locked for reading from a lane's first request to its last: a
 *   node whose file the kernel writes to must not go.
 * - Judge each batch anew: throttling, bitmaps, the write threshold and
 *   copy-on-read change without a drain.
 * - A serialising request waits for the nodes' counts, which are raised before
 *   it is looked for.
 * - A write counts as written (write generation, bitmaps) when it is done, and
 *   before anybody can see that.
 * - Complete, then lower the counts, then kick.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "block/graph-lock.h"
#include "block/write-threshold.h"
#include "qemu/defer-call.h"
#include "system/block-backend.h"
#include "system/block-backend-direct.h"
#include "system/replay.h"
#include "trace.h"

void blk_direct_init(BlkDirect *lane, BlockBackend *blk,
                     BlkDirectFunc *complete)
{
    *lane = (BlkDirect) {
        .blk = blk,
        .complete = complete,
    };
    QSIMPLEQ_INIT(&lane->done);
}

/* Eligibility */

/* What only writes ask of a node */
static const char *node_write_refusal(BlockDriverState *bs, bool fua)
{
    if (bdrv_is_read_only(bs)) {
        return "a node is read-only";
    }
    if (bs->detect_zeroes != BLOCKDEV_DETECT_ZEROES_OPTIONS_OFF) {
        return "a node detects zeroes";
    }
    if (bdrv_write_threshold_get(bs)) {
        return "a node has a write threshold";
    }
    if (bs->bl.zoned != BLK_Z_NONE) {
        return "a node is zoned";
    }
    if (qatomic_read(&bs->dirty_bitmaps.lh_first)) {
        return "a node has dirty bitmaps";
    }
    if (fua && !(bs->supported_write_flags & BDRV_REQ_FUA)) {
        return "the write cache is off";
    }
    return NULL;
}

static const char *node_refusal(BlockDriverState *bs, bool is_write, bool fua)
{
    if (qatomic_read(&bs->copy_on_read)) {
        return "a node copies on read";
    }
    if (bs->open_flags & (BDRV_O_NO_IO | BDRV_O_INACTIVE)) {
        return "a node is inactive";
    }
    if (bs->bl.has_variable_length) {
        return "a node has no fixed length";
    }
    if (bs->drv->bdrv_co_is_inserted) {
        return "a node may lose its medium";
    }
    return is_write ? node_write_refusal(bs, fua) : NULL;
}

/* A request has to be within the limits of all nodes. */
static void lane_apply_limits(BlkDirect *lane, const BlockDriverState *bs)
{
    lane->length = MIN(lane->length, bs->total_sectors * BDRV_SECTOR_SIZE);
    lane->misaligned |= bs->bl.request_alignment - 1;
    if (bs->bl.max_transfer) {
        lane->max_bytes = MIN(lane->max_bytes, bs->bl.max_transfer);
    }
    if (bs->bl.max_iov) {
        lane->max_iov = MIN(lane->max_iov, bs->bl.max_iov);
    }
}

/*
 * What drivers and their options refuse, they refuse for long.  Do not ask for
 * some batches, so that a disk that has no direct path pays little for it.
 */
static const char *lane_pause(BlkDirect *lane, const char *refusal)
{
    blk_direct_pause_begin(&lane->pause[lane->is_write]);
    return refusal;
}

/* Walks from the root to the leaf */
static const char *GRAPH_RDLOCK
lane_find_nodes(BlkDirect *lane, BdrvChild *child)
{
    bool is_write = lane->is_write;
    unsigned n = 0;

    lane->length = INT64_MAX;
    lane->max_bytes = BDRV_REQUEST_MAX_BYTES;
    lane->max_iov = IOV_MAX;
    lane->misaligned = 0;
    for (;;) {
        BlockDriverState *bs = child->bs;
        const char *refusal;

        if (n == BLK_DIRECT_NODES) {
            return "there are too many nodes";
        }
        if (!bs->drv) {
            return "there is no medium";
        }
        if (is_write && !(child->perm & BLK_PERM_WRITE)) {
            return "there is no permission to write";
        }
        if (bs->open_flags & BDRV_O_NO_FLUSH) {
            lane->fua = false;
        }
        refusal = node_refusal(bs, is_write, lane->fua);
        if (refusal) {
            return refusal;
        }
        /* With requests in flight nothing can have changed the graph. */
        assert(!lane->num_nodes || lane->nodes[n] == bs);
        lane->nodes[n++] = bs;
        lane_apply_limits(lane, bs);
        if (bs->drv->bdrv_direct_ready) {
            if (!bs->drv->bdrv_direct_ready(bs, is_write)) {
                return lane_pause(lane, "the driver cannot with the node's"
                                        " options");
            }
            lane->num_nodes = n;
            blk_direct_pause_reset(&lane->pause[is_write]);
            return NULL;
        }
        if (!bs->drv->bdrv_direct_passes ||
            !bs->drv->bdrv_direct_passes(bs, is_write)) {
            return lane_pause(lane, "a node's driver has no direct path");
        }
        assert(bs->file);
        child = bs->file;
    }
}

/* Counts */

static void lane_lower_nodes(BlkDirect *lane, unsigned n)
{
    for (unsigned i = 0; i < lane->num_nodes; i++) {
        bdrv_direct_end(lane->nodes[i], n);
    }
}

/*
 * Do not raise counts in vain: serialising requests that wait for them would
 * look at them again.
 */
static bool lane_raise_nodes(BlkDirect *lane, unsigned n)
{
    bool alone = true;

    for (unsigned i = 0; i < lane->num_nodes; i++) {
        if (qatomic_read(&lane->nodes[i]->serialising_in_flight)) {
            return false;
        }
    }
    for (unsigned i = 0; i < lane->num_nodes; i++) {
        alone &= bdrv_direct_begin(lane->nodes[i], n);
    }
    if (!alone) {
        lane_lower_nodes(lane, n);
    }
    return alone;
}

/* Gives up what the lane holds besides the nodes' counts */
static void lane_release(BlkDirect *lane, unsigned n)
{
    lane->held -= n;
    if (!lane->held) {
        lane->num_nodes = 0;
        bdrv_graph_rdunlock();
    }
    blk_direct_dec_in_flight(lane->blk, n);
}

/*
 * Raises the counts of the nodes.  Otherwise returns why the batch cannot be
 * submitted directly.
 */
static const char *TSA_NO_TSA
lane_open(BlkDirect *lane, unsigned n, bool is_write)
{
    BdrvChild *root;
    const char *refusal = blk_direct_root(lane->blk, &root);

    if (refusal) {
        return refusal;
    }
    if (replay_mode != REPLAY_MODE_NONE) {
        return "requests are recorded or replayed";
    }
    lane->is_write = is_write;
    lane->fua = is_write && !blk_enable_write_cache(lane->blk);
    refusal = lane_find_nodes(lane, root);
    if (!refusal && !lane_raise_nodes(lane, n)) {
        refusal = "a serialising request is in flight";
    }
    return refusal;
}

/* The device is called as in query-block; nobody asks unless it is traced. */
static void lane_trace_refusal(BlkDirect *lane, unsigned n, bool is_write,
                               const char *refusal)
{
    if (trace_event_get_state_backends(TRACE_BLK_DIRECT_REFUSED)) {
        g_autofree char *qdev = blk_get_attached_dev_id(lane->blk);

        trace_blk_direct_refused(qdev, n, is_write, refusal);
    }
}

bool blk_direct_begin(BlkDirect *lane, unsigned n, bool is_write)
{
    const char *refusal;

    IO_CODE();
    if (blk_direct_pause_goes_on(&lane->pause[is_write])) {
        return false;
    }
    if (!lane->held && !bdrv_graph_try_rdlock()) {
        qatomic_set(&lane->refusal, "the graph changes");
        return false;
    }
    lane->held += n;
    blk_direct_inc_in_flight(lane->blk, n);
    refusal = lane_open(lane, n, is_write);
    if (unlikely(refusal)) {
        lane_trace_refusal(lane, n, is_write, refusal);
        qatomic_set(&lane->refusal, refusal);
        lane_release(lane, n);
        return false;
    }
    /* Drivers submit, and may complete, at the end of such a section. */
    defer_call_begin();
    return true;
}

/* Requests */

static bool lane_fits(const BlkDirect *lane, int64_t offset,
                      const QEMUIOVector *qiov)
{
    uint64_t bytes = qiov->size, start = offset, length = lane->length;

    /* Unsigned: no bytes are too many, and a negative offset is beyond. */
    return bytes - 1 < lane->max_bytes && qiov->niov <= lane->max_iov &&
           !((start | bytes) & lane->misaligned) &&
           start <= length && bytes <= length - start;
}

static inline void lane_done(BlkDirect *lane, BdrvDirectReq *req, bool ok)
{
    if (req->is_write) {
        for (unsigned i = 0; i < lane->num_nodes; i++) {
            bdrv_direct_written(lane->nodes[i], req->offset, req->qiov->size);
        }
    }
    req->again = !ok;
    QSIMPLEQ_INSERT_TAIL(&lane->done, req, next);
}

bool blk_direct_rw(BlkDirect *lane, BdrvDirectReq *req, int64_t offset,
                   QEMUIOVector *qiov)
{
    BlockDriverState *leaf;
    int ret;

    IO_CODE();
    assert(lane->num_nodes);
    if (unlikely(!lane_fits(lane, offset, qiov))) {
        qatomic_set(&lane->refusal, "a request exceeds a limit of a node");
        return false;
    }
    req->lane = lane;
    req->qiov = qiov;
    req->offset = offset;
    req->is_write = lane->is_write;
    req->fua = lane->fua;
    req->alone = lane->held == 1;
    leaf = lane->nodes[lane->num_nodes - 1];
    ret = leaf->drv->bdrv_direct_rw(leaf, req);
    if (unlikely(ret < 0)) {
        qatomic_set(&lane->refusal, "the driver cannot with this request");
        return false;
    }
    if (ret) {
        lane_done(lane, req, true);
    }
    qatomic_set_u64(&lane->direct, lane->direct + 1);
    return true;
}

void bdrv_direct_done(BdrvDirectReq *req, bool ok)
{
    IO_CODE();
    lane_done(req->lane, req, ok);
}

/*
 * A request that goes again is submitted while its share is held, so that a
 * drain waits for it without a gap.  The share is given back without waiting
 * for the request, which may wait for a serialising request that waits for the
 * share.
 */
static unsigned lane_complete(BlkDirect *lane)
{
    BdrvDirectReq *req;
    unsigned n;

    for (n = 0; (req = QSIMPLEQ_FIRST(&lane->done)); n++) {
        QSIMPLEQ_REMOVE_HEAD(&lane->done, next);
        if (unlikely(req->again)) {
            blk_submit_begin_in_flight(lane->blk);
            lane->complete(req, true);
            blk_submit_end(lane->blk);
        } else {
            lane->complete(req, false);
        }
    }
    return n;
}

static void lane_give_back(BlkDirect *lane, unsigned n)
{
    if (n) {
        lane_lower_nodes(lane, n);
        lane_release(lane, n);
    }
}

void blk_direct_end(BlkDirect *lane, unsigned unused)
{
    IO_CODE();
    lane_give_back(lane, unused + lane_complete(lane));
    defer_call_end();
}

void blk_direct_flush(BlkDirect *lane)
{
    IO_CODE();
    lane_give_back(lane, lane_complete(lane));
}
