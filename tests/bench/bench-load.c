/*
 * The load: requests that a driver keeps in flight, and what they cost
 *
 * One thread serves all queues in turn.  A sweep takes all that is used, makes
 * as many requests anew, and exposes them at once; the clock is read at both
 * ends of a sweep, and a request's latency begins when its sweep does.
 *
 * What is done per request must take a small part of what a device needs, or
 * the driver is what is measured (scripts/bench --measure-driver).  So a cache
 * line that the device reads is written only where it changes, and what a sweep
 * is going to touch is fetched at its beginning.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "bench-clock.h"
#include "bench-load.h"
#include "bench-process.h"

#include <poll.h>
#include <string.h>
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

/* What is done per request: compiled for each Mode */
#define INLINE static inline __attribute__((always_inline))

/* How often a polling driver looks whether the device is still there */
#define IDLE_SPINS      (1 << 16)

typedef struct RequestHeader {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
} RequestHeader;

/* Guest memory of a request beside its data: two cache lines */
typedef struct RequestMemory {
    BenchDesc table[DESCS];     /* the device reads it, and it hardly changes */
    uint64_t pad[2];
    RequestHeader header;       /* in one cache line with the status */
    uint8_t status;
    uint8_t pad2[47];
} RequestMemory;

G_STATIC_ASSERT(sizeof(RequestMemory) == 128);

typedef struct Slot {
    BenchDesc *desc;            /* the three descriptors, wherever they are */
    BenchDesc table;            /* what points at them, if indirect */
    const BenchDesc *in_ring;   /* one or the other */
    uint8_t *data;
    uint64_t start_ns;
    uint64_t block;
    uint32_t type;              /* what its header and descriptors say */
} Slot;

typedef struct LoadQueue {
    BenchRing ring;
    Slot *slots;
    RequestMemory *mem;         /* of each slot */
    unsigned in_flight;
    BenchHistogram *latency;    /* of its disk */
    uint64_t pattern_block;     /* its disk's first one in the pattern */
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
    uint64_t driver_ns;
    uint64_t served;
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
    BenchPattern *pattern;      /* of all disks, one after the other */
    BenchHistogram *disks;      /* latency of each, see BenchResult */

    /* The present run */
    const BenchRun *run;
    BenchResult *result;
    GArray *counters;           /* of instructions, int per serving thread */
    unsigned step;              /* descriptors in the ring of each request */
    unsigned depth;             /* as in run */
    unsigned write_percent;     /* likewise */
    unsigned block_sectors;
    uint32_t max_len;           /* that the device may write of a request */
    Phase phase;
    Reading begin;
    uint64_t blocks;            /* of each disk */
    uint64_t random;
    uint64_t end_ns;            /* of the phase */
    uint64_t progress_ns;       /* when something was used last */
    uint64_t driver_ns;         /* from the beginning of sweeps to their end */
};

/* What a sweep changes with each request: not to be read from memory again */
typedef struct Sweep {
    uint64_t now;
    uint64_t random;
    BenchHistogram *latency;

    /* Requests of one sweep mostly end in one sweep, too: counted together */
    uint64_t same_start_ns;
    unsigned num_same;
} Sweep;

/*
 * What a sweep is compiled for.  One that is plain has a descriptor in the ring
 * per request, nothing to verify, and a new request for each one that ended.
 */
typedef enum Mode {
    MODE_ANY,
    MODE_PLAIN_SPLIT,
    MODE_PLAIN_PACKED,
} Mode;

/* The compiler's own fetches to read, which costs a second trip to write. */
static inline void fetch_to_write(const void *p)
{
#if defined(__x86_64__)
    __asm__ volatile("prefetchw %0" : : "m" (*(const char *)p));
#else
    __builtin_prefetch(p, 1);
#endif
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" : : : "memory");
#endif
}

/*
 * A number below @n.  A linear congruence (Knuth's MMIX) is the least that a
 * random request can cost, and its upper bits, which count here, are good.
 */
INLINE uint64_t random_below(Sweep *s, uint64_t n)
{
    s->random = s->random * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned __int128)s->random * n >> 64;
}

/* Measuring */

static Reading take_reading(BenchLoad *load)
{
    const BenchDevice *dev = load->dev;
    Reading r = {
        .ns = bench_clock_ns(),
        .driver_ns = load->driver_ns,
        .served = dev->ops->served ? dev->ops->served(dev) : 0,
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

    for (unsigned i = 0; i < load->dev->num_disks; i++) {
        bench_histogram_merge(&result->latency, &load->disks[i]);
    }
    result->disks = load->disks;
    result->requests = result->latency.total;
    result->ns = end.ns - begin.ns;
    result->thread_cpu_ns = end.thread_cpu_ns - begin.thread_cpu_ns;
    result->process_cpu_ns = end.process_cpu_ns - begin.process_cpu_ns;
    result->instructions = end.instructions - begin.instructions;
    result->kicks = end.kicks - begin.kicks;
    result->calls = end.calls - begin.calls;
    result->driver_ns = end.driver_ns - begin.driver_ns;
    result->served = end.served - begin.served;
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

/*
 * Points a slot's descriptors at its memory; what varies is set per request.
 * They stand in a table in guest memory, but for chains that stay where they
 * are in the ring for good.  @mem and @data are guest addresses.
 */
static void prepare_slot(BenchLoad *load, LoadQueue *q, unsigned i,
                         uint64_t mem, uint64_t data)
{
    Slot *slot = &q->slots[i];
    BenchRing *ring = &q->ring;
    bool indirect = bench_device_has(load->dev, BENCH_F_INDIRECT_DESC);
    bool in_place = !indirect && bench_ring_has_places(ring);
    unsigned first = in_place ? i * load->step : 0;

    slot->data = load->dev->mem->host + data;
    slot->desc = in_place ? &ring->desc[first] : q->mem[i].table;
    slot->desc[0] = bench_ring_desc(ring,
                                    mem + offsetof(RequestMemory, header),
                                    sizeof(RequestHeader), BENCH_DESC_NEXT,
                                    first + 1);
    slot->desc[1] = bench_ring_desc(ring, data, load->run->block_size,
                                    BENCH_DESC_NEXT | BENCH_DESC_WRITE,
                                    first + 2);
    slot->desc[2] = bench_ring_desc(ring,
                                    mem + offsetof(RequestMemory, status), 1,
                                    BENCH_DESC_WRITE, 0);
    slot->type = TYPE_IN;
    q->mem[i].header = (RequestHeader) { .type = TYPE_IN };
    q->mem[i].status = STATUS_NONE;
    slot->in_ring = slot->desc;
    if (indirect) {
        slot->table = bench_ring_desc(ring, mem, sizeof(q->mem[i].table),
                                      BENCH_DESC_INDIRECT, 0);
        slot->in_ring = &slot->table;
        if (bench_ring_has_places(ring)) {
            ring->desc[i] = slot->table;
        }
    }
}

/* Descriptors in the ring of each request */
INLINE unsigned step_of(const BenchLoad *load, Mode mode)
{
    return mode == MODE_ANY ? load->step : 1;
}

INLINE void add_to_ring(const BenchLoad *load, BenchRing *ring, unsigned i,
                        const BenchDesc *desc, Mode mode)
{
    switch (mode) {
    case MODE_PLAIN_SPLIT:
        bench_split_add(ring, i);
        break;
    case MODE_PLAIN_PACKED:
        bench_packed_add(ring, i, desc);
        break;
    default:
        bench_ring_add(ring, i * load->step, desc);
    }
}

INLINE void add_request(const BenchLoad *load, LoadQueue *q, unsigned i,
                        uint32_t type, uint64_t sector, Mode mode)
{
    Slot *slot = &q->slots[i];
    RequestMemory *mem = &q->mem[i];

    mem->header.sector = sector;
    mem->status = STATUS_NONE;
    if (slot->type != type) {
        slot->type = type;
        mem->header.type = type;
        bench_ring_set_flags(&q->ring, &slot->desc[1], BENCH_DESC_NEXT |
                             (type == TYPE_OUT ? 0 : BENCH_DESC_WRITE));
    }
    add_to_ring(load, &q->ring, i, slot->in_ring, mode);
}

INLINE uint64_t next_sequential(LoadQueue *q)
{
    uint64_t block = q->next_block++;

    if (q->next_block == q->end_block) {
        q->next_block = q->first_block;
    }
    return block;
}

/* The next request's block; false if there is none to be made */
INLINE bool next_block(BenchLoad *load, LoadQueue *q, Sweep *s, Mode mode,
                       uint64_t *block)
{
    const BenchRun *run = load->run;
    bool any = mode == MODE_ANY;

    if (any && load->phase == PHASE_DRAIN) {
        return false;
    }
    if (any && load->phase == PHASE_PREPARE) {
        *block = q->next_block;
        q->next_block += *block < q->end_block;
        return *block < q->end_block;
    }
    do {
        *block = run->random ? random_below(s, load->blocks)
                             : next_sequential(q);
    } while (any && run->verify &&
             !bench_pattern_lock(load->pattern, q->pattern_block + *block));
    return true;
}

INLINE bool next_is_write(BenchLoad *load, Sweep *s, Mode mode)
{
    unsigned percent = load->write_percent;

    if (mode == MODE_ANY && load->phase == PHASE_PREPARE) {
        return true;
    }
    return percent && (percent == 100 || random_below(s, 100) < percent);
}

/* False if there is none to be made */
INLINE bool make_request(BenchLoad *load, LoadQueue *q, Sweep *s, unsigned i,
                         Mode mode)
{
    Slot *slot = &q->slots[i];
    uint64_t block;
    bool write;

    if (!next_block(load, q, s, mode, &block)) {
        return false;
    }
    write = next_is_write(load, s, mode);
    slot->start_ns = s->now;
    slot->block = block;
    if (mode == MODE_ANY && write && load->run->verify) {
        bench_pattern_fill(load->pattern, q->pattern_block + block,
                           slot->data);
    }
    add_request(load, q, i, write ? TYPE_OUT : TYPE_IN,
                block * load->block_sectors, mode);
    return true;
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

static bool status_error(const BenchLoad *load, const LoadQueue *q,
                         unsigned i, GError **errp)
{
    const Slot *slot = &q->slots[i];

    g_set_error(errp, BENCH_ERROR, 0, "request failed: %s of %u bytes at "
                "block %" G_GUINT64_FORMAT " ended with status %u",
                slot->type == TYPE_OUT ? "write" : "read", load->run->block_size,
                slot->block, q->mem[i].status);
    return false;
}

/* The slot whose chain has this head; by a constant, as division is slow */
INLINE unsigned slot_of_head(unsigned step, uint32_t head)
{
    return step == 1 ? head : head / DESCS;
}

INLINE bool is_chain(const BenchLoad *load, unsigned step, BenchUsed used,
                     unsigned i)
{
    return i < load->depth && i * step == used.id;
}

/*
 * Is it one of our chains, in flight, used as it should be?  The status is
 * STATUS_NONE in all chains that the device has not used.
 */
INLINE bool is_sound(const BenchLoad *load, const LoadQueue *q, unsigned step,
                     BenchUsed used, unsigned i)
{
    return is_chain(load, step, used, i) && used.len <= load->max_len &&
           !q->mem[i].status;
}

/* Always false: what is_sound() has found */
static bool tell_fault(const BenchLoad *load, const LoadQueue *q,
                       BenchUsed used, unsigned i, GError **errp)
{
    if (!is_chain(load, load->step, used, i)) {
        return used_error(q, errp, "the device used what is no chain", used);
    }
    if (q->mem[i].status == STATUS_NONE) {
        return used_error(q, errp, "the device used a chain twice, or wrote no "
                          "status", used);
    }
    if (used.len > load->max_len) {
        return used_error(q, errp, "the device wrote beyond the chain", used);
    }
    return status_error(load, q, i, errp);
}

static bool verify_slot(BenchLoad *load, const LoadQueue *q, const Slot *slot,
                        GError **errp)
{
    uint64_t block = q->pattern_block + slot->block;

    if (slot->type == TYPE_IN) {
        if (!bench_pattern_check(load->pattern, block, slot->data, errp)) {
            return false;
        }
        load->result->verified++;
    }
    bench_pattern_unlock(load->pattern, block);
    return true;
}

static void count(const BenchLoad *load, const Sweep *s)
{
    if (s->num_same && load->phase == PHASE_MEASURE) {
        bench_histogram_add(s->latency, s->now - s->same_start_ns,
                            s->num_same);
    }
}

INLINE void count_one(const BenchLoad *load, Sweep *s, uint64_t start)
{
    if (start != s->same_start_ns) {
        count(load, s);
        s->same_start_ns = start;
        s->num_same = 0;
    }
    s->num_same++;
}

INLINE BenchUsed take_from_ring(BenchRing *ring, Mode mode)
{
    switch (mode) {
    case MODE_PLAIN_SPLIT:
        return bench_split_take(ring);
    case MODE_PLAIN_PACKED:
        return bench_packed_take(ring);
    default:
        return bench_ring_take(ring);
    }
}

INLINE bool complete_one(BenchLoad *load, LoadQueue *q, Sweep *s, Mode mode,
                         GError **errp)
{
    BenchUsed used = take_from_ring(&q->ring, mode);
    unsigned i = slot_of_head(step_of(load, mode), used.id);

    if (!is_sound(load, q, step_of(load, mode), used, i)) {
        return tell_fault(load, q, used, i, errp);
    }
    if (mode == MODE_ANY && load->run->verify && load->phase != PHASE_PREPARE &&
        !verify_slot(load, q, &q->slots[i], errp)) {
        return false;
    }
    count_one(load, s, q->slots[i].start_ns);
    if (!make_request(load, q, s, i, mode)) {
        q->mem[i].status = STATUS_NONE;
        q->in_flight--;
    }
    return true;
}

/*
 * The device has written the status of each of these @n requests, and is going
 * to read the header: one line after the other would be waited for.
 */
INLINE void fetch_used(const BenchLoad *load, const LoadQueue *q, Mode mode,
                       uint16_t n)
{
    for (unsigned k = 0; k < n; k++) {
        unsigned i = slot_of_head(step_of(load, mode),
                                  bench_ring_peek(&q->ring, k));

        /* A hint, which may point anywhere */
        fetch_to_write(&q->mem[i].header);
    }
}

INLINE Sweep begin_sweep(const BenchLoad *load, const LoadQueue *q,
                         uint64_t now)
{
    return (Sweep) {
        .now = now, .random = load->random, .latency = q->latency,
    };
}

INLINE void end_sweep(BenchLoad *load, const Sweep *s)
{
    count(load, s);
    load->random = s->random;
}

/* Takes @n used buffers */
INLINE bool take_used(BenchLoad *load, LoadQueue *q, uint16_t n, uint64_t now,
                      Mode mode, GError **errp)
{
    Sweep s = begin_sweep(load, q, now);
    bool ok = true;

    fetch_used(load, q, mode, n);
    while (n-- && ok) {
        ok = complete_one(load, q, &s, mode, errp);
    }
    end_sweep(load, &s);
    return ok;
}

/* Functions of their own, as they need all of the registers */

static __attribute__((noinline)) bool
take_plain_split(BenchLoad *load, LoadQueue *q, uint16_t n, uint64_t now,
                 GError **errp)
{
    return take_used(load, q, n, now, MODE_PLAIN_SPLIT, errp);
}

static __attribute__((noinline)) bool
take_plain_packed(BenchLoad *load, LoadQueue *q, uint16_t n, uint64_t now,
                  GError **errp)
{
    return take_used(load, q, n, now, MODE_PLAIN_PACKED, errp);
}

static __attribute__((noinline)) bool
take_any(BenchLoad *load, LoadQueue *q, uint16_t n, uint64_t now,
         GError **errp)
{
    return take_used(load, q, n, now, MODE_ANY, errp);
}

static Mode mode_of(const BenchLoad *load, const LoadQueue *q)
{
    if (load->run->verify || load->step != 1 ||
        (load->phase != PHASE_WARMUP && load->phase != PHASE_MEASURE)) {
        return MODE_ANY;
    }
    if (q->ring.packed) {
        return MODE_PLAIN_PACKED;
    }
    return q->ring.in_order ? MODE_ANY : MODE_PLAIN_SPLIT;
}

static bool take_all(BenchLoad *load, LoadQueue *q, uint16_t n, uint64_t now,
                     GError **errp)
{
    switch (mode_of(load, q)) {
    case MODE_PLAIN_SPLIT:
        return take_plain_split(load, q, n, now, errp);
    case MODE_PLAIN_PACKED:
        return take_plain_packed(load, q, n, now, errp);
    default:
        return take_any(load, q, n, now, errp);
    }
}

static bool sweep_queue(BenchLoad *load, LoadQueue *q, uint64_t now,
                        GError **errp)
{
    uint16_t n = bench_ring_has_used(&q->ring);

    if (n > q->in_flight) {
        return used_error(q, errp, "the device used more than it was given",
                          (BenchUsed) {});
    }
    if (!take_all(load, q, n, now, errp)) {
        return false;
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
    if (bench_clock_ns() - load->progress_ns < stall_ns) {
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

static bool wait_used(BenchLoad *load, GError **errp)
{
    BenchDevice *dev = load->dev;

    if (dev->ops->serve) {
        dev->ops->serve(dev);
        return true;
    }
    return load->run->notified ? wait_notified(load, errp)
                               : wait_polling(load, errp);
}

/* Runs */

static bool run_phase(BenchLoad *load, GError **errp)
{
    for (;;) {
        uint64_t now = bench_clock_ns();

        load->progress_ns = now;
        for (unsigned i = 0; i < load->dev->num_queues; i++) {
            if (!sweep_queue(load, &load->queues[i], now, errp)) {
                return false;
            }
        }
        load->driver_ns += bench_clock_ns() - now;
        advance_phase(load, now);
        if (!total_in_flight(load)) {
            return true;
        }
        if (!wait_used(load, errp)) {
            return false;
        }
    }
}

static void fill_queue(BenchLoad *load, LoadQueue *q, uint64_t now)
{
    Sweep s = begin_sweep(load, q, now);

    for (unsigned i = 0; i < load->depth; i++) {
        q->in_flight += make_request(load, q, &s, i, MODE_ANY);
    }
    end_sweep(load, &s);
}

static bool begin_phase(BenchLoad *load, Phase phase, GError **errp)
{
    unsigned per_disk = bench_device_disk_queues(load->dev);
    uint64_t now = bench_clock_ns();

    load->phase = phase;
    load->end_ns = now + load->run->warmup_ms * MS;
    for (unsigned i = 0; i < load->dev->num_queues; i++) {
        LoadQueue *q = &load->queues[i];
        unsigned part = i % per_disk;

        q->latency = &load->disks[i / per_disk];
        q->pattern_block = load->blocks * (i / per_disk);
        q->first_block = load->blocks * part / per_disk;
        q->end_block = load->blocks * (part + 1) / per_disk;
        q->next_block = q->first_block;
        fill_queue(load, q, now);
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
        run->depth * load->step > dev->queues[0].size) {
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
    if (load->blocks / 2 <
        (uint64_t)run->depth * bench_device_disk_queues(dev)) {
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

        uint64_t own = bench_memory_alloc(mem, run->depth *
                                          sizeof(RequestMemory), 4096);

        /* Side by side, as Linux has them: pages have few sets of a cache. */
        q->mem = (RequestMemory *)(mem->host + own);
        q->slots = g_renew(Slot, q->slots, run->depth);
        memset(q->slots, 0, run->depth * sizeof(Slot));
        for (unsigned j = 0; j < run->depth; j++) {
            prepare_slot(load, q, j, own + j * sizeof(RequestMemory),
                         bench_memory_alloc(mem, run->block_size, 4096));
        }
    }
}

/* Writes all blocks if it is not known what they hold */
static bool prepare_pattern(BenchLoad *load, GError **errp)
{
    uint64_t blocks = load->blocks * load->dev->num_disks;

    if (!load->run->verify) {
        g_clear_pointer(&load->pattern, bench_pattern_free);
        return true;
    }
    if (load->pattern && load->pattern->blocks == blocks &&
        load->pattern->block_size == load->run->block_size) {
        return true;
    }
    bench_pattern_free(load->pattern);
    load->pattern = bench_pattern_new(blocks, load->run->block_size);
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

/* With what is used per request where it is nearer */
static void use_run(BenchLoad *load, const BenchRun *run)
{
    load->run = run;
    load->depth = run->depth;
    load->write_percent = run->write_percent;
    load->block_sectors = run->block_size / SECTOR;
    load->max_len = run->block_size + 1;
}

bool bench_load_run(BenchLoad *load, const BenchRun *run, BenchResult *result,
                    GError **errp)
{
    BenchMemory *mem = load->dev->mem;
    uint64_t mark = mem->next;
    bool ok;

    memset(result, 0, sizeof(*result));
    memset(load->disks, 0, load->dev->num_disks * sizeof(*load->disks));
    use_run(load, run);
    load->result = result;
    load->random = run->seed;
    if (!check_run(load, run, errp) ||
        !bench_device_quiet(load->dev, errp)) {
        return false;
    }
    prepare_slots(load);
    open_counters(load);
    ok = prepare_pattern(load, errp) &&
         begin_phase(load, PHASE_WARMUP, errp);
    close_counters(load);
    if (ok && load->dev->ops->served && result->served != result->requests) {
        g_set_error(errp, BENCH_ERROR, 0, "the driver counted %"
                    G_GUINT64_FORMAT " requests, the device %" G_GUINT64_FORMAT,
                    result->requests, result->served);
        ok = false;
    }
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

    add_request(load, q, 0, TYPE_GET_ID, 0, MODE_ANY);
    q->in_flight = 1;
    bench_ring_want_call(&q->ring);
    bench_ring_expose(&q->ring);
    load->progress_ns = bench_clock_ns();
    while (!bench_ring_has_used(&q->ring)) {
        if (!check_stall(load, PROBE_NS, errp)) {
            return false;
        }
        g_usleep(100);
    }
    used = bench_ring_take(&q->ring);
    q->in_flight = 0;
    i = slot_of_head(load->step, used.id);
    return is_sound(load, q, load->step, used, i) ||
           tell_fault(load, q, used, i, errp);
}

static void prepare_probe(BenchLoad *load)
{
    static const BenchRun run = { .block_size = ID_BYTES, .depth = 1 };

    use_run(load, &run);
    prepare_slots(load);
}

BenchLoad *bench_load_new(BenchDevice *dev, GError **errp)
{
    BenchLoad *load = g_new0(BenchLoad, 1);
    bool packed = bench_device_has(dev, BENCH_F_RING_PACKED);

    load->dev = dev;
    load->step = bench_device_has(dev, BENCH_F_INDIRECT_DESC) ? 1 : DESCS;
    load->queues = g_new0(LoadQueue, dev->num_queues);
    load->disks = g_new0(BenchHistogram, dev->num_disks);
    for (unsigned i = 0; i < dev->num_queues; i++) {
        bench_ring_layout(&dev->queues[i], packed, dev->mem);
        bench_ring_init(&load->queues[i].ring, &dev->queues[i], dev,
                        load->step);
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
    g_free(load->disks);
    g_free(load);
}
