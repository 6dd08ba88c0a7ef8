/*
 * Fixed buffers of io_uring: guest memory that the kernel keeps pinned
 *
 * Which requests use them, what does not go together with them, and what
 * becomes of memory that comes and goes.  block/io_uring-buffers.c is tested in
 * tests/unit/test-io-uring-buffers.c.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/vfs.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include "qapi/error.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "virtio-blk-dataplane-common.h"

#define BYTES 4096
#define FIXED ",x-fixed-buffers=on"
/* What is merged has several vectors. */
#define UNMERGED FIXED ",request-merging=off"

/* Of all queues */
static int64_t count(DpVm *vm, const char *counter)
{
    QDict *rsp = qtest_qmp(vm->qts, "{'execute': 'qom-get', 'arguments': {"
                           " 'property': 'x-data-plane-info',"
                           " 'path': '/machine/peripheral/d0/virtio-backend'"
                           " }}");
    QList *queues = qdict_get_qlist(qdict_get_qdict(rsp, "return"), "queues");
    const QListEntry *entry;
    int64_t n = 0;

    QLIST_FOREACH_ENTRY(queues, entry) {
        n += qdict_get_int(qobject_to(QDict, qlist_entry_obj(entry)), counter);
    }
    qobject_unref(rsp);
    return n;
}

static int64_t count_fixed(DpVm *vm)
{
    return count(vm, "fixed-buffers");
}

/* The machine has room for a DIMM. */
static DpVm *vm_opts(const DpMode *mode, const char *machine, const char *node,
                     const char *props)
{
    g_autofree char *path = dp_image("disk.img", DP_IMAGE_SIZE);
    DpVm *vm = dp_vm_start("%s -blockdev file,node-name=n0,filename=%s,"
                           "aio=io_uring%s "
                           "-device virtio-blk-pci,id=d0,drive=n0,addr=%d%s%s",
                           machine, path, node, DP_SLOT, mode->props, props);

    vm->mode = mode;
    return vm;
}

#define DIMM_MACHINE "-m 64,slots=2,maxmem=1G"

static DpVm *vm_direct(const DpMode *mode)
{
    return vm_opts(mode, DIMM_MACHINE, ",cache.direct=on", UNMERGED);
}

static DpVm *vm_cached(const DpMode *mode)
{
    return vm_opts(mode, DIMM_MACHINE, "", UNMERGED);
}

static DpVm *vm_off(const DpMode *mode)
{
    return vm_opts(mode, DIMM_MACHINE, "", "");
}

/* Requests */

static void load(DpDisk *disk, unsigned ops)
{
    DpLoad *load = dp_load_new(disk, 64, 0);

    dp_load_run(load, ops);
    dp_load_finish(load);
}

static void test_verified(DpDisk *disk)
{
    load(disk, 2000);
    g_assert_cmpint(count_fixed(disk->vm), >=, 1000);
    g_assert_cmpint(count_fixed(disk->vm), <=, count(disk->vm, "direct"));
    dp_stop(disk->vm);
    dp_cont(disk->vm);
    dp_disk_reset(disk);
    dp_disk_start(disk, DP_F_ALL);
    load(disk, 200);
}

static void test_off(DpDisk *disk)
{
    load(disk, 200);
    g_assert_cmpint(count_fixed(disk->vm), ==, 0);
}

/* Each request with a single vector, and no other */
static void test_counted(DpDisk *disk)
{
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_OUT, 8, 2 * BYTES);

    g_assert_cmpint(dp_run(disk, req), ==, VIRTIO_BLK_S_OK);
    dp_req_free(disk, req);
    g_assert_cmpint(count_fixed(disk->vm), ==, 1);

    req = dp_req(disk, VIRTIO_BLK_T_OUT, 8, 2 * BYTES);
    req->framing = DP_INDIRECT;
    req->pieces = 2;
    g_assert_cmpint(dp_run(disk, req), ==, VIRTIO_BLK_S_OK);
    dp_req_free(disk, req);
    g_assert_cmpint(count_fixed(disk->vm), ==, 1);
}

/* Memory */

#define DIMM_BYTES (128 * 1024 * 1024)
#define DIMM_ADDR 0x100000000ull

/* The memory hot plug registers of the i440FX machine */
#define MEMHP_SELECT 0xa00
#define MEMHP_CONTROL 0xa14
#define MEMHP_CONTROL_EJECT 8

static void plug_dimm(DpVm *vm, DpLoad *load)
{
    dp_qmp_ok(vm, load, "{'execute': 'object-add', 'arguments': {"
              " 'qom-type': 'memory-backend-ram', 'id': 'ram',"
              " 'size': %d }}", DIMM_BYTES);
    dp_qmp_ok(vm, load, "{'execute': 'device_add', 'arguments': {"
              " 'driver': 'pc-dimm', 'id': 'dimm', 'memdev': 'ram' }}");
}

static void unplug_dimm(DpVm *vm, DpLoad *load)
{
    dp_qmp_ok(vm, load, "{'execute': 'device_del', 'arguments': {"
              " 'id': 'dimm' }}");
    qtest_outl(vm->qts, MEMHP_SELECT, 0);
    qtest_outb(vm->qts, MEMHP_CONTROL, MEMHP_CONTROL_EJECT);
    qtest_qmp_eventwait(vm->qts, "DEVICE_DELETED");
    dp_qmp_ok(vm, load, "{'execute': 'object-del', 'arguments': {"
              " 'id': 'ram' }}");
}

/* What the process has pinned, in KiB */
static unsigned long pinned(DpVm *vm)
{
    return dp_vm_status_kib(vm, "VmPin:");
}

static void wait_for_pinned(DpVm *vm, unsigned long most)
{
    gint64 deadline = dp_deadline();

    while (pinned(vm) > most) {
        dp_check_deadline(deadline, "memory to be unpinned");
        g_usleep(1000);
    }
}

/*
 * Requests go on while a DIMM comes, is used, and goes.  Each one has other
 * pages, mostly at the same address of the process.
 */
static void test_dimm(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    DpLoad *load = dp_load_new(disk, 16, 64);
    unsigned long before = pinned(vm);

    g_assert_cmpuint(before, >=, 64 * 1024);
    for (unsigned i = 0; i < 5; i++) {
        int64_t fixed;

        plug_dimm(vm, load);
        g_assert_cmpuint(pinned(vm), >=, before + DIMM_BYTES / 1024);
        dp_load_run(load, 100);
        for (unsigned j = 0; j < 2; j++) {
            DpReq *one = dp_req(disk, j ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT,
                                8, BYTES);
            uint64_t data = one->data;

            one->data = DIMM_ADDR + i * BYTES;
            dp_req_fill(disk, one, j ? 1000 : i);
            fixed = count_fixed(vm);
            dp_load_send(load);
            g_assert_cmpint(dp_run(disk, one), ==, VIRTIO_BLK_S_OK);
            g_assert_true(dp_req_matches(disk, one, i));
            g_assert_cmpint(count_fixed(vm), >, fixed);
            one->data = data;
            dp_req_free(disk, one);
        }
        dp_load_run(load, 100);
        unplug_dimm(vm, load);
        wait_for_pinned(vm, before);
    }
    dp_load_finish(load);
}

/* The DIMM goes while a request is in flight there. */
static void test_dimm_in_flight(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_IN, 8, BYTES);
    uint64_t own = req->data;
    unsigned long before = pinned(vm);

    plug_dimm(vm, NULL);
    dp_hold(disk);
    req->data = DIMM_ADDR;
    dp_submit(disk, req);
    dp_kick(disk);
    dp_wait_in_flight(vm, "d0", 1);
    unplug_dimm(vm, NULL);
    dp_release(disk);
    dp_wait(disk, req);
    g_assert_cmpint(req->status, ==, VIRTIO_BLK_S_OK);
    wait_for_pinned(vm, before);
    req->data = own;
    dp_req_free(disk, req);
}

/* The last disk that wants it, or the only one, is unplugged. */
static void test_unplug(DpDisk *disk)
{
    DpVm *vm = disk->vm;

    load(disk, 200);
    g_assert_cmpuint(pinned(vm), >=, 64 * 1024);
    dp_unplug(vm);
    wait_for_pinned(vm, 0);
    dp_qmp_ok(vm, NULL, "{'execute': 'migrate-set-capabilities',"
              " 'arguments': { 'capabilities': [ {"
              " 'capability': 'postcopy-ram', 'state': true } ] }}");
}

/* What does not go together, in either order */

/* An image without contents, and the machine */
#define MEMORY "-m 64,slots=2,maxmem=1G "
#define DISK "-device virtio-blk-pci,id=d0,drive=n0,iothread=io0" FIXED
#define VIRTIO_MEM "-object memory-backend-ram,id=m1,size=128M " \
                   "-device virtio-mem-pci,memdev=m1"

typedef struct {
    const char *name;
    const char *args;           /* before the disk, or instead of it */
    const char *add;            /* what is then refused ... */
    const char *message;        /* ... with this */
} Conflict;

#define ADD_DISK "{'execute': 'device_add', 'arguments': {" \
    " 'driver': 'virtio-blk-pci', 'id': 'd0', 'drive': 'n0'," \
    " 'x-fixed-buffers': true"
#define ADD_ON_IOTHREAD ADD_DISK ", 'iothread': 'io0' }}"
#define ADD_MEM "{'execute': 'device_add', 'arguments': {" \
    " 'driver': 'virtio-mem-pci', 'memdev': 'm1' }}"
#define SET(capability) "{'execute': 'migrate-set-capabilities'," \
    " 'arguments': { 'capabilities': [ {" \
    " 'capability': '" capability "', 'state': true } ] }}"

static const Conflict conflicts[] = {
    { "virtio-mem-then-disk", MEMORY VIRTIO_MEM, ADD_ON_IOTHREAD,
      "x-fixed-buffers=on conflicts with a device that gives guest memory back "
      "to the host, such as virtio-mem; do without one of them" },
    { "disk-then-virtio-mem",
      MEMORY DISK " -object memory-backend-ram,id=m1,size=128M", ADD_MEM,
      "Discarding RAM is disabled" },
    { "postcopy-then-disk", "-global migration.x-postcopy-ram=on",
      ADD_ON_IOTHREAD, "capability 'postcopy-ram' conflicts with" },
    { "disk-then-postcopy", DISK, SET("postcopy-ram"),
      "capability 'postcopy-ram' conflicts with x-fixed-buffers=on" },
    { "disk-then-incoming-postcopy", DISK " -incoming defer",
      SET("postcopy-ram"),
      "capability 'postcopy-ram' conflicts with x-fixed-buffers=on" },
    { "snapshot-then-disk", "-global migration.x-background-snapshot=on",
      ADD_ON_IOTHREAD, "capability 'background-snapshot' conflicts with" },
    { "disk-then-snapshot", DISK, SET("background-snapshot"),
      "capability 'background-snapshot' conflicts with x-fixed-buffers=on" },
    { "no-iothread", "", ADD_DISK " }}",
      "x-fixed-buffers=on needs a data plane; set iothread" },
    { "plane-off", "", ADD_DISK ", 'iothread': 'io0', 'x-data-plane': 'off' }}",
      "needs a data plane; set iothread or iothread-vq-mapping, without "
      "x-data-plane=off" },
    { "not-direct", "", ADD_DISK ", 'iothread': 'io0', 'x-direct': false }}",
      "x-fixed-buffers=on needs x-direct=on" },
};

static QDict *run_command(DpVm *vm, const char *json)
{
    QObject *command = qobject_from_json(json, &error_abort);
    QDict *dict = qobject_to(QDict, command);
    QDict *rsp = qtest_qmp(vm->qts, "{'execute': %s, 'arguments': %p}",
                           qdict_get_str(dict, "execute"),
                           qobject_ref(qdict_get(dict, "arguments")));

    qobject_unref(command);
    return rsp;
}

static void assert_refused(DpVm *vm, const char *command, const char *message)
{
    QDict *rsp = run_command(vm, command);

    g_assert_true(qdict_haskey(rsp, "error"));
    g_assert_nonnull(strstr(qdict_get_str(qdict_get_qdict(rsp, "error"),
                                          "desc"), message));
    qobject_unref(rsp);
}

/* What is refused leaves nothing behind. */
static void test_conflict(gconstpointer data)
{
    const Conflict *c = data;
    DpVm *vm = dp_vm_start("-blockdev null-co,node-name=n0,size=67108864 %s",
                           c->args);
    unsigned long before = pinned(vm);

    for (unsigned i = 0; i < 2; i++) {
        assert_refused(vm, c->add, c->message);
        g_assert_cmpuint(pinned(vm), ==, before);
    }
    dp_vm_quit(vm);
}

/* A balloon has no effect, whichever is first; nobody is refused. */
static void test_balloon(gconstpointer data)
{
    DpVm *vm = dp_vm_start("-blockdev null-co,node-name=n0,size=67108864 "
                           "%s %s %s", data ? DISK : "",
                           "-device virtio-balloon-pci,free-page-reporting=on",
                           data ? "" : DISK);

    dp_qmp_ok(vm, NULL, "{'execute': 'query-balloon'}");
    dp_vm_quit(vm);
}

/* Each IOThread pins it. */
static void test_iothreads(void)
{
    DpVm *vm = dp_vm_start("-blockdev null-co,node-name=n0,size=67108864 "
                           "-m 64");
    QDict *rsp = run_command(vm, ADD_DISK ", 'num-queues': 2,"
                             " 'iothread-vq-mapping': [ {'iothread': 'io0'},"
                             " {'iothread': 'io1'} ] }}");

    g_assert_true(qdict_haskey(rsp, "return"));
    g_assert_cmpuint(pinned(vm), >=, 2 * 64 * 1024);
    qobject_unref(rsp);
    dp_vm_quit(vm);
}

/* Memory that cannot be pinned */

static bool is_on_disk(const char *path)
{
    struct statfs fs;

    g_assert_cmpint(statfs(path, &fs), ==, 0);
    return fs.f_type != TMPFS_MAGIC && fs.f_type != HUGETLBFS_MAGIC;
}

static void test_memory_on_disk(void)
{
    g_autofree char *path = dp_image("ram.img", 64 * 1024 * 1024);
    DpVm *vm;

    if (!is_on_disk(path)) {
        g_test_skip("the private directory is not on a disk");
        dp_tmp_cleanup();
        return;
    }
    vm = dp_vm_start("-blockdev null-co,node-name=n0,size=67108864 -m 64 "
                     "-object memory-backend-file,id=m0,size=64M,share=on,"
                     "mem-path=%s -machine memory-backend=m0", path);
    assert_refused(vm, ADD_ON_IOTHREAD, "io_uring cannot pin memory 'm0': ");
    assert_refused(vm, ADD_ON_IOTHREAD, "it may be a file that cannot be "
                   "pinned; use anonymous memory, memory-backend-memfd");
    g_assert_cmpuint(pinned(vm), ==, 0);
    dp_vm_quit(vm);
}

/* In a process of its own: what it gives up does not come back. */
static void test_memlock_child(void)
{
    struct rlimit limit = { 1024 * 1024, 1024 * 1024 };
    DpVm *vm;

    if (prctl(PR_CAPBSET_DROP, CAP_IPC_LOCK) < 0 && errno != EPERM) {
        g_assert_not_reached();
    }
    g_assert_cmpint(setrlimit(RLIMIT_MEMLOCK, &limit), ==, 0);
    vm = dp_vm_start("-blockdev null-co,node-name=n0,size=67108864 -m 64");
    assert_refused(vm, ADD_ON_IOTHREAD, "Cannot allocate memory; raise the "
                   "limit of locked memory (ulimit -l)");
    g_assert_cmpuint(pinned(vm), ==, 0);
    /* Without it the disk works. */
    dp_qmp_ok(vm, NULL, "{'execute': 'device_add', 'arguments': {"
              " 'driver': 'virtio-blk-pci', 'id': 'd0', 'drive': 'n0',"
              " 'iothread': 'io0' }}");
    dp_vm_quit(vm);
}

static void test_memlock(void)
{
    if (g_test_subprocess()) {
        test_memlock_child();
        return;
    }
    g_test_trap_subprocess(NULL, 0, G_TEST_SUBPROCESS_INHERIT_STDERR);
    g_test_trap_assert_passed();
}

static bool can_fix(void)
{
    DpVm *vm;
    QDict *rsp;
    bool can;

    if (!dp_can_io_uring()) {
        return false;
    }
    vm = dp_vm_start("-blockdev null-co,node-name=n0,size=67108864 -m 64");
    rsp = run_command(vm, ADD_ON_IOTHREAD);
    can = !qdict_haskey(rsp, "error");
    qobject_unref(rsp);
    dp_vm_quit(vm);
    return can;
}

static void test_none(void)
{
    g_test_skip("the host does not allow fixed buffers of io_uring");
}

int main(int argc, char **argv)
{
    static const DpTest direct[] = {
        { "verified", test_verified, .vm = vm_direct },
        { "counted", test_counted, .vm = vm_direct },
        { "dimm", test_dimm, .vm = vm_direct },
        { "dimm-in-flight", test_dimm_in_flight, .vm = vm_direct },
        { "unplug", test_unplug, .vm = vm_direct, .ends_unserved = true },
    };
    static const DpTest cached[] = {
        { "cached", test_verified, .vm = vm_cached },
        { "off", test_off, .vm = vm_off },
    };

    g_test_init(&argc, &argv, NULL);
    if (!can_fix()) {
        qtest_add_func("/virtio-blk-dataplane/fixed/none", test_none);
        return g_test_run();
    }
    dp_add_table("fixed", cached, ARRAY_SIZE(cached), true);
    if (dp_can_open_direct()) {
        dp_add_table("fixed", direct, ARRAY_SIZE(direct), true);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(conflicts); i++) {
        g_autofree char *path =
            g_strdup_printf("/virtio-blk-dataplane/fixed/conflict/%s",
                            conflicts[i].name);

        qtest_add_data_func(path, &conflicts[i], test_conflict);
    }
    qtest_add_data_func("/virtio-blk-dataplane/fixed/balloon-then-disk", NULL,
                        test_balloon);
    qtest_add_data_func("/virtio-blk-dataplane/fixed/disk-then-balloon", "",
                        test_balloon);
    qtest_add_func("/virtio-blk-dataplane/fixed/iothreads", test_iothreads);
    qtest_add_func("/virtio-blk-dataplane/fixed/memory-on-disk",
                   test_memory_on_disk);
    qtest_add_func("/virtio-blk-dataplane/fixed/memlock", test_memlock);
    return g_test_run();
}
