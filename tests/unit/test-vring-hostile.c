/*
 * Tests of the ring: drivers that break the rules
 *
 * Knows the rows ROBS, ROBP and G of the requirements, for both formats.
 * Whatever the driver does, the ring answers with the one error that names it,
 * holds nothing, writes nothing, and is broken from then on; or it tolerates
 * the fault.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <pthread.h>
#include "qemu/atomic.h"
#include "qapi/error.h"
#include "vring-test-driver.h"

#define QUEUE_SIZE 8

/*
 * Further regions, besides those of a TestQueue.  LOW is what an address that
 * wraps would find.
 */
#define LOW_BASE    0x0ull
#define LOW_SIZE    RING_BASE
#define ROM_BASE    0x20000000ull
#define HUGE_BASE   0x100000000ull
#define HUGE_SIZE   (5ull << 30)
#define SHORT_BASE  0x30000000ull
#define SHORT_SIZE  0xffeull            /* ends between aligned addresses */
#define TOP_BASE    0xfffffffffffff000ull
#define TOP_SIZE    0x1000ull
#define NOWHERE     0x7000000000ull

static void hostile_queue_init(TestQueue *q, const VringConfig *config)
{
    test_queue_init(q, config);
    test_memory_add(q->mem, LOW_BASE, LOW_SIZE, TEST_RAM);
    test_memory_add(q->mem, ROM_BASE, TEST_PAGE, TEST_ROM);
    test_memory_add(q->mem, SHORT_BASE, SHORT_SIZE, TEST_RAM);
    test_memory_add(q->mem, HUGE_BASE, HUGE_SIZE, TEST_RAM);
    test_memory_add(q->mem, TOP_BASE, TOP_SIZE, TEST_RAM);
    test_memory_commit(q->mem);
    vring_refresh_memory(&q->vring);
}

/* Chains */

#define CASE_DESCS QUEUE_SIZE

typedef enum CaseFormat {
    SPLIT_ONLY,
    BOTH,                               /* the same error in a packed ring */
    PACKED_ONLY,
} CaseFormat;

typedef struct ChainCase {
    const char *path;
    CaseFormat format;
    VringError error;
    bool no_indirect;                   /* feature not negotiated */
    TestDesc ring[CASE_DESCS];          /* descriptors from 0 on */
    TestDesc table[CASE_DESCS];         /* at TABLE_BASE */
} ChainCase;

/* To be followed by flags and next */
#define HDR     .addr = DATA_BASE, .len = 16
#define BLOCK   .addr = DATA_BASE + 0x200, .len = 512
#define STATUS  .addr = DATA_BASE + 0x100, .len = 1
#define TABLE(n) .addr = TABLE_BASE, .len = 16 * (n)

static const ChainCase chain_cases[] = {
    {
        /* covers: ROBS-1, G9 */
        .path = "/vring/hostile/loop/self",
        .error = VRING_ERR_LOOP,
        .ring = { { HDR, NEXT, 0 } },
    }, {
        /* covers: ROBS-1, G9 */
        .path = "/vring/hostile/loop/self-empty",
        .error = VRING_ERR_LOOP,
        .ring = { { 0, 0, NEXT, 0 } },
    }, {
        /* covers: ROBS-1, G9 */
        .path = "/vring/hostile/loop/pair",
        .error = VRING_ERR_LOOP,
        .ring = { { HDR, WRITE | NEXT, 1 }, { HDR, WRITE | NEXT, 0 } },
    }, {
        /* covers: ROBS-1, G9 */
        .path = "/vring/hostile/loop/all",
        .error = VRING_ERR_LOOP,
        .ring = { { HDR, NEXT, 1 }, { HDR, NEXT, 2 }, { HDR, NEXT, 3 },
                  { HDR, NEXT, 4 }, { HDR, NEXT, 5 }, { HDR, NEXT, 6 },
                  { HDR, NEXT, 7 }, { HDR, NEXT, 0 } },
    }, {
        /* covers: ROBS-1: the last one goes back into the middle */
        .path = "/vring/hostile/loop/tail",
        .error = VRING_ERR_LOOP,
        .ring = { { HDR, NEXT, 1 }, { HDR, NEXT, 2 }, { HDR, NEXT, 3 },
                  { HDR, NEXT, 1 } },
    }, {
        /* covers: ROBS-19 */
        .path = "/vring/hostile/loop/in-table-self",
        .error = VRING_ERR_LOOP,
        .ring = { { TABLE(1), INDIRECT } },
        .table = { { HDR, NEXT, 0 } },
    }, {
        /* covers: ROBS-19 */
        .path = "/vring/hostile/loop/in-table-pair",
        .error = VRING_ERR_LOOP,
        .ring = { { HDR, NEXT, 1 }, { TABLE(4), INDIRECT } },
        .table = { { HDR, NEXT, 3 }, { 0 }, { 0 }, { HDR, NEXT, 0 } },
    }, {
        /* covers: ROBS-4 */
        .path = "/vring/hostile/next/queue-size",
        .error = VRING_ERR_NEXT,
        .ring = { { HDR, NEXT, QUEUE_SIZE } },
    }, {
        /* covers: ROBS-4 */
        .path = "/vring/hostile/next/65535",
        .error = VRING_ERR_NEXT,
        .ring = { { HDR, NEXT, 1 }, { STATUS, WRITE | NEXT, 65535 } },
    }, {
        /* covers: ROBS-18 */
        .path = "/vring/hostile/next/entries-of-table",
        .error = VRING_ERR_NEXT,
        .ring = { { TABLE(2), INDIRECT } },
        .table = { { HDR, NEXT, 2 }, { STATUS, WRITE }, { STATUS, WRITE } },
    }, {
        /* covers: ROBS-18 */
        .path = "/vring/hostile/next/65535-in-table",
        .error = VRING_ERR_NEXT,
        .ring = { { TABLE(2), INDIRECT } },
        .table = { { HDR, NEXT, 1 }, { STATUS, WRITE | NEXT, 65535 } },
    }, {
        /* covers: ROBS-13, G9, ROBP-3 */
        .path = "/vring/hostile/order/direct",
        .format = BOTH,
        .error = VRING_ERR_ORDER,
        .ring = { { STATUS, WRITE | NEXT, 1 }, { HDR } },
    }, {
        /* covers: ROBS-13, ROBP-3 */
        .path = "/vring/hostile/order/in-table",
        .format = BOTH,
        .error = VRING_ERR_ORDER,
        .ring = { { TABLE(3), INDIRECT } },
        .table = { { HDR, NEXT, 1 }, { STATUS, WRITE | NEXT, 2 }, { BLOCK } },
    }, {
        /* covers: ROBS-13 */
        .path = "/vring/hostile/order/direct-then-table",
        .error = VRING_ERR_ORDER,
        .ring = { { STATUS, WRITE | NEXT, 1 }, { TABLE(1), INDIRECT } },
        .table = { { HDR } },
    }, {
        /* covers: ROBS-8, ROBP-9 */
        .path = "/vring/hostile/address/readable-nowhere",
        .format = BOTH,
        .error = VRING_ERR_ADDRESS,
        .ring = { { NOWHERE, 16 } },
    }, {
        /* covers: ROBS-8, ROBP-9 */
        .path = "/vring/hostile/address/writable-nowhere",
        .format = BOTH,
        .error = VRING_ERR_ADDRESS,
        .ring = { { HDR, NEXT, 1 }, { NOWHERE, 16, WRITE | NEXT, 2 },
                  { STATUS, WRITE } },
    }, {
        /* covers: ROBS-8, ROBP-9 */
        .path = "/vring/hostile/address/nowhere-in-table",
        .format = BOTH,
        .error = VRING_ERR_ADDRESS,
        .ring = { { TABLE(2), INDIRECT } },
        .table = { { HDR, NEXT, 1 }, { NOWHERE, 1, WRITE } },
    }, {
        /* covers: ROBS-8, G11, ROBP-9 */
        .path = "/vring/hostile/address/just-in-front-of-a-region",
        .format = BOTH,
        .error = VRING_ERR_ADDRESS,
        .ring = { { DATA_BASE - 1, 2 } },
    }, {
        /* covers: ROBS-9, G11, ROBP-9 */
        .path = "/vring/hostile/address/just-behind-a-region",
        .format = BOTH,
        .error = VRING_ERR_ADDRESS,
        .ring = { { DATA_BASE + DATA_SIZE, 1 } },
    }, {
        /* covers: ROBS-9, ROBP-9 */
        .path = "/vring/hostile/address/runs-out-of-its-region",
        .format = BOTH,
        .error = VRING_ERR_ADDRESS,
        .ring = { { HDR, NEXT, 1 },
                  { DATA_BASE + DATA_SIZE - 16, 17, WRITE } },
    }, {
        /* covers: ROBS-9, ROBP-9: there is RAM at 0, but not for this buffer */
        .path = "/vring/hostile/address/wraps",
        .format = BOTH,
        .error = VRING_ERR_ADDRESS,
        .ring = { { TOP_BASE + TOP_SIZE - 16, 17 } },
    }, {
        /* covers: ROBS-9, ROBP-9 */
        .path = "/vring/hostile/address/wraps-from-the-last-byte",
        .format = BOTH,
        .error = VRING_ERR_ADDRESS,
        .ring = { { UINT64_MAX, 2, WRITE } },
    }, {
        /* covers: G11 */
        .path = "/vring/hostile/address/writable-in-rom",
        .format = BOTH,
        .error = VRING_ERR_ADDRESS,
        .ring = { { ROM_BASE, 512, NEXT, 1 }, { ROM_BASE, 512, WRITE } },
    }, {
        /* covers: ROBS-11, G9, ROBP-16 */
        .path = "/vring/hostile/length/4-gib",
        .format = BOTH,
        .error = VRING_ERR_LENGTH,
        .ring = { { HUGE_BASE, 0xffffffff, WRITE | NEXT, 1 },
                  { STATUS, WRITE } },
    }, {
        /* covers: ROBS-11, G9, ROBP-16: both directions count */
        .path = "/vring/hostile/length/both-directions",
        .format = BOTH,
        .error = VRING_ERR_LENGTH,
        .ring = { { HUGE_BASE, 0x80000000, NEXT, 1 },
                  { HUGE_BASE, 0x80000000, WRITE } },
    }, {
        /* covers: ROBS-11, ROBP-16: the sum would be small in 32 bits */
        .path = "/vring/hostile/length/wraps",
        .format = BOTH,
        .error = VRING_ERR_LENGTH,
        .ring = { { HUGE_BASE, 0x80000000, NEXT, 1 },
                  { HUGE_BASE, 0x7fffffff, WRITE | NEXT, 2 },
                  { HUGE_BASE, 0x7fffffff, WRITE | NEXT, 3 },
                  { HUGE_BASE, 0x00000202, WRITE } },
    }, {
        /* covers: ROBS-14 */
        .path = "/vring/hostile/indirect/not-negotiated",
        .error = VRING_ERR_INDIRECT_FEATURE,
        .no_indirect = true,
        .ring = { { HDR, NEXT, 1 }, { TABLE(1), INDIRECT } },
        .table = { { STATUS, WRITE } },
    }, {
        /* covers: ROBS-15, G9 */
        .path = "/vring/hostile/indirect/nested",
        .error = VRING_ERR_INDIRECT_NESTED,
        .ring = { { TABLE(2), INDIRECT } },
        .table = { { HDR, NEXT, 1 }, { TABLE(1), INDIRECT } },
    }, {
        /* covers: ROBS-15: the second level is not even looked at */
        .path = "/vring/hostile/indirect/nested-nowhere",
        .error = VRING_ERR_INDIRECT_NESTED,
        .ring = { { TABLE(1), INDIRECT } },
        .table = { { NOWHERE, 5, INDIRECT | WRITE } },
    }, {
        /* covers: ROBS-16, ROBP-4 */
        .path = "/vring/hostile/indirect/with-next",
        .format = BOTH,
        .error = VRING_ERR_INDIRECT_NEXT,
        .ring = { { TABLE(1), INDIRECT | NEXT, 1 }, { STATUS, WRITE } },
        .table = { { HDR } },
    }, {
        /* covers: ROBS-17, G4, ROBP-6 */
        .path = "/vring/hostile/table/length-0",
        .format = BOTH,
        .error = VRING_ERR_TABLE_LENGTH,
        .ring = { { TABLE(0), INDIRECT } },
    }, {
        /* covers: ROBS-17, ROBP-6 */
        .path = "/vring/hostile/table/length-15",
        .format = BOTH,
        .error = VRING_ERR_TABLE_LENGTH,
        .ring = { { TABLE_BASE, 15, INDIRECT } },
    }, {
        /* covers: ROBS-17, ROBP-6 */
        .path = "/vring/hostile/table/length-40",
        .format = BOTH,
        .error = VRING_ERR_TABLE_LENGTH,
        .ring = { { TABLE_BASE, 40, INDIRECT } },
        .table = { { HDR, NEXT, 1 }, { STATUS, WRITE } },
    }, {
        /* covers: ROBS-20, ROBP-8 */
        .path = "/vring/hostile/table/length-fffffff0",
        .format = BOTH,
        .error = VRING_ERR_TABLE_LENGTH,
        .ring = { { TABLE_BASE, 0xfffffff0, INDIRECT } },
        .table = { { HDR } },
    }, {
        /* covers: ROBS-20, ROBP-8: one more than 2.7 allows, all in RAM */
        .path = "/vring/hostile/table/32769-entries",
        .format = BOTH,
        .error = VRING_ERR_TABLE_LENGTH,
        .ring = { { HUGE_BASE, 16 * 32769, INDIRECT } },
    }, {
        /* covers: ROBS-20, G11 */
        .path = "/vring/hostile/table/nowhere",
        .error = VRING_ERR_TABLE_ADDRESS,
        .ring = { { HDR, NEXT, 1 }, { NOWHERE, 16, INDIRECT } },
    }, {
        /* covers: ROBS-20, ROBP-9 */
        .path = "/vring/hostile/table/wraps",
        .format = BOTH,
        .error = VRING_ERR_TABLE_ADDRESS,
        .ring = { { TOP_BASE + TOP_SIZE - 16, 32, INDIRECT } },
    }, {
        /* covers: ROBP-4, G9 */
        .path = "/vring/hostile/packed/indirect-behind-a-direct-one",
        .format = PACKED_ONLY,
        .error = VRING_ERR_INDIRECT_NEXT,
        .ring = { { HDR, NEXT }, { TABLE(1), INDIRECT } },
        .table = { { STATUS, WRITE } },
    }, {
        /* covers: ROBP-4 */
        .path = "/vring/hostile/packed/indirect-between-direct-ones",
        .format = PACKED_ONLY,
        .error = VRING_ERR_INDIRECT_NEXT,
        .ring = { { HDR, NEXT }, { TABLE(1), INDIRECT | NEXT },
                  { STATUS, WRITE } },
        .table = { { STATUS, WRITE } },
    }, {
        /* covers: ROBP-5 */
        .path = "/vring/hostile/packed/indirect-not-negotiated",
        .format = PACKED_ONLY,
        .error = VRING_ERR_INDIRECT_FEATURE,
        .no_indirect = true,
        .ring = { { TABLE(1), INDIRECT } },
        .table = { { STATUS, WRITE } },
    }, {
        /* covers: ROBP-9, G11 */
        .path = "/vring/hostile/packed/table-nowhere",
        .format = PACKED_ONLY,
        .error = VRING_ERR_TABLE_ADDRESS,
        .ring = { { NOWHERE, 16, INDIRECT } },
    }, {
        /* covers: ROBP-9, G4: the first entry is in RAM, the second one not */
        .path = "/vring/hostile/packed/table-runs-out-of-its-region",
        .format = PACKED_ONLY,
        .error = VRING_ERR_TABLE_ADDRESS,
        .ring = { { DATA_BASE + DATA_SIZE - 16, 32, INDIRECT } },
    },
};

/* Descriptors of the chain at 0, if it is one without a jump */
static unsigned list_length(const TestDesc *ring)
{
    unsigned n = 0;

    while (ring[n++].flags & NEXT) {
        g_assert_cmpuint(n, <, CASE_DESCS);
    }
    return n;
}

static void run_chain(const ChainCase *c, const TestMode *mode)
{
    VringConfig config = test_config(mode, QUEUE_SIZE);
    TestQueue q;

    g_test_message("%s", mode->name);
    config.indirect = !c->no_indirect;
    hostile_queue_init(&q, &config);
    driver_set_table(&q.drv, test_memory_host(q.mem, TABLE_BASE), c->table,
                     CASE_DESCS);
    if (mode->packed) {
        driver_offer_chain(&q.drv, 0, c->ring, list_length(c->ring));
    } else {
        driver_set_table(&q.drv, q.drv.desc, c->ring, CASE_DESCS);
        driver_offer(&q.drv, 0);
    }
    test_queue_fail(&q, c->error);
    test_queue_cleanup(&q);
}

static void test_chain(const void *opaque)
{
    const ChainCase *c = opaque;

    for (unsigned i = 0; i < TEST_ALL_MODES; i++) {
        if (c->format != (test_modes[i].packed ? SPLIT_ONLY : PACKED_ONLY)) {
            run_chain(c, &test_modes[i]);
        }
    }
}

/* covers: ROBS-1: bounded in a queue of any size, empty or not */
static void test_long_loop(void)
{
    for (unsigned num = 1; num <= 32768; num *= 2) {
        for (unsigned len = 0; len < 2; len++) {
            VringConfig config = test_config(&test_modes[0], num);
            TestQueue q;

            test_queue_init(&q, &config);
            for (unsigned i = 0; i < num; i++) {
                TestDesc desc = { DATA_BASE, len, NEXT, (i + 1) % num };

                driver_set_desc(&q.drv, i, &desc);
            }
            driver_offer(&q.drv, num / 2);
            test_queue_fail(&q, len && num > VIRTQUEUE_MAX_SIZE ?
                                VRING_ERR_TOO_LONG : VRING_ERR_LOOP);
            test_queue_cleanup(&q);
        }
    }
}

/* A table of @n entries at HUGE_BASE, each with one byte at @addr */
static void offer_long_table(TestQueue *q, unsigned n, hwaddr addr)
{
    TestDesc *table = g_new(TestDesc, n);
    TestDesc head[] = {
        { HDR, NEXT, 1 },
        { HUGE_BASE, 16 * n, INDIRECT },
    };

    for (unsigned i = 0; i < n; i++) {
        table[i] = (TestDesc) {
            .addr = addr,
            .len = 1,
            .flags = WRITE | (i < n - 1 ? NEXT : 0),
            .next = i + 1,
        };
    }
    driver_set_table(&q->drv, test_memory_host(q->mem, HUGE_BASE), table, n);
    driver_set_table(&q->drv, q->drv.desc, head, ARRAY_SIZE(head));
    driver_offer(&q->drv, 0);
    g_free(table);
}

/*
 * covers: ROBS-2: longer than the queue is tolerated, longer than any array
 * is not
 */
static void test_long_table(void)
{
    static const unsigned served[] = { QUEUE_SIZE, 100, 1023 };
    static const unsigned refused[] = { 1024, 1025, 32768 };
    VringConfig config = test_config(&test_modes[0], QUEUE_SIZE);
    VirtQueueElement elem;
    TestQueue q;

    for (unsigned i = 0; i < ARRAY_SIZE(served); i++) {
        hostile_queue_init(&q, &config);
        offer_long_table(&q, served[i], DATA_BASE);
        test_queue_pop(&q, &elem);
        g_assert_cmpuint(elem.out_num, ==, 1);
        g_assert_cmpuint(elem.in_num, ==, served[i]);
        test_queue_use(&q, &elem, 0);
        test_queue_cleanup(&q);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(refused); i++) {
        hostile_queue_init(&q, &config);
        offer_long_table(&q, refused[i], DATA_BASE);
        test_queue_fail(&q, VRING_ERR_TOO_LONG);
        test_queue_cleanup(&q);
    }
}

/* covers: ROBS-2, SPLIT-2: a chain in the ring with more than any array */
static void test_long_chain(TestQueue *q)
{
    for (unsigned i = 0; i < 1025; i++) {
        TestDesc desc = { DATA_BASE, 1, i < 1024 ? NEXT : 0, i + 1 };

        driver_set_desc(&q->drv, i, &desc);
    }
    driver_offer(&q->drv, 0);
    test_queue_fail(q, VRING_ERR_TOO_LONG);
}

/* covers: ROBS-8: the buffer has grown once or more before the fault */
static void test_fault_behind_long_chain(void)
{
    for (unsigned n = VRING_INLINE_VECTORS; n < 1024; n *= 2) {
        VringConfig config = test_config(&test_modes[0], 1024);
        TestQueue q;

        test_queue_init(&q, &config);
        for (unsigned i = 0; i <= n; i++) {
            TestDesc desc = { DATA_BASE, 1, NEXT, i + 1 };

            driver_set_desc(&q.drv, i, &desc);
        }
        driver_set_desc(&q.drv, n, &(TestDesc) { NOWHERE, 1 });
        driver_offer(&q.drv, 0);
        test_queue_fail(&q, VRING_ERR_ADDRESS);
        test_queue_cleanup(&q);
    }
}

/* covers: ROBS-11: the largest chain that the rules allow */
static void test_longest_length(TestQueue *q)
{
    static const TestDesc desc[] = {
        { HUGE_BASE, 0x80000000, NEXT, 1 },
        { HUGE_BASE + 0x80000000, 0x7fffffff, WRITE },
    };
    VirtQueueElement elem;

    driver_set_table(&q->drv, q->drv.desc, desc, ARRAY_SIZE(desc));
    driver_offer(&q->drv, 0);
    test_queue_pop(q, &elem);
    g_assert_cmpuint(elem.out_sg[0].iov_len, ==, 0x80000000);
    g_assert_cmpuint(elem.in_sg[0].iov_len, ==, 0x7fffffff);
    test_queue_use(q, &elem, 0x7fffffff);
}

/*
 * covers: ROBS-20: entry 0 is in RAM, entry 1 is not; whether the chain goes
 * there decides
 */
static void test_table_runs_out(void)
{
    const hwaddr last = DATA_BASE + DATA_SIZE - 16;
    const TestDesc head = { last, 32, INDIRECT };
    TestDesc entry = { STATUS, WRITE };
    VirtQueueElement elem;

    for (unsigned i = 0; i < TEST_MODES; i++) {
        VringConfig config = test_config(&test_modes[i], QUEUE_SIZE);
        TestQueue q;

        hostile_queue_init(&q, &config);
        driver_set_desc(&q.drv, 0, &head);
        entry.flags = WRITE;
        driver_set_table(&q.drv, test_memory_host(q.mem, last), &entry, 1);
        driver_offer(&q.drv, 0);
        test_queue_pop(&q, &elem);
        g_assert_cmpuint(elem.in_num, ==, 1);
        test_queue_use(&q, &elem, 1);

        entry.flags = WRITE | NEXT;
        entry.next = 1;
        driver_set_table(&q.drv, test_memory_host(q.mem, last), &entry, 1);
        driver_offer(&q.drv, 0);
        test_queue_fail(&q, VRING_ERR_TABLE_ADDRESS);
        test_queue_cleanup(&q);
    }
}

/*
 * Looking ahead: whatever stands in the next but one available entry, popping
 * the ones before it must not mind
 */

#define DATA_END (DATA_BASE + DATA_SIZE)
#define HUGE_END (HUGE_BASE + HUGE_SIZE)
#define HINT_HEAD 5

typedef struct HintCase {
    const char *path;
    VringError error;           /* when it is popped itself; 0: none */
    uint16_t head;              /* of the entry; 0: HINT_HEAD */
    TestDesc desc;              /* what that head is */
} HintCase;

static const HintCase hint_cases[] = {
    {
        /* covers: ROBS-3, G9: the table ends with its region */
        .path = "/vring/hostile/hint/head-queue-size",
        .error = VRING_ERR_HEAD,
        .head = QUEUE_SIZE,
    }, {
        /* covers: ROBS-3, G9 */
        .path = "/vring/hostile/hint/head-behind-queue-size",
        .error = VRING_ERR_HEAD,
        .head = QUEUE_SIZE + 1,
    }, {
        /* covers: ROBS-3, G9 */
        .path = "/vring/hostile/hint/head-65535",
        .error = VRING_ERR_HEAD,
        .head = 65535,
    }, {
        /* covers: ROBS-8 */
        .path = "/vring/hostile/hint/nowhere",
        .error = VRING_ERR_ADDRESS,
        .desc = { NOWHERE, 16 },
    }, {
        /* covers: ROBS-20 */
        .path = "/vring/hostile/hint/table-nowhere",
        .error = VRING_ERR_TABLE_ADDRESS,
        .desc = { NOWHERE, 16, INDIRECT },
    }, {
        /* covers: ROBS-9 */
        .path = "/vring/hostile/hint/behind-a-region",
        .error = VRING_ERR_ADDRESS,
        .desc = { DATA_END, 16, WRITE },
    }, {
        .path = "/vring/hostile/hint/last-byte-of-a-region",
        .desc = { DATA_END - 1, 1, WRITE },
    }, {
        /* covers: ROBS-9 */
        .path = "/vring/hostile/hint/runs-out-of-its-region",
        .error = VRING_ERR_ADDRESS,
        .desc = { HUGE_END - 1, 2 },
    }, {
        .path = "/vring/hostile/hint/table-runs-out-of-its-region",
        .desc = { HUGE_END - 16, 32, INDIRECT },
    }, {
        .path = "/vring/hostile/hint/last-address",
        .desc = { UINT64_MAX, 1 },
    }, {
        /* covers: ROBS-9 */
        .path = "/vring/hostile/hint/wraps",
        .error = VRING_ERR_ADDRESS,
        .desc = { UINT64_MAX, 16 },
    }, {
        /* covers: ROBS-20 */
        .path = "/vring/hostile/hint/table-wraps",
        .error = VRING_ERR_TABLE_ADDRESS,
        .desc = { UINT64_MAX, 16, INDIRECT },
    }, {
        .path = "/vring/hostile/hint/nothing",
        .desc = { 0, 0 },
    }, {
        /* covers: ROBS-17 */
        .path = "/vring/hostile/hint/table-of-nothing",
        .error = VRING_ERR_TABLE_LENGTH,
        .desc = { 0, 0, INDIRECT },
    }, {
        /* covers: ROBS-16 */
        .path = "/vring/hostile/hint/all-ones",
        .error = VRING_ERR_INDIRECT_NEXT,
        .desc = { UINT64_MAX, UINT32_MAX, 0xffff, 0xffff },
    }, {
        /* covers: G11: in a region that the general path alone has */
        .path = "/vring/hostile/hint/in-rom",
        .error = VRING_ERR_ADDRESS,
        .desc = { ROM_BASE, 512, WRITE },
    },
};

typedef enum HintWay {
    HINT_ALONE,                 /* shown only when the others were popped */
    HINT_SEEN,                  /* shown with them */
    HINT_REWRITTEN,             /* same, and put right before it is popped */
    HINT_WAYS,
} HintWay;

/* The descriptors end with their region, so that each one behind them faults */
static void hint_queue_init(TestQueue *q, VringConfig *config)
{
    hostile_queue_init(q, config);
    config->desc = DATA_END - driver_desc_size(QUEUE_SIZE);
    test_queue_reopen(q, config);
}

/* A direct chain at 0, a table at 1, and the case's entry behind them */
static void hint_offer(TestQueue *q, const HintCase *c, HintWay way)
{
    static const TestDesc ring[] = {
        { HDR, NEXT, 2 }, { TABLE(2), INDIRECT }, { STATUS, WRITE },
    };
    static const TestDesc table[] = { { HDR, NEXT, 1 }, { STATUS, WRITE } };

    driver_set_table(&q->drv, q->drv.desc, ring, ARRAY_SIZE(ring));
    driver_set_table(&q->drv, test_memory_host(q->mem, TABLE_BASE), table,
                     ARRAY_SIZE(table));
    driver_set_desc(&q->drv, HINT_HEAD, &c->desc);
    driver_add(&q->drv, 0);
    driver_add(&q->drv, 1);
    driver_add(&q->drv, c->head ?: HINT_HEAD);
    driver_set_avail_idx(&q->drv, way == HINT_ALONE ? 2 : 3);
}

static void hint_pop_good(TestQueue *q, VirtQueueElement *elem,
                          VringVectors *buf, unsigned head)
{
    test_queue_pop_buf(q, elem, buf);
    g_assert_cmpuint(elem->index, ==, head);
    g_assert_cmpuint(elem->out_num, ==, 1);
    g_assert(elem->out_sg[0].iov_base == q->data);
    g_assert_cmpuint(elem->out_sg[0].iov_len, ==, 16);
    g_assert_cmpuint(elem->in_num, ==, 1);
    g_assert(elem->in_sg[0].iov_base == q->data + 0x100);
    g_assert_cmpuint(elem->in_sg[0].iov_len, ==, 1);
}

/* The entry itself is what it is, whether it was looked at before or not */
static void hint_pop_case(TestQueue *q, const HintCase *c,
                          VirtQueueElement *elem, VringVectors *buf)
{
    int vectors = c->desc.len && !(c->desc.flags & INDIRECT);
    int ret = vring_pop(&q->vring, elem, buf);

    g_assert_cmpint(ret, ==, c->error ? -(int)c->error : 1);
    if (ret > 0) {
        g_assert_cmpuint(elem->index, ==, HINT_HEAD);
        g_assert_cmpint(elem->out_num + elem->in_num, ==, vectors);
        if (vectors) {
            g_assert(elem->out_sg[0].iov_base ==
                     test_memory_host(q->mem, c->desc.addr));
        }
        vring_push(&q->vring, elem, buf, 0);
    }
}

/* Puts the entry right: the chain at 0 again */
static void hint_rewrite(TestQueue *q)
{
    q->drv.avail_idx--;
    driver_add(&q->drv, 0);
}

static void run_hint(const HintCase *c, const TestMode *mode, HintWay way)
{
    VringConfig config = test_config(mode, QUEUE_SIZE);
    VirtQueueElement elem[3];
    VringVectors buf[3];
    TestQueue q;

    hint_queue_init(&q, &config);
    hint_offer(&q, c, way);
    for (unsigned i = 0; i < 3; i++) {
        vring_vectors_init(&buf[i]);
    }
    hint_pop_good(&q, &elem[0], &buf[0], 0);
    hint_pop_good(&q, &elem[1], &buf[1], 1);
    vring_push(&q.vring, &elem[0], &buf[0], 1);
    if (way == HINT_REWRITTEN) {
        hint_rewrite(&q);
        hint_pop_good(&q, &elem[2], &buf[2], 0);
        vring_push(&q.vring, &elem[2], &buf[2], 1);
    } else {
        driver_set_avail_idx(&q.drv, 3);
        hint_pop_case(&q, c, &elem[2], &buf[2]);
    }
    vring_push(&q.vring, &elem[1], &buf[1], 1);
    g_assert_cmpuint(q.vring.inuse, ==, 0);
    test_queue_cleanup(&q);
}

static void test_hint(const void *opaque)
{
    for (unsigned i = 0; i < TEST_MODES * HINT_WAYS; i++) {
        g_test_message("%s, way %u", test_modes[i / HINT_WAYS].name,
                       i % HINT_WAYS);
        run_hint(opaque, &test_modes[i / HINT_WAYS], i % HINT_WAYS);
    }
}

/* Rings */

typedef struct IndexCase {
    const char *path;
    VringError error;
    unsigned used_before;       /* buffers that came and went before */
    uint16_t avail_idx;         /* then the driver writes this */
    uint16_t entry;             /* into the next entry */
} IndexCase;

static const IndexCase index_cases[] = {
    {
        /* covers: ROBS-5, G9 */
        .path = "/vring/hostile/avail-idx/one-more-than-a-ring",
        .error = VRING_ERR_AVAIL_IDX,
        .avail_idx = QUEUE_SIZE + 1,
    }, {
        /* covers: ROBS-5, G9 */
        .path = "/vring/hostile/avail-idx/half-of-the-range",
        .error = VRING_ERR_AVAIL_IDX,
        .used_before = 5,
        .avail_idx = 5 + 0x8000,
    }, {
        /* covers: ROBS-6 */
        .path = "/vring/hostile/avail-idx/one-back",
        .error = VRING_ERR_AVAIL_IDX,
        .used_before = 5,
        .avail_idx = 4,
    }, {
        /* covers: ROBS-6 */
        .path = "/vring/hostile/avail-idx/back-to-0",
        .error = VRING_ERR_AVAIL_IDX,
        .used_before = 30,
        .avail_idx = 0,
    }, {
        /* covers: ROBS-6 */
        .path = "/vring/hostile/avail-idx/back-over-65535",
        .error = VRING_ERR_AVAIL_IDX,
        .used_before = 65536 + 2,
        .avail_idx = 65535,
    }, {
        /* covers: ROBS-3, G9 */
        .path = "/vring/hostile/head/queue-size",
        .error = VRING_ERR_HEAD,
        .avail_idx = 1,
        .entry = QUEUE_SIZE,
    }, {
        /* covers: ROBS-3, G9: the low bits alone would be a descriptor */
        .path = "/vring/hostile/head/256",
        .error = VRING_ERR_HEAD,
        .used_before = 3,
        .avail_idx = 4,
        .entry = 0x100,
    }, {
        /* covers: ROBS-3, G9 */
        .path = "/vring/hostile/head/65535",
        .error = VRING_ERR_HEAD,
        .used_before = 3,
        .avail_idx = 4,
        .entry = 65535,
    },
};

static void test_index(const void *opaque)
{
    const IndexCase *c = opaque;

    for (unsigned i = 0; i < TEST_MODES; i++) {
        VringConfig config = test_config(&test_modes[i], QUEUE_SIZE);
        TestQueue q;

        g_test_message("%s", test_modes[i].name);
        test_queue_init(&q, &config);
        for (unsigned j = 0; j < c->used_before; j++) {
            test_queue_run(&q, j % QUEUE_SIZE);
        }
        driver_add(&q.drv, c->entry);
        driver_set_avail_idx(&q.drv, c->avail_idx);
        test_queue_fail(&q, c->error);
        test_queue_cleanup(&q);
    }
}

/* covers: ROBS-5: exactly a ring ahead is what the driver may do */
static void test_avail_idx_full_ring(TestQueue *q)
{
    VirtQueueElement elem;

    test_queue_run(q, 0);
    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        driver_offer_buffer(&q->drv, i, DATA_BASE, 1, false);
    }
    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        test_queue_pop(q, &elem);
        test_queue_use(q, &elem, 0);
    }
    g_assert_cmpint(vring_pop(&q->vring, &elem, &q->buf), ==, 0);
}

/*
 * covers: ROBS-6: set back behind what the device has seen already; entries
 * that it has taken are not taken again
 */
static void test_avail_idx_back_unnoticed(TestQueue *q)
{
    VirtQueueElement elem;
    int ret;

    for (unsigned i = 0; i < 4; i++) {
        driver_offer_buffer(&q->drv, i, DATA_BASE, 1, false);
    }
    test_queue_pop(q, &elem);
    vring_detach(&q->vring, &elem, &q->buf);
    driver_set_avail_idx(&q->drv, 1);
    for (unsigned i = 1;
         (ret = vring_pop(&q->vring, &elem, &q->buf)) > 0; i++) {
        g_assert_cmpuint(i, <, 4);
        g_assert_cmpuint(elem.index, ==, i);
        vring_detach(&q->vring, &elem, &q->buf);
    }
    g_assert_cmpint(ret, ==, -VRING_ERR_AVAIL_IDX);
}

/* covers: ROBS-7: each one is returned, and never more than the queue has */
static void test_head_offered_again(TestQueue *q)
{
    VirtQueueElement elem[QUEUE_SIZE];
    VringVectors buf[QUEUE_SIZE];

    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        vring_vectors_init(&buf[i]);
        driver_offer_buffer(&q->drv, 3, DATA_BASE, 1, true);
        test_queue_pop_buf(q, &elem[i], &buf[i]);
    }
    driver_offer(&q->drv, 3);
    for (unsigned i = 0; i < 2; i++) {
        vring_push(&q->vring, &elem[i], &buf[i], i);
    }
    g_assert_cmpuint(vring_publish(&q->vring), ==, 2);
    for (unsigned i = 0; i < 2; i++) {
        test_queue_take(q, 3, i);
    }
    for (unsigned i = 0; i < 2; i++) {
        driver_set_avail_idx(&q->drv, QUEUE_SIZE + 1 + i);
        test_queue_pop_buf(q, &elem[i], &buf[i]);
    }
    driver_offer(&q->drv, 3);
    driver_offer(&q->drv, 3);
    test_queue_fail(q, VRING_ERR_QUEUE_FULL);
    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        vring_detach(&q->vring, &elem[i], &buf[i]);
    }
    g_assert_cmpuint(q->vring.inuse, ==, 0);
}

/*
 * What was popped before the fault is given back, but not shown, not even
 * what was pushed before it; covers: G9
 */
static void test_push_when_broken(TestQueue *q)
{
    VirtQueueElement elem[4];
    VringVectors buf[4];
    uint16_t used_idx;

    for (unsigned i = 0; i < 4; i++) {
        vring_vectors_init(&buf[i]);
        driver_offer_buffer(&q->drv, i, DATA_BASE, 1, true);
        test_queue_pop_buf(q, &elem[i], &buf[i]);
    }
    vring_push(&q->vring, &elem[3], &buf[3], 1);
    driver_offer(&q->drv, 0xffff);
    test_queue_fail(q, VRING_ERR_HEAD);
    used_idx = q->vring.used_idx;
    vring_push(&q->vring, &elem[0], &buf[0], 1);
    vring_push(&q->vring, &elem[2], &buf[2], 1);
    vring_detach(&q->vring, &elem[1], &buf[1]);
    g_assert_cmpuint(vring_publish(&q->vring), ==, 0);
    g_assert_cmpuint(driver_used_idx(&q->drv), ==, 0);
    g_assert_cmpuint(q->vring.used_idx, ==, used_idx);
    g_assert_cmpuint(q->vring.inuse, ==, 0);
}

/* Packed rings */

static void packed_queue_init(TestQueue *q, unsigned num)
{
    const TestMode mode = { .packed = true };
    VringConfig config = test_config(&mode, num);

    hostile_queue_init(q, &config);
}

/* Writes what stands at position @pos as it is, available in its lap */
static void put_desc(TestQueue *q, unsigned pos, TestDesc desc)
{
    desc.flags |= driver_lap_flags(&q->drv, pos);
    driver_set_desc(&q->drv, pos % q->drv.config.num, &desc);
}

/* covers: ROBP-1, G3: bounded in a queue of any size, from any place */
static void test_packed_endless_list(void)
{
    static const unsigned sizes[] = { 1, 2, 3, 7, 255, 1000, 1500, 32768 };

    for (unsigned i = 0; i < 2 * ARRAY_SIZE(sizes); i++) {
        unsigned num = sizes[i / 2], len = i % 2;
        TestQueue q;

        packed_queue_init(&q, num);
        for (unsigned j = 0; j < num / 2; j++) {
            test_queue_run(&q, j);
        }
        for (unsigned j = 0; j < num; j++) {
            put_desc(&q, num / 2 + j, (TestDesc) { DATA_BASE, len, NEXT });
        }
        test_queue_fail(&q, len && num > VIRTQUEUE_MAX_SIZE ?
                            VRING_ERR_TOO_LONG : VRING_ERR_LOOP);
        test_queue_cleanup(&q);
    }
}

/*
 * covers: ROBP-2: a list that goes on in what is not available: of the lap
 * before, used already, or never written; whatever it says is not used
 */
static void test_packed_stale_rest(void)
{
    static const uint16_t stale[] = { 0, USED, AVAIL | USED };

    for (unsigned i = 0; i < ARRAY_SIZE(stale); i++) {
        const TestDesc rest = { DATA_BASE + 64, 16, stale[i] | WRITE, 1 };
        VirtQueueElement elem;
        TestQueue q;
        int ret;

        packed_queue_init(&q, QUEUE_SIZE);
        driver_set_desc(&q.drv, 1, &rest);
        put_desc(&q, 0, (TestDesc) { DATA_BASE, 16, NEXT });
        ret = vring_pop(&q.vring, &elem, &q.buf);
        g_assert_cmpint(ret, <=, 0);
        g_assert_cmpint(ret, !=, -VRING_ERR_RING_LOST);
        g_assert_cmpuint(q.vring.inuse, ==, 0);
        g_assert(q.buf.ram_ref == NULL);
        test_queue_cleanup(&q);
    }
}

/* Pops @n buffers of one descriptor with id @id + i * @step */
static void packed_fill(TestQueue *q, VirtQueueElement *elem,
                        VringVectors *buf, unsigned n, unsigned step)
{
    for (unsigned i = 0; i < n; i++) {
        vring_vectors_init(&buf[i]);
        put_desc(q, i, (TestDesc) { DATA_BASE, 16, WRITE, 7 + i * step });
        test_queue_pop_buf(q, &elem[i], &buf[i]);
        g_assert_cmpuint(elem[i].index, ==, 7 + i * step);
    }
}

static void packed_give_up(TestQueue *q, VirtQueueElement *elem,
                           VringVectors *buf, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        vring_detach(&q->vring, &elem[i], &buf[i]);
    }
    g_assert_cmpuint(q->vring.inuse, ==, 0);
}

/*
 * covers: G9: never more descriptors in flight than the ring has, be it that
 * all are, or that a list goes on into those that are
 */
static void test_packed_queue_full(void)
{
    for (unsigned busy = 1; busy <= QUEUE_SIZE; busy++) {
        VirtQueueElement elem[QUEUE_SIZE];
        VringVectors buf[QUEUE_SIZE];
        TestQueue q;

        packed_queue_init(&q, QUEUE_SIZE);
        packed_fill(&q, elem, buf, busy, 1);
        /* A list of all that is left, and one more of the next lap */
        for (unsigned i = busy; i <= QUEUE_SIZE; i++) {
            put_desc(&q, i, (TestDesc) { DATA_BASE, 16,
                                         i < QUEUE_SIZE ? NEXT : 0, 99 });
        }
        test_queue_fail(&q, VRING_ERR_QUEUE_FULL);
        packed_give_up(&q, elem, buf, busy);
        test_queue_cleanup(&q);
    }
}

/* covers: ROBP-10: many in flight with one id: each of them comes back */
static void test_packed_same_id(void)
{
    for (unsigned in_order = 0; in_order < 2; in_order++) {
        const TestMode mode = { .packed = true, .in_order = in_order };
        VringConfig config = test_config(&mode, QUEUE_SIZE);
        VirtQueueElement elem[QUEUE_SIZE];
        VringVectors buf[QUEUE_SIZE];
        TestQueue q;

        test_queue_init(&q, &config);
        packed_fill(&q, elem, buf, QUEUE_SIZE, 0);
        for (unsigned i = QUEUE_SIZE; i-- > 0;) {
            vring_push(&q.vring, &elem[i], &buf[i], 1 + i);
        }
        g_assert_cmpuint(vring_publish(&q.vring), ==, QUEUE_SIZE);
        for (unsigned i = 0; i < QUEUE_SIZE; i++) {
            const uint8_t *raw = q.drv.desc + 16 * i;

            g_assert_cmphex(raw[12] | raw[13] << 8, ==, 7);
            g_assert_cmphex(raw[14] | raw[15] << 8, ==,
                            AVAIL | USED | WRITE);
        }
        g_assert_cmpuint(q.vring.inuse, ==, 0);
        test_queue_cleanup(&q);
    }
}

/* covers: ROBP-8: as many vectors as any array has, and more */
static void test_packed_too_long(void)
{
    static const unsigned lengths[] = { 1025, 2000, 32768 };

    for (unsigned i = 0; i < ARRAY_SIZE(lengths); i++) {
        unsigned n = lengths[i];
        TestDesc *table = g_new0(TestDesc, n);
        const TestDesc head = { HUGE_BASE, 16 * n, INDIRECT };
        TestQueue q;

        packed_queue_init(&q, QUEUE_SIZE);
        for (unsigned j = 0; j < n; j++) {
            table[j] = (TestDesc) { DATA_BASE, 1, WRITE };
        }
        driver_set_table(&q.drv, test_memory_host(q.mem, HUGE_BASE), table, n);
        driver_offer_chain(&q.drv, 0, &head, 1);
        test_queue_fail(&q, VRING_ERR_TOO_LONG);
        g_free(table);
        test_queue_cleanup(&q);
    }
}

/* covers: ROBP-9: the buffer has grown once or more before the fault */
static void test_packed_fault_behind_long_list(void)
{
    for (unsigned n = VRING_INLINE_VECTORS; n < 1024; n *= 2) {
        TestDesc *desc = g_new0(TestDesc, n + 1);
        TestQueue q;

        packed_queue_init(&q, 1000);
        for (unsigned i = 0; i < n; i++) {
            desc[i] = (TestDesc) { DATA_BASE, 1 };
        }
        desc[n] = (TestDesc) { NOWHERE, 1 };
        driver_offer_chain(&q.drv, 0, desc, n + 1);
        test_queue_fail(&q, VRING_ERR_ADDRESS);
        g_free(desc);
        test_queue_cleanup(&q);
    }
}

/*
 * What was popped before the fault is given back, but not shown, not even
 * what was pushed before it; covers: G9
 */
static void test_packed_push_when_broken(TestQueue *q)
{
    g_autoptr(GBytes) before = NULL;
    g_autoptr(GBytes) after = NULL;
    VirtQueueElement elem[4];
    VringVectors buf[4];

    packed_fill(q, elem, buf, 4, 1);
    vring_push(&q->vring, &elem[3], &buf[3], 1);
    put_desc(q, 4, (TestDesc) { NOWHERE, 1 });
    test_queue_fail(q, VRING_ERR_ADDRESS);
    before = driver_contents(&q->drv);
    vring_push(&q->vring, &elem[0], &buf[0], 1);
    vring_push(&q->vring, &elem[2], &buf[2], 1);
    vring_detach(&q->vring, &elem[1], &buf[1]);
    g_assert_cmpuint(vring_publish(&q->vring), ==, 0);
    after = driver_contents(&q->drv);
    g_assert_true(g_bytes_equal(before, after));
    g_assert_false(driver_has_used(&q->drv));
    g_assert_cmpuint(q->vring.inuse, ==, 0);
}

/* The driver writes over what the device keeps there; covers: SPLIT-18, G6 */
static void test_packed_scribbles(TestQueue *q)
{
    for (unsigned i = 0; i < 20; i++) {
        VirtQueueElement elem;

        test_queue_run(q, i);
        driver_offer_buffer(&q->drv, 50 + i, DATA_BASE, 16, true);
        test_queue_pop(q, &elem);
        /* Whatever stands there: the device knows what it has taken */
        memset(q->drv.desc + 16 * (q->drv.used_pos % 5), 0, 14);
        memset(q->drv.used, 0xff, 4);
        test_queue_use(q, &elem, 16);
    }
}

/* Where the areas lie */

typedef struct AreaCase {
    const char *path;
    hwaddr desc, avail, used;   /* 0: where they belong */
    bool packed;
} AreaCase;

/* The sizes are those of 8 entries with EVENT_IDX: 128, 22, 70 */
static const AreaCase area_cases[] = {
    /* covers: ROBS-21 */
    { "/vring/hostile/area/desc-unaligned", .desc = DATA_BASE + 8 },
    { "/vring/hostile/area/avail-unaligned", .avail = DATA_BASE + 1 },
    { "/vring/hostile/area/used-unaligned", .used = DATA_BASE + 2 },
    /* covers: ROBS-22, G11 */
    { "/vring/hostile/area/desc-nowhere", .desc = NOWHERE },
    { "/vring/hostile/area/avail-nowhere", .avail = NOWHERE },
    { "/vring/hostile/area/used-nowhere", .used = NOWHERE },
    { "/vring/hostile/area/used-in-rom", .used = ROM_BASE },
    { "/vring/hostile/area/desc-over-the-edge", .desc = DATA_END - 112 },
    { "/vring/hostile/area/avail-over-the-edge", .avail = DATA_END - 20 },
    { "/vring/hostile/area/used-over-the-edge", .used = DATA_END - 68 },
    { "/vring/hostile/area/desc-wraps", .desc = UINT64_MAX - 15 },
    { "/vring/hostile/area/avail-wraps", .avail = UINT64_MAX - 1 },
    { "/vring/hostile/area/used-wraps", .used = UINT64_MAX - 3 },

    /* covers: ROBP-17, G11; 128 bytes, 4, and 4 */
    { "/vring/hostile/area/packed/ring-unaligned", .desc = DATA_BASE + 8,
      .packed = true },
    { "/vring/hostile/area/packed/driver-unaligned", .avail = DATA_BASE + 2,
      .packed = true },
    { "/vring/hostile/area/packed/device-unaligned", .used = DATA_BASE + 2,
      .packed = true },
    { "/vring/hostile/area/packed/ring-nowhere", .desc = NOWHERE,
      .packed = true },
    { "/vring/hostile/area/packed/driver-nowhere", .avail = NOWHERE,
      .packed = true },
    { "/vring/hostile/area/packed/device-nowhere", .used = NOWHERE,
      .packed = true },
    { "/vring/hostile/area/packed/ring-in-rom", .desc = ROM_BASE,
      .packed = true },
    { "/vring/hostile/area/packed/device-in-rom", .used = ROM_BASE,
      .packed = true },
    { "/vring/hostile/area/packed/ring-over-the-edge", .desc = DATA_END - 112,
      .packed = true },
    { "/vring/hostile/area/packed/ring-wraps", .desc = UINT64_MAX - 15,
      .packed = true },
    { "/vring/hostile/area/packed/driver-over-the-edge",
      .avail = SHORT_BASE + 0xffc, .packed = true },
    { "/vring/hostile/area/packed/device-over-the-edge",
      .used = SHORT_BASE + 0xffc, .packed = true },
};

static void test_area(const void *opaque)
{
    const AreaCase *c = opaque;
    const TestMode mode = { .packed = c->packed, .event_idx = true };
    VringConfig config = test_config(&mode, QUEUE_SIZE);
    Error *err = NULL;
    Vring vring;
    TestQueue q;

    hostile_queue_init(&q, &config);
    config.desc = c->desc ?: config.desc;
    config.avail = c->avail ?: config.avail;
    config.used = c->used ?: config.used;
    g_assert_false(vring_open(&vring, &config, q.mem, &err));
    g_assert_cmpuint(strlen(error_get_pretty(err)), >, 0);
    error_free_or_abort(&err);
    test_queue_cleanup(&q);
}

/* covers: ROBS-22, SPLIT-1, PACK-1: up to the last byte of a region */
static void test_areas_at_the_edge(void)
{
    static const AreaCase edges[] = {
        { "desc", .desc = DATA_END - 128 },
        { "avail", .avail = DATA_END - 22 },
        { "used", .used = DATA_END - 72 },
        { "packed ring", .desc = DATA_END - 128, .packed = true },
        { "driver area", .avail = DATA_END - 4, .packed = true },
        { "device area", .used = DATA_END - 4, .packed = true },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(edges); i++) {
        const TestMode mode = { .packed = edges[i].packed, .event_idx = true };
        VringConfig config = test_config(&mode, QUEUE_SIZE);
        TestQueue q;

        g_test_message("%s", edges[i].path);
        test_queue_init(&q, &config);
        config.desc = edges[i].desc ?: config.desc;
        config.avail = edges[i].avail ?: config.avail;
        config.used = edges[i].used ?: config.used;
        test_queue_reopen(&q, &config);
        for (unsigned j = 0; j < 2 * QUEUE_SIZE; j++) {
            vring_enable_notification(&q.vring);
            test_queue_run(&q, j % QUEUE_SIZE);
            vring_should_notify(&q.vring);
        }
        test_queue_cleanup(&q);
    }
}

/* A driver that rewrites what the device is reading */

#define RACE_ROUNDS 100000
#define RACE_TRIES 20           /* times so many until an outcome is missing */

typedef struct Racer {
    TestQueue *q;
    bool stop;                  /* atomic */
    unsigned rounds;
    unsigned served;
    unsigned others;            /* refused, or nothing was available */
} Racer;

/*
 * A race shows nothing unless either side won at times.  A side that is slow
 * to get a CPU gets more rounds, but not without end.
 */
static bool race_goes_on(Racer *racer, unsigned rounds)
{
    unsigned most = racer->served && racer->others ? rounds
                                                   : rounds * RACE_TRIES;

    return racer->rounds++ < most;
}

static void race_end(Racer *racer, pthread_t thread)
{
    qatomic_set(&racer->stop, true);
    g_assert(!pthread_join(thread, NULL));
    g_test_message("%u served, %u not", racer->served, racer->others);
    g_assert_cmpuint(racer->served, >, 0);
    g_assert_cmpuint(racer->others, >, 0);
}

/*
 * Pops while @writer rewrites the ring in another thread, and opens the Vring
 * anew each time, as an error breaks it.  @took gets what was popped.
 */
static void race(TestQueue *q, void *(*writer)(void *),
                 void (*took)(TestQueue *q, VirtQueueElement *elem))
{
    VringConfig config = q->drv.config;
    Racer racer = { .q = q };
    VirtQueueElement elem;
    pthread_t thread;

    g_assert(!pthread_create(&thread, NULL, writer, &racer));
    while (race_goes_on(&racer, RACE_ROUNDS)) {
        int ret = vring_pop(&q->vring, &elem, &q->buf);

        if (ret > 0) {
            took(q, &elem);
            racer.served++;
        } else {
            racer.others += ret < 0;
        }
        vring_should_notify(&q->vring);
        vring_enable_notification(&q->vring);
        vring_close(&q->vring);
        vring_open(&q->vring, &config, q->mem, &error_abort);
    }
    race_end(&racer, thread);
}

static const TestDesc race_good[] = {
    { DATA_BASE, 16, NEXT, 1 },
    { DATA_BASE + 64, 64, WRITE, 0 },
    { TABLE_BASE, 32, INDIRECT, 0 },
};

static const TestDesc race_bad[] = {
    { NOWHERE, 0x7fffffff, WRITE | NEXT, 9999 },
    { DATA_BASE + DATA_SIZE - 8, 0xfffffff0, NEXT, 7777 },
    { NOWHERE, 0xfffffff0, INDIRECT | WRITE, 8888 },
};

/* Writes half of a descriptor, as it passes the checks or as it does not */
static void race_write_half(TestDriver *drv, uint8_t *table, unsigned i,
                            unsigned half, bool good)
{
    uint64_t word[2];

    driver_set_table(drv, (uint8_t *)word, good ? &race_good[i] : &race_bad[i],
                     1);
    qatomic_set((uint64_t *)table + 2 * i + half, word[half]);
}

#define RACE_PLACES 12

static void race_write(TestQueue *q, unsigned place, bool good)
{
    TestDriver *drv = &q->drv;

    if (place < 6) {
        race_write_half(drv, drv->desc, place / 2, place % 2, good);
    } else if (place < 10) {
        race_write_half(drv, test_memory_host(q->mem, TABLE_BASE),
                        place / 2 - 3, place % 2, good);
    } else if (place < 11) {
        qatomic_set((uint16_t *)drv->avail + 2,
                    driver_cpu16(drv, good ? 2 : QUEUE_SIZE));
    } else {
        driver_set_avail_idx(drv, good ? 1 : 0x7000);
    }
}

/*
 * One place after the other goes back and forth between good and bad, while
 * the rest is good, so that each check is raced against often.
 */
static void *race_writer(void *opaque)
{
    Racer *racer = opaque;

    for (unsigned n = 0; !qatomic_read(&racer->stop); n++) {
        race_write(racer->q, n / 64 % RACE_PLACES, n % 2);
        if (n % (64 * RACE_PLACES) == 0) {
            /* The direct chain and the table by turns */
            qatomic_set((uint16_t *)racer->q->drv.avail + 2,
                        driver_cpu16(&racer->q->drv,
                                     n / (64 * RACE_PLACES) % 2 ? 2 : 0));
        }
    }
    return NULL;
}

/* What was popped must be within the one region, whatever was written since */
static void check_raced_element(TestQueue *q, const VirtQueueElement *elem)
{
    unsigned n = elem->out_num + elem->in_num;

    g_assert_cmpuint(n, <=, VIRTQUEUE_MAX_SIZE);
    for (unsigned i = 0; i < n; i++) {
        uint64_t offset = elem->out_addr[i] - DATA_BASE;

        g_assert_cmpuint(offset, <, DATA_SIZE);
        g_assert_cmpuint(elem->out_sg[i].iov_len, <=, DATA_SIZE - offset);
        g_assert(elem->out_sg[i].iov_base == q->data + offset);
    }
}

static void took_split(TestQueue *q, VirtQueueElement *elem)
{
    g_assert_cmpuint(elem->index, <, QUEUE_SIZE);
    check_raced_element(q, elem);
    vring_push(&q->vring, elem, &q->buf, 0);
    vring_publish(&q->vring);
}

/* covers: ROBS-23, G10 */
static void test_racing_writer(TestQueue *q)
{
    for (unsigned i = 0; i < RACE_PLACES; i++) {
        race_write(q, i, true);
    }
    race(q, race_writer, took_split);
}

/*
 * The same for a packed ring: a list of two, or a table, at its beginning.  A
 * length, an id and flags are written together, as drivers do.
 */
static const TestDesc packed_race_good[] = {
    { DATA_BASE, 16, NEXT | AVAIL, 5 },
    { DATA_BASE + 64, 64, WRITE | AVAIL, 6 },
    { TABLE_BASE, 32, INDIRECT | AVAIL, 7 },
};

static const TestDesc packed_race_bad[] = {
    { NOWHERE, 0x7fffffff, WRITE | NEXT | AVAIL, 9999 },
    { DATA_BASE + DATA_SIZE - 8, 0xfffffff0, NEXT | USED, 7777 },
    { NOWHERE, 0xfffffff0, INDIRECT | WRITE | AVAIL, 8888 },
};

/* Where in the ring or the table, and as which descriptor */
static const struct {
    bool table;
    unsigned slot;
    unsigned desc;
} packed_race_places[] = {
    { false, 0, 0 }, { false, 1, 1 }, { false, 0, 2 },
    { true, 0, 0 }, { true, 1, 1 },
};

static void packed_race_write(TestQueue *q, unsigned n)
{
    unsigned i = n / 2 % ARRAY_SIZE(packed_race_places);
    unsigned slot = packed_race_places[i].slot;
    unsigned desc = packed_race_places[i].desc;
    uint8_t *table = packed_race_places[i].table ?
                     test_memory_host(q->mem, TABLE_BASE) : q->drv.desc;
    uint64_t word[2];

    /* Bad and good by turns, most often good in the end */
    driver_set_table(&q->drv, (uint8_t *)word,
                     n % 2 ? &packed_race_good[desc] : &packed_race_bad[desc],
                     1);
    for (unsigned half = 0; half < 2; half++) {
        qatomic_set((uint64_t *)table + 2 * slot + half, word[half]);
    }
}

static void *packed_race_writer(void *opaque)
{
    Racer *racer = opaque;

    for (unsigned n = 0; !qatomic_read(&racer->stop); n++) {
        /* Stays at one place for a while */
        packed_race_write(racer->q, n / 64 * 2 + n % 2);
    }
    return NULL;
}

static void took_packed(TestQueue *q, VirtQueueElement *elem)
{
    check_raced_element(q, elem);
    g_assert_cmpuint(elem->ndescs, <=, QUEUE_SIZE);
    vring_detach(&q->vring, elem, &q->buf);
}

/* covers: ROBP-13, G10 */
static void test_packed_racing_writer(TestQueue *q)
{
    for (unsigned i = 0; i < ARRAY_SIZE(packed_race_places); i++) {
        packed_race_write(q, 2 * i + 1);
    }
    race(q, packed_race_writer, took_packed);
}

#define LAP_RACE_ROUNDS (100 * RACE_ROUNDS)     /* most find nothing */

/*
 * The first descriptor goes back and forth between the beginning of a list of
 * two and a writable one that is not available.
 */
static const TestDesc lap_race[] = {
    { DATA_BASE, 16, NEXT | AVAIL, 5 },
    { DATA_BASE, 16, WRITE | USED, 5 },
    { DATA_BASE + 64, 64, WRITE | AVAIL, 6 },
};

static void *lap_race_writer(void *opaque)
{
    Racer *racer = opaque;
    TestDriver *drv = &racer->q->drv;
    uint64_t word[4];

    driver_set_table(drv, (uint8_t *)word, lap_race, 2);
    for (unsigned n = 0; !qatomic_read(&racer->stop); n++) {
        qatomic_set((uint64_t *)drv->desc + 1, word[n % 2 * 2 + 1]);
    }
    return NULL;
}

/* covers: ROBP-13, G10: what said "available" is what says all the rest */
static void test_packed_racing_lap(TestQueue *q)
{
    VringConfig config = q->drv.config;
    VirtQueueElement elem;
    pthread_t thread;
    Racer racer = { .q = q };

    driver_set_desc(&q->drv, 0, &lap_race[0]);
    driver_set_desc(&q->drv, 1, &lap_race[2]);
    g_assert(!pthread_create(&thread, NULL, lap_race_writer, &racer));
    while (race_goes_on(&racer, LAP_RACE_ROUNDS)) {
        int ret = vring_pop(&q->vring, &elem, &q->buf);

        g_assert_cmpint(ret, >=, 0);
        if (ret) {
            g_assert_cmpuint(elem.ndescs, ==, 2);
            g_assert_cmpuint(elem.index, ==, 6);
            g_assert_cmpuint(elem.out_num, ==, 1);
            g_assert_cmpuint(elem.in_num, ==, 1);
            vring_detach(&q->vring, &elem, &q->buf);
            racer.served++;
            vring_close(&q->vring);
            vring_open(&q->vring, &config, q->mem, &error_abort);
        } else {
            racer.others++;
        }
    }
    race_end(&racer, thread);
}

static void add_function_tests(void)
{
    static const TestRow rows[] = {
        { "long/chain", test_long_chain, 2048 },
        { "length/4-gib-less-1", test_longest_length, QUEUE_SIZE,
          .init = hostile_queue_init },
        { "avail-idx/full-ring", test_avail_idx_full_ring, QUEUE_SIZE,
          .mode = { .event_idx = true } },
        { "avail-idx/back-unnoticed", test_avail_idx_back_unnoticed,
          QUEUE_SIZE },
        { "head/offered-again", test_head_offered_again, QUEUE_SIZE },
        { "push-when-broken", test_push_when_broken, QUEUE_SIZE,
          .mode = { .event_idx = true } },
        { "racing-writer", test_racing_writer, QUEUE_SIZE },
    };

    test_add_rows("/vring/hostile", rows, ARRAY_SIZE(rows));
    g_test_add_func("/vring/hostile/loop/of-any-size", test_long_loop);
    g_test_add_func("/vring/hostile/long/table", test_long_table);
    g_test_add_func("/vring/hostile/long/fault-behind",
                    test_fault_behind_long_chain);
    g_test_add_func("/vring/hostile/table/runs-out-of-its-region",
                    test_table_runs_out);
    g_test_add_func("/vring/hostile/area/at-the-edge",
                    test_areas_at_the_edge);
}

static void add_packed_tests(void)
{
    static const TestRow rows[] = {
        { "packed/push-when-broken", test_packed_push_when_broken, QUEUE_SIZE,
          .mode = { .packed = true }, .init = hostile_queue_init },
        { "packed/scribbles", test_packed_scribbles, 5,
          .mode = { .packed = true }, .init = hostile_queue_init },
        { "packed/racing-writer", test_packed_racing_writer, QUEUE_SIZE,
          .mode = { .packed = true, .event_idx = true } },
        { "packed/racing-lap", test_packed_racing_lap, QUEUE_SIZE,
          .mode = { .packed = true } },
    };

    test_add_rows("/vring/hostile", rows, ARRAY_SIZE(rows));
    g_test_add_func("/vring/hostile/packed/endless-list",
                    test_packed_endless_list);
    g_test_add_func("/vring/hostile/packed/stale-rest",
                    test_packed_stale_rest);
    g_test_add_func("/vring/hostile/packed/queue-full",
                    test_packed_queue_full);
    g_test_add_func("/vring/hostile/packed/same-id", test_packed_same_id);
    g_test_add_func("/vring/hostile/packed/too-long", test_packed_too_long);
    g_test_add_func("/vring/hostile/packed/fault-behind-long-list",
                    test_packed_fault_behind_long_list);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    test_add_cases(chain_cases, test_chain);
    test_add_cases(hint_cases, test_hint);
    test_add_cases(index_cases, test_index);
    test_add_cases(area_cases, test_area);
    add_function_tests();
    add_packed_tests();
    return g_test_run();
}
