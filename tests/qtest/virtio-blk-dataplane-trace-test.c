/*
 * Trace events of each request: its begin and its end
 *
 * What QEMU writes to its log is compared with what the driver has done: each
 * request begins once and ends once, with the names and numbers that the driver
 * and the user know.  May know the format of the two events, and that an event
 * is in the log before the driver can see what it tells.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "virtio-blk-dataplane-common.h"

#define OK VIRTIO_BLK_S_OK
#define IOERR VIRTIO_BLK_S_IOERR
#define UNSUPP VIRTIO_BLK_S_UNSUPP
#define NO_STATUS (-1)              /* the driver is not told */
#define N 3
#define APART 1000                  /* sectors: neighbors would be merged */
#define LEN 4096
#define EVENTS "virtio_blk_data_plane_request_"

/* --- the log --------------------------------------------------------- */

typedef struct Event {
    bool begin;
    char id[64];
    unsigned queue;
    unsigned head;
    uint32_t type;                  /* from here on: of a begin */
    uint64_t sector;
    uint64_t bytes;
    int status;                     /* of an end */
} Event;

static bool parse_event(const char *line, Event *e)
{
    memset(e, 0, sizeof(*e));
    if (sscanf(line, EVENTS "begin id %63s queue %u head %u type %" SCNu32
               " sector %" SCNu64 " bytes %" SCNu64, e->id, &e->queue, &e->head,
               &e->type, &e->sector, &e->bytes) == 6) {
        e->begin = true;
        return true;
    }
    return sscanf(line, EVENTS "end id %63s queue %u head %u status %d", e->id,
                  &e->queue, &e->head, &e->status) == 4;
}

/* All events up to now; each line of the log must be one */
static GArray *events(void)
{
    g_autofree char *path = dp_tmp("trace.log");
    GArray *found = g_array_new(false, false, sizeof(Event));
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    lines = g_strsplit(text, "\n", 0);
    for (unsigned i = 0; lines[i] && *lines[i]; i++) {
        Event e;

        if (!parse_event(lines[i], &e)) {
            g_error("no event of a request: %s", lines[i]);
        }
        g_array_append_val(found, e);
    }
    return found;
}

static const Event *event_at(GArray *found, unsigned i)
{
    g_assert_cmpuint(i, <, found->len);
    return &g_array_index(found, Event, i);
}

/* Does the end of a request follow each begin, and nothing but a begin that? */
static void assert_pairs(GArray *found)
{
    g_autoptr(GHashTable) open = g_hash_table_new_full(g_str_hash, g_str_equal,
                                                       g_free, NULL);

    for (unsigned i = 0; i < found->len; i++) {
        const Event *e = event_at(found, i);
        char *key = g_strdup_printf("%s %u %u", e->id, e->queue, e->head);

        if (e->begin) {
            if (!g_hash_table_add(open, key)) {
                g_error("event %u: a second begin", i);
            }
        } else {
            if (!g_hash_table_remove(open, key)) {
                g_error("event %u: an end without a begin: %s", i, key);
            }
            g_free(key);
        }
    }
    g_assert_cmpuint(g_hash_table_size(open), ==, 0);
}

/* How many ends have @status?  All requests are in pairs. */
static unsigned count_ends(GArray *found, int status)
{
    unsigned n = 0;

    assert_pairs(found);
    for (unsigned i = 0; i < found->len; i++) {
        const Event *e = event_at(found, i);

        n += !e->begin && e->status == status;
    }
    return n;
}

static void assert_ends(int status, unsigned n)
{
    g_autoptr(GArray) found = events();

    g_assert_cmpuint(count_ends(found, status), ==, n);
}

static unsigned count_events(void)
{
    g_autoptr(GArray) found = events();

    return found->len;
}

static void assert_who(const Event *e, bool begin, const char *id,
                       DpDisk *queue, const DpReq *req)
{
    g_assert_true(e->begin == begin);
    g_assert_cmpstr(e->id, ==, id);
    g_assert_cmpuint(e->queue, ==, queue->index);
    g_assert_cmpuint(e->head, ==, req->head);
}

/* Event @i is the end of @req */
static void assert_end(GArray *found, unsigned i, DpDisk *queue,
                       const DpReq *req, int status)
{
    assert_who(event_at(found, i), false, "d0", queue, req);
    g_assert_cmpint(event_at(found, i)->status, ==, status);
}

/* Event @i is the begin of @req, a read or write */
static void assert_begin(GArray *found, unsigned i, DpDisk *queue,
                         const DpReq *req)
{
    const Event *e = event_at(found, i);

    assert_who(e, true, "d0", queue, req);
    g_assert_cmpuint(e->type, ==, req->type);
    g_assert_cmpuint(e->sector, ==, req->sector);
    g_assert_cmpuint(e->bytes, ==, req->len);
}

/* --- VMs ------------------------------------------------------------- */

static char *traced(const char *props, const char *pattern)
{
    g_autofree char *log = dp_tmp("trace.log");

    return g_strdup_printf("%s -trace '%s' -D %s", props, pattern, log);
}

static DpVm *vm_traced(const DpMode *mode)
{
    g_autofree char *more = traced("", EVENTS "*");

    return dp_vm_file(mode, DP_IMAGE_SIZE, more);
}

static DpVm *vm_two_queues(const DpMode *mode)
{
    g_autofree char *more = traced(",num-queues=2", EVENTS "*");

    return dp_vm_file(mode, DP_IMAGE_SIZE, more);
}

static DpVm *vm_parking(const DpMode *mode)
{
    g_autofree char *more = traced("", EVENTS "*");

    return dp_vm_parking(mode, more);
}

static DpVm *vm_with_regs(const DpMode *mode)
{
    g_autofree char *more = traced(" -device pc-testdev", EVENTS "*");

    return dp_vm_file(mode, DP_IMAGE_SIZE, more);
}

/* Nothing is traced before somebody asks for it. */
static DpVm *vm_untraced(const DpMode *mode)
{
    g_autofree char *more = traced("", "qmp_job_cancel");

    return dp_vm_file(mode, DP_IMAGE_SIZE, more);
}

/* --- what is told of a request --------------------------------------- */

typedef struct Type {
    uint32_t type;
    uint64_t sector;
    uint32_t len;               /* of the data; of a segment: 16 */
    uint64_t bytes;
    uint8_t status;
} Type;

static const Type types[] = {
    { VIRTIO_BLK_T_IN, 0, LEN, LEN, OK },
    { VIRTIO_BLK_T_IN, 8, 3 * LEN, 3 * LEN, OK },
    { VIRTIO_BLK_T_IN, DP_CAPACITY, 512, 512, IOERR },
    { VIRTIO_BLK_T_IN, UINT64_MAX, 512, 512, IOERR },
    { VIRTIO_BLK_T_OUT, 8, LEN, LEN, OK },
    { VIRTIO_BLK_T_OUT, DP_CAPACITY - 1, 1024, 1024, IOERR },
    { VIRTIO_BLK_T_FLUSH, 0, 0, 0, OK },
    { VIRTIO_BLK_T_DISCARD, 16, 16, LEN, OK },
    { VIRTIO_BLK_T_DISCARD, DP_CAPACITY, 16, LEN, IOERR },
    { VIRTIO_BLK_T_WRITE_ZEROES, 64, 16, LEN, OK },
    { VIRTIO_BLK_T_WRITE_ZEROES, DP_CAPACITY, 16, LEN, IOERR },
    { VIRTIO_BLK_T_GET_ID, 0, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_ID_BYTES, OK },
    { 98, 7, 512, 512, UNSUPP },
    { 99, 7, 512, 512, UNSUPP },
};

static DpReq *type_req(DpDisk *queue, const Type *t)
{
    struct virtio_blk_discard_write_zeroes seg = {
        .sector = cpu_to_le64(t->sector),
        .num_sectors = cpu_to_le32(LEN / DP_SECTOR),
    };
    bool has_segment = t->type == VIRTIO_BLK_T_DISCARD ||
                       t->type == VIRTIO_BLK_T_WRITE_ZEROES;
    DpReq *req = dp_req(queue, t->type, has_segment ? 0 : t->sector, t->len);

    if (has_segment) {
        qtest_memwrite(queue->vm->qts, req->data, &seg, sizeof(seg));
    }
    return req;
}

/* covers: M2, U1: each type that succeeds or fails, in each framing */
static void test_types(DpDisk *disk)
{
    unsigned n = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(types); i++) {
        for (DpFraming framing = 0; framing < DP_FRAMING__MAX; framing++) {
            const Type *t = &types[i];
            DpReq *req = type_req(disk, t);
            g_autoptr(GArray) found = NULL;

            req->framing = framing;
            g_assert_cmpint(dp_run(disk, req), ==, t->status);
            found = events();
            g_assert_cmpuint(found->len, ==, n + 2);
            assert_who(event_at(found, n), true, "d0", disk, req);
            g_assert_cmpuint(event_at(found, n)->type, ==, t->type);
            g_assert_cmpuint(event_at(found, n)->sector, ==, t->sector);
            g_assert_cmpuint(event_at(found, n)->bytes, ==, t->bytes);
            assert_end(found, n + 1, disk, req, t->status);
            dp_req_free(disk, req);
            n += 2;
        }
    }
}

/* Each queue has its number. */
static void test_queues(DpDisk *disk)
{
    DpDisk *queue[] = { disk, dp_disk_queue(disk, 1) };

    dp_disk_start(disk, DP_F_ALL);
    for (unsigned i = 0; i < 4; i++) {
        DpDisk *q = queue[i % 2];
        DpReq *req = dp_req(q, VIRTIO_BLK_T_IN, i, DP_SECTOR);
        g_autoptr(GArray) found = NULL;

        g_assert_cmpint(dp_run(q, req), ==, OK);
        found = events();
        g_assert_cmpuint(found->len, ==, 2 * (i + 1));
        assert_begin(found, 2 * i, q, req);
        assert_end(found, 2 * i + 1, q, req, OK);
        dp_req_free(q, req);
    }
}

/* A disk without an id has its QOM path, which is that of its bus device. */
static void test_names(const DpMode *mode)
{
    static const char *const names[] = {
        "d0", "/machine/peripheral-anon/device[0]", "another",
    };
    g_autofree char *trace = traced("", EVENTS "*");
    DpVm *vm = dp_vm_start(
        "-blockdev null-co,node-name=n0,size=1048576 "
        "-blockdev null-co,node-name=n1,size=1048576 "
        "-blockdev null-co,node-name=n2,size=1048576 "
        "-device virtio-blk-pci,id=d0,drive=n0,addr=%d%s "
        "-device virtio-blk-pci,drive=n1,addr=%d%s "
        "-device virtio-blk-pci,id=another,drive=n2,addr=%d%s %s",
        DP_SLOT, mode->props, DP_SLOT + 1, mode->props, DP_SLOT + 2,
        mode->props, trace);

    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        DpDisk *disk = dp_disk_probe(vm, names[i], DP_SLOT + i);
        DpReq *req = dp_req(disk, VIRTIO_BLK_T_IN, 0, DP_SECTOR);
        g_autoptr(GArray) found = NULL;

        dp_disk_start(disk, DP_F_ALL);
        g_assert_cmpint(dp_run(disk, req), ==, OK);
        found = events();
        g_assert_cmpuint(found->len, ==, 2 * (i + 1));
        assert_who(event_at(found, 2 * i), true, names[i], disk, req);
        assert_who(event_at(found, 2 * i + 1), false, names[i], disk, req);
        dp_req_free(disk, req);
        dp_disk_free(disk);
    }
    dp_vm_quit(vm);
}

/* --- pairs ----------------------------------------------------------- */

static void submit(DpDisk *disk, DpReq **req, uint32_t type, unsigned apart)
{
    for (unsigned i = 0; i < N; i++) {
        req[i] = dp_req(disk, type, apart * i, LEN);
        dp_submit(disk, req[i]);
    }
    dp_kick(disk);
}

static void finish(DpDisk *disk, DpReq **req)
{
    dp_wait_all(disk);
    for (unsigned i = 0; i < N; i++) {
        g_assert_cmpint(req[i]->status, ==, OK);
        dp_req_free(disk, req[i]);
    }
}

/* Requests that are merged have their own events; so have those that are not */
static void test_batches(DpDisk *disk)
{
    static const unsigned apart[] = { LEN / DP_SECTOR, APART };
    static const uint32_t type[] = { VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT };
    unsigned n = 0;

    for (unsigned i = 0; i < 4; i++) {
        DpReq *req[N];

        submit(disk, req, type[i % 2], apart[i / 2]);
        finish(disk, req);
        n += N;
        assert_ends(OK, n);
        g_assert_cmpuint(count_events(), ==, 2 * n);
    }
}

/* covers: M9: parked is an end, and tried again another begin */
static void test_parked(DpDisk *disk)
{
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_OUT, APART, LEN);
    g_autoptr(GArray) found = NULL;

    dp_submit(disk, req);
    dp_kick(disk);
    qtest_qmp_eventwait(disk->vm->qts, "STOP");
    assert_ends(NO_STATUS, 1);
    g_assert_cmpuint(count_events(), ==, 2);

    dp_cont(disk->vm);
    dp_wait(disk, req);
    g_assert_cmpint(req->status, ==, OK);
    found = events();
    g_assert_cmpuint(found->len, ==, 4);
    for (unsigned i = 0; i < found->len; i += 2) {
        assert_begin(found, i, disk, req);
        assert_end(found, i + 1, disk, req, i ? OK : NO_STATUS);
    }
    dp_req_free(disk, req);
}

/* covers: M8, M9: what is parked and dropped by a reset has ended already */
static void test_parked_reset(DpDisk *disk)
{
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_OUT, APART, LEN);

    dp_submit(disk, req);
    dp_kick(disk);
    qtest_qmp_eventwait(disk->vm->qts, "STOP");
    dp_cont(disk->vm);
    dp_disk_reset(disk);
    dp_req_drop(disk, &req, 1);
    dp_disk_start(disk, DP_F_ALL);
    dp_assert_works(disk);
    assert_ends(NO_STATUS, 1);
}

/* The header says something else when it is parsed again: so does the event. */
static void test_parked_rewritten(DpDisk *disk)
{
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_OUT, APART, LEN);
    g_autoptr(GArray) found = NULL;

    dp_submit(disk, req);
    dp_kick(disk);
    qtest_qmp_eventwait(disk->vm->qts, "STOP");
    req->sector = DP_CAPACITY;
    qtest_writeq(disk->vm->qts,
                 req->page + offsetof(struct virtio_blk_outhdr, sector),
                 req->sector);
    dp_cont(disk->vm);
    dp_wait(disk, req);
    g_assert_cmpint(req->status, ==, IOERR);
    found = events();
    g_assert_cmpuint(found->len, ==, 4);
    assert_begin(found, 2, disk, req);
    assert_end(found, 3, disk, req, IOERR);
    dp_req_free(disk, req);
}

static void hold(DpDisk *disk, DpReq **req)
{
    dp_hold(disk);
    submit(disk, req, VIRTIO_BLK_T_IN, APART);
    dp_queue_wait_in_flight(disk, N);
}

/* covers: M8: what a reset finds in flight ends before the reset does */
static void test_reset(DpDisk *disk)
{
    DpReq *req[N];

    hold(disk, req);
    dp_disk_reset(disk);
    dp_req_drop(disk, req, N);
    assert_ends(OK, N + 1);
}

/* covers: RST-4: so does the reset of the queue alone */
static void test_queue_reset(DpDisk *disk)
{
    DpReq *req[N];

    hold(disk, req);
    dp_queue_reset(disk);
    dp_req_drop(disk, req, N);
    assert_ends(OK, N + 1);
}

/* covers: M3: and a stop, after which all goes on */
static void test_stop(DpDisk *disk)
{
    DpReq *req[N];

    hold(disk, req);
    dp_stop(disk->vm);
    assert_ends(OK, N + 1);
    dp_cont(disk->vm);
    dp_release(disk);
    finish(disk, req);
    assert_ends(OK, N + 1);
}

/* covers: M6: and an unplug */
static void test_unplug(DpDisk *disk)
{
    DpReq *req[N];

    hold(disk, req);
    dp_unplug(disk->vm);
    dp_req_drop(disk, req, N);
    assert_ends(OK, N + 1);
}

/*
 * covers: ROBB-1: the driver breaks the device in the middle of a batch: what
 * comes later is dropped, and ends without a status
 */
static void test_broken(DpDisk *disk)
{
    uint64_t page = guest_alloc(&disk->vm->alloc, 4096);
    DpSeg seg[] = { { page, 4, 0 }, { page + 64, 1, VRING_DESC_F_WRITE } };
    DpReq *req[N];

    req[0] = dp_req(disk, VIRTIO_BLK_T_IN, 0, LEN);
    dp_submit(disk, req[0]);
    /* Its header has 4 bytes. */
    dp_avail(disk, dp_chain(disk, seg, ARRAY_SIZE(seg)));
    for (unsigned i = 1; i < N; i++) {
        req[i] = dp_req(disk, VIRTIO_BLK_T_IN, APART * i, LEN);
        dp_submit(disk, req[i]);
    }
    dp_kick(disk);
    dp_assert_broken(disk);
    dp_disk_reset(disk);
    dp_req_drop(disk, req, N);
    assert_ends(NO_STATUS, N);
    g_assert_cmpuint(count_events(), ==, 2 * (N + 1));
    guest_free(&disk->vm->alloc, page);
}

/* A register of QEMU's test device, which is no RAM */
#define REGISTERS 0xff000000ull

/* covers: E4: the way through the main loop, there and back */
static void test_bounced(DpDisk *disk)
{
    static const uint32_t type[] = { VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT };

    for (unsigned i = 0; i < ARRAY_SIZE(type); i++) {
        DpReq *req = dp_req(disk, type[i], 8, DP_SECTOR);
        g_autoptr(GArray) found = NULL;

        req->data = REGISTERS;
        g_assert_cmpint(dp_run(disk, req), ==, OK);
        found = events();
        g_assert_cmpuint(found->len, ==, 2 * (i + 1));
        assert_begin(found, 2 * i, disk, req);
        assert_end(found, 2 * i + 1, disk, req, OK);
        dp_req_free(disk, req);
    }
}

/* Under load as many begin and end as complete. */
static void test_load(DpDisk *disk)
{
    DpLoad *load = dp_load_new(disk, 16, 0);
    DpInfo info;

    dp_load_run(load, 400);
    dp_load_finish(load);
    dp_info(disk->vm, "d0", &info);
    g_assert_cmpint(info.completed, >=, 400);
    assert_ends(OK, info.completed);
}

static void set_state(DpVm *vm, const char *event, bool on)
{
    dp_qmp_ok(vm, NULL, "{'execute': 'trace-event-set-state', 'arguments': {"
              " 'name': %s, 'enable': %i }}", event, on);
}

/* They can be switched while the VM runs, each on its own. */
static void test_switch(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    unsigned n;

    dp_assert_works(disk);
    g_assert_cmpuint(count_events(), ==, 0);
    set_state(vm, EVENTS "end", true);
    dp_assert_works(disk);
    n = count_events();
    g_assert_cmpuint(n, ==, 2);
    set_state(vm, EVENTS "end", false);
    set_state(vm, EVENTS "begin", true);
    dp_assert_works(disk);
    g_assert_cmpuint(count_events(), ==, 2 * n);
    set_state(vm, EVENTS "begin", false);
    dp_assert_works(disk);
    g_assert_cmpuint(count_events(), ==, 2 * n);
}

/* QEMU's own path has other events. */
static void test_own_path(DpDisk *disk)
{
    dp_assert_works(disk);
    g_assert_cmpuint(count_events(), ==, 0);
}

/* Nor has what it parks, and restarts. */
static void test_own_path_parked(DpDisk *disk)
{
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_OUT, APART, LEN);

    dp_submit(disk, req);
    dp_kick(disk);
    qtest_qmp_eventwait(disk->vm->qts, "STOP");
    dp_cont(disk->vm);
    dp_wait(disk, req);
    g_assert_cmpint(req->status, ==, OK);
    dp_req_free(disk, req);
    g_assert_cmpuint(count_events(), ==, 0);
}

int main(int argc, char **argv)
{
    static const DpTest tests[] = {
        { "types", test_types, .vm = vm_traced },
        { "queues", test_queues, .vm = vm_two_queues, .idle = true },
        { "names", .own_vm = test_names },
        { "batches", test_batches, .vm = vm_traced },
        { "parked", test_parked, .vm = vm_parking },
        { "parked-reset", test_parked_reset, .vm = vm_parking },
        { "parked-rewritten", test_parked_rewritten, .vm = vm_parking },
        { "reset", test_reset, .vm = vm_traced, .ends_unserved = true },
        { "queue-reset", test_queue_reset, .vm = vm_traced,
          .ends_unserved = true },
        { "stop", test_stop, .vm = vm_traced },
        { "unplug", test_unplug, .vm = vm_traced, .ends_unserved = true },
        { "broken", test_broken, .vm = vm_traced, .ends_unserved = true },
        { "load", test_load, .vm = vm_traced },
        { "switch", test_switch, .vm = vm_untraced },
    };
    static const DpTest bounced = {
        "bounced", test_bounced, .vm = vm_with_regs
    };
    static const DpTest own_path[] = {
        { "own-path", test_own_path, .vm = vm_traced },
        { "own-path-parked", test_own_path_parked, .vm = vm_parking },
    };

    g_test_init(&argc, &argv, NULL);
#ifdef CONFIG_TRACE_LOG
    dp_add_table("trace", tests, ARRAY_SIZE(tests), true);
    if (qtest_has_device("pc-testdev")) {
        dp_add_table("trace", &bounced, 1, true);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(own_path); i++) {
        dp_add_row("trace", &own_path[i], &dp_mode_off);
    }
#endif
    return g_test_run();
}
