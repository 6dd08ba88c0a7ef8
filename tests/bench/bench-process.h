/*
 * Another process, looked at and held from outside
 *
 * Knows Linux: /proc, ptrace, pidfds, CPU clocks, performance counters.  Does
 * not know what the process does.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_BENCH_BENCH_PROCESS_H
#define TESTS_BENCH_BENCH_PROCESS_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* An eventfd of a process */
typedef struct BenchEventfd {
    int fd;                     /* its number there */
    int id;                     /* the kernel's, unique per eventfd */
    uint64_t count;             /* when looked at */
} BenchEventfd;

/**
 * bench_thread_freeze: stop one thread of another process
 *
 * Its other threads go on.  Returns when the thread has stopped, in a system call
 * if it makes any.  If we die it goes on by itself.
 *
 * Pair: bench_thread_thaw()
 *
 * Context: freeze and thaw in the same thread
 */
bool bench_thread_freeze(pid_t tid, GError **errp);
bool bench_thread_thaw(pid_t tid, GError **errp);

/**
 * bench_thread_is_there: false if the thread has ended
 */
bool bench_thread_is_there(pid_t pid, pid_t tid);

/**
 * bench_thread_pin: let a thread run on the given CPU only
 * @tid: 0 for the caller
 */
bool bench_thread_pin(pid_t tid, unsigned cpu, GError **errp);

/**
 * bench_thread_cpu_ns: CPU time of one thread of any process, in nanoseconds
 *
 * While the thread runs on another CPU the kernel's figure may lag by a timer
 * tick.  Returns 0 if the thread is gone.
 */
uint64_t bench_thread_cpu_ns(pid_t pid, pid_t tid);

/**
 * bench_process_cpu_ns: CPU time of all threads, also those that have ended
 */
uint64_t bench_process_cpu_ns(pid_t pid);

/**
 * bench_eventfds: the eventfds that a process has open
 *
 * Returns: array of BenchEventfd, one of each id, to be freed by the caller;
 *          NULL with @errp set if /proc does not tell
 */
GArray *bench_eventfds(pid_t pid, GError **errp);

/**
 * bench_eventfd_count: present value of one eventfd, without changing it
 */
uint64_t bench_eventfd_count(pid_t pid, int fd);

/**
 * bench_dup_fd: duplicate a child's file descriptor
 *
 * Returns: -1 with @errp set if the kernel does not allow it
 */
int bench_dup_fd(pid_t pid, int fd, GError **errp);

/**
 * bench_instructions_open: count the instructions that a thread retires
 *
 * Returns: a descriptor to read a count from, or -1 where the CPU or the
 *          kernel does not count
 */
int bench_instructions_open(pid_t tid);

/**
 * bench_instructions_read: the count so far
 * @fd: may be -1, which counts nothing
 */
uint64_t bench_instructions_read(int fd);

#endif /* TESTS_BENCH_BENCH_PROCESS_H */
