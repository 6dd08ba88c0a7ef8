/*
 * The device side of one virtqueue: taken from and returned to QEMU
 *
 * Knows VirtIODevice and VirtQueue, and which kinds of queue a Vring can
 * serve.  The only file of the ring that does.
 *
 * While a Vring is set up its VirtQueue is not to be used: positions live in
 * the Vring, and there is no second copy.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "hw/virtio/virtio.h"
#include "hw/virtio/dataplane/vring.h"

/* Only what the driver negotiated counts, not what was offered (FEAT-10) */
static bool vring_supports(VirtIODevice *vdev, Error **errp)
{
    static const struct {
        unsigned bit;
        const char *name;
    } unsupported[] = {
        { VIRTIO_F_RING_PACKED, "packed virtqueues" },
        { VIRTIO_F_IN_ORDER, "VIRTIO_F_IN_ORDER" },
    };

    for (int i = 0; i < ARRAY_SIZE(unsupported); i++) {
        if (virtio_vdev_has_feature(vdev, unsupported[i].bit)) {
            error_setg(errp, "the driver has negotiated %s",
                       unsupported[i].name);
            return false;
        }
    }
    return true;
}

static bool vring_area_is_in_ram(VringMemory *mem, hwaddr addr, hwaddr size,
                                 bool is_write)
{
    while (size) {
        hwaddr len = size;
        void *host = vring_memory_map(mem, addr, &len, is_write);

        if (!host) {
            return false;
        }
        vring_memory_unmap(mem, host, len, false);
        addr += len;
        size -= len;
    }
    return true;
}

/*
 * An area that the table does not have may be translated by an IOMMU or cross
 * regions, which QEMU's own path can cope with.  If there is no RAM at all it
 * is the driver's mistake (ROBS-22).
 */
static void vring_check_areas(VirtIODevice *vdev, int n, VringMemory *mem,
                              const VringConfig *config)
{
    if (!vring_area_is_in_ram(mem, config->desc,
                              virtio_queue_get_desc_size(vdev, n), false) ||
        !vring_area_is_in_ram(mem, config->avail,
                              virtio_queue_get_avail_size(vdev, n), false) ||
        !vring_area_is_in_ram(mem, config->used,
                              virtio_queue_get_used_size(vdev, n), true)) {
        virtio_error(vdev, "%s: queue %d: the virtqueue's rings are not in "
                     "RAM; the device stops until the guest resets it",
                     vdev->name, n);
    }
}

bool vring_setup(Vring *vring, VirtIODevice *vdev, int n, VringMemory *mem,
                 Error **errp)
{
    VringConfig config = {
        .num = virtio_queue_get_num(vdev, n),
        .desc = virtio_queue_get_desc_addr(vdev, n),
        .avail = virtio_queue_get_avail_addr(vdev, n),
        .used = virtio_queue_get_used_addr(vdev, n),
        .event_idx = virtio_vdev_has_feature(vdev, VIRTIO_RING_F_EVENT_IDX),
        .indirect = virtio_vdev_has_feature(vdev, VIRTIO_RING_F_INDIRECT_DESC),
        .notify_on_empty = virtio_vdev_has_feature(vdev,
                                                   VIRTIO_F_NOTIFY_ON_EMPTY),
        .big_endian = virtio_is_big_endian(vdev),
    };
    VirtQueueRingState state;

    if (!vring_supports(vdev, errp)) {
        return false;
    }
    if (!vring_open(vring, &config, mem, errp)) {
        vring_check_areas(vdev, n, mem, &config);
        return false;
    }

    virtio_queue_get_ring_state(virtio_get_queue(vdev, n), &state);
    vring->last_avail_idx = state.last_avail_idx;
    vring->shadow_avail_idx = state.last_avail_idx;
    vring->used_idx = state.used_idx;
    vring->published_idx = state.used_idx;
    vring->signalled_used = state.signalled_used;
    vring->signalled_used_valid = state.signalled_used_valid;
    vring->inuse = state.inuse;
    return true;
}

void vring_teardown(Vring *vring, VirtIODevice *vdev, int n)
{
    VirtQueueRingState state = {
        .last_avail_idx = vring->last_avail_idx,
        .used_idx = vring->used_idx,
        .signalled_used = vring->signalled_used,
        .signalled_used_valid = vring->signalled_used_valid,
        .inuse = vring->inuse,
    };

    virtio_queue_set_ring_state(virtio_get_queue(vdev, n), &state);
    vring_close(vring);
}
