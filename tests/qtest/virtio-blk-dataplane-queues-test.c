/*
 * Several queues per disk, on one IOThread and on several
 *
 * Every queue carries verified requests at the same time, and what one did is
 * not seen in another's counters, notifications or ring.  Drivers use fewer
 * queues than there are, reset single ones, and break one of them.  May know
 * how "x-data-plane-info" tells queues apart.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/ioctl.h>
#include <sys/resource.h>
#include "qemu/atomic.h"
#include "qapi/error.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "virtio-blk-dataplane-common.h"
#include "virtio-blk-dataplane-regs.h"

#define MIB (1024 * 1024)
#define IMAGE_SIZE (32 * MIB)
#define OK VIRTIO_BLK_S_OK
#define BEYOND_RAM (65ull * MIB)
#define RING_NUM 32
#define DEPTH 3
#define MAX_QUEUES 64
#define GATE_SIZE 4096          /* of a pipe, in bytes */
#define GATE_BATCH 128          /* requests whose traces do not fit into it */
#define CONFIG_NUM_QUEUES offsetof(struct virtio_blk_config, num_queues)

/* Queues of a disk and who serves them */
typedef struct Layout {
    const char *name;
    unsigned num;
    const char *json;       /* members of device_add's arguments */
    const char *iothreads;  /* numbers, over and over, one for each queue */
    bool off;               /* QEMU's own path serves it */
} Layout;

#define ROUND_ROBIN \
    "'iothread-vq-mapping': [{'iothread': 'io0'}, {'iothread': 'io1'}]"
#define EXPLICIT \
    "'iothread-vq-mapping': [{'iothread': 'io0', 'vqs': [1]}," \
    " {'iothread': 'io1', 'vqs': [0, 2, 3]}]"

static const Layout layouts[] = {
    { "1", 1, "'iothread': 'io0'", "0" },
    { "2", 2, "'iothread': 'io0'", "0" },
    { "4", 4, "'iothread': 'io0'", "0" },
    { "8", 8, "'iothread': 'io0'", "0" },
    { "64", 64, "'iothread': 'io0'", "0" },
    { "round-robin", 4, ROUND_ROBIN, "01" },
    { "explicit", 4, EXPLICIT, "1011" },
    { "64-round-robin", 64, ROUND_ROBIN, "01" },
    { "packed", 4, ROUND_ROBIN ", 'packed': true", "01" },
    { "in-order", 4, ROUND_ROBIN ", 'in_order': true", "01" },
    { "packed-in-order", 4, EXPLICIT ", 'packed': true, 'in_order': true",
      "1011" },
    { "off", 4, "'x-data-plane': 'off', " ROUND_ROBIN, "01", true },
    { "off-packed", 2, "'x-data-plane': 'off', 'packed': true, " ROUND_ROBIN,
      "01", true },
    { "main-loop", 2, "'packed': false", "0", true },
};

static void device_add(DpVm *vm, const Layout *layout)
{
    g_autofree char *cmd = g_strdup_printf(
        "{'execute': 'device_add', 'arguments': {"
        " 'driver': 'virtio-blk-pci', 'id': 'd0', 'drive': 'n0',"
        " 'addr': '%d', 'num-queues': %u, %s}}",
        DP_SLOT, layout->num, layout->json);

    dp_qmp_ok(vm, NULL, "%p", qobject_from_json(cmd, &error_abort));
}

static DpVm *vm_new(const Layout *layout)
{
    g_autofree char *path = dp_image("disk.img", IMAGE_SIZE);
    DpVm *vm = dp_vm_start(DP_SHARED_RAM
                           "-blockdev file,node-name=f0,filename=%s "
                           "-blockdev raw,node-name=n0,file=f0", path);

    device_add(vm, layout);
    return vm;
}

/* A disk whose queues are those of @mask, not started */
static DpDisk *disk_probe(DpVm *vm, const Layout *layout, uint64_t mask)
{
    DpDisk *disk = dp_disk_probe(vm, "d0", DP_SLOT);

    disk->want_num = RING_NUM;
    disk->unused = !(mask & 1);
    for (unsigned i = 1; i < layout->num; i++) {
        if (mask >> i & 1) {
            dp_disk_queue(disk, i);
        }
    }
    return disk;
}

static DpDisk *disk_new(DpVm *vm, const Layout *layout)
{
    DpDisk *disk = disk_probe(vm, layout, UINT64_MAX);

    dp_disk_start(disk, DP_F_ALL);
    return disk;
}

static void assert_serving(DpVm *vm)
{
    DpInfo info;

    dp_info(vm, "d0", &info);
    g_assert_cmpstr(info.reason, ==, "");
    g_assert_true(info.serving);
}

static void assert_served(DpVm *vm, const Layout *layout)
{
    if (!layout->off) {
        assert_serving(vm);
    }
}

/* Write through each queue, read through the one that follows */
static void assert_all_work(DpDisk *disk, const Layout *layout)
{
    for (unsigned i = 0; i < layout->num; i++) {
        DpDisk *writer = dp_disk_queue(disk, i);
        DpDisk *reader = dp_disk_queue(disk, (i + 1) % layout->num);
        uint32_t seed = g_test_rand_int();

        g_assert_cmpint(dp_rw(writer, VIRTIO_BLK_T_OUT, 8 * i, 4096, seed),
                        ==, OK);
        g_assert_cmpint(dp_rw(reader, VIRTIO_BLK_T_IN, 8 * i, 4096, seed),
                        ==, OK);
    }
}

/* --- what is offered ------------------------------------------------- */

static uint16_t common_read(DpDisk *disk, size_t offset)
{
    return qpci_io_readw(disk->pci->pdev, disk->pci->bar,
                         disk->pci->common_cfg_offset + offset);
}

/* covers: BLKC-9, PCI-20, PCI-21, PCI-24, PCI-25: as many as were asked for */
static void test_offer(const void *opaque)
{
    const Layout *layout = opaque;
    DpVm *vm = vm_new(layout);
    DpDisk *disk = disk_probe(vm, layout, UINT64_MAX);
    QVirtioDevice *vdev = disk->vdev;
    DpInfo info;

    dp_disk_init(disk, DP_F_ALL);
    g_assert_cmpuint(qvirtio_config_readw(vdev, CONFIG_NUM_QUEUES), ==,
                     layout->num);
    g_assert_cmpuint(common_read(disk, offsetof(struct virtio_pci_common_cfg,
                                                num_queues)),
                     ==, layout->num);
    if (layout->num > 1) {
        g_assert_true(disk->features & (1ull << VIRTIO_BLK_F_MQ));
    }
    for (unsigned i = 0; i <= layout->num; i++) {
        bool exists = i < layout->num;

        vdev->bus->queue_select(vdev, i);
        g_assert_cmpuint(vdev->bus->get_queue_size(vdev), ==,
                         exists ? RING_NUM : 0);
        g_assert_cmpuint(common_read(disk,
                                     offsetof(struct virtio_pci_common_cfg,
                                              queue_enable)), ==, exists);
    }
    dp_info(vm, "d0", &info);
    g_assert_cmpuint(info.num_queues, ==, layout->num);
    dp_disk_reset(disk);
    for (unsigned i = 0; i < layout->num; i++) {
        vdev->bus->queue_select(vdev, i);
        g_assert_cmpuint(common_read(disk,
                                     offsetof(struct virtio_pci_common_cfg,
                                              queue_enable)), ==, 0);
    }
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

/* --- requests -------------------------------------------------------- */

/* What the plane counted is what the driver did, queue by queue */
static void check_counters(DpDisk *disk, const Layout *layout)
{
    for (unsigned i = 0; i < layout->num; i++) {
        char io = layout->iothreads[i % strlen(layout->iothreads)];
        DpDisk *queue = dp_disk_queue(disk, i);
        g_autofree char *iothread = g_strdup_printf("io%c", io);
        DpInfo info;

        dp_queue_wait_in_flight(queue, 0);
        dp_queue_info(queue, &info);
        g_assert_cmpstr(info.iothread, ==, iothread);
        g_assert_cmpint(info.reads, ==, queue->reads);
        g_assert_cmpint(info.writes, ==, queue->writes);
        g_assert_cmpint(info.flushes, ==, queue->others);
        g_assert_cmpint(info.completed, ==,
                        queue->reads + queue->writes + queue->others);
        g_assert_cmpint(info.errors, ==, 0);
        /* The plane kicks itself at start */
        g_assert_cmpint(info.kicks, <=, queue->kicks + 2);
        g_assert_cmpint(info.kicks + info.polled, >=, 1);
        g_assert_cmpint(info.batches, <=, info.completed);
        g_assert_cmpint(info.sent, >=, queue->irqs);
    }
}

/*
 * covers: VQ-2, BLKC-10, IRQ-1, IRQ-6, IRQ-10, NOTIF-1, NOTIF-9, U1: all
 * queues at the same time; what one wrote another reads
 */
static void test_load(const void *opaque)
{
    const Layout *layout = opaque;
    DpVm *vm = vm_new(layout);
    DpDisk *disk = disk_new(vm, layout);
    DpLoad *load = dp_load_new_queues(disk, DEPTH, 0);

    assert_serving(vm);
    dp_load_run(load, MAX(300, 12 * layout->num));
    dp_load_finish(load);
    for (unsigned i = 0; i < layout->num; i++) {
        g_assert_cmpuint(dp_disk_queue(disk, i)->writes, >, 0);
        g_assert_cmpuint(dp_disk_queue(disk, i)->reads, >, 0);
    }
    check_counters(disk, layout);
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

static void run_flush(DpDisk *queue)
{
    DpReq *req = dp_req(queue, VIRTIO_BLK_T_FLUSH, 0, 0);

    g_assert_cmpint(dp_run(queue, req), ==, OK);
    dp_req_free(queue, req);
}

/* covers: U1, NOTIF-1: one queue after the other, each another number */
static void test_counters(const void *opaque)
{
    const Layout *layout = opaque;
    DpVm *vm = vm_new(layout);
    DpDisk *disk = disk_new(vm, layout);

    for (unsigned i = layout->num; i-- > 0;) {
        DpDisk *queue = dp_disk_queue(disk, i);
        unsigned writes = 1 + i % 5, reads = 1 + i % 3, flushes = i % 4;

        for (unsigned j = 0; j < writes; j++) {
            g_assert_cmpint(dp_rw(queue, VIRTIO_BLK_T_OUT, i, 512, i), ==, OK);
        }
        for (unsigned j = 0; j < reads; j++) {
            g_assert_cmpint(dp_rw(queue, VIRTIO_BLK_T_IN, i, 512, i), ==, OK);
        }
        for (unsigned j = 0; j < flushes; j++) {
            run_flush(queue);
        }
        g_assert_cmpuint(queue->writes, ==, writes);
        g_assert_cmpuint(queue->reads, ==, reads);
        g_assert_cmpuint(queue->others, ==, flushes);
    }
    check_counters(disk, layout);
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

/* --- fewer queues than there are ------------------------------------- */

/* Run all queries about queues, those that are not used included */
static void query_all(DpVm *vm, DpLoad *load, const Layout *layout)
{
    const char *path = "/machine/peripheral/d0/virtio-backend";
    DpInfo info;

    dp_qmp_ok(vm, load, "{'execute': 'query-blockstats'}");
    dp_qmp_ok(vm, load, "{'execute': 'query-iothreads'}");
    dp_qmp_ok(vm, load, "{'execute': 'x-query-virtio-status',"
              " 'arguments': {'path': %s}}", path);
    for (unsigned i = 0; i < MIN(layout->num, 8); i++) {
        dp_qmp_ok(vm, load, "{'execute': 'x-query-virtio-queue-status',"
                  " 'arguments': {'path': %s, 'queue': %u}}", path, i);
    }
    dp_info(vm, "d0", &info);
    g_assert_cmpuint(info.num_queues, ==, layout->num);
}

static void check_unused(DpDisk *disk, const Layout *layout, uint64_t mask)
{
    for (unsigned i = 0; i < layout->num; i++) {
        DpDisk view = { .vm = disk->vm, .id = disk->id, .index = i };
        DpInfo info;

        dp_queue_info(&view, &info);
        g_assert_cmpint(info.completed > 0, ==, mask >> i & 1);
        g_assert_cmpint(info.completed + info.batches > 0, ==, mask >> i & 1);
    }
}

static void run_fewer(DpVm *vm, const Layout *layout, uint64_t mask)
{
    DpDisk *disk = disk_probe(vm, layout, mask);
    DpLoad *load;

    dp_disk_start(disk, DP_F_ALL);
    load = dp_load_new_queues(disk, DEPTH, 0);
    for (unsigned i = 0; i < 2; i++) {
        dp_load_run(load, 30);
        dp_load_send(load);
        dp_stop(vm);
        query_all(vm, NULL, layout);
        dp_cont(vm);
        dp_resize(vm, load, IMAGE_SIZE);
        query_all(vm, load, layout);
    }
    assert_serving(vm);
    dp_load_run(load, 30);
    dp_load_send(load);
    dp_disk_reset(disk);
    dp_load_reset(load);
    dp_disk_start(disk, DP_F_ALL);
    dp_load_run(load, 30);
    dp_load_finish(load);
    dp_disk_free(disk);
}

/* covers: M7, VQ-8, ROBC-15: any subset, first queue, last queue, with gaps */
static void test_fewer(const void *opaque)
{
    static const uint64_t masks[] = { 0x1, 0x2, 0x5, 0x8, 0xa, 0x7 };
    const Layout *layout = opaque;

    for (unsigned i = 0; i < ARRAY_SIZE(masks); i++) {
        uint64_t mask = masks[i];
        DpVm *vm;
        DpDisk *disk;

        if (mask >> layout->num) {
            continue;
        }
        vm = vm_new(layout);
        run_fewer(vm, layout, mask);
        qtest_system_reset(vm->qts);
        run_fewer(vm, layout, mask);

        disk = disk_probe(vm, layout, mask);
        dp_disk_start(disk, DP_F_ALL);
        check_unused(disk, layout, mask);
        dp_unplug(vm);
        dp_disk_free(disk);
        dp_vm_quit(vm);
    }
}

/* --- reset of one queue ---------------------------------------------- */

/* The queue is off: kicks do nothing, and its old memory stays as it is */
static void check_queue_off(DpDisk *queue, DpLoad *others)
{
    g_autofree uint8_t *got = g_malloc(queue->ring_size);
    QTestState *qts = queue->vm->qts;

    qtest_memset(qts, queue->ring, 0x99, queue->ring_size);
    dp_irq(queue);
    dp_kick_always(queue);
    dp_load_run(others, 20);
    dp_resize(queue->vm, others, IMAGE_SIZE);
    dp_kick_always(queue);
    dp_load_run(others, 20);
    g_assert_false(dp_irq(queue));
    qtest_bufread(qts, queue->ring, got, queue->ring_size);
    for (unsigned i = 0; i < queue->ring_size; i++) {
        g_assert_cmphex(got[i], ==, 0x99);
    }
}

static void run_queue_reset(DpDisk *queue, DpLoad *own, DpLoad *others,
                            unsigned num)
{
    dp_load_run(own, 10);
    dp_load_run(others, 10);
    dp_load_send(own);
    dp_load_send(others);
    dp_queue_reset(queue);
    dp_load_reset(own);
    check_queue_off(queue, others);

    guest_free(&queue->vm->alloc, queue->ring);
    queue->want_num = num;
    dp_disk_new_ring(queue);
    dp_queue_restart(queue);
    dp_load_run(own, 20);
    dp_load_run(others, 10);
}

/*
 * covers: RST-1, RST-3, RST-4, RST-5, RST-6, RST-7, RST-8, RST-11, ROBC-16,
 * VQ-6:
 * one queue is reset under load and comes back with another ring of another
 * size; the others go on
 */
static void test_queue_reset(const void *opaque)
{
    static const unsigned sizes[] = { 16, 128, 64, 1024, RING_NUM };
    const Layout *layout = opaque;
    DpVm *vm = vm_new(layout);
    DpDisk *disk = disk_new(vm, layout);

    for (unsigned i = 0; i < MIN(layout->num, 4); i++) {
        DpDisk *queue = dp_disk_queue(disk, i);
        DpLoad *own = dp_load_new(queue, DEPTH, 32768);
        DpLoad *others;

        queue->unused = true;
        others = dp_load_new_queues(disk, DEPTH, 0);
        queue->unused = false;
        for (unsigned j = 0; j < ARRAY_SIZE(sizes); j++) {
            run_queue_reset(queue, own, others, sizes[j]);
            assert_served(vm, layout);
        }
        dp_load_finish(own);
        dp_load_finish(others);
    }
    assert_all_work(disk, layout);
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

/* covers: RST-9, RST-12: queues that were reset stay so until the device is */
static void test_queue_reset_for_good(const void *opaque)
{
    const Layout *layout = opaque;
    DpVm *vm = vm_new(layout);
    DpDisk *disk = disk_new(vm, layout);

    for (unsigned i = 0; i < 3; i++) {
        DpLoad *load;

        for (unsigned j = i % 2; j < layout->num; j += 2) {
            DpDisk *queue = dp_disk_queue(disk, j);

            run_flush(queue);
            dp_queue_reset(queue);
            queue->unused = true;
        }
        load = dp_load_new_queues(disk, DEPTH, 0);
        dp_load_run(load, 20);
        dp_stop(vm);
        dp_cont(vm);
        dp_resize(vm, load, IMAGE_SIZE);
        dp_load_finish(load);
        assert_served(vm, layout);
        for (unsigned j = 0; j < layout->num; j++) {
            dp_disk_queue(disk, j)->unused = false;
        }
        dp_disk_start(disk, DP_F_ALL);
        assert_all_work(disk, layout);
    }
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

/* --- all queues full ------------------------------------------------- */

typedef struct Full {
    const Layout *layout;
    DpVm *vm;
    DpDisk *disk;
    DpReq *req[MAX_QUEUES][RING_NUM];
} Full;

static uint64_t full_sector(unsigned queue, unsigned i)
{
    return (queue * RING_NUM + i) * 16;
}

/* As many requests as descriptors in each queue, all of them held */
static void fill(Full *f, uint32_t seed)
{
    dp_hold(f->disk);
    for (unsigned i = 0; i < f->layout->num; i++) {
        DpDisk *queue = dp_disk_queue(f->disk, i);

        for (unsigned j = 0; j < RING_NUM; j++) {
            DpReq *req = dp_req(queue, VIRTIO_BLK_T_OUT, full_sector(i, j),
                                512);

            req->framing = DP_INDIRECT;
            dp_req_fill(queue, req, seed + j);
            dp_submit(queue, req);
            f->req[i][j] = req;
        }
        dp_kick(queue);
    }
    for (unsigned i = 0; i < f->layout->num; i++) {
        dp_queue_wait_in_flight(dp_disk_queue(f->disk, i), RING_NUM);
    }
}

static void free_all(Full *f)
{
    for (unsigned i = 0; i < f->layout->num; i++) {
        for (unsigned j = 0; j < RING_NUM; j++) {
            dp_req_free(f->disk, f->req[i][j]);
        }
    }
}

/* All of them end well, and other queues read what they wrote */
static void expect_done(Full *f, uint32_t seed)
{
    for (unsigned i = 0; i < f->layout->num; i++) {
        dp_wait_all(dp_disk_queue(f->disk, i));
        for (unsigned j = 0; j < RING_NUM; j++) {
            g_assert_cmpint(f->req[i][j]->status, ==, OK);
        }
    }
    free_all(f);
    dp_release(f->disk);
    for (unsigned i = 0; i < f->layout->num; i++) {
        DpDisk *reader = dp_disk_queue(f->disk, (i + 1) % f->layout->num);

        for (unsigned j = 0; j < RING_NUM; j += 5) {
            g_assert_cmpint(dp_rw(reader, VIRTIO_BLK_T_IN, full_sector(i, j),
                                  512, seed + j), ==, OK);
        }
    }
    assert_serving(f->vm);
}

static void full_release(Full *f)
{
    fill(f, 1);
    dp_release(f->disk);
    expect_done(f, 1);
}

static void full_stop(Full *f)
{
    fill(f, 2);
    dp_stop(f->vm);
    dp_cont(f->vm);
    expect_done(f, 2);
}

static void full_resize(Full *f)
{
    fill(f, 3);
    dp_resize(f->vm, NULL, IMAGE_SIZE);
    expect_done(f, 3);
}

/* A drain, and another node below the backend */
static void full_snapshot(Full *f)
{
    g_autofree char *path = dp_tmp("snap.qcow2");

    fill(f, 4);
    dp_qmp_ok(f->vm, NULL, "{'execute': 'blockdev-snapshot-sync',"
              " 'arguments': {'node-name': 'n0', 'snapshot-file': %s,"
              " 'snapshot-node-name': 's0', 'format': 'qcow2'}}", path);
    expect_done(f, 4);
}

static void full_reset(Full *f)
{
    fill(f, 5);
    dp_disk_reset(f->disk);
    free_all(f);
    dp_release(f->disk);
    dp_disk_start(f->disk, DP_F_ALL);
    assert_serving(f->vm);
    assert_all_work(f->disk, f->layout);
}

static void full_queue_reset(Full *f)
{
    unsigned last = f->layout->num - 1;
    DpDisk *queue = dp_disk_queue(f->disk, last);

    fill(f, 6);
    dp_queue_reset(queue);
    for (unsigned i = 0; i < last; i++) {
        dp_wait_all(dp_disk_queue(f->disk, i));
    }
    free_all(f);
    dp_release(f->disk);
    dp_queue_restart(queue);
    assert_serving(f->vm);
    assert_all_work(f->disk, f->layout);
}

static void full_system_reset(Full *f)
{
    fill(f, 7);
    qtest_system_reset(f->vm->qts);
    dp_disk_reset(f->disk);
    free_all(f);
    dp_release(f->disk);
    dp_disk_free(f->disk);
    f->disk = disk_new(f->vm, f->layout);
    assert_serving(f->vm);
    assert_all_work(f->disk, f->layout);
}

static void full_unplug(Full *f)
{
    fill(f, 8);
    dp_unplug(f->vm);
    for (unsigned i = 0; i < f->layout->num; i++) {
        dp_ring_forget(dp_disk_queue(f->disk, i));
    }
    free_all(f);
}

/*
 * covers: D1, D2, D5, M6, M8, STAT-10, ROBC-24: what happens to a disk while
 * each of its queues is full and nothing comes back
 */
static void test_full(const void *opaque)
{
    static void (*const steps[])(Full *f) = {
        full_release, full_stop, full_resize, full_reset, full_queue_reset,
        full_system_reset, full_snapshot, full_stop, full_unplug,
    };
    Full f = { .layout = opaque };

    f.vm = vm_new(f.layout);
    f.disk = disk_new(f.vm, f.layout);
    for (unsigned i = 0; i < ARRAY_SIZE(steps); i++) {
        steps[i](&f);
    }
    dp_disk_free(f.disk);
    dp_vm_quit(f.vm);
}

/* --- notifications --------------------------------------------------- */

/* A request that is polled for */
static void run_silently(DpDisk *queue)
{
    DpReq *req = dp_req(queue, VIRTIO_BLK_T_FLUSH, 0, 0);

    dp_submit(queue, req);
    dp_kick(queue);
    dp_poll_all(queue);
    g_assert_cmpint(req->status, ==, OK);
    dp_req_free(queue, req);
}

static void want_irq(DpDisk *queue, bool on)
{
    if (queue->vq->event) {
        dp_set_event(queue, on ? 0 : RING_NUM / 2, 1);
    } else {
        dp_set_irqs(queue, on);
    }
}

static void run_suppression(DpDisk *disk, const Layout *layout,
                            unsigned parity)
{
    DpInfo before[MAX_QUEUES], after;

    for (unsigned i = 0; i < layout->num; i++) {
        DpDisk *queue = dp_disk_queue(disk, i);

        want_irq(queue, i % 2 == parity);
        dp_irq(queue);
        dp_queue_info(queue, &before[i]);
    }
    for (unsigned i = 0; i < layout->num; i++) {
        run_silently(dp_disk_queue(disk, i));
    }
    /* Sends all that is due */
    dp_stop(disk->vm);
    dp_cont(disk->vm);
    for (unsigned i = 0; i < layout->num; i++) {
        DpDisk *queue = dp_disk_queue(disk, i);
        bool on = i % 2 == parity;

        g_assert_cmpint(dp_irq(queue), ==, on);
        dp_queue_info(queue, &after);
        g_assert_cmpint(after.sent - before[i].sent, ==, on);
        g_assert_cmpint(after.suppressed - before[i].suppressed, ==, !on);
    }
}

/* covers: SPLIT-30, SPLIT-33, IRQ-1: each queue has a wish of its own */
static void test_suppression(const void *opaque)
{
    static const uint64_t features[] = { DP_F_EVENT, DP_F_PLAIN };
    const Layout *layout = opaque;
    DpVm *vm = vm_new(layout);
    DpDisk *disk = disk_probe(vm, layout, UINT64_MAX);

    for (unsigned i = 0; i < ARRAY_SIZE(features); i++) {
        dp_disk_start(disk, features[i]);
        /* The first notification after a start is always sent. */
        for (unsigned j = 0; j < layout->num; j++) {
            run_flush(dp_disk_queue(disk, j));
        }
        for (unsigned j = 0; j < 6; j++) {
            run_suppression(disk, layout, j % 2);
        }
    }
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

/* covers: IRQ-2, IRQ-7: a queue without a vector is silent, others are not */
static void test_no_vector(const void *opaque)
{
    const Layout *layout = opaque;
    DpVm *vm = vm_new(layout);
    DpDisk *disk = disk_new(vm, layout);
    DpDisk *mute = dp_disk_queue(disk, layout->num - 1);

    disk->vdev->bus->queue_select(disk->vdev, mute->index);
    qpci_io_writew(disk->pci->pdev, disk->pci->bar,
                   disk->pci->common_cfg_offset +
                   offsetof(struct virtio_pci_common_cfg, queue_msix_vector),
                   VIRTIO_MSI_NO_VECTOR);
    for (unsigned i = 0; i < layout->num; i++) {
        DpDisk *queue = dp_disk_queue(disk, i);

        if (queue != mute) {
            run_flush(queue);
        }
    }
    run_silently(mute);
    dp_stop(vm);
    dp_cont(vm);
    g_assert_false(dp_irq(mute));
    run_silently(mute);
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

/* --- a broken queue -------------------------------------------------- */

static void break_queue(DpDisk *queue)
{
    DpSeg seg[] = {
        { BEYOND_RAM, 16, 0 }, { BEYOND_RAM, 1, VRING_DESC_F_WRITE }
    };

    dp_avail(queue, dp_chain(queue, seg, ARRAY_SIZE(seg)));
    dp_expose(queue);
    dp_kick_always(queue);
}

static unsigned used_in_all(DpDisk *disk, const Layout *layout)
{
    unsigned n = 0;

    for (unsigned i = 0; i < layout->num; i++) {
        n += dp_count_used(dp_disk_queue(disk, i));
    }
    return n;
}

/*
 * covers: STAT-6, STAT-7, STAT-9, ROBS-8, ROBC-20: a mistake in one queue
 * stops the device, all of it; a reset cures all of it
 */
static void test_broken(const void *opaque)
{
    const Layout *layout = opaque;
    DpVm *vm = vm_new(layout);
    DpDisk *disk = disk_new(vm, layout);

    for (unsigned i = 0; i < MIN(layout->num, 4); i++) {
        DpLoad *load = dp_load_new_queues(disk, DEPTH, 0);
        unsigned used;

        dp_load_run(load, 20);
        dp_load_send(load);
        break_queue(dp_disk_queue(disk, i));
        dp_assert_broken(disk);
        dp_stop(vm);
        used = used_in_all(disk, layout);
        dp_cont(vm);
        for (unsigned j = 0; j < layout->num; j++) {
            dp_kick_always(dp_disk_queue(disk, j));
        }
        dp_stop(vm);
        dp_cont(vm);
        g_assert_cmphex(dp_status(disk) & VIRTIO_CONFIG_S_NEEDS_RESET, !=, 0);
        g_assert_cmpuint(used_in_all(disk, layout), ==, used);

        dp_disk_reset(disk);
        dp_load_reset(load);
        dp_disk_start(disk, DP_F_ALL);
        assert_serving(vm);
        dp_load_run(load, 20);
        dp_load_finish(load);
        assert_all_work(disk, layout);
    }
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

/*
 * What QEMU traces goes into a pipe that is soon full.  Until the test reads
 * from it, the thread that traces waits, in the middle of what it does.
 */
typedef struct Gate {
    char *path;
    int fd;
    int size;
    GThread *reader;
    bool open;              /* atomic */
} Gate;

#define GATE_LINE 160       /* no line is longer */

static bool gate_init(Gate *gate)
{
    *gate = (Gate) { .path = dp_tmp("gate") };
    g_assert_cmpint(mkfifo(gate->path, 0600), ==, 0);
    gate->fd = open(gate->path, O_RDONLY | O_NONBLOCK);
    g_assert_cmpint(gate->fd, >=, 0);
    gate->size = fcntl(gate->fd, F_SETPIPE_SZ, GATE_SIZE);
    return gate->size == GATE_SIZE;
}

static int gate_bytes(Gate *gate)
{
    int bytes;

    g_assert_cmpint(ioctl(gate->fd, FIONREAD, &bytes), ==, 0);
    return bytes;
}

/* Waits until a thread has to wait */
static void gate_wait_shut(Gate *gate)
{
    gint64 deadline = dp_deadline();

    while (gate_bytes(gate) <= gate->size - GATE_LINE) {
        dp_check_deadline(deadline, "the pipe to be full");
    }
}

/* Forgets what has been traced */
static void gate_empty(Gate *gate)
{
    char buf[GATE_SIZE];

    while (read(gate->fd, buf, sizeof(buf)) > 0) {
        /* until there is no more */
    }
}

static void *gate_reader(void *opaque)
{
    Gate *gate = opaque;
    char buf[GATE_SIZE];

    /*
     * Who does not wait for the thread behind the gate has time to get ahead
     * of it.  Who does passes however short or long this is.
     */
    g_usleep(300 * 1000);
    qatomic_set(&gate->open, true);
    g_assert_cmpint(fcntl(gate->fd, F_SETFL, 0), ==, 0);
    while (read(gate->fd, buf, sizeof(buf)) > 0) {
        /* until QEMU has ended */
    }
    return NULL;
}

static void gate_open_soon(Gate *gate)
{
    gate->reader = g_thread_new("gate", gate_reader, gate);
}

/* After QEMU has ended */
static void gate_destroy(Gate *gate)
{
    if (gate->reader) {
        g_thread_join(gate->reader);
    }
    close(gate->fd);
    unlink(gate->path);
    g_free(gate->path);
}

static DpVm *vm_gated(const Layout *layout, Gate *gate, const char *event)
{
    g_autofree char *path = dp_image("disk.img", IMAGE_SIZE);
    DpVm *vm = dp_vm_start("-D %s -trace %s "
                           "-blockdev file,node-name=f0,filename=%s "
                           "-blockdev raw,node-name=n0,file=f0",
                           gate->path, event, path);

    device_add(vm, layout);
    return vm;
}

/* The first queue that queue 0's IOThread does not serve */
static unsigned queue_elsewhere(const Layout *layout)
{
    unsigned i = 1;

    while (layout->iothreads[i] == layout->iothreads[0]) {
        i++;
    }
    g_assert_cmpuint(i, <, layout->num);
    return i;
}

/* What the ring sees, and what virtio-blk sees: see VirtioDeviceClass */
static void break_by_order(DpDisk *queue)
{
    uint64_t page = guest_alloc(&queue->vm->alloc, 4096);
    DpSeg seg[] = { { page, 1, VRING_DESC_F_WRITE }, { page, 16, 0 } };

    dp_avail(queue, dp_chain(queue, seg, ARRAY_SIZE(seg)));
}

static void break_by_no_status(DpDisk *queue)
{
    uint64_t page = guest_alloc(&queue->vm->alloc, 4096);
    DpSeg seg = { page, 16, 0 };

    dp_avail(queue, dp_chain(queue, &seg, 1));
}

#define OLD_PLACE 0
#define NEW_PLACE 8192      /* sectors */

/* The requests of a queue that is in the middle of a batch */
static void send_batch(DpDisk *queue, Gate *gate, DpReq **req, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        req[i] = dp_req(queue, VIRTIO_BLK_T_OUT, OLD_PLACE + 2 * i, DP_SECTOR);
        req[i]->framing = DP_INDIRECT;
        dp_req_fill(queue, req[i], i + 1);
        dp_submit(queue, req[i]);
    }
    dp_expose(queue);
    dp_kick_always(queue);
    gate_wait_shut(gate);
}

/* Each would be written to another place if the device read it now */
static void change_batch(DpDisk *queue, DpReq **req, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        qtest_writeq(queue->vm->qts,
                     req[i]->page + offsetof(struct virtio_blk_outhdr, sector),
                     NEW_PLACE + 2 * i);
    }
}

static void assert_nothing_at(DpDisk *disk, uint64_t sector, uint32_t len)
{
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_IN, sector, len);

    g_assert_cmpint(dp_run(disk, req), ==, OK);
    g_assert_true(dp_req_is_byte(disk, req, 0));
    dp_req_free(disk, req);
}

static void run_broken_elsewhere(const Layout *layout, Gate *gate,
                                 void (*break_it)(DpDisk *queue))
{
    DpVm *vm = vm_gated(layout, gate, "virtio_blk_handle_write");
    DpDisk *disk = disk_probe(vm, layout, UINT64_MAX);
    DpDisk *elsewhere = dp_disk_queue(disk, queue_elsewhere(layout));
    DpReq *req[GATE_BATCH];

    disk->want_num = GATE_BATCH;
    dp_disk_start(disk, DP_F_ALL);
    send_batch(disk, gate, req, GATE_BATCH);
    break_it(elsewhere);
    dp_expose(elsewhere);
    gate_open_soon(gate);
    dp_kick_always(elsewhere);
    dp_assert_broken(disk);
    change_batch(disk, req, GATE_BATCH);
    g_test_message("told %s", qatomic_read(&gate->open) ? "afterwards"
                                                        : "meanwhile");

    dp_stop(vm);
    dp_cont(vm);
    dp_disk_reset(disk);
    for (unsigned i = 0; i < GATE_BATCH; i++) {
        dp_req_free(disk, req[i]);
    }
    dp_disk_start(disk, DP_F_ALL);
    assert_nothing_at(disk, NEW_PLACE, 2 * GATE_BATCH * DP_SECTOR);
    assert_serving(vm);
    assert_all_work(disk, layout);
    dp_disk_free(disk);
    dp_vm_end(vm);
}

/*
 * covers: E6, STAT-6: a queue breaks the device while another, on another
 * IOThread, is in the middle of a batch: once the driver can see
 * DEVICE_NEEDS_RESET no request is looked at any more
 */
static void test_broken_elsewhere(const void *opaque)
{
    static void (*const ways[])(DpDisk *queue) = {
        break_by_order, break_by_no_status,
    };

    for (unsigned i = 0; i < ARRAY_SIZE(ways); i++) {
        Gate gate;
        bool fits = gate_init(&gate);

        if (fits) {
            run_broken_elsewhere(opaque, &gate, ways[i]);
        } else {
            g_test_skip("no pipe is small enough");
        }
        gate_destroy(&gate);
    }
    dp_tmp_cleanup();
}

/* --- a handler that still runs --------------------------------------- */

static const Layout own_path = {
    "off", 2, "'x-data-plane': 'off', " ROUND_ROBIN, "01", true
};

/* Its memory is what the bus lets it see, so none without bus mastering. */
static const Layout bus_memory = {
    "bus-memory", 2,
    "'x-data-plane': 'off', 'iommu_platform': true, 'disable-legacy': 'on', "
    ROUND_ROBIN, "01", true
};

/* Each step is traced in a line of the same length, until there is no room */
static void fill_gate(Gate *gate, void (*step)(DpDisk *queue), DpDisk *queue)
{
    gint64 deadline = dp_deadline();
    int line = 0, bytes;

    gate_empty(gate);
    while ((bytes = gate_bytes(gate)) + line <= gate->size) {
        step(queue);
        while (gate_bytes(gate) == bytes) {
            dp_check_deadline(deadline, "a step to be traced");
        }
        line = gate_bytes(gate) - bytes;
    }
}

static void kick_until_shut(DpDisk *queue, Gate *gate)
{
    fill_gate(gate, dp_kick_always, queue);
    dp_kick_always(queue);
    /* So that the handler has begun.  Nothing fails if it has not. */
    g_usleep(100 * 1000);
}

/* A job that is about to end keeps its node drained */
static void start_job(DpVm *vm)
{
    dp_qmp_ok(vm, NULL, "{'execute': 'blockdev-add', 'arguments': {"
              " 'driver': 'null-co', 'node-name': 'n1', 'size': %d,"
              " 'read-zeroes': true }}", IMAGE_SIZE);
    dp_qmp_ok(vm, NULL, "{'execute': 'blockdev-mirror', 'arguments': {"
              " 'job-id': 'job', 'device': 'n0', 'target': 'n1',"
              " 'sync': 'none', 'auto-finalize': false }}");
    qtest_qmp_eventwait(vm->qts, "BLOCK_JOB_READY");
}

static void begin_section(DpVm *vm)
{
    dp_qmp_ok(vm, NULL, "{'execute': 'block-job-complete', 'arguments': {"
              " 'device': 'job' }}");
    qtest_qmp_eventwait(vm->qts, "BLOCK_JOB_PENDING");
}

static void end_section(DpVm *vm)
{
    dp_qmp_ok(vm, NULL, "{'execute': 'job-finalize', 'arguments': {"
              " 'id': 'job' }}");
    qtest_qmp_eventwait(vm->qts, "BLOCK_JOB_COMPLETED");
}

static void assert_restarts(DpDisk *disk)
{
    for (unsigned i = 0; i < 3; i++) {
        dp_disk_start(disk, DP_F_ALL);
        run_flush(disk);
        run_flush(dp_disk_queue(disk, 1));
    }
}

/*
 * covers: E2, D5: a disk is reset in the drained section of another, which
 * does not wait for a handler that has been called and has not begun to submit.
 * The reset does, or the handler would find a device that is stopped.
 */
static void run_stop_in_section(DpDisk *disk, Gate *gate)
{
    start_job(disk->vm);
    kick_until_shut(dp_disk_queue(disk, 1), gate);
    begin_section(disk->vm);
    gate_open_soon(gate);
    dp_disk_reset(disk);
    g_test_message("reset %s", qatomic_read(&gate->open) ? "afterwards"
                                                         : "meanwhile");
    while (!qatomic_read(&gate->open)) {
        dp_status(disk);
    }
    end_section(disk->vm);
}

/*
 * covers: E7: the driver ends bus mastering while an IOThread is about to look
 * at a queue.  It must not find that the ring's memory is gone: to access what
 * is no RAM it waits for the BQL, whose holder waits for the IOThread.
 */
static void run_bus_master(DpDisk *disk, Gate *gate)
{
    kick_until_shut(dp_disk_queue(disk, 1), gate);
    gate_open_soon(gate);
    dp_set_bus_master(disk, false);
    dp_set_bus_master(disk, true);
    dp_disk_reset(disk);
}

/*
 * covers: D5: a throttled request completes in a reset's drain.  The handler in
 * which it does so has yet to notify the driver, for which the reset waits.
 */
static void run_notify_in_reset(DpDisk *disk, Gate *gate)
{
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_IN, 0, DP_SECTOR);

    dp_hold(disk);
    fill_gate(gate, run_flush, disk);
    dp_submit(disk, req);
    dp_expose(disk);
    dp_kick_always(disk);
    gate_open_soon(gate);
    dp_disk_reset(disk);
    /* It always is if the reset waits, and hardly ever if it does not. */
    g_assert_true(qatomic_read(&gate->open));
    dp_req_free(disk, req);
    dp_release(disk);
}

static const struct Gated {
    const char *name;
    void (*run)(DpDisk *disk, Gate *gate);
    const Layout *layout;
    const char *event;          /* in which a thread is held */
} gated[] = {
    { "stop-in-section", run_stop_in_section, &own_path,
      "virtio_queue_notify" },
    { "bus-master-in-kick", run_bus_master, &bus_memory,
      "virtio_queue_notify" },
    { "notify-in-reset", run_notify_in_reset, &own_path,
      "virtio_notify_irqfd_deferred_fn" },
};

/* And the disk works afterwards */
static void test_gated(const void *opaque)
{
    const struct Gated *test = opaque;
    Gate gate;

    if (gate_init(&gate)) {
        DpVm *vm = vm_gated(test->layout, &gate, test->event);
        DpDisk *disk = disk_new(vm, test->layout);

        test->run(disk, &gate);
        assert_restarts(disk);
        dp_disk_free(disk);
        dp_vm_end(vm);
    } else {
        g_test_skip("no pipe is small enough");
    }
    gate_destroy(&gate);
    dp_tmp_cleanup();
}

/* --- mappings that cannot be ----------------------------------------- */

static const struct {
    const char *json;
    const char *error;
} bad_mappings[] = {
    { "'iothread': 'io0', " ROUND_ROBIN,
      "iothread and iothread-vq-mapping properties cannot be set at the same "
      "time" },
    { "'iothread': 'io0', 'x-data-plane': 'off', " ROUND_ROBIN,
      "iothread and iothread-vq-mapping properties cannot be set at the same "
      "time" },
    { "'iothread-vq-mapping': [{'iothread': 'io7'}]",
      "IOThread \"io7\" object does not exist" },
    { "'iothread-vq-mapping': [{'iothread': 'io0'}, {'iothread': 'io0'}]",
      "duplicate IOThread name \"io0\" in iothread-vq-mapping" },
    { "'iothread-vq-mapping': [{'iothread': 'io0', 'vqs': [0, 1, 2]},"
      " {'iothread': 'io1', 'vqs': [2, 3]}]",
      "cannot assign vq 2 to IOThread \"io1\" because it is already assigned" },
    { "'iothread-vq-mapping': [{'iothread': 'io0', 'vqs': [0, 1]},"
      " {'iothread': 'io1', 'vqs': [3]}]",
      "missing vq 2 IOThread assignment in iothread-vq-mapping" },
    { "'iothread-vq-mapping': [{'iothread': 'io0', 'vqs': [0, 1, 2, 3, 4]}]",
      "vq index 4 for IOThread \"io0\" must be less than num_queues 4 in "
      "iothread-vq-mapping" },
    { "'iothread-vq-mapping': [{'iothread': 'io0', 'vqs': [0, 1, 2, 3]},"
      " {'iothread': 'io1'}]",
      "either all items in iothread-vq-mapping must have vqs or none of them "
      "must have it" },
    { "'ioeventfd': false, " ROUND_ROBIN,
      "ioeventfd is required for iothread" },
};

/* covers: D10: exact messages, and nothing stays behind */
static void test_bad_mappings(void)
{
    static const Layout good = { "good", 4, ROUND_ROBIN, "01" };
    DpVm *vm = dp_vm_start("-blockdev null-co,node-name=n0,size=%d,"
                           "read-zeroes=on", IMAGE_SIZE);
    DpDisk *disk;

    for (unsigned i = 0; i < ARRAY_SIZE(bad_mappings); i++) {
        g_autofree char *cmd = g_strdup_printf(
            "{'execute': 'device_add', 'arguments': {"
            " 'driver': 'virtio-blk-pci', 'id': 'd0', 'drive': 'n0',"
            " 'addr': '%d', 'num-queues': 4, %s}}", DP_SLOT,
            bad_mappings[i].json);
        QDict *rsp = dp_qmp(vm, NULL, "%p",
                            qobject_from_json(cmd, &error_abort));

        g_assert_true(qdict_haskey(rsp, "error"));
        g_assert_cmpstr(qdict_get_str(qdict_get_qdict(rsp, "error"), "desc"),
                        ==, bad_mappings[i].error);
        qobject_unref(rsp);
    }
    device_add(vm, &good);
    disk = disk_new(vm, &good);
    assert_serving(vm);
    for (unsigned i = 0; i < good.num; i++) {
        run_flush(dp_disk_queue(disk, i));
    }
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

/* --- IOThreads that go before the disk ------------------------------- */

static const Layout named[] = {
    { "mapping", 4, ROUND_ROBIN, "01" },
    { "mapping-off", 4, "'x-data-plane': 'off', " ROUND_ROBIN, "01", true },
    { "property", 2, "'iothread': 'io1'", "1" },
    { "property-off", 2, "'x-data-plane': 'off', 'iothread': 'io1'", "1",
      true },
};

static unsigned count_threads(DpVm *vm)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/task",
                                            (int)qtest_pid(vm->qts));
    GDir *dir = g_dir_open(path, 0, NULL);
    unsigned n = 0;

    g_assert_nonnull(dir);
    while (g_dir_read_name(dir)) {
        n++;
    }
    g_dir_close(dir);
    return n;
}

/* An IOThread is told by the name that it had when the disk was plugged. */
static void check_name(DpDisk *queue, const Layout *layout)
{
    char io = layout->iothreads[queue->index % strlen(layout->iothreads)];
    g_autofree char *iothread = g_strdup_printf("io%c", io);
    DpInfo info;

    if (!layout->off) {
        dp_queue_info(queue, &info);
        g_assert_cmpstr(info.iothread, ==, iothread);
    }
}

/* The device's threads are no longer listed; are they gone with the device? */
static void unplug_unnamed(DpVm *vm, DpDisk *disk, unsigned threads)
{
    gint64 deadline = dp_deadline();

    dp_disk_free(disk);
    dp_unplug(vm);
    while (count_threads(vm) != threads) {
        dp_check_deadline(deadline, "an IOThread to go");
    }
}

/*
 * covers: E14, M6: a disk keeps its IOThreads when their names are given up, or
 * given to others, and lets go of them, and of no others, when it is unplugged
 */
static void test_renamed(const void *opaque)
{
    const Layout *layout = opaque;
    DpVm *vm = dp_vm_start("-blockdev null-co,node-name=n0,size=%d,"
                           "read-zeroes=on", IMAGE_SIZE);
    unsigned threads = count_threads(vm);

    for (unsigned i = 0; i < 2; i++) {
        DpDisk *disk;

        device_add(vm, layout);
        disk = disk_new(vm, layout);
        dp_iothread_del(vm, "io1");
        if (i) {
            dp_iothread_add(vm, "io1");
        }
        for (unsigned j = 0; j < layout->num; j++) {
            run_flush(dp_disk_queue(disk, j));
            check_name(dp_disk_queue(disk, j), layout);
        }
        unplug_unnamed(vm, disk, threads - !i);
        if (i) {
            dp_iothread_del(vm, "io1");
        }
        dp_iothread_add(vm, "io1");
        g_assert_cmpuint(count_threads(vm), ==, threads);
    }
    dp_vm_quit(vm);
}

/* --- memory ----------------------------------------------------------- */

/* KiB of QEMU's memory that are locked, or 0 if it may not lock any */
static unsigned long locked_kib(DpVm *vm)
{
    return dp_vm_status_kib(vm, "VmLck:");
}

/* What 64 queues of @num entries lock when they are started */
static unsigned long start_locks_kib(unsigned num)
{
    DpVm *vm = dp_vm_start("-overcommit mem-lock=on "
                           "-blockdev null-co,node-name=n0,size=%d "
                           "-device virtio-blk-pci,id=d0,drive=n0,addr=%d,"
                           "iothread=io0,num-queues=64", 64 * MIB, DP_SLOT);
    DpDisk *disk = dp_disk_probe(vm, "d0", DP_SLOT);
    unsigned long before = locked_kib(vm), after;

    disk->want_num = num;
    for (unsigned i = 1; i < 64; i++) {
        dp_disk_queue(disk, i);
    }
    dp_disk_start(disk, DP_F_ALL);
    assert_serving(vm);
    after = locked_kib(vm);
    dp_disk_free(disk);
    dp_vm_quit(vm);
    return before && after > before ? after - before : 0;
}

/* covers: E9: a queue takes memory for as many requests as it has entries */
static void test_locked_memory(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && geteuid() != 0 &&
        limit.rlim_cur != RLIM_INFINITY) {
        g_test_skip("memory may not be locked without limit");
        return;
    }
    /* 760 bytes for an entry; what else a start takes is less than 4 MiB */
    g_assert_cmpuint(start_locks_kib(2), <, 4096);
    g_assert_cmpuint(start_locks_kib(16), <, 4096);
    g_assert_cmpuint(start_locks_kib(1024), >, 64 * 700);
}

/* --- queues that are idle -------------------------------------------- */

/* How long an event loop polls, and how long a queue is idle then */
#define POLL_NS 20000000
#define IDLE_NS (8 * POLL_NS)

/* See AIO_POLL_ALL_MAX in util/aio-posix.h; one is the event loop's own. */
#define POLL_ALL_QUEUES 7

static void set_polling(DpVm *vm, const char *iothread)
{
    const struct {
        const char *name;
        int64_t value;
    } properties[] = {
        { "poll-grow", 1000000 },
        { "poll-max-ns", POLL_NS },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(properties); i++) {
        dp_qmp_ok(vm, NULL, "{'execute': 'qom-set', 'arguments': {"
                  " 'path': %s, 'property': %s, 'value': %" PRId64 " }}",
                  iothread, properties[i].name, properties[i].value);
    }
}

static unsigned count_asking(DpDisk *disk, const Layout *layout)
{
    unsigned n = 0;

    for (unsigned i = 0; i < layout->num; i++) {
        n += dp_asks_for_kick(dp_disk_queue(disk, i));
    }
    return n;
}

/*
 * Requests on @busy, for longer than the others have to be idle and until this
 * number of them asks for kicks; @busy does not.
 */
static void run_busy(DpDisk *disk, const Layout *layout, DpDisk *busy,
                     unsigned asking)
{
    gint64 end = g_get_monotonic_time() + IDLE_NS / 500;
    gint64 deadline = dp_deadline();

    do {
        run_silently(busy);
        dp_check_deadline(deadline, "the event loop to poll busy queues only");
        /* Twice: no queue is polled any more if polling ends in between. */
    } while (g_get_monotonic_time() < end || dp_asks_for_kick(busy) ||
             count_asking(disk, layout) != asking || dp_asks_for_kick(busy));
}

/* An idle queue has a kick, which is not lost, and is polled from then on. */
static void wake_up(DpDisk *disk, DpDisk *queue, DpDisk *busy)
{
    gint64 deadline = dp_deadline();
    DpInfo before, after;

    dp_queue_info(queue, &before);
    run_silently(queue);
    dp_queue_info(queue, &after);
    g_assert_cmpint(after.flushes, ==, before.flushes + 1);
    g_assert_cmpint(after.kicks, >, before.kicks);
    while (dp_asks_for_kick(queue)) {
        run_silently(queue);
        run_silently(busy);
        dp_check_deadline(deadline, "a queue to be polled again");
    }
}

/*
 * covers: SPLIT-41, SPLIT-43, U3: of many queues of an IOThread only those are
 * polled that are busy, of few all; the others ask for kicks, also after they
 * have been detached and attached
 */
static void test_idle(const void *opaque)
{
    const Layout *layout = opaque;
    bool many = layout->num > POLL_ALL_QUEUES;
    DpVm *vm = vm_new(layout);
    DpDisk *disk = disk_probe(vm, layout, UINT64_MAX);

    set_polling(vm, "/objects/io0");
    /* These flags say at any time whether a queue asks for kicks. */
    dp_disk_start(disk, DP_F_PLAIN);
    for (unsigned round = 0; round < 3; round++) {
        DpDisk *busy = dp_disk_queue(disk, round % layout->num);

        for (unsigned i = 0; i < layout->num; i++) {
            run_silently(dp_disk_queue(disk, i));
        }
        run_busy(disk, layout, busy, many ? layout->num - 1 : 0);
        for (unsigned i = 0; many && i < layout->num; i += 3) {
            DpDisk *queue = dp_disk_queue(disk, i);

            if (queue != busy && dp_asks_for_kick(queue)) {
                wake_up(disk, queue, busy);
            }
        }
        run_busy(disk, layout, busy, many ? layout->num - 1 : 0);
        dp_stop(vm);
        dp_cont(vm);
    }
    assert_all_work(disk, layout);
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

/* Layouts on io0 alone, with split rings, of which the plane serves all */
static bool is_plain(const Layout *layout)
{
    return g_str_equal(layout->json, layouts[0].json);
}

/* --- */

static const struct {
    const char *name;
    void (*fn)(const void *layout);
    unsigned min, max;      /* number of queues that it is for */
    bool several;           /* and of IOThreads */
    bool any_path;          /* for QEMU's own path, too */
    bool plain;             /* for is_plain() only */
} tests[] = {
    { "offer", test_offer, 1, 64 },
    { "load", test_load, 1, 64 },
    { "counters", test_counters, 1, 64 },
    { "fewer", test_fewer, 2, 4 },
    { "queue-reset", test_queue_reset, 2, 4, false, true },
    { "queue-reset-for-good", test_queue_reset_for_good, 2, 8, false, true },
    { "full", test_full, 1, 8 },
    { "suppression", test_suppression, 2, 8 },
    { "no-vector", test_no_vector, 2, 8 },
    { "broken", test_broken, 2, 64 },
    { "broken-elsewhere", test_broken_elsewhere, 2, 8, true },
    { "idle", test_idle, 1, 64, .plain = true },
};

static void add_tests(const Layout *layout)
{
    for (unsigned i = 0; i < ARRAY_SIZE(tests); i++) {
        g_autofree char *path =
            g_strdup_printf("/virtio-blk-dataplane/queues/%s/%s",
                            tests[i].name, layout->name);

        if (layout->num >= tests[i].min && layout->num <= tests[i].max &&
            (!tests[i].several || layout->iothreads[1]) &&
            (!tests[i].plain || is_plain(layout)) &&
            (!layout->off || tests[i].any_path)) {
            qtest_add_data_func(path, layout, tests[i].fn);
        }
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    for (unsigned i = 0; i < ARRAY_SIZE(layouts); i++) {
        add_tests(&layouts[i]);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(named); i++) {
        g_autofree char *path =
            g_strdup_printf("/virtio-blk-dataplane/queues/renamed/%s",
                            named[i].name);

        qtest_add_data_func(path, &named[i], test_renamed);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(gated); i++) {
        g_autofree char *path =
            g_strdup_printf("/virtio-blk-dataplane/queues/%s", gated[i].name);

        qtest_add_data_func(path, &gated[i], test_gated);
    }
    qtest_add_func("/virtio-blk-dataplane/queues/locked-memory",
                   test_locked_memory);
    qtest_add_func("/virtio-blk-dataplane/queues/bad-mappings",
                   test_bad_mappings);
    return g_test_run();
}
