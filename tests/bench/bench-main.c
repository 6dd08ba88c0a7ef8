/*
 * A virtio-blk driver at native speed, one QEMU or back-end at a time
 *
 * Reads what to run from standard input, a line per run, and answers each with
 * a line of JSON: the interface of scripts/bench, which knows what to compare.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "bench-clock.h"
#include "bench-idle.h"
#include "bench-load.h"
#include "bench-process.h"

#include <json-glib/json-glib.h>
#include <stdio.h>
#include <string.h>

#define MIB (1024 * 1024ull)

static const char summary[] =
    "Works a virtio-blk disk as a guest's driver would, without a guest.  QEMU\n"
    "is started with a halted vCPU; machine and memory are added to the command\n"
    "line, which must have one virtio-blk-pci device on an IOThread, and with\n"
    "--disks more of them, in functions of the slots from 8 on.\n"
    "\n"
    "Each line of standard input is a run, in options as in\n"
    "  --rw read --bs 4096 --depth 32 --time-ms 500\n"
    "and is answered by a line of JSON; a line --help shows them all.\n";

/* The command line */
typedef struct Session {
    int queues;
    int queue_size;
    int memory;
    int cpu;
    int disks;
    int idle_disks;
    char *thread_cpus;
    char *ring;
    char *vhost_user;
    char *iothreads;
    gboolean stand_in;
    gboolean huge_pages;
    gboolean hold;
    gboolean in_order;
    gboolean no_indirect;
    gboolean no_event_idx;
    char **argv;
} Session;

/* Output */

static void print_json(JsonBuilder *builder)
{
    g_autoptr(JsonNode) node = json_builder_get_root(builder);
    g_autofree char *text = json_to_string(node, FALSE);

    puts(text);
    fflush(stdout);
}

static void add_int(JsonBuilder *b, const char *name, int64_t value)
{
    json_builder_set_member_name(b, name);
    json_builder_add_int_value(b, value);
}

static void add_double(JsonBuilder *b, const char *name, double value)
{
    json_builder_set_member_name(b, name);
    json_builder_add_double_value(b, value);
}

static void add_string(JsonBuilder *b, const char *name, const char *value)
{
    json_builder_set_member_name(b, name);
    json_builder_add_string_value(b, value);
}

static JsonBuilder *begin_event(const char *event)
{
    JsonBuilder *b = json_builder_new();

    json_builder_begin_object(b);
    add_string(b, "event", event);
    return b;
}

static void end_event(JsonBuilder *b)
{
    json_builder_end_object(b);
    print_json(b);
    g_object_unref(b);
}

static int report_error(const GError *error)
{
    JsonBuilder *b = begin_event("error");

    add_string(b, "message", error->message);
    end_event(b);
    return 1;
}

static void report_ready(const BenchDevice *dev)
{
    JsonBuilder *b = begin_event("ready");

    add_int(b, "capacity", dev->capacity);
    add_int(b, "disks", dev->num_disks);
    add_int(b, "queues", dev->num_queues);
    add_int(b, "queue_size", dev->queues[0].size);
    json_builder_set_member_name(b, "flush");
    json_builder_add_boolean_value(b, bench_device_has(dev, BENCH_F_FLUSH));
    json_builder_set_member_name(b, "event_idx");
    json_builder_add_boolean_value(b, bench_device_has(dev,
                                                       BENCH_F_EVENT_IDX));
    add_int(b, "pid", dev->pid);
    json_builder_set_member_name(b, "threads");
    json_builder_begin_array(b);
    for (unsigned i = 0; i < dev->threads->len; i++) {
        const BenchThread *t = &g_array_index(dev->threads, BenchThread, i);

        json_builder_begin_object(b);
        add_string(b, "name", t->name);
        add_int(b, "tid", t->tid);
        json_builder_end_object(b);
    }
    json_builder_end_array(b);
    end_event(b);
}

static void add_latency(JsonBuilder *b, const BenchHistogram *h)
{
    json_builder_set_member_name(b, "latency_ns");
    json_builder_begin_object(b);
    add_double(b, "mean", h->total ? (double)h->sum / h->total : 0);
    add_int(b, "p50", bench_histogram_percentile(h, 0.5));
    add_int(b, "p99", bench_histogram_percentile(h, 0.99));
    add_int(b, "p999", bench_histogram_percentile(h, 0.999));
    add_int(b, "max", h->max);
    json_builder_end_object(b);
}

static void add_histogram(JsonBuilder *b, const BenchHistogram *h)
{
    json_builder_set_member_name(b, "histogram");
    json_builder_begin_array(b);
    for (unsigned i = 0; i < BENCH_HIST_BUCKETS; i++) {
        if (h->count[i]) {
            json_builder_begin_array(b);
            json_builder_add_int_value(b, bench_histogram_upper(i));
            json_builder_add_int_value(b, h->count[i]);
            json_builder_end_array(b);
        }
    }
    json_builder_end_array(b);
}

static void add_disks(JsonBuilder *b, const BenchHistogram *disks, unsigned n,
                      double seconds)
{
    json_builder_set_member_name(b, "disks");
    json_builder_begin_array(b);
    for (unsigned i = 0; i < n; i++) {
        json_builder_begin_object(b);
        add_int(b, "requests", disks[i].total);
        add_double(b, "iops", disks[i].total / seconds);
        add_latency(b, &disks[i]);
        json_builder_end_object(b);
    }
    json_builder_end_array(b);
}

static void add_pair(JsonBuilder *b, const char *name, const char *first,
                     double first_value, const char *second,
                     double second_value)
{
    json_builder_set_member_name(b, name);
    json_builder_begin_object(b);
    add_double(b, first, first_value);
    add_double(b, second, second_value);
    json_builder_end_object(b);
}

static void report_result(const BenchRun *run, const BenchResult *r,
                          unsigned num_disks)
{
    JsonBuilder *b = begin_event("result");
    double seconds = r->ns / 1e9, n = MAX(r->requests, 1);

    add_int(b, "requests", r->requests);
    add_double(b, "seconds", seconds);
    add_double(b, "iops", r->requests / seconds);
    add_double(b, "mb_per_second",
               r->requests / seconds * run->block_size / 1e6);
    add_latency(b, &r->latency);
    add_histogram(b, &r->latency);
    add_disks(b, r->disks, num_disks, seconds);
    add_pair(b, "cpu_ns_per_request", "iothread", r->thread_cpu_ns / n,
             "process", r->process_cpu_ns / n);
    add_pair(b, "notifications_per_request", "available", r->kicks / n,
             "used", r->calls / n);
    add_double(b, "driver_ns_per_request", r->driver_ns / n);
    json_builder_set_member_name(b, "instructions_per_request");
    if (r->instructions) {
        json_builder_add_double_value(b, r->instructions / n);
    } else {
        json_builder_add_null_value(b);
    }
    add_int(b, "verified", r->verified);
    end_event(b);
}

/* Runs */

static bool parse_choice(const char *option, const char *value,
                         const char *const *choices, unsigned *choice,
                         GError **errp)
{
    for (*choice = 0; choices[*choice]; (*choice)++) {
        if (!strcmp(value, choices[*choice])) {
            return true;
        }
    }
    g_set_error(errp, BENCH_ERROR, 0, "unknown value '%s' of %s: see --help",
                value, option);
    return false;
}

static bool parse_run(const char *line, BenchRun *run, GError **errp)
{
    static const char *const rws[] = { "read", "write", "mixed", NULL };
    static const char *const patterns[] = { "random", "sequential", NULL };
    static const char *const waits[] = { "poll", "notify", NULL };
    g_autofree char *rw = g_strdup("read");
    g_autofree char *pattern = g_strdup("random");
    g_autofree char *wait = g_strdup("poll");
    int write_percent = 30, bs = 4096, depth = 1, warmup = 50, time = 500;
    int64_t region = 0, seed = 1;
    gboolean verify = FALSE;
    const GOptionEntry entries[] = {
        { "rw", 0, 0, G_OPTION_ARG_STRING, &rw, "read|write|mixed", NULL },
        { "write-percent", 0, 0, G_OPTION_ARG_INT, &write_percent,
          "writes among mixed requests, in percent", NULL },
        { "pattern", 0, 0, G_OPTION_ARG_STRING, &pattern,
          "random|sequential", NULL },
        { "wait", 0, 0, G_OPTION_ARG_STRING, &wait, "poll|notify", NULL },
        { "bs", 0, 0, G_OPTION_ARG_INT, &bs, "bytes of a request", NULL },
        { "depth", 0, 0, G_OPTION_ARG_INT, &depth,
          "requests in flight per queue", NULL },
        { "warmup-ms", 0, 0, G_OPTION_ARG_INT, &warmup,
          "time that is not measured", NULL },
        { "time-ms", 0, 0, G_OPTION_ARG_INT, &time, "measured time", NULL },
        { "region-mib", 0, 0, G_OPTION_ARG_INT64, &region,
          "first part of the disk to work on; 0: all", NULL },
        { "seed", 0, 0, G_OPTION_ARG_INT64, &seed,
          "of the random numbers", NULL },
        { "verify", 0, 0, G_OPTION_ARG_NONE, &verify,
          "write the region, compare all that is read", NULL },
        {}
    };
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_autofree char *full = g_strdup_printf("run %s", line);
    g_auto(GStrv) argv = NULL;
    unsigned rw_i, pattern_i, wait_i;

    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_shell_parse_argv(full, NULL, &argv, errp) ||
        !g_option_context_parse_strv(context, &argv, errp) ||
        !parse_choice("--rw", rw, rws, &rw_i, errp) ||
        !parse_choice("--pattern", pattern, patterns, &pattern_i, errp) ||
        !parse_choice("--wait", wait, waits, &wait_i, errp)) {
        return false;
    }
    if (argv[1] || bs <= 0 || depth <= 0 || warmup < 0 || time <= 0 ||
        region < 0 || write_percent < 0 || write_percent > 100) {
        g_set_error(errp, BENCH_ERROR, 0, "a number is out of range, or there "
                    "is something beside options: %s", line);
        return false;
    }
    *run = (BenchRun) {
        .write_percent = rw_i == 0 ? 0 : rw_i == 1 ? 100 : write_percent,
        .random = pattern_i == 0,
        .notified = wait_i == 1,
        .verify = verify,
        .block_size = bs,
        .depth = depth,
        .warmup_ms = warmup,
        .time_ms = time,
        .region = region * MIB,
        .seed = seed,
    };
    return true;
}

static bool serve(BenchLoad *load, unsigned num_disks, GError **errp)
{
    g_autofree BenchResult *result = g_new(BenchResult, 1);
    g_autofree char *line = NULL;
    size_t size = 0;

    while (getline(&line, &size, stdin) > 0) {
        BenchRun run;

        if (!parse_run(g_strstrip(line), &run, errp) ||
            !bench_load_run(load, &run, result, errp)) {
            return false;
        }
        report_result(&run, result, num_disks);
    }
    return true;
}

/* The session */

static bool pin(const Session *s, const BenchDevice *dev, GError **errp)
{
    g_auto(GStrv) cpus = g_strsplit(s->thread_cpus ? s->thread_cpus : "", ",",
                                    -1);
    unsigned n = g_strv_length(cpus);

    for (unsigned i = 0; n && i < dev->threads->len; i++) {
        pid_t tid = g_array_index(dev->threads, BenchThread, i).tid;
        uint64_t cpu;

        if (!g_ascii_string_to_unsigned(cpus[i % n], 10, 0, CPU_SETSIZE - 1,
                                        &cpu, errp) ||
            !bench_thread_pin(tid, cpu, errp)) {
            return false;
        }
    }
    return s->cpu < 0 || bench_thread_pin(0, s->cpu, errp);
}

static void remove_thread_unless_named(BenchDevice *dev, char **names)
{
    for (unsigned i = dev->threads->len; i-- > 0;) {
        const char *name = g_array_index(dev->threads, BenchThread, i).name;

        if (!g_strv_contains((const char *const *)names, name)) {
            g_array_remove_index(dev->threads, i);
        }
    }
}

/* Only what --iothreads names is measured and pinned. */
static bool choose_threads(const Session *s, BenchDevice *dev, GError **errp)
{
    g_auto(GStrv) names = NULL;

    if (!s->iothreads || s->vhost_user || s->stand_in) {
        return true;
    }
    names = g_strsplit(s->iothreads, ",", -1);
    remove_thread_unless_named(dev, names);
    if (dev->threads->len != g_strv_length(names)) {
        g_set_error(errp, BENCH_ERROR, 0, "QEMU has not all of the IOThreads "
                    "%s", s->iothreads);
        return false;
    }
    return true;
}

static BenchDevice *make_device(const Session *s, BenchMemory *mem,
                                GError **errp)
{
    const BenchWish wish = {
        .queues = s->queues,
        .queue_size = s->queue_size,
        .packed = !g_strcmp0(s->ring, "packed"),
        .in_order = s->in_order,
        .indirect = !s->no_indirect,
        .event_idx = !s->no_event_idx,
        .flush = true,
        .disks = s->disks,
        .idle_disks = s->idle_disks,
    };

    if (s->stand_in) {
        return bench_standin_new(&wish, mem, errp);
    }
    if (s->vhost_user) {
        return bench_vhost_user_new(s->vhost_user, &wish, s->hold, mem, errp);
    }
    return bench_qemu_new(s->argv + 1, &wish, mem, errp);
}

static bool run_session(const Session *s, GError **errp)
{
    BenchMemory mem;
    BenchDevice *dev = NULL;
    BenchLoad *load = NULL;
    bool ok = false;

    if (bench_memory_init(&mem, s->memory * MIB, s->huge_pages, errp)) {
        dev = make_device(s, &mem, errp);
    }
    if (dev && choose_threads(s, dev, errp)) {
        load = bench_load_new(dev, errp);
    }
    if (load && pin(s, dev, errp)) {
        report_ready(dev);
        ok = serve(load, dev->num_disks, errp);
    }
    bench_load_free(load);
    bench_device_free(dev);
    bench_memory_cleanup(&mem);
    return ok;
}

static bool check_session(const Session *s, GError **errp)
{
    const char *why = NULL;

    if (s->ring && strcmp(s->ring, "split") && strcmp(s->ring, "packed")) {
        why = "--ring must be split or packed";
    } else if (s->queues < 1 || s->queues > 1024) {
        why = "--queues must be from 1 to 1024";
    } else if (s->queue_size < 0 || (s->queue_size & (s->queue_size - 1))) {
        why = "--queue-size must be a power of two";
    } else if (s->memory < 32 || s->memory > 3072) {
        why = "--memory must be from 32 to 3072 MiB";
    } else if (!!s->vhost_user + !!s->argv[1] + s->stand_in != 1) {
        why = "give one of --vhost-user, --stand-in, and, behind --, QEMU's "
              "command line";
    } else if (s->hold && !s->vhost_user) {
        why = "--hold belongs to --vhost-user";
    } else if (s->disks < 1 || s->idle_disks < 0 ||
               s->disks - 1ll + s->idle_disks > BENCH_PCI_PLACES) {
        why = "there is no room for so many --disks and --idle-disks";
    } else if (s->disks > 1 && !s->argv[1]) {
        why = "only QEMU can have several --disks";
    }
    if (why) {
        g_set_error(errp, BENCH_ERROR, 0, "%s (see --help)", why);
    }
    return !why;
}

int main(int argc, char **argv)
{
    Session s = { .queues = 1, .disks = 1, .memory = 128, .cpu = -1 };
    const GOptionEntry entries[] = {
        { "queues", 0, 0, G_OPTION_ARG_INT, &s.queues,
          "queues to use of each disk (default 1)", "N" },
        { "queue-size", 0, 0, G_OPTION_ARG_INT, &s.queue_size,
          "largest queue size wanted (default: the device's)", "N" },
        { "ring", 0, 0, G_OPTION_ARG_STRING, &s.ring,
          "split (default) or packed", "FORMAT" },
        { "in-order", 0, 0, G_OPTION_ARG_NONE, &s.in_order,
          "negotiate VIRTIO_F_IN_ORDER", NULL },
        { "no-indirect", 0, 0, G_OPTION_ARG_NONE, &s.no_indirect,
          "no indirect descriptors", NULL },
        { "no-event-idx", 0, 0, G_OPTION_ARG_NONE, &s.no_event_idx,
          "do not negotiate EVENT_IDX", NULL },
        { "iothreads", 0, 0, G_OPTION_ARG_STRING, &s.iothreads,
          "IOThreads whose CPU time counts (default: all)", "ID,..." },
        { "cpu", 0, 0, G_OPTION_ARG_INT, &s.cpu, "pin the driver", "CPU" },
        { "iothread-cpu", 0, 0, G_OPTION_ARG_STRING, &s.thread_cpus,
          "pin the IOThreads, one after the other", "CPU,..." },
        { "memory", 0, 0, G_OPTION_ARG_INT, &s.memory,
          "guest memory (default 128)", "MIB" },
        { "disks", 0, 0, G_OPTION_ARG_INT, &s.disks,
          "disks to use; all but one have places in slots from 8 on", "N" },
        { "idle-disks", 0, 0, G_OPTION_ARG_INT, &s.idle_disks,
          "disks in the places behind them, to be started and left alone",
          "N" },
        { "vhost-user", 0, 0, G_OPTION_ARG_FILENAME, &s.vhost_user,
          "a vhost-user-blk back-end's socket", "SOCKET" },
        { "hold", 0, 0, G_OPTION_ARG_NONE, &s.hold,
          "stop the vhost-user back-end's threads between runs", NULL },
        { "huge-pages", 0, 0, G_OPTION_ARG_NONE, &s.huge_pages,
          "guest memory of huge pages", NULL },
        { "stand-in", 0, 0, G_OPTION_ARG_NONE, &s.stand_in,
          "a device in the driver's own thread, which only works on memory",
          NULL },
        {}
    };
    g_autoptr(GOptionContext) context =
        g_option_context_new("[-- QEMU OPTION...]");
    g_autoptr(GError) error = NULL;

    bench_clock_init();
    g_option_context_set_summary(context, summary);
    g_option_context_add_main_entries(context, entries, NULL);
    s.argv = g_strdupv(argv);
    if (!g_option_context_parse_strv(context, &s.argv, &error)) {
        return report_error(error);
    }
    if (s.argv[1] && !strcmp(s.argv[1], "--")) {
        g_free(s.argv[1]);
        for (unsigned i = 1; s.argv[i]; i++) {
            s.argv[i] = s.argv[i + 1];
        }
    }
    if (!check_session(&s, &error) || !run_session(&s, &error)) {
        return report_error(error);
    }
    return 0;
}
