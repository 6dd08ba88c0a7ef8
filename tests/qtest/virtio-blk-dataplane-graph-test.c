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
#include <sys/prctl.h>
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

static void guest_plug_disk(Guest *g, const char *node)
{
    dp_plug_disk(g->vm, node, g->mode, "");
    g->disk = dp_disk_new(g->vm, DP_F_ALL);
}

/* A disk with a load on it */
static void guest_add_disk(Guest *g, const char *node)
{
    guest_plug_disk(g, node);
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

/* @json: what follows node-name */
static void node_add(Guest *g, const char *node, const char *json)
{
    g_autofree char *cmd = g_strdup_printf(
        "{'execute': 'blockdev-add', 'arguments': {'node-name': '%s', %s}}",
        node, json);

    dp_qmp_ok(g->vm, g->load, "%p", qobject_from_json(cmd, &error_abort));
}

static void filter_add(Guest *g, const Filter *f, const char *node,
                       const char *child)
{
    g_autofree char *json = g_strdup_printf(f->json, child);

    node_add(g, node, json);
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

/* What a query that answers with a list says of a node, or NULL; borrowed */
static QDict *entry_of(QDict *rsp, const char *node)
{
    const QListEntry *e;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "return"), e)
    {
        QDict *entry = qobject_to(QDict, qlist_entry_obj(e));

        if (!g_strcmp0(qdict_get_try_str(entry, "node-name"), node)) {
            return entry;
        }
    }
    return NULL;
}

/* The number @key in the part @of of what a query says of a node */
static int64_t node_int(QDict *rsp, const char *node, const char *of,
                        const char *key)
{
    QDict *info = entry_of(rsp, node);
    int64_t value;

    g_assert_nonnull(info);
    value = qdict_get_int(qdict_get_qdict(info, of), key);
    qobject_unref(rsp);
    return value;
}

static int64_t node_length(Guest *g, const char *node)
{
    QDict *rsp = dp_qmp(g->vm, NULL, "{'execute': 'query-named-block-nodes',"
                        " 'arguments': {'flat': true}}");
    int64_t length = node_int(rsp, node, "image", "virtual-size");

    g_assert_cmpint(length, >=, 0);
    return length;
}

/* covers: E11: above nodes of a disk under load filters come and go */
static void test_open_above(const DpMode *mode)
{
    Guest g = { 0 };

    guest_start(&g, mode);
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
static void test_insert_filter(const DpMode *mode)
{
    Guest g = { 0 };
    unsigned parts = 0;

    guest_start(&g, mode);
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
static void test_resize_below(const DpMode *mode)
{
    for (unsigned i = 0; i < ARRAY_SIZE(filters); i++) {
        const Filter *f = &filters[i];
        Guest g = { 0 };

        if (f->compresses || f->for_protocols || f->keeps_size) {
            continue;
        }
        g_test_message("%s", f->name);
        guest_start(&g, mode);
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

/* --- another user in another IOThread ---------------------------------- */

/* Context: the child; it must not outlive a test that fails */
static void load_setup(void *unused)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

/* A process that writes to the export "e" without end */
static GPid load_start(const char *socket)
{
    g_autofree char *url = g_strdup_printf("nbd+unix:///e?socket=%s", socket);
    const char *argv[] = {
        g_getenv("QTEST_QEMU_IMG"), "bench", "-q", "-w", "-f", "raw",
        "-c", "2000000000", "-d", "16", "-s", "512", url, NULL
    };
    g_autoptr(GError) error = NULL;
    GPid pid;

    g_spawn_async(NULL, (char **)argv, NULL,
                  G_SPAWN_DO_NOT_REAP_CHILD | G_SPAWN_STDOUT_TO_DEV_NULL |
                  G_SPAWN_STDERR_TO_DEV_NULL, load_setup, NULL, &pid, &error);
    g_assert_no_error(error);
    return pid;
}

static int64_t highest_offset(Guest *g, const char *node)
{
    QDict *rsp = dp_qmp(g->vm, NULL, "{'execute': 'query-blockstats',"
                        " 'arguments': {'query-nodes': true}}");

    return node_int(rsp, node, "stats", "wr_highest_offset");
}

/* Each is opened above "busy" and goes again, which may move "busy" */
static const char *const beside[] = {
    "'driver': 'raw', 'file': 'busy'",
    "'driver': 'throttle', 'throttle-group': 'tg', 'file': 'busy'",
    "'driver': 'blkdebug', 'image': 'busy'",
    "'driver': 'blkverify', 'test': 'busy', 'raw': 'aside'",
    "'driver': 'blklogwrites', 'log': 'aside', 'file': 'busy'",
    "'driver': 'qcow2', 'file': 'f1', 'backing': 'busy'",
    "'driver': 'qcow2', 'file': 'f2', 'backing': null, 'data-file': 'busy'",
};

/* Where the commands that follow find all that is connected to "busy" */
static void beside_move(Guest *g)
{
    dp_qmp_ok(g->vm, NULL, "{'execute': 'x-blockdev-set-iothread',"
              " 'arguments': {'node-name': 'busy', 'iothread': 'io1',"
              " 'force': true}}");
}

/*
 * covers: E11: while an export in an IOThread, which may leave it, is under
 * load, nodes are opened above its node, and go
 */
static void test_open_beside(const DpMode *mode)
{
    g_autofree char *socket = dp_tmp("nbd.sock");
    g_autofree char *f1 = dp_tmp("f1.qcow2");
    g_autofree char *f2 = dp_tmp("f2.qcow2");
    g_autofree char *f2_data = dp_tmp("f2.data");
    g_autofree char *create = g_strdup_printf(
        "%s create -q -f qcow2 -o data_file=%s,data_file_raw=on %s %dM",
        g_getenv("QTEST_QEMU_IMG"), f2_data, f2, IMAGE_MB);
    gint64 deadline;
    Guest g = { 0 };
    GPid load;

    g_assert_true(mkimg(f1, "qcow2", IMAGE_MB));
    g_assert_cmpint(system(create), ==, 0);
    guest_start(&g, mode);
    guest_add_disk(&g, "n0");
    dp_qmp_ok(g.vm, NULL, "{'execute': 'blockdev-add', 'arguments': {"
              " 'driver': 'null-co', 'node-name': 'busy', 'size': %" PRId64
              ", 'read-zeroes': true}}", (int64_t)IMAGE_MB * MIB);
    dp_qmp_ok(g.vm, NULL, "{'execute': 'blockdev-add', 'arguments': {"
              " 'driver': 'raw', 'node-name': 'exported', 'file': 'busy'}}");
    dp_qmp_ok(g.vm, NULL, "{'execute': 'blockdev-add', 'arguments': {"
              " 'driver': 'file', 'node-name': 'f1', 'filename': %s}}", f1);
    dp_qmp_ok(g.vm, NULL, "{'execute': 'blockdev-add', 'arguments': {"
              " 'driver': 'file', 'node-name': 'f2', 'filename': %s}}", f2);
    dp_qmp_ok(g.vm, NULL, "{'execute': 'nbd-server-start', 'arguments': {"
              " 'addr': {'type': 'unix', 'data': {'path': %s}}}}", socket);
    dp_qmp_ok(g.vm, NULL, "{'execute': 'block-export-add', 'arguments': {"
              " 'type': 'nbd', 'id': 'e', 'name': 'e', 'writable': true,"
              " 'node-name': 'exported', 'iothread': 'io1'}}");
    load = load_start(socket);
    deadline = dp_deadline();
    while (highest_offset(&g, "exported") <= 0) {
        g_assert_cmpint(waitpid(load, NULL, WNOHANG), ==, 0);
        dp_check_deadline(deadline, "the load");
    }

    for (unsigned i = 0; i < ARRAY_SIZE(beside); i++) {
        g_test_message("%s", beside[i]);
        for (unsigned round = 0; round < 20; round++) {
            beside_move(&g);
            node_add(&g, "above", beside[i]);
            beside_move(&g);
            node_del(&g, "above");
        }
    }

    g_assert_cmpint(waitpid(load, NULL, WNOHANG), ==, 0);
    kill(load, SIGKILL);
    waitpid(load, NULL, 0);
    dp_qmp_ok(g.vm, NULL, "{'execute': 'nbd-server-stop'}");
    guest_finish(&g);
}

/* --- jobs on filters --------------------------------------------------- */

static void wait_event(Guest *g, const char *event)
{
    qtest_qmp_eventwait(g->vm->qts, event);
}

/*
 * covers: M10: a mirror, a snapshot and its commit, of a disk on a compress
 * filter
 */
static void test_compress_jobs(const DpMode *mode)
{
    g_autofree char *over = dp_tmp("over.qcow2");
    Guest g = { 0 };
    uint64_t sector = 0;

    g_assert_true(mkimg(over, "qcow2", IMAGE_MB));
    guest_start(&g, mode);
    filter_add(&g, &filters[2], "top", "n0");
    dp_qmp_ok(g.vm, NULL, "{'execute': 'blockdev-add', 'arguments': {"
              " 'driver': 'qcow2', 'node-name': 'over', 'backing': null,"
              " 'file': {'driver': 'file', 'filename': %s}}}", over);
    guest_plug_disk(&g, "top");
    /* Whole clusters, as a cluster cannot be compressed twice */
    for (; sector < 4 * CLUSTER_SECTORS; sector += CLUSTER_SECTORS) {
        g_assert_cmpint(dp_rw(g.disk, VIRTIO_BLK_T_OUT, sector, 65536,
                              sector + 1), ==, OK);
    }

    dp_qmp_ok(g.vm, NULL, "{'execute': 'blockdev-mirror', 'arguments': {"
              " 'device': 'top', 'job-id': 'j', 'target': 'aside',"
              " 'sync': 'full'}}");
    wait_event(&g, "BLOCK_JOB_READY");
    dp_qmp_ok(g.vm, NULL, "{'execute': 'block-job-cancel',"
              " 'arguments': {'device': 'j'}}");
    wait_event(&g, "BLOCK_JOB_COMPLETED");

    dp_qmp_ok(g.vm, NULL, "{'execute': 'blockdev-snapshot', 'arguments': {"
              " 'node': 'top', 'overlay': 'over'}}");
    g_assert_cmpint(dp_rw(g.disk, VIRTIO_BLK_T_OUT, sector, 65536, sector + 1),
                    ==, OK);
    dp_qmp_ok(g.vm, NULL, "{'execute': 'block-commit', 'arguments': {"
              " 'device': 'over', 'job-id': 'j'}}");
    wait_event(&g, "BLOCK_JOB_READY");
    dp_qmp_ok(g.vm, NULL, "{'execute': 'job-complete',"
              " 'arguments': {'id': 'j'}}");
    wait_event(&g, "BLOCK_JOB_COMPLETED");

    for (sector = 0; sector <= 4 * CLUSTER_SECTORS; sector += CLUSTER_SECTORS) {
        g_assert_cmpint(dp_rw(g.disk, VIRTIO_BLK_T_IN, sector, 65536,
                              sector + 1), ==, OK);
    }
    dp_assert_mode(g.vm, g.mode);
    dp_disk_free(g.disk);
    dp_vm_quit(g.vm);
}

/* --- drivers that check what QEMU does --------------------------------- */

typedef struct Range {
    uint32_t type;
    uint32_t flags;
    uint64_t sector;
    uint32_t sectors;
} Range;

static const Range ranges[] = {
    { VIRTIO_BLK_T_WRITE_ZEROES, 0, 0, 8 },
    { VIRTIO_BLK_T_WRITE_ZEROES, 0, 3, 7 },
    { VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, 8, 256 },
    { VIRTIO_BLK_T_DISCARD, 0, 8, 8 },
    { VIRTIO_BLK_T_DISCARD, 0, 15, 2 },
    { VIRTIO_BLK_T_DISCARD, 0, 1, 1 },
    { VIRTIO_BLK_T_DISCARD, 0, 5, 700 },
};

static void send_range(Guest *g, const Range *range)
{
    struct virtio_blk_discard_write_zeroes seg = {
        .sector = cpu_to_le64(GROW_FIRST + range->sector),
        .num_sectors = cpu_to_le32(range->sectors),
        .flags = cpu_to_le32(range->flags),
    };
    DpReq *req = dp_req(g->disk, range->type, 0, sizeof(seg));

    qtest_memwrite(g->vm->qts, req->data, &seg, sizeof(seg));
    g_assert_cmpint(dp_run(g->disk, req), ==, OK);
    dp_req_free(g->disk, req);
}

static void check_zeroes(Guest *g, const Range *range)
{
    DpReq *req = dp_req(g->disk, VIRTIO_BLK_T_IN, GROW_FIRST + range->sector,
                        range->sectors * DP_SECTOR);

    g_assert_cmpint(dp_run(g->disk, req), ==, OK);
    g_assert_true(dp_req_is_byte(g->disk, req, 0));
    dp_req_free(g->disk, req);
}

static void run_ranges(const DpMode *mode, const char *json)
{
    Guest g = { 0 };

    g_test_message("%s", json);
    guest_start(&g, mode);
    node_add(&g, "top", json);
    guest_add_disk(&g, "top");
    for (unsigned i = 0; i < ARRAY_SIZE(ranges); i++) {
        g_assert_cmpint(dp_rw(g.disk, VIRTIO_BLK_T_OUT, GROW_FIRST, MIB / 2,
                              i + 1), ==, OK);
        send_range(&g, &ranges[i]);
        if (ranges[i].type == VIRTIO_BLK_T_WRITE_ZEROES) {
            check_zeroes(&g, &ranges[i]);
        }
    }
    guest_finish(&g);
}

/* covers: M10: a guest writes zeroes and discards through blkverify */
static void test_verify_ranges(const DpMode *mode)
{
    run_ranges(mode, "'driver': 'blkverify', 'test': 'n0', 'raw': 'old'");
}

/* Without "unmap" the block layer drops the guest's discards */
#define DEBUG_NODE "'driver': 'blkdebug', 'discard': 'unmap', 'image': "

/* covers: M10: the same through blkdebug, with and without alignments */
static void test_debug_ranges(const DpMode *mode)
{
    static const char *const options[] = {
        DEBUG_NODE "'n0'",
        DEBUG_NODE "'n0', 'align': 4096",
        DEBUG_NODE "'n0', 'opt-discard': 65536",
        DEBUG_NODE "'n0', 'align': 4096, 'opt-discard': 65536,"
        " 'opt-write-zero': 65536",
    };
    g_autofree char *plain = NULL;
    g_autofree char *aligned = NULL;

    for (unsigned i = 0; i < ARRAY_SIZE(options); i++) {
        run_ranges(mode, options[i]);
    }

    /* A file has no alignment of discards. */
    plain = dp_tmp("plain.raw");
    g_assert_true(mkimg(plain, "raw", IMAGE_MB));
    aligned = g_strdup_printf(DEBUG_NODE "{'driver': 'file',"
                              " 'filename': '%s'}, 'align': 4096", plain);
    run_ranges(mode, aligned);
}

/* --- the write cache is off -------------------------------------------- */

/*
 * covers: E16: a driver without FUA (blkdebug above qcow2) has each write
 * flushed, the first one, too: all flushes fail, so all writes do
 */
static void test_first_flush(const DpMode *mode)
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

        guest_start(&g, mode);
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
static void test_qed_threads(const DpMode *mode)
{
    enum { QUEUES = 4, SIZE = 8 };
    g_autofree char *path = qed_image();
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
        { "open-above", .own_vm = test_open_above },
        { "insert-filter", .own_vm = test_insert_filter },
        { "resize-below", .own_vm = test_resize_below },
        { "open-beside", .own_vm = test_open_beside },
        { "compress-jobs", .own_vm = test_compress_jobs },
        { "verify-ranges", .own_vm = test_verify_ranges },
        { "debug-ranges", .own_vm = test_debug_ranges },
        { "first-flush", .own_vm = test_first_flush },
        { "qed-threads", .own_vm = test_qed_threads },
    };

    g_test_init(&argc, &argv, NULL);
    if (!have_qemu_img()) {
        qtest_add_func("/virtio-blk-dataplane/graph", test_skip);
        return g_test_run();
    }
    for (unsigned i = 0; i < ARRAY_SIZE(tests); i++) {
        for (unsigned m = 0; m < ARRAY_SIZE(modes); m++) {
            dp_add_row("graph", &tests[i], modes[m]);
        }
    }
    qtest_add_func("/virtio-blk-dataplane/graph/qed-header", test_qed_header);
    return g_test_run();
}
