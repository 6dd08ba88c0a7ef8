/*
 * Trace events of each request of a virtio-blk data plane
 *
 * Shared by the files of hw/block/dataplane; not for the device.
 *
 * A begin of a request is followed by one end, and not by another begin before
 * that, so that whoever has queue and head of both knows how long it took:
 *
 *   begins                             ends
 *   ---------------------------------  ---------------------------------------
 *   it is about to be parsed           it completes, with its status
 *                                      it is parked, by the error policy or by
 *                                      a stop: without a status; it begins
 *                                      again when it is parsed again
 *                                      it is dropped, as the device is broken:
 *                                      without a status
 *
 * What a reset, an unplug or a migration finds in flight completes first, and
 * what is parked has ended.  While no event is wanted the end costs a request a
 * load, a test and a branch, and the begin costs a batch as much.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_BLOCK_DATAPLANE_VIRTIO_BLK_TRACE_H
#define HW_BLOCK_DATAPLANE_VIRTIO_BLK_TRACE_H

#include "hw/virtio/virtio-blk.h"
#include "trace.h"

/* The driver is not told of the request now */
#define DATA_PLANE_NO_STATUS (-1)

/* What data_plane_trace_begins() and data_plane_trace_end() call if wanted */
void data_plane_trace_begins_now(VirtIOBlockReq *const *reqs, unsigned n);
void data_plane_trace_end_now(const VirtIOBlockReq *req, int status);

/**
 * data_plane_trace_begins: @n requests are about to be parsed
 *
 * Context: the owner of the requests
 */
static inline void data_plane_trace_begins(VirtIOBlockReq *const *reqs,
                                           unsigned n)
{
    if (trace_event_get_state_backends(
            TRACE_VIRTIO_BLK_DATA_PLANE_REQUEST_BEGIN)) {
        data_plane_trace_begins_now(reqs, n);
    }
}

/**
 * data_plane_trace_end: a request that has begun has ended
 * @status: what the driver is told, or DATA_PLANE_NO_STATUS
 *
 * Context: the owner of the request
 */
static inline void data_plane_trace_end(const VirtIOBlockReq *req, int status)
{
    if (trace_event_get_state_backends(
            TRACE_VIRTIO_BLK_DATA_PLANE_REQUEST_END)) {
        data_plane_trace_end_now(req, status);
    }
}

#endif /* HW_BLOCK_DATAPLANE_VIRTIO_BLK_TRACE_H */
