/*
 * Tests of the ring: driver and device at the same time
 *
 * Knows what both sides owe each other in ordering, in either format, and that
 * the device may use buffers in another order.  A driver thread and a
 * device thread share a ring; both obey the other's suppression of
 * notifications, and sleep when they have nothing to do.  A notification that
 * is missing leaves both asleep, which the time limit on each sleep turns
 * into a failure.  Data, descriptors and elements are accessed plainly, so
 * that under ThreadSanitizer a missing barrier is a race.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include "qemu/atomic.h"
#include "qapi/error.h"
#include "vring-test-driver.h"

/* A hang guard only: no test passes or fails by how long it takes. */
#define STALL_MS 20000

#define SLOT_SIZE 32            /* data of one buffer */
#define SPARE_BASE 0x40000000ull

typedef struct StressCase {
    const char *path;
    unsigned num;
    bool event_idx;
    bool big_endian;
    bool indirect;
    bool packed;
    bool in_order;
    bool memory_changes;        /* a third thread replaces the table */
    unsigned rounds;            /* ten times as many with "-m slow" */
} StressCase;

/*
 * covers: SPLIT-6, SPLIT-14, SPLIT-15, SPLIT-38, SPLIT-39, SPLIT-41,
 * SPLIT-43, SPLIT-44, PLAT-8: small rings sleep often, large ones seldom
 */
static const StressCase stress_cases[] = {
    { "/vring/stress/flags/1", .num = 1, .rounds = 4000 },
    { "/vring/stress/flags/2", .num = 2, .rounds = 4000 },
    { "/vring/stress/flags/16", .num = 16, .rounds = 12000 },
    { "/vring/stress/flags/256", .num = 256, .rounds = 20000 },
    { "/vring/stress/event-idx/1", .num = 1, .event_idx = true,
      .rounds = 4000 },
    { "/vring/stress/event-idx/2", .num = 2, .event_idx = true,
      .rounds = 4000 },
    { "/vring/stress/event-idx/16", .num = 16, .event_idx = true,
      .rounds = 12000 },
    { "/vring/stress/event-idx/256", .num = 256, .event_idx = true,
      .rounds = 20000 },
    { "/vring/stress/big-endian", .num = 8, .event_idx = true,
      .big_endian = true, .rounds = 8000 },
    { "/vring/stress/indirect", .num = 8, .event_idx = true,
      .indirect = true, .rounds = 8000 },
    /* covers: G11, M6 */
    { "/vring/stress/memory-changes", .num = 16, .event_idx = true,
      .memory_changes = true, .rounds = 8000 },

    /* covers: PACK-8, PACK-48, PACK-49, PACK-51 */
    { "/vring/stress/packed/flags/1", .num = 1, .packed = true,
      .rounds = 4000 },
    { "/vring/stress/packed/flags/2", .num = 2, .packed = true,
      .rounds = 4000 },
    { "/vring/stress/packed/flags/17", .num = 17, .packed = true,
      .rounds = 12000 },
    { "/vring/stress/packed/flags/256", .num = 256, .packed = true,
      .rounds = 20000 },
    { "/vring/stress/packed/event-idx/1", .num = 1, .packed = true,
      .event_idx = true, .rounds = 4000 },
    { "/vring/stress/packed/event-idx/3", .num = 3, .packed = true,
      .event_idx = true, .rounds = 4000 },
    { "/vring/stress/packed/event-idx/17", .num = 17, .packed = true,
      .event_idx = true, .rounds = 12000 },
    { "/vring/stress/packed/event-idx/256", .num = 256, .packed = true,
      .event_idx = true, .rounds = 20000 },
    { "/vring/stress/packed/indirect", .num = 7, .packed = true,
      .event_idx = true, .indirect = true, .rounds = 8000 },
    { "/vring/stress/packed/memory-changes", .num = 16, .packed = true,
      .event_idx = true, .memory_changes = true, .rounds = 8000 },

    /* covers: VQ-7, SPLIT-53 */
    { "/vring/stress/in-order/flags", .num = 16, .in_order = true,
      .rounds = 8000 },
    { "/vring/stress/in-order/event-idx", .num = 16, .in_order = true,
      .event_idx = true, .indirect = true, .rounds = 8000 },
    { "/vring/stress/in-order/packed/flags", .num = 17, .packed = true,
      .in_order = true, .rounds = 8000 },
    { "/vring/stress/in-order/packed/event-idx", .num = 15, .packed = true,
      .in_order = true, .event_idx = true, .rounds = 8000 },
};

typedef struct Stress {
    const StressCase *c;
    unsigned rounds;
    TestQueue q;
    int kick;                   /* eventfd: available buffer notification */
    int irq;                    /* eventfd: used buffer notification */
    bool done;                  /* atomic: both sides have finished */
    unsigned kicks, irqs;       /* sent; each has one writer */

    /* How often the device found a new table of memory, or the same one */
    unsigned changes;           /* with nothing popped */
    unsigned held_changes;      /* with elements that hold the old one */
    unsigned same;
} Stress;

static void event_send(int fd)
{
    uint64_t one = 1;

    g_assert_cmpint(write(fd, &one, sizeof(one)), ==, sizeof(one));
}

/* Sleeps until the event comes; a lost one ends the test */
static void event_wait(int fd, const char *who)
{
    struct pollfd pfd = { .fd = fd, .events = POLLIN };
    uint64_t value;
    int ret;

    do {
        ret = poll(&pfd, 1, STALL_MS);
    } while (ret < 0 && errno == EINTR);
    if (ret != 1) {
        g_error("%s was not notified: a notification is lost", who);
    }
    g_assert_cmpint(read(fd, &value, sizeof(value)), ==, sizeof(value));
}

/* What the buffer of round @n holds when the device has filled it in */
static uint8_t pattern(unsigned n, unsigned i)
{
    return n * 7 + i;
}

/* The device */

/* The device holds that many before it returns them, the last one first */
#define MOST_HELD 5

typedef struct Held {
    VirtQueueElement elem[MOST_HELD];
    VringVectors buf[MOST_HELD];
} Held;

static void device_serve(Stress *s, const VirtQueueElement *elem,
                         VringVectors *buf)
{
    const uint32_t *in = elem->out_sg[0].iov_base;
    uint8_t *out = elem->in_sg[0].iov_base;

    g_assert_cmpuint(elem->out_num, ==, 1);
    g_assert_cmpuint(elem->in_num, ==, 1);
    g_assert_cmpuint(elem->out_sg[0].iov_len, ==, sizeof(*in));
    g_assert_cmpuint(elem->in_sg[0].iov_len, ==, SLOT_SIZE - sizeof(*in));
    for (unsigned i = 0; i < elem->in_sg[0].iov_len; i++) {
        out[i] = pattern(*in, i);
    }
    vring_push(&s->q.vring, elem, buf, *in);
}

static void device_publish(Stress *s)
{
    if (vring_publish(&s->q.vring) && vring_should_notify(&s->q.vring)) {
        s->irqs++;
        event_send(s->irq);
    }
}

/* The table may change at any moment of the device's */
static void device_refresh(Stress *s)
{
    const VringRamRef *old = s->q.vring.ram_ref;

    vring_refresh_memory(&s->q.vring);
    if (s->q.vring.ram_ref == old) {
        s->same++;
    } else if (s->q.vring.inuse) {
        s->held_changes++;
    } else {
        s->changes++;
    }
}

static unsigned device_batch(Stress *s, Held *held, unsigned batch)
{
    unsigned n = 0;

    while (n < batch) {
        int ret = vring_pop(&s->q.vring, &held->elem[n], &held->buf[n]);

        g_assert_cmpint(ret, >=, 0);
        if (!ret) {
            break;
        }
        n++;
    }
    if (n) {
        device_refresh(s);
    }
    for (unsigned i = n; i-- > 0;) {
        device_serve(s, &held->elem[i], &held->buf[i]);
    }
    device_publish(s);
    return n;
}

/* One pass of what the data plane does when it is notified */
static unsigned device_pass(Stress *s, Held *held, unsigned batch)
{
    unsigned n, sum = 0;

    device_refresh(s);
    do {
        vring_disable_notification(&s->q.vring);
        while ((n = device_batch(s, held, batch))) {
            sum += n;
        }
    } while (vring_enable_notification(&s->q.vring));
    return sum;
}

static void *device_thread(void *opaque)
{
    Stress *s = opaque;
    unsigned served = 0;
    Held held;

    for (unsigned i = 0; i < MOST_HELD; i++) {
        vring_vectors_init(&held.buf[i]);
    }
    for (unsigned pass = 0; served < s->rounds; pass++) {
        unsigned n = device_pass(s, &held, 1 + pass % MOST_HELD);

        served += n;
        if (served < s->rounds) {
            event_wait(s->kick, "the device");
        }
    }
    g_assert_cmpuint(served, ==, s->rounds);
    return NULL;
}

/* The driver */

#define STRESS_IDS 65536

typedef struct StressDriver {
    Stress *s;
    unsigned *free;             /* slots that the driver may use */
    unsigned nfree;
    unsigned *round;            /* by slot: which round it is in */
    unsigned *slot_of_id;
    unsigned offered, taken;
} StressDriver;

/* Where slot @i has its data and, if indirect, its table: from DATA_BASE on */
static unsigned slot_data(unsigned i)
{
    return SLOT_SIZE * i;
}

static unsigned slot_table(unsigned i)
{
    return TABLE_BASE - DATA_BASE + 2 * 16 * i;
}

/* Each chain has two descriptors, hence rings of one need a table. */
static bool stress_indirect(const StressCase *c)
{
    return c->indirect || c->num == 1;
}

static unsigned stress_slots(const StressCase *c)
{
    return stress_indirect(c) ? c->num : c->num / 2;
}

/* Ids of a packed ring are any numbers, so that these are from all over. */
static uint16_t stress_id(const StressCase *c, unsigned i)
{
    return c->packed ? 0xffff - 251 * i : stress_indirect(c) ? i : 2 * i;
}

static void driver_submit(StressDriver *d)
{
    TestQueue *q = &d->s->q;
    bool indirect = stress_indirect(d->s->c);
    unsigned i = d->free[--d->nfree];
    uint8_t *data = q->data + slot_data(i);
    uint32_t round = d->offered++;
    const TestDesc desc[] = {
        { DATA_BASE + slot_data(i), 4, NEXT, 1 },
        { DATA_BASE + slot_data(i) + 4, SLOT_SIZE - 4, WRITE },
    };
    const TestDesc table = {
        DATA_BASE + slot_table(i), sizeof(desc), INDIRECT,
    };
    uint16_t id;

    memcpy(data, &round, sizeof(round));
    memset(data + 4, 0, SLOT_SIZE - 4);
    d->round[i] = round;
    if (indirect) {
        driver_set_table(&q->drv, q->data + slot_table(i), desc, 2);
    }
    id = driver_add_chain(&q->drv, stress_id(d->s->c, i),
                          indirect ? &table : desc, indirect ? 1 : 2);
    d->slot_of_id[id] = i;
}

static void driver_submit_batch(StressDriver *d, unsigned max)
{
    unsigned n = MIN(MIN(d->nfree, max), d->s->rounds - d->offered);

    if (!n) {
        return;
    }
    while (n--) {
        driver_submit(d);
    }
    driver_expose(&d->s->q.drv);
    if (driver_must_kick(&d->s->q.drv)) {
        d->s->kicks++;
        event_send(d->s->kick);
    }
}

static void driver_check_data(StressDriver *d, unsigned i)
{
    const uint8_t *data = d->s->q.data + slot_data(i);

    for (unsigned j = 0; j < SLOT_SIZE - 4; j++) {
        g_assert_cmphex(data[4 + j], ==, pattern(d->round[i], j));
    }
}

static bool driver_collect(StressDriver *d)
{
    uint32_t id, len;
    bool progress = false;

    while (driver_take(&d->s->q.drv, &id, &len)) {
        unsigned i;

        g_assert_cmpuint(id, <, STRESS_IDS);
        i = d->slot_of_id[id];
        g_assert_cmpuint(i, <, stress_slots(d->s->c));
        d->slot_of_id[id] = STRESS_IDS;
        g_assert_cmpuint(len, ==, d->round[i]);
        driver_check_data(d, i);
        d->free[d->nfree++] = i;
        d->taken++;
        progress = true;
    }
    return progress;
}

static void driver_run(StressDriver *d)
{
    const StressCase *c = d->s->c;

    for (unsigned pass = 0; d->taken < d->s->rounds; pass++) {
        /* At times all slots, at times few, so that the device runs dry */
        driver_submit_batch(d, pass % 3 ? 1 + pass % 7 : c->num);
        driver_refuse_irq(&d->s->q.drv);
        if (!driver_collect(d) && !driver_ask_irq(&d->s->q.drv)) {
            event_wait(d->s->irq, "the driver");
        }
    }
}

static void driver_main(Stress *s)
{
    unsigned slots = stress_slots(s->c);
    StressDriver d = {
        .s = s,
        .free = g_new(unsigned, slots),
        .round = g_new(unsigned, slots),
        .slot_of_id = g_new(unsigned, STRESS_IDS),
    };

    while (d.nfree < slots) {
        d.free[d.nfree] = d.nfree;
        d.nfree++;
    }
    for (unsigned i = 0; i < STRESS_IDS; i++) {
        d.slot_of_id[i] = STRESS_IDS;
    }
    driver_run(&d);
    g_free(d.free);
    g_free(d.round);
    g_free(d.slot_of_id);
}

/* The hot-plugger: the table changes, the ring stays where it is */

static void *memory_thread(void *opaque)
{
    Stress *s = opaque;

    while (!qatomic_read(&s->done)) {
        test_memory_add(s->q.mem, SPARE_BASE, TEST_PAGE, TEST_RAM);
        test_memory_commit(s->q.mem);
        g_usleep(20);
        test_memory_del(s->q.mem, SPARE_BASE);
        test_memory_commit(s->q.mem);
        g_usleep(20);
    }
    return NULL;
}

#define STRESS_TRIES 50         /* times all rounds until a change was seen */

static void stress_run(Stress *s)
{
    pthread_t device, memory;

    qatomic_set(&s->done, false);
    g_assert(!pthread_create(&device, NULL, device_thread, s));
    if (s->c->memory_changes) {
        g_assert(!pthread_create(&memory, NULL, memory_thread, s));
    }
    driver_main(s);
    qatomic_set(&s->done, true);
    g_assert(!pthread_join(device, NULL));
    if (s->c->memory_changes) {
        g_assert(!pthread_join(memory, NULL));
    }
}

static bool saw_changes(const Stress *s)
{
    return s->changes && s->held_changes && s->same;
}

/* A change that the device did not meet in each of its states shows nothing */
static void stress_run_changes(Stress *s)
{
    for (unsigned i = 1; i < STRESS_TRIES && !saw_changes(s); i++) {
        stress_run(s);
    }
    g_test_message("%u changes, %u with elements held, %u looks without one",
                   s->changes, s->held_changes, s->same);
    g_assert_true(saw_changes(s));
}

static void test_stress(const void *opaque)
{
    const StressCase *c = opaque;
    const TestMode mode = {
        .big_endian = c->big_endian,
        .event_idx = c->event_idx,
        .packed = c->packed,
        .in_order = c->in_order,
    };
    VringConfig config = test_config(&mode, c->num);
    Stress s = {
        .c = c,
        .rounds = c->rounds * (g_test_slow() ? 10 : 1),
        .kick = eventfd(0, EFD_CLOEXEC),
        .irq = eventfd(0, EFD_CLOEXEC),
    };

    test_queue_init(&s.q, &config);
    stress_run(&s);
    if (c->memory_changes) {
        stress_run_changes(&s);
    } else {
        g_assert_cmpuint(s.changes + s.held_changes, ==, 0);
    }
    vring_refresh_memory(&s.q.vring);
    g_test_message("%u requests, %u kicks, %u irqs", s.rounds, s.kicks,
                   s.irqs);
    test_queue_cleanup(&s.q);
    close(s.kick);
    close(s.irq);
}

/*
 * One store and one load on each side, again and again at the same moment: at
 * least one side must see what the other one stored.  Without the barrier on
 * one side both miss it sooner or later, which is a lost notification.
 */

#define LITMUS_LINES 12

typedef struct Litmus {
    TestQueue q;
    bool avail;                 /* available or used buffer notifications? */
    unsigned rounds;
    unsigned step;              /* atomic: number of arrivals at meet() */
    unsigned noise[LITMUS_LINES][16]; /* atomic: a cache line each */
    bool device_noticed;        /* by the one thread, read behind meet() */
} Litmus;

/* Both threads leave at about the same time, and see all that was before */
static void meet(Litmus *l, unsigned *passed)
{
    unsigned both = ++*passed * 2;

    /* Pairs with the one below in the other thread */
    smp_mb();
    qatomic_inc(&l->step);
    for (unsigned i = 1; qatomic_read(&l->step) < both; i++) {
        if (i % 512 == 0) {
            sched_yield();      /* perhaps there is but one CPU */
        }
    }
    /* Pairs with the one above in the other thread */
    smp_mb();
}

/* Shifts the driver against the device, so that some rounds meet exactly */
static void litmus_delay(unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        barrier();
    }
}

/*
 * Stores to cache lines that the other side had last: the device's next store
 * has to wait behind them, and its next load overtakes it, if it may.
 */
static void litmus_noise(Litmus *l, unsigned n)
{
    for (unsigned i = 0; i < LITMUS_LINES; i++) {
        qatomic_set(&l->noise[i][0], n);
    }
}

static void litmus_take_buffer(Litmus *l)
{
    VirtQueueElement elem;

    vring_disable_notification(&l->q.vring);
    test_queue_pop(&l->q, &elem);
    vring_push(&l->q.vring, &elem, &l->q.buf, 0);
}

static void *litmus_device(void *opaque)
{
    Litmus *l = opaque;
    unsigned passed = 0;

    for (unsigned n = 0; n < l->rounds; n++) {
        if (!l->avail) {
            litmus_take_buffer(l);
        }
        meet(l, &passed);
        litmus_noise(l, n);
        if (l->avail) {
            l->device_noticed = vring_enable_notification(&l->q.vring);
        } else {
            vring_publish(&l->q.vring);
            l->device_noticed = vring_should_notify(&l->q.vring);
        }
        meet(l, &passed);
        if (l->avail) {
            litmus_take_buffer(l);
            vring_publish(&l->q.vring);
        }
        meet(l, &passed);
    }
    return NULL;
}

/* Makes a buffer available: does the driver see that it must notify? */
static bool litmus_offer(TestDriver *drv)
{
    driver_expose(drv);
    return driver_must_kick(drv);
}

/* Before the round: nothing is asked for, and one buffer is at hand. */
static void litmus_prepare(TestDriver *drv)
{
    const TestDesc desc = { DATA_BASE, 16, WRITE };

    driver_add_chain(drv, 0, &desc, 1);
    driver_refuse_irq(drv);
}

static void litmus_driver(Litmus *l)
{
    TestDriver *drv = &l->q.drv;
    unsigned passed = 0;
    uint32_t id, len;
    bool noticed;

    for (unsigned n = 0; n < l->rounds; n++) {
        if (l->avail) {
            litmus_prepare(drv);
        }
        litmus_noise(l, n);
        meet(l, &passed);
        litmus_delay(n * 7 % 512);
        noticed = l->avail ? litmus_offer(drv) : driver_ask_irq(drv);
        meet(l, &passed);
        g_assert_true(noticed || l->device_noticed);
        if (!l->avail) {
            g_assert_true(driver_take(drv, &id, &len));
            litmus_prepare(drv);
            driver_expose(drv);
        }
        meet(l, &passed);
        if (l->avail) {
            g_assert_true(driver_take(drv, &id, &len));
        }
    }
}

typedef struct LitmusCase {
    const char *path;
    bool avail;
    bool event_idx;
    bool packed;
} LitmusCase;

static const LitmusCase litmus_cases[] = {
    /* covers: SPLIT-38 */
    { "/vring/stress/barrier/used-flags", false, false },
    { "/vring/stress/barrier/used-event", false, true },
    /* covers: SPLIT-44 */
    { "/vring/stress/barrier/avail-flags", true, false },
    { "/vring/stress/barrier/avail-event", true, true },
    /* covers: PACK-49 */
    { "/vring/stress/barrier/packed-irq-flags", false, false, true },
    { "/vring/stress/barrier/packed-irq-event", false, true, true },
    /* covers: PACK-48 */
    { "/vring/stress/barrier/packed-kick-flags", true, false, true },
    { "/vring/stress/barrier/packed-kick-event", true, true, true },
};

static void test_litmus(const void *opaque)
{
    const LitmusCase *c = opaque;
    const TestMode mode = {
        .event_idx = c->event_idx,
        .packed = c->packed,
    };
    VringConfig config = test_config(&mode, 4);
    Litmus l = {
        .avail = c->avail,
        .rounds = g_test_slow() ? 100000 : 10000,
    };
    pthread_t device;

    test_queue_init(&l.q, &config);
    /* What takes time between store and load would hide the race */
    test_memory_set_logging(l.q.mem, RING_BASE, false);
    /* The first answer is yes, whatever the driver wants */
    vring_should_notify(&l.q.vring);
    if (!c->avail) {
        litmus_prepare(&l.q.drv);
        driver_expose(&l.q.drv);
    }
    g_assert(!pthread_create(&device, NULL, litmus_device, &l));
    litmus_driver(&l);
    g_assert(!pthread_join(device, NULL));
    test_queue_cleanup(&l.q);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    test_add_cases(stress_cases, test_stress);
    test_add_cases(litmus_cases, test_litmus);
    return g_test_run();
}
