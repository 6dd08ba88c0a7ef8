/*
 * Tests of the split ring: who is notified when
 *
 * Knows VIRTIO 1.3, 2.7.7 and 2.7.10: used buffer notifications, which the
 * driver suppresses, and available buffer notifications, which the device
 * suppresses; what a packed ring has in place of them is in
 * test-vring-packed-notify.c.  What happens when both sides act at once is in
 * test-vring-stress.c.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "vring-test-driver.h"

#define QUEUE_SIZE 8

/* Used buffer notifications */

#define CASE_STEPS 4

typedef struct UsedStep {
    unsigned batch;             /* elements published together; 0: the end */
    bool notify;                /* what the device should answer */
} UsedStep;

typedef struct UsedCase {
    const char *path;
    bool event_idx;
    bool notify_on_empty;
    uint16_t start;             /* of all indexes */
    uint16_t flags;             /* of the available ring */
    uint16_t used_event;
    unsigned more;              /* buffers available besides the batch */
    UsedStep step[CASE_STEPS];
} UsedCase;

#define ALWAYS { { 1, true }, { 1, true }, { 5, true } }
#define NEVER { { 1, false }, { 1, false }, { 5, false } }

static const UsedCase used_cases[] = {
    {
        /* covers: SPLIT-31 */
        .path = "/vring/notify/used/flags-0",
        .step = ALWAYS,
    }, {
        /* covers: SPLIT-32 */
        .path = "/vring/notify/used/flags-1",
        .flags = 1,
        .step = NEVER,
    }, {
        /* covers: SPLIT-30 */
        .path = "/vring/notify/used/used-event-is-not-for-flags-0",
        .used_event = 0x4000,
        .step = ALWAYS,
    }, {
        /* covers: SPLIT-30 */
        .path = "/vring/notify/used/used-event-is-not-for-flags-1",
        .flags = 1,
        .used_event = 1,
        .step = NEVER,
    }, {
        /* covers: ROBS-25 */
        .path = "/vring/notify/used/unknown-flags-without-bit-0",
        .flags = 0xfffe,
        .step = ALWAYS,
    }, {
        /* covers: ROBS-25 */
        .path = "/vring/notify/used/unknown-flags-with-bit-0",
        .flags = 0xffff,
        .step = NEVER,
    }, {
        /* covers: SPLIT-33 */
        .path = "/vring/notify/used/flags-1-is-not-for-event-idx",
        .event_idx = true,
        .flags = 1,
        .used_event = 1,
        .step = { { 1, false }, { 1, true }, { 1, false } },
    }, {
        /* covers: SPLIT-33, ROBS-25 */
        .path = "/vring/notify/used/unknown-flags-with-event-idx",
        .event_idx = true,
        .flags = 0xffff,
        .used_event = 0,
        .step = { { 1, true }, { 1, false } },
    }, {
        /* covers: SPLIT-34, SPLIT-36 */
        .path = "/vring/notify/used/event-idx-single",
        .event_idx = true,
        .start = 100,
        .used_event = 102,
        .step = { { 1, false }, { 1, false }, { 1, true }, { 1, false } },
    }, {
        /* covers: SPLIT-35 */
        .path = "/vring/notify/used/event-idx-first-of-batch",
        .event_idx = true,
        .start = 100,
        .used_event = 100,
        .step = { { 4, true }, { 4, false } },
    }, {
        /* covers: SPLIT-35 */
        .path = "/vring/notify/used/event-idx-within-batch",
        .event_idx = true,
        .start = 100,
        .used_event = 102,
        .step = { { 4, true }, { 4, false } },
    }, {
        /* covers: SPLIT-35 */
        .path = "/vring/notify/used/event-idx-last-of-batch",
        .event_idx = true,
        .start = 100,
        .used_event = 103,
        .step = { { 4, true }, { 4, false } },
    }, {
        /* covers: SPLIT-35, SPLIT-36 */
        .path = "/vring/notify/used/event-idx-behind-batch",
        .event_idx = true,
        .start = 100,
        .used_event = 104,
        .step = { { 4, false }, { 4, true }, { 4, false } },
    }, {
        /* covers: SPLIT-36, ROBS-26 */
        .path = "/vring/notify/used/event-idx-just-passed",
        .event_idx = true,
        .start = 100,
        .used_event = 99,
        .step = NEVER,
    }, {
        /* covers: SPLIT-36, ROBS-26 */
        .path = "/vring/notify/used/event-idx-far-ahead",
        .event_idx = true,
        .start = 100,
        .used_event = 100 + 0x8000,
        .step = NEVER,
    }, {
        /* covers: SPLIT-35 */
        .path = "/vring/notify/used/event-idx-65535-in-batch",
        .event_idx = true,
        .start = 65533,
        .used_event = 65535,
        .step = { { 2, false }, { 4, true }, { 1, false } },
    }, {
        /* covers: SPLIT-35 */
        .path = "/vring/notify/used/event-idx-0-in-batch",
        .event_idx = true,
        .start = 65533,
        .used_event = 0,
        .step = { { 6, true }, { 6, false } },
    }, {
        /* covers: SPLIT-35 */
        .path = "/vring/notify/used/event-idx-behind-batch-over-65535",
        .event_idx = true,
        .start = 65533,
        .used_event = 3,
        .step = { { 6, false }, { 1, true }, { 1, false } },
    }, {
        /* covers: LEG-16 */
        .path = "/vring/notify/used/on-empty-despite-flags-1",
        .notify_on_empty = true,
        .flags = 1,
        .step = ALWAYS,
    }, {
        /* covers: LEG-16 */
        .path = "/vring/notify/used/on-empty-despite-used-event",
        .event_idx = true,
        .notify_on_empty = true,
        .used_event = 1000,
        .step = ALWAYS,
    }, {
        /* covers: LEG-16 */
        .path = "/vring/notify/used/on-empty-but-not-empty-with-flags-1",
        .notify_on_empty = true,
        .flags = 1,
        .more = 1,
        .step = NEVER,
    }, {
        /* covers: LEG-16 */
        .path = "/vring/notify/used/on-empty-but-not-empty-with-event-idx",
        .event_idx = true,
        .notify_on_empty = true,
        .start = 100,
        .used_event = 101,
        .more = 1,
        .step = { { 1, false }, { 3, true }, { 1, false } },
    },
};

static void test_used(const void *opaque)
{
    const UsedCase *c = opaque;

    for (unsigned big_endian = 0; big_endian < 2; big_endian++) {
        const TestMode mode = {
            .big_endian = big_endian,
            .event_idx = c->event_idx,
        };
        VringConfig config = test_config(&mode, QUEUE_SIZE);
        TestQueue q;

        g_test_message("%s", big_endian ? "big-endian" : "little-endian");
        config.notify_on_empty = c->notify_on_empty;
        test_queue_init(&q, &config);
        test_queue_start_at(&q, c->start);
        driver_set_avail_flags(&q.drv, c->flags);
        driver_set_used_event(&q.drv, c->used_event);
        for (unsigned i = 0; i < c->more; i++) {
            driver_offer_buffer(&q.drv, QUEUE_SIZE - 1, DATA_BASE, 1, true);
        }
        for (unsigned i = 0; i < CASE_STEPS && c->step[i].batch; i++) {
            g_test_message("step %u", i);
            test_queue_use_batch(&q, c->step[i].batch);
            g_assert_cmpint(vring_should_notify(&q.vring), ==,
                            c->step[i].notify);
        }
        test_queue_cleanup(&q);
    }
}

/* covers: LEG-16: a buffer in flight is not an empty queue */
static void test_on_empty_in_flight(void)
{
    const TestMode mode = { .event_idx = false };
    VringConfig config = test_config(&mode, QUEUE_SIZE);
    VirtQueueElement elem;
    VringVectors buf;
    TestQueue q;

    config.notify_on_empty = true;
    test_queue_init(&q, &config);
    driver_set_avail_flags(&q.drv, 1);
    vring_vectors_init(&buf);
    driver_offer_buffer(&q.drv, 7, DATA_BASE, 1, true);
    test_queue_pop_buf(&q, &elem, &buf);
    test_queue_use_batch(&q, 2);
    g_assert_false(vring_should_notify(&q.vring));
    vring_push(&q.vring, &elem, &buf, 0);
    g_assert_cmpuint(vring_publish(&q.vring), ==, 1);
    g_assert_true(vring_should_notify(&q.vring));
    test_queue_cleanup(&q);
}

/* covers: SPLIT-37 */
static void test_used_event_left_at_0(TestQueue *q)
{
    unsigned count = 0;

    for (unsigned i = 0; i <= 65536; i++) {
        test_queue_run(q, i % QUEUE_SIZE);
        if (vring_should_notify(&q->vring)) {
            g_assert_cmpuint(i % 65536, ==, 0);
            count++;
        }
    }
    g_assert_cmpuint(count, ==, 2);
}

/* covers: SPLIT-35: every place of used_event around a batch of every size */
static void test_event_idx_exhaustive(TestQueue *q)
{
    static const uint16_t starts[] = { 0, 5, 0x7ffc, 0x8000, 65530, 65535 };

    for (unsigned s = 0; s < ARRAY_SIZE(starts); s++) {
        for (unsigned n = 1; n <= QUEUE_SIZE; n++) {
            for (int place = -12; place < 20; place++) {
                test_queue_start_at(q, starts[s]);
                driver_set_used_event(&q->drv, starts[s] + place);
                test_queue_use_batch(q, n);
                g_assert_cmpint(vring_should_notify(&q->vring), ==,
                                place >= 0 && place < (int)n);
            }
        }
    }
}

/* Publishes elements in pieces, as what is completed goes on for a while */
static void use_pieces(TestQueue *q, const unsigned *piece, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        g_assert_cmpuint(vring_unpublished(&q->vring), ==, 0);
        test_queue_use_batch(q, piece[i]);
    }
}

/*
 * covers: SPLIT-35, SPLIT-39: asked once after several pieces, wherever
 * used_event lies in or around them
 */
static void test_pieces(TestQueue *q)
{
    static const unsigned pieces[][3] = {
        { 1, 1, 1 }, { 3, 1, 4 }, { 8, 8, 8 }, { 1, 8, 2 }, { 8, 1, 1 },
    };
    static const uint16_t starts[] = { 0, 5, 0x7ff8, 65520, 65535 };

    for (unsigned i = 0; i < ARRAY_SIZE(pieces) * ARRAY_SIZE(starts); i++) {
        const unsigned *piece = pieces[i / ARRAY_SIZE(starts)];
        uint16_t start = starts[i % ARRAY_SIZE(starts)];
        int total = piece[0] + piece[1] + piece[2];

        for (int place = -4; place < total + 4; place++) {
            test_queue_start_at(q, start);
            driver_set_used_event(&q->drv, start + place);
            use_pieces(q, piece, 3);
            g_assert_cmpint(vring_should_notify(&q->vring), ==,
                            place >= 0 && place < total);
            /* Said once, and not again for the same elements */
            g_assert_false(vring_should_notify(&q->vring));
        }
    }
}

/* covers: SPLIT-31, SPLIT-32: without EVENT_IDX the flags decide, when asked */
static void test_pieces_flags(TestQueue *q)
{
    static const unsigned piece[] = { 2, 8, 1 };

    for (unsigned flags = 0; flags < 2; flags++) {
        driver_set_avail_flags(&q->drv, !flags);
        use_pieces(q, piece, ARRAY_SIZE(piece));
        driver_set_avail_flags(&q->drv, flags);
        g_assert_cmpint(vring_should_notify(&q->vring), ==, !flags);
    }
}

/* covers: SPLIT-14: what was pushed counts until it is published */
static void test_unpublished(void)
{
    static const uint16_t starts[] = { 0, 0x7ffd, 65533, 65535 };

    for (unsigned i = 0; i < TEST_MODES * ARRAY_SIZE(starts); i++) {
        VringConfig config = test_config(&test_modes[i % TEST_MODES],
                                         QUEUE_SIZE);
        VirtQueueElement elem;
        TestQueue q;

        test_queue_init(&q, &config);
        test_queue_start_at(&q, starts[i / TEST_MODES]);
        for (unsigned n = 0; n <= QUEUE_SIZE; n++) {
            for (unsigned j = 0; j < n; j++) {
                g_assert_cmpuint(vring_unpublished(&q.vring), ==, j);
                driver_offer_buffer(&q.drv, j, DATA_BASE, 1, true);
                test_queue_pop(&q, &elem);
                g_assert_cmpuint(vring_unpublished(&q.vring), ==, j);
                vring_push(&q.vring, &elem, &q.buf, 1);
            }
            g_assert_cmpuint(vring_unpublished(&q.vring), ==, n);
            g_assert_cmpuint(vring_publish(&q.vring), ==, n);
            g_assert_cmpuint(vring_unpublished(&q.vring), ==, 0);
        }

        /* What is given up is never published */
        driver_offer_buffer(&q.drv, 0, DATA_BASE, 1, true);
        test_queue_pop(&q, &elem);
        vring_detach(&q.vring, &elem, &q.buf);
        g_assert_cmpuint(vring_unpublished(&q.vring), ==, 0);
        test_queue_cleanup(&q);
    }
}

/* Available buffer notifications */

/* covers: SPLIT-40, SPLIT-41: flags are 0 or 1, whatever the driver wrote */
static void test_used_flags(void)
{
    for (unsigned big_endian = 0; big_endian < 2; big_endian++) {
        const TestMode mode = { .big_endian = big_endian };
        VringConfig config = test_config(&mode, QUEUE_SIZE);
        TestQueue q;

        test_queue_init(&q, &config);
        g_assert_cmphex(driver_used_flags(&q.drv), ==, 0);
        for (unsigned i = 0; i < 10; i++) {
            vring_disable_notification(&q.vring);
            g_assert_cmphex(driver_used_flags(&q.drv), ==, 1);
            test_queue_run(&q, i % QUEUE_SIZE);
            g_assert_cmphex(driver_used_flags(&q.drv), ==, 1);
            memset(q.drv.used, 0xff, 2);
            g_assert_false(vring_enable_notification(&q.vring));
            g_assert_cmphex(driver_used_flags(&q.drv), ==, 0);
            test_queue_run(&q, i % QUEUE_SIZE);
            g_assert_cmphex(driver_used_flags(&q.drv), ==, 0);
        }
        test_queue_cleanup(&q);
    }
}

/* covers: SPLIT-46 */
static void test_nothing_behind_used_ring(TestQueue *q)
{
    driver_set_avail_event(&q->drv, 0x5a5a);
    for (unsigned i = 0; i < 3 * QUEUE_SIZE; i++) {
        vring_disable_notification(&q->vring);
        test_queue_run(q, i % QUEUE_SIZE);
        vring_should_notify(&q->vring);
        vring_enable_notification(&q->vring);
        g_assert_cmphex(driver_avail_event(&q->drv), ==, 0x5a5a);
    }
}

/* Would a driver that follows 2.7.10 notify the device of its last buffer? */
static bool driver_kicks(const TestDriver *drv)
{
    return driver_avail_event(drv) == (uint16_t)(drv->avail_idx - 1);
}

/* covers: SPLIT-42, SPLIT-43 */
static void test_avail_event(void)
{
    static const uint16_t starts[] = { 0, 100, 65530 };

    for (unsigned i = 0; i < 2 * ARRAY_SIZE(starts); i++) {
        const TestMode mode = { .big_endian = i % 2, .event_idx = true };
        VringConfig config = test_config(&mode, QUEUE_SIZE);
        TestQueue q;

        test_queue_init(&q, &config);
        test_queue_start_at(&q, starts[i / 2]);
        for (unsigned j = 0; j < 20; j++) {
            g_assert_false(vring_enable_notification(&q.vring));
            g_assert_cmpuint(driver_avail_event(&q.drv), ==,
                             q.drv.avail_idx);
            vring_disable_notification(&q.vring);
            test_queue_run(&q, 0);
            g_assert_true(driver_kicks(&q.drv));

            /* Off, so that nothing else notifies */
            test_queue_run(&q, 1);
            g_assert_false(driver_kicks(&q.drv));
            test_queue_run(&q, 2);
            g_assert_false(driver_kicks(&q.drv));
            g_assert_cmphex(driver_used_flags(&q.drv), ==, 0);
        }
        test_queue_cleanup(&q);
    }
}

/* covers: SPLIT-44: what came before the device asked again is not missed */
static void test_enable_looks_again(void)
{
    for (unsigned i = 0; i < TEST_MODES; i++) {
        VringConfig config = test_config(&test_modes[i], QUEUE_SIZE);
        TestQueue q;

        test_queue_init(&q, &config);
        for (unsigned j = 0; j < 3 * QUEUE_SIZE; j++) {
            test_queue_look_again(&q);
        }
        test_queue_cleanup(&q);
    }
}

int main(int argc, char **argv)
{
    static const TestRow rows[] = {
        { "used/used-event-left-at-0", test_used_event_left_at_0, QUEUE_SIZE,
          .mode = { .event_idx = true } },
        { "used/event-idx-exhaustive", test_event_idx_exhaustive, QUEUE_SIZE,
          .mode = { .event_idx = true } },
        { "used/pieces", test_pieces, QUEUE_SIZE,
          .mode = { .event_idx = true } },
        { "used/pieces-flags", test_pieces_flags, QUEUE_SIZE },
        { "avail/nothing-behind-used-ring", test_nothing_behind_used_ring,
          QUEUE_SIZE },
    };

    g_test_init(&argc, &argv, NULL);
    test_add_cases(used_cases, test_used);
    g_test_add_func("/vring/notify/used/on-empty-but-buffer-in-flight",
                    test_on_empty_in_flight);
    g_test_add_func("/vring/notify/used/unpublished", test_unpublished);
    g_test_add_func("/vring/notify/avail/used-flags-are-0-or-1",
                    test_used_flags);
    g_test_add_func("/vring/notify/avail/avail-event", test_avail_event);
    g_test_add_func("/vring/notify/avail/enable-looks-again",
                    test_enable_looks_again);
    test_add_rows("/vring/notify", rows, ARRAY_SIZE(rows));
    return g_test_run();
}
