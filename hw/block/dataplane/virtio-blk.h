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
#include "system/iothread.h"

typedef struct DataPlaneQueue DataPlaneQueue;

/**
 * virtio_blk_data_plane_create: give a device its data plane, if it wants one
 * @s: being realized; @s->dataplane is set, to NULL if no plane is wanted
 *
 * Creates a private IOThread for x-data-plane=on without an iothread.
 *
 * Returns: false with @errp set if the private IOThread cannot be created
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
 * If notifiers cannot be set up, the plane warns, and requests run in the main
 * loop until the next stop: this is a success, too.  If the device's rings are
 * not in RAM the device becomes broken, and the plane stays stopped: this is a
 * success as well, because no other path could serve the device.
 *
 * Returns: 0, or -ENOTSUP with nothing changed if the driver set up queues of
 *          a kind that the plane does not serve
 *
 * Pair: virtio_blk_data_plane_stop()
 *
 * Context: BQL held
 */
int virtio_blk_data_plane_start(VirtIOBlockDataPlane *dp);

/**
 * virtio_blk_data_plane_stop: the pair of virtio_blk_data_plane_start()
 *
 * Afterwards, even in a drained section, the only requests left are those that
 * the error policy parked, completed requests are visible to the driver, and
 * QEMU's VirtQueues are up to date.
 *
 * Context: BQL held
 */
void virtio_blk_data_plane_stop(VirtIOBlockDataPlane *dp);

/**
 * virtio_blk_data_plane_is_stopped: is no stop needed?
 *
 * Context: BQL held
 */
bool virtio_blk_data_plane_is_stopped(VirtIOBlockDataPlane *dp);

/**
 * virtio_blk_data_plane_is_busy: is a start, a stop or a queue reset under way?
 *
 * The main loop may run meanwhile, but must not restart parked requests.  When
 * it is over VirtIOBlock.drained_end_bh is scheduled.
 *
 * Context: BQL held
 */
bool virtio_blk_data_plane_is_busy(VirtIOBlockDataPlane *dp);

/**
 * virtio_blk_data_plane_handle_output: a kick reached QEMU's own path
 *
 * Returns: false if QEMU's own path must handle the kick
 *
 * Context: BQL held, or the queue's AioContext where the plane was declined and
 *          QEMU's own path serves the queue
 */
bool virtio_blk_data_plane_handle_output(VirtIOBlockDataPlane *dp,
                                         VirtQueue *vq);

/**
 * virtio_blk_data_plane_context: the AioContext where requests of a queue run
 * @n: index of the queue
 *
 * Context: BQL held
 */
AioContext *virtio_blk_data_plane_context(VirtIOBlockDataPlane *dp,
                                          unsigned n);

/**
 * virtio_blk_data_plane_trace_restart: parked requests are about to be parsed
 * @req: the first of a list, by VirtIOBlockReq.next, all of the same queue
 *
 * For trace events alone; says nothing of requests of QEMU's own path.
 *
 * Context: where they are handled
 */
void virtio_blk_data_plane_trace_restart(VirtIOBlockReq *req);

/**
 * virtio_blk_data_plane_trace_park: the error policy has stopped a request
 *
 * For trace events alone; says nothing of requests of QEMU's own path.
 *
 * Pair: virtio_blk_data_plane_trace_restart(), or the request is dropped
 *
 * Context: where it has failed
 */
void virtio_blk_data_plane_trace_park(VirtIOBlockReq *req);

/**
 * virtio_blk_data_plane_queue_reset: the driver resets one queue (2.6.1)
 * @n: index of the queue, which exists
 *
 * Waits for the queue's requests and drops those that are parked.  The other
 * queues pause meanwhile, but lose nothing.
 *
 * Context: BQL held
 */
void virtio_blk_data_plane_queue_reset(VirtIOBlockDataPlane *dp, unsigned n);

/**
 * virtio_blk_data_plane_move_queue: let another IOThread serve a queue
 * @n: index of the queue, which exists
 * @iothread: it may serve the queue already; a move elsewhere that has not
 *            ended is taken back then
 *
 * Does not wait for the queue's requests: the queue goes on in the new IOThread
 * when they have completed in the old one.  The other queues do not pause,
 * unless the IOThread has lost its last queue: this drains the backend, which
 * follows if it was there.  If the plane is stopped the queue moves at once.
 *
 * Returns: false with @errp set, and nothing changed, if this cannot be now
 *
 * Context: BQL held
 */
bool virtio_blk_data_plane_move_queue(VirtIOBlockDataPlane *dp, unsigned n,
                                      IOThread *iothread, Error **errp);

/**
 * virtio_blk_data_plane_drained_begin: take no requests in a drained section
 * Pair: virtio_blk_data_plane_drained_end()
 *
 * Context: BQL held
 */
void virtio_blk_data_plane_drained_begin(VirtIOBlockDataPlane *dp);

/**
 * virtio_blk_data_plane_drained_end: take requests again
 * Pair: virtio_blk_data_plane_drained_begin()
 *
 * Context: BQL held
 */
void virtio_blk_data_plane_drained_end(VirtIOBlockDataPlane *dp);

/**
 * virtio_blk_data_plane_info: state and counters of a device's plane
 * @s: a device, with or without a plane
 *
 * Returns: the caller must call qapi_free_VirtioBlkDataPlaneInfo()
 *
 * Context: BQL held
 */
VirtioBlkDataPlaneInfo *virtio_blk_data_plane_info(VirtIOBlock *s);

/**
 * virtio_blk_data_plane_find: a device whose plane serves it, or is stopped
 * @path: QOM path of the device, or of its proxy
 *
 * Returns: NULL with @errp set if there is none
 *
 * Context: BQL held
 */
VirtIOBlock *virtio_blk_data_plane_find(const char *path, Error **errp);

/**
 * virtio_blk_data_plane_has_queue: does a queue exist?
 *
 * Returns: false with @errp set if it does not
 *
 * Context: BQL held
 */
bool virtio_blk_data_plane_has_queue(VirtIOBlockDataPlane *dp, unsigned n,
                                     Error **errp);

/**
 * virtio_blk_data_plane_queue: one of the plane's queues
 * @n: index of the queue, which exists
 *
 * Context: BQL held
 */
DataPlaneQueue *virtio_blk_data_plane_queue(VirtIOBlockDataPlane *dp,
                                            unsigned n);

/**
 * virtio_blk_data_plane_ring_state: where one of the plane's queues is
 * @n: index of the queue
 * @state: see VirtioDeviceClass.query_ring_state
 *
 * Returns: false if QEMU's VirtQueue knows
 *
 * Context: BQL held; does not wait
 */
bool virtio_blk_data_plane_ring_state(VirtIOBlockDataPlane *dp, unsigned n,
                                      VirtQueueRingState *state);

#endif /* HW_BLOCK_DATAPLANE_VIRTIO_BLK_H */
