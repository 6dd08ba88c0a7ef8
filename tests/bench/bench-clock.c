/*
 * The benchmark's clock
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "bench-clock.h"

#include <glib.h>
#include <stdbool.h>
#include <string.h>

/* An error of 100 ns at its ends makes 5 ns in a millisecond. */
#define CALIBRATION_US  20000

BenchClock bench_clock;

#if defined(__x86_64__)
/* At the same rate on all CPUs, whatever they do: the kernel says so. */
static bool counter_is_even(void)
{
    g_autofree char *text = NULL;

    return g_file_get_contents("/proc/cpuinfo", &text, NULL, NULL) &&
           strstr(text, " constant_tsc ") && strstr(text, " nonstop_tsc ");
}

/* Both clocks at one moment: the best of some tries, for interruptions */
static BenchClock read_both(void)
{
    BenchClock best = { 0 };
    uint64_t least = UINT64_MAX;

    for (unsigned i = 0; i < 16; i++) {
        uint64_t before = __builtin_ia32_rdtsc();
        uint64_t ns = bench_clock_kernel_ns();
        uint64_t took = __builtin_ia32_rdtsc() - before;

        if (took < least) {
            least = took;
            best.ticks = before + took / 2;
            best.ns = ns;
        }
    }
    return best;
}

void bench_clock_init(void)
{
    BenchClock begin, end;

    if (!counter_is_even()) {
        return;
    }
    begin = read_both();
    g_usleep(CALIBRATION_US);
    end = read_both();
    end.ns_per_tick = ((unsigned __int128)(end.ns - begin.ns) << 32) /
                      (end.ticks - begin.ticks);
    bench_clock = end;
}
#else
void bench_clock_init(void)
{
}
#endif
