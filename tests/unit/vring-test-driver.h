/*
 * The driver's side of a split virtqueue, for the tests of the ring
 *
 * Knows the layout of VIRTIO 1.3, 2.7 on its own account (offsets and bytes,
 * no structure shared with the ring under test) and what a driver does; lets
 * a test break every rule.  Also makes the memory and the Vring that most
 * tests start from.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_UNIT_VRING_TEST_DRIVER_H
#define TESTS_UNIT_VRING_TEST_DRIVER_H

#include "hw/virtio/dataplane/vring.h"
#include "vring-test-memory.h"

/* Descriptor flags (2.7.5) */
#define NEXT        1
#define WRITE       2
#define INDIRECT    4

/* Where a TestQueue has its memory */
#define RING_BASE   0x10000ull
#define DATA_BASE   0x10000000ull
#define DATA_SIZE   0x40000ull
#define TABLE_BASE  (DATA_BASE + 0x20000)   /* in the data region */

#define TEST_PAGE   4096ull

typedef struct TestDesc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
} TestDesc;

typedef struct TestDriver {
    VringConfig config;
    uint8_t *desc;              /* host addresses of the three areas */
    uint8_t *avail;
    uint8_t *used;
    uint16_t avail_idx;         /* next entry to fill */
    uint16_t used_idx;          /* next entry to look at */
} TestDriver;

/* Byte orders of the ring, and values in it */
uint16_t driver_cpu16(const TestDriver *drv, uint16_t value);
uint32_t driver_cpu32(const TestDriver *drv, uint32_t value);
uint64_t driver_cpu64(const TestDriver *drv, uint64_t value);

/* Sizes of the areas */
uint64_t driver_desc_size(unsigned num);
uint64_t driver_avail_size(unsigned num);
uint64_t driver_used_size(unsigned num);

/**
 * driver_init: look at the ring that @config places in @mem
 */
void driver_init(TestDriver *drv, VringMemory *mem, const VringConfig *config);

/**
 * driver_set_desc: fill descriptor @i in
 */
void driver_set_desc(TestDriver *drv, unsigned i, const TestDesc *desc);

/**
 * driver_set_table: fill an indirect table in, at any host address
 */
void driver_set_table(TestDriver *drv, uint8_t *host, const TestDesc *desc,
                      unsigned n);

/**
 * driver_add: fill the next available entry in, not yet visible
 */
void driver_add(TestDriver *drv, uint16_t head);

/**
 * driver_expose: make visible what was added
 */
void driver_expose(TestDriver *drv);

/**
 * driver_offer: make the chain at @head available
 */
void driver_offer(TestDriver *drv, uint16_t head);

/**
 * driver_offer_buffer: make one descriptor of its own chain available
 */
void driver_offer_buffer(TestDriver *drv, uint16_t i, uint64_t addr,
                         uint32_t len, bool is_write);

/**
 * driver_take: look for the next used element
 *
 * Returns: false if there is none
 */
bool driver_take(TestDriver *drv, uint32_t *id, uint32_t *len);

/* Single fields, as the driver would see or set them */
void driver_set_avail_idx(TestDriver *drv, uint16_t value);
void driver_set_avail_flags(TestDriver *drv, uint16_t value);
void driver_set_used_event(TestDriver *drv, uint16_t value);
void driver_set_used_idx(TestDriver *drv, uint16_t value);
uint16_t driver_used_idx(const TestDriver *drv);
uint16_t driver_used_flags(const TestDriver *drv);
uint16_t driver_avail_event(const TestDriver *drv);
void driver_set_avail_event(TestDriver *drv, uint16_t value);

/* A driver, a device's Vring, and memory: RING_BASE... and DATA_BASE... */
typedef struct TestQueue {
    VringMemory *mem;
    TestDriver drv;
    Vring vring;
    VringBuffer buf;
    uint8_t *data;              /* host address of DATA_BASE */
} TestQueue;

/* The combinations that most tests go through */
typedef struct TestMode {
    const char *name;
    bool big_endian;
    bool event_idx;
} TestMode;

#define TEST_MODES 4
extern const TestMode test_modes[TEST_MODES];

/**
 * test_config: a ring of @num entries at RING_BASE in the mode's features
 */
VringConfig test_config(const TestMode *mode, unsigned num);

/**
 * test_queue_init: make memory, driver and Vring
 * Pair: test_queue_cleanup()
 */
void test_queue_init(TestQueue *q, const VringConfig *config);

/**
 * test_queue_cleanup: fails the test if anything is still held
 */
void test_queue_cleanup(TestQueue *q);

/**
 * test_queue_use: push, publish, and see that the driver gets it
 * @elem: in @q->buf
 */
void test_queue_use(TestQueue *q, const VirtQueueElement *elem, uint32_t len);

/* Likewise for an element in a buffer of its own */
void test_queue_use_buf(TestQueue *q, const VirtQueueElement *elem,
                        VringBuffer *buf, uint32_t len);

/**
 * test_queue_run: one buffer of its own from the driver through the device
 * @i: descriptor, also made the head
 */
void test_queue_run(TestQueue *q, uint16_t i);

/**
 * test_queue_fail: see that pop returns @err, holds nothing and touches
 *                  nothing, and that the Vring is broken
 */
void test_queue_fail(TestQueue *q, VringError err);

#endif /* TESTS_UNIT_VRING_TEST_DRIVER_H */
