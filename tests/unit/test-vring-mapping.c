/*
 * Tests of the ring: guest memory under it
 *
 * Knows what the device writes and what of it must be marked dirty, which
 * buffers take the general path, and that memory which comes and goes while
 * buffers are in flight is used right and released in time.  Does not test
 * how a table is made (vring-memory.c).
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "vring-test-driver.h"

#define QUEUE_SIZE 8

/* Further regions: NEXT_BASE adjoins the data region, apart in the host */
#define NEXT_BASE   (DATA_BASE + DATA_SIZE)
#define NEXT_SIZE   TEST_PAGE
#define IOMMU_BASE  0x20000000ull
#define IOMMU_SIZE  0x10000ull
#define ROM_BASE    0x30000000ull
#define SPARE_BASE  0x40000000ull
#define MMIO_BASE   0x50000000ull
#define MMIO_SIZE   0x1000ull

static void mapping_queue_init(TestQueue *q, const VringConfig *config)
{
    test_queue_init(q, config);
    test_memory_add(q->mem, NEXT_BASE, NEXT_SIZE, TEST_RAM);
    test_memory_add(q->mem, IOMMU_BASE, IOMMU_SIZE, TEST_TRANSLATED);
    test_memory_add(q->mem, ROM_BASE, TEST_PAGE, TEST_ROM);
    test_memory_commit(q->mem);
    vring_refresh_memory(&q->vring);
}

static VringConfig mode_config(const TestMode *mode)
{
    return test_config(mode, QUEUE_SIZE);
}

/* Pops a chain of the given descriptors, which is one of several if @id is */
static void pop_chain_as(TestQueue *q, VirtQueueElement *elem,
                         VringVectors *buf, uint16_t id, const TestDesc *desc,
                         unsigned n)
{
    driver_offer_chain(&q->drv, id, desc, n);
    test_queue_pop_buf(q, elem, buf);
}

static void pop_chain(TestQueue *q, VirtQueueElement *elem, VringVectors *buf,
                      const TestDesc *desc, unsigned n)
{
    pop_chain_as(q, elem, buf, 0, desc, n);
}

static void pop_write_buffer(TestQueue *q, VirtQueueElement *elem,
                             VringVectors *buf, uint16_t id, hwaddr addr,
                             uint32_t len)
{
    const TestDesc desc = { addr, len, WRITE };

    vring_vectors_init(buf);
    pop_chain_as(q, elem, buf, id, &desc, 1);
}

/* Fails the test unless exactly these bytes are dirty besides @others */
static void check_dirty(TestQueue *q, hwaddr addr, uint64_t len,
                        uint64_t others)
{
    g_assert_cmpuint(test_memory_dirty(q->mem, addr, len), ==, len);
    g_assert_cmpuint(test_memory_all_dirty(q->mem), ==, len + others);
}

/* What is marked dirty */

/* covers: SPLIT-9, SPLIT-15, M9: writable buffers by push, no others */
static void test_dirty_buffers(TestQueue *q)
{
    static const TestDesc desc[] = {
        { DATA_BASE, 64, NEXT, 1 },
        { DATA_BASE + 1000, 512, WRITE | NEXT, 2 },
        { NEXT_BASE + 7, 1, WRITE },
    };
    VirtQueueElement elem;

    pop_chain(q, &elem, &q->buf, desc, ARRAY_SIZE(desc));
    g_assert_cmpuint(test_memory_all_dirty(q->mem), ==, 0);
    vring_push(&q->vring, &elem, &q->buf, 100);
    g_assert_cmpuint(test_memory_dirty(q->mem, NEXT_BASE + 7, 1), ==, 1);
    g_assert_cmpuint(test_memory_dirty(q->mem, DATA_BASE + 1000, 512),
                     ==, 512);
    g_assert_cmpuint(test_memory_dirty(q->mem, DATA_BASE, 1000), ==, 0);
}

/* covers: M9: exactly the elements and the index, wherever the batch lies */
static void test_dirty_used_ring(TestQueue *q)
{
    VringConfig config = q->drv.config;
    const hwaddr idx = config.used + 2, ring = config.used + 4;
    VirtQueueElement elem;

    for (unsigned n = 1; n <= QUEUE_SIZE; n++) {
        for (unsigned shift = 0; shift < QUEUE_SIZE; shift++) {
            unsigned first = q->vring.used_idx % QUEUE_SIZE;

            test_memory_clean(q->mem);
            for (unsigned i = 0; i < n; i++) {
                driver_offer_buffer(&q->drv, i, DATA_BASE, 1, false);
                test_queue_pop(q, &elem);
                vring_push(&q->vring, &elem, &q->buf, 0);
            }
            g_assert_cmpuint(vring_publish(&q->vring), ==, n);
            check_dirty(q, idx, 2, 8 * n);
            for (unsigned i = 0; i < n; i++) {
                hwaddr slot = ring + (first + i) % QUEUE_SIZE * 8;

                g_assert_cmpuint(test_memory_dirty(q->mem, slot, 8), ==, 8);
            }
            q->drv.used_idx += n;
            test_queue_run(q, 0);
        }
    }
}

/* covers: M9, SPLIT-41, SPLIT-43 */
static void test_dirty_event_fields(TestQueue *q)
{
    bool event_idx = q->drv.config.event_idx;
    VringConfig config = q->drv.config;
    hwaddr field = config.used + (event_idx ? 4 + 8 * QUEUE_SIZE : 0);

    g_assert_cmpuint(test_memory_all_dirty(q->mem), ==, 0);
    vring_enable_notification(&q->vring);
    check_dirty(q, field, 2, 0);
    test_memory_clean(q->mem);
    vring_disable_notification(&q->vring);
    g_assert_cmpuint(test_memory_all_dirty(q->mem), ==, event_idx ? 0 : 2);
    vring_should_notify(&q->vring);
    g_assert_cmpuint(test_memory_all_dirty(q->mem), ==, event_idx ? 0 : 2);
}

/* Writable in two regions, one of them twice */
static const TestDesc log_desc[] = {
    { DATA_BASE, 64, NEXT, 1 },
    { DATA_BASE + 1000, 512, WRITE | NEXT, 2 },
    { NEXT_BASE + 7, 100, WRITE | NEXT, 3 },
    { DATA_BASE + 3000, 1, WRITE },
};

#define LOG_DATA_BYTES 513
#define LOG_NEXT_BYTES 100

static const hwaddr log_bases[] = { RING_BASE, DATA_BASE, NEXT_BASE };

/* Bit i of @mask is for region i of log_bases */
static void set_logging(TestQueue *q, unsigned mask)
{
    for (unsigned i = 0; i < ARRAY_SIZE(log_bases); i++) {
        test_memory_set_logging(q->mem, log_bases[i], mask >> i & 1);
    }
}

/* One step of a request, before which logging begins or ends */
static void log_step(TestQueue *q, bool logged, const char *name)
{
    g_test_message("%s %s", name, logged ? "logged" : "not logged");
    set_logging(q, logged ? ~0u : 0);
    test_memory_clean(q->mem);
}

static void check_all_dirty(TestQueue *q, uint64_t bytes)
{
    g_assert_cmpuint(test_memory_all_dirty(q->mem), ==, bytes);
}

/*
 * In a packed ring whole descriptors or structures may be marked, of which the
 * device writes but a part; test-vring-packed.c looks which.
 */
static void check_ring_dirty(TestQueue *q, bool logged, unsigned split_bytes,
                             unsigned packed_least, unsigned packed_most)
{
    if (!logged) {
        check_all_dirty(q, 0);
    } else if (!q->drv.config.packed) {
        check_all_dirty(q, split_bytes);
    } else {
        g_assert_cmpuint(test_memory_all_dirty(q->mem), >=, packed_least);
        g_assert_cmpuint(test_memory_all_dirty(q->mem), <=, packed_most);
    }
}

/* Bit i of @logged says whether anybody logs while step i is taken */
static void run_logged(TestQueue *q, unsigned logged)
{
    bool event_idx = q->drv.config.event_idx;
    VirtQueueElement elem;
    uint32_t id, len;

    log_step(q, logged & 1, "pop");
    pop_chain(q, &elem, &q->buf, log_desc, ARRAY_SIZE(log_desc));
    check_all_dirty(q, 0);

    log_step(q, logged & 2, "push");
    vring_push(&q->vring, &elem, &q->buf, 613);
    check_all_dirty(q, logged & 2 ? LOG_DATA_BYTES + LOG_NEXT_BYTES : 0);

    log_step(q, logged & 4, "publish");
    g_assert_cmpuint(vring_publish(&q->vring), ==, 1);
    check_ring_dirty(q, logged & 4, 8 + 2, 8, 16 * ARRAY_SIZE(log_desc));

    log_step(q, logged & 8, "disable");
    vring_disable_notification(&q->vring);
    check_ring_dirty(q, logged & 8, event_idx ? 0 : 2, event_idx ? 0 : 2, 4);

    log_step(q, logged & 16, "enable");
    g_assert_false(vring_enable_notification(&q->vring));
    check_ring_dirty(q, logged & 16, 2, event_idx ? 4 : 2, 4);

    g_assert_true(driver_take(&q->drv, &id, &len));
    g_assert_cmpuint(len, ==, 613);
}

/*
 * covers: M9: logging may begin and end between any two steps of a request;
 * what counts is the moment of the write, and nothing is marked without logging
 */
static void test_dirty_when_logged(TestQueue *q)
{
    for (unsigned logged = 0; logged < 32; logged++) {
        run_logged(q, logged);
    }
}

/* Bytes of the ring that get dirty by a used buffer */
static hwaddr used_area(const VringConfig *config)
{
    return config->packed ? config->desc : config->used;
}

/* covers: M8, M9: each region counts by itself, pushed or given up */
static void test_dirty_by_region(const TestMode *mode)
{
    VringConfig config = mode_config(mode);

    for (unsigned i = 0; i < 16; i++) {
        unsigned mask = i / 2;
        bool detach = i % 2;
        VirtQueueElement elem;
        uint64_t ring;
        TestQueue q;

        mapping_queue_init(&q, &config);
        set_logging(&q, 0);
        pop_chain(&q, &elem, &q.buf, log_desc, ARRAY_SIZE(log_desc));
        set_logging(&q, mask);
        if (detach) {
            vring_detach(&q.vring, &elem, &q.buf);
        } else {
            vring_push(&q.vring, &elem, &q.buf, 0);
        }
        vring_publish(&q.vring);
        g_assert_cmpuint(test_memory_dirty(q.mem, DATA_BASE, DATA_SIZE), ==,
                         mask & 2 ? LOG_DATA_BYTES : 0);
        g_assert_cmpuint(test_memory_dirty(q.mem, NEXT_BASE, NEXT_SIZE), ==,
                         mask & 4 ? LOG_NEXT_BYTES : 0);
        ring = test_memory_dirty(q.mem, used_area(&config), TEST_PAGE / 2);
        g_assert_cmpint(ring != 0, ==, mask & 1 && !detach);
        test_queue_cleanup(&q);
    }
}

/* covers: M8: given up, perhaps half written, not returned to the driver */
static void test_detach(TestQueue *q)
{
    static const TestDesc desc[] = {
        { DATA_BASE, 64, NEXT, 1 },
        { DATA_BASE + 1000, 512, WRITE },
    };
    VringConfig config = q->drv.config;
    VirtQueueElement elem;

    pop_chain(q, &elem, &q->buf, desc, ARRAY_SIZE(desc));
    g_assert_cmpuint(q->vring.inuse, ==, config.packed ? 2 : 1);
    vring_detach(&q->vring, &elem, &q->buf);
    g_assert_cmpuint(q->vring.inuse, ==, 0);
    check_dirty(q, DATA_BASE + 1000, 512, 0);
    g_assert_cmpuint(vring_publish(&q->vring), ==, 0);
    test_queue_run(q, 1);
}

/* The general path */

/* covers: ROBS-10 */
static void test_adjoining_regions(TestQueue *q)
{
    static const TestDesc desc[] = {
        { DATA_BASE, 16, NEXT, 1 },
        { NEXT_BASE - 100, 300, WRITE | NEXT, 2 },
        { DATA_BASE + 64, 1, WRITE },
    };
    static const TestDesc want[] = {
        { NEXT_BASE - 100, 100 }, { NEXT_BASE, 200 }, { DATA_BASE + 64, 1 },
    };
    VirtQueueElement elem;

    pop_chain(q, &elem, &q->buf, desc, ARRAY_SIZE(desc));
    g_assert_cmpuint(elem.out_num, ==, 1);
    g_assert(elem.out_sg[0].iov_base == q->data);
    g_assert_cmpuint(elem.in_num, ==, ARRAY_SIZE(want));
    for (unsigned i = 0; i < ARRAY_SIZE(want); i++) {
        g_assert_cmphex(elem.in_addr[i], ==, want[i].addr);
        g_assert_cmpuint(elem.in_sg[i].iov_len, ==, want[i].len);
        g_assert(elem.in_sg[i].iov_base ==
                 test_memory_host(q->mem, want[i].addr));
        memset(elem.in_sg[i].iov_base, 0x77, elem.in_sg[i].iov_len);
    }
    g_assert_cmpuint(test_memory_mappings(q->mem), ==, 4);
    test_queue_use(q, &elem, 301);
    g_assert_cmpuint(test_memory_mappings(q->mem), ==, 0);
    g_assert_cmpuint(test_memory_dirty(q->mem, NEXT_BASE - 100, 100),
                     ==, 100);
    g_assert_cmpuint(test_memory_dirty(q->mem, NEXT_BASE, 201), ==, 200);
    g_assert_cmpuint(test_memory_dirty(q->mem, DATA_BASE, 65), ==, 1);
}

/* Buffers and a table that only the general path serves, in small pieces */
static void test_translated(TestQueue *q)
{
    static const TestDesc table[] = {
        { ROM_BASE, 50, NEXT, 1 },
        { DATA_BASE, 10, NEXT, 2 },
        { IOMMU_BASE + 64, 1000, WRITE },
    };
    const TestDesc head = { IOMMU_BASE + 0x101, sizeof(table), INDIRECT };
    VirtQueueElement elem;

    test_memory_limit_map(q->mem, 100);
    driver_set_table(&q->drv, test_memory_host(q->mem, head.addr), table,
                     ARRAY_SIZE(table));
    pop_chain(q, &elem, &q->buf, &head, 1);
    g_assert_cmpuint(elem.out_num, ==, 2);
    g_assert_cmpuint(elem.in_num, ==, 10);
    for (unsigned i = 0; i < 10; i++) {
        g_assert_cmphex(elem.in_addr[i], ==, IOMMU_BASE + 64 + 100 * i);
        g_assert_cmpuint(elem.in_sg[i].iov_len, ==, 100);
    }
    g_assert_cmpuint(test_memory_mappings(q->mem), ==, 12);
    test_queue_use(q, &elem, 1000);
    g_assert_cmpuint(test_memory_dirty(q->mem, IOMMU_BASE + 64, 1000), ==,
                     1000);
}

/* An indirect table over two regions; covers: SPLIT-25 */
static void test_table_over_regions(const TestMode *mode)
{
    TestDesc table[] = {
        { DATA_BASE, 16, NEXT, 1 },
        { DATA_BASE + 64, 512, WRITE | NEXT, 2 },
        { DATA_BASE + 1000, 1, WRITE },
    };
    const unsigned size = sizeof(table);
    g_autofree uint8_t *raw = g_malloc(size);

    for (unsigned split = 1; split < size; split++) {
        VringConfig config = mode_config(mode);
        const TestDesc head = { NEXT_BASE - split, size, INDIRECT };
        VirtQueueElement elem;
        TestQueue q;

        mapping_queue_init(&q, &config);
        driver_set_table(&q.drv, raw, table, ARRAY_SIZE(table));
        memcpy(test_memory_host(q.mem, head.addr), raw, split);
        memcpy(test_memory_host(q.mem, NEXT_BASE), raw + split, size - split);
        pop_chain(&q, &elem, &q.buf, &head, 1);
        g_assert_cmpuint(elem.out_num, ==, 1);
        g_assert_cmpuint(elem.in_num, ==, 2);
        g_assert(elem.in_sg[1].iov_base == q.data + 1000);
        test_queue_use(&q, &elem, 0);
        test_queue_cleanup(&q);
    }
}

typedef struct UndoCase {
    const char *path;
    VringError error;
    uint64_t map_limit;
    TestDesc desc[4];
} UndoCase;

/* Whatever was mapped before the fault is given back, and not as written */
static const UndoCase undo_cases[] = {
    {
        /* covers: ROBS-8 */
        .path = "/vring/mapping/undo/nothing-behind-the-last-region",
        .error = VRING_ERR_ADDRESS,
        .map_limit = 64,
        .desc = { { DATA_BASE, 16, NEXT, 1 },
                  { IOMMU_BASE, 200, WRITE | NEXT, 2 },
                  { NEXT_BASE, NEXT_SIZE + 1, WRITE } },
    }, {
        /* covers: ROBS-13 */
        .path = "/vring/mapping/undo/order",
        .error = VRING_ERR_ORDER,
        .map_limit = 64,
        .desc = { { IOMMU_BASE, 200, NEXT, 1 },
                  { DATA_BASE, 200, WRITE | NEXT, 2 }, { DATA_BASE, 1 } },
    }, {
        /* covers: ROBS-2: too many pieces for any array */
        .path = "/vring/mapping/undo/too-long",
        .error = VRING_ERR_TOO_LONG,
        .map_limit = 1,
        .desc = { { IOMMU_BASE, 24, NEXT, 1 },
                  { IOMMU_BASE, 1001, WRITE } },
    }, {
        /* covers: ROBS-2: one in the table when the array is full */
        .path = "/vring/mapping/undo/too-long-by-table",
        .error = VRING_ERR_TOO_LONG,
        .map_limit = 1,
        .desc = { { DATA_BASE, 1, NEXT, 1 }, { IOMMU_BASE, 1023, NEXT, 2 },
                  { DATA_BASE, 1, WRITE } },
    }, {
        /* covers: ROBS-1 */
        .path = "/vring/mapping/undo/loop",
        .error = VRING_ERR_LOOP,
        .map_limit = 64,
        .desc = { { IOMMU_BASE, 200, NEXT, 1 }, { DATA_BASE, 200, NEXT, 0 } },
    },
};

static unsigned undo_length(const UndoCase *c)
{
    unsigned n = 0;

    while (n < ARRAY_SIZE(c->desc) && c->desc[n].len) {
        n++;
    }
    return n;
}

static void test_undo(const void *opaque)
{
    const UndoCase *c = opaque;

    for (unsigned i = 0; i < TEST_ALL_MODES; i++) {
        VringConfig config = mode_config(&test_modes[i]);
        TestQueue q;

        /* Only in a split ring a chain can say where it goes on */
        if (config.packed && c->error == VRING_ERR_LOOP) {
            continue;
        }
        g_test_message("%s", test_modes[i].name);
        mapping_queue_init(&q, &config);
        test_memory_limit_map(q.mem, c->map_limit);
        driver_offer_chain(&q.drv, 0, c->desc, undo_length(c));
        test_queue_fail(&q, c->error);
        test_queue_cleanup(&q);
    }
}

/* covers: SPLIT-1: each area in a region of its own */
static void test_areas_in_regions(TestQueue *q)
{
    VringConfig config = q->drv.config;

    config.avail = NEXT_BASE + 4;
    config.used = DATA_BASE + DATA_SIZE - 0x1000;
    test_queue_reopen(q, &config);
    for (unsigned i = 0; i < 3 * QUEUE_SIZE; i++) {
        vring_enable_notification(&q->vring);
        test_queue_run(q, i % QUEUE_SIZE);
    }
}

/* Memory that comes and goes */

/* covers: G11: while nothing is in flight, the old table goes at once */
static void test_change_when_idle(TestQueue *q)
{
    for (unsigned i = 0; i < 10; i++) {
        g_assert_cmpuint(test_memory_tables(q->mem), ==, 1);
        if (i % 2) {
            test_memory_del(q->mem, SPARE_BASE);
        } else {
            test_memory_add(q->mem, SPARE_BASE, TEST_PAGE, TEST_RAM);
        }
        test_memory_commit(q->mem);
        g_assert_cmpuint(test_memory_tables(q->mem), ==, 2);
        vring_refresh_memory(&q->vring);
        g_assert_cmpuint(test_memory_tables(q->mem), ==, 1);
        vring_refresh_memory(&q->vring);
        test_queue_run(q, i % QUEUE_SIZE);
    }
}

/*
 * covers: G11, M6: unplugged memory lives as long as the last buffer in it,
 * and no longer
 */
static void test_unplug_in_flight(TestQueue *q)
{
    VirtQueueElement elem[2], other;
    VringVectors buf[2];
    unsigned regions;

    test_memory_add(q->mem, SPARE_BASE, TEST_PAGE, TEST_RAM);
    test_memory_commit(q->mem);
    vring_refresh_memory(&q->vring);
    regions = test_memory_regions(q->mem);

    pop_write_buffer(q, &elem[0], &buf[0], 0, SPARE_BASE, 512);
    pop_write_buffer(q, &elem[1], &buf[1], 1, SPARE_BASE + 512, 512);
    test_memory_del(q->mem, SPARE_BASE);
    test_memory_commit(q->mem);
    vring_refresh_memory(&q->vring);

    /* New buffers are looked up in the new table meanwhile */
    pop_write_buffer(q, &other, &q->buf, 2, DATA_BASE, 512);
    test_queue_use(q, &other, 512);
    g_assert_cmpuint(test_memory_tables(q->mem), ==, 2);
    g_assert_cmpuint(test_memory_regions(q->mem), ==, regions);

    for (unsigned i = 0; i < 2; i++) {
        g_assert_cmpuint(test_memory_tables(q->mem), ==, 2);
        memset(elem[i].in_sg[0].iov_base, 0x11, 512);
        test_queue_use_buf(q, &elem[i], &buf[i], 512);
    }
    g_assert_cmpuint(test_memory_tables(q->mem), ==, 1);
    g_assert_cmpuint(test_memory_regions(q->mem), ==, regions - 1);
}

/* covers: G11: each table lives as long as its own buffers, in any order */
static void test_many_changes(TestQueue *q)
{
    static const unsigned order[] = { 2, 0, 3, 1 };
    static const unsigned tables[] = { 3, 2, 2, 1 };    /* 3 is current */
    VirtQueueElement elem[4];
    VringVectors buf[4];

    for (unsigned i = 0; i < 4; i++) {
        test_memory_add(q->mem, SPARE_BASE + i * TEST_PAGE, TEST_PAGE,
                        TEST_RAM);
        test_memory_commit(q->mem);
        vring_refresh_memory(&q->vring);
        pop_write_buffer(q, &elem[i], &buf[i], i,
                         SPARE_BASE + i * TEST_PAGE, 16);
    }
    g_assert_cmpuint(test_memory_tables(q->mem), ==, 4);
    for (unsigned i = 0; i < 4; i++) {
        test_queue_use_buf(q, &elem[order[i]], &buf[order[i]], 16);
        g_assert_cmpuint(test_memory_tables(q->mem), ==, tables[i]);
    }
}

/* covers: G11: a change that the Vring has not been told of does no harm */
static void test_change_unnoticed(TestQueue *q)
{
    VirtQueueElement elem;

    test_memory_add(q->mem, SPARE_BASE, TEST_PAGE, TEST_RAM);
    test_memory_commit(q->mem);
    vring_refresh_memory(&q->vring);
    test_memory_del(q->mem, SPARE_BASE);
    test_memory_commit(q->mem);

    pop_write_buffer(q, &elem, &q->buf, 0, SPARE_BASE, 512);
    memset(elem.in_sg[0].iov_base, 0x22, 512);
    test_queue_use(q, &elem, 512);
    test_queue_run(q, 3);
}

/* Plugs RAM in place of the ring, with the old contents or fresh */
static void replug_ring(TestQueue *q, const GByteArray *contents)
{
    uint8_t *host = test_memory_add(q->mem, RING_BASE, contents->len,
                                    TEST_RAM);

    memcpy(host, contents->data, contents->len);
    test_memory_commit(q->mem);
    q->drv.desc = test_memory_host(q->mem, q->drv.config.desc);
    q->drv.avail = test_memory_host(q->mem, q->drv.config.avail);
    q->drv.used = test_memory_host(q->mem, q->drv.config.used);
    vring_refresh_memory(&q->vring);
}

/* Unplugs the ring and returns what was in it */
static GByteArray *unplug_ring(TestQueue *q)
{
    uint64_t size = QEMU_ALIGN_UP(q->drv.config.used +
                                  driver_used_size(&q->drv.config) - RING_BASE,
                                  TEST_PAGE);
    GByteArray *contents = g_byte_array_new();

    g_byte_array_append(contents, test_memory_host(q->mem, RING_BASE), size);
    test_memory_del(q->mem, RING_BASE);
    test_memory_commit(q->mem);
    vring_refresh_memory(&q->vring);
    return contents;
}

/* Nothing may touch the ring while it is not there. */
static void check_lost(TestQueue *q)
{
    VirtQueueElement elem;

    for (unsigned i = 0; i < 2; i++) {
        g_assert_cmpint(vring_pop(&q->vring, &elem, &q->buf), ==,
                        -VRING_ERR_RING_LOST);
        g_assert_false(vring_more_avail(&q->vring));
        vring_disable_notification(&q->vring);
        g_assert_false(vring_enable_notification(&q->vring));
        g_assert_cmpint(vring_pop_full(&q->vring), ==, -VRING_ERR_RING_LOST);
        g_assert_cmpuint(vring_publish(&q->vring), ==, 0);
        /* What the driver wishes cannot be read */
        g_assert_true(vring_should_notify(&q->vring));
        g_assert_cmpuint(vring_refresh_memory(&q->vring), ==, 0);
    }
}

/* covers: ROBS-22, G11 */
static void test_ring_lost_and_found(TestQueue *q)
{
    GByteArray *contents;

    for (unsigned i = 0; i < 3; i++) {
        test_queue_run(q, i);
        contents = unplug_ring(q);
        check_lost(q);
        g_assert_cmpuint(test_memory_tables(q->mem), ==, 1);
        replug_ring(q, contents);
        g_byte_array_unref(contents);
        test_queue_run(q, i);
        g_assert_false(driver_has_used(&q->drv));
        g_assert_false(q->vring.dropped);
    }
}

/* covers: ROBS-22, G11: one area is enough to lose the ring */
static void test_one_area_lost(const TestMode *mode)
{
    const hwaddr area[] = {
        SPARE_BASE, SPARE_BASE + 2 * TEST_PAGE, SPARE_BASE + 4 * TEST_PAGE,
    };

    for (unsigned lost = 0; lost < ARRAY_SIZE(area); lost++) {
        VringConfig config = mode_config(mode);
        TestQueue q;

        test_queue_init(&q, &config);
        for (unsigned i = 0; i < ARRAY_SIZE(area); i++) {
            test_memory_add(q.mem, area[i], TEST_PAGE, TEST_RAM);
        }
        test_memory_commit(q.mem);
        config.desc = area[0];
        config.avail = area[1];
        config.used = area[2];
        test_queue_reopen(&q, &config);
        test_queue_run(&q, 0);

        test_memory_del(q.mem, area[lost]);
        test_memory_commit(q.mem);
        vring_refresh_memory(&q.vring);
        check_lost(&q);
        test_queue_cleanup(&q);
    }
}

/* covers: G11, M6: the ring goes while buffers are in flight */
static void test_ring_lost_in_flight(TestQueue *q)
{
    VirtQueueElement elem[3];
    VringVectors buf[3];

    for (unsigned i = 0; i < 3; i++) {
        pop_write_buffer(q, &elem[i], &buf[i], i, DATA_BASE + 512 * i,
                         512);
    }
    /* Published when the ring goes, which is the last moment for it */
    vring_push(&q->vring, &elem[0], &buf[0], 512);
    g_byte_array_unref(unplug_ring(q));
    g_assert_cmpuint(vring_unpublished(&q->vring), ==, 0);
    check_lost(q);
    g_assert_false(q->vring.dropped);
    g_assert_cmpuint(test_memory_tables(q->mem), ==, 2);
    vring_push(&q->vring, &elem[1], &buf[1], 512);
    vring_detach(&q->vring, &elem[2], &buf[2]);
    g_assert_cmpuint(test_memory_tables(q->mem), ==, 1);
    g_assert_cmpuint(q->vring.inuse, ==, 0);
    check_lost(q);
    g_assert_true(q->vring.dropped);
}

/* covers: ROBS-22, NOTIF-8: the ring comes back with another wish in it */
static void test_ring_found_changed(TestQueue *q)
{
    GByteArray *off, *on;

    test_queue_run(q, 0);
    vring_disable_notification(&q->vring);
    off = unplug_ring(q);
    replug_ring(q, off);
    g_assert_false(vring_enable_notification(&q->vring));
    on = unplug_ring(q);
    replug_ring(q, off);
    g_assert_false(vring_enable_notification(&q->vring));
    driver_offer_buffer(&q->drv, 1, DATA_BASE, 16, true);
    g_assert_true(driver_must_kick(&q->drv));
    g_byte_array_unref(off);
    g_byte_array_unref(on);
}

/* With VIRTIO_F_IN_ORDER: when each of two buffers is done */
typedef enum Done {
    BEFORE,                     /* the ring goes */
    MEANWHILE,
    AFTERWARDS,                 /* when it is back */
} Done;

typedef struct OrderLost {
    Done first, second;
    bool dropped;               /* the driver cannot get both */
} OrderLost;

static const OrderLost order_lost[] = {
    { BEFORE, BEFORE, false },
    { BEFORE, MEANWHILE, true },
    { BEFORE, AFTERWARDS, false },
    { MEANWHILE, BEFORE, true },
    { MEANWHILE, MEANWHILE, true },
    { MEANWHILE, AFTERWARDS, true },
    { AFTERWARDS, BEFORE, false },
    { AFTERWARDS, MEANWHILE, false },
    { AFTERWARDS, AFTERWARDS, false },
};

/* The second one first, as that is out of its turn */
static void push_done(TestQueue *q, const OrderLost *c, Done now,
                      VirtQueueElement *elem, VringVectors *buf)
{
    if (c->second == now) {
        vring_push(&q->vring, &elem[1], &buf[1], 512);
    }
    if (c->first == now) {
        vring_push(&q->vring, &elem[0], &buf[0], 512);
    }
}

static unsigned take_all(TestQueue *q)
{
    uint32_t id, len;
    unsigned n = 0;

    while (driver_take(&q->drv, &id, &len)) {
        g_assert_cmpuint(len, ==, 512);
        n++;
    }
    return n;
}

static void run_order_lost(const TestMode *mode, const OrderLost *c)
{
    VringConfig config = mode_config(mode);
    VirtQueueElement elem[2];
    VringVectors buf[2];
    GByteArray *contents;
    TestQueue q;

    test_queue_init(&q, &config);
    test_queue_run(&q, 0);
    for (unsigned i = 0; i < 2; i++) {
        pop_write_buffer(&q, &elem[i], &buf[i], 1 + i, DATA_BASE + 512 * i,
                         512);
    }
    push_done(&q, c, BEFORE, elem, buf);
    vring_publish(&q.vring);
    contents = unplug_ring(&q);
    push_done(&q, c, MEANWHILE, elem, buf);
    check_lost(&q);
    g_assert_cmpint(q.vring.dropped, ==, c->dropped);
    replug_ring(&q, contents);
    g_byte_array_unref(contents);
    push_done(&q, c, AFTERWARDS, elem, buf);
    vring_publish(&q.vring);
    g_assert_cmpuint(q.vring.inuse, ==, 0);
    g_assert_cmpint(q.vring.dropped, ==, c->dropped);
    if (!c->dropped) {
        g_assert_cmpuint(take_all(&q), ==, 2);
        test_queue_run(&q, 3);
    }
    test_queue_cleanup(&q);
}

/* covers: E5, VQ-7, G8: buffers in order whose ring is away for a while */
static void test_order_lost(void)
{
    static const TestMode modes[] = {
        { "split", .in_order = true },
        { "packed", .in_order = true, .packed = true },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(modes); i++) {
        for (unsigned j = 0; j < ARRAY_SIZE(order_lost); j++) {
            g_test_message("%s, %u", modes[i].name, j);
            run_order_lost(&modes[i], &order_lost[j]);
        }
    }
}

/* Mappings that outlive the Vring */

static const TestDesc pin_desc[] = {
    { DATA_BASE, 64, NEXT, 1 },
    { SPARE_BASE, 512, WRITE | NEXT, 2 },
    { DATA_BASE + 1000, 1, WRITE },
};

static void pin_queue_init(TestQueue *q, const VringConfig *config)
{
    test_queue_init(q, config);
    test_memory_add(q->mem, SPARE_BASE, TEST_PAGE, TEST_RAM);
    test_memory_commit(q->mem);
    vring_refresh_memory(&q->vring);
}

/*
 * covers: D6, M8, M9: parked at teardown in memory that is unplugged then, and
 * given up by the next Vring
 */
static void test_pin(TestQueue *q)
{
    VringConfig config = q->drv.config;
    VirtQueueElement elem;
    unsigned regions;

    regions = test_memory_regions(q->mem);
    pop_chain(q, &elem, &q->buf, pin_desc, ARRAY_SIZE(pin_desc));
    vring_pin(&q->vring, &elem, &q->buf);
    g_assert_cmpuint(test_memory_mappings(q->mem), ==, 3);
    g_assert_cmpuint(test_memory_all_dirty(q->mem), ==, 0);

    test_memory_del(q->mem, SPARE_BASE);
    test_memory_commit(q->mem);
    vring_refresh_memory(&q->vring);
    g_assert_cmpuint(test_memory_tables(q->mem), ==, 1);
    vring_close(&q->vring);
    vring_open(&q->vring, &config, q->mem, &error_abort);
    q->vring.inuse = elem.ndescs;

    g_assert_cmpuint(test_memory_regions(q->mem), ==, regions);
    memset(elem.in_sg[0].iov_base, 0x33, 512);
    vring_detach(&q->vring, &elem, NULL);
    g_assert_cmpuint(test_memory_mappings(q->mem), ==, 0);
    g_assert_cmpuint(test_memory_regions(q->mem), ==, regions - 1);
    g_assert_cmpuint(test_memory_dirty(q->mem, DATA_BASE + 1000, 1), ==, 1);
    g_assert_cmpuint(q->vring.inuse, ==, 0);
    g_assert_cmpuint(vring_publish(&q->vring), ==, 0);
}

/* An element that was mapped by the general path has its references already */
static void test_pin_twice(TestQueue *q)
{
    static const TestDesc desc[] = { { IOMMU_BASE, 64, NEXT, 1 },
                                     { DATA_BASE, 64, WRITE } };
    VirtQueueElement elem;

    pop_chain(q, &elem, &q->buf, desc, ARRAY_SIZE(desc));
    g_assert_cmpuint(test_memory_mappings(q->mem), ==, 2);
    vring_pin(&q->vring, &elem, &q->buf);
    vring_pin(&q->vring, &elem, &q->buf);
    g_assert_cmpuint(test_memory_mappings(q->mem), ==, 2);
    test_queue_use(q, &elem, 64);
    g_assert_cmpuint(test_memory_mappings(q->mem), ==, 0);
}

/*
 * covers: D6: mapped by someone else, completed through a new Vring, which
 * goes on where the other one was
 */
static void test_push_foreign_element(const TestMode *mode)
{
    for (unsigned before = 0; before < 2 * QUEUE_SIZE; before += 3) {
        VringConfig config = mode_config(mode);
        VirtQueueElement elem;
        Vring saved;
        TestQueue q;

        pin_queue_init(&q, &config);
        for (unsigned i = 0; i < before; i++) {
            test_queue_run(&q, i % QUEUE_SIZE);
        }
        pop_chain(&q, &elem, &q.buf, pin_desc, ARRAY_SIZE(pin_desc));
        vring_pin(&q.vring, &elem, &q.buf);
        saved = q.vring;
        vring_close(&q.vring);

        vring_open(&q.vring, &config, q.mem, &error_abort);
        q.vring.last_avail_idx = saved.last_avail_idx;
        q.vring.shadow_avail_idx = saved.last_avail_idx;
        q.vring.avail_wrap = saved.avail_wrap;
        q.vring.used_idx = saved.used_idx;
        q.vring.used_wrap = saved.used_wrap;
        q.vring.inuse = saved.inuse;
        test_memory_clean(q.mem);
        vring_push(&q.vring, &elem, NULL, 513);
        g_assert_cmpuint(vring_publish(&q.vring), ==, 1);
        test_queue_take(&q, 0, 513);
        g_assert_cmpuint(test_memory_mappings(q.mem), ==, 0);
        g_assert_cmpuint(test_memory_dirty(q.mem, SPARE_BASE, 513), ==, 512);
        test_queue_run(&q, 1);
        test_queue_cleanup(&q);
    }
}

/* What is not RAM, and left to the owner */

/* RAM in two pieces, MMIO, and RAM behind it in two pieces, too */
static const TestDesc bounce_desc[] = {
    { DATA_BASE, 16, NEXT, 1 },
    { NEXT_BASE - 100, 200, WRITE | NEXT, 2 },
    { MMIO_BASE + 8, 300, WRITE | NEXT, 3 },
    { NEXT_BASE - 1, 2, WRITE },
};
static const struct {
    hwaddr addr;
    uint32_t len;
} bounce_pieces[] = {
    { DATA_BASE, 16 }, { NEXT_BASE - 100, 100 }, { NEXT_BASE, 100 },
    { MMIO_BASE + 8, 300 }, { NEXT_BASE - 1, 1 }, { NEXT_BASE, 1 },
};
#define BOUNCE_PIECES ARRAY_SIZE(bounce_pieces)
#define BOUNCE_COPY 3

static void bounce_queue_init(TestQueue *q, const TestMode *mode)
{
    VringConfig config = mode_config(mode);

    config.bounce = true;
    mapping_queue_init(q, &config);
    test_memory_add(q->mem, MMIO_BASE, MMIO_SIZE, TEST_MMIO);
    test_memory_commit(q->mem);
    vring_refresh_memory(&q->vring);
}

static void check_unmapped(TestQueue *q, const VirtQueueElement *elem,
                           const VringVectors *buf)
{
    g_assert_false(vring_is_mapped(buf));
    g_assert_false(vring_is_bounced(buf));
    g_assert_cmpuint(test_memory_mappings(q->mem), ==, 0);
    g_assert_cmpuint(elem->out_num, ==, 1);
    g_assert_cmpuint(elem->in_num, ==, BOUNCE_PIECES - 1);
    g_assert_cmphex(elem->out_addr[0], ==, bounce_pieces[0].addr);
    g_assert_cmpuint(elem->out_sg[0].iov_len, ==, bounce_pieces[0].len);
    for (unsigned i = 1; i < BOUNCE_PIECES; i++) {
        g_assert_cmphex(elem->in_addr[i - 1], ==, bounce_pieces[i].addr);
        g_assert_cmpuint(elem->in_sg[i - 1].iov_len, ==, bounce_pieces[i].len);
    }
}

/* As the main loop does */
static void bounce(TestQueue *q, const VirtQueueElement *elem,
                   VringVectors *buf, struct iovec *iov)
{
    for (unsigned i = 0; i < BOUNCE_PIECES; i++) {
        hwaddr len = bounce_pieces[i].len, addr = bounce_pieces[i].addr;

        iov[i].iov_len = len;
        iov[i].iov_base = i == BOUNCE_COPY ?
            test_memory_copy(q->mem, addr, len) :
            vring_memory_map(q->mem, addr, &len, i > 0);
        g_assert_cmpuint(len, ==, iov[i].iov_len);
    }
    vring_set_bounced(elem, buf, iov);
    g_assert_true(vring_is_mapped(buf));
    g_assert_true(vring_is_bounced(buf));
}

static void unbounce(TestQueue *q, VringVectors *buf, const struct iovec *iov)
{
    for (unsigned i = 0; i < BOUNCE_PIECES; i++) {
        vring_memory_unmap(q->mem, iov[i].iov_base, iov[i].iov_len,
                           i > 0 && i != BOUNCE_COPY);
    }
    vring_set_unmapped(buf);
}

typedef enum Bounced {
    LEFT_UNMAPPED,      /* given up as it was popped */
    GIVEN_UP,           /* or when it was mapped */
    GIVEN_UP_UNMAPPED,  /* or when it was mapped no more */
    GIVEN_BACK,
    BOUNCED_ENDS,
} Bounced;

static void end_bounced(TestQueue *q, const VirtQueueElement *elem,
                        VringVectors *buf, Bounced end)
{
    const uint64_t in_ram = 100 + 100 + 1 + 1, twice = 2;
    struct iovec iov[BOUNCE_PIECES];
    uint64_t dirty = 0;

    test_memory_clean(q->mem);
    if (end != LEFT_UNMAPPED) {
        bounce(q, elem, buf, iov);
        dirty = in_ram - twice;
    }
    if (end == GIVEN_BACK || end == GIVEN_UP_UNMAPPED) {
        unbounce(q, buf, iov);
    }
    if (end == GIVEN_BACK) {
        test_memory_clean(q->mem);
        test_queue_use_buf(q, elem, buf, 501);
    } else {
        vring_detach(&q->vring, elem, buf);
        g_assert_cmpuint(test_memory_all_dirty(q->mem), ==, dirty);
    }
    g_assert_cmpuint(test_memory_mappings(q->mem), ==, 0);
    g_assert_cmpint(buf->mapping, ==, VRING_MAPPED);
}

/* covers: E4, ROBS-8: whatever becomes of an element that is left unmapped */
static void test_bounced(const TestMode *mode)
{
    for (unsigned before = 0; before < QUEUE_SIZE; before++) {
        for (Bounced end = LEFT_UNMAPPED; end < BOUNCED_ENDS; end++) {
            VirtQueueElement elem;
            TestQueue q;

            bounce_queue_init(&q, mode);
            for (unsigned i = 0; i < before; i++) {
                test_queue_run(&q, i);
            }
            pop_chain(&q, &elem, &q.buf, bounce_desc, ARRAY_SIZE(bounce_desc));
            check_unmapped(&q, &elem, &q.buf);
            end_bounced(&q, &elem, &q.buf, end);
            g_assert_cmpuint(q.vring.inuse, ==, 0);
            test_queue_cleanup(&q);
        }
    }
}

/* covers: E4: put back and popped again, at each place of the ring */
static void test_unpop(const TestMode *mode)
{
    for (unsigned before = 0; before < 2 * QUEUE_SIZE; before++) {
        VirtQueueElement elem;
        struct iovec iov[BOUNCE_PIECES];
        TestQueue q;

        bounce_queue_init(&q, mode);
        for (unsigned i = 0; i < before; i++) {
            test_queue_run(&q, i % QUEUE_SIZE);
        }
        pop_chain(&q, &elem, &q.buf, bounce_desc, ARRAY_SIZE(bounce_desc));
        vring_unpop(&q.vring, &elem, &q.buf);
        g_assert_cmpuint(q.vring.inuse, ==, 0);
        g_assert_true(vring_more_avail(&q.vring));
        test_queue_pop(&q, &elem);
        bounce(&q, &elem, &q.buf, iov);
        vring_unpop(&q.vring, &elem, &q.buf);
        g_assert_cmpuint(test_memory_mappings(q.mem), ==, 0);
        test_queue_pop(&q, &elem);
        check_unmapped(&q, &elem, &q.buf);
        g_assert_false(vring_more_avail(&q.vring));
        test_queue_use(&q, &elem, 0);
        test_queue_run(&q, 1);
        test_queue_cleanup(&q);
    }
}

/* Looking addresses up */

/* covers: G11, ROBS-9 */
static void test_translate(void)
{
    enum { REGIONS = 7, SIZE = 0x100 };
    VringMemory *mem = test_memory_new();
    VringRamTable *table;

    /* Regions 0 and 1, 2 and 3, ... adjoin each other */
    for (unsigned i = 0; i < REGIONS; i++) {
        test_memory_add(mem, (i / 2 * 3 + i % 2 + 1) * SIZE, SIZE, TEST_RAM);
    }
    test_memory_commit(mem);
    table = vring_memory_get_table(mem);
    g_assert_cmpuint(table->nregions, ==, REGIONS);

    for (hwaddr addr = 0; addr < 14 * SIZE; addr++) {
        for (unsigned start = 0; start <= REGIONS; start++) {
            uint8_t *host = test_memory_host(mem, addr);
            uint64_t left = host ? SIZE - addr % SIZE : 0;
            unsigned hint = start;

            g_assert(vring_ram_table_translate(table, addr, 1, &hint) == host);
            if (host) {
                g_assert(vring_ram_table_translate(table, addr, left, &hint) ==
                         host);
            }
            g_assert(!vring_ram_table_translate(table, addr, left + 1, &hint));
            g_assert(!vring_ram_table_translate(table, addr, UINT64_MAX,
                                                &hint));
        }
    }
    vring_ram_table_unref(table);
    vring_ram_table_unref(NULL);
    test_memory_free(mem);
}

#define MODE_TEST(name, func) \
    test_add_modes("/vring/mapping/" name, func, TEST_ALL_MODES)

int main(int argc, char **argv)
{
    static const TestRow rows[] = {
        { "dirty/buffers", test_dirty_buffers, QUEUE_SIZE, TEST_ALL_MODES,
          .init = mapping_queue_init },
        { "dirty/used-ring", test_dirty_used_ring, QUEUE_SIZE,
          .init = mapping_queue_init },
        { "dirty/event-fields", test_dirty_event_fields, QUEUE_SIZE,
          TEST_MODES },
        { "dirty/when-logged", test_dirty_when_logged, QUEUE_SIZE,
          TEST_ALL_MODES, .init = mapping_queue_init },
        { "detach", test_detach, QUEUE_SIZE, TEST_ALL_MODES,
          .init = mapping_queue_init },
        { "general/adjoining-regions", test_adjoining_regions, QUEUE_SIZE,
          TEST_ALL_MODES, .init = mapping_queue_init },
        { "general/translated", test_translated, QUEUE_SIZE, TEST_ALL_MODES,
          .init = mapping_queue_init },
        { "areas-in-regions", test_areas_in_regions, QUEUE_SIZE,
          TEST_ALL_MODES, .init = mapping_queue_init },
        { "change/idle", test_change_when_idle, QUEUE_SIZE, TEST_ALL_MODES },
        { "change/unplug-in-flight", test_unplug_in_flight, QUEUE_SIZE,
          TEST_ALL_MODES },
        { "change/many", test_many_changes, QUEUE_SIZE, TEST_ALL_MODES },
        { "change/unnoticed", test_change_unnoticed, QUEUE_SIZE,
          TEST_ALL_MODES },
        { "ring-lost/and-found", test_ring_lost_and_found, QUEUE_SIZE,
          TEST_ALL_MODES },
        { "ring-lost/in-flight", test_ring_lost_in_flight, QUEUE_SIZE,
          TEST_ALL_MODES },
        { "ring-lost/found-changed", test_ring_found_changed, QUEUE_SIZE,
          TEST_ALL_MODES },
        { "pin/outlives-the-ring", test_pin, QUEUE_SIZE, TEST_ALL_MODES,
          .init = pin_queue_init },
        { "pin/twice", test_pin_twice, QUEUE_SIZE, TEST_ALL_MODES,
          .init = mapping_queue_init },
    };

    g_test_init(&argc, &argv, NULL);
    MODE_TEST("dirty/by-region", test_dirty_by_region);
    MODE_TEST("general/table-over-regions", test_table_over_regions);
    test_add_cases(undo_cases, test_undo);
    MODE_TEST("ring-lost/one-area", test_one_area_lost);
    g_test_add_func("/vring/mapping/ring-lost/in-order", test_order_lost);
    MODE_TEST("push-foreign-element", test_push_foreign_element);
    MODE_TEST("bounced", test_bounced);
    MODE_TEST("unpop", test_unpop);
    g_test_add_func("/vring/mapping/translate", test_translate);
    test_add_rows("/vring/mapping", rows, ARRAY_SIZE(rows));
    return g_test_run();
}
