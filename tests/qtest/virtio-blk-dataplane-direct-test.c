/*
 * Direct requests: reads and writes past the block layer's coroutines
 *
 * Which requests are submitted directly, and what is said of those that are
 * not.  What the block layer does with them is tested in
 * tests/unit/test-block-direct.c, and io_uring in tests/unit/test-io-uring.c.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "virtio-blk-dataplane-common.h"

#define BYTES 4096
#define BATCH 40                /* more than a MultiReqBuffer holds */

/* The counter of direct requests; @refusal must be why others were not. */
static int64_t count_direct(DpDisk *disk, const char *refusal)
{
    QDict *rsp = qtest_qmp(disk->vm->qts, "{'execute': 'qom-get',"
                           " 'arguments': { 'property': 'x-data-plane-info',"
                           " 'path': '/machine/peripheral/d0/virtio-backend'"
                           " }}");
    QList *queues = qdict_get_qlist(qdict_get_qdict(rsp, "return"), "queues");
    QDict *queue = qobject_to(QDict, qlist_entry_obj(qlist_first(queues)));
    int64_t n = qdict_get_int(queue, "direct");

    g_assert_cmpstr(qdict_get_try_str(queue, "not-direct"), ==, refusal);
    qobject_unref(rsp);
    return n;
}

static void run(DpDisk *disk, uint32_t type, uint64_t sector)
{
    uint32_t len = type == VIRTIO_BLK_T_FLUSH ? 0 : BYTES;
    DpReq *req = dp_req(disk, type, sector, len);

    g_assert_cmpint(dp_run(disk, req), ==, VIRTIO_BLK_S_OK);
    dp_req_free(disk, req);
}

static void test_counted(DpDisk *disk)
{
    g_assert_cmpint(count_direct(disk, NULL), ==, 0);
    run(disk, VIRTIO_BLK_T_OUT, 8);
    run(disk, VIRTIO_BLK_T_IN, 8);
    g_assert_cmpint(count_direct(disk, NULL), ==, 2);
    run(disk, VIRTIO_BLK_T_FLUSH, 0);
    g_assert_cmpint(count_direct(disk, NULL), ==, 2);
}

/* Requests of a batch that are merged count as one. */
static void run_batch(DpDisk *disk, unsigned stride)
{
    DpReq *req[BATCH];

    for (unsigned i = 0; i < BATCH; i++) {
        req[i] = dp_req(disk, VIRTIO_BLK_T_IN, i * stride, BYTES);
        dp_submit(disk, req[i]);
    }
    dp_kick(disk);
    for (unsigned i = 0; i < BATCH; i++) {
        dp_poll(disk, req[i]);
        g_assert_cmpint(req[i]->status, ==, VIRTIO_BLK_S_OK);
        dp_req_free(disk, req[i]);
    }
}

static void test_batch(DpDisk *disk)
{
    DpInfo info;

    run_batch(disk, 3 * BYTES / DP_SECTOR);
    g_assert_cmpint(count_direct(disk, NULL), ==, BATCH);
    run_batch(disk, BYTES / DP_SECTOR);
    dp_info(disk->vm, "d0", &info);
    g_assert_cmpint(info.merged, >, 0);
    g_assert_cmpint(count_direct(disk, NULL), ==, 2 * BATCH - info.merged);
    g_assert_cmpint(info.reads, ==, 2 * BATCH);
}

static void test_off(DpDisk *disk)
{
    run(disk, VIRTIO_BLK_T_OUT, 8);
    run(disk, VIRTIO_BLK_T_IN, 8);
    g_assert_cmpint(count_direct(disk, NULL), ==, 0);
}

static void assert_refused(DpDisk *disk, int64_t before, const char *refusal)
{
    run(disk, VIRTIO_BLK_T_OUT, 8);
    run(disk, VIRTIO_BLK_T_IN, 8);
    g_assert_cmpint(count_direct(disk, refusal), ==, before);
}

static void test_latency(DpDisk *disk)
{
    assert_refused(disk, 0, "the driver cannot with the node's options");
}

static void test_threads(DpDisk *disk)
{
    assert_refused(disk, 0, "the driver cannot with the node's options");
}

static void test_no_path(DpDisk *disk)
{
    assert_refused(disk, 0, "a node's driver has no direct path");
}

/* The node of the disk is raw, with @opts, above null-co. */
static DpVm *vm_raw_opts(const DpMode *mode, const char *opts)
{
    DpVm *vm = dp_vm_start("-blockdev null-co,node-name=f0,size=67108864 "
                           "-blockdev raw,node-name=n0,file=f0%s "
                           "-device virtio-blk-pci,id=d0,drive=n0,addr=%d%s,"
                           "x-direct=on", opts, DP_SLOT, mode->props);

    vm->mode = mode;
    return vm;
}

static DpVm *vm_raw(const DpMode *mode)
{
    return vm_raw_opts(mode, "");
}

static DpVm *vm_raw_offset(const DpMode *mode)
{
    return vm_raw_opts(mode, ",offset=65536");
}

static DpVm *vm_raw_size(const DpMode *mode)
{
    return vm_raw_opts(mode, ",size=65536");
}

/* Files */

static DpVm *vm_file_opts(const DpMode *mode, const char *aio)
{
    return dp_vm_file_aio(mode, DP_IMAGE_SIZE, aio, ",x-direct=on");
}

static DpVm *vm_threads(const DpMode *mode)
{
    return vm_file_opts(mode, "threads");
}

static DpVm *vm_uring(const DpMode *mode)
{
    return vm_file_opts(mode, "io_uring");
}

static DpVm *vm_uring_nocache(const DpMode *mode)
{
    return vm_file_opts(mode, "io_uring,cache.direct=on");
}

/* What is written directly is read directly, and all of it is. */
static void test_verified(DpDisk *disk)
{
    DpLoad *load = dp_load_new(disk, 64, 0);
    DpInfo info;

    dp_load_run(load, 2000);
    dp_load_finish(load);
    dp_info(disk->vm, "d0", &info);
    g_assert_cmpint(count_direct(disk, NULL), ==,
                    info.reads + info.writes - info.merged);
}

/* O_DIRECT needs aligned memory; the ordinary path copies what is not. */
static void test_misaligned(DpDisk *disk)
{
    uint64_t addr = guest_alloc(&disk->vm->alloc, 2 * BYTES);

    for (unsigned i = 0; i < 2; i++) {
        DpReq *req = dp_req(disk, i ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT, 8,
                            BYTES);

        req->data = QEMU_ALIGN_UP(addr, BYTES) + 1;
        dp_req_fill(disk, req, i ? 2 : 1);
        g_assert_cmpint(dp_run(disk, req), ==, VIRTIO_BLK_S_OK);
        g_assert_true(dp_req_matches(disk, req, 1));
        dp_req_free(disk, req);
    }
    g_assert_cmpint(count_direct(disk, "the driver cannot with this request"),
                    ==, 0);
    guest_free(&disk->vm->alloc, addr);
}

/* It is judged anew for each batch. */
static void test_throttled(DpDisk *disk)
{
    static const char refusal[] = "the disk is throttled";

    run(disk, VIRTIO_BLK_T_IN, 0);
    dp_throttle(disk, "group", 1000000);
    assert_refused(disk, 1, refusal);
    dp_throttle(disk, "group", 0);
    run(disk, VIRTIO_BLK_T_IN, 0);
    g_assert_cmpint(count_direct(disk, refusal), ==, 2);
}

/* The lane of a queue outlives a stop and a reset. */
static void test_restart(DpDisk *disk)
{
    run(disk, VIRTIO_BLK_T_IN, 0);
    dp_stop(disk->vm);
    dp_cont(disk->vm);
    run(disk, VIRTIO_BLK_T_IN, 0);
    dp_disk_reset(disk);
    dp_disk_start(disk, DP_F_ALL);
    run(disk, VIRTIO_BLK_T_IN, 0);
    g_assert_cmpint(count_direct(disk, NULL), ==, 3);
}

int main(int argc, char **argv)
{
    static const char on[] = ",x-direct=on";
    static const DpTest tests[] = {
        { "counted", test_counted, .null = "", .props = on },
        { "batch", test_batch, .null = "", .props = on },
        { "off", test_off, .null = "", .props = ",x-direct=off" },
        { "default", test_counted, .null = "" },
        { "latency", test_latency, .null = ",latency-ns=1", .props = on },
        { "zeroes", test_latency, .null = ",read-zeroes=on", .props = on },
        { "threads", test_threads, .vm = vm_threads },
        { "raw", test_counted, .vm = vm_raw },
        { "raw-offset", test_no_path, .vm = vm_raw_offset },
        { "raw-size", test_no_path, .vm = vm_raw_size },
        { "throttled", test_throttled, .null = "", .props = on },
        { "restart", test_restart, .null = "", .props = on },
    };

    static const DpTest uring[] = {
        { "counted", test_counted, .vm = vm_uring },
        { "batch", test_batch, .vm = vm_uring },
        { "verified", test_verified, .vm = vm_uring },
        { "throttled", test_throttled, .vm = vm_uring },
        { "restart", test_restart, .vm = vm_uring },
    };
    static const DpTest nocache[] = {
        { "counted", test_counted, .vm = vm_uring_nocache },
        { "batch", test_batch, .vm = vm_uring_nocache },
        { "verified", test_verified, .vm = vm_uring_nocache },
        { "misaligned", test_misaligned, .vm = vm_uring_nocache },
    };

    g_test_init(&argc, &argv, NULL);
    dp_add_table("direct", tests, ARRAY_SIZE(tests), true);
    if (dp_can_io_uring()) {
        dp_add_table("direct/io_uring", uring, ARRAY_SIZE(uring), true);
        if (dp_can_open_direct()) {
            dp_add_table("direct/nocache", nocache, ARRAY_SIZE(nocache), true);
        }
    }
    return g_test_run();
}
