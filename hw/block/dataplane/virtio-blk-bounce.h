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
     * The stalled request is mapped, or cannot be: -EFAULT
     * Context: BQL held
     */
    void (*mapped)(DataPlaneBounce *b, int ret);
    /*
     * A completed request is unmapped, and now the queue's again
     * Context: the queue's AioContext
     */
    void (*unmapped)(DataPlaneBounce *b, VirtIOBlockReq *req,
                     unsigned char status);
} DataPlaneBounceOps;

/* Of the request that was popped last, if it waits to be mapped */
typedef enum DataPlaneStall {
    DATA_PLANE_STALL_NONE,
    DATA_PLANE_STALL_WAITING,   /* the main loop is going to map it */
    DATA_PLANE_STALL_MAPPED,    /* the queue is going to handle it */
} DataPlaneStall;

/* Part of a queue */
struct DataPlaneBounce {
    const DataPlaneBounceOps *ops;
    VirtIODevice *vdev;
    unsigned index;             /* of the queue */

    /*
     * Writers: the queue's AioContext, and the main loop from WAITING to
     * MAPPED, with release; readers: acquire.
     */
    DataPlaneStall stall;
    VirtIOBlockReq *stalled;    /* belongs to whom @stall says */
    VringVectors *stalled_vecs;

    QemuMutex lock;             /* of the two lists */
    DataPlaneBouncedList completed; /* to be unmapped */
    DataPlaneBouncedList unmapped;

    QEMUBH *bh;                 /* in the main loop, while started */
    QEMUTimer *retry_timer;     /* likewise: schedules @bh */
    QEMUBH *unmapped_bh;        /* in the queue's AioContext, while started */
    DataPlaneAccess *access;    /* BQL held: what @bh is at, or NULL */
};

/**
 * data_plane_bounce_init: prepare for a device that is being realized
 * Pair: data_plane_bounce_cleanup()
 *
 * Context: BQL held
 */
void data_plane_bounce_init(DataPlaneBounce *b, const DataPlaneBounceOps *ops,
                            VirtIODevice *vdev, unsigned index);
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
 * data_plane_bounce_stop: let the main loop access memory no more
 *
 * May be called within such an access, when it makes the guest's device stop.
 *
 * To be followed by data_plane_bounce_finish(), and by data_plane_bounce_take()
 * and data_plane_bounce_cancel() until they return NULL.
 *
 * Context: BQL held, drained
 */
void data_plane_bounce_stop(DataPlaneBounce *b);

/**
 * data_plane_bounce_finish: hand over what is unmapped; delete the bottom half
 *
 * Context: the queue's AioContext, stopped
 */
void data_plane_bounce_finish(DataPlaneBounce *b);

/**
 * data_plane_bounce_map: have a request mapped that was popped unmapped
 * @req: popped last; @ops->mapped() is called when it is mapped
 * @vecs: what it was popped with
 *
 * Context: the queue's AioContext, not stalled
 */
void data_plane_bounce_map(DataPlaneBounce *b, VirtIOBlockReq *req,
                           VringVectors *vecs);

/**
 * data_plane_bounce_stall: may the queue go on?
 *
 * One load per look at the ring.
 *
 * Context: any thread
 */
static inline DataPlaneStall data_plane_bounce_stall(DataPlaneBounce *b)
{
    return qatomic_load_acquire(&b->stall);
}

/**
 * data_plane_bounce_take: the request that was stalled, if any
 *
 * Context: the queue's AioContext, not WAITING; or stopped
 */
VirtIOBlockReq *data_plane_bounce_take(DataPlaneBounce *b);

/**
 * data_plane_bounce_unmap: have a completed request unmapped
 * @req: kept although its owner is going to free it, until
 *       @ops->unmapped() has been called
 * @vecs: what it was popped with, or NULL if others have mapped it
 *
 * Context: the queue's AioContext
 */
void data_plane_bounce_unmap(DataPlaneBounce *b, VirtIOBlockReq *req,
                             VringVectors *vecs, unsigned char status);

/**
 * data_plane_bounce_cancel: a completed request that is still mapped, or NULL
 *
 * Context: BQL held, stopped
 */
VirtIOBlockReq *data_plane_bounce_cancel(DataPlaneBounce *b);

#endif /* HW_BLOCK_DATAPLANE_VIRTIO_BLK_BOUNCE_H */
