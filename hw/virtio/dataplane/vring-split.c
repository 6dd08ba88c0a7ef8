/*
 * The device side of a split virtqueue (VIRTIO 1.3, 2.7)
 *
 * Knows the layout and the rules of the split format.  Does not know how guest
 * memory is mapped (vring-area.c, vring-chain.c).
 *
 * The ring is shared with the driver, which runs concurrently and may be
 * hostile: each field is read once, into a local variable, and only what was
 * checked is used.  Nothing that the device keeps for itself (positions,
 * chains in flight) is ever read back from the ring.
 *
 * Which barrier pairs with which:
 *
 *   here                                   in the driver
 *   ------------------------------------   ------------------------------------
 *   pop: load avail->idx, smp_rmb(),       store desc, ring[], wmb,
 *        load ring[] and descriptors       store avail->idx
 *   publish: store used->ring[],           load used->idx, rmb,
 *        smp_wmb(), store used->idx        load used->ring[]
 *   should_notify: store used->idx,        store flags or used_event, mb,
 *        smp_mb(), load avail->flags       load used->idx
 *        or used_event
 *   enable_notification: store             store avail->idx, mb,
 *        used->flags or avail_event,       load used->flags or avail_event
 *        smp_mb(), load avail->idx
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/host-utils.h"
#include "qapi/error.h"
#include "hw/virtio/dataplane/vring-accessors.h"
#include "vring-chain.h"
#include "vring-format.h"

/* Available ring flags (2.7.6) and used ring flags (2.7.8) */
#define SPLIT_AVAIL_NO_INTERRUPT 1
#define SPLIT_USED_NO_NOTIFY     1

typedef struct VringAvail {
    uint16_t flags;
    uint16_t idx;
    uint16_t ring[];            /* followed by used_event */
} VringAvail;

typedef struct VringUsedElement {
    uint32_t id;
    uint32_t len;
} VringUsedElement;

typedef struct VringUsed {
    uint16_t flags;
    uint16_t idx;
    VringUsedElement ring[];    /* followed by avail_event */
} VringUsed;

/* Layout */

static const uint16_t *split_avail_flags(const Vring *vring)
{
    return vring_area_at(&vring->avail, offsetof(VringAvail, flags));
}

static const uint16_t *split_avail_idx(const Vring *vring)
{
    return vring_area_at(&vring->avail, offsetof(VringAvail, idx));
}

/* Entry @i of the available ring; behind the last one is used_event */
static const uint16_t *split_avail_entry(const Vring *vring, unsigned i)
{
    return vring_area_at(&vring->avail,
                         offsetof(VringAvail, ring) + i * sizeof(uint16_t));
}

/* Offset of entry @i of the used ring; behind the last one is avail_event */
static uint32_t split_used_offset(unsigned i)
{
    return offsetof(VringUsed, ring) + i * sizeof(VringUsedElement);
}

bool vring_split_init(Vring *vring, Error **errp)
{
    const VringConfig *config = &vring->config;

    if (!is_power_of_2(config->num) || config->num > VRING_MAX_SIZE) {
        error_setg(errp, "queue size %u is not a power of 2 up to %d",
                   config->num, VRING_MAX_SIZE);
        return false;
    }
    /* 2.7.1; an unaligned 16-bit access is not a single one everywhere */
    if (config->desc % 16 || config->avail % 2 || config->used % 4) {
        error_setg(errp, "the virtqueue's rings are not aligned");
        return false;
    }
    vring->avail.size = sizeof(VringAvail) +
                        sizeof(uint16_t) * (config->num + config->event_idx);
    vring->used.size = split_used_offset(config->num) +
                       sizeof(uint16_t) * config->event_idx;
    vring->mask = config->num - 1;
    vring->swap = vring_must_swap(config->big_endian);
    return true;
}

/* Taking buffers */

static inline uint16_t split_num_avail(Vring *vring)
{
    uint16_t num = vring->shadow_avail_idx - vring->last_avail_idx;

    if (!num) {
        vring->shadow_avail_idx = vring_load16(vring->swap,
                                               split_avail_idx(vring));
        num = vring->shadow_avail_idx - vring->last_avail_idx;
        /* Entries and descriptors are read after the index (2.7.13) */
        smp_rmb();
    }
    return num;
}

bool vring_split_more_avail(Vring *vring)
{
    return split_num_avail(vring) != 0;
}

/* Returns 1 with @head set, 0 if there is none, or a negative VringError */
static int split_next_head(Vring *vring, uint16_t *head)
{
    uint16_t num = split_num_avail(vring);

    if (!num) {
        return 0;
    }
    if (num > vring->config.num) {
        return -VRING_ERR_AVAIL_IDX;
    }
    if (vring->inuse >= vring->config.num) {
        return -VRING_ERR_QUEUE_FULL;
    }
    *head = vring_load16(vring->swap,
                         split_avail_entry(vring, vring->last_avail_idx &
                                                  vring->mask));
    return *head < vring->config.num ? 1 : -VRING_ERR_HEAD;
}

static void split_swap_desc(VringDesc *desc)
{
    desc->addr = bswap64(desc->addr);
    desc->len = bswap32(desc->len);
    desc->flags = bswap16(desc->flags);
    desc->next = bswap16(desc->next);
}

/* Continues in the indirect table that @desc points to (2.7.5.3) */
static int split_enter_desc_table(Vring *vring, VringDesc desc,
                                  VringDescTable *table)
{
    if (!vring->config.indirect) {
        return -VRING_ERR_INDIRECT_FEATURE;
    }
    if (table->indirect) {
        return -VRING_ERR_INDIRECT_NESTED;
    }
    if (desc.flags & VRING_DESC_NEXT) {
        return -VRING_ERR_INDIRECT_NEXT;
    }
    return vring_desc_table_enter(vring, table, desc.addr, desc.len);
}

/* Follows the chain from @head; returns 0 or a negative VringError */
static int split_read_chain(Vring *vring, uint16_t head, VringChain *chain)
{
    VringDescTable table = {
        .host = vring->desc.host,
        .addr = vring->config.desc,
        .entries = vring->config.num,
    };
    unsigned i = head, steps = 0;
    int ret;

    for (;;) {
        VringDesc desc;

        if (unlikely(steps++ == table.entries)) {
            return -VRING_ERR_LOOP;
        }
        if (unlikely(!vring_desc_table_read(vring, &table, i, &desc))) {
            return -VRING_ERR_TABLE_ADDRESS;
        }
        if (unlikely(vring->swap)) {
            split_swap_desc(&desc);
        }
        if (desc.flags & VRING_DESC_INDIRECT) {
            ret = split_enter_desc_table(vring, desc, &table);
            if (unlikely(ret < 0)) {
                return ret;
            }
            i = 0;
            steps = 0;
            continue;
        }
        ret = vring_chain_add(vring, chain, desc.addr, desc.len,
                              desc.flags & VRING_DESC_WRITE);
        if (unlikely(ret < 0)) {
            return ret;
        }
        if (!(desc.flags & VRING_DESC_NEXT)) {
            return 0;
        }
        if (unlikely(desc.next >= table.entries)) {
            return -VRING_ERR_NEXT;
        }
        i = desc.next;
    }
}

/*
 * Prefetches the indirect table of the next chain but one: the driver has just
 * written it on another CPU.  The previous call has prefetched the next one's.
 * The values read here are only hints and need no check: the pop that follows
 * reads them again.
 */
static inline void split_prefetch(Vring *vring)
{
    const VringRamTable *table = vring->ram_ref->table;
    uint16_t idx = vring->last_avail_idx + 1;
    const VringRamRegion *region;
    hwaddr offset;
    uint16_t head;

    if ((uint16_t)(vring->shadow_avail_idx - vring->last_avail_idx) < 2) {
        return;
    }
    head = qatomic_read(split_avail_entry(vring, idx & vring->mask));
    if (head < vring->config.num) {
        region = &table->regions[vring->region_hint];
        offset = vring_desc_at(vring, head)->addr - region->base;
        if (likely(offset < region->size)) {
            __builtin_prefetch(region->host + offset);
        }
    }
}

/* Any chain */
static __attribute__((noinline)) int
split_pop_chain(Vring *vring, uint16_t head, VirtQueueElement *elem,
                VringVectors *vecs)
{
    VringChain chain;
    int ret;

    vring_chain_begin(&chain, vecs);
    ret = split_read_chain(vring, head, &chain);
    if (unlikely(ret < 0)) {
        vring_chain_undo(vring, &chain);
        return ret;
    }
    vring_chain_finish(vring, &chain, elem, head, 1);
    return 1;
}

/*
 * An ordinary chain.  Otherwise changes nothing and returns false: whatever is
 * wrong or rare is left to split_pop_chain(), which reads it all anew.
 */
static inline bool split_pop_ordinary(Vring *vring, uint16_t head,
                                      VirtQueueElement *elem,
                                      VringVectors *vecs)
{
    VringDesc desc;

    if (unlikely(vring->swap || !vring->config.indirect)) {
        return false;
    }
    desc = vring_desc_copy(vring_desc_at(vring, head));
    if (desc.flags != VRING_DESC_INDIRECT ||
        desc.len != VRING_ORDINARY_DESCS * sizeof(desc)) {
        return false;
    }
    return vring_ordinary_read(vring, desc.addr, false, head, elem, vecs);
}

int vring_split_pop(Vring *vring, VirtQueueElement *elem, VringVectors *vecs)
{
    uint16_t head;
    int ret;

    ret = split_next_head(vring, &head);
    if (ret > 0 && !split_pop_ordinary(vring, head, elem, vecs)) {
        ret = split_pop_chain(vring, head, elem, vecs);
    }
    if (ret > 0) {
        vring->last_avail_idx++;
        split_prefetch(vring);
    } else if (unlikely(ret < 0)) {
        vring->broken = true;
    }
    return ret;
}

void vring_split_unpop(Vring *vring)
{
    vring->last_avail_idx--;
}

/* Returning buffers */

/* One by one, because an element may cross the end of a page. */
static __attribute__((noinline)) void
split_push_slow(Vring *vring, uint32_t offset, unsigned id, uint32_t len)
{
    vring_store32(vring->swap,
                  vring_area_at(&vring->used,
                                offset + offsetof(VringUsedElement, id)), id);
    vring_store32(vring->swap,
                  vring_area_at(&vring->used,
                                offset + offsetof(VringUsedElement, len)),
                  len);
}

void vring_split_push(Vring *vring, unsigned id, uint32_t len)
{
    uint32_t offset = split_used_offset(vring->used_idx & vring->mask);

    vring->used_idx++;
    vring->unpublished++;
    if (likely(vring->used.host && !vring->swap)) {
        VringUsedElement *used = (void *)(vring->used.host + offset);

        vring_store32(false, &used->id, id);
        vring_store32(false, &used->len, len);
    } else {
        split_push_slow(vring, offset, id, len);
    }
}

static void split_set_published_dirty(Vring *vring)
{
    unsigned count = vring->unpublished;

    if (likely(!vring_area_is_logged(&vring->used))) {
        return;
    }
    vring_area_set_slots_dirty(&vring->used, split_used_offset(0),
                               sizeof(VringUsedElement), vring->config.num,
                               (vring->used_idx - count) & vring->mask, count);
    vring_area_set_dirty_slow(&vring->used, offsetof(VringUsed, idx),
                              sizeof(uint16_t));
}

void vring_split_publish(Vring *vring)
{
    /* Write elements and data before the index that shows them (2.7.8.2) */
    smp_wmb();
    vring_store16(vring->swap,
                  vring_area_at(&vring->used, offsetof(VringUsed, idx)),
                  vring->used_idx);
    split_set_published_dirty(vring);
}

/* Notifications */

bool vring_split_should_notify(Vring *vring)
{
    uint16_t old = vring->signalled_used;
    uint16_t new = vring->used_idx - vring->unpublished;
    bool valid = vring->signalled_used_valid;
    uint16_t event;

    /* The driver must see the index before we read its wish (2.7.7.2) */
    smp_mb();
    if (vring->config.event_idx) {
        vring->signalled_used = new;
        vring->signalled_used_valid = true;
    }
    if (vring->config.notify_on_empty && !vring->inuse &&
        !vring_split_more_avail(vring)) {
        return true;
    }
    if (!vring->config.event_idx) {
        return !(vring_load16(vring->swap, split_avail_flags(vring)) &
                 SPLIT_AVAIL_NO_INTERRUPT);
    }
    /* Is the event among the entries [old, new) just published? (2.7.7.2) */
    event = vring_load16(vring->swap,
                         split_avail_entry(vring, vring->config.num));
    return !valid || (uint16_t)(event - old) < (uint16_t)(new - old);
}

static void split_set_used_flags(Vring *vring, uint16_t flags)
{
    vring_store16(vring->swap,
                  vring_area_at(&vring->used, offsetof(VringUsed, flags)),
                  flags);
    vring_area_set_dirty(&vring->used, offsetof(VringUsed, flags),
                         sizeof(uint16_t));
}

void vring_split_disable_notification(Vring *vring)
{
    /*
     * With EVENT_IDX the old avail_event suppresses notifications already, and
     * used->flags must stay 0 (2.7.10.2).
     */
    if (!vring->config.event_idx) {
        split_set_used_flags(vring, SPLIT_USED_NO_NOTIFY);
    }
}

bool vring_split_enable_notification(Vring *vring)
{
    if (vring->config.event_idx) {
        uint32_t offset = split_used_offset(vring->config.num);

        vring_store16(vring->swap, vring_area_at(&vring->used, offset),
                      vring->last_avail_idx);
        vring_area_set_dirty(&vring->used, offset, sizeof(uint16_t));
    } else {
        split_set_used_flags(vring, 0);
    }
    /* Ask before looking, so that no buffer is missed (2.7.10.2) */
    smp_mb();
    return vring_split_more_avail(vring);
}
