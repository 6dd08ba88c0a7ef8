/*
 * Stand-in for QEMU's qapi/error.h in the standalone build of the ring
 *
 * Knows how an error object is made, read and freed.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef VRING_SHIM_QAPI_ERROR_H
#define VRING_SHIM_QAPI_ERROR_H

/* Passing &error_abort makes any error end the program. */
extern Error *error_abort;

void error_setg(Error **errp, const char *fmt, ...) G_GNUC_PRINTF(2, 3);
const char *error_get_pretty(const Error *err);
void error_free(Error *err);

/* Frees the error that a test expects; ends the program if there is none. */
void error_free_or_abort(Error **errp);

#endif /* VRING_SHIM_QAPI_ERROR_H */
