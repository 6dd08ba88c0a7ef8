/*
 * The device side of one virtqueue: taken from and returned to QEMU
 *
 * Knows VirtIODevice and VirtQueue, and which kinds of queue a Vring can
 * serve.  No other file of the ring does.
 *
 * While a Vring is set up nothing may use its VirtQueue: only the Vring has the
 * current positions.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "system/xen.h"
#include "hw/virtio/virtio.h"
#include "hw/virtio/dataplane/vring.h"

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

/* The position of the last check, valid if it is in this lap of the ring */
static void state_return_signalled(const Vring *vring,
                                   VirtQueueRingState *state)
{
    if (vring->config.packed) {
        state->signalled_used = vring->used_idx - vring->unsignalled_slots;
        state->signalled_used_valid = vring->signalled_used_valid &&
            vring->unsignalled_slots <= vring->used_idx;
    } else {
        state->signalled_used = vring->signalled_used;
        state->signalled_used_valid = vring->signalled_used_valid;
    }
}

static void state_return(const Vring *vring, VirtQueueRingState *state)
{
    if (vring->order) {
        order_return(vring, state->used_elems);
    }
    state->last_avail_idx = vring->last_avail_idx;
    state->last_avail_wrap_counter = vring->avail_wrap;
    state->used_idx = vring->used_idx;
    state->used_wrap_counter = vring->used_wrap;
    state->inuse = vring->inuse;
    state_return_signalled(vring, state);
}

void vring_teardown(Vring *vring, VirtIODevice *vdev, int n)
{
    VirtQueue *vq = virtio_get_queue(vdev, n);
    VirtQueueRingState state;

    assert(bql_locked());
    virtio_queue_get_ring_state(vq, &state);
    state_return(vring, &state);
    virtio_queue_set_ring_state(vq, &state);
    ring_unwatch_areas(vring);
    vring_close(vring);
}
