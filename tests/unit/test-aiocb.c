/*
 * AIOCBs that threads keep
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio.h"

#define MANY 1000

typedef struct {
    BlockAIOCB common;
    uint8_t data[1000];
} LargeAIOCB;

static const AIOCBInfo infos[] = {
    { .aiocb_size = sizeof(BlockAIOCB) },
    { .aiocb_size = 127 },
    { .aiocb_size = 128 },
    { .aiocb_size = 129 },
    { .aiocb_size = sizeof(LargeAIOCB) },
};

static int mark;                /* what they are all given */

static void callback(void *opaque, int ret)
{
}

/* All of its memory is its own: it holds a mark of the test. */
static BlockAIOCB *get(unsigned i)
{
    const AIOCBInfo *info = &infos[i % ARRAY_SIZE(infos)];
    BlockAIOCB *acb = qemu_aio_get(info, NULL, callback, &mark);

    g_assert_true(acb->aiocb_info == info);
    g_assert_true(acb->cb == callback);
    g_assert_true(acb->opaque == &mark);
    g_assert_cmpint(acb->refcnt, ==, 1);
    memset(acb + 1, i, info->aiocb_size - sizeof(*acb));
    return acb;
}

static void put(BlockAIOCB *acb, unsigned i)
{
    const uint8_t *data = (uint8_t *)(acb + 1);

    for (size_t j = 0; j < acb->aiocb_info->aiocb_size - sizeof(*acb); j++) {
        g_assert_cmphex(data[j], ==, (uint8_t)i);
    }
    qemu_aio_unref(acb);
}

/* More than a thread keeps, of all sizes, freed in another order */
static void many(void)
{
    BlockAIOCB *acb[MANY];

    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < MANY; i++) {
            acb[i] = get(i + round);
        }
        for (unsigned i = 0; i < MANY; i++) {
            unsigned j = i * 7 % MANY;

            put(acb[j], j + round);
        }
    }
}

static void test_many(void)
{
    many();
}

/* What was freed last is used first, if it is large enough for any. */
static void test_kept(void)
{
#ifdef QEMU_SANITIZE_ADDRESS
    g_test_skip("AIOCBs are not kept");
#else
    BlockAIOCB *first = get(0), *second;

    put(first, 0);
    second = get(2);
    g_assert_true(second == first);
    put(second, 2);
    second = get(4);
    g_assert_false(second == first);
    put(second, 4);
#endif
}

/* Not freed before its last reference is gone */
static void test_references(void)
{
    BlockAIOCB *first = get(0), *second;

    qemu_aio_ref(first);
    qemu_aio_unref(first);
    second = get(0);
    g_assert_false(second == first);
    put(second, 0);
    put(first, 0);
}

static void *thread(void *opaque)
{
    put(opaque, 1);
    many();
    return get(2);
}

/* Freed by another thread than made, and by one that ends */
static void test_threads(void)
{
    for (unsigned i = 0; i < 10; i++) {
        QemuThread id;

        qemu_thread_create(&id, "thread", thread, get(1),
                           QEMU_THREAD_JOINABLE);
        put(qemu_thread_join(&id), 2);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/aiocb/many", test_many);
    g_test_add_func("/aiocb/kept", test_kept);
    g_test_add_func("/aiocb/references", test_references);
    g_test_add_func("/aiocb/threads", test_threads);
    return g_test_run();
}
