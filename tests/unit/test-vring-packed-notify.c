/*
 * Tests of the packed ring: who is notified when
 *
 * Knows VIRTIO 1.3, 2.8.10 and 2.8.14: the structure by which the driver
 * suppresses used buffer notifications, and the one by which the device
 * suppresses available buffer notifications.  What happens when both sides act
 * at once is in test-vring-stress.c.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "vring-test-driver.h"

static const unsigned sizes[] = { 1, 2, 3, 5, 8, 0 };

#define FLAGS { .packed = true }
#define EVENT_IDX { .packed = true, .event_idx = true }

static void notify_queue_init(TestQueue *q, unsigned num, bool event_idx)
{
    const TestMode mode = { .packed = true, .event_idx = event_idx };
    VringConfig config = test_config(&mode, num);

    test_queue_init(q, &config);
}

/* Used buffer notifications */

/* A buffer of @n descriptors through the device, published at once */
static void use_list(TestQueue *q, unsigned n)
{
    g_autofree TestDesc *desc = g_new(TestDesc, n);
    VirtQueueElement elem;

    for (unsigned i = 0; i < n; i++) {
        desc[i] = (TestDesc) { DATA_BASE, 1, WRITE };
    }
    driver_offer_chain(&q->drv, n, desc, n);
    test_queue_pop(q, &elem);
    test_queue_use(q, &elem, 1);
}

/* Uses buffers up to position @pos, all of them notified already */
static void go_to(TestQueue *q, unsigned pos)
{
    while (q->drv.used_pos != pos) {
        test_queue_use_batch(q, 1);
    }
    vring_should_notify(&q->vring);
}

/* The position that is @n descriptors behind the present one is awaited */
static void await(TestQueue *q, unsigned n)
{
    unsigned pos = driver_advance(&q->drv, q->drv.used_pos, n);

    driver_set_irq_event(&q->drv, driver_off_wrap(&q->drv, pos), EVENT_DESC);
}

typedef struct FlagsCase {
    const char *path;
    bool event_idx;
    uint16_t off_wrap;
    uint16_t flags;
    bool notify;
} FlagsCase;

static const FlagsCase flags_cases[] = {
    /* covers: PACK-42 */
    { "/vring/packed-notify/irq/enable", false, 0, 0, true },
    { "/vring/packed-notify/irq/enable-with-event-idx", true, 0, 0, true },
    /* covers: PACK-43 */
    { "/vring/packed-notify/irq/disable", false, 0, 1, false },
    { "/vring/packed-notify/irq/disable-with-event-idx", true, 0, 1, false },
    /* The offset means nothing then */
    { "/vring/packed-notify/irq/enable-elsewhere", false, 0x4000, 0, true },
    { "/vring/packed-notify/irq/enable-elsewhere-with-event-idx", true,
      0x4000, 0, true },
    { "/vring/packed-notify/irq/disable-here", false, 0x8000, 1, false },
    { "/vring/packed-notify/irq/disable-here-with-event-idx", true, 0x8000, 1,
      false },
    /* covers: ROBP-11 */
    { "/vring/packed-notify/irq/desc-not-negotiated", false, 0x7000, 2, true },
    { "/vring/packed-notify/irq/flags-3", false, 0x7000, 3, true },
    { "/vring/packed-notify/irq/flags-3-with-event-idx", true, 0x7000, 3,
      true },
    /* Bits that mean nothing yet, around ENABLE and DISABLE */
    { "/vring/packed-notify/irq/reserved-bits-enable", false, 0, 0xfffc,
      true },
    { "/vring/packed-notify/irq/reserved-bits-enable-with-event-idx", true, 0,
      0xfffc, true },
    { "/vring/packed-notify/irq/reserved-bits-disable", false, 0, 0xfffd,
      false },
    { "/vring/packed-notify/irq/reserved-bits-disable-with-event-idx", true,
      0, 0xfffd, false },
};

static void test_flags(const void *opaque)
{
    const FlagsCase *c = opaque;
    TestQueue q;

    notify_queue_init(&q, 5, c->event_idx);
    go_to(&q, 0);
    driver_set_irq_event(&q.drv, c->off_wrap, c->flags);
    for (unsigned i = 0; i < 20; i++) {
        test_queue_use_batch(&q, 1 + i % 5);
        g_assert_cmpint(vring_should_notify(&q.vring), ==, c->notify);
    }
    test_queue_cleanup(&q);
}

/*
 * covers: PACK-44, PACK-45: each place that can be awaited, around a batch
 * and a list of each size, at each position of both laps
 */
static void test_event_exhaustive(TestQueue *q)
{
    unsigned num = q->drv.config.num;

    for (unsigned start = 0; start < 2 * num; start++) {
        for (unsigned i = 0; i < num * 2 * num * 2; i++) {
            unsigned n = 1 + i / 4 / num, place = i / 2 % (2 * num);

            go_to(q, start);
            await(q, place);
            if (i % 2) {
                test_queue_use_batch(q, n);
            } else {
                use_list(q, n);
            }
            g_assert_cmpint(vring_should_notify(&q->vring), ==, place < n);
            /* Said once, and not again for the same buffers */
            g_assert_false(vring_should_notify(&q->vring));
        }
    }
}

/*
 * covers: PACK-44: an event that was passed long ago is of a lap that does not
 * come again, and one that is moved on in time is met
 */
static void test_event_moves(TestQueue *q)
{
    go_to(q, 0);
    for (unsigned i = 0; i < 50; i++) {
        await(q, 2);
        test_queue_use_batch(q, 1);
        g_assert_false(vring_should_notify(&q->vring));
        test_queue_use_batch(q, 1);
        g_assert_false(vring_should_notify(&q->vring));
        test_queue_use_batch(q, 1);
        g_assert_true(vring_should_notify(&q->vring));
        test_queue_use_batch(q, 1);
        g_assert_false(vring_should_notify(&q->vring));
    }
    /* Left where it is, it comes once in two laps */
    await(q, 3);
    for (unsigned i = 0; i < 100; i++) {
        test_queue_use_batch(q, 1);
        g_assert_cmpint(vring_should_notify(&q->vring), ==, i % 10 == 3);
    }
}

/*
 * covers: PACK-44, PACK-45: asked once after several pieces.  A driver that
 * sleeps is at most a ring behind; one that went on in spite of its event, by
 * more than a ring, has to ask anew anyway.
 */
static void check_pieces(TestQueue *q, unsigned place, unsigned total)
{
    unsigned num = q->drv.config.num;
    bool notify = vring_should_notify(&q->vring);

    if (place < total && total - place <= num) {
        g_assert_true(notify);
    } else if (place >= total && total <= num) {
        g_assert_false(notify);
    }
    g_assert_false(vring_should_notify(&q->vring));
}

static void test_pieces(TestQueue *q)
{
    static const unsigned pieces[][3] = {
        { 1, 1, 1 }, { 3, 1, 4 }, { 5, 5, 0 }, { 5, 5, 5 }, { 1, 5, 2 },
        { 5, 4, 0 }, { 5, 1, 5 }, { 5, 0, 0 }, { 1, 3, 1 },
    };
    const unsigned num = 5;

    for (unsigned i = 0; i < ARRAY_SIZE(pieces); i++) {
        unsigned total = pieces[i][0] + pieces[i][1] + pieces[i][2];

        for (unsigned j = 0; j < 2 * num * 3 * num; j++) {
            unsigned start = j / (3 * num), place = j % (3 * num);

            go_to(q, start);
            await(q, place);
            for (unsigned k = 0; k < 3 && pieces[i][k]; k++) {
                test_queue_use_batch(q, pieces[i][k]);
            }
            check_pieces(q, place % (2 * num), total);
        }
    }
}

/* covers: PACK-42: without EVENT_IDX the flags decide, when asked */
static void test_pieces_flags(TestQueue *q)
{
    for (unsigned flags = 0; flags < 2; flags++) {
        driver_set_irq_event(&q->drv, 0, !flags);
        test_queue_use_batch(q, 2);
        test_queue_use_batch(q, 8);
        test_queue_use_batch(q, 1);
        driver_set_irq_event(&q->drv, 0, flags);
        g_assert_cmpint(vring_should_notify(&q->vring), ==, !flags);
    }
}

/* covers: ROBP-12: an irq or none, and the next good event is met */
static void test_garbage_offset(TestQueue *q)
{
    static const uint16_t offsets[] = {
        5, 6, 9, 10, 255, 0x3fff, 0x4000, 0x7ffe, 0x7fff,
    };

    go_to(q, 0);
    for (unsigned i = 0; i < 40 * ARRAY_SIZE(offsets); i++) {
        uint16_t off_wrap = offsets[i / 40] | (i % 2 ? EVENT_WRAP : 0);

        driver_set_irq_event(&q->drv, off_wrap, EVENT_DESC);
        test_queue_use_batch(q, 1 + i % 5);
        vring_should_notify(&q->vring);
        await(q, i % 10);
        test_queue_use_batch(q, 1);
        g_assert_cmpint(vring_should_notify(&q->vring), ==, i % 10 == 0);
    }
}

/* Available buffer notifications */

/* covers: PACK-40, PACK-46, PACK-47: whatever the driver wrote there */
static void test_kick_flags(TestQueue *q)
{
    g_assert_cmphex(driver_kick_flags(&q->drv), ==, EVENT_ENABLE);
    for (unsigned i = 0; i < 24; i++) {
        vring_disable_notification(&q->vring);
        g_assert_cmphex(driver_kick_flags(&q->drv), ==, EVENT_DISABLE);
        test_queue_run(q, i);
        g_assert_false(driver_must_kick(&q->drv));
        driver_set_kick_event(&q->drv, 0xffff, 0xffff);
        g_assert_false(vring_enable_notification(&q->vring));
        g_assert_cmphex(driver_kick_flags(&q->drv), ==, EVENT_ENABLE);
        test_queue_run(q, i);
        g_assert_true(driver_must_kick(&q->drv));
        driver_set_kick_event(&q->drv, 0xffff, 0xffff);
    }
}

/*
 * covers: PACK-40, PACK-46, PACK-47: the next position, in the lap that it is
 * of; raw bytes, with the offset in front
 */
static void test_kick_event(TestQueue *q)
{
    unsigned num = q->drv.config.num;

    for (unsigned i = 0; i < 6 * num; i++) {
        uint16_t want = i % num | (i / num % 2 ? 0 : EVENT_WRAP);

        driver_set_kick_event(&q->drv, 0xffff, 0xffff);
        g_assert_false(vring_enable_notification(&q->vring));
        g_assert_cmphex(driver_kick_off_wrap(&q->drv), ==, want);
        g_assert_cmphex(q->drv.used[0], ==, want & 0xff);
        g_assert_cmphex(q->drv.used[1], ==, want >> 8);
        g_assert_cmphex(q->drv.used[2], ==, EVENT_DESC);
        g_assert_cmphex(q->drv.used[3], ==, 0);
        test_queue_run(q, i);
    }
}

/* covers: PACK-40: where the driver goes on counts, not what was returned */
static void test_kick_event_in_flight(TestQueue *q)
{
    unsigned num = q->drv.config.num;

    for (unsigned start = 0; start < 2 * num; start++) {
        VirtQueueElement elem[8];
        VringVectors buf[8];

        for (unsigned i = 0; i < num; i++) {
            vring_vectors_init(&buf[i]);
            driver_offer_buffer(&q->drv, i, DATA_BASE, 1, true);
            test_queue_pop_buf(q, &elem[i], &buf[i]);
            g_assert_false(vring_enable_notification(&q->vring));
            g_assert_cmphex(driver_kick_off_wrap(&q->drv), ==,
                            driver_off_wrap(&q->drv, q->drv.avail_pos));
            g_assert_cmphex(driver_kick_flags(&q->drv), ==, EVENT_DESC);
        }
        for (unsigned i = 0; i < num; i++) {
            test_queue_use_buf(q, &elem[i], &buf[i], 1);
        }
        test_queue_run(q, 0);
    }
}

/*
 * covers: PACK-48: a driver that obeys notifies of the first buffer that comes
 * after the device has asked, be it a list, and of none before
 */
static void test_kick_once(TestQueue *q)
{
    unsigned num = q->drv.config.num;

    vring_disable_notification(&q->vring);
    use_list(q, num);
    g_assert_false(driver_must_kick(&q->drv));
    for (unsigned i = 0; i < 8 * num; i++) {
        g_assert_false(vring_enable_notification(&q->vring));
        use_list(q, 1 + i % num);
        g_assert_true(driver_must_kick(&q->drv));

        /* Asked for, but not again, at least for the rest of two laps */
        vring_disable_notification(&q->vring);
        for (unsigned n = 1 + i % num; n < 2 * num; n++) {
            use_list(q, 1);
            g_assert_false(driver_must_kick(&q->drv));
        }
    }
}

/*
 * covers: PACK-46, PACK-47: nothing but ENABLE, DISABLE, and DESC where it is
 * negotiated, at whatever moment one looks
 */
static void test_kick_structure_is_clean(void)
{
    for (unsigned event_idx = 0; event_idx < 2; event_idx++) {
        TestQueue q;

        notify_queue_init(&q, 3, event_idx);
        for (unsigned i = 0; i < 30; i++) {
            if (i % 3 == 0) {
                vring_disable_notification(&q.vring);
            } else if (i % 3 == 1) {
                vring_enable_notification(&q.vring);
            }
            test_queue_use_batch(&q, 1 + i % 3);
            vring_should_notify(&q.vring);
            g_assert_cmphex(driver_kick_flags(&q.drv), <=,
                            event_idx ? EVENT_DESC : EVENT_DISABLE);
            if (driver_kick_flags(&q.drv) == EVENT_DESC) {
                g_assert_cmpuint(driver_kick_off_wrap(&q.drv) & ~EVENT_WRAP,
                                 <, 3);
            }
        }
        test_queue_cleanup(&q);
    }
}

/* covers: PACK-48: what came before the device asked again is not missed */
static void test_enable_looks_again(void)
{
    for (unsigned i = 0; sizes[i / 2]; i++) {
        TestQueue q;

        notify_queue_init(&q, sizes[i / 2], i % 2);
        for (unsigned j = 0; j < 4 * sizes[i / 2]; j++) {
            test_queue_look_again(&q);
        }
        test_queue_cleanup(&q);
    }
}

/*
 * covers: G11: the device's structure may have other contents when its memory
 * returns; what is asked for then is asked for
 */
static void test_ask_in_other_memory(void)
{
    const hwaddr base = 0x40000000;

    for (unsigned i = 0; i < 8; i++) {
        const TestMode mode = { .packed = true, .event_idx = i & 1 };
        VringConfig config = test_config(&mode, 5);
        TestQueue q;

        test_queue_init(&q, &config);
        test_memory_add(q.mem, base, TEST_PAGE, TEST_RAM);
        test_memory_commit(q.mem);
        config.used = base;
        test_queue_reopen(&q, &config);
        if (i & 2) {
            vring_disable_notification(&q.vring);
        }
        vring_enable_notification(&q.vring);

        test_memory_del(q.mem, base);
        if (i & 4) {
            /* Else it changes between two looks */
            test_memory_commit(q.mem);
            vring_refresh_memory(&q.vring);
        }
        test_memory_add(q.mem, base, TEST_PAGE, TEST_RAM);
        test_memory_commit(q.mem);
        q.drv.used = test_memory_host(q.mem, base);
        driver_set_kick_event(&q.drv, 0, EVENT_DISABLE);
        vring_refresh_memory(&q.vring);

        g_assert_false(vring_enable_notification(&q.vring));
        test_queue_run(&q, 0);
        g_assert_true(driver_must_kick(&q.drv));
        test_queue_cleanup(&q);
    }
}

int main(int argc, char **argv)
{
    static const TestRow rows[] = {
        { "irq/event-exhaustive", test_event_exhaustive, .mode = EVENT_IDX,
          .nums = sizes },
        { "irq/event-moves", test_event_moves, 5, .mode = EVENT_IDX },
        { "irq/pieces", test_pieces, 5, .mode = EVENT_IDX },
        { "irq/pieces-flags", test_pieces_flags, 8, .mode = FLAGS },
        { "irq/garbage-offset", test_garbage_offset, 5, .mode = EVENT_IDX },
        { "kick/flags", test_kick_flags, 5, .mode = FLAGS },
        { "kick/event", test_kick_event, .mode = EVENT_IDX, .nums = sizes },
        { "kick/event-in-flight", test_kick_event_in_flight,
          .mode = EVENT_IDX, .nums = sizes },
        { "kick/once", test_kick_once, .mode = EVENT_IDX, .nums = sizes },
    };

    g_test_init(&argc, &argv, NULL);
    test_add_cases(flags_cases, test_flags);
    g_test_add_func("/vring/packed-notify/kick/structure-is-clean",
                    test_kick_structure_is_clean);
    g_test_add_func("/vring/packed-notify/kick/enable-looks-again",
                    test_enable_looks_again);
    g_test_add_func("/vring/packed-notify/kick/ask-in-other-memory",
                    test_ask_in_other_memory);
    test_add_rows("/vring/packed-notify", rows, ARRAY_SIZE(rows));
    return g_test_run();
}
