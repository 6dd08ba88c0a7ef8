/*
 * Requests of a virtio-blk data plane with buffers that are not in RAM
 *
 * Knows how MMIO and RAM devices are accessed for the disk: the block layer
 * reads or writes a copy of such a buffer.  Does not know rings and does not
 * parse requests.
 *
 * The accesses need the BQL, but stopping the plane waits for the IOThread with
 * the BQL held.  So the IOThread never takes the BQL: the main loop makes all
 * accesses in a bottom half, and a request goes there and back:
 *
 *   data_plane_bounce_map()     a request is popped unmapped: the queue stalls
 *   bounce_bh()                   maps it: reads what is device-readable
 *   ops->mapped()               the queue goes on with it
 *   data_plane_bounce_unmap()   the request is completed
 *   bounce_bh()                   writes what is device-writable
 *   ops->unmapped()             the queue shows it to the driver
 *
 * A drain does not wait for these accesses, and a stop does not make them.  A
 * stop puts the stalled request back into the ring, and parks completed
 * requests like the error policy does, so that the next start runs them again.
 *
 * An access may have any effect: it may even stop, reset or unplug this device.
 * Therefore the bottom half runs only at the top of the main loop, and does not
 * touch the device after an access that has stopped the queue.
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
 * How often to retry when other devices use the room for copies.  A map client
 * of the address space would be called whenever there is any room, even too
 * little.
 */
#define RETRY_MS 1

/* A completed request that the main loop has to unmap */
struct DataPlaneBounced {
    VirtIOBlockReq *req;
    VringVectors *vecs;
    const VirtIOBlockReqOps *ops;   /* the request's own */
    unsigned char status;
    QSIMPLEQ_ENTRY(DataPlaneBounced) next;
};

/*
 * The access that the bottom half is making.  The vectors are copies: those of
 * the request are gone if the queue stops meanwhile.
 */
struct DataPlaneAccess {
    AddressSpace *as;
    unsigned num;
    unsigned out_num;           /* device-readable ones among them */
    struct iovec *iov;
    hwaddr *addr;
    DataPlaneBounced *bounced;  /* the request being unmapped, or NULL */
    bool stopped;               /* this access has stopped the queue */
};

static VirtIODevice *bounce_vdev(const DataPlaneBounce *b)
{
    return &b->s->parent_obj;
}

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

static bool vector_is_copy(const struct iovec *iov)
{
    RCU_READ_LOCK_GUARD();
    ram_addr_t offset;

    return !memory_region_from_host(iov->iov_base, &offset);
}

/*
 * Unmaps the first @num vectors; without @used writes no copy back.  A queue
 * that has stopped may have been reset, so its driver expects no more data.
 */
static void access_unmap(DataPlaneAccess *access, unsigned num, bool used)
{
    for (unsigned i = 0; i < num; i++) {
        struct iovec *iov = &access->iov[i];
        bool drop = vector_is_copy(iov) && (!used || access->stopped);

        dma_memory_unmap(access->as, iov->iov_base, iov->iov_len,
                         access_direction(access, i), drop ? 0 : iov->iov_len);
    }
}

/* Is a vector in RAM, so that dma_memory_map() makes no copy? */
static bool access_is_ram(DataPlaneAccess *access, unsigned i)
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
 * Checks all vectors before the first access, because reading a register twice
 * may have side effects.
 *
 * Returns: 0; -EAGAIN if there is no room for copies now; or -EFAULT if there
 * is nothing at an address, or if there can never be enough room
 */
static int access_check(DataPlaneAccess *access)
{
    AddressSpace *as = access->as;
    uint64_t copies = 0;

    for (unsigned i = 0; i < access->num; i++) {
        hwaddr len = access->iov[i].iov_len;

        if (access_is_ram(access, i)) {
            continue;
        }
        copies += len;
        /* dma_memory_map() does not report an access that fails. */
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
    copy = vector_is_copy(iov);
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
static void bounce_retry(void *opaque)
{
    DataPlaneBounce *b = opaque;

    qemu_bh_schedule(b->bh);
}

static void bounce_map_stalled(DataPlaneBounce *b, DataPlaneAccess *access)
{
    int ret;

    if (data_plane_bounce_stall(b) != DATA_PLANE_STALL_WAITING ||
        virtio_device_disabled(bounce_vdev(b))) {
        return;
    }
    access_init(access, &b->stalled->elem);
    ret = access_map(access);
    if (access->stopped) {
        /* Stopping has put the request back. */
    } else if (ret == -EAGAIN) {
        timer_mod(b->retry_timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                                  RETRY_MS);
    } else {
        trace_virtio_blk_data_plane_bounce_map(b->s->dataplane_id, b->index,
                                               access->num, ret);
        if (ret == 0) {
            vring_set_bounced(&b->stalled->elem, b->stalled_vecs, access->iov);
            qatomic_store_release(&b->stall, DATA_PLANE_STALL_MAPPED);
        }
        b->ops->mapped(b, ret);
    }
    access_cleanup(access);
}

static void bounce_hand_over(DataPlaneBounce *b, DataPlaneBounced *bounced)
{
    if (bounced->vecs) {
        vring_set_unmapped(bounced->vecs);
    }
    WITH_QEMU_LOCK_GUARD(&b->lock) {
        QSIMPLEQ_INSERT_TAIL(&b->unmapped, bounced, next);
    }
}

/* Removes the first request of one of the two lists, if any */
static DataPlaneBounced *bounce_take_first(DataPlaneBounce *b,
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

static void bounce_unmap_completed(DataPlaneBounce *b, DataPlaneAccess *access)
{
    access->bounced = bounce_take_first(b, &b->completed);
    if (!access->bounced) {
        return;
    }
    access_init(access, &access->bounced->req->elem);
    trace_virtio_blk_data_plane_bounce_unmap(b->s->dataplane_id, b->index,
                                             access->num);
    /* A broken device, or one without bus mastering, does not write. */
    access_unmap(access, access->num, !virtio_device_disabled(bounce_vdev(b)));
    if (!access->stopped) {
        bounce_hand_over(b, access->bounced);
        access->bounced = NULL;
        qemu_bh_schedule(b->unmapped_bh);
        /* One at a time, so that a busy queue does not starve the main loop */
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
    DeviceState *owner = qdev_get_parent_bus(DEVICE(b->s))->parent;
    DataPlaneAccess access = { .as = bounce_vdev(b)->dma_as };

    if (b->access) {
        return;
    }
    object_ref(OBJECT(owner));
    b->access = &access;
    bounce_unmap_completed(b, &access);
    if (!access.stopped) {
        bounce_map_stalled(b, &access);
    }
    if (!access.stopped) {
        b->access = NULL;
    }
    /* The BH's reentrancy guard is part of the owner. */
    aio_bh_schedule_oneshot(qemu_get_aio_context(), unref_owner, owner);
}

/* The queue's part */

static void keep_request(VirtIOBlockReq *req)
{
}

/* Of requests that are kept: they have completed, so they are not merged */
static const VirtIOBlockReqOps keep_ops = {
    .release = keep_request,
};

/* Returns the request, which can be completed, parked or given up now */
static VirtIOBlockReq *bounced_free(DataPlaneBounced *bounced)
{
    VirtIOBlockReq *req = bounced->req;

    req->ops = bounced->ops;
    g_free(bounced);
    return req;
}

/* Context: BH in the queue's AioContext */
static void unmapped_bh(void *opaque)
{
    DataPlaneBounce *b = opaque;
    DataPlaneBounced *bounced;

    while ((bounced = bounce_take_first(b, &b->unmapped))) {
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
    bounced->ops = req->ops;
    bounced->status = status;
    req->ops = &keep_ops;
    WITH_QEMU_LOCK_GUARD(&b->lock) {
        QSIMPLEQ_INSERT_TAIL(&b->completed, bounced, next);
    }
    qemu_bh_schedule(b->bh);
}

/* Life */

void data_plane_bounce_init(DataPlaneBounce *b, const DataPlaneBounceOps *ops,
                            VirtIOBlock *s, unsigned index)
{
    GLOBAL_STATE_CODE();
    b->ops = ops;
    b->s = s;
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
    DeviceState *owner = qdev_get_parent_bus(DEVICE(b->s))->parent;

    GLOBAL_STATE_CODE();
    /* A nested event loop of the main loop does not run this context. */
    b->bh = aio_bh_new_guarded(iohandler_get_aio_context(), bounce_bh, b,
                               &owner->mem_reentrancy_guard);
    b->retry_timer = timer_new_ms(QEMU_CLOCK_REALTIME, bounce_retry, b);
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
            bounce_hand_over(b, access->bounced);
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
    DataPlaneBounced *bounced = bounce_take_first(b, &b->completed);

    GLOBAL_STATE_CODE();
    return bounced ? bounced_free(bounced) : NULL;
}
