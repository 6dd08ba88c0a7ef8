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
 * Publish after this many completions even in the middle of a batch, so that a
 * driver that is awake can already work on them.
 */
#define DATA_PLANE_PUBLISH 8

typedef struct DataPlanePool DataPlanePool;

/*
 * A request and the memory of its vectors.  Slots stay across a stop, because
 * requests that the error policy has parked do.
 */
typedef struct DataPlaneReq {
    VirtIOBlockReq req;         /* first: all that the device knows */
    VringVectors vecs;
    DataPlanePool *pool;
} DataPlaneReq;

/*
 * As many slots as the queue has entries; if the queue changes its size it
 * gets a new pool.  Belongs to the queue's AioContext while the queue is
 * started.
 */
struct DataPlanePool {
    DataPlaneQueue *queue;
    unsigned size;
    unsigned touched;           /* slots below this were used before; atomic */
    unsigned taken;
    VirtIOBlockReq *free;       /* a list, by VirtIOBlockReq.next */
    DataPlaneReq slots[];
};

/* Of all requests from pools, while the main loop does not unmap them */
extern const VirtIOBlockReqOps data_plane_pool_ops;

/* Kinds of requests that are counted apart */
typedef enum DataPlaneKind {
    DATA_PLANE_READ,
    DATA_PLANE_WRITE,
    DATA_PLANE_FLUSH,
    DATA_PLANE_DISCARD,
    DATA_PLANE_WRITE_ZEROES,
    DATA_PLANE_OTHER,
    DATA_PLANE__KINDS,
} DataPlaneKind;

/*
 * Bucket n counts requests that took from 2^n ns to less than 2^(n+1) ns, and
 * the first one those of 0 ns, too.  So any 64 bits have a bucket, and no bound
 * has to be checked.
 */
#define DATA_PLANE_BUCKETS 64

/*
 * Counters over the life of the device.  Writer: the queue's AioContext.
 * Readers: any thread, each counter on its own, in no particular order.
 */
typedef struct DataPlaneStats {
    uint64_t done[DATA_PLANE__KINDS];   /* completed, whatever the status */
    uint64_t errors;            /* completed with another status than OK */
    uint64_t popped;
    uint64_t released;          /* popped, and neither parked nor in flight */
    uint64_t batches;           /* times that requests were found */
    uint64_t kicks;             /* available buffer notifications received */
    uint64_t polled;            /* times that polling found requests */
    uint64_t notified;          /* used buffer notifications sent */
    uint64_t suppressed;        /* not sent, as the driver did not ask */
    uint64_t merged;            /* requests submitted as part of another */

    /* How long those that are done took until they were accounted for */
    uint64_t latency[DATA_PLANE__KINDS * DATA_PLANE_BUCKETS];
} DataPlaneStats;

/* What calls notify_guest() after a batch: see notify_guest_later() */
typedef enum DataPlaneNotify {
    DATA_PLANE_NOTIFY_NONE,     /* nothing: no batch has begun */
    DATA_PLANE_NOTIFY_ASKED,    /* defer_call(), which has just been called */
    DATA_PLANE_NOTIFY_DEFERRED, /* the end of a defer_call() section */
    DATA_PLANE_NOTIFY_IN_BH,    /* notify_bh, which is scheduled */
} DataPlaneNotify;

/*
 * Unless stated otherwise, fields are written with the BQL held while the queue
 * is detached from its AioContext, and read in its AioContext.
 */
struct DataPlaneQueue {
    VirtIOBlock *s;
    VirtQueue *vq;
    QEMUBH *attention_bh;       /* the plane's, in the main loop */
    AioContext *ctx;            /* constant only while the queue is started */
    EventNotifier host_notifier;    /* copies of the VirtQueue's */
    EventNotifier guest_notifier;
    QEMUBH *notify_bh;
    QEMUBH *memory_bh;
    QEMUBH *left_bh;            /* see data_plane_queue_leave(); atomic */
    uint16_t index;
    bool quiesced;              /* attach has no effect */

    /*
     * The driver has enabled the queue and @vring is set up.  Writer: BQL
     * held, release; reader: the queue's AioContext, acquire.
     */
    bool active;

    /*
     * A VringError that is not yet reported, or 0.  The queue's AioContext and
     * the main loop set it, the BQL holder clears it; atomic.
     */
    int error;

    /* The rest belongs to the queue's AioContext while it is started. */
    Vring vring;
    bool polling;               /* between poll_begin and poll_end */
    DataPlaneNotify notify;     /* what is going to call notify_guest() */
    unsigned unnotified;        /* published since the driver was notified */

    /*
     * Completed requests that are not yet accounted for: one lock for all.
     * Others read their number and where they were, atomic.
     */
    unsigned acct_num;
    BlockAcctDone acct[DATA_PLANE_PUBLISH];
    uint8_t acct_kind[DATA_PLANE_PUBLISH];      /* DataPlaneKind */
    VirtIOBlockReq *acct_req[DATA_PLANE_PUBLISH];

    /* NULL before the first ring.  BQL held, and not started / any of both */
    DataPlanePool *pool;

    BlkDirect direct;           /* requests past the block layer's coroutines */

    DataPlaneBounce bounce;     /* requests whose buffers are not in RAM */

    DataPlaneStats stats;
};

/**
 * data_plane_queue_init: prepare a queue of a device that is being realized
 * @attention_bh: runs in the main loop; scheduled when @error is set, and when
 *                a queue that has no ring yet is kicked
 *
 * Pair: data_plane_queue_cleanup()
 *
 * Context: BQL held
 */
void data_plane_queue_init(DataPlaneQueue *q, VirtIOBlock *s, unsigned index,
                           QEMUBH *attention_bh);

/**
 * data_plane_queue_cleanup: the pair of data_plane_queue_init()
 * @q: torn down, with no request left
 *
 * Context: BQL held
 */
void data_plane_queue_cleanup(DataPlaneQueue *q);

/**
 * data_plane_queue_setup: take the ring over if the driver enabled the queue
 *
 * Returns: true if the ring can be served, or if the queue is not enabled; else
 *          false with @errp set.  If QEMU's own path cannot serve it either the
 *          device is marked broken, and the caller must call virtio_error().
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
 * data_plane_queue_attach: start handling the queue, and kick it
 * Pair: data_plane_queue_detach()
 *
 * Context: BQL held
 */
void data_plane_queue_attach(DataPlaneQueue *q);

/**
 * data_plane_queue_detach: stop handling the queue
 *
 * Does not wait for a handler that is running.
 *
 * Pair: data_plane_queue_attach()
 *
 * Context: BQL held
 */
void data_plane_queue_detach(DataPlaneQueue *q);

/**
 * data_plane_queue_quiesce: detach, and wait for a handler that is running
 *
 * Clears a pending kick: the next attach kicks anyway.  Attach has no effect
 * until data_plane_queue_resume(), so that the end of a drained section does
 * not undo this.
 *
 * Pair: data_plane_queue_resume()
 *
 * Context: BQL held, bound
 */
void data_plane_queue_quiesce(DataPlaneQueue *q);

/**
 * data_plane_queue_resume: allow the queue to be attached
 *
 * Does not attach it.  A new queue is quiesced, too.
 *
 * Pair: data_plane_queue_quiesce()
 *
 * Context: BQL held
 */
void data_plane_queue_resume(DataPlaneQueue *q);

/**
 * data_plane_queue_leave: quiesce the queue, to bind it to another AioContext
 * @left_bh: scheduled each time that requests have completed, until the queue
 *           is unbound: look then whether data_plane_queue_has_left()
 *
 * Does not wait for the requests: they complete where they are.
 *
 * Pair: data_plane_queue_stay(), or unbind, bind and resume
 *
 * Context: BQL held, bound
 */
void data_plane_queue_leave(DataPlaneQueue *q, QEMUBH *left_bh);

/**
 * data_plane_queue_stay: take data_plane_queue_leave() back, but do not attach
 *
 * Context: BQL held
 */
void data_plane_queue_stay(DataPlaneQueue *q);

/**
 * data_plane_queue_has_left: has the AioContext no request of the queue?
 *
 * Those that the error policy has parked, or whose buffers are not yet mapped,
 * are in no AioContext.
 *
 * Context: BQL held, after data_plane_queue_leave()
 */
bool data_plane_queue_has_left(DataPlaneQueue *q);

/**
 * data_plane_queue_unbind: publish all completions, delete the bottom halves
 *
 * Puts requests that wait for the main loop to access their memory back into
 * the ring, or parks them.
 *
 * Pair: data_plane_queue_bind()
 *
 * Context: BQL held, quiesced, and drained or having left
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
 * data_plane_queue_give_up: drop a request without returning it to the driver
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

/**
 * data_plane_queue_ring_state: where the queue is in its ring
 * @state: see VirtioDeviceClass.query_ring_state
 *
 * Returns: false if the queue has no ring, so that QEMU's VirtQueue knows
 *
 * Context: BQL held; does not wait
 */
bool data_plane_queue_ring_state(DataPlaneQueue *q, VirtQueueRingState *state);

/**
 * data_plane_queue_latency: how long the requests of a queue took
 * @n: number of a bucket, less than DATA_PLANE_BUCKETS
 *
 * From when a request was taken from the ring, or tried again, or since its
 * buffers outside of RAM were mapped, until it was about to be shown to the
 * driver.
 *
 * Returns: how many of @kind have ended in bucket @n
 *
 * Context: any thread
 */
uint64_t data_plane_queue_latency(const DataPlaneQueue *q, DataPlaneKind kind,
                                  unsigned n);

#endif /* HW_BLOCK_DATAPLANE_VIRTIO_BLK_QUEUE_H */
