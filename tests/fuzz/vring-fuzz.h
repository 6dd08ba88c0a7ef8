/*
 * What the fuzz targets of the ring share
 *
 * Knows how a queue with a few good buffers is made and then spoiled with the
 * fuzzer's bytes, so that an empty input is a good driver and each byte of
 * input is a fault.  Each target is built for split and, with FUZZ_PACKED, for
 * packed rings.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_FUZZ_VRING_FUZZ_H
#define TESTS_FUZZ_VRING_FUZZ_H

#include "qapi/error.h"
#include "vring-test-driver.h"

#ifdef FUZZ_PACKED
#define FUZZ_NUM        7
#else
#define FUZZ_NUM        8
#endif
#define FUZZ_RAM_SIZE   0x1000      /* the ring, tables and data, from 0 on */
#define FUZZ_NEXT       0x1000      /* adjoins, apart in the host */
#define FUZZ_IOMMU      0x2000      /* only by the general path */
#define FUZZ_ROM        0x3000
#define FUZZ_AREA       0x1000
#define FUZZ_TABLE      0x403

/* Makes memory once; each input starts with it cleared. */
static inline void fuzz_queue_init(TestQueue *q, uint8_t features)
{
    const VringConfig config = {
        .num = FUZZ_NUM,
        .desc = 0x000,
        .avail = 0x100,
        .used = 0x200,
        .indirect = !(features & 1),
        .event_idx = features & 2,
        .big_endian = features & 4,
        .notify_on_empty = features & 8,
#ifdef FUZZ_PACKED
        .packed = true,
#endif
        .in_order = features & 32,
    };

    if (!q->mem) {
        q->mem = test_memory_new();
        q->data = test_memory_add(q->mem, 0, FUZZ_RAM_SIZE, TEST_RAM);
        test_memory_add(q->mem, FUZZ_NEXT, FUZZ_AREA, TEST_RAM);
        test_memory_add(q->mem, FUZZ_IOMMU, FUZZ_AREA, TEST_TRANSLATED);
        test_memory_add(q->mem, FUZZ_ROM, FUZZ_AREA, TEST_ROM);
        test_memory_commit(q->mem);
    }
    memset(q->data, 0, FUZZ_RAM_SIZE);
    test_memory_limit_map(q->mem, features & 16 ? 61 : UINT64_MAX);
    driver_init(&q->drv, q->mem, &config);
    vring_open(&q->vring, &config, q->mem, &error_abort);
}

/* Good buffers: direct, indirect, and over two regions */
static const TestDesc fuzz_direct[] = {
    { 0x800, 16 }, { 0x900, 64, WRITE }, { 0xa00, 1, WRITE },
};
static const TestDesc fuzz_indirect[] = {
    { FUZZ_TABLE, 3 * 16, INDIRECT },
};
static const TestDesc fuzz_regions[] = {
    { FUZZ_ROM, 16 }, { FUZZ_NEXT - 16, 32, WRITE }, { FUZZ_IOMMU, 16, WRITE },
};

/* A split ring's table is in no order; of a packed one's the flags mean less */
static const TestDesc fuzz_split_table[] = {
    { 0x820, 16, NEXT, 2 }, { 0xa00, 1, WRITE }, { 0x900, 64, WRITE | NEXT, 1 },
};
static const TestDesc fuzz_packed_table[] = {
    { 0x820, 16, NEXT, 2 }, { 0x900, 64, WRITE | NEXT, 1 }, { 0xa00, 1, WRITE },
};

static inline void fuzz_queue_fill(TestQueue *q)
{
    TestDriver *drv = &q->drv;

    driver_set_table(drv, q->data + FUZZ_TABLE,
                     drv->config.packed ? fuzz_packed_table
                                        : fuzz_split_table, 3);
    driver_add_chain(drv, 0, fuzz_direct, ARRAY_SIZE(fuzz_direct));
    driver_add_chain(drv, 3, fuzz_indirect, ARRAY_SIZE(fuzz_indirect));
    driver_add_chain(drv, 4, fuzz_regions, ARRAY_SIZE(fuzz_regions));
    driver_expose(drv);
}

/*
 * What a device does to an element's memory: a sanitizer checks each byte
 * written, and the edges of what is read
 */
static inline void fuzz_touch(const VirtQueueElement *elem)
{
    for (unsigned i = 0; i < elem->out_num; i++) {
        /* volatile, as the compiler would drop a load without a use */
        const volatile uint8_t *data = elem->out_sg[i].iov_base;

        (void)data[0];
        (void)data[elem->out_sg[i].iov_len - 1];
    }
    for (unsigned i = 0; i < elem->in_num; i++) {
        memset(elem->in_sg[i].iov_base, 0, elem->in_sg[i].iov_len);
    }
}

static inline void fuzz_queue_close(TestQueue *q)
{
    vring_close(&q->vring);
    driver_cleanup(&q->drv);
    g_assert_cmpuint(test_memory_mappings(q->mem), ==, 0);
    g_assert_cmpuint(test_memory_tables(q->mem), ==, 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif /* TESTS_FUZZ_VRING_FUZZ_H */
