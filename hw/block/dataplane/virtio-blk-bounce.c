/*
 * Requests of a virtio-blk data plane with buffers that are not in RAM
 *
 * Knows how MMIO and RAM devices are accessed for the disk: a copy of such a
 * buffer is what the block layer reads or writes.  Does not know rings and does
 * not parse requests.
 *
 * The accesses need the BQL, and whoever stops the plane waits for its IOThread
 * with the BQL held.  So the IOThread never takes it: the main loop makes all
 * accesses in a bottom half, and a request goes there and back:
 *
 *   data_plane_bounce_map()     a request is popped unmapped: the queue stalls
 *   bounce_bh()                   maps it: reads what is device-readable
 *   ops->mapped()               the queue goes on with it
 *   data_plane_bounce_unmap()   the request is completed
 *   bounce_bh()                   writes what is device-writable
 *   ops->unmapped()             the queue shows it to the driver
 *
 * Neither way is waited for by a drain, and a stop does not make accesses.  It
 * puts the stalled request back into the ring, and parks what is completed as
 * if by the error policy: the next start does that again.
 *
 * An access may have any effect, such as to stop, reset or unplug this very
 * device.  Therefore the bottom half runs only at the top of the main loop, and
 * looks at nothing of the device after an access that has stopped the queue.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "block/aio.h"
#include "system/dma.h"
#include "virtio-blk-bounce.h"
#include "trace.h"

/*
 * When to look for room again, if others have it.  A map client of the address
 * space would be called as long as there is any room, be it too little.
 */
#define RETRY_MS 1

/* A completed request while it is kept for the main loop */
struct DataPlaneBounced {
    VirtIOBlockReq *req;
    VringVectors *vecs;
    void (*release)(VirtIOBlockReq *req);   /* the request's own */
    unsigned char status;
    QSIMPLEQ_ENTRY(DataPlaneBounced) next;
};

/*
 * What the bottom half is at.  The vectors are copies: those of the request
 * are gone when the queue has stopped meanwhile.
 */
struct DataPlaneAccess {
    AddressSpace *as;
    unsigned num;
    unsigned out_num;           /* device-readable ones among them */
    struct iovec *iov;
    hwaddr *addr;
    DataPlaneBounced *bounced;  /* what is being unmapped, or NULL */
    bool stopped;               /* the queue, by this access */
};

/* Vectors */

static void access_init(DataPlaneAccess *access, const VirtQueueElement *elem)
{
    unsigned out_num = elem->out_num, num = out_num + elem->in_num;

    access->num = num;
    access->out_num = out_num;
    access->iov = g_new(struct iovec, num);
    access->addr = g_new(hwaddr, num);
    memcpy(access->iov, elem->out_sg, out_num * sizeof(*elem->out_sg));
    memcpy(access->addr, elem->out_addr, out_num * sizeof(*elem->out_addr));
    memcpy(access->iov + out_num, elem->in_sg,
           elem->in_num * sizeof(*elem->in_sg));
    memcpy(access->addr + out_num, elem->in_addr,
           elem->in_num * sizeof(*elem->in_addr));
}

static void access_cleanup(DataPlaneAccess *access)
{
    g_clear_pointer(&access->iov, g_free);
    g_clear_pointer(&access->addr, g_free);
}

static DMADirection access_direction(const DataPlaneAccess *access, unsigned i)
{
    return i < access->out_num ? DMA_DIRECTION_TO_DEVICE
                               : DMA_DIRECTION_FROM_DEVICE;
}

static bool is_copy(const struct iovec *iov)
{
    RCU_READ_LOCK_GUARD();
    ram_addr_t offset;

    return !memory_region_from_host(iov->iov_base, &offset);
}

/*
 * The first @num vectors; without @used no copy is written back.  A queue that
 * has stopped may have been reset: its driver wants no more data.
 */
static void access_unmap(DataPlaneAccess *access, unsigned num, bool used)
{
    for (unsigned i = 0; i < num; i++) {
        struct iovec *iov = &access->iov[i];
        bool drop = is_copy(iov) && (!used || access->stopped);

        dma_memory_unmap(access->as, iov->iov_base, iov->iov_len,
                         access_direction(access, i), drop ? 0 : iov->iov_len);
    }
}

/* Is a vector in RAM that dma_memory_map() maps without a copy? */
static bool is_ram(DataPlaneAccess *access, unsigned i)
{
    RCU_READ_LOCK_GUARD();
    bool is_write = i >= access->out_num;
    hwaddr len = access->iov[i].iov_len, offset;
    MemoryRegion *mr = address_space_translate(access->as, access->addr[i],
                                               &offset, &len, is_write,
                                               MEMTXATTRS_UNSPECIFIED);

    return memory_access_is_direct(mr, is_write, MEMTXATTRS_UNSPECIFIED);
}

/*
 * Before anything is accessed, as a register may mind to be read twice.
 *
 * Returns: 0; -EAGAIN if others take the room for copies; or -EFAULT if there
 * is nothing at an address, or never room enough
 */
static int access_check(DataPlaneAccess *access)
{
    AddressSpace *as = access->as;
    uint64_t copies = 0;

    for (unsigned i = 0; i < access->num; i++) {
        hwaddr len = access->iov[i].iov_len;

        if (is_ram(access, i)) {
            continue;
        }
        copies += len;
        /* What dma_memory_map() copies from nowhere, or to nowhere, is lost. */
        if (copies > as->max_bounce_buffer_size ||
            !address_space_access_valid(as, access->addr[i], len,
                                        i >= access->out_num,
                                        MEMTXATTRS_UNSPECIFIED)) {
            return -EFAULT;
        }
    }
    return qatomic_read(&as->bounce_buffer_size) + copies >
           as->max_bounce_buffer_size ? -EAGAIN : 0;
}

/* Returns 0, or -EFAULT or -EAGAIN if what access_check() saw has changed */
static int access_map_vector(DataPlaneAccess *access, unsigned i)
{
    struct iovec *iov = &access->iov[i];
    hwaddr len = iov->iov_len;
    bool copy;

    iov->iov_base = dma_memory_map(access->as, access->addr[i], &len,
                                   access_direction(access, i),
                                   MEMTXATTRS_UNSPECIFIED);
    if (!iov->iov_base) {
        return -EAGAIN;
    }
    if (len == iov->iov_len) {
        return 0;
    }
    copy = is_copy(iov);
    dma_memory_unmap(access->as, iov->iov_base, len,
                     access_direction(access, i), 0);
    return copy ? -EAGAIN : -EFAULT;
}

static int access_map(DataPlaneAccess *access)
{
    int ret = access_check(access);

    for (unsigned i = 0; ret == 0 && i < access->num; i++) {
        ret = access_map_vector(access, i);
        if (ret == 0 && access->stopped) {
            i++;
            ret = -EFAULT;
        }
        if (ret < 0) {
            access_unmap(access, i, false);
        }
    }
    return ret;
}

/* The main loop's part */

/* Context: main loop */
static void retry(void *opaque)
{
    DataPlaneBounce *b = opaque;

    qemu_bh_schedule(b->bh);
}

static void map_stalled(DataPlaneBounce *b, DataPlaneAccess *access)
{
    int ret;

    if (data_plane_bounce_stall(b) != DATA_PLANE_STALL_WAITING ||
        virtio_device_disabled(b->vdev)) {
        return;
    }
    access_init(access, &b->stalled->elem);
    ret = access_map(access);
    if (access->stopped) {
        /* The queue has put the request back. */
    } else if (ret == -EAGAIN) {
        timer_mod(b->retry_timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                                  RETRY_MS);
    } else {
        trace_virtio_blk_data_plane_bounce_map(b->vdev, b->index, access->num,
                                               ret);
        if (ret == 0) {
            vring_set_bounced(&b->stalled->elem, b->stalled_vecs, access->iov);
            qatomic_store_release(&b->stall, DATA_PLANE_STALL_MAPPED);
        }
        b->ops->mapped(b, ret);
    }
    access_cleanup(access);
}

static void hand_over(DataPlaneBounce *b, DataPlaneBounced *bounced)
{
    if (bounced->vecs) {
        vring_set_unmapped(bounced->vecs);
    }
    WITH_QEMU_LOCK_GUARD(&b->lock) {
        QSIMPLEQ_INSERT_TAIL(&b->unmapped, bounced, next);
    }
}

/* The first of one of the two lists, or NULL */
static DataPlaneBounced *take_first(DataPlaneBounce *b,
                                    DataPlaneBouncedList *list)
{
    DataPlaneBounced *bounced;

    QEMU_LOCK_GUARD(&b->lock);
    bounced = QSIMPLEQ_FIRST(list);
    if (bounced) {
        QSIMPLEQ_REMOVE_HEAD(list, next);
    }
    return bounced;
}

static void unmap_completed(DataPlaneBounce *b, DataPlaneAccess *access)
{
    access->bounced = take_first(b, &b->completed);
    if (!access->bounced) {
        return;
    }
    access_init(access, &access->bounced->req->elem);
    trace_virtio_blk_data_plane_bounce_unmap(b->vdev, b->index, access->num);
    /* A device that is broken, or no bus master, does not write. */
    access_unmap(access, access->num, !virtio_device_disabled(b->vdev));
    if (!access->stopped) {
        hand_over(b, access->bounced);
        access->bounced = NULL;
        qemu_bh_schedule(b->unmapped_bh);
        /* One at a time, so that a busy queue leaves the main loop alone */
        qemu_bh_schedule(b->bh);
    }
    access_cleanup(access);
}

/* Context: BH in the main loop */
static void unref_owner(void *opaque)
{
    object_unref(OBJECT(opaque));
}

/* Context: BH at the top of the main loop */
static void bounce_bh(void *opaque)
{
    DataPlaneBounce *b = opaque;
    DeviceState *owner = qdev_get_parent_bus(DEVICE(b->vdev))->parent;
    DataPlaneAccess access = { .as = b->vdev->dma_as };

    if (b->access) {
        return;
    }
    object_ref(OBJECT(owner));
    b->access = &access;
    unmap_completed(b, &access);
    if (!access.stopped) {
        map_stalled(b, &access);
    }
    if (!access.stopped) {
        b->access = NULL;
    }
    /* The BH's guard against reentrance is a part of the owner. */
    aio_bh_schedule_oneshot(qemu_get_aio_context(), unref_owner, owner);
}

/* The queue's part */

/* VirtIOBlockReq.release of requests that are kept */
static void keep_request(VirtIOBlockReq *req)
{
}

/* The request can be completed, parked or given up, and released then. */
static VirtIOBlockReq *bounced_free(DataPlaneBounced *bounced)
{
    VirtIOBlockReq *req = bounced->req;

    req->release = bounced->release;
    g_free(bounced);
    return req;
}

/* Context: BH in the queue's AioContext */
static void unmapped_bh(void *opaque)
{
    DataPlaneBounce *b = opaque;
    DataPlaneBounced *bounced;

    while ((bounced = take_first(b, &b->unmapped))) {
        unsigned char status = bounced->status;

        b->ops->unmapped(b, bounced_free(bounced), status);
    }
}

void data_plane_bounce_map(DataPlaneBounce *b, VirtIOBlockReq *req,
                           VringVectors *vecs)
{
    IO_CODE();
    assert(b->stall == DATA_PLANE_STALL_NONE);
    b->stalled = req;
    b->stalled_vecs = vecs;
    qatomic_store_release(&b->stall, DATA_PLANE_STALL_WAITING);
    qemu_bh_schedule(b->bh);
}

VirtIOBlockReq *data_plane_bounce_take(DataPlaneBounce *b)
{
    IO_OR_GS_CODE();
    qatomic_set(&b->stall, DATA_PLANE_STALL_NONE);
    return g_steal_pointer(&b->stalled);
}

void data_plane_bounce_unmap(DataPlaneBounce *b, VirtIOBlockReq *req,
                             VringVectors *vecs, unsigned char status)
{
    DataPlaneBounced *bounced = g_new(DataPlaneBounced, 1);

    IO_CODE();
    bounced->req = req;
    bounced->vecs = vecs;
    bounced->release = req->release;
    bounced->status = status;
    req->release = keep_request;
    WITH_QEMU_LOCK_GUARD(&b->lock) {
        QSIMPLEQ_INSERT_TAIL(&b->completed, bounced, next);
    }
    qemu_bh_schedule(b->bh);
}

/* Life */

void data_plane_bounce_init(DataPlaneBounce *b, const DataPlaneBounceOps *ops,
                            VirtIODevice *vdev, unsigned index)
{
    GLOBAL_STATE_CODE();
    b->ops = ops;
    b->vdev = vdev;
    b->index = index;
    qemu_mutex_init(&b->lock);
    QSIMPLEQ_INIT(&b->completed);
    QSIMPLEQ_INIT(&b->unmapped);
}

void data_plane_bounce_cleanup(DataPlaneBounce *b)
{
    GLOBAL_STATE_CODE();
    assert(b->stall == DATA_PLANE_STALL_NONE);
    assert(QSIMPLEQ_EMPTY(&b->completed) && QSIMPLEQ_EMPTY(&b->unmapped));
    qemu_mutex_destroy(&b->lock);
}

void data_plane_bounce_start(DataPlaneBounce *b, AioContext *ctx)
{
    DeviceState *owner = qdev_get_parent_bus(DEVICE(b->vdev))->parent;

    GLOBAL_STATE_CODE();
    /* Not polled by those who wait for something in the main loop */
    b->bh = aio_bh_new_guarded(iohandler_get_aio_context(), bounce_bh, b,
                               &owner->mem_reentrancy_guard);
    b->retry_timer = timer_new_ms(QEMU_CLOCK_REALTIME, retry, b);
    b->unmapped_bh = aio_bh_new(ctx, unmapped_bh, b);
}

void data_plane_bounce_stop(DataPlaneBounce *b)
{
    DataPlaneAccess *access = g_steal_pointer(&b->access);

    GLOBAL_STATE_CODE();
    g_clear_pointer(&b->retry_timer, timer_free);
    g_clear_pointer(&b->bh, qemu_bh_delete);
    if (access) {
        access->stopped = true;
        if (access->bounced) {
            hand_over(b, access->bounced);
        }
    }
}

void data_plane_bounce_finish(DataPlaneBounce *b)
{
    IO_CODE();
    g_clear_pointer(&b->unmapped_bh, qemu_bh_delete);
    unmapped_bh(b);
}

VirtIOBlockReq *data_plane_bounce_cancel(DataPlaneBounce *b)
{
    DataPlaneBounced *bounced = take_first(b, &b->completed);

    GLOBAL_STATE_CODE();
    return bounced ? bounced_free(bounced) : NULL;
}
