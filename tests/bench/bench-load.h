/*
 * The load: requests that a driver keeps in flight, and what they cost
 *
 * Knows virtio-blk requests, when to make the next one, and what is measured
 * meanwhile.  Does not know how the device is reached (bench-device.h) or how
 * a run is asked for (bench-main.c).
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_BENCH_BENCH_LOAD_H
#define TESTS_BENCH_BENCH_LOAD_H

#include "bench-histogram.h"
#include "bench-pattern.h"
#include "bench-ring.h"

/* What a run does */
typedef struct BenchRun {
    unsigned write_percent;     /* of the requests; 0: read only */
    bool random;                /* else sequential, each queue in its part */
    bool notified;              /* sleep until notified, else poll */
    bool verify;                /* write the region first, check what is read */
    unsigned block_size;        /* bytes */
    unsigned depth;             /* requests in flight per queue */
    unsigned warmup_ms;
    unsigned time_ms;
    uint64_t region;            /* bytes of each disk; 0: the whole disk */
    uint64_t seed;
} BenchRun;

/* What it came to; counts are those of the measured time */
typedef struct BenchResult {
    uint64_t requests;
    uint64_t ns;                /* duration */
    uint64_t thread_cpu_ns;     /* of the serving threads */
    uint64_t process_cpu_ns;
    uint64_t instructions;      /* of the serving threads; 0: not counted */
    uint64_t kicks;             /* available buffer notifications */
    uint64_t calls;             /* used buffer notifications */
    uint64_t driver_ns;         /* of the driver: sweeps that found something */
    uint64_t served;            /* requests that the device counted, if so */
    uint64_t verified;          /* blocks read and compared, in the whole run */
    BenchHistogram latency;     /* ns */
    const BenchHistogram *disks;    /* of each disk, until the next run */
} BenchResult;

typedef struct BenchLoad BenchLoad;

/**
 * bench_load_new: start the device with empty rings
 * @dev: not started; outlives the load
 *
 * Returns: NULL with @errp set if it does not come up
 */
BenchLoad *bench_load_new(BenchDevice *dev, GError **errp);

/**
 * bench_load_free: the pair
 * @load: may be NULL
 */
void bench_load_free(BenchLoad *load);

/**
 * bench_load_run: run once
 * @result: contents are overwritten
 *
 * Returns: false with @errp set if the device or a parameter is at fault: a
 *          request that was lost, failed, or brought wrong data.  Then the
 *          device can be freed and nothing else.
 */
bool bench_load_run(BenchLoad *load, const BenchRun *run, BenchResult *result,
                    GError **errp);

#endif /* TESTS_BENCH_BENCH_LOAD_H */
