/*
 * Errors of the backend and the policies rerror and werror
 *
 * blkdebug fails requests of one type, in the order in which they come.  A
 * policy reports the error, stops the machine with the request parked, or
 * ignores it.  Nothing that was parked may get lost, done twice, or done after
 * the driver has reset the device.  May know the plane's counters.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qobject/qdict.h"
#include "virtio-blk-dataplane-common.h"

#define OK VIRTIO_BLK_S_OK
#define IOERR VIRTIO_BLK_S_IOERR
#define PARKED 6
#define STOPS 20

/*
 * A disk on a file, of which the first @times requests of blkdebug's @iotype
 * (to sector 16, for reads) fail with @error
 */
static DpVm *vm_failing(const DpMode *mode, const char *iotype, int error,
                        unsigned times, const char *policy)
{
    g_autofree char *path = dp_image("disk.img", DP_IMAGE_SIZE);
    g_autoptr(GString) rules = g_string_new("");

    for (unsigned i = 0; i < times; i++) {
        /* Sector 0 is read to guess the geometry, before any driver is */
        g_string_append_printf(rules, "%s{\"event\": \"none\", %s"
                               " \"iotype\": \"%s\", \"errno\": %d,"
                               " \"once\": true}", i ? ", " : "",
                               strcmp(iotype, "read") ? "" : "\"sector\": 16,",
                               iotype, error);
    }
    return dp_vm_start(
        "-blockdev '{\"driver\": \"raw\", \"node-name\": \"n0\","
        " \"discard\": \"unmap\", \"file\": {\"driver\": \"blkdebug\","
        " \"discard\": \"unmap\", \"image\": {\"driver\": \"file\","
        " \"discard\": \"unmap\", \"filename\": \"%s\"},"
        " \"inject-error\": [%s]}}' "
        "-device virtio-blk-pci,id=d0,drive=n0,addr=%d%s%s",
        path, rules->str, DP_SLOT, policy, mode->props);
}

/* The first PARKED writes are parked */
static DpVm *vm_parking(const DpMode *mode)
{
    return vm_failing(mode, "write", ENOSPC, PARKED, ",werror=stop");
}

static DpVm *vm_parking_one(const DpMode *mode)
{
    return vm_failing(mode, "write", ENOSPC, 1, ",werror=stop");
}

static DpVm *vm_stopping_often(const DpMode *mode)
{
    return vm_failing(mode, "write", ENOSPC, STOPS, ",werror=stop");
}

static DpVm *vm_reporting_one(const DpMode *mode)
{
    return vm_failing(mode, "write", EIO, 1, ",werror=report");
}

/* --- what an error leads to ------------------------------------------ */

typedef struct Op {
    const char *name;
    const char *iotype;
    uint32_t type;
    uint32_t len;
    bool read;              /* rerror decides, not werror */
} Op;

static const Op ops[] = {
    { "read", "read", VIRTIO_BLK_T_IN, 1024, true },
    { "write", "write", VIRTIO_BLK_T_OUT, 1024 },
    { "flush", "flush", VIRTIO_BLK_T_FLUSH, 0 },
    { "discard", "discard", VIRTIO_BLK_T_DISCARD, 16 },
    { "write-zeroes", "write-zeroes", VIRTIO_BLK_T_WRITE_ZEROES, 16 },
};

typedef struct Policy {
    const char *name;
    const char *rerror;
    const char *werror;
    int error;
    const char *read_action;
    const char *write_action;
} Policy;

static const Policy policies[] = {
    { "report", "report", "report", EIO, "report", "report" },
    { "ignore", "ignore", "ignore", EIO, "ignore", "ignore" },
    { "stop", "stop", "stop", EIO, "stop", "stop" },
    { "stop-nospace", "stop", "stop", ENOSPC, "stop", "stop" },
    { "enospc-other", "report", "enospc", EIO, "report", "report" },
    { "enospc", "report", "enospc", ENOSPC, "report", "stop" },
    { "auto", "auto", "auto", ENOSPC, "report", "stop" },
};

static DpReq *op_req(DpDisk *disk, const Op *op, uint64_t sector)
{
    DpReq *req = dp_req(disk, op->type, sector, op->len);

    if (op->len == 16) {
        struct virtio_blk_discard_write_zeroes seg = {
            .sector = cpu_to_le64(sector),
            .num_sectors = cpu_to_le32(8),
        };

        qtest_memwrite(disk->vm->qts, req->data, &seg, sizeof(seg));
    } else if (op->type == VIRTIO_BLK_T_OUT) {
        dp_req_fill(disk, req, 5);
    }
    return req;
}

/* Wait for an error event, and check what it says */
static void expect_event(DpVm *vm, const Op *op, const char *action)
{
    QDict *event = qtest_qmp_eventwait_ref(vm->qts, "BLOCK_IO_ERROR");
    QDict *data = qdict_get_qdict(event, "data");

    g_assert_cmpstr(qdict_get_str(data, "action"), ==, action);
    g_assert_cmpstr(qdict_get_str(data, "operation"), ==,
                    op->read ? "read" : "write");
    qobject_unref(event);
}

static void check_outcome(DpVm *vm, DpDisk *disk, const Op *op, DpReq *req,
                          const char *action)
{
    expect_event(vm, op, action);
    if (!strcmp(action, "stop")) {
        DpInfo info;

        qtest_qmp_eventwait(vm->qts, "STOP");
        dp_info(vm, "d0", &info);
        g_assert_cmpstr(info.state, ==, "stopped");
        dp_reap(disk);
        g_assert_false(req->done);
        dp_cont(vm);
        dp_wait(disk, req);
        g_assert_cmpint(req->status, ==, OK);
    } else {
        dp_wait(disk, req);
        g_assert_cmpint(req->status, ==,
                        strcmp(action, "report") ? OK : IOERR);
    }
}

/*
 * covers: BLKR-11, DWZ-12, WCE-10, D6: each operation under a policy.  An
 * error of discard that is ignored, and the like, is a success.
 */
static void run_policy(const DpMode *mode, const Policy *policy)
{
    g_autofree char *props = g_strdup_printf(",rerror=%s,werror=%s",
                                             policy->rerror, policy->werror);

    for (unsigned i = 0; i < ARRAY_SIZE(ops); i++) {
        const Op *op = &ops[i];
        DpVm *vm = vm_failing(mode, op->iotype, policy->error, 1, props);
        DpDisk *disk = dp_disk_new(vm, DP_F_ALL);
        DpReq *req = op_req(disk, op, 16);
        DpInfo info;

        g_test_message("%s", op->name);
        if (op->type == VIRTIO_BLK_T_FLUSH) {
            /* Without a write before, flush is not passed on */
            dp_assert_works(disk);
        }
        dp_submit(disk, req);
        dp_kick(disk);
        check_outcome(vm, disk, op, req, op->read ? policy->read_action
                                                  : policy->write_action);
        if (req->status == IOERR) {
            dp_info(vm, "d0", &info);
            g_assert_cmpint(info.errors, ==, 1);
        }
        if (req->status == IOERR && op->read) {
            /* covers: BLKR-10, G6: nothing was written but the status */
            g_assert_cmpuint(req->used_len, <=, 1);
        }
        if (op->read && g_str_equal(policy->read_action, "ignore")) {
            /* covers: E8: no byte of what the driver takes for data */
            g_assert_cmpuint(req->used_len, ==, 0);
        }
        dp_req_free(disk, req);

        req = op_req(disk, op, 16);
        g_assert_cmpint(dp_run(disk, req), ==, OK);
        dp_req_free(disk, req);
        dp_assert_works(disk);
        dp_assert_mode(vm, mode);
        dp_disk_free(disk);
        dp_vm_quit(vm);
    }
}

typedef struct PolicyData {
    const Policy *policy;
    const DpMode *mode;
} PolicyData;

static void test_policy(const void *opaque)
{
    const PolicyData *data = opaque;

    run_policy(data->mode, data->policy);
}

/* --- parked requests ------------------------------------------------- */

/*
 * PARKED writes far apart, framed in the first @framings ways, which all fail
 * and stop the machine.  A request that comes while the machine stops may stay
 * in the ring.
 */
static void park_framed(DpDisk *disk, DpReq **req, unsigned framings)
{
    for (unsigned i = 0; i < PARKED; i++) {
        req[i] = dp_req(disk, VIRTIO_BLK_T_OUT, 1000 * i, 4096);
        /* covers: VQ-3: parsed again, each framing means the same again */
        req[i]->framing = i % framings;
        dp_req_fill(disk, req[i], i + 1);
        dp_submit(disk, req[i]);
    }
    dp_kick(disk);
    qtest_qmp_eventwait(disk->vm->qts, "STOP");
}

static void park(DpDisk *disk, DpReq **req)
{
    park_framed(disk, req, DP_FRAMING__MAX);
}

static void check_written(DpDisk *disk, DpReq **req)
{
    dp_wait_all(disk);
    for (unsigned i = 0; i < PARKED; i++) {
        g_assert_cmpint(req[i]->status, ==, OK);
        g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_IN, 1000 * i, 4096, i + 1),
                        ==, OK);
        dp_req_free(disk, req[i]);
    }
}

/* covers: D6, M9: many parked requests are all done, once, after cont */
static void test_park_many(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    DpReq *req[PARKED];

    park(disk, req);
    dp_cont(vm);
    check_written(disk, req);
}

/* covers: D6: what fails again is parked again */
static void test_park_again(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_OUT, 8, 4096);

    dp_req_fill(disk, req, 3);
    dp_submit(disk, req);
    dp_kick(disk);
    for (unsigned i = 0; i < PARKED; i++) {
        qtest_qmp_eventwait(vm->qts, "STOP");
        dp_reap(disk);
        g_assert_false(req->done);
        dp_cont(vm);
        qtest_qmp_eventwait(vm->qts, "RESUME");
    }
    dp_wait(disk, req);
    g_assert_cmpint(req->status, ==, OK);
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_IN, 8, 4096, 3), ==, OK);
    dp_req_free(disk, req);
}

/* covers: M8, STAT-12: a reset drops parked requests, then all works */
static void test_park_reset(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    DpReq *req[PARKED];
    DpInfo info;

    park(disk, req);
    dp_disk_reset(disk);
    for (unsigned i = 0; i < PARKED; i++) {
        qtest_memset(vm->qts, req[i]->page, 0x99, 256);
    }
    dp_cont(vm);
    dp_info(vm, "d0", &info);
    g_assert_cmpint(info.in_flight, ==, 0);
    dp_disk_start(disk, DP_F_ALL);
    dp_assert_works(disk);
    for (unsigned i = 0; i < PARKED; i++) {
        DpReq *read = dp_req(disk, VIRTIO_BLK_T_IN, 1000 * i, 4096);

        g_assert_cmphex(qtest_readb(vm->qts, req[i]->status_addr), ==, 0x99);
        g_assert_cmpint(dp_run(disk, read), ==, OK);
        g_assert_true(dp_req_is_byte(disk, read, 0) ||
                      dp_req_matches(disk, read, i + 1));
        dp_req_free(disk, read);
        dp_req_free(disk, req[i]);
    }
}

/*
 * covers: RST-4, RST-6, M8: the reset of a queue drops its parked requests;
 * they are not in use afterwards, so that all works
 */
static void test_park_queue_reset(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    DpReq *req[PARKED];

    /* QEMU's own path does not know them all. */
    park_framed(disk, req, DP_INDIRECT_WRITE);
    dp_queue_reset(disk);
    for (unsigned i = 0; i < PARKED; i++) {
        qtest_memset(vm->qts, req[i]->page, 0x99, 256);
    }
    dp_disk_new_ring(disk);
    dp_queue_restart(disk);
    dp_cont(vm);
    for (unsigned i = 0; i < PARKED; i++) {
        dp_assert_works(disk);
        g_assert_cmphex(qtest_readb(vm->qts, req[i]->status_addr), ==, 0x99);
        dp_req_free(disk, req[i]);
    }
    g_assert_false(dp_status(disk) & VIRTIO_CONFIG_S_NEEDS_RESET);
}

/* covers: M6, D10: the disk goes away with requests parked */
static void test_park_unplug(DpDisk *disk)
{
    DpReq *req[PARKED];

    park(disk, req);
    dp_unplug(disk->vm);
    dp_req_drop(disk, req, PARKED);
}

/* covers: D6, M5: requests parked meet drains, and a resize, while paused */
static void test_park_drain(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    DpReq *req[PARKED];

    park(disk, req);
    for (unsigned i = 0; i < 3; i++) {
        dp_resize(vm, NULL, 2 * DP_IMAGE_SIZE);
    }
    dp_reap(disk);
    dp_cont(vm);
    check_written(disk, req);
}

/* covers: G9 in a parked request: the driver changes what it said */
static void test_park_rewritten(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_OUT, 8, 4096);

    dp_submit(disk, req);
    dp_kick(disk);
    qtest_qmp_eventwait(vm->qts, "STOP");
    /* Its own header now asks for the sector behind the end */
    qtest_writeq(vm->qts, req->page + 8, UINT64_MAX);
    req->sector = UINT64_MAX;
    dp_cont(vm);
    dp_wait(disk, req);
    g_assert_true(req->status == OK || req->status == IOERR);
    dp_req_free(disk, req);
    dp_assert_works(disk);
}

/* covers: M3: a stop is announced, even right after many reports */
static void test_event_not_lost(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_OUT, 8, 4096);

    dp_req_fill(disk, req, 3);
    dp_submit(disk, req);
    dp_kick(disk);
    for (unsigned i = 0; i < STOPS; i++) {
        expect_event(vm, &ops[1], "stop");
        qtest_qmp_eventwait(vm->qts, "STOP");
        dp_cont(vm);
    }
    dp_wait(disk, req);
    g_assert_cmpint(req->status, ==, OK);
    dp_req_free(disk, req);
}

/* covers: BLKR-11: requests that were merged share the error of their merger */
static void test_merged(DpDisk *disk)
{
    DpReq *req[PARKED];
    DpInfo info;

    for (unsigned i = 0; i < PARKED; i++) {
        req[i] = dp_req(disk, VIRTIO_BLK_T_OUT, 8 * i, 4096);
        dp_submit(disk, req[i]);
    }
    dp_kick(disk);
    dp_wait_all(disk);
    for (unsigned i = 0; i < PARKED; i++) {
        g_assert_cmpint(req[i]->status, ==, IOERR);
        dp_req_free(disk, req[i]);
    }
    dp_info(disk->vm, "d0", &info);
    g_assert_cmpint(info.merged, ==, PARKED - 1);
    g_assert_cmpint(info.errors, ==, PARKED);
    dp_assert_works(disk);
}

static void add_policies(const DpMode *mode)
{
    for (unsigned i = 0; i < ARRAY_SIZE(policies); i++) {
        g_autofree char *path =
            g_strdup_printf("/virtio-blk-dataplane/errors/policy/%s/%s",
                            policies[i].name, mode->name);
        PolicyData *data = g_new(PolicyData, 1);

        *data = (PolicyData) { &policies[i], mode };
        qtest_add_data_func_full(path, data, test_policy, g_free);
    }
}

int main(int argc, char **argv)
{
    static const DpTest tests[] = {
        { "park-many", test_park_many, .vm = vm_parking },
        { "park-again", test_park_again, .vm = vm_parking },
        { "park-reset", test_park_reset, .vm = vm_parking },
        { "park-unplug", test_park_unplug, .vm = vm_parking,
          .ends_unserved = true },
        { "park-drain", test_park_drain, .vm = vm_parking },
        { "park-rewritten", test_park_rewritten, .vm = vm_parking_one },
        { "event-not-lost", test_event_not_lost, .vm = vm_stopping_often },
        { "merged", test_merged, .vm = vm_reporting_one },
    };
    static const DpTest any_path[] = {
        { "park-queue-reset", test_park_queue_reset, .vm = vm_parking },
    };

    g_test_init(&argc, &argv, NULL);
    add_policies(&dp_mode_iothread);
    dp_add_table("errors", tests, ARRAY_SIZE(tests), true);
    dp_add_table("errors", any_path, ARRAY_SIZE(any_path), false);
    return g_test_run();
}
