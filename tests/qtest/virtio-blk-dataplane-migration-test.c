/*
 * A guest with a busy disk moves from one QEMU process to another
 *
 * The driver lives in this program and its ring in guest memory, so it can go
 * on in the process where the guest arrived, with the requests that it left in
 * flight.  Each of them must complete once, at one end or the other, and all
 * data must be what the driver knows.  The stream is QEMU's own: each end may
 * be served by the plane or by QEMU's path.
 *
 * A driver stops when its machine does, and this one cannot: qtest reaches the
 * memory of a stopped machine, too.  So it has to be silent from a little
 * before the machine stops until it has arrived.  What keeps a migration from
 * ending earlier is ballast: memory that takes long to send at a low bandwidth.
 *
 * May know migration's QMP commands and the plane's state.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "virtio-blk-dataplane-common.h"
#include "virtio-blk-dataplane-regs.h"

#define OK VIRTIO_BLK_S_OK
#define MIB (1024 * 1024)
#define IMAGE_MB 16
#define DEPTH 16
#define FIRST 8192              /* the load's first sector */
#define LATE 64                 /* sector of a request that is not kicked */
#define BALLAST (32 * MIB)
/* The ballast takes 16 seconds, the memory of the driver a fraction of one */
#define SLOW (2 * MIB)
#define FAST (1024 * MIB)

/* How the stream travels */
typedef struct Way {
    const char *name;
    bool multifd;
    bool mapped_ram;
    bool file;
} Way;

static const Way ways[] = {
    { "precopy" },
    { "multifd", .multifd = true },
    { "file", .file = true },
    { "mapped-ram", .mapped_ram = true, .file = true },
    { "mapped-ram-multifd", .multifd = true, .mapped_ram = true,
      .file = true },
};

#define PRECOPY (&ways[0])
#define TO_FILE (&ways[2])

/* A guest, which keeps its VM while the process that runs it changes */
typedef struct Guest {
    DpVm *vm;
    DpDisk *disk;
    DpLoad *load;
    const char *props;      /* of the disk, at both ends */
} Guest;

/* --- processes -------------------------------------------------------- */

/* A disk "d0" on the image that all processes share */
static DpVm *vm_on_image(const DpMode *mode, const char *format,
                         const char *rules, const char *props)
{
    g_autofree char *path = dp_tmp("disk.img");
    g_autofree char *file =
        g_strdup_printf("{\"driver\": \"file\", \"filename\": \"%s\"}", path);

    if (rules) {
        g_autofree char *image = g_steal_pointer(&file);

        file = g_strdup_printf("{\"driver\": \"blkdebug\", \"image\": %s,"
                               " \"inject-error\": [%s]}", image, rules);
    }
    return dp_vm_start("-blockdev '{\"driver\": \"%s\", \"node-name\": \"n0\","
                       " \"file\": %s}' "
                       "-device virtio-blk-pci,id=d0,drive=n0,addr=%d%s%s",
                       format, file, DP_SLOT, mode->props, props);
}

/* A process that waits for a guest */
static DpVm *vm_waiting(const DpMode *mode, const char *rules,
                        const char *props)
{
    g_autofree char *all = g_strdup_printf("%s -incoming defer", props);

    return vm_on_image(mode, "raw", rules, all);
}

static void shell_free(DpVm *vm)
{
    qpci_free_pc(vm->bus);
    alloc_destroy(&vm->alloc);
    g_free(vm);
}

/* End a process, but leave the files */
static void vm_discard(DpVm *vm)
{
    qtest_quit(vm->qts);
    shell_free(vm);
}

/* From here on @vm is the guest that has arrived in @to's process */
static void vm_adopt(DpVm *vm, DpVm *to)
{
    vm->qts = to->qts;
    vm->bus->qts = to->qts;
    shell_free(to);
}

static Guest *guest_new(DpVm *vm, const char *props)
{
    Guest *g = g_new0(Guest, 1);

    g->vm = vm;
    g->props = props;
    g->disk = dp_disk_new(vm, DP_F_ALL);
    return g;
}

/* A load, and memory that keeps a migration from its end */
static void guest_load(Guest *g)
{
    uint64_t ballast;

    g->load = dp_load_new(g->disk, DEPTH, FIRST);
    dp_load_run(g->load, 2 * DEPTH);
    /* The last that is allocated is the last that is sent */
    ballast = guest_alloc(&g->vm->alloc, BALLAST);
    qtest_memset(g->vm->qts, ballast, 1, BALLAST);
}

static Guest *guest_start(const DpMode *mode, const char *props)
{
    g_autofree char *path = dp_image("disk.img", IMAGE_MB * MIB);
    Guest *g = guest_new(vm_on_image(mode, "raw", NULL, props), props);

    guest_load(g);
    return g;
}

static void guest_finish(Guest *g, const DpMode *mode)
{
    if (g->load) {
        dp_load_run(g->load, 2 * DEPTH);
        dp_load_finish(g->load);
    }
    dp_assert_works(g->disk);
    dp_assert_mode(g->vm, mode);
    dp_disk_free(g->disk);
    dp_vm_quit(g->vm);
    g_free(g);
}

/* --- migration -------------------------------------------------------- */

static void set_capability(DpVm *vm, const char *name, bool on)
{
    dp_qmp_ok(vm, NULL, "{'execute': 'migrate-set-capabilities',"
              " 'arguments': {'capabilities': ["
              " {'capability': %s, 'state': %i}]}}", name, on);
}

static void set_way(DpVm *vm, const Way *way)
{
    set_capability(vm, "mapped-ram", way->mapped_ram);
    set_capability(vm, "multifd", way->multifd);
    /* With it, the source learns whether the destination could load */
    set_capability(vm, "return-path", !way->file);
}

static void set_bandwidth(DpVm *vm, int64_t bandwidth)
{
    dp_qmp_ok(vm, NULL, "{'execute': 'migrate-set-parameters',"
              " 'arguments': {'max-bandwidth': %" PRId64
              ", 'downtime-limit': 2000}}", bandwidth);
}

static char *uri_of(const Way *way)
{
    g_autofree char *path = dp_tmp(way->file ? "stream" : "socket");

    return g_strdup_printf("%s:%s", way->file ? "file" : "unix", path);
}

static void receive_from(DpVm *to, const char *uri)
{
    dp_qmp_ok(to, NULL, "{'execute': 'migrate-incoming', 'arguments': {"
              " 'uri': %s, 'exit-on-error': false}}", uri);
}

static void send_to(DpVm *from, const char *uri, int64_t bandwidth)
{
    set_bandwidth(from, bandwidth);
    dp_qmp_ok(from, NULL, "{'execute': 'migrate',"
              " 'arguments': {'uri': %s}}", uri);
}

/* The state of the migration, as a copy, and how much has been sent */
static char *migration_status(DpVm *vm, DpLoad *load, int64_t *sent)
{
    QDict *rsp = dp_qmp(vm, load, "{'execute': 'query-migrate'}");
    QDict *ret = qdict_get_qdict(rsp, "return");
    QDict *ram = qdict_get_qdict(ret, "ram");
    const char *status = qdict_get_try_str(ret, "status");
    const char *error = qdict_get_try_str(ret, "error-desc");
    char *copy = g_strdup(status ? status : "none");

    if (error) {
        g_test_message("%s: %s", copy, error);
    }
    *sent = ram ? qdict_get_int(ram, "transferred") : 0;
    qobject_unref(rsp);
    return copy;
}

static void wait_status(DpVm *vm, DpLoad *load, const char *want)
{
    gint64 deadline = dp_deadline();
    int64_t sent;

    for (;;) {
        g_autofree char *status = migration_status(vm, load, &sent);

        if (g_str_equal(status, want)) {
            return;
        }
        if (g_str_equal(status, "failed") || g_str_equal(status, "completed")) {
            g_error("the migration is %s and should be %s", status, want);
        }
        dp_check_deadline(deadline, want);
    }
}

/* Let the load dirty memory that has been sent already */
static void wait_sent(Guest *g)
{
    gint64 deadline = dp_deadline();
    int64_t sent;

    do {
        g_autofree char *status = migration_status(g->vm, g->load, &sent);

        if (!g_str_equal(status, "setup")) {
            g_assert_cmpstr(status, ==, "active");
        }
        dp_check_deadline(deadline, "some memory to be sent");
    } while (sent < MIB);
}

static bool is_running(DpVm *vm)
{
    QDict *rsp = dp_qmp(vm, NULL, "{'execute': 'query-status'}");
    bool running = qdict_get_bool(qdict_get_qdict(rsp, "return"), "running");

    qobject_unref(rsp);
    return running;
}

static void wait_running(DpVm *vm)
{
    gint64 deadline = dp_deadline();

    while (!is_running(vm)) {
        dp_check_deadline(deadline, "the machine to run");
    }
}

/*
 * Fill the queue with requests that cannot complete before a drain, and let
 * one more follow without a kick.  From here on the driver is silent.
 */
static DpReq *fill_queue(Guest *g)
{
    DpReq *late = dp_req(g->disk, VIRTIO_BLK_T_OUT, LATE, 4096);

    dp_req_fill(g->disk, late, 77);
    dp_hold(g->disk);
    dp_load_send(g->load);
    dp_submit(g->disk, late);
    dp_expose(g->disk);
    return late;
}

static void check_late(Guest *g, DpReq *late)
{
    dp_wait(g->disk, late);
    g_assert_cmpint(late->status, ==, OK);
    dp_req_free(g->disk, late);
    g_assert_cmpint(dp_rw(g->disk, VIRTIO_BLK_T_IN, LATE, 4096, 77), ==, OK);
}

/* The rest of a migration, at the end of which @g is in @to's process */
static void arrive(Guest *g, DpVm *to, const Way *way, const char *uri)
{
    QTestState *old = g->vm->qts;

    wait_status(g->vm, NULL, "completed");
    if (way->file) {
        receive_from(to, uri);
    }
    wait_status(to, NULL, "completed");
    vm_adopt(g->vm, to);
    qtest_quit(old);
}

/* One migration under load, with a full queue when the machine stops */
static void hop(Guest *g, const DpMode *mode, const Way *way)
{
    g_autofree char *uri = uri_of(way);
    DpVm *to = vm_waiting(mode, NULL, g->props);
    DpReq *late;
    DpInfo info;

    set_way(g->vm, way);
    set_way(to, way);
    if (!way->file) {
        receive_from(to, uri);
    }
    send_to(g->vm, uri, SLOW);
    wait_sent(g);
    late = fill_queue(g);
    set_bandwidth(g->vm, FAST);
    arrive(g, to, way, uri);

    wait_running(g->vm);
    check_late(g, late);
    dp_load_run(g->load, 4 * DEPTH);
    dp_assert_mode(g->vm, mode);
    dp_info(g->vm, "d0", &info);
    g_assert_cmpint(info.completed > 0, ==, mode->plane);
}

/* --- under load ------------------------------------------------------- */

/* Who serves the disk in each of the processes */
typedef struct Route {
    const char *name;
    const DpMode *stop[3];
} Route;

static const Route routes[] = {
    { "plane-off-plane", { &dp_mode_iothread, &dp_mode_off,
                           &dp_mode_iothread } },
    { "off-plane-off", { &dp_mode_off, &dp_mode_iothread, &dp_mode_off } },
    { "plane-plane-plane", { &dp_mode_iothread, &dp_mode_private,
                             &dp_mode_iothread } },
    { "main-plane-main", { &dp_mode_main, &dp_mode_iothread, &dp_mode_main } },
    { "off-off-off", { &dp_mode_off, &dp_mode_off, &dp_mode_off } },
};

/* Pairs of a row of ways[] and one of routes[] that show most; -m slow: all */
static const struct {
    unsigned way;
    unsigned route;
} quick[] = { { 0, 0 }, { 0, 1 }, { 1, 2 }, { 2, 0 }, { 3, 1 }, { 4, 2 } };

typedef struct LoadCase {
    const Way *way;
    const Route *route;
} LoadCase;

/* covers: M9, D11: each way, from each path to each other and back */
static void test_load(const void *opaque)
{
    const LoadCase *c = opaque;
    Guest *g = guest_start(c->route->stop[0], "");

    dp_assert_mode(g->vm, c->route->stop[0]);
    for (unsigned i = 1; i < ARRAY_SIZE(c->route->stop); i++) {
        hop(g, c->route->stop[i], c->way);
    }
    guest_finish(g, c->route->stop[ARRAY_SIZE(c->route->stop) - 1]);
}

static void add_loads(void)
{
    for (unsigned w = 0; w < ARRAY_SIZE(ways); w++) {
        for (unsigned r = 0; r < ARRAY_SIZE(routes); r++) {
            g_autofree char *path =
                g_strdup_printf("/virtio-blk-dataplane/migration/load/%s/%s",
                                ways[w].name, routes[r].name);
            bool wanted = g_test_slow();
            LoadCase *c;

            for (unsigned i = 0; i < ARRAY_SIZE(quick); i++) {
                wanted |= quick[i].way == w && quick[i].route == r;
            }
            if (wanted) {
                c = g_new(LoadCase, 1);
                *c = (LoadCase) { &ways[w], &routes[r] };
                qtest_add_data_func_full(path, c, test_load, g_free);
            }
        }
    }
}

/* --- migrations that fail --------------------------------------------- */

/* How a migration ends that leaves the guest at the source */
typedef struct Failure {
    const char *name;
    void (*run)(Guest *g, const DpMode *to);
} Failure;

static void fail_refused(Guest *g, const DpMode *to)
{
    g_autofree char *uri = uri_of(PRECOPY);
    g_autofree char *path = dp_tmp("socket");

    unlink(path);
    set_way(g->vm, PRECOPY);
    send_to(g->vm, uri, SLOW);
    wait_status(g->vm, g->load, "failed");
}

/* A migration that cannot end soon, and the process where it goes */
static DpVm *begin(Guest *g, const DpMode *to, const char *props,
                   const char *uri)
{
    DpVm *vm = vm_waiting(to, NULL, props);

    set_way(g->vm, PRECOPY);
    set_way(vm, PRECOPY);
    receive_from(vm, uri);
    send_to(g->vm, uri, SLOW);
    return vm;
}

static void fail_cancel(Guest *g, const DpMode *mode)
{
    g_autofree char *uri = uri_of(PRECOPY);
    DpVm *to = begin(g, mode, g->props, uri);

    wait_sent(g);
    dp_qmp_ok(g->vm, g->load, "{'execute': 'migrate_cancel'}");
    wait_status(g->vm, g->load, "cancelled");
    vm_discard(to);
}

static void fail_killed(Guest *g, const DpMode *mode)
{
    g_autofree char *uri = uri_of(PRECOPY);
    DpVm *to = begin(g, mode, g->props, uri);

    wait_sent(g);
    vm_discard(to);
    wait_status(g->vm, g->load, "failed");
}

/*
 * Up to the moment when the machine has stopped and the destination lacks only
 * the state of devices; returns the request that was not kicked
 */
static DpReq *stop_before_switchover(Guest *g)
{
    DpReq *late;

    wait_sent(g);
    late = fill_queue(g);
    set_bandwidth(g->vm, FAST);
    wait_status(g->vm, NULL, "pre-switchover");
    g_assert_false(is_running(g->vm));
    return late;
}

/* The source goes on by itself, with what was in flight */
static void go_on_at_source(Guest *g, DpReq *late)
{
    wait_running(g->vm);
    dp_release(g->disk);
    check_late(g, late);
}

static void fail_cancel_stopped(Guest *g, const DpMode *mode)
{
    g_autofree char *uri = uri_of(PRECOPY);
    DpReq *late;
    DpVm *to;

    set_capability(g->vm, "pause-before-switchover", true);
    to = begin(g, mode, g->props, uri);
    late = stop_before_switchover(g);
    dp_qmp_ok(g->vm, NULL, "{'execute': 'migrate_cancel'}");
    wait_status(g->vm, NULL, "cancelled");
    go_on_at_source(g, late);
    set_capability(g->vm, "pause-before-switchover", false);
    vm_discard(to);
}

static void fail_killed_stopped(Guest *g, const DpMode *mode)
{
    g_autofree char *uri = uri_of(PRECOPY);
    DpReq *late;
    DpVm *to;

    set_capability(g->vm, "pause-before-switchover", true);
    to = begin(g, mode, g->props, uri);
    late = stop_before_switchover(g);
    vm_discard(to);
    dp_qmp_ok(g->vm, NULL, "{'execute': 'migrate-continue', 'arguments': {"
              " 'state': 'pre-switchover'}}");
    wait_status(g->vm, NULL, "failed");
    go_on_at_source(g, late);
    set_capability(g->vm, "pause-before-switchover", false);
}

/* The destination is no match, which it finds when it loads the devices */
static void fail_to_load(Guest *g, DpVm *to)
{
    g_autofree char *uri = uri_of(PRECOPY);
    DpReq *late;

    set_way(g->vm, PRECOPY);
    set_way(to, PRECOPY);
    receive_from(to, uri);
    send_to(g->vm, uri, SLOW);
    wait_sent(g);
    late = fill_queue(g);
    set_bandwidth(g->vm, FAST);
    wait_status(g->vm, NULL, "failed");
    go_on_at_source(g, late);
    vm_discard(to);
}

static void fail_no_disk(Guest *g, const DpMode *mode)
{
    fail_to_load(g, dp_vm_start("-incoming defer"));
}

static void fail_features(Guest *g, const DpMode *mode)
{
    fail_to_load(g, vm_waiting(mode, NULL, ",event_idx=off,indirect_desc=off"));
}

static void fail_queue_size(Guest *g, const DpMode *mode)
{
    fail_to_load(g, vm_waiting(mode, NULL, ",queue-size=64,num-queues=2"));
}

/*
 * The source has sent all, into a file, and is done.  No QEMU loads that, so
 * the user lets the source go on.
 */
static void fail_after_all_was_sent(Guest *g, const DpMode *mode)
{
    g_autofree char *uri = uri_of(TO_FILE);
    DpVm *to = dp_vm_start("-incoming defer");
    DpReq *late;

    set_way(g->vm, TO_FILE);
    set_way(to, TO_FILE);
    send_to(g->vm, uri, SLOW);
    wait_sent(g);
    late = fill_queue(g);
    set_bandwidth(g->vm, FAST);
    wait_status(g->vm, NULL, "completed");
    receive_from(to, uri);
    wait_status(to, NULL, "failed");
    vm_discard(to);

    g_assert_false(is_running(g->vm));
    dp_cont(g->vm);
    go_on_at_source(g, late);
}

static const Failure failures[] = {
    { "refused", fail_refused },
    { "cancelled", fail_cancel },
    { "destination-dies", fail_killed },
    { "cancelled-when-stopped", fail_cancel_stopped },
    { "destination-dies-when-stopped", fail_killed_stopped },
    { "destination-without-disk", fail_no_disk },
    { "destination-with-other-features", fail_features },
    { "destination-with-other-queues", fail_queue_size },
    { "all-was-sent", fail_after_all_was_sent },
};

/* covers: M9: after every failure the source goes on, and can migrate */
static void test_failures(const void *opaque)
{
    const DpMode *mode = opaque;
    Guest *g = guest_start(mode, "");

    for (unsigned i = 0; i < ARRAY_SIZE(failures); i++) {
        g_test_message("%s", failures[i].name);
        failures[i].run(g, mode);
        dp_load_run(g->load, 4 * DEPTH);
        dp_assert_mode(g->vm, mode);
    }
    hop(g, mode, PRECOPY);
    guest_finish(g, mode);
}

/* --- queue sizes ------------------------------------------------------ */

#define IGNORED ",x-exact-queue-size=off"   /* as in 10.0.13 */

/* The driver uses @num entries, and goes on seeing @max after a reset. */
static const struct {
    const char *from;
    const char *to;
    unsigned num;
    unsigned max;
} queue_sizes[] = {
    { ",queue-size=64" IGNORED, ",queue-size=64", 1024, 1024 },
    { ",queue-size=64" IGNORED, ",queue-size=64", 256, 1024 },
    { ",queue-size=64", ",queue-size=64" IGNORED, 64, 64 },
    { ",queue-size=128", ",queue-size=64", 64, 128 },
};

static void test_queue_sizes(const void *opaque)
{
    const DpMode *mode = opaque;

    for (unsigned i = 0; i < ARRAY_SIZE(queue_sizes); i++) {
        g_autofree char *path = dp_image("disk.img", IMAGE_MB * MIB);
        Guest *g = guest_new(vm_on_image(mode, "raw", NULL,
                                         queue_sizes[i].from),
                             queue_sizes[i].to);

        g_test_message("%u of %u", queue_sizes[i].num, queue_sizes[i].max);
        g->disk->want_num = queue_sizes[i].num;
        dp_disk_start(g->disk, DP_F_ALL);
        guest_load(g);
        hop(g, mode, PRECOPY);
        dp_disk_reset(g->disk);
        dp_load_reset(g->load);
        g_assert_cmpuint(dp_reg_readw(g->disk, DP_CFG(queue_size)), ==,
                         queue_sizes[i].max);
        g->disk->want_num = queue_sizes[i].max;
        dp_disk_start(g->disk, DP_F_ALL);
        guest_finish(g, mode);
    }
}

/* --- parked requests -------------------------------------------------- */

/* Of each framing a write and a read, far apart, which blkdebug lets fail */
#define PARKED (2 * DP_FRAMING__MAX)
#define PARKED_AT(i) (1000 * ((i) + 1))

/* Each of the requests fails once */
static char *parked_rules(void)
{
    GString *rules = g_string_new("");

    for (unsigned i = 0; i < PARKED; i++) {
        g_string_append_printf(rules, "%s{\"event\": \"none\","
                               " \"iotype\": \"%s\", \"sector\": %d,"
                               " \"errno\": %d, \"once\": true}",
                               i ? ", " : "", i % 2 ? "read" : "write",
                               PARKED_AT(i), i % 2 ? EIO : ENOSPC);
    }
    return g_string_free(rules, false);
}

static char *parked_props(const char *props)
{
    return g_strdup_printf(",werror=stop,rerror=stop%s", props);
}

static Guest *guest_start_failing(const DpMode *mode, const char *props)
{
    g_autofree char *path = dp_image("disk.img", IMAGE_MB * MIB);
    g_autofree char *rules = parked_rules();

    return guest_new(vm_on_image(mode, "raw", rules, props), props);
}

static void wait_parked(DpVm *vm, DpDisk *disk, DpReq **req)
{
    qtest_qmp_eventwait(vm->qts, "STOP");
    dp_reap(disk);
    for (unsigned i = 0; i < PARKED; i++) {
        g_assert_false(req[i]->done);
    }
}

/* QEMU's own path does not take a table behind direct descriptors */
static DpFraming framing_of(unsigned i, const DpMode *mode)
{
    DpFraming framing = i / 2;

    return framing == DP_HALF_INDIRECT && !mode->plane ? DP_INDIRECT : framing;
}

static void park(Guest *g, DpReq **req, const DpMode *mode)
{
    for (unsigned i = 1; i < PARKED; i += 2) {
        g_assert_cmpint(dp_rw(g->disk, VIRTIO_BLK_T_OUT, PARKED_AT(i), 4096,
                              i), ==, OK);
    }
    for (unsigned i = 0; i < PARKED; i++) {
        req[i] = dp_req(g->disk, i % 2 ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT,
                        PARKED_AT(i), 4096);
        req[i]->framing = framing_of(i, mode);
        if (i % 2 == 0) {
            dp_req_fill(g->disk, req[i], i);
        }
        dp_submit(g->disk, req[i]);
    }
    dp_kick(g->disk);
    wait_parked(g->vm, g->disk, req);
}

/* What was parked completes, once, where it is */
static void unpark(Guest *g, DpReq **req)
{
    dp_cont(g->vm);
    dp_wait_all(g->disk);
    for (unsigned i = 0; i < PARKED; i++) {
        g_assert_cmpint(req[i]->status, ==, OK);
        if (i % 2) {
            g_assert_true(dp_req_matches(g->disk, req[i], i));
        } else {
            g_assert_cmpint(dp_rw(g->disk, VIRTIO_BLK_T_IN, PARKED_AT(i),
                                  4096, i), ==, OK);
        }
        dp_req_free(g->disk, req[i]);
    }
}

/* Move a guest that is stopped, with whatever is parked */
static void hop_stopped(Guest *g, const DpMode *mode, const Way *way,
                        const char *rules)
{
    g_autofree char *uri = uri_of(way);
    DpVm *to = vm_waiting(mode, rules, g->props);

    set_way(g->vm, way);
    set_way(to, way);
    if (!way->file) {
        receive_from(to, uri);
    }
    send_to(g->vm, uri, FAST);
    arrive(g, to, way, uri);
    g_assert_false(is_running(g->vm));
}

/* What of the device must not make a difference for what is parked */
static const struct {
    const char *name;
    const char *props;
} parked_kinds[] = {
    { "split", "" },
    { "packed", ",packed=on" },
};

typedef struct Pair {
    const DpMode *here;
    const DpMode *there;
} Pair;

typedef struct ParkedCase {
    const char *props;
    const Pair *pair;
} ParkedCase;

/*
 * covers: M9, M11, D6: what was parked travels; there it fails and is parked
 * again, travels back, and completes
 */
static void test_parked(const void *opaque)
{
    const ParkedCase *c = opaque;
    g_autofree char *props = parked_props(c->props);
    g_autofree char *rules = parked_rules();
    Guest *g = guest_start_failing(c->pair->here, props);
    DpReq *req[PARKED];

    park(g, req, c->pair->here);
    hop_stopped(g, c->pair->there, PRECOPY, rules);
    dp_cont(g->vm);
    wait_parked(g->vm, g->disk, req);
    hop_stopped(g, c->pair->here, TO_FILE, NULL);
    unpark(g, req);
    guest_finish(g, c->pair->here);
}

static void add_parked(const Pair *pair)
{
    for (unsigned i = 0; i < ARRAY_SIZE(parked_kinds); i++) {
        g_autofree char *path =
            g_strdup_printf("/virtio-blk-dataplane/migration/parked/%s/%s-%s",
                            parked_kinds[i].name, pair->here->name,
                            pair->there->name);
        ParkedCase *c = g_new(ParkedCase, 1);

        *c = (ParkedCase) { parked_kinds[i].props, pair };
        qtest_add_data_func_full(path, c, test_parked, g_free);
    }
}

/*
 * covers: M9, D6: a move with requests parked is cancelled, or fails; they
 * complete at the source
 */
static void test_parked_return(const void *opaque)
{
    static const char *const ends[] = { "cancelled", "failed" };
    const DpMode *mode = opaque;
    g_autofree char *props = parked_props("");

    for (unsigned i = 0; i < ARRAY_SIZE(ends); i++) {
        g_autofree char *uri = uri_of(PRECOPY);
        Guest *g = guest_start_failing(mode, props);
        DpReq *req[PARKED];
        DpVm *to;

        park(g, req, mode);
        set_capability(g->vm, "pause-before-switchover", true);
        to = begin(g, mode, props, uri);
        set_bandwidth(g->vm, FAST);
        wait_status(g->vm, NULL, "pre-switchover");
        if (g_str_equal(ends[i], "cancelled")) {
            dp_qmp_ok(g->vm, NULL, "{'execute': 'migrate_cancel'}");
            wait_status(g->vm, NULL, ends[i]);
            vm_discard(to);
        } else {
            vm_discard(to);
            dp_qmp_ok(g->vm, NULL, "{'execute': 'migrate-continue',"
                      " 'arguments': {'state': 'pre-switchover'}}");
            wait_status(g->vm, NULL, ends[i]);
        }
        g_assert_false(is_running(g->vm));
        unpark(g, req);
        guest_finish(g, mode);
    }
}

/* --- streams that no QEMU wrote --------------------------------------- */

/* A parked request, as virtio.c writes it; behind its number of descriptors */
#define WIRE_VECTORS 1024       /* VIRTQUEUE_MAX_SIZE */

typedef struct WireElement {
    uint32_t index;
    uint32_t out_num;
    uint32_t in_num;
    uint64_t in_addr[WIRE_VECTORS];
    uint64_t out_addr[WIRE_VECTORS];
} WireElement;

/* Returns the place in the stream where @req's element begins */
static size_t find_element(const char *stream, size_t len, const DpReq *req)
{
    for (size_t i = sizeof(uint32_t); i + sizeof(WireElement) < len; i++) {
        WireElement elem;

        memcpy(&elem, stream + i, offsetof(WireElement, in_addr));
        if (elem.index != req->head || elem.out_num != 1 || elem.in_num != 2) {
            continue;
        }
        memcpy(&elem, stream + i, sizeof(elem));
        if (elem.in_addr[0] == req->data &&
            elem.in_addr[1] == req->status_addr &&
            elem.out_addr[0] == req->page) {
            return i;
        }
    }
    g_error("the request is not in the stream");
}

typedef enum Arrival {
    ARRIVES,
    ARRIVES_BROKEN,             /* the plane finds it; or just not a crash */
    REFUSED,
} Arrival;

/* The numbers of descriptors of the one request in flight */
typedef struct WireSize {
    uint32_t ndescs;
    Arrival arrival;
} WireSize;

/* The queue has 256 entries */
static const WireSize wire_sizes[] = {
    { 1, ARRIVES },
    { 0, REFUSED },
    { 2, ARRIVES_BROKEN },
    { 256, ARRIVES_BROKEN },
    { 257, REFUSED },
    { 0x80000000, REFUSED },
    { UINT32_MAX, REFUSED },
};

/* Leaves the guest in the file of TO_FILE.  Returns what is in the file */
static char *guest_to_file(Guest *g, size_t *len)
{
    g_autofree char *uri = uri_of(TO_FILE);
    g_autofree char *path = dp_tmp("stream");
    char *stream;

    set_way(g->vm, TO_FILE);
    send_to(g->vm, uri, FAST);
    wait_status(g->vm, NULL, "completed");
    g_assert_true(g_file_get_contents(path, &stream, len, NULL));
    return stream;
}

/* A read that the error policy parks, and that stops the guest */
static DpReq *park_read(Guest *g)
{
    DpReq *req = dp_req(g->disk, VIRTIO_BLK_T_IN, PARKED_AT(1), 4096);

    req->framing = DP_INDIRECT;         /* one descriptor */
    dp_submit(g->disk, req);
    dp_kick(g->disk);
    qtest_qmp_eventwait(g->vm->qts, "STOP");
    g_assert_cmpuint(g->disk->num, ==, 256);
    return req;
}

static DpVm *vm_from_file(const DpMode *mode, const char *props, bool loads)
{
    g_autofree char *uri = uri_of(TO_FILE);
    DpVm *vm = vm_waiting(mode, NULL, props);

    set_way(vm, TO_FILE);
    receive_from(vm, uri);
    wait_status(vm, NULL, loads ? "completed" : "failed");
    return vm;
}

/* The guest runs on, in a process that has loaded a stream */
static void run_arrived(Guest *g, DpVm *vm, const DpMode *mode, DpReq *req,
                        Arrival arrival)
{
    bool broken = arrival == ARRIVES_BROKEN && mode->plane;
    gint64 deadline = dp_deadline();

    g->vm->qts = vm->qts;
    g->vm->bus->qts = vm->qts;
    dp_cont(g->vm);
    while (broken &&
           !(dp_status(g->disk) & VIRTIO_CONFIG_S_NEEDS_RESET)) {
        dp_check_deadline(deadline, "DEVICE_NEEDS_RESET");
    }
    if (arrival == ARRIVES) {
        dp_wait(g->disk, req);
        g_assert_cmpint(req->status, ==, OK);
    }
    dp_disk_reset(g->disk);
    dp_disk_start(g->disk, DP_F_ALL);
    dp_assert_works(g->disk);
}

/*
 * covers: M9, M11: the number of descriptors of a parked request is not what it
 * was.  No process dies of that, and the guest goes on where it can.
 */
static void test_wire_sizes(const DpMode *mode)
{
    g_autofree char *props = parked_props("");
    g_autofree char *path = dp_tmp("stream");
    Guest *g = guest_start_failing(mode, props);
    DpReq *req = park_read(g);
    size_t len, at;
    g_autofree char *stream = guest_to_file(g, &len);
    QTestState *source = g->vm->qts;

    at = find_element(stream, len, req) - sizeof(uint32_t);
    g_assert_cmpuint(ldl_be_p(stream + at), ==, 1);
    for (unsigned i = 0; i < ARRAY_SIZE(wire_sizes); i++) {
        const WireSize *size = &wire_sizes[i];
        DpVm *vm;

        g_test_message("%u descriptors", size->ndescs);
        stl_be_p(stream + at, size->ndescs);
        g_assert_true(g_file_set_contents(path, stream, len, NULL));
        vm = vm_from_file(mode, props, size->arrival != REFUSED);
        if (size->arrival != REFUSED) {
            run_arrived(g, vm, mode, req, size->arrival);
        }
        vm_discard(vm);
    }
    g->vm->qts = source;
    g->vm->bus->qts = source;
    dp_disk_free(g->disk);
    dp_vm_quit(g->vm);
    g_free(g);
}

#define RINGSIZE "virtio/ringsize"

/* Where the stream has the size of queue 0: the one in use, or the largest */
static size_t find_queue_size(const char *stream, size_t len, DpDisk *disk,
                              bool largest)
{
    uint8_t queue[16];
    const char *at;

    stl_be_p(queue, 1);                 /* number of queues */
    stl_be_p(queue + 4, disk->num);
    stq_be_p(queue + 8, disk->vq->desc);
    at = largest ? memmem(stream, len, RINGSIZE, strlen(RINGSIZE)) :
                   memmem(stream, len, queue, sizeof(queue));
    g_assert_nonnull(at);
    return at - stream + (largest ? strlen(RINGSIZE) + 4 : 4);
}

/* covers: M9: no device has such a queue, and what would index it must not */
static void test_wire_queue_sizes(const DpMode *mode)
{
    static const uint32_t sizes[] = { 0, 1025, 0x80000000, UINT32_MAX };
    g_autofree char *image = dp_image("disk.img", IMAGE_MB * MIB);
    g_autofree char *path = dp_tmp("stream");
    Guest *g = guest_new(vm_on_image(mode, "raw", NULL, ""), "");
    size_t len;
    g_autofree char *stream = guest_to_file(g, &len);

    for (unsigned i = 0; i < 2 * ARRAY_SIZE(sizes); i++) {
        size_t at = find_queue_size(stream, len, g->disk, i % 2);
        uint32_t good = ldl_be_p(stream + at);

        g_assert_cmpuint(good, ==, i % 2 ? 1024 : g->disk->num);
        stl_be_p(stream + at, sizes[i / 2]);
        g_assert_true(g_file_set_contents(path, stream, len, NULL));
        vm_discard(vm_from_file(mode, "", false));
        stl_be_p(stream + at, good);
    }
    g_assert_true(g_file_set_contents(path, stream, len, NULL));
    vm_discard(vm_from_file(mode, "", true));
    dp_disk_free(g->disk);
    dp_vm_quit(g->vm);
    g_free(g);
}

/*
 * covers: M9: a maximum of the user's is sent, also when the driver uses all of
 * it: QEMU 10.0.13 goes back to 1024 else
 */
static void test_wire_user_size(const DpMode *mode)
{
    g_autofree char *image = dp_image("disk.img", IMAGE_MB * MIB);
    Guest *g = guest_new(vm_on_image(mode, "raw", NULL, ",queue-size=64"), "");
    size_t len;
    g_autofree char *stream = guest_to_file(g, &len);

    g_assert_cmpuint(g->disk->num, ==, 64);
    g_assert_cmpuint(ldl_be_p(stream + find_queue_size(stream, len, g->disk,
                                                       true)), ==, 64);
    dp_disk_free(g->disk);
    dp_vm_quit(g->vm);
    g_free(g);
}

/* --- snapshots of the machine ----------------------------------------- */

static void wait_job(DpVm *vm, const char *id)
{
    gint64 deadline = dp_deadline();

    for (bool ended = false; !ended;) {
        QDict *rsp = dp_qmp(vm, NULL, "{'execute': 'query-jobs'}");
        QDict *job = qobject_to(QDict, qlist_peek(qdict_get_qlist(rsp,
                                                                  "return")));

        g_assert_cmpstr(qdict_get_str(job, "id"), ==, id);
        if (qdict_haskey(job, "error")) {
            g_error("%s: %s", id, qdict_get_str(job, "error"));
        }
        ended = g_str_equal(qdict_get_str(job, "status"), "concluded");
        qobject_unref(rsp);
        dp_check_deadline(deadline, id);
    }
    dp_qmp_ok(vm, NULL, "{'execute': 'job-dismiss', 'arguments': {'id': %s}}",
              id);
}

static void snapshot(DpVm *vm, const char *command)
{
    dp_qmp_ok(vm, NULL, "{'execute': %s, 'arguments': { 'job-id': 'job',"
              " 'tag': 'moment', 'vmstate': 'n0', 'devices': ['n0'] }}",
              command);
    wait_job(vm, "job");
}

static Guest *guest_start_qcow2(const DpMode *mode)
{
    g_autofree char *path = dp_tmp("disk.img");
    Guest *g;

    g_assert_true(mkimg(path, "qcow2", IMAGE_MB));
    g = guest_new(vm_on_image(mode, "qcow2", NULL, ""), "");
    g->load = dp_load_new(g->disk, DEPTH, FIRST);
    dp_load_run(g->load, 2 * DEPTH);
    return g;
}

/* covers: M9: savevm with a full queue, loadvm in another process */
static void test_snapshot_elsewhere(const void *opaque)
{
    const Pair *c = opaque;
    Guest *g = guest_start_qcow2(c->here);
    DpReq *late = fill_queue(g);

    snapshot(g->vm, "snapshot-save");
    qtest_quit(g->vm->qts);
    vm_adopt(g->vm, vm_on_image(c->there, "qcow2", NULL, " -S"));
    snapshot(g->vm, "snapshot-load");
    dp_cont(g->vm);
    check_late(g, late);
    guest_finish(g, c->there);
}

/*
 * covers: M9, M8: loadvm in a process whose driver is at work in another ring.
 * What it has in flight belongs to a past that never was.
 */
static void test_snapshot_rewind(const DpMode *mode)
{
    Guest *g = guest_start_qcow2(mode);
    DpReq *late = fill_queue(g);
    DpDisk *other;
    DpLoad *load;

    snapshot(g->vm, "snapshot-save");
    wait_running(g->vm);
    dp_release(g->disk);

    other = dp_disk_new(g->vm, DP_F_PLAIN);
    load = dp_load_new(other, DEPTH / 2, FIRST);
    dp_load_run(load, 4 * DEPTH);
    dp_hold(other);
    dp_load_send(load);

    snapshot(g->vm, "snapshot-load");
    wait_running(g->vm);
    dp_release(g->disk);
    check_late(g, late);
    guest_finish(g, mode);
    /* Its memory belongs to the guest's VM, which is gone */
}

static void add_snapshots(const Pair *pair)
{
    g_autofree char *path =
        g_strdup_printf("/virtio-blk-dataplane/migration/snapshot/%s-%s",
                        pair->here->name, pair->there->name);

    qtest_add_data_func(path, pair, test_snapshot_elsewhere);
}

int main(int argc, char **argv)
{
    static const Pair pairs[] = {
        { &dp_mode_iothread, &dp_mode_off },
        { &dp_mode_off, &dp_mode_iothread },
        { &dp_mode_iothread, &dp_mode_private },
    };
    static const DpTest wire_sizes = {
        "wire-sizes", .own_vm = test_wire_sizes
    };
    static const DpTest wire_queue_sizes = {
        "wire-queue-sizes", .own_vm = test_wire_queue_sizes
    };
    static const DpTest wire_user_size = {
        "wire-user-size", .own_vm = test_wire_user_size
    };
    static const DpTest plane[] = {
        { "snapshot/rewind", .own_vm = test_snapshot_rewind },
    };

    g_test_init(&argc, &argv, NULL);
    add_loads();
    for (unsigned i = 0; i < ARRAY_SIZE(pairs); i++) {
        add_parked(&pairs[i]);
        add_snapshots(&pairs[i]);
    }
    qtest_add_data_func("/virtio-blk-dataplane/migration/failures",
                        &dp_mode_iothread, test_failures);
    qtest_add_data_func("/virtio-blk-dataplane/migration/parked/return",
                        &dp_mode_iothread, test_parked_return);
    dp_add_row("migration", &wire_sizes, &dp_mode_packed);
    dp_add_row("migration", &wire_sizes, &dp_mode_off_packed);
    dp_add_row("migration", &wire_queue_sizes, &dp_mode_iothread);
    dp_add_row("migration", &wire_user_size, &dp_mode_iothread);
    dp_add_row("migration", &wire_user_size, &dp_mode_off);
    qtest_add_data_func("/virtio-blk-dataplane/migration/queue-sizes/iothread",
                        &dp_mode_iothread, test_queue_sizes);
    qtest_add_data_func("/virtio-blk-dataplane/migration/queue-sizes/off",
                        &dp_mode_off, test_queue_sizes);
    dp_add_table("migration", plane, ARRAY_SIZE(plane), true);
    return g_test_run();
}
