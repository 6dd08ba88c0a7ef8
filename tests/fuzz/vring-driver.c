/*
 * Fuzz target: any sequence of what driver, device and memory do
 *
 * Knows that buffers may be in flight in any number and order while the
 * driver writes to the ring and memory comes and goes.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "vring-fuzz.h"

typedef struct Flight {
    VirtQueueElement elem[FUZZ_NUM];
    VringVectors buf[FUZZ_NUM];
    bool used[FUZZ_NUM];
} Flight;

static void fuzz_pop(TestQueue *q, Flight *f, unsigned i)
{
    if (!f->used[i]) {
        vring_vectors_init(&f->buf[i]);
        f->used[i] = vring_pop(&q->vring, &f->elem[i], &f->buf[i]) > 0;
    }
}

static void fuzz_return(TestQueue *q, Flight *f, unsigned i, bool push)
{
    if (f->used[i]) {
        fuzz_touch(&f->elem[i]);
        if (push) {
            vring_push(&q->vring, &f->elem[i], &f->buf[i], i);
        } else {
            vring_detach(&q->vring, &f->elem[i], &f->buf[i]);
        }
        vring_vectors_release(&f->buf[i]);
        f->used[i] = false;
    }
}

/*
 * Makes available what stands there: in a split ring any chain, in a packed
 * one the next descriptor, whatever of it the driver has taken back
 */
static void fuzz_offer(TestDriver *drv, uint8_t arg)
{
    uint8_t *raw = drv->desc + 16 * (drv->avail_pos % drv->config.num);
    uint16_t flags;

    if (!drv->config.packed) {
        driver_offer(drv, arg);
        return;
    }
    flags = driver_lap_flags(drv, drv->avail_pos) |
            (arg & (NEXT | WRITE | INDIRECT));
    raw[14] = flags;
    raw[15] = flags >> 8;
    drv->avail_pos = driver_advance(drv, drv->avail_pos, 1);
}

/* One operation: its code, and two bytes whose meaning depends on it */
static void fuzz_step(TestQueue *q, Flight *f, const uint8_t *op)
{
    unsigned i = op[1] % FUZZ_NUM;

    switch (op[0] % 8) {
    case 0:
        fuzz_pop(q, f, i);
        break;
    case 1:
        fuzz_return(q, f, i, op[2] % 4);
        break;
    case 2:
        if (vring_publish(&q->vring)) {
            vring_should_notify(&q->vring);
        }
        break;
    case 3:
        if (!vring_enable_notification(&q->vring)) {
            vring_disable_notification(&q->vring);
        }
        break;
    case 4:
        fuzz_offer(&q->drv, op[1]);
        break;
    case 5:
        q->data[op[1]] = op[2];     /* in the descriptors */
        break;
    case 6:
        test_memory_commit(q->mem);
        vring_refresh_memory(&q->vring);
        break;
    case 7:
        if (f->used[i]) {
            vring_pin(&q->vring, &f->elem[i], &f->buf[i]);
        }
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static TestQueue q;
    Flight f = { };

    if (!size) {
        return 0;
    }
    fuzz_queue_init(&q, data[0]);
    fuzz_queue_fill(&q);
    for (size_t i = 1; i + 3 <= size; i += 3) {
        fuzz_step(&q, &f, data + i);
    }
    for (unsigned i = 0; i < FUZZ_NUM; i++) {
        fuzz_return(&q, &f, i, true);
    }
    vring_refresh_memory(&q.vring);
    fuzz_queue_close(&q);
    return 0;
}
