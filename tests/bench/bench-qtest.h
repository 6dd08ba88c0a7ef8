/*
 * A QEMU process with a halted vCPU, driven over its qtest and QMP sockets
 *
 * Knows how QEMU is started, spoken to and ended.  Does not know devices.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_BENCH_BENCH_QTEST_H
#define TESTS_BENCH_BENCH_QTEST_H

#include <json-glib/json-glib.h>
#include <stdio.h>
#include "bench-memory.h"

typedef struct BenchQtest {
    pid_t pid;                  /* 0: ended */
    FILE *qtest_in;             /* each pair is one socket */
    FILE *qtest_out;
    FILE *qmp_in;
    FILE *qmp_out;
    bool late;                  /* an answer is still to come, see try_write */
    char *error;                /* the first that happened, see failed() */
} BenchQtest;

/**
 * bench_qtest_start: start QEMU
 * @argv: NULL-terminated: the binary, and options beside machine, memory and
 *        sockets
 * @mem: becomes the guest's RAM
 *
 * Returns: NULL with @errp set if it ends before it answers
 *
 * Pair: bench_qtest_end()
 */
BenchQtest *bench_qtest_start(char **argv, const BenchMemory *mem,
                              GError **errp);

/**
 * bench_qtest_replace: kill QEMU, and start another the moment it is gone
 * @argv, @mem: as for bench_qtest_start()
 *
 * Returns: false with @errp set if it has ended before, or the other does not
 *          start; @qt is to be ended all the same
 */
bool bench_qtest_replace(BenchQtest *qt, char **argv, const BenchMemory *mem,
                         GError **errp);

/**
 * bench_qtest_end: ask QEMU to quit, and kill it if it does not
 * @qt: freed; may be NULL
 */
void bench_qtest_end(BenchQtest *qt);

/**
 * bench_qtest_alive: false with @errp set if QEMU has ended
 */
bool bench_qtest_alive(BenchQtest *qt, GError **errp);

/**
 * bench_qtest_write: write to an address, as the vCPU would
 * @command: "outl", "outb", "writeb", "writew", "writel", "writeq"
 */
void bench_qtest_write(BenchQtest *qt, const char *command, uint64_t addr,
                       uint64_t value);

/**
 * bench_qtest_try_write: the same without waiting for QEMU for ever
 * @ms: how long at most
 *
 * Returns: false if QEMU has not done it by then; it may yet do it, and the
 *          next access waits for that
 */
bool bench_qtest_try_write(BenchQtest *qt, const char *command, uint64_t addr,
                           uint64_t value, unsigned ms);

/**
 * bench_qtest_clock_step: let time go on in the guest
 *
 * Throttle groups, too, look at that clock where there is a qtest accelerator.
 *
 * Returns: false, with nothing done, if QEMU is busy with something else
 */
bool bench_qtest_clock_step(BenchQtest *qt, uint64_t ns);

/**
 * bench_qtest_read: likewise, "inl", "readb", "readw", "readl", "readq"
 *
 * Returns: all ones if QEMU does not answer
 */
uint64_t bench_qtest_read(BenchQtest *qt, const char *command, uint64_t addr);

/**
 * bench_qtest_failed: did a command since the start go wrong?
 *
 * So that a sequence of them can be checked at its end.
 *
 * Returns: true with @errp set to what came first
 */
bool bench_qtest_failed(BenchQtest *qt, GError **errp);

/**
 * bench_qmp: run a QMP command
 * @command: complete, in JSON
 *
 * Returns: what is in "return", to be freed by the caller; NULL with @errp
 *          set if QEMU refuses
 */
JsonNode *bench_qmp(BenchQtest *qt, const char *command, GError **errp);

#endif /* TESTS_BENCH_BENCH_QTEST_H */
