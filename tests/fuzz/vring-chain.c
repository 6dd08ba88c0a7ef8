/*
 * Fuzz target: any contents of the ring and of its tables
 *
 * Knows that whatever stands there, each buffer that the ring hands out can
 * be read and written as it says, and nothing is left over at the end.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "vring-fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static TestQueue q;
    VirtQueueElement elem;
    unsigned popped = 0;

    if (!size) {
        return 0;
    }
    fuzz_queue_init(&q, data[0]);
    fuzz_queue_fill(&q);
    for (size_t i = 1; i < MIN(size, FUZZ_RAM_SIZE); i++) {
        q.data[i - 1] ^= data[i];
    }

    vring_vectors_init(&q.buf);
    while (vring_pop(&q.vring, &elem, &q.buf) > 0) {
        g_assert_true(q.drv.config.packed || elem.index < FUZZ_NUM);
        g_assert_cmpuint(elem.in_num + elem.out_num, <=, VIRTQUEUE_MAX_SIZE);
        fuzz_touch(&elem);
        vring_push(&q.vring, &elem, &q.buf, popped);
        if (++popped == 3 * FUZZ_NUM) {
            break;      /* a buffer that writes to the ring may feed it */
        }
        vring_publish(&q.vring);
        vring_should_notify(&q.vring);
    }
    vring_publish(&q.vring);
    vring_enable_notification(&q.vring);
    vring_disable_notification(&q.vring);
    vring_vectors_release(&q.buf);
    fuzz_queue_close(&q);
    return 0;
}
