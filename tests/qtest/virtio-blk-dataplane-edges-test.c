/*
 * Both sides of each bound that the data plane has
 *
 * Requests in flight against the queue's size and the pool's, vectors of one
 * request and of merged ones, completions that are published together, and
 * requests of a device that was reset.  Each table has the last value in front
 * of a bound, the bound, and the first one behind it, for all queue sizes.  May
 * know what the bounds are; what happens between them is tested elsewhere.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qobject/qdict.h"
#include "virtio-blk-dataplane-common.h"
#include "virtio-blk-dataplane-ram.h"

#define MIB (1024 * 1024)
#define MOST 1024               /* the largest queue, VIRTQUEUE_MAX_SIZE */
#define LARGE ",queue-size=1024"
#define PUBLISH 8               /* completions until the driver sees some */
#define INLINE_VECTORS 18       /* that need no allocation */
#define OK VIRTIO_BLK_S_OK

static void start_sized(DpDisk *disk, unsigned num)
{
    disk->want_num = num;
    dp_disk_start(disk, DP_F_ALL);
}

static DpReq *new_req(DpDisk *disk, uint32_t type, uint64_t sector)
{
    DpReq *req = dp_req(disk, type, sector, DP_SECTOR);

    req->framing = DP_INDIRECT;         /* one descriptor: fills any queue */
    return req;
}

/* As dp_hold(), but for queues of two as well */
static void hold(DpDisk *disk)
{
    DpReq *req = new_req(disk, VIRTIO_BLK_T_IN, 0);

    dp_throttle(disk, disk->id, 1);
    g_assert_cmpint(dp_run(disk, req), ==, OK);
    dp_req_free(disk, req);
}

/* @n writes, a sector apart, of which each has a pattern of its own */
static DpReq **send_writes(DpDisk *disk, unsigned n, uint32_t seed)
{
    DpReq **req = g_new0(DpReq *, n);

    for (unsigned i = 0; i < n; i++) {
        req[i] = new_req(disk, VIRTIO_BLK_T_OUT, 2 * i);
        dp_req_fill(disk, req[i], seed + i);
        dp_submit(disk, req[i]);
    }
    dp_kick(disk);
    return req;
}

static void free_writes(DpDisk *disk, DpReq **req, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        dp_req_free(disk, req[i]);
    }
    g_free(req);
}

static void check_writes(DpDisk *disk, DpReq **req, unsigned n, uint32_t seed)
{
    for (unsigned i = 0; i < n; i++) {
        g_assert_cmpint(req[i]->status, ==, OK);
    }
    for (unsigned i = 0; i < n; i += n > 2 ? n - 1 : 1) {
        DpReq *read = new_req(disk, VIRTIO_BLK_T_IN, 2 * i);

        g_assert_cmpint(dp_run(disk, read), ==, OK);
        g_assert_true(dp_req_matches(disk, read, seed + i));
        dp_req_free(disk, read);
    }
}

static int64_t kicks(DpDisk *disk)
{
    DpInfo info;

    dp_info(disk->vm, "d0", &info);
    return info.kicks;
}

/* A kick for which there is nothing, or nothing more; the plane has seen it. */
static void kick_once_more(DpDisk *disk, bool plane)
{
    int64_t before = plane ? kicks(disk) : 0;
    gint64 deadline = dp_deadline();

    dp_kick_always(disk);
    while (plane && kicks(disk) == before) {
        dp_check_deadline(deadline, "a kick to be counted");
    }
    g_assert_false(dp_status(disk) & VIRTIO_CONFIG_S_NEEDS_RESET);
}

/* --- requests in flight ---------------------------------------------- */

static void run_depth(DpDisk *disk, const DpMode *mode, unsigned num,
                      unsigned depth)
{
    uint32_t seed = 7 * num + depth;
    DpReq **req;

    g_test_message("queue size %u, %u in flight", num, depth);
    start_sized(disk, num);
    hold(disk);
    kick_once_more(disk, mode->plane);
    req = send_writes(disk, depth, seed);
    if (mode->plane) {
        dp_wait_in_flight(disk->vm, "d0", depth);
    }
    for (unsigned i = 0; i < 2; i++) {
        kick_once_more(disk, mode->plane);
        if (mode->plane) {
            dp_wait_in_flight(disk->vm, "d0", depth);
        }
    }
    g_assert_cmpuint(dp_count_used(disk), ==, 0);
    dp_release(disk);
    dp_wait_all(disk);
    if (mode->plane) {
        dp_wait_in_flight(disk->vm, "d0", 0);
    }
    check_writes(disk, req, depth, seed);
    free_writes(disk, req, depth);
    dp_assert_mode(disk->vm, mode);
}

/*
 * covers: E1, SPLIT-2, PACK-2, PACK-50, NOTIF-8: each size of a queue, and
 * nothing, one, all but one and all in flight; each time two kicks more come
 */
static void test_depths(DpDisk *disk)
{
    static const unsigned sizes[] = { 2, 3, 4, 8, 16, 32, 64, 128, 256, 512,
                                      1000, 1023, 1024 };
    const DpMode *mode = disk->vm->mode;

    for (unsigned s = 0; s < ARRAY_SIZE(sizes); s++) {
        const unsigned num = sizes[s];
        const unsigned depths[] = { 0, 1, num - 1, num };

        /* Only a packed ring has any size (2.7, 2.8) */
        if (!mode->packed && (num & (num - 1))) {
            continue;
        }
        for (unsigned d = 0; d < ARRAY_SIZE(depths); d++) {
            run_depth(disk, mode, num, depths[d]);
        }
    }
}

/*
 * covers: E1, NOTIF-8: a full queue whose requests come back one by one while
 * the driver goes on to offer a new one for each, always with a kick too many
 */
static void test_full_for_long(DpDisk *disk)
{
    g_autofree DpReq **req = g_new0(DpReq *, MOST);
    gint64 deadline = dp_deadline();
    unsigned done = 0;

    start_sized(disk, MOST);
    for (unsigned i = 0; i < MOST; i++) {
        req[i] = new_req(disk, i % 2 ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN,
                         2 * i);
        dp_submit(disk, req[i]);
    }
    dp_kick_always(disk);
    dp_expose(disk);
    while (done < 4 * MOST) {
        dp_kick_always(disk);
        dp_reap(disk);
        for (unsigned i = 0; i < MOST; i++) {
            if (req[i]->done) {
                g_assert_cmpint(req[i]->status, ==, OK);
                done++;
                dp_submit(disk, req[i]);
            }
        }
        dp_expose(disk);
        dp_check_deadline(deadline, "requests of a full queue");
    }
    dp_kick_always(disk);
    dp_poll_all(disk);
    for (unsigned i = 0; i < MOST; i++) {
        g_assert_cmpint(req[i]->status, ==, OK);
        dp_req_free(disk, req[i]);
    }
}

/* --- a full queue that is parked ------------------------------------- */

/* A disk "d0" whose first MOST writes fail, each once */
static DpVm *vm_failing(const DpMode *mode)
{
    g_autofree char *path = dp_image("disk.img", DP_IMAGE_SIZE);
    g_autoptr(GString) rules = g_string_new("");

    for (unsigned i = 0; i < MOST; i++) {
        g_string_append_printf(rules, "%s{\"event\": \"none\", \"iotype\":"
                               " \"write\", \"errno\": %d, \"once\": true}",
                               i ? ", " : "", ENOSPC);
    }
    return dp_vm_start(DP_SHARED_RAM
                       "-blockdev '{\"driver\": \"raw\", \"node-name\": \"n0\","
                       " \"file\": {\"driver\": \"blkdebug\", \"image\":"
                       " {\"driver\": \"file\", \"filename\": \"%s\"},"
                       " \"inject-error\": [%s]}}' "
                       "-device virtio-blk-pci,id=d0,drive=n0,addr=%d,"
                       "queue-size=1024,werror=stop%s",
                       path, rules->str, DP_SLOT, mode->props);
}

static unsigned count_done(DpReq **req, unsigned n)
{
    unsigned done = 0;

    for (unsigned i = 0; i < n; i++) {
        done += req[i]->done;
    }
    return done;
}

static bool is_running(DpVm *vm)
{
    QDict *rsp = dp_qmp(vm, NULL, "{'execute': 'query-status'}");
    bool running = qdict_get_bool(qdict_get_qdict(rsp, "return"), "running");

    qobject_unref(rsp);
    return running;
}

/* Nothing is lost, and nothing comes back, while the machine is stopped */
static void check_parked(DpDisk *disk, DpReq **req, unsigned num)
{
    dp_wait_in_flight(disk->vm, "d0", num);
    dp_kick_always(disk);
    dp_reap(disk);
    g_assert_cmpuint(count_done(req, num), ==, 0);
    g_assert_false(dp_status(disk) & VIRTIO_CONFIG_S_NEEDS_RESET);
}

/* Returns how often the machine stopped until all requests were done */
static unsigned run_stops(DpDisk *disk, const DpMode *mode, DpReq **req,
                          unsigned num)
{
    gint64 deadline = dp_deadline();
    unsigned stops = 0;

    while (count_done(req, num) < num) {
        if (!is_running(disk->vm)) {
            stops++;
            if (mode->plane) {
                check_parked(disk, req, num);
            }
            dp_cont(disk->vm);
            dp_kick_always(disk);
        }
        dp_reap(disk);
        dp_check_deadline(deadline, "requests that were parked");
    }
    return stops;
}

/* All that a queue of @num holds is in flight, and fails again and again */
static void run_parked(DpDisk *disk, const DpMode *mode, unsigned num)
{
    DpReq **req;
    unsigned stops;

    start_sized(disk, num);
    hold(disk);
    req = send_writes(disk, num, num);
    if (mode->plane) {
        dp_wait_in_flight(disk->vm, "d0", num);
    }
    dp_release(disk);
    stops = run_stops(disk, mode, req, num);
    g_test_message("queue size %u, parked %u times", num, stops);
    if (mode->plane) {
        g_assert_cmpuint(stops, ==, MOST / num);
    }
    g_assert_cmpuint(dp_count_used(disk), ==, 0);
    check_writes(disk, req, num, num);
    free_writes(disk, req, num);
    /* There is room for as many as before */
    run_depth(disk, mode, num, num);
}

/* covers: E1, D6, M9: a full queue is parked, and done once */
static void test_parked(const DpMode *mode)
{
    static const unsigned sizes[] = { 256, 512, 1024 };

    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        DpVm *vm = vm_failing(mode);
        DpDisk *disk = dp_disk_probe(vm, "d0", DP_SLOT);

        run_parked(disk, mode, sizes[i]);
        dp_disk_free(disk);
        dp_vm_quit(vm);
    }
}

/* --- vectors --------------------------------------------------------- */

/* A request of @n vectors, header and status among them, in a table */
static DpReq *req_of_vectors(DpDisk *disk, uint32_t type, uint64_t sector,
                             unsigned n)
{
    DpReq *req = dp_req(disk, type, sector, DP_SECTOR * (n - 2));

    req->framing = DP_INDIRECT;
    req->pieces = n - 2;
    req->table = guest_alloc(&disk->vm->alloc, 16 * n);
    return req;
}

static void free_req_of_vectors(DpDisk *disk, DpReq *req)
{
    guest_free(&disk->vm->alloc, req->table);
    dp_req_free(disk, req);
}

static void run_vectors(DpDisk *disk, uint32_t type, unsigned n)
{
    DpReq *req = req_of_vectors(disk, type, 16, n);

    g_test_message("%u vectors, type %u", n, type);
    if (type == VIRTIO_BLK_T_OUT) {
        dp_req_fill(disk, req, n);
    }
    g_assert_cmpint(dp_run(disk, req), ==, OK);
    g_assert_true(dp_req_matches(disk, req, n));
    free_req_of_vectors(disk, req);
}

/* One vector more than an element holds: the device breaks, and is reset. */
static void run_too_many_vectors(DpDisk *disk)
{
    DpReq *req = req_of_vectors(disk, VIRTIO_BLK_T_IN, 16, MOST + 1);

    dp_submit(disk, req);
    dp_kick(disk);
    dp_assert_broken(disk);
    dp_disk_reset(disk);
    free_req_of_vectors(disk, req);
}

/*
 * covers: BLKC-5, ROBB-9, ROBS-20: tables of one piece of data, of seg_max,
 * of one more, of as many entries as the queue has, and as many as there can be
 */
static void run_tables(DpDisk *disk, unsigned num)
{
    unsigned seg_max;

    start_sized(disk, num);
    seg_max = qvirtio_config_readl(disk->vdev,
                                   offsetof(struct virtio_blk_config,
                                            seg_max));
    g_assert_cmpuint(seg_max, >, 1);
    g_assert_cmpuint(seg_max, <=, MOST - 2);
    const unsigned vectors[] = {
        3, 4, INLINE_VECTORS - 1, INLINE_VECTORS, INLINE_VECTORS + 1,
        2 * INLINE_VECTORS, 2 * INLINE_VECTORS + 1,
        MAX(num, 4) - 1, MAX(num, 3), MIN(num + 1, MOST),
        seg_max + 1, seg_max + 2, MIN(seg_max + 3, MOST), MOST - 1, MOST,
    };

    for (unsigned i = 0; i < ARRAY_SIZE(vectors); i++) {
        run_vectors(disk, VIRTIO_BLK_T_OUT, vectors[i]);
        run_vectors(disk, VIRTIO_BLK_T_IN, vectors[i]);
    }
    run_too_many_vectors(disk);
    start_sized(disk, num);
    run_vectors(disk, VIRTIO_BLK_T_OUT, MOST);
    dp_assert_as_asked(disk);
}

static void test_tables(DpDisk *disk)
{
    static const unsigned sizes[] = { 2, 16, 128, 256, 1024 };

    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        run_tables(disk, sizes[i]);
    }
}

typedef struct MergeCase {
    unsigned count;             /* neighbours... */
    unsigned pieces;            /* ... of so many vectors each */
    unsigned merged;
} MergeCase;

/*
 * A batch of 32 is merged at a time, and into no more vectors than a system
 * call takes, which are 1024.
 */
static const MergeCase merge_cases[] = {
    { 1, 1, 0 }, { 2, 1, 1 }, { 31, 1, 30 }, { 32, 1, 31 }, { 33, 1, 31 },
    { 34, 1, 32 }, { 64, 1, 62 }, { 65, 1, 62 },
    { 2, 511, 1 }, { 2, 512, 1 }, { 2, 513, 0 },
    { 3, 341, 2 }, { 3, 342, 1 }, { 4, 256, 3 }, { 4, 257, 2 },
    { 32, 32, 31 }, { 32, 33, 30 },
};

static void run_merge(DpDisk *disk, const DpMode *mode, const MergeCase *c,
                      uint32_t type)
{
    g_autofree DpReq **req = g_new0(DpReq *, c->count);
    DpInfo before, after;

    g_test_message("%u of %u vectors, type %u", c->count, c->pieces, type);
    dp_info(disk->vm, "d0", &before);
    for (unsigned i = 0; i < c->count; i++) {
        req[i] = req_of_vectors(disk, type, i * c->pieces, c->pieces + 2);
        if (type == VIRTIO_BLK_T_OUT) {
            dp_req_fill(disk, req[i], c->pieces);
        }
        dp_submit(disk, req[i]);
    }
    dp_kick(disk);
    dp_wait_all(disk);
    for (unsigned i = 0; i < c->count; i++) {
        g_assert_cmpint(req[i]->status, ==, OK);
        g_assert_true(dp_req_matches(disk, req[i], c->pieces));
        free_req_of_vectors(disk, req[i]);
    }
    dp_info(disk->vm, "d0", &after);
    if (mode->plane) {
        g_assert_cmpint(after.merged - before.merged, ==, c->merged);
    }
}

/* covers: BLKR-20, M4: both ends of what is merged */
static void test_merging(DpDisk *disk)
{
    const DpMode *mode = disk->vm->mode;

    start_sized(disk, 256);
    for (unsigned i = 0; i < ARRAY_SIZE(merge_cases); i++) {
        run_merge(disk, mode, &merge_cases[i], VIRTIO_BLK_T_OUT);
        run_merge(disk, mode, &merge_cases[i], VIRTIO_BLK_T_IN);
    }
}

/* --- completions ----------------------------------------------------- */

static int64_t accounted_writes(DpDisk *disk)
{
    QDict *rsp = dp_qmp(disk->vm, NULL, "{'execute': 'query-blockstats'}");
    QList *list = qdict_get_qlist(rsp, "return");
    QDict *first = qobject_to(QDict, qlist_entry_obj(qlist_first(list)));
    int64_t n = qdict_get_int(qdict_get_qdict(first, "stats"),
                              "wr_operations");

    qobject_unref(rsp);
    return n;
}

/*
 * covers: NOTIF-8, M4: so many requests come back together that they
 * are published and accounted for in no, one or several full batches
 */
static void test_publish(DpDisk *disk)
{
    static const unsigned counts[] = {
        1, PUBLISH - 1, PUBLISH, PUBLISH + 1, 2 * PUBLISH - 1, 2 * PUBLISH,
        2 * PUBLISH + 1, 4 * PUBLISH, 4 * PUBLISH + 1,
    };
    static const uint64_t features[] = { DP_F_ALL, DP_F_INDIRECT };
    const DpMode *mode = disk->vm->mode;

    for (unsigned i = 0; i < 2 * ARRAY_SIZE(counts); i++) {
        unsigned n = counts[i / 2];
        int64_t before;
        DpReq **req;

        dp_disk_start(disk, features[i % 2]);
        hold(disk);
        before = accounted_writes(disk);
        req = send_writes(disk, n, i);
        if (mode->plane) {
            dp_wait_in_flight(disk->vm, "d0", n);
        }
        dp_release(disk);
        dp_wait_all(disk);
        g_assert_cmpint(accounted_writes(disk) - before, ==, n);
        check_writes(disk, req, n, i);
        free_writes(disk, req, n);
    }
}

/* --- generations ----------------------------------------------------- */

/*
 * covers: M8, STAT-12, RST-1, RST-4: the device, or the queue alone, is reset
 * so many times in a row, each time with a full queue in flight
 */
static void run_resets(DpDisk *disk, const DpMode *mode, unsigned resets,
                       bool queue_alone)
{
    enum { NUM = 16 };
    DpReq **req;

    g_test_message("%u resets%s", resets, queue_alone ? " of the queue" : "");
    for (unsigned i = 0; i < resets; i++) {
        hold(disk);
        req = send_writes(disk, NUM, i);
        if (mode->plane) {
            dp_wait_in_flight(disk->vm, "d0", NUM);
        }
        if (queue_alone) {
            dp_queue_reset(disk);
        } else {
            dp_disk_reset(disk);
        }
        for (unsigned j = 0; j < NUM; j++) {
            dp_ram_set(disk->vm, req[j]->page, 0x99, 256);
        }
        dp_release(disk);
        dp_disk_new_ring(disk);
        if (queue_alone) {
            dp_queue_restart(disk);
        } else {
            start_sized(disk, NUM);
        }
        for (unsigned j = 0; j < NUM; j++) {
            g_assert_cmphex(dp_ram_readb(disk->vm, req[j]->status_addr),
                            ==, 0x99);
        }
        free_writes(disk, req, NUM);
    }
    if (mode->plane) {
        dp_wait_in_flight(disk->vm, "d0", 0);
    }
    req = send_writes(disk, NUM, 99);
    dp_wait_all(disk);
    check_writes(disk, req, NUM, 99);
    free_writes(disk, req, NUM);
}

static void test_resets(DpDisk *disk)
{
    static const unsigned counts[] = { 0, 1, 2, 3, 33 };
    const DpMode *mode = disk->vm->mode;

    for (unsigned i = 0; i < ARRAY_SIZE(counts); i++) {
        start_sized(disk, 16);
        run_resets(disk, mode, counts[i], false);
        run_resets(disk, mode, counts[i], true);
    }
}

static DpReq **send_reads(DpDisk *disk, unsigned n)
{
    DpReq **req = g_new0(DpReq *, n);

    for (unsigned i = 0; i < n; i++) {
        req[i] = new_req(disk, VIRTIO_BLK_T_IN, 2 * i);
        dp_submit(disk, req[i]);
    }
    dp_expose(disk);
    return req;
}

/* Lets the resize write, write by write, until all requests have come back */
static void end_resize(DpDisk *disk)
{
    gint64 deadline = dp_deadline();

    while (disk->pending) {
        qtest_clock_step(disk->vm->qts, 1000 * 1000 * 1000);
        if (dp_irq(disk)) {
            dp_reap(disk);
        }
        dp_check_deadline(deadline, "the end of a drained section");
    }
}

typedef enum First {
    FIRST_KICK,                 /* and then the section begins */
    FIRST_RESIZE,               /* about at the same time */
    FIRST_SECTION,              /* which has begun most probably */
    FIRST__MAX,
} First;

/* The device finds a full queue while a drained section begins */
static DpReq **begin_resize(DpDisk *disk, First first, int64_t size)
{
    QTestState *qts = disk->vm->qts;
    DpReq **req = send_reads(disk, MOST);

    if (first == FIRST_KICK) {
        dp_kick_always(disk);
    }
    qtest_qmp_send(qts, "{'execute': 'block_resize', 'arguments': {"
                   " 'node-name': 'q0', 'size': %" PRId64 "}}", size);
    for (unsigned i = 0; first == FIRST_SECTION && i < 100; i++) {
        dp_status(disk);
    }
    if (first != FIRST_KICK) {
        dp_kick_always(disk);
    }
    return req;
}

/*
 * A reset within the section, and a driver that fills the whole queue.
 *
 * Returns: how many requests the first driver got back
 */
static unsigned reset_in_section(DpDisk *disk, First first, int64_t size)
{
    QTestState *qts = disk->vm->qts;
    DpReq **old, **new;
    DpInfo before, after;
    unsigned shown;
    QDict *rsp;

    start_sized(disk, MOST);
    dp_info(disk->vm, "d0", &before);
    old = begin_resize(disk, first, size);
    dp_disk_reset(disk);
    shown = dp_ram_readw(disk->vm, disk->vq->used + 2);
    for (unsigned i = 0; i < MOST; i++) {
        dp_ram_set(disk->vm, old[i]->page, 0x99, 128);
    }

    dp_disk_new_ring(disk);
    dp_disk_start(disk, DP_F_ALL);
    new = send_reads(disk, MOST);
    dp_kick_always(disk);
    end_resize(disk);
    rsp = qtest_qmp_receive(qts);
    g_assert_true(qdict_haskey(rsp, "return"));
    qobject_unref(rsp);

    dp_wait_in_flight(disk->vm, "d0", 0);
    dp_info(disk->vm, "d0", &after);
    g_assert_cmpint(after.completed - before.completed, ==, shown + MOST);
    for (unsigned i = 0; i < MOST; i++) {
        g_assert_cmphex(dp_ram_readb(disk->vm, old[i]->status_addr), ==, 0x99);
        g_assert_cmpint(new[i]->status, ==, OK);
    }
    free_writes(disk, old, MOST);
    free_writes(disk, new, MOST);
    return shown;
}

/*
 * covers: E1, E2, M8, STAT-12: when a device is reset in a section that another
 * node drains, no request of its driver is left behind: none goes on later, and
 * none takes room that the next driver's full queue needs
 */
static void test_reset_in_section(const DpMode *mode)
{
    enum { LEAST = 30, MOST_ROUNDS = 120 };
    bool taken = false, left = false;
    DpDisk *disk;
    DpVm *vm;

    if (!have_qemu_img()) {
        g_test_skip("needs qemu-img, named by QTEST_QEMU_IMG");
        return;
    }
    vm = dp_vm_slow_metadata(mode, DP_IMAGE_SIZE, ", 'queue-size': 1024");
    disk = dp_disk_probe(vm, "d0", DP_SLOT);
    for (unsigned i = 0; i < LEAST || (i < MOST_ROUNDS && !(taken && left));
         i++) {
        unsigned shown = reset_in_section(disk, i % FIRST__MAX,
                                          (i + 9) * (int64_t)MIB);

        g_test_message("%u done before", shown);
        taken = taken || shown;
        left = left || shown < MOST;
    }
    g_assert_true(taken);
    g_assert_true(left);
    dp_vm_lift_limit(vm);
    start_sized(disk, MOST);
    dp_assert_works(disk);
    dp_assert_mode(vm, mode);
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

int main(int argc, char **argv)
{
    static const DpTest tests[] = {
        { "depths", test_depths, .props = LARGE, .idle = true },
        { "full-for-long", test_full_for_long, .props = LARGE, .idle = true },
        { "parked", .own_vm = test_parked },
        { "tables", test_tables, .props = LARGE, .idle = true },
        { "merging", test_merging, .props = LARGE, .idle = true },
        { "publish", test_publish, .idle = true },
        { "resets", test_resets, .idle = true },
    };
    static const DpTest plane_tests[] = {
        { "reset-in-section", .own_vm = test_reset_in_section,
          .rings = DP_SPLIT_RING },
    };

    g_test_init(&argc, &argv, NULL);
    dp_add_table("edges", tests, ARRAY_SIZE(tests), false);
    dp_add_table("edges", plane_tests, ARRAY_SIZE(plane_tests), true);
    return g_test_run();
}
