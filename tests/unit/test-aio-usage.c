/*
 * Tests of what an event loop says of its use of time
 *
 * An event loop is brought into a state in which it stays: it sleeps, polls in
 * vain, or is busy.  Two reports in a row must then differ in the time of that
 * state, and in nothing else, to the nanosecond.  So nothing here depends on
 * how fast a machine is.
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

/* Something that does not happen within this time does not happen at all. */
#define DEADLINE_NS (20 * NANOSECONDS_PER_SECOND)

/* Longer than any test: polling ends when the test says so. */
#define POLL_NS (100 * NANOSECONDS_PER_SECOND)

/* With so many file descriptors the event loop uses epoll. */
#define EPOLL_HANDLERS 80

#define ROUNDS 1000

typedef enum FdMonitor {
    MON_POLL,
    MON_EPOLL,
    MON_IO_URING,
    MON_GLIB,           /* g_main_context_iteration() */
} FdMonitor;

typedef enum State {
    IDLE,
    POLLING,
    BUSY,
} State;

typedef struct Handler {
    EventNotifier e;
    bool ready;                 /* what polling finds */
    bool another_pass;          /* see nothing() */
    unsigned handled;
} Handler;

/* An event loop in a thread of its own, and what it is told to do */
typedef struct Loop {
    FdMonitor monitor;
    QemuThread thread;
    QemuSemaphore started;
    AioContext *ctx;
    GMainContext *gcontext;     /* for MON_GLIB */
    Handler *handlers;
    unsigned num_handlers;
    bool stop;
    bool nested;                /* hold() runs a nested event loop */
    bool held;                  /* hold() has begun to spin */
    bool release;               /* hold() may return */
    AioUsageReport report;
} Loop;

static int64_t now_ns(void)
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

#define WAIT_FOR(condition)                                     \
    do {                                                        \
        int64_t deadline_ = now_ns() + DEADLINE_NS;             \
                                                                \
        while (!(condition)) {                                  \
            g_usleep(10);                                       \
            g_assert_cmpint(now_ns(), <, deadline_);            \
        }                                                       \
    } while (0)

/* Handlers */

/*
 * With io_uring the pass after an event arms the file descriptor again, and
 * does not poll.  This makes it a pass that does not sleep, either.
 */
static void nothing(void *opaque)
{
}

static void handler_done(EventNotifier *e)
{
    Handler *h = container_of(e, Handler, e);

    qatomic_set(&h->ready, false);
    event_notifier_test_and_clear(e);
    if (h->another_pass) {
        aio_bh_schedule_oneshot(qemu_get_current_aio_context(), nothing, NULL);
    }
    qatomic_set(&h->handled, h->handled + 1);
}

static bool handler_poll(void *opaque)
{
    return qatomic_read(&container_of(opaque, Handler, e)->ready);
}

static void handlers_new(Loop *loop)
{
    loop->num_handlers = loop->monitor == MON_EPOLL ? EPOLL_HANDLERS : 1;
    loop->handlers = g_new0(Handler, loop->num_handlers);
    for (unsigned i = 0; i < loop->num_handlers; i++) {
        EventNotifier *e = &loop->handlers[i].e;

        loop->handlers[i].another_pass = loop->monitor == MON_IO_URING;
        g_assert_cmpint(event_notifier_init(e, 0), ==, 0);
        aio_set_event_notifier(loop->ctx, e, handler_done, handler_poll,
                               handler_done);
    }
}

static void handlers_free(Loop *loop)
{
    for (unsigned i = 0; i < loop->num_handlers; i++) {
        EventNotifier *e = &loop->handlers[i].e;

        aio_set_event_notifier(loop->ctx, e, NULL, NULL, NULL);
        event_notifier_cleanup(e);
    }
    g_free(loop->handlers);
}

/* An event, and wait until it was handled */
static void kick(Loop *loop)
{
    Handler *h = &loop->handlers[0];
    unsigned handled = qatomic_read(&h->handled);

    qatomic_set(&h->ready, true);
    event_notifier_set(&h->e);
    WAIT_FOR(qatomic_read(&h->handled) != handled);
}

/* The event loop */

static void context_new(Loop *loop)
{
    GSource *source;

    loop->ctx = aio_context_new(&error_abort);
    qemu_set_current_aio_context(loop->ctx);
    if (loop->monitor == MON_IO_URING) {
        return;
    }
    /* With a GSource, io_uring is not used. */
    source = aio_get_g_source(loop->ctx);
    if (loop->monitor == MON_GLIB) {
        loop->gcontext = g_main_context_new();
        g_main_context_set_poll_func(loop->gcontext, aio_usage_g_poll);
        g_source_attach(source, loop->gcontext);
    }
    g_source_unref(source);
}

static void context_free(Loop *loop)
{
    if (loop->gcontext) {
        g_source_destroy(&loop->ctx->source);
        g_main_context_unref(loop->gcontext);
    }
    aio_context_unref(loop->ctx);
}

static void *loop_thread(void *opaque)
{
    Loop *loop = opaque;

    rcu_register_thread();
    context_new(loop);
    handlers_new(loop);
    aio_usage_report_init(&loop->report);
    qemu_sem_post(&loop->started);

    while (!qatomic_read(&loop->stop)) {
        if (loop->gcontext) {
            g_main_context_iteration(loop->gcontext, true);
        } else {
            aio_poll(loop->ctx, true);
        }
    }

    handlers_free(loop);
    context_free(loop);
    rcu_unregister_thread();
    return NULL;
}

static Loop *loop_new(FdMonitor monitor)
{
    Loop *loop = g_new0(Loop, 1);

    loop->monitor = monitor;
    qemu_sem_init(&loop->started, 0);
    qemu_thread_create(&loop->thread, "loop", loop_thread, loop,
                       QEMU_THREAD_JOINABLE);
    qemu_sem_wait(&loop->started);
    return loop;
}

static void loop_free(Loop *loop)
{
    qatomic_set(&loop->stop, true);
    aio_notify(loop->ctx);
    qemu_thread_join(&loop->thread);
    qemu_sem_destroy(&loop->started);
    g_free(loop);
}

/* Reports */

static void loop_report(Loop *loop, AioUsageReport *report)
{
    AioUsageReport *last = &loop->report;

    *report = *last;
    aio_usage_read(&loop->ctx->usage, report);
    g_assert_cmpint(report->time_ns, >=, last->time_ns);
    g_assert_cmpint(report->idle_ns, >=, last->idle_ns);
    g_assert_cmpint(report->poll_ns, >=, last->poll_ns);
    g_assert_cmpint(report->busy_ns, >=, last->busy_ns);
    g_assert_cmpuint(report->wakeups, >=, last->wakeups);
    g_assert_cmpint(report->time_ns, <=, now_ns());

    /* All time is accounted for, and none twice. */
    g_assert_cmpint(report->idle_ns - last->idle_ns +
                    report->poll_ns - last->poll_ns +
                    report->busy_ns - last->busy_ns, ==,
                    report->time_ns - last->time_ns);
    *last = *report;
}

/* Has nothing but @state passed since the last report, for a while? */
static bool in_state(Loop *loop, State state)
{
    AioUsageReport before, after;
    int64_t ns;

    loop_report(loop, &before);
    g_usleep(1000);
    loop_report(loop, &after);
    ns = after.time_ns - before.time_ns;
    return after.wakeups == before.wakeups &&
           after.idle_ns - before.idle_ns == (state == IDLE ? ns : 0) &&
           after.poll_ns - before.poll_ns == (state == POLLING ? ns : 0) &&
           after.busy_ns - before.busy_ns == (state == BUSY ? ns : 0);
}

static bool passes(const Stat64 *value)
{
    return (int64_t)stat64_get(value) < 0;
}

/* States */

/* An event that came before may be under way, and end the state once more. */
static void check_state(Loop *loop, State state)
{
    WAIT_FOR(in_state(loop, state));
}

/* Ends with a loop that sleeps, and does not poll */
static void check_polling(Loop *loop)
{
    int64_t deadline = now_ns() + DEADLINE_NS;

    aio_context_set_poll_params(loop->ctx, POLL_NS, INT32_MAX, 1,
                                &error_abort);
    /* An event that comes late lets it poll longer. */
    do {
        g_assert_cmpint(now_ns(), <, deadline);
        kick(loop);
        g_usleep(1000);
    } while (!in_state(loop, POLLING));

    aio_context_set_poll_params(loop->ctx, 0, 0, 1, &error_abort);
    check_state(loop, IDLE);
}

static void hold(void *opaque)
{
    Loop *loop = opaque;

    while (qatomic_read(&loop->nested)) {
        aio_poll(loop->ctx, true);
    }
    qatomic_set(&loop->held, true);
    while (!qatomic_read(&loop->release)) {
        cpu_relax();
    }
}

/* A handler that does not return, as where a thread hangs */
static void check_busy(Loop *loop)
{
    aio_bh_schedule_oneshot(loop->ctx, hold, loop);
    WAIT_FOR(qatomic_read(&loop->held));
    check_state(loop, BUSY);
    qatomic_set(&loop->release, true);
}

static void test_states(gconstpointer opaque)
{
    Loop *loop = loop_new(GPOINTER_TO_UINT(opaque));
    uint64_t wakeups;

    check_state(loop, IDLE);
    wakeups = loop->report.wakeups;
    kick(loop);
    check_state(loop, IDLE);
    g_assert_cmpuint(loop->report.wakeups, >, wakeups);

    if (loop->monitor != MON_GLIB) {
        check_polling(loop);
    }
    check_busy(loop);
    check_state(loop, IDLE);
    loop_free(loop);
}

/* A nested event loop sleeps in a handler; behind that it is busy. */
static void test_nested(gconstpointer opaque)
{
    Loop *loop = loop_new(GPOINTER_TO_UINT(opaque));
    uint64_t wakeups;

    check_state(loop, IDLE);
    wakeups = loop->report.wakeups;
    loop->nested = true;
    aio_bh_schedule_oneshot(loop->ctx, hold, loop);
    WAIT_FOR(stat64_get(&loop->ctx->usage.wakeups) > wakeups);
    check_state(loop, IDLE);

    kick(loop);
    check_state(loop, IDLE);
    qatomic_set(&loop->nested, false);
    aio_notify(loop->ctx);
    WAIT_FOR(qatomic_read(&loop->held));
    check_state(loop, BUSY);
    qatomic_set(&loop->release, true);
    check_state(loop, IDLE);
    loop_free(loop);
}

/* Reports while the loop goes from state to state as fast as it can */
static void test_changes(gconstpointer opaque)
{
    Loop *loop = loop_new(GPOINTER_TO_UINT(opaque));
    AioUsageReport report;

    aio_context_set_poll_params(loop->ctx, 20 * SCALE_US, 0, 0, &error_abort);
    for (unsigned i = 0; i < ROUNDS; i++) {
        unsigned handled = qatomic_read(&loop->handlers[0].handled);

        qatomic_set(&loop->handlers[0].ready, true);
        event_notifier_set(&loop->handlers[0].e);
        do {
            loop_report(loop, &report);
        } while (qatomic_read(&loop->handlers[0].handled) == handled);
        for (unsigned j = 0; j < i % 64; j++) {
            loop_report(loop, &report);
        }
    }
    check_state(loop, IDLE);
    loop_free(loop);
}

/* In the thread of the loop */

static AioUsage usage_of(AioContext *ctx)
{
    g_assert_false(passes(&ctx->usage.idle));
    g_assert_false(passes(&ctx->usage.poll));
    return ctx->usage;
}

static void assert_same_usage(AioContext *ctx, const AioUsage *before)
{
    AioUsage after = usage_of(ctx);

    g_assert_cmpuint(stat64_get(&after.idle), ==, stat64_get(&before->idle));
    g_assert_cmpuint(stat64_get(&after.poll), ==, stat64_get(&before->poll));
    g_assert_cmpuint(stat64_get(&after.wakeups), ==,
                     stat64_get(&before->wakeups));
}

/* A handler that cannot be polled: each pass asks the fd monitor. */
static void ask_monitor(Loop *loop)
{
    aio_set_event_notifier(loop->ctx, &loop->handlers[0].e, handler_done, NULL,
                           NULL);
}

/* What does not wait is not idle. */
static void run_non_blocking(Loop *loop)
{
    AioUsage before = usage_of(loop->ctx);

    ask_monitor(loop);
    for (unsigned i = 0; i < ROUNDS; i++) {
        event_notifier_set(&loop->handlers[0].e);
        aio_poll(loop->ctx, false);
    }
    g_assert_cmpuint(loop->handlers[0].handled, ==, ROUNDS);
    assert_same_usage(loop->ctx, &before);
}

typedef struct Chain {
    QEMUBH *bh;
    unsigned left;
} Chain;

static void chain_bh(void *opaque)
{
    Chain *chain = opaque;

    if (--chain->left) {
        qemu_bh_schedule(chain->bh);
    }
}

/* Nor is a loop that could wait, but always has something to do. */
static void run_loaded(Loop *loop)
{
    Chain chain = { .left = ROUNDS };
    AioUsage before = usage_of(loop->ctx);

    ask_monitor(loop);
    chain.bh = aio_bh_new(loop->ctx, chain_bh, &chain);
    qemu_bh_schedule(chain.bh);
    while (chain.left) {
        aio_poll(loop->ctx, true);
    }
    assert_same_usage(loop->ctx, &before);
    qemu_bh_delete(chain.bh);
}

/* Polling that finds something each time is work, not polling in vain. */
static void run_found(Loop *loop)
{
    Handler *h = &loop->handlers[0];
    AioUsage before;

    aio_context_set_poll_params(loop->ctx, POLL_NS, 0, 1, &error_abort);
    while (!h->handled) {
        event_notifier_set(&h->e);
        aio_poll(loop->ctx, true);
    }
    /* Enters poll mode */
    h->ready = true;
    aio_poll(loop->ctx, true);

    before = usage_of(loop->ctx);
    for (unsigned i = 0; i < ROUNDS; i++) {
        unsigned handled = h->handled;

        h->ready = true;
        aio_poll(loop->ctx, true);
        g_assert_cmpuint(h->handled, ==, handled + 1);
    }
    assert_same_usage(loop->ctx, &before);
}

/* Each sleep is counted once, and ends with the wakeup. */
static void run_sleeps(Loop *loop)
{
    AioUsage before = usage_of(loop->ctx), after;

    for (unsigned i = 0; i < ROUNDS; i++) {
        event_notifier_set(&loop->handlers[0].e);
        aio_poll(loop->ctx, true);
    }
    after = usage_of(loop->ctx);
    g_assert_cmpuint(stat64_get(&after.wakeups), ==,
                     stat64_get(&before.wakeups) + ROUNDS);
    g_assert_cmpuint(stat64_get(&after.idle), >, stat64_get(&before.idle));
    g_assert_cmpuint(stat64_get(&after.poll), ==, stat64_get(&before.poll));
}

typedef struct Inside {
    const char *name;
    void (*run)(Loop *loop);
} Inside;

static const Inside insides[] = {
    { "non-blocking", run_non_blocking },
    { "loaded", run_loaded },
    { "found", run_found },
    { "sleeps", run_sleeps },
};

static void *inside_thread(void *opaque)
{
    const Inside *inside = opaque;
    Loop loop = { .monitor = MON_POLL };

    rcu_register_thread();
    context_new(&loop);
    handlers_new(&loop);
    /* What set_event_notifier() has to tell the loop */
    while (aio_poll(loop.ctx, false)) {
        ;
    }
    inside->run(&loop);
    handlers_free(&loop);
    context_free(&loop);
    rcu_unregister_thread();
    return NULL;
}

/* In a thread of its own, since a thread has one context for its life */
static void test_inside(gconstpointer opaque)
{
    QemuThread thread;

    qemu_thread_create(&thread, "inside", inside_thread, (void *)opaque,
                       QEMU_THREAD_JOINABLE);
    qemu_thread_join(&thread);
}

static void add(const char *name, const char *monitor, gconstpointer data,
                GTestDataFunc test)
{
    g_autofree char *path = g_strdup_printf("/aio-usage/%s/%s", name, monitor);

    g_test_add_data_func(path, data, test);
}

int main(int argc, char **argv)
{
    static const char *const monitors[] = {
        [MON_POLL] = "poll",
        [MON_EPOLL] = "epoll",
        [MON_IO_URING] = "io_uring",
        [MON_GLIB] = "glib",
    };

    g_test_init(&argc, &argv, NULL);
    for (unsigned i = 0; i < ARRAY_SIZE(monitors); i++) {
        gconstpointer data = GUINT_TO_POINTER(i);

        add("states", monitors[i], data, test_states);
        add("nested", monitors[i], data, test_nested);
        add("changes", monitors[i], data, test_changes);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(insides); i++) {
        add("inside", insides[i].name, &insides[i], test_inside);
    }
    return g_test_run();
}
