/*
 * One queue of a virtio-blk data plane
 *
 * Shared by the files of hw/block/dataplane; not for the device.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_BLOCK_DATAPLANE_VIRTIO_BLK_QUEUE_H
#define HW_BLOCK_DATAPLANE_VIRTIO_BLK_QUEUE_H

#include "block/accounting.h"
#include "hw/virtio/dataplane/vring.h"
#include "hw/virtio/virtio-blk.h"
#include "qapi/qapi-types-virtio.h"
#include "virtio-blk-bounce.h"

typedef struct DataPlaneQueue DataPlaneQueue;

/*
 * After so many completions the driver gets to see them although the batch
 * goes on: if it is awake it can work on them meanwhile.
 */
#define DATA_PLANE_PUBLISH 8

typedef struct DataPlanePool DataPlanePool;

/*
 * A request and the memory of its vectors.  Slots outlive a stop, as do
 * requests that the error policy has parked.
 */
typedef struct DataPlaneReq {
    VirtIOBlockReq req;         /* first: the device knows only this part */
    VringVectors vecs;
    DataPlaneQueue *queue;
    DataPlanePool *pool;
    QSLIST_ENTRY(DataPlaneReq) next;
} DataPlaneReq;

/*
 * As many slots as the queue has entries; a queue whose size has changed has a
 * new pool.  Belongs to the queue's AioContext while the queue is started.
 */
struct DataPlanePool {
    unsigned size;
    unsigned touched;           /* slots below were used before */
    unsigned taken;
    QSLIST_HEAD(, DataPlaneReq) free;
    DataPlaneReq slots[];
};

/*
 * Counters over the life of the device.  Writer: the queue's AioContext.
 * Readers: any thread, each counter on its own, in no particular order.
 */
typedef struct DataPlaneStats {
    uint64_t reads;
    uint64_t writes;
    uint64_t flushes;
    uint64_t discards;
    uint64_t write_zeroes;
    uint64_t other;
    uint64_t errors;            /* completed with another status than OK */
    uint64_t completed;
    uint64_t popped;
    uint64_t released;          /* popped, and neither parked nor in flight */
    uint64_t batches;           /* times that requests were found */
    uint64_t kicks;             /* available buffer notifications received */
    uint64_t polled;            /* times that polling found requests */
    uint64_t notified;          /* used buffer notifications sent */
    uint64_t suppressed;        /* ... that the driver did not ask for */
    uint64_t merged;            /* requests that went along with another */
} DataPlaneStats;

/* Who ends a batch of completions, see notify_guest_later() */
typedef enum DataPlaneNotify {
    DATA_PLANE_NOTIFY_NOBODY,   /* no batch has begun */
    DATA_PLANE_NOTIFY_ASKED,    /* defer_call() has been called just now */
    DATA_PLANE_NOTIFY_DEFERRED, /* the end of a defer_call() section */
    DATA_PLANE_NOTIFY_IN_BH,    /* notify_bh, which is scheduled */
} DataPlaneNotify;

/*
 * Fields without a remark are written with the BQL held while the queue is
 * quiet, that is detached from its AioContext, and read in its AioContext.
 */
struct DataPlaneQueue {
    VirtIOBlock *s;
    VirtQueue *vq;
    QEMUBH *attention_bh;       /* the plane's, in the main loop: see @error */
    AioContext *ctx;            /* constant only while the queue is started */
    EventNotifier host_notifier;    /* copies of the VirtQueue's */
    EventNotifier guest_notifier;
    QEMUBH *notify_bh;
    QEMUBH *memory_bh;
    uint16_t index;
    bool quiesced;              /* attaching has no effect */

    /*
     * The driver has enabled the queue and @vring is set up.  Writer: BQL
     * held, release; reader: the queue's AioContext, acquire.
     */
    bool active;

    /*
     * A VringError that is yet to be reported.  Writers: the queue's
     * AioContext and the main loop set it, BQL held clears it; atomic.
     */
    int error;

    /* The rest belongs to the queue's AioContext while it is started. */
    Vring vring;
    bool polling;               /* between poll_begin and poll_end */
    DataPlaneNotify notify;     /* who is going to call notify_guest() */
    unsigned unnotified;        /* published since the driver was notified */

    /* Completed requests that are yet to be accounted for, with one lock */
    BlockAcctCookie acct[DATA_PLANE_PUBLISH];
    unsigned acct_num;

    DataPlanePool *pool;        /* NULL before the first ring */

    DataPlaneBounce bounce;     /* requests whose buffers are not in RAM */

    DataPlaneStats stats;
};

/**
 * data_plane_queue_init: prepare a queue for a device that is being realized
 * @attention_bh: scheduled when @error is set, and when a kick comes for a
 *                queue that has no ring yet; it runs in the main loop
 *
 * Pair: data_plane_queue_cleanup()
 *
 * Context: BQL held
 */
void data_plane_queue_init(DataPlaneQueue *q, VirtIOBlock *s, unsigned index,
                           QEMUBH *attention_bh);
void data_plane_queue_cleanup(DataPlaneQueue *q);

/**
 * data_plane_queue_setup: take the ring over if the driver enabled the queue
 *
 * Returns: false with @errp set if the ring cannot be served, and the device
 *          broken if no device could serve it: the caller reports that with
 *          virtio_error(); true if it can, or if the queue is not enabled
 *
 * Pair: data_plane_queue_teardown()
 *
 * Context: BQL held
 */
bool data_plane_queue_setup(DataPlaneQueue *q, VringMemory *mem,
                            Error **errp);

/**
 * data_plane_queue_teardown: hand the ring back, parked requests included
 *
 * Pair: data_plane_queue_setup()
 *
 * Context: BQL held, drained
 */
void data_plane_queue_teardown(DataPlaneQueue *q);

/**
 * data_plane_queue_bind: note the notifiers and make the bottom halves
 * @ctx: the AioContext that serves the queue
 *
 * Pair: data_plane_queue_unbind()
 *
 * Context: BQL held, quiesced
 */
void data_plane_queue_bind(DataPlaneQueue *q, AioContext *ctx);

/**
 * data_plane_queue_attach: kick the queue and look at it from now on
 * Pair: data_plane_queue_detach()
 *
 * Context: BQL held
 */
void data_plane_queue_attach(DataPlaneQueue *q);

/**
 * data_plane_queue_detach: look at the queue no more
 *
 * A handler that runs right now goes on to its end.
 *
 * Pair: data_plane_queue_attach()
 *
 * Context: BQL held
 */
void data_plane_queue_detach(DataPlaneQueue *q);

/**
 * data_plane_queue_quiesce: detach, and wait for a handler that still runs
 *
 * A kick that has come meanwhile is cleared: the next attach kicks anyway.
 * Attaching has no effect until data_plane_queue_resume(), so that the end of
 * a drained section does not undo this.
 *
 * Pair: data_plane_queue_resume()
 *
 * Context: BQL held, bound
 */
void data_plane_queue_quiesce(DataPlaneQueue *q);

/**
 * data_plane_queue_resume: let the queue be attached
 *
 * Attaches nothing.  A new queue is quiesced, too.
 *
 * Pair: data_plane_queue_quiesce()
 *
 * Context: BQL held
 */
void data_plane_queue_resume(DataPlaneQueue *q);

/**
 * data_plane_queue_unbind: show all completions, delete the bottom halves
 *
 * Requests that wait for the main loop to access what is not RAM are put back
 * into the ring, or parked.
 *
 * Pair: data_plane_queue_bind()
 *
 * Context: BQL held, quiesced, drained
 */
void data_plane_queue_unbind(DataPlaneQueue *q);

/**
 * data_plane_queue_complete: complete a request that was popped or restarted
 * @req: status is written
 *
 * The caller frees @req afterwards.
 *
 * Context: the queue's AioContext
 */
void data_plane_queue_complete(DataPlaneQueue *q, VirtIOBlockReq *req,
                               unsigned char status);

/**
 * data_plane_queue_give_up: never show a request to the driver again
 *
 * The caller frees @req afterwards.
 *
 * Context: the queue's AioContext, or drained
 */
void data_plane_queue_give_up(DataPlaneQueue *q, VirtIOBlockReq *req);

/**
 * data_plane_queue_info: counters of a queue
 * @iothread: id of the IOThread that serves it, or NULL
 *
 * Context: any thread
 */
VirtioBlkDataPlaneQueueInfo *data_plane_queue_info(DataPlaneQueue *q,
                                                   const char *iothread);

#endif /* HW_BLOCK_DATAPLANE_VIRTIO_BLK_QUEUE_H */
