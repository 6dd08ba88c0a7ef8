/*
 * The driver's side of a virtqueue, for the tests of the ring
 *
 * Knows the layouts of VIRTIO 1.3, 2.7 and 2.8 on its own account (offsets and
 * bytes, no structure shared with the ring under test) and what a driver does.
 *
 * Most calls are for both formats.  They make a driver that keeps the rules,
 * and that fails the test if the device does not: with IN_ORDER it expects
 * each buffer in its turn, and in a packed ring it knows what is in flight.
 * Calls for one format alone let a test break every rule.
 *
 * Also makes the memory and the Vring that most tests start from.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_UNIT_VRING_TEST_DRIVER_H
#define TESTS_UNIT_VRING_TEST_DRIVER_H

#include "hw/virtio/dataplane/vring.h"
#include "vring-test-memory.h"

/* Descriptor flags (2.7.5, 2.8.13), the last two in packed rings alone */
#define NEXT        1
#define WRITE       2
#define INDIRECT    4
#define AVAIL       0x80
#define USED        0x8000

/* Event flags of a packed ring, and the wrap counter by an offset (2.8.14) */
#define EVENT_ENABLE    0
#define EVENT_DISABLE   1
#define EVENT_DESC      2
#define EVENT_WRAP      0x8000

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
    uint16_t next;              /* in a packed ring: the buffer id */
} TestDesc;

typedef struct TestFormat TestFormat;

typedef struct TestDriver {
    const TestFormat *format;
    VringConfig config;
    uint8_t *desc;              /* host addresses of the three areas */
    uint8_t *avail;
    uint8_t *used;
    uint16_t *order;            /* IN_ORDER: ids in flight, in their order */
    uint16_t order_in;
    uint16_t order_out;

    /* Split ring */
    uint16_t avail_idx;         /* next entry to fill */
    uint16_t used_idx;          /* next entry to look at */
    uint16_t kicked_idx;        /* avail_idx at the last event check */
    uint16_t next_desc;         /* IN_ORDER: where the next chain begins */

    /*
     * Packed ring.  A position counts through two laps, 0 to 2 * num - 1; the
     * wrap counter is 1 in the first one.
     */
    unsigned avail_pos;         /* next descriptor to fill */
    unsigned used_pos;          /* next descriptor to look at */
    unsigned kicked_pos;        /* avail_pos at the last event check */
    unsigned room;              /* descriptors that are the driver's */
    uint16_t *ndescs;           /* by id: descriptors in flight, or 0 */
    uint8_t *hidden;            /* flags that will expose the rest, or NULL */
    uint16_t hidden_flags;      /* what they will be */
} TestDriver;

/* Byte orders of the ring, and values in it */
uint16_t driver_cpu16(const TestDriver *drv, uint16_t value);
uint32_t driver_cpu32(const TestDriver *drv, uint32_t value);
uint64_t driver_cpu64(const TestDriver *drv, uint64_t value);

/* Sizes of the areas */
uint64_t driver_desc_size(unsigned num);
uint64_t driver_avail_size(const VringConfig *config);
uint64_t driver_used_size(const VringConfig *config);

/**
 * driver_init: look at the ring that @config places in @mem
 * @drv: contents are overwritten
 *
 * Pair: driver_cleanup()
 */
void driver_init(TestDriver *drv, VringMemory *mem, const VringConfig *config);

/**
 * driver_cleanup: the pair of driver_init()
 */
void driver_cleanup(TestDriver *drv);

/* Both formats */

/**
 * driver_set_table: fill a table of descriptors in, at any host address
 */
void driver_set_table(TestDriver *drv, uint8_t *host, const TestDesc *desc,
                      unsigned n);

/**
 * driver_set_desc: fill in what stands at @i of the descriptor table or ring
 */
void driver_set_desc(TestDriver *drv, unsigned i, const TestDesc *desc);

/**
 * driver_add_chain: make a chain available, not yet visible
 * @id: split: where it begins in the descriptor table; packed: buffer id
 * @desc: what it consists of; the links are made here
 *
 * Returns: @id, or, in a split ring with IN_ORDER, where it has to begin
 */
uint16_t driver_add_chain(TestDriver *drv, uint16_t id, const TestDesc *desc,
                          unsigned n);

/**
 * driver_expose: make visible what was added
 */
void driver_expose(TestDriver *drv);

/**
 * driver_offer_chain: driver_add_chain() and driver_expose()
 */
uint16_t driver_offer_chain(TestDriver *drv, uint16_t id, const TestDesc *desc,
                            unsigned n);

/**
 * driver_offer_buffer: make one descriptor of its own chain available
 */
uint16_t driver_offer_buffer(TestDriver *drv, uint16_t i, uint64_t addr,
                             uint32_t len, bool is_write);

/**
 * driver_has_used: is there a used buffer?
 */
bool driver_has_used(const TestDriver *drv);

/**
 * driver_take: look for the next used buffer
 *
 * Returns: false if there is none
 */
bool driver_take(TestDriver *drv, uint32_t *id, uint32_t *len);

/**
 * driver_must_kick: does the device want to hear of what was exposed?
 *
 * Takes all into account that was exposed since the last time.
 */
bool driver_must_kick(TestDriver *drv);

/**
 * driver_refuse_irq: used buffer notifications are not wanted
 */
void driver_refuse_irq(TestDriver *drv);

/**
 * driver_ask_irq: the next used buffer shall be notified
 *
 * Returns: true if one is there already, for which no notification may come
 */
bool driver_ask_irq(TestDriver *drv);

/**
 * driver_contents: all that the device may write to, as it is now
 */
GBytes *driver_contents(const TestDriver *drv);

/* Split ring alone */

/**
 * driver_add: fill the next available entry in, not yet visible
 */
void driver_add(TestDriver *drv, uint16_t head);

/**
 * driver_offer: make the chain at @head available
 */
void driver_offer(TestDriver *drv, uint16_t head);

/* Single fields, as the driver would see or set them */
void driver_set_avail_idx(TestDriver *drv, uint16_t value);
void driver_set_avail_flags(TestDriver *drv, uint16_t value);
void driver_set_used_event(TestDriver *drv, uint16_t value);
void driver_set_used_idx(TestDriver *drv, uint16_t value);
uint16_t driver_used_idx(const TestDriver *drv);
uint16_t driver_used_flags(const TestDriver *drv);
uint16_t driver_avail_event(const TestDriver *drv);
void driver_set_avail_event(TestDriver *drv, uint16_t value);

/* Packed ring alone */

/* Likewise: the driver's and the device's event suppression structure */
void driver_set_irq_event(TestDriver *drv, uint16_t off_wrap, uint16_t flags);
uint16_t driver_kick_off_wrap(const TestDriver *drv);
uint16_t driver_kick_flags(const TestDriver *drv);
void driver_set_kick_event(TestDriver *drv, uint16_t off_wrap, uint16_t flags);

/* What makes a descriptor at position @pos available (2.8.1) */
uint16_t driver_lap_flags(const TestDriver *drv, unsigned pos);

/* Position @pos in an event suppression structure (2.8.14) */
uint16_t driver_off_wrap(const TestDriver *drv, unsigned pos);

/* @pos after @n more descriptors */
unsigned driver_advance(const TestDriver *drv, unsigned pos, unsigned n);

/* A driver, a device's Vring, and memory: RING_BASE... and DATA_BASE... */
typedef struct TestQueue {
    VringMemory *mem;
    TestDriver drv;
    Vring vring;
    VringVectors buf;
    uint8_t *data;              /* host address of DATA_BASE */
} TestQueue;

/* The combinations that most tests go through, those of the split ring first */
typedef struct TestMode {
    const char *name;
    bool big_endian;
    bool event_idx;
    bool packed;
    bool in_order;
} TestMode;

#define TEST_MODES 4            /* split rings */
#define TEST_ALL_MODES 6        /* packed rings as well */
extern const TestMode test_modes[TEST_ALL_MODES];

typedef void TestModeFunc(const TestMode *mode);

/**
 * test_add_modes: add a test that goes through the first @modes modes
 */
void test_add_modes(const char *path, TestModeFunc *func, unsigned modes);

/*
 * A row of a test program's table: a test that is given a queue, new for each
 * of the modes that it goes through
 */
typedef struct TestRow {
    const char *name;
    void (*func)(TestQueue *q);
    unsigned num;               /* size of the queue; 0: each of @nums */
    unsigned modes;             /* the first ones of test_modes; 0: @mode */
    TestMode mode;
    const unsigned *nums;       /* ended by 0 */
    /* Instead of test_queue_init() */
    void (*init)(TestQueue *q, const VringConfig *config);
} TestRow;

/**
 * test_add_rows: add each row's test, below the path @group
 */
void test_add_rows(const char *group, const TestRow *rows, unsigned n);

/**
 * test_add_cases: add @func for each element of an array of cases, which have a
 *                 member "path"
 */
#define test_add_cases(cases, func) \
    do { \
        for (unsigned i_ = 0; i_ < ARRAY_SIZE(cases); i_++) { \
            g_test_add_data_func((cases)[i_].path, &(cases)[i_], func); \
        } \
    } while (0)

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
 * test_queue_reopen: a driver and a Vring for another ring in the same memory
 */
void test_queue_reopen(TestQueue *q, const VringConfig *config);

/**
 * test_queue_pop: there is a buffer, which is popped into @q->buf
 */
void test_queue_pop(TestQueue *q, VirtQueueElement *elem);

/* Likewise into a buffer of its own */
void test_queue_pop_buf(TestQueue *q, VirtQueueElement *elem,
                        VringVectors *buf);

/**
 * test_queue_take: the driver finds a used buffer, which is this one
 */
void test_queue_take(TestQueue *q, uint32_t id, uint32_t len);

/**
 * test_queue_start_at: as if the queue had been in use: all indexes of a split
 *                      ring, or the position in a packed one
 */
void test_queue_start_at(TestQueue *q, uint16_t idx);

/**
 * test_queue_use: push, publish, and see that the driver gets it
 * @elem: in @q->buf
 */
void test_queue_use(TestQueue *q, const VirtQueueElement *elem, uint32_t len);

/* Likewise for an element in a buffer of its own */
void test_queue_use_buf(TestQueue *q, const VirtQueueElement *elem,
                        VringVectors *buf, uint32_t len);

/**
 * test_queue_use_batch: @n buffers of one descriptor each, published together
 */
void test_queue_use_batch(TestQueue *q, unsigned n);

/**
 * test_check_vectors: see that an element consists of @n vectors, in any mix
 *                     of directions, each where it belongs
 */
void test_check_vectors(TestQueue *q, const VirtQueueElement *elem,
                        const TestDesc *vector, unsigned n);

/**
 * test_check_long: likewise for @n vectors, the first @out of them readable;
 *                  vector i has 16 + i % 16 bytes at DATA_BASE + 32 * i
 */
void test_check_long(TestQueue *q, const VirtQueueElement *elem, unsigned n,
                     unsigned out);

/**
 * test_queue_look_again: a buffer comes when the device does not ask for a
 *                        kick, and is seen when it asks again
 */
void test_queue_look_again(TestQueue *q);

/**
 * test_queue_run: one buffer of its own from the driver through the device
 * @i: split: descriptor, also made the head; packed: buffer id
 */
void test_queue_run(TestQueue *q, uint16_t i);

/**
 * test_queue_fail: see that pop returns @err, holds nothing and touches
 *                  nothing, and that the Vring is broken
 */
void test_queue_fail(TestQueue *q, VringError err);

#endif /* TESTS_UNIT_VRING_TEST_DRIVER_H */
