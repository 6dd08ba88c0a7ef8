/*
 * Commands of the driver that are about guest memory
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "soak-driver.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Guest memory that is to be had with "add-own" */
#define OWN_BYTES   (8 * 1024 * 1024)

#define IDLE_US     50

static bool refuse(GError **errp, const char *why)
{
    g_set_error(errp, BENCH_ERROR, 0, "%s", why);
    return false;
}

static uint64_t number(const char *text)
{
    return g_ascii_strtoull(text, NULL, 0);
}

bool soak_memory_init(Driver *d, GError **errp)
{
    BenchQtest *qt = d->units[0].dev->qt;

    if (bench_memory_left(&d->mem) < OWN_BYTES + 2 * SOAK_MEMDEV_BYTES) {
        return refuse(errp, "there is too little guest memory: give more with "
                      "--memory");
    }
    d->virtio_mem = soak_memdev_new(&soak_memdev_mem, qt, &d->mem);
    d->balloon = soak_memdev_new(&soak_memdev_balloon, qt, &d->mem);
    d->own = bench_memory_part(&d->mem, OWN_BYTES);
    return true;
}

static void let_go(Driver *d)
{
    if (d->extra_mapped) {
        munmap(d->extra, d->extra_size);
    }
    d->extra = NULL;
    d->extra_size = 0;
    d->extra_mapped = false;
}

void soak_memory_cleanup(Driver *d)
{
    let_go(d);
    g_clear_pointer(&d->virtio_mem, soak_memdev_free);
    g_clear_pointer(&d->balloon, soak_memdev_free);
}

/* Memory for data */

static bool add(Driver *d, uint64_t addr, void *host, uint64_t size,
                bool mapped, GError **errp)
{
    if (!soak_load_add_memory(d->units[0].load, addr, host, size, errp)) {
        return false;
    }
    let_go(d);
    d->extra = host;
    d->extra_size = size;
    d->extra_mapped = mapped;
    return true;
}

/* Returns NULL with @errp set if it cannot be mapped */
static void *map(const char *path, uint64_t size, uint64_t offset,
                 GError **errp)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    void *host = fd < 0 ? MAP_FAILED
                        : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED,
                               fd, offset);

    if (host == MAP_FAILED) {
        g_set_error(errp, BENCH_ERROR, 0, "cannot map %s: %s", path,
                    g_strerror(errno));
    }
    if (fd >= 0) {
        close(fd);
    }
    return host == MAP_FAILED ? NULL : host;
}

/* add-memory ADDRESS BYTES PATH OFFSET */
static bool cmd_add_memory(Driver *d, char **args, GString *out, GError **errp)
{
    uint64_t size = number(args[1]);
    void *host = map(args[2], size, number(args[3]), errp);

    if (!host) {
        return false;
    }
    if (!add(d, number(args[0]), host, size, true, errp)) {
        munmap(host, size);
        return false;
    }
    return true;
}

static bool cmd_own_memory(Driver *d, char **args, GString *out, GError **errp)
{
    g_string_append_printf(out, "[%" G_GUINT64_FORMAT ", %u]", d->own.next,
                           OWN_BYTES);
    return true;
}

/* add-own ADDRESS BYTES */
static bool cmd_add_own(Driver *d, char **args, GString *out, GError **errp)
{
    uint64_t addr = number(args[0]), size = number(args[1]);

    if (addr < d->own.next || addr > d->own.size ||
        size > d->own.size - addr) {
        return refuse(errp, "this is not what own-memory tells of");
    }
    return add(d, addr, d->own.host + addr, size, false, errp);
}

static bool cmd_drop_memory(Driver *d, char **args, GString *out,
                            GError **errp)
{
    return add(d, 0, NULL, 0, false, errp);
}

static bool cmd_use_memory(Driver *d, char **args, GString *out, GError **errp)
{
    static const char *const names[] = { "none", "careful", "rude", NULL };

    for (unsigned i = 0; names[i]; i++) {
        if (!strcmp(args[0], names[i])) {
            return soak_load_use_memory(d->units[0].load, i, errp);
        }
    }
    return refuse(errp, "use-memory takes none, careful or rude");
}

/* What is in it */

/* Returns NULL with @errp set if @args are no range of added memory */
static uint8_t *find(const Driver *d, char **args, GError **errp)
{
    uint64_t offset = number(args[0]), size = number(args[1]);

    if (offset > d->extra_size || size > d->extra_size - offset) {
        refuse(errp, "this is not within memory that was added");
        return NULL;
    }
    return d->extra + offset;
}

/* fill-memory OFFSET BYTES */
static bool cmd_fill_memory(Driver *d, char **args, GString *out,
                            GError **errp)
{
    uint8_t *from = find(d, args, errp);

    if (from) {
        memset(from, 0xa5, number(args[1]));
    }
    return from;
}

static bool is_zero(const uint8_t *page)
{
    return !page[0] && !memcmp(page, page + 1, SOAK_PAGE - 1);
}

/* zero-pages OFFSET BYTES */
static bool cmd_zero_pages(Driver *d, char **args, GString *out, GError **errp)
{
    const uint8_t *from = find(d, args, errp);
    uint64_t n = number(args[1]) / SOAK_PAGE, zero = 0;

    if (!from) {
        return false;
    }
    for (uint64_t i = 0; i < n; i++) {
        zero += is_zero(from + i * SOAK_PAGE);
    }
    g_string_append_printf(out, "%" G_GUINT64_FORMAT, zero);
    return true;
}

/* Devices */

static bool check_started(const SoakMemdev *dev, unsigned queue, GError **errp)
{
    if (queue >= dev->parent.num_queues) {
        g_set_error(errp, BENCH_ERROR, 0, "the %s has not been started, or "
                    "not with such a queue", dev->kind->pci.name);
        return false;
    }
    return true;
}

/* The load goes on until the request has ended. */
static bool wait_ended(Driver *d, SoakMemdev *dev, GError **errp)
{
    int64_t end = g_get_monotonic_time() + d->stall * G_USEC_PER_SEC;

    while (!soak_memdev_ended(dev)) {
        bool busy;

        if (!driver_sweep(d, &busy, errp)) {
            return false;
        }
        if (!busy) {
            g_usleep(IDLE_US);
        }
        if (g_get_monotonic_time() > end) {
            g_set_error(errp, BENCH_ERROR, 0, "stall: the %s does not answer",
                        dev->kind->pci.name);
            return false;
        }
    }
    return !bench_qtest_failed(dev->qt, errp);
}

static bool cmd_mem_start(Driver *d, char **args, GString *out, GError **errp)
{
    return soak_memdev_start(d->virtio_mem, errp);
}

/* In struct virtio_mem_config (5.15.4) */
static bool cmd_mem_config(Driver *d, char **args, GString *out, GError **errp)
{
    static const struct {
        const char *name;
        unsigned offset;
    } fields[] = {
        { "block", 0 }, { "address", 16 }, { "size", 24 }, { "usable", 32 },
        { "plugged", 40 }, { "requested", 48 },
    };

    if (!check_started(d->virtio_mem, 0, errp)) {
        return false;
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(fields); i++) {
        g_string_append_printf(out, "%s\"%s\": %" G_GUINT64_FORMAT,
                               i ? ", " : "{", fields[i].name,
                               soak_memdev_config(d->virtio_mem,
                                                  fields[i].offset));
    }
    g_string_append(out, "}");
    return !bench_qtest_failed(d->virtio_mem->qt, errp);
}

/* mem-ask REQUEST ADDRESS BLOCKS */
static bool cmd_mem_ask(Driver *d, char **args, GString *out, GError **errp)
{
    static const char *const names[] = { "plug", "unplug", "unplug-all",
                                         "state", NULL };

    if (!check_started(d->virtio_mem, 0, errp)) {
        return false;
    }
    for (unsigned i = 0; names[i]; i++) {
        if (!strcmp(args[0], names[i])) {
            soak_mem_ask(d->virtio_mem, i, number(args[1]), number(args[2]));
            if (!wait_ended(d, d->virtio_mem, errp)) {
                return false;
            }
            g_string_append(out, soak_mem_answer(d->virtio_mem));
            return true;
        }
    }
    return refuse(errp, "mem-ask takes plug, unplug, unplug-all or state");
}

static bool cmd_balloon_start(Driver *d, char **args, GString *out,
                              GError **errp)
{
    return soak_memdev_start(d->balloon, errp);
}

static bool cmd_balloon_wanted(Driver *d, char **args, GString *out,
                               GError **errp)
{
    if (!check_started(d->balloon, 0, errp)) {
        return false;
    }
    g_string_append_printf(out, "%u",
                           (uint32_t)soak_memdev_config(d->balloon, 0));
    return !bench_qtest_failed(d->balloon->qt, errp);
}

static bool cmd_balloon_actual(Driver *d, char **args, GString *out,
                               GError **errp)
{
    if (!check_started(d->balloon, 0, errp)) {
        return false;
    }
    soak_balloon_set_actual(d->balloon, number(args[0]));
    return !bench_qtest_failed(d->balloon->qt, errp);
}

static bool move_pages(Driver *d, SoakBalloonQueue queue, char **args,
                       GError **errp)
{
    uint64_t addr = number(args[0]), n = number(args[1]);

    if (!check_started(d->balloon, queue, errp)) {
        return false;
    }
    if (addr % SOAK_PAGE || !n || n > SOAK_MAX_PAGES) {
        return refuse(errp, "this is no range of pages for one request");
    }
    soak_balloon_move(d->balloon, queue, addr, n);
    return wait_ended(d, d->balloon, errp);
}

/* inflate ADDRESS PAGES, and likewise */
static bool cmd_inflate(Driver *d, char **args, GString *out, GError **errp)
{
    return move_pages(d, SOAK_BALLOON_INFLATE, args, errp);
}

static bool cmd_deflate(Driver *d, char **args, GString *out, GError **errp)
{
    return move_pages(d, SOAK_BALLOON_DEFLATE, args, errp);
}

static bool cmd_report(Driver *d, char **args, GString *out, GError **errp)
{
    return move_pages(d, SOAK_BALLOON_REPORT, args, errp);
}

const Command soak_memory_commands[] = {
    { "add-memory", 4, cmd_add_memory, "ADDRESS BYTES FILE OFFSET: for data" },
    { "own-memory", 0, cmd_own_memory, "address and bytes of a piece of RAM" },
    { "add-own", 2, cmd_add_own, "ADDRESS BYTES: some of it, for data" },
    { "use-memory", 1, cmd_use_memory, "none, careful or rude" },
    { "drop-memory", 0, cmd_drop_memory, "forget it" },
    { "fill-memory", 2, cmd_fill_memory, "OFFSET BYTES: no zeroes are there" },
    { "zero-pages", 2, cmd_zero_pages, "OFFSET BYTES: number of pages" },
    { "mem-start", 0, cmd_mem_start, "find the virtio-mem, begin" },
    { "mem-config", 0, cmd_mem_config, "what it says of itself" },
    { "mem-ask", 3, cmd_mem_ask, "plug, unplug, unplug-all or state; ADDRESS "
      "BLOCKS" },
    { "balloon-start", 0, cmd_balloon_start, "find the balloon, begin" },
    { "balloon-wanted", 0, cmd_balloon_wanted, "pages that QEMU wants in it" },
    { "balloon-actual", 1, cmd_balloon_actual, "PAGES: tell that they are" },
    { "inflate", 2, cmd_inflate, "ADDRESS PAGES: into the balloon" },
    { "deflate", 2, cmd_deflate, "ADDRESS PAGES: out of it" },
    { "report", 2, cmd_report, "ADDRESS PAGES: are free" },
    {}
};
