/*
 * Stand-in for QEMU's hw/virtio/virtio.h in the standalone build of the ring
 *
 * Knows the element that the ring hands to devices, with the fields that QEMU
 * 10.0 gives it, and nothing of devices.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef VRING_SHIM_HW_VIRTIO_VIRTIO_H
#define VRING_SHIM_HW_VIRTIO_VIRTIO_H

#include "exec/hwaddr.h"

#define VIRTQUEUE_MAX_SIZE 1024

typedef struct VirtIODevice VirtIODevice;
typedef struct VirtQueueRingState VirtQueueRingState;

typedef struct VirtQueueElement {
    unsigned int index;
    unsigned int len;
    unsigned int ndescs;
    unsigned int out_num;
    unsigned int in_num;
    bool in_order_filled;
    hwaddr *in_addr;
    hwaddr *out_addr;
    struct iovec *in_sg;
    struct iovec *out_sg;
} VirtQueueElement;

#endif /* VRING_SHIM_HW_VIRTIO_VIRTIO_H */
