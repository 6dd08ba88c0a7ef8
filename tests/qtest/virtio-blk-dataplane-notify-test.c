/*
 * Notifications of both kinds of ring, as the driver sees them
 *
 * Which interrupts come, which do not, and whether a driver that obeys the
 * device's wish for no kicks ever waits in vain.  That an interrupt did not
 * come is told by the plane's counters and made sure by a pause, which sends
 * all that is due.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "virtio-blk-dataplane-common.h"

#define OK VIRTIO_BLK_S_OK

static void set_flags(DpDisk *disk, uint16_t flags)
{
    qtest_writew(disk->vm->qts, disk->vq->avail, flags);
}

static void set_used_event(DpDisk *disk, uint16_t event)
{
    qtest_writew(disk->vm->qts, disk->vq->avail + 4 + 2 * disk->num, event);
}

/* How many entries of a packed ring these take: header, data, status */
#define FLUSH_ENTRIES 2
#define READ_ENTRIES 3

/* Run a request without looking for an interrupt or touching used_event */
static void run_silently(DpDisk *disk)
{
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_FLUSH, 0, 0);

    dp_submit(disk, req);
    dp_kick(disk);
    dp_poll_all(disk);
    g_assert_cmpint(req->status, ==, OK);
    dp_req_free(disk, req);
}

/* Was there an interrupt, all that are due being sent now? */
static bool irq_after_all(DpDisk *disk)
{
    dp_stop(disk->vm);
    dp_cont(disk->vm);
    return dp_irq(disk);
}

static int64_t sent(DpDisk *disk)
{
    DpInfo info;

    dp_info(disk->vm, "d0", &info);
    return info.sent;
}

/* Wait until all @n publications were either signalled or suppressed */
static void wait_decided(DpDisk *disk, const DpInfo *before, int64_t n)
{
    gint64 deadline = dp_deadline();
    DpInfo info;

    do {
        dp_check_deadline(deadline, "a notification to be decided upon");
        dp_info(disk->vm, "d0", &info);
    } while (info.sent + info.suppressed <
             before->sent + before->suppressed + n);
}

/* A request is notified, or not, and counted as such */
static void check_decision(DpDisk *disk, bool irq)
{
    DpInfo before, after;

    dp_info(disk->vm, "d0", &before);
    run_silently(disk);
    wait_decided(disk, &before, 1);
    dp_info(disk->vm, "d0", &after);
    g_assert_cmpint(after.sent - before.sent, ==, irq);
    g_assert_cmpint(after.suppressed - before.suppressed, ==, !irq);
    g_assert_cmpint(irq_after_all(disk), ==, irq);
}

/*
 * covers: SPLIT-30, SPLIT-31, SPLIT-32, ROBS-25: without EVENT_IDX bit 0 of
 * the flags decides, and used_event is not looked at
 */
static void test_flags(DpDisk *disk)
{
    static const struct {
        uint16_t flags;
        uint16_t used_event;
        bool irq;
    } cases[] = {
        { 0, 0, true }, { 0, 0xffff, true }, { 0, 1, true },
        { 1, 0, false }, { 1, 0xffff, false }, { 1, 3, false },
        { 0xfffe, 0, true }, { 0xffff, 0, false },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        set_flags(disk, cases[i].flags);
        set_used_event(disk, cases[i].used_event);
        check_decision(disk, cases[i].irq);
    }
}

/*
 * covers: PACK-42, PACK-43, ROBP-11: without EVENT_IDX the flags decide, and
 * where an interrupt would be wanted is not looked at
 */
static void test_driver_area(DpDisk *disk)
{
    static const struct {
        uint16_t off_wrap;
        uint16_t flags;
        bool irq;
    } cases[] = {
        { 0, 0, true }, { 0xffff, 0, true }, { 0x8000, 0, true },
        { 0, 1, false }, { 0xffff, 1, false }, { 0x8000, 1, false },
        { 0x8001, 2, true }, { 3, 2, true }, { 0, 3, true },
    };
    DpVm *vm = disk->vm;

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        qtest_writew(vm->qts, disk->vq->avail, cases[i].off_wrap);
        qtest_writew(vm->qts, disk->vq->avail + 2, cases[i].flags);
        check_decision(disk, cases[i].irq);
    }
}

/*
 * covers: SPLIT-33, SPLIT-34, SPLIT-36, SPLIT-39, ROBS-26, PACK-44: with
 * EVENT_IDX the event alone decides
 */
static void test_used_event(DpDisk *disk)
{
    /* Several laps of a packed ring */
    for (unsigned i = 0; i < 400; i++) {
        /* Half of all indices away; the same entry in the other lap */
        int far = disk->packed ? disk->num / FLUSH_ENTRIES : 0x8000;
        /* This one; the next one; the last one */
        const int events[] = { 0, 1, -1, far };
        bool irq = i % 4 == 0;
        DpInfo before;

        if (!disk->packed) {
            set_flags(disk, i / 4 % 2);
        }
        dp_set_event(disk, events[i % 4], FLUSH_ENTRIES);
        dp_info(disk->vm, "d0", &before);
        run_silently(disk);
        wait_decided(disk, &before, 1);
        g_assert_cmpint(sent(disk) - before.sent, ==, irq);
        if (irq) {
            gint64 deadline = dp_deadline();

            while (!dp_irq(disk)) {
                dp_check_deadline(deadline, "the interrupt");
            }
        } else {
            g_assert_false(dp_irq(disk));
        }
    }
    g_assert_false(irq_after_all(disk));
}

/*
 * covers: PACK-45: an interrupt is wanted for an entry within a list.  Each
 * takes an odd number, so that all places come at all entries of the ring.
 */
static void test_event_in_list(DpDisk *disk)
{
    disk->want_num = 64;
    dp_disk_start(disk, DP_F_EVENT);
    for (unsigned i = 0; i < 200; i++) {
        DpReq *req = dp_req(disk, VIRTIO_BLK_T_IN, 0, 512);
        int place = i % (READ_ENTRIES + 2) - 1;
        bool irq = place >= 0 && place < READ_ENTRIES;
        DpInfo before;

        if (i == 0) {
            /* The first notification after a start is always sent. */
            dp_run(disk, req);
        }
        dp_set_event(disk, place, 1);
        dp_info(disk->vm, "d0", &before);
        dp_submit(disk, req);
        dp_kick(disk);
        dp_poll_all(disk);
        wait_decided(disk, &before, 1);
        g_assert_cmpint(sent(disk) - before.sent, ==, irq);
        dp_irq(disk);
        dp_req_free(disk, req);
    }
}

/*
 * covers: SPLIT-35, PACK-45: the event is in the midst of what is published
 * together.  Held requests, let go at once, may be published in one piece or
 * in several.
 */
static void test_batch_event(DpDisk *disk)
{
    for (unsigned i = 0; i < 6; i++) {
        gint64 deadline = dp_deadline();
        DpReq *req[8];

        dp_hold(disk);
        for (unsigned j = 0; j < ARRAY_SIZE(req); j++) {
            req[j] = dp_req(disk, VIRTIO_BLK_T_IN, 100 * j, 512);
            dp_submit(disk, req[j]);
        }
        dp_kick(disk);
        dp_wait_in_flight(disk->vm, "d0", ARRAY_SIZE(req));
        dp_set_event(disk, i, READ_ENTRIES);
        dp_release(disk);
        while (!dp_irq(disk)) {
            dp_check_deadline(deadline, "the interrupt of a batch");
        }
        /* It comes for the entry asked for, and not before (SPLIT-39) */
        g_assert_cmpuint(dp_count_used(disk), >, i);
        while (disk->pending) {
            dp_reap(disk);
            dp_check_deadline(deadline, "the rest of a batch");
        }
        for (unsigned j = 0; j < ARRAY_SIZE(req); j++) {
            dp_req_free(disk, req[j]);
        }
        irq_after_all(disk);
    }
}

/*
 * Completions that come together are shown to the driver in pieces of this
 * many, and what is left at the end
 */
#define PIECE 8

/* @n held requests are in flight; let them go and see what comes of it */
static void release_pieces(DpDisk *disk, unsigned n, bool irq, unsigned place)
{
    gint64 deadline = dp_deadline();
    uint64_t reads = disk->reads;

    dp_release(disk);
    while (irq && !dp_irq(disk)) {
        dp_check_deadline(deadline, "the interrupt of a batch");
    }
    if (irq && disk->vq->event) {
        /* It comes for the entry asked for, and not before (SPLIT-39) */
        g_assert_cmpuint(dp_count_used(disk), >, place);
    }
    dp_poll_all(disk);
    g_assert_cmpuint(disk->reads - reads, ==, n);
}

static void want_irq_at(DpDisk *disk, unsigned n)
{
    if (disk->vq->event) {
        dp_set_event(disk, n, READ_ENTRIES);
    }
}

/* Returns the number of notifications; @irq: whether there should be any */
static int64_t run_pieces(DpDisk *disk, unsigned n, bool irq, unsigned place)
{
    DpInfo before, after;
    int64_t decided;
    DpReq *req[64];

    g_assert_cmpuint(n, <=, ARRAY_SIZE(req));
    want_irq_at(disk, 0);
    dp_hold(disk);
    irq_after_all(disk);
    for (unsigned i = 0; i < n; i++) {
        /* No neighbours */
        req[i] = dp_req(disk, VIRTIO_BLK_T_IN, 100 * i, 512);
        dp_submit(disk, req[i]);
    }
    dp_kick(disk);
    dp_wait_in_flight(disk->vm, "d0", n);
    want_irq_at(disk, place);
    dp_info(disk->vm, "d0", &before);
    release_pieces(disk, n, irq, place);
    irq_after_all(disk);
    dp_info(disk->vm, "d0", &after);
    for (unsigned i = 0; i < n; i++) {
        g_assert_cmpint(req[i]->status, ==, OK);
        dp_req_free(disk, req[i]);
    }

    decided = after.sent + after.suppressed - before.sent - before.suppressed;
    g_assert_cmpint(decided, >=, n / PIECE);
    g_assert_cmpint(decided, <=, DIV_ROUND_UP(n, PIECE) + 1);
    return after.sent - before.sent;
}

/* covers: SPLIT-35, SPLIT-39: one interrupt, wherever used_event lies */
static void test_pieces_event(DpDisk *disk)
{
    static const unsigned sizes[] = { 1, 7, 8, 9, 16, 31, 33, 64 };

    for (unsigned i = 0; i <= 32; i++) {
        g_assert_cmpint(run_pieces(disk, 32, i < 32, i), ==, i < 32);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        unsigned n = sizes[i];

        g_assert_cmpint(run_pieces(disk, n, true, 0), ==, 1);
        g_assert_cmpint(run_pieces(disk, n, true, n / 2), ==, 1);
        g_assert_cmpint(run_pieces(disk, n, true, n - 1), ==, 1);
        g_assert_cmpint(run_pieces(disk, n, false, n), ==, 0);
    }
}

/* covers: SPLIT-31, SPLIT-32: not one interrupt for each request */
static void test_pieces_flags(DpDisk *disk)
{
    static const unsigned sizes[] = { 1, 7, 8, 9, 32, 33, 64 };

    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        unsigned n = sizes[i];

        g_assert_cmpint(run_pieces(disk, n, true, 0), >=, 1);
    }
}

/* covers: PACK-41, PACK-46, PACK-47: dp_kick() looks at the device's area */
static void test_device_area(DpDisk *disk)
{
    static const uint64_t features[] = { DP_F_PLAIN, DP_F_EVENT };
    DpVm *vm = disk->vm;

    for (unsigned i = 0; i < ARRAY_SIZE(features); i++) {
        dp_disk_start(disk, features[i]);
        for (unsigned j = 0; j < 300; j++) {
            uint32_t area = qtest_readl(vm->qts, disk->vq->avail);

            run_silently(disk);
            g_assert_cmphex(qtest_readl(vm->qts, disk->vq->avail), ==, area);
        }
    }
}

/* covers: SPLIT-40, SPLIT-42, SPLIT-46: what the device writes for kicks */
static void test_device_flags(DpDisk *disk)
{
    QTestState *qts = disk->vm->qts;
    uint64_t event = disk->vq->used + 4 + 8 * disk->num;

    qtest_writew(qts, event, 0x1234);
    for (unsigned i = 0; i < 200; i++) {
        run_silently(disk);
        g_assert_cmpuint(qtest_readw(qts, disk->vq->used), <=, 1);
        g_assert_cmphex(qtest_readw(qts, event), ==, 0x1234);
    }
    dp_disk_start(disk, DP_F_EVENT);
    for (unsigned i = 0; i < 200; i++) {
        run_silently(disk);
        g_assert_cmpuint(qtest_readw(qts, disk->vq->used), ==, 0);
    }
}

/*
 * covers: SPLIT-45, PACK-6, PACK-50, NOTIF-5, ROBC-12: kicks for nothing, and
 * for no queue
 */
static void test_empty_kicks(DpDisk *disk)
{
    for (unsigned i = 0; i < 1000; i++) {
        dp_kick_always(disk);
    }
    for (unsigned i = 1; i < 8; i++) {
        qpci_io_writew(disk->pci->pdev, disk->pci->bar,
                       disk->vqpci->notify_offset, i);
        qpci_io_writew(disk->pci->pdev, disk->pci->bar,
                       disk->vqpci->notify_offset +
                       i * disk->pci->notify_off_multiplier, i);
    }
    g_assert_cmpuint(dp_count_used(disk), ==, 0);
    g_assert_false(irq_after_all(disk));
    dp_assert_works(disk);
}

/*
 * covers: SPLIT-38, SPLIT-41, SPLIT-43, SPLIT-44, PACK-48, PACK-49, D4: an
 * obeying driver, one request at a time and many, with and without EVENT_IDX,
 * polling or not
 */
static void test_obeying(DpDisk *disk)
{
    for (unsigned depth = 1; depth <= 16; depth *= 4) {
        DpLoad *load = dp_load_new(disk, depth, 64);

        if (!disk->vq->indirect) {
            dp_load_forget_tables(load);
        }
        dp_load_run(load, 600);
        dp_load_finish(load);
    }
}

/* --- an event loop that polls ---------------------------------------- */

/* So long that the event loop of io0 polls until it is told to stop */
#define POLL_NS 10000000000ll

static void set_polling(DpVm *vm, DpLoad *load, int64_t max_ns)
{
    dp_qmp_ok(vm, load, "{'execute': 'qom-set', 'arguments': {"
              " 'path': '/objects/io0', 'property': 'poll-grow',"
              " 'value': 1000000 }}");
    dp_qmp_ok(vm, load, "{'execute': 'qom-set', 'arguments': {"
              " 'path': '/objects/io0', 'property': 'poll-max-ns',"
              " 'value': %" PRId64 " }}", max_ns);
}

/* Is a request served without a kick?  If not, kick. */
static bool run_unkicked(DpDisk *disk)
{
    gint64 patience = g_get_monotonic_time() + G_TIME_SPAN_SECOND / 10;
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_FLUSH, 0, 0);
    bool served;

    dp_submit(disk, req);
    dp_expose(disk);
    disk->exposed_idx = disk->avail_idx;
    while (!req->done && g_get_monotonic_time() < patience) {
        dp_reap(disk);
    }
    served = req->done;
    if (!served) {
        dp_kick_always(disk);
        dp_poll(disk, req);
    }
    dp_req_free(disk, req);
    return served;
}

/*
 * Does the device leave its last event in a packed ring while it polls?  The
 * driver comes by there once in two laps.
 */
static bool keeps_old_event(DpDisk *disk)
{
    return disk->packed && disk->vq->event;
}

/* How many kicks that costs at the most in @requests */
static unsigned old_event_kicks(DpDisk *disk, unsigned requests)
{
    return keeps_old_event(disk) ?
           DIV_ROUND_UP(requests * READ_ENTRIES, 2 * disk->num) : 0;
}

/* The event loop polls for longer with each event that it polls for. */
static void wait_polling(DpDisk *disk)
{
    gint64 deadline = dp_deadline();
    unsigned served = 0;

    while (served < 4) {
        served = run_unkicked(disk) ? served + 1 : 0;
        dp_check_deadline(deadline, "the event loop to poll");
    }
    while (dp_asks_for_kick(disk)) {
        if (keeps_old_event(disk)) {
            run_unkicked(disk);
        }
        dp_check_deadline(deadline, "the device not to ask for kicks");
    }
}

static void wait_not_polling(DpDisk *disk)
{
    gint64 deadline = dp_deadline();

    while (!dp_asks_for_kick(disk)) {
        dp_check_deadline(deadline, "the device to ask for kicks");
    }
}

static DpLoad *polling_load(DpDisk *disk, unsigned depth)
{
    DpLoad *load = dp_load_new(disk, depth, 64);

    if (!disk->vq->indirect) {
        dp_load_forget_tables(load);
    }
    return load;
}

/*
 * covers: SPLIT-40, SPLIT-43: a device that polls needs no kicks, and says so;
 * all that it takes was found by polling
 */
static void check_polling(DpDisk *disk, DpLoad *load)
{
    uint64_t kicks, done;
    DpInfo before, after;
    unsigned stray;

    set_polling(disk->vm, NULL, POLL_NS);
    wait_polling(disk);
    dp_wait_all(disk);          /* what was sent before counts before */
    kicks = disk->kicks;
    done = disk->reads + disk->writes;
    dp_info(disk->vm, "d0", &before);
    dp_load_run(load, 300);
    dp_wait_all(disk);
    stray = old_event_kicks(disk, disk->reads + disk->writes - done);
    g_assert_true(stray || !dp_asks_for_kick(disk));
    dp_info(disk->vm, "d0", &after);
    g_assert_cmpuint(disk->kicks, <=, kicks + stray);
    g_assert_cmpint(after.kicks, <=, before.kicks + stray);
    g_assert_cmpint(after.completed, >=, before.completed + 300);
    g_assert_cmpint(after.polled - before.polled + stray, >=,
                    after.batches - before.batches);
}

/* covers: SPLIT-41, SPLIT-43, SPLIT-44, D4: polling has ended */
static void check_not_polling(DpDisk *disk, DpLoad *load)
{
    uint64_t kicks = disk->kicks;
    DpInfo before, after;

    set_polling(disk->vm, NULL, 0);
    wait_not_polling(disk);
    dp_info(disk->vm, "d0", &before);
    dp_load_run(load, 300);
    dp_wait_all(disk);
    wait_not_polling(disk);
    dp_info(disk->vm, "d0", &after);
    g_assert_cmpuint(disk->kicks, >, kicks);
    g_assert_cmpint(after.kicks, >, before.kicks);
    g_assert_cmpint(after.polled, ==, before.polled);
}

static void test_polling(DpDisk *disk)
{
    for (unsigned depth = 1; depth <= 16; depth *= 4) {
        DpLoad *load = polling_load(disk, depth);

        check_polling(disk, load);
        check_not_polling(disk, load);
        dp_load_finish(load);
    }
}

/*
 * covers: D3, D4, D11: polling begins and ends, and queues are detached and
 * attached, while it goes on and requests are in flight; an obeying driver
 * loses nothing
 */
static void test_polling_drains(DpDisk *disk)
{
    static const int64_t polling[] = { 20000000, 0, 50000, 100000000 };
    DpVm *vm = disk->vm;
    DpLoad *load = polling_load(disk, 8);

    for (unsigned i = 0; i < 24; i++) {
        set_polling(vm, load, polling[i % ARRAY_SIZE(polling)]);
        dp_load_send(load);
        dp_stop(vm);
        if (i / 4 % 2) {
            set_polling(vm, NULL, polling[(i + 1) % ARRAY_SIZE(polling)]);
        }
        dp_cont(vm);
        dp_load_run(load, 16);
        /* A drained section */
        dp_resize(vm, load, DP_IMAGE_SIZE);
    }
    /* Nothing may be left over of it */
    check_polling(disk, load);
    check_not_polling(disk, load);
    dp_load_finish(load);
}

/* A private IOThread cannot be told how to poll. */
/*
 * With RAM that is not shared: a driver that is quick sees that the device asks
 * for kicks for a moment, where it goes from one round of polling to the next.
 */
static DpVm *vm_slow_driver(const DpMode *mode)
{
    g_autofree char *path = dp_image("disk.img", DP_IMAGE_SIZE);
    const char *aio = dp_can_io_uring() ? "io_uring" : "threads";
    DpVm *vm = dp_vm_start("-blockdev file,node-name=f0,filename=%s,aio=%s "
                           "-blockdev raw,node-name=n0,file=f0 "
                           "-device virtio-blk-pci,id=d0,drive=n0,addr=%d%s",
                           path, aio, DP_SLOT, mode->props);

    vm->mode = mode;
    return vm;
}

static void add_polling_tests(void)
{
    static const DpTest tests[] = {
        { "event-idx", test_polling, .vm = vm_slow_driver },
        { "plain", test_polling, .vm = vm_slow_driver,
          .features = DP_F_PLAIN },
        { "drains-event-idx", test_polling_drains, .vm = vm_slow_driver },
        { "drains-plain", test_polling_drains, .vm = vm_slow_driver,
          .features = DP_F_PLAIN },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(tests); i++) {
        for (unsigned j = 0; dp_modes[j]; j++) {
            if (dp_modes[j]->plane && dp_modes[j] != &dp_mode_private) {
                dp_add_row("notify/polling", &tests[i], dp_modes[j]);
            }
        }
    }
}

/* covers: U1: each kick and each request is counted, once */
static void test_counters(DpDisk *disk)
{
    DpInfo info;

    for (unsigned i = 0; i < 50; i++) {
        run_silently(disk);
    }
    do {
        dp_info(disk->vm, "d0", &info);
    } while (info.completed < 50);
    g_assert_cmpint(info.completed, ==, 50);
    g_assert_cmpint(info.flushes, ==, 50);
    g_assert_cmpint(info.in_flight, ==, 0);
    g_assert_cmpint(info.errors, ==, 0);
    /* The plane kicks itself at start and whenever a drain ends */
    g_assert_cmpint(info.kicks, <=, disk->kicks + 4);
    g_assert_cmpint(info.kicks + info.polled, >=, 1);
    g_assert_cmpint(info.batches, <=, 50);
    g_assert_cmpint(info.batches, >=, 1);
}

int main(int argc, char **argv)
{
    static const DpTest tests[] = {
        { "flags", test_flags, DP_SPLIT_RING, .null = "",
          .features = DP_F_PLAIN },
        { "driver-area", test_driver_area, DP_PACKED_RING, .null = "",
          .features = DP_F_PLAIN },
        { "used-event", test_used_event, .null = "", .features = DP_F_EVENT },
        { "event-in-list", test_event_in_list, DP_PACKED_RING, .null = "",
          .idle = true },
        { "batch-event", test_batch_event, .null = "", .features = DP_F_EVENT },
        { "pieces-event", test_pieces_event, .null = "",
          .features = DP_F_EVENT },
        { "pieces-flags", test_pieces_flags, .null = "",
          .features = DP_F_PLAIN },
        { "device-flags", test_device_flags, DP_SPLIT_RING, .null = "",
          .features = DP_F_PLAIN },
        { "device-area", test_device_area, DP_PACKED_RING,
          .null = ",read-zeroes=on", .idle = true },
        { "empty-kicks", test_empty_kicks },
        { "obeying-event-idx", test_obeying },
        { "obeying-plain", test_obeying, .features = DP_F_PLAIN },
        { "counters", test_counters, .null = "" },
    };

    g_test_init(&argc, &argv, NULL);
    dp_add_table("notify", tests, ARRAY_SIZE(tests), true);
    add_polling_tests();
    return g_test_run();
}
