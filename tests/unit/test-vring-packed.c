/*
 * Tests of the packed ring: what a driver that keeps the rules can see
 *
 * Knows VIRTIO 1.3, 2.8 and the interface of the ring: the layout, laps and
 * wrap counters, lists and tables, and what the device writes.  Notifications
 * are in test-vring-packed-notify.c, drivers that break the rules in
 * test-vring-hostile.c, guest memory, which is the same in both formats, in
 * test-vring-mapping.c, and concurrent drivers in test-vring-stress.c.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/mman.h>
#include "qapi/error.h"
#include "vring-test-driver.h"

#define PACKED { .packed = true }

static const TestMode packed_mode = PACKED;

static VringConfig packed_config(unsigned num)
{
    return test_config(&packed_mode, num);
}

/* Any sizes; most are no powers of two (PACK-2) */
static const unsigned sizes[] = {
    1, 2, 3, 5, 7, 8, 100, 255, 256, 257, 1000, 1024, 4099, 32767, 32768, 0
};

/* Small ones, of which every place can be tried */
static const unsigned small_sizes[] = { 1, 2, 3, 5, 7, 8, 0 };

/* Buffers in flight, by the order in which they were popped */
typedef struct Flight {
    VirtQueueElement elem;
    VringVectors buf;
} Flight;

static Flight *flights_new(unsigned n)
{
    Flight *flights = g_new(Flight, n);

    for (unsigned i = 0; i < n; i++) {
        vring_vectors_init(&flights[i].buf);
    }
    return flights;
}

static void pop(TestQueue *q, Flight *flight, uint16_t id, unsigned ndescs)
{
    g_assert_true(vring_more_avail(&q->vring));
    test_queue_pop_buf(q, &flight->elem, &flight->buf);
    g_assert_cmpuint(flight->elem.index, ==, id);
    g_assert_cmpuint(flight->elem.ndescs, ==, ndescs);
}

static void pop_nothing(TestQueue *q)
{
    VirtQueueElement elem;

    g_assert_false(vring_more_avail(&q->vring));
    g_assert_cmpint(vring_pop(&q->vring, &elem, &q->buf), ==, 0);
}

static void push(TestQueue *q, Flight *flight, uint32_t len)
{
    vring_push(&q->vring, &flight->elem, &flight->buf, len);
    vring_vectors_release(&flight->buf);
}

static void take_nothing(TestQueue *q)
{
    g_assert_false(driver_has_used(&q->drv));
}

/* Layout */

typedef struct RawCase {
    const char *path;
    unsigned laps;              /* of two descriptors, before */
    uint32_t len;               /* that is written */
    uint8_t desc[32];
    uint8_t used[16];
} RawCase;

/*
 * A list of two with id 0x1234: 16 readable bytes at 0x10000100, 0x203
 * writable ones at 0x10000200.  Of a used descriptor the address means
 * nothing.
 */
static const RawCase raw_cases[] = {
    {
        /* covers: PACK-3, PACK-7, PACK-15, PACK-16 */
        .path = "/vring/packed/raw-bytes/first-lap",
        .len = 0x102,
        .desc = {
            0, 1, 0, 0x10, 0, 0, 0, 0, 0x10, 0, 0, 0, 0xad, 0xde, 0x81, 0x00,
            0, 2, 0, 0x10, 0, 0, 0, 0, 3, 2, 0, 0, 0x34, 0x12, 0x82, 0x00,
        },
        .used = { [8] = 0x02, 0x01, 0, 0, 0x34, 0x12, 0x82, 0x80 },
    }, {
        /* covers: PACK-4, PACK-5, PACK-7 */
        .path = "/vring/packed/raw-bytes/second-lap",
        .laps = 1,
        .len = 0x102,
        .desc = {
            0, 1, 0, 0x10, 0, 0, 0, 0, 0x10, 0, 0, 0, 0xad, 0xde, 0x01, 0x80,
            0, 2, 0, 0x10, 0, 0, 0, 0, 3, 2, 0, 0, 0x34, 0x12, 0x02, 0x80,
        },
        .used = { [8] = 0x02, 0x01, 0, 0, 0x34, 0x12, 0x02, 0x00 },
    }, {
        /* covers: PACK-4 */
        .path = "/vring/packed/raw-bytes/third-lap",
        .laps = 2,
        .len = 0x203,
        .desc = {
            0, 1, 0, 0x10, 0, 0, 0, 0, 0x10, 0, 0, 0, 0xad, 0xde, 0x81, 0x00,
            0, 2, 0, 0x10, 0, 0, 0, 0, 3, 2, 0, 0, 0x34, 0x12, 0x82, 0x00,
        },
        .used = { [8] = 0x03, 0x02, 0, 0, 0x34, 0x12, 0x82, 0x80 },
    }, {
        /* covers: PACK-16: nothing written, so that WRITE is off */
        .path = "/vring/packed/raw-bytes/nothing-written",
        .desc = {
            0, 1, 0, 0x10, 0, 0, 0, 0, 0x10, 0, 0, 0, 0xad, 0xde, 0x81, 0x00,
            0, 2, 0, 0x10, 0, 0, 0, 0, 3, 2, 0, 0, 0x34, 0x12, 0x82, 0x00,
        },
        .used = { [8] = 0, 0, 0, 0, 0x34, 0x12, 0x80, 0x80 },
    },
};

static void test_raw_bytes(const void *opaque)
{
    const RawCase *c = opaque;
    VringConfig config = packed_config(2);
    Flight flight;
    TestQueue q;

    test_queue_init(&q, &config);
    vring_vectors_init(&flight.buf);
    for (unsigned i = 0; i < 2 * c->laps; i++) {
        test_queue_run(&q, i);
    }
    memcpy(q.drv.desc, c->desc, sizeof(c->desc));
    pop(&q, &flight, 0x1234, 2);
    g_assert_cmpuint(flight.elem.out_num, ==, 1);
    g_assert_cmphex(flight.elem.out_addr[0], ==, 0x10000100);
    g_assert(flight.elem.out_sg[0].iov_base == q.data + 0x100);
    g_assert_cmpuint(flight.elem.out_sg[0].iov_len, ==, 0x10);
    g_assert_cmpuint(flight.elem.in_num, ==, 1);
    g_assert_cmphex(flight.elem.in_addr[0], ==, 0x10000200);
    g_assert(flight.elem.in_sg[0].iov_base == q.data + 0x200);
    g_assert_cmpuint(flight.elem.in_sg[0].iov_len, ==, 0x203);

    g_assert_cmpmem(q.drv.desc, sizeof(c->desc), c->desc, sizeof(c->desc));
    push(&q, &flight, c->len);
    g_assert_cmpuint(vring_publish(&q.vring), ==, 1);
    if (c->len) {
        g_assert_cmpmem(q.drv.desc + 8, 8, c->used + 8, 8);
    } else {
        g_assert_cmpmem(q.drv.desc + 12, 4, c->used + 12, 4);
    }
    /* The rest of the list is left alone */
    g_assert_cmpmem(q.drv.desc + 16, 16, c->desc + 16, 16);
    test_queue_cleanup(&q);
}

/* covers: PACK-1 */
static void test_minimal_alignment(TestQueue *q)
{
    VringConfig config = q->drv.config;

    config.desc = RING_BASE + 0x10;
    config.avail = RING_BASE + 0x64;
    config.used = RING_BASE + 0x104;
    test_queue_reopen(q, &config);
    for (unsigned i = 0; i < 20; i++) {
        test_queue_run(q, i);
        g_assert_false(vring_enable_notification(&q->vring));
        vring_should_notify(&q->vring);
    }
}

/* Fills the ring with buffers of one descriptor, and returns the last first */
static void run_full_ring(TestQueue *q)
{
    unsigned num = q->drv.config.num;
    Flight *flights = flights_new(num);

    for (unsigned i = 0; i < num; i++) {
        const TestDesc desc = { DATA_BASE + i, 1, WRITE };

        driver_add_chain(&q->drv, i, &desc, 1);
    }
    driver_expose(&q->drv);
    for (unsigned i = 0; i < num; i++) {
        pop(q, &flights[i], i, 1);
    }
    pop_nothing(q);
    for (unsigned i = num; i-- > 0;) {
        push(q, &flights[i], i + 1);
        take_nothing(q);
    }
    g_assert_cmpuint(vring_publish(&q->vring), ==, num);
    for (unsigned i = num; i-- > 0;) {
        test_queue_take(q, i, i + 1);
    }
    take_nothing(q);
    g_free(flights);
}

/* A list of @n descriptors, the first @out of them device-readable */
static void offer_list(TestQueue *q, uint16_t id, unsigned n, unsigned out)
{
    TestDesc *desc = g_new(TestDesc, n);

    for (unsigned i = 0; i < n; i++) {
        desc[i] = (TestDesc) {
            .addr = DATA_BASE + 32 * i,
            .len = 16 + i % 16,
            .flags = i < out ? 0 : WRITE,
        };
    }
    driver_offer_chain(&q->drv, id, desc, n);
    g_free(desc);
}

static void run_list(TestQueue *q, uint16_t id, unsigned n, unsigned out,
                     uint32_t len)
{
    Flight flight;

    vring_vectors_init(&flight.buf);
    offer_list(q, id, n, out);
    pop(q, &flight, id, n);
    test_check_long(q, &flight.elem, n, out);
    test_queue_use_buf(q, &flight.elem, &flight.buf, len);
    vring_vectors_release(&flight.buf);
}

/* covers: PACK-2, PACK-4, PACK-21, PACK-22 */
static void test_queue_sizes(TestQueue *q)
{
    unsigned num = q->drv.config.num, list = MIN(num, VIRTQUEUE_MAX_SIZE);

    run_list(q, 1, list, list / 2, 1);
    test_queue_run(q, 0);
    run_full_ring(q);
    run_list(q, 2, list, 0, 1);
    run_list(q, 3, list, list, 0);
    run_full_ring(q);
    test_queue_run(q, num - 1);
}

/* covers: PACK-2, G5: refused for what they are, as they fit in RAM */
static void test_bad_queue_sizes(void)
{
    static const unsigned bad[] = { 0, 32769, 65535, 65536, 65537 };
    VringMemory *mem = test_memory_new();

    test_memory_add(mem, RING_BASE, 4 * driver_desc_size(65536), TEST_RAM);
    test_memory_commit(mem);
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        VringConfig config = packed_config(bad[i]);
        Error *err = NULL;
        Vring vring;

        g_assert_false(vring_open(&vring, &config, mem, &err));
        error_free_or_abort(&err);
    }
    test_memory_free(mem);
}

/*
 * covers: PACK-4, PACK-14, PACK-20, PACK-21: each length of a list at each
 * place of each lap
 */
static void test_lists_anywhere(void)
{
    for (unsigned s = 0; small_sizes[s]; s++) {
        unsigned num = small_sizes[s];

        for (unsigned n = 1; n <= num; n++) {
            VringConfig config = packed_config(num);
            TestQueue q;

            test_queue_init(&q, &config);
            for (unsigned start = 0; start < 2 * num; start++) {
                g_assert_cmpuint(q.drv.avail_pos, ==, start);
                g_assert_cmpuint(q.drv.used_pos, ==, start);
                for (unsigned i = 0; i < 2 * num; i++) {
                    run_list(&q, i, n, i % (n + 1), i % (n + 1) < n ? 1 : 0);
                }
                /* 2 * num lists of any length are whole laps */
                test_queue_run(&q, 77);
            }
            test_queue_cleanup(&q);
        }
    }
}

/* covers: PACK-22: lists that grow the buffer, up to the largest array */
static void test_list_lengths(TestQueue *q)
{
    static const unsigned lengths[] = {
        1, 2, 17, 18, 19, 35, 36, 37, 71, 72, 73, 143, 144, 145, 287, 288, 289,
        575, 576, 577, 1023, 1024,
    };

    for (unsigned i = 0; i < ARRAY_SIZE(lengths); i++) {
        for (unsigned out = 0; out <= lengths[i]; out += 1 + out / 3) {
            run_list(q, i, lengths[i], out, out < lengths[i] ? 1 : 0);
        }
    }
}

/* Available buffers */

typedef struct IdleCase {
    const char *path;
    unsigned laps;              /* of three descriptors, before */
    uint16_t flags;             /* of the descriptor at the next position */
} IdleCase;

/* What does not make a descriptor available */
#define OTHERS ((uint16_t)~(AVAIL | USED))

static const IdleCase idle_cases[] = {
    /* covers: PACK-6 */
    { "/vring/packed/idle/zero-flags", 0, 0 },
    { "/vring/packed/idle/zero-flags-but-others", 0, OTHERS },
    /* covers: PACK-5, ROBP-14: as if it were used, or of the lap before */
    { "/vring/packed/idle/first-lap-both", 0, AVAIL | USED },
    { "/vring/packed/idle/first-lap-used", 0, USED },
    { "/vring/packed/idle/first-lap-all-ones", 0, 0xffff },
    { "/vring/packed/idle/second-lap-both", 1, AVAIL | USED },
    { "/vring/packed/idle/second-lap-avail", 1, AVAIL },
    { "/vring/packed/idle/second-lap-none", 1, 0 },
    { "/vring/packed/idle/third-lap-none", 2, 0 },
    { "/vring/packed/idle/third-lap-used", 2, USED },
};

static void test_idle(const void *opaque)
{
    const IdleCase *c = opaque;
    VringConfig config = packed_config(3);
    const TestDesc desc = { DATA_BASE, 16, c->flags, 9 };
    TestQueue q;

    test_queue_init(&q, &config);
    for (unsigned i = 0; i < 3 * c->laps; i++) {
        test_queue_run(&q, i);
    }
    driver_set_desc(&q.drv, 0, &desc);
    for (unsigned i = 0; i < 3; i++) {
        pop_nothing(&q);
        g_assert_false(vring_enable_notification(&q.vring));
        vring_disable_notification(&q.vring);
    }
    /* And what is put right is taken */
    test_queue_run(&q, 10);
    test_queue_cleanup(&q);
}

/* covers: PACK-23, PACK-24: without a kick, and only if it is its turn */
static void test_next_position_decides(TestQueue *q)
{
    const TestDesc buffer = { DATA_BASE, 16, WRITE };
    Flight flight[4];

    vring_disable_notification(&q->vring);
    for (unsigned lap = 0; lap < 3; lap++) {
        for (unsigned i = 0; i < 4; i++) {
            vring_vectors_init(&flight[i].buf);
            driver_add_chain(&q->drv, i, &buffer, 1);
            /* Three of them are there, but for the first one */
            pop_nothing(q);
        }
        driver_expose(&q->drv);
        for (unsigned i = 0; i < 4; i++) {
            pop(q, &flight[i], i, 1);
            push(q, &flight[i], 1);
        }
        pop_nothing(q);
        vring_publish(&q->vring);
        for (unsigned i = 0; i < 4; i++) {
            test_queue_take(q, i, 1);
        }
    }
}

/* covers: PACK-50 */
static void test_empty_kicks(void)
{
    for (unsigned event_idx = 0; event_idx < 2; event_idx++) {
        VringConfig config = packed_config(3);
        TestQueue q;

        config.event_idx = event_idx;
        test_queue_init(&q, &config);
        test_queue_run(&q, 0);
        for (unsigned i = 0; i < 1000; i++) {
            vring_disable_notification(&q.vring);
            pop_nothing(&q);
            g_assert_false(vring_enable_notification(&q.vring));
        }
        take_nothing(&q);
        test_queue_run(&q, 3);
        test_queue_cleanup(&q);
    }
}

/* covers: PACK-25, ROBP-10: ids are the driver's own business */
static void test_ids(TestQueue *q)
{
    static const uint16_t ids[] = {
        0, 1, 2, 3, 4, 255, 256, 0x7fff, 0x8000, 0x8001, 0xfffe, 0xffff,
    };
    Flight flight[3];

    for (unsigned i = 0; i < 3; i++) {
        vring_vectors_init(&flight[i].buf);
    }
    for (unsigned i = 0; i + 2 < ARRAY_SIZE(ids); i++) {
        for (unsigned j = 0; j < 3; j++) {
            offer_list(q, ids[i + j], 1, 0);
            pop(q, &flight[j], ids[i + j], 1);
        }
        for (unsigned j = 0; j < 3; j++) {
            unsigned k = (i + j) % 3;

            push(q, &flight[k], 1 + k);
            g_assert_cmpuint(vring_publish(&q->vring), ==, 1);
            test_queue_take(q, ids[i + k], 1 + k);
        }
    }
}

/* Used buffers */

/* Makes some lists of any length, as far as there is room, and pops them */
static unsigned pop_some(TestQueue *q, GRand *rand, Flight **flights,
                         unsigned n, uint16_t *next_id)
{
    while (q->drv.room && g_rand_int_range(rand, 0, 4)) {
        unsigned len = g_rand_int_range(rand, 1, q->drv.room + 1);

        offer_list(q, ++*next_id, len, len / 2);
        pop(q, flights[n++], *next_id, len);
    }
    return n;
}

/* Returns some of them in any order, and sees that the driver gets those */
static unsigned return_some(TestQueue *q, GRand *rand, Flight **flights,
                            unsigned n)
{
    unsigned piece = n ? g_rand_int_range(rand, 1, n + 1) : 0;
    g_autofree uint16_t *ids = g_new(uint16_t, piece);

    for (unsigned i = 0; i < piece; i++) {
        unsigned j = g_rand_int_range(rand, 0, n);
        Flight *flight = flights[j];

        ids[i] = flight->elem.index;
        push(q, flight, 1 + i);
        flights[j] = flights[--n];
        flights[n] = flight;
        take_nothing(q);
        g_assert_cmpuint(vring_unpublished(&q->vring), ==, i + 1);
    }
    g_assert_cmpuint(vring_publish(&q->vring), ==, piece);
    for (unsigned i = 0; i < piece; i++) {
        test_queue_take(q, ids[i], 1 + i);
    }
    take_nothing(q);
    return n;
}

/*
 * covers: PACK-11, PACK-12, PACK-14, VQ-2: lists of mixed length come back in
 * any order, in pieces of any size, where the driver looks for them
 */
static void test_any_order(TestQueue *q)
{
    GRand *rand = g_rand_new_with_seed(1);
    unsigned num = q->drv.config.num, n = 0;
    g_autofree Flight *storage = flights_new(num);
    g_autofree Flight **flights = g_new(Flight *, num);
    uint16_t next_id = 0;

    for (unsigned i = 0; i < num; i++) {
        flights[i] = &storage[i];
    }
    for (unsigned round = 0; round < 2000; round++) {
        n = pop_some(q, rand, flights, n, &next_id);
        n = return_some(q, rand, flights, n);
    }
    while (n) {
        n = return_some(q, rand, flights, n);
    }
    g_assert_cmpuint(q->drv.room, ==, num);
    g_rand_free(rand);
}

/*
 * covers: PACK-8: the flags of a batch's first one are written last, wherever
 * the batch lies, so that nothing shows before all of it does
 */
static void test_publish_batch(void)
{
    for (unsigned start = 0; start < 14; start++) {
        for (unsigned n = 1; n <= 7; n++) {
            VringConfig config = packed_config(7);
            uint8_t *first;
            Flight flight;
            uint8_t before[16];
            TestQueue q;

            test_queue_init(&q, &config);
            vring_vectors_init(&flight.buf);
            for (unsigned i = 0; i < start; i++) {
                test_queue_run(&q, 500);
            }
            first = q.drv.desc + 16 * (start % 7);
            for (unsigned i = 0; i < n; i++) {
                offer_list(&q, 600 + i, 1, 0);
            }
            memcpy(before, first, 16);
            for (unsigned i = 0; i < n; i++) {
                pop(&q, &flight, 600 + i, 1);
                push(&q, &flight, 100 + i);
                take_nothing(&q);
                g_assert_cmpmem(first + 14, 2, before + 14, 2);
            }
            g_assert_cmpuint(vring_publish(&q.vring), ==, n);
            g_assert_cmpuint(vring_publish(&q.vring), ==, 0);
            for (unsigned i = 0; i < n; i++) {
                test_queue_take(&q, 600 + i, 100 + i);
            }
            take_nothing(&q);
            test_queue_cleanup(&q);
        }
    }
}

/* covers: PACK-8: what was shown is the driver's: nothing touches it again */
static void test_used_is_left_alone(TestQueue *q)
{
    for (unsigned i = 0; i < 12; i++) {
        unsigned slot = q->drv.used_pos % 5;
        uint8_t *used = q->drv.desc + 16 * slot;
        uint8_t scribble[16];

        test_queue_run(q, i);
        /* All but the flags, which must not make it available */
        memset(used, 0x5a, 14);
        memcpy(scribble, used, 16);
        test_queue_run(q, 100 + i);
        test_queue_run(q, 200 + i);
        vring_publish(&q->vring);
        vring_should_notify(&q->vring);
        vring_enable_notification(&q->vring);
        g_assert_cmpmem(used, 16, scribble, 16);
    }
}

/* covers: PACK-16 */
static void test_used_length(TestQueue *q)
{
    static const uint32_t lengths[] = { 0, 1, 511, 512 };
    Flight flight;

    vring_vectors_init(&flight.buf);
    for (unsigned i = 0; i < 4 * ARRAY_SIZE(lengths); i++) {
        driver_offer_buffer(&q->drv, 1, DATA_BASE, 512, true);
        pop(q, &flight, 1, 1);
        test_queue_use_buf(q, &flight.elem, &flight.buf, lengths[i % 4]);
    }
}

/*
 * covers: PACK-9, PACK-10, PACK-34, PACK-41: any other access would be fatal
 */
static void test_what_is_touched(void)
{
    const hwaddr driver_base = 0x40000, table_base = 0x50000;
    const TestDesc table[] = {
        { DATA_BASE, 512 }, { DATA_BASE + 512, 512, WRITE },
    };
    const TestDesc desc = { table_base, sizeof(table), INDIRECT };

    for (unsigned event_idx = 0; event_idx < 2; event_idx++) {
        VringConfig config = packed_config(7);
        Flight flight;
        TestQueue q;

        config.event_idx = event_idx;
        test_queue_init(&q, &config);
        test_memory_add(q.mem, driver_base, TEST_PAGE, TEST_RAM);
        test_memory_add(q.mem, table_base, TEST_PAGE, TEST_RAM);
        test_memory_commit(q.mem);
        config.avail = driver_base;
        test_queue_reopen(&q, &config);
        vring_vectors_init(&flight.buf);

        driver_set_table(&q.drv, test_memory_host(q.mem, table_base), table,
                         ARRAY_SIZE(table));
        driver_offer_chain(&q.drv, 7, &desc, 1);
        test_memory_protect(q.mem, driver_base, PROT_READ);
        test_memory_protect(q.mem, table_base, PROT_READ);
        test_memory_protect(q.mem, DATA_BASE, PROT_NONE);

        vring_disable_notification(&q.vring);
        pop(&q, &flight, 7, 1);
        push(&q, &flight, 512);
        g_assert_cmpuint(vring_publish(&q.vring), ==, 1);
        vring_should_notify(&q.vring);
        vring_enable_notification(&q.vring);
        test_queue_take(&q, 7, 512);

        test_memory_protect(q.mem, driver_base, PROT_READ | PROT_WRITE);
        test_memory_protect(q.mem, table_base, PROT_READ | PROT_WRITE);
        test_memory_protect(q.mem, DATA_BASE, PROT_READ | PROT_WRITE);
        test_queue_cleanup(&q);
    }
}

/* Indirect tables */

#define CASE_DESCS 6

typedef struct TableCase {
    const char *path;
    TestDesc list[2];           /* what stands in the ring, until a length 0 */
    TestDesc table[CASE_DESCS]; /* at TABLE_BASE + table_offset */
    unsigned table_offset;
    unsigned vectors;           /* what the element should have */
    TestDesc vector[CASE_DESCS];
} TableCase;

/* To be followed by flags and id */
#define HDR     .addr = DATA_BASE, .len = 16
#define BLOCK   .addr = DATA_BASE + 0x200, .len = 512
#define STATUS  .addr = DATA_BASE + 0x100, .len = 1
#define TABLE(n) .addr = TABLE_BASE, .len = 16 * (n)

#define WHOLE_REQUEST \
    .vectors = 3, \
    .vector = { { HDR }, { BLOCK, WRITE }, { STATUS, WRITE } }

/* All but WRITE, and whatever else a driver might leave there */
#define NOISE ((uint16_t)~WRITE)

static const TableCase table_cases[] = {
    {
        /* covers: PACK-30 */
        .path = "/vring/packed/indirect/whole-request",
        .list = { { TABLE(3), INDIRECT } },
        .table = { { HDR }, { BLOCK, WRITE }, { STATUS, WRITE } },
        WHOLE_REQUEST,
    }, {
        /* covers: PACK-30: len says how many there are, without any NEXT */
        .path = "/vring/packed/indirect/only-the-first-entries",
        .list = { { TABLE(2), INDIRECT } },
        .table = { { HDR }, { STATUS, WRITE }, { BLOCK, WRITE } },
        .vectors = 2,
        .vector = { { HDR }, { STATUS, WRITE } },
    }, {
        /* covers: PACK-31: entries go one after another in spite of NEXT */
        .path = "/vring/packed/indirect/next-is-ignored",
        .list = { { TABLE(3), INDIRECT } },
        .table = { { HDR, NEXT, 2 }, { BLOCK, WRITE, 0 },
                   { STATUS, WRITE | NEXT, 0 } },
        WHOLE_REQUEST,
    }, {
        /* covers: PACK-31, ROBP-7: no second level */
        .path = "/vring/packed/indirect/indirect-is-ignored",
        .list = { { TABLE(3), INDIRECT } },
        .table = { { HDR, INDIRECT }, { BLOCK, WRITE | INDIRECT },
                   { STATUS, WRITE } },
        WHOLE_REQUEST,
    }, {
        /* covers: PACK-31 */
        .path = "/vring/packed/indirect/avail-and-used-are-ignored",
        .list = { { TABLE(3), INDIRECT } },
        .table = { { HDR, AVAIL | USED }, { BLOCK, WRITE | USED },
                   { STATUS, WRITE | AVAIL } },
        WHOLE_REQUEST,
    }, {
        /* covers: PACK-31, PACK-32, ROBP-7 */
        .path = "/vring/packed/indirect/any-flags-and-ids",
        .list = { { TABLE(3), INDIRECT } },
        .table = { { HDR, NOISE, 0xffff }, { BLOCK, WRITE | NOISE, 0x1111 },
                   { STATUS, WRITE | NOISE, 7 } },
        WHOLE_REQUEST,
    }, {
        /* covers: PACK-33 */
        .path = "/vring/packed/indirect/write-flag-of-the-table-is-ignored",
        .list = { { TABLE(3), INDIRECT | WRITE } },
        .table = { { HDR }, { BLOCK, WRITE }, { STATUS, WRITE } },
        WHOLE_REQUEST,
    }, {
        .path = "/vring/packed/indirect/unknown-flags-of-the-table",
        .list = { { TABLE(3), INDIRECT | 0x7f78 } },
        .table = { { HDR }, { BLOCK, WRITE }, { STATUS, WRITE } },
        WHOLE_REQUEST,
    }, {
        .path = "/vring/packed/indirect/table-at-an-odd-address",
        .list = { { TABLE_BASE + 5, 48, INDIRECT } },
        .table = { { HDR }, { BLOCK, WRITE }, { STATUS, WRITE } },
        .table_offset = 5,
        WHOLE_REQUEST,
    }, {
        .path = "/vring/packed/indirect/table-at-the-end-of-its-region",
        .list = { { DATA_BASE + DATA_SIZE - 48, 48, INDIRECT } },
        .table = { { HDR }, { BLOCK, WRITE }, { STATUS, WRITE } },
        .table_offset = DATA_BASE + DATA_SIZE - 48 - TABLE_BASE,
        WHOLE_REQUEST,
    }, {
        /* covers: ROBP-15 */
        .path = "/vring/packed/indirect/empty-entries-are-skipped",
        .list = { { TABLE(5), INDIRECT } },
        .table = { { 0xdead0000, 0 }, { HDR }, { 0, 0, WRITE },
                   { STATUS, WRITE }, { 0, 0 } },
        .vectors = 2,
        .vector = { { HDR }, { STATUS, WRITE } },
    }, {
        .path = "/vring/packed/list/unknown-flags-are-ignored",
        .list = { { HDR, 0x7f78 }, { STATUS, 0x7f78 | WRITE } },
        .vectors = 2,
        .vector = { { HDR }, { STATUS, WRITE } },
    },
};

/* covers: PACK-35: with lists between them, over three laps */
static void test_table(const void *opaque)
{
    const TableCase *c = opaque;
    unsigned n = c->list[1].len ? 2 : 1;
    unsigned entries = c->list[0].flags & INDIRECT ? c->list[0].len / 16
                                                   : CASE_DESCS;
    VringConfig config = packed_config(5);
    Flight flight;
    TestQueue q;

    test_queue_init(&q, &config);
    vring_vectors_init(&flight.buf);
    driver_set_table(&q.drv,
                     test_memory_host(q.mem, TABLE_BASE) + c->table_offset,
                     c->table, entries);
    for (unsigned i = 0; i < 15; i++) {
        driver_offer_chain(&q.drv, 0xabcd, c->list, n);
        pop(&q, &flight, 0xabcd, n);
        test_check_vectors(&q, &flight.elem, c->vector, c->vectors);
        test_queue_use_buf(&q, &flight.elem, &flight.buf, i);
        run_list(&q, i, 1 + i % 3, 1, 0);
    }
    test_queue_cleanup(&q);
}

/* covers: ROBP-15: wherever they stand in a list, one choice for all places */
static void test_empty_descriptors(TestQueue *q)
{
    static const TestDesc desc[] = {
        { 0xdead0000, 0 }, { HDR }, { 0xdead0000, 0 }, { BLOCK, WRITE },
        { 0xdead0000, 0 }, { 0xdead0000, 0, WRITE },
    };
    Flight flight;

    vring_vectors_init(&flight.buf);
    driver_offer_chain(&q->drv, 3, desc, ARRAY_SIZE(desc));
    pop(q, &flight, 3, ARRAY_SIZE(desc));
    g_assert_cmpuint(flight.elem.out_num, ==, 1);
    g_assert_cmphex(flight.elem.out_addr[0], ==, DATA_BASE);
    g_assert_cmpuint(flight.elem.in_num, ==, 1);
    g_assert_cmphex(flight.elem.in_addr[0], ==, DATA_BASE + 0x200);
    test_queue_use_buf(q, &flight.elem, &flight.buf, 5);

    /* Nothing else but them */
    driver_offer_chain(&q->drv, 4, desc, 1);
    pop(q, &flight, 4, 1);
    g_assert_cmpuint(flight.elem.out_num + flight.elem.in_num, ==, 0);
    test_queue_use_buf(q, &flight.elem, &flight.buf, 0);
}

/* covers: PACK-30, ROBP-8: as many entries as any array has, and queue 3 */
static void test_long_table(TestQueue *q)
{
    static const unsigned lengths[] = { 4, 18, 19, 100, 1023, 1024 };
    TestDesc *table = g_new(TestDesc, 1024);
    Flight flight;

    vring_vectors_init(&flight.buf);
    for (unsigned i = 0; i < ARRAY_SIZE(lengths); i++) {
        unsigned n = lengths[i], out = n / 2;
        TestDesc desc = { TABLE_BASE + 1, 16 * n, INDIRECT };

        for (unsigned j = 0; j < n; j++) {
            table[j] = (TestDesc) {
                .addr = DATA_BASE + 32 * j,
                .len = 16 + j % 16,
                .flags = j < out ? 0 : WRITE,
            };
        }
        driver_set_table(&q->drv, test_memory_host(q->mem, TABLE_BASE + 1),
                         table, n);
        driver_offer_chain(&q->drv, 63, &desc, 1);
        pop(q, &flight, 63, 1);
        test_check_long(q, &flight.elem, n, out);
        test_queue_use_buf(q, &flight.elem, &flight.buf, 1);
        vring_vectors_release(&flight.buf);
    }
    g_free(table);
}

/* What is marked dirty */

/* The device writes id, length and flags: bytes 8 to 15 of a descriptor */
static uint64_t dirty_desc(TestQueue *q, unsigned pos)
{
    hwaddr addr = q->drv.config.desc + 16 * (pos % q->drv.config.num);

    g_assert_cmpuint(test_memory_dirty(q->mem, addr + 8, 8), ==, 8);
    return test_memory_dirty(q->mem, addr, 16);
}

/* covers: M9: the used descriptors, wherever the batch lies, and no others */
static void test_dirty_used(TestQueue *q)
{
    unsigned num = q->drv.config.num;
    g_autofree Flight *flights = flights_new(num);

    for (unsigned n = 1; n <= num; n++) {
        for (unsigned shift = 0; shift < 2 * num; shift++) {
            unsigned first = q->drv.used_pos;
            uint64_t dirty = 0;

            for (unsigned i = 0; i < n; i++) {
                driver_offer_buffer(&q->drv, i, DATA_BASE, 1, false);
                pop(q, &flights[i], i, 1);
            }
            test_memory_clean(q->mem);
            for (unsigned i = 0; i < n; i++) {
                push(q, &flights[i], 0);
            }
            g_assert_cmpuint(vring_publish(&q->vring), ==, n);
            for (unsigned i = 0; i < n; i++) {
                dirty += dirty_desc(q, first + i);
                test_queue_take(q, i, 0);
            }
            g_assert_cmpuint(test_memory_all_dirty(q->mem), ==, dirty);
            test_queue_run(q, 0);
        }
    }
}

/*
 * covers: M9: of each list the descriptor that is written, where the lengths of
 * those before have put it; the rest of the batch may be marked with it
 */
static void test_dirty_lists(TestQueue *q)
{
    VringConfig config = q->drv.config;
    Flight flight[3];

    for (unsigned round = 0; round < 28; round++) {
        unsigned pos = q->drv.used_pos;

        for (unsigned i = 0; i < 3; i++) {
            vring_vectors_init(&flight[i].buf);
            offer_list(q, i, 1 + i, 1 + i);
            pop(q, &flight[i], i, 1 + i);
        }
        test_memory_clean(q->mem);
        for (unsigned i = 3; i-- > 0;) {
            push(q, &flight[i], 0);
        }
        g_assert_cmpuint(vring_publish(&q->vring), ==, 3);
        for (unsigned i = 3; i-- > 0;) {
            dirty_desc(q, pos);
            pos += 1 + i;
            test_queue_take(q, i, 0);
        }
        g_assert_cmpuint(test_memory_all_dirty(q->mem), <=, 6 * 16);
        pos %= 7;
        g_assert_cmpuint(test_memory_dirty(q->mem, config.desc + 16 * pos, 16),
                         ==, 0);
        test_queue_run(q, 0);
    }
}

/* covers: M9, PACK-41 */
static void test_dirty_event_structure(void)
{
    for (unsigned event_idx = 0; event_idx < 2; event_idx++) {
        VringConfig config = packed_config(7);
        hwaddr used = config.used;
        TestQueue q;

        config.event_idx = event_idx;
        test_queue_init(&q, &config);
        vring_disable_notification(&q.vring);
        test_memory_clean(q.mem);
        for (unsigned i = 0; i < 20; i++) {
            uint8_t before[4];
            uint64_t dirty;

            vring_enable_notification(&q.vring);
            g_assert_cmpuint(test_memory_dirty(q.mem, used + 2, 2), ==, 2);
            g_assert_cmpuint(test_memory_dirty(q.mem, used, 2), >=,
                             event_idx ? 2 : 0);
            dirty = test_memory_dirty(q.mem, used, 4);
            g_assert_cmpuint(test_memory_all_dirty(q.mem), ==, dirty);

            /* If anything has to be written to that end, it is marked */
            test_memory_clean(q.mem);
            memcpy(before, q.drv.used, 4);
            vring_disable_notification(&q.vring);
            dirty = test_memory_dirty(q.mem, used, 4);
            if (memcmp(before, q.drv.used, 4)) {
                g_assert_cmpuint(test_memory_dirty(q.mem, used + 2, 2), ==, 2);
            }
            vring_should_notify(&q.vring);
            g_assert_cmpuint(test_memory_all_dirty(q.mem), ==, dirty);
            test_queue_run(&q, i);
            test_memory_clean(q.mem);
        }
        test_queue_cleanup(&q);
    }
}

/* Adding tests */

static void add_function_tests(void)
{
    static const TestRow rows[] = {
        { "dirty/used", test_dirty_used, .mode = PACKED, .nums = small_sizes },
        { "used/any-order", test_any_order, .mode = PACKED,
          .nums = small_sizes },
        { "queue-sizes", test_queue_sizes, .mode = PACKED, .nums = sizes },
        { "minimal-alignment", test_minimal_alignment, 5, .mode = PACKED },
        { "list/lengths", test_list_lengths, 1500, .mode = PACKED },
        { "list/empty-descriptors", test_empty_descriptors, 6, .mode = PACKED },
        { "next-position-decides", test_next_position_decides, 4,
          .mode = PACKED },
        { "ids", test_ids, 3, .mode = PACKED },
        { "used/left-alone", test_used_is_left_alone, 5, .mode = PACKED },
        { "used/length", test_used_length, 3, .mode = PACKED },
        { "indirect/long-table", test_long_table, 3, .mode = PACKED },
        { "dirty/lists", test_dirty_lists, 7, .mode = PACKED },
    };

    test_add_rows("/vring/packed", rows, ARRAY_SIZE(rows));
    g_test_add_func("/vring/packed/bad-queue-sizes", test_bad_queue_sizes);
    g_test_add_func("/vring/packed/list/anywhere", test_lists_anywhere);
    g_test_add_func("/vring/packed/empty-kicks", test_empty_kicks);
    g_test_add_func("/vring/packed/used/publish-shows-a-batch",
                    test_publish_batch);
    g_test_add_func("/vring/packed/what-is-touched", test_what_is_touched);
    g_test_add_func("/vring/packed/dirty/event-structure",
                    test_dirty_event_structure);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    test_add_cases(raw_cases, test_raw_bytes);
    test_add_cases(idle_cases, test_idle);
    test_add_cases(table_cases, test_table);
    add_function_tests();
    return g_test_run();
}
