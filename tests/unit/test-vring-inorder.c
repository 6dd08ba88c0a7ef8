/*
 * Tests of the ring with VIRTIO_F_IN_ORDER, in both formats
 *
 * Knows VIRTIO 1.3, 2.7.9 and 2.8.8 as the ring keeps them: the device may be
 * done with buffers in any order, the driver gets each one by itself, in the
 * order in which it made them available.  The driver's side
 * (vring-test-driver.c) fails the test if one comes out of turn.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "vring-test-driver.h"

static const TestMode modes[] = {
    { "split", .in_order = true },
    { "split with EVENT_IDX", .in_order = true, .event_idx = true },
    { "split, big-endian", .in_order = true, .big_endian = true },
    { "packed", .in_order = true, .packed = true },
    { "packed with EVENT_IDX", .in_order = true, .packed = true,
      .event_idx = true },
};

/* Sizes that both formats have, and those that packed rings alone have */
static const unsigned sizes[] = { 1, 2, 4, 8, 3, 5, 7 };
#define SPLIT_SIZES 4

static unsigned sizes_of(const TestMode *mode)
{
    return mode->packed ? ARRAY_SIZE(sizes) : SPLIT_SIZES;
}

/* A queue, and what is in flight in the order in which it was popped */
#define MOST 8

typedef struct Flight {
    VirtQueueElement elem;
    VringVectors buf;
    unsigned ndescs;
    uint32_t len;               /* to be reported as written */
    bool done;                  /* pushed, and perhaps it waits */
} Flight;

typedef struct OrderedQueue {
    TestQueue q;
    Flight flights[MOST];       /* a ring of its own */
    unsigned popped, taken;     /* counts; those in between are in flight */
    unsigned room;              /* descriptors that the driver may use */
    uint32_t next_len;
} OrderedQueue;

static void ordered_init(OrderedQueue *o, const VringConfig *config)
{
    g_assert_cmpuint(config->num, <=, MOST);
    memset(o, 0, sizeof(*o));
    o->room = config->num;
    test_queue_init(&o->q, config);
    for (unsigned i = 0; i < MOST; i++) {
        vring_vectors_init(&o->flights[i].buf);
    }
}

static Flight *flight(OrderedQueue *o, unsigned i)
{
    return &o->flights[i % MOST];
}

/* A chain from the driver into the device's hands */
static void offer_and_pop(OrderedQueue *o, unsigned ndescs)
{
    Flight *f = flight(o, o->popped);
    TestDesc desc[MOST];
    uint16_t id;

    for (unsigned i = 0; i < ndescs; i++) {
        desc[i] = (TestDesc) { DATA_BASE + 512 * i, 512, WRITE };
    }
    /* Any number in a packed ring; the split one's is given by the order */
    id = driver_offer_chain(&o->q.drv, 0xfff0 - 7 * (o->popped % 1000), desc,
                            ndescs);
    test_queue_pop_buf(&o->q, &f->elem, &f->buf);
    g_assert_cmpuint(f->elem.index, ==, id);
    g_assert_cmpuint(f->elem.in_num, ==, ndescs);
    f->ndescs = ndescs;
    f->done = false;
    o->room -= ndescs;
    o->popped++;
}

/* How many may be shown: those done at the front */
static unsigned ready(OrderedQueue *o)
{
    unsigned n = 0;

    while (o->taken + n != o->popped && flight(o, o->taken + n)->done) {
        n++;
    }
    return n;
}

static void finish(OrderedQueue *o, unsigned i)
{
    Flight *f = flight(o, i);

    f->len = 1 + o->next_len++ % 512;
    f->done = true;
    vring_push(&o->q.vring, &f->elem, &f->buf, f->len);
    g_assert_false(driver_has_used(&o->q.drv));
    g_assert_cmpuint(vring_unpublished(&o->q.vring), ==, ready(o));
}

/* The driver gets all that is ready, and not more */
static void publish_and_take(OrderedQueue *o)
{
    unsigned n = ready(o);

    g_assert_cmpuint(vring_publish(&o->q.vring), ==, n);
    g_assert_cmpuint(vring_unpublished(&o->q.vring), ==, 0);
    g_assert_cmpuint(vring_publish(&o->q.vring), ==, 0);
    for (unsigned i = 0; i < n; i++) {
        Flight *f = flight(o, o->taken++);

        test_queue_take(&o->q, f->elem.index, f->len);
        o->room += f->ndescs;
    }
    g_assert_false(driver_has_used(&o->q.drv));
}

/* A chain with nothing in flight before it */
static void run_chain(OrderedQueue *o, unsigned ndescs)
{
    offer_and_pop(o, ndescs);
    finish(o, o->taken);
    publish_and_take(o);
}

static void ordered_cleanup(OrderedQueue *o)
{
    g_assert_cmpuint(o->popped, ==, o->taken);
    g_assert_cmpuint(o->q.vring.inuse, ==, 0);
    /* QEMU's own code, to which the order is handed over, looks at each */
    for (unsigned i = 0; i < o->q.drv.config.num; i++) {
        g_assert_false(o->q.vring.order[i].done);
    }
    test_queue_cleanup(&o->q);
}

/* covers: VQ-7, G8: a full ring, of which the oldest one ends last */
static void test_full_ring_backwards(OrderedQueue *o)
{
    unsigned num = o->q.drv.config.num;

    for (unsigned round = 0; round < 7; round++) {
        for (unsigned i = 0; i < num; i++) {
            offer_and_pop(o, 1);
        }
        for (unsigned i = num; i-- > 0;) {
            finish(o, o->taken + i);
            if (i) {
                g_assert_cmpuint(vring_publish(&o->q.vring), ==, 0);
            }
        }
        publish_and_take(o);
        g_assert_cmpuint(o->taken, ==, o->popped);

        /* From another place the next time */
        run_chain(o, 1);
    }
}

/* covers: VQ-7, G8: likewise, but it is the first one that ends first */
static void test_full_ring_forwards(OrderedQueue *o)
{
    unsigned num = o->q.drv.config.num;

    for (unsigned i = 0; i < num; i++) {
        offer_and_pop(o, 1);
    }
    /* Full all the time: each one that comes back goes out again */
    for (unsigned i = 0; i < 5 * num; i++) {
        finish(o, o->taken);
        publish_and_take(o);
        g_assert_cmpuint(o->room, ==, 1);
        offer_and_pop(o, 1);
    }
    while (o->taken != o->popped) {
        finish(o, o->taken);
        publish_and_take(o);
    }
}

/* covers: SPLIT-53, PACK-20, PACK-21: one chain that is as long as the ring */
static void test_chain_as_long_as_the_ring(OrderedQueue *o)
{
    unsigned num = o->q.drv.config.num;

    for (unsigned round = 0; round < 2 * num + 1; round++) {
        run_chain(o, num);
        run_chain(o, 1);
    }
}

/* Any one that is in flight and not done; there is one */
static unsigned choose(OrderedQueue *o, GRand *rand)
{
    unsigned i;

    do {
        i = g_rand_int_range(rand, o->taken, o->popped);
    } while (flight(o, i)->done);
    return i;
}

static bool all_done(OrderedQueue *o)
{
    for (unsigned i = o->taken; i != o->popped; i++) {
        if (!flight(o, i)->done) {
            return false;
        }
    }
    return true;
}

/*
 * covers: VQ-7, SPLIT-53: chains of any length end in any order, and are
 * published at any moment
 */
static void test_random_order(OrderedQueue *o)
{
    unsigned num = o->q.drv.config.num;
    GRand *rand = g_rand_new_with_seed(num);

    for (unsigned step = 0; step < 4000; step++) {
        switch (g_rand_int_range(rand, 0, 5)) {
        case 0:
        case 1:
            if (o->room) {
                offer_and_pop(o, g_rand_int_range(rand, 1, o->room + 1));
            }
            break;
        case 2:
        case 3:
            if (!all_done(o)) {
                finish(o, choose(o, rand));
            }
            break;
        default:
            publish_and_take(o);
            break;
        }
    }
    while (!all_done(o)) {
        finish(o, choose(o, rand));
    }
    publish_and_take(o);
    g_rand_free(rand);
}

/* Whether notifications come does not depend on what waits for its turn */
static void test_notify(OrderedQueue *o)
{
    unsigned num = o->q.drv.config.num;

    vring_should_notify(&o->q.vring);
    for (unsigned round = 0; round < 3 * num; round++) {
        g_assert_false(driver_ask_irq(&o->q.drv));
        for (unsigned i = 0; i < 3; i++) {
            offer_and_pop(o, 1);
        }
        finish(o, o->taken + 2);
        finish(o, o->taken + 1);
        g_assert_cmpuint(vring_publish(&o->q.vring), ==, 0);
        finish(o, o->taken);
        publish_and_take(o);
        g_assert_true(vring_should_notify(&o->q.vring));
    }
}

/* covers: G9: broken with some that wait: none of them is ever shown */
static void test_broken(OrderedQueue *o)
{
    offer_and_pop(o, 1);
    offer_and_pop(o, 1);
    finish(o, 1);
    driver_offer_buffer(&o->q.drv, 2, 0x7000000000, 16, true);
    test_queue_fail(&o->q, VRING_ERR_ADDRESS);
    vring_push(&o->q.vring, &o->flights[0].elem, &o->flights[0].buf, 1);
    g_assert_cmpuint(vring_publish(&o->q.vring), ==, 0);
    g_assert_false(driver_has_used(&o->q.drv));
    g_assert_cmpuint(o->q.vring.inuse, ==, 0);
}

/* Gives up those whose bit is set in @gone, uses the others, the last first */
static void detach_some(OrderedQueue *o, unsigned n, unsigned gone)
{
    for (unsigned i = n; i-- > 0;) {
        Flight *f = flight(o, i);

        if (gone >> i & 1) {
            vring_detach(&o->q.vring, &f->elem, &f->buf);
        } else {
            vring_push(&o->q.vring, &f->elem, &f->buf, 1 + i);
        }
        g_assert_cmpuint(vring_unpublished(&o->q.vring), ==,
                         i ? 0 : n - __builtin_popcount(gone));
    }
}

/*
 * covers: M8: what is given up, as before a reset, holds nothing up, and the
 * driver does not see it
 */
static void test_gaps(OrderedQueue *o)
{
    const VringConfig config = o->q.drv.config;
    unsigned num = config.num;

    for (unsigned gone = 0; gone < 1u << num; gone++) {
        for (unsigned i = 0; i < num; i++) {
            offer_and_pop(o, 1);
        }
        detach_some(o, num, gone);
        g_assert_cmpuint(o->q.vring.inuse, ==, 0);
        g_assert_cmpuint(vring_publish(&o->q.vring), ==,
                         num - __builtin_popcount(gone));

        /* The driver was promised all of them, so that it looks by itself */
        o->q.drv.config.in_order = false;
        for (unsigned i = 0; i < num; i++) {
            if (!(gone >> i & 1)) {
                test_queue_take(&o->q, flight(o, i)->elem.index, 1 + i);
            }
        }
        g_assert_false(driver_has_used(&o->q.drv));
        test_queue_cleanup(&o->q);
        ordered_init(o, &config);
    }
}

/*
 * covers: M9: a parked one is pinned and holds the others up; it can be given
 * up later
 */
static void test_pin(OrderedQueue *o)
{
    for (unsigned i = 0; i < 3; i++) {
        offer_and_pop(o, 1);
    }
    vring_pin(&o->q.vring, &o->flights[0].elem, &o->flights[0].buf);
    finish(o, 2);
    g_assert_cmpuint(vring_publish(&o->q.vring), ==, 0);
    g_assert_cmpuint(o->q.vring.inuse, ==, 3);
    finish(o, 1);
    g_assert_cmpuint(vring_publish(&o->q.vring), ==, 0);
    /* As the next Vring would push it */
    o->flights[0].len = 9;
    o->flights[0].done = true;
    vring_push(&o->q.vring, &o->flights[0].elem, NULL, 9);
    publish_and_take(o);
}

/* covers: G11: the ring goes while some wait, and all of them end */
static void test_ring_lost(OrderedQueue *o)
{
    for (unsigned i = 0; i < 3; i++) {
        offer_and_pop(o, 1);
    }
    finish(o, 1);
    test_memory_del(o->q.mem, RING_BASE);
    test_memory_commit(o->q.mem);
    vring_refresh_memory(&o->q.vring);
    vring_push(&o->q.vring, &o->flights[2].elem, &o->flights[2].buf, 1);
    vring_detach(&o->q.vring, &o->flights[0].elem, &o->flights[0].buf);
    g_assert_cmpuint(vring_publish(&o->q.vring), ==, 0);
    g_assert_cmpuint(o->q.vring.inuse, ==, 0);
    g_assert_cmpuint(test_memory_tables(o->q.mem), ==, 1);
}

/*
 * covers: E7: what completes while the device is disabled stays out of the ring
 * until one completes afterwards; none is lost
 */
static void test_disabled(OrderedQueue *o)
{
    for (unsigned first = 0; first < 3; first++) {
        for (unsigned i = 0; i < 3; i++) {
            offer_and_pop(o, 1);
        }
        for (unsigned i = 0; i < 3; i++) {
            Flight *f = flight(o, o->taken + i);

            if (i != first) {
                f->len = 7 + i;
                f->done = true;
                vring_push_disabled(&o->q.vring, &f->elem, &f->buf, f->len);
                g_assert_cmpuint(vring_publish(&o->q.vring), ==, 0);
                g_assert_false(driver_has_used(&o->q.drv));
            }
        }
        g_assert_cmpuint(o->q.vring.inuse, ==, 3);
        finish(o, o->taken + first);
        publish_and_take(o);
        g_assert_cmpuint(o->q.vring.inuse, ==, 0);
    }
}

typedef struct OrderCase {
    const char *path;
    void (*func)(OrderedQueue *o);
    unsigned least;             /* entries that the queue has to have */
    bool unfinished;            /* the driver does not get all of it back */
} OrderCase;

static const OrderCase cases[] = {
    { "/vring/in-order/full-ring/backwards", test_full_ring_backwards },
    { "/vring/in-order/full-ring/forwards", test_full_ring_forwards },
    { "/vring/in-order/full-ring/one-chain", test_chain_as_long_as_the_ring },
    { "/vring/in-order/random-order", test_random_order },
    { "/vring/in-order/notify", test_notify, .least = 3 },
    { "/vring/in-order/broken", test_broken, .least = 3, .unfinished = true },
    { "/vring/in-order/gaps", test_gaps },
    { "/vring/in-order/disabled", test_disabled, .least = 3 },
    { "/vring/in-order/pin", test_pin, .least = 3 },
    { "/vring/in-order/ring-lost", test_ring_lost,
      .least = 3, .unfinished = true },
};

static void run_case(const OrderCase *c, const TestMode *mode, unsigned num)
{
    VringConfig config = test_config(mode, num);
    OrderedQueue o;

    g_test_message("%s, %u", mode->name, num);
    ordered_init(&o, &config);
    c->func(&o);
    if (c->unfinished) {
        test_queue_cleanup(&o.q);
    } else {
        ordered_cleanup(&o);
    }
}

/* In each mode and size */
static void test_case(const void *opaque)
{
    const OrderCase *c = opaque;

    for (unsigned i = 0; i < ARRAY_SIZE(modes); i++) {
        for (unsigned s = 0; s < sizes_of(&modes[i]); s++) {
            if (sizes[s] >= c->least) {
                run_case(c, &modes[i], sizes[s]);
            }
        }
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    test_add_cases(cases, test_case);
    return g_test_run();
}
