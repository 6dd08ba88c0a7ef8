/*
 * Trace events of each request of a virtio-blk data plane
 *
 * Knows what they say of a request.  When they are due, and that each request
 * that begins ends once, is told in virtio-blk-trace.h.  Nothing here runs
 * unless somebody traces.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/iov.h"
#include "hw/virtio/virtio-access.h"
#include "virtio-blk-trace.h"

/* What a request asks for, before anybody has checked whether that can be */
typedef struct Wanted {
    uint32_t type;
    uint64_t sector;
    uint64_t bytes;
} Wanted;

static bool type_has_segment(uint32_t type)
{
    type &= ~VIRTIO_BLK_T_BARRIER;
    return type == VIRTIO_BLK_T_DISCARD || type == VIRTIO_BLK_T_WRITE_ZEROES ||
           type == VIRTIO_BLK_T_SECURE_ERASE;
}

/* Of a request that has its range in the data, if that is all there */
static void read_segment(const VirtIOBlockReq *req, Wanted *wanted)
{
    const VirtQueueElement *elem = &req->elem;
    VirtIODevice *vdev = &req->dev->parent_obj;
    struct virtio_blk_discard_write_zeroes segment = {};

    if (iov_size(elem->out_sg, elem->out_num) <
        sizeof(req->out) + sizeof(segment)) {
        return;
    }
    iov_to_buf(elem->out_sg, elem->out_num, sizeof(req->out), &segment,
               sizeof(segment));
    wanted->sector = virtio_ldq_p(vdev, &segment.sector);
    wanted->bytes = (uint64_t)virtio_ldl_p(vdev, &segment.num_sectors) <<
                    BDRV_SECTOR_BITS;
}

/* Of data in any direction: all but the header and the status byte */
static uint64_t data_bytes(const VirtQueueElement *elem)
{
    size_t bytes = iov_size(elem->out_sg, elem->out_num) +
                   iov_size(elem->in_sg, elem->in_num);

    return bytes - MIN(bytes, sizeof(struct virtio_blk_outhdr) +
                              sizeof(struct virtio_blk_inhdr));
}

/*
 * The parser reads the header once more: a driver that changes it in between
 * is traced with what it had written before.
 */
static void read_request(const VirtIOBlockReq *req, Wanted *wanted)
{
    const VirtQueueElement *elem = &req->elem;
    VirtIODevice *vdev = &req->dev->parent_obj;
    struct virtio_blk_outhdr header = {};

    iov_to_buf(elem->out_sg, elem->out_num, 0, &header, sizeof(header));
    wanted->type = virtio_ldl_p(vdev, &header.type);
    wanted->sector = virtio_ldq_p(vdev, &header.sector);
    wanted->bytes = data_bytes(elem);
    if (type_has_segment(wanted->type)) {
        read_segment(req, wanted);
    }
}

static void trace_begin(const VirtIOBlockReq *req)
{
    Wanted wanted;

    read_request(req, &wanted);
    trace_virtio_blk_data_plane_request_begin(req->dev->dataplane_id,
                                              virtio_get_queue_index(req->vq),
                                              req->elem.index, wanted.type,
                                              wanted.sector, wanted.bytes);
}

void data_plane_trace_begins_now(VirtIOBlockReq *const *reqs, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        trace_begin(reqs[i]);
    }
}

void data_plane_trace_end_now(const VirtIOBlockReq *req, int status)
{
    trace_virtio_blk_data_plane_request_end(req->dev->dataplane_id,
                                            virtio_get_queue_index(req->vq),
                                            req->elem.index, status);
}
