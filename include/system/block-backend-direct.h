/*
 * Reads and writes past the block layer's coroutines
 *
 * A plain read or write of a simple node needs neither a coroutine, nor an
 * AIOCB, nor an entry in a list of tracked requests.  A device can submit such
 * requests directly, a batch at a time: the direct path does for a whole batch
 * what else is done for each request, and it refuses the batch if there is
 * anything that it cannot do.  The device then uses blk_aio_preadv() and
 * blk_aio_pwritev(), with the same result.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_BACKEND_DIRECT_H
#define BLOCK_BACKEND_DIRECT_H

#include "qemu/atomic.h"
#include "qemu/queue.h"
#include "system/block-backend-global-state.h"

/* A longer chain of nodes takes the ordinary path. */
#define BLK_DIRECT_NODES 4

typedef struct BlkDirect BlkDirect;
typedef struct BdrvDirectReq BdrvDirectReq;

/* A direct request: memory of the caller, from blk_direct_rw() to its end */
struct BdrvDirectReq {
    BlkDirect *lane;
    QEMUIOVector *qiov;
    int64_t offset;             /* in bytes */
    QSIMPLEQ_ENTRY(BdrvDirectReq) next;     /* the driver's until it is done */
    bool is_write;
    bool fua;                   /* BDRV_REQ_FUA */
    bool again;                 /* it has not succeeded */
    bool alone;                 /* nothing else is in flight, or follows */
};

/*
 * BlkDirectFunc: the end of a direct request
 * @again: false if the request succeeded; true if it has to be submitted once
 *         more, by blk_aio_preadv() or blk_aio_pwritev() within this call
 *
 * A direct request does not fail: whatever goes wrong, goes wrong again on the
 * ordinary path, which knows what to do.
 *
 * Does not wait for other direct requests, so it neither drains nor changes the
 * graph.
 *
 * Context: the lane's AioContext
 */
typedef void BlkDirectFunc(BdrvDirectReq *req, bool again);

/*
 * A pause before something that was in vain is tried again: after 1, 3, 7, ...
 * occasions, and in the end after BLK_DIRECT_MAX_PAUSE, so that what stays in
 * vain costs little.  May be used by several threads: then it may be off.
 */
#define BLK_DIRECT_MAX_PAUSE 63

typedef struct BlkDirectPause {
    uint8_t left;               /* atomic */
    uint8_t length;             /* atomic: of the last pause */
} BlkDirectPause;

/* An occasion: false if it is to be tried */
static inline bool blk_direct_pause_goes_on(BlkDirectPause *pause)
{
    uint8_t left = qatomic_read(&pause->left);

    if (likely(!left)) {
        return false;
    }
    qatomic_set(&pause->left, left - 1);
    return true;
}

/* It was in vain. */
static inline void blk_direct_pause_begin(BlkDirectPause *pause)
{
    uint8_t length = MIN(2 * qatomic_read(&pause->length) + 1,
                         BLK_DIRECT_MAX_PAUSE);

    qatomic_set(&pause->length, length);
    qatomic_set(&pause->left, length);
}

/* It was not in vain: the next pause is a short one. */
static inline void blk_direct_pause_reset(BlkDirectPause *pause)
{
    qatomic_set(&pause->length, 0);
}

/*
 * A lane: the direct requests of one queue.  Belongs to the AioContext that
 * serves the queue.  The counters are written by that context, and read by any
 * thread, each for itself.
 */
struct BlkDirect {
    BlockBackend *blk;
    BlkDirectFunc *complete;

    /*
     * Shares of the BlockBackend's and of each node's counter.  While there are
     * any the graph is locked for reading.
     */
    unsigned held;
    BlkDirectPause pause[2];    /* of asking: for reads, for writes */
    BlockDriverState *nodes[BLK_DIRECT_NODES];  /* root first, leaf last */
    QSIMPLEQ_HEAD(, BdrvDirectReq) done;

    /* What the nodes allow in the open batch */
    int64_t length;
    uint32_t max_bytes;
    uint32_t misaligned;        /* mask */
    uint16_t max_iov;           /* up to IOV_MAX */
    bool is_write;
    bool fua;
    uint8_t num_nodes;          /* 0 while no share is held */

    /*
     * Set by the owner: the memory of requests may be registered with whatever
     * the driver submits them to, as for BDRV_REQ_REGISTERED_BUF
     */
    bool registered_buf;

    uint64_t direct;            /* requests that were taken */
    uint64_t registered;        /* those of them with registered memory */
    const char *refusal;        /* why one was last refused, or NULL */
};

/**
 * blk_direct_init: prepare a lane
 * @blk: outlives the lane
 * @complete: called for each request at its end
 *
 * A lane holds nothing while no request is in flight; there is no pair.
 *
 * Context: any, before the lane's first use
 */
void blk_direct_init(BlkDirect *lane, BlockBackend *blk,
                     BlkDirectFunc *complete);

/**
 * blk_direct_begin: open a batch, and a defer_call() section
 * @n: the maximum number of requests in the batch, at least 1
 * @is_write: the direction of all of them
 *
 * May enter coroutines that wait for the lane's counts, and so complete other
 * requests, before it returns.  So do blk_direct_end() and blk_direct_flush().
 *
 * Returns: false if they have to take the ordinary path
 *
 * Pair: blk_direct_end(), unless it returns false
 *
 * Context: the lane's AioContext, not in a coroutine
 */
bool blk_direct_begin(BlkDirect *lane, unsigned n, bool is_write);

/**
 * blk_direct_rw: submit a request of the open batch
 * @req: uninitialised; the block layer's until the request ends
 * @offset: in bytes
 * @qiov: stays valid until then, too
 *
 * Does not complete the request: blk_direct_end() does, at the earliest.
 *
 * Returns: false if this request has to take the ordinary path
 *
 * Context: as blk_direct_begin()
 */
bool blk_direct_rw(BlkDirect *lane, BdrvDirectReq *req, int64_t offset,
                   QEMUIOVector *qiov);

/**
 * blk_direct_end: close the batch, and complete what is done already
 * @unused: how many of @n requests blk_direct_rw() did not take
 *
 * Pair: blk_direct_begin()
 *
 * Context: as blk_direct_begin()
 */
void blk_direct_end(BlkDirect *lane, unsigned unused);

/* For block drivers */

/**
 * bdrv_direct_done: a request that was in flight has ended
 * @ok: all of its bytes were transferred
 *
 * The request is completed by blk_direct_flush(), which the driver calls when
 * it has told of all that it found.  A write counts as written from here on:
 * not earlier, or a flush in between would count it as flushed.
 *
 * Context: the lane's AioContext
 */
void bdrv_direct_done(BdrvDirectReq *req, bool ok);

/**
 * blk_direct_flush: complete all requests of a lane that are done
 *
 * Context: the lane's AioContext, not in a coroutine
 */
void blk_direct_flush(BlkDirect *lane);

/* For block-backend-direct.c: what only the BlockBackend knows */

/**
 * blk_direct_root: judge the BlockBackend
 * @root: set to its node if it is taken
 *
 * Returns: why there are no direct requests, or NULL if there may be
 *
 * Context: counted in flight, with the graph locked
 */
const char *blk_direct_root(BlockBackend *blk, BdrvChild **root);

/* Like blk_inc_in_flight() and blk_dec_in_flight(), for @n requests */
void blk_direct_inc_in_flight(BlockBackend *blk, unsigned n);
void blk_direct_dec_in_flight(BlockBackend *blk, unsigned n);

/**
 * blk_submit_begin_in_flight: blk_submit_begin() with a request in flight
 *
 * No drained section has begun, as it waits for that request.  So this is never
 * refused, even when one is about to begin.
 *
 * Pair: blk_submit_end()
 */
void blk_submit_begin_in_flight(BlockBackend *blk);

#endif /* BLOCK_BACKEND_DIRECT_H */
