/*
 * Start and stop of the data plane, whatever causes it
 *
 * Resets, pauses, driver unbind, queue reset, drains, hot plug and unplug and
 * set-up that fails, each at rest, under load and with requests that are kept
 * in flight.  Nothing may get lost: no request, no notification, no byte.  May
 * know the state machine as "x-data-plane-info" tells it.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/resource.h>
#include "qapi/error.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "virtio-blk-dataplane-common.h"
#include "virtio-blk-dataplane-regs.h"

#define MIB (1024 * 1024)
#define OK VIRTIO_BLK_S_OK
#define DEPTH 8
#define HELD 6
#define SLOW ",latency-ns=1000000"

static void assert_state(DpVm *vm, const char *state, bool serving)
{
    DpInfo info;

    dp_info(vm, "d0", &info);
    g_assert_cmpstr(info.state, ==, state);
    g_assert_cmpint(info.serving, ==, serving);
}

static int64_t starts(DpVm *vm)
{
    DpInfo info;

    dp_info(vm, "d0", &info);
    return info.starts;
}

/* --- the plain life cycle -------------------------------------------- */

/* covers: STAT-1, STAT-2, STAT-10, STAT-13, U1: what the user is told */
static void test_states(DpDisk *disk)
{
    DpVm *vm = disk->vm;

    assert_state(vm, "stopped", false);
    for (unsigned i = 1; i <= 3; i++) {
        dp_disk_init(disk, DP_F_ALL);
        assert_state(vm, "stopped", false);
        qvirtio_set_driver_ok(disk->vdev);
        dp_assert_as_asked(disk);
        g_assert_cmpint(starts(vm), ==, i);
        dp_assert_works(disk);
        dp_disk_reset(disk);
        assert_state(vm, "stopped", false);
    }
}

/* x-data-plane=off and a device without an IOThread have no plane */
static void test_no_plane(DpDisk *disk)
{
    DpInfo info;

    dp_assert_works(disk);
    dp_info(disk->vm, "d0", &info);
    g_assert_false(info.serving);
    g_assert_cmpint(info.starts, ==, 0);
}

/* covers: STAT-3, STAT-4, STAT-5, ROBC-6: buffers before DRIVER_OK */
static void run_early(DpDisk *disk, bool kick)
{
    DpReq *req[3];

    dp_disk_init(disk, DP_F_ALL);
    for (unsigned i = 0; i < ARRAY_SIZE(req); i++) {
        req[i] = dp_req(disk, VIRTIO_BLK_T_OUT, i, 512);
        dp_req_fill(disk, req[i], i);
        dp_submit(disk, req[i]);
    }
    dp_expose(disk);
    if (kick) {
        dp_kick_always(disk);
    } else {
        g_assert_cmpuint(dp_count_used(disk), ==, 0);
        g_assert_false(dp_irq(disk));
        assert_state(disk->vm, "stopped", false);
    }
    qvirtio_set_driver_ok(disk->vdev);
    dp_wait_all(disk);
    disk->exposed_idx = disk->avail_idx;
    for (unsigned i = 0; i < ARRAY_SIZE(req); i++) {
        g_assert_cmpint(req[i]->status, ==, OK);
        g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_IN, i, 512, i), ==, OK);
        dp_req_free(disk, req[i]);
    }
}

static void test_early_buffers(DpDisk *disk)
{
    run_early(disk, false);
}

static void test_early_kick(DpDisk *disk)
{
    run_early(disk, true);
}

/* --- reset ----------------------------------------------------------- */

/*
 * covers: M8, STAT-9, STAT-13, ROBC-15, ROBC-24: resets under load, and each
 * time another ring, other features, another queue size.  What offers packed
 * rings is driven with split ones, too, as firmware does.
 */
static void test_reset_loop(DpDisk *disk)
{
    static const uint64_t features[] = {
        DP_F_ALL, DP_F_PLAIN, DP_F_EVENT, DP_F_SPLIT, DP_F_INDIRECT
    };

    for (unsigned i = 0; i < 40; i++) {
        DpLoad *load = dp_load_new(disk, DEPTH, 64);

        dp_load_run(load, i % 4 * DEPTH);
        dp_load_send(load);
        dp_disk_reset(disk);
        dp_load_reset(load);
        disk->want_num = 32 << (i % 4);
        if (i % 3 == 0) {
            dp_disk_new_ring(disk);
        }
        dp_disk_start(disk, features[i % ARRAY_SIZE(features)]);
        if (!disk->vq->indirect) {
            dp_load_forget_tables(load);
        }
        dp_load_run(load, DEPTH);
        dp_load_finish(load);
    }
}

/* Make HELD requests that stay in flight until a drain or dp_release() */
static void send_held(DpDisk *disk, DpReq **req, bool plane)
{
    dp_hold(disk);
    for (unsigned i = 0; i < HELD; i++) {
        req[i] = dp_req(disk, i % 2 ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN,
                        100 * i, 1024);
        dp_req_fill(disk, req[i], i);
        dp_submit(disk, req[i]);
    }
    dp_kick(disk);
    if (plane) {
        dp_wait_in_flight(disk->vm, disk->id, HELD);
    }
}

/*
 * covers: M8, STAT-10, STAT-11, STAT-12: once status reads 0 nothing is
 * touched and nothing is signalled any more
 */
static void test_reset_in_flight(DpDisk *disk)
{
    const DpMode *mode = disk->vm->mode;
    DpVm *vm = disk->vm;

    for (unsigned i = 0; i < 10; i++) {
        DpReq *req[HELD];
        uint64_t ring = disk->ring;
        g_autofree uint8_t *got = g_malloc(disk->ring_size);

        send_held(disk, req, mode->plane);
        dp_disk_reset(disk);
        dp_irq(disk);
        qtest_memset(vm->qts, ring, 0x99, disk->ring_size);
        for (unsigned j = 0; j < HELD; j++) {
            qtest_memset(vm->qts, req[j]->page, 0x99, 4096);
            qtest_memset(vm->qts, req[j]->data, 0x99, 1024);
        }
        dp_release(disk);
        if (mode->plane) {
            assert_state(vm, "stopped", false);
        }
        dp_disk_new_ring(disk);
        dp_disk_start(disk, DP_F_ALL);
        dp_assert_works(disk);

        qtest_memread(vm->qts, ring, got, disk->ring_size);
        for (unsigned j = 0; j < disk->ring_size; j++) {
            g_assert_cmphex(got[j], ==, 0x99);
        }
        guest_free(&vm->alloc, ring);
        for (unsigned j = 0; j < HELD; j++) {
            g_assert_true(dp_req_is_byte(disk, req[j], 0x99));
            dp_req_free(disk, req[j]);
        }
    }
}

#define MANY 1024

/* There is nothing to find, and no room to look for it */
static void kick_full_queue(DpDisk *disk)
{
    gint64 deadline = dp_deadline();
    DpInfo before, after;

    dp_info(disk->vm, "d0", &before);
    dp_kick_always(disk);
    do {
        dp_info(disk->vm, "d0", &after);
        dp_check_deadline(deadline, "a kick of a full queue");
    } while (after.kicks == before.kicks);
    g_assert_cmpint(after.in_flight, ==, MANY);
    g_assert_cmpuint(dp_count_used(disk), ==, 0);
    g_assert_false(dp_status(disk) & VIRTIO_CONFIG_S_NEEDS_RESET);
}

/* After a reset no request touches memory, and none is left. */
static void reset_full_queue(DpDisk *disk, DpReq **req)
{
    QTestState *qts = disk->vm->qts;
    uint64_t ring = disk->ring;
    g_autofree uint8_t *got = g_malloc(disk->ring_size);

    dp_disk_reset(disk);
    dp_wait_in_flight(disk->vm, "d0", 0);
    qtest_memset(qts, ring, 0x99, disk->ring_size);
    for (unsigned i = 0; i < MANY; i++) {
        qtest_memset(qts, req[i]->page, 0x99, 128);
    }
    dp_release(disk);
    dp_disk_new_ring(disk);
    dp_disk_start(disk, DP_F_ALL);
    dp_assert_works(disk);
    qtest_memread(qts, ring, got, disk->ring_size);
    for (unsigned i = 0; i < disk->ring_size; i++) {
        g_assert_cmphex(got[i], ==, 0x99);
    }
    for (unsigned i = 0; i < MANY; i++) {
        g_assert_cmphex(qtest_readb(qts, req[i]->status_addr), ==, 0x99);
    }
    guest_free(&disk->vm->alloc, ring);
}

/*
 * covers: E1, SPLIT-2, ROBS-7 (as far as it bounds what is in flight), U6: the
 * largest queue, full of requests in flight, all of which are counted, and
 * kicked once more; finished once, and once reset
 */
static void test_full_queue(DpDisk *disk)
{
    g_autofree DpReq **req = g_new0(DpReq *, MANY);

    disk->want_num = MANY;
    for (unsigned i = 0; i < 2; i++) {
        bool reset = i == 1;

        dp_disk_start(disk, DP_F_ALL);
        dp_hold(disk);
        for (unsigned j = 0; j < MANY; j++) {
            req[j] = dp_req(disk, VIRTIO_BLK_T_OUT, 2 * j, 512);
            req[j]->framing = DP_INDIRECT;
            dp_req_fill(disk, req[j], j);
            dp_submit(disk, req[j]);
        }
        dp_kick(disk);
        dp_wait_in_flight(disk->vm, "d0", MANY);
        kick_full_queue(disk);
        if (reset) {
            reset_full_queue(disk, req);
        } else {
            dp_release(disk);
            dp_wait_all(disk);
        }
        for (unsigned j = 0; j < MANY; j++) {
            g_assert_true(reset || req[j]->status == OK);
            dp_req_free(disk, req[j]);
        }
    }
    dp_disk_start(disk, DP_F_ALL);
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_IN, 2 * (MANY - 1), 512,
                          MANY - 1), ==, OK);
}

/* covers: M8: the whole machine is reset under load */
static void test_system_reset(const DpMode *mode)
{
    DpVm *vm = dp_vm_file(mode, DP_IMAGE_SIZE, "");

    for (unsigned i = 0; i < 5; i++) {
        DpDisk *disk = dp_disk_new(vm, DP_F_ALL);
        DpLoad *load = dp_load_new(disk, DEPTH, 64);

        dp_load_run(load, 3 * DEPTH);
        dp_load_send(load);
        qtest_system_reset(vm->qts);
        dp_disk_reset(disk);
        dp_load_reset(load);
        dp_load_abandon(load);
        dp_disk_free(disk);
    }
    dp_vm_quit(vm);
}

/*
 * covers: RST-1, RST-2, RST-3, RST-4, RST-5, RST-6, RST-7, RST-8, RST-10,
 * ROBC-16: the driver resets one queue
 */
static void test_queue_reset(DpDisk *disk)
{
    const DpMode *mode = disk->vm->mode;

    for (unsigned i = 0; i < 6; i++) {
        bool in_flight = i % 2;
        DpReq *req[HELD];

        dp_assert_works(disk);
        if (in_flight) {
            send_held(disk, req, mode->plane);
        }
        dp_queue_reset(disk);
        if (in_flight) {
            dp_release(disk);
        }
        /* The memory is the driver's again */
        qtest_memset(disk->vm->qts, disk->ring, 0x99, disk->ring_size);
        disk->want_num = i % 2 ? 64 : 256;
        dp_queue_restart(disk);
        for (unsigned j = 0; in_flight && j < HELD; j++) {
            dp_req_free(disk, req[j]);
        }
        for (unsigned j = 0; j < 5; j++) {
            dp_assert_works(disk);
        }
        dp_assert_as_asked(disk);
    }
}

/* --- pause ----------------------------------------------------------- */

/* covers: D6, SPLIT-44: stop and cont under load, and buffers while paused */
static void test_stop_cont(DpDisk *disk)
{
    const DpMode *mode = disk->vm->mode;
    DpVm *vm = disk->vm;
    DpLoad *load = dp_load_new(disk, DEPTH, 64);

    for (unsigned i = 0; i < 30; i++) {
        DpReq *req = dp_req(disk, VIRTIO_BLK_T_IN, 0, 512);

        dp_load_run(load, DEPTH);
        dp_load_send(load);
        dp_stop(vm);
        if (mode->plane) {
            assert_state(vm, "stopped", false);
        }
        dp_submit(disk, req);
        dp_expose(disk);
        dp_cont(vm);
        dp_wait(disk, req);
        disk->exposed_idx = disk->avail_idx;
        g_assert_cmpint(req->status, ==, OK);
        dp_req_free(disk, req);
    }
    dp_load_finish(load);
}

/*
 * covers: D11, M9 (stop-time drain): requests complete while stop runs.  Their
 * notification must reach the driver, before or after cont, and so must those
 * that follow.
 */
static void test_stop_race(DpDisk *disk)
{
    DpVm *vm = disk->vm;

    for (unsigned i = 0; i < 60; i++) {
        DpReq *req[12];

        for (unsigned j = 0; j < ARRAY_SIZE(req); j++) {
            req[j] = dp_req(disk, VIRTIO_BLK_T_OUT, 100 * j, 512);
            dp_submit(disk, req[j]);
            if (j % 4 == 3) {
                dp_kick(disk);
            }
        }
        dp_stop(vm);
        /*
         * What was taken was drained, and was signalled before the stop was
         * over.  What was not may stay in the ring until cont.  (A vCPU in
         * KVM takes the interrupt when it goes on.)
         */
        if (i % 2 && !vm->kvm && dp_count_used(disk)) {
            g_assert_true(dp_irq(disk));
            dp_reap(disk);
        }
        dp_cont(vm);
        dp_wait_all(disk);
        for (unsigned j = 0; j < ARRAY_SIZE(req); j++) {
            g_assert_cmpint(req[j]->status, ==, OK);
            dp_req_free(disk, req[j]);
        }
        req[0] = dp_req(disk, VIRTIO_BLK_T_FLUSH, 0, 0);
        g_assert_cmpint(dp_run(disk, req[0]), ==, OK);
        dp_req_free(disk, req[0]);
    }
}

/* covers: M7: the driver uses one of the device's four queues */
static void test_unused_queues(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    DpLoad *load = dp_load_new(disk, DEPTH, 64);

    for (unsigned i = 0; i < 5; i++) {
        dp_load_run(load, DEPTH);
        dp_stop(vm);
        dp_cont(vm);
        dp_load_run(load, DEPTH);
    }
    dp_load_finish(load);
    dp_disk_reset(disk);
    dp_disk_start(disk, DP_F_ALL);
    dp_assert_works(disk);
}

/* --- driver unbind --------------------------------------------------- */

/* @interrupt comes under load, and leaves the device reset; then all works */
static void run_interrupted(DpDisk *disk, void (*interrupt)(DpDisk *disk))
{
    for (unsigned i = 0; i < 10; i++) {
        DpLoad *load = dp_load_new(disk, DEPTH, 64);

        dp_load_run(load, DEPTH);
        dp_load_send(load);
        interrupt(disk);
        dp_load_reset(load);
        dp_disk_start(disk, DP_F_ALL);
        dp_assert_as_asked(disk);
        dp_load_run(load, DEPTH);
        dp_load_finish(load);
    }
}

static void unbind(DpDisk *disk)
{
    dp_disk_reset(disk);
    dp_set_bus_master(disk, false);
    assert_state(disk->vm, "stopped", false);
    dp_set_bus_master(disk, true);
}

/* covers: STAT-10, STAT-12: unbind is a reset, then no bus mastering */
static void test_unbind(DpDisk *disk)
{
    run_interrupted(disk, unbind);
}

static void bus_master_off(DpDisk *disk)
{
    dp_set_bus_master(disk, false);
    dp_set_bus_master(disk, true);
    dp_disk_reset(disk);
}

/* covers: G11: bus mastering goes away under load, without a reset */
static void test_bus_master_off(DpDisk *disk)
{
    run_interrupted(disk, bus_master_off);
}

/* --- drain ----------------------------------------------------------- */

/* covers: D1, D2, D3, D5: drains under load, of which resize is one */
static void test_drain_loop(DpDisk *disk)
{
    DpLoad *load = dp_load_new(disk, DEPTH, 64);

    for (unsigned i = 0; i < 100; i++) {
        dp_resize(disk->vm, load, DP_IMAGE_SIZE);
    }
    dp_load_finish(load);
}

/* covers: D1, D2: requests that are throttled are let go by a drain */
static void test_drain_held(DpDisk *disk)
{
    const DpMode *mode = disk->vm->mode;
    DpVm *vm = disk->vm;

    for (unsigned i = 0; i < 10; i++) {
        DpReq *req[HELD];

        send_held(disk, req, mode->plane);
        if (i % 3 == 0) {
            dp_resize(vm, NULL, DP_IMAGE_SIZE);
        } else if (i % 3 == 1) {
            dp_stop(vm);
            dp_cont(vm);
        } else {
            dp_release(disk);
        }
        dp_wait_all(disk);
        dp_release(disk);
        for (unsigned j = 0; j < HELD; j++) {
            g_assert_cmpint(req[j]->status, ==, OK);
            dp_req_free(disk, req[j]);
        }
        dp_assert_works(disk);
    }
}

/* covers: D5: drains between and around each step of the life cycle */
static void test_drain_around(DpDisk *disk)
{
    DpVm *vm = disk->vm;

    for (unsigned i = 0; i < 5; i++) {
        dp_resize(vm, NULL, DP_IMAGE_SIZE);
        dp_disk_init(disk, DP_F_ALL);
        dp_resize(vm, NULL, DP_IMAGE_SIZE);
        qvirtio_set_driver_ok(disk->vdev);
        dp_resize(vm, NULL, DP_IMAGE_SIZE);
        dp_assert_works(disk);
        dp_stop(vm);
        dp_resize(vm, NULL, DP_IMAGE_SIZE);
        dp_cont(vm);
        dp_assert_works(disk);
        dp_assert_as_asked(disk);
        dp_disk_reset(disk);
    }
}

/* covers: D1: limits come, change and go under load; two disks, one group */
static void test_throttle(const DpMode *mode)
{
    DpVm *vm = dp_vm_start(
        "-blockdev null-co,node-name=n0,size=67108864 "
        "-blockdev null-co,node-name=n1,size=67108864 "
        "-device virtio-blk-pci,id=d0,drive=n0,addr=%d%s "
        "-device virtio-blk-pci,id=d1,drive=n1,addr=%d,iothread=io1",
        DP_SLOT, mode->props, DP_SLOT + 1);
    DpDisk *disk[2] = {
        dp_disk_new(vm, DP_F_ALL), dp_disk_probe(vm, "d1", DP_SLOT + 1)
    };

    dp_disk_start(disk[1], DP_F_ALL);
    for (unsigned i = 0; i < 10; i++) {
        DpReq *req[2][HELD];

        for (unsigned d = 0; d < 2; d++) {
            dp_throttle(disk[d], "g", 1 + i % 2);
        }
        for (unsigned d = 0; d < 2; d++) {
            for (unsigned j = 0; j < HELD; j++) {
                req[d][j] = dp_req(disk[d], VIRTIO_BLK_T_OUT, 64 * j, 512);
                dp_submit(disk[d], req[d][j]);
            }
            dp_kick(disk[d]);
        }
        dp_throttle(disk[i % 2], "g", 0);
        dp_throttle(disk[!(i % 2)], "g", 0);
        dp_wait_all(disk[0]);
        dp_wait_all(disk[1]);
        for (unsigned d = 0; d < 2; d++) {
            for (unsigned j = 0; j < HELD; j++) {
                dp_req_free(disk[d], req[d][j]);
            }
        }
    }
    dp_disk_free(disk[0]);
    dp_disk_free(disk[1]);
    dp_vm_quit(vm);
}

/* --- resize ---------------------------------------------------------- */

/*
 * covers: M5, CFG-5, BLKC-3, BLKC-21, BLKC-22, BLKC-23, IRQ-3: the driver hears
 * of a new size, under load and while paused
 */
static void test_resize(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    DpLoad *load = dp_load_new(disk, DEPTH, 64);

    for (unsigned i = 0; i < 12; i++) {
        int64_t size = DP_IMAGE_SIZE + (i % 3) * MIB;
        bool paused = i % 4 == 3;

        dp_config_irq(disk);
        if (paused) {
            dp_stop(vm);
        }
        dp_resize(vm, paused ? NULL : load, size);
        if (paused) {
            dp_cont(vm);
        }
        dp_wait_config_irq(disk);
        g_assert_cmpuint(qvirtio_config_readq(disk->vdev, 0), ==,
                         size / DP_SECTOR);
        dp_load_run(load, DEPTH);
    }
    dp_load_finish(load);

    dp_resize(vm, NULL, DP_IMAGE_SIZE);
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, DP_CAPACITY - 1, 512, 1),
                    ==, OK);
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, DP_CAPACITY, 512, 1),
                    ==, VIRTIO_BLK_S_IOERR);
}

/* --- notifiers that cannot be set up --------------------------------- */

/* The lowest file descriptor that process @pid does not use */
static unsigned lowest_free_fd(pid_t pid)
{
    for (unsigned fd = 0;; fd++) {
        g_autofree char *path = g_strdup_printf("/proc/%d/fd/%u", pid, fd);
        struct stat st;

        if (lstat(path, &st) < 0) {
            return fd;
        }
    }
}

/* Let QEMU open @extra more files; those that are open stay so */
static void limit_files(DpVm *vm, unsigned extra, struct rlimit *old)
{
    pid_t pid = qtest_pid(vm->qts);
    struct rlimit new;

    g_assert_cmpint(prlimit(pid, RLIMIT_NOFILE, NULL, old), ==, 0);
    new = *old;
    new.rlim_cur = lowest_free_fd(pid) + extra;
    g_assert_cmpint(prlimit(pid, RLIMIT_NOFILE, &new, NULL), ==, 0);
}

static void unlimit_files(DpVm *vm, const struct rlimit *old)
{
    g_assert_cmpint(prlimit(qtest_pid(vm->qts), RLIMIT_NOFILE, old, NULL),
                    ==, 0);
}

/*
 * covers: D10, the DISABLED state: the first, second, ... eventfd that start
 * needs cannot be had.  The main loop serves the disk until the next stop.
 */
static void test_no_notifiers(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    unsigned failures = 0;

    for (unsigned extra = 0; extra < 8; extra++) {
        struct rlimit old;
        DpInfo info;

        dp_disk_init(disk, DP_F_ALL);
        limit_files(vm, extra, &old);
        qvirtio_set_driver_ok(disk->vdev);
        dp_info(vm, "d0", &info);
        if (!strcmp(info.state, "disabled")) {
            failures++;
            g_assert_false(info.serving);
        } else {
            g_assert_cmpstr(info.state, ==, "started");
        }
        for (unsigned i = 0; i < 5; i++) {
            dp_assert_works(disk);
        }
        unlimit_files(vm, &old);
        dp_assert_works(disk);

        if (extra % 2) {
            dp_disk_reset(disk);
            assert_state(vm, "stopped", false);
            dp_disk_start(disk, DP_F_ALL);
        } else {
            dp_stop(vm);
            assert_state(vm, "stopped", false);
            dp_cont(vm);
        }
        dp_assert_as_asked(disk);
        dp_assert_works(disk);
        dp_disk_reset(disk);
    }
    g_assert_cmpuint(failures, >=, 2);
}

/* --- realize that fails ---------------------------------------------- */

typedef struct BadDevice {
    const char *props;      /* JSON members */
    const char *error;
} BadDevice;

static const BadDevice bad_devices[] = {
    { "'iothread': 'io0', 'ioeventfd': false", "ioeventfd" },
    { "'x-data-plane': 'on', 'ioeventfd': false", "ioeventfd" },
    { "'iothread': 'io0',"
      " 'iothread-vq-mapping': [{'iothread': 'io1'}]", "iothread" },
    { "'iothread': 'none'", "none" },
    { "'iothread-vq-mapping': [{'iothread': 'none'}]", "none" },
    { "'x-data-plane': 'maybe'", "maybe" },
    { "'x-data-plane': 'on', 'queue-size': 3", "queue-size" },
    { "'iothread': 'io0', 'queue-size': 2", "queue-size" },
};

/* covers: D10: nothing stays behind when a device cannot be realized */
static void test_realize_errors(void)
{
    DpVm *vm = dp_vm_start("-blockdev null-co,node-name=n0,size=67108864");
    DpDisk *disk;

    for (unsigned i = 0; i < ARRAY_SIZE(bad_devices); i++) {
        g_autofree char *cmd = g_strdup_printf(
            "{'execute': 'device_add', 'arguments': {"
            " 'driver': 'virtio-blk-pci', 'id': 'd0', 'drive': 'n0',"
            " 'addr': '%d', %s}}", DP_SLOT, bad_devices[i].props);
        QDict *rsp = dp_qmp(vm, NULL, "%p",
                            qobject_from_json(cmd, &error_abort));
        const char *desc;

        g_assert_true(qdict_haskey(rsp, "error"));
        desc = qdict_get_str(qdict_get_qdict(rsp, "error"), "desc");
        g_test_message("%s: %s", bad_devices[i].props, desc);
        g_assert_nonnull(strstr(desc, bad_devices[i].error));
        qobject_unref(rsp);
    }
    qtest_qmp_device_add(vm->qts, "virtio-blk-pci", "d0",
                         "{'drive': 'n0', 'addr': '4', 'iothread': 'io0'}");
    disk = dp_disk_new(vm, DP_F_ALL);
    dp_assert_mode(vm, &dp_mode_iothread);
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

/* --- hot plug and unplug --------------------------------------------- */

static void plug(DpVm *vm, const DpMode *mode)
{
    gint64 deadline = dp_deadline();
    QDict *rsp = NULL;
    g_autofree char *cmd = g_strdup_printf(
        "{'execute': 'device_add', 'arguments': {"
        " 'driver': 'virtio-blk-pci', 'id': 'd0', 'drive': 'n0',"
        " 'addr': '%d', %s}}", DP_SLOT, mode->json);

    /* DEVICE_DELETED comes before RCU lets the last device's backend go */
    do {
        qobject_unref(rsp);
        dp_check_deadline(deadline, "the node to be free again");
        rsp = dp_qmp(vm, NULL, "%p", qobject_from_json(cmd, &error_abort));
    } while (!qdict_haskey(rsp, "return"));
    qobject_unref(rsp);
}

/* covers: D4, D10, M6: plug, use, unplug, with load and requests in flight */
static void test_hotplug_loop(const DpMode *mode)
{
    DpVm *vm = dp_vm_start("-blockdev null-co,node-name=n0,size=67108864,"
                           "read-zeroes=on");

    for (unsigned i = 0; i < 24; i++) {
        DpReq *req[HELD];
        DpDisk *disk;

        plug(vm, mode);
        disk = dp_disk_new(vm, DP_F_ALL);
        dp_assert_mode(vm, mode);
        for (unsigned j = 0; j < 4; j++) {
            g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, j, 512, 1), ==, OK);
        }
        if (i % 4 == 1) {
            dp_disk_reset(disk);
        } else if (i % 4 == 2) {
            dp_stop(vm);
            dp_cont(vm);
        } else if (i % 4 == 3) {
            send_held(disk, req, true);
        }
        dp_unplug(vm);
        if (i % 4 == 3) {
            dp_req_drop(disk, req, HELD);
        }
        dp_disk_free(disk);
    }
    dp_vm_quit(vm);
}

/* covers: M6: a guest that answers the unplug request late */
static void test_unplug_ignored(const DpMode *mode)
{
    DpVm *vm = dp_vm_start("-blockdev null-co,node-name=n0,size=67108864");
    DpDisk *disk;

    plug(vm, mode);
    disk = dp_disk_new(vm, DP_F_ALL);
    qtest_qmp_device_del_send(vm->qts, "d0");
    for (unsigned i = 0; i < 20; i++) {
        g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, i, 512, 1), ==, OK);
    }
    dp_assert_mode(vm, mode);
    dp_stop(vm);
    dp_cont(vm);
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, 0, 512, 1), ==, OK);
    dp_eject(vm);
    dp_disk_free(disk);

    plug(vm, mode);
    disk = dp_disk_new(vm, DP_F_ALL);
    dp_assert_mode(vm, mode);
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

/* covers: U3 (as far as it is about life): disks that share an IOThread */
static void test_shared_iothread(void)
{
    DpVm *vm = dp_vm_start(
        "-blockdev null-co,node-name=n0,size=67108864 "
        "-blockdev null-co,node-name=n1,size=67108864 "
        "-device virtio-blk-pci,id=d0,drive=n0,addr=4,iothread=io0 "
        "-device virtio-blk-pci,id=d1,drive=n1,addr=5,iothread=io0");
    DpDisk *d0 = dp_disk_new(vm, DP_F_ALL);
    DpDisk *d1 = dp_disk_probe(vm, "d1", DP_SLOT + 1);
    DpInfo info;

    for (unsigned i = 0; i < 20; i++) {
        dp_disk_start(d1, DP_F_ALL);
        for (unsigned j = 0; j < 5; j++) {
            g_assert_cmpint(dp_rw(d0, VIRTIO_BLK_T_OUT, j, 512, j), ==, OK);
            g_assert_cmpint(dp_rw(d1, VIRTIO_BLK_T_OUT, j, 512, j), ==, OK);
        }
        dp_disk_reset(d1);
    }
    qtest_qmp_device_del_send(vm->qts, "d0");
    dp_eject(vm);
    dp_disk_start(d1, DP_F_ALL);
    g_assert_cmpint(dp_rw(d1, VIRTIO_BLK_T_OUT, 0, 512, 0), ==, OK);
    dp_info(vm, "d1", &info);
    g_assert_true(info.serving);
    dp_disk_free(d0);
    dp_disk_free(d1);
    dp_vm_quit(vm);
}

int main(int argc, char **argv)
{
    static const DpTest tests[] = {
        { "states", test_states, .idle = true, .ends_unserved = true },
        { "early-buffers", test_early_buffers, .idle = true },
        { "early-kick", test_early_kick, .idle = true },
        { "reset-loop", test_reset_loop },
        { "reset-in-flight", test_reset_in_flight },
        { "full-queue", test_full_queue, .props = ",queue-size=1024",
          .idle = true },
        { "system-reset", .own_vm = test_system_reset },
        { "queue-reset", test_queue_reset },
        { "stop-cont", test_stop_cont },
        { "stop-race-event-idx", test_stop_race, .null = SLOW },
        { "stop-race-plain", test_stop_race, .null = SLOW,
          .features = DP_F_PLAIN },
        { "unused-queues", test_unused_queues, .props = ",num-queues=4" },
        { "unbind", test_unbind },
        { "bus-master-off", test_bus_master_off },
        { "drain-loop", test_drain_loop },
        { "drain-held", test_drain_held },
        { "drain-around", test_drain_around, .idle = true,
          .ends_unserved = true },
        { "throttle", .own_vm = test_throttle },
        { "resize", test_resize },
        { "no-notifiers", test_no_notifiers, .idle = true,
          .ends_unserved = true },
        { "hotplug-loop", .own_vm = test_hotplug_loop },
        { "unplug-ignored", .own_vm = test_unplug_ignored },
    };
    static const DpTest no_plane = { "no-plane", test_no_plane };

    g_test_init(&argc, &argv, NULL);
    dp_add_table("lifecycle", tests, ARRAY_SIZE(tests), true);
    dp_add_row("lifecycle", &no_plane, &dp_mode_off);
    dp_add_row("lifecycle", &no_plane, &dp_mode_main);
    qtest_add_func("/virtio-blk-dataplane/lifecycle/realize-errors",
                   test_realize_errors);
    qtest_add_func("/virtio-blk-dataplane/lifecycle/shared-iothread",
                   test_shared_iothread);
    return g_test_run();
}
