/*
 * The device side of one virtqueue: what does not depend on the ring format
 *
 * Knows the life of a Vring, and the order of elements with VIRTIO_F_IN_ORDER.
 * Does not know how a ring is laid out (vring-split.c, vring-packed.c), how an
 * element's memory is mapped (vring-chain.c), where its state comes from
 * (vring-virtqueue.c), or how the memory table is made (vring-memory.c).
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qapi/error.h"
#include "vring-chain.h"
#include "vring-format.h"

const char *vring_error_str(VringError err)
{
    static const char *const str[VRING_ERR__MAX] = {
        [VRING_ERR_AVAIL_IDX] =
            "available index is more than a ring ahead",
        [VRING_ERR_HEAD] =
            "available ring entry is not below the queue size",
        [VRING_ERR_QUEUE_FULL] =
            "more buffers are in flight than the queue has",
        [VRING_ERR_NEXT] =
            "next of a descriptor is beyond its table",
        [VRING_ERR_LOOP] =
            "descriptor chain is longer than its table",
        [VRING_ERR_UNAVAILABLE] =
            "descriptor list goes on in a descriptor that is not available",
        [VRING_ERR_TOO_LONG] =
            "descriptor chain has too many buffers",
        [VRING_ERR_ORDER] =
            "device-readable descriptor follows a device-writable one",
        [VRING_ERR_ADDRESS] =
            "buffer is not in memory that the device may access",
        [VRING_ERR_LENGTH] =
            "descriptor chain describes 4 GiB or more",
        [VRING_ERR_INDIRECT_FEATURE] =
            "indirect descriptor without VIRTIO_F_INDIRECT_DESC",
        [VRING_ERR_INDIRECT_NESTED] =
            "indirect descriptor within an indirect table",
        [VRING_ERR_INDIRECT_NEXT] =
            "indirect descriptor has a next one",
        [VRING_ERR_TABLE_LENGTH] =
            "indirect table has an invalid length",
        [VRING_ERR_TABLE_ADDRESS] =
            "indirect table is not in RAM",
        [VRING_ERR_RING_LOST] =
            "the ring's memory has gone away",
    };

    assert(err > 0 && err < VRING_ERR__MAX);
    return str[err];
}

/* The ring's areas */

static void ring_unmap_areas(Vring *vring)
{
    vring_area_unmap(&vring->desc, vring->mem);
    vring_area_unmap(&vring->avail, vring->mem);
    vring_area_unmap(&vring->used, vring->mem);
}

static bool ring_map_area(Vring *vring, VringArea *area, hwaddr addr,
                          bool is_write)
{
    return vring_area_map(area, addr, vring->mem, vring->ram_ref->table,
                          &vring->region_hint, is_write);
}

/*
 * Unmaps the ring's areas and maps them with the current table.  If one of them
 * is not in RAM all are unmapped, and the ring is lost.
 */
static bool ring_remap_areas(Vring *vring)
{
    const VringConfig *config = &vring->config;
    bool found;

    ring_unmap_areas(vring);
    found = ring_map_area(vring, &vring->desc, config->desc, config->packed) &&
            ring_map_area(vring, &vring->avail, config->avail, false) &&
            ring_map_area(vring, &vring->used, config->used, true);
    if (!found) {
        ring_unmap_areas(vring);
    }
    qatomic_set(&vring->lost, !found);
    /* Memory that has returned may contain anything. */
    vring->event_flags = VRING_EVENT_FLAGS_UNKNOWN;
    return found;
}

/* Life */

static bool ring_init_format(Vring *vring, Error **errp)
{
    return vring->config.packed ? vring_packed_init(vring, errp)
                                : vring_split_init(vring, errp);
}

bool vring_open(Vring *vring, const VringConfig *config, VringMemory *mem,
                Error **errp)
{
    *vring = (Vring) {
        .config = *config,
        .desc.size = sizeof(VringDesc) * config->num,
        .mem = mem,
    };
    if (!ring_init_format(vring, errp)) {
        return false;
    }

    vring->ram_ref = vring_ram_ref_new(vring_memory_get_table(mem));
    if (!ring_remap_areas(vring)) {
        vring_ram_ref_free(vring->ram_ref);
        vring->ram_ref = NULL;
        error_setg(errp, "the virtqueue's rings are not in guest RAM");
        return false;
    }
    if (config->in_order) {
        vring->order = g_new0(VringOrderEntry, config->num);
    }
    return true;
}

void vring_close(Vring *vring)
{
    ring_unmap_areas(vring);
    vring_ram_ref_free(vring->ram_ref);
    vring->ram_ref = NULL;
    g_free(vring->order);
    vring->order = NULL;
}

/* Returns the number of elements that it published */
static __attribute__((noinline)) unsigned ring_change_memory(Vring *vring)
{
    VringRamRef *old = vring->ram_ref;
    /* The old table still keeps the ring's memory: this is the last chance. */
    unsigned count = vring_publish(vring);

    vring->ram_ref = vring_ram_ref_new(vring_memory_get_table(vring->mem));
    vring->region_hint = 0;
    ring_remap_areas(vring);
    if (!old->inflight) {
        vring_ram_ref_free(old);
    }
    return count;
}

unsigned vring_refresh_memory(Vring *vring)
{
    if (likely(vring_memory_is_current(vring->mem, vring->ram_ref->table))) {
        return 0;
    }
    return ring_change_memory(vring);
}

/* Puts a used element into the ring, unless that is broken or lost */
static inline void ring_put_used(Vring *vring, unsigned id, unsigned ndescs,
                                 uint32_t len)
{
    assert(vring->inuse >= ndescs);
    vring->inuse -= ndescs;
    if (unlikely(vring->lost || vring->broken)) {
        qatomic_set(&vring->dropped, true);
        return;
    }
    if (vring->config.packed) {
        vring_packed_push(vring, id, ndescs, len);
    } else {
        vring_split_push(vring, id, len);
    }
}

/* VIRTIO_F_IN_ORDER (2.7.9, 2.8.8) */

static VringOrderEntry *order_at(Vring *vring, unsigned pos)
{
    /* Positions of a split ring go on beyond its size. */
    return &vring->order[pos % vring->config.num];
}

/* Appends the element that was just popped */
static void order_append(Vring *vring, const VirtQueueElement *elem)
{
    unsigned pos = vring->last_avail_idx + vring->config.num - elem->ndescs;

    *order_at(vring, pos) = (VringOrderEntry) {
        .id = elem->index,
        .ndescs = elem->ndescs,
    };
}

/*
 * Most requests complete roughly in the order in which they came, so the search
 * is short.  If a driver uses an id twice, that is its fault, and the older
 * element is returned.
 */
static VringOrderEntry *order_find(Vring *vring, unsigned id)
{
    unsigned slots = 0;

    while (slots < vring->inuse) {
        VringOrderEntry *order = order_at(vring, vring->order_head + slots);

        if (order->id == id && !order->done) {
            return order;
        }
        assert(order->ndescs);
        slots += order->ndescs;
    }
    return NULL;
}

/* Returns the elements that no longer wait for an older one */
static void order_flush(Vring *vring)
{
    while (vring->inuse) {
        VringOrderEntry *order = order_at(vring, vring->order_head);

        if (!order->done) {
            break;
        }
        order->done = false;
        vring->order_head = (vring->order_head + order->ndescs) %
                            vring->config.num;
        if (unlikely(order->detached)) {
            vring->inuse -= order->ndescs;
        } else {
            ring_put_used(vring, order->id, order->ndescs, order->len);
        }
    }
}

static void order_set_done(Vring *vring, const VirtQueueElement *elem,
                           uint32_t len, bool detached)
{
    VringOrderEntry *order = order_find(vring, elem->index);

    assert(order);
    order->done = true;
    order->detached = detached;
    order->len = len;
}

static void order_complete(Vring *vring, const VirtQueueElement *elem,
                           uint32_t len, bool detached)
{
    order_set_done(vring, elem, len, detached);
    order_flush(vring);
}

/* The ring, whatever its format */

int vring_pop_full(Vring *vring)
{
    if (vring->lost) {
        return -VRING_ERR_RING_LOST;
    }
    if (!vring_more_avail(vring)) {
        return 0;
    }
    vring->broken = true;
    return -VRING_ERR_QUEUE_FULL;
}

static inline int ring_pop(Vring *vring, VirtQueueElement *elem,
                           VringVectors *vecs)
{
    return vring->config.packed ? vring_packed_pop(vring, elem, vecs)
                                : vring_split_pop(vring, elem, vecs);
}

static __attribute__((noinline)) int ring_pop_in_order(Vring *vring,
                                                       VirtQueueElement *elem,
                                                       VringVectors *vecs)
{
    int ret = ring_pop(vring, elem, vecs);

    if (ret > 0) {
        order_append(vring, elem);
    }
    return ret;
}

int vring_pop(Vring *vring, VirtQueueElement *elem, VringVectors *vecs)
{
    if (unlikely(vring->broken)) {
        return 0;
    }
    if (unlikely(vring->lost)) {
        return -VRING_ERR_RING_LOST;
    }
    if (unlikely(vring->order)) {
        return ring_pop_in_order(vring, elem, vecs);
    }
    return ring_pop(vring, elem, vecs);
}

void vring_push(Vring *vring, const VirtQueueElement *elem, VringVectors *vecs,
                uint32_t len)
{
    vring_element_unmap(vring, elem, vecs);
    if (unlikely(vring->order)) {
        order_complete(vring, elem, len, false);
    } else {
        ring_put_used(vring, elem->index, elem->ndescs, len);
    }
}

void vring_detach(Vring *vring, const VirtQueueElement *elem,
                  VringVectors *vecs)
{
    vring_element_unmap(vring, elem, vecs);
    if (unlikely(vring->order)) {
        order_complete(vring, elem, 0, true);
    } else {
        assert(vring->inuse >= elem->ndescs);
        vring->inuse -= elem->ndescs;
    }
}

void vring_push_disabled(Vring *vring, const VirtQueueElement *elem,
                         VringVectors *vecs, uint32_t len)
{
    if (likely(!vring->order)) {
        vring_detach(vring, elem, vecs);
        return;
    }
    vring_element_unmap(vring, elem, vecs);
    order_set_done(vring, elem, len, false);
}

void vring_unpop(Vring *vring, const VirtQueueElement *elem, VringVectors *vecs)
{
    vring_element_unmap(vring, elem, vecs);
    assert(vring->inuse >= elem->ndescs);
    vring->inuse -= elem->ndescs;
    if (vring->config.packed) {
        vring_packed_unpop(vring, elem->ndescs);
    } else {
        vring_split_unpop(vring);
    }
}

unsigned vring_publish(Vring *vring)
{
    unsigned count = vring->unpublished;

    if (!count || unlikely(vring->lost || vring->broken)) {
        return 0;
    }
    if (vring->config.packed) {
        vring_packed_publish(vring);
    } else {
        vring_split_publish(vring);
    }
    vring->unpublished = 0;
    return count;
}

bool vring_should_notify(Vring *vring)
{
    if (unlikely(vring->lost)) {
        /* The driver's wish cannot be read. */
        return true;
    }
    return vring->config.packed ? vring_packed_should_notify(vring)
                                : vring_split_should_notify(vring);
}

void vring_disable_notification(Vring *vring)
{
    if (unlikely(vring->lost)) {
        return;
    }
    if (vring->config.packed) {
        vring_packed_disable_notification(vring);
    } else {
        vring_split_disable_notification(vring);
    }
}

bool vring_enable_notification(Vring *vring)
{
    if (unlikely(vring->lost || vring->broken)) {
        return false;
    }
    return vring->config.packed ? vring_packed_enable_notification(vring)
                                : vring_split_enable_notification(vring);
}

bool vring_more_avail(Vring *vring)
{
    if (unlikely(vring->lost || vring->broken)) {
        return false;
    }
    return vring->config.packed ? vring_packed_more_avail(vring)
                                : vring_split_more_avail(vring);
}
