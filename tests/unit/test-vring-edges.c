/*
 * Tests of the ring: both sides of each bound
 *
 * Knows where the ring counts something that ends somewhere: buffers in flight
 * and the queue's size, positions and their wrap, vectors of a chain and what a
 * VringVectors and an element have room for, elements that are published
 * together, and elements that outlive their Vring.  Each table has the
 * last value in front of a bound, the bound, and the first one behind it.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "vring-test-driver.h"

/* In flight, against the queue's size */

static const unsigned sizes[] = { 1, 2, 3, 4, 8, 16, 32, 64, 128, 255, 256,
                                  512, 1000, 1023, 1024 };

static bool is_size(const TestMode *mode, unsigned num)
{
    return mode->packed || (num & (num - 1)) == 0;
}

/* What is in flight */
typedef struct Flight {
    TestQueue q;
    unsigned num;
    VirtQueueElement *elem;
    VringVectors *buf;
} Flight;

static void flight_init(Flight *f, const TestMode *mode, unsigned num)
{
    VringConfig config = test_config(mode, num);

    test_queue_init(&f->q, &config);
    f->num = num;
    f->elem = g_new0(VirtQueueElement, num);
    f->buf = g_new0(VringVectors, num);
    for (unsigned i = 0; i < num; i++) {
        vring_vectors_init(&f->buf[i]);
    }
}

static void flight_cleanup(Flight *f)
{
    test_queue_cleanup(&f->q);
    g_free(f->elem);
    g_free(f->buf);
}

static void offer(Flight *f, unsigned i)
{
    const TestDesc desc = { DATA_BASE + 16 * i, 16, WRITE };

    driver_add_chain(&f->q.drv, i, &desc, 1);
}

/* A look at the ring, of a kick or of the poller, that finds nothing */
static void look_in_vain(Flight *f, unsigned depth)
{
    VirtQueueElement elem;

    for (unsigned i = 0; i < 2; i++) {
        vring_disable_notification(&f->q.vring);
        g_assert_cmpint(vring_pop(&f->q.vring, &elem, &f->q.buf), ==, 0);
        g_assert(f->q.buf.ram_ref == NULL);
        if (depth == f->num) {
            /* A caller that has room for so many has no buffer to pop into. */
            g_assert_cmpint(vring_pop_full(&f->q.vring), ==, 0);
        }
        g_assert_false(vring_more_avail(&f->q.vring));
        g_assert_false(vring_enable_notification(&f->q.vring));
        g_assert_cmpuint(f->q.vring.inuse, ==, depth);
        g_assert_false(f->q.vring.broken);
    }
}

static void take_off(Flight *f, unsigned depth)
{
    for (unsigned i = 0; i < depth; i++) {
        offer(f, i);
    }
    driver_expose(&f->q.drv);
    for (unsigned i = 0; i < depth; i++) {
        g_assert_true(vring_more_avail(&f->q.vring));
        test_queue_pop_buf(&f->q, &f->elem[i], &f->buf[i]);
        g_assert_cmpuint(f->elem[i].index, ==, i);
    }
}

/* The entries that were used, and no others, wherever the ring wraps */
static void check_dirty_entries(Flight *f, unsigned depth)
{
    const VringConfig *config = &f->q.drv.config;
    bool packed = config->packed;

    g_assert_cmpuint(test_memory_dirty(f->q.mem,
                                       packed ? config->desc : config->used + 4,
                                       (packed ? 16 : 8) * f->num), ==,
                     (packed ? 16 : 8) * depth);
}

/* Uses all of it, the last one first, and publishes every @batch elements */
static void land(Flight *f, unsigned depth, unsigned batch)
{
    Vring *vring = &f->q.vring;
    uint32_t id, len;

    driver_ask_irq(&f->q.drv);
    test_memory_clean(f->q.mem);
    for (unsigned n = 1; n <= depth; n++) {
        bool last = n % batch == 0 || n == depth;

        vring_push(vring, &f->elem[depth - n], &f->buf[depth - n], n);
        g_assert_cmpuint(vring_unpublished(vring), ==,
                         n % batch ? n % batch : batch);
        if (last) {
            g_assert_cmpuint(vring_publish(vring), ==,
                             n % batch ? n % batch : batch);
        }
    }
    g_assert_cmpuint(vring_publish(vring), ==, 0);
    check_dirty_entries(f, depth);
    if (depth) {
        g_assert_true(vring_should_notify(vring));
    }
    for (unsigned n = 1; n <= depth; n++) {
        test_queue_take(&f->q, depth - n, n);
    }
    g_assert_false(driver_take(&f->q.drv, &id, &len));
    g_assert_cmpuint(vring->inuse, ==, 0);
}

/*
 * covers: E1, SPLIT-2, PACK-2: none, one, all but one, all, and one look more
 * at each of them
 */
static void test_depths(const TestMode *mode)
{
    for (unsigned s = 0; s < ARRAY_SIZE(sizes); s++) {
        const unsigned num = sizes[s];
        const unsigned depths[] = { 0, 1, num - 1, num };
        Flight f;

        if (!is_size(mode, num)) {
            continue;
        }
        flight_init(&f, mode, num);
        for (unsigned d = 0; d < ARRAY_SIZE(depths); d++) {
            look_in_vain(&f, 0);
            take_off(&f, depths[d]);
            look_in_vain(&f, depths[d]);
            land(&f, depths[d], num);
        }
        flight_cleanup(&f);
    }
}

/* One more than all is the driver's mistake, and what is in flight is kept. */
static void offer_one_too_many(Flight *f)
{
    TestDriver *drv = &f->q.drv;

    if (drv->config.packed) {
        const TestDesc desc = {
            DATA_BASE, 16, WRITE | driver_lap_flags(drv, drv->avail_pos), 0
        };

        driver_set_desc(drv, drv->avail_pos % f->num, &desc);
    } else {
        driver_offer(drv, 0);
    }
}

/* covers: ROBS-7, G9, E1: one more buffer, where one more look was right */
static void test_one_too_many(const TestMode *mode)
{
    for (unsigned s = 0; s < 2 * ARRAY_SIZE(sizes); s++) {
        unsigned num = sizes[s / 2];
        Flight f;

        if (!is_size(mode, num)) {
            continue;
        }
        flight_init(&f, mode, num);
        take_off(&f, f.num);
        offer_one_too_many(&f);
        if (s % 2) {
            test_queue_fail(&f.q, VRING_ERR_QUEUE_FULL);
        } else {
            g_assert_cmpint(vring_pop_full(&f.q.vring), ==,
                            -VRING_ERR_QUEUE_FULL);
            g_assert_false(vring_more_avail(&f.q.vring));
        }
        for (unsigned i = 0; i < f.num; i++) {
            vring_detach(&f.q.vring, &f.elem[i], &f.buf[i]);
        }
        g_assert_cmpuint(f.q.vring.inuse, ==, 0);
        flight_cleanup(&f);
    }
}

/* Positions */

#define WRAP_STARTS 6

static void wrap_starts(const TestMode *mode, unsigned num, uint16_t *start)
{
    if (mode->packed) {
        const uint16_t of_packed[WRAP_STARTS] = {
            0, num - 1, num, (num + 1) % (2 * num), 2 * num - 2, 2 * num - 1
        };

        memcpy(start, of_packed, sizeof(of_packed));
    } else {
        const uint16_t of_split[WRAP_STARTS] = {
            0, 32767, 65535 - num, 65536 - num, 65534, 65535
        };

        memcpy(start, of_split, sizeof(of_split));
    }
}

/*
 * covers: SPLIT-4, SPLIT-13, SPLIT-17, PACK-4, PACK-20: what is in flight lies
 * in front of the wrap, ends at it, lies across it, and begins behind it
 */
static void test_wraps(const TestMode *mode)
{
    static const unsigned nums[] = { 2, 8, 256, 1024 };

    for (unsigned s = 0; s < ARRAY_SIZE(nums); s++) {
        const unsigned num = nums[s];
        const unsigned depths[] = { 1, num - 1, num };
        uint16_t start[WRAP_STARTS];

        wrap_starts(mode, num, start);
        for (unsigned i = 0; i < WRAP_STARTS * ARRAY_SIZE(depths); i++) {
            unsigned depth = depths[i / WRAP_STARTS];
            Flight f;

            flight_init(&f, mode, num);
            test_queue_start_at(&f.q, start[i % WRAP_STARTS]);
            /* Twice, as the second begins where the first ends */
            for (unsigned j = 0; j < 2; j++) {
                take_off(&f, depth);
                look_in_vain(&f, depth);
                land(&f, depth, depth);
            }
            flight_cleanup(&f);
        }
    }
}

/* Batches */

/*
 * covers: SPLIT-14, SPLIT-17, PACK-12: the plane publishes every 8; less than
 * one batch, one, more than one, and several
 */
static void test_batches(const TestMode *mode)
{
    static const unsigned batches[] = { 1, 2, 7, 8, 9, 31, 32 };
    static const unsigned depths[] = { 1, 7, 8, 9, 15, 16, 17, 31, 32 };
    Flight f;

    flight_init(&f, mode, 32);
    for (unsigned b = 0; b < ARRAY_SIZE(batches); b++) {
        for (unsigned d = 0; d < ARRAY_SIZE(depths); d++) {
            take_off(&f, depths[d]);
            land(&f, depths[d], batches[b]);
        }
    }
    flight_cleanup(&f);
}

/* Vectors */

typedef struct VectorCase {
    unsigned vectors;
    VringError error;
} VectorCase;

/*
 * VRING_INLINE_VECTORS and its doubles, what virtio-blk offers at a queue of
 * 128 and of 256 (seg_max, header, status), and what an element holds
 */
static const VectorCase vector_cases[] = {
    { 1 }, { 2 },
    { VRING_INLINE_VECTORS - 1 }, { VRING_INLINE_VECTORS },
    { VRING_INLINE_VECTORS + 1 },
    { 2 * VRING_INLINE_VECTORS }, { 2 * VRING_INLINE_VECTORS + 1 },
    { 4 * VRING_INLINE_VECTORS }, { 4 * VRING_INLINE_VECTORS + 1 },
    { 127 }, { 128 }, { 129 }, { 255 }, { 256 }, { 257 },
    { VIRTQUEUE_MAX_SIZE - 1 }, { VIRTQUEUE_MAX_SIZE },
    { VIRTQUEUE_MAX_SIZE + 1, VRING_ERR_TOO_LONG },
    { VIRTQUEUE_MAX_SIZE + 2, VRING_ERR_TOO_LONG },
};

static TestDesc *make_vectors(unsigned n)
{
    TestDesc *desc = g_new0(TestDesc, n);

    for (unsigned i = 0; i < n; i++) {
        desc[i] = (TestDesc) {
            DATA_BASE + 8 * i, 8,
            (i < n / 2 ? 0 : WRITE) | (i < n - 1 ? NEXT : 0), i + 1
        };
    }
    return desc;
}

static void run_vectors(TestQueue *q, const VectorCase *c, bool indirect)
{
    g_autofree TestDesc *desc = make_vectors(c->vectors);
    const TestDesc table = { TABLE_BASE, 16 * c->vectors, INDIRECT };
    VirtQueueElement elem;

    if (indirect) {
        driver_set_table(&q->drv, test_memory_host(q->mem, TABLE_BASE), desc,
                         c->vectors);
        driver_offer_chain(&q->drv, 0, &table, 1);
    } else {
        driver_offer_chain(&q->drv, 0, desc, c->vectors);
    }
    if (c->error) {
        test_queue_fail(q, c->error);
        return;
    }
    test_queue_pop(q, &elem);
    test_check_vectors(q, &elem, desc, c->vectors);
    g_assert_cmpuint(q->buf.capacity, >=, c->vectors);
    g_assert_cmpint(q->buf.iov == q->buf.inline_iov, ==,
                    c->vectors <= VRING_INLINE_VECTORS);
    test_queue_use(q, &elem, 1);
    vring_vectors_release(&q->buf);
    g_assert(q->buf.iov == q->buf.inline_iov);
}

/* covers: PACK-30, PACK-34, SPLIT-11: a table may be longer than the queue */
static void test_tables(const TestMode *mode)
{
    static const unsigned nums[] = { 1, 8, 256, 1024 };

    for (unsigned s = 0; s < ARRAY_SIZE(nums); s++) {
        for (unsigned i = 0; i < ARRAY_SIZE(vector_cases); i++) {
            VringConfig config = test_config(mode, nums[s]);
            TestQueue q;

            test_queue_init(&q, &config);
            run_vectors(&q, &vector_cases[i], true);
            test_queue_cleanup(&q);
        }
    }
}

/* covers: SPLIT-8, PACK-22: a chain of all descriptors, and less */
static void test_chains(const TestMode *mode)
{
    for (unsigned num = 2; num <= 2048; num *= 2) {
        for (unsigned i = 0; i < ARRAY_SIZE(vector_cases); i++) {
            VringConfig config = test_config(mode, num);
            TestQueue q;

            if (vector_cases[i].vectors > num) {
                break;
            }
            test_queue_init(&q, &config);
            run_vectors(&q, &vector_cases[i], false);
            test_queue_cleanup(&q);
        }
        if (num <= VIRTQUEUE_MAX_SIZE) {
            VringConfig config = test_config(mode, num);
            const VectorCase all = { num };
            TestQueue q;

            test_queue_init(&q, &config);
            run_vectors(&q, &all, false);
            run_vectors(&q, &all, false);
            test_queue_cleanup(&q);
        }
    }
}

/* Elements that stay behind */

/* A Vring for the same ring with the same positions, as stop and start make */
static void hand_over(TestQueue *q)
{
    Vring old = q->vring;

    vring_close(&q->vring);
    vring_open(&q->vring, &q->drv.config, q->mem, &error_abort);
    q->vring.last_avail_idx = old.last_avail_idx;
    q->vring.shadow_avail_idx = old.last_avail_idx;
    q->vring.used_idx = old.used_idx;
    q->vring.avail_wrap = old.avail_wrap;
    q->vring.used_wrap = old.used_wrap;
    q->vring.inuse = old.inuse;
}

/*
 * covers: D6, M9: none, one, all but one and all elements outlive a Vring, or
 * several of them; they count as in flight in the next one, which takes no more
 * than there is room for, and uses all of them
 */
static void test_left_behind(const TestMode *mode)
{
    enum { NUM = 8 };
    static const unsigned depths[] = { 0, 1, NUM - 1, NUM };

    for (unsigned i = 0; i < 3 * ARRAY_SIZE(depths); i++) {
        unsigned depth = depths[i / 3], vrings = 1 + i % 3;
        VirtQueueElement elem;
        Flight f;

        flight_init(&f, mode, NUM);
        take_off(&f, depth);
        for (unsigned j = 0; j < depth; j++) {
            vring_pin(&f.q.vring, &f.elem[j], &f.buf[j]);
        }
        for (unsigned j = 0; j < vrings; j++) {
            hand_over(&f.q);
            look_in_vain(&f, depth);
        }
        g_assert_cmpuint(test_memory_mappings(f.q.mem), ==, depth);
        for (unsigned j = depth; j < NUM; j++) {
            offer(&f, j);
            driver_expose(&f.q.drv);
            test_queue_pop_buf(&f.q, &f.elem[j], &f.buf[j]);
        }
        g_assert_cmpint(vring_pop(&f.q.vring, &elem, &f.q.buf), ==, 0);
        land(&f, NUM, NUM);
        g_assert_cmpuint(test_memory_mappings(f.q.mem), ==, 0);
        flight_cleanup(&f);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    test_add_modes("/vring/edges/depths", test_depths, TEST_ALL_MODES);
    test_add_modes("/vring/edges/one-too-many", test_one_too_many,
                   TEST_ALL_MODES);
    test_add_modes("/vring/edges/wraps", test_wraps, TEST_ALL_MODES);
    test_add_modes("/vring/edges/batches", test_batches, TEST_ALL_MODES);
    test_add_modes("/vring/edges/tables", test_tables, TEST_ALL_MODES);
    test_add_modes("/vring/edges/chains", test_chains, TEST_ALL_MODES);
    test_add_modes("/vring/edges/left-behind", test_left_behind,
                   TEST_ALL_MODES);
    return g_test_run();
}
