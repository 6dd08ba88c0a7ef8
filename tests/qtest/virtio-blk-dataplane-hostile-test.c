/*
 * A driver that breaks the rules of rings and of requests
 *
 * Each case breaks one rule on a fresh device, says which reaction it expects,
 * and then makes sure that QEMU lives and that the device works after a reset.
 * The reaction is the strictest that requirement and QEMU's request parser
 * agree on.  May know the rings' layouts and nothing of the plane.
 *
 * A chain of descriptors that follow each other from 0 on is the same mistake
 * in both formats.  What is special to one of them says so in its case.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "virtio-blk-dataplane-common.h"

#define MIB (1024 * 1024)
#define OK VIRTIO_BLK_S_OK
#define W VRING_DESC_F_WRITE
#define NEXT VRING_DESC_F_NEXT
#define INDIRECT VRING_DESC_F_INDIRECT

#define RAM_END (64ull * MIB)
#define BEYOND_RAM (RAM_END + MIB)
#define ROM_ADDR 0xf0000ull             /* the firmware, read-only */
#define NO_ADDR 0x7ffffffffffff000ull
#define SENTINEL_SECTOR 900

typedef enum Reaction {
    BROKEN,         /* DEVICE_NEEDS_RESET and its interrupt */
    BROKEN_EARLY,   /* the same before DRIVER_OK, so without an interrupt */
    SERVED,         /* request ends with status OK */
    IDLE,           /* nothing happens */
    ANYTHING,       /* any of these: the requirement leaves it open */
} Reaction;

/* What a case works with: a write to sector 0, in flight nowhere yet */
typedef struct Hostile {
    DpDisk *disk;
    DpReq *req;
    QTestState *qts;
    uint16_t first_flags;           /* packed: until the kick */
    uint16_t id;                    /* packed: what must come back */
} Hostile;

typedef struct Case {
    const char *name;
    const char *ids;
    Reaction reaction;
    uint64_t features;              /* 0: all */
    void (*attack)(Hostile *h);     /* up to and including the kick */
    DpRings rings;
    unsigned used;                  /* elements used then; 0: one */
} Case;

/* Building blocks */

#define AVAIL (1 << VRING_PACKED_DESC_F_AVAIL)
#define USED (1 << VRING_PACKED_DESC_F_USED)

static void set_desc_flags(Hostile *h, unsigned i, uint16_t flags)
{
    qtest_writew(h->qts, h->disk->vq->desc + 16 * i + 14, flags);
}

static void kick(Hostile *h)
{
    if (h->disk->packed) {
        set_desc_flags(h, 0, h->first_flags);
    }
    dp_expose(h->disk);
    dp_kick_always(h->disk);
}

/* Make a chain of raw descriptors from 0 on available, and kick */
static void go(Hostile *h, uint16_t head)
{
    h->req->head = head;
    if (head < h->disk->num) {
        h->disk->by_head[head] = h->req;
    }
    h->req->in_flight = true;
    h->disk->pending++;
    dp_avail(h->disk, head);
    kick(h);
}

/*
 * In a packed ring the buffer's ID is 0, and there is no next.  The first one's
 * flags are written by kick().
 */
static void desc(Hostile *h, unsigned i, uint64_t addr, uint32_t len,
                 uint16_t flags, uint16_t next)
{
    if (h->disk->packed) {
        next = 0;
        flags |= AVAIL;
        if (i == 0) {
            h->first_flags = flags;
            flags = 0;
        }
    }
    dp_desc_write(h->disk, h->disk->vq->desc, i, addr, len, flags, next);
}

static void entry(Hostile *h, unsigned i, uint64_t addr, uint32_t len,
                  uint16_t flags, uint16_t next)
{
    dp_desc_write(h->disk, h->req->table, i, addr, len, flags, next);
}

/* The proper chain: header in 0, data in 1, status in 2 */
static void proper(Hostile *h)
{
    desc(h, 0, h->req->page, 16, NEXT, 1);
    desc(h, 1, h->req->data, h->req->len, NEXT, 2);
    desc(h, 2, h->req->status_addr, 1, W, 0);
}

static void proper_table(Hostile *h)
{
    entry(h, 0, h->req->page, 16, NEXT, 1);
    entry(h, 1, h->req->data, h->req->len, NEXT, 2);
    entry(h, 2, h->req->status_addr, 1, W, 0);
}

static void set_type(Hostile *h, uint32_t type)
{
    h->req->type = type;
    qtest_writel(h->qts, h->req->page, type);
}

/* --- chains ---------------------------------------------------------- */

static void loop_self(Hostile *h)
{
    proper(h);
    desc(h, 1, h->req->data, 512, NEXT, 1);
    go(h, 0);
}

static void loop_pair(Hostile *h)
{
    proper(h);
    desc(h, 1, h->req->data, 512, NEXT, 0);
    go(h, 0);
}

static void loop_long(Hostile *h)
{
    for (unsigned i = 0; i < h->disk->num; i++) {
        desc(h, i, h->req->page, 1, NEXT, (i + 1) % h->disk->num);
    }
    go(h, 0);
}

static void loop_writable(Hostile *h)
{
    proper(h);
    desc(h, 2, h->req->data, 512, W | NEXT, 2);
    go(h, 0);
}

static void head_out_of_range(Hostile *h)
{
    proper(h);
    go(h, h->disk->num);
}

static void head_far_out_of_range(Hostile *h)
{
    proper(h);
    go(h, 0xffff);
}

static void next_out_of_range(Hostile *h)
{
    proper(h);
    desc(h, 1, h->req->data, 512, NEXT, h->disk->num);
    go(h, 0);
}

static void next_far_out_of_range(Hostile *h)
{
    proper(h);
    desc(h, 0, h->req->page, 16, NEXT, 0xffff);
    go(h, 0);
}

static void idx_ahead(Hostile *h)
{
    proper(h);
    qtest_writew(h->qts, h->disk->vq->avail + 4, 0);
    h->disk->avail_idx = h->disk->num + 1;
    kick(h);
}

static void idx_far_ahead(Hostile *h)
{
    proper(h);
    h->disk->avail_idx = 0x8000;
    kick(h);
}

static void idx_back(Hostile *h)
{
    dp_assert_works(h->disk);
    proper(h);
    h->disk->avail_idx--;
    kick(h);
}

static void head_twice(Hostile *h)
{
    /* Whole ring full of one head: each of them may be served */
    proper(h);
    for (unsigned i = 0; i < h->disk->num; i++) {
        dp_avail(h->disk, 0);
    }
    kick(h);
}

static void write_before_read(Hostile *h)
{
    desc(h, 0, h->req->status_addr, 1, W | NEXT, 1);
    desc(h, 1, h->req->page, 16, NEXT, 2);
    desc(h, 2, h->req->data, 512, 0, 0);
    go(h, 0);
}

static void read_between_writes(Hostile *h)
{
    desc(h, 0, h->req->page, 16, NEXT, 1);
    desc(h, 1, h->req->data + 1024, 512, W | NEXT, 2);
    desc(h, 2, h->req->data, 512, NEXT, 3);
    desc(h, 3, h->req->status_addr, 1, W, 0);
    go(h, 0);
}

/* --- addresses and lengths ------------------------------------------- */

static void data_beyond_ram(Hostile *h)
{
    proper(h);
    desc(h, 1, BEYOND_RAM, 512, NEXT, 2);
    go(h, 0);
}

static void data_nowhere(Hostile *h)
{
    proper(h);
    desc(h, 1, NO_ADDR, 512, NEXT, 2);
    go(h, 0);
}

static void data_across_ram_end(Hostile *h)
{
    proper(h);
    desc(h, 1, RAM_END - 256, 512, NEXT, 2);
    go(h, 0);
}

static void data_wraps(Hostile *h)
{
    proper(h);
    desc(h, 1, UINT64_MAX - 255, 512, NEXT, 2);
    go(h, 0);
}

static void data_in_mmio(Hostile *h)
{
    /* The device writes its own registers to the disk (G7) */
    proper(h);
    desc(h, 1, h->disk->pci->bar.addr, 512, NEXT, 2);
    go(h, 0);
}

static void read_into_mmio(Hostile *h)
{
    /* The disk's content, all zeroes there, resets the device (G7) */
    set_type(h, VIRTIO_BLK_T_IN);
    qtest_writeq(h->qts, h->req->page + 8, SENTINEL_SECTOR);
    proper(h);
    desc(h, 1, h->disk->pci->bar.addr, 512, W | NEXT, 2);
    go(h, 0);
}

static void read_into_rom(Hostile *h)
{
    set_type(h, VIRTIO_BLK_T_IN);
    proper(h);
    desc(h, 1, ROM_ADDR, 512, W | NEXT, 2);
    go(h, 0);
}

static void header_beyond_ram(Hostile *h)
{
    proper(h);
    desc(h, 0, BEYOND_RAM, 16, NEXT, 1);
    go(h, 0);
}

static void status_beyond_ram(Hostile *h)
{
    proper(h);
    desc(h, 2, BEYOND_RAM, 1, W, 0);
    go(h, 0);
}

static void huge_buffer(Hostile *h)
{
    proper(h);
    desc(h, 1, 0, UINT32_MAX, NEXT, 2);
    go(h, 0);
}

static void sum_overflows(Hostile *h)
{
    /* 32 MiB, often enough that 32 bits cannot hold the sum */
    unsigned n = 160;

    desc(h, 0, h->req->page, 16, NEXT, 1);
    for (unsigned i = 1; i <= n; i++) {
        desc(h, i, MIB, 32 * MIB, NEXT, i + 1);
    }
    desc(h, n + 1, h->req->status_addr, 1, W, 0);
    go(h, 0);
}

static void empty_front(Hostile *h)
{
    desc(h, 3, h->req->page, 0, NEXT, 0);
    proper(h);
    go(h, 3);
}

static void empty_middle(Hostile *h)
{
    proper(h);
    desc(h, 0, h->req->page, 16, NEXT, 3);
    desc(h, 3, h->req->data, 0, NEXT, 1);
    go(h, 0);
}

static void empty_end(Hostile *h)
{
    proper(h);
    desc(h, 2, h->req->status_addr, 1, W | NEXT, 3);
    desc(h, 3, h->req->data, 0, W, 0);
    go(h, 0);
}

static void empty_with_bad_address(Hostile *h)
{
    proper(h);
    desc(h, 0, h->req->page, 16, NEXT, 3);
    desc(h, 3, NO_ADDR, 0, NEXT, 1);
    go(h, 0);
}

/* --- indirect tables ------------------------------------------------- */

static void table_head(Hostile *h, uint64_t addr, uint32_t len, uint16_t flags)
{
    desc(h, 0, addr, len, INDIRECT | flags, 1);
    go(h, 0);
}

static void table_without_feature(Hostile *h)
{
    proper_table(h);
    table_head(h, h->req->table, 48, 0);
}

static void table_in_table(Hostile *h)
{
    proper_table(h);
    entry(h, 1, h->req->table + 512, 48, INDIRECT, 0);
    table_head(h, h->req->table, 48, 0);
}

static void table_first_in_table(Hostile *h)
{
    proper_table(h);
    entry(h, 0, h->req->table, 48, INDIRECT, 0);
    table_head(h, h->req->table, 48, 0);
}

static void table_and_next(Hostile *h)
{
    proper_table(h);
    desc(h, 1, h->req->status_addr, 1, W, 0);
    table_head(h, h->req->table, 48, NEXT);
}

static void table_empty(Hostile *h)
{
    proper_table(h);
    table_head(h, h->req->table, 0, 0);
}

static void table_uneven(Hostile *h)
{
    proper_table(h);
    table_head(h, h->req->table, 47, 0);
}

static void table_too_small(Hostile *h)
{
    proper_table(h);
    table_head(h, h->req->table, 15, 0);
}

static void table_next_out_of_range(Hostile *h)
{
    proper_table(h);
    entry(h, 1, h->req->data, 512, NEXT, 3);
    entry(h, 3, h->req->status_addr, 1, W, 0);
    table_head(h, h->req->table, 48, 0);
}

static void table_loop(Hostile *h)
{
    proper_table(h);
    entry(h, 1, h->req->data, 512, NEXT, 0);
    table_head(h, h->req->table, 48, 0);
}

static void table_huge(Hostile *h)
{
    proper_table(h);
    table_head(h, h->req->table, 0xfffffff0, 0);
}

static void table_beyond_ram(Hostile *h)
{
    proper_table(h);
    table_head(h, BEYOND_RAM, 48, 0);
}

static void table_nowhere(Hostile *h)
{
    proper_table(h);
    table_head(h, NO_ADDR, 48, 0);
}

static void table_across_ram_end(Hostile *h)
{
    proper_table(h);
    qtest_memset(h->qts, RAM_END - 16, 0, 16);
    table_head(h, RAM_END - 16, 48, 0);
}

static void table_wraps(Hostile *h)
{
    proper_table(h);
    table_head(h, UINT64_MAX - 15, 48, 0);
}

/* More vectors than any chain may have */
static void table_too_many(Hostile *h)
{
    unsigned n = 2048;
    uint64_t table = guest_alloc(&h->disk->vm->alloc, 16 * n);

    dp_desc_write(h->disk, table, 0, h->req->page, 16, NEXT, 1);
    for (unsigned i = 1; i < n - 1; i++) {
        dp_desc_write(h->disk, table, i, h->req->data, 512, NEXT, i + 1);
    }
    dp_desc_write(h->disk, table, n - 1, h->req->status_addr, 1, W, 0);
    table_head(h, table, 16 * n, 0);
}

/* --- rings ----------------------------------------------------------- */

/* The proper chain, unless the table is where nothing should be written */
static void proper_at(Hostile *h, uint64_t desc_addr)
{
    if (!desc_addr) {
        proper(h);
    }
}

static void ring_at(Hostile *h, uint64_t desc_addr, uint64_t avail,
                    uint64_t used)
{
    QVirtQueue *vq;

    dp_disk_reset(h->disk);
    dp_disk_init(h->disk, h->disk->features);
    vq = h->disk->vq;
    dp_disk_place_ring(h->disk, desc_addr ?: vq->desc, avail ?: vq->avail,
                       used ?: vq->used);
    proper_at(h, desc_addr);
    if (h->disk->packed && !desc_addr) {
        set_desc_flags(h, 0, h->first_flags);
    }
    if (!avail && !h->disk->packed) {
        qtest_writew(h->qts, vq->avail + 4, 0);
        qtest_writew(h->qts, vq->avail + 2, 1);
    }
    h->disk->vdev->bus->set_status(h->disk->vdev, dp_status(h->disk) |
                                   VIRTIO_CONFIG_S_DRIVER_OK);
    dp_kick_always(h->disk);
}

static void desc_unaligned(Hostile *h)
{
    ring_at(h, guest_alloc(&h->disk->vm->alloc, 8192) + 8, 0, 0);
}

static void avail_unaligned(Hostile *h)
{
    ring_at(h, 0, guest_alloc(&h->disk->vm->alloc, 8192) + 1, 0);
}

static void used_unaligned(Hostile *h)
{
    ring_at(h, 0, 0, guest_alloc(&h->disk->vm->alloc, 8192) + 2);
}

static void desc_beyond_ram(Hostile *h)
{
    ring_at(h, BEYOND_RAM, 0, 0);
}

static void avail_beyond_ram(Hostile *h)
{
    ring_at(h, 0, BEYOND_RAM, 0);
}

static void used_beyond_ram(Hostile *h)
{
    ring_at(h, 0, 0, BEYOND_RAM);
}

static void ring_nowhere(Hostile *h)
{
    ring_at(h, NO_ADDR, NO_ADDR, NO_ADDR);
}

static void used_across_ram_end(Hostile *h)
{
    ring_at(h, 0, 0, RAM_END - 16);
}

static void used_in_rom(Hostile *h)
{
    ring_at(h, 0, 0, ROM_ADDR);
}

static void ring_in_mmio(Hostile *h)
{
    uint64_t bar = h->disk->pci->bar.addr;

    ring_at(h, bar, bar, bar);
}

/* --- requests -------------------------------------------------------- */

static void header_short(Hostile *h)
{
    desc(h, 0, h->req->page, 15, NEXT, 1);
    desc(h, 1, h->req->status_addr, 1, W, 0);
    go(h, 0);
}

static void header_missing(Hostile *h)
{
    desc(h, 0, h->req->status_addr, 1, W, 0);
    go(h, 0);
}

static void status_missing(Hostile *h)
{
    desc(h, 0, h->req->page, 16, NEXT, 1);
    desc(h, 1, h->req->data, 512, 0, 0);
    go(h, 0);
}

static void segment_short(Hostile *h)
{
    set_type(h, VIRTIO_BLK_T_DISCARD);
    desc(h, 0, h->req->page, 16, NEXT, 1);
    desc(h, 1, h->req->data, 15, NEXT, 2);
    desc(h, 2, h->req->status_addr, 1, W, 0);
    go(h, 0);
}

static void zone_report_short(Hostile *h)
{
    set_type(h, VIRTIO_BLK_T_ZONE_REPORT);
    desc(h, 0, h->req->page, 16, NEXT, 1);
    desc(h, 1, h->req->data, 63, W | NEXT, 2);
    desc(h, 2, h->req->status_addr, 1, W, 0);
    go(h, 0);
}

/* --- packed rings ---------------------------------------------------- */

static void list_all_next(Hostile *h)
{
    for (unsigned i = 0; i < h->disk->num; i++) {
        desc(h, i, h->req->page, 1, NEXT, 0);
    }
    go(h, 0);
}

static void list_cut(Hostile *h)
{
    proper(h);
    set_desc_flags(h, 1, NEXT);
    go(h, 0);
}

static void list_of_last_lap(Hostile *h)
{
    proper(h);
    set_desc_flags(h, 2, W | USED);
    go(h, 0);
}

static void list_used(Hostile *h)
{
    proper(h);
    set_desc_flags(h, 1, NEXT | AVAIL | USED);
    go(h, 0);
}

static void table_in_list(Hostile *h)
{
    proper_table(h);
    desc(h, 0, h->req->page, 16, NEXT, 0);
    desc(h, 1, h->req->table, 48, INDIRECT, 0);
    go(h, 0);
}

static void lap_wrong(Hostile *h)
{
    proper(h);
    h->first_flags = NEXT | USED;
    go(h, 0);
}

static void lap_used(Hostile *h)
{
    proper(h);
    h->first_flags = NEXT | AVAIL | USED;
    go(h, 0);
}

static void second_before_first(Hostile *h)
{
    desc(h, 1, h->req->page, 16, NEXT, 0);
    desc(h, 2, h->req->data, 512, NEXT, 0);
    desc(h, 3, h->req->status_addr, 1, W, 0);
    h->first_flags = 0;
    go(h, 0);
}

static void id_out_of_range(Hostile *h)
{
    proper(h);
    h->id = 0xffff;
    dp_desc_write(h->disk, h->disk->vq->desc, 2, h->req->status_addr, 1,
                  W | AVAIL, h->id);
    go(h, 0);
}

/* Three requests in flight at the same time, which share an ID */
static void id_thrice(Hostile *h)
{
    for (unsigned i = 0; i < 9; i += 3) {
        desc(h, i, h->req->page, 16, NEXT, 0);
        desc(h, i + 1, h->req->data, h->req->len, NEXT, 0);
        desc(h, i + 2, h->req->status_addr, 1, W, 0);
    }
    h->disk->pending += 2;
    h->disk->entries[0] = 3;
    go(h, 0);
}

static void table_flags_noise(Hostile *h)
{
    proper_table(h);
    entry(h, 0, h->req->page, 16, 0xffff & ~W, 0xffff);
    entry(h, 1, h->req->data, h->req->len, INDIRECT, 0xffff);
    entry(h, 2, h->req->status_addr, 1, 0xffff, 0xffff);
    table_head(h, h->req->table, 48, 0);
}

static void list_flags_noise(Hostile *h)
{
    proper(h);
    desc(h, 0, h->req->page, 16, NEXT | 0x7f78, 0);
    desc(h, 2, h->req->status_addr, 1, W | 0x7f78, 0);
    go(h, 0);
}

static void event_far(Hostile *h)
{
    proper(h);
    qtest_writel(h->qts, h->disk->vq->avail,
                 VRING_PACKED_EVENT_FLAG_DESC << 16 | 0x7fff);
    go(h, 0);
}

static void event_noise(Hostile *h)
{
    proper(h);
    qtest_writel(h->qts, h->disk->vq->avail, 0xffffffff);
    go(h, 0);
}

static void device_area_scribbled(Hostile *h)
{
    proper(h);
    qtest_writel(h->qts, h->disk->vq->used, 0xffffffff);
    go(h, 0);
}

/* --- what has to be tolerated ---------------------------------------- */

static void unknown_flags(Hostile *h)
{
    proper(h);
    desc(h, 0, h->req->page, 16, NEXT | 0xfff8, 1);
    desc(h, 2, h->req->status_addr, 1, W | 0xfff8, 0);
    go(h, 0);
}

static void available_flags(Hostile *h)
{
    proper(h);
    qtest_writew(h->qts, h->disk->vq->avail, 0xfffe);
    go(h, 0);
}

static void used_event_far(Hostile *h)
{
    proper(h);
    qtest_writew(h->qts, h->disk->vq->avail + 4 + 2 * h->disk->num, 0x8000);
    go(h, 0);
}

static void used_ring_scribbled(Hostile *h)
{
    /* covers: SPLIT-18, too: positions are the device's own */
    proper(h);
    qtest_memset(h->qts, h->disk->vq->used, 0xff, 4 + 8 * h->disk->num);
    go(h, 0);
}

static void header_is_status(Hostile *h)
{
    /* The status byte lies in the header of the same request */
    proper(h);
    desc(h, 2, h->req->page + 15, 1, W, 0);
    h->req->status_addr = h->req->page + 15;
    go(h, 0);
}

static const Case cases[] = {
    { "loop-self", "ROBS-1, G9", BROKEN, 0, loop_self, DP_SPLIT_RING },
    { "loop-pair", "ROBS-1, G9", BROKEN, 0, loop_pair, DP_SPLIT_RING },
    { "loop-long", "ROBS-1, G9", BROKEN, 0, loop_long, DP_SPLIT_RING },
    { "loop-writable", "ROBS-1, G9", BROKEN, 0, loop_writable, DP_SPLIT_RING },
    { "too-many", "ROBS-2, VQ-4, G9", BROKEN, 0, table_too_many },
    { "head-range", "ROBS-3, G9", BROKEN, 0, head_out_of_range, DP_SPLIT_RING },
    { "head-far", "ROBS-3, G9", BROKEN, 0,
      head_far_out_of_range, DP_SPLIT_RING },
    { "next-range", "ROBS-4, G9", BROKEN, 0, next_out_of_range, DP_SPLIT_RING },
    { "next-far", "ROBS-4, G9", BROKEN, 0,
      next_far_out_of_range, DP_SPLIT_RING },
    { "idx-ahead", "ROBS-5, G9", BROKEN, 0, idx_ahead, DP_SPLIT_RING },
    { "idx-far", "ROBS-5, G9", BROKEN, 0, idx_far_ahead, DP_SPLIT_RING },
    { "idx-back", "ROBS-6, G9", BROKEN, 0, idx_back, DP_SPLIT_RING },
    { "data-beyond", "ROBS-8, G9", BROKEN, 0, data_beyond_ram },
    { "data-nowhere", "ROBS-8", BROKEN, 0, data_nowhere },
    { "data-across", "ROBS-9", BROKEN, 0, data_across_ram_end },
    { "data-wraps", "ROBS-9, G9", BROKEN, 0, data_wraps },
    { "header-beyond", "ROBS-8", BROKEN, 0, header_beyond_ram },
    { "status-beyond", "ROBS-8", BROKEN, 0, status_beyond_ram },
    { "data-in-mmio", "ROBS-8, G7", ANYTHING, 0, data_in_mmio },
    { "read-into-mmio", "ROBS-8, G7", ANYTHING, 0, read_into_mmio },
    { "read-into-rom", "ROBS-8, G11", ANYTHING, 0, read_into_rom },
    { "desc-unaligned", "ROBS-21", ANYTHING, 0, desc_unaligned },
    { "avail-unaligned", "ROBS-21", ANYTHING, 0, avail_unaligned },
    { "used-unaligned", "ROBS-21", ANYTHING, 0, used_unaligned },
    { "huge-buffer", "ROBS-9, ROBS-11", BROKEN, 0, huge_buffer },
    { "sum-overflows", "ROBS-11, G9", BROKEN, 0, sum_overflows },
    { "empty-front", "ROBS-12", SERVED, 0, empty_front, DP_SPLIT_RING },
    { "empty-middle", "ROBS-12", SERVED, 0, empty_middle, DP_SPLIT_RING },
    { "empty-end", "ROBS-12", SERVED, 0, empty_end },
    { "empty-bad-address", "ROBS-12", SERVED, 0,
      empty_with_bad_address, DP_SPLIT_RING },
    { "write-first", "ROBS-13, G9", BROKEN, 0, write_before_read },
    { "write-between", "ROBS-13, G9", BROKEN, 0, read_between_writes },
    { "table-no-feature", "ROBS-14, FEAT-10", BROKEN, DP_F_EVENT,
      table_without_feature },
    { "table-in-table", "ROBS-15, G9", BROKEN, 0,
      table_in_table, DP_SPLIT_RING },
    { "table-first-in-table", "ROBS-15, G9", BROKEN, 0,
      table_first_in_table, DP_SPLIT_RING },
    { "table-and-next", "ROBS-16", BROKEN, 0, table_and_next },
    { "table-empty", "ROBS-17, G4", BROKEN, 0, table_empty },
    { "table-uneven", "ROBS-17", BROKEN, 0, table_uneven },
    { "table-small", "ROBS-17", BROKEN, 0, table_too_small },
    { "table-next", "ROBS-18", BROKEN, 0,
      table_next_out_of_range, DP_SPLIT_RING },
    { "table-loop", "ROBS-19", BROKEN, 0, table_loop, DP_SPLIT_RING },
    { "table-huge", "ROBS-20", BROKEN, 0, table_huge },
    { "table-beyond", "ROBS-20", BROKEN, 0, table_beyond_ram },
    { "table-nowhere", "ROBS-20", BROKEN, 0, table_nowhere },
    { "table-across", "ROBS-20", BROKEN, 0, table_across_ram_end },
    { "table-wraps", "ROBS-20", BROKEN, 0, table_wraps },
    { "desc-beyond", "ROBS-22, G11", BROKEN, 0, desc_beyond_ram },
    { "avail-beyond", "ROBS-22, G11", BROKEN, 0, avail_beyond_ram },
    { "used-beyond", "ROBS-22, G11", BROKEN, 0, used_beyond_ram },
    { "used-across", "ROBS-22, G11", BROKEN_EARLY, 0,
      used_across_ram_end, DP_SPLIT_RING },
    { "used-in-rom", "ROBS-22, G11", BROKEN, 0, used_in_rom },
    { "ring-nowhere", "ROBS-22, G11, ROBC-9", BROKEN, 0, ring_nowhere },
    { "ring-in-mmio", "ROBS-22, G7, G11", BROKEN, 0, ring_in_mmio },
    { "header-short", "ROBB-1", BROKEN, 0, header_short },
    { "header-missing", "ROBB-1", BROKEN, 0, header_missing },
    { "status-missing", "ROBB-2", BROKEN, 0, status_missing },
    { "segment-short", "ROBB-16", BROKEN, 0, segment_short },
    { "zone-report-short", "ROBB-25", BROKEN, 0, zone_report_short },
    { "unknown-flags", "ROBS-24", SERVED, 0, unknown_flags, DP_SPLIT_RING },
    { "available-flags", "ROBS-25", SERVED, DP_F_PLAIN,
      available_flags, DP_SPLIT_RING },
    { "used-event-far", "ROBS-26", SERVED, 0, used_event_far, DP_SPLIT_RING },
    { "used-scribbled", "ROBS-28, SPLIT-18", SERVED, 0,
      used_ring_scribbled, DP_SPLIT_RING },
    { "head-twice", "ROBS-7", SERVED, 0, head_twice, DP_SPLIT_RING, 256 },
    { "header-is-status", "ROBS-23", SERVED, 0, header_is_status },
    { "list-endless", "ROBP-1, PACK-22", BROKEN, 0, list_all_next,
      DP_PACKED_RING },
    { "list-cut", "ROBP-2", BROKEN, 0, list_cut, DP_PACKED_RING },
    { "list-last-lap", "ROBP-2, ROBP-14", BROKEN, 0, list_of_last_lap,
      DP_PACKED_RING },
    { "list-used", "ROBP-2", BROKEN, 0, list_used, DP_PACKED_RING },
    { "list-table", "ROBP-4", BROKEN, 0, table_in_list, DP_PACKED_RING },
    { "lap-wrong", "ROBP-14, PACK-5", IDLE, 0, lap_wrong, DP_PACKED_RING },
    { "lap-used", "ROBP-14, PACK-5", IDLE, 0, lap_used, DP_PACKED_RING },
    { "second-first", "PACK-23", IDLE, 0, second_before_first,
      DP_PACKED_RING },
    { "id-range", "ROBP-10, PACK-25", SERVED, 0, id_out_of_range,
      DP_PACKED_RING },
    { "id-thrice", "ROBP-10", SERVED, 0, id_thrice, DP_PACKED_RING, 3 },
    { "table-flags", "ROBP-7, PACK-31, PACK-32", SERVED, 0,
      table_flags_noise, DP_PACKED_RING },
    { "list-flags", "PACK-3", SERVED, 0, list_flags_noise, DP_PACKED_RING },
    { "event-far", "ROBP-12", SERVED, 0, event_far, DP_PACKED_RING },
    { "event-noise", "ROBP-11", SERVED, 0, event_noise, DP_PACKED_RING },
    { "event-unasked", "ROBP-11", SERVED, DP_F_PLAIN, event_far,
      DP_PACKED_RING },
    { "device-area", "PACK-41", SERVED, 0, device_area_scribbled,
      DP_PACKED_RING },
};

/* covers: ROBC-20: it stays broken, whatever comes, until it is reset */
static void check_stays_broken(Hostile *h)
{
    unsigned used = dp_count_used(h->disk);

    for (unsigned i = 0; i < 5; i++) {
        dp_kick_always(h->disk);
        g_assert_cmphex(dp_status(h->disk) & VIRTIO_CONFIG_S_NEEDS_RESET,
                        !=, 0);
    }
    g_assert_cmpuint(dp_count_used(h->disk), ==, used);
}

static void check_served(Hostile *h, unsigned used)
{
    gint64 deadline = dp_deadline();

    while (qtest_readb(h->qts, h->req->status_addr) != OK) {
        dp_check_deadline(deadline, "a status");
    }
    while (dp_count_used(h->disk) != used) {
        dp_check_deadline(deadline, "the used ring");
    }
    if (h->disk->packed) {
        g_assert_cmphex(qtest_readw(h->qts, h->disk->vq->desc + 12), ==,
                        h->id);
    }
    g_assert_cmphex(dp_status(h->disk) & VIRTIO_CONFIG_S_NEEDS_RESET, ==, 0);
}

/* All that the device may have begun is over after a pause */
static void settle(Hostile *h)
{
    for (unsigned i = 0; i < 3; i++) {
        dp_kick_always(h->disk);
        dp_stop(h->disk->vm);
        dp_cont(h->disk->vm);
    }
}

static void check_idle(Hostile *h)
{
    settle(h);
    g_assert_cmphex(dp_status(h->disk) & VIRTIO_CONFIG_S_NEEDS_RESET, ==, 0);
    g_assert_cmphex(qtest_readb(h->qts, h->req->status_addr), ==,
                    DP_NO_STATUS);
    g_assert_false(dp_irq(h->disk));
}

static DpReq *sentinel(DpDisk *disk)
{
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_OUT, 0, 4096);
    uint8_t head[16] = { VIRTIO_BLK_T_OUT };

    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, 0, 4096, 11), ==, OK);
    dp_req_fill(disk, req, 22);
    qtest_memwrite(disk->vm->qts, req->page, head, sizeof(head));
    qtest_writeb(disk->vm->qts, req->status_addr, DP_NO_STATUS);
    return req;
}

static void recover(Hostile *h, const DpMode *mode, Reaction reaction)
{
    dp_disk_reset(h->disk);
    h->req->in_flight = false;
    dp_disk_start(h->disk, DP_F_ALL);
    dp_assert_mode(h->disk->vm, mode);
    if (reaction == BROKEN || reaction == IDLE) {
        /* Nothing of the request was carried out */
        g_assert_cmpint(dp_rw(h->disk, VIRTIO_BLK_T_IN, 0, 4096, 11), ==, OK);
    }
    for (unsigned i = 0; i < 3; i++) {
        dp_assert_works(h->disk);
    }
}

static Hostile hostile_new(DpDisk *disk)
{
    return (Hostile) {
        .qts = disk->vm->qts, .disk = disk, .req = sentinel(disk)
    };
}

typedef struct CaseData {
    const Case *c;
    const DpMode *mode;
} CaseData;

/* covers: STAT-6, STAT-7, STAT-8, STAT-9: besides the ids of the case */
static void test_case(const void *opaque)
{
    const CaseData *data = opaque;
    const Case *c = data->c;
    DpVm *vm = dp_vm_file(data->mode, DP_IMAGE_SIZE, "");
    Hostile h = hostile_new(dp_disk_new(vm, DP_F_ALL));

    g_test_message("covers: %s", c->ids);
    dp_disk_start(h.disk, c->features ?: DP_F_ALL);
    c->attack(&h);
    if (c->reaction == BROKEN) {
        dp_assert_broken(h.disk);
        check_stays_broken(&h);
    } else if (c->reaction == BROKEN_EARLY) {
        g_assert_cmphex(dp_status(h.disk) & VIRTIO_CONFIG_S_NEEDS_RESET,
                        !=, 0);
    } else if (c->reaction == ANYTHING) {
        settle(&h);
    } else if (c->reaction == IDLE) {
        check_idle(&h);
    } else {
        check_served(&h, c->used ?: 1);
    }
    recover(&h, data->mode, c->reaction);
    dp_req_free(h.disk, h.req);
    dp_disk_free(h.disk);
    dp_vm_quit(vm);
}

/* --- a driver that changes things while the device looks -------------- */

/*
 * covers: ROBS-23, G10: descriptors and table change again and again, between
 * a good chain and bad ones.  Any outcome is fine that a reset ends.
 */
static void test_racing(DpDisk *disk)
{
    Hostile h = hostile_new(disk);

    for (unsigned round = 0; round < 40; round++) {
        dp_disk_start(disk, DP_F_ALL);
        proper(&h);
        proper_table(&h);
        for (unsigned i = 0; i < 32; i++) {
            dp_avail(disk, 0);
            kick(&h);
            switch ((round + i) % 5) {
            case 0:
                desc(&h, 1, NO_ADDR, 512, NEXT, 2);
                break;
            case 1:
                desc(&h, 0, h.req->table, 48, INDIRECT, 0);
                break;
            case 2:
                desc(&h, 2, h.req->status_addr, 1, W | NEXT, 0);
                break;
            case 3:
                entry(&h, 1, h.req->data, 0x80000000, NEXT, 7);
                break;
            case 4:
                proper_table(&h);
                break;
            }
            proper(&h);
        }
        dp_disk_reset(disk);
    }
    recover(&h, disk->vm->mode, ANYTHING);
    dp_req_free(disk, h.req);
}

/*
 * covers: G9, G10, ROBC-24: rings full of noise, each followed by a reset
 */
static void test_noise(DpDisk *disk)
{
    Hostile h = hostile_new(disk);

    disk->want_num = 64;
    for (unsigned round = 0; round < 100; round++) {
        dp_disk_start(disk, round % 2 ? DP_F_ALL : DP_F_PLAIN);
        for (unsigned i = 0; i < disk->num; i++) {
            /* Mostly addresses in RAM, small lengths, likely flags */
            desc(&h, i, g_test_rand_int() % (RAM_END + MIB),
                 g_test_rand_int() % 600, g_test_rand_int() % 8,
                 g_test_rand_int() % (disk->num + 1));
            dp_avail(disk, g_test_rand_int() % disk->num);
        }
        kick(&h);
        dp_status(disk);
        dp_disk_reset(disk);
    }
    dp_disk_start(disk, DP_F_ALL);
    dp_assert_works(disk);
    dp_req_free(disk, h.req);
}

/*
 * covers: ROBC-7, ROBC-10, G5: queue registers written while the queue runs
 */
static void test_registers(DpDisk *disk)
{
    static const uint16_t sizes[] = { 0, 1, 3, 2048, 0xffff };
    DpVm *vm = disk->vm;
    QPCIDevice *pdev = disk->pci->pdev;

    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        dp_assert_works(disk);
        qpci_io_writew(pdev, disk->pci->bar, disk->pci->common_cfg_offset +
                       offsetof(struct virtio_pci_common_cfg, queue_size),
                       sizes[i]);
        dp_kick_always(disk);
        dp_stop(vm);
        dp_cont(vm);
        dp_kick_always(disk);
        dp_disk_start(disk, DP_F_ALL);
        dp_assert_works(disk);

        qpci_io_writel(pdev, disk->pci->bar, disk->pci->common_cfg_offset +
                       offsetof(struct virtio_pci_common_cfg, queue_used_lo),
                       0xfffff000);
        dp_kick_always(disk);
        dp_disk_start(disk, DP_F_ALL);
        dp_assert_works(disk);
    }
}

static void add_cases(const DpMode *mode)
{
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autofree char *path =
            g_strdup_printf("/virtio-blk-dataplane/hostile/%s/%s",
                            cases[i].name, mode->name);
        CaseData *data;

        if (!dp_has_ring(mode, cases[i].rings)) {
            continue;
        }
        data = g_new(CaseData, 1);
        *data = (CaseData) { &cases[i], mode };
        qtest_add_data_func_full(path, data, test_case, g_free);
    }
}

int main(int argc, char **argv)
{
    static const DpTest tests[] = {
        { "racing", test_racing, DP_SPLIT_RING },
        { "noise", test_noise },
        { "registers", test_registers },
    };

    g_test_init(&argc, &argv, NULL);
    add_cases(&dp_mode_iothread);
    add_cases(&dp_mode_packed);
    dp_add_table("hostile", tests, ARRAY_SIZE(tests), true);
    return g_test_run();
}
