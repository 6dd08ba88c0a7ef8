/*
 * The data plane of a virtio-blk device: what the device calls
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_BLOCK_DATAPLANE_VIRTIO_BLK_H
#define HW_BLOCK_DATAPLANE_VIRTIO_BLK_H

#include "hw/virtio/virtio-blk.h"
#include "qapi/qapi-types-virtio.h"

/**
 * virtio_blk_data_plane_create: give a device its data plane, if it wants one
 * @s: being realized; @s->dataplane is set, to NULL if no plane is wanted
 *
 * Creates a private IOThread for x-data-plane=on without an iothread.
 *
 * Returns: false with @errp set if the configuration cannot work
 *
 * Pair: virtio_blk_data_plane_destroy()
 *
 * Context: BQL held
 */
bool virtio_blk_data_plane_create(VirtIOBlock *s, Error **errp);

/**
 * virtio_blk_data_plane_destroy: the pair of virtio_blk_data_plane_create()
 * @s: its plane is stopped; @s->dataplane may be NULL
 *
 * Context: BQL held
 */
void virtio_blk_data_plane_destroy(VirtIOBlock *s);

/**
 * virtio_blk_data_plane_start: serve the device's queues from now on
 *
 * If notifiers cannot be set up, requests run in the main loop until the next
 * stop, with a warning: that is a success, too.  A device whose rings are not
 * in RAM is broken, and stays stopped: nothing is left to be done.
 *
 * Returns: 0, or -ENOTSUP with nothing changed if the driver set up queues of
 *          a kind that the plane does not serve
 *
 * Context: BQL held
 */
int virtio_blk_data_plane_start(VirtIOBlockDataPlane *dp);

/**
 * virtio_blk_data_plane_stop: the pair of virtio_blk_data_plane_start()
 *
 * When it returns no request is left but those that the error policy parked,
 * even in somebody else's drained section; the driver has seen all that were
 * completed, and QEMU's VirtQueues are up to date.
 *
 * Context: BQL held
 */
void virtio_blk_data_plane_stop(VirtIOBlockDataPlane *dp);

/**
 * virtio_blk_data_plane_is_stopped: is a stop owed to an earlier start?
 *
 * Context: BQL held
 */
bool virtio_blk_data_plane_is_stopped(VirtIOBlockDataPlane *dp);

/**
 * virtio_blk_data_plane_is_busy: does it start, stop or reset a queue?
 *
 * The main loop may run meanwhile.  Parked requests are not to be restarted
 * then; VirtIOBlock.drained_end_bh is scheduled when it is over.
 *
 * Context: BQL held
 */
bool virtio_blk_data_plane_is_busy(VirtIOBlockDataPlane *dp);

/**
 * virtio_blk_data_plane_handle_output: a kick reached QEMU's own path
 *
 * Returns: false if the kick is for QEMU's own path
 *
 * Context: BQL held, or the queue's AioContext where the plane was declined and
 *          QEMU's own path serves the queue
 */
bool virtio_blk_data_plane_handle_output(VirtIOBlockDataPlane *dp,
                                         VirtQueue *vq);

/**
 * virtio_blk_data_plane_context: where requests of a queue run now
 * @n: index of the queue
 *
 * Context: BQL held
 */
AioContext *virtio_blk_data_plane_context(VirtIOBlockDataPlane *dp,
                                          unsigned n);

/**
 * virtio_blk_data_plane_queue_reset: the driver resets one queue (2.6.1)
 * @n: index of the queue, which is there
 *
 * Requests of the queue are finished or dropped; the other queues pause
 * meanwhile but lose nothing.
 *
 * Context: BQL held
 */
void virtio_blk_data_plane_queue_reset(VirtIOBlockDataPlane *dp, unsigned n);

/**
 * virtio_blk_data_plane_drained_begin: take no more requests for a while
 * Pair: virtio_blk_data_plane_drained_end()
 *
 * Context: BQL held
 */
void virtio_blk_data_plane_drained_begin(VirtIOBlockDataPlane *dp);
void virtio_blk_data_plane_drained_end(VirtIOBlockDataPlane *dp);

/**
 * virtio_blk_data_plane_info: what the plane of a device does and did
 * @s: a device, with or without a plane
 *
 * Returns: to be freed with qapi_free_VirtioBlkDataPlaneInfo()
 *
 * Context: BQL held
 */
VirtioBlkDataPlaneInfo *virtio_blk_data_plane_info(VirtIOBlock *s);

#endif /* HW_BLOCK_DATAPLANE_VIRTIO_BLK_H */
