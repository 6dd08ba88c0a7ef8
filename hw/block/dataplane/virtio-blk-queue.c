/*
 * One queue of a virtio-blk data plane
 *
 * Knows when to look at the ring, what to batch, and when to notify the driver.
 * Does not parse requests (hw/block/virtio-blk.c does), does not know ring
 * formats (hw/virtio/dataplane/ does), and does not decide when the plane runs
 * (virtio-blk.c in this folder does).
 *
 * The path of a request:
 *
 *   handle_notify               for each batch:
 *     queue_process_ring
 *       queue_pop_batch           pops requests into slots of the pool
 *       queue_handle_batch        hands each to virtio_blk_handle_request()
 *     virtio_blk_submit_multireq  submits what was merged
 *   block layer                   in the queue's AioContext
 *   data_plane_queue_complete
 *     queue_use_request           pushes the used element, publishes every few
 *                                 of them, asks for notify_guest() at the end
 *                                 of the batch
 *   notify_guest                  publishes the rest and notifies the driver at
 *                                 most once
 *
 * A request with buffers that are not in RAM goes through the main loop: see
 * virtio-blk-bounce.c.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/defer-call.h"
#include "qemu/atomic.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "block/aio-wait.h"
#include "hw/virtio/virtio-access.h"
#include "virtio-blk-queue.h"
#include "virtio-blk-trace.h"
#include "trace.h"

/* Counters */

static uint32_t request_type(VirtIOBlockReq *req)
{
    return virtio_ldl_p(&req->dev->parent_obj, &req->out.type) &
           ~VIRTIO_BLK_T_BARRIER;
}

/* Each counter has one writer, so this needs no locked instruction. */
static inline void stat_add(uint64_t *counter, uint64_t n)
{
    qatomic_set_u64(counter, *counter + n);
}

static DataPlaneKind kind_of_other_type(uint32_t type)
{
    switch (type) {
    case VIRTIO_BLK_T_FLUSH:
    case VIRTIO_BLK_T_FLUSH | VIRTIO_BLK_T_OUT:
        return DATA_PLANE_FLUSH;
    case VIRTIO_BLK_T_DISCARD:
        return DATA_PLANE_DISCARD;
    case VIRTIO_BLK_T_WRITE_ZEROES:
        return DATA_PLANE_WRITE_ZEROES;
    default:
        return DATA_PLANE_OTHER;
    }
}

/* Most are reads or writes: a switch of all types takes longer. */
static inline DataPlaneKind kind_of_type(uint32_t type)
{
    if (likely(type == VIRTIO_BLK_T_IN)) {
        return DATA_PLANE_READ;
    }
    if (likely(type == VIRTIO_BLK_T_OUT)) {
        return DATA_PLANE_WRITE;
    }
    return kind_of_other_type(type);
}

static inline void stat_completed(DataPlaneQueue *q, DataPlaneKind kind,
                                  unsigned char status)
{
    stat_add(&q->stats.done[kind], 1);
    if (unlikely(status != VIRTIO_BLK_S_OK)) {
        stat_add(&q->stats.errors, 1);
    }
}

static inline void stat_latency(DataPlaneQueue *q, DataPlaneKind kind,
                                int64_t ns)
{
    /* 63 minus that; so the compiler needs one instruction for both. */
    unsigned bucket = 63 ^ clz64(ns | 1);
    size_t n = kind * DATA_PLANE_BUCKETS + bucket;

    stat_add(&q->stats.latency[n], 1);
}

uint64_t data_plane_queue_latency(const DataPlaneQueue *q, DataPlaneKind kind,
                                  unsigned n)
{
    IO_OR_GS_CODE();

    return qatomic_read_u64(&q->stats.latency[kind * DATA_PLANE_BUCKETS + n]);
}

VirtioBlkDataPlaneQueueInfo *data_plane_queue_info(DataPlaneQueue *q,
                                                   const char *iothread)
{
    VirtioBlkDataPlaneQueueInfo *info =
        g_new0(VirtioBlkDataPlaneQueueInfo, 1);
    const DataPlaneStats *stats = &q->stats;

    IO_OR_GS_CODE();
    info->queue = q->index;
    info->iothread = g_strdup(iothread);
    info->reads = qatomic_read_u64(&stats->done[DATA_PLANE_READ]);
    info->writes = qatomic_read_u64(&stats->done[DATA_PLANE_WRITE]);
    info->flushes = qatomic_read_u64(&stats->done[DATA_PLANE_FLUSH]);
    info->discards = qatomic_read_u64(&stats->done[DATA_PLANE_DISCARD]);
    info->write_zeroes =
        qatomic_read_u64(&stats->done[DATA_PLANE_WRITE_ZEROES]);
    info->other = qatomic_read_u64(&stats->done[DATA_PLANE_OTHER]);
    info->errors = qatomic_read_u64(&stats->errors);
    info->completed = info->reads + info->writes + info->flushes +
                      info->discards + info->write_zeroes + info->other;
    info->batches = qatomic_read_u64(&stats->batches);
    info->kicks = qatomic_read_u64(&stats->kicks);
    info->polled = qatomic_read_u64(&stats->polled);
    info->notifications_sent = qatomic_read_u64(&stats->notified);
    info->notifications_suppressed = qatomic_read_u64(&stats->suppressed);
    info->merged = qatomic_read_u64(&stats->merged);
    info->direct = qatomic_read_u64(&q->direct.direct);
    info->fixed_buffers = qatomic_read_u64(&q->direct.registered);
    info->not_direct = g_strdup(qatomic_read(&q->direct.refusal));
    /* Read it first: a request that ends meanwhile counts as in flight. */
    info->in_flight = qatomic_read_u64(&stats->released);
    info->in_flight = qatomic_read_u64(&stats->popped) - info->in_flight;
    return info;
}

bool data_plane_queue_ring_state(DataPlaneQueue *q, VirtQueueRingState *state)
{
    GLOBAL_STATE_CODE();

    /* The BQL keeps the ring from being handed back meanwhile. */
    if (!q->active) {
        return false;
    }
    vring_look(&q->vring, state);
    return true;
}

/* The pool */

/*
 * A disk may have thousands of slots: see "What a queue costs" in
 * docs/devel/virtio-blk-dataplane.rst before they grow.
 */
#if HOST_LONG_BITS == 64
QEMU_BUILD_BUG_ON(sizeof(DataPlaneReq) > 760);
QEMU_BUILD_BUG_ON(sizeof(DataPlaneQueue) > 3968);
#endif

/* Do not initialise the slots: untouched memory takes no RAM unless locked. */
static DataPlanePool *pool_new(DataPlaneQueue *q, unsigned size)
{
    DataPlanePool *pool = g_malloc(sizeof(*pool) +
                                   size * sizeof(pool->slots[0]));

    pool->queue = q;
    pool->size = size;
    pool->touched = 0;
    pool->taken = 0;
    pool->free = NULL;
    return pool;
}

/*
 * Stop using the pool.  Slots that are taken belong to requests that the error
 * policy has parked: the last of them frees the pool.
 */
static void pool_abandon(DataPlaneQueue *q)
{
    if (q->pool && !q->pool->taken) {
        g_free(q->pool);
    }
    q->pool = NULL;
}

/* Provide a slot for each request that a queue of @size can have in flight. */
static void pool_set_size(DataPlaneQueue *q, unsigned size)
{
    if (!q->pool || q->pool->size != size) {
        pool_abandon(q);
        q->pool = pool_new(q, size);
    }
}

/* Returns NULL if as many requests are in flight as the queue has entries */
static DataPlaneReq *pool_get(DataPlaneQueue *q)
{
    DataPlanePool *pool = q->pool;
    DataPlaneReq *slot;

    if (likely(pool->free)) {
        slot = container_of(pool->free, DataPlaneReq, req);
        pool->free = pool->free->next;
    } else if (likely(pool->touched < pool->size)) {
        slot = &pool->slots[pool->touched];
        vring_vectors_init(&slot->vecs);
        slot->pool = pool;
        virtio_blk_progress_init(&slot->req.progress);
        /* Pairs with the load-acquire in virtio-blk-inflight.c */
        qatomic_store_release(&pool->touched, pool->touched + 1);
    } else {
        return NULL;
    }
    pool->taken++;
    virtio_blk_progress_renew(&slot->req.progress);
    return slot;
}

static void pool_put(DataPlaneReq *slot)
{
    DataPlanePool *pool = slot->pool;

    slot->req.next = pool->free;
    pool->free = &slot->req;
    pool->taken--;
    if (unlikely(pool != pool->queue->pool) && !pool->taken) {
        g_free(pool);
    }
}

/* VirtIOBlockReqOps of requests from the pool */

static void release_request(VirtIOBlockReq *req)
{
    DataPlaneReq *slot = container_of(req, DataPlaneReq, req);

    virtio_blk_progress_set(&req->progress, VIRTIO_BLK_STAGE_FREE);
    vring_vectors_release(&slot->vecs);
    stat_add(&slot->pool->queue->stats.released, 1);
    pool_put(slot);
}

/* Merged vectors lie behind those of the first request. */
static struct iovec *request_spare_iov(VirtIOBlockReq *req, unsigned *num)
{
    DataPlaneReq *slot = container_of(req, DataPlaneReq, req);

    return vring_vectors_spare(&slot->vecs, &req->elem, num);
}

const VirtIOBlockReqOps data_plane_pool_ops = {
    .release = release_request,
    .spare_iov = request_spare_iov,
};

/* Returns NULL for a request that was migrated or popped by QEMU's own path */
static VringVectors *request_vectors(VirtIOBlockReq *req)
{
    if (req->ops != &data_plane_pool_ops) {
        return NULL;
    }
    return &container_of(req, DataPlaneReq, req)->vecs;
}

/* Completion */

static VirtIODevice *queue_vdev(DataPlaneQueue *q)
{
    /* Not VIRTIO_DEVICE(), which looks the type up each time */
    return &q->s->parent_obj;
}

static void queue_set_error(DataPlaneQueue *q, int err)
{
    if (err == VRING_ERR_RING_LOST) {
        /* Do not replace another error: this one may be over soon. */
        qatomic_cmpxchg(&q->error, 0, err);
    } else {
        qatomic_set(&q->error, err);
    }
    qemu_bh_schedule(q->attention_bh);
}

static void queue_account(DataPlaneQueue *q)
{
    unsigned num = q->acct_num;
    int64_t now;

    if (!num) {
        return;
    }
    now = block_acct_done_batch(blk_get_stats(q->s->blk), q->acct, num);
    for (unsigned i = 0; i < num; i++) {
        stat_latency(q, q->acct_kind[i], now - q->acct[i].start_time_ns);
    }
    qatomic_set(&q->acct_num, 0);
}

/*
 * Of a request that is not accounted for in a batch; few are not.  Its kind is
 * where that of the next one in the batch will be.
 */
static __attribute__((noinline)) void
queue_account_other(DataPlaneQueue *q, const VirtIOBlockReq *req)
{
    stat_latency(q, q->acct_kind[q->acct_num],
                 block_acct_now_ns() - req->acct.start_time_ns);
}

/*
 * Account first: statistics must include each request that the driver can see
 * as completed.
 *
 * A device that needs a reset uses no buffers (2.1.2).  If bus mastering was
 * disabled, publish what was pushed before: part of it may be in the ring
 * already.
 */
static void queue_publish(DataPlaneQueue *q)
{
    queue_account(q);
    if (!queue_vdev(q)->broken) {
        q->unnotified += vring_publish(&q->vring);
    }
}

static void notify_guest(DataPlaneQueue *q)
{
    QEMUBH *left_bh = qatomic_read(&q->left_bh);
    unsigned count;

    queue_publish(q);
    if (unlikely(left_bh)) {
        qemu_bh_schedule(left_bh);
    }
    count = q->unnotified;
    if (!count) {
        return;
    }
    q->unnotified = 0;
    if (vring_should_notify(&q->vring)) {
        trace_virtio_blk_data_plane_notify_guest(q->s->dataplane_id, q->index,
                                                 count);
        stat_add(&q->stats.notified, 1);
        /* Some drivers look at ISR with MSI-X, too: see virtio_set_isr() */
        virtio_set_isr(queue_vdev(q), 1);
        event_notifier_set(&q->guest_notifier);
    } else {
        stat_add(&q->stats.suppressed, 1);
    }
}

/* Context: BH in the queue's AioContext, or as notify_guest_deferred() */
static void notify_guest_bh(void *opaque)
{
    DataPlaneQueue *q = opaque;

    q->notify = DATA_PLANE_NOTIFY_NONE;
    notify_guest(q);
}

/*
 * Called by defer_call(), immediately if this is not in a deferred section.
 * In that case, if requests are in flight, more completions may follow in this
 * pass of the event loop: notify in a BH.
 */
static void notify_guest_deferred(void *opaque)
{
    DataPlaneQueue *q = opaque;

    if (q->notify == DATA_PLANE_NOTIFY_ASKED && q->vring.inuse) {
        q->notify = DATA_PLANE_NOTIFY_IN_BH;
        qemu_bh_schedule(q->notify_bh);
    } else {
        notify_guest_bh(q);
    }
}

/*
 * Notify once for the completions of a defer_call() section, or of one pass of
 * the event loop.
 */
static void notify_guest_later(DataPlaneQueue *q)
{
    if (q->notify != DATA_PLANE_NOTIFY_NONE) {
        return;
    }
    q->notify = DATA_PLANE_NOTIFY_ASKED;
    defer_call(notify_guest_deferred, q);
    if (q->notify == DATA_PLANE_NOTIFY_ASKED) {
        q->notify = DATA_PLANE_NOTIFY_DEFERRED;
    }
}

/*
 * Called in the middle of a batch.  A defer_call() section is one sweep of
 * completions and ends soon, so defer the notification until then: notifying
 * earlier was measured to double the interrupts of a fast file.  A pass of the
 * event loop takes longer, so notify now.
 */
static void queue_publish_early(DataPlaneQueue *q)
{
    if (q->notify == DATA_PLANE_NOTIFY_IN_BH) {
        notify_guest(q);
    } else {
        queue_publish(q);
    }
}

/*
 * Returns the number of bytes that were written without a gap from the first
 * device-writable byte on (2.7.8.2).  If nothing was written to the data, or
 * it is not known how much, this does not include the status byte behind it.
 */
static inline uint32_t used_length(VirtIOBlockReq *req, uint32_t type,
                                   unsigned char status)
{
    if (likely(type == VIRTIO_BLK_T_IN && status == VIRTIO_BLK_S_OK)) {
        return req->in_len;
    }
    if (req->in_len == 1) {
        return 1;
    }
    if (status != VIRTIO_BLK_S_OK) {
        return 0;
    }
    switch (type) {
    case VIRTIO_BLK_T_OUT:
    case VIRTIO_BLK_T_FLUSH:
    case VIRTIO_BLK_T_FLUSH | VIRTIO_BLK_T_OUT:
    case VIRTIO_BLK_T_DISCARD:
    case VIRTIO_BLK_T_WRITE_ZEROES:
        return 0;
    case VIRTIO_BLK_T_GET_ID:
        return req->in_len > VIRTIO_BLK_ID_BYTES + 1 ? VIRTIO_BLK_ID_BYTES
                                                     : req->in_len;
    default:
        return req->in_len;
    }
}

/* @vecs: NULL if QEMU's virtqueue code has mapped the request */
static inline QEMU_ALWAYS_INLINE
void queue_use_request(DataPlaneQueue *q, VirtIOBlockReq *req,
                       VringVectors *vecs, unsigned char status)
{
    uint32_t type = request_type(req);
    DataPlaneKind kind = kind_of_type(type);

    stat_completed(q, kind, status);
    /* Now, as it would take a register to keep it */
    q->acct_kind[q->acct_num] = kind;
    if (unlikely(virtio_device_disabled(queue_vdev(q)))) {
        queue_account_other(q, req);
        vring_push_disabled(&q->vring, &req->elem, vecs,
                            used_length(req, type, status));
        return;
    }
    vring_push(&q->vring, &req->elem, vecs, used_length(req, type, status));

    /* virtio-blk.c accounts for failed requests.  Others fit the 32 bits. */
    QEMU_BUILD_BUG_ON(BDRV_REQUEST_MAX_BYTES > UINT32_MAX);
    if (likely(status == VIRTIO_BLK_S_OK &&
               req->acct.type != BLOCK_ACCT_NONE)) {
        unsigned num = q->acct_num;

        q->acct[num] = block_acct_take(&req->acct);
        qatomic_set(&q->acct_req[num], req);
        qatomic_set(&q->acct_num, num + 1);
    } else {
        queue_account_other(q, req);
    }
    if (vring_unpublished(&q->vring) >= DATA_PLANE_PUBLISH ||
        q->acct_num == DATA_PLANE_PUBLISH) {
        queue_publish_early(q);
    }
    notify_guest_later(q);
    if (unlikely(q->vring.lost)) {
        queue_set_error(q, VRING_ERR_RING_LOST);
    }
}

/* Does the request need the BQL, to write a copy back to memory? */
static bool mapping_is_bounced(DataPlaneQueue *q, const VirtIOBlockReq *req)
{
    for (unsigned i = 0; i < req->elem.in_num; i++) {
        if (!vring_memory_is_ram(q->vring.mem, req->elem.in_sg[i].iov_base)) {
            return true;
        }
    }
    return false;
}

void data_plane_queue_complete(DataPlaneQueue *q, VirtIOBlockReq *req,
                               unsigned char status)
{
    VringVectors *vecs = request_vectors(req);

    IO_CODE();
    if (unlikely((!vecs || vring_is_bounced(vecs)) &&
                 mapping_is_bounced(q, req))) {
        virtio_blk_progress_set(&req->progress, VIRTIO_BLK_STAGE_COMPLETED);
        data_plane_bounce_unmap(&q->bounce, req, vecs, status);
    } else {
        /* First, while no register has to be kept for it */
        data_plane_trace_end(req, status);
        queue_use_request(q, req, vecs, status);
    }
}

static DataPlaneQueue *queue_of_bounce(DataPlaneBounce *b)
{
    return container_of(b, DataPlaneQueue, bounce);
}

static void request_unmapped(DataPlaneBounce *b, VirtIOBlockReq *req,
                             unsigned char status)
{
    VringVectors unmapped = { .mapping = VRING_UNMAPPED };

    data_plane_trace_end(req, status);
    queue_use_request(queue_of_bounce(b), req,
                      request_vectors(req) ?: &unmapped, status);
    virtio_blk_free_request(req);
}

static void request_mapped(DataPlaneBounce *b, int ret)
{
    DataPlaneQueue *q = queue_of_bounce(b);

    if (ret == 0) {
        event_notifier_set(&q->host_notifier);
    } else {
        queue_set_error(q, VRING_ERR_ADDRESS);
    }
}

static const DataPlaneBounceOps bounce_ops = {
    .mapped = request_mapped,
    .unmapped = request_unmapped,
};

void data_plane_queue_give_up(DataPlaneQueue *q, VirtIOBlockReq *req)
{
    IO_CODE();
    data_plane_trace_end(req, DATA_PLANE_NO_STATUS);
    vring_detach(&q->vring, &req->elem, request_vectors(req));
}

/* Submission */

/* The parser reads the header, and the completion writes the status. */
static void prefetch_request(const VirtQueueElement *elem)
{
    if (likely(elem->out_num && elem->in_num)) {
        __builtin_prefetch(elem->in_sg[elem->in_num - 1].iov_base, 1);
        __builtin_prefetch(elem->out_sg[0].iov_base);
    }
}

/*
 * Pops at most @max requests and prefetches their headers before the first is
 * parsed.  Returns their number; sets @err to a negative VringError if the
 * driver made a mistake in the next one.
 *
 * @now: the time, one for the whole batch
 *
 * Stops when another queue breaks the device, and after a request that the main
 * loop has to map.
 */
static unsigned queue_pop_batch(DataPlaneQueue *q, VirtIOBlockReq **reqs,
                                unsigned max, int64_t now, int *err)
{
    unsigned n;

    for (n = 0; n < max && !virtio_device_disabled(queue_vdev(q)); n++) {
        DataPlaneReq *slot = pool_get(q);
        int ret;

        if (unlikely(!slot)) {
            *err = vring_pop_full(&q->vring);
            break;
        }
        ret = vring_pop(&q->vring, &slot->req.elem, &slot->vecs);
        if (ret <= 0) {
            pool_put(slot);
            *err = ret;
            break;
        }
        virtio_blk_init_request(q->s, q->vq, &slot->req);
        slot->req.ops = &data_plane_pool_ops;
        slot->req.acct.start_time_ns = now;
        virtio_blk_progress_set(&slot->req.progress, VIRTIO_BLK_STAGE_POPPED);
        if (unlikely(!vring_is_mapped(&slot->vecs))) {
            stat_add(&q->stats.popped, 1);
            /* Of the slot's last request, and this one may never have any */
            slot->req.acct.bytes = 0;
            slot->req.sector_num = 0;
            data_plane_bounce_map(&q->bounce, &slot->req, &slot->vecs);
            break;
        }
        prefetch_request(&slot->req.elem);
        reqs[n] = &slot->req;
    }
    stat_add(&q->stats.popped, n);
    return n;
}

/* Apart from queue_handle_batch(), so that this is inlined */
static __attribute__((noinline)) void
queue_give_up_batch(DataPlaneQueue *q, VirtIOBlockReq **reqs, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        data_plane_queue_give_up(q, reqs[i]);
        virtio_blk_free_request(reqs[i]);
    }
}

/* Returns false, having given up what was left, if the device is broken */
static bool queue_handle_batch(DataPlaneQueue *q, VirtIOBlockReq **reqs,
                               unsigned n, MultiReqBuffer *mrb)
{
    data_plane_trace_begins(reqs, n);
    for (unsigned i = 0; i < n; i++) {
        if (unlikely(virtio_blk_handle_request(reqs[i], mrb))) {
            queue_give_up_batch(q, reqs + i, n - i);
            return false;
        }
    }
    return true;
}

/* Handles the request that the main loop has mapped, if any; returns 1 or 0 */
static unsigned queue_handle_mapped(DataPlaneQueue *q, MultiReqBuffer *mrb)
{
    VirtIOBlockReq *req;

    if (likely(data_plane_bounce_stall(&q->bounce) == DATA_PLANE_STALL_NONE)) {
        return 0;
    }
    req = data_plane_bounce_take(&q->bounce);
    queue_handle_batch(q, &req, 1, mrb);
    return 1;
}

/*
 * Pops and handles at most @max requests.  Returns their number.  After a
 * mistake of the driver the device is broken, or the main loop is going to
 * break it.
 */
static unsigned queue_process_ring(DataPlaneQueue *q, MultiReqBuffer *mrb,
                                   unsigned max)
{
    VIRTIO_BLK_UNCLEARED VirtIOBlockReq *reqs[VIRTIO_BLK_MAX_MERGE_REQS];
    unsigned total = 0, n;

    do {
        int err = 0;

        if (!mrb->start_time_ns) {
            mrb->start_time_ns = block_acct_now_ns();
        }
        n = queue_pop_batch(q, reqs, MIN(max - total, ARRAY_SIZE(reqs)),
                            mrb->start_time_ns, &err);
        total += n;
        if (!queue_handle_batch(q, reqs, n, mrb)) {
            break;
        }
        if (unlikely(err < 0)) {
            queue_set_error(q, -err);
        }
    } while (n == ARRAY_SIZE(reqs) && total < max);
    return total;
}

/* Kick again when a lost ring returns: kicks in between found nothing. */
static void queue_refresh_memory(DataPlaneQueue *q)
{
    bool was_lost = q->vring.lost;

    q->unnotified += vring_refresh_memory(&q->vring);
    if (unlikely(was_lost && !q->vring.lost)) {
        event_notifier_set(&q->host_notifier);
    }
}

/*
 * Take at most as many requests as the ring has entries, so that a fast driver
 * cannot starve the event loop.
 *
 * Leave notifications alone while the event loop polls: poll_begin has disabled
 * them, and poll_end enables them.
 *
 * In a drained section requests stay in the ring: drained_end attaches the
 * queue, which kicks it.
 */
static void handle_notify(DataPlaneQueue *q)
{
    VirtIODevice *vdev = queue_vdev(q);
    VIRTIO_BLK_UNCLEARED MultiReqBuffer mrb;
    unsigned budget = q->vring.config.num;
    unsigned total = 0;
    bool more;

    IO_CODE();
    if (virtio_device_disabled(vdev) ||
        data_plane_bounce_stall(&q->bounce) == DATA_PLANE_STALL_WAITING ||
        !blk_submit_begin(q->s->blk)) {
        return;
    }
    queue_refresh_memory(q);
    virtio_blk_init_multireq(&mrb, q->s->conf.x_direct ? &q->direct : NULL);

    defer_call_begin();
    total = queue_handle_mapped(q, &mrb);
    do {
        if (!q->polling) {
            vring_disable_notification(&q->vring);
        }
        total += queue_process_ring(q, &mrb, budget - total);
        more = q->polling ? vring_more_avail(&q->vring)
                          : vring_enable_notification(&q->vring);
        /* A stalled queue pops nothing; the main loop is going to kick it. */
        more = more &&
               data_plane_bounce_stall(&q->bounce) == DATA_PLANE_STALL_NONE;
    } while (more && total < budget && !virtio_device_disabled(vdev));

    if (mrb.num_reqs) {
        virtio_blk_submit_multireq(q->s, &mrb);
    }
    defer_call_end();
    blk_submit_end(q->s->blk);

    if (total) {
        trace_virtio_blk_data_plane_batch(q->s->dataplane_id, q->index, total,
                                          mrb.num_merged);
        stat_add(&q->stats.batches, 1);
        stat_add(&q->stats.merged, mrb.num_merged);
    }
    if (more && !virtio_device_disabled(vdev)) {
        event_notifier_set(&q->host_notifier);
    }
}

static void host_notifier_read(EventNotifier *n)
{
    DataPlaneQueue *q = container_of(n, DataPlaneQueue, host_notifier);

    if (!event_notifier_test_and_clear(n)) {
        return;
    }
    /*
     * The event loop does not poll a queue when it reads its notifier.  If the
     * queue was detached while the event loop polled, poll_end was not called:
     * correct that here, where the kick of the next attach arrives.
     */
    q->polling = false;
    stat_add(&q->stats.kicks, 1);
    if (likely(qatomic_load_acquire(&q->active))) {
        handle_notify(q);
    } else {
        /* The queue has no ring yet: check whether it is enabled by now. */
        qemu_bh_schedule(q->attention_bh);
    }
}

/* A broken device, or one without bus mastering, does not access its rings. */
static bool queue_may_use_ring(DataPlaneQueue *q)
{
    return qatomic_load_acquire(&q->active) &&
           !virtio_device_disabled(queue_vdev(q));
}

static bool host_notifier_poll(void *opaque)
{
    EventNotifier *n = opaque;
    DataPlaneQueue *q = container_of(n, DataPlaneQueue, host_notifier);

    switch (data_plane_bounce_stall(&q->bounce)) {
    case DATA_PLANE_STALL_NONE:
        return queue_may_use_ring(q) && vring_more_avail(&q->vring);
    case DATA_PLANE_STALL_MAPPED:
        return queue_may_use_ring(q);
    default:
        return false;
    }
}

static void host_notifier_poll_ready(EventNotifier *n)
{
    DataPlaneQueue *q = container_of(n, DataPlaneQueue, host_notifier);

    stat_add(&q->stats.polled, 1);
    handle_notify(q);
}

static void host_notifier_poll_begin(EventNotifier *n)
{
    DataPlaneQueue *q = container_of(n, DataPlaneQueue, host_notifier);

    q->polling = true;
    if (queue_may_use_ring(q)) {
        queue_refresh_memory(q);
        vring_disable_notification(&q->vring);
    }
}

static void host_notifier_poll_end(EventNotifier *n)
{
    DataPlaneQueue *q = container_of(n, DataPlaneQueue, host_notifier);

    q->polling = false;
    /* The event loop polls once more after this. */
    if (queue_may_use_ring(q)) {
        queue_refresh_memory(q);
        vring_enable_notification(&q->vring);
    }
}

/* Life */

/* Context: BH in the queue's AioContext */
static void memory_changed_bh(void *opaque)
{
    DataPlaneQueue *q = opaque;

    if (!qatomic_load_acquire(&q->active)) {
        return;
    }
    if (queue_vdev(q)->broken) {
        /* Use no buffers any more (2.1.2), but release unplugged memory. */
        q->vring.broken = true;
    }
    queue_refresh_memory(q);
}

void data_plane_queue_init(DataPlaneQueue *q, VirtIOBlock *s, unsigned index,
                           QEMUBH *attention_bh)
{
    GLOBAL_STATE_CODE();

    q->s = s;
    q->attention_bh = attention_bh;
    q->vq = virtio_get_queue(VIRTIO_DEVICE(s), index);
    q->index = index;
    q->quiesced = true;
    blk_direct_init(&q->direct, s->blk, virtio_blk_direct_complete);
    q->direct.registered_buf = s->conf.x_fixed_buffers;
    data_plane_bounce_init(&q->bounce, &bounce_ops, s, index);
}

void data_plane_queue_cleanup(DataPlaneQueue *q)
{
    GLOBAL_STATE_CODE();

    assert(!q->active);
    assert(q->stats.popped == q->stats.released);
    assert(!q->direct.held);
    data_plane_bounce_cleanup(&q->bounce);
    pool_abandon(q);
}

/* After a migration this may contradict the positions of the queue. */
static unsigned queue_parked_descs(DataPlaneQueue *q)
{
    unsigned n = 0;

    QEMU_LOCK_GUARD(&q->s->rq_lock);

    for (VirtIOBlockReq *req = q->s->rq; req; req = req->next) {
        if (req->vq == q->vq) {
            n += req->elem.ndescs;
        }
    }
    return n;
}

bool data_plane_queue_setup(DataPlaneQueue *q, VringMemory *mem, Error **errp)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(q->s);

    GLOBAL_STATE_CODE();
    if (q->active || !virtio_queue_enabled(vdev, q->index) ||
        !virtio_queue_get_desc_addr(vdev, q->index)) {
        return true;
    }
    if (!vring_setup(&q->vring, vdev, q->index, mem, errp)) {
        return false;
    }
    if (queue_parked_descs(q) > q->vring.inuse) {
        vring_teardown(&q->vring, vdev, q->index);
        error_setg(errp, "requests that are parked take more descriptors than "
                   "are in flight");
        vdev->broken = true;
        return false;
    }
    pool_set_size(q, q->vring.config.num);
    q->unnotified = 0;
    /* Pairs with the load-acquire in the handlers */
    qatomic_store_release(&q->active, true);
    return true;
}

/*
 * Makes parked requests independent of the ring.  Afterwards they look as if
 * QEMU's own path had popped them, and can be migrated, dropped, or completed
 * by either path.
 */
static void queue_pin_requests(DataPlaneQueue *q)
{
    for (unsigned i = 0; i < q->pool->touched; i++) {
        DataPlaneReq *slot = &q->pool->slots[i];

        if (slot->vecs.ram_ref) {
            vring_pin(&q->vring, &slot->req.elem, &slot->vecs);
        }
    }
}

void data_plane_queue_teardown(DataPlaneQueue *q)
{
    GLOBAL_STATE_CODE();

    if (!q->active) {
        return;
    }
    queue_pin_requests(q);
    vring_teardown(&q->vring, VIRTIO_DEVICE(q->s), q->index);
    q->active = false;
}

void data_plane_queue_bind(DataPlaneQueue *q, AioContext *ctx)
{
    GLOBAL_STATE_CODE();

    q->ctx = ctx;
    q->host_notifier = *virtio_queue_get_host_notifier(q->vq);
    q->guest_notifier = *virtio_queue_get_guest_notifier(q->vq);
    q->notify_bh = aio_bh_new(ctx, notify_guest_bh, q);
    q->memory_bh = aio_bh_new(ctx, memory_changed_bh, q);
    data_plane_bounce_start(&q->bounce, ctx);
}

void data_plane_queue_attach(DataPlaneQueue *q)
{
    GLOBAL_STATE_CODE();

    if (q->quiesced) {
        return;
    }
    aio_set_event_notifier(q->ctx, &q->host_notifier, host_notifier_read,
                           host_notifier_poll, host_notifier_poll_ready);
    aio_set_event_notifier_poll(q->ctx, &q->host_notifier,
                                host_notifier_poll_begin,
                                host_notifier_poll_end);
    /*
     * Kicks may have been lost while the queue was detached.  Besides, a detach
     * while the event loop polled has left notifications disabled: see
     * host_notifier_read().
     */
    event_notifier_set(&q->host_notifier);
}

void data_plane_queue_detach(DataPlaneQueue *q)
{
    IO_OR_GS_CODE();

    aio_set_event_notifier(q->ctx, &q->host_notifier, NULL, NULL, NULL);
}

/* Context: BH in the queue's AioContext */
static void quiesce_bh(void *opaque)
{
    DataPlaneQueue *q = opaque;

    data_plane_queue_detach(q);
    /*
     * No handler sees this kick any more.  The buffers stay in the ring, where
     * each start looks first.
     */
    event_notifier_test_and_clear(&q->host_notifier);
}

void data_plane_queue_resume(DataPlaneQueue *q)
{
    GLOBAL_STATE_CODE();

    q->quiesced = false;
}

void data_plane_queue_quiesce(DataPlaneQueue *q)
{
    GLOBAL_STATE_CODE();

    q->quiesced = true;
    aio_wait_bh_oneshot(q->ctx, quiesce_bh, q);
}

void data_plane_queue_leave(DataPlaneQueue *q, QEMUBH *left_bh)
{
    GLOBAL_STATE_CODE();

    qatomic_set(&q->left_bh, left_bh);
    data_plane_queue_quiesce(q);
}

void data_plane_queue_stay(DataPlaneQueue *q)
{
    GLOBAL_STATE_CODE();

    qatomic_set(&q->left_bh, NULL);
    data_plane_queue_resume(q);
}

bool data_plane_queue_has_left(DataPlaneQueue *q)
{
    unsigned waiting;

    GLOBAL_STATE_CODE();
    if (!q->active) {
        return true;
    }
    /*
     * First: one that is parked meanwhile counts as in flight, and none is
     * restarted while the BQL is held.
     */
    waiting = queue_parked_descs(q);
    if (data_plane_bounce_stall(&q->bounce) != DATA_PLANE_STALL_NONE) {
        waiting += q->bounce.stalled->elem.ndescs;
    }
    return qatomic_read(&q->vring.inuse) == waiting;
}

/* Context: BH in the AioContext of the BH to delete, which cannot run now */
static void delete_bh(void *opaque)
{
    qemu_bh_delete(opaque);
}

/* Context: BH in the queue's AioContext */
static void unbind_bh(void *opaque)
{
    DataPlaneQueue *q = opaque;

    data_plane_bounce_finish(&q->bounce);
    qemu_bh_delete(q->notify_bh);
    q->notify_bh = NULL;
    q->notify = DATA_PLANE_NOTIFY_NONE;
    if (q->active) {
        notify_guest(q);
    }
    queue_account(q);
}

/*
 * Parks a request like the error policy does.  Its headers were given back to
 * the element when it completed.
 */
static void queue_park_request(DataPlaneQueue *q, VirtIOBlockReq *req)
{
    QEMU_LOCK_GUARD(&q->s->rq_lock);

    req->mr_next = NULL;
    virtio_blk_progress_set(&req->progress, VIRTIO_BLK_STAGE_PARKED);
    data_plane_trace_end(req, DATA_PLANE_NO_STATUS);
    req->next = q->s->rq;
    q->s->rq = req;
}

/* Lets requests that wait for the main loop be handled again after the stop */
static void queue_put_back_bounced(DataPlaneQueue *q)
{
    VirtIOBlockReq *req = data_plane_bounce_take(&q->bounce);

    if (req) {
        vring_unpop(&q->vring, &req->elem, request_vectors(req));
        virtio_blk_free_request(req);
    }
    while ((req = data_plane_bounce_cancel(&q->bounce))) {
        if (virtio_device_disabled(queue_vdev(q))) {
            data_plane_queue_give_up(q, req);
            virtio_blk_free_request(req);
        } else {
            queue_park_request(q, req);
        }
    }
}

void data_plane_queue_unbind(DataPlaneQueue *q)
{
    QEMUBH *memory_bh = g_steal_pointer(&q->memory_bh);

    GLOBAL_STATE_CODE();
    qatomic_set(&q->left_bh, NULL);
    data_plane_bounce_stop(&q->bounce);
    /* Memory may change while this waits, but memory_bh is NULL by now. */
    aio_wait_bh_oneshot(q->ctx, unbind_bh, q);
    aio_wait_bh_oneshot(q->ctx, delete_bh, memory_bh);
    queue_put_back_bounced(q);
}
