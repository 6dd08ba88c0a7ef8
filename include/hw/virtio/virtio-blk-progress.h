/*
 * How far a virtio-blk request is, for threads that do not own it
 *
 * Whoever wants to know which requests are in flight cannot wait for the
 * thread that has them: it may hang, and then the question is asked.  So the
 * owner says in each request how far it is, and a sequence count tells a reader
 * that what it copied belongs together.  Knows nothing else of requests.
 *
 *   the owner                            a reader
 *   ----------------------------------   ----------------------------------
 *   virtio_blk_progress_renew()          virtio_blk_progress_look()
 *   writes fields                        copies fields that the stage allows
 *   virtio_blk_progress_set()            virtio_blk_progress_is(), or else it
 *                                        throws the copy away
 *
 * The owner writes a field only in the stage in which no reader looks at it, or
 * after virtio_blk_progress_renew().  Owners may change, one after the other.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_VIRTIO_BLK_PROGRESS_H
#define HW_VIRTIO_VIRTIO_BLK_PROGRESS_H

#include "qemu/atomic.h"

typedef enum VirtIOBlockStage {
    VIRTIO_BLK_STAGE_FREE,      /* no request, or one that has ended */
    VIRTIO_BLK_STAGE_POPPED,    /* its head and the time are known */
    VIRTIO_BLK_STAGE_SUBMITTED, /* its header was parsed, too */
    VIRTIO_BLK_STAGE_PARKED,    /* as SUBMITTED; waits to be parsed again */
    VIRTIO_BLK_STAGE_COMPLETED, /* as SUBMITTED; the backend is done */
} VirtIOBlockStage;

/* Writer: the request's owner.  Readers: any thread. */
typedef struct VirtIOBlockProgress {
    uint32_t count;             /* of virtio_blk_progress_renew() */
    uint8_t stage;              /* VirtIOBlockStage */
} VirtIOBlockProgress;

/* What a reader saw before it copied */
typedef struct VirtIOBlockProgressSeen {
    uint32_t count;
    VirtIOBlockStage stage;
} VirtIOBlockProgressSeen;

/**
 * virtio_blk_progress_init: for memory in which there was no request yet
 */
static inline void virtio_blk_progress_init(VirtIOBlockProgress *progress)
{
    qatomic_set(&progress->count, 0);
    qatomic_set(&progress->stage, VIRTIO_BLK_STAGE_FREE);
}

/**
 * virtio_blk_progress_renew: fields that the stage allows are going to change
 *
 * Context: the owner
 */
static inline void virtio_blk_progress_renew(VirtIOBlockProgress *progress)
{
    qatomic_store_release(&progress->count, progress->count + 1);
    /* Count before fields; pairs with smp_rmb() in virtio_blk_progress_is() */
    smp_wmb();
}

/**
 * virtio_blk_progress_set: readers may look at the fields of @stage from now on
 *
 * Context: the owner
 */
static inline void virtio_blk_progress_set(VirtIOBlockProgress *progress,
                                           VirtIOBlockStage stage)
{
    /* Fields before stage; pairs with virtio_blk_progress_look() */
    qatomic_store_release(&progress->stage, stage);
}

/**
 * virtio_blk_progress_look: begin to copy
 *
 * The fields have to be read with qatomic_read().
 *
 * Context: any thread; the memory does not go away meanwhile
 */
static inline VirtIOBlockProgressSeen
virtio_blk_progress_look(const VirtIOBlockProgress *progress)
{
    VirtIOBlockProgressSeen seen;

    /*
     * The count first: a stage that the request had before it was renewed is
     * then always found out.
     */
    seen.count = qatomic_load_acquire(&progress->count);
    seen.stage = qatomic_load_acquire(&progress->stage);
    return seen;
}

/**
 * virtio_blk_progress_is: is it still what was seen?
 *
 * Returns: false if what was copied since may not belong together
 *
 * Context: as virtio_blk_progress_look()
 */
static inline bool virtio_blk_progress_is(const VirtIOBlockProgress *progress,
                                          const VirtIOBlockProgressSeen *seen)
{
    /* Fields before count; pairs with smp_wmb() in ..._renew() */
    smp_rmb();
    return qatomic_read(&progress->count) == seen->count &&
           qatomic_read(&progress->stage) == seen->stage;
}

#endif /* HW_VIRTIO_VIRTIO_BLK_PROGRESS_H */
