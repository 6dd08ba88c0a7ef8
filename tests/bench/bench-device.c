/*
 * A virtio-blk device as the benchmark's driver sees it: what all have
 *
 * Knows features, queues and threads as numbers; how they are reached is the
 * implementations' business.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "bench-device.h"

#include <unistd.h>

bool bench_device_start(BenchDevice *dev, BenchProbeFunc *probe, void *opaque,
                        GError **errp)
{
    dev->probe = probe;
    dev->probe_opaque = opaque;
    return dev->ops->start(dev, errp);
}

bool bench_device_quiet(BenchDevice *dev, GError **errp)
{
    return !dev->ops->quiet || dev->ops->quiet(dev, errp);
}

bool bench_device_resume(BenchDevice *dev, GError **errp)
{
    return !dev->ops->resume || dev->ops->resume(dev, errp);
}

bool bench_device_alive(BenchDevice *dev, GError **errp)
{
    return dev->ops->alive(dev, errp);
}

void bench_device_free(BenchDevice *dev)
{
    if (dev) {
        dev->ops->free(dev);
    }
}

static void clear_thread(gpointer data)
{
    BenchThread *thread = data;

    g_free(thread->name);
}

void bench_device_init(BenchDevice *dev, const BenchDeviceOps *ops,
                       BenchMemory *mem)
{
    dev->ops = ops;
    dev->mem = mem;
    dev->num_disks = 1;
    dev->threads = g_array_new(FALSE, FALSE, sizeof(BenchThread));
    g_array_set_clear_func(dev->threads, clear_thread);
}

static void close_fd(int fd)
{
    if (fd >= 0) {
        close(fd);
    }
}

void bench_device_cleanup(BenchDevice *dev)
{
    for (unsigned i = 0; i < dev->num_queues; i++) {
        close_fd(dev->queues[i].kick_fd);
        close_fd(dev->queues[i].call_fd);
    }
    g_free(dev->queues);
    g_array_free(dev->threads, TRUE);
}

static bool has_feature(uint64_t features, unsigned bit)
{
    return features >> bit & 1;
}

bool bench_device_negotiate(BenchDevice *dev, uint64_t offered,
                            const BenchWish *wish, GError **errp)
{
    const struct {
        unsigned bit;
        bool wanted;
        const char *name;
    } wishes[] = {
        { BENCH_F_VERSION_1, true, "VIRTIO_F_VERSION_1" },
        { BENCH_F_RING_PACKED, wish->packed, "packed rings" },
        { BENCH_F_IN_ORDER, wish->in_order, "VIRTIO_F_IN_ORDER" },
        { BENCH_F_INDIRECT_DESC, wish->indirect, "indirect descriptors" },
        { BENCH_F_EVENT_IDX, wish->event_idx, "EVENT_IDX" },
        { BENCH_F_MQ, wish->queues > 1, "several queues" },
    };

    dev->read_only = has_feature(offered, BENCH_F_RO);
    dev->features = offered & (uint64_t)wish->flush << BENCH_F_FLUSH;
    for (unsigned i = 0; i < G_N_ELEMENTS(wishes); i++) {
        if (!wishes[i].wanted) {
            continue;
        }
        if (!has_feature(offered, wishes[i].bit)) {
            g_set_error(errp, BENCH_ERROR, 0,
                        "the device does not offer %s: switch them on there, "
                        "or do without them here", wishes[i].name);
            return false;
        }
        dev->features |= 1ull << wishes[i].bit;
    }
    return true;
}

bool bench_device_set_queues(BenchDevice *dev, const BenchWish *wish,
                             unsigned offered, unsigned size, GError **errp)
{
    if (wish->queues > offered) {
        g_set_error(errp, BENCH_ERROR, 0,
                    "%u queues are wanted, the device has %u: make it with "
                    "more", wish->queues, offered);
        return false;
    }
    if (wish->queue_size && wish->queue_size < size) {
        size = wish->queue_size;
    }
    dev->num_disks = MAX(wish->disks, 1);
    dev->num_queues = wish->queues * dev->num_disks;
    dev->queues = g_new0(BenchQueue, dev->num_queues);
    for (unsigned i = 0; i < dev->num_queues; i++) {
        dev->queues[i].size = size;
        dev->queues[i].kick_fd = -1;
        dev->queues[i].call_fd = -1;
    }
    return true;
}

void bench_device_add_thread(BenchDevice *dev, const char *name, pid_t tid)
{
    BenchThread thread = { .name = g_strdup(name), .tid = tid };

    g_array_append_val(dev->threads, thread);
}
