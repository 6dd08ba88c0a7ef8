/*
 * Stand-in for QEMU's qemu/bswap.h in the standalone build of the ring
 *
 * Knows how to swap bytes.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef VRING_SHIM_QEMU_BSWAP_H
#define VRING_SHIM_QEMU_BSWAP_H

static inline uint16_t bswap16(uint16_t value)
{
    return __builtin_bswap16(value);
}

static inline uint32_t bswap32(uint32_t value)
{
    return __builtin_bswap32(value);
}

static inline uint64_t bswap64(uint64_t value)
{
    return __builtin_bswap64(value);
}

#endif /* VRING_SHIM_QEMU_BSWAP_H */
