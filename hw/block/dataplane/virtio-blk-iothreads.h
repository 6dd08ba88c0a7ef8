/*
 * Which IOThread serves which queue of a virtio-blk data plane
 *
 * Shared by the files of hw/block/dataplane; not for the device.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_BLOCK_DATAPLANE_VIRTIO_BLK_IOTHREADS_H
#define HW_BLOCK_DATAPLANE_VIRTIO_BLK_IOTHREADS_H

#include "hw/virtio/virtio-blk.h"
#include "system/iothread.h"

typedef struct DataPlaneIOThreads DataPlaneIOThreads;

/**
 * data_plane_iothreads_new: for a device that is being realized
 * @s: has its properties; vq_aio_context need not be set yet
 *
 * Pair: data_plane_iothreads_free()
 *
 * Context: BQL held
 */
DataPlaneIOThreads *data_plane_iothreads_new(VirtIOBlock *s);

/**
 * data_plane_iothreads_free: the pair of data_plane_iothreads_new()
 * @t: with no move planned
 *
 * Context: BQL held
 */
void data_plane_iothreads_free(DataPlaneIOThreads *t);

/**
 * data_plane_iothreads_id: the IOThread that serves a queue
 * @n: index of the queue
 *
 * Returns: the id that it had when the device took it; another IOThread may
 *          have it by now
 *
 * Context: BQL held
 */
const char *data_plane_iothreads_id(DataPlaneIOThreads *t, unsigned n);

/**
 * data_plane_iothreads_next_id: the IOThread that is going to serve a queue
 * @n: index of the queue
 *
 * Returns: its id, as above, or NULL if no move is planned
 *
 * Context: BQL held
 */
const char *data_plane_iothreads_next_id(DataPlaneIOThreads *t, unsigned n);

/**
 * data_plane_iothreads_plan: let the next move bring a queue to an IOThread
 * @n: index of the queue
 * @iothread: keeps a reference.  The one that serves the queue: no move is
 *            planned any more
 *
 * May run the main loop.
 *
 * Returns: false with @errp set if the IOThread cannot serve the device; a move
 *          that was planned before still is
 *
 * Pair: data_plane_iothreads_move()
 *
 * Context: BQL held
 */
bool data_plane_iothreads_plan(DataPlaneIOThreads *t, unsigned n,
                               IOThread *iothread, Error **errp);

/**
 * data_plane_iothreads_move: carry out what was planned, if anything
 * @n: index of the queue, which is bound to no AioContext
 *
 * Changes VirtIOBlock.vq_aio_context.  If data_plane_iothreads_is_left() then,
 * the caller drains and moves the backend, and then tidies.
 *
 * Context: BQL held
 */
void data_plane_iothreads_move(DataPlaneIOThreads *t, unsigned n);

/**
 * data_plane_iothreads_is_left: has an IOThread lost its last queue?
 *
 * Context: BQL held
 */
bool data_plane_iothreads_is_left(DataPlaneIOThreads *t);

/**
 * data_plane_iothreads_tidy: drop references to IOThreads that were left
 *
 * Those that serve a queue, or have the backend, stay until the next time.
 *
 * Context: BQL held
 */
void data_plane_iothreads_tidy(DataPlaneIOThreads *t);

/**
 * data_plane_iothreads_uses: does a queue run in this AioContext?
 *
 * Context: BQL held
 */
bool data_plane_iothreads_uses(DataPlaneIOThreads *t, const AioContext *ctx);

#endif /* HW_BLOCK_DATAPLANE_VIRTIO_BLK_IOTHREADS_H */
