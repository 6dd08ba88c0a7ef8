/*
 * x-virtio-blk-set-queue-iothread of a machine that cannot have such a device
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-virtio.h"

void qmp_x_virtio_blk_set_queue_iothread(const char *path, uint16_t queue,
                                         const char *iothread, Error **errp)
{
    error_setg(errp, "This QEMU has no virtio-blk devices");
}
