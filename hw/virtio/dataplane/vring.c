/*
 * The device side of one virtqueue: what does not depend on the ring format
 *
 * Knows how an element's memory is mapped, kept alive, marked dirty and given
 * back, and keeps the order of elements with VIRTIO_F_IN_ORDER.  Does not know
 * how a ring is laid out (vring-split.c, vring-packed.c), where its state comes
 * from (vring-virtqueue.c), or how the memory table is made (vring-memory.c).
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qapi/error.h"
#include "vring-internal.h"

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

/* Buffers */

void vring_buffer_init(VringBuffer *buf)
{
    buf->hold = NULL;
    buf->mapping = VRING_MAPPED;
    buf->capacity = VRING_INLINE_VECTORS;
    buf->iov = buf->inline_iov;
    buf->addr = buf->inline_addr;
}

void vring_buffer_release(VringBuffer *buf)
{
    if (buf->iov != buf->inline_iov) {
        g_free(buf->iov);
        g_free(buf->addr);
        vring_buffer_init(buf);
    }
}

void vring_set_bounced(const VirtQueueElement *elem, VringBuffer *buf,
                       const struct iovec *iov)
{
    assert(!vring_is_mapped(buf));
    memcpy(buf->iov, iov, (elem->out_num + elem->in_num) * sizeof(*iov));
    buf->mapping = VRING_BOUNCED;
}

/* Holds */

static VringHold *vring_hold_new(VringTable *table)
{
    VringHold *hold = g_new(VringHold, 1);

    hold->table = table;
    hold->inflight = 0;
    return hold;
}

static void vring_hold_free(VringHold *hold)
{
    assert(!hold->inflight);
    vring_table_unref(hold->table);
    g_free(hold);
}

static void vring_hold_put(Vring *vring, VringHold *hold)
{
    assert(hold->inflight > 0);
    if (--hold->inflight == 0 && hold != vring->hold) {
        vring_hold_free(hold);
    }
}

/* Addresses */

const VringRegion *vring_table_search(const VringTable *table, hwaddr addr,
                                      unsigned *hint)
{
    unsigned lo = 0, hi = table->nregions;

    while (lo < hi) {
        unsigned mid = lo + (hi - lo) / 2;
        const VringRegion *region = &table->regions[mid];

        if (addr < region->base) {
            hi = mid;
        } else if (addr - region->base >= region->size) {
            lo = mid + 1;
        } else {
            *hint = mid;
            return region;
        }
    }
    return NULL;
}

/* Chains */

/*
 * Doubles, as an allocation of the largest size for each long chain would make
 * the C library ask the kernel for memory and give it back all the time.
 */
int vring_chain_grow(VringChain *chain)
{
    VringBuffer *buf = chain->buf;
    unsigned capacity = MIN(2 * chain->capacity, VIRTQUEUE_MAX_SIZE);

    if (chain->num == VIRTQUEUE_MAX_SIZE) {
        return -VRING_ERR_TOO_LONG;
    }
    chain->iov = g_new(struct iovec, capacity);
    chain->addr = g_new(hwaddr, capacity);
    chain->capacity = capacity;
    memcpy(chain->iov, buf->iov, chain->num * sizeof(*buf->iov));
    memcpy(chain->addr, buf->addr, chain->num * sizeof(*buf->addr));
    vring_buffer_release(buf);
    buf->iov = chain->iov;
    buf->addr = chain->addr;
    buf->capacity = capacity;
    return 0;
}

/* From now on the chain's vectors have references of their own. */
static void vring_chain_pin(Vring *vring, VringChain *chain)
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

static void vring_chain_unmap(Vring *vring, VringChain *chain)
{
    if (!chain->pinned || chain->mapping == VRING_UNMAPPED) {
        return;
    }
    /* Nothing was written yet, so nothing gets dirty. */
    for (unsigned i = 0; i < chain->num; i++) {
        vring_memory_unmap(vring->mem, chain->iov[i].iov_base,
                           chain->iov[i].iov_len, false);
        chain->iov[i].iov_base = NULL;
    }
    chain->mapping = VRING_UNMAPPED;
}

/*
 * An element is wholly in the table or wholly outside of it, so that the
 * common case has nothing to tell apart.  If some of it is not even in RAM all
 * of it is left unmapped, in pieces that dma_memory_map() maps at once.
 */
int vring_chain_add_slow(Vring *vring, VringChain *chain, hwaddr addr,
                         uint32_t len, bool is_write)
{
    if (len - 1 > UINT64_MAX - addr) {
        return -VRING_ERR_ADDRESS;
    }
    vring_chain_pin(vring, chain);

    while (len) {
        hwaddr mapped = len;
        void *host = vring_memory_map(vring->mem, addr, &mapped, is_write);
        int ret;

        if (!host) {
            if (!vring->config.bounce) {
                return -VRING_ERR_ADDRESS;
            }
            vring_chain_unmap(vring, chain);
        } else if (chain->mapping == VRING_UNMAPPED) {
            vring_memory_unmap(vring->mem, host, mapped, false);
            host = NULL;
        }
        ret = vring_chain_append(chain, host, addr, mapped, is_write);
        if (ret < 0) {
            if (host) {
                /* Nothing was written yet, so nothing gets dirty. */
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
    vring_chain_unmap(vring, chain);
    vring_buffer_release(chain->buf);
}

/* Indirect tables */

bool vring_fetch_desc(Vring *vring, const VringDescTable *table, unsigned i,
                      VringDesc *desc)
{
    uint8_t bytes[sizeof(*desc)];

    if (!table->indirect) {
        *desc = vring_copy_desc(vring_desc_at(vring, i));
        return true;
    }
    if (!vring_memory_read(vring->mem, table->addr + i * sizeof(bytes), bytes,
                           sizeof(bytes))) {
        return false;
    }
    *desc = vring_copy_desc(bytes);
    return true;
}

/* Giving an element's memory back */

static void vring_mark_element_dirty(Vring *vring,
                                     const VirtQueueElement *elem,
                                     const VringTable *table)
{
    const VringRegion *last = NULL;
    bool logged = false;

    for (unsigned i = 0; i < elem->in_num; i++) {
        const VringRegion *region =
            vring_table_find(table, elem->in_addr[i], &vring->region_hint);

        /* Most elements lie in one region, and nobody logs most of the time */
        if (region != last) {
            last = region;
            logged = vring_region_is_logged(region);
        }
        if (unlikely(logged)) {
            vring_region_set_dirty(region, elem->in_addr[i] - region->base,
                                   elem->in_sg[i].iov_len);
        }
    }
}

/* Copies of what is not RAM are dropped: who wants them written did that. */
static void vring_unmap_bounced(Vring *vring, const VirtQueueElement *elem)
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

static void vring_unmap_pinned(Vring *vring, const VirtQueueElement *elem)
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

static void vring_unmap(Vring *vring, const VirtQueueElement *elem,
                        VringBuffer *buf)
{
    if (buf && buf->hold) {
        /* The request may have written before it failed or was given up. */
        vring_mark_element_dirty(vring, elem, buf->hold->table);
        vring_hold_put(vring, buf->hold);
        buf->hold = NULL;
    } else if (!buf) {
        vring_unmap_bounced(vring, elem);
    } else if (buf->mapping == VRING_MAPPED) {
        vring_unmap_pinned(vring, elem);
    } else {
        if (buf->mapping == VRING_BOUNCED) {
            vring_unmap_bounced(vring, elem);
        }
        buf->mapping = VRING_MAPPED;
    }
}

void vring_pin(Vring *vring, const VirtQueueElement *elem, VringBuffer *buf)
{
    if (!buf->hold) {
        return;
    }
    for (unsigned i = 0; i < elem->out_num; i++) {
        vring_memory_pin(vring->mem, elem->out_sg[i].iov_base);
    }
    for (unsigned i = 0; i < elem->in_num; i++) {
        vring_memory_pin(vring->mem, elem->in_sg[i].iov_base);
    }
    vring_hold_put(vring, buf->hold);
    buf->hold = NULL;
    buf->mapping = VRING_MAPPED;
}

/* The ring's own memory */

/* What an IOMMU maps is contiguous at least this far. */
#define VRING_PAGE_SIZE 4096

void *vring_area_page_at(const VringArea *area, uint32_t offset,
                         const VringRegion **region)
{
    hwaddr addr = area->addr + offset;
    const VringRegion *page = &area->pages[addr / VRING_PAGE_SIZE -
                                           area->addr / VRING_PAGE_SIZE];

    if (region) {
        *region = page;
    }
    return page->host + (addr - page->base);
}

void vring_area_set_dirty(const VringArea *area, uint32_t offset,
                          uint32_t len)
{
    while (len) {
        const VringRegion *region = area->region;
        uint8_t *host = area->host + offset;
        uint32_t part = len;

        if (unlikely(!area->host)) {
            host = vring_area_page_at(area, offset, &region);
            part = MIN(len, region->size - (host - region->host));
        }
        /* Nobody logs most of the time. */
        if (unlikely(vring_region_is_logged(region))) {
            vring_region_set_dirty(region, host - region->host, part);
        }
        offset += part;
        len -= part;
    }
}

void vring_area_set_slots_dirty(const Vring *vring, const VringArea *area,
                                uint32_t base, uint32_t size, unsigned from,
                                unsigned count)
{
    unsigned first = MIN(count, vring->config.num - from);

    vring_area_set_dirty(area, base + from * size, first * size);
    vring_area_set_dirty(area, base, (count - first) * size);
}

static void vring_area_unmap(VringArea *area, VringMemory *mem)
{
    for (unsigned i = 0; i < area->npages; i++) {
        vring_memory_unmap_region(mem, &area->pages[i]);
    }
    g_free(area->pages);
    area->pages = NULL;
    area->npages = 0;
    area->host = NULL;
    area->region = NULL;
}

/* Page by page; what is mapped at a failure is left to vring_area_unmap() */
static bool vring_area_map_pages(VringArea *area, VringMemory *mem,
                                 bool is_write)
{
    hwaddr addr = area->addr, end = addr + area->size;

    area->pages = g_new(VringRegion, area->size / VRING_PAGE_SIZE + 2);
    while (addr < end) {
        hwaddr len = MIN(end - addr,
                         VRING_PAGE_SIZE - addr % VRING_PAGE_SIZE);

        if (!vring_memory_map_region(mem, addr, len, is_write,
                                     &area->pages[area->npages])) {
            return false;
        }
        area->npages++;
        addr += len;
    }
    return true;
}

static bool vring_area_map(Vring *vring, VringArea *area, bool is_write)
{
    const VringTable *table = vring->hold->table;
    unsigned *hint = &vring->region_hint;

    if (area->size - 1 > UINT64_MAX - area->addr) {
        return false;
    }
    area->host = vring_table_translate(table, area->addr, area->size, hint);
    if (area->host) {
        area->region = vring_table_find(table, area->addr, hint);
        return true;
    }
    return vring_area_map_pages(area, vring->mem, is_write);
}

static void vring_unmap_areas(Vring *vring)
{
    vring_area_unmap(&vring->desc, vring->mem);
    vring_area_unmap(&vring->avail, vring->mem);
    vring_area_unmap(&vring->used, vring->mem);
}

/* Finds the ring's areas anew.  They are lost together. */
static bool vring_resolve(Vring *vring)
{
    bool found;

    vring_unmap_areas(vring);
    found = vring_area_map(vring, &vring->desc, vring->config.packed) &&
            vring_area_map(vring, &vring->avail, false) &&
            vring_area_map(vring, &vring->used, true);
    if (!found) {
        vring_unmap_areas(vring);
    }
    qatomic_set(&vring->lost, !found);
    /* What stands in memory that has returned is not known. */
    vring->event_flags = VRING_EVENT_FLAGS_UNKNOWN;
    return found;
}

/* Life */

static bool vring_init_format(Vring *vring, Error **errp)
{
    return vring->config.packed ? vring_packed_init(vring, errp)
                                : vring_split_init(vring, errp);
}

bool vring_open(Vring *vring, const VringConfig *config, VringMemory *mem,
                Error **errp)
{
    *vring = (Vring) {
        .config = *config,
        .desc.addr = config->desc,
        .desc.size = sizeof(VringDesc) * config->num,
        .avail.addr = config->avail,
        .used.addr = config->used,
        .mem = mem,
    };
    if (!vring_init_format(vring, errp)) {
        return false;
    }

    vring->hold = vring_hold_new(vring_memory_get_table(mem));
    if (!vring_resolve(vring)) {
        vring_hold_free(vring->hold);
        vring->hold = NULL;
        error_setg(errp, "the virtqueue's rings are not in guest RAM");
        return false;
    }
    if (config->in_order) {
        vring->order = g_new0(VringOrder, config->num);
    }
    return true;
}

void vring_close(Vring *vring)
{
    vring_unmap_areas(vring);
    vring_hold_free(vring->hold);
    vring->hold = NULL;
    g_free(vring->order);
    vring->order = NULL;
}

/* Returns what it published */
static __attribute__((noinline)) unsigned vring_change_memory(Vring *vring)
{
    VringHold *old = vring->hold;
    /* The old table keeps the ring's memory: this is the last chance. */
    unsigned count = vring_publish(vring);

    vring->hold = vring_hold_new(vring_memory_get_table(vring->mem));
    vring->region_hint = 0;
    vring_resolve(vring);
    if (!old->inflight) {
        vring_hold_free(old);
    }
    return count;
}

unsigned vring_refresh_memory(Vring *vring)
{
    if (likely(vring_memory_is_current(vring->mem, vring->hold->table))) {
        return 0;
    }
    return vring_change_memory(vring);
}

/* Puts a used element into the ring, unless the driver is not to see it */
static inline void vring_put_used(Vring *vring, unsigned id, unsigned ndescs,
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
    vring->unpublished++;
}

/* VIRTIO_F_IN_ORDER (2.7.9, 2.8.8) */

static VringOrder *vring_order_at(Vring *vring, unsigned pos)
{
    /* Split positions count on beyond the ring, packed ones do not. */
    return &vring->order[pos % vring->config.num];
}

void vring_order_pop(Vring *vring, const VirtQueueElement *elem)
{
    unsigned pos = vring->last_avail_idx;

    *vring_order_at(vring, pos) = (VringOrder) {
        .id = elem->index,
        .ndescs = elem->ndescs,
    };
}

/*
 * Most requests complete about in the order in which they came, so that the
 * search is short.  A driver may use an id twice, at its own loss: the older
 * element is meant then.
 */
static VringOrder *vring_order_find(Vring *vring, unsigned id)
{
    unsigned slots = 0;

    while (slots < vring->inuse) {
        VringOrder *order = vring_order_at(vring, vring->order_head + slots);

        if (order->id == id && !order->done) {
            return order;
        }
        assert(order->ndescs);
        slots += order->ndescs;
    }
    return NULL;
}

/* Returns all elements that have none before them in flight any more */
static void vring_order_flush(Vring *vring)
{
    while (vring->inuse) {
        VringOrder *order = vring_order_at(vring, vring->order_head);

        if (!order->done) {
            break;
        }
        order->done = false;
        vring->order_head = (vring->order_head + order->ndescs) %
                            vring->config.num;
        if (unlikely(order->detached)) {
            vring->inuse -= order->ndescs;
        } else {
            vring_put_used(vring, order->id, order->ndescs, order->len);
        }
    }
}

static void vring_order_done(Vring *vring, const VirtQueueElement *elem,
                             uint32_t len, bool detached)
{
    VringOrder *order = vring_order_find(vring, elem->index);

    assert(order);
    order->done = true;
    order->detached = detached;
    order->len = len;
    vring_order_flush(vring);
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

int vring_pop(Vring *vring, VirtQueueElement *elem, VringBuffer *buf)
{
    int ret;

    if (unlikely(vring->broken)) {
        return 0;
    }
    if (unlikely(vring->lost)) {
        return -VRING_ERR_RING_LOST;
    }
    ret = vring->config.packed ? vring_packed_pop(vring, elem, buf)
                               : vring_split_pop(vring, elem, buf);
    if (unlikely(ret < 0)) {
        vring->broken = true;
    }
    return ret;
}

void vring_push(Vring *vring, const VirtQueueElement *elem, VringBuffer *buf,
                uint32_t len)
{
    vring_unmap(vring, elem, buf);
    if (unlikely(vring->order)) {
        vring_order_done(vring, elem, len, false);
    } else {
        vring_put_used(vring, elem->index, elem->ndescs, len);
    }
}

void vring_detach(Vring *vring, const VirtQueueElement *elem, VringBuffer *buf)
{
    vring_unmap(vring, elem, buf);
    if (unlikely(vring->order)) {
        vring_order_done(vring, elem, 0, true);
    } else {
        assert(vring->inuse >= elem->ndescs);
        vring->inuse -= elem->ndescs;
    }
}

void vring_unpop(Vring *vring, const VirtQueueElement *elem, VringBuffer *buf)
{
    vring_unmap(vring, elem, buf);
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
        /* What the driver wishes cannot be read. */
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
