/*
 * Another process, looked at and held from outside
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "bench-device.h"
#include "bench-process.h"

#include <errno.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Milliseconds, for a thread that polls all the time */
#define FREEZE_TRIES 100

static bool fail(GError **errp, const char *what, pid_t tid)
{
    g_set_error(errp, BENCH_ERROR, 0, "cannot %s thread %d: %s", what,
                (int)tid, g_strerror(errno));
    return false;
}

static bool stop_thread(pid_t tid, GError **errp)
{
    int status;

    if (ptrace(PTRACE_SEIZE, tid, NULL, NULL) < 0) {
        return fail(errp, "trace", tid);
    }
    if (ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) < 0 ||
        waitpid(tid, &status, __WALL) != tid) {
        return fail(errp, "stop", tid);
    }
    if (!WIFSTOPPED(status)) {
        g_set_error(errp, BENCH_ERROR, 0, "thread %d ended when it was to be "
                    "measured: see what QEMU said", (int)tid);
        return false;
    }
    return true;
}

/* Was the stopped thread in a system call? */
static bool is_in_syscall(pid_t tid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/syscall", (int)tid);
    g_autofree char *line = NULL;

    return g_file_get_contents(path, &line, NULL, NULL) &&
           !g_str_has_prefix(line, "-1");
}

/*
 * A thread that runs may hold a lock.  In Valgrind it always does, and all
 * others wait for it.
 */
bool bench_thread_freeze(pid_t tid, GError **errp)
{
    for (unsigned i = 0; i < FREEZE_TRIES; i++) {
        if (!stop_thread(tid, errp)) {
            return false;
        }
        if (is_in_syscall(tid)) {
            return true;
        }
        if (!bench_thread_thaw(tid, errp)) {
            return false;
        }
        g_usleep(G_USEC_PER_SEC / 1000);
    }
    return stop_thread(tid, errp);
}

bool bench_thread_thaw(pid_t tid, GError **errp)
{
    if (ptrace(PTRACE_DETACH, tid, NULL, NULL) < 0) {
        return fail(errp, "resume", tid);
    }
    return true;
}

bool bench_thread_is_there(pid_t pid, pid_t tid)
{
    return !syscall(SYS_tgkill, pid, tid, 0) || errno != ESRCH;
}

bool bench_thread_pin(pid_t tid, unsigned cpu, GError **errp)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(tid, sizeof(set), &set) < 0) {
        g_set_error(errp, BENCH_ERROR, 0, "cannot pin thread %d to CPU %u: %s",
                    (int)tid, cpu, g_strerror(errno));
        return false;
    }
    return true;
}

/* Returns a file's contents, NULL if it cannot be read */
static char *read_proc(const char *path)
{
    char *text;

    return g_file_get_contents(path, &text, NULL, NULL) ? text : NULL;
}

uint64_t bench_thread_cpu_ns(pid_t pid, pid_t tid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/task/%d/schedstat",
                                            (int)pid, (int)tid);
    g_autofree char *text = read_proc(path);

    return text ? g_ascii_strtoull(text, NULL, 10) : 0;
}

uint64_t bench_process_cpu_ns(pid_t pid)
{
    struct timespec ts;
    clockid_t clock;

    if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &ts)) {
        return 0;
    }
    return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

/* The value behind @key in a fdinfo file; false if there is none */
static bool fdinfo_value(const char *info, const char *key, int base,
                         uint64_t *value)
{
    const char *at = strstr(info, key);

    if (at) {
        *value = g_ascii_strtoull(at + strlen(key), NULL, base);
    }
    return at;
}

static bool read_eventfd(pid_t pid, int fd, BenchEventfd *ev)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/fdinfo/%d",
                                            (int)pid, fd);
    g_autofree char *info = read_proc(path);
    uint64_t id;

    if (!info || !fdinfo_value(info, "eventfd-count:", 16, &ev->count) ||
        !fdinfo_value(info, "eventfd-id:", 10, &id)) {
        return false;
    }
    ev->fd = fd;
    ev->id = id;
    return true;
}

static bool has_id(const GArray *array, int id)
{
    for (unsigned i = 0; i < array->len; i++) {
        if (g_array_index(array, BenchEventfd, i).id == id) {
            return true;
        }
    }
    return false;
}

GArray *bench_eventfds(pid_t pid, GError **errp)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/fd", (int)pid);
    GArray *array = g_array_new(FALSE, FALSE, sizeof(BenchEventfd));
    GDir *dir = g_dir_open(path, 0, errp);
    const char *name;

    if (!dir) {
        g_array_free(array, TRUE);
        return NULL;
    }
    while ((name = g_dir_read_name(dir))) {
        BenchEventfd ev;

        if (read_eventfd(pid, atoi(name), &ev) && !has_id(array, ev.id)) {
            g_array_append_val(array, ev);
        }
    }
    g_dir_close(dir);
    return array;
}

uint64_t bench_eventfd_count(pid_t pid, int fd)
{
    BenchEventfd ev;

    return read_eventfd(pid, fd, &ev) ? ev.count : 0;
}

int bench_dup_fd(pid_t pid, int fd, GError **errp)
{
    int pidfd = syscall(SYS_pidfd_open, pid, 0);
    int copy = pidfd < 0 ? -1 : syscall(SYS_pidfd_getfd, pidfd, fd, 0);

    if (copy < 0) {
        g_set_error(errp, BENCH_ERROR, 0,
                    "cannot duplicate descriptor %d of process %d: %s", fd,
                    (int)pid, g_strerror(errno));
    }
    if (pidfd >= 0) {
        close(pidfd);
    }
    return copy;
}

int bench_instructions_open(pid_t tid)
{
    struct perf_event_attr attr = {
        .type = PERF_TYPE_HARDWARE,
        .size = sizeof(attr),
        .config = PERF_COUNT_HW_INSTRUCTIONS,
    };

    return syscall(SYS_perf_event_open, &attr, tid, -1, -1,
                   PERF_FLAG_FD_CLOEXEC);
}

uint64_t bench_instructions_read(int fd)
{
    uint64_t count;

    if (fd < 0 || read(fd, &count, sizeof(count)) != sizeof(count)) {
        return 0;
    }
    return count;
}
