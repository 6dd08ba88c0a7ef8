/*
 * Fixed buffers of io_uring, where liburing does not have them
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/io_uring-buffers.h"
#include "qapi/error.h"

bool luring_buffers_attach(AioContext *ctx, Error **errp)
{
    error_setg(errp, "QEMU was built without fixed buffers of io_uring; build "
               "it with liburing 2.2 or later");
    return false;
}

void luring_buffers_detach(AioContext *ctx)
{
    g_assert_not_reached();
}

bool luring_buffers_add(const char *name, void *host, size_t size,
                        Error **errp)
{
    return true;
}

void luring_buffers_remove(void *host)
{
}

int luring_buffers_find(const void *host, size_t size)
{
    return -1;
}
