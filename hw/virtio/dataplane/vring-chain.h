/*
 * Descriptor chains and the memory of elements
 *
 * Shared by the files of the ring; not for devices.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_DATAPLANE_VRING_CHAIN_H
#define HW_VIRTIO_DATAPLANE_VRING_CHAIN_H

#include "qemu/atomic.h"
#include "vring-area.h"

/* Descriptor flags that both formats have (VIRTIO 1.3, 2.7.5 and 2.8.2) */
#define VRING_DESC_NEXT         1
#define VRING_DESC_WRITE        2
#define VRING_DESC_INDIRECT     4

/*
 * The largest Queue Size (2.7, 2.8).  A table cannot need more entries, since
 * a chain is no longer than the queue (2.7.5.3.1, 2.8.19).
 */
#define VRING_MAX_SIZE          32768

/* A descriptor of either format, in the ring or in an indirect table */
typedef struct VringDesc {
    uint64_t addr;
    uint32_t len;
    union {
        struct {
            uint16_t flags;
            uint16_t next;
        };
        struct {
            uint16_t id;
            uint16_t flags;
        } packed;
        uint32_t tail;          /* both fields at once */
    };
} VringDesc;

/* Where descriptors are read: the ring or an indirect table */
typedef struct VringDescTable {
    const uint8_t *host;        /* NULL: see vring_desc_table_read_slow() */
    hwaddr addr;
    unsigned entries;
    bool indirect;
} VringDescTable;

/**
 * vring_desc_copy: read a descriptor once
 *
 * An indirect table need not be aligned, so copy bytes.
 */
static inline VringDesc vring_desc_copy(const void *host)
{
    const uint8_t *bytes = host;
    VringDesc desc;

    memcpy(&desc.addr, bytes + offsetof(VringDesc, addr), sizeof(desc.addr));
    memcpy(&desc.len, bytes + offsetof(VringDesc, len), sizeof(desc.len));
    memcpy(&desc.tail, bytes + offsetof(VringDesc, tail), sizeof(desc.tail));
    /* Do not let the compiler read a field again. */
    barrier();
    return desc;
}

/**
 * vring_desc_at: descriptor @i of the ring
 */
static inline VringDesc *vring_desc_at(const Vring *vring, unsigned i)
{
    return vring_area_at(&vring->desc, i * sizeof(VringDesc));
}

/**
 * vring_desc_table_read_slow: vring_desc_table_read() without table->host
 *
 * Returns: false if it is not in RAM
 */
bool vring_desc_table_read_slow(Vring *vring, const VringDescTable *table,
                                unsigned i, VringDesc *desc);

/**
 * vring_desc_table_read: read entry @i of a table, in the ring's byte order
 *
 * Returns: false if it is not in RAM
 */
static inline bool vring_desc_table_read(Vring *vring,
                                         const VringDescTable *table,
                                         unsigned i, VringDesc *desc)
{
    if (likely(table->host)) {
        *desc = vring_desc_copy(table->host + i * sizeof(VringDesc));
        return true;
    }
    return vring_desc_table_read_slow(vring, table, i, desc);
}

/**
 * vring_desc_table_enter: read descriptors from an indirect table from now on
 * @table: set to the table at @addr
 * @len: its length in bytes, which the driver chose
 *
 * Returns: 0 or a negative VringError
 */
static inline int vring_desc_table_enter(Vring *vring, VringDescTable *table,
                                         hwaddr addr, uint32_t len)
{
    if (unlikely(!len || len % sizeof(VringDesc) ||
                 len / sizeof(VringDesc) > VRING_MAX_SIZE)) {
        return -VRING_ERR_TABLE_LENGTH;
    }
    if (unlikely(len - 1 > UINT64_MAX - addr)) {
        return -VRING_ERR_TABLE_ADDRESS;
    }
    table->host = vring_ram_table_translate(vring->ram_ref->table, addr, len,
                                            &vring->region_hint);
    table->addr = addr;
    table->entries = len / sizeof(VringDesc);
    table->indirect = true;
    return 0;
}

/*
 * A descriptor chain while it is read.  Its vectors are in one array, as the
 * device-readable ones come first.
 */
typedef struct VringChain {
    VringVectors *vecs;
    struct iovec *iov;          /* copies of fields of @vecs */
    hwaddr *addr;
    unsigned capacity;
    unsigned num;               /* vectors */
    unsigned out_num;           /* device-readable ones among them */
    unsigned region;            /* that all are in, or VRING_ANY_REGION */
    bool pinned;                /* not kept alive by the table: see @mapping */
    VringMapping mapping;       /* if @pinned */
    uint64_t bytes;
} VringChain;

/**
 * vring_chain_begin: start with an empty chain
 * @vecs: initialised, not in use
 *
 * Pair: vring_chain_finish() or, after an error, vring_chain_undo()
 */
static inline void vring_chain_begin(VringChain *chain, VringVectors *vecs)
{
    chain->vecs = vecs;
    chain->iov = vecs->iov;
    chain->addr = vring_vectors_addr(vecs);
    chain->capacity = vecs->capacity;
    chain->num = 0;
    chain->out_num = 0;
    chain->region = VRING_ANY_REGION;
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
 * vring_chain_add_slow: vring_chain_add() for memory that is not in one region
 *                       of the table
 */
int vring_chain_add_slow(Vring *vring, VringChain *chain, hwaddr addr,
                         uint32_t len, bool is_write);

/**
 * vring_chain_append: append one vector to the chain
 *
 * Returns: 0 or a negative VringError
 */
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
 * Inline, because this is most of the work of vring_pop().
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
    host = vring_ram_table_translate(vring->ram_ref->table, addr, len,
                                     &vring->region_hint);
    if (unlikely(!host || chain->pinned)) {
        return vring_chain_add_slow(vring, chain, addr, len, is_write);
    }
    if (unlikely(chain->region != vring->region_hint)) {
        chain->region = chain->num ? VRING_ANY_REGION : vring->region_hint;
    }
    return vring_chain_append(chain, host, addr, len, is_write);
}

/**
 * vring_chain_undo: unmap a chain after an error
 *
 * Pair: vring_chain_begin()
 */
void vring_chain_undo(Vring *vring, VringChain *chain);

/**
 * vring_ram_ref_new: let a Vring use a table
 * @table: the caller's reference to it passes to the VringRamRef
 *
 * Pair: vring_ram_ref_free()
 */
VringRamRef *vring_ram_ref_new(VringRamTable *table);

/**
 * vring_ram_ref_free: the pair of vring_ram_ref_new()
 * @ref: no element uses it
 */
void vring_ram_ref_free(VringRamRef *ref);

/**
 * vring_ram_ref_get: let one more element use the Vring's table
 * Pair: vring_ram_ref_put()
 */
static inline VringRamRef *vring_ram_ref_get(Vring *vring)
{
    VringRamRef *ref = vring->ram_ref;

    ref->inflight++;
    return ref;
}

/**
 * vring_ram_ref_put: the pair of vring_ram_ref_get()
 *
 * The last element frees a @ref that the Vring does not use any more.
 */
static inline void vring_ram_ref_put(Vring *vring, VringRamRef *ref)
{
    assert(ref->inflight > 0);
    if (--ref->inflight == 0 && ref != vring->ram_ref) {
        vring_ram_ref_free(ref);
    }
}

/**
 * vring_chain_finish: turn a chain into an element that is in flight
 * @id: tells the driver which element it is
 * @ndescs: slots of the ring that it takes: packed: descriptors; split: one
 *
 * Pair: vring_chain_begin(); vring_element_unmap() gives the memory back
 */
static inline void vring_chain_finish(Vring *vring, VringChain *chain,
                                      VirtQueueElement *elem, unsigned id,
                                      unsigned ndescs)
{
    VringVectors *vecs = chain->vecs;

    elem->index = id;
    elem->len = 0;
    elem->ndescs = ndescs;
    elem->in_order_filled = false;
    elem->out_num = chain->out_num;
    elem->in_num = chain->num - chain->out_num;
    elem->out_addr = chain->addr;
    elem->out_sg = chain->iov;
    elem->in_addr = chain->addr + chain->out_num;
    elem->in_sg = chain->iov + chain->out_num;

    if (unlikely(chain->pinned)) {
        vecs->ram_ref = NULL;
        vecs->mapping = chain->mapping;
    } else {
        vecs->ram_ref = vring_ram_ref_get(vring);
        vecs->region = chain->region;
    }
    vring->inuse += ndescs;
}

/*
 * What most requests of a block device are: three descriptors in an indirect
 * table, in its order, of which the first is device-readable and the last is
 * device-writable.  All of it is in RAM, and each in one region.
 */
#define VRING_ORDINARY_DESCS 3

/**
 * vring_ordinary_add_slow: vring_ordinary_add() for memory in another region
 */
bool vring_ordinary_add_slow(Vring *vring, VringVectors *vecs, unsigned i,
                             hwaddr addr, uint32_t len);

/**
 * vring_ordinary_add: fill in vector @i of an ordinary chain
 * @region: where its memory probably is
 * @desc: a copy of its descriptor
 *
 * A vector need not be taken back if the chain turns out not to be ordinary.
 *
 * Returns: false if it is empty, which means that it is to be left out, or not
 *          in one region
 */
static inline bool vring_ordinary_add(Vring *vring,
                                      const VringRamRegion *region,
                                      VringVectors *vecs, unsigned i,
                                      const VringDesc *desc)
{
    hwaddr offset = desc->addr - region->base;

    /* A length of 0 is too much here, too. */
    if (unlikely(offset >= region->size ||
                 desc->len - 1ull >= region->size - offset)) {
        return vring_ordinary_add_slow(vring, vecs, i, desc->addr, desc->len);
    }
    vecs->inline_iov[i].iov_base = region->host + offset;
    vecs->inline_iov[i].iov_len = desc->len;
    vecs->inline_addr[i] = desc->addr;
    return true;
}

/**
 * vring_ordinary_flags: check the flags of descriptor @i of an ordinary chain
 * @flags: what they are, without WRITE
 * @packed: only WRITE is valid in a table of a packed ring, and all of it is
 *          the chain (VIRTIO 1.3, 2.8.7)
 *
 * Returns: false if it is not ordinary
 */
static inline bool vring_ordinary_flags(const VringDesc *desc, unsigned i,
                                        uint16_t flags, bool packed)
{
    const VringDesc expected = { .flags = flags, .next = i + 1 };
    const VringDesc write = { .flags = VRING_DESC_WRITE };

    if (packed) {
        return true;
    }
    if (!(flags & VRING_DESC_NEXT)) {
        return (desc->flags & ~VRING_DESC_WRITE) == flags;
    }
    return (desc->tail & ~write.tail) == expected.tail;
}

static inline bool vring_ordinary_is_write(const VringDesc *desc, bool packed)
{
    return (packed ? desc->packed.flags : desc->flags) & VRING_DESC_WRITE;
}

/* The inner part of vring_ordinary_read(); @found: where the table is */
static inline bool vring_ordinary_read_in(Vring *vring,
                                          const VringRamRegion *found,
                                          hwaddr table_addr, bool packed,
                                          unsigned id, VirtQueueElement *elem,
                                          VringVectors *vecs)
{
    /* A copy stays in registers, whatever is written meanwhile. */
    const VringRamRegion region = {
        .base = found->base,
        .size = found->size,
        .host = found->host,
    };
    hwaddr offset = table_addr - region.base;
    const uint8_t *table = region.host + offset;
    struct iovec *iov = vecs->inline_iov;
    hwaddr *addr = vecs->inline_addr;
    uint64_t bytes;
    VringDesc desc;
    bool is_read;

    QEMU_BUILD_BUG_ON(VRING_ORDINARY_DESCS > VRING_INLINE_VECTORS);
    if (unlikely(region.size - offset <
                 VRING_ORDINARY_DESCS * sizeof(VringDesc))) {
        return false;
    }
    vecs->region = vring->region_hint;

    desc = vring_desc_copy(table);
    bytes = desc.len;
    if (unlikely(!vring_ordinary_flags(&desc, 0, VRING_DESC_NEXT, packed) ||
                 vring_ordinary_is_write(&desc, packed) ||
                 !vring_ordinary_add(vring, &region, vecs, 0, &desc))) {
        return false;
    }
    desc = vring_desc_copy(table + sizeof(desc));
    bytes += desc.len;
    is_read = vring_ordinary_is_write(&desc, packed);
    if (unlikely(!vring_ordinary_flags(&desc, 1, VRING_DESC_NEXT, packed) ||
                 !vring_ordinary_add(vring, &region, vecs, 1, &desc))) {
        return false;
    }
    desc = vring_desc_copy(table + 2 * sizeof(desc));
    bytes += desc.len;
    if (unlikely(!vring_ordinary_flags(&desc, 2, 0, packed) ||
                 !vring_ordinary_is_write(&desc, packed) ||
                 bytes > UINT32_MAX ||
                 !vring_ordinary_add(vring, &region, vecs, 2, &desc))) {
        return false;
    }

    elem->index = id;
    elem->len = 0;
    elem->ndescs = 1;
    elem->in_order_filled = false;
    elem->out_addr = addr;
    elem->out_sg = iov;
    if (is_read) {
        elem->out_num = 1;
        elem->in_num = 2;
        elem->in_addr = addr + 1;
        elem->in_sg = iov + 1;
    } else {
        elem->out_num = 2;
        elem->in_num = 1;
        elem->in_addr = addr + 2;
        elem->in_sg = iov + 2;
    }
    vecs->ram_ref = vring_ram_ref_get(vring);
    vring->inuse++;
    return true;
}

/**
 * vring_ordinary_read: turn an ordinary chain into an element in flight
 * @table_addr: guest address of its indirect table, in the host's byte order
 * @packed: format of the ring; a constant
 * @id: tells the driver which element it is
 *
 * Does the same as vring_chain_finish(), or else changes nothing.
 *
 * Returns: false if the chain is not ordinary
 */
static inline bool vring_ordinary_read(Vring *vring, hwaddr table_addr,
                                       bool packed, unsigned id,
                                       VirtQueueElement *elem,
                                       VringVectors *vecs)
{
    const VringRamRegion *found = vring_ram_table_find(vring->ram_ref->table,
                                                       table_addr,
                                                       &vring->region_hint);

    return likely(found) && vring_ordinary_read_in(vring, found, table_addr,
                                                   packed, id, elem, vecs);
}

/**
 * vring_element_set_dirty: note that the device wrote to an element's memory
 * @table: the table that the element's vectors point into
 */
void vring_element_set_dirty(Vring *vring, const VirtQueueElement *elem,
                             const VringRamTable *table);

/**
 * vring_element_unmap_slow: vring_element_unmap() without a VringRamRef
 */
void vring_element_unmap_slow(Vring *vring, const VirtQueueElement *elem,
                              VringVectors *vecs);

/**
 * vring_element_unmap: give the memory of a popped element back
 * @vecs: what it was popped with, or NULL if QEMU's virtqueue code mapped it
 *
 * Inline, because every vring_push() calls it.
 *
 * Pair: vring_chain_finish()
 */
static inline void vring_element_unmap(Vring *vring,
                                       const VirtQueueElement *elem,
                                       VringVectors *vecs)
{
    const VringRamTable *table;

    if (unlikely(!vecs || !vecs->ram_ref)) {
        vring_element_unmap_slow(vring, elem, vecs);
        return;
    }
    table = vecs->ram_ref->table;
    /* The request may have written before it failed or was given up. */
    if (unlikely(vecs->region == VRING_ANY_REGION ||
                 qatomic_read(&table->regions[vecs->region].may_log))) {
        vring_element_set_dirty(vring, elem, table);
    }
    vring_ram_ref_put(vring, vecs->ram_ref);
    vecs->ram_ref = NULL;
}

#endif /* HW_VIRTIO_DATAPLANE_VRING_CHAIN_H */
