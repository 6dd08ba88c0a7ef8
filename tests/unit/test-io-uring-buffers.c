/*
 * Fixed buffers of io_uring
 *
 * The functions of liburing that register buffers are this file's: they record
 * what is asked for, may refuse it, and may ask the kernel.  io_uring_submit()
 * looks at what is submitted.  Everything runs in the main thread, except for
 * the rings of IOThreads.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <dlfcn.h>
#include <sys/mman.h>
#include <liburing.h>
#include "block/block.h"
#include "block/block-global-state.h"
#include "block/io_uring-buffers.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "system/block-backend.h"
#include "system/block-backend-direct.h"
#include "iothread.h"

#define BLOCK 4096
#define BLOCKS 16
#define MAX_RINGS 2
#define SLOTS 16384

/* The kernel */

typedef struct {
    struct io_uring *ring;      /* NULL: none */
    size_t size[SLOTS];         /* of the buffers */
} FakeRing;

static struct {
    /* What to do */
    bool real;                  /* ask the kernel, too */
    int sparse_refusal;         /* -errno, or 0 */
    int refusal;                /* of buffers ... */
    unsigned before;            /* ... after so many */

    /* What was done */
    FakeRing rings[MAX_RINGS];
    unsigned fixed, plain;      /* requests */
    unsigned index;             /* buffer of the last fixed one */
} kernel;

static int (*real_submit)(struct io_uring *ring);
static int (*real_sparse)(struct io_uring *ring, unsigned n);
static int (*real_update)(struct io_uring *ring, unsigned first,
                          const struct iovec *iov, const __u64 *tags,
                          unsigned n);
static int (*real_unregister)(struct io_uring *ring);

static FakeRing *kernel_ring(struct io_uring *ring)
{
    for (unsigned i = 0; i < MAX_RINGS; i++) {
        if (kernel.rings[i].ring == ring) {
            return &kernel.rings[i];
        }
    }
    g_assert_not_reached();
}

int io_uring_register_buffers_sparse(struct io_uring *ring, unsigned n)
{
    g_assert_cmpuint(n, ==, SLOTS);
    if (kernel.sparse_refusal) {
        return kernel.sparse_refusal;
    }
    kernel_ring(NULL)->ring = ring;
    return kernel.real ? real_sparse(ring, n) : 0;
}

int io_uring_register_buffers_update_tag(struct io_uring *ring, unsigned first,
                                         const struct iovec *iov,
                                         const __u64 *tags, unsigned n)
{
    FakeRing *fake = kernel_ring(ring);

    g_assert_cmpuint(n, ==, 1);
    g_assert_cmpuint(first, <, SLOTS);
    g_assert_cmpuint(iov->iov_len, <=, GiB);
    /* A buffer is filled, or emptied, but never replaced. */
    g_assert_true(!fake->size[first] != !iov->iov_len);
    if (iov->iov_len && kernel.refusal && !kernel.before--) {
        return kernel.refusal;
    }
    fake->size[first] = iov->iov_len;
    return kernel.real ? real_update(ring, first, iov, tags, n) : 1;
}

int io_uring_unregister_buffers(struct io_uring *ring)
{
    FakeRing *fake = kernel_ring(ring);

    memset(fake, 0, sizeof(*fake));
    return kernel.real ? real_unregister(ring) : 0;
}

int io_uring_submit(struct io_uring *ring)
{
    unsigned ready = io_uring_sq_ready(ring);

    for (unsigned i = 1; i <= ready; i++) {
        const struct io_uring_sqe *sqe =
            &ring->sq.sqes[(ring->sq.sqe_tail - i) & *ring->sq.kring_mask];

        if (sqe->opcode == IORING_OP_READ_FIXED ||
            sqe->opcode == IORING_OP_WRITE_FIXED) {
            kernel.fixed++;
            kernel.index = sqe->buf_index;
        } else {
            kernel.plain++;
        }
    }
    return real_submit(ring);
}

static unsigned kernel_buffers(const FakeRing *fake)
{
    unsigned n = 0;

    for (unsigned i = 0; i < SLOTS; i++) {
        n += !!fake->size[i];
    }
    return n;
}

static unsigned kernel_rings(void)
{
    unsigned n = 0;

    for (unsigned i = 0; i < MAX_RINGS; i++) {
        n += !!kernel.rings[i].ring;
    }
    return n;
}

static void kernel_assert_buffers(unsigned rings, unsigned n)
{
    g_assert_cmpuint(kernel_rings(), ==, rings);
    for (unsigned i = 0; i < MAX_RINGS; i++) {
        g_assert_cmpuint(kernel_buffers(&kernel.rings[i]), ==,
                         kernel.rings[i].ring ? n : 0);
    }
}

static void setup(void)
{
    memset(&kernel, 0, sizeof(kernel));
}

static AioContext *main_context(void)
{
    return qemu_get_aio_context();
}

/* Which buffer memory is in */

/* An address that nothing is at; the kernel is not asked */
#define AT(offset) ((void *)(uintptr_t)(64 * GiB + (offset)))

typedef struct {
    uint64_t offset;
    uint64_t size;
    int index;                  /* -1: none */
} Place;

static void test_find(void)
{
    static const Place places[] = {
        { 0, BLOCK, 0 },
        { GiB - BLOCK, BLOCK, 0 },
        { GiB - BLOCK, BLOCK + 1, -1 },     /* in two buffers */
        { GiB, BLOCK, 1 },
        { 0, GiB, 0 },
        { 0, GiB + 1, -1 },
        { 2 * GiB + BLOCK, BLOCK, 2 },      /* the last, shorter buffer */
        { 2 * GiB + BLOCK, BLOCK + 1, -1 },
        { 2 * GiB + 2 * BLOCK - 1, 1, 2 },
        { 2 * GiB + 2 * BLOCK, 1, -1 },     /* in no region */
        { 0, 0, -1 },
        { -1ull, 1, -1 },
        { -1ull, 2, -1 },
        { 4 * GiB, BLOCK, 3 },              /* another region */
        { 4 * GiB + BLOCK, 1, -1 },
        { 8 * GiB, GiB, 4 },
        { 9 * GiB, GiB, 5 },
        { 10 * GiB, 1, -1 },
    };

    setup();
    luring_buffers_add("a", AT(0), 2 * GiB + 2 * BLOCK, &error_abort);
    luring_buffers_add("b", AT(4 * GiB), BLOCK, &error_abort);
    luring_buffers_add("c", AT(8 * GiB), 2 * GiB, &error_abort);
    for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
        const Place *p = &places[i];

        g_assert_cmpint(luring_buffers_find(AT(p->offset), p->size), ==,
                        p->index);
    }
    luring_buffers_attach(main_context(), &error_abort);
    kernel_assert_buffers(1, 6);
    luring_buffers_remove(AT(0));
    kernel_assert_buffers(1, 3);
    g_assert_cmpint(luring_buffers_find(AT(0), BLOCK), ==, -1);
    g_assert_cmpint(luring_buffers_find(AT(4 * GiB), BLOCK), ==, 3);

    /* What is free is used again. */
    luring_buffers_add("d", AT(0), 2 * GiB, &error_abort);
    g_assert_cmpint(luring_buffers_find(AT(GiB), BLOCK), ==, 1);
    kernel_assert_buffers(1, 5);

    luring_buffers_remove(AT(0));
    luring_buffers_remove(AT(4 * GiB));
    luring_buffers_remove(AT(8 * GiB));
    kernel_assert_buffers(1, 0);
    luring_buffers_detach(main_context());
    kernel_assert_buffers(0, 0);
    g_assert_cmpint(luring_buffers_find(AT(4 * GiB), BLOCK), ==, -1);
}

/* As much as the kernel's table holds, and no more */
static void test_table_full(void)
{
    Error *err = NULL;

    setup();
    luring_buffers_add("a", AT(0), (SLOTS - 1ull) * GiB, &error_abort);
    g_assert_false(luring_buffers_add("b", AT(SLOTS * GiB), GiB + 1, &err));
    error_free_or_abort(&err);
    luring_buffers_add("c", AT(SLOTS * GiB), GiB, &error_abort);
    g_assert_cmpint(luring_buffers_find(AT(SLOTS * GiB), 1), ==, SLOTS - 1);
    luring_buffers_remove(AT(SLOTS * GiB));
    luring_buffers_remove(AT(0));
}

/* Rings */

static void test_rings(void)
{
    IOThread *thread = iothread_new();
    AioContext *ctx = iothread_get_aio_context(thread);

    setup();
    luring_buffers_add("a", AT(0), 2 * GiB, &error_abort);
    luring_buffers_attach(ctx, &error_abort);
    luring_buffers_attach(ctx, &error_abort);
    kernel_assert_buffers(1, 2);
    luring_buffers_attach(main_context(), &error_abort);
    kernel_assert_buffers(2, 2);
    luring_buffers_add("b", AT(4 * GiB), GiB, &error_abort);
    kernel_assert_buffers(2, 3);

    luring_buffers_detach(ctx);
    kernel_assert_buffers(2, 3);
    luring_buffers_detach(ctx);
    kernel_assert_buffers(1, 3);
    luring_buffers_remove(AT(0));
    kernel_assert_buffers(1, 1);
    luring_buffers_detach(main_context());
    kernel_assert_buffers(0, 0);
    luring_buffers_remove(AT(4 * GiB));
    iothread_join(thread);
}

/* Refusals */

typedef struct {
    const char *name;
    int sparse;
    int refusal;
    const char *message;        /* part of it */
} Refusal;

static const Refusal refusals[] = {
    { "sparse", -EINVAL, 0, "Linux 5.19 or later" },
    { "memlock", 0, -ENOMEM, "memory 'a': Cannot allocate memory; raise the "
      "limit of locked memory" },
    { "file", 0, -EFAULT, "memory 'a': Bad address; it may be a file" },
    { "file-old", 0, -EOPNOTSUPP, "it may be a file" },
    { "other", 0, -EPERM, "memory 'a': Operation not permitted; the kernel" },
};

static void assert_refused(Error *err, const Refusal *r)
{
    g_assert_nonnull(err);
    g_assert_nonnull(strstr(error_get_pretty(err), r->message));
    error_free(err);
}

/* Whatever buffer is refused, nothing stays registered. */
static void test_attach_refused(gconstpointer data)
{
    const Refusal *r = data;

    for (unsigned before = 0; before < 3; before++) {
        Error *err = NULL;

        setup();
        luring_buffers_add("a", AT(0), 3 * GiB, &error_abort);
        kernel.sparse_refusal = r->sparse;
        kernel.refusal = r->refusal;
        kernel.before = before;
        g_assert_false(luring_buffers_attach(main_context(), &err));
        assert_refused(err, r);
        kernel_assert_buffers(0, 0);

        kernel.sparse_refusal = kernel.refusal = 0;
        luring_buffers_attach(main_context(), &error_abort);
        kernel_assert_buffers(1, 3);
        luring_buffers_detach(main_context());
        luring_buffers_remove(AT(0));
    }
}

static void test_add_refused(gconstpointer data)
{
    const Refusal *r = data;
    IOThread *thread = iothread_new();
    AioContext *ctx = iothread_get_aio_context(thread);

    setup();
    luring_buffers_attach(ctx, &error_abort);
    luring_buffers_attach(main_context(), &error_abort);
    for (unsigned before = 0; before < 6; before++) {
        Error *err = NULL;

        kernel.refusal = r->refusal;
        kernel.before = before;
        g_assert_false(luring_buffers_add("a", AT(0), 3 * GiB, &err));
        assert_refused(err, r);
        kernel_assert_buffers(2, 0);
        g_assert_cmpint(luring_buffers_find(AT(0), 1), ==, -1);
        luring_buffers_remove(AT(0));
    }
    kernel.refusal = 0;
    luring_buffers_add("a", AT(0), 3 * GiB, &error_abort);
    kernel_assert_buffers(2, 3);
    luring_buffers_remove(AT(0));
    luring_buffers_detach(ctx);
    luring_buffers_detach(main_context());
    iothread_join(thread);
}

/* Requests */

static struct {
    BlockBackend *blk;
    BlkDirect lane;
    BdrvDirectReq req;
    QEMUIOVector qiov;
    struct iovec iov[2];
    uint8_t *buf;               /* BLOCKS blocks */
    int64_t offset;
    unsigned again;
    bool done;
    int ret;
} f;

static void aio_done(void *opaque, int ret)
{
    f.done = true;
    f.ret = ret;
}

static void direct_done(BdrvDirectReq *req, bool again)
{
    if (!again) {
        aio_done(NULL, 0);
        return;
    }
    f.again++;
    if (req->is_write) {
        blk_aio_pwritev(f.blk, f.offset, &f.qiov, 0, aio_done, NULL);
    } else {
        blk_aio_preadv(f.blk, f.offset, &f.qiov, 0, aio_done, NULL);
    }
}

static void transfer(bool is_write, unsigned block, unsigned niov)
{
    size_t len = BLOCK / niov;

    f.offset = (int64_t)block * BLOCK;
    f.done = false;
    for (unsigned i = 0; i < niov; i++) {
        f.iov[i].iov_base = f.buf + f.offset + i * len;
        f.iov[i].iov_len = len;
    }
    qemu_iovec_init_external(&f.qiov, f.iov, niov);
    g_assert_true(blk_direct_begin(&f.lane, 1, is_write));
    g_assert_true(blk_direct_rw(&f.lane, &f.req, f.offset, &f.qiov));
    blk_direct_end(&f.lane, 0);
    while (!f.done) {
        aio_poll(main_context(), true);
    }
    g_assert_cmpint(f.ret, ==, 0);
}

/* Writes a block, and reads it back */
static void verify(unsigned block, unsigned niov, unsigned fixed)
{
    uint8_t *buf = f.buf + block * BLOCK;
    uint8_t expected[BLOCK];
    unsigned before = kernel.fixed;
    uint64_t registered = f.lane.registered;

    memset(expected, block + niov + 1, BLOCK);
    memcpy(buf, expected, BLOCK);
    transfer(true, block, niov);
    memset(buf, 0, BLOCK);
    transfer(false, block, niov);
    g_assert_cmpmem(buf, BLOCK, expected, BLOCK);
    g_assert_cmpuint(kernel.fixed - before, ==, fixed);
    g_assert_cmpuint(f.lane.registered - registered, ==, fixed);
}

static void open_image(int fd, bool registered)
{
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);
    QDict *options = qdict_new();

    qdict_put_str(options, "driver", "raw");
    qdict_put_str(options, "file.driver", "file");
    qdict_put_str(options, "file.filename", path);
    qdict_put_str(options, "file.aio", "io_uring");
    f.blk = blk_new_open(NULL, NULL, options, BDRV_O_RDWR, &error_abort);
    blk_set_enable_write_cache(f.blk, true);
    blk_direct_init(&f.lane, f.blk, direct_done);
    f.lane.registered_buf = registered;
}

static int setup_image(bool registered)
{
    int fd = memfd_create("test-io-uring-buffers", MFD_CLOEXEC);

    setup();
    kernel.real = true;
    memset(&f, 0, sizeof(f));
    g_assert_cmpint(ftruncate(fd, BLOCKS * BLOCK), ==, 0);
    f.buf = mmap(NULL, BLOCKS * BLOCK, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    g_assert_true(f.buf != MAP_FAILED);
    open_image(fd, registered);
    luring_buffers_attach(main_context(), &error_abort);
    return fd;
}

static void teardown_image(int fd)
{
    blk_unref(f.blk);
    luring_buffers_detach(main_context());
    kernel_assert_buffers(0, 0);
    munmap(f.buf, BLOCKS * BLOCK);
    close(fd);
}

/* Blocks 4 to 7 are registered, and then not any more */
static void test_requests(void)
{
    int fd = setup_image(true);

    luring_buffers_add("a", f.buf + 4 * BLOCK, 4 * BLOCK, &error_abort);
    verify(3, 1, 0);
    verify(4, 1, 2);
    verify(7, 1, 2);
    verify(8, 1, 0);
    verify(5, 2, 0);                        /* two vectors */
    g_assert_cmpuint(f.again, ==, 0);
    luring_buffers_remove(f.buf + 4 * BLOCK);
    verify(4, 1, 0);

    /* Other memory at the same place is not taken for the old one. */
    g_assert_true(mmap(f.buf + 4 * BLOCK, 4 * BLOCK, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
                  f.buf + 4 * BLOCK);
    verify(5, 1, 0);
    luring_buffers_add("a", f.buf + 4 * BLOCK, 4 * BLOCK, &error_abort);
    verify(5, 1, 2);
    luring_buffers_remove(f.buf + 4 * BLOCK);
    teardown_image(fd);
}

/* Only for lanes that ask for it */
static void test_not_registered(void)
{
    int fd = setup_image(false);

    luring_buffers_add("a", f.buf, BLOCKS * BLOCK, &error_abort);
    verify(4, 1, 0);
    luring_buffers_remove(f.buf);
    teardown_image(fd);
}

/* What goes wrong with a fixed buffer is done without. */
static void test_again(void)
{
    int fd = setup_image(true);
    struct iovec none = { NULL, 0 };
    struct io_uring *ring;

    luring_buffers_add("a", f.buf, BLOCKS * BLOCK, &error_abort);
    verify(4, 1, 2);
    ring = kernel.rings[0].ring;
    g_assert_cmpint(real_update(ring, kernel.index, &none, NULL, 1), >=, 0);
    verify(5, 1, 2);
    g_assert_cmpuint(f.again, ==, 2);
    g_assert_cmpuint(kernel.plain, >=, 2);
    luring_buffers_remove(f.buf);
    teardown_image(fd);
}

static bool have_fixed_buffers(void)
{
    struct io_uring ring;
    bool have;

    if (io_uring_queue_init(1, &ring, 0) < 0) {
        return false;
    }
    have = real_sparse(&ring, 1) >= 0;
    io_uring_queue_exit(&ring);
    return have;
}

static void test_none(void)
{
    g_test_skip("the host does not allow fixed buffers of io_uring");
}

int main(int argc, char **argv)
{
    real_submit = dlsym(RTLD_NEXT, "io_uring_submit");
    real_sparse = dlsym(RTLD_NEXT, "io_uring_register_buffers_sparse");
    real_update = dlsym(RTLD_NEXT, "io_uring_register_buffers_update_tag");
    real_unregister = dlsym(RTLD_NEXT, "io_uring_unregister_buffers");
    bdrv_init();
    qemu_init_main_loop(&error_abort);
    g_test_init(&argc, &argv, NULL);
    if (!have_fixed_buffers()) {
        g_test_add_func("/io-uring-buffers/none", test_none);
        return g_test_run();
    }

    g_test_add_func("/io-uring-buffers/find", test_find);
    g_test_add_func("/io-uring-buffers/table-full", test_table_full);
    g_test_add_func("/io-uring-buffers/rings", test_rings);
    for (unsigned i = 0; i < ARRAY_SIZE(refusals); i++) {
        const Refusal *r = &refusals[i];
        g_autofree char *attach =
            g_strdup_printf("/io-uring-buffers/attach-refused/%s", r->name);
        g_autofree char *add =
            g_strdup_printf("/io-uring-buffers/add-refused/%s", r->name);

        g_test_add_data_func(attach, r, test_attach_refused);
        if (!r->sparse) {
            g_test_add_data_func(add, r, test_add_refused);
        }
    }
    g_test_add_func("/io-uring-buffers/requests", test_requests);
    g_test_add_func("/io-uring-buffers/not-registered", test_not_registered);
    g_test_add_func("/io-uring-buffers/again", test_again);
    return g_test_run();
}
