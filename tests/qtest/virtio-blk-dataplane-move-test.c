/*
 * Queues that move to another IOThread
 *
 * x-virtio-blk-set-queue-iothread under load, with requests that cannot
 * complete, while the machine is paused, and against what ends or restarts the
 * queue meanwhile: nothing is lost, the queue is served where the command said,
 * and nothing of the device is left where it was.
 *
 * May know that a limit of reads does not hold writes back.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qobject/qdict.h"
#include "virtio-blk-dataplane-common.h"

#define OK VIRTIO_BLK_S_OK
#define DEVICE "/machine/peripheral/d0"
#define COMMAND "x-virtio-blk-set-queue-iothread"
#define N 3                         /* requests in flight */
#define APART 1000                  /* sectors: neighbors would be merged */
#define LEN 4096
#define ROUNDS 40
/* dp_hold() lets a byte pass per second, and 512 were read before */
#define FOR_ONE_NS (LEN * 1000000000ll)

/* Commands, each with what the load @load does meanwhile */

static void move_to(DpDisk *queue, DpLoad *load, const char *iothread)
{
    dp_qmp_ok(queue->vm, load, "{'execute': '" COMMAND "', 'arguments': {"
              " 'path': '" DEVICE "', 'queue': %u, 'iothread': %s }}",
              queue->index, iothread);
}

static void move_error(DpVm *vm, const char *path, unsigned queue,
                       const char *iothread, const char *text)
{
    dp_qmp_error(vm, NULL, text, "{'execute': '" COMMAND "', 'arguments': {"
                 " 'path': %s, 'queue': %u, 'iothread': %s }}", path, queue,
                 iothread);
}

/* Is the queue served by @iothread, and going to be by @next (or NULL)? */
static void assert_at(DpDisk *queue, const char *iothread, const char *next)
{
    DpInfo info;

    dp_queue_info(queue, &info);
    g_assert_cmpstr(info.iothread, ==, iothread);
    g_assert_cmpstr(info.moving_to, ==, next ?: "");
}

static void wait_moved(DpDisk *queue, DpLoad *load, const char *iothread)
{
    gint64 deadline = dp_deadline();
    DpInfo info;

    for (;;) {
        dp_queue_info(queue, &info);
        if (!info.moving_to[0]) {
            break;
        }
        dp_check_deadline(deadline, "a queue to move");
        if (load) {
            dp_load_run(load, 1);
        }
    }
    g_assert_cmpstr(info.iothread, ==, iothread);
}

static void move_now(DpDisk *queue, const char *iothread)
{
    move_to(queue, NULL, iothread);
    wait_moved(queue, NULL, iothread);
}

/* N reads that stay in flight until dp_release() */
static void hold_reads(DpDisk *queue, DpReq **req)
{
    dp_hold(queue);
    for (unsigned i = 0; i < N; i++) {
        req[i] = dp_req(queue, VIRTIO_BLK_T_IN, APART * i, LEN);
        dp_submit(queue, req[i]);
    }
    dp_kick(queue);
    dp_queue_wait_in_flight(queue, N);
}

static void finish(DpDisk *queue, DpReq **req, unsigned n)
{
    dp_wait_all(queue);
    for (unsigned i = 0; i < n; i++) {
        g_assert_cmpint(req[i]->status, ==, OK);
        dp_req_free(queue, req[i]);
    }
}

/* --- moves ----------------------------------------------------------- */

/* To and fro under load: no request and no notification is lost */
static void test_load(DpDisk *disk)
{
    DpLoad *load = dp_load_new(disk, 16, 0);

    for (unsigned i = 0; i < ROUNDS; i++) {
        const char *iothread = i % 2 ? "io0" : "io1";

        dp_load_run(load, 1 + i);
        dp_load_send(load);
        move_to(disk, load, iothread);
        wait_moved(disk, load, iothread);
    }
    dp_load_finish(load);
    assert_at(disk, "io0", NULL);
}

/* Each queue by itself, and both at once, while both are under load */
static void test_queues(DpDisk *disk)
{
    DpDisk *queue[] = { disk, dp_disk_queue(disk, 1) };
    DpLoad *load;

    dp_disk_start(disk, DP_F_ALL);
    load = dp_load_new_queues(disk, 16, 0);
    for (unsigned i = 0; i < ROUNDS; i++) {
        const char *iothread = i & 2 ? "io0" : "io1";

        dp_load_run(load, 1 + i);
        dp_load_send(load);
        move_to(queue[i % 2], load, iothread);
        if (i % 8 < 4) {
            wait_moved(queue[i % 2], load, iothread);
        }
    }
    dp_load_finish(load);
    for (unsigned i = 0; i < 2; i++) {
        wait_moved(queue[i], NULL, "io0");
        dp_assert_works(queue[i]);
    }
}

/*
 * A queue whose requests do not complete moves when they do, and takes no new
 * ones until then
 */
static void test_held(DpDisk *disk)
{
    DpReq *req[N + 1];

    hold_reads(disk, req);
    move_to(disk, NULL, "io1");
    assert_at(disk, "io0", "io1");
    req[N] = dp_req(disk, VIRTIO_BLK_T_IN, APART * N, LEN);
    dp_submit(disk, req[N]);
    dp_expose(disk);
    dp_kick_always(disk);
    /* Again, and the same */
    move_to(disk, NULL, "io1");
    assert_at(disk, "io0", "io1");
    dp_queue_wait_in_flight(disk, N);

    dp_release(disk);
    finish(disk, req, N + 1);
    wait_moved(disk, NULL, "io1");
}

/* The same when they complete one by one, with nothing that drains */
static void test_completed(DpDisk *disk)
{
    DpReq *req[N];

    hold_reads(disk, req);
    move_to(disk, NULL, "io1");
    for (unsigned i = 0; i < N; i++) {
        assert_at(disk, "io0", "io1");
        qtest_clock_step(disk->vm->qts, FOR_ONE_NS);
        dp_queue_wait_in_flight(disk, N - 1 - i);
    }
    wait_moved(disk, NULL, "io1");
    finish(disk, req, N);
    dp_release(disk);
    dp_assert_works(disk);
}

static void hold_reads_only(DpDisk *disk, int iops)
{
    dp_qmp_ok(disk->vm, NULL, "{'execute': 'block_set_io_throttle',"
              " 'arguments': { 'id': '" DEVICE "/virtio-backend', 'iops': 0,"
              " 'iops_rd': %d, 'iops_wr': 0, 'bps': 0, 'bps_rd': 0,"
              " 'bps_wr': 0 }}", iops);
}

/* The other queue goes on meanwhile */
static void test_others(DpDisk *disk)
{
    DpDisk *other = dp_disk_queue(disk, 1);
    DpReq *req[N + 1];

    dp_disk_start(disk, DP_F_ALL);
    hold_reads_only(disk, 1);
    for (unsigned i = 0; i <= N; i++) {
        req[i] = dp_req(disk, VIRTIO_BLK_T_IN, APART * i, LEN);
        dp_submit(disk, req[i]);
    }
    dp_kick(disk);
    /* The limit lets the first one pass. */
    dp_wait(disk, req[0]);
    move_to(disk, NULL, "io1");
    for (unsigned i = 0; i < ROUNDS; i++) {
        g_assert_cmpint(dp_rw(other, VIRTIO_BLK_T_OUT, 8 * i, LEN, i), ==, OK);
    }
    assert_at(disk, "io0", "io1");
    assert_at(other, "io0", NULL);
    dp_queue_wait_in_flight(disk, N);

    hold_reads_only(disk, 0);
    finish(disk, req, N + 1);
    wait_moved(disk, NULL, "io1");
    dp_assert_works(other);
}

/* A move is taken back, or goes elsewhere, while requests are in flight */
static void test_other_way(DpDisk *disk)
{
    DpReq *req[N];

    hold_reads(disk, req);
    move_to(disk, NULL, "io1");
    move_to(disk, NULL, "io0");
    assert_at(disk, "io0", NULL);
    dp_release(disk);
    finish(disk, req, N);
    dp_assert_works(disk);

    hold_reads(disk, req);
    dp_iothread_add(disk->vm, "io2");
    move_to(disk, NULL, "io1");
    move_to(disk, NULL, "io2");
    assert_at(disk, "io0", "io2");
    /* The device keeps the one that it moves to. */
    dp_iothread_del(disk->vm, "io2");
    dp_release(disk);
    finish(disk, req, N);
    wait_moved(disk, NULL, "io2");
    dp_assert_works(disk);
    move_now(disk, "io0");
}

/* To where it is: nothing happens */
static void test_nowhere(DpDisk *disk)
{
    DpReq *req[N];

    move_to(disk, NULL, "io0");
    assert_at(disk, "io0", NULL);
    hold_reads(disk, req);
    move_to(disk, NULL, "io0");
    assert_at(disk, "io0", NULL);
    dp_release(disk);
    finish(disk, req, N);
}

/* --- when the plane does not run ------------------------------------- */

static void test_idle(DpDisk *disk)
{
    move_to(disk, NULL, "io1");
    assert_at(disk, "io1", NULL);
    dp_disk_start(disk, DP_F_ALL);
    dp_assert_works(disk);
    assert_at(disk, "io1", NULL);
}

static void test_paused(DpDisk *disk)
{
    dp_assert_works(disk);
    dp_stop(disk->vm);
    move_to(disk, NULL, "io1");
    assert_at(disk, "io1", NULL);
    dp_cont(disk->vm);
    dp_assert_works(disk);
    assert_at(disk, "io1", NULL);
}

static DpVm *vm_parking(const DpMode *mode)
{
    return dp_vm_parking(mode, "");
}

/* covers: M9: what is parked goes on where the queue has moved to */
static void test_parked(DpDisk *disk)
{
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_OUT, APART, LEN);

    dp_req_fill(disk, req, 1);
    dp_submit(disk, req);
    dp_kick(disk);
    qtest_qmp_eventwait(disk->vm->qts, "STOP");
    move_to(disk, NULL, "io1");
    assert_at(disk, "io1", NULL);
    dp_cont(disk->vm);
    dp_wait(disk, req);
    g_assert_cmpint(req->status, ==, OK);
    dp_req_free(disk, req);
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_IN, APART, LEN, 1), ==, OK);
    assert_at(disk, "io1", NULL);
}

/* --- what else ends a move ------------------------------------------- */

/* covers: M8: a reset completes the move, and does not undo it */
static void test_reset(DpDisk *disk)
{
    DpReq *req[N];

    hold_reads(disk, req);
    move_to(disk, NULL, "io1");
    dp_disk_reset(disk);
    assert_at(disk, "io1", NULL);
    dp_req_drop(disk, req, N);
    dp_release(disk);
    dp_disk_start(disk, DP_F_ALL);
    dp_assert_works(disk);
    assert_at(disk, "io1", NULL);
}

static void test_queue_reset(DpDisk *disk)
{
    DpReq *req[N];

    hold_reads(disk, req);
    move_to(disk, NULL, "io1");
    dp_queue_reset(disk);
    assert_at(disk, "io1", NULL);
    dp_req_drop(disk, req, N);
    dp_release(disk);
    dp_queue_restart(disk);
    dp_assert_works(disk);
}

/* covers: M9: so does a pause, which drains */
static void test_stop(DpDisk *disk)
{
    DpReq *req[N];

    hold_reads(disk, req);
    move_to(disk, NULL, "io1");
    dp_stop(disk->vm);
    assert_at(disk, "io1", NULL);
    dp_cont(disk->vm);
    dp_release(disk);
    finish(disk, req, N);
    dp_assert_works(disk);
}

/* covers: D1, D2: a drained section lets the requests go, and the queue move */
static void test_drain(DpDisk *disk)
{
    DpReq *req[N];

    hold_reads(disk, req);
    move_to(disk, NULL, "io1");
    dp_resize(disk->vm, NULL, DP_IMAGE_SIZE * 2);
    wait_moved(disk, NULL, "io1");
    finish(disk, req, N);
    dp_release(disk);
    dp_assert_works(disk);
}

/* covers: M6: an unplug, and none of the IOThreads is left */
static void test_unplug(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    pid_t tid[] = { dp_iothread_tid(vm, "io0"), dp_iothread_tid(vm, "io1") };
    DpReq *req[N];

    hold_reads(disk, req);
    move_to(disk, NULL, "io1");
    dp_unplug(vm);
    dp_req_drop(disk, req, N);
    dp_iothread_del(vm, "io0");
    dp_iothread_del(vm, "io1");
    dp_wait_thread_gone(vm, tid[0]);
    dp_wait_thread_gone(vm, tid[1]);
}

/* --- what is left behind --------------------------------------------- */

/* Nothing of the device needs the old IOThread any more */
static void test_frozen(DpDisk *disk)
{
    pid_t tid;

    dp_assert_works(disk);
    move_now(disk, "io1");
    tid = dp_freeze(disk->vm, "io0");
    if (!tid) {
        return;
    }
    for (unsigned i = 0; i < N; i++) {
        dp_assert_works(disk);
        dp_stop(disk->vm);
        dp_cont(disk->vm);
        dp_disk_reset(disk);
        dp_disk_start(disk, DP_F_ALL);
    }
    dp_resize(disk->vm, NULL, DP_IMAGE_SIZE * 2);
    dp_assert_works(disk);
    dp_thaw(tid);
}

/* covers: E14: it ends when it is deleted, and only then, and only it */
static void test_deleted(DpDisk *disk)
{
    DpDisk *other = dp_disk_queue(disk, 1);
    DpVm *vm = disk->vm;
    pid_t tid[] = { dp_iothread_tid(vm, "io0"), dp_iothread_tid(vm, "io1") };

    dp_disk_start(disk, DP_F_ALL);
    dp_assert_works(disk);
    dp_assert_works(other);
    move_now(disk, "io1");
    dp_iothread_del(vm, "io0");
    /* A queue is left there. */
    dp_assert_works(other);
    assert_at(other, "io0", NULL);
    move_now(other, "io1");
    dp_wait_thread_gone(vm, tid[0]);
    dp_assert_works(disk);
    dp_assert_works(other);

    /* Another one by that name */
    dp_iothread_add(vm, "io0");
    move_now(other, "io0");
    move_now(disk, "io0");
    dp_iothread_del(vm, "io1");
    dp_wait_thread_gone(vm, tid[1]);
    dp_assert_works(disk);
    dp_assert_works(other);
}

/*
 * covers: E14: what a node has in its AioContext moves before the old one ends,
 * here the timer of a qcow2 image that frees its cache
 */
static void test_node(const DpMode *mode)
{
    g_autofree char *path = dp_tmp("disk.qcow2");
    DpVm *vm;
    DpDisk *disk;
    pid_t tid;

    g_assert_true(mkimg(path, "qcow2", DP_IMAGE_SIZE >> 20));
    vm = dp_vm_start("-blockdev file,node-name=f0,filename=%s "
                     "-blockdev qcow2,node-name=n0,file=f0,"
                     "cache-clean-interval=600 "
                     "-device virtio-blk-pci,id=d0,drive=n0,addr=%d%s", path,
                     DP_SLOT, mode->props);
    disk = dp_disk_new(vm, DP_F_ALL);
    tid = dp_iothread_tid(vm, "io0");
    dp_assert_works(disk);
    dp_iothread_del(vm, "io0");
    move_now(disk, "io1");
    dp_wait_thread_gone(vm, tid);
    dp_assert_works(disk);
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

/* An export keeps the node and the IOThread until it goes, and a queue moves */
static void test_pinned(DpDisk *disk)
{
    g_autofree char *path = dp_tmp("nbd.sock");
    DpVm *vm = disk->vm;
    pid_t tid = dp_iothread_tid(vm, "io0");

    dp_qmp_ok(vm, NULL, "{'execute': 'nbd-server-start', 'arguments': {"
              " 'addr': {'type': 'unix', 'data': {'path': %s}}}}", path);
    dp_qmp_ok(vm, NULL, "{'execute': 'block-export-add', 'arguments': {"
              " 'type': 'nbd', 'id': 'e0', 'node-name': 'n0',"
              " 'iothread': 'io0', 'fixed-iothread': true}}");
    move_now(disk, "io1");
    dp_assert_works(disk);
    dp_qmp_ok(vm, NULL, "{'execute': 'block-export-del',"
              " 'arguments': {'id': 'e0'}}");
    qtest_qmp_eventwait(vm->qts, "BLOCK_EXPORT_DELETED");
    dp_qmp_ok(vm, NULL, "{'execute': 'nbd-server-stop'}");
    dp_iothread_del(vm, "io0");
    dp_assert_works(disk);

    dp_iothread_add(vm, "io2");
    move_now(disk, "io2");
    dp_wait_thread_gone(vm, tid);
    dp_assert_works(disk);
}

/* The same with a mapping, which has references of its own */
static void test_mapping(const DpMode *mode)
{
    g_autofree char *path = dp_image("disk.img", DP_IMAGE_SIZE);
    DpVm *vm = dp_vm_start(
        "-blockdev file,node-name=n0,filename=%s "
        "-device '{\"driver\": \"virtio-blk-pci\", \"id\": \"d0\","
        " \"drive\": \"n0\", \"addr\": \"%d\", \"num-queues\": 2,"
        " \"iothread-vq-mapping\": [{\"iothread\": \"io0\"},"
        " {\"iothread\": \"io1\"}]}'", path, DP_SLOT);
    DpDisk *disk = dp_disk_probe(vm, "d0", DP_SLOT);
    DpDisk *other = dp_disk_queue(disk, 1);
    pid_t tid[] = { dp_iothread_tid(vm, "io0"), dp_iothread_tid(vm, "io1") };

    dp_disk_start(disk, DP_F_ALL);
    dp_assert_works(disk);
    dp_assert_works(other);
    move_now(disk, "io1");
    move_now(other, "io0");
    dp_assert_works(disk);
    dp_assert_works(other);
    move_now(other, "io1");
    dp_iothread_del(vm, "io0");
    dp_wait_thread_gone(vm, tid[0]);
    dp_assert_works(disk);
    dp_assert_works(other);
    dp_disk_free(disk);
    dp_unplug(vm);
    dp_iothread_del(vm, "io1");
    dp_wait_thread_gone(vm, tid[1]);
    dp_vm_quit(vm);
}

/* A private IOThread is left, too, and goes with the device */
static void test_private(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    pid_t tid = dp_iothread_tid(vm, "io1");

    move_now(disk, "io1");
    dp_assert_works(disk);
    dp_iothread_del(vm, "io1");
    dp_assert_works(disk);
    dp_unplug(vm);
    dp_wait_thread_gone(vm, tid);
}

/* --- errors ---------------------------------------------------------- */

static void test_errors(DpDisk *disk)
{
    DpVm *vm = disk->vm;

    move_error(vm, "/machine/none", 0, "io1", "is not the QOM path");
    move_error(vm, "/machine", 0, "io1", "is not the QOM path");
    move_error(vm, DEVICE, 1, "io1", "has no queue 1: its queues are 0 to 0");
    move_error(vm, DEVICE, 65535, "io1", "has no queue 65535");
    move_error(vm, DEVICE, 0, "io9", "There is no IOThread 'io9'");
    move_error(vm, DEVICE, 0, "", "There is no IOThread ''");
    assert_at(disk, "io0", NULL);
    dp_assert_works(disk);
}

static void test_no_plane(DpDisk *disk)
{
    move_error(disk->vm, DEVICE, 0, "io1", "has no data plane");
    dp_assert_works(disk);
}

/* A ring in no RAM: the plane does not serve it, and says why */
static void test_unserved(DpDisk *disk)
{
    dp_disk_init(disk, DP_F_SPLIT);
    dp_disk_place_ring(disk, 0xfee00000, 0xfee01000, 0xfee02000);
    disk->vdev->bus->set_status(disk->vdev, dp_status(disk) |
                                            VIRTIO_CONFIG_S_DRIVER_OK);
    dp_assert_broken(disk);
    move_error(disk->vm, DEVICE, 0, "io1", "does not serve");
    dp_disk_new_ring(disk);
    dp_disk_start(disk, DP_F_ALL);
    dp_assert_works(disk);
    move_now(disk, "io1");
    dp_assert_works(disk);
}

int main(int argc, char **argv)
{
    static const DpTest tests[] = {
        { "load", test_load },
        { "queues", test_queues, .props = ",num-queues=2", .idle = true },
        { "held", test_held, .ends_unserved = true },
        { "completed", test_completed, .ends_unserved = true },
        { "others", test_others, .props = ",num-queues=2", .idle = true,
          .ends_unserved = true },
        { "other-way", test_other_way },
        { "nowhere", test_nowhere },
        { "idle", test_idle, .idle = true, .ends_unserved = true },
        { "paused", test_paused, .ends_unserved = true },
        { "parked", test_parked, .vm = vm_parking, .ends_unserved = true },
        { "reset", test_reset, .ends_unserved = true },
        { "queue-reset", test_queue_reset, .ends_unserved = true },
        { "stop", test_stop, .ends_unserved = true },
        { "drain", test_drain, .ends_unserved = true },
        { "unplug", test_unplug, .ends_unserved = true },
        { "frozen", test_frozen, .ends_unserved = true },
        { "deleted", test_deleted, .props = ",num-queues=2", .idle = true,
          .ends_unserved = true },
        { "node", .own_vm = test_node },
        { "pinned", test_pinned, .ends_unserved = true },
        { "errors", test_errors },
        { "unserved", test_unserved, .rings = DP_SPLIT_RING, .idle = true,
          .ends_unserved = true },
    };
    static const DpMode *const modes[] = {
        &dp_mode_iothread, &dp_mode_packed, &dp_mode_in_order,
        &dp_mode_packed_in_order,
    };
    static const DpTest mapping = { "mapping", .own_vm = test_mapping };
    static const DpTest private = { "private", test_private,
                                    .ends_unserved = true };
    static const DpTest no_plane = { "no-plane", test_no_plane };

    g_test_init(&argc, &argv, NULL);
    for (unsigned i = 0; i < ARRAY_SIZE(modes); i++) {
        for (unsigned k = 0; k < ARRAY_SIZE(tests); k++) {
            if (dp_has_ring(modes[i], tests[k].rings)) {
                dp_add_row("move", &tests[k], modes[i]);
            }
        }
    }
    dp_add_row("move", &mapping, &dp_mode_iothread);
    dp_add_row("move", &private, &dp_mode_private);
    dp_add_row("move", &no_plane, &dp_mode_off);
    return g_test_run();
}
