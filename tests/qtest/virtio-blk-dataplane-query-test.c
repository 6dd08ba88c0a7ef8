/*
 * x-query-virtio-queue-status and -element of a disk in use
 *
 * The commands have to say where the device is in a queue that the plane has
 * taken over, as they do of QEMU's own virtqueues: at rest, with requests in
 * flight, after laps of the ring, paused, reset, and when the IOThread stands
 * still.  They must not change what they look at.  What they say is compared
 * with what the driver knows.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "qobject/qstring.h"
#include "virtio-blk-dataplane-common.h"

#define OK VIRTIO_BLK_S_OK
#define BACKEND "/machine/peripheral/d0/virtio-backend"
#define STATUS "x-query-virtio-queue-status"
#define ELEMENT "x-query-virtio-queue-element"
#define RING_NUM 16                 /* requests of three descriptors lap it */
#define N 3                         /* requests in flight */
#define APART 1000                  /* sectors: neighbors would be merged */
#define LEN 4096
#define DESCS 3                     /* of each request */

/* Without padding, so that two of them can be compared as a whole */
typedef struct Status {
    int64_t inuse;
    int64_t num;
    int64_t desc;
    int64_t avail;
    int64_t used;
    int64_t last_avail;
    int64_t shadow_avail;
    int64_t used_idx;
    int64_t signalled;
    int64_t signalled_valid;
    int64_t has_wraps;
    int64_t avail_wrap;
    int64_t used_wrap;
} Status;

/* --- the commands ---------------------------------------------------- */

static void read_status(DpDisk *disk, Status *s)
{
    QDict *rsp = dp_qmp(disk->vm, NULL, "{'execute': '" STATUS "',"
                        " 'arguments': { 'path': '" BACKEND "',"
                        " 'queue': %u }}", disk->index);
    QDict *status = qdict_get_qdict(rsp, "return");

    g_assert_nonnull(status);
    *s = (Status) {
        .inuse = qdict_get_int(status, "inuse"),
        .num = qdict_get_int(status, "vring-num"),
        .desc = qdict_get_int(status, "vring-desc"),
        .avail = qdict_get_int(status, "vring-avail"),
        .used = qdict_get_int(status, "vring-used"),
        .last_avail = qdict_get_int(status, "last-avail-idx"),
        .shadow_avail = qdict_get_int(status, "shadow-avail-idx"),
        .used_idx = qdict_get_int(status, "used-idx"),
        .signalled = qdict_get_int(status, "signalled-used"),
        .signalled_valid = qdict_get_bool(status, "signalled-used-valid"),
        .has_wraps = qdict_haskey(status, "used-wrap-counter"),
        .avail_wrap = qdict_get_try_bool(status, "last-avail-wrap-counter",
                                         false),
        .used_wrap = qdict_get_try_bool(status, "used-wrap-counter", false),
    };
    qobject_unref(rsp);
}

/* Asks for the element at @index, or for the next one if that is negative */
static QDict *ask_element(DpDisk *disk, int index)
{
    if (index < 0) {
        return dp_qmp(disk->vm, NULL, "{'execute': '" ELEMENT "',"
                      " 'arguments': { 'path': '" BACKEND "',"
                      " 'queue': %u }}", disk->index);
    }
    return dp_qmp(disk->vm, NULL, "{'execute': '" ELEMENT "',"
                  " 'arguments': { 'path': '" BACKEND "',"
                  " 'queue': %u, 'index': %d }}", disk->index, index);
}

static void assert_refused(DpDisk *disk, const char *text)
{
    dp_qmp_error(disk->vm, NULL, text, "{'execute': '" ELEMENT "',"
                 " 'arguments': { 'path': '" BACKEND "', 'queue': %u }}",
                 disk->index);
}

static unsigned count_descs(DpDisk *disk, int index)
{
    QDict *rsp = ask_element(disk, index);
    unsigned n = qlist_size(qdict_get_qlist(qdict_get_qdict(rsp, "return"),
                                            "descs"));

    qobject_unref(rsp);
    return n;
}

/* --- what the driver knows ------------------------------------------- */

/* Is the device at this position of the driver? */
static void assert_position(DpDisk *disk, int64_t idx, bool wrap,
                            uint16_t position)
{
    if (disk->packed) {
        g_assert_cmpint(idx, ==, position % disk->num);
        g_assert_true(wrap == (position < disk->num));
    } else {
        g_assert_cmpint(idx, ==, position);
    }
}

/* @avail: up to where the device has taken what is available */
static void assert_status(DpDisk *disk, const Status *s, uint16_t avail,
                          unsigned inuse)
{
    g_assert_cmpint(s->num, ==, disk->num);
    g_assert_cmpint(s->desc, ==, disk->vq->desc);
    g_assert_cmpint(s->avail, ==, disk->vq->avail);
    g_assert_cmpint(s->used, ==, disk->vq->used);
    g_assert_cmpint(s->inuse, ==, inuse);
    g_assert_true(s->has_wraps == disk->packed);
    assert_position(disk, s->last_avail, s->avail_wrap, avail);
    g_assert_cmpint(s->shadow_avail, ==, s->last_avail);
    assert_position(disk, s->used_idx, s->used_wrap, disk->used_idx);
}

static unsigned slots(DpDisk *disk, unsigned requests)
{
    return disk->packed ? DESCS * requests : requests;
}

/* Waits until so many requests are in flight, and nothing more happens */
static void wait_settled(DpDisk *disk, unsigned requests, Status *s)
{
    gint64 deadline = dp_deadline();

    do {
        dp_check_deadline(deadline, "the queue to settle");
        read_status(disk, s);
    } while (s->inuse != slots(disk, requests) ||
             s->shadow_avail != s->last_avail || s->signalled != s->used_idx);
}

static void check(DpDisk *disk, unsigned requests)
{
    Status s;

    wait_settled(disk, requests, &s);
    assert_status(disk, &s, disk->avail_idx, slots(disk, requests));
}

static void check_notified(DpDisk *disk)
{
    Status s;

    wait_settled(disk, 0, &s);
    g_assert_true(s.signalled_valid);
}

static bool desc_is(const QDict *desc, uint64_t addr, uint32_t len, bool write)
{
    const QListEntry *entry;
    bool found = false;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(desc, "flags"), entry) {
        found |= !strcmp(qstring_get_str(qobject_to(QString,
                                             qlist_entry_obj(entry))),
                         "write");
    }
    return qdict_get_int(desc, "addr") == addr &&
           qdict_get_int(desc, "len") == len && found == write;
}

/* Is the element there this request?  QEMU lists its end first. */
static void assert_element(DpDisk *disk, int index, const DpReq *req)
{
    QDict *rsp = ask_element(disk, index);
    QDict *element = qdict_get_qdict(rsp, "return");
    QDict *avail = qdict_get_qdict(element, "avail");
    QDict *used = qdict_get_qdict(element, "used");
    const QListEntry *entry = qlist_first(qdict_get_qlist(element, "descs"));

    g_assert_cmpint(qdict_get_int(element, "index"), ==, req->head);
    g_assert_cmpint(qdict_get_int(avail, "ring"), ==, req->head);
    g_assert_cmpint(qdict_get_int(avail, "idx"), ==, disk->avail_idx);
    g_assert_cmpint(qdict_get_int(used, "idx"), ==, disk->used_idx);

    g_assert_cmpuint(qlist_size(qdict_get_qlist(element, "descs")), ==, DESCS);
    g_assert_true(desc_is(qobject_to(QDict, qlist_entry_obj(entry)),
                          req->status_addr, 1, true));
    entry = qlist_next(entry);
    g_assert_true(desc_is(qobject_to(QDict, qlist_entry_obj(entry)),
                          req->data, req->len, req->to_guest));
    entry = qlist_next(entry);
    g_assert_true(desc_is(qobject_to(QDict, qlist_entry_obj(entry)),
                          req->page, 16, false));
    qobject_unref(rsp);
}

static DpReq *submit_read(DpDisk *disk, unsigned i, DpFraming framing)
{
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_IN, APART * i, LEN);

    req->framing = framing;
    dp_submit(disk, req);
    return req;
}

static void finish(DpDisk *disk, DpReq **req, unsigned n)
{
    dp_release(disk);
    dp_wait_all(disk);
    for (unsigned i = 0; i < n; i++) {
        g_assert_cmpint(req[i]->status, ==, OK);
        dp_req_free(disk, req[i]);
    }
    check(disk, 0);
}

static void run_some(DpDisk *disk)
{
    for (unsigned i = 0; i < 5; i++) {
        g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, i, LEN, i), ==, OK);
    }
}

static void start_small(DpDisk *disk)
{
    disk->want_num = RING_NUM;
    dp_disk_start(disk, DP_F_ALL);
    g_assert_cmpuint(disk->num, ==, RING_NUM);
}

/* --- tests ----------------------------------------------------------- */

/* At rest, at each place in the ring, for some laps */
static void test_rest(DpDisk *disk)
{
    start_small(disk);
    check(disk, 0);
    for (unsigned i = 0; i < 3 * RING_NUM; i++) {
        g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, i, LEN, i), ==, OK);
        check(disk, 0);
    }
    check_notified(disk);
}

/* With requests in flight, at each place in the ring */
static void test_inflight(DpDisk *disk)
{
    start_small(disk);
    for (unsigned round = 0; round < 2 * RING_NUM; round++) {
        unsigned n = 1 + round % N;
        DpReq *req[N];

        dp_hold(disk);
        for (unsigned i = 0; i < n; i++) {
            req[i] = submit_read(disk, i, DP_DIRECT);
        }
        dp_kick(disk);
        check(disk, n);
        for (unsigned i = 0; i < n && !disk->packed; i++) {
            assert_element(disk, (uint16_t)(disk->avail_idx - n + i), req[i]);
        }
        finish(disk, req, n);
    }
}

/* The descriptors of an element may be in a table */
static void test_table(DpDisk *disk)
{
    DpReq *req[N];

    dp_hold(disk);
    for (unsigned i = 0; i < N; i++) {
        req[i] = submit_read(disk, i, i % 2 ? DP_DIRECT : DP_INDIRECT);
    }
    dp_kick(disk);
    check(disk, N);
    for (unsigned i = 0; i < N; i++) {
        assert_element(disk, disk->avail_idx - N + i, req[i]);
    }
    finish(disk, req, N);
}

/*
 * covers: U6: the IOThread stands still: what it has taken, and what it has
 * not seen
 */
static void test_frozen(DpDisk *disk)
{
    DpReq *req[N + 1];
    uint16_t avail;
    unsigned n = N;
    pid_t tid;

    run_some(disk);
    dp_hold(disk);
    for (unsigned i = 0; i < N; i++) {
        req[i] = submit_read(disk, i, DP_DIRECT);
    }
    dp_kick(disk);
    check(disk, N);
    tid = dp_freeze(disk->vm, "io0");
    if (tid) {
        Status s;

        avail = disk->avail_idx;
        req[n++] = submit_read(disk, N, DP_DIRECT);
        dp_kick(disk);
        read_status(disk, &s);
        assert_status(disk, &s, avail, slots(disk, N));
        if (!disk->packed) {
            assert_element(disk, -1, req[N]);
        }
        dp_thaw(tid);
    }
    finish(disk, req, n);
}

/* What is asked of the plane is what a stop, and a migration, hands back */
static void test_paused(DpDisk *disk)
{
    Status before, after;

    start_small(disk);
    for (unsigned i = 0; i < RING_NUM; i++) {
        g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, i, LEN, i), ==, OK);
        wait_settled(disk, 0, &before);
        dp_stop(disk->vm);
        read_status(disk, &after);
        g_assert_cmpmem(&before, sizeof(before), &after, sizeof(after));
        qobject_unref(ask_element(disk, -1));
        read_status(disk, &after);
        g_assert_cmpmem(&before, sizeof(before), &after, sizeof(after));
        dp_cont(disk->vm);
        check(disk, 0);
    }
}

/* covers: M8: nothing is left of what was before */
static void test_reset(DpDisk *disk)
{
    Status s;

    run_some(disk);
    dp_disk_reset(disk);
    read_status(disk, &s);
    g_assert_cmpint(s.inuse + s.last_avail + s.shadow_avail + s.used_idx, ==,
                    0);
    g_assert_cmpint(s.desc, ==, 0);
    g_assert_false(s.signalled_valid);
    assert_refused(disk, "caches not initialized");

    dp_disk_start(disk, DP_F_ALL);
    check(disk, 0);
    run_some(disk);
    check(disk, 0);
}

/* Puts a head where the device looks next, but does not make it available */
static void write_next(DpDisk *disk, uint16_t head)
{
    qtest_writew(disk->vm->qts, disk->vq->avail + 4 +
                 2 * (disk->avail_idx % disk->num), head);
}

/* covers: G9: a driver may write anything, and is not punished for the look */
static void test_hostile(DpDisk *disk)
{
    uint16_t last = disk->num - 1;      /* a descriptor that is free */
    uint64_t table = disk->vq->desc;

    run_some(disk);
    write_next(disk, disk->num);
    assert_refused(disk, "out of range");

    write_next(disk, last);
    dp_desc_write(disk, table, last, 0, 1, VRING_DESC_F_NEXT, last);
    g_assert_cmpuint(count_descs(disk, -1), ==, disk->num);
    dp_desc_write(disk, table, last, 0, 1, VRING_DESC_F_NEXT, disk->num);
    g_assert_cmpuint(count_descs(disk, -1), ==, 1);
    dp_desc_write(disk, table, last, 0, 15, VRING_DESC_F_INDIRECT, 0);
    assert_refused(disk, "too small");
    dp_desc_write(disk, table, last, 0xfff00000000, 16, VRING_DESC_F_INDIRECT,
                  0);
    assert_refused(disk, "Cannot map indirect buffer");

    g_assert_cmpint(dp_status(disk) & VIRTIO_CONFIG_S_NEEDS_RESET, ==, 0);
    dp_assert_works(disk);
    check(disk, 0);
}

/* HMP shows the wrap counters, and elements of such a ring cannot be shown */
static void test_packed(DpDisk *disk)
{
    g_autofree char *text = NULL;

    run_some(disk);
    text = qtest_hmp(disk->vm->qts, "info virtio-queue-status " BACKEND " 0");
    g_assert_nonnull(strstr(text, "last_avail_wrap_counter: 1"));
    g_assert_nonnull(strstr(text, "used_wrap_counter:    1"));
    assert_refused(disk, "Packed ring not supported");
}

/* Batches and kicks may be counted after the driver was notified. */
static void assert_same_info(const DpInfo *a, const DpInfo *b)
{
    g_assert_cmpstr(a->state, ==, b->state);
    g_assert_cmpint(a->starts, ==, b->starts);
    g_assert_cmpint(a->completed, ==, b->completed);
    g_assert_cmpint(a->errors, ==, b->errors);
    g_assert_cmpint(a->sent, ==, b->sent);
    g_assert_cmpint(a->suppressed, ==, b->suppressed);
    g_assert_cmpint(a->in_flight, ==, b->in_flight);
}

/* Who asks changes neither positions, nor counters, nor the ring */
static void test_unchanged(DpDisk *disk)
{
    g_autofree uint8_t *ring_before = g_malloc(disk->ring_size);
    g_autofree uint8_t *ring_after = g_malloc(disk->ring_size);
    QTestState *qts = disk->vm->qts;
    DpInfo info_before, info_after;
    Status before, after;

    run_some(disk);
    wait_settled(disk, 0, &before);
    dp_queue_wait_in_flight(disk, 0);
    dp_queue_info(disk, &info_before);
    qtest_memread(qts, disk->ring, ring_before, disk->ring_size);
    for (unsigned i = 0; i < 50; i++) {
        qobject_unref(ask_element(disk, i % 2 ? -1 : (int)i));
        read_status(disk, &after);
        g_assert_cmpmem(&before, sizeof(before), &after, sizeof(after));
    }
    dp_queue_info(disk, &info_after);
    assert_same_info(&info_before, &info_after);
    qtest_memread(qts, disk->ring, ring_after, disk->ring_size);
    g_assert_cmpmem(ring_before, disk->ring_size, ring_after, disk->ring_size);
}

/* Under load each answer makes sense, and no request is disturbed */
static void test_load(DpDisk *disk)
{
    DpLoad *load = dp_load_new(disk, 16, 0);

    for (unsigned i = 0; i < 50; i++) {
        Status s;

        dp_load_run(load, 10);
        dp_load_send(load);
        read_status(disk, &s);
        g_assert_cmpint(s.inuse, <=, disk->num);
        g_assert_cmpint(s.desc, ==, disk->vq->desc);
        qobject_unref(ask_element(disk, -1));
    }
    dp_load_finish(load);
    check(disk, 0);
}

int main(int argc, char **argv)
{
    static const DpTest tests[] = {
        { "rest", test_rest, .idle = true },
        { "inflight", test_inflight, .idle = true },
        { "table", test_table, .rings = DP_SPLIT_RING },
        { "paused", test_paused, .idle = true },
        { "reset", test_reset },
        { "hostile", test_hostile, .rings = DP_SPLIT_RING },
        { "packed", test_packed, .rings = DP_PACKED_RING },
        { "unchanged", test_unchanged },
        { "load", test_load },
    };
    static const DpTest frozen = { "frozen", test_frozen };

    g_test_init(&argc, &argv, NULL);
    dp_add_table("query", tests, ARRAY_SIZE(tests), false);
    for (unsigned i = 0; dp_modes[i]; i++) {
        if (strstr(dp_modes[i]->props, "iothread=io0")) {
            dp_add_row("query", &frozen, dp_modes[i]);
        }
    }
    return g_test_run();
}
