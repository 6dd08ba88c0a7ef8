/*
 * The data plane of a virtio-blk device: its life cycle
 *
 * Knows when the plane serves the device and on which IOThread, and what may
 * happen to the backend meanwhile.  Does not look into rings or requests
 * (virtio-blk-queue.c does).
 *
 * States and transitions; each is a call with the BQL held:
 *
 *   STOPPED   start -> STARTING -> STARTED
 *                               -> DISABLED  no notifiers: requests run in the
 *                                            main loop, on QEMU's own path
 *                               -> STOPPED   a kind of queue that the plane
 *                                            does not serve: QEMU's own path
 *                                            runs it in the IOThread
 *   STARTED   stop  -> STOPPING -> STOPPED
 *   DISABLED  stop  -> STOPPED
 *
 * A queue that moves leaves its AioContext in one call, and comes to the next
 * in another, when its requests have completed; a stop or a reset of the queue
 * does the rest of the move, if it is first.
 *
 * drained_begin and drained_end detach and attach the queues while STARTED.  In
 * other states they do nothing: start and stop check blk_in_drain().
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-types-misc.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "block/block.h"
#include "block/block_int.h"
#include "system/block-backend.h"
#include "system/iothread.h"
#include "hw/virtio/virtio-bus.h"
#include "virtio-blk.h"
#include "virtio-blk-iothreads.h"
#include "virtio-blk-queue.h"
#include "virtio-blk-trace.h"
#include "trace.h"

/* Protected by the BQL, unless stated otherwise */
struct VirtIOBlockDataPlane {
    VirtIOBlock *s;
    VirtioBlkDataPlaneState state;
    IOThread *private_iothread;         /* x-data-plane=on, or NULL */
    DataPlaneIOThreads *iothreads;
    VringMemory *mem;                   /* while not STOPPED or DISABLED */
    bool rebinding;                     /* a single queue */
    bool follow;                        /* a queue has moved: plane_follow() */
    uint64_t starts;
    char *reason;                       /* why the plane does not serve */

    /* Run in the main loop; scheduled by any thread. */
    QEMUBH *attention_bh;

    /* The same, but not in nested event loops of the main loop */
    QEMUBH *move_bh;

    /* The node that cannot be a job's target, while queues are attached */
    BlockDriverState *blocked_bs;
    Error *blocker;                     /* NULL: any node can */
    Notifier remove_bs_notifier;

    /* What QEMU's own path put into VirtIOBlock */
    void (*saved_complete_request)(VirtIOBlockReq *req, unsigned char status);
    void (*saved_detach_request)(VirtIOBlockReq *req);

    unsigned num_queues;
    DataPlaneQueue *queues;
};

static DataPlaneQueue *plane_queue_of(VirtIOBlockReq *req)
{
    return &req->dev->dataplane->queues[virtio_get_queue_index(req->vq)];
}

/* A request that was migrated, or popped by QEMU's own path */
static __attribute__((noinline)) void
plane_complete_other(VirtIOBlockReq *req, unsigned char status)
{
    data_plane_queue_complete(plane_queue_of(req), req, status);
}

/* VirtIOBlock.complete_request.  Context: the queue's AioContext */
static void plane_complete_request(VirtIOBlockReq *req, unsigned char status)
{
    if (likely(req->ops == &data_plane_pool_ops)) {
        data_plane_queue_complete(container_of(req, DataPlaneReq,
                                               req)->pool->queue, req, status);
    } else {
        plane_complete_other(req, status);
    }
}

/* VirtIOBlock.detach_request.  Context: the queue's AioContext */
static void plane_detach_request(VirtIOBlockReq *req)
{
    data_plane_queue_give_up(plane_queue_of(req), req);
}

/* Are the requests of the device the plane's, or of QEMU's own path? */
static bool plane_has_requests(VirtIOBlock *s)
{
    return s->complete_request == plane_complete_request;
}

void virtio_blk_data_plane_trace_restart(VirtIOBlockReq *req)
{
    IO_OR_GS_CODE();
    if (!plane_has_requests(req->dev)) {
        return;
    }
    for (; req; req = req->next) {
        data_plane_trace_begins(&req, 1);
    }
}

void virtio_blk_data_plane_trace_park(VirtIOBlockReq *req)
{
    IO_OR_GS_CODE();
    if (plane_has_requests(req->dev)) {
        data_plane_trace_end(req, DATA_PLANE_NO_STATUS);
    }
}

/* State */

static void plane_set_state(VirtIOBlockDataPlane *dp,
                            VirtioBlkDataPlaneState next)
{
    GLOBAL_STATE_CODE();

#define STATE(name) VIRTIO_BLK_DATA_PLANE_STATE_##name
    static const unsigned legal[] = {
        [STATE(STOPPED)] = BIT(STATE(STARTING)),
        [STATE(STARTING)] = BIT(STATE(STARTED)) | BIT(STATE(DISABLED)) |
                            BIT(STATE(STOPPED)),
        [STATE(STARTED)] = BIT(STATE(STOPPING)),
        [STATE(STOPPING)] = BIT(STATE(STOPPED)),
        [STATE(DISABLED)] = BIT(STATE(STOPPED)),
    };
#undef STATE

    trace_virtio_blk_data_plane_state(dp->s->dataplane_id,
                                      VirtioBlkDataPlaneState_str(dp->state),
                                      VirtioBlkDataPlaneState_str(next));
    assert(legal[dp->state] & BIT(next));
    dp->state = next;
}

static void plane_set_reason(VirtIOBlockDataPlane *dp, const char *reason)
{
    g_free(dp->reason);
    dp->reason = g_strdup(reason);
}

bool virtio_blk_data_plane_is_busy(VirtIOBlockDataPlane *dp)
{
    GLOBAL_STATE_CODE();
    return dp->state == VIRTIO_BLK_DATA_PLANE_STATE_STARTING ||
           dp->state == VIRTIO_BLK_DATA_PLANE_STATE_STOPPING || dp->rebinding;
}

/* Does what had to wait: see virtio_blk_data_plane_is_busy() */
static void plane_catch_up(VirtIOBlockDataPlane *dp)
{
    if (dp->s->drained_end_bh) {
        qemu_bh_schedule(dp->s->drained_end_bh);
    }
    qemu_bh_schedule(dp->attention_bh);
    qemu_bh_schedule(dp->move_bh);
}

bool virtio_blk_data_plane_is_stopped(VirtIOBlockDataPlane *dp)
{
    GLOBAL_STATE_CODE();

    return dp->state == VIRTIO_BLK_DATA_PLANE_STATE_STOPPED;
}

/* The operation blocker */

static const BlockOpType blocked_ops[] = {
    BLOCK_OP_TYPE_BACKUP_TARGET,
    BLOCK_OP_TYPE_MIRROR_TARGET,
};

/*
 * A job that writes to the node would damage the guest's data, unless
 * share-rw=on allows other writers.  While the VM runs the node's permissions
 * refuse such a job as well; the blocker tells users why.  It refuses nothing
 * that the permissions allow.
 *
 * Blockers belong to nodes, and snapshots and jobs change the backend's node,
 * but only while the backend is drained: there is no blocker then.
 */
static void plane_block_jobs(VirtIOBlockDataPlane *dp)
{
    BlockDriverState *bs = blk_bs(dp->s->blk);

    if (!dp->blocker || !bs) {
        return;
    }
    assert(!dp->blocked_bs);
    for (int i = 0; i < ARRAY_SIZE(blocked_ops); i++) {
        bdrv_op_block(bs, blocked_ops[i], dp->blocker);
    }
    dp->blocked_bs = bs;
}

static void plane_unblock_jobs(VirtIOBlockDataPlane *dp)
{
    if (!dp->blocked_bs) {
        return;
    }
    for (int i = 0; i < ARRAY_SIZE(blocked_ops); i++) {
        bdrv_op_unblock(dp->blocked_bs, blocked_ops[i], dp->blocker);
    }
    dp->blocked_bs = NULL;
}

/* The backend is about to lose its node, which drains it once more. */
static void plane_remove_bs(Notifier *n, void *data)
{
    VirtIOBlockDataPlane *dp = container_of(n, VirtIOBlockDataPlane,
                                            remove_bs_notifier);

    plane_unblock_jobs(dp);
    error_free(dp->blocker);
    dp->blocker = NULL;
}

static void plane_create_blocker(VirtIOBlockDataPlane *dp)
{
    BlockConf *conf = &dp->s->conf.conf;

    if (!conf->share_rw) {
        error_setg(&dp->blocker, "block device is in use by data plane");
    }
    dp->remove_bs_notifier.notify = plane_remove_bs;
    blk_add_remove_bs_notifier(conf->blk, &dp->remove_bs_notifier);
}

static void plane_destroy_blocker(VirtIOBlockDataPlane *dp)
{
    notifier_remove(&dp->remove_bs_notifier);
    assert(!dp->blocked_bs);
    error_free(dp->blocker);
}

/* Creation */

/*
 * What messages and trace events call the device: the user's id, or the QOM
 * path.  The user makes the device on the bus, or with virtio-mmio the virtio
 * device itself.
 */
static char *plane_name_device(VirtIOBlock *s)
{
    DeviceState *dev = DEVICE(s);
    DeviceState *proxy = qdev_get_parent_bus(dev)->parent;

    return qdev_get_human_name(OBJECT(dev)->parent == OBJECT(proxy) ? proxy
                                                                    : dev);
}

static bool plane_is_wanted(const VirtIOBlkConf *conf)
{
    switch (conf->x_data_plane) {
    case ON_OFF_AUTO_ON:
        return true;
    case ON_OFF_AUTO_OFF:
        return false;
    default:
        return conf->iothread || conf->iothread_vq_mapping_list;
    }
}

/* From now until destroy this is the device's "iothread" property. */
static bool plane_create_iothread(VirtIOBlockDataPlane *dp, Error **errp)
{
    static unsigned serial;
    VirtIOBlkConf *conf = &dp->s->conf;
    g_autofree char *id = g_strdup_printf("virtio-blk-data-plane%u", serial++);

    if (conf->iothread || conf->iothread_vq_mapping_list) {
        return true;
    }
    dp->private_iothread = iothread_create(id, errp);
    if (!dp->private_iothread) {
        return false;
    }
    conf->iothread = dp->private_iothread;
    object_ref(OBJECT(conf->iothread));
    return true;
}

static void plane_destroy_iothread(VirtIOBlockDataPlane *dp)
{
    if (!dp->private_iothread) {
        return;
    }
    object_unref(OBJECT(dp->s->conf.iothread));
    dp->s->conf.iothread = NULL;
    iothread_destroy(dp->private_iothread);
}

static void attention_bh(void *opaque);
static void move_bh(void *opaque);

bool virtio_blk_data_plane_create(VirtIOBlock *s, Error **errp)
{
    VirtIOBlockDataPlane *dp;

    GLOBAL_STATE_CODE();
    s->dataplane = NULL;
    if (!plane_is_wanted(&s->conf)) {
        return true;
    }

    dp = g_new0(VirtIOBlockDataPlane, 1);
    dp->s = s;
    if (!plane_create_iothread(dp, errp)) {
        g_free(dp);
        return false;
    }
    dp->iothreads = data_plane_iothreads_new(s);
    dp->attention_bh = qemu_bh_new(attention_bh, dp);
    dp->move_bh = aio_bh_new(iohandler_get_aio_context(), move_bh, dp);
    plane_create_blocker(dp);

    dp->num_queues = s->conf.num_queues;
    dp->queues = g_new0(DataPlaneQueue, dp->num_queues);
    for (unsigned i = 0; i < dp->num_queues; i++) {
        data_plane_queue_init(&dp->queues[i], s, i, dp->attention_bh);
    }
    s->dataplane = dp;
    s->dataplane_id = plane_name_device(s);
    trace_virtio_blk_data_plane_create(s->dataplane_id, dp->num_queues);
    return true;
}

void virtio_blk_data_plane_destroy(VirtIOBlock *s)
{
    VirtIOBlockDataPlane *dp = s->dataplane;

    GLOBAL_STATE_CODE();
    if (!dp) {
        return;
    }
    assert(dp->state == VIRTIO_BLK_DATA_PLANE_STATE_STOPPED);
    trace_virtio_blk_data_plane_destroy(s->dataplane_id);
    s->dataplane = NULL;

    plane_destroy_blocker(dp);
    qemu_bh_delete(dp->attention_bh);
    qemu_bh_delete(dp->move_bh);
    virtio_blk_drop_parked(s, NULL);
    for (unsigned i = 0; i < dp->num_queues; i++) {
        data_plane_queue_cleanup(&dp->queues[i]);
    }
    g_free(dp->queues);
    data_plane_iothreads_free(dp->iothreads);
    plane_destroy_iothread(dp);
    g_clear_pointer(&s->dataplane_id, g_free);
    g_free(dp->reason);
    g_free(dp);
}

/* What the queues need the main loop for */

/* Tells user and driver.  The queues take no buffers any more. */
static void plane_report_broken(VirtIOBlockDataPlane *dp, unsigned queue,
                                const char *what)
{
    virtio_error(VIRTIO_DEVICE(dp->s), "virtio-blk %s: queue %u: %s; the "
                 "device stops until the guest resets it",
                 dp->s->dataplane_id, queue, what);
}

/*
 * Marks the device broken, waits until its queues have stopped, and tells the
 * driver.  The main loop runs meanwhile.
 */
static void plane_fail(VirtIOBlockDataPlane *dp, DataPlaneQueue *q,
                       const char *what)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(dp->s);

    vdev->broken = true;
    VIRTIO_DEVICE_GET_CLASS(vdev)->wait_broken(vdev);
    plane_report_broken(dp, q->index, what);
}

/*
 * If the ring's memory has returned, and no request was completed while it was
 * away, nothing is lost: the queue is kicked when the memory returns.
 */
static bool queue_ring_is_lost(DataPlaneQueue *q)
{
    return qatomic_read(&q->vring.lost) || qatomic_read(&q->vring.dropped);
}

static void plane_report_error(VirtIOBlockDataPlane *dp, DataPlaneQueue *q)
{
    int err = qatomic_xchg(&q->error, 0);

    if (!err || !q->active) {
        return;
    }
    /* The memory has returned, or is not needed without bus mastering. */
    if (err == VRING_ERR_RING_LOST &&
        (!queue_ring_is_lost(q) || VIRTIO_DEVICE(dp->s)->disabled)) {
        return;
    }
    plane_fail(dp, q, vring_error_str(err));
}

static void plane_report_errors(VirtIOBlockDataPlane *dp)
{
    for (unsigned i = 0; i < dp->num_queues; i++) {
        plane_report_error(dp, &dp->queues[i]);
    }
}

/* Sets up the queues that the driver enabled after it had started the device */
static void plane_setup_late_queues(VirtIOBlockDataPlane *dp)
{
    for (unsigned i = 0; i < dp->num_queues; i++) {
        DataPlaneQueue *q = &dp->queues[i];
        Error *err = NULL;

        if (q->active || dp->rebinding) {
            continue;
        }
        if (!data_plane_queue_setup(q, dp->mem, &err)) {
            error_prepend(&err, "enabled late: ");
            plane_fail(dp, q, error_get_pretty(err));
            error_free(err);
            /* The main loop has run. */
            return;
        } else if (q->active) {
            trace_virtio_blk_data_plane_queue_late(dp->s->dataplane_id, i);
            event_notifier_set(&q->host_notifier);
        }
    }
}

/* Context: BQL held */
static void plane_memory_changed(void *opaque)
{
    VirtIOBlockDataPlane *dp = opaque;

    GLOBAL_STATE_CODE();
    for (unsigned i = 0; i < dp->num_queues; i++) {
        if (dp->queues[i].memory_bh) {
            qemu_bh_schedule(dp->queues[i].memory_bh);
        }
    }
}

/* Start and stop */

static bool plane_setup_queues(VirtIOBlockDataPlane *dp, Error **errp)
{
    ERRP_GUARD();

    for (unsigned i = 0; i < dp->num_queues; i++) {
        if (!data_plane_queue_setup(&dp->queues[i], dp->mem, errp)) {
            if (VIRTIO_DEVICE(dp->s)->broken) {
                plane_report_broken(dp, i, error_get_pretty(*errp));
            }
            return false;
        }
    }
    return true;
}

static void plane_teardown_queues(VirtIOBlockDataPlane *dp)
{
    for (unsigned i = 0; i < dp->num_queues; i++) {
        data_plane_queue_teardown(&dp->queues[i]);
    }
    vring_memory_free(dp->mem);
    dp->mem = NULL;
}

static VirtioBusState *plane_bus(VirtIOBlockDataPlane *dp)
{
    return VIRTIO_BUS(qdev_get_parent_bus(DEVICE(dp->s)));
}

static int plane_set_guest_notifiers(VirtIOBlockDataPlane *dp, bool assign)
{
    VirtioBusState *bus = plane_bus(dp);

    return VIRTIO_BUS_GET_CLASS(bus)->set_guest_notifiers(BUS(bus)->parent,
                                                          dp->num_queues,
                                                          assign);
}

/* Keep the eventfds open until the transaction that removes them ends. */
static void plane_unset_host_notifiers(VirtIOBlockDataPlane *dp, unsigned n)
{
    VirtioBusState *bus = plane_bus(dp);

    memory_region_transaction_begin();
    for (unsigned i = 0; i < n; i++) {
        virtio_bus_set_host_notifier(bus, i, false);
    }
    memory_region_transaction_commit();
    for (unsigned i = 0; i < n; i++) {
        virtio_bus_cleanup_host_notifier(bus, i);
    }
}

/* Use one transaction, or each notifier would rebuild the list of all. */
static int plane_set_host_notifiers(VirtIOBlockDataPlane *dp)
{
    VirtioBusState *bus = plane_bus(dp);
    unsigned n;
    int ret = 0;

    memory_region_transaction_begin();
    for (n = 0; n < dp->num_queues; n++) {
        ret = virtio_bus_set_host_notifier(bus, n, true);
        if (ret < 0) {
            break;
        }
    }
    memory_region_transaction_commit();
    if (ret < 0) {
        plane_unset_host_notifiers(dp, n);
    }
    return ret;
}

static int plane_set_notifiers(VirtIOBlockDataPlane *dp)
{
    int ret = plane_set_guest_notifiers(dp, true);

    if (ret < 0) {
        return ret;
    }
    ret = plane_set_host_notifiers(dp);
    if (ret < 0) {
        plane_set_guest_notifiers(dp, false);
    }
    return ret;
}

/* Lets QEMU's own path serve the device in the main loop until the next stop */
static void plane_disable(VirtIOBlockDataPlane *dp, int err)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(dp->s);

    plane_teardown_queues(dp);
    plane_set_state(dp, VIRTIO_BLK_DATA_PLANE_STATE_DISABLED);
    plane_set_reason(dp, "notifiers could not be set up");
    warn_report("virtio-blk %s: data plane disabled, notifiers could not be "
                "set up: %s; requests run in the main loop until the device "
                "is started again", dp->s->dataplane_id, strerror(-err));

    /* As at each start: buffers already in the ring get no other kick. */
    for (unsigned i = 0; i < dp->num_queues; i++) {
        if (virtio_queue_get_desc_addr(vdev, i)) {
            virtio_blk_handle_vq(dp->s, virtio_get_queue(vdev, i));
        }
    }
}

static void plane_move_backend(VirtIOBlockDataPlane *dp, AioContext *ctx)
{
    Error *err = NULL;

    /*
     * Other users may pin the node to their context.  Requests work from any
     * context, but cost more, so warn unless the plane stops.
     */
    if (blk_set_aio_context(dp->s->blk, ctx, &err) < 0) {
        if (ctx == qemu_get_aio_context()) {
            error_free(err);
        } else {
            warn_report_err(err);
        }
    }
}

static void plane_attach_queues(VirtIOBlockDataPlane *dp)
{
    plane_block_jobs(dp);
    for (unsigned i = 0; i < dp->num_queues; i++) {
        data_plane_queue_attach(&dp->queues[i]);
    }
}

int virtio_blk_data_plane_start(VirtIOBlockDataPlane *dp)
{
    VirtIOBlock *s = dp->s;
    Error *err = NULL;
    int ret;

    GLOBAL_STATE_CODE();
    if (dp->state != VIRTIO_BLK_DATA_PLANE_STATE_STOPPED) {
        return 0;
    }
    plane_set_state(dp, VIRTIO_BLK_DATA_PLANE_STATE_STARTING);
    plane_set_reason(dp, NULL);
    /* QEMU's own path may have restarted parked requests. */
    blk_drain(s->blk);
    dp->mem = vring_memory_new(VIRTIO_DEVICE(s)->dma_as, plane_memory_changed,
                               dp);

    if (!plane_setup_queues(dp, &err)) {
        trace_virtio_blk_data_plane_decline(s->dataplane_id,
                                            error_get_pretty(err));
        plane_teardown_queues(dp);
        plane_set_state(dp, VIRTIO_BLK_DATA_PLANE_STATE_STOPPED);
        plane_set_reason(dp, error_get_pretty(err));
        plane_catch_up(dp);
        /*
         * Do not let QEMU's own path serve a broken device.  If its rings are
         * in MMIO, polling them takes the BQL in the IOThread, while a stop
         * waits for the IOThread with the BQL held.
         */
        error_free(err);
        return VIRTIO_DEVICE(s)->broken ? 0 : -ENOTSUP;
    }
    ret = plane_set_notifiers(dp);
    if (ret < 0) {
        plane_disable(dp, ret);
        plane_catch_up(dp);
        return 0;
    }

    for (unsigned i = 0; i < dp->num_queues; i++) {
        data_plane_queue_bind(&dp->queues[i], s->vq_aio_context[i]);
        data_plane_queue_resume(&dp->queues[i]);
    }
    dp->saved_complete_request = s->complete_request;
    dp->saved_detach_request = s->detach_request;
    s->complete_request = plane_complete_request;
    s->detach_request = plane_detach_request;
    /* This drains, which drained_begin and drained_end ignore in STARTING. */
    plane_move_backend(dp, s->vq_aio_context[0]);

    dp->starts++;
    plane_set_state(dp, VIRTIO_BLK_DATA_PLANE_STATE_STARTED);
    trace_virtio_blk_data_plane_start(s->dataplane_id, dp->num_queues);
    if (!blk_in_drain(s->blk)) {
        plane_attach_queues(dp);
    }
    plane_catch_up(dp);
    return 0;
}

void virtio_blk_data_plane_stop(VirtIOBlockDataPlane *dp)
{
    VirtIOBlock *s = dp->s;

    GLOBAL_STATE_CODE();
    if (dp->state == VIRTIO_BLK_DATA_PLANE_STATE_DISABLED) {
        /* The next start may succeed, and must find no request in flight. */
        blk_drain(s->blk);
        plane_set_reason(dp, NULL);
        plane_set_state(dp, VIRTIO_BLK_DATA_PLANE_STATE_STOPPED);
        return;
    }
    if (dp->state != VIRTIO_BLK_DATA_PLANE_STATE_STARTED) {
        return;
    }
    plane_set_state(dp, VIRTIO_BLK_DATA_PLANE_STATE_STOPPING);
    plane_unblock_jobs(dp);

    for (unsigned i = 0; i < dp->num_queues; i++) {
        data_plane_queue_quiesce(&dp->queues[i]);
    }
    plane_unset_host_notifiers(dp, dp->num_queues);
    /* Wait for parked requests that are being restarted, too. */
    blk_drain(s->blk);
    for (unsigned i = 0; i < dp->num_queues; i++) {
        data_plane_queue_unbind(&dp->queues[i]);
        data_plane_iothreads_move(dp->iothreads, i);
    }
    plane_move_backend(dp, qemu_get_aio_context());
    data_plane_iothreads_tidy(dp->iothreads);
    dp->follow = false;
    plane_report_errors(dp);
    s->complete_request = dp->saved_complete_request;
    s->detach_request = dp->saved_detach_request;
    plane_teardown_queues(dp);
    plane_set_guest_notifiers(dp, false);

    plane_set_state(dp, VIRTIO_BLK_DATA_PLANE_STATE_STOPPED);
    plane_catch_up(dp);
    trace_virtio_blk_data_plane_stop(s->dataplane_id);
}

bool virtio_blk_data_plane_handle_output(VirtIOBlockDataPlane *dp,
                                         VirtQueue *vq)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(dp->s);

    IO_OR_GS_CODE();
    switch (dp->state) {
    case VIRTIO_BLK_DATA_PLANE_STATE_DISABLED:
        virtio_blk_handle_vq(dp->s, vq);
        return true;
    case VIRTIO_BLK_DATA_PLANE_STATE_STOPPED:
        if (dp->s->ioeventfd_started) {
            return false;
        }
        /* Without bus mastering the device must not access its rings. */
        if (virtio_device_disabled(vdev)) {
            return true;
        }
        /*
         * Some drivers kick before DRIVER_OK, so start the plane here, before
         * the status changes; but not while the VM is stopped, as the device's
         * state may be migrated then.
         */
        if (vdev->vm_running) {
            virtio_device_start_ioeventfd(vdev);
        }
        return true;
    default:
        /* Each start looks at the ring, and eventfds kick a running plane. */
        return true;
    }
}

AioContext *virtio_blk_data_plane_context(VirtIOBlockDataPlane *dp, unsigned n)
{
    GLOBAL_STATE_CODE();

    return dp->state == VIRTIO_BLK_DATA_PLANE_STATE_DISABLED ?
           qemu_get_aio_context() : dp->s->vq_aio_context[n];
}

void virtio_blk_data_plane_drained_begin(VirtIOBlockDataPlane *dp)
{
    GLOBAL_STATE_CODE();

    if (dp->state != VIRTIO_BLK_DATA_PLANE_STATE_STARTED) {
        return;
    }
    trace_virtio_blk_data_plane_drained_begin(dp->s->dataplane_id);
    plane_unblock_jobs(dp);
    for (unsigned i = 0; i < dp->num_queues; i++) {
        data_plane_queue_detach(&dp->queues[i]);
    }
}

void virtio_blk_data_plane_drained_end(VirtIOBlockDataPlane *dp)
{
    GLOBAL_STATE_CODE();

    if (dp->state != VIRTIO_BLK_DATA_PLANE_STATE_STARTED) {
        return;
    }
    trace_virtio_blk_data_plane_drained_end(dp->s->dataplane_id);
    plane_attach_queues(dp);
    qemu_bh_schedule(dp->move_bh);
}

/* A single queue */

/* Binds a queue to its IOThread, or to the one that it moves to */
static void plane_rebind_queue(VirtIOBlockDataPlane *dp, DataPlaneQueue *q)
{
    VirtIOBlock *s = dp->s;
    AioContext *old = q->ctx;

    data_plane_iothreads_move(dp->iothreads, q->index);
    data_plane_queue_bind(q, s->vq_aio_context[q->index]);
    data_plane_queue_resume(q);
    if (!blk_in_drain(s->blk)) {
        data_plane_queue_attach(q);
    }
    if (q->ctx != old) {
        dp->follow = true;
        trace_virtio_blk_data_plane_moved(s->dataplane_id, q->index,
            data_plane_iothreads_id(dp->iothreads, q->index));
    }
}

/*
 * Leaves an IOThread that has lost its last queue.  What nodes still do for
 * requests that have completed may be there, so wait for that.
 */
static void plane_follow(VirtIOBlockDataPlane *dp)
{
    VirtIOBlock *s = dp->s;

    dp->follow = false;
    if (!data_plane_iothreads_is_left(dp->iothreads)) {
        return;
    }
    dp->rebinding = true;
    blk_drain(s->blk);
    if (!data_plane_iothreads_uses(dp->iothreads,
                                   blk_get_aio_context(s->blk))) {
        plane_move_backend(dp, s->vq_aio_context[0]);
    }
    data_plane_iothreads_tidy(dp->iothreads);
    dp->rebinding = false;
    plane_catch_up(dp);
}

void virtio_blk_data_plane_queue_reset(VirtIOBlockDataPlane *dp, unsigned n)
{
    DataPlaneQueue *q = &dp->queues[n];

    GLOBAL_STATE_CODE();
    trace_virtio_blk_data_plane_queue_reset(dp->s->dataplane_id, n);
    if (dp->state == VIRTIO_BLK_DATA_PLANE_STATE_STARTED) {
        dp->rebinding = true;
        data_plane_queue_quiesce(q);
        blk_drain(dp->s->blk);
        data_plane_queue_unbind(q);
        data_plane_queue_teardown(q);
        plane_rebind_queue(dp, q);
        dp->rebinding = false;
    } else {
        blk_drain(dp->s->blk);
    }
    virtio_blk_drop_parked(dp->s, q->vq);
    plane_catch_up(dp);
}

/*
 * Not in a drained section: who holds it may work with the backend's
 * AioContext.
 */
static bool plane_may_move(VirtIOBlockDataPlane *dp)
{
    return dp->state == VIRTIO_BLK_DATA_PLANE_STATE_STARTED &&
           !dp->rebinding && !blk_in_drain(dp->s->blk);
}

/* Moves the queues that have left their IOThread */
static void plane_end_moves(VirtIOBlockDataPlane *dp)
{
    for (unsigned i = 0; i < dp->num_queues && plane_may_move(dp); i++) {
        DataPlaneQueue *q = &dp->queues[i];

        if (data_plane_iothreads_next_id(dp->iothreads, i) &&
            data_plane_queue_has_left(q)) {
            dp->rebinding = true;
            data_plane_queue_unbind(q);
            plane_rebind_queue(dp, q);
            dp->rebinding = false;
            plane_catch_up(dp);
        }
    }
    if (dp->follow && plane_may_move(dp)) {
        plane_follow(dp);
    }
}

/* Context: BH in the main loop, but in no nested event loop */
static void move_bh(void *opaque)
{
    GLOBAL_STATE_CODE();
    plane_end_moves(opaque);
}

/* Lets a queue leave its IOThread if it is to move, or else stay there */
static void plane_leave_or_stay(VirtIOBlockDataPlane *dp, DataPlaneQueue *q)
{
    bool moves = data_plane_iothreads_next_id(dp->iothreads, q->index);

    dp->rebinding = true;
    if (moves && !q->quiesced) {
        data_plane_queue_leave(q, dp->move_bh);
    } else if (!moves && q->quiesced) {
        data_plane_queue_stay(q);
        if (!blk_in_drain(dp->s->blk)) {
            data_plane_queue_attach(q);
        }
    }
    dp->rebinding = false;
    plane_end_moves(dp);
    plane_catch_up(dp);
}

bool virtio_blk_data_plane_move_queue(VirtIOBlockDataPlane *dp, unsigned n,
                                      IOThread *iothread, Error **errp)
{
    bool planned;

    GLOBAL_STATE_CODE();
    if (virtio_blk_data_plane_is_busy(dp)) {
        error_setg(errp, "The data plane of virtio-blk device '%s' is being "
                   "started or stopped; try again", dp->s->dataplane_id);
        return false;
    }
    dp->rebinding = true;
    planned = data_plane_iothreads_plan(dp->iothreads, n, iothread, errp);
    dp->rebinding = false;
    plane_catch_up(dp);
    if (!planned) {
        return false;
    }
    trace_virtio_blk_data_plane_move(dp->s->dataplane_id, n,
        data_plane_iothreads_next_id(dp->iothreads, n) ?:
        data_plane_iothreads_id(dp->iothreads, n));
    if (dp->state == VIRTIO_BLK_DATA_PLANE_STATE_STARTED) {
        plane_leave_or_stay(dp, &dp->queues[n]);
    } else {
        data_plane_iothreads_move(dp->iothreads, n);
        blk_drain(dp->s->blk);
        data_plane_iothreads_tidy(dp->iothreads);
    }
    return true;
}

/* Context: BH in the main loop */
static void attention_bh(void *opaque)
{
    VirtIOBlockDataPlane *dp = opaque;

    GLOBAL_STATE_CODE();
    if (dp->state == VIRTIO_BLK_DATA_PLANE_STATE_STARTED) {
        plane_report_errors(dp);
    }
    /* The main loop may have run, and stopped the plane. */
    if (dp->state == VIRTIO_BLK_DATA_PLANE_STATE_STARTED) {
        plane_setup_late_queues(dp);
    }
}

/* What users see */

/* Returns NULL unless the plane is going to serve the device after a "cont" */
static const char *plane_pause_reason(VirtIOBlockDataPlane *dp)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(dp->s);

    if (dp->state == VIRTIO_BLK_DATA_PLANE_STATE_STOPPED &&
        !vdev->vm_running && !virtio_device_disabled(vdev) &&
        virtio_device_started(vdev, vdev->status)) {
        return "VM is paused";
    }
    return NULL;
}

static VirtioBlkDataPlaneQueueInfo *plane_queue_info(VirtIOBlockDataPlane *dp,
                                                     unsigned n)
{
    DataPlaneIOThreads *t = dp->iothreads;
    VirtioBlkDataPlaneQueueInfo *info =
        data_plane_queue_info(&dp->queues[n], data_plane_iothreads_id(t, n));

    info->moving_to = g_strdup(data_plane_iothreads_next_id(t, n));
    return info;
}

VirtioBlkDataPlaneInfo *virtio_blk_data_plane_info(VirtIOBlock *s)
{
    VirtioBlkDataPlaneInfo *info = g_new0(VirtioBlkDataPlaneInfo, 1);
    VirtIOBlockDataPlane *dp = s->dataplane;
    VirtioBlkDataPlaneQueueInfoList **tail = &info->queues;

    GLOBAL_STATE_CODE();
    if (!dp) {
        info->state = VIRTIO_BLK_DATA_PLANE_STATE_STOPPED;
        info->reason = g_strdup("not configured");
        return info;
    }
    info->state = dp->state;
    info->serving = dp->state == VIRTIO_BLK_DATA_PLANE_STATE_STARTED;
    info->reason = g_strdup(dp->reason ?: plane_pause_reason(dp));
    info->starts = dp->starts;
    for (unsigned i = 0; i < dp->num_queues; i++) {
        QAPI_LIST_APPEND(tail, plane_queue_info(dp, i));
    }
    return info;
}

VirtIOBlock *virtio_blk_data_plane_find(const char *path, Error **errp)
{
    Object *obj = object_resolve_path(path, NULL);
    VirtIOBlock *s;

    GLOBAL_STATE_CODE();
    if (obj && !object_dynamic_cast(obj, TYPE_VIRTIO_BLK)) {
        obj = object_resolve_path_component(obj, "virtio-backend");
    }
    if (!obj || !object_dynamic_cast(obj, TYPE_VIRTIO_BLK) ||
        !DEVICE(obj)->realized) {
        error_setg(errp, "'%s' is not the QOM path of a virtio-blk device, "
                   "such as /machine/peripheral/ID", path);
        return NULL;
    }
    s = VIRTIO_BLK(obj);
    if (!s->dataplane) {
        error_setg(errp, "virtio-blk device '%s' has no data plane, which this "
                   "needs: give the device an iothread, and not "
                   "x-data-plane=off", path);
        return NULL;
    }
    if (s->dataplane->reason) {
        error_setg(errp, "The data plane, which this needs, does not serve "
                   "virtio-blk device '%s': %s", path, s->dataplane->reason);
        return NULL;
    }
    return s;
}

bool virtio_blk_data_plane_has_queue(VirtIOBlockDataPlane *dp, unsigned n,
                                     Error **errp)
{
    GLOBAL_STATE_CODE();

    if (n >= dp->num_queues) {
        error_setg(errp, "virtio-blk device '%s' has no queue %u: its queues "
                   "are 0 to %u", dp->s->dataplane_id, n, dp->num_queues - 1);
        return false;
    }
    return true;
}

DataPlaneQueue *virtio_blk_data_plane_queue(VirtIOBlockDataPlane *dp,
                                            unsigned n)
{
    GLOBAL_STATE_CODE();

    return &dp->queues[n];
}

bool virtio_blk_data_plane_ring_state(VirtIOBlockDataPlane *dp, unsigned n,
                                      VirtQueueRingState *state)
{
    GLOBAL_STATE_CODE();

    return n < dp->num_queues &&
           data_plane_queue_ring_state(&dp->queues[n], state);
}
