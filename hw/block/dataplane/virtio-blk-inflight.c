/*
 * Requests of a virtio-blk data plane that are in flight, seen from outside
 *
 * Answers x-query-virtio-blk-requests, and raises an event when a request takes
 * too long.  Both have to work when an IOThread hangs.  So nothing here waits
 * for an IOThread, runs in one, or takes a lock of one: the main loop reads the
 * slots of the pools, where the IOThreads work on requests meanwhile.  See
 * hw/virtio/virtio-blk-progress.h for how it knows whether what it has read
 * belongs together.
 *
 * What is read does not go away: queues and pools are made, replaced and freed
 * with the BQL held, and so is the look at them.  A pool that is freed by an
 * IOThread, with the last of its parked requests, has left its queue before.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-virtio.h"
#include "qapi/qapi-events-virtio.h"
#include "qemu/atomic.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "block/accounting.h"
#include "system/block-backend.h"
#include "hw/virtio/virtio-access.h"
#include "virtio-blk.h"
#include "virtio-blk-inflight.h"
#include "virtio-blk-queue.h"

/* How often to read a request again that changes meanwhile */
#define TRIES 3

/* How often to look for a stall: in each timeout, and at most */
#define LOOKS_PER_TIMEOUT 4
#define LOOK_NS (10 * SCALE_MS)

/* A copy of what a request says of itself */
typedef struct Inflight {
    unsigned queue;
    unsigned slot;
    VirtIOBlockStage stage;
    bool throttled;
    uint16_t head;
    int64_t start_ns;
    VirtioBlkRequestType type;  /* from here on: unless POPPED */
    int64_t sector;
    int64_t bytes;
} Inflight;

struct VirtIOBlockStall {
    VirtIOBlock *s;
    QEMUTimer *timer;
    int64_t timeout_ns;
    bool stalled;
    Inflight request;           /* the oldest one when the stall began */
};

/* One request */

static VirtioBlkRequestType request_type(uint32_t type)
{
    switch (type & ~VIRTIO_BLK_T_BARRIER) {
    case VIRTIO_BLK_T_IN:
        return VIRTIO_BLK_REQUEST_TYPE_READ;
    case VIRTIO_BLK_T_OUT:
        return VIRTIO_BLK_REQUEST_TYPE_WRITE;
    case VIRTIO_BLK_T_FLUSH:
    case VIRTIO_BLK_T_FLUSH | VIRTIO_BLK_T_OUT:
        return VIRTIO_BLK_REQUEST_TYPE_FLUSH;
    case VIRTIO_BLK_T_DISCARD:
        return VIRTIO_BLK_REQUEST_TYPE_DISCARD;
    case VIRTIO_BLK_T_WRITE_ZEROES:
        return VIRTIO_BLK_REQUEST_TYPE_WRITE_ZEROES;
    default:
        return VIRTIO_BLK_REQUEST_TYPE_OTHER;
    }
}

/* Has @type an offset and a length?  Others leave these fields as they were. */
static bool type_has_range(VirtioBlkRequestType type)
{
    return type != VIRTIO_BLK_REQUEST_TYPE_FLUSH &&
           type != VIRTIO_BLK_REQUEST_TYPE_OTHER;
}

static void copy_fields(DataPlaneQueue *q, const VirtIOBlockReq *req,
                        Inflight *f)
{
    f->head = qatomic_read(&req->elem.index);
    f->start_ns = qatomic_read_i64(&req->acct.start_time_ns);
    if (f->stage != VIRTIO_BLK_STAGE_POPPED) {
        f->type = request_type(virtio_tswap32(VIRTIO_DEVICE(q->s),
                                              qatomic_read(&req->out.type)));
        f->sector = qatomic_read_i64(&req->sector_num);
        f->bytes = qatomic_read_i64(&req->acct.bytes);
    }
}

/* Returns 1 if there is a request in the slot, or -1 if that is not known */
static int read_slot(DataPlaneQueue *q, unsigned n, Inflight *f)
{
    const VirtIOBlockReq *req = &q->pool->slots[n].req;

    for (int i = 0; i < TRIES; i++) {
        VirtIOBlockProgressSeen seen = virtio_blk_progress_look(&req->progress);

        if (seen.stage == VIRTIO_BLK_STAGE_FREE) {
            return 0;
        }
        *f = (Inflight) { .queue = q->index, .slot = n, .stage = seen.stage };
        copy_fields(q, req, f);
        if (virtio_blk_progress_is(&req->progress, &seen)) {
            return 1;
        }
    }
    return -1;
}

/*
 * Is the @i-th of those that have completed, but are not accounted for and
 * shown to the driver, still to be found in its slot?
 */
static bool read_completed(DataPlaneQueue *q, unsigned i, unsigned touched,
                           Inflight *f)
{
    const DataPlaneReq *first = q->pool->slots;
    const VirtIOBlockReq *req = qatomic_read(&q->acct_req[i]);
    const DataPlaneReq *slot = container_of(req, DataPlaneReq, req);
    VirtIOBlockProgressSeen seen;

    if (!req || slot < first || slot >= first + touched) {
        /* Not from the pool, and maybe freed */
        return false;
    }
    seen = virtio_blk_progress_look(&req->progress);
    if (seen.stage != VIRTIO_BLK_STAGE_FREE) {
        return false;
    }
    *f = (Inflight) {
        .queue = q->index,
        .slot = slot - first,
        .stage = VIRTIO_BLK_STAGE_COMPLETED,
    };
    copy_fields(q, req, f);
    return virtio_blk_progress_is(&req->progress, &seen);
}

/* All requests of a device */

/* Appends those of a queue.  Returns how many could not be read */
static unsigned collect_queue(DataPlaneQueue *q, GArray *found)
{
    unsigned touched, unreadable = 0;
    Inflight f;

    if (!q->pool) {
        return 0;
    }
    /* Pairs with the store-release in pool_get() */
    touched = qatomic_load_acquire(&q->pool->touched);
    /* These first: one that completes meanwhile is not listed twice. */
    for (unsigned i = 0; i < qatomic_read(&q->acct_num); i++) {
        if (read_completed(q, i, touched, &f)) {
            g_array_append_val(found, f);
        }
    }
    for (unsigned i = 0; i < touched; i++) {
        int ret = read_slot(q, i, &f);

        if (ret > 0) {
            g_array_append_val(found, f);
        } else if (ret < 0) {
            unreadable++;
        }
    }
    return unreadable;
}

static gint compare_age(gconstpointer a, gconstpointer b)
{
    const Inflight *f = a, *g = b;

    if (f->start_ns != g->start_ns) {
        return f->start_ns < g->start_ns ? -1 : 1;
    }
    if (f->queue != g->queue) {
        return f->queue < g->queue ? -1 : 1;
    }
    return f->slot < g->slot ? -1 : f->slot > g->slot;
}

/*
 * Limits let older requests pass first, so it is the youngest that wait.  Those
 * that were merged count as one for the limit: then some are not marked.
 */
static void mark_throttled(VirtIOBlock *s, GArray *found)
{
    ThrottleGroupMember *tgm = &blk_get_public(s->blk)->throttle_group_member;
    /* Their lock may be the IOThread's: each number on its own will do. */
    unsigned reads = qatomic_read(&tgm->pending_reqs[THROTTLE_READ]);
    unsigned writes = qatomic_read(&tgm->pending_reqs[THROTTLE_WRITE]);

    for (unsigned i = found->len; i-- > 0; ) {
        Inflight *f = &g_array_index(found, Inflight, i);
        unsigned *left = f->type == VIRTIO_BLK_REQUEST_TYPE_READ ? &reads
                                                                 : &writes;

        if (f->stage == VIRTIO_BLK_STAGE_SUBMITTED && *left &&
            (f->type == VIRTIO_BLK_REQUEST_TYPE_READ ||
             f->type == VIRTIO_BLK_REQUEST_TYPE_WRITE ||
             f->type == VIRTIO_BLK_REQUEST_TYPE_WRITE_ZEROES)) {
            f->throttled = true;
            --*left;
        }
    }
}

/*
 * Returns Inflight of all requests, the oldest first.  @unreadable, set to the
 * number of those that could not be read, may be NULL.
 */
static GArray *collect(VirtIOBlock *s, unsigned *unreadable)
{
    GArray *found = g_array_new(false, false, sizeof(Inflight));
    unsigned lost = 0;

    GLOBAL_STATE_CODE();
    for (unsigned i = 0; i < s->conf.num_queues; i++) {
        lost += collect_queue(virtio_blk_data_plane_queue(s->dataplane, i),
                              found);
    }
    g_array_sort(found, compare_age);
    mark_throttled(s, found);
    if (unreadable) {
        *unreadable = lost;
    }
    return found;
}

/* What users see */

static VirtioBlkRequestStage shown_stage(VirtIOBlock *s, const Inflight *f)
{
    switch (f->stage) {
    case VIRTIO_BLK_STAGE_POPPED:
        return VIRTIO_BLK_REQUEST_STAGE_POPPED;
    case VIRTIO_BLK_STAGE_SUBMITTED:
        return f->throttled ? VIRTIO_BLK_REQUEST_STAGE_THROTTLED
                            : VIRTIO_BLK_REQUEST_STAGE_SUBMITTED;
    case VIRTIO_BLK_STAGE_PARKED:
        return s->restart_in_drain ? VIRTIO_BLK_REQUEST_STAGE_DRAINING
                                   : VIRTIO_BLK_REQUEST_STAGE_PARKED;
    case VIRTIO_BLK_STAGE_COMPLETED:
        return VIRTIO_BLK_REQUEST_STAGE_COMPLETED;
    default:
        g_assert_not_reached();
    }
}

static int64_t age_ns(const Inflight *f, int64_t now)
{
    return MAX(now - f->start_ns, 0);
}

static VirtioBlkRequest *shown_request(VirtIOBlock *s, const Inflight *f,
                                       int64_t now)
{
    VirtioBlkRequest *shown = g_new0(VirtioBlkRequest, 1);

    shown->queue = f->queue;
    shown->head = f->head;
    shown->stage = shown_stage(s, f);
    shown->age_ns = age_ns(f, now);
    if (f->stage != VIRTIO_BLK_STAGE_POPPED) {
        shown->has_type = true;
        shown->type = f->type;
        shown->has_offset = shown->has_bytes = type_has_range(f->type);
        if (shown->has_offset) {
            shown->offset = f->sector * BDRV_SECTOR_SIZE;
            shown->bytes = f->bytes;
        }
    }
    return shown;
}

/* The device that users name is the one on the bus, or the virtio device. */
VirtioBlkRequests *
qmp_x_query_virtio_blk_requests(const char *path, bool has_queue,
                                uint16_t queue, bool has_min_age_ns,
                                uint64_t min_age_ns, bool has_limit,
                                uint32_t limit, Error **errp)
{
    VirtIOBlock *s = virtio_blk_data_plane_find(path, errp);
    g_autoptr(GArray) found = NULL;
    VirtioBlkRequests *answer;
    VirtioBlkRequestList **tail;
    unsigned unreadable;
    int64_t now;

    if (!s || (has_queue &&
               !virtio_blk_data_plane_has_queue(s->dataplane, queue, errp))) {
        return NULL;
    }

    found = collect(s, &unreadable);
    now = block_acct_now_ns();
    answer = g_new0(VirtioBlkRequests, 1);
    answer->unreadable = unreadable;
    answer->drained = blk_in_drain(s->blk);
    tail = &answer->requests;
    for (unsigned i = 0; i < found->len; i++) {
        const Inflight *f = &g_array_index(found, Inflight, i);

        if ((has_queue && f->queue != queue) ||
            (has_min_age_ns && age_ns(f, now) < min_age_ns)) {
            continue;
        }
        if (!has_limit || answer->total < limit) {
            QAPI_LIST_APPEND(tail, shown_request(s, f, now));
        }
        answer->total++;
    }
    return answer;
}

/* Stalls */

static void stall_send(VirtIOBlockStall *stall, uint32_t count)
{
    VirtIOBlock *s = stall->s;
    DeviceState *proxy = qdev_get_parent_bus(DEVICE(s))->parent;
    g_autofree char *path = object_get_canonical_path(OBJECT(s));
    g_autoptr(VirtioBlkRequest) request =
        shown_request(s, &stall->request, block_acct_now_ns());

    qapi_event_send_virtio_blk_stall(path, proxy->id, stall->stalled, count,
                                     request);
}

/*
 * Counts requests that take too long, and sets @oldest to the oldest of them.
 * A request that the error policy has parked waits for the user, who was told
 * why by another event.
 */
static unsigned stall_count(VirtIOBlockStall *stall, Inflight *oldest)
{
    g_autoptr(GArray) found = collect(stall->s, NULL);
    int64_t now = block_acct_now_ns();
    unsigned count = 0;

    for (unsigned i = 0; i < found->len; i++) {
        const Inflight *f = &g_array_index(found, Inflight, i);

        if (f->stage == VIRTIO_BLK_STAGE_PARKED) {
            continue;
        }
        if (age_ns(f, now) < stall->timeout_ns) {
            break;
        }
        if (!count++) {
            *oldest = *f;
        }
    }
    return count;
}

static void stall_arm(VirtIOBlockStall *stall)
{
    timer_mod(stall->timer, block_acct_now_ns() +
              MAX(stall->timeout_ns / LOOKS_PER_TIMEOUT, LOOK_NS));
}

/*
 * Runs in nested event loops, too: what hangs may be a drain in the main loop.
 *
 * Context: timer in the main loop
 */
static void stall_look(void *opaque)
{
    VirtIOBlockStall *stall = opaque;
    Inflight oldest;
    unsigned count = stall_count(stall, &oldest);

    if (count && !stall->stalled) {
        stall->stalled = true;
        stall->request = oldest;
        stall_send(stall, count);
    } else if (!count && stall->stalled) {
        stall->stalled = false;
        stall_send(stall, 0);
    }
    stall_arm(stall);
}

bool virtio_blk_stall_begin(VirtIOBlock *s, Error **errp)
{
    VirtIOBlockStall *stall;

    GLOBAL_STATE_CODE();
    if (!s->conf.x_stall_timeout) {
        return true;
    }
    if (!s->dataplane) {
        error_setg(errp, "x-stall-timeout needs a data plane: give the device "
                   "an iothread, and not x-data-plane=off");
        return false;
    }
    stall = g_new0(VirtIOBlockStall, 1);
    stall->s = s;
    stall->timeout_ns = s->conf.x_stall_timeout * (int64_t)SCALE_MS;
    stall->timer = aio_timer_new(qemu_get_aio_context(), block_acct_clock(),
                                 SCALE_NS, stall_look, stall);
    s->stall = stall;
    stall_arm(stall);
    return true;
}

void virtio_blk_stall_end(VirtIOBlock *s)
{
    VirtIOBlockStall *stall = g_steal_pointer(&s->stall);

    GLOBAL_STATE_CODE();
    if (!stall) {
        return;
    }
    timer_free(stall->timer);
    if (stall->stalled) {
        stall->stalled = false;
        stall_send(stall, 0);
    }
    g_free(stall);
}
