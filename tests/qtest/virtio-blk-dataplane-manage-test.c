/*
 * Management of a disk while the data plane runs and the guest does I/O
 *
 * Every operation that the operation blocker lets through works under a load
 * that verifies what it reads; those that stock QEMU refuses fail with stock's
 * error; and the disk becomes the target of a backup only if it is shared, and
 * that of a mirror never.  May know QMP and nothing of the plane but its state.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "virtio-blk-dataplane-common.h"

#define MIB (1024 * 1024)
#define IMAGE_MB 16
#define DEPTH 8
#define BLOCKED "block device is in use by data plane"

/* A disk "d0" with its load, and room for a second image */
typedef struct Guest {
    const DpMode *mode;
    DpVm *vm;
    DpDisk *disk;
    DpLoad *load;
} Guest;

static Guest *guest_start(const DpMode *mode, DpVm *vm)
{
    Guest *g = g_new0(Guest, 1);

    g->mode = mode;
    g->vm = vm;
    g->disk = dp_disk_new(vm, DP_F_ALL);
    g->load = dp_load_new(g->disk, DEPTH, 64);
    dp_load_run(g->load, 4 * DEPTH);
    return g;
}

/* The load must have survived, verified, on the plane */
static void guest_finish(Guest *g)
{
    dp_load_run(g->load, 4 * DEPTH);
    dp_load_finish(g->load);
    dp_assert_mode(g->vm, g->mode);
    dp_disk_free(g->disk);
    dp_vm_quit(g->vm);
    g_free(g);
}

/* A qcow2 disk "n0", and an empty qcow2 image "other.qcow2" */
static Guest *guest_qcow2(const DpMode *mode)
{
    g_autofree char *path = dp_tmp("disk.qcow2");
    g_autofree char *other = dp_tmp("other.qcow2");

    g_assert_true(mkimg(path, "qcow2", IMAGE_MB));
    g_assert_true(mkimg(other, "qcow2", IMAGE_MB));
    return guest_start(mode, dp_vm_start(
        "-blockdev file,node-name=f0,filename=%s "
        "-blockdev qcow2,node-name=n0,file=f0 "
        "-device virtio-blk-pci,id=d0,drive=n0,addr=%d%s",
        path, DP_SLOT, mode->props));
}

/* The same as a -drive, for commands that want a device's name */
static Guest *guest_drive(const DpMode *mode)
{
    g_autofree char *path = dp_tmp("disk.qcow2");

    g_assert_true(mkimg(path, "qcow2", IMAGE_MB));
    return guest_start(mode, dp_vm_start(
        "-drive if=none,id=drive0,file=%s,format=qcow2 "
        "-device virtio-blk-pci,id=d0,drive=drive0,addr=%d%s",
        path, DP_SLOT, mode->props));
}

static void add_other(Guest *g)
{
    g_autofree char *path = dp_tmp("other.qcow2");

    dp_qmp_ok(g->vm, g->load, "{'execute': 'blockdev-add', 'arguments': {"
              " 'driver': 'qcow2', 'node-name': 'other',"
              " 'file': {'driver': 'file', 'filename': %s}}}", path);
}

/* --- jobs ------------------------------------------------------------ */

/* State of job @id, as a copy; NULL if there is none */
static char *job_status(Guest *g, const char *id)
{
    QDict *rsp = dp_qmp(g->vm, NULL, "{'execute': 'query-jobs'}");
    const QListEntry *e;
    char *status = NULL;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "return"), e)
    {
        QDict *job = qobject_to(QDict, qlist_entry_obj(e));

        if (!strcmp(qdict_get_str(job, "id"), id)) {
            status = g_strdup(qdict_get_str(job, "status"));
        }
    }
    qobject_unref(rsp);
    return status;
}

static void wait_job(Guest *g, const char *id, const char *want)
{
    gint64 deadline = dp_deadline();

    for (;;) {
        g_autofree char *status = job_status(g, id);

        g_assert_nonnull(status);
        if (!strcmp(status, want)) {
            return;
        }
        dp_check_deadline(deadline, want);
        dp_load_run(g->load, DEPTH);
    }
}

static void dismiss_job(Guest *g, const char *id)
{
    dp_qmp_ok(g->vm, g->load, "{'execute': 'job-dismiss',"
              " 'arguments': {'id': %s}}", id);
}

/* Let a job that keeps its result finish; it must not have failed */
static void finish_job(Guest *g, const char *id)
{
    QDict *rsp;
    const QListEntry *e;

    wait_job(g, id, "concluded");
    rsp = dp_qmp(g->vm, NULL, "{'execute': 'query-jobs'}");
    QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "return"), e)
    {
        QDict *job = qobject_to(QDict, qlist_entry_obj(e));

        if (!strcmp(qdict_get_str(job, "id"), id) &&
            qdict_haskey(job, "error")) {
            g_error("job %s: %s", id, qdict_get_str(job, "error"));
        }
    }
    qobject_unref(rsp);
    dismiss_job(g, id);
}

static void complete_job(Guest *g, const char *id)
{
    wait_job(g, id, "ready");
    dp_qmp_ok(g->vm, g->load, "{'execute': 'job-complete',"
              " 'arguments': {'id': %s}}", id);
    finish_job(g, id);
}

/* Job "j": from the disk to "other" */
static void start_job(Guest *g, const char *command, const char *sync)
{
    dp_qmp_ok(g->vm, g->load, "{'execute': %s, 'arguments': {"
              " 'job-id': 'j', 'device': 'n0', 'target': 'other',"
              " 'sync': %s, 'auto-dismiss': false}}", command, sync);
}

/* The disk's writes go to a new image, the @i-th, from now on */
static void snapshot(Guest *g, unsigned i, const char *node, const char *top)
{
    g_autofree char *name = g_strdup_printf("snap%u.qcow2", i);
    g_autofree char *path = dp_tmp(name);

    dp_qmp_ok(g->vm, g->load, "{'execute': 'blockdev-snapshot-sync',"
              " 'arguments': {'node-name': %s, 'snapshot-file': %s,"
              " 'snapshot-node-name': %s, 'format': 'qcow2'}}",
              node, path, top);
    dp_load_run(g->load, 4 * DEPTH);
}

/*
 * Is @node refused as a target, with @other as the source?  Where the source
 * cannot follow into the target's AioContext that is what stock says first.
 */
static void assert_no_target(Guest *g, const char *other, const char *node)
{
    static const char *const commands[] = {
        "blockdev-backup", "blockdev-mirror"
    };
    const char *error = "Cannot change iothread";

    if (g->mode == &dp_mode_iothread) {
        dp_qmp_ok(g->vm, g->load, "{'execute': 'x-blockdev-set-iothread',"
                  " 'arguments': {'node-name': %s, 'iothread': 'io0'}}",
                  other);
        error = BLOCKED;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        dp_qmp_error(g->vm, g->load, error, "{'execute': %s, 'arguments': {"
                     " 'job-id': 'k', 'device': %s, 'target': %s,"
                     " 'sync': 'full'}}", commands[i], other, node);
    }
}

/* covers: M1, M10: backup of the disk */
static void test_backup(const DpMode *mode)
{
    Guest *g = guest_qcow2(mode);

    add_other(g);
    start_job(g, "blockdev-backup", "full");
    finish_job(g, "j");
    guest_finish(g);
}

/* covers: M1, M10: mirror to a new node, which takes the disk's place */
static void test_mirror(const DpMode *mode)
{
    Guest *g = guest_qcow2(mode);

    add_other(g);
    start_job(g, "blockdev-mirror", "full");
    complete_job(g, "j");
    dp_qmp_ok(g->vm, g->load, "{'execute': 'blockdev-del',"
              " 'arguments': {'node-name': 'n0'}}");

    /* The blocker moves along with the backend */
    dp_load_run(g->load, DEPTH);
    dp_qmp_ok(g->vm, g->load, "{'execute': 'blockdev-add', 'arguments': {"
              " 'driver': 'null-co', 'node-name': 'source',"
              " 'size': %d}}", IMAGE_MB * MIB);
    assert_no_target(g, "source", "other");
    guest_finish(g);
}

/* covers: M10: a mirror that is given up leaves the disk as it was */
static void test_mirror_cancel(const DpMode *mode)
{
    Guest *g = guest_qcow2(mode);

    add_other(g);
    for (unsigned i = 0; i < 3; i++) {
        start_job(g, "blockdev-mirror", "full");
        wait_job(g, "j", "ready");
        dp_qmp_ok(g->vm, g->load, "{'execute': 'block-job-cancel',"
                  " 'arguments': {'device': 'j'}}");
        finish_job(g, "j");
    }
    guest_finish(g);
}

/*
 * covers: M10: external snapshot, then stream of the old image into the new,
 * again and again
 */
static void test_snapshot_stream(const DpMode *mode)
{
    Guest *g = guest_qcow2(mode);
    const char *top = "n0";

    for (unsigned i = 0; i < 3; i++) {
        const char *node = i == 0 ? "s0" : i == 1 ? "s1" : "s2";

        snapshot(g, i, top, node);
        dp_qmp_ok(g->vm, g->load, "{'execute': 'block-stream', 'arguments': {"
                  " 'job-id': 'j', 'device': %s,"
                  " 'auto-dismiss': false}}", node);
        finish_job(g, "j");
        top = node;
    }
    guest_finish(g);
}

/* covers: M10: external snapshot, then commit of the active image */
static void test_snapshot_commit(const DpMode *mode)
{
    Guest *g = guest_qcow2(mode);

    for (unsigned i = 0; i < 3; i++) {
        snapshot(g, i, "n0", "snap");
        dp_qmp_ok(g->vm, g->load, "{'execute': 'block-commit', 'arguments': {"
                  " 'job-id': 'j', 'device': 'snap',"
                  " 'auto-dismiss': false}}");
        complete_job(g, "j");
    }
    guest_finish(g);
}

/* covers: M2, M10: internal snapshots, made and deleted */
static void test_internal_snapshot(const DpMode *mode)
{
    Guest *g = guest_drive(mode);

    for (unsigned i = 0; i < 5; i++) {
        dp_qmp_ok(g->vm, g->load,
                  "{'execute': 'blockdev-snapshot-internal-sync',"
                  " 'arguments': {'device': 'drive0', 'name': 'one'}}");
        dp_load_run(g->load, 2 * DEPTH);
        dp_qmp_ok(g->vm, g->load,
                  "{'execute': 'blockdev-snapshot-delete-internal-sync',"
                  " 'arguments': {'device': 'drive0', 'name': 'one'}}");
    }
    guest_finish(g);
}

static void set_drive(Guest *g, const char *node)
{
    dp_qmp_ok(g->vm, g->load, "{'execute': 'qom-set', 'arguments': {"
              " 'path': 'd0', 'property': 'drive', 'value': %s}}", node);
}

/* covers: M10: the node below is replaced by one on top of it, and back */
static void test_replace(const DpMode *mode)
{
    Guest *g = guest_qcow2(mode);

    for (unsigned i = 0; i < 5; i++) {
        dp_qmp_ok(g->vm, g->load, "{'execute': 'blockdev-add', 'arguments': {"
                  " 'driver': 'raw', 'node-name': 'top',"
                  " 'file': 'n0'}}");
        set_drive(g, "top");
        dp_load_run(g->load, 2 * DEPTH);
        set_drive(g, "n0");
        dp_qmp_ok(g->vm, g->load, "{'execute': 'blockdev-del',"
                  " 'arguments': {'node-name': 'top'}}");
    }
    guest_finish(g);
}

/* covers: M5: resize of a qcow2 disk, up and down */
static void test_resize(const DpMode *mode)
{
    Guest *g = guest_qcow2(mode);

    for (unsigned i = 0; i < 10; i++) {
        dp_resize(g->vm, g->load, (int64_t)(IMAGE_MB + i % 4) * MIB);
    }
    guest_finish(g);
}

/* covers: M10, D3: the node is reopened with other options */
static void test_reopen(const DpMode *mode)
{
    Guest *g = guest_qcow2(mode);

    for (unsigned i = 0; i < 10; i++) {
        dp_qmp_ok(g->vm, g->load, "{'execute': 'blockdev-reopen',"
                  " 'arguments': {'options': [{'driver': 'qcow2',"
                  " 'node-name': 'n0', 'file': 'f0',"
                  " 'lazy-refcounts': false,"
                  " 'l2-cache-size': %d}]}}", MIB << (i % 2));
    }
    guest_finish(g);
}

/* --- what stock refuses, and what the plane does ---------------------- */

/* Eject and change of a medium that is not removable: stock's errors */
static void test_refused(const DpMode *mode)
{
    static const char *const id = "/machine/peripheral/d0/virtio-backend";
    g_autofree char *path = NULL;
    Guest *g = guest_drive(mode);

    path = dp_image("medium.img", MIB);
    dp_qmp_error(g->vm, g->load, "is not removable",
                 "{'execute': 'eject', 'arguments': {'id': %s}}", id);
    dp_qmp_error(g->vm, g->load, "is not removable",
                 "{'execute': 'blockdev-remove-medium',"
                 " 'arguments': {'id': %s}}", id);
    dp_qmp_error(g->vm, g->load, "is not removable",
                 "{'execute': 'blockdev-change-medium',"
                 " 'arguments': {'id': %s, 'format': 'raw',"
                 " 'filename': %s}}", id, path);
    guest_finish(g);
}

/* covers: U1: a target that is in use by the plane is refused, by name */
static void test_blocked_target(const DpMode *mode)
{
    Guest *g = guest_qcow2(mode);

    add_other(g);
    assert_no_target(g, "other", "n0");
    guest_finish(g);
}

/* Leave job @id, which would go on for ever, undone */
static void cancel_job(Guest *g, const char *id)
{
    dp_qmp_ok(g->vm, g->load, "{'execute': 'job-cancel',"
              " 'arguments': {'id': %s}}", id);
    wait_job(g, id, "concluded");
    dismiss_job(g, id);
}

/*
 * covers: E3: a disk with share-rw=on may be a backup's target, as on QEMU's
 * own path; a mirror does not share its target with anybody
 */
static void test_shared_target(const DpMode *mode)
{
    g_autofree char *path = dp_image("disk.img", IMAGE_MB * MIB);
    Guest *g;

    if (mode == &dp_mode_private) {
        g_test_skip("the source cannot be where the target is");
        return;
    }
    g = guest_start(mode, dp_vm_start(
        "-blockdev file,node-name=n0,filename=%s "
        "-blockdev null-co,node-name=source,size=%d "
        "-device virtio-blk-pci,id=d0,drive=n0,addr=%d,share-rw=on%s",
        path, IMAGE_MB * MIB, DP_SLOT, mode->props));
    for (unsigned i = 0; i < 3; i++) {
        dp_qmp_ok(g->vm, g->load, "{'execute': 'x-blockdev-set-iothread',"
                  " 'arguments': {'node-name': 'source',"
                  " 'iothread': 'io0'}}");
        /* No one writes to the source, so nothing of the disk changes. */
        dp_qmp_ok(g->vm, g->load, "{'execute': 'blockdev-backup',"
                  " 'arguments': {"
                  " 'job-id': 'k', 'device': 'source', 'target': 'n0',"
                  " 'sync': 'none', 'auto-dismiss': false}}");
        dp_load_run(g->load, 4 * DEPTH);
        cancel_job(g, "k");
    }
    guest_finish(g);
}

/*
 * covers: E3: a disk is plugged on a node that a job uses.  It writes below the
 * job's filter, so that the job cannot end in the target, on either path.
 */
static void test_plug_on_job(const DpMode *mode)
{
    g_autofree char *path = dp_image("disk.img", IMAGE_MB * MIB);
    g_autofree char *other = dp_image("other.img", IMAGE_MB * MIB);
    g_autofree char *out = NULL;
    Guest *g;
    DpVm *vm = dp_vm_start("-blockdev file,node-name=n0,filename=%s "
                           "-blockdev file,node-name=other,filename=%s",
                           path, other);

    dp_qmp_ok(vm, NULL, "{'execute': 'blockdev-mirror', 'arguments': {"
              " 'job-id': 'j', 'device': 'n0', 'target': 'other',"
              " 'sync': 'full', 'auto-dismiss': false}}");
    out = qtest_hmp(vm->qts, "device_add virtio-blk-pci,id=d0,drive=n0,"
                    "addr=%d%s", DP_SLOT, mode->props);
    if (strstr(out, "does not support hotplugging")) {
        g_test_skip("the machine's PCI bus takes no device while it runs");
        dp_vm_quit(vm);
        return;
    }
    g_assert_cmpstr(out, ==, "");
    g = guest_start(mode, vm);
    wait_job(g, "j", "ready");
    dp_load_run(g->load, 4 * DEPTH);
    dp_qmp_ok(vm, g->load, "{'execute': 'block-job-cancel',"
              " 'arguments': {'device': 'j'}}");
    finish_job(g, "j");
    guest_finish(g);
}

/* covers: M6: drive_del takes the disk away under load; errors, no crash */
static void test_drive_del(const DpMode *mode)
{
    Guest *g = guest_drive(mode);
    g_autofree char *out = NULL;
    DpReq *req;

    dp_load_send(g->load);
    out = qtest_hmp(g->vm->qts, "drive_del drive0");
    g_assert_cmpstr(out, ==, "");
    dp_wait_all(g->disk);

    req = dp_req(g->disk, VIRTIO_BLK_T_IN, 0, 512);
    g_assert_cmpint(dp_run(g->disk, req), ==, VIRTIO_BLK_S_IOERR);
    dp_req_free(g->disk, req);
    dp_load_reset(g->load);
    dp_load_abandon(g->load);

    /* A look at the configuration, as at each start of a driver */
    g_assert_cmphex(qvirtio_config_readq(g->disk->vdev, 0), ==, 0);
    dp_disk_start(g->disk, DP_F_ALL);
    req = dp_req(g->disk, VIRTIO_BLK_T_GET_ID, 0, 20);
    g_assert_cmpint(dp_run(g->disk, req), ==, VIRTIO_BLK_S_OK);
    dp_req_free(g->disk, req);
    dp_disk_free(g->disk);
    dp_vm_quit(g->vm);
    g_free(g);
}

/*
 * Counters are read one after the other while requests go on, so that only an
 * earlier answer and a later one can be compared: none may go back, and what
 * was completed before is counted by its type afterwards.
 */
static void check_counters(const DpInfo *then, const DpInfo *now)
{
    g_assert_cmpint(now->reads, >=, then->reads);
    g_assert_cmpint(now->writes, >=, then->writes);
    g_assert_cmpint(now->completed, >=, then->completed);
    g_assert_cmpint(now->reads + now->writes, >=, then->completed);
    g_assert_cmpint(now->completed, >=, then->reads + then->writes - DEPTH);
    g_assert_cmpint(now->in_flight, >=, 0);
}

/* At rest they agree with each other, and with what the driver got back. */
static void check_counters_at_rest(Guest *g)
{
    DpInfo info;

    dp_wait_all(g->disk);
    dp_wait_in_flight(g->vm, "d0", 0);
    dp_info(g->vm, "d0", &info);
    g_assert_cmpint(info.reads, ==, g->disk->reads);
    g_assert_cmpint(info.writes, ==, g->disk->writes);
    g_assert_cmpint(info.completed, ==, info.reads + info.writes);
    g_assert_cmpint(info.errors, ==, 0);
}

/* covers: M4: statistics and block info are read under load */
static void test_queries(const DpMode *mode)
{
    Guest *g = guest_qcow2(mode);
    DpInfo then, now;

    dp_qmp_ok(g->vm, g->load, "{'execute': 'block-latency-histogram-set',"
              " 'arguments': {'id': '/machine/peripheral/d0/virtio-backend',"
              " 'boundaries': [10, 100, 1000]}}");
    dp_info(g->vm, "d0", &then);
    for (unsigned i = 0; i < 20; i++) {
        dp_qmp_ok(g->vm, g->load, "{'execute': 'query-block'}");
        dp_qmp_ok(g->vm, g->load, "{'execute': 'query-blockstats'}");
        dp_qmp_ok(g->vm, g->load, "{'execute': 'query-iothreads'}");
        dp_load_send(g->load);
        dp_info(g->vm, "d0", &now);
        check_counters(&then, &now);
        then = now;
    }
    check_counters_at_rest(g);
    guest_finish(g);
}

/* covers: D3, M10: the operations run into pause, cont and reset */
static void test_job_across_reset(const DpMode *mode)
{
    Guest *g = guest_qcow2(mode);

    add_other(g);
    start_job(g, "blockdev-mirror", "full");
    for (unsigned i = 0; i < 5; i++) {
        dp_load_send(g->load);
        dp_stop(g->vm);
        dp_cont(g->vm);
        dp_load_run(g->load, DEPTH);
        dp_load_send(g->load);
        dp_disk_reset(g->disk);
        dp_load_reset(g->load);
        dp_disk_start(g->disk, DP_F_ALL);
        dp_load_run(g->load, DEPTH);
    }
    complete_job(g, "j");
    guest_finish(g);
}

/*
 * covers: E10, E21, M8: a mirror ends while the driver resets the disk, at
 * whatever moment: what it still has to do in the main loop comes before the
 * nodes move, or not at all
 */
static void test_mirror_ends_in_reset(const DpMode *mode)
{
    Guest *g = guest_qcow2(mode);

    add_other(g);
    for (unsigned i = 0; i < 40; i++) {
        start_job(g, "blockdev-mirror", "none");
        wait_job(g, "j", "ready");
        dp_load_send(g->load);
        dp_qmp_ok(g->vm, NULL, "{'execute': 'block-job-cancel',"
                  " 'arguments': {'device': 'j', 'force': %i}}", i % 2);
        dp_disk_reset(g->disk);
        dp_load_reset(g->load);
        dp_disk_start(g->disk, DP_F_ALL);
        wait_job(g, "j", "concluded");
        dismiss_job(g, "j");
    }
    guest_finish(g);
}

static void test_skip(void)
{
    g_test_skip("needs qemu-img, named by QTEST_QEMU_IMG");
}

int main(int argc, char **argv)
{
    static const DpTest tests[] = {
        { "backup", .own_vm = test_backup },
        { "mirror", .own_vm = test_mirror },
        { "mirror-cancel", .own_vm = test_mirror_cancel },
        { "snapshot-stream", .own_vm = test_snapshot_stream },
        { "snapshot-commit", .own_vm = test_snapshot_commit },
        { "internal-snapshot", .own_vm = test_internal_snapshot },
        { "replace", .own_vm = test_replace },
        { "resize", .own_vm = test_resize },
        { "reopen", .own_vm = test_reopen },
        { "refused", .own_vm = test_refused },
        { "blocked-target", .own_vm = test_blocked_target },
        { "shared-target", .own_vm = test_shared_target },
        { "plug-on-job", .own_vm = test_plug_on_job },
        { "drive-del", .own_vm = test_drive_del },
        { "queries", .own_vm = test_queries },
        { "job-across-reset", .own_vm = test_job_across_reset },
    };
    static const DpTest any_path[] = {
        { "mirror-ends-in-reset", .own_vm = test_mirror_ends_in_reset },
    };

    g_test_init(&argc, &argv, NULL);
    if (!have_qemu_img()) {
        qtest_add_func("/virtio-blk-dataplane/manage", test_skip);
        return g_test_run();
    }
    dp_add_table("manage", tests, ARRAY_SIZE(tests), true);
    dp_add_table("manage", any_path, ARRAY_SIZE(any_path), false);
    return g_test_run();
}
