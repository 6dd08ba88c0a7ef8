/*
 * Tests of the ring: the short way of ordinary chains, against the general one
 *
 * Knows how a chain can be laid out so that the ring takes the general way:
 * a split ring in the other byte order, or, in a packed ring, a table with one
 * more descriptor, which is empty and so is left out.  Two queues in the same
 * memory get the same random chains, most of which are ordinary or nearly so,
 * and must not differ in anything that a device or a driver can see.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "vring-test-driver.h"

#define NUM 8
#define ROUNDS 4000
#define SEEDS 3

#define RING_2_BASE (RING_BASE + 0x10000)

/* Behind the data, apart from it in the host; then further kinds of memory */
#define NEXT_BASE (DATA_BASE + DATA_SIZE)
#define IOMMU_BASE (NEXT_BASE + TEST_PAGE)
#define ROM_BASE (IOMMU_BASE + TEST_PAGE)
#define NOWHERE (ROM_BASE + TEST_PAGE)
#define HUGE_BASE 0x100000000ull
#define HUGE_SIZE (5ull << 30)

/* The same chain for both ways */
typedef struct Case {
    TestDesc head;
    TestDesc desc[4];
    bool changed;               /* may be no ordinary chain */
} Case;

typedef struct Ways {
    TestQueue q[2];             /* the short one, the general one */
    VringConfig config[2];
    GRand *rand;
    unsigned good;
    unsigned bad;
} Ways;

static unsigned below(Ways *w, unsigned end)
{
    return g_rand_int_range(w->rand, 0, end);
}

#define PICK(w, array) ((array)[below(w, ARRAY_SIZE(array))])

static void ways_init(Ways *w, bool packed, unsigned seed)
{
    const TestMode mode = { .packed = packed };
    const VringConfig config = test_config(&mode, NUM);
    VringMemory *mem;

    *w = (Ways) {
        .rand = g_rand_new_with_seed(seed),
        .config = { config, config },
    };
    w->config[0].big_endian = !packed && HOST_BIG_ENDIAN;
    w->config[1].big_endian = !packed && !HOST_BIG_ENDIAN;
    w->config[1].desc += RING_2_BASE - RING_BASE;
    w->config[1].avail += RING_2_BASE - RING_BASE;
    w->config[1].used += RING_2_BASE - RING_BASE;

    test_queue_init(&w->q[0], &w->config[0]);
    mem = w->q[0].mem;
    test_memory_add(mem, RING_2_BASE, 2 * TEST_PAGE, TEST_RAM);
    test_memory_add(mem, NEXT_BASE, TEST_PAGE, TEST_RAM);
    test_memory_add(mem, IOMMU_BASE, TEST_PAGE, TEST_TRANSLATED);
    test_memory_add(mem, ROM_BASE, TEST_PAGE, TEST_ROM);
    test_memory_add(mem, HUGE_BASE, HUGE_SIZE, TEST_RAM);
    test_memory_commit(mem);
    vring_refresh_memory(&w->q[0].vring);

    w->q[1].mem = mem;
    driver_init(&w->q[1].drv, mem, &w->config[1]);
    vring_open(&w->q[1].vring, &w->config[1], mem, &error_abort);
    vring_vectors_init(&w->q[1].buf);
}

static void ways_cleanup(Ways *w)
{
    vring_vectors_release(&w->q[1].buf);
    vring_close(&w->q[1].vring);
    driver_cleanup(&w->q[1].drv);
    test_queue_cleanup(&w->q[0]);
    g_rand_free(w->rand);
}

/* Making chains */

static void make_ordinary(Ways *w, Case *c)
{
    static const uint32_t lens[] = { 1, 16, 512, 4096, 65536 };
    bool is_read = below(w, 2);

    *c = (Case) {
        .head = { TABLE_BASE + below(w, 64), 3 * 16, INDIRECT },
        .desc = {
            { DATA_BASE + below(w, 4096), 16, NEXT, 1 },
            { DATA_BASE + below(w, 65536), PICK(w, lens),
              NEXT | (is_read ? WRITE : 0), 2 },
            { DATA_BASE + below(w, 4096), 1, WRITE },
        },
    };
    /* The memory may be in any region of the table. */
    if (below(w, 4) == 0) {
        c->desc[below(w, 2) * 2].addr = NEXT_BASE + below(w, 64);
    }
}

static void change_desc(Ways *w, TestDesc *desc)
{
    static const uint64_t addrs[] = {
        0, RING_BASE - 1, DATA_BASE - 1, NEXT_BASE - 16, NEXT_BASE - 1,
        NEXT_BASE, IOMMU_BASE - 16, IOMMU_BASE - 1, IOMMU_BASE, ROM_BASE,
        NOWHERE - 1, NOWHERE, UINT64_MAX - 15, UINT64_MAX,
    };
    static const uint32_t lens[] = {
        0, 1, 15, 16, 17, 4096, DATA_SIZE, 0x7fffffff, 0x80000000, UINT32_MAX,
    };
    static const uint16_t nexts[] = { 0, 1, 2, 3, 4, UINT16_MAX };

    switch (below(w, 4)) {
    case 0:
        desc->flags = below(w, 8);
        break;
    case 1:
        desc->next = PICK(w, nexts);
        break;
    case 2:
        desc->len = PICK(w, lens);
        break;
    case 3:
        desc->addr = PICK(w, addrs);
        break;
    }
}

/* About as long as a chain may be */
static void make_huge(Ways *w, Case *c)
{
    uint32_t half = 0x80000000 - 16 + below(w, 4);

    c->desc[0].addr = HUGE_BASE + below(w, 64);
    c->desc[0].len = half;
    c->desc[1].addr = HUGE_BASE + below(w, 64);
    c->desc[1].len = half + 26 + below(w, 4);
}

/* Of a packed ring the two ways have tables of their own lengths. */
static void change_head(Ways *w, TestDesc *head, bool packed)
{
    static const uint64_t addrs[] = {
        0, DATA_BASE - 16, NEXT_BASE - 48, NEXT_BASE - 47, NEXT_BASE - 16,
        NEXT_BASE, IOMMU_BASE - 1, IOMMU_BASE, ROM_BASE, NOWHERE, UINT64_MAX,
    };
    static const uint32_t lens[] = { 0, 15, 16, 32, 47, 49, 64, UINT32_MAX };

    switch (below(w, packed ? 2 : 3)) {
    case 0:
        head->flags = INDIRECT | (below(w, 2) ? NEXT : WRITE);
        break;
    case 1:
        head->addr = PICK(w, addrs);
        break;
    case 2:
        head->len = PICK(w, lens);
        break;
    }
}

static void make_case(Ways *w, Case *c)
{
    bool packed = w->config[0].packed;

    make_ordinary(w, c);
    for (unsigned n = below(w, 3); n; n--) {
        c->changed = true;
        if (below(w, 4) == 0) {
            change_head(w, &c->head, packed);
        } else if (below(w, 16) == 0) {
            make_huge(w, c);
        } else {
            change_desc(w, &c->desc[below(w, 3)]);
        }
    }
}

/* Puts the table where the device reads it, as far as there is memory. */
static void offer_case(TestQueue *q, const Case *c, unsigned id)
{
    uint8_t bytes[4 * 16];

    driver_set_table(&q->drv, bytes, c->desc, ARRAY_SIZE(c->desc));
    for (unsigned i = 0; i < sizeof(bytes); i++) {
        uint8_t *host = test_memory_host(q->mem, c->head.addr + i);

        if (host) {
            *host = bytes[i];
        }
    }
    if (q->drv.config.packed) {
        driver_offer_chain(&q->drv, id, &c->head, 1);
    } else {
        driver_set_desc(&q->drv, id, &c->head);
        driver_offer(&q->drv, id);
    }
}

/* Comparing */

static void compare_vectors(const VirtQueueElement *elem, bool in)
{
    for (unsigned i = 0; i < (in ? elem[0].in_num : elem[0].out_num); i++) {
        const struct iovec *iov[2];
        hwaddr addr[2];

        for (unsigned j = 0; j < 2; j++) {
            iov[j] = in ? &elem[j].in_sg[i] : &elem[j].out_sg[i];
            addr[j] = in ? elem[j].in_addr[i] : elem[j].out_addr[i];
        }
        g_assert_cmphex(addr[0], ==, addr[1]);
        g_assert_true(iov[0]->iov_base == iov[1]->iov_base);
        g_assert_cmpuint(iov[0]->iov_len, ==, iov[1]->iov_len);
    }
}

static void compare_elements(const Ways *w, const VirtQueueElement *elem)
{
    g_assert_cmpuint(elem[0].index, ==, elem[1].index);
    g_assert_cmpuint(elem[0].len, ==, elem[1].len);
    g_assert_cmpuint(elem[0].ndescs, ==, elem[1].ndescs);
    g_assert_cmpuint(elem[0].out_num, ==, elem[1].out_num);
    g_assert_cmpuint(elem[0].in_num, ==, elem[1].in_num);
    g_assert_cmpint(elem[0].in_order_filled, ==, elem[1].in_order_filled);
    compare_vectors(elem, false);
    compare_vectors(elem, true);
    g_assert_cmpint(!w->q[0].buf.ram_ref, ==, !w->q[1].buf.ram_ref);
    g_assert_cmpint(w->q[0].buf.mapping, ==, w->q[1].buf.mapping);
}

static void compare_rings(const Vring *a, const Vring *b)
{
    g_assert_cmpint(a->broken, ==, b->broken);
    g_assert_cmpuint(a->inuse, ==, b->inuse);
    g_assert_cmpuint(a->ram_ref->inflight, ==, b->ram_ref->inflight);
    g_assert_cmpuint(a->last_avail_idx, ==, b->last_avail_idx);
    g_assert_cmpint(a->avail_wrap, ==, b->avail_wrap);
}

/*
 * The element goes back, and what it covers is marked as written: to look for
 * that takes long, so it is not done each time.
 */
static void use_elements(Ways *w, const VirtQueueElement *elem, uint32_t len)
{
    bool look = below(w, 32) == 0;
    uint64_t dirty[2] = {};

    for (unsigned i = 0; i < 2; i++) {
        TestQueue *q = &w->q[i];

        if (look) {
            test_memory_clean(q->mem);
        }
        vring_push(&q->vring, &elem[i], &q->buf, len);
        if (look) {
            dirty[i] = test_memory_all_dirty(q->mem);
        }
        g_assert_cmpuint(vring_publish(&q->vring), ==, 1);
        test_queue_take(q, elem[i].index, len);
        vring_vectors_release(&q->buf);
    }
    g_assert_cmpuint(dirty[0], ==, dirty[1]);
    compare_rings(&w->q[0].vring, &w->q[1].vring);
    g_assert_cmpuint(test_memory_mappings(w->q[0].mem), ==, 0);
}

static void run_case(Ways *w, const Case *c, unsigned id)
{
    unsigned mappings[3] = {};
    VirtQueueElement elem[2];
    int ret[2];

    for (unsigned i = 0; i < 2; i++) {
        TestQueue *q = &w->q[i];
        Case mine = *c;

        if (i && w->config[i].packed) {
            mine.head.len += 16;
        }
        offer_case(q, &mine, id);
        ret[i] = vring_pop(&q->vring, &elem[i], &q->buf);
        mappings[i + 1] = test_memory_mappings(q->mem);
    }
    g_assert_cmpint(ret[0], ==, ret[1]);
    g_assert_cmpuint(mappings[2] - mappings[1], ==, mappings[1]);
    compare_rings(&w->q[0].vring, &w->q[1].vring);
    if (ret[0] < 0) {
        g_assert_true(c->changed);
        w->bad++;
        test_queue_reopen(&w->q[0], &w->config[0]);
        test_queue_reopen(&w->q[1], &w->config[1]);
        return;
    }
    compare_elements(w, elem);
    if (!c->changed) {
        test_check_vectors(&w->q[0], &elem[0], c->desc, 3);
        w->good++;
    }
    use_elements(w, elem, below(w, 2) ? 1 : 0);
}

static void test_ways(bool packed)
{
    for (unsigned seed = 1; seed <= SEEDS; seed++) {
        Ways w;

        g_test_message("seed %u", seed);
        ways_init(&w, packed, seed);
        for (unsigned i = 0; i < ROUNDS; i++) {
            Case c;

            make_case(&w, &c);
            run_case(&w, &c, below(&w, NUM));
        }
        /* The random chains were what they are meant to be. */
        g_assert_cmpuint(w.good, >, ROUNDS / 4);
        g_assert_cmpuint(w.bad, >, ROUNDS / 8);
        ways_cleanup(&w);
    }
}

static void test_split(void)
{
    test_ways(false);
}

static void test_packed(void)
{
    test_ways(true);
}

/* An ordinary chain, but not where it may be one, is as good as any other. */
static void test_elsewhere(const TestMode *mode)
{
    static const TestDesc desc[] = {
        { DATA_BASE, 16, NEXT, 1 },
        { DATA_BASE + 4096, 4096, NEXT | WRITE, 2 },
        { DATA_BASE + 64, 1, WRITE },
    };
    const TestDesc head = { TABLE_BASE, sizeof(desc), INDIRECT };
    VringConfig config = test_config(mode, NUM);
    VirtQueueElement elem;
    TestQueue q;

    test_queue_init(&q, &config);
    driver_set_table(&q.drv, q.data + (TABLE_BASE - DATA_BASE), desc, 3);
    for (unsigned i = 0; i < 3 * NUM; i++) {
        uint16_t id = driver_offer_chain(&q.drv, i % NUM, &head, 1);

        test_queue_pop(&q, &elem);
        g_assert_cmpuint(elem.index, ==, id);
        test_check_vectors(&q, &elem, desc, 3);
        test_queue_use(&q, &elem, 4097);
    }
    /* Without the feature it is an error in either format. */
    config.indirect = false;
    test_queue_reopen(&q, &config);
    driver_offer_chain(&q.drv, 0, &head, 1);
    test_queue_fail(&q, VRING_ERR_INDIRECT_FEATURE);
    test_queue_cleanup(&q);
}

/* Behind which the others lie in the table, while it is there */
#define LOW_BASE (RING_BASE / 2)

/* A read, of which the ring writes 4096 bytes here and 1 byte at @status */
static void pop_read(TestQueue *q, VirtQueueElement *elem, hwaddr status)
{
    const TestDesc desc[] = {
        { DATA_BASE, 16, NEXT, 1 },
        { DATA_BASE + 4096, 4096, NEXT | WRITE, 2 },
        { status, 1, WRITE },
    };
    const TestDesc head = { TABLE_BASE, sizeof(desc), INDIRECT };

    driver_set_table(&q->drv, q->data + (TABLE_BASE - DATA_BASE), desc, 3);
    driver_offer_chain(&q->drv, 0, &head, 1);
    test_queue_pop(q, elem);
}

static void set_logging(TestQueue *q, bool data, bool next)
{
    test_memory_set_logging(q->mem, RING_BASE, false);
    test_memory_set_logging(q->mem, DATA_BASE, data);
    test_memory_set_logging(q->mem, NEXT_BASE, next);
}

/*
 * covers: M9: a log that begins when the element has been popped misses
 * nothing, in one region or in two, of which one may be logged, in the current
 * table or in an old one, in which the regions have other places
 */
static void test_logged(const TestMode *mode)
{
    const VringConfig config = test_config(mode, NUM);

    for (unsigned i = 0; i < 32; i++) {
        bool elsewhere = i & 1, change = i & 2, before = i & 4;
        bool data = i & 8, next = i & 16;
        unsigned dirty = (data ? 4096 : 0) + (elsewhere ? next : data);
        VirtQueueElement elem;
        TestQueue q;

        test_queue_init(&q, &config);
        test_memory_add(q.mem, LOW_BASE, TEST_PAGE, TEST_RAM);
        test_memory_add(q.mem, NEXT_BASE, TEST_PAGE, TEST_RAM);
        test_memory_commit(q.mem);
        vring_refresh_memory(&q.vring);

        set_logging(&q, before, before);
        pop_read(&q, &elem, elsewhere ? NEXT_BASE : DATA_BASE + 64);
        if (change) {
            test_memory_del(q.mem, LOW_BASE);
            test_memory_commit(q.mem);
            vring_refresh_memory(&q.vring);
        }
        set_logging(&q, data, next);
        vring_push(&q.vring, &elem, &q.buf, 4097);
        g_assert_cmpuint(test_memory_all_dirty(q.mem), ==, dirty);
        g_assert_cmpuint(vring_publish(&q.vring), ==, 1);
        test_queue_cleanup(&q);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/vring/ordinary/split", test_split);
    g_test_add_func("/vring/ordinary/packed", test_packed);
    test_add_modes("/vring/ordinary/elsewhere", test_elsewhere,
                   TEST_ALL_MODES);
    test_add_modes("/vring/ordinary/logged", test_logged, TEST_ALL_MODES);
    return g_test_run();
}
