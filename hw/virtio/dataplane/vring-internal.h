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
    struct iovec *iov;          /* those of @buf */
    hwaddr *addr;
    unsigned capacity;
    unsigned num;               /* vectors */
    unsigned out_num;           /* device-readable ones among them */
    bool pinned;                /* each vector has its own reference */
    uint64_t bytes;
} VringChain;

/**
 * vring_chain_begin: start with an empty chain
 * @buf: initialised, not in use
 */
static inline void vring_chain_begin(VringChain *chain, VringBuffer *buf)
{
    chain->buf = buf;
    chain->iov = buf->iov;
    chain->addr = buf->addr;
    chain->capacity = buf->capacity;
    chain->num = 0;
    chain->out_num = 0;
    chain->pinned = false;
    chain->bytes = 0;
}

/**
 * vring_chain_grow: make room for one more vector
 *
 * Returns: 0 or a negative VringError
 */
int vring_chain_grow(VringChain *chain);

/**
 * vring_chain_add_slow: vring_chain_add() for what one region of the table
 *                       cannot serve
 */
int vring_chain_add_slow(Vring *vring, VringChain *chain, hwaddr addr,
                         uint32_t len, bool is_write);

static inline int vring_chain_append(VringChain *chain, void *host,
                                     hwaddr addr, uint64_t len, bool is_write)
{
    unsigned n = chain->num;

    if (unlikely(n == chain->capacity)) {
        int ret = vring_chain_grow(chain);

        if (ret < 0) {
            return ret;
        }
    }
    chain->iov[n].iov_base = host;
    chain->iov[n].iov_len = len;
    chain->addr[n] = addr;
    chain->num = n + 1;
    chain->out_num += !is_write;
    return 0;
}

/**
 * vring_chain_add: map one descriptor's memory and append it to the chain
 * @addr: guest address
 * @len: bytes; 0 adds nothing
 * @is_write: true if the memory is device-writable
 *
 * Inline, since this is most of what popping a request takes.
 *
 * Returns: 0 or a negative VringError
 */
static inline int vring_chain_add(Vring *vring, VringChain *chain, hwaddr addr,
                                  uint32_t len, bool is_write)
{
    void *host;

    if (unlikely(!len)) {
        return 0;
    }
    /* Device-readable buffers come first (VIRTIO 1.3, 2.7.4.2) */
    if (unlikely(!is_write && chain->num != chain->out_num)) {
        return -VRING_ERR_ORDER;
    }
    /* No more than 2^32 bytes (2.7.5.2); the used length has 32 bits */
    chain->bytes += len;
    if (unlikely(chain->bytes > UINT32_MAX)) {
        return -VRING_ERR_LENGTH;
    }
    host = vring_table_translate(vring->hold->table, addr, len,
                                 &vring->region_hint);
    if (unlikely(!host || chain->pinned)) {
        return vring_chain_add_slow(vring, chain, addr, len, is_write);
    }
    return vring_chain_append(chain, host, addr, len, is_write);
}

/**
 * vring_chain_undo: unmap a chain that turned out to be bad
 */
void vring_chain_undo(Vring *vring, VringChain *chain);

/**
 * vring_chain_finish: turn a chain into an element
 */
static inline void vring_chain_finish(Vring *vring, VringChain *chain,
                                      VirtQueueElement *elem, unsigned head)
{
    VringBuffer *buf = chain->buf;

    elem->index = head;
    elem->len = 0;
    elem->ndescs = 1;
    elem->in_order_filled = false;
    elem->out_num = chain->out_num;
    elem->in_num = chain->num - chain->out_num;
    elem->out_addr = chain->addr;
    elem->out_sg = chain->iov;
    elem->in_addr = chain->addr + chain->out_num;
    elem->in_sg = chain->iov + chain->out_num;

    if (unlikely(chain->pinned)) {
        buf->hold = NULL;
    } else {
        buf->hold = vring->hold;
        buf->hold->inflight++;
    }
}

/**
 * vring_used_is_logged: does anybody want to know of writes to the used ring?
 */
static inline bool vring_used_is_logged(const Vring *vring)
{
    return vring_region_is_logged(vring->used_region);
}

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
