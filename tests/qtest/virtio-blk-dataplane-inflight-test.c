/*
 * Requests in flight, as others see them: the list, and stalls
 *
 * x-query-virtio-blk-requests has to say the truth at any moment, also when an
 * IOThread stands still or a backend never answers, and VIRTIO_BLK_STALL has to
 * come when a request takes too long, and when this is over.  May know that a
 * limit holds requests back in the order in which they came.
 *
 * Ages are as exact as numbers: they are told by qtest's clock, which a test
 * sets.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "virtio-blk-dataplane-common.h"

#define OK VIRTIO_BLK_S_OK
#define DEVICE "/machine/peripheral/d0"
#define BACKEND DEVICE "/virtio-backend"
#define QUERY "x-query-virtio-blk-requests"
#define STALL "VIRTIO_BLK_STALL"
#define MS 1000000ll
#define N 3                         /* requests in flight */
#define APART 1000                  /* sectors: neighbors would be merged */
#define LEN 4096
#define TIMEOUT_MS 1000
#define STALLS ",x-stall-timeout=1000"

/* --- the list -------------------------------------------------------- */

/* Runs the command with more arguments, each behind a comma */
static QDict *query_path(DpVm *vm, const char *path, const char *args)
{
    g_autofree char *command = g_strdup_printf(
        "{'execute': '" QUERY "', 'arguments': { 'path': '%s'%s }}",
        path, args);
    QDict *rsp = dp_qmp(vm, NULL, command, NULL);
    QDict *answer = qdict_get_qdict(rsp, "return");

    g_assert_nonnull(answer);
    qobject_ref(answer);
    qobject_unref(rsp);
    return answer;
}

static QDict *query(DpDisk *disk, const char *args)
{
    return query_path(disk->vm, DEVICE, args);
}

static unsigned count(const QDict *answer)
{
    return qlist_size(qdict_get_qlist(answer, "requests"));
}

/* The @i-th request of an answer, in which it stays */
static const QDict *request_at(const QDict *answer, unsigned i)
{
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(answer, "requests"), entry) {
        if (!i--) {
            return qobject_to(QDict, qlist_entry_obj(entry));
        }
    }
    g_assert_not_reached();
}

static const char *stage_at(const QDict *answer, unsigned i)
{
    return qdict_get_str(request_at(answer, i), "stage");
}

static void assert_count(DpDisk *disk, const char *args, unsigned n)
{
    QDict *answer = query(disk, args);

    g_assert_cmpuint(count(answer), ==, n);
    g_assert_cmpint(qdict_get_int(answer, "total"), ==, n);
    g_assert_cmpint(qdict_get_int(answer, "unreadable"), ==, 0);
    g_assert_false(qdict_get_bool(answer, "drained"));
    qobject_unref(answer);
}

/* Is this @req, and that all about it? */
static void assert_is(const QDict *shown, DpDisk *disk, const DpReq *req,
                      const char *type, const char *stage)
{
    g_assert_cmpint(qdict_get_int(shown, "queue"), ==, disk->index);
    g_assert_cmpint(qdict_get_int(shown, "head"), ==, req->head);
    g_assert_cmpstr(qdict_get_str(shown, "stage"), ==, stage);
    g_assert_cmpstr(qdict_get_str(shown, "type"), ==, type);
    g_assert_cmpint(qdict_get_int(shown, "offset"), ==,
                    req->sector * DP_SECTOR);
    g_assert_cmpint(qdict_get_int(shown, "bytes"), ==, req->len);
}

/* Waits until so many are in flight, and all of them are as far as @stage */
static void wait_stage(DpDisk *disk, unsigned n, const char *stage)
{
    gint64 deadline = dp_deadline();
    unsigned there;

    dp_queue_wait_in_flight(disk, n);
    do {
        QDict *answer = query(disk, "");

        dp_check_deadline(deadline, stage);
        there = 0;
        for (unsigned i = 0; i < count(answer); i++) {
            there += !strcmp(stage_at(answer, i), stage);
        }
        qobject_unref(answer);
    } while (there != n);
}

static void send_reads(DpDisk *disk, DpReq **req, const char *stage)
{
    for (unsigned i = 0; i < N; i++) {
        req[i] = dp_req(disk, VIRTIO_BLK_T_IN, APART * i, LEN);
        dp_submit(disk, req[i]);
    }
    dp_kick(disk);
    wait_stage(disk, N, stage);
}

/* The driver may see a completion just before the request is released. */
static void assert_released(DpDisk *disk)
{
    dp_queue_wait_in_flight(disk, 0);
    assert_count(disk, "", 0);
}

static void finish(DpDisk *disk, DpReq **req)
{
    dp_wait_all(disk);
    for (unsigned i = 0; i < N; i++) {
        g_assert_cmpint(req[i]->status, ==, OK);
        dp_req_free(disk, req[i]);
    }
    assert_released(disk);
}

/* What the limit holds back is listed with all that is known of it */
static void test_list(DpDisk *disk)
{
    DpReq *req[N];
    QDict *answer;

    assert_count(disk, "", 0);
    dp_hold(disk);
    send_reads(disk, req, "throttled");
    qtest_clock_step(disk->vm->qts, 5 * MS);
    answer = query(disk, "");
    g_assert_cmpuint(count(answer), ==, N);
    for (unsigned i = 0; i < N; i++) {
        const QDict *shown = request_at(answer, i);

        assert_is(shown, disk, req[i], "read", "throttled");
        g_assert_cmpint(qdict_get_int(shown, "age-ns"), ==, 5 * MS);
    }
    qobject_unref(answer);
    dp_release(disk);
    finish(disk, req);
}

/* Which are listed: old ones, at most so many, the oldest first */
static void test_filters(DpDisk *disk)
{
    DpReq *req[N], *young;
    QDict *answer;

    dp_hold(disk);
    send_reads(disk, req, "throttled");
    qtest_clock_step(disk->vm->qts, 2 * MS);
    young = dp_req(disk, VIRTIO_BLK_T_OUT, 8, 2 * LEN);
    dp_submit(disk, young);
    dp_kick(disk);
    wait_stage(disk, N + 1, "throttled");
    qtest_clock_step(disk->vm->qts, 2 * MS);

    answer = query(disk, "");
    g_assert_cmpuint(count(answer), ==, N + 1);
    assert_is(request_at(answer, N), disk, young, "write", "throttled");
    qobject_unref(answer);
    assert_count(disk, ", 'min-age-ns': 4000000", N);
    assert_count(disk, ", 'min-age-ns': 4000001", 0);
    assert_count(disk, ", 'min-age-ns': 2000000", N + 1);
    assert_count(disk, ", 'queue': 0", N + 1);
    answer = query(disk, ", 'limit': 1");
    g_assert_cmpuint(count(answer), ==, 1);
    g_assert_cmpint(qdict_get_int(answer, "total"), ==, N + 1);
    assert_is(request_at(answer, 0), disk, req[0], "read", "throttled");
    qobject_unref(answer);

    dp_release(disk);
    dp_wait(disk, young);
    dp_req_free(disk, young);
    finish(disk, req);
}

/* Each request is in its queue, and in no other */
static void test_queues(DpDisk *disk)
{
    DpDisk *other = dp_disk_queue(disk, 1);
    DpReq *req[N];
    QDict *answer;

    dp_disk_start(disk, DP_F_ALL);
    dp_hold(disk);
    send_reads(other, req, "throttled");
    assert_count(disk, ", 'queue': 0", 0);
    answer = query(disk, ", 'queue': 1");
    g_assert_cmpuint(count(answer), ==, N);
    assert_is(request_at(answer, 0), other, req[0], "read", "throttled");
    qobject_unref(answer);
    dp_qmp_error(disk->vm, NULL, "has no queue 2: its queues are 0 to 1",
                 "{'execute': '" QUERY "', 'arguments': { 'path': '" DEVICE
                 "', 'queue': 2 }}");
    dp_release(disk);
    finish(other, req);
}

/* A request that has its offset and length in its data */
static void test_types(DpDisk *disk)
{
    struct virtio_blk_discard_write_zeroes seg = {
        .sector = cpu_to_le64(64),
        .num_sectors = cpu_to_le32(8),
    };
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_WRITE_ZEROES, 0, sizeof(seg));
    const QDict *shown;
    QDict *answer;

    dp_hold(disk);
    qtest_memwrite(disk->vm->qts, req->data, &seg, sizeof(seg));
    dp_submit(disk, req);
    dp_kick(disk);
    wait_stage(disk, 1, "throttled");
    answer = query(disk, "");
    g_assert_cmpuint(count(answer), ==, 1);
    shown = request_at(answer, 0);
    g_assert_cmpstr(qdict_get_str(shown, "type"), ==, "write-zeroes");
    g_assert_cmpint(qdict_get_int(shown, "offset"), ==, 64 * DP_SECTOR);
    g_assert_cmpint(qdict_get_int(shown, "bytes"), ==, 8 * DP_SECTOR);
    qobject_unref(answer);
    dp_release(disk);
    dp_wait(disk, req);
    g_assert_cmpint(req->status, ==, OK);
    dp_req_free(disk, req);
}

static DpVm *vm_parking(const DpMode *mode)
{
    return dp_vm_parking(mode, STALLS);
}

/* covers: M9: what is parked is listed, is no stall, and goes on after cont */
static void test_parked(DpDisk *disk)
{
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_OUT, APART, LEN);
    QTestState *qts = disk->vm->qts;
    QDict *answer;

    dp_req_fill(disk, req, 1);
    dp_submit(disk, req);
    dp_kick(disk);
    qtest_qmp_eventwait(qts, "STOP");
    qtest_clock_step(qts, 10 * TIMEOUT_MS * MS);
    answer = query(disk, "");
    g_assert_cmpuint(count(answer), ==, 1);
    assert_is(request_at(answer, 0), disk, req, "write", "parked");
    qobject_unref(answer);
    g_assert_null(qtest_qmp_event_ref(qts, STALL));

    /* The clock goes on, and it is looked for stalls at once. */
    dp_cont(disk->vm);
    dp_wait(disk, req);
    g_assert_cmpint(req->status, ==, OK);
    dp_req_free(disk, req);
    assert_released(disk);
    g_assert_null(qtest_qmp_event_ref(qts, STALL));
}

/* Under load each answer makes sense, and no request is disturbed */
static void test_load(DpDisk *disk)
{
    DpLoad *load = dp_load_new(disk, 16, 0);
    unsigned listed = 0;

    for (unsigned i = 0; i < 100; i++) {
        QDict *answer;

        dp_load_run(load, 10);
        dp_load_send(load);
        answer = query(disk, "");
        listed += count(answer);
        g_assert_cmpuint(count(answer), <=, 16);
        for (unsigned k = 0; k < count(answer); k++) {
            const QDict *shown = request_at(answer, k);

            g_assert_cmpint(qdict_get_int(shown, "head"), <, disk->num);
            if (qdict_haskey(shown, "type")) {
                g_assert_cmpint(qdict_get_int(shown, "bytes"), ==, LEN);
                g_assert_cmpint(qdict_get_int(shown, "offset") % LEN, ==, 0);
            }
        }
        qobject_unref(answer);
    }
    dp_load_finish(load);
    g_test_message("%u requests were seen in flight", listed);
    assert_released(disk);
}

/* Each mistake of the user is told */
static void test_errors(const DpMode *mode)
{
    DpVm *vm = dp_vm_start(
        "-blockdev null-co,node-name=n0,size=1048576 "
        "-device virtio-blk-pci,id=d0,drive=n0,addr=%d,iothread=io0,"
        "x-data-plane=off", DP_SLOT);
    static const char *const no_disks[] = {
        "/machine", "/nowhere", "", "/machine/peripheral",
    };

    for (unsigned i = 0; i < ARRAY_SIZE(no_disks); i++) {
        dp_qmp_error(vm, NULL, "is not the QOM path of a virtio-blk device",
                     "{'execute': '" QUERY "', 'arguments': { 'path': %s }}",
                     no_disks[i]);
    }
    dp_qmp_error(vm, NULL, "has no data plane",
                 "{'execute': '" QUERY "', 'arguments': { 'path': '" DEVICE
                 "' }}");
    dp_qmp_ok(vm, NULL, "{'execute': 'blockdev-add', 'arguments': {"
              " 'driver': 'null-co', 'node-name': 'n1' }}");
    dp_qmp_error(vm, NULL, "x-stall-timeout needs a data plane",
                 "{'execute': 'device_add', 'arguments': {"
                 " 'driver': 'virtio-blk-pci', 'drive': 'n1',"
                 " 'x-stall-timeout': 1 }}");
    dp_vm_quit(vm);
}

/* Both paths name the device, before a driver has started it, too */
static void test_paths(DpDisk *disk)
{
    static const char *const paths[] = { DEVICE, BACKEND };

    for (unsigned i = 0; i < ARRAY_SIZE(paths); i++) {
        QDict *answer = query_path(disk->vm, paths[i], "");

        g_assert_cmpuint(count(answer), ==, 0);
        qobject_unref(answer);
    }
}

/* --- what hangs ------------------------------------------------------ */

/* Waits for the event, and checks what it says */
static void expect_stall(DpDisk *disk, bool stalled, unsigned n,
                         const DpReq *req, const char *stage)
{
    QDict *event = qtest_qmp_eventwait_ref(disk->vm->qts, STALL);
    QDict *data = qdict_get_qdict(event, "data");
    QDict *shown = qdict_get_qdict(data, "request");

    g_assert_cmpstr(qdict_get_str(data, "qom-path"), ==, BACKEND);
    g_assert_cmpstr(qdict_get_str(data, "device"), ==, "d0");
    g_assert_true(qdict_get_bool(data, "stalled") == stalled);
    g_assert_cmpint(qdict_get_int(data, "count"), ==, n);
    g_assert_cmpint(qdict_get_int(shown, "age-ns"), >=, TIMEOUT_MS * MS);
    assert_is(shown, disk, req, "read", stage);
    qobject_unref(event);
}

/*
 * covers: U6: the IOThread stands still: who asks learns what it has, and who
 * does not ask is told
 */
static void test_frozen(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    DpReq *req[N];
    QDict *answer;
    pid_t tid;

    dp_hold(disk);
    send_reads(disk, req, "throttled");
    tid = dp_freeze(vm, "io0");
    if (tid) {
        answer = query(disk, "");
        g_assert_cmpuint(count(answer), ==, N);
        assert_is(request_at(answer, 0), disk, req[0], "read", "throttled");
        g_assert_cmpint(qdict_get_int(answer, "unreadable"), ==, 0);
        qobject_unref(answer);
        qtest_clock_step(vm->qts, 2 * TIMEOUT_MS * MS);
        expect_stall(disk, true, N, req[0], "throttled");
        dp_thaw(tid);
    }
    dp_release(disk);
    finish(disk, req);
}

/* A disk on an NBD server */
static DpVm *vm_nbd(const DpMode *mode, const char *props)
{
    g_autofree char *path = dp_tmp("nbd.sock");

    return dp_vm_start(
        "-blockdev nbd,node-name=n0,export=disk,server.type=unix,"
        "server.path=%s -device virtio-blk-pci,id=d0,drive=n0,addr=%d%s%s",
        path, DP_SLOT, props, mode->props);
}

/* covers: U6: the backend does not answer for a while */
static void test_silent(const DpMode *mode)
{
    g_autofree char *path = dp_image("disk.img", DP_IMAGE_SIZE);
    DpReq *req[N], first;
    DpDisk *disk;
    QDict *answer;
    GPid server;
    DpVm *vm;

    if (!dp_nbd_can()) {
        g_test_skip("QTEST_QEMU_STORAGE_DAEMON_BINARY is not set");
        return;
    }
    server = dp_nbd_start();
    vm = vm_nbd(mode, STALLS);
    disk = dp_disk_new(vm, DP_F_ALL);
    dp_assert_works(disk);

    g_assert_cmpint(kill(server, SIGSTOP), ==, 0);
    send_reads(disk, req, "submitted");
    qtest_clock_step(vm->qts, 2 * TIMEOUT_MS * MS);
    expect_stall(disk, true, N, req[0], "submitted");
    answer = query(disk, ", 'min-age-ns': 1000000000");
    g_assert_cmpuint(count(answer), ==, N);
    assert_is(request_at(answer, 0), disk, req[0], "read", "submitted");
    qobject_unref(answer);

    first = *req[0];
    g_assert_cmpint(kill(server, SIGCONT), ==, 0);
    finish(disk, req);
    qtest_clock_step(vm->qts, 2 * TIMEOUT_MS * MS);
    expect_stall(disk, false, 0, &first, "submitted");
    dp_disk_free(disk);
    dp_vm_quit(vm);
    dp_nbd_kill(server);
}

#ifdef CONFIG_TRACE_LOG

/*
 * The IOThread hangs where it logs: in a write to a full pipe, which has @room
 * bytes left.  A line has more than 53, and at most 80.
 */
static int full_pipe(const char *path, unsigned room)
{
    g_autofree char *junk = NULL;
    int fd, size;

    g_assert_cmpint(mkfifo(path, 0600), ==, 0);
    fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    g_assert_cmpint(fd, >=, 0);
    size = fcntl(fd, F_SETPIPE_SZ, 1);
    g_assert_cmpint(size, >, room);
    junk = g_malloc0(size);
    g_assert_cmpint(write(fd, junk, size - room), ==, size - room);
    return fd;
}

static void empty_pipe(int fd)
{
    char junk[4096];

    while (read(fd, junk, sizeof(junk)) > 0) {
        /* Until there is nothing left */
    }
}

/*
 * Hangs at a trace event that each request passes, when it has logged it
 * @logged times, and expects the stages of N reads, of which @completed have
 * completed
 */
static void hang_at(const DpMode *mode, const char *event, unsigned logged,
                    const char *const stages[N], unsigned completed)
{
    g_autofree char *path = dp_tmp("log");
    int fd = full_pipe(path, 80 * logged);
    DpReq *req[N];
    QDict *answer;
    DpDisk *disk;
    DpVm *vm = dp_vm_start(
        "-blockdev null-co,node-name=n0,size=8388608 -D %s -trace %s "
        "-device virtio-blk-pci,id=d0,drive=n0,addr=%d%s", path, event,
        DP_SLOT, mode->props);

    disk = dp_disk_new(vm, DP_F_ALL);
    for (unsigned i = 0; i < N; i++) {
        req[i] = dp_req(disk, VIRTIO_BLK_T_IN, APART * i, LEN);
        dp_submit(disk, req[i]);
    }
    dp_kick(disk);
    dp_queue_wait_in_flight(disk, N - completed);

    answer = query(disk, "");
    g_assert_cmpuint(count(answer), ==, N);
    for (unsigned i = 0; i < N; i++) {
        g_assert_cmpstr(stage_at(answer, i), ==, stages[i]);
        g_assert_cmpint(qdict_get_int(request_at(answer, i), "head"), ==,
                        req[i]->head);
        g_assert_true(qdict_haskey(request_at(answer, i), "offset") ==
                      !!strcmp(stages[i], "popped"));
    }
    qobject_unref(answer);

    empty_pipe(fd);
    finish(disk, req);
    dp_disk_free(disk);
    dp_vm_quit(vm);
    close(fd);
}

/* covers: U6: it hangs before it has parsed what it popped */
static void test_popped(const DpMode *mode)
{
    static const char *const stages[N] = { "popped", "popped", "popped" };

    hang_at(mode, "virtio_blk_handle_read", 0, stages, 0);
}

/* covers: U6: it hangs before it shows to the driver what has completed */
static void test_completed(const DpMode *mode)
{
    static const char *const stages[N] = {
        "completed", "completed", "submitted"
    };

    hang_at(mode, "virtio_blk_req_complete", 2, stages, 2);
}

#endif /* CONFIG_TRACE_LOG */

/* --- stalls ---------------------------------------------------------- */

static void stall(DpDisk *disk, DpReq **req)
{
    dp_hold(disk);
    send_reads(disk, req, "throttled");
    qtest_clock_step(disk->vm->qts, (TIMEOUT_MS - 1) * MS);
    assert_count(disk, "", N);
    g_assert_null(qtest_qmp_event_ref(disk->vm->qts, STALL));
    qtest_clock_step(disk->vm->qts, TIMEOUT_MS * MS);
    expect_stall(disk, true, N, req[0], "throttled");
}

static void expect_end(DpDisk *disk, const DpReq *req)
{
    qtest_clock_step(disk->vm->qts, 2 * TIMEOUT_MS * MS);
    expect_stall(disk, false, 0, req, "throttled");
    /* Nothing more of it */
    qtest_clock_step(disk->vm->qts, 10 * TIMEOUT_MS * MS);
    assert_count(disk, "", 0);
    g_assert_null(qtest_qmp_event_ref(disk->vm->qts, STALL));
}

/* One event when it begins, however long it takes, and one at its end */
static void test_stall(DpDisk *disk)
{
    DpReq *req[N], first;

    stall(disk, req);
    qtest_clock_step(disk->vm->qts, 10 * TIMEOUT_MS * MS);
    assert_count(disk, "", N);
    g_assert_null(qtest_qmp_event_ref(disk->vm->qts, STALL));
    first = *req[0];
    dp_release(disk);
    finish(disk, req);
    expect_end(disk, &first);
    dp_assert_works(disk);
}

/* covers: M8: a reset ends it */
static void test_stall_reset(DpDisk *disk)
{
    DpReq *req[N], first;

    stall(disk, req);
    first = *req[0];
    dp_disk_reset(disk);
    dp_req_drop(disk, req, N);
    expect_end(disk, &first);
}

/* So does a stop of the machine, which drains; qtest's clock stops, too */
static void test_stall_stop(DpDisk *disk)
{
    DpReq *req[N], first;

    stall(disk, req);
    first = *req[0];
    dp_stop(disk->vm);
    assert_count(disk, "", 0);
    dp_cont(disk->vm);
    expect_end(disk, &first);
    dp_release(disk);
    finish(disk, req);
}

/* covers: M6: so does an unplug, at which the event is sent */
static void test_stall_unplug(DpDisk *disk)
{
    DpReq *req[N], first;

    stall(disk, req);
    first = *req[0];
    dp_unplug(disk->vm);
    dp_req_drop(disk, req, N);
    qtest_clock_step(disk->vm->qts, TIMEOUT_MS * MS);
    expect_stall(disk, false, 0, &first, "throttled");
}

/* Without the property there is no event */
static void test_off(DpDisk *disk)
{
    DpReq *req[N];

    dp_hold(disk);
    send_reads(disk, req, "throttled");
    qtest_clock_step(disk->vm->qts, 10 * TIMEOUT_MS * MS);
    assert_count(disk, "", N);
    g_assert_null(qtest_qmp_event_ref(disk->vm->qts, STALL));
    dp_release(disk);
    finish(disk, req);
}

int main(int argc, char **argv)
{
    static const DpTest tests[] = {
        { "list", test_list },
        { "filters", test_filters },
        { "queues", test_queues, .props = ",num-queues=2", .idle = true },
        { "types", test_types },
        { "parked", test_parked, .vm = vm_parking },
        { "load", test_load },
        { "paths", test_paths, .idle = true, .ends_unserved = true },
        { "frozen", test_frozen, .props = STALLS },
        { "silent", .own_vm = test_silent },
#ifdef CONFIG_TRACE_LOG
        { "popped", .own_vm = test_popped },
        { "completed", .own_vm = test_completed },
#endif
        { "stall", test_stall, .props = STALLS },
        { "stall-reset", test_stall_reset, .props = STALLS,
          .ends_unserved = true },
        { "stall-stop", test_stall_stop, .props = STALLS },
        { "stall-unplug", test_stall_unplug, .props = STALLS,
          .ends_unserved = true },
        { "off", test_off },
    };

    static const DpTest errors = { "errors", .own_vm = test_errors };

    g_test_init(&argc, &argv, NULL);
    dp_add_table("inflight", tests, ARRAY_SIZE(tests), true);
    dp_add_row("inflight", &errors, &dp_mode_off);
    return g_test_run();
}
