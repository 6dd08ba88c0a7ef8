/*
 * The load: every queue full of requests that are verified
 *
 * Knows virtio-blk requests, which of them is in flight in which queue, and
 * what a driver may expect of a device that is paused, reset or taken away
 * meanwhile.  Does not know how it is asked to do so (soak-main.c).
 *
 * All of it runs in one thread: who calls soak_load_sweep() no more stands
 * still, like a guest whose vCPUs are stopped.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_SOAK_SOAK_LOAD_H
#define TESTS_SOAK_SOAK_LOAD_H

#include "soak-device.h"
#include "soak-disk.h"

/* How memory beside the guest's own is used for data */
typedef enum SoakUse {
    SOAK_USE_NONE,              /* no new requests go there */
    SOAK_USE_CAREFUL,           /* it stays as long as requests need it */
    SOAK_USE_RUDE,              /* it may go at any time: nothing is verified */
} SoakUse;

typedef struct SoakStats {
    uint64_t requests;          /* completed */
    uint64_t verified;          /* blocks read and compared */
    uint64_t kicks;             /* notifications sent */
    uint64_t irqs;              /* notifications that a sleeping queue got */
    uint64_t forgotten;         /* requests in flight when a reset came */
    uint64_t elsewhere;         /* requests with data in added memory */
} SoakStats;

typedef struct SoakLoad SoakLoad;

/**
 * soak_load_memory_size: bytes of guest memory that a load needs
 */
uint64_t soak_load_memory_size(unsigned queues, unsigned depth);

/**
 * soak_load_new: nothing is in flight, the device is not started
 * @dev, @disk: outlive the load; the device's memory is for it alone
 * @depth: requests per queue; if that is many, all are small and use tables,
 *         and may be as many as the queue has entries
 * @stall_s: when a request that does not end is lost
 *
 * Pair: soak_load_free()
 */
SoakLoad *soak_load_new(SoakDevice *dev, SoakDisk *disk, unsigned depth,
                        unsigned stall_s, uint32_t seed);
void soak_load_free(SoakLoad *load);

/**
 * soak_load_start: reset the device and start it with empty rings
 *
 * Whether with indirect descriptors and EVENT_IDX is left to chance.  Requests
 * that were in flight are forgotten, and nothing may be written to their
 * memory any more.
 *
 * Returns: false with @errp set if the device does not come up
 */
bool soak_load_start(SoakLoad *load, GError **errp);

/**
 * soak_load_leave: the device is reset and stays so, or is gone
 * @reset: write to its status; else that was done in another way
 *
 * Returns: false with @errp set if it writes to forgotten requests' memory
 */
bool soak_load_leave(SoakLoad *load, bool reset, GError **errp);

/**
 * soak_load_reset_queue: reset one of the queues and let it begin anew
 *
 * For a device that offers RING_RESET.  Its requests are forgotten, as with
 * soak_load_start(); those of other queues go on.
 *
 * Returns: false with @errp set if the queue does not come up, or writes to
 *          forgotten requests' memory
 */
bool soak_load_reset_queue(SoakLoad *load, GError **errp);

/**
 * soak_load_sweep: take what is used, verify it, and make new requests
 * @busy: set to whether there was something
 *
 * Returns: false with @errp set if the device has made a mistake, which a
 *          request that does not end is, too
 */
bool soak_load_sweep(SoakLoad *load, bool *busy, GError **errp);

/**
 * soak_load_resume: the time since the last sweep does not count
 */
void soak_load_resume(SoakLoad *load);

/**
 * soak_load_hold: make no new requests
 */
void soak_load_hold(SoakLoad *load, bool hold);

/**
 * soak_load_in_flight: number of requests
 */
unsigned soak_load_in_flight(const SoakLoad *load);

/**
 * soak_load_quiesce: hold, and sweep until nothing is in flight
 *
 * Returns: false with @errp set, see soak_load_sweep()
 */
bool soak_load_quiesce(SoakLoad *load, GError **errp);

/**
 * soak_load_verify: quiesce, then read the whole disk
 * @copy: -1, or a file that gets what was read
 *
 * Returns: false with @errp set if a block does not hold what it must
 */
bool soak_load_verify(SoakLoad *load, int copy, GError **errp);

/**
 * soak_load_add_memory: use other memory for the data of some requests
 * @addr: guest address
 * @host: where it is mapped here
 * @size: bytes; as much as all requests need, or requests share it, which only
 *        SOAK_USE_RUDE allows
 *
 * One at a time; NULL for @host ends it, if nothing is in flight there.
 *
 * Returns: false with @errp set if it is too small, or still in use
 */
bool soak_load_add_memory(SoakLoad *load, uint64_t addr, void *host,
                          uint64_t size, GError **errp);

/**
 * soak_load_use_memory: how it is used from now on
 *
 * Returns: when all requests in flight there are of that kind; false with
 *          @errp set if that does not happen
 */
bool soak_load_use_memory(SoakLoad *load, SoakUse use, GError **errp);

/**
 * soak_load_data_size: bytes that all requests together need for data
 */
uint64_t soak_load_data_size(const SoakLoad *load);

/**
 * soak_load_set_clock: while sweeping, let the guest's time go on
 */
void soak_load_set_clock(SoakLoad *load, bool on);

/**
 * soak_load_drop_kicks: plant a fault: send this many notifications less
 */
void soak_load_drop_kicks(SoakLoad *load, unsigned n);

/**
 * soak_load_drop_irqs: plant a fault: do not see this many notifications
 */
void soak_load_drop_irqs(SoakLoad *load, unsigned n);

const SoakStats *soak_load_stats(const SoakLoad *load);

/**
 * soak_load_describe: where each queue stands
 *
 * Returns: to be freed by the caller
 */
char *soak_load_describe(const SoakLoad *load);

#endif /* TESTS_SOAK_SOAK_LOAD_H */
