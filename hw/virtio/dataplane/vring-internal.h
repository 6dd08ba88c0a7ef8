/*
 * What the files of the ring share among themselves
 *
 * Knows the parts of a chain under construction.  Not for devices: their
 * interface is hw/virtio/dataplane/vring.h.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_DATAPLANE_VRING_INTERNAL_H
#define HW_VIRTIO_DATAPLANE_VRING_INTERNAL_H

#include "hw/virtio/dataplane/vring.h"

/*
 * A chain while it is being read.  Device-readable vectors come first, so
 * that one array serves both directions.
 */
typedef struct VringChain {
    VringBuffer *buf;
    uint64_t bytes;
    unsigned out_num;
    unsigned in_num;
    bool pinned;                /* each vector has its own reference */
} VringChain;

/**
 * vring_chain_add: map one descriptor's memory and append it to the chain
 * @chain: started zeroed, with @chain->buf set
 * @addr: guest address
 * @len: bytes; 0 adds nothing
 * @is_write: true if the memory is device-writable
 *
 * Returns: 0 or a negative VringError
 */
int vring_chain_add(Vring *vring, VringChain *chain, hwaddr addr,
                    uint32_t len, bool is_write);

/**
 * vring_chain_undo: unmap a chain that turned out to be bad
 */
void vring_chain_undo(Vring *vring, VringChain *chain);

/**
 * vring_chain_finish: turn a chain into an element
 */
void vring_chain_finish(Vring *vring, VringChain *chain,
                        VirtQueueElement *elem, unsigned head);

/**
 * vring_mark_used_dirty: note that the device wrote to the used ring
 * @field: first byte, within the used ring
 * @len: bytes
 */
void vring_mark_used_dirty(Vring *vring, const void *field, size_t len);

/* The split ring (vring-split.c); contracts are those in vring.h. */
bool vring_split_init(Vring *vring, Error **errp);
bool vring_split_resolve(Vring *vring);
int vring_split_pop(Vring *vring, VirtQueueElement *elem, VringBuffer *buf);
void vring_split_push(Vring *vring, const VirtQueueElement *elem,
                      uint32_t len);
void vring_split_publish(Vring *vring);
bool vring_split_should_notify(Vring *vring);
void vring_split_disable_notification(Vring *vring);
bool vring_split_enable_notification(Vring *vring);
bool vring_split_more_avail(Vring *vring);

#endif /* HW_VIRTIO_DATAPLANE_VRING_INTERNAL_H */
