/*
 * Requests of the file driver through io_uring
 *
 * The kernel does what is submitted, but io_uring_submit() is this file's: it
 * can refuse, submit less, change results, and change the order of
 * completions.  Knows the API of the BlockBackend, direct requests, and
 * liburing's struct io_uring; nothing of block/io_uring.c.
 *
 * Everything runs in the main thread.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <dlfcn.h>
#include <poll.h>
#include <sys/mman.h>
#include <liburing.h>
#include "block/block.h"
#include "block/block_int.h"
#include "block/block-global-state.h"
#include "qapi/error.h"
#include "qemu/coroutine.h"
#include "qemu/defer-call.h"
#include "qemu/main-loop.h"
#include "qobject/qdict.h"
#include "system/block-backend.h"
#include "system/block-backend-direct.h"
#include "iothread.h"

#define BLOCK 4096
#define RING 1024               /* entries of QEMU's submission queue */
#define BLOCKS (3 * RING)

typedef enum { AIO, DIRECT } Path;

typedef struct {
    BdrvDirectReq direct;
    QEMUIOVector qiov;
    struct iovec iov[2];
    int64_t offset;
    bool is_write;
    int ret;
    unsigned done;              /* times that it has ended */
    unsigned again;             /* times that it was submitted once more */
    void (*callback)(void);
} Request;

static struct {
    BlockBackend *blk;
    BlkDirect lane;
    int fd;                     /* of a file without a name */
    char *path;                 /* to it */
    uint8_t *buf;               /* BLOCKS blocks */
    Request *req;               /* one for each block */
} f;

/* The kernel */

static struct {
    /* What to do */
    int refusal;                /* -errno */
    unsigned refusals;          /* so many times */
    unsigned max;               /* submit no more than this at once; 0: all */
    bool change;                /* the result of the next completion ... */
    int result;                 /* ... to this */
    bool reverse;               /* completions that are in the ring */
    int held;                   /* fd that the next request waits for; or 0 */
    struct io_uring *ring;      /* of the request that was held */
    unsigned max_entries;       /* of a ring; 0: any */
    bool cached;                /* preadv2(RWF_NOWAIT) finds the data ... */
    size_t cached_bytes;        /* ... or only so much of it */

    /* What was done */
    unsigned calls, refused, submitted, flushes, vectored, fua, nowait;
} kernel;

static int (*real_submit)(struct io_uring *ring);
/* A smaller ring where locked memory is short: see test_memlock() */
static int (*real_queue_init)(unsigned entries, struct io_uring *ring,
                              unsigned flags);

static void kernel_look(struct io_uring *ring)
{
    unsigned ready = io_uring_sq_ready(ring);

    for (unsigned i = 1; i <= ready; i++) {
        const struct io_uring_sqe *sqe =
            &ring->sq.sqes[(ring->sq.sqe_tail - i) & *ring->sq.kring_mask];

        kernel.flushes += sqe->opcode == IORING_OP_FSYNC;
        kernel.vectored += sqe->opcode == IORING_OP_READV ||
                           sqe->opcode == IORING_OP_WRITEV;
        kernel.fua += sqe->opcode != IORING_OP_FSYNC &&
                      (sqe->rw_flags & RWF_DSYNC);
    }
}

static void kernel_wait(struct io_uring *ring, unsigned n)
{
    struct io_uring_cqe *cqe;
    int ret;

    do {
        ret = io_uring_wait_cqe_nr(ring, &cqe, n);
    } while (ret == -EINTR);
    g_assert_cmpint(ret, ==, 0);
}

static struct io_uring_cqe *kernel_cqe(struct io_uring *ring, unsigned i)
{
    return &ring->cq.cqes[(*ring->cq.khead + i) & *ring->cq.kring_mask];
}

static void kernel_reverse(struct io_uring *ring, unsigned n)
{
    for (unsigned i = 0; i < n / 2; i++) {
        struct io_uring_cqe *a = kernel_cqe(ring, i);
        struct io_uring_cqe *b = kernel_cqe(ring, n - 1 - i);
        struct io_uring_cqe c = { .user_data = a->user_data, .res = a->res };

        a->user_data = b->user_data;
        a->res = b->res;
        b->user_data = c.user_data;
        b->res = c.res;
    }
}

static void kernel_hold(struct io_uring *ring, unsigned i)
{
    struct io_uring_sqe *sqe = &ring->sq.sqes[i & *ring->sq.kring_mask];
    uint64_t user_data = sqe->user_data;

    io_uring_prep_poll_add(sqe, kernel.held, POLLIN);
    sqe->user_data = user_data;
    kernel.held = 0;
    kernel.ring = ring;
}

int io_uring_submit(struct io_uring *ring)
{
    unsigned tail = ring->sq.sqe_tail;
    unsigned ready = io_uring_sq_ready(ring);
    unsigned completed = io_uring_cq_ready(ring);
    int ret;

    kernel.calls++;
    if (kernel.refusals && ready) {
        kernel.refusals--;
        kernel.refused++;
        return kernel.refusal;
    }
    if (kernel.max && ready > kernel.max) {
        ring->sq.sqe_tail = tail - ready + kernel.max;
    }
    kernel_look(ring);
    if (kernel.held && ready) {
        kernel_hold(ring, tail - ready);
    }
    ret = real_submit(ring);
    ring->sq.sqe_tail = tail;
    if (ret <= 0) {
        return ret;
    }
    kernel.submitted += ret;
    if (kernel.change) {
        kernel.change = false;
        kernel_wait(ring, completed + ret);
        kernel_cqe(ring, completed)->res = kernel.result;
    }
    if (kernel.reverse) {
        kernel_wait(ring, completed + ret);
        kernel_reverse(ring, completed + ret);
    }
    return ret;
}

int io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags)
{
    if (kernel.max_entries && entries > kernel.max_entries) {
        return -ENOMEM;
    }
    return real_queue_init(entries, ring, flags);
}

ssize_t preadv2(int fd, const struct iovec *iov, int niov, off_t offset,
                int flags)
{
    g_assert_cmpint(flags, ==, RWF_NOWAIT);
    kernel.nowait++;
    if (kernel.cached_bytes) {
        return pread(fd, iov->iov_base, kernel.cached_bytes, offset);
    }
    if (!kernel.cached) {
        errno = EAGAIN;
        return -1;
    }
    return preadv(fd, iov, niov, offset);
}

/* Requests */

static void request_aio(Request *req);

static void request_end(Request *req, int ret)
{
    req->ret = ret;
    req->done++;
    if (req->callback) {
        req->callback();
    }
}

static void aio_done(void *opaque, int ret)
{
    request_end(opaque, ret);
}

static void direct_done(BdrvDirectReq *direct, bool again)
{
    Request *req = container_of(direct, Request, direct);

    if (again) {
        req->again++;
        request_aio(req);
    } else {
        request_end(req, 0);
    }
}

static void request_aio(Request *req)
{
    if (req->is_write) {
        blk_aio_pwritev(f.blk, req->offset, &req->qiov, 0, aio_done, req);
    } else {
        blk_aio_preadv(f.blk, req->offset, &req->qiov, 0, aio_done, req);
    }
}

static bool request_direct(Request *req)
{
    return blk_direct_rw(&f.lane, &req->direct, req->offset, &req->qiov);
}

static void request_init(unsigned i, bool is_write)
{
    Request *req = &f.req[i];

    *req = (Request) { .offset = (int64_t)i * BLOCK, .is_write = is_write };
    req->iov[0].iov_base = f.buf + i * BLOCK;
    req->iov[0].iov_len = BLOCK;
    qemu_iovec_init_external(&req->qiov, req->iov, 1);
}

/* In one batch, as a device submits */
static void submit_prepared(Path path, unsigned first, unsigned n)
{
    bool is_write = f.req[first].is_write;
    unsigned taken = 0;

    defer_call_begin();
    if (path == DIRECT) {
        g_assert_true(blk_direct_begin(&f.lane, n, is_write));
        for (unsigned i = first; i < first + n; i++) {
            if (request_direct(&f.req[i])) {
                taken++;
            } else {
                request_aio(&f.req[i]);
            }
        }
        blk_direct_end(&f.lane, n - taken);
    } else {
        for (unsigned i = first; i < first + n; i++) {
            request_aio(&f.req[i]);
        }
    }
    defer_call_end();
}

static void submit(Path path, unsigned first, unsigned n, bool is_write)
{
    for (unsigned i = first; i < first + n; i++) {
        request_init(i, is_write);
    }
    submit_prepared(path, first, n);
}

static bool all_done(unsigned first, unsigned n)
{
    for (unsigned i = first; i < first + n; i++) {
        if (!f.req[i].done) {
            return false;
        }
    }
    return true;
}

static void wait_done(unsigned first, unsigned n)
{
    while (!all_done(first, n)) {
        aio_poll(qemu_get_aio_context(), true);
    }
    for (unsigned i = first; i < first + n; i++) {
        g_assert_cmpuint(f.req[i].done, ==, 1);
        g_assert_cmpint(f.req[i].ret, ==, 0);
    }
    blk_drain(f.blk);
    g_assert_cmpuint(f.lane.held, ==, 0);
}

/* Each block of the file has contents of its own. */
static void fill(uint8_t *block, unsigned i, uint8_t seed)
{
    memset(block, (i * 7 + (i >> 8) + seed) & 0xff, BLOCK);
    memcpy(block, &i, sizeof(i));
}

static void assert_filled(const uint8_t *block, unsigned i, uint8_t seed)
{
    uint8_t expected[BLOCK];

    fill(expected, i, seed);
    g_assert_cmpmem(block, BLOCK, expected, BLOCK);
}

static void file_write_all(uint8_t seed)
{
    for (unsigned i = 0; i < BLOCKS; i++) {
        fill(f.buf + i * BLOCK, i, seed);
    }
    g_assert_cmpint(pwrite(f.fd, f.buf, BLOCKS * BLOCK, 0), ==, BLOCKS * BLOCK);
}

static void file_assert(unsigned first, unsigned n, uint8_t seed)
{
    uint8_t block[BLOCK];

    for (unsigned i = first; i < first + n; i++) {
        g_assert_cmpint(pread(f.fd, block, BLOCK, (off_t)i * BLOCK), ==,
                        BLOCK);
        assert_filled(block, i, seed);
    }
}

static void open_image_flags(int flags)
{
    QDict *options = qdict_new();

    qdict_put_str(options, "driver", "raw");
    qdict_put_str(options, "file.driver", "file");
    qdict_put_str(options, "file.filename", f.path);
    qdict_put_str(options, "file.aio", "io_uring");
    f.blk = blk_new_open(NULL, NULL, options, flags, &error_abort);
    blk_set_enable_write_cache(f.blk, true);
    blk_direct_init(&f.lane, f.blk, direct_done);
}

static void open_image(void)
{
    open_image_flags(BDRV_O_RDWR);
}

static void setup(void)
{
    f.fd = memfd_create("test-io-uring", MFD_CLOEXEC);
    f.path = g_strdup_printf("/proc/self/fd/%d", f.fd);
    memset(&kernel, 0, sizeof(kernel));
    f.buf = g_malloc(BLOCKS * BLOCK);
    f.req = g_new0(Request, BLOCKS);
    file_write_all(0);
    open_image();
}

static void teardown(void)
{
    blk_unref(f.blk);
    close(f.fd);
    g_free(f.path);
    g_free(f.buf);
    g_free(f.req);
}

/* Reads @n blocks and compares, or writes them and compares. */
static void transfer(Path path, unsigned n, bool is_write)
{
    for (unsigned i = 0; i < n; i++) {
        if (is_write) {
            fill(f.buf + i * BLOCK, i, 1);
        } else {
            memset(f.buf + i * BLOCK, 0xee, BLOCK);
        }
    }
    submit(path, 0, n, is_write);
    wait_done(0, n);
    for (unsigned i = 0; i < n; i++) {
        assert_filled(f.buf + i * BLOCK, i, is_write);
    }
    file_assert(0, n, is_write);
}

/* Tests */

typedef struct {
    Path path;
    bool is_write;
    unsigned n;
    int refusal;
    unsigned refusals;
    unsigned max;
    bool change;
    int result;
    unsigned again;             /* direct requests that go the ordinary way */
} Case;

/* Everything is done, exactly once, with whatever the kernel does */
static void test_transfer(gconstpointer data)
{
    const Case *c = data;
    unsigned again = 0;

    setup();
    kernel.refusal = c->refusal;
    kernel.refusals = c->refusals;
    kernel.max = c->max;
    kernel.change = c->change;
    kernel.result = c->result;
    transfer(c->path, c->n, c->is_write);
    g_assert_cmpuint(kernel.refused, ==, c->refusals);
    for (unsigned i = 0; i < c->n; i++) {
        again += f.req[i].again;
    }
    g_assert_cmpuint(again, ==, c->again);
    if (c->path == DIRECT && !c->refusals) {
        g_assert_cmpuint(qatomic_read_u64(&f.lane.direct), ==,
                         MIN(c->n, 2 * RING));
    }
    teardown();
}

/* A request without a place waits in the ordinary path, first come first. */
static void test_full(void)
{
    setup();
    kernel.refusal = -EBUSY;
    kernel.refusals = 3;
    transfer(DIRECT, RING + 1, false);
    /* The last one, as the ring stayed full */
    g_assert_cmpuint(qatomic_read_u64(&f.lane.direct), ==, RING);
    g_assert_cmpstr(f.lane.refusal, ==, "the driver cannot with this request");
    teardown();
}

/* A read that is alone is tried without the ring. */
static void test_nowait(void)
{
    static const unsigned pauses[] = { 0, 1, 3, 7, 15, 31, 63, 63 };

    setup();
    kernel.cached = true;
    transfer(DIRECT, 1, false);
    g_assert_cmpuint(kernel.nowait, ==, 1);
    g_assert_cmpuint(kernel.submitted, ==, 0);

    for (unsigned again = 0; again < 2; again++) {
        kernel.cached = false;
        for (unsigned i = 0; i < ARRAY_SIZE(pauses); i++) {
            kernel.nowait = 0;
            kernel.submitted = 0;
            while (!kernel.nowait) {
                transfer(DIRECT, 1, false);
            }
            g_assert_cmpuint(kernel.submitted, ==, pauses[i] + 1);
        }
        kernel.cached = true;
        kernel.nowait = 0;
        while (!kernel.nowait) {
            transfer(DIRECT, 1, false);
        }
    }
    teardown();
}

static void test_nowait_partly(gconstpointer data)
{
    setup();
    kernel.cached_bytes = GPOINTER_TO_UINT(data);
    transfer(DIRECT, 1, false);
    g_assert_cmpuint(kernel.nowait, ==, 1);
    g_assert_cmpuint(kernel.submitted, ==, 1);
    teardown();
}

/* Not what is no read, or not alone, or of the ordinary path */
static void test_nowait_not(void)
{
    setup();
    kernel.cached = true;
    transfer(DIRECT, 2, false);
    transfer(AIO, 1, false);
    /* Another one is in flight. */
    kernel.refusal = -EAGAIN;
    kernel.refusals = 1;
    submit(DIRECT, 0, 2, false);
    submit(DIRECT, 2, 1, false);
    wait_done(0, 3);
    transfer(DIRECT, 1, true);
    g_assert_cmpuint(kernel.nowait, ==, 0);
    teardown();
}

/* Refused with one in the kernel: only its completion submits the rest. */
static void test_refused_beside(gconstpointer data)
{
    Path path = GPOINTER_TO_INT(data);
    int fds[2];

    setup();
    g_assert_cmpint(pipe(fds), ==, 0);
    kernel.held = fds[0];
    submit(DIRECT, 0, 1, false);
    kernel.refusal = -EAGAIN;
    kernel.refusals = 2;
    submit(path, 1, 1, false);
    for (unsigned i = 0; i < 10; i++) {
        aio_poll(qemu_get_aio_context(), false);
    }
    g_assert_cmpuint(kernel.refusals, ==, 1);
    g_assert_cmpint(write(fds[1], "", 1), ==, 1);
    kernel_wait(kernel.ring, 1);
    kernel_cqe(kernel.ring, 0)->res = BLOCK;
    wait_done(0, 2);
    g_assert_cmpuint(kernel.refusals, ==, 0);
    close(fds[0]);
    close(fds[1]);
    teardown();
}

/*
 * What the kernel refuses for good fails, once, with its error; what is in the
 * kernel then does not.  Later requests are tried again.
 */

typedef struct {
    Path path;
    bool is_write;
    unsigned n;
    int error;
    bool beside;                /* one is in the kernel */
} Failure;

static void wait_failed(unsigned first, unsigned n, int error)
{
    while (!all_done(first, n)) {
        aio_poll(qemu_get_aio_context(), true);
    }
    for (unsigned i = first; i < first + n; i++) {
        g_assert_cmpuint(f.req[i].done, ==, 1);
        g_assert_cmpint(f.req[i].ret, ==, error);
    }
}

static void test_failure(gconstpointer data)
{
    const Failure *c = data;
    int fds[2];

    setup();
    if (c->beside) {
        g_assert_cmpint(pipe(fds), ==, 0);
        kernel.held = fds[0];
        submit(c->path, 0, 1, false);
    }
    kernel.refusal = c->error;
    kernel.refusals = UINT_MAX;
    submit(c->path, 1, c->n, c->is_write);
    wait_failed(1, c->n, c->error);
    kernel.refusals = 0;
    if (c->beside) {
        g_assert_cmpuint(f.req[0].done, ==, 0);
        g_assert_cmpint(write(fds[1], "", 1), ==, 1);
        kernel_wait(kernel.ring, 1);
        kernel_cqe(kernel.ring, 0)->res = BLOCK;
        wait_done(0, 1);
        close(fds[0]);
        close(fds[1]);
    }
    transfer(c->path, c->n, c->is_write);
    teardown();
}

/* Requests of two lanes alternate in the completion queue. */
static void test_two_lanes(void)
{
    BlkDirect *lanes[2] = { &f.lane, &(BlkDirect) {} };

    setup();
    blk_direct_init(lanes[1], f.blk, direct_done);
    defer_call_begin();
    for (unsigned i = 0; i < 2; i++) {
        g_assert_true(blk_direct_begin(lanes[i], 4, false));
    }
    for (unsigned i = 0; i < 8; i++) {
        Request *req = &f.req[i];

        request_init(i, false);
        g_assert_true(blk_direct_rw(lanes[i % 2], &req->direct, req->offset,
                                    &req->qiov));
    }
    for (unsigned i = 0; i < 2; i++) {
        blk_direct_end(lanes[i], 0);
    }
    defer_call_end();
    wait_done(0, 8);
    g_assert_cmpuint(lanes[1]->held, ==, 0);
    teardown();
}

/* Nothing ends while a batch is open. */
static void test_open_batch(void)
{
    setup();
    g_assert_true(blk_direct_begin(&f.lane, 3, false));
    for (unsigned i = 0; i < 3; i++) {
        request_init(i, false);
        g_assert_true(request_direct(&f.req[i]));
    }
    g_assert_cmpuint(kernel.submitted, ==, 0);
    blk_direct_end(&f.lane, 0);
    g_assert_cmpuint(kernel.calls, ==, 1);
    wait_done(0, 3);
    teardown();
}

/* One vector needs no array; more do. */
static void test_vectors(gconstpointer data)
{
    bool is_write = GPOINTER_TO_INT(data);

    setup();
    transfer(DIRECT, 1, is_write);
    transfer(AIO, 1, is_write);
    g_assert_cmpuint(kernel.vectored, ==, 0);
    for (unsigned i = 0; i < 2; i++) {
        Request *req = &f.req[i];

        fill(f.buf, 0, 1);
        request_init(i, is_write);
        req->offset = 0;
        req->iov[0] = (struct iovec) { f.buf, 512 };
        req->iov[1] = (struct iovec) { f.buf + 512, BLOCK - 512 };
        qemu_iovec_init_external(&req->qiov, req->iov, 2);
        submit_prepared(i ? DIRECT : AIO, i, 1);
        wait_done(i, 1);
        g_assert_cmpuint(kernel.vectored, ==, i + 1);
        assert_filled(f.buf, 0, is_write);
        file_assert(0, 1, is_write);
    }
    teardown();
}

/* Without a write cache each write is on the disk when it ends. */
static void test_fua(gconstpointer data)
{
    Path path = GPOINTER_TO_INT(data);

    setup();
    transfer(path, 3, true);
    g_assert_cmpuint(kernel.fua, ==, 0);
    blk_set_enable_write_cache(f.blk, false);
    transfer(path, 3, true);
    g_assert_cmpuint(kernel.fua, ==, 3);
    transfer(path, 3, true);
    g_assert_cmpuint(kernel.fua, ==, 6);
    teardown();
}

/*
 * A direct request's callback runs a nested event loop, which waits for
 * requests that are in the completion queue, or have to be submitted again.
 */

typedef struct {
    const char *name;
    int result;                 /* of the first one; 0: leave it */
    unsigned rest;              /* that complete behind the direct request */
} Nested;

static void wait_aio(void)
{
    unsigned rest = f.req[2].offset ? 2 : 0;

    while (!all_done(0, 1) || !all_done(2, rest)) {
        aio_poll(qemu_get_aio_context(), true);
    }
}

static void test_nested(gconstpointer data)
{
    const Nested *nested = data;
    unsigned n = 2 + nested->rest;

    setup();
    for (unsigned i = 0; i < n; i++) {
        request_init(i, false);
    }
    kernel.change = nested->result;
    kernel.result = nested->result;
    f.req[1].callback = wait_aio;
    defer_call_begin();
    submit_prepared(AIO, 0, 1);
    submit_prepared(DIRECT, 1, 1);
    if (nested->rest) {
        submit_prepared(AIO, 2, nested->rest);
    }
    defer_call_end();
    wait_done(0, n);
    teardown();
}

/* Whoever submits in a coroutine does not complete direct requests in it. */

static void assert_no_coroutine(void)
{
    g_assert_false(qemu_in_coroutine());
}

static void coroutine_fn co_read_block_1(void *opaque)
{
    uint8_t block[BLOCK];

    g_assert_cmpint(blk_co_pread(f.blk, BLOCK, BLOCK, block, 0), ==, 0);
    assert_filled(block, 1, 0);
    f.req[1].done++;
}

static void test_in_coroutine(void)
{
    Coroutine *co;

    setup();
    /* Placed, and refused until the coroutine comes */
    kernel.refusal = -EAGAIN;
    kernel.refusals = 1;
    request_init(0, false);
    request_init(1, false);
    f.req[0].callback = assert_no_coroutine;
    submit_prepared(DIRECT, 0, 1);
    co = qemu_coroutine_create(co_read_block_1, NULL);
    qemu_coroutine_enter(co);
    wait_done(0, 2);
    teardown();
}

/*
 * A flush covers the writes that ended before it began.  A write whose
 * completion is in the ring when a flush ends, before or behind it, needs
 * another one.
 */

static unsigned flushed;

static void flush_done(void *opaque, int ret)
{
    g_assert_cmpint(ret, ==, 0);
    flushed++;
}

static void flush(void)
{
    unsigned before = flushed;

    blk_aio_flush(f.blk, flush_done, NULL);
    while (flushed == before) {
        aio_poll(qemu_get_aio_context(), true);
    }
}

static void test_flush_order(gconstpointer data)
{
    Path path = GPOINTER_TO_INT(data) & 1;
    unsigned before;

    setup();
    flushed = 0;
    kernel.reverse = GPOINTER_TO_INT(data) & 2;
    submit(path, 5, 1, true);       /* or there is nothing to flush */
    wait_done(5, 1);

    defer_call_begin();
    blk_aio_flush(f.blk, flush_done, NULL);
    submit(path, 0, 2, true);
    defer_call_end();
    wait_done(0, 2);
    while (!flushed) {
        aio_poll(qemu_get_aio_context(), true);
    }
    before = kernel.flushes;
    g_assert_cmpuint(before, >=, 1);
    flush();
    g_assert_cmpuint(kernel.flushes, ==, before + 1);
    flush();
    g_assert_cmpuint(kernel.flushes, ==, before + 1);
    teardown();
}

/* An image whose size is no multiple of the sector reads as zeroes behind. */
static void test_tail(gconstpointer data)
{
    Path path = GPOINTER_TO_INT(data);
    int64_t tail = (BLOCKS - 1) * (int64_t)BLOCK + 100;
    uint8_t expected[512] = { 0 };
    Request *req;

    setup();
    blk_unref(f.blk);
    g_assert_cmpint(ftruncate(f.fd, tail), ==, 0);
    open_image();
    fill(f.buf, BLOCKS - 1, 0);
    memcpy(expected, f.buf, 100);
    request_init(0, false);
    req = &f.req[0];
    req->offset = (BLOCKS - 1) * (int64_t)BLOCK;
    req->iov[0].iov_len = 512;
    memset(f.buf, 0xee, 512);
    qemu_iovec_init_external(&req->qiov, req->iov, 1);
    submit_prepared(path, 0, 1);
    wait_done(0, 1);
    g_assert_cmpuint(req->again, ==, path == DIRECT);
    g_assert_cmpmem(f.buf, 512, expected, 512);
    teardown();
}

/*
 * The descriptor of the image is replaced when the permission to write is taken
 * or given.
 */

static void set_writable(bool writable)
{
    uint64_t perm = BLK_PERM_CONSISTENT_READ | (writable ? BLK_PERM_WRITE : 0);

    g_assert_cmpint(blk_set_perm(f.blk, perm, BLK_PERM_ALL, &error_abort), ==,
                    0);
}

static void reopen_auto(bool writable)
{
    blk_unref(f.blk);
    open_image_flags(BDRV_O_RDWR | BDRV_O_AUTO_RDONLY);
    set_writable(writable);
}

/* A request that has its place already reads the image, and no other file. */
static void test_replaced(gconstpointer data)
{
    Path path = GPOINTER_TO_INT(data) & 1;
    bool writable = GPOINTER_TO_INT(data) & 2;
    int other[4];

    setup();
    reopen_auto(!writable);
    memset(f.buf, 0xee, 2 * BLOCK);
    request_init(1, false);
    defer_call_begin();
    submit_prepared(path, 1, 1);
    set_writable(writable);
    for (unsigned i = 0; i < ARRAY_SIZE(other); i++) {
        other[i] = memfd_create("another", MFD_CLOEXEC);
        g_assert_cmpint(ftruncate(other[i], BLOCKS * BLOCK), ==, 0);
    }
    defer_call_end();
    wait_done(1, 1);
    g_assert_cmpuint(f.req[1].again, ==, 0);
    assert_filled(f.buf + BLOCK, 1, 0);
    for (unsigned i = 0; i < ARRAY_SIZE(other); i++) {
        close(other[i]);
    }
    teardown();
}

/*
 * A process that may lock less memory gets a smaller ring.  A ring lives as
 * long as its AioContext, so this needs one of its own.
 */

typedef struct {
    AioContext *ctx;
    Error *err;
    bool ok;
} RingSetup;

static void ring_setup_bh(void *opaque)
{
    RingSetup *ring = opaque;

    ring->ok = aio_setup_linux_io_uring(ring->ctx, &ring->err);
}

static void test_memlock(gconstpointer data)
{
    IOThread *iothread = iothread_new();
    RingSetup ring = { .ctx = iothread_get_aio_context(iothread) };

    memset(&kernel, 0, sizeof(kernel));
    kernel.max_entries = GPOINTER_TO_UINT(data);
    aio_wait_bh_oneshot(ring.ctx, ring_setup_bh, &ring);
    if (kernel.max_entries >= 128) {
        g_assert_true(ring.ok);
    } else {
        g_assert_false(ring.ok);
        error_free_or_abort(&ring.err);
    }
    iothread_join(iothread);
}

static void add(const char *name, GTestDataFunc func, gconstpointer data)
{
    g_autofree char *path = g_strdup_printf("/io-uring/%s", name);

    g_test_add_data_func(path, data, func);
}

static const char *const path_names[] = { "AIO", "DIRECT" };
static const char *const direction_names[] = { "read", "write" };

static void G_GNUC_PRINTF(2, 3) add_case(Case c, const char *fmt, ...)
{
    g_autofree char *test = NULL;
    g_autofree char *path = NULL;
    va_list args;

    va_start(args, fmt);
    test = g_strdup_vprintf(fmt, args);
    va_end(args);
    path = g_strdup_printf("/io-uring/%s/%s/%s", path_names[c.path],
                           direction_names[c.is_write], test);
    g_test_add_data_func_full(path, g_memdup2(&c, sizeof(c)), test_transfer,
                              g_free);
}

/* All sizes around those of the ring, and of the ring that it once was */
static void add_sizes(Case c)
{
    static const unsigned sizes[] = {
        1, 2, 127, 128, 129, RING - 1, RING, RING + 1,
        2 * RING - 1, 2 * RING, 2 * RING + 1, BLOCKS,
    };

    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        c.n = sizes[i];
        add_case(c, "size/%u", c.n);
    }
}

static void add_refusals(Case c)
{
    static const int errors[] = { EAGAIN, EBUSY, ENOMEM, EINTR };
    static const unsigned n[] = { 1, 64, RING + 1 };

    for (unsigned i = 0; i < ARRAY_SIZE(errors); i++) {
        c.refusal = -errors[i];
        for (unsigned j = 0; j < ARRAY_SIZE(n); j++) {
            c.n = n[j];
            c.refusals = 1;
            add_case(c, "refused-once/%u/%s", c.n, strerror(errors[i]));
            c.refusals = 50;
            add_case(c, "refused-often/%u/%s", c.n, strerror(errors[i]));
        }
    }
}

static void add_partial(Case c)
{
    c.n = 100;
    c.max = 1;
    add_case(c, "partly");
    c.max = 7;
    c.refusal = -EAGAIN;
    c.refusals = 3;
    add_case(c, "partly-refused");
}

/* A short write is an error on the ordinary path, and so are real errors. */
static void add_results(Case c)
{
    static const int results[] = {
        -EAGAIN, -EINTR, 512, 4095, 0, -EIO, -ENOSPC, -ENOMEM,
    };
    unsigned n = ARRAY_SIZE(results);

    if (c.path == AIO) {
        n = c.is_write ? 2 : 4;
    }
    c.n = 3;
    c.change = true;
    c.again = c.path == DIRECT;
    for (unsigned i = 0; i < n; i++) {
        c.result = results[i];
        add_case(c, "result/%d", c.result);
    }
}

static void add_failure(Failure c)
{
    g_autofree char *path = g_strdup_printf(
        "/io-uring/failure/%s/%s/%u/%s%s", path_names[c.path],
        direction_names[c.is_write], c.n, strerror(-c.error),
        c.beside ? "/beside" : "");

    g_test_add_data_func_full(path, g_memdup2(&c, sizeof(c)), test_failure,
                              g_free);
}

/* Sizes around the ring's: behind it, requests wait for a place. */
static void add_failures(Path path)
{
    static const unsigned sizes[] = {
        1, 2, RING - 1, RING, RING + 1, BLOCKS - 1,
    };
    static const int errors[] = { -EPERM, -EBADF, -EINVAL };
    Failure c = { .path = path };

    for (unsigned i = 0; i < 2; i++) {
        c.is_write = i;
        for (unsigned j = 0; j < ARRAY_SIZE(sizes); j++) {
            c.n = sizes[j];
            c.error = errors[j % ARRAY_SIZE(errors)];
            c.beside = false;
            add_failure(c);
            c.beside = true;
            add_failure(c);
        }
    }
}

static void add_cases(Path path)
{
    for (unsigned i = 0; i < 2; i++) {
        Case c = { .path = path, .is_write = i };

        add_sizes(c);
        add_refusals(c);
        add_partial(c);
        add_results(c);
    }
}

static bool have_io_uring(void)
{
    struct io_uring ring;

    if (real_queue_init(1, &ring, 0) < 0) {
        return false;
    }
    io_uring_queue_exit(&ring);
    return true;
}

static void test_none(void)
{
    g_test_skip("the host does not allow io_uring");
}

int main(int argc, char **argv)
{
    static const Nested nested[] = {
        { "nested/completed", 0, 2 },
        { "nested/again", -EAGAIN, 2 },
        { "nested/short", 512, 2 },
        { "nested/again-alone", -EAGAIN, 0 },
        { "nested/short-alone", 512, 0 },
    };

    real_submit = dlsym(RTLD_NEXT, "io_uring_submit");
    real_queue_init = dlsym(RTLD_NEXT, "io_uring_queue_init");
    bdrv_init();
    qemu_init_main_loop(&error_abort);
    g_test_init(&argc, &argv, NULL);
    if (!have_io_uring()) {
        g_test_add_func("/io-uring/none", test_none);
        return g_test_run();
    }

    add_cases(AIO);
    add_cases(DIRECT);
    add_failures(AIO);
    add_failures(DIRECT);
    add("replaced/AIO/read-only", test_replaced, GINT_TO_POINTER(AIO));
    add("replaced/AIO/writable", test_replaced, GINT_TO_POINTER(AIO | 2));
    add("replaced/DIRECT/read-only", test_replaced, GINT_TO_POINTER(DIRECT));
    add("replaced/DIRECT/writable", test_replaced, GINT_TO_POINTER(DIRECT | 2));
    g_test_add_func("/io-uring/DIRECT/full", test_full);
    g_test_add_func("/io-uring/DIRECT/open-batch", test_open_batch);
    g_test_add_func("/io-uring/DIRECT/two-lanes", test_two_lanes);
    g_test_add_func("/io-uring/DIRECT/nowait", test_nowait);
    g_test_add_func("/io-uring/DIRECT/nowait-not", test_nowait_not);
    add("DIRECT/nowait-partly/1", test_nowait_partly, GUINT_TO_POINTER(1));
    add("DIRECT/nowait-partly/4095", test_nowait_partly,
        GUINT_TO_POINTER(BLOCK - 1));
    add("AIO/refused-beside", test_refused_beside, GINT_TO_POINTER(AIO));
    add("DIRECT/refused-beside", test_refused_beside, GINT_TO_POINTER(DIRECT));
    add("vectors/read", test_vectors, GINT_TO_POINTER(false));
    add("vectors/write", test_vectors, GINT_TO_POINTER(true));
    add("AIO/fua", test_fua, GINT_TO_POINTER(AIO));
    add("DIRECT/fua", test_fua, GINT_TO_POINTER(DIRECT));
    for (unsigned i = 0; i < ARRAY_SIZE(nested); i++) {
        add(nested[i].name, test_nested, &nested[i]);
    }
    g_test_add_func("/io-uring/in-coroutine", test_in_coroutine);
    add("AIO/flush-order", test_flush_order, GINT_TO_POINTER(AIO));
    add("DIRECT/flush-order", test_flush_order, GINT_TO_POINTER(DIRECT));
    add("AIO/flush-order-reverse", test_flush_order, GINT_TO_POINTER(AIO | 2));
    add("DIRECT/flush-order-reverse", test_flush_order,
        GINT_TO_POINTER(DIRECT | 2));
    add("AIO/tail", test_tail, GINT_TO_POINTER(AIO));
    add("DIRECT/tail", test_tail, GINT_TO_POINTER(DIRECT));
    add("memlock/1023", test_memlock, GUINT_TO_POINTER(1023));
    add("memlock/128", test_memlock, GUINT_TO_POINTER(128));
    add("memlock/127", test_memlock, GUINT_TO_POINTER(127));
    return g_test_run();
}
