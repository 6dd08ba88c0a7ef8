/*
 * What the stand-in headers declare
 *
 * Knows error objects and the variable behind the barriers under
 * ThreadSanitizer (see qemu/atomic.h here).
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qapi/error.h"

struct Error {
    char *msg;
};

Error *error_abort;

#ifdef VRING_SHIM_TSAN
int vring_shim_fence;
#endif

void error_setg(Error **errp, const char *fmt, ...)
{
    va_list ap;
    char *msg;

    va_start(ap, fmt);
    msg = g_strdup_vprintf(fmt, ap);
    va_end(ap);

    if (errp == &error_abort) {
        fprintf(stderr, "unexpected error: %s\n", msg);
        abort();
    }
    if (errp) {
        assert(!*errp);
        *errp = g_new(Error, 1);
        (*errp)->msg = msg;
    } else {
        g_free(msg);
    }
}

const char *error_get_pretty(const Error *err)
{
    return err->msg;
}

void error_free(Error *err)
{
    if (err) {
        g_free(err->msg);
        g_free(err);
    }
}

void error_free_or_abort(Error **errp)
{
    assert(*errp);
    error_free(*errp);
    *errp = NULL;
}
