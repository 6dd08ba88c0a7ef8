/*
 * Tests of a ring whose pages are scattered, as behind an IOMMU
 *
 * Knows how vring-test-memory.h scatters: the driver has its ring in one
 * piece, the device finds each page elsewhere, so that an access beyond the
 * end of a page misses.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "vring-test-driver.h"

#define QUEUE_SIZE  1024
#define RING_PAGES  12
#define LAPS        3

/*
 * The descriptors begin within a page and end in another, and so do the areas
 * behind them, one right after the other.  In the used ring there is an element
 * with its id in one page and its length in the next.
 */
static VringConfig pages_config(const TestMode *mode)
{
    VringConfig config = test_config(mode, QUEUE_SIZE);

    config.desc = RING_BASE + TEST_PAGE - 5 * 16;
    config.avail = QEMU_ALIGN_UP(config.desc + driver_desc_size(QUEUE_SIZE),
                                 4);
    config.used = QEMU_ALIGN_UP(config.avail + driver_avail_size(&config), 8);
    g_assert_cmpuint(config.used + driver_used_size(&config), <=,
                     RING_BASE + RING_PAGES * TEST_PAGE);
    return config;
}

static void pages_init(TestQueue *q, const VringConfig *config)
{
    q->mem = test_memory_new();
    test_memory_add(q->mem, RING_BASE, RING_PAGES * TEST_PAGE,
                    TEST_SCATTERED);
    q->data = test_memory_add(q->mem, DATA_BASE, DATA_SIZE, TEST_RAM);
    test_memory_commit(q->mem);
    driver_init(&q->drv, q->mem, config);
    vring_open(&q->vring, config, q->mem, &error_abort);
    vring_vectors_init(&q->buf);
}

/* covers: PLAT-3 */
static void test_laps(const TestMode *mode)
{
    VringConfig config = pages_config(mode);
    TestQueue q;

    pages_init(&q, &config);
    for (unsigned i = 0; i < LAPS * QUEUE_SIZE; i++) {
        vring_disable_notification(&q.vring);
        test_queue_run(&q, i % QUEUE_SIZE);
        g_assert_false(vring_enable_notification(&q.vring));
    }
    test_queue_cleanup(&q);
}

/* A whole ring in flight, and published at once */
static void test_full_ring(const TestMode *mode)
{
    g_autofree VirtQueueElement *elem = g_new0(VirtQueueElement, QUEUE_SIZE);
    g_autofree VringVectors *buf = g_new0(VringVectors, QUEUE_SIZE);
    VringConfig config = pages_config(mode);
    TestQueue q;

    pages_init(&q, &config);
    for (unsigned lap = 0; lap < LAPS; lap++) {
        uint32_t id, len;

        for (unsigned i = 0; i < QUEUE_SIZE; i++) {
            driver_offer_buffer(&q.drv, i, DATA_BASE, 16, true);
        }
        for (unsigned i = 0; i < QUEUE_SIZE; i++) {
            vring_vectors_init(&buf[i]);
            test_queue_pop_buf(&q, &elem[i], &buf[i]);
            g_assert_cmpuint(elem[i].index, ==, i);
        }
        g_assert_cmpint(vring_pop(&q.vring, &elem[0], &q.buf), ==, 0);
        for (unsigned i = 0; i < QUEUE_SIZE; i++) {
            vring_push(&q.vring, &elem[i], &buf[i], i);
        }
        g_assert_false(driver_has_used(&q.drv));
        g_assert_cmpuint(vring_publish(&q.vring), ==, QUEUE_SIZE);
        for (unsigned i = 0; i < QUEUE_SIZE; i++) {
            test_queue_take(&q, i, i);
        }
        g_assert_false(driver_take(&q.drv, &id, &len));
    }
    test_queue_cleanup(&q);
}

/* Kicks and interrupts are asked for in fields that lie in pages, too */
static void test_wishes(const TestMode *mode)
{
    VringConfig config = pages_config(mode);
    VirtQueueElement elem;
    TestQueue q;

    pages_init(&q, &config);
    for (unsigned i = 0; i < LAPS * QUEUE_SIZE; i++) {
        bool wanted = i % 3;

        g_assert_false(vring_enable_notification(&q.vring));
        if (wanted) {
            g_assert_false(driver_ask_irq(&q.drv));
        } else {
            driver_refuse_irq(&q.drv);
        }
        driver_offer_buffer(&q.drv, i % QUEUE_SIZE, DATA_BASE, 16, true);
        g_assert_true(driver_must_kick(&q.drv));
        test_queue_pop(&q, &elem);
        vring_push(&q.vring, &elem, &q.buf, 0);
        g_assert_cmpuint(vring_publish(&q.vring), ==, 1);
        /* The first check may be a false alarm; see signalled_used_valid */
        if (i) {
            g_assert_cmpint(vring_should_notify(&q.vring), ==, wanted);
        } else {
            vring_should_notify(&q.vring);
        }
        g_assert_true(driver_has_used(&q.drv));
        driver_take(&q.drv, &(uint32_t) { 0 }, &(uint32_t) { 0 });
    }
    test_queue_cleanup(&q);
}

/* covers: M9: what is written in each page is marked, and nothing else */
static void test_dirty(const TestMode *mode)
{
    VringConfig config = pages_config(mode);
    hwaddr area = config.packed ? config.desc : config.used;
    uint64_t size = config.packed ? driver_desc_size(QUEUE_SIZE)
                                  : driver_used_size(&config);
    TestQueue q;

    pages_init(&q, &config);
    test_memory_clean(q.mem);
    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        test_queue_run(&q, i);
    }
    /* Split: index and elements, but neither flags nor avail_event */
    g_assert_cmpuint(test_memory_dirty(q.mem, area, size), ==,
                     config.packed ? size : 2 + 8 * QUEUE_SIZE);
    g_assert_cmpuint(test_memory_dirty(q.mem, RING_BASE,
                                       RING_PAGES * TEST_PAGE), ==,
                     config.packed ? size : 2 + 8 * QUEUE_SIZE);
    test_queue_cleanup(&q);
}

/*
 * covers: G11, PLAT-3: an IOMMU has dropped translations; the ring is mapped
 * anew, and found lost if there are none
 */
static void test_mapped_anew(const TestMode *mode)
{
    VringConfig config = pages_config(mode);
    VirtQueueElement elem;
    unsigned mappings;
    TestQueue q;

    pages_init(&q, &config);
    mappings = test_memory_mappings(q.mem);
    g_assert_cmpuint(mappings, >, 3);
    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        test_memory_commit(q.mem);
        vring_refresh_memory(&q.vring);
        g_assert_cmpuint(test_memory_mappings(q.mem), ==, mappings);
        test_queue_run(&q, i);
    }

    test_memory_del(q.mem, RING_BASE);
    test_memory_commit(q.mem);
    vring_refresh_memory(&q.vring);
    g_assert_true(q.vring.lost);
    g_assert_cmpuint(test_memory_mappings(q.mem), ==, 0);
    g_assert_cmpint(vring_pop(&q.vring, &elem, &q.buf), ==,
                    -VRING_ERR_RING_LOST);
    g_assert_false(vring_more_avail(&q.vring));
    test_queue_cleanup(&q);
}

/* covers: ROBS-22: one page is missing, each in turn; nothing stays mapped */
static void test_hole(const TestMode *mode)
{
    for (unsigned hole = 0; hole < RING_PAGES; hole++) {
        VringConfig config = pages_config(mode);
        hwaddr at = RING_BASE + hole * TEST_PAGE;
        hwaddr end = config.used + driver_used_size(&config);
        VringMemory *mem = test_memory_new();
        Error *err = NULL;
        Vring vring;

        for (unsigned i = 0; i < RING_PAGES; i++) {
            if (i != hole) {
                test_memory_add(mem, RING_BASE + i * TEST_PAGE, TEST_PAGE,
                                TEST_SCATTERED);
            }
        }
        test_memory_commit(mem);
        if (at < end) {
            g_assert_false(vring_open(&vring, &config, mem, &err));
            g_assert_true(vring.lost);
            error_free_or_abort(&err);
        } else {
            vring_open(&vring, &config, mem, &error_abort);
            vring_close(&vring);
        }
        g_assert_cmpuint(test_memory_mappings(mem), ==, 0);
        test_memory_free(mem);
    }
}

#define MODE_TEST(name, func) \
    test_add_modes("/vring/pages/" name, func, TEST_ALL_MODES)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    MODE_TEST("laps", test_laps);
    MODE_TEST("full-ring", test_full_ring);
    MODE_TEST("wishes", test_wishes);
    MODE_TEST("dirty", test_dirty);
    MODE_TEST("mapped-anew", test_mapped_anew);
    MODE_TEST("hole", test_hole);
    return g_test_run();
}
