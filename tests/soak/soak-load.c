/*
 * The load: every queue full of requests that are verified
 *
 * A queue polls its used ring for a while or sleeps until it is notified, as
 * chance has it.  One that sleeps does not look at its ring: a notification
 * that is lost shows as a queue that does not wake up.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "bench-ring.h"
#include "soak-load.h"

#include <string.h>
#include <unistd.h>

/* Request types (5.2.6) and the status that no device writes */
#define TYPE_IN             0
#define TYPE_OUT            1
#define TYPE_FLUSH          4
#define TYPE_GET_ID         8
#define TYPE_DISCARD        11
#define TYPE_WRITE_ZEROES   13
#define STATUS_NONE         0xff
#define ID_BYTES            20

#define MAX_BLOCKS          16      /* of a request */
#define DEEP                128     /* so many requests per queue are small */
#define MAX_PARTS           3       /* descriptors of its data */
#define MAX_DESCS           (MAX_PARTS + 2)
#define RING_BYTES          (64 * 1024)     /* more than 1024 entries take */

/* Of memory that nobody may write to any more, and how long that is watched */
#define SCRIBBLE            0xee
#define WATCH_US            2000

/* A queue that finds nothing goes to sleep one time in ... */
#define SLEEP_CHANCE        8

/* A queue is notified without need one time in ... */
#define KICK_CHANCE         32

/* How often a place on the disk is looked for that no request is at work on */
#define PLACE_TRIES         32

#define SECOND_NS           1000000000ull
#define IDLE_US             50

typedef struct RequestHeader {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
} RequestHeader;

/* Of discard and write zeroes (5.2.6) */
typedef struct RequestRange {
    uint64_t sector;
    uint32_t sectors;
    uint32_t flags;
} RequestRange;

/* Guest memory of a request beside its data */
typedef struct RequestMemory {
    BenchDesc table[MAX_DESCS];
    RequestHeader header;
    RequestRange range;
    uint8_t status;
} RequestMemory;

typedef struct Slot {
    RequestMemory *mem;
    uint64_t mem_addr;
    BenchDesc *desc;            /* MAX_DESCS of them, wherever they are */
    BenchDesc to_table;         /* what stands in the ring for a table */
    uint16_t first_desc;        /* index of the first among its equals */
    uint8_t *own;               /* its data in the guest's own memory */
    uint64_t own_addr;
    /* The request */
    uint32_t type;
    uint64_t block;
    unsigned blocks;            /* that it has locked, 0: none */
    uint8_t *data;
    unsigned writable;          /* bytes */
    uint64_t start_ns;
    bool in_flight;
    bool elsewhere;             /* data in added memory */
    bool unverified;
} Slot;

typedef struct Queue {
    BenchRing ring;
    Slot *slots;
    unsigned in_flight;
    bool asleep;
    uint64_t progress_ns;       /* when something was used last */
} Queue;

/* What new requests are made of */
typedef enum Mode {
    MODE_MIXED,
    MODE_NONE,
    MODE_VERIFY,
} Mode;

struct SoakLoad {
    SoakDevice *dev;
    SoakDisk *disk;
    unsigned depth;
    unsigned max_blocks;        /* of a request */
    unsigned data_bytes;        /* that it may need */
    uint64_t stall_ns;
    GRand *rand;
    Queue *queues;
    unsigned num_queues;
    uint64_t rings;             /* guest address of the first */
    uint64_t rings_end;
    bool running;
    bool indirect;
    Mode mode;
    uint64_t next_verify;
    int copy;                   /* file for what is read then, or -1 */
    uint64_t extra_addr;        /* added memory */
    uint8_t *extra;
    uint64_t extra_size;
    SoakUse use;
    bool clock;
    unsigned drop_kicks;        /* faults that are planted */
    unsigned drop_irqs;
    SoakStats stats;
};

static uint64_t now_ns(void)
{
    return g_get_monotonic_time() * 1000;
}

static unsigned below(SoakLoad *load, unsigned n)
{
    return g_rand_int_range(load->rand, 0, n);
}

/* Making and freeing */

/* Where thousands are in flight, each finds a place of its own on the disk. */
static unsigned max_blocks(unsigned depth)
{
    return depth > DEEP ? 1 : MAX_BLOCKS;
}

uint64_t soak_load_memory_size(unsigned queues, unsigned depth)
{
    uint64_t slot = max_blocks(depth) * SOAK_BLOCK + 4096;

    return queues * (RING_BYTES + depth * slot);
}

static void alloc_slot(SoakLoad *load, Slot *slot)
{
    BenchMemory *mem = load->dev->parent.mem;

    slot->mem_addr = bench_memory_alloc(mem, sizeof(RequestMemory), 64);
    slot->mem = (RequestMemory *)(mem->host + slot->mem_addr);
    slot->own_addr = bench_memory_alloc(mem, load->data_bytes, 4096);
    slot->own = mem->host + slot->own_addr;
}

SoakLoad *soak_load_new(SoakDevice *dev, SoakDisk *disk, unsigned depth,
                        unsigned stall_s, uint32_t seed)
{
    SoakLoad *load = g_new0(SoakLoad, 1);

    load->dev = dev;
    load->disk = disk;
    load->depth = depth;
    load->max_blocks = max_blocks(depth);
    load->data_bytes = load->max_blocks * SOAK_BLOCK;
    load->stall_ns = stall_s * SECOND_NS;
    load->copy = -1;
    load->rand = g_rand_new_with_seed(seed);
    load->num_queues = dev->wanted_queues;
    load->queues = g_new0(Queue, load->num_queues);
    for (unsigned i = 0; i < load->num_queues; i++) {
        load->queues[i].slots = g_new0(Slot, depth);
        for (unsigned j = 0; j < depth; j++) {
            alloc_slot(load, &load->queues[i].slots[j]);
        }
    }
    /* Last, as they are laid out anew at each start. */
    load->rings = dev->parent.mem->next;
    return load;
}

void soak_load_free(SoakLoad *load)
{
    if (!load) {
        return;
    }
    for (unsigned i = 0; i < load->num_queues; i++) {
        bench_ring_cleanup(&load->queues[i].ring);
        g_free(load->queues[i].slots);
    }
    g_free(load->queues);
    g_rand_free(load->rand);
    g_free(load);
}

/* Starting and leaving */

/* The table of slot @j has @n entries now */
static void refer_to_table(Queue *q, Slot *slot, unsigned j, unsigned n)
{
    slot->to_table = bench_ring_desc(&q->ring, slot->mem_addr,
                                     n * sizeof(BenchDesc),
                                     BENCH_DESC_INDIRECT, 0);
    if (bench_ring_has_places(&q->ring)) {
        q->ring.desc[j] = slot->to_table;
    }
}

static void place_descriptors(SoakLoad *load, Queue *q)
{
    for (unsigned j = 0; j < load->depth; j++) {
        Slot *slot = &q->slots[j];

        slot->first_desc = load->indirect ? 0 : j * MAX_DESCS;
        slot->desc = load->indirect ? slot->mem->table
                                    : &q->ring.desc[slot->first_desc];
        if (load->indirect) {
            /* Who looks at the ring from outside may see this. */
            refer_to_table(q, slot, j, MAX_DESCS);
        }
    }
}

/* The areas of queue @i have their place; it begins with an empty ring. */
static void empty_ring(SoakLoad *load, unsigned i)
{
    BenchDevice *dev = &load->dev->parent;
    Queue *q = &load->queues[i];
    uint64_t begin = dev->queues[i].desc;
    uint64_t end = i + 1 < load->num_queues ? dev->queues[i + 1].desc
                                            : load->rings_end;

    memset(dev->mem->host + begin, 0, end - begin);
    /* Without a table a chain stays in its place, and may be shorter. */
    bench_ring_cleanup(&q->ring);
    bench_ring_init(&q->ring, &dev->queues[i], dev,
                    load->indirect ? 1 : MAX_DESCS);
    place_descriptors(load, q);
}

static bool lay_out_rings(SoakLoad *load, GError **errp)
{
    BenchDevice *dev = &load->dev->parent;
    bool packed = bench_device_has(dev, BENCH_F_RING_PACKED);
    unsigned descs = load->depth * (load->indirect ? 1 : MAX_DESCS);

    dev->mem->next = load->rings;
    for (unsigned i = 0; i < load->num_queues; i++) {
        bench_ring_layout(&dev->queues[i], packed, dev->mem);
        if (descs > dev->queues[i].size) {
            g_set_error(errp, BENCH_ERROR, 0, "%u requests do not fit into a "
                        "queue of %u entries: lower --depth", load->depth,
                        dev->queues[i].size);
            return false;
        }
    }
    load->rings_end = dev->mem->next;
    for (unsigned i = 0; i < load->num_queues; i++) {
        empty_ring(load, i);
    }
    return true;
}

bool soak_load_start(SoakLoad *load, GError **errp)
{
    bool elsewhere = below(load, 2);

    /* Only a table may have another length each time, if not in its place. */
    load->indirect = elsewhere || load->depth > DEEP || below(load, 2);
    if (!soak_device_reset(load->dev, load->indirect, below(load, 2),
                           elsewhere && below(load, 3), elsewhere, errp) ||
        !soak_load_leave(load, false, errp) ||
        !lay_out_rings(load, errp) ||
        !soak_device_start(load->dev, errp) ||
        !soak_device_find_notifiers(load->dev, errp)) {
        return false;
    }
    if (load->dev->parent.capacity * SOAK_SECTOR <
        load->disk->blocks * SOAK_BLOCK) {
        g_set_error(errp, BENCH_ERROR, 0, "the disk has become smaller than "
                    "what the driver uses");
        return false;
    }
    load->running = true;
    soak_load_resume(load);
    return true;
}

static bool is_scribbled(const Slot *slot)
{
    const uint8_t *data = slot->data;

    if (slot->mem->status != SCRIBBLE) {
        return false;
    }
    for (unsigned i = 0; slot->type == TYPE_IN && !slot->elsewhere &&
                         i < slot->blocks * SOAK_BLOCK; i++) {
        if (data[i] != SCRIBBLE) {
            return false;
        }
    }
    return true;
}

static void scribble(Slot *slot)
{
    slot->mem->status = SCRIBBLE;
    if (slot->type == TYPE_IN && !slot->elsewhere) {
        memset(slot->data, SCRIBBLE, slot->blocks * SOAK_BLOCK);
    }
}

/* Whether it was done or not, nobody knows: the disk's range stays open. */
static void forget(SoakLoad *load, Queue *q, Slot *slot)
{
    slot->in_flight = false;
    q->in_flight--;
    load->stats.forgotten++;
    soak_disk_unlock(load->disk, slot->block, slot->blocks);
}

static void for_all_in_flight(SoakLoad *load, Queue *q,
                              void (*fn)(SoakLoad *, Queue *, Slot *))
{
    for (unsigned j = 0; j < load->depth; j++) {
        if (q->slots[j].in_flight) {
            fn(load, q, &q->slots[j]);
        }
    }
}

static void scribble_one(SoakLoad *load, Queue *q, Slot *slot)
{
    scribble(slot);
}

/*
 * A device that was reset leaves the driver's memory alone (2.4.1), and so does
 * a queue (2.6.1): queues @first to @end - 1.
 */
static bool watch_memory(SoakLoad *load, unsigned first, unsigned end,
                         GError **errp)
{
    for (unsigned i = first; i < end; i++) {
        for_all_in_flight(load, &load->queues[i], scribble_one);
    }
    g_usleep(WATCH_US);
    for (unsigned i = first; i < end; i++) {
        for (unsigned j = 0; j < load->depth; j++) {
            const Slot *slot = &load->queues[i].slots[j];

            if (slot->in_flight && !is_scribbled(slot)) {
                g_set_error(errp, BENCH_ERROR, 0, "the device was reset and "
                            "writes to the memory of request %u of queue %u, "
                            "type %u, block %" G_GUINT64_FORMAT, j, i,
                            slot->type, slot->block);
                return false;
            }
        }
    }
    return true;
}

static void forget_all(SoakLoad *load, Queue *q)
{
    for_all_in_flight(load, q, forget);
    q->asleep = false;
}

bool soak_load_leave(SoakLoad *load, bool reset, GError **errp)
{
    if (reset) {
        bench_pci_reset(&load->dev->pci);
    }
    load->running = false;
    soak_device_no_notifiers(load->dev);
    if (bench_qtest_failed(load->dev->qt, errp) ||
        !watch_memory(load, 0, load->num_queues, errp)) {
        return false;
    }
    for (unsigned i = 0; i < load->num_queues; i++) {
        forget_all(load, &load->queues[i]);
    }
    return true;
}

bool soak_load_reset_queue(SoakLoad *load, GError **errp)
{
    unsigned i = below(load, load->num_queues);
    Queue *q = &load->queues[i];

    if (!soak_device_reset_queue(load->dev, i, errp) ||
        !watch_memory(load, i, i + 1, errp)) {
        return false;
    }
    forget_all(load, q);
    empty_ring(load, i);
    q->progress_ns = now_ns();
    return soak_device_enable_queue(load->dev, i, errp);
}

void soak_load_resume(SoakLoad *load)
{
    for (unsigned i = 0; i < load->num_queues; i++) {
        load->queues[i].progress_ns = now_ns();
    }
}

/* Making requests */

static uint32_t choose_type(SoakLoad *load)
{
    static const struct {
        uint32_t type;
        unsigned percent;
        unsigned feature;
    } types[] = {
        { TYPE_OUT, 52, 0 },
        { TYPE_IN, 37, 0 },
        { TYPE_FLUSH, 1, SOAK_F_FLUSH },
        { TYPE_WRITE_ZEROES, 4, SOAK_F_WRITE_ZEROES },
        { TYPE_DISCARD, 4, SOAK_F_DISCARD },
        { TYPE_GET_ID, 2, 0 },
    };
    unsigned dice = below(load, 100);

    for (unsigned i = 0; i < G_N_ELEMENTS(types); i++) {
        if (dice < types[i].percent) {
            return !types[i].feature ||
                   bench_device_has(&load->dev->parent, types[i].feature) ?
                   types[i].type : TYPE_IN;
        }
        dice -= types[i].percent;
    }
    g_assert_not_reached();
}

/* Sets the slot's blocks and locks them; false if others are in the way */
static bool choose_blocks(SoakLoad *load, Slot *slot)
{
    uint64_t blocks = load->disk->blocks;

    if (load->mode == MODE_VERIFY) {
        slot->block = load->next_verify;
        slot->blocks = MIN(load->max_blocks, blocks - slot->block);
        load->next_verify += slot->blocks;
        return slot->blocks && soak_disk_lock(load->disk, slot->block,
                                              slot->blocks);
    }
    if (slot->type == TYPE_FLUSH || slot->type == TYPE_GET_ID) {
        slot->block = slot->blocks = 0;
        return true;
    }
    /* Half of them small */
    slot->blocks = below(load, 2) ? 1 : 1 + below(load, load->max_blocks);
    for (unsigned i = 0; i < PLACE_TRIES; i++) {
        slot->block = below(load, blocks - slot->blocks + 1);
        if (soak_disk_lock(load->disk, slot->block, slot->blocks)) {
            return true;
        }
    }
    return false;
}

static void choose_memory(SoakLoad *load, Queue *q, Slot *slot)
{
    uint64_t number = (q - load->queues) * load->depth + (slot - q->slots);
    uint64_t at = number * load->data_bytes;

    slot->elsewhere = load->use != SOAK_USE_NONE &&
                      load->mode == MODE_MIXED && below(load, 2) &&
                      (slot->type == TYPE_IN || (slot->type == TYPE_OUT &&
                       load->use == SOAK_USE_CAREFUL));
    slot->unverified = slot->elsewhere && load->use == SOAK_USE_RUDE;
    if (slot->elsewhere && at + load->data_bytes > load->extra_size) {
        at = at % load->extra_size & ~(load->data_bytes - 1ull);
    }
    slot->data = slot->elsewhere ? load->extra + at : slot->own;
    slot->desc[1].addr = slot->elsewhere ? load->extra_addr + at
                                         : slot->own_addr;
    load->stats.elsewhere += slot->elsewhere;
}

/* Splits descriptor 1 into some at random; returns the number */
static unsigned split_data(SoakLoad *load, Slot *slot)
{
    unsigned parts = 1 + below(load, MAX_PARTS);
    unsigned sectors = slot->desc[1].len / SOAK_SECTOR;
    unsigned n;

    for (n = 1; n < parts && sectors > 1; n++) {
        unsigned here = 1 + below(load, sectors - 1);

        slot->desc[n + 1].addr = slot->desc[n].addr + here * SOAK_SECTOR;
        slot->desc[n + 1].len = (sectors - here) * SOAK_SECTOR;
        slot->desc[n].len = here * SOAK_SECTOR;
        sectors -= here;
    }
    return n;
}

static void set_range(SoakLoad *load, Slot *slot)
{
    RequestMemory *mem = slot->mem;

    mem->range = (RequestRange) {
        .sector = slot->block * (SOAK_BLOCK / SOAK_SECTOR),
        .sectors = slot->blocks * (SOAK_BLOCK / SOAK_SECTOR),
        /* Write zeroes: may be done by unmapping */
        .flags = slot->type == TYPE_WRITE_ZEROES ? below(load, 2) : 0,
    };
    slot->desc[1].addr = slot->mem_addr + offsetof(RequestMemory, range);
    slot->desc[1].len = sizeof(mem->range);
    soak_disk_zero(load->disk, slot->block, slot->blocks);
}

/* Sets data and its descriptors, from 1 on; returns their number */
static unsigned set_data(SoakLoad *load, Queue *q, Slot *slot)
{
    choose_memory(load, q, slot);
    slot->desc[1].len = slot->blocks * SOAK_BLOCK;
    switch (slot->type) {
    case TYPE_FLUSH:
        return 0;
    case TYPE_GET_ID:
        slot->desc[1].len = ID_BYTES;
        return 1;
    case TYPE_DISCARD:
    case TYPE_WRITE_ZEROES:
        set_range(load, slot);
        return 1;
    case TYPE_OUT:
        soak_disk_write(load->disk, slot->block, slot->blocks, slot->data);
        return split_data(load, slot);
    default:
        return split_data(load, slot);
    }
}

static void link_chain(const Queue *q, Slot *slot, unsigned data)
{
    const BenchRing *ring = &q->ring;
    uint16_t next = slot->first_desc;
    bool to_driver = slot->type == TYPE_IN || slot->type == TYPE_GET_ID;

    slot->desc[0] = bench_ring_desc(ring, slot->mem_addr +
                                          offsetof(RequestMemory, header),
                                    sizeof(RequestHeader), BENCH_DESC_NEXT,
                                    ++next);
    slot->writable = 1;
    for (unsigned i = 1; i <= data; i++) {
        slot->writable += to_driver ? slot->desc[i].len : 0;
        slot->desc[i] = bench_ring_desc(ring, slot->desc[i].addr,
                                        slot->desc[i].len,
                                        to_driver ? BENCH_DESC_NEXT |
                                                    BENCH_DESC_WRITE
                                                  : BENCH_DESC_NEXT, ++next);
    }
    slot->desc[data + 1] =
        bench_ring_desc(ring, slot->mem_addr + offsetof(RequestMemory, status),
                        1, BENCH_DESC_WRITE, 0);
}

static void make_request(SoakLoad *load, Queue *q, unsigned j)
{
    Slot *slot = &q->slots[j];
    unsigned data;

    if (load->mode == MODE_NONE) {
        return;
    }
    slot->type = load->mode == MODE_VERIFY ? TYPE_IN : choose_type(load);
    if (!choose_blocks(load, slot)) {
        return;
    }
    data = set_data(load, q, slot);
    link_chain(q, slot, data);
    slot->mem->header = (RequestHeader) {
        .type = slot->type,
        .sector = slot->block * (SOAK_BLOCK / SOAK_SECTOR),
    };
    slot->mem->status = STATUS_NONE;
    slot->start_ns = now_ns();
    slot->in_flight = true;
    if (!q->in_flight++) {
        q->progress_ns = slot->start_ns;
    }
    if (load->indirect) {
        refer_to_table(q, slot, j, data + 2);
    }
    bench_ring_add(&q->ring, load->indirect ? j : slot->first_desc,
                   &slot->to_table);
}

static void expose(SoakLoad *load, Queue *q)
{
    uint64_t kicks = q->ring.kicks;
    int fd = q->ring.queue->kick_fd;

    if (load->drop_kicks) {
        load->drop_kicks -= q->ring.hidden ||
                            q->ring.avail_idx != q->ring.exposed_idx;
        q->ring.queue->kick_fd = -1;
    }
    bench_ring_expose(&q->ring);
    q->ring.queue->kick_fd = fd;
    load->stats.kicks += q->ring.kicks - kicks;
}

/* One that tells of nothing, or of what the device has seen already */
static void kick_without_need(SoakLoad *load, const Queue *q)
{
    const uint64_t one = 1;
    int fd = q->ring.queue->kick_fd;

    if (fd >= 0 && !load->drop_kicks && below(load, KICK_CHANCE) == 0 &&
        write(fd, &one, sizeof(one)) == sizeof(one)) {
        load->stats.kicks++;
    }
}

/* Completing requests */

static bool used_error(const SoakLoad *load, const Queue *q, GError **errp,
                       const char *what, BenchUsed used)
{
    g_autofree char *ring = bench_ring_describe(&q->ring);

    g_set_error(errp, BENCH_ERROR, 0, "queue %u: %s (used element: id %u, "
                "len %u): %s", (unsigned)(q - load->queues), what, used.id,
                used.len, ring);
    return false;
}

static bool check_used(const SoakLoad *load, const Queue *q, BenchUsed used,
                       unsigned *j, GError **errp)
{
    unsigned step = load->indirect ? 1 : MAX_DESCS;
    const Slot *slot;

    *j = used.id / step;
    if (used.id % step || *j >= load->depth) {
        return used_error(load, q, errp, "the device used what is no chain",
                          used);
    }
    slot = &q->slots[*j];
    if (!slot->in_flight) {
        return used_error(load, q, errp, "the device used a chain twice",
                          used);
    }
    if (used.len > slot->writable) {
        return used_error(load, q, errp, "the device wrote beyond the chain",
                          used);
    }
    if (slot->mem->status) {
        g_set_error(errp, BENCH_ERROR, 0, "request failed: type %u, %u blocks "
                    "at %" G_GUINT64_FORMAT " ended with status %u",
                    slot->type, slot->blocks, slot->block, slot->mem->status);
        return false;
    }
    return true;
}

static bool verify_slot(SoakLoad *load, const Slot *slot, GError **errp)
{
    size_t size = slot->blocks * SOAK_BLOCK;

    if (!soak_disk_check(load->disk, slot->block, slot->blocks, slot->data,
                         errp)) {
        return false;
    }
    load->stats.verified += slot->blocks;
    if (load->copy >= 0 && pwrite(load->copy, slot->data, size,
                                  slot->block * SOAK_BLOCK) != size) {
        g_set_error(errp, BENCH_ERROR, 0, "cannot write the copy of the disk");
        return false;
    }
    return true;
}

static bool complete_one(SoakLoad *load, Queue *q, GError **errp)
{
    BenchUsed used = bench_ring_take(&q->ring);
    Slot *slot;
    unsigned j;

    if (!check_used(load, q, used, &j, errp)) {
        return false;
    }
    slot = &q->slots[j];
    if (slot->type == TYPE_IN && !slot->unverified) {
        if (!verify_slot(load, slot, errp)) {
            g_prefix_error(errp, "queue %u: ", (unsigned)(q - load->queues));
            return false;
        }
    } else if (slot->type == TYPE_OUT || slot->type == TYPE_WRITE_ZEROES) {
        soak_disk_written(load->disk, slot->block, slot->blocks);
    }
    soak_disk_unlock(load->disk, slot->block, slot->blocks);
    slot->in_flight = false;
    q->in_flight--;
    load->stats.requests++;
    return true;
}

/* The queue looks no more until it is notified. */
static void maybe_sleep(SoakLoad *load, Queue *q)
{
    if (!q->in_flight || below(load, SLEEP_CHANCE)) {
        bench_ring_no_calls(&q->ring);
        return;
    }
    soak_device_take_irq(load->dev, q - load->queues);
    q->asleep = bench_ring_want_call(&q->ring);
}

static bool is_awake(SoakLoad *load, Queue *q)
{
    if (q->asleep && soak_device_take_irq(load->dev, q - load->queues)) {
        if (load->drop_irqs) {
            load->drop_irqs--;
            return false;
        }
        load->stats.irqs++;
        q->asleep = false;
    }
    return !q->asleep;
}

/* Takes what is used, and fills the queue up */
static bool sweep_queue(SoakLoad *load, Queue *q, bool *busy, GError **errp)
{
    uint16_t n;

    if (!is_awake(load, q)) {
        return true;
    }
    n = bench_ring_has_used(&q->ring);
    if (n > q->in_flight) {
        return used_error(load, q, errp, "the device's index is ahead of what "
                          "it was given", (BenchUsed) {});
    }
    *busy |= n;
    if (n) {
        q->progress_ns = now_ns();
    }
    for (unsigned i = 0; i < n; i++) {
        if (!complete_one(load, q, errp)) {
            return false;
        }
    }
    for (unsigned j = 0; j < load->depth; j++) {
        if (!q->slots[j].in_flight) {
            make_request(load, q, j);
        }
    }
    expose(load, q);
    kick_without_need(load, q);
    if (!n) {
        maybe_sleep(load, q);
    }
    return true;
}

static const Slot *oldest_slot(const SoakLoad *load, const Queue *q)
{
    const Slot *oldest = NULL;

    for (unsigned j = 0; j < load->depth; j++) {
        const Slot *slot = &q->slots[j];

        if (slot->in_flight && (!oldest ||
                                slot->start_ns < oldest->start_ns)) {
            oldest = slot;
        }
    }
    return oldest;
}

static char *describe_queue(const SoakLoad *load, const Queue *q)
{
    g_autofree char *ring = bench_ring_describe(&q->ring);
    const Slot *slot = oldest_slot(load, q);

    if (!slot) {
        return g_strdup_printf("nothing in flight; %s", ring);
    }
    return g_strdup_printf("%u in flight%s, the oldest for %.1f s: slot %u, "
                           "type %u, %u blocks at %" G_GUINT64_FORMAT
                           ", status %u; %s", q->in_flight,
                           q->asleep ? ", asleep" : "",
                           (now_ns() - slot->start_ns) / 1e9,
                           (unsigned)(slot - q->slots), slot->type,
                           slot->blocks, slot->block, slot->mem->status, ring);
}

static bool check_stall(const SoakLoad *load, GError **errp)
{
    for (unsigned i = 0; i < load->num_queues; i++) {
        const Queue *q = &load->queues[i];

        if (q->in_flight && now_ns() > q->progress_ns + load->stall_ns) {
            g_autofree char *text = describe_queue(load, q);

            g_set_error(errp, BENCH_ERROR, 0, "stall: queue %u: %s: %s", i,
                        bench_ring_has_used(&q->ring) ?
                        "requests have ended, and nobody was notified" :
                        "requests do not end", text);
            return false;
        }
    }
    return bench_device_alive((BenchDevice *)load->dev, errp);
}

bool soak_load_sweep(SoakLoad *load, bool *busy, GError **errp)
{
    *busy = false;
    if (load->clock) {
        soak_device_tick(load->dev);
    }
    if (!load->running) {
        return true;
    }
    for (unsigned i = 0; i < load->num_queues; i++) {
        if (!sweep_queue(load, &load->queues[i], busy, errp)) {
            return false;
        }
    }
    return *busy || check_stall(load, errp);
}

/* Waiting */

void soak_load_hold(SoakLoad *load, bool hold)
{
    load->mode = hold ? MODE_NONE : MODE_MIXED;
}

unsigned soak_load_in_flight(const SoakLoad *load)
{
    unsigned n = 0;

    for (unsigned i = 0; i < load->num_queues; i++) {
        n += load->queues[i].in_flight;
    }
    return n;
}

static bool sweep_until(SoakLoad *load, bool (*done)(const SoakLoad *),
                        GError **errp)
{
    while (!done(load)) {
        bool busy;

        if (!soak_load_sweep(load, &busy, errp)) {
            return false;
        }
        if (!busy) {
            g_usleep(IDLE_US);
        }
    }
    return true;
}

static bool is_quiet(const SoakLoad *load)
{
    return !soak_load_in_flight(load);
}

bool soak_load_quiesce(SoakLoad *load, GError **errp)
{
    soak_load_hold(load, true);
    return sweep_until(load, is_quiet, errp);
}

static bool is_verified(const SoakLoad *load)
{
    return load->next_verify == load->disk->blocks && is_quiet(load);
}

bool soak_load_verify(SoakLoad *load, int copy, GError **errp)
{
    bool ok;

    if (!soak_load_quiesce(load, errp)) {
        return false;
    }
    load->mode = MODE_VERIFY;
    load->next_verify = 0;
    load->copy = copy;
    ok = sweep_until(load, is_verified, errp);
    load->copy = -1;
    soak_load_hold(load, true);
    return ok;
}

/* Memory */

uint64_t soak_load_data_size(const SoakLoad *load)
{
    return (uint64_t)load->num_queues * load->depth * load->data_bytes;
}

static bool nothing_elsewhere(const SoakLoad *load)
{
    for (unsigned i = 0; i < load->num_queues; i++) {
        for (unsigned j = 0; j < load->depth; j++) {
            const Slot *slot = &load->queues[i].slots[j];

            if (slot->in_flight && slot->elsewhere) {
                return false;
            }
        }
    }
    return true;
}

bool soak_load_add_memory(SoakLoad *load, uint64_t addr, void *host,
                          uint64_t size, GError **errp)
{
    if (host && size < load->data_bytes) {
        g_set_error(errp, BENCH_ERROR, 0, "memory of %" G_GUINT64_FORMAT
                    " bytes has no room for a request", size);
        return false;
    }
    if (!nothing_elsewhere(load)) {
        g_set_error(errp, BENCH_ERROR, 0, "requests in flight need the added "
                    "memory");
        return false;
    }
    load->extra_addr = addr;
    load->extra = host;
    load->extra_size = size;
    load->use = SOAK_USE_NONE;
    return true;
}

bool soak_load_use_memory(SoakLoad *load, SoakUse use, GError **errp)
{
    if (use != SOAK_USE_NONE && !load->extra) {
        g_set_error(errp, BENCH_ERROR, 0, "no memory was added");
        return false;
    }
    if (use == SOAK_USE_CAREFUL &&
        load->extra_size < soak_load_data_size(load)) {
        g_set_error(errp, BENCH_ERROR, 0, "the added memory is too small for "
                    "all requests");
        return false;
    }
    load->use = SOAK_USE_NONE;
    if (!sweep_until(load, nothing_elsewhere, errp)) {
        return false;
    }
    load->use = use;
    return true;
}

/* The rest */

void soak_load_set_clock(SoakLoad *load, bool on)
{
    load->clock = on;
}

void soak_load_drop_kicks(SoakLoad *load, unsigned n)
{
    load->drop_kicks = n;
}

void soak_load_drop_irqs(SoakLoad *load, unsigned n)
{
    load->drop_irqs = n;
}

const SoakStats *soak_load_stats(const SoakLoad *load)
{
    return &load->stats;
}

char *soak_load_describe(const SoakLoad *load)
{
    GString *text = g_string_new(NULL);

    for (unsigned i = 0; load->running && i < load->num_queues; i++) {
        g_autofree char *queue = describe_queue(load, &load->queues[i]);

        g_string_append_printf(text, "%squeue %u: %s", i ? "; " : "", i,
                               queue);
    }
    return g_string_free(text, FALSE);
}
