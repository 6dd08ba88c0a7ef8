/*
 * Stand-in for QEMU's qemu/osdep.h in the standalone build of the ring
 *
 * Knows the C library, GLib, and the few macros that the ring and its tests
 * use.  Has nothing else, so that a new dependency of the ring on QEMU shows
 * as a compile error here.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef VRING_SHIM_QEMU_OSDEP_H
#define VRING_SHIM_QEMU_OSDEP_H

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include <glib.h>

#define HOST_BIG_ENDIAN (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__)

#ifndef likely
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#endif

#define ARRAY_SIZE(x) (sizeof(x) / sizeof((x)[0]))
#define QEMU_BUILD_BUG_ON(x) _Static_assert(!(x), "not expected: " #x)
#define QEMU_IS_ALIGNED(n, m) ((n) % (m) == 0)
#define QEMU_ALIGN_DOWN(n, m) ((n) / (m) * (m))
#define QEMU_ALIGN_UP(n, m) QEMU_ALIGN_DOWN((n) + (m) - 1, (m))

typedef struct AddressSpace AddressSpace;
typedef struct Error Error;
typedef struct MemoryRegion MemoryRegion;

#endif /* VRING_SHIM_QEMU_OSDEP_H */
