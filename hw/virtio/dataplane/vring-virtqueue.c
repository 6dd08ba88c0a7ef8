/*
 * The device side of one virtqueue: taken from and returned to QEMU
 *
 * Knows VirtIODevice and VirtQueue, and which kinds of queue a Vring can
 * serve.  No other file of the ring does.
 *
 * While a Vring is set up nothing may use its VirtQueue: only the Vring has the
 * current positions, at which others may look.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/atomic.h"
#include "qemu/main-loop.h"
#include "system/xen.h"
#include "hw/virtio/virtio.h"
#include "hw/virtio/dataplane/vring.h"

/* How often to look at a ring that does not stand still */
#define LOOK_TRIES 100

static void ring_watch_areas(const Vring *vring)
{
    vring_memory_watch(vring->mem, vring->config.desc, vring->desc.size);
    vring_memory_watch(vring->mem, vring->config.avail, vring->avail.size);
    vring_memory_watch(vring->mem, vring->config.used, vring->used.size);
}

static void ring_unwatch_areas(const Vring *vring)
{
    vring_memory_unwatch(vring->mem, vring->config.desc, vring->desc.size);
    vring_memory_unwatch(vring->mem, vring->config.avail, vring->avail.size);
    vring_memory_unwatch(vring->mem, vring->config.used, vring->used.size);
}

/*
 * With VIRTIO_F_IN_ORDER the VirtQueue knows the order of the elements in
 * flight, unless they were migrated: the migration stream does not contain it.
 */
static bool order_take(Vring *vring, const VirtQueueElement *used_elems)
{
    unsigned num = vring->config.num;
    unsigned ndescs;

    vring->order_head = vring->used_idx % num;
    for (unsigned slots = 0; slots < vring->inuse; slots += ndescs) {
        unsigned pos = (vring->order_head + slots) % num;
        const VirtQueueElement *elem = &used_elems[pos];

        ndescs = elem->ndescs;
        if (!ndescs || ndescs > vring->inuse - slots) {
            return false;
        }
        vring->order[pos] = (VringOrderEntry) {
            .id = elem->index,
            .ndescs = ndescs,
            .len = elem->len,
            .done = elem->in_order_filled,
        };
    }
    return true;
}

static void order_return(const Vring *vring, VirtQueueElement *used_elems)
{
    for (unsigned i = 0; i < vring->config.num; i++) {
        const VringOrderEntry *order = &vring->order[i];

        used_elems[i].index = order->id;
        used_elems[i].ndescs = order->ndescs;
        used_elems[i].len = order->len;
        used_elems[i].in_order_filled = order->done;
    }
}

/* A buggy driver may change the size of a queue in use. */
static bool state_fits(const Vring *vring, const VirtQueueRingState *state)
{
    unsigned num = vring->config.num;

    return state->inuse <= num &&
           (!vring->config.packed ||
            (state->last_avail_idx < num && state->used_idx < num));
}

static bool state_take(Vring *vring, const VirtQueueRingState *state,
                       Error **errp)
{
    vring->last_avail_idx = state->last_avail_idx;
    vring->shadow_avail_idx = state->last_avail_idx;
    vring->avail_wrap = state->last_avail_wrap_counter;
    vring->used_idx = state->used_idx;
    vring->used_wrap = state->used_wrap_counter;
    vring->signalled_used = state->signalled_used;
    vring->signalled_used_valid = state->signalled_used_valid;
    vring->inuse = state->inuse;
    /* In a packed ring signalled_used is valid for one lap only. */
    vring->unsignalled_slots = state->used_idx - state->signalled_used;

    if (vring->order && !order_take(vring, state->used_elems)) {
        error_setg(errp, "the order of requests in flight is not known "
                   "(VIRTIO_F_IN_ORDER)");
        return false;
    }
    return true;
}

bool vring_setup(Vring *vring, VirtIODevice *vdev, int n, VringMemory *mem,
                 Error **errp)
{
    /* Only negotiated features change what the device does (2.2) */
    VringConfig config = {
        .num = virtio_queue_get_num(vdev, n),
        .desc = virtio_queue_get_desc_addr(vdev, n),
        .avail = virtio_queue_get_avail_addr(vdev, n),
        .used = virtio_queue_get_used_addr(vdev, n),
        .packed = virtio_vdev_has_feature(vdev, VIRTIO_F_RING_PACKED),
        .in_order = virtio_vdev_has_feature(vdev, VIRTIO_F_IN_ORDER),
        .event_idx = virtio_vdev_has_feature(vdev, VIRTIO_RING_F_EVENT_IDX),
        .indirect = virtio_vdev_has_feature(vdev, VIRTIO_RING_F_INDIRECT_DESC),
        .notify_on_empty = virtio_vdev_has_feature(vdev,
                                                   VIRTIO_F_NOTIFY_ON_EMPTY),
        .big_endian = virtio_is_big_endian(vdev),
        .bounce = true,
    };
    VirtQueueRingState state;

    assert(bql_locked());
    if (xen_enabled()) {
        /* Xen maps guest memory piecemeal: host pointers do not stay valid. */
        error_setg(errp, "rings in a Xen guest's memory are not supported");
        return false;
    }
    if (!vring_open(vring, &config, mem, errp)) {
        /* QEMU's own path cannot use a ring outside of RAM either. */
        if (vring->lost) {
            vdev->broken = true;
        }
        return false;
    }
    virtio_queue_get_ring_state(virtio_get_queue(vdev, n), &state);
    if (!state_fits(vring, &state)) {
        error_setg(errp, "the size of the virtqueue was changed in use");
        vdev->broken = true;
        vring_close(vring);
        return false;
    }
    if (!state_take(vring, &state, errp)) {
        vring_close(vring);
        return false;
    }
    ring_watch_areas(vring);
    return true;
}

/* What tells where a Vring is */
typedef struct Positions {
    uint16_t last_avail_idx;
    uint16_t shadow_avail_idx;
    uint16_t used_idx;
    uint16_t signalled_used;
    bool avail_wrap;
    bool used_wrap;
    bool signalled_used_valid;
    unsigned inuse;
    unsigned unpublished;
    unsigned unpublished_slots;
    unsigned unsignalled_slots;
} Positions;

/*
 * The owner may write meanwhile.  Its stores are plain, because atomic ones
 * would take more instructions for each element; each is of one aligned field,
 * which no compiler takes apart.
 */
static Positions positions_read(const Vring *vring)
{
    return (Positions) {
        .last_avail_idx = qatomic_read(&vring->last_avail_idx),
        .shadow_avail_idx = qatomic_read(&vring->shadow_avail_idx),
        .used_idx = qatomic_read(&vring->used_idx),
        .signalled_used = qatomic_read(&vring->signalled_used),
        .avail_wrap = qatomic_read(&vring->avail_wrap),
        .used_wrap = qatomic_read(&vring->used_wrap),
        .signalled_used_valid = qatomic_read(&vring->signalled_used_valid),
        .inuse = qatomic_read(&vring->inuse),
        .unpublished = qatomic_read(&vring->unpublished),
        .unpublished_slots = qatomic_read(&vring->unpublished_slots),
        .unsignalled_slots = qatomic_read(&vring->unsignalled_slots),
    };
}

static bool positions_equal(const Positions *a, const Positions *b)
{
    return a->last_avail_idx == b->last_avail_idx &&
           a->shadow_avail_idx == b->shadow_avail_idx &&
           a->used_idx == b->used_idx &&
           a->signalled_used == b->signalled_used &&
           a->avail_wrap == b->avail_wrap &&
           a->used_wrap == b->used_wrap &&
           a->signalled_used_valid == b->signalled_used_valid &&
           a->inuse == b->inuse &&
           a->unpublished == b->unpublished &&
           a->unpublished_slots == b->unpublished_slots &&
           a->unsignalled_slots == b->unsignalled_slots;
}

/*
 * Positions go forward, but for an element that is put back at a stop.  So what
 * was read twice the same was so in between.  Unlike a sequence count this
 * costs the owner nothing, and works if the owner has stopped in the middle of
 * a change.  On a host that reorders stores they may be those of different
 * moments while the owner runs.
 */
static Positions positions_read_together(const Vring *vring)
{
    Positions next = positions_read(vring), last;
    unsigned tries = LOOK_TRIES;

    do {
        last = next;
        /* Finish to read before reading again. */
        smp_rmb();
        next = positions_read(vring);
    } while (!positions_equal(&last, &next) && --tries);
    return next;
}

/* What was pushed and not published is still in use, as the driver sees it. */
static void state_hide_unpublished(const Vring *vring, const Positions *pos,
                                   VirtQueueRingState *state)
{
    unsigned slots = vring->config.packed ? pos->unpublished_slots
                                          : pos->unpublished;

    state->inuse += slots;
    if (vring->config.packed && slots > state->used_idx) {
        state->used_idx += vring->config.num;
        state->used_wrap_counter = !state->used_wrap_counter;
    }
    state->used_idx -= slots;
}

void vring_look(const Vring *vring, VirtQueueRingState *state)
{
    Positions pos = positions_read_together(vring);

    *state = (VirtQueueRingState) {
        .last_avail_idx = pos.last_avail_idx,
        .last_avail_wrap_counter = pos.avail_wrap,
        .shadow_avail_idx = vring->config.packed ? pos.last_avail_idx
                                                 : pos.shadow_avail_idx,
        .used_idx = pos.used_idx,
        .used_wrap_counter = pos.used_wrap,
        .signalled_used = pos.signalled_used,
        .signalled_used_valid = pos.signalled_used_valid,
        .inuse = pos.inuse,
    };
    state_hide_unpublished(vring, &pos, state);
    if (vring->config.packed) {
        /* The position of the last check, valid if it is in this lap */
        state->signalled_used = state->used_idx - pos.unsignalled_slots;
        state->signalled_used_valid = pos.signalled_used_valid &&
            pos.unsignalled_slots <= state->used_idx;
    }
}

void vring_teardown(Vring *vring, VirtIODevice *vdev, int n)
{
    VirtQueue *vq = virtio_get_queue(vdev, n);
    VirtQueueRingState state;

    assert(bql_locked());
    if (vring->order) {
        virtio_queue_get_ring_state(vq, &state);
        order_return(vring, state.used_elems);
    }
    vring_look(vring, &state);
    virtio_queue_set_ring_state(vq, &state);
    ring_unwatch_areas(vring);
    vring_close(vring);
}
