/*
 * Tests of the split ring: what a driver that keeps the rules can see
 *
 * Knows VIRTIO 1.3, 2.7 and the interface of the ring; each test runs in both
 * byte orders, with and without EVENT_IDX, unless it is about one of them.
 * Drivers that break the rules are in test-vring-hostile.c, concurrent ones
 * in test-vring-stress.c, guest memory in test-vring-mapping.c.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/mman.h>
#include "qapi/error.h"
#include "vring-test-driver.h"

/* Layout */

typedef struct RawCase {
    const char *path;
    bool big_endian;
    uint8_t desc[32];
    uint8_t avail[6];
    uint8_t used[12];
} RawCase;

/*
 * Head 1: 16 readable bytes at 0x10000100, then descriptor 0: 0x203 writable
 * ones at 0x10000200.  Used with a length of 0x102.
 */
static const RawCase raw_cases[] = {
    {
        /* covers: SPLIT-1, SPLIT-3, SPLIT-4, SPLIT-13 */
        .path = "/vring/split/raw-bytes/little-endian",
        .desc = {
            0x00, 0x02, 0x00, 0x10, 0, 0, 0, 0, 0x03, 0x02, 0, 0, 2, 0, 0, 0,
            0x00, 0x01, 0x00, 0x10, 0, 0, 0, 0, 0x10, 0x00, 0, 0, 1, 0, 0, 0,
        },
        .avail = { 0, 0, 1, 0, 1, 0 },
        .used = { 0, 0, 1, 0, 1, 0, 0, 0, 0x02, 0x01, 0, 0 },
    }, {
        /* covers: SPLIT-13, LEG-6 */
        .path = "/vring/split/raw-bytes/big-endian",
        .big_endian = true,
        .desc = {
            0, 0, 0, 0, 0x10, 0x00, 0x02, 0x00, 0, 0, 0x02, 0x03, 0, 2, 0, 0,
            0, 0, 0, 0, 0x10, 0x00, 0x01, 0x00, 0, 0, 0x00, 0x10, 0, 1, 0, 0,
        },
        .avail = { 0, 0, 0, 1, 0, 1 },
        .used = { 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0x01, 0x02 },
    },
};

static void test_raw_bytes(const void *opaque)
{
    const RawCase *c = opaque;
    const TestMode mode = { .big_endian = c->big_endian };
    VringConfig config = test_config(&mode, 4);
    VirtQueueElement elem;
    TestQueue q;

    test_queue_init(&q, &config);
    memcpy(q.drv.desc, c->desc, sizeof(c->desc));
    memcpy(q.drv.avail, c->avail, sizeof(c->avail));

    test_queue_pop(&q, &elem);
    g_assert_cmpuint(elem.index, ==, 1);
    g_assert_cmpuint(elem.ndescs, ==, 1);
    g_assert_cmpuint(elem.out_num, ==, 1);
    g_assert_cmphex(elem.out_addr[0], ==, 0x10000100);
    g_assert(elem.out_sg[0].iov_base == q.data + 0x100);
    g_assert_cmpuint(elem.out_sg[0].iov_len, ==, 0x10);
    g_assert_cmpuint(elem.in_num, ==, 1);
    g_assert_cmphex(elem.in_addr[0], ==, 0x10000200);
    g_assert(elem.in_sg[0].iov_base == q.data + 0x200);
    g_assert_cmpuint(elem.in_sg[0].iov_len, ==, 0x203);

    vring_push(&q.vring, &elem, &q.buf, 0x102);
    g_assert_cmpuint(vring_publish(&q.vring), ==, 1);
    g_assert_cmpmem(q.drv.used, sizeof(c->used), c->used, sizeof(c->used));
    test_queue_cleanup(&q);
}

/* covers: SPLIT-1 */
static void test_minimal_alignment(const TestMode *mode)
{
    VringConfig config = test_config(mode, 8);
    TestQueue q;

    config.desc = RING_BASE + 0x1010;
    config.avail = RING_BASE + 0x102;
    config.used = RING_BASE + 0x2004;
    test_queue_init(&q, &config);
    for (unsigned i = 0; i < 20; i++) {
        test_queue_run(&q, i % 8);
    }
    test_queue_cleanup(&q);
}

/* Fills the ring, then takes and returns all of it at once */
static void run_full_ring(TestQueue *q)
{
    unsigned num = q->drv.config.num;
    VirtQueueElement *elems = g_new(VirtQueueElement, num);
    VringVectors *bufs = g_new(VringVectors, num);
    uint32_t id, len;

    for (unsigned i = 0; i < num; i++) {
        TestDesc desc = { DATA_BASE + i, 1, WRITE };

        driver_set_desc(&q->drv, i, &desc);
        driver_add(&q->drv, i);
    }
    driver_expose(&q->drv);
    for (unsigned i = 0; i < num; i++) {
        vring_vectors_init(&bufs[i]);
        test_queue_pop_buf(q, &elems[i], &bufs[i]);
        g_assert_cmpuint(elems[i].index, ==, i);
    }
    g_assert_cmpint(vring_pop(&q->vring, &elems[0], &bufs[0]), ==, 0);
    for (unsigned i = num; i-- > 0;) {
        vring_push(&q->vring, &elems[i], &bufs[i], i);
        vring_vectors_release(&bufs[i]);
    }
    g_assert_cmpuint(vring_publish(&q->vring), ==, num);
    for (unsigned i = num; i-- > 0;) {
        test_queue_take(q, i, i);
    }
    g_assert_false(driver_take(&q->drv, &id, &len));
    g_free(elems);
    g_free(bufs);
}

/* covers: SPLIT-2, SPLIT-4, SPLIT-13, SPLIT-17 */
static void test_queue_sizes(const TestMode *mode)
{
    for (unsigned num = 1; num <= 32768; num *= 2) {
        VringConfig config = test_config(mode, num);
        TestQueue q;

        test_queue_init(&q, &config);
        test_queue_run(&q, 0);
        run_full_ring(&q);
        test_queue_run(&q, num - 1);
        run_full_ring(&q);
        test_queue_cleanup(&q);
    }
}

/* covers: SPLIT-2; G5: refused for what they are, as all of them fit in RAM */
static void test_bad_queue_sizes(const TestMode *mode)
{
    static const unsigned bad[] = { 0, 3, 255, 32767, 32769, 65536 };
    const uint64_t size = 4 * driver_desc_size(65536);
    VringMemory *mem = test_memory_new();

    test_memory_add(mem, RING_BASE, size, TEST_RAM);
    test_memory_commit(mem);
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        VringConfig config = test_config(mode, bad[i]);
        Error *err = NULL;
        Vring vring;

        config.avail = QEMU_ALIGN_UP(config.avail, 2);
        g_assert_cmphex(config.used + driver_used_size(&config), <,
                        RING_BASE + size);
        g_assert_false(vring_open(&vring, &config, mem, &err));
        error_free_or_abort(&err);
    }
    test_memory_free(mem);
}

/* covers: SPLIT-4, SPLIT-13, SPLIT-17: both indexes pass 65535 twice */
static void test_index_wrap(TestQueue *q)
{
    uint16_t idx = 0;

    for (unsigned i = 0; i < 2 * 65536 / 19 + 2; i++) {
        test_queue_run(q, i % 16);
        run_full_ring(q);
        test_queue_run(q, (i + 1) % 16);
        test_queue_run(q, (i + 2) % 16);
        idx += 19;
        g_assert_cmpuint(driver_used_idx(&q->drv), ==, idx);
    }
}

/* Available buffers */

/* covers: SPLIT-5: no notification came, and none was asked for */
static void test_pop_without_kick(TestQueue *q)
{
    VirtQueueElement elem;

    vring_disable_notification(&q->vring);
    g_assert_false(vring_more_avail(&q->vring));
    driver_offer_buffer(&q->drv, 5, DATA_BASE, 512, false);
    g_assert_true(vring_more_avail(&q->vring));
    test_queue_pop(q, &elem);
    g_assert_false(vring_more_avail(&q->vring));
    test_queue_use(q, &elem, 0);
}

/* An entry that idx does not show yet is not taken; covers: SPLIT-4 */
static void test_add_without_expose(TestQueue *q)
{
    VirtQueueElement elem;

    driver_add(&q->drv, 0);
    g_assert_cmpint(vring_pop(&q->vring, &elem, &q->buf), ==, 0);
    g_assert_false(vring_more_avail(&q->vring));
}

/* covers: SPLIT-45 */
static void test_empty_kicks(TestQueue *q)
{
    VirtQueueElement elem;

    for (unsigned i = 0; i < 1000; i++) {
        vring_disable_notification(&q->vring);
        g_assert_cmpint(vring_pop(&q->vring, &elem, &q->buf), ==, 0);
        g_assert_cmpuint(vring_publish(&q->vring), ==, 0);
        g_assert_false(vring_enable_notification(&q->vring));
    }
    g_assert_cmpuint(driver_used_idx(&q->drv), ==, 0);
    test_queue_run(q, 3);
}

/* A chain of @n descriptors, the first @out of them device-readable */
static void offer_chain(TestQueue *q, unsigned n, unsigned out)
{
    for (unsigned i = 0; i < n; i++) {
        TestDesc desc = {
            .addr = DATA_BASE + 32 * i,
            .len = 16 + i % 16,
            .flags = (i < out ? 0 : WRITE) | (i < n - 1 ? NEXT : 0),
            .next = i + 1,
        };

        driver_set_desc(&q->drv, i, &desc);
    }
    driver_offer(&q->drv, 0);
}

/*
 * Around where a buffer has to grow: it doubles from VRING_INLINE_VECTORS on,
 * up to the largest array there is
 */
static const unsigned growth_lengths[] = {
    1, 2, 17, 18, 19, 35, 36, 37, 64, 71, 72, 73, 143, 144, 145, 256, 287,
    288, 289, 575, 576, 577, 1023, 1024,
};

QEMU_BUILD_BUG_ON(VRING_INLINE_VECTORS != 18);

/* covers: SPLIT-8: chains that fill the table, and more than fit inline */
static void test_chain_lengths(TestQueue *q)
{
    const unsigned *lengths = growth_lengths;
    VirtQueueElement elem;

    for (unsigned i = 0; i < ARRAY_SIZE(growth_lengths); i++) {
        for (unsigned out = 0; out <= lengths[i]; out += 1 + out / 3) {
            offer_chain(q, lengths[i], out);
            test_queue_pop(q, &elem);
            test_check_long(q, &elem, lengths[i], out);
            test_queue_use(q, &elem, 0);
            vring_vectors_release(&q->buf);
        }
    }
}

/*
 * Buffers that keep what they have grown to: a shorter chain does with it, a
 * longer one grows on from there
 */
static void test_grown_buffer(TestQueue *q)
{
    static const unsigned lengths[] = { 19, 3, 36, 37, 18, 1000, 1024, 73 };
    VirtQueueElement elem;
    unsigned longest = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(lengths); i++) {
        longest = MAX(longest, lengths[i]);
        offer_chain(q, lengths[i], lengths[i] / 2);
        test_queue_pop(q, &elem);
        test_check_long(q, &elem, lengths[i], lengths[i] / 2);
        g_assert_cmpuint(q->buf.capacity, >=, longest);
        /* Bounded: no more than twice what was needed */
        g_assert_cmpuint(q->buf.capacity, <, 2 * longest);
        g_assert_cmpuint(q->buf.capacity, <=, VIRTQUEUE_MAX_SIZE);
        test_queue_use(q, &elem, 0);
    }
}

/* covers: SPLIT-9, SPLIT-10, SPLIT-11, SPLIT-12: any access would be fatal */
static void test_only_used_ring_is_written(TestQueue *q)
{
    VringConfig config = q->drv.config;
    const hwaddr used_base = 0x40000, table_base = 0x50000;
    TestDesc table[] = {
        { DATA_BASE, 512, NEXT, 1 },
        { DATA_BASE + 512, 512, WRITE },
    };
    TestDesc desc = { table_base, sizeof(table), INDIRECT };
    VirtQueueElement elem;
    uint32_t id, len;

    test_memory_add(q->mem, used_base, TEST_PAGE, TEST_RAM);
    test_memory_add(q->mem, table_base, TEST_PAGE, TEST_RAM);
    test_memory_commit(q->mem);
    config.used = used_base;
    test_queue_reopen(q, &config);

    driver_set_table(&q->drv, test_memory_host(q->mem, table_base), table,
                     ARRAY_SIZE(table));
    driver_set_desc(&q->drv, 7, &desc);
    driver_offer(&q->drv, 7);
    test_memory_protect(q->mem, RING_BASE, PROT_READ);
    test_memory_protect(q->mem, table_base, PROT_READ);
    test_memory_protect(q->mem, DATA_BASE, PROT_NONE);

    vring_disable_notification(&q->vring);
    test_queue_pop(q, &elem);
    vring_push(&q->vring, &elem, &q->buf, 512);
    g_assert_cmpuint(vring_publish(&q->vring), ==, 1);
    vring_should_notify(&q->vring);
    vring_enable_notification(&q->vring);
    g_assert_true(driver_take(&q->drv, &id, &len));
    g_assert_cmpuint(id, ==, 7);

    test_memory_protect(q->mem, RING_BASE, PROT_READ | PROT_WRITE);
    test_memory_protect(q->mem, table_base, PROT_READ | PROT_WRITE);
    test_memory_protect(q->mem, DATA_BASE, PROT_READ | PROT_WRITE);
}

/* Used buffers */

/* covers: SPLIT-14, SPLIT-17: pushed elements show by publish, together */
static void test_publish_batch(TestQueue *q)
{
    VirtQueueElement elem;

    for (unsigned i = 0; i < 5; i++) {
        driver_offer_buffer(&q->drv, i, DATA_BASE, 512, true);
        test_queue_pop(q, &elem);
        vring_push(&q->vring, &elem, &q->buf, 100 + i);
        g_assert_cmpuint(driver_used_idx(&q->drv), ==, 0);
    }
    g_assert_cmpuint(vring_publish(&q->vring), ==, 5);
    g_assert_cmpuint(vring_publish(&q->vring), ==, 0);
    g_assert_cmpuint(driver_used_idx(&q->drv), ==, 5);
    for (unsigned i = 0; i < 5; i++) {
        test_queue_take(q, i, 100 + i);
    }
}

/* covers: SPLIT-16: the length is what the device says, not what it had */
static void test_used_length(TestQueue *q)
{
    static const uint32_t lengths[] = { 0, 1, 511, 512 };
    VirtQueueElement elem;

    for (unsigned i = 0; i < ARRAY_SIZE(lengths); i++) {
        driver_offer_buffer(&q->drv, 1, DATA_BASE, 512, true);
        test_queue_pop(q, &elem);
        test_queue_use(q, &elem, lengths[i]);
    }
}

/* covers: SPLIT-18, ROBS-28 */
static void test_driver_scribbles_on_used_ring(TestQueue *q)
{
    VringConfig config = q->drv.config;

    test_queue_run(q, 0);
    memset(q->drv.used, 0x5a, driver_used_size(&config));
    driver_set_used_idx(&q->drv, 1);
    test_queue_run(q, 1);
    g_assert_cmpuint(driver_used_idx(&q->drv), ==, 2);
    driver_set_used_idx(&q->drv, q->drv.used_idx);
    test_queue_run(q, 2);
    g_assert_cmpuint(driver_used_idx(&q->drv), ==, 3);

    /* An index of nonsense between push and publish is overwritten, too */
    driver_set_used_idx(&q->drv, 12345);
    q->drv.used_idx = 12345;
    driver_offer_buffer(&q->drv, 3, DATA_BASE, 16, true);
    {
        VirtQueueElement elem;

        test_queue_pop(q, &elem);
        vring_push(&q->vring, &elem, &q->buf, 16);
        g_assert_cmpuint(vring_publish(&q->vring), ==, 1);
    }
    g_assert_cmpuint(driver_used_idx(&q->drv), ==, 4);
}

/* Chains */

#define CASE_DESCS 6

typedef struct ChainCase {
    const char *path;
    TestDesc ring[CASE_DESCS];          /* descriptors from 0 on */
    TestDesc table[CASE_DESCS];         /* at TABLE_BASE + table_offset */
    unsigned table_offset;
    unsigned vectors;                   /* what the element should have */
    TestDesc vector[CASE_DESCS];
} ChainCase;

/* To be followed by flags and next */
#define HDR     .addr = DATA_BASE, .len = 16
#define BLOCK   .addr = DATA_BASE + 0x200, .len = 512
#define STATUS  .addr = DATA_BASE + 0x100, .len = 1
#define GARBAGE .addr = 0xdeadbeefdeadbeefull, .len = 0xffffffff, \
                .flags = 0xffff, .next = 0xffff
#define TABLE(n) .addr = TABLE_BASE, .len = 16 * (n)

static const ChainCase chain_cases[] = {
    {
        /* covers: SPLIT-7 */
        .path = "/vring/split/chain/next-without-flag-is-ignored",
        .ring = { { HDR, NEXT, 2 }, { GARBAGE }, { STATUS, WRITE, 0xffff } },
        .vectors = 2,
        .vector = { { HDR }, { STATUS, WRITE } },
    }, {
        /* covers: SPLIT-3 */
        .path = "/vring/split/chain/next-in-any-order",
        .ring = { { HDR, NEXT, 3 }, { STATUS, WRITE }, { GARBAGE },
                  { BLOCK, WRITE | NEXT, 1 } },
        .vectors = 3,
        .vector = { { HDR }, { BLOCK, WRITE }, { STATUS, WRITE } },
    }, {
        /* covers: ROBS-24 */
        .path = "/vring/split/chain/unknown-flags-are-ignored",
        .ring = { { HDR, 0xfff8 | NEXT, 1 }, { STATUS, 0xfff8 | WRITE } },
        .vectors = 2,
        .vector = { { HDR }, { STATUS, WRITE } },
    }, {
        /* covers: ROBS-12 */
        .path = "/vring/split/chain/empty-descriptors-are-skipped",
        .ring = { { 0xdead0000, 0, NEXT, 1 }, { HDR, NEXT, 2 },
                  { 0xdead0000, 0, NEXT, 3 }, { BLOCK, WRITE | NEXT, 4 },
                  { 0xdead0000, 0, NEXT, 5 }, { 0xdead0000, 0, WRITE } },
        .vectors = 2,
        .vector = { { HDR }, { BLOCK, WRITE } },
    }, {
        /* covers: ROBS-12 */
        .path = "/vring/split/chain/nothing-but-empty-descriptors",
        .ring = { { 0, 0, NEXT, 1 }, { 0, 0, WRITE } },
    }, {
        .path = "/vring/split/chain/the-same-buffer-twice",
        .ring = { { HDR, NEXT, 1 }, { HDR, WRITE | NEXT, 2 }, { HDR, WRITE } },
        .vectors = 3,
        .vector = { { HDR }, { HDR, WRITE }, { HDR, WRITE } },
    }, {
        /* covers: SPLIT-24 */
        .path = "/vring/split/indirect/whole-request",
        .ring = { { TABLE(3), INDIRECT } },
        .table = { { HDR, NEXT, 1 }, { BLOCK, WRITE | NEXT, 2 },
                   { STATUS, WRITE } },
        .vectors = 3,
        .vector = { { HDR }, { BLOCK, WRITE }, { STATUS, WRITE } },
    }, {
        /* covers: SPLIT-20 */
        .path = "/vring/split/indirect/write-flag-of-the-table-is-ignored",
        .ring = { { TABLE(2), INDIRECT | WRITE } },
        .table = { { HDR, NEXT, 1 }, { STATUS, WRITE } },
        .vectors = 2,
        .vector = { { HDR }, { STATUS, WRITE } },
    }, {
        /* covers: SPLIT-20: next counts only with NEXT here, too */
        .path = "/vring/split/indirect/next-of-the-table-is-ignored",
        .ring = { { TABLE(2), INDIRECT, 0xffff } },
        .table = { { HDR, NEXT, 1 }, { STATUS, WRITE, 0xffff } },
        .vectors = 2,
        .vector = { { HDR }, { STATUS, WRITE } },
    }, {
        /* covers: SPLIT-21 */
        .path = "/vring/split/indirect/behind-a-direct-header",
        .ring = { { HDR, NEXT, 2 }, { GARBAGE }, { TABLE(2), INDIRECT } },
        .table = { { BLOCK, WRITE | NEXT, 1 }, { STATUS, WRITE } },
        .vectors = 3,
        .vector = { { HDR }, { BLOCK, WRITE }, { STATUS, WRITE } },
    }, {
        /* covers: SPLIT-21: the table holds the status only */
        .path = "/vring/split/indirect/behind-two-direct-ones",
        .ring = { { HDR, NEXT, 1 }, { BLOCK, WRITE | NEXT, 2 },
                  { TABLE(1), INDIRECT } },
        .table = { { STATUS, WRITE } },
        .vectors = 3,
        .vector = { { HDR }, { BLOCK, WRITE }, { STATUS, WRITE } },
    }, {
        /* covers: SPLIT-22 */
        .path = "/vring/split/indirect/unused-entries-are-skipped",
        .ring = { { TABLE(6), INDIRECT } },
        .table = { { HDR, NEXT, 4 }, { GARBAGE }, { STATUS, WRITE, 1 },
                   { GARBAGE }, { BLOCK, WRITE | NEXT, 2 }, { GARBAGE } },
        .vectors = 3,
        .vector = { { HDR }, { BLOCK, WRITE }, { STATUS, WRITE } },
    }, {
        /* covers: SPLIT-23 */
        .path = "/vring/split/indirect/next-counts-within-the-table",
        .ring = { { TABLE(2), INDIRECT }, { GARBAGE }, { GARBAGE } },
        .table = { { HDR, NEXT, 1 }, { STATUS, WRITE } },
        .vectors = 2,
        .vector = { { HDR }, { STATUS, WRITE } },
    }, {
        /* covers: SPLIT-25 */
        .path = "/vring/split/indirect/table-at-an-odd-address",
        .ring = { { TABLE_BASE + 5, 32, INDIRECT } },
        .table = { { HDR, NEXT, 1 }, { STATUS, WRITE } },
        .table_offset = 5,
        .vectors = 2,
        .vector = { { HDR }, { STATUS, WRITE } },
    }, {
        /* covers: SPLIT-25: the last entry ends with the region */
        .path = "/vring/split/indirect/table-at-the-end-of-its-region",
        .ring = { { DATA_BASE + DATA_SIZE - 32, 32, INDIRECT } },
        .table = { { HDR, NEXT, 1 }, { STATUS, WRITE } },
        .table_offset = DATA_BASE + DATA_SIZE - 32 - TABLE_BASE,
        .vectors = 2,
        .vector = { { HDR }, { STATUS, WRITE } },
    }, {
        /* covers: ROBS-12 */
        .path = "/vring/split/indirect/empty-entries-are-skipped",
        .ring = { { TABLE(4), INDIRECT } },
        .table = { { 0, 0, NEXT, 1 }, { HDR, NEXT, 2 },
                   { 0, 0, WRITE | NEXT, 3 }, { STATUS, WRITE } },
        .vectors = 2,
        .vector = { { HDR }, { STATUS, WRITE } },
    }, {
        /* covers: ROBS-27, SPLIT-22 */
        .path = "/vring/split/indirect/shuffled-table",
        .ring = { { TABLE(3), INDIRECT } },
        .table = { { HDR, NEXT, 2 }, { STATUS, WRITE },
                   { BLOCK, WRITE | NEXT, 1 } },
        .vectors = 3,
        .vector = { { HDR }, { BLOCK, WRITE }, { STATUS, WRITE } },
    },
};

static void test_chain(const void *opaque)
{
    const ChainCase *c = opaque;

    for (unsigned i = 0; i < TEST_MODES; i++) {
        VringConfig config = test_config(&test_modes[i], 8);
        VirtQueueElement elem;
        TestQueue q;

        g_test_message("%s", test_modes[i].name);
        test_queue_init(&q, &config);
        driver_set_table(&q.drv, q.drv.desc, c->ring, CASE_DESCS);
        driver_set_table(&q.drv, test_memory_host(q.mem, TABLE_BASE) +
                                 c->table_offset, c->table,
                         c->ring[0].flags & INDIRECT ? c->ring[0].len / 16
                                                     : CASE_DESCS);
        driver_offer(&q.drv, 0);
        test_queue_pop(&q, &elem);
        test_check_vectors(&q, &elem, c->vector, c->vectors);
        test_queue_use(&q, &elem, 0);
        test_queue_cleanup(&q);
    }
}

/* covers: SPLIT-26: a table with as many entries as the queue, and more */
static void test_long_table(TestQueue *q)
{
    const unsigned *lengths = growth_lengths;
    TestDesc *table = g_new(TestDesc, 1024);
    VirtQueueElement elem;

    for (unsigned i = 0; i < ARRAY_SIZE(growth_lengths); i++) {
        unsigned n = lengths[i], out = n / 2;
        TestDesc desc = { TABLE_BASE + 1, 16 * n, INDIRECT };

        for (unsigned j = 0; j < n; j++) {
            table[j] = (TestDesc) {
                .addr = DATA_BASE + 32 * j,
                .len = 16 + j % 16,
                .flags = (j < out ? 0 : WRITE) | (j < n - 1 ? NEXT : 0),
                .next = j + 1,
            };
        }
        driver_set_table(&q->drv, test_memory_host(q->mem, TABLE_BASE + 1),
                         table, n);
        driver_set_desc(&q->drv, 63, &desc);
        driver_offer(&q->drv, 63);
        test_queue_pop(q, &elem);
        g_assert_cmpuint(elem.index, ==, 63);
        test_check_long(q, &elem, n, out);
        test_queue_use(q, &elem, 0);
        vring_vectors_release(&q->buf);
    }
    g_free(table);
}

/* Adding tests */

#define MODE_TEST(name, func) \
    test_add_modes("/vring/split/" name, func, TEST_MODES)

static void add_mode_tests(void)
{
    static const TestRow rows[] = {
        { "index-wrap", test_index_wrap, 16, TEST_MODES },
        { "pop-without-kick", test_pop_without_kick, 8, TEST_MODES },
        { "add-without-expose", test_add_without_expose, 8, TEST_MODES },
        { "empty-kicks", test_empty_kicks, 8, TEST_MODES },
        { "chain-lengths", test_chain_lengths, 1024, TEST_MODES },
        { "grown-buffer", test_grown_buffer, 1024, TEST_MODES },
        { "only-the-used-ring-is-written", test_only_used_ring_is_written, 16,
          TEST_MODES },
        { "publish-shows-a-batch", test_publish_batch, 8, TEST_MODES },
        { "used-length", test_used_length, 2, TEST_MODES },
        { "driver-scribbles-on-used-ring", test_driver_scribbles_on_used_ring,
          4, TEST_MODES },
        { "indirect/long-table", test_long_table, 64, TEST_MODES },
    };

    test_add_rows("/vring/split", rows, ARRAY_SIZE(rows));
    MODE_TEST("minimal-alignment", test_minimal_alignment);
    MODE_TEST("queue-sizes", test_queue_sizes);
    MODE_TEST("bad-queue-sizes", test_bad_queue_sizes);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    test_add_cases(raw_cases, test_raw_bytes);
    test_add_cases(chain_cases, test_chain);
    add_mode_tests();
    return g_test_run();
}
