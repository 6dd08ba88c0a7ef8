/*
 * Batches of requests: what is merged, and what the statistics say
 *
 * The plane accounts for several requests at once and looks for neighbours
 * before it sorts, which no driver may notice but by the time that it saves.
 * Therefore each number is compared with the one that was expected, on QEMU's
 * own path, too.  May know query-blockstats and the plane's counters.
 *
 * Under qtest each request is accounted for with a latency of 1 ms, so that
 * times are as exact as numbers.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "qobject/qnum.h"
#include "virtio-blk-dataplane-common.h"

#define OK VIRTIO_BLK_S_OK
#define IOERR VIRTIO_BLK_S_IOERR
#define UNSUPP VIRTIO_BLK_S_UNSUPP

#define CAPACITY 131072             /* sectors */
#define IMAGE_SIZE (CAPACITY * DP_SECTOR)
#define FAIL_SECTOR 100000          /* whatever touches it fails */
#define LATENCY_NS 1000000

#define BACKEND "/machine/peripheral/d0/virtio-backend"

/* --- statistics ------------------------------------------------------ */

enum { RD, WR, FLUSH, UNMAP, KINDS };

typedef struct KindStats {
    int64_t ops;
    int64_t bytes;
    int64_t failed;
    int64_t invalid;
    int64_t merged;
    int64_t time_ns;
    int64_t bins;               /* sum of the histogram's */
    int64_t bin;                /* the one that 1 ms belongs to */
} KindStats;

typedef struct Stats {
    KindStats kind[KINDS];
} Stats;

/* The entry of "d0" in what query-blockstats returned */
static QDict *find_stats(QDict *rsp)
{
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "return"), entry) {
        QDict *dict = qobject_to(QDict, qlist_entry_obj(entry));

        if (!g_strcmp0(qdict_get_try_str(dict, "qdev"), BACKEND)) {
            return qdict_get_qdict(dict, "stats");
        }
    }
    g_assert_not_reached();
}

static bool has_histogram(unsigned kind)
{
    return kind != UNMAP;
}

/* Member @fmt of a kind, 0 if there is no such thing (bytes of flush) */
static int64_t get_stat(QDict *stats, const char *fmt, const char *kind)
{
    g_autofree char *name = g_strdup_printf(fmt, kind);

    return qdict_get_try_int(stats, name, 0);
}

static void read_histogram(QDict *stats, const char *kind, KindStats *s)
{
    g_autofree char *name = g_strdup_printf("%s_latency_histogram", kind);
    QDict *histogram = qdict_get_qdict(stats, name);
    const QListEntry *entry;
    unsigned i = 0;

    if (!histogram) {
        return;
    }
    QLIST_FOREACH_ENTRY(qdict_get_qlist(histogram, "bins"), entry) {
        int64_t n = qnum_get_int(qobject_to(QNum, qlist_entry_obj(entry)));

        s->bins += n;
        s->bin += i++ == 1 ? n : 0;
    }
}

static void read_stats(DpVm *vm, Stats *s)
{
    static const char *const kinds[KINDS] = { "rd", "wr", "flush", "unmap" };
    QDict *rsp = qtest_qmp(vm->qts, "{'execute': 'query-blockstats'}");
    QDict *stats = find_stats(rsp);

    *s = (Stats) {};
    for (unsigned i = 0; i < KINDS; i++) {
        s->kind[i] = (KindStats) {
            .ops = get_stat(stats, "%s_operations", kinds[i]),
            .bytes = get_stat(stats, "%s_bytes", kinds[i]),
            .failed = get_stat(stats, "failed_%s_operations", kinds[i]),
            .invalid = get_stat(stats, "invalid_%s_operations", kinds[i]),
            .merged = get_stat(stats, "%s_merged", kinds[i]),
            .time_ns = get_stat(stats, "%s_total_time_ns", kinds[i]),
        };
        read_histogram(stats, kinds[i], &s->kind[i]);
    }
    qobject_unref(rsp);
}

static void assert_stats(const Stats *got, const Stats *want)
{
    for (unsigned i = 0; i < KINDS; i++) {
        const KindStats *g = &got->kind[i], *w = &want->kind[i];

        g_assert_cmpint(g->ops, ==, w->ops);
        g_assert_cmpint(g->bytes, ==, w->bytes);
        g_assert_cmpint(g->failed, ==, w->failed);
        g_assert_cmpint(g->invalid, ==, w->invalid);
        g_assert_cmpint(g->merged, ==, w->merged);
        g_assert_cmpint(g->time_ns, ==, LATENCY_NS * (w->ops + w->failed));
        g_assert_cmpint(g->bins, ==,
                        has_histogram(i) ? w->ops + w->failed : 0);
        g_assert_cmpint(g->bin, ==, g->bins);
    }
}

static int64_t count_stats(const Stats *s)
{
    int64_t n = 0;

    for (unsigned i = 0; i < KINDS; i++) {
        n += s->kind[i].ops + s->kind[i].failed + s->kind[i].invalid;
    }
    return n;
}

/*
 * The driver has just seen the last completion.  What succeeded on the plane
 * is in the statistics by then; QEMU's own path, and what fails, is accounted
 * for a moment after it was returned.
 */
static void check_stats(DpVm *vm, const Stats *want, bool at_once)
{
    gint64 deadline = dp_deadline();
    Stats got;

    read_stats(vm, &got);
    while (!at_once && count_stats(&got) < count_stats(want)) {
        dp_check_deadline(deadline, "a request to be accounted for");
        read_stats(vm, &got);
    }
    assert_stats(&got, want);

    /* Nor is anything accounted for later */
    dp_stop(vm);
    dp_cont(vm);
    read_stats(vm, &got);
    assert_stats(&got, want);
}

static void set_histogram(DpVm *vm)
{
    dp_qmp_ok(vm, NULL, "{'execute': 'block-latency-histogram-set',"
              " 'arguments': { 'id': %s,"
              " 'boundaries': [ 900000, 1100000 ] }}", BACKEND);
}

/* --- requests that are expected to be counted ------------------------ */

typedef struct Op {
    uint32_t type;
    int kind;                   /* of statistics; KINDS: of none */
    uint8_t status;
    bool fails;                 /* as opposed to: is invalid */
} Op;

static const Op op_read = { VIRTIO_BLK_T_IN, RD, OK };
static const Op op_write = { VIRTIO_BLK_T_OUT, WR, OK };
static const Op op_flush = { VIRTIO_BLK_T_FLUSH, FLUSH, OK };
static const Op op_zeroes = { VIRTIO_BLK_T_WRITE_ZEROES, WR, OK };
static const Op op_discard = { VIRTIO_BLK_T_DISCARD, UNMAP, OK };
static const Op op_id = { VIRTIO_BLK_T_GET_ID, KINDS, OK };
static const Op op_unknown = { 99, KINDS, UNSUPP };
static const Op op_read_fails = { VIRTIO_BLK_T_IN, RD, IOERR, true };
static const Op op_write_fails = { VIRTIO_BLK_T_OUT, WR, IOERR, true };
static const Op op_zeroes_fails = {
    VIRTIO_BLK_T_WRITE_ZEROES, WR, IOERR, true
};
static const Op op_discard_fails = {
    VIRTIO_BLK_T_DISCARD, UNMAP, IOERR, true
};
static const Op op_flush_fails = { VIRTIO_BLK_T_FLUSH, FLUSH, IOERR, true };
static const Op op_read_invalid = { VIRTIO_BLK_T_IN, RD, IOERR };
static const Op op_write_invalid = { VIRTIO_BLK_T_OUT, WR, IOERR };
static const Op op_zeroes_invalid = { VIRTIO_BLK_T_WRITE_ZEROES, WR, IOERR };
static const Op op_discard_invalid = { VIRTIO_BLK_T_DISCARD, UNMAP, IOERR };

static bool has_segment(const Op *op)
{
    return op->type == VIRTIO_BLK_T_WRITE_ZEROES ||
           op->type == VIRTIO_BLK_T_DISCARD;
}

static uint32_t op_len(const Op *op, unsigned i)
{
    switch (op->type) {
    case VIRTIO_BLK_T_FLUSH:
        return 0;
    case VIRTIO_BLK_T_GET_ID:
        return VIRTIO_BLK_ID_BYTES;
    default:
        return DP_SECTOR * (1 + i % 8);
    }
}

/* Request @i of a batch; none of them is another's neighbour */
static DpReq *op_req(DpDisk *disk, const Op *op, unsigned i)
{
    uint64_t sector = op->status == OK || op->kind == KINDS ? 64 * i :
                      op->fails ? FAIL_SECTOR : CAPACITY + i;
    uint32_t len = op_len(op, i);
    DpReq *req = dp_req(disk, op->type, op->type == VIRTIO_BLK_T_FLUSH ||
                                        has_segment(op) ? 0 : sector,
                        has_segment(op) ? 16 : len);

    /* One descriptor each, so that 100 of them fit in */
    req->framing = DP_INDIRECT;
    if (has_segment(op)) {
        struct virtio_blk_discard_write_zeroes seg = {
            .sector = cpu_to_le64(sector),
            .num_sectors = cpu_to_le32(len / DP_SECTOR),
        };

        qtest_memwrite(disk->vm->qts, req->data, &seg, sizeof(seg));
    }
    return req;
}

static void op_expect(Stats *want, const Op *op, unsigned i)
{
    KindStats *s = &want->kind[op->kind % KINDS];

    if (op->kind == KINDS) {
        return;
    }
    if (op->status == OK) {
        s->ops++;
        s->bytes += op_len(op, i);
    } else if (op->fails) {
        s->failed++;
    } else {
        s->invalid++;
    }
}

typedef struct Batch {
    const Op *const *ops;       /* by turns; ended by NULL */
    unsigned n;
    DpReq *req[100];
} Batch;

static const Op *batch_op(const Batch *b, unsigned i)
{
    unsigned num = 0;

    while (b->ops[num]) {
        num++;
    }
    return b->ops[i % num];
}

/* All of them become available at once */
static void batch_send(Batch *b, DpDisk *disk, Stats *want)
{
    g_assert_cmpuint(b->n, <=, ARRAY_SIZE(b->req));
    for (unsigned i = 0; i < b->n; i++) {
        b->req[i] = op_req(disk, batch_op(b, i), i);
        dp_submit(disk, b->req[i]);
        op_expect(want, batch_op(b, i), i);
    }
    dp_kick(disk);
}

/* Looks at the used ring itself: no interrupt comes earlier */
static void batch_wait(Batch *b, DpDisk *disk)
{
    gint64 deadline = dp_deadline();

    while (disk->pending) {
        dp_reap(disk);
        dp_check_deadline(deadline, "a batch");
    }
}

static void batch_check(Batch *b, DpDisk *disk, bool ignored)
{
    for (unsigned i = 0; i < b->n; i++) {
        uint8_t want = batch_op(b, i)->status;

        g_assert_cmpint(b->req[i]->status, ==, ignored ? OK : want);
        dp_req_free(disk, b->req[i]);
    }
}

static bool batch_succeeds(const Batch *b)
{
    for (unsigned i = 0; i < b->n; i++) {
        if (batch_op(b, i)->status == IOERR) {
            return false;
        }
    }
    return true;
}

/* --- batches --------------------------------------------------------- */

static const unsigned sizes[] = { 1, 7, 8, 9, 33, 100 };

/* A disk that fails as a rule where it should */
static DpVm *vm_stats(const DpMode *mode, const char *rules,
                      const char *backend, const char *props)
{
    DpVm *vm = dp_vm_start(
        "-blockdev '{\"driver\": \"raw\", \"node-name\": \"n0\","
        " \"discard\": \"unmap\", \"file\": {\"driver\": \"blkdebug\","
        " \"discard\": \"unmap\", \"image\": {\"driver\": \"null-co\","
        " \"read-zeroes\": true, \"size\": %d%s},"
        " \"inject-error\": [%s]}}' "
        "-device virtio-blk-pci,id=d0,drive=n0,addr=%d%s%s",
        IMAGE_SIZE, backend, rules, DP_SLOT, mode->props, props);

    set_histogram(vm);
    return vm;
}

#define FAIL(iotype, sector) \
    "{\"event\": \"none\", \"iotype\": \"" iotype "\", \"errno\": 5" \
    sector "}"
#define AT_SECTOR ", \"sector\": " stringify(FAIL_SECTOR)
#define FAIL_ALL FAIL("read", AT_SECTOR) ", " FAIL("write", AT_SECTOR) ", " \
                 FAIL("write-zeroes", AT_SECTOR) ", " \
                 FAIL("discard", AT_SECTOR)

typedef struct BatchCase {
    const char *name;
    const Op *ops[9];
} BatchCase;

static const BatchCase batch_cases[] = {
    { "reads", { &op_read } },
    { "writes", { &op_write } },
    { "flushes", { &op_flush } },
    { "write zeroes", { &op_zeroes } },
    { "discards", { &op_discard } },
    { "mixed", { &op_read, &op_write, &op_flush, &op_zeroes, &op_discard } },
    { "others", { &op_read, &op_id, &op_unknown } },
    { "failing reads", { &op_read_fails } },
    { "failing writes", { &op_write_fails } },
    { "some fail", { &op_read, &op_read_fails, &op_write, &op_write_fails,
                     &op_zeroes_fails, &op_discard_fails, &op_flush } },
    { "last one fails", { &op_read, &op_read, &op_read, &op_read, &op_read,
                          &op_read, &op_read_fails } },
    { "invalid", { &op_read_invalid } },
    { "invalid discards", { &op_discard_invalid } },
    { "some invalid", { &op_read, &op_read_invalid, &op_write,
                        &op_write_invalid, &op_zeroes_invalid,
                        &op_discard_invalid } },
};

static void run_batch(DpDisk *disk, const DpMode *mode, const BatchCase *c,
                      unsigned n, Stats *want)
{
    Batch batch = { .ops = c->ops, .n = n };

    g_test_message("%s: %u", c->name, n);
    batch_send(&batch, disk, want);
    batch_wait(&batch, disk);
    check_stats(disk->vm, want, mode->plane && batch_succeeds(&batch));
    batch_check(&batch, disk, false);
}

static void run_batches(const DpMode *mode, const char *backend)
{
    DpVm *vm = vm_stats(mode, FAIL_ALL, backend, "");
    DpDisk *disk = dp_disk_new(vm, DP_F_ALL);
    Stats want = {};

    for (unsigned i = 0; i < ARRAY_SIZE(batch_cases); i++) {
        for (unsigned j = 0; j < ARRAY_SIZE(sizes); j++) {
            run_batch(disk, mode, &batch_cases[i], sizes[j], &want);
        }
    }
    dp_assert_mode(vm, mode);
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

/* covers: M4, E16: each request is counted, once, in batches of any size */
static void test_batches(const DpMode *mode)
{
    run_batches(mode, "");
}

/* covers: M4: same, all of a batch being in flight together */
static void test_batches_in_flight(const DpMode *mode)
{
    run_batches(mode, ", \"latency-ns\": 200000");
}

/* covers: M4, WCE-10: flushes that fail */
static void test_failing_flushes(const DpMode *mode)
{
    const BatchCase write = { "write", { &op_write } };
    const BatchCase fails = { "failing flushes", { &op_flush_fails } };
    DpVm *vm = vm_stats(mode, FAIL("flush", ""), "", "");
    DpDisk *disk = dp_disk_new(vm, DP_F_ALL);
    Stats want = {};

    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        /* Without a write before, flush is not passed on */
        run_batch(disk, mode, &write, 1, &want);
        run_batch(disk, mode, &fails, sizes[i], &want);
    }
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

/* covers: M4, BLKR-11: an error that is ignored is a success */
static void test_ignored(const DpMode *mode)
{
    static const Op *const fails[] = { &op_read, &op_read_fails, NULL };
    static const Op *const counts[] = { &op_read, &op_read, NULL };
    DpVm *vm = vm_stats(mode, FAIL_ALL, "", ",rerror=ignore");
    DpDisk *disk = dp_disk_new(vm, DP_F_ALL);
    Stats want = {}, unused = {};

    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        Batch batch = { .ops = fails, .n = sizes[i] };

        batch_send(&batch, disk, &unused);
        for (unsigned j = 0; j < batch.n; j++) {
            op_expect(&want, counts[j % 2], j);
        }
        batch_wait(&batch, disk);
        check_stats(vm, &want, mode->plane);
        batch_check(&batch, disk, true);
    }
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

/* covers: M4, D6: what is parked and done after cont is counted, once */
static void test_parked(const DpMode *mode)
{
    static const Op *const writes[] = { &op_write, NULL };
    /* Sector 64 * 3 is that of request 3 */
    DpVm *vm = vm_stats(mode, FAIL("write", ", \"sector\": 192, "
                                   "\"once\": true"), "", ",werror=stop");
    DpDisk *disk = dp_disk_new(vm, DP_F_ALL);
    Batch batch = { .ops = writes, .n = 9 };
    Stats want = {};

    batch_send(&batch, disk, &want);
    qtest_qmp_eventwait(vm->qts, "STOP");
    dp_cont(vm);
    batch_wait(&batch, disk);
    check_stats(vm, &want, mode->plane);
    batch_check(&batch, disk, false);
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

/* Holds a batch, then makes the drain of @end complete it */
static void run_drained(const DpMode *mode, void (*end)(DpDisk *disk))
{
    static const Op *const ops[] = { &op_read, &op_write, NULL };
    DpVm *vm = vm_stats(mode, FAIL_ALL, "", "");
    DpDisk *disk = dp_disk_new(vm, DP_F_ALL);
    Stats want, got;

    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        Batch batch = { .ops = ops, .n = sizes[i] };

        dp_hold(disk);
        read_stats(vm, &want);
        batch_send(&batch, disk, &want);
        if (mode->plane) {
            dp_wait_in_flight(vm, "d0", sizes[i]);
        }
        end(disk);
        read_stats(vm, &got);
        assert_stats(&got, &want);
        dp_req_drop(disk, batch.req, batch.n);
        dp_cont(vm);
        dp_release(disk);
        dp_disk_start(disk, DP_F_ALL);
    }
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

static void end_by_stop(DpDisk *disk)
{
    dp_stop(disk->vm);
    dp_reap(disk);
    g_assert_cmpuint(disk->pending, ==, 0);
}

/* covers: M4, D3: nothing waits to be accounted for when the machine stops */
static void test_stop(const DpMode *mode)
{
    run_drained(mode, end_by_stop);
}

static void end_by_reset(DpDisk *disk)
{
    dp_disk_reset(disk);
}

/* covers: M4, STAT-12: nor when the driver resets the device */
static void test_reset(const DpMode *mode)
{
    run_drained(mode, end_by_reset);
}

/* --- intervals ------------------------------------------------------- */

static void check_latency(QDict *stats, const char *kind, bool seen)
{
    static const char *const names[] = { "min", "avg", "max" };

    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        g_autofree char *name = g_strdup_printf("%s_%s_latency_ns", names[i],
                                                kind);

        g_assert_cmpint(qdict_get_int(stats, name), ==,
                        seen ? LATENCY_NS : 0);
    }
}

/*
 * The depth of a queue is the sum of latencies by the time that has passed
 * since the interval began.  These are so long that it is the number of
 * requests times a constant, which differs between intervals.
 */
static void check_intervals(DpVm *vm, double *one, int64_t reads,
                            int64_t writes, int64_t flushes)
{
    QDict *rsp = qtest_qmp(vm->qts, "{'execute': 'query-blockstats'}");
    QList *list = qdict_get_qlist(find_stats(rsp), "timed_stats");
    const QListEntry *entry;
    unsigned i = 0;

    g_assert_cmpuint(qlist_size(list), ==, 2);
    QLIST_FOREACH_ENTRY(list, entry) {
        QDict *stats = qobject_to(QDict, qlist_entry_obj(entry));
        double rd = qdict_get_double(stats, "avg_rd_queue_depth");
        double wr = qdict_get_double(stats, "avg_wr_queue_depth");

        check_latency(stats, "rd", reads);
        check_latency(stats, "wr", writes);
        check_latency(stats, "flush", flushes);
        if (reads == 1) {
            one[i] = rd;
            g_assert_cmpfloat(rd, >, 0);
        }
        g_assert_cmpfloat_with_epsilon(rd, reads * one[i], one[i] / 4);
        g_assert_cmpfloat_with_epsilon(wr, writes * one[i], one[i] / 4);
        i++;
    }
    qobject_unref(rsp);
}

/* covers: M4: intervals see each request of a batch, too */
static void test_intervals(const DpMode *mode)
{
    static const Op *const one_read[] = { &op_read, NULL };
    static const Op *const ops[] = { &op_read, &op_write, &op_flush, NULL };
    DpVm *vm = dp_vm_start("-drive if=none,id=drv0,driver=null-co,"
                           "read-zeroes=on,size=%d,"
                           "stats-intervals.0=100000,"
                           "stats-intervals.1=1000000 "
                           "-device virtio-blk-pci,id=d0,drive=drv0,addr=%d%s",
                           IMAGE_SIZE, DP_SLOT, mode->props);
    DpDisk *disk = dp_disk_new(vm, DP_F_ALL);
    int64_t done[KINDS] = {};
    Stats want = {};
    double one[2];

    set_histogram(vm);
    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        /* The first one alone, to learn what one amounts to */
        Batch batch = { .ops = i ? ops : one_read, .n = sizes[i] };

        batch_send(&batch, disk, &want);
        batch_wait(&batch, disk);
        check_stats(vm, &want, mode->plane);
        for (unsigned j = 0; j < KINDS; j++) {
            done[j] = want.kind[j].ops;
        }
        check_intervals(vm, one, done[RD], done[WR], done[FLUSH]);
        batch_check(&batch, disk, false);
    }
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

/* --- merging --------------------------------------------------------- */

/* Both directions, one after the other */
#define RW UINT32_MAX

/* @count requests of @sectors each, at @sector, @sector + @stride, ... */
typedef struct Run {
    uint32_t type;
    uint64_t sector;
    unsigned sectors;
    unsigned count;             /* 0: the end */
    int stride;
} Run;

typedef struct MergeCase {
    const char *name;
    Run run[6];
    int64_t merged;             /* in the direction at hand, or of reads */
    int64_t merged_writes;      /* unless RW */
    bool overlap;               /* not for writes: whose data wins? */
} MergeCase;

#define ONE(at) { RW, at, 8, 1 }
#define APART(n) { RW, 1000, 8, n, 999 }

static const MergeCase merge_cases[] = {
    { "one", { ONE(100) } },
    { "none, ascending", { APART(32) } },
    { "none, descending", { { RW, 40000, 8, 32, -999 } } },
    { "none, a sector apart", { { RW, 100, 8, 32, 9 } } },
    { "none, over each other", { { RW, 100, 8, 32, 7 } }, .overlap = true },
    { "a pair at first", { ONE(100), ONE(108), APART(30) }, 1 },
    { "a pair at last", { APART(30), ONE(100), ONE(108) }, 1 },
    { "the first and the last", { ONE(100), APART(30), ONE(108) }, 1 },
    { "the later is the lower", { ONE(108), APART(30), ONE(100) }, 1 },
    { "a pair, backwards", { ONE(108), ONE(100) }, 1 },
    { "a pair at the end", { { RW, CAPACITY - 16, 8, 2, 8 } }, 1 },
    { "the end and the start", { ONE(CAPACITY - 8), ONE(0) } },
    { "pairs", { { RW, 0, 8, 16, 1000 }, { RW, 8, 8, 16, 1000 } }, 16 },
    { "runs", { { RW, 0, 8, 4, 8 }, { RW, 500, 8, 4, 8 }, APART(4) }, 6 },
    { "of single sectors", { { RW, 77, 1, 32, 1 } }, 31 },
    { "of other sizes", { { RW, 100, 1, 1 }, { RW, 101, 24, 1 },
                          { RW, 125, 8, 1 }, { RW, 92, 8, 1 } }, 3 },
    { "a chain", { { RW, 100, 8, 32, 8 } }, 31 },
    { "a chain, descending", { { RW, 1000, 8, 32, -8 } }, 31 },
    { "a chain of 33", { { RW, 100, 8, 33, 8 } }, 31 },
    { "a chain of 33, descending", { { RW, 1000, 8, 33, -8 } }, 31 },
    { "a chain of 65", { { RW, 100, 8, 65, 8 } }, 62 },
    { "requests 31 and 32", { APART(30), ONE(100), ONE(108), ONE(500) }, 1 },
    { "requests 32 and 33", { APART(31), ONE(100), ONE(108) } },
    { "requests 33 and 34", { APART(32), ONE(100), ONE(108) }, 1 },
    { "requests 1 and 33", { ONE(100), APART(31), ONE(108) } },
    { "the same sector", { { RW, 100, 8, 2 } }, .overlap = true },
    { "the same sector, 33 times", { { RW, 100, 8, 33 } }, .overlap = true },
    { "the same sector and the next", { { RW, 100, 8, 2 }, ONE(108) }, 1,
      .overlap = true },
    { "nothing", { { RW, 100, 0, 1 } } },
    { "nothing, far away", { ONE(100), { RW, 5000, 0, 1 }, ONE(200) } },
    { "nothing, behind", { { RW, 108, 0, 1 }, ONE(100) }, 1 },
    { "nothing, three times", { { RW, 100, 0, 3 } }, 2 },
    { "read, write", { { VIRTIO_BLK_T_IN, 100, 8, 1 },
                       { VIRTIO_BLK_T_OUT, 108, 8, 1 } } },
    { "write, read", { { VIRTIO_BLK_T_OUT, 108, 8, 1 },
                       { VIRTIO_BLK_T_IN, 100, 8, 1 } } },
    { "a write between reads", { { VIRTIO_BLK_T_IN, 100, 8, 1 },
                                 { VIRTIO_BLK_T_OUT, 20000, 8, 1 },
                                 { VIRTIO_BLK_T_IN, 108, 8, 1 } } },
    { "pairs of both", { { VIRTIO_BLK_T_IN, 100, 8, 2, 8 },
                         { VIRTIO_BLK_T_OUT, 116, 8, 3, 8 },
                         { VIRTIO_BLK_T_IN, 500, 8, 5, 8 } }, 5, 2 },
    { "a flush between writes", { { VIRTIO_BLK_T_OUT, 100, 8, 1 },
                                  { VIRTIO_BLK_T_FLUSH, 0, 0, 1 },
                                  { VIRTIO_BLK_T_OUT, 108, 8, 1 } } },
    { "a flush between reads", { { VIRTIO_BLK_T_IN, 100, 8, 1 },
                                 { VIRTIO_BLK_T_FLUSH, 0, 0, 1 },
                                 { VIRTIO_BLK_T_IN, 108, 8, 1 } }, 1 },
    { "an invalid one between", { ONE(100), ONE(CAPACITY), ONE(108) }, 1 },
};

/* What is in the image file, and what should be */
typedef struct Image {
    int fd;
    uint8_t *want;              /* of the whole disk */
} Image;

static void image_fill(uint8_t *at, uint64_t sectors, uint32_t seed)
{
    uint32_t *word = (uint32_t *)at;

    for (uint64_t i = 0; i < sectors * DP_SECTOR / 4; i++) {
        word[i] = seed * 2654435761u + i * 40503u;
    }
}

static void image_open(Image *image)
{
    g_autofree char *path = dp_tmp("disk.img");

    image->fd = open(path, O_RDWR);
    g_assert_cmpint(image->fd, >=, 0);
    image->want = g_malloc(IMAGE_SIZE);
    image_fill(image->want, CAPACITY, 1);
    g_assert_cmpint(pwrite(image->fd, image->want, IMAGE_SIZE, 0), ==,
                    IMAGE_SIZE);
}

static void image_check(Image *image)
{
    g_autofree uint8_t *got = g_malloc(IMAGE_SIZE);

    g_assert_cmpint(pread(image->fd, got, IMAGE_SIZE, 0), ==, IMAGE_SIZE);
    g_assert_true(memcmp(got, image->want, IMAGE_SIZE) == 0);
}

static void image_close(Image *image)
{
    close(image->fd);
    g_free(image->want);
}

/* Writes get data of their own, which should be found in the image later */
static DpReq *merge_req(DpDisk *disk, Image *image, const Run *run,
                        uint32_t type, unsigned i)
{
    static uint32_t seed = 1;
    uint64_t sector = run->sector + (int64_t)i * run->stride;
    uint8_t *want = image->want + sector * DP_SECTOR;
    DpReq *req = dp_req(disk, type, sector, run->sectors * DP_SECTOR);

    req->framing = i % 2 ? DP_DIRECT : DP_INDIRECT;
    if (type == VIRTIO_BLK_T_OUT && req->len && sector < CAPACITY) {
        image_fill(want, run->sectors, ++seed);
        qtest_bufwrite(disk->vm->qts, req->data, want, req->len);
    }
    return req;
}

static void merge_check(DpDisk *disk, Image *image, DpReq *req)
{
    bool valid = req->sector < CAPACITY;

    g_assert_cmpint(req->status, ==, valid ? OK : IOERR);
    if (valid && req->type == VIRTIO_BLK_T_IN && req->len) {
        g_autofree uint8_t *got = g_malloc(req->len);

        qtest_bufread(disk->vm->qts, req->data, got, req->len);
        g_assert_true(memcmp(got, image->want + req->sector * DP_SECTOR,
                             req->len) == 0);
    }
    dp_req_free(disk, req);
}

static void merge_batch(DpDisk *disk, Image *image, const MergeCase *c,
                        uint32_t type)
{
    g_autoptr(GPtrArray) reqs = g_ptr_array_new();

    for (const Run *run = c->run;
         run < c->run + ARRAY_SIZE(c->run) && run->count; run++) {
        for (unsigned i = 0; i < run->count; i++) {
            DpReq *req = merge_req(disk, image, run,
                                   run->type == RW ? type : run->type, i);

            g_ptr_array_add(reqs, req);
            dp_submit(disk, req);
        }
    }
    dp_kick(disk);
    dp_wait_all(disk);
    for (unsigned i = 0; i < reqs->len; i++) {
        merge_check(disk, image, g_ptr_array_index(reqs, i));
    }
}

static void merge_case(DpDisk *disk, const DpMode *mode, Image *image,
                       const MergeCase *c, uint32_t type, bool merging)
{
    bool rw = c->run[0].type == RW;
    int64_t rd = rw && type != VIRTIO_BLK_T_IN ? 0 : c->merged;
    int64_t wr = !rw ? c->merged_writes :
                 type == VIRTIO_BLK_T_OUT ? c->merged : 0;
    DpInfo before, after;
    Stats old, new;

    g_test_message("%s, type %u", c->name, type);
    dp_info(disk->vm, "d0", &before);
    read_stats(disk->vm, &old);
    merge_batch(disk, image, c, type);
    read_stats(disk->vm, &new);
    dp_info(disk->vm, "d0", &after);

    g_assert_cmpint(new.kind[RD].merged - old.kind[RD].merged, ==,
                    merging ? rd : 0);
    g_assert_cmpint(new.kind[WR].merged - old.kind[WR].merged, ==,
                    merging ? wr : 0);
    if (mode->plane) {
        g_assert_cmpint(after.merged - before.merged, ==,
                        merging ? rd + wr : 0);
        g_assert_cmpint(after.batches - before.batches, ==, 1);
    }
}

static void run_merging(const DpMode *mode, bool merging)
{
    DpVm *vm = dp_vm_file(mode, IMAGE_SIZE,
                          merging ? "" : ",request-merging=off");
    DpDisk *disk = dp_disk_new(vm, DP_F_ALL);
    Image image;

    image_open(&image);
    for (unsigned i = 0; i < ARRAY_SIZE(merge_cases); i++) {
        const MergeCase *c = &merge_cases[i];

        merge_case(disk, mode, &image, c, VIRTIO_BLK_T_IN, merging);
        if (!c->overlap && c->run[0].type == RW) {
            merge_case(disk, mode, &image, c, VIRTIO_BLK_T_OUT, merging);
        }
    }
    image_check(&image);
    image_close(&image);
    dp_assert_mode(vm, mode);
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

/* covers: M4, BLKR-20: neighbours are merged, and all data is in its place */
static void test_merging(const DpMode *mode)
{
    run_merging(mode, true);
}

/* covers: M4: nothing is merged if the user forbids it */
static void test_merging_off(const DpMode *mode)
{
    run_merging(mode, false);
}

int main(int argc, char **argv)
{
    static const DpTest tests[] = {
        { "batches", .own_vm = test_batches },
        { "batches-in-flight", .own_vm = test_batches_in_flight },
        { "failing-flushes", .own_vm = test_failing_flushes },
        { "ignored", .own_vm = test_ignored },
        { "parked", .own_vm = test_parked },
        { "stop", .own_vm = test_stop },
        { "reset", .own_vm = test_reset },
        { "intervals", .own_vm = test_intervals },
        { "merging", .own_vm = test_merging },
        { "merging-off", .own_vm = test_merging_off },
    };

    g_test_init(&argc, &argv, NULL);
    for (unsigned i = 0; i < ARRAY_SIZE(tests); i++) {
        /* The plane, and QEMU's own path to compare it with */
        dp_add_row("stats", &tests[i], &dp_mode_iothread);
        dp_add_row("stats", &tests[i], &dp_mode_off);
    }
    return g_test_run();
}
