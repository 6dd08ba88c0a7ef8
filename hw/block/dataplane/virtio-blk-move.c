/*
 * Moving a queue of a virtio-blk data plane to another IOThread, for users
 *
 * Answers x-virtio-blk-set-queue-iothread.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-virtio.h"
#include "qemu/main-loop.h"
#include "virtio-blk.h"

void qmp_x_virtio_blk_set_queue_iothread(const char *path, uint16_t queue,
                                         const char *iothread, Error **errp)
{
    VirtIOBlock *s = virtio_blk_data_plane_find(path, errp);
    IOThread *target;

    GLOBAL_STATE_CODE();
    if (!s || !virtio_blk_data_plane_has_queue(s->dataplane, queue, errp)) {
        return;
    }
    /* An empty path is that of any IOThread. */
    target = *iothread ? iothread_by_id(iothread) : NULL;
    if (!target) {
        error_setg(errp, "There is no IOThread '%s': create it with "
                   "object-add, or see query-iothreads for those that exist",
                   iothread);
        return;
    }
    virtio_blk_data_plane_move_queue(s->dataplane, queue, target, errp);
}
