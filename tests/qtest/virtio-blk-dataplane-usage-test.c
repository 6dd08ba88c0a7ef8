/*
 * What query-iothreads says of an IOThread that serves a disk: is it busy?
 *
 * Knows the counters "busy-ns", "poll-ns", "idle-ns" and "wakeups", and brings
 * an IOThread into states in which only one of the times passes.  How these are
 * counted in each kind of event loop is tested by tests/unit/test-aio-usage.c.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "virtio-blk-dataplane-common.h"

#define LOAD 64
#define ROUNDS 20
#define POLL_NS 10000000000ll       /* longer than two queries take */

typedef struct Usage {
    int64_t busy;
    int64_t poll;
    int64_t idle;
    int64_t wakeups;
} Usage;

/* Of the IOThread @id, which must exist */
static Usage usage_of(DpVm *vm, const char *id)
{
    QDict *rsp = qtest_qmp(vm->qts, "{'execute': 'query-iothreads'}");
    QListEntry *entry;
    Usage usage = { .busy = -1 };

    QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "return"), entry) {
        QDict *info = qobject_to(QDict, qlist_entry_obj(entry));

        if (!strcmp(qdict_get_str(info, "id"), id)) {
            usage = (Usage) {
                .busy = qdict_get_int(info, "busy-ns"),
                .poll = qdict_get_int(info, "poll-ns"),
                .idle = qdict_get_int(info, "idle-ns"),
                .wakeups = qdict_get_int(info, "wakeups"),
            };
        }
    }
    qobject_unref(rsp);
    g_assert_cmpint(usage.busy, >=, 0);
    return usage;
}

/* What has passed since @last, which is brought up to date */
static Usage usage_since(DpVm *vm, const char *id, Usage *last)
{
    Usage now = usage_of(vm, id);
    Usage passed = {
        .busy = now.busy - last->busy,
        .poll = now.poll - last->poll,
        .idle = now.idle - last->idle,
        .wakeups = now.wakeups - last->wakeups,
    };

    g_assert_cmpint(passed.busy, >=, 0);
    g_assert_cmpint(passed.poll, >=, 0);
    g_assert_cmpint(passed.idle, >=, 0);
    g_assert_cmpint(passed.wakeups, >=, 0);
    g_assert_cmpint(passed.busy + passed.poll + passed.idle, >, 0);
    *last = now;
    return passed;
}

static void set_polling(DpVm *vm, int64_t max_ns)
{
    dp_qmp_ok(vm, NULL, "{'execute': 'qom-set', 'arguments': {"
              "'path': '/objects/io0', 'property': 'poll-max-ns', "
              "'value': %" PRId64 "}}", max_ns);
}

static void wait_idle_of(DpVm *vm, const char *id)
{
    gint64 deadline = dp_deadline();
    Usage last = usage_of(vm, id), passed;

    do {
        dp_check_deadline(deadline, "an IOThread that sleeps");
        passed = usage_since(vm, id, &last);
    } while (passed.busy || passed.poll || passed.wakeups);
}

static void wait_idle(DpVm *vm)
{
    wait_idle_of(vm, "io0");
}

/* covers: U1, U2: a thread without requests is idle, whether or not it polls */
static void test_idle(DpDisk *disk)
{
    wait_idle(disk->vm);
    set_polling(disk->vm, 0);
    wait_idle(disk->vm);
    set_polling(disk->vm, 1000);
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, 0, DP_SECTOR, 1), ==, 0);
    wait_idle(disk->vm);
}

/* covers: U1: one that polls in vain uses a CPU, but is not busy */
static void test_polling(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    gint64 deadline = dp_deadline();
    Usage last, passed;

    /* It polls for longer with each request, up to this time. */
    set_polling(vm, POLL_NS);
    do {
        dp_check_deadline(deadline, "an IOThread that polls");
        g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, 0, DP_SECTOR, 1), ==, 0);
        last = usage_of(vm, "io0");
        passed = usage_since(vm, "io0", &last);
    } while (passed.busy || passed.idle);
    g_assert_cmpint(passed.wakeups, ==, 0);

    set_polling(vm, 0);
    wait_idle(vm);
}

/* covers: U1: work shows as such, and kicks of one that sleeps as wakeups */
static void test_loaded(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    DpLoad *load = dp_load_new(disk, LOAD, 0);
    Usage last, passed;

    set_polling(vm, 0);
    wait_idle(vm);
    last = usage_of(vm, "io0");
    for (unsigned i = 0; i < ROUNDS; i++) {
        dp_load_run(load, LOAD);
        passed = usage_since(vm, "io0", &last);
        g_assert_cmpint(passed.busy, >, 0);
        g_assert_cmpint(passed.poll, ==, 0);
        g_assert_cmpint(passed.wakeups, >, 0);
    }
    dp_load_finish(load);
    wait_idle(vm);
}

/* Of two IOThreads only that which serves the disk has worked. */
static void test_other(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    Usage before, after;

    wait_idle_of(vm, "io1");
    before = usage_of(vm, "io1");
    for (unsigned i = 0; i < ROUNDS; i++) {
        g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, i, DP_SECTOR, i), ==, 0);
    }
    after = usage_of(vm, "io1");
    g_assert_cmpint(after.busy, ==, before.busy);
    g_assert_cmpint(after.poll, ==, before.poll);
    g_assert_cmpint(after.wakeups, ==, before.wakeups);
    g_assert_cmpint(after.idle, >, before.idle);
}

/* The VM is stopped and goes on, and the counters go on, too. */
static void test_stop(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    Usage last = usage_of(vm, "io0");

    for (unsigned i = 0; i < ROUNDS; i++) {
        g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, i, DP_SECTOR, i), ==, 0);
        dp_stop(vm);
        usage_since(vm, "io0", &last);
        dp_cont(vm);
        usage_since(vm, "io0", &last);
    }
}

static int64_t age_of(DpVm *vm, const char *id)
{
    Usage usage = usage_of(vm, id);

    return usage.busy + usage.poll + usage.idle;
}

/* A new IOThread begins at zero, and so does the next one of its name. */
static void test_new(DpDisk *disk)
{
    DpVm *vm = disk->vm;

    for (unsigned i = 0; i < 2; i++) {
        int64_t before = age_of(vm, "io0"), age;

        dp_qmp_ok(vm, NULL, "{'execute': 'object-add', 'arguments': {"
                  "'qom-type': 'iothread', 'id': 'io2'}}");
        age = age_of(vm, "io2");
        g_assert_cmpint(age, <=, age_of(vm, "io0") - before);
        dp_qmp_ok(vm, NULL, "{'execute': 'object-del', 'arguments': {"
                  "'id': 'io2'}}");
    }
}

static void test_hmp(DpDisk *disk)
{
    static const char *const names[] = {
        "busy-ns=", "poll-ns=", "idle-ns=", "wakeups="
    };
    g_autofree char *out = qtest_hmp(disk->vm->qts, "info iothreads");

    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        g_assert_nonnull(strstr(out, names[i]));
    }
}

int main(int argc, char **argv)
{
    static const DpTest tests[] = {
        { "idle", test_idle },
        { "polling", test_polling },
        { "loaded", test_loaded },
        { "other", test_other },
        { "stop", test_stop },
        { "new", test_new },
        { "hmp", test_hmp },
    };

    g_test_init(&argc, &argv, NULL);
    for (unsigned i = 0; i < ARRAY_SIZE(tests); i++) {
        /* The plane, and QEMU's own path: the event loop is the same. */
        dp_add_row("usage", &tests[i], &dp_mode_iothread);
        dp_add_row("usage", &tests[i], &dp_mode_off);
    }
    return g_test_run();
}
