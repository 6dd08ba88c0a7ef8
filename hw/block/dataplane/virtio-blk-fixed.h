/*
 * Guest memory as fixed buffers of io_uring (x-fixed-buffers=on)
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_BLOCK_DATAPLANE_VIRTIO_BLK_FIXED_H
#define HW_BLOCK_DATAPLANE_VIRTIO_BLK_FIXED_H

#include "hw/virtio/virtio-blk.h"

/**
 * virtio_blk_fixed_buffers_begin: register guest memory for a device
 * @s: being realized, after its queues got their AioContexts
 *
 * Registers all of it with the rings of the device's IOThreads, and follows
 * what is plugged and unplugged.  Does nothing unless x-fixed-buffers=on.  May
 * run the main loop.
 *
 * Returns: false with @errp set if the host or a feature that is in use does
 *          not allow it
 *
 * Pair: virtio_blk_fixed_buffers_end()
 *
 * Context: BQL held
 */
bool virtio_blk_fixed_buffers_begin(VirtIOBlock *s, Error **errp);

/**
 * virtio_blk_fixed_buffers_end: the pair of virtio_blk_fixed_buffers_begin()
 * @s: has no request in flight; its queues still have their AioContexts
 *
 * Context: BQL held
 */
void virtio_blk_fixed_buffers_end(VirtIOBlock *s);

/**
 * virtio_blk_fixed_buffers_enter: register guest memory for a queue that moves
 * @ctx: to where
 *
 * Does nothing unless x-fixed-buffers=on.  May run the main loop.
 *
 * Returns: false with @errp set if the host does not allow it
 *
 * Pair: virtio_blk_fixed_buffers_leave()
 *
 * Context: BQL held
 */
bool virtio_blk_fixed_buffers_enter(VirtIOBlock *s, AioContext *ctx,
                                    Error **errp);

/**
 * virtio_blk_fixed_buffers_leave: the pair of virtio_blk_fixed_buffers_enter()
 * @ctx: from where; no request of the queue is in flight there
 *
 * Context: BQL held
 */
void virtio_blk_fixed_buffers_leave(VirtIOBlock *s, AioContext *ctx);

#endif /* HW_BLOCK_DATAPLANE_VIRTIO_BLK_FIXED_H */
