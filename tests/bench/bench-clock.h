/*
 * The benchmark's clock
 *
 * Knows nanoseconds.  Counts them with the CPU's time stamp counter where that
 * runs evenly, which takes a third of the time of clock_gettime(): the driver
 * reads the clock twice per sweep, and while a device is fast a sweep finds one
 * request or two.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_BENCH_BENCH_CLOCK_H
#define TESTS_BENCH_BENCH_CLOCK_H

#include <stdint.h>
#include <time.h>

typedef struct BenchClock {
    uint64_t ns_per_tick;       /* times 2^32; 0: ask the kernel */
    uint64_t ticks;             /* at some moment, */
    uint64_t ns;                /* and the kernel's clock at that */
} BenchClock;

/* Set by bench_clock_init(), before which it asks the kernel */
extern BenchClock bench_clock;

/**
 * bench_clock_init: find out how long a tick takes, within some milliseconds
 */
void bench_clock_init(void);

static inline uint64_t bench_clock_kernel_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

/**
 * bench_clock_ns: now, in nanoseconds since some moment
 */
static inline uint64_t bench_clock_ns(void)
{
#if defined(__x86_64__)
    if (bench_clock.ns_per_tick) {
        uint64_t ticks = __builtin_ia32_rdtsc() - bench_clock.ticks;

        return bench_clock.ns +
               ((unsigned __int128)ticks * bench_clock.ns_per_tick >> 32);
    }
#endif
    return bench_clock_kernel_ns();
}

#endif /* TESTS_BENCH_BENCH_CLOCK_H */
