/*
 * Tests of userspace polling of some of an AioContext's handlers
 *
 * Handlers that are active are polled, and aio_poll() does not have to ask the
 * kernel while that makes progress.  Here one handler, the busy one, is ready
 * at each poll, and the others must neither starve nor be polled for nothing.
 *
 * Where something must happen in time, a machine can be slow by half a second
 * before that fails.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "qapi/error.h"
#include "qemu/rcu.h"
#include "qemu/thread.h"
#include "qemu/timer.h"

#define POLL_MAX_NS     (1 * SCALE_MS)

/* See AIO_POLL_ALL_MAX and POLL_IDLE_MIN_NS in util/ */
#define POLL_ALL_MAX    8
#define IDLE_MIN_NS     (10 * SCALE_MS)

/* Longer than that; a fraction of the time until a handler is idle then */
#define LONG_POLL_NS    (100 * SCALE_MS)

/* Something that does not happen within this time does not happen at all */
#define DEADLINE_NS     (10 * NANOSECONDS_PER_SECOND)

typedef struct TestHandler TestHandler;

struct TestHandler {
    EventNotifier e;
    bool ready;             /* what polling finds */
    bool ready_at_end;      /* an event while polling ends, until handled */
    bool polling;           /* between io_poll_begin() and io_poll_end() */
    bool added;
    void (*on_poll)(void);  /* may be NULL */
    void (*on_ready)(TestHandler *h);   /* the same, called once */
    unsigned polls;
    unsigned handled;       /* found by polling */
    unsigned reads;         /* found by the fd monitor */
    unsigned begins;
    unsigned ends;
};

static AioContext *ctx;
static TestHandler *handlers;
static unsigned num_handlers;

static int64_t now_ns(void)
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

static void handler_read(EventNotifier *e)
{
    TestHandler *h = container_of(e, TestHandler, e);

    event_notifier_test_and_clear(e);
    /* Devices rely on this when they enable notifications again */
    g_assert_false(h->polling);
    h->reads++;
}

static bool handler_poll(void *opaque)
{
    TestHandler *h = container_of(opaque, TestHandler, e);

    h->polls++;
    if (h->on_poll) {
        h->on_poll();
    }
    return h->ready;
}

static void handler_poll_ready(EventNotifier *e)
{
    TestHandler *h = container_of(e, TestHandler, e);

    h->handled++;
    if (h->on_ready) {
        void (*on_ready)(TestHandler *h) = h->on_ready;

        h->on_ready = NULL;
        on_ready(h);
    } else if (h->ready_at_end) {
        h->ready_at_end = false;
        h->ready = false;
    }
}

static void handler_poll_begin(EventNotifier *e)
{
    TestHandler *h = container_of(e, TestHandler, e);

    g_assert_false(h->polling);
    h->polling = true;
    h->begins++;
}

static void handler_poll_end(EventNotifier *e)
{
    TestHandler *h = container_of(e, TestHandler, e);

    g_assert_true(h->polling);
    h->polling = false;
    h->ends++;
    if (h->ready_at_end) {
        h->ready = true;
    }
}

/* These are what a device calls to attach a queue, in this order */
static void handler_set(TestHandler *h)
{
    aio_set_event_notifier(ctx, &h->e, handler_read, handler_poll,
                           handler_poll_ready);
}

static void handler_set_poll(TestHandler *h)
{
    aio_set_event_notifier_poll(ctx, &h->e, handler_poll_begin,
                                handler_poll_end);
}

static void handler_add(TestHandler *h)
{
    g_assert_cmpint(event_notifier_init(&h->e, 0), ==, 0);
    handler_set(h);
    handler_set_poll(h);
    h->added = true;
}

static void handler_remove(TestHandler *h)
{
    if (h->added) {
        h->added = false;
        aio_set_event_notifier(ctx, &h->e, NULL, NULL, NULL);
        event_notifier_cleanup(&h->e);
    }
}

/*
 * Run the event loop until the condition is true.  It does not sleep, because
 * the busy handler is polled.
 */
#define RUN_UNTIL(condition)                                    \
    do {                                                        \
        int64_t deadline_ = now_ns() + DEADLINE_NS;             \
                                                                \
        while (!(condition)) {                                  \
            aio_poll(ctx, true);                                \
            g_assert_cmpint(now_ns(), <, deadline_);            \
        }                                                       \
    } while (0)

/* Let the fd monitor find a handler, so that it is polled from now on */
static void handler_wake(TestHandler *h)
{
    unsigned reads = h->reads, polls = h->polls;

    event_notifier_set(&h->e);
    RUN_UNTIL(h->reads > reads && h->polls > polls);
}

/* The same where nothing is polled yet, and aio_poll() may sleep */
static void activate(TestHandler *h)
{
    unsigned handled = h->handled;

    while (h->handled == handled) {
        event_notifier_set(&h->e);
        aio_poll(ctx, true);
    }
    event_notifier_test_and_clear(&h->e);
}

/*
 * Make a context whose first handler is busy.  With its own notifier, which is
 * polled, too, it has @n handlers.
 */
static void set_up(unsigned n, int64_t poll_max_ns)
{
    ctx = aio_context_new(&error_abort);
    qemu_set_current_aio_context(ctx);
    /* IOThreads have one, which decides on the fd monitor */
    g_source_unref(aio_get_g_source(ctx));
    /* Polling times never shrink, however slow the machine is */
    aio_context_set_poll_params(ctx, poll_max_ns, 0, 1, &error_abort);

    event_notifier_set(&ctx->notifier);
    num_handlers = n - 1;
    handlers = g_new0(TestHandler, num_handlers);
    for (unsigned i = 0; i < num_handlers; i++) {
        handler_add(&handlers[i]);
    }
    handlers[0].ready = true;
    activate(&handlers[0]);
}

static void tear_down(void)
{
    for (unsigned i = 0; i < num_handlers; i++) {
        handler_remove(&handlers[i]);
    }
    /* Of those that were removed, none is waited for. */
    g_assert_cmpint(ctx->handler_cnt, ==, 1);
    g_free(handlers);
    aio_context_unref(ctx);
}

static void run_for(int64_t ns)
{
    int64_t end = now_ns() + ns;

    RUN_UNTIL(now_ns() >= end);
}

/* Starvation */

/* Events of a handler that was never polled are found, each of them. */
static void test_never_polled(int64_t n)
{
    set_up(n, POLL_MAX_NS);
    for (unsigned i = 1; i < num_handlers; i++) {
        g_assert_cmpuint(handlers[i].polls, ==, 0);
        event_notifier_set(&handlers[i].e);
        RUN_UNTIL(handlers[i].reads);
    }
    tear_down();
}

#ifdef CONFIG_EPOLL_CREATE1
/* Many handlers are no reason to tell the kernel of all of them each time. */
static void test_epoll(int64_t unused)
{
    set_up(400, POLL_MAX_NS);
    g_assert_cmpint(ctx->epollfd, >=, 0);
    tear_down();
}
#endif

static void sleep_a_moment(void)
{
    g_usleep(100);
}

static void wake_other(void)
{
    event_notifier_set(&handlers[1].e);
}

/* The same while polling goes on for long and does not find anything. */
static void test_in_vain(int64_t unused)
{
    TestHandler *h;
    int64_t start;

    set_up(3, POLL_MAX_NS);
    h = &handlers[0];

    /* An event that comes late lets the context poll for as long as it may. */
    aio_context_set_poll_params(ctx, DEADLINE_NS, INT32_MAX, 1, &error_abort);
    h->on_poll = sleep_a_moment;
    activate(h);
    activate(h);

    h->on_poll = wake_other;
    h->ready = false;
    start = now_ns();
    aio_poll(ctx, true);
    g_assert_cmpuint(handlers[1].reads, ==, 1);
    g_assert_cmpint(now_ns() - start, <, DEADLINE_NS / 2);
    tear_down();
}

typedef struct Chain {
    QEMUBH *bh;
    bool stop;
} Chain;

static void chain_bh(void *opaque)
{
    Chain *chain = opaque;

    if (!chain->stop) {
        qemu_bh_schedule(chain->bh);
    }
}

/* The same where a BH is always scheduled: nothing at all is polled. */
static void test_bottom_halves(int64_t unused)
{
    Chain chain = {};
    TestHandler *h;

    set_up(POLL_ALL_MAX, POLL_MAX_NS);
    h = &handlers[num_handlers - 1];
    chain.bh = aio_bh_new(ctx, chain_bh, &chain);
    qemu_bh_schedule(chain.bh);
    aio_poll(ctx, true);

    event_notifier_set(&h->e);
    RUN_UNTIL(h->reads);

    chain.stop = true;
    aio_poll(ctx, true);
    qemu_bh_delete(chain.bh);
    tear_down();
}

/* A handler that is set anew begins like a new one. */
static void test_set_anew(int64_t unused)
{
    TestHandler *h;
    unsigned reads;

    set_up(POLL_ALL_MAX, POLL_MAX_NS);
    for (unsigned i = 1; i < num_handlers; i++) {
        handler_wake(&handlers[i]);
    }
    h = &handlers[num_handlers - 1];
    for (unsigned i = 0; i < 3; i++) {
        handler_set(h);
        h->polling = false;
        handler_set_poll(h);
        reads = h->reads;
        event_notifier_set(&h->e);
        RUN_UNTIL(h->reads > reads);
    }
    tear_down();
}

/*
 * Polling finds an event and leaves the file descriptor readable.  That is no
 * other event, and no reason to end polling, which would let the driver of a
 * device notify once more, and so on.
 */
static void test_stale(int64_t unused)
{
    unsigned reads, ends;
    TestHandler *h;

    set_up(POLL_ALL_MAX, POLL_MAX_NS);
    RUN_UNTIL(handlers[0].polling);
    reads = handlers[0].reads;
    ends = handlers[0].ends;
    event_notifier_set(&handlers[0].e);
    run_for(3 * SCALE_MS);

    /* Other handlers are found meanwhile. */
    h = &handlers[num_handlers - 1];
    event_notifier_set(&h->e);
    RUN_UNTIL(h->reads);
    g_assert_cmpuint(handlers[0].reads, ==, reads);
    g_assert_cmpuint(handlers[0].ends, ==, ends);
    tear_down();
}

/* Callbacks for the begin and the end of polling */

/* Nothing is polled any more: the event loop sleeps until there is an event. */
static void sleep_until_read(TestHandler *wake)
{
    unsigned reads = wake->reads;

    aio_context_set_poll_params(ctx, 0, 0, 1, &error_abort);
    event_notifier_set(&wake->e);
    while (wake->reads == reads) {
        aio_poll(ctx, true);
    }
}

static void poll_again(void)
{
    aio_context_set_poll_params(ctx, POLL_MAX_NS, 0, 1, &error_abort);
    handlers[0].ready = true;
    activate(&handlers[0]);
    RUN_UNTIL(handlers[0].polling);
}

/*
 * Another thread that attaches a queue sets them a moment after the event loop
 * has found and polled the handler.
 */
static void test_set_late(int64_t unused)
{
    TestHandler *h;

    set_up(POLL_ALL_MAX, POLL_MAX_NS);
    RUN_UNTIL(handlers[0].polling);
    h = &handlers[1];
    handler_set(h);
    handler_wake(h);
    g_assert_cmpuint(h->begins, ==, 0);

    handler_set_poll(h);
    RUN_UNTIL(h->polling);
    g_assert_cmpuint(handlers[0].ends, ==, 0);
    sleep_until_read(&handlers[2]);
    g_assert_cmpuint(h->begins, ==, 1);
    g_assert_cmpuint(h->ends, ==, 1);
    tear_down();
}

static unsigned other_begins, other_ends;

static void other_poll_begin(EventNotifier *e)
{
    g_assert_cmpuint(other_begins++, ==, 0);
}

static void other_poll_end(EventNotifier *e)
{
    g_assert_cmpuint(other_begins, ==, 1);
    g_assert_cmpuint(other_ends++, ==, 0);
}

/* Of two pairs that are set in turn while polling, none is mixed up. */
static void test_change(int64_t unused)
{
    TestHandler *h;

    set_up(POLL_ALL_MAX, POLL_MAX_NS);
    RUN_UNTIL(handlers[0].polling);
    h = &handlers[1];
    handler_wake(h);
    g_assert_true(h->polling);

    aio_set_event_notifier_poll(ctx, &h->e, other_poll_begin, other_poll_end);
    RUN_UNTIL(other_begins);
    sleep_until_read(&handlers[2]);
    g_assert_cmpuint(other_ends, ==, 1);
    g_assert_cmpuint(h->ends, ==, 0);

    /* The first pair again, and removed while polling */
    h->polling = false;
    handler_set_poll(h);
    poll_again();
    g_assert_true(h->polling);
    aio_set_event_notifier_poll(ctx, &h->e, NULL, NULL);
    sleep_until_read(&handlers[2]);
    g_assert_cmpuint(h->begins, ==, 2);
    g_assert_cmpuint(h->ends, ==, 0);
    tear_down();
}

static void nested_other(TestHandler *h)
{
    g_assert_true(h->polling);
    sleep_until_read(&handlers[2]);
    h->ready_at_end = true;
}

static void nested_same(TestHandler *h)
{
    g_assert_true(h->polling);
    sleep_until_read(h);
    h->ready_at_end = false;
    h->ready = false;
}

/*
 * Poll mode ends within io_poll_ready(), and with it that of the handler.  What
 * comes in between is handled.
 */
static void test_nested(void (*on_ready)(TestHandler *h), unsigned handled)
{
    TestHandler *h;

    set_up(4, POLL_MAX_NS);
    RUN_UNTIL(handlers[0].polling);
    h = &handlers[1];
    handler_wake(h);
    handlers[0].ready = false;

    h->on_ready = on_ready;
    h->ready = true;
    RUN_UNTIL(h->handled);
    g_assert_cmpuint(h->handled, ==, handled);
    g_assert_cmpuint(h->begins, ==, 1);
    g_assert_cmpuint(h->ends, ==, 1);
    g_assert_false(h->polling);

    /* It begins again with the event loop's next turn. */
    poll_again();
    g_assert_true(h->polling);
    tear_down();
}

static void test_nested_other(int64_t unused)
{
    test_nested(nested_other, 2);
}

static void test_nested_same(int64_t unused)
{
    test_nested(nested_same, 1);
}

/*
 * What a queue does that another thread detaches while it is polled: the first
 * event after it is attached again corrects its state.
 */
static void elsewhere_read(EventNotifier *e)
{
    TestHandler *h = container_of(e, TestHandler, e);

    event_notifier_test_and_clear(e);
    h->polling = false;
    qatomic_set(&h->reads, h->reads + 1);
}

static void elsewhere_poll_begin(EventNotifier *e)
{
    TestHandler *h = container_of(e, TestHandler, e);

    /* It may be set already: the event loop does not know that yet. */
    h->polling = true;
    h->begins++;
}

#define ELSEWHERE_ROUNDS 200

/* @slow: the event loop polls the handler before its callbacks are set. */
static void elsewhere_attach(TestHandler *h, bool slow)
{
    unsigned reads = qatomic_read(&h->reads);

    event_notifier_set(&h->e);
    aio_set_event_notifier(ctx, &h->e, elsewhere_read, handler_poll,
                           handler_poll_ready);
    while (slow && qatomic_read(&h->reads) == reads) {
        g_usleep(20);
    }
    aio_set_event_notifier_poll(ctx, &h->e, elsewhere_poll_begin,
                                handler_poll_end);
    event_notifier_set(&h->e);
}

static void *elsewhere_thread(void *opaque)
{
    bool *done = opaque;

    for (unsigned round = 0; round < ELSEWHERE_ROUNDS; round++) {
        for (unsigned i = 1; i < num_handlers; i++) {
            aio_set_event_notifier(ctx, &handlers[i].e, NULL, NULL, NULL);
        }
        /* Its callbacks are what they are.  Others are freed meanwhile. */
        handler_set_poll(&handlers[0]);
        for (unsigned i = 1; i < num_handlers; i++) {
            elsewhere_attach(&handlers[i], i == round % (4 * num_handlers));
        }
    }
    qatomic_store_release(done, true);
    return NULL;
}

/* Detach and attach while polling: no kick and no callback is lost. */
static void test_elsewhere(int64_t unused)
{
    QemuThread thread;
    bool done = false;

    set_up(POLL_ALL_MAX + 1, POLL_MAX_NS);
    RUN_UNTIL(handlers[0].polling);
    qemu_thread_create(&thread, "elsewhere", elsewhere_thread, &done,
                       QEMU_THREAD_JOINABLE);
    RUN_UNTIL(qatomic_load_acquire(&done));
    qemu_thread_join(&thread);

    for (unsigned i = 1; i < num_handlers; i++) {
        unsigned reads = handlers[i].reads;
        unsigned begins = handlers[i].begins;

        RUN_UNTIL(!handlers[i].polling);
        event_notifier_set(&handlers[i].e);
        RUN_UNTIL(handlers[i].reads > reads && handlers[i].begins > begins);
    }
    tear_down();
}

/* Idle handlers */

static bool none_polled(void)
{
    for (unsigned i = 1; i < num_handlers; i++) {
        if (handlers[i].polling) {
            return false;
        }
    }
    return handlers[0].polling;
}

static unsigned idle_polls(void)
{
    unsigned n = 0;

    for (unsigned i = 1; i < num_handlers; i++) {
        n += handlers[i].polls;
    }
    return n;
}

static void wake_all(void)
{
    for (unsigned i = 1; i < num_handlers; i++) {
        handler_wake(&handlers[i]);
    }
}

/* Wake all handlers up, and wait until only the busy one is polled. */
static void wait_idle(void)
{
    wake_all();
    RUN_UNTIL(none_polled());
}

/* All are polled, and have been but for moments in which polling ended */
static void check_all_polled(void)
{
    unsigned ends = handlers[0].ends;

    for (unsigned i = 1; i < num_handlers; i++) {
        g_assert_true(handlers[i].polling);
        g_assert_cmpuint(handlers[i].ends, <=, ends);
    }
}

/* Not polled after the time, and not before; polled again after an event. */
static void test_idle(int64_t n)
{
    unsigned polls, handled, ends;
    TestHandler *h;
    int64_t start;

    set_up(n, POLL_MAX_NS);
    start = now_ns();
    wait_idle();
    g_assert_cmpint(now_ns() - start, >=, IDLE_MIN_NS);

    polls = idle_polls();
    handled = handlers[0].handled;
    ends = handlers[0].ends;
    run_for(3 * IDLE_MIN_NS);
    g_assert_cmpuint(idle_polls(), ==, polls);
    /* The busy one was polled, without a break. */
    g_assert_cmpuint(handlers[0].handled, >, handled);
    g_assert_cmpuint(handlers[0].ends, ==, ends);

    h = &handlers[num_handlers / 2];
    h->ready = true;
    handler_wake(h);
    g_assert_cmpuint(handlers[0].ends, ==, ends);
    RUN_UNTIL(h->handled);
    tear_down();
}

/* Where there are only few, all are polled for ever. */
static void test_few(int64_t unused)
{
    set_up(POLL_ALL_MAX, POLL_MAX_NS);
    wake_all();
    run_for(3 * IDLE_MIN_NS);
    check_all_polled();
    tear_down();
}

/* The time is a multiple of the polling time, which may be any number. */
static void test_poll_max(int64_t poll_max_ns)
{
    set_up(POLL_ALL_MAX + 1, poll_max_ns);
    wake_all();
    run_for(2 * LONG_POLL_NS);
    check_all_polled();
    tear_down();
}

/* An event while a handler leaves polling is not lost. */
static void test_race(int64_t unused)
{
    TestHandler *h;

    set_up(POLL_ALL_MAX + 1, POLL_MAX_NS);
    h = &handlers[1];
    h->ready_at_end = true;
    wake_all();
    RUN_UNTIL(h->handled);
    g_assert_cmpuint(h->reads, ==, 1);
    tear_down();
}

/* A handler is removed: no event of it is handled any more. */
static void test_remove(int64_t unused)
{
    TestHandler *idle, *polled;
    unsigned reads, polls;

    set_up(POLL_ALL_MAX + 4, POLL_MAX_NS);
    wait_idle();
    idle = &handlers[1];
    polled = &handlers[2];
    handler_wake(polled);

    event_notifier_set(&idle->e);
    handler_remove(idle);
    handler_remove(polled);
    reads = idle->reads;
    polls = polled->polls;
    run_for(IDLE_MIN_NS);
    g_assert_cmpuint(idle->reads, ==, reads);
    g_assert_cmpuint(polled->polls, ==, polls);

    /* The others are still watched. */
    handler_wake(&handlers[3]);
    tear_down();
}

static void notify(void)
{
    aio_notify(ctx);
}

/* aio_notify() ends polling that goes on in vain, however long it was idle. */
static void test_notify(int64_t unused)
{
    TestHandler *h;
    unsigned polls;

    set_up(POLL_ALL_MAX + 1, POLL_MAX_NS);
    wait_idle();

    h = &handlers[0];
    h->on_poll = notify;
    h->ready = false;
    polls = h->polls;
    aio_poll(ctx, true);
    g_assert_cmpuint(h->polls, <=, polls + 2);
    tear_down();
}

typedef struct Test {
    const char *path;
    void (*run)(int64_t arg);
    int64_t arg;
} Test;

static const Test tests[] = {
#ifdef CONFIG_EPOLL_CREATE1
    { "epoll", test_epoll },
#endif
    { "never-polled/few", test_never_polled, 3 },
    { "never-polled/many", test_never_polled, 400 },
    { "never-polled/in-vain", test_in_vain },
    { "never-polled/bottom-halves", test_bottom_halves },
    { "never-polled/set-anew", test_set_anew },
    { "never-polled/stale", test_stale },
    { "callbacks/set-late", test_set_late },
    { "callbacks/change", test_change },
    { "callbacks/nested-other", test_nested_other },
    { "callbacks/nested-same", test_nested_same },
    { "callbacks/elsewhere", test_elsewhere },
    { "idle/bound", test_idle, POLL_ALL_MAX + 1 },
    { "idle/many", test_idle, 400 },
    { "idle/few", test_few },
    { "idle/long-polling", test_poll_max, LONG_POLL_NS },
    { "idle/endless-polling", test_poll_max, INT64_MAX },
    { "idle/race", test_race },
    { "idle/remove", test_remove },
    { "idle/notify", test_notify },
};

static void *test_thread(void *opaque)
{
    const Test *test = opaque;

    rcu_register_thread();
    test->run(test->arg);
    rcu_unregister_thread();
    return NULL;
}

/* In a thread of its own, since a thread has one context for its life */
static void run_test(gconstpointer opaque)
{
    QemuThread thread;

    qemu_thread_create(&thread, "test", test_thread, (void *)opaque,
                       QEMU_THREAD_JOINABLE);
    qemu_thread_join(&thread);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    for (unsigned i = 0; i < ARRAY_SIZE(tests); i++) {
        g_autofree char *path = g_strdup_printf("/aio-poll/%s",
                                                tests[i].path);

        g_test_add_data_func(path, &tests[i], run_test);
    }
    return g_test_run();
}
