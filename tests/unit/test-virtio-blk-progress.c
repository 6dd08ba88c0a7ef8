/*
 * Tests of the sequence count of a virtio-blk request
 *
 * Knows what an owner and a reader of VirtIOBlockProgress owe each other.  The
 * owner gives each request the same number in all of its fields, in the order
 * in which a device learns them, and a reader that accepts fields of two
 * requests fails.  ThreadSanitizer tells whether the functions access their own
 * fields in any other way than atomically.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <pthread.h>
#include <sched.h>
#include "hw/virtio/virtio-blk-progress.h"

#define REQUESTS 200000         /* ten times as many with "-m slow" */
#define LOOKS 1000              /* at least, of which each finds a request */

typedef struct Slot {
    VirtIOBlockProgress progress;
    uint32_t head;              /* from POPPED on */
    uint32_t header;            /* from SUBMITTED on, as the next */
    uint32_t bytes;
    bool stop;
    unsigned requests;
} Slot;

static void owner_pop(Slot *slot, uint32_t n)
{
    virtio_blk_progress_renew(&slot->progress);
    qatomic_set(&slot->head, n);
    virtio_blk_progress_set(&slot->progress, VIRTIO_BLK_STAGE_POPPED);
}

static void owner_parse(Slot *slot, uint32_t n)
{
    qatomic_set(&slot->header, n);
    qatomic_set(&slot->bytes, n);
    virtio_blk_progress_set(&slot->progress, VIRTIO_BLK_STAGE_SUBMITTED);
}

/* The error policy stops it, and its header is another one afterwards. */
static void owner_park(Slot *slot, uint32_t n)
{
    virtio_blk_progress_set(&slot->progress, VIRTIO_BLK_STAGE_PARKED);
    virtio_blk_progress_set(&slot->progress, VIRTIO_BLK_STAGE_POPPED);
    virtio_blk_progress_renew(&slot->progress);
    owner_parse(slot, n);
}

static void *owner(void *opaque)
{
    Slot *slot = opaque;

    for (uint32_t n = 2; !qatomic_read(&slot->stop); n += 2) {
        owner_pop(slot, n);
        owner_parse(slot, n);
        if (n % 8 == 0) {
            owner_park(slot, n + 1);
        }
        virtio_blk_progress_set(&slot->progress, VIRTIO_BLK_STAGE_FREE);
        qatomic_set(&slot->requests, slot->requests + 1);
    }
    return NULL;
}

/*
 * Returns whether a request was found and could be read.  If this is slow the
 * owner comes to the same stage again meanwhile, with other requests.
 */
static bool look(Slot *slot, bool slow)
{
    VirtIOBlockProgressSeen seen = virtio_blk_progress_look(&slot->progress);
    uint32_t head, header, bytes;

    if (seen.stage == VIRTIO_BLK_STAGE_FREE) {
        return false;
    }
    head = qatomic_read(&slot->head);
    if (slow) {
        sched_yield();
    }
    header = qatomic_read(&slot->header);
    bytes = qatomic_read(&slot->bytes);
    if (!virtio_blk_progress_is(&slot->progress, &seen)) {
        return false;
    }
    g_assert_cmpuint(head, !=, 0);
    g_assert_cmpuint(head % 2, ==, 0);
    if (seen.stage != VIRTIO_BLK_STAGE_POPPED) {
        g_assert_cmpuint(header, ==, bytes);
        g_assert_cmpuint(header / 2, ==, head / 2);
    }
    return true;
}

static void test_threads(void)
{
    unsigned wanted = g_test_slow() ? 10 * REQUESTS : REQUESTS;
    Slot slot = { .head = 0 };
    unsigned found = 0;
    pthread_t thread;

    virtio_blk_progress_init(&slot.progress);
    g_assert_cmpint(pthread_create(&thread, NULL, owner, &slot), ==, 0);
    while (found < LOOKS || qatomic_read(&slot.requests) < wanted) {
        found += look(&slot, false);
        look(&slot, true);
    }
    qatomic_set(&slot.stop, true);
    pthread_join(thread, NULL);
}

/* What a reader sees of each step, one after the other */
static void test_steps(void)
{
    VirtIOBlockProgressSeen popped, submitted, seen;
    Slot slot = { .head = 0 };

    virtio_blk_progress_init(&slot.progress);
    g_assert_false(look(&slot, false));
    owner_pop(&slot, 2);
    g_assert_true(look(&slot, false));
    popped = virtio_blk_progress_look(&slot.progress);
    g_assert_cmpint(popped.stage, ==, VIRTIO_BLK_STAGE_POPPED);

    owner_parse(&slot, 2);
    g_assert_false(virtio_blk_progress_is(&slot.progress, &popped));
    submitted = virtio_blk_progress_look(&slot.progress);
    g_assert_cmpint(submitted.stage, ==, VIRTIO_BLK_STAGE_SUBMITTED);
    g_assert_true(virtio_blk_progress_is(&slot.progress, &submitted));

    /* As far as before, but with another header */
    owner_park(&slot, 3);
    g_assert_false(virtio_blk_progress_is(&slot.progress, &submitted));
    submitted = virtio_blk_progress_look(&slot.progress);

    /* As far as before, but another request */
    virtio_blk_progress_set(&slot.progress, VIRTIO_BLK_STAGE_FREE);
    g_assert_false(look(&slot, false));
    owner_pop(&slot, 4);
    owner_parse(&slot, 4);
    seen = virtio_blk_progress_look(&slot.progress);
    g_assert_cmpint(seen.stage, ==, submitted.stage);
    g_assert_false(virtio_blk_progress_is(&slot.progress, &submitted));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/virtio-blk/progress/steps", test_steps);
    g_test_add_func("/virtio-blk/progress/threads", test_threads);
    return g_test_run();
}
