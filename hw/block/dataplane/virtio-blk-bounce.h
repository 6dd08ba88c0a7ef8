/*
 * Requests of a virtio-blk data plane with buffers that are not in RAM
 *
 * Shared by the files of hw/block/dataplane; not for the device.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_BLOCK_DATAPLANE_VIRTIO_BLK_BOUNCE_H
#define HW_BLOCK_DATAPLANE_VIRTIO_BLK_BOUNCE_H

#include "qemu/queue.h"
#include "qemu/thread.h"
#include "hw/virtio/dataplane/vring.h"
#include "hw/virtio/virtio-blk.h"

typedef struct DataPlaneBounce DataPlaneBounce;
typedef struct DataPlaneAccess DataPlaneAccess;
typedef struct DataPlaneBounced DataPlaneBounced;
typedef QSIMPLEQ_HEAD(, DataPlaneBounced) DataPlaneBouncedList;

typedef struct DataPlaneBounceOps {
    /*
     * The stalled request is mapped, or cannot be mapped: -EFAULT
     * Context: BQL held
     */
    void (*mapped)(DataPlaneBounce *b, int ret);
    /*
     * A completed request is unmapped, and belongs to the queue again
     * Context: the queue's AioContext
     */
    void (*unmapped)(DataPlaneBounce *b, VirtIOBlockReq *req,
                     unsigned char status);
} DataPlaneBounceOps;

/* State of the request that was popped last and was not mapped */
typedef enum DataPlaneStall {
    DATA_PLANE_STALL_NONE,
    DATA_PLANE_STALL_WAITING,   /* the main loop is going to map it */
    DATA_PLANE_STALL_MAPPED,    /* the queue is going to handle it */
} DataPlaneStall;

/* Part of a queue */
struct DataPlaneBounce {
    const DataPlaneBounceOps *ops;
    VirtIOBlock *s;
    unsigned index;             /* of the queue */

    /*
     * Writers: the queue's AioContext, and the main loop from WAITING to
     * MAPPED, with release; readers: acquire.
     */
    DataPlaneStall stall;
    VirtIOBlockReq *stalled;    /* @stall tells to which of them it belongs */
    VringVectors *stalled_vecs;

    QemuMutex lock;             /* of the two lists */
    DataPlaneBouncedList completed; /* to be unmapped */
    DataPlaneBouncedList unmapped;

    QEMUBH *bh;                 /* in the main loop, while started */
    QEMUTimer *retry_timer;     /* likewise: schedules @bh */
    QEMUBH *unmapped_bh;        /* in the queue's AioContext, while started */
    DataPlaneAccess *access;    /* BQL held: @bh is making it; or NULL */
};

/**
 * data_plane_bounce_init: prepare for a device that is being realized
 * @index: of the queue
 *
 * Pair: data_plane_bounce_cleanup()
 *
 * Context: BQL held
 */
void data_plane_bounce_init(DataPlaneBounce *b, const DataPlaneBounceOps *ops,
                            VirtIOBlock *s, unsigned index);

/**
 * data_plane_bounce_cleanup: the pair of data_plane_bounce_init()
 * @b: stopped, with no request left
 *
 * Context: BQL held
 */
void data_plane_bounce_cleanup(DataPlaneBounce *b);

/**
 * data_plane_bounce_start: make the bottom halves
 * @ctx: the queue's AioContext
 *
 * Pair: data_plane_bounce_stop()
 *
 * Context: BQL held
 */
void data_plane_bounce_start(DataPlaneBounce *b, AioContext *ctx);

/**
 * data_plane_bounce_stop: make no more accesses in the main loop
 *
 * This may happen during such an access, if that makes the device stop.
 *
 * The caller must then call data_plane_bounce_finish(), and
 * data_plane_bounce_take() and data_plane_bounce_cancel() until they return
 * NULL.
 *
 * Pair: data_plane_bounce_start()
 *
 * Context: BQL held, drained
 */
void data_plane_bounce_stop(DataPlaneBounce *b);

/**
 * data_plane_bounce_finish: return unmapped requests; delete the bottom half
 *
 * Context: the queue's AioContext, stopped
 */
void data_plane_bounce_finish(DataPlaneBounce *b);

/**
 * data_plane_bounce_map: let the main loop map a request
 * @req: popped last, and unmapped; @ops->mapped() is called when it is mapped
 * @vecs: what it was popped with
 *
 * Context: the queue's AioContext, not stalled
 */
void data_plane_bounce_map(DataPlaneBounce *b, VirtIOBlockReq *req,
                           VringVectors *vecs);

/**
 * data_plane_bounce_stall: can the queue go on?
 *
 * This is one load each time that the queue looks at the ring.
 *
 * Context: any thread
 */
static inline DataPlaneStall data_plane_bounce_stall(DataPlaneBounce *b)
{
    return qatomic_load_acquire(&b->stall);
}

/**
 * data_plane_bounce_take: take the stalled request back, and end the stall
 *
 * Returns: the request, or NULL
 *
 * Pair: data_plane_bounce_map()
 *
 * Context: the queue's AioContext, not WAITING; or stopped
 */
VirtIOBlockReq *data_plane_bounce_take(DataPlaneBounce *b);

/**
 * data_plane_bounce_unmap: let the main loop unmap a completed request
 * @req: the caller may free it: it is kept until @ops->unmapped() is called
 * @vecs: what it was popped with, or NULL if QEMU's virtqueue code mapped it
 *
 * Context: the queue's AioContext
 */
void data_plane_bounce_unmap(DataPlaneBounce *b, VirtIOBlockReq *req,
                             VringVectors *vecs, unsigned char status);

/**
 * data_plane_bounce_cancel: take back a completed request that is still mapped
 *
 * Returns: the request, or NULL if there is none left
 *
 * Pair: data_plane_bounce_unmap()
 *
 * Context: BQL held, stopped
 */
VirtIOBlockReq *data_plane_bounce_cancel(DataPlaneBounce *b);

#endif /* HW_BLOCK_DATAPLANE_VIRTIO_BLK_BOUNCE_H */
