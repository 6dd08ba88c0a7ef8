/*
 * Fixed buffers of io_uring
 *
 * Each ring has a table of buffers in the kernel, which all begin empty.  A
 * range of memory gets the same entries in all of them, one for each GiB, as
 * the kernel takes no larger buffer.
 *
 * What needs no lock, and why:
 * - a request is submitted with an index that luring_buffers_find() gave.  Its
 *   range cannot be removed before the request ends, as the request keeps the
 *   memory.  So the index is right even if the table that it was found in has
 *   been replaced; RCU only frees that table.
 * - the kernel's tables are changed by any thread, while the ring's thread
 *   submits: io_uring_register() is serialised with io_uring_enter() by the
 *   kernel, and touches nothing of the ring that is shared with user space.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/resource.h>
#include <liburing.h>
#include "block/aio.h"
#include "block/aio-wait.h"
#include "block/raw-aio.h"
#include "block/io_uring-buffers.h"
#include "qapi/error.h"
#include "qemu/bitmap.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/rcu.h"
#include "trace.h"

/* What the kernel allows: 16 TiB of memory */
#define MAX_BUFFERS 16384
#define BUFFER_SHIFT 30
#define BUFFER_SIZE ((size_t)1 << BUFFER_SHIFT)

typedef struct Range {
    uintptr_t host;
    size_t size;
    unsigned first;             /* buffer; the others follow */
} Range;

/* Largest first, as most requests are there.  Never changed, but replaced */
typedef struct Table {
    struct rcu_head rcu;
    unsigned n;
    Range range[];
} Table;

typedef struct Region {
    Range range;
    char *name;
    QTAILQ_ENTRY(Region) next;
} Region;

typedef struct Ring {
    AioContext *ctx;
    struct io_uring *ring;
    unsigned users;
    QLIST_ENTRY(Ring) next;
} Ring;

static struct {
    QemuMutex lock;
    /* Protected by lock */
    QTAILQ_HEAD(, Region) regions;      /* largest first */
    QLIST_HEAD(, Ring) rings;
    DECLARE_BITMAP(used, MAX_BUFFERS);
    /* Written with lock; read by any thread, with RCU */
    Table *table;
} buffers = {
    .regions = QTAILQ_HEAD_INITIALIZER(buffers.regions),
};

static void __attribute__((constructor)) buffers_init(void)
{
    qemu_mutex_init(&buffers.lock);
}

/* Requests */

int luring_buffers_find(const void *host, size_t size)
{
    const Table *table;

    RCU_READ_LOCK_GUARD();
    table = qatomic_rcu_read(&buffers.table);
    for (unsigned i = 0; table && i < table->n; i++) {
        const Range *r = &table->range[i];
        uintptr_t offset = (uintptr_t)host - r->host;

        if (offset < r->size) {
            /* A request is in one buffer, or has none. */
            return size && size <= r->size - offset &&
                   size <= BUFFER_SIZE - (offset & (BUFFER_SIZE - 1))
                   ? r->first + (offset >> BUFFER_SHIFT) : -1;
        }
    }
    return -1;
}

/* The table is made anew when regions have changed. */
static void buffers_publish(void)
{
    Table *old = buffers.table;
    Table *table;
    Region *region;
    unsigned n = 0;

    QTAILQ_FOREACH(region, &buffers.regions, next) {
        n++;
    }
    table = g_malloc(sizeof(*table) + n * sizeof(table->range[0]));
    table->n = 0;
    QTAILQ_FOREACH(region, &buffers.regions, next) {
        table->range[table->n++] = region->range;
    }
    qatomic_rcu_set(&buffers.table, table);
    if (old) {
        g_free_rcu(old, rcu);
    }
}

/* The kernel */

static void error_set_refusal(Error **errp, const char *name, int ret)
{
    const char *what_to_do;

    switch (ret) {
    case -ENOMEM:
        what_to_do = "raise the limit of locked memory (ulimit -l) to the "
                     "size of all memory for each IOThread";
        break;
    case -EFAULT:
    case -EOPNOTSUPP:
        what_to_do = "it may be a file that cannot be pinned; use anonymous "
                     "memory, memory-backend-memfd, or a file on tmpfs or "
                     "hugetlbfs";
        break;
    default:
        what_to_do = "the kernel does not allow it";
        break;
    }
    error_setg(errp, "io_uring cannot pin memory '%s': %s; %s", name,
               strerror(-ret), what_to_do);
}

static unsigned range_buffers(const Range *range)
{
    return DIV_ROUND_UP(range->size, BUFFER_SIZE);
}

/* Sets a buffer of a ring; size 0 empties it.  Returns: 0 or -errno */
static int ring_set_buffer(Ring *ring, unsigned index, uintptr_t host,
                           size_t size)
{
    struct iovec iov = { .iov_base = (void *)host, .iov_len = size };
    int ret;

    do {
        ret = io_uring_register_buffers_update_tag(ring->ring, index, &iov,
                                                   NULL, 1);
    } while (ret == -EINTR);
    trace_luring_set_buffer(ring->ctx, index, iov.iov_base, size, ret);
    return ret < 0 ? ret : 0;
}

/* The first @n buffers of a range */
static void ring_empty_buffers(Ring *ring, const Range *range, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        int ret = ring_set_buffer(ring, range->first + i, 0, 0);

        if (ret < 0) {
            warn_report_once("io_uring keeps memory that is not used any more "
                             "(%s)", strerror(-ret));
        }
    }
}

static void ring_remove(Ring *ring, const Region *region)
{
    ring_empty_buffers(ring, &region->range, range_buffers(&region->range));
}

static bool ring_add(Ring *ring, const Region *region, Error **errp)
{
    const Range *range = &region->range;
    size_t offset = 0;

    for (unsigned i = 0; offset < range->size; i++, offset += BUFFER_SIZE) {
        int ret = ring_set_buffer(ring, range->first + i, range->host + offset,
                                  MIN(range->size - offset, BUFFER_SIZE));

        if (ret < 0) {
            ring_empty_buffers(ring, range, i);
            error_set_refusal(errp, region->name, ret);
            return false;
        }
    }
    return true;
}

/* Memory */

static Region *region_new(const char *name, void *host, size_t size,
                          Error **errp)
{
    Region *region;
    Range range = { .host = (uintptr_t)host, .size = size };

    range.first = bitmap_find_next_zero_area(buffers.used, MAX_BUFFERS, 0,
                                             range_buffers(&range), 0);
    if (range.first >= MAX_BUFFERS) {
        error_setg(errp, "io_uring cannot pin memory '%s': more than %d GiB in "
                   "all; use less memory", name, MAX_BUFFERS);
        return NULL;
    }
    bitmap_set(buffers.used, range.first, range_buffers(&range));
    region = g_new(Region, 1);
    region->range = range;
    region->name = g_strdup(name);
    return region;
}

static void region_free(Region *region)
{
    bitmap_clear(buffers.used, region->range.first,
                 range_buffers(&region->range));
    g_free(region->name);
    g_free(region);
}

static void region_insert(Region *region)
{
    Region *other;

    QTAILQ_FOREACH(other, &buffers.regions, next) {
        if (other->range.size < region->range.size) {
            QTAILQ_INSERT_BEFORE(other, region, next);
            return;
        }
    }
    QTAILQ_INSERT_TAIL(&buffers.regions, region, next);
}

bool luring_buffers_add(const char *name, void *host, size_t size,
                        Error **errp)
{
    Region *region;
    Ring *ring, *done;

    QEMU_LOCK_GUARD(&buffers.lock);
    region = region_new(name, host, size, errp);
    if (!region) {
        return false;
    }
    QLIST_FOREACH(ring, &buffers.rings, next) {
        if (!ring_add(ring, region, errp)) {
            break;
        }
    }
    if (ring) {
        for (done = QLIST_FIRST(&buffers.rings); done != ring;
             done = QLIST_NEXT(done, next)) {
            ring_remove(done, region);
        }
        region_free(region);
        return false;
    }
    region_insert(region);
    buffers_publish();
    return true;
}

void luring_buffers_remove(void *host)
{
    Region *region;
    Ring *ring;

    QEMU_LOCK_GUARD(&buffers.lock);
    QTAILQ_FOREACH(region, &buffers.regions, next) {
        if (region->range.host == (uintptr_t)host) {
            break;
        }
    }
    if (!region) {
        return;
    }
    QTAILQ_REMOVE(&buffers.regions, region, next);
    buffers_publish();
    QLIST_FOREACH(ring, &buffers.rings, next) {
        ring_remove(ring, region);
    }
    region_free(region);
}

/* Rings */

typedef struct Setup {
    AioContext *ctx;
    Error *err;
} Setup;

/* Context: BH in the AioContext */
static void ring_setup_bh(void *opaque)
{
    Setup *setup = opaque;

    aio_setup_linux_io_uring(setup->ctx, &setup->err);
}

static Ring *ring_find(AioContext *ctx)
{
    Ring *ring;

    QLIST_FOREACH(ring, &buffers.rings, next) {
        if (ring->ctx == ctx) {
            break;
        }
    }
    return ring;
}

static void ring_unregister(Ring *ring)
{
    while (io_uring_unregister_buffers(ring->ring) == -EINTR) {
        /* Once more */
    }
    g_free(ring);
}

static Ring *ring_new(AioContext *ctx, Error **errp)
{
    Ring *ring = g_new0(Ring, 1);
    Region *region;
    int ret;

    ring->ctx = ctx;
    ring->ring = luring_get_ring(aio_get_linux_io_uring(ctx));
    ret = io_uring_register_buffers_sparse(ring->ring, MAX_BUFFERS);
    if (ret < 0) {
        error_setg(errp, "io_uring cannot register buffers: %s; Linux 5.19 or "
                   "later is needed, and must allow it", strerror(-ret));
        g_free(ring);
        return NULL;
    }
    QTAILQ_FOREACH(region, &buffers.regions, next) {
        if (!ring_add(ring, region, errp)) {
            ring_unregister(ring);
            return NULL;
        }
    }
    return ring;
}

bool luring_buffers_attach(AioContext *ctx, Error **errp)
{
    Setup setup = { .ctx = ctx };
    Ring *ring;

    GLOBAL_STATE_CODE();
    /* Only the ring's own thread makes it. */
    aio_wait_bh_oneshot(ctx, ring_setup_bh, &setup);
    if (setup.err) {
        error_propagate(errp, setup.err);
        return false;
    }

    QEMU_LOCK_GUARD(&buffers.lock);
    ring = ring_find(ctx);
    if (!ring) {
        ring = ring_new(ctx, errp);
        if (!ring) {
            return false;
        }
        QLIST_INSERT_HEAD(&buffers.rings, ring, next);
    }
    ring->users++;
    return true;
}

void luring_buffers_detach(AioContext *ctx)
{
    Ring *ring;

    GLOBAL_STATE_CODE();
    QEMU_LOCK_GUARD(&buffers.lock);
    ring = ring_find(ctx);
    if (!--ring->users) {
        QLIST_REMOVE(ring, next);
        ring_unregister(ring);
    }
}
