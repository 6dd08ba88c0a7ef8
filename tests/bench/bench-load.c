/*
 * The load: requests that a driver keeps in flight, and what they cost
 *
 * One thread serves all queues in turn.  A sweep takes all that is used, makes
 * as many requests anew, and exposes them at once; the clock is read once per
 * sweep, so that a request's latency begins when its sweep does.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "bench-load.h"
#include "bench-process.h"

#include <poll.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Request types (5.2.6) and the status that no device writes */
#define TYPE_IN         0
#define TYPE_OUT        1
#define TYPE_GET_ID     8
#define STATUS_NONE     0xff

#define ID_BYTES        20
#define SECTOR          512
#define DESCS           3       /* of a request: header, data, status */

/* Nothing for this long is a request lost; a guard, not a measure */
#define STALL_NS        (20 * 1000000000ull)
#define PROBE_NS        (10 * 1000000000ull)
#define MS              1000000ull

/* How often a polling driver looks whether the device is still there */
#define IDLE_SPINS      (1 << 16)

typedef struct RequestHeader {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
} RequestHeader;

/* Guest memory of a request beside its data */
typedef struct RequestMemory {
    BenchDesc table[DESCS];
    uint64_t pad[2];
    RequestHeader header;       /* in one cache line with the status */
    uint8_t status;
} RequestMemory;

typedef struct Slot {
    RequestMemory *mem;
    BenchDesc *desc;            /* the three descriptors, wherever they are */
    BenchDesc table;            /* what points at them, if indirect */
    const BenchDesc *in_ring;   /* one or the other */
    uint8_t *data;
    uint64_t start_ns;
    uint64_t block;
    bool write;
    bool in_flight;
} Slot;

typedef struct LoadQueue {
    BenchRing ring;
    Slot *slots;
    unsigned in_flight;
    uint64_t next_block;        /* sequential runs */
    uint64_t first_block;
    uint64_t end_block;
} LoadQueue;

/* Readings at one end of the measured time */
typedef struct Reading {
    uint64_t ns;
    uint64_t thread_cpu_ns;
    uint64_t process_cpu_ns;
    uint64_t instructions;
    uint64_t kicks;
    uint64_t calls;
} Reading;

typedef enum Phase {
    PHASE_PREPARE,              /* each block is written once */
    PHASE_WARMUP,
    PHASE_MEASURE,
    PHASE_DRAIN,
} Phase;

struct BenchLoad {
    BenchDevice *dev;
    LoadQueue *queues;
    BenchPattern *pattern;

    /* The present run */
    const BenchRun *run;
    BenchResult *result;
    GArray *counters;           /* of instructions, int per serving thread */
    Phase phase;
    Reading begin;
    uint64_t blocks;
    uint64_t random;
    uint64_t end_ns;            /* of the phase */
    uint64_t progress_ns;       /* when something was used last */
};

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" : : : "memory");
#endif
}

/* xorshift64*: the least that a random request can cost */
static uint64_t next_random(BenchLoad *load)
{
    load->random ^= load->random >> 12;
    load->random ^= load->random << 25;
    load->random ^= load->random >> 27;
    return load->random * 0x2545f4914f6cdd1dull;
}

/* A number below @n, without a division */
static uint64_t random_below(BenchLoad *load, uint64_t n)
{
    return (unsigned __int128)next_random(load) * n >> 64;
}

/* Measuring */

static Reading take_reading(BenchLoad *load)
{
    const BenchDevice *dev = load->dev;
    Reading r = {
        .ns = now_ns(),
        .process_cpu_ns = dev->pid ? bench_process_cpu_ns(dev->pid) : 0,
    };

    for (unsigned i = 0; i < dev->threads->len; i++) {
        pid_t tid = g_array_index(dev->threads, BenchThread, i).tid;

        r.thread_cpu_ns += bench_thread_cpu_ns(dev->pid, tid);
        r.instructions +=
            bench_instructions_read(g_array_index(load->counters, int, i));
    }
    for (unsigned i = 0; i < dev->num_queues; i++) {
        bench_ring_take_calls(&load->queues[i].ring);
        r.kicks += load->queues[i].ring.kicks;
        r.calls += load->queues[i].ring.calls;
    }
    return r;
}

static void finish_measurement(BenchLoad *load)
{
    Reading begin = load->begin, end = take_reading(load);
    BenchResult *result = load->result;

    result->requests = result->latency.total;
    result->ns = end.ns - begin.ns;
    result->thread_cpu_ns = end.thread_cpu_ns - begin.thread_cpu_ns;
    result->process_cpu_ns = end.process_cpu_ns - begin.process_cpu_ns;
    result->instructions = end.instructions - begin.instructions;
    result->kicks = end.kicks - begin.kicks;
    result->calls = end.calls - begin.calls;
}

static void advance_phase(BenchLoad *load, uint64_t now)
{
    switch (load->phase) {
    case PHASE_WARMUP:
        if (now >= load->end_ns) {
            load->phase = PHASE_MEASURE;
            load->begin = take_reading(load);
            load->end_ns = load->begin.ns + load->run->time_ms * MS;
        }
        break;
    case PHASE_MEASURE:
        if (now >= load->end_ns) {
            finish_measurement(load);
            load->phase = PHASE_DRAIN;
        }
        break;
    default:
        break;
    }
}

/* Making requests */

static unsigned descs_in_ring(const BenchDevice *dev)
{
    return bench_device_has(dev, BENCH_F_INDIRECT_DESC) ? 1 : DESCS;
}

static unsigned head_of_slot(const BenchLoad *load, unsigned i)
{
    return i * descs_in_ring(load->dev);
}

/*
 * Points a slot's descriptors at its memory; what varies is set per request.
 * They stand in a table in guest memory, but for chains that stay where they
 * are in the ring for good.
 */
static void prepare_slot(BenchLoad *load, LoadQueue *q, unsigned i,
                         uint64_t mem, uint64_t data)
{
    Slot *slot = &q->slots[i];
    BenchRing *ring = &q->ring;
    bool indirect = bench_device_has(load->dev, BENCH_F_INDIRECT_DESC);
    uint8_t *host = load->dev->mem->host;
    bool in_place = !indirect && bench_ring_has_places(ring);
    unsigned first = in_place ? head_of_slot(load, i) : 0;

    slot->mem = (RequestMemory *)(host + mem);
    slot->data = host + data;
    slot->desc = in_place ? &ring->desc[first] : slot->mem->table;
    slot->desc[0] = bench_ring_desc(ring,
                                    mem + offsetof(RequestMemory, header),
                                    sizeof(RequestHeader), BENCH_DESC_NEXT,
                                    first + 1);
    slot->desc[1] = bench_ring_desc(ring, data, load->run->block_size, 0,
                                    first + 2);
    slot->desc[2] = bench_ring_desc(ring,
                                    mem + offsetof(RequestMemory, status), 1,
                                    BENCH_DESC_WRITE, 0);
    slot->in_ring = slot->desc;
    if (indirect) {
        slot->table = bench_ring_desc(ring, mem, sizeof(slot->mem->table),
                                      BENCH_DESC_INDIRECT, 0);
        slot->in_ring = &slot->table;
        if (bench_ring_has_places(ring)) {
            ring->desc[i] = slot->table;
        }
    }
}

static void add_request(BenchLoad *load, LoadQueue *q, unsigned i,
                        uint32_t type, uint64_t sector)
{
    Slot *slot = &q->slots[i];

    slot->mem->header.type = type;
    slot->mem->header.sector = sector;
    slot->mem->status = STATUS_NONE;
    bench_ring_set_flags(&q->ring, &slot->desc[1], type == TYPE_OUT ?
                         BENCH_DESC_NEXT : BENCH_DESC_NEXT | BENCH_DESC_WRITE);
    slot->in_flight = true;
    q->in_flight++;
    bench_ring_add(&q->ring, head_of_slot(load, i), slot->in_ring);
}

static uint64_t next_sequential(LoadQueue *q)
{
    uint64_t block = q->next_block++;

    if (q->next_block == q->end_block) {
        q->next_block = q->first_block;
    }
    return block;
}

/* The next request's block; false if there is none to be made */
static bool next_block(BenchLoad *load, LoadQueue *q, uint64_t *block)
{
    const BenchRun *run = load->run;

    if (load->phase == PHASE_DRAIN) {
        return false;
    }
    if (load->phase == PHASE_PREPARE) {
        *block = q->next_block;
        q->next_block += *block < q->end_block;
        return *block < q->end_block;
    }
    do {
        *block = run->random ? random_below(load, load->blocks)
                             : next_sequential(q);
    } while (run->verify && !bench_pattern_lock(load->pattern, *block));
    return true;
}

static void make_request(BenchLoad *load, LoadQueue *q, unsigned i,
                         uint64_t now)
{
    const BenchRun *run = load->run;
    Slot *slot = &q->slots[i];

    if (!next_block(load, q, &slot->block)) {
        return;
    }
    slot->start_ns = now;
    slot->write = load->phase == PHASE_PREPARE ||
                  (run->write_percent &&
                   random_below(load, 100) < run->write_percent);
    if (slot->write && run->verify) {
        bench_pattern_fill(load->pattern, slot->block, slot->data);
    }
    add_request(load, q, i, slot->write ? TYPE_OUT : TYPE_IN,
                slot->block * (run->block_size / SECTOR));
}

/* Completing requests */

static bool used_error(const LoadQueue *q, GError **errp, const char *what,
                       BenchUsed used)
{
    g_autofree char *ring = bench_ring_describe(&q->ring);

    g_set_error(errp, BENCH_ERROR, 0, "%s (used element: id %u, len %u): %s",
                what, used.id, used.len, ring);
    return false;
}

static bool check_used(const BenchLoad *load, const LoadQueue *q,
                       BenchUsed used, unsigned *i, GError **errp)
{
    unsigned step = head_of_slot(load, 1);
    const Slot *slot;

    *i = used.id / step;
    if (used.id % step || *i >= load->run->depth) {
        return used_error(q, errp, "the device used what is no chain", used);
    }
    slot = &q->slots[*i];
    if (!slot->in_flight) {
        return used_error(q, errp, "the device used a chain twice", used);
    }
    if (used.len > load->run->block_size + 1) {
        return used_error(q, errp, "the device wrote beyond the chain", used);
    }
    if (slot->mem->status) {
        g_set_error(errp, BENCH_ERROR, 0, "request failed: %s of %u bytes at "
                    "block %" G_GUINT64_FORMAT " ended with status %u",
                    slot->write ? "write" : "read", load->run->block_size,
                    slot->block, slot->mem->status);
        return false;
    }
    return true;
}

static bool verify_slot(BenchLoad *load, const Slot *slot, GError **errp)
{
    if (!slot->write) {
        if (!bench_pattern_check(load->pattern, slot->block, slot->data,
                                 errp)) {
            return false;
        }
        load->result->verified++;
    }
    bench_pattern_unlock(load->pattern, slot->block);
    return true;
}

static bool complete_one(BenchLoad *load, LoadQueue *q, uint64_t now,
                         GError **errp)
{
    BenchUsed used = bench_ring_take(&q->ring);
    Slot *slot;
    unsigned i;

    if (!check_used(load, q, used, &i, errp)) {
        return false;
    }
    slot = &q->slots[i];
    slot->in_flight = false;
    q->in_flight--;
    if (load->run->verify && load->phase != PHASE_PREPARE &&
        !verify_slot(load, slot, errp)) {
        return false;
    }
    if (load->phase == PHASE_MEASURE) {
        bench_histogram_add(&load->result->latency, now - slot->start_ns);
    }
    make_request(load, q, i, now);
    return true;
}

static bool sweep_queue(BenchLoad *load, LoadQueue *q, uint64_t now,
                        GError **errp)
{
    uint16_t n = bench_ring_has_used(&q->ring);

    if (n > q->in_flight) {
        return used_error(q, errp, "the device used more than it was given",
                          (BenchUsed) {});
    }
    while (n--) {
        if (!complete_one(load, q, now, errp)) {
            return false;
        }
    }
    bench_ring_expose(&q->ring);
    if (!load->run->notified) {
        bench_ring_no_calls(&q->ring);
    }
    return true;
}

/* Waiting */

static bool any_used(const BenchLoad *load)
{
    for (unsigned i = 0; i < load->dev->num_queues; i++) {
        if (bench_ring_has_used(&load->queues[i].ring)) {
            return true;
        }
    }
    return false;
}

static unsigned total_in_flight(const BenchLoad *load)
{
    unsigned n = 0;

    for (unsigned i = 0; i < load->dev->num_queues; i++) {
        n += load->queues[i].in_flight;
    }
    return n;
}

/* Nothing came for a while: is the device still there? */
static bool check_stall(BenchLoad *load, uint64_t stall_ns, GError **errp)
{
    if (!bench_device_alive(load->dev, errp)) {
        return false;
    }
    if (now_ns() - load->progress_ns < stall_ns) {
        return true;
    }
    for (unsigned i = 0; i < load->dev->num_queues; i++) {
        const LoadQueue *q = &load->queues[i];

        if (q->in_flight) {
            g_autofree char *ring = bench_ring_describe(&q->ring);

            g_set_error(errp, BENCH_ERROR, 0, "stall: %u requests of queue %u "
                        "have not ended for %.0f s, so they are lost or nobody "
                        "was notified: %s", q->in_flight, i, stall_ns / 1e9,
                        ring);
            return false;
        }
    }
    return true;
}

static bool wait_polling(BenchLoad *load, GError **errp)
{
    for (;;) {
        for (unsigned i = 0; i < IDLE_SPINS; i++) {
            if (any_used(load)) {
                return true;
            }
            relax();
        }
        if (!check_stall(load, STALL_NS, errp)) {
            return false;
        }
    }
}

/* Asks for notifications; false if there is no need to wait for one */
static bool want_calls(BenchLoad *load)
{
    bool wait = true;

    for (unsigned i = 0; i < load->dev->num_queues; i++) {
        wait &= bench_ring_want_call(&load->queues[i].ring);
    }
    return wait;
}

static bool wait_notified(BenchLoad *load, GError **errp)
{
    unsigned n = load->dev->num_queues;
    g_autofree struct pollfd *fds = NULL;

    if (!want_calls(load)) {
        return true;
    }
    fds = g_new0(struct pollfd, n);
    for (unsigned i = 0; i < n; i++) {
        fds[i].fd = load->dev->queues[i].call_fd;
        fds[i].events = POLLIN;
    }
    while (poll(fds, n, 1000) <= 0) {
        if (!check_stall(load, STALL_NS, errp)) {
            return false;
        }
    }
    for (unsigned i = 0; i < n; i++) {
        if (fds[i].revents) {
            bench_ring_take_calls(&load->queues[i].ring);
        }
    }
    return true;
}

/* Runs */

static bool run_phase(BenchLoad *load, GError **errp)
{
    for (;;) {
        uint64_t now = now_ns();

        load->progress_ns = now;
        for (unsigned i = 0; i < load->dev->num_queues; i++) {
            if (!sweep_queue(load, &load->queues[i], now, errp)) {
                return false;
            }
        }
        advance_phase(load, now);
        if (!total_in_flight(load)) {
            return true;
        }
        if (!(load->run->notified ? wait_notified(load, errp)
                                  : wait_polling(load, errp))) {
            return false;
        }
    }
}

static bool begin_phase(BenchLoad *load, Phase phase, GError **errp)
{
    uint64_t now = now_ns();

    load->phase = phase;
    load->end_ns = now + load->run->warmup_ms * MS;
    for (unsigned i = 0; i < load->dev->num_queues; i++) {
        LoadQueue *q = &load->queues[i];

        q->first_block = load->blocks * i / load->dev->num_queues;
        q->end_block = load->blocks * (i + 1) / load->dev->num_queues;
        q->next_block = q->first_block;
        for (unsigned j = 0; j < load->run->depth; j++) {
            make_request(load, q, j, now);
        }
    }
    return run_phase(load, errp);
}

static bool refuse(GError **errp, const char *why)
{
    g_set_error(errp, BENCH_ERROR, 0, "%s", why);
    return false;
}

static bool check_run(BenchLoad *load, const BenchRun *run, GError **errp)
{
    const BenchDevice *dev = load->dev;
    uint64_t size = dev->capacity * SECTOR;
    uint64_t need = (uint64_t)dev->num_queues * run->depth *
                    (sizeof(RequestMemory) + 64 + run->block_size + 4096);

    if (!run->depth ||
        head_of_slot(load, run->depth) > dev->queues[0].size) {
        return refuse(errp, "the queue has not enough descriptors for this "
                      "depth: lower it, or use indirect descriptors");
    }
    if (dev->read_only && (run->write_percent || run->verify)) {
        return refuse(errp, "the disk is read-only: neither write nor verify");
    }
    if (!run->block_size || run->block_size % SECTOR) {
        return refuse(errp, "the block size is not a multiple of 512");
    }
    if (need > bench_memory_left(dev->mem)) {
        return refuse(errp, "the guest has not enough memory for this depth "
                      "and block size: raise --memory");
    }
    if (run->region > size) {
        return refuse(errp, "the region is larger than the disk");
    }
    load->blocks = (run->region ? run->region : size) / run->block_size;
    if (load->blocks / 2 < (uint64_t)run->depth * dev->num_queues) {
        return refuse(errp, "the disk is too small for this depth and block "
                      "size");
    }
    return true;
}

static void prepare_slots(BenchLoad *load)
{
    BenchMemory *mem = load->dev->mem;
    const BenchRun *run = load->run;

    for (unsigned i = 0; i < load->dev->num_queues; i++) {
        LoadQueue *q = &load->queues[i];

        q->slots = g_renew(Slot, q->slots, run->depth);
        memset(q->slots, 0, run->depth * sizeof(Slot));
        for (unsigned j = 0; j < run->depth; j++) {
            uint64_t own = bench_memory_alloc(mem, sizeof(RequestMemory), 64);
            uint64_t data = bench_memory_alloc(mem, run->block_size, 4096);

            prepare_slot(load, q, j, own, data);
        }
    }
}

/* Writes all blocks if it is not known what they hold */
static bool prepare_pattern(BenchLoad *load, GError **errp)
{
    if (!load->run->verify) {
        g_clear_pointer(&load->pattern, bench_pattern_free);
        return true;
    }
    if (load->pattern && load->pattern->blocks == load->blocks &&
        load->pattern->block_size == load->run->block_size) {
        return true;
    }
    bench_pattern_free(load->pattern);
    load->pattern = bench_pattern_new(load->blocks, load->run->block_size);
    return begin_phase(load, PHASE_PREPARE, errp);
}

/* The threads are known only once the device is quiet. */
static void open_counters(BenchLoad *load)
{
    const GArray *threads = load->dev->threads;

    load->counters = g_array_new(FALSE, FALSE, sizeof(int));
    for (unsigned i = 0; i < threads->len; i++) {
        int fd = bench_instructions_open(g_array_index(threads, BenchThread,
                                                       i).tid);

        g_array_append_val(load->counters, fd);
    }
}

static void close_counters(BenchLoad *load)
{
    for (unsigned i = 0; i < load->counters->len; i++) {
        int fd = g_array_index(load->counters, int, i);

        if (fd >= 0) {
            close(fd);
        }
    }
    g_array_free(load->counters, TRUE);
}

bool bench_load_run(BenchLoad *load, const BenchRun *run, BenchResult *result,
                    GError **errp)
{
    BenchMemory *mem = load->dev->mem;
    uint64_t mark = mem->next;
    bool ok;

    memset(result, 0, sizeof(*result));
    load->run = run;
    load->result = result;
    load->random = run->seed * 2 + 1;
    if (!check_run(load, run, errp) ||
        !bench_device_quiet(load->dev, errp)) {
        return false;
    }
    prepare_slots(load);
    open_counters(load);
    ok = prepare_pattern(load, errp) &&
         begin_phase(load, PHASE_WARMUP, errp);
    close_counters(load);
    mem->next = mark;
    return bench_device_resume(load->dev, ok ? errp : NULL) && ok;
}

/* Starting */

/* See BenchProbeFunc; reads the disk's serial number, which is harmless */
static bool probe(void *opaque, unsigned queue, GError **errp)
{
    BenchLoad *load = opaque;
    LoadQueue *q = &load->queues[queue];
    BenchUsed used;
    unsigned i;

    bench_ring_want_call(&q->ring);
    add_request(load, q, 0, TYPE_GET_ID, 0);
    bench_ring_expose(&q->ring);
    load->progress_ns = now_ns();
    while (!bench_ring_has_used(&q->ring)) {
        if (!check_stall(load, PROBE_NS, errp)) {
            return false;
        }
        g_usleep(100);
    }
    used = bench_ring_take(&q->ring);
    if (!check_used(load, q, used, &i, errp)) {
        return false;
    }
    q->slots[0].in_flight = false;
    q->in_flight = 0;
    return true;
}

static void prepare_probe(BenchLoad *load)
{
    static const BenchRun run = { .block_size = ID_BYTES, .depth = 1 };

    load->run = &run;
    prepare_slots(load);
}

BenchLoad *bench_load_new(BenchDevice *dev, GError **errp)
{
    BenchLoad *load = g_new0(BenchLoad, 1);
    bool packed = bench_device_has(dev, BENCH_F_RING_PACKED);

    load->dev = dev;
    load->queues = g_new0(LoadQueue, dev->num_queues);
    for (unsigned i = 0; i < dev->num_queues; i++) {
        bench_ring_layout(&dev->queues[i], packed, dev->mem);
        bench_ring_init(&load->queues[i].ring, &dev->queues[i], dev,
                        descs_in_ring(dev));
    }
    prepare_probe(load);
    if (!bench_device_start(dev, probe, load, errp)) {
        bench_load_free(load);
        return NULL;
    }
    return load;
}

void bench_load_free(BenchLoad *load)
{
    if (!load) {
        return;
    }
    for (unsigned i = 0; i < load->dev->num_queues; i++) {
        g_free(load->queues[i].slots);
        bench_ring_cleanup(&load->queues[i].ring);
    }
    bench_pattern_free(load->pattern);
    g_free(load->queues);
    g_free(load);
}
