/*
 * Stand-in for QEMU's qemu/host-utils.h in the standalone build of the ring
 *
 * Knows arithmetic.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef VRING_SHIM_QEMU_HOST_UTILS_H
#define VRING_SHIM_QEMU_HOST_UTILS_H

static inline bool is_power_of_2(uint64_t value)
{
    return value && !(value & (value - 1));
}

#endif /* VRING_SHIM_QEMU_HOST_UTILS_H */
