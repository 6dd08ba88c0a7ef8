/*
 * Stand-in for QEMU's exec/hwaddr.h in the standalone build of the ring
 *
 * Knows what a guest address is.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef VRING_SHIM_EXEC_HWADDR_H
#define VRING_SHIM_EXEC_HWADDR_H

typedef uint64_t hwaddr;

#define HWADDR_PRIx PRIx64

#endif /* VRING_SHIM_EXEC_HWADDR_H */
