/*
 * The device side of a packed virtqueue (VIRTIO 1.3, 2.8)
 *
 * Knows the layout and the rules of the packed format.  Does not know how guest
 * memory is mapped (vring-area.c, vring-chain.c).
 *
 * The ring is shared with the driver, which runs concurrently and may be
 * hostile: each field is read once, into a local variable, and only what was
 * checked is used.  The device keeps positions and wrap counters and never
 * reads them back.  The driver chooses a buffer's id; it is returned unchanged
 * and never used as an index.
 *
 * Which barrier pairs with which:
 *
 *   here                                   in the driver
 *   ------------------------------------   ------------------------------------
 *   pop: load flags of the list's first,   store the other descriptors and the
 *        smp_rmb(), load the rest of it    rest of the first, wmb,
 *        and the other descriptors         store flags of the first
 *   publish: store id and len of all,      load flags of the first, rmb,
 *        flags of all but the first,       load its id and len,
 *        smp_wmb(), store flags of the     then those behind it
 *        first
 *   should_notify: store flags of the      store event flags and offset, mb,
 *        first, smp_mb(), load event       load flags of the next used one
 *        flags, smp_rmb(), load offset
 *   enable_notification: store event       store flags of the next available
 *        offset, smp_wmb(), store event    one, mb,
 *        flags, smp_mb(), load flags of    load event flags, rmb, load offset
 *        the next available one
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "hw/virtio/dataplane/vring-accessors.h"
#include "vring-chain.h"
#include "vring-format.h"

/* Descriptor flags (2.8.1); the others are in both formats */
#define PACKED_DESC_AVAIL       (1 << 7)
#define PACKED_DESC_USED        (1 << 15)

/* Event suppression (2.8.10, 2.8.14) */
#define PACKED_EVENT_ENABLE     0
#define PACKED_EVENT_DISABLE    1
#define PACKED_EVENT_DESC       2
#define PACKED_EVENT_MASK       3
#define PACKED_EVENT_WRAP       (1 << 15)

typedef struct VringEvent {
    uint16_t off_wrap;
    uint16_t flags;
} VringEvent;

bool vring_packed_init(Vring *vring, Error **errp)
{
    const VringConfig *config = &vring->config;

    if (!config->num || config->num > VRING_MAX_SIZE) {
        error_setg(errp, "queue size %u is not from 1 to %d",
                   config->num, VRING_MAX_SIZE);
        return false;
    }
    /* 2.8.10.1; an unaligned 16-bit access is not a single one everywhere */
    if (config->desc % 16 || config->avail % 4 || config->used % 4) {
        error_setg(errp, "the virtqueue's areas are not aligned");
        return false;
    }
    vring->avail.size = sizeof(VringEvent);
    vring->used.size = sizeof(VringEvent);
    vring->swap = vring_must_swap(false);
    vring->avail_wrap = true;
    vring->used_wrap = true;
    return true;
}

/* Advances a position by @slots, at most the size of the ring */
static void packed_advance(const Vring *vring, uint16_t *pos, bool *wrap,
                           unsigned slots)
{
    unsigned next = *pos + slots;

    if (next >= vring->config.num) {
        next -= vring->config.num;
        *wrap = !*wrap;
    }
    *pos = next;
}

/* Taking buffers */

static uint16_t packed_load_flags(Vring *vring, unsigned pos)
{
    return vring_load16(vring->swap, &vring_desc_at(vring, pos)->packed.flags);
}

/* AVAIL equals the wrap counter and USED does not (2.8.1) */
static bool packed_is_avail(uint16_t flags, bool wrap)
{
    return !!(flags & PACKED_DESC_AVAIL) == wrap &&
           !!(flags & PACKED_DESC_USED) != wrap;
}

bool vring_packed_more_avail(Vring *vring)
{
    return packed_is_avail(packed_load_flags(vring, vring->last_avail_idx),
                           vring->avail_wrap);
}

static void packed_swap_desc(const Vring *vring, VringDesc *desc)
{
    desc->addr = vring_to_cpu64(vring->swap, desc->addr);
    desc->len = vring_to_cpu32(vring->swap, desc->len);
    desc->packed.id = vring_to_cpu16(vring->swap, desc->packed.id);
    desc->packed.flags = vring_to_cpu16(vring->swap, desc->packed.flags);
}

/* All but the flags, which were already read and must not be read again */
static void packed_load_desc(const Vring *vring, unsigned pos,
                             VringDesc *desc)
{
    const VringDesc *ring = vring_desc_at(vring, pos);

    desc->addr = vring_to_cpu64(vring->swap, ring->addr);
    desc->len = vring_to_cpu32(vring->swap, ring->len);
    desc->packed.id = vring_to_cpu16(vring->swap, ring->packed.id);
    /* Do not let the compiler read a field again. */
    barrier();
}

/*
 * All entries of an indirect table belong to the buffer, and only WRITE is
 * valid among their flags (2.8.7, 2.8.19).
 */
static int packed_read_desc_table(Vring *vring, hwaddr addr, uint32_t len,
                                  VringChain *chain)
{
    VringDescTable table;
    int ret;

    if (!vring->config.indirect) {
        return -VRING_ERR_INDIRECT_FEATURE;
    }
    ret = vring_desc_table_enter(vring, &table, addr, len);
    for (unsigned i = 0; ret == 0 && i < table.entries; i++) {
        VringDesc desc;

        if (unlikely(!vring_desc_table_read(vring, &table, i, &desc))) {
            return -VRING_ERR_TABLE_ADDRESS;
        }
        packed_swap_desc(vring, &desc);
        ret = vring_chain_add(vring, chain, desc.addr, desc.len,
                              desc.packed.flags & VRING_DESC_WRITE);
    }
    return ret;
}

/*
 * Reads the list at the next position, whose first descriptor has @flags and is
 * available.
 *
 * Returns: the number of descriptors, with @id set, or a negative VringError
 */
static int packed_read_list(Vring *vring, uint16_t flags, VringChain *chain,
                            uint16_t *id)
{
    unsigned num = vring->config.num;
    uint16_t pos = vring->last_avail_idx;
    bool wrap = vring->avail_wrap;
    int ret;

    for (unsigned n = 1; ; n++) {
        VringDesc desc;

        if (unlikely(n + vring->inuse > num)) {
            return n > num ? -VRING_ERR_LOOP : -VRING_ERR_QUEUE_FULL;
        }
        packed_load_desc(vring, pos, &desc);
        if (!(flags & VRING_DESC_INDIRECT)) {
            ret = vring_chain_add(vring, chain, desc.addr, desc.len,
                                  flags & VRING_DESC_WRITE);
        } else if (likely(n == 1 && !(flags & VRING_DESC_NEXT))) {
            ret = packed_read_desc_table(vring, desc.addr, desc.len, chain);
        } else {
            ret = -VRING_ERR_INDIRECT_NEXT;
        }
        if (unlikely(ret < 0)) {
            return ret;
        }
        if (!(flags & VRING_DESC_NEXT)) {
            *id = desc.packed.id;
            return n;
        }
        /* The driver makes the first available last (2.8.17) */
        packed_advance(vring, &pos, &wrap, 1);
        flags = packed_load_flags(vring, pos);
        if (unlikely(!packed_is_avail(flags, wrap))) {
            return n == num ? -VRING_ERR_LOOP : -VRING_ERR_UNAVAILABLE;
        }
    }
}

/* Any list; returns the number of descriptors or a negative VringError */
static __attribute__((noinline)) int
packed_pop_list(Vring *vring, uint16_t flags, VirtQueueElement *elem,
                VringVectors *vecs)
{
    VringChain chain;
    uint16_t id;
    int ret;

    vring_chain_begin(&chain, vecs);
    ret = packed_read_list(vring, flags, &chain, &id);
    if (unlikely(ret < 0)) {
        vring_chain_undo(vring, &chain);
        return ret;
    }
    vring_chain_finish(vring, &chain, elem, id, ret);
    return ret;
}

/*
 * An ordinary chain.  Otherwise changes nothing and returns false: whatever is
 * wrong or rare is left to packed_pop_list(), which reads it all anew, but for
 * the @flags.
 */
static inline bool packed_pop_ordinary(Vring *vring, uint16_t flags,
                                       VirtQueueElement *elem,
                                       VringVectors *vecs)
{
    VringDesc desc;

    if ((flags & (VRING_DESC_INDIRECT | VRING_DESC_NEXT)) !=
        VRING_DESC_INDIRECT ||
        unlikely(vring->swap || !vring->config.indirect ||
                 vring->inuse >= vring->config.num)) {
        return false;
    }
    packed_load_desc(vring, vring->last_avail_idx, &desc);
    if (desc.len != VRING_ORDINARY_DESCS * sizeof(desc)) {
        return false;
    }
    return vring_ordinary_read(vring, desc.addr, true, desc.packed.id, elem,
                               vecs);
}

int vring_packed_pop(Vring *vring, VirtQueueElement *elem, VringVectors *vecs)
{
    uint16_t flags = packed_load_flags(vring, vring->last_avail_idx);
    int ndescs = 1;

    if (!packed_is_avail(flags, vring->avail_wrap)) {
        return 0;
    }
    /* Read the rest of the list after the flags that show it (2.8.15) */
    smp_rmb();
    if (!packed_pop_ordinary(vring, flags, elem, vecs)) {
        ndescs = packed_pop_list(vring, flags, elem, vecs);
        if (unlikely(ndescs < 0)) {
            vring->broken = true;
            return ndescs;
        }
    }
    packed_advance(vring, &vring->last_avail_idx, &vring->avail_wrap, ndescs);
    return 1;
}

void vring_packed_unpop(Vring *vring, unsigned ndescs)
{
    if (vring->last_avail_idx < ndescs) {
        vring->last_avail_idx += vring->config.num;
        vring->avail_wrap = !vring->avail_wrap;
    }
    vring->last_avail_idx -= ndescs;
}

/* Returning buffers */

/*
 * Only the flags of the first unpublished descriptor are kept back: the driver
 * does not look beyond it (2.8.12).
 */
void vring_packed_push(Vring *vring, unsigned id, unsigned ndescs,
                       uint32_t len)
{
    VringDesc *desc = vring_desc_at(vring, vring->used_idx);
    uint16_t flags = vring->used_wrap ? PACKED_DESC_AVAIL | PACKED_DESC_USED
                                      : 0;

    /* The length is valid only with WRITE (2.8.4) */
    if (len) {
        flags |= VRING_DESC_WRITE;
    }
    vring_store16(vring->swap, &desc->packed.id, id);
    vring_store32(vring->swap, &desc->len, len);
    if (vring->unpublished) {
        vring_store16(vring->swap, &desc->packed.flags, flags);
    } else {
        vring->first_flags = flags;
    }
    vring->unpublished++;
    vring->unpublished_slots += ndescs;
    packed_advance(vring, &vring->used_idx, &vring->used_wrap, ndescs);
}

/* The first unpublished position; all of the ring may be unpublished */
static unsigned packed_first_unpublished(const Vring *vring)
{
    unsigned used = vring->used_idx, slots = vring->unpublished_slots;

    return used >= slots ? used - slots : used + vring->config.num - slots;
}

void vring_packed_publish(Vring *vring)
{
    unsigned from = packed_first_unpublished(vring);

    /* Write used descriptors and data before the flags that show them. */
    smp_wmb();
    vring_store16(vring->swap, &vring_desc_at(vring, from)->packed.flags,
                  vring->first_flags);
    if (unlikely(vring_area_is_logged(&vring->desc))) {
        vring_area_set_slots_dirty(&vring->desc, 0, sizeof(VringDesc),
                                   vring->config.num, from,
                                   vring->unpublished_slots);
    }
    vring->unsignalled_slots += vring->unpublished_slots;
    vring->unpublished_slots = 0;
}

/* Notifications */

/*
 * Is the position that the driver waits for among the last @slots that were
 * published?  It may be within a list or a batch.  For an offset beyond the
 * ring, which a driver must not use, the answer may be either.
 */
static bool packed_event_passed(const Vring *vring, uint16_t off_wrap,
                                unsigned slots)
{
    int off = off_wrap & ~PACKED_EVENT_WRAP;
    bool wrap = off_wrap & PACKED_EVENT_WRAP;
    int behind = vring->used_idx - off - (int)vring->unpublished_slots;

    if (wrap != vring->used_wrap) {
        behind += vring->config.num;
    }
    return behind > 0 && behind <= (int)slots;
}

bool vring_packed_should_notify(Vring *vring)
{
    unsigned slots = vring->unsignalled_slots;
    bool valid = vring->signalled_used_valid;
    const VringEvent *event;
    uint16_t flags;

    /* The driver must see used descriptors before we read its wish. */
    smp_mb();
    vring->unsignalled_slots = 0;
    vring->signalled_used_valid = true;

    event = vring_area_at(&vring->avail, 0);
    flags = vring_load16(vring->swap, &event->flags) & PACKED_EVENT_MASK;
    if (flags == PACKED_EVENT_DISABLE) {
        return false;
    }
    if (flags != PACKED_EVENT_DESC || !vring->config.event_idx || !valid) {
        return true;
    }
    /* The driver writes the offset before the flags that make it valid. */
    smp_rmb();
    return packed_event_passed(vring,
                               vring_load16(vring->swap, &event->off_wrap),
                               slots);
}

static void packed_set_event_flags(Vring *vring, uint16_t flags)
{
    VringEvent *event = vring_area_at(&vring->used, 0);

    vring_store16(vring->swap, &event->flags, flags);
    vring->event_flags = flags;
    vring_area_set_dirty(&vring->used, 0, sizeof(*event));
}

void vring_packed_disable_notification(Vring *vring)
{
    /*
     * An old offset suppresses all notifications but one in two laps, and
     * leaving it alone saves the driver's CPU a cache miss per batch.
     */
    if (vring->event_flags != PACKED_EVENT_DESC &&
        vring->event_flags != PACKED_EVENT_DISABLE) {
        packed_set_event_flags(vring, PACKED_EVENT_DISABLE);
    }
}

bool vring_packed_enable_notification(Vring *vring)
{
    if (vring->config.event_idx) {
        VringEvent *event = vring_area_at(&vring->used, 0);

        vring_store16(vring->swap, &event->off_wrap,
                      vring->last_avail_idx |
                      (vring->avail_wrap ? PACKED_EVENT_WRAP : 0));
        /* Write the offset before the flags that make it valid. */
        smp_wmb();
        packed_set_event_flags(vring, PACKED_EVENT_DESC);
    } else if (vring->event_flags != PACKED_EVENT_ENABLE) {
        packed_set_event_flags(vring, PACKED_EVENT_ENABLE);
    }
    /* Ask before looking, so that no buffer is missed (2.8.21.2) */
    smp_mb();
    return vring_packed_more_avail(vring);
}
