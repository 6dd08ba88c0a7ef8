/*
 * QMP commands of virtio-blk for a machine that cannot have such a device
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-virtio.h"

VirtioBlkRequests *
qmp_x_query_virtio_blk_requests(const char *path, bool has_queue,
                                uint16_t queue, bool has_min_age_ns,
                                uint64_t min_age_ns, bool has_limit,
                                uint32_t limit, Error **errp)
{
    error_setg(errp, "This QEMU has no virtio-blk devices");
    return NULL;
}
