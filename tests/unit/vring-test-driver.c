/*
 * The driver's side of a split virtqueue, for the tests: implementation
 *
 * Knows what vring-test-driver.h says.  The two indexes, the flags and the
 * event fields are shared with a device that may run in another thread; the
 * rest belongs to one side at a time, and is accessed plainly so that
 * ThreadSanitizer finds a missing barrier.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qapi/error.h"
#include "vring-test-driver.h"

/* Offsets (2.7.5, 2.7.6, 2.7.8) */
#define DESC_SIZE       16
#define AVAIL_FLAGS     0
#define AVAIL_IDX       2
#define AVAIL_RING      4
#define USED_FLAGS      0
#define USED_IDX        2
#define USED_RING       4
#define USED_ELEM_SIZE  8

const TestMode test_modes[TEST_MODES] = {
    { "little-endian", false, false },
    { "little-endian with EVENT_IDX", false, true },
    { "big-endian", true, false },
    { "big-endian with EVENT_IDX", true, true },
};

uint16_t driver_cpu16(const TestDriver *drv, uint16_t value)
{
    return drv->config.big_endian ? GUINT16_TO_BE(value)
                                  : GUINT16_TO_LE(value);
}

uint32_t driver_cpu32(const TestDriver *drv, uint32_t value)
{
    return drv->config.big_endian ? GUINT32_TO_BE(value)
                                  : GUINT32_TO_LE(value);
}

uint64_t driver_cpu64(const TestDriver *drv, uint64_t value)
{
    return drv->config.big_endian ? GUINT64_TO_BE(value)
                                  : GUINT64_TO_LE(value);
}

uint64_t driver_desc_size(unsigned num)
{
    return DESC_SIZE * (uint64_t)num;
}

uint64_t driver_avail_size(unsigned num)
{
    return AVAIL_RING + 2 * (uint64_t)num + 2;
}

uint64_t driver_used_size(unsigned num)
{
    return USED_RING + USED_ELEM_SIZE * (uint64_t)num + 2;
}

/* Fields that both sides access at any time */

static uint16_t driver_load(const TestDriver *drv, const uint8_t *field)
{
    return driver_cpu16(drv, qatomic_read((const uint16_t *)field));
}

static void driver_store(TestDriver *drv, uint8_t *field, uint16_t value)
{
    qatomic_set((uint16_t *)field, driver_cpu16(drv, value));
}

void driver_set_avail_idx(TestDriver *drv, uint16_t value)
{
    driver_store(drv, drv->avail + AVAIL_IDX, value);
}

void driver_set_avail_flags(TestDriver *drv, uint16_t value)
{
    driver_store(drv, drv->avail + AVAIL_FLAGS, value);
}

void driver_set_used_event(TestDriver *drv, uint16_t value)
{
    driver_store(drv, drv->avail + AVAIL_RING + 2 * drv->config.num, value);
}

void driver_set_used_idx(TestDriver *drv, uint16_t value)
{
    driver_store(drv, drv->used + USED_IDX, value);
}

uint16_t driver_used_idx(const TestDriver *drv)
{
    return driver_load(drv, drv->used + USED_IDX);
}

uint16_t driver_used_flags(const TestDriver *drv)
{
    return driver_load(drv, drv->used + USED_FLAGS);
}

static uint8_t *driver_avail_event_field(const TestDriver *drv)
{
    return drv->used + USED_RING + USED_ELEM_SIZE * drv->config.num;
}

uint16_t driver_avail_event(const TestDriver *drv)
{
    return driver_load(drv, driver_avail_event_field(drv));
}

void driver_set_avail_event(TestDriver *drv, uint16_t value)
{
    driver_store(drv, driver_avail_event_field(drv), value);
}

/* What a driver does */

void driver_init(TestDriver *drv, VringMemory *mem, const VringConfig *config)
{
    *drv = (TestDriver) {
        .config = *config,
        .desc = test_memory_host(mem, config->desc),
        .avail = test_memory_host(mem, config->avail),
        .used = test_memory_host(mem, config->used),
    };
}

void driver_set_table(TestDriver *drv, uint8_t *host, const TestDesc *desc,
                      unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        TestDesc raw = {
            .addr = driver_cpu64(drv, desc[i].addr),
            .len = driver_cpu32(drv, desc[i].len),
            .flags = driver_cpu16(drv, desc[i].flags),
            .next = driver_cpu16(drv, desc[i].next),
        };

        QEMU_BUILD_BUG_ON(sizeof(raw) != DESC_SIZE);
        memcpy(host + DESC_SIZE * i, &raw, DESC_SIZE);
    }
}

void driver_set_desc(TestDriver *drv, unsigned i, const TestDesc *desc)
{
    driver_set_table(drv, drv->desc + DESC_SIZE * i, desc, 1);
}

void driver_add(TestDriver *drv, uint16_t head)
{
    unsigned slot = drv->avail_idx++ % drv->config.num;
    uint16_t raw = driver_cpu16(drv, head);

    memcpy(drv->avail + AVAIL_RING + 2 * slot, &raw, sizeof(raw));
}

void driver_expose(TestDriver *drv)
{
    /* Pairs with the smp_rmb() in the device's pop */
    smp_wmb();
    driver_set_avail_idx(drv, drv->avail_idx);
}

void driver_offer(TestDriver *drv, uint16_t head)
{
    driver_add(drv, head);
    driver_expose(drv);
}

void driver_offer_buffer(TestDriver *drv, uint16_t i, uint64_t addr,
                         uint32_t len, bool is_write)
{
    TestDesc desc = {
        .addr = addr,
        .len = len,
        .flags = is_write ? WRITE : 0,
    };

    driver_set_desc(drv, i, &desc);
    driver_offer(drv, i);
}

bool driver_take(TestDriver *drv, uint32_t *id, uint32_t *len)
{
    const uint8_t *elem = drv->used + USED_RING + USED_ELEM_SIZE *
                          (drv->used_idx % drv->config.num);
    uint32_t raw[2];

    if (driver_used_idx(drv) == drv->used_idx) {
        return false;
    }
    /* Pairs with the smp_wmb() in the device's publish */
    smp_rmb();
    memcpy(raw, elem, sizeof(raw));
    drv->used_idx++;
    *id = driver_cpu32(drv, raw[0]);
    *len = driver_cpu32(drv, raw[1]);
    return true;
}

/* A queue with memory and a device */

VringConfig test_config(const TestMode *mode, unsigned num)
{
    uint64_t avail = RING_BASE + driver_desc_size(num);

    return (VringConfig) {
        .num = num,
        .desc = RING_BASE,
        .avail = avail,
        .used = QEMU_ALIGN_UP(avail + driver_avail_size(num), TEST_PAGE),
        .event_idx = mode->event_idx,
        .indirect = true,
        .big_endian = mode->big_endian,
    };
}

void test_queue_init(TestQueue *q, const VringConfig *config)
{
    uint64_t end = config->used + driver_used_size(config->num);

    q->mem = test_memory_new();
    test_memory_add(q->mem, RING_BASE,
                    QEMU_ALIGN_UP(end - RING_BASE, TEST_PAGE), TEST_RAM);
    q->data = test_memory_add(q->mem, DATA_BASE, DATA_SIZE, TEST_RAM);
    test_memory_commit(q->mem);
    driver_init(&q->drv, q->mem, config);
    vring_open(&q->vring, config, q->mem, &error_abort);
    vring_buffer_init(&q->buf);
}

void test_queue_cleanup(TestQueue *q)
{
    vring_buffer_release(&q->buf);
    vring_close(&q->vring);
    test_memory_free(q->mem);
}

void test_queue_use_buf(TestQueue *q, const VirtQueueElement *elem,
                        VringBuffer *buf, uint32_t len)
{
    uint32_t id, used_len;

    vring_push(&q->vring, elem, buf, len);
    g_assert_false(driver_take(&q->drv, &id, &used_len));
    g_assert_cmpuint(vring_publish(&q->vring), ==, 1);
    g_assert_true(driver_take(&q->drv, &id, &used_len));
    g_assert_cmpuint(id, ==, elem->index);
    g_assert_cmpuint(used_len, ==, len);
    g_assert_false(driver_take(&q->drv, &id, &used_len));
}

void test_queue_use(TestQueue *q, const VirtQueueElement *elem, uint32_t len)
{
    test_queue_use_buf(q, elem, &q->buf, len);
}

void test_queue_run(TestQueue *q, uint16_t i)
{
    unsigned offset = 16 * (i % 1024);
    VirtQueueElement elem;

    driver_offer_buffer(&q->drv, i, DATA_BASE + offset, 16, true);
    g_assert_cmpint(vring_pop(&q->vring, &elem, &q->buf), ==, 1);
    g_assert_cmpuint(elem.index, ==, i);
    g_assert_cmpuint(elem.out_num, ==, 0);
    g_assert_cmpuint(elem.in_num, ==, 1);
    g_assert(elem.in_sg[0].iov_base == q->data + offset);
    g_assert_cmpuint(elem.in_sg[0].iov_len, ==, 16);
    test_queue_use(q, &elem, 16);
}

void test_queue_fail(TestQueue *q, VringError err)
{
    uint16_t used_idx = driver_used_idx(&q->drv);
    unsigned inuse = q->vring.inuse;
    VirtQueueElement elem;

    test_memory_clean(q->mem);
    g_assert_cmpint(vring_pop(&q->vring, &elem, &q->buf), ==, -(int)err);
    g_assert_cmpuint(q->vring.inuse, ==, inuse);
    g_assert(q->buf.hold == NULL);
    g_assert(q->buf.iov == q->buf.inline_iov);
    g_assert_cmpuint(strlen(vring_error_str(err)), >, 0);

    /* Broken: takes and shows nothing more */
    g_assert_cmpint(vring_pop(&q->vring, &elem, &q->buf), ==, 0);
    g_assert_false(vring_more_avail(&q->vring));
    g_assert_false(vring_enable_notification(&q->vring));
    g_assert_cmpuint(vring_publish(&q->vring), ==, 0);
    g_assert_cmpuint(driver_used_idx(&q->drv), ==, used_idx);
    g_assert_cmpuint(test_memory_all_dirty(q->mem), ==, 0);
    g_assert_cmpuint(test_memory_mappings(q->mem), ==, 0);
}
