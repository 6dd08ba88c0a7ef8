/*
 * What IOThreads do with their time, in query-stats
 *
 * Shows what query-iothreads counts.  Knows nothing else of IOThreads.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/qapi-commands-misc.h"
#include "qapi/qapi-types-stats.h"
#include "qemu/module.h"
#include "system/stats.h"

#define BUSY_NS "busy-ns"
#define POLL_NS "poll-ns"
#define IDLE_NS "idle-ns"
#define WAKEUPS "wakeups"

/* In the order of iothread_stats_schema() */
static StatsList *iothread_stats(const IOThreadInfo *info, strList *names)
{
    StatsList *stats = NULL, **tail = &stats;

    if (info->has_busy_ns) {
        append_stats_scalar(&tail, names, BUSY_NS, info->busy_ns);
    }
    if (info->has_poll_ns) {
        append_stats_scalar(&tail, names, POLL_NS, info->poll_ns);
    }
    if (info->has_idle_ns) {
        append_stats_scalar(&tail, names, IDLE_NS, info->idle_ns);
    }
    if (info->has_wakeups) {
        append_stats_scalar(&tail, names, WAKEUPS, info->wakeups);
    }
    return stats;
}

static void iothread_stats_query(StatsResultList **results, StatsTarget target,
                                 strList *names, strList *targets,
                                 Error **errp)
{
    g_autoptr(IOThreadInfoList) list = NULL;

    if (target != STATS_TARGET_IOTHREAD) {
        return;
    }
    list = qmp_query_iothreads(errp);
    for (IOThreadInfoList *entry = list; entry; entry = entry->next) {
        StatsList *stats = iothread_stats(entry->value, names);
        g_autofree char *path = g_strdup_printf("/objects/%s",
                                                entry->value->id);

        if (stats) {
            add_stats_entry(results, STATS_PROVIDER_IOTHREAD, path, stats);
        }
    }
}

static void iothread_stats_schema(StatsSchemaList **results, Error **errp)
{
    StatsSchemaValueList *values = NULL, **tail = &values;

    append_stats_schema_ns(&tail, BUSY_NS, STATS_TYPE_CUMULATIVE);
    append_stats_schema_ns(&tail, POLL_NS, STATS_TYPE_CUMULATIVE);
    append_stats_schema_ns(&tail, IDLE_NS, STATS_TYPE_CUMULATIVE);
    append_stats_schema(&tail, WAKEUPS, STATS_TYPE_CUMULATIVE);
    add_stats_schema(results, STATS_PROVIDER_IOTHREAD, STATS_TARGET_IOTHREAD,
                     values);
}

static void iothread_stats_register(void)
{
    add_stats_callbacks(STATS_PROVIDER_IOTHREAD, iothread_stats_query,
                        iothread_stats_schema);
}

type_init(iothread_stats_register)
