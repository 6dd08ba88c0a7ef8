/*
 * Requests of a virtio-blk data plane that are in flight, seen from outside
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_BLOCK_DATAPLANE_VIRTIO_BLK_INFLIGHT_H
#define HW_BLOCK_DATAPLANE_VIRTIO_BLK_INFLIGHT_H

#include "hw/virtio/virtio-blk.h"

/**
 * virtio_blk_stall_begin: watch for requests that take too long
 * @s: being realized, after its plane was created
 *
 * Does nothing unless x-stall-timeout is set.  Sends VIRTIO_BLK_STALL when a
 * request gets older than that, and when none is any more.
 *
 * Returns: false with @errp set if the device has no plane
 *
 * Pair: virtio_blk_stall_end()
 *
 * Context: BQL held
 */
bool virtio_blk_stall_begin(VirtIOBlock *s, Error **errp);

/**
 * virtio_blk_stall_end: the pair of virtio_blk_stall_begin()
 * @s: its plane still exists, with no request in flight
 *
 * Context: BQL held
 */
void virtio_blk_stall_end(VirtIOBlock *s);

#endif /* HW_BLOCK_DATAPLANE_VIRTIO_BLK_INFLIGHT_H */
