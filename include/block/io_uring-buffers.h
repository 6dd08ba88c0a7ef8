/*
 * Fixed buffers of io_uring
 *
 * The kernel looks up, pins and releases the pages of each O_DIRECT request.
 * It does so once for memory that is registered with a ring.  A request whose
 * lane has registered_buf set, and whose memory is registered, then names the
 * buffer instead.
 *
 * Knows AioContexts, their rings, and ranges of memory; not whose memory it is.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_IO_URING_BUFFERS_H
#define BLOCK_IO_URING_BUFFERS_H

#include "block/aio.h"

/**
 * luring_buffers_attach: register all memory with the ring of an AioContext
 *
 * Makes the ring if need be.  Each ring pins the memory, and is charged for it,
 * separately.  May run the main loop.
 *
 * Returns: false with @errp set if the kernel refuses; the error names the
 *          memory, and what to do
 *
 * Pair: luring_buffers_detach()
 *
 * Context: BQL held
 */
bool luring_buffers_attach(AioContext *ctx, Error **errp);

/**
 * luring_buffers_detach: the pair of luring_buffers_attach()
 * @ctx: has no request in flight of those who attached it
 *
 * Context: BQL held
 */
void luring_buffers_detach(AioContext *ctx);

/**
 * luring_buffers_add: register memory with all attached rings
 * @name: for messages
 *
 * Returns: false with @errp set if the kernel refuses; requests there are then
 *          submitted without a fixed buffer
 *
 * Pair: luring_buffers_remove()
 *
 * Context: any thread
 */
bool luring_buffers_add(const char *name, void *host, size_t size,
                        Error **errp);

/**
 * luring_buffers_remove: the pair of luring_buffers_add()
 * @host: as it was added, successfully or not; no request in flight is there
 *
 * The kernel does not touch the memory any more when this returns.  Kernels
 * before 6.4 may give the pages back to the system a second later.
 *
 * Context: any thread
 */
void luring_buffers_remove(void *host);

/**
 * luring_buffers_find: the fixed buffer that contains some memory
 *
 * It remains so as long as the caller keeps the memory.
 *
 * Returns: its index, or -1
 *
 * Context: any thread
 */
int luring_buffers_find(const void *host, size_t size);

#endif /* BLOCK_IO_URING_BUFFERS_H */
