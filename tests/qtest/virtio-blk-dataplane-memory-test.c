/*
 * The data plane and guest memory: dirty logging, plug and unplug
 *
 * A migration is kept from its end until all memory has been sent.  Then the
 * device alone writes to some pages.  If one of them is not marked dirty, the
 * destination has its old content.
 *
 * A DIMM is plugged and unplugged through the i440FX machine's registers, as
 * the guest's ACPI code does it, while the plane runs.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/module.h"
#include "qobject/qdict.h"
#include "virtio-blk-dataplane-common.h"

#define IMAGE_SIZE (4 * 1024 * 1024)
#define PAGE 4096
#define DATA_BYTES (3 * PAGE)
/* Half a second of the migration's bandwidth, so that it cannot converge */
#define SCRATCH_BYTES (512 * PAGE)
#define BANDWIDTH (2 * SCRATCH_BYTES)
#define SEED 7

typedef struct Migration {
    DpVm *from;
    DpVm *to;
    uint64_t scratch;       /* memory that keeps the migration busy */
} Migration;

static char *migration_status(Migration *m, int64_t *rounds)
{
    QDict *rsp = dp_qmp(m->from, NULL, "{'execute': 'query-migrate'}");
    QDict *ret = qdict_get_qdict(rsp, "return");
    QDict *ram = qdict_get_qdict(ret, "ram");
    const char *status = qdict_get_try_str(ret, "status");
    char *copy = g_strdup(status ? status : "none");

    *rounds = ram ? qdict_get_int(ram, "dirty-sync-count") : 0;
    qobject_unref(rsp);
    return copy;
}

/* Dirties memory until two more rounds were sent, so that all was sent once */
static void migration_send_all(Migration *m)
{
    gint64 deadline = dp_deadline();
    int64_t first = -1, rounds;

    do {
        g_autofree char *status = migration_status(m, &rounds);

        g_assert_cmpstr(status, !=, "failed");
        g_assert_cmpstr(status, !=, "completed");
        if (first < 0 && g_str_equal(status, "active")) {
            first = rounds;
        }
        qtest_memset(m->from->qts, m->scratch, 1 + (rounds & 1),
                     SCRATCH_BYTES);
        dp_check_deadline(deadline, "another round of the migration");
    } while (first < 0 || rounds < first + 3);
}

static void migration_begin(Migration *m, const char *uri)
{
    /* Converges only when next to nothing is dirty */
    dp_qmp_ok(m->from, NULL, "{'execute': 'migrate-set-parameters',"
              " 'arguments': { 'downtime-limit': 1, 'max-bandwidth': %d,"
              " 'avail-switchover-bandwidth': 1048576 }}", BANDWIDTH);
    m->scratch = guest_alloc(&m->from->alloc, SCRATCH_BYTES);
    qtest_memset(m->from->qts, m->scratch, 1, SCRATCH_BYTES);
    dp_qmp_ok(m->from, NULL, "{'execute': 'migrate',"
              " 'arguments': { 'uri': %s }}", uri);
    migration_send_all(m);
}

static void migration_end(Migration *m)
{
    gint64 deadline = dp_deadline();

    for (;;) {
        int64_t rounds;
        g_autofree char *status = migration_status(m, &rounds);

        g_assert_cmpstr(status, !=, "failed");
        if (g_str_equal(status, "completed")) {
            return;
        }
        dp_check_deadline(deadline, "the end of the migration");
    }
}

/* The used ring gets pages of its own: the device alone writes there */
static DpDisk *disk_with_lone_used_ring(DpVm *vm)
{
    DpDisk *disk = dp_disk_probe(vm, "d0", DP_SLOT);
    uint64_t ring;

    dp_disk_init(disk, DP_F_ALL);
    ring = guest_alloc(&vm->alloc, 16 * PAGE);
    qtest_memset(vm->qts, ring, 0, 16 * PAGE);
    dp_disk_place_ring(disk, ring, ring + 6 * PAGE, ring + 8 * PAGE);
    qvirtio_set_driver_ok(disk->vdev);
    return disk;
}

static void compare_bytes(Migration *m, uint64_t addr, size_t size)
{
    g_autofree uint8_t *here = g_malloc(size);
    g_autofree uint8_t *there = g_malloc(size);

    qtest_memread(m->from->qts, addr, here, size);
    qtest_memread(m->to->qts, addr, there, size);
    g_assert_cmpmem(here, size, there, size);
}

/* covers: M9: data, status and used ring are marked dirty */
static void test_dirty(const DpMode *mode)
{
    g_autofree char *path = dp_tmp("socket");
    g_autofree char *uri = g_strdup_printf("unix:%s", path);
    g_autofree char *incoming = g_strdup_printf(",id=d0,addr=%d%s", DP_SLOT,
                                                mode->props);
    g_autofree char *image = dp_image("disk.img", IMAGE_SIZE);
    Migration m = { };
    DpDisk *disk;
    DpReq *req;

    m.from = dp_vm_start("-blockdev file,node-name=f0,filename=%s "
                         "-blockdev raw,node-name=n0,file=f0 "
                         "-device virtio-blk-pci,drive=n0%s", image, incoming);
    m.to = dp_vm_start("-blockdev file,node-name=f0,filename=%s "
                       "-blockdev raw,node-name=n0,file=f0 "
                       "-device virtio-blk-pci,drive=n0%s -incoming %s",
                       image, incoming, uri);
    disk = disk_with_lone_used_ring(m.from);

    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, 8, DATA_BYTES, SEED), ==,
                    VIRTIO_BLK_S_OK);
    req = dp_req(disk, VIRTIO_BLK_T_IN, 8, DATA_BYTES);
    dp_submit(disk, req);
    migration_begin(&m, uri);

    dp_kick(disk);
    dp_wait(disk, req);
    g_assert_cmpint(req->status, ==, VIRTIO_BLK_S_OK);
    g_assert_true(dp_req_matches(disk, req, SEED));
    dp_assert_mode(m.from, mode);
    migration_end(&m);

    compare_bytes(&m, req->data, DATA_BYTES);
    compare_bytes(&m, req->status_addr, 1);
    compare_bytes(&m, disk->vq->used, 4 + 8 * 4);

    dp_req_free(disk, req);
    dp_disk_free(disk);
    dp_vm_quit(m.to);
    dp_vm_quit(m.from);
}

/* A DIMM */

#define DIMM_BYTES (128 * 1024 * 1024)
#define DIMM_ADDR 0x100000000ull

/* The memory hot plug registers of the i440FX machine */
#define MEMHP_SELECT 0xa00
#define MEMHP_CONTROL 0xa14
#define MEMHP_CONTROL_EJECT 8

static DpVm *vm_with_slots(const DpMode *mode)
{
    return dp_vm_start("-m 64,slots=2,maxmem=1G "
                       "-blockdev null-co,node-name=n0,size=67108864,"
                       "read-zeroes=on "
                       "-device virtio-blk-pci,id=d0,drive=n0,addr=%d%s",
                       DP_SLOT, mode->props);
}

static void plug_dimm(DpVm *vm, const char *id)
{
    g_autofree char *backend = g_strdup_printf("%s-ram", id);

    dp_qmp_ok(vm, NULL, "{'execute': 'object-add', 'arguments': {"
              " 'qom-type': 'memory-backend-ram', 'id': %s,"
              " 'size': %d }}", backend, DIMM_BYTES);
    dp_qmp_ok(vm, NULL, "{'execute': 'device_add', 'arguments': {"
              " 'driver': 'pc-dimm', 'id': %s, 'memdev': %s }}", id, backend);
}

static void unplug_dimm(DpVm *vm, const char *id)
{
    g_autofree char *backend = g_strdup_printf("%s-ram", id);

    dp_qmp_ok(vm, NULL, "{'execute': 'device_del', 'arguments': {"
              " 'id': %s }}", id);
    qtest_outl(vm->qts, MEMHP_SELECT, 0);
    qtest_outb(vm->qts, MEMHP_CONTROL, MEMHP_CONTROL_EJECT);
    qtest_qmp_eventwait(vm->qts, "DEVICE_DELETED");
    dp_qmp_ok(vm, NULL, "{'execute': 'object-del', 'arguments': {"
              " 'id': %s }}", backend);
}

static unsigned count_ram_blocks(DpVm *vm)
{
    g_autofree char *list = qtest_hmp(vm->qts, "info ramblock");
    unsigned n = 0;

    for (const char *p = list; (p = strchr(p, '\n')); p++) {
        n++;
    }
    return n;
}

/* A backend's memory goes after RCU, with the last reference to it */
static void wait_for_ram_blocks(DpVm *vm, unsigned n)
{
    gint64 deadline = dp_deadline();

    while (count_ram_blocks(vm) > n) {
        dp_check_deadline(deadline, "an unplugged DIMM's memory to be freed");
    }
}

/* Reads into @addr; the disk reads as zeroes */
static uint8_t read_to(DpDisk *disk, DpReq *req, uint64_t addr)
{
    req->data = addr;
    return dp_run(disk, req);
}

/* covers: G11: memory that comes is used, memory that went is refused */
static void test_dimm(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    unsigned blocks = count_ram_blocks(vm);

    for (unsigned i = 0; i < 5; i++) {
        DpReq *req = dp_req(disk, VIRTIO_BLK_T_IN, 0, DATA_BYTES);
        uint64_t own = req->data;

        plug_dimm(vm, "dimm0");
        qtest_memset(vm->qts, DIMM_ADDR, 0xa5, DATA_BYTES);
        g_assert_cmpint(read_to(disk, req, DIMM_ADDR), ==, VIRTIO_BLK_S_OK);
        g_assert_true(dp_req_is_byte(disk, req, 0));
        unplug_dimm(vm, "dimm0");
        /* An idle plane lets go of it, too */
        wait_for_ram_blocks(vm, blocks);
        dp_assert_as_asked(disk);

        dp_submit(disk, req);
        dp_kick(disk);
        dp_assert_broken(disk);
        req->data = own;
        dp_disk_start(disk, DP_F_ALL);
        dp_req_free(disk, req);
    }
}

/* covers: G11: a request outlives the DIMM that it writes to */
static void test_dimm_in_flight(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_IN, 0, DATA_BYTES);
    unsigned blocks = count_ram_blocks(vm);
    uint64_t own = req->data;

    plug_dimm(vm, "dimm0");
    dp_hold(disk);
    req->data = DIMM_ADDR;
    dp_submit(disk, req);
    dp_kick(disk);
    dp_wait_in_flight(vm, "d0", 1);
    unplug_dimm(vm, "dimm0");

    /* When this one has gone, the other would have, without a reference */
    plug_dimm(vm, "dimm1");
    unplug_dimm(vm, "dimm1");
    wait_for_ram_blocks(vm, blocks + 1);
    g_assert_cmpint(count_ram_blocks(vm), ==, blocks + 1);

    dp_release(disk);
    dp_wait(disk, req);
    g_assert_cmpint(req->status, ==, VIRTIO_BLK_S_OK);
    dp_assert_as_asked(disk);
    wait_for_ram_blocks(vm, blocks);

    req->data = own;
    dp_req_free(disk, req);
}

/* covers: G11, ROBS-22: the DIMM that holds the ring goes away */
static void test_dimm_ring(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    unsigned blocks = count_ram_blocks(vm);
    DpReq *req;

    plug_dimm(vm, "dimm0");
    dp_disk_init(disk, DP_F_ALL);
    qtest_memset(vm->qts, DIMM_ADDR, 0, 16 * PAGE);
    dp_disk_place_ring(disk, DIMM_ADDR, DIMM_ADDR + 6 * PAGE,
                       DIMM_ADDR + 8 * PAGE);
    qvirtio_set_driver_ok(disk->vdev);
    req = dp_req(disk, VIRTIO_BLK_T_IN, 0, DATA_BYTES);
    g_assert_cmpint(dp_run(disk, req), ==, VIRTIO_BLK_S_OK);

    unplug_dimm(vm, "dimm0");
    wait_for_ram_blocks(vm, blocks);
    dp_kick_always(disk);
    dp_assert_broken(disk);

    dp_disk_new_ring(disk);
    dp_disk_start(disk, DP_F_ALL);
    g_assert_cmpint(dp_run(disk, req), ==, VIRTIO_BLK_S_OK);
    dp_req_free(disk, req);
}

int main(int argc, char **argv)
{
    static const DpTest any_path[] = {
        { "dirty", .own_vm = test_dirty, .rings = DP_SPLIT_RING },
    };
    static const DpTest plane[] = {
        { "dimm", test_dimm, DP_SPLIT_RING, .vm = vm_with_slots },
        { "dimm-in-flight", test_dimm_in_flight, DP_SPLIT_RING,
          .vm = vm_with_slots },
        { "dimm-ring", test_dimm_ring, DP_SPLIT_RING, .vm = vm_with_slots,
          .idle = true },
    };

    g_test_init(&argc, &argv, NULL);
    dp_add_table("memory", any_path, ARRAY_SIZE(any_path), false);
    dp_add_table("memory", plane, ARRAY_SIZE(plane), true);
    return g_test_run();
}
