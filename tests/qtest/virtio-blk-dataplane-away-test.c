/*
 * Times in which a disk may not work, and what comes in them
 *
 * A drained section of another node, bus mastering that is off, a ring whose
 * memory is away.  Kicks, completions and resets come meanwhile: no request may
 * get lost, and none of before a reset may be carried out after it.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/timer.h"
#include "qobject/qdict.h"
#include "virtio-blk-dataplane-common.h"
#include "virtio-blk-dataplane-regs.h"

#define MIB (1024 * 1024)
#define OK VIRTIO_BLK_S_OK
#define HELD 6
#define PAGE 4096

/* Requests that stay in flight until dp_release() */
static void send_held(DpDisk *disk, DpReq **req, bool plane)
{
    dp_hold(disk);
    for (unsigned i = 0; i < HELD; i++) {
        req[i] = dp_req(disk, VIRTIO_BLK_T_IN, 100 * i, 1024);
        dp_submit(disk, req[i]);
    }
    dp_kick(disk);
    if (plane) {
        dp_wait_in_flight(disk->vm, disk->id, HELD);
    }
}

static void free_held(DpDisk *disk, DpReq **req)
{
    for (unsigned i = 0; i < HELD; i++) {
        dp_req_free(disk, req[i]);
    }
}

static void assert_stopped(DpVm *vm)
{
    DpInfo info;

    dp_info(vm, "d0", &info);
    g_assert_cmpstr(info.state, ==, "stopped");
}

/* A reset ends what was done to the disk: it works again */
static void assert_recovers(DpDisk *disk)
{
    dp_disk_reset(disk);
    dp_disk_start(disk, DP_F_ALL);
    dp_assert_works(disk);
}

/* --- bus mastering --------------------------------------------------- */

/* covers: E7: what completes leaves no trace, and a kick starts nothing */
static void complete_without_bus_master(DpDisk *disk, bool plane)
{
    g_autofree uint8_t *before = g_malloc(disk->ring_size);
    g_autofree uint8_t *after = g_malloc(disk->ring_size);
    QTestState *qts = disk->vm->qts;

    qtest_memread(qts, disk->ring, before, disk->ring_size);
    dp_set_bus_master(disk, false);
    dp_release(disk);
    for (unsigned i = 0; i < 2; i++) {
        assert_stopped(disk->vm);
        dp_kick_always(disk);
    }
    qtest_memread(qts, disk->ring, after, disk->ring_size);
    /* QEMU's own path does not tell when it has taken the requests */
    if (plane) {
        g_assert_cmpmem(before, disk->ring_size, after, disk->ring_size);
    }
    g_assert_false(dp_status(disk) & VIRTIO_CONFIG_S_NEEDS_RESET);
}

/* In order, the driver gets what was in flight together with the next one */
static void assert_held_returned(DpDisk *disk, DpReq **req)
{
    for (unsigned i = 0; i < HELD; i++) {
        dp_poll(disk, req[i]);
        g_assert_cmpint(req[i]->status, ==, OK);
    }
}

/*
 * covers: E7: the queue serves new requests; those in flight are lost, unless
 * the driver waits for them first
 */
static void test_bus_master(DpDisk *disk)
{
    const DpMode *mode = disk->vm->mode;
    DpReq *req[HELD];

    for (unsigned i = 0; i < 3; i++) {
        dp_assert_works(disk);
    }
    send_held(disk, req, mode->plane);
    complete_without_bus_master(disk, mode->plane);
    dp_set_bus_master(disk, true);
    for (unsigned i = 0; i < 3; i++) {
        DpReq *next = dp_req(disk, VIRTIO_BLK_T_IN, 8 * i, 4096);

        dp_submit(disk, next);
        dp_expose(disk);
        dp_kick_always(disk);
        if (mode->in_order && i == 0) {
            assert_held_returned(disk, req);
        }
        dp_poll(disk, next);
        g_assert_cmpint(next->status, ==, OK);
        dp_req_free(disk, next);
        dp_assert_as_asked(disk);
    }
    dp_disk_reset(disk);
    free_held(disk, req);
    assert_recovers(disk);
}

/*
 * covers: G5, E7: the driver shrinks a queue without a reset, so that the
 * device's positions lie behind its end, which only a packed ring has
 */
static void test_shrunk_queue(DpDisk *disk)
{
    DpLoad *load = dp_load_new(disk, 8, 64);

    dp_load_run(load, 40);
    dp_load_finish(load);
    dp_set_bus_master(disk, false);
    dp_reg_writew(disk, DP_CFG(queue_select), 0);
    dp_reg_writew(disk, DP_CFG(queue_size), 2);
    dp_set_bus_master(disk, true);
    dp_kick_always(disk);
    g_assert_cmpint(!!(dp_status(disk) & VIRTIO_CONFIG_S_NEEDS_RESET), ==,
                    disk->packed);
    assert_recovers(disk);
}

/* --- a ring whose memory is away ------------------------------------- */

/* Programmable attribute maps of the i440FX: RAM for 0xd0000-0xdffff, or ROM */
#define PAM_REG 0x5c
#define PAM_BASE 0xd0000

static void show_ring(DpDisk *disk, bool shown)
{
    QPCIDevice *host = qpci_device_find(disk->vm->bus, QPCI_DEVFN(0, 0));

    qpci_config_writew(host, PAM_REG, shown ? 0x3333 : 0);
    g_free(host);
}

/* Starts a disk whose ring show_ring() can take away */
static void start_with_hidden_ring(DpDisk *disk)
{
    show_ring(disk, true);
    dp_disk_init(disk, DP_F_ALL);
    qtest_memset(disk->vm->qts, PAM_BASE, 0, 16 * PAGE);
    dp_disk_place_ring(disk, PAM_BASE, PAM_BASE + 6 * PAGE,
                       PAM_BASE + 8 * PAGE);
    qvirtio_set_driver_ok(disk->vdev);
}

static int64_t kicks(DpVm *vm)
{
    DpInfo info;

    dp_info(vm, "d0", &info);
    return info.kicks;
}

/* covers: E5: a kick that found no ring is made up for, or is an error */
static void test_hidden_kick(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    gint64 deadline = dp_deadline();
    DpReq *req;
    int64_t before;

    start_with_hidden_ring(disk);
    dp_assert_works(disk);
    req = dp_req(disk, VIRTIO_BLK_T_IN, 0, 1024);
    dp_submit(disk, req);
    dp_expose(disk);
    before = kicks(vm);
    show_ring(disk, false);
    dp_kick_always(disk);
    while (kicks(vm) == before) {
        dp_check_deadline(deadline, "the kick");
    }
    show_ring(disk, true);
    while (!(dp_status(disk) & VIRTIO_CONFIG_S_NEEDS_RESET) &&
           !dp_reap(disk)) {
        dp_check_deadline(deadline, "a request or an error");
    }
    dp_disk_new_ring(disk);
    dp_disk_reset(disk);
    dp_req_free(disk, req);
    assert_recovers(disk);
}

/* A read that takes a while to come back, or NULL if it is back already */
static DpReq *send_slow(DpDisk *disk)
{
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_IN, 0, 1024);
    gint64 deadline = dp_deadline();
    DpInfo info;

    dp_submit(disk, req);
    dp_expose(disk);
    dp_kick_always(disk);
    do {
        dp_info(disk->vm, "d0", &info);
        dp_check_deadline(deadline, "a request to be taken");
    } while (!info.in_flight && !dp_reap(disk));
    if (req->done) {
        dp_req_free(disk, req);
        return NULL;
    }
    return req;
}

/*
 * Hides the ring with a request in flight.  Returns it, or NULL if the request
 * was faster.
 */
static DpReq *hide_in_flight(DpDisk *disk)
{
    DpReq *req = send_slow(disk);
    DpInfo info;

    if (!req) {
        return NULL;
    }
    show_ring(disk, false);
    dp_info(disk->vm, "d0", &info);
    if (info.in_flight) {
        return req;
    }
    show_ring(disk, true);
    dp_poll(disk, req);
    dp_req_free(disk, req);
    return NULL;
}

/*
 * covers: E5: a completion that found no ring is an error, not a hang, even
 * if no kick follows
 */
static void test_hidden_completion(DpDisk *disk)
{
    gint64 deadline = dp_deadline();
    DpReq *req;

    start_with_hidden_ring(disk);
    do {
        req = hide_in_flight(disk);
        dp_check_deadline(deadline, "a request that is slow enough");
    } while (!req);
    dp_assert_broken(disk);
    show_ring(disk, true);
    dp_disk_new_ring(disk);
    dp_disk_reset(disk);
    dp_req_free(disk, req);
    dp_disk_start(disk, DP_F_ALL);
    req = dp_req(disk, VIRTIO_BLK_T_FLUSH, 0, 0);
    g_assert_cmpint(dp_run(disk, req), ==, OK);
    dp_req_free(disk, req);
}

/*
 * covers: E5, G8: what is in flight while the ring is away comes back.  So does
 * what had been done before out of its turn, with VIRTIO_F_IN_ORDER.
 */
static void test_hidden_in_flight(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    DpReq *req[HELD], *id;

    start_with_hidden_ring(disk);
    for (unsigned i = 0; i < 3; i++) {
        dp_assert_works(disk);
        send_held(disk, req, true);
        id = dp_req(disk, VIRTIO_BLK_T_GET_ID, 0, VIRTIO_BLK_ID_BYTES);
        dp_submit(disk, id);
        dp_kick(disk);
        dp_wait_state(vm, "d0", "started");
        show_ring(disk, false);
        dp_wait_in_flight(vm, "d0", HELD);
        show_ring(disk, true);
        dp_release(disk);
        dp_wait_all(disk);
        for (unsigned j = 0; j < HELD; j++) {
            g_assert_cmpint(req[j]->status, ==, OK);
        }
        g_assert_cmpint(id->status, ==, OK);
        g_assert_false(dp_status(disk) & VIRTIO_CONFIG_S_NEEDS_RESET);
        dp_req_free(disk, id);
        free_held(disk, req);
    }
    dp_disk_new_ring(disk);
    assert_recovers(disk);
}

/* --- a drained section of another node ------------------------------- */

/* The main loop goes round while the clock stands still */
static void run_main_loop(DpVm *vm)
{
    for (unsigned i = 0; i < 200; i++) {
        qtest_readb(vm->qts, 0);
    }
}

/*
 * Returns a request that waits for the end of the section: those before it, if
 * any, were faster than the section's begin.
 */
static DpReq *kick_in_section(DpDisk *disk)
{
    QTestState *qts = disk->vm->qts;
    gint64 deadline = dp_deadline();

    qtest_qmp_send(qts, "{'execute': 'block_resize', 'arguments': {"
                   " 'node-name': 'q0', 'size': %" PRId64 "}}",
                   (int64_t)4096 * MIB);
    for (;;) {
        DpReq *req = dp_req(disk, VIRTIO_BLK_T_IN, 0, 4096);

        dp_submit(disk, req);
        dp_expose(disk);
        dp_kick_always(disk);
        run_main_loop(disk->vm);
        if (!dp_reap(disk)) {
            return req;
        }
        dp_req_free(disk, req);
        dp_check_deadline(deadline, "a drained section");
    }
}

static void end_section(DpDisk *disk)
{
    QTestState *qts = disk->vm->qts;
    QDict *rsp;

    /* One request passes in a second, and there are a few */
    for (unsigned i = 0; i < 100; i++) {
        qtest_clock_step(qts, NANOSECONDS_PER_SECOND);
        g_usleep(1000);
    }
    rsp = qtest_qmp_receive(qts);
    g_assert_true(qdict_haskey(rsp, "return"));
    qobject_unref(rsp);
}

typedef struct Section {
    const char *name;
    const char *json;       /* properties beside those of the mode */
    bool reset;             /* the device is reset in the section */
} Section;

static const Section sections[] = {
    { "kick", "", false },
    { "reset", "", true },
    { "kick-no-ioeventfd", ", 'ioeventfd': false", false },
    { "reset-no-ioeventfd", ", 'ioeventfd': false", true },
};

typedef struct SectionData {
    const Section *section;
    const DpMode *mode;
} SectionData;

/* The memory of a request that was forgotten is the driver's own again */
static void reset_in_section(DpDisk *disk, DpReq *req)
{
    g_autofree uint8_t *got = g_malloc(disk->ring_size);
    QTestState *qts = disk->vm->qts;
    uint64_t ring = disk->ring;
    size_t size = disk->ring_size;

    dp_disk_reset(disk);
    qtest_memset(qts, ring, 0x99, size);
    qtest_memset(qts, req->data, 0x99, req->len);
    end_section(disk);
    qtest_memread(qts, ring, got, size);
    for (size_t i = 0; i < size; i++) {
        g_assert_cmphex(got[i], ==, 0x99);
    }
    g_assert_true(dp_req_is_byte(disk, req, 0x99));
    dp_disk_new_ring(disk);
    dp_disk_start(disk, DP_F_ALL);
}

/* covers: E2: a request that comes in a section waits in the ring */
static void test_section(const void *opaque)
{
    const SectionData *data = opaque;
    DpVm *vm = dp_vm_slow_metadata(data->mode, 64 * MIB,
                                   data->section->json);
    DpDisk *disk = dp_disk_new(vm, DP_F_ALL);
    DpReq *req = kick_in_section(disk);

    if (data->section->reset) {
        reset_in_section(disk, req);
    } else {
        end_section(disk);
        dp_poll(disk, req);
        g_assert_cmpint(req->status, ==, OK);
    }
    dp_req_free(disk, req);
    dp_vm_lift_limit(vm);
    assert_recovers(disk);
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

static void add_section(const Section *section, const DpMode *mode)
{
    g_autofree char *path =
        g_strdup_printf("/virtio-blk-dataplane/away/section/%s/%s",
                        section->name, mode->name);
    SectionData *data = g_new(SectionData, 1);

    *data = (SectionData) { section, mode };
    qtest_add_data_func_full(path, data, test_section, g_free);
}

static void add_sections(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(sections); i++) {
        if (*sections[i].json) {
            /* An IOThread needs ioeventfd */
            add_section(&sections[i], &dp_mode_main);
            continue;
        }
        for (unsigned j = 0; dp_modes[j]; j++) {
            add_section(&sections[i], dp_modes[j]);
        }
    }
}

int main(int argc, char **argv)
{
    static const DpTest any_path[] = {
        { "bus-master", test_bus_master },
    };
    static const DpMode off_in_order[] = {
        { "off-in-order", ",iothread=io0,x-data-plane=off,in_order=on",
          .in_order = true },
        { "off-packed-in-order",
          ",iothread=io0,x-data-plane=off,packed=on,in_order=on",
          .packed = true, .in_order = true },
    };
    static const DpTest plane[] = {
        { "shrunk-queue", test_shrunk_queue },
        { "hidden-kick", test_hidden_kick, DP_SPLIT_RING, .idle = true },
        { "hidden-completion", test_hidden_completion, DP_SPLIT_RING,
          .null = ",latency-ns=300000000", .idle = true },
        { "hidden-in-flight", test_hidden_in_flight, DP_SPLIT_RING,
          .idle = true },
    };

    g_test_init(&argc, &argv, NULL);
    dp_add_table("away", any_path, ARRAY_SIZE(any_path), false);
    for (unsigned i = 0; i < ARRAY_SIZE(off_in_order); i++) {
        dp_add_row("away", &any_path[0], &off_in_order[i]);
    }
    dp_add_table("away", plane, ARRAY_SIZE(plane), true);
    if (g_getenv("QTEST_QEMU_IMG")) {
        add_sections();
    }
    return g_test_run();
}
