/*
 * query-stats: the counters and the latency of each queue, and of IOThreads
 *
 * Each value is compared with what the driver has done, and with what the older
 * queries say.  May know the names of the values and the bounds of the buckets.
 *
 * Latencies are as exact as numbers: qtest's clock, which a test sets, is that
 * of the data plane.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "qobject/qnum.h"
#include "virtio-blk-dataplane-common.h"

#define OK VIRTIO_BLK_S_OK
#define IOERR VIRTIO_BLK_S_IOERR
#define UNSUPP VIRTIO_BLK_S_UNSUPP
#define BACKEND "/machine/peripheral/d0/virtio-backend"
#define BUCKETS 40
#define APART 1000                  /* sectors: neighbors would be merged */
#define ONE_QUEUE ", 'devices': ['" BACKEND "']"
#define OURS(names) ", 'providers': [{'provider': 'virtio-blk'" names "}]"

/* --- asking ---------------------------------------------------------- */

/* Results of a target, with more arguments, each behind a comma */
static QList *query(DpVm *vm, const char *target, const char *args)
{
    g_autofree char *command = g_strdup_printf(
        "{'execute': 'query-stats', 'arguments': { 'target': '%s'%s }}",
        target, args);
    QDict *rsp = dp_qmp(vm, NULL, command, NULL);
    QList *results = qdict_get_qlist(rsp, "return");

    g_assert_nonnull(results);
    qobject_ref(results);
    qobject_unref(rsp);
    return results;
}

static void assert_results(DpVm *vm, const char *target, const char *args,
                           unsigned n)
{
    QList *results = query(vm, target, args);

    g_assert_cmpuint(qlist_size(results), ==, n);
    qobject_unref(results);
}

/* The result of an object, and of its queue unless that is -1; stays in list */
static QDict *find_result(QList *results, const char *path, int queue)
{
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(results, entry) {
        QDict *result = qobject_to(QDict, qlist_entry_obj(entry));

        if (!strcmp(qdict_get_str(result, "qom-path"), path) &&
            qdict_get_try_int(result, "queue", -1) == queue) {
            return result;
        }
    }
    g_assert_not_reached();
}

/* The value of a name; stays where it is */
static QObject *find_value(QDict *result, const char *name)
{
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(result, "stats"), entry) {
        QDict *stats = qobject_to(QDict, qlist_entry_obj(entry));

        if (!strcmp(qdict_get_str(stats, "name"), name)) {
            return qdict_get(stats, "value");
        }
    }
    g_assert_not_reached();
}

static int64_t number(QDict *result, const char *name)
{
    return qnum_get_int(qobject_to(QNum, find_value(result, name)));
}

/* Returns how many the histogram counts.  @bucket is of BUCKETS numbers. */
static int64_t histogram(QDict *result, const char *name, int64_t *bucket)
{
    QList *list = qobject_to(QList, find_value(result, name));
    const QListEntry *entry;
    int64_t sum = 0;
    unsigned i = 0;

    g_assert_cmpuint(qlist_size(list), ==, BUCKETS);
    QLIST_FOREACH_ENTRY(list, entry) {
        bucket[i] = qnum_get_int(qobject_to(QNum, qlist_entry_obj(entry)));
        sum += bucket[i++];
    }
    return sum;
}

/* --- what is counted ------------------------------------------------- */

typedef struct Kind {
    const char *counter;
    const char *latency;
} Kind;

static const Kind kinds[] = {
    { "reads", "read-latency" },
    { "writes", "write-latency" },
    { "flushes", "flush-latency" },
    { "discards", "discard-latency" },
    { "write-zeroes", "write-zeroes-latency" },
    { "other", "other-latency" },
};

/* What is expected of each of the kinds, and in all */
typedef struct Expected {
    int64_t done[ARRAY_SIZE(kinds)];
    int64_t errors;
} Expected;

/* What the driver has seen is counted, all of it when the clock stood still. */
static void assert_counts(DpDisk *queue, const Expected *want)
{
    QList *results = query(queue->vm, "virtio-queue", "");
    QDict *result = find_result(results, BACKEND, queue->index);
    int64_t bucket[BUCKETS], sum = 0;

    g_assert_cmpstr(qdict_get_str(result, "provider"), ==, "virtio-blk");
    for (unsigned i = 0; i < ARRAY_SIZE(kinds); i++) {
        g_assert_cmpint(number(result, kinds[i].counter), ==, want->done[i]);
        g_assert_cmpint(histogram(result, kinds[i].latency, bucket), ==,
                        want->done[i]);
        if (!queue->vm->kvm) {
            g_assert_cmpint(bucket[1], ==, want->done[i]);
        }
        sum += want->done[i];
    }
    g_assert_cmpint(number(result, "completed"), ==, sum);
    g_assert_cmpint(number(result, "errors"), ==, want->errors);
    qobject_unref(results);
}

typedef struct Type {
    uint32_t type;
    unsigned kind;              /* of kinds[] */
    uint64_t sector;
    uint32_t len;
    uint8_t status;
} Type;

static const Type types[] = {
    { VIRTIO_BLK_T_IN, 0, 0, 4096, OK },
    { VIRTIO_BLK_T_IN, 0, DP_CAPACITY, 512, IOERR },
    { VIRTIO_BLK_T_OUT, 1, 8, 4096, OK },
    { VIRTIO_BLK_T_OUT, 1, DP_CAPACITY, 512, IOERR },
    { VIRTIO_BLK_T_FLUSH, 2, 0, 0, OK },
    { VIRTIO_BLK_T_DISCARD, 3, 16, 16, OK },
    { VIRTIO_BLK_T_WRITE_ZEROES, 4, 64, 16, OK },
    { VIRTIO_BLK_T_GET_ID, 5, 0, VIRTIO_BLK_ID_BYTES, OK },
    { 99, 5, 0, 512, UNSUPP },
};

static bool has_segment(const Type *t)
{
    return t->type == VIRTIO_BLK_T_DISCARD ||
           t->type == VIRTIO_BLK_T_WRITE_ZEROES;
}

static DpReq *type_submit(DpDisk *queue, const Type *t)
{
    struct virtio_blk_discard_write_zeroes seg = {
        .sector = cpu_to_le64(t->sector),
        .num_sectors = cpu_to_le32(8),
    };
    DpReq *req = dp_req(queue, t->type, has_segment(t) ? 0 : t->sector,
                        t->len);

    if (has_segment(t)) {
        qtest_memwrite(queue->vm->qts, req->data, &seg, sizeof(seg));
    }
    dp_submit(queue, req);
    return req;
}

/* @n requests of a type at once */
static void run_type(DpDisk *queue, const Type *t, unsigned n, Expected *want)
{
    DpReq *req[8];

    g_assert_cmpuint(n, <=, ARRAY_SIZE(req));
    for (unsigned i = 0; i < n; i++) {
        req[i] = type_submit(queue, t);
    }
    dp_kick(queue);
    dp_wait_all(queue);
    for (unsigned i = 0; i < n; i++) {
        g_assert_cmpint(req[i]->status, ==, t->status);
        dp_req_free(queue, req[i]);
    }
    want->done[t->kind] += n;
    want->errors += t->status == OK ? 0 : n;
}

static void run_types(DpDisk *queue, Expected *want)
{
    for (unsigned i = 0; i < ARRAY_SIZE(types); i++) {
        run_type(queue, &types[i], 1 + i % 4, want);
        assert_counts(queue, want);
    }
}

/* covers: U1: each type has its own counter and histogram */
static void test_types(DpDisk *disk)
{
    Expected want = {};

    assert_counts(disk, &want);
    run_types(disk, &want);
}

/* So has each queue. */
static void test_queues(DpDisk *disk)
{
    DpDisk *other = dp_disk_queue(disk, 1);
    Expected want[2] = {};

    dp_disk_start(disk, DP_F_ALL);
    run_types(other, &want[1]);
    assert_counts(disk, &want[0]);
    run_type(disk, &types[0], 3, &want[0]);
    assert_counts(disk, &want[0]);
    assert_counts(other, &want[1]);
    assert_results(disk->vm, "virtio-queue", "", 2);
}

/* A reset and a stop of the machine clear nothing. */
static void test_reset(DpDisk *disk)
{
    Expected want = {};

    run_types(disk, &want);
    dp_disk_reset(disk);
    assert_counts(disk, &want);
    dp_disk_start(disk, DP_F_ALL);
    run_types(disk, &want);
    dp_stop(disk->vm);
    assert_counts(disk, &want);
    dp_cont(disk->vm);
    run_types(disk, &want);
}

/* Each other value is that of x-data-plane-info. */
static void test_counters(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    DpLoad *load = dp_load_new(disk, 16, 0);
    QDict *result;
    QList *results;
    DpInfo info;

    dp_load_run(load, 200);
    dp_load_finish(load);
    dp_stop(vm);
    dp_info(vm, "d0", &info);
    results = query(vm, "virtio-queue", "");
    result = find_result(results, BACKEND, 0);
    g_assert_cmpint(info.completed, >=, 200);
    g_assert_cmpint(number(result, "completed"), ==, info.completed);
    g_assert_cmpint(number(result, "reads"), ==, info.reads);
    g_assert_cmpint(number(result, "writes"), ==, info.writes);
    g_assert_cmpint(number(result, "in-flight"), ==, 0);
    g_assert_cmpint(number(result, "batches"), ==, info.batches);
    g_assert_cmpint(number(result, "kicks"), ==, info.kicks);
    g_assert_cmpint(number(result, "polled"), ==, info.polled);
    g_assert_cmpint(number(result, "notifications-sent"), ==, info.sent);
    g_assert_cmpint(number(result, "notifications-suppressed"), ==,
                    info.suppressed);
    g_assert_cmpint(number(result, "merged"), ==, info.merged);
    g_assert_cmpint(number(result, "starts"), ==, info.starts);
    qobject_unref(results);
    dp_cont(vm);
}

/* Requests in flight are seen as such, and in no histogram yet. */
static void test_in_flight(DpDisk *disk)
{
    Expected want = { .done = { 1 } };
    DpReq *req[3];
    QList *results;

    dp_hold(disk);
    for (unsigned i = 0; i < ARRAY_SIZE(req); i++) {
        req[i] = dp_req(disk, VIRTIO_BLK_T_IN, APART * i, DP_SECTOR);
        dp_submit(disk, req[i]);
    }
    dp_kick(disk);
    dp_wait_in_flight(disk->vm, "d0", ARRAY_SIZE(req));
    results = query(disk->vm, "virtio-queue", "");
    g_assert_cmpint(number(find_result(results, BACKEND, 0), "in-flight"), ==,
                    ARRAY_SIZE(req));
    qobject_unref(results);
    assert_counts(disk, &want);

    dp_release(disk);
    dp_wait_all(disk);
    for (unsigned i = 0; i < ARRAY_SIZE(req); i++) {
        dp_req_free(disk, req[i]);
    }
    want.done[0] += ARRAY_SIZE(req);
    assert_counts(disk, &want);
}

/* --- how long it took ------------------------------------------------ */

/* Both sides of each bound */
static const struct {
    int64_t ns;
    unsigned bucket;
} latencies[] = {
    { 0, 1 },
    { 1, 1 },
    { 2, 2 },
    { 3, 2 },
    { 4, 3 },
    { 1023, 10 },
    { 1024, 11 },
    { 1000000, 20 },
    { (1ll << 31) - 1, 31 },
    { 1ll << 31, 32 },
    { (1ll << 32) + 1, 33 },
    { (1ll << 37) - 1, 37 },
    { 1ll << 37, 38 },
    { (1ll << 38) - 1, 38 },
    { 1ll << 38, 39 },
    { 500000000000ll, 39 },
};

/* A write that takes so long, as a limit holds it back */
static void run_for(DpDisk *disk, int64_t ns)
{
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_OUT, APART, DP_SECTOR);

    dp_hold(disk);
    dp_submit(disk, req);
    dp_kick(disk);
    dp_wait_in_flight(disk->vm, "d0", 1);
    if (ns) {
        qtest_clock_step(disk->vm->qts, ns);
    }
    g_assert_false(req->done);
    dp_release(disk);
    dp_wait(disk, req);
    g_assert_cmpint(req->status, ==, OK);
    dp_req_free(disk, req);
}

/* covers: M4, U1: it is counted in the bucket of its latency, and only there */
static void test_latency(DpDisk *disk)
{
    int64_t want[BUCKETS] = {}, got[BUCKETS];

    for (unsigned i = 0; i < ARRAY_SIZE(latencies); i++) {
        QList *results;

        run_for(disk, latencies[i].ns);
        want[latencies[i].bucket]++;
        results = query(disk->vm, "virtio-queue", ONE_QUEUE);
        histogram(find_result(results, BACKEND, 0), "write-latency", got);
        for (unsigned k = 0; k < BUCKETS; k++) {
            g_assert_cmpint(got[k], ==, want[k]);
        }
        qobject_unref(results);
    }
}

/* covers: M4: under load no bucket goes back, and nothing is lost */
static void test_load(DpDisk *disk)
{
    DpLoad *load = dp_load_new(disk, 16, 0);
    int64_t last = 0, bucket[BUCKETS];
    QDict *result;
    QList *results;
    DpInfo info;

    for (unsigned i = 0; i < 100; i++) {
        int64_t sum;

        dp_load_run(load, 10);
        dp_load_send(load);
        results = query(disk->vm, "virtio-queue", "");
        result = find_result(results, BACKEND, 0);
        sum = histogram(result, "read-latency", bucket) +
              histogram(result, "write-latency", bucket);
        /* All that the driver has seen is counted */
        g_assert_cmpint(sum, >=, MAX(last, 10 * (i + 1)));
        last = sum;
        qobject_unref(results);
    }
    dp_load_finish(load);
    dp_info(disk->vm, "d0", &info);
    results = query(disk->vm, "virtio-queue", "");
    result = find_result(results, BACKEND, 0);
    g_assert_cmpint(histogram(result, "read-latency", bucket), ==, info.reads);
    g_assert_cmpint(histogram(result, "write-latency", bucket), ==,
                    info.writes);
    qobject_unref(results);
}

/* --- schemas, filters, and who has no values ------------------------- */

static QDict *schema_of(QDict *rsp, const char *target)
{
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "return"), entry) {
        QDict *schema = qobject_to(QDict, qlist_entry_obj(entry));

        if (!strcmp(qdict_get_str(schema, "target"), target)) {
            return schema;
        }
    }
    g_assert_not_reached();
}

/* Is a value of the kind that its schema says? */
static void assert_described(QDict *schema, QDict *stats)
{
    const char *name = qdict_get_str(schema, "name");
    const char *type = qdict_get_str(schema, "type");
    bool is_list = qobject_to(QList, qdict_get(stats, "value"));

    g_assert_cmpstr(qdict_get_str(stats, "name"), ==, name);
    if (g_str_has_suffix(name, "-latency")) {
        g_assert_cmpstr(type, ==, "log2-histogram");
    } else {
        g_assert_cmpstr(type, ==, strcmp(name, "in-flight") ? "cumulative"
                                                            : "instant");
    }
    g_assert_true(is_list == !strcmp(type, "log2-histogram"));
    if (is_list || g_str_has_suffix(name, "-ns")) {
        g_assert_cmpstr(qdict_get_str(schema, "unit"), ==, "seconds");
        g_assert_cmpint(qdict_get_int(schema, "base"), ==, 10);
        g_assert_cmpint(qdict_get_int(schema, "exponent"), ==, -9);
    } else {
        g_assert_false(qdict_haskey(schema, "unit"));
        g_assert_cmpint(qdict_get_int(schema, "exponent"), ==, 0);
    }
}

/* Results have just what the schema has, and in its order. */
static void check_schema(DpVm *vm, const char *provider, const char *target,
                         const char *path, int queue)
{
    QDict *rsp = dp_qmp(vm, NULL, "{'execute': 'query-stats-schemas',"
                        " 'arguments': { 'provider': %s }}", provider);
    QDict *schema = schema_of(rsp, target);
    QList *results = query(vm, target, "");
    QDict *result = find_result(results, path, queue);
    const QListEntry *value =
        qlist_first(qdict_get_qlist(result, "stats"));
    const QListEntry *entry;

    g_assert_cmpuint(qlist_size(qdict_get_qlist(rsp, "return")), ==, 1);
    g_assert_cmpstr(qdict_get_str(schema, "provider"), ==, provider);
    QLIST_FOREACH_ENTRY(qdict_get_qlist(schema, "stats"), entry) {
        assert_described(qobject_to(QDict, qlist_entry_obj(entry)),
                         qobject_to(QDict, qlist_entry_obj(value)));
        value = qlist_next(value);
    }
    g_assert_null(value);
    qobject_unref(results);
    qobject_unref(rsp);
}

static void test_schema(DpDisk *disk)
{
    check_schema(disk->vm, "virtio-blk", "virtio-queue", BACKEND, 0);
    check_schema(disk->vm, "iothread", "iothread", "/objects/io0", -1);
}

static void test_filters(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    QList *results;
    QDict *result;

    assert_results(vm, "virtio-queue", "", 1);
    assert_results(vm, "virtio-queue", OURS(""), 1);
    assert_results(vm, "virtio-queue", OURS(", 'names': []"), 0);
    assert_results(vm, "virtio-queue", OURS(", 'names': ['nothing']"), 0);
    assert_results(vm, "virtio-queue", ONE_QUEUE OURS(""), 1);
    assert_results(vm, "virtio-queue", ", 'devices': ['/machine']", 0);
    assert_results(vm, "virtio-queue", ", 'devices': []", 0);
    assert_results(vm, "virtio-queue",
                   ", 'providers': [{'provider': 'iothread'}]", 0);
    assert_results(vm, "iothread", OURS(""), 0);
    assert_results(vm, "vm", OURS(""), 0);

    results = query(vm, "virtio-queue",
                    OURS(", 'names': ['kicks', 'read-latency', 'nothing']"));
    result = find_result(results, BACKEND, 0);
    g_assert_cmpuint(qlist_size(qdict_get_qlist(result, "stats")), ==, 2);
    find_value(result, "kicks");
    find_value(result, "read-latency");
    qobject_unref(results);
}

/* The human monitor says of which queue, or thread, each value is. */
static void test_hmp(DpDisk *disk)
{
    static const struct {
        const char *command;
        const char *text;
    } rows[] = {
        { "info stats virtio-queue", "provider: virtio-blk" },
        { "info stats virtio-queue", BACKEND ", queue 0" },
        { "info stats virtio-queue", "reads (cumulative): " },
        { "info stats virtio-queue", "in-flight (instant): 0" },
        { "info stats virtio-queue",
          "read-latency (log2-histogram, ns): [1]=" },
        { "info stats virtio-queue kicks virtio-blk",
          "kicks (cumulative): " },
        { "info stats iothread", "provider: iothread" },
        { "info stats iothread", "/objects/io0" },
        { "info stats iothread", "busy-ns (cumulative, ns): " },
        { "info stats iothread", "wakeups (cumulative): " },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        g_autofree char *out = qtest_hmp(disk->vm->qts, "%s",
                                         rows[i].command);

        if (!strstr(out, rows[i].text)) {
            g_error("%s: no \"%s\" in: %s", rows[i].command, rows[i].text,
                    out);
        }
    }
}

/* covers: M6: a disk that is gone has no values */
static void test_unplug(DpDisk *disk)
{
    assert_results(disk->vm, "virtio-queue", "", 1);
    dp_unplug(disk->vm);
    assert_results(disk->vm, "virtio-queue", "", 0);
}

/* Without a plane nothing is counted, and nothing is said. */
static void test_without(DpDisk *disk)
{
    dp_assert_works(disk);
    assert_results(disk->vm, "virtio-queue", "", 0);
    assert_results(disk->vm, "virtio-queue", ONE_QUEUE, 0);
}

/* Disks with several queues, in one answer, each in order */
static void test_disks(const DpMode *mode)
{
    DpVm *vm = dp_vm_start(
        "-blockdev null-co,node-name=n0,size=1048576 "
        "-blockdev null-co,node-name=n1,size=1048576 "
        "-blockdev null-co,node-name=n2,size=1048576 "
        "-device virtio-blk-pci,id=d0,drive=n0,addr=%d,num-queues=3%s "
        "-device virtio-blk-pci,id=d1,drive=n1,addr=%d,num-queues=2%s "
        "-device virtio-blk-pci,id=d2,drive=n2,addr=%d,x-data-plane=off",
        DP_SLOT, mode->props, DP_SLOT + 1, mode->props, DP_SLOT + 2);
    QList *results = query(vm, "virtio-queue", "");
    const QListEntry *entry;
    int last = -1;

    g_assert_cmpuint(qlist_size(results), ==, 3 + 2);
    find_result(results, BACKEND, 2);
    find_result(results, "/machine/peripheral/d1/virtio-backend", 1);
    qobject_unref(results);

    results = query(vm, "virtio-queue", ONE_QUEUE);
    g_assert_cmpuint(qlist_size(results), ==, 3);
    QLIST_FOREACH_ENTRY(results, entry) {
        QDict *result = qobject_to(QDict, qlist_entry_obj(entry));

        g_assert_cmpint(qdict_get_int(result, "queue"), ==, ++last);
    }
    qobject_unref(results);
    dp_vm_quit(vm);
}

/* --- IOThreads, and a machine that is paused ------------------------- */

static const char *const usage_names[] = {
    "busy-ns", "poll-ns", "idle-ns", "wakeups",
};

typedef struct Usage {
    int64_t value[ARRAY_SIZE(usage_names)];
} Usage;

/* Of io0, as query-iothreads says */
static Usage usage_of(DpVm *vm)
{
    QDict *rsp = dp_qmp(vm, NULL, "{'execute': 'query-iothreads'}");
    const QListEntry *entry;
    Usage usage = {};

    QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "return"), entry) {
        QDict *info = qobject_to(QDict, qlist_entry_obj(entry));

        if (!strcmp(qdict_get_str(info, "id"), "io0")) {
            for (unsigned i = 0; i < ARRAY_SIZE(usage_names); i++) {
                usage.value[i] = qdict_get_int(info, usage_names[i]);
            }
        }
    }
    qobject_unref(rsp);
    return usage;
}

/* covers: U1: query-stats says the same as query-iothreads */
static void test_iothread(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    Usage before, after;
    QList *results;
    QDict *result;

    dp_assert_works(disk);
    before = usage_of(vm);
    results = query(vm, "iothread", "");
    after = usage_of(vm);
    g_assert_cmpuint(qlist_size(results), ==, 2);
    find_result(results, "/objects/io1", -1);
    result = find_result(results, "/objects/io0", -1);
    g_assert_cmpstr(qdict_get_str(result, "provider"), ==, "iothread");
    for (unsigned i = 0; i < ARRAY_SIZE(usage_names); i++) {
        int64_t value = number(result, usage_names[i]);

        g_assert_cmpint(value, >=, before.value[i]);
        g_assert_cmpint(value, <=, after.value[i]);
    }
    g_assert_cmpint(after.value[2], >, 0);
    qobject_unref(results);
    assert_results(vm, "iothread", ", 'providers': [{'provider': 'iothread',"
                   " 'names': ['wakeups']}]", 2);
}

static void assert_reason(DpVm *vm, const char *reason)
{
    DpInfo info;

    dp_info(vm, "d0", &info);
    g_assert_cmpstr(info.reason, ==, reason);
}

/* covers: U1: a plane that only waits for "cont" says so */
static void test_paused(DpDisk *disk)
{
    DpVm *vm = disk->vm;

    assert_reason(vm, "");
    dp_stop(vm);
    assert_reason(vm, "VM is paused");
    dp_cont(vm);
    assert_reason(vm, "");
    dp_assert_works(disk);
    /* It waits for its driver as well, and would not start with "cont". */
    dp_disk_reset(disk);
    assert_reason(vm, "");
    dp_stop(vm);
    assert_reason(vm, "");
    dp_cont(vm);
}

int main(int argc, char **argv)
{
    static const DpTest each_ring[] = {
        { "types", test_types },
        { "queues", test_queues, .props = ",num-queues=2", .idle = true },
        { "latency", test_latency },
        { "load", test_load },
    };
    static const DpTest tests[] = {
        { "reset", test_reset },
        { "counters", test_counters },
        { "in-flight", test_in_flight },
        { "schema", test_schema },
        { "filters", test_filters },
        { "hmp", test_hmp },
        { "unplug", test_unplug, .ends_unserved = true },
        { "disks", .own_vm = test_disks },
        { "iothread", test_iothread },
        { "paused", test_paused, .ends_unserved = true },
    };
    static const DpTest without = { "without", test_without };

    g_test_init(&argc, &argv, NULL);
    dp_add_table("histogram", each_ring, ARRAY_SIZE(each_ring), true);
    for (unsigned i = 0; i < ARRAY_SIZE(tests); i++) {
        dp_add_row("histogram", &tests[i], &dp_mode_iothread);
    }
    dp_add_row("histogram", &without, &dp_mode_off);
    return g_test_run();
}
