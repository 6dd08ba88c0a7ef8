/*
 * The memory of elements
 *
 * Knows how the buffers of a descriptor chain are mapped, kept alive, marked
 * dirty and given back.  Does not know how a ring is laid out (vring-split.c,
 * vring-packed.c).
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "vring-chain.h"

/* The memory that elements point to */

VringRamRef *vring_ram_ref_new(VringRamTable *table)
{
    VringRamRef *ref = g_new(VringRamRef, 1);

    ref->table = table;
    ref->inflight = 0;
    return ref;
}

void vring_ram_ref_free(VringRamRef *ref)
{
    assert(!ref->inflight);
    vring_ram_table_unref(ref->table);
    g_free(ref);
}

/* Buffers */

void vring_vectors_init(VringVectors *vecs)
{
    vecs->ram_ref = NULL;
    vecs->mapping = VRING_MAPPED;
    vecs->capacity = VRING_INLINE_VECTORS;
    vecs->region = VRING_ANY_REGION;
    vecs->iov = vecs->inline_iov;
    QEMU_BUILD_BUG_ON(offsetof(VringVectors, inline_addr) !=
                      offsetof(VringVectors, inline_iov) +
                      sizeof(vecs->inline_iov));
}

void vring_vectors_free(VringVectors *vecs)
{
    g_free(vecs->iov);
    vring_vectors_init(vecs);
}

void vring_set_bounced(const VirtQueueElement *elem, VringVectors *vecs,
                       const struct iovec *iov)
{
    assert(!vring_is_mapped(vecs));
    memcpy(vecs->iov, iov, (elem->out_num + elem->in_num) * sizeof(*iov));
    vecs->mapping = VRING_BOUNCED;
}

/* Chains */

/*
 * Double the size: if each long chain allocated the largest size, the C library
 * would get that memory from the kernel and return it each time.
 */
int vring_chain_grow(VringChain *chain)
{
    VringVectors *vecs = chain->vecs;
    const struct iovec *old_iov = chain->iov;
    const hwaddr *old_addr = chain->addr;
    unsigned capacity = MIN(2 * chain->capacity, VIRTQUEUE_MAX_SIZE);

    if (chain->num == VIRTQUEUE_MAX_SIZE) {
        return -VRING_ERR_TOO_LONG;
    }
    chain->iov = g_malloc_n(capacity, sizeof(*old_iov) + sizeof(*old_addr));
    chain->addr = (hwaddr *)(chain->iov + capacity);
    chain->capacity = capacity;
    memcpy(chain->iov, old_iov, chain->num * sizeof(*old_iov));
    memcpy(chain->addr, old_addr, chain->num * sizeof(*old_addr));
    vring_vectors_release(vecs);
    vecs->iov = chain->iov;
    vecs->capacity = capacity;
    return 0;
}

/* Gives each vector of the chain a reference to its memory */
static void chain_pin(Vring *vring, VringChain *chain)
{
    if (chain->pinned) {
        return;
    }
    for (unsigned i = 0; i < chain->num; i++) {
        vring_memory_pin(vring->mem, chain->iov[i].iov_base);
    }
    chain->pinned = true;
    chain->mapping = VRING_MAPPED;
}

static void chain_unmap(Vring *vring, VringChain *chain)
{
    if (!chain->pinned || chain->mapping == VRING_UNMAPPED) {
        return;
    }
    /* Nothing was written yet, so mark nothing dirty. */
    for (unsigned i = 0; i < chain->num; i++) {
        vring_memory_unmap(vring->mem, chain->iov[i].iov_base,
                           chain->iov[i].iov_len, false);
        chain->iov[i].iov_base = NULL;
    }
    chain->mapping = VRING_UNMAPPED;
}

/*
 * Either the table keeps all of an element's memory alive, or each vector has
 * its own reference, so that the common case need not check each vector.  If
 * part of the element is not even in RAM, all of it stays unmapped, in vectors
 * that dma_memory_map() can map each with one call.
 */
int vring_chain_add_slow(Vring *vring, VringChain *chain, hwaddr addr,
                         uint32_t len, bool is_write)
{
    if (len - 1 > UINT64_MAX - addr) {
        return -VRING_ERR_ADDRESS;
    }
    chain_pin(vring, chain);

    while (len) {
        hwaddr mapped = len;
        void *host = vring_memory_map(vring->mem, addr, &mapped, is_write);
        int ret;

        if (!host) {
            if (!vring->config.bounce) {
                return -VRING_ERR_ADDRESS;
            }
            chain_unmap(vring, chain);
        } else if (chain->mapping == VRING_UNMAPPED) {
            vring_memory_unmap(vring->mem, host, mapped, false);
            host = NULL;
        }
        ret = vring_chain_append(chain, host, addr, mapped, is_write);
        if (ret < 0) {
            if (host) {
                /* Nothing was written yet, so mark nothing dirty. */
                vring_memory_unmap(vring->mem, host, mapped, false);
            }
            return ret;
        }
        len -= mapped;
        addr += mapped;
    }
    return 0;
}

void vring_chain_undo(Vring *vring, VringChain *chain)
{
    chain_unmap(vring, chain);
    vring_vectors_release(chain->vecs);
}

bool vring_ordinary_add_slow(Vring *vring, VringVectors *vecs, unsigned i,
                             hwaddr addr, uint32_t len)
{
    void *host;

    if (!len) {
        return false;
    }
    host = vring_ram_table_translate(vring->ram_ref->table, addr, len,
                                     &vring->region_hint);
    vecs->region = VRING_ANY_REGION;
    vecs->inline_iov[i] = (struct iovec) { host, len };
    vecs->inline_addr[i] = addr;
    return host;
}

/* Indirect tables */

bool vring_desc_table_read_slow(Vring *vring, const VringDescTable *table,
                                unsigned i, VringDesc *desc)
{
    uint8_t bytes[sizeof(*desc)];

    if (!table->indirect) {
        *desc = vring_desc_copy(vring_desc_at(vring, i));
        return true;
    }
    if (!vring_memory_read(vring->mem, table->addr + i * sizeof(bytes), bytes,
                           sizeof(bytes))) {
        return false;
    }
    *desc = vring_desc_copy(bytes);
    return true;
}

/* Giving an element's memory back */

void vring_element_set_dirty(Vring *vring, const VirtQueueElement *elem,
                             const VringRamTable *table)
{
    /* The Vring's hint is for its current table only. */
    unsigned i = 0, hint = 0;

    /* Most elements lie in one region. */
    while (i < elem->in_num) {
        const VringRamRegion *region =
            vring_ram_table_find(table, elem->in_addr[i], &hint);
        bool logged = vring_ram_region_is_logged(region);

        do {
            hwaddr offset = elem->in_addr[i] - region->base;

            if (offset >= region->size) {
                break;
            }
            if (unlikely(logged)) {
                vring_ram_region_set_dirty(region, offset,
                                           elem->in_sg[i].iov_len);
            }
        } while (++i < elem->in_num);
    }
}

/* Writes no copy back: see vring_set_bounced() */
static void element_unmap_bounced(Vring *vring, const VirtQueueElement *elem)
{
    for (unsigned i = 0; i < elem->out_num; i++) {
        vring_memory_unmap(vring->mem, elem->out_sg[i].iov_base,
                           elem->out_sg[i].iov_len, false);
    }
    for (unsigned i = 0; i < elem->in_num; i++) {
        void *host = elem->in_sg[i].iov_base;

        vring_memory_unmap(vring->mem, host, elem->in_sg[i].iov_len,
                           vring_memory_is_ram(vring->mem, host));
    }
}

static void element_unmap_pinned(Vring *vring, const VirtQueueElement *elem)
{
    for (unsigned i = 0; i < elem->out_num; i++) {
        vring_memory_unmap(vring->mem, elem->out_sg[i].iov_base,
                           elem->out_sg[i].iov_len, false);
    }
    for (unsigned i = 0; i < elem->in_num; i++) {
        vring_memory_unmap(vring->mem, elem->in_sg[i].iov_base,
                           elem->in_sg[i].iov_len, true);
    }
}

void vring_element_unmap_slow(Vring *vring, const VirtQueueElement *elem,
                              VringVectors *vecs)
{
    if (!vecs) {
        element_unmap_bounced(vring, elem);
    } else if (vecs->mapping == VRING_MAPPED) {
        element_unmap_pinned(vring, elem);
    } else {
        if (vecs->mapping == VRING_BOUNCED) {
            element_unmap_bounced(vring, elem);
        }
        vecs->mapping = VRING_MAPPED;
    }
}

void vring_pin(Vring *vring, const VirtQueueElement *elem, VringVectors *vecs)
{
    if (!vecs->ram_ref) {
        return;
    }
    for (unsigned i = 0; i < elem->out_num; i++) {
        vring_memory_pin(vring->mem, elem->out_sg[i].iov_base);
    }
    for (unsigned i = 0; i < elem->in_num; i++) {
        vring_memory_pin(vring->mem, elem->in_sg[i].iov_base);
    }
    vring_ram_ref_put(vring, vecs->ram_ref);
    vecs->ram_ref = NULL;
    vecs->mapping = VRING_MAPPED;
}
