/*
 * The driver's side of split and packed rings, for the qtests of the data plane
 *
 * Knows where descriptors, positions and notification control stand and which
 * rules a driver has to follow (VIRTIO 1.3, 2.7 and 2.8).  Does not know
 * requests, interrupts or the transport.  Twins *_split and *_packed come
 * first, then what chooses between them.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "virtio-blk-dataplane-common.h"
#include "virtio-blk-dataplane-ram.h"
#include "virtio-blk-dataplane-kvm.h"

#define F_AVAIL (1 << VRING_PACKED_DESC_F_AVAIL)
#define F_USED (1 << VRING_PACKED_DESC_F_USED)
#define DESC_BYTES 16
#define DESC_FLAGS 14           /* offset in a descriptor of a packed ring */
#define JUNK 0xeeee             /* where the device is not to look */

/* The flags of a list's first descriptor, which are to be written last */
typedef struct Hidden {
    uint16_t entry;
    uint16_t flags;
} Hidden;

/* Free descriptors of a split ring, or buffer IDs of a packed one */

/*
 * In-order use wants the descriptors of a split ring in the ring's order
 * (2.7.5.2), which they have if the first that became free is the first taken.
 */
static uint16_t take_desc(DpDisk *disk)
{
    unsigned at;
    uint16_t desc;

    g_assert_cmpuint(disk->free_desc->len, >, 0);
    at = disk->in_order ? 0 : disk->free_desc->len - 1;
    desc = g_array_index(disk->free_desc, uint16_t, at);
    g_array_remove_index(disk->free_desc, at);
    return desc;
}

static void fill_free_desc(DpDisk *disk)
{
    g_array_set_size(disk->free_desc, 0);
    for (unsigned i = 0; i < disk->num; i++) {
        uint16_t desc = disk->in_order ? i : disk->num - 1 - i;

        g_array_append_val(disk->free_desc, desc);
    }
}

/* --- split ----------------------------------------------------------- */

static uint64_t avail_entry(DpDisk *disk, uint16_t idx)
{
    return disk->vq->avail + 4 + 2 * (idx % disk->num);
}

static uint64_t used_entry(DpDisk *disk, uint16_t idx)
{
    return disk->vq->used + 4 + 8 * (idx % disk->num);
}

static uint64_t used_event(DpDisk *disk)
{
    return disk->vq->avail + 4 + 2 * disk->num;
}

static uint64_t avail_event(DpDisk *disk)
{
    return disk->vq->used + 4 + 8 * disk->num;
}

static uint16_t chain_split(DpDisk *disk, const DpSeg *seg, unsigned n)
{
    uint16_t head = take_desc(disk);
    uint16_t desc = head;

    for (unsigned i = 0; i < n; i++) {
        bool last = i == n - 1;
        uint16_t next = last ? JUNK : take_desc(disk);

        g_assert_true(last || !disk->in_order ||
                      next == (desc + 1) % disk->num);
        dp_desc_write(disk, disk->vq->desc, desc, seg[i].addr, seg[i].len,
                      seg[i].flags | (last ? 0 : VRING_DESC_F_NEXT), next);
        desc = next;
    }
    return head;
}

static void free_chain_split(DpDisk *disk, uint16_t desc)
{
    for (;;) {
        struct vring_desc d;

        dp_ram_read(disk->vm, disk->vq->desc + DESC_BYTES * desc, &d,
                      sizeof(d));
        g_array_append_val(disk->free_desc, desc);
        if (!(le16_to_cpu(d.flags) & VRING_DESC_F_NEXT)) {
            return;
        }
        desc = le16_to_cpu(d.next);
    }
}

static void avail_split(DpDisk *disk, uint16_t head)
{
    dp_ram_writew(disk->vm, avail_entry(disk, disk->avail_idx), head);
    disk->avail_idx++;
}

static void expose_split(DpDisk *disk)
{
    dp_ram_writew(disk->vm, disk->vq->avail + 2, disk->avail_idx);
}

/* Does the device ask to be notified of what was exposed since @old? */
static bool wants_kick_split(DpDisk *disk, uint16_t old, uint16_t new)
{
    DpVm *vm = disk->vm;

    if (disk->vq->event) {
        return vring_need_event(dp_ram_readw(vm, avail_event(disk)), new, old);
    }
    return !(dp_ram_readw(vm, disk->vq->used) & VRING_USED_F_NO_NOTIFY);
}

static unsigned count_used_split(DpDisk *disk)
{
    uint16_t idx = dp_ram_readw(disk->vm, disk->vq->used + 2);

    return (uint16_t)(idx - disk->used_idx);
}

static bool read_used_split(DpDisk *disk, uint16_t *head, uint32_t *len)
{
    struct vring_used_elem elem;
    uint32_t id;

    if (!count_used_split(disk)) {
        return false;
    }
    dp_ram_read(disk->vm, used_entry(disk, disk->used_idx), &elem,
                  sizeof(elem));
    id = le32_to_cpu(elem.id);
    g_assert_cmpuint(id, <, disk->num);
    *head = id;
    *len = le32_to_cpu(elem.len);
    return true;
}

static void finish_split(DpDisk *disk, uint16_t head)
{
    disk->used_idx++;
    free_chain_split(disk, head);
}

static void set_irqs_split(DpDisk *disk, bool on)
{
    dp_ram_writew(disk->vm, disk->vq->avail,
                 on ? 0 : VRING_AVAIL_F_NO_INTERRUPT);
}

static void set_event_split(DpDisk *disk, int n)
{
    dp_ram_writew(disk->vm, used_event(disk), disk->used_idx + n);
}

/* --- packed ---------------------------------------------------------- */

static uint16_t advance(DpDisk *disk, uint16_t pos, int n)
{
    int lap = 2 * disk->num;

    return ((pos + n) % lap + lap) % lap;
}

/* How far it is from one position to the other */
static unsigned distance(DpDisk *disk, uint16_t from, uint16_t to)
{
    return advance(disk, to, -(int)from);
}

static uint64_t desc_at(DpDisk *disk, uint16_t pos)
{
    return disk->vq->desc + DESC_BYTES * (pos % disk->num);
}

static bool wrap_at(DpDisk *disk, uint16_t pos)
{
    return pos < disk->num;
}

/* The flags that make a descriptor at @pos available (2.8.1) */
static uint16_t avail_flags(DpDisk *disk, uint16_t pos)
{
    return wrap_at(disk, pos) ? F_AVAIL : F_USED;
}

static bool is_used(DpDisk *disk, uint16_t pos)
{
    uint16_t flags = dp_ram_readw(disk->vm,
                                 desc_at(disk, pos) + DESC_FLAGS);
    uint16_t used = wrap_at(disk, pos) ? F_AVAIL | F_USED : 0;

    return (flags & (F_AVAIL | F_USED)) == used;
}

/* The ID counts in the last descriptor only (2.8.6) */
static uint16_t chain_packed(DpDisk *disk, const DpSeg *seg, unsigned n)
{
    uint16_t id = take_desc(disk);

    g_assert_cmpuint(n, <=, disk->free_entries);
    disk->entries[id] = n;
    disk->free_entries -= n;
    for (unsigned i = 0; i < n; i++) {
        bool last = i == n - 1;
        uint16_t pos = advance(disk, disk->avail_idx, i);
        uint16_t flags = seg[i].flags | (last ? 0 : VRING_DESC_F_NEXT) |
                         avail_flags(disk, pos);
        struct vring_packed_desc desc = {
            .addr = cpu_to_le64(seg[i].addr),
            .len = cpu_to_le32(seg[i].len),
            .id = cpu_to_le16(last ? id : JUNK),
            .flags = cpu_to_le16(flags),
        };

        if (i == 0) {
            Hidden hidden = { pos % disk->num, flags };

            g_array_append_val(disk->hidden, hidden);
        }
        dp_ram_write(disk->vm, desc_at(disk, pos), &desc,
                       i ? DESC_BYTES : DESC_FLAGS);
    }
    return id;
}

static void avail_packed(DpDisk *disk, uint16_t id)
{
    disk->avail_idx = advance(disk, disk->avail_idx, disk->entries[id]);
}

static void expose_packed(DpDisk *disk)
{
    for (unsigned i = 0; i < disk->hidden->len; i++) {
        Hidden *hidden = &g_array_index(disk->hidden, Hidden, i);

        dp_ram_writew(disk->vm, disk->vq->desc + DESC_FLAGS +
                     DESC_BYTES * hidden->entry, hidden->flags);
    }
    g_array_set_size(disk->hidden, 0);
}

/* covers: PACK-46, PACK-47: what the device may publish */
static bool wants_kick_packed(DpDisk *disk, uint16_t old, uint16_t new)
{
    uint32_t area = dp_ram_readl(disk->vm, disk->vq->used);
    uint16_t off = area & 0x7fff;
    bool wrap = area & 0x8000;
    uint16_t event = wrap ? off : off + disk->num;

    switch (area >> 16) {
    case VRING_PACKED_EVENT_FLAG_ENABLE:
        return true;
    case VRING_PACKED_EVENT_FLAG_DISABLE:
        return false;
    case VRING_PACKED_EVENT_FLAG_DESC:
        g_assert_true(disk->vq->event);
        g_assert_cmpuint(off, <, disk->num);
        return distance(disk, old, event) < distance(disk, old, new);
    default:
        g_assert_not_reached();
    }
}

static bool read_used_packed(DpDisk *disk, uint16_t *id, uint32_t *len)
{
    struct vring_packed_desc desc;

    if (!is_used(disk, disk->used_idx)) {
        return false;
    }
    dp_ram_read(disk->vm, desc_at(disk, disk->used_idx), &desc,
                  sizeof(desc));
    *id = le16_to_cpu(desc.id);
    *len = le32_to_cpu(desc.len);
    g_assert_cmpuint(*id, <, disk->num);
    return true;
}

static void finish_packed(DpDisk *disk, uint16_t id)
{
    g_assert_cmpuint(disk->entries[id], >, 0);
    disk->used_idx = advance(disk, disk->used_idx, disk->entries[id]);
    disk->free_entries += disk->entries[id];
    disk->entries[id] = 0;
    g_array_append_val(disk->free_desc, id);
}

/*
 * Walks as the device did, and leaves everything as it is.  A test may have
 * used an ID that this driver does not know.
 */
static unsigned count_used_packed(DpDisk *disk)
{
    uint16_t pos = disk->used_idx;
    unsigned n = 0;

    while (n < disk->pending && is_used(disk, pos)) {
        uint16_t id = dp_ram_readw(disk->vm, desc_at(disk, pos) + 12);

        if (disk->in_order) {
            uint16_t head;

            do {
                g_assert_cmpuint(n, <, disk->order->len);
                head = g_array_index(disk->order, uint16_t, n++);
                pos = advance(disk, pos, disk->entries[head]);
            } while (head != id);
        } else {
            pos = advance(disk, pos, id < disk->num ? disk->entries[id] : 1);
            n++;
        }
    }
    return n;
}

static void set_driver_area(DpDisk *disk, uint16_t off_wrap, uint16_t flags)
{
    dp_ram_writew(disk->vm, disk->vq->avail, off_wrap);
    dp_ram_writew(disk->vm, disk->vq->avail + 2, flags);
}

static void set_irqs_packed(DpDisk *disk, bool on)
{
    set_driver_area(disk, 0, on ? VRING_PACKED_EVENT_FLAG_ENABLE
                                : VRING_PACKED_EVENT_FLAG_DISABLE);
}

static void set_event_packed(DpDisk *disk, int n, unsigned entries)
{
    uint16_t pos = advance(disk, disk->used_idx, n * (int)entries);
    uint16_t wrap = wrap_at(disk, pos) << VRING_PACKED_EVENT_F_WRAP_CTR;

    set_driver_area(disk, pos % disk->num | wrap,
                    VRING_PACKED_EVENT_FLAG_DESC);
}

/* --- both ------------------------------------------------------------ */

void dp_ring_init(DpDisk *disk)
{
    g_free(disk->by_head);
    g_free(disk->entries);
    disk->by_head = g_new0(DpReq *, disk->num);
    disk->entries = g_new0(uint16_t, disk->num);
    dp_ring_forget(disk);
}

void dp_ring_forget(DpDisk *disk)
{
    for (unsigned i = 0; i < disk->num; i++) {
        if (disk->by_head[i]) {
            disk->by_head[i]->in_flight = false;
            disk->by_head[i] = NULL;
        }
        disk->entries[i] = 0;
    }
    fill_free_desc(disk);
    g_array_set_size(disk->order, 0);
    g_array_set_size(disk->hidden, 0);
    disk->free_entries = disk->num;
    disk->batch = 0;
    disk->avail_idx = 0;
    disk->exposed_idx = 0;
    disk->used_idx = 0;
    disk->pending = 0;
}

void dp_ring_new(DpDisk *disk)
{
    disk->free_desc = g_array_new(false, false, sizeof(uint16_t));
    disk->order = g_array_new(false, false, sizeof(uint16_t));
    disk->hidden = g_array_new(false, false, sizeof(Hidden));
}

void dp_ring_free(DpDisk *disk)
{
    g_array_free(disk->free_desc, true);
    g_array_free(disk->order, true);
    g_array_free(disk->hidden, true);
    g_free(disk->by_head);
    g_free(disk->entries);
}

void dp_desc_fill(DpDisk *disk, struct vring_desc *desc, uint64_t addr,
                  uint32_t len, uint16_t flags, uint16_t next)
{
    *desc = (struct vring_desc) {
        .addr = cpu_to_le64(addr),
        .len = cpu_to_le32(len),
        .flags = cpu_to_le16(disk->packed ? next : flags),
        .next = cpu_to_le16(disk->packed ? flags : next),
    };
}

void dp_desc_write(DpDisk *disk, uint64_t table, unsigned i, uint64_t addr,
                   uint32_t len, uint16_t flags, uint16_t next)
{
    struct vring_desc desc;

    dp_desc_fill(disk, &desc, addr, len, flags, next);
    dp_ram_write(disk->vm, table + DESC_BYTES * i, &desc, sizeof(desc));
}

uint16_t dp_chain(DpDisk *disk, const DpSeg *seg, unsigned n)
{
    return disk->packed ? chain_packed(disk, seg, n)
                        : chain_split(disk, seg, n);
}

void dp_avail(DpDisk *disk, uint16_t head)
{
    if (disk->in_order) {
        g_array_append_val(disk->order, head);
    }
    if (disk->packed) {
        avail_packed(disk, head);
    } else {
        avail_split(disk, head);
    }
}

void dp_expose(DpDisk *disk)
{
    if (disk->packed) {
        expose_packed(disk);
    } else {
        expose_split(disk);
    }
}

void dp_kick_always(DpDisk *disk)
{
    disk->exposed_idx = disk->avail_idx;
    disk->kicks++;
    if (!disk->vm->kvm || !dp_kvm_kick(disk)) {
        disk->vdev->bus->virtqueue_kick(disk->vdev, disk->vq);
    }
}

static bool wants_kick(DpDisk *disk, uint16_t old, uint16_t new)
{
    return disk->packed ? wants_kick_packed(disk, old, new)
                        : wants_kick_split(disk, old, new);
}

void dp_kick(DpDisk *disk)
{
    uint16_t old = disk->exposed_idx;

    dp_expose(disk);
    disk->exposed_idx = disk->avail_idx;
    if (wants_kick(disk, old, disk->avail_idx)) {
        dp_kick_always(disk);
    }
}

bool dp_asks_for_kick(DpDisk *disk)
{
    uint16_t next = disk->packed ? advance(disk, disk->avail_idx, 1)
                                 : disk->avail_idx + 1;

    return wants_kick(disk, disk->avail_idx, next);
}

unsigned dp_count_used(DpDisk *disk)
{
    return disk->packed ? count_used_packed(disk) : count_used_split(disk);
}

static bool read_used(DpDisk *disk, uint16_t *head, uint32_t *len)
{
    return disk->packed ? read_used_packed(disk, head, len)
                        : read_used_split(disk, head, len);
}

/*
 * A used entry returns all buffers up to the one that it names (2.7.9, 2.8.8).
 * covers: VQ-7, PACK-55
 */
static void begin_batch(DpDisk *disk, uint16_t last, uint32_t len)
{
    for (unsigned i = 0; i < disk->order->len; i++) {
        if (g_array_index(disk->order, uint16_t, i) == last) {
            disk->batch = i + 1;
            disk->batch_len = len;
            return;
        }
    }
    g_error("buffer %u was used, which the device does not have", last);
}

static bool take_in_order(DpDisk *disk, uint16_t *head, uint32_t *len)
{
    if (!disk->batch) {
        if (!read_used(disk, head, len)) {
            return false;
        }
        begin_batch(disk, *head, *len);
        g_assert_true(disk->packed || disk->batch <= count_used_split(disk));
    }
    *head = g_array_index(disk->order, uint16_t, 0);
    g_array_remove_index(disk->order, 0);
    disk->batch--;
    *len = disk->batch ? UINT32_MAX : disk->batch_len;
    return true;
}

bool dp_take_used(DpDisk *disk, uint16_t *head, uint32_t *len)
{
    if (disk->in_order ? !take_in_order(disk, head, len)
                       : !read_used(disk, head, len)) {
        return false;
    }
    if (disk->packed) {
        finish_packed(disk, *head);
    } else {
        finish_split(disk, *head);
    }
    return true;
}

void dp_set_irqs(DpDisk *disk, bool on)
{
    if (disk->packed) {
        set_irqs_packed(disk, on);
    } else {
        set_irqs_split(disk, on);
    }
}

void dp_set_event(DpDisk *disk, int n, unsigned entries)
{
    if (disk->packed) {
        set_event_packed(disk, n, entries);
    } else {
        set_event_split(disk, n);
    }
}
