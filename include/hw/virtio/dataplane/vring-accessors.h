/*
 * Accessors for the fields of a virtqueue in guest memory
 *
 * Knows byte orders and how a field is read or written exactly once.  Does
 * not know what the fields mean.
 *
 * Each load and store is a single access of the field's size.  If the driver
 * changes the field meanwhile, the device sees the old value or the new one,
 * and uses the same value that it has checked.  The caller orders accesses to
 * different fields (see the barrier tables in vring-split.c and
 * vring-packed.c).
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_DATAPLANE_VRING_ACCESSORS_H
#define HW_VIRTIO_DATAPLANE_VRING_ACCESSORS_H

#include "qemu/atomic.h"
#include "qemu/bswap.h"

/**
 * vring_must_swap: does the ring's byte order differ from the host's?
 * @big_endian: true if the ring is big-endian: possible only with a legacy
 *              driver (VIRTIO 1.3, 2.7.3)
 */
static inline bool vring_must_swap(bool big_endian)
{
    return big_endian != HOST_BIG_ENDIAN;
}

static inline uint16_t vring_to_cpu16(bool swap, uint16_t value)
{
    return swap ? bswap16(value) : value;
}

static inline uint32_t vring_to_cpu32(bool swap, uint32_t value)
{
    return swap ? bswap32(value) : value;
}

static inline uint64_t vring_to_cpu64(bool swap, uint64_t value)
{
    return swap ? bswap64(value) : value;
}

/**
 * vring_load16: read a 16-bit ring field once
 * @swap: result of vring_must_swap()
 * @field: host address of the field, 2-aligned
 */
static inline uint16_t vring_load16(bool swap, const uint16_t *field)
{
    return vring_to_cpu16(swap, qatomic_read(field));
}

/**
 * vring_store16: write a 16-bit ring field once
 * @swap: result of vring_must_swap()
 * @field: host address of the field, 2-aligned
 * @value: what to write, in the host's byte order
 */
static inline void vring_store16(bool swap, uint16_t *field, uint16_t value)
{
    qatomic_set(field, vring_to_cpu16(swap, value));
}

/**
 * vring_store32: write a 32-bit ring field once
 * @swap: result of vring_must_swap()
 * @field: host address of the field, 4-aligned
 * @value: what to write, in the host's byte order
 */
static inline void vring_store32(bool swap, uint32_t *field, uint32_t value)
{
    qatomic_set(field, vring_to_cpu32(swap, value));
}

#endif /* HW_VIRTIO_DATAPLANE_VRING_ACCESSORS_H */
