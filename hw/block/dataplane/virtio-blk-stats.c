/*
 * What a virtio-blk data plane has counted, in query-stats
 *
 * Knows how its counters and histograms are named and described there.  Counts
 * nothing itself, and waits for no IOThread: virtio-blk-queue.h says who writes
 * what is read here.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/qapi-types-stats.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "system/stats.h"
#include "virtio-blk.h"
#include "virtio-blk-queue.h"

#define STARTS "starts"

/* Buckets that are shown; 2^38 ns, where the last one begins, are 275 s. */
#define SHOWN 40

/* In the order in which they are shown, before the rest */
static const struct {
    const char *name;
    size_t offset;              /* in VirtioBlkDataPlaneQueueInfo */
    StatsType type;
} counters[] = {
#define COUNTER(name, field, type) \
    { name, offsetof(VirtioBlkDataPlaneQueueInfo, field), STATS_TYPE_##type }
    COUNTER("reads", reads, CUMULATIVE),
    COUNTER("writes", writes, CUMULATIVE),
    COUNTER("flushes", flushes, CUMULATIVE),
    COUNTER("discards", discards, CUMULATIVE),
    COUNTER("write-zeroes", write_zeroes, CUMULATIVE),
    COUNTER("other", other, CUMULATIVE),
    COUNTER("errors", errors, CUMULATIVE),
    COUNTER("completed", completed, CUMULATIVE),
    COUNTER("in-flight", in_flight, INSTANT),
    COUNTER("batches", batches, CUMULATIVE),
    COUNTER("kicks", kicks, CUMULATIVE),
    COUNTER("polled", polled, CUMULATIVE),
    COUNTER("notifications-sent", notifications_sent, CUMULATIVE),
    COUNTER("notifications-suppressed", notifications_suppressed, CUMULATIVE),
    COUNTER("merged", merged, CUMULATIVE),
    COUNTER("direct", direct, CUMULATIVE),
    COUNTER("fixed-buffers", fixed_buffers, CUMULATIVE),
#undef COUNTER
};

static const char *const histograms[DATA_PLANE__KINDS] = {
    [DATA_PLANE_READ] = "read-latency",
    [DATA_PLANE_WRITE] = "write-latency",
    [DATA_PLANE_FLUSH] = "flush-latency",
    [DATA_PLANE_DISCARD] = "discard-latency",
    [DATA_PLANE_WRITE_ZEROES] = "write-zeroes-latency",
    [DATA_PLANE_OTHER] = "other-latency",
};

typedef struct StatsQuery {
    StatsResultList **results;
    strList *names;             /* NULL: all */
    strList *devices;           /* likewise */
} StatsQuery;

/*
 * As in KVM's statistics the first bucket is that of less than 1, and the last
 * one has no upper bound.
 */
static uint64_t shown_bucket(const DataPlaneQueue *q, DataPlaneKind kind,
                             unsigned n)
{
    uint64_t sum = 0;

    if (!n) {
        return 0;
    }
    do {
        sum += data_plane_queue_latency(q, kind, n - 1);
    } while (n++ >= SHOWN - 1 && n <= DATA_PLANE_BUCKETS);
    return sum;
}

static void append_histogram(StatsList ***tail, strList *names,
                             const DataPlaneQueue *q, DataPlaneKind kind)
{
    uint64List *buckets = NULL;

    if (!apply_str_list_filter(histograms[kind], names)) {
        return;
    }
    for (unsigned i = SHOWN; i-- > 0; ) {
        QAPI_LIST_PREPEND(buckets, shown_bucket(q, kind, i));
    }
    append_stats_list(tail, histograms[kind], buckets);
}

/* All in the order of virtio_blk_stats_schema() */
static StatsList *queue_stats(const DataPlaneQueue *q,
                              const VirtioBlkDataPlaneQueueInfo *info,
                              uint64_t starts, strList *names)
{
    StatsList *stats = NULL, **tail = &stats;

    for (unsigned i = 0; i < ARRAY_SIZE(counters); i++) {
        const void *value = (const char *)info + counters[i].offset;

        append_stats_scalar(&tail, names, counters[i].name,
                            *(const uint64_t *)value);
    }
    append_stats_scalar(&tail, names, STARTS, starts);
    for (unsigned i = 0; i < DATA_PLANE__KINDS; i++) {
        append_histogram(&tail, names, q, i);
    }
    return stats;
}

static void append_queue(StatsResultList ***tail, const char *path,
                         unsigned index, StatsList *stats)
{
    StatsResult *result = g_new0(StatsResult, 1);

    result->provider = STATS_PROVIDER_VIRTIO_BLK;
    result->qom_path = g_strdup(path);
    result->has_queue = true;
    result->queue = index;
    result->stats = stats;
    QAPI_LIST_APPEND(*tail, result);
}

static void query_device(VirtIOBlock *s, const char *path, StatsQuery *query)
{
    g_autoptr(VirtioBlkDataPlaneInfo) plane = virtio_blk_data_plane_info(s);
    VirtioBlkDataPlaneQueueInfoList *entry;
    StatsResultList *found = NULL, **tail = &found;

    for (entry = plane->queues; entry; entry = entry->next) {
        const VirtioBlkDataPlaneQueueInfo *info = entry->value;
        StatsList *stats =
            queue_stats(virtio_blk_data_plane_queue(s->dataplane, info->queue),
                        info, plane->starts, query->names);

        if (stats) {
            append_queue(&tail, path, info->queue, stats);
        }
    }
    *tail = *query->results;
    *query->results = found;
}

static int query_object(Object *obj, void *opaque)
{
    VirtIOBlock *s = (VirtIOBlock *)object_dynamic_cast(obj, TYPE_VIRTIO_BLK);
    StatsQuery *query = opaque;
    g_autofree char *path = NULL;

    /* Without a plane nothing is counted, and 0 would be untrue. */
    if (!s || !DEVICE(s)->realized || !s->dataplane) {
        return 0;
    }
    path = object_get_canonical_path(obj);
    if (apply_str_list_filter(path, query->devices)) {
        query_device(s, path, query);
    }
    return 0;
}

static void virtio_blk_stats_query(StatsResultList **results,
                                   StatsTarget target, strList *names,
                                   strList *targets, Error **errp)
{
    StatsQuery query = {
        .results = results,
        .names = names,
        .devices = targets,
    };

    GLOBAL_STATE_CODE();
    if (target == STATS_TARGET_VIRTIO_QUEUE) {
        object_child_foreach_recursive(object_get_root(), query_object, &query);
    }
}

static void virtio_blk_stats_schema(StatsSchemaList **results, Error **errp)
{
    StatsSchemaValueList *values = NULL, **tail = &values;

    for (unsigned i = 0; i < ARRAY_SIZE(counters); i++) {
        append_stats_schema(&tail, counters[i].name, counters[i].type);
    }
    append_stats_schema(&tail, STARTS, STATS_TYPE_CUMULATIVE);
    for (unsigned i = 0; i < DATA_PLANE__KINDS; i++) {
        append_stats_schema_ns(&tail, histograms[i],
                               STATS_TYPE_LOG2_HISTOGRAM);
    }
    add_stats_schema(results, STATS_PROVIDER_VIRTIO_BLK,
                     STATS_TARGET_VIRTIO_QUEUE, values);
}

static void virtio_blk_stats_register(void)
{
    add_stats_callbacks(STATS_PROVIDER_VIRTIO_BLK, virtio_blk_stats_query,
                        virtio_blk_stats_schema);
}

type_init(virtio_blk_stats_register)
