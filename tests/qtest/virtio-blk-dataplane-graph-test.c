/*
 * What the block layer does below a disk on IOThreads
 *
 * Nodes are opened above those that a guest uses, put between them, and taken
 * away; images grow meanwhile; and drivers that were made for one thread get
 * several.  Each test is for a fault that QEMU's own path
 * has as well, so most run with "x-data-plane=off", too.  May know QMP and
 * blkdebug, and of the plane what virtio-blk-dataplane-common.h does.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "qemu/bswap.h"
#include "virtio-blk-dataplane-common.h"

#define MIB (1024 * 1024)
#define IMAGE_MB 16
#define DEPTH 8
#define OK VIRTIO_BLK_S_OK
#define IOERR VIRTIO_BLK_S_IOERR
#define CLUSTER_SECTORS (65536 / DP_SECTOR)

/* --- filters ----------------------------------------------------------- */

typedef struct Filter {
    const char *name;
    const char *json;       /* what follows node-name, with the child as %s */
    bool compresses;        /* above a format alone, which it fills once */
    bool for_protocols;     /* not above a format; cannot be put between */
    bool keeps_size;        /* the child cannot be resized while in use */
} Filter;

static const Filter filters[] = {
    { "copy-on-read", "'driver': 'copy-on-read', 'file': '%s'" },
    { "throttle",
      "'driver': 'throttle', 'throttle-group': 'tg', 'file': '%s'" },
    { "compress", "'driver': 'compress', 'file': '%s'", .compresses = true },
    { "preallocate", "'driver': 'preallocate', 'file': '%s'",
      .for_protocols = true },
    { "blkdebug", "'driver': 'blkdebug', 'image': '%s'" },
    { "blklogwrites",
      "'driver': 'blklogwrites', 'log': 'aside', 'file': '%s'" },
    { "copy-before-write",
      "'driver': 'copy-before-write', 'target': 'old', 'file': '%s'",
      .keeps_size = true },
    { "raw", "'driver': 'raw', 'file': '%s'" },
};

/* A disk "d0" on a qcow2 node "n0" on a file "f0", with its load */
typedef struct Guest {
    const DpMode *mode;
    DpVm *vm;
    DpDisk *disk;
    DpLoad *load;
} Guest;

static void guest_start(Guest *g, const DpMode *mode)
{
    g_autofree char *path = dp_tmp("disk.qcow2");
    g_autofree char *old = dp_tmp("old.qcow2");

    g_assert_true(mkimg(path, "qcow2", IMAGE_MB));
    g_assert_true(mkimg(old, "qcow2", IMAGE_MB));
    g->mode = mode;
    g->vm = dp_vm_start("-object throttle-group,id=tg "
                        "-blockdev null-co,node-name=aside,size=%d,"
                        "read-zeroes=on "
                        "-blockdev qcow2,node-name=old,file.driver=file,"
                        "file.filename=%s "
                        "-blockdev file,node-name=f0,filename=%s "
                        "-blockdev qcow2,node-name=n0,file=f0",
                        IMAGE_MB * MIB, old, path);
}

static void guest_add_disk(Guest *g, const char *node)
{
    g_autofree char *cmd = g_strdup_printf(
        "{'execute': 'device_add', 'arguments': {"
        " 'driver': 'virtio-blk-pci', 'id': 'd0', 'drive': '%s',"
        " 'addr': '%d', %s}}", node, DP_SLOT, g->mode->json);

    dp_qmp_ok(g->vm, NULL, "%p", qobject_from_json(cmd, &error_abort));
    g->disk = dp_disk_new(g->vm, DP_F_ALL);
    g->load = dp_load_new(g->disk, DEPTH, 64);
    dp_load_run(g->load, 4 * DEPTH);
}

static void guest_finish(Guest *g)
{
    dp_load_run(g->load, 4 * DEPTH);
    dp_load_finish(g->load);
    dp_assert_mode(g->vm, g->mode);
    dp_disk_free(g->disk);
    dp_vm_quit(g->vm);
}

static void filter_add(Guest *g, const Filter *f, const char *node,
                       const char *child)
{
    g_autofree char *json = g_strdup_printf(f->json, child);
    g_autofree char *cmd = g_strdup_printf(
        "{'execute': 'blockdev-add', 'arguments': {'node-name': '%s', %s}}",
        node, json);

    dp_qmp_ok(g->vm, g->load, "%p", qobject_from_json(cmd, &error_abort));
}

static void node_del(Guest *g, const char *node)
{
    dp_qmp_ok(g->vm, g->load, "{'execute': 'blockdev-del',"
              " 'arguments': {'node-name': %s}}", node);
}

/* Put another node below the format */
static void set_file(Guest *g, const char *node)
{
    dp_qmp_ok(g->vm, g->load, "{'execute': 'blockdev-reopen',"
              " 'arguments': {'options': [{'driver': 'qcow2',"
              " 'node-name': 'n0', 'file': %s}]}}", node);
}

static int64_t node_length(Guest *g, const char *node)
{
    QDict *rsp = dp_qmp(g->vm, NULL, "{'execute': 'query-named-block-nodes',"
                        " 'arguments': {'flat': true}}");
    const QListEntry *e;
    int64_t length = -1;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "return"), e)
    {
        QDict *info = qobject_to(QDict, qlist_entry_obj(e));

        if (!strcmp(qdict_get_str(info, "node-name"), node)) {
            length = qdict_get_int(qdict_get_qdict(info, "image"),
                                   "virtual-size");
        }
    }
    qobject_unref(rsp);
    g_assert_cmpint(length, >=, 0);
    return length;
}

/* covers: E11: above nodes of a disk under load filters come and go */
static void test_open_above(const void *opaque)
{
    Guest g = { 0 };

    guest_start(&g, opaque);
    guest_add_disk(&g, "n0");
    for (unsigned i = 0; i < ARRAY_SIZE(filters); i++) {
        const Filter *f = &filters[i];

        g_test_message("%s", f->name);
        for (unsigned round = 0; round < 5; round++) {
            if (!f->compresses) {
                filter_add(&g, f, "above-file", "f0");
                node_del(&g, "above-file");
            }
            if (!f->for_protocols) {
                filter_add(&g, f, "above-format", "n0");
                node_del(&g, "above-format");
            }
        }
    }
    dp_qmp_error(g.vm, g.load, "group 'none' does not exist",
                 "{'execute': 'blockdev-add', 'arguments': {"
                 " 'driver': 'throttle', 'node-name': 'above',"
                 " 'throttle-group': 'none', 'file': 'n0'}}");
    dp_qmp_error(g.vm, g.load, "none",
                 "{'execute': 'blockdev-add', 'arguments': {"
                 " 'driver': 'throttle', 'node-name': 'above',"
                 " 'throttle-group': 'tg', 'file': 'none'}}");
    guest_finish(&g);
}

/* Make the file grow by clusters that had no place yet, and look at them */
#define GROW_CLUSTERS 8
#define GROW_FIRST (IMAGE_MB / 2 * MIB / DP_SECTOR)

static void grow(Guest *g, unsigned part)
{
    for (unsigned i = 0; i < GROW_CLUSTERS; i++) {
        uint64_t sector = GROW_FIRST +
            (part * GROW_CLUSTERS + i) * CLUSTER_SECTORS;

        g_assert_cmpint(dp_rw(g->disk, VIRTIO_BLK_T_OUT, sector, 4096,
                              part * GROW_CLUSTERS + i + 1), ==, OK);
    }
}

static void check_grown(Guest *g, unsigned parts)
{
    for (unsigned i = 0; i < parts * GROW_CLUSTERS; i++) {
        g_assert_cmpint(dp_rw(g->disk, VIRTIO_BLK_T_IN,
                              GROW_FIRST + i * CLUSTER_SECTORS, 4096, i + 1),
                        ==, OK);
    }
}

/*
 * covers: E13: a filter that is opened, and put below an image that has grown
 * meanwhile, shows all of it, and what is written through it
 */
static void test_insert_filter(const void *opaque)
{
    Guest g = { 0 };
    unsigned parts = 0;

    guest_start(&g, opaque);
    guest_add_disk(&g, "n0");
    for (unsigned i = 0; i < ARRAY_SIZE(filters); i++) {
        const Filter *f = &filters[i];
        int64_t length = node_length(&g, "f0");

        if (f->compresses || f->for_protocols || f->keeps_size) {
            continue;
        }
        g_test_message("%s", f->name);
        filter_add(&g, f, "between", "f0");
        grow(&g, parts++);
        g_assert_cmpint(node_length(&g, "f0"), >, length);
        g_assert_cmpint(node_length(&g, "between"), ==, node_length(&g, "f0"));
        set_file(&g, "between");
        check_grown(&g, parts);
        grow(&g, parts++);
        check_grown(&g, parts);
        set_file(&g, "f0");
        check_grown(&g, parts);
        node_del(&g, "between");
        dp_load_run(g.load, DEPTH);
    }
    guest_finish(&g);
}

static uint64_t capacity(DpDisk *disk)
{
    return qvirtio_config_readq(disk->vdev, 0);
}

/* covers: E13, M5: the guest sees that what is below a filter was resized */
static void test_resize_below(const void *opaque)
{
    for (unsigned i = 0; i < ARRAY_SIZE(filters); i++) {
        const Filter *f = &filters[i];
        Guest g = { 0 };

        if (f->compresses || f->for_protocols || f->keeps_size) {
            continue;
        }
        g_test_message("%s", f->name);
        guest_start(&g, opaque);
        filter_add(&g, f, "middle", "n0");
        filter_add(&g, &filters[0], "top", "middle");
        guest_add_disk(&g, "top");
        for (unsigned mb = IMAGE_MB + 1; mb < IMAGE_MB + 4; mb++) {
            uint64_t end = mb * (uint64_t)MIB / DP_SECTOR;

            dp_qmp_ok(g.vm, g.load, "{'execute': 'block_resize',"
                      " 'arguments': {'node-name': 'n0', 'size': %" PRId64
                      "}}", (int64_t)mb * MIB);
            dp_wait_config_irq(g.disk);
            g_assert_cmpuint(capacity(g.disk), ==, end);
            g_assert_cmpint(dp_rw(g.disk, VIRTIO_BLK_T_OUT, end - 8, 4096, mb),
                            ==, OK);
            g_assert_cmpint(dp_rw(g.disk, VIRTIO_BLK_T_IN, end - 8, 4096, mb),
                            ==, OK);
        }
        guest_finish(&g);
    }
}

/* --- the write cache is off -------------------------------------------- */

/*
 * covers: E16: a driver without FUA (blkdebug above qcow2) has each write
 * flushed, the first one, too: all flushes fail, so all writes do
 */
static void test_first_flush(const void *opaque)
{
    static const uint32_t types[] = {
        VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    };

    for (unsigned i = 0; i < ARRAY_SIZE(types); i++) {
        struct virtio_blk_discard_write_zeroes seg = {
            .sector = cpu_to_le64(8), .num_sectors = cpu_to_le32(8),
        };
        bool is_write = types[i] == VIRTIO_BLK_T_OUT;
        Guest g = { 0 };
        DpDisk *disk;

        guest_start(&g, opaque);
        dp_qmp_ok(g.vm, NULL, "{'execute': 'blockdev-add', 'arguments': {"
                  " 'driver': 'blkdebug', 'node-name': 'top', 'image': 'n0',"
                  " 'inject-error': [{'event': 'none', 'iotype': 'flush',"
                  " 'errno': 5}]}}");
        dp_qmp_ok(g.vm, NULL, "%p", qobject_from_jsonf_nofail(
                  "{'execute': 'device_add', 'arguments': {"
                  " 'driver': 'virtio-blk-pci', 'id': 'd0', 'drive': 'top',"
                  " 'write-cache': 'off', 'addr': '4',"
                  " 'iothread': 'io0', 'x-data-plane': %s}}",
                  g.mode->plane ? "auto" : "off"));
        disk = dp_disk_new(g.vm, ~((1ull << VIRTIO_BLK_F_FLUSH) |
                                   (1ull << VIRTIO_BLK_F_CONFIG_WCE)));
        for (unsigned n = 0; n < 3; n++) {
            DpReq *req = dp_req(disk, types[i], is_write ? 8 : 0,
                                is_write ? 4096 : sizeof(seg));

            if (!is_write) {
                qtest_memwrite(g.vm->qts, req->data, &seg, sizeof(seg));
            }
            g_assert_cmpint(dp_run(disk, req), ==, IOERR);
            dp_req_free(disk, req);
        }
        dp_disk_free(disk);
        dp_vm_quit(g.vm);
    }
}

/* --- qed --------------------------------------------------------------- */

#define QED_MB 64
#define QED_CLUSTER 4096

static char *qed_image(void)
{
    char *path = dp_tmp("disk.qed");
    g_autofree char *command = g_strdup_printf(
        "%s create -q -f qed -o cluster_size=%d %s %dM",
        g_getenv("QTEST_QEMU_IMG"), QED_CLUSTER, path, QED_MB);

    g_assert_cmpint(system(command), ==, 0);
    return path;
}

static void qed_check(const char *path)
{
    g_autofree char *command = g_strdup_printf(
        "%s check -q -f qed %s", g_getenv("QTEST_QEMU_IMG"), path);
    int status = system(command);

    /* 3 means that clusters leak; a single thread leaves one, too. */
    g_assert_true(WIFEXITED(status));
    g_assert_true(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 3);
}

static void qemu_io(DpVm *vm, const char *command)
{
    /* By the device, as to let a backend of its own go drains the node */
    g_autofree char *out = qtest_hmp(
        vm->qts, "qemu-io -d /machine/peripheral/d0/virtio-backend \"%s\"",
        command);

    g_assert_cmpstr(out, ==, "");
}

/*
 * covers: E15: a write allocates while the header is updated, which it is when
 * there was no such write for five seconds
 */
static void test_qed_header(void)
{
    g_autofree char *path = qed_image();
    DpVm *vm = dp_vm_start(
        "-blockdev file,node-name=f0,filename=%s "
        "-blockdev blkdebug,node-name=debug,image=f0 "
        "-blockdev raw,node-name=r0,file=debug "
        "-blockdev qed,node-name=n0,file=r0 "
        "-device virtio-blk-pci,id=d0,drive=n0,addr=%d", path, DP_SLOT);
    DpDisk *disk = dp_disk_new(vm, DP_F_ALL);
    DpReq *req[4];

    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, 0, QED_CLUSTER, 1), ==, OK);
    qemu_io(vm, "break flush_to_disk A");
    qtest_clock_step(vm->qts, 6000000000ll);
    qemu_io(vm, "wait_break A");
    for (unsigned i = 0; i < ARRAY_SIZE(req); i++) {
        req[i] = dp_req(disk, VIRTIO_BLK_T_OUT, 64 * (i + 1), QED_CLUSTER);
        dp_req_fill(disk, req[i], i + 2);
        dp_submit(disk, req[i]);
        dp_kick(disk);
    }
    qemu_io(vm, "resume A");
    dp_wait_all(disk);
    for (unsigned i = 0; i < ARRAY_SIZE(req); i++) {
        g_assert_cmpint(req[i]->status, ==, OK);
        dp_req_free(disk, req[i]);
        g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_IN, 64 * (i + 1),
                              QED_CLUSTER, i + 2), ==, OK);
    }
    dp_disk_free(disk);
    dp_vm_end(vm);
    qed_check(path);
    dp_tmp_cleanup();
}

/* covers: E15: queues on two IOThreads fill a new image */
static void test_qed_threads(const void *opaque)
{
    enum { QUEUES = 4, SIZE = 8 };
    g_autofree char *path = qed_image();
    const DpMode *mode = opaque;
    DpVm *vm = dp_vm_start("-blockdev file,node-name=f0,filename=%s "
                           "-blockdev qed,node-name=n0,file=f0", path);
    DpDisk *disk, *queue[QUEUES];
    DpReq *req[QUEUES][SIZE];
    uint64_t sector = 0;

    dp_qmp_ok(vm, NULL, "%p", qobject_from_jsonf_nofail(
              "{'execute': 'device_add', 'arguments': {"
              " 'driver': 'virtio-blk-pci', 'id': 'd0', 'drive': 'n0',"
              " 'addr': '4', 'num-queues': 4, 'x-data-plane': %s,"
              " 'iothread-vq-mapping': [{'iothread': 'io0'},"
              "  {'iothread': 'io1'}]}}", mode->plane ? "auto" : "off"));
    disk = dp_disk_probe(vm, "d0", DP_SLOT);
    for (unsigned q = 0; q < QUEUES; q++) {
        queue[q] = dp_disk_queue(disk, q);
    }
    dp_disk_start(disk, DP_F_ALL);
    for (unsigned q = 0; q < QUEUES; q++) {
        for (unsigned i = 0; i < SIZE; i++) {
            req[q][i] = dp_req(queue[q], VIRTIO_BLK_T_OUT, 0, QED_CLUSTER);
        }
    }
    for (unsigned round = 0; round < 200; round++) {
        for (unsigned q = 0; q < QUEUES; q++) {
            for (unsigned i = 0; i < SIZE; i++) {
                req[q][i]->sector = sector;
                sector += QED_CLUSTER / DP_SECTOR;
                dp_req_fill(queue[q], req[q][i], 1);
                dp_submit(queue[q], req[q][i]);
            }
        }
        for (unsigned q = 0; q < QUEUES; q++) {
            dp_kick(queue[q]);
        }
        for (unsigned q = 0; q < QUEUES; q++) {
            dp_wait_all(queue[q]);
            for (unsigned i = 0; i < SIZE; i++) {
                g_assert_cmpint(req[q][i]->status, ==, OK);
            }
        }
    }
    for (unsigned i = 0; i < 4 * QUEUES * SIZE; i++) {
        g_assert_cmpint(dp_rw(queue[i % QUEUES], VIRTIO_BLK_T_IN,
                              i * (QED_CLUSTER / DP_SECTOR), QED_CLUSTER, 1),
                        ==, OK);
    }
    for (unsigned q = 0; q < QUEUES; q++) {
        for (unsigned i = 0; i < SIZE; i++) {
            dp_req_free(queue[q], req[q][i]);
        }
    }
    dp_disk_free(disk);
    dp_vm_end(vm);
    qed_check(path);
    dp_tmp_cleanup();
}

static void test_skip(void)
{
    g_test_skip("needs qemu-img, named by QTEST_QEMU_IMG");
}

int main(int argc, char **argv)
{
    static const DpMode *const modes[] = { &dp_mode_iothread, &dp_mode_off };
    static const DpTest tests[] = {
        { "open-above", test_open_above },
        { "insert-filter", test_insert_filter },
        { "resize-below", test_resize_below },
        { "first-flush", test_first_flush },
        { "qed-threads", test_qed_threads },
    };

    g_test_init(&argc, &argv, NULL);
    if (!have_qemu_img()) {
        qtest_add_func("/virtio-blk-dataplane/graph", test_skip);
        return g_test_run();
    }
    for (unsigned i = 0; i < ARRAY_SIZE(tests); i++) {
        for (unsigned m = 0; m < ARRAY_SIZE(modes); m++) {
            g_autofree char *path = g_strdup_printf(
                "/virtio-blk-dataplane/graph/%s/%s", tests[i].name,
                modes[m]->name);

            qtest_add_data_func(path, modes[m], tests[i].fn);
        }
    }
    qtest_add_func("/virtio-blk-dataplane/graph/qed-header", test_qed_header);
    return g_test_run();
}
