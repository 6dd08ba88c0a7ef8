/*
 * The devices that give and take guest memory: virtio-mem and virtio-balloon
 *
 * Knows how such a device is found and started, and how it is asked for one
 * thing at a time, without waiting: the disk's load goes on meanwhile.  Does
 * not know what the memory is used for.
 *
 * What goes wrong shows in bench_qtest_failed(), unless told otherwise.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_SOAK_SOAK_MEMDEV_H
#define TESTS_SOAK_SOAK_MEMDEV_H

#include "bench-pci.h"
#include "bench-ring.h"

/* Guest memory that a device needs for its rings and one request */
#define SOAK_MEMDEV_BYTES   (512 * 1024)

/* Pages of a balloon */
#define SOAK_PAGE           4096
#define SOAK_MAX_PAGES      1024        /* of one request */

typedef struct SoakMemdevKind {
    BenchPciKind pci;
    uint64_t features;          /* that are used if they are offered */
    unsigned min_queues;
} SoakMemdevKind;

extern const SoakMemdevKind soak_memdev_mem, soak_memdev_balloon;

typedef struct SoakMemdev {
    BenchDevice parent;         /* features, queues, memory */
    const SoakMemdevKind *kind;
    BenchQtest *qt;
    BenchPci pci;
    BenchMemory mem;
    uint64_t rings_addr;        /* where memory for rings begins */
    uint64_t buffer;            /* guest address of what is sent */
    uint64_t answer;            /* and of what comes back */
    BenchRing *rings;
    BenchRing *asked;           /* the ring with a request, or NULL */
} SoakMemdev;

/* Requests of virtio-mem (5.15.6) */
typedef enum SoakMemRequest {
    SOAK_MEM_PLUG,
    SOAK_MEM_UNPLUG,
    SOAK_MEM_UNPLUG_ALL,
    SOAK_MEM_STATE,
} SoakMemRequest;

/* Queues of virtio-balloon (5.5.2), as QEMU has them without hints */
typedef enum SoakBalloonQueue {
    SOAK_BALLOON_INFLATE = 0,
    SOAK_BALLOON_DEFLATE = 1,
    SOAK_BALLOON_REPORT = 3,
} SoakBalloonQueue;

/**
 * soak_memdev_new: nothing is done to the device, which need not be there yet
 * @qt: outlives it
 * @mem: SOAK_MEMDEV_BYTES are taken of it
 *
 * Pair: soak_memdev_free()
 */
SoakMemdev *soak_memdev_new(const SoakMemdevKind *kind, BenchQtest *qt,
                            BenchMemory *mem);

/**
 * soak_memdev_free: leave the device as it is
 * @dev: may be NULL
 */
void soak_memdev_free(SoakMemdev *dev);

/**
 * soak_memdev_start: find the device, which is new or had its bus reset, and
 *                    start it
 *
 * Returns: false with @errp set if there is none, or it does not come up
 */
bool soak_memdev_start(SoakMemdev *dev, GError **errp);

/**
 * soak_memdev_ended: has the request ended, if there is one?
 *
 * No other may be made before that.
 */
bool soak_memdev_ended(SoakMemdev *dev);

/**
 * soak_memdev_config: eight bytes of the configuration
 */
uint64_t soak_memdev_config(SoakMemdev *dev, unsigned offset);

/**
 * soak_mem_ask: make a request for @blocks blocks from guest address @addr on
 */
void soak_mem_ask(SoakMemdev *dev, SoakMemRequest request, uint64_t addr,
                  unsigned blocks);

/**
 * soak_mem_answer: what came of it, in a word
 *
 * Of a question for the state: whether the blocks are plugged.
 */
const char *soak_mem_answer(const SoakMemdev *dev);

/**
 * soak_balloon_move: put pages into a queue of the balloon
 * @addr: guest address of the first one
 * @n: 1 to SOAK_MAX_PAGES
 */
void soak_balloon_move(SoakMemdev *dev, SoakBalloonQueue queue, uint64_t addr,
                       unsigned n);

/**
 * soak_balloon_set_actual: tell how many pages the balloon has
 */
void soak_balloon_set_actual(SoakMemdev *dev, uint32_t pages);

#endif /* TESTS_SOAK_SOAK_MEMDEV_H */
